//! What the operator asked API servers, by their audit logs.

use std::collections::BTreeMap;

use bsn_testkit::lab::Lab;
use serde::Deserialize;

use crate::support::World;

impl World {
    /// Requests of the operator to the hub since `mark`.
    pub fn requests_since(&self, mark: u64) -> Vec<Request> {
        requests_since(&self.lab, self.hub, "bsn-operator", mark)
    }

    /// A place in the hub's audit log, for [`World::requests_since`].
    pub fn mark(&self) -> u64 {
        audit_mark(&self.lab, self.hub)
    }
}

/// Requests to a cluster's API server since `mark`, by a service account of this name.
pub fn requests_since(lab: &Lab, cluster: usize, account: &str, mark: u64) -> Vec<Request> {
    let log = std::fs::read(lab.audit_log(cluster)).unwrap();
    let new = &log[usize::try_from(mark).unwrap()..];
    let user = format!(":{account}");
    new.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice::<AuditEvent>(line).unwrap())
        .filter(|event| event.stage == "ResponseComplete" && event.user.username.ends_with(&user))
        .map(Request::from)
        .collect()
}

/// A place in a cluster's audit log, for [`requests_since`].
pub fn audit_mark(lab: &Lab, cluster: usize) -> u64 {
    // The whole lines written so far.
    std::fs::metadata(lab.audit_log(cluster)).unwrap().len()
}

/// A request to the API server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request {
    pub verb: String,
    pub resource: String,
    pub namespace: String,
    pub name: String,
}

impl Request {
    /// Whether it changes something. To ask what one may do is a create by its form only.
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
            && self.resource != "selfsubjectrulesreviews"
    }
}

#[derive(Deserialize)]
struct AuditEvent {
    stage: String,
    verb: String,
    user: AuditUser,
    #[serde(rename = "objectRef", default)]
    object: AuditObject,
}

#[derive(Deserialize)]
struct AuditUser {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuditObject {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

impl From<AuditEvent> for Request {
    fn from(event: AuditEvent) -> Self {
        let AuditObject { resource, subresource, namespace, name } = event.object;
        let resource =
            if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") };
        Self { verb: event.verb, resource, namespace, name }
    }
}

/// Counts of requests by verb and resource.
pub fn count(requests: &[Request]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for Request { verb, resource, .. } in requests {
        *counts.entry(format!("{verb} {resource}")).or_insert(0) += 1;
    }
    counts
}
