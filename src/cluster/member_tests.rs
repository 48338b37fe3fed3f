//! The registry and its tasks against small servers in memory, in paused time.

use std::sync::Mutex;

use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::api::conditions::{AGENT_IMAGE_AVAILABLE, REACHABLE, find};
use crate::cluster::registry::Absent;
use crate::cluster::rights::role_rules;

/// How a server in memory behaves.
#[derive(Default)]
struct Behaviour {
    hangs: bool,
    /// The token it accepts.
    token: String,
    without_rights: bool,
    /// Uid of its kube-system.
    uid: String,
    /// Requests, newest last.
    seen: Vec<String>,
}

type Server = Arc<Mutex<Behaviour>>;

fn server(token: &str) -> Server {
    Arc::new(Mutex::new(Behaviour {
        token: token.to_owned(),
        uid: "u1".to_owned(),
        ..Behaviour::default()
    }))
}

fn answer(code: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string().into_bytes()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn refusal(code: u16) -> Response<Body> {
    let reason = if code == 404 { "NotFound" } else { "Other" };
    let body = json!({"kind": "Status", "status": "Failure", "code": code, "message": "no", "reason": reason});
    answer(code, &body)
}

/// A member's API server, asked with a token.
fn member(server: &Server, token: &str) -> Client {
    let (server, token) = (server.clone(), token.to_owned());
    let serve = move |request: Request<Body>| {
        let (server, token) = (server.clone(), token.clone());
        async move {
            let path = request.uri().path().to_owned();
            let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let (hangs, accepted, without, uid) = {
                let mut server = server.lock().unwrap();
                server.seen.push(path.clone());
                (server.hangs, server.token == token, server.without_rights, server.uid.clone())
            };
            if hangs || watches {
                std::future::pending::<()>().await;
            }
            let response = match path.as_str() {
                _ if !accepted => refusal(401),
                "/version" => {
                    let empty = ["buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion"];
                    let mut body = json!({
                        "major": "1", "minor": "33", "gitVersion": "v1.33.2", "platform": "linux",
                    });
                    for field in empty {
                        body[field] = json!("");
                    }
                    answer(200, &body)
                }
                "/api/v1/namespaces/trade" => refusal(404),
                "/api/v1/namespaces/ledger" => {
                    answer(200, &json!({"metadata": {"name": "ledger"}}))
                }
                "/api/v1/namespaces/kube-system" => {
                    answer(200, &json!({"metadata": {"name": "kube-system", "uid": uid}}))
                }
                path if path.ends_with("selfsubjectrulesreviews") => {
                    let rules = if without { Vec::new() } else { role_rules() };
                    let status = json!({
                        "incomplete": false, "nonResourceRules": [], "resourceRules": rules,
                    });
                    answer(201, &json!({"spec": {}, "status": status}))
                }
                _ => answer(200, &json!({"metadata": {"resourceVersion": "1"}, "items": []})),
            };
            Ok::<_, std::convert::Infallible>(response)
        }
    };
    Client::new(tower::service_fn(serve), "default")
}

/// The hub's API server: Secrets with kubeconfigs, and statuses that are patched.
#[derive(Clone, Default)]
struct Hub {
    secrets: Arc<Mutex<BTreeMap<String, String>>>,
    statuses: Arc<Mutex<BTreeMap<String, Vec<BsnClusterStatus>>>>,
    /// Uid of its kube-system.
    uid: Arc<Mutex<Option<String>>>,
}

impl Hub {
    fn client(&self) -> Client {
        let hub = self.clone();
        let serve = move |request: Request<Body>| {
            let hub = hub.clone();
            async move {
                let path = request.uri().path().to_owned();
                let name = path.split('/').rev().find(|part| *part != "status").unwrap_or_default();
                let name = name.to_owned();
                let response = if path.contains("/secrets/") {
                    match hub.secrets.lock().unwrap().get(&name) {
                        Some(text) => answer(
                            200,
                            &json!({"metadata": {"name": name},
                                "data": {"kubeconfig": k8s_openapi::ByteString(text.clone().into_bytes())}}),
                        ),
                        None => refusal(404),
                    }
                } else if path.ends_with("/namespaces/kube-system") {
                    let uid = hub.uid.lock().unwrap().clone();
                    answer(200, &json!({"metadata": {"name": "kube-system", "uid": uid}}))
                } else if request.method() == Method::PATCH {
                    let body = request.into_body().collect_bytes().await.unwrap();
                    let patch: Value = serde_json::from_slice(&body).unwrap();
                    let status = serde_json::from_value(patch["status"].clone()).unwrap();
                    hub.statuses.lock().unwrap().entry(name.clone()).or_default().push(status);
                    // As it is stored: it need not parse.
                    answer(200, &json!({"metadata": {"name": name}, "spec": {}}))
                } else {
                    answer(201, &json!({"metadata": {"name": "event"}}))
                };
                Ok::<_, std::convert::Infallible>(response)
            }
        };
        Client::new(tower::service_fn(serve), "default")
    }

    fn put(&self, cluster: &str, server: &str, token: &str) {
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://{server}', certificate-authority-data: AA==}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n"
        );
        self.secrets.lock().unwrap().insert(cluster.to_owned(), text);
    }

    fn writes(&self, cluster: &str) -> usize {
        self.statuses.lock().unwrap().get(cluster).map_or(0, Vec::len)
    }

    /// Reason of the condition `Reachable`, as it was written last.
    fn reachable(&self, cluster: &str) -> Option<String> {
        let statuses = self.statuses.lock().unwrap();
        let status = statuses.get(cluster)?.last()?;
        Some(find(&status.conditions, REACHABLE)?.reason.clone())
    }
}

