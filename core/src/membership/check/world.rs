//! The truth that the model explores: nodes, a chain, what the anchor holds, what the user wants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::membership::model::{
    Agents, Begun, Change, Cure, Desired, DesiredSet, Engine, Entry, Fate, Follower, Head, Hub,
    Inputs, Ledger, Liveness, Member, Node, Observed, Policy, Progress, Replacement, SILENT, Stand,
};
use crate::names::NodeName;
use crate::quorum::Quorum;

/// The one ledger.
pub const LEDGER: &str = "main";
/// What a node runs: the software of the beginning, a new one, and one that never works for long.
pub const OLD: u8 = 0;
pub const NEW: u8 = 1;
pub const BAD: u8 = 2;

/// What the user may want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Replicas of the two sets.
    pub replicas: [u8; 2],
    /// Power of their voters.
    pub power: [u64; 2],
    /// Whether they vote.
    pub voting: [bool; 2],
    /// What runs.
    pub inputs: u8,
}

impl Want {
    /// So many voters in the first set.
    pub fn voters(n: u8, power: u64) -> Self {
        Self { replicas: [n, 0], power: [power; 2], voting: [true; 2], inputs: OLD }
    }

    pub fn running(self, inputs: u8) -> Self {
        Self { inputs, ..self }
    }
}

/// What may happen.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: String,
    pub quorum: Quorum,
    pub weights: bool,
    /// What the user wants at first, and what the user may change it to, at any moment.
    pub wants: Vec<Want>,
    /// Edits at most.
    pub edits: u8,
    /// Faults at most, of the kinds allowed.
    pub faults: u8,
    pub crashes: bool,
    pub hangs: bool,
    pub wipes: bool,
    pub cuts: bool,
    pub lost_transactions: bool,
    pub replace_dead: bool,
    /// Another owner's voter of this power.
    pub foreign: Option<u64>,
    /// The hub may be restored from an old backup.
    pub restored_hub: bool,
    /// The user may ask for a replacement of any node.
    pub asks: bool,
    /// Each set is in a cluster of its own. The operator may lose sight of a cluster at any time and find it again,
    /// and a fault may cut a cluster off from the other.
    pub clusters: bool,
}

impl Scenario {
    pub fn new(name: impl Into<String>, quorum: Quorum, weights: bool, wants: Vec<Want>) -> Self {
        let edits = u8::from(wants.len() > 1);
        Self {
            name: name.into(),
            quorum,
            weights,
            wants,
            edits,
            faults: 0,
            crashes: true,
            hangs: false,
            wipes: false,
            cuts: false,
            lost_transactions: false,
            replace_dead: false,
            foreign: None,
            restored_hub: false,
            asks: false,
            clusters: false,
        }
    }

    /// The beginning: everything runs as first wanted.
    pub fn start(&self) -> World {
        let want = &self.wants[0];
        let mut nodes = Vec::new();
        for set in 0..2u8 {
            for _ in 0..want.replicas[usize::from(set)] {
                let voting = want.voting[usize::from(set)];
                nodes.push(N {
                    index: u8::try_from(nodes.len()).unwrap(),
                    set,
                    power: if voting { want.power[usize::from(set)] } else { 0 },
                    runs: want.inputs,
                    template: want.inputs,
                    up: true,
                    synced: true,
                    link: true,
                    reach: true,
                    made: true,
                    ..N::default()
                });
            }
        }
        World {
            next: u8::try_from(nodes.len()).unwrap(),
            nodes,
            foreign: self.foreign.map(|power| Foreign { power, up: true }),
            begun: None,
            pool: Vec::new(),
            fate: Fate::Recorded,
            want: 0,
            hub_older: false,
            frozen: false,
            consents: BTreeSet::new(),
            stalled: false,
            edits: self.edits,
            faults: self.faults,
            unasked: [false; 2],
            cut: [false; 2],
        }
    }
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct N {
    pub index: u8,
    pub set: u8,
    pub power: u64,
    /// What its pod runs, and what its template in force says.
    pub runs: u8,
    pub template: u8,
    pub up: bool,
    /// It does not come back without a cure.
    pub hung: bool,
    pub synced: bool,
    /// It reaches the other nodes.
    pub link: bool,
    /// Its API server can be asked.
    pub reach: bool,
    /// Its objects exist: they are made when its API server can be asked.
    pub made: bool,
    pub disk_lost: bool,
    pub condemned: bool,
    pub asked: bool,
    pub cure: C,
    pub entering: bool,
    pub entry_failed: bool,
    /// It has been down, or silent, for longer than the grace period.
    pub long: bool,
}

/// [`Cure`], with an order and a default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum C {
    #[default]
    Untried,
    Ordered,
    Trying,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Foreign {
    pub power: u64,
    pub up: bool,
}

/// What the anchor records of the step begun.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum B {
    Change { change: Change },
    Restart { node: u8, ordered: bool, consents: BTreeSet<String> },
}

