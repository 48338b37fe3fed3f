//! Turns a description into typed values. The schema has refused most wrong input at admission; what
//! it cannot say, or an older schema let through, is refused here with an instruction.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bsn_core::anchor::Role;
use bsn_core::consent::{self, CONSENT_ANNOTATION};
use bsn_core::engine::cometbft::config::ExternalPeer;
use bsn_core::engine::cometbft::transaction::check_template;
use bsn_core::engine::cometbft::{DEFAULT_POWER, LEDGER, MAX_CHAIN_ID, Version};
use bsn_core::forming::{DesiredNetwork, DesiredSet};
use bsn_core::membership;
use bsn_core::names::{NetworkName, NodeName, SetName};
use bsn_core::pki::LeafPolicy;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::ResourceExt;

use super::invalid::InvalidSpec;
use super::joining::{validate_external_peers, validate_genesis};
use crate::api::{
    App, BsnNetwork, BsnNetworkSpec, ConfigMapKeyRef, DeletionPolicy, Exposure, ExternalAddress,
    MembershipAuthority, NodeAccess, NodePod, NodeRole, NodeSet, RepairMode, Storage,
    UpgradeStrategy,
};
use crate::build::application::AppWorkload;
use crate::controller::network::pods::{validate_app, validate_pod};

/// A description that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedNetwork {
    /// Its namespace.
    pub namespace: String,
    /// Name, chain and node sets.
    pub desired: DesiredNetwork,
    /// Where the genesis is, if its chain is joined.
    pub genesis_in: Option<ConfigMapKeyRef>,
    /// Nodes of other owners to dial.
    pub external_peers: Vec<ExternalPeer>,
    /// The same node sets as the planner wants them.
    pub membership: membership::Desired,
    /// Who changes the chain's validators.
    pub authority: Authority,
    /// How carefully the planner goes, and the consents given.
    pub policy: membership::Policy,
    /// Nodes that are left as they are.
    pub holds: BTreeSet<NodeName>,
    /// The engine's image.
    pub engine_image: String,
    /// A user's application, or the built-in store.
    pub app: Option<AppWorkload>,
    /// How another version of it comes to all nodes at one height; `None` = one by one.
    pub at_height: Option<AtHeight>,
    /// How long the engine waits after a block; `None` = its default.
    pub timeout_commit: Option<String>,
    /// Resources of engines, by node set.
    pub resources: BTreeMap<String, Option<ResourceRequirements>>,
    /// What pods have besides, by node set.
    pub pods: BTreeMap<String, NodePod>,
    /// Disks, by node set.
    pub storage: BTreeMap<String, Storage>,
    /// How nodes are reached from other clusters, by node set.
    pub exposure: BTreeMap<String, SetExposure>,
    /// Secrets with keys that an owner brings, by node.
    pub keys: BTreeMap<NodeName, String>,
    /// How long certificates last.
    pub leaf: LeafPolicy,
    /// Who may connect to its nodes.
    pub access: NodeAccess,
    /// What goes with nodes that were removed, and with the network.
    pub deletion: DeletionPolicy,
    /// Leave everything as it is.
    pub paused: bool,
    /// Consents, as annotated.
    pub consent: Option<String>,
}

/// How the nodes of a set are reached from other clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetExposure {
    /// As described; `None` = as their cluster says.
    pub how: Option<Exposure>,
    /// Addresses that are given.
    pub addresses: Vec<ExternalAddress>,
}

/// How another version of an application comes to all nodes at one height.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtHeight {
    /// The environment variable by which the application is told to halt.
    pub halt_env: String,
    /// How long the restart of one node takes.
    pub restart_time: Duration,
}

/// Who changes a chain's validators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// The operator, by transactions.
    Submit {
        /// How the user's application reads them; `None` = as the built-in store does.
        template: Option<String>,
    },
    /// The chain's own governance.
    External,
}

impl ValidatedNetwork {
    /// Sizes of disks, by node set.
    pub fn disks(&self) -> impl Iterator<Item = (String, String)> {
        self.storage.iter().map(|(set, storage)| (set.clone(), storage.size.clone()))
    }
}

