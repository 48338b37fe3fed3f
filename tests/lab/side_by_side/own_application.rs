//! A user's own ABCI application beside the engine, and full nodes that come and go.

use std::time::Duration;

use crate::support::{World, eventually, names};

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
    replicas: 1
    storage: {size: 1Gi}
  - name: reader
    role: FullNode
    replicas: READERS
    storage: {size: 1Gi}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_users_application_runs_and_full_nodes_come_and_go_without_a_restart_of_others() {
    let world = World::new("own-application").await;
    let with_readers =
        |readers: &str| world.yaml(SPEC.trim_start().replace("READERS", readers).as_str());
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
    world.remove();
}
