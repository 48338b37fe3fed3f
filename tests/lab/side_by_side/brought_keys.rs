//! Keys that an owner brings: what cannot be used is refused with a word of what to do, nothing is made of it, and a
//! correction heals.

use std::time::Duration;

use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, NODE_KEY_FILE, PrivateKey};
use bsn_operator::api::conditions::{Reason, STALLED};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde_json::json;

use crate::owner::{assert_nothing_made, put};
use crate::support::World;

const LONG: Duration = Duration::from_mins(3);

fn spec(network: &str, keys: &str) -> String {
    format!(
        r"chainId: {network}-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {{}}
nodeSets:
  - name: a
    role: Validator
    replicas: 2
    keys: {keys}
    storage: {{size: 1Gi}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_brought_are_checked_first_and_then_never_change() {
    let world = World::new("brought").await;
    let node = "brought-a-0";
    let seed: [u8; 32] = std::array::from_fn(|i| u8::try_from(i).unwrap() ^ 0x5a);
    let (key, p2p) = (PrivateKey::from_random(seed), PrivateKey::from_random([9; 32]));
    let described =
        |secret: &str| spec("brought", &format!("[{{node: {node}, secretName: {secret}}}]"));
    let apply = |secret: &str| world.apply(&world.yaml(&described(secret)));

    // Missing, then something else, then parts that do not belong together.
    apply("mine");
    world.await_node_stalled(node, Reason::KeysMissing, "story-brought/mine", LONG).await;
    put(&world, "mine", &[("password", "hunter2")]).await;
    world.await_node_stalled(node, Reason::KeysRefused, CONSENSUS_KEY_FILE, LONG).await;
    let other = PrivateKey::from_random([7; 32]);
    let file = key.consensus_key_file();
    let mixed = file.replace(key.public().base64(), other.public().base64());
    put(&world, "mine", &[(CONSENSUS_KEY_FILE, &mixed)]).await;
    world
        .await_node_stalled(node, Reason::KeysRefused, "does not match the private key", LONG)
        .await;
    assert_nothing_made(&world, node).await;

    // Corrected: its key is a founder's, in the genesis.
    put(&world, "mine", &[(CONSENSUS_KEY_FILE, &file), (NODE_KEY_FILE, &p2p.node_key_file())])
        .await;
    world.await_ready().await;
    let found = world.nodes().await.into_iter().find(|found| found.name_any() == node).unwrap();
    let status = found.status.unwrap();
    assert_eq!(status.address, Some(key.public().validator_address()));
    assert_eq!(status.node_id, Some(p2p.public().node_id()));
    let own = world.api::<Secret>().get(&format!("{node}-keys")).await.unwrap();
    assert_eq!(own.immutable, Some(true));

    // The owner's Secret is not needed any more.
    let namespace = world.namespace.as_str();
    world.kubectl_ok(&["delete", "secret", "mine", "-n", namespace]);
    world.kubectl_ok(&["delete", "pod", &format!("{node}-0"), "-n", namespace]);
    world.await_height_above(world.head().await + 3, LONG).await;

    // In another namespace the same key is refused, and a new one heals it.
    let thief = World::new("brought-thief").await;
    let target = "brought-thief-a-1";
    put(&thief, "stolen", &[(CONSENSUS_KEY_FILE, &file)]).await;
    let named = format!("[{{node: {target}, secretName: stolen}}]");
    thief.apply(&thief.yaml(&spec("brought-thief", &named)));
    thief.await_node_stalled(target, Reason::KeyUsedTwice, "story-brought/brought-a-0", LONG).await;
    assert_nothing_made(&thief, target).await;
    put(&thief, "stolen", &[(CONSENSUS_KEY_FILE, &other.consensus_key_file())]).await;
    thief.await_ready().await;

    // Another Secret for a node that has its keys: told, and the node stays as it is.
    let (before, pods) = (world.fingerprint().await, world.pod_uids().await);
    apply("another");
    let said = world.await_condition(STALLED, "True", LONG).await;
    assert!(said.contains("has the keys of Secret mine, not another"), "{said}");
    world.await_height_above(world.head().await + 3, LONG).await;
    apply("mine");
    world.await_converged(LONG).await;
    assert_eq!((world.fingerprint().await, world.pod_uids().await), (before, pods));

    // Names that no node of the set can have are refused before they are an object.
    let keys = json!([{"node": "brought-b-0", "secretName": "mine"}]).to_string();
    let error = world.try_apply(&world.yaml(&spec("brought", &keys))).unwrap_err();
    assert!(error.contains("keys take names of this set's nodes"), "{error}");
    thief.remove();
    world.remove();
}
