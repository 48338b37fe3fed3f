//! Breadth-first search over all that may happen, and what becomes of each state once faults stop.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use super::defects::Defect;
use super::moves::{Moves, Next, Violation};
use super::world::{PLACES, Pool, Proc, Scenario, World};
use crate::counterexample::Counterexample;
use crate::intent::writer::Task;

/// What a search found.
#[derive(Debug, Default)]
pub struct Report {
    pub states: usize,
    pub moves: usize,
    /// States from which a person's consent was needed on the way to rest.
    pub consented: usize,
    /// Operations on the longest way to rest.
    pub longest: usize,
    pub counterexample: Option<Counterexample>,
}

/// A fast hash; equality decides, so it need not be a good one.
#[derive(Default)]
struct Fast(u64);

impl Hasher for Fast {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

type Quick = BuildHasherDefault<Fast>;

/// States known, each once; the map holds their places in the queue by hash.
#[derive(Default)]
struct Known {
    queue: Vec<(World, u32)>,
    by_hash: HashMap<u64, Vec<u32>, Quick>,
    pool: Pool,
}

impl Known {
    fn add(&mut self, mut world: World, from: u32) {
        let hash = Quick::default().hash_one(&world);
        let same = self.by_hash.entry(hash).or_default();
        if same.iter().all(|at| self.queue[*at as usize].0 != world) {
            self.pool.share(&mut world);
            same.push(u32::try_from(self.queue.len()).unwrap());
            self.queue.push((world, from));
        }
    }
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// That nothing happens that must not: finds the shortest way to it.
    Safety,
    /// Also that all comes to rest from everywhere.
    SafetyAndRest,
}

/// Explores a scenario. States beyond `limit` are a failure of the bound, not a success.
pub fn explore(scenario: &Scenario, defect: Option<Defect>, check: Check, limit: usize) -> Report {
    let moves = Moves { scenario, defect, labels: false };
    let mut known = Known::default();
    known.add(scenario.start(), u32::MAX);
    let mut report = Report::default();
    let mut rest = Rest::default();
    let mut at = 0;
    while at < known.queue.len() {
        let world = known.queue[at].0.clone();
        if check == Check::SafetyAndRest {
            match rest.check(&moves, &world) {
                Ok(reached) => {
                    report.consented += usize::from(reached.consented);
                    report.longest = report.longest.max(reached.operations);
                }
                Err(rule) => {
                    let mut path = path_to(scenario, defect, &known.queue, at);
                    path.extend(way_from(scenario, defect, &world));
                    report.counterexample = Some(Counterexample { rule, path });
                    break;
                }
            }
        }
        let next = match moves.all(&world) {
            Ok(next) => next,
            Err(Violation { rule, .. }) => {
                let mut path = path_to(scenario, defect, &known.queue, at);
                // The same again, with a label.
                path.extend((Moves { labels: true, ..moves }).all(&world).err().map(|v| v.by));
                report.counterexample = Some(Counterexample { rule: rule.to_owned(), path });
                break;
            }
        };
        report.moves += next.len();
        for (_, next) in next {
            known.add(next, u32::try_from(at).unwrap());
        }
        at += 1;
        assert!(known.queue.len() < limit, "{}: more than {limit} states", scenario.name);
    }
    report.states = known.queue.len();
    report
}

fn path_to(
    scenario: &Scenario,
    defect: Option<Defect>,
    queue: &[(World, u32)],
    to: usize,
) -> Vec<String> {
    let mut chain = vec![to];
    while let Some(&last) = chain.last()
        && queue[last].1 != u32::MAX
    {
        chain.push(queue[last].1 as usize);
    }
    chain.reverse();
    let moves = Moves { scenario, defect, labels: true };
    let mut path = vec![format!("{:<46} → {}", "at first", queue[0].0)];
    for pair in chain.windows(2) {
        let (from, to) = (&queue[pair[0]].0, &queue[pair[1]].0);
        let label = moves
            .all(from)
            .ok()
            .and_then(|moves| moves.into_iter().find(|(_, next)| next == to))
            .map_or("?".to_owned(), |(label, _)| label);
        path.push(format!("{label:<46} → {to}"));
    }
    path
}

/// Operations on one way to rest, at most; more is no progress.
const WAY: usize = 150;

/// How a state comes to rest.
#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    /// A person's consent was needed.
    consented: bool,
    operations: usize,
}

/// From every state: faults stop, a person gives the consents that are asked for, and all jobs get done; then
/// nobody writes any more, and a restarted operator writes nothing.
#[derive(Default)]
struct Rest {
    /// Healed states from which rest is known to be reached.
    known: HashMap<u64, Vec<(World, Reached)>, Quick>,
    pool: Pool,
}

impl Rest {
    fn check(&mut self, moves: &Moves<'_>, world: &World) -> Result<Reached, String> {
        let mut here = heal(moves, world).map_err(|v| v.rule.to_owned())?;
        let mut passed = Vec::new();
        let mut reached = Reached::default();
        for _ in 0..WAY {
            let hash = Quick::default().hash_one(&here);
            let known = self.known.get(&hash).into_iter().flatten();
            if let Some((_, before)) = known.into_iter().find(|(one, _)| *one == here) {
                reached = *before;
                break;
            }
            let Some((_, next)) = advance(moves, &here).map_err(|v| v.rule.to_owned())? else {
                is_at_rest(moves, &here)?;
                passed.push((hash, here, false));
                return Ok(self.remember(passed, reached));
            };
            let consented = next.consents < here.consents;
            passed.push((hash, here, consented));
            here = World { consents: u8::MAX, ..next };
        }
        if passed.len() == WAY {
            return Err(format!("not at rest after {WAY} operations"));
        }
        Ok(self.remember(passed, reached))
    }

