//! Whether a cluster's machines can run the agents' image: what follows from what is seen there. Pure; [`proofs`] looks.
//!
//! [`proofs`]: super::proofs

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerState, Pod, PodStatus};
use kube::ResourceExt;

use crate::api::ClusterImage;
use crate::api::conditions::{AGENT_IMAGE_AVAILABLE, Reason, State};
use crate::build::stateful_set::runs_agents;
use crate::labels;

/// Why a container waits, where the kubelet has no image to make it from, or cannot make it from the one it has.
const WITHOUT_IMAGE: [&str; 9] = [
    "ErrImagePull",
    BACK_OFF,
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
    "CreateContainerConfigError",
    "CreateContainerError",
];
/// The kubelet waits before it pulls again. What was wrong, it said before.
const BACK_OFF: &str = "ImagePullBackOff";

/// What is known of an image in a namespace of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It was run there.
    Proved,
    /// That is not known yet: why.
    NotYet(String),
    /// It cannot be run there: why.
    Unavailable(String),
}

impl Proof {
    /// It is being tried, and nothing is wrong.
    pub fn trying() -> Self {
        Self::NotYet("it is being tried".to_owned())
    }

    /// What is known after `found`. A failure stands until it is known better: the next try takes a while, and a kubelet
    /// that waits says less than before.
    #[must_use]
    pub fn after(&self, found: Self) -> Self {
        match (self, &found) {
            (Self::Unavailable(_), Self::NotYet(_)) => self.clone(),
            (Self::Unavailable(_), Self::Unavailable(why)) if why.starts_with(BACK_OFF) => {
                self.clone()
            }
            _ => found,
        }
    }

    /// Why nothing that needs the image may be done in a namespace; `None` = it may.
    pub fn obstacle(
        &self,
        cluster: &str,
        namespace: &str,
        image: &ClusterImage,
    ) -> Option<(Reason, String)> {
        let (what, place) =
            (about(image), format!("in namespace {namespace} of cluster {cluster}"));
        match self {
            Self::Proved => None,
            Self::NotYet(why) => {
                let message =
                    format!("{what}whether it can be run {place} is not known yet: {why}");
                Some((Reason::ImageNotProved, message))
            }
            Self::Unavailable(why) => {
                let message = format!(
                    "{what}it cannot be run {place}: {why}. {}. It is tried again every minute",
                    what_to_do(cluster, namespace, image)
                );
                Some((Reason::AgentImageUnavailable, message))
            }
        }
    }
}

fn what_to_do(cluster: &str, namespace: &str, image: &ClusterImage) -> String {
    let reference = format!(
        "set spec.image.reference of BsnCluster {cluster} to where its machines can pull it from"
    );
    match &image.pull_secret_name {
        Some(secret) => format!(
            "See whether Secret {secret} is in namespace {namespace} there and its credentials are good for that registry; \
             or {reference}"
        ),
        None => format!(
            "If that registry wants credentials, put them into a Secret in namespace {namespace} there and its name into \
             spec.image.pullSecretName of BsnCluster {cluster}; or {reference}"
        ),
    }
}

/// What the pod that tries an image tells.
pub fn judge_pod(pod: &Pod) -> Proof {
    let Some(status) = &pod.status else { return Proof::trying() };
    let container = status.container_statuses.iter().flatten().next();
    match container.and_then(|container| container.state.as_ref()) {
        Some(ContainerState { terminated: Some(ended), .. }) if ended.exit_code == 0 => {
            Proof::Proved
        }
        // Its end is the machine's doing: it was evicted, or took too long.
        _ if status.reason.is_some() => {
            Proof::NotYet(format!("its pod was ended: {}", why(status)))
        }
        Some(ContainerState { terminated: Some(ended), .. }) => {
            let reason = ended.reason.as_deref().unwrap_or("Error");
            let said = ended.message.as_deref().unwrap_or("is it the operator's image?");
            let code = ended.exit_code;
            Proof::Unavailable(format!("it is there and ended with {code}: {reason}: {said}"))
        }
        Some(ContainerState { waiting: Some(waiting), .. }) => {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            if !WITHOUT_IMAGE.contains(&reason) {
                return Proof::trying();
            }
            Proof::Unavailable(match &waiting.message {
                Some(said) => format!("{reason}: {said}"),
                None => reason.to_owned(),
            })
        }
        // It has begun, so it is there; its end tells in a moment whether it is the right one.
        Some(_) => Proof::trying(),
        None => {
            let mut conditions = status.conditions.iter().flatten();
            let unscheduled = conditions
                .find(|one| one.type_ == "PodScheduled" && one.status == "False")
                .map(|one| one.message.as_deref().unwrap_or("no machine fits"));
            unscheduled.map_or_else(Proof::trying, |said| {
                Proof::NotYet(format!("no machine takes the pod that tries it: {said}"))
            })
        }
    }
}

