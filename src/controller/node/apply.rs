//! The effects of a node's pass, in their order: Service, keys and disk; their record in the anchor;
//! certificate; and last, once the chain is formed, the workload.

use bsn_core::anchor::{Anchor, Brought, Identity, ObjectUids};
use bsn_core::evidence::GuardState;
use bsn_core::first_start::FirstStart;
use bsn_core::names::NodeName;
use bsn_core::pki::{ObservedLeaf, next_leaf, node_names};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
use kube::ResourceExt;

use super::brought::FoundKeys;
use super::keys::{BroughtKeys, ReadKeys, build_new_keys, parse_keys};
use crate::agent::paths;
use crate::anchor::Expected;
use crate::api::BsnNode;
use crate::api::conditions::{Reason, State};
use crate::apply::{ensure, ensure_exists, is_ours, read, restore_marks};
use crate::build::config_map::build_certificate_map;
use crate::build::disk::build_disk;
use crate::build::service::build_service;
use crate::build::{NetworkParts, NodeParts};
use crate::cluster::registry::Place;
use crate::cluster::watches::cached;
use crate::controller::context::Context;
use crate::controller::network::addresses::exposure_of;
use crate::controller::network::credentials::read_authority;
use crate::controller::network::mirrors::are_known;
use crate::controller::network::validate::ValidatedNetwork;
use crate::controller::{Error, Refusal, Step, copies, refused, told};
use crate::pki::observe_leaf;
use crate::view::NetworkKey;

/// Where a pass ended.
pub struct Applied {
    /// The anchor as it is now.
    pub anchor: Anchor,
    /// What stands still until a person helps.
    pub refusal: Option<Refusal>,
    /// The certificate the node serves or will serve.
    pub leaf: Option<ObservedLeaf>,
    /// When that certificate is due for renewal.
    pub renew_at: Option<Timestamp>,
    /// Where the disk is on its way to the size described; `None` = it was not looked.
    pub disk: Option<State>,
}

impl Applied {
    /// A pass that did nothing.
    pub fn untouched(anchor: Anchor) -> Self {
        Self { anchor, refusal: None, leaf: None, renew_at: None, disk: None }
    }
}

/// One pass.
pub struct Pass<'a> {
    pub ctx: &'a Context,
    /// Where the node's objects are. What is described, and the anchor, are on the hub.
    pub place: &'a Place,
    pub key: &'a NetworkKey,
    pub node: &'a BsnNode,
    pub name: &'a NodeName,
    pub validated: &'a ValidatedNetwork,
    pub expected: &'a Expected,
}

