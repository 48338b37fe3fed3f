//! The protocol against `ConfigMap`s that can fail before and after they are written.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bsn_core::intent::record::{NewStep, Phase};
use bsn_core::intent::writer::Task;
use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

use super::*;

const PLENTY: Duration = Duration::from_secs(15);

/// One `ConfigMap` of an API server.
#[derive(Default)]
struct Server {
    stored: Option<Value>,
    version: u64,
    writes: usize,
    /// The write, counted from 1, that is done and not answered.
    lose_answer_of: Option<usize>,
    /// Nothing is answered at all.
    away: bool,
}

impl Server {
    fn serve(&mut self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        let error = |code: StatusCode| {
            let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "Other" };
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": reason, "message": reason, "code": code.as_u16(),
            });
            (code, status)
        };
        if self.away {
            return error(StatusCode::SERVICE_UNAVAILABLE);
        }
        if *method == Method::GET {
            return match &self.stored {
                Some(map) => (StatusCode::OK, map.clone()),
                None => error(StatusCode::NOT_FOUND),
            };
        }
        let mut map: Value = serde_json::from_slice(body).unwrap();
        let named = map["metadata"]["resourceVersion"].as_str().map(ToOwned::to_owned);
        let current = self.stored.as_ref().map(|_| self.version.to_string());
        if named != current {
            return error(StatusCode::CONFLICT);
        }
        self.version += 1;
        self.writes += 1;
        map["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.stored = Some(map.clone());
        if self.lose_answer_of == Some(self.writes) {
            return error(StatusCode::GATEWAY_TIMEOUT);
        }
        (StatusCode::OK, map)
    }

    fn record(&self) -> Record<String> {
        let text = self.stored.as_ref().unwrap()["data"][STEPS_KEY].as_str().unwrap();
        serde_json::from_str(text).unwrap()
    }
}

fn store(server: &Arc<Mutex<Server>>) -> MapStore {
    let server = server.clone();
    let service = service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let (code, value) = server.lock().unwrap().serve(&parts.method, &body);
            let response =
                Response::builder().status(code).body(Body::from(value.to_string().into_bytes()));
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    let client = kube::Client::new(service, "ns");
    MapStore { client: Some(client), namespace: "ns".into(), name: "net-anchor".into() }
}

struct Hub {
    primary: Arc<Mutex<Server>>,
    member: Arc<Mutex<Server>>,
}

impl Hub {
    /// A primary that holds other facts already, and a member cluster without anything.
    fn new() -> Self {
        let stored = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "net-anchor", "namespace": "ns", "resourceVersion": "1"},
            "data": {"anchor.json": "{}"},
        });
        let primary = Server { stored: Some(stored), version: 1, ..Server::default() };
        Self { primary: Arc::new(Mutex::new(primary)), member: Arc::default() }
    }

    fn stores(&self) -> BTreeMap<Place, MapStore> {
        [(Place::Primary, store(&self.primary)), (Place::Copy("east".into()), store(&self.member))]
            .into()
    }

    fn writer(transitions: u64) -> Writer<String> {
        Writer::new("h1", "n1", transitions, ["east".to_owned()])
    }

    async fn run(
        &self,
        writer: &mut Writer<String>,
        task: Task<String>,
    ) -> Result<Vec<String>, DriveError> {
        let mut effects = Vec::new();
        writer.start(task);
        drive(
            writer,
            &self.stores(),
            || PLENTY,
            |intent: &Intent<String>| effects.push(intent.step.clone()),
        )
        .await?;
        Ok(effects)
    }
}

fn begin(step: &str, decided_on: u64) -> Task<String> {
    let (ledger, places) = ("main".to_owned(), ["east".to_owned()].into());
    Task::Begin(NewStep { ledger, places, step: step.to_owned(), decided_on })
}

fn send(number: u64) -> Task<String> {
    Task::Send { ledger: "main".into(), number }
}

fn finish(number: u64) -> Task<String> {
    Task::Finish { ledger: "main".into(), number }
}

