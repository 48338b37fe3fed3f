//! Joining a chain that exists: what the description must say, and taking its genesis over.
//!
//! Of a chain that is formed here the genesis follows from the anchor for ever. Of one that others made its bytes are
//! theirs: they are read once from where the user put them, checked, and kept in this network's own immutable
//! `ConfigMap`, from where all later passes read them.

use bsn_core::anchor::Anchor;
use bsn_core::engine::cometbft::config::ExternalPeer;
use bsn_core::engine::cometbft::genesis::{GENESIS_FILE, Genesis, take_genesis};
use k8s_openapi::api::core::v1::ConfigMap;

use super::apply::Pass;
use super::invalid::InvalidSpec;
use crate::api::conditions::Reason;
use crate::api::{BsnNetworkSpec, ConfigMapKeyRef, GenesisFrom};
use crate::apply::read;
use crate::cluster::watches::cached;
use crate::controller::{Refusal, Step};

/// The genesis to take over; `None` = a new chain is formed.
pub(super) fn validate_genesis(spec: &BsnNetworkSpec) -> Result<Option<&GenesisFrom>, InvalidSpec> {
    let Some(genesis) = &spec.genesis else { return Ok(None) };
    match (&genesis.create, &genesis.from) {
        (Some(_), None) => Ok(None),
        (None, Some(_)) if spec.external_peers.is_empty() => Err(InvalidSpec::NoExternalPeers),
        (None, Some(from)) => Ok(Some(from)),
        _ => Err(InvalidSpec::OneGenesis),
    }
}

/// Nodes of other owners, each of which an engine can dial: it ends over one that is not written as it should be.
pub(super) fn validate_external_peers(
    spec: &BsnNetworkSpec,
) -> Result<Vec<ExternalPeer>, InvalidSpec> {
    let mut peers: Vec<ExternalPeer> = Vec::with_capacity(spec.external_peers.len());
    for peer in &spec.external_peers {
        let (node_id, host) = (peer.node_id.clone(), peer.host.clone());
        let peer = ExternalPeer { node_id, host, port: peer.port };
        let twice = peers.iter().any(|other| other.node_id == peer.node_id);
        let twice = twice.then_some("nodeId is there twice; keep one of them");
        if let Some(why) = peer.check().or(twice) {
            return Err(InvalidSpec::ExternalPeer { peer: peer.address(), why });
        }
        peers.push(peer);
    }
    Ok(peers)
}

impl Pass<'_> {
    /// The genesis of the chain that is joined: as it was taken over, else as the user gives it. `None` = the chain is
    /// formed here.
    pub(super) async fn observe_genesis(&self, anchor: &Anchor) -> Step<Option<Genesis>> {
        let desired = &self.validated.desired;
        let (sha256, from) = match (&desired.joins, &self.validated.genesis_in, anchor.joins) {
            (None, _, false) => return Ok(Ok(None)),
            (Some(sha256), Some(from), true) => (sha256, from),
            (_, _, joins) => return Ok(Err(another_origin(joins))),
        };
        let name = desired.name.genesis(sha256);
        let kept = cached(&self.ctx.caches.objects.config_maps, &self.key.namespace, &name);
        // One that holds something else is refused where it is published.
        let kept = kept.as_deref().and_then(|map| entry(map, GENESIS_FILE));
        if let Some(genesis) =
            kept.and_then(|text| take_genesis(text, sha256, &desired.chain_id).ok())
        {
            return Ok(Ok(Some(genesis)));
        }
        let map: Option<ConfigMap> =
            read(&self.ctx.client, &self.key.namespace, &from.name).await?;
        Ok(take_from(map.as_ref(), from, sha256, &desired.chain_id).map(Some))
    }
}

/// Takes the genesis from the user's `ConfigMap`, or says what is wrong with it.
fn take_from(
    map: Option<&ConfigMap>,
    from: &ConfigMapKeyRef,
    sha256: &str,
    chain_id: &str,
) -> Result<Genesis, Refusal> {
    let ConfigMapKeyRef { name, key } = from;
    let missing = |message| Refusal::new(Reason::GenesisMissing, message);
    let map = map.ok_or_else(|| {
        missing(format!(
            "ConfigMap {name} with the genesis does not exist in this namespace; apply what kubectl bsn bundle prints for \
             the owners of the chain, or correct spec.genesis.from.configMapRef"
        ))
    })?;
    let text = entry(map, key).ok_or_else(|| {
        let is_binary = map.binary_data.as_ref().is_some_and(|data| data.contains_key(key));
        let what = if is_binary { "as binary data; it has to be text" } else { "missing" };
        let has: Vec<&str> = map.data.iter().flatten().map(|(key, _)| key.as_str()).collect();
        missing(format!(
            "entry {key} of ConfigMap {name} is {what}; put the genesis there, or correct \
             spec.genesis.from.configMapRef.key (it has {})",
            if has.is_empty() { "none".to_owned() } else { has.join(", ") }
        ))
    })?;
    take_genesis(text, sha256, chain_id).map_err(|error| {
        let message =
            format!("entry {key} of ConfigMap {name} is not taken as the genesis: {error}");
        Refusal::new(Reason::GenesisRefused, message)
    })
}

fn entry<'a>(map: &'a ConfigMap, key: &str) -> Option<&'a str> {
    map.data.as_ref()?.get(key).map(String::as_str)
}

