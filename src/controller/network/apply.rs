//! The effects of a network's pass, in their order. Each is crash-safe: the next pass sees what is
//! recorded and goes on from there.

use std::collections::BTreeMap;
use std::sync::Arc;

use bsn_core::anchor::{Anchor, KeyRecord, Role};
use bsn_core::engine::cometbft::QUORUM;
use bsn_core::engine::cometbft::config::ExternalPeer;
use bsn_core::engine::cometbft::genesis::{GENESIS_FILE, Genesis};
use bsn_core::forming::{FormingStep, build_anchor, next_forming_step};
use bsn_core::membership::Decision;
use bsn_core::names::NodeName;
use bsn_core::quorum::margin;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use super::addresses::{Unreached, spans_clusters};
use super::credentials;
use super::deletion;
use super::invalid::made_otherwise;
use super::members;
use super::mirrors::{Addresses, ensure_mirrors, observe_addresses};
use super::observe::ObservedNetwork;
use super::policies::ensure_policy;
use super::steps::Steps;
use super::validate::ValidatedNetwork;
use crate::anchor::Expected;
use crate::api::conditions::Reason;
use crate::api::{BsnNetwork, BsnNode};
use crate::apply::{Outcome, delete, ensure, ensure_exists, read, restore_marks, restore_spec};
use crate::build::bsn_node::build_bsn_node;
use crate::build::config_map::{
    build_anchor_map, build_ca_map, build_genesis_map, build_peers_map, peers_of,
};
use crate::build::disruption_budget::build_disruption_budget;
use crate::build::endpoint_slice::Reached;
use crate::build::secret::{TLS_CERT, TLS_KEY, build_ca_secret, entry};
use crate::build::{NetworkParts, NodeParts};
use crate::cluster::registry::{HUB, Place};
use crate::cluster::watches::{cached, nodes_of, unparsable_nodes_of};
use crate::controller::context::{Context, OperatorLeaf, RandomIds};
use crate::controller::copies::{self, Ahead};
use crate::controller::node::brought::fixed_otherwise;
use crate::controller::{Error, Refusal, Step, refused, told};
use crate::evidence::poller::{NetworkTargets, Target};
use crate::pki::{Authority, tls};
use crate::view::NetworkKey;

/// Where a pass ended.
pub struct Applied {
    /// The anchor as it is now, if there is one.
    pub anchor: Option<Anchor>,
    /// What stands still until a person helps.
    pub refusals: Vec<Refusal>,
    /// Founders that are not provisioned yet.
    pub waiting: Vec<NodeName>,
    /// Where the steps are.
    pub steps: Steps,
    /// Nodes that nodes in other clusters do not reach, and why.
    pub unreached: BTreeMap<NodeName, Unreached>,
}

impl Applied {
    /// A pass that did nothing.
    fn untouched(anchor: Option<Anchor>) -> Self {
        Self {
            anchor,
            refusals: vec![],
            waiting: vec![],
            steps: Steps::default(),
            unreached: BTreeMap::new(),
        }
    }
}

/// Takes all steps that can be taken now.
pub async fn apply_network(
    ctx: &Arc<Context>,
    key: &NetworkKey,
    network: &BsnNetwork,
    validated: &ValidatedNetwork,
    observed: &ObservedNetwork,
) -> Result<Applied, Error> {
    deletion::ensure_finalizer(ctx, network, validated.deletion).await?;
    let owner = network.controller_owner_ref(&());
    let meta = &network.metadata;
    let pass = Pass { ctx, key, meta, validated, observed, owner: owner.as_ref() };
    let mut applied = Applied::untouched(observed.anchor.clone());
    // A refusal ends the pass: what follows depends on what was refused.
    if let Err(refusal) = told(pass.run(&mut applied).await)? {
        applied.refusals.push(refusal);
    }
    Ok(applied)
}

