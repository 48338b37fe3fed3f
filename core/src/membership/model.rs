//! What the planner is told, and how it says what to do: plain data, no behaviour.
//!
//! Everything observed carries its *age*, the time since this operator received it on its own monotonic
//! clock. Two machines' clocks are never compared, and the planner needs no clock.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::names::NodeName;
use crate::quorum::Quorum;

/// Name of a ledger: a network's one chain, or one of its channels.
pub type LedgerName = String;
/// How a ledger names a member: an address or a fingerprint of its consensus key.
pub type MemberKey = String;

/// A network as the user wants it, defaults filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Desired {
    /// Its node sets, in the order of the file.
    pub sets: Vec<DesiredSet>,
    /// Nothing new is begun.
    #[serde(default)]
    pub paused: bool,
}

/// A node set as the user wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DesiredSet {
    /// Its name.
    pub name: String,
    /// How many nodes.
    pub replicas: u32,
    /// Ledgers on which its nodes vote; none = they observe.
    #[serde(default)]
    pub votes_on: BTreeSet<LedgerName>,
    /// Voting power of each; 1 where the engine has no weights.
    #[serde(default = "one")]
    pub power: u64,
    /// Nodes that must go, whatever the count.
    #[serde(default)]
    pub retire: BTreeSet<NodeName>,
    /// The member cluster its nodes are made in; empty = the hub.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster: String,
}

fn one() -> u64 {
    1
}

/// How carefully, and what a person allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Policy {
    /// Evidence older than this, in seconds, says nothing.
    pub fresh_seconds: u64,
    /// A node is caught up when it trails the head by at most this many blocks …
    pub max_lag_blocks: u64,
    /// … and has done so for this many seconds.
    pub stable_seconds: u64,
    /// A newcomer votes when it signed this many of the last 12 blocks.
    pub signed_of_window: u64,
    /// Voters that must be spare beyond quorum while one restarts.
    pub reserve: usize,
    /// A restart may stop the chain when no quorum could be left in any case.
    pub allow_downtime: bool,
    /// The operator changes members itself; else the chain's own governance does, and it waits for that.
    pub submits: bool,
    /// A voter that is down for good is replaced without asking.
    pub replace_dead: bool,
    /// A node that is down is restarted as a cure after this many seconds; before, its kubelet tries, and its
    /// guard may wait for a minute.
    pub cure_seconds: u64,
    /// A voter must be down, or silent since its entry, for this many seconds before it is replaced or
    /// taken out again.
    pub grace_seconds: u64,
    /// Consents that a person gave and that were not used yet.
    pub consents: BTreeSet<String>,
    /// A switch happens this many blocks after it is begun: three times as many as it takes to restart all nodes
    /// one by one.
    pub switch_lead: u64,
    /// The first node that was switched must have run for this many seconds before the others are.
    pub proved_seconds: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            fresh_seconds: 10,
            max_lag_blocks: 5,
            stable_seconds: 30,
            signed_of_window: 10,
            reserve: 0,
            allow_downtime: false,
            submits: true,
            replace_dead: false,
            cure_seconds: 180,
            grace_seconds: 600,
            consents: BTreeSet::new(),
            switch_lead: 300,
            proved_seconds: 60,
        }
    }
}

/// All that is known of a network.
///
/// Whatever is observed must be observed *after* the anchor was read that `begun` comes from: else a voter
/// whose entry has just been settled looks like a node that no ledger counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Observed {
    /// Nodes of ours that are not retired, by name.
    #[serde(default)]
    pub nodes: BTreeMap<NodeName, Node>,
    /// All ledgers the network has, also those of which nothing is known at the moment.
    #[serde(default)]
    pub ledgers: BTreeMap<LedgerName, Ledger>,
    /// The step that was begun and is not settled, from the anchor.
    #[serde(default)]
    pub begun: Option<Begun>,
    /// How the hub's view stands to the anchors beside the nodes.
    #[serde(default)]
    pub hub: Hub,
}

/// How the hub's view stands to the anchors beside the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hub {
    /// It is the newest.
    #[default]
    Current,
    /// It came from a backup: an anchor beside the nodes knows of later steps. `id` names hub, network and
    /// step number in that anchor.
    Older {
        /// `<hub id>/<network id>/<step number>`.
        id: String,
    },
}

