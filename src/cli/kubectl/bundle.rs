//! `kubectl bsn bundle`: what another owner needs to join a network's chain with nodes of their own.
//!
//! It is put together from what the API server holds, by the rights of whoever asks; the operator is not needed. Nothing
//! private is read, and nothing private is in what is read.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bsn_core::anchor::{Anchor, AnchorError, Identity};
use bsn_core::engine::cometbft::P2P_PORT;
use bsn_core::engine::cometbft::genesis::{GENESIS_FILE, Genesis, TakeError, take_genesis};
use bsn_core::names::{NameError, NetworkName, NodeName};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams};
use serde::Serialize;
use serde_json::{Value, json};

use super::status::{StatusError, connect};
use super::{BundleArgs, BundleOutput};
use crate::anchor::copy_of;
use crate::api::{BsnCluster, BsnNetwork, Exposure, ExternalPeer, NodeSet};
use crate::apply::{ApiError, bounded, read};
use crate::build::service::P2P;
use crate::cluster::registry::HUB;
use crate::controller::network::addresses::{ObservedNode, plan_reached};
use crate::labels;
use crate::view::NetworkKey;

/// Largest number of peers a network may name.
const MAX_PEERS: usize = 100;

/// Why nothing was printed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No connection, or no such network.
    #[error(transparent)]
    Connect(#[from] StatusError),
    /// A name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The API server.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// There is no chain to join yet.
    #[error(
        "the chain of BsnNetwork {0} is not formed yet; try again once status.genesisHash is set"
    )]
    NotFormed(NetworkKey),
    /// The anchor.
    #[error("{0}")]
    Anchor(#[from] AnchorError),
    /// The genesis is not there, or another.
    #[error("ConfigMap {name}: {why}; the operator puts it back, see kubectl bsn status")]
    Genesis {
        /// Where it should be.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody to dial.
    #[error(
        "no node of BsnNetwork {0} has started yet, so nobody could join by it; try again later"
    )]
    NoNodes(NetworkKey),
    /// Printing.
    #[error("cannot print: {0}")]
    Print(#[from] serde_json::Error),
}

/// What another owner needs; stable, for programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// Where it comes from.
    pub from: NetworkKey,
    /// Id of the chain.
    pub chain_id: String,
    /// The first block's terms.
    pub genesis: BundledGenesis,
    /// The nodes to dial.
    pub peers: Vec<BundledPeer>,
    /// By what to recognise all this.
    pub trust: Trust,
    /// Engine and application that every node of the chain runs, as in `spec.engine`.
    pub engine: Value,
}

/// A genesis and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BundledGenesis {
    /// SHA-256 of the text.
    pub sha256: String,
    /// The file, byte for byte.
    pub text: String,
}

/// A node to dial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BundledPeer {
    /// Its name here, for people.
    pub node: String,
    /// As `spec.externalPeers` takes it; the address that reaches farthest.
    #[serde(flatten)]
    pub peer: ExternalPeer,
    /// From where that leads to it, in words.
    pub reached: String,
    /// Further addresses, `host:port`, and from where each leads to it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, String>,
}

/// By what a bundle is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// Random id of the network that gave it.
    pub network_id: String,
    /// What proves who is who.
    pub how: &'static str,
}

const HOW: &str = "The hash of the genesis tells this chain from any other: compare it over another way. Peers prove who they are \
by their node ids; no certificate is exchanged, and the gateways of each owner stay their own.";

/// Prints a bundle.
pub async fn run(args: &BundleArgs) -> Result<(), BundleError> {
    let name = NetworkName::parse(args.name.as_ref().unwrap_or(&args.network))?;
    let (client, namespace) = connect(&args.cluster).await?;
    let key = NetworkKey { namespace, name: args.network.clone() };
    let bundle = observe_bundle(&client, &key).await?;
    match args.output {
        BundleOutput::Json => println!("{}", serde_json::to_string_pretty(&bundle)?),
        BundleOutput::Yaml => print!("{}", render_bundle(&bundle, &name)),
    }
    Ok(())
}

