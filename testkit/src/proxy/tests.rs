//! The proxy between a client and a server on loopback, TLS on both sides.
//!
//! The client is kube-rs, as the operator's is, so what it makes of each fault is seen as well. Certificates
//! are those of a lab cluster's authority.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use rustls_pki_types::pem::PemObject as _;
use tokio::time::Instant;

use super::*;
use crate::lab::folders::Layout;
use crate::lab::pki::Pki;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SOON: Duration = Duration::from_secs(5);
/// Long enough to see that something does not happen.
const WHILE: Duration = Duration::from_millis(200);

/// A server that remembers what it has done.
#[derive(Default)]
struct Server {
    /// `METHOD path|token|body` of every call that it has answered.
    done: Mutex<Vec<String>>,
    /// Watches that are open.
    watches: AtomicUsize,
}

impl Server {
    fn done(&self) -> Vec<String> {
        lock(&self.done).clone()
    }
}

struct Watching(Arc<Server>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::SeqCst);
    }
}

type Answer = Response<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>;

async fn serve_call(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> Result<Answer, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let token = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
    let path = parts.uri.path();
    let shown = String::from_utf8_lossy(&body);
    let line = format!("{} {path}|{}|{shown}", parts.method, token.unwrap_or("none"));
    lock(&server.done).push(line);
    if path == "/slow" {
        tokio::time::sleep(WHILE).await;
    }
    if parts.uri.query().is_some_and(|query| query.contains("watch=true")) {
        server.watches.fetch_add(1, Ordering::SeqCst);
        let watching = Watching(server);
        // An event every 50 ms, without end.
        let events = futures::stream::unfold((0, watching), |(number, watching)| async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let event = Bytes::from(format!("event {number}\n"));
            Some((Ok(Frame::data(event)), (number + 1, watching)))
        });
        // The library wants bodies that can be shared between threads.
        return Ok(Response::new(
            StreamBody::new(SyncStream(Mutex::new(Box::pin(events)))).boxed(),
        ));
    }
    let mut answer = Response::new(Full::new(Bytes::from("done")).boxed());
    if parts.method == "POST" {
        *answer.status_mut() = StatusCode::CREATED;
    }
    Ok(answer)
}

type Events = std::pin::Pin<
    Box<dyn futures::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send>,
>;

struct SyncStream(Mutex<Events>);

impl futures::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, std::convert::Infallible>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        lock(&self.0).as_mut().poll_next(context)
    }
}

/// Client, proxy and server.
struct World {
    proxy: Proxy,
    server: Arc<Server>,
    client: Client,
}

async fn world_with(effects: Effects) -> World {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout { state: folder.path().to_owned(), cache: folder.path().to_owned() };
    let pki = Pki::ensure(&layout, 0).unwrap();
    let identity = || {
        let (cert, key) = pki.issue_server("test", LOCAL).unwrap();
        tls::server_config(&cert, &key).unwrap()
    };

    let server = Arc::new(Server::default());
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (acceptor, serving) = (TlsAcceptor::from(Arc::new(identity())), server.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, serving) = (acceptor.clone(), serving.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request| serve_call(serving.clone(), request));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });

    let ca = pki.ca_cert().unwrap();
    let upstream = Upstream {
        address,
        server_name: LOCAL.to_string(),
        tls: Arc::new(tls::client_config(&ca).unwrap()),
        effects,
    };
    let proxy = Proxy::start(SocketAddr::new(LOCAL, 0), identity(), upstream).await.unwrap();
    let mut config = Config::new(format!("https://{}", proxy.address()).parse().unwrap());
    let ca = rustls_pki_types::CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
    config.root_cert = Some(vec![ca.to_vec()]);
    config.auth_info.token = Some("secret".to_owned().into());
    config.default_retry = false;
    World { proxy, server, client: Client::try_from(config).unwrap() }
}

async fn world() -> World {
    world_with(Effects::ByMethod).await
}

impl World {
    async fn send(&self, method: &str, path: &str, body: &str) -> Result<String, kube::Error> {
        let request = Request::builder().method(method).uri(path).body(body.as_bytes().to_vec());
        self.client.request_text(request.unwrap()).await
    }

    /// Sends a call whose end nobody waits for here.
    fn start(&self, path: &'static str) -> JoinHandle<Result<String, kube::Error>> {
        let client = self.client.clone();
        tokio::spawn(async move {
            let request = Request::post(path).body(b"body".to_vec()).unwrap();
            client.request_text(request).await
        })
    }

    fn last(&self) -> Call {
        self.proxy.calls().pop().unwrap()
    }

    async fn await_outcome(&self, outcome: &Outcome) -> Call {
        self.proxy.await_call(Mark(0), SOON, |call| call.outcome == *outcome).await.unwrap()
    }
}

