//! A user's program: JSON-RPC through the gateways, with the published CA and a client certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bsn_operator::http::exchange;
use bsn_operator::pki::tls::client_config_ca;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{World, eventually, node_of};

/// Longest a node may take to show a block, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest a node may take to say how high it is.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

pub fn ip_of(pod: &Pod) -> IpAddr {
    pod.status.as_ref().unwrap().pod_ip.as_ref().unwrap().parse().unwrap()
}

/// Name and address of each node's gateway.
pub type Gateways = BTreeMap<String, (String, SocketAddr)>;

/// The gateways of these pods, as far as they have an address.
pub fn gateways(world: &World, pods: &[Pod]) -> Gateways {
    pods.iter()
        .filter(|pod| pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()))
        .map(|pod| {
            let node = node_of(pod);
            let server = format!("{node}.{}.svc", world.namespace);
            (node, (server, SocketAddr::new(ip_of(pod), 8443)))
        })
        .collect()
}

/// A user's program.
#[derive(Clone)]
pub struct Client {
    ca: String,
    cert: String,
    key: String,
    pub nodes: Gateways,
}

impl Client {
    pub async fn new(world: &World) -> Self {
        let text = |data: &k8s_openapi::ByteString| String::from_utf8(data.0.clone()).unwrap();
        let ca = world.api::<ConfigMap>().get(&format!("{}-ca", world.network)).await.unwrap();
        let secret = world.api::<Secret>().get(&format!("{}-client", world.network)).await.unwrap();
        let data = secret.data.unwrap();
        let nodes = gateways(world, &world.pods().await);
        Self {
            ca: ca.data.unwrap()["ca.crt"].clone(),
            cert: text(&data["tls.crt"]),
            key: text(&data["tls.key"]),
            nodes,
        }
    }

    pub async fn call(&self, node: &str, call: &Value) -> (StatusCode, Value) {
        let identity = Some((self.cert.as_str(), self.key.as_str()));
        let (status, body) = self.send(node, identity, call).await.unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }

    pub async fn send(
        &self,
        node: &str,
        identity: Option<(&str, &str)>,
        call: &Value,
    ) -> Result<(StatusCode, String), String> {
        let (server, address) = &self.nodes[node];
        let config = client_config_ca(&self.ca, identity).unwrap();
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let name = ServerName::try_from(server.clone()).unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        let request = Request::post("/").header("host", server).body(Full::from(call.to_string()));
        let (status, body) =
            exchange(stream, request.unwrap(), 1 << 20).await.map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }
}

pub fn submit(tx: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "broadcast_tx_commit", "params": {"tx": BASE64.encode(tx)}})
}

impl Client {
    /// A call that may fail.
    pub async fn try_call(&self, node: &str, call: &Value) -> Result<Value, String> {
        let identity = Some((self.cert.as_str(), self.key.as_str()));
        let (_, body) = self.send(node, identity, call).await?;
        serde_json::from_str(&body).map_err(|error| error.to_string())
    }

    /// The result of a call that must succeed.
    pub async fn result(&self, node: &str, method: &str, params: Value) -> Value {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (status, mut answer) = self.call(node, &call).await;
        assert_eq!(status, StatusCode::OK, "{method}: {answer}");
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    /// The same, asked for again while the node is busy.
    pub async fn patient_result(&self, node: &str, method: &str, params: &Value) -> Value {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        eventually(&format!("{method} of {node}"), PATIENCE, async || {
            let answer = tokio::time::timeout(PATIENCE, self.try_call(node, &call)).await;
            let mut answer = answer.map_err(|_| "no answer")??;
            let result = answer.get_mut("result").map(Value::take);
            result.ok_or_else(|| answer.to_string())
        })
        .await
    }

    /// Height of a node's newest block.
    pub async fn height(&self, node: &str) -> Result<u64, String> {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "status", "params": {}});
        let answer = tokio::time::timeout(ANSWERS_WITHIN, self.try_call(node, &call));
        let answer = answer.await.map_err(|_| "no answer".to_owned())??;
        let height = &answer["result"]["sync_info"]["latest_block_height"];
        height.as_str().and_then(|height| height.parse().ok()).ok_or_else(|| answer.to_string())
    }

    /// Powers of the voters by address; without a height, those of the next block.
    pub async fn voters(&self, node: &str, height: Option<u64>) -> BTreeMap<String, u64> {
        let mut params = json!({"per_page": "100"});
        if let Some(height) = height {
            params["height"] = height.to_string().into();
        }
        let answer = self.patient_result(node, "validators", &params).await;
        let voters = answer["validators"].as_array().unwrap();
        assert_eq!(voters.len().to_string(), answer["total"].as_str().unwrap(), "one page");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        voters
            .iter()
            .map(|one| (text(&one["address"]), text(&one["voting_power"]).parse().unwrap()))
            .collect()
    }

    /// Heights in a range at which the validator with `address` signed, by the chain's commits.
    pub async fn signed(&self, node: &str, address: &str, from: u64, to: u64) -> Vec<u64> {
        let mut heights = Vec::new();
        for height in from..=to {
            let commit = self.result(node, "commit", json!({"height": height.to_string()})).await;
            if bsn_core::engine::cometbft::signing::parse_commit_vote(&commit, address).is_some() {
                heights.push(height);
            }
        }
        heights
    }

    /// Proofs of double signing in a range of blocks.
    pub async fn double_signs(&self, node: &str, from: u64, to: u64) -> Vec<Value> {
        let mut found = Vec::new();
        for height in from..=to {
            let block = self.result(node, "block", json!({"height": height.to_string()})).await;
            let evidence = &block["block"]["evidence"]["evidence"];
            found.extend(evidence.as_array().into_iter().flatten().cloned());
        }
        found
    }
}
