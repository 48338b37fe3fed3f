//! How a gate says no.

use super::model::{Change, Decision, Gate, Refusal, Step};

/// What opens a closed gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Time, or somebody's recovery.
    Wait,
    /// A person's consent.
    Consent,
    /// Something a person does.
    Stuck,
}

/// A closed gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// What opens it.
    pub class: Class,
    /// Which, before what, and why.
    pub refusal: Refusal,
}

/// An open gate, or a closed one.
pub type Check<T = ()> = Result<T, Closed>;

impl Closed {
    /// A gate that time opens.
    pub fn wait(gate: Gate, message: impl Into<String>) -> Self {
        Self::new(Class::Wait, gate, message.into(), None)
    }

    /// A gate that a person must open by doing something.
    pub fn stuck(gate: Gate, message: impl Into<String>) -> Self {
        Self::new(Class::Stuck, gate, message.into(), None)
    }

    /// A gate that this consent opens.
    pub fn consent(gate: Gate, message: impl Into<String>, consent: String) -> Self {
        Self::new(Class::Consent, gate, message.into(), Some(consent))
    }

    fn new(class: Class, gate: Gate, message: String, consent: Option<String>) -> Self {
        let refusal = Refusal { gate, step: String::new(), message, consent };
        Self { class, refusal }
    }

    /// Before which step it stands.
    #[must_use]
    pub fn before(mut self, step: &Step) -> Self {
        self.refusal.step = step.to_string();
        self
    }

    /// As the planner's answer.
    pub fn decision(self) -> Decision {
        match self.class {
            Class::Wait => Decision::Wait(self.refusal),
            Class::Consent => Decision::NeedsConsent(self.refusal),
            Class::Stuck => Decision::Stuck(self.refusal),
        }
    }
}

/// One gate.
pub fn gate(gate: Gate, open: bool, closed: impl FnOnce(Gate) -> Closed) -> Check {
    #[cfg(test)]
    let open = open || super::check::defects::is_removed(gate);
    if open { Ok(()) } else { Err(closed(gate)) }
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HubStateNotOlderThanAnchor => "hub_state_not_older_than_anchor",
            Self::NotPaused => "not_paused",
            Self::NotHeld => "not_held",
            Self::AgentImageAvailable => "agent_image_available",
            Self::AuthoritySubmits => "authority_submits",
            Self::OneChangeAtATime => "one_change_at_a_time",
            Self::NoPendingChange => "no_pending_change",
            Self::EvidenceIsFresh => "evidence_is_fresh",
            Self::ClusterReachable => "cluster_reachable",
            Self::ChainIsProducing => "chain_is_producing",
            Self::ChainIsNotFrozen => "chain_is_not_frozen",
            Self::OthersHealthy => "others_healthy",
            Self::QuorumAfterChange => "quorum_after_change",
            Self::QuorumDuringRestart => "quorum_during_restart",
            Self::NewMemberCountsAsFailed => "new_member_counts_as_failed",
            Self::CaughtUp => "caught_up",
            Self::NewcomerSigns => "newcomer_signs",
            Self::NotTheLastVoter => "not_the_last_voter",
            Self::RollSlotIsFree => "roll_slot_is_free",
            Self::AllHaltTogether => "all_halt_together",
            Self::EngineAllowsChange => "engine_allows_change",
            Self::NodeComesBack => "node_comes_back",
            Self::NodeWorks => "node_works",
            Self::VotersShareFailureDomain => "voters_share_failure_domain",
            Self::MajorityNotInOneCluster => "majority_not_in_one_cluster",
        })
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { node, power } => write!(f, "add {node} as a voter with power {power}"),
            Self::SetPower { member, power } => write!(f, "give {member} power {power}"),
            Self::Remove { member } => write!(f, "remove voter {member}"),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TakeOver => f.write_str("go on from the newest anchor"),
            Self::Provision { set } => write!(f, "provision a node of set {set}"),
            Self::Condemn { node } => write!(f, "mark {node} as to be replaced"),
            Self::BeginChange { ledger, change } => write!(f, "{change} (ledger {ledger})"),
            Self::Send => f.write_str("send the change"),
            Self::Settle => f.write_str("settle the step begun"),
            Self::Withdraw => f.write_str("give up the step begun"),
            Self::BeginRestart { node } => write!(f, "restart {node}"),
            Self::EndPod { node } => write!(f, "end the pod of {node}"),
            // Without the height, which grows until it is recorded.
            Self::BeginSwitch { .. } => {
                f.write_str("switch all nodes to the described application after one block")
            }
            Self::Halt { node } => write!(f, "restart {node}, to halt at that block"),
            Self::Switch { node, .. } => write!(f, "restart {node} with the new application"),
            Self::Cure { node } => write!(f, "restart {node}, which is down"),
            Self::Retire { node } => write!(f, "retire {node}"),
        }
    }
}
