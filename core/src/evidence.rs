//! Evidence: what was observed about a node and a chain, and what follows from it.
//!
//! The gateway of every node answers one request with a [`NodeEvidence`]. The operator keeps, per
//! node, the last one with the time it *received* it, on its own monotonic clock: two machines'
//! clocks are never compared.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::cometbft::signing::SignedAt;

/// Version of the protocol between operator and gateway. The operator understands this one and the
/// two before it.
pub const PROTOCOL: u32 = 3;

/// What an engine says about itself, in the same words for every engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EngineReport {
    /// Id of the chain the node runs.
    pub chain_id: String,
    /// The engine's version.
    pub version: String,
    /// Id in the peer-to-peer network.
    pub node_id: String,
    /// Address of the consensus key.
    pub address: String,
    /// Height of the newest block stored. 0 = none yet.
    pub height: u64,
    /// Time in that block's header (RFC 3339); set by the chain, not by this machine.
    pub block_time: String,
    /// Height of the newest block the application knows of. Not proof that it was applied: the built-in
    /// key-value store counts a block before the engine has accepted its outcome.
    pub applied_height: u64,
    /// The height that consensus works on: one above `height`, except for a moment in each block, and
    /// for good on a frozen chain.
    pub consensus_height: u64,
    /// The engine's own word; false on a stalled chain too.
    pub catching_up: bool,
    /// Number of connected peers.
    pub peers: u64,
    /// Voting power at the newest height; 0 = does not vote.
    pub voting_power: u64,
    /// How many of the newest final blocks each validator signed, by address, as this node knows the
    /// chain; `None` = it could not be asked. At most [`SIGNED_WINDOW`]. New in protocol 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<BTreeMap<String, u64>>,
    /// Who votes, and who does, as this node knows the chain; `None` = it could not be asked. New in
    /// protocol 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerReport>,
    /// Ids of the connected peers. New in protocol 3.
    #[serde(default)]
    pub peer_ids: Vec<String>,
}

/// The members of a ledger, as one node knows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerReport {
    /// Voting power of each voter, by address, at the newest height the node can tell.
    pub powers: BTreeMap<String, u64>,
    /// Height of the newest final commit that was looked at; 0 = none.
    pub final_height: u64,
    /// Height of the newest of these commits that each voter signed.
    pub last_signed: BTreeMap<String, u64>,
    /// Transactions in the node's pool that would change the members, in standard base64. Only those of an
    /// application whose transactions the gateway can read.
    #[serde(default)]
    pub pool_changes: Vec<String>,
}

/// Blocks looked at for signatures.
pub const SIGNED_WINDOW: u64 = 12;

/// The answer of a node's gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeEvidence {
    /// [`PROTOCOL`] of the gateway.
    pub protocol: u32,
    /// Id of the identity the gateway runs for.
    pub identity_id: String,
    /// The engine's report, or why there is none.
    pub engine: EngineAnswer,
    /// The guard's word on the start of this pod; absent before it spoke. New in protocol 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardReport>,
    /// Hash of the template the pod was made from. New in protocol 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_hash: Option<String>,
    /// When the served certificate ends (RFC 3339).
    pub certificate_not_after: String,
    /// Version of the agents in the pod. Not told by the first ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<String>,
}

/// How far a guard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuardState {
    /// It will decide by itself.
    Waiting,
    /// It refuses, and a person must help.
    Refused,
    /// The engine may start.
    Passed,
}

/// What a guard says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardReport {
    /// How far it is.
    pub state: GuardState,
    /// For people: why, and what to do.
    pub message: String,
    /// Nonce in the disk's marker, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// A gateway's answer to another node's guard: what its engine has seen of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VotesAnswer {
    /// Its engine does not run.
    NotStarted,
    /// What it has seen.
    Seen {
        /// Height of its newest block.
        head: u64,
        /// The highest vote of the key.
        vote: Option<SignedAt>,
    },
}

/// The engine answered its gateway, or did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EngineAnswer {
    /// It answered all questions.
    Report(Box<EngineReport>),
    /// It did not: not started, starting, stopped, or stuck. Not proof of any of them.
    Silent(String),
}

impl EngineAnswer {
    /// The report, if there is one.
    pub fn report(&self) -> Option<&EngineReport> {
        match self {
            Self::Report(report) => Some(report),
            Self::Silent(_) => None,
        }
    }
}

/// How the head of a chain moved, as far as anyone saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeadTrack {
    height: u64,
    /// When the height was first seen, since the start of the observer's monotonic clock.
    since: Duration,
    /// When observing began; nothing is known about the time before.
    began: Option<Duration>,
    advanced: bool,
    /// Running estimate of the time between blocks.
    interval: Option<Duration>,
}

/// Is the chain making blocks?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainLiveness {
    /// Watched too briefly to say.
    Unknown,
    /// The head advanced within the window.
    Live,
    /// It did not, although it was watched for the whole window.
    Standing,
}

/// The shortest window after which a head that does not move is called standing.
pub const MIN_WINDOW: Duration = Duration::from_secs(10);

impl HeadTrack {
    /// Records the highest head any node reported at `now`.
    pub fn observe(&mut self, height: u64, now: Duration) {
        self.began.get_or_insert(now);
        if self.height == 0 {
            // The first head: how long it took to come says nothing about the time between blocks.
            self.height = height;
            self.since = now;
            return;
        }
        if height > self.height {
            let blocks = u32::try_from(height - self.height).unwrap_or(u32::MAX);
            let sample = now.saturating_sub(self.since) / blocks;
            // A slow average: one late block must not stretch the window much, and the end of a long stall no
            // more than that.
            let average = |old| (old * 7 + sample.min(self.window())) / 8;
            self.interval = Some(self.interval.map_or(sample, average));
            self.height = height;
            self.since = now;
            self.advanced = true;
        }
    }

