//! Which machines are being drained: those that are cordoned. A voter on one is about to be asked to go, and then its
//! cluster needs a share of what the chain can miss: see [`bsn_core::budget`].
//!
//! A task asks for the few machines that matter, by name, again and again, and tells the networks on them when one is
//! cordoned or is not any more. There is no watch: it could not be limited to these, and needs the right to list all
//! machines of a cluster. Where machines cannot be asked for, no drain is known, and nothing else changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::registry::Clusters;
use super::watches::Triggers;
use crate::view::NetworkKey;

/// Between two rounds of questions. A drain waits for so long before its cluster is dealt a share, and tries again every
/// five seconds itself (`kubectl drain`).
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest one cluster may take for a round: shorter than the round, so that one which hangs delays no other.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer counts: a few rounds may fail. After that the machine counts as not being drained.
const HOLD: Duration = Duration::from_mins(1);
/// Questions to one cluster at once.
const CONCURRENCY: usize = 8;
/// Taint that Kubernetes gives a cordoned machine. Some tools give it without marking the machine.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A machine; Kubernetes calls it a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Machine {
    /// The cluster it is in.
    pub cluster: String,
    /// Its name there.
    pub name: String,
}

/// The machines that networks want to know of; clones share them.
#[derive(Clone, Default)]
pub struct Machines(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    wanted: BTreeMap<NetworkKey, BTreeSet<Machine>>,
    /// Whether each is cordoned, and when that was answered.
    answers: BTreeMap<Machine, (bool, Instant)>,
}

impl State {
    fn is_drained(&self, machine: &Machine) -> bool {
        let answer = self.answers.get(machine);
        answer.is_some_and(|(cordoned, at)| *cordoned && at.elapsed() < HOLD)
    }
}

impl Machines {
    /// A network wants to know of these from now on, and of no others.
    pub fn want(&self, network: &NetworkKey, machines: BTreeSet<Machine>) {
        self.state().wanted.insert(network.clone(), machines);
    }

    /// A network wants to know of none any more.
    pub fn forget(&self, network: &NetworkKey) {
        self.state().wanted.remove(network);
    }

    /// Whether a machine is being drained, as far as that is known now.
    pub fn is_drained(&self, machine: &Machine) -> bool {
        self.state().is_drained(machine)
    }

