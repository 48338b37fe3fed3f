//! From one YAML file to a chain that makes blocks, with certificates for all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hyper::StatusCode;
use serde_json::json;
use tokio::net::TcpStream;

use crate::audit::count;
use crate::rpc::{Client, submit};
use crate::support::{READY_WITHIN, World, eventually, find_process};

/// Requests for bringing up a network of four; committed, so that a change shows in review. What
/// depends on how events happen to arrive (status patches, events, conflicts) has about a quarter of
/// room; the rest is exact.
const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/request-budget.json");

#[tokio::test(flavor = "multi_thread")]
async fn a_network_of_four_comes_up_from_one_file_within_its_budget_of_requests() {
    let world = World::new("bring-up").await;
    let mark = world.mark();
    let began = Instant::now();
    world.apply(&world.yaml(&World::sample_spec()));
    eventually("the first block", READY_WITHIN, async || match world.view()?.head {
        0 => Err("no block yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    println!("first block {:.1} s after kubectl apply", began.elapsed().as_secs_f64());
    world.await_ready().await;
    println!("Ready {:.1} s after kubectl apply", began.elapsed().as_secs_f64());
    world.await_condition("ChainLive", "True", Duration::from_secs(1)).await;
    world.await_condition("CertificatesValid", "True", Duration::from_secs(1)).await;
    world.await_height_above(5, Duration::from_mins(1)).await;

    check_requests(&world, mark).await;
    check_view(&world);
    check_metrics(&world).await;
    check_gateway(&world).await;
    world.remove();
}

/// Settles, then compares with the committed counts.
async fn check_requests(world: &World, mark: u64) {
    tokio::time::sleep(Duration::from_secs(15)).await;
    let mine: Vec<_> = world
        .requests_since(mark)
        .into_iter()
        .filter(|request| request.namespace == world.namespace)
        .collect();
    let counts = count(&mine);
    println!("requests: {} in all, {counts:#?}", mine.len());
    if std::env::var_os("BSN_UPDATE_BUDGET").is_some() {
        std::fs::write(BUDGET, serde_json::to_string_pretty(&counts).unwrap() + "\n").unwrap();
    }
    let budget: BTreeMap<String, u64> =
        serde_json::from_slice(&std::fs::read(BUDGET).unwrap()).unwrap();
    let grown: Vec<_> = counts
        .iter()
        .filter(|(what, count)| **count > budget.get(*what).copied().unwrap_or(0))
        .map(|(what, count)| {
            format!("{what}: {count} > {}", budget.get(what).copied().unwrap_or(0))
        })
        .collect();
    assert!(
        grown.is_empty(),
        "more requests than {BUDGET} allows: {grown:?}; if that is meant, run with BSN_UPDATE_BUDGET=1"
    );
}

fn check_view(world: &World) {
    let view = world.view().unwrap();
    assert_eq!(view.nodes.len(), 4);
    assert_eq!((view.margin, view.total_power, view.quorum_power), (1, 4000, 2667));
    for node in &view.nodes {
        assert!(node.in_sync, "{node:?}");
        assert_eq!((node.peers, node.voting_power), (Some(3), Some(1000)), "{node:?}");
        assert!(node.certificate_ends.is_some(), "{node:?}");
    }
}

async fn check_metrics(world: &World) {
    let text = world.metrics().await;
    let labels = format!(r#"namespace="{}",network="{}""#, world.namespace, world.network);
    assert!(text.contains(&format!("bsn_chain_live{{{labels}}} 1.0")), "{text}");
    assert!(text.contains("bsn_node_certificate_expiry_timestamp_seconds{"), "{text}");
    assert!(text.contains("bsn_leader 1"), "{text}");
    let leader = world.leader().await;
    let pid = find_process(&leader, "bsn-operator").unwrap().pid;
    let memory = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = memory.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    println!("operator's memory with one network: {line}");
}

async fn check_gateway(world: &World) {
    let client = Client::new(world).await;
    let (first, last) = ("bring-up-hangzhou-0", "bring-up-nanjing-1");
    let (status, answer) = client.call(first, &submit("city=hangzhou")).await;
    assert_eq!(
        (status, &answer["result"]["tx_result"]["code"]),
        (StatusCode::OK, &json!(0)),
        "{answer}"
    );
    let query =
        json!({"jsonrpc": "2.0", "id": 2, "method": "abci_query", "params": {"data": "63697479"}});
    eventually("the value on another node", Duration::from_secs(20), async || {
        let (_, answer) = client.call(last, &query).await;
        let value = answer["result"]["response"]["value"].as_str().unwrap_or_default().to_owned();
        if value == BASE64.encode("hangzhou") { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;

    // Who may not: nobody without a certificate, and no client changes the validators.
    client.send(first, None, &query).await.unwrap_err();
    let (status, answer) = client.call(first, &submit("val=anything")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(answer["error"].as_str().unwrap().contains("edit the BsnNetwork"), "{answer}");
    let (_, ip) = &client.nodes[first];
    let rpc = TcpStream::connect(SocketAddr::new(ip.ip(), 26657)).await;
    assert!(rpc.is_err(), "the engine's RPC must not be reachable from outside its pod");
}
