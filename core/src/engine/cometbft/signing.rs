//! What a consensus key signed last: the engine's own record, and votes as other nodes show them.
//!
//! Sources: `privval/file.go` (the record; steps 1 = proposal, 2 = prevote, 3 = precommit),
//! `types/block.go` (`BlockIDFlag`), `types/vote.go` (`Vote.String`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// File name of the engine's record.
pub const SIGNING_STATE_FILE: &str = "priv_validator_state.json";

/// Step of a precommit, the last vote of a round.
pub const PRECOMMIT: u8 = 3;
/// Step of a prevote.
pub const PREVOTE: u8 = 2;

/// A point in consensus at which a key signed. Ordered: a key must never sign at or below a point it
/// has passed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub struct SignedAt {
    /// Height of the block voted on.
    pub height: u64,
    /// Round at that height.
    pub round: u32,
    /// 1 = proposal, 2 = prevote, 3 = precommit.
    pub step: u8,
}

impl std::fmt::Display for SignedAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.height, self.round, self.step)
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    height: String,
    round: u32,
    step: u8,
}

impl SignedAt {
    /// The state of a key that has signed everything up to and including `height`.
    pub fn past(height: u64) -> Self {
        Self { height, round: 0, step: PRECOMMIT }
    }

    /// Reads the engine's record. Signatures in it are left out: they are not needed here.
    pub fn parse_record(text: &str) -> Result<Self, String> {
        let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let height = record.height.parse().map_err(|_| "height is not a number".to_owned())?;
        Ok(Self { height, round: record.round, step: record.step })
    }

    /// The engine's record of this state, as it writes one itself.
    pub fn render_record(self) -> String {
        let record = Record { height: self.height.to_string(), round: self.round, step: self.step };
        // Numbers and a string: serialising them cannot fail.
        serde_json::to_string_pretty(&record).unwrap_or_default() + "\n"
    }
}

/// The vote of the validator `address` in the answer to `commit`, if it is there.
pub fn parse_commit_vote(commit: &Value, address: &str) -> Option<SignedAt> {
    let commit = commit.pointer("/signed_header/commit")?;
    let number = |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok());
    commit.get("signatures")?.as_array()?.iter().find(|signature| {
        // 2 = for the block, 3 = for nil; both are signatures. 1 = absent.
        let flag = signature.get("block_id_flag").and_then(Value::as_u64);
        let of = signature.get("validator_address").and_then(Value::as_str);
        matches!(flag, Some(2 | 3)) && of.is_some_and(|of| of.eq_ignore_ascii_case(address))
    })?;
    Some(SignedAt {
        height: number(commit.get("height")?)?,
        round: u32::try_from(number(commit.get("round")?)?).ok()?,
        step: PRECOMMIT,
    })
}

/// Addresses of all validators that signed, in the answer to `commit`; `None` if that commit is not final:
/// only the one that is part of the next block is the same on every node.
pub fn parse_signers(commit: &Value) -> Option<Vec<String>> {
    if commit.get("canonical")?.as_bool() != Some(true) {
        return None;
    }
    let signatures = commit.pointer("/signed_header/commit/signatures")?.as_array()?;
    let signed = signatures.iter().filter(|signature| {
        matches!(signature.get("block_id_flag").and_then(Value::as_u64), Some(2 | 3))
    });
    let address =
        |signature: &Value| Some(signature.get("validator_address")?.as_str()?.to_owned());
    Some(signed.filter_map(address).collect())
}

