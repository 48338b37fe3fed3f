//! The only place where Kubernetes objects are written.
//!
//! The first write of an object is a create, so that an object of the same name that somebody else
//! made is never overwritten. Later writes are server-side applies that carry the known uid. Before
//! either, the wish is compared with what is there: in steady state nothing is written.

mod restore;

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::hash::short_hash;
use bsn_core::retention::KEPT_ANNOTATION;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::ConfigMap;
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

    /// Whether the server does not accept what was asked, so that the same is asked in vain: it breaks a rule of the API
    /// (422), or one of the cluster's owner, such as a quota (403).
    pub fn is_refused(&self) -> bool {
        matches!(self.code(), Some(403 | 422))
    }

    /// What the server said, without what was asked.
    pub fn answer(&self) -> String {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status.message.clone(),
                other => other.to_string(),
            },
            other => other.to_string(),
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

/// Whether anything on `object` says that this operator made it, for whatever network.
pub fn is_marked(object: &impl Resource) -> bool {
    let meta = object.meta();
    let labels = meta.labels.iter().flatten();
    let managed =
        labels.clone().any(|(key, value)| key == labels::MANAGED_BY && value == labels::OPERATOR);
    let keys = labels.chain(meta.annotations.iter().flatten()).map(|(key, _)| key);
    let mut keys = keys.chain(meta.finalizers.iter().flatten());
    managed || keys.any(|key| key.starts_with(labels::PREFIX))
}

/// Somebody else has the object of this name.
pub fn name_taken<K: Object>(object: &impl Resource) -> ApiError {
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
    mut desired: K,
    recorded_uid: Option<&str>,
    network_id: &str,
) -> Result<(K, Outcome), ApiError> {
    note_wish(&mut desired);
    match create_unless_known(client, cached, &desired).await? {
        Created::Now(object) => Ok((object, Outcome::Created)),
        Created::Already(object) => {
            let object = claim(client, object, &desired, recorded_uid, network_id).await?;
            apply_unless_satisfied(client, object, desired).await
        }
    }
}

/// Whether [`is_ours`] holds, or what `desired` names as an owner owns the object: by that, too, it is ours when somebody took its labels away.
pub fn is_ours_by(
    object: &impl Resource,
    recorded_uid: Option<&str>,
    network_id: &str,
    desired: &ObjectMeta,
) -> bool {
    let owners = desired.owner_references.as_deref().unwrap_or_default();
    is_ours(object, recorded_uid, network_id) || is_owned_by(object, owners)
}

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
    note_wish(&mut desired);
    match create_unless_known(client, cached, &desired).await? {
        Created::Now(object) => Ok((object, Outcome::Created)),
        Created::Already(object) if may(&object) => {
            apply_unless_satisfied(client, object, desired).await
        }
        Created::Already(object) => Err(name_taken::<K>(&object)),
    }
}

/// Gives an object back that is ours. One that says so no more, but is what we would write, has its marks put back first.
async fn claim<K: Object>(
    client: &kube::Client,
    object: K,
    desired: &K,
    recorded_uid: Option<&str>,
    network_id: &str,
) -> Result<K, ApiError> {
    if is_ours_by(&object, recorded_uid, network_id, desired.meta()) {
        return Ok(object);
    }
    if !is_same_content(&object, desired, network_id) {
        return Err(name_taken::<K>(&object));
    }
    // Only as it was read: what somebody wrote into it since is not ours.
    let restored = restore_marks(client, &object, desired.meta()).await?;
    Ok(restored.unwrap_or(object))
}

