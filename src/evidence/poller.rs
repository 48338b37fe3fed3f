//! Asks every node's gateway for evidence, again and again, and keeps what it says.
//!
//! It writes nothing to the API server. When something a status depends on has changed, it asks the
//! controllers for a look. A network in which a step is under way is asked more often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bsn_core::anchor::Role;
use bsn_core::engine::cometbft::QUORUM;
use bsn_core::evidence::{
    ChainLiveness, GuardReport, GuardState, MIN_WINDOW, NodeEvidence, frozen, in_sync,
};
use bsn_core::membership::Policy;
use bsn_core::membership::model::{Ledger, Liveness as SeenLiveness};
use bsn_core::membership::projection::{Projection, is_fresh};
use bsn_core::names::NodeName;
use bsn_core::quorum::margin;
use bsn_core::watch::{Known, Watch};
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::client::{EvidenceError, fetch_evidence};
use super::known::know;
use super::route::{Via, Ways};
use super::watches::{Watched, Watches};
use crate::build::role_text;
use crate::cluster::watches::cached;
use crate::cluster::{Caches, Clusters, Triggers};
use crate::controller::context::Credentials;
use crate::telemetry::Metrics;
use crate::view::{ForeignView, Liveness, NetworkKey, NetworkView, NodeView, Views};

/// Time between two rounds of questions, while nothing happens.
const INTERVAL: Duration = Duration::from_secs(2);
/// The same while a step is under way: the next effect follows soon after what it waits for.
const BUSY_INTERVAL: Duration = Duration::from_millis(500);
/// How often it is looked whether a round is due.
const TICK: Duration = Duration::from_millis(100);
/// Longest a gateway may take to answer. Its engine is on the same machine.
const DEADLINE: Duration = Duration::from_secs(2);
/// Questions under way at once; more gain nothing and make all of them late.
const CONCURRENCY: usize = 16;

/// A node to ask.
#[derive(Clone)]
pub struct Target {
    /// Its name, also that of its Service.
    pub name: String,
    /// The cluster it is in.
    pub cluster: String,
    /// Its role.
    pub role: Role,
    /// Address of its consensus key.
    pub address: String,
    /// Its id in the peer-to-peer network.
    pub node_id: String,
    /// Power with which it voted last, as far as the anchor knows; 0 = it did not.
    pub power: u64,
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
    /// How carefully its nodes are judged.
    pub policy: Policy,
    /// Its nodes.
    pub nodes: Vec<Target>,
}

/// How closely a network is watched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attention {
    /// The controller looks when something changes.
    #[default]
    Calm,
    /// It looks after each round: something is waited for.
    Watchful,
    /// Rounds follow each other quickly, too: a step is under way.
    Busy,
}

/// All networks to watch.
#[derive(Clone, Default)]
pub struct Targets(Arc<RwLock<BTreeMap<NetworkKey, Watching>>>);

#[derive(Clone)]
struct Watching {
    network: Arc<NetworkTargets>,
    attention: Attention,
}

