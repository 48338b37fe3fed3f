//! The first-start token's Secret: published while it may be used, withdrawn when it was.

use bsn_core::anchor::{Anchor, IdentityKeys};
use bsn_core::brought::signing_state;
use bsn_core::first_start::{FirstStart, Issued, TokenStep};
use bsn_core::guard::{PodIdentity, Token};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use super::apply::Pass;
use crate::api::conditions::Reason;
use crate::apply::{delete, ensure_exists, is_ours_by, read};
use crate::build::NodeParts;
use crate::build::secret::build_token_secret;
use crate::controller::context::RandomIds;
use crate::controller::{Refusal, Step, refused};
use bsn_core::forming::IdSource as _;

impl Pass<'_> {
    /// Whom this node's pod runs for; `None` = not everything is known yet.
    pub(super) fn pod_identity(&self, anchor: &Anchor, keys: &IdentityKeys) -> Option<PodIdentity> {
        let identity = anchor.identity(self.name)?;
        Some(PodIdentity {
            network_id: anchor.network_id.clone(),
            identity_id: identity.id.clone(),
            consensus_key: keys.consensus.base64().to_owned(),
            genesis_hash: anchor.genesis_hash.clone()?,
            disk_uid: identity.uids.disk.clone()?,
        })
    }

    /// Takes the token's steps that can be taken now: until the node may start, or, once it did, until
    /// the token is gone.
    pub(super) async fn ensure_token(
        &self,
        parts: &NodeParts<'_>,
        mut anchor: Anchor,
        pod: &PodIdentity,
    ) -> Step<Anchor> {
        let view = self.ctx.views.get(self.key);
        let reported = view
            .as_ref()
            .and_then(|view| view.nodes.iter().find(|node| node.name == self.name.as_str()))
            .and_then(|node| node.guard.as_ref()?.nonce.as_deref());
        loop {
            let Some(identity) = anchor.identity(self.name) else { return Ok(Ok(anchor)) };
            let state = identity.first_start.clone();
            let step = state.next_step(reported);
            match step {
                TokenStep::Rest => return Ok(Ok(anchor)),
                TokenStep::Publish => {
                    if let Err(refusal) = self.publish_token(parts, &state, pod).await? {
                        return Ok(Err(refusal));
                    }
                    return Ok(Ok(anchor));
                }
                TokenStep::Withdraw => {
                    if let Err(refusal) = self.withdraw_token(parts).await? {
                        return Ok(Err(refusal));
                    }
                }
                TokenStep::Issue | TokenStep::RecordUse => {}
            }
            let nonce = RandomIds::draw()?.next_id();
            let issued = Issued {
                nonce: &nonce,
                disk_uid: &pod.disk_uid,
                signing_state: signing_state(
                    identity.brought.as_ref().map_or(0, |one| one.not_up_to),
                ),
            };
            let recorded = self
                .update(|stored| {
                    if let Some(identity) = stored.identities.get_mut(self.name.as_str()) {
                        identity.first_start.record(&step, issued);
                    }
                })
                .await?;
            anchor = match recorded {
                Ok(anchor) => anchor,
                Err(refusal) => return Ok(Err(refusal)),
            };
        }
    }

    async fn publish_token(
        &self,
        parts: &NodeParts<'_>,
        state: &FirstStart,
        pod: &PodIdentity,
    ) -> Step<()> {
        let FirstStart::Issued { nonce, disk_uid, signing_state } = state else {
            return Ok(Ok(()));
        };
        let token = Token {
            nonce: nonce.clone(),
            identity: PodIdentity { disk_uid: disk_uid.clone(), ..pod.clone() },
            signing_state: *signing_state,
        };
        let wish = build_token_secret(parts, &token);
        let (client, namespace, name) = (&self.place.client, &self.key.namespace, wish.name_any());
        if self.ctx.recent.holds(namespace, &name) {
            return Ok(Ok(()));
        }
        let found: Option<Secret> = read(client, namespace, &name).await?;
        let made =
            ensure_exists(client, found.as_ref(), wish, None, parts.network.network_id).await;
        Ok(refused(made)?.map(|_| self.ctx.recent.note(namespace, &name)))
    }

    async fn withdraw_token(&self, parts: &NodeParts<'_>) -> Step<()> {
        let name = self.name.first_start();
        let client = &self.place.client;
        let found: Option<Secret> = read(client, &self.key.namespace, &name).await?;
        let Some(secret) = found else { return Ok(Ok(())) };
        let marks = parts.owned(name.clone());
        if !is_ours_by(&secret, None, parts.network.network_id, &marks) {
            let message = format!("Secret {name} exists and is not this network's; delete it");
            return Ok(Err(Refusal::new(Reason::NameTaken, message)));
        }
        delete(client, &secret).await?;
        Ok(Ok(()))
    }
}
