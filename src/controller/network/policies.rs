//! A network's policy in each of its clusters: made, put back, and taken away again.
//!
//! It protects what works without it, so nothing waits for it: where it cannot be made that is told, and steps go on.

use bsn_core::anchor::Anchor;

use super::addresses::spans_clusters;
use crate::api::NodeAccess;
use crate::api::conditions::Reason;
use crate::apply::{delete, ensure, is_ours};
use crate::build::NetworkParts;
use crate::build::network_policy::{Admitted, build_network_policy};
use crate::cluster::registry::Place;
use crate::cluster::watches::cached;
use crate::controller::{Refusal, Step, refused};

/// Makes the policy so in a place, or takes it away where none is wanted or no node of the network is.
/// `operator` = the operator's namespace on the hub.
pub(super) async fn ensure_policy(
    place: &Place,
    network: &NetworkParts<'_>,
    anchor: &Anchor,
    access: &NodeAccess,
    operator: &str,
) -> Step<()> {
    // Not known: it is looked at again once it is, or there is no right to it. For the latter see `RightsSufficient`.
    let Some(policies) = place.objects.policies() else { return Ok(Ok(())) };
    let id = network.network_id;
    let known = cached(policies, network.namespace, &network.name.network_policy());
    let here = anchor.members().any(|(_, identity)| identity.cluster == place.cluster);
    let done = if access.enabled && here {
        let operator = place.is_hub().then_some(operator);
        let admitted = Admitted { access, operator, spans_clusters: spans_clusters(anchor) };
        let wish = build_network_policy(network, &admitted);
        ensure(&place.client, known.as_deref(), wish, None, id).await.map(|_| ())
    } else {
        let ours = known.filter(|policy| {
            is_ours(&**policy, None, id) && policy.metadata.deletion_timestamp.is_none()
        });
        match ours {
            Some(policy) => delete(&place.client, &*policy).await,
            None => Ok(()),
        }
    };
    match done {
        // What admission does not see of selectors and ranges, the API server says of the policy made from them.
        Err(error) if error.code() == Some(422) => {
            let message = format!(
                "the NetworkPolicy {} cannot be made of spec.networkPolicy; correct gatewayFrom or outsideAddresses: {}. \
                 The policy stays as it was meanwhile",
                network.name.network_policy(),
                error.answer()
            );
            Ok(Err(Refusal::new(Reason::InvalidSpec, message)))
        }
        Err(error) if error.code() == Some(403) => {
            tracing::warn!(cluster = %place.cluster, namespace = network.namespace, %error, "no policy is made");
            Ok(Ok(()))
        }
        done => refused(done),
    }
}

#[cfg(test)]
#[path = "policies_tests.rs"]
mod tests;
