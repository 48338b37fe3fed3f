//! The side of the clients: TLS, HTTP/1.1, and what the rules want with each call.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, UPGRADE};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::forward::{Passed, Sent, forward};
use super::record::{Effects, Outcome, Seen, Verdict};
use super::rules::{Action, Side};

/// Longest a client may take for its TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Connections at once; more wait. The operator's two replicas have some thirty.
const MAX_CONNECTIONS: usize = 256;
/// Largest call that is read before it is sent on, in bytes: the API server refuses more than 3 MiB.
const MAX_BODY: usize = 4 << 20;
/// Longest a call stands still; then it is cut. Clients give up long before.
const MAX_HOLD: Duration = Duration::from_mins(5);

/// What a client gets.
type Answer = Response<Either<Passed, Full<Bytes>>>;

/// The connection is to be closed without an answer. The library closes it when a service fails.
#[derive(Debug)]
struct Severed;

impl fmt::Display for Severed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut by the proxy")
    }
}

impl Error for Severed {}

/// Serves until `stop` says so or its sender is gone; then everything ends at once.
pub(super) async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { break };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a client that was gone already: both pass.
                    tracing::warn!(%error, "the proxy could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let (tls, shared) = (tls.clone(), shared.clone());
            connections.spawn(async move {
                serve_connection(stream, tls, shared).await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        // A sender that is gone is a stop, too.
        _ = stop.wait_for(|stop| *stop) => {}
    }
    drop(listener);
    connections.shutdown().await;
    shared.take_exchanges().shutdown().await;
}

async fn serve_connection(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a client of the proxy was gone at once");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake with the proxy failed"),
        Err(_) => return tracing::debug!("TLS handshake with the proxy took too long"),
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { answer(&shared, request).await }
    });
    // No limit on the time between two calls: the API server has none that a client meets first, and an
    // idle connection that the proxy closed would be a fault that no test asked for.
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the proxy ended");
    }
}

/// A call under way. If its client goes away, this is dropped, and the record says so.
struct Ticket {
    shared: Arc<Shared>,
    number: u64,
}

impl Ticket {
    fn settle(&self, outcome: Outcome) {
        self.shared.change(|book| book.note(self.number, |call| call.outcome = outcome));
    }

    fn settle_with(&self, outcome: Outcome, status: StatusCode) {
        let code = Some(status.as_u16());
        self.shared.change(|book| book.note(self.number, |call| call.status = code));
        self.settle(outcome);
    }

    /// Ends the call for want of something; the client sees its connection close.
    fn fail(&self, error: &anyhow::Error) -> Severed {
        self.settle(Outcome::Failed(format!("{error:#}")));
        Severed
    }

    /// Stands still until the test decides; `held` calls are shown to it.
    async fn wait(&self, held: bool) -> Verdict {
        let verdict = self.shared.change(|book| book.wait(self.number, held));
        // No sender is left when the proxy ends.
        match tokio::time::timeout(MAX_HOLD, verdict).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) | Err(_) => Verdict::Cut,
        }
    }

    /// Forwards the call so that it comes to its end even if the client goes away in the middle.
    async fn forward_surely(&self, parts: Parts, body: Bytes) -> Result<Response<Passed>> {
        let (sender, receiver) = oneshot::channel();
        let (shared, number) = (self.shared.clone(), self.number);
        self.shared.spawn(async move {
            let answer = forward(&shared, number, parts, Either::Right(Full::new(body))).await;
            // Nobody listens any more: the client is gone, and the record has the answer's status.
            drop(sender.send(answer));
        });
        receiver.await.context("the proxy ends")?
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.change(|book| {
            book.end_wait(self.number);
            book.note(self.number, |call| {
                if matches!(call.outcome, Outcome::UnderWay | Outcome::Held) {
                    call.outcome = Outcome::Abandoned;
                }
            });
        });
    }
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Severed> {
    let (parts, incoming) = request.into_parts();
    let effects = shared.effects();
    let (body, whole) = if effects.needs_body(&parts.method) {
        let whole = read(Either::Left(incoming)).await.map_err(|_| Severed)?;
        (Either::Right(Full::new(whole.clone())), Some(whole))
    } else {
        (Either::Left(incoming), None)
    };
    let seen = see(effects, &parts, whole.as_deref());
    let (number, action) = shared.change(|book| book.begin(seen));
    let ticket = Ticket { shared: shared.clone(), number };
    if parts.headers.contains_key(UPGRADE) {
        let status = StatusCode::NOT_IMPLEMENTED;
        ticket.settle_with(Outcome::Substituted, status);
        let why = "the lab's proxy passes no upgraded connections: connect to the server itself";
        return Ok(own_answer(&parts.method, status, why));
    }
    act(&ticket, action, parts, body).await
}

