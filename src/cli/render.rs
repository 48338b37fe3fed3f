//! `bsn-operator render`: every object the operator would make, without any cluster.
//!
//! Ids, keys and certificates are random in a cluster; here they are fixed or left out, so that the
//! same file always prints the same objects. Private keys are not printed: none are made.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use bsn_core::anchor::{Anchor, IdentityKeys, KeyRecord, ObjectUids};
use bsn_core::engine::cometbft::QUORUM;
use bsn_core::engine::cometbft::genesis::Genesis;
use bsn_core::engine::cometbft::keys::PrivateKey;
use bsn_core::engine::cometbft::signing::SignedAt;
use bsn_core::forming::{FormingStep, IdSource, build_anchor, next_forming_step};
use bsn_core::guard::{PodIdentity, Token};
use bsn_core::hash::{sha256_hex, short_hash};
use bsn_core::quorum::margin;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde::Serialize;

use super::RenderArgs;
use crate::api::{BsnNetwork, ClusterImage, Exposure};
use crate::build::bsn_node::build_bsn_node;
use crate::build::config_map::{
    build_anchor_map, build_ca_map, build_certificate_map, build_config_map, build_genesis_map,
    build_peers_map, build_template_map, peers_of,
};
use crate::build::disk::build_disk;
use crate::build::disruption_budget::build_disruption_budget;
use crate::build::network_policy::{Admitted, build_network_policy};
use crate::build::secret::{
    build_ca_secret, build_client_secret, build_keys_secret, build_token_secret,
};
use crate::build::service::build_service;
use crate::build::stateful_set::{Mounts, build_stateful_set, build_template, with_template_hash};
use crate::build::{NetworkParts, NodeParts};
use crate::controller::network::addresses::{exposure_of, spans_clusters};
use crate::controller::network::validate::{ValidatedNetwork, validate_network};

/// Why nothing was printed.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The file.
    #[error("cannot read {0}: {1}")]
    Read(String, std::io::Error),
    /// Not YAML, or not a `BsnNetwork`.
    #[error("{file}, document {document}: {message}")]
    Parse {
        /// The file.
        file: String,
        /// Which document, from 1.
        document: usize,
        /// What the parser said.
        message: String,
    },
    /// No network in it.
    #[error("{0} holds no BsnNetwork")]
    Empty(String),
    /// A network that makes no sense.
    #[error("BsnNetwork {0}: {1}")]
    Invalid(String, String),
}

/// Ids that are the same in every run.
struct FixedIds(u32);

impl IdSource for FixedIds {
    fn next_id(&mut self) -> String {
        self.0 += 1;
        format!("{:032x}", self.0)
    }
}

const NOT_MADE: &str = "(made in the cluster)\n";

/// Renders the networks of a file as a stream of YAML documents.
pub fn render(args: &RenderArgs) -> Result<String, RenderError> {
    let mut out = String::new();
    for mut network in read_networks(&args.filename)? {
        network.metadata.namespace.get_or_insert_with(|| args.namespace.clone());
        render_network(&network, args, &mut out)?;
    }
    Ok(out)
}

/// Reads the `BsnNetwork`s of a file; `-` = standard input.
pub fn read_networks(path: &Path) -> Result<Vec<BsnNetwork>, RenderError> {
    let file = path.display().to_string();
    let mut text = String::new();
    let read = if file == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(path).map(|content| text = content)
    };
    read.map_err(|error| RenderError::Read(file.clone(), error))?;
    parse_networks(&text, &file)
}

/// Reads the `BsnNetwork`s of a text; other kinds in it are passed over.
pub fn parse_networks(text: &str, file: &str) -> Result<Vec<BsnNetwork>, RenderError> {
    let fail = |document: usize, message: String| RenderError::Parse {
        file: file.to_owned(),
        document,
        message,
    };
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(text).map_err(|error| fail(1, error.to_string()))?;
    let mut networks = Vec::new();
    for (i, document) in documents.into_iter().enumerate() {
        if document.get("kind").and_then(|kind| kind.as_str()) != Some("BsnNetwork") {
            continue;
        }
        let network: BsnNetwork =
            serde_json::from_value(document).map_err(|error| fail(i + 1, error.to_string()))?;
        networks.push(network);
    }
    if networks.is_empty() { Err(RenderError::Empty(file.to_owned())) } else { Ok(networks) }
}

