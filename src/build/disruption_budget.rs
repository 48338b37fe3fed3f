//! The voters' disruption budget in one cluster: voluntary evictions never take more voters than the chain can miss.

use bsn_core::anchor::Role;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{NetworkParts, role_text};
use crate::labels;

/// Builds the budget. It is about all validators in its cluster, whether they vote or not, since their pods do not say
/// which do; so many of them stay available.
pub fn build_disruption_budget(
    network: &NetworkParts<'_>,
    min_available: usize,
) -> PodDisruptionBudget {
    let min_available = i32::try_from(min_available).unwrap_or(i32::MAX);
    let selector = [
        (labels::NETWORK_ID.to_owned(), network.network_id.to_owned()),
        (labels::ROLE.to_owned(), role_text(Role::Validator).to_owned()),
    ];
    PodDisruptionBudget {
        metadata: network.owned(network.name.disruption_budget()),
        spec: Some(PodDisruptionBudgetSpec {
            // An integer: percentages would need the pods' controller to have a scale.
            min_available: Some(IntOrString::Int(min_available)),
            selector: Some(LabelSelector {
                match_labels: Some(selector.into()),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
