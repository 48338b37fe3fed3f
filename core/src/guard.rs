//! May an engine start? The guard's decision.
//!
//! The guard runs at every creation of a node's pod, also when the operator is away: after evictions,
//! forced deletions and cold starts. It compares the disk with the identity the pod runs for, and asks the
//! other nodes what they have seen of this key. Its rules, in the order of [`next_start`]:
//!
//! 1. A disk without a marker may be used only with a first-start token, and only if it is empty.
//! 2. A disk with a marker must be this identity's, with its signing state.
//! 3. A vote of this key beyond what the disk records, seen by anybody, forbids the start: the disk is
//!    an old copy, or another process signs with this key.
//! 4. On the machine of the last start, one node that answers is enough. On another machine, the key must
//!    be seen silent first: the old process may still live.
//! 5. Silence is no veto on an intact disk: after a while the engine starts without answers. Otherwise
//!    a cold start of all machines would never end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::cometbft::signing::SignedAt;

/// File name of the marker at the root of the disk.
pub const MARKER_FILE: &str = "bsn-identity.json";
/// File name of the record of the machine of the last start.
pub const MACHINE_FILE: &str = "bsn-last-machine";
/// How long the guard waits for answers, or for a key to be silent on a standing chain.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// On another machine: blocks that must have passed without this key.
pub const SILENT_BLOCKS: u64 = 5;

/// Whom a pod runs for. Part of its template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodIdentity {
    /// Random id of the network.
    pub network_id: String,
    /// Random id of the identity.
    pub identity_id: String,
    /// Consensus public key, as the engine writes it.
    pub consensus_key: String,
    /// SHA-256 of the genesis the data grows from.
    pub genesis_hash: String,
    /// Uid of the disk's `PersistentVolumeClaim`. A pod cannot see it by itself.
    pub disk_uid: String,
}

/// What is written on a disk when it is first used; never changed after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Marker {
    /// Whose disk it is.
    pub identity: PodIdentity,
    /// Of the token that allowed the first use.
    pub nonce: String,
}

/// Allows one first use of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Token {
    /// Random; never issued twice.
    pub nonce: String,
    /// For whom.
    pub identity: PodIdentity,
    /// The signing state to begin with: nothing signed for a new identity; beyond the chain's head for
    /// one that lost its disk.
    pub signing_state: SignedAt,
}

/// A file as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// No such file.
    Absent,
    /// Readable.
    Present(T),
    /// There, and not readable; with the parser's word.
    Damaged(String),
}

/// What was found on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedDisk {
    /// The marker.
    pub marker: Found<Marker>,
    /// The engine's signing state.
    pub signing_state: Found<SignedAt>,
    /// Anything else is there: blocks, an application's data, strange files.
    pub other_files: bool,
    /// The machine of the last start; `None` = never started.
    pub last_machine: Option<String>,
}

/// What another node answered to the question for votes of this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAnswer {
    /// Nothing.
    Silent,
    /// Its engine does not run yet, so it can have seen nothing.
    NotStarted,
    /// What it has seen.
    Seen {
        /// Height of its newest block.
        head: u64,
        /// The highest vote of this key.
        vote: Option<SignedAt>,
    },
}

/// What the guard has seen since it began. Times are since then, on a monotonic clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    head: u64,
    head_moved: Duration,
    advanced: bool,
    vote: Option<SignedAt>,
    voted: Duration,
    /// The head when the newest vote of the key was first seen.
    head_at_vote: u64,
    answered: bool,
}

impl Watch {
    /// Takes in one round of answers.
    pub fn observe(&mut self, answers: &[PeerAnswer], at: Duration) {
        let seen = answers.iter().filter_map(|answer| match answer {
            PeerAnswer::Seen { head, vote } => Some((*head, *vote)),
            _ => None,
        });
        let Some(head) = seen.clone().map(|(head, _)| head).max() else { return };
        let vote = seen.filter_map(|(_, vote)| vote).max();
        if !self.answered {
            // The first answers: what happened before is not known to be recent, nor to be old.
            *self = Self {
                head,
                head_moved: at,
                vote,
                voted: at,
                head_at_vote: head,
                answered: true,
                advanced: false,
            };
            return;
        }
        if head > self.head {
            self.head = head;
            self.head_moved = at;
            self.advanced = true;
        }
        if vote > self.vote {
            self.vote = vote;
            self.voted = at;
            self.head_at_vote = self.head;
        }
    }

    /// The highest vote seen.
    pub fn vote(&self) -> Option<SignedAt> {
        self.vote
    }

