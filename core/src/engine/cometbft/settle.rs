//! What became of a transaction that was sent: it took effect, it had none, it never will, or it is open.
//!
//! A call that failed or timed out says nothing: the transaction may be in a pool and be included much
//! later, and another one for the same key, in the same block, would freeze the chain. So one is settled only
//! by what is seen afterwards: a block that holds it, or proof that no pool of a node of ours does.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::status::{AnswerError, number};
use crate::names::NodeName;
use crate::steps::RecordedChange;

/// A change in block H is in effect from block H + 2 on (`state/execution.go`, `updateState`).
pub const EFFECT_DELAY: u64 = 2;

/// Blocks to be made while no node of ours holds the transaction, before it is taken for gone. One look is not
/// enough: on its way between two nodes it is in no pool for a moment, and a node that joins is given it late.
pub const CLEAR_BLOCKS: u64 = 20;

/// A node's pool of transactions that wait for a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// All of them are listed.
    pub complete: bool,
    /// Those listed, in standard base64.
    pub transactions: Vec<String>,
}

impl Pool {
    /// What this pool says of a transaction, in standard base64.
    pub fn state(&self, transaction: &str) -> PoolState {
        if self.transactions.iter().any(|held| held == transaction) {
            PoolState::Holds
        } else if self.complete {
            PoolState::Clear
        } else {
            PoolState::Unreadable
        }
    }
}

/// Reads the result of `unconfirmed_txs?limit=100` (`rpc/core/mempool.go`; it lists up to one more than
/// the limit, and 100 is the highest there is).
pub fn parse_pool(answer: &Value) -> Result<Pool, AnswerError> {
    #[derive(Deserialize)]
    struct Unconfirmed {
        #[serde(deserialize_with = "number")]
        n_txs: u64,
        #[serde(deserialize_with = "number")]
        total: u64,
        txs: Option<Vec<String>>,
    }
    let Unconfirmed { n_txs, total, txs } = Unconfirmed::deserialize(answer)
        .map_err(|source| AnswerError { method: "unconfirmed_txs", source })?;
    let transactions = txs.unwrap_or_default();
    let listed = u64::try_from(transactions.len());
    Ok(Pool { complete: n_txs == total && listed == Ok(total), transactions })
}

/// Reads the transactions, in standard base64, from the result of `block?height`.
pub fn parse_block_transactions(answer: &Value) -> Result<Vec<String>, AnswerError> {
    #[derive(Deserialize)]
    struct Answer {
        block: Block,
    }
    #[derive(Deserialize)]
    struct Block {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        txs: Option<Vec<String>>,
    }
    let Answer { block: Block { data: Data { txs } } } =
        Answer::deserialize(answer).map_err(|source| AnswerError { method: "block", source })?;
    Ok(txs.unwrap_or_default())
}

/// What is known of the transaction in one node's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolState {
    /// It waits there.
    Holds,
    /// The whole pool was read; it is not there.
    Clear,
    /// The pool could not be read, or not whole: it may be there.
    Unreadable,
    /// The engine's process that ran when the transaction was recorded has ended, which is proved, and none
    /// runs now. A pool is memory only. A new process may be given the transaction by others, so once one
    /// runs, its own pool is read.
    Ended,
}

/// One look at the chain and the nodes of ours.
///
/// Pools are read before blocks: else a transaction that leaves a pool for a block in between is
/// seen in neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The newest block up to which all after the recorded height were looked through for the transaction.
    pub head: u64,
    /// The block that holds it.
    pub included_at: Option<u64>,
    /// The newest verified set that all answering nodes of ours agree on, with its height; powers by address.
    pub set: Option<(u64, BTreeMap<String, u64>)>,
    /// Every node of ours that is not retired.
    pub pools: BTreeMap<NodeName, PoolState>,
    /// The process that the transaction was sent to has ended: it can neither pass it on nor put it into a
    /// block any more.
    pub entry_ended: bool,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not settled.
    Open {
        /// What is waited for, for people.
        why: String,
    },
    /// A block holds it, the set shows what it asked for, and no node of ours holds it any more.
    Confirmed {
        /// Height of the set it was read back from.
        height: u64,
    },
    /// A block holds it, no node of ours does any more, and the set two blocks later or newer does not show
    /// what it asked for: the application refused it, or something else changed the same validator since.
    WithoutEffect {
        /// Height of the set that was read.
        height: u64,
    },
    /// No block holds it, and none ever will.
    Impossible,
}

