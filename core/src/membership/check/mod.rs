//! The model check: everything that may happen to small networks, exhaustively.
//!
//! `world` is the truth; `moves` all that may happen next; `rules` what must never happen; `search` goes
//! through every state, and from each to the goal; `defects` are made on purpose and must be caught.
//!
//! `cargo test -p bsn-core membership` runs a reduced bound; `BSN_MODEL=full` (as in `cargo xtask soak`) the
//! whole one. Both print what they explored.

#![allow(clippy::struct_excessive_bools, reason = "a world is made of facts that hold or do not")]

pub mod defects;
mod moves;
mod rules;
mod scenarios;
mod search;
mod world;
