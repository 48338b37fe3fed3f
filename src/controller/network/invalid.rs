//! What is wrong with a description, in words that say what to do.

use bsn_core::anchor::{Anchor, Role};
use bsn_core::engine::cometbft::transaction::TemplateError;
use bsn_core::engine::cometbft::{MAX_CHAIN_ID, VersionError};
use bsn_core::forming::DesiredSet;
use bsn_core::names::{NameError, NetworkName, SetName};

use super::pods::InvalidPod;

/// Why a description makes no sense; the message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// A name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The engine's version.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// No engine.
    #[error(
        "spec.engine names no engine; set engine: {{cometbft: {{version: 0.38.25, app: {{persistentKvstore: {{}}}}}}}}"
    )]
    NoEngine,
    /// No application, or two.
    #[error("spec.engine.cometbft.app must name exactly one of persistentKvstore and container")]
    OneApp,
    /// The chain id's length.
    #[error("spec.chainId has {0} characters; use 1 to {MAX_CHAIN_ID}")]
    ChainId(usize),
    /// Two sets of one name.
    #[error("two node sets are named {0:?}; give each its own name")]
    DuplicateSet(String),
    /// No validator.
    #[error(
        "a chain needs a validator that votes; add a node set with role Validator and replicas of at least 1, and \
         without voting: false"
    )]
    NoValidators,
    /// No origin of the chain, or two.
    #[error("spec.genesis must name exactly one of create and from")]
    OneGenesis,
    /// Nobody to hear the chain from.
    #[error(
        "a network that joins a chain needs spec.externalPeers; name at least one node of its owners, as kubectl bsn bundle \
         prints them"
    )]
    NoExternalPeers,
    /// A node that cannot be dialled.
    #[error("spec.externalPeers: {peer:?}: {why}")]
    ExternalPeer {
        /// Which.
        peer: String,
        /// What is wrong, and what to write.
        why: &'static str,
    },
    /// A name that no node of the set can have.
    #[error(
        "spec.nodeSets: {list} of set {set:?} holds {name:?}; nodes of this set are named {network}-{set}-<index>, \
         for example {network}-{set}-0: correct the name, or move it to the set it belongs to"
    )]
    NotOfSet {
        /// `retire`, `hold` or `keys`.
        list: &'static str,
        /// The network.
        network: NetworkName,
        /// The set.
        set: SetName,
        /// The name given.
        name: String,
    },
    /// A duration.
    #[error(
        "spec.{field}: {value:?} is not a duration; write hours, minutes and seconds, for example 2160h"
    )]
    Duration {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
    /// Renewed before it is issued.
    #[error("spec.pki.leaf.renewBefore must be shorter than validity")]
    RenewBefore,
    /// Replaced before it is restarted.
    #[error(
        "spec.repair.cureAfter must not be longer than gracePeriod; a node is restarted before it is replaced"
    )]
    CureAfter,
    /// No way to halt an application.
    #[error(
        "spec.upgrade.strategy: AtHeight needs app.container.halt; name the environment variable by which your \
         application is told to stop at a height"
    )]
    NoHalt,
    /// A template that nothing would be made from.
    #[error(
        "spec.membership.submit is for an application of your own; remove it, the operator knows the transactions of \
         the built-in store"
    )]
    SubmitToStore,
    /// A template from which no transaction can be made.
    #[error("spec.membership.submit.txTemplate: {0}")]
    Template(#[from] TemplateError),
    /// One key for two nodes, or two for one.
    #[error(
        "spec.nodeSets: keys name {what} twice; give each node one Secret of its own: two nodes with one key sign twice"
    )]
    KeysTwice {
        /// A node, or a Secret.
        what: String,
    },
    /// The operator's own copy of a node's keys.
    #[error(
        "spec.nodeSets: keys name the Secret {0}, but under that name the operator keeps its own copy; give yours another \
         name"
    )]
    OwnKeys(String),
    /// Not a range of addresses.
    #[error(
        "spec.networkPolicy.outsideAddresses: {0:?} is no range of addresses; write it as 192.168.7.0/24 or fd00:7::/48"
    )]
    Range(String),
    /// Nodes of other clusters would be shut out.
    #[error(
        "spec.networkPolicy.outsideAddresses is empty, but nodes in other clusters come from outside addresses; put \
         their ranges into it, or leave it out to admit them from anywhere"
    )]
    ShutOut,
    /// Pods.
    #[error(transparent)]
    Pod(#[from] InvalidPod),
}

