//! The operator is killed around its writes while members of a living chain change: whatever it had done, the
//! next one ends in the same state, and the chain goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::steps::{HISTORY_KEY, Outcome as StepOutcome, PastStep};
use bsn_operator::api::conditions::{MEMBERSHIP_CONVERGED, READY};
use bsn_operator::intent::STEPS_KEY;
use bsn_testkit::proxy::{
    Action, Mark, Outcome, Proxy, Rule, Side, before_api_server, before_gateway,
};

use crate::proxy::{effects, gateway_tls, moments};
use crate::support::{World, eventually, hub, kill9};

/// At how many writes of each kind of change the operator is killed. `BSN_KILLS`: see `proxy`.
const KILLS: usize = 2;
const MINUTE: Duration = Duration::from_mins(1);
/// Longest a change may take, with a successor that waits for the Lease, on a busy machine.
const CHANGED_WITHIN: Duration = Duration::from_mins(4);
const STOP: &str = "stop";

/// A description: how many voters, and the pause after a block, whose change restarts them.
fn spec(voters: u32, pause: &str) -> String {
    format!(
        r"
chainId: killed-1
engine:
  cometbft:
    version: 0.38.25
    timeoutCommit: {pause}
    app:
      persistentKvstore: {{}}
nodeSets:
  - name: voter
    role: Validator
    replicas: {voters}
    storage: {{size: 1Gi}}
membership: {{catchUp: {{stableSeconds: 1}}}}
disruption: {{allowDowntime: true}}
"
    )
    .trim_start()
    .to_owned()
}

/// Waits until the description is reached, and checks what must then be so.
async fn await_end(world: &World, voters: u32) {
    world.await_condition(MEMBERSHIP_CONVERGED, "True", CHANGED_WITHIN).await;
    world.await_condition(READY, "True", MINUTE).await;
    let record: serde_json::Value =
        serde_json::from_str(&world.stored("anchor", STEPS_KEY).await).unwrap();
    assert_eq!(record["open"], serde_json::json!({}), "a step is under way in the end");
    let powers: BTreeMap<String, Option<u64>> = eventually("all powers", MINUTE, async || {
        let view = world.view()?;
        let powers = view.nodes.iter().map(|node| (node.name.clone(), node.voting_power));
        let powers: BTreeMap<_, _> = powers.collect();
        let right = powers.len() == voters as usize
            && powers.values().all(|power| *power == Some(1000))
            && view.total_power == 1000 * u64::from(voters);
        if right { Ok(powers) } else { Err(format!("{powers:?}, {} in all", view.total_power)) }
    })
    .await;
    let head = world.head().await;
    world.await_height_above(head + 2, MINUTE).await;
    println!("  ended with {powers:?}");
}

/// Describes something else, and kills the operator at its k-th write.
async fn change_and_kill(world: &World, proxy: &Proxy, spec: &str, k: u64, side: Side) {
    let leader = world.leader().await;
    proxy.rule(effects(world, STOP, Action::Hold(side)).only(k));
    world.apply(&world.yaml(spec));
    match proxy.await_held(CHANGED_WITHIN).await {
        Ok(call) => {
            println!("killed {side:?} of write {k}: {} {}", call.method, call.path);
            kill9(&leader, "bsn-operator");
            proxy.cut();
            let ended = |seen: &bsn_testkit::proxy::Call| {
                seen.number == call.number
                    && !matches!(seen.outcome, Outcome::Held | Outcome::UnderWay)
            };
            proxy.await_call(Mark::default(), MINUTE, ended).await.unwrap();
        }
        Err(error) => println!("write {k} never came: {error}"),
    }
    proxy.clear_rules();
    // A new pod: the kubelet waits for minutes before it starts a program again that died several times.
    world.kubectl_ok(&["delete", "pod", &leader, "-n", "bsn-system", "--ignore-not-found"]);
}

