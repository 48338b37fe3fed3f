//! What is kept until a person releases it: private keys, disks, the CA and the anchor.
//!
//! Each of them carries a finalizer, so that a deletion by mistake, of one object or of a whole namespace,
//! takes nothing that a chain depends on. A person releases an identity, or a whole network, by its id in an
//! annotation of the anchor.

use crate::anchor::Anchor;
use crate::names::{NetworkName, NodeName};

/// Finalizer of keys, disks, CAs and anchors.
pub const KEEP_FINALIZER: &str = "bsn-operator.io/keep";
/// Finalizer of a `BsnNode`: one that a user deletes is replaced first, and goes when no ledger counts it.
pub const NODE_FINALIZER: &str = "bsn-operator.io/replaced-first";
/// Finalizer of a `BsnNetwork` whose deletion policy names something: that goes before the network does.
pub const POLICY_FINALIZER: &str = "bsn-operator.io/deletion-policy";
/// Annotation of the anchor: ids of identities, or the network's id; separated by commas.
pub const RELEASE_ANNOTATION: &str = "bsn-operator.io/release";
/// Annotation of all that is kept: what it is, and what releases it. For people; nothing is decided on it.
pub const KEPT_ANNOTATION: &str = "bsn-operator.io/kept";

/// What may be let go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Release {
    /// Nodes whose keys and disks may go, in this order.
    pub nodes: Vec<NodeName>,
    /// The anchor may go, after them.
    pub anchor: bool,
    /// What was asked for and is not done, with the reason.
    pub refused: Vec<String>,
}

/// Says on an object that is kept why it stays, and how all of its network is let go. The object has to say it: the network
/// that could is gone by then. The command comes last, to be copied.
pub fn render_kept(namespace: &str, network: &NetworkName, network_id: &str) -> String {
    format!(
        "kept when BsnNetwork {network} or this namespace is deleted: keys, disks, CA and anchor are not made again. To let all \
         of them go for good, delete the BsnNetwork, then on its hub: kubectl annotate configmap {} -n {namespace} --overwrite \
         {RELEASE_ANNOTATION}={network_id}",
        network.anchor()
    )
}

/// Decides what `annotation` releases. `network_exists` = the `BsnNetwork` is there, by a live read.
pub fn plan_release(anchor: &Anchor, annotation: &str, network_exists: bool) -> Release {
    let mut release = Release::default();
    for id in annotation.split(',').map(str::trim).filter(|id| !id.is_empty()) {
        if id == anchor.network_id {
            if network_exists {
                release.refused.push(format!(
                    "network id {id} is not released while its BsnNetwork exists: delete that first"
                ));
            } else {
                release.nodes =
                    anchor.identities.keys().map(|name| NodeName::from_object(name)).collect();
                release.anchor = true;
            }
            continue;
        }
        match anchor.identities.iter().find(|(_, identity)| identity.id == id) {
            Some((name, identity)) if identity.retired || !network_exists => {
                let name = NodeName::from_object(name);
                if !release.nodes.contains(&name) {
                    release.nodes.push(name);
                }
            }
            Some((name, _)) => release.refused.push(format!(
                "identity {id} is not released: it is node {name}, which the BsnNetwork still has"
            )),
            None => {
                release.refused.push(format!("{id} is no identity of this network, nor its id"));
            }
        }
    }
    release
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::{ANCHOR_VERSION, Identity, Role};

    fn identity(id: &str, retired: bool) -> Identity {
        Identity { retired, ..Identity::new(id.into(), "a".into(), Role::FullNode) }
    }

    fn anchor() -> Anchor {
        Anchor {
            version: ANCHOR_VERSION,
            hub_id: "h".into(),
            revision: 1,
            former_hubs: [].into(),
            terms: Vec::new(),
            network_id: "n1".into(),
            chain_id: "c".into(),
            genesis_time: jiff::Timestamp::UNIX_EPOCH,
            founders: Vec::new(),
            joins: false,
            ca: None,
            genesis_hash: None,
            formed: true,
            used_consents: [].into(),
            shares: [].into(),
            next_index: [].into(),
            identities: [
                ("net-a-0".to_owned(), identity("i0", false)),
                ("net-a-1".to_owned(), identity("i1", true)),
            ]
            .into(),
        }
    }

    #[test]
    fn what_a_network_still_uses_is_not_released() {
        let release = plan_release(&anchor(), "i0, i1, n1, what", true);
        assert_eq!(release.nodes, [NodeName::from_object("net-a-1")]);
        assert!(!release.anchor);
        assert_eq!(release.refused.len(), 3, "{:?}", release.refused);
    }

    #[test]
    fn without_its_network_everything_may_go() {
        let release = plan_release(&anchor(), "n1", false);
        assert_eq!(release.nodes.len(), 2);
        assert!(release.anchor && release.refused.is_empty());
        let release = plan_release(&anchor(), "i0", false);
        assert_eq!((release.nodes.len(), release.anchor), (1, false));
    }

    #[test]
    fn what_is_kept_says_in_one_line_what_releases_all_of_it() {
        let said = render_kept("ledger", &NetworkName::parse("net").unwrap(), "n1");
        assert!(!said.contains('\n'), "{said}");
        let (_, command) = said.split_once("kubectl annotate ").unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        assert_eq!(words[..5], ["configmap", "net-anchor", "-n", "ledger", "--overwrite"]);
        let (key, value) = words[5].split_once('=').unwrap();
        assert_eq!((key, words.len()), (RELEASE_ANNOTATION, 6));
        let release = plan_release(&anchor(), value, false);
        assert!(release.anchor && release.nodes.len() == 2 && release.refused.is_empty());
    }
}
