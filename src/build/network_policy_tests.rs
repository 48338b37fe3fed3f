//! Who reaches what, by the rules of Kubernetes (`networking.k8s.io/v1`), evaluated over the objects as they are printed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::{Value, json};

use super::*;
use crate::cli::RenderArgs;
use crate::cli::render::render;

type Labels = BTreeMap<String, String>;

/// Where a connection comes from.
#[derive(Debug, Clone)]
enum Source {
    /// A pod of the same cluster.
    Pod { namespace: &'static str, labels: Labels },
    /// Anything else: another cluster's pod, a machine that forwarded a packet, the world outside.
    Address(IpAddr),
}

fn labels<const N: usize>(all: [(&str, &str); N]) -> Labels {
    all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    assert!(selector.match_expressions.is_none(), "the model does not know them");
    let wanted = selector.match_labels.iter().flatten();
    wanted.into_iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn holds(cidr: &str, address: IpAddr) -> bool {
    let (net, bits) = cidr.split_once('/').unwrap();
    let bits: u32 = bits.parse().unwrap();
    match (net.parse().unwrap(), address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            let shift = |ip: std::net::Ipv4Addr| u64::from(u32::from(ip)) >> (32 - bits);
            shift(net) == shift(address)
        }
        _ => false,
    }
}

fn fits(peer: &NetworkPolicyPeer, of: &str, source: &Source) -> bool {
    match (peer, source) {
        (NetworkPolicyPeer { ip_block: Some(block), .. }, Source::Address(address)) => {
            holds(&block.cidr, *address)
        }
        (NetworkPolicyPeer { ip_block: Some(_), .. }, _) | (_, Source::Address(_)) => false,
        (peer, Source::Pod { namespace, labels: pod }) => {
            let name = labels([(NAMESPACE_NAME, *namespace)]);
            let there = match &peer.namespace_selector {
                Some(selector) => selects(selector, &name),
                None => *namespace == of,
            };
            there && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, pod))
        }
    }
}

/// Whether a pod that these policies are about admits a connection.
fn admits(policies: &[NetworkPolicy], to: &StatefulSet, source: &Source, port: i32) -> bool {
    let namespace = to.metadata.namespace.as_deref().unwrap();
    let template = &to.spec.as_ref().unwrap().template;
    let pod = template.metadata.as_ref().unwrap().labels.clone().unwrap();
    let about: Vec<_> = policies
        .iter()
        .filter(|policy| policy.metadata.namespace.as_deref() == Some(namespace))
        .filter_map(|policy| policy.spec.as_ref())
        .filter(|spec| spec.policy_types.as_deref() == Some(&["Ingress".to_owned()]))
        .filter(|spec| selects(spec.pod_selector.as_ref().unwrap(), &pod))
        .collect();
    let mut rules = about.iter().flat_map(|spec| spec.ingress.iter().flatten());
    about.is_empty()
        || rules.any(|rule| {
            let mut ports = rule.ports.iter().flatten();
            let mut from = rule.from.iter().flatten();
            // An empty list is everybody, too.
            let anybody = rule.from.as_ref().is_none_or(Vec::is_empty);
            ports.any(|one| one.port == Some(IntOrString::Int(port)))
                && (anybody || from.any(|peer| fits(peer, namespace, source)))
        })
}

/// What is printed of the sample with this in the place of its `networkPolicy`.
struct World {
    policies: Vec<NetworkPolicy>,
    nodes: Vec<StatefulSet>,
}

/// The objects of a kind.
fn of<T: serde::de::DeserializeOwned>(objects: &[Value], kind: &str) -> Vec<T> {
    let found = objects.iter().filter(|object| object["kind"] == kind);
    found.map(|object| serde_json::from_value(object.clone()).unwrap()).collect()
}

