//! A plan to look at: the steps from here to what is described, if each of them goes well.
//!
//! The planner decides one step at a time, on what is known then. For a person who reviews a change, the same
//! planner is played forward against a world in which every step succeeds at once: new nodes catch up, pods
//! come back, what is sent takes effect, newcomers sign, and a step that is under way ends well. What stops
//! the play is what stops the operator.
//!
//! What a plan cannot know: which of several new nodes catches up first. In the plan they enter in the order of
//! their names, in truth as they are ready.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::model::{
    Begun, Change, Cure, Decision, Desired, Engine, Entry, Fate, Follower, Head, Hub, Inputs,
    Ledger, Liveness, Member, Node, Observed, Policy, Progress, Replacement, SILENT, Stand, Step,
};
use super::next_step;
use super::projection::Projection;
use super::warnings::{Warning, warnings};
use crate::names::NodeName;

/// A step of a plan, and what is left after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStep {
    /// What is done.
    pub step: Step,
    /// The node that it makes, if it makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<NodeName>,
    /// The consents it uses up.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub consents: BTreeSet<String>,
    /// How many live voters each ledger may lose after it, the smallest of them; while a node restarts,
    /// without that node. `None` = a ledger stands meanwhile, or there is none.
    pub spare: Option<usize>,
}

/// Steps to what is described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// In their order.
    pub steps: Vec<PlannedStep>,
    /// [`Decision::Converged`], or what stops it.
    pub end: Decision,
    /// What is not wise about the network at that end.
    pub warnings: Vec<Warning>,
}

/// No plan has more steps than this for each node; it would be a circle.
const STEPS_PER_NODE: usize = 40;

/// Plays the planner forward. `name` gives the names of new nodes, by set.
pub fn plan(
    desired: &Desired,
    observed: &Observed,
    policy: &Policy,
    mut name: impl FnMut(&str) -> NodeName,
) -> Plan {
    let mut world = observed.clone();
    let mut policy = policy.clone();
    let mut steps = Vec::new();
    let wanted: usize = desired.sets.iter().map(|set| set.replicas as usize).sum();
    for _ in 0..STEPS_PER_NODE * (observed.nodes.len() + wanted + 1) {
        let (step, consents) = match next_step(desired, &world, &policy) {
            Decision::Step { step, consents } => (step, consents),
            Decision::Wait(_) if goes_on(&mut world) => continue,
            end => {
                let warnings = warnings(&world, &policy);
                return Plan { steps, end, warnings };
            }
        };
        let mut made = None;
        let spare = play(desired, &mut world, &policy, &step, &mut |set: &str| {
            made.insert(name(set)).clone()
        });
        // Each works once.
        policy.consents.retain(|consent| !consents.contains(consent));
        steps.push(PlannedStep { step, made, consents, spare });
    }
    // Every step of the planner leads on: see the model check.
    let end = next_step(desired, &world, &policy);
    let warnings = warnings(&world, &policy);
    Plan { steps, end, warnings }
}