/// When a block was decided, by its voters' own clocks: the median time of the votes for it in the answer to
/// `commit`. `None` = there are none.
pub fn parse_decided_at(commit: &Value) -> Option<Timestamp> {
    let signatures = commit.pointer("/signed_header/commit/signatures")?.as_array()?;
    let votes = signatures
        .iter()
        .filter(|signature| signature.get("block_id_flag").and_then(Value::as_u64) == Some(2));
    let mut times: Vec<Timestamp> =
        votes.filter_map(|vote| vote.get("timestamp")?.as_str()?.parse().ok()).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// The highest vote of the validator `address` in the answer to `consensus_state`. Votes are shown as
/// text with the first six bytes of the address, so another validator's could be taken for it: that errs
/// to the safe side.
pub fn parse_round_vote(state: &Value, address: &str) -> Option<SignedAt> {
    let prefix = address.get(..12)?;
    let sets = state.pointer("/round_state/height_vote_set")?.as_array()?;
    let of = |set: &Value, name: &str| -> Option<SignedAt> {
        set.get(name)?
            .as_array()?
            .iter()
            .filter_map(|vote| parse_vote_text(vote.as_str()?, prefix))
            .max()
    };
    sets.iter().flat_map(|set| [of(set, "prevotes"), of(set, "precommits")]).flatten().max()
}

/// Reads `Vote{0:E038AEC0832C 152/00/SIGNED_MSG_TYPE_PREVOTE(Prevote) …}`.
fn parse_vote_text(text: &str, prefix: &str) -> Option<SignedAt> {
    let (_, rest) = text.strip_prefix("Vote{")?.split_once(':')?;
    let mut words = rest.split(' ');
    if !words.next()?.eq_ignore_ascii_case(prefix) {
        return None;
    }
    let mut parts = words.next()?.splitn(3, '/');
    let height = parts.next()?.parse().ok()?;
    let round = parts.next()?.parse().ok()?;
    let step =
        if parts.next()?.to_ascii_uppercase().contains("PREVOTE") { PREVOTE } else { PRECOMMIT };
    Some(SignedAt { height, round, step })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ADDRESS: &str = "E038AEC0832C644D561DE92F69DD7263B955AAB3";

    #[test]
    fn the_record_is_read_as_the_engine_writes_it() {
        let text =
            r#"{"height": "41", "round": 1, "step": 3, "signature": "aa==", "signbytes": "7B"}"#;
        let state = SignedAt::parse_record(text).unwrap();
        assert_eq!(state, SignedAt { height: 41, round: 1, step: 3 });
        assert_eq!(SignedAt::parse_record(&state.render_record()), Ok(state));
        let fresh = "{\n  \"height\": \"0\",\n  \"round\": 0,\n  \"step\": 0\n}\n";
        assert_eq!(SignedAt::default().render_record(), fresh);
        assert!(SignedAt::parse_record("").is_err());
    }

    #[test]
    fn a_block_was_decided_when_half_of_its_voters_had_voted() {
        let vote = |second: u8, flag: u8| json!({"block_id_flag": flag, "timestamp": format!("2026-01-01T00:00:0{second}Z")});
        let votes = [vote(5, 2), vote(1, 2), vote(9, 1), vote(3, 2)];
        let commit = json!({"signed_header": {"commit": {"signatures": votes}}});
        assert_eq!(parse_decided_at(&commit), Some("2026-01-01T00:00:03Z".parse().unwrap()));
        assert_eq!(parse_decided_at(&json!({})), None);
    }

    #[test]
    fn a_later_step_of_an_earlier_round_is_earlier() {
        let at = |height, round, step| SignedAt { height, round, step };
        assert!(at(7, 1, 1) > at(7, 0, 3));
        assert!(at(8, 0, 1) > at(7, 9, 3));
        assert!(SignedAt::past(7) < at(8, 0, 1));
    }

    #[test]
    fn votes_are_found_in_commits_and_in_the_running_round() {
        let commit = json!({"signed_header": {"commit": {"height": "9", "round": 1, "signatures": [
            {"block_id_flag": 1, "validator_address": ""},
            {"block_id_flag": 2, "validator_address": ADDRESS},
        ]}}, "canonical": true});
        assert_eq!(
            parse_commit_vote(&commit, ADDRESS),
            Some(SignedAt { height: 9, round: 1, step: 3 })
        );
        assert_eq!(parse_commit_vote(&commit, &ADDRESS.replace('E', "0")), None);
        assert_eq!(parse_signers(&commit), Some(vec![ADDRESS.to_owned()]));
        let mut seen_only = commit.clone();
        seen_only["canonical"] = json!(false);
        assert_eq!(parse_signers(&seen_only), None);

        let state = json!({"round_state": {"height/round/step": "152/0/4", "height_vote_set": [
            {"round": 0, "prevotes": [
                "nil-Vote",
                "Vote{1:E038AEC0832C 152/00/SIGNED_MSG_TYPE_PREVOTE(Prevote) 8B01023386C3 1A2B @ 2026-11-23T04:00:41Z}",
            ], "precommits": ["nil-Vote", "nil-Vote"]},
            {"round": 1, "prevotes": ["nil-Vote"], "precommits": [
                "Vote{0:AAAAAAAAAAAA 152/01/SIGNED_MSG_TYPE_PRECOMMIT(Precommit) 8B 1A @ t}",
            ]},
        ]}});
        assert_eq!(
            parse_round_vote(&state, ADDRESS),
            Some(SignedAt { height: 152, round: 0, step: 2 })
        );
        assert_eq!(
            parse_round_vote(&state, "AAAAAAAAAAAA000000000000000000000000000"),
            Some(SignedAt { height: 152, round: 1, step: 3 })
        );
        assert_eq!(parse_round_vote(&state, "BBBBBBBBBBBB00"), None);
    }
}
