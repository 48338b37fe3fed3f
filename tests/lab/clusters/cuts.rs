//! Clusters that do not reach each other, at every stage of a change: nothing unsafe is done meanwhile, the chain goes
//! on, and after the cut all ends as it was described.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::intent::record::{Phase, Record};
use bsn_core::steps::{HISTORY_KEY, PastStep, RecordedStep};
use bsn_operator::api::BsnNode;
use bsn_operator::intent::STEPS_KEY;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use super::faults::Cut;
use super::span::{LONG, POWER, Span, Watch, await_rise, heights, is_thorough, spec};
use crate::audit::count;
use crate::chain::await_voters;
use crate::rpc::Client;
use crate::support::{eventually_every, hub, names};

/// How long a cut lasts at least: longer than the operator's evidence is fresh, which is ten seconds.
const CUT_FOR: Duration = Duration::from_secs(15);
/// Blocks in that time at the very least: there is one a second.
const BLOCKS: u64 = 5;
/// Shorter than any stage.
const LOOK: Duration = Duration::from_millis(100);

/// How far a change of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The node has its object.
    Provisioned,
    /// Its pod runs; it reads the chain and does not vote.
    Observing,
    /// The change is recorded.
    Begun,
    /// Its transaction may have left the operator.
    Sent,
    /// It was read back from the chain.
    Confirmed,
    /// Its pod has ended.
    Stopped,
}

/// The stages of an add: a cut at each.
const ADD: [Stage; 4] = [Stage::Provisioned, Stage::Observing, Stage::Sent, Stage::Confirmed];
/// The stages of a removal.
const REMOVE: [Stage; 4] = [Stage::Begun, Stage::Sent, Stage::Confirmed, Stage::Stopped];

/// Which clusters are cut from each other.
#[derive(Debug, Clone, Copy)]
enum Between {
    Members,
    HubAndMember,
}

/// A cut for each stage of an add and of a removal, by turns between the members, and between the hub and the member
/// with the node; both at each in a thorough run.
fn rounds() -> Vec<[(Between, Stage); 2]> {
    let turns = [Between::Members, Between::HubAndMember];
    let mut rounds = Vec::new();
    for (number, (add, remove)) in ADD.into_iter().zip(REMOVE).enumerate() {
        let (one, other) = (turns[number % 2], turns[(number + 1) % 2]);
        rounds.push([(one, add), (other, remove)]);
        if is_thorough() {
            rounds.push([(other, add), (one, remove)]);
        }
    }
    rounds
}

async fn reached(span: &Span, node: &str, change: &str, stage: Stage) -> Result<bool, String> {
    let world = &span.world;
    let failed = |error: kube::Error| error.to_string();
    let pods =
        async || world.api_in::<Pod>(&span.members[0].client).get_opt(&format!("{node}-0")).await;
    match stage {
        Stage::Provisioned => {
            let found = world.api::<BsnNode>().get_opt(node).await.map_err(failed)?;
            Ok(found.is_some())
        }
        Stage::Observing => {
            let pod = pods().await.map_err(failed)?;
            let phase = pod.and_then(|pod| pod.status?.phase);
            Ok(phase.as_deref() == Some("Running"))
        }
        Stage::Begun | Stage::Sent => {
            let open = open_phase(span, change).await?;
            let there = open.is_some_and(|phase| stage == Stage::Begun || phase == Phase::Sent);
            // It may have been too quick.
            Ok(there || is_past(span, change).await?)
        }
        Stage::Confirmed => is_past(span, change).await,
        Stage::Stopped => Ok(pods().await.map_err(failed)?.is_none()),
    }
}

/// How far the change is, while it is under way.
async fn open_phase(span: &Span, change: &str) -> Result<Option<Phase>, String> {
    let record: Option<Record<RecordedStep>> = stored(span, "anchor", STEPS_KEY).await?;
    let steps = record.iter().flat_map(|record| record.open.values());
    let mut steps = steps.filter(|intent| intent.step.what.starts_with(change));
    Ok(steps.next().map(|intent| intent.phase))
}

async fn is_past(span: &Span, change: &str) -> Result<bool, String> {
    let past: Option<Vec<PastStep>> = stored(span, "history", HISTORY_KEY).await?;
    let mut past = past.iter().flatten();
    Ok(past.any(|step| step.what.starts_with(change) && step.height.is_some()))
}

