//! From a socket to a session: greeting, encryption, proof of the password.
//!
//! Pages of the protocol: "Connection Phase", "Caching SHA-2 Pluggable Authentication". Scrambles and keys are `mysql_common`'s work.

use super::{ERROR, OK, Result, Secrets, Wire, said};
use crate::mysql::Tls;
use crate::mysql::connection::Access;
use bk_core::ErrorKind;
use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::packets::{
    AuthPlugin, AuthSwitchRequest, HandshakePacket, HandshakeResponse, SslRequest,
};
use mysql_common::proto::MySerialize;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

const UTF8MB4_GENERAL_CI: u8 = 45;
const SWITCH: u8 = 0xFE;
const MORE: u8 = 1;
const PUBLIC_KEY_REQUEST: u8 = 2;
const FAST_PROOF_IS_ENOUGH: u8 = 3;
const FULL_PROOF: u8 = 4;

/// How many ways to log in a server may ask for, one after the other.
const SWITCHES: usize = 8;
/// Of a proof by parsec, as a power of two over 1,024: a quarter of a million rounds. Servers ask for 0 to 3.
const ROUNDS_MAX: u8 = 8;
/// The longest password that fits under a key of 2048 bits.
const SEALED_MAX_BYTES: usize = 214;

pub(super) async fn connect(access: &Access, secrets: Secrets) -> Result<Wire> {
    let mut login = Login {
        wire: match &access.socket {
            Some(path) => Wire::over(Box::new(UnixStream::connect(path).await?)),
            None => Wire::over(Box::new(tcp(&access.host, access.port).await?)),
        },
        // What a socket carries does not leave the machine.
        secret_may_pass: access.socket.is_some(),
        password: secrets.password,
        nonce: Vec::new(),
        plugin: AuthPlugin::MysqlNativePassword,
    };
    login.greet(access, secrets.tls).await?;
    login.prove().await?;
    Ok(login.wire)
}

/// A peer that is gone without a word is noticed.
async fn tcp(host: &str, port: u16) -> Result<TcpStream> {
    const SILENCE: Duration = Duration::from_mins(1);
    let stream = TcpStream::connect((host, port)).await?;
    let keepalive = socket2::TcpKeepalive::new().with_time(SILENCE);
    socket2::SockRef::from(&stream)
        .set_tcp_keepalive(&keepalive)
        .and_then(|()| stream.set_nodelay(true))?;
    Ok(stream)
}

struct Login {
    wire: Wire,
    secret_may_pass: bool,
    password: String,
    nonce: Vec<u8>,
    plugin: AuthPlugin<'static>,
}

impl Login {
    /// The server's greeting and our answer, with encryption between them.
    async fn greet(&mut self, access: &Access, tls: Option<ClientConfig>) -> Result<()> {
        let place = self.wire.packet().await?;
        let packet = self.wire.bytes(&place);
        if packet.first() == Some(&ERROR) {
            return Err(said(packet));
        }
        let greeting: HandshakePacket<'_> = ParseBuf(packet).parse(())?;
        self.nonce = greeting.nonce();
        if greeting.auth_plugin() == Some(AuthPlugin::CachingSha2Password) {
            self.plugin = AuthPlugin::CachingSha2Password;
        }
        let known = greeting.capabilities();
        let wanted = CapabilityFlags::CLIENT_PROTOCOL_41
            | CapabilityFlags::CLIENT_SECURE_CONNECTION
            | CapabilityFlags::CLIENT_LONG_PASSWORD
            | CapabilityFlags::CLIENT_TRANSACTIONS
            | CapabilityFlags::CLIENT_LOCAL_FILES
            | CapabilityFlags::CLIENT_MULTI_RESULTS
            | CapabilityFlags::CLIENT_PLUGIN_AUTH;
        let mut ours = wanted & known;
        if let Some(tls) = tls {
            if known.contains(CapabilityFlags::CLIENT_SSL) {
                ours |= CapabilityFlags::CLIENT_SSL;
                self.encrypt(access, tls, ours).await?;
            } else if access.tls != Tls::Prefer {
                let what = "the server offers no encryption, and `tls` asks for it";
                return Err(bk_core::Error::new(ErrorKind::Unreachable, what)
                    .hint("ssl_cert and ssl_key in the server's settings turn it on")
                    .into());
            }
        }
        let proof = self.plugin.gen_data(Some(&self.password), &self.nonce);
        let response = HandshakeResponse::new(
            proof.as_deref(),
            (5, 7, 0),
            Some(access.user.as_bytes()),
            None::<&[u8]>,
            Some(self.plugin.borrow()),
            ours,
            None,
            super::ROW_MAX_BYTES as u32,
        );
        let mut payload = Vec::new();
        response.serialize(&mut payload);
        self.wire.send(&payload[..]).await
    }

    async fn encrypt(
        &mut self,
        access: &Access,
        tls: ClientConfig,
        ours: CapabilityFlags,
    ) -> Result<()> {
        let mut payload = Vec::new();
        SslRequest::new(ours, super::ROW_MAX_BYTES as u32, UTF8MB4_GENERAL_CI)
            .serialize(&mut payload);
        self.wire.send(&payload[..]).await?;
        // Bytes that came before the encryption did would be taken for encrypted ones.
        if !self.wire.received.is_empty() {
            return Err(self.wire.lost("bytes before the encryption"));
        }
        let name = ServerName::try_from(access.host.clone()).map_err(std::io::Error::other)?;
        let plain = std::mem::replace(&mut self.wire.stream, Box::new(tokio::io::empty()));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let encrypted = connector.connect(name, plain).await?;
        self.wire.stream = Box::new(encrypted);
        self.secret_may_pass = true;
        Ok(())
    }

