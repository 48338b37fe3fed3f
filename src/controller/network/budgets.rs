//! The disruption budgets of a network that spans clusters: one in each, whose share [`bsn_core::budget`] deals to it. A
//! network that is on the hub alone has one that depends on nothing but its voters, and none of this is done for it.
//!
//! **Observe.** Nobody is asked: all is as the watches of each cluster have it. The budget is read before the pods, but
//! either cache may be behind, so it is the budget that counts. An eviction is written there, by the API server itself,
//! before its pod is touched: the pod is in `status.disruptedPods`, until the disruption controller has seen it end and
//! does not count it in `status.currentHealthy` any more. Pods that look ready beyond that number may be gone: so many
//! evictions count as allowed ([`in_force`]). A cluster that cannot be asked keeps its share.
//!
//! **Apply.** Shares are recorded in the pass. Budgets are written beside it, one write for each cluster at a time: a
//! cluster that is slow or hangs delays nobody. It does not matter how late such a write takes effect:
//!
//! - A smaller share is safe at any time.
//! - A larger one is recorded before, so all that is decided meanwhile counts with it. It is written over the very version
//!   of the budget that was read, so that whatever was written or evicted since fails it. And until that version has
//!   passed, or no answer can come any more, it counts as in force ([`Writes`]), so that its record stays. Only an operator
//!   that has just begun does not know of it, and it has waited for the Lease for longer than its predecessor lets a
//!   request run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bsn_core::anchor::{Anchor, Role};
use bsn_core::budget::{
    BudgetStep, Cluster, Observed, OwnStep, Pod as Counts, Seen, Shares, Voter, check_own_step,
};
use bsn_core::membership::Policy;
use bsn_core::membership::model::{Head, Ledger, Liveness};
use bsn_core::membership::projection::is_fresh;
use bsn_core::names::{NetworkName, NodeName};
use bsn_core::watch::Sight;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use tokio::time::Instant;

use super::addresses::spans_clusters;
use super::apply::Pass;
use crate::apply::{ApiError, change_as_read, ensure, is_ours};
use crate::build::disruption_budget::build_disruption_budget;
use crate::build::{NetworkParts, role_text};
use crate::cluster::machines::Machine;
use crate::cluster::registry::Place;
use crate::cluster::watches::cached;
use crate::controller::context::Context;
use crate::controller::{Step, copies};
use crate::labels;
use crate::view::NetworkKey;

/// After a write without an answer, until it can have no effect any more: the API server itself ends a request after a
/// minute (`--request-timeout`).
const MAY_ARRIVE: Duration = Duration::from_mins(1);

/// What a network's shares depend on.
pub struct ObservedBudget {
    /// For [`bsn_core::budget`].
    pub observed: Observed,
    /// The budgets as they were read, by cluster.
    budgets: BTreeMap<String, Arc<PodDisruptionBudget>>,
}

impl ObservedBudget {
    /// Whether the step under way leaves quorum, whatever drains do meanwhile; if not, why not yet. One that would not
    /// if there were no drains, or that costs the chain no vote it has, is the planner's to decide: no share changes that.
    ///
    /// # Errors
    ///
    /// Why not yet, for people.
    pub fn check_own_step(&self) -> Result<(), String> {
        let observed = &self.observed;
        let votes = |name: &String| {
            let voter = observed.voters.iter().find(|voter| voter.name == *name);
            voter.is_some_and(|voter| voter.power > 0 && voter.live)
        };
        match &observed.own_step {
            None => Ok(()),
            Some(OwnStep::Restart(name)) if !votes(name) => Ok(()),
            Some(_) if check_own_step(&without_drains(observed)).is_err() => Ok(()),
            Some(_) => check_own_step(observed),
        }
    }

    /// Machines that voters are on and that are being drained.
    pub fn drained(&self) -> BTreeSet<Machine> {
        let clusters = self.observed.clusters.iter();
        let machines = clusters.flat_map(|(cluster, there)| {
            there
                .wants
                .values()
                .map(|name| Machine { cluster: cluster.clone(), name: name.clone() })
        });
        machines.collect()
    }
}

/// As the planner sees it: nobody may be evicted, or is.
fn without_drains(observed: &Observed) -> Observed {
    let pod = |live| if live { Counts::Ready } else { Counts::NotReady };
    let seen = |voter: &Voter| Voter { pod: pod(voter.live), ..voter.clone() };
    Observed {
        voters: observed.voters.iter().map(seen).collect(),
        recorded: Shares::new(),
        clusters: BTreeMap::new(),
        ..observed.clone()
    }
}

