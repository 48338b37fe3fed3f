//! A block's header and commit as the engine answers them, and the bytes of them that it hashes and signs.
//!
//! JSON: `rpc/core/types/responses.go`, `types/block.go`. Bytes: protocol buffers in `proto/tendermint`,
//! where a field with its zero value is left out, and Merkle trees as in RFC 6962 (`crypto/merkle`).
//!
//! This is our own code because it is small and any mistake in it shows as a hash that differs. The crate
//! `tendermint` (0.41) was tried: it brings 30 crates, among them a second implementation of the curve and two
//! older ones of SHA-2, and 90 seconds of building.

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use sha2::{Digest, Sha256};

use super::status::number;

/// Bytes that are hexadecimal digits in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hex(Vec<u8>);

impl AsRef<[u8]> for Hex {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> =
            text.chars().map(|c| c.to_digit(16).and_then(|digit| digit.try_into().ok())).collect();
        digits
            .filter(|digits| digits.len() % 2 == 0)
            .map(|digits| Self(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
            .ok_or_else(|| D::Error::custom("a hash is not hexadecimal"))
    }
}

/// A block's header (`types/block.go`, `Header`).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Header {
    version: Version,
    pub chain_id: String,
    #[serde(deserialize_with = "number")]
    pub height: u64,
    pub time: Timestamp,
    last_block_id: BlockId,
    last_commit_hash: Hex,
    data_hash: Hex,
    pub validators_hash: Hex,
    pub next_validators_hash: Hex,
    consensus_hash: Hex,
    app_hash: Hex,
    last_results_hash: Hex,
    evidence_hash: Hex,
    proposer_address: Hex,
}

#[derive(Debug, Clone, Deserialize)]
struct Version {
    #[serde(default, deserialize_with = "number")]
    block: u64,
    // Left out by the engine while it is zero.
    #[serde(default, deserialize_with = "number")]
    app: u64,
}

/// Names a block by its header's hash and by its bytes' (`types/block.go`, `BlockID`).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct BlockId {
    pub hash: Hex,
    parts: Parts,
}

#[derive(Debug, Clone, Deserialize)]
struct Parts {
    total: u32,
    hash: Hex,
}

/// What the validators signed (`types/block.go`, `Commit`).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Commit {
    #[serde(deserialize_with = "number")]
    pub height: u64,
    round: u32,
    pub block_id: BlockId,
    pub signatures: Vec<CommitSignature>,
}

/// One validator's part in a commit (`types/block.go`, `CommitSig`).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct CommitSignature {
    block_id_flag: u8,
    pub validator_address: String,
    timestamp: Timestamp,
    /// Standard base64; `None` without a vote.
    pub signature: Option<String>,
}

/// What a validator voted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vote {
    /// No vote of it came in time.
    Absent,
    /// The block.
    Block,
    /// No block in this round.
    Nil,
}

impl CommitSignature {
    /// `None` = a flag the engine does not know (`types/block.go`, `BlockIDFlag`).
    pub fn vote(&self) -> Option<Vote> {
        match self.block_id_flag {
            1 => Some(Vote::Absent),
            2 => Some(Vote::Block),
            3 => Some(Vote::Nil),
            _ => None,
        }
    }
}

impl Header {
    /// The hash that names the block (`types/block.go`, `Header.Hash`).
    pub fn hash(&self) -> [u8; 32] {
        // Single values are hashed as messages of one field (`types/encoding_helper.go`).
        let value = |bytes: &[u8]| Message::default().bytes(1, bytes).0;
        let version =
            Message::default().varint(1, self.version.block).varint(2, self.version.app).0;
        merkle(&[
            version,
            value(self.chain_id.as_bytes()),
            Message::default().varint(1, self.height).0,
            Message::time(self.time).0,
            self.last_block_id.message().0,
            value(self.last_commit_hash.as_ref()),
            value(self.data_hash.as_ref()),
            value(self.validators_hash.as_ref()),
            value(self.next_validators_hash.as_ref()),
            value(self.consensus_hash.as_ref()),
            value(self.app_hash.as_ref()),
            value(self.last_results_hash.as_ref()),
            value(self.evidence_hash.as_ref()),
            value(self.proposer_address.as_ref()),
        ])
    }
}

impl BlockId {
    fn message(&self) -> Message {
        let parts = Message::default()
            .varint(1, self.parts.total.into())
            .bytes(2, self.parts.hash.as_ref());
        Message::default().bytes(1, self.hash.as_ref()).message(2, &parts)
    }
}

impl Commit {
    /// What the validator signed for this entry (`types/canonical.go`, `CanonicalizeVote`).
    pub fn signed_bytes(&self, chain_id: &str, entry: &CommitSignature) -> Vec<u8> {
        // SignedMsgType of a precommit (`proto/tendermint/types/types.proto`); commits hold nothing else.
        let mut vote =
            Message::default().varint(1, 2).fixed64(2, self.height).fixed64(3, self.round.into());
        if entry.vote() == Some(Vote::Block) {
            vote = vote.message(4, &self.block_id.message());
        }
        vote = vote.message(5, &Message::time(entry.timestamp)).bytes(6, chain_id.as_bytes());
        // Signed with its length in front (`types/vote.go`, `VoteSignBytes`).
        let mut bytes = Message::default();
        bytes.push_varint(vote.0.len() as u64);
        bytes.0.extend(vote.0);
        bytes.0
    }
}