impl Targets {
    /// Watches a network from now on, in this way.
    pub fn put(&self, key: NetworkKey, targets: NetworkTargets) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let attention = all.get(&key).map(|old| old.attention).unwrap_or_default();
        all.insert(key, Watching { network: Arc::new(targets), attention });
    }

    /// Watches a network this closely from now on.
    pub fn attend(&self, key: &NetworkKey, attention: Attention) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(watching) = all.get_mut(key) {
            watching.attention = attention;
        }
    }

    /// A network's nodes, as they are asked.
    pub fn get(&self, key: &NetworkKey) -> Option<Arc<NetworkTargets>> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(key).map(|watching| watching.network.clone())
    }

    /// Stops watching a network.
    pub fn remove(&self, key: &NetworkKey) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Stops watching all networks that `keep` does not name.
    fn retain(&self, keep: impl Fn(&NetworkKey) -> bool) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }

    fn all(&self) -> BTreeMap<NetworkKey, Watching> {
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

/// What is shown of a node beside its evidence.
struct Note {
    began: Instant,
    failure: Option<String>,
    via: Option<Via>,
}

#[derive(Default)]
struct Notes {
    summary: Option<Summary>,
    nodes: BTreeMap<NodeName, Note>,
    last_round: Option<Instant>,
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
#[derive(Clone)]
pub struct Poller {
    /// What to watch.
    pub targets: Targets,
    /// What is remembered of it.
    pub watches: Watches,
    /// Where to show it.
    pub views: Views,
    /// Addresses of the Services: on the hub every node has one.
    pub caches: Caches,
    /// Pods.
    pub clusters: Clusters,
    /// The ways that worked last.
    pub ways: Ways,
    /// Whom to tell.
    pub triggers: Triggers,
    /// Certificates made in memory.
    pub credentials: Credentials,
    /// Counters.
    pub metrics: Metrics,
}

type Answer = Result<NodeEvidence, EvidenceError>;

/// A round of questions to one network's nodes.
struct Round {
    key: NetworkKey,
    network: Arc<NetworkTargets>,
    began: Duration,
    answers: Vec<(NodeName, Answer)>,
}

impl Poller {
    /// Polls until the process ends.
    pub async fn run(self) {
        let mut notes: BTreeMap<NetworkKey, Notes> = BTreeMap::new();
        let mut rounds: JoinSet<Round> = JoinSet::new();
        let mut under_way: BTreeSet<NetworkKey> = BTreeSet::new();
        let places = Arc::new(Semaphore::new(CONCURRENCY));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    for (key, watching) in self.due(&mut notes) {
                        if under_way.insert(key.clone()) {
                            let round = self.clone().ask(key, watching.network, places.clone());
                            rounds.spawn(round);
                        }
                    }
                }
                Some(round) = rounds.join_next() => match round {
                    Ok(round) => {
                        under_way.remove(&round.key);
                        let notes = notes.entry(round.key.clone()).or_default();
                        self.take_in(&round, notes);
                    }
                    // A bug; the others' evidence must not suffer from it.
                    Err(error) => {
                        tracing::error!(%error, "a round of questions broke off");
                        under_way.clear();
                    }
                },
            }
        }
    }

    /// Networks whose next round is due.
    fn due(&self, notes: &mut BTreeMap<NetworkKey, Notes>) -> Vec<(NetworkKey, Watching)> {
        // A network that is gone causes no pass of a controller that could say so.
        let exists =
            |key: &NetworkKey| cached(&self.caches.networks, &key.namespace, &key.name).is_some();
        self.targets.retain(exists);
        self.credentials.retain(exists);
        let targets = self.targets.all();
        notes.retain(|key, _| targets.contains_key(key));
        self.views.retain(|key| targets.contains_key(key));
        self.watches.retain(|key| targets.contains_key(key));
        self.ways.retain(|key| targets.contains_key(key));
        let due = targets.into_iter().filter(|(key, watching)| {
            let interval = match watching.attention {
                Attention::Busy => BUSY_INTERVAL,
                Attention::Calm | Attention::Watchful => INTERVAL,
            };
            let last = notes.entry(key.clone()).or_default().last_round;
            last.is_none_or(|last| last.elapsed() >= interval)
        });
        let due: Vec<_> = due.collect();
        for (key, _) in &due {
            if let Some(notes) = notes.get_mut(key) {
                notes.last_round = Some(Instant::now());
            }
        }
        due
    }

    async fn ask(
        self,
        key: NetworkKey,
        network: Arc<NetworkTargets>,
        places: Arc<Semaphore>,
    ) -> Round {
        let began = self.watches.now();
        let asked = if network.formed { network.nodes.clone() } else { Vec::new() };
        let (poller, of) = (&self, &key);
        let answers = futures::stream::iter(asked)
            .map(|node| {
                let places = places.clone();
                async move {
                    // Never closed: the poller holds it.
                    let _place = places.acquire_owned().await;
                    let answer = poller.ask_node(of, &node).await;
                    let outcome = answer.as_ref().map_or_else(EvidenceError::category, |_| "ok");
                    poller.metrics.evidence_request(outcome);
                    (NodeName::from_object(&node.name), answer)
                }
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        Round { key, network, began, answers }
    }

    async fn ask_node(&self, key: &NetworkKey, node: &Target) -> Answer {
        let gateway = self.ways.to(&self.caches, &self.clusters, key, node);
        let (evidence, via) = fetch_evidence(&gateway, DEADLINE).await?;
        self.ways.worked(key, &node.name, via);
        Ok(evidence)
    }

    fn take_in(&self, round: &Round, notes: &mut Notes) {
        let (key, network) = (&round.key, &round.network);
        let now = Instant::now();
        for (name, answer) in &round.answers {
            let note = notes.nodes.entry(name.clone());
            let note = note.or_insert_with(|| Note { began: now, failure: None, via: None });
            note.failure = answer.as_ref().err().map(ToString::to_string);
            note.via = self.ways.of(key, name.as_str());
        }
        let nodes: Vec<Known> =
            network.nodes.iter().map(|node| know(node, &self.clusters, &key.namespace)).collect();
        notes.nodes.retain(|name, _| nodes.iter().any(|node| node.name == *name));
        let answers = round.answers.iter();
        let answers: BTreeMap<NodeName, NodeEvidence> = answers
            .filter_map(|(name, answer)| Some((name.clone(), answer.as_ref().ok()?.clone())))
            .collect();
        let now = self.watches.now();
        let view = self.watches.update(key, |watched| {
            if watched.network_id != network.network_id {
                // Another network of this name: what was seen of the old one is not its past.
                *watched = Watched { network_id: network.network_id.clone(), ..Watched::default() };
            }
            watched.round_began = round.began;
            if network.formed {
                let chain = &network.chain_id;
                watched.watch.record(chain, &nodes, &answers, &network.policy, now);
            }
            Shown { network, watch: &watched.watch, notes, now }.view(&nodes)
        });
        let summary = Summary::of(&view);
        self.views.put(key.clone(), view);
        self.tell(key, notes.summary.as_ref(), &summary);
        notes.summary = Some(summary);
    }

    fn tell(&self, key: &NetworkKey, before: Option<&Summary>, now: &Summary) {
        let attention = self.targets.all().get(key).map(|watching| watching.attention);
        if before != Some(now) || attention.is_some_and(|attention| attention != Attention::Calm) {
            self.triggers.network(&key.namespace, &key.name);
        }
        for (node, observation) in &now.nodes {
            if before.and_then(|before| before.nodes.get(node)) != Some(observation) {
                self.triggers.node(&key.namespace, node);
            }
        }
    }
}

/// A network as it is shown at one moment.
struct Shown<'a> {
    network: &'a NetworkTargets,
    watch: &'a Watch,
    notes: &'a Notes,
    now: Duration,
}

