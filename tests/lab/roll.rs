//! A new version of the engine reaches every node, one restart at a time, while a user's transactions flow.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::chain::{Chain, Gap, first_proposer, median, print_gaps, verify};
use crate::client::Traffic;
use crate::rpc::Client;
use crate::sampler::{Outage, PodsSeen, watch_pods, watch_steps};
use crate::support::World;

const OLD: &str = "0.38.19";
const NEW: &str = "0.38.25";
/// Longest for four restarts, each with the guard's questions and a look whether the node is back.
const ROLLED_WITHIN: Duration = Duration::from_mins(10);

/// One round without its proposer, in seconds: `timeout_propose` 3 s, `timeout_prevote` 1 s, `timeout_precommit`
/// 1 s, each longer by 0.5 s in the next round (`config/config.go`, `DefaultConsensusConfig`). Seen without
/// Kubernetes: 4.3 s.
const ROUND: f64 = 6.5;
/// What this machine may add to any block: its two processors serve the whole cluster.
const NOISE: f64 = 3.0;
/// A node that has come back is slow for a turn or two: blocks, peers and caches are cold.
const WARM: SignedDuration = SignedDuration::from_secs(15);
/// Gaps that nothing explains; a busy moment of the machine gives one or two.
const UNEXPLAINED: usize = 2;

fn spec(version: &str, timeout_commit: &str) -> String {
    let with = format!("version: {version}\n    timeoutCommit: {timeout_commit}");
    World::sample_spec().replace("version: 0.38.25", &with)
}

fn assert_version(world: &World, expected: &str) {
    let view = world.view().unwrap();
    assert_eq!(view.nodes.len(), 4);
    for node in &view.nodes {
        assert_eq!(node.version.as_deref(), Some(expected), "{node:?}");
    }
}

/// Each of so many nodes was restarted once, and none before the one before was ready again.
pub fn check_restarts(seen: &PodsSeen, nodes: usize) {
    assert_eq!(seen.uids.len(), nodes, "{:?}", seen.uids);
    for (node, uids) in &seen.uids {
        assert_eq!(uids.len(), 2, "{node} had not two pods");
    }
    assert_eq!(seen.most_down, 1, "not ready at once: {:?}", seen.outages);
    for pair in seen.outages.windows(2) {
        assert!(pair[0].to <= pair[1].from, "{} while {}", pair[1], pair[0]);
    }
}

/// Gaps longer than the median, by more than one round for a turn of a voter that was away.
async fn unexplained(world: &World, chain: &Chain, gaps: &[Gap], outages: &[Outage]) -> Vec<Gap> {
    let client = Client::new(world).await;
    let address = |node: &bsn_operator::api::BsnNode| node.status.as_ref()?.address.clone();
    let nodes = world.nodes().await;
    let addresses: BTreeMap<_, _> =
        nodes.iter().map(|node| (node.name_any(), address(node))).collect();
    let usual = median(gaps);
    let mut left = Vec::new();
    for gap in gaps.iter().filter(|gap| gap.seconds > usual + NOISE || gap.round > 0) {
        let proposer = first_proposer(&client, &chain.node, gap.height).await;
        let away = outages.iter().find(|outage| {
            let warm = Outage { to: outage.to + WARM, ..(*outage).clone() };
            addresses[&outage.node].as_ref() == Some(&proposer) && warm.touches(gap)
        });
        let allowed = usual + NOISE + if away.is_some() { ROUND } else { 0.0 };
        let why = away.map_or("nobody's", |outage| outage.node.as_str());
        println!(
            "block {}: {:.2} s, round {}, {why} turn while away; {allowed:.2} s are explained",
            gap.height, gap.seconds, gap.round
        );
        if gap.seconds > allowed {
            left.push(*gap);
        }
    }
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_rolled_while_transactions_flow() {
    let world = World::new("roll").await;
    world.apply(&world.yaml(&spec(OLD, "1s")));
    world.await_converged(ROLLED_WITHIN).await;
    assert_version(&world, OLD);
    let (steps, pods) = (watch_steps(&world), watch_pods(&world));
    let traffic = Traffic::start(&world).await;
    let began = Timestamp::now();
    // A while without a restart, to compare with.
    world.await_height_above(world.head().await + 20, Duration::from_mins(2)).await;

    world.apply(&world.yaml(&spec(NEW, "900ms")));
    world.await_converged(ROLLED_WITHIN).await;
    let seconds = Timestamp::now().duration_since(began).as_secs();
    println!("rolled {seconds} s after the transactions began");
    assert_version(&world, NEW);
    world.await_height_above(world.head().await + 10, Duration::from_mins(2)).await;

    let acknowledged = traffic.end().await;
    let (steps, pods) = (steps.end().await, pods.end().await);
    let chain = verify(&world, &acknowledged).await;
    steps.check();
    check_restarts(&pods, 4);
    let gaps = chain.gaps(began);
    print_gaps(&gaps, &pods.outages);
    let left = unexplained(&world, &chain, &gaps, &pods.outages).await;
    assert!(left.len() <= UNEXPLAINED, "{left:?}");
    world.remove();
}