fn why(status: &PodStatus) -> String {
    let said = [&status.reason, &status.message].into_iter().flatten();
    said.map(String::as_str).collect::<Vec<_>>().join(": ")
}

/// Whether a pod tells no more.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod is a node's and its agents run from this image. Its machine has it then, and needs no proof.
pub fn runs(pod: &Pod, image: &ClusterImage) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|_| pod.labels().contains_key(labels::NODE)) else {
        return false;
    };
    let statuses =
        pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let mut states = statuses.filter_map(|container| container.state.as_ref());
    runs_agents(spec, image)
        && states.any(|state| state.running.is_some() || state.terminated.is_some())
}

/// The condition of a cluster, by what is known of its namespaces; `None` = nothing is.
pub fn image_state(
    cluster: &str,
    image: &ClusterImage,
    known: &BTreeMap<String, Proof>,
) -> Option<State> {
    let state = |status: Option<bool>, reason, message: String| {
        Some(State::new(AGENT_IMAGE_AVAILABLE, status, reason, message))
    };
    let unavailable = known.iter().find(|(_, proof)| matches!(proof, Proof::Unavailable(_)));
    let not_yet = known.iter().find(|(_, proof)| matches!(proof, Proof::NotYet(_)));
    if let Some((namespace, proof)) = unavailable.or(not_yet) {
        let (reason, message) = proof.obstacle(cluster, namespace, image)?;
        return state(unavailable.map(|_| false), reason, message);
    }
    if known.is_empty() {
        return None;
    }
    let message = format!("{}it was run wherever it was needed", about(image));
    state(Some(true), Reason::ImageProved, message)
}

