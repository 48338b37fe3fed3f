//! A cluster whose API server is stopped: its nodes run on, nothing is moved or removed, and the others change as they
//! are told to.

use std::collections::BTreeSet;
use std::time::Duration;

use bsn_operator::api::conditions::{REACHABLE, READY, Reason};
use k8s_openapi::api::core::v1::Service;
use tokio::time::{Instant, sleep, sleep_until};

use super::faults::Headless;
use super::span::{
    CLUSTERS_REACHABLE, LONG, NOTICED_WITHIN, POWER, Span, Watch, assert_kept, await_rise, heights,
    is_thorough, spec,
};
use crate::audit::{Request, count};
use crate::chain::await_voters;
use crate::quiet::writes;
use crate::rpc::Client;
use crate::support::{eventually, hub};

const MINUTE: Duration = Duration::from_mins(1);
/// Blocks that come in a minute at the very least: there is one a second.
const BLOCKS_A_MINUTE: u64 = 20;
/// Time for statuses to settle, and in which nothing is written then.
const QUIET: Duration = Duration::from_secs(30);

/// How long the hub's API server is away: long enough to lose the lead, which is 15 s.
fn hub_away() -> Duration {
    Duration::from_secs(if is_thorough() { 300 } else { 40 })
}

/// How long a member's API server is away: longer than anybody who gives up waits.
fn away() -> Duration {
    Duration::from_mins(if is_thorough() { 2 } else { 1 })
}

/// Waits until the chain has so many voters, each with full power, as a node on the hub tells.
async fn await_votes(span: &Span, client: &Client, voters: usize) {
    let witness = span.node("home", 0);
    eventually(&format!("{voters} voters"), LONG, async || {
        let powers = client.voters(&witness, None).await;
        let full = powers.values().all(|power| *power == POWER);
        if full && powers.len() == voters { Ok(()) } else { Err(format!("{powers:?}")) }
    })
    .await;
}

/// Stops the API server of one member; meanwhile a node enters in the other.
async fn without_a_member(span: &Span, which: usize, replicas: [usize; 3], newcomer: &str) {
    let world = &span.world;
    let (member, other) = (&span.members[which], &span.members[1 - which]);
    let reached = span.since(other, REACHABLE).await;
    let (pods, prints) = (world.pod_uids().await, world.fingerprint().await);
    let there = span.inventory(&member.client).await;
    let client = Client::new(world).await;
    let (before, marks) = (heights(&client).await, span.marks());

    let stopped = Headless::stop(&world.lab, member.cluster);
    let until = Instant::now() + away();
    span.await_lost(member).await;
    let unreachable = Reason::ClusterUnreachable;
    span.await_cluster(member, REACHABLE, "False", unreachable, NOTICED_WITHIN).await;

    let edited = Instant::now();
    world.apply(&world.yaml(&spec(replicas, "1s")));
    await_votes(span, &client, replicas.iter().sum()).await;
    let seconds = edited.elapsed().as_secs();
    println!("{newcomer} votes after {seconds} s, while {} cannot be asked", member.name);
    sleep_until(until).await;
    let blocks = BLOCKS_A_MINUTE * away().as_secs() / 60;
    await_rise(&client, &before, blocks).await;
    println!("every node has risen by more than {blocks}: {:?}", heights(&client).await);

    stopped.start().await;
    assert_kept(&there, &span.inventory(&member.client).await);
    assert_kept(&pods, &world.pod_uids().await);
    assert_kept(&prints, &world.fingerprint().await);
    let deleted: BTreeSet<Request> = span
        .requests_to(member, &marks)
        .into_iter()
        .filter(|request| request.verb.starts_with("delete") && request.resource != "configmaps")
        .collect();
    assert!(deleted.is_empty(), "deleted in {}: {deleted:?}", member.name);
    world.await_condition(CLUSTERS_REACHABLE, "True", MINUTE).await;
    span.await_cluster(member, READY, "True", Reason::AsDescribed, MINUTE).await;
    world.await_converged(LONG).await;
    await_voters(world, replicas.iter().sum(), POWER).await;
    // What could not be written there is made up for.
    eventually(&format!("the name {newcomer} in {}", member.name), MINUTE, async || {
        let found = world.api_in::<Service>(&member.client).get(newcomer).await;
        found.map(drop).map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(span.since(other, REACHABLE).await, reached, "{} was disturbed", other.name);
}

/// Stops the API server of the hub: nobody decides anything, and the chain does not notice.
async fn without_the_hub(span: &Span) {
    let world = &span.world;
    let (pods, prints) = (world.pod_uids().await, world.fingerprint().await);
    let history = world.history();
    let client = Client::new(world).await;
    let before = heights(&client).await;
    // What the change before made due is done.
    sleep(QUIET).await;
    let marks = span.marks();

    let stopped = Headless::stop(&world.lab, hub());
    sleep(hub_away()).await;
    await_rise(&client, &before, BLOCKS_A_MINUTE * hub_away().as_secs() / 60).await;
    stopped.start().await;
    world.await_operator().await;
    world.leader().await;
    world.await_converged(LONG).await;
    world.await_condition(CLUSTERS_REACHABLE, "True", MINUTE).await;
    world.await_height_above(world.head().await + 5, MINUTE).await;
    for member in &span.members {
        span.await_cluster(member, READY, "True", Reason::AsDescribed, MINUTE).await;
    }
    sleep(QUIET).await;
    println!("requests around the outage: {:?}", count(&span.requests_since(&marks)));
    for member in &span.members {
        let requests = span.requests_to(member, &marks);
        assert_eq!(writes(&requests), Vec::<&Request>::new(), "written in {}", member.name);
    }
    // On the hub it may say what it saw, and nothing else.
    let said = |request: &&Request| {
        request.resource.ends_with("/status") || request.resource.starts_with("events")
    };
    let requests = world.requests_since(marks[&hub()]);
    let others: Vec<_> = writes(&requests).into_iter().filter(|one| !said(one)).collect();
    assert_eq!(others, Vec::<&Request>::new(), "nothing was due");

    let mark = world.mark();
    sleep(QUIET).await;
    let requests = world.requests_since(mark);
    assert_eq!(writes(&requests), Vec::<&Request>::new(), "written while all is well");
    assert_eq!(world.history(), history, "a step without a reason");
    assert_eq!((world.pod_uids().await, world.fingerprint().await), (pods, prints));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_api_server_stopped_in_turn() {
    let span = Span::start("headless", [2, 1, 1]).await;
    let world = &span.world;
    let watch = Watch::start(world).await;

    without_a_member(&span, 0, [2, 1, 2], &span.node("b", 1)).await;
    without_a_member(&span, 1, [2, 2, 2], &span.node("a", 1)).await;
    without_the_hub(&span).await;

    watch.end(&[]).await;
    span.remove().await;
}
