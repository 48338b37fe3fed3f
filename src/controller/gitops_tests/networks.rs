//! A network in every state.

use std::collections::{BTreeMap, BTreeSet};

use bsn_core::membership::Decision;
use bsn_core::membership::model::{Gate, Refusal as Refused, Step as PlannedStep};
use bsn_core::names::NodeName;
use serde_json::{Value, json};

use super::Health::{Degraded, Healthy, Progressing, Suspended};
use super::Kstatus::{Current, Failed, InProgress, Terminating};
use super::nodes::{NodeWorld, disk_that_cannot_grow, disk_that_grows, first, node};
use super::{Case, anchor, as_json, at, case, network_object, now, spec, view};
use crate::api::conditions::{Reason, STALLED, State, find};
use crate::api::{BsnNetworkStatus, BsnNode, Storage};
use crate::controller::Refusal;
use crate::controller::network::addresses::Unreached;
use crate::controller::network::disks::observe_disks;
use crate::controller::network::report::{Input, compute_status, refused_status};
use crate::controller::network::steps::Steps;
use crate::view::Liveness;

/// What a network's status follows from.
pub(super) struct World {
    pub(super) old: BsnNetworkStatus,
    pub(super) generation: i64,
    pub(super) paused: bool,
    pub(super) formed: bool,
    pub(super) waiting: Vec<NodeName>,
    pub(super) steps: Steps,
    pub(super) refusals: Vec<Refusal>,
    pub(super) clusters: BTreeMap<String, Option<Refusal>>,
    pub(super) unreached: BTreeMap<NodeName, Unreached>,
    pub(super) nodes: Vec<BsnNode>,
    pub(super) liveness: Liveness,
}

impl Default for World {
    fn default() -> Self {
        Self {
            old: BsnNetworkStatus::default(),
            generation: 1,
            paused: false,
            formed: true,
            waiting: Vec::new(),
            steps: decided(Decision::Converged),
            refusals: Vec::new(),
            clusters: BTreeMap::new(),
            unreached: BTreeMap::new(),
            nodes: nodes(&first(), &NodeWorld::default()),
            liveness: Liveness::Live,
        }
    }
}

impl World {
    /// A network that was as described, with another description now.
    pub(super) fn changed() -> Self {
        Self { old: Self::default().status(), generation: 2, ..Self::default() }
    }

    pub(super) fn status(&self) -> BsnNetworkStatus {
        let (anchor, view) = (anchor(self.formed), view(self.liveness));
        let input = Input {
            disks: &observe_disks(Some(&anchor), &storage(), &self.nodes),
            clusters: &self.clusters,
            unreached: &self.unreached,
            paused: self.paused,
            anchor: Some(&anchor),
            refusals: &self.refusals,
            waiting: &self.waiting,
            steps: &self.steps,
            nodes: &self.nodes,
            view: self.formed.then_some(&view),
        };
        compute_status(&self.old, &input, Some(self.generation), now())
    }

    pub(super) fn object(&self) -> Value {
        let mut network = network_object(spec(self.paused), self.generation);
        network.status = Some(self.status());
        as_json(&network)
    }
}

/// The disks described.
fn storage() -> BTreeMap<String, Storage> {
    ["hangzhou", "nanjing"].map(|set| (set.to_owned(), Storage::default())).into()
}

/// The four nodes; the one named is as it is in `world`, the others follow.
fn nodes(name: &NodeName, world: &NodeWorld) -> Vec<BsnNode> {
    let anchor = anchor(true);
    let well = NodeWorld::default();
    anchor.members().map(|(n, _)| node(&n, if n == *name { world } else { &well })).collect()
}

pub(super) fn decided(decision: Decision) -> Steps {
    let next = match &decision {
        Decision::Step { step, .. } => Some(step.to_string()),
        _ => None,
    };
    Steps { decision: Some(decision), next, powers: vec![1000; 4], ..Steps::default() }
}