/// The truth.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub nodes: Vec<N>,
    pub next: u8,
    pub foreign: Option<Foreign>,
    pub begun: Option<B>,
    /// Transactions sent and not included.
    pub pool: Vec<Change>,
    /// Of the change begun.
    pub fate: Fate,
    pub want: u8,
    pub hub_older: bool,
    pub frozen: bool,
    /// Consents that a person gave and that were not used yet.
    pub consents: BTreeSet<String>,
    /// It stands for a reason that no voter shows.
    pub stalled: bool,
    pub edits: u8,
    pub faults: u8,
    /// Clusters of which nothing answers the operator, neither the API server nor a gateway. Nodes there run on.
    pub unasked: [bool; 2],
    /// Clusters whose nodes do not reach those of the other.
    pub cut: [bool; 2],
}

pub fn name(index: u8) -> NodeName {
    NodeName::from_object(&format!("net-{index}"))
}

pub fn key(index: u8) -> String {
    format!("k{index}")
}

pub const FOREIGN_KEY: &str = "foreign";

/// The index behind a name or key of ours.
pub fn index(text: &str) -> Option<u8> {
    text.trim_start_matches("net-").trim_start_matches('k').parse().ok()
}

impl N {
    pub fn votes_live(&self) -> bool {
        self.power > 0 && self.up && self.link
    }

    /// It comes back by itself, once its machine lets it.
    pub fn can_start(&self) -> bool {
        self.made && !self.disk_lost && !self.hung && self.template != BAD
    }
}

impl World {
    pub fn node(&mut self, index: u8) -> Option<&mut N> {
        self.nodes.iter_mut().find(|node| node.index == index)
    }

    pub fn get(&self, index: u8) -> Option<&N> {
        self.nodes.iter().find(|node| node.index == index)
    }

    pub fn total(&self) -> u64 {
        self.nodes.iter().map(|node| node.power).sum::<u64>()
            + self.foreign.as_ref().map_or(0, |foreign| foreign.power)
    }

    pub fn live(&self) -> u64 {
        let own: u64 = self.nodes.iter().filter(|n| n.votes_live()).map(|n| n.power).sum();
        own + self.foreign.as_ref().filter(|foreign| foreign.up).map_or(0, |f| f.power)
    }

    pub fn voters(&self) -> usize {
        self.nodes.iter().filter(|node| node.power > 0).count()
            + usize::from(self.foreign.as_ref().is_some_and(|foreign| foreign.power > 0))
    }

    pub fn power_in(&self, set: u8) -> u64 {
        self.nodes.iter().filter(|n| n.set == set).map(|n| n.power).sum()
    }

    /// The operator is cut off from a cluster, or gets to it again.
    pub fn ask(&mut self, set: u8, can: bool) {
        self.unasked[usize::from(set)] = !can;
        for node in self.nodes.iter_mut().filter(|n| n.set == set) {
            node.reach = can;
        }
    }

    /// A cluster is cut off from the other, or reaches it again.
    pub fn connect(&mut self, set: u8, can: bool) {
        self.cut[usize::from(set)] = !can;
        for node in self.nodes.iter_mut().filter(|n| n.set == set) {
            node.link = can;
            node.long &= !(can && node.up);
        }
    }

    pub fn has_quorum(&self, quorum: Quorum) -> bool {
        !self.frozen
            && !self.stalled
            && self.voters() > 0
            && self.live() >= quorum.needed(self.total())
    }