async fn bounded<T>(ask: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, ask).await.expect("it must not hang")
}

#[tokio::test]
async fn calls_pass_with_their_tokens_and_bodies_and_are_counted_exactly() {
    let world = world().await;
    let began = world.proxy.mark();
    assert_eq!(world.send("GET", "/api/v1/pods?limit=5", "").await.unwrap(), "done");
    let mark = world.proxy.mark();
    // At once, over several connections.
    let answers = (0..20).map(|_| world.send("POST", "/api/v1/secrets", "body"));
    for answer in futures::future::join_all(answers).await {
        assert_eq!(answer.unwrap(), "done");
    }
    world.send("DELETE", "/api/v1/secrets/s", "").await.unwrap();

    let calls = world.proxy.calls_since(began);
    assert_eq!(
        calls.iter().map(|call| call.number).collect::<Vec<_>>(),
        (1..=22).collect::<Vec<_>>()
    );
    assert_eq!(
        calls[0],
        Call {
            number: 1,
            method: "GET".to_owned(),
            path: "/api/v1/pods".to_owned(),
            query: Some("limit=5".to_owned()),
            write: false,
            rpc: None,
            rule: None,
            forwarded: true,
            status: Some(200),
            outcome: Outcome::Answered,
        }
    );
    let writes = world.proxy.calls_since(mark);
    assert!(
        writes.iter().all(|call| call.write && call.outcome == Outcome::Answered),
        "{writes:?}"
    );
    assert_eq!(
        (writes.len(), writes[20].method.as_str(), writes[0].status),
        (21, "DELETE", Some(201))
    );
    let done = world.server.done();
    assert_eq!(done.len(), 22);
    assert_eq!(done[1], "POST /api/v1/secrets|Bearer secret|body");
}

#[tokio::test]
async fn a_watch_streams_through_and_ends_at_the_server_when_its_client_goes() {
    let world = world().await;
    let request = Request::get("/api/v1/pods?watch=true").body(Vec::new()).unwrap();
    let stream = world.client.request_stream(request).await.unwrap();
    let mut lines = stream.lines();
    for number in 0..3 {
        let line = bounded(lines.try_next()).await.unwrap().unwrap();
        assert_eq!(line, format!("event {number}"));
    }
    assert_eq!(world.last().outcome, Outcome::Answered);
    assert_eq!(world.server.watches.load(Ordering::SeqCst), 1);
    drop(lines);
    let end = Instant::now() + SOON;
    while world.server.watches.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < end, "the server still sends to nobody");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_truncated_watch_gives_exactly_so_many_bytes_and_breaks() {
    let world = world().await;
    world.proxy.rule(Rule::new("short", Action::Truncate(20)).query("watch=true"));
    let request = Request::get("/api/v1/pods?watch=true").body(Vec::new()).unwrap();
    let mut stream = std::pin::pin!(world.client.request_stream(request).await.unwrap());
    let mut got = Vec::new();
    let read = futures::AsyncReadExt::read_to_end(&mut stream, &mut got);
    assert!(bounded(read).await.is_err(), "it must break, not end");
    assert_eq!(String::from_utf8(got).unwrap(), "event 0\nevent 1\neven");
    assert_eq!(world.await_outcome(&Outcome::Truncated).await.rule.as_deref(), Some("short"));

    // An answer that is shorter passes whole.
    world.proxy.rule(Rule::new("short", Action::Truncate(20)));
    assert_eq!(bounded(world.send("GET", "/api", "")).await.unwrap(), "done");
    assert_eq!(world.last().outcome, Outcome::Answered);
}

#[tokio::test]
async fn a_cut_call_breaks_for_its_client_and_never_reaches_the_server() {
    let world = world().await;
    world.proxy.rule(Rule::new("second write", Action::Cut).writes().only(2));
    world.send("POST", "/a", "1").await.unwrap();
    world.send("GET", "/a", "").await.unwrap();
    let error = bounded(world.send("POST", "/a", "2")).await.unwrap_err();
    assert!(!matches!(error, kube::Error::Api(_)), "{error}");
    let call = world.last();
    assert_eq!((call.outcome, call.forwarded, call.status), (Outcome::Cut, false, None));
    assert_eq!(call.rule.as_deref(), Some("second write"));
    world.send("POST", "/a", "3").await.unwrap();
    assert_eq!(world.server.done().len(), 3, "{:?}", world.server.done());
    assert_eq!(world.proxy.fitted("second write"), Some(3));
}

