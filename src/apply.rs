//! The only place where Kubernetes objects are written.
//!
//! The first write of an object is a create, so that an object of the same name that somebody else
//! made is never overwritten. Later writes are server-side applies that carry the known uid. Before
//! either, the wish is compared with what is there: in steady state nothing is written.

mod restore;

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::hash::short_hash;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DeserializeGuard, DynamicObject};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use self::restore::restore_spec;
use crate::labels;

/// Longest a single request may take. The client itself has no bound on reads.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server answered with an error, or could not be asked.
    #[error("{what}: {source}")]
    Request {
        /// What was tried.
        what: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// No answer in time. The request may have had its effect.
    #[error("{what}: no answer within {} s", REQUEST_DEADLINE.as_secs())]
    Deadline {
        /// What was tried.
        what: String,
    },
    /// An object of this name exists and is not ours.
    #[error(
        "{kind} {name} exists and is not this network's ({owner}); delete or rename it, then the operator goes on"
    )]
    NameTaken {
        /// The object's kind.
        kind: String,
        /// The object's name.
        name: String,
        /// Whose it seems to be.
        owner: String,
    },
}

impl ApiError {
    /// The kind of error, from a fixed list: safe as a metric's label.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Deadline { .. } => "deadline",
            Self::NameTaken { .. } => "name-taken",
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => match status.code {
                    403 => "forbidden",
                    404 => "not-found",
                    409 => "conflict",
                    422 => "invalid",
                    429 => "throttled",
                    500.. => "server",
                    _ => "refused",
                },
                _ => "transport",
            },
        }
    }

    /// The HTTP status of the server's answer, if it answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Runs one request within [`REQUEST_DEADLINE`].
pub async fn bounded<T>(
    what: impl FnOnce() -> String,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ApiError::Request { what: what(), source: Box::new(source) }),
        Err(_) => Err(ApiError::Deadline { what: what() }),
    }
}

/// A kind of object that lives in a namespace and can be read, made and applied.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

fn describe<K: Object>(verb: &str, namespace: &str, name: &str) -> String {
    format!("{verb} {} {namespace}/{name}", K::kind(&()))
}

/// Reads an object live. `None` = it does not exist; a failed read is an error, never `None`.
pub async fn read<K: Object>(
    client: &kube::Client,
    namespace: &str,
    name: &str,
) -> Result<Option<K>, ApiError> {
    let api = Api::<K>::namespaced(client.clone(), namespace);
    bounded(|| describe::<K>("get", namespace, name), api.get_opt(name)).await
}

/// The status of an object that need not parse itself. `None` = it is gone, or its status is not one either.
pub async fn read_status<K: Object, S: DeserializeOwned>(
    client: &kube::Client,
    namespace: &str,
    name: &str,
) -> Result<Option<S>, ApiError> {
    let kind = ApiResource::erase::<K>(&());
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind);
    let found = bounded(|| describe::<K>("get", namespace, name), api.get_opt(name)).await?;
    let status = found.and_then(|mut object| Some(object.data.get_mut("status")?.take()));
    Ok(status.and_then(|status| serde_json::from_value(status).ok()))
}

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was already so.
    Unchanged,
    /// The object was made.
    Created,
    /// The object was changed.
    Changed,
}

/// Whether `object` is ours: recorded by its uid, or marked with this network's id.
pub fn is_ours(object: &impl Resource, recorded_uid: Option<&str>, network_id: &str) -> bool {
    let meta = object.meta();
    let recorded = recorded_uid.is_some() && meta.uid.as_deref() == recorded_uid;
    let labels = meta.labels.as_ref();
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    recorded
        || (label(labels::MANAGED_BY) == Some(labels::OPERATOR)
            && label(labels::NETWORK_ID) == Some(network_id))
}

fn name_taken<K: Object>(object: &impl Resource) -> ApiError {
    let owner = match object.labels().get(labels::NETWORK_ID) {
        Some(id) => format!("it carries the marks of network id {id}"),
        None => "it has no mark of this operator".to_owned(),
    };
    ApiError::NameTaken { kind: K::kind(&()).into_owned(), name: object.name_any(), owner }
}

