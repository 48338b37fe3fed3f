//! What an operator remembers of a network's nodes, and what follows from it for the planner.
//!
//! The nodes' answers are taken in as they come, with the time they were *received*; the rest is arithmetic on
//! ages. Nothing here is stored: an operator that has just started knows nothing, which is neither good nor
//! bad news.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::engine::cometbft::QUORUM;
use crate::evidence::{
    ChainLiveness, EngineReport, HeadTrack, LedgerReport, MIN_WINDOW, NodeEvidence, frozen,
};
use crate::membership::Policy;
use crate::membership::model::{Engine, Follower, Head, Ledger, Liveness, Member, SILENT};
use crate::names::NodeName;

/// A voter counts as alive if it signed one of this many newest final blocks: one it may miss by being slow.
const RECENT_BLOCKS: u64 = 3;
/// What a block may be late before the signatures in the last ones say nothing about now, beside
/// [`RECENT_BLOCKS`] intervals.
const LATE: Duration = Duration::from_secs(2);
/// On a chain that stands still, a node is back when others have listed it as a peer for this long.
const LISTED: Duration = Duration::from_secs(15);

/// What is known of a node from elsewhere than its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: NodeName,
    /// Address of its consensus key.
    pub address: String,
    /// Its id in the peer-to-peer network.
    pub node_id: String,
    /// What its own API server says of its engine.
    pub engine: Engine,
    /// Uid of its pod, if there is one.
    pub pod: Option<String>,
    /// Power it had when it was last known to vote; 0 = it did not. For when no node answers.
    pub power: u64,
}

/// What is remembered of a node.
#[derive(Debug, Clone)]
struct Track {
    /// The last answer and when it was received.
    last: Option<(Duration, NodeEvidence)>,
    /// Since when it trails the head by no more than allowed.
    steady: Option<Duration>,
    /// Since when others list it as a peer, at the same height.
    listed: Option<Duration>,
    /// When it was last well: signing if it votes, else following.
    well: Duration,
    /// Its pod, and the head when that was first seen to answer.
    pod: Option<(String, u64)>,
}

/// Everything remembered of a network.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    head: HeadTrack,
    nodes: BTreeMap<NodeName, Track>,
}

/// One node, for the planner and for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSight {
    /// For how long it has not been well, in seconds.
    pub down_seconds: u64,
    /// The pod that runs now is back: it follows, and signs if it votes and blocks are made.
    pub back: bool,
    /// While the chain stands: for how many seconds others have listed it as a peer.
    pub listed_seconds: u64,
}

/// What is seen of a network at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// The ledger, for the planner.
    pub ledger: Ledger,
    /// The nodes.
    pub nodes: BTreeMap<NodeName, NodeSight>,
    /// The highest block any node reported.
    pub height: u64,
    /// Time between blocks, once some were seen.
    pub interval: Option<Duration>,
}

impl Watch {
    /// Takes in what came of a round of questions that ended at `now`. `answers` holds those that answered.
    pub fn record(
        &mut self,
        chain_id: &str,
        nodes: &[Known],
        answers: &BTreeMap<NodeName, NodeEvidence>,
        policy: &Policy,
        now: Duration,
    ) {
        self.nodes.retain(|name, _| nodes.iter().any(|node| node.name == *name));
        for known in nodes {
            let track = self.nodes.entry(known.name.clone()).or_insert_with(|| Track {
                last: None,
                steady: None,
                listed: None,
                well: now,
                pod: None,
            });
            if let Some(evidence) = answers.get(&known.name) {
                track.last = Some((now, evidence.clone()));
            }
        }
        let head = self.reports(chain_id, now).map(|(_, report)| report.height).max();
        match head {
            Some(height) if height > 0 => self.head.observe(height, now),
            _ => self.head.observe_silence(now),
        }
        self.remember(chain_id, nodes, policy, now);
    }

    /// How the head moved.
    pub fn head(&self) -> &HeadTrack {
        &self.head
    }

    /// The last answer of a node, and when it was received.
    pub fn last(&self, node: &NodeName) -> Option<(Duration, &NodeEvidence)> {
        self.nodes.get(node)?.last.as_ref().map(|(at, evidence)| (*at, evidence))
    }

