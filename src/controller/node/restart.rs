//! The effects of a node's restart: what is described is put in force, then the pod that runs is ended. Decided by
//! the network's controller, which alone knows what else goes on.

use bsn_core::anchor::{Anchor, Identity};
use bsn_core::guard::PodIdentity;
use bsn_core::names::NodeName;
use bsn_core::steps::switched_before;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::ResourceExt;

use super::apply::Pass;
use super::workload::Puts;
use crate::anchor::Expected;
use crate::api::conditions::Reason;
use crate::apply::{delete, ensure, read};
use crate::build::application::{put_app_of, put_halt};
use crate::build::stateful_set::{build_stateful_set, template_hash_of};
use crate::build::{NetworkParts, NodeParts};
use crate::cluster::watches::cached;
use crate::controller::context::Context;
use crate::controller::network::validate::ValidatedNetwork;
use crate::controller::{Refusal, Step, refused};
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

/// What a node runs after its restart.
#[derive(Debug, Clone, Copy)]
pub enum How {
    /// What is described, but for an application that may come at one height only: there it keeps the one it has, and
    /// halts only if the switch at this height is under way.
    AsDescribed {
        /// Height of that switch.
        halting: Option<u64>,
    },
    /// What it runs, and halts after this block.
    Halts(u64),
    /// The new application of the switch at this height.
    Switched {
        /// Height of that switch.
        height: u64,
        /// As described now, though others were given another one.
        anew: bool,
    },
}

/// Restarts a node. Whatever was done of it before is not done again. `old_pod` is ended in any case; another
/// only if it does not run the template in force.
pub async fn restart_node(
    restarting: &Restarting<'_>,
    name: &NodeName,
    old_pod: Option<&str>,
    how: How,
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
    let place = &match ctx.place_of(identity, &key.namespace) {
        Ok(place) => place,
        Err(absent) => return Ok(Err(absent.into())),
    };
    let pass = Pass { ctx, place, key, node, name, validated, expected };
    let Some(pod) = pass.pod_identity(anchor, keys) else { return Ok(Ok(())) };
    let owner = place.owner(node);
    let parts = NodeParts {
        network: NetworkParts::new(&key.namespace, &validated.desired.name, anchor, None),
        name,
        identity,
        owner: owner.as_ref(),
    };
    let template = or_refuse!(pass.put_wanted(&parts, identity, &pod, anchor, how).await?);
    let set = build_stateful_set(&parts, template);
    let known = pass.known_set().await?;
    let made = ensure(&place.client, known.as_ref(), set, None, parts.network.network_id).await;
    let (set, _) = or_refuse!(refused(made)?);
    let in_force = set.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let in_force = template_hash_of(in_force.and_then(|meta| meta.annotations.as_ref()));
    let running = read::<Pod>(&place.client, &key.namespace, &format!("{name}-0")).await?;
    let Some(running) = running.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
        return Ok(Ok(()));
    };
    let is_old = old_pod.is_some() && running.uid().as_deref() == old_pod;
    if is_old || template_hash_of(running.metadata.annotations.as_ref()) != in_force {
        tracing::info!(node = %name, pod = running.uid(), "ending its pod");
        delete(&place.client, &running).await?;
    }
    Ok(Ok(()))
}

impl Pass<'_> {
    /// Puts in force what a node is to run; gives that.
    async fn put_wanted(
        &self,
        parts: &NodeParts<'_>,
        identity: &Identity,
        pod: &PodIdentity,
        anchor: &Anchor,
        how: How,
    ) -> Step<PodTemplateSpec> {
        let validated = self.validated;
        let described =
            identity.inputs_hash.as_ref() == Some(&validated.inputs_hash(&identity.set));
        let halts = identity.halts_at.is_some();
        let in_force = self.template_in_force(parts, identity, pod, anchor);
        let (template, puts) = match how {
            How::AsDescribed { halting } => {
                let switches = validated.switches();
                let keeps = switches.is_some() && identity.app_hash != switches;
                // Told to halt by a switch that was given up.
                let stale = halts && identity.halts_at != halting;
                if !stale && (halts || keeps || described) {
                    return in_force.await;
                }
                if keeps {
                    let mut template = or_refuse!(in_force.await?);
                    put_halt(&mut template, None);
                    (template, Puts::Halts(None))
                } else {
                    or_refuse!(self.check_image());
                    let template = self.build_new_template(parts, identity, pod, anchor).await?;
                    (or_refuse!(template), Puts::Described)
                }
            }
            How::Halts(height) if identity.halts_at == Some(height) => return in_force.await,
            How::Halts(height) => {
                let Some(at_height) = &validated.at_height else {
                    let message = "spec.upgrade.strategy is not AtHeight any more; put it back until the switch has ended";
                    return Ok(Err(Refusal::new(Reason::StepRefused, message.to_owned())));
                };
                let mut template = or_refuse!(in_force.await?);
                put_halt(&mut template, Some((&at_height.halt_env, height)));
                (template, Puts::Halts(Some(height)))
            }
            How::Switched { height, anew } => {
                let before = switched_before(height, &anchor.identities, self.name);
                let other = before
                    .filter(|(_, other)| !anew && other.app_hash != validated.app_hash())
                    .and_then(|(name, other)| Some((name, other, other.app_hash.clone()?)));
                if let Some((other, taken_from, app)) = other {
                    if identity.app_hash.as_ref() == Some(&app)
                        && identity.switched_at == Some(height)
                    {
                        return in_force.await;
                    }
                    let mut template = or_refuse!(in_force.await?);
                    let place = match self.ctx.place_of(taken_from, &self.key.namespace) {
                        Ok(place) => place,
                        Err(absent) => return Ok(Err(absent.into())),
                    };
                    let set =
                        read::<StatefulSet>(&place.client, &self.key.namespace, other).await?;
                    let Some(spec) = set.and_then(|set| set.spec) else {
                        let message = format!(
                            "StatefulSet {other} is missing; the application is taken from it"
                        );
                        return Ok(Err(Refusal::new(Reason::TemplateLost, message)));
                    };
                    put_halt(&mut template, None);
                    put_app_of(&mut template, &spec.template);
                    (template, Puts::Switched(height, Some(app)))
                } else if described && !halts && identity.switched_at == Some(height) {
                    return in_force.await;
                } else {
                    or_refuse!(self.check_image());
                    let template = self.build_new_template(parts, identity, pod, anchor).await?;
                    (or_refuse!(template), Puts::Switched(height, None))
                }
            }
        };
        Ok(self.put_in_force(parts, template, puts).await?.map(|(template, _)| template))
    }
}
