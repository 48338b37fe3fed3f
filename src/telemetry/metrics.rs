//! Metrics in the Prometheus text format.
//!
//! Counters are written where things happen. What is known about networks is read from the views at
//! the moment of a scrape, so it is never older than the views and vanishes with the network.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::cluster::Clusters;
use crate::cluster::registry::{ClusterHandle, HUB};
use crate::view::{Liveness, Memberships, NetworkKey, NetworkView, NodeView, Views};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    resource: String,
    code: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    controller: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Category {
    controller: &'static str,
    category: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Evidence {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pass {
    controller: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepKind {
    step: &'static str,
}

/// From a pass that only compares caches to one that waits for the API server. Seconds.
const PASS_BUCKETS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0];

/// Around the second within which a step should follow what it waited for.
const REACTION_BUCKETS: [f64; 8] = [0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 5.0, 15.0];

/// All metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    requests: Family<Request, Counter>,
    reconciles: Family<Outcome, Counter>,
    errors: Family<Category, Counter>,
    passes: Family<Pass, Histogram>,
    evidence: Family<Evidence, Counter>,
    steps: Family<StepKind, Counter>,
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
            registry: Arc::new(Mutex::new(Registry::with_prefix("bsn"))),
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
        registry.register(
            "api_requests",
            "Requests to the Kubernetes API; code 0 = no answer",
            metrics.requests.clone(),
        );
        registry.register("reconciles", "Passes of the controllers", metrics.reconciles.clone());
        registry.register(
            "reconcile_errors",
            "Passes that failed, by kind of error",
            metrics.errors.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Duration of the controllers' passes",
            Unit::Seconds,
            metrics.passes.clone(),
        );
        registry.register(
            "evidence_requests",
            "Questions to the gateways of nodes",
            metrics.evidence.clone(),
        );
        registry.register("steps", "Steps of the planner that were taken", metrics.steps.clone());
        registry.register_with_unit(
            "step_reaction",
            "From the block that proves a change of members to its step's end, by the voters' clocks",
            Unit::Seconds,
            metrics.reactions.clone(),
        );
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        drop(registry);
        metrics
    }

    /// Counts a request to the Kubernetes API.
    pub fn api_request(&self, verb: &'static str, resource: &str, code: u16) {
        let labels = Request { verb, resource: resource.to_owned(), code: code.into() };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts a pass of a controller.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Outcome { controller, outcome }).inc();
        self.passes.get_or_create(&Pass { controller }).observe(took.as_secs_f64());
    }

    /// Counts a pass that failed.
    pub fn reconcile_error(&self, controller: &'static str, category: &'static str) {
        self.errors.get_or_create(&Category { controller, category }).inc();
    }

    /// Counts a question to a node's gateway.
    pub fn evidence_request(&self, outcome: &'static str) {
        self.evidence.get_or_create(&Evidence { outcome }).inc();
    }

    /// Counts a step that was taken.
    pub fn step_taken(&self, step: &'static str) {
        self.steps.get_or_create(&StepKind { step }).inc();
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
        self.registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register_collector(Box::new(ViewCollector(views.clone())));
    }

    /// Shows what `clusters` holds at the moment of each scrape.
    pub fn watch_clusters(&self, clusters: &Clusters) {
        self.registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register_collector(Box::new(ClusterCollector(clusters.clone())));
    }

    /// Shows what `memberships` holds at the moment of each scrape.
    pub fn watch_memberships(&self, memberships: &Memberships) {
        self.registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register_collector(Box::new(ShareCollector(memberships.clone())));
    }

    /// Everything, in the OpenMetrics text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
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

const OF_CLUSTER: &[(&str, &str, OfCluster)] = &[
    (
        "cluster_usable",
        "1 = the cluster answers and the operator may do what it needs",
        |cluster| Some(f64::from(u8::from(cluster.standing.is_ok()))),
    ),
    (
        "cluster_last_contact_age_seconds",
        "Time since the cluster's API server answered",
        |cluster| cluster.last_contact.map(|at| at.elapsed().as_secs_f64()),
    ),
];

