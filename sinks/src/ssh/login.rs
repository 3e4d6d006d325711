//! A way to the server: TCP or through another host, the server's key compared, then the account.

use crate::ssh::known_hosts::{self, Recorded, Verdict};
use crate::ssh::{HostSettings, Place};
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result, settings, unsupported};
use russh::client::{self, AuthResult, Handle};
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use std::borrow::Cow;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Patience with connecting and logging in, both hosts together.
const LOGIN_LIMIT: Duration = Duration::from_secs(20);
/// What may be on its way before the other side must say that it has room.
const WINDOW_BYTES: u32 = 16 << 20;
const CHANNEL_MESSAGES: usize = 1024;
/// A server that is silent for so long is asked whether it is there, and given up after so many questions.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVES: usize = 3;
/// The same where what is sent fills every buffer, so that no question goes out.
const SILENCE: Duration = Duration::from_secs(90);

/// A connection whose account was accepted, and the one that it goes through.
pub struct Login {
    pub handle: Handle<Watch>,
    /// The server's key, as it is written down.
    pub host_key: String,
    pub warnings: Vec<String>,
    _through: Option<Handle<Watch>>,
}

/// Looks at the key that a server shows.
pub struct Watch {
    recorded: Recorded,
    place: String,
    accepts_new: bool,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    key: Option<PublicKey>,
    refused: Option<Error>,
    /// Nothing was recorded of it, and that is allowed.
    is_new: bool,
}

impl client::Handler for Watch {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> std::result::Result<bool, Self::Error> {
        let mut seen = lock(&self.seen);
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            let why = format!("{} shows a certificate, which is not followed", self.place);
            seen.refused = Some(unsupported(why));
            return Ok(false);
        };
        seen.key = Some(key.clone());
        let recorded = &self.recorded;
        if self.accepts_new && recorded.verdict(key) == Verdict::Unknown && !recorded.has_authority
        {
            seen.is_new = true;
            return Ok(true);
        }
        seen.refused = refusal(&self.recorded, key, &self.place);
        Ok(seen.refused.is_none())
    }
}

/// What lies behind it, also when somebody panicked who held it.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Why a key is not taken.
fn refusal(recorded: &Recorded, key: &PublicKey, place: &str) -> Option<Error> {
    let line = key.to_openssh().unwrap_or_default();
    let print = key.fingerprint(HashAlg::Sha256);
    let auth = |why: String| Error::new(ErrorKind::Auth, why);
    match recorded.verdict(key) {
        Verdict::Known => None,
        Verdict::Revoked => Some(
            auth(format!("{place} shows a key that was revoked ({print})"))
                .hint("somebody else may answer in its place: ask who runs it"),
        ),
        Verdict::Changed => Some(
            auth(format!(
                "{place} shows another key than is recorded ({print})"
            ))
            .hint("somebody else may answer in its place: ask who runs it, then mend `host_key` or `known_hosts`"),
        ),
        Verdict::Unknown if recorded.has_authority => Some(unsupported(format!(
            "{place} is known by an authority alone (@cert-authority), which is not followed; it shows {print}"
        ))
        .hint(format!("set host_key = [\"{line}\"]"))),
        Verdict::Unknown => Some(
            auth(format!("nothing is recorded of {place}; it shows {print}")).hint(format!(
                "compare that with what `ssh-keygen -lf` says on the server, then set host_key = [\"{line}\"], or repeat once with --set sink.NAME.accept_new_host_key=true"
            )),
        ),
    }
}

/// Connects and logs in.
pub async fn login(cx: &Context, target: &Place) -> Result<Login> {
    let place = place(&target.host);
    let late = || {
        Error::new(
            ErrorKind::Unreachable,
            format!("{place} did not answer within {} s", LOGIN_LIMIT.as_secs()),
        )
    };
    cx.within(LOGIN_LIMIT, late, both(target)).await
}

async fn both(target: &Place) -> Result<Login> {
    let Some(jump) = &target.jump else {
        let stream = tcp(&target.host).await?;
        return one(&target.host, stream, None).await;
    };
    let through = one(jump, tcp(jump).await?, None).await?;
    let host = &target.host;
    let channel = through
        .handle
        .channel_open_direct_tcpip(host.host.clone(), u32::from(host.port), "127.0.0.1", 0)
        .await
        .map_err(|e| match e {
            russh::Error::ChannelOpenFailure(_) => Error::new(
                ErrorKind::Denied,
                format!(
                    "{} does not pass connections on to {}: {e}",
                    place(jump),
                    place(host)
                ),
            )
            .hint("allow it there: AllowTcpForwarding local, PermitOpen HOST:PORT"),
            other => broken(jump, &other),
        })?;
    let warnings = through.warnings.clone();
    let mut login = one(host, channel.into_stream(), Some(through.handle)).await?;
    login.warnings.extend(warnings);
    Ok(login)
}