/// Makes `desired` so, given what a cache knows of it (`cached`; a cache may be behind).
///
/// `recorded_uid` is the uid in the anchor, if any: an object with it is ours even when its marks were
/// damaged. Returns the object as it is now.
pub async fn ensure<K: Object>(
    client: &kube::Client,
    cached: Option<&K>,
    desired: K,
    recorded_uid: Option<&str>,
    network_id: &str,
) -> Result<(K, Outcome), ApiError> {
    let owners = desired.meta().owner_references.clone().unwrap_or_default();
    let may =
        |object: &K| is_ours(object, recorded_uid, network_id) || is_owned_by(object, &owners);
    ensure_if(client, cached, desired, may).await
}

/// One of these owns the object: that names it as ours, too, when somebody took its labels away.
fn is_owned_by(object: &impl Resource, owners: &[OwnerReference]) -> bool {
    let named = object.meta().owner_references.iter().flatten();
    let mut named = named.map(|owner| &owner.uid);
    named.any(|uid| owners.iter().any(|owner| owner.uid == *uid))
}

/// The same as [`ensure`], where `may` tells whether an object of that name may be changed.
pub async fn ensure_if<K: Object>(
    client: &kube::Client,
    cached: Option<&K>,
    mut desired: K,
    may: impl Fn(&K) -> bool,
) -> Result<(K, Outcome), ApiError> {
    let namespace = desired.namespace().unwrap_or_default();
    note_wish(&mut desired);
    let existing = match cached {
        Some(object) => object.clone(),
        None => match create(client, &namespace, &desired).await? {
            Created::Now(object) => return Ok((object, Outcome::Created)),
            // The cache was behind.
            Created::Already(object) => object,
        },
    };
    if !may(&existing) {
        return Err(name_taken::<K>(&existing));
    }
    if satisfied(&desired, &existing) {
        return Ok((existing, Outcome::Unchanged));
    }
    Ok((apply_over(client, &existing, desired).await?, Outcome::Changed))
}

/// Changes an object that is still as it was read (`known`). If it was changed since, by anybody, the API server refuses.
pub async fn change_as_read<K: Object>(
    client: &kube::Client,
    known: &K,
    mut desired: K,
) -> Result<K, ApiError> {
    note_wish(&mut desired);
    desired.meta_mut().resource_version = known.resource_version();
    apply_over(client, known, desired).await
}

/// What others added to a list whose elements have keys stays through an apply, and can even make it fail: a Service with
/// a port that has no name takes no second one. So what an apply does not achieve is merged over it, which replaces lists as
/// a whole.
async fn apply_over<K: Object>(
    client: &kube::Client,
    existing: &K,
    mut desired: K,
) -> Result<K, ApiError> {
    let (namespace, name) = (desired.namespace().unwrap_or_default(), desired.name_any());
    // The uid makes the API server refuse if the object was replaced since it was read.
    desired.meta_mut().uid = existing.uid();
    let api = Api::<K>::namespaced(client.clone(), &namespace);
    let params = PatchParams::apply(labels::FIELD_MANAGER).force();
    let what = || describe::<K>("apply", &namespace, &name);
    match bounded(what, api.patch(&name, &params, &Patch::Apply(&desired))).await {
        Ok(applied) if holds(&desired, &applied) => return Ok(applied),
        Ok(applied) => {
            // The version that was read, if one was asked for, is that of our own write now.
            if desired.meta().resource_version.is_some() {
                desired.meta_mut().resource_version = applied.resource_version();
            }
        }
        Err(error) if error.code() == Some(422) => {}
        Err(error) => return Err(error),
    }
    tracing::warn!(kind = %K::kind(&()), %namespace, %name, "others added to it; its lists are put back");
    merge(&api, &name, &desired).await
}

/// Makes an object whose content is never changed afterwards, or takes the one that is there. Marks that
/// were taken from it are put back.
pub async fn ensure_exists<K: Object>(
    client: &kube::Client,
    cached: Option<&K>,
    desired: K,
    recorded_uid: Option<&str>,
    network_id: &str,
) -> Result<(K, Outcome), ApiError> {
    let (object, outcome) = match cached {
        Some(object) => (object.clone(), Outcome::Unchanged),
        None => {
            let namespace = desired.namespace().unwrap_or_default();
            match create(client, &namespace, &desired).await? {
                Created::Now(object) => return Ok((object, Outcome::Created)),
                Created::Already(object) => (object, Outcome::Unchanged),
            }
        }
    };
    if is_ours(&object, recorded_uid, network_id) {
        let restored = restore_marks(client, &object, desired.meta()).await?;
        Ok((restored.unwrap_or(object), outcome))
    } else {
        Err(name_taken::<K>(&object))
    }
}

