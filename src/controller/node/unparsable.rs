//! A node whose object does not parse: it was stored while its definition allowed more, or changed past what it allows.
//!
//! Its network's pass puts the spec back (`stamp_nodes`). Here it is told where that is not done; and one that ends with
//! its network ends by the same rules as any other, as the anchor describes it.

use bsn_core::anchor::Anchor;
use bsn_core::names::{NetworkName, NodeName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::report::report_unparsable;
use super::{SLOW_LOOK, let_go, stays_for_now};
use crate::anchor::copy_of;
use crate::api::{BsnNode, BsnNodeStatus, Storage};
use crate::apply::read_status;
use crate::build::bsn_node::build_bsn_node;
use crate::build::{NetworkParts, NodeParts};
use crate::cluster::watches::{GuardedNode, cached};
use crate::controller::Error;
use crate::controller::context::Context;
use crate::controller::network::validate::validate_network;
use crate::labels;
use crate::view::NetworkKey;

/// What comes next for such a node.
enum Next {
    /// Its end, as the anchor describes it.
    End(Box<BsnNode>),
    /// Its network's pass.
    PutBack,
    /// Nothing, until somebody helps.
    Tell(String),
}

/// One pass over such a node.
pub(super) async fn look_at(
    ctx: &Context,
    guarded: &GuardedNode,
    error: &str,
) -> Result<Action, Error> {
    let (namespace, name) = (guarded.namespace().unwrap_or_default(), guarded.name_any());
    tracing::warn!(%namespace, node = %name, %error, "BsnNode does not parse");
    let why = match network_of(guarded.meta()) {
        Some(network) => {
            let key = NetworkKey { namespace: namespace.clone(), name: network };
            match next(ctx, &key, guarded).await? {
                Next::End(node) => return let_go(ctx, &key, &node).await,
                Next::PutBack => return Ok(Action::await_change()),
                Next::Tell(why) => why,
            }
        }
        None => {
            let help = how_to_help(&namespace, &name);
            format!("neither a label nor an owner says of which network it is: {help}")
        }
    };
    let message = format!("this object does not parse as v1alpha1: {error}; {why}");
    let status = read_status::<BsnNode, _>(&ctx.client, &namespace, &name).await?;
    report_unparsable(ctx, guarded.meta(), status, message).await?;
    Ok(Action::requeue(SLOW_LOOK))
}

async fn next(ctx: &Context, key: &NetworkKey, guarded: &GuardedNode) -> Result<Next, Error> {
    let (meta, name) = (guarded.meta(), guarded.name_any());
    if meta.deletion_timestamp.is_some() {
        let anchor = read_anchor(ctx, key).await?;
        // No ledger counts it any more: its end was a step of its network, which describes it no more.
        let identity = anchor.as_ref().and_then(|one| one.identity(&NodeName::from_object(&name)));
        let retired = identity.is_some_and(|identity| identity.retired);
        if retired || !stays_for_now(ctx, key, guarded).await? {
            let status = read_status::<BsnNode, _>(&ctx.client, &key.namespace, &name).await?;
            let node = anchor.and_then(|anchor| describe(&anchor, key, meta, status));
            return Ok(node.map_or_else(
                || Next::Tell(cannot_end(key, &name)),
                |node| Next::End(Box::new(node)),
            ));
        }
    }
    if is_put_back(ctx, key) {
        return Ok(Next::PutBack);
    }
    let network = &key.name;
    Ok(Next::Tell(format!(
        "the node runs on, and its spec is put back as soon as the BsnNetwork {network} is there, is valid and is not paused"
    )))
}

/// The network's name, from what is left: a label, or the owner.
fn network_of(meta: &ObjectMeta) -> Option<String> {
    let named = meta.labels.as_ref().and_then(|all| all.get(labels::NETWORK));
    let mut owners = meta.owner_references.iter().flatten();
    let owner = || owners.find(|owner| owner.controller == Some(true)).map(|owner| &owner.name);
    named.or_else(owner).cloned()
}

/// Whether the next pass of its network puts its spec back.
fn is_put_back(ctx: &Context, key: &NetworkKey) -> bool {
    let network = cached(&ctx.caches.networks, &key.namespace, &key.name);
    let Some(Ok(network)) = network.as_ref().map(|guarded| guarded.0.as_ref()) else {
        return false;
    };
    network.metadata.deletion_timestamp.is_none()
        && validate_network(network, &ctx.settings.image_prefix)
            .is_ok_and(|validated| !validated.paused)
}

/// The anchor of a network that may be gone. `None` = there is none of this hub's that can be read.
async fn read_anchor(ctx: &Context, key: &NetworkKey) -> Result<Option<Anchor>, Error> {
    let Ok(name) = NetworkName::parse(&key.name) else { return Ok(None) };
    let maps = &ctx.caches.objects.config_maps;
    let map = ctx.anchors.current(&ctx.client, maps, key, &name.anchor()).await?;
    let anchor = map.and_then(|map| copy_of(&map).ok());
    Ok(anchor.filter(|anchor| anchor.hub_id == ctx.hub_id))
}

/// A node as the anchor describes it. `None` = the anchor does not know it, or the object is another network's.
fn describe(
    anchor: &Anchor,
    key: &NetworkKey,
    meta: &ObjectMeta,
    status: Option<BsnNodeStatus>,
) -> Option<BsnNode> {
    let id = meta.labels.as_ref().and_then(|all| all.get(labels::NETWORK_ID));
    if id.is_some_and(|id| *id != anchor.network_id) {
        return None;
    }
    let name = NodeName::from_object(meta.name.as_deref()?);
    let network = NetworkName::parse(&key.name).ok()?;
    let identity = anchor.identity(&name)?;
    let network = NetworkParts::new(&key.namespace, &network, anchor, None);
    let parts = NodeParts { network, name: &name, identity, owner: None };
    let mut node = build_bsn_node(&parts, &Storage::default());
    // Its own: by the marks it is told what in a member is this node's, and others may hold it, too.
    node.metadata = meta.clone();
    node.status = status;
    Some(node)
}

/// Of a node that is being deleted, and of which nobody knows where it runs.
fn cannot_end(key: &NetworkKey, name: &str) -> String {
    let NetworkKey { namespace, name: network } = key;
    let help = how_to_help(namespace, name);
    format!(
        "it is being deleted, and the anchor {namespace}/{network}-anchor, which says in which cluster its StatefulSet and \
         Service are, is missing or does not know it. Restore that ConfigMap from a backup, or {help}"
    )
}

/// What a person does about a node that cannot be put back, nor end.
fn how_to_help(namespace: &str, name: &str) -> String {
    format!(
        "correct its spec: kubectl edit bsnnode {name} -n {namespace}. To let it go if it is deleted, and what is left of it \
         in another cluster stay: kubectl patch bsnnode {name} -n {namespace} --type=merge -p \
         '{{\"metadata\":{{\"finalizers\":null}}}}'"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn anchor() -> Anchor {
        serde_json::from_value(json!({
            "version": 1, "hubId": "h1", "networkId": "n1", "chainId": "c",
            "genesisTime": "2026-01-01T00:00:00Z", "founders": [], "nextIndex": {},
            "identities": {
                "city-a-0": {"id": "i0", "set": "a", "role": "Validator", "cluster": "beijing"},
                "city-a-1": {"id": "i1", "set": "a", "role": "FullNode", "retired": true},
            },
        }))
        .unwrap()
    }

    fn key() -> NetworkKey {
        NetworkKey { namespace: "ledger".to_owned(), name: "city".to_owned() }
    }

    fn meta(name: &str, network_id: &str) -> ObjectMeta {
        serde_json::from_value(json!({
            "name": name, "namespace": "ledger", "uid": "u1",
            "labels": {(labels::NETWORK): "city", (labels::NETWORK_ID): network_id},
            "finalizers": ["example.com/other"],
        }))
        .unwrap()
    }

    #[test]
    fn the_anchor_says_where_a_node_ends_that_does_not_say_it_itself() {
        let meta_of_0 = meta("city-a-0", "n1");
        let node = describe(&anchor(), &key(), &meta_of_0, None).unwrap();
        assert_eq!(node.spec.cluster.as_deref(), Some("beijing"));
        assert_eq!(node.metadata, meta_of_0, "its marks are its own");
        // One that is retired ends, too; and on the hub.
        let node = describe(&anchor(), &key(), &meta("city-a-1", "n1"), None).unwrap();
        assert_eq!(node.spec.cluster, None);
    }

    #[test]
    fn of_what_the_anchor_does_not_know_nothing_is_assumed() {
        for meta in [meta("city-a-7", "n1"), meta("city-a-0", "n2")] {
            assert!(describe(&anchor(), &key(), &meta, None).is_none(), "{meta:?}");
        }
    }

    #[test]
    fn a_node_says_by_its_label_or_its_owner_of_which_network_it_is() {
        let mut meta = meta("city-a-0", "n1");
        assert_eq!(network_of(&meta).as_deref(), Some("city"));
        meta.labels = None;
        assert_eq!(network_of(&meta), None);
        let owner = |controller: bool, name: &str| json!({"apiVersion": "v1", "kind": "K", "name": name, "uid": "u", "controller": controller});
        let owners = json!([owner(false, "other"), owner(true, "town")]);
        meta.owner_references = serde_json::from_value(owners).unwrap();
        assert_eq!(network_of(&meta).as_deref(), Some("town"));
    }
}
