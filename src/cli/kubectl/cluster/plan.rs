//! What a join or a leave changes, given what is there. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bsn_core::names::is_dns_label;
use serde_json::Value;

use super::build::{
    Endpoint, KUBECONFIG_KEY, Key, Kind, MADE_BY, NO_CA, NO_TOKEN, Side, Wanted, Wish,
    build_objects, render_kubeconfig,
};
use crate::api::{BsnCluster, BsnClusterSpec, ClusterImage, KubeconfigSecretRef};
use crate::apply::contains;
use crate::labels;

/// Why nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing says where nodes may run.
    #[error("say in which namespaces nodes may run: --namespace NAME, as often as needed")]
    NoNamespaces,
    /// A namespace of Kubernetes.
    #[error("namespace {0} belongs to Kubernetes; give networks one of their own")]
    SystemNamespace(String),
    /// The name is kept.
    #[error("the name hub is kept for the cluster the operator runs in; use another one")]
    ReservedName,
    /// The name is too long, or has characters that names of objects cannot have.
    #[error("{0:?} is no name for a cluster: at most 40 lower-case letters, digits and '-'")]
    BadName(String),
    /// It is the hub.
    #[error("this is the cluster the operator runs in: nodes run there without a join")]
    IsHub,
    /// The operator could not use this address.
    #[error(
        "{0} is no https address; name the one by which the hub reaches the API server: --server https://…"
    )]
    NotHttps(String),
    /// Somebody else's object has the name.
    #[error(
        "{key} exists and was not made by a join of this cluster to this hub ({owner}). {advice}"
    )]
    NameTaken {
        /// Which.
        key: Key,
        /// Whose.
        owner: String,
        /// What to do.
        advice: String,
    },
    /// It hosts nodes.
    #[error(
        "the cluster hosts {nodes} nodes of {networks} networks. They would run on, but nobody would look after \
         them. Move or remove them first, or add --force"
    )]
    Hosts {
        /// How many.
        nodes: u32,
        /// Of how many.
        networks: u32,
    },
    /// There is nothing of it.
    #[error("there is nothing of a cluster {0} here; kubectl get bsnclusters lists all")]
    Nothing(String),
}

/// What a person asks of a join.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Namespaces, beside those there are.
    pub namespaces: Vec<String>,
    /// Region; `None` = as it is.
    pub region: Option<String>,
    /// Image of the agents; `None` = as it is.
    pub image: Option<String>,
    /// A new token instead of the one there is.
    pub rotate: bool,
}

/// What is there, as it was read.
pub type Found = BTreeMap<Key, Value>;

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It is made.
    Make,
    /// It is changed.
    Change,
    /// It is as it should be.
    Keep,
    /// It is removed.
    Remove,
}

/// An object and what happens to it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Where.
    pub key: Key,
    /// What happens.
    pub action: Action,
    /// What it is to be; nothing if it is removed.
    pub object: Value,
    /// What for.
    pub note: String,
}

