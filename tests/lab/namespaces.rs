//! The operator with rights in listed namespaces alone: it works there as everywhere, and elsewhere it may do nothing.

use std::time::Duration;

use bsn_testkit::operator::{NAME, NAMESPACE};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use crate::support::{World, eventually};

const LONG: Duration = Duration::from_mins(4);
/// For the operator to do what it should not.
const WHILE: Duration = Duration::from_secs(15);
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/bsn-operator");

/// The chart's value `watchNamespaces`, until this ends: the stories after this one need the operator everywhere.
struct Listed<'a>(&'a World);

impl Listed<'_> {
    fn set(&self, namespaces: &str) -> Result<(), String> {
        let value = format!("watchNamespaces={namespaces}");
        let args = ["upgrade", NAME, CHART, "--namespace", NAMESPACE, "--reset-then-reuse-values"];
        let args = [&args[..], &["--wait", "--timeout=3m", "--set", &value]].concat();
        let output = self.0.run(self.0.lab.tool("helm"), &args, "");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(error) }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set("null") {
            println!("the operator is for these namespaces alone still: {error}");
        }
    }
}

/// Whether the operator may do this in a world's namespace.
fn may(world: &World, verb: &str, what: &str) -> bool {
    let operator = format!("--as=system:serviceaccount:{NAMESPACE}:{NAME}");
    let args = ["auth", "can-i", verb, what, "-n", &world.namespace, &operator];
    let output = world.kubectl(&args, "");
    match String::from_utf8_lossy(&output.stdout).trim() {
        "yes" => true,
        "no" => false,
        other => panic!("{other}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

fn spec(world: &World, full_nodes: u32) -> String {
    world.yaml(&format!(
        r"chainId: {}-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {{}}
nodeSets:
  - name: a
    role: Validator
    replicas: 1
    storage: {{size: 1Gi}}
  - name: b
    role: FullNode
    replicas: {full_nodes}
    storage: {{size: 1Gi}}
",
        world.network
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn in_listed_namespaces_it_works_and_in_others_it_may_do_nothing() {
    let (inside, outside) = (World::new("listed").await, World::new("unlisted").await);
    let listed = Listed(&inside);
    listed.set(&format!("{{{}}}", inside.namespace)).unwrap();
    inside.await_operator().await;
    for (verb, what) in
        [("get", "secrets"), ("patch", "statefulsets.apps"), ("list", "bsnnetworks")]
    {
        assert!(may(&inside, verb, what), "{verb} {what}");
        assert!(!may(&outside, verb, what), "{verb} {what}");
    }

    inside.apply(&spec(&inside, 0));
    outside.apply(&spec(&outside, 0));
    inside.await_converged(LONG).await;
    // What is there already is watched, too: a change, and what somebody deletes.
    inside.apply(&spec(&inside, 1));
    inside.await_converged(LONG).await;
    let map = format!("{}-peers", inside.network);
    inside.kubectl_ok(&["delete", "configmap", &map, "-n", &inside.namespace]);
    eventually("the list of peers is made again", LONG, async || {
        let found = inside.api::<ConfigMap>().get_opt(&map).await.unwrap();
        if found.is_some() { Ok(()) } else { Err("it is missing".to_owned()) }
    })
    .await;

    tokio::time::sleep(WHILE).await;
    let status = outside.get().await.unwrap().status.unwrap_or_default();
    assert!(status.conditions.is_empty(), "it is looked at: {status:?}");
    let keys = outside.api::<Secret>().get_opt("unlisted-ca").await.unwrap();
    assert!(keys.is_none() && outside.pods().await.is_empty(), "something was made");

    // Listed later it is looked after, and nobody restarts in the other.
    let pods = inside.pod_uids().await;
    listed.set(&format!("{{{},{}}}", inside.namespace, outside.namespace)).unwrap();
    outside.await_converged(LONG).await;
    inside.await_height_above(inside.head().await + 3, LONG).await;
    assert_eq!(inside.pod_uids().await, pods);
    drop(listed);
    inside.await_operator().await;
    assert!(may(&outside, "get", "secrets"));
    inside.await_converged(LONG).await;
    assert_eq!(inside.pod_uids().await, pods);
    outside.remove();
    inside.remove();
}
