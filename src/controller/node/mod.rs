//! The node controller: one node's keys, disk, Service, certificate and workload.

pub(super) mod apply;
pub(super) mod brought;
mod consent;
pub(super) mod end;
mod growth;
pub(super) mod image;
mod keys;
pub(super) mod pod;
pub(super) mod report;
pub mod restart;
mod token;
mod unparsable;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use bsn_core::names::NodeName;
use bsn_core::retention::NODE_FINALIZER;
use kube::core::{PartialObjectMeta, PartialObjectMetaExt};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::context::Context;
use super::network::validate::validate_network;
use super::{Error, Refusal, copies};
use crate::anchor::{Expected, parse_map};
use crate::api::conditions::Reason;
use crate::api::{BsnNetwork, BsnNode};
use crate::apply::{drop_finalizer, read};
use crate::cluster::watches::{GuardedNode, cached};
use crate::view::NetworkKey;

/// A look without a cause, to notice what no watch shows: a lost Secret.
const SLOW_LOOK: Duration = Duration::from_mins(10);

/// Before it is looked again whether a newer anchor is seen.
const OUTDATED_LOOK: Duration = Duration::from_secs(5);
/// Before it is looked again whether something is still being written beside a node that ends.
const ERRAND_LOOK: Duration = Duration::from_secs(1);

/// One pass over a node.
pub async fn reconcile(guarded: Arc<GuardedNode>, ctx: Arc<Context>) -> Result<Action, Error> {
    let namespace = guarded.namespace().unwrap_or_default();
    let node = match &guarded.0 {
        Ok(node) => node,
        Err(invalid) => return unparsable::look_at(&ctx, &guarded, &invalid.error).await,
    };
    let key = NetworkKey { namespace, name: node.spec.network_ref.name.clone() };
    if node.metadata.deletion_timestamp.is_some() && !stays_for_now(&ctx, &key, node).await? {
        return let_go(&ctx, &key, node).await;
    }
    let network = cached(&ctx.caches.networks, &key.namespace, &key.name);
    let Some(Ok(network)) = network.as_ref().map(|guarded| guarded.0.as_ref()) else {
        let message =
            format!("there is no valid BsnNetwork {}; this node is left as it is", key.name);
        let refusal = Refusal::new(Reason::NetworkMissing, message);
        report::report_refusal(&ctx, node, &refusal).await?;
        return Ok(Action::requeue(SLOW_LOOK));
    };
    // An invalid description is reported on the network; its nodes stay as they are.
    let Ok(validated) = validate_network(network, &ctx.settings.image_prefix) else {
        return Ok(Action::requeue(SLOW_LOOK));
    };
    let expected =
        Expected { hub_id: ctx.hub_id.clone(), chain_id: validated.desired.chain_id.clone() };
    let name = NodeName::from_object(&node.name_any());
    // Without an anchor, or with one that is refused, nothing may be done to a node; the network says
    // why, and the anchor's next change wakes this controller.
    // From here on, what is read of the anchor holds until the end of this pass: no restart comes between.
    let _turn = ctx.node_turns.take((key.namespace.clone(), name.to_string())).await;
    let anchor_name = validated.desired.name.anchor();
    let map = ctx
        .anchors
        .current(&ctx.client, &ctx.caches.objects.config_maps, &key, &anchor_name)
        .await?;
    let anchor = map.and_then(|map| parse_map(&map, &expected).ok());
    let Some(anchor) = anchor else {
        return Ok(Action::requeue(SLOW_LOOK));
    };
    if copies::is_outdated(&ctx, &key, &anchor_name, &anchor) {
        return Ok(Action::requeue(OUTDATED_LOOK));
    }
    let Some(identity) = anchor.identity(&name).filter(|identity| !identity.retired) else {
        // No ledger counts it any more: its end was a step of its network.
        if node.metadata.deletion_timestamp.is_some() {
            return let_go(&ctx, &key, node).await;
        }
        return Ok(Action::requeue(SLOW_LOOK));
    };
    let place = match ctx.place_of(identity, &key.namespace) {
        Ok(place) => place,
        // A cluster that cannot be used now changes nothing about what its nodes do.
        Err(absent) => {
            report::report_absent(&ctx, &key, node, &absent.into()).await?;
            return Ok(Action::requeue(SLOW_LOOK));
        }
    };
    let pass = apply::Pass {
        ctx: &ctx,
        place: &place,
        key: &key,
        node,
        name: &name,
        validated: &validated,
        expected: &expected,
    };
    let applied = if validated.paused {
        apply::Applied::untouched(anchor.clone())
    } else {
        pass.run(&anchor, identity).await?
    };
    let wake = report::report_node(&pass, &applied).await?;
    Ok(Action::requeue(wake.min(SLOW_LOOK)))
}

/// Lets a description go, once nothing is left that only it stands for.
async fn let_go(ctx: &Context, key: &NetworkKey, node: &BsnNode) -> Result<Action, Error> {
    if node.spec.cluster.as_ref().is_some_and(|cluster| ctx.is_written_in(key, cluster)) {
        // What is being written there would be left behind.
        return Ok(Action::requeue(ERRAND_LOOK));
    }
    if let Err(refusal) = end::end_in_member(ctx, key, node).await? {
        report::report_refusal(ctx, node, &refusal).await?;
        return Ok(Action::requeue(SLOW_LOOK));
    }
    // By its metadata: what the API server has may not parse.
    let object = node.metadata.clone().into_response_partial::<BsnNode>();
    drop_finalizer(&ctx.client, &object, NODE_FINALIZER).await?;
    Ok(Action::await_change())
}

/// Whether a node whose object was deleted runs on: its network exists, and replaces it first. Live, since
/// a network that goes takes its nodes with it, and must not be seen as one that loses them.
async fn stays_for_now(
    ctx: &Context,
    key: &NetworkKey,
    node: &impl Resource,
) -> Result<bool, Error> {
    // Whether it is there does not depend on whether it parses.
    let (namespace, name) = (&key.namespace, &key.name);
    let network = read::<PartialObjectMeta<BsnNetwork>>(&ctx.client, namespace, name).await?;
    let Some(network) = network.filter(|network| network.metadata.deletion_timestamp.is_none())
    else {
        return Ok(false);
    };
    // Of a network that was deleted and applied again, it is the old object's node: stamped anew.
    Ok(is_stamped_by(node, network.uid().as_deref()))
}

/// Whether a node's object was stamped by the network object of this uid.
pub fn is_stamped_by(node: &impl Resource, network_uid: Option<&str>) -> bool {
    let mut owners = node.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && Some(owner.uid.as_str()) == network_uid)
}
