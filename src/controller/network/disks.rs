//! Disks that are not as described yet, as their nodes tell. Pure.

use std::collections::BTreeMap;

use bsn_core::anchor::Anchor;
use bsn_core::names::NodeName;
use kube::ResourceExt;

use crate::api::conditions::{DISK_AS_DESCRIBED, Reason, find};
use crate::api::{BsnNode, Storage};

/// A node whose disk is not as described yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskWaits {
    /// The node.
    pub node: NodeName,
    /// Nothing comes of it without a person.
    pub refused: bool,
    /// Why, and what to do.
    pub message: String,
}

/// The nodes whose disks are not as described yet.
pub fn observe_disks(
    anchor: Option<&Anchor>,
    described: &BTreeMap<String, Storage>,
    nodes: &[BsnNode],
) -> Vec<DiskWaits> {
    let members = anchor.into_iter().flat_map(Anchor::members);
    let waits = members.filter_map(|(name, identity)| {
        let node = nodes.iter().find(|node| node.name_any() == name.as_str())?;
        // One that was never reported on has its first disk made.
        let status = node.status.as_ref().filter(|status| status.observed_generation > Some(0))?;
        let storage = described.get(&identity.set)?;
        let is_told =
            node.spec.storage == *storage && status.observed_generation >= node.metadata.generation;
        let said = find(&status.conditions, DISK_AS_DESCRIBED);
        let (refused, message) = match said.filter(|said| said.status != "True") {
            _ if !is_told => (false, format!("{} are to be asked for", storage.size)),
            None => return None,
            Some(said) => (said.reason == Reason::DiskGrowthRefused.as_str(), said.message.clone()),
        };
        Some(DiskWaits { node: name, refused, message })
    });
    waits.collect()
}
