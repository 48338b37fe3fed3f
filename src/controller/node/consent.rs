//! A person's consent that a node whose disk is gone for good starts on an empty one.

use bsn_core::brought::AHEAD;
use bsn_core::consent::{CONSENT_ANNOTATION, Consent};
use bsn_core::engine::cometbft::signing::SignedAt;
use bsn_core::first_start::Issued;
use bsn_core::forming::IdSource as _;

use super::apply::Pass;
use crate::api::conditions::Reason;
use crate::build::NodeParts;
use crate::controller::context::RandomIds;
use crate::controller::{Refusal, Step};
use crate::view::Liveness;

impl Pass<'_> {
    /// Takes the consent for the empty disk `disk_uid`, or refuses with `lost` and the way to consent.
    ///
    /// What the key signed on the lost disk is not known. So the new signing state lies beyond the chain's
    /// head, and a chain that stands still has no head to rely on: then even a consent is refused.
    pub(super) async fn take_consent(
        &self,
        parts: &NodeParts<'_>,
        disk_uid: &str,
        lost: &str,
    ) -> Step<()> {
        let identity = parts.identity;
        let consent = Consent::StartWithEmptyDisk {
            identity_id: identity.id.clone(),
            disk_uid: disk_uid.to_owned(),
        };
        let refuse = |message: String| Ok(Err(Refusal::new(Reason::DiskLost, message)));
        if identity.used_consents.contains(&consent.to_string()) {
            let claim = parts.name.disk();
            return refuse(format!(
                "{lost}. The consent for this claim was used once and is not used again: if the volume is gone for \
                 good, delete the claim and make an empty one named {claim}; it gets a consent of its own"
            ));
        }
        if !consent.given(self.validated.consent.as_deref(), &identity.used_consents) {
            let (namespace, network) = (&self.key.namespace, &self.key.name);
            return refuse(format!(
                "{lost}. If that volume is gone for good: kubectl annotate bsnnetwork -n {namespace} {network} \
                 {CONSENT_ANNOTATION}={consent}"
            ));
        }
        let view = self.ctx.views.get(self.key);
        let Some(view) = view.filter(|view| view.liveness == Liveness::Live && view.head > 0)
        else {
            return refuse(format!(
                "{lost}. The consent is given and not used yet: the chain must make blocks, so that it is known \
                 beyond which height this key has signed nothing"
            ));
        };
        let signing_state = SignedAt::past(view.head + AHEAD);
        let nonce = RandomIds::draw()?.next_id();
        tracing::warn!(node = %self.name, %consent, %signing_state, "consent taken");
        let recorded = self
            .update(|anchor| {
                let Some(identity) = anchor.identities.get_mut(self.name.as_str()) else { return };
                let used = consent.to_string();
                // Another pass was first.
                if identity.used_consents.contains(&used) {
                    return;
                }
                identity.used_consents.push(used);
                identity.uids.disk = Some(disk_uid.to_owned());
                let issued = Issued { nonce: &nonce, disk_uid, signing_state };
                identity.first_start.issue_again(issued);
            })
            .await?;
        Ok(recorded.map(|_| ()))
    }
}
