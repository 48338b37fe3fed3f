//! What runs inside every node's pod, from the operator's own image.
//!
//! [`guard`] is the init step: it decides whether the engine may start, by the disk and by what the other
//! nodes have seen, and assembles the engine's home ([`home`]). [`gateway`] is the sidecar: it serves the
//! engine's RPC over mutual TLS and reports evidence.

pub mod gateway;
pub mod guard;
mod home;
pub mod paths;
