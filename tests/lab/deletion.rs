//! What is kept when a network is deleted: keys, disks, anchor, genesis.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::ListParams;

use crate::support::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_network_that_is_applied_again_is_the_same_chain() {
    let world = World::new("deletion").await;
    let yaml = world.yaml(&World::sample_spec());
    world.apply(&yaml);
    world.await_ready().await;
    let head = world.await_height_above(5, Duration::from_mins(1)).await;
    let before = world.fingerprint().await;

    world.kubectl_ok(&[
        "delete",
        "bsnnetwork",
        &world.network,
        "-n",
        &world.namespace,
        "--timeout=120s",
    ]);
    eventually("no pods", Duration::from_mins(2), async || {
        let pods = world.pods().await;
        if pods.is_empty() { Ok(()) } else { Err(format!("{} pods are left", pods.len())) }
    })
    .await;
    assert_eq!(world.fingerprint().await, before);
    let disks = world.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.unwrap();
    assert_eq!(disks.items.len(), 4);

    // Not even a deletion by name takes a key or a disk.
    let namespace = world.namespace.as_str();
    for kind in ["secret/deletion-nanjing-0-keys", "configmap/deletion-anchor"] {
        world.kubectl_ok(&["delete", kind, "-n", namespace, "--wait=false"]);
    }
    assert_eq!(world.fingerprint().await, before);

    world.apply(&yaml);
    world.await_ready().await;
    world.await_height_above(head, Duration::from_mins(2)).await;
    assert_eq!(world.fingerprint().await, before);
    world.remove();
}
