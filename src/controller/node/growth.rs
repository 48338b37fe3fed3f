//! A disk that grows: more is asked for on the claim, and what becomes of it is told. Nothing waits for it: the node
//! runs on, and its pod is not restarted.

use bsn_core::anchor::Anchor;
use bsn_core::disk::{Growth, ObservedClaim, next_growth};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use serde_json::json;

use super::apply::Pass;
use crate::api::conditions::{DISK_AS_DESCRIBED, Reason, State};
use crate::apply::{ApiError, merge_as_read, read};
use crate::cluster::watches::cached;

/// Answers of the API server to a claim that may not grow: by its class or a quota (403), or as it is now (422).
const REFUSED: [u16; 2] = [403, 422];

impl Pass<'_> {
    /// Asks for a larger disk if one is described; tells where that is. `None` = there is nothing to tell.
    ///
    /// The last thing of a pass, and no error of it: nothing else depends on it.
    pub(super) async fn grow_disk(&self, anchor: &Anchor) -> Option<State> {
        let identity = anchor.identity(self.name)?;
        let recorded = identity.uids.disk.as_deref()?;
        // Of a set that is no longer described nothing is wanted.
        let wanted = self.validated.storage.get(&identity.set)?.size.as_str();
        let name = self.name.disk();
        let claim = cached(&self.place.objects.disks, &self.key.namespace, &name)?;
        if !is_the_one(&claim, recorded) {
            return None;
        }
        let growth = next_growth(wanted, &observe_claim(&claim));
        if growth != Growth::Ask {
            return Some(disk_state(growth, wanted, &claim));
        }
        Some(match self.ask_for(wanted, recorded).await {
            Ok(Some(claim)) => {
                disk_state(next_growth(wanted, &observe_claim(&claim)), wanted, &claim)
            }
            // Its loss is another pass' refusal.
            Ok(None) => return None,
            Err(error) => refused_state(&error, wanted, &claim),
        })
    }

    /// Asks for a larger disk. Live, just before: what has grown never shrinks again. `None` = the disk is another one.
    async fn ask_for(
        &self,
        wanted: &str,
        recorded: &str,
    ) -> Result<Option<PersistentVolumeClaim>, ApiError> {
        let (client, namespace) = (&self.place.client, &self.key.namespace);
        let live = read::<PersistentVolumeClaim>(client, namespace, &self.name.disk()).await?;
        let Some(live) = live.filter(|live| is_the_one(live, recorded)) else { return Ok(None) };
        if next_growth(wanted, &observe_claim(&live)) != Growth::Ask {
            return Ok(Some(live));
        }
        tracing::info!(node = %self.name, %wanted, "asking for a larger disk");
        let patch = json!({"spec": {"resources": {"requests": {"storage": wanted}}}});
        merge_as_read(client, &live, patch).await.map(Some)
    }
}

fn is_the_one(claim: &PersistentVolumeClaim, recorded: &str) -> bool {
    claim.uid().as_deref() == Some(recorded) && claim.metadata.deletion_timestamp.is_none()
}

/// What a claim says of its size.
fn observe_claim(claim: &PersistentVolumeClaim) -> ObservedClaim<'_> {
    let spec = claim.spec.as_ref();
    let status = claim.status.as_ref();
    let requests = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let capacity = status.and_then(|status| status.capacity.as_ref());
    let mut conditions = status.into_iter().flat_map(|one| one.conditions.iter().flatten());
    let resizes = status.and_then(|status| status.allocated_resource_statuses.as_ref());
    let resize = resizes.and_then(|all| all.get("storage")).map(String::as_str);
    ObservedClaim {
        bound: status.and_then(|status| status.phase.as_deref()) == Some("Bound"),
        requested: requests.and_then(|all| all.get("storage")).map(|size| size.0.as_str()),
        capacity: capacity.and_then(|all| all.get("storage")).map(|size| size.0.as_str()),
        file_system_pending: conditions
            .any(|one| one.type_ == "FileSystemResizePending" && one.status == "True"),
        infeasible: matches!(resize, Some("ControllerResizeInfeasible" | "NodeResizeInfeasible")),
    }
}

/// Where a disk is on its way.
fn disk_state(growth: Growth, wanted: &str, claim: &PersistentVolumeClaim) -> State {
    let state = |reason, message| State::new(DISK_AS_DESCRIBED, false, reason, message);
    let ObservedClaim { requested, capacity, .. } = observe_claim(claim);
    let (requested, capacity) = (requested.unwrap_or("?"), capacity.unwrap_or("?"));
    let name = claim.name_any();
    match growth {
        Growth::Done => State::new(DISK_AS_DESCRIBED, true, Reason::AsDescribed, ""),
        Growth::Ask | Growth::AwaitVolume => {
            let message = format!(
                "{name}: {wanted} are described and {requested} were asked for; more is asked for once the claim is \
                 bound to a volume"
            );
            state(Reason::DiskGrowing, message)
        }
        Growth::Growing => {
            let message = format!("{name}: the volume grows from {capacity} to {wanted}");
            state(Reason::DiskGrowing, message)
        }
        Growth::FileSystemPending => {
            let message = format!(
                "{name}: the volume has grown to {wanted}, its file system follows from {capacity}. Most storage drivers \
                 do that in a moment; if it lasts, this one needs a new pod: change an annotation in \
                 spec.nodeSets[].pod.annotations, and the nodes of the set restart one by one"
            );
            state(Reason::FileSystemPending, message)
        }
        Growth::Infeasible => {
            let message = format!(
                "{name}: the storage driver cannot give {wanted}, the disk stays at {capacity}: see kubectl describe pvc \
                 {name}. Make room in the storage system, or replace the node: a new one gets a disk as described"
            );
            state(Reason::DiskGrowthRefused, message)
        }
        Growth::Unknown => {
            let message = format!(
                "{name}: {wanted} are described; what the claim has, {capacity} of {requested}, cannot be read, so \
                 nothing is asked for"
            );
            state(Reason::DiskGrowing, message)
        }
    }
}

