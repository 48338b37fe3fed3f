//! What the conditions say in the states that are easily mistaken for each other.

use std::collections::BTreeMap;

use bsn_core::membership::Decision;
use bsn_core::membership::model::Gate;

use super::networks::{World, consent_needed, decided, network_cases, refused, restarting, stuck};
use super::nodes::{NodeWorld, disk_that_cannot_grow, disk_that_grows, first, node, node_cases};
use super::{anchor, now};
use crate::api::conditions::{
    MEMBERSHIP_CONVERGED, NETWORK_TYPES, READY, RECONCILING, Reason, STALLED, find,
};
use crate::api::{BsnNetworkStatus, BsnNode, Storage};
use crate::controller::Refusal;
use crate::controller::network::disks::observe_disks;
use crate::controller::network::report::refused_status;
use crate::controller::network::steps::Steps;

/// A condition's status and reason.
fn said(status: &BsnNetworkStatus, kind: &str) -> (String, String) {
    let condition = find(&status.conditions, kind).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

fn is(status: &str, reason: Reason) -> (String, String) {
    (status.to_owned(), reason.as_str().to_owned())
}

#[test]
fn who_waits_for_a_person_is_stalled_also_in_the_middle_of_a_step() {
    for (steps, reason) in [
        (decided(consent_needed()), Reason::ConsentNeeded),
        (restarting(consent_needed()), Reason::ConsentNeeded),
        (decided(stuck()), Reason::StepRefused),
        (restarting(stuck()), Reason::StepRefused),
    ] {
        let status = World { steps, ..World::changed() }.status();
        for kind in [READY, RECONCILING, MEMBERSHIP_CONVERGED] {
            assert_eq!(said(&status, kind), is("False", reason), "{kind}");
        }
        assert_eq!(said(&status, STALLED), is("True", reason));
    }
}

#[test]
fn a_consent_that_is_needed_is_named_word_for_word() {
    for steps in [decided(consent_needed()), restarting(consent_needed())] {
        let status = World { steps, ..World::changed() }.status();
        let message = &find(&status.conditions, STALLED).unwrap().message;
        let end = "To consent: \
                   bsn-operator.io/consent=restart-with-downtime/city-ledger-hangzhou-0/5eed";
        assert!(message.ends_with(end), "{message}");
    }
}

#[test]
fn a_changed_description_is_never_called_done_before_it_was_looked_at() {
    let unseen = |paused| World { paused, steps: Steps::default(), ..World::changed() };
    let status = unseen(false).status();
    assert_eq!(said(&status, READY), is("False", Reason::Changing));
    assert_eq!(said(&status, RECONCILING), is("True", Reason::Changing));
    // Nor in the next pass.
    assert_eq!(World { old: status.clone(), ..unseen(false) }.status(), status);
    let status = unseen(true).status();
    assert_eq!(said(&status, READY), is("Unknown", Reason::NotYetObserved));
    assert_eq!(said(&status, STALLED), is("False", Reason::AsDescribed));
    // Nor after a refusal that was about something else.
    let refusal = Refusal::new(Reason::AnchorRefused, "the anchor is missing");
    let old = refused_status(&World::default().status(), &refusal, Some(2), now());
    let status = World { old, ..unseen(false) }.status();
    assert_eq!(said(&status, READY), is("False", Reason::Changing));
    // What was said of the same description stays.
    let same = World { old: World::default().status(), generation: 1, ..unseen(false) }.status();
    assert_eq!(said(&same, READY), is("True", Reason::AsDescribed));
}

#[test]
fn a_paused_network_is_stalled_only_if_something_waits() {
    let paused = |steps| World { paused: true, steps, ..World::changed() }.status();
    let status = paused(decided(Decision::Converged));
    assert_eq!(said(&status, READY), is("True", Reason::AsDescribed));
    assert_eq!(said(&status, STALLED), is("False", Reason::AsDescribed));
    let gate = refused(Gate::NotPaused, "spec.paused is set; set it to false to go on");
    let status = paused(decided(Decision::Wait(gate)));
    assert_eq!(said(&status, STALLED), is("True", Reason::PausedByUser));
    assert_eq!(said(&status, RECONCILING), is("False", Reason::PausedByUser));
    let status = paused(restarting(stuck()));
    assert_eq!(said(&status, STALLED), is("True", Reason::StepRefused));
}

/// By it the API server decides on a deletion: what is not seen is no reason to let a network go.
#[test]
fn whether_others_need_a_network_stays_as_it_was_while_no_powers_are_known() {
    let seen = |powers: &[u64], foreign: &[u64]| Steps {
        powers: powers.to_vec(),
        foreign: foreign.to_vec(),
        ..decided(Decision::Converged)
    };
    let told = |old: &BsnNetworkStatus, steps: Steps| {
        World { old: old.clone(), steps, ..World::default() }.status()
    };
    let numbers = |status: &BsnNetworkStatus| {
        (status.needed_by_others, status.foreign_validators, status.validators, status.margin)
    };
    let needed = told(&BsnNetworkStatus::default(), seen(&[1000; 4], &[1000; 2]));
    assert_eq!(numbers(&needed), (Some(true), Some(2), Some(4), Some(1)));
    // No node tells; an operator that has just started; a network that cannot be looked at.
    for unseen in [seen(&[], &[]), Steps::default()] {
        assert_eq!(numbers(&told(&needed, unseen)), numbers(&needed));
    }
    let refusal = Refusal::new(Reason::AnchorRefused, "the anchor is missing");
    let refused = refused_status(&needed, &refusal, Some(2), now());
    assert_eq!(numbers(&refused), numbers(&needed));
    // Known not to be: the others are a quorum without us, or have left.
    for (powers, foreign) in [(vec![1000; 4], vec![1000; 3]), (vec![1000; 2], vec![])] {
        let free = told(&needed, seen(&powers, &foreign));
        assert_eq!(free.needed_by_others, None, "{powers:?}, {foreign:?} of them others'");
        assert_eq!(told(&free, seen(&[], &[])).needed_by_others, None);
    }
}

/// kstatus takes the first of the two that is true.
#[test]
fn nothing_is_reconciling_and_stalled_at_once() {
    for case in network_cases().into_iter().chain(node_cases()) {
        let conditions = case.object["status"]["conditions"].as_array().cloned();
        let is_true = |kind| {
            let mut all = conditions.iter().flatten();
            all.any(|condition| condition["type"] == kind && condition["status"] == "True")
        };
        assert!(!(is_true(RECONCILING) && is_true(STALLED)), "{}", case.name);
    }
}

/// The metrics and the alerts know conditions by this list.
#[test]
fn a_network_has_no_condition_that_is_not_listed() {
    for case in network_cases() {
        for condition in case.object["status"]["conditions"].as_array().into_iter().flatten() {
            let kind = condition["type"].as_str().unwrap();
            assert!(NETWORK_TYPES.contains(&kind), "{kind} of {}", case.name);
        }
    }
}

#[test]
fn a_disk_waits_until_its_node_has_told_of_the_newest_description() {
    let anchor = anchor(true);
    let sizes = |hangzhou: &str| {
        let storage = |size: &str| Storage { size: size.to_owned(), storage_class_name: None };
        let sets = [("hangzhou", hangzhou), ("nanjing", "20Gi")];
        sets.map(|(set, size)| (set.to_owned(), storage(size))).into()
    };
    let waits = |sizes: &BTreeMap<String, Storage>, node: &BsnNode| {
        let waits = observe_disks(Some(&anchor), sizes, std::slice::from_ref(node));
        waits.into_iter().map(|disk| disk.refused).collect::<Vec<_>>()
    };
    let well = node(&first(), &NodeWorld::default());
    assert!(waits(&sizes("20Gi"), &well).is_empty());
    // The node's description is still the old one.
    assert_eq!(waits(&sizes("40Gi"), &well), [false]);
    let mut stamped = well.clone();
    stamped.spec.storage.size = "40Gi".to_owned();
    stamped.metadata.generation = Some(2);
    assert_eq!(waits(&sizes("40Gi"), &stamped), [false], "nobody has looked at it");
    stamped.status.as_mut().unwrap().observed_generation = Some(2);
    assert!(waits(&sizes("40Gi"), &stamped).is_empty());
    let mut told = |disk| {
        let world = NodeWorld { disk: Some(disk), ..NodeWorld::default() };
        stamped.status.as_mut().unwrap().conditions =
            node(&first(), &world).status.unwrap().conditions;
        waits(&sizes("40Gi"), &stamped)
    };
    assert_eq!(told(disk_that_grows()), [false]);
    assert_eq!(told(disk_that_cannot_grow()), [true]);
    // Of a set that is no longer described nothing is wanted.
    let mut others: BTreeMap<String, Storage> = sizes("40Gi");
    others.remove("hangzhou");
    assert!(waits(&others, &well).is_empty());
}