/// What is being written in each cluster, and what may yet take effect there; clones share it.
#[derive(Clone, Default)]
pub struct Writes(Arc<Mutex<BTreeMap<(NetworkKey, String), Write>>>);

#[derive(Default)]
struct Write {
    under_way: bool,
    raise: Option<Raise>,
}

/// A larger share that was sent.
#[derive(Clone)]
struct Raise {
    min_available: u32,
    /// The version of the budget that it is written over: once that has passed, it has had its effect or never will.
    over: Option<String>,
    /// When it can have no effect any more; `None` = it is under way.
    until: Option<Instant>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// None, for sure.
    NoEffect,
    /// It is in force, or may yet come to be: that shows in the budget's version.
    MayCome,
}

impl Writes {
    /// What a larger share that was sent may yet leave of the budget of this version.
    fn may_become(&self, of: &(NetworkKey, String), version: Option<&str>) -> Option<u32> {
        let mut all = self.all();
        let write = all.get_mut(of)?;
        let open = |raise: &Raise| {
            let waits = raise.until.is_none_or(|until| Instant::now() < until);
            waits && raise.over.as_deref() == version
        };
        write.raise = write.raise.take().filter(open);
        write.raise.as_ref().map(|raise| raise.min_available)
    }

    /// Whether the caller may begin: nothing else is being written there.
    fn begin(&self, of: &(NetworkKey, String), raise: Option<Raise>) -> bool {
        let mut all = self.all();
        let write = all.entry(of.clone()).or_default();
        if write.under_way {
            return false;
        }
        write.under_way = true;
        // A smaller share passes the version that an earlier, larger one is written over.
        if raise.is_some() {
            write.raise = raise;
        }
        true
    }

    /// Whether a budget is being written there now.
    pub fn is_under_way(&self, key: &NetworkKey, cluster: &str) -> bool {
        self.all().get(&(key.clone(), cluster.to_owned())).is_some_and(|write| write.under_way)
    }

    /// It has ended.
    fn end(&self, of: &(NetworkKey, String), outcome: Outcome) {
        let mut all = self.all();
        let Some(write) = all.get_mut(of) else { return };
        write.under_way = false;
        // An earlier one has its own time.
        let ended = write.raise.take_if(|raise| raise.until.is_none());
        if let (Some(mut raise), Outcome::MayCome) = (ended, outcome) {
            raise.until = Some(Instant::now() + MAY_ARRIVE);
            write.raise = Some(raise);
        }
    }

