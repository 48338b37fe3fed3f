//! Asks every node's gateway for evidence, again and again, and keeps what it says.
//!
//! It writes nothing to the API server. When something a status depends on has changed, it asks the
//! controllers for a look.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bsn_core::anchor::Role;
use bsn_core::evidence::{
    ChainLiveness, EngineReport, GuardReport, GuardState, HeadTrack, MIN_WINDOW, NodeEvidence,
    frozen, in_sync,
};
use futures::StreamExt;
use tokio::time::{Instant, MissedTickBehavior};

use super::client::{EvidenceError, fetch_evidence};
use crate::build::role_text;
use crate::cluster::watches::cached;
use crate::cluster::{Caches, Triggers};
use crate::controller::context::Credentials;
use crate::labels::GATEWAY_PORT;
use crate::telemetry::Metrics;
use crate::view::{Liveness, NetworkKey, NetworkView, NodeView, Views};

/// Time between two rounds of questions.
const INTERVAL: Duration = Duration::from_secs(2);
/// Longest a gateway may take to answer. Its engine is on the same machine.
const DEADLINE: Duration = Duration::from_secs(2);
/// Questions under way at once; more gain nothing and make all of them late.
const CONCURRENCY: usize = 16;

/// A node to ask.
#[derive(Clone)]
pub struct Target {
    /// Its name, also that of its Service.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Address of its consensus key.
    pub address: String,
    /// The name in its certificate.
    pub server_name: String,
    /// The operator's certificate and the node's pinned key.
    pub tls: Arc<rustls::ClientConfig>,
}

/// A network to watch.
#[derive(Clone)]
pub struct NetworkTargets {
    /// Its random id.
    pub network_id: String,
    /// Id of its chain.
    pub chain_id: String,
    /// Nodes may start.
    pub formed: bool,
    /// Power that must agree on a block.
    pub quorum_power: u64,
    /// Sum of all powers.
    pub total_power: u64,
    /// How many validators may be down.
    pub margin: usize,
    /// Its nodes.
    pub nodes: Vec<Target>,
}

/// All networks to watch.
#[derive(Clone, Default)]
pub struct Targets(Arc<RwLock<BTreeMap<NetworkKey, Arc<NetworkTargets>>>>);

impl Targets {
    /// Watches a network from now on, in this way.
    pub fn put(&self, key: NetworkKey, targets: NetworkTargets) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::new(targets));
    }

    /// Stops watching a network.
    pub fn remove(&self, key: &NetworkKey) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Stops watching all networks that `keep` does not name.
    fn retain(&self, keep: impl Fn(&NetworkKey) -> bool) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }

    fn all(&self) -> BTreeMap<NetworkKey, Arc<NetworkTargets>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is known of a node, as far as a status may depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// Watched too briefly to say.
    Unknown,
    /// No evidence for longer than a moment; with the reason.
    Silent(String),
    /// It answers and trails the chain.
    Behind,
    /// It follows the chain.
    InSync,
}

/// Reads a node's observation from its view.
pub fn judge(view: Option<&NodeView>) -> Observation {
    match view {
        Some(NodeView { problem: Some(why), .. }) => Observation::Silent(why.clone()),
        Some(node) if node.in_sync => Observation::InSync,
        Some(NodeView { height: Some(_), .. }) => Observation::Behind,
        Some(NodeView { height: None, .. }) | None => Observation::Unknown,
    }
}

struct NodeTrack {
    began: Instant,
    last: Option<(Instant, NodeEvidence)>,
    failure: Option<String>,
}

#[derive(Default)]
struct NetworkTrack {
    network_id: String,
    head: HeadTrack,
    nodes: BTreeMap<String, NodeTrack>,
}

/// What a node's status, and the next step of its network, depend on.
#[derive(PartialEq)]
struct Seen {
    observation: Observation,
    guard: Option<GuardReport>,
    template_hash: Option<String>,
}

impl Seen {
    fn of(node: &NodeView) -> Self {
        Self {
            observation: judge(Some(node)),
            guard: node.guard.clone(),
            template_hash: node.template_hash.clone(),
        }
    }
}

/// What a status depends on: if it changes, the controllers look.
#[derive(PartialEq)]
struct Summary {
    liveness: Liveness,
    nodes: BTreeMap<String, Seen>,
}

impl Summary {
    fn of(view: &NetworkView) -> Self {
        Self {
            liveness: view.liveness,
            nodes: view.nodes.iter().map(|node| (node.name.clone(), Seen::of(node))).collect(),
        }
    }
}

