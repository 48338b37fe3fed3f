//! Plays of one or two writers against stores in memory; `model` has everything else.

use std::collections::BTreeMap;

use super::judge::MEMORY;
use super::writer::View;
use super::{Answer, Intent, NewStep, Op, Phase, Place, Record, Refusal, Task, Writer};

/// Stores, and what was asked of them.
#[derive(Default)]
struct Stores {
    held: BTreeMap<Place, (u32, Record<u8>)>,
    log: Vec<String>,
    effects: Vec<Intent<u8>>,
    /// Commit the next swap and lose the answer.
    lose_answer: bool,
    /// A place that does not answer.
    lost: Option<Place>,
}

impl Stores {
    fn with_primary() -> Self {
        let mut stores = Self::default();
        stores.held.insert(Place::Primary, (1, Record::new("h1", "n1", 1)));
        stores
    }

    fn answer(&mut self, op: &Op<u8>) -> Answer<u8> {
        match op {
            Op::Read(place) | Op::Swap { place, .. } if self.lost.as_ref() == Some(place) => {
                Answer::Unknown
            }
            Op::Read(place) => {
                self.log.push(format!("read {}", name(place)));
                let found = self.held.get(place).cloned();
                Answer::Found(found.map(|(version, record)| (version.to_string(), record)))
            }
            Op::Swap { place, version, record } => {
                let current = self.held.get(place).map(|(version, _)| *version);
                self.log.push(format!("write {}", name(place)));
                if current.map(|version| version.to_string()) != *version {
                    return Answer::Conflict;
                }
                let next = current.unwrap_or_default() + 1;
                self.held.insert(place.clone(), (next, record.clone()));
                if std::mem::take(&mut self.lose_answer) {
                    return Answer::Unknown;
                }
                Answer::Swapped(next.to_string())
            }
            Op::Effect { intent, .. } => {
                self.log.push("effect".to_owned());
                self.effects.push(intent.clone());
                Answer::Unknown
            }
            Op::Wait(_) | Op::Done | Op::Refuse(_) => Answer::Unknown,
        }
    }

    fn run(&mut self, writer: &mut Writer<u8>, task: Task<u8>) -> Result<(), Refusal> {
        self.try_run(writer, task).unwrap_or_else(|| panic!("no end: {:?}", self.log))
    }

    /// `None` = a place never answers.
    fn try_run(&mut self, writer: &mut Writer<u8>, task: Task<u8>) -> Option<Result<(), Refusal>> {
        writer.start(task);
        for _ in 0..50 {
            let op = writer.next(true);
            match op {
                Op::Done => return Some(Ok(())),
                Op::Refuse(refusal) => return Some(Err(refusal)),
                _ => {}
            }
            let answer = self.answer(&op);
            writer.answer(op, answer);
        }
        None
    }

    fn primary(&self) -> &Record<u8> {
        &self.held[&Place::Primary].1
    }
}

fn name(place: &Place) -> &str {
    match place {
        Place::Primary => "primary",
        Place::Copy(name) => name,
    }
}

fn writer(transitions: u64) -> Writer<u8> {
    Writer::new("h1", "n1", transitions, ["a".to_owned(), "b".to_owned()])
}

fn begin(decided_on: u64) -> Task<u8> {
    let places = ["a".to_owned()].into();
    Task::Begin(NewStep { ledger: "main".into(), places, step: 7, decided_on })
}

fn send(number: u64) -> Task<u8> {
    Task::Send { ledger: "main".into(), number }
}

fn finish(number: u64) -> Task<u8> {
    Task::Finish { ledger: "main".into(), number }
}

