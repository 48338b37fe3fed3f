//! Before anything depends on the agents' image where a node is: that it can be run there.

use bsn_core::anchor::{Identity, ObjectUids};
use bsn_core::names::NodeName;

use super::apply::Pass;
use crate::api::conditions::Reason;
use crate::build::stateful_set::runs_agents;
use crate::cluster::Proofs;
use crate::cluster::registry::Place;
use crate::cluster::watches::cached;
use crate::controller::Refusal;

/// Why a template with the agents' image of now may not be put in force for a node, and what to do; `None` = it may.
/// The image of the template in force needs no proof: the node may well run from it while nobody could pull it anew.
pub fn obstacle(
    proofs: &Proofs,
    place: &Place,
    namespace: &str,
    name: &NodeName,
) -> Option<(Reason, String)> {
    let set = cached(&place.objects.stateful_sets, namespace, name.as_str());
    let template = set.as_ref().and_then(|set| set.spec.as_ref()?.template.spec.as_ref());
    if template.is_some_and(|template| runs_agents(template, &place.agent_image)) {
        return None;
    }
    let proof = proofs.ask(place, namespace);
    proof.obstacle(&place.cluster, namespace, &place.agent_image)
}

impl Pass<'_> {
    /// Nothing of a node is made where its agents cannot run: its key would wait there for nothing.
    pub(super) fn check_image_before_first_object(
        &self,
        identity: &Identity,
    ) -> Result<(), Refusal> {
        let made = identity.keys.is_some() || identity.uids != ObjectUids::default();
        if made { Ok(()) } else { self.check_image() }
    }

    /// Before a template with the agents' image of now is put in force.
    pub(super) fn check_image(&self) -> Result<(), Refusal> {
        match obstacle(&self.ctx.proofs, self.place, &self.key.namespace, self.name) {
            None => Ok(()),
            Some((reason, message)) => Err(Refusal::new(reason, message)),
        }
    }
}
