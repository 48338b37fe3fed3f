//! The genesis file: the first block's terms, the same bytes on every node (`types/genesis.go`).

use serde::Serialize;

use super::keys::PublicKey;
use super::{MAX_CHAIN_ID, MAX_TOTAL_POWER};
use crate::hash::sha256_hex;

/// File name of the genesis.
pub const GENESIS_FILE: &str = "genesis.json";

/// A founding validator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenesisValidator {
    /// Its node's name; the chain shows it but does not use it.
    pub name: String,
    /// Consensus key.
    pub key: PublicKey,
    /// Voting power, at least 1.
    pub power: u64,
}

/// Why no genesis can be made of the input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// The chain would have nobody to make a block.
    #[error("a chain needs at least one validator; add a node set with role Validator")]
    NoValidators,
    /// The engine refuses it.
    #[error("chainId {id:?} has {len} characters; use 1 to {MAX_CHAIN_ID}")]
    ChainIdLength {
        /// The id given.
        id: String,
        /// Its length.
        len: usize,
    },
    /// The engine refuses a zero power.
    #[error("validator {0} has voting power 0; use at least 1")]
    ZeroPower(String),
    /// The engine refuses a larger sum.
    #[error("the voting powers add up to more than {MAX_TOTAL_POWER}; use smaller ones")]
    TotalPower,
    /// Two validators with one key would be one validator.
    #[error("validators {0} and {1} have the same consensus key")]
    SharedKey(String, String),
}

/// The bytes of a genesis and their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genesis {
    /// The file's text.
    pub text: String,
    /// Lower-case hexadecimal SHA-256 of the text, as `--genesis_hash` takes it.
    pub hash: String,
}

#[derive(Serialize)]
struct Document<'a> {
    genesis_time: &'a str,
    chain_id: &'a str,
    initial_height: &'static str,
    consensus_params: ConsensusParams,
    validators: Vec<Validator<'a>>,
    app_hash: &'static str,
}

#[derive(Serialize)]
struct ConsensusParams {
    block: Block,
    evidence: Evidence,
    validator: ValidatorParams,
    version: Version,
    abci: Abci,
}

#[derive(Serialize)]
struct Block {
    max_bytes: &'static str,
    max_gas: &'static str,
}

#[derive(Serialize)]
struct Evidence {
    max_age_num_blocks: &'static str,
    max_age_duration: &'static str,
    max_bytes: &'static str,
}

#[derive(Serialize)]
struct ValidatorParams {
    pub_key_types: [&'static str; 1],
}

#[derive(Serialize)]
struct Version {
    app: &'static str,
}

#[derive(Serialize)]
struct Abci {
    vote_extensions_enable_height: &'static str,
}

#[derive(Serialize)]
struct Validator<'a> {
    address: String,
    pub_key: Key<'a>,
    power: String,
    name: &'a str,
}

#[derive(Serialize)]
struct Key<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    value: &'a str,
}

/// Builds the genesis of a new chain. The same input always gives the same bytes.
///
/// `genesis_time` is RFC 3339 in UTC and must be given: the engine replaces a zero time by each
/// node's own clock, and the nodes would then disagree.
pub fn build_genesis(
    chain_id: &str,
    genesis_time: &str,
    validators: &[GenesisValidator],
) -> Result<Genesis, GenesisError> {
    let len = chain_id.chars().count();
    if len == 0 || len > MAX_CHAIN_ID {
        return Err(GenesisError::ChainIdLength { id: chain_id.to_owned(), len });
    }
    if validators.is_empty() {
        return Err(GenesisError::NoValidators);
    }
    let mut total: u64 = 0;
    for (i, validator) in validators.iter().enumerate() {
        if validator.power == 0 {
            return Err(GenesisError::ZeroPower(validator.name.clone()));
        }
        total = total.saturating_add(validator.power);
        if let Some(twin) = validators[..i].iter().find(|other| other.key == validator.key) {
            return Err(GenesisError::SharedKey(twin.name.clone(), validator.name.clone()));
        }
    }
    if total > MAX_TOTAL_POWER {
        return Err(GenesisError::TotalPower);
    }
    let document = Document {
        genesis_time,
        chain_id,
        initial_height: "1",
        // The engine's own defaults (`types/params.go`), written out so that a later release with
        // other defaults cannot make two nodes start from different parameters.
        consensus_params: ConsensusParams {
            block: Block { max_bytes: "22020096", max_gas: "-1" },
            evidence: Evidence {
                max_age_num_blocks: "100000",
                max_age_duration: "172800000000000",
                max_bytes: "1048576",
            },
            validator: ValidatorParams { pub_key_types: ["ed25519"] },
            version: Version { app: "0" },
            abci: Abci { vote_extensions_enable_height: "0" },
        },
        validators: validators
            .iter()
            .map(|validator| Validator {
                address: validator.key.validator_address(),
                pub_key: Key { kind: "tendermint/PubKeyEd25519", value: validator.key.base64() },
                power: validator.power.to_string(),
                name: &validator.name,
            })
            .collect(),
        app_hash: "",
    };
    // Strings in plain structs: serialising them cannot fail.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    let hash = sha256_hex(text.as_bytes());
    Ok(Genesis { text, hash })
}

#[cfg(test)]
mod tests {
    use super::super::keys::PrivateKey;
    use super::*;

    fn validator(n: u8, power: u64) -> GenesisValidator {
        GenesisValidator {
            name: format!("net-v-{n}"),
            key: PrivateKey::from_random([n; 32]).public(),
            power,
        }
    }

    const TIME: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn genesis_of_two_validators() {
        let genesis =
            build_genesis("city-ledger-1", TIME, &[validator(1, 1000), validator(2, 10)]).unwrap();
        insta::assert_snapshot!(genesis.text);
        assert_eq!(genesis.hash, sha256_hex(genesis.text.as_bytes()));
    }

    #[test]
    fn refuses_what_would_stop_the_chain() {
        let build = |id: &str, v: &[GenesisValidator]| build_genesis(id, TIME, v).unwrap_err();
        assert_eq!(build("c", &[]), GenesisError::NoValidators);
        assert!(matches!(build("", &[validator(1, 1)]), GenesisError::ChainIdLength { .. }));
        let long = "c".repeat(51);
        assert!(matches!(build(&long, &[validator(1, 1)]), GenesisError::ChainIdLength { .. }));
        assert!(matches!(build("c", &[validator(1, 0)]), GenesisError::ZeroPower(_)));
        assert_eq!(
            build("c", &[validator(1, MAX_TOTAL_POWER), validator(2, 1)]),
            GenesisError::TotalPower
        );
        let twin = GenesisValidator { name: "twin".into(), ..validator(1, 5) };
        assert!(matches!(build("c", &[validator(1, 5), twin]), GenesisError::SharedKey(..)));
    }
}
