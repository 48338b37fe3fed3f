//! `CometBFT` 0.38.
//!
//! Sources are named by path in github.com/cometbft/cometbft at v0.38.25.

mod block;
pub mod config;
pub mod genesis;
pub mod keys;
pub mod requests;
pub mod settle;
pub mod signing;
pub mod status;
pub mod transaction;
pub mod verify;

use crate::quorum::Quorum;

/// Port of the peer-to-peer listener.
pub const P2P_PORT: u16 = 26656;
/// Port of the RPC listener; on loopback only, the gateway serves it to others.
pub const RPC_PORT: u16 = 26657;
/// Port on which a user's application speaks ABCI, on loopback inside the pod.
pub const ABCI_PORT: u16 = 26658;

/// Longest chain id in characters (`types/genesis.go`, `MaxChainIDLen`).
pub const MAX_CHAIN_ID: usize = 50;
/// Bound on the sum of all voting powers: `MaxInt64 / 8` (`types/validator_set.go`, `MaxTotalVotingPower`).
pub const MAX_TOTAL_POWER: u64 = i64::MAX as u64 / 8;
/// Voting power of a validator that names none.
pub const DEFAULT_POWER: u64 = 1000;

/// Name of a network's one ledger, where ledgers are named.
pub const LEDGER: &str = "main";

/// First patch release supported: earlier ones were retracted (0.38.0–4, 0.38.14) or have known
/// consensus bugs.
pub const OLDEST_PATCH: u32 = 15;

/// The quorum of Tendermint consensus (`types/validation.go`, `verifyCommitBatch`).
pub const QUORUM: Quorum = Quorum::MoreThanTwoThirds;

/// A supported version of the engine, `0.38.<patch>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    patch: u32,
}

/// Why a version was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "CometBFT version {given:?} is not supported; use 0.38.{OLDEST_PATCH} or a later 0.38 release, for example 0.38.25"
)]
pub struct VersionError {
    given: String,
}

impl Version {
    /// Reads `0.38.<patch>` and checks the range.
    pub fn parse(text: &str) -> Result<Self, VersionError> {
        text.strip_prefix("0.38.")
            .and_then(|patch| patch.parse().ok())
            .filter(|patch| *patch >= OLDEST_PATCH)
            .map(|patch| Self { patch })
            .ok_or_else(|| VersionError { given: text.to_owned() })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0.38.{}", self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_the_supported_line() {
        assert_eq!(Version::parse("0.38.25").unwrap().to_string(), "0.38.25");
        for bad in ["0.38.4", "0.37.15", "1.0.1", "0.38", "v0.38.25", "0.38.x", "0.38.14"] {
            assert!(Version::parse(bad).is_err(), "{bad}");
        }
    }
}
