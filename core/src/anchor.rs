//! The anchor: facts about a network that must never be forgotten.
//!
//! It is a `ConfigMap` beside the network's objects, written with compare-and-swap before anything
//! depends on a fact in it. Status is only a view computed from it and from the chain; losing status
//! loses nothing, losing the anchor is a refusal.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::budget::Shares;
use crate::engine::cometbft::keys::PublicKey;
use crate::first_start::FirstStart;
use crate::names::NodeName;

/// Key of the anchor in its `ConfigMap`.
pub const ANCHOR_KEY: &str = "anchor.json";

/// Version of the anchor's form; a newer one is refused, never rewritten.
pub const ANCHOR_VERSION: u32 = 1;

/// A network's anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anchor {
    /// [`ANCHOR_VERSION`].
    pub version: u32,
    /// Id of the hub that writes here; another hub must not.
    pub hub_id: String,
    /// How often it was written. A copy in a member cluster is an image of the primary at its revision.
    #[serde(default)]
    pub revision: u64,
    /// Hubs that this network was taken over from, with the revision it was taken over at: a copy of theirs
    /// up to that one is only late.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub former_hubs: BTreeMap<String, u64>,
    /// Who wrote it, newest last: revisions alone do not tell an image of this anchor from one of another history, which a
    /// hub that came from a backup has begun and carried on for longer. At most [`MAX_TERMS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<Term>,
    /// Random id of the network. Not the object's uid: that changes when it is deleted and applied
    /// again, the network stays the same.
    pub network_id: String,
    /// Id of the chain.
    pub chain_id: String,
    /// Time in the genesis (RFC 3339), fixed with the founders.
    pub genesis_time: Timestamp,
    /// Names and powers of the founding validators, in the order of the genesis. Fixed before the
    /// first key is made: later edits of the network cannot reach into a chain being formed.
    pub founders: Vec<Founder>,
    /// The chain was made by others: it has no founders here, and the bytes of its genesis are theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joins: bool,
    /// The certificate authority, once its key exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<KeyRecord>,
    /// SHA-256 of the genesis, once fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_hash: Option<String>,
    /// The genesis is published: nodes may start. Never taken back.
    #[serde(default)]
    pub formed: bool,
    /// Consents that were used, each with the number of the step it was used for: each works once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub used_consents: BTreeMap<String, u64>,
    /// Voters that may be evicted at once, by cluster (empty = the hub): no less than what may be in force. See
    /// [`crate::budget`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: Shares,
    /// Next index per node set; a name is never used for a second identity.
    pub next_index: BTreeMap<String, u32>,
    /// Every identity the network ever had, by node name.
    pub identities: BTreeMap<String, Identity>,
}

/// A founding validator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Founder {
    /// Its node's name.
    pub name: String,
    /// Voting power in the genesis.
    pub power: u64,
}

