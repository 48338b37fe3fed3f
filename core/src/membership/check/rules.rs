//! What must never happen, judged on the truth, apart from the planner's own arithmetic where that can be.

use std::collections::BTreeSet;

use super::world::{B, FOREIGN_KEY, N, Scenario, World, index, key, name};
use crate::membership::model::{Change, Fate, Step};

/// Judges an effect of the operator just before it happens.
pub fn check_effect(
    scenario: &Scenario,
    world: &World,
    step: &Step,
    consents: &BTreeSet<String>,
) -> Result<(), &'static str> {
    let node_of = |node: &crate::names::NodeName| index(node.as_str()).and_then(|i| world.get(i));
    if world.hub_older && !matches!(step, Step::TakeOver) {
        return Err("S26: a step of a hub whose view is older than the anchor");
    }
    let in_flight = !world.pool.is_empty() || world.voluntarily_down().is_some();
    if let Step::BeginRestart { node } | Step::EndPod { node } | Step::Cure { node } = step {
        let asked = node_of(node).is_none_or(|n| n.reach);
        ensure(asked, "S4: a restart where nobody can be asked")?;
    }
    match step {
        Step::TakeOver => ensure(!consents.is_empty(), "S26: an older hub goes on without consent"),
        Step::Provision { .. } => Ok(()),
        Step::Condemn { node } => {
            let known_down = |n: &N| n.asked || (!n.up && n.reach);
            ensure(
                node_of(node).is_some_and(known_down),
                "S4: a node is condemned that is not known to be down",
            )
        }
        Step::BeginChange { .. } | Step::BeginRestart { .. } => {
            ensure(world.begun.is_none(), "S1: a second step is begun")
        }
        Step::Send => check_send(scenario, world, in_flight),
        Step::Settle => match &world.begun {
            Some(B::Change { .. }) => {
                let over = matches!(world.fate, Fate::Confirmed | Fate::Impossible);
                ensure(over, "S6: a change that may still be included is called settled")
            }
            _ => {
                let down = world.voluntarily_down().and_then(|node| world.get(node));
                // Nobody waits for a node that its user wants gone.
                let goes =
                    |n: &N| n.asked || n.condemned || (!n.reach && is_too_many(scenario, world, n));
                ensure(
                    down.is_none_or(goes),
                    "S14: a restart is called done before its node is back",
                )
            }
        },
        Step::Withdraw => match &world.begun {
            Some(B::Change { .. }) => {
                ensure(world.fate == Fate::Recorded, "S6: a change that was sent is abandoned")
            }
            Some(B::Restart { ordered, .. }) => {
                ensure(!ordered, "S6: a restart that was ordered is abandoned")
            }
            None => Ok(()),
        },
        Step::EndPod { node } => check_end_pod(scenario, world, node_of(node), consents),
        Step::Cure { node } => {
            let down = node_of(node).is_some_and(|n| !n.up);
            ensure(down, "S4: a living voter is restarted without a gate")
        }
        Step::BeginSwitch { .. } | Step::Halt { .. } | Step::Switch { .. } => {
            Err("a switch of nodes of which none is described otherwise")
        }
        Step::Retire { node } => {
            let n = node_of(node);
            ensure(
                n.is_some_and(|n| n.power == 0),
                "S7: a node stops that its ledger still counts",
            )?;
            let joins = world
                .pool
                .iter()
                .any(|change| matches!(change, Change::Add { node: who, .. } if who == node));
            ensure(!joins, "S7: a node stops whose entry is under way")
        }
    }
}

/// The node's set has more nodes than it is to have.
fn is_too_many(scenario: &Scenario, world: &World, n: &N) -> bool {
    let wanted = scenario.wants[usize::from(world.want)].replicas[usize::from(n.set)];
    world.nodes.iter().filter(|other| other.set == n.set).count() > usize::from(wanted)
}

fn ensure(holds: bool, rule: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(rule) }
}