/// Whether an object holds exactly what we would write, and carries no other network's id. Then it is ours whoever wrote it,
/// if its kind holds nothing but public bytes: a genesis, a template and a configuration are named by their hash, and the
/// CA's certificate is the recorded one. A stranger's `ConfigMap` that is the same to the byte is taken over by that, which
/// is meant: what is in it is what counts. Of a Secret or a disk it would not be: they are whose they are.
fn is_same_content<K: Object>(object: &K, desired: &K, network_id: &str) -> bool {
    let others = object.labels().get(labels::NETWORK_ID).is_some_and(|id| id != network_id);
    if others || K::kind(&()) != ConfigMap::kind(&()) {
        return false;
    }
    match (serde_json::to_value(object), serde_json::to_value(desired)) {
        (Ok(mut object), Ok(mut desired)) => {
            for fields in [&mut object, &mut desired].into_iter().filter_map(Value::as_object_mut) {
                fields.remove("metadata");
            }
            object == desired
        }
        _ => false,
    }
}

/// What the cache knows, else the object as it was made, or as it was found when it could not be made: the cache was
/// behind, or does not see it without our labels.
async fn create_unless_known<K: Object>(
    client: &kube::Client,
    cached: Option<&K>,
    desired: &K,
) -> Result<Created<K>, ApiError> {
    match cached {
        Some(object) => Ok(Created::Already(object.clone())),
        None => create(client, &desired.namespace().unwrap_or_default(), desired).await,
    }
}

async fn apply_unless_satisfied<K: Object>(
    client: &kube::Client,
    existing: K,
    desired: K,
) -> Result<(K, Outcome), ApiError> {
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
    match create_unless_known(client, cached, &desired).await? {
        Created::Now(object) => Ok((object, Outcome::Created)),
        Created::Already(object) => {
            let object = claim(client, object, &desired, recorded_uid, network_id).await?;
            let restored = restore_marks(client, &object, desired.meta()).await?;
            Ok((restored.unwrap_or(object), Outcome::Unchanged))
        }
    }
}

/// Puts labels and finalizers, and what it says of being kept, on an object of ours that lacks some of `desired`'s:
/// somebody took them away, it came back from a backup without them, or an older version made it. Its content is not
/// touched. Returns it as it is then; `None` = it lacked nothing, and nothing was written.
pub async fn restore_marks<K: Object>(
    client: &kube::Client,
    object: &K,
    desired: &ObjectMeta,
) -> Result<Option<K>, ApiError> {
    let Some(marks) = missing_marks(object.meta(), desired) else { return Ok(None) };
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(kind = %K::kind(&()), %namespace, %name, "it lacks marks of ours; they are put there");
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

/// The patch that gives `object` the marks of `desired` that it lacks, if any. Of annotations only the one for people is a
/// mark: the others say how the object came about.
fn missing_marks(object: &ObjectMeta, desired: &ObjectMeta) -> Option<Value> {
    // The API server lets nobody add a finalizer to an object that is being deleted.
    if object.deletion_timestamp.is_some() {
        return None;
    }
    let labels = lacking(object.labels.as_ref(), desired.labels.iter().flatten());
    let kept = desired.annotations.iter().flatten().filter(|(key, _)| *key == KEPT_ANNOTATION);
    let annotations = lacking(object.annotations.as_ref(), kept);
    let has = object.finalizers.iter().flatten();
    let lacks: Vec<_> = desired
        .finalizers
        .iter()
        .flatten()
        .filter(|finalizer| !has.clone().any(|known| known == *finalizer))
        .collect();
    if labels.is_empty() && annotations.is_empty() && lacks.is_empty() {
        return None;
    }
    let finalizers: Vec<_> = has.clone().chain(lacks).collect();
    Some(json!({"labels": labels, "annotations": annotations, "finalizers": finalizers}))
}

/// Those of `wanted` that are not among `all`, or not with this value.
fn lacking<'a>(
    all: Option<&BTreeMap<String, String>>,
    wanted: impl Iterator<Item = (&'a String, &'a String)>,
) -> BTreeMap<&'a String, &'a String> {
    wanted.filter(|(key, value)| all.and_then(|all| all.get(*key)) != Some(*value)).collect()
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
#[path = "apply_tests.rs"]
mod tests;
