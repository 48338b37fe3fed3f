//! What a node's pod waits for, in the words of those it waits for. It follows from what Kubernetes says of it; counts and
//! times are left out, so that a status changes only when something else is the matter.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod, PodCondition};
use kube::ResourceExt;

/// Longest quotation, in characters: a scheduler names every taint there is.
const MAX_QUOTE: usize = 200;

/// How long nothing of a pod may run on its machine before it is told. Most start within seconds, and what is told of
/// each would be two more writes.
const STARTS_WITHIN: SignedDuration = SignedDuration::from_secs(30);

/// A node's workload as the watches show it.
#[derive(Debug, Default)]
pub struct ObservedWorkload<'a> {
    /// What makes its pod.
    pub set: Option<&'a StatefulSet>,
    /// Its pod.
    pub pod: Option<&'a Pod>,
    /// Its disk.
    pub claim: Option<&'a PersistentVolumeClaim>,
}

/// Whether all containers of a pod answer their probes.
pub fn is_ready(pod: &Pod) -> bool {
    !is_ending(pod) && condition(pod, "Ready").is_some_and(|told| told.status == "True")
}

/// Why there is no pod.
pub fn why_absent(set: Option<&StatefulSet>) -> String {
    let Some(set) = set.filter(|set| has_made_none(set)) else {
        return "its pod is not there yet".to_owned();
    };
    format!(
        "its pod is not there yet: its StatefulSet has made none. If that lasts, its events say why, for example an unknown \
         priority class, a quota or pod security: kubectl describe statefulset {} -n {}",
        set.name_any(),
        set.namespace().unwrap_or_default()
    )
}

/// Why a container cannot run, if the kubelet has given up for now.
pub fn failure(pod: &Pod) -> Option<String> {
    containers(pod).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let said = waiting.message.as_deref().unwrap_or_default();
        let (word, image, why) = match waiting.reason.as_deref()? {
            // The kubelet says the one and the other in turn; in both the cause comes last.
            "ErrImagePull" | "ImagePullBackOff" => {
                let cause = said.rsplit_once(": ").map(|(_, cause)| cause);
                ("ImagePullBackOff", Some(container.image.as_str()), cause)
            }
            word @ ("CreateContainerConfigError" | "ErrImageNeverPull" | "InvalidImageName") => {
                (word, None, Some(said))
            }
            // What it says of these has times and counts in it.
            word @ ("CrashLoopBackOff" | "CreateContainerError") => (word, None, None),
            _ => return None,
        };
        let known = [image, why].into_iter().flatten().filter(|part| !part.is_empty());
        let known: Vec<String> = known.map(quote).collect();
        let why = if known.is_empty() { String::new() } else { format!(" ({})", known.join(": ")) };
        Some(format!("container {}: {word}{why}; see {}", container.name, how_to_see(pod)))
    })
}

/// Why a pod is not ready in which no container fails.
pub fn why_not_ready(pod: &Pod, claim: Option<&PersistentVolumeClaim>, now: Timestamp) -> String {
    let plain = "its pod is not ready".to_owned();
    if is_ending(pod) {
        return plain;
    }
    if let Some(told) = condition(pod, "PodScheduled").filter(|told| told.status == "False") {
        let said = told.message.as_deref().or(told.reason.as_deref()).unwrap_or_default();
        let claim = claim.and_then(why_pending);
        let parts: Vec<String> = [Some(scheduler_words(said)), claim]
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        return format!(
            "its pod is on no machine yet: {}; see {}",
            parts.join("; "),
            how_to_see(pod)
        );
    }
    if waits_on_machine(pod, now).is_some_and(|waits| waits >= STARTS_WITHIN) {
        return format!(
            "{plain}: nothing of it runs on its machine yet. Its events say why, for example a Secret or ConfigMap that it mounts \
             and that is missing: {}",
            how_to_see(pod)
        );
    }
    plain
}

/// When to look again whether a pod has started: that it has not is in no event.
pub fn next_look(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let waits = waits_on_machine(pod, now).filter(|waits| *waits < STARTS_WITHIN)?;
    Duration::try_from(STARTS_WITHIN - waits).ok()
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    all.iter().find(|condition| condition.type_ == kind)
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let main = status.and_then(|status| status.container_statuses.as_ref());
    init.into_iter().flatten().chain(main.into_iter().flatten())
}

