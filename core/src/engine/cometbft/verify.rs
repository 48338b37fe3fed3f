//! Proof of a set of validators: a header that names it, under the signatures of a quorum of it.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::block::{Commit, Header, Vote, validators_hash};
use super::keys::{PUBLIC_KEY_TYPE, PublicKey};
use super::status::number;
use super::{MAX_TOTAL_POWER, QUORUM};

/// A set of validators and the block it is in effect at, both proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Height of the block.
    pub height: u64,
    /// The block's time, on the validators' clocks.
    pub time: Timestamp,
    /// Powers by address, in upper-case hexadecimal.
    pub validators: BTreeMap<String, u64>,
    /// The next block has another set: a change is decided and not in effect.
    pub next_validators_hash_differs: bool,
}

/// Why nothing is proved.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Not the answer of a node.
    #[error("the engine's answer to {method} is not as expected: {source}")]
    Malformed {
        /// The method.
        method: &'static str,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A block of another chain.
    #[error("the header is of chain {found:?}, not of {expected:?}")]
    Chain {
        /// The chain asked for.
        expected: String,
        /// What the header says.
        found: String,
    },
    /// Parts of different blocks.
    #[error("the {part} is of height {found}, the header of {header}")]
    Height {
        /// Which part: the commit or the list of validators.
        part: &'static str,
        /// The header's height.
        header: u64,
        /// The part's.
        found: u64,
    },
    /// The list of validators is not whole.
    #[error("{listed} of {total} validators are listed: a page is missing or came twice")]
    Pages {
        /// How many are listed.
        listed: usize,
        /// How many there are.
        total: u64,
    },
    /// A key that cannot be verified with.
    #[error(
        "validator {address} has a key of type {kind}, not one of {PUBLIC_KEY_TYPE} with 32 bytes"
    )]
    Key {
        /// Its address.
        address: String,
        /// The type of its key.
        kind: String,
    },
    /// The address is not the key's.
    #[error("the validator listed as {listed} has the key of {derived}")]
    Address {
        /// What the list says.
        listed: String,
        /// What the key says.
        derived: String,
    },
    /// Powers that no chain has.
    #[error("the listed powers are not from 1 to {MAX_TOTAL_POWER} in sum")]
    Powers,
    /// The commit is of another header.
    #[error("the header does not have the hash that the commit of height {0} names")]
    HeaderHash(u64),
    /// The header is of another set.
    #[error(
        "the listed validators and powers do not have the hash that the header of height {0} names"
    )]
    ValidatorsHash(u64),
    /// Entries of the commit and validators do not match.
    #[error("the commit has {signatures} entries for {validators} validators")]
    Entries {
        /// Entries of the commit.
        signatures: usize,
        /// Validators listed.
        validators: usize,
    },
    /// An entry of another validator, or one of an unknown kind.
    #[error("the commit's entry for validator {0} is not one the engine makes")]
    Entry(String),
    /// A signature is wrong.
    #[error("the signature of validator {0} is wrong")]
    Signature(String),
    /// Too few signed.
    #[error(
        "validators with {signed} of {total} voting power signed the block; more than two thirds must"
    )]
    Quorum {
        /// Power that signed.
        signed: u64,
        /// Power of all.
        total: u64,
    },
}

#[derive(Deserialize)]
struct CommitAnswer {
    signed_header: SignedHeader,
}

#[derive(Deserialize)]
struct SignedHeader {
    header: Header,
    commit: Commit,
}

#[derive(Deserialize)]
struct Page {
    #[serde(deserialize_with = "number")]
    block_height: u64,
    validators: Vec<Listed>,
    #[serde(deserialize_with = "number")]
    total: u64,
}