impl Shown<'_> {
    fn view(&self, nodes: &[Known]) -> NetworkView {
        let (network, now) = (self.network, self.now);
        let chain = &network.chain_id;
        let track = self.watch.head();
        let sight = self.watch.sight(chain, nodes, None, now);
        let powers: Vec<u64> = sight.ledger.members.values().map(|member| member.power).collect();
        let total_power = powers.iter().sum();
        let reports = || self.watch.reports(chain, now).map(|(_, report)| report);
        NetworkView {
            chain_id: chain.clone(),
            formed: network.formed,
            head: track.height(),
            liveness: match track.liveness(now) {
                ChainLiveness::Live => Liveness::Live,
                ChainLiveness::Standing if reports().next().is_none() => Liveness::Silent,
                ChainLiveness::Standing if frozen(reports()) => Liveness::Frozen,
                ChainLiveness::Standing => Liveness::Standing,
                ChainLiveness::Unknown => Liveness::Unknown,
            },
            head_age_seconds: track.age(now).as_secs_f64(),
            block_interval_seconds: track.interval().map(|interval| interval.as_secs_f64()),
            quorum_power: QUORUM.needed(total_power),
            total_power,
            margin: margin(QUORUM, &powers),
            margin_left: is_fresh(&sight.ledger, &network.policy)
                .then(|| Projection::of(&sight.ledger, &network.policy).spare().unwrap_or(0)),
            nodes: network
                .nodes
                .iter()
                .map(|target| {
                    let name = NodeName::from_object(&target.name);
                    let mut members = sight.ledger.members.values();
                    let member = members.find(|member| member.node.as_ref() == Some(&name));
                    // Nobody's word is not "none".
                    let told = member.filter(|_| reports().next().is_some());
                    self.node_view(target, &name, told.map(|member| member.signed))
                })
                .collect(),
            foreign: foreign(&sight.ledger),
        }
    }

    fn node_view(&self, target: &Target, name: &NodeName, signed: Option<u64>) -> NodeView {
        let (chain_id, head) = (&self.network.chain_id, self.watch.head().height());
        let note = self.notes.nodes.get(name);
        let last = self.watch.last(name);
        let age = last.map(|(at, _)| self.now.saturating_sub(at));
        let report = last.and_then(|(_, evidence)| evidence.engine.report());
        // A node that restarts is silent for a moment; only a longer silence is worth a word.
        let silent_for = age.or_else(|| Some(note?.began.elapsed()));
        let silence = silent_for
            .filter(|silence| *silence >= MIN_WINDOW)
            .map(|_| note.and_then(|note| note.failure.clone()).unwrap_or_default());
        let engine_silence = last.and_then(|(_, evidence)| match &evidence.engine {
            bsn_core::evidence::EngineAnswer::Silent(why) => Some(match &evidence.guard {
                Some(guard) if guard.state != GuardState::Passed => {
                    format!("not started: {}", guard.message)
                }
                _ => format!("the engine does not answer: {why}"),
            }),
            bsn_core::evidence::EngineAnswer::Report(report) if report.chain_id != *chain_id => {
                Some(format!("it runs chain {} instead of {chain_id}", report.chain_id))
            }
            bsn_core::evidence::EngineAnswer::Report(_) => None,
        });
        NodeView {
            name: target.name.clone(),
            cluster: target.cluster.clone(),
            role: role_text(target.role).to_owned(),
            evidence_age_seconds: age.map(|age| age.as_secs_f64()),
            height: report.map(|report| report.height),
            lag: report.map(|report| head.saturating_sub(report.height)),
            in_sync: silence.is_none()
                && engine_silence.is_none()
                && report.is_some_and(|report| in_sync(report, head)),
            peers: report.map(|report| report.peers),
            voting_power: report.map(|report| report.voting_power),
            signed,
            version: report.map(|report| report.version.clone()),
            template_hash: last.and_then(|(_, evidence)| evidence.template_hash.clone()),
            guard: last.and_then(|(_, evidence)| evidence.guard.clone()),
            certificate_ends: last.map(|(_, evidence)| evidence.certificate_not_after.clone()),
            agents: last.and_then(|(_, evidence)| evidence.agents.clone()),
            problem: silence.or(engine_silence),
            via: note.and_then(|note| note.via),
        }
    }
}

/// The voters of other owners.
fn foreign(ledger: &Ledger) -> Vec<ForeignView> {
    let foreign = ledger.members.iter().filter(|(_, member)| member.node.is_none());
    foreign
        .map(|(address, member)| ForeignView {
            address: address.clone(),
            voting_power: member.power,
            signed: member.signed,
            signs: member.liveness == SeenLiveness::Live,
        })
        .collect()
}