fn how_to_see(pod: &Pod) -> String {
    let namespace = pod.namespace().unwrap_or_default();
    format!("kubectl describe pod {} -n {namespace}", pod.name_any())
}

/// Kubernetes has looked at a StatefulSet as it is now, and there is no pod of it.
fn has_made_none(set: &StatefulSet) -> bool {
    set.status.as_ref().is_some_and(|status| {
        let seen = status.observed_generation;
        seen.is_some() && seen >= set.metadata.generation && status.replicas == 0
    })
}

/// How long its machine has not come to start a pod's containers: their volumes, or the pod's network, are not there.
fn waits_on_machine(pod: &Pod, now: Timestamp) -> Option<SignedDuration> {
    let told = condition(pod, "PodReadyToStartContainers")?;
    let since = told.last_transition_time.as_ref().filter(|_| told.status == "False")?;
    Some(now.duration_since(since.0))
}

/// Of a claim without a volume, whose pod is on no machine: with many classes it gets one only then.
fn why_pending(claim: &PersistentVolumeClaim) -> Option<String> {
    let status = claim.status.as_ref()?;
    if status.phase.as_deref() != Some("Pending") {
        return None;
    }
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    let class = match class {
        None | Some("") => "it has no storage class".to_owned(),
        Some(class) => format!("its storage class is {class}"),
    };
    let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
    Some(format!("its claim is Pending, {class}: kubectl describe pvc {name} -n {namespace}"))
}

/// What the scheduler says, without how many machines each reason holds for: that changes with every machine that comes
/// or goes, and the order with it. `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.
/// preemption: …`
fn scheduler_words(message: &str) -> String {
    let said = message.split_once(" nodes are available: ").map_or(message, |(_, said)| said);
    let said = said.split_once(". ").map_or(said, |(first, _)| first);
    let mut reasons: Vec<String> = Vec::new();
    for part in said.trim_end_matches('.').split(", ") {
        if let Some((count, reason)) = part.split_once(' ')
            && count.parse::<u32>().is_ok()
        {
            reasons.push(reason.to_owned());
        } else if let Some(last) = reasons.last_mut() {
            // A comma in a reason.
            last.push_str(", ");
            last.push_str(part);
        } else {
            reasons.push(part.to_owned());
        }
    }
    reasons.sort_unstable();
    reasons.dedup();
    quote(&reasons.join(", "))
}