#[derive(Deserialize)]
struct Listed {
    address: String,
    pub_key: Key,
    #[serde(deserialize_with = "number")]
    voting_power: u64,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

/// A validator whose address was checked.
struct Validator {
    address: String,
    key: [u8; 32],
    power: u64,
}

/// Proves the set of validators at one height.
///
/// `commit` is the result of `commit?height=h`; whether it is canonical does not matter, since the signatures
/// are counted here. `validators` are the results of `validators?height=h`, all pages in their order, which is
/// the order of the commit's entries.
///
/// What is proved: that a quorum of *this* set signed a block that names it. A liar who has no key of
/// the chain can make up both, so the caller compares the answers of several nodes, or begins with a set it
/// knows.
///
/// Every signature is checked, also those for no block and those beyond the quorum, as full nodes do
/// (`types/validation.go`, `VerifyCommit`). The engine follows the rules of ZIP-215 (`crypto/ed25519`);
/// those of RFC 8032 used here accept whatever a signer makes by the book, and never more.
pub fn verify(
    chain_id: &str,
    commit: &Value,
    validators: &[Value],
) -> Result<Verified, VerifyError> {
    let malformed = |method| move |source| VerifyError::Malformed { method, source };
    let CommitAnswer { signed_header: SignedHeader { header, commit } } =
        CommitAnswer::deserialize(commit).map_err(malformed("commit"))?;
    let pages: Vec<_> = validators
        .iter()
        .map(|page| Page::deserialize(page).map_err(malformed("validators")))
        .collect::<Result<_, _>>()?;

    if header.chain_id != chain_id {
        return Err(VerifyError::Chain { expected: chain_id.to_owned(), found: header.chain_id });
    }
    let height = header.height;
    let heights = pages.iter().map(|page| ("list of validators", page.block_height));
    for (part, found) in heights.chain([("commit", commit.height)]) {
        if found != height {
            return Err(VerifyError::Height { part, header: height, found });
        }
    }
    let set = validate_set(pages)?;
    if commit.block_id.hash.as_ref() != header.hash() {
        return Err(VerifyError::HeaderHash(height));
    }
    let hash = validators_hash(set.iter().map(|validator| (&validator.key, validator.power)));
    if header.validators_hash.as_ref() != hash {
        return Err(VerifyError::ValidatorsHash(height));
    }
    validate_signatures(chain_id, &commit, &set)?;
    Ok(Verified {
        height,
        time: header.time,
        validators: set.into_iter().map(|one| (one.address, one.power)).collect(),
        next_validators_hash_differs: header.next_validators_hash != header.validators_hash,
    })
}

/// Puts the pages together; every address is the one of its key.
fn validate_set(pages: Vec<Page>) -> Result<Vec<Validator>, VerifyError> {
    let total = pages.iter().map(|page| page.total).max().unwrap_or_default();
    let mut set: Vec<Validator> = Vec::new();
    let mut sum: u64 = 0;
    for Listed { address, pub_key: Key { kind, value }, voting_power: power } in
        pages.into_iter().flat_map(|page| page.validators)
    {
        let public = PublicKey::from_base64(&value).filter(|_| kind == PUBLIC_KEY_TYPE);
        let Some((public, key)) = public.and_then(|key| key.bytes().map(|bytes| (key, bytes)))
        else {
            return Err(VerifyError::Key { address, kind });
        };
        // The header's hash covers the key and not the address beside it.
        let derived = public.validator_address();
        if derived != address {
            return Err(VerifyError::Address { listed: address, derived });
        }
        sum = sum.saturating_add(power);
        if power == 0 || sum > MAX_TOTAL_POWER {
            return Err(VerifyError::Powers);
        }
        set.push(Validator { address, key, power });
    }
    let distinct: std::collections::BTreeSet<_> = set.iter().map(|one| &one.address).collect();
    if set.is_empty() || distinct.len() != set.len() || u64::try_from(set.len()) != Ok(total) {
        return Err(VerifyError::Pages { listed: set.len(), total });
    }
    Ok(set)
}

/// Checks every signature, and that those for the block are a quorum.
fn validate_signatures(
    chain_id: &str,
    commit: &Commit,
    set: &[Validator],
) -> Result<(), VerifyError> {
    if commit.signatures.len() != set.len() {
        let signatures = commit.signatures.len();
        return Err(VerifyError::Entries { signatures, validators: set.len() });
    }
    let (mut signed, mut total) = (0, 0);
    for (validator, entry) in set.iter().zip(&commit.signatures) {
        let address = || validator.address.clone();
        total += validator.power;
        let vote = entry.vote().ok_or_else(|| VerifyError::Entry(address()))?;
        if vote == Vote::Absent {
            continue;
        }
        if entry.validator_address != validator.address {
            return Err(VerifyError::Entry(address()));
        }
        let bytes = commit.signed_bytes(chain_id, entry);
        verify_signature(&validator.key, &bytes, entry.signature.as_deref())
            .ok_or_else(|| VerifyError::Signature(address()))?;
        if vote == Vote::Block {
            signed += validator.power;
        }
    }
    if signed < QUORUM.needed(total) {
        return Err(VerifyError::Quorum { signed, total });
    }
    Ok(())
}

fn verify_signature(key: &[u8; 32], bytes: &[u8], signature: Option<&str>) -> Option<()> {
    let signature = BASE64.decode(signature?).ok()?;
    let signature = Signature::from_slice(&signature).ok()?;
    VerifyingKey::from_bytes(key).ok()?.verify(bytes, &signature).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer, SigningKey};
    use serde_json::json;

