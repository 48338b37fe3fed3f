//! What is explored, by formula and number of voters.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::defects::Defect;
use super::search::{Report, explore};
use super::world::{BAD, NEW, Scenario, Want};
use crate::membership::model::Gate;
use crate::quorum::Quorum;

/// Formulas with the way members are weighed.
const ENGINES: [(Quorum, bool, &str); 6] = [
    (Quorum::MoreThanTwoThirds, true, "CometBFT"),
    (Quorum::Majority, false, "Raft, clique"),
    (Quorum::TwoThirdsRoundedUp, false, "QBFT"),
    (Quorum::FabricBft, false, "Fabric BFT"),
    (Quorum::AllButThird, false, "FISCO PBFT"),
    (Quorum::MoreThanTwoThirds, false, "CometBFT without weights"),
];

/// What runs over several clusters today.
const ENGINES_OVER_CLUSTERS: (Quorum, bool) = (Quorum::MoreThanTwoThirds, true);

fn power(weights: bool) -> u64 {
    if weights { 1000 } else { 1 }
}

fn full() -> bool {
    std::env::var("BSN_MODEL").is_ok_and(|bound| bound == "full")
}

/// Everything about a network that begins with `n` voters.
fn scenarios(quorum: Quorum, weights: bool, n: u8, full: bool) -> Vec<Scenario> {
    let power = power(weights);
    let voters = |n: u8| Want::voters(n, power);
    let new = |name: &str, wants: Vec<Want>| {
        Scenario::new(format!("{name}, n = {n}"), quorum, weights, wants)
    };
    let faults = if full { 2 } else { 1 };
    let mut all = vec![
        Scenario {
            faults,
            edits: 2,
            cuts: true,
            lost_transactions: true,
            ..new("one more, and back", vec![voters(n), voters(n + 1)])
        },
        Scenario {
            faults,
            wipes: true,
            hangs: true,
            replace_dead: true,
            ..new("the dead replaced", vec![voters(n)])
        },
        Scenario {
            faults,
            wipes: true,
            asks: true,
            edits: 1,
            ..new("replaced when asked", vec![voters(n)])
        },
        Scenario {
            faults: faults + 1,
            restored_hub: true,
            ..new("hub restored", vec![voters(n), voters(n + 1)])
        },
        Scenario {
            faults,
            foreign: Some(power),
            ..new("a foreign voter", vec![voters(n), voters(n + 1)])
        },
    ];
    // What each node runs multiplies the states, so more voters see fewer things at once.
    let (old, new_software, bad) = (voters(n), voters(n).running(NEW), voters(n).running(BAD));
    if n <= if full { 3 } else { 2 } {
        let wants = vec![old, new_software, bad];
        all.push(Scenario {
            faults,
            edits: 2,
            hangs: true,
            ..new("rolled, badly, and back", wants)
        });
    } else {
        let wants = vec![old.clone(), new_software];
        all.push(Scenario { faults: 1, hangs: true, ..new("rolled", wants) });
        if n <= 5 {
            all.push(Scenario { edits: 2, ..new("badly rolled, and back", vec![old, bad]) });
        }
    }
    if n > 1 {
        all.push(Scenario {
            faults,
            edits: 2,
            cuts: true,
            lost_transactions: true,
            ..new("one less, and back", vec![voters(n), voters(n - 1)])
        });
        let less = vec![voters(n), voters(n - 1)];
        all.push(Scenario {
            faults,
            foreign: Some(power),
            ..new("one less beside a foreign voter", less)
        });
        let moved = Want { replicas: [n - 1, 1], ..voters(n) };
        all.push(Scenario { faults, ..new("one moved", vec![voters(n), moved]) });
        let demoted = Want { replicas: [n - 1, 1], voting: [true, false], ..voters(n) };
        let promoted = Want { replicas: [n - 1, 1], ..voters(n) };
        all.push(Scenario {
            faults,
            edits: 2,
            ..new("demoted, and back", vec![promoted, demoted])
        });
    }
    all.push(Scenario { ..new("none left", vec![voters(n), voters(0)]) });
    if weights {
        let heavy = Want { replicas: [n, 1], power: [power, 3 * power], ..voters(n) };
        let light = Want { replicas: [n, 1], power: [power, power], ..voters(n) };
        all.push(Scenario { faults, cuts: true, ..new("unequal powers", vec![heavy, light]) });
    }
    all
}

