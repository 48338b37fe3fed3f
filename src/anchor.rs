//! The anchor's store: a `ConfigMap`, written by compare-and-swap on its resourceVersion.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bsn_core::anchor::{ANCHOR_KEY, Anchor, AnchorError, CopyStanding};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use kube::runtime::reflector::Store;
use tokio::time::Instant;

use crate::apply::{ApiError, bounded, is_marked, name_taken, read};
use crate::cluster::registry::Place;
use crate::cluster::watches::cached;
use crate::intent::STEPS_KEY;
use crate::labels;
use crate::turns::Turns;
use crate::view::NetworkKey;

/// How long a cache is believed to be behind what this process wrote.
const MAY_BE_BEHIND: Duration = Duration::from_mins(1);

/// How often a write is tried again when somebody else wrote in between.
const MAX_CONFLICTS: usize = 5;

/// Why the anchor could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The anchor itself.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// A copy in a member cluster knows more than the primary, or than this pass does.
    #[error("the anchor's copy in cluster {cluster} is newer than the anchor")]
    CopyAhead {
        /// Where.
        cluster: String,
    },
    /// A copy in a member cluster is another hub's or another network's.
    #[error(
        "ConfigMap {name} in cluster {cluster} is the anchor of {owner}; one network has one hub, and a namespace \
         holds one network of a name"
    )]
    Taken {
        /// Where.
        cluster: String,
        /// Namespace and name.
        name: String,
        /// Whose it is.
        owner: String,
    },
    /// It is gone, although something depends on it.
    #[error("the anchor {0} is missing; restore it from a backup: without it no step is safe")]
    Missing(String),
    /// Others wrote again and again.
    #[error("the anchor {0} was changed by others {MAX_CONFLICTS} times in a row")]
    Contended(String),
}

/// What an anchor must agree with to be ours.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Id of this hub.
    pub hub_id: String,
    /// Id of the chain in the network's description.
    pub chain_id: String,
}

/// Reads an anchor out of its `ConfigMap`.
pub fn parse_map(map: &ConfigMap, expected: &Expected) -> Result<Anchor, AnchorError> {
    Anchor::parse(text_of(map)?, &expected.hub_id, &expected.chain_id)
}

/// Reads a copy of an anchor; whose it is, is not judged.
pub fn copy_of(map: &ConfigMap) -> Result<Anchor, AnchorError> {
    Anchor::parse_copy(text_of(map)?)
}

/// Whether a `ConfigMap` of an anchor's name is somebody else's: nothing in it is ours, and no mark says that it ever was. An
/// anchor that was emptied still has its marks, and one that lost its marks still says whose it is.
pub fn is_strangers(map: &ConfigMap) -> bool {
    let holds = |key: &str| map.data.as_ref().is_some_and(|data| data.contains_key(key));
    !holds(ANCHOR_KEY) && !holds(STEPS_KEY) && !is_marked(map)
}

/// A copy of an anchor, as a cache shows it; `None` = there is none that can be read.
pub fn seen_copy(maps: &Store<ConfigMap>, namespace: &str, name: &str) -> Option<Anchor> {
    copy_of(&*cached(maps, namespace, name)?).ok()
}

fn text_of(map: &ConfigMap) -> Result<&str, AnchorError> {
    let text = map.data.as_ref().and_then(|data| data.get(ANCHOR_KEY));
    text.map(String::as_str)
        .ok_or_else(|| AnchorError::Unreadable(format!("it has no entry {ANCHOR_KEY}")))
}

/// Puts what `wish` holds in the place of what `map` does; the record of steps in it stays, which the steps alone write.
/// It still carries the resourceVersion that was read: the swap's comparison.
fn put(map: &mut ConfigMap, wish: ConfigMap) {
    map.metadata.labels = wish.metadata.labels;
    map.metadata.finalizers = wish.metadata.finalizers;
    let annotations = map.metadata.annotations.get_or_insert_default();
    annotations.extend(wish.metadata.annotations.unwrap_or_default());
    map.metadata.managed_fields = None;
    map.data.get_or_insert_default().extend(wish.data.unwrap_or_default());
}