    const CHAIN: &str = "city-ledger-1";

    macro_rules! answer {
        ($name:literal) => {
            serde_json::from_str::<Value>(include_str!(concat!("testdata/", $name, ".json")))
                .unwrap()
        };
    }

    /// Key of the chain's node `n`, see `testdata/README.md`.
    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn address(n: u8) -> String {
        let public = BASE64.encode(key(n).verifying_key().as_bytes());
        PublicKey::from_base64(&public).unwrap().validator_address()
    }

    /// Commit and list of height 8, where node 5 with power 20 joined four of 10 each.
    fn at_8() -> (Value, [Value; 2]) {
        (answer!("commit-8"), [answer!("validators-8-page-1"), answer!("validators-8-page-2")])
    }

    /// What becomes of height 8 when its commit was changed.
    fn with_commit(change: impl FnOnce(&mut Value)) -> Result<Verified, VerifyError> {
        let (mut commit, pages) = at_8();
        change(&mut commit);
        verify(CHAIN, &commit, &pages)
    }

    /// What becomes of height 8 when its list was changed.
    fn with_pages(change: impl FnOnce(&mut Vec<Value>)) -> Result<Verified, VerifyError> {
        let (commit, pages) = at_8();
        let mut pages = pages.to_vec();
        change(&mut pages);
        verify(CHAIN, &commit, &pages)
    }

    fn entries(commit: &mut Value) -> &mut Vec<Value> {
        commit["signed_header"]["commit"]["signatures"].as_array_mut().unwrap()
    }

    fn entry(commit: &mut Value, n: u8) -> &mut Value {
        let address = address(n);
        entries(commit).iter_mut().find(|one| one["validator_address"] == address).unwrap()
    }

    fn without_vote() -> Value {
        json!({"block_id_flag": 1, "validator_address": "", "signature": null,
               "timestamp": "0001-01-01T00:00:00Z"})
    }

    #[test]
    fn the_sets_of_a_real_chain_are_proved() {
        let founders: BTreeMap<_, _> = (1..=4).map(|n| (address(n), 10)).collect();
        let mut joined = founders.clone();
        joined.insert(address(5), 20);

        let first = verify(CHAIN, &answer!("commit-1"), &[answer!("validators-1")]).unwrap();
        assert_eq!((first.height, &first.validators), (1, &founders));
        let decided = verify(CHAIN, &answer!("commit-7"), &[answer!("validators-7")]).unwrap();
        assert_eq!((decided.height, &decided.validators), (7, &founders));
        assert!(decided.next_validators_hash_differs && !first.next_validators_hash_differs);
        let (commit, pages) = at_8();
        let in_effect = verify(CHAIN, &commit, &pages).unwrap();
        assert_eq!((in_effect.height, &in_effect.validators), (8, &joined));
        assert!(!in_effect.next_validators_hash_differs);
        assert_eq!(in_effect.time.to_string(), answer_time(&commit));
        let one_stopped =
            verify(CHAIN, &answer!("commit-14"), &[answer!("validators-14")]).unwrap();
        assert_eq!((one_stopped.height, &one_stopped.validators), (14, &joined));
    }

