//! A node's disk. Made by the operator itself, never by a volumeClaimTemplate: those are made again
//! when lost, and a consensus key on a fresh disk signs twice.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::NodeParts;
use crate::api::Storage;

/// Builds the claim of a node's disk. It stays when the node and the network go. `default_class` is the class of its
/// cluster for disks that name none; `None` = the API server chooses.
pub fn build_disk(
    node: &NodeParts<'_>,
    storage: &Storage,
    default_class: Option<&str>,
) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: node.held(node.name.disk()),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage
                .storage_class_name
                .clone()
                .or(default_class.map(str::to_owned)),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(storage.size.clone()))].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