    /// What nodes of this chain report at the moment.
    pub fn reports<'a>(
        &'a self,
        chain_id: &'a str,
        now: Duration,
    ) -> impl Iterator<Item = (&'a NodeName, &'a EngineReport)> {
        self.nodes.iter().filter_map(move |(name, track)| {
            let (at, evidence) = track.last.as_ref()?;
            let report = evidence.engine.report()?;
            // A node of another chain says nothing about this one.
            let counts = report.chain_id == chain_id && now.saturating_sub(*at) < MIN_WINDOW;
            counts.then_some((name, report))
        })
    }

    /// Whether the chain makes blocks, for the planner.
    fn planned_head(&self, chain_id: &str, now: Duration) -> Head {
        match self.head.liveness(now) {
            ChainLiveness::Unknown => Head::Unknown,
            ChainLiveness::Live => Head::Producing,
            ChainLiveness::Standing => {
                if frozen(self.reports(chain_id, now).map(|(_, report)| report)) {
                    Head::Frozen
                } else {
                    Head::Standing
                }
            }
        }
    }

    /// The newest block came when it was to be expected.
    fn is_prompt(&self, now: Duration) -> bool {
        let interval = self.head.interval().unwrap_or_default();
        let blocks = u32::try_from(RECENT_BLOCKS).unwrap_or(u32::MAX);
        self.head.age(now) <= interval * blocks + LATE
    }

    fn remember(&mut self, chain_id: &str, nodes: &[Known], policy: &Policy, now: Duration) {
        let seen = self.look(chain_id, nodes, now);
        let head = self.head.height();
        let facts: Vec<_> = nodes
            .iter()
            .map(|known| {
                let report = seen.reports.get(&known.name);
                let follows = report.is_some_and(|report| {
                    report.height + policy.max_lag_blocks >= head && !report.catching_up
                });
                let votes = seen.powers.is_some_and(|all| all.contains_key(&known.address));
                let well = if votes && seen.head == Head::Producing {
                    seen.signed_recently(known)
                } else {
                    follows
                };
                (report.is_some(), follows, seen.is_listed(known, head), well)
            })
            .collect();
        for (known, (answers, follows, listed, well)) in nodes.iter().zip(facts) {
            let Some(track) = self.nodes.get_mut(&known.name) else { continue };
            track.steady = if follows { track.steady.or(Some(now)) } else { None };
            track.listed = if listed { track.listed.or(Some(now)) } else { None };
            if well {
                track.well = now;
            }
            match (&track.pod, &known.pod) {
                (Some((old, _)), Some(uid)) if old == uid => {}
                (_, Some(uid)) if answers => track.pod = Some((uid.clone(), head)),
                (_, _) => track.pod = None,
            }
        }
    }

    /// What is seen at `now`, not long after the last round. `own_transaction`, in base64, is the one that the
    /// operator itself has under way.
    pub fn sight(
        &self,
        chain_id: &str,
        nodes: &[Known],
        own_transaction: Option<&str>,
        now: Duration,
    ) -> Sight {
        let seen = self.look(chain_id, nodes, now);
        let head = self.head.height();
        let mut members = BTreeMap::new();
        let own: BTreeMap<&str, &Known> =
            nodes.iter().map(|node| (node.address.as_str(), node)).collect();
        let known_powers: BTreeMap<String, u64> = nodes
            .iter()
            .filter(|node| node.power > 0)
            .map(|node| (node.address.clone(), node.power))
            .collect();
        for (address, power) in seen.powers.unwrap_or(&known_powers) {
            let known = own.get(address.as_str()).copied();
            let liveness = match known {
                Some(known) => self.liveness(&seen, known, head, now),
                None if self.is_prompt(now) && seen.signed_recently_by(address) => Liveness::Live,
                None => Liveness::Unknown,
            };
            let signed = seen.count(address, known);
            let node = known.map(|known| known.name.clone());
            members.insert(address.clone(), Member { power: *power, node, liveness, signed });
        }
        let sights = nodes.iter().map(|known| {
            let track = self.nodes.get(&known.name);
            let well = track.map_or(now, |track| track.well);
            let member = members.get(&known.address);
            let back = track.is_some_and(|track| is_back(&seen, known, track, member, now));
            let down_seconds = now.saturating_sub(well).as_secs();
            let listed = track.and_then(|track| track.listed);
            let listed_seconds = listed.map_or(0, |since| now.saturating_sub(since).as_secs());
            (known.name.clone(), NodeSight { down_seconds, back, listed_seconds })
        });
        let sights = sights.collect();
        // Each of ours is told of the others; of those of other owners it is told of one at least.
        let foreign = members.values().any(|member| member.node.is_none());
        let others = nodes.len().saturating_sub(1).clamp(usize::from(foreign), 2);
        let followers = nodes
            .iter()
            .map(|known| (known.name.clone(), self.follower(&seen, known, others, head, now)))
            .collect();
        // That nobody answers is known as of the last round, too.
        let newest = self.nodes.values().filter_map(|track| Some(track.last.as_ref()?.0)).max();
        let age = match newest {
            Some(at) if seen.powers.is_some() => now.saturating_sub(at).as_secs(),
            _ => 0,
        };
        let pending = seen.reports.values().filter_map(|report| report.ledger.as_ref());
        let foreign = pending
            .flat_map(|ledger| &ledger.pool_changes)
            .any(|change| Some(change.as_str()) != own_transaction);
        let pending =
            foreign.then(|| "a change of its members that is not this operator's".to_owned());
        let ledger = Ledger {
            quorum: QUORUM,
            weights: true,
            members,
            agreed: seen.agreed,
            age_seconds: age,
            head: seen.head,
            height: head,
            pending,
            followers,
        };
        Sight { ledger, nodes: sights, height: head, interval: self.head.interval() }
    }

    /// What the reports of this moment say together.
    fn look<'a>(&'a self, chain_id: &'a str, nodes: &[Known], now: Duration) -> Seen<'a> {
        let head = self.planned_head(chain_id, now);
        let reports: BTreeMap<&NodeName, &EngineReport> = self.reports(chain_id, now).collect();
        let height = self.head.height();
        // Who trails far behind tells of another time. So does whoever reads old blocks: where it is alone, as the first
        // node that joins a chain, its head moves, and nobody knows of a higher one. On a chain that was seen to stand
        // still the word of such a one counts: it may have nobody to tell it that there is nothing to read.
        let stands = matches!(head, Head::Standing | Head::Frozen);
        let is_current = |report: &EngineReport| {
            report.height + RECENT_BLOCKS >= height && (stands || !report.catching_up)
        };
        let current: BTreeMap<&NodeName, &LedgerReport> = reports
            .iter()
            .filter(|(_, report)| is_current(report))
            .filter_map(|(name, report)| Some((*name, report.ledger.as_ref()?)))
            .collect();
        let sets: BTreeSet<&BTreeMap<String, u64>> =
            current.values().map(|ledger| &ledger.powers).collect();
        let powers = (sets.len() == 1).then(|| sets.first().copied()).flatten();
        let own_voters = powers.map_or(0, |powers| {
            nodes.iter().filter(|node| powers.contains_key(&node.address)).count()
        });
        // On a chain that stands still one is believed: nothing but cures is done there.
        let enough = if head == Head::Producing { own_voters.clamp(1, 2) } else { 1 };
        // If no engine answers at all, that is what is known: see `Known::power`. So it is before the first block, of
        // which no engine can tell who voted.
        let untold = reports.is_empty() || (height == 0 && current.is_empty());
        let silent = untold && head == Head::Standing;
        let agreed = silent || (powers.is_some() && current.len() >= enough);
        Seen { head, reports, current, powers, agreed }
    }

    fn liveness(&self, seen: &Seen<'_>, known: &Known, head: u64, now: Duration) -> Liveness {
        let signs = match seen.head {
            Head::Producing => self.is_prompt(now) && seen.signed_recently(known),
            // No blocks, no signatures: then it counts who is there, for a while.
            Head::Standing => {
                let listed = self.nodes.get(&known.name).and_then(|track| track.listed);
                seen.is_listed(known, head)
                    && listed.is_some_and(|since| now.saturating_sub(since) >= LISTED)
            }
            Head::Frozen | Head::Unknown => false,
        };
        let there = signs || seen.reports.contains_key(&known.name);
        match (signs, known.engine) {
            (true, Engine::Ready | Engine::Unknown) => Liveness::Live,
            // Its own API server says so, and the chain shows no sign of it.
            (false, Engine::NotReady) if !there && seen.head != Head::Unknown => {
                Liveness::ProvedDown
            }
            _ => Liveness::Unknown,
        }
    }

    fn follower(
        &self,
        seen: &Seen<'_>,
        known: &Known,
        others: usize,
        head: u64,
        now: Duration,
    ) -> Follower {
        let Some(report) = seen.reports.get(&known.name) else {
            return Follower { lag: SILENT, steady_seconds: 0, connected: false };
        };
        let steady = self.nodes.get(&known.name).and_then(|track| track.steady);
        let others = u64::try_from(others).unwrap_or(u64::MAX);
        Follower {
            lag: head.saturating_sub(report.height),
            steady_seconds: steady.map_or(0, |since| now.saturating_sub(since).as_secs()),
            connected: steady.is_some() && report.peers >= others,
        }
    }
}