    /// Records that nobody answered at `now`: starts the watch, moves nothing.
    pub fn observe_silence(&mut self, now: Duration) {
        self.began.get_or_insert(now);
    }

    /// The highest head seen; 0 = none.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// Average time between blocks, if two were seen.
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// How long the head has stood, at `now`.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since.max(self.began.unwrap_or(now)))
    }

    /// The time without a block after which the chain counts as standing: 10 s or five blocks.
    pub fn window(&self) -> Duration {
        self.interval.map_or(MIN_WINDOW, |interval| (interval * 5).max(MIN_WINDOW))
    }

    /// Whether the chain makes blocks, judged at `now`.
    pub fn liveness(&self, now: Duration) -> ChainLiveness {
        if self.began.is_none() {
            ChainLiveness::Unknown
        } else if self.age(now) >= self.window() {
            ChainLiveness::Standing
        } else if self.advanced {
            ChainLiveness::Live
        } else {
            ChainLiveness::Unknown
        }
    }
}

/// Tells a frozen chain from one that merely stands, by the nodes' newest reports. Each node of a frozen
/// one has a block stored that it cannot apply, so its consensus still works on that height, while its
/// process lives and calls itself healthy. Where voters are missing, consensus works on the next height.
pub fn frozen<'a>(reports: impl IntoIterator<Item = &'a EngineReport>) -> bool {
    let mut any = false;
    for report in reports {
        if report.height == 0 || report.consensus_height > report.height {
            return false;
        }
        any = true;
    }
    any
}

/// A node is in sync when it trails the head by at most this many blocks.
pub const MAX_LAG_BLOCKS: u64 = 5;

/// Whether a node follows the chain whose highest head is `head`.
pub fn in_sync(report: &EngineReport, head: u64) -> bool {
    !report.catching_up && report.height > 0 && report.height + MAX_LAG_BLOCKS >= head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn a_head_seen_once_proves_nothing() {
        let mut track = HeadTrack::default();
        assert_eq!(track.liveness(secs(0)), ChainLiveness::Unknown);
        track.observe(500, secs(3));
        assert_eq!(track.liveness(secs(4)), ChainLiveness::Unknown);
        track.observe(501, secs(5));
        assert_eq!(track.liveness(secs(5)), ChainLiveness::Live);
    }

    #[test]
    fn a_head_that_stands_for_the_window_is_standing_until_it_moves() {
        let mut track = HeadTrack::default();
        track.observe(500, secs(0));
        assert_eq!(track.liveness(secs(10)), ChainLiveness::Standing);
        track.observe(500, secs(20));
        assert_eq!(track.liveness(secs(20)), ChainLiveness::Standing);
        track.observe(501, secs(21));
        assert_eq!(track.liveness(secs(21)), ChainLiveness::Live);
    }

    #[test]
    fn silence_is_watched_too_but_not_before_the_watch_began() {
        let mut track = HeadTrack::default();
        track.observe_silence(secs(100));
        assert_eq!(track.liveness(secs(101)), ChainLiveness::Unknown);
        assert_eq!(track.liveness(secs(110)), ChainLiveness::Standing);
    }

    #[test]
    fn the_wait_for_the_first_block_is_no_block_interval() {
        let mut track = HeadTrack::default();
        track.observe_silence(secs(0));
        track.observe(1, secs(100));
        assert_eq!(track.liveness(secs(100)), ChainLiveness::Unknown);
        track.observe(2, secs(101));
        assert_eq!(track.interval(), Some(secs(1)));
        assert_eq!(track.liveness(secs(101)), ChainLiveness::Live);
    }

    #[test]
    fn slow_chains_get_a_longer_window() {
        let mut track = HeadTrack::default();
        for block in 0..40 {
            track.observe(1 + block, secs(6 * block));
        }
        assert_eq!(track.interval(), Some(secs(6)));
        assert_eq!(track.window(), secs(30));
    }

    #[test]
    fn the_end_of_a_long_stall_is_no_block_interval() {
        let mut track = HeadTrack::default();
        for block in 0..20 {
            track.observe(1 + block, secs(block));
        }
        track.observe(21, secs(1000));
        assert!(track.interval() < Some(secs(3)), "{:?}", track.interval());
        assert!(track.window() < secs(15));
    }

    #[test]
    fn a_lower_answer_does_not_move_the_head_back() {
        let mut track = HeadTrack::default();
        track.observe(10, secs(0));
        track.observe(7, secs(1));
        assert_eq!(track.height(), 10);
    }

    #[test]
    fn a_chain_is_frozen_only_if_no_node_could_apply_its_block() {
        let report = |height, consensus_height| EngineReport {
            chain_id: "c".into(),
            version: "v".into(),
            node_id: "n".into(),
            address: "a".into(),
            height,
            block_time: String::new(),
            applied_height: height,
            consensus_height,
            catching_up: false,
            peers: 3,
            voting_power: 1,
            signed: None,
            ledger: None,
            peer_ids: Vec::new(),
        };
        assert!(frozen(&[report(9, 9), report(9, 9)]));
        assert!(!frozen(&[report(9, 9), report(9, 10)]), "one could apply it: a stall");
        assert!(!frozen(&[report(0, 1)]) && !frozen(&[]));
    }
}
