//! Kubernetes events: a condition that changed is told to those who watch the object.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::ObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use crate::api::conditions::{Raw, STALLED, transition};
use crate::apply::REQUEST_DEADLINE;
use crate::labels::OPERATOR;

/// Longest note the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Publishes events.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Publishes in the name of this replica.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter =
            Reporter { controller: OPERATOR.to_owned(), instance: Some(identity.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Tells that a condition of an object changed.
    async fn condition<K: Resource<DynamicType = ()>>(&self, object: &ObjectMeta, condition: &Raw) {
        let good = (condition.status == "True") != (condition.type_ == STALLED);
        let note = format!("{}: {}", condition.type_, condition.message);
        self.tell::<K>(object, good, &condition.reason, &condition.type_, note).await;
    }

    /// Tells of each of these conditions that changed its status.
    pub async fn changes<K: Resource<DynamicType = ()>>(
        &self,
        object: &ObjectMeta,
        before: &[Raw],
        now: &[Raw],
        kinds: &[&str],
    ) {
        for changed in kinds.iter().filter_map(|kind| transition(before, now, kind)) {
            self.condition::<K>(object, changed).await;
        }
    }

    /// Tells something of an object, good or bad: a `reason` in one word, the `action` it came from, and a
    /// `note` for people. A failure is logged and otherwise harmless.
    pub async fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &ObjectMeta,
        good: bool,
        reason: &str,
        action: &str,
        mut note: String,
    ) {
        let reference = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: object.name.clone(),
            namespace: object.namespace.clone(),
            uid: object.uid.clone(),
            ..ObjectReference::default()
        };
        note.truncate(note.floor_char_boundary(MAX_NOTE));
        let event = Event {
            type_: if good { EventType::Normal } else { EventType::Warning },
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        let published = self.0.publish(&event, &reference);
        match tokio::time::timeout(REQUEST_DEADLINE, published).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, reason = event.reason, "event not published"),
            Err(_) => tracing::warn!(reason = event.reason, "event not published in time"),
        }
    }
}
