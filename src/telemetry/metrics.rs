//! Metrics in the Prometheus text format.
//!
//! Counters are written where things happen. What is known about networks is read from the views at
//! the moment of a scrape, so it is never older than the views and vanishes with the network.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::reflector::Store;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::definitions::{self, Definition, PREFIX};
use crate::api::conditions::{NETWORK_TYPES, Reason, find};
use crate::cluster::Clusters;
use crate::cluster::registry::{ClusterHandle, HUB};
use crate::cluster::watches::GuardedNetwork;
use crate::controller::Refusal;
use crate::view::{Liveness, Memberships, NetworkKey, NetworkView, NodeView, Views};

/// A series' labels: keys from the metric's definition, values in their order.
type Labels = Vec<(&'static str, String)>;

fn labelled<const N: usize>(of: &Definition, values: [&str; N]) -> Labels {
    of.labels.iter().copied().zip(values.map(str::to_owned)).collect()
}

/// From a pass that only compares caches to one that waits for the API server. Seconds.
const PASS_BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0];

/// Around the second within which a step should follow what it waited for.
const REACTION_BUCKETS: [f64; 8] = [0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0];

/// All metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<Labels, Counter>,
    reconciles: Family<Labels, Counter>,
    errors: Family<Labels, Counter>,
    passes: Family<Labels, Histogram>,
    evidence: Family<Labels, Counter>,
    steps: Family<Labels, Counter>,
    reactions: Histogram,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that count from zero.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Arc::new(Mutex::new(Registry::with_prefix(PREFIX))),
            requests: Family::default(),
            reconciles: Family::default(),
            errors: Family::default(),
            passes: Family::new_with_constructor(|| Histogram::new(PASS_BUCKETS)),
            evidence: Family::default(),
            steps: Family::default(),
            reactions: Histogram::new(REACTION_BUCKETS),
            leader: Gauge::default(),
        };
        let mut registry = metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
        register(&mut registry, &definitions::API_REQUESTS, metrics.requests.clone());
        register(&mut registry, &definitions::RECONCILES, metrics.reconciles.clone());
        register(&mut registry, &definitions::RECONCILE_ERRORS, metrics.errors.clone());
        register(&mut registry, &definitions::RECONCILE_DURATION, metrics.passes.clone());
        register(&mut registry, &definitions::EVIDENCE_REQUESTS, metrics.evidence.clone());
        register(&mut registry, &definitions::STEPS, metrics.steps.clone());
        register(&mut registry, &definitions::STEP_REACTION, metrics.reactions.clone());
        register(&mut registry, &definitions::LEADER, metrics.leader.clone());
        drop(registry);
        metrics
    }

    /// Counts a request to the Kubernetes API.
    pub fn api_request(&self, verb: &'static str, resource: &str, code: u16) {
        let labels = labelled(&definitions::API_REQUESTS, [verb, resource, &code.to_string()]);
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts a pass of a controller.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, took: Duration) {
        let labels = labelled(&definitions::RECONCILES, [controller, outcome]);
        self.reconciles.get_or_create(&labels).inc();
        let labels = labelled(&definitions::RECONCILE_DURATION, [controller]);
        self.passes.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a pass that failed.
    pub fn reconcile_error(&self, controller: &'static str, category: &'static str) {
        let labels = labelled(&definitions::RECONCILE_ERRORS, [controller, category]);
        self.errors.get_or_create(&labels).inc();
    }

    /// Counts a question to a node's gateway.
    pub fn evidence_request(&self, outcome: &'static str) {
        let labels = labelled(&definitions::EVIDENCE_REQUESTS, [outcome]);
        self.evidence.get_or_create(&labels).inc();
    }

    /// Counts a step that was taken.
    pub fn step_taken(&self, step: &'static str) {
        self.steps.get_or_create(&labelled(&definitions::STEPS, [step])).inc();
    }

    /// Observes how soon a step was ended.
    pub fn step_reaction(&self, took: Duration) {
        self.reactions.observe(took.as_secs_f64());
    }

    /// Says whether this replica leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    /// Shows what `views` hold at the moment of each scrape.
    pub fn watch_views(&self, views: &Views) {
        self.collect(ViewCollector(views.clone()));
    }

    /// Shows what the status of the networks in `store` says at the moment of each scrape.
    pub fn watch_networks(&self, store: &Store<GuardedNetwork>) {
        self.collect(ConditionCollector(store.clone()));
    }

    /// Shows what `clusters` holds at the moment of each scrape.
    pub fn watch_clusters(&self, clusters: &Clusters) {
        self.collect(ClusterCollector(clusters.clone()));
    }

    /// Shows what `memberships` holds at the moment of each scrape.
    pub fn watch_memberships(&self, memberships: &Memberships) {
        self.collect(ShareCollector(memberships.clone()));
    }

    fn collect(&self, collector: impl Collector) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register_collector(Box::new(collector));
    }

    /// Everything, in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

