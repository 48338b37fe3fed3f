//! The gateway as its clients meet it: over real TLS, before a fake engine.

use std::path::Path;

use bsn_core::names::{NetworkName, NodeName};
use bsn_core::pki::{LeafNames, Role, client_names, node_names};
use http_body_util::Full;
use hyper::{Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use super::*;
use crate::evidence::client::fetch_evidence;
use crate::evidence::route::{Gateway, Route};
use crate::http::exchange;
use crate::pki::{Authority, new_key, spki_sha256_of_key};

const HOUR: SignedDuration = SignedDuration::from_hours(1);
const SERVER: &str = "net-a-0.ledger.svc";

struct Net {
    authority: Authority,
    directory: tempfile::TempDir,
    address: SocketAddr,
    spki: String,
}

fn issue(authority: &Authority, names: &LeafNames) -> (String, String) {
    let key = new_key().unwrap();
    (authority.issue(names, &key, HOUR, Timestamp::now(), true).unwrap(), key)
}

fn make_authority() -> Authority {
    let (cert, key) =
        Authority::make(&NetworkName::parse("net").unwrap(), Timestamp::now()).unwrap();
    Authority::parse(&cert, &key).unwrap()
}

fn files(root: &Path) -> certificates::Files {
    certificates::Files {
        cert: root.join("tls.crt"),
        ca: root.join("ca.crt"),
        key: root.join("tls.key"),
    }
}

async fn fake_engine() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |axum::Json(call): axum::Json<Value>| async move {
        axum::Json(json!({"id": call["id"], "result": {"called": call["method"]}}))
    };
    let router = axum::Router::new().route("/", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

impl Net {
    async fn start() -> Self {
        let authority = make_authority();
        let directory = tempfile::tempdir().unwrap();
        let names = node_names(&NodeName::from_object("net-a-0"), "ledger", "n1");
        let (cert, key) = issue(&authority, &names);
        let files = files(directory.path());
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, &key).unwrap();
        std::fs::write(&files.ca, authority.cert_pem()).unwrap();
        let (sender, certificates) = watch::channel(Arc::new(Certificates::load(&files).unwrap()));
        tokio::spawn(async move {
            certificates::reload(&files, &sender, Duration::from_millis(20)).await;
        });
        let identity = PodIdentity {
            network_id: "n1".into(),
            identity_id: "i1".into(),
            consensus_key: "k".into(),
            genesis_hash: "g".into(),
            disk_uid: "d".into(),
        };
        let shared = Arc::new(Shared {
            identity,
            template_hash: None,
            signatures: Signatures::default(),
            guard_report: directory.path().join("guard.json"),
            engine_rpc: fake_engine().await,
            guard_validators: true,
            certificates,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { serve(listener, &shared).await });
        let spki = spki_sha256_of_key(&key).unwrap();
        Self { authority, directory, address, spki }
    }

    async fn ask(
        &self,
        config: rustls::ClientConfig,
        request: Request<Full<hyper::body::Bytes>>,
    ) -> Result<(StatusCode, String), String> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(SERVER).unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        let (status, body) =
            exchange(stream, request, 1 << 20).await.map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }

    async fn post(&self, names: &LeafNames, body: Value) -> (StatusCode, String) {
        let (cert, key) = issue(&self.authority, names);
        let identity = Some((cert.as_str(), key.as_str()));
        let config = tls::client_config_ca(self.authority.cert_pem(), identity).unwrap();
        let request = Request::post("/").header("host", SERVER).body(Full::from(body.to_string()));
        self.ask(config, request.unwrap()).await.unwrap()
    }
}

fn client(role: Role, network: &str) -> LeafNames {
    client_names("someone", role, network)
}

#[tokio::test]
async fn a_client_calls_the_engine_and_others_do_not() {
    let net = Net::start().await;
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "block", "params": {}});
    let (status, body) = net.post(&client(Role::Client, "n1"), call.clone()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(body.contains(r#""called":"block""#), "{body}");
    // A peer's certificate, and one of the same authority for another network.
    for names in [client(Role::Peer, "n1"), client(Role::Operator, "n2")] {
        let (status, body) = net.post(&names, call.clone()).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    }
    let change = json!({"id": 1, "method": "broadcast_tx_sync", "params": {"tx": "dmFsPXgheSEx"}});
    let (status, body) = net.post(&client(Role::Client, "n1"), change).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(body.contains("edit the BsnNetwork"), "{body}");
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate_of_this_authority() {
    let net = Net::start().await;
    let request = || Request::get("/v1/evidence").header("host", SERVER).body(Full::default());
    let none = tls::client_config_ca(net.authority.cert_pem(), None).unwrap();
    net.ask(none, request().unwrap()).await.unwrap_err();
    let key = new_key().unwrap();
    let long_ago = Timestamp::now() - SignedDuration::from_hours(3);
    let names = client(Role::Operator, "n1");
    let ended = net.authority.issue(&names, &key, HOUR, long_ago, false).unwrap();
    let ended = tls::client_config_ca(net.authority.cert_pem(), Some((&ended, &key))).unwrap();
    net.ask(ended, request().unwrap()).await.unwrap_err();
    let (cert, key) = issue(&make_authority(), &client(Role::Operator, "n1"));
    let strange =
        tls::client_config_ca(net.authority.cert_pem(), Some((cert.as_str(), key.as_str())));
    net.ask(strange.unwrap(), request().unwrap()).await.unwrap_err();
}

#[tokio::test]
async fn the_operator_reaches_the_pinned_key_and_no_other() {
    let net = Net::start().await;
    let (cert, key) = issue(&net.authority, &client(Role::Operator, "n1"));
    let ask = async |spki: &str| {
        let config = Arc::new(tls::client_config(spki, &cert, &key).unwrap());
        let gateway = Gateway::at(net.address, SERVER, config);
        fetch_evidence(&gateway, Duration::from_secs(5)).await.map(|(evidence, _)| evidence)
    };
    let evidence = ask(&net.spki).await.unwrap();
    assert_eq!(evidence.identity_id, "i1");
    // The fake engine's answers make no report: that is told, not guessed.
    assert!(evidence.engine.report().is_none());
    let error = ask(&"00".repeat(32)).await.unwrap_err();
    assert_eq!(error.category(), "connect", "{error}");
}

#[tokio::test]
async fn an_address_that_refuses_or_swallows_leaves_time_for_the_other_way() {
    let net = Net::start().await;
    let (cert, key) = issue(&net.authority, &client(Role::Operator, "n1"));
    let tls = Arc::new(tls::client_config(&net.spki, &cert, &key).unwrap());
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ask = async |addresses: &[SocketAddr]| {
        let routes = addresses.iter().copied().map(Route::Direct).collect();
        let gateway = Gateway { routes, server_name: SERVER, tls: tls.clone() };
        fetch_evidence(&gateway, Duration::from_secs(2)).await
    };
    let mute = mute.local_addr().unwrap();
    for first in [closed, mute] {
        assert_eq!(ask(&[first, net.address]).await.unwrap().0.identity_id, "i1");
    }
    let error = ask(&[closed, closed]).await.unwrap_err();
    assert_eq!(error.category(), "connect");
    assert_eq!(error.to_string().matches("its gateway cannot be reached").count(), 2, "{error}");
    assert_eq!(ask(&[]).await.unwrap_err().category(), "no-address");
}

#[tokio::test]
async fn a_renewed_certificate_is_served_without_a_restart_and_a_broken_one_is_not() {
    let net = Net::start().await;
    let (cert, key) = issue(&net.authority, &client(Role::Operator, "n1"));
    let config = Arc::new(tls::client_config(&net.spki, &cert, &key).unwrap());
    let end = async || {
        let gateway = Gateway::at(net.address, SERVER, config.clone());
        fetch_evidence(&gateway, Duration::from_secs(5))
            .await
            .map(|(evidence, _)| evidence.certificate_not_after)
            .unwrap()
    };
    let first = end().await;
    let files = files(net.directory.path());
    let node_key = std::fs::read_to_string(&files.key).unwrap();
    let names = node_names(&NodeName::from_object("net-a-0"), "ledger", "n1");
    let later = net
        .authority
        .issue(&names, &node_key, SignedDuration::from_hours(9), Timestamp::now(), true)
        .unwrap();
    std::fs::write(&files.cert, "not a certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(end().await, first);
    std::fs::write(&files.cert, later).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_ne!(end().await, first);
}
