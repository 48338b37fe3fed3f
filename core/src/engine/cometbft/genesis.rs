//! The genesis file: the first block's terms, the same bytes on every node (`types/genesis.go`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::keys::{PUBLIC_KEY_TYPE, PublicKey};
use super::status::number;
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
                pub_key: Key { kind: PUBLIC_KEY_TYPE, value: validator.key.base64() },
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

/// Largest genesis that fits a `ConfigMap` of ours, in bytes: the API server takes 1 MiB, keys and hash included.
pub const MAX_GENESIS: usize = (1 << 20) - (1 << 10);

/// Why the genesis of a chain that exists is not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// Not the bytes that were named.
    #[error(
        "it has SHA-256 {found}, and spec.genesis.from.sha256 is {expected}; take the file byte for byte as its owner \
         gives it (kubectl create configmap --from-file), or correct the hash"
    )]
    Hash {
        /// Of the bytes there are.
        found: String,
        /// As described.
        expected: String,
    },
    /// Not a genesis.
    #[error("it is no genesis of CometBFT 0.38: {0}; ask the chain's owners for the file")]
    Malformed(String),
    /// Another chain's.
    #[error(
        "it is the genesis of chain {found:?}, and spec.chainId is {expected:?}; correct one of them"
    )]
    AnotherChain {
        /// In the genesis.
        found: String,
        /// As described.
        expected: String,
    },
    /// Too large.
    #[error(
        "it has {0} bytes; at most {MAX_GENESIS} fit a ConfigMap, so this chain cannot be joined by bsn-operator"
    )]
    TooLarge(usize),
    /// Every node would put its own clock's time there.
    #[error(
        "its genesis_time is missing or zero, so each node would begin another chain; ask the chain's owners for the file"
    )]
    NoTime,
    /// A key that is not read here.
    #[error("validator {0:?} has a key of type {1:?}; only Ed25519 keys are supported")]
    KeyType(String, String),
}

/// What is read of a genesis that others made; the engine reads the rest.
#[derive(Deserialize)]
struct Theirs {
    #[serde(default)]
    genesis_time: String,
    chain_id: String,
    #[serde(default)]
    validators: Option<Vec<TheirValidator>>,
}

#[derive(Deserialize)]
struct TheirValidator {
    #[serde(default)]
    address: String,
    pub_key: TheirKey,
    #[serde(deserialize_with = "number")]
    power: u64,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct TheirKey {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

/// Checks the genesis of a chain that exists, as the engine does when it starts (`GenesisDoc.ValidateAndComplete`), so
/// that what it would end over is a refusal here. A genesis without validators is one whose application names them.
pub fn take_genesis(text: &str, sha256: &str, chain_id: &str) -> Result<Genesis, TakeError> {
    let hash = sha256_hex(text.as_bytes());
    if hash != sha256 {
        return Err(TakeError::Hash { found: hash, expected: sha256.to_owned() });
    }
    if text.len() > MAX_GENESIS {
        return Err(TakeError::TooLarge(text.len()));
    }
    let theirs: Theirs =
        serde_json::from_str(text).map_err(|error| TakeError::Malformed(error.to_string()))?;
    if theirs.chain_id != chain_id {
        let (found, expected) = (theirs.chain_id, chain_id.to_owned());
        return Err(TakeError::AnotherChain { found, expected });
    }
    // Go's zero time is the first moment of year 1.
    let first: Option<Timestamp> = theirs.genesis_time.parse().ok();
    if first.is_none_or(|time| time.as_second() <= GO_ZERO_SECOND) {
        return Err(TakeError::NoTime);
    }
    let mut total: u64 = 0;
    for validator in theirs.validators.into_iter().flatten() {
        let TheirValidator { address, pub_key, power, name } = validator;
        let who = if name.is_empty() { &address } else { &name };
        if pub_key.kind != PUBLIC_KEY_TYPE {
            return Err(TakeError::KeyType(who.clone(), pub_key.kind));
        }
        let malformed = |what: &str| TakeError::Malformed(format!("validator {who:?} {what}"));
        let key = PublicKey::from_base64(&pub_key.value)
            .ok_or_else(|| malformed("has no key of 32 bytes"))?;
        // The engine reads both cases.
        if !address.is_empty() && !address.eq_ignore_ascii_case(&key.validator_address()) {
            return Err(malformed("has an address that is not that of its key"));
        }
        if power == 0 {
            return Err(malformed("has voting power 0"));
        }
        total = total.saturating_add(power);
    }
    if total > MAX_TOTAL_POWER {
        return Err(TakeError::Malformed(format!("its powers add up to {total}")));
    }
    Ok(Genesis { text: text.to_owned(), hash })
}

/// Seconds from 1970 to Go's zero time, `0001-01-01T00:00:00Z`.
const GO_ZERO_SECOND: i64 = -62_135_596_800;

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

    /// A genesis of two validators after an edit, checked against its own hash.
    fn take(edit: impl Fn(&str) -> String) -> Result<Genesis, TakeError> {
        let genesis = build_genesis("c", TIME, &[validator(1, 1000), validator(2, 10)]).unwrap();
        let text = edit(&genesis.text);
        take_genesis(&text, &sha256_hex(text.as_bytes()), "c")
    }

    #[test]
    fn what_one_operator_makes_another_takes_byte_for_byte() {
        let taken = take(str::to_owned).unwrap();
        let made = build_genesis("c", TIME, &[validator(1, 1000), validator(2, 10)]).unwrap();
        assert_eq!(taken, made);
        // What the engine reads and this does not is left to it, and so is the form.
        let more = r#"{"genesis_time":"2024-05-01T10:00:00.5Z","chain_id":"c","app_state":{"a":[1]},"validators":null}"#;
        assert!(take(|_| more.to_owned()).is_ok());
        let address = validator(1, 1000).key.validator_address();
        assert!(take(|text| text.replace(&address, &address.to_lowercase())).is_ok());
    }

    #[test]
    fn a_genesis_that_the_engine_would_end_over_is_refused_with_an_instruction() {
        let genesis = build_genesis("c", TIME, &[validator(1, 5)]).unwrap();
        let error = take_genesis(&genesis.text, "00", "c").unwrap_err();
        assert!(error.to_string().contains("byte for byte"), "{error}");
        let error = take_genesis(&genesis.text, &genesis.hash, "d").unwrap_err();
        assert!(matches!(error, TakeError::AnotherChain { .. }), "{error}");
        for (from, to, expected) in [
            ("{", "[", "no genesis of CometBFT"),
            (TIME, "0001-01-01T00:00:00Z", "genesis_time is missing or zero"),
            ("\"genesis_time\"", "\"time\"", "genesis_time is missing or zero"),
            ("PubKeyEd25519", "PubKeySecp256k1", "only Ed25519 keys"),
            ("\"power\": \"10\"", "\"power\": 10", "expected a string"),
            ("\"power\": \"10\"", "\"power\": \"0\"", "voting power 0"),
            ("\"power\": \"10\"", "\"power\": \"9000000000000000000\"", "add up to"),
            ("\"address\": \"", "\"address\": \"00", "not that of its key"),
        ] {
            let error = take(|text| text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = take(|text| format!("{text}{}", " ".repeat(MAX_GENESIS))).unwrap_err();
        assert!(matches!(error, TakeError::TooLarge(_)), "{error}");
    }
}