    /// The chain includes a transaction.
    pub fn include(&mut self, change: &Change) {
        match change {
            Change::Add { node, power } => {
                let node = index(node.as_str()).and_then(|index| self.node(index));
                match node {
                    Some(node) if node.power == 0 => {
                        node.power = *power;
                        node.entering = true;
                        node.long = false;
                    }
                    // Its key votes already, or nobody has it.
                    _ => self.frozen = true,
                }
            }
            Change::SetPower { member, power } => match index(member).and_then(|i| self.node(i)) {
                Some(node) if node.power > 0 => node.power = *power,
                _ => self.frozen = true,
            },
            Change::Remove { member } if member == FOREIGN_KEY => self.foreign = None,
            Change::Remove { member } => match index(member).and_then(|i| self.node(i)) {
                Some(node) if node.power > 0 => {
                    node.power = 0;
                    if node.entering {
                        node.entry_failed = true;
                        node.entering = false;
                    }
                }
                // Removing a key that is not there freezes the chain.
                _ => self.frozen = true,
            },
        }
        if self.voters() == 0 {
            self.frozen = true;
        }
    }

    pub fn desired(&self, scenario: &Scenario) -> Desired {
        let want = &scenario.wants[usize::from(self.want)];
        let set = |n: usize| DesiredSet {
            name: set_name(n).to_owned(),
            replicas: u32::from(want.replicas[n]),
            votes_on: want.voting[n].then(|| LEDGER.to_owned()).into_iter().collect(),
            power: want.power[n],
            retire: BTreeSet::new(),
            cluster: cluster_name(scenario, n).to_owned(),
        };
        Desired { sets: vec![set(0), set(1)], paused: false }
    }

    pub fn policy(&self, scenario: &Scenario) -> Policy {
        Policy {
            replace_dead: scenario.replace_dead,
            consents: self.consents.clone(),
            ..Policy::default()
        }
    }

    /// What an operator sees that sees all.
    pub fn observe(&self, scenario: &Scenario) -> Observed {
        let described = scenario.wants[usize::from(self.want)].inputs;
        let answers = |n: &&N| n.up && !self.unasked[usize::from(n.set)];
        let current = |n: &N| n.up && n.link && n.synced;
        let answering = self.nodes.iter().filter(answers).filter(|n| current(n)).count();
        // Only nodes that are cut off answer: they see each other, and no blocks.
        let island = scenario.clusters
            && answering == 0
            && self.nodes.iter().filter(answers).any(|n| !n.link);
        let producing = self.has_quorum(scenario.quorum) && !island;
        let mut members = BTreeMap::new();
        let mut followers = BTreeMap::new();
        let mut nodes = BTreeMap::new();
        for n in &self.nodes {
            let engine = match (n.reach, n.up) {
                (false, _) => Engine::Unknown,
                (true, true) => Engine::Ready,
                (true, false) => Engine::NotReady,
            };
            if n.power > 0 {
                let seen = if island { answers(&n) && !n.link } else { n.up && n.link };
                let liveness = match (seen, engine) {
                    (true, _) => Liveness::Live,
                    (false, Engine::NotReady) => Liveness::ProvedDown,
                    _ => Liveness::Unknown,
                };
                let signed = if n.entering || liveness != Liveness::Live { 0 } else { 12 };
                let member = Member { power: n.power, node: Some(name(n.index)), liveness, signed };
                members.insert(key(n.index), member);
            }
            let silent = self.unasked[usize::from(n.set)];
            let follows = current(n) && !silent;
            let follower = Follower {
                lag: if silent {
                    SILENT
                } else if follows {
                    0
                } else {
                    99
                },
                steady_seconds: if follows { 99 } else { 0 },
                connected: follows,
            };
            followers.insert(name(n.index), follower);
            let pending = n.runs != described || n.template != described;
            let node = Node {
                set: set_name(usize::from(n.set)).to_owned(),
                cluster: cluster_name(scenario, usize::from(n.set)).to_owned(),
                domain: String::new(),
                engine,
                inputs: if pending { Inputs::Pending } else { Inputs::Current },
                described: described.to_string(),
                disk_lost: n.disk_lost,
                replacement: match (n.condemned, n.asked) {
                    (true, _) => Replacement::Recorded,
                    (_, true) => Replacement::Asked,
                    _ => Replacement::No,
                },
                held: false,
                // Images have a place and no order: the cases have them.
                agents: Agents::Available,
                cure: match n.cure {
                    // Another description: what was tried does not count.
                    C::Failed if !pending => Cure::Failed,
                    C::Ordered => Cure::Ordered,
                    C::Trying => Cure::Trying,
                    _ => Cure::Untried,
                },
                entry: match (n.entering, n.entry_failed) {
                    (true, _) => Entry::Entering,
                    (_, true) => Entry::Failed,
                    _ => Entry::Over,
                },
                down_seconds: if n.long { 9999 } else { 0 },
                // Switches have a model of their own: `switch_tests`.
                stand: Stand::Old,
                halted: false,
                back_seconds: 0,
            };
            nodes.insert(name(n.index), node);
        }
        if let Some(foreign) = &self.foreign {
            let liveness = if foreign.up { Liveness::Live } else { Liveness::Unknown };
            let signed = if foreign.up { 12 } else { 0 };
            let member = Member { power: foreign.power, node: None, liveness, signed };
            members.insert(FOREIGN_KEY.to_owned(), member);
        }
        let head = match (self.frozen, producing) {
            (true, _) => Head::Frozen,
            (_, true) => Head::Producing,
            _ => Head::Standing,
        };
        let mine = match &self.begun {
            Some(B::Change { change }) if self.fate == Fate::Sent => Some(change),
            _ => None,
        };
        let pending =
            self.pool.iter().find(|change| Some(*change) != mine).map(ToString::to_string);
        let ledger = Ledger {
            quorum: scenario.quorum,
            weights: scenario.weights,
            members,
            // Two witnesses at least, where there are two nodes.
            agreed: !scenario.clusters || island || answering >= self.nodes.len().min(2),
            age_seconds: if scenario.clusters && !island && answering == 0 { 99 } else { 0 },
            head,
            height: 0,
            pending,
            followers,
        };
        Observed {
            nodes,
            ledgers: [(LEDGER.to_owned(), ledger)].into(),
            begun: self.begun.as_ref().map(|begun| self.observe_begun(begun)),
            hub: if self.hub_older { Hub::Older { id: "h/n/7".into() } } else { Hub::Current },
        }
    }

