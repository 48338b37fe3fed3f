//! A node's status: computed purely, written once, and only when it changed.

use std::time::Duration;

use bsn_core::evidence::GuardState;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::Api;

use super::SLOW_LOOK;
use super::apply::{Applied, Pass};
use super::pod::{ObservedWorkload, failure, is_ready, next_look, why_absent, why_not_ready};
use crate::api::conditions::{
    CERTIFICATES_VALID, DISK_AS_DESCRIBED, READY, RECONCILING, Reason, STALLED, State, find, merge,
};
use crate::api::{BsnNode, BsnNodeStatus};
use crate::apply::{ApiError, write_status};
use crate::cluster::watches::{GuardedNode, cached};
use crate::controller::context::Context;
use crate::controller::network::report::state_of;
use crate::controller::{Error, Refusal};
use crate::evidence::poller::{Observation, judge};
use crate::view::NetworkKey;
use crate::view::NodeView;

/// Time between two looks at a node that is refused.
const REFUSED_LOOK: Duration = Duration::from_secs(15);

/// Time between two tries of a disk that cannot grow: what a person changes for it, no watch shows.
const DISK_LOOK: Duration = Duration::from_mins(1);

/// Reports a node that can't be looked at any further.
pub async fn report_refusal(ctx: &Context, node: &BsnNode, refusal: &Refusal) -> Result<(), Error> {
    report_states(ctx, node, &refusal.states()).await
}

/// Reports a node whose object does not parse, and of which the metadata is left. `status` = what was said of it.
pub async fn report_unparsable(
    ctx: &Context,
    meta: &ObjectMeta,
    status: Option<BsnNodeStatus>,
    message: String,
) -> Result<(), Error> {
    let (old, refusal) = (status.unwrap_or_default(), Refusal::new(Reason::Unparsable, message));
    let status = with_states(&old, &refusal.states(), meta.generation, ctx.now());
    Ok(write(ctx, meta, &old, &status).await?)
}

/// Reports a node whose cluster cannot be used now. That says nothing about the node: it may be seen to work all the
/// same.
pub async fn report_absent(
    ctx: &Context,
    key: &NetworkKey,
    node: &BsnNode,
    absent: &Refusal,
) -> Result<(), Error> {
    let Refusal { reason, message } = absent;
    if *reason == Reason::Connecting {
        // An operator that has just started does not know yet, and that is no news.
        return Ok(());
    }
    if !reason.may_pass() {
        return report_refusal(ctx, node, absent).await;
    }
    let view = ctx.views.get(key);
    let name = node.name_any();
    let seen = view.as_ref().and_then(|view| view.nodes.iter().find(|node| node.name == name));
    let ready = match judge(seen) {
        Observation::InSync => State::new(READY, true, Reason::AsDescribed, "follows the chain"),
        _ => State::new(READY, None, *reason, message),
    };
    let states = [
        ready,
        State::new(STALLED, false, *reason, ""),
        State::new(RECONCILING, true, *reason, message),
    ];
    report_states(ctx, node, &states).await
}

/// Reports these conditions of a node; all else that was said stays.
async fn report_states(ctx: &Context, node: &BsnNode, states: &[State]) -> Result<(), Error> {
    let old = node.status.clone().unwrap_or_default();
    let status = with_states(&old, states, node.metadata.generation, ctx.now());
    Ok(write(ctx, &node.metadata, &old, &status).await?)
}

fn with_states(
    old: &BsnNodeStatus,
    states: &[State],
    generation: Option<i64>,
    now: Timestamp,
) -> BsnNodeStatus {
    BsnNodeStatus {
        observed_generation: generation,
        conditions: merge(&old.conditions, states, generation, now),
        ..old.clone()
    }
}

/// Reports where a pass ended; returns when to look again without a cause.
pub async fn report_node(pass: &Pass<'_>, applied: &Applied) -> Result<Duration, Error> {
    let Pass { ctx, place, key, node, name, .. } = *pass;
    let (objects, namespace) = (&place.objects, &key.namespace);
    let set = cached(&objects.stateful_sets, namespace, name.as_str());
    let pod = cached(&objects.pods, namespace, &format!("{name}-0"));
    let claim = cached(&objects.disks, namespace, &name.disk());
    let workload =
        ObservedWorkload { set: set.as_deref(), pod: pod.as_deref(), claim: claim.as_deref() };
    let view = ctx.views.get(key);
    let seen =
        view.as_ref().and_then(|view| view.nodes.iter().find(|node| node.name == name.as_str()));
    let old = node.status.clone().unwrap_or_default();
    let now = ctx.now();
    let states = compute_states(&old, applied, &workload, seen, now);
    let identity = applied.anchor.identity(name);
    let keys = identity.and_then(|identity| identity.keys.as_ref());
    let status = BsnNodeStatus {
        observed_generation: node.metadata.generation,
        conditions: merge(&old.conditions, &states, node.metadata.generation, now),
        identity_id: identity.map(|identity| identity.id.clone()),
        address: keys.map(|keys| keys.consensus.validator_address()),
        node_id: keys.map(|keys| keys.p2p.node_id()),
        certificate_ends: applied
            .leaf
            .as_ref()
            .map(|leaf| leaf.not_after.to_string())
            .or_else(|| old.certificate_ends.clone()),
    };
    write(ctx, &node.metadata, &old, &status).await?;
    let due =
        applied.renew_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    // What a person mends by hand is often something no watch shows.
    let disk_waits = applied.disk.as_ref().is_some_and(|disk| disk.status != Some(true));
    let look = match &applied.refusal {
        Some(_) => REFUSED_LOOK,
        None if disk_waits => DISK_LOOK,
        None => SLOW_LOOK,
    };
    let starts = workload.pod.and_then(|pod| next_look(pod, now)).unwrap_or(look);
    let look = look.min(starts.max(Duration::from_secs(1)));
    Ok(due.unwrap_or(look).clamp(Duration::from_secs(1), look))
}

