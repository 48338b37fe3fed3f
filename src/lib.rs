//! bsn-operator: runs permissioned blockchain networks on Kubernetes.
//!
//! Every controller has the same five steps: *observe* (all reads), *validate*, *plan* (pure, in
//! `bsn-core`), *build* (pure, Kubernetes objects), *apply* (effects in a written order), and ends with
//! *report* (status, on change only). `docs/architecture.md` draws how data flows.

pub mod agent;
pub mod anchor;
pub mod api;
pub mod apply;
pub mod build;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod engine;
pub mod evidence;
pub mod http;
pub mod intent;
pub mod labels;
pub mod lease;
pub mod pki;
mod signals;
pub mod telemetry;
pub mod turns;
pub mod view;
