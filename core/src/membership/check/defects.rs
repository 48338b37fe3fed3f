//! Defects made on purpose: each must be caught, with the shortest way to the harm it does.
//!
//! A removed gate is the one hook in the planner (`refusal::gate`, in tests only); the others stand around
//! it: they distort what it sees, or what it says.

use std::cell::Cell;

use crate::membership::model::{
    Begun, Change, Cure, Decision, Desired, Engine, Fate, Gate, Hub, Inputs, Liveness, Observed,
    Policy, Progress, Refusal, Replacement, Step,
};
use crate::membership::next_step;

thread_local! {
    static REMOVED: Cell<Option<Gate>> = const { Cell::new(None) };
}

/// Whether this gate was taken away.
pub fn is_removed(gate: Gate) -> bool {
    REMOVED.get() == Some(gate)
}

/// A defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// A gate is gone.
    Without(Gate),
    /// Silence is taken for death.
    UnknownIsDead,
    /// Silence is taken for health.
    UnknownIsLive,
    /// A foreign voter is taken for one of ours that is left over.
    ForeignIsOrphan,
    /// A change that was sent is given up.
    AbandonsWhatWasSent,
    /// A change that was sent is called settled before it is.
    SettlesTooEarly,
    /// A second step is begun while one is open.
    ForgetsWhatWasBegun,
    /// A node is stopped before its ledger lets go of it.
    StopsBeforeRemoval,
    /// A newcomer enters with its full power.
    EntersWithFullPower,
    /// A restart is called done when the pod was ended.
    RestartIsDoneAtOnce,
    /// An older hub is taken for the newest.
    TrustsAnOldHub,
    /// A cure is tried again and again.
    CuresForEver,
    /// A dead voter is never cured while the chain stands.
    NoCureWhileStanding,
    /// Pods as they were last seen are taken for what is so now.
    OldPodsAreNews,
    /// Voters move out of a cluster that cannot be asked.
    LostClusterIsLeft,
    /// Nothing is begun while a cluster cannot be asked.
    WaitsForEveryCluster,
}

impl Defect {
    /// The planner's answer with this defect.
    pub fn decide(self, desired: &Desired, mut seen: Observed, policy: &Policy) -> Decision {
        let truly = seen.clone();
        self.distort(&mut seen);
        if let Self::Without(gate) = self {
            REMOVED.set(Some(gate));
        }
        let decision = next_step(desired, &seen, policy);
        REMOVED.set(None);
        self.twist(desired, &truly, decision)
    }

    fn distort(self, seen: &mut Observed) {
        let members = seen.ledgers.values_mut().flat_map(|ledger| ledger.members.values_mut());
        match self {
            Self::UnknownIsDead => {
                for member in members.filter(|member| member.liveness == Liveness::Unknown) {
                    member.liveness = Liveness::ProvedDown;
                }
                for node in seen.nodes.values_mut().filter(|node| node.engine == Engine::Unknown) {
                    node.engine = Engine::NotReady;
                }
            }
            Self::UnknownIsLive => {
                for member in members.filter(|member| member.liveness == Liveness::Unknown) {
                    member.liveness = Liveness::Live;
                }
            }
            Self::ForeignIsOrphan => {
                for member in members.filter(|member| member.node.is_none()) {
                    member.node = Some(crate::names::NodeName::from_object("net-old"));
                }
            }
            Self::ForgetsWhatWasBegun => seen.begun = None,
            Self::SettlesTooEarly => {
                if let Some(Begun::Change { fate, .. }) = &mut seen.begun
                    && *fate == Fate::Sent
                {
                    *fate = Fate::Confirmed;
                }
            }
            Self::RestartIsDoneAtOnce => {
                if let Some(Begun::Restart { progress, .. }) = &mut seen.begun
                    && *progress == Progress::Down
                {
                    *progress = Progress::Back;
                }
            }
            Self::OldPodsAreNews => {
                for node in seen.nodes.values_mut().filter(|node| node.engine == Engine::Unknown) {
                    node.engine = Engine::Ready;
                }
            }
            Self::LostClusterIsLeft => {
                for node in seen.nodes.values_mut().filter(|node| node.engine == Engine::Unknown) {
                    node.replacement = Replacement::Recorded;
                }
            }
            Self::TrustsAnOldHub => seen.hub = Hub::Current,
            Self::CuresForEver => {
                for node in seen.nodes.values_mut() {
                    node.cure = Cure::Untried;
                }
            }
            _ => {}
        }
    }

    fn twist(self, desired: &Desired, seen: &Observed, decision: Decision) -> Decision {
        let step = |step| Decision::Step { step, consents: [].into() };
        match (self, &decision) {
            (Self::AbandonsWhatWasSent, Decision::Wait(_)) => match &seen.begun {
                Some(Begun::Change { fate: Fate::Sent, .. }) => step(Step::Withdraw),
                _ => decision,
            },
            (
                Self::StopsBeforeRemoval,
                Decision::Step {
                    step: Step::BeginChange { change: Change::Remove { member }, ledger },
                    ..
                },
            ) => match seen.ledgers[ledger].members[member].node.clone() {
                Some(node) => step(Step::Retire { node }),
                None => decision,
            },
            (
                Self::EntersWithFullPower,
                Decision::Step {
                    step: Step::BeginChange { change: Change::Add { node, .. }, ledger },
                    ..
                },
            ) => {
                let power = desired.sets[0].power;
                let change = Change::Add { node: node.clone(), power };
                step(Step::BeginChange { ledger: ledger.clone(), change })
            }
            // It would withdraw such a change before it is sent; the defect sends it.
            (Self::EntersWithFullPower, Decision::Step { step: Step::Withdraw, .. }) => {
                match &seen.begun {
                    Some(Begun::Change { change: Change::Add { .. }, .. }) => step(Step::Send),
                    _ => decision,
                }
            }
            (Self::NoCureWhileStanding, Decision::Step { step: Step::Cure { .. }, .. }) => {
                match next_without_cure(desired, seen) {
                    Some(wait) => wait,
                    None => decision,
                }
            }
            (
                Self::WaitsForEveryCluster,
                Decision::Step {
                    step: begun @ (Step::BeginChange { .. } | Step::BeginRestart { .. }),
                    ..
                },
            ) if seen.nodes.values().any(|node| node.engine == Engine::Unknown) => {
                Decision::Wait(Refusal {
                    gate: Gate::ClusterReachable,
                    step: begun.to_string(),
                    message: "a cluster cannot be asked".to_owned(),
                    consent: None,
                })
            }
            _ => decision,
        }
    }
}

fn next_without_cure(desired: &Desired, seen: &Observed) -> Option<Decision> {
    let standing = seen
        .ledgers
        .values()
        .any(|ledger| ledger.head != crate::membership::model::Head::Producing);
    let mut seen = seen.clone();
    for node in seen.nodes.values_mut() {
        node.cure = Cure::Trying;
        node.inputs = Inputs::Current;
    }
    standing.then(|| next_step(desired, &seen, &Policy::default()))
}
