//! A user's own ABCI application beside the engine, and full nodes that come and go.

use std::time::Duration;

use bsn_core::anchor::{ANCHOR_KEY, Anchor};
use bsn_core::engine::cometbft::keys::PublicKey;
use bsn_core::engine::cometbft::transaction::validator_transaction;
use bsn_core::names::NodeName;
use bsn_operator::api::conditions::Reason;

use crate::rpc::{Client, submit};
use crate::support::{World, eventually, names};

const MINUTE: Duration = Duration::from_mins(1);

const SPEC: &str = r"
chainId: own-app-1
engine:
  cometbft:
    version: 0.38.25
    app:
      container:
        image: localhost/abci-kvstore:0.38.25
        args: [kvstore, --address=$(ABCI_ADDRESS), --persist=$(APP_DATA)]
nodeSets:
  - name: voter
    role: Validator
    replicas: VOTERS
    storage: {size: 1Gi}
  - name: reader
    role: FullNode
    replicas: READERS
    storage: {size: 1Gi}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_users_application_runs_and_full_nodes_come_and_go_without_a_restart_of_others() {
    let world = World::new("own-application").await;
    let described = |voters: &str, readers: &str| {
        world.yaml(&SPEC.trim_start().replace("VOTERS", voters).replace("READERS", readers))
    };
    let with_readers = |readers: &str| described("1", readers);
    world.apply(&with_readers("0"));
    world.await_ready().await;
    let head = world.await_height_above(3, Duration::from_mins(1)).await;
    let voter = world.pods().await.remove(0);

    world.apply(&with_readers("2"));
    world.await_ready().await;
    world.await_height_above(head, Duration::from_mins(1)).await;
    assert_eq!(
        names(&world.nodes().await),
        ["own-application-reader-0", "own-application-reader-1", "own-application-voter-0"]
            .map(str::to_owned)
            .into()
    );
    let view = world.view().unwrap();
    let reader = view.nodes.iter().find(|node| node.name == "own-application-reader-0").unwrap();
    assert_eq!(reader.voting_power, Some(0), "a full node does not vote: {reader:?}");

    world.apply(&with_readers("1"));
    world.await_ready().await;
    eventually("one reader less", Duration::from_secs(90), async || {
        let pods = names(&world.pods().await);
        if pods.len() == 2 { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;
    let same = world.pods().await.into_iter().find(|pod| pod.metadata.name == voter.metadata.name);
    assert_eq!(same.unwrap().metadata.uid, voter.metadata.uid, "the validator was restarted");

    // The application's state is on the disk: the chain goes on after the pod was recreated.
    let head = world.head().await;
    world.kubectl_ok(&["delete", "pod", "own-application-voter-0-0", "-n", &world.namespace]);
    world.await_height_above(head + 3, Duration::from_mins(2)).await;
    world.await_ready().await;

    // Nothing says how this application is told of validators: its own governance does that, and here the story is it.
    world.apply(&described("2", "1"));
    let newcomer = "own-application-voter-1";
    let expected = ["authority_submits", newcomer];
    println!("{}", world.await_refused(Reason::GateClosed, &expected, MINUTE).await);
    let key = consensus_key(&world, newcomer).await;
    let transaction = validator_transaction(&key, 1000, 0);
    let client = Client::new(&world).await;
    let call = submit(std::str::from_utf8(&transaction).unwrap());
    let (_, answer) = client.call("own-application-voter-0", &call).await;
    assert_eq!(answer["result"]["tx_result"]["code"], 0, "{answer}");
    world.await_converged(Duration::from_mins(2)).await;
    let voters = client.voters("own-application-voter-0", None).await;
    assert_eq!(voters.into_values().collect::<Vec<_>>(), [1000, 1000]);
    world.remove();
}

/// The public part of a node's consensus key, once the operator has made and recorded it.
async fn consensus_key(world: &World, node: &str) -> PublicKey {
    eventually(&format!("the key of {node}"), MINUTE, async || {
        let text = world.stored("anchor", ANCHOR_KEY).await;
        let anchor: Anchor = serde_json::from_str(&text).unwrap();
        let identity = anchor.identity(&NodeName::from_object(node));
        let keys = identity.and_then(|identity| identity.keys.clone());
        keys.map(|keys| keys.consensus).ok_or_else(|| "not recorded".to_owned())
    })
    .await
}