/// Puts back labels and finalizers of an object of ours that lacks some of `desired`'s: somebody took them
/// away, or it came back from a backup without them. Its content is not touched. Returns it as it is then;
/// `None` = it lacked nothing, and nothing was written.
pub async fn restore_marks<K: Object>(
    client: &kube::Client,
    object: &K,
    desired: &ObjectMeta,
) -> Result<Option<K>, ApiError> {
    let Some(marks) = missing_marks(object.meta(), desired) else { return Ok(None) };
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(kind = %K::kind(&()), %namespace, %name, "it has lost marks of ours; they are put back");
    merge_as_read(client, object, json!({ "metadata": marks })).await.map(Some)
}

/// Changes these fields of an object that is still as it was read, and no others. If it was changed or replaced since,
/// the API server refuses: so somebody else's finalizer is not lost.
pub async fn merge_as_read<K: Object>(
    client: &kube::Client,
    object: &K,
    mut fields: Value,
) -> Result<K, ApiError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    fields["metadata"]["uid"] = json!(object.uid());
    fields["metadata"]["resourceVersion"] = json!(object.resource_version());
    merge(&Api::namespaced(client.clone(), &namespace), &name, &fields).await
}

async fn merge<K: Object>(
    api: &Api<K>,
    name: &str,
    fields: &(impl Serialize + std::fmt::Debug),
) -> Result<K, ApiError> {
    let params = PatchParams {
        field_manager: Some(labels::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let what = || describe::<K>("patch", api.namespace().unwrap_or_default(), name);
    bounded(what, api.patch(name, &params, &Patch::Merge(fields))).await
}

/// Deletes an object as it was seen. One that is gone already, or that another has replaced, is not the one that was
/// meant.
pub async fn delete<K: Object>(client: &kube::Client, object: &K) -> Result<(), ApiError> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let api = Api::<K>::namespaced(client.clone(), &namespace);
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match bounded(|| describe::<K>("delete", &namespace, &name), api.delete(&name, &params)).await {
        Err(error) if !matches!(error.code(), Some(404 | 409)) => Err(error),
        _ => Ok(()),
    }
}

/// Writes the status of the object that `meta` is of; what was in the `old` one and is not in the new is taken away.
/// `false` = it was deleted meanwhile: there is nothing left to report on. The object itself need not parse: that is
/// something to report.
pub async fn write_status<K, S: Serialize>(
    api: &Api<DeserializeGuard<K>>,
    meta: &ObjectMeta,
    old: &S,
    status: &S,
) -> Result<bool, ApiError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let name = meta.name.as_deref().unwrap_or_default();
    let place = meta.namespace.as_ref().map(|namespace| format!("{namespace}/"));
    let what = || format!("patch status of {} {}{name}", K::kind(&()), place.unwrap_or_default());
    // The uid: a status is never written to an object that replaced the one it is about.
    let mut patch = json!({"metadata": {"uid": meta.uid}, "status": status});
    null_what_is_gone(&json!(old), &mut patch["status"]);
    let patch = Patch::Merge(&patch);
    match bounded(what, api.patch_status(name, &PatchParams::default(), &patch)).await {
        Err(error) if error.code() == Some(404) => Ok(false),
        written => written.map(|_| true),
    }
}

/// Makes a merge patch from a new value: what it leaves out would stay as it was.
fn null_what_is_gone(old: &Value, new: &mut Value) {
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        for (name, old) in old {
            match new.get_mut(name) {
                Some(new) => null_what_is_gone(old, new),
                None => {
                    new.insert(name.clone(), Value::Null);
                }
            }
        }
    }
}

/// Adds a finalizer to an object; others stay.
pub async fn add_finalizer<K: Object>(
    client: &kube::Client,
    object: &K,
    finalizer: &str,
) -> Result<(), ApiError> {
    let wish = ObjectMeta { finalizers: Some(vec![finalizer.to_owned()]), ..ObjectMeta::default() };
    let Some(marks) = missing_marks(object.meta(), &wish) else { return Ok(()) };
    merge_as_read(client, object, json!({ "metadata": marks })).await.map(|_| ())
}

/// Takes a finalizer from an object; others stay.
pub async fn drop_finalizer<K: Object>(
    client: &kube::Client,
    object: &K,
    finalizer: &str,
) -> Result<(), ApiError> {
    if !object.finalizers().iter().any(|one| one == finalizer) {
        return Ok(());
    }
    let others: Vec<_> = object.finalizers().iter().filter(|one| *one != finalizer).collect();
    match merge_as_read(client, object, json!({"metadata": {"finalizers": others}})).await {
        // Gone meanwhile.
        Err(error) if error.code() == Some(404) => Ok(()),
        result => result.map(|_| ()),
    }
}