    /// Forgets a network, but for what is still under way.
    pub fn remove(&self, key: &NetworkKey) {
        self.all().retain(|(of, _), write| of != key || write.under_way);
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<(NetworkKey, String), Write>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// --- observe ------------------------------------------------------------------------------------------

/// What the watches of one cluster have of a network's budget there and of the pods it is about.
#[derive(Default)]
struct Selected {
    budget: Option<Arc<PodDisruptionBudget>>,
    pods: Vec<Arc<Pod>>,
}

/// A budget and its pods, counted as Kubernetes counts them.
struct Counted {
    seen: Seen,
    /// By the pod's name.
    pods: BTreeMap<String, Counts>,
}

impl Counted {
    fn of(&self, node: &NodeName) -> Counts {
        self.pods.get(&pod_of(node)).copied().unwrap_or(Counts::NotReady)
    }
}

fn pod_of(node: &NodeName) -> String {
    format!("{node}-0")
}

/// Validators by cluster. The budget selects them by their role: whether they vote is not in their pods' labels.
fn validators(anchor: &Anchor) -> BTreeMap<String, BTreeSet<NodeName>> {
    let mut by_cluster: BTreeMap<String, BTreeSet<NodeName>> = BTreeMap::new();
    for (name, identity) in anchor.members() {
        if identity.role == Role::Validator {
            by_cluster.entry(identity.cluster.clone()).or_default().insert(name);
        }
    }
    by_cluster
}

impl Pass<'_> {
    /// Puts together what the shares of a network depend on; `None` = it is on the hub alone.
    pub(super) fn observe_budget(
        &self,
        anchor: &Anchor,
        sight: &Sight,
        own_step: Option<OwnStep>,
    ) -> Option<ObservedBudget> {
        if !spans_clusters(anchor) {
            self.ctx.machines.forget(self.key);
            return None;
        }
        let validators = validators(anchor);
        let (mut clusters, mut budgets) = (BTreeMap::new(), BTreeMap::new());
        let (mut pods, mut machines) = (BTreeMap::new(), BTreeSet::new());
        for (cluster, nodes) in &validators {
            let Some(selected) = self.read_selected(anchor, cluster) else {
                clusters.insert(cluster.clone(), Cluster::default());
                continue;
            };
            let of = (self.key.clone(), cluster.clone());
            let version = selected.budget.as_ref().and_then(|budget| budget.resource_version());
            let may_become = self.ctx.budgets.may_become(&of, version.as_deref());
            let wish = build_disruption_budget(&self.parts(anchor), 0);
            let counted = count(&selected, nodes, &wish, &anchor.network_id, may_become);
            let mut wants = BTreeMap::new();
            for node in nodes {
                pods.insert(node.clone(), counted.of(node));
                let Some(name) = machine_of(&selected, node) else { continue };
                let machine = Machine { cluster: cluster.clone(), name };
                if self.ctx.machines.is_drained(&machine) {
                    wants.insert(node.to_string(), machine.name.clone());
                }
                machines.insert(machine);
            }
            clusters.insert(cluster.clone(), Cluster { seen: Some(counted.seen), wants });
            if let Some(budget) = selected.budget {
                budgets.insert(cluster.clone(), budget);
            }
        }
        self.ctx.machines.want(self.key, machines);
        let policy = &self.validated.policy;
        let recorded = anchor.shares.iter().filter(|(cluster, _)| clusters.contains_key(*cluster));
        let observed = Observed {
            quorum: sight.ledger.quorum,
            reserve: policy.reserve,
            voters: voters(&sight.ledger, &validators, &pods),
            fresh: is_known(&sight.ledger, policy),
            own_step,
            recorded: recorded.map(|(cluster, share)| (cluster.clone(), *share)).collect(),
            clusters,
        };
        Some(ObservedBudget { observed, budgets })
    }

    /// `None` = the cluster cannot be asked, so what was seen there is of the past.
    fn read_selected(&self, anchor: &Anchor, cluster: &str) -> Option<Selected> {
        let namespace = &self.key.namespace;
        let seen = self.ctx.clusters.seen(cluster, namespace).filter(|seen| seen.fresh)?;
        let name = self.validated.desired.name.disruption_budget();
        // In this order: see the module.
        let budget = cached(&seen.objects.budgets, namespace, &name);
        let label = |pod: &Pod, key: &str, value: &str| {
            pod.labels().get(key).is_some_and(|found| found == value)
        };
        let pods = seen.objects.pods.state_filter(|pod: &Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && label(pod, labels::NETWORK_ID, &anchor.network_id)
                && label(pod, labels::ROLE, role_text(Role::Validator))
        });
        Some(Selected { budget, pods })
    }
}

fn machine_of(selected: &Selected, node: &NodeName) -> Option<String> {
    let pod = selected.pods.iter().find(|pod| pod.name_any() == pod_of(node))?;
    pod.spec.as_ref()?.node_name.clone()
}

/// Whether it is known who votes and signs. While blocks are late nobody is seen to sign: that is no news of anybody.
fn is_known(ledger: &Ledger, policy: &Policy) -> bool {
    let anybody = ledger.members.values().any(|member| member.liveness == Liveness::Live);
    is_fresh(ledger, policy)
        && match ledger.head {
            Head::Producing => anybody,
            Head::Standing | Head::Frozen => true,
            Head::Unknown => false,
        }
}

