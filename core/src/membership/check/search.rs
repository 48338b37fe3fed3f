//! Breadth-first search over all that may happen, and what becomes of each state once faults stop.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::defects::Defect;
use super::moves::{self, Sight, Violation};
use super::rules;
use super::world::{B, BAD, C, NEW, OLD, Scenario, World};
use crate::counterexample::Counterexample;
use crate::membership::model::{Decision, Gate};

/// What a search found.
#[derive(Debug, Default)]
pub struct Report {
    pub states: usize,
    pub moves: usize,
    /// Refusals that needed a person on the way to the goal, and in how many states.
    pub refused: BTreeMap<String, usize>,
    pub counterexample: Option<Counterexample>,
}

/// Explores a scenario. States beyond `limit` are a failure of the bound, not a success.
pub fn explore(scenario: &Scenario, defect: Option<Defect>, limit: usize) -> Report {
    let start = scenario.start();
    let mut known: HashMap<World, u32> = HashMap::from([(start.clone(), 0)]);
    let mut queue = vec![(start, u32::MAX)];
    let mut report = Report::default();
    let mut healed = Healed::default();
    let mut without = [Healed::without(0), Healed::without(1)];
    let mut at = 0;
    while at < queue.len() {
        let world = queue[at].0.clone();
        let broken = |rule: String, by: Option<String>, queue: &[(World, u32)]| {
            let mut path = path_to(scenario, defect, queue, at);
            path.extend(by);
            Some(Counterexample { rule, path })
        };
        if let Err(rule) = rules::check_state(&world) {
            report.counterexample = broken(rule.to_owned(), None, &queue);
            break;
        }
        let unasked = without.iter_mut().zip(world.unasked);
        let elsewhere: Result<(), _> = unasked
            .filter(|(_, unasked)| *unasked)
            .try_for_each(|(healed, _)| healed.check(scenario, &world, defect).map(drop));
        match elsewhere.and_then(|()| healed.check(scenario, &world, defect)) {
            Ok(refusals) => {
                for refusal in refusals {
                    *report.refused.entry(refusal).or_default() += 1;
                }
            }
            Err((rule, way)) => {
                report.counterexample = broken(rule, Some(way), &queue);
                break;
            }
        }
        let next = match moves::moves(scenario, &world, defect) {
            Ok(next) => next,
            Err(Violation { rule, by }) => {
                report.counterexample = broken(rule.to_owned(), Some(by), &queue);
                break;
            }
        };
        report.moves += next.len();
        for (_, next) in next {
            if !known.contains_key(&next) {
                known.insert(next.clone(), u32::try_from(queue.len()).unwrap());
                queue.push((next, u32::try_from(at).unwrap()));
            }
        }
        at += 1;
        assert!(queue.len() < limit, "{}: more than {limit} states", scenario.name);
    }
    report.states = queue.len();
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
    let mut path = vec![format!("at first: {}", queue[0].0)];
    for pair in chain.windows(2) {
        let (from, to) = (&queue[pair[0]].0, &queue[pair[1]].0);
        let label = moves::moves(scenario, from, defect)
            .ok()
            .and_then(|moves| moves.into_iter().find(|(_, next)| next == to))
            .map_or("?".to_owned(), |(label, _)| label);
        path.push(format!("{label:<60} → {to}"));
    }
    path
}

/// States from which the goal is known to be reached.
#[derive(Default)]
struct Healed {
    known: HashMap<World, BTreeSet<String>>,
    /// All but this cluster is healed: nothing can be asked there. Then the goal is what can be done elsewhere.
    lost: Option<u8>,
}

/// Moves on one way to the goal, at most; more is no progress.
const WAY: usize = 300;

impl Healed {
    fn without(lost: u8) -> Self {
        Self { lost: Some(lost), ..Self::default() }
    }