#[test]
fn a_step_is_recorded_everywhere_before_its_effect_and_the_fence_is_made_once_in_a_term() {
    let (mut stores, mut leader) = (Stores::with_primary(), writer(1));
    stores.run(&mut leader, begin(0)).unwrap();
    assert_eq!(stores.log, ["read a", "read b", "read primary", "write primary"]);
    stores.log.clear();
    stores.run(&mut leader, send(1)).unwrap();
    let expected = ["read a", "read primary", "write primary", "write a", "read primary"];
    assert_eq!(stores.log[..5], expected);
    assert_eq!(stores.log[5..], ["write b", "read primary", "effect"]);
    stores.run(&mut leader, finish(1)).unwrap();
    assert!(stores.held[&Place::Copy("a".into())].1.open.is_empty());
    stores.run(&mut leader, begin(1)).unwrap();
    stores.log.clear();
    stores.run(&mut leader, send(2)).unwrap();
    let expected = ["read a", "read primary", "write primary", "write a", "read primary", "effect"];
    assert_eq!(stores.log, expected);
}

#[test]
fn a_leader_that_starts_and_has_nothing_to_do_only_reads() {
    let mut stores = Stores::with_primary();
    stores.run(&mut writer(5), Task::Rest).unwrap();
    assert_eq!(stores.log, ["read a", "read b", "read primary"]);
}

#[test]
fn a_lost_answer_is_looked_up_and_the_epoch_is_stamped_again() {
    let (mut stores, mut leader) = (Stores::with_primary(), writer(1));
    stores.lose_answer = true;
    stores.run(&mut leader, begin(0)).unwrap();
    assert_eq!((stores.primary().step_number, stores.primary().epoch), (1, 2));
    stores.run(&mut leader, send(1)).unwrap();
    assert_eq!(stores.effects.len(), 1);
    assert_eq!((stores.primary().step_number, stores.primary().epoch), (1, 3));
}

#[test]
fn a_new_leader_sends_the_very_same_step_under_its_own_epoch_and_the_old_one_is_fenced() {
    let (mut stores, mut old) = (Stores::with_primary(), writer(1));
    stores.run(&mut old, begin(0)).unwrap();
    stores.run(&mut old, send(1)).unwrap();
    stores.run(&mut writer(2), send(1)).unwrap();
    let [first, second] = &stores.effects[..] else { panic!("{:?}", stores.effects) };
    assert_eq!((first.number, first.step), (second.number, second.step));
    assert!(second.epoch > first.epoch);
    let fenced = Err(Refusal::Fenced { by_epoch: second.epoch });
    assert_eq!(stores.run(&mut old, finish(1)), fenced);
}

#[test]
fn no_operation_is_given_out_when_the_lease_has_ended() {
    let mut leader = writer(1);
    leader.start(begin(0));
    assert_eq!(leader.next(false), Op::Refuse(Refusal::LeaseEnded));
}

#[test]
fn a_place_that_does_not_answer_is_waited_for_and_an_unknown_one_is_refused() {
    let mut leader = writer(1);
    leader.start(begin(0));
    let op = leader.next(true);
    leader.answer(op, Answer::Unknown);
    let op = leader.next(true);
    assert_eq!(op, Op::Wait(Place::Copy("a".into())));
    leader.answer(op, Answer::Unknown);
    assert_eq!(leader.next(true), Op::Read(Place::Copy("a".into())));

    let elsewhere =
        NewStep { ledger: "main".into(), places: ["c".to_owned()].into(), step: 7, decided_on: 0 };
    let refused = Stores::with_primary().run(&mut writer(1), Task::Begin(elsewhere));
    assert_eq!(refused, Err(Refusal::UnknownPlace { place: "c".into() }));
}

#[test]
fn a_restored_hub_does_nothing_until_a_person_consents_and_then_settles_what_was_sent() {
    let (mut stores, mut leader) = (Stores::with_primary(), writer(1));
    let backup = stores.held[&Place::Primary].clone();
    stores.run(&mut leader, begin(0)).unwrap();
    stores.run(&mut leader, send(1)).unwrap();
    stores.held.insert(Place::Primary, (9, backup.1));

    // Who saw the newer record knows by itself; a new process by the copies.
    let place = match stores.run(&mut leader, begin(0)) {
        Err(Refusal::HubOlder { place, .. }) => place,
        other => panic!("{other:?}"),
    };
    assert_ne!(place, MEMORY, "copies are the better evidence");
    let mut next = writer(2);
    let refusal = stores.run(&mut next, begin(0)).unwrap_err();
    assert_eq!(refusal.consent(), Some("take-over/h1/n1/1"));
    let wrong = Task::TakeOver { consent: "take-over/h1/n1/0".into() };
    assert!(matches!(stores.run(&mut next, wrong), Err(Refusal::OtherConsent { .. })));
    assert_eq!(stores.effects.len(), 1);

    let consent = Task::TakeOver { consent: "take-over/h1/n1/1".into() };
    stores.run(&mut next, consent).unwrap();
    let open = &stores.primary().open["main"];
    assert_eq!((open.number, open.phase), (1, Phase::Sent));
    stores.run(&mut next, send(1)).unwrap();
    stores.run(&mut next, finish(1)).unwrap();
    assert_eq!(stores.primary().step_number, 2, "taking over was a step of its own");
}

