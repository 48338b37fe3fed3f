//! A changed description takes effect in each node's own restart, and never by accident before.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::ResourceExt;

use crate::support::{World, eventually};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_change_rolls_one_by_one_and_no_pod_starts_on_it_before_its_turn() {
    let world = World::new("templates").await;
    world.apply(&world.yaml(&spec("1s")));
    world.await_ready().await;
    let before = templates(&world).await;
    let last = "templates-nanjing-1-0";
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

    // Changed while the operator is off, and the StatefulSet deleted: it comes back as it was. The node is held, or it might
    // be restarted with what is described now before it is back: it is down, and nobody would miss it.
    world.scale_operator(0).await;
    let uid = uid_of().await;
    let held = "name: nanjing\n    hold: [templates-nanjing-1]";
    world.apply(&world.yaml(&spec("1s").replacen("name: nanjing", held, 1)));
    world.kubectl_ok(&["delete", "statefulset", "templates-nanjing-1", "-n", &world.namespace]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    world.scale_operator(2).await;
    assert_eq!(await_new_pod(&world, last, uid.as_ref()).await, after[last]);
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
