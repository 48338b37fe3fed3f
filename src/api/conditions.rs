//! Condition types and reasons, each defined once. They are part of the API.
//!
//! `Ready`, `Reconciling` and `Stalled` are those of kstatus (`sigs.k8s.io/cli-utils`), by which GitOps tools wait.
//! It says *failed* where `Stalled` is true, *current* where only `Ready` is, *in progress* otherwise; of two that
//! are true, the first in the list counts, so `Reconciling` and `Stalled` are never true together.
//! `testkit/lab/go/gitops` holds us to it with the library itself.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The object is as described and works.
pub const READY: &str = "Ready";
/// The operator is working towards the description.
pub const RECONCILING: &str = "Reconciling";
/// Nothing will happen until a person helps.
pub const STALLED: &str = "Stalled";
/// Blocks advance.
pub const CHAIN_LIVE: &str = "ChainLive";
/// The nodes are those of the description.
pub const MEMBERSHIP_CONVERGED: &str = "MembershipConverged";
/// All certificates are valid for longer than their renewal time.
pub const CERTIFICATES_VALID: &str = "CertificatesValid";
/// The operator leaves the object alone, on request.
pub const PAUSED: &str = "Paused";
/// All clusters in which the network has nodes can be used. Only there if there are any besides the hub.
pub const CLUSTERS_REACHABLE: &str = "ClustersReachable";
/// Drains of machines wait until the chain can miss the voters there. It says nothing about the network, so `Ready` does
/// not follow from it. Only there if the network spans clusters.
pub const DRAINS_WAITING: &str = "DrainsWaiting";
/// A node's disk has the size described. It says nothing about the node, which runs on whatever it says. Only there once
/// the disk was to grow.
pub const DISK_AS_DESCRIBED: &str = "DiskAsDescribed";
/// The cluster's API server answers, and is the one it should be.
pub const REACHABLE: &str = "Reachable";
/// The operator has all rights it needs in the cluster.
pub const RIGHTS_SUFFICIENT: &str = "RightsSufficient";
/// The machines of the cluster can run the image of the agents, wherever nodes needed it so far.
pub const AGENT_IMAGE_AVAILABLE: &str = "AgentImageAvailable";

/// The types that a `BsnNetwork` may have.
pub const NETWORK_TYPES: [&str; 9] = [
    READY,
    RECONCILING,
    STALLED,
    CHAIN_LIVE,
    MEMBERSHIP_CONVERGED,
    CERTIFICATES_VALID,
    CLUSTERS_REACHABLE,
    DRAINS_WAITING,
    PAUSED,
];

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident),* $(,)?) => {
        /// Why a condition is as it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name),* }

        impl Reason {
            /// The reason as it is written in a condition, an event and a metric.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            /// What it means, in one sentence or two.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),* }
            }

            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

reasons! {
    /// All is as described.
    AsDescribed,
    /// The chain is being formed: keys and genesis are made.
    Forming,
    /// Nodes are being made or are starting.
    NodesStarting,
    /// A node runs but trails the head of the chain.
    CatchingUp,
    /// The pod of a node is not ready.
    PodNotReady,
    /// The gateway of a node does not answer.
    NodeSilent,
    /// It is not known yet under which address other clusters reach a node; the last one stays published.
    AddressPending,
    /// Blocks advance.
    BlocksAdvance,
    /// The head of the chain has not moved for longer than five blocks take, and ten seconds at least.
    HeadStands,
    /// No engine answers: whether blocks are made is not known.
    NobodyAnswers,
    /// Every node has stored a block that it cannot apply; the chain will not go on by itself.
    ChainFrozen,
    /// The chain has not been watched for long enough to say.
    NotYetObserved,
    /// Certificates are valid.
    CertificatesCurrent,
    /// A certificate ends before it could be renewed in time, or has ended.
    CertificateExpiring,
    /// The description is not valid.
    InvalidSpec,
    /// The object does not parse as this version of the API.
    Unparsable,
    /// `spec.paused` is set.
    PausedByUser,
    /// `spec.paused` is not set.
    NotPaused,
    /// An object of a name we need exists and is not ours.
    NameTaken,
    /// The API server does not accept an object that follows from the description.
    ObjectRefused,
    /// A key that was made once is missing or has changed; it is never made again.
    KeyLost,
    /// A key belongs to another node already.
    KeyUsedTwice,
    /// A Secret with keys that an owner brings is missing.
    KeysMissing,
    /// A Secret with keys that an owner brings does not hold what it should.
    KeysRefused,
    /// A key that an owner brings signs elsewhere, or may.
    KeySignsElsewhere,
    /// A node was made with other keys than the description names now.
    KeysFixed,
    /// A disk that was used is missing or was replaced by another.
    DiskLost,
    /// The anchor is missing, damaged or belongs to another hub or chain.
    AnchorRefused,
    /// The genesis does not follow from the anchor, or is not that of the chain to join.
    GenesisRefused,
    /// The genesis of the chain to join is not where the description says.
    GenesisMissing,
    /// The pod template in force is missing.
    TemplateLost,
    /// Nodes restart one by one, so that a changed description takes effect.
    Restarting,
    /// The members of the chain are being changed, one step at a time.
    Changing,
    /// The next step waits: a gate is closed, and time or somebody's recovery opens it.
    GateClosed,
    /// The next step needs a person's consent.
    ConsentNeeded,
    /// The next step needs a person to do something.
    StepRefused,
    /// The engine may not start on the disk it was given.
    DiskRefused,
    /// A disk grows to the size described; the node runs on.
    DiskGrowing,
    /// A volume has grown, the file system on it not yet.
    FileSystemPending,
    /// A disk cannot grow to the size described.
    DiskGrowthRefused,
    /// The network a node belongs to does not exist.
    NetworkMissing,
    /// A container of a pod cannot be started, or ends again and again.
    PodFailing,
    /// The hub came from a backup, or was built anew: an anchor beside the nodes knows more than it does.
    HubOlder,
    /// All clusters of the network can be used.
    ClustersAnswer,
    /// No drain of a machine waits.
    NoDrainWaits,
    /// What the chain can miss, and drains may take, is used up or on its way to another cluster.
    NothingToSpare,
    /// No cluster of this name is known.
    ClusterMissing,
    /// The cluster answers.
    ClusterAnswers,
    /// The operator has begun to connect to the cluster.
    Connecting,
    /// The kubeconfig of a cluster is missing.
    KubeconfigMissing,
    /// The kubeconfig of a cluster is none, or holds what the operator does not accept.
    KubeconfigRefused,
    /// Nothing at the cluster's address takes the connection.
    ClusterUnreachable,
    /// The cluster's address takes connections or packets, but no answer comes in time.
    ClusterHangs,
    /// The cluster's API server answers, but has a failure of its own.
    ClusterFailing,
    /// Something answers at the cluster's address that is no Kubernetes.
    NotKubernetes,
    /// The certificate at the cluster's address is not one that the kubeconfig's authority issued for it.
    CertificateUntrusted,
    /// The cluster does not accept the credentials in the kubeconfig: they ended or were revoked.
    CredentialsRefused,
    /// The operator has all rights it needs there.
    RightsGranted,
    /// The address leads to another cluster than before.
    AnotherCluster,
    /// The operator lacks rights there.
    RightsMissing,
    /// A namespace does not exist in the cluster.
    NamespaceMissing,
    /// Another `BsnCluster`, or the hub, is the same cluster.
    ClusterTwice,
    /// Whether the agents' image can be run there is not known yet.
    ImageNotProved,
    /// The agents' image was run there.
    ImageProved,
    /// The agents' image cannot be pulled there, or not run.
    AgentImageUnavailable,
}

impl Reason {
    /// Whether it may end without a person: a cluster that does not answer now may answer again,
    /// and what is applied together with the object may come after it.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::Connecting
                | Self::ClusterUnreachable
                | Self::ClusterHangs
                | Self::ClusterFailing
                | Self::ImageNotProved
                | Self::GenesisMissing
        )
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A condition as Kubernetes has it.
pub type Raw = Condition;

/// Longest message of a condition in characters (the API allows 32768; people read less).
const MAX_MESSAGE: usize = 1024;

/// A condition's new state, before it is compared with the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Type of the condition.
    pub kind: &'static str,
    /// `None` = unknown.
    pub status: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// For people, with the next step where there is one.
    pub message: String,
}

