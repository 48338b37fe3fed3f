//! Quorum arithmetic.
//!
//! The formula belongs to the engine; what follows from it (the margin) is the same for all.

/// Says how much voting power a set of voters needs to decide.
pub trait QuorumRule {
    /// The least power that decides when all voters together have `total`.
    fn needed(&self, total: u64) -> u64;
}

/// The margin: the largest number of voters such that losing *any* that many still leaves quorum.
///
/// `powers` holds one entry per voter, in units of the engine's voting power; voters without weights
/// have 1 each. An empty set has margin 0.
pub fn margin(rule: &impl QuorumRule, powers: &[u64]) -> usize {
    let total: u64 = powers.iter().sum();
    let needed = rule.needed(total);
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
    use crate::engine::cometbft::MoreThanTwoThirds;

    #[test]
    fn margin_of_equal_powers_follows_the_published_table() {
        // Tolerated faults of CometBFT with equal powers, n = 1, 3, 4, 5, 6, 7, 10.
        for (n, expected) in [(1, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 2), (10, 3)] {
            assert_eq!(margin(&MoreThanTwoThirds, &vec![1000; n]), expected, "n = {n}");
        }
    }

    #[test]
    fn margin_counts_the_heaviest_voters_as_lost() {
        assert_eq!(margin(&MoreThanTwoThirds, &[10, 1, 1, 1]), 0);
        assert_eq!(margin(&MoreThanTwoThirds, &[3, 3, 3, 3, 1]), 1);
        assert_eq!(margin(&MoreThanTwoThirds, &[]), 0);
    }

    #[test]
    fn any_set_within_the_margin_keeps_quorum_and_some_set_beyond_does_not() {
        use proptest::prelude::*;
        proptest!(|(powers in proptest::collection::vec(1u64..50, 1..8))| {
            let rule = MoreThanTwoThirds;
            let total: u64 = powers.iter().sum();
            let needed = rule.needed(total);
            let margin = margin(&rule, &powers);
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