/// The network of this name that was here before came to its chain in the other way.
fn another_origin(joins: bool) -> Refusal {
    let (did, now) = if joins {
        ("joined a chain that others made", "set spec.genesis.from as it was")
    } else {
        ("formed a chain of its own", "remove spec.genesis.from")
    };
    let message = format!(
        "a network of this name {did}, and its anchor is still here; {now} to go on with that chain, or choose another name"
    );
    Refusal::new(Reason::GenesisRefused, message)
}

#[cfg(test)]
mod tests {
    use bsn_core::hash::sha256_hex;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::BsnNetwork;
    use crate::controller::network::validate::{ValidatedNetwork, validate_network};

    fn validated(spec: Value) -> Result<ValidatedNetwork, InvalidSpec> {
        let mut network = BsnNetwork::new("net", serde_json::from_value(spec).unwrap());
        network.metadata.namespace = Some("ledger".to_owned());
        validate_network(&network, "")
    }

    fn with_sets(sets: &Value) -> Value {
        json!({
            "chainId": "net-1",
            "engine": {"cometbft": {"version": "0.38.25", "app": {"persistentKvstore": {}}}},
            "nodeSets": sets,
        })
    }

    fn joining(genesis: &Value, peers: &Value) -> Result<ValidatedNetwork, InvalidSpec> {
        let mut spec = with_sets(&json!([{"name": "full", "role": "FullNode", "replicas": 1}]));
        spec["genesis"] = genesis.clone();
        spec["externalPeers"] = peers.clone();
        validated(spec)
    }

    fn from() -> Value {
        json!({"from": {"configMapRef": {"name": "theirs"}, "sha256": "ab".repeat(32)}})
    }

    fn peer(host: &str) -> Value {
        json!({"nodeId": "cd".repeat(20), "host": host})
    }

    #[test]
    fn a_chain_that_is_joined_needs_no_validator_here_and_somebody_to_hear_it_from() {
        let network = joining(&from(), &json!([peer("a.example")])).unwrap();
        assert_eq!(network.desired.joins, Some("ab".repeat(32)));
        let expected = ConfigMapKeyRef { name: "theirs".into(), key: "genesis.json".into() };
        assert_eq!(network.genesis_in, Some(expected));
        let address = format!("{}@a.example:26656", "cd".repeat(20));
        assert_eq!(network.external_peers[0].address(), address);
        assert_eq!(joining(&from(), &json!([])), Err(InvalidSpec::NoExternalPeers));
        let create = json!({"create": {}});
        assert_eq!(joining(&create, &json!([])), Err(InvalidSpec::NoValidators));
        let mut both = from();
        both["create"] = json!({});
        for genesis in [json!({}), both] {
            assert_eq!(joining(&genesis, &json!([peer("a")])), Err(InvalidSpec::OneGenesis));
        }
    }

    #[test]
    fn a_peer_that_no_engine_can_dial_is_refused_by_name() {
        for host in ["127.0.0.1", "a..b", "x:26656"] {
            let error = joining(&from(), &json!([peer(host)])).unwrap_err().to_string();
            assert!(error.contains("spec.externalPeers") && error.contains(host), "{error}");
        }
        let error = joining(&from(), &json!([peer("a"), peer("b")])).unwrap_err().to_string();
        assert!(error.contains("there twice"), "{error}");
    }

    /// Nor does a node restart for other peers.
    #[test]
    fn who_else_is_dialled_is_no_reason_to_restart() {
        let sets = json!([{"name": "v", "role": "Validator", "replicas": 1}]);
        let mut spec = with_sets(&sets);
        spec["externalPeers"] = json!([peer("a")]);
        spec["genesis"] = json!({"create": {}});
        let alone = validated(with_sets(&sets)).unwrap().inputs_hash("v");
        assert_eq!(validated(spec).unwrap().inputs_hash("v"), alone);
    }

    const GENESIS: &str = r#"{"genesis_time":"2026-01-01T00:00:00Z","chain_id":"c"}"#;

    fn taken(map: &Value) -> Result<Genesis, Refusal> {
        let map: Option<ConfigMap> = serde_json::from_value(map.clone()).unwrap();
        let from = ConfigMapKeyRef { name: "theirs".into(), key: "genesis.json".into() };
        take_from(map.as_ref(), &from, &sha256_hex(GENESIS.as_bytes()), "c")
    }

    #[test]
    fn a_genesis_is_taken_from_where_the_user_put_it_or_its_absence_is_told() {
        assert_eq!(taken(&json!({"data": {"genesis.json": GENESIS}})).unwrap().text, GENESIS);
        for (map, reason, words) in [
            (
                Value::Null,
                Reason::GenesisMissing,
                "ConfigMap theirs with the genesis does not exist",
            ),
            (json!({}), Reason::GenesisMissing, "is missing"),
            (json!({"data": {"a": "", "b": ""}}), Reason::GenesisMissing, "it has a, b"),
            (
                json!({"binaryData": {"genesis.json": "e30="}}),
                Reason::GenesisMissing,
                "binary data",
            ),
            (json!({"data": {"genesis.json": "{}"}}), Reason::GenesisRefused, "byte for byte"),
        ] {
            let refusal = taken(&map).unwrap_err();
            assert_eq!(refusal.reason, reason, "{map}");
            assert!(refusal.message.contains(words), "{}", refusal.message);
        }
    }

    #[test]
    fn a_network_keeps_the_way_in_which_it_came_to_its_chain() {
        assert!(another_origin(true).message.contains("set spec.genesis.from as it was"));
        assert!(another_origin(false).message.contains("remove spec.genesis.from"));
    }
}
