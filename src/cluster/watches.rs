//! One watch per kind. Each keeps a cache and says which network or node an event is about.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use bsn_core::names::NetworkName;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::api::{BsnNetwork, BsnNode};
use crate::labels;

/// A network or what is left of one that does not parse.
pub type GuardedNetwork = DeserializeGuard<BsnNetwork>;
/// A node or what is left of one that does not parse.
pub type GuardedNode = DeserializeGuard<BsnNode>;

/// What the watches know. A cache may be behind, never ahead.
#[derive(Clone)]
pub struct Caches {
    /// Networks.
    pub networks: Store<GuardedNetwork>,
    /// Nodes.
    pub nodes: Store<GuardedNode>,
    /// Workloads of nodes.
    pub stateful_sets: Store<StatefulSet>,
    /// Pods of nodes.
    pub pods: Store<Pod>,
    /// Services of nodes.
    pub services: Store<Service>,
    /// Disks of nodes.
    pub disks: Store<PersistentVolumeClaim>,
    /// `ConfigMap`s of networks and nodes.
    pub config_maps: Store<ConfigMap>,
    /// Disruption budgets of networks.
    pub budgets: Store<PodDisruptionBudget>,
}

/// What the watches know of the objects that make up nodes, where those run. The same for every cluster; of a member
/// cluster one for each namespace, since the operator's rights there end with it.
#[derive(Clone)]
pub struct Objects {
    /// Workloads of nodes.
    pub stateful_sets: Store<StatefulSet>,
    /// Pods of nodes.
    pub pods: Store<Pod>,
    /// Services of nodes.
    pub services: Store<Service>,
    /// Disks of nodes.
    pub disks: Store<PersistentVolumeClaim>,
    /// `ConfigMap`s of networks and nodes.
    pub config_maps: Store<ConfigMap>,
    /// Disruption budgets of networks.
    pub budgets: Store<PodDisruptionBudget>,
}

impl Objects {
    /// Waits until every cache has been filled once.
    pub async fn wait_until_ready(&self) {
        // A writer that was dropped means the watches have ended; nobody uses the caches any more.
        let _ = futures::join!(
            self.stateful_sets.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.services.wait_until_ready(),
            self.disks.wait_until_ready(),
            self.config_maps.wait_until_ready(),
            self.budgets.wait_until_ready(),
        );
    }

    /// Whether every cache has been filled once. Deciding on a half-filled one would make things that are there.
    pub fn is_ready(&self) -> bool {
        self.wait_until_ready().now_or_never().is_some()
    }
}

impl Caches {
    /// The part that every cluster has.
    pub fn objects(&self) -> Objects {
        Objects {
            stateful_sets: self.stateful_sets.clone(),
            pods: self.pods.clone(),
            services: self.services.clone(),
            disks: self.disks.clone(),
            config_maps: self.config_maps.clone(),
            budgets: self.budgets.clone(),
        }
    }
}

/// An object from a cache.
pub fn cached<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// Tells the controllers what to look at.
#[derive(Clone)]
pub struct Triggers {
    networks: mpsc::UnboundedSender<ObjectRef<GuardedNetwork>>,
    nodes: mpsc::UnboundedSender<ObjectRef<GuardedNode>>,
}

impl Triggers {
    /// Asks for a look at a network.
    pub fn network(&self, namespace: &str, name: &str) {
        // A closed channel means the controllers have ended; nobody is left to tell.
        let _ = self.networks.unbounded_send(ObjectRef::new(name).within(namespace));
    }

    /// Asks for a look at a node.
    pub fn node(&self, namespace: &str, name: &str) {
        let _ = self.nodes.unbounded_send(ObjectRef::new(name).within(namespace));
    }

    /// Asks for a look at everything there is: after a watch was broken, since what went away
    /// meanwhile is in no event.
    pub fn everything(&self, described: &Described) {
        for network in described.networks.state() {
            let (namespace, name) = key_of(&*network);
            self.network(&namespace, &name);
        }
        for node in described.nodes.state() {
            let (namespace, name) = key_of(&*node);
            self.node(&namespace, &name);
        }
    }

    /// Asks for a look at every node of a network.
    fn nodes_of(&self, described: &Described, namespace: &str, network: &str) {
        for node in find_nodes(&described.nodes, namespace, network) {
            self.node(namespace, &node.name_any());
        }
    }
}

