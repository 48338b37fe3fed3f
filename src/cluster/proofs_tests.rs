//! Proofs against a small API server in memory, in paused time.

use std::convert::Infallible;

use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::api::ClusterDefaults;
use crate::cluster::registry::ClusterHandle;
use crate::cluster::watches::{Objects, watch_hub};

/// A member cluster: what was asked of it, and the pods that its watch shows.
struct World {
    proofs: Proofs,
    clusters: Clusters,
    place: Place,
    pods: Writer<Pod>,
    done: Arc<Mutex<Vec<String>>>,
    /// Answer to a create.
    code: Arc<Mutex<u16>>,
}

fn image(reference: &str) -> ClusterImage {
    ClusterImage { reference: reference.into(), pull_secret_name: None }
}

impl World {
    fn start() -> Self {
        let done: Arc<Mutex<Vec<String>>> = Arc::default();
        let code = Arc::new(Mutex::new(201));
        let (notes, answer) = (done.clone(), code.clone());
        let serve = move |request: Request<Body>| {
            let path = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            notes.lock().unwrap().push(format!("{} {path}", request.method()));
            let code = if request.method() == Method::POST { *answer.lock().unwrap() } else { 200 };
            let body = match code {
                201 => json!({"metadata": {"name": "p"}}),
                200 => json!({"kind": "Status", "status": "Success"}),
                code => json!({
                    "kind": "Status", "status": "Failure", "code": code,
                    "message": "exceeded quota", "reason": "Forbidden",
                }),
            };
            let mut response = Response::new(Body::from(body.to_string().into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            async move { Ok::<_, Infallible>(response) }
        };
        let client = Client::new(tower::service_fn(serve), "default");
        // Never driven: it only gives the channels.
        let watches = watch_hub(&client, crate::cluster::Scope::Everywhere);
        let (store, mut pods) = reflector::store();
        pods.apply_watcher_event(&Event::Init);
        pods.apply_watcher_event(&Event::InitDone);
        let objects = Objects { pods: store, ..watches.caches.objects.clone() };
        let clusters = Clusters::default();
        clusters.put(ClusterHandle::member(
            "hangzhou",
            Ok(()),
            None,
            Some(ClusterDefaults::default()),
            image("operator:1"),
            Some(client),
            [("ledger".to_owned(), Ok(objects))].into(),
        ));
        let place = clusters.place("hangzhou", "ledger").unwrap();
        let proofs = Proofs::new(
            "h1".to_owned(),
            clusters.clone(),
            watches.caches.described(),
            watches.triggers.clone(),
        );
        Self { proofs, clusters, place, pods, done, code }
    }

    fn ask(&self) -> Proof {
        self.proofs.ask(&self.place, "ledger")
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut *self.done.lock().unwrap())
    }

    /// The watch shows the pod as made, in this state.
    fn show(&mut self, uid: &str, state: &Value) {
        let mut pod = build_image_proof("h1", "hangzhou", "ledger", &self.place.agent_image);
        pod.metadata.uid = Some(uid.to_owned());
        pod.status = serde_json::from_value(json!({"containerStatuses": [{
            "name": "version", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
        }]}))
        .unwrap();
        self.pods.apply_watcher_event(&Event::Apply(pod));
    }

    /// The watch shows that it is gone.
    fn take_away(&mut self) {
        let pod = build_image_proof("h1", "hangzhou", "ledger", &self.place.agent_image);
        self.pods.apply_watcher_event(&Event::Delete(pod));
    }

    fn name(&self) -> String {
        proof_name("h1", &self.place.agent_image)
    }
}

async fn seconds(count: u64) {
    sleep(Duration::from_secs(count)).await;
}

fn not_found() -> Value {
    json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}})
}