    fn answer_time(commit: &Value) -> String {
        commit["signed_header"]["header"]["time"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_changed_power_or_key_is_refused() {
        let refused = with_pages(|pages| pages[0]["validators"][0]["voting_power"] = json!("21"));
        assert!(matches!(refused, Err(VerifyError::ValidatorsHash(8))), "{refused:?}");
        let stranger = BASE64.encode(key(9).verifying_key().as_bytes());
        let refused = with_pages(|pages| {
            pages[0]["validators"][0]["pub_key"]["value"] = json!(stranger);
            pages[0]["validators"][0]["address"] = json!(address(9));
        });
        assert!(matches!(refused, Err(VerifyError::ValidatorsHash(8))), "{refused:?}");
        // The address is in no hash.
        let refused = with_pages(|pages| pages[0]["validators"][0]["address"] = json!(address(9)));
        assert!(
            matches!(&refused, Err(VerifyError::Address { listed, .. }) if *listed == address(9))
        );
        for power in ["0", "1152921504606846976"] {
            let refused =
                with_pages(|pages| pages[0]["validators"][0]["voting_power"] = json!(power));
            assert!(matches!(refused, Err(VerifyError::Powers)), "{refused:?}");
        }
        let refused = with_pages(|pages| {
            pages[1]["validators"][0]["pub_key"]["type"] = json!("tendermint/PubKeySecp256k1");
        });
        assert!(matches!(refused, Err(VerifyError::Key { .. })), "{refused:?}");
    }

    #[test]
    fn a_list_that_is_not_whole_is_refused() {
        type Change = fn(&mut Vec<Value>);
        let changes: [Change; 4] = [
            |pages| drop(pages.pop()),
            |pages| drop(pages.remove(0)),
            Vec::clear,
            |pages| pages[1] = pages[0].clone(),
        ];
        for change in changes {
            let refused = with_pages(change);
            assert!(matches!(refused, Err(VerifyError::Pages { .. })), "{refused:?}");
        }
        let refused = with_pages(|pages| {
            pages.pop();
            pages[0]["total"] = json!("3");
        });
        assert!(matches!(refused, Err(VerifyError::ValidatorsHash(8))), "{refused:?}");
        let refused = with_pages(|pages| pages.swap(0, 1));
        assert!(matches!(refused, Err(VerifyError::ValidatorsHash(8))), "{refused:?}");
        let refused = with_pages(|pages| pages[1]["block_height"] = json!("9"));
        assert!(
            matches!(refused, Err(VerifyError::Height { header: 8, found: 9, .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_change_in_any_field_of_the_header_is_refused() {
        let (commit, _) = at_8();
        let header = &commit["signed_header"]["header"];
        let mut fields: Vec<String> =
            header.as_object().unwrap().keys().map(|name| format!("/{name}")).collect();
        fields.retain(|name| name != "/version" && name != "/last_block_id");
        fields.extend(["/version/block", "/version/app", "/last_block_id/hash"].map(String::from));
        fields.extend(["total", "hash"].map(|name| format!("/last_block_id/parts/{name}")));
        assert_eq!(fields.len(), 17);
        for field in fields {
            let refused = with_commit(|commit| {
                let value = commit.pointer_mut(&format!("/signed_header/header{field}")).unwrap();
                *value = match (field.as_str(), &*value) {
                    ("/time", _) => json!("2026-11-25T03:07:00Z"),
                    (_, Value::String(text)) if text.len() > 13 => {
                        json!(format!(
                            "{}{}",
                            if text.starts_with('7') { 8 } else { 7 },
                            &text[1..]
                        ))
                    }
                    (_, Value::String(_)) => json!("7"),
                    _ => json!(7),
                };
            });
            match field.as_str() {
                "/chain_id" => assert!(matches!(refused, Err(VerifyError::Chain { .. }))),
                "/height" => assert!(matches!(refused, Err(VerifyError::Height { .. }))),
                _ => assert!(
                    matches!(refused, Err(VerifyError::HeaderHash(8))),
                    "{field}: {refused:?}"
                ),
            }
        }
    }

    #[test]
    fn a_block_of_another_chain_is_refused_also_under_a_false_name() {
        let (mut commit, pages) = at_8();
        let refused = verify("city-ledger-2", &commit, &pages);
        assert!(matches!(refused, Err(VerifyError::Chain { .. })), "{refused:?}");
        commit["signed_header"]["header"]["chain_id"] = json!("city-ledger-2");
        let refused = verify("city-ledger-2", &commit, &pages);
        assert!(matches!(refused, Err(VerifyError::HeaderHash(8))), "{refused:?}");
    }

    #[test]
    fn a_changed_vote_is_refused_by_the_name_of_who_cast_it() {
        let wrong = |refused: Result<Verified, VerifyError>, n: u8| {
            assert!(
                matches!(&refused, Err(VerifyError::Signature(of)) if *of == address(n)),
                "{refused:?}"
            );
        };
        for signature in [json!(null), json!(""), json!("AAAA"), json!(BASE64.encode([0; 64]))] {
            wrong(with_commit(|commit| entry(commit, 3)["signature"] = signature), 3);
        }
        let of_another = |commit: &mut Value| {
            entry(commit, 3)["signature"] = entry(commit, 2)["signature"].clone();
        };
        wrong(with_commit(of_another), 3);
        let at = json!("2026-11-25T03:07:00Z");
        wrong(with_commit(|commit| entry(commit, 3)["timestamp"] = at), 3);
        wrong(with_commit(|commit| entry(commit, 3)["block_id_flag"] = json!(3)), 3);
        // What all sign: the first of the set is named.
        let round = |commit: &mut Value| commit["signed_header"]["commit"]["round"] = json!(1);
        wrong(with_commit(round), 5);
        let parts = |commit: &mut Value| {
            commit["signed_header"]["commit"]["block_id"]["parts"]["total"] = json!(2);
        };
        wrong(with_commit(parts), 5);
    }

    #[test]
    fn a_commit_of_another_block_or_with_other_entries_is_refused() {
        let mut of_7 = answer!("commit-7")["signed_header"]["commit"].clone();
        let refused = with_commit(|commit| commit["signed_header"]["commit"] = of_7.clone());
        assert!(matches!(refused, Err(VerifyError::Height { .. })), "{refused:?}");
        of_7["height"] = json!("8");
        let refused = with_commit(|commit| commit["signed_header"]["commit"] = of_7);
        assert!(matches!(refused, Err(VerifyError::HeaderHash(8))), "{refused:?}");

        let refused = with_commit(|commit| drop(entries(commit).pop()));
        assert!(matches!(refused, Err(VerifyError::Entries { signatures: 4, validators: 5 })));
        let refused = with_commit(|commit| entries(commit).swap(1, 2));
        assert!(matches!(refused, Err(VerifyError::Entry(_))), "{refused:?}");
        let refused = with_commit(|commit| entry(commit, 1)["block_id_flag"] = json!(4));
        assert!(matches!(refused, Err(VerifyError::Entry(of)) if of == address(1)));
        let refused = with_commit(|commit| *commit = json!({"canonical": true}));
        assert!(matches!(refused, Err(VerifyError::Malformed { method: "commit", .. })));
    }

    #[test]
    fn exactly_two_thirds_are_not_enough() {
        // Without node 5: 40 of 60. Without one of the others: 50 of 60.
        let refused = with_commit(|commit| *entry(commit, 5) = without_vote());
        assert!(
            matches!(refused, Err(VerifyError::Quorum { signed: 40, total: 60 })),
            "{refused:?}"
        );
        assert!(with_commit(|commit| *entry(commit, 1) = without_vote()).is_ok());
    }

    #[test]
    fn a_vote_for_no_block_is_checked_and_does_not_count() {
        let for_nil = |n: u8| {
            move |commit: &mut Value| {
                entry(commit, n)["block_id_flag"] = json!(3);
                let parsed = Commit::deserialize(&commit["signed_header"]["commit"]).unwrap();
                let of = address(n);
                let vote =
                    parsed.signatures.iter().find(|one| one.validator_address == of).unwrap();
                let signature = key(n).sign(&parsed.signed_bytes(CHAIN, vote));
                entry(commit, n)["signature"] = json!(BASE64.encode(signature.to_bytes()));
            }
        };
        assert!(with_commit(for_nil(1)).is_ok());
        let refused = with_commit(for_nil(5));
        assert!(
            matches!(refused, Err(VerifyError::Quorum { signed: 40, total: 60 })),
            "{refused:?}"
        );
    }
}
