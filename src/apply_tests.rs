use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use hyper::{Method, Request, Response};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::client::Body;
use tower::service_fn;

use super::*;

/// An API server with one object, or none, that notes what it is asked to write.
#[derive(Clone, Default)]
struct Server {
    stored: Arc<Mutex<Option<Value>>>,
    writes: Arc<Mutex<Vec<(Method, Value)>>>,
}

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let serve = move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let (code, answer) = server.answer(&parts.method, body);
                let answer = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
            }
        };
        Client::new(service_fn(serve), "default")
    }

    fn answer(&self, method: &Method, body: Value) -> (u16, Value) {
        let mut stored = self.stored.lock().unwrap();
        let failure = |code: u16| {
            let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": "",
                "message": ""});
            (code, status)
        };
        if *method == Method::GET {
            return stored.clone().map_or_else(|| failure(404), |object| (200, object));
        }
        if *method == Method::POST && stored.is_some() {
            return failure(409);
        }
        self.writes.lock().unwrap().push((method.clone(), body.clone()));
        let object = stored.get_or_insert_default();
        merge_into(object, body);
        object["metadata"]["uid"] = json!("u1");
        object["metadata"]["resourceVersion"] = json!("7");
        (200, object.clone())
    }

    /// Somebody writes into the object, behind everybody's back.
    fn edit(&self, patch: Value) {
        merge_into(self.stored.lock().unwrap().as_mut().unwrap(), patch);
    }

    /// What was written since the last time.
    fn writes(&self) -> Vec<(Method, Value)> {
        std::mem::take(&mut *self.writes.lock().unwrap())
    }
}

/// As a merge patch; an apply of all fields does the same.
fn merge_into(object: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *object = patch;
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(&key);
        } else {
            merge_into(&mut object[key.as_str()], value);
        }
    }
}

/// Metadata of an object of network `n1`.
fn marked() -> ObjectMeta {
    let marks = [(labels::MANAGED_BY, labels::OPERATOR), (labels::NETWORK_ID, "n1")];
    let marks = marks.map(|(key, value)| (key.to_owned(), value.to_owned()));
    ObjectMeta {
        name: Some("net-ca".to_owned()),
        namespace: Some("ledger".to_owned()),
        labels: Some(marks.into()),
        ..ObjectMeta::default()
    }
}

fn public(content: &str) -> ConfigMap {
    let data = [("ca.crt".to_owned(), content.to_owned())];
    ConfigMap { metadata: marked(), data: Some(data.into()), ..ConfigMap::default() }
}

fn private(owners: &[&str]) -> Secret {
    let owner = |uid: &&str| OwnerReference { uid: (*uid).to_owned(), ..OwnerReference::default() };
    let owners: Vec<_> = owners.iter().map(owner).collect();
    let data = [("token".to_owned(), ByteString(b"t".to_vec()))];
    let owner_references = (!owners.is_empty()).then_some(owners);
    Secret {
        metadata: ObjectMeta { owner_references, ..marked() },
        data: Some(data.into()),
        ..Secret::default()
    }
}

/// Both ways of making an object: one that is kept as described, one that is never changed afterwards.
async fn ensured<K: Object>(client: &Client, wish: &K) -> [Result<(K, Outcome), ApiError>; 2] {
    [
        ensure(client, None, wish.clone(), None, "n1").await,
        ensure_exists(client, None, wish.clone(), None, "n1").await,
    ]
}

#[tokio::test]
async fn a_public_object_that_lost_its_labels_and_nothing_else_gets_them_back() {
    let server = Server::default();
    let client = server.client();
    let wish = public("ours");
    ensure(&client, None, wish.clone(), None, "n1").await.unwrap();
    assert_eq!(server.writes().len(), 1);
    server.edit(json!({"metadata": {"labels": null}}));
    let (restored, _) = ensure(&client, None, wish.clone(), None, "n1").await.unwrap();
    assert_eq!(restored.metadata.labels, wish.metadata.labels);
    let writes = server.writes();
    assert_eq!(writes.len(), 1, "{writes:?}");
    let (method, patch) = &writes[0];
    assert_eq!((method, patch.get("data")), (&Method::PATCH, None));
    assert_eq!(patch["metadata"]["resourceVersion"], "7", "only as it was read");
    for again in ensured(&client, &wish).await {
        assert_eq!(again.unwrap().1, Outcome::Unchanged);
    }
    assert!(server.writes().is_empty(), "nothing is written twice");
    server.edit(json!({"metadata": {"labels": null}}));
    let (restored, _) = ensure_exists(&client, None, wish.clone(), None, "n1").await.unwrap();
    assert_eq!(restored.metadata.labels, wish.metadata.labels);
}

#[tokio::test]
async fn what_is_not_what_we_would_write_or_says_whose_it_is_is_left_alone() {
    let wish = public("ours");
    for edit in [
        json!({"metadata": {"labels": null}, "data": {"ca.crt": "theirs"}}),
        json!({"metadata": {"labels": null}, "data": {"more": "theirs"}}),
        json!({"metadata": {"labels": null}, "immutable": true}),
        json!({"metadata": {"labels": {(labels::NETWORK_ID): "n2"}}}),
    ] {
        let server = Server::default();
        let client = server.client();
        ensure(&client, None, wish.clone(), None, "n1").await.unwrap();
        server.edit(edit.clone());
        server.writes();
        for taken in ensured(&client, &wish).await {
            assert!(matches!(taken, Err(ApiError::NameTaken { .. })), "{edit}: {taken:?}");
        }
        assert!(server.writes().is_empty(), "{edit}");
    }
}

