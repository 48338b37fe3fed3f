//! The network controller: forms the chain, stamps the nodes, publishes what they share.

pub mod addresses;
mod apply;
pub mod budgets;
pub mod credentials;
mod deletion;
pub mod disks;
mod inputs;
pub mod invalid;
mod joining;
pub mod members;
pub mod mirrors;
mod observe;
pub mod pods;
mod policies;
pub mod report;
pub mod steps;
pub mod validate;

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;

use super::context::Context;
use super::{Error, Refusal};
use crate::api::BsnNetwork;
use crate::api::conditions::Reason;
use crate::apply::read_status;
use crate::cluster::watches::GuardedNetwork;
use crate::view::NetworkKey;

/// A look without a cause, to notice what no watch shows: a lost Secret, a certificate that ends.
pub(super) const SLOW_LOOK: Duration = Duration::from_mins(10);

/// One pass over a network.
pub async fn reconcile(guarded: Arc<GuardedNetwork>, ctx: Arc<Context>) -> Result<Action, Error> {
    let key =
        NetworkKey { namespace: guarded.namespace().unwrap_or_default(), name: guarded.name_any() };
    let network = match &guarded.0 {
        Ok(network) => network,
        Err(invalid) => {
            let refusal = deletion::refuse_unparsable(&key, &invalid.metadata, &invalid.error);
            // What was said of its chain and its nodes stays; of the status at least, the form is known.
            let old = read_status::<BsnNetwork, _>(&ctx.client, &key.namespace, &key.name).await?;
            let (meta, message) = (&invalid.metadata, refusal.message.clone());
            match report::report_refusal(&ctx, &key, meta, old.as_ref(), refusal).await {
                // What breaks the schema's rules takes no status either.
                Err(Error::Api(error)) if error.code() == Some(422) => {
                    tracing::warn!(network = %key, %error, "no condition can be written: {message}");
                    let reason = Reason::Unparsable.as_str();
                    ctx.events.tell::<BsnNetwork>(meta, false, reason, "Read", message).await;
                    return Ok(Action::requeue(SLOW_LOOK));
                }
                told => told?,
            }
            return Ok(Action::await_change());
        }
    };
    if network.metadata.deletion_timestamp.is_some() {
        ctx.targets.remove(&key);
        ctx.credentials.remove(&key);
        ctx.memories.remove(&key);
        ctx.memberships.remove(&key);
        ctx.errands.remove(&key);
        ctx.budgets.remove(&key);
        ctx.machines.forget(&key);
        ctx.slots.release(&key);
        return deletion::end_network(&ctx, &key, network).await;
    }
    let status = network.status.as_ref();
    let validated = match validate::validate_network(network, &ctx.settings.image_prefix) {
        Ok(validated) => validated,
        Err(invalid) => {
            let refusal = Refusal::new(Reason::InvalidSpec, invalid.to_string());
            report::report_refusal(&ctx, &key, &network.metadata, status, refusal).await?;
            return Ok(Action::await_change());
        }
    };
    let observed = match observe::observe_network(&ctx, &key, network, &validated).await? {
        Ok(observed) => observed,
        Err(refusal) => {
            report::report_refusal(&ctx, &key, &network.metadata, status, refusal).await?;
            // No watch shows that a stranger's object goes, or that an anchor comes back without its labels.
            return Ok(Action::requeue(report::TROUBLED_LOOK));
        }
    };
    let applied = if validated.paused {
        apply::look_at_network(&ctx, &key, network, &validated, &observed).await?
    } else {
        apply::apply_network(&ctx, &key, network, &validated, &observed).await?
    };
    let wake = report::report_network(&ctx, &key, network, &validated, &observed, &applied).await?;
    Ok(Action::requeue(wake.min(SLOW_LOOK)))
}
