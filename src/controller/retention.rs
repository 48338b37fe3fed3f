//! Lets go what a person released: takes the finalizers from keys, disks and, last, the CA and the anchor.
//!
//! It looks at anchors, not at networks, since most of what it does concerns networks that are gone.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bsn_core::anchor::{ANCHOR_KEY, Anchor};
use bsn_core::names::{NetworkName, NodeName};
use bsn_core::retention::{KEEP_FINALIZER, RELEASE_ANNOTATION, plan_release};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt};

use super::Error;
use super::context::Context;
use super::node::end::forgotten;
use crate::anchor::copy_of;
use crate::api::BsnNetwork;
use crate::apply::{ApiError, drop_finalizer, is_ours, read};
use crate::cluster::registry::HUB;
use crate::labels;

/// Time between two looks at the anchors in the cache. Without an annotation a look costs no request.
const INTERVAL: Duration = Duration::from_secs(5);

/// Looks for releases until the process ends.
pub async fn run(ctx: Arc<Context>) {
    // What was done or said already; anchors by uid, so that a new one of the same name begins anew.
    let mut settled = HashSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let annotated = ctx.caches.objects.config_maps.state_filter(|map| {
            map.annotations().contains_key(RELEASE_ANNOTATION)
                && map.data.as_ref().is_some_and(|data| data.contains_key(ANCHOR_KEY))
        });
        for map in annotated {
            if let Err(error) = release(&ctx, &map, &mut settled).await {
                tracing::warn!(anchor = %map.name_any(), %error, "not released yet; tried again");
            }
        }
    }
}

async fn release(
    ctx: &Context,
    map: &ConfigMap,
    settled: &mut HashSet<(String, String)>,
) -> Result<(), Error> {
    let namespace = map.namespace().unwrap_or_default();
    let uid = map.uid().unwrap_or_default();
    let text = map.data.as_ref().and_then(|data| data.get(ANCHOR_KEY));
    let anchor: Anchor = match text.map(|text| serde_json::from_str(text)) {
        Some(Ok(anchor)) => anchor,
        // Damaged anchors are the network controller's to report; nothing is let go on their word.
        _ => return Ok(()),
    };
    let network = map.labels().get(labels::NETWORK).cloned().unwrap_or_default();
    if anchor.hub_id != ctx.hub_id || network.is_empty() {
        return Ok(());
    }
    let annotation = map.annotations().get(RELEASE_ANNOTATION).cloned().unwrap_or_default();
    let asked = (uid.clone(), annotation.clone());
    if settled.contains(&asked) {
        return Ok(());
    }
    // Live, just before: what is let go does not come back.
    // One that does not parse is there, too.
    let found = read::<PartialObjectMeta<BsnNetwork>>(&ctx.client, &namespace, &network).await?;
    let exists = found.is_some();
    let plan = plan_release(&anchor, &annotation, exists);
    for node in &plan.nodes {
        let done = (uid.clone(), node.to_string());
        if settled.contains(&done) {
            continue;
        }
        let Some(identity) = anchor.identity(node) else { continue };
        if forgotten(&map.metadata).contains(&identity.cluster) {
            continue;
        }
        let place = ctx.place_of(identity, &namespace)?;
        release_node(&place.client, &namespace, node, &anchor.network_id).await?;
        let note = format!("the keys and the disk of {node} go when they are deleted");
        tell(ctx, map, true, note).await;
        settled.insert(done);
    }
    if plan.anchor {
        release_authority(ctx, &namespace, &network, &anchor.network_id).await?;
        release_copies(ctx, map, &anchor).await?;
        tell(ctx, map, true, "this anchor goes when it is deleted".to_owned()).await;
        drop_finalizer(&ctx.client, map, KEEP_FINALIZER).await?;
    }
    for why in &plan.refused {
        if settled.insert((uid.clone(), why.clone())) {
            tracing::warn!(%namespace, %network, "{why}");
            tell(ctx, map, false, why.clone()).await;
        }
    }
    // A refused part may be granted later, when the network is gone.
    if plan.refused.is_empty() {
        settled.insert(asked);
    }
    Ok(())
}

/// Nothing is issued by it any more.
async fn release_authority(
    ctx: &Context,
    namespace: &str,
    network: &str,
    network_id: &str,
) -> Result<(), Error> {
    let Ok(network) = NetworkName::parse(network) else { return Ok(()) };
    if let Some(secret) = read::<Secret>(&ctx.client, namespace, &network.ca()).await?
        && is_ours(&secret, None, network_id)
    {
        drop_finalizer(&ctx.client, &secret, KEEP_FINALIZER).await?;
    }
    Ok(())
}

/// Its copies beside nodes go with it.
async fn release_copies(ctx: &Context, map: &ConfigMap, anchor: &Anchor) -> Result<(), Error> {
    let namespace = map.namespace().unwrap_or_default();
    let clusters: BTreeSet<&String> =
        anchor.identities.values().map(|identity| &identity.cluster).collect();
    let forgotten = forgotten(&map.metadata);
    for cluster in clusters {
        if cluster == HUB || forgotten.contains(cluster) {
            continue;
        }
        let place = ctx.clusters.place(cluster, &namespace)?;
        if let Some(copy) = read::<ConfigMap>(&place.client, &namespace, &map.name_any()).await?
            && copy_of(&copy).is_ok_and(|copy| copy.network_id == anchor.network_id)
        {
            drop_finalizer(&place.client, &copy, KEEP_FINALIZER).await?;
        }
    }
    Ok(())
}

/// Tells on the anchor, where the release was asked for, what became of it.
async fn tell(ctx: &Context, anchor: &ConfigMap, granted: bool, note: String) {
    let reason = if granted { "Released" } else { "ReleaseRefused" };
    ctx.events.tell::<ConfigMap>(&anchor.metadata, granted, reason, "Release", note).await;
}

/// The key first: without it the disk is only history.
async fn release_node(
    client: &Client,
    namespace: &str,
    node: &NodeName,
    network_id: &str,
) -> Result<(), ApiError> {
    tracing::warn!(namespace, %node, network_id, "releasing its keys and its disk");
    if let Some(keys) = read::<Secret>(client, namespace, &node.keys()).await? {
        drop_finalizer(client, &keys, KEEP_FINALIZER).await?;
    }
    if let Some(disk) = read::<PersistentVolumeClaim>(client, namespace, &node.disk()).await? {
        drop_finalizer(client, &disk, KEEP_FINALIZER).await?;
    }
    Ok(())
}
