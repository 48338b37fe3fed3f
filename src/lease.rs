//! Leader election by a Lease: of several replicas one works.
//!
//! Every write names the resourceVersion it was decided on, so that of two candidates one fails. Ages
//! are measured on this process's monotonic clock, from when a change was *seen*: two machines' clocks
//! are never compared.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::apply::{ApiError, bounded, read};

/// A Lease that does not change for this long is free. Must exceed [`RENEW_DEADLINE`] by more than a
/// leader needs to end.
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long ends.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two tries to renew or to acquire.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// Where the Lease is kept. A trait, so that races can be played through in tests.
pub trait LeaseStore: Send + Sync + 'static {
    /// Reads the Lease; `None` = it does not exist.
    fn read(&self) -> impl Future<Output = Result<Option<Lease>, ApiError>> + Send;
    /// Creates it; fails if it exists.
    fn create(&self, lease: Lease) -> impl Future<Output = Result<Lease, ApiError>> + Send;
    /// Replaces exactly the version that `lease` names.
    fn replace(&self, lease: Lease) -> impl Future<Output = Result<Lease, ApiError>> + Send;
}

/// The Lease in the API server.
pub struct ApiStore {
    client: Client,
    namespace: String,
    name: String,
}

impl LeaseStore for ApiStore {
    async fn read(&self) -> Result<Option<Lease>, ApiError> {
        read(&self.client, &self.namespace, &self.name).await
    }

    async fn create(&self, mut lease: Lease) -> Result<Lease, ApiError> {
        lease.metadata = ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            ..ObjectMeta::default()
        };
        let api = Api::<Lease>::namespaced(self.client.clone(), &self.namespace);
        let what = || format!("create Lease {}/{}", self.namespace, self.name);
        bounded(what, api.create(&PostParams::default(), &lease)).await
    }

    async fn replace(&self, lease: Lease) -> Result<Lease, ApiError> {
        let api = Api::<Lease>::namespaced(self.client.clone(), &self.namespace);
        let what = || format!("update Lease {}/{}", self.namespace, self.name);
        bounded(what, api.replace(&self.name, &PostParams::default(), &lease)).await
    }
}

/// A candidate.
pub struct LeaderElection<S = ApiStore> {
    store: S,
    identity: String,
}

impl LeaderElection<ApiStore> {
    /// A candidate for the Lease `namespace`/`name`. `identity` must be unique among the replicas.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        let store = ApiStore { client, namespace: namespace.to_owned(), name: name.to_owned() };
        Self { store, identity: identity.to_owned() }
    }
}

/// The Lease as last seen, and when this version was first seen.
struct Seen {
    version: Option<String>,
    since: Instant,
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

impl<S: LeaseStore> LeaderElection<S> {
    /// Waits until this replica leads; `None` if it was stopped before.
    pub async fn acquire(self, stop: impl Future<Output = ()>) -> Option<Leadership> {
        let acquiring = async {
            let mut seen = None;
            loop {
                let began = Instant::now();
                match self.try_acquire(&mut seen).await {
                    Ok(Some(lease)) => return (lease, began),
                    Ok(None) => {}
                    Err(error) if error.code() == Some(409) => {}
                    Err(error) => tracing::warn!(%error, "the Lease could not be read or taken"),
                }
                sleep(RETRY_PERIOD).await;
            }
        };
        let (lease, began) = tokio::select! {
            acquired = acquiring => acquired,
            () = stop => return None,
        };
        let (lost_sender, lost) = watch::channel(false);
        let (renewed_sender, renewed) = watch::channel(began);
        let (release, released) = oneshot::channel();
        let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let term = Term { transitions: u64::try_from(transitions).unwrap_or(0), renewed };
        let renewing = tokio::spawn(self.hold(lease, renewed_sender, released, lost_sender));
        Some(Leadership { lost, term, release, renewing })
    }

