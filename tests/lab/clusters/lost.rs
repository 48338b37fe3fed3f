//! A cluster that is lost for good: its voters are replaced one by one by nodes elsewhere, once a person has said that
//! it is lost.

use std::time::{Duration, Instant};

use bsn_operator::api::BsnNode;
use bsn_operator::api::conditions::{CHAIN_LIVE, Reason};
use bsn_operator::labels::{FORGET_CLUSTER, NODE};
use kube::ResourceExt;
use tokio::time::sleep;

use super::faults::Dark;
use super::span::{LONG, NOTICED_WITHIN, POWER, Span, await_rise, heights, spec};
use crate::chain::await_voters;
use crate::rpc::Client;
use crate::sampler::watch_steps;
use crate::support::eventually;

const MINUTE: Duration = Duration::from_mins(1);
/// Some time in which a hasty operator would do something all the same.
const WHILE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_lost_for_good() {
    let span = Span::start("lost", [3, 2, 2]).await;
    let world = &span.world;
    let lost = &span.members[1];
    let steps = watch_steps(world);

    let mut witness = Client::new(world).await;
    let gone = [span.node("b", 0), span.node("b", 1)];
    witness.nodes.retain(|node, _| !gone.contains(node));
    let dark = Dark::of(&world.lab, lost.cluster);
    span.await_unreachable(lost, NOTICED_WITHIN).await;
    // Nothing is done because of that alone, and five of seven go on.
    let before = heights(&witness).await;
    await_rise(&witness, &before, 10).await;

    // What docs/clusters.md says to do.
    let forget = format!("{FORGET_CLUSTER}={}", lost.name);
    let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
    world.kubectl_ok(&["annotate", "bsnnetwork", network, "-n", namespace, &forget]);
    world.apply(&world.yaml(&spec([3, 3, 0], "1s")));
    world.await_converged(LONG).await;
    // By a node that answers: the lost ones cannot even be listed.
    let home = span.node("home", 0);
    let voters = witness.voters(&home, None).await.into_values().collect::<Vec<_>>();
    assert_eq!(voters, [POWER; 6]);
    eventually("the descriptions of what is lost are gone", MINUTE, async || {
        let nodes = world.nodes().await;
        let there = |node: &BsnNode| node.spec.cluster.as_deref() == Some(lost.name);
        let left: Vec<String> =
            nodes.iter().filter(|node| there(node)).map(ResourceExt::name_any).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    steps.end().await.check();
    println!("{} was replaced: 3 voters on the hub, 3 in the other cluster", lost.name);

    // It comes back after all. Nobody looks after what is there, and what was said to be left behind is.
    dark.end().await;
    let left = span.inventory(&lost.client).await;
    println!("left behind: {left:?}");
    assert!(left.keys().any(|name| name.starts_with("StatefulSet ")), "{left:?}");
    // What the events say to do.
    for node in &gone {
        let of = format!("{NODE}={node}");
        let args = ["delete", "statefulset,service,configmap", "-n", namespace, "-l", &of];
        span.kubectl_in(lost, &args);
    }
    span.remove().await;
}

/// What docs/clusters.md says of a chain without a quorum: nothing changes it, and it goes on when enough is back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_has_no_quorum() {
    let span = Span::start("noquorum", [2, 2, 1]).await;
    let world = &span.world;
    let lost = &span.members[0];
    let (history, prints) = (world.history(), world.fingerprint().await);
    let mut witness = Client::new(world).await;
    let gone = [span.node("a", 0), span.node("a", 1)];
    witness.nodes.retain(|node, _| !gone.contains(node));

    let dark = Dark::of(&world.lab, lost.cluster);
    let said = world.await_condition(CHAIN_LIVE, "False", 2 * MINUTE).await;
    println!("{CHAIN_LIVE}: {said}");
    // Neither another description nor the annotation for what is lost for good is enough.
    let forget = format!("{FORGET_CLUSTER}={}", lost.name);
    let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
    world.kubectl_ok(&["annotate", "bsnnetwork", network, "-n", namespace, &forget]);
    world.apply(&world.yaml(&spec([2, 0, 1], "1s")));
    let words = ["quorum"];
    let said = world.await_refused(Reason::GateClosed, &words, MINUTE).await;
    println!("refused: {said}");
    let stands = heights(&witness).await;
    sleep(WHILE).await;
    assert_eq!(heights(&witness).await, stands, "a chain without a quorum makes no block");
    assert_eq!(world.history(), history, "a step that cannot be agreed on");

    // Back as it was: the same chain goes on from its height, and what is described now is done.
    let keep = format!("{FORGET_CLUSTER}-");
    world.kubectl_ok(&["annotate", "bsnnetwork", network, "-n", namespace, &keep]);
    dark.end().await;
    let back = Instant::now();
    await_rise(&witness, &stands, 5).await;
    println!("blocks again {} s after the API server was back", back.elapsed().as_secs());
    world.await_converged(LONG).await;
    await_voters(world, 3, POWER).await;
    for (name, print) in world.fingerprint().await {
        assert_eq!(prints.get(&name), Some(&print), "{name}");
    }
    span.remove().await;
}
