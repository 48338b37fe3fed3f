//! Identities: the consensus key and the peer-to-peer key, both Ed25519, and their files.
//!
//! File formats: `privval/file.go`, `p2p/key.go`, `libs/json`. Addresses: `crypto/ed25519`.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hash::hex;

/// File name of the consensus key.
pub const CONSENSUS_KEY_FILE: &str = "priv_validator_key.json";
/// File name of the peer-to-peer key.
pub const NODE_KEY_FILE: &str = "node_key.json";

pub(super) const PUBLIC_KEY_TYPE: &str = "tendermint/PubKeyEd25519";
const PRIVATE_KEY_TYPE: &str = "tendermint/PrivKeyEd25519";

/// An Ed25519 private key. It has no `Debug` output, so that it never reaches a log.
pub struct PrivateKey(SigningKey);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// The public part of an Ed25519 key: 32 bytes, in base64 when written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(String);

impl PublicKey {
    /// Standard base64 of the 32 bytes.
    pub fn base64(&self) -> &str {
        &self.0
    }

    /// Reads standard base64 of exactly 32 bytes.
    pub fn from_base64(text: &str) -> Option<Self> {
        let key = Self(text.to_owned());
        key.bytes().is_some().then_some(key)
    }

    /// The 32 bytes; `None` where the value was read from a damaged record and is something else.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        BASE64.decode(&self.0).ok()?.try_into().ok()
    }

    /// The engine's address of this key: the first 20 bytes of its SHA-256.
    fn address_bytes(&self) -> [u8; 20] {
        // A value read from a damaged anchor hashes to an address no chain knows, which every
        // comparison then refuses.
        let bytes = BASE64.decode(&self.0).unwrap_or_default();
        let digest = Sha256::digest(&bytes);
        std::array::from_fn(|i| digest[i])
    }

    /// Address of a validator: 40 upper-case hexadecimal digits.
    pub fn validator_address(&self) -> String {
        hex(&self.address_bytes()).to_uppercase()
    }

    /// Id of a node in the peer-to-peer network: 40 lower-case hexadecimal digits.
    pub fn node_id(&self) -> String {
        hex(&self.address_bytes())
    }
}

