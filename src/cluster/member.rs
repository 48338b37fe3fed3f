//! Keeps the connection to every member cluster: one task each, so that a slow one delays no other.
//!
//! A task goes round and round: read the kubeconfig, make a client if it is a new one, ask for the version, ask now
//! and then for the rights, watch what may be watched, say in the registry what can be used, and write the status
//! if it changed. So a rotated kubeconfig takes effect without a restart, and within one round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bsn_core::hash::sha256_hex;
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta};
use kube::config::Kubeconfig;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, Store};
use kube::{Client, ResourceExt};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::identity::Identities;
use super::judge::{
    Another, Connection, Hosted, Known, NoKubeconfig, next_status, standing, why_not_in,
};
use super::kubeconfig::{parse_kubeconfig, server_of};
use super::namespaces::Scope;
use super::probe::{
    NamespaceRights, ProbeFault, classify, observe_identity, observe_rights, observe_version,
};
use super::proofs::Proofs;
use super::registry::{ClusterHandle, Clusters, InNamespace};
use super::streams::watch_cluster_kind;
use super::watches::{Described, Objects, Triggers, watch_objects};
use crate::api::conditions::{READY, Reason, STALLED, merge};
use crate::api::{BsnCluster, BsnClusterStatus, ClusterImage};
use crate::apply::{ApiError, read, write_status};
use crate::build::secret::entry;
use crate::controller::Refusal;
use crate::labels;
use crate::telemetry::Events;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(10);
/// After the first question that was not answered: soon, to tell a lost packet from a lost cluster.
const AGAIN: Duration = Duration::from_secs(2);
/// How long new caches may take to fill before the status says that they do not yet.
const FILL: Duration = Duration::from_secs(2);
/// How long rights that suffice are taken for granted. That they do not any more, the first refused request tells
/// as well.
const RIGHTS_HOLD: Duration = Duration::from_mins(5);

/// A cluster, or what is left of one that does not parse.
pub type GuardedCluster = DeserializeGuard<BsnCluster>;

/// Makes a client from a kubeconfig, without asking anything.
pub type Dial =
    Arc<dyn Fn(Kubeconfig) -> BoxFuture<'static, Result<Client, kube::Error>> + Send + Sync>;

/// What the tasks of all clusters need.
#[derive(Clone)]
pub struct Shared {
    /// The hub.
    pub hub: Client,
    /// The operator's namespace there, in which the kubeconfigs are.
    pub namespace: String,
    /// Id of the hub.
    pub hub_id: String,
    /// The agents' image where a cluster names none: the operator's own.
    pub agent_image: ClusterImage,
    /// Where what can be used is told.
    pub clusters: Clusters,
    /// Which cluster goes by which name.
    pub identities: Arc<Identities>,
    /// All that are described: who is known by which uid.
    pub all: Store<GuardedCluster>,
    /// What is proved of the agents' image.
    pub proofs: Proofs,
    /// Whom events in a cluster may be about.
    pub described: Described,
    /// Who is told.
    pub triggers: Triggers,
    /// Publishes events.
    pub events: Events,
    /// Makes clients.
    pub dial: Dial,
}

/// Watches the `BsnCluster`s; runs once the task is driven. The notice comes with every change.
pub fn watch_clusters(
    hub: &Client,
) -> (Store<GuardedCluster>, Arc<Notify>, BoxFuture<'static, ()>) {
    let (store, writer) = reflector::store();
    let notice = Arc::new(Notify::new());
    let (told, relisted) = (notice.clone(), notice.clone());
    let task = watch_cluster_kind(
        Api::all(hub.clone()),
        writer,
        move || relisted.notify_one(),
        move |_: &GuardedCluster| told.notify_one(),
    );
    (store, notice, task)
}

/// A task under way, and what it is told.
struct Running {
    uid: Option<String>,
    described: watch::Sender<Arc<BsnCluster>>,
    // Ends with this.
    _task: JoinSet<()>,
}

/// Keeps a task for each cluster there is: begun when it is added, ended when it is gone.
pub async fn run(shared: Shared, notice: Arc<Notify>) {
    // Before the first list, everything would seem to be gone.
    let _ = shared.all.wait_until_ready().await;
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    let mut told = BTreeMap::new();
    loop {
        let unparsable = adjust(&shared, &mut running);
        shared.clusters.set_listed();
        tell_unparsable(&shared, unparsable, &mut told).await;
        notice.notified().await;
    }
}