/// Checks a description.
pub fn validate_network(
    network: &BsnNetwork,
    image_prefix: &str,
) -> Result<ValidatedNetwork, InvalidSpec> {
    let spec = &network.spec;
    let cometbft = spec.engine.cometbft.as_ref().ok_or(InvalidSpec::NoEngine)?;
    let version = Version::parse(&cometbft.version)?;
    let app = match &cometbft.app {
        App { persistent_kvstore: Some(_), container: None } => None,
        App { persistent_kvstore: None, container: Some(container) } => {
            Some(validate_app(container)?)
        }
        _ => return Err(InvalidSpec::OneApp),
    };
    let id_length = spec.chain_id.chars().count();
    if id_length == 0 || id_length > MAX_CHAIN_ID {
        return Err(InvalidSpec::ChainId(id_length));
    }
    let name = NetworkName::parse(&network.name_any())?;
    let mut membership = membership::Desired { sets: Vec::new(), paused: spec.paused };
    let mut holds = BTreeSet::new();
    let mut sets: Vec<DesiredSet> = Vec::with_capacity(spec.node_sets.len());
    let mut storage = BTreeMap::new();
    let mut resources = BTreeMap::new();
    let mut exposure = BTreeMap::new();
    let mut keys = BTreeMap::new();
    let mut pods = BTreeMap::new();
    for set in &spec.node_sets {
        let desired = DesiredSet {
            name: SetName::parse(&set.name)?,
            role: match set.role {
                NodeRole::Validator => Role::Validator,
                NodeRole::FullNode => Role::FullNode,
            },
            voting: set.voting.unwrap_or(true),
            replicas: set.replicas,
            power: set.voting_power.unwrap_or(DEFAULT_POWER),
            cluster: set.cluster.clone().unwrap_or_default(),
        };
        exposure.insert(
            set.name.clone(),
            SetExposure { how: set.exposure, addresses: set.external_addresses.clone() },
        );
        if storage.insert(set.name.clone(), set.storage.clone()).is_some() {
            return Err(InvalidSpec::DuplicateSet(set.name.clone()));
        }
        resources.insert(set.name.clone(), set.resources.clone());
        validate_keys(&name, set, &desired, &mut keys)?;
        pods.insert(set.name.clone(), validate_pod(spec.pod.as_ref(), set)?);
        holds.extend(validate_names("hold", &name, &desired.name, &set.hold)?);
        membership.sets.push(validate_membership(&name, set, &desired)?);
        sets.push(desired);
    }
    let joins = validate_genesis(spec)?;
    if joins.is_none() && !sets.iter().any(|set| set.votes() && set.replicas > 0) {
        return Err(InvalidSpec::NoValidators);
    }
    let leaf = LeafPolicy {
        validity: parse_duration("pki.leaf.validity", &spec.pki.leaf.validity)?,
        renew_before: parse_duration("pki.leaf.renewBefore", &spec.pki.leaf.renew_before)?,
    };
    if leaf.renew_before >= leaf.validity {
        return Err(InvalidSpec::RenewBefore);
    }
    let authority = validate_authority(spec, app.is_some())?;
    let policy =
        validate_policy(spec, network.annotations().get(CONSENT_ANNOTATION).map(String::as_str))?;
    Ok(ValidatedNetwork {
        namespace: network.namespace().unwrap_or_default(),
        desired: DesiredNetwork {
            name,
            chain_id: spec.chain_id.clone(),
            joins: joins.map(|from| from.sha256.clone()),
            sets,
        },
        genesis_in: joins.map(|from| from.config_map_ref.clone()),
        external_peers: validate_external_peers(spec)?,
        membership,
        authority,
        policy,
        holds,
        engine_image: cometbft
            .image
            .clone()
            .unwrap_or_else(|| default_image(version, image_prefix)),
        app,
        at_height: validate_upgrade(spec, &cometbft.app)?,
        timeout_commit: cometbft.timeout_commit.clone(),
        resources,
        pods,
        storage,
        exposure,
        keys,
        leaf,
        access: validate_access(spec)?,
        deletion: spec.deletion_policy,
        paused: spec.paused,
        consent: network.annotations().get(CONSENT_ANNOTATION).cloned(),
    })
}

/// A node set as the planner wants it.
fn validate_membership(
    network: &NetworkName,
    set: &NodeSet,
    desired: &DesiredSet,
) -> Result<membership::model::DesiredSet, InvalidSpec> {
    Ok(membership::model::DesiredSet {
        name: desired.name.to_string(),
        replicas: desired.replicas,
        votes_on: desired.votes().then(|| LEDGER.to_owned()).into_iter().collect(),
        power: desired.power,
        retire: validate_names("retire", network, &desired.name, &set.retire)?,
        cluster: desired.cluster.clone(),
    })
}

