//! What databases hold that tools stumble over: documents as they are put into the simulator, or over HTTP into a server.

use crate::couch_fake::Site;
use rand::Rng;
use rand::rngs::SmallRng;

/// The digits of a revision of a test.
pub fn rev(n: u32) -> String {
    format!("{n:032x}")
}

/// `_revisions` of a leaf that is the `start`th of its history; equal `newest` share it.
pub fn history(start: u32, newest: u32) -> String {
    let ids: Vec<String> = (0..start)
        .map(|n| format!("\"{}\"", rev(newest * 1000 + start - n)))
        .collect();
    format!(
        "\"_revisions\":{{\"start\":{start},\"ids\":[{}]}}",
        ids.join(",")
    )
}

/// As attachments are given.
pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

/// Bytes that nothing shrinks.
pub fn noise(rng: &mut SmallRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes[..]);
    bytes
}

/// A database and what is put into it.
pub struct Case {
    /// Its name.
    pub name: String,
    /// Shards.
    pub q: u32,
    /// Whether ids name their partition.
    pub partitioned: bool,
    /// In the order in which they are written; with `_revisions` as a replication does.
    pub documents: Vec<String>,
    /// Who may read and write.
    pub security: Option<&'static str>,
    /// Revisions of a history, and purges, that are kept.
    pub limits: (usize, u64),
}

impl Case {
    fn new(name: String, q: u32, partitioned: bool) -> Self {
        Self {
            name,
            q,
            partitioned,
            documents: Vec::new(),
            security: None,
            limits: (1000, 1000),
        }
    }

    fn put(&mut self, json: impl Into<String>) {
        self.documents.push(json.into());
    }

    /// Into the simulator.
    pub fn take_into(&self, site: &mut Site) {
        site.create(&self.name, self.q, 1, self.partitioned);
        for document in &self.documents {
            site.put(&self.name, document);
        }
        if let Some(database) = site.databases.get_mut(&self.name) {
            database.security = self.security.map(str::to_owned);
            (database.revs_limit, database.purged_infos_limit) = self.limits;
        }
    }
}