    /// Whether the key was silent for long enough for its old process to count as ended.
    fn silent(&self, now: Duration) -> bool {
        // A chain that waits for this very key stands still, also if it advanced before.
        let passed = self.advanced && self.head >= self.head_at_vote + SILENT_BLOCKS;
        passed || self.quiet(now) >= PATIENCE
    }

    /// Time since anything new was seen: a block or a vote of the key.
    fn quiet(&self, now: Duration) -> Duration {
        now.saturating_sub(self.voted.max(self.head_moved))
    }
}

/// All that the decision depends on.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// The disk.
    pub disk: &'a ObservedDisk,
    /// Whom the pod runs for.
    pub identity: &'a PodIdentity,
    /// The token, if one is there.
    pub token: Option<&'a Token>,
    /// This machine.
    pub machine: &'a str,
    /// The newest round of answers, one for each other node of the network.
    pub answers: &'a [PeerAnswer],
    /// All rounds so far.
    pub watch: &'a Watch,
    /// Time since the guard began.
    pub elapsed: Duration,
}

/// What the guard does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Write this signing state, then the marker, and start.
    FirstStart(SignedAt),
    /// The signing state was written, the marker was not (a crash between the two): write the marker,
    /// and start. The engine never ran: it starts only after the marker is there.
    FinishFirstStart,
    /// The disk is this identity's: start.
    Start,
    /// Look again soon.
    Wait(Wait),
    /// Do not start until something changes. The guard goes on looking.
    Refuse(Refusal),
}

/// What the guard waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Nobody has answered yet; it starts without an answer after [`PATIENCE`].
    ForPeers,
    /// The pod came from another machine, where the old process may still sign.
    ForSilence,
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ForPeers => write!(
                f,
                "no other node answers yet; starting without an answer after {} s",
                PATIENCE.as_secs()
            ),
            Self::ForSilence => write!(
                f,
                "the node ran on another machine; waiting until {SILENT_BLOCKS} blocks have passed without its vote, \
                 or {} s on a standing chain",
                PATIENCE.as_secs()
            ),
        }
    }
}

/// Why an engine may not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The marker is another identity's.
    #[error(
        "DiskOfAnotherIdentity: this disk belongs to identity {found} of network {found_network}, not to {expected}; \
         attach the right volume"
    )]
    OtherIdentity {
        /// Identity in the marker.
        found: String,
        /// Network in the marker.
        found_network: String,
        /// Identity the pod runs for.
        expected: String,
    },
    /// Same identity, but something it was first used with differs.
    #[error(
        "DiskOfAnotherChain: the {what} this disk was first used with is {found}, now it is {expected}; attach the \
         right volume"
    )]
    OtherTerms {
        /// Which of them.
        what: &'static str,
        /// In the marker.
        found: String,
        /// Given to the pod.
        expected: String,
    },
    /// The marker is there, the signing state is not, or not readable.
    #[error(
        "SigningStateLost: the disk was used before, but the record of what this key signed is {0}; starting could \
         sign twice. Restore the whole volume, or replace the node"
    )]
    SigningStateLost(String),
    /// Data without a marker: not a disk this operator prepared.
    #[error(
        "DiskNotEmpty: the disk holds data but no {MARKER_FILE}; it is not this node's. Attach the right volume, or an \
         empty one"
    )]
    NotEmpty,
    /// The marker can't be read.
    #[error("MarkerDamaged: {MARKER_FILE} cannot be read: {0}; restore the whole volume")]
    MarkerDamaged(String),
    /// An empty disk, and nobody allowed its use.
    #[error(
        "DiskEmpty: the disk is empty, and nothing allows this node to start on an empty disk: its key may have signed \
         on the one it had. Attach that volume"
    )]
    NoToken,
    /// The token is not for this pod.
    #[error("TokenOfAnother: the first-start token differs in {0} from what this pod runs for")]
    OtherToken(&'static str),
    /// Somebody has seen votes the disk does not know of.
    #[error(
        "SignedBeyondDisk: other nodes have seen this key sign at {seen} (height/round/step), the disk records {recorded} \
         only: it is an older copy, or another process runs with this key. Attach the newest volume"
    )]
    SignedBeyondDisk {
        /// The highest vote seen.
        seen: SignedAt,
        /// What the disk records, or would record.
        recorded: SignedAt,
    },
}

impl Refusal {
    /// The reason in one word.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OtherIdentity { .. } => "DiskOfAnotherIdentity",
            Self::OtherTerms { .. } => "DiskOfAnotherChain",
            Self::SigningStateLost(_) => "SigningStateLost",
            Self::NotEmpty => "DiskNotEmpty",
            Self::MarkerDamaged(_) => "MarkerDamaged",
            Self::NoToken => "DiskEmpty",
            Self::OtherToken(_) => "TokenOfAnother",
            Self::SignedBeyondDisk { .. } => "SignedBeyondDisk",
        }
    }
}

