//! Keys and certificates: made, read and used for TLS. What is issued when is decided in
//! [`bsn_core::pki`].

mod authority;
pub mod tls;

use bsn_core::hash::sha256_hex;
use bsn_core::pki::ObservedLeaf;
use jiff::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::crypto::{CryptoProvider, ring};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

pub use authority::Authority;

/// Why a key or certificate could not be made, read or used. Never holds any part of a key.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A certificate or key could not be made, or a private key could not be read.
    #[error("{what}: {source}")]
    Make {
        /// What was tried.
        what: &'static str,
        /// The library's word.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate could not be read.
    #[error("{what} cannot be read: {why}")]
    Read {
        /// What was read.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
    /// A certificate and a key that do not belong together.
    #[error("the CA's certificate does not belong to its key")]
    KeyDiffers,
    /// TLS could not be set up with what was given.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The operating system gave no random bytes.
    #[error("no random bytes from the operating system")]
    Random,
}

impl PkiError {
    fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Make { what, source }
    }

    fn read(what: &'static str, why: impl std::fmt::Display) -> Self {
        Self::Read { what, why: why.to_string() }
    }
}

/// The only provider of cryptography. Named wherever one is needed, so that nothing depends on
/// which default a process has installed.
pub fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// Random bytes from the operating system.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    provider().secure_random.fill(&mut bytes).map_err(|_| PkiError::Random)?;
    Ok(bytes)
}

/// Makes a new P-256 key, as PEM (PKCS #8).
pub fn new_key() -> Result<String, PkiError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(PkiError::make("a key could not be made"))?;
    Ok(key.serialize_pem())
}

fn read_key(key_pem: &str) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(key_pem).map_err(PkiError::make("the private key cannot be read"))
}

/// SHA-256 of the public key (`SubjectPublicKeyInfo`) of a private key, in hexadecimal.
pub fn spki_sha256_of_key(key_pem: &str) -> Result<String, PkiError> {
    Ok(sha256_hex(&read_key(key_pem)?.subject_public_key_info()))
}

fn certificate_der(pem: &str, what: &'static str) -> Result<Vec<u8>, PkiError> {
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|error| PkiError::read(what, error))?;
    if block.label != "CERTIFICATE" {
        return Err(PkiError::read(what, format!("it is a {}", block.label)));
    }
    Ok(block.contents)
}

fn parse_certificate<'a>(
    der: &'a [u8],
    what: &'static str,
) -> Result<X509Certificate<'a>, PkiError> {
    x509_parser::parse_x509_certificate(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| PkiError::read(what, error))
}

/// DNS and URI names of a certificate.
fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(text).collect()
}

/// Reads a leaf, and checks whether the CA `ca_pem` signed it.
pub fn observe_leaf(leaf_pem: &str, ca_pem: &str) -> Result<ObservedLeaf, PkiError> {
    let leaf_der = certificate_der(leaf_pem, "the leaf certificate")?;
    let leaf = parse_certificate(&leaf_der, "the leaf certificate")?;
    let ca_der = certificate_der(ca_pem, "the CA's certificate")?;
    let ca = parse_certificate(&ca_der, "the CA's certificate")?;
    let time = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp())
            .map_err(|error| PkiError::read("the leaf's validity", error))
    };
    Ok(ObservedLeaf {
        spki_sha256: sha256_hex(leaf.public_key().raw),
        signed_by_ca: leaf.verify_signature(Some(ca.public_key())).is_ok(),
        names: names_of(&leaf),
        not_before: time(leaf.validity().not_before)?,
        not_after: time(leaf.validity().not_after)?,
    })
}
