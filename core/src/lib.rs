//! The pure part of bsn-operator.
//!
//! Nothing here talks to a network, reads a clock or spawns a task: the crate depends on neither
//! the Kubernetes client nor an async runtime, so the compiler checks its purity and an auditor
//! can read it alone. Time and randomness come in as arguments.

pub mod anchor;
pub mod budget;
pub mod consent;
#[cfg(test)]
mod counterexample;
pub mod disk;
pub mod engine;
pub mod evidence;
pub mod first_start;
pub mod forming;
pub mod guard;
pub mod hash;
pub mod intent;
pub mod membership;
pub mod names;
pub mod pki;
pub mod quantity;
pub mod quorum;
pub mod retention;
pub mod steps;
pub mod watch;
