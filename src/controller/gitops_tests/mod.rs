//! What GitOps tools make of our objects, state by state.
//!
//! The objects are computed here by the code that reports, and written with the expected words to
//! `testkit/lab/go/gitops/testdata/`; there the tools' own libraries are asked. So neither side can drift: a
//! change of a condition is a difference here, and what a tool makes of it is a failure there.
//!
//! `BSN_UPDATE_GITOPS=1 cargo test -p bsn-operator gitops` writes the files anew.

mod conditions;
mod networks;
mod nodes;
mod samples;

use std::collections::BTreeMap;
use std::path::Path;

use bsn_core::anchor::Anchor;
use bsn_core::forming::{IdSource, build_anchor};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use self::networks::network_cases;
use self::nodes::node_cases;
use super::network::validate::validate_network;
use crate::api::{BsnNetwork, BsnNetworkSpec};
use crate::view::{Liveness, NetworkView};

/// What kstatus must say, and with it Flux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kstatus {
    InProgress,
    Failed,
    Current,
    Terminating,
}

/// What Argo CD must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Progressing,
    Degraded,
    Healthy,
    Suspended,
}

/// A file of test data.
#[derive(Clone)]
struct Case {
    name: &'static str,
    kstatus: Kstatus,
    health: Health,
    object: Value,
}

fn case(name: &'static str, kstatus: Kstatus, health: Health, object: Value) -> Case {
    Case { name, kstatus, health, object }
}

struct FixedIds(u32);

impl IdSource for FixedIds {
    fn next_id(&mut self) -> String {
        self.0 += 1;
        format!("id-{}", self.0)
    }
}

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

/// Two sets of two validators, as the first sample has them.
fn spec(paused: bool) -> BsnNetworkSpec {
    serde_json::from_value(json!({
        "chainId": "city-ledger-1",
        "engine": {"cometbft": {"version": "0.38.25", "app": {"persistentKvstore": {}}}},
        "nodeSets": [
            {"name": "hangzhou", "role": "Validator", "replicas": 2},
            {"name": "nanjing", "role": "Validator", "replicas": 2},
        ],
        "paused": paused,
    }))
    .unwrap()
}

fn network_object(spec: BsnNetworkSpec, generation: i64) -> BsnNetwork {
    let mut network = BsnNetwork::new("city-ledger", spec);
    network.metadata.namespace = Some("ledger".to_owned());
    network.metadata.generation = Some(generation);
    network
}

fn anchor(formed: bool) -> Anchor {
    let validated = validate_network(&network_object(spec(false), 1), "").unwrap();
    let mut anchor = build_anchor(&validated.desired, "hub", now(), &mut FixedIds(0)).unwrap();
    anchor.formed = formed;
    anchor.genesis_hash = formed.then(|| "5eed".to_owned());
    anchor
}

fn view(liveness: Liveness) -> NetworkView {
    NetworkView {
        chain_id: "city-ledger-1".to_owned(),
        formed: true,
        head: 42,
        liveness,
        head_age_seconds: 0.5,
        block_interval_seconds: Some(1.0),
        quorum_power: 2667,
        total_power: 4000,
        margin: 1,
        foreign: Vec::new(),
        margin_left: Some(1),
        nodes: Vec::new(),
    }
}

/// The status of what nobody has seen yet, as the schema fills it in.
fn unseen<T: serde::de::DeserializeOwned>() -> T {
    serde_json::from_value(crate::api::unseen_status()).unwrap()
}

fn at(time: Timestamp) -> Time {
    Time(time)
}

fn as_json(object: &impl serde::Serialize) -> Value {
    serde_json::to_value(object).unwrap()
}

/// What is described in Git, with defaults left out, and what the API server stores of it.
fn defaults() -> Value {
    let git = json!({
        "apiVersion": "bsn-operator.io/v1alpha1",
        "kind": "BsnNetwork",
        "metadata": {"name": "city-ledger", "namespace": "ledger"},
        "spec": {
            "chainId": "city-ledger-1",
            "engine": {"cometbft": {"version": "0.38.25", "app": {"persistentKvstore": {}}}},
            "nodeSets": [
                {"name": "hangzhou", "role": "Validator", "replicas": 2},
                {"name": "nanjing", "role": "Validator", "replicas": 2},
            ],
        },
    });
    json!({"git": git, "live": networks::World::default().object()})
}

#[test]
fn the_test_data_of_gitops_tools_follows_from_the_reports() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testkit/lab/go/gitops/testdata");
    let mut files = BTreeMap::new();
    for case in network_cases().into_iter().chain(node_cases()) {
        let content = json!({
            "kstatus": format!("{:?}", case.kstatus),
            "argoCD": format!("{:?}", case.health),
            "object": case.object,
        });
        let before = files.insert(format!("states/{}.json", case.name), content);
        assert!(before.is_none(), "two states are named {}", case.name);
    }
    files.insert("defaults.json".to_owned(), defaults());
    let update = std::env::var_os("BSN_UPDATE_GITOPS").is_some();
    for (name, content) in &files {
        let text = format!("{}\n", serde_json::to_string_pretty(content).unwrap());
        let path = folder.join(name);
        if update {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            continue;
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "{name} differs from what is reported: run BSN_UPDATE_GITOPS=1 cargo test -p bsn-operator gitops, look at \
             the difference, and ask the tools: cargo xtask test --quick"
        );
    }
    for entry in folder.join("states").read_dir().unwrap() {
        let name = format!("states/{}", entry.unwrap().file_name().display());
        assert!(files.contains_key(&name), "{name} belongs to no state: remove it");
    }
}