#[tokio::test]
async fn a_private_object_without_labels_is_ours_only_by_its_owner_or_its_uid() {
    let server = Server::default();
    let client = server.client();
    let unowned = private(&[]);
    ensure_exists(&client, None, unowned.clone(), None, "n1").await.unwrap();
    server.edit(json!({"metadata": {"labels": null}}));
    for taken in ensured(&client, &unowned).await {
        assert!(matches!(taken, Err(ApiError::NameTaken { .. })), "{taken:?}");
    }
    let recorded = ensure_exists(&client, None, unowned, Some("u1"), "n1").await.unwrap().0;
    assert_eq!(recorded.metadata.labels, marked().labels);
    let server = Server::default();
    let client = server.client();
    let owned = private(&["node"]);
    ensure_exists(&client, None, owned.clone(), None, "n1").await.unwrap();
    server.edit(json!({"metadata": {"labels": null}}));
    let kept = ensure_exists(&client, None, owned, None, "n1").await.unwrap().0;
    assert_eq!(kept.metadata.labels, marked().labels);
}

#[test]
fn defaults_of_the_server_are_not_a_difference_but_edits_are() {
    let wish = json!({"spec": {"ports": [{"port": 1}], "type": "ClusterIP"}, "empty": {}});
    let live = json!({
        "spec": {"ports": [{"port": 1, "nodePort": 0}], "type": "ClusterIP", "clusterIP": "x"},
        "status": {}
    });
    assert!(contains(&live, &wish));
    for edited in [
        json!({"spec": {"ports": [{"port": 2}], "type": "ClusterIP"}}),
        json!({"spec": {"ports": [{"port": 1}, {"port": 3}], "type": "ClusterIP"}}),
        json!({"spec": {"ports": [{"port": 1}]}}),
    ] {
        assert!(!contains(&edited, &wish), "{edited}");
    }
}

#[test]
fn a_status_loses_what_is_gone_at_every_depth() {
    let old = json!({"validators": 4, "foreign": 1, "at": {"a": 1, "b": 2}, "all": [1]});
    let mut patch = json!({"validators": 3, "at": {"a": 1}, "all": []});
    null_what_is_gone(&old, &mut patch);
    let expected = json!({"validators": 3, "foreign": null, "at": {"a": 1, "b": null}, "all": []});
    assert_eq!(patch, expected);
}

#[test]
fn ours_is_what_is_recorded_or_marked_with_this_network() {
    let mut object = ConfigMap::default();
    object.metadata.uid = Some("u1".into());
    assert!(!is_ours(&object, None, "n1"));
    assert!(is_ours(&object, Some("u1"), "n1"));
    assert!(!is_ours(&object, Some("u2"), "n1"));
    let labels = object.labels_mut();
    labels.insert(labels::MANAGED_BY.into(), labels::OPERATOR.into());
    labels.insert(labels::NETWORK_ID.into(), "n1".into());
    assert!(is_ours(&object, None, "n1"));
    assert!(!is_ours(&object, None, "n2"));
}

#[test]
fn what_our_objects_own_is_ours_without_labels() {
    let owner = |uid: &str| OwnerReference { uid: uid.into(), ..OwnerReference::default() };
    let mut object = ConfigMap::default();
    assert!(!is_owned_by(&object, &[owner("node")]));
    object.metadata.owner_references = Some(vec![owner("node")]);
    assert!(is_owned_by(&object, &[owner("node")]));
    assert!(!is_owned_by(&object, &[owner("other")]) && !is_owned_by(&object, &[]));
}

#[test]
fn lost_marks_are_put_back_and_strangers_stay() {
    let meta = |labels: &[&str], finalizers: &[&str]| ObjectMeta {
        labels: Some(labels.iter().map(|key| ((*key).to_owned(), "v".to_owned())).collect()),
        finalizers: Some(finalizers.iter().map(|name| (*name).to_owned()).collect()),
        ..ObjectMeta::default()
    };
    let desired = meta(&["a"], &["keep"]);
    assert_eq!(missing_marks(&meta(&["a", "b"], &["other", "keep"]), &desired), None);
    let patch = missing_marks(&meta(&["b"], &["other"]), &desired).unwrap();
    assert_eq!(patch["labels"], json!({"a": "v"}));
    assert_eq!(patch["finalizers"], json!(["other", "keep"]));
    let mut said = desired.clone();
    let annotations = [(KEPT_ANNOTATION, "why"), (labels::APPLIED_HASH, "hash")];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    said.annotations = Some(annotations.into());
    let patch = missing_marks(&desired, &said).unwrap();
    assert_eq!(patch["annotations"], json!({(KEPT_ANNOTATION): "why"}));
    assert_eq!(missing_marks(&said, &said), None);
    let mut going = meta(&[], &[]);
    going.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(missing_marks(&going, &desired), None);
}
