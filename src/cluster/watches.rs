//! One watch per kind. Each keeps a cache and says which network or node an event is about.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use bsn_core::names::NetworkName;
use futures::FutureExt;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::{DeserializeGuard, PartialObjectMeta, PartialObjectMetaExt};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};

use super::namespaces::Scope;
use super::streams::{LONGEST_PAUSE_WITHOUT_RIGHT, watch_kind, watch_with_pauses};
use crate::api::{BsnNetwork, BsnNode};
use crate::build::service::is_mirror;
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
    /// What makes up nodes, on the hub.
    pub objects: Objects,
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
    /// Where the Services of nodes in other clusters lead.
    pub slices: Store<EndpointSlice>,
    /// Disks of nodes.
    pub disks: Store<PersistentVolumeClaim>,
    /// `ConfigMap`s of networks and nodes.
    pub config_maps: Store<ConfigMap>,
    /// Disruption budgets of networks.
    pub budgets: Store<PodDisruptionBudget>,
    /// Policies of networks. They are not waited for: see [`Objects::policies`].
    pub policies: Store<NetworkPolicy>,
}

impl Objects {
    /// Of no watch, for tests: each of them puts what it fills in the place of one.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self {
            stateful_sets: reflector::store().0,
            pods: reflector::store().0,
            services: reflector::store().0,
            slices: reflector::store().0,
            disks: reflector::store().0,
            config_maps: reflector::store().0,
            budgets: reflector::store().0,
            policies: reflector::store().0,
        }
    }

    /// Waits until every cache has been filled once.
    pub async fn wait_until_ready(&self) {
        // A writer that was dropped means the watches have ended; nobody uses the caches any more.
        let _ = futures::join!(
            self.stateful_sets.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.services.wait_until_ready(),
            self.slices.wait_until_ready(),
            self.disks.wait_until_ready(),
            self.config_maps.wait_until_ready(),
            self.budgets.wait_until_ready(),
        );
    }

    /// Whether every cache has been filled once. Deciding on a half-filled one would make things that are there.
    pub fn is_ready(&self) -> bool {
        self.wait_until_ready().now_or_never().is_some()
    }

    /// The policies of networks, once they are known. Where the operator has no right to them they never are; that is
    /// told, and is no reason to leave everything else as it is.
    pub fn policies(&self) -> Option<&Store<NetworkPolicy>> {
        self.policies.wait_until_ready().now_or_never()?.ok().map(|()| &self.policies)
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

    /// Asks for a look at every network and node of a namespace.
    pub fn in_namespace(&self, described: &Described, namespace: &str) {
        let networks = described.networks.state();
        for (of, name) in networks.iter().map(|network| key_of(&**network)) {
            if of == namespace {
                self.network(&of, &name);
            }
        }
        let nodes = described.nodes.state();
        for (of, name) in nodes.iter().map(|node| key_of(&**node)) {
            if of == namespace {
                self.node(&of, &name);
            }
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

/// What is left of those nodes of a network that do not parse, by the cache and their labels.
pub fn unparsable_nodes_of(
    caches: &Caches,
    namespace: &str,
    network_id: &str,
) -> Vec<PartialObjectMeta<BsnNode>> {
    let found = caches.nodes.state_filter(|guarded| {
        guarded.0.is_err()
            && guarded.namespace().as_deref() == Some(namespace)
            && guarded.labels().get(labels::NETWORK_ID).map(String::as_str) == Some(network_id)
    });
    found.iter().map(|guarded| guarded.meta().clone().into_response_partial()).collect()
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

/// Sets up all watches of the hub, in the namespaces of `scope`; they run once `tasks` are driven.
pub fn watch_hub(client: &Client, scope: Scope<'_>) -> Watches {
    let (network_sender, network_queue) = mpsc::unbounded();
    let (node_sender, node_queue) = mpsc::unbounded();
    let triggers = Triggers { networks: network_sender, nodes: node_sender };

    let (networks, networks_writer) = reflector::store();
    let (nodes, nodes_writer) = reflector::store();
    let described = Described { networks: networks.clone(), nodes: nodes.clone() };
    let (objects, mut tasks) = watch_objects(client, scope, &described, &triggers);
    let caches = Caches { networks, nodes, objects };

    let all = watcher::Config::default();
    let relisted = relisted(&described, &triggers);
    let (d, t, seen) = (described.clone(), triggers.clone(), Seen::default());
    tasks.push(watch_kind(
        (client, scope),
        &all,
        networks_writer,
        relisted.clone(),
        move |network: &GuardedNetwork| {
            let (namespace, name) = key_of(network);
            t.network(&namespace, &name);
            // Nodes depend on the description, not on the network's status.
            if seen.changed(network, description(network)) {
                t.nodes_of(&d, &namespace, &name);
            }
        },
    ));

    let (t, seen) = (triggers.clone(), Seen::default());
    tasks.push(watch_kind(
        (client, scope),
        &all,
        nodes_writer,
        relisted,
        move |node: &GuardedNode| {
            let (namespace, name) = key_of(node);
            // The network counts its ready nodes; the node itself need not see its own status.
            if let Some(network) = node.labels().get(labels::NETWORK) {
                t.network(&namespace, network);
            }
            if seen.changed(node, description(node)) {
                t.node(&namespace, &name);
            }
        },
    ));

    Watches { caches, triggers, network_queue, node_queue, tasks }
}

/// Sets up the watches of the objects that make up nodes, in the namespaces of `scope`; they run once the tasks
/// are driven. An object is about the network or node of the same namespace, in whichever cluster it is.
pub fn watch_objects(
    client: &Client,
    scope: Scope<'_>,
    described: &Described,
    triggers: &Triggers,
) -> (Objects, Vec<BoxFuture<'static, ()>>) {
    let (stateful_sets, stateful_sets_writer) = reflector::store();
    let (pods, pods_writer) = reflector::store();
    let (services, services_writer) = reflector::store();
    let (slices, slices_writer) = reflector::store();
    let (disks, disks_writer) = reflector::store();
    let (config_maps, config_maps_writer) = reflector::store();
    let (budgets, budgets_writer) = reflector::store();
    let (policies, policies_writer) = reflector::store();
    let objects =
        Objects { stateful_sets, pods, services, slices, disks, config_maps, budgets, policies };

    let ours = watcher::Config::default().labels(&labels::managed_selector());
    let our_slices = watcher::Config::default().labels(&labels::slice_selector());
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
    let (of, r) = ((client, scope), relisted);
    let tasks = vec![
        watch_kind(of, &ours, stateful_sets_writer, r.clone(), by_node::<StatefulSet>(triggers)),
        watch_kind(of, &ours, pods_writer, r.clone(), by_pod(triggers)),
        watch_kind(of, &ours, services_writer, r.clone(), by_service(described, triggers)),
        watch_kind(
            of,
            &our_slices,
            slices_writer,
            r.clone(),
            by_network::<EndpointSlice>(triggers),
        ),
        watch_kind(of, &ours, disks_writer, r.clone(), by_node::<PersistentVolumeClaim>(triggers)),
        watch_kind(of, &ours, config_maps_writer, r.clone(), by_map),
        watch_kind(
            of,
            &ours,
            budgets_writer,
            r.clone(),
            by_network::<PodDisruptionBudget>(triggers),
        ),
        watch_with_pauses(
            of,
            &ours,
            // A role of an older version gives no right to them, perhaps for months.
            LONGEST_PAUSE_WITHOUT_RIGHT,
            policies_writer,
            r,
            by_network::<NetworkPolicy>(triggers),
        ),
    ];
    (objects, tasks)
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

/// What a network's nodes share is about that network.
fn by_network<K: Resource>(triggers: &Triggers) -> impl Fn(&K) + Send + 'static + use<K> {
    let triggers = triggers.clone();
    move |object| {
        if let Some(network) = object.labels().get(labels::NETWORK) {
            triggers.network(&object.namespace().unwrap_or_default(), network);
        }
    }
}

/// A pod is about its node; where it is, about the network, which makes the node known by that in other clusters.
fn by_pod(triggers: &Triggers) -> impl Fn(&Pod) + Send + 'static + use<> {
    let (node, network) = (by_node(triggers), by_network(triggers));
    let seen = Seen::default();
    move |pod| {
        node(pod);
        let status = pod.status.as_ref();
        let address = status.map(|status| (&status.pod_ip, &status.host_ip));
        if seen.changed(pod, address) {
            network(pod);
        }
    }
}

/// The same of a node's Service. One that stands for a node elsewhere is the network's, and all nodes wait for it before
/// they start.
fn by_service(
    described: &Described,
    triggers: &Triggers,
) -> impl Fn(&Service) + Send + 'static + use<> {
    let (node, network) = (by_node(triggers), by_network(triggers));
    let (described, triggers) = (described.clone(), triggers.clone());
    let seen = Seen::default();
    move |service| {
        if is_mirror(service) {
            network(service);
            if let Some(network) = service.labels().get(labels::NETWORK) {
                triggers.nodes_of(&described, &key_of(service).0, network);
            }
            return;
        }
        node(service);
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
        let ports: Vec<_> = ports.into_iter().flatten().map(|port| port.node_port).collect();
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let entries = balancer.and_then(|balancer| balancer.ingress.as_ref());
        let entries = entries.into_iter().flatten().map(|entry| (&entry.ip, &entry.hostname));
        if seen.changed(service, (ports, entries.collect::<Vec<_>>())) {
            network(service);
        }
    }
}

/// Remembers what mattered of each object, to tell a change of that from any other.
#[derive(Default)]
struct Seen(Mutex<HashMap<(String, String), u64>>);

impl Seen {
    /// Whether this is another object, or what matters of it has changed.
    fn changed(&self, object: &impl Resource, matters: impl Hash) -> bool {
        let mut hasher = DefaultHasher::new();
        object.meta().uid.hash(&mut hasher);
        matters.hash(&mut hasher);
        let now = hasher.finish();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(key_of(object), now) != Some(now)
    }
}

/// What is described, without what is reported.
fn description(object: &impl Resource) -> impl Hash {
    let meta = object.meta();
    (meta.generation, &meta.labels, &meta.annotations, meta.deletion_timestamp.is_some())
}

impl Caches {
    /// Waits until every cache has been filled once.
    pub async fn wait_until_ready(&self) {
        // A writer that was dropped means the watches have ended; the process is about to.
        let _ = futures::join!(self.networks.wait_until_ready(), self.nodes.wait_until_ready(),);
        self.objects.wait_until_ready().await;
    }
}
