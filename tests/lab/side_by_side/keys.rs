//! A key that was made once is never made again, and never another one in its place.

use std::time::Duration;

use bsn_core::retention::KEEP_FINALIZER;
use bsn_operator::api::conditions::Reason;
use bsn_operator::labels;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;

use crate::support::World;

const LONG: Duration = Duration::from_mins(3);

async fn put_secret(world: &World, name: &str, content: &Secret) {
    let mut secret = Secret { data: content.data.clone(), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    secret.type_.clone_from(&content.type_);
    world.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_never_made_again_and_another_nodes_key_is_refused() {
    let world = World::new("keys").await;
    world.apply(&world.yaml(&World::sample_spec()));
    world.await_ready().await;
    let (node, pod) = ("keys-hangzhou-0", "keys-hangzhou-0-0");
    let (own, other) = ("keys-hangzhou-0-keys", "keys-nanjing-1-keys");
    let own_content = world.api::<Secret>().get(own).await.unwrap();
    let other_content = world.api::<Secret>().get(other).await.unwrap();
    let namespace = world.namespace.as_str();

    // A deletion alone takes nothing: the finalizer keeps the key, and the node runs on.
    world.kubectl_ok(&["delete", "secret", own, "-n", namespace, "--wait=false"]);
    world.kubectl_ok(&["delete", "pod", pod, "-n", namespace]);
    world.await_ready().await;
    world.let_go(&format!("secret/{own}"));
    world.kubectl_ok(&["delete", "pod", pod, "-n", namespace, "--wait=false"]);
    world.await_node_stalled(node, Reason::KeyLost, "A key is never made twice", LONG).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(world.api::<Secret>().get_opt(own).await.unwrap().is_none());

    // Another node's key under this node's name: refused by the operator, and by the guard.
    let mut swapped = own_content.clone();
    let file = "priv_validator_key.json";
    let stolen = other_content.data.unwrap()[file].clone();
    swapped.data.as_mut().unwrap().insert(file.to_owned(), stolen);
    put_secret(&world, own, &swapped).await;
    world.await_guard(node, "KeyDiffers:", LONG).await;
    world.await_node_stalled(node, Reason::KeyLost, "holds other keys", LONG).await;

    // Restored from a backup: another object with the same content.
    world.kubectl_ok(&["delete", "secret", own, "-n", namespace]);
    put_secret(&world, own, &own_content).await;
    world.kubectl_ok(&["delete", "pod", pod, "-n", namespace]);
    world.await_ready().await;
    world.await_height_above(world.head().await + 3, LONG).await;
    // Taken by its content; its marks were put back.
    let meta = world.api::<Secret>().get(own).await.unwrap().metadata;
    assert!(meta.finalizers.unwrap_or_default().iter().any(|one| one == KEEP_FINALIZER));
    assert!(meta.labels.unwrap_or_default().contains_key(labels::IDENTITY_ID));
    world.remove();
}
