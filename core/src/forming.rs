//! How a network comes to be. Which nodes it has later is a matter of [`crate::membership`].
//!
//! 1. The founders are written into the anchor before anything else exists. Later edits wait.
//! 2. Keys, disk and Service of every founder are made and recorded.
//! 3. The genesis follows from the anchor alone; its hash is recorded, then its bytes are published.
//! 4. `formed` is latched. Only now may a pod start. No path leads back.
//!
//! A network that joins a chain which exists has no founders: in place of 2 and 3, the genesis that others made is
//! taken over, its hash recorded, and its bytes published. Nothing follows from the anchor alone then; the bytes are
//! given to each decision by the caller, who checked them ([`crate::engine::cometbft::genesis::take_genesis`]).
//!
//! A crash between any two of these resumes where it stopped: every step is decided by what is
//! recorded, and the genesis is computed again to the same bytes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::anchor::{ANCHOR_VERSION, Anchor, Founder, Identity, Role};
use crate::engine::cometbft::genesis::{Genesis, GenesisError, GenesisValidator, build_genesis};
use crate::names::{NameError, NetworkName, NodeName, SetName};

/// A node set as the user wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredSet {
    /// Its name.
    pub name: SetName,
    /// Role of its nodes.
    pub role: Role,
    /// Its validators vote; false = they only follow. Means nothing with another role.
    pub voting: bool,
    /// How many.
    pub replicas: u32,
    /// Voting power of each validator.
    pub power: u64,
    /// The member cluster its nodes are in; empty = the hub.
    pub cluster: String,
}

impl DesiredSet {
    /// Whether its nodes vote.
    pub fn votes(&self) -> bool {
        self.role == Role::Validator && self.voting
    }
}

/// A network as the user wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Id of its chain.
    pub chain_id: String,
    /// Its chain exists and was made by others: SHA-256 of its genesis, in lower-case hexadecimal. `None` = it is
    /// formed here.
    pub joins: Option<String>,
    /// Its node sets, in the order of the file.
    pub sets: Vec<DesiredSet>,
}

/// Where random ids come from.
pub trait IdSource {
    /// A new random id, never the same twice.
    fn next_id(&mut self) -> String;
}

/// Why a network cannot be formed from its description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormingError {
    /// A node's name cannot be made.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The chain would not start.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
}

/// Makes the anchor of a network that has none: founders, ids and names, nothing more. Founders are the
/// validators that vote; the others are nodes only. Where a chain is joined, all are: they vote once the chain takes
/// them in.
pub fn build_anchor(
    desired: &DesiredNetwork,
    hub_id: &str,
    now: Timestamp,
    ids: &mut impl IdSource,
) -> Result<Anchor, FormingError> {
    let mut anchor = Anchor {
        version: ANCHOR_VERSION,
        hub_id: hub_id.to_owned(),
        revision: 1,
        former_hubs: BTreeMap::new(),
        terms: Vec::new(),
        network_id: ids.next_id(),
        chain_id: desired.chain_id.clone(),
        // Whole seconds: the engine compares bytes, and people read them.
        genesis_time: Timestamp::from_second(now.as_second()).unwrap_or(now),
        founders: Vec::new(),
        joins: desired.joins.is_some(),
        ca: None,
        genesis_hash: None,
        formed: false,
        used_consents: BTreeMap::new(),
        shares: BTreeMap::new(),
        next_index: BTreeMap::new(),
        identities: BTreeMap::new(),
    };
    for set in &desired.sets {
        for index in 0..set.replicas {
            let name = desired.name.node(&set.name, index)?;
            if set.votes() && !anchor.joins {
                anchor.founders.push(Founder { name: name.to_string(), power: set.power });
            }
            add_identity(&mut anchor, &name, set, ids);
        }
        anchor.next_index.insert(set.name.to_string(), set.replicas);
    }
    if anchor.founders.is_empty() && !anchor.joins {
        return Err(GenesisError::NoValidators.into());
    }
    Ok(anchor)
}

/// Records a new node of a set: a name and a random id, nothing more.
pub fn add_identity(
    anchor: &mut Anchor,
    name: &NodeName,
    set: &DesiredSet,
    ids: &mut impl IdSource,
) {
    let identity = Identity {
        cluster: set.cluster.clone(),
        ..Identity::new(ids.next_id(), set.name.to_string(), set.role)
    };
    anchor.identities.insert(name.to_string(), identity);
}

/// What forming waits for or does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FormingStep {
    /// The CA's key must be made and recorded.
    MakeAuthority,
    /// These founders' keys, disks and Services are not recorded yet.
    AwaitFounders(Vec<NodeName>),
    /// The genesis of the chain that is joined was not given yet.
    AwaitGenesis,
    /// Record this genesis' hash.
    RecordGenesis(Genesis),
    /// Publish this genesis, then latch `formed`.
    PublishGenesis(Genesis),
    /// Nothing is left to do; the genesis is given to be put back if its `ConfigMap` is lost.
    Formed(Genesis),
}

