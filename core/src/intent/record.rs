//! What is recorded of steps, and how one record follows from another.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// The facts about steps in an anchor. The primary holds the newest; a copy is an image of what the primary
/// held at the same revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record<S> {
    /// Id of the hub that writes here.
    pub hub_id: String,
    /// Random id of the network.
    pub network_id: String,
    /// How often the primary was written. It orders records of one history: more is newer.
    pub revision: u64,
    /// Epoch of the leader that wrote this; never runs backwards.
    pub epoch: u64,
    /// Number of the newest step, over all ledgers; a number is never used again.
    pub step_number: u64,
    /// Steps that were begun and have not ended, by ledger.
    pub open: BTreeMap<String, Intent<S>>,
    /// Hubs that this network was taken over from, with the newest revision seen of each. A copy of theirs
    /// up to that revision is only late; beyond it, that hub still writes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub former_hubs: BTreeMap<String, u64>,
}

/// A step that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Intent<S> {
    /// The step's number.
    pub number: u64,
    /// Epoch of the leader that began or last resumed it: only that leader may act on it.
    pub epoch: u64,
    /// How far it is.
    pub phase: Phase,
    /// Member clusters its effects happen in, whose copies must hold it before the first; none = on the
    /// hub alone, where the primary is.
    pub places: BTreeSet<String>,
    /// All that is needed to do it again in exactly the same way.
    pub step: S,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Recorded in the primary; nothing of it can have left the operator.
    Begun,
    /// It may have been sent. Cannot be taken back, only settled.
    Sent,
}

/// A step to be begun.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NewStep<S> {
    /// On which ledger.
    pub ledger: String,
    /// See [`Intent::places`].
    pub places: BTreeSet<String>,
    /// See [`Intent::step`].
    pub step: S,
    /// [`Record::step_number`] of the record it was decided on. The evidence for the decision must have been
    /// observed *after* that record was read, or a step that has just ended is taken again.
    pub decided_on: u64,
}

impl<S: Clone + Eq> Record<S> {
    /// The first record of a network.
    pub fn new(hub_id: &str, network_id: &str, epoch: u64) -> Self {
        Self {
            hub_id: hub_id.to_owned(),
            network_id: network_id.to_owned(),
            revision: 1,
            epoch,
            step_number: 0,
            open: BTreeMap::new(),
            former_hubs: BTreeMap::new(),
        }
    }

    /// The next revision, stamped by a leader; every write of the primary is one. By itself for other facts
    /// in the same anchor that copies must not be behind with.
    pub fn touch(&self, epoch: u64) -> Result<Self, Refusal> {
        if self.epoch > epoch {
            return Err(Refusal::Fenced { by_epoch: self.epoch });
        }
        Ok(Self { revision: self.revision + 1, epoch, ..self.clone() })
    }

    /// Begins a step: its ledger must be at rest, and nothing begun since the decision.
    pub fn begin(&self, epoch: u64, new: &NewStep<S>) -> Result<Self, Refusal> {
        if let Some(open) = self.open.get(&new.ledger) {
            return Err(Refusal::Occupied { ledger: new.ledger.clone(), number: open.number });
        }
        if self.step_number != new.decided_on {
            return Err(Refusal::Moved { decided_on: new.decided_on, found: self.step_number });
        }
        let mut next = self.touch(epoch)?;
        next.step_number += 1;
        let intent = Intent {
            number: next.step_number,
            epoch,
            phase: Phase::Begun,
            places: new.places.clone(),
            step: new.step.clone(),
        };
        next.open.insert(new.ledger.clone(), intent);
        Ok(next)
    }

    /// Makes a step that another leader began this leader's. Number, step and phase stay.
    pub fn resume(&self, epoch: u64, ledger: &str, number: u64) -> Result<Self, Refusal> {
        self.step_of(ledger, number)?;
        self.change(epoch, ledger, |intent| intent.epoch = epoch)
    }