    fn remember(&mut self, passed: Vec<(u64, World, bool)>, mut reached: Reached) -> Reached {
        for (hash, mut world, consented) in passed.into_iter().rev() {
            reached.consented |= consented;
            reached.operations += 1;
            self.pool.share(&mut world);
            self.known.entry(hash).or_default().push((world, reached));
        }
        reached
    }
}

/// The way that [`Rest::check`] goes, for people.
fn way_from(scenario: &Scenario, defect: Option<Defect>, world: &World) -> Vec<String> {
    let moves = Moves { scenario, defect, labels: true };
    let mut here = match heal(&moves, world) {
        Ok(here) => here,
        Err(violation) => return vec![violation.by],
    };
    let mut way = vec![format!("{:<46} → {here}", "faults stop")];
    for _ in 0..WAY {
        match advance(&moves, &here) {
            Ok(Some((label, next))) => {
                here = World { consents: u8::MAX, ..next };
                way.push(format!("{label:<46} → {here}"));
            }
            Ok(None) => break,
            Err(violation) => {
                way.push(violation.by);
                break;
            }
        }
    }
    way
}

/// All is done, and a new leader writes nothing.
fn is_at_rest(moves: &Moves<'_>, world: &World) -> Result<(), String> {
    if !world.is_done(moves.scenario) {
        return Err("it comes to rest and not all is done".to_owned());
    }
    if !is_tidy(moves, world) {
        return Err("it comes to rest with a step left open in an anchor".to_owned());
    }
    let mut here = world.clone();
    for proc in &mut here.procs {
        if matches!(proc, Proc::Leader(_)) {
            *proc = Proc::Follower;
        }
    }
    let versions =
        |world: &World| world.stores.iter().map(|store| store.version).collect::<Vec<_>>();
    for _ in 0..WAY {
        let Some((_, next)) = advance(moves, &here).map_err(|v| v.rule.to_owned())? else {
            return Ok(());
        };
        if versions(&next) != versions(&here) {
            return Err("an operator that starts with nothing to do writes".to_owned());
        }
        here = next;
    }
    Err("an operator with nothing to do comes to no rest".to_owned())
}

/// No step is left open in the primary, nor in the copy of a place where its effects happened.
fn is_tidy(moves: &Moves<'_>, world: &World) -> bool {
    let primary = &world.stores[survivor(moves, world)];
    let copies = world.stores.iter().skip(moves.scenario.hubs());
    primary.now.iter().all(|record| record.open.is_empty())
        && copies.zip(PLACES).all(|(copy, place)| {
            let mut open = copy.now.iter().flat_map(|record| record.open.values());
            open.all(|intent| !intent.places.contains(place))
        })
}

/// The process whose hub goes on: the newest.
fn survivor(moves: &Moves<'_>, world: &World) -> usize {
    usize::from(moves.scenario.two_hubs && !matches!(world.procs[1], Proc::Gone))
}

/// Faults stop: what is under way arrives, one hub is left, a lease that ended is seen to have ended.
fn heal(moves: &Moves<'_>, world: &World) -> Result<World, Violation> {
    let mut here = match moves.land(world)? {
        Some((_, landed)) => landed,
        None => world.clone(),
    };
    here.faults = 0;
    here.lost = None;
    here.restores = 0;
    here.copy_restores = 0;
    here.withdrawals = 0;
    here.consents = u8::MAX;
    if moves.scenario.two_hubs {
        if survivor(moves, &here) == 1 {
            here.procs[0] = Proc::Gone;
        } else if matches!(here.procs[0], Proc::Gone) {
            here.procs[0] = Proc::Follower;
        }
    }
    for proc in 0..2 {
        // A leader looks after everything again from time to time.
        if let Some(lead) = here.lead_mut(proc)
            && (!lead.busy || lead.writer.task == Task::Rest)
        {
            lead.writer.start(Task::Rest);
        }
    }
    here.forget(moves.scenario);
    Ok(here)
}

/// The next thing on the way to rest: whoever can act does, in a fixed order; `None` = nothing is left to do.
fn advance(moves: &Moves<'_>, world: &World) -> Result<Option<Next>, Violation> {
    // Who lost the lease sees that first.
    let mut leaders: Vec<usize> = (0..2).filter(|proc| world.lead(*proc).is_some()).collect();
    leaders.sort_by_key(|proc| world.lead(*proc).is_some_and(|lead| lead.within));
    for proc in &leaders {
        if let Some(next) = moves.act(world, *proc, false)?.into_iter().next() {
            return Ok(Some(next));
        }
    }
    if let Some(next) = moves.settle(world).into_iter().next() {
        return Ok(Some(next));
    }
    if leaders.is_empty() {
        let proc = (0..2).find(|proc| matches!(world.procs[*proc], Proc::Follower));
        let proc = proc.unwrap_or(0);
        return Ok(moves.acquire(world, proc));
    }
    Ok(None)
}
