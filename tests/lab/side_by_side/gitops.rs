//! A network is applied, waited for and compared as a GitOps tool does it.

use std::time::Duration;

use bsn_operator::api::BsnNetwork;
use bsn_operator::api::conditions::{MEMBERSHIP_CONVERGED, READY, RECONCILING, STALLED, find};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::support::{READY_WITHIN, World, eventually};

const SAMPLE: &str = include_str!("../../../manifests/samples/gitops/ledger/network.yaml");
const MANAGER: &str = "--field-manager=gitops";
/// Longest for one more voter: it is made, catches up, enters and is raised.
const GROWS_WITHIN: Duration = Duration::from_mins(5);

/// The sample in this story's namespace, small: so many voters in the second of its cities, one in the other.
fn file(world: &World, voters: u32) -> String {
    let text = SAMPLE
        .replace("name: ledger\n", &format!("name: {}\n", world.namespace))
        .replace("namespace: ledger\n", &format!("namespace: {}\n", world.namespace))
        .replace("name: city-ledger\n", &format!("name: {}\n", world.network));
    let (first, second) = text.split_once("- name: nanjing\n").unwrap();
    let first = first.replace("replicas: 2\n", "replicas: 1\n");
    let second = second.replace("replicas: 2\n", &format!("replicas: {voters}\n"));
    format!("{first}- name: nanjing\n{second}")
}

fn sync(world: &World, file: &str) {
    let output = world.kubectl(&["apply", "--server-side", MANAGER, "-f", "-"], file);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What `kubectl diff` finds, as the server and as a client compares; nothing = no difference.
fn differences(world: &World, file: &str) -> Vec<String> {
    let mut found = Vec::new();
    for how in [&["diff", "--server-side", MANAGER, "-f", "-"][..], &["diff", "-f", "-"]] {
        let output = world.kubectl(how, file);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(0) if text.is_empty() => {}
            // kubectl ends with 1 for a difference, with more when it fails.
            Some(1) if !text.is_empty() => found.push(text),
            _ => panic!("kubectl {how:?}: {output:?}"),
        }
    }
    found
}

fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|found| found.status == "True")
}

/// Whether kstatus says that the object is as described. `testkit/lab/go/gitops` asks the library itself.
fn is_current(network: &BsnNetwork) -> bool {
    let Some(status) = &network.status else { return true };
    status.observed_generation == network.metadata.generation
        && !is_true(&status.conditions, RECONCILING)
        && !is_true(&status.conditions, STALLED)
        && is_true(&status.conditions, READY)
}

/// Waits as the tools do, and looks at once whether they may be believed.
async fn await_current(world: &World, voters: usize, within: Duration) {
    let network = eventually("the tools say that it is done", within, async || {
        let network = world.get().await?;
        if is_current(&network) { Ok(network) } else { Err(format!("{:?}", network.status)) }
    })
    .await;
    let conditions = network.status.unwrap_or_default().conditions;
    let converged = find(&conditions, MEMBERSHIP_CONVERGED);
    assert!(is_true(&conditions, MEMBERSHIP_CONVERGED), "{converged:?}");
    let view = eventually("live numbers", Duration::from_secs(30), async || world.view()).await;
    assert_eq!(view.nodes.len(), voters, "{view:?}");
    for node in &view.nodes {
        assert!(node.in_sync && node.voting_power == Some(1000), "{node:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_git_says_is_waited_for_and_leaves_no_difference() {
    let world = World::new("gitops").await;
    let small = file(&world, 1);
    sync(&world, &small);
    let unseen = world.get().await.unwrap();
    assert!(!is_current(&unseen), "done before it was seen: {:?}", unseen.status);
    await_current(&world, 2, READY_WITHIN).await;
    assert_eq!(differences(&world, &small), Vec::<String>::new());

    let grown = file(&world, 2);
    assert_eq!(differences(&world, &grown).len(), 2, "an edit must be seen as one");
    sync(&world, &grown);
    let unseen = world.get().await.unwrap();
    assert!(!is_current(&unseen), "done before it was seen: {:?}", unseen.status);
    await_current(&world, 3, GROWS_WITHIN).await;
    assert_eq!(differences(&world, &grown), Vec::<String>::new());
    world.remove();
}
