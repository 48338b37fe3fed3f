//! Membership: what is the next safe step, and if there is none, why.
//!
//! [`next_step`] is a pure function of what is wanted, what is known, and how careful to be. It is asked
//! again after every effect, by every leader, after every crash: it remembers nothing, since all that must be
//! remembered is in the anchor and comes in as [`Observed`]. It decides in this order:
//!
//! 1. **A hub that came from a backup** does nothing until a person consents.
//! 2. **Settle.** A step that was begun is ended before anything else begins: what was sent waits until it
//!    took effect or never can; what was only recorded is judged again, then sent or given up; a restart waits
//!    until its node is back.
//! 3. **Cure.** A node that is *proved* down, and that its kubelet does not bring back or that gets another
//!    description, is restarted, voters one at a time, also while the chain stands and while 2 waits: that can
//!    only help.
//! 4. **Condemn.** A node whose replacement was asked for, or that is dead for good, is marked, for good.
//! 5. **Retire** nodes that go and that no ledger counts; **provision** nodes that are missing. They observe.
//! 6. **Replace.** Dead voters go and others come, in the order that leaves more to spare; a newcomer that
//!    signs gets its full power, one that never does is taken out.
//! 7. **Roll** what is described over the nodes: unready ones, observers, then voters, one by one.
//! 8. **Scale.** Voters are added, removed, and given other powers, one change at a time.
//!
//! Where another application is described whose blocks differ, **switch** takes the place of what adds nodes and
//! voters, until it is done: see [`switch`].
//!
//! A cluster whose API server cannot be asked is no evidence about its nodes, and a place where nothing can be done:
//! a restart there waits, and a restart elsewhere does not wait for it. Changes of voters have their effect on the
//! chain and are judged by what the chain shows, wherever the voter is.
//!
//! A step is begun, judged again, and only then takes effect; a consent is used with the effect it allows. A
//! step whose gates are closed lets the next kind be considered; if none is open, the answer is the gate
//! that most needs a person. The gates are judged on the *projected* state ([`projection`]), with only what is
//! *proved* counting as live.
//!
//! What it guarantees, in the words of `docs/safety.md` (where the limits are, too):
//!
//! - At most one change or voluntary restart is in flight per network (S1, S6).
//! - No step of ours leaves a ledger without quorum, given what was proved when it was taken, unless a person
//!   consented to exactly that (S2, S14, S20).
//! - Nobody is removed, moved or restarted because nothing is known of it (S4).
//! - A node follows and is caught up before it votes, and stops only when no ledger counts it (S5, S7).
//! - The last voter stays (S8), foreign voters are never touched (S25), a stall never bars its cure (S27).
//!
//! `model` has the data, `goals` says who stays, `gates` what must hold, `planner` the order. `check` (in
//! tests) explores what can happen.

#[cfg(test)]
mod check;
mod gates;
mod goals;
pub mod model;
mod planner;
pub mod play;
pub mod projection;
mod refusal;
mod switch;
mod warnings;

pub use model::{Decision, Desired, Observed, Policy, Refusal, Step};
pub use refusal::Class;
pub use warnings::{Warning, warnings};

/// The next safe step, or why there is none. See the [module](self).
pub fn next_step(desired: &Desired, observed: &Observed, policy: &Policy) -> Decision {
    planner::Planner::new(desired, observed, policy).decide()
}
