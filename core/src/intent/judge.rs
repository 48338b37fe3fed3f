//! What the records that were read say together.

use std::collections::BTreeMap;

use super::record::Record;
use super::refusal::Refusal;

/// How the primary is called in messages.
pub const PRIMARY: &str = "on the hub";
/// How what this process remembers of the primary is called in messages.
pub const MEMORY: &str = "as this operator last saw it";

/// All records that were read. The copies must be read *before* the primary: a leader writes the primary
/// first, so read the other way round a copy could look newer although nothing was restored.
#[derive(Debug, Clone)]
pub struct Found<'a, S> {
    /// In the primary.
    pub primary: Option<&'a Record<S>>,
    /// In the copies that exist, by place.
    pub copies: BTreeMap<&'a str, &'a Record<S>>,
    /// What this process last saw in the primary: as good as a copy, while it lives.
    pub memory: Option<&'a Record<S>>,
}

/// The judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// The primary is this hub's, and nothing is newer. Copies may lag behind it, by any number of writes.
    Ours,
    /// There is no record anywhere.
    Absent,
    /// Another network's record.
    AnotherNetwork {
        /// Its id.
        found: String,
        /// Where.
        place: String,
    },
    /// Another hub's record, from which this hub never took over; or a former hub still writes.
    AnotherHub {
        /// Its id.
        found: String,
        /// Where.
        place: String,
    },
    /// The hub was restored from an older backup: something is newer than the primary, or of the same
    /// revision and different.
    HubOlder {
        /// Newest step in the primary; `None` = there is no primary.
        primary_step: Option<u64>,
        /// Newest step in the newest copy.
        copy_step: u64,
        /// Where that is.
        place: String,
    },
    /// A leader of a later epoch has written.
    Fenced {
        /// Its epoch.
        by_epoch: u64,
    },
}

impl<'a, S: Clone + Eq> Found<'a, S> {
    /// Judges for a leader of this hub; `epoch` = the one it has stamped, if it has.
    pub fn judge(&self, hub_id: &str, network_id: &str, epoch: Option<u64>) -> Judgement {
        if let Some((place, other)) = self.all().find(|(_, one)| one.network_id != network_id) {
            let found = other.network_id.clone();
            return Judgement::AnotherNetwork { found, place: place.to_owned() };
        }
        let Some(primary) = self.primary else {
            return match self.newest() {
                None => Judgement::Absent,
                Some((place, newest)) => Self::older(None, place, newest),
            };
        };
        if primary.hub_id != hub_id {
            return Self::another(PRIMARY, primary);
        }
        if let Some(own) = epoch
            && primary.epoch > own
        {
            return Judgement::Fenced { by_epoch: primary.epoch };
        }
        for (place, copy) in self.beside() {
            let late = primary.former_hubs.get(&copy.hub_id).is_some_and(|l| copy.revision <= *l);
            if copy.hub_id != hub_id && !late {
                return Self::another(place, copy);
            }
        }
        let diverged = |copy: &Record<S>| copy.revision == primary.revision && *copy != *primary;
        match self.beside().max_by_key(|(_, copy)| (copy.revision, diverged(copy))) {
            Some((place, copy)) if copy.revision > primary.revision || diverged(copy) => {
                Self::older(Some(primary.step_number), place, copy)
            }
            _ => Judgement::Ours,
        }
    }

    /// The record to go on from when a person consents to take over: the one of the highest revision in the
    /// history that had effects last. Where two hubs wrote, revisions alone do not tell.
    pub fn newest(&self) -> Option<(&'a str, &'a Record<S>)> {
        let alive = self.all().filter(|one| !self.all().any(|other| outranks(other, *one)));
        // Of equals the last: a copy comes after the primary, since effects depend on copies.
        alive.max_by_key(|(_, record)| record.revision)
    }

    /// The judgement as a refusal of every change; `None` = changes are allowed.
    pub fn refusal(&self, judgement: Judgement) -> Option<Refusal> {
        let consent =
            || self.newest().map(|(_, newest)| newest.take_over_consent()).unwrap_or_default();
        Some(match judgement {
            Judgement::Ours => return None,
            Judgement::Absent => Refusal::Absent,
            Judgement::AnotherNetwork { found, place } => Refusal::AnotherNetwork { found, place },
            Judgement::AnotherHub { found, place } => {
                Refusal::AnotherHub { found, place, consent: consent() }
            }
            Judgement::HubOlder { primary_step, copy_step, place } => {
                Refusal::HubOlder { primary_step, copy_step, place, consent: consent() }
            }
            Judgement::Fenced { by_epoch } => Refusal::Fenced { by_epoch },
        })
    }

    /// Every record, with where it is: the primary, then what is beside it.
    pub fn all(&self) -> impl Iterator<Item = (&'a str, &'a Record<S>)> {
        self.primary.map(|record| (PRIMARY, record)).into_iter().chain(self.beside())
    }

    fn beside(&self) -> impl Iterator<Item = (&'a str, &'a Record<S>)> {
        let memory = self.memory.map(|record| (MEMORY, record));
        memory.into_iter().chain(self.copies.iter().map(|(place, copy)| (*place, *copy)))
    }