/// What databases hold that tools stumble over.
pub fn hard_cases(prefix: &str, rng: &mut SmallRng) -> Vec<Case> {
    let mut hard = Case::new(format!("{prefix}app/hard+$(1)"), 3, false);
    // Conflicts of different depth; a deletion that hides a living one; deleted branches; histories that share their beginning.
    for (newest, start) in [(1, 2), (2, 5), (3, 3)] {
        hard.put(format!(
            "{{\"_id\":\"conflict\",\"n\":{newest},{}}}",
            history(start, newest)
        ));
    }
    hard.put(format!(
        "{{\"_id\":\"hidden\",\"living\":true,{}}}",
        history(2, 1)
    ));
    hard.put(format!(
        "{{\"_id\":\"hidden\",\"_deleted\":true,{}}}",
        history(9, 2)
    ));
    hard.put(format!(
        "{{\"_id\":\"tombstone\",\"_deleted\":true,\"body\":\"stays\",{}}}",
        history(3, 1)
    ));
    hard.put(format!("{{\"_id\":\"branches\",{}}}", history(4, 1)));
    hard.put(format!(
        "{{\"_id\":\"branches\",\"_deleted\":true,\"x\":1,{}}}",
        history(3, 2)
    ));
    hard.put(format!("{{\"_id\":\"long history\",{}}}", history(900, 1)));
    hard.put("{\"_id\":\"short revs\",\"_revisions\":{\"start\":2,\"ids\":[\"x\",\"y\"]}}");
    // Names.
    for id in [
        "a/b",
        "per%cent",
        "pl+us",
        "sp ace",
        "ümläut😀",
        "line\u{2028}sep",
        "42",
        "quote\"d",
        "back\\slash",
        "_not really",
    ] {
        if !id.starts_with('_') {
            let id = serde_json::to_string(id).unwrap();
            hard.put(format!("{{\"_id\":{id},\"x\":1}}"));
        }
    }
    let long = "l".repeat(4000);
    hard.put(format!("{{\"_id\":\"{long}\"}}"));
    // Numbers, keys, text.
    hard.put(r#"{"_id":"numbers","big":123456789012345678901234567890,"one":1.0,"short":1.10,"exp":1e3,"zero":-0.0,"tiny":5e-324,"neg":-7,"z":1,"a":2,"z":3,"in":{"b":[1.0,{"y":1e22}],"a":null}}"#,
    );
    hard.put(r#"{"_id":"text","nul":"a\u0000b","astral":"\ud83d\ude00","ctl":"\u0001\n\t","slash":"\/","empty":"","":"no name"}"#);
    hard.put(format!(
        "{{\"_id\":\"heavy\",\"text\":\"{}\"}}",
        base64(&noise(rng, 5 << 20))
    ));
    // Attachments: nothing, one byte, compressed text, what is compressed already, odd names, many, on conflicts.
    let attached = |id: &str, list: &[(&str, &str, Vec<u8>)], more: &str| {
        let list: Vec<String> = list
            .iter()
            .map(|(name, kind, bytes)| {
                format!(
                    "{}:{{\"content_type\":\"{kind}\",\"data\":\"{}\"}}",
                    serde_json::to_string(name).unwrap(),
                    base64(bytes)
                )
            })
            .collect();
        format!(
            "{{\"_id\":{},\"_attachments\":{{{}}}{more}}}",
            serde_json::to_string(id).unwrap(),
            list.join(",")
        )
    };
    let text = "text that repeats ".repeat(500).into_bytes();
    hard.put(attached(
        "attached",
        &[
            ("nothing", "text/plain", Vec::new()),
            ("nothing at all", "image/png", Vec::new()),
            ("one", "application/octet-stream", vec![7]),
            ("text/ü 😀.txt", "text/plain; charset=utf-8", text.clone()),
            (
                "--bk-",
                "image/jpeg",
                b"\r\n--bk-0123456789abcdef0123456789abcdef--".to_vec(),
            ),
            ("quote\"d", "application/gzip", noise(rng, 3000)),
        ],
        ",\"x\":1.0",
    ));
    let many: Vec<(String, Vec<u8>)> = (0..500)
        .map(|n| (format!("n{n}"), noise(rng, 20)))
        .collect();
    let many: Vec<(&str, &str, Vec<u8>)> = many
        .iter()
        .map(|(name, bytes)| (name.as_str(), "image/png", bytes.clone()))
        .collect();
    hard.put(attached("many", &many, ""));
    for n in 1..3 {
        hard.put(attached(
            "attached conflict",
            &[("same", "text/plain", text.clone())],
            &format!(",\"n\":{n},{}", history(2, n)),
        ));
    }
    hard.put(attached(
        "middling",
        &[
            ("a", "image/png", noise(rng, 600_000)),
            ("b", "text/css", noise(rng, 300_000)),
        ],
        "",
    ));
    hard.put(attached(
        "large",
        &[
            ("movie", "video/mp4", noise(rng, 20 << 20)),
            ("notes", "text/plain", text),
        ],
        "",
    ));
    // Programs: one refuses what others wrote before it came.
    hard.put(format!(
        "{{\"_id\":\"old\",\"forbidden\":true,{}}}",
        history(1, 9)
    ));
    hard.put(r#"{"_id":"_design/check/slash","validate_doc_update":"function(){throw({forbidden:'no'})}"}"#);
    hard.put(attached(
        "_design/pages",
        &[("index.html", "text/html", b"<html>".to_vec())],
        ",\"views\":{\"a\":{\"map\":\"function(d){emit(1)}\"}}",
    ));
    hard.security = Some(
        r#"{"admins":{"names":["a"],"roles":[]},"members":{"roles":["team"]},"cloudant":{"x":["_reader"]}}"#,
    );
    hard.limits = (950, 77);
    let mut parts = Case::new(format!("{prefix}parts"), 8, true);
    for n in 0..50 {
        parts.put(format!("{{\"_id\":\"p{}:{n}\",\"n\":{n}}}", n % 3));
    }
    vec![hard, parts, Case::new(format!("{prefix}empty"), 2, false)]
}
