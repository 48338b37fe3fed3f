//! A network's status: computed purely, written once, and only when it changed.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::anchor::Anchor;
use bsn_core::consent::CONSENT_ANNOTATION;
use bsn_core::engine::cometbft::QUORUM;
use bsn_core::membership::model::{Gate, Step as PlannedStep};
use bsn_core::membership::{Decision, Refusal as StepRefusal};
use bsn_core::names::NodeName;
use bsn_core::quorum::{Quorum, margin};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::Api;

use super::SLOW_LOOK;
use super::addresses::{Unreached, spans_clusters};
use super::apply::Applied;
use super::disks::{DiskWaits, observe_disks};
use super::observe::ObservedNetwork;
use super::steps::Steps;
use super::validate::ValidatedNetwork;
use crate::api::conditions::{
    self, CERTIFICATES_VALID, CHAIN_LIVE, CLUSTERS_REACHABLE, DRAINS_WAITING, MEMBERSHIP_CONVERGED,
    PAUSED, READY, RECONCILING, Reason, STALLED, State, find, merge,
};
use crate::api::{BsnNetwork, BsnNetworkStatus, BsnNode};
use crate::apply::{ApiError, write_status};
use crate::cluster::watches::{GuardedNetwork, nodes_of};
use crate::controller::context::Context;
use crate::controller::{Error, Refusal};
use crate::view::{Liveness, NetworkKey, NetworkView};

/// Before what failed in a member cluster, or what stands still, is looked at again: it may wait for what no watch shows,
/// such as a Secret or a genesis that others give.
pub(super) const TROUBLED_LOOK: Duration = Duration::from_secs(10);

/// Reports a network that can't be looked at any further.
pub async fn report_refusal(
    ctx: &Context,
    key: &NetworkKey,
    meta: &ObjectMeta,
    existing: Option<&BsnNetworkStatus>,
    refusal: Refusal,
) -> Result<(), Error> {
    let old = existing.cloned().unwrap_or_default();
    let status = refused_status(&old, &refusal, meta.generation, ctx.now());
    write(ctx, key, meta, &old, &status).await?;
    Ok(())
}

/// The status of a network that can't be looked at any further.
pub fn refused_status(
    old: &BsnNetworkStatus,
    refusal: &Refusal,
    generation: Option<i64>,
    now: Timestamp,
) -> BsnNetworkStatus {
    BsnNetworkStatus {
        observed_generation: generation,
        conditions: merge(&old.conditions, &refusal.states(), generation, now),
        ..old.clone()
    }
}

/// Reports where a pass ended; returns when to look again without a cause.
pub async fn report_network(
    ctx: &Context,
    key: &NetworkKey,
    network: &BsnNetwork,
    validated: &ValidatedNetwork,
    observed: &ObservedNetwork,
    applied: &Applied,
) -> Result<Duration, Error> {
    let troubles = ctx.errands.troubles(key);
    let clusters = observed.members.iter().map(|(cluster, place)| {
        let lost = match place {
            Err(absent) => Some(absent.clone().into()),
            Ok(_) => troubles.get(cluster).cloned(),
        };
        (cluster.clone(), lost)
    });
    let clusters = clusters.collect();
    let nodes = nodes_of(&ctx.caches, &key.namespace, &key.name);
    let view = ctx.views.get(key);
    let old = network.status.clone().unwrap_or_default();
    let input = Input {
        paused: validated.paused,
        anchor: applied.anchor.as_ref(),
        refusals: &applied.refusals,
        waiting: &applied.waiting,
        steps: &applied.steps,
        clusters: &clusters,
        unreached: &applied.unreached,
        disks: &observe_disks(applied.anchor.as_ref(), &validated.storage, &nodes),
        nodes: &nodes,
        view: view.as_ref(),
    };
    let status = compute_status(&old, &input, network.metadata.generation, ctx.now());
    write(ctx, key, &network.metadata, &old, &status).await?;
    let check = ctx
        .credentials
        .get(key)
        .and_then(|leaf| Duration::try_from(leaf.check_at.duration_since(ctx.now())).ok());
    let calm = troubles.is_empty() && applied.refusals.is_empty();
    let look = if calm { SLOW_LOOK } else { TROUBLED_LOOK };
    Ok(check.unwrap_or(SLOW_LOOK).clamp(Duration::from_secs(1), look))
}