/// The hash of a set of validators, in the engine's order (`types/validator_set.go`, `Hash`).
pub(super) fn validators_hash<'a>(
    validators: impl Iterator<Item = (&'a [u8; 32], u64)>,
) -> [u8; 32] {
    let leaves: Vec<_> = validators
        .map(|(key, power)| {
            // SimpleValidator; field 1 of its key says Ed25519 (`proto/tendermint/crypto/keys.proto`).
            Message::default().message(1, &Message::default().bytes(1, key)).varint(2, power).0
        })
        .collect();
    merkle(&leaves)
}

/// Root of a Merkle tree (`crypto/merkle/tree.go`): the left half is the largest power of two that leaves
/// something for the right one.
fn merkle(leaves: &[Vec<u8>]) -> [u8; 32] {
    match leaves {
        [] => Sha256::digest([]).into(),
        [leaf] => Sha256::new().chain_update([0]).chain_update(leaf).finalize().into(),
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            let inner = Sha256::new().chain_update([1]).chain_update(merkle(left));
            inner.chain_update(merkle(right)).finalize().into()
        }
    }
}

/// A protocol buffer, written field by field in ascending order.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn push_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn varint(mut self, field: u8, value: u64) -> Self {
        if value != 0 {
            self.0.push(field << 3);
            self.push_varint(value);
        }
        self
    }

    fn fixed64(mut self, field: u8, value: u64) -> Self {
        if value != 0 {
            self.0.push(field << 3 | 1);
            self.0.extend(value.to_le_bytes());
        }
        self
    }

    fn bytes(self, field: u8, bytes: &[u8]) -> Self {
        if bytes.is_empty() { self } else { self.message(field, &Self(bytes.to_vec())) }
    }

    /// Written even if it is empty: the engine's messages inside of others are never absent.
    fn message(mut self, field: u8, message: &Self) -> Self {
        self.0.push(field << 3 | 2);
        self.push_varint(message.0.len() as u64);
        self.0.extend(&message.0);
        self
    }

    /// `google.protobuf.Timestamp`, whose nanoseconds count forward also before 1970.
    fn time(time: Timestamp) -> Self {
        let nanoseconds = time.as_nanosecond();
        let (seconds, rest) =
            (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
        // Both fit: seconds of years -9999 to 9999, and less than 10^9. A negative number is written as
        // its two's complement of 64 bits.
        let seconds = i64::try_from(seconds).unwrap_or_default();
        let rest = u64::try_from(rest).unwrap_or_default();
        Self::default().varint(1, seconds.cast_unsigned()).varint(2, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hex;
    use serde_json::json;

    fn sha(text: &str) -> String {
        hex(&Sha256::digest(text))
    }

    #[test]
    fn a_header_hashes_as_in_the_engines_own_test() {
        // `types/block_test.go`, TestHeaderHash.
        let header: Header = serde_json::from_value(json!({
            "version": {"block": "1", "app": "2"},
            "chain_id": "chainId",
            "height": "3",
            "time": "2019-10-13T16:14:44Z",
            "last_block_id": {"hash": "00".repeat(32), "parts": {"total": 6, "hash": "00".repeat(32)}},
            "last_commit_hash": sha("last_commit_hash"),
            "data_hash": sha("data_hash"),
            "validators_hash": sha("validators_hash"),
            "next_validators_hash": sha("next_validators_hash"),
            "consensus_hash": sha("consensus_hash"),
            "app_hash": sha("app_hash"),
            "last_results_hash": sha("last_results_hash"),
            "evidence_hash": sha("evidence_hash"),
            "proposer_address": &sha("proposer_address")[..40],
        }))
        .unwrap();
        assert_eq!(
            hex(&header.hash()).to_uppercase(),
            "F740121F553B5418C3EFBD343C2DBFE9E007BB67B0D020A0741374BAB65242A4"
        );
    }

    #[test]
    fn a_vote_for_no_block_has_the_bytes_of_the_engines_own_test() {
        // `types/vote_test.go`, TestVoteSignBytesTestVectors, case 1.
        let mut expected = vec![0x21, 0x08, 0x02, 0x11, 1, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([0x19, 1, 0, 0, 0, 0, 0, 0, 0, 0x2a]);
        expected.extend([0x0b, 0x08, 0x80, 0x92, 0xb8, 0xc3, 0x98, 0xfe, 0xff, 0xff, 0xff, 0x01]);
        let commit: Commit = serde_json::from_value(json!({
            "height": "1", "round": 1,
            "block_id": {"hash": "AA", "parts": {"total": 1, "hash": "BB"}},
            "signatures": [{"block_id_flag": 3, "validator_address": "", "signature": null,
                            "timestamp": "0001-01-01T00:00:00Z"}],
        }))
        .unwrap();
        assert_eq!(commit.signed_bytes("", &commit.signatures[0]), expected);
    }
}
