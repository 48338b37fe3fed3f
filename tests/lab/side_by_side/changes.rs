//! Validators come and go, and their powers change, while a user's transactions flow.

use std::time::Duration;

use jiff::Timestamp;

use crate::chain::{print_gaps, verify};
use crate::client::Traffic;
use crate::rpc::Client;
use crate::sampler::{watch_pods, watch_steps};
use crate::support::{World, eventually};

/// Longest for one edit: up to three nodes are made, catch up, enter and are raised, one after the other.
const CONVERGES_WITHIN: Duration = Duration::from_mins(10);
const MINUTE: Duration = Duration::from_mins(1);

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

/// The chain has as many voters as described, each with that power, and there are no other nodes.
async fn await_voters(world: &World, replicas: usize, power: u64) {
    let client = Client::new(world).await;
    let expected = vec![power; replicas];
    eventually(&format!("{replicas} voters with power {power}"), MINUTE, async || {
        let view = world.view()?;
        let witness = view.nodes.iter().find(|node| node.in_sync && node.voting_power > Some(0));
        let witness = witness.ok_or_else(|| format!("{view:?}"))?;
        let voters = client.voters(&witness.name, None).await;
        let powers: Vec<u64> = voters.values().copied().collect();
        if powers == expected && view.nodes.len() == replicas {
            Ok(())
        } else {
            Err(format!("{voters:?}, {} nodes", view.nodes.len()))
        }
    })
    .await;
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

    for (replicas, power) in [(4, 1000), (7, 1000), (5, 1000), (4, 1000), (4, 500)] {
        let (edited, sent) = (Timestamp::now(), traffic.count());
        world.apply(&world.yaml(&spec(replicas, power)));
        world.await_converged(CONVERGES_WITHIN).await;
        await_voters(&world, replicas, power).await;
        let seconds = Timestamp::now().duration_since(edited).as_secs();
        let sent = traffic.count() - sent;
        println!("{replicas} voters with power {power} after {seconds} s, {sent} transactions");
        assert!(sent > 0, "no transaction was taken while the voters changed");
    }

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
