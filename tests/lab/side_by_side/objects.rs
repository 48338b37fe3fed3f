//! Objects that a stranger made, and objects of ours that somebody edited or deleted by hand: put back if that is harmless,
//! else a refusal that says how to restore.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_operator::api::conditions::Reason;
use serde_json::{Value, json};

use crate::support::{World, eventually};

const LONG: Duration = Duration::from_mins(3);
const NODE: &str = "objects-hangzhou-0";

/// An object as it is, by kind and name.
async fn object(world: &World, name: &str) -> Result<Value, String> {
    let (kind, name) = name.split_once('/').unwrap();
    let (group, plural) = match kind {
        "service" => ("api/v1", "services"),
        "configmap" => ("api/v1", "configmaps"),
        "secret" => ("api/v1", "secrets"),
        "statefulset" => ("apis/apps/v1", "statefulsets"),
        "pdb" => ("apis/policy/v1", "poddisruptionbudgets"),
        "pvc" => ("api/v1", "persistentvolumeclaims"),
        "bsnnode" => ("apis/bsn-operator.io/v1alpha1", "bsnnodes"),
        other => panic!("no path for {other}"),
    };
    let path = format!("/{group}/namespaces/{}/{plural}/{name}", world.namespace);
    let request = hyper::Request::get(path).body(Vec::new()).unwrap();
    world.client.request(request).await.map_err(|error| error.to_string())
}

/// What of an object has to be put back.
fn content(mut object: Value) -> Value {
    let meta = object["metadata"].take();
    object.as_object_mut().unwrap().remove("status");
    for assigned in ["/spec/clusterIP", "/spec/clusterIPs"] {
        if let Some(value) = object.pointer_mut(assigned) {
            value.take();
        }
    }
    let (owners, kept_by) = (&meta["ownerReferences"], &meta["finalizers"]);
    json!({"object": object, "labels": meta["labels"], "owners": owners, "finalizers": kept_by})
}