/// Tells of each description that does not parse, once: the status of one comes back by the watch.
async fn tell_unparsable(
    shared: &Shared,
    unparsable: Vec<(ObjectMeta, Refusal)>,
    told: &mut BTreeMap<Option<String>, Option<i64>>,
) {
    told.retain(|uid, _| unparsable.iter().any(|(meta, _)| meta.uid == *uid));
    let api = Api::<GuardedCluster>::all(shared.hub.clone());
    for (meta, refusal) in unparsable {
        if told.get(&meta.uid) == Some(&meta.generation) {
            continue;
        }
        let conditions = merge(&[], &refusal.states(), meta.generation, Timestamp::now());
        let status = BsnClusterStatus {
            observed_generation: meta.generation,
            conditions,
            ..BsnClusterStatus::default()
        };
        match write_status(&api, &meta, &BsnClusterStatus::default(), &status).await {
            Ok(_) => {
                told.insert(meta.uid, meta.generation);
            }
            // With the next change of any cluster.
            Err(error) => {
                tracing::warn!(cluster = ?meta.name, %error, "its status was not written");
            }
        }
    }
}

/// Begins and ends tasks. Returns the descriptions that do not parse, with why.
fn adjust(shared: &Shared, running: &mut BTreeMap<String, Running>) -> Vec<(ObjectMeta, Refusal)> {
    let mut unparsable = Vec::new();
    let mut wanted: BTreeMap<String, Arc<BsnCluster>> = BTreeMap::new();
    for guarded in shared.all.state() {
        match &guarded.0 {
            Ok(cluster) => {
                wanted.insert(cluster.name_any(), Arc::new(cluster.clone()));
            }
            Err(invalid) => {
                let name = guarded.name_any();
                tracing::warn!(cluster = %name, error = %invalid.error, "BsnCluster does not parse");
                let message = format!(
                    "this object does not parse as v1alpha1: {}; correct it. Nodes there run on",
                    invalid.error
                );
                running.remove(&name);
                let refusal = Refusal::new(Reason::Unparsable, message);
                let standing = Err((refusal.reason, refusal.message.clone()));
                unparsable.push((invalid.metadata.clone(), refusal));
                shared.clusters.put(ClusterHandle::member(
                    &name,
                    standing,
                    None,
                    None,
                    shared.agent_image.clone(),
                    None,
                    BTreeMap::new(),
                ));
            }
        }
    }
    // Another object of the same name is another cluster.
    running.retain(|name, task| {
        let same = wanted.get(name).is_some_and(|cluster| cluster.uid() == task.uid);
        if !same {
            shared.clusters.remove(name);
            shared.identities.forget(name);
            shared.proofs.forget(name);
            shared.triggers.everything(&shared.described);
        }
        same
    });
    for (name, cluster) in wanted {
        if let Some(task) = running.get(&name) {
            // The status is written by the task itself: no news to it.
            task.described.send_if_modified(|known| {
                let changed = known.metadata.generation != cluster.metadata.generation;
                if changed {
                    known.clone_from(&cluster);
                }
                changed
            });
            continue;
        }
        let uid = cluster.uid();
        let connecting = (Reason::Connecting, "the operator connects to it".to_owned());
        let (image, none) = (shared.agent_image.clone(), BTreeMap::new());
        let handle = ClusterHandle::member(&name, Err(connecting), None, None, image, None, none);
        shared.clusters.put(handle);
        let (described, told) = watch::channel(cluster);
        let mut task = JoinSet::new();
        task.spawn(Member::new(shared.clone(), name.clone(), told).run());
        running.insert(name, Running { uid, described, _task: task });
    }
    unparsable
}

/// The watches of one namespace.
struct Watched {
    objects: Objects,
    // End with this.
    _tasks: JoinSet<()>,
}

/// A client and what is watched by it.
struct Link {
    /// Of the kubeconfig it was made from.
    fingerprint: String,
    server: String,
    client: Client,
    /// Which cluster it leads to, once asked.
    uid: Option<String>,
    namespaces: BTreeMap<String, Watched>,
}

struct Member {
    shared: Shared,
    name: String,
    told: watch::Receiver<Arc<BsnCluster>>,
    /// Comes when something else is known of the agents' image, here or elsewhere.
    proved: watch::Receiver<()>,
    connection: Connection,
    /// Probes in a row that failed.
    failures: u32,
    link: Option<Link>,
    /// Watches by the client before, until those of the new one are filled: a rotation leaves no gap in what is
    /// known of nodes.
    before: BTreeMap<String, Watched>,
    rights: BTreeMap<String, NamespaceRights>,
    rights_asked: Option<Instant>,
    last_contact: Option<(Instant, Timestamp)>,
    /// The status as it was written last: the cache may be behind.
    status: Option<BsnClusterStatus>,
}