fn own_image() -> ClusterImage {
    ClusterImage { reference: "registry.example/bsn-operator:1".into(), pull_secret_name: None }
}

fn described(name: &str, generation: i64) -> BsnCluster {
    let spec = json!({"kubeconfigSecretRef": {"name": name}, "allowedNamespaces": ["ledger"]});
    let mut cluster = BsnCluster::new(name, serde_json::from_value(spec).unwrap());
    cluster.metadata.uid = Some(format!("uid-{name}"));
    cluster.metadata.generation = Some(generation);
    cluster
}

struct World {
    hub: Hub,
    servers: Arc<Mutex<BTreeMap<String, Server>>>,
    clusters: Clusters,
    proofs: Proofs,
    writer: reflector::store::Writer<GuardedCluster>,
    notice: Arc<Notify>,
    dialled: Arc<Mutex<Vec<String>>>,
    _running: JoinSet<()>,
}

impl World {
    /// A hub whose operator runs, without any member.
    fn start() -> Self {
        let hub = Hub::default();
        let servers: Arc<Mutex<BTreeMap<String, Server>>> = Arc::default();
        let dialled: Arc<Mutex<Vec<String>>> = Arc::default();
        let clusters = Clusters::default();
        let (store, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitDone);
        let watches =
            crate::cluster::watches::watch_hub(&hub.client(), crate::cluster::Scope::Everywhere);
        let (known, log) = (servers.clone(), dialled.clone());
        let dial: Dial = Arc::new(move |config: Kubeconfig| {
            let server = server_of(&config).unwrap().trim_start_matches("https://").to_owned();
            let text = serde_json::to_value(&config.auth_infos).unwrap();
            let token = text[0]["user"]["token"].as_str().unwrap().to_owned();
            log.lock().unwrap().push(token.clone());
            let client = member(&known.lock().unwrap()[&server], &token);
            Box::pin(async move { Ok(client) })
        });
        let proofs = Proofs::new(
            "hub".into(),
            clusters.clone(),
            watches.caches.described(),
            watches.triggers.clone(),
        );
        let shared = Shared {
            hub: hub.client(),
            namespace: "bsn-system".into(),
            hub_id: "hub".into(),
            agent_image: own_image(),
            clusters: clusters.clone(),
            identities: Arc::default(),
            all: store,
            proofs: proofs.clone(),
            described: watches.caches.described(),
            triggers: watches.triggers.clone(),
            events: Events::new(hub.client(), "test"),
            dial,
        };
        let notice = Arc::new(Notify::new());
        let mut running = JoinSet::new();
        running.spawn(run(shared, notice.clone()));
        Self { hub, servers, clusters, proofs, writer, notice, dialled, _running: running }
    }

    fn tell(&mut self, event: &Event<GuardedCluster>) {
        self.writer.apply_watcher_event(event);
        self.notice.notify_one();
    }

    /// Adds a cluster whose server accepts the token `old`.
    fn join(&mut self, name: &str) -> Server {
        let server = server("old");
        // No two clusters are one.
        server.lock().unwrap().uid = format!("u-{name}");
        self.servers.lock().unwrap().insert(name.to_owned(), server.clone());
        self.hub.put(name, name, "old");
        self.tell(&Event::Apply(DeserializeGuard(Ok(described(name, 1)))));
        server
    }

    fn usable(&self, name: &str) -> bool {
        self.clusters.place(name, "ledger").is_ok()
    }
}