/// The voters, and the validators that do not vote, with what their clusters' budgets count them as. One whose cluster
/// cannot be asked has no entry in `pods`.
fn voters(
    ledger: &Ledger,
    validators: &BTreeMap<String, BTreeSet<NodeName>>,
    pods: &BTreeMap<NodeName, Counts>,
) -> Vec<Voter> {
    let cluster_of = |node: &NodeName| {
        let mut clusters = validators.iter();
        clusters.find(|(_, nodes)| nodes.contains(node)).map(|(cluster, _)| cluster.clone())
    };
    let voter = |node: &NodeName, power, live| Voter {
        name: node.to_string(),
        cluster: cluster_of(node),
        power,
        live,
        pod: pods.get(node).copied().unwrap_or(Counts::Unknown),
    };
    let voting = ledger.members.iter().map(|(key, member)| {
        let live = member.liveness == Liveness::Live;
        match &member.node {
            Some(node) => voter(node, member.power, live),
            None => Voter {
                name: key.clone(),
                cluster: None,
                power: member.power,
                live,
                pod: Counts::Unknown,
            },
        }
    });
    let mut all: Vec<Voter> = voting.collect();
    let votes: BTreeSet<&NodeName> =
        ledger.members.values().filter_map(|member| member.node.as_ref()).collect();
    let others = validators.values().flatten().filter(|node| !votes.contains(node));
    all.extend(others.map(|node| voter(node, 0, true)));
    all
}

/// Counts as Kubernetes does. `wish` = the budget as we build it; `may_become`: see [`Writes::may_become`].
fn count(
    selected: &Selected,
    validators: &BTreeSet<NodeName>,
    wish: &PodDisruptionBudget,
    network_id: &str,
    may_become: Option<u32>,
) -> Counted {
    let selector =
        |budget: &PodDisruptionBudget| budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    let budget = selected
        .budget
        .as_deref()
        .filter(|budget| is_ours(*budget, None, network_id) && selector(budget) == selector(wish));
    let status = budget.and_then(|budget| budget.status.as_ref());
    let granted = status.and_then(|status| status.disrupted_pods.as_ref());
    let state = |pod: &Pod| {
        let granted = granted.is_some_and(|granted| granted.contains_key(&pod.name_any()));
        if pod.metadata.deletion_timestamp.is_some() || granted {
            Counts::Ending
        } else if is_ready(pod) {
            Counts::Ready
        } else {
            Counts::NotReady
        }
    };
    let pods: BTreeMap<String, Counts> =
        selected.pods.iter().map(|pod| (pod.name_any(), state(pod))).collect();
    // A node that has just left the network has its pod for a while longer, and the budget selects that.
    let names: BTreeSet<String> =
        validators.iter().map(pod_of).chain(pods.keys().cloned()).collect();
    let ready = pods.values().filter(|pod| **pod == Counts::Ready).count();
    let written = budget.and_then(min_available).unwrap_or(0);
    let in_force = budget.map_or(0, |budget| in_force(budget, written, ready));
    let in_force = may_become.map_or(in_force, |may_become| in_force.min(may_become));
    let voters = u32::try_from(names.len()).unwrap_or(u32::MAX);
    Counted { seen: Seen { voters, written, in_force }, pods }
}

fn min_available(budget: &PodDisruptionBudget) -> Option<u32> {
    match budget.spec.as_ref()?.min_available.as_ref()? {
        IntOrString::Int(number) => u32::try_from(*number).ok(),
        // Somebody changed it, and what a percentage comes to is not known here.
        IntOrString::String(_) => None,
    }
}

/// How many pods stay, by what the disruption controller applies; `ready` = how many look as if they were there.
fn in_force(budget: &PodDisruptionBudget, written: u32, ready: usize) -> u32 {
    // The API server evicts nobody under a budget that the controller has not looked at yet.
    let Some(status) = &budget.status else { return written };
    let Some(observed) = status.observed_generation.filter(|observed| *observed > 0) else {
        return written;
    };
    let number = |number: i32| u32::try_from(number).unwrap_or(0);
    if budget.metadata.generation.is_some_and(|generation| observed < generation) {
        return number(status.desired_healthy);
    }
    let healthy = number(status.current_healthy);
    // Some of those that look ready were evicted, or their readiness is not counted yet.
    if usize::try_from(healthy).is_ok_and(|healthy| healthy < ready) {
        return written.min(healthy);
    }
    written
}

/// As Kubernetes' `IsPodReady`.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

// --- apply --------------------------------------------------------------------------------------------

/// A budget that is being written in its cluster.
struct Errand {
    ctx: Arc<Context>,
    place: Place,
    key: NetworkKey,
    name: NetworkName,
    anchor: Anchor,
    wish: PodDisruptionBudget,
    how: How,
}

/// How a budget is written.
enum How {
    /// Whatever is there now.
    Lower,
    /// Over the version that was read.
    Raise(Arc<PodDisruptionBudget>),
}

