//! Proves that the machines of member clusters can run the agents' image, before anything there depends on it. A node
//! whose guard and gateway cannot be pulled does not come back from its restart.
//!
//! Asking never waits. The first question about a namespace begins a task that runs a small pod there, looks at it in the
//! watch's cache and deletes it; while somebody asks, a failure is tried again. What was proved is kept in memory. After a
//! restart of the operator, nodes that run are proof enough, so that nothing is written then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::runtime::reflector::Store;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::image::{Proof, is_over, judge_pod, runs};
use super::registry::{Clusters, Place};
use super::watches::{Described, Objects, Triggers, cached};
use crate::api::ClusterImage;
use crate::apply::{bounded, delete};
use crate::build::image_proof::{build_image_proof, proof_name};
use crate::labels;

/// Between two looks at what the cache holds.
const LOOK: Duration = Duration::from_secs(1);
/// How long the cache may take to show a pod that was made.
const SHOWN: Duration = Duration::from_secs(10);
/// Before what failed is tried again. A new pod is pulled for at once; the kubelet would wait up to five minutes.
const RETRY: Duration = Duration::from_mins(1);
/// How long a failure is tried again after the last question: longer than the time between two looks at a node.
const WANTED: Duration = Duration::from_mins(15);

/// A namespace of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    cluster: String,
    namespace: String,
}

/// What is known of a cluster's image in a namespace.
struct Entry {
    image: ClusterImage,
    proof: Proof,
    wanted_at: Instant,
    under_way: bool,
    // The task ends with this.
    task: JoinSet<()>,
}

impl Entry {
    fn new(image: &ClusterImage) -> Self {
        Self {
            image: image.clone(),
            proof: Proof::trying(),
            wanted_at: Instant::now(),
            under_way: false,
            task: JoinSet::new(),
        }
    }
}

/// All that is proved, and being proved; clones share it.
#[derive(Clone)]
pub struct Proofs(Arc<Shared>);

struct Shared {
    hub_id: String,
    clusters: Clusters,
    described: Described,
    triggers: Triggers,
    entries: Mutex<BTreeMap<Spot, Entry>>,
    news: watch::Sender<()>,
}

impl Proofs {
    /// Knows nothing yet.
    pub fn new(
        hub_id: String,
        clusters: Clusters,
        described: Described,
        triggers: Triggers,
    ) -> Self {
        let news = watch::Sender::new(());
        let entries = Mutex::default();
        Self(Arc::new(Shared { hub_id, clusters, described, triggers, entries, news }))
    }

    /// Whether the agents' image can be run in a namespace, as far as that is known now. If it is not known, it is tried
    /// from now on, and who may be waiting there is told.
    pub fn ask(&self, place: &Place, namespace: &str) -> Proof {
        // There the operator runs from that image itself.
        if place.is_hub() {
            return Proof::Proved;
        }
        let image = &place.agent_image;
        let spot = Spot { cluster: place.cluster.clone(), namespace: namespace.to_owned() };
        let mut entries = self.entries();
        let entry = entries.entry(spot.clone()).or_insert_with(|| Entry::new(image));
        if entry.image != *image {
            *entry = Entry::new(image);
        }
        entry.wanted_at = Instant::now();
        if entry.proof != Proof::Proved && is_run(&place.objects.pods, namespace, image) {
            entry.proof = Proof::Proved;
            self.0.news.send_replace(());
        }
        if entry.proof != Proof::Proved && !entry.under_way {
            entry.under_way = true;
            self.0.news.send_replace(());
            entry.task.spawn(Try::new(self.clone(), spot, image.clone()).run());
        }
        entry.proof.clone()
    }

    /// What is known of an image in a namespace; `None` = nothing. Nothing is begun.
    pub fn known(
        &self,
        cluster: &str,
        namespace: &str,
        image: &ClusterImage,
        objects: Option<&Objects>,
    ) -> Option<Proof> {
        let spot = Spot { cluster: cluster.to_owned(), namespace: namespace.to_owned() };
        if let Some(entry) = self.entries().get(&spot).filter(|entry| entry.image == *image) {
            return Some(entry.proof.clone());
        }
        objects.filter(|objects| is_run(&objects.pods, namespace, image)).map(|_| Proof::Proved)
    }