impl Member {
    fn new(shared: Shared, name: String, told: watch::Receiver<Arc<BsnCluster>>) -> Self {
        let proved = shared.proofs.news();
        Self {
            shared,
            name,
            told,
            proved,
            connection: Connection::Connecting,
            failures: 0,
            link: None,
            before: BTreeMap::new(),
            rights: BTreeMap::new(),
            rights_asked: None,
            last_contact: None,
            status: None,
        }
    }

    async fn run(mut self) {
        loop {
            let cluster = self.told.borrow_and_update().clone();
            self.observe(&cluster).await;
            self.watch(&cluster);
            // As a rule it takes a moment, and nobody needs to hear of that.
            let _ = timeout(FILL, filled(&self.filling())).await;
            self.publish(&cluster).await;
            self.sweep().await;
            let wait = if self.failures == 1 { AGAIN } else { INTERVAL };
            let next = Instant::now() + wait;
            loop {
                let filling = self.filling();
                tokio::select! {
                    changed = self.told.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    // Of these nothing else is new: the probe is not repeated for them.
                    () = filled(&filling), if !filling.is_empty() => self.publish(&cluster).await,
                    Ok(()) = self.proved.changed() => self.publish(&cluster).await,
                    () = sleep_until(next) => break,
                }
            }
        }
    }

    /// Removes what was left of proofs.
    async fn sweep(&self) {
        let Some(link) = self.link.as_ref().filter(|_| self.failures == 0) else { return };
        for (namespace, watched) in &link.namespaces {
            let Watched { objects, .. } = watched;
            self.shared.proofs.sweep(&self.name, namespace, &link.client, objects).await;
        }
    }

    /// Connects and asks.
    async fn observe(&mut self, cluster: &BsnCluster) {
        let found = self.probe(cluster).await;
        self.failures = match &found {
            Connection::Down(_) => self.failures.saturating_add(1),
            _ => 0,
        };
        if matches!(found, Connection::Up(_)) {
            self.last_contact = Some((Instant::now(), Timestamp::now()));
        }
        let was_up = matches!(self.connection, Connection::Up(_));
        self.connection = self.connection.after(found, self.failures);
        if self.failures == 0 && matches!(self.connection, Connection::Up(_)) {
            self.ask_rights(cluster, was_up).await;
        }
    }

    async fn probe(&mut self, cluster: &BsnCluster) -> Connection {
        let secret = &cluster.spec.kubeconfig_secret_ref;
        match read::<Secret>(&self.shared.hub, &self.shared.namespace, &secret.name).await {
            Ok(Some(found)) => match entry(&found, &secret.key) {
                Some(text) => {
                    if let Err(refused) = self.connect(text).await {
                        return refused;
                    }
                }
                None => return self.cut(Connection::NoKubeconfig(NoKubeconfig::Key)),
            },
            Ok(None) => return self.cut(Connection::NoKubeconfig(NoKubeconfig::Secret)),
            // The hub's trouble says nothing about this cluster; what is known goes on being used.
            Err(error) => {
                tracing::warn!(cluster = %self.name, %error, "its kubeconfig cannot be read now");
            }
        }
        let Some(link) = &mut self.link else { return Connection::Connecting };
        let version = match observe_version(&link.client).await {
            Ok(version) => version,
            Err(fault) => return Connection::Down(fault),
        };
        // Asked again after every failure: an address may have come to lead elsewhere meanwhile.
        if link.uid.is_none() || self.failures > 0 {
            match observe_identity(&link.client).await {
                Ok(uid) => link.uid = uid,
                Err(fault) => return Connection::Down(fault),
            }
        }
        let status = self.status.as_ref().or(cluster.status.as_ref());
        let before = status.and_then(|status| status.cluster_uid.clone());
        let Some(now) = link.uid.clone() else { return Connection::Up(version) };
        if let Some(before) = before.clone().filter(|before| *before != now) {
            return self.disown(Connection::Another(Box::new(Another { before, now })));
        }
        let Shared { hub, identities, all, .. } = &self.shared;
        let all: Vec<_> =
            all.state().iter().filter_map(|guarded| guarded.0.as_ref().ok().cloned()).collect();
        match identities.other(hub, cluster, before.as_deref(), &now, &all).await {
            Ok(None) => Connection::Up(version),
            Ok(Some(other)) => self.disown(Connection::Twice(other)),
            // The hub does not say which one it is: soon it will. Once it has, this does not come.
            Err(_) => Connection::Connecting,
        }
    }