/// What a network's status follows from.
pub struct Input<'a> {
    /// `spec.paused`.
    pub paused: bool,
    /// The anchor.
    pub anchor: Option<&'a Anchor>,
    /// What stands still.
    pub refusals: &'a [Refusal],
    /// Founders not provisioned yet.
    pub waiting: &'a [NodeName],
    /// Where the steps are.
    pub steps: &'a Steps,
    /// Member clusters, with why they cannot be used.
    pub clusters: &'a BTreeMap<String, Option<Refusal>>,
    /// Nodes that nodes in other clusters do not reach, and why.
    pub unreached: &'a BTreeMap<NodeName, Unreached>,
    /// Nodes whose disks are not as described yet.
    pub disks: &'a [DiskWaits],
    /// The `BsnNode`s.
    pub nodes: &'a [BsnNode],
    /// Live numbers.
    pub view: Option<&'a NetworkView>,
}

/// Computes a network's status.
pub fn compute_status(
    old: &BsnNetworkStatus,
    input: &Input<'_>,
    generation: Option<i64>,
    now: Timestamp,
) -> BsnNetworkStatus {
    let members: Vec<NodeName> = input
        .anchor
        .map(|anchor| anchor.members().map(|(name, _)| name).collect())
        .unwrap_or_default();
    let node = |name: &NodeName| input.nodes.iter().find(|node| node.name_any() == name.as_str());
    let condition = |name: &NodeName, kind: &str| {
        node(name)
            .and_then(|node| node.status.as_ref())
            .and_then(|status| find(&status.conditions, kind))
            .cloned()
    };
    let is_true = |name: &NodeName, kind: &str| {
        condition(name, kind).is_some_and(|condition| condition.status == "True")
    };
    let not_ready: Vec<String> = members
        .iter()
        .filter(|name| !is_true(name, READY))
        .map(|name| {
            let why = condition(name, READY).map_or("starting".to_owned(), |c| c.reason);
            match input.unreached.get(name).filter(|unreached| !unreached.passes()) {
                Some(unreached) => format!("{name} ({why}; {unreached})"),
                None => format!("{name} ({why})"),
            }
        })
        .collect();
    let stalled_nodes: Vec<(String, String, String)> = members
        .iter()
        .filter(|name| is_true(name, STALLED))
        .filter_map(|name| {
            let condition = condition(name, STALLED)?;
            Some((name.to_string(), condition.reason, condition.message))
        })
        .collect();
    let formed = input.anchor.is_some_and(|anchor| anchor.formed);

    let live = chain_live(old, input.view, formed);
    let certificates = certificates(&members, &condition);
    let membership = membership(old, input, formed, generation);

    let (passing, refusals): (Vec<_>, Vec<_>) =
        input.refusals.iter().partition(|refusal| refusal.reason.may_pass());
    let stalled = if let Some(first) = refusals.first() {
        let all: Vec<&str> = refusals.iter().map(|refusal| refusal.message.as_str()).collect();
        State::new(STALLED, true, first.reason, all.join("; "))
    } else if let Some((name, reason, message)) = stalled_nodes.first()
        && live.reason != Reason::ChainFrozen
    {
        // What the planner says of such a node is that it needs a person; the node says what to do, and with which
        // consent. On a frozen chain nothing is to be done to any node.
        let reason = Reason::ALL.iter().find(|r| r.as_str() == reason).copied();
        let message = format!("node {name}: {message}");
        State::new(STALLED, true, reason.unwrap_or(Reason::NodesStarting), message)
    } else if matches!(
        membership.reason,
        Reason::StepRefused | Reason::ConsentNeeded | Reason::AgentImageUnavailable
    ) {
        // Who waits for a change in Git must hear at once that it does not go on without them: until they hear,
        // the tool they wait with applies nothing else, the consent included.
        State::new(STALLED, true, membership.reason, membership.message.clone())
    } else if live.reason == Reason::ChainFrozen {
        State::new(STALLED, true, live.reason, live.message.clone())
    } else if let Some(waits) = waits_for_the_pause(input, &membership) {
        let message = if membership.reason == Reason::PausedByUser {
            waits
        } else {
            format!("{waits}; spec.paused is set: set it to false to go on")
        };
        State::new(STALLED, true, Reason::PausedByUser, message)
    } else if let Some(message) = told_of_disks(input.disks, true) {
        // Last: all else is more urgent, and goes on.
        State::new(STALLED, true, Reason::DiskGrowthRefused, message)
    } else {
        State::new(STALLED, false, Reason::AsDescribed, "")
    };
    let is_stalled = stalled.status == Some(true);

    let ready = if is_stalled {
        State::new(READY, false, stalled.reason, stalled.message.clone())
    } else if let Some(refusal) = passing.first() {
        State::new(READY, false, refusal.reason, refusal.message.clone())
    } else if !formed {
        let message = forming_message(input.waiting);
        State::new(READY, false, Reason::Forming, message)
    } else if membership.status == Some(false)
        // Who is not ready says more than the gate that waits for it.
        && (membership.reason != Reason::GateClosed || not_ready.is_empty())
    {
        State::new(READY, false, membership.reason, membership.message.clone())
    } else if !not_ready.is_empty() {
        let message = format!("not ready: {}", not_ready.join(", "));
        State::new(READY, false, Reason::NodesStarting, message)
    } else if live.status != Some(true) {
        State::new(READY, live.status, live.reason, live.message.clone())
    } else if certificates.status != Some(true) {
        State::new(READY, false, certificates.reason, certificates.message.clone())
    } else if membership.status.is_none() {
        State::new(READY, None, membership.reason, membership.message.clone())
    } else {
        let message = format!("{} nodes follow a chain that makes blocks", members.len());
        State::new(READY, true, Reason::AsDescribed, message)
    };
    let working = ready.status != Some(true) && !is_stalled && !input.paused;
    let pending = input.unreached.iter().filter(|(_, unreached)| unreached.is_pending());
    let pending: Vec<String> = pending.map(|(name, why)| format!("{name}: {why}")).collect();
    let reconciling = if working || is_stalled || input.paused {
        State::new(RECONCILING, working, ready.reason, ready.message.clone())
    } else if !pending.is_empty() {
        let message = format!("{}; others use the last address they know", pending.join(", "));
        State::new(RECONCILING, true, Reason::AddressPending, message)
    } else if let Some(message) = told_of_disks(input.disks, false) {
        State::new(RECONCILING, true, Reason::DiskGrowing, message)
    } else {
        State::new(RECONCILING, false, ready.reason, ready.message.clone())
    };
    let paused = if input.paused {
        State::new(PAUSED, true, Reason::PausedByUser, "set spec.paused to false to go on")
    } else {
        State::new(PAUSED, false, Reason::NotPaused, "")
    };

    let mut states = vec![ready, reconciling, stalled, live, membership, certificates, paused];
    states.extend(drains_waiting(old, input));
    if !input.clusters.is_empty() || find(&old.conditions, CLUSTERS_REACHABLE).is_some() {
        states.push(clusters_reachable(old, input.clusters));
    }
    // While the chain is not seen, what was known stays.
    let powers = Some(&input.steps.powers).filter(|powers| !powers.is_empty());
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let others = &input.steps.foreign;
    BsnNetworkStatus {
        observed_generation: generation,
        conditions: merge(&old.conditions, &states, generation, now),
        network_id: input.anchor.map(|anchor| anchor.network_id.clone()).or(old.network_id.clone()),
        genesis_hash: input.anchor.and_then(|anchor| anchor.genesis_hash.clone()),
        nodes: Some(format!("{}/{}", members.len() - not_ready.len(), members.len())),
        validators: powers.map(|powers| small(powers.len())).or(old.validators),
        foreign_validators: match powers {
            Some(_) => Some(small(others.len())).filter(|foreign| *foreign > 0),
            None => old.foreign_validators,
        },
        needed_by_others: match powers {
            Some(powers) => is_needed(QUORUM, powers, others).then_some(true),
            None => old.needed_by_others,
        },
        margin: powers.map(|powers| small(margin(QUORUM, powers))).or(old.margin),
        certificates_end: members
            .iter()
            .filter_map(|name| node(name)?.status.as_ref()?.certificate_ends.clone())
            .min(),
    }
}