/// The poller.
pub struct Poller {
    /// What to watch.
    pub targets: Targets,
    /// Where to show it.
    pub views: Views,
    /// Addresses of the Services.
    pub caches: Caches,
    /// Whom to tell.
    pub triggers: Triggers,
    /// Certificates made in memory.
    pub credentials: Credentials,
    /// Counters.
    pub metrics: Metrics,
}

type Answer = Result<NodeEvidence, EvidenceError>;

impl Poller {
    /// Polls until the process ends.
    pub async fn run(self) {
        let start = Instant::now();
        let mut tracks: BTreeMap<NetworkKey, NetworkTrack> = BTreeMap::new();
        let mut summaries: BTreeMap<NetworkKey, Summary> = BTreeMap::new();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A network that is gone causes no pass of a controller that could say so.
            let exists = |key: &NetworkKey| {
                cached(&self.caches.networks, &key.namespace, &key.name).is_some()
            };
            self.targets.retain(exists);
            self.credentials.retain(exists);
            let targets = self.targets.all();
            tracks.retain(|key, _| targets.contains_key(key));
            summaries.retain(|key, _| targets.contains_key(key));
            self.views.retain(|key| targets.contains_key(key));
            let answers = self.ask(&targets).await;
            for (key, network) in targets {
                let track = tracks.entry(key.clone()).or_default();
                if track.network_id != network.network_id {
                    // Another network of this name: what was seen of the old one is not its past.
                    *track = NetworkTrack {
                        network_id: network.network_id.clone(),
                        ..NetworkTrack::default()
                    };
                }
                let mut mine = answers.iter().filter(|(of, ..)| *of == key);
                let view = track.record(&network, &mut mine, start);
                let summary = Summary::of(&view);
                self.views.put(key.clone(), view);
                self.tell(&key, summaries.get(&key), &summary);
                summaries.insert(key, summary);
            }
        }
    }

    async fn ask(
        &self,
        targets: &BTreeMap<NetworkKey, Arc<NetworkTargets>>,
    ) -> Vec<(NetworkKey, String, Answer)> {
        let questions =
            targets.iter().filter(|(_, network)| network.formed).flat_map(|(key, network)| {
                network.nodes.iter().map(move |node| (key.clone(), node.clone()))
            });
        futures::stream::iter(questions)
            .map(|(key, node)| async move {
                let answer = self.ask_node(&key, &node).await;
                let outcome = answer.as_ref().map_or_else(EvidenceError::category, |_| "ok");
                self.metrics.evidence_request(outcome);
                (key, node.name, answer)
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await
    }

    async fn ask_node(&self, key: &NetworkKey, node: &Target) -> Answer {
        // The Service's own address rather than its name: one thing less that can fail, and the
        // certificate is checked against the pinned key either way.
        let address = cached(&self.caches.services, &key.namespace, &node.name)
            .and_then(|service| service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok())
            .map(|ip| SocketAddr::new(ip, GATEWAY_PORT))
            .ok_or(EvidenceError::NoAddress)?;
        fetch_evidence(address, &node.server_name, node.tls.clone(), DEADLINE).await
    }

    fn tell(&self, key: &NetworkKey, before: Option<&Summary>, now: &Summary) {
        if before == Some(now) {
            return;
        }
        self.triggers.network(&key.namespace, &key.name);
        for (node, observation) in &now.nodes {
            if before.and_then(|before| before.nodes.get(node)) != Some(observation) {
                self.triggers.node(&key.namespace, node);
            }
        }
    }
}

impl NetworkTrack {
    fn record(
        &mut self,
        network: &NetworkTargets,
        answers: &mut dyn Iterator<Item = &'_ (NetworkKey, String, Answer)>,
        start: Instant,
    ) -> NetworkView {
        let now = Instant::now();
        for (_, name, answer) in answers {
            let node = self.nodes.entry(name.clone()).or_insert_with(|| NodeTrack {
                began: now,
                last: None,
                failure: None,
            });
            match answer {
                Ok(evidence) => {
                    node.failure = None;
                    node.last = Some((now, evidence.clone()));
                }
                Err(error) => node.failure = Some(error.to_string()),
            }
        }
        self.nodes.retain(|name, _| network.nodes.iter().any(|node| node.name == *name));

        let elapsed = now.duration_since(start);
        let head = self
            .nodes
            .values()
            .filter_map(|node| node.last.as_ref())
            .filter_map(|(_, evidence)| evidence.engine.report())
            // A node of another chain says nothing about this one.
            .filter(|report| report.chain_id == network.chain_id)
            .map(|report| report.height)
            .max()
            .unwrap_or(0);
        if network.formed {
            if head > 0 {
                self.head.observe(head, elapsed);
            } else {
                self.head.observe_silence(elapsed);
            }
        }
        let head = self.head.height();
        NetworkView {
            chain_id: network.chain_id.clone(),
            formed: network.formed,
            head,
            liveness: match self.head.liveness(elapsed) {
                ChainLiveness::Live => Liveness::Live,
                ChainLiveness::Standing
                    if self.reports(&network.chain_id, now).next().is_none() =>
                {
                    Liveness::Silent
                }
                ChainLiveness::Standing if frozen(self.reports(&network.chain_id, now)) => {
                    Liveness::Frozen
                }
                ChainLiveness::Standing => Liveness::Standing,
                ChainLiveness::Unknown => Liveness::Unknown,
            },
            head_age_seconds: self.head.age(elapsed).as_secs_f64(),
            block_interval_seconds: self.head.interval().map(|interval| interval.as_secs_f64()),
            quorum_power: network.quorum_power,
            total_power: network.total_power,
            margin: network.margin,
            nodes: network
                .nodes
                .iter()
                .map(|target| self.node_view(target, &network.chain_id, head, now))
                .collect(),
        }
    }

    /// How many blocks a voter signed, by the reports of the others; of itself only if it is alone.
    fn signed(&self, target: &Target, chain_id: &str, now: Instant) -> Option<u64> {
        if target.role != Role::Validator {
            return None;
        }
        let alone = self.nodes.len() == 1;
        self.reports(chain_id, now)
            .filter(|report| alone || report.address != target.address)
            .filter_map(|report| report.signed.as_ref())
            .map(|signed| signed.get(&target.address).copied().unwrap_or(0))
            .max()
    }

    /// What nodes of this chain report at the moment.
    fn reports<'a>(
        &'a self,
        chain_id: &'a str,
        now: Instant,
    ) -> impl Iterator<Item = &'a EngineReport> {
        self.nodes
            .values()
            .filter_map(|node| node.last.as_ref())
            .filter(move |(at, _)| now.duration_since(*at) < MIN_WINDOW)
            .filter_map(|(_, evidence)| evidence.engine.report())
            .filter(move |report| report.chain_id == chain_id)
    }

    fn node_view(&self, target: &Target, chain_id: &str, head: u64, now: Instant) -> NodeView {
        let track = self.nodes.get(&target.name);
        let last = track.and_then(|track| track.last.as_ref());
        let report = last.and_then(|(_, evidence)| evidence.engine.report());
        // A node that restarts is silent for a moment; only a longer silence is worth a word.
        let silent_for =
            track.map(|track| now.duration_since(last.map_or(track.began, |(at, _)| *at)));
        let silence = silent_for
            .filter(|silence| *silence >= MIN_WINDOW)
            .map(|_| track.and_then(|track| track.failure.clone()).unwrap_or_default());
        let engine_silence = last.and_then(|(_, evidence)| match &evidence.engine {
            bsn_core::evidence::EngineAnswer::Silent(why) => Some(match &evidence.guard {
                Some(guard) if guard.state != GuardState::Passed => {
                    format!("not started: {}", guard.message)
                }
                _ => format!("the engine does not answer: {why}"),
            }),
            bsn_core::evidence::EngineAnswer::Report(report) if report.chain_id != chain_id => {
                Some(format!("it runs chain {} instead of {chain_id}", report.chain_id))
            }
            bsn_core::evidence::EngineAnswer::Report(_) => None,
        });
        NodeView {
            name: target.name.clone(),
            role: role_text(target.role).to_owned(),
            evidence_age_seconds: last.map(|(at, _)| now.duration_since(*at).as_secs_f64()),
            height: report.map(|report| report.height),
            lag: report.map(|report| head.saturating_sub(report.height)),
            in_sync: silence.is_none()
                && engine_silence.is_none()
                && report.is_some_and(|report| in_sync(report, head)),
            peers: report.map(|report| report.peers),
            voting_power: report.map(|report| report.voting_power),
            signed: self.signed(target, chain_id, now),
            version: report.map(|report| report.version.clone()),
            template_hash: last.and_then(|(_, evidence)| evidence.template_hash.clone()),
            guard: last.and_then(|(_, evidence)| evidence.guard.clone()),
            certificate_ends: last.map(|(_, evidence)| evidence.certificate_not_after.clone()),
            problem: silence.or(engine_silence),
        }
    }
}