async fn tcp(host: &HostSettings) -> Result<TcpStream> {
    let name = host.host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((name, host.port))
        .await
        .map_err(|e| Error::new(ErrorKind::Unreachable, place(host)).because(e))?;
    stream
        .set_nodelay(true)
        .map_err(|e| Error::new(ErrorKind::Unreachable, place(host)).because(e))?;
    Ok(stream)
}

/// One host, over a stream that leads to it.
async fn one(
    host: &HostSettings,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    through: Option<Handle<Watch>>,
) -> Result<Login> {
    let recorded = recorded(host)?;
    let mut warnings = recorded.warnings.clone();
    let config = client::Config {
        nodelay: true,
        window_size: WINDOW_BYTES,
        channel_buffer_size: CHANNEL_MESSAGES,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVES,
        inactivity_timeout: Some(SILENCE),
        preferred: preferred(&recorded),
        ..client::Config::default()
    };
    let seen = Arc::new(Mutex::new(Seen::default()));
    let watch = Watch {
        recorded,
        place: place(host),
        accepts_new: host.accept_new_host_key,
        seen: seen.clone(),
    };
    let connected = client::connect_stream(Arc::new(config), stream, watch).await;
    if let Some(refused) = lock(&seen).refused.take() {
        return Err(refused);
    }
    let mut handle = connected.map_err(|e| match e {
        russh::Error::NoCommonAlgo {
            kind: russh::AlgorithmKind::Key,
            ..
        } => Error::new(
            ErrorKind::Auth,
            format!(
                "{} has no key of a kind that is recorded of it, or that is known here",
                place(host)
            ),
        )
        .hint("somebody else may answer in its place: ask who runs it, then mend `host_key` or `known_hosts`"),
        other => broken(host, &other),
    })?;
    let (key, is_new) = {
        let mut seen = lock(&seen);
        (seen.key.take(), seen.is_new)
    };
    if let (Some(key), true) = (&key, is_new) {
        warnings.push(write_down(host, key)?);
    }
    authenticate(host, &mut handle).await?;
    Ok(Login {
        handle,
        host_key: key
            .and_then(|key| key.to_openssh().ok())
            .unwrap_or_default(),
        warnings,
        _through: through,
    })
}

/// What may be negotiated: a server that has several keys shows one that is recorded.
fn preferred(recorded: &Recorded) -> russh::Preferred {
    let mut preferred = russh::Preferred::default();
    if !recorded.keys.is_empty() {
        let kinds: Vec<Algorithm> = recorded.keys.iter().map(PublicKey::algorithm).collect();
        let wanted = preferred.key.iter().filter(|offered| {
            kinds.iter().any(|kind| match (kind, offered) {
                (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
                (kind, offered) => kind == *offered,
            })
        });
        preferred.key = Cow::Owned(wanted.cloned().collect());
    }
    preferred
}

/// What the settings say of a host's key.
fn recorded(host: &HostSettings) -> Result<Recorded> {
    if !host.host_key.is_empty() {
        let keys = host.host_key.iter().map(|line| {
            PublicKey::from_openssh(line)
                .map_err(|e| settings(format!("`host_key`: `{line}` is no public key")).because(e))
        });
        return Ok(Recorded {
            keys: keys.collect::<Result<_>>()?,
            ..Recorded::default()
        });
    }
    let path = known_hosts_file(host)?;
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // Without a file of the user's own nothing is recorded; one that was named must be there.
        Err(e)
            if e.kind() == std::io::ErrorKind::NotFound
                && (host.known_hosts.is_none() || host.accept_new_host_key) =>
        {
            String::new()
        }
        Err(e) => {
            return Err(settings(format!(
                "`known_hosts`: `{}` cannot be read",
                path.display()
            ))
            .because(e)
            .hint("set host_key to what the server shows"));
        }
    };
    let mut recorded = Recorded::of(&text, host.host.trim_matches(['[', ']']), host.port);
    for warning in &mut recorded.warnings {
        *warning = format!("`{}`: {warning}", path.display());
    }
    Ok(recorded)
}