/// Why forming stands still until a person helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormingRefusal {
    /// The founders recorded make no chain.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// Another genesis than the one that was taken over.
    #[error(
        "this network joined the chain whose genesis has SHA-256 {recorded}, and was given {given}; set \
         spec.genesis.from.sha256 back, or apply a network of another name for another chain"
    )]
    AnotherGenesis {
        /// Hash recorded.
        recorded: String,
        /// Hash of the one given.
        given: String,
    },
    /// The anchor was edited: it no longer gives the genesis it recorded.
    #[error(
        "the anchor gives genesis {computed}, but {recorded} is recorded in it; restore the anchor from a backup"
    )]
    GenesisDiffers {
        /// Hash recorded.
        recorded: String,
        /// Hash computed now.
        computed: String,
    },
}

/// Decides the next step of forming from the anchor alone; of a network that joins a chain, also from the genesis that
/// was `taken` over from others, if there is one.
pub fn next_forming_step(
    anchor: &Anchor,
    taken: Option<&Genesis>,
) -> Result<FormingStep, FormingRefusal> {
    if anchor.ca.is_none() {
        return Ok(FormingStep::MakeAuthority);
    }
    if anchor.joins {
        let Some(taken) = taken else { return Ok(FormingStep::AwaitGenesis) };
        return next_with(anchor, taken.clone()).map_err(|recorded| {
            FormingRefusal::AnotherGenesis { recorded, given: taken.hash.clone() }
        });
    }
    let mut validators = Vec::with_capacity(anchor.founders.len());
    let mut waiting = Vec::new();
    for founder in &anchor.founders {
        let name = NodeName::from_object(&founder.name);
        let identity = anchor.identity(&name);
        match identity.and_then(|identity| identity.keys.as_ref()) {
            // Once formed, the keys alone matter: what else is recorded belongs to the nodes.
            Some(keys) if anchor.formed || identity.is_some_and(Identity::provisioned) => {
                validators.push(GenesisValidator {
                    name: founder.name.clone(),
                    key: keys.consensus.clone(),
                    power: founder.power,
                });
            }
            _ => waiting.push(name),
        }
    }
    if !waiting.is_empty() {
        return Ok(FormingStep::AwaitFounders(waiting));
    }
    let time = anchor.genesis_time.to_string();
    let genesis = build_genesis(&anchor.chain_id, &time, &validators)?;
    let computed = genesis.hash.clone();
    next_with(anchor, genesis)
        .map_err(|recorded| FormingRefusal::GenesisDiffers { recorded, computed })
}

