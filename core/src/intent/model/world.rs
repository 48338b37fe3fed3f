//! The truth that the model explores: stores, leaders, what is under way between them, and the world
//! outside.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::Hash;
use std::rc::Rc;

use crate::intent::record::{Intent, Phase, Record};
use crate::intent::refusal::Refusal;
use crate::intent::writer::{Place, Task, Version, Writer};

/// The network's id.
pub const NETWORK: &str = "n";
/// Ids of the hubs.
pub const HUBS: [&str; 2] = ["h1", "h2"];
/// Names of the ledgers.
pub const LEDGERS: [&str; 2] = ["x", "y"];
/// Names of the member clusters.
pub const PLACES: [&str; 2] = ["a", "b"];

/// A record; its step is the index of the job that it does.
pub type Rec = Record<u8>;

/// Something that is wanted: one step on one ledger.
#[derive(Debug, Clone)]
pub struct Job {
    pub ledger: usize,
    /// The member clusters its effects may happen in: one of these sets.
    pub places: Vec<Vec<usize>>,
}

/// What is explored.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    /// Wanted, per ledger in this order.
    pub jobs: Vec<Job>,
    /// Member clusters.
    pub copies: usize,
    /// The second process belongs to another hub, which may be built when the first one is gone.
    pub two_hubs: bool,
    /// Crashes, lost leases and answers, late requests, stale decisions: at most so many together …
    pub faults: u8,
    /// … of these kinds.
    pub kinds: &'static [Fault],
    /// How often the primary may be restored to any earlier state.
    pub restores: u8,
    /// How often a copy may be.
    pub copy_restores: u8,
    /// How often a step begun is given up since its gate closed.
    pub withdrawals: u8,
    /// How often a person consents, at most.
    pub consents: u8,
    /// One of the copies may stop answering at any moment, and answer again.
    pub cuts: bool,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A process forgets everything.
    Crash,
    /// A leader's lease ends while it is at work.
    Expiry,
    /// A write commits, or an effect happens, and its answer is lost.
    LostAnswer,
    /// A write is lost.
    LostRequest,
    /// A write is given up for lost and commits later.
    LateRequest,
    /// A decision is made on an old view.
    StaleDecision,
}

pub const ALL_FAULTS: &[Fault] = &[
    Fault::Crash,
    Fault::Expiry,
    Fault::LostAnswer,
    Fault::LostRequest,
    Fault::LateRequest,
    Fault::StaleDecision,
];

/// Without old views, which make every past state count.
pub const LIVE_FAULTS: &[Fault] =
    &[Fault::Crash, Fault::Expiry, Fault::LostAnswer, Fault::LostRequest, Fault::LateRequest];

/// What a store held, and the jobs that were settled when it was replaced.
pub type Past = (Option<Rc<Rec>>, u8);

/// A store with versions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Store {
    pub version: u8,
    pub now: Option<Rc<Rec>>,
    /// What it held before.
    pub past: Rc<Vec<Past>>,
}

/// A write that is under way although its sender gave it up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Late {
    pub store: usize,
    pub version: u8,
    pub record: Rc<Rec>,
}

/// A leader.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lead {
    /// The lease has not ended; this process knows when it looks at its clock.
    pub within: bool,
    /// The lease has ended between the look at the clock and the operation: that one is still done.
    pub overtaken: bool,
    pub writer: Writer<u8>,
    /// It works on a task.
    pub busy: bool,
    /// It was refused, and a person could help.
    pub refused: Option<Refusal>,
    /// Truth: epochs that this leader's writes put into the primary.
    pub stamped: BTreeSet<u64>,
    /// Truth: stores that were restored after this leader last read them.
    pub blind: BTreeSet<usize>,
}

/// A process of the operator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Proc {
    /// It runs, without the lease.
    Follower,
    /// It has the lease, or had.
    Leader(Rc<Lead>),
    /// Its hub is gone, or not built yet.
    Gone,
}

/// What a step did outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Effect {
    pub number: u64,
    pub job: u8,
    pub places: BTreeSet<String>,
    pub settled: bool,
}

/// All there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The hubs' primaries, then the copies.
    pub stores: Vec<Store>,
    pub procs: [Proc; 2],
    /// Transitions of each hub's lease.
    pub transitions: [u8; 2],
    pub late: Option<Late>,
    pub effects: Rc<Vec<Effect>>,
    pub faults: u8,
    pub restores: u8,
    pub copy_restores: u8,
    pub withdrawals: u8,
    pub consents: u8,
    /// A hub was restored or built anew.
    pub rewound: bool,
    /// The copy that does not answer; nor does anything else there.
    pub lost: Option<&'static str>,
}

impl Scenario {
    pub fn hubs(&self) -> usize {
        if self.two_hubs { 2 } else { 1 }
    }

    /// The hub that a process belongs to.
    pub fn hub_of(&self, proc: usize) -> usize {
        if self.two_hubs { proc } else { 0 }
    }

    pub fn store_of(&self, hub: usize, place: &Place) -> usize {
        match place {
            Place::Primary => hub,
            Place::Copy(name) => {
                self.hubs() + PLACES.iter().position(|known| known == name).unwrap()
            }
        }
    }