/// The key of a server that was not known is kept, so that another one is noticed next time.
fn write_down(host: &HostSettings, key: &PublicKey) -> Result<String> {
    use std::io::Write;
    let path = known_hosts_file(host)?;
    let line = key.to_openssh().map_err(|e| {
        settings(format!("the key of {} cannot be written down", place(host))).because(e)
    })?;
    let name = known_hosts::written(host.host.trim_matches(['[', ']']), host.port);
    let failed = |e| Error::io("write down the server's key in", &path, e);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path);
    // Begins with a line end: the last line of the file may lack its own.
    let written = file.and_then(|mut file| {
        file.write_all(format!("\n{name} {line}\n").as_bytes())?;
        file.sync_all()
    });
    written.map_err(failed)?;
    Ok(format!(
        "the key of {} was not known and is now ({}); it stands in `{}`",
        place(host),
        key.fingerprint(HashAlg::Sha256),
        path.display()
    ))
}

fn known_hosts_file(host: &HostSettings) -> Result<std::path::PathBuf> {
    match &host.known_hosts {
        Some(path) => Ok(path.clone()),
        None => home(".ssh/known_hosts").ok_or_else(|| {
            settings("neither `host_key` nor `known_hosts` is set, and there is no HOME")
        }),
    }
}

fn home(rest: &str) -> Option<std::path::PathBuf> {
    std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(rest))
}

async fn authenticate(host: &HostSettings, handle: &mut Handle<Watch>) -> Result<()> {
    let user = host.user.clone();
    let broke = |e: russh::Error| broken(host, &e);
    let mut tried = Vec::new();
    if let Some(path) = &host.key {
        let secret = match &host.passphrase {
            Some(secret) => Some(secret.reveal().await?),
            None => None,
        };
        let key = russh::keys::load_secret_key(path, secret.as_deref()).map_err(|e| {
            settings(format!("`key`: `{}` cannot be used", path.display())).because(e)
        })?;
        let hash = handle
            .best_supported_rsa_hash()
            .await
            .map_err(broke)?
            .flatten();
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        tried.push(format!("the key `{}`", path.display()));
        let done = handle
            .authenticate_publickey(&user, key)
            .await
            .map_err(broke)?;
        if done.success() {
            return Ok(());
        }
    } else if host.password.is_none() {
        tried.push("the keys of the agent".to_owned());
        if with_agent(host, handle).await? {
            return Ok(());
        }
    }
    if let Some(password) = &host.password {
        tried.push("the password".to_owned());
        let password = password.reveal().await?;
        let done = handle
            .authenticate_password(&user, password)
            .await
            .map_err(broke)?;
        if let AuthResult::Success = done {
            return Ok(());
        }
    }
    Err(Error::new(
        ErrorKind::Auth,
        format!("{} refuses {}", place(host), tried.join(" and ")),
    )
    .hint(format!(
        "put its public half into ~/.ssh/authorized_keys of `{user}` there"
    )))
}

async fn with_agent(host: &HostSettings, handle: &mut Handle<Watch>) -> Result<bool> {
    let mut agent = AgentClient::connect_env().await.map_err(|e| {
        settings("neither `key` nor `password` is set, and there is no agent")
            .because(e)
            .hint("set `key` to a private key's file")
    })?;
    let keys = agent
        .request_identities()
        .await
        .map_err(|e| settings("the agent does not list its keys").because(e))?;
    let hash = handle
        .best_supported_rsa_hash()
        .await
        .map_err(|e| broken(host, &e))?
        .flatten();
    for identity in keys {
        let key = identity.public_key().into_owned();
        let done = handle
            .authenticate_publickey_with(&host.user, key, hash, &mut agent)
            .await
            .map_err(|e| Error::new(ErrorKind::Auth, "the agent does not sign").because(e))?;
        if done.success() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `user@host`, with the port where it is not the usual one.
pub fn place(host: &HostSettings) -> String {
    let HostSettings {
        user, host, port, ..
    } = host;
    match port {
        22 => format!("{user}@{host}"),
        port => format!("{user}@{host}:{port}"),
    }
}

fn broken(host: &HostSettings, error: &russh::Error) -> Error {
    Error::new(ErrorKind::Unreachable, format!("{}: {error}", place(host)))
}
