//! Who reaches a node is enforced, once something in the cluster does that: here a process on every machine, which ends
//! with the story.

use std::process::{Command, Stdio};
use std::time::Duration;

use bsn_operator::api::conditions::STALLED;
use bsn_testkit::lab::process::{ProcessId, Service};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::json;

use crate::support::{READY_WITHIN, World, eventually, find_process, hub};

const SOON: Duration = Duration::from_secs(30);
const P2P: u16 = 26656;
const GATEWAY: u16 = 8443;
const PROBES: u16 = 8081;

/// What enforces the policies on the hub's machines; ends with this.
struct Enforcers(Vec<Service>);

impl Enforcers {
    fn start(world: &World) -> Self {
        let (lab, cluster) = (&world.lab, hub());
        let machines = lab.spec().machines().filter(|machine| machine.cluster == cluster);
        let mut all = Self(Vec::new());
        for machine in machines {
            let service = Service::new(&lab.layout().machine(machine), "netpol");
            let args = [
                format!("--kubeconfig={}", lab.kubeconfig(cluster).display()),
                format!("--machine={}", machine.node_name()),
                format!("--pods={}", bsn_testkit::lab::layout::cluster_pods(cluster)),
            ];
            service.start(Some(&machine.namespace()), &lab.tool("netpol"), &args).unwrap();
            all.0.push(service);
        }
        all
    }
}

impl Drop for Enforcers {
    fn drop(&mut self) {
        for service in &self.0 {
            let end = |process: ProcessId| process.terminate(Duration::from_secs(10));
            if let Err(error) = service.with(end) {
                println!("{}: {error}", service.name());
            }
        }
    }
}

/// Whether a node's pod reaches a port of another's.
async fn reaches(from: &str, to: (&World, &str), port: u16) -> bool {
    let (world, node) = to;
    let pod = world.api::<Pod>().get(&format!("{node}-0")).await.unwrap();
    let address = pod.status.unwrap().pod_ip.unwrap();
    let engine = find_process(&format!("{from}-0"), "cometbft").unwrap();
    let mut connect = Command::new("nsenter");
    connect.args(["--target", &engine.pid.to_string(), "--net", "timeout", "3", "bash", "-c"]);
    connect.arg(format!("exec 3<>/dev/tcp/{address}/{port}"));
    let ended = connect.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    ended.success()
}

async fn await_reach(from: &str, to: (&World, &str), port: u16, expected: bool) {
    let what = format!("{from} reaches {}:{port}: {expected}", to.1);
    eventually(&what, SOON, async || {
        let found = reaches(from, to, port).await;
        if found == expected { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}

fn spec(network: &str, replicas: u32, policy: &serde_json::Value) -> String {
    format!(
        r"chainId: {network}-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {{}}
networkPolicy: {policy}
nodeSets:
  - name: a
    role: Validator
    replicas: {replicas}
    storage: {{size: 1Gi}}
"
    )
}

async fn policy(world: &World) -> Option<NetworkPolicy> {
    let name = format!("{}-nodes", world.network);
    world.api::<NetworkPolicy>().get_opt(&name).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_reach_nothing_but_what_is_described() {
    let world = World::new("netpol").await;
    let stranger = World::new("netpol-stranger").await;
    let enforcers = Enforcers::start(&world);
    let described = |policy| world.yaml(&spec("netpol", 2, &policy));
    world.apply(&described(json!({})));
    stranger.apply(&stranger.yaml(&spec("netpol-stranger", 1, &json!({}))));
    world.await_ready().await;
    stranger.await_ready().await;
    let (node, other) = ((&world, "netpol-a-0"), "netpol-a-1");
    let outsider = "netpol-stranger-a-0";

    // Guards ask their peers' gateways, the operator asks all: the chain was formed under the policy, and is seen to go on.
    world.await_height_above(world.head().await + 2, READY_WITHIN).await;
    for (from, port, expected) in [
        (other, GATEWAY, true),
        (other, P2P, true),
        (other, PROBES, false),
        (outsider, GATEWAY, false),
        (outsider, P2P, true),
        (outsider, PROBES, false),
    ] {
        await_reach(from, node, port, expected).await;
    }

    // Edited or deleted, it is put back.
    let first = policy(&world).await.unwrap();
    let open = r#"{"spec":{"ingress":[{}]}}"#;
    let namespace = world.namespace.as_str();
    let patch = ["patch", "networkpolicy", "netpol-nodes", "-n", namespace, "--type=merge", "-p"];
    world.kubectl_ok(&[&patch[..], &[open]].concat());
    let as_made = async || match policy(&world).await {
        Some(found) if found.spec == first.spec => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the policy is put back", SOON, as_made).await;
    world.kubectl_ok(&["delete", "networkpolicy", "netpol-nodes", "-n", namespace]);
    eventually("the policy is made again", SOON, as_made).await;
    await_reach(outsider, node, GATEWAY, false).await;

    // Named, it is let in; peers from nowhere else.
    let name = json!({"matchLabels": {"kubernetes.io/metadata.name": stranger.namespace}});
    let pods = world.pod_uids().await;
    world.apply(&described(json!({
        "gatewayFrom": [{"namespaceSelector": name}], "outsideAddresses": [],
    })));
    await_reach(outsider, node, GATEWAY, true).await;
    await_reach(outsider, node, P2P, false).await;
    await_reach(other, node, P2P, true).await;

    // What the API server does not accept is told; the policy stays, and the chain goes on.
    let wrong = json!({"podSelector": {"matchLabels": {"not a label": "x"}}});
    world.apply(&described(json!({"gatewayFrom": [wrong]})));
    let said = world.await_condition(STALLED, "True", SOON).await;
    assert!(said.contains("correct gatewayFrom"), "{said}");
    await_reach(outsider, node, GATEWAY, true).await;
    world.await_height_above(world.head().await + 2, READY_WITHIN).await;

    // Switched off, it is gone, and everything is open.
    world.apply(&described(json!({"enabled": false})));
    eventually("the policy is gone", SOON, async || match policy(&world).await {
        None => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    await_reach(outsider, node, PROBES, true).await;
    world.await_ready().await;
    assert_eq!(world.pod_uids().await, pods, "nobody restarts because of it");
    drop(enforcers);
    stranger.remove();
    world.remove();
}