/// What is remembered from one look to the next, for one transaction. It need not be kept: a new one only
/// waits longer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settling {
    /// The block that holds it. Blocks are final.
    included_at: Option<u64>,
    /// Head when no node was seen to hold it for the first time in a row, after its entry node's process
    /// had ended.
    clear_since: Option<u64>,
}

impl Settling {
    /// Judges the transaction by what is seen now and what was seen before.
    pub fn look(&mut self, recorded: &RecordedChange, look: &Look) -> Verdict {
        self.included_at = self.included_at.or(look.included_at);
        let holders = name_holders(&look.pools);
        match self.included_at {
            Some(block) => look_at_effect(recorded, look, block, holders),
            None => self.look_for_end(recorded, look, holders),
        }
    }

    /// No block holds it: can one ever?
    fn look_for_end(
        &mut self,
        recorded: &RecordedChange,
        look: &Look,
        holders: Option<String>,
    ) -> Verdict {
        let head = look.head;
        let entry = &recorded.entry;
        let obstacle = if let Some(holders) = holders {
            Some(holders)
        } else if !look.entry_ended {
            Some(format!(
                "the process of {entry} that it was sent to still runs and may pass it on"
            ))
        } else if !look.pools.values().any(|state| *state == PoolState::Clear) {
            // Nobody is left who could have been given it and would show it.
            Some("no node runs whose pool could show that it is gone".to_owned())
        } else {
            None
        };
        if let Some(obstacle) = obstacle {
            self.clear_since = None;
            return Verdict::Open { why: format!("in no block up to {head}: {obstacle}") };
        }
        // By blocks and not by time: while the head stands still, nothing has had a chance to include it.
        let passed = head.saturating_sub(*self.clear_since.get_or_insert(head));
        if passed >= CLEAR_BLOCKS {
            return Verdict::Impossible;
        }
        Verdict::Open {
            why: format!(
                "in no block up to {head}, and no node holds it: given up when that stays so for \
                 {CLEAR_BLOCKS} blocks, of which {passed} have passed"
            ),
        }
    }
}

/// A block holds it: does the set show it, and has it left every pool? What stays in a pool after its block
/// (of a node that lags, or that has forgotten at a restart what it saw) could be included once more.
fn look_at_effect(
    recorded: &RecordedChange,
    look: &Look,
    block: u64,
    holders: Option<String>,
) -> Verdict {
    let wanted = block.saturating_add(EFFECT_DELAY);
    let Some((height, set)) = look.set.as_ref().filter(|(height, _)| *height >= wanted) else {
        let newest = match &look.set {
            Some((height, _)) => format!("the newest is of block {height}"),
            None => "there is none yet".to_owned(),
        };
        let why = format!(
            "block {block} holds it: the verified set of block {wanted} shows what it did; {newest}"
        );
        return Verdict::Open { why };
    };
    if let Some(holders) = holders {
        return Verdict::Open { why: format!("block {block} holds it, but {holders}") };
    }
    // A validator without power is not in the set.
    if set.get(&recorded.address).copied().unwrap_or_default() == recorded.power {
        Verdict::Confirmed { height: *height }
    } else {
        Verdict::WithoutEffect { height: *height }
    }
}

