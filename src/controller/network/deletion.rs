//! What a deletion policy names: disks and keys of nodes that were removed, and all that is left of a network.
//!
//! Nothing goes because something is missing: a network that is not there may be one that is not there yet, in a cluster
//! that comes from a backup. A finalizer keeps a network whose policy names something until that is deleted; so a policy is
//! followed only on the word of an object that still says it, read live just before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bsn_core::anchor::{Anchor, Identity};
use bsn_core::names::{NetworkName, NodeName};
use bsn_core::retention::{KEEP_FINALIZER, POLICY_FINALIZER};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PartialObjectMeta};
use kube::runtime::controller::Action;
use serde_json::json;

use super::apply::Pass;
use super::report::report_refusal;
use crate::anchor::{Expected, parse_map};
use crate::api::conditions::Reason;
use crate::api::{BsnNetwork, BsnNode, DeletionPolicy};
use crate::apply::{
    ApiError, Object, add_finalizer, bounded, delete, drop_finalizer, is_ours, read, write_status,
};
use crate::cluster::registry::{HUB, Place};
use crate::cluster::watches::cached;
use crate::controller::context::Context;
use crate::controller::node::end::forgotten;
use crate::controller::{Error, Refusal, Step};
use crate::labels;
use crate::view::NetworkKey;

/// Between two looks at a network that ends.
const LOOK: Duration = Duration::from_secs(2);
/// The same, if a person has to help.
const REFUSED_LOOK: Duration = Duration::from_secs(30);