#[tokio::test(start_paused = true)]
async fn an_image_is_proved_once_and_nothing_is_left_behind() {
    let mut world = World::start();
    assert_eq!(world.ask(), Proof::trying());
    assert_eq!(world.ask(), Proof::trying());
    seconds(2).await;
    assert_eq!(world.done(), ["POST pods"]);
    world.show("u1", &json!({"terminated": {"exitCode": 0}}));
    seconds(2).await;
    assert_eq!(world.done(), [format!("DELETE {}", world.name())]);
    world.take_away();
    seconds(3600).await;
    assert_eq!(world.ask(), Proof::Proved);
    seconds(60).await;
    assert!(world.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_and_tried_again_with_a_new_pod() {
    let mut world = World::start();
    let mut news = world.proofs.news();
    world.ask();
    seconds(2).await;
    world.show("u1", &not_found());
    seconds(2).await;
    assert!(news.has_changed().unwrap());
    news.mark_unchanged();
    let failed = Proof::Unavailable("ErrImagePull: not found".to_owned());
    assert_eq!(world.ask(), failed);
    seconds(30).await;
    assert_eq!(world.done(), ["POST pods"]);
    seconds(40).await;
    assert_eq!(world.done(), [format!("DELETE {}", world.name())]);
    world.take_away();
    seconds(2).await;
    assert_eq!(world.done(), ["POST pods"]);
    // While it is tried again, what is known stands.
    world.show("u2", &json!({"waiting": {"reason": "ContainerCreating"}}));
    seconds(2).await;
    assert_eq!(world.ask(), failed);
    assert!(!news.has_changed().unwrap());
    world.show("u2", &json!({"terminated": {"exitCode": 0}}));
    seconds(2).await;
    assert_eq!(world.ask(), Proof::Proved);
    assert!(news.has_changed().unwrap());
}

/// A restart of the operator writes nothing.
#[tokio::test(start_paused = true)]
async fn nodes_that_run_are_proof_enough() {
    let mut world = World::start();
    let pod = json!({
        "metadata": {"name": "n-0", "namespace": "ledger", "labels": {labels::NODE: "n"}},
        "spec": {"containers": [], "initContainers": [{"name": "guard", "image": "operator:1"}]},
        "status": {"initContainerStatuses": [{
            "name": "guard", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0}},
        }]},
    });
    world.pods.apply_watcher_event(&Event::Apply(serde_json::from_value(pod).unwrap()));
    let Place { objects, agent_image, .. } = &world.place;
    let known = world.proofs.known("hangzhou", "ledger", agent_image, Some(objects));
    assert_eq!(known, Some(Proof::Proved));
    assert_eq!(world.ask(), Proof::Proved);
    seconds(60).await;
    assert!(world.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_may_not_be_made_is_said_so_and_tried_again() {
    let world = World::start();
    *world.code.lock().unwrap() = 403;
    world.ask();
    seconds(2).await;
    let Proof::NotYet(why) = world.ask() else { panic!("{:?}", world.ask()) };
    assert!(why.contains("exceeded quota"), "{why}");
    seconds(50).await;
    assert_eq!(world.done(), ["POST pods"]);
    seconds(20).await;
    assert_eq!(world.done(), ["POST pods"]);
}

#[tokio::test(start_paused = true)]
async fn nobody_tries_what_nobody_asks_for() {
    let mut world = World::start();
    world.ask();
    seconds(2).await;
    world.show("u1", &not_found());
    seconds(WANTED.as_secs() + 5).await;
    world.done();
    seconds(600).await;
    assert!(world.done().is_empty());
    // Nor is its pod left.
    let Place { client, objects, .. } = &world.place;
    world.proofs.sweep("hangzhou", "ledger", client, objects).await;
    assert_eq!(world.done(), [format!("DELETE {}", world.name())]);
    assert!(matches!(world.ask(), Proof::Unavailable(_)));
}

#[tokio::test(start_paused = true)]
async fn another_image_is_another_question() {
    let mut world = World::start();
    world.ask();
    seconds(2).await;
    world.show("u1", &not_found());
    seconds(2).await;
    let old = world.name();
    let (client, objects) = (world.place.client.clone(), world.place.objects.clone());
    world.clusters.put(ClusterHandle::member(
        "hangzhou",
        Ok(()),
        None,
        Some(ClusterDefaults::default()),
        image("mirror/operator:1"),
        Some(client.clone()),
        [("ledger".to_owned(), Ok(objects.clone()))].into(),
    ));
    world.place = world.clusters.place("hangzhou", "ledger").unwrap();
    assert_eq!(world.ask(), Proof::trying());
    seconds(2).await;
    world.done();
    // Of the old one only its pod is left.
    world.proofs.sweep("hangzhou", "ledger", &client, &objects).await;
    assert_eq!(world.done(), [format!("DELETE {old}")]);
}
