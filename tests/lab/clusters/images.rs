//! The agents' image in a member: nothing is made or changed where it cannot be run, and nobody else waits for that.

use std::time::Duration;

use bsn_core::membership::model::Gate;
use bsn_operator::api::conditions::{AGENT_IMAGE_AVAILABLE, Reason};
use bsn_operator::labels::{IMAGE_PROOF, NODE};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::ListParams;
use serde_json::json;

use super::span::{LONG, Member, POWER, Span, await_rise, heights, spec};
use crate::audit::count;
use crate::chain::await_voters;
use crate::quiet::writes;
use crate::rpc::Client;
use crate::support::eventually;

const MINUTE: Duration = Duration::from_mins(1);
/// Nobody has such an image, and no registry is there to be asked.
const NOWHERE: &str = "127.0.0.1:1/bsn-operator:none";
/// It is tried again every minute.
const TRIED_WITHIN: Duration = Duration::from_mins(3);
/// Some time in which a hasty operator would do something all the same.
const WHILE: Duration = Duration::from_secs(20);

/// Names the image of the agents in a member; `None` = the operator's own.
fn name_image(span: &Span, member: &Member, reference: Option<&str>) {
    let image = reference.map(|reference| json!({"reference": reference}));
    let patch = json!({"spec": {"image": image}}).to_string();
    span.world.kubectl_ok(&["patch", "bsncluster", member.name, "--type=merge", "-p", &patch]);
}

/// Waits until the member says that its image cannot be run.
async fn await_unavailable(span: &Span, member: &Member) {
    let reason = Reason::AgentImageUnavailable;
    let said = span.await_cluster(member, AGENT_IMAGE_AVAILABLE, "False", reason, MINUTE).await;
    assert!(said.contains(NOWHERE) && said.contains("spec.image.reference"), "{said}");
}

/// Nothing of the network's nodes is in a member: no key waits there for an image.
async fn assert_empty(span: &Span, member: &Member) {
    let ours = ListParams::default().labels(NODE);
    let sets = span.world.api_in::<StatefulSet>(&member.client).list(&ours).await.unwrap();
    let keys = span.world.api_in::<Secret>(&member.client).list(&ours).await.unwrap();
    let disks = span.world.api_in::<PersistentVolumeClaim>(&member.client).list(&ours).await;
    let counts = [sets.items.len(), keys.items.len(), disks.unwrap().items.len()];
    assert_eq!(counts, [0, 0, 0], "StatefulSets, Secrets and disks in {}", member.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_cluster_does_not_have() {
    let span = Span::new("images").await;
    let world = &span.world;
    let [one, other] = &span.members;

    // Before the first node there.
    name_image(&span, one, Some(NOWHERE));
    world.apply(&world.yaml(&spec([2, 1, 1], "1s")));
    await_unavailable(&span, one).await;
    tokio::time::sleep(WHILE).await;
    assert_empty(&span, one).await;
    name_image(&span, one, None);
    world.await_converged(LONG).await;
    world.await_height_above(5, MINUTE).await;
    // No registry was asked for it: the machines have it.
    for member in [one, other] {
        let reason = Reason::ImageProved;
        span.await_cluster(member, AGENT_IMAGE_AVAILABLE, "True", reason, MINUTE).await;
    }

    // While nodes run there: they run on, those elsewhere change, and theirs waits.
    let before = world.pod_uids().await;
    name_image(&span, one, Some(NOWHERE));
    world.apply(&world.yaml(&spec([2, 1, 1], "500ms")));
    let gate = Gate::AgentImageAvailable.to_string();
    world.await_refused(Reason::AgentImageUnavailable, &[&gate, NOWHERE], LONG).await;
    let now = world.pod_uids().await;
    let kept: Vec<&String> = before
        .iter()
        .filter(|(node, uid)| now.get(*node) == Some(uid))
        .map(|(node, _)| node)
        .collect();
    assert_eq!(kept, [&span.node("a", 0)], "restarts that need no other image have ended");
    let client = Client::new(world).await;
    let height = heights(&client).await;
    await_rise(&client, &height, 5).await;
    name_image(&span, one, None);
    world.await_converged(TRIED_WITHIN).await;
    await_voters(world, 4, POWER).await;

    eventually("the end of pods that tried an image", MINUTE, async || {
        let tried = ListParams::default().labels(IMAGE_PROOF);
        let pods = world.api_in::<Pod>(&one.client).list(&tried).await;
        let left = pods.map_err(|error| error.to_string())?.items.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;

    // What was proved need not be proved by a pod again: nodes run from it.
    let (marks, pods) = (span.marks(), world.pod_uids().await);
    world.scale_operator(0).await;
    world.scale_operator(2).await;
    world.leader().await;
    world.await_condition("Ready", "True", MINUTE).await;
    tokio::time::sleep(WHILE).await;
    for member in &span.members {
        let requests = span.requests_to(member, &marks);
        println!("to {} after a start: {:?}", member.name, count(&requests));
        assert!(
            writes(&requests).is_empty(),
            "written in {}: {:?}",
            member.name,
            writes(&requests)
        );
    }
    assert_eq!(world.pod_uids().await, pods);
    span.remove().await;
}
