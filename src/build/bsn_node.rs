//! The `BsnNode` stamped from a node set.

use bsn_core::retention::NODE_FINALIZER;

use crate::api::{BsnNode, BsnNodeSpec, NetworkRef, Storage};

use super::{NodeParts, api_role};

/// Builds the `BsnNode` of an identity.
pub fn build_bsn_node(node: &NodeParts<'_>, storage: &Storage) -> BsnNode {
    let spec = BsnNodeSpec {
        network_ref: NetworkRef { name: node.network.name.to_string() },
        node_set: node.identity.set.clone(),
        role: api_role(node.identity.role),
        cluster: Some(node.identity.cluster.clone()).filter(|cluster| !cluster.is_empty()),
        storage: storage.clone(),
    };
    let mut object = BsnNode::new(node.name.as_str(), spec);
    // Owned by the network: a network that is deleted stops its nodes.
    object.metadata = node.network.owned(node.name.to_string());
    object.metadata.labels = Some(node.labels());
    object.metadata.finalizers = Some(vec![NODE_FINALIZER.to_owned()]);
    object
}
