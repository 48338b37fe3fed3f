//! The protocol of steps over `ConfigMap`s: does what [`Writer`] says, and nothing else.
//!
//! A record lies beside the other facts in the anchor, under a key of its own, so that one
//! resourceVersion guards them all. Another writer of the same `ConfigMap` therefore shows as a conflict, and
//! the writer reads again.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::intent::record::{Intent, Record};
use bsn_core::intent::refusal::Refusal;
use bsn_core::intent::writer::{Answer, Op, Place, Writer};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use crate::labels;

/// Key of the record in its `ConfigMap`.
pub const STEPS_KEY: &str = "steps.json";

/// Longest one operation may take. It is begun only with so much of the lease left, so that a leader that
/// lost its lease has nothing under way when the next one begins.
pub const OPERATION_DEADLINE: Duration = Duration::from_secs(3);
/// Between two tries of a store that does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Tries of a store that does not answer, before the caller is told.
const MAX_PAUSES: usize = 5;
/// Operations of one task. Each conflict costs two; more than this is a fight.
const MAX_OPERATIONS: usize = 100;

/// Reads the record out of an anchor's `ConfigMap`; `None` = no step was ever begun.
pub fn parse_record<S: DeserializeOwned>(
    map: &ConfigMap,
) -> Result<Option<Record<S>>, serde_json::Error> {
    let text = map.data.as_ref().and_then(|data| data.get(STEPS_KEY));
    text.map(|text| serde_json::from_str(text)).transpose()
}

/// Why a task was not done. Whether it was done in part is in the stores; the next try finds out.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The protocol refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A store cannot be reached.
    #[error("the anchor {0} does not answer; no step is begun or continued meanwhile")]
    Unreachable(String),
    /// A store is in a cluster that cannot be asked now.
    #[error(
        "the anchor {name} in cluster {cluster} cannot be read or written now; steps that need it wait until the cluster \
         answers"
    )]
    Closed {
        /// Namespace and name.
        name: String,
        /// Its cluster.
        cluster: String,
    },
    /// A store refuses the request: rights, or a form it does not take.
    #[error("the anchor {name}: {source}")]
    Rejected {
        /// Namespace and name.
        name: String,
        /// The API server's answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// A record cannot be read.
    #[error("{STEPS_KEY} in the anchor {name} cannot be read: {why}; restore it from a backup")]
    Unreadable {
        /// Namespace and name.
        name: String,
        /// The parser's word.
        why: String,
    },
    /// The writer names a place for which no store was given.
    #[error("no store is known for {0:?}")]
    NoStore(Place),
    /// Others wrote again and again.
    #[error("the anchor was changed by others again and again; tried later")]
    Contended,
}

