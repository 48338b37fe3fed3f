//! One request to the gateway and its answer.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::engine::cometbft::requests::{Refusal, check_request};
use bsn_core::evidence::{
    EngineAnswer, GuardReport, LedgerReport, NodeEvidence, PROTOCOL, VotesAnswer,
};
use bsn_core::pki::Role;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::Shared;
use crate::engine::cometbft::{
    EngineError, forward, observe_engine, observe_pool_changes, observe_powers, observe_votes,
};

/// Time for the engine to describe itself, and again to show signatures: together less than those who
/// ask for evidence wait.
const EVIDENCE_DEADLINE: Duration = Duration::from_millis(900);
/// Time for the engine to search some forty blocks.
const VOTES_DEADLINE: Duration = Duration::from_millis(2500);
/// Time for any other call: `broadcast_tx_commit` waits for a block, by default at most 10 s.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Time for a client to send its call.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Largest call in bytes: the engine's own default limit (`rpc.max_body_bytes`).
const MAX_BODY: usize = 1_000_000;

/// Where other nodes' guards ask: `/v1/votes/<address of a key>?from=<height>`.
const VOTES: &str = "/v1/votes/";

type Answer = Response<Full<Bytes>>;

fn answer_json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    answer
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    answer_json(status, json!({ "error": why }).to_string())
}

/// Answers a request from a holder of `role`.
pub async fn answer(shared: &Shared, role: Option<Role>, request: Request<Incoming>) -> Answer {
    let Some(role) = role else {
        let why = "this certificate has no role in this network; use one that the network's operator issued";
        return refuse(StatusCode::FORBIDDEN, why);
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/evidence") => evidence(shared).await,
        (&Method::GET, path) if path.starts_with(VOTES) => votes(shared, role, request.uri()).await,
        (&Method::POST, "/") => call(shared, role, request.into_body()).await,
        (_, "/v1/evidence") => refuse(StatusCode::METHOD_NOT_ALLOWED, "use GET"),
        (_, "/") => refuse(StatusCode::METHOD_NOT_ALLOWED, "send JSON-RPC 2.0 calls with POST"),
        _ => refuse(
            StatusCode::NOT_FOUND,
            "the gateway serves POST / (JSON-RPC) and GET /v1/evidence",
        ),
    }
}

async fn evidence(shared: &Shared) -> Answer {
    let engine = match observe_engine(shared.engine_rpc, EVIDENCE_DEADLINE).await {
        Ok(mut report) => {
            match observe_ledger(shared, report.height).await {
                Ok((counts, ledger)) => {
                    report.signed = Some(counts);
                    report.ledger = Some(ledger);
                }
                Err(error) => tracing::debug!(%error, "the engine does not tell its members"),
            }
            EngineAnswer::Report(Box::new(report))
        }
        Err(error) => EngineAnswer::Silent(error.to_string()),
    };
    let evidence = NodeEvidence {
        protocol: PROTOCOL,
        identity_id: shared.identity.identity_id.clone(),
        engine,
        guard: guard_report(shared),
        template_hash: shared.template_hash.clone(),
        certificate_not_after: shared.certificates.borrow().not_after.to_string(),
        agents: Some(env!("CARGO_PKG_VERSION").to_owned()),
    };
    match serde_json::to_vec(&evidence) {
        Ok(body) => answer_json(StatusCode::OK, body),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Who votes, and who signed the newest final blocks.
async fn observe_ledger(
    shared: &Shared,
    head: u64,
) -> Result<(BTreeMap<String, u64>, LedgerReport), EngineError> {
    let (rpc, deadline) = (shared.engine_rpc, EVIDENCE_DEADLINE);
    let pool = async {
        if shared.guard_validators {
            observe_pool_changes(rpc, deadline).await
        } else {
            // A user's application alone can read its transactions.
            Ok(Vec::new())
        }
    };
    let (signed, powers, pool_changes) = tokio::try_join!(
        shared.signatures.observe(rpc, head, deadline),
        observe_powers(rpc, deadline),
        pool,
    )?;
    let ledger = LedgerReport {
        powers,
        final_height: signed.newest,
        last_signed: signed.last,
        pool_changes,
    };
    Ok((signed.counts, ledger))
}

/// The guard's word; none before it spoke.
fn guard_report(shared: &Shared) -> Option<GuardReport> {
    serde_json::from_slice(&std::fs::read(&shared.guard_report).ok()?)
        .inspect_err(|error| tracing::warn!(%error, "the guard's report cannot be read"))
        .ok()
}

/// What this node's engine has seen of a key, for the guard of the node that holds it.
async fn votes(shared: &Shared, role: Role, uri: &hyper::Uri) -> Answer {
    if role == Role::Client {
        return refuse(StatusCode::FORBIDDEN, "votes are for the network's nodes; use POST /");
    }
    let address = uri.path().strip_prefix(VOTES).unwrap_or_default();
    let from = uri
        .query()
        .and_then(|query| query.strip_prefix("from="))
        .and_then(|height| height.parse().ok());
    let hexadecimal = address.len() == 40 && address.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (true, Some(from)) = (hexadecimal, from) else {
        let why = "ask for /v1/votes/<address, 40 hexadecimal digits>?from=<height>";
        return refuse(StatusCode::BAD_REQUEST, why);
    };
    let answer = match observe_votes(shared.engine_rpc, address, from, VOTES_DEADLINE).await {
        Ok((head, vote)) => VotesAnswer::Seen { head, vote },
        // Nothing listens: the engine has not started, so it can have seen nothing yet.
        Err(EngineError::Connect(_)) => VotesAnswer::NotStarted,
        Err(error) => return refuse(StatusCode::BAD_GATEWAY, &error.to_string()),
    };
    match serde_json::to_vec(&answer) {
        Ok(body) => answer_json(StatusCode::OK, body),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn call(shared: &Shared, role: Role, body: Incoming) -> Answer {
    let body = Limited::new(body, MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY_DEADLINE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, &error.to_string()),
        Err(_) => {
            return refuse(StatusCode::REQUEST_TIMEOUT, "the call did not arrive in time");
        }
    };
    let allowed = match check_request(&body, role, shared.guard_validators) {
        Ok(allowed) => allowed,
        Err(refusal) => {
            tracing::info!(%role, %refusal, "refused a call");
            return refuse(status_of(&refusal), &refusal.to_string());
        }
    };
    match forward(shared.engine_rpc, allowed.body, CALL_DEADLINE).await {
        Ok((status, body)) => answer_json(status, body),
        Err(error) => {
            tracing::info!(method = allowed.method, %error, "the engine gave no answer");
            refuse(StatusCode::BAD_GATEWAY, &format!("the engine gave no answer: {error}"))
        }
    }
}

fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal {
        Refusal::NotACall(_) | Refusal::UnreadableTransaction => StatusCode::BAD_REQUEST,
        Refusal::Method(_) | Refusal::Role { .. } | Refusal::ValidatorTransaction => {
            StatusCode::FORBIDDEN
        }
    }
}