async fn observe_bundle(client: &Client, key: &NetworkKey) -> Result<Bundle, BundleError> {
    let network: BsnNetwork = read(client, &key.namespace, &key.name)
        .await?
        .ok_or_else(|| StatusError::Missing(key.clone()))?;
    let name = NetworkName::parse(&key.name)?;
    let map: Option<ConfigMap> = read(client, &key.namespace, &name.anchor()).await?;
    let anchor = map.as_ref().map(copy_of).transpose()?;
    let not_formed = || BundleError::NotFormed(key.clone());
    let anchor = anchor.filter(|anchor| anchor.formed).ok_or_else(not_formed)?;
    let hash = anchor.genesis_hash.clone().ok_or_else(not_formed)?;
    let genesis = observe_genesis(client, key, &name, &anchor.chain_id, &hash).await?;
    let defaults = observe_defaults(client, &anchor).await;
    let mut peers = Vec::new();
    for (node, identity) in anchor.members() {
        let Some(keys) = identity.keys.as_ref().filter(|_| is_offered(identity)) else { continue };
        if peers.len() < MAX_PEERS {
            let set = network.spec.node_sets.iter().find(|set| set.name == identity.set);
            let seen = observe_node(client, &key.namespace, &node).await?;
            let offered = offers(&node, &key.namespace, identity, set, &seen, &defaults);
            peers.extend(build_peer(&node, keys.p2p.node_id(), offered));
        }
    }
    if peers.is_empty() {
        return Err(BundleError::NoNodes(key.clone()));
    }
    Ok(Bundle {
        from: key.clone(),
        chain_id: anchor.chain_id,
        genesis: BundledGenesis { sha256: genesis.hash, text: genesis.text },
        peers,
        trust: Trust { network_id: anchor.network_id, how: HOW },
        engine: serde_json::to_value(&network.spec.engine)?,
    })
}

/// A node that others can dial, and that stays.
fn is_offered(identity: &Identity) -> bool {
    identity.provisioned() && identity.template_hash.is_some() && !identity.replaced
}

async fn observe_genesis(
    client: &Client,
    key: &NetworkKey,
    network: &NetworkName,
    chain_id: &str,
    hash: &str,
) -> Result<Genesis, BundleError> {
    let name = network.genesis(hash);
    let wrong = |why: String| BundleError::Genesis { name: name.clone(), why };
    let map: Option<ConfigMap> = read(client, &key.namespace, &name).await?;
    let text = map.as_ref().and_then(|map| map.data.as_ref()?.get(GENESIS_FILE));
    let text = text.ok_or_else(|| wrong("the genesis is not there".to_owned()))?;
    take_genesis(text, hash, chain_id).map_err(|error| match error {
        TakeError::Hash { found, .. } => wrong(format!("it holds a genesis with SHA-256 {found}")),
        other => wrong(other.to_string()),
    })
}

/// How nodes in each member cluster are reached if their sets do not say. Who may not read that is told less.
async fn observe_defaults(client: &Client, anchor: &Anchor) -> BTreeMap<String, Exposure> {
    let mut defaults = BTreeMap::new();
    let clusters = Api::<BsnCluster>::all(client.clone());
    for name in anchor.clusters() {
        let what = || format!("get BsnCluster {name}");
        if let Ok(Some(cluster)) = bounded(what, clusters.get_opt(name)).await {
            defaults.insert(name.to_owned(), cluster.spec.defaults.exposure);
        }
    }
    defaults
}

/// A node as the hub's API server shows it.
#[derive(Debug, Default)]
struct Seen {
    service: Option<Service>,
    pod: Option<Pod>,
    slices: Vec<EndpointSlice>,
}

