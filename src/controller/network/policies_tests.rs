use std::sync::{Arc, Mutex};

use bsn_core::names::NetworkName;
use hyper::{Method, Request, Response};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::client::Body;
use kube::runtime::reflector::{store, store::Writer};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::cluster::registry::HUB;

/// A cluster that does what it is asked, and notes it; or answers with this status.
struct Fake {
    place: Place,
    policies: Writer<NetworkPolicy>,
    done: Arc<Mutex<Vec<(Method, Value)>>>,
}

impl Fake {
    fn new(cluster: &str, refuses: Option<u16>) -> Self {
        let done: Arc<Mutex<Vec<(Method, Value)>>> = Arc::default();
        let notes = done.clone();
        let serve = move |request: Request<Body>| {
            let notes = notes.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let mut object: Value = serde_json::from_slice(&body).unwrap_or_default();
                notes.lock().unwrap().push((parts.method.clone(), object.clone()));
                object["metadata"]["uid"] = json!("u1");
                if parts.method == Method::DELETE {
                    object = json!({"kind": "Status", "status": "Success"});
                }
                let mut answer = Response::builder();
                if let Some(code) = refuses {
                    object = json!({"kind": "Status", "status": "Failure", "code": code,
                        "reason": "Invalid", "message": "ingress[1].from[1]: bad selector"});
                    answer = answer.status(code);
                }
                answer.body(Body::from(object.to_string().into_bytes()))
            }
        };
        let client = Client::new(tower::service_fn(serve), "default");
        let (policies, writer) = store();
        let mut place = Place::fake(cluster, client);
        place.objects.policies = policies;
        Self { place, policies: writer, done }
    }

    /// The policies are listed.
    fn fill(&mut self) {
        self.policies.apply_watcher_event(&Event::Init);
        self.policies.apply_watcher_event(&Event::InitDone);
    }

    async fn ensure(&self, access: &NodeAccess) -> Result<(), Refusal> {
        let name = NetworkName::parse("city-ledger").unwrap();
        let anchor: Anchor = serde_json::from_value(json!({
            "version": 1, "hubId": "h1", "networkId": "n1", "chainId": "c",
            "genesisTime": "2026-01-01T00:00:00Z", "founders": [], "nextIndex": {},
            "identities": {"city-ledger-a-0": {"id": "i", "set": "a", "role": "Validator"}},
        }))
        .unwrap();
        let network = NetworkParts::new("ledger", &name, &anchor, None);
        ensure_policy(&self.place, &network, &anchor, access, "bsn-system").await.unwrap()
    }

    /// What was asked since the last time; what was made is seen from now on.
    fn done(&mut self) -> Vec<Method> {
        let done = std::mem::take(&mut *self.done.lock().unwrap());
        for (method, object) in &done {
            if *method != Method::DELETE {
                self.see(object.clone());
            }
        }
        done.into_iter().map(|(method, _)| method).collect()
    }

    fn see(&mut self, mut object: Value) {
        object["metadata"]["uid"] = json!("u1");
        let policy = serde_json::from_value(object).unwrap();
        self.policies.apply_watcher_event(&Event::Apply(policy));
    }
}

#[tokio::test]
async fn a_policy_is_made_once_put_back_when_edited_and_removed_when_switched_off() {
    let mut fake = Fake::new(HUB, None);
    fake.fill();
    let access = NodeAccess::default();
    fake.ensure(&access).await.unwrap();
    let made = fake.done.lock().unwrap()[0].1.clone();
    assert_eq!(fake.done(), [Method::POST]);
    fake.ensure(&access).await.unwrap();
    assert!(fake.done().is_empty(), "nothing is written twice");
    let mut edited = made.clone();
    edited["spec"]["ingress"] = json!([{}]);
    fake.see(edited);
    fake.ensure(&access).await.unwrap();
    assert_eq!(fake.done(), [Method::PATCH]);
    let off = NodeAccess { enabled: false, ..access };
    fake.ensure(&off).await.unwrap();
    assert_eq!(fake.done(), [Method::DELETE]);
}

#[tokio::test]
async fn without_nodes_there_is_none_and_a_strangers_is_left_alone() {
    let mut fake = Fake::new("hangzhou", None);
    fake.fill();
    let access = NodeAccess::default();
    fake.ensure(&access).await.unwrap();
    assert!(fake.done().is_empty());
    let named = json!({"metadata": {"name": "city-ledger-nodes", "namespace": "ledger"}});
    fake.see(named.clone());
    fake.ensure(&access).await.unwrap();
    assert!(fake.done().is_empty());
    // Where one is wanted, its name is taken.
    let mut fake = Fake::new(HUB, None);
    fake.fill();
    fake.see(named);
    let refusal = fake.ensure(&access).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::NameTaken);
    assert!(fake.done().is_empty());
}

/// No list, no decision: it would be made, or thought to be gone.
#[tokio::test]
async fn while_the_policies_are_not_known_nothing_is_done() {
    let mut fake = Fake::new(HUB, None);
    fake.ensure(&NodeAccess::default()).await.unwrap();
    assert!(fake.done().is_empty());
}

#[tokio::test]
async fn what_the_api_server_does_not_accept_is_told_and_a_missing_right_stops_nothing() {
    let mut fake = Fake::new(HUB, Some(422));
    fake.fill();
    let refusal = fake.ensure(&NodeAccess::default()).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::InvalidSpec);
    assert!(refusal.message.contains("bad selector"), "{}", refusal.message);
    let mut fake = Fake::new(HUB, Some(403));
    fake.fill();
    fake.ensure(&NodeAccess::default()).await.unwrap();
}