    /// Asks until it is dropped.
    pub async fn run(self, clusters: Clusters, triggers: Triggers) {
        let ask = async |machine: Machine| is_cordoned(&clusters, &machine).await;
        let mut rounds = tokio::time::interval(INTERVAL);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            for network in self.refresh(&ask).await {
                triggers.network(&network.namespace, &network.name);
            }
        }
    }

    /// Asks for all machines, each cluster beside the others. Returns the networks for which something has changed.
    async fn refresh(&self, ask: &impl AsyncFn(Machine) -> Option<bool>) -> BTreeSet<NetworkKey> {
        let told = Mutex::new(BTreeSet::new());
        let rounds = self.by_cluster().into_iter().map(|(cluster, machines)| {
            let told = &told;
            async move {
                let note = async |machine: Machine| {
                    if let Some(cordoned) = ask(machine.clone()).await {
                        let news = self.note(machine, cordoned);
                        told.lock().unwrap_or_else(PoisonError::into_inner).extend(news);
                    }
                };
                // What was answered by then counts.
                let asking = stream::iter(machines).for_each_concurrent(CONCURRENCY, note);
                if timeout(DEADLINE, asking).await.is_err() {
                    tracing::debug!(%cluster, "its machines do not answer in time");
                }
            }
        });
        join_all(rounds).await;
        told.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in an answer. Returns the networks to which it is news.
    fn note(&self, machine: Machine, cordoned: bool) -> Vec<NetworkKey> {
        let mut state = self.state();
        let news = state.is_drained(&machine) != cordoned;
        let concerned = state.wanted.iter().filter(|(_, machines)| machines.contains(&machine));
        let told =
            if news { concerned.map(|(network, _)| network.clone()).collect() } else { Vec::new() };
        state.answers.insert(machine, (cordoned, Instant::now()));
        told
    }

    /// All machines that are wanted. Answers about others are forgotten.
    fn by_cluster(&self) -> BTreeMap<String, Vec<Machine>> {
        let mut state = self.state();
        let wanted: BTreeSet<Machine> = state.wanted.values().flatten().cloned().collect();
        state.answers.retain(|machine, _| wanted.contains(machine));
        let mut by_cluster: BTreeMap<String, Vec<Machine>> = BTreeMap::new();
        for machine in wanted {
            by_cluster.entry(machine.cluster.clone()).or_default().push(machine);
        }
        by_cluster
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a machine is cordoned; `None` = that could not be asked.
async fn is_cordoned(clusters: &Clusters, machine: &Machine) -> Option<bool> {
    let client = clusters.client(&machine.cluster)?;
    match Api::<Node>::all(client).get_opt(&machine.name).await {
        // One that is gone is drained by nobody.
        Ok(node) => Some(node.is_some_and(|node| marked(&node))),
        Err(error) => {
            let Machine { cluster, name } = machine;
            tracing::debug!(%cluster, machine = %name, %error, "whether it is cordoned is not known");
            None
        }
    }
}

fn marked(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let unschedulable = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
    let mut taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    unschedulable || taints.any(|taint| taint.key == UNSCHEDULABLE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key(name: &str) -> NetworkKey {
        NetworkKey { namespace: "ledger".to_owned(), name: name.to_owned() }
    }

    fn machine(cluster: &str, name: &str) -> Machine {
        Machine { cluster: cluster.to_owned(), name: name.to_owned() }
    }

    /// One round in which every machine has this answer. Returns who was told.
    async fn round(machines: &Machines, answer: Option<bool>) -> Vec<String> {
        let told = machines.refresh(&async |_| answer).await;
        told.into_iter().map(|network| network.name).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn networks_are_told_when_a_machine_of_theirs_is_cordoned_and_when_it_is_not_any_more() {
        let machines = Machines::default();
        let (one, two) = (machine("a", "m1"), machine("b", "m1"));
        machines.want(&key("one"), [one.clone()].into());
        machines.want(&key("two"), [one.clone(), two].into());
        assert!(round(&machines, Some(false)).await.is_empty(), "as was thought");
        assert_eq!(round(&machines, Some(true)).await, ["one", "two"]);
        assert!(machines.is_drained(&one));
        assert!(round(&machines, Some(true)).await.is_empty());
        assert_eq!(round(&machines, Some(false)).await, ["one", "two"]);
        assert!(!machines.is_drained(&one));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_a_while_and_what_nobody_wants_is_forgotten() {
        let (machines, one) = (Machines::default(), machine("a", "m1"));
        machines.want(&key("one"), [one.clone()].into());
        round(&machines, Some(true)).await;
        assert!(round(&machines, None).await.is_empty());
        assert!(machines.is_drained(&one), "a round that failed is no news");
        tokio::time::advance(HOLD).await;
        assert!(!machines.is_drained(&one));
        assert_eq!(round(&machines, Some(true)).await, ["one"], "news again");
        machines.forget(&key("one"));
        round(&machines, Some(true)).await;
        assert!(machines.state().answers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_hangs_delays_no_other_for_longer_than_its_deadline() {
        let machines = Machines::default();
        let (slow, quick) = (machine("a", "m1"), machine("b", "m1"));
        machines.want(&key("one"), [slow.clone(), quick.clone()].into());
        let began = Instant::now();
        let ask = async |machine: Machine| {
            if machine.cluster == "a" { std::future::pending().await } else { Some(true) }
        };
        machines.refresh(&ask).await;
        assert_eq!(began.elapsed(), DEADLINE);
        assert!(machines.is_drained(&quick) && !machines.is_drained(&slow));
    }

    #[test]
    fn a_machine_is_cordoned_by_its_mark_or_by_its_taint() {
        let node = |spec: Value| serde_json::from_value(json!({"spec": spec})).unwrap();
        assert!(marked(&node(json!({"unschedulable": true}))));
        let taint = json!({"key": UNSCHEDULABLE, "effect": "NoSchedule"});
        assert!(marked(&node(json!({"taints": [taint]}))));
        let other = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"});
        assert!(!marked(&node(json!({"taints": [other]}))));
        assert!(!marked(&Node::default()));
    }
}