/// A node of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The set it was made from.
    pub set: String,
    /// The member cluster its objects are in; empty = the hub.
    #[serde(default)]
    pub cluster: String,
    /// Where it runs: what shares this fails together (a machine, a zone). Empty = not known.
    #[serde(default)]
    pub domain: String,
    /// What its own cluster's API server says of its engine's container.
    pub engine: Engine,
    /// What it runs, compared with what is described.
    #[serde(default)]
    pub inputs: Inputs,
    /// Short hash of what is described for it: names the restart in a consent.
    #[serde(default)]
    pub described: String,
    /// Its disk is not this identity's newest one, or is gone: it cannot start.
    #[serde(default)]
    pub disk_lost: bool,
    /// Whether it is to be replaced.
    #[serde(default)]
    pub replacement: Replacement,
    /// The user wants it left as it is.
    #[serde(default)]
    pub held: bool,
    /// Whether it can get the operator's agents that its next restart brings.
    #[serde(default)]
    pub agents: Agents,
    /// A restart as a cure, since it last worked.
    #[serde(default)]
    pub cure: Cure,
    /// Its entry as a voter.
    #[serde(default)]
    pub entry: Entry,
    /// For how long it has been down, or silent, in seconds.
    #[serde(default)]
    pub down_seconds: u64,
    /// Where it stands in the switch begun.
    #[serde(default)]
    pub stand: Stand,
    /// Its application makes no block any more, by a switch that was given up: nobody misses it in a restart.
    #[serde(default)]
    pub halted: bool,
    /// On a ledger that stands still: for how many seconds it has been there again.
    #[serde(default)]
    pub back_seconds: u64,
}

impl Node {
    /// A node of this set that runs what is described, and of which nothing bad is known.
    pub fn new(set: &str) -> Self {
        Self {
            set: set.to_owned(),
            cluster: String::new(),
            domain: String::new(),
            engine: Engine::Ready,
            inputs: Inputs::Current,
            described: String::new(),
            disk_lost: false,
            replacement: Replacement::No,
            held: false,
            agents: Agents::Available,
            cure: Cure::Untried,
            entry: Entry::Over,
            down_seconds: 0,
            stand: Stand::Old,
            halted: false,
            back_seconds: 0,
        }
    }
}

/// What a node's own API server says of its engine's container, by a fresh read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Engine {
    /// It runs and is ready.
    Ready,
    /// It does not run, or is not ready.
    NotReady,
    /// The API server cannot be asked.
    Unknown,
}

/// Whether a node can get the agents that its next restart brings: their image, where the node is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Agents {
    /// It can, or it keeps those it has.
    #[default]
    Available,
    /// That is not known yet: why.
    NotProved(String),
    /// It cannot: why, and what to do.
    Unavailable(String),
}

/// What a node runs, compared with what is described.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Inputs {
    /// The same.
    #[default]
    Current,
    /// Something else: it has to restart.
    Pending,
    /// An application whose blocks differ from those of the one it runs: all nodes have to change at one height.
    Switch,
}

/// Where a node stands in a switch of all nodes at one height.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "camelCase")]
pub enum Stand {
    /// It runs as before.
    #[default]
    Old,
    /// A template by which its application halts at the height is in force, another pod still runs.
    HaltOrdered,
    /// It was restarted on that template and is not back yet.
    HaltDown,
    /// It is back, and makes no block after the height.
    Halts,
    /// The new application is in force, or is to be in force again after it was described anew; another pod still runs.
    NewOrdered,
    /// It was restarted with the new application and is not back yet.
    NewDown,
    /// It is back, with the new application.
    New,
}

impl Stand {
    /// It was given the new application.
    pub fn is_new(self) -> bool {
        self >= Self::NewOrdered
    }
}

/// Whether a node is to be replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Replacement {
    /// No.
    #[default]
    No,
    /// The user asks for it, and that is not recorded yet.
    Asked,
    /// Recorded in the anchor, never taken back.
    Recorded,
}

/// A node's entry as a voter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Entry {
    /// Over, or not begun.
    #[default]
    Over,
    /// It votes, and has not been seen to sign since it entered.
    Entering,
    /// It never signed and was taken out again.
    Failed,
}

/// A restart as a cure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cure {
    /// Not tried since the node last worked, or since what is described changed.
    #[default]
    Untried,
    /// Recorded; the old pod is still there.
    Ordered,
    /// The old pod was ended, and the node is not back yet.
    Trying,
    /// It did not help.
    Failed,
}