    /// Forgets what is known of a cluster that turned out to be another one: it says nothing of the one that is meant.
    fn disown(&mut self, connection: Connection) -> Connection {
        if let Some(link) = &mut self.link {
            link.namespaces.clear();
            link.uid = None;
        }
        self.before.clear();
        self.rights.clear();
        connection
    }

    /// Without a kubeconfig there is no connection: who took it away wants that.
    fn cut(&mut self, connection: Connection) -> Connection {
        self.link = None;
        self.before.clear();
        connection
    }

    /// Makes a client, if the kubeconfig is another one than that of the client there is.
    async fn connect(&mut self, text: &str) -> Result<(), Connection> {
        let fingerprint = sha256_hex(text.as_bytes());
        if self.link.as_ref().is_some_and(|link| link.fingerprint == fingerprint) {
            return Ok(());
        }
        let config = match parse_kubeconfig(text) {
            Ok(config) => config,
            Err(fault) => return Err(self.cut(Connection::Refused(fault))),
        };
        let server = server_of(&config).unwrap_or_default().to_owned();
        let client = match (self.shared.dial)(config).await {
            Ok(client) => client,
            Err(error) => return Err(self.cut(Connection::Down(classify(&error)))),
        };
        tracing::info!(cluster = %self.name, %server, "connecting with a new kubeconfig");
        let namespaces = BTreeMap::new();
        let link = Link { fingerprint, server, client, uid: None, namespaces };
        self.before = match self.link.replace(link) {
            Some(old) if Some(&old.server) == self.link.as_ref().map(|link| &link.server) => {
                old.namespaces
            }
            // Another address may be another cluster, of which nothing is known yet.
            _ => BTreeMap::new(),
        };
        self.rights_asked = None;
        // Of the new credentials nothing is known; one lost answer does not excuse them.
        self.connection = Connection::Connecting;
        Ok(())
    }

    async fn ask_rights(&mut self, cluster: &BsnCluster, was_up: bool) {
        let allowed = &cluster.spec.allowed_namespaces;
        let hold = |at: Instant| at.elapsed() < RIGHTS_HOLD;
        let granted = allowed
            .iter()
            .all(|namespace| self.rights.get(namespace) == Some(&NamespaceRights::Granted));
        let Some(link) = &self.link else { return };
        if granted && was_up && self.rights_asked.is_some_and(hold) {
            return;
        }
        let questions = allowed.iter().map(async |namespace| {
            (namespace.clone(), observe_rights(&link.client, namespace).await)
        });
        let answers = join_all(questions).await;
        self.rights.retain(|namespace, _| allowed.contains(namespace));
        self.rights_asked = Some(Instant::now());
        for (namespace, answer) in answers {
            match answer {
                Ok(rights) => {
                    self.rights.insert(namespace, rights);
                }
                // Asked again in the next round.
                Err(fault) => {
                    tracing::debug!(cluster = %self.name, %namespace, ?fault, "rights not known");
                    self.rights_asked = None;
                    if let ProbeFault::CredentialsRefused = fault {
                        self.connection = Connection::Down(fault);
                    }
                }
            }
        }
    }

    /// Watches the namespaces in which it may, and no others.
    fn watch(&mut self, cluster: &BsnCluster) {
        let allowed = &cluster.spec.allowed_namespaces;
        let rights = &self.rights;
        let may = |namespace: &String| {
            allowed.contains(namespace)
                && rights.get(namespace).is_some_and(NamespaceRights::suffice)
        };
        self.before.retain(|namespace, _| may(namespace));
        let Some(link) = &mut self.link else { return };
        link.namespaces.retain(|namespace, _| may(namespace));
        for namespace in allowed.iter().filter(|namespace| may(namespace)) {
            if link.namespaces.contains_key(namespace) {
                continue;
            }
            let Shared { described, triggers, .. } = &self.shared;
            let (objects, watching) =
                watch_objects(&link.client, Scope::Member(namespace), described, triggers);
            let mut tasks = JoinSet::new();
            for task in watching {
                tasks.spawn(task);
            }
            let watched = Watched { objects, _tasks: tasks };
            link.namespaces.insert(namespace.clone(), watched);
        }
    }