/// What is told of a request that failed.
fn refused_state(error: &ApiError, wanted: &str, claim: &PersistentVolumeClaim) -> State {
    let name = claim.name_any();
    let refused = error.code().is_some_and(|code| REFUSED.contains(&code));
    if !refused {
        tracing::warn!(%name, %error, "a larger disk was not asked for");
        let message =
            format!("{name}: {wanted} were not asked for yet, it is tried again: {error}");
        return State::new(DISK_AS_DESCRIBED, false, Reason::DiskGrowing, message);
    }
    let why = error.answer();
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    let class = class.filter(|class| !class.is_empty()).map_or_else(
        || "the claim has no storage class, so its volume cannot grow".to_owned(),
        |class| {
            format!(
                "If StorageClass {class} does not allow it and its driver can, set allowVolumeExpansion: true there: \
                 kubectl patch storageclass {class} -p '{{\"allowVolumeExpansion\":true}}'"
            )
        },
    );
    let message = format!(
        "{name}: {wanted} are described, and the API server refuses: {why}. {class}. Else replace the node: a new one \
         gets a disk as described. It is tried again every minute; the node runs on"
    );
    State::new(DISK_AS_DESCRIBED, false, Reason::DiskGrowthRefused, message)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn claim(status: &Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "net-v-0-data", "uid": "u1"},
            "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}},
            "status": status,
        }))
        .unwrap()
    }

    fn said(wanted: &str, status: &Value) -> (Option<bool>, Reason, String) {
        let claim = claim(status);
        let state = disk_state(next_growth(wanted, &observe_claim(&claim)), wanted, &claim);
        (state.status, state.reason, state.message)
    }

    #[test]
    fn a_claim_tells_where_its_growth_is() {
        let bound = |capacity: &str| json!({"phase": "Bound", "capacity": {"storage": capacity}});
        assert_eq!(said("2Gi", &bound("2Gi")), (Some(true), Reason::AsDescribed, String::new()));
        let (_, reason, message) = said("2Gi", &bound("1Gi"));
        assert_eq!(reason, Reason::DiskGrowing);
        assert!(message.contains("from 1Gi to 2Gi"), "{message}");
        let mut pending = bound("1Gi");
        pending["conditions"] = json!([{"type": "FileSystemResizePending", "status": "True"}]);
        let (status, reason, message) = said("2Gi", &pending);
        assert_eq!((status, reason), (Some(false), Reason::FileSystemPending));
        assert!(message.contains("pod.annotations"), "{message}");
        let mut infeasible = bound("1Gi");
        infeasible["allocatedResourceStatuses"] = json!({"storage": "ControllerResizeInfeasible"});
        assert_eq!(said("2Gi", &infeasible).1, Reason::DiskGrowthRefused);
        assert_eq!(said("3Gi", &json!({"phase": "Pending"})).1, Reason::DiskGrowing);
    }

    fn api_error(code: u16, message: &str) -> ApiError {
        let status = kube::core::Status { code, ..kube::core::Status::failure(message, "") };
        ApiError::Request {
            what: "patch PersistentVolumeClaim".to_owned(),
            source: Box::new(kube::Error::Api(status.boxed())),
        }
    }

    #[test]
    fn only_an_answer_that_no_later_try_changes_needs_a_person() {
        let claim = claim(&json!({"phase": "Bound", "capacity": {"storage": "2Gi"}}));
        let why = "the storageclass that provisions the pvc must support resize";
        let state = refused_state(&api_error(403, why), "3Gi", &claim);
        assert_eq!(state.reason, Reason::DiskGrowthRefused);
        for words in [why, "kubectl patch storageclass fast", "3Gi"] {
            assert!(state.message.contains(words), "{}", state.message);
        }
        let mut without = claim.clone();
        without.spec.as_mut().unwrap().storage_class_name = Some(String::new());
        let message = refused_state(&api_error(403, why), "3Gi", &without).message;
        assert!(message.contains("has no storage class"), "{message}");
        for code in [409, 500, 503] {
            let state = refused_state(&api_error(code, "later"), "3Gi", &claim);
            assert_eq!(state.reason, Reason::DiskGrowing, "{code}");
        }
    }

    #[test]
    fn a_claim_of_another_uid_or_one_that_goes_is_left_alone() {
        let mut claim = claim(&json!({"phase": "Bound"}));
        assert!(is_the_one(&claim, "u1") && !is_the_one(&claim, "u2"));
        claim.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(!is_the_one(&claim, "u1"));
    }
}