/// Does a step, and lets it succeed.
fn play(
    desired: &Desired,
    world: &mut Observed,
    policy: &Policy,
    step: &Step,
    name: &mut impl FnMut(&str) -> NodeName,
) -> Option<usize> {
    match step {
        Step::TakeOver => world.hub = Hub::Current,
        Step::Provision { set } => {
            let name = name(set);
            let described = desired.sets.iter().find(|one| one.name == *set);
            let cluster = described.map(|set| set.cluster.clone()).unwrap_or_default();
            let mut node = Node { cluster, ..Node::new(set) };
            let mut follower =
                Follower { lag: 0, steady_seconds: policy.stable_seconds, connected: true };
            // Nothing can be made in a cluster that cannot be asked, so nothing follows from there.
            let is_beside = |other: &Node| other.cluster == node.cluster;
            if world.nodes.values().any(|one| is_beside(one) && one.engine == Engine::Unknown) {
                node.engine = Engine::Unknown;
                follower = Follower { lag: SILENT, steady_seconds: 0, connected: false };
            }
            let votes_on = described.map(|set| &set.votes_on);
            for (ledger_name, ledger) in &mut world.ledgers {
                if votes_on.is_none_or(|all| all.is_empty() || all.contains(ledger_name)) {
                    ledger.followers.insert(name.clone(), follower);
                }
            }
            world.nodes.insert(name, node);
        }
        Step::Condemn { node } => {
            with_node(world, node, |node| node.replacement = Replacement::Recorded);
        }
        Step::BeginChange { ledger, change } => {
            let (ledger, change) = (ledger.clone(), change.clone());
            world.begun = Some(Begun::Change { ledger, change, fate: Fate::Recorded });
        }
        Step::Send => is_included(world),
        Step::Settle | Step::Withdraw => world.begun = None,
        Step::BeginRestart { node } => {
            let node = node.clone();
            world.begun = Some(Begun::Restart {
                node,
                progress: Progress::Untouched,
                consents: BTreeSet::new(),
            });
        }
        Step::EndPod { node } => {
            let without = spare(world, policy, Some(node));
            if let Some(Begun::Restart { progress, .. }) = &mut world.begun {
                *progress = Progress::Back;
            }
            comes_up(world, node);
            return without;
        }
        Step::BeginSwitch { ledger, height } => {
            world.begun = Some(Begun::Switch { ledger: ledger.clone(), height: *height });
        }
        Step::Halt { node } => {
            let without = spare(world, policy, Some(node));
            with_node(world, node, |node| node.stand = Stand::Halts);
            return without;
        }
        Step::Switch { node, .. } => {
            comes_up(world, node);
            with_node(world, node, |node| {
                node.stand = Stand::New;
                node.back_seconds = u64::MAX;
            });
            return None;
        }
        Step::Cure { node } => comes_up(world, node),
        Step::Retire { node } => {
            world.nodes.remove(node);
            for ledger in world.ledgers.values_mut() {
                ledger.followers.remove(node);
            }
        }
    }
    spare(world, policy, None)
}

/// Lets the step that is under way succeed, if only time is missing.
fn goes_on(world: &mut Observed) -> bool {
    match &mut world.begun {
        Some(Begun::Change { ledger, fate: Fate::Sent, .. }) => {
            let ledger = world.ledgers.get(ledger);
            if ledger.is_none_or(|ledger| ledger.head != Head::Producing) {
                return false;
            }
            is_included(world);
        }
        Some(Begun::Restart { node, progress: progress @ Progress::Down, .. }) => {
            *progress = Progress::Back;
            let node = node.clone();
            comes_up(world, &node);
        }
        Some(Begun::Switch { ledger, height }) => {
            let all = |stand| world.nodes.values().all(|node| node.stand == stand);
            let (halts, new) = (all(Stand::Halts), all(Stand::New));
            let Some(ledger) = world.ledgers.get_mut(ledger) else { return false };
            match ledger.height.cmp(height) {
                Ordering::Less if halts => {
                    (ledger.height, ledger.head) = (*height, Head::Standing);
                }
                Ordering::Equal if new => {
                    (ledger.height, ledger.head) = (*height + 3, Head::Producing);
                }
                _ => return false,
            }
        }
        _ => return false,
    }
    true
}

/// What was sent takes effect.
fn is_included(world: &mut Observed) {
    let Some(Begun::Change { ledger, change, fate }) = &mut world.begun else { return };
    *fate = Fate::Confirmed;
    if let Change::Remove { member } = &*change
        && let Some(node) =
            world.ledgers.get(ledger).and_then(|l| l.members.get(member)?.node.as_ref())
        && let Some(node) = world.nodes.get_mut(node)
        && node.entry == Entry::Entering
    {
        node.entry = Entry::Failed;
    }
    if let Some(ledger) = world.ledgers.get_mut(ledger) {
        take_effect(ledger, change);
    }
}