/// What is described, by the hub's caches: whom an event anywhere can be about.
#[derive(Clone)]
pub struct Described {
    /// Networks.
    pub networks: Store<GuardedNetwork>,
    /// Nodes.
    pub nodes: Store<GuardedNode>,
}

impl Caches {
    /// What is described.
    pub fn described(&self) -> Described {
        Described { networks: self.networks.clone(), nodes: self.nodes.clone() }
    }
}

/// The nodes of a network that parse, by the cache.
pub fn nodes_of(caches: &Caches, namespace: &str, network: &str) -> Vec<BsnNode> {
    find_nodes(&caches.nodes, namespace, network)
}

fn find_nodes(nodes: &Store<GuardedNode>, namespace: &str, network: &str) -> Vec<BsnNode> {
    nodes
        .state_filter(|guarded| match &guarded.0 {
            Ok(node) => {
                node.namespace().as_deref() == Some(namespace)
                    && node.spec.network_ref.name == network
            }
            Err(_) => false,
        })
        .into_iter()
        .filter_map(|guarded| guarded.0.as_ref().ok().cloned())
        .collect()
}

/// The running watches.
pub struct Watches {
    /// What they know.
    pub caches: Caches,
    /// Whom they tell.
    pub triggers: Triggers,
    /// Networks to look at.
    pub network_queue: mpsc::UnboundedReceiver<ObjectRef<GuardedNetwork>>,
    /// Nodes to look at.
    pub node_queue: mpsc::UnboundedReceiver<ObjectRef<GuardedNode>>,
    /// The work of watching: to be driven for as long as the caches are used.
    pub tasks: Vec<BoxFuture<'static, ()>>,
}

/// Sets up all watches of the hub; they run once `tasks` are driven.
pub fn watch_hub(client: &Client) -> Watches {
    let (network_sender, network_queue) = mpsc::unbounded();
    let (node_sender, node_queue) = mpsc::unbounded();
    let triggers = Triggers { networks: network_sender, nodes: node_sender };

    let (networks, networks_writer) = reflector::store();
    let (nodes, nodes_writer) = reflector::store();
    let described = Described { networks: networks.clone(), nodes: nodes.clone() };
    let (objects, mut tasks) = watch_objects(client, None, &described, &triggers);
    let Objects { stateful_sets, pods, services, disks, config_maps, budgets } = objects;
    let caches =
        Caches { networks, nodes, stateful_sets, pods, services, disks, config_maps, budgets };

    let all = watcher::Config::default();
    let relisted = relisted(&described, &triggers);
    let (d, t, seen) = (described.clone(), triggers.clone(), Significance::default());
    tasks.push(watch_kind(
        Api::all(client.clone()),
        &all,
        networks_writer,
        relisted.clone(),
        move |network: &GuardedNetwork| {
            let (namespace, name) = key_of(network);
            t.network(&namespace, &name);
            // Nodes depend on the description, not on the network's status.
            if seen.changed(network) {
                t.nodes_of(&d, &namespace, &name);
            }
        },
    ));

    let (t, seen) = (triggers.clone(), Significance::default());
    tasks.push(watch_kind(
        Api::all(client.clone()),
        &all,
        nodes_writer,
        relisted,
        move |node: &GuardedNode| {
            let (namespace, name) = key_of(node);
            // The network counts its ready nodes; the node itself need not see its own status.
            if let Some(network) = node.labels().get(labels::NETWORK) {
                t.network(&namespace, network);
            }
            if seen.changed(node) {
                t.node(&namespace, &name);
            }
        },
    ));

    Watches { caches, triggers, network_queue, node_queue, tasks }
}

