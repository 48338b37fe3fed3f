//! The way to the server and back: one connection for each call, bodies streamed.
//!
//! A connection of its own costs a TLS handshake and saves what a pool brings: no call fails because an
//! idle connection was closed, and to drop a call's answer is to close its connection.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{
    CONNECTION, EXPECT, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::record::Outcome;
use super::{Shared, Upstream};

/// The server is on this machine or one bridge away.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest a server may take for the head of an answer: an API server gives up after 60 s itself, a
/// gateway after 30 s.
const ANSWER_DEADLINE: Duration = Duration::from_secs(65);

/// Headers that belong to one connection and are not passed on (RFC 9110, 7.6.1), and `Expect`, which the
/// proxy has answered.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    EXPECT,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// The same, without a constant in the library.
const KEEP_ALIVE: &str = "keep-alive";

/// What is sent on: streamed, or read before.
pub(super) type Sent = Either<Incoming, Full<Bytes>>;

/// Sends a call to the server; gives its answer when the head of it is there.
pub(super) async fn forward(
    shared: &Arc<Shared>,
    number: u64,
    parts: Parts,
    body: Sent,
) -> Result<Response<Passed>> {
    let exchange = exchange(shared, number, parts, body);
    tokio::time::timeout(ANSWER_DEADLINE, exchange)
        .await
        .with_context(|| format!("no answer within {} s", ANSWER_DEADLINE.as_secs()))?
}

async fn exchange(
    shared: &Arc<Shared>,
    number: u64,
    mut parts: Parts,
    body: Sent,
) -> Result<Response<Passed>> {
    let upstream = shared.upstream();
    let connecting = tokio::time::timeout(CONNECT_DEADLINE, connect(&upstream));
    let stream = connecting.await.context("the connection took too long")??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("beginning HTTP")?;
    let driver = AbortOnDrop(tokio::spawn(async move {
        // Its error is also that of the answer or its body, where it is shown.
        let _ = connection.await;
    }));
    strip(&mut parts.headers);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    parts.version = Version::HTTP_11;
    shared.change(|book| book.note(number, |call| call.forwarded = true));
    let answer = sender.send_request(Request::from_parts(parts, body)).await;
    let (mut head, body) = answer.context("waiting for the answer")?.into_parts();
    strip(&mut head.headers);
    head.version = Version::HTTP_11;
    shared.change(|book| book.note(number, |call| call.status = Some(head.status.as_u16())));
    Ok(Response::from_parts(head, Passed { body, _driver: driver, cut: None }))
}

async fn connect(upstream: &Upstream) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let address = upstream.address;
    let name = ServerName::try_from(upstream.server_name.clone())
        .with_context(|| format!("{:?} is not a server's name", upstream.server_name))?;
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("connecting to the server at {address}"))?;
    stream.set_nodelay(true)?;
    TlsConnector::from(upstream.tls.clone())
        .connect(name, stream)
        .await
        .with_context(|| format!("TLS with the server at {address}"))
}

/// Removes what belongs to one connection, also what `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove(KEEP_ALIVE);
}

/// Ends a task together with what needs it.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where an answer's body is cut.
struct CutAfter {
    left: u64,
    flushed: bool,
    shared: Arc<Shared>,
    number: u64,
}

/// The body of an answer on its way to the client. The server's connection ends with it.
pub(super) struct Passed {
    body: Incoming,
    _driver: AbortOnDrop,
    cut: Option<CutAfter>,
}

impl Passed {
    /// Cuts the connection after so many bytes of the body.
    pub(super) fn cut_after(mut self, bytes: u64, shared: Arc<Shared>, number: u64) -> Self {
        self.cut = Some(CutAfter { left: bytes, flushed: false, shared, number });
        self
    }
}

impl Body for Passed {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { body, cut, .. } = &mut *self;
        if let Some(CutAfter { left: 0, flushed, shared, number }) = cut {
            if !*flushed {
                // The connection writes out what it has when its body has nothing more for the moment;
                // after an error it would close with the last bytes still in its buffer.
                *flushed = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            shared.change(|book| book.note(*number, |call| call.outcome = Outcome::Truncated));
            return Poll::Ready(Some(Err("cut by a rule of the proxy".into())));
        }
        let frame = match ready!(Pin::new(body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let (Some(cut), Some(data)) = (cut, frame.data_ref()) else {
            return Poll::Ready(Some(Ok(frame)));
        };
        let whole = u64::try_from(data.len()).unwrap_or(u64::MAX);
        if whole <= cut.left {
            cut.left -= whole;
            return Poll::Ready(Some(Ok(frame)));
        }
        let part = data.slice(..usize::try_from(cut.left).unwrap_or(data.len()));
        cut.left = 0;
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_one_connection_stay_there_and_tokens_are_passed_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer t"),
            ("connection", "keep-alive, x-mine"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        strip(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "content-length"]);
    }
}
