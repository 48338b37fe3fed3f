//! Clusters: a client for each, and a cache per kind that one watch each keeps current.
//!
//! [`registry`] knows all clusters by name; the hub, in which the operator runs, has the name "". Of the others,
//! each has a task of its own ([`member`]) that reads its kubeconfig, connects, probes ([`probe`]) and watches; what it
//! finds becomes conditions in [`judge`]; [`identity`] keeps one from being used under two names. [`rights`] is the one table of what the operator may do there. [`proofs`]
//! sees to it that the agents' image can be run where nodes are to be ([`image`] judges). [`resolver`] knows the addresses of
//! names by which nodes are reached, [`machines`] which machines are being drained. [`namespaces`] says
//! where the hub is watched.

pub mod client;
pub mod identity;
pub mod image;
pub mod judge;
pub mod kubeconfig;
pub mod machines;
pub mod member;
pub mod namespaces;
pub mod probe;
pub mod proofs;
pub mod registry;
pub mod resolver;
pub mod rights;
mod streams;
pub mod watches;

pub use machines::Machines;
pub use namespaces::Scope;
pub use proofs::Proofs;
pub use registry::Clusters;
pub use resolver::Resolver;
pub use watches::{Caches, Objects, Triggers, Watches};