/// Whether other owners vote, and make no blocks without our voters. `powers` are those of all voters.
fn is_needed(quorum: Quorum, powers: &[u64], others: &[u64]) -> bool {
    !others.is_empty() && others.iter().sum::<u64>() < quorum.needed(powers.iter().sum())
}

/// What a paused network is not yet; `None` = it is not paused, or all is as described.
fn waits_for_the_pause(input: &Input<'_>, membership: &State) -> Option<String> {
    if !input.paused {
        None
    } else if membership.status == Some(false) {
        Some(membership.message.clone())
    } else {
        told_of_disks(input.disks, false)
    }
}

/// What nodes say of disks that are not as described, of those that need a person or of the others; `None` = nothing.
fn told_of_disks(disks: &[DiskWaits], refused: bool) -> Option<String> {
    let told = disks.iter().filter(|disk| disk.refused == refused);
    let told: Vec<String> = told.map(|disk| format!("{}: {}", disk.node, disk.message)).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Whether all member clusters can be used. It says nothing about the nodes there.
fn clusters_reachable(
    old: &BsnNetworkStatus,
    clusters: &BTreeMap<String, Option<Refusal>>,
) -> State {
    let lost = || clusters.iter().filter_map(|(name, lost)| Some((name, lost.as_ref()?)));
    // An operator that has just started does not know yet: what was said stays.
    let connecting = lost().all(|(_, refusal)| refusal.reason == Reason::Connecting);
    match lost().next() {
        Some((name, refusal)) if connecting => keep(old, CLUSTERS_REACHABLE).unwrap_or_else(|| {
            let message = format!("{name}: {}", refusal.message);
            State::new(CLUSTERS_REACHABLE, None, refusal.reason, message)
        }),
        None => State::new(CLUSTERS_REACHABLE, true, Reason::ClustersAnswer, ""),
        Some((_, first)) => {
            let all: Vec<String> =
                lost().map(|(name, refusal)| format!("{name}: {}", refusal.message)).collect();
            let message = format!(
                "{}. Nothing is removed or moved because of it, and steps that need no other cluster go on",
                all.join("; ")
            );
            State::new(CLUSTERS_REACHABLE, false, first.reason, message)
        }
    }
}

/// Whether drains wait, of a network that spans clusters, or did.
fn drains_waiting(old: &BsnNetworkStatus, input: &Input<'_>) -> Option<State> {
    let none = || State::new(DRAINS_WAITING, false, Reason::NoDrainWaits, "");
    if !input.anchor.is_some_and(spans_clusters) {
        return find(&old.conditions, DRAINS_WAITING).map(|_| none());
    }
    match input.steps.drains.as_deref() {
        // It was not looked: what was said stays.
        None => keep(old, DRAINS_WAITING),
        Some([]) => Some(none()),
        Some(waits) => {
            let all: Vec<&str> = waits.iter().map(|wait| wait.why.as_str()).collect();
            Some(State::new(DRAINS_WAITING, true, Reason::NothingToSpare, all.join("; ")))
        }
    }
}

fn forming_message(waiting: &[NodeName]) -> String {
    if waiting.is_empty() {
        return "the genesis is being fixed".to_owned();
    }
    let names: Vec<&str> = waiting.iter().map(NodeName::as_str).collect();
    format!("keys and disks are being made for {}", names.join(", "))
}

fn chain_live(old: &BsnNetworkStatus, view: Option<&NetworkView>, formed: bool) -> State {
    if !formed {
        return State::new(CHAIN_LIVE, false, Reason::Forming, "the chain is not formed yet");
    }
    match view.map(|view| view.liveness) {
        Some(Liveness::Live) => State::new(CHAIN_LIVE, true, Reason::BlocksAdvance, ""),
        Some(Liveness::Frozen) => {
            let message = format!(
                "block {} is stored and cannot be applied: consensus has stopped on every node that answers. \
                 Restart none of them, it would not come back; see docs/recovery.md",
                view.map_or(0, |view| view.head)
            );
            State::new(CHAIN_LIVE, false, Reason::ChainFrozen, message)
        }
        Some(Liveness::Standing) => {
            let message = "no new block for longer than five blocks take, and ten seconds at least; see kubectl bsn status";
            State::new(CHAIN_LIVE, false, Reason::HeadStands, message)
        }
        Some(Liveness::Silent) => {
            let message = "no engine answers the operator; whether blocks are made is not known";
            State::new(CHAIN_LIVE, None, Reason::NobodyAnswers, message)
        }
        // An operator that has just started does not know yet, and unknown is no news: what its
        // predecessor saw stays until this one has watched for long enough.
        Some(Liveness::Unknown) | None => keep(old, CHAIN_LIVE).unwrap_or_else(|| {
            let message = "the chain has not been watched for long enough";
            State::new(CHAIN_LIVE, None, Reason::NotYetObserved, message)
        }),
    }
}

/// A condition as it was, to be written again unchanged.
pub fn keep(old: &BsnNetworkStatus, kind: &'static str) -> Option<State> {
    let condition = find(&old.conditions, kind)?;
    // Only a chain that was formed has a past worth keeping.
    if condition.reason == Reason::Forming.as_str() {
        return None;
    }
    state_of(condition, kind)
}

/// A condition as a state.
pub fn state_of(condition: &conditions::Raw, kind: &'static str) -> Option<State> {
    let reason = Reason::ALL.iter().find(|reason| reason.as_str() == condition.reason)?;
    let status = match condition.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    };
    Some(State::new(kind, status, *reason, condition.message.clone()))
}

