//! Certificates for servers on loopback, made for one test.

use std::path::{Path, PathBuf};

/// Files of a server that calls itself 127.0.0.1, of the authority that vouches for it, and of one that does not.
pub struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    /// Makes them.
    pub fn new() -> Self {
        let made = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority_key = rcgen::KeyPair::generate().unwrap();
        made.write(
            "ca.pem",
            &authority.self_signed(&authority_key).unwrap().pem(),
        );
        let issuer = rcgen::Issuer::new(authority, authority_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let server = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        made.write("cert.pem", &server.signed_by(&key, &issuer).unwrap().pem());
        made.write("key.pem", &key.serialize_pem());
        let stranger = rcgen::KeyPair::generate().unwrap();
        let other = rcgen::CertificateParams::new(Vec::new()).unwrap();
        made.write("other.pem", &other.self_signed(&stranger).unwrap().pem());
        made
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where they lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The authority.
    pub fn ca(&self) -> String {
        self.path("ca.pem").display().to_string()
    }

    /// The server's certificate.
    pub fn certificate(&self) -> String {
        self.path("cert.pem").display().to_string()
    }

    /// The server's key.
    pub fn key(&self) -> String {
        self.path("key.pem").display().to_string()
    }

    /// An authority that vouches for nobody here.
    pub fn other_ca(&self) -> String {
        self.path("other.pem").display().to_string()
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}
