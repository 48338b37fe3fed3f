//! Changes members of a `CometBFT` chain, and reads back what became of it: through the gateways of its nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bsn_core::engine::cometbft::keys::PublicKey;
use bsn_core::engine::cometbft::settle::{
    Look, Pool, PoolState, parse_block_transactions, parse_pool,
};
use bsn_core::engine::cometbft::signing::parse_decided_at;
use bsn_core::engine::cometbft::status::{is_catching_up, parse_heights, parse_powers};
use bsn_core::engine::cometbft::transaction::check_change;
use bsn_core::engine::cometbft::verify::verify;
use bsn_core::membership::model::Gate;
use bsn_core::names::NodeName;
use bsn_core::steps::RecordedChange;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cluster::{Caches, Clusters};
use crate::evidence::client::{EvidenceError, post_call};
use crate::evidence::poller::{NetworkTargets, Target};
use crate::evidence::route::Ways;
use crate::view::NetworkKey;

/// Longest one call may take; answers of whole blocks take longer than evidence.
const CALL_DEADLINE: Duration = Duration::from_secs(2);
/// Nodes asked at once.
const CONCURRENCY: usize = 8;
/// Blocks read in one look, so that a look ends soon; the next one goes on.
const BLOCKS_PER_LOOK: u64 = 50;
/// Largest page of validators and of unconfirmed transactions.
const PER_PAGE: usize = 100;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The node is not one of the network's.
    #[error("{0} is not asked")]
    NoSuchNode(NodeName),
    /// Its gateway.
    #[error(transparent)]
    Gateway(#[from] EvidenceError),
    /// The engine answered with an error.
    #[error("the engine answered {method} with: {message}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// Its words.
        message: String,
    },
    /// It reads old blocks.
    #[error("{0} catches up: what it knows is of another time")]
    CatchesUp(NodeName),
    /// An answer that is not understood.
    #[error("the engine's answer to {0} is not understood")]
    Strange(&'static str),
}

#[derive(Deserialize)]
struct Envelope {
    result: Option<Value>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    message: String,
    #[serde(default)]
    data: String,
}

/// Why a change is not sent now, by a live read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The gate it stands for.
    pub gate: Gate,
    /// What is so.
    pub why: String,
}

/// What an engine said to a transaction it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// 0 = taken into its pool.
    pub code: u64,
    /// Why not, if it says.
    pub log: String,
}

/// Blocks read in search of a transaction: what was read once is not read again.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    transaction: String,
    upto: u64,
    included_at: Option<u64>,
}

impl Scan {
    /// The block that holds the transaction, if it was found.
    pub fn found(&self) -> Option<u64> {
        self.included_at
    }
}

/// One network's engines.
pub struct Chain<'a> {
    /// Its nodes.
    pub targets: &'a NetworkTargets,
    /// Their addresses.
    pub caches: &'a Caches,
    /// The clusters they are in.
    pub clusters: &'a Clusters,
    /// The ways that worked last.
    pub ways: &'a Ways,
    /// Which network.
    pub key: &'a NetworkKey,
}

