//! What every pass of a controller may use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bsn_core::anchor::Identity;
use bsn_core::forming::IdSource;
use bsn_core::hash::sha256_hex;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Error;
use super::network::budgets::Writes;
use super::network::members::Errands;
use super::network::steps::memory::Memories;
use super::network::steps::slots::Slots;
pub use super::node::brought::Reservations;
use crate::anchor::AnchorStore;
use crate::cluster::registry::{Absent, Place};
use crate::cluster::{Caches, Clusters, Machines, Proofs, Resolver, Triggers};
use crate::evidence::poller::Targets;
use crate::evidence::route::Ways;
use crate::evidence::watches::Watches;
use crate::lease::Term;
use crate::pki::random_bytes;
use crate::telemetry::{Events, Metrics};
use crate::turns::Turns;
use crate::view::{Memberships, NetworkKey, Views};

/// Settings of the installation.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Stands before the engines' default images, if not empty.
    pub image_prefix: String,
    /// The operator's own namespace, from which it reaches the nodes.
    pub namespace: String,
}

/// Secrets that were just read. They are not watched, and a bring-up looks at a node a dozen times within
/// seconds: once every few of them is enough to notice a lost one.
#[derive(Clone, Default)]
pub struct RecentReads(Arc<Mutex<BTreeMap<(String, String), Instant>>>);

/// How long a Secret counts as just read. Shorter than a node must be silent before it is looked at
/// again, so that the look which follows a crash is always a real one.
const RECENT: Duration = Duration::from_secs(5);

impl RecentReads {
    /// Whether this Secret was just read and found right.
    pub fn holds(&self, namespace: &str, name: &str) -> bool {
        let reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name.to_owned());
        reads.get(&key).is_some_and(|at| at.elapsed() < RECENT)
    }

    /// This Secret was just read and found right.
    pub fn note(&self, namespace: &str, name: &str) {
        let mut reads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reads.retain(|_, at| at.elapsed() < RECENT);
        reads.insert((namespace.to_owned(), name.to_owned()), Instant::now());
    }
}

/// What every pass of a controller may use.
pub struct Context {
    /// The hub: where networks and nodes are described.
    pub client: kube::Client,
    /// What the watches of the hub know.
    pub caches: Caches,
    /// All clusters, the hub among them: where nodes run.
    pub clusters: Clusters,
    /// Addresses of names.
    pub resolver: Resolver,
    /// Machines that are being drained.
    pub machines: Machines,
    /// Where the agents' image can be run.
    pub proofs: Proofs,
    /// Asks for a look at an object.
    pub triggers: Triggers,
    /// Writes anchors.
    pub anchors: AnchorStore,
    /// Whom the poller asks.
    pub targets: Targets,
    /// The ways that led to them last.
    pub ways: Ways,
    /// What the poller learned.
    pub views: Views,
    /// Counters.
    pub metrics: Metrics,
    /// Publishes events.
    pub events: Events,
    /// Id of this hub.
    pub hub_id: String,
    /// Settings of the installation.
    pub settings: Settings,
    /// Certificates made in memory, by network.
    pub credentials: Credentials,
    /// Secrets that were just read.
    pub recent: RecentReads,
    /// Keys that are being taken.
    pub reservations: Reservations,
    /// What the nodes said, remembered.
    pub watches: Watches,
    /// What is remembered of each network's steps.
    pub memories: Memories,
    /// What was decided last, shown.
    pub memberships: Memberships,
    /// What is done for networks in member clusters.
    pub errands: Errands,
    /// Disruption budgets that are being written.
    pub budgets: Writes,
    /// How many networks restart nodes at once.
    pub slots: Slots,
    /// This leader's term.
    pub term: Term,
    /// Work on one node's workload, one after the other; by namespace and name.
    pub node_turns: Turns<(String, String)>,
}

impl Context {
    /// The time, for certificates and conditions. Decisions about liveness use a monotonic clock.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Where the objects of an identity are.
    pub fn place_of(&self, identity: &Identity, namespace: &str) -> Result<Place, Absent> {
        self.clusters.place(&identity.cluster, namespace)
    }

    /// Whether something of a network is being written in a member beside its pass.
    pub fn is_written_in(&self, key: &NetworkKey, cluster: &str) -> bool {
        self.errands.is_under_way(key, cluster) || self.budgets.is_under_way(key, cluster)
    }
}

/// Random ids, derived from one random seed, so that taking one cannot fail.
pub struct RandomIds {
    seed: [u8; 32],
    taken: u64,
}

impl RandomIds {
    /// Draws the seed.
    pub fn draw() -> Result<Self, Error> {
        Ok(Self { seed: random_bytes()?, taken: 0 })
    }
}

impl IdSource for RandomIds {
    fn next_id(&mut self) -> String {
        self.taken += 1;
        let mut id = sha256_hex(&[self.seed.as_slice(), &self.taken.to_be_bytes()].concat());
        // 128 bits: as many as a UUID has room for.
        id.truncate(32);
        id
    }
}

/// The operator's client certificate for a network, made in memory and never stored.
#[derive(Clone)]
pub struct OperatorLeaf {
    /// Fingerprint of the CA it was issued by.
    pub ca_spki: String,
    /// The CA's certificate (PEM).
    pub ca_pem: String,
    /// The certificate (PEM).
    pub cert_pem: String,
    /// Its key (PEM).
    pub key_pem: String,
    /// When to issue another.
    pub renew_at: Timestamp,
    /// When to look again whether the network's Secrets are still there.
    pub check_at: Timestamp,
}

/// All operator certificates.
#[derive(Clone, Default)]
pub struct Credentials(Arc<Mutex<BTreeMap<NetworkKey, OperatorLeaf>>>);

impl Credentials {
    /// The certificate for a network.
    pub fn get(&self, key: &NetworkKey) -> Option<OperatorLeaf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Keeps a certificate.
    pub fn put(&self, key: NetworkKey, leaf: OperatorLeaf) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, leaf);
    }

    /// Forgets all networks that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&NetworkKey) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }

    /// Forgets a network.
    pub fn remove(&self, key: &NetworkKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
