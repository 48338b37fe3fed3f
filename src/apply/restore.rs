//! Objects of ours that do not parse: they were stored while their definition allowed more, or changed past what it
//! allows. What the other functions read and are answered would fail, so here an object is only JSON.

use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};

use super::{ApiError, Object, bounded, describe, is_ours_by, name_taken, null_what_is_gone};
use crate::labels;

/// Puts back the spec of an object that does not parse as `desired` has it, and takes its status away if that does not
/// parse either. All else about it stays: once it parses, that is [`super::ensure`]'s. An object that is not ours is
/// refused.
pub async fn restore_spec<K: Object>(
    client: &kube::Client,
    desired: &K,
    network_id: &str,
) -> Result<(), ApiError> {
    let (namespace, name) = (desired.namespace().unwrap_or_default(), desired.name_any());
    let kind = ApiResource::erase::<K>(&());
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &kind);
    let found = bounded(|| describe::<K>("get", &namespace, &name), api.get_opt(&name)).await?;
    // Gone meanwhile: the next pass makes it.
    let Some(found) = found else { return Ok(()) };
    if !is_ours_by(&found, None, network_id, desired.meta()) {
        return Err(name_taken::<K>(&found));
    }
    // The cache was behind.
    let Some(mending) = plan_mending(&found, desired) else { return Ok(()) };
    // As it was read: what a person corrects at the same time is not overwritten. A merge, since an apply has to
    // understand what is there.
    let patch = json!({
        "metadata": {"uid": found.uid(), "resourceVersion": found.resource_version()},
        "spec": mending.spec,
    });
    let params = PatchParams {
        field_manager: Some(labels::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let what = || describe::<K>("patch", &namespace, &name);
    bounded(what, api.patch(&name, &params, &Patch::Merge(&patch))).await?;
    if mending.status_is_lost {
        // Only a view: the next report computes it again.
        let patch = json!({"metadata": {"uid": found.uid()}, "status": null});
        let what = || describe::<K>("patch status of", &namespace, &name);
        let params = PatchParams::default();
        bounded(what, api.patch_status(&name, &params, &Patch::Merge(&patch))).await?;
    }
    Ok(())
}

/// What makes an object parse again.
struct Mending {
    /// The patch of its spec.
    spec: Value,
    /// With that spec it would not parse either.
    status_is_lost: bool,
}

/// `None` = it parses.
fn plan_mending<K: Object>(found: &DynamicObject, desired: &K) -> Option<Mending> {
    let parses = |object: &Value| serde_json::from_value::<K>(object.clone()).is_ok();
    let mut object = serde_json::to_value(found).ok()?;
    if parses(&object) {
        return None;
    }
    let mut spec = serde_json::to_value(desired).ok()?.get_mut("spec")?.take();
    object["spec"] = spec.clone();
    let status_is_lost = !parses(&object);
    null_what_is_gone(&found.data["spec"], &mut spec);
    Some(Mending { spec, status_is_lost })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use hyper::{Method, Request, Response};
    use kube::client::Body;

    use super::*;
    use crate::api::{BsnNode, Storage};
    use crate::build::bsn_node::build_bsn_node;
    use crate::build::samples::with_node;

    const NODE: &str = "city-ledger-hangzhou-0";

    fn wish() -> BsnNode {
        with_node(Some("network-uid"), |node| build_bsn_node(node, &Storage::default()))
    }

    /// What is stored, with this spec.
    fn stored(spec: Value) -> Value {
        let mut object = serde_json::to_value(wish()).unwrap();
        object["metadata"]["uid"] = json!("u1");
        object["metadata"]["resourceVersion"] = json!("7");
        object["spec"] = spec;
        object
    }

    fn nonsense() -> Value {
        json!({
            "networkRef": {"name": "city-ledger"}, "nodeSet": "hangzhou", "role": "Boss",
            "cluster": "hangzhou", "storage": "large", "former": 1,
        })
    }

    /// Puts back the spec of what is stored, through an API server that does what it is asked; gives the patches, each
    /// with the last part of its path.
    async fn restore(stored: Value) -> (Result<(), ApiError>, Vec<(String, Value)>) {
        let done: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let notes = done.clone();
        let serve = move |request: Request<Body>| {
            let (notes, answer) = (notes.clone(), stored.to_string());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                if parts.method != Method::GET {
                    let what = parts.uri.path().rsplit('/').next().unwrap().to_owned();
                    notes.lock().unwrap().push((what, serde_json::from_slice(&body).unwrap()));
                }
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(answer.into_bytes())))
            }
        };
        let client = kube::Client::new(tower::service_fn(serve), "default");
        let result = restore_spec(&client, &wish(), "n1").await;
        let done = std::mem::take(&mut *done.lock().unwrap());
        (result, done)
    }

    #[tokio::test]
    async fn a_spec_that_does_not_parse_is_put_back_as_a_whole() {
        let (result, done) = restore(stored(nonsense())).await;
        result.unwrap();
        let spec = json!({
            "networkRef": {"name": "city-ledger"}, "nodeSet": "hangzhou", "role": "Validator",
            "cluster": "hangzhou", "storage": {"size": "20Gi"}, "former": null,
        });
        let meta = json!({"uid": "u1", "resourceVersion": "7"});
        assert_eq!(done, [(NODE.to_owned(), json!({"metadata": meta, "spec": spec}))]);
    }

    #[tokio::test]
    async fn a_status_that_does_not_parse_is_taken_away_and_any_other_stays() {
        let mut object = stored(serde_json::to_value(wish()).unwrap()["spec"].take());
        object["status"] = json!({"conditions": "many"});
        let (result, done) = restore(object).await;
        result.unwrap();
        assert_eq!(done.len(), 2, "{done:?}");
        let (what, patch) = &done[1];
        assert_eq!((what.as_str(), patch.get("status")), ("status", Some(&Value::Null)));
        let mut object = stored(nonsense());
        object["status"] = json!({"conditions": []});
        let (_, done) = restore(object).await;
        assert_eq!(done.len(), 1, "{done:?}");
    }

    #[tokio::test]
    async fn what_parses_by_now_is_left_alone() {
        let spec = serde_json::to_value(wish()).unwrap()["spec"].take();
        let (result, done) = restore(stored(spec)).await;
        result.unwrap();
        assert!(done.is_empty(), "{done:?}");
    }

    #[tokio::test]
    async fn a_strangers_object_is_not_touched_and_what_our_network_owns_is_ours() {
        let mut object = stored(nonsense());
        object["metadata"]["labels"] = json!({});
        let (result, done) = restore(object.clone()).await;
        result.unwrap();
        assert_eq!(done.len(), 1, "the owner says whose it is");
        object["metadata"]["ownerReferences"] = json!([]);
        let (result, done) = restore(object).await;
        assert_eq!(result.unwrap_err().category(), "name-taken");
        assert!(done.is_empty(), "{done:?}");
    }
}