/// The patch that gives `object` the labels and finalizers of `desired` that it lacks, if any.
fn missing_marks(object: &ObjectMeta, desired: &ObjectMeta) -> Option<Value> {
    // The API server lets nobody add a finalizer to an object that is being deleted.
    if object.deletion_timestamp.is_some() {
        return None;
    }
    let labels: BTreeMap<_, _> = desired
        .labels
        .iter()
        .flatten()
        .filter(|(key, value)| object.labels.as_ref().and_then(|all| all.get(*key)) != Some(value))
        .collect();
    let has = object.finalizers.iter().flatten();
    let lacks: Vec<_> = desired
        .finalizers
        .iter()
        .flatten()
        .filter(|finalizer| !has.clone().any(|known| known == *finalizer))
        .collect();
    if labels.is_empty() && lacks.is_empty() {
        return None;
    }
    let finalizers: Vec<_> = has.clone().chain(lacks).collect();
    Some(json!({"labels": labels, "finalizers": finalizers}))
}

enum Created<K> {
    Now(K),
    Already(K),
}

async fn create<K: Object>(
    client: &kube::Client,
    namespace: &str,
    desired: &K,
) -> Result<Created<K>, ApiError> {
    let name = desired.name_any();
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let params = PostParams {
        field_manager: Some(labels::FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    match bounded(|| describe::<K>("create", namespace, &name), api.create(&params, desired)).await
    {
        Ok(object) => Ok(Created::Now(object)),
        Err(error) if error.code() == Some(409) => match read(client, namespace, &name).await? {
            Some(object) => Ok(Created::Already(object)),
            // It went between the two requests; the next pass sees it.
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Writes the hash of a wish into it: see [`satisfied`].
fn note_wish<K: Object>(desired: &mut K) {
    let hash = wish_hash(desired);
    desired.annotations_mut().insert(labels::APPLIED_HASH.to_owned(), hash);
}

/// Hash of what is wished for. Metadata that the API server fills in is not part of a wish.
fn wish_hash(desired: &impl Serialize) -> String {
    // Objects made by our builders: serialising them cannot fail.
    short_hash(&serde_json::to_vec(desired).unwrap_or_default())
}

/// The object already is what is wished for: it was applied with the same hash, and nobody has
/// changed a field of it since.
fn satisfied<K: Object>(desired: &K, existing: &K) -> bool {
    let same_hash = desired.annotations().get(labels::APPLIED_HASH)
        == existing.annotations().get(labels::APPLIED_HASH);
    same_hash && holds(desired, existing)
}

/// Every field of the wish is there.
fn holds<K: Object>(desired: &K, existing: &K) -> bool {
    match (serde_json::to_value(desired), serde_json::to_value(existing)) {
        (Ok(mut desired), Ok(existing)) => {
            // That of an earlier state of it.
            if let Some(meta) = desired.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("resourceVersion");
            }
            contains(&existing, &desired)
        }
        _ => false,
    }
}

/// Whether `existing` has every field of `desired` with the same value. Lists are compared element by
/// element: our builders name all of a list's elements, in the server's order.
pub(crate) fn contains(existing: &Value, desired: &Value) -> bool {
    match (existing, desired) {
        (Value::Object(existing), Value::Object(desired)) => desired.iter().all(|(key, wish)| {
            existing.get(key).map_or_else(|| is_empty(wish), |value| contains(value, wish))
        }),
        (Value::Array(existing), Value::Array(desired)) => {
            existing.len() == desired.len()
                && existing.iter().zip(desired).all(|(value, wish)| contains(value, wish))
        }
        _ => existing == desired,
    }
}

/// The server drops empty values.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let expected =
            json!({"validators": 3, "foreign": null, "at": {"a": 1, "b": null}, "all": []});
        assert_eq!(patch, expected);
    }

    #[test]
    fn ours_is_what_is_recorded_or_marked_with_this_network() {
        use k8s_openapi::api::core::v1::ConfigMap;
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
        use k8s_openapi::api::core::v1::ConfigMap;
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
        let mut going = meta(&[], &[]);
        going.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(missing_marks(&going, &desired), None);
    }
}
