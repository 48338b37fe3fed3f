//! How nodes are reached from elsewhere, and what happens when that changes: nodes run on, and only `EndpointSlice`s in
//! other clusters follow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bsn_operator::api::conditions::RECONCILING;
use bsn_operator::evidence::route::Via;
use bsn_testkit::lab::MachineId;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;

use super::faults::Firewall;
use super::span::{LONG, Member, POWER, Span, await_rise, heights, spec};
use crate::chain::await_voters;
use crate::quiet::writes;
use crate::rpc::Client;
use crate::support::{eventually, hub};

const MINUTE: Duration = Duration::from_mins(1);
/// The way that worked is tried first for a minute; then the address gets another chance.
const BACK_WITHIN: Duration = Duration::from_mins(2);

/// The port on the machines under which a node's gateway is reached.
async fn gateway_port(span: &Span, member: &Member, node: &str) -> u16 {
    let service = span.world.api_in::<Service>(&member.client).get(node).await.unwrap();
    let ports = service.spec.unwrap().ports.unwrap();
    let port = ports.iter().find(|port| port.name.as_deref() == Some("gateway")).unwrap();
    u16::try_from(port.node_port.unwrap()).unwrap()
}

/// Waits until the operator asks each of these nodes in this way, and all are in sync.
async fn await_ways(span: &Span, expected: &BTreeMap<String, Via>, within: Duration) {
    eventually(&format!("evidence by {expected:?}"), within, async || {
        let view = span.world.view()?;
        let ways = view.nodes.iter().map(|node| (node.name.clone(), node.via, node.in_sync));
        let ways: Vec<_> = ways.collect();
        let well =
            ways.iter().all(|(name, via, in_sync)| *via == expected.get(name).copied() && *in_sync);
        if well && ways.len() == expected.len() { Ok(()) } else { Err(format!("{ways:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_behind_a_firewall_are_asked_through_the_api_server() {
    let span = Span::start("forwarded", [2, 1, 1]).await;
    let world = &span.world;
    let [a, _] = &span.members;
    let pods = world.pod_uids().await;
    let nodes = [span.node("home", 0), span.node("home", 1), span.node("a", 0), span.node("b", 0)];
    let mut ways: BTreeMap<String, Via> = nodes.map(|node| (node, Via::Direct)).into();
    await_ways(&span, &ways, MINUTE).await;

    // The chain's own port stays open: this firewall lets blocks pass, and no questions.
    let hidden = span.node("a", 0);
    let port = gateway_port(&span, a, &hidden).await;
    let firewall = Firewall::between(&world.lab, hub(), a.cluster, port);
    ways.insert(hidden.clone(), Via::ApiServer);
    await_ways(&span, &ways, MINUTE).await;
    let shown = world.plugin(&["status", &world.network], "");
    println!("{}", String::from_utf8_lossy(&shown.stdout));
    world.await_condition("Ready", "True", MINUTE).await;
    // What is said this way is good enough for a change.
    world.apply(&world.yaml(&spec([2, 1, 2], "1s")));
    world.await_converged(LONG).await;
    await_voters(world, 5, POWER).await;
    let asked = world.view().unwrap();
    let via = asked.nodes.iter().find(|node| node.name == hidden).and_then(|node| node.via);
    assert_eq!(via, Some(Via::ApiServer), "the way for all that time");

    drop(firewall);
    ways.insert(hidden, Via::Direct);
    ways.insert(span.node("b", 1), Via::Direct);
    await_ways(&span, &ways, BACK_WITHIN).await;
    let now = world.pod_uids().await;
    assert!(pods.iter().all(|(node, uid)| now.get(node) == Some(uid)), "{pods:?} {now:?}");
    span.remove().await;
}

/// The description with another exposure of the hub's nodes.
fn exposed(how: &str) -> String {
    let text = spec([2, 1, 1], "1s");
    let home = "replicas: 2\n    exposure: NodePort";
    assert!(text.contains(home), "{text}");
    text.replace(home, &format!("replicas: 2\n    exposure: {how}"))
}

/// Addresses and ports behind a node's name in a member.
async fn endpoints(
    span: &Span,
    member: &Member,
    node: &str,
) -> Result<BTreeSet<(String, i32)>, String> {
    let of = ListParams::default().labels(&format!("kubernetes.io/service-name={node}"));
    let slices = span.world.api_in::<EndpointSlice>(&member.client).list(&of).await;
    let slices = slices.map_err(|error| error.to_string())?.items;
    let mut found = BTreeSet::new();
    for slice in &slices {
        let mut ports =
            slice.ports.iter().flatten().filter(|port| port.name.as_deref() == Some("p2p"));
        let port = ports.find_map(|port| port.port).unwrap_or_default();
        let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        found.extend(addresses.map(|address| (address.clone(), port)));
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_exposure_moves_addresses_and_nothing_else() {
    let span = Span::start("exposed", [2, 1, 1]).await;
    let world = &span.world;
    let pods = world.pod_uids().await;
    let node = span.node("home", 0);
    let [a, b] = &span.members;
    let before = endpoints(&span, a, &node).await.unwrap();
    assert_eq!(before.len(), 1, "{before:?}");

    let marks = span.marks();
    world.apply(&world.yaml(&exposed("LoadBalancer")));
    // Nobody makes load balancers in this lab: until there is an address, the old one is what others know.
    let said = world.await_condition(RECONCILING, "True", MINUTE).await;
    assert!(said.contains("its load balancer has no address yet"), "{said}");
    assert_eq!(endpoints(&span, a, &node).await.unwrap(), before, "the last address stays");

    // Now somebody does: each node's has the address of a machine.
    for (index, machine) in [(0, 0), (1, 1)] {
        let address = MachineId { cluster: hub(), machine }.ip().to_string();
        let patch =
            format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{address}"}}]}}}}}}"#);
        let (name, namespace) = (span.node("home", index), world.namespace.as_str());
        let fixed = ["patch", "service", &name, "-n", namespace, "--subresource=status"];
        world.kubectl_ok(&[&fixed[..], &["--type=merge", "-p", &patch]].concat());
    }
    let balanced: BTreeSet<_> =
        [(MachineId { cluster: hub(), machine: 0 }.ip().to_string(), 26656)].into();
    for member in [a, b] {
        eventually(&format!("the balancer's address in {}", member.name), MINUTE, async || {
            let found = endpoints(&span, member, &node).await?;
            if found == balanced { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
    world.await_converged(LONG).await;
    let client = Client::new(world).await;
    let height = heights(&client).await;
    await_rise(&client, &height, 10).await;

    world.apply(&world.yaml(&exposed("NodePort")));
    eventually("a machine's port again", MINUTE, async || {
        let found = endpoints(&span, a, &node).await?;
        let ports = found.iter().all(|(_, port)| *port >= 30000);
        if ports && found.len() == 1 { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    world.await_converged(LONG).await;
    for member in [a, b] {
        let requests = span.requests_to(member, &marks);
        let others: BTreeSet<_> =
            writes(&requests).into_iter().map(|request| request.resource.clone()).collect();
        assert_eq!(others, ["endpointslices".to_owned()].into(), "written in {}", member.name);
    }
    assert_eq!(world.pod_uids().await, pods, "no node restarts because of its address");
    span.remove().await;
}