/// A key pair kept in a `Secret`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRecord {
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`), lower-case hexadecimal.
    pub spki_sha256: String,
    /// The Secret's uid.
    pub secret_uid: String,
}

/// A node's place in its network, for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Random id.
    pub id: String,
    /// The node set it was made from.
    pub set: String,
    /// Its role.
    pub role: Role,
    /// The member cluster its objects are in; empty = the hub. Never changed: a node that moves is another one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Gone for good: its disk and key never serve another identity.
    #[serde(default)]
    pub retired: bool,
    /// Public parts of its keys, once they exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<IdentityKeys>,
    /// Where its keys came from, if its owner brought them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought: Option<Brought>,
    /// Uids of its objects, once they exist.
    #[serde(default)]
    pub uids: ObjectUids,
    /// Hash of the pod template in force, once one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_hash: Option<String>,
    /// Hash of the user's inputs that this template was made from, once one is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs_hash: Option<String>,
    /// Hash of the application of the user's own that this template runs, once one is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_hash: Option<String>,
    /// The template in force has its application make no block after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halts_at: Option<u64>,
    /// Last block of the old application in the switch under way, once this node was given the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switched_at: Option<u64>,
    /// The permission to use an empty disk.
    #[serde(default)]
    pub first_start: FirstStart,
    /// Consents to an empty disk that were used: each works once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used_consents: Vec<String>,
    /// What is known of its vote.
    #[serde(default, skip_serializing_if = "Vote::is_default")]
    pub vote: Vote,
    /// It is to be replaced by another node. Never taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
    /// A restart as a cure, since it last worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<CureRecord>,
    /// Number of its last restart step; 0 = it had none. So that a consent to the next one is another.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_restart: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What is known of a node's vote on its ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vote {
    /// Its power after the last change of ours that took effect; `None` = none did. The chain decides who
    /// votes; this is for when no node answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<u64>,
    /// Its entry as a voter.
    #[serde(default)]
    pub entry: EntryRecord,
    /// Transactions about its key that were made: the next one differs from all of them.
    #[serde(default)]
    pub transactions: u32,
}

impl Vote {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A node's entry as a voter, as far as it must be remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EntryRecord {
    /// Over, or not begun.
    #[default]
    Over,
    /// It votes, and was not seen to sign yet.
    Entering,
    /// It never signed and was taken out again.
    Failed,
}

/// A restart as a cure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CureRecord {
    /// Short hash of what was described for it then.
    pub described: String,
    /// Uid of the pod that is to end; `None` = there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// What a node does on its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Votes.
    Validator,
    /// Follows without voting.
    FullNode,
}

/// Public parts of a node's private keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityKeys {
    /// Consensus key.
    pub consensus: PublicKey,
    /// Peer-to-peer key.
    pub p2p: PublicKey,
    /// SHA-256 of the TLS public key (`SubjectPublicKeyInfo`), lower-case hexadecimal.
    pub tls_spki_sha256: String,
}

/// Where keys came from that an owner brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Brought {
    /// The owner's `Secret`, of which they are a copy.
    pub secret: String,
    /// The height up to which the key must not sign here: what it signed elsewhere lies below. 0 = it was there before the
    /// first block.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_up_to: u64,
}

/// Uids of the objects a node depends on. An object of the same name with another uid is a stranger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectUids {
    /// `Secret` with the private keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<String>,
    /// `PersistentVolumeClaim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// `Service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

impl Identity {
    /// One of which nothing was made yet.
    pub fn new(id: String, set: String, role: Role) -> Self {
        Self {
            id,
            set,
            role,
            cluster: String::new(),
            retired: false,
            keys: None,
            brought: None,
            uids: ObjectUids::default(),
            template_hash: None,
            inputs_hash: None,
            app_hash: None,
            halts_at: None,
            switched_at: None,
            first_start: FirstStart::NotIssued,
            used_consents: Vec::new(),
            vote: Vote::default(),
            replaced: false,
            cure: None,
            last_restart: 0,
        }
    }

    /// Keys, disk and Service exist and are recorded: others may depend on this node.
    pub fn provisioned(&self) -> bool {
        self.keys.is_some()
            && self.uids.keys.is_some()
            && self.uids.disk.is_some()
            && self.uids.service.is_some()
    }
}

/// Why an anchor could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Not an anchor.
    #[error("the anchor cannot be read: {0}; restore it from a backup")]
    Unreadable(String),
    /// Written by a newer operator.
    #[error(
        "the anchor has form {found}, this operator writes form {ANCHOR_VERSION}; upgrade the operator"
    )]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Another hub looks after this network.
    #[error(
        "the anchor belongs to hub {found}, this is hub {expected}; one network has one hub: see docs/clusters.md"
    )]
    AnotherHub {
        /// In the anchor.
        found: String,
        /// This hub's.
        expected: String,
    },
    /// A retained anchor of another chain under the same name.
    #[error(
        "a network of this name was here before with chain id {found}; apply it with that chain id, choose another \
         name, or delete its retained objects"
    )]
    AnotherChain {
        /// In the anchor.
        found: String,
    },
}

