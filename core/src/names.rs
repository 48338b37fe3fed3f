//! Names and their Kubernetes limits.
//!
//! A node's name is also the name of its `StatefulSet` and `Service`. A `StatefulSet`'s name must
//! leave room for the `controller-revision-hash` label value `<name>-<10 characters>` within 63,
//! hence 52. `<network ≤ 30>-<set ≤ 15>-<index ≤ 4 digits>` always fits: 30 + 1 + 15 + 1 + 4 = 51.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name of a network, in characters.
pub const MAX_NETWORK_NAME: usize = 30;
/// Longest name of a node set, in characters.
pub const MAX_SET_NAME: usize = 15;
/// Highest index of a node in its set.
pub const MAX_INDEX: u32 = 9999;

/// A cluster as people read it; the empty name is the hub's.
pub fn cluster_in_words(cluster: &str) -> String {
    if cluster.is_empty() { "the hub".to_owned() } else { format!("cluster {cluster}") }
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Too long for the objects that are named after it.
    #[error("the name {name:?} has {len} characters; at most {max} fit the objects named after it")]
    TooLong {
        /// The name given.
        name: String,
        /// Its length in characters.
        len: usize,
        /// The limit in characters.
        max: usize,
    },
    /// Not a DNS label (RFC 1123) that starts with a letter (RFC 1035, as Services need).
    #[error(
        "the name {name:?} must start with a letter and hold only lower-case letters, digits and '-', \
         and not end with '-'"
    )]
    NotALabel {
        /// The name given.
        name: String,
    },
    /// An index beyond [`MAX_INDEX`].
    #[error("set {set:?} has used up its node indexes (the last is {MAX_INDEX}); add another set")]
    IndexesUsedUp {
        /// The set's name.
        set: String,
    },
}

/// Whether a text is of the characters of a DNS label (RFC 1123): lowercase letters, digits and, inside, `-`. How long it
/// may be is the caller's to say.
pub fn is_dns_label(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(inside) && !text.starts_with('-') && !text.ends_with('-')
}

fn check_label(name: &str, max: usize) -> Result<(), NameError> {
    let len = name.chars().count();
    if len > max {
        return Err(NameError::TooLong { name: name.to_owned(), len, max });
    }
    let first_ok = name.starts_with(|c: char| c.is_ascii_lowercase());
    if first_ok && is_dns_label(name) {
        Ok(())
    } else {
        Err(NameError::NotALabel { name: name.to_owned() })
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// Name of a `BsnNetwork`, short enough for everything named after it.
    NetworkName
);
name_type!(
    /// Name of a node set, unique in its network.
    SetName
);
name_type!(
    /// Name of a node: of its `BsnNode`, `StatefulSet`, `Service` and, with a suffix, the rest.
    NodeName
);

impl NetworkName {
    /// Checks `name` against [`MAX_NETWORK_NAME`] and the form of a DNS label.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_label(name, MAX_NETWORK_NAME).map(|()| Self(name.to_owned()))
    }

    /// The node `index` of `set`.
    pub fn node(&self, set: &SetName, index: u32) -> Result<NodeName, NameError> {
        if index > MAX_INDEX {
            return Err(NameError::IndexesUsedUp { set: set.0.clone() });
        }
        Ok(NodeName(format!("{}-{}-{index}", self.0, set.0)))
    }

    /// The anchor's `ConfigMap`.
    pub fn anchor(&self) -> String {
        format!("{}-anchor", self.0)
    }

    /// The `ConfigMap` with the history of steps.
    pub fn history(&self) -> String {
        format!("{}-history", self.0)
    }

    /// The `Secret` with the network CA's key, and the `ConfigMap` with its certificate for clients.
    pub fn ca(&self) -> String {
        format!("{}-ca", self.0)
    }

    /// The `Secret` with a certificate for ordinary clients of the gateways.
    pub fn client(&self) -> String {
        format!("{}-client", self.0)
    }

    /// The genesis `ConfigMap`, named by the SHA-256 of its bytes.
    pub fn genesis(&self, genesis_hash: &str) -> String {
        format!("{}-genesis-{}", self.0, genesis_hash.get(..10).unwrap_or(genesis_hash))
    }

    /// The `ConfigMap` with the list of peers.
    pub fn peers(&self) -> String {
        format!("{}-peers", self.0)
    }

    /// The `NetworkPolicy` of the nodes.
    pub fn network_policy(&self) -> String {
        format!("{}-nodes", self.0)
    }

    /// The `PodDisruptionBudget` of the voters.
    pub fn disruption_budget(&self) -> String {
        format!("{}-voters", self.0)
    }
}

impl SetName {
    /// Checks `name` against [`MAX_SET_NAME`] and the form of a DNS label.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_label(name, MAX_SET_NAME).map(|()| Self(name.to_owned()))
    }
}

impl NodeName {
    /// Takes a name that was made by [`NetworkName::node`] and read back from an object.
    pub fn from_object(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The immutable `Secret` with the node's private keys.
    pub fn keys(&self) -> String {
        format!("{}-keys", self.0)
    }

    /// The `ConfigMap` with the node's leaf certificate and the CA bundle (both public).
    pub fn certificate(&self) -> String {
        format!("{}-cert", self.0)
    }

    /// The immutable `ConfigMap` with the engine's configuration, named by its content.
    pub fn config(&self, content_hash: &str) -> String {
        format!("{}-config-{content_hash}", self.0)
    }

    /// The `Secret` with the first-start token, while there is one.
    pub fn first_start(&self) -> String {
        format!("{}-first-start", self.0)
    }

    /// The immutable `ConfigMap` with a pod template, named by its content.
    pub fn template(&self, content_hash: &str) -> String {
        format!("{}-template-{content_hash}", self.0)
    }

    /// The node's disk.
    pub fn disk(&self) -> String {
        format!("{}-data", self.0)
    }

    /// The name under which the node is reached, the same in every cluster of the network.
    pub fn service_dns(&self, namespace: &str) -> String {
        format!("{}.{namespace}.svc", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_parts_fit_a_stateful_set() {
        let network = NetworkName::parse(&"n".repeat(MAX_NETWORK_NAME)).unwrap();
        let set = SetName::parse(&"s".repeat(MAX_SET_NAME)).unwrap();
        let node = network.node(&set, MAX_INDEX).unwrap();
        assert!(node.as_str().len() <= 52, "{node}");
        assert!(network.node(&set, MAX_INDEX + 1).is_err());
    }

    #[test]
    fn refuses_what_a_service_could_not_be_named() {
        for bad in ["", "1st", "Upper", "dot.ted", "end-", "under_score", &"x".repeat(31)] {
            assert!(NetworkName::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(NetworkName::parse("city-ledger").is_ok());
    }
}