/// Decides by the disk, the token, and what the other nodes have seen.
pub fn next_start(input: &Input<'_>) -> Decision {
    let decided = match &input.disk.marker {
        Found::Damaged(why) => Err(Refusal::MarkerDamaged(why.clone())),
        Found::Absent => first_start(input),
        Found::Present(marker) => later_start(input, marker),
    };
    decided.unwrap_or_else(Decision::Refuse)
}

/// A disk without a marker.
fn first_start(input: &Input<'_>) -> Result<Decision, Refusal> {
    if input.disk.other_files {
        return Err(Refusal::NotEmpty);
    }
    let token = input.token.ok_or(Refusal::NoToken)?;
    if let Some((what, ..)) = differences(&token.identity, input.identity).next() {
        return Err(Refusal::OtherToken(what));
    }
    check_votes(input, token.signing_state)?;
    match &input.disk.signing_state {
        Found::Absent => Ok(Decision::FirstStart(token.signing_state)),
        Found::Present(state) if *state == token.signing_state => Ok(Decision::FinishFirstStart),
        // Not what this step writes: somebody else's, or an engine's that ran without a marker.
        Found::Present(_) | Found::Damaged(_) => Err(Refusal::NotEmpty),
    }
}

/// A disk that was used before.
fn later_start(input: &Input<'_>, marker: &Marker) -> Result<Decision, Refusal> {
    let (found, expected) = (&marker.identity, input.identity);
    if found.identity_id != expected.identity_id || found.network_id != expected.network_id {
        return Err(Refusal::OtherIdentity {
            found: found.identity_id.clone(),
            found_network: found.network_id.clone(),
            expected: expected.identity_id.clone(),
        });
    }
    if let Some((what, found, expected)) = differences(found, expected).next() {
        let (found, expected) = (found.to_owned(), expected.to_owned());
        return Err(Refusal::OtherTerms { what, found, expected });
    }
    let recorded = match &input.disk.signing_state {
        Found::Present(state) => *state,
        Found::Absent => return Err(Refusal::SigningStateLost("missing".to_owned())),
        Found::Damaged(why) => return Err(Refusal::SigningStateLost(format!("damaged ({why})"))),
    };
    check_votes(input, recorded)?;

    let nobody = !input.answers.iter().any(|answer| matches!(answer, PeerAnswer::Seen { .. }));
    let moved = input.disk.last_machine.as_deref().is_some_and(|last| last != input.machine);
    Ok(match (nobody, moved) {
        // There is nobody to ask.
        _ if input.answers.is_empty() && !moved => Decision::Start,
        (true, false) if input.elapsed >= PATIENCE => Decision::Start,
        // Whoever answered before may be gone for good; the key was not seen for as long.
        (true, true) if input.watch.quiet(input.elapsed) >= PATIENCE => Decision::Start,
        (true, _) => Decision::Wait(Wait::ForPeers),
        (false, false) => Decision::Start,
        (false, true) if input.watch.silent(input.elapsed) => Decision::Start,
        (false, true) => Decision::Wait(Wait::ForSilence),
    })
}

/// Terms in which two identities differ: name, the first's, the second's.
fn differences<'a>(
    one: &'a PodIdentity,
    other: &'a PodIdentity,
) -> impl Iterator<Item = (&'static str, &'a str, &'a str)> {
    // Without `..`: a new field must find its place here.
    let PodIdentity { network_id, identity_id, consensus_key, genesis_hash, disk_uid } = one;
    [
        ("network", network_id, &other.network_id),
        ("identity", identity_id, &other.identity_id),
        ("consensus key", consensus_key, &other.consensus_key),
        ("genesis", genesis_hash, &other.genesis_hash),
        ("disk's uid", disk_uid, &other.disk_uid),
    ]
    .into_iter()
    .filter(|(_, one, other)| one != other)
    .map(|(what, one, other)| (what, one.as_str(), other.as_str()))
}

fn check_votes(input: &Input<'_>, recorded: SignedAt) -> Result<(), Refusal> {
    let newest = input.answers.iter().filter_map(|answer| match answer {
        PeerAnswer::Seen { vote, .. } => *vote,
        PeerAnswer::Silent | PeerAnswer::NotStarted => None,
    });
    match newest.chain(input.watch.vote()).max() {
        Some(seen) if seen > recorded => Err(Refusal::SignedBeyondDisk { seen, recorded }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