    /// From here, once faults stop: the goal is reached and stays, or a refusal names what a person must do,
    /// and with that the goal follows. Returns those refusals.
    fn check(
        &mut self,
        scenario: &Scenario,
        world: &World,
        defect: Option<Defect>,
    ) -> Result<BTreeSet<String>, (String, String)> {
        let mut here = World { faults: 0, edits: 0, ..world.clone() };
        let mut passed = Vec::new();
        let mut seen = HashSet::new();
        let mut refusals = BTreeSet::new();
        for _ in 0..WAY {
            heal(scenario, &mut here, self.lost);
            if let Some(known) = self.known.get(&here) {
                refusals.extend(known.iter().cloned());
                self.remember(passed, &refusals);
                return Ok(refusals);
            }
            if !seen.insert(here.clone()) {
                return Err(("no end: it goes round in a circle".to_owned(), here.to_string()));
            }
            passed.push(here.clone());
            let decision = moves::decide(scenario, &here, Sight::Clear, defect);
            if decision != moves::decide(scenario, &here, Sight::Clear, defect) {
                return Err(("planning twice gives two answers".to_owned(), here.to_string()));
            }
            let (refusal, kind) = match decision {
                Decision::Converged => {
                    let done = match self.lost {
                        None => rules::is_goal(scenario, &here),
                        Some(lost) => rules::is_done_elsewhere(scenario, &here, lost),
                    };
                    if !done {
                        let what = "it calls itself converged and is not as wanted";
                        return Err((what.to_owned(), here.to_string()));
                    }
                    self.remember(passed, &refusals);
                    return Ok(refusals);
                }
                Decision::Step { step, consents } => {
                    if let Err(rule) = rules::check_effect(scenario, &here, &step, &consents) {
                        return Err((rule.to_owned(), format!("operator: {step}, in {here}")));
                    }
                    // The first way a step may come to is the whole one; the others are cut off.
                    here = moves::effects(scenario, &here, &step, &consents).swap_remove(0).1;
                    continue;
                }
                Decision::Wait(refusal) => {
                    if time_passes(&mut here) {
                        continue;
                    }
                    if self.lost.is_some_and(|lost| rules::is_done_elsewhere(scenario, &here, lost))
                    {
                        self.remember(passed, &refusals);
                        return Ok(refusals);
                    }
                    let what = format!("it waits for ever: {}: {}", refusal.gate, refusal.message);
                    return Err((what, here.to_string()));
                }
                Decision::NeedsConsent(refusal) => (refusal, "consent"),
                Decision::Stuck(refusal) => (refusal, "stuck"),
            };
            // A person is asked only where nothing safe is left to do, as far as the operator can see.
            let sees_all = !here.hub_older && self.lost.is_none();
            if let Some(step) = rules::safe_steps(scenario, &here).first().filter(|_| sees_all) {
                let what =
                    format!("a person is asked ({}), and this was safe: {step}", refusal.gate);
                return Err((what, here.to_string()));
            }
            refusals.insert(format!("{kind}: {}", refusal.gate));
            if let Some(consent) = refusal.consent {
                here.consents.insert(consent);
            } else if !person_acts(scenario, &mut here, refusal.gate) {
                let what =
                    format!("nothing a person could do: {}: {}", refusal.gate, refusal.message);
                return Err((what, here.to_string()));
            }
        }
        Err((format!("not at the goal after {WAY} steps"), here.to_string()))
    }

    fn remember(&mut self, passed: Vec<World>, refusals: &BTreeSet<String>) {
        self.known.extend(passed.into_iter().map(|world| (world, refusals.clone())));
    }
}

/// Faults stop: machines, links and API servers come back, but for those of `lost`; the chain and Kubernetes do what
/// they do.
fn heal(scenario: &Scenario, world: &mut World, lost: Option<u8>) {
    for _ in 0..20 {
        for set in 0..2 {
            world.ask(set, lost != Some(set));
            world.cut[usize::from(set)] = false;
        }
        for n in &mut world.nodes {
            n.link = true;
        }
        world.stalled = false;
        if let Some(foreign) = &mut world.foreign {
            foreign.up = true;
        }
        let mut own = Vec::new();
        moves::own_doings(scenario, world, &mut own);
        // Time goes by only when nothing else happens; see `time_passes`. What never works for long does not
        // count as healed.
        let next = own
            .into_iter()
            .find(|(label, _)| !label.contains("for long") && !label.contains("for a while"));
        match next {
            Some((_, next)) => *world = next,
            None => return,
        }
    }
}

/// Whoever is down has been so for long.
fn time_passes(world: &mut World) -> bool {
    let mut passed = false;
    for n in &mut world.nodes {
        let silent = (!n.up || !n.link) && !n.long;
        if silent {
            n.long = true;
            passed = true;
        }
    }
    passed
}

/// A person does what the refusal asks for.
fn person_acts(scenario: &Scenario, world: &mut World, gate: Gate) -> bool {
    match gate {
        Gate::NodeWorks | Gate::NodeComesBack => {
            let described = scenario.wants[usize::from(world.want)].inputs;
            if described == BAD {
                return edit(scenario, world, |want| want.inputs == NEW || want.inputs == OLD);
            }
            let standing = !world.has_quorum(scenario.quorum);
            let restarting = match world.begun {
                Some(B::Restart { node, .. }) => Some(node),
                _ => None,
            };
            let mut acted = false;
            for n in &mut world.nodes {
                if (n.disk_lost || n.hung) && (standing || Some(n.index) == restarting) {
                    // Restores the volume, or mends the machine.
                    n.disk_lost = false;
                    n.hung = false;
                    n.cure = C::Untried;
                    acted = true;
                } else if !n.up && !n.asked && !n.condemned && Some(n.index) != restarting {
                    n.asked = true;
                    acted = true;
                }
                if acted {
                    break;
                }
            }
            acted
        }
        Gate::NewcomerSigns => {
            let failed =
                world.nodes.iter_mut().find(|n| n.entry_failed && !n.asked && !n.condemned);
            failed.is_some_and(|n| {
                n.asked = true;
                true
            })
        }
        Gate::NotTheLastVoter => edit(scenario, world, |want| {
            (0..2).any(|set| want.voting[set] && want.replicas[set] > 0)
        }),
        _ => false,
    }
}

fn edit(
    scenario: &Scenario,
    world: &mut World,
    fits: impl Fn(&super::world::Want) -> bool,
) -> bool {
    let now = world.want;
    let other =
        scenario.wants.iter().enumerate().find(|(n, want)| *n != usize::from(now) && fits(want));
    other.is_some_and(|(n, _)| {
        world.want = u8::try_from(n).unwrap();
        true
    })
}