fn check_send(scenario: &Scenario, world: &World, in_flight: bool) -> Result<(), &'static str> {
    let Some(B::Change { change, .. }) = &world.begun else {
        return Err("S6: something is sent that was not recorded");
    };
    ensure(!in_flight, "S1: two changes or restarts are in flight")?;
    ensure(
        world.has_quorum(scenario.quorum),
        "S31: a change is sent into a chain that stands; it would land whenever that wakes up",
    )?;
    let had = world.has_quorum(scenario.quorum);
    let mut after = world.clone();
    match change {
        Change::Add { node, power } => {
            let n = index(node.as_str()).and_then(|i| world.get(i));
            let Some(n) = n else { return Err("S5: a node votes that does not exist") };
            ensure(n.synced, "S5: a node votes that is not caught up")?;
            ensure(!n.entry_failed, "S5: a node votes again that entered and never signed")?;
            let failed =
                |world: &World| world.live() >= scenario.quorum.needed(world.total() + power);
            // Where no smaller power would do, one voter may become two if the newcomer really lives.
            let smallest = if scenario.weights { 1 } else { *power };
            let possible = world.live() >= scenario.quorum.needed(world.total() + smallest);
            let all_live = world.live() == world.total();
            let fine = failed(world) || (!possible && all_live && n.up && n.link);
            return ensure(!had || fine, "S2: a newcomer that failed would cost the quorum");
        }
        Change::SetPower { member, power } => {
            let Some(n) = index(member).and_then(|i| after.node(i)) else {
                return Err("S25: a foreign voter is touched");
            };
            ensure(n.power > 0, "S6: a change of a key that does not vote freezes the chain")?;
            ensure(
                !(n.entering && *power > n.power),
                "S2: a newcomer is raised that never signed",
            )?;
            let down = *power > n.power && !n.votes_live();
            ensure(!down, "S2: a voter is raised that is down")?;
            n.power = *power;
        }
        Change::Remove { member } => {
            ensure(member != FOREIGN_KEY, "S25: a foreign voter is touched")?;
            let Some(n) = index(member).and_then(|i| after.node(i)) else {
                return Err("S25: a foreign voter is touched");
            };
            ensure(n.power > 0, "S6: a removal of a key that does not vote freezes the chain")?;
            let (live, entering, condemned, set) =
                (n.votes_live(), n.entering, n.condemned, usize::from(n.set));
            n.power = 0;
            ensure(after.voters() > 0, "S8: the last voter is removed")?;
            // Nobody asked for it: then only a newcomer that never signed may go.
            let want = &scenario.wants[usize::from(world.want)];
            let same_set = |n: &&N| usize::from(n.set) == set && !n.condemned;
            let voters = world.nodes.iter().filter(same_set).filter(|n| n.power > 0).count();
            let wanted = want.voting[set] && voters <= usize::from(want.replicas[set]);
            let allowed = condemned || !wanted || (entering && !live);
            ensure(allowed, "S4: a voter is removed that is wanted")?;
        }
    }
    ensure(!had || after.has_quorum(scenario.quorum), "S2: a change costs the quorum")
}

fn check_end_pod(
    scenario: &Scenario,
    world: &World,
    node: Option<&N>,
    consents: &BTreeSet<String>,
) -> Result<(), &'static str> {
    let Some(B::Restart { node: begun, consents: used, .. }) = &world.begun else {
        return Err("S1: a pod is ended without a record");
    };
    let Some(n) = node else { return Ok(()) };
    ensure(n.index == *begun, "S1: another node restarts than recorded")?;
    ensure(world.pool.is_empty(), "S1: two changes or restarts are in flight")?;
    if !n.votes_live() {
        return Ok(());
    }
    // A person allowed exactly this: this node, with what is described now.
    let described = scenario.wants[usize::from(world.want)].inputs;
    let allowed = format!("restart-with-downtime/net-{}/{described}", n.index);
    if consents.contains(&allowed) || used.contains(&allowed) {
        return Ok(());
    }
    ensure(
        world.has_quorum(scenario.quorum),
        "S31: a living voter restarts on a chain that stands",
    )?;
    let others = world.nodes.iter().filter(|other| other.index != n.index && other.power > 0);
    ensure(
        others.into_iter().all(N::votes_live),
        "S14: a voter restarts while another is down: one bad change takes one after the other",
    )?;
    let mut after = world.clone();
    after.node(n.index).unwrap().up = false;
    let had = world.has_quorum(scenario.quorum);
    ensure(!had || after.has_quorum(scenario.quorum), "S2: a restart costs the quorum")
}

/// Judges a state, whoever brought it about.
pub fn check_state(world: &World) -> Result<(), &'static str> {
    ensure(!world.frozen, "S6: the chain is frozen")?;
    // A foreign change may be under way beside ours; its owner does not ask us.
    let own = world
        .pool
        .iter()
        .filter(|change| !matches!(change, Change::Remove { member } if member == FOREIGN_KEY))
        .count();
    ensure(own <= 1, "S6: two changes of ours wait to be included")
}

