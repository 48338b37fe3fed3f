//! Transactions that change the validators, and what must be so before one is made.
//!
//! The built-in store checks only the form of such a transaction (`abci/example/kvstore/kvstore.go`,
//! `parseValidatorTx`); the engine checks the change itself only when the block that holds it is already
//! decided (`types/validator_set.go`, `updateWithChangeSet`), and then stops on every node. So whatever
//! [`check_change`] refuses here would freeze the chain.

use std::collections::{BTreeMap, BTreeSet};

use super::MAX_TOTAL_POWER;
use super::keys::PublicKey;
use crate::hash::hex;

/// Why a change of the validators must not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Guard {
    /// The engine takes Ed25519 keys of 32 bytes and nothing else (`crypto/ed25519`, `PubKeySize`).
    #[error(
        "the consensus key {0:?} is not standard base64 of 32 bytes, and a chain that is told of it freezes; \
         restore the record it was read from"
    )]
    Key(String),
    /// The engine fails on the removal of a validator it does not have.
    #[error(
        "{0} is not a validator: to remove it would freeze the chain, and nothing is left to do; \
         read the set again"
    )]
    NotAValidator(String),
    /// Nobody would be left to make a block.
    #[error("{0} is the last validator: without it the chain ends; let another node vote first")]
    LastVoter(String),
    /// The engine fails on a power beyond its bound.
    #[error(
        "voting power {0} is beyond {MAX_TOTAL_POWER}, the most the engine takes: it would freeze the chain; \
         use a smaller one"
    )]
    Power(u64),
    /// The engine fails when all powers together pass its bound.
    #[error(
        "with voting power {power} all validators together would have {total}, beyond {MAX_TOTAL_POWER}, \
         the most the engine takes: it would freeze the chain; use a smaller one"
    )]
    TotalPower {
        /// The power asked for.
        power: u64,
        /// The sum it would lead to.
        total: u128,
    },
    /// There is nothing to change.
    #[error("{address} has voting power {power} already; there is nothing to send")]
    Unchanged {
        /// The validator.
        address: String,
        /// Its power, now and asked for.
        power: u64,
    },
}

/// The built-in store's transaction that gives `key` this power; 0 removes it. [`check_change`] comes first.
///
/// `serial` counts the earlier transactions for the same key: it becomes leading zeros of the power, which
/// the store ignores. Without it, bytes that were sent before are refused as known ("tx already exists in
/// cache"), and after a node's restart, which forgets that, an old transaction could pass for the new one.
pub fn validator_transaction(key: &PublicKey, power: u64, serial: u32) -> Vec<u8> {
    // A power never begins with a zero of its own (but for 0 itself, which is the whole of it), so two
    // serials never give the same bytes.
    let zeros: String = (0..serial).map(|_| '0').collect();
    format!("val=ed25519!{}!{zeros}{power}", key.base64()).into_bytes()
}

/// Decides whether a change of the validators may be sent.
///
/// `set` is the newest set that is decided, verified, by validators' addresses; with a change under way that
/// is not the set in effect, and the caller waits instead. Six transactions were seen to freeze 0.38.25. Five
/// are refused here or cannot be expressed: the removal of a key that is not in the set, a key of another
/// length, a key of an unknown type, one of a type that consensus does not take (the type is always `ed25519`),
/// a power beyond the bound. The sixth, two transactions for one key in one block, is the caller's: one
/// change is under way at a time on a chain, and the next one begins when it is proved what became of the
/// last ([`super::settle`]). Evidence of a double vote changes a power as well, by the store itself; against
/// both in one block nothing can be done from outside.
pub fn check_change(set: &BTreeMap<String, u64>, key: &PublicKey, power: u64) -> Result<(), Guard> {
    if key.bytes().is_none() {
        return Err(Guard::Key(key.base64().to_owned()));
    }
    let address = key.validator_address();
    let present = set.get(&address).copied();
    if power == 0 {
        return match present {
            None => Err(Guard::NotAValidator(address)),
            Some(_) if set.len() == 1 => Err(Guard::LastVoter(address)),
            Some(_) => Ok(()),
        };
    }
    if power > MAX_TOTAL_POWER {
        return Err(Guard::Power(power));
    }
    if present == Some(power) {
        return Err(Guard::Unchanged { address, power });
    }
    let others = set.iter().filter(|(other, _)| **other != address);
    let total = others.map(|(_, power)| u128::from(*power)).sum::<u128>() + u128::from(power);
    if total > u128::from(MAX_TOTAL_POWER) {
        return Err(Guard::TotalPower { power, total });
    }
    Ok(())
}

/// Placeholders of a template for transactions, as they are written in it.
pub const PLACEHOLDERS: [&str; 5] =
    ["{pubKeyBase64}", "{pubKeyHex}", "{address}", "{power}", "{serial}"];