/// Computes a node's conditions.
pub(in crate::controller) fn compute_states(
    old: &BsnNodeStatus,
    applied: &Applied,
    workload: &ObservedWorkload<'_>,
    seen: Option<&NodeView>,
    now: Timestamp,
) -> Vec<State> {
    let certificates = certificates(old, applied, now);
    // A disk that never had to grow needs no word.
    let is_told = |disk: &&State| {
        disk.status != Some(true) || find(&old.conditions, DISK_AS_DESCRIBED).is_some()
    };
    let others = [certificates].into_iter().chain(applied.disk.as_ref().filter(is_told).cloned());
    let refusal = applied.refusal.clone().or_else(|| guard_refusal(old, seen));
    if let Some(refusal) = refusal {
        return refusal.states().into_iter().chain(others).collect();
    }
    let ready = ready(old, applied, workload, &judge(seen), now);
    let working = ready.status != Some(true);
    let reconciling = State::new(RECONCILING, working, ready.reason, ready.message.clone());
    let stalled = State::new(STALLED, false, Reason::AsDescribed, "");
    [ready, stalled, reconciling].into_iter().chain(others).collect()
}

fn ready(
    old: &BsnNodeStatus,
    applied: &Applied,
    workload: &ObservedWorkload<'_>,
    observation: &Observation,
    now: Timestamp,
) -> State {
    if !applied.anchor.formed {
        return State::new(READY, false, Reason::Forming, "waiting for the genesis");
    }
    let Some(pod) = workload.pod else {
        return State::new(READY, false, Reason::NodesStarting, why_absent(workload.set));
    };
    if let Some(why) = failure(pod) {
        return State::new(READY, false, Reason::PodFailing, why);
    }
    if !is_ready(pod) {
        let why = why_not_ready(pod, workload.claim, now);
        return State::new(READY, false, Reason::PodNotReady, why);
    }
    // A ready pod alone proves nothing: the node must be seen to follow the chain.
    match observation {
        Observation::InSync => State::new(READY, true, Reason::AsDescribed, "follows the chain"),
        Observation::Behind => {
            State::new(READY, false, Reason::CatchingUp, "answers, and trails the chain")
        }
        Observation::Silent(why) => {
            State::new(READY, false, Reason::NodeSilent, format!("no evidence from it: {why}"))
        }
        Observation::Unknown => find(&old.conditions, READY)
            .filter(|condition| condition.status == "True")
            .and_then(|condition| state_of(condition, READY))
            .unwrap_or_else(|| {
                let message = "its pod is ready; it has not been seen to follow the chain yet";
                State::new(READY, false, Reason::NotYetObserved, message)
            }),
    }
}

fn certificates(old: &BsnNodeStatus, applied: &Applied, now: Timestamp) -> State {
    let Some(leaf) = &applied.leaf else {
        // Not looked at in this pass: what was known stays.
        return find(&old.conditions, CERTIFICATES_VALID)
            .and_then(|condition| state_of(condition, CERTIFICATES_VALID))
            .unwrap_or_else(|| {
                State::new(CERTIFICATES_VALID, None, Reason::Forming, "not issued yet")
            });
    };
    let left = leaf.not_after.duration_since(now);
    let tenth: SignedDuration = leaf.not_after.duration_since(leaf.not_before) / 10;
    if left > tenth {
        State::new(CERTIFICATES_VALID, true, Reason::CertificatesCurrent, "")
    } else {
        let message =
            format!("its certificate ends {} and was not renewed in time", leaf.not_after);
        State::new(CERTIFICATES_VALID, false, Reason::CertificateExpiring, message)
    }
}

/// The guard's refusal, if it refuses. While nobody knows, what it said before stays.
fn guard_refusal(old: &BsnNodeStatus, seen: Option<&NodeView>) -> Option<Refusal> {
    if let Some(guard) = seen.and_then(|node| node.guard.as_ref()) {
        return (guard.state == GuardState::Refused)
            .then(|| Refusal::new(Reason::DiskRefused, guard.message.clone()));
    }
    find(&old.conditions, STALLED)
        .filter(|was| was.status == "True" && was.reason == Reason::DiskRefused.as_str())
        .map(|was| Refusal::new(Reason::DiskRefused, was.message.clone()))
}

async fn write(
    ctx: &Context,
    meta: &ObjectMeta,
    old: &BsnNodeStatus,
    status: &BsnNodeStatus,
) -> Result<(), ApiError> {
    if old == status {
        return Ok(());
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let api = Api::<GuardedNode>::namespaced(ctx.client.clone(), namespace);
    if write_status(&api, meta, old, status).await? {
        let kinds = [READY, STALLED, DISK_AS_DESCRIBED];
        let (before, now) = (&old.conditions, &status.conditions);
        ctx.events.changes::<BsnNode>(meta, before, now, &kinds).await;
    }
    Ok(())
}
