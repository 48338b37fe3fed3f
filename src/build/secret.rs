//! `Secret`s: the CA, a node's private keys, and a certificate for ordinary clients.

use std::collections::BTreeMap;

use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, NODE_KEY_FILE, PrivateKey};
use bsn_core::guard::Token;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::{NetworkParts, NodeParts};
use crate::agent::paths;
use crate::labels::KEYS_FROM;

/// Key of a certificate in a Secret of type `kubernetes.io/tls`.
pub const TLS_CERT: &str = "tls.crt";
/// Key of a private key in a Secret of type `kubernetes.io/tls`.
pub const TLS_KEY: &str = "tls.key";

#[expect(clippy::unnecessary_wraps, reason = "the fields it fills are optional")]
fn data<const N: usize>(entries: [(&str, &str); N]) -> Option<BTreeMap<String, ByteString>> {
    Some(
        entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())))
            .collect(),
    )
}

/// The network's certificate authority: made once, immutable. It stays when the network goes, and until it is released.
pub fn build_ca_secret(network: &NetworkParts<'_>, cert_pem: &str, key_pem: &str) -> Secret {
    Secret {
        metadata: network.held(network.name.ca()),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: data([(TLS_CERT, cert_pem), (TLS_KEY, key_pem)]),
        immutable: Some(true),
        ..Secret::default()
    }
}

/// A certificate with the role `client`, for people and programs that use the chain. Making it anew
/// harms nobody, so it goes with the network.
pub fn build_client_secret(
    network: &NetworkParts<'_>,
    cert_pem: &str,
    key_pem: &str,
    ca_pem: &str,
) -> Secret {
    Secret {
        metadata: network.owned(network.name.client()),
        type_: Some("kubernetes.io/tls".to_owned()),
        data: data([(TLS_CERT, cert_pem), (TLS_KEY, key_pem), (paths::CA_FILE, ca_pem)]),
        ..Secret::default()
    }
}

/// A node's private keys: made once, immutable. They stay when the node and the network go. `from` = the owner's Secret
/// that they were copied from; `None` = they were made.
pub fn build_keys_secret(
    node: &NodeParts<'_>,
    consensus: &PrivateKey,
    p2p: &PrivateKey,
    tls_key_pem: &str,
    from: Option<&str>,
) -> Secret {
    let mut metadata = node.held(node.name.keys());
    if let Some(from) = from {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(KEYS_FROM.to_owned(), from.to_owned());
    }
    Secret {
        metadata,
        type_: Some("Opaque".to_owned()),
        data: data([
            (CONSENSUS_KEY_FILE, &consensus.consensus_key_file()),
            (NODE_KEY_FILE, &p2p.node_key_file()),
            (paths::TLS_KEY_FILE, tls_key_pem),
        ]),
        immutable: Some(true),
        ..Secret::default()
    }
}

/// A node's first-start token. It goes once it was used.
pub fn build_token_secret(node: &NodeParts<'_>, token: &Token) -> Secret {
    // Plain structs of strings and numbers: serialising them cannot fail.
    let text = serde_json::to_string(token).unwrap_or_default();
    Secret {
        metadata: node.owned(node.name.first_start()),
        type_: Some("Opaque".to_owned()),
        data: data([(paths::TOKEN_FILE, &text)]),
        immutable: Some(true),
        ..Secret::default()
    }
}

/// One entry of a Secret as text.
pub fn entry<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.data.as_ref()?.get(key).and_then(|bytes| std::str::from_utf8(&bytes.0).ok())
}

#[cfg(test)]
mod tests {
    use bsn_core::retention::{KEEP_FINALIZER, KEPT_ANNOTATION};

    use super::*;
    use crate::build::samples::with_node;

    #[test]
    fn keys_say_where_they_came_from_and_why_they_stay() {
        let key = PrivateKey::from_random([1; 32]);
        let secret = with_node(None, |node| build_keys_secret(node, &key, &key, "", Some("mine")));
        let metadata = secret.metadata;
        assert_eq!(metadata.finalizers, Some(vec![KEEP_FINALIZER.to_owned()]));
        let annotations = metadata.annotations.unwrap();
        assert_eq!(annotations[KEYS_FROM], "mine");
        let command = "kubectl annotate configmap city-ledger-anchor -n ledger --overwrite \
                       bsn-operator.io/release=n1";
        assert!(annotations[KEPT_ANNOTATION].ends_with(command), "{annotations:?}");
    }
}
