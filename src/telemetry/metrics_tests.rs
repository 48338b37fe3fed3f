use std::collections::{BTreeMap, BTreeSet};

use bsn_core::membership::{Decision, Desired, Observed, Policy};
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::api::ClusterImage;
use crate::view::{DisruptionView, MembershipView};

fn key() -> NetworkKey {
    NetworkKey { namespace: "ledger".into(), name: "net".into() }
}

/// A network with one node; `known` = everything is known of it that can be.
fn view(known: bool) -> NetworkView {
    let some = |value: u64| known.then_some(value);
    NetworkView {
        chain_id: "c".into(),
        formed: true,
        head: 7,
        liveness: if known { Liveness::Live } else { Liveness::Unknown },
        head_age_seconds: 1.5,
        block_interval_seconds: known.then_some(1.0),
        quorum_power: 3,
        total_power: if known { 4 } else { 0 },
        margin: 1,
        foreign: Vec::new(),
        margin_left: known.then_some(0),
        nodes: vec![NodeView {
            name: "net-a-0".into(),
            cluster: HUB.into(),
            role: "Validator".into(),
            via: None,
            evidence_age_seconds: known.then_some(0.5),
            problem: None,
            height: some(7),
            lag: some(0),
            in_sync: known,
            peers: some(3),
            voting_power: some(1),
            version: None,
            signed: some(12),
            template_hash: None,
            guard: None,
            certificate_ends: Some("1970-01-01T00:01:00Z".into()),
            agents: Some(env!("CARGO_PKG_VERSION").into()),
        }],
    }
}

fn membership() -> MembershipView {
    MembershipView {
        desired: Desired::default(),
        observed: Observed {
            nodes: [].into(),
            ledgers: [].into(),
            begun: None,
            hub: bsn_core::membership::model::Hub::Current,
        },
        policy: Policy::default(),
        decision: Decision::Converged,
        for_seconds: 3,
        described: [].into(),
        in_force: [].into(),
        image_prefix: String::new(),
        next_index: [].into(),
        disks: [].into(),
        disruption: Some(DisruptionView {
            shares: [(HUB.to_owned(), 1)].into(),
            ..DisruptionView::default()
        }),
        warnings: Vec::new(),
    }
}

/// A network as the watch delivers it.
fn network(name: &str, spec: &Value, status: &Value) -> GuardedNetwork {
    let metadata = json!({"namespace": "ledger", "name": name});
    let kind = json!({"apiVersion": "bsn-operator.io/v1alpha1", "kind": "BsnNetwork",
        "metadata": metadata, "spec": spec, "status": status});
    serde_json::from_value(kind).unwrap()
}

/// The metrics' text with these networks in the hub's cache.
fn conditions_of(networks: Vec<GuardedNetwork>) -> String {
    let metrics = Metrics::new();
    let (store, mut writer) = reflector::store();
    for network in networks {
        writer.apply_watcher_event(&Event::Apply(network));
    }
    metrics.watch_networks(&store);
    metrics.encode().unwrap()
}

fn sample() -> Value {
    let text = include_str!("../../manifests/samples/city-ledger.yaml");
    let mut all = text.split("\n---\n").map(|one| serde_saphyr::from_str::<Value>(one).unwrap());
    all.find(|one| one["kind"] == "BsnNetwork").unwrap()["spec"].clone()
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"type": kind, "status": status, "reason": "AsDescribed", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// Metrics in which something happened of every kind.
fn filled() -> Metrics {
    let metrics = Metrics::new();
    let views = Views::default();
    views.put(key(), view(true));
    metrics.watch_views(&views);
    let memberships = Memberships::default();
    memberships.put(key(), membership());
    metrics.watch_memberships(&memberships);
    let clusters = Clusters::default();
    let image = ClusterImage { reference: "agent".into(), pull_secret_name: None };
    let contact = Some(Instant::now());
    let member =
        ClusterHandle::member("nanjing", Ok(()), contact, None, image, None, BTreeMap::new());
    clusters.put(member);
    metrics.watch_clusters(&clusters);
    let (store, mut writer) = reflector::store();
    let status = json!({"conditions": [condition("Ready", "True")]});
    writer.apply_watcher_event(&Event::Apply(network("net", &sample(), &status)));
    metrics.watch_networks(&store);
    metrics.api_request("get", "secrets", 200);
    metrics.reconciled("network", "ok", Duration::from_millis(3));
    metrics.reconcile_error("network", "conflict");
    metrics.evidence_request("ok");
    metrics.step_taken("provision");
    metrics.step_reaction(Duration::from_millis(300));
    metrics.set_leader(true);
    metrics
}

/// What is told of a metric: type, unit, help and keys of its labels.
type Told = (String, String, String, BTreeSet<String>);

/// The metrics in a text. Values of labels must hold no comma.
fn told(text: &str) -> BTreeMap<String, Told> {
    let mut all: BTreeMap<String, Told> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "EOF"] => {}
            ["#", what, family, value] => {
                family.clone_into(&mut last);
                let entry = all.entry(last.clone()).or_default();
                match what {
                    "TYPE" => value.clone_into(&mut entry.0),
                    "UNIT" => value.clone_into(&mut entry.1),
                    "HELP" => value.clone_into(&mut entry.2),
                    other => panic!("{other}"),
                }
            }
            _ => {
                assert!(line.starts_with(&last), "{line} is not of {last}");
                let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
                let keys = labels.into_iter().flat_map(|(labels, _)| labels.split(','));
                let keys = keys.filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
                all.get_mut(&last).unwrap().3.extend(keys);
            }
        }
    }
    all
}

