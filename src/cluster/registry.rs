//! All clusters by name: what can be used now. Asking never dials and never blocks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Client, Resource};
use tokio::time::Instant;

use super::watches::Objects;
use crate::api::conditions::Reason;
use crate::api::{BsnNode, ClusterDefaults, ClusterImage};
use crate::controller::Refusal;

/// Name of the hub, in which the operator runs.
pub const HUB: &str = "";

/// A cluster as it is known now.
pub struct ClusterHandle {
    /// Its name; [`HUB`] for the hub.
    pub name: String,
    /// Whether it can be used at all, and if not, why.
    pub standing: Result<(), (Reason, String)>,
    /// When it answered last. The hub is not asked.
    pub last_contact: Option<Instant>,
    /// What holds for nodes there unless their node set says otherwise; `None` = its description does not parse.
    pub defaults: Option<ClusterDefaults>,
    /// Image of the agents in every node's pod there.
    pub agent_image: ClusterImage,
    /// Its client, once it has one.
    client: Option<Client>,
    objects: Known,
}

/// What is known of its objects, from filled caches only.
enum Known {
    /// In all namespaces.
    Everywhere(Objects),
    /// In these, or why not.
    In(BTreeMap<String, InNamespace>),
}

/// What is known of a namespace's objects, or why nothing is.
pub type InNamespace = Result<Objects, (Reason, String)>;

impl ClusterHandle {
    /// The hub.
    pub fn hub(client: Client, objects: Objects, agent_image: ClusterImage) -> Self {
        Self {
            name: HUB.to_owned(),
            standing: Ok(()),
            last_contact: None,
            defaults: Some(ClusterDefaults::default()),
            agent_image,
            client: Some(client),
            objects: Known::Everywhere(objects),
        }
    }

    /// A member, with its allowed namespaces.
    pub fn member(
        name: &str,
        standing: Result<(), (Reason, String)>,
        last_contact: Option<Instant>,
        defaults: Option<ClusterDefaults>,
        agent_image: ClusterImage,
        client: Option<Client>,
        namespaces: BTreeMap<String, InNamespace>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            standing,
            last_contact,
            defaults,
            agent_image,
            client,
            objects: Known::In(namespaces),
        }
    }

    /// What was seen last of the objects in a namespace, also while the cluster cannot be reached. `None` = that
    /// namespace is not watched, or its caches are not filled yet.
    pub fn objects(&self, namespace: &str) -> Option<&Objects> {
        match &self.objects {
            Known::Everywhere(objects) => Some(objects),
            Known::In(namespaces) => namespaces.get(namespace)?.as_ref().ok(),
        }
    }
}

/// Where the objects of a node are: everything a controller needs to read and write them.
#[derive(Clone)]
pub struct Place {
    /// The cluster's name.
    pub cluster: String,
    /// Its client.
    pub client: Client,
    /// What the watches know of the namespace.
    pub objects: Objects,
    /// What holds for nodes there unless their node set says otherwise.
    pub defaults: ClusterDefaults,
    /// Image of the agents in every node's pod there.
    pub agent_image: ClusterImage,
}

impl Place {
    /// A cluster of which nothing is known yet, for tests.
    #[cfg(test)]
    pub fn fake(cluster: &str, client: Client) -> Self {
        Self {
            cluster: cluster.to_owned(),
            client,
            objects: Objects::empty(),
            defaults: ClusterDefaults::default(),
            agent_image: ClusterImage { reference: "operator:1".into(), pull_secret_name: None },
        }
    }

    /// Whether it is on the hub, where what is described owns what is made of it.
    pub fn is_hub(&self) -> bool {
        self.cluster == HUB
    }

    /// The node's description as owner of an object there; none in another cluster, where its uid means nothing and
    /// the garbage collector would take the object for an orphan.
    pub fn owner(&self, node: &BsnNode) -> Option<OwnerReference> {
        if self.is_hub() { node.controller_owner_ref(&()) } else { None }
    }
}

/// What the watches last saw of a namespace's objects in a cluster.
pub struct Seen {
    /// The objects.
    pub objects: Objects,
    /// The cluster can be asked, so what was seen is as young as a watch makes it; else it is of the past.
    pub fresh: bool,
}

/// Why a cluster cannot be used for a namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// No cluster of this name.
    #[error("there is no BsnCluster {0}. Make it: kubectl bsn cluster join {0} --kubeconfig FILE")]
    NoCluster(String),
    /// It does not host this namespace.
    #[error(
        "the cluster {cluster} is not for namespace {namespace}. Add it: kubectl bsn cluster join {cluster} \
         --kubeconfig FILE -n {namespace}"
    )]
    NotAllowed {
        /// The cluster.
        cluster: String,
        /// The namespace.
        namespace: String,
    },
    /// It cannot be used now.
    #[error("cluster {cluster}: {message}")]
    Unusable {
        /// The cluster.
        cluster: String,
        /// Why, in one word.
        reason: Reason,
        /// Why, and what to do.
        message: String,
    },
}