async fn observe_node(client: &Client, namespace: &str, node: &NodeName) -> Result<Seen, ApiError> {
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    let selector = format!("{}={node}", labels::SERVICE_NAME);
    let params = ListParams::default().labels(&selector);
    let what = || format!("list EndpointSlices of {namespace}/{node}");
    Ok(Seen {
        service: read(client, namespace, node.as_str()).await?,
        pod: read(client, namespace, &format!("{node}-0")).await?,
        slices: bounded(what, slices.list(&params)).await?.items,
    })
}

/// An address of a node, and from where it leads to it.
type Offer = (String, u16, String);

/// Where a node is reached, the farthest-reaching address first.
fn offers(
    node: &NodeName,
    namespace: &str,
    identity: &Identity,
    set: Option<&NodeSet>,
    seen: &Seen,
    defaults: &BTreeMap<String, Exposure>,
) -> Vec<Offer> {
    let given = set.into_iter().flat_map(|set| &set.external_addresses);
    let given = given.filter(|address| address.node == node.as_str());
    let mut all: Vec<Offer> = given
        .map(|address| {
            let from = "from wherever its set's externalAddresses hold".to_owned();
            (address.host.clone(), address.p2p_port, from)
        })
        .collect();
    let (inside, outside) = if identity.cluster == HUB {
        ("inside the cluster of its operator".to_owned(), of_hub(seen))
    } else {
        let default = defaults.get(&identity.cluster).copied().unwrap_or_default();
        let exposure = set.and_then(|set| set.exposure).unwrap_or(default);
        (format!("inside cluster {}", identity.cluster), of_member(exposure, seen))
    };
    all.extend(outside);
    all.push((node.service_dns(namespace), P2P_PORT, inside));
    all
}

/// How a node of the hub is reached from outside, if its Service does that.
fn of_hub(seen: &Seen) -> Vec<Offer> {
    let kind = seen.service.as_ref().and_then(|service| service.spec.as_ref()?.type_.as_deref());
    let exposure = match kind {
        Some("NodePort") => Exposure::NodePort,
        Some("LoadBalancer") => return of_balancer(seen),
        _ => return Vec::new(),
    };
    let (service, pod) = (seen.service.as_ref(), seen.pod.as_ref());
    let node = ObservedNode { exposure, service, pod, external: None };
    let reached = plan_reached(&node, |_| Err(String::new()));
    let from = || "from where the cluster's machines are reached".to_owned();
    reached.map_or_else(
        |_| Vec::new(),
        |reached| {
            let addresses = reached.addresses.iter();
            addresses.map(|address| (address.to_string(), reached.p2p, from())).collect()
        },
    )
}

/// Its load balancers, by name where they have one: an address may change.
fn of_balancer(seen: &Seen) -> Vec<Offer> {
    let status = seen.service.as_ref().and_then(|service| service.status.as_ref());
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let hosts =
        ingress.into_iter().flatten().filter_map(|one| one.hostname.clone().or(one.ip.clone()));
    hosts
        .map(|host| (host, P2P_PORT, "from where its load balancer is reached".to_owned()))
        .collect()
}

/// How a node of another cluster is reached from the hub, unless that is by its pod's own address.
fn of_member(exposure: Exposure, seen: &Seen) -> Vec<Offer> {
    if matches!(exposure, Exposure::ClusterIP | Exposure::External) {
        return Vec::new();
    }
    let mut all = Vec::new();
    for slice in &seen.slices {
        let mut ports = slice.ports.iter().flatten();
        let port = ports.find(|port| port.name.as_deref() == Some(P2P)).and_then(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        for address in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
            all.push((address.clone(), port, "from where its cluster is reached".to_owned()));
        }
    }
    all
}

fn build_peer(node: &NodeName, node_id: String, offers: Vec<Offer>) -> Option<BundledPeer> {
    let mut offers = offers.into_iter();
    let (host, port, reached) = offers.next()?;
    Some(BundledPeer {
        node: node.to_string(),
        peer: ExternalPeer { node_id, host, port },
        reached,
        others: offers.map(|(host, port, from)| (format!("{host}:{port}"), from)).collect(),
    })
}