fn register(registry: &mut Registry, of: &Definition, metric: impl Metric) {
    match &of.unit {
        Some(unit) => registry.register_with_unit(of.name, of.help, unit.clone(), metric),
        None => registry.register(of.name, of.help, metric),
    }
}

/// Writes a gauge with all its series: the values of their labels, and the number.
fn write_gauge<'a, const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    of: &Definition,
    series: impl IntoIterator<Item = ([&'a str; N], f64)>,
) -> fmt::Result {
    // The full stop is what the registry puts after the help of other metrics.
    let help = format!("{}.", of.help);
    let mut family = encoder.encode_descriptor(of.name, &help, of.unit.as_ref(), of.kind)?;
    for (values, number) in series {
        let labels: Vec<(&str, &str)> = of.labels.iter().copied().zip(values).collect();
        ConstGauge::new(number).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Member clusters; the hub is not asked whether it answers.
struct ClusterCollector(Clusters);

impl fmt::Debug for ClusterCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterCollector")
    }
}

/// One number about a cluster; `None` = not known, then the series is absent.
type OfCluster = fn(&ClusterHandle) -> Option<f64>;

static OF_CLUSTER: &[(&Definition, OfCluster)] = &[
    (&definitions::CLUSTER_USABLE, |cluster| Some(truth(cluster.standing.is_ok()))),
    (&definitions::CLUSTER_LAST_CONTACT_AGE, |cluster| {
        cluster.last_contact.map(|at| at.elapsed().as_secs_f64())
    }),
];

impl Collector for ClusterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let clusters = self.0.all();
        for (of, value) in OF_CLUSTER {
            let members = clusters.iter().filter(|cluster| cluster.name != HUB);
            let series =
                members.filter_map(|cluster| Some(([cluster.name.as_str()], value(cluster)?)));
            write_gauge(&mut encoder, of, series)?;
        }
        Ok(())
    }
}

/// What drains may take of each network that spans clusters.
#[derive(Debug)]
struct ShareCollector(Memberships);

impl Collector for ShareCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let disruptions = self.0.disruptions();
        let series = disruptions.iter().flat_map(|(key, disruption)| {
            disruption.shares.iter().map(move |(cluster, share)| {
                let cluster = if cluster == HUB { "hub" } else { cluster };
                ([key.namespace.as_str(), key.name.as_str(), cluster], f64::from(*share))
            })
        });
        write_gauge(&mut encoder, &definitions::DISRUPTION_SHARE, series)
    }
}

/// What the networks' status says, as the hub's cache has it: it outlives a restart of the operator, which the views do
/// not.
struct ConditionCollector(Store<GuardedNetwork>);

impl fmt::Debug for ConditionCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConditionCollector")
    }
}

/// A network's conditions that are known, by type.
fn known_conditions(network: &GuardedNetwork) -> Vec<(&'static str, bool)> {
    match &network.0 {
        Ok(network) => {
            let status = network.status.as_ref();
            let conditions = status.map_or(&[][..], |status| &status.conditions);
            let known = |kind: &'static str| match find(conditions, kind)?.status.as_str() {
                "True" => Some((kind, true)),
                "False" => Some((kind, false)),
                _ => None,
            };
            NETWORK_TYPES.into_iter().filter_map(known).collect()
        }
        // Its status cannot be read either; this is what the controller writes into it.
        Err(_) => {
            let states = Refusal::new(Reason::Unparsable, "").states();
            states.into_iter().filter_map(|state| Some((state.kind, state.status?))).collect()
        }
    }
}