    /// Comes when something else is known.
    pub fn news(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// Forgets a cluster: another one may have its name next.
    pub fn forget(&self, cluster: &str) {
        self.entries().retain(|spot, _| spot.cluster != cluster);
    }

    /// Removes pods that prove nothing any more: an operator before this one left them, or the image is another one now.
    pub async fn sweep(&self, cluster: &str, namespace: &str, client: &Client, objects: &Objects) {
        let spot = Spot { cluster: cluster.to_owned(), namespace: namespace.to_owned() };
        let tried = self
            .entries()
            .get(&spot)
            .filter(|entry| entry.under_way)
            .map(|entry| proof_name(&self.0.hub_id, &entry.image));
        let left = objects.pods.state_filter(|pod| {
            pod.metadata.deletion_timestamp.is_none()
                && self.is_ours(pod)
                && Some(pod.name_any()) != tried
        });
        for pod in left {
            if let Err(error) = delete(client, &*pod).await {
                tracing::warn!(%cluster, %error, "a pod that tried an image is left");
            }
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let label = |key: &str| pod.labels().get(key).map(String::as_str);
        label(labels::IMAGE_PROOF) == Some("true")
            && label(labels::HUB_ID) == Some(self.0.hub_id.as_str())
    }

    /// Notes what was found. Whoever waits there is told if that is something else.
    fn note(&self, spot: &Spot, image: &ClusterImage, found: Proof) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(spot).filter(|entry| entry.image == *image) else {
            return;
        };
        let proof = entry.proof.after(found);
        if proof == entry.proof {
            return;
        }
        let (cluster, namespace) = (&spot.cluster, &spot.namespace);
        tracing::info!(%cluster, %namespace, image = %image.reference, ?proof, "the agents' image");
        entry.proof = proof;
        drop(entries);
        self.0.news.send_replace(());
        self.0.triggers.in_namespace(&self.0.described, namespace);
    }

    /// Whether the answer is still waited for.
    fn is_wanted(&self, spot: &Spot, image: &ClusterImage) -> bool {
        let entries = self.entries();
        entries.get(spot).is_some_and(|entry| {
            entry.image == *image
                && entry.proof != Proof::Proved
                && entry.wanted_at.elapsed() < WANTED
        })
    }

    /// Nothing is under way any more; the next question begins it anew.
    fn end(&self, spot: &Spot, image: &ClusterImage) {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(spot).filter(|entry| entry.image == *image) {
            entry.under_way = false;
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Spot, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a node there runs from the image.
fn is_run(pods: &Store<Pod>, namespace: &str, image: &ClusterImage) -> bool {
    let here = |pod: &&Arc<Pod>| pod.metadata.namespace.as_deref() == Some(namespace);
    pods.state().iter().filter(here).any(|pod| runs(pod, image))
}

/// An image being tried in a namespace.
struct Try {
    proofs: Proofs,
    spot: Spot,
    image: ClusterImage,
    /// When a pod may be made again.
    not_before: Instant,
    /// The pod that is looked at, by its uid, and since when.
    looked_at: Option<(String, Instant)>,
}

impl Try {
    fn new(proofs: Proofs, spot: Spot, image: ClusterImage) -> Self {
        Self { proofs, spot, image, not_before: Instant::now(), looked_at: None }
    }

    async fn run(mut self) {
        while self.proofs.is_wanted(&self.spot, &self.image) {
            let place = self.proofs.0.clusters.place(&self.spot.cluster, &self.spot.namespace);
            // A cluster that cannot be used says nothing; who still wants to know asks again.
            let Ok(place) = place else { break };
            if let Some(found) = self.look(&place).await {
                self.proofs.note(&self.spot, &self.image, found);
            }
            sleep(LOOK).await;
        }
        self.proofs.end(&self.spot, &self.image);
    }

    /// Takes one look; `None` = nothing is to be seen yet.
    async fn look(&mut self, place: &Place) -> Option<Proof> {
        let (namespace, hub_id) = (&self.spot.namespace, &self.proofs.0.hub_id);
        let name = proof_name(hub_id, &self.image);
        let Some(pod) = cached(&place.objects.pods, namespace, &name) else {
            return self.make(place).await;
        };
        if !self.proofs.is_ours(&pod) {
            let message =
                format!("Pod {namespace}/{name} exists and is not the operator's; delete it");
            return Some(Proof::NotYet(message));
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let uid = pod.uid().unwrap_or_default();
        let since = match &self.looked_at {
            Some((known, since)) if *known == uid => *since,
            _ => {
                let now = Instant::now();
                self.looked_at = Some((uid.clone(), now));
                now
            }
        };
        let found = judge_pod(&pod);
        let failed = is_over(&pod) || matches!(found, Proof::Unavailable(_));
        if found == Proof::Proved || (failed && since.elapsed() >= RETRY) {
            if let Err(error) = delete(&place.client, &*pod).await {
                // Swept up later, if it is not looked at again.
                tracing::warn!(cluster = %place.cluster, %error, "a pod that tried an image is left");
            }
            // Once is enough; the cache shows it in a moment.
            self.looked_at = Some((uid, Instant::now()));
            self.not_before = Instant::now();
        }
        Some(found)
    }

    async fn make(&mut self, place: &Place) -> Option<Proof> {
        if Instant::now() < self.not_before {
            return None;
        }
        let namespace = &self.spot.namespace;
        let pod = build_image_proof(&self.proofs.0.hub_id, &place.cluster, namespace, &self.image);
        let api = Api::<Pod>::namespaced(place.client.clone(), namespace);
        let what = || format!("create Pod {namespace}/{}", pod.name_any());
        match bounded(what, api.create(&PostParams::default(), &pod)).await {
            Err(error) if error.code() != Some(409) => {
                // A quota, or an admission that wants more of pods.
                self.not_before = Instant::now() + RETRY;
                Some(Proof::NotYet(format!("the pod that tries it was not made: {error}")))
            }
            // One that is there already is seen in a moment.
            _ => {
                self.not_before = Instant::now() + SHOWN;
                None
            }
        }
    }
}

#[cfg(test)]
#[path = "proofs_tests.rs"]
mod tests;
