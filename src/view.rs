//! Live numbers about networks, kept in memory: what `kubectl bsn status` and the metrics show.
//!
//! They are never written to the API server, since they change with every block.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bsn_core::budget::{DrainWaits, Shares};
use bsn_core::evidence::GuardReport;
use bsn_core::membership::{Decision, Desired, Observed, Policy};
use bsn_core::names::NodeName;
use serde::{Deserialize, Serialize};

use crate::evidence::route::Via;

/// Namespace and name of a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetworkKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for NetworkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a chain makes blocks, as shown to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liveness {
    /// The head advances.
    Live,
    /// It has not advanced for longer than five blocks take.
    Standing,
    /// It stands, and every node that answers has stored a block that its application cannot apply.
    Frozen,
    /// No engine has answered for as long: whether blocks are made is not known.
    Silent,
    /// Not watched for long enough to say.
    Unknown,
}

/// A network at this moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkView {
    /// Id of the chain.
    pub chain_id: String,
    /// Nodes may start: the genesis is fixed and published.
    pub formed: bool,
    /// Highest block any node reported; 0 = none.
    pub head: u64,
    /// Whether the head advances.
    pub liveness: Liveness,
    /// How long ago the head advanced, in seconds, on the operator's clock.
    pub head_age_seconds: f64,
    /// Average time between blocks in seconds, once two were seen.
    pub block_interval_seconds: Option<f64>,
    /// Power that must agree on a block, and the sum of all powers.
    pub quorum_power: u64,
    /// Sum of the validators' powers.
    pub total_power: u64,
    /// How many validators may be down before the chain stops.
    pub margin: usize,
    /// How many more may be lost, besides those that are not seen to sign; 0 = none, or blocks need more than
    /// is left; `None` = who votes and signs is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin_left: Option<usize>,
    /// The nodes, by name.
    pub nodes: Vec<NodeView>,
    /// Voters of other owners, by address. They count like any other, and nothing is ever done about them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignView>,
}

/// A voter of another owner at this moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ForeignView {
    /// Address of its consensus key.
    pub address: String,
    /// Its voting power.
    pub voting_power: u64,
    /// How many of the newest final blocks it signed, as our nodes know the chain.
    pub signed: u64,
    /// It is seen to sign now. Nothing else is known of it: false is not "down".
    pub signs: bool,
}

/// A node at this moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// The cluster it is in; empty = the hub.
    #[serde(default)]
    pub cluster: String,
    /// `Validator` or `FullNode`.
    pub role: String,
    /// Seconds since its gateway last answered; `None` = never.
    pub evidence_age_seconds: Option<f64>,
    /// The way by which it was asked last; `None` = none has led to it yet.
    #[serde(default)]
    pub via: Option<Via>,
    /// Why there are no numbers now, if there are none.
    pub problem: Option<String>,
    /// Height of its newest block.
    pub height: Option<u64>,
    /// Blocks behind the head.
    pub lag: Option<u64>,
    /// Follows the head.
    pub in_sync: bool,
    /// Connected peers.
    pub peers: Option<u64>,
    /// Voting power; 0 = does not vote.
    pub voting_power: Option<u64>,
    /// How many of the newest final blocks it signed, as *other* nodes know the chain; `None` = nobody
    /// could be asked, or it does not vote.
    pub signed: Option<u64>,
    /// The engine's version.
    pub version: Option<String>,
    /// Hash of the template its pod was made from.
    pub template_hash: Option<String>,
    /// The guard's word on the start of its pod.
    pub guard: Option<GuardReport>,
    /// When the certificate it serves ends (RFC 3339).
    pub certificate_ends: Option<String>,
    /// Version of the agents in its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<String>,
}

/// What the planner was told of a network, and what it said: for `kubectl bsn plan` and `explain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MembershipView {
    /// What is described.
    pub desired: Desired,
    /// What is known.
    pub observed: Observed,
    /// How carefully, and the consents given.
    pub policy: Policy,
    /// The answer.
    pub decision: Decision,
    /// For how long it has been the same answer, in seconds.
    pub for_seconds: u64,
    /// Hash of what is described of how a node runs, by set.
    pub described: BTreeMap<String, String>,
    /// The same of what each node runs.
    pub in_force: BTreeMap<NodeName, InForce>,
    /// What stands before the engines' default images, if anything: it is part of those hashes.
    pub image_prefix: String,
    /// Index of each set's next node.
    pub next_index: BTreeMap<String, u32>,
    /// Sizes of the disks described, by set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<String, String>,
    /// What drains may take of it; `None` = it is on the hub alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<DisruptionView>,
    /// What is allowed, and not wise.
    pub warnings: Vec<String>,
}

/// What drains may take of a network that spans clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DisruptionView {
    /// Validators that may be evicted at once, by cluster (empty = the hub), as recorded.
    pub shares: Shares,
    /// Drains that cannot go on yet.
    pub waits: Vec<DrainWaits>,
}

/// What a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// Hash of all that makes it restart.
    pub inputs: String,
    /// Hash of the user's own application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
}

/// All networks' views, shared between the observer that writes them and those who show them.
#[derive(Debug, Clone, Default)]
pub struct Views(Arc<RwLock<BTreeMap<NetworkKey, NetworkView>>>);

impl Views {
    /// Replaces a network's view.
    pub fn put(&self, key: NetworkKey, view: NetworkView) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, view);
    }

    /// Drops all networks that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&NetworkKey) -> bool) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }

    /// One network's view.
    pub fn get(&self, key: &NetworkKey) -> Option<NetworkView> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// All views.
    pub fn all(&self) -> BTreeMap<NetworkKey, NetworkView> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What was decided last about each network, shared between the controller and those who show it.
#[derive(Debug, Clone, Default)]
pub struct Memberships(Arc<RwLock<BTreeMap<NetworkKey, MembershipView>>>);

impl Memberships {
    /// Replaces a network's view.
    pub fn put(&self, key: NetworkKey, view: MembershipView) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, view);
    }

    /// One network's view.
    pub fn get(&self, key: &NetworkKey) -> Option<MembershipView> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// What drains may take of the networks that span clusters.
    pub fn disruptions(&self) -> BTreeMap<NetworkKey, DisruptionView> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let spanning = all.iter().filter_map(|(key, view)| Some((key, view.disruption.as_ref()?)));
        spanning.map(|(key, disruption)| (key.clone(), disruption.clone())).collect()
    }

    /// Forgets a network.
    pub fn remove(&self, key: &NetworkKey) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
