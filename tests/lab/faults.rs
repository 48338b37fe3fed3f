//! Crashes at bad moments: everything converges, no key and no genesis is made twice, the chain goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bsn_testkit::lab::MachineId;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::support::{READY_WITHIN, World, eventually, find_process, hub, kill9};

const RECOVERS_WITHIN: Duration = Duration::from_mins(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_any_part_stops_neither_the_chain_nor_the_operator() {
    let world = World::new("faults").await;
    world.apply(&world.yaml(&World::sample_spec()));
    world.await_ready().await;
    let before = world.fingerprint().await;
    assert_eq!(before.len(), 6, "four nodes' keys, the CA and the genesis: {before:?}");

    // A validator.
    kill9("faults-hangzhou-0-0", "cometbft");
    world.await_height_above(world.head().await + 3, RECOVERS_WITHIN).await;
    world.await_ready().await;

    // The operator.
    let leader = world.leader().await;
    kill9(&leader, "bsn-operator");
    world.await_height_above(world.head().await + 3, RECOVERS_WITHIN).await;
    world.await_ready().await;

    // A kubelet, while a pod of its machine is recreated.
    let machine = MachineId { cluster: hub(), machine: 1 };
    world.lab.kill_kubelet(machine).unwrap();
    world.kubectl_ok(&[
        "delete",
        "pod",
        "faults-nanjing-0-0",
        "-n",
        &world.namespace,
        "--wait=false",
    ]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.lab.start_kubelet(machine).unwrap();
    world.await_height_above(world.head().await + 3, RECOVERS_WITHIN).await;
    world.await_ready().await;

    // The API server, long enough to lose the lead: the chain must not notice.
    let head = world.head().await;
    world.lab.stop_api_server(hub()).unwrap();
    tokio::time::sleep(Duration::from_secs(25)).await;
    world.lab.start_api_server(hub()).unwrap();
    world.lab.wait_api_server(hub()).await.unwrap();
    let now = world.await_height_above(head + 3, RECOVERS_WITHIN).await;
    assert!(now >= head + 15, "the chain stood while the API server was away: {head} to {now}");
    world.await_ready().await;
    world.await_operator().await;

    assert_eq!(world.fingerprint().await, before);
    world.remove();
}

/// Uids ever seen, by name.
type Seen = BTreeMap<String, BTreeSet<String>>;

async fn observe(world: &World, seen: &mut Seen) {
    let list = ListParams::default();
    let secrets = world.api::<Secret>().list(&list).await.unwrap().items;
    let maps = world.api::<ConfigMap>().list(&list).await.unwrap().items;
    let once = secrets
        .iter()
        .map(|secret| (format!("Secret {}", secret.name_any()), secret.uid()))
        .chain(maps.iter().map(|map| (format!("ConfigMap {}", map.name_any()), map.uid())))
        .filter(|(name, _)| {
            name.ends_with("-keys") || name.ends_with("-ca") || name.contains("-genesis-")
        });
    for (name, uid) in once {
        seen.entry(name).or_default().insert(uid.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_at_several_moments_of_bring_up_makes_every_key_once() {
    let world = World::new("bring-up-kills").await;
    world.await_operator().await;
    world.leader().await;
    world.apply(&world.yaml(&World::sample_spec()));
    let mut seen = Seen::new();
    // Different moments of forming, the later ones under the backoff of the kubelet.
    for wait_millis in [300, 500, 700] {
        let until = tokio::time::Instant::now() + Duration::from_millis(wait_millis);
        while tokio::time::Instant::now() < until {
            observe(&world, &mut seen).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for pod in operator_pods(&world) {
            if let Some(process) = find_process(&pod, "bsn-operator") {
                process.kill9().unwrap();
            }
        }
        eventually("an operator that runs", Duration::from_mins(2), async || {
            observe(&world, &mut seen).await;
            let running =
                operator_pods(&world).iter().any(|pod| find_process(pod, "bsn-operator").is_some());
            running.then_some(()).ok_or_else(|| "none".to_owned())
        })
        .await;
        world.leader().await;
    }
    world.await_condition("Ready", "True", READY_WITHIN).await;
    observe(&world, &mut seen).await;
    assert_eq!(seen.len(), 7, "four nodes' keys, two of the CA, the genesis: {seen:?}");
    assert!(seen.values().all(|uids| uids.len() == 1), "made twice: {seen:?}");
    world.await_operator().await;
    world.remove();
}

fn operator_pods(world: &World) -> Vec<String> {
    let args = ["get", "pods", "-n", "bsn-system", "-o", "name"];
    let names = world.kubectl_ok(&args);
    names.lines().filter_map(|name| name.strip_prefix("pod/")).map(str::to_owned).collect()
}
