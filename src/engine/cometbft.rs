//! `CometBFT`'s JSON-RPC, as the gateway in the same pod speaks it on loopback.

pub mod driver;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bsn_core::engine::cometbft::requests::is_validator_transaction;
use bsn_core::engine::cometbft::signing::{
    SignedAt, parse_commit_vote, parse_round_vote, parse_signers,
};
use bsn_core::engine::cometbft::status::{
    AnswerError, Answers, parse_heights, parse_powers, parse_report,
};
use bsn_core::evidence::{EngineReport, SIGNED_WINDOW};
use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::http::{ExchangeError, exchange};

/// Largest answer passed on, in bytes. A block of the engine's default limit (4 MiB, `types/params.go`)
/// is a third longer in base64; search results hold several transactions.
const MAX_ANSWER: usize = 32 << 20;

/// Why the engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing listens, or the connection broke.
    #[error("its RPC cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    /// The exchange failed.
    #[error("its RPC broke off: {0}")]
    Exchange(#[from] ExchangeError),
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// An answer that is not JSON-RPC.
    #[error("its answer is not JSON-RPC: {0}")]
    NotRpc(#[from] serde_json::Error),
    /// It answered with an error.
    #[error("it answered {method} with: {message}")]
    Refused {
        /// The method called.
        method: &'static str,
        /// The engine's words.
        message: String,
    },
    /// It answered something unexpected.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Sends one JSON-RPC request as it is, and gives the answer as it is.
pub async fn forward(
    rpc: SocketAddr,
    body: String,
    deadline: Duration,
) -> Result<(StatusCode, Bytes), EngineError> {
    let answer = async {
        let stream = TcpStream::connect(rpc).await?;
        let request = Request::post("/")
            .header("host", rpc.to_string())
            .header("content-type", "application/json")
            .header("connection", "close")
            .body(Full::from(body))
            .map_err(|error| ExchangeError::Body(Box::new(error)))?;
        Ok::<_, EngineError>(exchange(stream, request, MAX_ANSWER).await?)
    };
    tokio::time::timeout(deadline, answer).await.map_err(|_| EngineError::Deadline(deadline))?
}

#[derive(Deserialize)]
struct Envelope {
    result: Option<Value>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    message: String,
    #[serde(default)]
    data: String,
}

async fn call(
    rpc: SocketAddr,
    method: &'static str,
    params: Value,
    deadline: Duration,
) -> Result<Value, EngineError> {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let (_, answer) = forward(rpc, body, deadline).await?;
    let envelope: Envelope = serde_json::from_slice(&answer)?;
    match envelope {
        Envelope { result: Some(result), error: None } => Ok(result),
        Envelope { error, .. } => {
            let message = error.map_or_else(
                || "neither result nor error".to_owned(),
                |error| format!("{} {}", error.message, error.data).trim().to_owned(),
            );
            Err(EngineError::Refused { method, message })
        }
    }
}

/// Asks the engine about itself. All questions must be answered within `deadline`.
pub async fn observe_engine(
    rpc: SocketAddr,
    deadline: Duration,
) -> Result<EngineReport, EngineError> {
    let (status, net_info, abci_info, consensus_state) = tokio::try_join!(
        call(rpc, "status", json!({}), deadline),
        call(rpc, "net_info", json!({}), deadline),
        call(rpc, "abci_info", json!({}), deadline),
        call(rpc, "consensus_state", json!({}), deadline),
    )?;
    Ok(parse_report(Answers { status, net_info, abci_info, consensus_state })?)
}

/// Who signed the newest final blocks. Kept by height, since a final commit never changes.
#[derive(Debug, Default)]
pub struct Signatures(Mutex<BTreeMap<u64, Vec<String>>>);

impl Signatures {
    /// Looks for the signatures below `head` of each validator; asks the engine for blocks not seen yet.
    pub async fn observe(
        &self,
        rpc: SocketAddr,
        head: u64,
        deadline: Duration,
    ) -> Result<Signed, EngineError> {
        let window = head.saturating_sub(SIGNED_WINDOW).max(1)..head;
        let missing: Vec<u64> = {
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            window.clone().filter(|height| !known.contains_key(height)).collect()
        };
        let read = futures::stream::iter(missing)
            .map(async |height| {
                let params = json!({"height": height.to_string()});
                Ok::<_, EngineError>((height, call(rpc, "commit", params, deadline).await?))
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<_>>();
        let commits = tokio::time::timeout(deadline, read)
            .await
            .map_err(|_| EngineError::Deadline(deadline))??;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|height, _| window.contains(height));
        for (height, commit) in commits {
            if let Some(signers) = parse_signers(&commit) {
                known.insert(height, signers);
            }
        }
        let mut signed = Signed::default();
        for (height, signers) in known.iter() {
            signed.newest = *height;
            for signer in signers {
                *signed.counts.entry(signer.clone()).or_insert(0) += 1;
                signed.last.insert(signer.clone(), *height);
            }
        }
        Ok(signed)
    }
}

/// Who signed, by address.
#[derive(Debug, Default)]
pub struct Signed {
    /// How many of the newest final blocks.
    pub counts: BTreeMap<String, u64>,
    /// The newest of them.
    pub last: BTreeMap<String, u64>,
    /// Height of the newest final block; 0 = none.
    pub newest: u64,
}

/// Most validators in one answer (`rpc/core/env.go`, `maxPerPage`); also the most transactions.
const PER_PAGE: usize = 100;

/// Who votes, as this engine knows the chain: powers by address.
pub async fn observe_powers(
    rpc: SocketAddr,
    deadline: Duration,
) -> Result<BTreeMap<String, u64>, EngineError> {
    let reading = async {
        let ask = |params: Value| call(rpc, "validators", params, deadline);
        let first = ask(json!({"per_page": PER_PAGE.to_string()})).await?;
        let (mut powers, total) = parse_powers(&first)?;
        let height = first.get("block_height").cloned().unwrap_or_default();
        for page in 2..=total.div_ceil(PER_PAGE) {
            // At the same height, or two sets would be mixed.
            let params = json!({"height": height, "page": page.to_string(), "per_page": PER_PAGE.to_string()});
            powers.extend(parse_powers(&ask(params).await?)?.0);
        }
        Ok(powers)
    };
    tokio::time::timeout(deadline, reading).await.map_err(|_| EngineError::Deadline(deadline))?
}

/// Transactions in this engine's pool that would change the members of the built-in store's chain.
pub async fn observe_pool_changes(
    rpc: SocketAddr,
    deadline: Duration,
) -> Result<Vec<String>, EngineError> {
    let params = json!({"limit": PER_PAGE.to_string()});
    let pool = call(rpc, "unconfirmed_txs", params, deadline).await?;
    let all = pool.get("txs").and_then(Value::as_array).into_iter().flatten();
    let changes = all.filter_map(Value::as_str).filter(|text| is_validator_transaction(text));
    Ok(changes.map(str::to_owned).collect())
}

/// Blocks searched for votes, above the height asked for and below the head. A key that signed beyond a
/// rolled-back disk did so right above the disk's height, or until just now, or both.
const SEARCHED: u64 = 20;
/// Requests to the engine at once.
const CONCURRENCY: usize = 8;

/// Searches the chain, as this engine knows it, for votes of the key with `address` from the height `from`
/// on. Gives the engine's newest height and the highest vote found.
pub async fn observe_votes(
    rpc: SocketAddr,
    address: &str,
    from: u64,
    deadline: Duration,
) -> Result<(u64, Option<SignedAt>), EngineError> {
    let search = async {
        let (status, round) = tokio::try_join!(
            call(rpc, "status", json!({}), deadline),
            call(rpc, "consensus_state", json!({}), deadline),
        )?;
        let (earliest, head) = parse_heights(&status)?;
        let first = from.max(earliest).max(1);
        let low = first..=head.min(first.saturating_add(SEARCHED));
        let high = head.saturating_sub(SEARCHED).max(first)..=head;
        let heights: BTreeSet<u64> = low.chain(high).collect();
        let commits: Vec<Value> = futures::stream::iter(heights)
            .map(|height| call(rpc, "commit", json!({"height": height.to_string()}), deadline))
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        let in_commits = commits.iter().filter_map(|commit| parse_commit_vote(commit, address));
        Ok((head, in_commits.chain(parse_round_vote(&round, address)).max()))
    };
    tokio::time::timeout(deadline, search).await.map_err(|_| EngineError::Deadline(deadline))?
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, routing::post};

    use super::*;

    async fn fake_engine(answer: fn(&str) -> Value) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route(
            "/",
            post(move |Json(call): Json<Value>| async move {
                Json(answer(call["method"].as_str().unwrap()))
            }),
        );
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn an_error_of_the_engine_is_told_in_its_words() {
        let rpc =
            fake_engine(|_| json!({"error": {"message": "Internal error", "data": "x"}})).await;
        let error = observe_engine(rpc, SECOND).await.unwrap_err();
        assert!(error.to_string().ends_with("with: Internal error x"), "{error}");
    }

    #[tokio::test]
    async fn a_strange_answer_is_an_error_and_no_report() {
        let rpc = fake_engine(|_| json!({"result": {"height": 1}})).await;
        let error = observe_engine(rpc, SECOND).await.unwrap_err();
        assert!(matches!(error, EngineError::Answer(_)), "{error}");
    }

    #[tokio::test]
    async fn an_engine_that_hangs_is_silent_after_the_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rpc = listener.local_addr().unwrap();
        let deadline = Duration::from_millis(50);
        let error = observe_engine(rpc, deadline).await.unwrap_err();
        assert!(matches!(error, EngineError::Deadline(_)), "{error}");
        drop(listener);
        let error = observe_engine(rpc, SECOND).await.unwrap_err();
        assert!(matches!(error, EngineError::Connect(_)), "{error}");
    }
}
