//! A small network whose steps wait: for evidence that the operator cannot get, and for a newcomer that does not catch
//! up. Each time nothing is done, the user is told for what it waits, and when that is there, it goes on by itself. In
//! the end a voter is replaced because its object was deleted.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::membership::model::Gate;
use bsn_core::steps::PastStep;
use bsn_operator::api::conditions::{CHAIN_LIVE, Reason};
use bsn_testkit::lab::pod_cut::cut_pod;
use bsn_testkit::proxy::{Action, Rule, before_gateway};

use crate::plugin::Explained;
use crate::proxy::gateway_tls;
use crate::rpc::Client;
use crate::support::{World, eventually, find_process, hub, names};

const MINUTE: Duration = Duration::from_mins(1);
/// Longest for a node to be made, to catch up, to enter and to be raised, on a busy machine.
const LONG: Duration = Duration::from_mins(5);
const P2P: u16 = 26656;
/// For so long a newcomer has to keep up: time enough to cut it off before.
const STABLE: u64 = 15;
/// For so long a refusal must stand: a hasty operator would do something meanwhile.
const STANDS: u64 = STABLE + 15;

fn spec(replicas: usize, power: u64) -> String {
    format!(
        r"
chainId: waits-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {{}}
membership:
  catchUp: {{stableSeconds: {STABLE}}}
nodeSets:
  - name: a
    role: Validator
    replicas: {replicas}
    votingPower: {power}
    storage: {{size: 1Gi}}
"
    )
    .trim_start()
    .to_owned()
}

/// Powers of the voters as this node has them, whatever the operator sees.
async fn powers(world: &World, witness: &str) -> Vec<u64> {
    Client::new(world).await.voters(witness, None).await.into_values().collect()
}

/// The operator cannot ask the only node: it knows nothing of the chain, and changes nothing.
async fn waits_for_evidence(world: &World, voter: &str) {
    let tls = gateway_tls(world, voter).await;
    let front = before_gateway(&world.lab, hub(), &world.namespace, voter, tls).await.unwrap();
    let steps = world.history();
    front.proxy().rule(Rule::new("no evidence", Action::Cut));
    // What was known before the cut is too old to decide anything on.
    world.await_condition(CHAIN_LIVE, "Unknown", MINUTE).await;
    world.apply(&world.yaml(&spec(1, 500)));
    let said = world.await_refused(Reason::GateClosed, &["evidence_is_fresh"], MINUTE).await;
    println!("{said}");
    let expected = Explained {
        gate: Gate::EvidenceIsFresh,
        seconds: STANDS,
        words: &["before: give waits-a-0 power 500."],
        helps: "the nodes' gateways have to answer",
    };
    world.await_explained(expected, 2 * MINUTE).await;
    assert_eq!(powers(world, voter).await, [1000], "changed in spite of: {said}");
    assert_eq!(world.history(), steps, "a step in spite of: {said}");

    front.proxy().clear_rules();
    world.await_converged(LONG).await;
    assert_eq!(powers(world, voter).await, [500]);
    front.stop().await.unwrap();
}

/// A newcomer that gets no block does not vote.
async fn waits_for_a_newcomer(world: &World, voter: &str, newcomer: &str) {
    world.apply(&world.yaml(&spec(2, 500)));
    let pod = format!("{newcomer}-0");
    let engine = eventually("the newcomer's engine", 2 * MINUTE, async || {
        find_process(&pod, "cometbft").ok_or_else(|| "it does not run".to_owned())
    })
    .await;
    let cut = cut_pod(engine, P2P).unwrap();
    let expected = ["caught_up", newcomer];
    let said = world.await_refused(Reason::GateClosed, &expected, 2 * MINUTE).await;
    println!("{said}");
    let expected = Explained {
        gate: Gate::CaughtUp,
        seconds: STANDS,
        words: &["before: add waits-a-1 as a voter with power 5."],
        helps: "it opens by itself when the node keeps up",
    };
    world.await_explained(expected, 2 * MINUTE).await;
    // It is the cut that it waits for: without it the newcomer would have kept up by now.
    let view = world.view().unwrap();
    let seen = view.nodes.iter().find(|node| node.name == newcomer).unwrap();
    assert!(seen.lag.is_none_or(|lag| lag > 5) && !seen.in_sync, "{seen:?}");
    assert_eq!(powers(world, voter).await, [500], "changed in spite of: {said}");

    cut.heal().unwrap();
    world.await_converged(LONG).await;
    assert_eq!(powers(world, voter).await, [500, 500]);
}

/// A voter whose object is deleted goes only when another has its full power.
async fn replaces(world: &World, old: &str, other: &str, new: &str) {
    let before = world.history().len();
    let old_pod = world.pod_uids().await.remove(old);
    world.kubectl_ok(&["delete", "bsnnode", old, "-n", &world.namespace, "--wait=false"]);
    eventually("the old node's end", LONG, async || {
        let pods = world.pod_uids().await;
        // As long as it is there, it is not even restarted.
        assert!(pods.get(old).is_none_or(|pod| Some(pod) == old_pod.as_ref()), "{pods:?}");
        let nodes = names(&world.nodes().await);
        if nodes.contains(old) { Err(format!("{nodes:?}")) } else { Ok(nodes) }
    })
    .await;
    world.await_converged(LONG).await;
    assert_eq!(names(&world.nodes().await), [other, new].map(str::to_owned).into());
    let steps = world.history().split_off(before);
    let words: Vec<&str> = steps.iter().map(|step| step.what.as_str()).collect();
    assert_eq!(
        words,
        [
            "mark waits-a-0 as to be replaced",
            "provision waits-a-2",
            "add waits-a-2 as a voter with power 5",
            "give waits-a-2 power 500",
            "remove voter waits-a-0",
            "retire waits-a-0",
        ]
    );
    // The chain says the same: up to the removal all three voted, with full power.
    let client = Client::new(world).await;
    let removed = height_of(&steps[4]);
    let at = async |height| client.voters(other, Some(height)).await.into_values().collect();
    let (then, after): (Vec<u64>, Vec<u64>) = (at(removed - 1).await, at(removed).await);
    assert_eq!((then, after), (vec![500; 3], vec![500; 2]));
}

fn height_of(step: &PastStep) -> u64 {
    step.height.unwrap_or_else(|| panic!("no height: {step:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_wait_for_what_is_missing_and_a_deleted_node_is_replaced() {
    let world = World::new("waits").await;
    let [first, second, third] = ["waits-a-0", "waits-a-1", "waits-a-2"];
    world.apply(&world.yaml(&spec(1, 1000)));
    world.await_converged(LONG).await;
    waits_for_evidence(&world, first).await;
    waits_for_a_newcomer(&world, first, second).await;
    let keys = world.fingerprint().await;
    let head = world.head().await;
    replaces(&world, first, second, third).await;
    world.await_height_above(head + 10, MINUTE).await;
    // The keys of the node that is gone are kept, and nobody else's were touched.
    let now = world.fingerprint().await;
    let kept: BTreeMap<_, _> =
        now.into_iter().filter(|(name, _)| keys.contains_key(name)).collect();
    assert_eq!(kept, keys);
    world.remove();
}