/// A set whose nodes were made with another role, or in another cluster; `None` = there is none. The schema compares with the
/// description before, and knows nothing of one that was deleted, or of a set that was left out for a while.
pub fn made_otherwise(anchor: &Anchor, sets: &[DesiredSet]) -> Option<String> {
    sets.iter().find_map(|set| {
        let own = anchor.members().filter(|(_, identity)| identity.set == set.name.as_str());
        let other =
            |role: Role, cluster: &str| role != set.role || cluster != set.cluster.as_str();
        let others: Vec<_> =
            own.filter(|(_, identity)| other(identity.role, &identity.cluster)).collect();
        let (_, first) = others.first()?;
        let names: Vec<String> = others.iter().map(|(name, _)| name.to_string()).collect();
        let place = match first.cluster.as_str() {
            "" => "without cluster".to_owned(),
            cluster => format!("with cluster {cluster}"),
        };
        Some(format!(
            "spec.nodeSets: nodes of set {} were made with role {:?} and {place}: {}. Describe the set as it was, and give \
             the new one another name; once the old nodes are gone (replicas: 0), the name is free",
            set.name,
            first.role,
            names.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use bsn_core::engine::cometbft::Version;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::BsnNetwork;
    use crate::controller::network::validate::validate_network;

    #[test]
    fn a_set_that_came_back_as_another_is_told_from_what_it_was() {
        let anchor: Anchor = serde_json::from_value(json!({
            "version": 1, "hubId": "h1", "networkId": "n1", "chainId": "c",
            "genesisTime": "2026-01-01T00:00:00Z", "founders": [], "nextIndex": {},
            "identities": {
                "n-r-0": {"id": "a", "set": "r", "role": "FullNode"},
                "n-r-1": {"id": "b", "set": "r", "role": "FullNode", "cluster": "city"},
                "n-v-0": {"id": "c", "set": "v", "role": "Validator", "retired": true},
            },
        }))
        .unwrap();
        let told = |name: &str, role, cluster: &str| {
            let set = DesiredSet {
                name: SetName::parse(name).unwrap(),
                role,
                voting: true,
                replicas: 1,
                power: 1,
                cluster: cluster.to_owned(),
            };
            made_otherwise(&anchor, &[set])
        };
        let here = told("r", Role::FullNode, "").unwrap();
        assert!(here.contains("FullNode and with cluster city: n-r-1."), "{here}");
        let voters = told("r", Role::Validator, "").unwrap();
        assert!(voters.contains("without cluster: n-r-0, n-r-1."), "{voters}");
        // Who is gone for good binds nobody.
        assert_eq!(told("v", Role::FullNode, "city"), None);
        assert_eq!(told("new", Role::FullNode, ""), None);
    }

    /// What is wrong with a network of one voter, described like this but for one thing.
    fn wrong(name: &str, pointer: &str, value: Value) -> InvalidSpec {
        let mut spec = json!({
            "chainId": "net-1",
            "engine": {"cometbft": {"version": "0.38.25", "app": {"persistentKvstore": {}}}},
            "nodeSets": [{"name": "v", "role": "Validator", "replicas": 1}],
            "pki": {"leaf": {"validity": "2h", "renewBefore": "1h"}},
        });
        *spec.pointer_mut(pointer).unwrap() = value;
        let network = BsnNetwork::new(name, serde_json::from_value(spec).unwrap());
        validate_network(&network, "").unwrap_err()
    }

    /// Two sets of one name would share disks, resources and names of nodes.
    #[test]
    fn two_node_sets_never_have_one_name() {
        let set = |role: &str| json!({"name": "v", "role": role, "replicas": 1});
        for role in ["Validator", "FullNode"] {
            let found = wrong("net", "/nodeSets", json!([set("Validator"), set(role)]));
            assert_eq!(found, InvalidSpec::DuplicateSet("v".to_owned()));
            assert!(found.to_string().contains("give each its own name"), "{found}");
        }
    }

    #[test]
    fn a_version_outside_of_the_supported_line_is_refused_with_one_that_fits() {
        for version in ["0.38.14", "0.38.4", "0.37.15", "0.39.0", "1.0.1", "v0.38.25", ""] {
            let found = wrong("net", "/engine/cometbft/version", json!(version));
            assert_eq!(found, InvalidSpec::Version(Version::parse(version).unwrap_err()));
            assert!(found.to_string().contains("use 0.38.15 or a later 0.38 release"), "{found}");
        }
    }

    /// An older schema may have let it through.
    #[test]
    fn what_admission_did_not_see_is_refused_all_the_same() {
        let (store, app) = (json!({}), json!({"image": "x"}));
        for (pointer, value, expected) in [
            ("/engine", json!({}), InvalidSpec::NoEngine),
            ("/engine/cometbft/app", json!({}), InvalidSpec::OneApp),
            (
                "/engine/cometbft/app",
                json!({"persistentKvstore": store, "container": app}),
                InvalidSpec::OneApp,
            ),
            ("/chainId", json!(""), InvalidSpec::ChainId(0)),
            ("/chainId", json!("c".repeat(51)), InvalidSpec::ChainId(51)),
            ("/nodeSets", json!([]), InvalidSpec::NoValidators),
            ("/pki/leaf/renewBefore", json!("2h"), InvalidSpec::RenewBefore),
        ] {
            assert_eq!(wrong("net", pointer, value), expected);
        }
        let long = "v".repeat(16);
        let expected = InvalidSpec::Name(SetName::parse(&long).unwrap_err());
        assert_eq!(wrong("net", "/nodeSets/0/name", json!(long)), expected);
        let long = "n".repeat(31);
        let expected = InvalidSpec::Name(NetworkName::parse(&long).unwrap_err());
        assert_eq!(wrong(&long, "/chainId", json!("net-1")), expected);
    }
}