/// Does with a call what a rule, or no rule, wants.
async fn act(ticket: &Ticket, action: Action, parts: Parts, body: Sent) -> Result<Answer, Severed> {
    match action {
        Action::Pass => pass(ticket, parts, body, None).await,
        Action::Delay(time) => {
            tokio::time::sleep(time).await;
            pass(ticket, parts, body, None).await
        }
        Action::Truncate(bytes) => pass(ticket, parts, body, Some(bytes)).await,
        Action::Cut => {
            ticket.settle(Outcome::Cut);
            Err(Severed)
        }
        // The call is read to its end from here on: it is then seen at once when the client goes away.
        Action::Drop => {
            whole(ticket, body).await?;
            ticket.wait(false).await;
            ticket.settle(Outcome::Dropped);
            Err(Severed)
        }
        Action::Status(code) => {
            whole(ticket, body).await?;
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            ticket.settle_with(Outcome::Substituted, status);
            Ok(own_answer(&parts.method, status, "answered by a rule of the lab's proxy"))
        }
        Action::AnswerLost => {
            let body = whole(ticket, body).await?;
            let answered = ticket.forward_surely(parts, body).await;
            answered.map_err(|error| ticket.fail(&error))?;
            ticket.settle(Outcome::AnswerLost);
            Err(Severed)
        }
        Action::Hold(Side::BeforeForward) => {
            let body = whole(ticket, body).await?;
            match ticket.wait(true).await {
                Verdict::Release => pass(ticket, parts, Either::Right(Full::new(body)), None).await,
                Verdict::Cut => {
                    ticket.settle(Outcome::Cut);
                    Err(Severed)
                }
            }
        }
        Action::Hold(Side::AfterAnswer) => {
            let body = whole(ticket, body).await?;
            let answered = ticket.forward_surely(parts, body).await;
            let answer = answered.map_err(|error| ticket.fail(&error))?;
            match ticket.wait(true).await {
                Verdict::Release => {
                    ticket.settle(Outcome::Answered);
                    Ok(answer.map(Either::Left))
                }
                Verdict::Cut => {
                    ticket.settle(Outcome::AnswerLost);
                    Err(Severed)
                }
            }
        }
    }
}

/// Forwards a call and passes the answer on, or so many bytes of its body.
async fn pass(
    ticket: &Ticket,
    parts: Parts,
    body: Sent,
    cut_after: Option<u64>,
) -> Result<Answer, Severed> {
    let answered = forward(&ticket.shared, ticket.number, parts, body).await;
    let answer = answered.map_err(|error| ticket.fail(&error))?;
    ticket.settle(Outcome::Answered);
    let (shared, number) = (ticket.shared.clone(), ticket.number);
    Ok(answer.map(|body| {
        Either::Left(match cut_after {
            Some(bytes) => body.cut_after(bytes, shared, number),
            None => body,
        })
    }))
}

async fn whole(ticket: &Ticket, body: Sent) -> Result<Bytes, Severed> {
    read(body).await.map_err(|error| ticket.fail(&error))
}

async fn read(body: Sent) -> Result<Bytes> {
    let read = Limited::new(body, MAX_BODY).collect().await;
    read.map(http_body_util::Collected::to_bytes)
        .map_err(|error| anyhow::anyhow!("the call's body could not be read: {error}"))
}

fn see(effects: Effects, parts: &Parts, body: Option<&[u8]>) -> Seen {
    let (write, rpc) = effects.judge(&parts.method, body);
    Seen {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        write,
        rpc,
    }
}

/// An answer of the proxy's own, in the form of the API server's, so that clients read it as one of those.
fn own_answer(method: &Method, status: StatusCode, why: &str) -> Answer {
    let reason = match status.as_u16() {
        409 if *method == Method::POST => "AlreadyExists",
        409 => "Conflict",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "",
    };
    let body = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": why,
        "reason": reason,
        "code": status.as_u16(),
    });
    let mut answer = Response::new(Either::Right(Full::new(Bytes::from(body.to_string()))));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::TOO_MANY_REQUESTS {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}