/// What one of the network's `ConfigMap`s holds; `None` = nothing yet.
async fn stored<T: DeserializeOwned>(
    span: &Span,
    suffix: &str,
    key: &str,
) -> Result<Option<T>, String> {
    let name = format!("{}-{suffix}", span.world.network);
    let map = span.world.api::<ConfigMap>().get_opt(&name).await;
    let data = map.map_err(|error| error.to_string())?.and_then(|map| map.data);
    match data.and_then(|mut data| data.remove(key)) {
        Some(text) => serde_json::from_str(&text).map_err(|error| format!("{error}: {text}")),
        None => Ok(None),
    }
}

/// Describes a change of this node, cuts two clusters when it is so far, and waits for its end after the cut.
async fn change_and_cut(
    span: &Span,
    replicas: [usize; 3],
    node: &str,
    change: &str,
    (between, stage): (Between, Stage),
) {
    let world = &span.world;
    let [a, b] = &span.members;
    let began = Instant::now();
    world.apply(&world.yaml(&spec(replicas, "1s")));
    eventually_every(LOOK, &format!("{change}: {stage:?}"), LONG, async || {
        let reached = reached(span, node, change, stage).await?;
        reached.then_some(()).ok_or_else(|| "it is not so far".to_owned())
    })
    .await;
    let other = match between {
        Between::Members => b.cluster,
        Between::HubAndMember => hub(),
    };
    let cut = Cut::between(&world.lab, a.cluster, other);
    let (until, after) = (Instant::now() + CUT_FOR, began.elapsed().as_secs_f64());
    let open = open_phase(span, change).await.unwrap();
    let past = is_past(span, change).await.unwrap();
    println!(
        "{change}: cut {between:?} at {stage:?}, after {after:.1} s; open: {open:?}, past: {past}"
    );

    // The others go on, and those on both sides of the cut by way of the third cluster.
    let client = without(Client::new(world).await, node);
    let before = heights(&client).await;
    sleep_until(until).await;
    await_rise(&client, &before, BLOCKS).await;

    drop(cut);
    let healed = Instant::now();
    world.await_converged(LONG).await;
    await_voters(world, replicas.iter().sum(), POWER).await;
    println!("  as described {:.0} s after the cut", healed.elapsed().as_secs_f64());
}

/// The node that comes or goes need not keep up.
fn without(mut client: Client, node: &str) -> Client {
    client.nodes.remove(node);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_at_every_stage_of_an_add_and_a_remove() {
    let span = Span::start("cuts", [2, 1, 1]).await;
    let world = &span.world;
    let (nodes, pods, marks) = (names(&world.nodes().await), world.pod_uids().await, span.marks());
    let keys = world.fingerprint().await;
    let watch = Watch::start(world).await;

    for (number, [add, remove]) in rounds().into_iter().enumerate() {
        let node = span.node("a", number + 1);
        change_and_cut(&span, [2, 2, 1], &node, &format!("add {node} "), add).await;
        change_and_cut(&span, [2, 1, 1], &node, &format!("remove voter {node}"), remove).await;
    }

    watch.end(&[]).await;
    // The same nodes as in the beginning, none restarted, with the same keys.
    assert_eq!(names(&world.nodes().await), nodes);
    assert_eq!(world.pod_uids().await, pods);
    let mut now = world.fingerprint().await;
    now.retain(|name, _| keys.contains_key(name));
    assert_eq!(now, keys);
    check_requests(&span, &marks);
    span.remove().await;
}

/// By the audit logs: no pod was ended, no disk deleted, and of Secrets only what lets a node start once.
fn check_requests(span: &Span, marks: &BTreeMap<usize, u64>) {
    let mut requests = span.requests_since(marks);
    requests.retain(|request| request.verb.starts_with("delete"));
    println!("deleted in all clusters: {:?}", count(&requests));
    requests.retain(|request| match request.resource.as_str() {
        "secrets" => !request.name.ends_with("-first-start"),
        "pods" | "persistentvolumeclaims" => true,
        _ => false,
    });
    assert!(requests.is_empty(), "{requests:?}");
}