/// Takes in the keys that an owner brings for nodes of a set.
fn validate_keys(
    network: &NetworkName,
    set: &NodeSet,
    desired: &DesiredSet,
    keys: &mut BTreeMap<NodeName, String>,
) -> Result<(), InvalidSpec> {
    for brought in &set.keys {
        let node = NodeName::from_object(&brought.node);
        validate_names("keys", network, &desired.name, std::slice::from_ref(&brought.node))?;
        if brought.secret_name == node.keys() {
            return Err(InvalidSpec::OwnKeys(brought.secret_name.clone()));
        }
        let same = |name: &&String| **name == brought.secret_name;
        if let Some(secret) = keys.values().find(same) {
            return Err(InvalidSpec::KeysTwice { what: format!("the Secret {secret}") });
        }
        if keys.insert(node, brought.secret_name.clone()).is_some() {
            return Err(InvalidSpec::KeysTwice { what: format!("the node {}", brought.node) });
        }
    }
    Ok(())
}

fn validate_access(spec: &BsnNetworkSpec) -> Result<NodeAccess, InvalidSpec> {
    let access = spec.network_policy.clone().unwrap_or_default();
    if let Some(ranges) = &access.outside_addresses {
        if let Some(bad) = ranges.iter().find(|range| !is_range(range)) {
            return Err(InvalidSpec::Range(bad.clone()));
        }
        let elsewhere = spec.node_sets.iter().any(|set| set.cluster.is_some());
        if ranges.is_empty() && elsewhere {
            return Err(InvalidSpec::ShutOut);
        }
    }
    Ok(access)
}