impl World {
    fn new(sample: &str, policy: Value) -> Self {
        let path = format!("{}/manifests/samples/{sample}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let mut network =
            documents.into_iter().find(|document| document["kind"] == "BsnNetwork").unwrap();
        network["spec"]["networkPolicy"] = policy;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "{network}").unwrap();
        let args = RenderArgs {
            filename: file.path().to_owned(),
            namespace: "ledger".to_owned(),
            agent_image: "operator:1".to_owned(),
            operator_namespace: "bsn-system".to_owned(),
        };
        let printed = render(&args).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&printed).unwrap();
        let nodes = of(&objects, "StatefulSet");
        assert!(!nodes.is_empty());
        Self { policies: of(&objects, "NetworkPolicy"), nodes }
    }

    /// A pod of the network.
    fn own(&self) -> Source {
        let template = &self.nodes[0].spec.as_ref().unwrap().template;
        let labels = template.metadata.as_ref().unwrap().labels.clone().unwrap();
        let namespace = self.nodes[0].metadata.namespace.clone().unwrap();
        Source::Pod { namespace: Box::leak(namespace.into_boxed_str()), labels }
    }

    /// Who of them reaches every node at this port; the others reach none.
    fn reach(&self, sources: &[(&'static str, Source)], port: i32) -> Vec<&'static str> {
        let mut reached = Vec::new();
        for (name, source) in sources {
            let admitted =
                self.nodes.iter().filter(|node| admits(&self.policies, node, source, port)).count();
            assert!(admitted == 0 || admitted == self.nodes.len(), "{name}: the nodes differ");
            if admitted > 0 {
                reached.push(*name);
            }
        }
        reached
    }

    fn sources(&self) -> Vec<(&'static str, Source)> {
        let pod = |namespace, labels| Source::Pod { namespace, labels };
        let at = |address: &str| Source::Address(address.parse().unwrap());
        let mut twin = labels([]);
        if let Source::Pod { labels, .. } = self.own() {
            twin = labels;
        }
        vec![
            ("own", self.own()),
            // Of another network, or of another owner, whatever it calls itself.
            ("twin", pod("elsewhere", twin)),
            ("neighbour", pod("ledger", labels([("app", "shop")]))),
            ("operator", pod("bsn-system", labels([]))),
            ("client", pod("apps", labels([("app", "client")]))),
            ("stranger", pod("apps", labels([("app", "other")]))),
            ("other cluster", at("192.168.7.3")),
            ("world", at("203.0.113.9")),
        ]
    }
}

const GATEWAY: i32 = 8443;
const P2P: i32 = 26656;
const ALL: [&str; 8] =
    ["own", "twin", "neighbour", "operator", "client", "stranger", "other cluster", "world"];

#[test]
fn a_network_in_one_cluster_admits_peers_and_at_its_gateways_itself_and_the_operator() {
    let world = World::new("city-ledger", Value::Null);
    let sources = world.sources();
    assert_eq!(world.reach(&sources, P2P), ALL);
    assert_eq!(world.reach(&sources, GATEWAY), ["own", "operator"]);
}

/// The engine's RPC, the probes, the application: nobody but the pod itself and its machine.
#[test]
fn no_other_port_is_open_to_anybody() {
    for sample in ["city-ledger", "two-cities"] {
        let world = World::new(sample, Value::Null);
        for port in [8081, 26657, 26658, 26660, 22, 80] {
            assert!(world.reach(&world.sources(), port).is_empty(), "{sample} {port}");
        }
    }
}

/// From there come guards of the others, the operator on the hub, and clients, under addresses nobody knows beforehand.
#[test]
fn a_network_over_several_clusters_admits_the_others_at_both_ports() {
    let world = World::new("two-cities", Value::Null);
    let sources = world.sources();
    assert_eq!(world.reach(&sources, P2P), ALL);
    assert_eq!(world.reach(&sources, GATEWAY), ALL);
    let policy = json!({"outsideAddresses": ["192.168.7.0/24"]});
    let world = World::new("two-cities", policy);
    assert_eq!(world.reach(&sources, P2P), ["own", "other cluster"]);
    assert_eq!(world.reach(&sources, GATEWAY), ["own", "operator", "other cluster"]);
}

#[test]
fn who_else_may_reach_the_gateways_is_described() {
    let by_name = |name: &str| json!({"matchLabels": {NAMESPACE_NAME: name}});
    let client = json!({
        "namespaceSelector": by_name("apps"),
        "podSelector": {"matchLabels": {"app": "client"}},
    });
    let world = World::new("city-ledger", json!({"gatewayFrom": [client]}));
    let sources = world.sources();
    assert_eq!(world.reach(&sources, GATEWAY), ["own", "operator", "client"]);
    assert_eq!(world.reach(&sources, P2P), ALL);
    let shop = json!({"podSelector": {"matchLabels": {"app": "shop"}}});
    let world = World::new("city-ledger", json!({"gatewayFrom": [shop], "outsideAddresses": []}));
    assert_eq!(world.reach(&sources, GATEWAY), ["own", "neighbour", "operator"]);
    assert_eq!(world.reach(&sources, P2P), ["own"]);
}

#[test]
fn without_policies_everything_is_as_kubernetes_has_it() {
    let world = World::new("city-ledger", json!({"enabled": false}));
    assert!(world.policies.is_empty());
    assert_eq!(world.reach(&world.sources(), 26657), ALL);
}
