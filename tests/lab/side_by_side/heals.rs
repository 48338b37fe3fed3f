//! A bad description takes two of four voters, so that the chain stands still; with the description taken back it heals
//! by itself: the cure of a stalled chain waits for no quorum.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bsn_operator::api::conditions::{CHAIN_LIVE, MEMBERSHIP_CONVERGED};
use bsn_operator::build::stateful_set::template_hash_of;
use bsn_testkit::lab::process::ProcessId;
use kube::ResourceExt;

use crate::support::{World, eventually, find_process};

const MINUTE: Duration = Duration::from_mins(1);

fn spec(memory: &str) -> String {
    format!(
        r"
chainId: heals-1
engine:
  cometbft:
    version: 0.38.25
    timeoutCommit: 1s
    app:
      persistentKvstore: {{}}
nodeSets:
  - name: voter
    role: Validator
    replicas: 4
    storage: {{size: 1Gi}}
    resources: {{requests: {{cpu: 50m, memory: {memory}}}}}
"
    )
    .trim_start()
    .to_owned()
}

/// The template each node's pod was made from.
async fn templates(world: &World) -> BTreeMap<String, String> {
    let pods = world.pods().await;
    let of = |pod: &k8s_openapi::api::core::v1::Pod| {
        Some((pod.name_any(), template_hash_of(pod.metadata.annotations.as_ref())?))
    };
    pods.iter().filter_map(of).collect()
}

/// Kills, again and again, the engines of pods that were made from another template than before, as the kernel does
/// with those that need more memory than they were given.
async fn kill_changed(world: &World, before: &BTreeMap<String, String>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for (pod, template) in templates(world).await {
            if before.get(&pod) != Some(&template)
                && let Some(process) = find_process(&pod, "cometbft")
            {
                // It may have ended by itself meanwhile.
                let _ = ProcessId::kill9(process);
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_four_broken_by_a_description_come_back_when_it_is_taken_back() {
    let world = Arc::new(World::new("heals").await);
    world.apply(&world.yaml(&spec("64Mi")));
    world.await_ready().await;
    let before = templates(&world).await;

    // It works after its restart, so the next one follows; only then the first ones begin to die.
    world.apply(&world.yaml(&spec("65Mi")));
    let changed = async || {
        let now = templates(&world).await;
        now.iter().filter(|(pod, hash)| before.get(*pod) != Some(*hash)).count()
    };
    eventually("two restarted", 4 * MINUTE, async || match changed().await {
        2.. => Ok(()),
        n => Err(format!("{n}")),
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let killer = {
        let (world, before, stop) = (world.clone(), before.clone(), stop.clone());
        tokio::spawn(async move { kill_changed(&world, &before, &stop).await })
    };
    world.await_condition(CHAIN_LIVE, "False", 2 * MINUTE).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let broken = changed().await;
    println!("{broken} of 4 run the bad description, and the chain stands still");
    assert_eq!(broken, 2, "the roll goes on although voters are down");

    // Nodes on the old template are not killed, so the reverted ones live.
    world.apply(&world.yaml(&spec("64Mi")));
    world.await_condition(MEMBERSHIP_CONVERGED, "True", 6 * MINUTE).await;
    world.await_ready().await;
    stop.store(true, Ordering::Relaxed);
    killer.await.unwrap();
    assert_eq!(templates(&world).await, before, "back on what it was");
    let head = world.head().await;
    world.await_height_above(head + 3, MINUTE).await;
    world.remove();
}