/// Does something to an object and waits until it is as before.
async fn is_put_back(world: &World, name: &str, act: &[&str]) {
    let before = content(object(world, name).await.unwrap());
    let args: Vec<_> = act.iter().copied().chain(["-n", &world.namespace]).collect();
    world.kubectl_ok(&args);
    eventually(&format!("{name} as before {act:?}"), LONG, async || {
        let now = content(object(world, name).await?);
        if now == before { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
}

async fn is_edited_in_vain(world: &World, name: &str, patch: &str) {
    is_put_back(world, name, &["patch", name, "--type=merge", "-p", patch]).await;
}

async fn is_deleted_in_vain(world: &World, name: &str) {
    let before = object(world, name).await.unwrap();
    is_put_back(world, name, &["delete", name, "--wait=false"]).await;
    let now = object(world, name).await.unwrap();
    assert_ne!(now["metadata"]["uid"], before["metadata"]["uid"], "{name} was never gone");
}

/// Deletes what comes back with other content; gives what it was.
async fn remove(world: &World, name: &str) -> Value {
    let object = object(world, name).await.unwrap();
    world.kubectl_ok(&["delete", name, "-n", &world.namespace]);
    object
}

/// Waits until something is there again with the same entries, and new content in them.
async fn is_made_anew(world: &World, name: &str, before: &Value) {
    let entries = |object: &Value| -> Vec<String> {
        object["data"].as_object().unwrap().keys().cloned().collect()
    };
    eventually(&format!("another {name}"), LONG, async || {
        let now = object(world, name).await?;
        let another = now["metadata"]["uid"] != before["metadata"]["uid"];
        if another && entries(&now) == entries(before) && now["data"] != before["data"] {
            Ok(())
        } else {
            Err(format!("{now}"))
        }
    })
    .await;
}

/// The `ConfigMap` whose name begins like this.
fn map_named(world: &World, beginning: &str) -> String {
    let names = world.kubectl_ok(&["get", "configmaps", "-n", &world.namespace, "-o", "name"]);
    let found = names.lines().find(|name| name.contains(beginning));
    found.unwrap_or_else(|| panic!("no {beginning} in {names}")).to_owned()
}

/// Deletes what a finalizer of ours holds; gives what it was, to be restored.
async fn take_away(world: &World, name: &str) -> Value {
    let object = object(world, name).await.unwrap();
    world.lose(name);
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_objects_stay_and_lost_ones_come_back_or_are_asked_for() {
    let world = World::new("objects").await;
    let namespace = world.namespace.clone();

    // A stranger's Service has a node's name: it is left alone, and the node waits.
    let make = ["create", "service", "clusterip", NODE, "--tcp=80:80", "-n", &namespace];
    world.kubectl_ok(&make);
    let foreign = object(&world, &format!("service/{NODE}")).await.unwrap();
    // Another's ConfigMap has the anchor's name: of a new network nobody has a backup.
    let make = ["create", "configmap", "objects-anchor", "--from-literal=a=b", "-n", &namespace];
    world.kubectl_ok(&make);
    world.apply(&world.yaml(&World::sample_spec()));
    world.await_stalled(Reason::NameTaken, "delete or rename", LONG).await;
    world.kubectl_ok(&["delete", "configmap", "objects-anchor", "-n", &namespace]);
    world.await_node_stalled(NODE, Reason::NameTaken, "delete or rename", LONG).await;
    assert_eq!(object(&world, &format!("service/{NODE}")).await.unwrap(), foreign);
    world.kubectl_ok(&["delete", "service", NODE, "-n", &namespace]);
    world.await_ready().await;
    world.await_height_above(3, LONG).await;
    let pods = world.pod_uids().await;

    // Edited.
    let (service, set) = (format!("service/{NODE}"), format!("statefulset/{NODE}"));
    is_edited_in_vain(&world, &service, r#"{"spec":{"ports":[{"port":1}]}}"#).await;
    let more = r#"{"spec":{"ports":[{"name":"p2p","port":26656},{"name":"x","port":1}]}}"#;
    is_edited_in_vain(&world, &service, more).await;
    is_edited_in_vain(&world, &service, r#"{"metadata":{"labels":null}}"#).await;
    is_edited_in_vain(&world, &set, r#"{"metadata":{"labels":null}}"#).await;
    is_edited_in_vain(&world, &set, r#"{"spec":{"updateStrategy":{"type":"RollingUpdate"}}}"#)
        .await;
    is_edited_in_vain(&world, "configmap/objects-peers", r#"{"data":{"peers":"x"}}"#).await;
    is_edited_in_vain(&world, "configmap/objects-ca", r#"{"data":{"ca.crt":"x"}}"#).await;
    is_edited_in_vain(&world, "pdb/objects-voters", r#"{"spec":{"minAvailable":0}}"#).await;
    let node = format!("bsnnode/{NODE}");
    is_edited_in_vain(&world, &node, r#"{"metadata":{"ownerReferences":null}}"#).await;
    is_edited_in_vain(&world, &node, r#"{"metadata":{"finalizers":null}}"#).await;
    let other = r#"{"spec":{"role":"FullNode","nodeSet":"other","storage":{"size":"999Gi"}}}"#;
    let disk = object(&world, &format!("pvc/{NODE}-data")).await.unwrap();
    is_edited_in_vain(&world, &node, other).await;
    assert_eq!(object(&world, &format!("pvc/{NODE}-data")).await.unwrap()["spec"], disk["spec"]);

    // Without labels: nothing owns the first two, and what is in them is enough.
    let genesis = map_named(&world, "objects-genesis-");
    for name in ["configmap/objects-ca", &genesis, "secret/objects-client"] {
        is_edited_in_vain(&world, name, r#"{"metadata":{"labels":null}}"#).await;
    }

    // Deleted. Secrets are not watched but looked at once a minute: meanwhile the rest.
    let client = remove(&world, "secret/objects-client").await;
    let certificate = format!("configmap/{NODE}-cert");
    let leaf = remove(&world, &certificate).await;
    is_made_anew(&world, &certificate, &leaf).await;
    is_deleted_in_vain(&world, &service).await;
    is_deleted_in_vain(&world, "configmap/objects-peers").await;
    is_deleted_in_vain(&world, "configmap/objects-ca").await;
    is_deleted_in_vain(&world, "pdb/objects-voters").await;
    for beginning in ["objects-genesis-", &format!("{NODE}-template-"), &format!("{NODE}-config-")]
    {
        is_deleted_in_vain(&world, &map_named(&world, beginning)).await;
    }
    is_made_anew(&world, "secret/objects-client", &client).await;

    // What cannot be made again is asked for, and nothing else happens meanwhile.
    let authority = take_away(&world, "secret/objects-ca").await;
    world.await_stalled(Reason::KeyLost, "restore", LONG).await;
    world.restore(authority);
    world.await_ready().await;
    let anchor = take_away(&world, "configmap/objects-anchor").await;
    world.await_stalled(Reason::AnchorRefused, "restore", LONG).await;
    world.restore(anchor);
    world.await_ready().await;

    // A chain does not notice any of it.
    world.await_height_above(world.head().await + 3, LONG).await;
    let now: BTreeMap<_, _> = world.pod_uids().await;
    assert_eq!(now, pods, "a pod was restarted");

    // A StatefulSet takes its pod along, and comes back as it was.
    is_deleted_in_vain(&world, &set).await;
    eventually("a new pod", LONG, async || {
        let now = world.pod_uids().await;
        let is_new = now.get(NODE).is_some_and(|uid| *uid != pods[NODE]);
        if is_new { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    world.await_height_above(world.head().await + 3, LONG).await;
    let mut now = world.pod_uids().await;
    now.insert(NODE.to_owned(), pods[NODE].clone());
    assert_eq!(now, pods, "another pod was restarted");
    world.remove();
}