fn render_network(
    network: &BsnNetwork,
    args: &RenderArgs,
    out: &mut String,
) -> Result<(), RenderError> {
    let invalid = |message: String| RenderError::Invalid(network.name_any(), message);
    let validated = validate_network(network, "").map_err(|error| invalid(error.to_string()))?;
    let (anchor, genesis) = formed_anchor(&validated).map_err(invalid)?;
    let genesis_hash = &genesis.hash;
    let parts = NetworkParts::new(&validated.namespace, &validated.desired.name, &anchor, None);

    push(out, &build_anchor_map(&parts, &anchor));
    push(out, &redacted(build_ca_secret(&parts, NOT_MADE, NOT_MADE)));
    push(out, &build_ca_map(&parts, NOT_MADE));
    push(out, &redacted(build_client_secret(&parts, NOT_MADE, NOT_MADE, NOT_MADE)));
    push(out, &build_genesis_map(&parts, &genesis));
    let peers = peers_of(&anchor, &validated.namespace);
    push(out, &build_peers_map(&parts, &peers, &validated.external_peers, anchor.joins));
    let powers: Vec<u64> = anchor.founders.iter().map(|founder| founder.power).collect();
    let margin = margin(QUORUM, &powers);
    push(out, &build_disruption_budget(&parts, powers.len() - margin));
    let access = &validated.access;
    if access.enabled {
        let spans_clusters = spans_clusters(&anchor);
        let admitted =
            Admitted { access, operator: Some(&args.operator_namespace), spans_clusters };
        push(out, &build_network_policy(&parts, &admitted));
    }

    let agents = ClusterImage { reference: args.agent_image.clone(), pull_secret_name: None };
    for (name, identity) in anchor.members() {
        let workload = validated.workload(&identity.set, agents.clone());
        let node = NodeParts { network: parts, name: &name, identity, owner: None };
        let storage = validated.storage.get(&identity.set).cloned().unwrap_or_default();
        let placeholder = stand_in_key(name.as_str());
        push(out, &build_bsn_node(&node, &storage));
        let exposure = exposure_of(&validated, &anchor, identity, Exposure::default());
        push(out, &build_service(&node, exposure));
        let from = validated.keys.get(&name).map(String::as_str);
        push(out, &redacted(build_keys_secret(&node, &placeholder, &placeholder, NOT_MADE, from)));
        push(out, &build_disk(&node, &storage, None));
        push(out, &build_certificate_map(&node, NOT_MADE, NOT_MADE));
        let config =
            build_config_map(&node, workload.application(), validated.timeout_commit.as_deref());
        let mounts = Mounts {
            config: config.name_any(),
            genesis: validated.desired.name.genesis(genesis_hash),
            peers: validated.desired.name.peers(),
        };
        let pod = PodIdentity {
            network_id: anchor.network_id.clone(),
            identity_id: identity.id.clone(),
            consensus_key: placeholder.public().base64().to_owned(),
            genesis_hash: genesis_hash.clone(),
            disk_uid: identity.uids.disk.clone().unwrap_or_default(),
        };
        let token = Token {
            nonce: NOT_MADE.to_owned(),
            identity: pod.clone(),
            signing_state: SignedAt::default(),
        };
        push(out, &redacted(build_token_secret(&node, &token)));
        push(out, &config);
        let template = build_template(&node, &workload, &mounts, &pod);
        // Built from typed values: serialising it cannot fail.
        let text = serde_json::to_string(&template).unwrap_or_default();
        let hash = short_hash(text.as_bytes());
        push(out, &build_template_map(&node, &hash, text));
        push(out, &build_stateful_set(&node, with_template_hash(template, &hash)));
    }
    Ok(())
}

/// A key that stands for the random one of a node, the same in every run.
fn stand_in_key(node: &str) -> PrivateKey {
    let digest = sha256_hex(node.as_bytes());
    PrivateKey::from_random(std::array::from_fn(|i| digest.as_bytes().get(i).copied().unwrap_or(0)))
}