impl Chain<'_> {
    async fn call(
        &self,
        node: &NodeName,
        method: &'static str,
        params: Value,
    ) -> Result<Value, CallError> {
        let mut nodes = self.targets.nodes.iter();
        let target = nodes
            .find(|target| target.name == node.as_str())
            .ok_or_else(|| CallError::NoSuchNode(node.clone()))?;
        self.call_target(target, method, params).await
    }

    async fn call_target(
        &self,
        target: &Target,
        method: &'static str,
        params: Value,
    ) -> Result<Value, CallError> {
        let gateway = self.ways.to(self.caches, self.clusters, self.key, target);
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (body, via) = post_call(&gateway, call.to_string(), CALL_DEADLINE).await?;
        self.ways.worked(self.key, &target.name, via);
        match serde_json::from_slice(&body) {
            Ok(Envelope { result: Some(result), error: None }) => Ok(result),
            Ok(Envelope { error: Some(error), .. }) => {
                let message = format!("{} {}", error.message, error.data).trim().to_owned();
                Err(CallError::Refused { method, message })
            }
            _ => Err(CallError::Strange(method)),
        }
    }

    /// Gives a transaction to a node, and does not wait for a block.
    pub async fn submit(
        &self,
        entry: &NodeName,
        transaction: &str,
    ) -> Result<Submitted, CallError> {
        let method = "broadcast_tx_sync";
        let answer = self.call(entry, method, json!({"tx": transaction})).await?;
        let code = answer.get("code").and_then(Value::as_u64).ok_or(CallError::Strange(method))?;
        let log = answer.get("log").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Submitted { code, log })
    }

    /// Reads live whether a change is safe to send: all nodes answer but those in `excused`, the node it is to be
    /// sent to knows of no other change that its set of voters does not show yet, and the engine is not known
    /// to stop over it.
    pub async fn check_before_sending(
        &self,
        entry: &NodeName,
        key: &PublicKey,
        power: u64,
        excused: &BTreeSet<NodeName>,
    ) -> Result<(), Obstacle> {
        let silent = self.silent(excused).await;
        if !silent.is_empty() {
            // What becomes of the change could not be proved while nobody knows what these hold.
            let why = format!("{} does not answer; it has to recover first", silent.join(", "));
            return Err(Obstacle { gate: Gate::OthersHealthy, why });
        }
        let said = |error: CallError| Obstacle {
            gate: Gate::EvidenceIsFresh,
            why: format!("{entry} cannot be asked: {error}"),
        };
        let head = self.head_of(entry).await.map_err(said)?;
        let params = json!({"height": head.to_string()});
        let results = self.call(entry, "block_results", params).await.map_err(said)?;
        let updates = results.get("validator_updates").and_then(Value::as_array);
        if updates.is_some_and(|updates| !updates.is_empty()) {
            let why = format!("block {head} decided another change of members");
            return Err(Obstacle { gate: Gate::NoPendingChange, why });
        }
        // The set for the block after the head: what blocks before the head decided is in it.
        let powers = self.powers(entry, None).await.map_err(said)?;
        check_change(&powers, key, power)
            .map_err(|guard| Obstacle { gate: Gate::EngineAllowsChange, why: guard.to_string() })
    }

    /// Names of the nodes whose engine does not answer, but for those in `excused`.
    async fn silent(&self, excused: &BTreeSet<NodeName>) -> Vec<String> {
        let ask = |node: NodeName| {
            async move { self.call(&node, "health", json!({})).await.map(drop) }.boxed()
        };
        let answers = self.ask_all(ask).await.into_iter();
        answers
            .filter(|(node, answer)| answer.is_err() && !excused.contains(node))
            .map(|(node, _)| node.to_string())
            .collect()
    }

    /// Powers by address, as one node knows them at a height; `None` = the newest it can tell.
    pub async fn powers(
        &self,
        node: &NodeName,
        height: Option<u64>,
    ) -> Result<BTreeMap<String, u64>, CallError> {
        let mut powers = BTreeMap::new();
        for page in self.validators(node, height).await? {
            let strange = |_| CallError::Strange("validators");
            powers.extend(parse_powers(&page).map_err(strange)?.0);
        }
        Ok(powers)
    }

    /// All pages of the validators at one height.
    async fn validators(
        &self,
        node: &NodeName,
        height: Option<u64>,
    ) -> Result<Vec<Value>, CallError> {
        let method = "validators";
        let mut params = json!({"per_page": PER_PAGE.to_string()});
        if let Some(height) = height {
            params["height"] = json!(height.to_string());
        }
        let first = self.call(node, method, params.clone()).await?;
        let (_, total) = parse_powers(&first).map_err(|_| CallError::Strange(method))?;
        params["height"] = first.get("block_height").cloned().unwrap_or_default();
        let mut pages = vec![first];
        for page in 2..=total.div_ceil(PER_PAGE) {
            params["page"] = json!(page.to_string());
            pages.push(self.call(node, method, params.clone()).await?);
        }
        Ok(pages)
    }

    /// When a block was decided, by its voters' clocks; `None` = no node tells.
    pub async fn decided_at(&self, height: u64) -> Option<Timestamp> {
        for target in &self.targets.nodes {
            let params = json!({"height": height.to_string()});
            if let Ok(commit) = self.call_target(target, "commit", params).await {
                return parse_decided_at(&commit);
            }
        }
        None
    }

    /// Whether a node still counts a key among the voters, by a live read of every node that answers and does not
    /// read old blocks, which would tell of another time. `None` = nobody answered.
    pub async fn still_votes(&self, address: &str) -> Option<bool> {
        let ask = |node: NodeName| {
            let powers = async move {
                let status = self.call(&node, "status", json!({})).await?;
                if is_catching_up(&status) {
                    return Err(CallError::CatchesUp(node));
                }
                self.powers(&node, None).await
            };
            powers.boxed()
        };
        let answers = self.ask_all(ask).await;
        let answers: Vec<_> = answers.into_values().filter_map(Result::ok).collect();
        let votes = answers.iter().any(|powers| powers.contains_key(address));
        (!answers.is_empty()).then_some(votes)
    }

    async fn ask_all<'b, T: Send + 'b>(
        &'b self,
        ask: impl Fn(NodeName) -> BoxFuture<'b, Result<T, CallError>>,
    ) -> BTreeMap<NodeName, Result<T, CallError>> {
        let names = self.targets.nodes.iter().map(|node| NodeName::from_object(&node.name));
        let mut asked: Vec<BoxFuture<'b, (NodeName, Result<T, CallError>)>> = Vec::new();
        for name in names {
            let answer = ask(name.clone());
            asked.push(async move { (name, answer.await) }.boxed());
        }
        futures::stream::iter(asked).buffer_unordered(CONCURRENCY).collect().await
    }

    /// Looks for what became of a transaction. `ended` = nodes whose engine does not run, by their own API
    /// servers; `entry_ended` = the process it was given to has ended.
    pub async fn look(
        &self,
        recorded: &RecordedChange,
        ended: &BTreeSet<NodeName>,
        entry_ended: bool,
        scan: &mut Scan,
    ) -> Look {
        let transaction = recorded.transaction.as_str();
        let reads = self.ask_all(|node| async move { self.pool(&node).await }.boxed()).await;
        let mut pools = BTreeMap::new();
        let mut heights: BTreeMap<&NodeName, u64> = BTreeMap::new();
        for (node, read) in &reads {
            let state = match read {
                Ok((pool, height)) => {
                    heights.insert(node, *height);
                    pool.state(transaction)
                }
                Err(_) if ended.contains(node) => PoolState::Ended,
                Err(error) => {
                    tracing::debug!(%node, %error, "its pool cannot be read");
                    PoolState::Unreadable
                }
            };
            pools.insert(node.clone(), state);
        }
        let newest = heights.iter().max_by_key(|(_, height)| **height);
        let head = newest.map_or(0, |(_, height)| *height);
        if let Some((node, _)) = newest {
            self.scan(node, recorded, head, scan).await;
        }
        let set = match scan.included_at {
            // The commit of a block is final once the next one is there.
            Some(included) if head >= included + 3 => {
                self.verified_set(included + 2, &heights).await
            }
            _ => None,
        };
        // Pools were read before blocks, and a block is searched before it counts as the head.
        Look { head: scan.upto, included_at: scan.included_at, set, pools, entry_ended }
    }

    /// Whether a node that answers has a block after `height`, and which.
    pub async fn is_beyond(&self, height: u64) -> Option<String> {
        let ask = |node: NodeName| async move { self.head_of(&node).await }.boxed();
        let answers = self.ask_all(ask).await;
        let beyond = answers.iter().find_map(|(node, answer)| match answer {
            Ok(head) if *head > height => Some((node, head)),
            _ => None,
        });
        beyond.map(|(node, head)| format!("{node} has block {head}"))
    }

    /// A node's pool, and its height.
    async fn pool(&self, node: &NodeName) -> Result<(Pool, u64), CallError> {
        let limit = json!({"limit": PER_PAGE.to_string()});
        let pool = self.call(node, "unconfirmed_txs", limit).await?;
        let pool = parse_pool(&pool).map_err(|_| CallError::Strange("unconfirmed_txs"))?;
        Ok((pool, self.head_of(node).await?))
    }

    /// A node's newest block.
    async fn head_of(&self, node: &NodeName) -> Result<u64, CallError> {
        let status = self.call(node, "status", json!({})).await?;
        let (_, head) = parse_heights(&status).map_err(|_| CallError::Strange("status"))?;
        Ok(head)
    }

    /// Reads blocks that were not read yet.
    async fn scan(&self, node: &NodeName, recorded: &RecordedChange, head: u64, scan: &mut Scan) {
        if scan.transaction != recorded.transaction {
            *scan = Scan {
                transaction: recorded.transaction.clone(),
                upto: recorded.after_height,
                included_at: None,
            };
        }
        let last = head.min(scan.upto + BLOCKS_PER_LOOK);
        while scan.included_at.is_none() && scan.upto < last {
            let height = scan.upto + 1;
            let block = self.call(node, "block", json!({"height": height.to_string()})).await;
            let Some(transactions) = block.ok().and_then(|b| parse_block_transactions(&b).ok())
            else {
                tracing::debug!(%node, height, "the block cannot be read; tried again");
                return;
            };
            if transactions.contains(&recorded.transaction) {
                scan.included_at = Some(height);
            }
            scan.upto = height;
        }
    }

    /// The voters at a height, verified, if all nodes that are that far say the same; two at least, where two
    /// are.
    async fn verified_set(
        &self,
        height: u64,
        heights: &BTreeMap<&NodeName, u64>,
    ) -> Option<(u64, BTreeMap<String, u64>)> {
        let chain = &self.targets.chain_id;
        let able: Vec<&NodeName> =
            heights.iter().filter(|(_, head)| **head > height).map(|(node, _)| *node).collect();
        let mut sets = BTreeSet::new();
        let mut said = 0;
        for node in &able {
            let read = async {
                let params = json!({"height": height.to_string()});
                let commit = self.call(node, "commit", params).await?;
                Ok::<_, CallError>((commit, self.validators(node, Some(height)).await?))
            };
            match read.await {
                Ok((commit, pages)) => match verify(chain, &commit, &pages) {
                    Ok(verified) => {
                        said += 1;
                        sets.insert(verified.validators);
                    }
                    // One that tells what cannot be true is no reason to believe the others less.
                    Err(error) => {
                        tracing::warn!(%node, height, %error, "its word on the voters is not proved");
                        return None;
                    }
                },
                Err(error) => tracing::debug!(%node, height, %error, "not asked"),
            }
        }
        let enough = self.targets.nodes.len().min(2);
        match (sets.len(), said >= enough) {
            (1, true) => sets.pop_first().map(|set| (height, set)),
            _ => None,
        }
    }
}