/// What a join is to make of what is asked and of the cluster's description, if it has one.
pub fn resolve_wish(
    name: &str,
    hub_id: &str,
    operator_namespace: &str,
    endpoint: Endpoint,
    asked: &Asked,
    found: &Found,
) -> Result<Wish, Refusal> {
    check_name(name)?;
    if !endpoint.server.starts_with("https://") {
        return Err(Refusal::NotHttps(endpoint.server));
    }
    let key = Key {
        side: Side::Hub,
        kind: Kind::BsnCluster,
        namespace: String::new(),
        name: name.to_owned(),
    };
    let described: Option<BsnCluster> =
        found.get(&key).and_then(|object| serde_json::from_value(object.clone()).ok());
    let mut spec = described.map_or_else(
        || BsnClusterSpec {
            kubeconfig_secret_ref: KubeconfigSecretRef {
                name: format!("bsn-cluster-{name}"),
                key: KUBECONFIG_KEY.to_owned(),
            },
            region: None,
            allowed_namespaces: Vec::new(),
            defaults: crate::api::ClusterDefaults::default(),
            image: None,
        },
        |cluster| cluster.spec,
    );
    let namespaces: BTreeSet<String> =
        spec.allowed_namespaces.iter().chain(&asked.namespaces).cloned().collect();
    if let Some(system) = namespaces.iter().find(|name| name.starts_with("kube-")) {
        return Err(Refusal::SystemNamespace(system.clone()));
    }
    if namespaces.is_empty() {
        return Err(Refusal::NoNamespaces);
    }
    spec.allowed_namespaces = namespaces.into_iter().collect();
    if asked.region.is_some() {
        spec.region.clone_from(&asked.region);
    }
    if let Some(reference) = &asked.image {
        let pull_secret_name = spec.image.and_then(|image| image.pull_secret_name);
        spec.image = Some(ClusterImage { reference: reference.clone(), pull_secret_name });
    }
    let mut wish = Wish {
        name: name.to_owned(),
        hub_id: hub_id.to_owned(),
        operator_namespace: operator_namespace.to_owned(),
        endpoint,
        spec,
        token: 0,
    };
    let prefix = wish.token_name();
    let prefix = prefix.trim_end_matches('0');
    let newest = found
        .keys()
        .filter(|key| key.side == Side::Member && key.kind == Kind::Secret)
        .filter_map(|key| key.name.strip_prefix(prefix)?.parse::<u32>().ok())
        .max();
    wish.token = match newest {
        None => 1,
        Some(newest) => newest + u32::from(asked.rotate),
    };
    Ok(wish)
}

fn check_name(name: &str) -> Result<(), Refusal> {
    if name == "hub" {
        return Err(Refusal::ReservedName);
    }
    if name.len() > 40 || !is_dns_label(name) {
        return Err(Refusal::BadName(name.to_owned()));
    }
    Ok(())
}

/// The token and the authority that the member gave, once it did.
pub fn token_in(wish: &Wish, found: &Found) -> Option<(String, String)> {
    use base64::Engine as _;
    let key = Key {
        side: Side::Member,
        kind: Kind::Secret,
        namespace: wish.operator_namespace.clone(),
        name: wish.token_name(),
    };
    let data = &found.get(&key)?["data"];
    let token = data["token"].as_str()?;
    let token = base64::engine::general_purpose::STANDARD.decode(token).ok()?;
    let ca = wish.endpoint.ca.clone().or_else(|| data["ca.crt"].as_str().map(str::to_owned))?;
    Some((String::from_utf8(token).ok()?, ca))
}

/// The kubeconfig as far as it is known: with what stands for the token, before the member has made it.
pub fn known_kubeconfig(wish: &Wish, found: &Found) -> String {
    match token_in(wish, found) {
        Some((token, ca)) => render_kubeconfig(wish, &token, &ca),
        None => render_kubeconfig(wish, NO_TOKEN, wish.endpoint.ca.as_deref().unwrap_or(NO_CA)),
    }
}

/// What a join changes: makes first, then what is left from before is removed.
pub fn plan_join(wish: &Wish, found: &Found) -> Result<Vec<Planned>, Refusal> {
    let wanted = build_objects(wish, &known_kubeconfig(wish, found));
    let mut planned = Vec::new();
    for Wanted { key, object, note } in &wanted {
        let action = match found.get(key) {
            None => Action::Make,
            // Somebody else's, as a rule, and only its being there matters.
            Some(_) if key.kind == Kind::Namespace => Action::Keep,
            Some(there) => {
                check_ours(key, there, wish)?;
                let mut content = object.clone();
                // An object in a list does not say what it is.
                if let Some(content) = content.as_object_mut() {
                    content.retain(|field, _| field != "apiVersion" && field != "kind");
                }
                if contains(there, &content) { Action::Keep } else { Action::Change }
            }
        };
        planned.push(Planned {
            key: key.clone(),
            action,
            object: object.clone(),
            note: note.clone(),
        });
    }
    let kept: BTreeSet<&Key> = wanted.iter().map(|wanted| &wanted.key).collect();
    let left = found.iter().filter(|(key, there)| {
        !kept.contains(key) && key.kind != Kind::Namespace && is_ours(there, wish)
    });
    let removed = left.map(|(key, _)| removal(key, "left from before"));
    planned.extend(in_order(removed));
    Ok(planned)
}

