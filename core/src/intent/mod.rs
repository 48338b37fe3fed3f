//! The protocol of the anchor: what is recorded of a step, where, and in which order, so that no crash, no
//! second leader and no restored backup makes a step happen twice or be forgotten.
//!
//! A network has a *primary* anchor on its hub and a *copy* in each member cluster where it has objects. Each
//! holds one [`Record`]; each is a store with compare-and-swap. The rules, in the order of a step's life:
//!
//! 1. **Reading.** A leader reads all copies, then the primary, live, once in its term; later in the term it
//!    reads again the primary, and the copies that a step is about. What was written by a request whose
//!    answer was lost, or that met a conflict, is read again and decided again.
//! 2. **Judging** ([`judge`]). Every write of the primary has the next *revision*, and a copy is an image of
//!    the primary at its revision. A copy of a lower revision lags: that is what a crash between two writes
//!    leaves, and harmless. A copy of a higher revision, or of the same and different, or any copy where there
//!    is no primary, means that the hub came from an older backup. A copy of another hub, beyond what was
//!    taken over from it, means that hub writes. Then nothing changes until a person consents.
//! 3. **Stamping.** A leader's first write has the epoch max(lease transitions, highest epoch read) + 1; all
//!    its later ones have the same. Nothing is written at start. An epoch is a leader's own only if the store
//!    said so: if that answer was lost, it stamps a higher one. Taking over stamps anew.
//! 4. **Begin.** A step is recorded in the primary as `Begun`, with the next number, if its ledger is at rest
//!    and no step was begun since it was decided. Nothing has left the operator; it may be withdrawn.
//! 5. **Resume.** A step of another leader is stamped with this one's epoch before anything else is done.
//! 6. **Sent.** The primary says `Sent` before anything leaves the operator. From here on the step ends only by
//!    proof that it is settled, or by a consent that names it.
//! 7. **Copies.** After the primary, and before the first effect, the copies of the step's places hold the same
//!    intent; and *every* copy has this leader's epoch (the *fence*, once in a term): a write that an earlier
//!    leader left under way fails from then on.
//! 8. **Effect.** Then the primary is read once more, live, and if it still says so and enough of the lease is
//!    left, the effect happens. A successor waits until the lease has ended before it does anything. A lost
//!    answer changes nothing: the world is observed, and if nothing is seen, the very same step is sent again.
//! 9. **End.** The intent leaves the primary, then the copies of its places.
//! 10. **Taking over** needs a consent that names hub, network and step number of the newest record found. It
//!     makes a new primary from that record, beyond all revisions and epochs found, open steps included. It is
//!     a step with a number, so a consent works once. The fence (7) then writes the hub's id into every copy; a
//!     former hub that writes before that is found out, and what it did then counts more ([`Found::newest`]).
//!
//! What follows from them, checked in every reachable state of `model`, which also runs defects made on
//! purpose, each of which breaks them:
//!
//! - One unsettled step per ledger; one step per number; no step twice under two numbers (S1, S6, S16).
//! - An effect only within the lease of the leader whose epoch is in the intent, recorded in the primary and in
//!   the copies of its places (S26). What cannot be excluded is a store restored between that leader's last
//!   read and the effect: then the other record still has it.
//! - Epochs, revisions and step numbers run backwards only by a restore. What was sent is never forgotten.
//! - A hub is called restored, or another one, only if it is. A leader is not fenced within its lease.
//! - From every state, once faults stop and asked-for consents are given, all gets done; then nobody writes, and a
//!   restarted operator writes nothing (S19).
//!
//! What they do not give:
//!
//! - Steps with no place but the hub leave no copy: if the hub is restored, they are forgotten. The same if every
//!   copy of a step's places is restored together with the primary.
//! - Every copy must be read once in a term, and fenced before its first effect: the one that is not may be the only
//!   one that knows of a later step. So a leader that starts while a place is lost begins nothing, anywhere; so does
//!   one that tried a step there or rested meanwhile. If the place is left out of the [`Writer`]'s, steps go on
//!   elsewhere, and nobody notices a hub that was restored to before its last steps there.
//! - A store must never give the same version to two contents. A restored etcd may: stop the operator first.
//! - Two hubs share no lease. A person who consents must see to it that the old hub is stopped, until the consent was
//!   used; afterwards it may come back, and finds itself shut out. A rebuilt hub needs a new id if the old may live.
//!
//! [`record`] has the facts and how one follows from another, [`refusal`] why not, [`writer`] the order of reads
//! and writes without IO.

pub mod judge;
#[cfg(test)]
mod model;
pub mod record;
pub mod refusal;
pub mod writer;
#[cfg(test)]
mod writer_tests;

pub use judge::{Found, Judgement};
pub use record::{Intent, NewStep, Phase, Record};
pub use refusal::{Category, Refusal};
pub use writer::{Answer, Op, Place, Task, Writer};
