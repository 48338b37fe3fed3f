//! The hub comes back from a backup that is older than the network: nothing is done until a person says that it may go
//! on from what the members know.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_operator::api::conditions::Reason;

use super::span::{LONG, POWER, Span, assert_kept, await_rise, heights, spec};
use crate::chain::await_voters;
use crate::rpc::Client;
use crate::support::{consent_in, hub};

/// Some time in which a hasty operator would do something all the same.
const WHILE: Duration = Duration::from_secs(30);

/// Describes other numbers of nodes, and waits until all is so.
async fn change(span: &Span, replicas: [usize; 3]) {
    span.world.apply(&span.world.yaml(&spec(replicas, "1s")));
    span.world.await_converged(LONG).await;
    await_voters(&span.world, replicas.iter().sum(), POWER).await;
}

/// Waits until every change is refused because the hub is older; gives the consent that goes on.
async fn await_older(span: &Span) -> String {
    let words = ["hub_state_not_older_than_anchor", "take-over/"];
    let said = span.world.await_refused(Reason::ConsentNeeded, &words, LONG).await;
    println!("{said}");
    consent_in(&said)
}

/// What runs in the members.
async fn members(span: &Span) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for member in &span.members {
        all.extend(span.inventory(&member.client).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_restored_from_a_backup() {
    let span = Span::start("restored", [2, 1, 1]).await;
    let world = &span.world;
    let backup = world.lab.back_up(hub()).await.unwrap();
    world.await_operator().await;
    // Neither the description nor the steps are in the backup.
    change(&span, [2, 2, 1]).await;
    change(&span, [2, 3, 1]).await;
    let (pods, prints) = (world.pod_uids().await, world.fingerprint().await);
    let (there, marks) = (members(&span).await, span.marks());
    let client = Client::new(world).await;
    let before = heights(&client).await;

    world.lab.restore(&backup).await.unwrap();
    world.await_operator().await;
    world.leader().await;
    await_older(&span).await;
    // The newest description is no consent.
    world.apply(&world.yaml(&spec([2, 3, 1], "1s")));
    let consent = await_older(&span).await;
    tokio::time::sleep(WHILE).await;
    assert_eq!(await_older(&span).await, consent);
    await_rise(&client, &before, WHILE.as_secs() / 3).await;
    let witness = span.node("home", 0);
    assert_eq!(client.voters(&witness, None).await.into_values().collect::<Vec<_>>(), [POWER; 6]);
    assert_kept(&there, &members(&span).await);

    world.consent(&consent);
    world.await_converged(LONG).await;
    await_voters(world, 6, POWER).await;
    assert_kept(&there, &members(&span).await);
    assert_kept(&pods, &world.pod_uids().await);
    assert_kept(&prints, &world.fingerprint().await);
    for member in &span.members {
        let requests = span.requests_to(member, &marks);
        let ended: Vec<_> = requests.iter().filter(|request| request.verb == "delete").collect();
        assert!(ended.iter().all(|request| request.resource == "configmaps"), "{ended:?}");
    }
    span.remove().await;
}
