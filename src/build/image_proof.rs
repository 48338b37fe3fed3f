//! A pod that proves that a cluster's machines can run the agents' image, and nothing else.

use bsn_core::hash::short_hash;
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::stateful_set::{POD_USER, pull_secrets, resources, restricted, runtime_default};
use crate::api::ClusterImage;
use crate::labels;

/// Longest such a pod may take from its machine, in seconds; a first pull over a slow line included. It ends even if
/// nobody looks after it any more.
const DEADLINE_SECONDS: i64 = 600;

/// Name of the pod that proves an image. Another hub's operator may try the same image in the same namespace.
pub fn proof_name(hub_id: &str, image: &ClusterImage) -> String {
    let secret = image.pull_secret_name.as_deref().unwrap_or_default();
    let of = [hub_id, &image.reference, secret].join("\n");
    format!("bsn-image-{}", short_hash(of.as_bytes()))
}

/// Builds the pod. It is scheduled, pulled and run as a node's pod would be, under the same security context, and ends
/// at once: the binary says its version.
pub fn build_image_proof(
    hub_id: &str,
    cluster: &str,
    namespace: &str,
    image: &ClusterImage,
) -> Pod {
    let marks = [
        (labels::MANAGED_BY, labels::OPERATOR),
        (labels::CLUSTER, cluster),
        (labels::HUB_ID, hub_id),
        (labels::IMAGE_PROOF, "true"),
    ];
    let container = Container {
        name: "version".to_owned(),
        image: Some(image.reference.clone()),
        // An image that is on the machine already is proved without a registry.
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec!["--version".to_owned()]),
        resources: Some(resources("1m", "16Mi", Some("128Mi"))),
        security_context: Some(restricted()),
        ..Container::default()
    };
    Pod {
        metadata: ObjectMeta {
            name: Some(proof_name(hub_id, image)),
            namespace: Some(namespace.to_owned()),
            labels: Some(marks.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![container],
            image_pull_secrets: pull_secrets(image),
            restart_policy: Some("Never".to_owned()),
            active_deadline_seconds: Some(DEADLINE_SECONDS),
            // There is nothing it would have to finish.
            termination_grace_period_seconds: Some(0),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(POD_USER),
                run_as_group: Some(POD_USER),
                seccomp_profile: Some(runtime_default()),
                ..PodSecurityContext::default()
            }),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, secret: Option<&str>) -> ClusterImage {
        ClusterImage { reference: reference.into(), pull_secret_name: secret.map(str::to_owned) }
    }

    #[test]
    fn the_pod_runs_the_image_as_a_node_would_and_ends_at_once() {
        let image = image("registry.example/bsn-operator:1", Some("registry"));
        let pod = build_image_proof("h1", "hangzhou", "ledger", &image);
        insta::assert_snapshot!(serde_saphyr::to_string(&pod).unwrap());
    }

    /// The watch of nodes' pods, and the selectors of workloads and Services, must not take it for a node's.
    #[test]
    fn the_pod_is_no_nodes() {
        let pod = build_image_proof("h1", "hangzhou", "ledger", &image("operator:1", None));
        let labels = pod.metadata.labels.unwrap();
        for key in [labels::NODE, labels::NETWORK, labels::NETWORK_ID, labels::IDENTITY_ID] {
            assert!(!labels.contains_key(key), "{key}");
        }
    }

    #[test]
    fn each_image_and_each_way_to_pull_it_has_a_name_of_its_own() {
        let names = [
            proof_name("h1", &image("operator:1", None)),
            proof_name("h1", &image("operator:2", None)),
            proof_name("h1", &image("operator:1", Some("registry"))),
            proof_name("h2", &image("operator:1", None)),
        ];
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    }
}