impl Collector for ClusterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let clusters = self.0.all();
        for (name, help, value) in OF_CLUSTER {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for cluster in clusters.iter().filter(|cluster| cluster.name != HUB) {
                let Some(value) = value(cluster) else { continue };
                let labels = [("cluster", cluster.name.as_str())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// What drains may take of each network that spans clusters.
#[derive(Debug)]
struct ShareCollector(Memberships);

impl Collector for ShareCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help =
            "Validators of the network that may be evicted in the cluster at once, as recorded";
        let mut family =
            encoder.encode_descriptor("disruption_share", help, None, MetricType::Gauge)?;
        for (key, disruption) in self.0.disruptions() {
            for (cluster, share) in &disruption.shares {
                let cluster = if cluster == HUB { "hub" } else { cluster };
                let labels = [
                    ("namespace", key.namespace.as_str()),
                    ("network", key.name.as_str()),
                    ("cluster", cluster),
                ];
                ConstGauge::new(f64::from(*share)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
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

// Heights and powers stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

const OF_NETWORK: &[(&str, &str, OfNetwork)] = &[
    ("chain_height", "Highest block any node reported", |view| {
        (view.head > 0).then(|| number(view.head))
    }),
    ("chain_live", "1 = blocks advance, 0 = they do not; absent = not known", |view| {
        match view.liveness {
            Liveness::Live => Some(1.0),
            Liveness::Standing | Liveness::Frozen => Some(0.0),
            Liveness::Silent | Liveness::Unknown => None,
        }
    }),
    ("chain_head_age_seconds", "Time since the head advanced", |view| {
        view.formed.then_some(view.head_age_seconds)
    }),
    ("chain_block_interval_seconds", "Average time between blocks", |view| {
        view.block_interval_seconds
    }),
];

const OF_NODE: &[(&str, &str, OfNode)] = &[
    ("node_height", "Newest block of the node", |node| node.height.map(number)),
    ("node_in_sync", "1 = the node follows the head", |node| {
        node.height.map(|_| f64::from(u8::from(node.in_sync)))
    }),
    (
        "node_signed_blocks",
        "Of the newest 12 final blocks, those it signed, as others see it",
        |node| node.signed.map(number),
    ),
    ("node_peers", "Connected peers", |node| node.peers.map(number)),
    ("node_voting_power", "Voting power; 0 = does not vote", |node| node.voting_power.map(number)),
    ("node_evidence_age_seconds", "Time since the node's gateway answered", |node| {
        node.evidence_age_seconds
    }),
    (
        "node_certificate_expiry_timestamp_seconds",
        "When the certificate that the node serves ends (Unix time)",
        certificate_end,
    ),
];

impl Collector for ViewCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let views = self.0.all();
        for (name, help, value) in OF_NETWORK {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (NetworkKey { namespace, name: network }, view) in &views {
                let Some(value) = value(view) else { continue };
                let labels = [("namespace", namespace.as_str()), ("network", network.as_str())];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in OF_NODE {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (NetworkKey { namespace, name: network }, view) in &views {
                for node in &view.nodes {
                    let Some(value) = value(node) else { continue };
                    let labels = [
                        ("namespace", namespace.as_str()),
                        ("network", network.as_str()),
                        ("node", node.name.as_str()),
                    ];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> NetworkView {
        NetworkView {
            chain_id: "c".into(),
            formed: true,
            head: 7,
            liveness: Liveness::Unknown,
            head_age_seconds: 1.5,
            block_interval_seconds: None,
            quorum_power: 3,
            total_power: 4,
            margin: 1,
            nodes: vec![NodeView {
                name: "net-a-0".into(),
                cluster: HUB.into(),
                role: "Validator".into(),
                via: None,
                evidence_age_seconds: None,
                problem: None,
                height: None,
                lag: None,
                in_sync: false,
                peers: None,
                voting_power: None,
                version: None,
                signed: None,
                template_hash: None,
                guard: None,
                certificate_ends: Some("1970-01-01T00:01:00Z".into()),
            }],
        }
    }

    #[test]
    fn what_is_not_known_is_absent_and_not_zero() {
        let metrics = Metrics::new();
        let views = Views::default();
        metrics.watch_views(&views);
        let key = NetworkKey { namespace: "ledger".into(), name: "net".into() };
        views.put(key, view());
        metrics.api_request("get", "secrets", 200);
        let text = metrics.encode().unwrap();
        for line in [
            r#"bsn_chain_height{namespace="ledger",network="net"} 7.0"#,
            r#"bsn_api_requests_total{verb="get",resource="secrets",code="200"} 1"#,
            r#"bsn_node_certificate_expiry_timestamp_seconds{namespace="ledger",network="net",node="net-a-0"} 60.0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("bsn_chain_live{") && !text.contains("bsn_node_in_sync{"), "{text}");
    }
}