/// The step with this genesis, or the hash of the other one that is recorded.
fn next_with(anchor: &Anchor, genesis: Genesis) -> Result<FormingStep, String> {
    match &anchor.genesis_hash {
        None => Ok(FormingStep::RecordGenesis(genesis)),
        Some(recorded) if *recorded != genesis.hash => Err(recorded.clone()),
        Some(_) if anchor.formed => Ok(FormingStep::Formed(genesis)),
        Some(_) => Ok(FormingStep::PublishGenesis(genesis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::{IdentityKeys, KeyRecord, ObjectUids};
    use crate::engine::cometbft::keys::PrivateKey;

    struct Counter(u32);
    impl IdSource for Counter {
        fn next_id(&mut self) -> String {
            self.0 += 1;
            format!("id-{}", self.0)
        }
    }

    fn set(name: &str, role: Role, replicas: u32) -> DesiredSet {
        let name = SetName::parse(name).unwrap();
        DesiredSet { name, role, voting: true, replicas, power: 1000, cluster: String::new() }
    }

    fn network(sets: Vec<DesiredSet>) -> DesiredNetwork {
        let name = NetworkName::parse("net").unwrap();
        DesiredNetwork { name, chain_id: "net-1".into(), joins: None, sets }
    }

    fn provision(identity: &mut Identity, n: u8) {
        let public = PrivateKey::from_random([n; 32]).public();
        identity.keys = Some(IdentityKeys {
            consensus: public.clone(),
            p2p: public,
            tls_spki_sha256: "aa".into(),
        });
        let uid = Some("uid".to_owned());
        identity.uids = ObjectUids { keys: uid.clone(), disk: uid.clone(), service: uid };
    }

    fn fresh() -> (DesiredNetwork, Anchor) {
        let desired = network(vec![set("v", Role::Validator, 2), set("full", Role::FullNode, 1)]);
        let now = "2026-01-01T00:00:00.123Z".parse().unwrap();
        let anchor = build_anchor(&desired, "hub", now, &mut Counter(0)).unwrap();
        (desired, anchor)
    }

    fn formed() -> (DesiredNetwork, Anchor) {
        let (desired, mut anchor) = fresh();
        anchor.ca = Some(KeyRecord { spki_sha256: "bb".into(), secret_uid: "u".into() });
        for (n, identity) in anchor.identities.values_mut().enumerate() {
            provision(identity, u8::try_from(n).unwrap());
        }
        let Ok(FormingStep::RecordGenesis(genesis)) = next_forming_step(&anchor, None) else {
            panic!("expected the genesis to be recorded next")
        };
        anchor.genesis_hash = Some(genesis.hash);
        anchor.formed = true;
        (desired, anchor)
    }

    #[test]
    fn forming_takes_its_steps_in_order_and_only_forward() {
        let (_, mut anchor) = fresh();
        assert_eq!(next_forming_step(&anchor, None), Ok(FormingStep::MakeAuthority));
        anchor.ca = Some(KeyRecord { spki_sha256: "bb".into(), secret_uid: "u".into() });
        let waiting = |anchor: &Anchor| match next_forming_step(anchor, None) {
            Ok(FormingStep::AwaitFounders(names)) => names.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(waiting(&anchor), 2);
        provision(anchor.identities.get_mut("net-v-0").unwrap(), 1);
        assert_eq!(waiting(&anchor), 1);
        // A key without a recorded disk is not enough.
        let second = anchor.identities.get_mut("net-v-1").unwrap();
        provision(second, 2);
        second.uids.disk = None;
        assert_eq!(waiting(&anchor), 1);
        anchor.identities.get_mut("net-v-1").unwrap().uids.disk = Some("uid".into());
        // Full nodes are not waited for.
        let Ok(FormingStep::RecordGenesis(genesis)) = next_forming_step(&anchor, None) else {
            panic!()
        };
        anchor.genesis_hash = Some(genesis.hash.clone());
        assert_eq!(
            next_forming_step(&anchor, None),
            Ok(FormingStep::PublishGenesis(genesis.clone()))
        );
        anchor.formed = true;
        assert_eq!(next_forming_step(&anchor, None), Ok(FormingStep::Formed(genesis)));
    }

    #[test]
    fn an_edited_anchor_never_gives_a_second_genesis() {
        let (_, mut anchor) = formed();
        anchor.founders[0].power += 1;
        assert!(matches!(
            next_forming_step(&anchor, None),
            Err(FormingRefusal::GenesisDiffers { .. })
        ));
    }

    #[test]
    fn a_network_without_validators_is_not_begun() {
        let mut mute = set("v", Role::Validator, 2);
        mute.voting = false;
        let now = Timestamp::UNIX_EPOCH;
        for sets in [vec![set("full", Role::FullNode, 3)], vec![mute]] {
            assert!(build_anchor(&network(sets), "hub", now, &mut Counter(0)).is_err());
        }
    }

    #[test]
    fn a_validator_that_does_not_vote_is_a_node_and_no_founder() {
        let mut later = set("later", Role::Validator, 1);
        later.voting = false;
        let desired = network(vec![set("v", Role::Validator, 2), later]);
        let anchor = build_anchor(&desired, "hub", Timestamp::UNIX_EPOCH, &mut Counter(0)).unwrap();
        let founders: Vec<_> = anchor.founders.iter().map(|founder| &founder.name).collect();
        assert_eq!(founders, ["net-v-0", "net-v-1"]);
        assert_eq!(anchor.identities["net-later-0"].role, Role::Validator);
    }

    fn joining() -> Anchor {
        let sets = vec![set("v", Role::Validator, 1), set("full", Role::FullNode, 2)];
        let desired = DesiredNetwork { joins: Some("5eed".into()), ..network(sets) };
        build_anchor(&desired, "hub", Timestamp::UNIX_EPOCH, &mut Counter(0)).unwrap()
    }

    fn theirs(text: &str) -> Genesis {
        Genesis { text: text.to_owned(), hash: format!("hash of {text}") }
    }

    #[test]
    fn a_chain_that_is_joined_has_no_founders_and_its_genesis_comes_from_others() {
        let mut anchor = joining();
        assert!(anchor.founders.is_empty() && anchor.identities.len() == 3);
        let genesis = theirs("{}");
        let next = |anchor: &Anchor, taken| next_forming_step(anchor, taken).unwrap();
        assert_eq!(next(&anchor, Some(&genesis)), FormingStep::MakeAuthority);
        anchor.ca = Some(KeyRecord { spki_sha256: "bb".into(), secret_uid: "u".into() });
        // Nobody's key is waited for: the chain does not need them.
        assert_eq!(next(&anchor, None), FormingStep::AwaitGenesis);
        assert_eq!(next(&anchor, Some(&genesis)), FormingStep::RecordGenesis(genesis.clone()));
        anchor.genesis_hash = Some(genesis.hash.clone());
        assert_eq!(next(&anchor, Some(&genesis)), FormingStep::PublishGenesis(genesis.clone()));
        anchor.formed = true;
        assert_eq!(next(&anchor, Some(&genesis)), FormingStep::Formed(genesis.clone()));
        // Lost, and not given again: that makes no other chain of it.
        assert_eq!(next(&anchor, None), FormingStep::AwaitGenesis);
        let other = next_forming_step(&anchor, Some(&theirs("[]")));
        assert!(matches!(other, Err(FormingRefusal::AnotherGenesis { .. })));
    }

    #[test]
    fn full_nodes_alone_may_join_a_chain() {
        let desired = DesiredNetwork {
            joins: Some("5eed".into()),
            ..network(vec![set("full", Role::FullNode, 1)])
        };
        let now = Timestamp::UNIX_EPOCH;
        assert!(build_anchor(&desired, "hub", now, &mut Counter(0)).is_ok());
    }
}
