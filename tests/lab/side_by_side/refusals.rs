//! A change that would not be safe waits, and says for what: the gate by name, and the consent where there is
//! one.

use std::collections::BTreeSet;
use std::time::Duration;

use bsn_core::membership::model::Gate;
use bsn_operator::api::conditions::Reason;
use bsn_testkit::lab::process::ProcessId;
use kube::ResourceExt;

use crate::plugin::Explained;
use crate::rpc::Client;
use crate::support::{World, consent_in, eventually, find_process};

const MINUTE: Duration = Duration::from_mins(1);
const LONG: Duration = Duration::from_mins(6);
/// Some time in which a hasty operator would do something all the same.
const WHILE: Duration = Duration::from_secs(20);

// A cure would end what the story does to a node.
const FOUR: &str = r"
chainId: refusals-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {}
membership:
  catchUp: {stableSeconds: 5}
repair: {cureAfter: 1h, gracePeriod: 2h}
nodeSets:
  - name: a
    role: Validator
    replicas: REPLICAS
    retire: RETIRE
    storage: {size: 1Gi}
";

fn four(replicas: &str, retire: &str) -> String {
    FOUR.trim_start().replace("REPLICAS", replicas).replace("RETIRE", retire)
}

/// Freezes a node's engine: it lives, and neither answers nor signs. The operator would start again what
/// is stopped behind its back.
async fn freeze(world: &World, node: &str) -> ProcessId {
    let engine = find_process(&format!("{node}-0"), "cometbft").unwrap();
    engine.pause().unwrap();
    eventually("the others notice", MINUTE, async || {
        let view = world.view()?;
        let seen = view.nodes.iter().find(|seen| seen.name == node).unwrap();
        if seen.in_sync { Err(format!("{seen:?}")) } else { Ok(()) }
    })
    .await;
    engine
}

/// Waits until the refusal has stood for a while, as users are told.
async fn await_others_explained(world: &World, step: &str) {
    let expected = Explained {
        gate: Gate::OthersHealthy,
        seconds: WHILE.as_secs(),
        words: &[step],
        helps: "the nodes it names have to recover, or to be replaced",
    };
    world.await_explained(expected, 2 * MINUTE).await;
}

async fn voters(world: &World, witness: &str) -> BTreeSet<String> {
    Client::new(world).await.voters(witness, None).await.into_keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_named() {
    let world = World::new("refusals").await;
    world.apply(&world.yaml(&four("4", "[]")));
    world.await_converged(LONG).await;
    let (witness, down) = ("refusals-a-0", "refusals-a-3");
    let expected = ["others_healthy", down];

    // A fifth voter while one of four is down: its node is made, and does not vote.
    let before = voters(&world, witness).await;
    let engine = freeze(&world, down).await;
    world.apply(&world.yaml(&four("5", "[]")));
    let said = world.await_refused(Reason::GateClosed, &expected, LONG).await;
    println!("{said}");
    await_others_explained(&world, "add refusals-a-4 as a voter with power 10").await;
    assert_eq!(voters(&world, witness).await, before, "changed in spite of: {said}");
    engine.resume().unwrap();
    world.await_converged(LONG).await;
    assert_eq!(voters(&world, witness).await.len(), 5);

    // A voter that works is to go while another is down.
    let before = voters(&world, witness).await;
    let engine = freeze(&world, down).await;
    world.apply(&world.yaml(&four("4", "[refusals-a-1]")));
    let said = world.await_refused(Reason::GateClosed, &expected, LONG).await;
    println!("{said}");
    await_others_explained(&world, "remove voter refusals-a-1").await;
    assert_eq!(voters(&world, witness).await, before, "changed in spite of: {said}");
    engine.resume().unwrap();
    world.await_converged(LONG).await;
    assert_eq!(voters(&world, witness).await.len(), 4);
    eventually("the end of the named node", MINUTE, async || {
        let names: Vec<_> = world.nodes().await.iter().map(ResourceExt::name_any).collect();
        if names.iter().any(|name| name == "refusals-a-1") { Err(names.join(", ")) } else { Ok(()) }
    })
    .await;

    // Nobody is left to vote: refused before it is an object.
    let error = world.try_apply(&world.yaml(&four("0", "[]"))).unwrap_err();
    assert!(error.contains("a chain needs a validator that votes"), "{error}");
    world.remove();
}

const ONE: &str = r"
chainId: consent-1
engine:
  cometbft:
    version: 0.38.25
    timeoutCommit: TIMEOUT
    app:
      persistentKvstore: {}
nodeSets:
  - name: a
    role: Validator
    replicas: 1
    storage: {size: 1Gi}
";

fn one(timeout_commit: &str) -> String {
    ONE.trim_start().replace("TIMEOUT", timeout_commit)
}

const ONLY: &str = "consent-a-0";

/// Changes how the only voter runs; gives the consent that its restart needs, after a while in which it has
/// not been restarted.
async fn ask_for_restart(world: &World, timeout_commit: &str) -> String {
    let before = world.pod_uids().await;
    world.apply(&world.yaml(&one(timeout_commit)));
    let prefix = format!("restart-with-downtime/{ONLY}/");
    let expected = ["quorum_during_restart", prefix.as_str()];
    let said = world.await_refused(Reason::ConsentNeeded, &expected, MINUTE).await;
    println!("{said}");
    let consent = consent_in(&said);
    let command = format!("bsn-operator.io/consent={consent}\n");
    let expected = Explained {
        gate: Gate::QuorumDuringRestart,
        seconds: WHILE.as_secs(),
        words: &[&format!("before: restart {ONLY}."), "\nTo consent: kubectl annotate", &command],
        helps: "more voters have to be live",
    };
    world.await_explained(expected, 2 * MINUTE).await;
    assert_eq!(world.pod_uids().await, before, "restarted in spite of: {said}");
    assert!(consent.starts_with(&prefix) && consent.len() > prefix.len(), "{said}");
    consent
}

/// Gives consents, and waits until the only voter was restarted, once.
async fn consent_to_restart(world: &World, consents: &str) {
    let before = world.pod_uids().await;
    world.consent(consents);
    world.await_converged(LONG).await;
    let after = world.pod_uids().await;
    assert_ne!(after[ONLY], before[ONLY], "not restarted with {consents}");
    tokio::time::sleep(WHILE).await;
    assert_eq!(world.pod_uids().await, after, "restarted twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_restarts_once_for_each_consent() {
    let world = World::new("consent").await;
    world.apply(&world.yaml(&one("1s")));
    world.await_converged(LONG).await;
    let faster = ask_for_restart(&world, "500ms").await;
    // A consent to something else opens nothing.
    let other = format!("restart-with-downtime/{ONLY}/0000000000");
    world.consent(&other);
    assert_eq!(ask_for_restart(&world, "500ms").await, faster);
    consent_to_restart(&world, &format!("{other}, {faster}")).await;

    // Back, with another consent; the first is still written there.
    let slower = ask_for_restart(&world, "1s").await;
    assert_ne!(slower, faster);
    consent_to_restart(&world, &format!("{faster}, {slower}")).await;
    // The same description again is another restart: the words that were used do not open its gate.
    let again = ask_for_restart(&world, "500ms").await;
    assert!(again != faster && again.starts_with(&faster), "{again} after {faster}");
    // Nothing is lost by not giving it: the description goes back, and all is as it says.
    world.apply(&world.yaml(&one("1s")));
    world.await_converged(LONG).await;
    world.remove();
}
