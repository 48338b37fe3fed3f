//! The protocol of steps: how a step is recorded before its effect, by one leader, in one history.
//!
//! The *primary* is the record on the hub; a *copy* is its image in a member cluster where the network has
//! objects. Both are replaced only by compare-and-swap. The rules:
//!
//! 1. **Begin.** A step is recorded in the primary with the next number, by the leader's epoch: above the
//!    transitions of its lease and every epoch in any record read. A start alone writes nothing.
//! 2. **Fence.** Before the first effect of a step the copies of its places hold it, and every copy carries
//!    this leader's epoch, so that nothing an earlier leader still has under way can change them.
//! 3. **Re-read.** A lost answer and a conflict end in the same way: read again and decide again. Nothing is
//!    overwritten blindly, and no number is used twice.
//! 4. **Lease.** An operation is begun only with so much of the lease left that it ends within it; a successor
//!    waits that long. An effect needs the step in the primary with this leader's own epoch, read live.
//! 5. **Settle.** `Begun` may be withdrawn; `Sent` only settled: it took effect, or never can, or a person
//!    consents to give it up. The primary is cleared before the copy: a copy that is *behind* is harmless at
//!    any distance.
//! 6. **Judge.** A copy that is *ahead* of the primary, or beside no primary, shows a hub that came from a
//!    backup; one of another hub shows another operator. Either stops every change, until a person consents
//!    by hub, network and step number; the take-over goes on from the newest record, forgets nothing that was
//!    sent, and works once.
//!
//! What follows, in every state the model check reaches (crashes between any two operations, answers lost
//! after commit, requests that arrive late, two leaders, restored primaries and copies, another hub): an effect
//! happens only for a step recorded in the primary and at its place; two unsettled steps of a ledger never
//! meet; a step's number never names two things unless a person consented after a restore; and once faults
//! stop, the steps get done and the stores become quiet.
//!
//! What it rests on: swaps are linearizable; a leader's clock runs close enough to true that its lease is not
//! longer for it than for its successor; evidence for a decision is observed after the record it names was
//! read.
//!
//! [`record`] has the data and its transitions, [`judge`] what several records say together, [`writer`] the
//! order of operations without IO; `src/intent.rs` does them on `ConfigMap`s.

pub mod judge;
#[cfg(test)]
mod model;
pub mod record;
pub mod refusal;
pub mod writer;