impl Pass<'_> {
    /// Does what was planned. Returns the anchor, if it was changed.
    pub(super) async fn apply_budget(
        &self,
        anchor: &Anchor,
        budget: &ObservedBudget,
        steps: Vec<BudgetStep>,
    ) -> Step<Option<Anchor>> {
        let mut changed = None;
        for step in steps {
            match step {
                BudgetStep::Lower { cluster, min_available } => {
                    self.begin_write(anchor, &cluster, min_available, How::Lower);
                }
                BudgetStep::Record { shares } => match self.record_shares(anchor, shares).await? {
                    Ok(anchor) => changed = Some(anchor),
                    Err(refusal) => return Ok(Err(refusal)),
                },
                BudgetStep::Raise { cluster, min_available } => {
                    // Where there is none, no share is larger.
                    let Some(read) = budget.budgets.get(&cluster).cloned() else { continue };
                    self.begin_write(anchor, &cluster, min_available, How::Raise(read));
                }
            }
        }
        Ok(Ok(changed))
    }

    async fn record_shares(&self, planned_on: &Anchor, shares: Shares) -> Step<Anchor> {
        tracing::info!(network = %self.key, ?shares, "shares of what the chain can miss");
        self.update(|stored| {
            // Planned on what is stored, or not at all.
            if stored.shares == planned_on.shares {
                stored.shares.clone_from(&shares);
            }
        })
        .await
    }

    /// Begins to write a budget, unless one is being written there: then the pass after it sees to it.
    fn begin_write(&self, anchor: &Anchor, cluster: &str, min_available: u32, how: How) {
        let Ok(place) = self.ctx.clusters.place(cluster, &self.key.namespace) else { return };
        let raise = match &how {
            How::Lower => None,
            How::Raise(read) => {
                Some(Raise { min_available, over: read.resource_version(), until: None })
            }
        };
        let of = (self.key.clone(), cluster.to_owned());
        if !self.ctx.budgets.begin(&of, raise) {
            return;
        }
        // In another cluster the network's uid means nothing.
        let parts = self.parts(anchor);
        let parts = NetworkParts { owner: parts.owner.filter(|_| place.is_hub()), ..parts };
        let wish = usize::try_from(min_available).unwrap_or(usize::MAX);
        let errand = Errand {
            ctx: self.ctx.clone(),
            place,
            key: self.key.clone(),
            name: self.validated.desired.name.clone(),
            anchor: anchor.clone(),
            wish: build_disruption_budget(&parts, wish),
            how,
        };
        tokio::spawn(async move {
            let outcome = errand.run().await;
            errand.ctx.budgets.end(&of, outcome);
        });
    }
}

impl Errand {
    /// A failure is logged: the passes after it plan the same again.
    async fn run(&self) -> Outcome {
        let Self { ctx, place, key, name, anchor, wish, how } = self;
        let cluster = &place.cluster;
        if let How::Raise(_) = how {
            // What is recorded is beside the budget before that depends on it.
            let why = match copies::mirror(ctx, place, key, name, anchor).await {
                Ok(Ok(())) => None,
                Ok(Err(refusal)) => Some(refusal.message),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                tracing::warn!(network = %key, %cluster, %why, "a share is not given");
                return Outcome::NoEffect;
            }
        }
        match write_budget(place, wish.clone(), how, &anchor.network_id).await {
            Ok(()) => Outcome::MayCome,
            Err(error) if error.code() == Some(409) => {
                tracing::debug!(network = %key, %cluster, %error, "it has changed; planned anew");
                Outcome::NoEffect
            }
            Err(error) => {
                tracing::warn!(network = %key, %cluster, %error, "a disruption budget was not written");
                // The API server said no. Any other failure may be that of the answer alone.
                let refused = error.code().is_some_and(|code| (400..500).contains(&code));
                if refused { Outcome::NoEffect } else { Outcome::MayCome }
            }
        }
    }
}

async fn write_budget(
    place: &Place,
    wish: PodDisruptionBudget,
    how: &How,
    network_id: &str,
) -> Result<(), ApiError> {
    match how {
        How::Lower => {
            let namespace = wish.namespace().unwrap_or_default();
            let known = cached(&place.objects.budgets, &namespace, &wish.name_any());
            ensure(&place.client, known.as_deref(), wish, None, network_id).await?;
        }
        How::Raise(read) => {
            change_as_read(&place.client, &**read, wish).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "budgets_tests.rs"]
mod tests;