/// The first line of a text, and of that no more than [`MAX_QUOTE`].
fn quote(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    if line.chars().count() <= MAX_QUOTE {
        return line.to_owned();
    }
    let cut: String = line.chars().take(MAX_QUOTE).collect();
    format!("{cut} …")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn pod(status: &Value) -> Pod {
        let meta = json!({"name": "city-a-0-0", "namespace": "ledger"});
        serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap()
    }

    fn unplaced(message: &str) -> Pod {
        pod(&json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
        ]}))
    }

    fn waiting(reason: &str, message: &str) -> Pod {
        pod(&json!({"containerStatuses": [{
            "name": "engine", "image": "engine:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": reason, "message": message}},
        }]}))
    }

    fn claim(phase: &str, class: Option<&str>) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "city-a-0-data", "namespace": "ledger"},
            "spec": {"storageClassName": class},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn the_scheduler_is_quoted_without_its_counts() {
        let said = |message: &str| why_not_ready(&unplaced(message), None, now());
        let two = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector. \
                   preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.";
        let ten = "0/13 nodes are available: 11 node(s) didn't match Pod's node affinity/selector, 2 Insufficient cpu.";
        let expected = "its pod is on no machine yet: Insufficient cpu, node(s) didn't match Pod's node affinity/selector; \
                        see kubectl describe pod city-a-0-0 -n ledger";
        assert_eq!(said(two), expected);
        assert_eq!(said(ten), expected);
        assert_eq!(scheduler_words("0/1 nodes are available: 1 a, b c, 1 d."), "a, b c, d");
        assert_eq!(scheduler_words("Scheduling is blocked"), "Scheduling is blocked");
        let long = scheduler_words(&"taint ".repeat(100));
        assert!(long.chars().count() <= MAX_QUOTE + 2 && long.ends_with(" …"), "{long}");
    }

    #[test]
    fn a_claim_without_a_volume_is_told_with_its_class_while_its_pod_is_on_no_machine() {
        let message =
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found";
        let pod_without = unplaced(message);
        let said = |claim: &PersistentVolumeClaim| why_not_ready(&pod_without, Some(claim), now());
        let with_class = said(&claim("Pending", Some("fast")));
        let expected = "its pod is on no machine yet: pod has unbound immediate PersistentVolumeClaims; its claim is Pending, its \
                        storage class is fast: kubectl describe pvc city-a-0-data -n ledger; see kubectl describe pod \
                        city-a-0-0 -n ledger";
        assert_eq!(with_class, expected);
        for class in [None, Some("")] {
            let said = said(&claim("Pending", class));
            assert!(said.contains("it has no storage class"), "{said}");
        }
        assert!(!said(&claim("Bound", Some("fast"))).contains("claim is"));
        // On a machine, or not looked at by the scheduler yet: other things are the matter.
        let placed = pod(&json!({"conditions": [{"type": "PodScheduled", "status": "True"}]}));
        let said = why_not_ready(&placed, Some(&claim("Pending", Some("fast"))), now());
        assert_eq!(said, "its pod is not ready");
    }

    #[test]
    fn a_pod_of_which_nothing_starts_says_so_after_a_while_and_once() {
        let waits = |seconds: i64| {
            let since = now() - SignedDuration::from_secs(seconds);
            pod(&json!({"conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "PodReadyToStartContainers", "status": "False", "lastTransitionTime": since.to_string()},
            ]}))
        };
        assert_eq!(why_not_ready(&waits(10), None, now()), "its pod is not ready");
        assert_eq!(next_look(&waits(10), now()), Some(Duration::from_secs(20)));
        let told = why_not_ready(&waits(30), None, now());
        assert!(told.contains("kubectl describe pod city-a-0-0 -n ledger"), "{told}");
        assert_eq!(why_not_ready(&waits(3000), None, now()), told);
        assert_eq!(next_look(&waits(30), now()), None);
        let mut ending = waits(3000);
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now());
        ending.metadata.deletion_timestamp = Some(at);
        assert_eq!(why_not_ready(&ending, None, now()), "its pod is not ready");
    }

    #[test]
    fn a_kubelet_that_has_given_up_says_why_in_words_that_stay() {
        let see = "see kubectl describe pod city-a-0-0 -n ledger";
        let cause =
            "failed to resolve reference: read udp 10.1.0.7:4711->10.96.0.10:53: i/o timeout";
        let expected = format!("container engine: ImagePullBackOff (engine:1: i/o timeout); {see}");
        assert_eq!(failure(&waiting("ErrImagePull", cause)).as_ref(), Some(&expected));
        let backs_off = format!("Back-off pulling image \"engine:1\": ErrImagePull: {cause}");
        assert_eq!(failure(&waiting("ImagePullBackOff", &backs_off)), Some(expected));
        let missing = failure(&waiting("CreateContainerConfigError", "secret \"token\" not found"));
        let expected =
            "container engine: CreateContainerConfigError (secret \"token\" not found); ";
        assert_eq!(missing, Some(format!("{expected}{see}")));
        let crashes = failure(&waiting("CrashLoopBackOff", "back-off 1m20s restarting"));
        assert_eq!(crashes, Some(format!("container engine: CrashLoopBackOff; {see}")));
        assert_eq!(failure(&waiting("ContainerCreating", "")), None);
    }

    #[test]
    fn a_stateful_set_that_has_made_no_pod_is_named() {
        let set = |status: &Value| -> StatefulSet {
            let meta = json!({"name": "city-a-0", "namespace": "ledger", "generation": 2});
            serde_json::from_value(json!({"metadata": meta, "status": status})).unwrap()
        };
        let said = |status: Value| why_absent(Some(&set(&status)));
        let tried = said(json!({"replicas": 0, "observedGeneration": 2}));
        assert!(tried.ends_with("kubectl describe statefulset city-a-0 -n ledger"), "{tried}");
        let plain = "its pod is not there yet";
        assert_eq!(why_absent(None), plain);
        // Nobody has looked at it yet; and the pod's own watch is behind.
        assert_eq!(said(json!({"replicas": 0, "observedGeneration": 1})), plain);
        assert_eq!(said(json!({"replicas": 1, "observedGeneration": 2})), plain);
    }
}