fn certificates(
    members: &[NodeName],
    condition: &impl Fn(&NodeName, &str) -> Option<conditions::Raw>,
) -> State {
    let mut missing = false;
    let mut bad = Vec::new();
    for name in members {
        match condition(name, CERTIFICATES_VALID) {
            Some(c) if c.status == "True" => {}
            Some(c) if c.status == "False" => bad.push(name.as_str()),
            _ => missing = true,
        }
    }
    if !bad.is_empty() {
        let message = format!("certificates are not valid or end soon: {}", bad.join(", "));
        State::new(CERTIFICATES_VALID, false, Reason::CertificateExpiring, message)
    } else if missing || members.is_empty() {
        State::new(CERTIFICATES_VALID, None, Reason::Forming, "certificates are being issued")
    } else {
        State::new(CERTIFICATES_VALID, true, Reason::CertificatesCurrent, "")
    }
}

/// A closed gate, why it is closed, and the consent that opens it if there is one.
fn why(refusal: &StepRefusal) -> String {
    let consent = refusal.consent.as_ref();
    let how = consent.map(|consent| format!(". To consent: {CONSENT_ANNOTATION}={consent}"));
    format!("{}: {}{}", refusal.gate, refusal.message, how.unwrap_or_default())
}

/// Why a step waits. Time or somebody's recovery opens most gates; two of them, only another description.
fn closed(gate: Gate) -> Reason {
    match gate {
        Gate::NotPaused => Reason::PausedByUser,
        Gate::NotHeld => Reason::StepRefused,
        _ => Reason::GateClosed,
    }
}