fn with_node(world: &mut Observed, node: &NodeName, change: impl FnOnce(&mut Node)) {
    if let Some(node) = world.nodes.get_mut(node) {
        change(node);
    }
}

fn comes_up(world: &mut Observed, name: &NodeName) {
    with_node(world, name, |node| {
        node.engine = Engine::Ready;
        node.inputs = Inputs::Current;
        node.cure = Cure::Untried;
        node.down_seconds = 0;
    });
    for ledger in world.ledgers.values_mut() {
        for member in ledger.members.values_mut().filter(|m| m.node.as_ref() == Some(name)) {
            member.liveness = Liveness::Live;
            member.signed = 12;
        }
        if let Some(follower) = ledger.followers.get_mut(name) {
            *follower = Follower { lag: 0, steady_seconds: u64::MAX, connected: true };
        }
        let live: u64 = ledger
            .members
            .values()
            .filter(|member| member.liveness == Liveness::Live)
            .map(|member| member.power)
            .sum();
        let total = ledger.members.values().map(|member| member.power).sum();
        if ledger.head == Head::Standing && live >= ledger.quorum.needed(total) {
            ledger.head = Head::Producing;
        }
    }
}

fn take_effect(ledger: &mut Ledger, change: &Change) {
    match change {
        Change::Add { node, power } => {
            let member = Member {
                power: *power,
                node: Some(node.clone()),
                liveness: Liveness::Live,
                signed: 12,
            };
            // The ledger will name it by its key, which nobody knows yet.
            ledger.members.insert(format!("key of {node}"), member);
        }
        Change::SetPower { member, power } => {
            if let Some(member) = ledger.members.get_mut(member) {
                member.power = *power;
            }
        }
        Change::Remove { member } => {
            ledger.members.remove(member);
        }
    }
}

