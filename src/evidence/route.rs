//! The ways to a node's gateway: by the node's address, or through the API server of its cluster, which reaches every pod.
//! TLS is end to end over either: the API server passes on bytes that it cannot read.
//!
//! The second way costs that API server a connection for every question, so it is taken only for nodes of other clusters
//! and only where the first one fails. Nothing was asked before TLS stands, so no question is asked twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Portforwarder};
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::EvidenceError;
use super::poller::Target;
use crate::cluster::registry::HUB;
use crate::cluster::watches::cached;
use crate::cluster::{Caches, Clusters};
use crate::labels::GATEWAY_PORT;
use crate::view::NetworkKey;

/// How long the API server is asked first once it was the way that worked; then the address gets another chance.
const HOLD: Duration = Duration::from_mins(1);

/// A way to a gateway.
#[derive(Clone)]
pub enum Route {
    /// A connection to its address.
    Direct(SocketAddr),
    /// A port-forward to its pod.
    ApiServer {
        /// The cluster it runs in.
        client: Client,
        /// The pod's namespace.
        namespace: String,
        /// The pod.
        pod: String,
    },
}

/// The same, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Via {
    /// By its address.
    Direct,
    /// Through the API server of its cluster.
    ApiServer,
}

/// A node's gateway.
pub struct Gateway<'a> {
    /// The ways to it, to be tried in this order.
    pub routes: Vec<Route>,
    /// The name in its certificate.
    pub server_name: &'a str,
    /// Who asks, and the key it must have.
    pub tls: Arc<rustls::ClientConfig>,
}

/// A connection to a gateway.
pub struct Opened {
    /// What is written and read.
    pub stream: TlsStream<Box<dyn Stream>>,
    /// The way it took.
    pub via: Via,
    /// Ends with this.
    pub forward: Option<Forward>,
}

/// What TLS is spoken over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A port-forward under way. Its task would outlive a question that was given up.
pub struct Forward(Portforwarder);

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<'a> Gateway<'a> {
    /// A gateway that has an address and nothing else.
    pub fn at(address: SocketAddr, server_name: &'a str, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { routes: vec![Route::Direct(address)], server_name, tls }
    }

    /// Opens the first way that leads to it. What is left of the time is shared among the ways that are left, so that an
    /// address that swallows packets leaves some for the other.
    pub async fn open(&self, deadline: Duration) -> Result<Opened, EvidenceError> {
        let ends = Instant::now() + deadline;
        let mut failure: Option<EvidenceError> = None;
        let mut ways = u32::try_from(self.routes.len()).unwrap_or(u32::MAX);
        for route in &self.routes {
            let part = ends.saturating_duration_since(Instant::now()) / ways;
            ways -= 1;
            let error = match timeout(part, self.follow(route)).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error)) => error,
                Err(_) => EvidenceError::Deadline(part),
            };
            failure = Some(match failure {
                None => error,
                Some(first) => EvidenceError::NoWay(Box::new(first), Box::new(error)),
            });
        }
        Err(failure.unwrap_or(EvidenceError::NoAddress))
    }

    async fn follow(&self, route: &Route) -> Result<Opened, EvidenceError> {
        let name = ServerName::try_from(self.server_name.to_owned())
            .map_err(|_| EvidenceError::Name(self.server_name.to_owned()))?;
        let (stream, via, forward): (Box<dyn Stream>, _, _) = match route {
            Route::Direct(address) => {
                (Box::new(TcpStream::connect(address).await?), Via::Direct, None)
            }
            Route::ApiServer { client, namespace, pod } => {
                let pods = Api::<Pod>::namespaced(client.clone(), namespace);
                let forwarder = pods.portforward(pod, &[GATEWAY_PORT]).await;
                let mut forward = Forward(forwarder.map_err(Box::new)?);
                let stream = forward.0.take_stream(GATEWAY_PORT).ok_or(EvidenceError::NoAddress)?;
                (Box::new(stream), Via::ApiServer, Some(forward))
            }
        };
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        Ok(Opened { stream, via, forward })
    }
}

