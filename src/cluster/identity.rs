//! Which cluster goes by which name. One under two names would be given the objects of both, and where it stands for two
//! failure domains it is one.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use kube::{Client, ResourceExt};
use tokio::sync::OnceCell;

use super::probe::{ProbeFault, observe_identity};
use crate::api::BsnCluster;

/// What a cluster is already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Other {
    /// The cluster the operator runs in.
    Hub,
    /// That of another `BsnCluster`.
    Member(String),
}

/// The uids of all clusters' `kube-system`.
#[derive(Default)]
pub struct Identities {
    /// The hub's, read once; `None` inside = the operator may not read it.
    hub: OnceCell<Option<String>>,
    /// Whose name each uid goes by, from the first time it is seen: the statuses show that only later.
    claims: Mutex<BTreeMap<String, String>>,
}

impl Identities {
    /// What else the cluster with this uid is, if `cluster` may not be used for that.
    pub async fn other(
        &self,
        hub: &Client,
        cluster: &BsnCluster,
        recorded: Option<&str>,
        uid: &str,
        all: &[BsnCluster],
    ) -> Result<Option<Other>, ProbeFault> {
        let own = self.hub.get_or_try_init(|| async {
            let uid = observe_identity(hub).await?;
            if uid.is_none() {
                tracing::warn!(
                    "the operator may not get namespace kube-system: a member that is the hub itself would not be noticed"
                );
            }
            Ok(uid)
        });
        if own.await?.as_deref() == Some(uid) {
            return Ok(Some(Other::Hub));
        }
        Ok(self.claim(cluster, recorded, uid, all).map(Other::Member))
    }

    /// Claims a uid for a cluster. Returns who has it, if that is another one.
    fn claim(
        &self,
        cluster: &BsnCluster,
        recorded: Option<&str>,
        uid: &str,
        all: &[BsnCluster],
    ) -> Option<String> {
        let name = cluster.name_any();
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let first = first_recorded(cluster, recorded, uid, all);
        let holder = first.or_else(|| claims.get(uid).cloned()).unwrap_or_else(|| name.clone());
        claims.insert(uid.to_owned(), holder.clone());
        (holder != name).then_some(holder)
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, name: &str) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|_, holder| holder != name);
    }
}

/// The cluster that this uid was recorded for; of several the one that was made first, and so has hosted nodes for longer.
/// `recorded` is what `cluster` itself has on record: the list may be behind.
fn first_recorded(
    cluster: &BsnCluster,
    recorded: Option<&str>,
    uid: &str,
    all: &[BsnCluster],
) -> Option<String> {
    let uid_of = |one: &BsnCluster| one.status.as_ref().and_then(|it| it.cluster_uid.clone());
    let others = all
        .iter()
        .filter(|one| one.name_any() != cluster.name_any() && uid_of(one).as_deref() == Some(uid));
    let own = Some(cluster).filter(|_| recorded == Some(uid));
    others
        .chain(own)
        .map(|one| (one.metadata.creation_timestamp.clone().map(|time| time.0), one.name_any()))
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(name: &str, day: u32, uid: Option<&str>) -> BsnCluster {
        serde_json::from_value(json!({
            "apiVersion": "bsn-operator.io/v1alpha1", "kind": "BsnCluster",
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z")},
            "spec": {"kubeconfigSecretRef": {"name": name}, "allowedNamespaces": ["ledger"]},
            "status": {"clusterUid": uid},
        }))
        .unwrap()
    }

    fn claim(identities: &Identities, all: &[BsnCluster], which: usize) -> Option<String> {
        let status = all[which].status.clone().unwrap();
        identities.claim(&all[which], status.cluster_uid.as_deref(), "u1", all)
    }

    #[test]
    fn a_cluster_goes_by_the_name_it_was_recorded_under() {
        let all = [cluster("a", 1, None), cluster("b", 2, Some("u1")), cluster("c", 3, Some("u2"))];
        // Whoever asks first after a restart of the operator.
        let identities = Identities::default();
        assert_eq!(claim(&identities, &all, 0).as_deref(), Some("b"));
        assert_eq!(claim(&identities, &all, 1), None);
        assert_eq!(claim(&identities, &all, 0).as_deref(), Some("b"));
    }

    #[test]
    fn of_two_on_record_it_goes_by_the_older() {
        let all = [cluster("b", 2, Some("u1")), cluster("a", 3, Some("u1"))];
        let identities = Identities::default();
        assert_eq!(claim(&identities, &all, 1).as_deref(), Some("b"));
        assert_eq!(claim(&identities, &all, 0), None);
    }

    /// Both are new, and neither status is written yet.
    #[test]
    fn without_a_record_it_goes_by_the_first_that_reaches_it_until_that_is_gone() {
        let all = [cluster("a", 1, None), cluster("b", 2, None)];
        let identities = Identities::default();
        assert_eq!(claim(&identities, &all, 1), None);
        assert_eq!(claim(&identities, &all, 0).as_deref(), Some("b"));
        identities.forget("b");
        assert_eq!(claim(&identities, &all, 0), None);
        assert_eq!(claim(&identities, &all, 1).as_deref(), Some("a"));
    }
}
