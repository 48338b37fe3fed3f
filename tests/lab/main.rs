//! Stories on a real cluster: real API server, real kubelets, real chains.
//!
//! `cargo xtask test` brings the cluster up, installs the operator and runs these one at a time. To run
//! one again on a cluster that stayed up: `cargo xtask test --keep <name>`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "in a test a panic is the report"
)]

mod admission;
mod at_height;
mod bring_up;
mod certificates;
mod chain;
mod changes;
mod client;
mod deletion;
mod entry_node;
mod faults;
mod freezing;
mod gitops;
mod guard;
mod heals;
mod keys;
mod killed;
mod own_application;
mod proxy;
mod quiet;
mod refusals;
mod roll;
mod rpc;
mod sampler;
mod steps;
mod support;
mod templates;
