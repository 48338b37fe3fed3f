//! TLS of the proxy's two sides. The provider is named, so that nothing depends on a process's default.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn chain(cert_pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect();
    chain.context("reading a certificate")
}

/// Serves with a certificate (PEM, the leaf first) and its key (PEM); asks clients for none.
pub fn server_config(cert_pem: &str, key_pem: &str) -> Result<ServerConfig> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).context("reading a private key")?;
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain(cert_pem)?, key)
        .context("using a certificate and its key")
}

/// Connects to servers whose certificate is signed by this CA (PEM), without a certificate of its own:
/// what clients send to prove who they are, as bearer tokens, is passed on.
pub fn client_config(ca_pem: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(ca_pem)? {
        roots.add(certificate).context("using the CA's certificate")?;
    }
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