/// Whether a text is an address and the length of a prefix of it.
fn is_range(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn validate_upgrade(spec: &BsnNetworkSpec, app: &App) -> Result<Option<AtHeight>, InvalidSpec> {
    let upgrade = spec.upgrade.as_ref();
    let Some(upgrade) = upgrade.filter(|one| one.strategy == UpgradeStrategy::AtHeight) else {
        return Ok(None);
    };
    let restart_time = parse_duration("upgrade.restartTime", &upgrade.restart_time)?;
    let halt = app.container.as_ref().and_then(|container| container.halt.as_ref());
    let halt_env = halt.ok_or(InvalidSpec::NoHalt)?.env.clone();
    Ok(Some(AtHeight { halt_env, restart_time: restart_time.unsigned_abs() }))
}

fn validate_authority(spec: &BsnNetworkSpec, own_app: bool) -> Result<Authority, InvalidSpec> {
    let template = spec.membership.submit.as_ref().map(|submit| submit.tx_template.clone());
    if template.is_some() && !own_app {
        return Err(InvalidSpec::SubmitToStore);
    }
    if let Some(template) = &template {
        check_template(template)?;
    }
    Ok(match spec.membership.authority {
        MembershipAuthority::External => Authority::External,
        // How such an application is told is not known, so its owners have to do it.
        MembershipAuthority::Submit if own_app && template.is_none() => Authority::External,
        MembershipAuthority::Submit => Authority::Submit { template },
    })
}

fn validate_policy(
    spec: &BsnNetworkSpec,
    consents: Option<&str>,
) -> Result<membership::Policy, InvalidSpec> {
    let seconds = |field, text: &str| -> Result<u64, InvalidSpec> {
        // What was read is never negative.
        parse_duration(field, text).map(|time| time.as_secs().unsigned_abs())
    };
    let catch_up = &spec.membership.catch_up;
    let cure_seconds = seconds("repair.cureAfter", &spec.repair.cure_after)?;
    let grace_seconds = seconds("repair.gracePeriod", &spec.repair.grace_period)?;
    if cure_seconds > grace_seconds {
        return Err(InvalidSpec::CureAfter);
    }
    Ok(membership::Policy {
        max_lag_blocks: catch_up.max_lag_blocks.into(),
        stable_seconds: catch_up.stable_seconds.into(),
        reserve: usize::try_from(spec.disruption.reserve).unwrap_or(usize::MAX),
        allow_downtime: spec.disruption.allow_downtime,
        replace_dead: spec.repair.mode == RepairMode::Automatic,
        cure_seconds,
        grace_seconds,
        consents: consent::given(consents),
        ..membership::Policy::default()
    })
}

/// Checks that a node of the set can have these names. Whether there is one is not asked: it may be gone
/// already.
fn validate_names(
    list: &'static str,
    network: &NetworkName,
    set: &SetName,
    names: &[String],
) -> Result<BTreeSet<NodeName>, InvalidSpec> {
    let fits = |name: &str| {
        let index = name.rsplit('-').next().and_then(|index| index.parse().ok());
        // Made again and compared: an index is written in one way only.
        index.is_some_and(|index| network.node(set, index).is_ok_and(|node| node.as_str() == name))
    };
    match names.iter().find(|name| !fits(name)) {
        Some(name) => Err(InvalidSpec::NotOfSet {
            list,
            network: network.clone(),
            set: set.clone(),
            name: name.clone(),
        }),
        None => Ok(names.iter().map(|name| NodeName::from_object(name)).collect()),
    }
}

fn default_image(version: Version, prefix: &str) -> String {
    let image = format!("cometbft/cometbft:v{version}");
    match prefix.trim_end_matches('/') {
        "" => image,
        prefix => format!("{prefix}/{image}"),
    }
}

/// Reads `<h>h<m>m<s>s`, any part of which may be left out.
fn parse_duration(field: &'static str, text: &str) -> Result<SignedDuration, InvalidSpec> {
    let bad = || InvalidSpec::Duration { field, value: text.to_owned() };
    let mut rest = text;
    let mut seconds: i64 = 0;
    for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, after)) = rest.split_once(unit) {
            let number: i64 = number.parse().map_err(|_| bad())?;
            seconds = number
                .checked_mul(factor)
                .and_then(|part| seconds.checked_add(part))
                .filter(|sum| number >= 0 && *sum >= 0)
                .ok_or_else(bad)?;
            rest = after;
        }
    }
    if !rest.is_empty() || text.is_empty() {
        Err(bad())
    } else {
        Ok(SignedDuration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

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

    #[test]
    fn the_planner_is_told_who_votes_who_goes_and_who_is_held() {
        let network = validated(with_sets(&json!([
            {"name": "v", "role": "Validator", "replicas": 4, "votingPower": 7,
             "retire": ["net-v-1"], "hold": ["net-v-0"]},
            {"name": "was", "role": "Validator", "replicas": 2, "voting": false},
            {"name": "full", "role": "FullNode", "replicas": 1, "hold": ["net-full-3"]},
        ])))
        .unwrap();
        let set = |name: &str, replicas, votes: bool, power, retire: &[&str]| {
            membership::model::DesiredSet {
                name: name.to_owned(),
                replicas,
                votes_on: votes.then(|| LEDGER.to_owned()).into_iter().collect(),
                power,
                retire: retire.iter().map(|name| NodeName::from_object(name)).collect(),
                cluster: String::new(),
            }
        };
        assert_eq!(
            network.membership.sets,
            [
                set("v", 4, true, 7, &["net-v-1"]),
                set("was", 2, false, DEFAULT_POWER, &[]),
                set("full", 1, false, DEFAULT_POWER, &[]),
            ]
        );
        let held: Vec<&str> = network.holds.iter().map(NodeName::as_str).collect();
        assert_eq!(held, ["net-full-3", "net-v-0"]);
        let votes: Vec<bool> = network.desired.sets.iter().map(DesiredSet::votes).collect();
        assert_eq!(votes, [true, false, false]);
    }

    #[test]
    fn an_application_that_changes_at_a_height_can_be_halted() {
        let with = |container: Value, strategy: Value| {
            let mut spec = with_sets(&json!([{"name": "v", "role": "Validator", "replicas": 1}]));
            spec["engine"]["cometbft"]["app"] = json!({"container": container});
            spec["upgrade"] = strategy;
            validated(spec)
        };
        let halts = json!({"image": "x", "halt": {"env": "STOP_AT"}});
        let at_height = json!({"strategy": "AtHeight", "restartTime": "90s"});
        let network = with(halts.clone(), at_height.clone()).unwrap();
        let expected =
            AtHeight { halt_env: "STOP_AT".to_owned(), restart_time: Duration::from_secs(90) };
        assert_eq!(network.at_height, Some(expected));
        assert_eq!(network.switches(), network.app_hash());
        let rolling = with(halts.clone(), json!({"strategy": "Rolling"})).unwrap();
        assert_eq!((rolling.switches(), rolling.app_hash()), (None, network.app_hash()));
        // How it is halted is no reason to restart it.
        let plain = with(json!({"image": "x"}), Value::Null).unwrap();
        assert_eq!(plain.inputs_hash("v"), network.inputs_hash("v"));
        assert_eq!(with(json!({"image": "x"}), at_height), Err(InvalidSpec::NoHalt));
    }

    #[test]
    fn a_chain_needs_a_validator_that_votes() {
        for sets in [
            json!([{"name": "full", "role": "FullNode", "replicas": 1}]),
            json!([{"name": "v", "role": "Validator", "replicas": 0}]),
            json!([{"name": "v", "role": "Validator", "replicas": 4, "voting": false}]),
        ] {
            assert_eq!(validated(with_sets(&sets)), Err(InvalidSpec::NoValidators), "{sets}");
        }
    }

    #[test]
    fn a_name_that_no_node_of_the_set_can_have_is_refused_with_one_that_fits() {
        for name in ["v-0", "other-v-0", "net-w-0", "net-v-x", "net-v-01", "net-v-10000", "net-v-"]
        {
            for list in ["retire", "hold"] {
                let mut set = json!({"name": "v", "role": "Validator", "replicas": 1});
                set[list] = json!([name]);
                let error = validated(with_sets(&json!([set]))).unwrap_err().to_string();
                assert!(error.contains(list) && error.contains("net-v-0"), "{error}");
            }
        }
        // A set whose name begins with another's.
        let set =
            json!({"name": "v-1", "role": "Validator", "replicas": 1, "retire": ["net-v-1-0"]});
        assert!(validated(with_sets(&json!([set]))).is_ok());
    }

    /// A network of one voter with `extra` in its description.
    fn with(extra: &Value) -> Value {
        let mut spec = with_sets(&json!([{"name": "v", "role": "Validator", "replicas": 1}]));
        for (field, value) in extra.as_object().unwrap() {
            spec[field] = value.clone();
        }
        spec
    }

    #[test]
    fn what_is_left_out_is_as_the_planner_has_it() {
        let network = validated(with(&json!({}))).unwrap();
        assert_eq!(network.policy, membership::Policy::default());
        assert_eq!(network.authority, Authority::Submit { template: None });
        assert!(network.holds.is_empty());
    }

    #[test]
    fn the_planner_is_as_careful_as_described() {
        let network = validated(with(&json!({
            "membership": {"catchUp": {"maxLagBlocks": 20}},
            "disruption": {"reserve": 1, "allowDowntime": true},
            "repair": {"mode": "Automatic", "gracePeriod": "1h", "cureAfter": "90s"},
        })));
        let expected = membership::Policy {
            max_lag_blocks: 20,
            reserve: 1,
            allow_downtime: true,
            replace_dead: true,
            cure_seconds: 90,
            grace_seconds: 3600,
            ..membership::Policy::default()
        };
        assert_eq!(network.unwrap().policy, expected);
        for (repair, instruction) in [
            (json!({"gracePeriod": "1m"}), "cureAfter must not be longer"),
            (json!({"cureAfter": "1d"}), "spec.repair.cureAfter: \"1d\" is not a duration"),
        ] {
            let error = validated(with(&json!({"repair": repair}))).unwrap_err().to_string();
            assert!(error.contains(instruction), "{error}");
        }
    }

    #[test]
    fn consents_come_from_the_annotation() {
        let spec = serde_json::from_value(with(&json!({}))).unwrap();
        let mut network = BsnNetwork::new("net", spec);
        network.annotations_mut().insert(CONSENT_ANNOTATION.to_owned(), "a/1, b/2,".to_owned());
        let policy = validate_network(&network, "").unwrap().policy;
        assert_eq!(policy.consents, ["a/1".to_owned(), "b/2".to_owned()].into());
    }

    #[test]
    fn an_application_whose_transactions_are_not_known_governs_itself() {
        let authority = |app: Value, membership: Value| {
            let cometbft = json!({"version": "0.38.25", "app": app});
            let spec = json!({"engine": {"cometbft": cometbft}, "membership": membership});
            validated(with(&spec)).map(|network| network.authority)
        };
        let store = || json!({"persistentKvstore": {}});
        let own = || json!({"container": {"image": "x"}});
        let text = "{address} {power} {serial}";
        let submit = json!({"submit": {"txTemplate": text}});
        let template = Some(text.to_owned());
        assert_eq!(authority(own(), json!({})), Ok(Authority::External));
        assert_eq!(authority(own(), submit.clone()), Ok(Authority::Submit { template }));
        for app in [own(), store()] {
            assert_eq!(authority(app, json!({"authority": "External"})), Ok(Authority::External));
        }
        assert_eq!(authority(store(), submit), Err(InvalidSpec::SubmitToStore));
        // Before anything is sent, what admission does not see is refused: here a word misspelt.
        let misspelt = json!({"submit": {"txTemplate": "{address} {powr} {power} {serial}"}});
        let error = authority(own(), misspelt).unwrap_err().to_string();
        assert!(
            error.starts_with("spec.membership.submit.txTemplate: ") && error.contains("{powr}")
        );
        // Who votes is wanted all the same.
        let governed = validated(with(&json!({"membership": {"authority": "External"}}))).unwrap();
        assert!(governed.membership.sets[0].votes_on.contains(LEDGER));
    }

    #[test]
    fn each_node_brings_keys_of_its_own() {
        let keys = |keys: Value| {
            let mut set = json!({"name": "v", "role": "Validator", "replicas": 1});
            set["keys"] = keys;
            validated(with_sets(&json!([set])))
        };
        let one = |node: &str, secret: &str| json!({"node": node, "secretName": secret});
        let network = keys(json!([one("net-v-0", "a"), one("net-v-7", "b")])).unwrap();
        let found: Vec<_> =
            network.keys.iter().map(|(node, name)| (node.as_str(), name.as_str())).collect();
        assert_eq!(found, [("net-v-0", "a"), ("net-v-7", "b")]);
        // Nobody restarts because of it.
        let plain =
            validated(with_sets(&json!([{"name": "v", "role": "Validator", "replicas": 1}])));
        assert_eq!(network.inputs_hash("v"), plain.unwrap().inputs_hash("v"));
        for (wrong, instruction) in [
            (json!([one("net-v-0", "a"), one("net-v-1", "a")]), "the Secret a twice"),
            (json!([one("net-v-0", "a"), one("net-v-0", "b")]), "the node net-v-0 twice"),
            (json!([one("net-w-0", "a")]), "for example net-v-0"),
            (json!([one("net-v-0", "net-v-0-keys")]), "give yours another name"),
        ] {
            let error = keys(wrong).unwrap_err().to_string();
            assert!(error.contains(instruction), "{error}");
        }
    }

    #[test]
    fn nodes_admit_what_is_described_and_never_shut_out_their_peers() {
        let access = |policy: Value| {
            validated(with(&json!({"networkPolicy": policy}))).map(|network| network.access)
        };
        assert_eq!(validated(with(&json!({}))).unwrap().access, NodeAccess::default());
        assert!(!access(json!({"enabled": false})).unwrap().enabled);
        let ranges = |ranges: Value| access(json!({"outsideAddresses": ranges}));
        assert!(ranges(json!(["192.168.7.0/24", "10.0.0.7/32", "fd00:7::/48"])).is_ok());
        for bad in ["192.168.7.1", "192.168.7.0/33", "fd00::/129", "hangzhou/8", "10.0.0.0/-1", ""]
        {
            assert_eq!(ranges(json!([bad])), Err(InvalidSpec::Range(bad.to_owned())));
        }
        assert!(ranges(json!([])).is_ok(), "all of its nodes are in one cluster");
        let mut spec = with(&json!({"networkPolicy": {"outsideAddresses": []}}));
        spec["nodeSets"][0]["cluster"] = json!("hangzhou");
        assert_eq!(validated(spec), Err(InvalidSpec::ShutOut));
        // Nobody restarts because of it.
        let hash = |policy: Value| {
            validated(with(&json!({"networkPolicy": policy}))).unwrap().inputs_hash("v")
        };
        assert_eq!(hash(Value::Null), hash(json!({"enabled": false, "outsideAddresses": []})));
    }

    #[test]
    fn durations_read_as_in_go() {
        let read = |text| parse_duration("validity", text).map(|d| d.as_secs());
        assert_eq!(read("2160h"), Ok(2160 * 3600));
        assert_eq!(read("1h30m"), Ok(5400));
        assert_eq!(read("90s"), Ok(90));
        for bad in
            ["", "12", "h", "1m1h", "-1h", "1d", "99999999999999999999h", "9223372036854775807h"]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn images_come_from_the_mirror_if_there_is_one() {
        let version = Version::parse("0.38.25").unwrap();
        assert_eq!(default_image(version, ""), "cometbft/cometbft:v0.38.25");
        assert_eq!(
            default_image(version, "registry.example.com/mirror/"),
            "registry.example.com/mirror/cometbft/cometbft:v0.38.25"
        );
    }
}
