//! The certificate plan: who gets which certificate, and when it is renewed.
//!
//! A network has one certificate authority. Certificates carry a role in a URI name,
//! `bsn://<network id>/<role>`, by which the gateways tell their clients apart.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use crate::names::NodeName;

/// What the holder of a certificate may do at a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A node of the network: asks its peers for evidence.
    Peer,
    /// A user's program: reads and sends ordinary transactions.
    Client,
    /// The operator.
    Operator,
}

impl Role {
    /// The last part of the role's URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Client => "client",
            Self::Operator => "operator",
        }
    }

    /// The URI that gives this role in the network `network_id`.
    pub fn uri(self, network_id: &str) -> String {
        format!("bsn://{network_id}/{}", self.as_str())
    }

    /// The role that `uri` gives in the network `network_id`, if any.
    pub fn from_uri(uri: &str, network_id: &str) -> Option<Self> {
        [Self::Peer, Self::Client, Self::Operator]
            .into_iter()
            .find(|role| role.uri(network_id) == uri)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long certificates of nodes and clients last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafPolicy {
    /// From issue to end.
    pub validity: SignedDuration,
    /// A certificate is renewed when no more than this is left of it.
    pub renew_before: SignedDuration,
}

/// The CA's own certificate lasts ten years; its rollover is a procedure of its own.
pub const CA_VALIDITY: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// The operator's own client certificate, made in memory for each use of a network.
pub const OPERATOR_VALIDITY: SignedDuration = SignedDuration::from_hours(24);

/// `notBefore` is set back by this, so that a peer whose clock is behind accepts a new certificate.
pub const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// The names in a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafNames {
    /// Common name, for people.
    pub common_name: String,
    /// DNS names; empty for certificates that serve nothing.
    pub dns: Vec<String>,
    /// The role's URI.
    pub uri: String,
}

/// Names in the certificate of a node: its Service name, with and without the namespace.
pub fn node_names(node: &NodeName, namespace: &str, network_id: &str) -> LeafNames {
    LeafNames {
        common_name: node.to_string(),
        dns: vec![node.to_string(), format!("{node}.{namespace}"), node.service_dns(namespace)],
        uri: Role::Peer.uri(network_id),
    }
}

/// Names in the certificate of a client that serves nothing.
pub fn client_names(common_name: &str, role: Role, network_id: &str) -> LeafNames {
    LeafNames { common_name: common_name.to_owned(), dns: Vec::new(), uri: role.uri(network_id) }
}

/// What is known of an existing certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedLeaf {
    /// SHA-256 of its public key (`SubjectPublicKeyInfo`), lower-case hexadecimal.
    pub spki_sha256: String,
    /// SHA-256 of the public key that signed it, as far as its signature was verified.
    pub signed_by_ca: bool,
    /// DNS and URI names.
    pub names: Vec<String>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// Why a certificate is issued anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// There is none, or it can't be read. It holds no secret: a new one for the same key is harmless.
    Missing,
    /// It was made for another key, by another authority or with other names.
    Unfit,
    /// It ends soon.
    Due,
}

/// Decides whether a leaf must be issued, for the key `spki_sha256` and with `names`.
pub fn next_leaf(
    observed: Option<&ObservedLeaf>,
    spki_sha256: &str,
    names: &LeafNames,
    policy: LeafPolicy,
    now: Timestamp,
) -> Option<Renewal> {
    let Some(leaf) = observed else {
        return Some(Renewal::Missing);
    };
    let named = |name: &String| leaf.names.contains(name);
    let fits = leaf.signed_by_ca
        && leaf.spki_sha256 == spki_sha256
        && names.dns.iter().all(named)
        && named(&names.uri);
    if !fits {
        return Some(Renewal::Unfit);
    }
    (leaf.not_after.duration_since(now) <= policy.renew_before).then_some(Renewal::Due)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: LeafPolicy = LeafPolicy {
        validity: SignedDuration::from_hours(90 * 24),
        renew_before: SignedDuration::from_hours(30 * 24),
    };

    fn names() -> LeafNames {
        let node = NodeName::from_object("net-a-0");
        node_names(&node, "ledger", "n1")
    }

    fn leaf() -> ObservedLeaf {
        let names = names();
        let not_before: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        ObservedLeaf {
            spki_sha256: "aa".into(),
            signed_by_ca: true,
            names: names.dns.into_iter().chain([names.uri]).collect(),
            not_before,
            not_after: not_before + POLICY.validity,
        }
    }

    #[test]
    fn renews_when_the_rest_is_short_and_not_before() {
        let leaf = leaf();
        let due = leaf.not_after - POLICY.renew_before;
        let next = |now| next_leaf(Some(&leaf), "aa", &names(), POLICY, now);
        assert_eq!(next(due - SignedDuration::from_secs(1)), None);
        assert_eq!(next(due), Some(Renewal::Due));
        assert_eq!(next(leaf.not_after + SignedDuration::from_hours(1)), Some(Renewal::Due));
    }

    #[test]
    fn replaces_what_does_not_fit() {
        let now = leaf().not_before;
        assert_eq!(next_leaf(None, "aa", &names(), POLICY, now), Some(Renewal::Missing));
        assert_eq!(next_leaf(Some(&leaf()), "bb", &names(), POLICY, now), Some(Renewal::Unfit));
        let other_ca = ObservedLeaf { signed_by_ca: false, ..leaf() };
        assert_eq!(next_leaf(Some(&other_ca), "aa", &names(), POLICY, now), Some(Renewal::Unfit));
        let fewer = ObservedLeaf { names: vec![names().uri], ..leaf() };
        assert_eq!(next_leaf(Some(&fewer), "aa", &names(), POLICY, now), Some(Renewal::Unfit));
    }

    #[test]
    fn a_role_belongs_to_one_network() {
        let uri = Role::Operator.uri("n1");
        assert_eq!(Role::from_uri(&uri, "n1"), Some(Role::Operator));
        assert_eq!(Role::from_uri(&uri, "n2"), None);
        assert_eq!(Role::from_uri("bsn://n1/operator/", "n1"), None);
    }
}
