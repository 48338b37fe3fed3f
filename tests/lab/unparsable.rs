//! An object that was stored when its definition allowed more, and that this version cannot read.

use std::time::Duration;

use bsn_operator::api::conditions::{CHAIN_LIVE, Reason, find};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use serde_json::{Value, json};

use crate::support::{World, eventually};

const MINUTE: Duration = Duration::from_mins(1);
const NETWORKS: &str = "bsnnetworks";
const NODES: &str = "bsnnodes";

const SPEC: &str = r"
chainId: unparsable-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {}
nodeSets:
  - name: voter
    role: Validator
    replicas: 1
    storage: {size: 1Gi}
";

/// The definition of a kind as it is; putting it back takes any version of it.
fn definition(world: &World, kind: &str) -> Value {
    let name = format!("customresourcedefinition/{kind}.bsn-operator.io");
    let text = world.kubectl_ok(&["get", &name, "-o", "json"]);
    let mut definition: Value = serde_json::from_str(&text).unwrap();
    let meta = definition["metadata"].as_object_mut().unwrap();
    meta.remove("resourceVersion");
    definition
}

fn replace(world: &World, definition: &Value) {
    let output = world.kubectl(&["replace", "-f", "-"], &definition.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Stores in an object what today's definition of its kind would refuse.
fn store_nonsense(world: &World, kind: &str, name: &str, patch: &str) {
    let definition = definition(world, kind);
    let mut open = definition.clone();
    for version in open["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"] =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    replace(world, &open);
    // The API server takes a moment to know it.
    let began = std::time::Instant::now();
    loop {
        let namespace = world.namespace.as_str();
        let args = ["patch", kind, name, "-n", namespace, "--type=merge", "-p", patch];
        let output = world.kubectl(&args, "");
        if output.status.success() {
            break;
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if began.elapsed() > MINUTE {
            replace(world, &definition);
            panic!("not stored: {error}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    replace(world, &definition);
}

/// Stores a description of the network that cannot be read.
fn store_nonsense_network(world: &World, spec: &str) {
    store_nonsense(world, NETWORKS, &world.network, &format!(r#"{{"spec":{spec}}}"#));
}

/// Stores the same of a node while no operator runs, so that the next one finds it.
async fn leave_nonsense_node(world: &World, node: &str) {
    world.scale_operator(0).await;
    store_nonsense(world, NODES, node, r#"{"spec":{"role":"Boss","storage":"large"}}"#);
}

/// The nodes' objects, which need not parse.
fn stored_nodes(world: &World) -> Vec<Value> {
    let text = world.kubectl_ok(&["get", NODES, "-n", &world.namespace, "-o", "json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    list["items"].as_array().unwrap().clone()
}

fn delete_network(world: &World) {
    let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
    world.kubectl_ok(&["delete", NETWORKS, network, "-n", namespace, "--wait=false"]);
}

/// Conditions of a network that need not parse.
async fn conditions(world: &World) -> Result<Vec<Condition>, String> {
    let kind = ApiResource::erase::<bsn_operator::api::BsnNetwork>(&());
    let api = Api::<DynamicObject>::namespaced_with(world.client.clone(), &world.namespace, &kind);
    let object = api.get(&world.network).await.map_err(|error| error.to_string())?;
    serde_json::from_value(object.data["status"]["conditions"].clone())
        .map_err(|error| error.to_string())
}

async fn await_unparsable(world: &World) -> Vec<Condition> {
    eventually("the condition that it does not parse", MINUTE, async || {
        let conditions = conditions(world).await?;
        match find(&conditions, "Stalled") {
            Some(found) if found.reason == Reason::Unparsable.as_str() => Ok(conditions),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_no_longer_parses_runs_on_and_disturbs_no_other() {
    let world = World::new("unparsable").await;
    world.apply(&world.yaml(SPEC.trim_start()));
    world.await_ready().await;
    let (head, pods) = (world.head().await, world.pod_uids().await);
    store_nonsense_network(&world, r#"{"nodeSets":"many"}"#);
    let said = await_unparsable(&world).await;
    let live = find(&said, CHAIN_LIVE).expect("what was said of its chain stays");
    assert_eq!(live.status, "True", "{live:?}");

    // Not even to an operator that has just started.
    world.scale_operator(0).await;
    world.scale_operator(2).await;
    let other = World { network: "neighbour".to_owned(), ..world.clone() };
    let spec = SPEC.trim_start().replace("unparsable-1", "neighbour-1");
    other.apply(&other.yaml(&spec));
    other.await_ready().await;
    await_unparsable(&world).await;

    // Corrected.
    world.apply(&world.yaml(SPEC.trim_start()));
    world.await_ready().await;
    world.await_height_above(head + 10, MINUTE).await;
    let now = world.pod_uids().await;
    assert!(pods.iter().all(|(node, uid)| now.get(node) == Some(uid)), "{now:?}, before {pods:?}");
    world.release();
    other.remove();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_no_longer_parses_gets_its_spec_back_and_ends_with_its_network() {
    let world = World::new("nonsense").await;
    let spec = SPEC.trim_start().replace("unparsable-1", "nonsense-1");
    let node = "nonsense-voter-0";
    world.apply(&world.yaml(&spec));
    world.await_ready().await;
    let (head, pods) = (world.head().await, world.pod_uids().await);
    let kept = world.fingerprint().await;

    leave_nonsense_node(&world, node).await;
    world.scale_operator(2).await;
    eventually("the node's spec as it was", MINUTE, async || {
        let spec = stored_nodes(&world)[0]["spec"].take();
        let is_back = spec["role"] == "Validator" && spec["storage"]["size"] == "1Gi";
        if is_back { Ok(()) } else { Err(spec.to_string()) }
    })
    .await;
    world.await_ready().await;
    world.await_height_above(head + 5, MINUTE).await;
    assert_eq!(world.pod_uids().await, pods, "nobody is restarted for it");

    // Nothing holds up its end, and what is kept of any node is kept of it.
    leave_nonsense_node(&world, node).await;
    delete_network(&world);
    world.scale_operator(2).await;
    eventually("the node's end", 2 * MINUTE, async || {
        let (nodes, pods) = (stored_nodes(&world), world.pods().await.len());
        if nodes.is_empty() && pods == 0 { Ok(()) } else { Err(format!("{pods}: {nodes:?}")) }
    })
    .await;
    assert_eq!(world.fingerprint().await, kept);

    policy_that_cannot_be_read(&world, &spec).await;
    world.remove();
}

/// What a network's policy names is deleted only on the word of an object that can be read.
async fn policy_that_cannot_be_read(world: &World, spec: &str) {
    let yaml = world.yaml(&format!("{spec}deletionPolicy: {{data: Delete, keys: Delete}}\n"));
    world.apply(&yaml);
    world.await_ready().await;
    let (pods, kept) = (world.pod_uids().await, world.fingerprint().await);
    store_nonsense_network(world, r#"{"deletionPolicy":{"data":"Perhaps"}}"#);
    delete_network(world);
    eventually("the refusal to delete anything", MINUTE, async || {
        let conditions = conditions(world).await?;
        let stalled = find(&conditions, "Stalled").ok_or("no such condition")?;
        let words = ["nothing is deleted", "kubectl patch bsnnetwork"];
        let told = words.iter().all(|word| stalled.message.contains(word));
        if told { Ok(()) } else { Err(format!("{stalled:?}")) }
    })
    .await;
    // Longer than a network that ends is looked at again.
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((world.pod_uids().await, world.fingerprint().await), (pods, kept));

    // Corrected, it goes with all that its policy names.
    world.apply(&yaml);
    eventually("the network's end", 3 * MINUTE, async || {
        let gone = world.get().await.is_err();
        let disks = world.api::<PersistentVolumeClaim>().list(&ListParams::default()).await;
        let disks = disks.map_err(|error| error.to_string())?.items.len();
        if gone && disks == 0 { Ok(()) } else { Err(format!("gone: {gone}, disks: {disks}")) }
    })
    .await;
}