/// Whether everything is as wanted.
pub fn is_goal(scenario: &Scenario, world: &World) -> bool {
    let want = &scenario.wants[usize::from(world.want)];
    let sets = (0..2usize).all(|set| {
        let nodes: Vec<_> = world.nodes.iter().filter(|n| usize::from(n.set) == set).collect();
        nodes.len() == usize::from(want.replicas[set])
            && nodes.iter().all(|n| {
                let power = if want.voting[set] { want.power[set] } else { 0 };
                let right =
                    if scenario.weights { n.power == power } else { (n.power > 0) == (power > 0) };
                right && n.runs == want.inputs && n.up && !n.condemned
            })
    });
    sets && world.begun.is_none() && world.pool.is_empty()
}

/// While nothing can be asked in `lost`: whether all is done that its chain allows to do elsewhere. A voter that is to
/// leave may wait for one that is to come there.
pub fn is_done_elsewhere(scenario: &Scenario, world: &World, lost: u8) -> bool {
    let want = &scenario.wants[usize::from(world.want)];
    // Two restarts at once are never safe, nor is anything while a voter there is missed.
    let restarting = match &world.begun {
        Some(B::Restart { node, .. }) => world.get(*node).is_some_and(|n| n.set == lost),
        _ => false,
    };
    let misses = world.nodes.iter().any(|n| n.set == lost && n.power > 0 && !n.votes_live());
    // Nor with a single witness.
    let witnesses = world.nodes.iter().filter(|n| n.set != lost && n.up && n.synced).count();
    if restarting || misses || witnesses < 2 {
        return true;
    }
    let other = usize::from(1 - lost);
    let power = if want.voting[other] { want.power[other] } else { 0 };
    let right = world.nodes.iter().filter(|n| {
        n.set != lost && n.power == power && n.runs == want.inputs && n.up && !n.condemned
    });
    right.count() >= usize::from(want.replicas[other])
}

/// Steps towards what is wanted that would break no rule: none, where a person is asked for.
pub fn safe_steps(scenario: &Scenario, world: &World) -> Vec<Step> {
    if world.begun.is_some() || !world.pool.is_empty() {
        return Vec::new();
    }
    let want = &scenario.wants[usize::from(world.want)];
    let mut safe = Vec::new();
    for n in &world.nodes {
        let set = usize::from(n.set);
        let others_live = world
            .nodes
            .iter()
            .filter(|other| other.index != n.index && other.power > 0)
            .all(N::votes_live);
        let full = want.power[set];
        let stays = !n.condemned && want.replicas[set] > 0 && want.voting[set];
        let change = match (n.power, stays) {
            (0, true) => Some(Change::Add {
                node: name(n.index),
                power: if scenario.weights { 1 } else { full },
            }),
            // Of a set with too many, it may be the one that leaves.
            (power, true)
                if power != full && scenario.weights && !is_too_many(scenario, world, n) =>
            {
                Some(Change::SetPower { member: key(n.index), power: full })
            }
            (power, false) if power > 0 => Some(Change::Remove { member: key(n.index) }),
            _ => None,
        };
        // Whoever takes its place enters first.
        let successor = world.nodes.iter().any(|other| {
            let set = usize::from(other.set);
            !other.condemned
                && want.voting[set]
                && want.replicas[set] > 0
                && other.power < want.power[set]
        });
        let leaves_early =
            n.votes_live() && successor && matches!(change, Some(Change::Remove { .. }));
        // Who is dead may go whatever the others do; all else waits for them.
        let repairs = matches!(change, Some(Change::Remove { .. })) && !n.votes_live();
        if let Some(change) = change.filter(|_| (others_live || repairs) && !leaves_early) {
            let begun =
                World { begun: Some(B::Change { change: change.clone() }), ..world.clone() };
            if check_send(scenario, &begun, false).is_ok() {
                safe.push(Step::BeginChange { ledger: super::world::LEDGER.to_owned(), change });
            }
        }
        if n.runs != want.inputs && n.up && n.reach && n.power > 0 && others_live && stays {
            let restart = B::Restart { node: n.index, ordered: false, consents: BTreeSet::new() };
            let begun = World { begun: Some(restart), ..world.clone() };
            if check_end_pod(scenario, &begun, Some(n), &BTreeSet::new()).is_ok() {
                safe.push(Step::BeginRestart { node: name(n.index) });
            }
        }
    }
    safe
}