/// Names the nodes that hold the transaction, or may; `None` = no node does.
fn name_holders(pools: &BTreeMap<NodeName, PoolState>) -> Option<String> {
    let names = |wanted: PoolState| {
        let names = pools.iter().filter(|(_, state)| **state == wanted);
        names.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (holding, unreadable) = (names(PoolState::Holds), names(PoolState::Unreadable));
    let parts: Vec<String> = [
        (!holding.is_empty()).then(|| format!("it waits in the pool of {holding}")),
        (!unreadable.is_empty())
            .then(|| format!("it may wait in the pool of {unreadable}, which cannot be read")),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join(", and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::model::Change;
    use crate::names::{NetworkName, SetName};
    use PoolState::{Clear, Ended, Holds, Unreadable};

    const ADDRESS: &str = "7599776C3085E3F9DA0D13071EB0B4AB50FD2BF6";
    const TRANSACTION: &str =
        "dmFsPWVkMjU1MTkhYm5vYzNTbXd0NC9ST3ZURldZL3Y5TzhxbHhadVBLYnk1UHY4ellCUVcvRT0hMjA=";

    macro_rules! answer {
        ($name:literal) => {
            serde_json::from_str::<Value>(include_str!(concat!("testdata/", $name, ".json")))
                .unwrap()
        };
    }

    fn node(index: u32) -> NodeName {
        NetworkName::parse("net").unwrap().node(&SetName::parse("v").unwrap(), index).unwrap()
    }

    /// Node 4 is to vote with power 20; node 0 was told.
    fn recorded() -> RecordedChange {
        RecordedChange {
            ledger: "chain".to_owned(),
            change: Change::Add { node: node(4), power: 20 },
            address: ADDRESS.to_owned(),
            power: 20,
            transaction: TRANSACTION.to_owned(),
            entry: node(0),
            entry_start: "first".to_owned(),
            after_height: 5,
        }
    }

    /// In no block, and the pools of nodes 0, 1, … are like this.
    fn look_at(head: u64, entry_ended: bool, pools: &[PoolState]) -> Look {
        let pools = (0..).map(node).zip(pools.iter().copied()).collect();
        Look { head, included_at: None, set: None, pools, entry_ended }
    }

    /// In block 6, and a set with this power of the address is the newest.
    fn included(set: Option<(u64, u64)>, pools: &[PoolState]) -> Look {
        let set = set.map(|(height, power)| {
            let others = [("34750F98".to_owned(), 10)];
            let ours = (power > 0).then(|| (ADDRESS.to_owned(), power));
            (height, others.into_iter().chain(ours).collect())
        });
        Look { included_at: Some(6), set, ..look_at(9, false, pools) }
    }

    fn why(verdict: Verdict) -> String {
        match verdict {
            Verdict::Open { why } => why,
            other => unreachable!("{other:?} should be open"),
        }
    }

    fn judge(recorded: &RecordedChange, look: &Look) -> Verdict {
        Settling::default().look(recorded, look)
    }

    #[test]
    fn pools_and_blocks_of_a_real_chain_are_read() {
        let pool = parse_pool(&answer!("pool")).unwrap();
        assert!(pool.complete && pool.transactions.len() == 4);
        assert_eq!(pool.state(&pool.transactions[3]), Holds);
        assert_eq!(pool.state(TRANSACTION), Clear);
        // Only a part is listed: what is not in it may still be there.
        let cut = parse_pool(&answer!("pool-cut")).unwrap();
        assert_eq!(cut.state(&pool.transactions[0]), Holds);
        assert_eq!(cut.state(&pool.transactions[3]), Unreadable);
        let empty = parse_pool(&answer!("pool-empty")).unwrap();
        assert_eq!(empty, Pool { complete: true, transactions: Vec::new() });

        assert_eq!(parse_block_transactions(&answer!("block-6")).unwrap(), [TRANSACTION]);
        assert!(parse_block_transactions(&answer!("block-7")).unwrap().is_empty());
    }

    #[test]
    fn an_answer_without_a_pool_or_a_block_is_an_error_and_not_an_empty_one() {
        for answer in [Value::Null, serde_json::json!({"block": null}), answer!("commit-7")] {
            assert!(parse_block_transactions(&answer).is_err());
            assert!(parse_pool(&answer).is_err());
        }
    }

    #[test]
    fn a_change_is_confirmed_by_the_set_two_blocks_later_and_not_before() {
        for set in [None, Some((5, 20)), Some((7, 20))] {
            let why = why(judge(&recorded(), &included(set, &[Clear, Clear])));
            assert!(why.contains("block 6") && why.contains("block 8"), "{why}");
        }
        for height in [8, 9, 100] {
            assert_eq!(
                judge(&recorded(), &included(Some((height, 20)), &[Clear, Ended])),
                Verdict::Confirmed { height }
            );
        }
    }

    #[test]
    fn a_removal_is_confirmed_by_the_validators_absence() {
        let removal = RecordedChange { power: 0, ..recorded() };
        let confirmed = Verdict::Confirmed { height: 8 };
        assert_eq!(judge(&removal, &included(Some((8, 0)), &[Clear])), confirmed);
        let without = Verdict::WithoutEffect { height: 8 };
        assert_eq!(judge(&removal, &included(Some((8, 20)), &[Clear])), without);
    }

    #[test]
    fn an_included_transaction_that_the_set_does_not_show_had_no_effect() {
        for power in [0, 10, 21] {
            assert_eq!(
                judge(&recorded(), &included(Some((8, power)), &[Clear])),
                Verdict::WithoutEffect { height: 8 }
            );
        }
    }

    #[test]
    fn an_included_transaction_is_open_while_a_node_holds_it_or_may() {
        for power in [20, 10] {
            let look = included(Some((8, power)), &[Clear, Holds, Unreadable, Ended]);
            let why = why(judge(&recorded(), &look));
            assert!(why.contains("net-v-1") && why.contains("net-v-2"), "{why}");
            assert!(!why.contains("net-v-0") && !why.contains("net-v-3"), "{why}");
        }
    }

    #[test]
    fn a_transaction_that_was_seen_in_a_block_stays_there() {
        let mut settling = Settling::default();
        settling.look(&recorded(), &included(None, &[Clear]));
        for head in [10, 100] {
            let verdict = settling.look(&recorded(), &look_at(head, true, &[Clear]));
            assert!(why(verdict).contains("block 6 holds it"));
        }
    }

    #[test]
    fn a_transaction_is_given_up_after_twenty_blocks_in_which_no_node_held_it() {
        let mut settling = Settling::default();
        for head in 10..30 {
            let verdict = settling.look(&recorded(), &look_at(head, true, &[Ended, Clear]));
            let why = why(verdict);
            assert!(why.contains(&format!("of which {} have passed", head - 10)), "{why}");
        }
        let verdict = settling.look(&recorded(), &look_at(30, true, &[Ended, Clear]));
        assert_eq!(verdict, Verdict::Impossible);
    }

    #[test]
    fn a_head_that_stands_still_proves_nothing() {
        let mut settling = Settling::default();
        for head in [10, 10, 10, 29, 9, 29] {
            why(settling.look(&recorded(), &look_at(head, true, &[Clear])));
        }
    }

    #[test]
    fn nothing_is_given_up_while_the_process_it_was_sent_to_runs() {
        let mut settling = Settling::default();
        for head in [10, 100, 1000] {
            let why = why(settling.look(&recorded(), &look_at(head, false, &[Clear, Clear])));
            assert!(why.contains("net-v-0"), "{why}");
        }
        // Blocks count from its end on.
        for head in [1010, 1029] {
            why(settling.look(&recorded(), &look_at(head, true, &[Clear, Clear])));
        }
        let verdict = settling.look(&recorded(), &look_at(1030, true, &[Clear, Clear]));
        assert_eq!(verdict, Verdict::Impossible);
    }

    #[test]
    fn counting_begins_anew_when_a_node_holds_it_again_or_cannot_be_read() {
        for state in [Holds, Unreadable] {
            let mut settling = Settling::default();
            why(settling.look(&recorded(), &look_at(10, true, &[Clear, Clear])));
            let verdict = settling.look(&recorded(), &look_at(29, true, &[Clear, state]));
            assert!(why(verdict).contains("net-v-1"));
            why(settling.look(&recorded(), &look_at(30, true, &[Clear, Clear])));
            why(settling.look(&recorded(), &look_at(49, true, &[Clear, Clear])));
            let verdict = settling.look(&recorded(), &look_at(50, true, &[Clear, Clear]));
            assert_eq!(verdict, Verdict::Impossible);
        }
    }

    #[test]
    fn silence_of_all_nodes_is_no_proof() {
        for pools in [&[][..], &[Ended, Ended]] {
            let mut settling = Settling::default();
            for head in [10, 100] {
                why(settling.look(&recorded(), &look_at(head, true, pools)));
            }
        }
    }
}
