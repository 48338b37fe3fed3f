//! The protocol without IO: says what to ask the stores next, given their answers.
//!
//! A [`Writer`] lives for one term of one leader and one network, and decides by what the stores hold, never
//! by what it believes it wrote: a lost answer and a conflict both end in reading again. Its only memory is
//! its own epoch and the newest primary it saw.
//!
//! ```text
//! writer.start(task);
//! loop {
//!     let op = writer.next(lease.has_time_left());
//!     let answer = match &op {
//!         Op::Read(place) => …,            // live, never from a cache
//!         Op::Swap { .. } => …,            // compare-and-swap; version None = create
//!         Op::Effect { .. } => …,          // within the remaining lease, or not at all
//!         Op::Wait(_) => …,                // a pause; then Answer::Unknown
//!         Op::Done | Op::Refuse(_) => break,
//!     };
//!     writer.answer(op, answer);
//! }
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::judge::{Found, Judgement};
use super::record::{Intent, NewStep, Phase, Record};
use super::refusal::Refusal;

/// A store's version of what it holds; never used twice by one store.
pub type Version = String;

/// A store of one record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// On the hub.
    Primary,
    /// In this member cluster.
    Copy(String),
}

/// What a leader wants of the anchor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Task<S> {
    /// Make the first record, where there is none, here or in any copy.
    Create,
    /// Record a step. Its effects come later, by `Send`, after the gate was judged again.
    Begin(NewStep<S>),
    /// Do the effects of an open step, for the first time or again.
    Send {
        /// On which ledger.
        ledger: String,
        /// Which step.
        number: u64,
    },
    /// End a step that is proved settled. See [`Record::finish`].
    Finish {
        /// On which ledger.
        ledger: String,
        /// Which step.
        number: u64,
    },
    /// Give up a step of which nothing was done.
    Withdraw {
        /// On which ledger.
        ledger: String,
        /// Which step.
        number: u64,
    },
    /// End a step without proof, by consent. See [`Record::abandon`].
    Abandon {
        /// On which ledger.
        ledger: String,
        /// Which step.
        number: u64,
        /// The consent given.
        consent: String,
    },
    /// Go on from the newest record found, by consent. See [`Record::take_over`].
    TakeOver {
        /// The consent given.
        consent: String,
    },
    /// Nothing, but see that all is in order. Writes only what a crash left undone.
    Rest,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Op<S> {
    /// Read a store, live.
    Read(Place),
    /// Replace exactly this version; `None` = create, where nothing is.
    Swap {
        /// Where.
        place: Place,
        /// Of what was read.
        version: Option<Version>,
        /// To be stored.
        record: Record<S>,
    },
    /// Do the step's effects. It is recorded wherever it must be.
    Effect {
        /// On which ledger.
        ledger: String,
        /// Which step.
        intent: Intent<S>,
    },
    /// This store did not answer: pause, then go on.
    Wait(Place),
    /// The task is done. After `Send`: the effects were asked for; observe what became of them.
    Done,
    /// The task is not done, and will not be as it stands.
    Refuse(Refusal),
}

/// What came of an [`Op`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer<S> {
    /// What is stored, if anything.
    Found(Option<(Version, Record<S>)>),
    /// Swapped; the new version.
    Swapped(Version),
    /// The version stored is another one.
    Conflict,
    /// No answer: it may have been done, or not. Also the answer to `Effect` and `Wait`.
    Unknown,
}

/// What is known of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) enum View<S> {
    /// Must be read.
    #[default]
    Unread,
    /// As read, or as written.
    Read(Option<(Version, Record<S>)>),
}

impl<S> View<S> {
    pub(super) fn record(&self) -> Option<&Record<S>> {
        match self {
            Self::Read(Some((_, record))) => Some(record),
            _ => None,
        }
    }

    fn version(&self) -> Option<Version> {
        match self {
            Self::Read(Some((version, _))) => Some(version.clone()),
            _ => None,
        }
    }