fn spare(world: &Observed, policy: &Policy, without: Option<&NodeName>) -> Option<usize> {
    let spares = world.ledgers.values().map(|ledger| {
        let projection = Projection::of(ledger, policy);
        without.map_or(projection.clone(), |node| projection.without_node(node)).spare()
    });
    // `None` is the smallest.
    spares.min().flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::membership::model::DesiredSet;
    use crate::quorum::Quorum;
    use proptest::prelude::*;

    /// A network of healthy voters with these powers, in set `a`.
    pub fn healthy(quorum: Quorum, weights: bool, powers: &[u64]) -> Observed {
        let name = |n: usize| NodeName::from_object(&format!("net-a-{n}"));
        let follower = Follower { lag: 0, steady_seconds: 99, connected: true };
        let members = powers.iter().enumerate().map(|(n, power)| {
            let member =
                Member { power: *power, node: Some(name(n)), liveness: Liveness::Live, signed: 12 };
            (format!("k{n}"), member)
        });
        let ledger = Ledger {
            quorum,
            weights,
            members: members.collect(),
            agreed: true,
            age_seconds: 0,
            head: Head::Producing,
            height: 100,
            pending: None,
            followers: (0..powers.len()).map(|n| (name(n), follower)).collect(),
        };
        Observed {
            nodes: (0..powers.len()).map(|n| (name(n), Node::new("a"))).collect(),
            ledgers: [("main".to_owned(), ledger)].into(),
            begun: None,
            hub: Hub::Current,
        }
    }

    fn voters(replicas: u32, power: u64) -> Desired {
        let votes_on = ["main".to_owned()].into();
        let set = DesiredSet {
            name: "a".into(),
            replicas,
            votes_on,
            power,
            retire: [].into(),
            cluster: String::new(),
        };
        Desired { sets: vec![set], paused: false }
    }

    #[test]
    fn a_step_under_way_ends_well_and_the_rest_follows() {
        let mut start = healthy(Quorum::MoreThanTwoThirds, true, &[1000; 4]);
        let key = "k3".to_owned();
        let played = |start: &Observed, replicas| {
            let none = |_: &str| -> NodeName { unreachable!() };
            plan(&voters(replicas, 1000), start, &Policy::default(), none)
        };
        let change = Change::Remove { member: key };
        start.begun = Some(Begun::Change { ledger: "main".into(), change, fate: Fate::Sent });
        let shrunk = played(&start, 3);
        assert_eq!(shrunk.end, Decision::Converged);
        let steps: Vec<&Step> = shrunk.steps.iter().map(|step| &step.step).collect();
        assert!(matches!(steps[..], [Step::Settle, Step::Retire { .. }]), "{steps:?}");
        // On a chain that stands it is in no block.
        start.ledgers.get_mut("main").unwrap().head = Head::Standing;
        assert!(matches!(played(&start, 3).end, Decision::Wait(_)));

        let mut start = healthy(Quorum::MoreThanTwoThirds, true, &[1000; 4]);
        let node = NodeName::from_object("net-a-0");
        let down = start.ledgers.get_mut("main").unwrap().members.get_mut("k0").unwrap();
        down.liveness = Liveness::ProvedDown;
        with_node(&mut start, &node, |node| node.engine = Engine::NotReady);
        let (progress, consents) = (Progress::Down, BTreeSet::new());
        start.begun = Some(Begun::Restart { node, progress, consents });
        let restarted = played(&start, 4);
        assert_eq!(restarted.end, Decision::Converged);
        assert_eq!(restarted.steps.len(), 1, "{restarted:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Beyond what the model check explores: any number of voters becomes any other, for every formula,
        /// and no state on the way is without quorum.
        #[test]
        fn any_network_becomes_any_other_without_a_stop(
            from in 1usize..40,
            to in 1u32..40,
            formula in 0usize..Quorum::ALL.len(),
            weights: bool,
        ) {
            let quorum = Quorum::ALL[formula];
            let power = if weights { 1000 } else { 1 };
            let start = healthy(quorum, weights, &vec![power; from]);
            let desired = voters(to, power);
            let mut next = from;
            let plan = plan(&desired, &start, &Policy::default(), |set| {
                next += 1;
                NodeName::from_object(&format!("net-{set}-{}", next - 1))
            });
            prop_assert_eq!(&plan.end, &Decision::Converged, "{:?}", plan.end);
            prop_assert!(plan.steps.iter().all(|step| step.spare.is_some()));
            let changes = plan
                .steps
                .iter()
                .filter(|step| matches!(step.step, Step::BeginChange { .. }));
            // One change for each voter that comes or goes, and one to raise each that enters small.
            let least = from.abs_diff(to as usize);
            let most = if to as usize > from { 2 * least } else { least };
            prop_assert!((least..=most).contains(&changes.count()));
        }

        /// Powers as they come, some voters silent: whatever step is taken, quorum is kept.
        #[test]
        fn no_step_costs_the_quorum(
            powers in proptest::collection::vec(1u64..3000, 1..25),
            silent in proptest::collection::vec(0u8..3, 25),
            replicas in 1u32..25,
            target in 1u64..3000,
        ) {
            let mut start = healthy(Quorum::MoreThanTwoThirds, true, &powers);
            for (member, silent) in start.ledgers.get_mut("main").unwrap().members.values_mut().zip(silent) {
                if silent == 0 {
                    member.liveness = Liveness::Unknown;
                    member.signed = 0;
                }
            }
            let policy = Policy::default();
            let had = Projection::of(&start.ledgers["main"], &policy).has_quorum();
            let mut next = powers.len();
            let plan = plan(&voters(replicas, target), &start, &policy, |set| {
                next += 1;
                NodeName::from_object(&format!("net-{set}-{}", next - 1))
            });
            if had {
                prop_assert!(plan.steps.iter().all(|step| step.spare.is_some()), "{:#?}", plan);
            }
        }
    }
}