/// Why no transaction can be made from a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A word in braces that stands for nothing.
    #[error("the transaction's template has {0}, which is not known; known are {known}", known = PLACEHOLDERS.join(", "))]
    Unknown(String),
    /// Two transactions could have the same bytes.
    #[error(
        "put {{serial}} into the transaction's template: it makes each transaction's bytes different, \
         and a node refuses bytes that it has seen before"
    )]
    NoSerial,
    /// It says no power.
    #[error("put {{power}} into the transaction's template; it is 0 for a validator that is to go")]
    NoPower,
    /// It says not whose power.
    #[error(
        "put {{pubKeyBase64}}, {{pubKeyHex}} or {{address}} into the transaction's template: \
         it does not say which validator is meant"
    )]
    NoKey,
    /// Power 1 with serial 11 would be power 11 with serial 1.
    #[error(
        "in the transaction's template only digits are between {{serial}} and {{power}}, so that two \
         different pairs can give the same bytes; put another character between them"
    )]
    SerialTouchesPower,
    /// The key is damaged.
    #[error(
        "the consensus key {0:?} is not standard base64 of 32 bytes; restore the record it was read from"
    )]
    Key(String),
}

/// A piece of a template.
enum Piece<'a> {
    Text(&'a str),
    /// One of [`PLACEHOLDERS`].
    Placeholder(&'a str),
}

/// Cuts a template into its pieces. Only letters, digits, `_` and `-` in braces are a placeholder, so that
/// JSON can be written as it is.
fn pieces(template: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut pieces = Vec::new();
    let (mut text_from, mut search_from) = (0, 0);
    while let Some(open) = template[search_from..].find('{').map(|at| search_from + at) {
        search_from = open + 1;
        let word = template[search_from..]
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')
            .filter(|length| *length > 0 && template[search_from + length..].starts_with('}'));
        let Some(length) = word else { continue };
        let end = search_from + length + 1;
        let placeholder = &template[open..end];
        if !PLACEHOLDERS.contains(&placeholder) {
            return Err(TemplateError::Unknown(placeholder.to_owned()));
        }
        pieces.push(Piece::Text(&template[text_from..open]));
        pieces.push(Piece::Placeholder(placeholder));
        (text_from, search_from) = (end, end);
    }
    pieces.push(Piece::Text(&template[text_from..]));
    Ok(pieces)
}

fn check_pieces(pieces: &[Piece<'_>]) -> Result<(), TemplateError> {
    let mut found = BTreeSet::new();
    // The last of the two numbers, while nothing but digits came after it.
    let mut number: Option<&str> = None;
    for piece in pieces {
        match piece {
            Piece::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {}
            Piece::Placeholder(placeholder @ ("{serial}" | "{power}")) => {
                if number.is_some_and(|before| before != *placeholder) {
                    return Err(TemplateError::SerialTouchesPower);
                }
                number = Some(placeholder);
                found.insert(*placeholder);
            }
            Piece::Text(_) => number = None,
            // A key or an address always has a letter or a sign in it.
            Piece::Placeholder(placeholder) => {
                number = None;
                found.insert(placeholder);
            }
        }
    }
    if !found.remove("{serial}") {
        return Err(TemplateError::NoSerial);
    }
    if !found.remove("{power}") {
        return Err(TemplateError::NoPower);
    }
    if found.is_empty() { Err(TemplateError::NoKey) } else { Ok(()) }
}

/// Checks a template before there is anything to send.
pub fn check_template(template: &str) -> Result<(), TemplateError> {
    check_pieces(&pieces(template)?)
}

/// The transaction of a user's own application that gives `key` this power; 0 removes it.
///
/// The same rules hold as for the built-in store's: `serial` counts the earlier transactions for this key,
/// and [`check_change`] comes first, since the engine fails on the same changes, whichever application asks
/// for them.
pub fn fill_template(
    template: &str,
    key: &PublicKey,
    power: u64,
    serial: u32,
) -> Result<Vec<u8>, TemplateError> {
    let pieces = pieces(template)?;
    check_pieces(&pieces)?;
    let bytes = key.bytes().ok_or_else(|| TemplateError::Key(key.base64().to_owned()))?;
    let mut filled = String::with_capacity(template.len() + 128);
    for piece in pieces {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Placeholder("{pubKeyBase64}") => filled.push_str(key.base64()),
            Piece::Placeholder("{pubKeyHex}") => filled.push_str(&hex(&bytes)),
            Piece::Placeholder("{address}") => filled.push_str(&key.validator_address()),
            Piece::Placeholder("{power}") => filled.push_str(&power.to_string()),
            Piece::Placeholder(_) => filled.push_str(&serial.to_string()),
        }
    }
    Ok(filled.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::keys::PrivateKey;
    use super::*;

    fn key(n: u8) -> PublicKey {
        PrivateKey::from_random([n; 32]).public()
    }

    fn set(powers: &[(u8, u64)]) -> BTreeMap<String, u64> {
        powers.iter().map(|(n, power)| (key(*n).validator_address(), *power)).collect()
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_stores_transaction_has_the_serial_as_leading_zeros() {
        // Both were sent to a chain of 0.38.25, which included them and took their effect.
        assert_eq!(
            text(validator_transaction(&key(5), 20, 0)),
            "val=ed25519!bnoc3Smwt4/ROvTFWY/v9O8qlxZuPKby5Pv8zYBQW/E=!20"
        );
        assert_eq!(
            text(validator_transaction(&key(5), 0, 2)),
            "val=ed25519!bnoc3Smwt4/ROvTFWY/v9O8qlxZuPKby5Pv8zYBQW/E=!000"
        );
    }

    #[test]
    fn no_two_transactions_for_a_key_have_the_same_bytes() {
        let mut seen = BTreeSet::new();
        for power in [0, 1, 10, 100, 1000] {
            for serial in 0..5 {
                assert!(seen.insert(validator_transaction(&key(1), power, serial)));
            }
        }
    }

    #[test]
    fn ordinary_changes_pass() {
        let set = set(&[(1, 1000), (2, 10)]);
        assert_eq!(check_change(&set, &key(3), 10), Ok(()));
        assert_eq!(check_change(&set, &key(2), 1000), Ok(()));
        assert_eq!(check_change(&set, &key(1), 0), Ok(()));
        // What the validator has now does not count twice.
        assert_eq!(check_change(&set, &key(1), MAX_TOTAL_POWER - 10), Ok(()));
    }

    #[test]
    fn what_would_freeze_the_chain_is_refused() {
        let set = set(&[(1, 1000), (2, 10)]);
        let absent = key(3).validator_address();
        assert_eq!(check_change(&set, &key(3), 0), Err(Guard::NotAValidator(absent)));
        for damaged in
            ["", "bnoc3Smwt4/ROvTFWY/v9O8qlxZuPKby5Pv8zYBQWw==", "bnoc", "val=", "!1!", "AA==\n"]
        {
            let key: PublicKey = serde_json::from_value(serde_json::json!(damaged)).unwrap();
            assert_eq!(check_change(&set, &key, 10), Err(Guard::Key(damaged.to_owned())));
        }
        let beyond = MAX_TOTAL_POWER + 1;
        assert_eq!(check_change(&set, &key(3), beyond), Err(Guard::Power(beyond)));
        assert_eq!(check_change(&set, &key(3), u64::MAX), Err(Guard::Power(u64::MAX)));
        for (key, power) in [(key(3), MAX_TOTAL_POWER), (key(1), MAX_TOTAL_POWER - 9)] {
            assert!(matches!(check_change(&set, &key, power), Err(Guard::TotalPower { .. })));
        }
    }

    #[test]
    fn neither_the_last_validator_goes_nor_is_anything_sent_for_nothing() {
        let one = set(&[(1, 1000)]);
        let address = key(1).validator_address();
        assert_eq!(check_change(&one, &key(1), 0), Err(Guard::LastVoter(address.clone())));
        let unchanged = Guard::Unchanged { address, power: 1000 };
        assert_eq!(check_change(&one, &key(1), 1000), Err(unchanged));
        assert_eq!(check_change(&one, &key(1), 999), Ok(()));
    }

    #[test]
    fn a_template_is_filled_and_json_in_it_stays_as_it_is() {
        let template = r#"{"setValidator":{"key":"{pubKeyBase64}","hex":"{pubKeyHex}",
            "address":"{address}","power":{power}},"nonce":{serial},"ü":{}, "é": "{ power }"}"#;
        let filled = text(fill_template(template, &key(5), 20, 3).unwrap());
        assert_eq!(
            filled,
            r#"{"setValidator":{"key":"bnoc3Smwt4/ROvTFWY/v9O8qlxZuPKby5Pv8zYBQW/E=","hex":"6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1",
            "address":"7599776C3085E3F9DA0D13071EB0B4AB50FD2BF6","power":20},"nonce":3,"ü":{}, "é": "{ power }"}"#
        );
        let filled = fill_template("{{power}}/{serial}/{address}", &key(5), 1, 0).unwrap();
        assert_eq!(text(filled), "{1}/0/7599776C3085E3F9DA0D13071EB0B4AB50FD2BF6");
    }

    #[test]
    fn a_template_that_leaves_something_open_is_refused() {
        let error = |template: &str| check_template(template).unwrap_err();
        assert_eq!(error("{power} {address}"), TemplateError::NoSerial);
        assert_eq!(error("{serial} {address}"), TemplateError::NoPower);
        assert_eq!(error("{power} {serial}"), TemplateError::NoKey);
        let unknown = error("{power} {serial} {pub_key}");
        assert_eq!(unknown, TemplateError::Unknown("{pub_key}".to_owned()));
        for known in PLACEHOLDERS {
            assert!(unknown.to_string().contains(known), "{unknown}");
        }
        let damaged: PublicKey = serde_json::from_value(serde_json::json!("AA==")).unwrap();
        assert!(fill_template("{power} {serial} {address}", &damaged, 1, 1).is_err());
    }

    #[test]
    fn a_template_in_which_serial_and_power_run_into_each_other_is_refused() {
        for template in ["{address}{serial}{power}", "{address} {power}0{serial}"] {
            assert_eq!(check_template(template), Err(TemplateError::SerialTouchesPower));
        }
        assert_eq!(check_template("{address}1{serial}2,3{power}4"), Ok(()));
        assert_eq!(check_template("{serial}{pubKeyHex}{power}"), Ok(()));
    }
}
