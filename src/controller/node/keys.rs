//! A node's private keys: made once, read back for ever after, never made a second time.

use bsn_core::anchor::IdentityKeys;
use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, NODE_KEY_FILE, PrivateKey};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use crate::agent::paths::TLS_KEY_FILE;
use crate::api::conditions::Reason;
use crate::build::NodeParts;
use crate::build::secret::{build_keys_secret, entry};
use crate::controller::{Error, Refusal};
use crate::labels::KEYS_FROM;
use crate::pki::{new_key, random_bytes, spki_sha256_of_key};

/// What a keys Secret holds: the public parts, derived from the private ones, and the TLS key, which
/// is needed to issue its certificate.
pub struct ReadKeys {
    /// Public parts.
    pub public: IdentityKeys,
    /// TLS private key (PEM); `None` = the Secret was read a moment ago, by another pass.
    pub tls_key_pem: Option<String>,
    /// The owner's Secret that they were copied from, if they were not made.
    pub from: Option<String>,
}

/// Makes new keys, where none are brought, and the Secret that will hold them. Nothing is stored yet.
pub fn build_new_keys(
    node: &NodeParts<'_>,
    brought: Option<&BroughtKeys>,
) -> Result<Secret, Error> {
    let (made, p2p_made);
    let consensus = match brought {
        Some(brought) => &brought.consensus,
        None => {
            made = PrivateKey::from_random(random_bytes()?);
            &made
        }
    };
    let p2p = match brought.and_then(|brought| brought.p2p.as_ref()) {
        Some(p2p) => p2p,
        None => {
            p2p_made = PrivateKey::from_random(random_bytes()?);
            &p2p_made
        }
    };
    let tls_key = new_key()?;
    let from = brought.map(|brought| brought.secret.as_str());
    Ok(build_keys_secret(node, consensus, p2p, &tls_key, from))
}

/// Keys that an owner brings.
pub struct BroughtKeys {
    /// The owner's Secret.
    pub secret: String,
    /// The consensus key.
    pub consensus: PrivateKey,
    /// The peer-to-peer key; `None` = one is made.
    pub p2p: Option<PrivateKey>,
}

/// Reads a Secret that an owner brings. Messages hold nothing of its content.
pub fn parse_brought(secret: &Secret, place: &str) -> Result<BroughtKeys, Refusal> {
    let bad = |what: String| {
        let message = format!(
            "the Secret {place}, named in keys, cannot be used: {what}. Correct it; nothing was made of it"
        );
        Refusal::new(Reason::KeysRefused, message)
    };
    let has = |file: &str| secret.data.as_ref().is_some_and(|data| data.contains_key(file));
    if !has(CONSENSUS_KEY_FILE) {
        return Err(bad(format!("it has no entry {CONSENSUS_KEY_FILE}")));
    }
    let text = |file: &'static str| {
        entry(secret, file).ok_or_else(|| bad(format!("its entry {file} is not text")))
    };
    let consensus = PrivateKey::parse_consensus_key_file(text(CONSENSUS_KEY_FILE)?)
        .map_err(|error| bad(error.to_string()))?;
    let p2p = has(NODE_KEY_FILE)
        .then(|| {
            PrivateKey::parse_node_key_file(text(NODE_KEY_FILE)?)
                .map_err(|error| bad(error.to_string()))
        })
        .transpose()?;
    Ok(BroughtKeys { secret: secret.name_any(), consensus, p2p })
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
    let from = secret.annotations().get(KEYS_FROM).cloned();
    Ok(ReadKeys { public, tls_key_pem: Some(tls_key_pem.to_owned()), from })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;
    use crate::build::samples::with_node;

    fn key(n: u8) -> PrivateKey {
        PrivateKey::from_random([n; 32])
    }

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.name = Some("mine".to_owned());
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = entries.iter().map(|(name, text)| ((*name).to_owned(), bytes(text)));
        secret.data = Some(data.collect());
        secret
    }

    #[test]
    fn brought_keys_become_the_nodes_own_and_what_is_not_brought_is_made() {
        let (consensus, p2p) = (key(1), key(2));
        let both = secret(&[
            (CONSENSUS_KEY_FILE, &consensus.consensus_key_file()),
            (NODE_KEY_FILE, &p2p.node_key_file()),
        ]);
        let brought = parse_brought(&both, "ledger/mine").unwrap();
        let made = with_node(None, |node| build_new_keys(node, Some(&brought))).unwrap();
        assert_eq!(made.immutable, Some(true));
        let read = parse_keys(&made, "own").unwrap();
        assert_eq!(read.public.consensus, consensus.public());
        assert_eq!(read.public.p2p, p2p.public());
        assert_eq!(read.from.as_deref(), Some("mine"));
        let one = secret(&[(CONSENSUS_KEY_FILE, &consensus.consensus_key_file())]);
        let brought = parse_brought(&one, "ledger/mine").unwrap();
        let made = with_node(None, |node| build_new_keys(node, Some(&brought))).unwrap();
        let read = parse_keys(&made, "own").unwrap();
        assert_eq!(read.public.consensus, consensus.public());
        assert_ne!(read.public.p2p, p2p.public());
        let none = with_node(None, |node| build_new_keys(node, None)).unwrap();
        assert_eq!(parse_keys(&none, "own").unwrap().from, None);
    }

    #[test]
    fn a_secret_that_holds_something_else_is_refused_without_a_word_of_its_content() {
        let (one, other) = (key(1), key(2));
        let mixed =
            one.consensus_key_file().replace(one.public().base64(), other.public().base64());
        let other_type = one.consensus_key_file().replace("PrivKeyEd25519", "PrivKeySecp256k1");
        for (entries, instruction) in [
            (vec![], "it has no entry priv_validator_key.json"),
            (vec![(CONSENSUS_KEY_FILE, "{}")], "is not a key file"),
            (vec![(CONSENSUS_KEY_FILE, mixed.as_str())], "does not match the private key"),
            (vec![(CONSENSUS_KEY_FILE, other_type.as_str())], "not of type"),
            (
                vec![
                    (CONSENSUS_KEY_FILE, one.consensus_key_file().as_str()),
                    (NODE_KEY_FILE, "hunter2"),
                ],
                "node_key.json is not a key file",
            ),
        ] {
            let refusal = parse_brought(&secret(&entries), "ledger/mine").err().unwrap();
            assert_eq!(refusal.reason, Reason::KeysRefused);
            assert!(refusal.message.contains(instruction), "{}", refusal.message);
            assert!(!refusal.message.contains("hunter2"), "{}", refusal.message);
        }
    }
}
