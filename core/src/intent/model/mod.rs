//! The model check: everything that may happen to an anchor, its copies and its leaders, exhaustively.
//!
//! `world` is the truth and `rules` what must never happen to it; `moves` are all that may happen next, with
//! the real [`Writer`](super::Writer) in each process; `search` goes through every state, and from each to
//! rest; `defects` are made on purpose and must be caught; `scenarios` says what is explored.
//!
//! `cargo test intent` runs a reduced bound, `BSN_MODEL=full` a larger one. Both print what they explored.

mod defects;
mod moves;
mod rules;
mod scenarios;
mod search;
mod world;
