//! Quorum arithmetic.
//!
//! Each engine names its formula; what follows from a formula (the margin) is the same for all.

use serde::{Deserialize, Serialize};

/// How much of all voting power decides. Voters of an engine without weights have power 1 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Quorum {
    /// More than half: Raft (Fabric's etcdraft), clique.
    Majority,
    /// More than two thirds: `CometBFT`, Tendermint.
    MoreThanTwoThirds,
    /// Two thirds, rounded up: QBFT, IBFT.
    TwoThirdsRoundedUp,
    /// Fabric's BFT orderer: ⌈(n + f + 1) / 2⌉ with f = ⌊(n − 1) / 3⌋ (`smartbft/configverifier.go`).
    FabricBft,
    /// All but what may be Byzantine, n − ⌊(n − 1) / 3⌋: PBFT of FISCO BCOS.
    AllButThird,
}

impl Quorum {
    /// Every formula, for tests that go through all.
    pub const ALL: [Self; 5] = [
        Self::Majority,
        Self::MoreThanTwoThirds,
        Self::TwoThirdsRoundedUp,
        Self::FabricBft,
        Self::AllButThird,
    ];

    /// The least power that decides when all voters together have `total`.
    pub fn needed(self, total: u64) -> u64 {
        // Split so that 2 * total never overflows.
        let (thirds, rest) = (total / 3, total % 3);
        let faulty = total.saturating_sub(1) / 3;
        match self {
            Self::Majority => total / 2 + 1,
            Self::MoreThanTwoThirds => thirds * 2 + rest * 2 / 3 + 1,
            Self::TwoThirdsRoundedUp => thirds * 2 + rest,
            Self::FabricBft => (total + faulty + 1).div_ceil(2),
            Self::AllButThird => total - faulty,
        }
    }
}

/// The margin: the largest number of voters such that losing *any* that many still leaves quorum.
///
/// `powers` holds one entry per voter, in units of the engine's voting power; voters without weights
/// have 1 each. An empty set has margin 0.
pub fn margin(quorum: Quorum, powers: &[u64]) -> usize {
    let total: u64 = powers.iter().sum();
    let needed = quorum.needed(total);
    let mut by_power = powers.to_vec();
    // Losing the heaviest voters is the worst case of losing that many.
    by_power.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = total;
    let mut lost = 0;
    for power in by_power {
        left -= power;
        if left < needed {
            break;
        }
        lost += 1;
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_follow_the_published_table() {
        // n, then the margin by formula in the order of `Quorum::ALL`, equal powers.
        let table = [
            (1, [0, 0, 0, 0, 0]),
            (3, [1, 0, 1, 1, 0]),
            (4, [1, 1, 1, 1, 1]),
            (5, [2, 1, 1, 1, 1]),
            (6, [2, 1, 2, 2, 1]),
            (7, [3, 2, 2, 2, 2]),
            (10, [4, 3, 3, 3, 3]),
        ];
        for (n, expected) in table {
            for (quorum, expected) in Quorum::ALL.into_iter().zip(expected) {
                assert_eq!(margin(quorum, &vec![1; n]), expected, "n = {n}, {quorum:?}");
            }
        }
    }

    #[test]
    fn needs_more_than_two_thirds() {
        for (total, needed) in [(1, 1), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (4000, 2667)] {
            assert_eq!(Quorum::MoreThanTwoThirds.needed(total), needed, "total {total}");
        }
        let most = crate::engine::cometbft::MAX_TOTAL_POWER;
        assert!(Quorum::MoreThanTwoThirds.needed(most) > most / 3 * 2);
    }

    #[test]
    fn two_quorums_of_any_formula_always_share_a_voter() {
        for total in 1..2000 {
            for quorum in Quorum::ALL {
                let needed = quorum.needed(total);
                assert!(needed <= total && 2 * needed > total, "{quorum:?} of {total}: {needed}");
            }
        }
    }

    #[test]
    fn margin_counts_the_heaviest_voters_as_lost() {
        assert_eq!(margin(Quorum::MoreThanTwoThirds, &[10, 1, 1, 1]), 0);
        assert_eq!(margin(Quorum::MoreThanTwoThirds, &[3, 3, 3, 3, 1]), 1);
        assert_eq!(margin(Quorum::MoreThanTwoThirds, &[]), 0);
    }

    #[test]
    fn any_set_within_the_margin_keeps_quorum_and_some_set_beyond_does_not() {
        use proptest::prelude::*;
        proptest!(|(
            powers in proptest::collection::vec(1u64..50, 1..8),
            quorum in proptest::sample::select(&Quorum::ALL[..])
        )| {
            let total: u64 = powers.iter().sum();
            let needed = quorum.needed(total);
            let margin = margin(quorum, &powers);
            let mut beyond_fails = false;
            for lost in 0u32..(1 << powers.len()) {
                let left: u64 = powers.iter().enumerate()
                    .filter(|(i, _)| lost & (1 << i) == 0).map(|(_, p)| p).sum();
                let count = lost.count_ones() as usize;
                if count <= margin {
                    prop_assert!(left >= needed);
                }
                beyond_fails |= count == margin + 1 && left < needed;
            }
            prop_assert!(beyond_fails);
        });
    }
}