/// What happens to the one transaction of a change on its way to the node.
const TROUBLES: [(&str, Action); 4] = [
    ("the operator dies before it is sent", Action::Hold(Side::BeforeForward)),
    ("the operator dies after it was sent", Action::Hold(Side::AfterAnswer)),
    ("its answer is lost", Action::AnswerLost),
    ("its connection is cut", Action::Cut),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_sender_or_answer_is_lost_takes_effect_once() {
    let world = World::new("killed-tx").await;
    world.apply(&world.yaml(&spec(1, "1s")));
    world.await_ready().await;
    let entry = "killed-tx-voter-0";
    let tls = gateway_tls(&world, entry).await;
    let front = before_gateway(&world.lab, hub(), &world.namespace, entry, tls).await.unwrap();
    let proxy = front.proxy().clone();
    for (round, (trouble, action)) in TROUBLES.into_iter().enumerate() {
        // To and fro: an add and its raise, then a removal. The trouble meets the first transaction.
        let voters = if round % 2 == 0 { 2 } else { 1 };
        println!("to {voters}: {trouble}");
        let leader = world.leader().await;
        proxy.rule(Rule::new(STOP, action).writes().only(1));
        world.apply(&world.yaml(&spec(voters, "1s")));
        if matches!(action, Action::Hold(_)) {
            proxy.await_held(CHANGED_WITHIN).await.unwrap();
            // The pod stays, and its program is started again: what a new pod sends would pass the proxy by.
            kill9(&leader, "bsn-operator");
            proxy.cut();
        }
        await_end(&world, voters).await;
        proxy.clear_rules();
    }
    front.stop().await.unwrap();
    let history: Vec<PastStep> =
        serde_json::from_str(&world.stored("history", HISTORY_KEY).await).unwrap();
    let changes = history.iter().filter(|step| step.height.is_some());
    let changes: Vec<&str> = changes.map(|step| step.what.as_str()).collect();
    // Two adds with their raises, and two removals; none twice.
    assert_eq!(changes.len(), 6, "{changes:?}");
    world.remove();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_killed_at_every_write_of_a_change_ends_in_the_same_state() {
    let world = World::new("killed").await;
    world.await_operator().await;
    let mut front = before_api_server(&world.lab, hub()).await.unwrap();
    front.divert_operator().await.unwrap();
    let proxy = front.proxy().clone();
    world.leader().await;
    world.apply(&world.yaml(&spec(1, "1s")));
    world.await_ready().await;

    // Undisturbed, to know how many writes there are.
    let changes = [("grow", 2, "1s"), ("restart", 2, "900ms"), ("shrink", 1, "900ms")];
    let mut writes = BTreeMap::new();
    for (name, voters, pause) in changes {
        proxy.rule(effects(&world, STOP, Action::Pass));
        world.apply(&world.yaml(&spec(voters, pause)));
        await_end(&world, voters).await;
        writes.insert(name, proxy.fitted(STOP).unwrap());
        proxy.clear_rules();
    }
    println!("writes: {writes:?}");
    assert!(writes.values().all(|count| *count >= 3), "not through the proxy: {writes:?}");

    let plans: BTreeMap<_, _> =
        writes.iter().map(|(name, count)| (*name, moments(*count, KILLS))).collect();
    let rounds = plans.values().map(Vec::len).max().unwrap_or(0);
    for round in 0..rounds {
        // Another pause in each round, so that there is something to restart for.
        let (before, after) = if round % 2 == 0 { ("900ms", "1s") } else { ("1s", "900ms") };
        for (name, voters, pause) in
            [("grow", 2, before), ("restart", 2, after), ("shrink", 1, after)]
        {
            let spec = spec(voters, pause);
            match plans[name].get(round) {
                Some((k, side)) => change_and_kill(&world, &proxy, &spec, *k, *side).await,
                None => world.apply(&world.yaml(&spec)),
            }
            await_end(&world, voters).await;
        }
    }
    let history: Vec<PastStep> =
        serde_json::from_str(&world.stored("history", HISTORY_KEY).await).unwrap();
    let numbers: Vec<u64> = history.iter().filter_map(|step| step.number).collect();
    assert!(numbers.is_sorted(), "steps ended out of order: {numbers:?}");
    for step in &history {
        assert_ne!(step.outcome, StepOutcome::NeverTookEffect, "{step:?}");
    }
    front.restore_operator().await.unwrap();
    world.await_operator().await;
    world.remove();
}