fn formed_anchor(validated: &ValidatedNetwork) -> Result<(Anchor, Genesis), String> {
    let mut anchor =
        build_anchor(&validated.desired, "(hub id)", Timestamp::UNIX_EPOCH, &mut FixedIds(0))
            .map_err(|error| error.to_string())?;
    anchor.ca =
        Some(KeyRecord { spki_sha256: "(made in the cluster)".into(), secret_uid: String::new() });
    for (name, identity) in &mut anchor.identities {
        let public = stand_in_key(name).public();
        identity.keys = Some(IdentityKeys {
            consensus: public.clone(),
            p2p: public,
            tls_spki_sha256: "(key-made-in-the-cluster)".into(),
        });
        let uid = Some("(given by the cluster)".to_owned());
        identity.uids = ObjectUids { keys: uid.clone(), disk: uid.clone(), service: uid };
    }
    // The bytes of a genesis that others made are not in the file.
    let taken = validated.desired.joins.as_ref().map(|hash| Genesis {
        text: "(taken from spec.genesis.from)\n".to_owned(),
        hash: hash.clone(),
    });
    let genesis = match next_forming_step(&anchor, taken.as_ref()) {
        Ok(FormingStep::RecordGenesis(genesis)) => genesis,
        Ok(other) => return Err(format!("forming ended at {other:?}")),
        Err(error) => return Err(error.to_string()),
    };
    anchor.genesis_hash = Some(genesis.hash.clone());
    anchor.formed = true;
    Ok((anchor, genesis))
}

/// A Secret with its entries named but not filled.
fn redacted(mut secret: Secret) -> Secret {
    let entries = secret.data.take().unwrap_or_default();
    let named: BTreeMap<String, String> =
        entries.into_keys().map(|key| (key, NOT_MADE.trim().to_owned())).collect();
    secret.string_data = Some(named);
    secret
}

fn push(out: &mut String, object: &impl Serialize) {
    use std::fmt::Write as _;
    // Built from typed values: serialising it cannot fail, and writing to a String neither.
    let value = serde_json::to_value(object).unwrap_or_default();
    let yaml = serde_saphyr::to_string(&value).unwrap_or_default();
    let _ = write!(out, "---\n{yaml}");
    if !yaml.ends_with('\n') {
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(file: &str) -> RenderArgs {
        RenderArgs {
            operator_namespace: "bsn-system".to_owned(),
            filename: std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file),
            namespace: "default".into(),
            agent_image: "bsn-operator:test".into(),
        }
    }

    #[test]
    fn renders_the_sample_network() {
        insta::assert_snapshot!(render(&args("manifests/samples/city-ledger.yaml")).unwrap());
    }

    #[test]
    fn renders_a_users_application_and_full_nodes() {
        let all = render(&args("manifests/samples/own-application.yaml")).unwrap();
        assert!(all.contains("name: app"), "{all}");
        let all = render(&args("manifests/samples/with-full-node.yaml")).unwrap();
        assert!(all.contains("FullNode"), "{all}");
    }

    #[test]
    fn renders_a_network_in_two_clusters() {
        let all = render(&args("manifests/samples/two-cities.yaml")).unwrap();
        assert!(all.contains("cluster: nanjing") && all.contains("type: NodePort"), "{all}");
    }

    #[test]
    fn renders_nodes_that_join_a_chain() {
        let all = render(&args("manifests/samples/joining.yaml")).unwrap();
        for expected in ["external-peers:", "(taken from spec.genesis.from)", "minAvailable: 0"] {
            assert!(all.contains(expected), "{expected}: {all}");
        }
    }

    #[test]
    fn prints_no_private_key() {
        let all = render(&args("manifests/samples/city-ledger.yaml")).unwrap();
        assert!(!all.contains("PrivKey") && !all.contains("PRIVATE KEY"));
    }

    #[test]
    fn says_where_a_file_is_wrong() {
        let error = parse_networks("kind: BsnNetwork\nspec: {}\n", "f.yaml").unwrap_err();
        assert!(error.to_string().starts_with("f.yaml, document 1:"), "{error}");
        let error = parse_networks("kind: Pod\n", "f.yaml").unwrap_err();
        assert!(error.to_string().contains("no BsnNetwork"), "{error}");
    }
}