#[tokio::test]
async fn an_answer_is_lost_only_after_the_server_has_done_the_call() {
    let world = world().await;
    world.proxy.rule(Rule::new("lost", Action::AnswerLost).path("/a"));
    let error = bounded(world.send("POST", "/a", "body")).await.unwrap_err();
    assert!(!matches!(error, kube::Error::Api(_)), "{error}");
    assert_eq!(world.server.done(), ["POST /a|Bearer secret|body"]);
    let call = world.last();
    assert_eq!((call.outcome, call.forwarded, call.status), (Outcome::AnswerLost, true, Some(201)));
}

#[tokio::test]
async fn an_answer_to_be_lost_is_waited_for_even_if_the_client_goes_first() {
    let world = world().await;
    world.proxy.rule(Rule::new("lost", Action::AnswerLost));
    let client = world.start("/slow");
    world.proxy.await_call(Mark(0), SOON, |call| call.forwarded).await.unwrap();
    client.abort();
    let call = world.proxy.await_call(Mark(0), SOON, |call| call.status.is_some()).await.unwrap();
    assert_eq!(call.status, Some(201));
    assert_eq!(world.await_outcome(&Outcome::Abandoned).await.status, Some(201));
}

#[tokio::test]
async fn a_dropped_call_gets_no_answer_until_it_is_cut() {
    let world = world().await;
    world.proxy.rule(Rule::new("drop", Action::Drop));
    let mut client = world.start("/a");
    world.await_outcome(&Outcome::Dropped).await;
    assert!(tokio::time::timeout(WHILE, &mut client).await.is_err(), "it was answered");
    assert!(world.proxy.await_held(WHILE).await.is_err(), "it is not held");
    assert_eq!(world.proxy.release(), 0);
    assert_eq!(world.proxy.cut(), 1);
    assert!(bounded(client).await.unwrap().is_err());
    assert_eq!(world.last().outcome, Outcome::Dropped);
    assert_eq!(world.server.done(), Vec::<String>::new());
}

#[tokio::test]
async fn a_delayed_call_is_forwarded_later() {
    let world = world().await;
    world.proxy.rule(Rule::new("late", Action::Delay(WHILE)));
    let began = Instant::now();
    assert_eq!(bounded(world.send("POST", "/a", "")).await.unwrap(), "done");
    assert!(began.elapsed() >= WHILE);
    assert_eq!(world.last().outcome, Outcome::Answered);
}

#[tokio::test]
async fn a_status_in_the_servers_place_is_read_as_the_api_servers_own() {
    let world = world().await;
    for (code, method, reason) in [
        (409, "POST", "AlreadyExists"),
        (409, "PUT", "Conflict"),
        (429, "POST", "TooManyRequests"),
        (500, "POST", "InternalError"),
        (503, "PATCH", "ServiceUnavailable"),
        (504, "DELETE", "Timeout"),
    ] {
        world.proxy.rule(Rule::new("answer", Action::Status(code)));
        match bounded(world.send(method, "/a", "body")).await {
            Err(kube::Error::Api(status)) => {
                assert_eq!((status.code, status.reason.as_str()), (code, reason));
            }
            other => panic!("{code}: {other:?}"),
        }
        let call = world.last();
        assert_eq!((call.outcome, call.status), (Outcome::Substituted, Some(code)));
    }
    assert_eq!(world.server.done(), Vec::<String>::new());
    world.proxy.clear_rules();
    bounded(world.send("GET", "/a", "")).await.unwrap();
}

#[tokio::test]
async fn a_call_held_before_the_server_goes_on_when_released_and_never_when_cut() {
    let world = world().await;
    let rule = || Rule::new("hold", Action::Hold(Side::BeforeForward)).writes().only(2);
    world.proxy.set_rules([rule()]);
    world.send("POST", "/first", "").await.unwrap();
    let client = world.start("/second");
    let held = world.proxy.await_held(SOON).await.unwrap();
    assert_eq!((held.number, held.path.as_str(), held.forwarded), (2, "/second", false));
    // Others are not held up meanwhile.
    bounded(world.send("POST", "/third", "")).await.unwrap();
    assert_eq!(world.proxy.release(), 1);
    assert_eq!(bounded(client).await.unwrap().unwrap(), "done");
    assert!(world.proxy.await_held(WHILE).await.is_err(), "nothing is held any more");
    assert_eq!(world.proxy.calls()[1].outcome, Outcome::Answered);

    world.proxy.set_rules([rule()]);
    world.send("POST", "/fourth", "").await.unwrap();
    let client = world.start("/fifth");
    world.proxy.await_held(SOON).await.unwrap();
    assert_eq!(world.proxy.cut(), 1);
    assert!(bounded(client).await.unwrap().is_err());
    assert_eq!(world.last().outcome, Outcome::Cut);
    let done: Vec<_> =
        world.server.done().iter().map(|line| line.split('|').next().unwrap().to_owned()).collect();
    assert_eq!(done, ["POST /first", "POST /third", "POST /second", "POST /fourth"]);
}