impl From<Absent> for Refusal {
    fn from(absent: Absent) -> Self {
        let reason = match &absent {
            Absent::NoCluster(_) => Reason::ClusterMissing,
            Absent::NotAllowed { .. } => Reason::NamespaceMissing,
            Absent::Unusable { reason, .. } => *reason,
        };
        Self::new(reason, absent.to_string())
    }
}

/// All clusters; clones share them.
#[derive(Clone, Default)]
pub struct Clusters {
    all: Arc<RwLock<BTreeMap<String, Arc<ClusterHandle>>>>,
    /// The `BsnCluster`s were listed once: one that is not known does not exist.
    listed: Arc<AtomicBool>,
}

impl Clusters {
    /// A registry that knows the hub.
    pub fn with_hub(client: Client, objects: Objects, agent_image: ClusterImage) -> Self {
        let clusters = Self::default();
        clusters.put(ClusterHandle::hub(client, objects, agent_image));
        clusters
    }

    /// A cluster as it is known now; it may be unreachable.
    pub fn get(&self, name: &str) -> Option<Arc<ClusterHandle>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// A cluster's client, if it can be used now: for what is in no namespace.
    pub fn client(&self, name: &str) -> Option<Client> {
        let cluster = self.get(name)?;
        cluster.standing.is_ok().then(|| cluster.client.clone())?
    }

    /// A namespace of a cluster, if it can be used now.
    pub fn place(&self, name: &str, namespace: &str) -> Result<Place, Absent> {
        let Some(cluster) = self.get(name) else {
            if self.listed.load(Ordering::Acquire) {
                return Err(Absent::NoCluster(name.to_owned()));
            }
            let message = "the operator has just started and lists the clusters".to_owned();
            return Err(Absent::Unusable {
                cluster: name.to_owned(),
                reason: Reason::Connecting,
                message,
            });
        };
        if let Err((reason, message)) = cluster.standing.clone() {
            return Err(Absent::Unusable { cluster: name.to_owned(), reason, message });
        }
        let unusable = |(reason, message): (Reason, String)| Absent::Unusable {
            cluster: name.to_owned(),
            reason,
            message,
        };
        let objects = match &cluster.objects {
            Known::Everywhere(objects) => Some(objects),
            Known::In(namespaces) => match namespaces.get(namespace) {
                Some(Ok(objects)) => Some(objects),
                Some(Err(why)) => return Err(unusable(why.clone())),
                None => None,
            },
        };
        match (&cluster.client, objects) {
            (Some(client), Some(objects)) => Ok(Place {
                cluster: name.to_owned(),
                client: client.clone(),
                objects: objects.clone(),
                // A cluster whose description does not parse does not stand.
                defaults: cluster.defaults.clone().unwrap_or_default(),
                agent_image: cluster.agent_image.clone(),
            }),
            _ => Err(Absent::NotAllowed {
                cluster: name.to_owned(),
                namespace: namespace.to_owned(),
            }),
        }
    }

    /// What was last seen of a namespace's objects in a cluster; `None` = nothing.
    pub fn seen(&self, name: &str, namespace: &str) -> Option<Seen> {
        let fresh = self.place(name, namespace).is_ok();
        let objects = self.get(name)?.objects(namespace)?.clone();
        Some(Seen { objects, fresh })
    }

    /// All clusters, the hub first.
    pub fn all(&self) -> Vec<Arc<ClusterHandle>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// All `BsnCluster`s there are, are known.
    pub(super) fn set_listed(&self) {
        self.listed.store(true, Ordering::Release);
    }

    /// Knows a cluster like this from now on. Tells whether what can be used of it has changed.
    pub(crate) fn put(&self, handle: ClusterHandle) -> bool {
        let usable = |handle: &ClusterHandle| {
            let namespaces = match &handle.objects {
                Known::Everywhere(_) => Vec::new(),
                Known::In(namespaces) => namespaces
                    .iter()
                    .map(|(name, found)| (name.clone(), found.as_ref().err().map(|(why, _)| *why)))
                    .collect(),
            };
            let standing = handle.standing.as_ref().err().map(|(reason, _)| *reason);
            (standing, namespaces, handle.defaults.clone(), handle.agent_image.clone())
        };
        let now = usable(&handle);
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let before = all.insert(handle.name.clone(), Arc::new(handle));
        before.is_none_or(|before| usable(&before) != now)
    }

    /// Knows a cluster no more.
    pub(super) fn remove(&self, name: &str) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}