impl Collector for ConditionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let networks: Vec<_> = self
            .0
            .state()
            .into_iter()
            .map(|network| {
                (
                    network.namespace().unwrap_or_default(),
                    network.name_any(),
                    known_conditions(&network),
                )
            })
            .collect();
        let series = networks.iter().flat_map(|(namespace, network, conditions)| {
            conditions
                .iter()
                .map(move |(kind, is)| ([namespace.as_str(), network.as_str(), *kind], truth(*is)))
        });
        write_gauge(&mut encoder, &definitions::NETWORK_CONDITION, series)
    }
}

#[derive(Debug)]
struct ViewCollector(Views);

/// One number about a network; `None` = not known, then the series is absent.
type OfNetwork = fn(&NetworkView) -> Option<f64>;
type OfNode = fn(&NodeView) -> Option<f64>;

fn certificate_end(node: &NodeView) -> Option<f64> {
    let end: Timestamp = node.certificate_ends.as_ref()?.parse().ok()?;
    Some(end.as_duration().as_secs_f64())
}

/// By how many minor versions the agents in a node's pod are older than this operator.
fn agents_behind(node: &NodeView) -> Option<f64> {
    let own = minor_versions(env!("CARGO_PKG_VERSION"))?;
    Some(number(own.saturating_sub(minor_versions(node.agents.as_deref()?)?)))
}

/// Minor versions up to this one (`1.2.3`), as if each major version had a hundred; `None` = it is no version.
fn minor_versions(version: &str) -> Option<u64> {
    let mut parts = version.split('.').map(|part| part.parse::<u64>().ok());
    Some(parts.next()?? * 100 + parts.next()??)
}

// Heights and powers stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    number(value.try_into().unwrap_or(u64::MAX))
}

static OF_NETWORK: &[(&Definition, OfNetwork)] = &[
    (&definitions::CHAIN_HEIGHT, |view| (view.head > 0).then(|| number(view.head))),
    (&definitions::CHAIN_LIVE, |view| match view.liveness {
        Liveness::Live => Some(1.0),
        Liveness::Standing | Liveness::Frozen => Some(0.0),
        Liveness::Silent | Liveness::Unknown => None,
    }),
    (&definitions::CHAIN_HEAD_AGE, |view| view.formed.then_some(view.head_age_seconds)),
    (&definitions::CHAIN_BLOCK_INTERVAL, |view| view.block_interval_seconds),
    // Without a power nobody was seen to vote, and the margin of nobody means nothing.
    (&definitions::CHAIN_MARGIN, |view| (view.total_power > 0).then(|| count(view.margin))),
    (&definitions::CHAIN_MARGIN_LEFT, |view| view.margin_left.map(count)),
];

static OF_NODE: &[(&Definition, OfNode)] = &[
    (&definitions::NODE_HEIGHT, |node| node.height.map(number)),
    (&definitions::NODE_IN_SYNC, |node| node.height.map(|_| truth(node.in_sync))),
    (&definitions::NODE_SIGNED_BLOCKS, |node| node.signed.map(number)),
    (&definitions::NODE_PEERS, |node| node.peers.map(number)),
    (&definitions::NODE_VOTING_POWER, |node| node.voting_power.map(number)),
    (&definitions::NODE_EVIDENCE_AGE, |node| node.evidence_age_seconds),
    (&definitions::NODE_CERTIFICATE_EXPIRY, certificate_end),
    (&definitions::NODE_AGENT_VERSIONS_BEHIND, agents_behind),
];

impl Collector for ViewCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let views = self.0.all();
        for (of, value) in OF_NETWORK {
            let series = views.iter().filter_map(|(NetworkKey { namespace, name }, view)| {
                Some(([namespace.as_str(), name.as_str()], value(view)?))
            });
            write_gauge(&mut encoder, of, series)?;
        }
        for (of, value) in OF_NODE {
            let series = views.iter().flat_map(|(NetworkKey { namespace, name }, view)| {
                view.nodes.iter().filter_map(move |node| {
                    Some(([namespace.as_str(), name.as_str(), node.name.as_str()], value(node)?))
                })
            });
            write_gauge(&mut encoder, of, series)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
