//! Defects made on purpose: each must be caught, with the shortest way to the harm it does.
//!
//! They stand around the writer: they distort what it knows, or replace what it says. Nothing of them is in
//! the protocol's own code.

use crate::intent::record::{Intent, Phase, Record};
use crate::intent::refusal::Refusal;
use crate::intent::writer::{Op, Place, Task, View, Writer};

/// A defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// The effect comes before the copy.
    EffectBeforeCopy,
    /// The copy is written when the step is begun, not again when it may be sent.
    CopyHoldsBegunOnly,
    /// A new leader goes on with a step as if it were its own.
    NotStampedOnResume,
    /// The epoch follows the lease alone.
    EpochFromLeaseAlone,
    /// The version is not compared.
    BlindOverwrite,
    /// An effect that is not settled is taken for one that failed, and its step is ended.
    UnsettledIsFailed,
    /// A step that is resumed gets a new number.
    ResumedUnderNewNumber,
    /// What was sent is withdrawn.
    WithdrawsWhatWasSent,
    /// A step's end is written to the copy first.
    CopyClearedFirst,
    /// A copy that lags is taken for the trace of a restored hub.
    LagIsRestore,
    /// The primary is read before the copies.
    PrimaryReadFirst,
    /// The lease is not looked at.
    NoLeaseCheck,
    /// A copy that is newer is not noticed.
    RestoredHubUnnoticed,
    /// Another hub's id is not noticed.
    AnotherHubUnnoticed,
    /// Copies of places where nothing happens are left to what an earlier leader may still write there.
    NoFence,
    /// A step is begun although others were since the decision.
    OldDecision,
    /// A decision's evidence is older than the record it names.
    OldEvidence,
    /// Who takes over goes on from the oldest record.
    TakesOverFromOldest,
    /// Who takes over goes on from the highest revision, whichever hub wrote it.
    TakesOverByRevisionAlone,
    /// Who takes over forgets the steps that are open.
    TakesOverAtRest,
    /// A leader writes when it starts.
    WritesAtStart,
}

impl Defect {
    /// Before the writer is asked.
    pub fn distort(self, writer: &mut Writer<u8>) {
        let Some(primary) = writer.primary.record().cloned() else { return };
        match self {
            Self::NotStampedOnResume if sending(writer, &primary).is_some() => {
                writer.epoch = Some(primary.epoch);
            }
            Self::WithdrawsWhatWasSent => {
                if let Task::Withdraw { ledger, .. } = writer.task.clone()
                    && let View::Read(Some((_, record))) = &mut writer.primary
                    && let Some(intent) = record.open.get_mut(&ledger)
                {
                    intent.phase = Phase::Begun;
                }
            }
            Self::RestoredHubUnnoticed => {
                writer.memory = None;
                for copy in copies(writer) {
                    if copy.revision >= primary.revision {
                        *copy = primary.clone();
                    }
                }
            }
            Self::AnotherHubUnnoticed => {
                let own = writer.hub_id.clone();
                for copy in copies(writer) {
                    copy.hub_id.clone_from(&own);
                }
            }
            Self::NoFence | Self::CopyHoldsBegunOnly => {
                let Some(intent) = sending(writer, &primary).cloned() else { return };
                if intent.phase != Phase::Sent {
                    return;
                }
                for (place, view) in &mut writer.copies {
                    let View::Read(held) = view else { continue };
                    let same = held.as_ref().is_some_and(|(_, copy)| {
                        copy.epoch == primary.epoch
                            && copy.open.values().any(|open| open.number == intent.number)
                    });
                    let skip = match self {
                        Self::NoFence => !intent.places.contains(place),
                        _ => same,
                    };
                    if skip {
                        let version = held.take().map_or(String::new(), |(version, _)| version);
                        *held = Some((version, primary.clone()));
                    }
                }
            }
            Self::OldDecision => {
                if let Task::Begin(new) = &mut writer.task
                    && !primary.open.contains_key(&new.ledger)
                {
                    new.decided_on = primary.step_number;
                }
            }
            _ => {}
        }
    }