/// Networks whose sets are in two clusters, each of which the operator may lose sight of.
fn over_clusters(full: bool) -> Vec<Scenario> {
    let (quorum, weights) = ENGINES_OVER_CLUSTERS;
    let power = power(weights);
    let edits = 1 + u8::from(full);
    let sets = |a: u8, b: u8| Want { replicas: [a, b], ..Want::voters(0, power) };
    let new = |name: &str, wants: Vec<Want>| Scenario {
        faults: 1,
        cuts: true,
        clusters: true,
        ..Scenario::new(format!("{name}, in two clusters"), quorum, weights, wants)
    };
    let mut all = vec![
        Scenario {
            edits,
            lost_transactions: true,
            ..new("grown here or there", vec![sets(2, 2), sets(2, 3), sets(3, 2)])
        },
        Scenario { hangs: true, edits, ..new("rolled", vec![sets(2, 2), sets(2, 2).running(NEW)]) },
        Scenario { asks: true, edits, ..new("moved out", vec![sets(1, 3), sets(0, 4)]) },
        Scenario {
            faults: 2,
            wipes: true,
            hangs: full,
            replace_dead: true,
            ..new("the dead replaced", vec![sets(1, 3)])
        },
    ];
    if full {
        let new_software = sets(1, 3).running(NEW);
        all.push(Scenario {
            asks: true,
            ..new("rolled, or replaced when asked", vec![sets(1, 3), new_software])
        });
    }
    all
}

/// More states than this are a mistake in the bounds.
const LIMIT: usize = 20_000_000;

/// Explores scenarios on all cores; the reports come in the order of the scenarios.
fn explore_all(scenarios: Vec<Scenario>) -> Vec<(Scenario, Report)> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some((place, scenario)) = {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    scenarios.get(place).map(|scenario| (place, scenario))
                } {
                    let report = explore(scenario, None, LIMIT);
                    done.lock().unwrap().push((place, report));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(place, _)| *place);
    scenarios.into_iter().zip(done.into_iter().map(|(_, report)| report)).collect()
}

#[derive(Default)]
struct Sum {
    states: usize,
    moves: usize,
    refused: std::collections::BTreeMap<String, usize>,
}

impl Sum {
    fn add(&mut self, report: Report, scenario: &Scenario) {
        if let Some(found) = report.counterexample {
            panic!("{} ({:?}):\n{found}", scenario.name, scenario.quorum);
        }
        self.states += report.states;
        self.moves += report.moves;
        for (refusal, states) in report.refused {
            *self.refused.entry(refusal).or_default() += states;
        }
    }
}

#[test]
fn nothing_that_must_not_happen_can_happen_and_the_goal_is_always_reached() {
    let full = full();
    // CometBFT, the engine there is, in full depth; the others' formulas up to fewer voters in the quick run.
    let most = |weights: bool| match (full, weights) {
        (true, _) => 7,
        (false, true) => 4,
        (false, false) => 3,
    };
    println!("{:<26} {:>2} {:>10} {:>11} {:>8}", "formula", "n", "states", "moves", "seconds");
    let mut refused = std::collections::BTreeMap::new();
    for (quorum, weights, engine) in ENGINES {
        for n in 1..=most(weights) {
            let began = Instant::now();
            let mut sum = Sum::default();
            let deep = full && n <= if weights { 5 } else { 4 };
            for (scenario, report) in explore_all(scenarios(quorum, weights, n, deep)) {
                if std::env::var("BSN_MODEL_EACH").is_ok() {
                    println!("  {:<40} {:>10} {:>11}", scenario.name, report.states, report.moves);
                }
                sum.add(report, &scenario);
            }
            let seconds = began.elapsed().as_secs_f64();
            println!("{engine:<26} {n:>2} {:>10} {:>11} {seconds:>8.1}", sum.states, sum.moves);
            for (refusal, states) in sum.refused {
                *refused.entry(refusal).or_insert(0) += states;
            }
        }
    }
    println!("\nstates from which a person is needed on the way, by reason:");
    for (refusal, states) in refused {
        println!("{states:>10}  {refusal}");
    }
}

