//! What a network has in its member clusters, besides its nodes: the anchor's copy, what the nodes there share, and the
//! names of those elsewhere.
//!
//! It is done beside the network's pass, one task for each cluster at a time: a cluster that is slow or hangs delays
//! neither the others nor the steps. What is written before an effect there is written by the effect itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bsn_core::anchor::Anchor;
use bsn_core::engine::cometbft::config::ExternalPeer;
use bsn_core::engine::cometbft::genesis::Genesis;
use bsn_core::names::{NetworkName, NodeName};
use kube::Resource;

use super::apply::{Pass, ensure_genesis, publish};
use super::mirrors::ensure_mirrors;
use super::policies::ensure_policy;
use crate::anchor::StoreError;
use crate::api::NodeAccess;
use crate::api::conditions::Reason;
use crate::apply::Outcome;
use crate::build::NetworkParts;
use crate::build::endpoint_slice::Reached;
use crate::cluster::registry::Place;
use crate::cluster::watches::{GuardedNetwork, cached};
use crate::controller::context::Context;
use crate::controller::{Error, Refusal, Step, copies};
use crate::view::NetworkKey;

/// What one network wants in one cluster.
struct Errand {
    ctx: Arc<Context>,
    place: Place,
    key: NetworkKey,
    name: NetworkName,
    anchor: Anchor,
    /// Once nodes may start.
    genesis: Option<Genesis>,
    external: Vec<ExternalPeer>,
    ca_pem: String,
    reached: BTreeMap<NodeName, Reached>,
    access: NodeAccess,
}

/// Work under way in member clusters, and why it failed.
#[derive(Clone, Default)]
pub struct Errands(Arc<Mutex<BTreeMap<(NetworkKey, String), State>>>);

#[derive(Default)]
struct State {
    under_way: bool,
    /// It was asked for while it was under way.
    again: bool,
    /// Why it was not done the last time.
    trouble: Option<Refusal>,
}

impl Errands {
    /// Why something was not done, by cluster.
    pub fn troubles(&self, key: &NetworkKey) -> BTreeMap<String, Refusal> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter(|((of, _), _)| of == key)
            .filter_map(|((_, cluster), state)| Some((cluster.clone(), state.trouble.clone()?)))
            .collect()
    }

    /// Whether the caller may begin; else it is done again once what is under way has ended.
    fn begin(&self, of: &(NetworkKey, String)) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = all.entry(of.clone()).or_default();
        let free = !state.under_way;
        (state.under_way, state.again) = (true, !free);
        free
    }

    /// Whether something is being done there now.
    pub fn is_under_way(&self, key: &NetworkKey, cluster: &str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(key.clone(), cluster.to_owned())).is_some_and(|state| state.under_way)
    }

    /// It has ended. Whether the network is to be looked at again.
    fn end(&self, of: &(NetworkKey, String), trouble: Option<Refusal>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = all.entry(of.clone()).or_default();
        let news = state.again || state.trouble.is_some() != trouble.is_some();
        *state = State { trouble, ..State::default() };
        news
    }

    /// Forgets a network, but for what is still under way.
    pub fn remove(&self, key: &NetworkKey) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(of, _), state| of != key || state.under_way);
    }
}

/// Begins what is to be done in each member cluster that has nodes and can be used now.
pub(super) fn tend(
    pass: &Pass<'_>,
    anchor: &Anchor,
    genesis: Option<&Genesis>,
    ca_pem: &str,
    reached: &BTreeMap<NodeName, Reached>,
) {
    let clusters = anchor.clusters();
    let there = pass.observed.members.iter().filter(|(name, _)| clusters.contains(name.as_str()));
    for place in there.filter_map(|(_, place)| place.as_ref().ok()) {
        let of = (pass.key.clone(), place.cluster.clone());
        if !pass.ctx.errands.begin(&of) {
            continue;
        }
        let errand = Errand {
            ctx: pass.ctx.clone(),
            place: place.clone(),
            key: pass.key.clone(),
            name: pass.validated.desired.name.clone(),
            anchor: anchor.clone(),
            genesis: genesis.cloned(),
            external: pass.validated.external_peers.clone(),
            ca_pem: ca_pem.to_owned(),
            reached: reached.clone(),
            access: pass.validated.access.clone(),
        };
        tokio::spawn(async move {
            let trouble = match errand.run().await {
                // The last is that of a pass which was overtaken: what overtook it is next.
                Ok(Ok(())) | Err(Error::Store(StoreError::CopyAhead { .. })) => None,
                Ok(Err(refusal)) => Some(refusal),
                Err(error) => Some(Refusal::new(Reason::ClusterFailing, error.to_string())),
            };
            if let Some(refusal) = &trouble {
                let (cluster, why) = (&errand.place.cluster, &refusal.message);
                tracing::warn!(network = %errand.key, %cluster, why, "not done there");
            }
            if errand.ctx.errands.end(&of, trouble) {
                errand.ctx.triggers.network(&errand.key.namespace, &errand.key.name);
            }
        });
    }
}

impl Errand {
    async fn run(&self) -> Step<()> {
        let Self { ctx, place, key, name, anchor, genesis, external, ca_pem, reached, access } =
            self;
        let network = cached(&ctx.caches.networks, &key.namespace, &key.name);
        let ends = |network: &GuardedNetwork| network.meta().deletion_timestamp.is_some();
        if network.is_none_or(|network| ends(&network)) {
            // Its last nodes take away what they share.
            return Ok(Ok(()));
        }
        or_refuse!(copies::mirror(ctx, place, key, name, anchor).await?);
        // Nothing owns what is in a member cluster: its hub's uids mean nothing there.
        let network = NetworkParts::new(&key.namespace, name, anchor, None);
        or_refuse!(ensure_mirrors(place, network, anchor, reached).await?);
        let mut created = or_refuse!(publish(place, &network, anchor, external, ca_pem).await?);
        if let Some(genesis) = genesis {
            let made = or_refuse!(ensure_genesis(place, &network, genesis).await?);
            created |= made == Outcome::Created;
        }
        if created {
            // Pods are not made before what they mount.
            for (node, identity) in anchor.members() {
                if identity.cluster == place.cluster {
                    ctx.triggers.node(&key.namespace, node.as_str());
                }
            }
        }
        // Last: nothing else waits for it.
        ensure_policy(place, &network, anchor, access, &ctx.settings.namespace).await
    }
}
