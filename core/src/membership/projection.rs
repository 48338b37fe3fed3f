//! A ledger's voters as they are, and as they would be after a change.

use super::model::{Change, Ledger, Liveness, MemberKey, Policy};
use crate::names::NodeName;
use crate::quorum::Quorum;

/// Voters of a ledger and what is proved of them.
#[derive(Debug, Clone)]
pub struct Projection<'a> {
    quorum: Quorum,
    voters: Vec<Voter<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Voter<'a> {
    /// `None` = a newcomer, which has no name on the ledger yet.
    key: Option<&'a MemberKey>,
    node: Option<&'a NodeName>,
    power: u64,
    live: bool,
}

/// What is proved of a voter now. Evidence that is old, or on which our nodes disagree, proves nothing.
pub fn liveness(ledger: &Ledger, key: &MemberKey, policy: &Policy) -> Liveness {
    match ledger.members.get(key) {
        Some(member) if is_fresh(ledger, policy) => member.liveness,
        _ => Liveness::Unknown,
    }
}

/// What is known of a ledger is fresh, and all own nodes say the same. A ledger without members is one of
/// which nothing was read.
pub fn is_fresh(ledger: &Ledger, policy: &Policy) -> bool {
    !ledger.members.is_empty() && ledger.agreed && ledger.age_seconds <= policy.fresh_seconds
}

impl<'a> Projection<'a> {
    /// The voters as they are.
    pub fn of(ledger: &'a Ledger, policy: &Policy) -> Self {
        let voters = ledger.members.iter().map(|(key, member)| Voter {
            key: Some(key),
            node: member.node.as_ref(),
            power: member.power,
            live: liveness(ledger, key, policy) == Liveness::Live,
        });
        Self { quorum: ledger.quorum, voters: voters.collect() }
    }

    /// The voters after `change`; a newcomer counts as live or as failed.
    #[must_use]
    pub fn with(mut self, change: &Change, newcomer_live: bool) -> Self {
        match change {
            Change::Add { power, .. } => self.voters.push(Voter {
                key: None,
                node: None,
                power: *power,
                live: newcomer_live,
            }),
            Change::SetPower { member, power } => {
                for voter in self.voters.iter_mut().filter(|voter| voter.key == Some(member)) {
                    voter.power = *power;
                }
            }
            Change::Remove { member } => self.voters.retain(|voter| voter.key != Some(member)),
        }
        self
    }

    /// The voters while this node is down.
    #[must_use]
    pub fn without_node(mut self, node: &NodeName) -> Self {
        for voter in self.voters.iter_mut().filter(|voter| voter.node == Some(node)) {
            voter.live = false;
        }
        self
    }

    /// The voters if all that are not live were.
    #[must_use]
    pub fn all_live(mut self) -> Self {
        for voter in &mut self.voters {
            voter.live = true;
        }
        self
    }

    /// How many voters there are.
    pub fn count(&self) -> usize {
        self.voters.len()
    }

    /// All voting power.
    pub fn total(&self) -> u64 {
        self.voters.iter().map(|voter| voter.power).sum()
    }

    /// Voting power proved live.
    pub fn live(&self) -> u64 {
        self.voters.iter().filter(|voter| voter.live).map(|voter| voter.power).sum()
    }

    /// Voting power that decides.
    pub fn needed(&self) -> u64 {
        self.quorum.needed(self.total())
    }

    /// Whether the live voters decide.
    pub fn has_quorum(&self) -> bool {
        self.count() > 0 && self.live() >= self.needed()
    }

    /// How many live voters may be lost, whichever they are; `None` = there is no quorum now.
    pub fn spare(&self) -> Option<usize> {
        if !self.has_quorum() {
            return None;
        }
        let mut powers: Vec<u64> =
            self.voters.iter().filter(|voter| voter.live).map(|voter| voter.power).collect();
        // Losing the heaviest is the worst case of losing that many.
        powers.sort_unstable_by(|a, b| b.cmp(a));
        let (mut left, needed) = (self.live(), self.needed());
        let lost = powers.iter().take_while(|power| {
            left -= **power;
            left >= needed
        });
        Some(lost.count())
    }

