//! Steps and refusals in words, shared by `plan` and `explain`.

use std::collections::BTreeMap;

use bsn_core::consent::CONSENT_ANNOTATION;
use bsn_core::membership::model::{Begun, Change, Gate, MemberKey, Refusal, Step};
use bsn_core::membership::{Decision, Observed};
use bsn_core::names::NodeName;

use crate::view::NetworkKey;

/// Members by node name, as far as they are ours.
pub type Names = BTreeMap<MemberKey, NodeName>;

/// The names of a network's members.
pub fn names_of(observed: &Observed) -> Names {
    let members = observed.ledgers.values().flat_map(|ledger| &ledger.members);
    members.filter_map(|(key, member)| Some((key.clone(), member.node.clone()?))).collect()
}

/// A member as people know it. Newcomers of a plan have no key yet.
fn name(member: &MemberKey, names: &Names) -> String {
    let newcomer = || member.strip_prefix("key of ").unwrap_or(member).to_owned();
    names.get(member).map_or_else(newcomer, NodeName::to_string)
}

/// A change in words.
pub fn change_words(change: &Change, names: &Names) -> String {
    match change {
        Change::Add { node, power } => format!("add {node} as a voter with power {power}"),
        Change::SetPower { member, power } => {
            format!("give {} power {power}", name(member, names))
        }
        Change::Remove { member } => format!("remove voter {}", name(member, names)),
    }
}

/// A step under way in words.
pub fn begun_words(begun: &Begun, names: &Names) -> String {
    match begun {
        Begun::Change { change, .. } => change_words(change, names),
        Begun::Restart { node, .. } => format!("restart {node}"),
        Begun::Switch { height, .. } => {
            format!("switch all nodes to another application after block {height}")
        }
    }
}

/// A step in words. Where there is one ledger, its name says nothing.
pub fn step_words(step: &Step, names: &Names) -> String {
    match step {
        Step::BeginChange { change, .. } => change_words(change, names),
        other => other.to_string(),
    }
}

/// A text of the planner with nodes by name, and without the one ledger's name.
pub fn text(words: &str, names: &Names) -> String {
    let mut words = words.replace(" (ledger main)", "").replace("ledger main", "the chain");
    for (key, node) in names {
        words = words.replace(key.as_str(), node.as_str());
    }
    words
}

/// The refusal of a decision, if it is one, and its class in one word.
pub fn refusal_of(decision: &Decision) -> Option<(&'static str, &Refusal)> {
    match decision {
        Decision::Wait(refusal) => Some(("waits", refusal)),
        Decision::NeedsConsent(refusal) => Some(("needs a consent", refusal)),
        Decision::Stuck(refusal) => Some(("is stuck", refusal)),
        Decision::Converged | Decision::Step { .. } => None,
    }
}

/// The command that gives a consent. Others that were given stay.
pub fn consent_command(key: &NetworkKey, consent: &str) -> String {
    format!(
        "kubectl annotate bsnnetwork {} -n {} --overwrite {CONSENT_ANNOTATION}={consent}",
        key.name, key.namespace
    )
}

/// The step that a gate stands before, with what joins it to the words in front; nothing, if it holds up no step, as
/// when a node needs a person.
pub fn before(joint: &str, step: &str) -> String {
    if step.is_empty() { String::new() } else { format!("{joint}before: {step}") }
}

/// What opens a gate.
pub fn advice(gate: Gate) -> &'static str {
    match gate {
        Gate::HubStateNotOlderThanAnchor => {
            "see that the description is the newest one, then consent to go on from the newest anchor"
        }
        Gate::NotPaused => "set spec.paused to false",
        Gate::AgentImageAvailable => {
            "the image of guard and gateway has to be run in the node's cluster: see kubectl describe bsncluster"
        }
        Gate::NotHeld => "take the node from the list hold of its node set",
        Gate::AuthoritySubmits => {
            "let the chain's own governance do it, or set spec.membership so that the operator may"
        }
        Gate::OneChangeAtATime => {
            "it ends by itself; if a node is cut off, bring that back, since it may hold the transaction"
        }
        Gate::NoPendingChange => "it ends by itself when the other change has taken effect",
        Gate::EvidenceIsFresh => {
            "the nodes' gateways have to answer, and to say the same: see kubectl bsn status"
        }
        Gate::ClusterReachable => {
            "the operator has to reach that cluster: see kubectl describe bsncluster; nothing is wrong with its nodes by that"
        }
        Gate::ChainIsProducing => "bring back the voters that are down: see the nodes below",
        Gate::ChainIsNotFrozen => "restart nothing; see docs/recovery.md",
        Gate::OthersHealthy => "the nodes it names have to recover, or to be replaced",
        Gate::QuorumAfterChange => {
            "more voters have to be live, and drains that are allowed now have to end"
        }
        Gate::QuorumDuringRestart => {
            "more voters have to be live; if there can never be enough, a consent lets the chain stop for a while"
        }
        Gate::NewMemberCountsAsFailed => "the voters there are have to recover first",
        Gate::CaughtUp => {
            "it opens by itself when the node keeps up; on a fast chain raise spec.membership.catchUp.maxLagBlocks"
        }
        Gate::NewcomerSigns => {
            "it opens by itself when the newcomer signs; if it never does, find out why"
        }
        Gate::NotTheLastVoter => "keep a voter, or let its successor vote first",
        Gate::AllHaltTogether => {
            "it opens by itself when all nodes can halt, or have; other owners' voters never can"
        }
        Gate::EngineAllowsChange => {
            "the engine would stop over it; choose another power, or keep that voter"
        }
        Gate::RollSlotIsFree => "it opens by itself when another network's roll is done",
        Gate::NodeComesBack => {
            "it opens when the node follows again; if it never does, correct or revert its description"
        }
        Gate::NodeWorks => "see the node's own condition: kubectl describe bsnnode",
        Gate::VotersShareFailureDomain | Gate::MajorityNotInOneCluster => {
            "nothing has to be done; spread the voters"
        }
    }
}

/// How many voters may be down.
pub fn spare_words(spare: Option<usize>) -> String {
    match spare {
        None => "the chain stands meanwhile".to_owned(),
        Some(0) => "none may be down".to_owned(),
        Some(1) => "1 may be down".to_owned(),
        Some(more) => format!("{more} may be down"),
    }
}
