//! Validators come and go, and their powers change, while a user's transactions flow.

use std::time::Duration;

use bsn_core::steps::Outcome;
use jiff::Timestamp;

use crate::chain::{await_voters, print_gaps, verify};
use crate::client::Traffic;
use crate::metrics::Histogram;
use crate::plugin::check_plan;
use crate::rpc::Client;
use crate::sampler::{watch_pods, watch_steps};
use crate::support::World;

/// Longest for one edit: up to three nodes are made, catch up, enter and are raised, one after the other.
const CONVERGES_WITHIN: Duration = Duration::from_mins(10);
/// From the block that proves a change to the end of its step.
const REACTION: &str = "bsn_step_reaction_seconds";

const SPEC: &str = r"
chainId: changes-1
engine:
  cometbft:
    version: 0.38.25
    timeoutCommit: 500ms
    app:
      persistentKvstore: {}
membership:
  catchUp: {stableSeconds: 5}
nodeSets:
  - name: a
    role: Validator
    replicas: REPLICAS
    votingPower: POWER
    storage: {size: 1Gi}
";

fn spec(replicas: usize, power: u64) -> String {
    let spec = SPEC.trim_start().replace("REPLICAS", &replicas.to_string());
    spec.replace("POWER", &power.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn validators_come_and_go_while_transactions_flow() {
    let world = World::new("changes").await;
    world.apply(&world.yaml(&spec(1, 1000)));
    world.await_converged(CONVERGES_WITHIN).await;
    await_voters(&world, 1, 1000).await;
    let (steps, pods) = (watch_steps(&world), watch_pods(&world));
    let traffic = Traffic::start(&world).await;
    let began = Timestamp::now();
    let reactions = Histogram::parse(&world.metrics().await, REACTION);

    for (replicas, power) in [(4, 1000), (7, 1000), (4, 1000), (5, 1000), (4, 1000), (4, 500)] {
        let new = world.yaml(&spec(replicas, power));
        let (planned, before) = (world.planned(&new), world.history().len());
        let (edited, sent) = (Timestamp::now(), traffic.count());
        world.apply(&new);
        world.await_converged(CONVERGES_WITHIN).await;
        await_voters(&world, replicas, power).await;
        let seconds = Timestamp::now().duration_since(edited).as_secs();
        let sent = traffic.count() - sent;
        println!("{replicas} voters with power {power} after {seconds} s, {sent} transactions");
        assert!(sent > 0, "no transaction was taken while the voters changed");
        let taken: Vec<String> = world.history().drain(before..).map(|step| step.what).collect();
        check_plan(&planned, &taken);
    }

    // Of all networks: changes of others that run beside this one are among them, if there are any.
    let reactions = Histogram::parse(&world.metrics().await, REACTION).since(&reactions);
    println!(
        "{} changes ended, 95 % of them within {} s of their proof",
        reactions.count(),
        reactions.within(95)
    );
    let history = world.history();
    let changes = history.iter().filter(|step| step.height.is_some()).count();
    assert!(changes > 0 && history.iter().all(|step| step.outcome == Outcome::Done), "{history:?}");
    assert!(reactions.count() >= u64::try_from(changes).unwrap(), "{changes}: {reactions:?}");

    let acknowledged = traffic.end().await;
    let (steps, pods) = (steps.end().await, pods.end().await);
    let chain = verify(&world, &acknowledged).await;
    steps.check();
    chain.check_voters(&Client::new(&world).await).await;
    // Nobody restarts because others come and go: each node had one pod for as long as it was there.
    for (node, uids) in &pods.uids {
        assert_eq!(uids.len(), 1, "{node} was restarted");
    }
    print_gaps(&chain.gaps(began), &pods.outages);
    world.remove();
}