#[test]
fn clusters_that_cannot_be_asked_are_left_alone_and_hold_up_no_others() {
    let mut sum = Sum::default();
    let began = Instant::now();
    for (scenario, report) in explore_all(over_clusters(full())) {
        println!("{:<50} {:>10} {:>11}", scenario.name, report.states, report.moves);
        sum.add(report, &scenario);
    }
    println!("{} states in {:.1} s", sum.states, began.elapsed().as_secs_f64());
    println!("states from which a person is needed on the way: {:#?}", sum.refused);
}

/// Defects, and the scenario that shows the harm soonest.
fn defects() -> Vec<(Defect, Scenario)> {
    let (quorum, weights) = (Quorum::MoreThanTwoThirds, true);
    let of = |n: u8, name: &str| {
        scenarios(quorum, weights, n, true)
            .into_iter()
            .find(|scenario| scenario.name.starts_with(name))
            .unwrap()
    };
    let raft = |n: u8, name: &str| {
        scenarios(Quorum::Majority, false, n, true)
            .into_iter()
            .find(|scenario| scenario.name.starts_with(name))
            .unwrap()
    };
    let over = |name: &str| {
        let mut all = over_clusters(false).into_iter();
        all.find(|scenario| scenario.name.starts_with(name)).unwrap()
    };
    vec![
        (Defect::Without(Gate::ClusterReachable), over("rolled")),
        (Defect::UnknownIsDead, over("the dead replaced")),
        (Defect::OldPodsAreNews, over("rolled")),
        (Defect::LostClusterIsLeft, over("the dead replaced")),
        (Defect::WaitsForEveryCluster, over("grown")),
        (Defect::WaitsForEveryCluster, over("rolled")),
        (Defect::Without(Gate::HubStateNotOlderThanAnchor), of(2, "hub restored")),
        (Defect::Without(Gate::EvidenceIsFresh), of(4, "one less")),
        (Defect::Without(Gate::ChainIsProducing), of(4, "one less")),
        (Defect::Without(Gate::NoPendingChange), of(3, "a foreign voter")),
        (Defect::Without(Gate::OthersHealthy), raft(5, "rolled")),
        (Defect::Without(Gate::QuorumAfterChange), of(3, "one less beside a foreign")),
        (Defect::Without(Gate::QuorumDuringRestart), of(3, "rolled")),
        (Defect::Without(Gate::NewMemberCountsAsFailed), raft(2, "a foreign voter")),
        (Defect::Without(Gate::CaughtUp), of(2, "one more")),
        (Defect::Without(Gate::NewcomerSigns), of(2, "one more")),
        (Defect::Without(Gate::NotTheLastVoter), of(2, "none left")),
        (Defect::UnknownIsDead, of(4, "one less")),
        (Defect::UnknownIsLive, of(4, "one less")),
        (Defect::ForeignIsOrphan, of(3, "a foreign voter")),
        (Defect::AbandonsWhatWasSent, of(2, "one more")),
        (Defect::SettlesTooEarly, of(2, "one more")),
        (Defect::ForgetsWhatWasBegun, of(4, "rolled")),
        (Defect::StopsBeforeRemoval, of(4, "one less")),
        (Defect::EntersWithFullPower, of(1, "one more")),
        (Defect::RestartIsDoneAtOnce, of(4, "rolled")),
        (Defect::TrustsAnOldHub, of(2, "hub restored")),
        (Defect::CuresForEver, of(2, "rolled, badly")),
        (Defect::NoCureWhileStanding, of(4, "the dead replaced")),
    ]
}

#[test]
fn every_defect_is_caught_with_the_shortest_way_to_its_harm() {
    let mut missed = Vec::new();
    for (defect, scenario) in defects() {
        let report = explore(&scenario, Some(defect), 5_000_000);
        match report.counterexample {
            Some(found) => {
                println!("{defect:?} ({}), {} states:\n{found}", scenario.name, report.states);
            }
            None => {
                missed.push(format!("{defect:?} in {} ({} states)", scenario.name, report.states));
            }
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}
