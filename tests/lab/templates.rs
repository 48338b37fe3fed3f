//! A changed description takes effect in each node's own restart, and never by accident before.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_operator::api::conditions::Reason;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use crate::support::{World, eventually, is_ready};

const LONG: Duration = Duration::from_mins(5);

/// The template each pod was made from.
async fn templates(world: &World) -> BTreeMap<String, String> {
    let pods = world.pods().await;
    pods.iter()
        .map(|pod| {
            let hash = pod.annotations()["bsn-operator.io/template-hash"].clone();
            (pod.name_any(), hash)
        })
        .collect()
}

fn spec(timeout_commit: &str) -> String {
    let with = format!("version: 0.38.25\n    timeoutCommit: {timeout_commit}");
    World::sample_spec().replace("version: 0.38.25", &with)
}

/// Waits for a new pod of this name; gives its template.
async fn await_new_pod(world: &World, pod: &str, old_uid: Option<&String>) -> String {
    eventually(&format!("a new pod {pod}"), Duration::from_mins(2), async || {
        let pods = world.pods().await;
        let found = pods.iter().find(|found| found.name_any() == pod);
        match found.filter(|found| found.metadata.uid.as_ref() != old_uid) {
            Some(new) => Ok(new.annotations()["bsn-operator.io/template-hash"].clone()),
            None => Err("not there".to_owned()),
        }
    })
    .await
}

/// Deletes a `ConfigMap`; gives what it was.
async fn take_map(world: &World, name: &str) -> ConfigMap {
    let map = world.api::<ConfigMap>().get(name).await.unwrap();
    world.kubectl_ok(&["delete", "configmap", name, "-n", &world.namespace]);
    map
}

/// The configuration that a template mounts.
fn config_of(node: &str, template: &ConfigMap) -> String {
    let beginning = format!("{node}-config-");
    let text = &template.data.as_ref().unwrap()["template.json"];
    let (_, rest) = text.split_once(&beginning).unwrap();
    let hash: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
    beginning + &hash
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_rolls_one_by_one_and_no_pod_starts_on_it_before_its_turn() {
    let world = World::new("templates").await;
    world.apply(&world.yaml(&spec("1s")));
    world.await_ready().await;
    let before = templates(&world).await;
    let (node, last) = ("templates-nanjing-1", "templates-nanjing-1-0");
    let uid_of = async || {
        let pods = world.pods().await;
        pods.iter().find(|pod| pod.name_any() == last).and_then(ResourceExt::uid)
    };

    // Killed before its turn.
    let uid = uid_of().await;
    world.apply(&world.yaml(&spec("1500ms")));
    world.kubectl_ok(&["delete", "pod", last, "-n", &world.namespace, "--wait=false"]);
    assert_eq!(await_new_pod(&world, last, uid.as_ref()).await, before[last]);
    world.await_condition("Ready", "True", LONG).await;
    let after = templates(&world).await;
    for (pod, hash) in &after {
        assert_ne!(hash, &before[pod], "{pod} still runs the old template");
    }
    let view = world.view().unwrap();
    assert!(view.nodes.iter().all(|node| node.in_sync), "{view:?}");

    // Changed while the operator is off, and the StatefulSet deleted with the template in force: it is not made from another
    // one. Restored, it comes back as it was. The node is held, or it might be restarted with what is described now before it
    // is back: it is down, and nobody would miss it.
    world.scale_operator(0).await;
    let uid = uid_of().await;
    let held = format!("name: nanjing\n    hold: [{node}]");
    world.apply(&world.yaml(&spec("1s").replacen("name: nanjing", &held, 1)));
    world.kubectl_ok(&["delete", "statefulset", node, "-n", &world.namespace]);
    let name = format!("{node}-template-{}", after[last]);
    let template = take_map(&world, &name).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.scale_operator(2).await;
    let words = format!("{name} with the pod template in force is missing");
    world.await_node_stalled(node, Reason::TemplateLost, &words, LONG).await;
    let said = world.await_stalled(Reason::TemplateLost, &words, LONG).await;
    assert!(said.contains("restore it from a backup"), "{said}");
    assert!(world.api::<StatefulSet>().get_opt(node).await.unwrap().is_none());
    let there = uid_of().await;
    assert!(there.is_none() || there == uid, "a pod was made: {there:?} after {uid:?}");
    world.restore(serde_json::to_value(&template).unwrap());
    assert_eq!(await_new_pod(&world, last, uid.as_ref()).await, after[last]);

    // The same of the configuration that it mounts: another one follows from what is described now. The pod has it by then.
    eventually("its pod is ready", LONG, async || {
        let pods = world.pods().await;
        let is_up = pods.iter().any(|pod| pod.name_any() == last && is_ready(pod));
        if is_up { Ok(()) } else { Err("it is not".to_owned()) }
    })
    .await;
    let config = take_map(&world, &config_of(node, &template)).await;
    let words = "with the configuration in force is missing";
    world.await_node_stalled(node, Reason::TemplateLost, words, LONG).await;
    world.restore(serde_json::to_value(config).unwrap());
    world.apply(&world.yaml(&spec("1s")));
    world.await_condition("Ready", "True", LONG).await;
    let end = templates(&world).await;
    assert!(end.iter().all(|(pod, hash)| *hash != after[pod]), "{end:?} after {after:?}");

    // What is no longer in force is gone: one template and one configuration for each node.
    eventually("old templates pruned", Duration::from_mins(1), async || {
        let args = ["get", "configmaps", "-n", &world.namespace, "-o", "name"];
        let names = world.kubectl_ok(&args);
        let of = |kind: &str| names.lines().filter(|name| name.contains(kind)).count();
        let counts = (of("-template-"), of("-config-"));
        if counts == (4, 4) { Ok(()) } else { Err(format!("{counts:?}: {names}")) }
    })
    .await;
    world.remove();
}