    /// The caches that are not filled yet.
    fn filling(&self) -> Vec<Objects> {
        let all = self.link.iter().flat_map(|link| link.namespaces.values());
        all.map(|watched| watched.objects.clone()).filter(|objects| !objects.is_ready()).collect()
    }

    /// Tells what can be used now.
    async fn publish(&mut self, cluster: &BsnCluster) {
        let mut namespaces = BTreeMap::new();
        if let Some(link) = &self.link {
            for (namespace, watched) in &link.namespaces {
                if watched.objects.is_ready() {
                    self.before.remove(namespace);
                    namespaces.insert(namespace.clone(), watched.objects.clone());
                } else if let Some(before) = self.before.get(namespace) {
                    namespaces.insert(namespace.clone(), before.objects.clone());
                }
            }
        }
        let allowed = &cluster.spec.allowed_namespaces;
        let rights = allowed
            .iter()
            .map(|namespace| (namespace.clone(), self.rights.get(namespace).cloned()))
            .collect();
        let image = cluster.spec.image.as_ref().unwrap_or(&self.shared.agent_image);
        let proofs = allowed.iter().filter_map(|namespace| {
            let objects = namespaces.get(namespace);
            let proof = self.shared.proofs.known(&self.name, namespace, image, objects)?;
            Some((namespace.clone(), proof))
        });
        let proofs = proofs.collect();
        let known = Known {
            image,
            proofs: &proofs,
            name: &self.name,
            secret: &cluster.spec.kubeconfig_secret_ref,
            secret_namespace: &self.shared.namespace,
            server: self.link.as_ref().map_or("", |link| &link.server),
            connection: &self.connection,
            rights: &rights,
            filled: allowed.iter().all(|namespace| namespaces.contains_key(namespace)),
        };
        let in_namespace = |namespace: &String| -> (String, InNamespace) {
            let found = namespaces.get(namespace).cloned();
            (namespace.clone(), found.ok_or_else(|| why_not_in(&known, namespace)))
        };
        let hosted = (!namespaces.is_empty()).then(|| count(&namespaces, &self.shared.hub_id));
        let old = self.status.clone().or_else(|| cluster.status.clone()).unwrap_or_default();
        let status = next_status(
            &old,
            &known,
            self.link.as_ref().and_then(|link| link.uid.as_deref()),
            hosted,
            self.last_contact.map(|(_, at)| at),
            cluster.metadata.generation,
            Timestamp::now(),
        );
        let handle = ClusterHandle::member(
            &self.name,
            standing(&known),
            self.last_contact.map(|(at, _)| at),
            Some(cluster.spec.defaults.clone()),
            image.clone(),
            self.link.as_ref().map(|link| link.client.clone()),
            allowed.iter().map(in_namespace).collect(),
        );
        if self.shared.clusters.put(handle) {
            self.shared.triggers.everything(&self.shared.described);
        }
        if status != old {
            match self.report(cluster, &old, &status).await {
                Ok(()) => self.status = Some(status),
                // The next round writes it.
                Err(error) => {
                    tracing::warn!(cluster = %self.name, %error, "its status was not written");
                }
            }
        }
    }

    async fn report(
        &self,
        cluster: &BsnCluster,
        old: &BsnClusterStatus,
        status: &BsnClusterStatus,
    ) -> Result<(), ApiError> {
        let api = Api::<GuardedCluster>::all(self.shared.hub.clone());
        if write_status(&api, &cluster.metadata, old, status).await? {
            let (before, now) = (&old.conditions, &status.conditions);
            let events = &self.shared.events;
            events.changes::<BsnCluster>(&cluster.metadata, before, now, &[READY, STALLED]).await;
        }
        Ok(())
    }
}

async fn filled(caches: &[Objects]) {
    join_all(caches.iter().map(Objects::wait_until_ready)).await;
}

/// What of this hub's is there: a workload is what runs, whatever the descriptions say.
fn count(namespaces: &BTreeMap<String, Objects>, hub_id: &str) -> Hosted {
    let sets = namespaces.values().flat_map(|objects| objects.stateful_sets.state());
    let ours: Vec<_> = sets
        .filter(|set| set.labels().get(labels::HUB_ID).map(String::as_str) == Some(hub_id))
        .map(|set| set.labels().get(labels::NETWORK_ID).cloned().unwrap_or_default())
        .collect();
    let networks: std::collections::BTreeSet<_> = ours.iter().collect();
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Hosted { nodes: number(ours.len()), networks: number(networks.len()) }
}

#[cfg(test)]
#[path = "member_tests.rs"]
mod tests;