impl State {
    /// A condition's state.
    pub fn new(
        kind: &'static str,
        status: impl Into<Option<bool>>,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, status: status.into(), reason, message: message.into() }
    }
}

/// Finds a condition by type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Merges new states into existing conditions. The transition time changes only with the status, and
/// the result equals `existing` when nothing changed, so that no write follows.
pub fn merge(
    existing: &[Condition],
    states: &[State],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut merged: Vec<Condition> = states
        .iter()
        .map(|state| {
            let status = match state.status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let old = find(existing, state.kind);
            let since = old
                .filter(|old| old.status == status)
                .map_or(Time(now), |old| old.last_transition_time.clone());
            Condition {
                type_: state.kind.to_owned(),
                status: status.to_owned(),
                reason: state.reason.as_str().to_owned(),
                message: state.message.chars().take(MAX_MESSAGE).collect(),
                last_transition_time: since,
                observed_generation: generation,
            }
        })
        .collect();
    // Types written by a newer or older version stay as they are.
    for old in existing {
        if find(&merged, &old.type_).is_none() {
            merged.push(old.clone());
        }
    }
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

/// A condition that changed its status, if it did so from something known.
pub fn transition<'a>(
    old: &[Condition],
    new: &'a [Condition],
    kind: &str,
) -> Option<&'a Condition> {
    let now = find(new, kind)?;
    let before = find(old, kind);
    let quiet = before.is_none() && now.status != "True";
    (!quiet && before.map(|before| &before.status) != Some(&now.status)).then_some(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let ready = |status| vec![State::new(READY, status, Reason::AsDescribed, "m")];
        let first = merge(&[], &ready(true), Some(1), at(10));
        assert_eq!(merge(&first, &ready(true), Some(1), at(20)), first);
        let flipped = merge(&first, &ready(false), Some(1), at(30));
        assert_eq!(flipped[0].last_transition_time, Time(at(30)));
        assert_eq!(flipped[0].status, "False");
    }

    #[test]
    fn unknown_types_of_other_versions_are_kept() {
        let state = State::new("Other", true, Reason::AsDescribed, "m");
        let old = merge(&[], &[state], None, at(1));
        let new = merge(&old, &[State::new(READY, None, Reason::NotYetObserved, "")], None, at(2));
        assert_eq!(new.len(), 2);
        assert_eq!(find(&new, READY).unwrap().status, "Unknown");
    }
}
