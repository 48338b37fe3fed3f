//! Live numbers: kept in the leader's memory, read by port-forward to its loopback listener. So
//! Kubernetes authenticates and authorises the reader, and the operator needs no users of its own.

use std::time::Duration;

use http_body_util::Full;
use hyper::{Request, StatusCode};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::apply::{ApiError, bounded};
use crate::http::{ExchangeError, exchange};
use crate::labels::{LEASE, STATUS_PORT};
use crate::view::{MembershipView, NetworkKey, NetworkView};

/// Longest the whole exchange may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Largest view accepted, in bytes: a node has about 400.
const MAX_VIEW: usize = 4 << 20;

/// Why there are no live numbers. The conditions are shown all the same.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The API server.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// Nobody leads.
    #[error("no operator leads in namespace {0}; is it running? (kubectl get pods -n {0})")]
    NoLeader(String),
    /// The operator's pod could not be reached.
    #[error("pod {pod} cannot be reached: {why}")]
    Forward {
        /// The leader's pod.
        pod: String,
        /// Why.
        why: String,
    },
    /// The connection broke.
    #[error("{0}")]
    Exchange(#[from] ExchangeError),
    /// The operator has no numbers.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("the operator did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
    /// An answer of another version.
    #[error("the operator's answer is not understood ({0}); use the kubectl-bsn of its version")]
    Answer(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Asks the leader for a network's numbers.
pub async fn fetch_view(
    client: &Client,
    operator_namespace: &str,
    key: &NetworkKey,
) -> Result<NetworkView, LiveError> {
    let path = format!("/v1/networks/{}/{}", key.namespace, key.name);
    fetch(client, operator_namespace, &path).await
}

/// Asks the leader what its planner was told of a network, and what it said.
pub async fn fetch_membership(
    client: &Client,
    operator_namespace: &str,
    key: &NetworkKey,
) -> Result<MembershipView, LiveError> {
    let path = format!("/v1/networks/{}/{}/membership", key.namespace, key.name);
    fetch(client, operator_namespace, &path).await
}

async fn fetch<T: DeserializeOwned>(
    client: &Client,
    operator_namespace: &str,
    path: &str,
) -> Result<T, LiveError> {
    tokio::time::timeout(DEADLINE, ask(client, operator_namespace, path))
        .await
        .map_err(|_| LiveError::Deadline)?
}

async fn ask<T: DeserializeOwned>(
    client: &Client,
    operator_namespace: &str,
    path: &str,
) -> Result<T, LiveError> {
    let leases = Api::<Lease>::namespaced(client.clone(), operator_namespace);
    let what = || format!("get Lease {operator_namespace}/{LEASE}");
    let lease = bounded(what, leases.get_opt(LEASE)).await?;
    let pod = lease
        .and_then(|lease| lease.spec?.holder_identity)
        .filter(|holder| !holder.is_empty())
        .ok_or_else(|| LiveError::NoLeader(operator_namespace.to_owned()))?;
    let unreachable = |why: String| LiveError::Forward { pod: pod.clone(), why };
    let pods = Api::<Pod>::namespaced(client.clone(), operator_namespace);
    let mut forwarder = pods
        .portforward(&pod, &[STATUS_PORT])
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let stream = forwarder
        .take_stream(STATUS_PORT)
        .ok_or_else(|| unreachable("the forwarded port was closed".to_owned()))?;
    let request = Request::get(path)
        .header("host", "localhost")
        .header("connection", "close")
        .body(Full::default())
        .map_err(|error| unreachable(error.to_string()))?;
    let (status, body) = exchange(stream, request, MAX_VIEW).await?;
    if status == StatusCode::OK {
        return Ok(serde_json::from_slice(&body)?);
    }
    let Refusal { error } = serde_json::from_slice(&body)?;
    Err(LiveError::Refused(error))
}
