//! What is kept when a network is deleted: keys, disks, anchor, genesis.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::retention::{KEEP_FINALIZER, KEPT_ANNOTATION};
use bsn_operator::api::conditions::Reason;
use bsn_operator::labels;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::support::{World, eventually};

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_network_that_is_applied_again_is_the_same_chain() {
    let world = World::new("deletion").await;
    let yaml = world.yaml(&World::sample_spec());
    let reader =
        "\n  - name: reader\n    role: FullNode\n    replicas: 1\n    storage: {size: 1Gi}";
    world.apply(&world.yaml(&(World::sample_spec() + reader)));
    world.await_ready().await;
    let identities = identities(&world).await;
    world.apply(&yaml);
    world.await_ready().await;
    release_one(&world, &identities["deletion-reader-0"], &identities["deletion-nanjing-0"]).await;
    let head = world.await_height_above(5, Duration::from_mins(1)).await;
    let before = world.fingerprint().await;

    delete(&world, "--timeout=120s");
    await_no_pods(&world).await;
    assert_eq!(world.fingerprint().await, before);
    let disks = world.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.unwrap();
    assert_eq!(disks.items.len(), 4);

    // Not even a deletion by name takes a key or a disk.
    let namespace = world.namespace.as_str();
    let kept =
        ["secret/deletion-nanjing-0-keys", "secret/deletion-ca", "configmap/deletion-anchor"];
    for kind in kept {
        world.kubectl_ok(&["delete", kind, "-n", namespace, "--wait=false"]);
    }
    assert_eq!(world.fingerprint().await, before);

    world.apply(&yaml);
    world.await_ready().await;
    world.await_height_above(head, Duration::from_mins(2)).await;
    assert_eq!(world.fingerprint().await, before);

    // Applied again at once, while its nodes still end.
    let head = world.head().await;
    delete(&world, "--wait=false");
    world.apply(&yaml);
    world.await_ready().await;
    world.await_height_above(head, Duration::from_mins(2)).await;
    assert_eq!(world.fingerprint().await, before);

    another_chain_is_refused(&world, &yaml).await;
    assert_eq!(world.fingerprint().await, before);

    // A deletion of the whole namespace takes neither keys nor disks, until a person releases them.
    world.kubectl_ok(&["delete", "namespace", namespace, "--wait=false"]);
    await_no_pods(&world).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let private = |prints: BTreeMap<String, String>| {
        let genesis = |name: &String| name.contains("-genesis-");
        prints.into_iter().filter(|(name, _)| !genesis(name)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(private(world.fingerprint().await), private(before));
    let disks = world.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.unwrap();
    assert_eq!(disks.items.len(), 4);

    // Each of them says how, since nothing else is left to say it; and what it says is enough.
    let said = said_of_all(&world).await;
    let (_, command) = said.split_once("on its hub: kubectl ").unwrap();
    world.kubectl_ok(&command.split(' ').collect::<Vec<_>>());
    eventually("nothing is kept", 2 * MINUTE, async || {
        let left = world.api::<ConfigMap>().get_opt("deletion-anchor").await;
        let left = left.map_err(|error| error.to_string())?;
        left.map_or(Ok(()), |left| Err(format!("{:?}", left.metadata.finalizers)))
    })
    .await;
    world.remove();
}

/// What the kept objects say of themselves, each the same.
async fn said_of_all(world: &World) -> String {
    let anchor = world.api::<ConfigMap>().get("deletion-anchor").await.unwrap();
    let authority = world.api::<Secret>().get("deletion-ca").await.unwrap();
    let keys = world.api::<Secret>().get("deletion-nanjing-0-keys").await.unwrap();
    let disk = world.api::<PersistentVolumeClaim>().get("deletion-nanjing-0-data").await.unwrap();
    let said = anchor.annotations()[KEPT_ANNOTATION].clone();
    for other in [authority.annotations(), keys.annotations(), disk.annotations()] {
        assert_eq!(other[KEPT_ANNOTATION], said);
    }
    said
}

fn delete(world: &World, how: &str) {
    let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
    world.kubectl_ok(&["delete", "bsnnetwork", network, "-n", namespace, how]);
}

async fn await_no_pods(world: &World) {
    eventually("no pods", Duration::from_mins(2), async || {
        let pods = world.pods().await;
        if pods.is_empty() { Ok(()) } else { Err(format!("{} pods are left", pods.len())) }
    })
    .await;
}

/// What is kept of a network is not taken for another chain's, and goes on when it is described again.
async fn another_chain_is_refused(world: &World, yaml: &str) {
    delete(world, "--timeout=120s");
    await_no_pods(world).await;
    world.apply(&yaml.replace("chainId: city-ledger-1", "chainId: another-1"));
    let words = "here before with chain id city-ledger-1";
    world.await_stalled(Reason::AnchorRefused, words, MINUTE).await;
    assert!(world.pods().await.is_empty());
    delete(world, "--timeout=120s");
    world.apply(yaml);
    world.await_ready().await;
}

/// Ids of the nodes' identities.
async fn identities(world: &World) -> BTreeMap<String, String> {
    let disks = world.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.unwrap();
    let label = |disk: &PersistentVolumeClaim, key: &str| disk.labels()[key].clone();
    disks.iter().map(|disk| (label(disk, labels::NODE), label(disk, labels::IDENTITY_ID))).collect()
}

/// A node that was removed is released by its identity's id; one that is there is not.
async fn release_one(world: &World, removed: &str, present: &str) {
    let namespace = world.namespace.as_str();
    let release = format!("bsn-operator.io/release={removed},{present}");
    world.kubectl_ok(&["annotate", "configmap/deletion-anchor", "-n", namespace, &release]);
    eventually("both answers in the anchor's events", MINUTE, async || {
        let said = world.kubectl_ok(&["describe", "configmap/deletion-anchor", "-n", namespace]);
        if said.contains("Released") && said.contains("ReleaseRefused") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    for kind in ["secret/deletion-reader-0-keys", "pvc/deletion-reader-0-data"] {
        world.kubectl_ok(&["delete", kind, "-n", namespace, "--timeout=30s"]);
    }
    world.kubectl_ok(&[
        "annotate",
        "configmap/deletion-anchor",
        "-n",
        namespace,
        "bsn-operator.io/release-",
    ]);
    // The other's claim stays held, also when somebody takes its finalizer away, and goes on saying so.
    let claim = "pvc/deletion-nanjing-0-data";
    let patch = r#"{"metadata":{"finalizers":null,"labels":null,"annotations":{"bsn-operator.io/kept":null}}}"#;
    world.kubectl_ok(&["patch", claim, "-n", namespace, "--type=merge", "-p", patch]);
    eventually("its finalizer, labels and annotation", MINUTE, async || {
        let found = world.api::<PersistentVolumeClaim>().get("deletion-nanjing-0-data").await;
        let meta = found.map_err(|error| error.to_string())?.metadata;
        let held = meta.finalizers.iter().flatten().any(|one| one == KEEP_FINALIZER);
        let marked = meta.labels.iter().flatten().any(|(key, _)| key == labels::IDENTITY_ID);
        let says = meta.annotations.iter().flatten().any(|(key, _)| key == KEPT_ANNOTATION);
        if held && marked && says { Ok(()) } else { Err(format!("{meta:?}")) }
    })
    .await;
}