    fn older(primary_step: Option<u64>, place: &str, copy: &Record<S>) -> Judgement {
        let place = place.to_owned();
        Judgement::HubOlder { primary_step, copy_step: copy.step_number, place }
    }

    fn another(place: &str, record: &Record<S>) -> Judgement {
        Judgement::AnotherHub { found: record.hub_id.clone(), place: place.to_owned() }
    }
}

/// Whether what `one` says is void since `other` was found.
fn outranks<S>(other: (&str, &Record<S>), one: (&str, &Record<S>)) -> bool {
    let is_copy = |place: &str| place != PRIMARY && place != MEMORY;
    // The other hub went on after it was taken over from, in a place that the new hub has not fenced. So the
    // new hub has had no effect yet, and the other one may.
    let goes_on = |last: &u64| other.1.revision > *last;
    let unfenced = is_copy(other.0) && one.1.former_hubs.get(&other.1.hub_id).is_some_and(goes_on);
    // The other hub took over from this one, which went on with no copy knowing.
    let taken_over = !is_copy(one.0) && other.1.former_hubs.contains_key(&one.1.hub_id);
    unfenced || taken_over
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(hub_id: &str, revision: u64) -> Record<u8> {
        Record { revision, step_number: revision / 2, ..Record::new(hub_id, "n1", 1) }
    }

    fn judge(primary: Option<&Record<u8>>, copy: Option<&Record<u8>>) -> Judgement {
        let copies = copy.into_iter().map(|copy| ("a", copy)).collect();
        Found { primary, copies, memory: None }.judge("h1", "n1", Some(1))
    }

    #[test]
    fn a_copy_that_lags_is_no_sign_of_a_restored_hub_and_one_that_is_newer_is() {
        let primary = record("h1", 6);
        assert_eq!(judge(Some(&primary), None), Judgement::Ours);
        assert_eq!(judge(Some(&primary), Some(&record("h1", 2))), Judgement::Ours);
        assert_eq!(judge(Some(&primary), Some(&primary)), Judgement::Ours);
        let older = |primary_step, copy_step| Judgement::HubOlder {
            primary_step,
            copy_step,
            place: "a".into(),
        };
        assert_eq!(judge(Some(&primary), Some(&record("h1", 8))), older(Some(3), 4));
        assert_eq!(judge(None, Some(&record("h1", 8))), older(None, 4));
        let diverged = Record { step_number: 2, ..primary.clone() };
        assert_eq!(judge(Some(&primary), Some(&diverged)), older(Some(3), 2));
        assert_eq!(judge(None, None), Judgement::Absent);
    }

    #[test]
    fn a_former_hubs_copy_is_late_until_that_hub_writes_again() {
        let another =
            |place: &str| Judgement::AnotherHub { found: "h0".into(), place: place.into() };
        assert_eq!(judge(Some(&record("h0", 6)), None), another(PRIMARY));
        let mut primary = record("h1", 6);
        assert_eq!(judge(Some(&primary), Some(&record("h0", 5))), another("a"));
        primary.former_hubs.insert("h0".into(), 4);
        assert_eq!(judge(Some(&primary), Some(&record("h0", 4))), Judgement::Ours);
        assert_eq!(judge(Some(&primary), Some(&record("h0", 5))), another("a"));
    }

    /// The model found that a new hub, hindered by the old one, forgot what that had sent meanwhile.
    #[test]
    fn of_two_hubs_the_one_that_had_effects_last_is_gone_on_from() {
        let mut new = record("h1", 7);
        new.former_hubs.insert("h0".into(), 4);
        let old = record("h0", 6);
        let newest = |primary, copy| {
            let copies = [("a", copy)].into();
            let found = Found { primary: Some(primary), copies, memory: Some(primary) };
            found.newest().map(|(_, record)| record.hub_id.clone())
        };
        assert_eq!(newest(&new, &old), Some("h0".into()), "the new hub has not fenced that copy");
        let far = record("h0", 9);
        assert_eq!(
            newest(&far, &new),
            Some("h1".into()),
            "no copy knows what the old hub went on with"
        );
    }

    #[test]
    fn a_later_leader_fences_and_another_network_is_no_ones() {
        let primary = Record { epoch: 2, ..record("h1", 6) };
        assert_eq!(judge(Some(&primary), None), Judgement::Fenced { by_epoch: 2 });
        let other = Record { network_id: "n2".into(), ..record("h1", 6) };
        let expected = Judgement::AnotherNetwork { found: "n2".into(), place: "a".into() };
        assert_eq!(judge(Some(&primary), Some(&other)), expected);
    }

    #[test]
    fn what_a_process_remembers_counts_as_a_copy() {
        let (primary, memory) = (record("h1", 4), record("h1", 6));
        let found =
            Found { primary: Some(&primary), copies: BTreeMap::new(), memory: Some(&memory) };
        let judgement = found.judge("h1", "n1", None);
        assert!(matches!(&judgement, Judgement::HubOlder { place, .. } if place == MEMORY));
        let refusal = found.refusal(judgement).unwrap();
        assert_eq!(refusal.consent(), Some("take-over/h1/n1/3"));
    }
}
