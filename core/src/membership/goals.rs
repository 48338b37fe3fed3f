//! What each node is for, given the description: who stays, who goes, how many are missing.

use std::collections::BTreeMap;

use super::model::{
    Desired, DesiredSet, Engine, LedgerName, Liveness, Member, Node, Observed, Policy, Replacement,
};
use super::projection::liveness;
use crate::names::NodeName;

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal<'a> {
    /// It stays, and votes on its set's ledgers; none = it observes.
    Stay(&'a DesiredSet),
    /// It goes.
    Go,
}

/// What all nodes are for.
#[derive(Debug, Clone)]
pub struct Goals<'a> {
    nodes: BTreeMap<&'a NodeName, Goal<'a>>,
    /// Sets that lack nodes, and how many.
    pub missing: Vec<(&'a DesiredSet, u32)>,
}

impl<'a> Goals<'a> {
    /// Compares the description with the nodes there are.
    pub fn new(desired: &'a Desired, observed: &'a Observed, seats: &Seats<'a>) -> Self {
        let mut goals = Self { nodes: BTreeMap::new(), missing: Vec::new() };
        let mut by_set: BTreeMap<&str, Vec<(&NodeName, &Node)>> = BTreeMap::new();
        for (name, node) in &observed.nodes {
            by_set.entry(&node.set).or_default().push((name, node));
        }
        for set in &desired.sets {
            let mut stay = by_set.remove(set.name.as_str()).unwrap_or_default();
            stay.retain(|(name, node)| {
                let goes = node.replacement == Replacement::Recorded || set.retire.contains(*name);
                if goes {
                    goals.nodes.insert(name, Goal::Go);
                }
                !goes
            });
            // Whoever does not vote yet, or no more, goes first: that costs the chain nothing, and a removal
            // that was begun is carried on. Then who is proved down, then the newest.
            stay.sort_by_cached_key(|(name, node)| {
                let votes = set.votes_on.iter().all(|ledger| seats.on(name, ledger).is_some());
                // Proved: an unreachable API server or old evidence says nothing.
                let observer_down = seats.of(name).is_empty() && node.engine == Engine::NotReady;
                (!votes, seats.is_down(name) || node.disk_lost || observer_down, index(name))
            });
            let replicas = set.replicas as usize;
            for (place, (name, _)) in stay.iter().enumerate() {
                let goal = if place < replicas { Goal::Stay(set) } else { Goal::Go };
                goals.nodes.insert(name, goal);
            }
            let missing = replicas.saturating_sub(stay.len());
            if missing > 0 {
                goals.missing.push((set, u32::try_from(missing).unwrap_or(u32::MAX)));
            }
        }
        // Sets that are no longer described.
        for (name, _) in by_set.into_values().flatten() {
            goals.nodes.insert(name, Goal::Go);
        }
        goals
    }

    /// What this node is for; one that is not known goes.
    pub fn of(&self, node: &NodeName) -> Goal<'a> {
        self.nodes.get(node).copied().unwrap_or(Goal::Go)
    }

    /// The power this node is to have on a ledger; `None` = it is not to vote there.
    pub fn power(&self, node: &NodeName, ledger: &str) -> Option<u64> {
        match self.of(node) {
            Goal::Stay(set) if set.votes_on.contains(ledger) => Some(set.power),
            _ => None,
        }
    }
}

/// A node's vote on a ledger.
#[derive(Debug, Clone, Copy)]
pub struct Seat<'a> {
    /// Where.
    pub ledger: &'a LedgerName,
    /// As the ledger has it.
    pub member: &'a Member,
    /// What is proved of it now.
    pub liveness: Liveness,
}

/// Which of our nodes vote where.
#[derive(Debug, Clone)]
pub struct Seats<'a>(BTreeMap<&'a NodeName, Vec<Seat<'a>>>);

impl<'a> Seats<'a> {
    /// Looks at all ledgers once.
    pub fn new(observed: &'a Observed, policy: &Policy) -> Self {
        let mut seats: BTreeMap<&NodeName, Vec<Seat<'_>>> = BTreeMap::new();
        for (name, ledger) in &observed.ledgers {
            for (key, member) in &ledger.members {
                let Some(node) = &member.node else { continue };
                let liveness = liveness(ledger, key, policy);
                seats.entry(node).or_default().push(Seat { ledger: name, member, liveness });
            }
        }
        Self(seats)
    }

    /// All seats of a node.
    pub fn of(&self, node: &NodeName) -> &[Seat<'a>] {
        self.0.get(node).map_or(&[], Vec::as_slice)
    }

    /// A node's seat on one ledger.
    pub fn on(&self, node: &NodeName, ledger: &str) -> Option<Seat<'a>> {
        self.of(node).iter().find(|seat| seat.ledger == ledger).copied()
    }

    /// Whether a node is seen to sign anywhere.
    pub fn is_live(&self, node: &NodeName) -> bool {
        self.of(node).iter().any(|seat| seat.liveness == Liveness::Live)
    }

    /// Whether a voter is proved down: on some ledger, and no other shows a sign of it.
    pub fn is_down(&self, node: &NodeName) -> bool {
        let proved = self.of(node).iter().any(|seat| seat.liveness == Liveness::ProvedDown);
        proved && !self.is_live(node)
    }
}

/// The number at the end of a node's name: higher = newer.
pub fn index(name: &NodeName) -> u32 {
    name.as_str().rsplit('-').next().and_then(|index| index.parse().ok()).unwrap_or(0)
}