/// Looks at a paused network: whether it is as described is told, and nothing is made or changed.
pub async fn look_at_network(
    ctx: &Arc<Context>,
    key: &NetworkKey,
    network: &BsnNetwork,
    validated: &ValidatedNetwork,
    observed: &ObservedNetwork,
) -> Result<Applied, Error> {
    let pass = Pass { ctx, key, meta: &network.metadata, validated, observed, owner: None };
    let mut applied = Applied::untouched(observed.anchor.clone());
    if let Some(anchor) = observed.anchor.clone() {
        match pass.take_step(anchor).boxed().await? {
            Ok((_, steps)) => applied.steps = steps,
            Err(refusal) => applied.refusals.push(refusal),
        }
    }
    Ok(applied)
}

/// One pass.
pub(super) struct Pass<'a> {
    pub(super) ctx: &'a Arc<Context>,
    pub(super) key: &'a NetworkKey,
    pub(super) meta: &'a ObjectMeta,
    pub(super) validated: &'a ValidatedNetwork,
    pub(super) observed: &'a ObservedNetwork,
    owner: Option<&'a OwnerReference>,
}

impl Pass<'_> {
    /// What an anchor of this network must agree with.
    pub(super) fn expected(&self) -> &Expected {
        &self.observed.expected
    }

    pub(super) fn parts<'b>(&'b self, anchor: &'b Anchor) -> NetworkParts<'b> {
        NetworkParts::new(&self.key.namespace, &self.validated.desired.name, anchor, self.owner)
    }

    /// Goes on from the newest copy of the anchor, if a person consented to that; nothing else is done meanwhile.
    async fn take_over(&self, ahead: &Ahead, applied: &mut Applied) -> Step<()> {
        if !self.validated.policy.consents.contains(&ahead.consent) {
            let own = self.observed.anchor.as_ref();
            let refusal = ahead.refusal(&self.ctx.hub_id, own);
            applied.steps.decision = Some(Decision::NeedsConsent(refusal));
            applied.anchor = Some(own.unwrap_or(&ahead.newest).clone());
            return Ok(Ok(()));
        }
        let name = &self.validated.desired.name;
        let anchor = or_refuse!(copies::take_over(self.ctx, self.key, name, ahead).await?);
        if ahead.has_steps {
            or_refuse!(self.take_over_steps(&anchor, &ahead.consent).await?);
        }
        applied.anchor = Some(anchor);
        Ok(Ok(()))
    }

    async fn run(&self, applied: &mut Applied) -> Step<()> {
        if let Some(ahead) = &self.observed.ahead {
            return self.take_over(ahead, applied).await;
        }
        let mut anchor = or_refuse!(self.ensure_anchor().await?);
        applied.anchor = Some(anchor.clone());
        if let Some(why) = made_otherwise(&anchor, &self.validated.desired.sets) {
            return Ok(Err(Refusal::new(Reason::InvalidSpec, why)));
        }
        anchor = or_refuse!(self.ensure_authority(anchor).await?);
        applied.anchor = Some(anchor.clone());
        or_refuse!(self.stamp_nodes(&anchor).await?);
        // Told, and nothing else: the nodes are as they were made, and everything else goes on.
        applied.refusals.extend(self.check_keys(&anchor));
        let reached = or_refuse!(self.publish_addresses(&anchor, applied).await?);
        let (formed, genesis) = or_refuse!(self.form(anchor, applied).await?);
        anchor = formed;
        applied.anchor = Some(anchor.clone());
        let leaf = or_refuse!(self.ensure_credentials(&anchor).await?);
        or_refuse!(self.publish(&anchor, &leaf.ca_pem).await?);
        // What it protects works without it.
        if let Err(refusal) = self.ensure_policy(&anchor).await? {
            applied.refusals.push(refusal);
        }
        members::tend(self, &anchor, genesis.as_ref(), &leaf.ca_pem, &reached);
        or_refuse!(self.watch_nodes(&anchor, &leaf)?);
        let (anchor, steps) = or_refuse!(self.take_step(anchor).boxed().await?);
        applied.steps = steps;
        let applied_anchor = applied.anchor.insert(anchor);
        deletion::delete_of_retired(self, applied_anchor).await
    }

    pub(super) async fn update(&self, change: impl FnMut(&mut Anchor)) -> Step<Anchor> {
        let name = self.validated.desired.name.anchor();
        let result = self
            .ctx
            .anchors
            .update(&self.ctx.client, self.key, &name, &self.observed.expected, change)
            .await;
        refused(result)
    }

    /// Founders, names and ids are written down before anything else exists.
    async fn ensure_anchor(&self) -> Step<Anchor> {
        if let (Some(anchor), Some(map)) = (&self.observed.anchor, &self.observed.map) {
            // The hub's own id inside proves whose it is; only its marks can be damaged.
            let marks = self.parts(anchor).held(self.validated.desired.name.anchor());
            restore_marks(&self.ctx.client, map, &marks).await?;
            return Ok(Ok(anchor.clone()));
        }
        let desired = &self.validated.desired;
        let mut ids = RandomIds::draw()?;
        let anchor = match build_anchor(desired, &self.ctx.hub_id, self.ctx.now(), &mut ids) {
            Ok(anchor) => anchor,
            Err(error) => return Ok(Err(Refusal::new(Reason::InvalidSpec, error.to_string()))),
        };
        let map = build_anchor_map(&self.parts(&anchor), &anchor);
        let made =
            ensure_exists::<ConfigMap>(&self.ctx.client, None, map, None, &anchor.network_id).await;
        let (map, _) = or_refuse!(refused(made)?);
        // What is stored counts: an earlier pass may have been here.
        Ok(crate::anchor::parse_map(&map, &self.observed.expected).map_err(Refusal::from))
    }

    /// The CA's key is made once. If it is missing later, that is a refusal.
    async fn ensure_authority(&self, anchor: Anchor) -> Step<Anchor> {
        if anchor.ca.is_some() {
            return Ok(Ok(anchor));
        }
        let name = self.validated.desired.name.ca();
        // Nothing depends on this key before it is recorded, so one that a crashed pass left behind is
        // taken, and one that is not there is made.
        let secret = match read::<Secret>(&self.ctx.client, &self.key.namespace, &name).await? {
            Some(secret) => secret,
            None => {
                let (cert, ca_key) = Authority::make(&self.validated.desired.name, self.ctx.now())?;
                let wish = build_ca_secret(&self.parts(&anchor), &cert, &ca_key);
                let made =
                    ensure_exists(&self.ctx.client, None, wish, None, &anchor.network_id).await;
                or_refuse!(refused(made)?).0
            }
        };
        if !crate::apply::is_ours(&secret, None, &anchor.network_id) {
            let message =
                format!("Secret {name} exists and is not this network's; delete or rename it");
            return Ok(Err(Refusal::new(Reason::NameTaken, message)));
        }
        let authority = or_refuse!(parse_authority(&secret, &name));
        let record = KeyRecord {
            spki_sha256: authority.spki_sha256().to_owned(),
            secret_uid: secret.uid().unwrap_or_default(),
        };
        self.update(|stored| {
            stored.ca.get_or_insert_with(|| record.clone());
        })
        .await
    }

    async fn stamp_nodes(&self, anchor: &Anchor) -> Step<()> {
        for (name, identity) in anchor.members() {
            let network = self.parts(anchor);
            let node = NodeParts { network, name: &name, identity, owner: None };
            let found = cached(&self.ctx.caches.nodes, &self.key.namespace, name.as_str());
            let (known, invalid) = match found.as_deref().map(|guarded| &guarded.0) {
                Some(Ok(known)) => (Some(known), None),
                Some(Err(invalid)) => (None, Some(invalid)),
                None => (None, None),
            };
            // Of a set that is no longer described the disk stays as it was.
            let storage = self.validated.storage.get(&identity.set).cloned();
            let storage = storage.or_else(|| known.map(|node| node.spec.storage.clone()));
            let storage = storage.unwrap_or_default();
            let wish = build_bsn_node(&node, &storage);
            let id = &anchor.network_id;
            if let Some(invalid) = invalid {
                or_refuse!(self.restore_node(&wish, &invalid.error, id).await?);
                continue;
            }
            let made = ensure(&self.ctx.client, known, wish, None, id).await;
            or_refuse!(refused(made)?);
        }
        let is_over = |meta: &ObjectMeta| {
            let name = NodeName::from_object(meta.name.as_deref().unwrap_or_default());
            let retired = anchor.identity(&name).is_some_and(|identity| identity.retired);
            retired && meta.deletion_timestamp.is_none()
        };
        let (caches, namespace) = (&self.ctx.caches, &self.key.namespace);
        for node in nodes_of(caches, namespace, &self.key.name) {
            if is_over(&node.metadata) {
                delete(&self.ctx.client, &node).await?;
            }
        }
        for node in unparsable_nodes_of(caches, namespace, &anchor.network_id) {
            if is_over(&node.metadata) {
                delete(&self.ctx.client, &node).await?;
            }
        }
        Ok(Ok(()))
    }

    /// Puts back what a node's object says, since it does not parse. It is seen, and looked at as any other, in a later
    /// pass.
    async fn restore_node(&self, wish: &BsnNode, error: &str, network_id: &str) -> Step<()> {
        let (namespace, name) = (&self.key.namespace, wish.name_any());
        tracing::warn!(%namespace, node = %name, %error, "it does not parse; its spec is put back");
        let restored = restore_spec(&self.ctx.client, wish, network_id).await;
        if let Err(why) = &restored
            && why.code() == Some(422)
        {
            // A field that never changes is wrong. Made anew it is right, and without its owner the pod runs on.
            let message = format!(
                "BsnNode {namespace}/{name} does not parse ({error}), and the API server does not take its spec back: {why}. \
                 Take the object away, its pod runs on: kubectl patch bsnnode {name} -n {namespace} --type=merge -p \
                 '{{\"metadata\":{{\"finalizers\":null}}}}', then kubectl delete bsnnode {name} -n {namespace} \
                 --cascade=orphan"
            );
            return Ok(Err(Refusal::new(Reason::Unparsable, message)));
        }
        refused(restored)
    }

    /// Whether nodes were made with the keys that are described for them.
    fn check_keys(&self, anchor: &Anchor) -> Option<Refusal> {
        let wrong = fixed_otherwise(anchor, &self.validated.keys);
        let message = format!(
            "{}; the keys of a node never change. Correct keys in nodeSets, or bring these keys for a new node and name the \
             old one in retire",
            wrong.join("; ")
        );
        (!wrong.is_empty()).then(|| Refusal::new(Reason::KeysFixed, message))
    }

    /// Makes the nodes of other clusters known on the hub, from where the operator asks all of them. Before the chain
    /// is formed, and so before any pod. Where nodes are reached is the same for every cluster.
    async fn publish_addresses(
        &self,
        anchor: &Anchor,
        applied: &mut Applied,
    ) -> Step<BTreeMap<NodeName, Reached>> {
        let Addresses { reached, unreached } =
            observe_addresses(self.ctx, self.key, self.validated, anchor);
        applied.unreached = unreached;
        let hub = self.ctx.clusters.place(HUB, &self.key.namespace)?;
        or_refuse!(ensure_mirrors(&hub, self.parts(anchor), anchor, &reached).await?);
        Ok(Ok(reached))
    }

    /// Forms the chain, or takes it over; gives its genesis, once nodes may start.
    async fn form(
        &self,
        mut anchor: Anchor,
        applied: &mut Applied,
    ) -> Step<(Anchor, Option<Genesis>)> {
        let taken = or_refuse!(self.observe_genesis(&anchor).await?);
        loop {
            let step = match next_forming_step(&anchor, taken.as_ref()) {
                Ok(step) => step,
                Err(error) => {
                    return Ok(Err(Refusal::new(Reason::GenesisRefused, error.to_string())));
                }
            };
            match step {
                // Made before; an anchor without it was read from a cache that was behind.
                FormingStep::MakeAuthority | FormingStep::AwaitGenesis => {
                    return Ok(Ok((anchor, None)));
                }
                FormingStep::AwaitFounders(waiting) => {
                    applied.waiting = waiting;
                    return Ok(Ok((anchor, None)));
                }
                FormingStep::RecordGenesis(genesis) => {
                    anchor = or_refuse!(
                        self.update(|stored| {
                            stored.genesis_hash.get_or_insert_with(|| genesis.hash.clone());
                        })
                        .await?
                    );
                }
                FormingStep::PublishGenesis(genesis) => {
                    or_refuse!(self.ensure_genesis(&anchor, &genesis).await?);
                    anchor = or_refuse!(self.update(|stored| stored.formed = true).await?);
                }
                FormingStep::Formed(genesis) => {
                    or_refuse!(self.ensure_genesis(&anchor, &genesis).await?);
                    return Ok(Ok((anchor, Some(genesis))));
                }
            }
        }
    }

    /// Publishes the genesis on the hub, or puts it back: the same bytes follow from the anchor for ever.
    async fn ensure_genesis(&self, anchor: &Anchor, genesis: &Genesis) -> Step<()> {
        let hub = self.ctx.clusters.place(HUB, &self.key.namespace)?;
        ensure_genesis(&hub, &self.parts(anchor), genesis).await.map(|done| done.map(|_| ()))
    }

    /// What all nodes share. In member clusters that is done beside this pass: see [`members`].
    ///
    /// [`members`]: super::members
    async fn publish(&self, anchor: &Anchor, ca_pem: &str) -> Step<()> {
        let hub = self.ctx.clusters.place(HUB, &self.key.namespace)?;
        let external = &self.validated.external_peers;
        let done = publish(&hub, &self.parts(anchor), anchor, external, ca_pem).await;
        done.map(|done| done.map(|_| ()))
    }

    /// Who may connect to the nodes on the hub.
    async fn ensure_policy(&self, anchor: &Anchor) -> Step<()> {
        let hub = self.ctx.clusters.place(HUB, &self.key.namespace)?;
        let (access, operator) = (&self.validated.access, &self.ctx.settings.namespace);
        ensure_policy(&hub, &self.parts(anchor), anchor, access, operator).await
    }

    /// Certificates for those who ask: clients, and the operator itself.
    async fn ensure_credentials(&self, anchor: &Anchor) -> Step<OperatorLeaf> {
        let network = self.parts(anchor);
        credentials::ensure_credentials(self.ctx, self.key, &network, anchor, self.validated).await
    }

    /// Tells the poller whom to ask.
    fn watch_nodes(
        &self,
        anchor: &Anchor,
        leaf: &OperatorLeaf,
    ) -> Result<Result<(), Refusal>, Error> {
        let mut nodes = Vec::new();
        for (name, identity) in anchor.members() {
            let Some(keys) = &identity.keys else { continue };
            nodes.push(Target {
                name: name.to_string(),
                cluster: identity.cluster.clone(),
                role: identity.role,
                address: keys.consensus.validator_address(),
                node_id: keys.p2p.node_id(),
                power: anchor.last_power(&name),
                server_name: name.service_dns(&self.key.namespace),
                tls: Arc::new(tls::client_config(
                    &keys.tls_spki_sha256,
                    &leaf.cert_pem,
                    &leaf.key_pem,
                )?),
            });
        }
        self.ctx.targets.put(
            self.key.clone(),
            NetworkTargets {
                network_id: anchor.network_id.clone(),
                chain_id: anchor.chain_id.clone(),
                formed: anchor.formed,
                policy: self.validated.policy.clone(),
                nodes,
            },
        );
        Ok(Ok(()))
    }
}

