//! What is kept of steps: all that is needed to do one again in exactly the same way, while it is under way
//! ([`RecordedStep`], in the anchor), and what people want to know afterwards ([`PastStep`], in the history).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::membership::model::{Change, LedgerName};
use crate::names::NodeName;

/// A step under way. It is what an intent of the protocol ([`crate::intent`]) carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedStep {
    /// When it was recorded, on the operator's clock; for people.
    pub begun_at: Timestamp,
    /// What it is, in words, with nodes by name.
    pub what: String,
    /// What it does.
    #[serde(flatten)]
    pub effect: Effect,
}

/// What a step does outside of the anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Sends a transaction that changes the members of a ledger.
    Change(RecordedChange),
    /// Restarts a node.
    Restart(RecordedRestart),
}

/// A transaction, pinned: it is sent to this process, in these bytes, or never.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedChange {
    /// Which ledger.
    pub ledger: LedgerName,
    /// What changes.
    pub change: Change,
    /// Address of the consensus key it is about.
    pub address: String,
    /// Power of that key once it has taken effect; 0 = it votes no more.
    pub power: u64,
    /// The transaction, in standard base64.
    pub transaction: String,
    /// The node it is sent to.
    pub entry: NodeName,
    /// Id of that node's engine process.
    pub entry_start: String,
    /// Newest block when it was recorded: the transaction is in no block up to this one.
    pub after_height: u64,
}

/// A restart, so that what is described takes effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedRestart {
    /// Which node.
    pub node: NodeName,
    /// Short hash of what is described for it.
    pub described: String,
}

/// A step that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastStep {
    /// Its number; `None` = one that needs no record of its own (a node made, retired, or restarted as a cure).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// What it was, in words.
    pub what: String,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was recorded.
    pub begun_at: Timestamp,
    /// When it was first sent, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Height at which it was read back, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It took effect.
    Done,
    /// It was given up before anything was done.
    Withdrawn,
    /// It was sent, and is proved never to take effect.
    NeverTookEffect,
    /// A person gave it up by consent.
    Abandoned,
}

/// Key of the history in its `ConfigMap`.
pub const HISTORY_KEY: &str = "history.json";
/// Steps kept; older ones are dropped.
pub const HISTORY_LENGTH: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_step_reads_as_it_was_written() {
        let node = NodeName::from_object("net-a-0");
        let step = |effect| RecordedStep {
            begun_at: Timestamp::UNIX_EPOCH,
            what: "do it".to_owned(),
            effect,
        };
        let restart = RecordedRestart { node: node.clone(), described: "d1".into() };
        let change = RecordedChange {
            ledger: "main".into(),
            change: Change::Add { node: node.clone(), power: 10 },
            address: "A0".into(),
            power: 10,
            transaction: "dmFsPQ==".into(),
            entry: node,
            entry_start: "containerd://1".into(),
            after_height: 7,
        };
        for effect in [Effect::Restart(restart), Effect::Change(change)] {
            let step = step(effect);
            let text = serde_json::to_string(&step).unwrap();
            assert_eq!(serde_json::from_str::<RecordedStep>(&text).unwrap(), step, "{text}");
        }
    }
}
