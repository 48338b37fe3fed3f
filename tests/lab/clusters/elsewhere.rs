//! A key moves from one owner to another, each with a hub in a cluster of its own. Neither operator can see that the
//! other's node has the key: only the chain shows that somebody signs with it.

use std::time::Duration;

use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, PrivateKey};
use bsn_operator::api::conditions::Reason;
use bsn_testkit::lab::Roles;
use bsn_testkit::lab::layout::MachineId;
use k8s_openapi::api::core::v1::{Secret, Service};
use kube::ResourceExt;
use serde_json::json;

use super::leftovers::sweep;
use super::span::POWER;
use crate::owner::{apply_in, assert_nothing_made, await_voters, bundle, patch, put};
use crate::rpc::Client;
use crate::support::{World, consent_in, hub};

const LONG: Duration = Duration::from_mins(6);

/// The owner of one node lets others in at a machine's port, and says so in its description.
async fn open_way(world: &World, node: &str) -> String {
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "way-in", "namespace": world.namespace},
        "spec": {
            "type": "NodePort",
            "selector": {"bsn-operator.io/node": node},
            "ports": [{"name": "p2p", "port": 26656}],
        },
    });
    apply_in(world, &service);
    let made = world.api::<Service>().get("way-in").await.unwrap();
    let port = made.spec.unwrap().ports.unwrap()[0].node_port.unwrap();
    let machine = MachineId { cluster: hub(), machine: 0 }.ip();
    format!("{{node: {node}, host: {machine}, p2pPort: {port}}}")
}

fn spec(way_in: &str) -> String {
    format!(
        r"chainId: elsewhere-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {{}}
nodeSets:
  - name: front
    role: Validator
    replicas: 1
    exposure: External
    externalAddresses: [{way_in}]
    storage: {{size: 1Gi}}
  - name: voter
    role: Validator
    replicas: 3
    storage: {{size: 1Gi}}
"
    )
}

/// What the owner hands over: the file with the consensus key.
async fn key_of(world: &World, node: &str) -> String {
    let secret = world.api::<Secret>().get(&format!("{node}-keys")).await.unwrap();
    String::from_utf8(secret.data.unwrap()[CONSENSUS_KEY_FILE].0.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_signs_for_another_owner_is_taken_once_the_chain_is_without_it() {
    let roles = Roles::from_env().unwrap();
    sweep(roles).await;
    let theirs = World::new("elsewhere-a").await;
    let ours = World::with_hub("elsewhere-b", roles.hubs()[1]).await;
    let way_in = open_way(&theirs, "elsewhere-a-front-0").await;
    theirs.apply(&theirs.yaml(&spec(&way_in)));
    theirs.await_converged(LONG).await;

    let bundle = bundle(&theirs, &ours.network);
    apply_in(&ours, &bundle["ConfigMap"]);
    apply_in(&ours, &bundle["BsnNetwork"]);
    ours.await_converged(LONG).await;
    await_voters(&ours, 4, 4, POWER).await;

    // The key is copied while its node goes on: nothing is made with it.
    let (from, to) = ("elsewhere-a-voter-2", "elsewhere-b-own-0");
    let file = key_of(&theirs, from).await;
    let key = PrivateKey::parse_consensus_key_file(&file).unwrap();
    let address = key.public().validator_address();
    put(&ours, "moved", &[(CONSENSUS_KEY_FILE, &file)]).await;
    patch(
        &ours,
        &json!({"membership": {"catchUp": {"stableSeconds": 5}}, "nodeSets": [
            {"name": "reader", "role": "FullNode", "replicas": 1},
            {"name": "own", "role": "Validator", "replicas": 1,
                "keys": [{"node": to, "secretName": "moved"}]},
        ]}),
    );
    ours.await_node_stalled(to, Reason::KeySignsElsewhere, "it signs blocks now", LONG).await;
    let seen = ours.await_height_above(ours.head().await + 15, LONG).await;
    ours.await_node_stalled(to, Reason::KeySignsElsewhere, &address, LONG).await;
    assert_nothing_made(&ours, to).await;

    // Its owner takes the node out. Then it is a newcomer's key like any other.
    patch(
        &theirs,
        &json!({"nodeSets": [
            {"name": "front", "role": "Validator", "replicas": 1, "exposure": "External",
                "externalAddresses": theirs.get().await.unwrap().spec.node_sets[0].external_addresses},
            {"name": "voter", "role": "Validator", "replicas": 2},
        ]}),
    );
    theirs.await_converged(LONG).await;
    ours.await_converged(LONG).await;
    await_voters(&ours, 4, 3, POWER).await;
    await_voters(&theirs, 4, 1, POWER).await;
    let node = ours.nodes().await.into_iter().find(|node| node.name_any() == to).unwrap();
    assert_eq!(node.status.unwrap().address, Some(address.clone()));
    let head = ours.await_height_above(ours.head().await + 3, LONG).await;
    let (client, reader) = (Client::new(&ours).await, "elsewhere-b-reader-0");
    assert!(client.voters(reader, None).await.contains_key(&address));
    assert_eq!(client.double_signs(reader, seen, head).await, Vec::<serde_json::Value>::new());

    // Three of four are theirs: our one alone makes no block, so they go only with their owner's consent.
    let delete = ["delete", "bsnnetwork", "elsewhere-a", "-n", &theirs.namespace, "--timeout=120s"];
    let output = theirs.kubectl(&delete, "");
    assert!(!output.status.success(), "nobody was asked");
    theirs.consent(&consent_in(&String::from_utf8_lossy(&output.stderr)));
    theirs.kubectl_ok(&delete);
    theirs.remove();
    ours.remove();
}