/// Where the end of a network is.
enum End {
    /// Nothing is left that its policy names.
    Over,
    /// Something takes its time.
    Waits(&'static str),
}

/// A network does not go before what its policy names.
pub(super) async fn ensure_finalizer(
    ctx: &Context,
    network: &BsnNetwork,
    policy: DeletionPolicy,
) -> Result<(), ApiError> {
    if policy.names_something() {
        add_finalizer(&ctx.client, network, POLICY_FINALIZER).await
    } else {
        drop_finalizer(&ctx.client, network, POLICY_FINALIZER).await
    }
}

/// Deletes what the policy names of nodes that are gone for good. Their disks go last, so a disk that is still there says
/// that something is to be done.
pub(super) async fn delete_of_retired(pass: &Pass<'_>, anchor: &Anchor) -> Step<()> {
    let (ctx, namespace) = (pass.ctx, pass.key.namespace.as_str());
    let policy = pass.validated.deletion;
    if !policy.names_something() {
        return Ok(Ok(()));
    }
    let retired = anchor.identities.iter().filter(|(_, identity)| identity.retired);
    let left = retired.filter_map(|(name, identity)| {
        let (name, place) = (NodeName::from_object(name), ctx.place_of(identity, namespace).ok()?);
        cached(&place.objects.disks, namespace, &name.disk())?;
        Some((name, identity, place))
    });
    let left: Vec<_> = left.collect();
    if left.is_empty() {
        return Ok(Ok(()));
    }
    // Live, just before: what is deleted does not come back.
    let network = read::<BsnNetwork>(&ctx.client, namespace, &pass.key.name).await?;
    let says_so = network.is_some_and(|network| {
        network.metadata.uid == pass.meta.uid && network.spec.deletion_policy == policy
    });
    if !says_so {
        return Ok(Ok(()));
    }
    for (name, identity, place) in left {
        let pod = format!("{name}-0");
        if read::<StatefulSet>(&place.client, namespace, name.as_str()).await?.is_some()
            || read::<Pod>(&place.client, namespace, &pod).await?.is_some()
        {
            continue;
        }
        delete_of_node(&place, namespace, &anchor.network_id, &name, identity, policy).await?;
        let what = if policy.deletes_keys() { "the keys and the disk" } else { "the disk" };
        let note = format!("{what} of {name}, which was removed, are deleted: deletionPolicy");
        tracing::warn!(network = %pass.key, "{note}");
        ctx.events.tell::<BsnNetwork>(pass.meta, true, "DeletedByPolicy", "Delete", note).await;
    }
    Ok(Ok(()))
}

/// A look at a network that is being deleted.
pub(super) async fn end_network(
    ctx: &Context,
    key: &NetworkKey,
    network: &BsnNetwork,
) -> Result<Action, Error> {
    if !network.finalizers().iter().any(|finalizer| finalizer == POLICY_FINALIZER) {
        return Ok(Action::await_change());
    }
    match end(ctx, key, network).await? {
        Ok(End::Over) => {
            drop_finalizer(&ctx.client, network, POLICY_FINALIZER).await?;
            Ok(Action::await_change())
        }
        Ok(End::Waits(what)) => {
            tracing::info!(network = %key, "its end waits: {what}");
            Ok(Action::requeue(LOOK))
        }
        Err(refusal) => {
            let message = format!(
                "{}. Until then deletionPolicy is not followed to its end. {}",
                refusal.message,
                how_to_let_go(key)
            );
            let refusal = Refusal::new(refusal.reason, message);
            let status = network.status.as_ref();
            report_refusal(ctx, key, &network.metadata, status, refusal).await?;
            Ok(Action::requeue(REFUSED_LOOK))
        }
    }
}

/// Why nothing is done about a network that does not parse. One that is being deleted may be held by its policy, which is
/// not known then: what it does not name must not go.
pub(super) fn refuse_unparsable(key: &NetworkKey, meta: &ObjectMeta, error: &str) -> Refusal {
    let held = meta.finalizers.iter().flatten().any(|finalizer| finalizer == POLICY_FINALIZER);
    let what = if held && meta.deletion_timestamp.is_some() {
        let go = how_to_let_go(key);
        format!(
            "it is being deleted, and its deletionPolicy cannot be read: nothing is deleted, and its nodes run on. Correct \
             it, then it goes as the policy says. {go}"
        )
    } else {
        "correct it, its nodes run on".to_owned()
    };
    let message = format!("this object does not parse as v1alpha1: {error}; {what}");
    Refusal::new(Reason::Unparsable, message)
}

fn how_to_let_go(key: &NetworkKey) -> String {
    format!(
        "To let the network go, and what is left of it stay: kubectl patch bsnnetwork {} -n {} --type=merge -p \
         '{{\"metadata\":{{\"finalizers\":null}}}}'",
        key.name, key.namespace
    )
}

async fn end(ctx: &Context, key: &NetworkKey, network: &BsnNetwork) -> Step<End> {
    let Ok(name) = NetworkName::parse(&key.name) else { return Ok(Ok(End::Over)) };
    let namespace = key.namespace.as_str();
    // Live, just before: what is deleted does not come back, and the policy may say something else by now.
    let live = read::<BsnNetwork>(&ctx.client, namespace, &key.name).await?;
    let live = live.filter(|live| live.metadata.uid == network.metadata.uid);
    let Some(policy) = live.map(|live| live.spec.deletion_policy) else {
        return Ok(Ok(End::Over));
    };
    if !policy.names_something() {
        return Ok(Ok(End::Over));
    }
    let Some(map) = read::<ConfigMap>(&ctx.client, namespace, &name.anchor()).await? else {
        if network.status.as_ref().is_none_or(|status| status.network_id.is_none()) {
            // Nothing was made, or nothing is left: see below.
            return Ok(Ok(End::Over));
        }
        let message = format!(
            "the anchor {namespace}/{} is missing, which says what is this network's: restore the ConfigMap from a backup",
            name.anchor()
        );
        return Ok(Err(Refusal::new(Reason::AnchorRefused, message)));
    };
    let expected = Expected { hub_id: ctx.hub_id.clone(), chain_id: network.spec.chain_id.clone() };
    let anchor = or_refuse!(parse_map(&map, &expected).map_err(Refusal::from));
    // On the hub nothing ends before the network does, which waits for this.
    let nodes = left::<BsnNode>(&ctx.client, namespace, labels::NETWORK, &key.name).await?;
    for node in nodes.iter().filter(|node| node.metadata.deletion_timestamp.is_none()) {
        delete(&ctx.client, node).await?;
    }
    let places = or_refuse!(places(ctx, network, &map, &anchor));
    let id = anchor.network_id.as_str();
    if !nodes.is_empty() {
        return Ok(Ok(End::Waits("its nodes end")));
    }
    for place in places.values() {
        let workloads =
            left::<StatefulSet>(&place.client, namespace, labels::NETWORK_ID, id).await?;
        let pods = left::<Pod>(&place.client, namespace, labels::NETWORK_ID, id).await?;
        if !workloads.is_empty() || !pods.is_empty() {
            return Ok(Ok(End::Waits("pods end")));
        }
    }
    for (node, identity) in &anchor.identities {
        if let Some(place) = places.get(&identity.cluster) {
            let node = NodeName::from_object(node);
            delete_of_node(place, namespace, id, &node, identity, policy).await?;
        }
    }
    for place in places.values() {
        let disks =
            left::<PersistentVolumeClaim>(&place.client, namespace, labels::NETWORK_ID, id).await?;
        if !disks.is_empty() {
            return Ok(Ok(End::Waits("disks go")));
        }
    }
    if policy.deletes_keys() {
        return delete_rest(ctx, key, network, &name, &map, &anchor, &places).await;
    }
    Ok(Ok(End::Over))
}

/// Deletes what is left once no node has a key. The anchor is the last: until then it says what is whose.
async fn delete_rest(
    ctx: &Context,
    key: &NetworkKey,
    network: &BsnNetwork,
    name: &NetworkName,
    map: &ConfigMap,
    anchor: &Anchor,
    places: &BTreeMap<String, Place>,
) -> Step<End> {
    let (namespace, id) = (key.namespace.as_str(), anchor.network_id.as_str());
    let authority = anchor.ca.as_ref().map(|ca| ca.secret_uid.as_str());
    remove::<Secret>(&ctx.client, namespace, &name.ca(), authority, id).await?;
    for (cluster, place) in places {
        for left in left::<ConfigMap>(&place.client, namespace, labels::NETWORK_ID, id).await? {
            if cluster != HUB || left.name_any() != map.name_any() {
                drop_finalizer(&place.client, &left, KEEP_FINALIZER).await?;
                delete(&place.client, &left).await?;
            }
        }
    }
    // From here on a missing anchor means that nothing is left.
    let api = Api::namespaced(ctx.client.clone(), namespace);
    let known = json!({ "networkId": id });
    write_status::<BsnNetwork, _>(&api, &network.metadata, &known, &json!({})).await?;
    drop_finalizer(&ctx.client, map, KEEP_FINALIZER).await?;
    delete(&ctx.client, map).await?;
    ctx.anchors.note_written(key, None);
    tracing::warn!(network = %key, id, "all that was kept of it is deleted: deletionPolicy");
    Ok(Ok(End::Waits("the anchor goes")))
}

/// The clusters in which something of the network is, but for those a person said are lost.
fn places(
    ctx: &Context,
    network: &BsnNetwork,
    map: &ConfigMap,
    anchor: &Anchor,
) -> Result<BTreeMap<String, Place>, Refusal> {
    let namespace = map.namespace().unwrap_or_default();
    let lost: BTreeSet<String> =
        forgotten(&network.metadata).into_iter().chain(forgotten(&map.metadata)).collect();
    let clusters = anchor.identities.values().map(|identity| identity.cluster.clone());
    let clusters: BTreeSet<String> = clusters.chain([HUB.to_owned()]).collect();
    let place = |cluster: String| match ctx.clusters.place(&cluster, &namespace) {
        Ok(place) => Ok((cluster, place)),
        Err(absent) => {
            let refusal = Refusal::from(absent);
            let message = format!(
                "what deletionPolicy names in cluster {cluster} goes when that can be used again. {}. If the cluster is lost \
                 for good: kubectl annotate bsnnetwork -n {namespace} {} {}={cluster}",
                refusal.message,
                network.name_any(),
                labels::FORGET_CLUSTER
            );
            Err(Refusal::new(refusal.reason, message))
        }
    };
    clusters.into_iter().filter(|cluster| !lost.contains(cluster)).map(place).collect()
}

/// The key first: without it the disk is only history.
async fn delete_of_node(
    place: &Place,
    namespace: &str,
    network_id: &str,
    node: &NodeName,
    identity: &Identity,
    policy: DeletionPolicy,
) -> Result<(), ApiError> {
    if policy.deletes_keys() {
        let uid = identity.uids.keys.as_deref();
        remove::<Secret>(&place.client, namespace, &node.keys(), uid, network_id).await?;
    }
    let uid = identity.uids.disk.as_deref();
    remove::<PersistentVolumeClaim>(&place.client, namespace, &node.disk(), uid, network_id).await
}

/// Deletes an object that is this network's, whatever holds it on our behalf; a stranger of that name stays.
async fn remove<K: Object>(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    recorded_uid: Option<&str>,
    network_id: &str,
) -> Result<(), ApiError> {
    let Some(object) = read::<K>(client, namespace, name).await? else { return Ok(()) };
    if !is_ours(&object, recorded_uid, network_id) {
        tracing::warn!(kind = %K::kind(&()), namespace, name, "it is not this network's, and stays");
        return Ok(());
    }
    drop_finalizer(client, &object, KEEP_FINALIZER).await?;
    delete(client, &object).await
}

/// What is there with this label, live.
async fn left<K: Object>(
    client: &kube::Client,
    namespace: &str,
    label: &str,
    value: &str,
) -> Result<Vec<PartialObjectMeta<K>>, ApiError> {
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{label}={value}"));
    let what = || format!("list {} in {namespace}", K::plural(&()));
    Ok(bounded(what, api.list_metadata(&params)).await?.items)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn a_network_that_does_not_parse_is_deleted_only_once_its_policy_can_be_read() {
        let key = NetworkKey { namespace: "ledger".to_owned(), name: "city".to_owned() };
        let said = |meta: &ObjectMeta| refuse_unparsable(&key, meta, "invalid type").message;
        let held = ObjectMeta {
            finalizers: Some(vec![POLICY_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        };
        let stays =
            "this object does not parse as v1alpha1: invalid type; correct it, its nodes run on";
        assert_eq!(said(&held), stays);
        let going =
            ObjectMeta { deletion_timestamp: Some(Time(jiff::Timestamp::UNIX_EPOCH)), ..held };
        let message = said(&going);
        for words in ["nothing is deleted", "kubectl patch bsnnetwork city -n ledger"] {
            assert!(message.contains(words), "{message}");
        }
        // What others hold it for is theirs.
        let other = ObjectMeta { finalizers: Some(vec!["example.com/other".to_owned()]), ..going };
        assert_eq!(said(&other), stays);
    }
}