    pub fn start(&self) -> World {
        let first = Record::new(HUBS[0], NETWORK, 0);
        let empty = Store { version: 0, now: None, past: Rc::default() };
        let mut stores = vec![empty; self.hubs() + self.copies];
        stores[0] = Store { version: 1, now: Some(Rc::new(first)), past: Rc::default() };
        World {
            stores,
            procs: [Proc::Follower, if self.two_hubs { Proc::Gone } else { Proc::Follower }],
            transitions: [0; 2],
            late: None,
            effects: Rc::default(),
            faults: self.faults,
            restores: self.restores,
            copy_restores: self.copy_restores,
            withdrawals: self.withdrawals,
            consents: self.consents,
            rewound: false,
            lost: None,
        }
    }
}

impl World {
    /// Jobs done, as bits.
    pub fn settled(&self) -> u8 {
        self.effects.iter().filter(|e| e.settled).fold(0, |jobs, e| jobs | 1 << e.job)
    }

    pub fn is_done(&self, scenario: &Scenario) -> bool {
        self.settled().count_ones() as usize == scenario.jobs.len()
    }

    /// Whether its past still matters: it may be restored, or somebody may decide on it.
    pub fn remembers(&self, scenario: &Scenario, store: usize) -> bool {
        let primary = store < scenario.hubs();
        let stale = self.faults > 0 && scenario.kinds.contains(&Fault::StaleDecision);
        if primary { self.restores > 0 || stale } else { self.copy_restores > 0 }
    }

    pub fn put(&mut self, scenario: &Scenario, store: usize, now: Option<Rc<Rec>>) {
        let settled = self.settled();
        let remembers = self.remembers(scenario, store);
        let store = &mut self.stores[store];
        store.version += 1;
        let before = std::mem::replace(&mut store.now, now);
        if remembers {
            Rc::make_mut(&mut store.past).push((before, settled));
        }
    }

    /// Drops pasts that can play no part any more, so that equal worlds look equal.
    pub fn forget(&mut self, scenario: &Scenario) {
        for store in 0..self.stores.len() {
            if !self.remembers(scenario, store) && !self.stores[store].past.is_empty() {
                self.stores[store].past = Rc::default();
            }
        }
    }

    pub fn lead(&self, proc: usize) -> Option<&Lead> {
        match &self.procs[proc] {
            Proc::Leader(lead) => Some(lead),
            _ => None,
        }
    }

    pub fn lead_mut(&mut self, proc: usize) -> Option<&mut Lead> {
        match &mut self.procs[proc] {
            Proc::Leader(lead) => Some(Rc::make_mut(lead)),
            _ => None,
        }
    }
}

/// Keeps one of equal parts, so that millions of worlds fit into memory.
#[derive(Default)]
pub struct Pool {
    records: HashSet<Rc<Rec>>,
    leads: HashSet<Rc<Lead>>,
    pasts: HashSet<Rc<Vec<Past>>>,
    effects: HashSet<Rc<Vec<Effect>>>,
}

impl Pool {
    pub fn share(&mut self, world: &mut World) {
        for store in &mut world.stores {
            if let Some(record) = &mut store.now {
                one_of(&mut self.records, record);
            }
            one_of(&mut self.pasts, &mut store.past);
        }
        for proc in &mut world.procs {
            if let Proc::Leader(lead) = proc {
                one_of(&mut self.leads, lead);
            }
        }
        if let Some(late) = &mut world.late {
            one_of(&mut self.records, &mut late.record);
        }
        one_of(&mut self.effects, &mut world.effects);
    }
}

fn one_of<T: Eq + Hash>(pool: &mut HashSet<Rc<T>>, part: &mut Rc<T>) {
    match pool.get(part) {
        Some(known) => *part = Rc::clone(known),
        None => {
            pool.insert(Rc::clone(part));
        }
    }
}

/// The version as the writer knows it.
pub fn version(number: u8) -> Version {
    number.to_string()
}

struct Short<'a>(&'a Option<Rc<Rec>>);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(record) = self.0 else { return f.write_str("–") };
        write!(
            f,
            "{}·r{} e{} s{}",
            record.hub_id, record.revision, record.epoch, record.step_number
        )?;
        for (ledger, intent) in &record.open {
            write!(f, " {ledger}:{}", ShortIntent(intent))?;
        }
        Ok(())
    }
}

/// An intent in few letters.
pub struct ShortIntent<'a>(pub &'a Intent<u8>);

impl fmt::Display for ShortIntent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.0.phase {
            Phase::Begun => "begun",
            Phase::Sent => "SENT",
        };
        write!(f, "{phase}(step {} = job {}, e{})", self.0.number, self.0.step, self.0.epoch)
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for store in &self.stores {
            write!(f, "[{}] ", Short(&store.now))?;
        }
        if let Some(late) = &self.late {
            write!(f, "late→{} [{}] ", late.store, Short(&Some(late.record.clone())))?;
        }
        for effect in self.effects.iter() {
            let state = if effect.settled { "settled" } else { "sent" };
            write!(f, "{{step {} = job {} {state}}} ", effect.number, effect.job)?;
        }
        Ok(())
    }
}

/// A task in few words.
pub fn short(task: &Task<u8>) -> String {
    match task {
        Task::Create => "create".to_owned(),
        Task::Begin(new) => format!("begin job {} after step {}", new.step, new.decided_on),
        Task::Send { number, .. } => format!("send step {number}"),
        Task::Finish { number, .. } => format!("finish step {number}"),
        Task::Withdraw { number, .. } => format!("withdraw step {number}"),
        Task::Abandon { number, .. } => format!("abandon step {number}"),
        Task::TakeOver { consent } => consent.clone(),
        Task::Rest => "see that all is in order".to_owned(),
    }
}