/// Why a key file could not be used. Never holds any part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Not the JSON the engine writes.
    #[error("{file} is not a key file as the engine writes it: {reason}")]
    Malformed {
        /// The file's name.
        file: &'static str,
        /// What the parser said, without content.
        reason: &'static str,
    },
    /// The public part does not belong to the private one.
    #[error("{file}: the public part does not match the private key")]
    PublicPartDiffers {
        /// The file's name.
        file: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
struct Typed {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

#[derive(Serialize, Deserialize)]
struct ConsensusKeyFile {
    address: String,
    pub_key: Typed,
    priv_key: Typed,
}

#[derive(Serialize, Deserialize)]
struct NodeKeyFile {
    priv_key: Typed,
}

impl PrivateKey {
    /// Makes a key of 32 random bytes. The caller takes them from the operating system.
    pub fn from_random(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The public part, always derived from the private one.
    pub fn public(&self) -> PublicKey {
        PublicKey(BASE64.encode(self.0.verifying_key().as_bytes()))
    }

    fn typed(&self) -> Typed {
        // The engine writes seed and public key in one, 64 bytes.
        Typed { kind: PRIVATE_KEY_TYPE.to_owned(), value: BASE64.encode(self.0.to_keypair_bytes()) }
    }

    fn from_typed(typed: &Typed, file: &'static str) -> Result<Self, KeyFileError> {
        let malformed = |reason| KeyFileError::Malformed { file, reason };
        if typed.kind != PRIVATE_KEY_TYPE {
            return Err(malformed("the private key is not of type tendermint/PrivKeyEd25519"));
        }
        let bytes = BASE64
            .decode(&typed.value)
            .map_err(|_| malformed("the private key is not standard base64"))?;
        let bytes: [u8; 64] =
            bytes.try_into().map_err(|_| malformed("the private key is not 64 bytes"))?;
        SigningKey::from_keypair_bytes(&bytes)
            .map(Self)
            .map_err(|_| KeyFileError::PublicPartDiffers { file })
    }

    /// `priv_validator_key.json` of this key.
    pub fn consensus_key_file(&self) -> String {
        let public = self.public();
        to_json(&ConsensusKeyFile {
            address: public.validator_address(),
            pub_key: Typed { kind: PUBLIC_KEY_TYPE.to_owned(), value: public.0 },
            priv_key: self.typed(),
        })
    }

    /// `node_key.json` of this key.
    pub fn node_key_file(&self) -> String {
        to_json(&NodeKeyFile { priv_key: self.typed() })
    }

    /// Reads `priv_validator_key.json`; its address and public key must belong to the private key.
    pub fn parse_consensus_key_file(text: &str) -> Result<Self, KeyFileError> {
        let file = CONSENSUS_KEY_FILE;
        let parsed: ConsensusKeyFile = serde_json::from_str(text)
            .map_err(|_| KeyFileError::Malformed { file, reason: "wrong JSON" })?;
        let key = Self::from_typed(&parsed.priv_key, file)?;
        let public = key.public();
        if parsed.pub_key.value != public.0 || parsed.address != public.validator_address() {
            return Err(KeyFileError::PublicPartDiffers { file });
        }
        Ok(key)
    }

    /// Reads `node_key.json`.
    pub fn parse_node_key_file(text: &str) -> Result<Self, KeyFileError> {
        let file = NODE_KEY_FILE;
        let parsed: NodeKeyFile = serde_json::from_str(text)
            .map_err(|_| KeyFileError::Malformed { file, reason: "wrong JSON" })?;
        Self::from_typed(&parsed.priv_key, file)
    }
}

fn to_json(value: &impl Serialize) -> String {
    // Strings in plain structs: serialising them cannot fail.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> PrivateKey {
        PrivateKey::from_random([n; 32])
    }

    #[test]
    fn address_matches_what_a_real_node_wrote() {
        // Key and address of a genesis that CometBFT 0.38.25 accepted.
        let public = PublicKey("QqPgzUc660XxYH8PFHsEZRqwSmEbtnkJFa/YH57/D4w=".to_owned());
        assert_eq!(public.validator_address(), "E038AEC0832C644D561DE92F69DD7263B955AAB3");
        assert_eq!(public.node_id(), "e038aec0832c644d561de92f69dd7263b955aab3");
    }

    #[test]
    fn files_read_back_as_the_same_key() {
        let made = key(7);
        let read = PrivateKey::parse_consensus_key_file(&made.consensus_key_file()).unwrap();
        assert_eq!(read.public(), made.public());
        let read = PrivateKey::parse_node_key_file(&made.node_key_file()).unwrap();
        assert_eq!(read.public(), made.public());
    }

    #[test]
    fn refuses_a_file_whose_parts_do_not_belong_together() {
        let (one, other) = (key(1), key(2));
        let mixed =
            one.consensus_key_file().replace(one.public().base64(), other.public().base64());
        assert_eq!(
            PrivateKey::parse_consensus_key_file(&mixed).unwrap_err(),
            KeyFileError::PublicPartDiffers { file: CONSENSUS_KEY_FILE }
        );
        let mut pair = one.0.to_keypair_bytes();
        pair[32..].copy_from_slice(other.0.verifying_key().as_bytes());
        let node_key = to_json(&NodeKeyFile {
            priv_key: Typed { kind: PRIVATE_KEY_TYPE.to_owned(), value: BASE64.encode(pair) },
        });
        assert!(PrivateKey::parse_node_key_file(&node_key).is_err());
    }

    #[test]
    fn never_prints_a_key() {
        let made = key(9);
        assert_eq!(format!("{made:?}"), "PrivateKey(…)");
        let error = PrivateKey::parse_consensus_key_file(&made.node_key_file()).unwrap_err();
        let secret = BASE64.encode([9u8; 32]);
        assert!(!format!("{error:?} {error}").contains(secret.get(..8).unwrap()));
    }
}
