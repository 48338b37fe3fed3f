//! All that may happen next.

use std::rc::Rc;

use super::defects::Defect;
use super::rules::{self, Broken};
use super::world::{
    Effect, Fault, HUBS, LEDGERS, Late, Lead, NETWORK, PLACES, Proc, Rec, Scenario, ShortIntent,
    World, short, version,
};
use crate::intent::record::{NewStep, Phase};
use crate::intent::refusal::{Category, Refusal};
use crate::intent::writer::{Answer, Op, Place, Task, Writer};

/// What must not happen, and by which move.
#[derive(Debug)]
pub struct Violation {
    pub rule: Broken,
    pub by: String,
}

/// What may happen next, with labels if `labels`: they cost more than the rest.
#[derive(Clone, Copy)]
pub struct Moves<'a> {
    pub scenario: &'a Scenario,
    pub defect: Option<Defect>,
    pub labels: bool,
}

/// A move, and what it leads to.
pub type Next = (String, World);

impl Moves<'_> {
    /// Everything that may happen in `world`.
    pub fn all(&self, world: &World) -> Result<Vec<Next>, Violation> {
        let mut next = Vec::new();
        for proc in 0..2 {
            match &world.procs[proc] {
                Proc::Follower => next.extend(self.acquire(world, proc)),
                Proc::Gone => next.extend(self.hub_comes(world, proc)),
                Proc::Leader(lead) => {
                    next.extend(self.act(world, proc, true)?);
                    if lead.within && self.may(world, Fault::Expiry) {
                        let mut then = fault(world);
                        let lead = then.lead_mut(proc).unwrap();
                        (lead.within, lead.overtaken) = (false, lead.busy);
                        next.push((self.say(|| format!("p{proc}: its lease ends")), then));
                    }
                }
            }
            if matches!(world.procs[proc], Proc::Leader(_)) && self.may(world, Fault::Crash) {
                let mut then = fault(world);
                then.procs[proc] = Proc::Follower;
                next.push((self.say(|| format!("p{proc}: crashes")), then));
            }
        }
        if self.scenario.two_hubs && !matches!(world.procs[0], Proc::Gone) {
            let mut then = world.clone();
            then.procs[0] = Proc::Gone;
            next.push((self.say(|| "hub h1 is gone".to_owned()), then));
        }
        if self.scenario.cuts {
            let others = PLACES[..self.scenario.copies].iter().copied().map(Some).chain([None]);
            for lost in others.filter(|lost| lost.is_some() != world.lost.is_some()) {
                let label = self.say(|| format!("the place that does not answer: {lost:?}"));
                next.push((label, World { lost, ..world.clone() }));
            }
        }
        next.extend(self.land(world)?);
        next.extend(self.settle(world));
        next.extend(self.restore(world));
        for (_, world) in &mut next {
            world.forget(self.scenario);
        }
        Ok(next)
    }

    fn may(&self, world: &World, kind: Fault) -> bool {
        world.faults > 0 && self.scenario.kinds.contains(&kind)
    }

    fn say(&self, label: impl FnOnce() -> String) -> String {
        if self.labels { label() } else { String::new() }
    }

    /// A follower gets the lease once nobody of its hub is within one.
    pub fn acquire(&self, world: &World, proc: usize) -> Option<Next> {
        let hub = self.scenario.hub_of(proc);
        let held = (0..2).any(|other| {
            self.scenario.hub_of(other) == hub && world.lead(other).is_some_and(|lead| lead.within)
        });
        // The two are alike: the first to lead is called p0.
        let second = proc == 1 && hub == 0 && world.transitions[0] == 0 && !world.rewound;
        if held || second {
            return None;
        }
        let mut then = world.clone();
        then.transitions[hub] += 1;
        let places = PLACES[..self.scenario.copies].iter().map(|place| (*place).to_owned());
        let transitions = u64::from(then.transitions[hub]);
        then.procs[proc] = Proc::Leader(Rc::new(Lead {
            within: true,
            overtaken: false,
            writer: Writer::new(HUBS[hub], NETWORK, transitions, places),
            busy: false,
            refused: None,
            stamped: [].into(),
            blind: [].into(),
        }));
        Some((self.say(|| format!("p{proc}: leads")), then))
    }

    /// Another hub is built when the first is gone; that one may come back.
    pub fn hub_comes(&self, world: &World, proc: usize) -> Option<Next> {
        let mut then = world.clone();
        if proc == 1 {
            if !matches!(world.procs[0], Proc::Gone) {
                return None;
            }
            then.rewound = true;
        } else if self.may(world, Fault::Crash) && !taking_over(world) {
            // Who consents sees to it that the other hub stays away until the consent was used.
            then.faults -= 1;
        } else {
            return None;
        }
        then.procs[proc] = Proc::Follower;
        Some((self.say(|| format!("p{proc} starts, on hub {}", HUBS[proc])), then))
    }

    /// A leader does the next thing; with `faults`, also what may go wrong with it.
    pub fn act(&self, world: &World, proc: usize, faults: bool) -> Result<Vec<Next>, Violation> {
        let lead = world.lead(proc).unwrap();
        let within = lead.within || self.defect == Some(Defect::NoLeaseCheck);
        if !lead.busy {
            if !within {
                let mut then = world.clone();
                then.procs[proc] = Proc::Follower;
                return Ok(vec![(self.say(|| format!("p{proc}: steps down")), then)]);
            }
            return Ok(self.decide(world, proc, faults));
        }
        let mut next = Vec::new();
        if lead.overtaken && faults {
            let (here, op) = self.ask(world, proc, true);
            if matches!(op, Op::Read(_) | Op::Swap { .. }) {
                next = self.perform(&here, proc, op, false)?;
            }
        }
        let (here, op) = self.ask(world, proc, within);
        next.extend(self.perform(&here, proc, op, faults)?);
        Ok(next)
    }

    /// Asks a leader's writer what it does next.
    fn ask(&self, world: &World, proc: usize, within: bool) -> (World, Op<u8>) {
        let mut here = world.clone();
        let lead = here.lead_mut(proc).unwrap();
        lead.overtaken = false;
        if let Some(defect) = self.defect {
            defect.distort(&mut lead.writer);
        }
        let mut op = lead.writer.next(within);
        // A pause is nothing but time.
        if matches!(op, Op::Wait(_)) {
            lead.writer.answer(op, Answer::Unknown);
            op = lead.writer.next(within);
        }
        if let Some(defect) = self.defect {
            op = defect.twist(&lead.writer, op);
        }
        (here, op)
    }

    fn perform(
        &self,
        world: &World,
        proc: usize,
        op: Op<u8>,
        faults: bool,
    ) -> Result<Vec<Next>, Violation> {
        let scenario = self.scenario;
        let hub = scenario.hub_of(proc);
        let mut next = Vec::new();
        let is_lost = |place: &str| world.lost == Some(place);
        match &op {
            // It pauses, and after a while looks for something else to do.
            Op::Read(Place::Copy(place)) | Op::Swap { place: Place::Copy(place), .. }
                if is_lost(place) =>
            {
                let label = self.say(|| format!("p{proc}: gets no answer of {place}"));
                let mut then = world.clone();
                let lead = then.lead_mut(proc).unwrap();
                lead.writer.answer(op.clone(), Answer::Unknown);
                lead.busy = false;
                next.push((label, then));
            }
            // What happens there does not happen.
            Op::Effect { intent, .. } if intent.places.iter().any(|place| is_lost(place)) => {
                let label = self.say(|| format!("p{proc}: EFFECT is lost"));
                next.push((label, self.answer(world.clone(), proc, op, Answer::Unknown)?));
            }
            Op::Read(place) => {
                let store = scenario.store_of(hub, place);
                let found = world.stores[store]
                    .now
                    .as_ref()
                    .map(|record| (version(world.stores[store].version), Rec::clone(record)));
                let mut then = world.clone();
                then.lead_mut(proc).unwrap().blind.remove(&store);
                let label = self.say(|| format!("p{proc}: reads {}", name(place)));
                next.push((label, self.answer(then, proc, op, Answer::Found(found))?));
            }
            Op::Swap { place, version: expected, record } => {
                let store = scenario.store_of(hub, place);
                let stored = &world.stores[store];
                let current = stored.now.as_ref().map(|_| version(stored.version));
                let what = |how: &str| {
                    self.say(|| {
                        let task = short(&world.lead(proc).unwrap().writer.task);
                        format!("p{proc}: writes {} {how} to {task}", name(place))
                    })
                };
                if *expected != current && self.defect != Some(Defect::BlindOverwrite) {
                    let then = self.answer(world.clone(), proc, op.clone(), Answer::Conflict)?;
                    return Ok(vec![(what("(conflict)"), then)]);
                }
                let record = Rc::new(record.clone());
                rules::check_write(scenario, world, store, &record)
                    .map_err(|rule| Violation { rule, by: what("") })?;
                let mut landed = world.clone();
                landed.put(scenario, store, Some(Rc::clone(&record)));
                let lead = landed.lead_mut(proc).unwrap();
                lead.blind.remove(&store);
                if *place == Place::Primary {
                    lead.stamped.insert(record.epoch);
                }
                let swapped = Answer::Swapped(version(landed.stores[store].version));
                let done = self.answer(landed.clone(), proc, op.clone(), swapped)?;
                next.push((what(""), done));
                if faults && self.may(world, Fault::LostAnswer) {
                    let lost = self.answer(fault(&landed), proc, op.clone(), Answer::Unknown)?;
                    next.push((what("(answer lost)"), lost));
                }
                if faults && self.may(world, Fault::LostRequest) {
                    let lost = self.answer(fault(world), proc, op.clone(), Answer::Unknown)?;
                    next.push((what("(request lost)"), lost));
                }
                if faults && world.late.is_none() && self.may(world, Fault::LateRequest) {
                    let mut late = fault(world);
                    let version = if current.is_some() { world.stores[store].version } else { 0 };
                    late.late = Some(Late { store, version, record });
                    let late = self.answer(late, proc, op.clone(), Answer::Unknown)?;
                    next.push((what("(late)"), late));
                }
            }
            Op::Effect { ledger, intent } => {
                let what = |how: &str| {
                    self.say(|| format!("p{proc}: EFFECT {how}of {}", ShortIntent(intent)))
                };
                rules::check_effect(scenario, world, proc, ledger, intent)
                    .map_err(|rule| Violation { rule, by: what("") })?;
                let mut then = world.clone();
                let (number, job) = (intent.number, intent.step);
                if !then.effects.iter().any(|effect| effect.number == number) {
                    let places = intent.places.clone();
                    let effects = Rc::make_mut(&mut then.effects);
                    effects.push(Effect { number, job, places, settled: false });
                    effects.sort();
                }
                next.push((what(""), self.answer(then, proc, op.clone(), Answer::Unknown)?));
                if faults && self.may(world, Fault::LostRequest) {
                    let lost = self.answer(fault(world), proc, op.clone(), Answer::Unknown)?;
                    next.push((what("(request lost) "), lost));
                }
            }
            Op::Refuse(_) | Op::Done => {
                let label = self.say(|| match &op {
                    Op::Refuse(refusal) => format!("p{proc}: is refused: {refusal}"),
                    _ => format!("p{proc}: is done"),
                });
                next.push((label, conclude(world.clone(), proc, op)?));
            }
            Op::Wait(_) => {}
        }
        Ok(next)
    }

    /// The writer takes an answer in; what needs no store follows at once.
    fn answer(
        &self,
        mut world: World,
        proc: usize,
        op: Op<u8>,
        answer: Answer<u8>,
    ) -> Result<World, Violation> {
        let lead = world.lead_mut(proc).unwrap();
        let read_first =
            self.defect == Some(Defect::PrimaryReadFirst) && matches!(op, Op::Read(Place::Copy(_)));
        let kept = read_first.then(|| lead.writer.primary.clone());
        lead.writer.answer(op, answer);
        if let Some(kept) = kept {
            lead.writer.primary = kept;
        }
        // What it concludes without the lease in view is the same for every moment.
        let op = match self.defect {
            None => lead.writer.next(true),
            Some(defect) => {
                let mut writer = lead.writer.clone();
                defect.distort(&mut writer);
                defect.twist(&writer, writer.next(true))
            }
        };
        match op {
            Op::Done | Op::Refuse(_) => conclude(world, proc, op),
            _ => Ok(world),
        }
    }

    /// A leader decides what to do, by what it sees of the anchor and of the world.
    fn decide(&self, world: &World, proc: usize, faults: bool) -> Vec<Next> {
        let mut next = Vec::new();
        let store = &world.stores[self.scenario.hub_of(proc)];
        let lead = world.lead(proc).unwrap();
        if let Some(consent) = lead.refused.as_ref().and_then(Refusal::consent) {
            // A person sees to it that the other hub is gone.
            let other_is_gone =
                !self.scenario.two_hubs || matches!(world.procs[1 - proc], Proc::Gone);
            if world.consents > 0 && other_is_gone {
                let mut then = world.clone();
                then.consents -= 1;
                next.push(self.take_up(
                    then,
                    proc,
                    Task::TakeOver { consent: consent.to_owned() },
                    "",
                ));
            }
        }
        for task in self.tasks(world, proc, store.now.as_deref(), world.settled()) {
            let mut then = world.clone();
            if matches!(task, Task::Withdraw { .. }) {
                then.withdrawals = then.withdrawals.saturating_sub(1);
            }
            next.push(self.take_up(then, proc, task, ""));
        }
        if faults && self.may(world, Fault::StaleDecision) {
            for (record, settled) in store.past.iter() {
                let tasks = self.tasks(world, proc, record.as_deref(), *settled);
                for task in tasks.into_iter().filter(|task| matches!(task, Task::Begin(_))) {
                    next.push(self.take_up(fault(world), proc, task, "on an old view "));
                }
                if self.defect == Some(Defect::OldEvidence) {
                    for task in self.tasks(world, proc, store.now.as_deref(), *settled) {
                        next.push(self.take_up(fault(world), proc, task, "on old evidence "));
                    }
                }
            }
        }
        next
    }

    fn take_up(&self, mut world: World, proc: usize, task: Task<u8>, how: &str) -> Next {
        let label = self.say(|| format!("p{proc}: decides {how}to {}", short(&task)));
        let lead = world.lead_mut(proc).unwrap();
        lead.writer.start(task);
        lead.busy = true;
        lead.refused = None;
        (label, world)
    }

    fn tasks(
        &self,
        world: &World,
        proc: usize,
        record: Option<&Rec>,
        settled: u8,
    ) -> Vec<Task<u8>> {
        let lead = world.lead(proc).unwrap();
        if lead.refused == Some(Refusal::Absent) && record.is_none() {
            return vec![Task::Create];
        }
        let mut tasks = Vec::new();
        for ledger in LEDGERS {
            let Some(record) = record else { break };
            let Some(intent) = record.open.get(ledger) else {
                tasks.extend(self.next_job(record, ledger, settled));
                continue;
            };
            let (ledger, number) = (ledger.to_owned(), intent.number);
            if intent.phase == Phase::Begun {
                tasks.push(Task::Send { ledger: ledger.clone(), number });
                if world.withdrawals > 0 {
                    tasks.push(Task::Withdraw { ledger, number });
                }
                continue;
            }
            let effect = world.effects.iter().find(|effect| effect.number == number);
            match effect {
                Some(_) if settled & 1 << intent.step != 0 => {
                    tasks.push(Task::Finish { ledger, number });
                }
                // It was seen, so this leader waits; a new one may not have looked yet.
                Some(_) if lead.stamped.contains(&intent.epoch) => match self.defect {
                    Some(Defect::UnsettledIsFailed) => {
                        tasks.push(Task::Finish { ledger, number });
                    }
                    Some(Defect::WithdrawsWhatWasSent) => {
                        tasks.push(Task::Withdraw { ledger, number });
                    }
                    _ => {}
                },
                _ => tasks.push(Task::Send { ledger, number }),
            }
        }
        let rested = lead.writer.task == Task::Rest && !lead.writer.primary.is_unread();
        if tasks.is_empty() && !rested {
            tasks.push(Task::Rest);
        }
        tasks
    }

    /// The next job of a ledger, in every way it can be done.
    fn next_job(&self, record: &Rec, ledger: &str, settled: u8) -> Vec<Task<u8>> {
        let mut jobs = (0_u8..).zip(&self.scenario.jobs);
        let next = jobs.find(|(job, one)| LEDGERS[one.ledger] == ledger && settled & 1 << job == 0);
        let Some((step, job)) = next else { return Vec::new() };
        let begin = |places: &Vec<usize>| {
            Task::Begin(NewStep {
                ledger: ledger.to_owned(),
                places: places.iter().map(|place| PLACES[*place].to_owned()).collect(),
                step,
                decided_on: record.step_number,
            })
        };
        job.places.iter().map(begin).collect()
    }

    /// A write that was given up for lost arrives.
    pub fn land(&self, world: &World) -> Result<Option<Next>, Violation> {
        let Some(late) = &world.late else { return Ok(None) };
        let mut then = world.clone();
        then.late = None;
        let stored = &world.stores[late.store];
        let current = if stored.now.is_some() { stored.version } else { 0 };
        if current != late.version {
            return Ok(Some((self.say(|| "the late write comes too late".to_owned()), then)));
        }
        let by = || "the late write arrives".to_owned();
        rules::check_write(self.scenario, world, late.store, &late.record)
            .map_err(|rule| Violation { rule, by: by() })?;
        then.put(self.scenario, late.store, Some(Rc::clone(&late.record)));
        Ok(Some((self.say(by), then)))
    }

    /// The world outside gets on.
    pub fn settle(&self, world: &World) -> Vec<Next> {
        let open = world.effects.iter().enumerate().filter(|(_, effect)| !effect.settled);
        open.map(|(n, effect)| {
            let mut then = world.clone();
            Rc::make_mut(&mut then.effects)[n].settled = true;
            (self.say(|| format!("step {} is settled", effect.number)), then)
        })
        .collect()
    }

    /// A store is restored to what it once held.
    fn restore(&self, world: &World) -> Vec<Next> {
        let mut next = Vec::new();
        for store in 0..world.stores.len() {
            let primary = store < self.scenario.hubs();
            let left = if primary { world.restores } else { world.copy_restores };
            if left == 0 || world.stores[store].now.is_none() {
                continue;
            }
            let mut seen = vec![world.stores[store].now.clone()];
            let past = world.stores[store].past.iter().map(|(record, _)| record.clone());
            for record in past.chain([None]) {
                if seen.contains(&record) {
                    continue;
                }
                seen.push(record.clone());
                let mut then = world.clone();
                then.put(self.scenario, store, record);
                if primary {
                    then.restores -= 1;
                    then.rewound = true;
                    // The lease may come from the same backup.
                    then.transitions[store] = 0;
                } else {
                    then.copy_restores -= 1;
                }
                for proc in 0..2 {
                    if let Some(lead) = then.lead_mut(proc) {
                        lead.blind.insert(store);
                    }
                }
                next.push((self.say(|| format!("store {store} is restored")), then));
            }
        }
        next
    }
}

/// A task ends, done or refused.
fn conclude(mut world: World, proc: usize, op: Op<u8>) -> Result<World, Violation> {
    let lead = world.lead_mut(proc).unwrap();
    lead.busy = false;
    let Op::Refuse(refusal) = op else { return Ok(world) };
    let within = lead.within;
    let helps = refusal.consent().is_some() || refusal == Refusal::Absent;
    lead.refused = helps.then(|| refusal.clone());
    rules::check_refusal(&world, within, &refusal)
        .map_err(|rule| Violation { rule, by: format!("p{proc} is refused: {refusal}") })?;
    if refusal.category() == Category::EndTerm {
        world.procs[proc] = Proc::Follower;
    }
    Ok(world)
}

fn fault(world: &World) -> World {
    World { faults: world.faults - 1, ..world.clone() }
}

fn taking_over(world: &World) -> bool {
    world.lead(1).is_some_and(|lead| lead.busy && matches!(lead.writer.task, Task::TakeOver { .. }))
}

fn name(place: &Place) -> String {
    match place {
        Place::Primary => "primary".to_owned(),
        Place::Copy(place) => format!("copy {place}"),
    }
}