/// A `ConfigMap` that holds a record, on one cluster.
#[derive(Clone)]
pub struct MapStore {
    /// Its cluster; `None` = it cannot be asked now.
    pub client: Option<kube::Client>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl MapStore {
    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn api(&self) -> Option<Api<ConfigMap>> {
        Some(Api::namespaced(self.client.clone()?, &self.namespace))
    }

    /// Sorts out an error: a conflict, no answer, or a refusal that no second try mends.
    fn sort_out<S>(&self, error: kube::Error) -> Result<Answer<S>, DriveError> {
        match &error {
            kube::Error::Api(status) if matches!(status.code, 404 | 409) => Ok(Answer::Conflict),
            kube::Error::Api(status) if matches!(status.code, 400..=428) => {
                Err(DriveError::Rejected { name: self.full_name(), source: Box::new(error) })
            }
            _ => Ok(Answer::Unknown),
        }
    }

    async fn read<S: DeserializeOwned>(&self) -> Result<Answer<S>, DriveError> {
        let Some(api) = self.api() else { return Ok(Answer::Unknown) };
        let map = match timeout(OPERATION_DEADLINE, api.get_opt(&self.name)).await {
            Ok(Ok(map)) => map,
            Ok(Err(error)) => return self.sort_out(error),
            Err(_) => return Ok(Answer::Unknown),
        };
        let unreadable = |error: serde_json::Error| DriveError::Unreadable {
            name: self.full_name(),
            why: error.to_string(),
        };
        let record = map.as_ref().map(parse_record).transpose().map_err(unreadable)?.flatten();
        let version = map.as_ref().and_then(ResourceExt::resource_version).unwrap_or_default();
        Ok(Answer::Found(record.map(|record| (version, record))))
    }

    async fn swap<S: Serialize>(
        &self,
        version: Option<&str>,
        record: &Record<S>,
    ) -> Result<Answer<S>, DriveError> {
        let Some(api) = self.api() else { return Ok(Answer::Unknown) };
        match timeout(OPERATION_DEADLINE, self.try_swap(&api, version, record)).await {
            Ok(Ok(Some(version))) => Ok(Answer::Swapped(version)),
            Ok(Ok(None)) => Ok(Answer::Conflict),
            Ok(Err(error)) => self.sort_out(error),
            Err(_) => Ok(Answer::Unknown),
        }
    }

    /// The new version; `None` = another one is stored than `version`.
    async fn try_swap<S: Serialize>(
        &self,
        api: &Api<ConfigMap>,
        version: Option<&str>,
        record: &Record<S>,
    ) -> Result<Option<String>, kube::Error> {
        let params = PostParams {
            field_manager: Some(labels::FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        // Plain structs with string keys: serialising them cannot fail.
        let text = serde_json::to_string_pretty(record).unwrap_or_default();
        // For what else is in it; the swap compares with what this read gives.
        let stored = match api.get_opt(&self.name).await? {
            Some(mut map) => {
                let holds = map.data.as_ref().is_some_and(|data| data.contains_key(STEPS_KEY));
                let same = match version {
                    Some(version) => map.metadata.resource_version.as_deref() == Some(version),
                    // Nothing was there: there must still be nothing.
                    None => !holds,
                };
                if !same {
                    return Ok(None);
                }
                map.data.get_or_insert_default().insert(STEPS_KEY.to_owned(), text);
                map.metadata.managed_fields = None;
                api.replace(&self.name, &params, &map).await?
            }
            None if version.is_some() => return Ok(None),
            None => {
                let map = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        namespace: Some(self.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    data: Some(BTreeMap::from([(STEPS_KEY.to_owned(), text)])),
                    ..ConfigMap::default()
                };
                api.create(&params, &map).await?
            }
        };
        Ok(Some(stored.resource_version().unwrap_or_default()))
    }
}

/// A step's effects.
pub trait Effects<S>: Send {
    /// Does them, within [`OPERATION_DEADLINE`] of its start or not at all. What becomes of them is observed
    /// elsewhere.
    fn act(&mut self, intent: &Intent<S>) -> impl Future<Output = ()> + Send;
}

/// Those that are done at once: none, or a note.
impl<S: Sync, F: FnMut(&Intent<S>) + Send> Effects<S> for F {
    async fn act(&mut self, intent: &Intent<S>) {
        self(intent);
    }
}

/// Does the writer's task to its end. `remaining` gives what is left of the lease.
pub async fn drive<S>(
    writer: &mut Writer<S>,
    stores: &BTreeMap<Place, MapStore>,
    remaining: impl Fn() -> Duration,
    mut effects: impl Effects<S>,
) -> Result<(), DriveError>
where
    S: Clone + Eq + Serialize + DeserializeOwned,
{
    let store = |place: &Place| stores.get(place).ok_or_else(|| DriveError::NoStore(place.clone()));
    let mut pauses = 0;
    for _ in 0..MAX_OPERATIONS {
        let op = writer.next(remaining() >= OPERATION_DEADLINE);
        let answer = match &op {
            Op::Read(place) => store(place)?.read().await?,
            Op::Swap { place, version, record } => {
                store(place)?.swap(version.as_deref(), record).await?
            }
            Op::Effect { intent, .. } => {
                // Whether it was done or not, the world tells.
                let _ = timeout(OPERATION_DEADLINE, effects.act(intent)).await;
                Answer::Unknown
            }
            Op::Wait(place @ Place::Copy(cluster)) if store(place)?.client.is_none() => {
                let (name, cluster) = (store(place)?.full_name(), cluster.clone());
                return Err(DriveError::Closed { name, cluster });
            }
            Op::Wait(place) if pauses < MAX_PAUSES => {
                pauses += 1;
                tracing::debug!(?place, pauses, "the anchor does not answer");
                sleep(PAUSE).await;
                Answer::Unknown
            }
            Op::Wait(place) => return Err(DriveError::Unreachable(store(place)?.full_name())),
            Op::Done => return Ok(()),
            Op::Refuse(refusal) => return Err(refusal.clone().into()),
        };
        writer.answer(op, answer);
    }
    Err(DriveError::Contended)
}

#[cfg(test)]
#[path = "intent_tests.rs"]
mod tests;