    pub(super) fn is_unread(&self) -> bool {
        matches!(self, Self::Unread)
    }
}

/// One leader's driver for one network, for one term. See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Writer<S> {
    pub(super) hub_id: String,
    pub(super) network_id: String,
    /// Transitions of the lease in this term.
    pub(super) transitions: u64,
    /// The epoch this leader stamped; known only from a store's positive answer. If that was lost, it stamps
    /// again: another leader may have chosen the same number.
    pub(super) epoch: Option<u64>,
    pub(super) primary: View<S>,
    pub(super) copies: BTreeMap<String, View<S>>,
    /// Places that cannot be asked now.
    pub(super) unreachable: BTreeSet<String>,
    /// The newest primary seen in this term.
    pub(super) memory: Option<Record<S>>,
    pub(super) task: Task<S>,
    pub(super) done: bool,
    pub(super) pause: Option<Place>,
}

impl<S: Clone + Eq> Writer<S> {
    /// A writer for a leader that has just been elected, after the lease of the one before has ended.
    /// `places` = all member clusters of the network.
    pub fn new(
        hub_id: &str,
        network_id: &str,
        transitions: u64,
        places: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            hub_id: hub_id.to_owned(),
            network_id: network_id.to_owned(),
            transitions,
            epoch: None,
            primary: View::Unread,
            copies: places.into_iter().map(|place| (place, View::Unread)).collect(),
            unreachable: BTreeSet::new(),
            memory: None,
            task: Task::Rest,
            done: false,
            pause: None,
        }
    }

    /// The network's member clusters as they are now, and which of them cannot be asked. A new one is read first; one
    /// that a person gave up is not asked any more.
    pub fn set_places(
        &mut self,
        places: impl IntoIterator<Item = String>,
        unreachable: impl IntoIterator<Item = String>,
    ) {
        let mut known = std::mem::take(&mut self.copies);
        self.copies = places
            .into_iter()
            .map(|place| {
                let view = known.remove(&place).unwrap_or_default();
                (place, view)
            })
            .collect();
        self.unreachable = unreachable.into_iter().collect();
    }

    /// Whether all copies were read in this term. What was read once does not hold up steps that have no effect
    /// there, when the cluster cannot be asked later.
    pub fn has_read_all(&self) -> bool {
        !self.copies.values().any(View::is_unread)
    }

    /// Takes up a task; the one before is dropped. What it depends on is read live again. Other copies were
    /// read in this term, and only this leader has done anything since.
    pub fn start(&mut self, task: Task<S>) {
        let open = |ledger: &str| self.memory.as_ref().and_then(|record| record.open.get(ledger));
        let places: BTreeSet<String> = match &task {
            Task::Begin(new) => new.places.clone(),
            Task::Send { ledger, .. } => {
                open(ledger).map(|intent| intent.places.clone()).unwrap_or_default()
            }
            Task::TakeOver { .. } | Task::Rest => self.copies.keys().cloned().collect(),
            _ => BTreeSet::new(),
        };
        for place in places {
            if let Some(view) = self.copies.get_mut(&place) {
                *view = View::Unread;
            }
        }
        if matches!(task, Task::TakeOver { .. }) {
            // It stamps anew, above all that was found; if that answer is lost, it must not fence itself.
            self.epoch = None;
        }
        self.primary = View::Unread;
        self.task = task;
        self.done = false;
        self.pause = None;
    }

    /// The next operation. `within_lease` = so much of the lease is left that the operation can end in it;
    /// ask this immediately before it is done.
    pub fn next(&self, within_lease: bool) -> Op<S> {
        if self.done {
            return Op::Done;
        }
        if !within_lease {
            return Op::Refuse(Refusal::LeaseEnded);
        }
        if let Some(place) = &self.pause {
            return Op::Wait(place.clone());
        }
        // Copies first: see `Found`.
        if let Some((place, _)) = self.copies.iter().find(|(_, view)| view.is_unread()) {
            return Op::Read(Place::Copy(place.clone()));
        }
        if self.primary.is_unread() {
            return Op::Read(Place::Primary);
        }
        self.next_write().unwrap_or_else(Op::Refuse)
    }

    /// Takes in what came of an operation.
    pub fn answer(&mut self, op: Op<S>, answer: Answer<S>) {
        match (op, answer) {
            (Op::Read(place), Answer::Found(found)) => self.saw(&place, View::Read(found)),
            (Op::Swap { place, record, .. }, Answer::Swapped(version)) => {
                if place == Place::Primary {
                    self.epoch = Some(record.epoch);
                }
                self.saw(&place, View::Read(Some((version, record))));
            }
            (Op::Swap { place, .. }, Answer::Conflict) => self.saw(&place, View::Unread),
            (Op::Read(place) | Op::Swap { place, .. }, _) => {
                self.saw(&place, View::Unread);
                self.pause = Some(place);
            }
            // Done or not, the world tells.
            (Op::Effect { .. }, _) => self.done = true,
            (Op::Wait(_), _) => self.pause = None,
            (Op::Done | Op::Refuse(_), _) => {}
        }
    }

    fn saw(&mut self, place: &Place, view: View<S>) {
        match place {
            Place::Primary => {
                let newer = |seen: &Record<S>| {
                    self.memory.as_ref().is_none_or(|known| known.revision < seen.revision)
                };
                if let Some(seen) = view.record().filter(|seen| newer(seen)) {
                    self.memory = Some(seen.clone());
                }
                self.primary = view;
            }
            Place::Copy(name) => {
                self.copies.insert(name.clone(), view);
                // The primary is read after every copy, and live before an effect.
                self.primary = View::Unread;
            }
        }
    }

    fn found(&self) -> Found<'_, S> {
        let copies = self.copies.iter();
        Found {
            primary: self.primary.record(),
            copies: copies.filter_map(|(name, view)| Some((&**name, view.record()?))).collect(),
            memory: self.memory.as_ref(),
        }
    }

    /// The epoch to write with: the one stamped, else above all that was ever seen.
    fn stamp(&self, found: &Found<'_, S>) -> u64 {
        let highest = found.all().map(|(_, record)| record.epoch).max().unwrap_or_default();
        self.epoch.unwrap_or(highest.max(self.transitions) + 1)
    }

    /// Everything was read: what follows?
    fn next_write(&self) -> Result<Op<S>, Refusal> {
        let found = self.found();
        let epoch = self.stamp(&found);
        let judgement = found.judge(&self.hub_id, &self.network_id, self.epoch);
        match (&self.task, &judgement) {
            (Task::Create, Judgement::Absent) => {
                let first = Record::new(&self.hub_id, &self.network_id, epoch);
                return Ok(self.swap(Place::Primary, first));
            }
            (
                Task::TakeOver { consent },
                Judgement::AnotherHub { .. } | Judgement::HubOlder { .. },
            ) => {
                let (_, newest) = found.newest().ok_or(Refusal::Absent)?;
                let others = found.all().map(|(_, record)| record);
                let next = newest.take_over(epoch, &self.hub_id, others, consent)?;
                return Ok(self.swap(Place::Primary, next));
            }
            _ => {}
        }
        if let Some(refusal) = found.refusal(judgement) {
            return Err(refusal);
        }
        let primary = found.primary.ok_or(Refusal::Absent)?;
        let is_open = |ledger: &str, number: u64| {
            primary.open.get(ledger).is_some_and(|intent| intent.number == number)
        };
        let next = match &self.task {
            Task::Begin(new) if is_begun(primary, new) => return Ok(Op::Done),
            Task::Begin(new) => {
                if let Some(place) = new.places.iter().find(|p| !self.copies.contains_key(*p)) {
                    return Err(Refusal::UnknownPlace { place: place.clone() });
                }
                primary.begin(epoch, new)?
            }
            Task::Send { ledger, number } => return self.next_sending(primary, ledger, *number),
            Task::Finish { ledger, number } if is_open(ledger, *number) => {
                primary.finish(epoch, ledger, *number)?
            }
            Task::Withdraw { ledger, number } if is_open(ledger, *number) => {
                primary.withdraw(epoch, ledger, *number)?
            }
            Task::Abandon { ledger, number, consent } if is_open(ledger, *number) => {
                primary.abandon(epoch, ledger, *number, consent)?
            }
            // What ends a step, or takes over, has been done: now the copies.
            _ => return Ok(self.tidy(primary).unwrap_or(Op::Done)),
        };
        Ok(self.swap(Place::Primary, next))
    }

    /// Resume, advance, fence, then the effect.
    fn next_sending(
        &self,
        primary: &Record<S>,
        ledger: &str,
        number: u64,
    ) -> Result<Op<S>, Refusal> {
        let no_such_step = || Refusal::NoSuchStep { ledger: ledger.to_owned(), number };
        let open = primary.open.get(ledger).filter(|intent| intent.number == number);
        let intent = open.ok_or_else(no_such_step)?;
        let own = match self.epoch {
            Some(epoch) if epoch == intent.epoch && epoch == primary.epoch => epoch,
            _ => {
                let resumed = primary.resume(self.stamp(&self.found()), ledger, number)?;
                return Ok(self.swap(Place::Primary, resumed));
            }
        };
        if intent.phase == Phase::Begun {
            let next = primary.advance(own, ledger, number)?;
            return Ok(self.swap(Place::Primary, next));
        }
        if let Some(place) = intent.places.iter().find(|place| !self.copies.contains_key(*place)) {
            return Err(Refusal::UnknownPlace { place: place.clone() });
        }
        for (place, view) in &self.copies {
            let copy = view.record();
            let recorded = copy.is_some_and(|copy| copy.open.get(ledger) == Some(intent));
            // A copy of this term cannot be changed by what an earlier leader still has under way.
            let fenced =
                copy.is_some_and(|copy| copy.epoch == own && copy.hub_id == primary.hub_id);
            // One that cannot be asked now was read in this term, and this hub is alone: nothing that is still under
            // way there is newer than what was read, and the step does not depend on it.
            let left_out = self.unreachable.contains(place)
                && !intent.places.contains(place)
                && primary.former_hubs.is_empty();
            if left_out {
                continue;
            }
            if !fenced || (intent.places.contains(place) && !recorded) {
                return Ok(self.swap(Place::Copy(place.clone()), primary.clone()));
            }
        }
        Ok(Op::Effect { ledger: ledger.to_owned(), intent: intent.clone() })
    }

    /// Brings a copy up to date that still holds a step of its own place which has ended, or names a hub
    /// that was taken over from. All other lag stays until the next step there: it does no harm.
    fn tidy(&self, primary: &Record<S>) -> Option<Op<S>> {
        let is_open = |number: u64| primary.open.values().any(|intent| intent.number == number);
        let asked = |place: &String| !self.unreachable.contains(place);
        let (place, _) = self.copies.iter().find(|(place, view)| {
            asked(place)
                && view.record().is_some_and(|copy| {
                    let mut ours =
                        copy.open.values().filter(|intent| intent.places.contains(*place));
                    copy.hub_id != primary.hub_id || ours.any(|intent| !is_open(intent.number))
                })
        })?;
        Some(self.swap(Place::Copy(place.clone()), primary.clone()))
    }

    fn swap(&self, place: Place, record: Record<S>) -> Op<S> {
        let version = match &place {
            Place::Primary => self.primary.version(),
            Place::Copy(name) => self.copies.get(name).and_then(View::version),
        };
        Op::Swap { place, version, record }
    }
}

/// Whether the step was recorded already: by this leader, whose answer was lost.
fn is_begun<S: Eq>(primary: &Record<S>, new: &NewStep<S>) -> bool {
    primary.open.get(&new.ledger).is_some_and(|intent| {
        intent.number == new.decided_on + 1
            && intent.step == new.step
            && intent.places == new.places
    })
}
