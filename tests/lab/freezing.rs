//! Transactions that would stop a chain for good: refused from clients, and recognised when one got in.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bsn_core::engine::cometbft::signing::SignedAt;
use bsn_core::names::NetworkName;
use bsn_core::pki::{Role, client_names};
use bsn_operator::api::conditions::find;
use bsn_operator::build::secret::{TLS_CERT, TLS_KEY, entry};
use bsn_operator::http::exchange;
use bsn_operator::labels;
use bsn_operator::pki::{Authority, new_key};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;
use serde_json::json;

use crate::rpc::{Client, submit};
use crate::support::{World, eventually};

/// Seen on 0.38.25: each passes the transaction check and stops consensus on every node.
fn freezing() -> BTreeMap<&'static str, String> {
    let key = |bytes: usize| BASE64.encode(vec![7; bytes]);
    [
        ("absent key removed", format!("val=ed25519!{}!0", key(32))),
        ("key given twice", format!("val=ed25519!{}!12", key(32))),
        ("31 bytes", format!("val=ed25519!{}!1", key(31))),
        ("unknown type", format!("val=foo!{}!1", key(32))),
        ("other curve", format!("val=secp256k1!{}!1", key(33))),
        ("too much power", format!("val=ed25519!{}!1152921504606846976", key(32))),
    ]
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_freezes_the_chain_and_a_frozen_one_is_recognised() {
    let world = World::new("freezing").await;
    world.apply(&world.yaml(&World::sample_spec()));
    world.await_ready().await;
    let client = Client::new(&world).await;
    for (what, tx) in freezing() {
        for node in client.nodes.keys() {
            let (status, answer) = client.call(node, &submit(&tx)).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{what} at {node}: {answer}");
        }
    }
    nobody_else_gets_in(&world, &client).await;
    world.await_height_above(world.head().await + 3, Duration::from_mins(1)).await;

    // From inside a pod nobody is asked for a certificate.
    let pods = world.api::<Pod>();
    let pod = format!("{}-hangzhou-0-0", world.network);
    let mut forwarder = pods.portforward(&pod, &[26657]).await.unwrap();
    let stream = forwarder.take_stream(26657).unwrap();
    let bad = &freezing()["absent key removed"];
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_sync", "params": {"tx": BASE64.encode(bad)}});
    let request = Request::post("/")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::from(call.to_string()))
        .unwrap();
    let (status, _) = exchange(stream, request, 1 << 20).await.unwrap();
    assert_eq!(status, StatusCode::OK);

    let began = Instant::now();
    eventually("the chain recognised as frozen", Duration::from_mins(1), async || {
        let conditions = world.get().await?.status.unwrap_or_default().conditions;
        let live = find(&conditions, "ChainLive").unwrap();
        if live.reason == "ChainFrozen" { Ok(()) } else { Err(format!("{live:?}")) }
    })
    .await;
    println!("recognised {:.0} s after the transaction", began.elapsed().as_secs_f64());
    world.await_condition("Stalled", "True", Duration::from_secs(10)).await;
    bring_back(&world).await;
    world.remove();
}

/// Without a certificate, with one that has ended, with another authority's or another network's: refused at
/// every gateway, although the network's own CA made two of them.
async fn nobody_else_gets_in(world: &World, client: &Client) {
    let ca = world.api::<Secret>().get(&format!("{}-ca", world.network)).await.unwrap();
    let authority =
        Authority::parse(entry(&ca, TLS_CERT).unwrap(), entry(&ca, TLS_KEY).unwrap()).unwrap();
    let (cert, ca_key) =
        Authority::make(&NetworkName::parse("stranger").unwrap(), Timestamp::now()).unwrap();
    let stranger = Authority::parse(&cert, &ca_key).unwrap();
    let own_id = &ca.labels()[labels::NETWORK_ID];
    let hour = SignedDuration::from_hours(1);
    let key = new_key().unwrap();
    let issue = |authority: &Authority, network_id: &str, began: Timestamp| {
        let names = client_names("someone", Role::Client, network_id);
        authority.issue(&names, &key, hour, began, false).unwrap()
    };
    let now = Timestamp::now();
    let status = json!({"jsonrpc": "2.0", "id": 1, "method": "status", "params": {}});
    for node in client.nodes.keys() {
        let valid = issue(&authority, own_id, now);
        let (code, _) = client.send(node, Some((&valid, &key)), &status).await.unwrap();
        assert_eq!(code, StatusCode::OK, "a valid one made in the same way");
        let other = issue(&authority, "another", now);
        let (code, _) = client.send(node, Some((&other, &key)), &status).await.unwrap();
        assert_eq!(code, StatusCode::FORBIDDEN, "another network's at {node}");
        let ended = issue(&authority, own_id, now - 3 * hour);
        let strange = issue(&stranger, own_id, now);
        for identity in [None, Some((&*ended, &*key)), Some((&*strange, &*key))] {
            client.send(node, identity, &status).await.unwrap_err();
        }
    }
}

/// The way back that docs/recovery.md describes: every node stopped at once, then each rolled back by the
/// block that could not be applied.
async fn bring_back(world: &World) {
    let head = world.head().await;
    world.scale_operator(0).await;
    let names: Vec<_> = world.nodes().await.iter().map(ResourceExt::name_any).collect();
    for node in &names {
        world.scale_node(node, 0).await;
    }
    for node in &names {
        let data = world.volume(node).join("engine");
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("config");
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("config.toml"), format!("db_dir = \"{}\"\n", data.display()))
            .unwrap();
        let output = Command::new(world.lab.tool("cometbft"))
            .args(["rollback", "--hard", "--home"])
            .arg(home.path())
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{node}: {said}");
        std::fs::remove_dir_all(data.join("cs.wal")).unwrap();
        let state = SignedAt::past(head - 1).render_record();
        std::fs::write(data.join("priv_validator_state.json"), state).unwrap();
        // Files that a tool run by root has made belong to the engine's user again.
        let owner = format!("chown -R 65532:65532 {}", data.display());
        assert!(Command::new("sh").args(["-c", &owner]).status().unwrap().success());
    }
    for node in &names {
        world.scale_node(node, 1).await;
    }
    world.scale_operator(2).await;
    world.await_height_above(head + 3, Duration::from_mins(5)).await;
    world.await_ready().await;
}