/// A restart is under way, and this was decided.
pub(super) fn restarting(decision: Decision) -> Steps {
    Steps { under_way: Some(restart().to_string()), restarts: true, ..decided(decision) }
}

pub(super) fn restart() -> PlannedStep {
    PlannedStep::BeginRestart { node: first() }
}

pub(super) fn refused(gate: Gate, message: &str) -> Refused {
    Refused { gate, step: restart().to_string(), message: message.to_owned(), consent: None }
}

pub(super) fn consent_needed() -> Decision {
    Decision::NeedsConsent(Refused {
        consent: Some("restart-with-downtime/city-ledger-hangzhou-0/5eed".to_owned()),
        ..refused(Gate::QuorumDuringRestart, "3000 of 4000 power would be left, and 4000 is needed")
    })
}

pub(super) fn stuck() -> Decision {
    Decision::Stuck(refused(
        Gate::NodeComesBack,
        "city-ledger-hangzhou-0 was restarted and does not follow yet, for 600 s; see its own condition, and correct \
         or revert its description",
    ))
}

pub(super) fn network_cases() -> Vec<Case> {
    [cases_of_a_life(), cases_of_changes(), cases_of_trouble(), cases_of_pauses()].concat()
}

fn of(world: &World) -> Value {
    world.object()
}

fn step(step: PlannedStep) -> Decision {
    Decision::Step { step, consents: BTreeSet::new() }
}

fn waits(gate: Gate, message: &str) -> Decision {
    Decision::Wait(refused(gate, message))
}

fn forming() -> World {
    World {
        formed: false,
        waiting: vec![first()],
        steps: Steps::default(),
        nodes: Vec::new(),
        ..World::default()
    }
}

fn unreachable() -> BTreeMap<String, Option<Refusal>> {
    let message = "cluster beijing: https://192.168.7.2:6443 cannot be reached: Connection refused";
    let refusal = Refusal::new(Reason::ClusterUnreachable, message);
    [("beijing".to_owned(), Some(refusal)), ("hangzhou".to_owned(), None)].into()
}

fn down() -> NodeWorld {
    NodeWorld {
        pod: Some(json!({"conditions": [{"type": "Ready", "status": "False"}]})),
        ..NodeWorld::default()
    }
}

/// From the first moment to the last.
fn cases_of_a_life() -> Vec<Case> {
    let mut unseen = network_object(spec(false), 1);
    unseen.status = Some(super::unseen());
    let mut going = network_object(spec(false), 1);
    going.status = Some(World::default().status());
    going.metadata.deletion_timestamp = Some(at(now()));
    vec![
        case("a_network_that_nobody_has_seen_yet", InProgress, Progressing, as_json(&unseen)),
        case("a_network_that_is_being_formed", InProgress, Progressing, of(&forming())),
        case(
            "a_network_whose_nodes_start",
            InProgress,
            Progressing,
            of(&World {
                steps: Steps::default(),
                nodes: nodes(
                    &first(),
                    &NodeWorld { pod: None, seen: None, ..NodeWorld::default() },
                ),
                liveness: Liveness::Unknown,
                ..World::default()
            }),
        ),
        case(
            "a_network_that_is_not_known_to_make_blocks",
            InProgress,
            Progressing,
            of(&World { liveness: Liveness::Silent, ..World::default() }),
        ),
        case("a_network_as_described", Current, Healthy, of(&World::default())),
        case("a_network_that_is_being_deleted", Terminating, Progressing, as_json(&going)),
    ]
}

