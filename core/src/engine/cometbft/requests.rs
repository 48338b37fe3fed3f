//! What a client may send to a node's RPC.
//!
//! The built-in store has no signatures: whoever reaches its RPC can change the validators, and one
//! malformed change freezes the chain on every node (seen on 0.38.25: six forms of it pass the
//! transaction check). So only named methods pass, and validator transactions only from the operator.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::pki::Role;

/// Read-only methods (`rpc/core/routes.go`).
const READS: &[&str] = &[
    "abci_info",
    "abci_query",
    "block",
    "block_by_hash",
    "block_results",
    "block_search",
    "blockchain",
    "check_tx",
    "commit",
    "consensus_params",
    "consensus_state",
    "genesis",
    "genesis_chunked",
    "header",
    "header_by_hash",
    "health",
    "net_info",
    "num_unconfirmed_txs",
    "status",
    "tx",
    "tx_search",
    "unconfirmed_txs",
    "validators",
];

/// Methods that submit a transaction.
const SUBMITS: &[&str] = &["broadcast_tx_async", "broadcast_tx_commit", "broadcast_tx_sync"];

/// First bytes of a transaction that the built-in store takes as a change of validators
/// (`abci/example/kvstore/code.go`, `ValidatorPrefix`).
const VALIDATOR_PREFIX: &[u8] = b"val=";

/// Why a request was refused, in words for the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a single JSON-RPC 2.0 call.
    #[error("send one JSON-RPC 2.0 call as an object; batches are not served: {0}")]
    NotACall(String),
    /// A method outside the list.
    #[error("method {0:?} is not served by the gateway")]
    Method(String),
    /// The certificate's role may not do this.
    #[error("a certificate of role {role} may not call {method:?}")]
    Role {
        /// The sender's role.
        role: Role,
        /// What it called.
        method: String,
    },
    /// A transaction that the gateway cannot read, hence cannot judge.
    #[error("params.tx must be the transaction in standard base64")]
    UnreadableTransaction,
    /// A change of validators from somebody else than the operator.
    #[error(
        "transactions that begin with \"val=\" change the validators; only the operator may send them: \
         edit the BsnNetwork instead"
    )]
    ValidatorTransaction,
}

#[derive(Serialize, Deserialize)]
struct Call {
    #[serde(default = "version_two")]
    jsonrpc: String,
    #[serde(default)]
    id: Value,
    method: String,
    #[serde(default)]
    params: Value,
}

fn version_two() -> String {
    "2.0".to_owned()
}

/// A call that may be passed on to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// The method's name: one of a fixed list, so safe as a metric's label.
    pub method: &'static str,
    /// The request to pass on, written anew: the engine reads exactly what was judged here.
    pub body: String,
}