fn as_ours() -> PostParams {
    PostParams { field_manager: Some(labels::FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

/// Copies as they were written, by cluster and network, and when.
type Mirrored = BTreeMap<(String, NetworkKey), (Anchor, Instant)>;

/// Reads and writes anchors. Writers of one process take turns, so that they do not fail each other's swaps;
/// and nobody is given an anchor from the cache that is older than what this process wrote.
#[derive(Clone)]
pub struct AnchorStore {
    /// Random id of this process.
    term: String,
    turns: Turns<NetworkKey>,
    /// Version of each anchor that the cache must show before it is believed.
    written: Arc<Mutex<BTreeMap<NetworkKey, String>>>,
    copies: Turns<(String, NetworkKey)>,
    /// The same for copies: what this process wrote there last.
    mirrored: Arc<Mutex<Mirrored>>,
}

impl AnchorStore {
    /// The store of the process with this random id.
    pub fn new(term: String) -> Self {
        Self {
            term,
            turns: Turns::default(),
            written: Arc::default(),
            copies: Turns::default(),
            mirrored: Arc::default(),
        }
    }

    /// This process wrote the anchor; `version` = its resourceVersion now.
    pub fn note_written(&self, key: &NetworkKey, version: Option<String>) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        match version {
            Some(version) => written.insert(key.clone(), version),
            None => written.remove(key),
        };
    }

    /// The anchor's `ConfigMap`: from the cache, unless that is behind or has none; then live.
    pub async fn current(
        &self,
        client: &kube::Client,
        maps: &Store<ConfigMap>,
        key: &NetworkKey,
        name: &str,
    ) -> Result<Option<ConfigMap>, ApiError> {
        let seen = cached(maps, &key.namespace, name);
        let expected =
            self.written.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        if let Some(map) = seen
            && expected
                .as_ref()
                .is_none_or(|version| map.resource_version().as_ref() == Some(version))
        {
            self.note_written(key, None);
            return Ok(Some((*map).clone()));
        }
        // The cache may be behind, and it does not see an object that lost its labels.
        let map: Option<ConfigMap> = read(client, &key.namespace, name).await?;
        if expected.is_some() {
            // Somebody else may have written since; the cache need not show what was in between.
            self.note_written(key, map.as_ref().and_then(ResourceExt::resource_version));
        }
        Ok(map)
    }

    /// Changes the anchor `name`: reads it live, lets `change` edit it, and writes it if it differs.
    /// `change` may run several times, each time on what is stored then.
    pub async fn update(
        &self,
        client: &kube::Client,
        key: &NetworkKey,
        name: &str,
        expected: &Expected,
        mut change: impl FnMut(&mut Anchor),
    ) -> Result<Anchor, StoreError> {
        let _mine = self.turns.take(key.clone()).await;
        let full_name = format!("{}/{name}", key.namespace);
        let api = Api::<ConfigMap>::namespaced(client.clone(), &key.namespace);
        for _ in 0..MAX_CONFLICTS {
            let mut map: ConfigMap = read(client, &key.namespace, name)
                .await?
                .ok_or_else(|| StoreError::Missing(full_name.clone()))?;
            let before = parse_map(&map, expected)?;
            let mut after = before.clone();
            change(&mut after);
            if after == before {
                return Ok(after);
            }
            after.enter_term(&self.term);
            after.revision = before.revision + 1;
            map.data.get_or_insert_default().insert(ANCHOR_KEY.to_owned(), after.to_json());
            // The map still carries the resourceVersion that was read: the swap's comparison.
            map.metadata.managed_fields = None;
            let params = as_ours();
            match bounded(
                || format!("update ConfigMap {full_name}"),
                api.replace(name, &params, &map),
            )
            .await
            {
                Ok(stored) => {
                    self.note_written(key, stored.resource_version());
                    return Ok(after);
                }
                Err(error) if error.code() == Some(409) => {}
                Err(error) => {
                    // It may have been written all the same: no version the cache shows is sure now.
                    self.note_written(key, Some(String::new()));
                    return Err(error.into());
                }
            }
        }
        Err(StoreError::Contended(full_name))
    }

    /// Puts `wish` in the place of the anchor there is, or makes it; its record of steps stays.
    pub async fn replace(
        &self,
        client: &kube::Client,
        key: &NetworkKey,
        wish: ConfigMap,
    ) -> Result<ConfigMap, StoreError> {
        let _mine = self.turns.take(key.clone()).await;
        let name = wish.name_any();
        let api = Api::<ConfigMap>::namespaced(client.clone(), &key.namespace);
        let params = as_ours();
        let what = || format!("write ConfigMap {}/{name}", key.namespace);
        let stored = match read::<ConfigMap>(client, &key.namespace, &name).await? {
            None => bounded(what, api.create(&params, &wish)).await?,
            Some(mut map) => {
                put(&mut map, wish);
                bounded(what, api.replace(&name, &params, &map)).await?
            }
        };
        self.note_written(key, stored.resource_version());
        Ok(stored)
    }

    /// Brings the copy in a member cluster up to `anchor`. `wish` = the `ConfigMap` as it is to be.
    pub async fn mirror(
        &self,
        place: &Place,
        key: &NetworkKey,
        anchor: &Anchor,
        wish: ConfigMap,
    ) -> Result<(), StoreError> {
        let of = (place.cluster.clone(), key.clone());
        let _mine = self.copies.take(of.clone()).await;
        let name = wish.name_any();
        let known = || self.mirrored.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen_copy(&place.objects.config_maps, &key.namespace, &name);
        // What this process wrote is newer than what a cache behind it shows, unless that goes on: then the cluster came
        // from a backup.
        let written = known()
            .get(&of)
            .is_some_and(|(written, at)| written == anchor && at.elapsed() < MAY_BE_BEHIND);
        let behind = seen.as_ref().is_some_and(|seen| seen.revision <= anchor.revision);
        if seen.as_ref() == Some(anchor) || (behind && written) {
            return Ok(());
        }
        known().remove(&of);
        let api = Api::<ConfigMap>::namespaced(place.client.clone(), &key.namespace);
        let full_name = format!("{}/{name}", key.namespace);
        for _ in 0..MAX_CONFLICTS {
            let found: Option<ConfigMap> = read(&place.client, &key.namespace, &name).await?;
            let params = as_ours();
            let what = || format!("write ConfigMap {full_name} in cluster {}", place.cluster);
            let done = match found {
                None => bounded(what, api.create(&params, &wish)).await,
                Some(mut map) => {
                    let taken = |owner: String| StoreError::Taken {
                        cluster: place.cluster.clone(),
                        name: full_name.clone(),
                        owner,
                    };
                    if is_strangers(&map) {
                        return Err(name_taken::<ConfigMap>(&map).into());
                    }
                    let copy = copy_of(&map).map_err(|error| taken(error.to_string()))?;
                    match anchor.compare(&copy) {
                        CopyStanding::Current => {
                            known().insert(of, (copy, Instant::now()));
                            return Ok(());
                        }
                        CopyStanding::Behind => {}
                        CopyStanding::Ahead => {
                            let cluster = place.cluster.clone();
                            return Err(StoreError::CopyAhead { cluster });
                        }
                        CopyStanding::AnotherHub => {
                            return Err(taken(format!("hub {}", copy.hub_id)));
                        }
                        CopyStanding::AnotherNetwork => {
                            return Err(taken(format!("network id {}", copy.network_id)));
                        }
                    }
                    put(&mut map, wish.clone());
                    bounded(what, api.replace(&name, &params, &map)).await
                }
            };
            match done {
                Ok(_) => {
                    known().insert(of, (anchor.clone(), Instant::now()));
                    return Ok(());
                }
                Err(error) if error.code() == Some(409) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Contended(full_name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn map(metadata: &Value, data: &Value) -> ConfigMap {
        serde_json::from_value(json!({"metadata": metadata, "data": data})).unwrap()
    }

    #[test]
    fn a_map_without_any_trace_of_ours_is_a_strangers() {
        assert!(is_strangers(&map(&json!({"name": "net-anchor"}), &Value::Null)));
        let labels = json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}});
        assert!(is_strangers(&map(&labels, &json!({"a": "b"}))));
    }

    /// Else somebody would be told to delete what is left of an anchor.
    #[test]
    fn an_entry_or_a_mark_says_that_it_is_an_anchor_though_it_cannot_be_read() {
        let nothing = json!({});
        for (metadata, data) in [
            (&nothing, &json!({"anchor.json": ""})),
            (&nothing, &json!({"steps.json": "{"})),
            (&json!({"finalizers": ["bsn-operator.io/keep"]}), &nothing),
            (&json!({"labels": {"bsn-operator.io/network": "net"}}), &nothing),
            (&json!({"labels": {"app.kubernetes.io/managed-by": "bsn-operator"}}), &nothing),
            (&json!({"annotations": {"bsn-operator.io/release": "n1"}}), &nothing),
        ] {
            let map = map(metadata, data);
            assert!(!is_strangers(&map), "{metadata} {data}");
            assert!(matches!(copy_of(&map), Err(AnchorError::Unreadable(_))), "{metadata} {data}");
        }
    }
}
