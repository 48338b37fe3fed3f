//! An application whose second version makes other blocks than the first: rolled, it is found out on the first node
//! and reaches no other; at a height, it reaches all, while a user's transactions flow.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_operator::api::conditions::Reason;
use bsn_testkit::lab::image::LEDGERAPP;
use jiff::Timestamp;
use serde_json::json;

use crate::chain::{print_gaps, verify};
use crate::client::Traffic;
use crate::rpc::Client;
use crate::sampler::{watch_pods, watch_steps};
use crate::support::{World, eventually};

/// Longest for two restarts of each node, the wait for the height, and the minute of proof.
const SWITCHED_WITHIN: Duration = Duration::from_mins(15);
const LONG: Duration = Duration::from_mins(6);

const SPEC: &str = r"
chainId: at-height-1
engine:
  cometbft:
    version: 0.38.25
    app:
      container:
        image: IMAGE
        halt: {env: HALT_HEIGHT}
UPGRADE
membership:
  submit: {txTemplate: 'validator {pubKeyBase64} {power} {serial}'}
repair: {cureAfter: 15s, gracePeriod: 20s}
nodeSets:
  - name: a
    role: Validator
    replicas: 4
    votingPower: POWER
    storage: {size: 1Gi}
  - name: reader
    role: FullNode
    replicas: READERS
    storage: {size: 1Gi}
";

const NOT_SAID: &str = "";
const ROLLING: &str = "upgrade: {strategy: Rolling}";
const AT_HEIGHT: &str = "upgrade: {strategy: AtHeight, restartTime: 15s}";

fn spec(version: usize, upgrade: &str, readers: u32) -> String {
    spec_with(version, upgrade, readers, 500)
}

fn spec_with(version: usize, upgrade: &str, readers: u32, power: u64) -> String {
    SPEC.trim_start()
        .replace("POWER", &power.to_string())
        .replace("IMAGE", LEDGERAPP[version - 1])
        .replace(
            "UPGRADE\n",
            &if upgrade.is_empty() { String::new() } else { format!("{upgrade}\n") },
        )
        .replace("READERS", &readers.to_string())
}

/// Each node's version of the application, by its own word.
async fn versions(world: &World) -> BTreeMap<String, String> {
    let client = Client::new(world).await;
    let mut versions = BTreeMap::new();
    for node in client.nodes.keys() {
        let info = client.patient_result(node, "abci_info", &json!({})).await;
        let version = info["response"]["version"].as_str().unwrap_or_default().to_owned();
        versions.insert(node.clone(), version);
    }
    versions
}

async fn assert_versions(world: &World, count: usize, expected: &str) {
    let versions = versions(world).await;
    assert_eq!(versions.len(), count, "{versions:?}");
    assert!(versions.values().all(|version| version == expected), "{versions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_makes_other_blocks_comes_at_a_height_and_not_one_by_one() {
    let world = World::new("at-height").await;
    world.apply(&world.yaml(&spec_with(1, NOT_SAID, 1, 1000)));
    world.await_converged(LONG).await;
    assert_versions(&world, 5, "1").await;

    // Its validators are changed by transactions of its own form.
    world.apply(&world.yaml(&spec(1, NOT_SAID, 1)));
    world.await_converged(LONG).await;
    let voters = Client::new(&world).await.voters("at-height-a-0", None).await;
    assert_eq!(voters.into_values().collect::<Vec<_>>(), [500; 4]);

    // How it is to come has to be said.
    let error = world.try_apply(&world.yaml(&spec(2, NOT_SAID, 1))).unwrap_err();
    assert!(error.contains("upgrade: {strategy: Rolling}"), "{error}");

    // One by one it gets no further than to the first, which votes on nothing.
    let before = world.pod_uids().await;
    world.apply(&world.yaml(&spec(2, ROLLING, 1)));
    let expected = ["node_comes_back", "at-height-reader-0"];
    let said = world.await_refused(Reason::StepRefused, &expected, LONG).await;
    println!("{said}");
    let mut after = world.pod_uids().await;
    assert_ne!(after.remove("at-height-reader-0"), before.get("at-height-reader-0").cloned());
    assert!(after.iter().all(|(node, uid)| before[node] == *uid), "{after:?} after {before:?}");
    let head = world.head().await;
    eventually("the others go on", Duration::from_mins(1), async || {
        let now = world.head().await;
        if now > head + 3 { Ok(()) } else { Err(format!("at {now} after {head}")) }
    })
    .await;
    // What it applied by other rules is lost with it.
    world.apply(&world.yaml(&spec(1, ROLLING, 0)));
    world.await_converged(LONG).await;
    eventually("the reader's end", LONG, async || {
        let pods = world.pods().await.len();
        if pods == 4 { Ok(()) } else { Err(format!("{pods} pods")) }
    })
    .await;
    assert_versions(&world, 4, "1").await;

    let (steps, pods) = (watch_steps(&world), watch_pods(&world));
    let traffic = Traffic::start(&world).await;
    let began = Timestamp::now();
    world.await_height_above(world.head().await + 10, Duration::from_mins(1)).await;
    world.apply(&world.yaml(&spec(2, AT_HEIGHT, 0)));
    world.await_converged(SWITCHED_WITHIN).await;
    println!("switched after {} s", Timestamp::now().duration_since(began).as_secs());
    assert_versions(&world, 4, "2").await;
    let head = world.head().await;
    world.await_height_above(head + 10, Duration::from_mins(1)).await;

    let acknowledged = traffic.end().await;
    let (steps, pods) = (steps.end().await, pods.end().await);
    let chain = verify(&world, &acknowledged).await;
    steps.check();
    // One step for all nodes, unless the machine was so slow that another block had to be chosen.
    assert!(steps.steps.values().all(|what| what.starts_with("switch all nodes")));
    for (node, uids) in &pods.uids {
        assert!(uids.len() > 2, "{node} is restarted to halt, and with the new version: {uids:?}");
    }
    let gaps = chain.gaps(began);
    print_gaps(&gaps, &pods.outages);
    let pause = gaps.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds)).unwrap();
    println!("the chain stood for {:.0} s before block {}", pause.seconds, pause.height);
    world.remove();
}
