//! All reads of a network's pass.

use std::collections::BTreeSet;

use bsn_core::anchor::Anchor;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;

use super::validate::ValidatedNetwork;
use crate::anchor::{Expected, copy_of, is_strangers};
use crate::api::BsnNetwork;
use crate::api::conditions::Reason;
use crate::apply::name_taken;
use crate::cluster::registry::HUB;
use crate::controller::context::Context;
use crate::controller::copies::{self, Ahead, Members};
use crate::controller::node::end::forgotten;
use crate::controller::{Refusal, Step, refused};
use crate::labels;
use crate::view::NetworkKey;

/// What was found.
pub struct ObservedNetwork {
    /// The anchor; `None` = a network that never was.
    pub anchor: Option<Anchor>,
    /// The `ConfigMap` it was read from.
    pub map: Option<ConfigMap>,
    /// What an anchor of this network must agree with.
    pub expected: Expected,
    /// Its member clusters.
    pub members: Members,
    /// A copy beside its nodes knows more than the anchor.
    pub ahead: Option<Ahead>,
}

/// Reads the anchor, and makes sure that a missing one means a network that never was.
pub async fn observe_network(
    ctx: &Context,
    key: &NetworkKey,
    network: &BsnNetwork,
    validated: &ValidatedNetwork,
) -> Step<ObservedNetwork> {
    let expected =
        Expected { hub_id: ctx.hub_id.clone(), chain_id: validated.desired.chain_id.clone() };
    let name = validated.desired.name.anchor();
    let map = ctx.anchors.current(&ctx.client, &ctx.caches.objects.config_maps, key, &name).await?;
    // Of a network that was here before the anchor is asked for, whatever lies in its place.
    if let Some(map) = map.as_ref().filter(|map| is_strangers(map))
        && trace_of_earlier_life(ctx, key, network).is_none()
    {
        return refused(Err(name_taken::<ConfigMap>(map)));
    }
    let own = or_refuse!(map.as_ref().map(copy_of).transpose().map_err(Refusal::from));
    let members = find_members(ctx, key, validated, own.as_ref(), &forgotten(&network.metadata));
    let ahead =
        or_refuse!(copies::find_ahead(ctx, key, &members, map.as_ref(), &name, &expected).await?);
    let anchor = match own {
        // What can be done about it is said together with what the copies hold.
        Some(own) if ahead.is_some() && own.hub_id != expected.hub_id => Some(own),
        Some(own) => {
            let own = own.check(&expected.hub_id, &expected.chain_id);
            Some(or_refuse!(own.map_err(Refusal::from)))
        }
        None if ahead.is_some() => None,
        None => {
            if let Some(trace) = trace_of_earlier_life(ctx, key, network) {
                let message = format!(
                    "the anchor {}/{name} is missing, but this network was here before ({trace}); restore the \
                     ConfigMap from a backup: it says which keys and disks are whose",
                    key.namespace
                );
                return Ok(Err(Refusal::new(Reason::AnchorRefused, message)));
            }
            // A cluster that is not asked may know this network: then it is not made a second time.
            if let Some(absent) = members.values().find_map(|place| place.as_ref().err()) {
                return Ok(Err(absent.clone().into()));
            }
            None
        }
    };
    Ok(Ok(ObservedNetwork { anchor, map, expected, members, ahead }))
}

/// The member clusters that are described, and those in which there are nodes, or were.
fn find_members(
    ctx: &Context,
    key: &NetworkKey,
    validated: &ValidatedNetwork,
    anchor: Option<&Anchor>,
    forgotten: &BTreeSet<String>,
) -> Members {
    let described = validated.desired.sets.iter().map(|set| set.cluster.clone());
    let recorded = anchor.into_iter().flat_map(Anchor::clusters).map(str::to_owned);
    let wanted = |cluster: &String| cluster != HUB && !forgotten.contains(cluster);
    let members = described.chain(recorded).filter(wanted);
    members
        .map(|cluster| {
            let place = ctx.clusters.place(&cluster, &key.namespace);
            (cluster, place)
        })
        .collect()
}

/// A sign that a network of this name was formed once, if there is one.
fn trace_of_earlier_life(ctx: &Context, key: &NetworkKey, network: &BsnNetwork) -> Option<String> {
    if let Some(id) = network.status.as_ref().and_then(|status| status.network_id.as_ref()) {
        return Some(format!("its status names network id {id}"));
    }
    ctx.caches
        .objects
        .disks
        .find(|disk| {
            disk.namespace().as_deref() == Some(&key.namespace)
                && disk.labels().get(labels::NETWORK) == Some(&key.name)
        })
        .map(|disk| format!("the disk {} is marked as its own", disk.name_any()))
}
