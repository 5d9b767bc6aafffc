//! TLS for private servers: an authority of the server's own, and a certificate that it vouches for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::home::{Home, free_port};

/// Where a server listens with TLS, and the files that it needs for that.
pub(super) struct Tls {
    pub(super) port: u16,
    /// Who trusts this authority trusts the server.
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Tls {
    /// Makes the files.
    pub(super) fn prepare(home: &Home) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "authority of a Hapax test");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let mut server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        server.distinguished_name.push(DnType::CommonName, "server of a Hapax test");
        server.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &authority)?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = home.path().join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            port: free_port()?,
            authority: write("authority.pem", authority.pem())?,
            certificate: write("server.pem", certificate.pem())?,
            key: write("server.key", key.serialize_pem())?,
        })
    }
}

/// How to reach a private server with TLS.
#[derive(Debug, Clone, Copy)]
pub struct TlsAccess<'a> {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The certificate of the authority to trust, in PEM.
    pub authority: &'a Path,
}

impl Tls {
    pub(super) fn access(&self) -> TlsAccess<'_> {
        TlsAccess { port: self.port, authority: &self.authority }
    }
}
