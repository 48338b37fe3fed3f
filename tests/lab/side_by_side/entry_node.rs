//! A transaction that its entry node has and cannot pass on: nothing else is sent meanwhile, and when the node is
//! back, the change takes effect once.

use std::time::Duration;

use bsn_operator::api::conditions::MEMBERSHIP_CONVERGED;
use bsn_operator::intent::STEPS_KEY;
use bsn_testkit::lab::pod_cut::cut_pod;
use bsn_testkit::proxy::{Action, Rule, Side, before_gateway};
use serde_json::Value;

use crate::proxy::gateway_tls;
use crate::support::{World, eventually, find_process, hub};

const MINUTE: Duration = Duration::from_mins(1);
const P2P: u16 = 26656;
/// For so long the entry node keeps the transaction to itself.
const CUT_FOR: Duration = Duration::from_secs(40);

fn spec(voters: u32) -> String {
    format!(
        r"
chainId: entry-node-1
engine:
  cometbft:
    version: 0.38.25
    timeoutCommit: 1s
    app:
      persistentKvstore: {{}}
nodeSets:
  - name: voter
    role: Validator
    replicas: {voters}
    storage: {{size: 1Gi}}
membership: {{catchUp: {{stableSeconds: 2}}}}
"
    )
    .trim_start()
    .to_owned()
}

async fn open_step(world: &World) -> Value {
    let record: Value =
        serde_json::from_str(&world.stored("anchor", STEPS_KEY).await).unwrap_or_default();
    record["open"]["main"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_its_entry_node_keeps_to_itself_is_waited_for_and_takes_effect_once() {
    let world = World::new("entry-node").await;
    world.apply(&world.yaml(&spec(4)));
    world.await_ready().await;
    // The first of the voters by name is given the transactions.
    let entry = "entry-node-voter-0";
    let tls = gateway_tls(&world, entry).await;
    let front = before_gateway(&world.lab, hub(), &world.namespace, entry, tls).await.unwrap();
    let proxy = front.proxy().clone();
    proxy.rule(Rule::new("transaction", Action::Hold(Side::BeforeForward)).writes().only(1));

    world.apply(&world.yaml(&spec(5)));
    proxy.await_held(3 * MINUTE).await.unwrap();
    let process = find_process(&format!("{entry}-0"), "cometbft").unwrap();
    let cut = cut_pod(process, P2P).unwrap();
    proxy.release();
    let step = open_step(&world).await;
    println!("{} is cut off with: {}", entry, step["step"]["what"]);

    // The chain goes on without it; the step stays, and no other begins.
    let head = world.head().await;
    let began = std::time::Instant::now();
    while began.elapsed() < CUT_FOR {
        let now = open_step(&world).await;
        assert_eq!(now["number"], step["number"], "another step was begun: {now}");
        assert_eq!(now["step"], step["step"]);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let view = world.view().unwrap();
    assert!(view.head > head + 10, "the chain went on from {head} to {} only", view.head);
    assert_eq!(view.total_power, 4000, "nobody was added behind its back");

    cut.heal().unwrap();
    world.await_condition(MEMBERSHIP_CONVERGED, "True", 4 * MINUTE).await;
    eventually("five voters", MINUTE, async || {
        let view = world.view()?;
        if view.total_power == 5000 { Ok(()) } else { Err(format!("{}", view.total_power)) }
    })
    .await;
    front.stop().await.unwrap();
    let head = world.head().await;
    world.await_height_above(head + 3, MINUTE).await;
    world.remove();
}
