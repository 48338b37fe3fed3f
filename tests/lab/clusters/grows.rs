//! From one YAML file to a chain in three clusters; then it grows in one, shrinks in another, and rolls in all.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bsn_operator::labels::managed_selector;
use bsn_testkit::lab::{Roles, layout};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;

use super::span::{LONG, POWER, SETS, Span, Watch, spec};
use crate::chain::await_voters;
use crate::client::Traffic;
use crate::plugin::check_plan;
use crate::roll::check_restarts;
use crate::sampler::watch_pods;
use crate::support::{World, eventually, names, node_of};

const MINUTE: Duration = Duration::from_mins(1);
/// Longest for seven restarts, one after the other.
const ROLLED_WITHIN: Duration = Duration::from_mins(12);

/// Every node's pod and key are in its own cluster only, and its name leads to it in each cluster.
async fn check_places(span: &Span, replicas: [usize; 3]) {
    let world = &span.world;
    let nodes_of = |place: usize| -> BTreeSet<String> {
        (0..replicas[place]).map(|index| span.node(SETS[place], index)).collect()
    };
    for (place, client) in world.clients().enumerate() {
        let own = nodes_of(place);
        let list = ListParams::default();
        let pods = world.api_in::<Pod>(client).list(&list).await.unwrap().items;
        assert_eq!(pods.iter().map(node_of).collect::<BTreeSet<_>>(), own, "pods of {place}");
        let sets = world.api_in::<StatefulSet>(client).list(&list).await.unwrap().items;
        assert_eq!(names(&sets), own, "StatefulSets of {place}");
        let secrets = world.api_in::<Secret>(client).list(&list).await.unwrap().items;
        let secrets = names(&secrets);
        let keys: BTreeSet<_> =
            secrets.iter().filter_map(|name| name.strip_suffix("-keys")).collect();
        assert_eq!(keys, own.iter().map(String::as_str).collect(), "keys in {place}");
        let authority = format!("{}-ca", world.network);
        assert_eq!(
            secrets.contains(&authority),
            place == 0,
            "the CA's key in {place}: {secrets:?}"
        );
        for other in 0..SETS.len() {
            for node in nodes_of(other) {
                check_name(world, place, client, &node, other).await;
            }
        }
    }
    println!("every node's pod and key are in its own cluster, and its name is in all three");
}

/// A node of cluster `home` is reached by its name in cluster `place`.
async fn check_name(world: &World, place: usize, client: &kube::Client, node: &str, home: usize) {
    eventually(&format!("the name {node} in cluster {place}"), MINUTE, async || {
        let found = world.api_in::<Service>(client).get(node).await;
        let spec = found.map_err(|error| error.to_string())?.spec.unwrap_or_default();
        let selects = spec.selector.is_some_and(|selector| !selector.is_empty());
        if selects != (place == home) {
            return Err(format!("selects pods: {selects}"));
        }
        if place == home {
            return Ok(());
        }
        let of = ListParams::default().labels(&format!("kubernetes.io/service-name={node}"));
        let slices = world.api_in::<EndpointSlice>(client).list(&of).await;
        let slices = slices.map_err(|error| error.to_string())?.items;
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        let addresses: Vec<&String> = endpoints.flat_map(|endpoint| &endpoint.addresses).collect();
        let there = addresses.iter().all(|address| is_machine_of(address, home));
        if there && !addresses.is_empty() { Ok(()) } else { Err(format!("{addresses:?}")) }
    })
    .await;
}

fn is_machine_of(address: &str, place: usize) -> bool {
    let cluster = Roles::from_env().unwrap().all()[place];
    let machines = layout::machines_net(cluster).base.octets();
    address.parse::<Ipv4Addr>().is_ok_and(|address| address.octets()[..3] == machines[..3])
}

/// Describes something else; the steps that were taken are those that the plan showed, in its order.
async fn change(world: &World, traffic: &Traffic, replicas: [usize; 3], pause: &str) {
    let new = world.yaml(&spec(replicas, pause));
    let planned = eventually("a plan", MINUTE, async || world.try_planned(&new)).await;
    let before = world.history().len();
    let (edited, sent) = (Instant::now(), traffic.count());
    world.apply(&new);
    world.await_converged(ROLLED_WITHIN).await;
    await_voters(world, replicas.iter().sum(), POWER).await;
    let (seconds, sent) = (edited.elapsed().as_secs(), traffic.count() - sent);
    println!("{replicas:?}, {pause} after {seconds} s, {sent} transactions");
    assert!(sent > 0, "no transaction was taken while the network changed");
    let taken: Vec<String> = world.history().drain(before..).map(|step| step.what).collect();
    check_plan(&planned, &taken);
}

/// The network is deleted: nothing runs in any cluster, and keys, genesis and disks are there as before.
async fn delete(span: &Span) {
    let world = &span.world;
    let prints = world.fingerprint().await;
    let mut disks = Vec::new();
    for client in world.clients() {
        let mut kept = span.inventory(client).await;
        kept.retain(|name, _| name.starts_with("PersistentVolumeClaim "));
        disks.push(kept);
    }
    let network = world.network.as_str();
    world.kubectl_ok(&["delete", "bsnnetwork", network, "-n", &world.namespace, "--timeout=180s"]);
    let ours = ListParams::default().labels(&managed_selector());
    for (client, disks) in world.clients().zip(&disks) {
        eventually("the end of what ran", 2 * MINUTE, async || {
            let failed = |error: kube::Error| error.to_string();
            let sets = world.api_in::<StatefulSet>(client).list(&ours).await.map_err(failed)?;
            let services = world.api_in::<Service>(client).list(&ours).await.map_err(failed)?;
            let pods = world.api_in::<Pod>(client).list(&ListParams::default()).await;
            let left =
                [names(&sets.items), names(&services.items), names(&pods.map_err(failed)?.items)];
            if left.iter().all(BTreeSet::is_empty) { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
        assert_eq!(span.inventory(client).await, *disks, "only the disks are there, all of them");
    }
    assert_eq!(world.fingerprint().await, prints, "keys and genesis");
    println!("deleted: nothing runs, {} keys and genesis files are kept", prints.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn comes_up_grows_shrinks_rolls() {
    let span = Span::start("grow", [3, 2, 2]).await;
    let world = &span.world;
    await_voters(world, 7, POWER).await;
    check_places(&span, [3, 2, 2]).await;
    let watch = Watch::start(world).await;

    let before = world.pod_uids().await;
    change(world, &watch.traffic, [3, 3, 2], "1s").await;
    check_places(&span, [3, 3, 2]).await;
    change(world, &watch.traffic, [2, 3, 2], "1s").await;
    // Nobody restarts because others come and go.
    let mut expected = before;
    let gone = expected.remove(&span.node("home", 2));
    assert!(gone.is_some(), "the newest on the hub goes");
    // Its pod ends after it has left the members.
    eventually("only what was there", 2 * MINUTE, async || {
        let mut now = world.pod_uids().await;
        now.remove(&span.node("a", 2));
        if now == expected { Ok(()) } else { Err(format!("{now:?} instead of {expected:?}")) }
    })
    .await;

    let pods = watch_pods(world);
    change(world, &watch.traffic, [2, 3, 2], "700ms").await;
    let pods = pods.end().await;
    check_restarts(&pods, 7);
    world.await_height_above(world.head().await + 10, LONG).await;

    watch.end(&pods.outages).await;
    delete(&span).await;
    span.remove().await;
}
