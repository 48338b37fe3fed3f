//! The watch of one kind: a stream that fills a cache and tells of what it sees.

use std::fmt::Debug;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::runtime::reflector;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::namespaces::{Scope, merge};

/// Watches one kind for as long as it is driven; a broken watch is taken up again with back-off.
pub(super) fn watch_kind<K>(
    of: (&Client, Scope<'_>),
    config: &watcher::Config,
    writer: reflector::store::Writer<K>,
    relisted: impl Fn() + Clone + Send + 'static,
    tell: impl Fn(&K) + Send + 'static,
) -> BoxFuture<'static, ()>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    watch_with_pauses(of, config, LONGEST_PAUSE, writer, relisted, tell)
}

/// The same with another limit to the back-off.
pub(super) fn watch_with_pauses<K>(
    (client, scope): (&Client, Scope<'_>),
    config: &watcher::Config,
    longest: Duration,
    writer: reflector::store::Writer<K>,
    relisted: impl Fn() + Clone + Send + 'static,
    tell: impl Fn(&K) + Send + 'static,
) -> BoxFuture<'static, ()>
where
    K: Kind + Resource<Scope = NamespaceResourceScope>,
{
    let of_member = matches!(scope, Scope::Member(_));
    let mut parts: Vec<_> = scope
        .apis(client)
        .into_iter()
        .map(|api| watch_anew(api, config.clone()).backoff(Pauses::up_to(longest)).boxed())
        .collect();
    let stream = match (parts.pop(), parts.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            let again = relisted.clone();
            let parts = parts.into_iter().chain(last);
            // Of a list of one of them nothing else tells, but for what it changed.
            let heard = parts.map(|part| {
                let again = again.clone();
                part.inspect(move |event| {
                    if matches!(event, Ok(Event::InitDone)) {
                        again();
                    }
                })
                .boxed()
            });
            merge(heard.collect()).boxed()
        }
    };
    drive(stream, of_member, writer, relisted, tell)
}

/// Watches the objects of a kind that is in no namespace.
pub(super) fn watch_cluster_kind<K: Kind>(
    api: Api<K>,
    writer: reflector::store::Writer<K>,
    relisted: impl Fn() + Send + 'static,
    tell: impl Fn(&K) + Send + 'static,
) -> BoxFuture<'static, ()> {
    let stream = watch_anew(api, watcher::Config::default());
    drive(stream.backoff(Pauses::up_to(LONGEST_PAUSE)), false, writer, relisted, tell)
}

/// A kind that can be watched.
pub(super) trait Kind:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
}

/// Fills a cache with what a watch says, and tells of it.
fn drive<K: Kind>(
    stream: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
    of_member: bool,
    writer: reflector::store::Writer<K>,
    relisted: impl Fn() + Send + 'static,
    tell: impl Fn(&K) + Send + 'static,
) -> BoxFuture<'static, ()> {
    let stream = stream
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
                // Of a member: its condition tells, once and not for every kind.
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

/// Watches, and after any failure lists anew instead of going on from the version seen last. An API server that was away
/// may have come back with an older state, from a backup: of a version that it has not had it tells nothing, and what
/// this process remembers would stay as it is for ever.
fn watch_anew<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    stream::unfold(None, move |watching: Option<BoxStream<'static, _>>| {
        let (api, config) = (api.clone(), config.clone());
        async move {
            let mut watching = watching.unwrap_or_else(|| watch(api, config).boxed());
            let event: Result<Event<K>, watcher::Error> = watching.next().await?;
            let goes_on = event.is_ok();
            Some((event, goes_on.then_some(watching)))
        }
    })
}

/// How long a broken watch pauses before it is taken up again: as is usual, but never long. What a cluster holds is not
/// known until then, however soon it answers again.
struct Pauses {
    usual: DefaultBackoff,
    longest: Duration,
}

/// The longest of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest where the right to watch may be missing for long, and nothing depends on what is seen.
pub(super) const LONGEST_PAUSE_WITHOUT_RIGHT: Duration = Duration::from_mins(1);

impl Pauses {
    fn up_to(longest: Duration) -> Self {
        Self { usual: DefaultBackoff::default(), longest }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.usual.next().map(|pause| pause.min(self.longest))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.usual.reset();
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::sleep;

    use std::sync::{Arc, Mutex};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::reflector;

    use super::*;

    /// An API server of which only lists are answered; its watches end at once, in a failure if it is away.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        names: Vec<&'static str>,
        version: u64,
        away: bool,
        lists: usize,
    }

    impl Server {
        fn set(&self, names: &[&'static str], version: u64, away: bool) {
            let mut state = self.0.lock().unwrap();
            (state.names, state.version, state.away) = (names.to_vec(), version, away);
        }

        fn lists(&self) -> usize {
            self.0.lock().unwrap().lists
        }

        fn answer(&self, watches: bool) -> Result<Value, std::io::Error> {
            let mut state = self.0.lock().unwrap();
            if state.away {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            if watches {
                return Ok(Value::Null);
            }
            state.lists += 1;
            let item = |name: &&str| json!({"metadata": {"name": name, "namespace": "ledger"}});
            let items: Vec<Value> = state.names.iter().map(item).collect();
            Ok(json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items}))
        }

        fn client(&self) -> Client {
            let server = self.clone();
            let serve = move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let query = request.uri().query().unwrap_or_default();
                    let answer = server.answer(query.contains("watch=true"))?;
                    if answer.is_null() {
                        // An ordinary end, after a while.
                        sleep(Duration::from_mins(1)).await;
                        return Ok(Response::new(Body::empty()));
                    }
                    Ok::<_, std::io::Error>(Response::new(Body::from(
                        answer.to_string().into_bytes(),
                    )))
                }
            };
            Client::new(tower::service_fn(serve), "ledger")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_api_server_forgot_while_it_was_away_is_forgotten() {
        let server = Server::default();
        server.set(&["a", "b"], 100, false);
        let (store, writer) = reflector::store();
        let (client, scope) = (server.client(), Scope::Member("ledger"));
        let config = watcher::Config::default();
        let watching = watch_kind::<ConfigMap>((&client, scope), &config, writer, || {}, |_| {});
        let watching = tokio::spawn(watching);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(store.len(), 2);
        // An ordinary end of a watch is no reason to list anew.
        sleep(Duration::from_secs(200)).await;
        assert_eq!(server.lists(), 1);
        server.set(&["a"], 50, true);
        sleep(Duration::from_secs(70)).await;
        assert_eq!(store.len(), 2, "what was seen last");
        server.set(&["a"], 50, false);
        sleep(2 * LONGEST_PAUSE).await;
        assert_eq!((store.len(), server.lists()), (1, 2));
        watching.abort();
    }
}
