//! TLS between operator, clients and gateways: mutual, with the network's own authority.

use std::sync::Arc;

use bsn_core::hash::sha256_hex;
use bsn_core::pki::Role;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::{PkiError, names_of, parse_certificate, provider};

fn chain(cert_pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    CertificateDer::pem_slice_iter(cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::read("the certificate", error))
}

fn key(key_pem: &str) -> Result<PrivateKeyDer<'static>, PkiError> {
    // The error is about the form and never quotes the content.
    PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|error| PkiError::read("the private key", error))
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(ca_pem)? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

/// Serves with a leaf, and demands one of the same authority from every client.
pub fn server_config(
    cert_pem: &str,
    key_pem: &str,
    ca_pem: &str,
) -> Result<ServerConfig, PkiError> {
    let provider = Arc::new(provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider.clone())
        .build()
        .map_err(|error| PkiError::read("the CA bundle", error))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain(cert_pem)?, key(key_pem)?)?;
    Ok(config)
}

/// Connects to a node by its pinned key, whatever its certificate says: also to one whose certificate
/// has ended, since the operator must still see such a node to help it.
pub fn client_config(
    pinned_spki_sha256: &str,
    cert_pem: &str,
    key_pem: &str,
) -> Result<ClientConfig, PkiError> {
    let verifier = PinnedKey { spki_sha256: pinned_spki_sha256.to_owned() };
    Ok(ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain(cert_pem)?, key(key_pem)?)?)
}

/// Connects as a client does: the server's certificate must be the authority's, in time and of the
/// right name. Without a certificate of its own when none is given.
pub fn client_config_ca(
    ca_pem: &str,
    identity: Option<(&str, &str)>,
) -> Result<ClientConfig, PkiError> {
    let provider = Arc::new(provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca_pem)?, provider.clone())
        .build()
        .map_err(|error| PkiError::read("the CA bundle", error))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_webpki_verifier(verifier);
    Ok(match identity {
        Some((cert, private)) => builder.with_client_auth_cert(chain(cert)?, key(private)?)?,
        None => builder.with_no_client_auth(),
    })
}

/// The role of a client in the network `network_id`, by the certificate it has proved to own.
pub fn peer_role(certificate: &CertificateDer<'_>, network_id: &str) -> Option<Role> {
    let certificate = parse_certificate(certificate, "the client's certificate").ok()?;
    names_of(&certificate).iter().find_map(|name| Role::from_uri(name, network_id))
}

/// Accepts exactly one key. The handshake's signature is checked as ever, so only the owner of the key
/// passes; issuer and dates do not matter.
#[derive(Debug)]
struct PinnedKey {
    spki_sha256: String,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let certificate = parse_certificate(end_entity, "the server's certificate")
            .map_err(|_| TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        if sha256_hex(certificate.public_key().raw) == self.spki_sha256 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