/// How a copy of an anchor, beside the nodes of a member cluster, stands to the primary on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyStanding {
    /// The same.
    Current,
    /// An earlier image: what a crash between two writes leaves, or a cluster that could not be asked.
    Behind,
    /// It knows more than the primary: the hub came from a backup.
    Ahead,
    /// Another hub's.
    AnotherHub,
    /// Another network's.
    AnotherNetwork,
}

/// How many terms an anchor remembers: operators that ended while a copy could not be written.
const MAX_TERMS: usize = 32;

/// The time of one operator process that wrote an anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Term {
    /// Random id of the process.
    pub id: String,
    /// Revision that it found.
    pub since: u64,
}

impl Anchor {
    /// Reads an anchor whose hub may be another one, as a copy's.
    pub fn parse_copy(text: &str) -> Result<Self, AnchorError> {
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let unreadable = |err: serde_json::Error| AnchorError::Unreadable(err.to_string());
        // The version first: a newer form may not parse as this one.
        let form: Form = serde_json::from_str(text).map_err(unreadable)?;
        if form.version > ANCHOR_VERSION {
            return Err(AnchorError::Newer { found: form.version });
        }
        serde_json::from_str(text).map_err(unreadable)
    }

    /// How a copy stands to this anchor, the primary.
    pub fn compare(&self, copy: &Self) -> CopyStanding {
        let late = |hub: &str| self.former_hubs.get(hub).is_some_and(|at| copy.revision <= *at);
        if copy.network_id != self.network_id {
            CopyStanding::AnotherNetwork
        } else if copy.hub_id != self.hub_id {
            if late(&copy.hub_id) { CopyStanding::Behind } else { CopyStanding::AnotherHub }
        } else if copy == self {
            CopyStanding::Current
        } else if copy.revision < self.revision && copy.revision <= self.last_of(copy.terms.last())
        {
            CopyStanding::Behind
        } else {
            CopyStanding::Ahead
        }
    }

    /// The newest revision that was written in a term, or before all of them, and went into this anchor.
    fn last_of(&self, term: Option<&Term>) -> u64 {
        let found = term.and_then(|term| self.terms.iter().position(|own| own.id == term.id));
        // Of a term that is not known nothing went in, but what the oldest that is known began with.
        let next = self.terms.get(found.map_or(0, |index| index + 1));
        next.map_or(self.revision, |next| next.since)
    }

    /// Notes that it is written by the process of this id, which found it as it is.
    pub fn enter_term(&mut self, id: &str) {
        if self.terms.last().is_none_or(|last| last.id != id) {
            self.terms.push(Term { id: id.to_owned(), since: self.revision });
            let over = self.terms.len().saturating_sub(MAX_TERMS);
            self.terms.drain(..over);
        }
    }

