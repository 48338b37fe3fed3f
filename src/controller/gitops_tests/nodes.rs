//! A node in every state.

use bsn_core::evidence::{GuardReport, GuardState};
use bsn_core::names::NodeName;
use bsn_core::pki::ObservedLeaf;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::Health::{Degraded, Healthy, Progressing};
use super::Kstatus::{Current, Failed, InProgress, Terminating};
use super::{Case, anchor, as_json, at, case, now, unseen};
use crate::api::conditions::{DISK_AS_DESCRIBED, Reason, State, merge};
use crate::api::{BsnNode, BsnNodeSpec, BsnNodeStatus, NetworkRef, NodeRole, Storage};
use crate::cluster::registry::HUB;
use crate::controller::Refusal;
use crate::controller::node::apply::Applied;
use crate::controller::node::pod::ObservedWorkload;
use crate::controller::node::report::compute_states;
use crate::view::NodeView;

/// What a node's status follows from.
pub(super) struct NodeWorld {
    pub(super) formed: bool,
    pub(super) pod: Option<Value>,
    pub(super) seen: Option<NodeView>,
    pub(super) refusal: Option<Refusal>,
    pub(super) disk: Option<State>,
}

impl Default for NodeWorld {
    fn default() -> Self {
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        Self { formed: true, pod: Some(ready), seen: Some(seen()), refusal: None, disk: None }
    }
}

fn seen() -> NodeView {
    NodeView {
        name: "city-ledger-hangzhou-0".to_owned(),
        cluster: HUB.to_owned(),
        role: "Validator".to_owned(),
        via: None,
        evidence_age_seconds: Some(0.1),
        problem: None,
        height: Some(42),
        lag: Some(0),
        in_sync: true,
        peers: Some(3),
        voting_power: Some(1000),
        signed: Some(12),
        version: Some("0.38.25".to_owned()),
        template_hash: None,
        guard: None,
        certificate_ends: None,
        agents: None,
    }
}

pub(super) fn node_object(
    name: &NodeName,
    generation: i64,
    status: Option<BsnNodeStatus>,
) -> BsnNode {
    let set = if name.as_str().contains("hangzhou") { "hangzhou" } else { "nanjing" };
    let spec = BsnNodeSpec {
        network_ref: NetworkRef { name: "city-ledger".to_owned() },
        node_set: set.to_owned(),
        cluster: None,
        role: NodeRole::Validator,
        storage: Storage::default(),
    };
    let mut node = BsnNode::new(name.as_str(), spec);
    node.metadata.namespace = Some("ledger".to_owned());
    node.metadata.generation = Some(generation);
    node.status = status;
    node
}

pub(super) fn node(name: &NodeName, world: &NodeWorld) -> BsnNode {
    let mut applied = Applied::untouched(anchor(world.formed));
    applied.refusal.clone_from(&world.refusal);
    applied.disk.clone_from(&world.disk);
    applied.leaf = Some(ObservedLeaf {
        spki_sha256: "5eed".to_owned(),
        signed_by_ca: true,
        names: Vec::new(),
        not_before: now() - SignedDuration::from_hours(24),
        not_after: now() + SignedDuration::from_hours(2000),
    });
    let pod: Option<Pod> = world.pod.as_ref().map(|status| {
        let meta = json!({"name": format!("{name}-0"), "namespace": "ledger"});
        serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap()
    });
    let old = BsnNodeStatus::default();
    let workload = ObservedWorkload { pod: pod.as_ref(), ..ObservedWorkload::default() };
    let states = compute_states(&old, &applied, &workload, world.seen.as_ref(), now());
    let status = BsnNodeStatus {
        observed_generation: Some(1),
        conditions: merge(&[], &states, Some(1), now()),
        certificate_ends: Some("2026-03-26T11:04:05Z".to_owned()),
        ..old
    };
    node_object(name, 1, Some(status))
}