impl Pass<'_> {
    /// Takes all steps that can be taken now.
    pub async fn run(&self, anchor: &Anchor, identity: &Identity) -> Result<Applied, Error> {
        let mut applied = Applied::untouched(anchor.clone());
        if let Err(refusal) = told(self.steps(identity, &mut applied).await)? {
            applied.refusal = Some(refusal);
        }
        applied.disk = self.grow_disk(&applied.anchor).await;
        Ok(applied)
    }

    async fn steps(&self, identity: &Identity, applied: &mut Applied) -> Step<()> {
        let owner = self.place.owner(self.node);
        let anchor = applied.anchor.clone();
        or_refuse!(self.check_image_before_first_object(identity));
        // Before anything of it is made: a key that is not taken leaves nothing behind.
        let brought = or_refuse!(self.read_brought(identity, &anchor).await?);
        or_refuse!(self.ensure_copy(&anchor).await?);
        let parts = NodeParts {
            network: NetworkParts::new(
                &self.key.namespace,
                &self.validated.desired.name,
                &anchor,
                None,
            ),
            name: self.name,
            identity,
            owner: owner.as_ref(),
        };
        let service = or_refuse!(self.ensure_service(&parts, &anchor).await?);
        let (keys, keys_uid) =
            or_refuse!(self.ensure_keys(&parts, &anchor, brought.as_ref()).await?);
        let disk = or_refuse!(self.ensure_disk(&parts).await?);
        let uids = ObjectUids { keys: Some(keys_uid), disk: Some(disk), service: Some(service) };
        let anchor = or_refuse!(
            self.record(identity, &keys, &uids)
                .await?
                .map(|recorded| { recorded.unwrap_or(anchor.clone()) })
        );
        applied.anchor = anchor.clone();
        applied.leaf = or_refuse!(self.ensure_certificate(&parts, &keys.read, &anchor).await?);
        applied.renew_at =
            applied.leaf.as_ref().map(|leaf| leaf.not_after - self.validated.leaf.renew_before);
        if !anchor.formed || applied.leaf.is_none() || !self.is_published(&anchor, identity) {
            return Ok(Ok(()));
        }
        let Some(pod) = self.pod_identity(&anchor, &keys.read.public) else { return Ok(Ok(())) };
        // Before the pod: it mounts the token if it is there when it starts.
        let anchor = or_refuse!(self.ensure_token(&parts, anchor, &pod).await?);
        applied.anchor = anchor.clone();
        applied.anchor = or_refuse!(self.ensure_workload(&parts, &pod, &anchor).await?);
        Ok(Ok(()))
    }

    /// The Service; a lost one is put back, it holds nothing. A change of its type keeps its address: the API server
    /// chose that, and what is applied does not name it.
    async fn ensure_service(&self, parts: &NodeParts<'_>, anchor: &Anchor) -> Step<String> {
        let known = cached(&self.place.objects.services, &self.key.namespace, self.name.as_str());
        let recorded = parts.identity.uids.service.as_deref();
        let id = parts.network.network_id;
        let default = self.place.defaults.exposure;
        let wish =
            build_service(parts, exposure_of(self.validated, anchor, parts.identity, default));
        let made = ensure(&self.place.client, known.as_deref(), wish, recorded, id).await;
        Ok(refused(made)?.map(|(service, _)| service.uid().unwrap_or_default()))
    }

    /// The keys: made if none were ever recorded, else read and compared with the record.
    async fn ensure_keys(
        &self,
        parts: &NodeParts<'_>,
        anchor: &Anchor,
        brought: Option<&BroughtKeys>,
    ) -> Step<(FoundKeys, String)> {
        let (namespace, name) = (&self.key.namespace, self.name.keys());
        if let (Some(public), Some(uid)) = (&parts.identity.keys, &parts.identity.uids.keys)
            && self.ctx.recent.holds(namespace, &name)
        {
            let read = ReadKeys { public: public.clone(), tls_key_pem: None, from: None };
            let keys = FoundKeys { read, brought: parts.identity.brought.clone() };
            return Ok(Ok((keys, uid.clone())));
        }
        let keys = or_refuse!(self.read_keys(parts, anchor, brought).await?);
        self.ctx.recent.note(namespace, &name);
        Ok(Ok(keys))
    }

    async fn read_keys(
        &self,
        parts: &NodeParts<'_>,
        anchor: &Anchor,
        brought: Option<&BroughtKeys>,
    ) -> Step<(FoundKeys, String)> {
        let name = self.name.keys();
        let id = parts.network.network_id;
        let found = read::<Secret>(&self.place.client, &self.key.namespace, &name).await?;
        let secret = match found {
            Some(secret) => secret,
            None => {
                // Live, just before: a cache that is behind must not make a key twice.
                let stored = or_refuse!(self.stored_identity().await?);
                if stored.keys.is_some() || stored.uids.keys.is_some() {
                    let message = format!(
                        "Secret {}/{name} with this node's keys is missing; restore it from a backup. A key is never \
                         made twice",
                        self.key.namespace
                    );
                    return Ok(Err(Refusal::new(Reason::KeyLost, message)));
                }
                let wish = build_new_keys(parts, brought)?;
                let made = ensure_exists(&self.place.client, None, wish, None, id).await;
                or_refuse!(refused(made)?).0
            }
        };
        let identity = parts.identity;
        let uid = secret.uid().unwrap_or_default();
        if identity.uids.keys.as_ref().is_some_and(|recorded| *recorded != uid) {
            // Restored from a backup, perhaps: the keys themselves decide, below.
            tracing::info!(secret = %name, "the keys Secret was replaced; comparing its keys");
        }
        if !is_ours(&secret, identity.uids.keys.as_deref(), id) && identity.keys.is_none() {
            let message =
                format!("Secret {name} exists and is not this node's; delete or rename it");
            return Ok(Err(Refusal::new(Reason::NameTaken, message)));
        }
        let keys = or_refuse!(parse_keys(&secret, &name));
        match &identity.keys {
            Some(recorded) if *recorded != keys.public => {
                let message = format!(
                    "Secret {}/{name} holds other keys than this node was made with (consensus address {}, expected \
                     {}); restore the right one from a backup",
                    self.key.namespace,
                    keys.public.consensus.validator_address(),
                    recorded.consensus.validator_address(),
                );
                Ok(Err(Refusal::new(Reason::KeyLost, message)))
            }
            Some(_) => {
                // Its keys prove it: one that was restored from a backup has other marks, or none.
                let marks = parts.held(name);
                restore_marks(&self.place.client, &secret, &marks).await?;
                Ok(Ok((FoundKeys { read: keys, brought: identity.brought.clone() }, uid)))
            }
            // Whoever made it may have crashed before this was checked, or before it was recorded.
            None => {
                let not_up_to = match &keys.from {
                    Some(_) => or_refuse!(self.check_brought(&keys.public.consensus, anchor)),
                    None => 0,
                };
                if let Err(other) = self.reserve(&keys.public.consensus, Some(&keys.public.p2p)) {
                    let message = format!(
                        "Secret {}/{name} holds a key of {other}; two nodes with one key sign twice. Delete the Secret, \
                         the operator makes a new key",
                        self.key.namespace
                    );
                    return Ok(Err(Refusal::new(Reason::KeyUsedTwice, message)));
                }
                let brought = keys.from.clone().map(|secret| Brought { secret, not_up_to });
                Ok(Ok((FoundKeys { read: keys, brought }, uid)))
            }
        }
    }

    /// This node's identity as it is stored now.
    async fn stored_identity(&self) -> Step<Identity> {
        let anchor = or_refuse!(self.update(|_| {}).await?);
        match anchor.identity(self.name) {
            Some(identity) if !identity.retired => Ok(Ok(identity.clone())),
            _ => Ok(Err(Refusal::new(
                Reason::AnchorRefused,
                "the anchor does not know this node, or knows it as retired",
            ))),
        }
    }

    /// The disk: made once. If it is missing or another one later, that is a refusal.
    async fn ensure_disk(&self, parts: &NodeParts<'_>) -> Step<String> {
        let name = self.name.disk();
        let known = cached(&self.place.objects.disks, &self.key.namespace, &name);
        let known = match known {
            Some(disk) => Some((*disk).clone()),
            None => {
                read::<PersistentVolumeClaim>(&self.place.client, &self.key.namespace, &name)
                    .await?
            }
        };
        let recorded = parts.identity.uids.disk.as_deref();
        let words = |what: &str| {
            format!(
                "PersistentVolumeClaim {}/{name} {what}; a disk is never made twice, since its key could then sign \
                 twice. Restore the volume",
                self.key.namespace
            )
        };
        let lost = |what: &str| Ok(Err(Refusal::new(Reason::DiskLost, words(what))));
        let uid = known.as_ref().and_then(ResourceExt::uid).unwrap_or_default();
        match (&known, recorded) {
            (Some(disk), _) if disk.metadata.deletion_timestamp.is_some() => {
                // Kubernetes has no way to take that back.
                let message = format!(
                    "PersistentVolumeClaim {}/{name} is being deleted: it stays as long as its finalizer does, and its node runs \
                     on as long as its pod does. Replace the node while it runs: kubectl delete bsnnode {} -n {}",
                    self.key.namespace, self.name, self.key.namespace
                );
                return Ok(Err(Refusal::new(Reason::DiskLost, message)));
            }
            (Some(_), Some(recorded)) if uid != recorded => {
                let words = words("is not the one this node was made with");
                or_refuse!(self.take_consent(parts, &uid, &words).await?);
                return Ok(Ok(uid));
            }
            (Some(_), Some(_)) if self.guard_found_empty_disk() => {
                let words = words("is empty now and was not before");
                // While a token is issued, it is on its way to the guard.
                if !matches!(parts.identity.first_start, FirstStart::Issued { .. }) {
                    or_refuse!(self.take_consent(parts, &uid, &words).await?);
                }
                return Ok(Ok(uid));
            }
            (Some(_), _) => {}
            (None, Some(_)) => return lost("is missing"),
            (None, None) => {
                // Live, just before: a cache that is behind must not make a disk twice.
                let stored = or_refuse!(self.stored_identity().await?);
                if stored.uids.disk.is_some() {
                    return lost("is missing");
                }
            }
        }
        let class = self.place.defaults.storage_class_name.as_deref();
        // The stamp may have been edited a moment ago; of a set that left the description nothing else is known.
        let described = self.validated.storage.get(&parts.identity.set);
        let storage = described.unwrap_or(&self.node.spec.storage);
        let wish = build_disk(parts, storage, class);
        let id = parts.network.network_id;
        let made = ensure_exists(&self.place.client, known.as_ref(), wish, recorded, id).await;
        Ok(refused(made)?.map(|(disk, _)| disk.uid().unwrap_or_default()))
    }

    /// The guard refuses since the recorded disk holds nothing, although its one token was used.
    fn guard_found_empty_disk(&self) -> bool {
        let view = self.ctx.views.get(self.key);
        view.iter()
            .flat_map(|view| &view.nodes)
            .find(|node| node.name == self.name.as_str())
            .and_then(|node| node.guard.as_ref())
            .is_some_and(|guard| {
                guard.state == GuardState::Refused && guard.message.starts_with("DiskEmpty:")
            })
    }

    /// Records keys and uids before anything depends on them. `None` = it was recorded already.
    async fn record(
        &self,
        identity: &Identity,
        keys: &FoundKeys,
        uids: &ObjectUids,
    ) -> Step<Option<Anchor>> {
        let FoundKeys { read: ReadKeys { public, .. }, brought } = keys;
        if identity.keys.as_ref() == Some(public) && identity.uids == *uids {
            return Ok(Ok(None));
        }
        let stored = self
            .update(|anchor| {
                if let Some(identity) = anchor.identities.get_mut(self.name.as_str()) {
                    // Together and once: where keys came from is known with the keys, or never.
                    if identity.keys.is_none() {
                        identity.keys = Some(public.clone());
                        identity.brought.clone_from(brought);
                    }
                    identity.uids.clone_from(uids);
                }
            })
            .await?;
        Ok(stored.map(Some))
    }

    pub(super) async fn update(&self, change: impl FnMut(&mut Anchor)) -> Step<Anchor> {
        let name = &self.validated.desired.name;
        let (client, anchors) = (&self.ctx.client, &self.ctx.anchors);
        let result = anchors.update(client, self.key, &name.anchor(), self.expected, change).await;
        let anchor = or_refuse!(refused(result)?);
        // Before anything depends on it there.
        or_refuse!(copies::mirror(self.ctx, self.place, self.key, name, &anchor).await?);
        Ok(Ok(anchor))
    }

    /// Brings the anchor's copy beside the node up to date, if it does not hold all that is said of the node.
    pub(super) async fn ensure_copy(&self, anchor: &Anchor) -> Step<()> {
        let name = &self.validated.desired.name;
        if self.place.is_hub()
            || copies::holds_node(self.place, self.key, &name.anchor(), anchor, self.name)
        {
            return Ok(Ok(()));
        }
        copies::mirror(self.ctx, self.place, self.key, name, anchor).await
    }

    /// Whether what a pod mounts is where the node is. Without it the kubelet tries for minutes. Before a node's first
    /// pod, whether the names of all others are, too: an engine never dials a peer whose name it could not resolve when
    /// it started.
    fn is_published(&self, anchor: &Anchor, identity: &Identity) -> bool {
        let name = &self.validated.desired.name;
        let genesis = name.genesis(anchor.genesis_hash.as_deref().unwrap_or_default());
        let holds =
            |map: &str| cached(&self.place.objects.config_maps, &self.key.namespace, map).is_some();
        let started = identity.template_hash.is_some();
        (started || are_known(self.place, &self.key.namespace, anchor))
            && (self.place.is_hub() || (holds(&genesis) && holds(&name.peers())))
    }

    /// The certificate: renewed with the same key. `None` = the CA is not there yet.
    async fn ensure_certificate(
        &self,
        parts: &NodeParts<'_>,
        keys: &ReadKeys,
        anchor: &Anchor,
    ) -> Step<Option<ObservedLeaf>> {
        if anchor.ca.is_none() {
            return Ok(Ok(None));
        }
        let now = self.ctx.now();
        let known =
            cached(&self.place.objects.config_maps, &self.key.namespace, &self.name.certificate());
        let pem = |map: &ConfigMap, file: &str| map.data.as_ref()?.get(file).cloned();
        let observed = known.as_deref().and_then(|map| {
            observe_leaf(&pem(map, paths::CERT_FILE)?, &pem(map, paths::CA_FILE)?).ok()
        });
        let names = node_names(self.name, &self.key.namespace, &anchor.network_id);
        let spki = &keys.public.tls_spki_sha256;
        let policy = self.validated.leaf;
        let Some(why) = next_leaf(observed.as_ref(), spki, &names, policy, now) else {
            return Ok(Ok(observed));
        };
        let network = &self.validated.desired.name;
        let authority = match read_authority(self.ctx, self.key, network, anchor).await? {
            Ok(authority) => authority,
            // The old certificate serves until it ends; the refusal says what to do meanwhile.
            Err(refusal) => return Ok(Err(refusal)),
        };
        tracing::info!(node = %self.name, ?why, "issuing the node's certificate");
        let key_pem = match &keys.tls_key_pem {
            Some(pem) => pem.clone(),
            None => {
                let (keys, _) = or_refuse!(self.read_keys(parts, anchor, None).await?);
                keys.read.tls_key_pem.unwrap_or_default()
            }
        };
        let leaf = authority.issue(&names, &key_pem, policy.validity, now, true)?;
        let wish = build_certificate_map(parts, &leaf, authority.cert_pem());
        let issued = observe_leaf(&leaf, authority.cert_pem())?;
        let id = parts.network.network_id;
        let made = ensure(&self.place.client, known.as_deref(), wish, None, id).await;
        Ok(refused(made)?.map(|_| Some(issued)))
    }
}