/// By network and node: the way that worked last, and since when.
type Last = BTreeMap<(NetworkKey, String), (Via, Instant)>;

/// The ways that worked last; clones share them.
#[derive(Clone, Default)]
pub struct Ways(Arc<Mutex<Last>>);

impl Ways {
    /// A node's gateway, and the ways to it that there are now.
    pub fn to<'a>(
        &self,
        caches: &Caches,
        clusters: &Clusters,
        key: &NetworkKey,
        node: &'a Target,
    ) -> Gateway<'a> {
        let direct = address_of(caches, key, &node.name).map(Route::Direct);
        let through = api_server_of(clusters, key, node);
        let mut routes: Vec<Route> = direct.into_iter().chain(through).collect();
        if self.prefers_api_server(key, &node.name) {
            routes.reverse();
        }
        Gateway { routes, server_name: &node.server_name, tls: node.tls.clone() }
    }

    /// This way led to a node.
    pub fn worked(&self, key: &NetworkKey, node: &str, via: Via) {
        let mut all = self.all();
        let last = all.entry((key.clone(), node.to_owned())).or_insert((via, Instant::now()));
        // Since when it is that way, unless it has just been tried the other way round.
        if last.0 != via || last.1.elapsed() >= HOLD {
            *last = (via, Instant::now());
        }
    }

    /// The way that worked last; `None` = none did.
    pub fn of(&self, key: &NetworkKey, node: &str) -> Option<Via> {
        self.all().get(&(key.clone(), node.to_owned())).map(|(via, _)| *via)
    }

    /// Forgets all networks that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&NetworkKey) -> bool) {
        self.all().retain(|(key, _), _| keep(key));
    }

    fn prefers_api_server(&self, key: &NetworkKey, node: &str) -> bool {
        let all = self.all();
        let last = all.get(&(key.clone(), node.to_owned()));
        last.is_some_and(|(via, since)| *via == Via::ApiServer && since.elapsed() < HOLD)
    }

    fn all(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a node's gateway listens: on the hub every node has a Service. Its own address rather than its name: one thing
/// less that can fail, and the certificate is checked against the pinned key either way.
fn address_of(caches: &Caches, key: &NetworkKey, node: &str) -> Option<SocketAddr> {
    let service = cached(&caches.objects.services, &key.namespace, node)?;
    let ip = service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()?;
    Some(SocketAddr::new(ip, GATEWAY_PORT))
}

/// The way through the API server, if the node has a pod in another cluster that can be used now.
fn api_server_of(clusters: &Clusters, key: &NetworkKey, node: &Target) -> Option<Route> {
    if node.cluster == HUB {
        return None;
    }
    let (namespace, pod) = (&key.namespace, format!("{}-0", node.name));
    let place = clusters.place(&node.cluster, namespace).ok()?;
    cached(&place.objects.pods, namespace, &pod)?;
    Some(Route::ApiServer { client: place.client, namespace: namespace.clone(), pod })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> NetworkKey {
        NetworkKey { namespace: "ledger".to_owned(), name: "city-ledger".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_way_that_worked_goes_first_and_the_address_gets_another_chance() {
        let (ways, key) = (Ways::default(), key());
        assert!(!ways.prefers_api_server(&key, "n"));
        ways.worked(&key, "n", Via::ApiServer);
        assert!(ways.prefers_api_server(&key, "n") && !ways.prefers_api_server(&key, "other"));
        tokio::time::advance(HOLD / 2).await;
        // That it works again does not put off the address' chance.
        ways.worked(&key, "n", Via::ApiServer);
        tokio::time::advance(HOLD / 2).await;
        assert!(!ways.prefers_api_server(&key, "n"));
        // It failed once more.
        ways.worked(&key, "n", Via::ApiServer);
        assert!(ways.prefers_api_server(&key, "n"));
        ways.worked(&key, "n", Via::Direct);
        assert!(!ways.prefers_api_server(&key, "n"));
        assert_eq!(ways.of(&key, "n"), Some(Via::Direct));
        ways.retain(|_| false);
        assert_eq!(ways.of(&key, "n"), None);
    }
}