/// It once had: the model found a leader that fenced itself by a take-over whose answer was lost.
#[test]
fn a_leader_that_takes_over_and_gets_no_answer_goes_on() {
    let (mut stores, mut leader) = (Stores::with_primary(), writer(1));
    stores.run(&mut leader, begin(0)).unwrap();
    let newer = Record { revision: 9, step_number: 5, epoch: 7, ..Record::new("h1", "n1", 7) };
    stores.held.insert(Place::Copy("b".into()), (1, newer));
    leader.copies.clear();
    leader.copies.insert("b".into(), View::Unread);
    let refusal = stores.run(&mut leader, Task::Rest).unwrap_err();
    let consent = refusal.consent().unwrap().to_owned();
    assert_eq!(consent, "take-over/h1/n1/5");
    stores.lose_answer = true;
    stores.run(&mut leader, Task::TakeOver { consent }).unwrap();
    assert_eq!((stores.primary().epoch, stores.primary().step_number), (8, 6));
    stores.run(&mut leader, Task::Rest).unwrap();
}

#[test]
fn what_may_never_settle_is_given_up_only_by_its_own_consent() {
    let (mut stores, mut leader) = (Stores::with_primary(), writer(1));
    stores.run(&mut leader, begin(0)).unwrap();
    stores.run(&mut leader, send(1)).unwrap();
    let withdraw = Task::Withdraw { ledger: "main".into(), number: 1 };
    let refused = stores.run(&mut leader, withdraw);
    assert!(matches!(refused, Err(Refusal::Irreversible { .. })));
    let abandon =
        |consent: &str| Task::Abandon { ledger: "main".into(), number: 1, consent: consent.into() };
    assert!(stores.run(&mut leader, abandon("abandon/n1/2")).is_err());
    stores.run(&mut leader, abandon("abandon/n1/1")).unwrap();
    assert!(stores.primary().open.is_empty());
}

#[test]
fn a_place_that_is_lost_after_the_fence_holds_up_no_step_elsewhere() {
    let (mut stores, mut leader) = (Stores::with_primary(), writer(1));
    for task in [begin(0), send(1), finish(1)] {
        stores.run(&mut leader, task).unwrap();
    }
    stores.lost = Some(Place::Copy("b".into()));
    for task in [begin(1), send(2), finish(2)] {
        stores.run(&mut leader, task).unwrap();
    }
    assert_eq!(stores.effects.len(), 2);
}

/// The rules do not promise this: see the limits in the module's text.
#[test]
fn a_new_leader_begins_nothing_while_a_place_is_lost_unless_it_is_told_to_leave_it_out() {
    let (mut stores, mut leader) = (Stores::with_primary(), writer(1));
    for task in [begin(0), send(1), finish(1)] {
        stores.run(&mut leader, task).unwrap();
    }
    stores.lost = Some(Place::Copy("b".into()));
    let mut next = writer(2);
    assert_eq!(stores.try_run(&mut next, begin(1)), None);
    let mut next = Writer::new("h1", "n1", 3, ["a".to_owned()]);
    for task in [begin(1), send(2), finish(2)] {
        stores.run(&mut next, task).unwrap();
    }
    // It lags when it is back, and that is all.
    stores.lost = None;
    stores.run(&mut writer(4), Task::Rest).unwrap();
}
