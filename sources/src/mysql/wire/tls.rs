//! How far the server's certificate is believed.

use crate::mysql::Tls;
use crate::mysql::connection::Access;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use std::path::Path;
use std::sync::Arc;

/// As `tls` asks: no look at the certificate, a look at who signed it, or at its name too.
pub async fn client(access: &Access) -> bk_core::error::Result<ClientConfig> {
    let roots = roots(access.ca.as_deref()).await?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let broken = |e: &dyn std::fmt::Display| bk_core::error::bug(format!("TLS: {e}"));
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| broken(&e))?;
    let verifier = Verifier {
        tls: access.tls,
        verifier,
    };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| broken(&e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

async fn roots(ca: Option<&Path>) -> bk_core::error::Result<RootCertStore> {
    // Beside a certificate authority of the user's nobody else is believed.
    let public = match ca {
        Some(_) => Vec::new(),
        None => webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let mut roots = RootCertStore { roots: public };
    if let Some(path) = ca {
        let unread = |why: String| {
            bk_core::error::settings(format!("`ca`: {}: {why}", path.display()))
                .hint("name a file of certificates in PEM")
        };
        let pem = tokio::fs::read(path).await;
        let pem = pem.map_err(|e| unread(e.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| unread(e.to_string()))?;
            roots.add(certificate).map_err(|e| unread(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unread("no certificate stands in it".into()));
        }
    }
    Ok(roots)
}

#[derive(Debug)]
struct Verifier {
    tls: Tls,
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.tls.looks_at_certificates() {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = self
            .verifier
            .verify_server_cert(certificate, between, name, ocsp, now);
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.tls == Tls::VerifyCa => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if !self.tls.looks_at_certificates() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        self.verifier
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if !self.tls.looks_at_certificates() {
            return Ok(HandshakeSignatureValid::assertion());
        }
        self.verifier
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn beside_an_authority_of_the_user_nobody_is_believed() {
        assert!(roots(None).await.unwrap().len() > 100);
        let folder = std::env::temp_dir();
        let empty = folder.join(format!("bk-no-authority-{}.pem", std::process::id()));
        std::fs::write(&empty, "").unwrap();
        let error = roots(Some(&empty)).await.unwrap_err();
        std::fs::remove_file(&empty).unwrap();
        assert!(
            error.to_string().contains("no certificate stands in it"),
            "{error}"
        );
    }
}