    /// The largest power at which a newcomer may enter so that quorum holds without it: at most a
    /// hundredth of `target`, at least 1. `None` = there is none.
    pub fn entry_power(&self, target: u64) -> Option<u64> {
        let (total, live) = (self.total(), self.live());
        let fits = |power: u64| live >= self.quorum.needed(total.saturating_add(power));
        let (mut low, mut high) = (1, (target / 100).max(1));
        if !fits(low) {
            return None;
        }
        // What is needed never falls as the total grows.
        while low < high {
            let middle = high - (high - low) / 2;
            if fits(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::model::{Head, Member};
    use proptest::prelude::*;

    fn ledger(quorum: Quorum, voters: &[(u64, Liveness)]) -> Ledger {
        let member = |(power, liveness): &(u64, Liveness)| Member {
            power: *power,
            node: None,
            liveness: *liveness,
            signed: 12,
        };
        Ledger {
            quorum,
            weights: true,
            members: voters
                .iter()
                .enumerate()
                .map(|(n, voter)| (format!("k{n}"), member(voter)))
                .collect(),
            agreed: true,
            age_seconds: 0,
            head: Head::Producing,
            height: 100,
            pending: None,
            followers: [].into(),
        }
    }

    #[test]
    fn unknown_voters_do_not_count_as_live() {
        use Liveness::{Live, ProvedDown, Unknown};
        let policy = Policy::default();
        let four =
            ledger(Quorum::MoreThanTwoThirds, &[(1, Live), (1, Live), (1, Live), (1, Unknown)]);
        assert_eq!(Projection::of(&four, &policy).spare(), Some(0));
        let three = ledger(Quorum::MoreThanTwoThirds, &[(1, Live), (1, Live), (1, ProvedDown)]);
        assert_eq!(Projection::of(&three, &policy).spare(), None);
        let old = Ledger { age_seconds: 11, ..four };
        assert_eq!(Projection::of(&old, &policy).live(), 0);
    }

    #[test]
    fn a_newcomer_enters_with_a_power_that_quorum_does_not_need() {
        use Liveness::{Live, ProvedDown};
        let policy = Policy::default();
        let entry = |voters: &[(u64, Liveness)]| {
            let ledger = ledger(Quorum::MoreThanTwoThirds, voters);
            Projection::of(&ledger, &policy).entry_power(1000)
        };
        assert_eq!(entry(&[(1000, Live); 4]), Some(10));
        assert_eq!(entry(&[(1000, Live); 1]), Some(10));
        assert_eq!(entry(&[(1, Live)]), None);
        let one_down = [(1000, Live), (1000, Live), (1000, Live), (1000, ProvedDown)];
        assert_eq!(entry(&one_down), Some(10));
        assert_eq!(entry(&[(5, Live), (5, Live), (4, ProvedDown)]), None);
    }

    proptest! {
        #[test]
        fn entry_power_is_the_largest_that_fits(
            voters in proptest::collection::vec((1u64..2000, any::<bool>()), 1..7),
            target in 1u64..5000,
        ) {
            let voters: Vec<_> = voters
                .into_iter()
                .map(|(power, live)| (power, if live { Liveness::Live } else { Liveness::Unknown }))
                .collect();
            let ledger = ledger(Quorum::MoreThanTwoThirds, &voters);
            let policy = Policy::default();
            let projection = Projection::of(&ledger, &policy);
            // As mechanics has it: 3 * live > 2 * (total + p).
            let fits = |p: u64| 3 * projection.live() > 2 * (projection.total() + p);
            let expected = (1..=(target / 100).max(1)).rev().find(|p| fits(*p));
            prop_assert_eq!(projection.entry_power(target), expected);
        }
    }
}
