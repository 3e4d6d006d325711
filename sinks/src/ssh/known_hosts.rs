//! `known_hosts` as OpenSSH writes and reads it (sshd(8), where it tells of the format of that file): hashed names, `[host]:port`, lists, wildcards and
//! negations, several keys of a host, `@revoked`. Authorities (`@cert-authority`) are named and not followed.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;
use russh::keys::PublicKey;

/// The port that names do without.
const USUAL_PORT: u16 = 22;

/// A host as the file names it.
pub fn written(host: &str, port: u16) -> String {
    if port == USUAL_PORT {
        host.to_owned()
    } else {
        format!("[{host}]:{port}")
    }
}

/// What is recorded of one host.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Keys that it may show.
    pub keys: Vec<PublicKey>,
    /// Keys that nobody may show any more.
    pub revoked: Vec<PublicKey>,
    /// Whether an authority would vouch for it.
    pub has_authority: bool,
    /// Lines that cannot be read.
    pub warnings: Vec<String>,
}

/// What a key that a host shows is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is recorded.
    Known,
    /// Nothing is recorded of the host.
    Unknown,
    /// Other keys are recorded.
    Changed,
    /// It was revoked.
    Revoked,
}

impl Recorded {
    /// Of a host, out of the text of a file.
    pub fn of(text: &str, host: &str, port: u16) -> Self {
        let host = host.to_lowercase();
        let written = written(&host, port);
        let mut found = Self::default();
        // The name without the port counts where nothing is known of the one with it.
        let mut without_port = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some(line) = Line::of(line) else {
                found
                    .warnings
                    .push(format!("line {} cannot be read", number + 1));
                continue;
            };
            let is_usual = port == USUAL_PORT;
            let named = line.names(&written);
            let named_without = !is_usual && line.names(&host);
            match line.marker {
                Some("@revoked") if named || named_without => found.revoked.push(line.key),
                Some("@cert-authority") => found.has_authority |= named || named_without,
                None if named => found.keys.push(line.key),
                None if named_without => without_port.push(line.key),
                _ => {}
            }
        }
        if found.keys.is_empty() {
            found.keys = without_port;
        }
        found
    }

    /// What a key is.
    pub fn verdict(&self, key: &PublicKey) -> Verdict {
        let among = |keys: &[PublicKey]| keys.iter().any(|k| k.key_data() == key.key_data());
        if among(&self.revoked) {
            Verdict::Revoked
        } else if among(&self.keys) {
            Verdict::Known
        } else if self.keys.is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Changed
        }
    }
}

struct Line<'a> {
    marker: Option<&'a str>,
    hosts: &'a str,
    key: PublicKey,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        let (marker, hosts) = if first.starts_with('@') {
            (Some(first), words.next()?)
        } else {
            (None, first)
        };
        if !matches!(marker, None | Some("@revoked" | "@cert-authority")) {
            return None;
        }
        let (kind, digits) = (words.next()?, words.next()?);
        let key = PublicKey::from_openssh(&format!("{kind} {digits}")).ok()?;
        Some(Self { marker, hosts, key })
    }

    /// Whether it is about a host of this name.
    fn names(&self, name: &str) -> bool {
        if let Some(hashed) = self.hosts.strip_prefix("|1|") {
            return is_hash_of(hashed, name);
        }
        let mut named = false;
        for pattern in self.hosts.split(',') {
            match pattern.strip_prefix('!') {
                Some(pattern) if fits(pattern, name) => return false,
                Some(_) => {}
                None => named |= fits(pattern, name),
            }
        }
        named
    }
}

/// `SALT|HASH`, both base64: HMAC-SHA1 of the name.
fn is_hash_of(hashed: &str, name: &str) -> bool {
    let decoded = hashed.split_once('|').and_then(|(salt, hash)| {
        let decode = |text| BASE64_STANDARD.decode(text).ok();
        Some((decode(salt)?, decode(hash)?))
    });
    decoded.is_some_and(|(salt, hash)| {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
        hmac::verify(&key, name.as_bytes(), &hash).is_ok()
    })
}

/// `*` stands for any text, `?` for any character; letters count the same in both cases.
fn fits(pattern: &str, name: &str) -> bool {
    let pattern = pattern.to_lowercase().into_bytes();
    let (mut p, mut n) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    let name = name.as_bytes();
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => match &mut retry {
                Some((after, from)) => {
                    *from += 1;
                    (p, n) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const TWO: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    fn verdict(file: &str, host: &str, port: u16) -> Verdict {
        Recorded::of(file, host, port).verdict(&key(ONE))
    }

    #[test]
    fn each_form_of_a_line_says_what_openssh_takes_it_for() {
        use Verdict::{Changed, Known, Revoked, Unknown};
        for (file, host, port, expected) in [
            (format!("node {ONE} a comment"), "node", 22, Known),
            (format!("NODE {ONE}"), "Node", 22, Known),
            (format!("other,node {ONE}"), "node", 22, Known),
            (format!("node {TWO}"), "node", 22, Changed),
            (format!("node {TWO}\nnode {ONE}"), "node", 22, Known),
            (format!("[node]:2222 {ONE}"), "node", 2222, Known),
            (format!("[node]:2222 {ONE}"), "node", 22, Unknown),
            (format!("node {ONE}"), "node", 2222, Known),
            (
                format!("node {ONE}\n[node]:2222 {TWO}"),
                "node",
                2222,
                Changed,
            ),
            (format!("*.example.org {ONE}"), "a.b.example.org", 22, Known),
            (format!("n?de {ONE}"), "node", 22, Known),
            (format!("*,!node {ONE}"), "node", 22, Unknown),
            (format!("!node,* {ONE}"), "else", 22, Known),
            (format!("node {ONE}\n@revoked * {ONE}"), "node", 22, Revoked),
            (
                format!("@revoked node {ONE}\nnode {ONE}"),
                "node",
                22,
                Revoked,
            ),
            (
                format!("@revoked other {ONE}\nnode {ONE}"),
                "node",
                22,
                Known,
            ),
            (format!("# node {ONE}\n\n"), "node", 22, Unknown),
            ("node ssh-ed25519 no-base64".into(), "node", 22, Unknown),
            (format!("2001:db8::1 {ONE}"), "2001:db8::1", 22, Known),
            (
                format!("[2001:db8::1]:2222 {ONE}"),
                "2001:db8::1",
                2222,
                Known,
            ),
        ] {
            assert_eq!(
                verdict(&file, host, port),
                expected,
                "{file} for {host}:{port}"
            );
        }
    }

    #[test]
    fn hashed_names_authorities_and_unreadable_lines_are_told_apart() {
        // HMAC-SHA1 with an empty salt, as the algorithm says.
        let mac = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"salt"),
            b"node",
        );
        let hashed = format!(
            "|1|{}|{} {ONE}",
            BASE64_STANDARD.encode("salt"),
            BASE64_STANDARD.encode(mac)
        );
        assert_eq!(verdict(&hashed, "node", 22), Verdict::Known);
        assert_eq!(verdict(&hashed, "nodes", 22), Verdict::Unknown);
        let found = Recorded::of(
            &format!("@cert-authority * {ONE}\nbroken\n@odd node {ONE}"),
            "node",
            22,
        );
        assert!(found.has_authority && found.keys.is_empty());
        assert_eq!(
            found.warnings,
            ["line 2 cannot be read", "line 3 cannot be read"]
        );
    }
}
