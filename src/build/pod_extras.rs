//! What users add to the pods of nodes, and how these keep apart.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, PodAffinityTerm, PodAntiAffinity, PodSpec, Toleration,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::NodeParts;
use crate::api::{Apart, NodePod, PodToleration, Spread, TaintEffect, TolerationOperator};
use crate::labels;

/// Labels of machines, and how much it matters that nodes differ in them.
const MACHINES: (&str, i32) = ("kubernetes.io/hostname", 100);
const ZONES: (&str, i32) = ("topology.kubernetes.io/zone", 50);

/// Adds to a pod what is described besides; labels and annotations are put into the template by its builder. Where
/// nothing is, the pod stays as it is, byte for byte.
pub fn put_extras(pod: &mut PodSpec, extras: &NodePod) {
    let NodePod {
        labels: _,
        annotations: _,
        node_selector,
        tolerations,
        spread: _,
        priority_class_name,
        image_pull_secrets,
        termination_grace_period_seconds,
    } = extras;
    if !node_selector.is_empty() {
        pod.node_selector = Some(node_selector.clone());
    }
    if !tolerations.is_empty() {
        pod.tolerations = Some(tolerations.iter().map(toleration).collect());
    }
    if let Some(class) = priority_class_name {
        pod.priority_class_name = Some(class.clone());
    }
    for secret in image_pull_secrets {
        // Behind the agents' own.
        let all = pod.image_pull_secrets.get_or_insert_default();
        if all.iter().all(|known| known.name != secret.name) {
            all.push(LocalObjectReference { name: secret.name.clone() });
        }
    }
    if let Some(seconds) = termination_grace_period_seconds {
        pod.termination_grace_period_seconds = Some(i64::from(*seconds));
    }
}

fn toleration(one: &PodToleration) -> Toleration {
    let PodToleration { key, operator, value, effect, toleration_seconds } = one;
    let operator = operator.map(|operator| match operator {
        TolerationOperator::Exists => "Exists",
        TolerationOperator::Equal => "Equal",
    });
    let effect = effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    });
    Toleration {
        key: key.clone(),
        operator: operator.map(str::to_owned),
        value: value.clone(),
        effect: effect.map(str::to_owned),
        toleration_seconds: *toleration_seconds,
    }
}

/// Nodes of one network and role avoid each other: first machines, then zones. Unless it is described otherwise that is
/// a preference, so that a small cluster can still hold a network.
pub fn build_spread(node: &NodeParts<'_>, spread: Spread) -> Option<Affinity> {
    let others: BTreeMap<String, String> = [
        (labels::NETWORK_ID.to_owned(), node.network.network_id.to_owned()),
        (labels::ROLE.to_owned(), super::role_text(node.identity.role).to_owned()),
    ]
    .into();
    let term = |topology: &str| PodAffinityTerm {
        topology_key: topology.to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(others.clone()),
            ..LabelSelector::default()
        }),
        ..PodAffinityTerm::default()
    };
    let places = [(MACHINES, spread.machines), (ZONES, spread.zones)];
    let of = |wanted: Apart| places.iter().filter(move |(_, apart)| *apart == wanted);
    let required: Vec<_> = of(Apart::Required).map(|((topology, _), _)| term(topology)).collect();
    let preferred: Vec<_> = of(Apart::Preferred)
        .map(|((topology, weight), _)| WeightedPodAffinityTerm {
            weight: *weight,
            pod_affinity_term: term(topology),
        })
        .collect();
    if required.is_empty() && preferred.is_empty() {
        return None;
    }
    Some(Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: unless_empty(required),
            preferred_during_scheduling_ignored_during_execution: unless_empty(preferred),
        }),
        ..Affinity::default()
    })
}

fn unless_empty<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::build::samples::with_node;

    #[test]
    fn where_nothing_is_described_a_pod_stays_as_it_is() {
        let mut pod = PodSpec::default();
        put_extras(&mut pod, &NodePod::default());
        assert_eq!(pod, PodSpec::default());
    }

    #[test]
    fn what_is_described_is_in_the_pod() {
        let extras: NodePod = serde_json::from_value(json!({
            "nodeSelector": {"disk": "fast"},
            "tolerations": [
                {"key": "chain", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "slow", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 60},
            ],
            "priorityClassName": "chains",
            "imagePullSecrets": [{"name": "registry"}, {"name": "agents"}],
            "terminationGracePeriodSeconds": 120,
        }))
        .unwrap();
        let agents = LocalObjectReference { name: "agents".to_owned() };
        let mut pod = PodSpec { image_pull_secrets: Some(vec![agents]), ..PodSpec::default() };
        put_extras(&mut pod, &extras);
        insta::assert_json_snapshot!(pod);
    }

    #[test]
    fn nodes_keep_apart_as_described() {
        let built = |machines, zones| {
            with_node(None, |node| build_spread(node, Spread { machines, zones }))
        };
        assert_eq!(built(Apart::Ignored, Apart::Ignored), None);
        insta::assert_json_snapshot!((
            built(Apart::Preferred, Apart::Preferred),
            built(Apart::Required, Apart::Preferred),
            built(Apart::Required, Apart::Required),
        ));
    }
}