/// A bundle that `kubectl apply` takes as it is: the genesis, and a network of this name with one full node.
fn render_bundle(bundle: &Bundle, name: &NetworkName) -> String {
    let map = format!("{name}-bundle");
    let genesis = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": map},
        "data": {GENESIS_FILE: bundle.genesis.text},
    });
    let peers: Vec<&ExternalPeer> = bundle.peers.iter().map(|peer| &peer.peer).collect();
    let network = json!({
        "apiVersion": "bsn-operator.io/v1alpha1",
        "kind": "BsnNetwork",
        "metadata": {"name": name.as_str()},
        "spec": {
            "chainId": bundle.chain_id,
            "genesis": {"from": {
                "configMapRef": {"name": map, "key": GENESIS_FILE},
                "sha256": bundle.genesis.sha256,
            }},
            "externalPeers": peers,
            "engine": bundle.engine,
            "nodeSets": [{"name": "reader", "role": "FullNode", "replicas": 1}],
        },
    });
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# What another owner needs to join chain {} with nodes of their own. Nothing in it is secret.\n\
         # From {}, network id {}.\n\
         # The genesis has SHA-256 {}:\n\
         # it tells this chain from any other. Compare it over another way than the one by which this file came.\n\
         # Peers prove who they are by their node ids; no certificate is exchanged.",
        bundle.chain_id, bundle.from, bundle.trust.network_id, bundle.genesis.sha256
    );
    let _ = write!(out, "---\n{}", yaml(&genesis));
    out.push_str("---\n# Node sets, disks and membership are the owner's own: this is one full node, to begin with.\n");
    out.push_str("# How the nodes that are named in externalPeers are reached:\n");
    for peer in &bundle.peers {
        let BundledPeer { node, peer, reached, others } = peer;
        let _ = writeln!(out, "#   {node}: {}:{}, {reached}", peer.host, peer.port);
        for (address, from) in others {
            let _ = writeln!(out, "#     or {address}, {from}");
        }
    }
    out + &yaml(&network)
}