    /// Records that the step may be sent from now on. Only for the leader whose epoch it carries.
    pub fn advance(&self, epoch: u64, ledger: &str, number: u64) -> Result<Self, Refusal> {
        let intent = self.step_of(ledger, number)?;
        if intent.epoch != epoch {
            return Err(Refusal::NotResumed { number, epoch: intent.epoch });
        }
        self.change(epoch, ledger, |intent| intent.phase = Phase::Sent)
    }

    /// Ends a step that was sent. The caller has proof that it is settled: it took effect and nobody holds
    /// it any more, or it never can.
    pub fn finish(&self, epoch: u64, ledger: &str, number: u64) -> Result<Self, Refusal> {
        match self.step_of(ledger, number)?.phase {
            Phase::Sent => self.close(epoch, ledger),
            Phase::Begun => Err(Refusal::NotSent { number }),
        }
    }

    /// Gives a step up of which nothing was done.
    pub fn withdraw(&self, epoch: u64, ledger: &str, number: u64) -> Result<Self, Refusal> {
        match self.step_of(ledger, number)?.phase {
            Phase::Begun => self.close(epoch, ledger),
            Phase::Sent => {
                Err(Refusal::Irreversible { number, consent: self.abandon_consent(number) })
            }
        }
    }

    /// Ends a step without proof that it is settled, because a person consented to exactly that. Works once:
    /// the number is never used again.
    pub fn abandon(
        &self,
        epoch: u64,
        ledger: &str,
        number: u64,
        consent: &str,
    ) -> Result<Self, Refusal> {
        self.step_of(ledger, number)?;
        let needed = self.abandon_consent(number);
        if consent != needed {
            return Err(Refusal::OtherConsent { given: consent.to_owned(), needed });
        }
        self.close(epoch, ledger)
    }

    /// The consent that [`abandon`](Self::abandon) needs.
    pub fn abandon_consent(&self, number: u64) -> String {
        format!("abandon/{}/{number}", self.network_id)
    }

    /// The consent that taking over from this record needs.
    pub fn take_over_consent(&self) -> String {
        format!("take-over/{}/{}/{}", self.hub_id, self.network_id, self.step_number)
    }

