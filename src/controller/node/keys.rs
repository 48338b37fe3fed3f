//! A node's private keys: made once, read back for ever after, never made a second time.

use bsn_core::anchor::IdentityKeys;
use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, NODE_KEY_FILE, PrivateKey};
use k8s_openapi::api::core::v1::Secret;

use crate::agent::paths::TLS_KEY_FILE;
use crate::api::conditions::Reason;
use crate::build::NodeParts;
use crate::build::secret::{build_keys_secret, entry};
use crate::controller::{Error, Refusal};
use crate::pki::{new_key, random_bytes, spki_sha256_of_key};

/// What a keys Secret holds: the public parts, derived from the private ones, and the TLS key, which
/// is needed to issue its certificate.
pub struct ReadKeys {
    /// Public parts.
    pub public: IdentityKeys,
    /// TLS private key (PEM); `None` = the Secret was read a moment ago, by another pass.
    pub tls_key_pem: Option<String>,
}

/// Makes new keys and the Secret that will hold them. Nothing is stored yet.
pub fn build_new_keys(node: &NodeParts<'_>) -> Result<Secret, Error> {
    let consensus = PrivateKey::from_random(random_bytes()?);
    let p2p = PrivateKey::from_random(random_bytes()?);
    let tls_key = new_key()?;
    Ok(build_keys_secret(node, &consensus, &p2p, &tls_key))
}

/// Reads a keys Secret. Its content is checked: a Secret that was edited is a refusal.
pub fn parse_keys(secret: &Secret, name: &str) -> Result<ReadKeys, Refusal> {
    let bad = |what: String| {
        let message = format!("Secret {name}: {what}; restore it from a backup");
        Refusal::new(Reason::KeyLost, message)
    };
    let text = |file: &str| entry(secret, file).ok_or_else(|| bad(format!("{file} is missing")));
    let consensus = PrivateKey::parse_consensus_key_file(text(CONSENSUS_KEY_FILE)?)
        .map_err(|error| bad(error.to_string()))?;
    let p2p = PrivateKey::parse_node_key_file(text(NODE_KEY_FILE)?)
        .map_err(|error| bad(error.to_string()))?;
    let tls_key_pem = text(TLS_KEY_FILE)?;
    let tls_spki_sha256 =
        spki_sha256_of_key(tls_key_pem).map_err(|error| bad(error.to_string()))?;
    let public = IdentityKeys { consensus: consensus.public(), p2p: p2p.public(), tls_spki_sha256 };
    Ok(ReadKeys { public, tls_key_pem: Some(tls_key_pem.to_owned()) })
}