    /// After the writer has answered.
    pub fn twist(self, writer: &Writer<u8>, op: Op<u8>) -> Op<u8> {
        let primary = writer.primary.record();
        match (self, op) {
            (Self::EffectBeforeCopy, Op::Swap { place: Place::Copy(place), version, record }) => {
                match sending(writer, &record) {
                    Some(intent) if intent.phase == Phase::Sent => {
                        let ledger = ledger_of(&writer.task).to_owned();
                        Op::Effect { ledger, intent: intent.clone() }
                    }
                    _ => Op::Swap { place: Place::Copy(place), version, record },
                }
            }
            (
                Self::CopyHoldsBegunOnly,
                Op::Swap { place: place @ Place::Copy(_), version, mut record },
            ) => {
                for intent in record.open.values_mut() {
                    intent.phase = Phase::Begun;
                }
                Op::Swap { place, version, record }
            }
            (
                Self::EpochFromLeaseAlone,
                Op::Swap { place: Place::Primary, version, mut record },
            ) => {
                record.epoch = writer.transitions;
                Op::Swap { place: Place::Primary, version, record }
            }
            (
                Self::ResumedUnderNewNumber,
                Op::Swap { place: Place::Primary, version, mut record },
            ) => {
                let resumes = sending(writer, &record).is_some_and(|intent| {
                    primary.and_then(|record| sending(writer, record)).map(|open| open.epoch)
                        != Some(intent.epoch)
                });
                if resumes && let Some(intent) = record.open.get_mut(ledger_of(&writer.task)) {
                    record.step_number += 1;
                    intent.number = record.step_number;
                }
                Op::Swap { place: Place::Primary, version, record }
            }
            (Self::CopyClearedFirst, Op::Swap { place: Place::Primary, version, record })
                if matches!(writer.task, Task::Finish { .. }) =>
            {
                let late = writer.copies.iter().find_map(|(place, view)| match view {
                    View::Read(Some((version, copy))) if !copy.open.is_empty() => {
                        Some((Place::Copy(place.clone()), Some(version.clone())))
                    }
                    _ => None,
                });
                let (place, version) = late.unwrap_or((Place::Primary, version));
                Op::Swap { place, version, record }
            }
            (
                Self::TakesOverFromOldest | Self::TakesOverByRevisionAlone | Self::TakesOverAtRest,
                Op::Swap { place: Place::Primary, version, mut record },
            ) if matches!(writer.task, Task::TakeOver { .. }) => {
                let copies = writer.copies.values().filter_map(View::record);
                let found = copies.chain(primary);
                let base = match self {
                    Self::TakesOverFromOldest => found.min_by_key(|record| record.revision),
                    Self::TakesOverByRevisionAlone => found.max_by_key(|record| record.revision),
                    _ => None,
                };
                record.open = base.map(|base| base.open.clone()).unwrap_or_default();
                Op::Swap { place: Place::Primary, version, record }
            }
            (Self::WritesAtStart, Op::Done) if writer.task == Task::Rest => {
                let record = primary.and_then(|record| record.touch(record.epoch).ok());
                let version = match &writer.primary {
                    View::Read(Some((version, _))) => Some(version.clone()),
                    _ => None,
                };
                match record {
                    Some(record) if writer.epoch.is_none() => {
                        Op::Swap { place: Place::Primary, version, record }
                    }
                    _ => Op::Done,
                }
            }
            (Self::PrimaryReadFirst, Op::Read(Place::Copy(_))) if writer.primary.is_unread() => {
                Op::Read(Place::Primary)
            }
            (Self::LagIsRestore, op) if !matches!(op, Op::Read(_)) => {
                let Some(primary) = primary else { return op };
                let behind = writer.copies.iter().find_map(|(place, view)| {
                    view.record().filter(|copy| *copy != primary).map(|copy| (place, copy))
                });
                match behind {
                    Some((place, copy)) => Op::Refuse(Refusal::HubOlder {
                        primary_step: Some(primary.step_number),
                        copy_step: copy.step_number,
                        place: place.clone(),
                        consent: copy.take_over_consent(),
                    }),
                    None => op,
                }
            }
            (_, op) => op,
        }
    }
}

fn copies(writer: &mut Writer<u8>) -> impl Iterator<Item = &mut Record<u8>> {
    writer.copies.values_mut().filter_map(|view| match view {
        View::Read(Some((_, record))) => Some(record),
        _ => None,
    })
}

fn ledger_of(task: &Task<u8>) -> &str {
    match task {
        Task::Send { ledger, .. } => ledger,
        _ => "",
    }
}

/// The intent that is being sent, as it is in `record`.
fn sending<'a>(writer: &Writer<u8>, record: &'a Record<u8>) -> Option<&'a Intent<u8>> {
    record.open.get(ledger_of(&writer.task))
}