    /// The primary's first record after a person consented to go on from `self`, the newest record found.
    /// `found` = all that were found. Works once: it is a step of its own, so the number in the consent
    /// has passed.
    pub fn take_over<'a>(
        &'a self,
        epoch: u64,
        hub_id: &str,
        found: impl IntoIterator<Item = &'a Self>,
        consent: &str,
    ) -> Result<Self, Refusal> {
        let needed = self.take_over_consent();
        if consent != needed {
            return Err(Refusal::OtherConsent { given: consent.to_owned(), needed });
        }
        let mut next = self.touch(epoch)?;
        next.step_number += 1;
        next.former_hubs.remove(hub_id);
        for record in found.into_iter().chain([self]) {
            // Above all that was found: a late copy must not look newer than this.
            next.revision = next.revision.max(record.revision + 1);
            next.step_number = next.step_number.max(record.step_number + 1);
            if record.hub_id != hub_id {
                let last = next.former_hubs.entry(record.hub_id.clone()).or_default();
                *last = record.revision.max(*last);
            }
        }
        hub_id.clone_into(&mut next.hub_id);
        Ok(next)
    }

    fn step_of(&self, ledger: &str, number: u64) -> Result<&Intent<S>, Refusal> {
        let open = self.open.get(ledger).filter(|intent| intent.number == number);
        open.ok_or_else(|| Refusal::NoSuchStep { ledger: ledger.to_owned(), number })
    }

    fn change(
        &self,
        epoch: u64,
        ledger: &str,
        change: impl FnOnce(&mut Intent<S>),
    ) -> Result<Self, Refusal> {
        let mut next = self.touch(epoch)?;
        if let Some(intent) = next.open.get_mut(ledger) {
            change(intent);
        }
        Ok(next)
    }

    fn close(&self, epoch: u64, ledger: &str) -> Result<Self, Refusal> {
        let mut next = self.touch(epoch)?;
        next.open.remove(ledger);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record<u8> {
        Record::new("h1", "n1", 1)
    }

    fn new_step(decided_on: u64) -> NewStep<u8> {
        NewStep { ledger: "main".into(), places: ["a".to_owned()].into(), step: 7, decided_on }
    }

    fn begun() -> Record<u8> {
        record().begin(2, &new_step(0)).unwrap()
    }

    fn sent() -> Record<u8> {
        begun().advance(2, "main", 1).unwrap()
    }

    #[test]
    fn a_step_goes_from_begun_to_sent_to_its_end_and_every_write_counts() {
        let ended = sent().finish(2, "main", 1).unwrap();
        assert_eq!((ended.revision, ended.step_number, ended.epoch), (4, 1, 2));
        assert!(ended.open.is_empty());
        assert_eq!(ended.begin(2, &new_step(1)).unwrap().open["main"].number, 2);
    }

    #[test]
    fn a_step_is_not_begun_on_an_old_decision_nor_on_a_ledger_that_has_one() {
        let occupied = Refusal::Occupied { ledger: "main".into(), number: 1 };
        assert_eq!(begun().begin(2, &new_step(1)), Err(occupied));
        let ended = sent().finish(2, "main", 1).unwrap();
        assert_eq!(ended.begin(2, &new_step(0)), Err(Refusal::Moved { decided_on: 0, found: 1 }));
    }

    #[test]
    fn an_older_leader_changes_nothing() {
        let fenced = Err(Refusal::Fenced { by_epoch: 2 });
        assert_eq!(begun().resume(1, "main", 1), fenced);
        assert_eq!(begun().withdraw(1, "main", 1), fenced);
        assert_eq!(sent().finish(1, "main", 1), fenced);
        assert_eq!(begun().touch(1), fenced);
    }

    #[test]
    fn a_newer_leader_resumes_before_it_goes_on() {
        let not_resumed = Refusal::NotResumed { number: 1, epoch: 2 };
        assert_eq!(begun().advance(3, "main", 1), Err(not_resumed));
        let resumed = begun().resume(3, "main", 1).unwrap();
        assert_eq!((resumed.epoch, resumed.open["main"].epoch), (3, 3));
        assert_eq!(resumed.open["main"].step, 7);
        assert_eq!(resumed.advance(3, "main", 1).unwrap().open["main"].phase, Phase::Sent);
    }

    #[test]
    fn what_was_sent_is_never_withdrawn_and_what_was_not_is_never_settled() {
        let consent = "abandon/n1/1".to_owned();
        let irreversible = Refusal::Irreversible { number: 1, consent: consent.clone() };
        assert_eq!(sent().withdraw(2, "main", 1), Err(irreversible));
        let given = "abandon/n1/2".to_owned();
        let other = Refusal::OtherConsent { given, needed: consent.clone() };
        assert_eq!(sent().abandon(2, "main", 1, "abandon/n1/2"), Err(other));
        assert!(sent().abandon(2, "main", 1, &consent).unwrap().open.is_empty());
        assert!(begun().withdraw(2, "main", 1).unwrap().open.is_empty());
        assert_eq!(begun().finish(2, "main", 1), Err(Refusal::NotSent { number: 1 }));
    }

    #[test]
    fn taking_over_needs_the_exact_consent_and_each_works_once() {
        let newest = sent();
        let consent = "take-over/h1/n1/1";
        let taken = newest.take_over(3, "h2", [&record()], consent).unwrap();
        assert_eq!((taken.hub_id.as_str(), taken.revision, taken.step_number), ("h2", 4, 2));
        assert_eq!(taken.open, newest.open, "what was sent is not forgotten");
        assert_eq!(taken.former_hubs, [("h1".to_owned(), 3)].into());
        let needed = "take-over/h2/n1/2".to_owned();
        let other = Refusal::OtherConsent { given: consent.to_owned(), needed };
        assert_eq!(taken.take_over(4, "h2", [], consent), Err(other));
    }

    #[test]
    fn a_record_reads_back_and_a_field_it_does_not_know_is_refused() {
        let text = serde_json::to_string(&sent()).unwrap();
        assert_eq!(serde_json::from_str::<Record<u8>>(&text).unwrap(), sent());
        let strange = text.replacen('{', r#"{"later":1,"#, 1);
        assert!(serde_json::from_str::<Record<u8>>(&strange).is_err());
    }
}