    /// Answers what the server asks until it says yes or no.
    async fn prove(&mut self) -> Result<()> {
        let mut switches = 0;
        loop {
            let place = self.wire.packet().await?;
            let packet = self.wire.bytes(&place).to_vec();
            match packet.as_slice() {
                [OK, ..] => return Ok(()),
                [ERROR, ..] => return Err(said(&packet)),
                [SWITCH, ..] if switches < SWITCHES => {
                    switches += 1;
                    let asked: AuthSwitchRequest<'_> = ParseBuf(&packet).parse(())?;
                    self.nonce = nonce(&packet);
                    self.plugin = asked.auth_plugin().into_owned();
                    self.answer_switch().await?;
                }
                [MORE, FAST_PROOF_IS_ENOUGH] if self.plugin == AuthPlugin::CachingSha2Password => {}
                [MORE, FULL_PROOF] if self.plugin == AuthPlugin::CachingSha2Password => {
                    self.full_proof().await?;
                }
                salt if switches < SWITCHES
                    && matches!(self.plugin, AuthPlugin::MariadbParsec { .. }) =>
                {
                    switches += 1;
                    let salt = salt.strip_prefix(&[MORE]).unwrap_or(salt);
                    let rounds = salt.get(1).copied().unwrap_or(u8::MAX);
                    if rounds > ROUNDS_MAX || self.plugin.read_add_data(salt).is_none() {
                        return Err(self.wire.lost("a login by parsec without its salt"));
                    }
                    self.send_proof().await?;
                }
                _ => return Err(self.wire.lost("an unknown step of the login")),
            }
        }
    }

    async fn answer_switch(&mut self) -> Result<()> {
        match &self.plugin {
            // An empty packet asks for the salt.
            AuthPlugin::MariadbParsec { .. } => self.wire.send(&[][..]).await,
            AuthPlugin::MysqlNativePassword
            | AuthPlugin::CachingSha2Password
            | AuthPlugin::Ed25519 => self.send_proof().await,
            // The first two would show the password to whoever asks.
            AuthPlugin::MysqlOldPassword
            | AuthPlugin::MysqlClearPassword
            | AuthPlugin::Other(_) => {
                let name = String::from_utf8_lossy(self.plugin.as_bytes()).into_owned();
                let what = format!("this account logs in by `{name}`, which bk does not do");
                Err(bk_core::Error::new(ErrorKind::Auth, what)
                    .hint("make an account for bk that logs in by a password")
                    .into())
            }
        }
    }

    async fn send_proof(&mut self) -> Result<()> {
        let proof = self.plugin.gen_data(Some(&self.password), &self.nonce);
        self.wire.send(proof.as_deref().unwrap_or_default()).await
    }

    /// The server has no fast proof at hand and wants the password itself: as it is where nobody listens, else under the server's key.
    async fn full_proof(&mut self) -> Result<()> {
        let mut secret = [self.password.as_bytes(), &[0]].concat();
        if self.secret_may_pass {
            return self.wire.send(&secret[..]).await;
        }
        let unsealed = |why: &str| {
            bk_core::Error::new(
                ErrorKind::Auth,
                format!("the password cannot be sealed: {why}"),
            )
            .hint("set tls = \"require\", or reach the server by its socket")
        };
        if secret.len() > SEALED_MAX_BYTES {
            return Err(unsealed("it is too long for the server's key").into());
        }
        self.wire.send(&[PUBLIC_KEY_REQUEST][..]).await?;
        let place = self.wire.packet().await?;
        let key = match self.wire.bytes(&place) {
            [MORE, key @ ..] if key.starts_with(b"-----BEGIN PUBLIC KEY-----") => key.to_vec(),
            packet @ [ERROR, ..] => return Err(said(packet)),
            _ => return Err(self.wire.lost("a login without the server's key")),
        };
        for (byte, with) in secret.iter_mut().zip(self.nonce.iter().cycle()) {
            *byte ^= with;
        }
        // The library takes any key for a sound one, and panics on others.
        let sealed = std::panic::catch_unwind(|| mysql_common::crypto::encrypt(&secret, &key))
            .map_err(|_| unsealed("the server's key is none"))?;
        self.wire.send(&sealed[..]).await
    }
}

/// What a proof is made over: all behind the plugin's name. The older plugins end it with a zero that is not part of it; of the newer ones'
/// 32 random bytes the last may be one.
fn nonce(switch: &[u8]) -> Vec<u8> {
    const WITH_ITS_ZERO: usize = 21;
    let behind = switch.iter().skip(1).position(|byte| *byte == 0);
    let nonce = behind.map_or(&[][..], |name| &switch[1 + name + 1..]);
    match nonce {
        [nonce @ .., 0] if nonce.len() + 1 == WITH_ITS_ZERO => nonce.to_vec(),
        nonce => nonce.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_zero_that_ends_an_older_nonce_is_cut() {
        let older = [&[SWITCH][..], b"mysql_native_password\0", &[7; 20], &[0]].concat();
        assert_eq!(nonce(&older), [7; 20]);
        let newer = [&[SWITCH][..], b"client_ed25519\0", &[7; 31], &[0]].concat();
        assert_eq!(nonce(&newer).len(), 32);
    }
}