/// The pod that runs is back: see [`NodeSight::back`].
fn is_back(
    seen: &Seen<'_>,
    known: &Known,
    track: &Track,
    member: Option<&Member>,
    now: Duration,
) -> bool {
    let (Some((uid, began)), Some(report)) = (&track.pod, seen.reports.get(&known.name)) else {
        return false;
    };
    if known.pod.as_ref() != Some(uid) || known.engine != Engine::Ready {
        return false;
    }
    let follows = track.steady.is_some() && !report.catching_up;
    match (member, seen.head) {
        (None, _) => follows,
        // It signed after its process was first seen: the old one cannot have done that.
        (Some(_), Head::Producing) => {
            let last = seen.last_signed(known);
            follows && last.is_some_and(|last| last > *began)
        }
        (Some(_), _) => {
            follows && track.listed.is_some_and(|since| now.saturating_sub(since) >= LISTED)
        }
    }
}

/// The reports of one moment, sorted out.
struct Seen<'a> {
    head: Head,
    /// Of every engine that answers.
    reports: BTreeMap<&'a NodeName, &'a EngineReport>,
    /// Of those at the head.
    current: BTreeMap<&'a NodeName, &'a LedgerReport>,
    /// The members, if all of `current` name the same.
    powers: Option<&'a BTreeMap<String, u64>>,
    agreed: bool,
}