pub(super) fn disk_that_grows() -> State {
    let message = "city-ledger-hangzhou-0-data: the volume grows from 20Gi to 40Gi";
    State::new(DISK_AS_DESCRIBED, false, Reason::DiskGrowing, message)
}

pub(super) fn disk_that_cannot_grow() -> State {
    let message = "city-ledger-hangzhou-0-data: 40Gi are described, and the API server refuses";
    State::new(DISK_AS_DESCRIBED, false, Reason::DiskGrowthRefused, message)
}

pub(super) fn first() -> NodeName {
    NodeName::from_object("city-ledger-hangzhou-0")
}

pub(super) fn node_cases() -> Vec<Case> {
    let of = |world: NodeWorld| as_json(&node(&first(), &world));
    let pod = |status: Value| Some(status);
    let with_seen = |change: fn(&mut NodeView)| {
        let mut seen = seen();
        change(&mut seen);
        NodeWorld { seen: Some(seen), ..NodeWorld::default() }
    };
    let unready = json!({"conditions": [{"type": "Ready", "status": "False"}]});
    let unplaced = json!({"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
    }]});
    let failing = json!({
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{
            "name": "engine", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff"}},
        }],
    });
    let lost = Refusal::new(Reason::KeyLost, "the Secret of its keys is missing; restore it");
    let mut going = node(&first(), &NodeWorld::default());
    going.metadata.deletion_timestamp = Some(at(now()));
    let refused = GuardReport {
        state: GuardState::Refused,
        message: "the disk is empty now and was not before".to_owned(),
        nonce: None,
    };
    vec![
        case(
            "a_node_that_nobody_has_seen_yet",
            InProgress,
            Progressing,
            as_json(&node_object(&first(), 1, Some(unseen()))),
        ),
        case(
            "a_node_that_waits_for_the_genesis",
            InProgress,
            Progressing,
            of(NodeWorld { formed: false, pod: None, seen: None, ..NodeWorld::default() }),
        ),
        case(
            "a_node_without_a_pod",
            InProgress,
            Progressing,
            of(NodeWorld { pod: None, seen: None, ..NodeWorld::default() }),
        ),
        case(
            "a_node_whose_pod_is_not_ready",
            InProgress,
            Progressing,
            of(NodeWorld { pod: pod(unready), ..NodeWorld::default() }),
        ),
        case(
            "a_node_that_no_machine_takes",
            InProgress,
            Progressing,
            of(NodeWorld { pod: pod(unplaced), seen: None, ..NodeWorld::default() }),
        ),
        case(
            "a_node_whose_image_is_not_found",
            InProgress,
            Progressing,
            of(NodeWorld { pod: pod(failing), seen: None, ..NodeWorld::default() }),
        ),
        case(
            "a_node_that_catches_up",
            InProgress,
            Progressing,
            of(with_seen(|seen| (seen.in_sync, seen.lag) = (false, Some(30)))),
        ),
        case(
            "a_node_that_is_silent",
            InProgress,
            Progressing,
            of(with_seen(|seen| seen.problem = Some("connection refused".to_owned()))),
        ),
        case("a_node_that_follows", Current, Healthy, of(NodeWorld::default())),
        case(
            "a_node_that_lost_its_keys",
            Failed,
            Degraded,
            of(NodeWorld { refusal: Some(lost), ..NodeWorld::default() }),
        ),
        case(
            "a_node_whose_disk_is_refused",
            Failed,
            Degraded,
            of(NodeWorld {
                seen: Some(NodeView { guard: Some(refused), ..seen() }),
                ..NodeWorld::default()
            }),
        ),
        // The node works; its network tells of the disk.
        case(
            "a_node_whose_disk_grows",
            Current,
            Healthy,
            of(NodeWorld { disk: Some(disk_that_grows()), ..NodeWorld::default() }),
        ),
        case("a_node_that_is_being_deleted", Terminating, Progressing, as_json(&going)),
    ]
}
