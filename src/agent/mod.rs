//! What runs inside every node's pod, from the operator's own image.
//!
//! [`home`] is the init step: it decides whether the engine may start on this disk and assembles its
//! home. [`gateway`] is the sidecar: it serves the engine's RPC over mutual TLS and reports evidence.

pub mod gateway;
pub mod home;
pub mod paths;