/// A document as YAML; as JSON, which is YAML too, if a text in it would not come back as it was.
fn yaml(document: &Value) -> String {
    let text = serde_saphyr::to_string(document).unwrap_or_default();
    let exact = serde_saphyr::from_str::<Value>(&text).is_ok_and(|read| read == *document);
    let text = if exact { text } else { document.to_string() };
    if text.ends_with('\n') { text } else { text + "\n" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::parse_networks;
    use crate::controller::network::validate::validate_network;

    fn bundle(text: &str) -> Bundle {
        let node = NodeName::from_object("city-ledger-hangzhou-0");
        let offers = vec![
            (
                "203.0.113.9".to_owned(),
                30656,
                "from where the cluster's machines are reached".to_owned(),
            ),
            (node.service_dns("ledger"), P2P_PORT, "inside the cluster of its operator".to_owned()),
        ];
        let engine = json!({"cometbft": {"version": "0.38.25", "app": {"persistentKvstore": {}}}});
        Bundle {
            from: NetworkKey { namespace: "ledger".into(), name: "city-ledger".into() },
            chain_id: "city-ledger-1".into(),
            genesis: BundledGenesis { sha256: "5e".repeat(32), text: text.to_owned() },
            peers: build_peer(&node, "ab".repeat(20), offers).into_iter().collect(),
            trust: Trust { network_id: "n1".into(), how: HOW },
            engine,
        }
    }

    const GENESIS: &str =
        "{\n  \"genesis_time\": \"2026-01-01T00:00:00Z\",\n  \"chain_id\": \"city-ledger-1\"\n}\n";

    #[test]
    fn a_bundle_is_applied_as_it_is_printed() {
        let name = NetworkName::parse("reader").unwrap();
        let text = render_bundle(&bundle(GENESIS), &name);
        insta::assert_snapshot!(text);
        let network = &parse_networks(&text, "bundle").unwrap()[0];
        let validated = validate_network(network, "").unwrap();
        assert_eq!(validated.desired.joins, Some("5e".repeat(32)));
        let address = format!("{}@203.0.113.9:30656", "ab".repeat(20));
        assert_eq!(validated.external_peers[0].address(), address);
    }

    #[test]
    fn the_genesis_comes_out_byte_for_byte_whatever_is_in_it() {
        let name = NetworkName::parse("reader").unwrap();
        for genesis in [
            GENESIS,
            "{}",
            "{}\n\n\n",
            " {\"a\":\"\\t\"}\r\n",
            "\t{\"é\": \"---\"} \n",
            "# x\n--- \n",
        ] {
            let text = render_bundle(&bundle(genesis), &name);
            let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            let map = documents.iter().find(|document| document["kind"] == "ConfigMap").unwrap();
            assert_eq!(map["data"][GENESIS_FILE], *genesis, "{text}");
        }
    }

    #[test]
    fn the_address_that_reaches_farthest_comes_first() {
        let node = NodeName::from_object("net-a-0");
        let mut identity: Identity =
            serde_json::from_value(json!({"id": "i", "set": "a", "role": "Validator"})).unwrap();
        let set = |extra: Value| -> NodeSet {
            let mut set = json!({"name": "a", "role": "Validator", "replicas": 1});
            set.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            serde_json::from_value(set).unwrap()
        };
        let hosts = |identity: &Identity, set: &NodeSet, seen: &Seen| -> Vec<String> {
            let none = BTreeMap::new();
            let offers = offers(&node, "ns", identity, Some(set), seen, &none);
            offers.into_iter().map(|(host, port, _)| format!("{host}:{port}")).collect()
        };
        let inside = "net-a-0.ns.svc:26656";
        assert_eq!(hosts(&identity, &set(json!({})), &Seen::default()), [inside]);
        let given = json!({"exposure": "External", "externalAddresses": [{"node": "net-a-0", "host": "n.example", "p2pPort": 7}]});
        assert_eq!(hosts(&identity, &set(given), &Seen::default()), ["n.example:7", inside]);
        let service: Service = serde_json::from_value(json!({
            "spec": {"type": "NodePort", "ports": [{"name": "p2p", "port": 26656, "nodePort": 30656}, {"name": "gateway", "port": 8443, "nodePort": 30843}]},
        }))
        .unwrap();
        let pod =
            serde_json::from_value(json!({"status": {"phase": "Running", "hostIP": "192.0.2.3"}}))
                .unwrap();
        let seen = Seen { service: Some(service), pod: Some(pod), slices: Vec::new() };
        assert_eq!(hosts(&identity, &set(json!({})), &seen), ["192.0.2.3:30656", inside]);
        let balancer: Service = serde_json::from_value(json!({
            "spec": {"type": "LoadBalancer"},
            "status": {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}},
        }))
        .unwrap();
        let seen = Seen { service: Some(balancer), ..Seen::default() };
        assert_eq!(hosts(&identity, &set(json!({})), &seen), ["lb.example:26656", inside]);
        // In another cluster: as the hub reaches it, unless that is by its pod's own address.
        identity.cluster = "beijing".to_owned();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "addressType": "IPv4", "metadata": {},
            "endpoints": [{"addresses": ["198.51.100.4"]}],
            "ports": [{"name": "p2p", "port": 31656}],
        }))
        .unwrap();
        let seen = Seen { slices: vec![slice], ..Seen::default() };
        let node_port = set(json!({"cluster": "beijing", "exposure": "NodePort"}));
        assert_eq!(hosts(&identity, &node_port, &seen), ["198.51.100.4:31656", inside]);
        assert_eq!(hosts(&identity, &set(json!({"cluster": "beijing"})), &seen), [inside]);
    }
}
