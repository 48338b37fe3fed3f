//! Keys that an owner brings: read once, before anything of the node is made, and checked against all that is known of
//! them. From then on they are the node's own, as if they had been made for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bsn_core::anchor::{ANCHOR_KEY, Anchor, Brought, Identity};
use bsn_core::brought::may_take;
use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, PrivateKey, PublicKey};
use bsn_core::names::NodeName;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;

use super::apply::Pass;
use super::keys::{BroughtKeys, ReadKeys, parse_brought};
use crate::api::conditions::Reason;
use crate::apply::read;
use crate::cluster::watches::cached;
use crate::controller::{Refusal, Step};
use crate::evidence::known::know;

/// A node's keys as they were found, and where they came from.
pub struct FoundKeys {
    /// The keys.
    pub read: ReadKeys,
    /// Where from, if an owner brought them.
    pub brought: Option<Brought>,
}

/// A node: its namespace and its name.
type Holder = (String, String);

/// Keys that are being taken: which node has each, from before it is made until the caches show the anchor that says so.
/// Anchors alone would not do, since two nodes may be made at the same time.
#[derive(Clone, Default)]
pub struct Reservations(Arc<Mutex<BTreeMap<PublicKey, Holder>>>);

impl Reservations {
    /// Reserves keys for a node, and lets go what it had reserved before; or tells who has one of them. A holder that
    /// does not exist any more (`exists`) has none.
    fn reserve(
        &self,
        keys: &[&PublicKey],
        node: &Holder,
        exists: impl Fn(&Holder) -> bool,
    ) -> Result<(), Holder> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, holder| holder != node && exists(holder));
        if let Some(holder) = keys.iter().find_map(|key| all.get(*key)) {
            return Err(holder.clone());
        }
        for key in keys {
            all.insert((*key).clone(), node.clone());
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Reads the keys that are brought for this node, if it is yet to be made; `None` = it has keys, or gets new ones.
    pub(super) async fn read_brought(
        &self,
        identity: &Identity,
        anchor: &Anchor,
    ) -> Step<Option<BroughtKeys>> {
        let Some(secret) = self.validated.keys.get(self.name) else { return Ok(Ok(None)) };
        if identity.keys.is_some() || identity.uids.keys.is_some() {
            return Ok(Ok(None));
        }
        let (client, namespace) = (&self.place.client, &self.key.namespace);
        // Made by a pass that crashed before it was recorded: it is looked at as any other.
        if read::<Secret>(client, namespace, &self.name.keys()).await?.is_some() {
            return Ok(Ok(None));
        }
        let place = format!("{namespace}/{secret}");
        let Some(found) = read::<Secret>(client, namespace, secret).await? else {
            let there = match identity.cluster.as_str() {
                "" => String::new(),
                cluster => format!(" in cluster {cluster}"),
            };
            let message = format!(
                "the Secret {place}, named in keys, does not exist{there}. Make it there with {CONSENSUS_KEY_FILE} in it, or \
                 take it out of keys to have new keys made; nothing was made of the node"
            );
            return Ok(Err(Refusal::new(Reason::KeysMissing, message)));
        };
        let keys = or_refuse!(parse_brought(&found, &place));
        let consensus = keys.consensus.public();
        let p2p = keys.p2p.as_ref().map(PrivateKey::public);
        if let Err(other) = self.reserve(&consensus, p2p.as_ref()) {
            let message = format!(
                "the Secret {place}, named in keys, holds a key of {other}; two nodes with one key sign twice. Bring \
                 another key; nothing was made of the node"
            );
            return Ok(Err(Refusal::new(Reason::KeyUsedTwice, message)));
        }
        or_refuse!(self.check_brought(&consensus, anchor));
        tracing::info!(node = %self.name, secret, address = consensus.validator_address(), "keys are brought");
        Ok(Ok(Some(keys)))
    }

    /// Whether a key that is brought may be taken, by what is seen of the chain; gives the height up to which it must
    /// not sign here.
    pub(super) fn check_brought(&self, key: &PublicKey, anchor: &Anchor) -> Result<u64, Refusal> {
        let targets = self.ctx.targets.get(self.key);
        let known: Vec<_> = targets
            .iter()
            .flat_map(|targets| &targets.nodes)
            .map(|target| know(target, &self.ctx.clusters, &self.key.namespace))
            .collect();
        let sight =
            self.ctx.watches.sight(self.key, &anchor.network_id, &anchor.chain_id, &known, None);
        let ledger = sight.as_ref().map(|(sight, _)| &sight.ledger);
        let address = key.validator_address();
        may_take(anchor.has_begun(), ledger, &self.validated.policy, &address).map_err(|why| {
            let message = format!("the key that is brought for it (address {address}): {why}");
            Refusal::new(Reason::KeySignsElsewhere, message)
        })
    }

    /// Reserves keys for this node, or tells which node on this hub has one of them.
    pub(super) fn reserve(
        &self,
        consensus: &PublicKey,
        p2p: Option<&PublicKey>,
    ) -> Result<(), String> {
        let keys: Vec<&PublicKey> = [consensus].into_iter().chain(p2p).collect();
        let own = (self.key.namespace.clone(), self.name.to_string());
        let words = |(namespace, node): Holder| format!("node {namespace}/{node}");
        let exists =
            |(namespace, node): &Holder| cached(&self.ctx.caches.nodes, namespace, node).is_some();
        self.ctx.reservations.reserve(&keys, &own, exists).map_err(words)?;
        self.recorded_holder(&keys, &own).map_or(Ok(()), |holder| Err(words(holder)))
    }

    /// Another node of which an anchor on this hub says that it has one of these keys. One that is retired has it, too.
    fn recorded_holder(&self, keys: &[&PublicKey], own: &Holder) -> Option<Holder> {
        self.ctx.caches.objects.config_maps.state().iter().find_map(|map| {
            let anchor: Anchor = serde_json::from_str(map.data.as_ref()?.get(ANCHOR_KEY)?).ok()?;
            let namespace = map.namespace()?;
            anchor.identities.iter().find_map(|(name, identity)| {
                let holder = (namespace.clone(), name.clone());
                let known = identity.keys.as_ref()?;
                let has = keys.iter().any(|key| [&known.consensus, &known.p2p].contains(key));
                (has && holder != *own).then_some(holder)
            })
        })
    }
}