    async fn try_acquire(&self, seen: &mut Option<Seen>) -> Result<Option<Lease>, ApiError> {
        let Some(lease) = self.store.read().await? else {
            let lease = Lease { spec: Some(self.taken(None)), ..Lease::default() };
            return self.store.create(lease).await.map(Some);
        };
        let version = &lease.metadata.resource_version;
        let since = match seen {
            Some(known) if known.version == *version => known.since,
            _ => {
                let since = Instant::now();
                *seen = Some(Seen { version: version.clone(), since });
                since
            }
        };
        // A process of the same name that ended without release is this one's past.
        let free = holder(&lease).is_empty() || holder(&lease) == self.identity;
        if !free && since.elapsed() < LEASE_DURATION {
            return Ok(None);
        }
        let spec = Some(self.taken(lease.spec.as_ref()));
        self.store.replace(Lease { spec, ..lease }).await.map(Some)
    }

    fn taken(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(now()),
            renew_time: Some(now()),
            lease_transitions: Some(transitions + i32::from(before.is_some())),
            ..LeaseSpec::default()
        }
    }

    /// Renews until it is released or lost. `renewed` = when the last successful write began: the
    /// others count from a later moment.
    async fn hold(
        self,
        mut lease: Lease,
        renewed: watch::Sender<Instant>,
        mut released: oneshot::Receiver<()>,
        lost: watch::Sender<bool>,
    ) {
        loop {
            tokio::select! {
                _ = &mut released => return self.give_up(lease).await,
                () = sleep(RETRY_PERIOD) => {}
            }
            let began = Instant::now();
            let left = RENEW_DEADLINE.saturating_sub(renewed.borrow().elapsed());
            match timeout(left, self.try_renew(&lease)).await {
                Ok(Ok(Some(fresh))) => {
                    lease = fresh;
                    renewed.send_replace(began);
                }
                Ok(Ok(None)) => {
                    tracing::error!("another replica holds the Lease");
                    lost.send_replace(true);
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be renewed"),
                Err(_) => tracing::warn!("the Lease could not be renewed in time"),
            }
            if renewed.borrow().elapsed() >= RENEW_DEADLINE {
                lost.send_replace(true);
                return;
            }
        }
    }

    /// Gives the renewed Lease, or `None` if somebody else holds it.
    async fn try_renew(&self, lease: &Lease) -> Result<Option<Lease>, ApiError> {
        match self.renew(lease).await {
            Err(error) if error.code() == Some(409) => {}
            result => return result.map(Some),
        }
        // Changed by somebody: by this process, if the answer to an earlier write was lost.
        let Some(current) = self.store.read().await? else {
            return Ok(None);
        };
        if holder(&current) != self.identity {
            return Ok(None);
        }
        self.renew(&current).await.map(Some)
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, ApiError> {
        let mut lease = lease.clone();
        lease.spec.get_or_insert_default().renew_time = Some(now());
        self.store.replace(lease).await
    }

    /// Frees the Lease, so that the next leader need not wait.
    async fn give_up(self, mut lease: Lease) {
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        if let Err(error) = self.store.replace(lease).await {
            tracing::warn!(%error, "the Lease could not be freed; the next leader waits for its end");
        }
    }
}

/// A leader's term, for those who must not act beyond its end.
#[derive(Clone)]
pub struct Term {
    transitions: u64,
    renewed: watch::Receiver<Instant>,
}

impl Term {
    /// How often the Lease went from one holder to another before this term.
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// What is left of the Lease if it cannot be renewed any more.
    pub fn remaining(&self) -> Duration {
        RENEW_DEADLINE.saturating_sub(self.renewed.borrow().elapsed())
    }
}

/// This replica leads, until the Lease is lost or released.
pub struct Leadership {
    lost: watch::Receiver<bool>,
    term: Term,
    release: oneshot::Sender<()>,
    renewing: JoinHandle<()>,
}

impl Leadership {
    /// Its term.
    pub fn term(&self) -> Term {
        self.term.clone()
    }

    /// Resolves when this replica must not act any more.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut lost = self.lost.clone();
        async move {
            // A closed channel: nobody renews any more.
            let _ = lost.wait_for(|lost| *lost).await;
        }
    }

    /// Frees the Lease.
    pub async fn release(self) {
        // If the receiver is gone, the Lease is lost already.
        let _ = self.release.send(());
        if let Err(error) = self.renewing.await {
            tracing::warn!(%error, "the Lease's task ended badly");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A Lease with compare-and-swap, and a switch that makes every request fail.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        lease: Option<Lease>,
        version: u64,
        down: bool,
        lose_answer: bool,
    }

    fn failed(code: u16) -> ApiError {
        let status = kube::core::Status { code, ..kube::core::Status::default() };
        ApiError::Request {
            what: "test".to_owned(),
            source: Box::new(kube::Error::Api(Box::new(status))),
        }
    }

    impl Fake {
        fn put(&self, mut lease: Lease, expected: Option<&str>) -> Result<Lease, ApiError> {
            let mut state = self.0.lock().unwrap();
            if state.down {
                return Err(failed(503));
            }
            let current =
                state.lease.as_ref().and_then(|lease| lease.metadata.resource_version.as_deref());
            if current != expected {
                return Err(failed(409));
            }
            state.version += 1;
            lease.metadata.resource_version = Some(state.version.to_string());
            state.lease = Some(lease.clone());
            if std::mem::take(&mut state.lose_answer) { Err(failed(504)) } else { Ok(lease) }
        }

        fn holder(&self) -> String {
            self.0.lock().unwrap().lease.as_ref().map(|lease| holder(lease).to_owned()).unwrap()
        }

        fn candidate(&self, identity: &str) -> LeaderElection<Self> {
            LeaderElection { store: self.clone(), identity: identity.to_owned() }
        }
    }

    impl LeaseStore for Fake {
        async fn read(&self) -> Result<Option<Lease>, ApiError> {
            let state = self.0.lock().unwrap();
            if state.down { Err(failed(503)) } else { Ok(state.lease.clone()) }
        }

        async fn create(&self, lease: Lease) -> Result<Lease, ApiError> {
            self.put(lease, None)
        }

        async fn replace(&self, lease: Lease) -> Result<Lease, ApiError> {
            let version = lease.metadata.resource_version.clone();
            self.put(lease, version.as_deref())
        }
    }

    fn never() -> impl Future<Output = ()> {
        std::future::pending()
    }

    async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> Option<T> {
        timeout(Duration::from_secs(seconds), future).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_the_other_waits_until_it_is_released() {
        let lease = Fake::default();
        let first = lease.candidate("a").acquire(never()).await.unwrap();
        assert!(within(60, lease.candidate("b").acquire(never())).await.is_none());
        first.release().await;
        assert!(within(3, lease.candidate("b").acquire(never())).await.is_some());
        assert_eq!(lease.holder(), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_cut_off_ends_before_another_takes_over() {
        let lease = Fake::default();
        let first = lease.candidate("a").acquire(never()).await.unwrap();
        let start = Instant::now();
        lease.0.lock().unwrap().down = true;
        first.lost().await;
        let ended = start.elapsed();
        assert!(ended <= RENEW_DEADLINE + RETRY_PERIOD, "{ended:?}");
        lease.0.lock().unwrap().down = false;
        let waiting = Instant::now();
        lease.candidate("b").acquire(never()).await.unwrap();
        assert!(
            waiting.elapsed() >= LEASE_DURATION,
            "an unchanged Lease is watched for its whole time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_does_not_cost_the_lead_but_another_holder_does() {
        let lease = Fake::default();
        let first = lease.candidate("a").acquire(never()).await.unwrap();
        lease.0.lock().unwrap().lose_answer = true;
        assert!(within(60, first.lost()).await.is_none());
        {
            let mut state = lease.0.lock().unwrap();
            state.version += 1;
            let version = state.version.to_string();
            let stolen = state.lease.as_mut().unwrap();
            stolen.metadata.resource_version = Some(version);
            stolen.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
        }
        assert!(within(3, first.lost()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_candidates_at_once_one_wins() {
        let lease = Fake::default();
        let (a, b) = tokio::join!(
            within(10, lease.candidate("a").acquire(never())),
            within(10, lease.candidate("b").acquire(never())),
        );
        assert!(a.is_some() != b.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_candidate_leaves() {
        let lease = Fake::default();
        let _first = lease.candidate("a").acquire(never()).await.unwrap();
        let stop = sleep(Duration::from_secs(1));
        assert!(lease.candidate("b").acquire(stop).await.is_none());
    }
}
