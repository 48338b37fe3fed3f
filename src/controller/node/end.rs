//! The end of a node in a member cluster. On the hub its description owns its workload, and the garbage collector
//! takes that away; what is in a member cluster nobody owns, so it is taken away here, before the description goes.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use bsn_core::names::{NetworkName, NodeName};

use crate::api::{BsnNetwork, BsnNode};
use crate::apply::{Object, delete, read};
use crate::cluster::registry::Place;
use crate::cluster::watches::{cached, nodes_of};
use crate::controller::context::Context;
use crate::controller::network::mirrors::delete_mirrors;
use crate::controller::{Error, Refusal, Step};
use crate::labels;
use crate::view::NetworkKey;

/// Takes away a node's workload in its member cluster. Keys, disk and what it ran stay, as on the hub. Refused as
/// long as that cluster cannot be used, unless a person said that it is lost.
pub async fn end_in_member(ctx: &Context, key: &NetworkKey, node: &BsnNode) -> Step<()> {
    let Some(cluster) = &node.spec.cluster else { return Ok(Ok(())) };
    let place = match ctx.clusters.place(cluster, &key.namespace) {
        Ok(place) => place,
        Err(_) if is_forgotten(ctx, key, node, cluster) => {
            leave_behind(ctx, key, node, cluster).await;
            return Ok(Ok(()));
        }
        Err(absent) => {
            let refusal = Refusal::from(absent);
            let message = format!(
                "its StatefulSet and Service are still in cluster {cluster}, and go when that can be used again. {}. If the \
                 cluster is lost for good: kubectl annotate bsnnode -n {} {} {}={cluster}",
                refusal.message,
                key.namespace,
                node.name_any(),
                labels::FORGET_CLUSTER
            );
            return Ok(Err(Refusal::new(refusal.reason, message)));
        }
    };
    let name = NodeName::from_object(&node.name_any());
    let marks = [labels::NETWORK_ID, labels::IDENTITY_ID];
    // The pod first: while it runs, it is to be reached.
    take_away::<StatefulSet>(&place, node, name.as_str(), &marks).await?;
    take_away::<Service>(&place, node, name.as_str(), &marks).await?;
    take_away::<ConfigMap>(&place, node, &name.certificate(), &marks).await?;
    take_away::<Secret>(&place, node, &name.first_start(), &marks).await?;
    // Those that end at the same time see each other end; who was told last takes the rest.
    let stays = |other: &BsnNode| {
        other.spec.cluster.as_ref() == Some(cluster) && other.metadata.deletion_timestamp.is_none()
    };
    if !nodes_of(&ctx.caches, &key.namespace, &key.name).iter().any(stays)
        && let Ok(network) = NetworkName::parse(&key.name)
    {
        // The network's last nodes there.
        let marks = [labels::NETWORK_ID];
        take_away::<ConfigMap>(&place, node, &network.peers(), &marks).await?;
        take_away::<PodDisruptionBudget>(&place, node, &network.disruption_budget(), &marks)
            .await?;
        match take_away::<NetworkPolicy>(&place, node, &network.network_policy(), &marks).await {
            // Who has no right to them has made none; and a policy without pods harms nobody.
            Err(Error::Api(error)) if error.code() == Some(403) => {}
            taken => taken?,
        }
        if let Some(id) = node.labels().get(labels::NETWORK_ID) {
            delete_mirrors(&place, &key.namespace, id, |_, _| false).await?;
        }
    }
    Ok(Ok(()))
}

/// Deletes an object, if it has these marks of the node's description.
async fn take_away<K: Object>(
    place: &Place,
    node: &BsnNode,
    name: &str,
    marks: &[&str],
) -> Result<(), Error> {
    let namespace = node.namespace().unwrap_or_default();
    let Some(object) = read::<K>(&place.client, &namespace, name).await? else { return Ok(()) };
    let ours = marks.iter().all(|mark| {
        let expected = node.labels().get(*mark);
        expected.is_some() && object.labels().get(*mark) == expected
    });
    if !ours || object.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    Ok(delete(&place.client, &object).await?)
}

/// Clusters that an object's annotation names as lost for good.
pub(in crate::controller) fn forgotten(object: &ObjectMeta) -> BTreeSet<String> {
    let annotations = object.annotations.as_ref();
    let named = annotations.and_then(|annotations| annotations.get(labels::FORGET_CLUSTER));
    let named = named.into_iter().flat_map(|named| named.split(','));
    named.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

/// A person said of the node, or of its network, that the cluster is lost for good.
fn is_forgotten(ctx: &Context, key: &NetworkKey, node: &BsnNode, cluster: &str) -> bool {
    let network = cached(&ctx.caches.networks, &key.namespace, &key.name);
    let network = network.as_ref().and_then(|guarded| guarded.0.as_ref().ok());
    forgotten(&node.metadata).contains(cluster)
        || network
            .is_some_and(|network: &BsnNetwork| forgotten(&network.metadata).contains(cluster))
}

/// Says what nobody looks after any more.
async fn leave_behind(ctx: &Context, key: &NetworkKey, node: &BsnNode, cluster: &str) {
    let name = node.name_any();
    let note = format!(
        "cluster {cluster} is not waited for any more. If it still exists, StatefulSet {name} runs on there in namespace {}, \
         with its Service, keys and disk: kubectl delete statefulset,service,configmap -l {}={name}",
        key.namespace,
        labels::NODE
    );
    tracing::warn!(network = %key, node = %name, %cluster, "forgotten");
    ctx.events.tell::<BsnNode>(&node.metadata, false, "ClusterForgotten", "End", note).await;
}
