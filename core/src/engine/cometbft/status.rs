//! Reading a node's own answers (`rpc/core/types/responses.go`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::evidence::EngineReport;

/// A node's answers, as JSON-RPC results.
#[derive(Debug, Clone)]
pub struct Answers {
    /// Result of `status`.
    pub status: serde_json::Value,
    /// Result of `net_info`.
    pub net_info: serde_json::Value,
    /// Result of `abci_info`.
    pub abci_info: serde_json::Value,
    /// Result of `consensus_state`.
    pub consensus_state: serde_json::Value,
}

/// Why an answer could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the engine's answer to {method} is not as expected: {source}")]
pub struct AnswerError {
    pub(super) method: &'static str,
    pub(super) source: serde_json::Error,
}

#[derive(Deserialize)]
struct Status {
    node_info: NodeInfo,
    sync_info: SyncInfo,
    validator_info: ValidatorInfo,
}

#[derive(Deserialize)]
struct NodeInfo {
    id: String,
    network: String,
    version: String,
}

#[derive(Deserialize)]
struct SyncInfo {
    #[serde(deserialize_with = "number")]
    latest_block_height: u64,
    latest_block_time: String,
    catching_up: bool,
}

#[derive(Deserialize)]
struct ValidatorInfo {
    address: String,
    #[serde(deserialize_with = "number")]
    voting_power: u64,
}

#[derive(Deserialize)]
struct NetInfo {
    #[serde(deserialize_with = "number")]
    n_peers: u64,
    #[serde(default)]
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    node_info: PeerInfo,
}

#[derive(Deserialize)]
struct PeerInfo {
    id: String,
}

#[derive(Deserialize)]
struct AbciInfo {
    response: AbciResponse,
}

#[derive(Deserialize)]
struct ConsensusState {
    round_state: RoundState,
}

#[derive(Deserialize)]
struct RoundState {
    #[serde(rename = "height/round/step", deserialize_with = "first_number")]
    height: u64,
}

/// The height in `height/round/step`.
fn first_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.split('/').next().unwrap_or_default().parse().map_err(D::Error::custom)
}

#[derive(Deserialize)]
struct AbciResponse {
    // Left out by the engine while it is zero.
    #[serde(default, deserialize_with = "number")]
    last_block_height: u64,
}

/// 64-bit numbers come as JSON strings.
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// Lowest and highest block that a node holds, from its answer to `status`.
pub fn parse_heights(status: &serde_json::Value) -> Result<(u64, u64), AnswerError> {
    #[derive(Deserialize)]
    struct Heights {
        #[serde(deserialize_with = "number")]
        earliest_block_height: u64,
        #[serde(deserialize_with = "number")]
        latest_block_height: u64,
    }
    #[derive(Deserialize)]
    struct Sync {
        sync_info: Heights,
    }
    let Sync { sync_info } =
        Sync::deserialize(status).map_err(|source| AnswerError { method: "status", source })?;
    Ok((sync_info.earliest_block_height, sync_info.latest_block_height))
}

/// Whether a node says, in its answer to `status`, that it still reads old blocks.
pub fn is_catching_up(status: &serde_json::Value) -> bool {
    status.pointer("/sync_info/catching_up").and_then(serde_json::Value::as_bool) == Some(true)
}

/// Puts a node's answers into the form every engine reports in.
pub fn parse_report(answers: Answers) -> Result<EngineReport, AnswerError> {
    let failed = |method| move |source| AnswerError { method, source };
    let status: Status = serde_json::from_value(answers.status).map_err(failed("status"))?;
    let net: NetInfo = serde_json::from_value(answers.net_info).map_err(failed("net_info"))?;
    let abci: AbciInfo = serde_json::from_value(answers.abci_info).map_err(failed("abci_info"))?;
    let consensus: ConsensusState =
        serde_json::from_value(answers.consensus_state).map_err(failed("consensus_state"))?;
    Ok(EngineReport {
        consensus_height: consensus.round_state.height,
        chain_id: status.node_info.network,
        version: status.node_info.version,
        node_id: status.node_info.id,
        address: status.validator_info.address,
        height: status.sync_info.latest_block_height,
        block_time: status.sync_info.latest_block_time,
        applied_height: abci.response.last_block_height,
        catching_up: status.sync_info.catching_up,
        peers: net.n_peers,
        voting_power: status.validator_info.voting_power,
        signed: None,
        ledger: None,
        peer_ids: net.peers.into_iter().map(|peer| peer.node_info.id).collect(),
    })
}

/// One page of a node's answer to `validators`: powers by address, and how many validators there are.
pub fn parse_powers(
    page: &serde_json::Value,
) -> Result<(BTreeMap<String, u64>, usize), AnswerError> {
    #[derive(Deserialize)]
    struct Page {
        validators: Vec<Validator>,
        #[serde(deserialize_with = "number")]
        total: u64,
    }
    #[derive(Deserialize)]
    struct Validator {
        address: String,
        #[serde(deserialize_with = "number")]
        voting_power: u64,
    }
    let Page { validators, total } =
        Page::deserialize(page).map_err(|source| AnswerError { method: "validators", source })?;
    let powers = validators.into_iter().map(|one| (one.address, one.voting_power)).collect();
    Ok((powers, usize::try_from(total).unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answers() -> Answers {
        Answers {
            status: json!({
                "node_info": {"id": "c167", "network": "poa-lab-1", "version": "0.38.25"},
                "sync_info": {"latest_block_height": "41", "catching_up": false,
                              "latest_block_time": "2026-11-23T04:00:41.5Z"},
                "validator_info": {"address": "E038", "voting_power": "10"},
            }),
            net_info: json!({"listening": true, "n_peers": "1", "peers": [
                {"node_info": {"id": "c168"}, "is_outbound": true},
            ]}),
            abci_info: json!({"response": {"data": "{}", "last_block_height": "41"}}),
            consensus_state: json!({"round_state": {"height/round/step": "42/0/3"}}),
        }
    }

    #[test]
    fn reads_the_answers_of_a_running_node() {
        let report = parse_report(answers()).unwrap();
        assert_eq!((report.height, report.applied_height, report.peers), (41, 41, 1));
        assert_eq!(report.peer_ids, ["c168"]);
        assert_eq!((report.voting_power, report.consensus_height), (10, 42));
        assert!(!report.catching_up);
    }

    #[test]
    fn powers_are_read_page_by_page() {
        let page = json!({"block_height": "42", "count": "1", "total": "2", "validators": [
            {"address": "E038", "pub_key": {}, "voting_power": "10", "proposer_priority": "-3"},
        ]});
        let (powers, total) = parse_powers(&page).unwrap();
        assert_eq!((powers, total), ([("E038".to_owned(), 10)].into(), 2));
        assert!(parse_powers(&json!({})).is_err());
    }

    #[test]
    fn a_fresh_application_has_height_zero_and_a_strange_answer_is_an_error() {
        let mut fresh = answers();
        fresh.abci_info = json!({"response": {}});
        assert_eq!(parse_report(fresh).unwrap().applied_height, 0);
        let mut strange = answers();
        strange.status["sync_info"]["latest_block_height"] = json!("-1");
        assert!(parse_report(strange).unwrap_err().to_string().contains("status"));
    }
}