/// A ledger as its nodes see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ledger {
    /// The engine's formula.
    pub quorum: Quorum,
    /// Voters have weights, and a small one can be given to a newcomer.
    #[serde(default)]
    pub weights: bool,
    /// Its members, as it names them.
    pub members: BTreeMap<MemberKey, Member>,
    /// All own nodes that answered give these members; two at least where we run two.
    #[serde(default = "yes")]
    pub agreed: bool,
    /// Age of the newest evidence, in seconds.
    #[serde(default)]
    pub age_seconds: u64,
    /// Whether it makes blocks.
    #[serde(default)]
    pub head: Head,
    /// The newest block.
    #[serde(default)]
    pub height: u64,
    /// A change of members is under way that is not the step begun: one that is decided and not in effect
    /// yet, or that waits in some node's pool. For people.
    #[serde(default)]
    pub pending: Option<String>,
    /// How our nodes follow it.
    #[serde(default)]
    pub followers: BTreeMap<NodeName, Follower>,
}

fn yes() -> bool {
    true
}

impl Ledger {
    /// How many of our nodes answer.
    pub fn answering(&self) -> usize {
        self.followers.values().filter(|follower| follower.lag != SILENT).count()
    }
}

/// Whether a ledger makes blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Head {
    /// It does.
    #[default]
    Producing,
    /// It was watched for long enough, and does not.
    Standing,
    /// A block is stored that cannot be applied: no restart helps.
    Frozen,
    /// Not watched for long enough.
    Unknown,
}

/// A member whose vote counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Member {
    /// Its voting power; 1 where the engine has no weights.
    pub power: u64,
    /// Our node with this key; `None` = it is foreign.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// What the other nodes see of it.
    pub liveness: Liveness,
    /// Blocks it signed of the last 12, as the others know the chain.
    #[serde(default = "all_signed")]
    pub signed: u64,
}

fn all_signed() -> u64 {
    12
}

/// What is known of a voter. Unknown is neither healthy nor dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Liveness {
    /// Other nodes saw it sign.
    Live,
    /// Its own API server says that the engine does not run or is not ready, *and* the chain shows no sign
    /// of it.
    ProvedDown,
    /// Neither is proved.
    Unknown,
}

/// The lag of a node that does not answer.
pub const SILENT: u64 = u64::MAX;

/// How a node of ours follows a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Follower {
    /// Blocks behind the head; [`SILENT`] = it does not answer.
    pub lag: u64,
    /// For how long it has trailed by no more than allowed, in seconds.
    #[serde(default)]
    pub steady_seconds: u64,
    /// Its head follows the others' and it has peers enough to hear a quorum.
    #[serde(default)]
    pub connected: bool,
}

/// A step that was begun: recorded before its first effect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Begun {
    /// A change of a ledger's members.
    Change {
        /// Which ledger.
        ledger: LedgerName,
        /// What changes.
        change: Change,
        /// How far it is.
        fate: Fate,
    },
    /// A restart.
    Restart {
        /// Which node.
        node: NodeName,
        /// How far it is.
        progress: Progress,
        /// Consents that were used for it.
        #[serde(default)]
        consents: BTreeSet<String>,
    },
    /// A switch of all nodes to another application, after this block.
    Switch {
        /// Which ledger.
        ledger: LedgerName,
        /// The last block of the old application.
        height: u64,
    },
}

/// How far a change is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// Recorded; nothing can have left the operator.
    Recorded,
    /// It may have been sent, and may yet be included.
    Sent,
    /// Read back in a header at the height it takes effect, under a quorum of verified signatures; no node
    /// holds it any more.
    Confirmed,
    /// It is proved that it can never be included.
    Impossible,
}

/// How far a restart is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Progress {
    /// Recorded; the node runs as before.
    Untouched,
    /// The new template is in force, the old pod still runs.
    Ordered,
    /// The old pod was ended; the new one does not follow yet.
    Down,
    /// It follows, and signs if it votes and blocks are made.
    Back,
}

/// A change of a ledger's members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// A node of ours begins to vote.
    Add {
        /// Which.
        node: NodeName,
        /// With this power.
        power: u64,
    },
    /// A member's power changes.
    SetPower {
        /// Whose.
        member: MemberKey,
        /// To this.
        power: u64,
    },
    /// A member votes no more.
    Remove {
        /// Which.
        member: MemberKey,
    },
}