/// Another description.
fn cases_of_changes() -> Vec<Case> {
    let changed = |steps: Steps| World { steps, ..World::changed() }.object();
    let mut behind = network_object(spec(false), 2);
    behind.status = Some(World::default().status());
    vec![
        case("a_change_that_nobody_has_seen_yet", InProgress, Progressing, as_json(&behind)),
        case(
            "a_change_that_a_new_leader_has_not_looked_at",
            InProgress,
            Progressing,
            changed(Steps::default()),
        ),
        case(
            "a_new_leader_keeps_what_was_said_of_the_same_description",
            Current,
            Healthy,
            of(&World {
                old: World::default().status(),
                steps: Steps::default(),
                liveness: Liveness::Unknown,
                ..World::default()
            }),
        ),
        case(
            "a_load_balancer_without_an_address_yet",
            InProgress,
            Progressing,
            of(&World {
                unreached: [(first(), Unreached::NoLoadBalancer)].into(),
                ..World::changed()
            }),
        ),
        case("a_disk_grows", InProgress, Progressing, of(&with_disk(disk_that_grows()))),
        case("a_disk_cannot_grow", Failed, Degraded, of(&with_disk(disk_that_cannot_grow()))),
        case(
            "a_disk_is_to_grow_once_it_is_not_paused",
            Failed,
            Suspended,
            of(&World { paused: true, ..with_disk(disk_that_grows()) }),
        ),
        case("a_restart_comes_next", InProgress, Progressing, changed(decided(step(restart())))),
        case(
            "a_restart_is_under_way",
            InProgress,
            Progressing,
            changed(restarting(waits(Gate::NodeComesBack, "it does not follow yet"))),
        ),
        case(
            "a_change_of_members_is_under_way",
            InProgress,
            Progressing,
            changed(Steps {
                under_way: Some("add city-ledger-nanjing-2 as a voter with power 10".to_owned()),
                ..decided(waits(Gate::OneChangeAtATime, "it was sent"))
            }),
        ),
        case(
            "a_gate_that_time_opens",
            InProgress,
            Progressing,
            changed(decided(waits(Gate::OthersHealthy, "city-ledger-nanjing-1 does not sign"))),
        ),
        case(
            "the_governance_of_the_chain_decides",
            InProgress,
            Progressing,
            changed(decided(waits(
                Gate::AuthoritySubmits,
                "the chain's governance has to do this",
            ))),
        ),
        case("a_consent_is_needed", Failed, Degraded, changed(decided(consent_needed()))),
        case(
            "a_consent_is_needed_for_what_is_under_way",
            Failed,
            Degraded,
            changed(restarting(consent_needed())),
        ),
        case("a_person_has_to_do_something", Failed, Degraded, changed(decided(stuck()))),
        case("a_restarted_node_stays_away", Failed, Degraded, changed(restarting(stuck()))),
        case(
            "a_node_is_held",
            Failed,
            Degraded,
            changed(decided(waits(Gate::NotHeld, "it is held; take the hold from it to go on"))),
        ),
    ]
}

/// A node tells this of its disk.
fn with_disk(disk: State) -> World {
    let world = NodeWorld { disk: Some(disk), ..NodeWorld::default() };
    World { nodes: nodes(&first(), &world), ..World::changed() }
}

fn lost_disk() -> NodeWorld {
    NodeWorld {
        refusal: Some(Refusal::new(Reason::DiskLost, "its disk is gone; restore it")),
        ..NodeWorld::default()
    }
}

#[test]
fn what_a_refused_node_says_comes_before_what_is_planned_for_it() {
    let nodes = nodes(&first(), &lost_disk());
    let steps = decided(stuck());
    let stalled = |liveness| {
        let world =
            World { nodes: nodes.clone(), steps: steps.clone(), liveness, ..World::default() };
        let status = world.status();
        find(&status.conditions, STALLED).unwrap().clone()
    };
    let said = stalled(Liveness::Live);
    assert!(said.reason == "DiskLost" && said.message.ends_with("restore it"), "{said:?}");
    // There it would be the wrong thing to do.
    assert_ne!(stalled(Liveness::Frozen).reason, "DiskLost");
}