/// Publishes the genesis in a place, or puts it back. Whether it was made now.
pub(super) async fn ensure_genesis(
    place: &Place,
    network: &NetworkParts<'_>,
    genesis: &Genesis,
) -> Step<Outcome> {
    let wish = build_genesis_map(network, genesis);
    let name = wish.name_any();
    let known = cached(&place.objects.config_maps, network.namespace, &name);
    let id = network.network_id;
    let made = ensure_exists(&place.client, known.as_deref(), wish, None, id).await;
    let (map, outcome) = or_refuse!(refused(made)?);
    let text = map.data.as_ref().and_then(|data| data.get(GENESIS_FILE));
    if text == Some(&genesis.text) {
        return Ok(Ok(outcome));
    }
    let message = format!(
        "ConfigMap {name} does not hold the genesis {} of this chain; delete it, the operator puts it back",
        genesis.hash
    );
    Ok(Err(Refusal::new(Reason::GenesisRefused, message)))
}

/// What all nodes in a place share: the authority's certificate, the list of peers and the disruption budget.
/// Whether something was made now.
pub(super) async fn publish(
    place: &Place,
    network: &NetworkParts<'_>,
    anchor: &Anchor,
    external: &[ExternalPeer],
    ca_pem: &str,
) -> Step<bool> {
    let (namespace, id) = (network.namespace, network.network_id);
    let (client, objects) = (&place.client, &place.objects);
    let ca = build_ca_map(network, ca_pem);
    let known = cached(&objects.config_maps, namespace, &ca.name_any());
    let made = ensure(client, known.as_deref(), ca, None, id).await;
    let mut created = or_refuse!(refused(made)?).1 == Outcome::Created;
    // While founders are still being provisioned the list would be written once for each of them,
    // and nobody reads it before the chain is formed.
    if anchor.formed {
        let peers = build_peers_map(network, &peers_of(anchor, namespace), external, anchor.joins);
        let known = cached(&objects.config_maps, namespace, &peers.name_any());
        let made = ensure(client, known.as_deref(), peers, None, id).await;
        created |= or_refuse!(refused(made)?).1 == Outcome::Created;
    }
    or_refuse!(ensure_budget(place, network, anchor).await?);
    Ok(Ok(created))
}