/// Whether the members of the chain, and what its nodes run, are as described.
fn membership(
    old: &BsnNetworkStatus,
    input: &Input<'_>,
    formed: bool,
    generation: Option<i64>,
) -> State {
    if !formed {
        let message = "the chain is being formed";
        return State::new(MEMBERSHIP_CONVERGED, false, Reason::Forming, message);
    }
    let state = |reason, message| State::new(MEMBERSHIP_CONVERGED, false, reason, message);
    let steps = input.steps;
    if let Some(what) = &steps.under_way {
        let reason = if steps.restarts { Reason::Restarting } else { Reason::Changing };
        let (reason, why) = match &steps.decision {
            Some(Decision::NeedsConsent(refusal)) => (Reason::ConsentNeeded, why(refusal)),
            Some(Decision::Stuck(refusal)) => (Reason::StepRefused, why(refusal)),
            // That it takes its time needs no word; that a gate closed does.
            Some(Decision::Wait(refusal))
                if !matches!(refusal.gate, Gate::OneChangeAtATime | Gate::NodeComesBack) =>
            {
                (closed(refusal.gate), why(refusal))
            }
            _ => return state(reason, format!("under way: {what}")),
        };
        return state(reason, format!("under way: {what}; it waits for {why}"));
    }
    let refused = |refusal: &StepRefusal| match refusal.step.as_str() {
        // A node that needs a person holds up no step.
        "" => format!("it waits for {}", why(refusal)),
        step => format!("next: {step}; it waits for {}", why(refusal)),
    };
    match &steps.decision {
        Some(Decision::Converged) => {
            State::new(MEMBERSHIP_CONVERGED, true, Reason::AsDescribed, "")
        }
        Some(Decision::Step { step, .. }) => {
            let restart =
                matches!(step, PlannedStep::BeginRestart { .. } | PlannedStep::Cure { .. });
            let reason = if restart { Reason::Restarting } else { Reason::Changing };
            state(reason, format!("next: {}", steps.next.as_deref().unwrap_or_default()))
        }
        Some(Decision::Wait(refusal)) => state(closed(refusal.gate), refused(refusal)),
        Some(Decision::NeedsConsent(refusal)) => state(Reason::ConsentNeeded, refused(refusal)),
        Some(Decision::Stuck(refusal)) => {
            let reason = match refusal.gate {
                Gate::AgentImageAvailable => Reason::AgentImageUnavailable,
                _ => Reason::StepRefused,
            };
            state(reason, refused(refusal))
        }
        None => not_judged(old, input.paused, generation),
    }
}

