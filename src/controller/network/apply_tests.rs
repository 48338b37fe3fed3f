//! What all nodes of a network share is what it must be, whoever published it.

use std::sync::Mutex;

use bsn_core::hash::sha256_hex;
use bsn_core::names::NetworkName;
use hyper::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use kube::runtime::reflector::{store, store::Writer};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::agent::paths;

/// A cluster that holds this `ConfigMap`, or none. It notes what is asked about `ConfigMap`s.
struct Fake {
    place: Place,
    maps: Writer<ConfigMap>,
    done: Arc<Mutex<Vec<(Method, Value)>>>,
}

impl Fake {
    fn new(held: Option<&ConfigMap>) -> Self {
        let done: Arc<Mutex<Vec<(Method, Value)>>> = Arc::default();
        let (notes, held) = (done.clone(), held.map(|map| serde_json::to_value(map).unwrap()));
        let serve = move |request: Request<Body>| {
            let (notes, held) = (notes.clone(), held.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
                if parts.uri.path().contains("/configmaps") {
                    notes.lock().unwrap().push((parts.method.clone(), asked.clone()));
                }
                let taken = json!({"kind": "Status", "status": "Failure", "code": 409,
                    "reason": "AlreadyExists", "message": "it is there"});
                let (code, answer): (u16, Value) = match held {
                    Some(_) if parts.method == Method::POST => (409, taken),
                    Some(held) if parts.method == Method::GET => (200, held),
                    _ => (200, asked),
                };
                Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()))
            }
        };
        let client = Client::new(tower::service_fn(serve), "default");
        let (config_maps, maps) = store();
        let mut place = Place::fake(HUB, client);
        place.objects.config_maps = config_maps;
        Self { place, maps, done }
    }

    /// The cache knows this.
    fn see(&mut self, map: ConfigMap) {
        self.maps.apply_watcher_event(&Event::Apply(map));
    }

    /// What was asked since the last time.
    fn done(&self) -> Vec<(Method, Value)> {
        std::mem::take(&mut *self.done.lock().unwrap())
    }

    fn methods(&self) -> Vec<Method> {
        self.done().into_iter().map(|(method, _)| method).collect()
    }
}

fn name() -> NetworkName {
    NetworkName::parse("city-ledger").unwrap()
}

fn anchor() -> Anchor {
    serde_json::from_value(json!({
        "version": 1, "hubId": "h1", "networkId": "n1", "chainId": "c",
        "genesisTime": "2026-01-01T00:00:00Z", "founders": [], "nextIndex": {},
        "identities": {"city-ledger-a-0": {"id": "i", "set": "a", "role": "Validator"}},
    }))
    .unwrap()
}

fn genesis(text: &str) -> Genesis {
    Genesis { text: text.to_owned(), hash: sha256_hex(text.as_bytes()) }
}

/// Nodes would begin another chain, or none: what is published is compared, in the cache and live.
#[tokio::test]
async fn another_genesis_under_the_name_of_ours_is_refused() {
    let (name, anchor, ours) = (name(), anchor(), genesis("ours"));
    let network = NetworkParts::new("ledger", &name, &anchor, None);
    let right = build_genesis_map(&network, &ours);
    let with =
        |data: Value| ConfigMap { data: serde_json::from_value(data).unwrap(), ..right.clone() };
    for wrong in [
        with(json!({GENESIS_FILE: "theirs"})),
        with(json!({GENESIS_FILE: "ours\n"})),
        with(json!({"other.json": "ours"})),
        with(Value::Null),
    ] {
        let mut fake = Fake::new(Some(&wrong));
        let behind = ensure_genesis(&fake.place, &network, &ours).await.unwrap().unwrap_err();
        assert_eq!(fake.methods(), [Method::POST, Method::GET], "nothing is written over it");
        fake.see(wrong);
        let refusal = ensure_genesis(&fake.place, &network, &ours).await.unwrap().unwrap_err();
        assert_eq!(refusal, behind);
        assert!(fake.methods().is_empty());
        assert_eq!(refusal.reason, Reason::GenesisRefused);
        let words = [right.name_any(), ours.hash.clone(), "delete it".to_owned()];
        assert!(words.iter().all(|word| refusal.message.contains(word)), "{}", refusal.message);
    }
}

#[tokio::test]
async fn the_genesis_is_published_once() {
    let (name, anchor, ours) = (name(), anchor(), genesis("ours"));
    let network = NetworkParts::new("ledger", &name, &anchor, None);
    let mut fake = Fake::new(None);
    let made = ensure_genesis(&fake.place, &network, &ours).await.unwrap();
    assert_eq!((made, fake.methods()), (Ok(Outcome::Created), vec![Method::POST]));
    fake.see(build_genesis_map(&network, &ours));
    let found = ensure_genesis(&fake.place, &network, &ours).await.unwrap();
    assert_eq!((found, fake.methods()), (Ok(Outcome::Unchanged), vec![]));
}

/// Clients would trust whoever holds its key. It follows from the CA, so nobody has to be asked.
#[tokio::test]
async fn another_authority_for_clients_is_replaced_by_ours() {
    let (name, anchor) = (name(), anchor());
    let network = NetworkParts::new("ledger", &name, &anchor, None);
    let mut fake = Fake::new(None);
    let made = publish(&fake.place, &network, &anchor, &[], "ours").await.unwrap();
    assert_eq!(made, Ok(true));
    let (method, applied) = fake.done().remove(0);
    assert_eq!(method, Method::POST);
    fake.see(serde_json::from_value(applied.clone()).unwrap());
    publish(&fake.place, &network, &anchor, &[], "ours").await.unwrap().unwrap();
    assert!(fake.done().is_empty(), "nothing is written twice");
    let mut edited = applied;
    edited["data"][paths::CA_FILE] = json!("theirs");
    fake.see(serde_json::from_value(edited).unwrap());
    publish(&fake.place, &network, &anchor, &[], "ours").await.unwrap().unwrap();
    let (method, applied) = fake.done().remove(0);
    assert_eq!((method, &applied["data"][paths::CA_FILE]), (Method::PATCH, &json!("ours")));
}