    /// The primary that goes on from `self`, the newest copy found, beyond all `found`; for the hub `hub_id`.
    #[must_use]
    pub fn taken_over<'a>(&self, hub_id: &str, found: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut next = self.clone();
        next.former_hubs.remove(hub_id);
        // It goes on beyond all of them, whichever history they are of.
        next.terms.clear();
        let found: Vec<&Self> = found.into_iter().collect();
        for anchor in found.into_iter().chain([self]) {
            next.revision = next.revision.max(anchor.revision + 1);
            if anchor.hub_id != hub_id {
                let last = next.former_hubs.entry(anchor.hub_id.clone()).or_default();
                *last = anchor.revision.max(*last);
            }
        }
        hub_id.clone_into(&mut next.hub_id);
        next
    }

    /// Reads an anchor and checks that it is this hub's and this chain's.
    pub fn parse(text: &str, hub_id: &str, chain_id: &str) -> Result<Self, AnchorError> {
        Self::parse_copy(text)?.check(hub_id, chain_id)
    }

    /// Checks that it is this hub's and this chain's.
    pub fn check(self, hub_id: &str, chain_id: &str) -> Result<Self, AnchorError> {
        if self.hub_id != hub_id {
            return Err(AnchorError::AnotherHub {
                found: self.hub_id,
                expected: hub_id.to_owned(),
            });
        }
        if self.chain_id != chain_id {
            return Err(AnchorError::AnotherChain { found: self.chain_id });
        }
        Ok(self)
    }

    /// The anchor's text.
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps with string keys: serialising them cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Identities that are not retired, by name.
    pub fn members(&self) -> impl Iterator<Item = (NodeName, &Identity)> {
        self.identities
            .iter()
            .filter(|(_, identity)| !identity.retired)
            .map(|(name, identity)| (NodeName::from_object(name), identity))
    }

    /// Member clusters in which there are nodes: all but the hub.
    pub fn clusters(&self) -> BTreeSet<&str> {
        let identities = self.identities.values().filter(|identity| !identity.retired);
        let clusters = identities.map(|identity| identity.cluster.as_str());
        clusters.filter(|cluster| !cluster.is_empty()).collect()
    }

    /// The power with which a node voted last, as far as this operator knows; 0 = it did not.
    pub fn last_power(&self, node: &NodeName) -> u64 {
        let known = self.identity(node).and_then(|identity| identity.vote.power);
        let founder = || self.founders.iter().find(|founder| founder.name == node.as_str());
        known.or_else(|| Some(founder()?.power)).unwrap_or(0)
    }

    /// Whether the chain may have blocks: it was formed here, or others formed it, whether its genesis was taken over yet or
    /// not.
    pub fn has_begun(&self) -> bool {
        self.formed || self.joins
    }

    /// The identity of a node.
    pub fn identity(&self, node: &NodeName) -> Option<&Identity> {
        self.identities.get(node.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor() -> Anchor {
        Anchor {
            version: ANCHOR_VERSION,
            hub_id: "h1".into(),
            revision: 1,
            former_hubs: BTreeMap::new(),
            terms: Vec::new(),
            network_id: "n1".into(),
            chain_id: "c1".into(),
            genesis_time: "2026-01-01T00:00:00Z".parse().unwrap(),
            founders: vec![],
            joins: false,
            ca: None,
            genesis_hash: None,
            formed: false,
            used_consents: BTreeMap::new(),
            shares: BTreeMap::new(),
            next_index: BTreeMap::new(),
            identities: BTreeMap::new(),
        }
    }

    #[test]
    fn reads_what_it_wrote() {
        let text = anchor().to_json();
        assert_eq!(Anchor::parse(&text, "h1", "c1").unwrap(), anchor());
    }

    #[test]
    fn what_an_older_version_wrote_is_read_and_written_again_as_it_was() {
        let text = anchor().to_json();
        assert!(!text.contains("joins"), "{text}");
        let joined = Anchor { joins: true, ..anchor() };
        assert_eq!(Anchor::parse(&joined.to_json(), "h1", "c1").unwrap(), joined);
    }

    #[test]
    fn a_copy_is_late_or_the_hub_is() {
        let primary = Anchor { revision: 5, ..anchor() };
        let copy = |revision, hub: &str| Anchor { revision, hub_id: hub.into(), ..anchor() };
        assert_eq!(primary.compare(&copy(5, "h1")), CopyStanding::Current);
        assert_eq!(primary.compare(&copy(4, "h1")), CopyStanding::Behind);
        assert_eq!(primary.compare(&copy(6, "h1")), CopyStanding::Ahead);
        let other = Anchor { formed: true, ..copy(5, "h1") };
        assert_eq!(primary.compare(&other), CopyStanding::Ahead, "two histories");
        assert_eq!(primary.compare(&copy(1, "h0")), CopyStanding::AnotherHub);
        let stranger = Anchor { network_id: "n2".into(), ..copy(1, "h1") };
        assert_eq!(primary.compare(&stranger), CopyStanding::AnotherNetwork);
    }

    #[test]
    fn a_chain_of_others_has_blocks_before_its_genesis_is_here() {
        assert!(!anchor().has_begun());
        assert!(Anchor { joins: true, ..anchor() }.has_begun());
        assert!(Anchor { formed: true, ..anchor() }.has_begun());
    }

    /// Writes so many times in a term.
    fn written(mut anchor: Anchor, term: &str, times: u64) -> Anchor {
        for _ in 0..times {
            anchor.enter_term(term);
            anchor.revision += 1;
        }
        anchor
    }

    #[test]
    fn a_copy_that_was_late_stays_late_whoever_writes_on() {
        let first = written(anchor(), "t1", 4);
        let second = written(first.clone(), "t2", 3);
        let third = written(second.clone(), "t3", 1);
        for copy in [anchor(), written(anchor(), "t1", 2), first.clone(), second] {
            assert_eq!(third.compare(&copy), CopyStanding::Behind, "{copy:?}");
        }
        let terms: Vec<_> = third.terms.iter().map(|term| (term.id.as_str(), term.since)).collect();
        assert_eq!(terms, [("t1", 1), ("t2", 5), ("t3", 8)]);
        // What is forgotten of the terms makes no copy newer.
        let long = (0..100).fold(first.clone(), |anchor, n| written(anchor, &format!("u{n}"), 1));
        assert_eq!(long.terms.len(), MAX_TERMS);
        assert_eq!(long.compare(&first), CopyStanding::Behind);
    }

    /// The cluster with the newest copy could not be asked, and the restored hub went on for longer than the lost one had.
    #[test]
    fn another_history_is_ahead_however_often_this_one_was_written() {
        let backup = written(anchor(), "t1", 4);
        for lost in [written(backup.clone(), "t1", 3), written(backup.clone(), "t2", 3)] {
            let hub = written(backup.clone(), "t9", 20);
            assert_eq!(hub.compare(&lost), CopyStanding::Ahead);
            assert_eq!(hub.compare(&backup), CopyStanding::Behind);
            // A person decides; then the copy is the past.
            let next = lost.taken_over("h1", [&hub, &lost]);
            for found in [&hub, &lost, &backup] {
                assert_eq!(next.compare(found), CopyStanding::Behind);
                assert_eq!(written(next.clone(), "t9", 1).compare(found), CopyStanding::Behind);
            }
        }
    }

    #[test]
    fn who_takes_over_goes_on_beyond_all_copies_and_knows_the_old_hub_by_its_last_word() {
        let copies = [Anchor { revision: 9, ..anchor() }, Anchor { revision: 7, ..anchor() }];
        let next = copies[0].taken_over("h2", &copies);
        assert_eq!((next.hub_id.as_str(), next.revision), ("h2", 10));
        for copy in &copies {
            assert_eq!(next.compare(copy), CopyStanding::Behind);
        }
        let goes_on = Anchor { revision: 10, ..anchor() };
        assert_eq!(next.compare(&goes_on), CopyStanding::AnotherHub, "the old hub still writes");
        // The same hub, from a backup.
        let restored = copies[0].taken_over("h1", &copies);
        assert_eq!(restored.compare(&copies[0]), CopyStanding::Behind);
        assert!(restored.former_hubs.is_empty());
    }

    #[test]
    fn refuses_other_hubs_other_chains_and_newer_forms() {
        let text = anchor().to_json();
        assert!(matches!(Anchor::parse(&text, "h2", "c1"), Err(AnchorError::AnotherHub { .. })));
        assert!(matches!(Anchor::parse(&text, "h1", "c2"), Err(AnchorError::AnotherChain { .. })));
        let newer = r#"{"version": 2, "whatever": true}"#;
        assert_eq!(Anchor::parse(newer, "h1", "c1"), Err(AnchorError::Newer { found: 2 }));
        assert!(matches!(Anchor::parse("", "h1", "c1"), Err(AnchorError::Unreadable(_))));
    }
}
