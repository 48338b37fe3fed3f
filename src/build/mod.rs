//! Builders of Kubernetes objects: pure, one file per kind.
//!
//! A builder takes typed input and returns an object; it reads nothing and fails never. The same
//! input gives the same bytes, so that a changed wish is seen by its hash.

pub mod application;
pub mod bsn_node;
pub mod config_map;
pub mod disk;
pub mod disruption_budget;
pub mod endpoint_slice;
pub mod image_proof;
pub mod network_policy;
pub mod pod_extras;
pub mod secret;
pub mod service;
pub mod stateful_set;

use std::collections::BTreeMap;

use bsn_core::anchor::{Anchor, Identity, Role};
use bsn_core::names::{NetworkName, NodeName};
use bsn_core::retention::{KEEP_FINALIZER, KEPT_ANNOTATION, render_kept};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::api::NodeRole;
use crate::labels;

/// What every object of a network has in common.
#[derive(Debug, Clone, Copy)]
pub struct NetworkParts<'a> {
    /// Namespace of all its objects.
    pub namespace: &'a str,
    /// Name of the network.
    pub name: &'a NetworkName,
    /// Random id of the network.
    pub network_id: &'a str,
    /// Id of the hub.
    pub hub_id: &'a str,
    /// The `BsnNetwork`, for what goes with it; `None` where no cluster is at hand.
    pub owner: Option<&'a OwnerReference>,
}

impl<'a> NetworkParts<'a> {
    /// Takes the ids from the anchor.
    pub fn new(
        namespace: &'a str,
        name: &'a NetworkName,
        anchor: &'a Anchor,
        owner: Option<&'a OwnerReference>,
    ) -> Self {
        Self { namespace, name, network_id: &anchor.network_id, hub_id: &anchor.hub_id, owner }
    }

    /// Labels of every object of the network.
    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            (labels::MANAGED_BY, labels::OPERATOR),
            (labels::INSTANCE, self.name.as_str()),
            (labels::NETWORK, self.name.as_str()),
            (labels::NETWORK_ID, self.network_id),
            (labels::HUB_ID, self.hub_id),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    /// Metadata of an object that goes when the `BsnNetwork` goes.
    pub fn owned(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            owner_references: self.owner.map(|owner| vec![owner.clone()]),
            ..self.kept(name)
        }
    }

    /// Metadata of an object that not even its own deletion takes, until a person releases it.
    pub fn held(&self, name: String) -> ObjectMeta {
        let said = render_kept(self.namespace, self.name, self.network_id);
        ObjectMeta {
            finalizers: Some(vec![KEEP_FINALIZER.to_owned()]),
            annotations: Some([(KEPT_ANNOTATION.to_owned(), said)].into()),
            ..self.kept(name)
        }
    }

    /// Metadata of an object that stays when the `BsnNetwork` goes: whatever holds state.
    pub fn kept(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.to_owned()),
            labels: Some(self.labels()),
            ..ObjectMeta::default()
        }
    }
}

/// What every object of a node has in common.
#[derive(Debug, Clone, Copy)]
pub struct NodeParts<'a> {
    /// Its network.
    pub network: NetworkParts<'a>,
    /// Its name.
    pub name: &'a NodeName,
    /// Its identity.
    pub identity: &'a Identity,
    /// The `BsnNode`, for what goes with it; `None` where no cluster is at hand.
    pub owner: Option<&'a OwnerReference>,
}

impl NodeParts<'_> {
    /// Labels of every object of the node.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut all = self.network.labels();
        all.insert(labels::NODE.to_owned(), self.name.to_string());
        all.insert(labels::IDENTITY_ID.to_owned(), self.identity.id.clone());
        all.insert(labels::ROLE.to_owned(), role_text(self.identity.role).to_owned());
        all
    }

    /// Labels that select the node's pod and nothing else, ever: a selector cannot be changed.
    pub fn selector(&self) -> BTreeMap<String, String> {
        [
            (labels::NODE.to_owned(), self.name.to_string()),
            (labels::IDENTITY_ID.to_owned(), self.identity.id.clone()),
        ]
        .into()
    }

    /// Metadata of an object that goes when the `BsnNode` goes.
    pub fn owned(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            owner_references: self.owner.map(|owner| vec![owner.clone()]),
            ..self.kept(name)
        }
    }

    /// Metadata of an object that not even its own deletion takes, until a person releases it.
    pub fn held(&self, name: String) -> ObjectMeta {
        ObjectMeta { labels: Some(self.labels()), ..self.network.held(name) }
    }

    /// Metadata of an object that stays when the `BsnNode` goes: whatever holds state.
    pub fn kept(&self, name: String) -> ObjectMeta {
        ObjectMeta { labels: Some(self.labels()), ..self.network.kept(name) }
    }
}

/// A role as it is written in labels and tables.
pub fn role_text(role: Role) -> &'static str {
    match role {
        Role::Validator => "Validator",
        Role::FullNode => "FullNode",
    }
}

/// A role as the API has it.
pub fn api_role(role: Role) -> NodeRole {
    match role {
        Role::Validator => NodeRole::Validator,
        Role::FullNode => NodeRole::FullNode,
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// A node of a sample network, in the cluster that has its `BsnNetwork` or in another.
    pub fn with_node<T>(network_uid: Option<&str>, f: impl FnOnce(&NodeParts<'_>) -> T) -> T {
        let owner = network_uid.map(|uid| OwnerReference {
            api_version: "bsn-operator.io/v1alpha1".to_owned(),
            kind: "BsnNetwork".to_owned(),
            name: "city-ledger".to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        });
        let name = NetworkName::parse("city-ledger").unwrap();
        let identity = serde_json::json!({
            "id": "i1", "set": "hangzhou", "role": "Validator", "cluster": "hangzhou",
        });
        f(&NodeParts {
            network: NetworkParts {
                namespace: "ledger",
                name: &name,
                network_id: "n1",
                hub_id: "h1",
                owner: owner.as_ref(),
            },
            name: &NodeName::from_object("city-ledger-hangzhou-0"),
            identity: &serde_json::from_value(identity).unwrap(),
            owner: None,
        })
    }
}
