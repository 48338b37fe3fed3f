//! How a node is reached from other clusters. Pure.

use bsn_core::anchor::{Anchor, Identity};

use super::validate::ValidatedNetwork;
use crate::api::Exposure;

/// Whether a network has nodes outside the hub. Else everything is reached as it always was.
pub fn spans_clusters(anchor: &Anchor) -> bool {
    anchor.members().any(|(_, identity)| !identity.cluster.is_empty())
}

/// How a node is reached from other clusters: as its node set says, else as its cluster does (`default`). A network
/// that is on the hub alone opens nothing to the outside, whatever is written.
pub fn exposure_of(
    validated: &ValidatedNetwork,
    anchor: &Anchor,
    identity: &Identity,
    default: Exposure,
) -> Exposure {
    if !spans_clusters(anchor) {
        return Exposure::ClusterIP;
    }
    let set = validated.exposure.get(&identity.set);
    set.and_then(|set| set.how).unwrap_or(default)
}
