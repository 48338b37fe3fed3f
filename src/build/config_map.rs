//! `ConfigMap`s: the anchor, the CA's certificate, the genesis, the peers; a node's configuration and
//! its certificate. Nothing in them is secret.

use std::collections::BTreeMap;

use bsn_core::anchor::{ANCHOR_KEY, Anchor};
use bsn_core::engine::cometbft::config::{
    Application, CONFIG_FILE, ExternalPeer, NodeConfig, Paths, Peer, render_config,
};
use bsn_core::engine::cometbft::genesis::{GENESIS_FILE, Genesis};
use bsn_core::hash::short_hash;
use bsn_core::steps::{HISTORY_KEY, PastStep};
use k8s_openapi::api::core::v1::ConfigMap;

use super::{NetworkParts, NodeParts};
use crate::agent::paths;

/// Key of the genesis hash in the genesis `ConfigMap`, for people and for `kubectl`.
pub const GENESIS_HASH_KEY: &str = "genesis.sha256";

#[expect(clippy::unnecessary_wraps, reason = "the fields it fills are optional")]
fn data<const N: usize>(entries: [(&str, String); N]) -> Option<BTreeMap<String, String>> {
    Some(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// The anchor. It stays when the network goes.
pub fn build_anchor_map(network: &NetworkParts<'_>, anchor: &Anchor) -> ConfigMap {
    ConfigMap {
        metadata: network.held(network.name.anchor()),
        data: data([(ANCHOR_KEY, anchor.to_json())]),
        ..ConfigMap::default()
    }
}

/// The history of steps, oldest first.
pub fn build_history_map(network: &NetworkParts<'_>, history: &[PastStep]) -> ConfigMap {
    // Plain structs: serialising them cannot fail.
    let text = serde_json::to_string_pretty(history).unwrap_or_default();
    ConfigMap {
        metadata: network.kept(network.name.history()),
        data: data([(HISTORY_KEY, text)]),
        ..ConfigMap::default()
    }
}

/// The CA's certificate, for clients of the gateways.
pub fn build_ca_map(network: &NetworkParts<'_>, ca_pem: &str) -> ConfigMap {
    ConfigMap {
        metadata: network.kept(network.name.ca()),
        data: data([(paths::CA_FILE, ca_pem.to_owned())]),
        ..ConfigMap::default()
    }
}

/// The genesis: immutable, named by its hash. It stays when the network goes.
pub fn build_genesis_map(network: &NetworkParts<'_>, genesis: &Genesis) -> ConfigMap {
    ConfigMap {
        metadata: network.kept(network.name.genesis(&genesis.hash)),
        data: data([
            (GENESIS_FILE, genesis.text.clone()),
            (GENESIS_HASH_KEY, genesis.hash.clone()),
        ]),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// The nodes' addresses for each other, this list the same for all. It is read when a node starts; a
/// node that joins later dials the others, so nobody restarts for it. Nodes of other owners have a list of their own,
/// `external`: guards do not ask them. One that is given twice is dialled as ours.
pub fn build_peers_map(
    network: &NetworkParts<'_>,
    peers: &[Peer],
    external: &[ExternalPeer],
    joins: bool,
) -> ConfigMap {
    let lines: String = peers.iter().map(|peer| peer.line() + "\n").collect();
    let own = |peer: &ExternalPeer| peers.iter().any(|own| own.node_id == peer.node_id);
    let external: String =
        external.iter().filter(|peer| !own(peer)).map(|peer| peer.address() + "\n").collect();
    let mut files = BTreeMap::from([(paths::PEERS_FILE.to_owned(), lines)]);
    if !external.is_empty() {
        files.insert(paths::EXTERNAL_PEERS_FILE.to_owned(), external);
    }
    if joins {
        let why =
            "The chain was made by others: the first start of a node waits for one of them.\n";
        files.insert(paths::JOINS_FILE.to_owned(), why.to_owned());
    }
    ConfigMap {
        metadata: network.owned(network.name.peers()),
        data: Some(files),
        ..ConfigMap::default()
    }
}

/// The nodes that can be dialled: their keys and Services exist. Sorted by name.
pub fn peers_of(anchor: &Anchor, namespace: &str) -> Vec<Peer> {
    anchor
        .members()
        .filter(|(_, identity)| identity.provisioned())
        .filter_map(|(name, identity)| {
            let keys = identity.keys.as_ref()?;
            Some(Peer {
                node_id: keys.p2p.node_id(),
                host: name.service_dns(namespace),
                tls_spki_sha256: keys.tls_spki_sha256.clone(),
            })
        })
        .collect()
}

/// A node's leaf certificate and the CA bundle. Updated in place: the gateway reads it again.
pub fn build_certificate_map(node: &NodeParts<'_>, leaf_pem: &str, ca_pem: &str) -> ConfigMap {
    ConfigMap {
        metadata: node.owned(node.name.certificate()),
        data: data([(paths::CERT_FILE, leaf_pem.to_owned()), (paths::CA_FILE, ca_pem.to_owned())]),
        ..ConfigMap::default()
    }
}

/// A node's configuration: immutable, named by its content. It stays as long as a template names it.
pub fn build_config_map(
    node: &NodeParts<'_>,
    application: Application,
    timeout_commit: Option<&str>,
) -> ConfigMap {
    let text = render_config(&NodeConfig {
        moniker: node.name.as_str(),
        application,
        timeout_commit,
        paths: &Paths {
            data: paths::ENGINE_DATA.to_owned(),
            keys: paths::KEYS.to_owned(),
            genesis: format!("{}/{GENESIS_FILE}", paths::GENESIS_DIR),
        },
    });
    ConfigMap {
        metadata: node.kept(node.name.config(&short_hash(text.as_bytes()))),
        data: data([(CONFIG_FILE, text)]),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// Key of the pod template in its `ConfigMap`.
pub const TEMPLATE_KEY: &str = "template.json";

/// A pod template: immutable, named by its content. It stays when the network goes: applied again, every
/// node first comes back as it was.
pub fn build_template_map(node: &NodeParts<'_>, hash: &str, text: String) -> ConfigMap {
    ConfigMap {
        metadata: node.kept(node.name.template(hash)),
        data: data([(TEMPLATE_KEY, text)]),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::samples::with_node;

    #[test]
    fn nodes_of_other_owners_are_listed_apart_and_none_of_ours_among_them() {
        let own = Peer {
            node_id: "ab".repeat(20),
            host: "city-ledger-hangzhou-0.ledger.svc".into(),
            tls_spki_sha256: "cd".repeat(32),
        };
        let external =
            |id: &str| ExternalPeer { node_id: id.repeat(20), host: "h".into(), port: 7 };
        let map = |external: &[ExternalPeer], joins| {
            let own = std::slice::from_ref(&own);
            with_node(None, |node| build_peers_map(&node.network, own, external, joins))
                .data
                .unwrap()
        };
        // As it always was, where there are none.
        let keys: Vec<String> = map(&[], false).into_keys().collect();
        assert_eq!(keys, [paths::PEERS_FILE]);
        let both = map(&[external("ab"), external("ef")], true);
        let listed = format!("{}@h:7\n", "ef".repeat(20));
        assert_eq!(both[paths::EXTERNAL_PEERS_FILE], listed);
        assert!(
            both.contains_key(paths::JOINS_FILE) && both[paths::PEERS_FILE].lines().count() == 1
        );
    }
}
