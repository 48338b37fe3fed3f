//! A cluster whose API server is half a second away: the others change as quickly as before.

use std::time::{Duration, Instant};

use bsn_testkit::lab::layout;
use bsn_testkit::proxy::{Action, Rule, before_api_server};

use super::span::{CLUSTERS_REACHABLE, LONG, POWER, Span, spec};
use crate::chain::await_voters;

const MINUTE: Duration = Duration::from_mins(1);
/// On the way of every call to the slow cluster.
const LATENCY: Duration = Duration::from_millis(500);
/// How many times as long a change elsewhere may take: no two take the same time on a busy machine, and its steps wait for
/// no call to the slow cluster.
const RATIO: f64 = 1.5;

/// Describes other numbers of nodes; gives how long it took until all was so.
async fn change(span: &Span, replicas: [usize; 3]) -> Duration {
    let began = Instant::now();
    span.world.apply(&span.world.yaml(&spec(replicas, "1s")));
    span.world.await_converged(LONG).await;
    await_voters(&span.world, replicas.iter().sum(), POWER).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_cluster_does_not_slow_the_others() {
    let span = Span::start("slow", [2, 1, 1]).await;
    let world = &span.world;
    let [slow, _] = &span.members;
    let quick = change(&span, [2, 1, 2]).await;
    change(&span, [2, 1, 1]).await;

    let front = before_api_server(&world.lab, slow.cluster).await.unwrap();
    front.proxy().rule(Rule::new("far away", Action::Delay(LATENCY)));
    let server = format!("https://{}", front.proxy().address());
    span.join(slow, &["--server", &server]);
    span.await_server(slow, &server).await;
    world.await_condition(CLUSTERS_REACHABLE, "True", MINUTE).await;

    let mark = front.proxy().mark();
    let slowed = change(&span, [2, 1, 2]).await;
    let calls = front.proxy().calls_since(mark).len();
    let ratio = slowed.as_secs_f64() / quick.as_secs_f64();
    println!(
        "a node enters in city-b after {:.1} s, and after {:.1} s while city-a is slow ({calls} calls): {ratio:.2} times as \
         long",
        quick.as_secs_f64(),
        slowed.as_secs_f64(),
    );
    // The slow one changes, too.
    let there = change(&span, [2, 2, 2]).await;
    println!("a node enters in the slow cluster after {:.1} s", there.as_secs_f64());
    assert!(ratio < RATIO, "a slow cluster slows the others: {ratio:.2}");

    span.join(slow, &[]);
    span.await_server(slow, &layout::api_url(slow.cluster)).await;
    front.proxy().stop().await.unwrap();
    world.await_converged(LONG).await;
    span.remove().await;
}