/// What is broken, or refused.
fn cases_of_trouble() -> Vec<Case> {
    let refusal = |reason, message: &str| {
        let mut network = network_object(spec(false), 2);
        let refusal = Refusal::new(reason, message);
        network.status = Some(refused_status(&World::default().status(), &refusal, Some(2), now()));
        as_json(&network)
    };
    let lost = lost_disk();
    vec![
        case(
            "a_node_is_down",
            InProgress,
            Progressing,
            of(&World { nodes: nodes(&first(), &down()), ..World::default() }),
        ),
        case(
            "a_node_is_refused",
            Failed,
            Degraded,
            of(&World { nodes: nodes(&first(), &lost), ..World::default() }),
        ),
        // Its nodes are seen to follow the chain all the same.
        case(
            "a_member_cluster_that_cannot_be_asked",
            Current,
            Healthy,
            of(&World { clusters: unreachable(), ..World::default() }),
        ),
        // What waits for it is not done.
        case(
            "a_step_that_needs_a_member_cluster",
            InProgress,
            Progressing,
            of(&World {
                clusters: unreachable(),
                refusals: unreachable().into_values().flatten().collect(),
                ..World::default()
            }),
        ),
        case(
            "a_hub_that_is_older_than_its_network",
            Failed,
            Degraded,
            of(&World {
                steps: decided(Decision::NeedsConsent(Refused {
                    consent: Some("take-over/hub/id-1/7".to_owned()),
                    ..refused(
                        Gate::HubStateNotOlderThanAnchor,
                        "this hub came from a backup: the anchor in cluster beijing was written 9 times, its own 5 times",
                    )
                })),
                ..World::default()
            }),
        ),
        case(
            "a_chain_that_stands",
            InProgress,
            Progressing,
            of(&World { liveness: Liveness::Standing, ..World::default() }),
        ),
        case(
            "a_chain_that_is_frozen",
            Failed,
            Degraded,
            of(&World { liveness: Liveness::Frozen, ..World::default() }),
        ),
        case(
            "a_description_that_is_not_valid",
            Failed,
            Degraded,
            refusal(Reason::InvalidSpec, "two node sets are named \"a\"; give each its own name"),
        ),
        case(
            "a_chain_to_join_whose_genesis_is_not_there_yet",
            InProgress,
            Progressing,
            of(&World {
                refusals: vec![Refusal::new(
                    Reason::GenesisMissing,
                    "ConfigMap theirs with the genesis does not exist in this namespace",
                )],
                waiting: Vec::new(),
                ..forming()
            }),
        ),
        case(
            "a_pass_that_was_refused",
            Failed,
            Degraded,
            of(&World {
                refusals: vec![Refusal::new(Reason::AnchorRefused, "the anchor is missing")],
                ..World::default()
            }),
        ),
    ]
}

fn cases_of_pauses() -> Vec<Case> {
    let gate = waits(Gate::NotPaused, "spec.paused is set; set it to false to go on");
    vec![
        case(
            "paused_as_described",
            Current,
            Suspended,
            of(&World { paused: true, ..World::changed() }),
        ),
        case(
            "paused_with_a_change_that_waits",
            Failed,
            Suspended,
            of(&World { paused: true, steps: decided(gate), ..World::changed() }),
        ),
        case(
            "paused_with_a_change_that_nobody_has_looked_at",
            InProgress,
            Suspended,
            of(&World { paused: true, steps: Steps::default(), ..World::changed() }),
        ),
        case(
            "paused_with_a_step_under_way",
            Failed,
            Suspended,
            of(&World {
                paused: true,
                steps: restarting(step(PlannedStep::Settle)),
                ..World::changed()
            }),
        ),
        case(
            "paused_before_it_was_formed",
            Failed,
            Suspended,
            of(&World { paused: true, ..forming() }),
        ),
        case(
            "paused_with_a_node_down",
            InProgress,
            Suspended,
            of(&World { paused: true, nodes: nodes(&first(), &down()), ..World::changed() }),
        ),
        case(
            "paused_with_a_frozen_chain",
            Failed,
            Degraded,
            of(&World { paused: true, liveness: Liveness::Frozen, ..World::changed() }),
        ),
    ]
}