impl Seen<'_> {
    /// Who may bear witness about a node: the others, or itself where no other is at the head.
    fn witnesses(&self, about: &Known) -> impl Iterator<Item = &LedgerReport> {
        let alone = self.current.keys().all(|name| **name == about.name);
        let witnesses = self.current.iter();
        witnesses.filter(move |(name, _)| alone || **name != &about.name).map(|(_, ledger)| *ledger)
    }

    fn signed_recently(&self, known: &Known) -> bool {
        self.witnesses(known).any(|ledger| recently(ledger, &known.address))
    }

    fn signed_recently_by(&self, address: &str) -> bool {
        self.current.values().any(|ledger| recently(ledger, address))
    }

    fn last_signed(&self, known: &Known) -> Option<u64> {
        self.witnesses(known).filter_map(|l| l.last_signed.get(&known.address).copied()).max()
    }

    /// How many of the newest blocks it signed, by the reports of the others.
    fn count(&self, address: &str, known: Option<&Known>) -> u64 {
        let own = known.map(|known| &known.name);
        let count = |name: &NodeName| {
            let current = self.current.contains_key(name);
            self.reports.get(name).filter(|_| current)?.signed.as_ref()?.get(address).copied()
        };
        let others = self.current.keys().filter(|name| Some(**name) != own);
        let counts: Vec<u64> = others.filter_map(|name| count(name)).collect();
        let alone = || own.and_then(count);
        counts.into_iter().max().or_else(alone).unwrap_or(0)
    }

    /// On a chain that stands still: it answers at the head's height, and another node has it as a peer.
    fn is_listed(&self, known: &Known, head: u64) -> bool {
        let answers = self.reports.get(&known.name).is_some_and(|report| report.height == head);
        let mut others = self.reports.iter().filter(|(name, _)| **name != &known.name).peekable();
        let alone = others.peek().is_none();
        answers && (alone || others.any(|(_, report)| report.peer_ids.contains(&known.node_id)))
    }
}

fn recently(ledger: &LedgerReport, address: &str) -> bool {
    let last = ledger.last_signed.get(address);
    last.is_some_and(|last| last + RECENT_BLOCKS > ledger.final_height)
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