/// The disruption budget. Of a network that spans clusters it allows nothing until a share is dealt to it: see
/// [`budgets`](super::budgets).
async fn ensure_budget(place: &Place, network: &NetworkParts<'_>, anchor: &Anchor) -> Step<()> {
    let (client, id) = (&place.client, network.network_id);
    let known = |wish: &PodDisruptionBudget| {
        cached(&place.objects.budgets, network.namespace, &wish.name_any())
    };
    // Counted with those that do not vote: which of the pods votes is not in their labels.
    let validators = anchor.members().filter(|(_, identity)| identity.role == Role::Validator);
    if spans_clusters(anchor) {
        let there = validators.filter(|(_, identity)| identity.cluster == place.cluster).count();
        if there > 0 {
            let wish = build_disruption_budget(network, there);
            let known = known(&wish);
            let made = ensure_exists(client, known.as_deref(), wish, None, id).await;
            or_refuse!(refused(made)?);
        }
        return Ok(Ok(()));
    }
    let margin = margin(QUORUM, &powers_of(anchor));
    let wish = build_disruption_budget(network, validators.count().saturating_sub(margin));
    let known = known(&wish);
    refused(ensure(client, known.as_deref(), wish, None, id).await).map(|done| done.map(|_| ()))
}

/// Powers of the voters, as the anchor knows them. Those of other owners are theirs to protect.
fn powers_of(anchor: &Anchor) -> Vec<u64> {
    let powers = anchor.members().map(|(name, _)| anchor.last_power(&name));
    powers.filter(|power| *power > 0).collect()
}

/// Reads a CA out of its Secret.
pub fn parse_authority(secret: &Secret, name: &str) -> Result<Authority, Refusal> {
    let parsed = entry(secret, TLS_CERT)
        .zip(entry(secret, TLS_KEY))
        .map(|(cert, key)| Authority::parse(cert, key));
    match parsed {
        Some(Ok(authority)) => Ok(authority),
        Some(Err(error)) => Err(Refusal::new(
            Reason::KeyLost,
            format!(
                "Secret {name} does not hold the network's CA: {error}; restore it from a backup"
            ),
        )),
        None => Err(Refusal::new(
            Reason::KeyLost,
            format!("Secret {name} lacks {TLS_CERT} or {TLS_KEY}; restore it from a backup"),
        )),
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
