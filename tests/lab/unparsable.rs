//! An object that was stored when its definition allowed more, and that this version cannot read.

use std::time::Duration;

use bsn_operator::api::conditions::{CHAIN_LIVE, Reason, find};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, ApiResource, DynamicObject};
use serde_json::{Value, json};

use crate::support::{World, eventually};

const MINUTE: Duration = Duration::from_mins(1);
const DEFINITION: &str = "customresourcedefinition/bsnnetworks.bsn-operator.io";

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

/// The definition as it is; putting it back takes any version of it.
fn definition(world: &World) -> Value {
    let text = world.kubectl_ok(&["get", DEFINITION, "-o", "json"]);
    let mut definition: Value = serde_json::from_str(&text).unwrap();
    let meta = definition["metadata"].as_object_mut().unwrap();
    meta.remove("resourceVersion");
    definition
}

fn replace(world: &World, definition: &Value) {
    let output = world.kubectl(&["replace", "-f", "-"], &definition.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Stores a description that today's definition would refuse.
fn store_nonsense(world: &World) {
    let definition = definition(world);
    let mut open = definition.clone();
    for version in open["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"] =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    replace(world, &open);
    // The API server takes a moment to know it.
    let began = std::time::Instant::now();
    loop {
        let patch = r#"{"spec":{"nodeSets":"many"}}"#;
        let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
        let args = ["patch", "bsnnetwork", network, "-n", namespace, "--type=merge", "-p", patch];
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

/// Conditions of an object that need not parse.
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
    store_nonsense(&world);
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
