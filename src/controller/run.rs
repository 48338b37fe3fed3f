//! Runs the controllers over their queues, with bounded concurrency, deadlines and back-off.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use kube::Resource;
use kube::runtime::applier;
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::time::Instant;

use super::Error;
use super::context::Context;

/// Passes under way at once, per controller. More gain nothing: the API server is the limit.
const CONCURRENCY: u16 = 8;
/// Events about one object that arrive within this time lead to one pass. Short, so that a busy
/// object is never put off for long.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Longest a pass may take; its requests have shorter deadlines of their own.
const PASS_DEADLINE: Duration = Duration::from_mins(1);
/// First wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait after a failure.
const LAST_RETRY: Duration = Duration::from_mins(1);

/// How often an object failed in a row.
struct Backoff<K: Resource>(Mutex<HashMap<ObjectRef<K>, u32>>)
where
    K::DynamicType: Eq + Hash;

impl<K: Resource<DynamicType = ()>> Backoff<K> {
    fn failed(&self, object: &K) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(ObjectRef::from_obj(object)).or_insert(0);
        let wait = FIRST_RETRY.saturating_mul(1 << (*count).min(6));
        *count = count.saturating_add(1);
        wait.min(LAST_RETRY)
    }

    fn succeeded(&self, object: &K) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&ObjectRef::from_obj(object));
    }
}

type Pass = Pin<Box<dyn Future<Output = Result<Action, Error>> + Send>>;

/// Runs one controller until `stop` resolves and its passes under way have ended.
pub async fn run_controller<K, F>(
    name: &'static str,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Send + Sync + 'static,
    ctx: Arc<Context>,
    store: Store<K>,
    queue: UnboundedReceiver<ObjectRef<K>>,
    stop: impl Future<Output = ()> + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let backoff: Arc<Backoff<K>> = Arc::new(Backoff(Mutex::new(HashMap::new())));
    let after_failure = backoff.clone();
    let pass = move |object: Arc<K>, ctx: Arc<Context>| -> Pass {
        let started = Instant::now();
        let running = reconcile(object.clone(), ctx.clone());
        let backoff = backoff.clone();
        async move {
            let result = match tokio::time::timeout(PASS_DEADLINE, running).await {
                Ok(result) => result,
                Err(_) => Err(Error::PassDeadline(PASS_DEADLINE)),
            };
            match &result {
                Ok(_) => backoff.succeeded(object.as_ref()),
                Err(error) => ctx.metrics.reconcile_error(name, error.category()),
            }
            let outcome = if result.is_ok() { "ok" } else { "error" };
            ctx.metrics.reconciled(name, outcome, started.elapsed());
            result
        }
        .boxed()
    };
    let on_error = move |object: Arc<K>, error: &Error, _: Arc<Context>| {
        let wait = after_failure.failed(object.as_ref());
        let meta = object.meta();
        tracing::warn!(
            controller = name,
            namespace = meta.namespace.as_deref().unwrap_or_default(),
            name = meta.name.as_deref().unwrap_or_default(),
            category = error.category(),
            retry_in = ?wait,
            "{error}"
        );
        Action::requeue(wait)
    };
    let config = Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let queue = queue.map(Ok::<_, Infallible>).take_until(stop.boxed());
    applier(pass, on_error, ctx, store, queue, config)
        // Failures were reported above; an object that is gone needs no word.
        .for_each(|_| std::future::ready(()))
        .await;
}
