//! What is explored.

use std::time::Instant;

use super::defects::Defect;
use super::search::{Check, explore};
use super::world::{ALL_FAULTS, Fault, Job, LIVE_FAULTS, Scenario};

/// More states than this are a mistake in the bounds.
const LIMIT: usize = 10_000_000;

fn full() -> bool {
    std::env::var("BSN_MODEL").is_ok_and(|bound| bound == "full")
}

fn job(ledger: usize, places: &[usize]) -> Job {
    Job { ledger, places: vec![places.to_vec()] }
}

fn scenario(name: &'static str, copies: usize, jobs: Vec<Job>) -> Scenario {
    Scenario {
        name,
        jobs,
        copies,
        two_hubs: false,
        faults: 2,
        kinds: ALL_FAULTS,
        restores: 0,
        copy_restores: 0,
        withdrawals: 0,
        consents: 0,
        cuts: false,
    }
}

/// Every scenario; `more` faults than the quick run has.
fn scenarios(more: u8) -> Vec<Scenario> {
    let either = Job { ledger: 0, places: vec![vec![0], vec![1]] };
    vec![
        Scenario {
            withdrawals: more,
            ..scenario("one place, two steps", 1, vec![job(0, &[0]), job(0, &[0])])
        },
        Scenario {
            kinds: LIVE_FAULTS,
            faults: 1 + 2 * more,
            ..scenario("one place, live decisions", 1, vec![job(0, &[0]), job(0, &[0])])
        },
        Scenario {
            faults: 2 + more,
            withdrawals: 1,
            ..scenario("the hub alone, two steps", 0, vec![job(0, &[]), job(0, &[])])
        },
        Scenario {
            kinds: LIVE_FAULTS,
            faults: 1 + more,
            ..scenario(
                "two places, three steps",
                2,
                vec![job(0, &[0]), job(0, &[1]), job(0, &[0, 1])],
            )
        },
        Scenario {
            kinds: LIVE_FAULTS,
            faults: 1,
            withdrawals: more,
            ..scenario("two ledgers", 2, vec![job(0, &[0]), job(1, &[1])])
        },
        Scenario {
            kinds: LIVE_FAULTS,
            faults: 1 + more,
            restores: 1,
            consents: 2,
            ..scenario("the primary restored", 1, vec![job(0, &[0]), job(0, &[0])])
        },
        Scenario {
            faults: 2 + more,
            kinds: &[Fault::Crash, Fault::LateRequest],
            restores: 1,
            consents: 1,
            ..scenario("the primary restored, either place", 2, vec![either])
        },
        Scenario {
            kinds: LIVE_FAULTS,
            faults: 1 + more,
            copy_restores: 1,
            ..scenario("a copy restored", 2, vec![job(0, &[0]), job(0, &[1])])
        },
        Scenario {
            faults: 1 + more,
            two_hubs: true,
            consents: 2,
            kinds: &[Fault::Crash, Fault::LostAnswer, Fault::LateRequest],
            ..scenario("another hub", 2, vec![job(0, &[0]), job(0, &[1])])
        },
        Scenario {
            faults: 1,
            kinds: &[Fault::Crash, Fault::Expiry, Fault::LateRequest],
            restores: more,
            consents: more,
            cuts: true,
            ..scenario("a place that does not answer", 2, vec![job(0, &[0]), job(0, &[1])])
        },
    ]
}

#[test]
fn nothing_that_must_not_happen_can_happen_and_all_comes_to_rest() {
    let mut failed = false;
    println!(
        "{:<34} {:>9} {:>10} {:>9} {:>7} {:>8}",
        "scenario", "states", "moves", "consents", "longest", "seconds"
    );
    for scenario in scenarios(u8::from(full())) {
        let began = Instant::now();
        let report = explore(&scenario, None, Check::SafetyAndRest, LIMIT);
        println!(
            "{:<34} {:>9} {:>10} {:>9} {:>7} {:>8.1}",
            scenario.name,
            report.states,
            report.moves,
            report.consented,
            report.longest,
            began.elapsed().as_secs_f64()
        );
        if let Some(found) = report.counterexample {
            println!("{found}");
            failed = true;
        }
    }
    assert!(!failed, "see the counterexamples above");
}

/// Defects, and the scenario that shows the harm.
const DEFECTS: &[(Defect, &str)] = &[
    (Defect::EffectBeforeCopy, "one place"),
    (Defect::CopyHoldsBegunOnly, "one place"),
    (Defect::NotStampedOnResume, "one place"),
    (Defect::EpochFromLeaseAlone, "the primary restored, either place"),
    (Defect::BlindOverwrite, "one place"),
    (Defect::UnsettledIsFailed, "one place"),
    (Defect::ResumedUnderNewNumber, "one place"),
    (Defect::WithdrawsWhatWasSent, "one place"),
    (Defect::CopyClearedFirst, "one place"),
    (Defect::LagIsRestore, "one place"),
    (Defect::PrimaryReadFirst, "one place"),
    (Defect::NoLeaseCheck, "one place"),
    (Defect::RestoredHubUnnoticed, "the primary restored"),
    (Defect::AnotherHubUnnoticed, "another hub"),
    (Defect::NoFence, "the primary restored, either place"),
    (Defect::OldDecision, "one place"),
    (Defect::OldEvidence, "one place"),
    (Defect::TakesOverFromOldest, "the primary restored"),
    (Defect::TakesOverAtRest, "another hub"),
    (Defect::WritesAtStart, "one place"),
];

#[test]
fn every_defect_is_caught_with_the_shortest_way_to_its_harm() {
    let began = Instant::now();
    let all = scenarios(0);
    let (mut missed, mut count) = (Vec::new(), 0);
    // It takes two faults, and with them a million states.
    let deep = (Defect::TakesOverByRevisionAlone, "another hub");
    let all_deep = scenarios(1);
    let deep = full().then_some((&deep, &all_deep));
    for ((defect, name), all) in DEFECTS.iter().map(|one| (one, &all)).chain(deep) {
        count += 1;
        let scenario = all.iter().find(|scenario| scenario.name.starts_with(name)).unwrap();
        let mut report = explore(scenario, Some(*defect), Check::Safety, LIMIT);
        if report.counterexample.is_none() {
            report = explore(scenario, Some(*defect), Check::SafetyAndRest, LIMIT);
        }
        match report.counterexample {
            Some(found) => {
                println!("{defect:?} ({}), {} states:\n{found}", scenario.name, report.states);
            }
            None => missed.push(format!("{defect:?} in {} ({})", scenario.name, report.states)),
        }
    }
    println!("{count} defects, {:.1} seconds", began.elapsed().as_secs_f64());
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}

/// The rules do not promise this: see the limits in the module's text.
#[test]
fn a_network_without_member_clusters_does_not_notice_that_its_hub_was_restored() {
    let hub_alone = Scenario {
        restores: 1,
        faults: 1,
        kinds: LIVE_FAULTS,
        ..scenario("the hub alone, restored", 0, vec![job(0, &[]), job(0, &[])])
    };
    let found = explore(&hub_alone, None, Check::Safety, LIMIT).counterexample.unwrap();
    println!("known limit: {}\n{found}", hub_alone.name);
    assert_eq!(found.rule, "one step number for two steps");
}