#[test]
fn what_is_emitted_is_what_is_defined() {
    let mut emitted = told(&filled().encode().unwrap());
    for told in emitted.values_mut().filter(|told| told.0 == "histogram") {
        // It is the type's own, not one of ours.
        assert!(told.3.remove("le"), "{told:?}");
    }
    let defined = definitions::ALL.iter().map(|of| {
        let unit = of.unit.as_ref().map_or(String::new(), |unit| unit.as_str().to_owned());
        let labels = of.labels.iter().map(|label| (*label).to_owned()).collect();
        (of.family(), (of.kind.as_str().to_owned(), unit, format!("{}.", of.help), labels))
    });
    assert_eq!(emitted, defined.collect());
}

#[test]
fn every_series_that_is_defined_is_emitted() {
    let text = filled().encode().unwrap();
    for name in definitions::ALL.iter().flat_map(|of| of.series()) {
        let of_it = |line: &&str| line.split(['{', ' ']).next() == Some(&name);
        assert!(text.lines().any(|line| of_it(&line)), "{name} in\n{text}");
    }
}

#[test]
fn what_is_not_known_is_absent_and_not_zero() {
    let metrics = Metrics::new();
    let views = Views::default();
    metrics.watch_views(&views);
    views.put(key(), view(false));
    metrics.api_request("get", "secrets", 200);
    let text = metrics.encode().unwrap();
    for line in [
        r#"bsn_chain_height{namespace="ledger",network="net"} 7.0"#,
        r#"bsn_api_requests_total{verb="get",resource="secrets",code="200"} 1"#,
        r#"bsn_node_certificate_expiry_timestamp_seconds{namespace="ledger",network="net",node="net-a-0"} 60.0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    for absent in ["chain_live", "chain_margin", "chain_margin_left", "node_in_sync"] {
        assert!(!text.contains(&format!("bsn_{absent}{{")), "{absent} in\n{text}");
    }
}

#[test]
fn agents_are_behind_by_minor_versions() {
    let own = env!("CARGO_PKG_VERSION");
    let (own_major, own_minor) = (own.split('.').next().unwrap(), own.split('.').nth(1).unwrap());
    assert_eq!(minor_versions(own), Some(100 * int(own_major) + int(own_minor)));
    let behind = |agents: Option<&str>| {
        let node = view(true).nodes.remove(0);
        agents_behind(&NodeView { agents: agents.map(str::to_owned), ..node })
    };
    assert_eq!(behind(Some(own)), Some(0.0));
    assert_eq!(behind(Some("99.0.0")), Some(0.0), "newer than the operator, after a rollback");
    assert_eq!(behind(Some("0.0.9")), Some(number(minor_versions(own).unwrap())));
    // Agents that do not tell, or not in numbers.
    assert_eq!([behind(None), behind(Some("main")), behind(Some("1"))], [None; 3]);
}

fn int(text: &str) -> u64 {
    text.parse().unwrap()
}

#[test]
fn a_condition_that_is_unknown_is_absent() {
    let conditions = json!([
        condition("Ready", "False"),
        condition("ChainLive", "Unknown"),
        condition("Stalled", "True"),
        condition("OfAnotherVersion", "True"),
    ]);
    let status = json!({"conditions": conditions});
    let text = conditions_of(vec![network("net", &sample(), &status)]);
    let series = text.lines().filter(|line| line.starts_with("bsn_network_condition"));
    let labels = r#"namespace="ledger",network="net""#;
    assert_eq!(
        series.collect::<Vec<_>>(),
        [
            format!(r#"bsn_network_condition{{{labels},condition="Ready"}} 0.0"#),
            format!(r#"bsn_network_condition{{{labels},condition="Stalled"}} 1.0"#),
        ]
    );
}

#[test]
fn a_network_that_does_not_parse_waits_for_a_person() {
    let broken = network("broken", &json!({"chainId": 7}), &json!({}));
    assert!(broken.0.is_err());
    let text = conditions_of(vec![broken]);
    let line =
        r#"bsn_network_condition{namespace="ledger",network="broken",condition="Stalled"} 1.0"#;
    assert!(text.lines().any(|found| found == line), "{text}");
}