/// Nothing was decided. An operator that has just started does not know yet: what was said stays, but not
/// what was said of another description. It would call a change done that nobody has looked at.
fn not_judged(old: &BsnNetworkStatus, paused: bool, generation: Option<i64>) -> State {
    let said = find(&old.conditions, MEMBERSHIP_CONVERGED);
    let is_new = said.is_some_and(|said| said.observed_generation != generation);
    let unknown = |message: &str| {
        State::new(MEMBERSHIP_CONVERGED, None, Reason::NotYetObserved, message.to_owned())
    };
    if is_new && paused {
        // Whether anything waits is not known, and may not be while it is paused.
        return unknown("spec.paused is set, and this description was not looked at");
    }
    if is_new {
        let message = "this description is being looked at";
        return State::new(MEMBERSHIP_CONVERGED, false, Reason::Changing, message);
    }
    keep(old, MEMBERSHIP_CONVERGED).unwrap_or_else(|| unknown("the chain has not been seen yet"))
}

async fn write(
    ctx: &Context,
    key: &NetworkKey,
    meta: &ObjectMeta,
    old: &BsnNetworkStatus,
    status: &BsnNetworkStatus,
) -> Result<(), ApiError> {
    if old == status {
        return Ok(());
    }
    let api = Api::<GuardedNetwork>::namespaced(ctx.client.clone(), &key.namespace);
    if write_status(&api, meta, old, status).await? {
        let kinds = [READY, STALLED, CHAIN_LIVE, CLUSTERS_REACHABLE, MEMBERSHIP_CONVERGED];
        let (before, now) = (&old.conditions, &status.conditions);
        ctx.events.changes::<BsnNetwork>(meta, before, now, &kinds).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_owners_need_us_where_they_alone_are_no_quorum() {
        let needed = |all: &[u64], others: &[u64]| is_needed(QUORUM, all, others);
        assert!(needed(&[1, 1, 1, 1], &[1, 1]), "two of four");
        assert!(!needed(&[1, 1, 1, 1], &[1, 1, 1]), "three of four");
        assert!(needed(&[1, 1, 1], &[1, 1]), "two thirds are not more than two thirds");
        assert!(needed(&[10, 1, 1, 1, 1], &[1, 1, 1, 1]), "our one has the power");
        assert!(!needed(&[1, 1, 1], &[1, 1, 1]), "no voter is ours");
        assert!(!needed(&[1, 1, 1], &[]), "all are ours");
        assert!(!needed(&[], &[]));
    }
}