/// Decides whether `body`, sent by a certificate of `role`, may reach the engine.
///
/// `guard_validators` is set for the built-in store; a user's application checks its own
/// transactions.
pub fn check_request(body: &[u8], role: Role, guard_validators: bool) -> Result<Allowed, Refusal> {
    let call: Call =
        serde_json::from_slice(body).map_err(|err| Refusal::NotACall(err.to_string()))?;
    let find = |list: &[&'static str]| list.iter().find(|name| **name == call.method).copied();
    let (method, submits) = match (find(READS), find(SUBMITS)) {
        (Some(read), _) => (read, false),
        (None, Some(submit)) => (submit, true),
        (None, None) => return Err(Refusal::Method(call.method)),
    };
    // A peer's certificate lies on every node of the network: it serves evidence, nothing else.
    if role == Role::Peer {
        return Err(Refusal::Role { role, method: call.method });
    }
    if submits && guard_validators && role != Role::Operator {
        let bytes = transaction(&call.params).ok_or(Refusal::UnreadableTransaction)?;
        if bytes.starts_with(VALIDATOR_PREFIX) {
            return Err(Refusal::ValidatorTransaction);
        }
    }
    // Strings and JSON values: serialising them cannot fail.
    Ok(Allowed { method, body: serde_json::to_string(&call).unwrap_or_default() })
}

/// Whether a transaction, in standard base64, would change the validators of the built-in store's chain.
pub fn is_validator_transaction(text: &str) -> bool {
    BASE64.decode(text).is_ok_and(|bytes| bytes.starts_with(VALIDATOR_PREFIX))
}

/// The transaction's bytes, from parameters by name or by position. The engine itself reads JSON
/// parameters as standard base64 and nothing else, so what does not decode here is refused there.
fn transaction(params: &Value) -> Option<Vec<u8>> {
    let text = match params {
        // A second spelling of the name would be read by the engine but not here (its JSON decoder
        // ignores case), so anything but exactly `tx` is unreadable.
        Value::Object(map) if map.len() == 1 => map.get("tx")?.as_str()?,
        Value::Array(list) if list.len() == 1 => list.first()?.as_str()?,
        _ => return None,
    };
    BASE64.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(body: &Value, role: Role) -> Result<Allowed, Refusal> {
        check_request(body.to_string().as_bytes(), role, true)
    }

    fn submit(tx: &[u8]) -> Value {
        json!({"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_commit",
               "params": {"tx": BASE64.encode(tx)}})
    }

    #[test]
    fn clients_read_and_send_ordinary_transactions() {
        assert!(check(&json!({"method": "status"}), Role::Client).is_ok());
        assert_eq!(check(&submit(b"k=v"), Role::Client).unwrap().method, "broadcast_tx_commit");
        let by_position = json!({"method": "broadcast_tx_sync", "params": [BASE64.encode("k=v")]});
        assert!(check(&by_position, Role::Client).is_ok());
    }

    #[test]
    fn the_six_freezing_transactions_are_refused_from_clients() {
        for tx in [
            "val=ed25519!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=!0",
            "val=ed25519!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=!11",
            "val=ed25519!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==!1",
            "val=foo!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=!1",
            "val=secp256k1!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=!1",
            "val=ed25519!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=!1152921504606846976",
        ] {
            let body = submit(tx.as_bytes());
            assert_eq!(check(&body, Role::Client), Err(Refusal::ValidatorTransaction), "{tx}");
            assert!(check(&body, Role::Operator).is_ok());
        }
    }

    #[test]
    fn nothing_slips_past_the_reader() {
        let tx = BASE64.encode("val=ed25519!x!1");
        for body in [
            json!([{"method": "broadcast_tx_sync", "params": {"tx": tx}}]),
            json!({"method": "broadcast_tx_sync", "params": {"tx": "k=v", "TX": tx}}),
            json!({"method": "broadcast_tx_sync", "params": {"Tx": tx}}),
            json!({"method": "broadcast_tx_sync", "params": {"tx": "0x76616c3d"}}),
            json!({"method": "broadcast_tx_sync"}),
            json!({"method": "dial_peers"}),
            json!({"method": "broadcast_evidence"}),
            json!({"method": "subscribe"}),
        ] {
            assert!(check(&body, Role::Client).is_err(), "{body}");
        }
        // A name given twice is refused by the reader, not resolved to one of the two.
        let twice = format!(
            r#"{{"method":"status","method":"broadcast_tx_sync","params":{{"tx":"{tx}"}}}}"#
        );
        assert!(check_request(twice.as_bytes(), Role::Client, true).is_err());
        // In the parameters the last one counts, and only that one is passed on.
        let harmless = BASE64.encode("k=v");
        let twice = format!(
            r#"{{"method":"broadcast_tx_sync","params":{{"tx":"{tx}","tx":"{harmless}"}}}}"#
        );
        let allowed = check_request(twice.as_bytes(), Role::Client, true).unwrap();
        assert!(!allowed.body.contains(&tx), "{}", allowed.body);
    }

    #[test]
    fn peers_get_no_rpc() {
        assert!(matches!(
            check(&json!({"method": "status"}), Role::Peer),
            Err(Refusal::Role { .. })
        ));
    }

    #[test]
    fn a_users_application_judges_its_own_transactions() {
        let body = submit(b"val=anything").to_string();
        assert!(check_request(body.as_bytes(), Role::Client, false).is_ok());
    }
}