async fn seconds(count: u64) {
    sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_hangs_delays_no_other() {
    let mut world = World::start();
    world.join("hangs").lock().unwrap().hangs = true;
    world.join("works");
    seconds(1).await;
    assert!(world.usable("works"));
    assert!(matches!(
        world.clusters.place("hangs", "ledger"),
        Err(Absent::Unusable { reason: Reason::Connecting, .. } | Absent::NoCluster(_))
    ));
    seconds(30).await;
    assert_eq!(world.hub.reachable("hangs").as_deref(), Some("ClusterHangs"));
    assert_eq!(world.hub.reachable("works").as_deref(), Some("ClusterAnswers"));
}

#[tokio::test(start_paused = true)]
async fn a_rotated_kubeconfig_takes_effect_without_a_restart() {
    let mut world = World::start();
    let server = world.join("hangzhou");
    seconds(1).await;
    assert!(world.usable("hangzhou"));
    server.lock().unwrap().token = "new".into();
    seconds(15).await;
    assert!(!world.usable("hangzhou"));
    assert_eq!(world.hub.reachable("hangzhou").as_deref(), Some("CredentialsRefused"));
    world.hub.put("hangzhou", "hangzhou", "new");
    seconds(15).await;
    assert!(world.usable("hangzhou"));
    assert_eq!(*world.dialled.lock().unwrap(), ["old", "new"]);
}

/// The old credentials are accepted for a while: what is known of nodes is never gone in between.
#[tokio::test(start_paused = true)]
async fn a_rotation_in_time_leaves_no_gap() {
    let mut world = World::start();
    world.join("hangzhou");
    seconds(1).await;
    // Another text with the same credentials.
    world.hub.secrets.lock().unwrap().get_mut("hangzhou").unwrap().push_str("# rotated\n");
    for _ in 0..300 {
        sleep(Duration::from_millis(50)).await;
        let handle = world.clusters.get("hangzhou").unwrap();
        assert!(handle.objects("ledger").is_some());
    }
    assert_eq!(world.dialled.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_dropped_with_its_watches() {
    let mut world = World::start();
    let server = world.join("hangzhou");
    seconds(1).await;
    assert!(server.lock().unwrap().seen.iter().any(|path| path.ends_with("/pods")));
    world.tell(&Event::Delete(DeserializeGuard(Ok(described("hangzhou", 1)))));
    seconds(1).await;
    assert!(world.clusters.get("hangzhou").is_none());
    server.lock().unwrap().seen.clear();
    seconds(600).await;
    assert!(server.lock().unwrap().seen.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_watched_without_the_rights_to() {
    let mut world = World::start();
    let server = world.join("hangzhou");
    server.lock().unwrap().without_rights = true;
    seconds(60).await;
    assert!(!server.lock().unwrap().seen.iter().any(|path| path.ends_with("/pods")));
    let found = world.clusters.place("hangzhou", "ledger");
    assert!(matches!(found, Err(Absent::Unusable { reason: Reason::RightsMissing, .. })));
    server.lock().unwrap().without_rights = false;
    seconds(15).await;
    assert!(world.usable("hangzhou"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_while_nothing_happens() {
    let mut world = World::start();
    world.join("hangzhou");
    seconds(30).await;
    let before = world.hub.writes("hangzhou");
    // Its own status comes back by the watch.
    world.tell(&Event::Apply(DeserializeGuard(Ok(described("hangzhou", 1)))));
    seconds(3600).await;
    assert_eq!(world.hub.writes("hangzhou"), before);
}

#[tokio::test(start_paused = true)]
async fn a_description_that_does_not_parse_says_so_once_and_heals_when_it_is_corrected() {
    let mut world = World::start();
    world.join("hangzhou");
    seconds(30).await;
    assert!(world.usable("hangzhou"));
    let before = world.hub.writes("hangzhou");
    let broken = || {
        let mut object = serde_json::to_value(described("hangzhou", 2)).unwrap();
        object["spec"]["allowedNamespaces"] = json!("ledger");
        Event::Apply(serde_json::from_value::<GuardedCluster>(object).unwrap())
    };
    world.tell(&broken());
    seconds(1).await;
    assert!(!world.usable("hangzhou"));
    let status = world.hub.statuses.lock().unwrap()["hangzhou"].last().unwrap().clone();
    let ready = find(&status.conditions, READY).unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "Unparsable"));
    assert!(ready.message.contains("correct it"), "{}", ready.message);
    // Its own status comes back by the watch.
    world.tell(&broken());
    seconds(600).await;
    assert_eq!(world.hub.writes("hangzhou"), before + 1);
    world.tell(&Event::Apply(DeserializeGuard(Ok(described("hangzhou", 3)))));
    seconds(30).await;
    assert!(world.usable("hangzhou"));
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_in_one_namespace_leaves_the_others_alone() {
    let mut world = World::start();
    world.join("hangzhou");
    seconds(1).await;
    assert!(world.usable("hangzhou"));
    let mut wider = described("hangzhou", 2);
    wider.spec.allowed_namespaces.push("trade".into());
    world.tell(&Event::Apply(DeserializeGuard(Ok(wider))));
    for _ in 0..100 {
        sleep(Duration::from_millis(200)).await;
        assert!(world.usable("hangzhou"));
    }
    let found = world.clusters.place("hangzhou", "trade").err();
    let missing = Reason::NamespaceMissing;
    assert!(matches!(found, Some(Absent::Unusable { reason, .. }) if reason == missing));
}

/// Keys of nodes must not go to a cluster that only has the name of the one they ran in.
#[tokio::test(start_paused = true)]
async fn another_cluster_behind_the_same_name_is_not_used() {
    let mut world = World::start();
    let server = world.join("hangzhou");
    seconds(15).await;
    assert!(world.usable("hangzhou"));
    server.lock().unwrap().uid = "u2".into();
    // The new cluster has a new authority and new tokens, so a new kubeconfig comes with it.
    world.hub.secrets.lock().unwrap().get_mut("hangzhou").unwrap().push_str("# rebuilt\n");
    seconds(15).await;
    assert_eq!(world.hub.reachable("hangzhou").as_deref(), Some("AnotherCluster"));
    assert!(!world.usable("hangzhou"));
    assert!(world.clusters.get("hangzhou").unwrap().objects("ledger").is_none());
    server.lock().unwrap().uid = "u-hangzhou".into();
    seconds(30).await;
    assert!(world.usable("hangzhou"));
}

#[tokio::test(start_paused = true)]
async fn a_missing_kubeconfig_ends_the_connection_and_a_new_one_begins_it() {
    let mut world = World::start();
    world.join("hangzhou");
    seconds(1).await;
    world.hub.secrets.lock().unwrap().clear();
    seconds(15).await;
    assert_eq!(world.hub.reachable("hangzhou").as_deref(), Some("KubeconfigMissing"));
    assert!(!world.usable("hangzhou"));
    world.hub.put("hangzhou", "hangzhou", "old");
    seconds(15).await;
    assert!(world.usable("hangzhou"));
}

#[tokio::test(start_paused = true)]
async fn one_cluster_is_used_under_one_name_only() {
    let mut world = World::start();
    world.join("hangzhou");
    seconds(1).await;
    world.join("copy").lock().unwrap().uid = "u-hangzhou".into();
    seconds(30).await;
    assert_eq!(world.hub.reachable("copy").as_deref(), Some("ClusterTwice"));
    assert!(!world.usable("copy"));
    assert!(world.usable("hangzhou"));
    // What was never used is not recorded as what it was.
    let statuses = world.hub.statuses.lock().unwrap()["copy"].clone();
    assert!(statuses.iter().all(|status| status.cluster_uid.is_none()));
    world.tell(&Event::Delete(DeserializeGuard(Ok(described("hangzhou", 1)))));
    seconds(30).await;
    assert!(world.usable("copy"));
}

#[tokio::test(start_paused = true)]
async fn the_hub_is_no_member_of_its_own() {
    let mut world = World::start();
    *world.hub.uid.lock().unwrap() = Some("u-hangzhou".into());
    world.join("hangzhou");
    seconds(15).await;
    assert_eq!(world.hub.reachable("hangzhou").as_deref(), Some("ClusterTwice"));
    assert!(!world.usable("hangzhou"));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_the_image_is_in_the_status_at_once() {
    let mut world = World::start();
    world.join("hangzhou");
    seconds(1).await;
    let place = world.clusters.place("hangzhou", "ledger").unwrap();
    let before = world.hub.writes("hangzhou");
    world.proofs.ask(&place, "ledger");
    // Long before the next round.
    seconds(2).await;
    assert!(world.hub.writes("hangzhou") > before);
    let statuses = world.hub.statuses.lock().unwrap()["hangzhou"].clone();
    let image = find(&statuses.last().unwrap().conditions, AGENT_IMAGE_AVAILABLE).unwrap().clone();
    assert_eq!((image.status.as_str(), image.reason.as_str()), ("Unknown", "ImageNotProved"));
}
