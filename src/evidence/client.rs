//! Asks one gateway for evidence.

use std::time::Duration;

use bsn_core::evidence::{NodeEvidence, PROTOCOL, VotesAnswer};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::http::request::Builder;
use hyper::{Request, StatusCode};

use super::route::{Gateway, Opened, Via};
use crate::http::{ExchangeError, exchange};

/// Largest evidence accepted, in bytes: an engine's report with a hundred voters has some ten thousand.
const MAX_EVIDENCE: usize = 256 << 10;
/// Largest answer to a call accepted, in bytes: a block of the engine's default limit, in base64.
const MAX_ANSWER: usize = 16 << 20;

/// Protocols this operator understands: its own and the two before it.
const UNDERSTOOD: std::ops::RangeInclusive<u32> = PROTOCOL.saturating_sub(2)..=PROTOCOL;

/// Why a gateway gave no evidence. None of these says that a node is dead.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// Its Service has no address yet.
    #[error("its Service has no address yet")]
    NoAddress,
    /// Nothing listens there, or TLS failed: another key, no certificate, a broken connection.
    #[error("its gateway cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    /// The API server of its cluster gives no way to its pod.
    #[error("its cluster's API server gives no way to its pod: {0}")]
    Forward(#[from] Box<kube::Error>),
    /// Neither of two ways leads there.
    #[error("{0}; {1}")]
    NoWay(Box<EvidenceError>, Box<EvidenceError>),
    /// The name is not one a certificate can have.
    #[error("{0:?} is not a server's name")]
    Name(String),
    /// The exchange failed.
    #[error("its gateway broke off: {0}")]
    Exchange(#[from] ExchangeError),
    /// The answer could not be read.
    #[error("its gateway's answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The gateway refused.
    #[error("its gateway answered {0}")]
    Refused(StatusCode),
    /// No answer in time.
    #[error("its gateway did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// A protocol this operator does not know.
    #[error(
        "its gateway speaks protocol {0}, which this operator does not know; upgrade the operator"
    )]
    Protocol(u32),
}

impl EvidenceError {
    /// The kind of error, from a fixed list: safe as a metric's label.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NoAddress | Self::Name(_) => "no-address",
            Self::Connect(_) => "connect",
            Self::Forward(_) => "forward",
            Self::NoWay(first, _) => first.category(),
            Self::Exchange(_) | Self::Body(_) => "broken",
            Self::Refused(_) => "refused",
            Self::Deadline(_) => "deadline",
            Self::Protocol(_) => "protocol",
        }
    }
}

#[derive(serde::Deserialize)]
struct Versioned {
    protocol: u32,
}

/// Asks a gateway for evidence. The whole exchange ends within `deadline`.
pub async fn fetch_evidence(
    gateway: &Gateway<'_>,
    deadline: Duration,
) -> Result<(NodeEvidence, Via), EvidenceError> {
    let question =
        |request: Builder| request.method("GET").uri("/v1/evidence").body(Full::default());
    let (body, via) = ask(gateway, question, MAX_EVIDENCE, deadline).await?;
    Ok((parse_evidence(&body)?, via))
}

/// Passes a JSON-RPC call through a gateway to its engine.
pub async fn post_call(
    gateway: &Gateway<'_>,
    call: String,
    deadline: Duration,
) -> Result<(Bytes, Via), EvidenceError> {
    let question = |request: Builder| request.method("POST").uri("/").body(Full::from(call));
    ask(gateway, question, MAX_ANSWER, deadline).await
}

/// Asks a gateway what it has seen of a key; `path` names the key.
pub async fn fetch_votes(
    gateway: &Gateway<'_>,
    path: &str,
    deadline: Duration,
) -> Result<VotesAnswer, EvidenceError> {
    let question = |request: Builder| request.method("GET").uri(path).body(Full::default());
    let (body, _) = ask(gateway, question, MAX_EVIDENCE, deadline).await?;
    serde_json::from_slice(&body).map_err(|error| EvidenceError::Body(Box::new(error)))
}

/// Asks once: what is asked may have an effect, and a connection that breaks does not tell whether it had.
async fn ask(
    gateway: &Gateway<'_>,
    question: impl FnOnce(Builder) -> Result<Request<Full<Bytes>>, hyper::http::Error>,
    max_answer: usize,
    deadline: Duration,
) -> Result<(Bytes, Via), EvidenceError> {
    let answer = async {
        let Opened { stream, via, forward } = gateway.open(deadline).await?;
        let head =
            Request::builder().header("host", gateway.server_name).header("connection", "close");
        let request = question(head).map_err(|error| EvidenceError::Body(Box::new(error)))?;
        let (status, body) = exchange(stream, request, max_answer).await?;
        drop(forward);
        Ok::<_, EvidenceError>((status, body, via))
    };
    let (status, body, via) = tokio::time::timeout(deadline, answer)
        .await
        .map_err(|_| EvidenceError::Deadline(deadline))??;
    if status == StatusCode::OK { Ok((body, via)) } else { Err(EvidenceError::Refused(status)) }
}

/// Reads the protocol first: of an unknown one nothing else is understood.
fn parse_evidence(body: &[u8]) -> Result<NodeEvidence, EvidenceError> {
    let unreadable = |error: serde_json::Error| EvidenceError::Body(Box::new(error));
    let Versioned { protocol } = serde_json::from_slice(body).map_err(unreadable)?;
    if !UNDERSTOOD.contains(&protocol) {
        return Err(EvidenceError::Protocol(protocol));
    }
    serde_json::from_slice(body).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_protocol_is_named_before_anything_else_is_read() {
        let error = parse_evidence(br#"{"protocol": 99, "news": []}"#).unwrap_err();
        assert!(matches!(error, EvidenceError::Protocol(99)), "{error}");
        assert!(matches!(parse_evidence(b"{}"), Err(EvidenceError::Body(_))));
    }
}