/// What a leave changes. Namespaces stay: what is in them may be all that is left of a chain.
pub fn plan_leave(
    name: &str,
    hub_id: &str,
    found: &Found,
    force: bool,
) -> Result<Vec<Planned>, Refusal> {
    let ours = |there: &Value| {
        let labels = super::build::labels_of(name, hub_id);
        labels.iter().all(|(key, value)| there["metadata"]["labels"][key] == value.as_str())
    };
    for (key, there) in found {
        if key.kind != Kind::BsnCluster || key.name != name {
            continue;
        }
        if !ours(there) {
            let advice = "Delete it where it was made".to_owned();
            return Err(Refusal::NameTaken { key: key.clone(), owner: owner_of(there), advice });
        }
        let count = |field: &str| {
            u32::try_from(there["status"][field].as_u64().unwrap_or(0)).unwrap_or(u32::MAX)
        };
        let (nodes, networks) = (count("nodes"), count("networks"));
        if nodes > 0 && !force {
            return Err(Refusal::Hosts { nodes, networks });
        }
    }
    let gone = found
        .iter()
        .filter(|(key, there)| key.kind != Kind::Namespace && ours(there))
        .map(|(key, _)| removal(key, ""));
    let gone = in_order(gone);
    if gone.is_empty() { Err(Refusal::Nothing(name.to_owned())) } else { Ok(gone) }
}

fn removal(key: &Key, note: &str) -> Planned {
    Planned { key: key.clone(), action: Action::Remove, object: Value::Null, note: note.to_owned() }
}

/// First the operator is told, then its rights go, its identity last.
fn in_order(planned: impl Iterator<Item = Planned>) -> Vec<Planned> {
    let rank = |key: &Key| match (key.side, key.kind) {
        (Side::Hub, Kind::BsnCluster) => 0,
        (Side::Hub, _) => 1,
        (_, Kind::RoleBinding) => 2,
        (_, Kind::Role) => 3,
        (_, Kind::ClusterRoleBinding) => 4,
        (_, Kind::ClusterRole) => 5,
        (_, Kind::Secret) => 6,
        _ => 7,
    };
    let mut planned: Vec<_> = planned.collect();
    planned.sort_by(|a, b| (rank(&a.key), &a.key).cmp(&(rank(&b.key), &b.key)));
    planned
}

fn is_ours(there: &Value, wish: &Wish) -> bool {
    let found = &there["metadata"]["labels"];
    wish.labels().iter().all(|(key, value)| found[key] == value.as_str())
}

fn check_ours(key: &Key, there: &Value, wish: &Wish) -> Result<(), Refusal> {
    if is_ours(there, wish) {
        return Ok(());
    }
    let advice = match key.side {
        Side::Member => "Join under another name, or delete it there".to_owned(),
        Side::Hub => "Change it where it was made, or delete it".to_owned(),
    };
    Err(Refusal::NameTaken { key: key.clone(), owner: owner_of(there), advice })
}

fn owner_of(there: &Value) -> String {
    let labels = &there["metadata"]["labels"];
    match (labels[labels::MANAGED_BY].as_str(), labels[labels::HUB_ID].as_str()) {
        (Some(MADE_BY), Some(hub)) => format!("hub {hub} made it"),
        (Some(other), _) => format!("{other} manages it"),
        _ => "it has no mark of ours".to_owned(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