    fn observe_begun(&self, begun: &B) -> Begun {
        match begun {
            B::Change { change } => {
                Begun::Change { ledger: LEDGER.to_owned(), change: change.clone(), fate: self.fate }
            }
            B::Restart { node, ordered, consents } => {
                let progress = match self.get(*node) {
                    _ if !ordered => Progress::Untouched,
                    Some(n) if n.runs != n.template => Progress::Ordered,
                    // It is not seen to be back without its API server.
                    Some(n) if n.up && n.synced && n.link && n.reach => Progress::Back,
                    _ => Progress::Down,
                };
                Begun::Restart { node: name(*node), progress, consents: consents.clone() }
            }
        }
    }

    /// A node is down since we ended its pod.
    pub fn voluntarily_down(&self) -> Option<u8> {
        match &self.begun {
            Some(B::Restart { node, ordered: true, .. }) => {
                self.get(*node).filter(|n| !n.up && n.runs == n.template).map(|n| n.index)
            }
            _ => None,
        }
    }
}

fn set_name(n: usize) -> &'static str {
    ["a", "b"][n]
}

fn cluster_name(scenario: &Scenario, set: usize) -> &'static str {
    if scenario.clusters { ["ca", "cb"][set] } else { "" }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for n in &self.nodes {
            write!(f, "{}{}:{}", set_name(usize::from(n.set)), n.index, n.power)?;
            for (is, mark) in [
                (!n.up, " down"),
                (n.hung, " hung"),
                (!n.link, " cut"),
                (!n.reach, " api-cut"),
                (!n.made, " not made"),
                (n.disk_lost, " disk-lost"),
                (!n.synced, " behind"),
                (n.condemned, " condemned"),
                (n.entering, " entering"),
                (n.entry_failed, " entry-failed"),
                (n.runs == BAD, " bad"),
                (n.long, " long"),
            ] {
                if is {
                    f.write_str(mark)?;
                }
            }
            f.write_str("  ")?;
        }
        if let Some(foreign) = &self.foreign {
            write!(f, "foreign:{}{}  ", foreign.power, if foreign.up { "" } else { " silent" })?;
        }
        if let Some(begun) = &self.begun {
            match begun {
                B::Change { change } => write!(f, "| begun: {change}, {:?} ", self.fate)?,
                B::Restart { node, ordered, .. } => {
                    write!(
                        f,
                        "| begun: restart {node}{} ",
                        if *ordered { ", ordered" } else { "" }
                    )?;
                }
            }
        }
        if !self.consents.is_empty() {
            write!(f, "| consents: {} ", self.consents.len())?;
        }
        if !self.pool.is_empty() {
            write!(f, "| pool: {} ", self.pool.len())?;
        }
        if self.stalled {
            f.write_str("| stalled ")?;
        }
        if self.frozen {
            f.write_str("| FROZEN")?;
        }
        Ok(())
    }
}
