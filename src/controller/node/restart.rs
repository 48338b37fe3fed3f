//! The effects of a node's restart: what is described is put in force, then the pod that runs is ended. Decided by
//! the network's controller, which alone knows what else goes on.

use bsn_core::anchor::Anchor;
use bsn_core::names::NodeName;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::{Resource, ResourceExt};

use super::apply::Pass;
use crate::anchor::Expected;
use crate::apply::{ensure, read};
use crate::build::stateful_set::{build_stateful_set, template_hash_of};
use crate::build::{NetworkParts, NodeParts};
use crate::cluster::watches::cached;
use crate::controller::context::Context;
use crate::controller::network::validate::ValidatedNetwork;
use crate::controller::{Step, refused};
use crate::view::NetworkKey;

/// What a restart needs.
pub struct Restarting<'a> {
    /// What every pass may use.
    pub ctx: &'a Context,
    /// The network.
    pub key: &'a NetworkKey,
    /// What is described.
    pub validated: &'a ValidatedNetwork,
    /// What its anchor must agree with.
    pub expected: &'a Expected,
    /// Its anchor, as it is now.
    pub anchor: &'a Anchor,
}

macro_rules! or_refuse {
    ($step:expr) => {
        match $step {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

/// Restarts a node. Whatever was done of it before is not done again. `old_pod` is ended in any case; another
/// only if it does not run the template in force.
pub async fn restart_node(
    restarting: &Restarting<'_>,
    name: &NodeName,
    old_pod: Option<&str>,
) -> Step<()> {
    let Restarting { ctx, key, validated, expected, anchor } = *restarting;
    // The node's own pass must not put back what is changed here.
    let _turn = ctx.node_turns.take((key.namespace.clone(), name.to_string())).await;
    let object = cached(&ctx.caches.nodes, &key.namespace, name.as_str());
    let Some(Ok(node)) = object.as_ref().map(|guarded| guarded.0.as_ref()) else {
        // Stamped again by the network's next pass.
        return Ok(Ok(()));
    };
    let Some(identity) = anchor.identity(name) else { return Ok(Ok(())) };
    let Some(keys) = &identity.keys else { return Ok(Ok(())) };
    let pass = Pass { ctx, key, node, name, validated, expected };
    let Some(pod) = pass.pod_identity(anchor, keys) else { return Ok(Ok(())) };
    let owner = node.controller_owner_ref(&());
    let parts = NodeParts {
        network: NetworkParts::new(&key.namespace, &validated.desired.name, anchor, None),
        name,
        identity,
        owner: owner.as_ref(),
    };
    let wanted = validated.inputs_hash(&identity.set);
    let template = if identity.inputs_hash.as_ref() == Some(&wanted) {
        or_refuse!(pass.template_in_force(&parts, identity, &pod, anchor).await?)
    } else {
        let template = or_refuse!(pass.build_new_template(&parts, identity, &pod, anchor).await?);
        or_refuse!(pass.put_in_force(&parts, template, Some(&wanted)).await?).0
    };
    let set = build_stateful_set(&parts, template);
    let known = pass.known_set().await?;
    let made = ensure(&ctx.client, known.as_ref(), set, None, parts.network.network_id).await;
    let (set, _) = or_refuse!(refused(made)?);
    let in_force = set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let in_force = template_hash_of(in_force.and_then(|meta| meta.annotations.as_ref()));
    let running = read::<Pod>(&ctx.client, &key.namespace, &format!("{name}-0")).await?;
    let Some(running) = running.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
        return Ok(Ok(()));
    };
    let is_old = old_pod.is_some() && running.uid().as_deref() == old_pod;
    if is_old || template_hash_of(running.metadata.annotations.as_ref()) != in_force {
        tracing::info!(node = %name, pod = running.uid(), "ending its pod");
        let api = Api::<Pod>::namespaced(ctx.client.clone(), &key.namespace);
        pass.delete(&api, running.uid(), &running.name_any()).await?;
    }
    Ok(Ok(()))
}