/// What to do next. Every step is one effect, or one record in the anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// A person consented: take the newest anchor for the truth.
    TakeOver,
    /// Record a new identity of this set; its node is made and observes.
    Provision {
        /// Which set.
        set: String,
    },
    /// Record that this node is to be replaced.
    Condemn {
        /// Which.
        node: NodeName,
    },
    /// Record a change of members.
    BeginChange {
        /// On which ledger.
        ledger: LedgerName,
        /// What.
        change: Change,
    },
    /// Record that the change begun may be sent from now on, then send it.
    Send,
    /// Record that the step begun is over: it has taken effect, or never will.
    Settle,
    /// Record that the step begun is given up; nothing of it was done.
    Withdraw,
    /// Record a restart, so that what is described takes effect.
    BeginRestart {
        /// Which node.
        node: NodeName,
    },
    /// Put the described template in force, then end the node's pod. For the restart begun.
    EndPod {
        /// Which node.
        node: NodeName,
    },
    /// Record that all nodes change to the described application after this block.
    BeginSwitch {
        /// Which ledger.
        ledger: LedgerName,
        /// The last block of the old application.
        height: u64,
    },
    /// Restart a node so that its application makes no block after the height. For the switch begun.
    Halt {
        /// Which node.
        node: NodeName,
    },
    /// Restart a node with the new application. For the switch begun; the ledger was halted.
    Switch {
        /// Which node.
        node: NodeName,
        /// With what is described now, though others have another one.
        anew: bool,
    },
    /// Restart a voter that is proved down, with what is described now.
    Cure {
        /// Which node.
        node: NodeName,
    },
    /// Record that this node is retired, then stop it. No ledger counts it.
    Retire {
        /// Which node.
        node: NodeName,
    },
}

/// The planner's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Decision {
    /// All is as described.
    Converged,
    /// Do this next.
    Step {
        /// What.
        step: Step,
        /// Consents it uses up: recorded as used together with it.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        consents: BTreeSet<String>,
    },
    /// Nothing now; time or somebody's recovery will tell.
    Wait(Refusal),
    /// A person may allow it.
    NeedsConsent(Refusal),
    /// A person must do something.
    Stuck(Refusal),
}

/// Why a step is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The gate that is closed.
    pub gate: Gate,
    /// The step it stands before, for people.
    pub step: String,
    /// What is so, and what to do.
    pub message: String,
    /// The consent that would open it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<String>,
}

macro_rules! gates {
    ($($(#[doc = $doc:literal])+ $name:ident),* $(,)?) => {
        /// A named predicate that must hold before a step.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum Gate { $($(#[doc = $doc])+ $name),* }

        impl Gate {
            /// What must hold, in one sentence or two.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii()),* }
            }

            /// Every gate there is.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

gates! {
    /// No anchor beside the nodes knows more than the hub.
    HubStateNotOlderThanAnchor,
    /// The user has not paused the network.
    NotPaused,
    /// The user does not hold this node.
    NotHeld,
    /// The agents that the restart brings can be run where the node is.
    AgentImageAvailable,
    /// The operator may change members itself.
    AuthoritySubmits,
    /// The step that was begun has ended.
    OneChangeAtATime,
    /// No other change of members is under way on the ledger.
    NoPendingChange,
    /// What is known is fresh, and all own nodes say the same.
    EvidenceIsFresh,
    /// The API server of the cluster where the step has its effect can be asked.
    ClusterReachable,
    /// Blocks are made.
    ChainIsProducing,
    /// The chain is not frozen.
    ChainIsNotFrozen,
    /// All other voters are seen to sign, and other nodes follow.
    OthersHealthy,
    /// Enough live power is left after the change.
    QuorumAfterChange,
    /// Enough live power is left while the node restarts.
    QuorumDuringRestart,
    /// Quorum holds even if the newcomer never votes.
    NewMemberCountsAsFailed,
    /// The node follows the chain, for a while.
    CaughtUp,
    /// The newcomer is seen to sign.
    NewcomerSigns,
    /// A voter remains.
    NotTheLastVoter,
    /// Not too many other networks restart nodes.
    // Not the planner's: it sees one network.
    RollSlotIsFree,
    /// All nodes can be halted together, and were.
    AllHaltTogether,
    /// The engine is not known to stop over the change.
    // Not the planner's: the engine's driver tells.
    EngineAllowsChange,
    /// The node that restarts came back.
    NodeComesBack,
    /// The node works, or can be made to.
    NodeWorks,
    /// No failure domain holds more voters than the chain can miss. A warning.
    VotersShareFailureDomain,
    /// No cluster holds more than the chain can miss. A warning.
    MajorityNotInOneCluster,
}