/// Nodes that were made with other keys than are described for them now, in words; a node's identity is fixed.
pub fn fixed_otherwise(anchor: &Anchor, described: &BTreeMap<NodeName, String>) -> Vec<String> {
    let made = described.iter().filter_map(|(name, secret)| {
        let identity = anchor.identity(name).filter(|identity| !identity.retired)?;
        identity.keys.as_ref()?;
        match &identity.brought {
            Some(brought) if brought.secret == *secret => None,
            Some(brought) => {
                Some(format!("{name} has the keys of Secret {}, not {secret}", brought.secret))
            }
            None => Some(format!("{name} has keys that were made for it, not those of {secret}")),
        }
    });
    made.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(n: u8) -> PublicKey {
        PrivateKey::from_random([n; 32]).public()
    }

    fn node(name: &str) -> Holder {
        ("ledger".to_owned(), name.to_owned())
    }

    #[test]
    fn a_key_is_reserved_for_one_node_until_that_is_gone_or_takes_another() {
        let all = Reservations::default();
        let (here, gone) = (|_: &Holder| true, |_: &Holder| false);
        let (a, b, c) = (key(1), key(2), key(3));
        assert_eq!(all.reserve(&[&a, &b], &node("x"), here), Ok(()));
        assert_eq!(all.reserve(&[&a, &b], &node("x"), here), Ok(()), "as often as it is looked at");
        assert_eq!(all.reserve(&[&b], &node("y"), here), Err(node("x")));
        assert_eq!(all.reserve(&[&c, &b], &node("y"), here), Err(node("x")));
        // What was refused reserves nothing.
        assert_eq!(all.reserve(&[&c], &node("z"), here), Ok(()));
        // Its owner corrected the description.
        assert_eq!(all.reserve(&[&a], &node("x"), here), Ok(()));
        assert_eq!(all.reserve(&[&b], &node("y"), here), Ok(()));
        assert_eq!(all.reserve(&[&b], &node("w"), gone), Ok(()));
    }

    #[test]
    fn other_keys_for_a_node_that_has_some_are_told_and_nothing_else_is() {
        let keys =
            json!({"consensus": key(1).base64(), "p2p": key(2).base64(), "tlsSpkiSha256": "t"});
        let anchor: Anchor = serde_json::from_value(json!({
            "version": 1, "hubId": "h1", "networkId": "n1", "chainId": "c",
            "genesisTime": "2026-01-01T00:00:00Z", "founders": [], "nextIndex": {},
            "identities": {
                "n-v-0": {"id": "a", "set": "v", "role": "Validator", "keys": keys,
                    "brought": {"secret": "mine"}},
                "n-v-1": {"id": "b", "set": "v", "role": "Validator", "keys": keys},
                "n-v-2": {"id": "c", "set": "v", "role": "Validator"},
                "n-v-3": {"id": "d", "set": "v", "role": "Validator", "keys": keys, "retired": true},
            },
        }))
        .unwrap();
        let told = |described: &[(&str, &str)]| {
            let described =
                described.iter().map(|(node, name)| (NodeName::from_object(node), (*name).into()));
            fixed_otherwise(&anchor, &described.collect())
        };
        assert!(
            told(&[("n-v-0", "mine"), ("n-v-2", "x"), ("n-v-3", "x"), ("n-v-9", "x")]).is_empty()
        );
        let both = told(&[("n-v-0", "other"), ("n-v-1", "other")]);
        assert_eq!(both.len(), 2);
        assert!(both[0].contains("mine") && both[1].contains("made for it"), "{both:?}");
    }
}
