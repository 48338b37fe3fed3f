//! What an earlier story left, passed or not: it is undone before the next one begins.

use std::fmt::Debug;
use std::time::Duration;

use bsn_operator::api::{BsnCluster, BsnNetwork, BsnNode};
use bsn_testkit::lab::{Lab, Roles};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, PersistentVolumeClaim, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::span::NAMES;
use super::wrong::AGAIN;
use crate::plugin::plugin_program;
use crate::support::{eventually, hub, run_in};

/// What the names of these stories' namespaces begin with.
const STORIES: &str = "story-clusters-";
/// What the names of our finalizers begin with.
const OURS: &str = "bsn-operator.io/";
const GONE_WITHIN: Duration = Duration::from_mins(3);

/// Ends cuts, starts API servers, lets pods onto drained machines again, takes the members out and removes these stories' namespaces, in every cluster. Nobody
/// looks after what is in them any more, so whatever holds it is taken away.
pub async fn sweep(roles: Roles) {
    let lab = Lab::load().unwrap();
    lab.heal().unwrap();
    for cluster in roles.all() {
        lab.start_api_server(cluster).unwrap();
        lab.wait_api_server(cluster).await.unwrap();
    }
    for (name, cluster) in NAMES.into_iter().zip(roles.members) {
        leave(&lab, name, cluster, true).unwrap();
    }
    leave(&lab, AGAIN, roles.members[0], true).unwrap();
    for cluster in roles.all() {
        let client = lab.client(cluster).await.unwrap();
        uncordon(&client).await;
        remove_namespaces(&client).await;
    }
    let clusters = Api::<BsnCluster>::all(lab.client(hub()).await.unwrap());
    for name in NAMES {
        eventually(&format!("the end of BsnCluster {name}"), GONE_WITHIN, async || {
            let found = clusters.get_opt(name).await;
            if matches!(found, Ok(None)) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
}

/// Takes a member out, if it is one; `force` = also if it hosts nodes.
pub fn leave(lab: &Lab, name: &str, cluster: usize, force: bool) -> Result<(), String> {
    let file = lab.kubeconfig(cluster).display().to_string();
    let mut args = vec!["cluster", "leave", name, "--kubeconfig", &file, "--yes"];
    if force {
        args.push("--force");
    }
    let output = run_in(lab, hub(), plugin_program(), &args, "");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() || error.contains("there is nothing of a cluster") {
        Ok(())
    } else {
        Err(error)
    }
}

async fn uncordon(client: &Client) {
    let machines = Api::<Node>::all(client.clone());
    for machine in machines.list(&ListParams::default()).await.unwrap() {
        if machine.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
            machines.uncordon(&machine.name_any()).await.unwrap();
        }
    }
}

async fn remove_namespaces(client: &Client) {
    let namespaces = Api::<Namespace>::all(client.clone());
    let all = namespaces.list(&ListParams::default()).await.unwrap();
    for namespace in all.iter().filter(|namespace| namespace.name_any().starts_with(STORIES)) {
        let name = namespace.name_any();
        println!("an earlier story left {name}");
        // One that is being deleted cannot be deleted again.
        if namespace.metadata.deletion_timestamp.is_none() {
            let _ = namespaces.delete(&name, &DeleteParams::default()).await.unwrap();
        }
        eventually(&format!("the end of {name}"), GONE_WITHIN, async || {
            let_go::<BsnNetwork>(client, &name).await;
            let_go::<BsnNode>(client, &name).await;
            let_go::<Secret>(client, &name).await;
            let_go::<PersistentVolumeClaim>(client, &name).await;
            let_go::<ConfigMap>(client, &name).await;
            match namespaces.get_opt(&name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{:?}", other.map(|found| found.and_then(|it| it.status)))),
            }
        })
        .await;
    }
}

/// Takes our finalizers from what is being deleted. What a member has no kind for, it has none of.
async fn let_go<K>(client: &Client, namespace: &str)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let Ok(list) = api.list(&ListParams::default()).await else { return };
    for object in list.items.iter().filter(|object| object.meta().deletion_timestamp.is_some()) {
        let (held, others): (Vec<&String>, Vec<&String>) =
            object.finalizers().iter().partition(|finalizer| finalizer.starts_with(OURS));
        if held.is_empty() {
            continue;
        }
        let patch = Patch::Merge(json!({"metadata": {"finalizers": others}}));
        // It may be gone meanwhile; otherwise it is tried again.
        let _ = api.patch(&object.name_any(), &PatchParams::default(), &patch).await;
    }
}