/// Begins every message about an image, by which it is known later what that was about.
pub fn about(image: &ClusterImage) -> String {
    match &image.pull_secret_name {
        Some(secret) => format!("image {} with Secret {secret}: ", image.reference),
        None => format!("image {}: ", image.reference),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn image() -> ClusterImage {
        ClusterImage { reference: "registry.example/operator:1".into(), pull_secret_name: None }
    }

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
    }

    fn container(state: &Value) -> Pod {
        pod(&json!({"containerStatuses": [{
            "name": "version", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": state,
        }]}))
    }

    fn waiting(reason: &str, message: &str) -> Pod {
        container(&json!({"waiting": {"reason": reason, "message": message}}))
    }

    #[test]
    fn what_a_pod_tells_of_its_image() {
        let unavailable = |why: &str| Proof::Unavailable(why.to_owned());
        let cases = vec![
            ("nothing yet", pod(&json!({})), Proof::trying()),
            ("pulled just now", waiting("ContainerCreating", ""), Proof::trying()),
            ("begun", container(&json!({"running": {}})), Proof::trying()),
            ("ended well", container(&json!({"terminated": {"exitCode": 0}})), Proof::Proved),
            (
                "no such image",
                waiting("ErrImagePull", "operator:1: not found"),
                unavailable("ErrImagePull: operator:1: not found"),
            ),
            (
                "the kubelet waits",
                waiting("ImagePullBackOff", "Back-off pulling image"),
                unavailable("ImagePullBackOff: Back-off pulling image"),
            ),
            ("never pulled", waiting("ErrImageNeverPull", ""), unavailable("ErrImageNeverPull: ")),
            ("no reference", waiting("InvalidImageName", "x"), unavailable("InvalidImageName: x")),
            (
                "of another kind of machine",
                container(&json!({"terminated": {
                    "exitCode": 128, "reason": "StartError", "message": "exec format error",
                }})),
                unavailable("it is there and ended with 128: StartError: exec format error"),
            ),
            (
                "another program",
                container(&json!({"terminated": {"exitCode": 2}})),
                unavailable("it is there and ended with 2: Error: is it the operator's image?"),
            ),
            (
                "no room",
                pod(&json!({"phase": "Pending", "conditions": [{
                    "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                    "message": "0/3 nodes are available",
                }]})),
                Proof::NotYet(
                    "no machine takes the pod that tries it: 0/3 nodes are available".to_owned(),
                ),
            ),
            (
                "evicted",
                pod(&json!({"phase": "Failed", "reason": "Evicted", "message": "low on disk"})),
                Proof::NotYet("its pod was ended: Evicted: low on disk".to_owned()),
            ),
        ];
        for (case, pod, expected) in cases {
            assert_eq!(judge_pod(&pod), expected, "{case}");
        }
    }

    #[test]
    fn a_failure_stands_until_it_is_known_better() {
        let failed = Proof::Unavailable("ErrImagePull: not found".to_owned());
        let backs_off = Proof::Unavailable("ImagePullBackOff: Back-off".to_owned());
        assert_eq!(failed.after(Proof::trying()), failed);
        assert_eq!(failed.after(backs_off.clone()), failed);
        assert_eq!(Proof::trying().after(backs_off.clone()), backs_off);
        let denied = Proof::Unavailable("ErrImagePull: 401".to_owned());
        assert_eq!(failed.after(denied.clone()), denied);
        assert_eq!(failed.after(Proof::Proved), Proof::Proved);
    }

    fn node(agent: &str, secrets: &[&str], state: &Value) -> Pod {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n-0", "labels": {labels::NODE: "n"}},
            "spec": {
                "containers": [],
                "initContainers": [{"name": "gateway", "image": agent}, {"name": "guard", "image": agent}],
                "imagePullSecrets": secrets,
            },
            "status": {"initContainerStatuses": [{
                "name": "gateway", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state,
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn agents_that_run_prove_their_image() {
        let (image, runs_now) = (image(), json!({"running": {}}));
        let reference = image.reference.as_str();
        assert!(runs(&node(reference, &[], &runs_now), &image));
        assert!(runs(&node(reference, &["of-the-account"], &runs_now), &image));
        assert!(!runs(&node("registry.example/operator:2", &[], &runs_now), &image));
        let pulls = json!({"waiting": {"reason": "ImagePullBackOff"}});
        assert!(!runs(&node(reference, &[], &pulls), &image));
        let private = ClusterImage { pull_secret_name: Some("registry".into()), ..image.clone() };
        assert!(!runs(&node(reference, &[], &runs_now), &private));
        assert!(runs(&node(reference, &["registry"], &runs_now), &private));
        let mut stranger = node(reference, &[], &runs_now);
        stranger.metadata.labels = None;
        assert!(!runs(&stranger, &image));
    }

    #[test]
    fn one_namespace_without_the_image_decides() {
        let failed = || Proof::Unavailable("ErrImagePull: not found".to_owned());
        let state = |known: &[(&str, Proof)]| {
            let known = known.iter().map(|(name, proof)| ((*name).to_owned(), proof.clone()));
            image_state("hangzhou", &image(), &known.collect())
                .map(|state| (state.status, state.reason))
        };
        assert_eq!(state(&[]), None);
        assert_eq!(state(&[("a", Proof::Proved)]), Some((Some(true), Reason::ImageProved)));
        let trying = [("a", Proof::Proved), ("b", Proof::trying())];
        assert_eq!(state(&trying), Some((None, Reason::ImageNotProved)));
        let mixed = [("a", Proof::trying()), ("b", failed()), ("c", Proof::Proved)];
        assert_eq!(state(&mixed), Some((Some(false), Reason::AgentImageUnavailable)));
    }

    #[test]
    fn a_refusal_says_what_was_tried_what_was_said_and_what_to_set() {
        let failed = Proof::Unavailable("ErrImagePull: 401 Unauthorized".to_owned());
        let private = ClusterImage { pull_secret_name: Some("registry".into()), ..image() };
        let said = [image(), private].map(|image| {
            failed.obstacle("hangzhou", "ledger", &image).map(|(_, message)| message).unwrap()
        });
        insta::assert_snapshot!(said.join("\n\n"));
    }
}