#[tokio::test]
async fn a_call_held_after_its_answer_is_done_already_and_its_answer_is_passed_or_lost() {
    let world = world().await;
    world.proxy.rule(Rule::new("hold", Action::Hold(Side::AfterAnswer)));
    let client = world.start("/a");
    let held = world.proxy.await_held(SOON).await.unwrap();
    assert_eq!((held.forwarded, held.status), (true, Some(201)));
    assert_eq!(world.server.done().len(), 1);
    assert!(!client.is_finished());
    world.proxy.release();
    assert_eq!(bounded(client).await.unwrap().unwrap(), "done");

    let client = world.start("/b");
    world.proxy.await_held(SOON).await.unwrap();
    world.proxy.cut();
    assert!(bounded(client).await.unwrap().is_err());
    assert_eq!(world.last().outcome, Outcome::AnswerLost);
    assert_eq!(world.server.done().len(), 2);
}

#[tokio::test]
async fn a_held_call_whose_client_dies_is_never_forwarded() {
    let world = world().await;
    world.proxy.rule(Rule::new("hold", Action::Hold(Side::BeforeForward)));
    let client = world.start("/a");
    world.proxy.await_held(SOON).await.unwrap();
    client.abort();
    world.await_outcome(&Outcome::Abandoned).await;
    assert_eq!(world.proxy.release(), 0, "there is nothing left to release");
    tokio::time::sleep(WHILE).await;
    assert_eq!(world.server.done(), Vec::<String>::new());
}

#[tokio::test]
async fn before_a_gateway_only_broadcasts_are_effects_and_their_bodies_still_arrive() {
    let world = world_with(Effects::ByJsonRpc).await;
    world.proxy.rule(Rule::new("broadcasts", Action::AnswerLost).writes());
    let read = r#"{"method":"status"}"#;
    assert_eq!(world.send("POST", "/", read).await.unwrap(), "done");
    let broadcast = r#"{"method":"broadcast_tx_commit","params":{"tx":"a2V5"}}"#;
    bounded(world.send("POST", "/", broadcast)).await.unwrap_err();
    assert_eq!(
        world.server.done(),
        [read, broadcast].map(|body| format!("POST /|Bearer secret|{body}"))
    );
    let kinds: Vec<_> =
        world.proxy.calls().into_iter().map(|call| (call.write, call.rpc.unwrap())).collect();
    assert_eq!(kinds, [(false, "status".to_owned()), (true, "broadcast_tx_commit".to_owned())]);
}

#[tokio::test]
async fn a_server_that_is_gone_shows_as_a_closed_connection_and_in_the_record() {
    let world = world().await;
    let free = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap();
    world.proxy.set_upstream_address(free);
    let error = bounded(world.send("GET", "/a", "")).await.unwrap_err();
    assert!(!matches!(error, kube::Error::Api(_)), "{error}");
    let Outcome::Failed(why) = world.last().outcome else { panic!("{:?}", world.last()) };
    assert!(why.contains(&free.to_string()), "{why}");
}

#[tokio::test]
async fn an_upgrade_is_refused_in_words() {
    let world = world().await;
    let request = Request::get("/exec").header("upgrade", "websocket").body(Vec::new()).unwrap();
    let Err(kube::Error::Api(status)) = world.client.request_text(request).await else {
        panic!("it must be refused");
    };
    assert_eq!(status.code, 501);
    assert!(status.message.contains("upgraded"), "{}", status.message);
    assert_eq!(world.server.done(), Vec::<String>::new());
}

#[tokio::test]
async fn a_stopped_proxy_closes_everything_and_keeps_its_record() {
    let world = world().await;
    world.proxy.rule(Rule::new("hold", Action::Hold(Side::BeforeForward)).writes());
    let held = world.start("/a");
    world.proxy.await_held(SOON).await.unwrap();
    world.proxy.stop().await.unwrap();
    assert!(bounded(held).await.unwrap().is_err());
    bounded(world.send("GET", "/b", "")).await.unwrap_err();
    assert_eq!(world.proxy.calls().len(), 1);
    assert_eq!(world.last().outcome, Outcome::Abandoned);
    world.proxy.stop().await.unwrap();
}

#[tokio::test]
async fn a_proxy_ends_when_its_last_handle_is_gone() {
    let world = world().await;
    let (address, shared) = (world.proxy.address(), Arc::downgrade(&world.proxy.shared));
    let clone = world.proxy.clone();
    drop(world.proxy);
    tokio::net::TcpStream::connect(address).await.unwrap();
    drop(clone);
    let end = Instant::now() + SOON;
    while shared.strong_count() > 0 || tokio::net::TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < end, "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
