//! What a deletion policy names goes, and nothing else; once it is gone, nothing takes the place of it by itself.

use std::time::Duration;

use bsn_operator::api::conditions::Reason;
use bsn_operator::labels;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::support::{World, eventually, names};

const LONG: Duration = Duration::from_mins(4);

const SPEC: &str = r"
chainId: policies-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {}
deletionPolicy: POLICY
nodeSets:
  - name: voter
    role: Validator
    replicas: 1
    storage: {size: 1Gi}
  - name: reader
    role: FullNode
    replicas: READERS
    storage: {size: 1Gi}
";

fn spec(policy: &str, readers: u32) -> String {
    SPEC.trim_start().replace("POLICY", policy).replace("READERS", &readers.to_string())
}

const NOTHING: &str = "{}";
const DISKS: &str = "{data: Delete}";
const EVERYTHING: &str = "{data: Delete, keys: Delete}";

/// What is kept of the network, by kind and name.
async fn kept(world: &World) -> Vec<String> {
    let all = ListParams::default();
    let disks = world.api::<PersistentVolumeClaim>().list(&all).await.unwrap();
    let secrets = world.api::<Secret>().list(&all).await.unwrap();
    let ours = ListParams::default().labels(labels::NETWORK_ID);
    let maps = world.api::<ConfigMap>().list(&ours).await.unwrap();
    let held = |map: &&ConfigMap| map.name_any().ends_with("-anchor");
    let disks = names(&disks.items).into_iter().map(|name| format!("disk {name}"));
    let secrets = names(&secrets.items).into_iter().map(|name| format!("secret {name}"));
    let maps = maps.iter().filter(held).map(|map| format!("map {}", map.name_any()));
    let mut kept: Vec<_> = disks.chain(secrets).chain(maps).collect();
    kept.retain(|name| !name.ends_with("-client") && !name.ends_with("-first-start"));
    kept
}

async fn await_kept(world: &World, expected: &[&str]) {
    eventually(&format!("nothing but {expected:?}"), LONG, async || {
        let kept = kept(world).await;
        if kept == expected { Ok(()) } else { Err(format!("{kept:?}")) }
    })
    .await;
}

fn delete(world: &World) {
    let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
    world.kubectl_ok(&["delete", "bsnnetwork", network, "-n", namespace, "--timeout=180s"]);
}

async fn network_id(world: &World) -> String {
    world.get().await.unwrap().status.unwrap().network_id.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_policy_takes_what_it_names() {
    let world = World::new("policies").await;
    world.apply(&world.yaml(&spec(NOTHING, 1)));
    world.await_ready().await;
    let first = network_id(&world).await;
    let all = [
        "disk policies-reader-0-data",
        "disk policies-voter-0-data",
        "secret policies-ca",
        "secret policies-reader-0-keys",
        "secret policies-voter-0-keys",
        "map policies-anchor",
    ];
    await_kept(&world, &all).await;

    // Of a node that is removed nothing goes, until the policy says so.
    world.apply(&world.yaml(&spec(NOTHING, 0)));
    world.await_converged(LONG).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    await_kept(&world, &all).await;
    world.apply(&world.yaml(&spec(EVERYTHING, 0)));
    let voter = [all[1], all[2], all[4], all[5]];
    await_kept(&world, &voter).await;

    // The network takes along what is left, and is another one when it is applied again.
    delete(&world);
    await_kept(&world, &[]).await;
    let maps = world.kubectl_ok(&["get", "configmaps", "-n", &world.namespace, "-o", "name"]);
    assert!(!maps.contains("policies-"), "left behind: {maps}");
    world.apply(&world.yaml(&spec(DISKS, 0)));
    world.await_ready().await;
    assert_ne!(network_id(&world).await, first);

    // With its keys kept it is the same network, and its disks are missed.
    let second = network_id(&world).await;
    delete(&world);
    await_kept(&world, &voter[1..]).await;
    world.apply(&world.yaml(&spec(NOTHING, 0)));
    world.await_node_stalled("policies-voter-0", Reason::DiskLost, "", LONG).await;
    assert_eq!(network_id(&world).await, second);

    // Without its anchor nobody knows what is whose: nothing more is deleted, and the way out is told.
    world.apply(&world.yaml(&spec(EVERYTHING, 0)));
    let (anchor, namespace) = ("configmap/policies-anchor", world.namespace.as_str());
    eventually("the finalizer", LONG, async || {
        let held = !world.get().await?.finalizers().is_empty();
        if held { Ok(()) } else { Err("not there".to_owned()) }
    })
    .await;
    world.lose(anchor);
    world.kubectl_ok(&["delete", "bsnnetwork", "policies", "-n", namespace, "--wait=false"]);
    let said = world.await_stalled(Reason::AnchorRefused, "kubectl patch", LONG).await;
    println!("{said}");
    world.let_go("bsnnetwork/policies");
    await_kept(&world, &[voter[1], voter[2]]).await;
    for secret in ["policies-ca", "policies-voter-0-keys"] {
        world.let_go(&format!("secret/{secret}"));
    }
    world.remove();
}
