//! Machines of two clusters are drained at the same moment, as nobody would who knew of both: the chain never misses more
//! voters than it can, and both drains end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bsn_core::anchor::{ANCHOR_KEY, Anchor};
use bsn_core::budget::Shares;
use bsn_operator::api::conditions::DRAINS_WAITING;
use bsn_testkit::lab::Lab;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::task::{JoinHandle, spawn_blocking};

use super::span::{LONG, Member, NAMES, POWER, Span};
use crate::chain::{await_voters, check_pace, print_gaps, verify};
use crate::client::Traffic;
use crate::sampler::watch_pods;
use crate::support::{eventually, run_in};

const MINUTE: Duration = Duration::from_mins(1);
/// Validators in each cluster: on the hub, in `city-a`, in `city-b`.
const REPLICAS: [u32; 3] = [3, 2, 2];
/// Of seven voters with the same power two may be down.
const MARGIN: usize = 2;
/// Longest for a drain. Each machine may have two voters, and each of those comes back on the other machine: there its key
/// has to be silent for five blocks before it starts.
const DRAINED_WITHIN: &str = "--timeout=600s";

/// A machine that is drained, until this is dropped.
struct Drained {
    lab: Lab,
    cluster: usize,
    machine: String,
}

impl Drained {
    /// Begins to drain the machine that a node of the network runs on.
    async fn begin(span: &Span, member: &Member, node: &str) -> (Self, JoinHandle<Duration>) {
        let pods = span.world.api_in::<Pod>(&member.client);
        let pod = pods.get(&format!("{node}-0")).await.unwrap();
        let machine = pod.spec.unwrap().node_name.unwrap();
        let drained = Self { lab: span.world.lab.clone(), cluster: member.cluster, machine };
        let (lab, cluster, machine) =
            (drained.lab.clone(), drained.cluster, drained.machine.clone());
        let began = Instant::now();
        let draining = spawn_blocking(move || {
            let fixed = ["--ignore-daemonsets", "--delete-emptydir-data", DRAINED_WITHIN];
            let args = [&["drain", &machine], &fixed[..]].concat();
            let output = run_in(&lab, cluster, lab.tool("kubectl"), &args, "");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "kubectl drain {machine} in {cluster}: {error}");
            began.elapsed()
        });
        (drained, draining)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let (lab, machine) = (&self.lab, self.machine.as_str());
        let output = run_in(lab, self.cluster, lab.tool("kubectl"), &["uncordon", machine], "");
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            eprintln!("{machine} in cluster {} stays cordoned: {error}", self.cluster);
        }
    }
}

async fn recorded(span: &Span) -> Shares {
    let anchor: Anchor =
        serde_json::from_str(&span.world.stored("anchor", ANCHOR_KEY).await).unwrap();
    anchor.shares
}

/// What each cluster's budget lets go, and what the disruption controller has seen of it.
async fn written(span: &Span) -> Result<Shares, String> {
    let mut shares = Shares::new();
    let names = ["", NAMES[0], NAMES[1]];
    for ((cluster, replicas), client) in names.into_iter().zip(REPLICAS).zip(span.world.clients()) {
        let name = format!("{}-voters", span.world.network);
        let budget = span.world.api_in::<PodDisruptionBudget>(client).get(&name).await;
        let budget = budget.map_err(|error| error.to_string())?;
        let status = budget.status.unwrap_or_default();
        if status.observed_generation != budget.metadata.generation {
            return Err(format!("the budget in {cluster:?} was not looked at yet"));
        }
        let Some(IntOrString::Int(stays)) = budget.spec.and_then(|spec| spec.min_available) else {
            return Err(format!("the budget in {cluster:?} names no number"));
        };
        let share = replicas.saturating_sub(u32::try_from(stays).unwrap());
        if share > 0 {
            shares.insert(cluster.to_owned(), share);
        }
    }
    Ok(shares)
}

/// Waits until all that the chain can miss is dealt out, and the budgets are as the anchor says.
async fn await_dealt(span: &Span) -> Shares {
    eventually("shares that make up the margin", 2 * MINUTE, async || {
        let (recorded, written) = (recorded(span).await, written(span).await?);
        let sum: u32 = recorded.values().sum();
        if recorded == written && usize::try_from(sum) == Ok(MARGIN) {
            Ok(recorded)
        } else {
            Err(format!("recorded: {recorded:?}, written: {written:?}"))
        }
    })
    .await
}

/// The machine that each of the members' nodes runs on.
async fn machines(span: &Span) -> BTreeMap<String, String> {
    let mut machines = BTreeMap::new();
    for (member, set) in span.members.iter().zip(["a", "b"]) {
        for index in 0..2 {
            let node = span.node(set, index);
            let pods = span.world.api_in::<Pod>(&member.client);
            let pod = pods.get(&format!("{node}-0")).await.unwrap();
            machines.insert(node, pod.spec.unwrap().node_name.unwrap_or_default());
        }
    }
    machines
}

/// Drains the machine of the first node of each member, both at the same moment, and waits until all is well again.
async fn drain_both(span: &Span) {
    let world = &span.world;
    let [a, b] = &span.members;
    let (one, draining) = Drained::begin(span, a, &span.node("a", 0)).await;
    let (other, draining_too) = Drained::begin(span, b, &span.node("b", 0)).await;
    for (drained, draining) in [(&one, draining), (&other, draining_too)] {
        let took = draining.await.unwrap().as_secs();
        println!("{} in cluster {} is drained after {took} s", drained.machine, drained.cluster);
    }
    let after = machines(span).await;
    println!("after: {after:?}");
    for (node, machine) in &after {
        let drained = if node.contains("-a-") { &one } else { &other };
        assert_ne!(*machine, drained.machine, "{node} is on a drained machine");
    }
    drop((one, other));
    world.await_converged(LONG).await;
    world.await_condition(DRAINS_WAITING, "False", MINUTE).await;
    println!("dealt out then: {:?}", await_dealt(span).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_of_two_clusters_are_drained_at_once() {
    let replicas = REPLICAS.map(|replicas| usize::try_from(replicas).unwrap());
    let span = Span::start("drains", replicas).await;
    let world = &span.world;
    await_voters(world, 7, POWER).await;
    println!("dealt out in the beginning: {:?}", await_dealt(&span).await);
    world.await_condition(DRAINS_WAITING, "False", MINUTE).await;
    println!("before: {:?}", machines(&span).await);
    let pods = watch_pods(world);
    let traffic = Traffic::start(world).await;
    let began = Timestamp::now();

    // Each has a voter on either machine.
    drain_both(&span).await;
    // Now both are on the other one, and four want to go where two can be missed.
    drain_both(&span).await;
    let pods = pods.end().await;
    for outage in &pods.outages {
        println!("  {outage}");
    }
    assert!(!pods.outages.is_empty(), "nobody was evicted");
    assert!(pods.most_down <= MARGIN, "{} down at once: {:?}", pods.most_down, pods.outages);
    let acknowledged = traffic.end().await;
    let chain = verify(world, &acknowledged).await;
    let gaps = chain.gaps(began);
    print_gaps(&gaps, &pods.outages);
    check_pace(&gaps);
    span.remove().await;
}