/// Sets up the watches of the objects that make up nodes, in one namespace or in all; they run once the tasks
/// are driven. An object is about the network or node of the same namespace, in whichever cluster it is.
pub fn watch_objects(
    client: &Client,
    namespace: Option<&str>,
    described: &Described,
    triggers: &Triggers,
) -> (Objects, Vec<BoxFuture<'static, ()>>) {
    let (stateful_sets, stateful_sets_writer) = reflector::store();
    let (pods, pods_writer) = reflector::store();
    let (services, services_writer) = reflector::store();
    let (disks, disks_writer) = reflector::store();
    let (config_maps, config_maps_writer) = reflector::store();
    let (budgets, budgets_writer) = reflector::store();
    let objects = Objects { stateful_sets, pods, services, disks, config_maps, budgets };

    let ours = watcher::Config::default().labels(&labels::managed_selector());
    let relisted = relisted(described, triggers);
    let (d, t) = (described.clone(), triggers.clone());
    let by_map = move |map: &ConfigMap| {
        let (namespace, name) = key_of(map);
        if let Some(node) = map.labels().get(labels::NODE) {
            t.node(&namespace, node);
            return;
        }
        let Some(network) = map.labels().get(labels::NETWORK) else {
            return;
        };
        t.network(&namespace, network);
        // What the anchor says decides what every node may do.
        if NetworkName::parse(network).is_ok_and(|network| network.anchor() == name) {
            t.nodes_of(&d, &namespace, network);
        }
    };
    let t = triggers.clone();
    let by_budget = move |budget: &PodDisruptionBudget| {
        if let Some(network) = budget.labels().get(labels::NETWORK) {
            t.network(&budget.namespace().unwrap_or_default(), network);
        }
    };
    let (n, r) = (namespace, relisted);
    let tasks = vec![
        watch_kind(
            api(client, n),
            &ours,
            stateful_sets_writer,
            r.clone(),
            by_node::<StatefulSet>(triggers),
        ),
        watch_kind(api(client, n), &ours, pods_writer, r.clone(), by_node::<Pod>(triggers)),
        watch_kind(api(client, n), &ours, services_writer, r.clone(), by_node::<Service>(triggers)),
        watch_kind(
            api(client, n),
            &ours,
            disks_writer,
            r.clone(),
            by_node::<PersistentVolumeClaim>(triggers),
        ),
        watch_kind(api(client, n), &ours, config_maps_writer, r.clone(), by_map),
        watch_kind(api(client, n), &ours, budgets_writer, r, by_budget),
    ];
    (objects, tasks)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn relisted(
    described: &Described,
    triggers: &Triggers,
) -> impl Fn() + Clone + Send + 'static + use<> {
    let (described, triggers) = (described.clone(), triggers.clone());
    move || triggers.everything(&described)
}

fn key_of(object: &impl Resource) -> (String, String) {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// An object of a node is about that node.
fn by_node<K: Resource>(triggers: &Triggers) -> impl Fn(&K) + Send + 'static + use<K> {
    let triggers = triggers.clone();
    move |object| {
        if let Some(node) = object.labels().get(labels::NODE) {
            triggers.node(&object.namespace().unwrap_or_default(), node);
        }
    }
}

/// Watches one kind for as long as it is driven; a broken watch is taken up again with back-off.
pub(super) fn watch_kind<K>(
    api: Api<K>,
    config: &watcher::Config,
    writer: reflector::store::Writer<K>,
    relisted: impl Fn() + Send + 'static,
    tell: impl Fn(&K) + Send + 'static,
) -> BoxFuture<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let of_member = api.resource_url().contains("/namespaces/");
    let stream = watch(api, config.clone())
        .default_backoff()
        // The largest part of an object by far, and nobody here reads it.
        .modify(|object| {
            object.managed_fields_mut().clear();
        })
        .reflect(writer);
    Box::pin(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                    tell(&object);
                }
                Ok(Event::Init) => {}
                Ok(Event::InitDone) => relisted(),
                // Of a namespace, and so of a member: its condition tells, once and not for every kind.
                Err(error) if of_member => {
                    tracing::debug!(kind = %K::kind(&()), %error, "watch broken; it is taken up again");
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch broken; it is taken up again");
                }
            }
        }
    })
}

/// Remembers what mattered of each object, to tell a changed description from a changed status.
#[derive(Default)]
struct Significance(Mutex<HashMap<(String, String), u64>>);

impl Significance {
    fn changed(&self, object: &impl Resource) -> bool {
        let meta = object.meta();
        let mut hasher = DefaultHasher::new();
        meta.uid.hash(&mut hasher);
        meta.generation.hash(&mut hasher);
        meta.labels.hash(&mut hasher);
        meta.annotations.hash(&mut hasher);
        meta.deletion_timestamp.is_some().hash(&mut hasher);
        let now = hasher.finish();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(key_of(object), now) != Some(now)
    }
}

impl Caches {
    /// Waits until every cache has been filled once.
    pub async fn wait_until_ready(&self) {
        // A writer that was dropped means the watches have ended; the process is about to.
        let _ = futures::join!(self.networks.wait_until_ready(), self.nodes.wait_until_ready(),);
        self.objects().wait_until_ready().await;
    }
}
