//! Two owners, one chain: a network that others formed is joined by a second one, in another namespace, with what
//! `kubectl bsn bundle` prints. Both are run by the operator of the lab; of two hubs each would run the same code on
//! its own half. Neither half writes anything of the other's.

use std::time::Duration;

use bsn_operator::api::conditions::{READY, Reason, find};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::owner::{apply_in, await_voters, bundle, patch, try_patch};
use crate::support::{World, eventually};

const MINUTE: Duration = Duration::from_mins(1);
const LONG: Duration = Duration::from_mins(6);

const THEIRS: &str = r"
chainId: owners-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {}
nodeSets:
  - name: voter
    role: Validator
    replicas: 3
    storage: {size: 1Gi}
";

/// Waits until the API server refuses to delete this network, since others need it, or no more; nothing is deleted.
async fn await_needed(world: &World, needed: bool) -> String {
    let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
    eventually(&format!("{network} needed: {needed}"), MINUTE, async || {
        let output = world
            .kubectl(&["delete", "bsnnetwork", network, "-n", namespace, "--dry-run=server"], "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() == needed { Err(said) } else { Ok(said) }
    })
    .await
}

/// Waits until the network is not ready for this reason, in a message with these words.
async fn await_not_ready(world: &World, reason: Reason, words: &str) {
    eventually(&format!("{reason}: {words}"), MINUTE, async || {
        let conditions = world.get().await?.status.unwrap_or_default().conditions;
        let ready = find(&conditions, READY).ok_or("no such condition")?;
        let fits = ready.reason == reason.as_str() && ready.message.contains(words);
        if fits { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
}

fn with_voters(replicas: u32) -> Value {
    json!({"nodeSets": [
        {"name": "reader", "role": "FullNode", "replicas": 1},
        {"name": "own", "role": "Validator", "replicas": replicas},
    ]})
}

fn steps(world: &World) -> Vec<String> {
    world.history().into_iter().map(|step| step.what).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_owners_run_one_chain_and_neither_touches_the_others_objects() {
    let theirs = World::new("owners-a").await;
    let ours = World::new("owners-b").await;
    theirs.apply(&theirs.yaml(THEIRS.trim_start()));
    theirs.await_converged(LONG).await;
    let mark = theirs.mark();
    let before = (theirs.fingerprint().await, theirs.pod_uids().await, steps(&theirs));

    let bundle = bundle(&theirs, &ours.network);
    let (genesis, network) = (&bundle["ConfigMap"], &bundle["BsnNetwork"]);

    // Each wrong thing is a refusal that says what to do, and nothing is half made: correcting it is enough.
    let mut wrong = network.clone();
    let peers = network["spec"]["externalPeers"].clone();
    for peer in wrong["spec"]["externalPeers"].as_array_mut().unwrap() {
        peer["host"] = json!("owners-a-voter-0.nowhere.svc");
    }
    apply_in(&ours, &wrong);
    await_not_ready(&ours, Reason::GenesisMissing, "owners-b-bundle").await;
    let mut other = genesis.clone();
    other["data"]["genesis.json"] = json!("{}");
    apply_in(&ours, &other);
    await_not_ready(&ours, Reason::GenesisRefused, "byte for byte").await;
    apply_in(&ours, genesis);
    let node = "owners-b-reader-0";
    ours.await_guard(node, "no peer accepts connections", 3 * MINUTE).await;
    let waiting = ours.pod_uids().await;
    patch(&ours, &json!({"externalPeers": peers, "membership": {"catchUp": {"stableSeconds": 5}}}));
    ours.await_converged(LONG).await;
    assert_eq!(
        ours.pod_uids().await,
        waiting,
        "the corrected list was read by the pod that waited"
    );

    // A full node follows, and all voters are others'.
    await_voters(&ours, 3, 3, 1000).await;
    let hash = |network: bsn_operator::api::BsnNetwork| network.status.unwrap().genesis_hash;
    assert_eq!(hash(ours.get().await.unwrap()), hash(theirs.get().await.unwrap()));
    assert!(ours.view().unwrap().head.abs_diff(theirs.view().unwrap().head) < 20);
    // The genesis was taken over: what it came from may go, and may not be exchanged.
    let map = "owners-b-bundle";
    ours.kubectl_ok(&["delete", "configmap", map, "-n", &ours.namespace]);
    let other = json!({"genesis": {"from": {"sha256": "00".repeat(32)}}});
    let error = try_patch(&ours, &other).unwrap_err();
    assert!(error.contains("immutable once the genesis was taken over"), "{error}");
    let error = try_patch(&ours, &json!({"externalPeers": null})).unwrap_err();
    assert!(error.contains("needs externalPeers"), "{error}");

    // A validator of ours catches up and is added, by our operator's transactions.
    patch(&ours, &with_voters(1));
    ours.await_converged(LONG).await;
    await_voters(&ours, 4, 3, 1000).await;
    await_voters(&theirs, 4, 1, 1000).await;
    let taken = steps(&ours);
    assert!(taken.iter().any(|step| step.starts_with("add owners-b-own-0")), "{taken:?}");
    theirs.await_converged(MINUTE).await;

    // Our one of four is not needed; their three are, and go only with the consent that is named.
    await_needed(&ours, false).await;
    let said = await_needed(&theirs, true).await;
    let id = theirs.get().await.unwrap().status.unwrap().network_id.unwrap();
    let (namespace, consent) =
        (theirs.namespace.as_str(), format!("bsn-operator.io/consent=delete/{id}"));
    assert!(said.contains(&format!("owners-a -n {namespace} --overwrite {consent}")), "{said}");
    let annotate = ["annotate", "bsnnetwork", "owners-a", "-n", namespace, "--overwrite"];
    theirs.kubectl_ok(&[&annotate[..], &[&format!("{consent}0")]].concat());
    await_needed(&theirs, true).await;
    theirs.kubectl_ok(&[&annotate[..], &[&consent]].concat());
    await_needed(&theirs, false).await;
    theirs.kubectl_ok(&[&annotate[..], &["bsn-operator.io/consent-"]].concat());

    // And leaves again; the full node stays, and their chain goes on.
    patch(&ours, &with_voters(0));
    ours.await_converged(LONG).await;
    await_voters(&ours, 3, 3, 1000).await;
    await_voters(&theirs, 3, 0, 0).await;
    await_needed(&theirs, false).await;
    let nodes: Vec<String> = ours.pod_uids().await.into_keys().collect();
    assert_eq!(nodes, [node]);
    theirs.await_height_above(theirs.head().await + 3, MINUTE).await;
    ours.await_height_above(theirs.head().await, MINUTE).await;

    // All that was written of theirs meanwhile is what their own status tells.
    let written = theirs.requests_since(mark).into_iter().filter(|request| {
        let told = ["bsnnetworks/status", "bsnnodes/status", "events"];
        request.namespace == theirs.namespace
            && request.writes()
            && !told.contains(&request.resource.as_str())
    });
    let written: Vec<_> = written.collect();
    assert!(written.is_empty(), "{written:?}");
    let after = (theirs.fingerprint().await, theirs.pod_uids().await, steps(&theirs));
    assert_eq!(before, after);

    // Deleted and applied again it is the same chain, though what the genesis came from is gone.
    let kept = ours.fingerprint().await;
    ours.kubectl_ok(&[
        "delete",
        "bsnnetwork",
        &ours.network,
        "-n",
        &ours.namespace,
        "--timeout=120s",
    ]);
    assert!(ours.api::<ConfigMap>().get_opt(map).await.unwrap().is_none());
    apply_in(&ours, network);
    ours.await_ready().await;
    assert_eq!(ours.fingerprint().await, kept);
    ours.await_height_above(theirs.head().await, MINUTE).await;
    ours.remove();
    theirs.await_height_above(theirs.head().await + 2, MINUTE).await;
    theirs.remove();
}
