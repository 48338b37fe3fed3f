//! The hub comes back from a backup that is older than the network, or is built anew: nothing is done until a person
//! says that it may go on from what the members know.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_operator::api::BsnNode;
use bsn_operator::api::conditions::Reason;
use serde_json::Value;

use super::span::{LONG, POWER, Span, assert_kept, await_rise, heights, spec};
use crate::chain::await_voters;
use crate::rpc::Client;
use crate::support::{consent_in, eventually, hub};

const MINUTE: Duration = Duration::from_mins(1);
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

/// Secrets as their owners back them up: without what the old hub's API server said of them.
fn back_up(span: &Span, names: &[String]) -> String {
    let world = &span.world;
    let fixed = ["get", "secret", "-n", &world.namespace, "-o", "json"];
    let mut list: Value = {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        serde_json::from_str(&world.kubectl_ok(&[&fixed[..], &names].concat())).unwrap()
    };
    for secret in list["items"].as_array_mut().unwrap() {
        let meta = secret["metadata"].as_object_mut().unwrap();
        for key in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
            meta.remove(key);
        }
    }
    list.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_built_anew_from_manifests() {
    let span = Span::new("rebuilt").await;
    let world = &span.world;
    // The new hub has the operator with the old one's id, and the members have joined it; of the network it has nothing.
    let anew = world.lab.back_up(hub()).await.unwrap();
    world.await_operator().await;
    let described = spec([1, 2, 2], "1s");
    world.apply(&world.yaml(&described));
    world.await_converged(LONG).await;
    world.await_height_above(5, MINUTE).await;
    let lost = span.node("home", 0);
    let secrets = back_up(&span, &[format!("{}-ca", world.network), format!("{lost}-keys")]);
    let (there, prints) = (members(&span).await, world.fingerprint().await);
    let mut witness = Client::new(world).await;
    witness.nodes.retain(|node, _| *node != lost);

    world.lab.restore(&anew).await.unwrap();
    world.await_operator().await;
    world.leader().await;
    // Four of five go on while nobody describes the network.
    let before = heights(&witness).await;
    await_rise(&witness, &before, 10).await;
    assert_kept(&there, &members(&span).await);
    // The steps of docs/clusters.md, "The hub comes back".
    world.apply(&secrets);
    world.apply(&world.yaml(&described));
    let consent = await_older(&span).await;
    tokio::time::sleep(WHILE).await;
    assert_kept(&there, &members(&span).await);
    world.consent(&consent);
    let said = eventually("the node that ran on the hub has no disk", LONG, async || {
        let node = world.api::<BsnNode>().get(&lost).await.map_err(|error| error.to_string())?;
        let conditions = node.status.unwrap_or_default().conditions;
        let mut lost = conditions.iter().filter(|one| one.reason == Reason::DiskLost.as_str());
        lost.next().map(|one| one.message.clone()).ok_or_else(|| format!("{conditions:?}"))
    })
    .await;
    println!("{lost}: {said}");
    let replaced =
        described.replace("name: home\n", &format!("name: home\n    retire: [{lost}]\n"));
    assert_ne!(replaced, described);
    world.apply(&world.yaml(&replaced));
    world.await_converged(LONG).await;
    await_voters(world, 5, POWER).await;
    // Only its name goes with it.
    let mut there = there;
    there.retain(|name, _| *name != format!("Service {lost}"));
    assert_kept(&there, &members(&span).await);
    let now = world.fingerprint().await;
    for (name, print) in prints.iter().filter(|(name, _)| name.starts_with("member ")) {
        assert_eq!(now.get(name), Some(print), "{name}");
    }
    span.remove().await;
}