#[tokio::test(start_paused = true)]
async fn a_step_is_in_the_primary_and_in_its_copy_before_its_effect() {
    let hub = Hub::new();
    let mut writer = Hub::writer(4);
    hub.run(&mut writer, Task::Create).await.unwrap();
    hub.run(&mut writer, begin("add", 0)).await.unwrap();
    assert!(hub.member.lock().unwrap().stored.is_none(), "no effect yet, so no copy");
    writer.start(send(1));
    let member = hub.member.clone();
    let mut seen = Vec::new();
    drive(
        &mut writer,
        &hub.stores(),
        || PLENTY,
        |intent: &Intent<String>| {
            assert_eq!(member.lock().unwrap().record().open["main"], *intent);
            seen.push(intent.step.clone());
        },
    )
    .await
    .unwrap();
    assert_eq!(seen, ["add"]);
    let record = hub.primary.lock().unwrap().record();
    assert_eq!((record.epoch, record.open["main"].phase), (5, Phase::Sent));
    hub.run(&mut writer, finish(1)).await.unwrap();
    assert!(hub.primary.lock().unwrap().record().open.is_empty());
    // What else the anchor holds is still there.
    let stored = hub.primary.lock().unwrap().stored.clone().unwrap();
    assert_eq!(stored["data"]["anchor.json"], "{}");
    // And when all is done nothing is written.
    let writes = || (hub.primary.lock().unwrap().writes, hub.member.lock().unwrap().writes);
    let before = writes();
    hub.run(&mut writer, Task::Rest).await.unwrap();
    assert_eq!(writes(), before);
}

#[tokio::test(start_paused = true)]
async fn whatever_answer_is_lost_the_step_is_begun_and_done_once() {
    for lost in 1..8 {
        for of_primary in [true, false] {
            let hub = Hub::new();
            let server = if of_primary { &hub.primary } else { &hub.member };
            server.lock().unwrap().lose_answer_of = Some(lost);
            let mut writer = Hub::writer(0);
            hub.run(&mut writer, Task::Create).await.unwrap();
            hub.run(&mut writer, begin("add", 0)).await.unwrap();
            let effects = hub.run(&mut writer, send(1)).await.unwrap();
            assert_eq!(effects, ["add"], "answer {lost}, primary {of_primary}");
            hub.run(&mut writer, finish(1)).await.unwrap();
            let record = hub.primary.lock().unwrap().record();
            assert_eq!((record.step_number, record.open.len()), (1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_goes_on_with_the_step_and_the_old_one_is_fenced() {
    let hub = Hub::new();
    let mut old = Hub::writer(0);
    hub.run(&mut old, Task::Create).await.unwrap();
    hub.run(&mut old, begin("add", 0)).await.unwrap();
    let mut new = Hub::writer(1);
    assert_eq!(hub.run(&mut new, send(1)).await.unwrap(), ["add"]);
    let fenced = hub.run(&mut old, send(1)).await.unwrap_err();
    assert!(matches!(fenced, DriveError::Refused(Refusal::Fenced { .. })), "{fenced}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_after_the_lease_and_a_store_that_is_away_is_said() {
    let hub = Hub::new();
    let mut writer = Hub::writer(0);
    hub.run(&mut writer, Task::Create).await.unwrap();
    writer.start(begin("add", 0));
    let ended = drive(&mut writer, &hub.stores(), || Duration::ZERO, |_: &Intent<String>| {}).await;
    assert!(matches!(ended, Err(DriveError::Refused(Refusal::LeaseEnded))));
    hub.member.lock().unwrap().away = true;
    let away = hub.run(&mut writer, begin("add", 0)).await.unwrap_err();
    assert!(matches!(away, DriveError::Unreachable(_)), "{away}");
    assert!(hub.primary.lock().unwrap().record().open.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_restored_hub_is_noticed_by_the_copy_and_goes_on_by_consent() {
    let hub = Hub::new();
    let mut writer = Hub::writer(0);
    hub.run(&mut writer, Task::Create).await.unwrap();
    let backup = hub.primary.lock().unwrap().stored.clone();
    hub.run(&mut writer, begin("add", 0)).await.unwrap();
    hub.run(&mut writer, send(1)).await.unwrap();
    {
        let mut primary = hub.primary.lock().unwrap();
        primary.version += 1;
        let version = primary.version.to_string();
        primary.stored = backup;
        primary.stored.as_mut().unwrap()["metadata"]["resourceVersion"] = json!(version);
    }
    let mut after = Hub::writer(1);
    let refused = hub.run(&mut after, begin("other", 0)).await.unwrap_err();
    let DriveError::Refused(Refusal::HubOlder { consent, .. }) = refused else {
        panic!("{refused}");
    };
    hub.run(&mut after, Task::TakeOver { consent }).await.unwrap();
    let record = hub.primary.lock().unwrap().record();
    assert_eq!(record.open["main"].step, "add", "what was sent is not forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_never_overwritten() {
    let hub = Hub::new();
    let mut writer = Hub::writer(0);
    hub.run(&mut writer, Task::Create).await.unwrap();
    hub.primary.lock().unwrap().stored.as_mut().unwrap()["data"][STEPS_KEY] =
        json!("{\"later\": 1}");
    let writes = hub.primary.lock().unwrap().writes;
    let error = hub.run(&mut writer, begin("add", 0)).await.unwrap_err();
    assert!(matches!(error, DriveError::Unreadable { .. }), "{error}");
    assert_eq!(hub.primary.lock().unwrap().writes, writes);
}
