//! A gateway that does not answer the operator, while its node works: nothing is known of it, and nothing is done.

use std::time::Duration;

use bsn_operator::api::conditions::{Reason, find};
use bsn_operator::view::{Liveness, NodeView};
use bsn_testkit::proxy::{Action, Outcome, Rule, before_gateway};
use kube::ResourceExt;

use crate::audit::Request;
use crate::proxy::gateway_tls;
use crate::support::{World, eventually, hub};

const MINUTE: Duration = Duration::from_mins(1);

fn view_of(world: &World, node: &str) -> Result<(Liveness, NodeView), String> {
    let view = world.view()?;
    let seen = view.nodes.into_iter().find(|seen| seen.name == node);
    seen.map(|seen| (view.liveness, seen)).ok_or_else(|| "not in the view".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_gateway_is_cut_off_is_unknown_and_not_dead_and_comes_back() {
    let world = World::new("silent-gateway").await;
    world.apply(&world.yaml(&World::sample_spec()));
    world.await_ready().await;
    world.await_operator().await;
    let node = "silent-gateway-nanjing-0";
    let tls = gateway_tls(&world, node).await;
    let front = before_gateway(&world.lab, hub(), &world.namespace, node, tls).await.unwrap();
    let proxy = front.proxy().clone();

    // The way over the proxy is as good as any.
    eventually("evidence through the proxy", MINUTE, async || {
        let calls = proxy.calls();
        let passed = calls.iter().filter(|call| {
            call.path == "/v1/evidence" && call.outcome == Outcome::Answered && !call.write
        });
        let passed = passed.filter(|call| call.status == Some(200)).count();
        if passed >= 3 { Ok(()) } else { Err(format!("{calls:?}")) }
    })
    .await;
    world.await_ready().await;
    let pods = world.pods().await;
    let (log, cut) = (world.mark(), proxy.mark());

    proxy.rule(Rule::new("no evidence", Action::Cut));
    eventually("the node is silent", MINUTE, async || {
        let nodes = world.nodes().await;
        let conditions = nodes
            .iter()
            .find(|found| found.name_any() == node)
            .and_then(|found| found.status.clone())
            .unwrap_or_default()
            .conditions;
        match find(&conditions, "Ready") {
            Some(ready) if ready.reason == Reason::NodeSilent.as_str() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let calls = proxy.calls_since(cut);
    assert!(calls.iter().skip(1).all(|call| call.outcome == Outcome::Cut && !call.forwarded));
    // Some time in which a hasty operator would do something about it.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let (liveness, seen) = view_of(&world, node).unwrap();
    assert!(!seen.in_sync && seen.problem.is_some(), "{seen:?}");
    assert_eq!(liveness, Liveness::Live, "the others show that the chain goes on");
    let requests = world.requests_since(log);
    let own: Vec<_> =
        requests.iter().filter(|request| request.namespace == world.namespace).collect();
    assert!(own.iter().any(|request| request.writes()), "that it is silent was reported");
    let deeds: Vec<_> = own.into_iter().filter(|request| is_a_deed(request)).collect();
    assert_eq!(deeds, Vec::<&Request>::new(), "nothing is known, so nothing is done");
    for (now, before) in world.pods().await.iter().zip(&pods) {
        assert_eq!(now.metadata.uid, before.metadata.uid);
    }

    proxy.clear_rules();
    world.await_ready().await;
    let (_, seen) = view_of(&world, node).unwrap();
    assert!(seen.in_sync && seen.problem.is_none(), "{seen:?}");
    front.stop().await.unwrap();
    // Without the proxy, as before.
    let head = world.head().await;
    world.await_height_above(head + 3, MINUTE).await;
    world.remove();
}

/// Whether a request does something to a node rather than report on it.
fn is_a_deed(request: &Request) -> bool {
    let reports = request.resource == "events" || request.resource.ends_with("/status");
    request.writes() && !reports
}
