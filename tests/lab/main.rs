//! Stories on a real cluster: real API server, real kubelets, real chains.
//!
//! `cargo xtask test` brings the clusters up, installs the operator and runs these: first those in `side_by_side`,
//! several at once, then the others, one at a time, those in `clusters` last. So a story is alone unless it is put
//! there. To run one again on clusters that stayed up: `cargo xtask test --keep <name>`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "in a test a panic is the report"
)]

mod audit;
mod bring_up;
mod chain;
mod client;
mod clusters;
mod faults;
mod freezing;
mod guard;
mod installed;
mod killed;
mod metrics;
mod namespaces;
mod network_policies;
mod owner;
mod plugin;
mod proxy;
mod quiet;
mod roll;
mod rpc;
mod sampler;
mod side_by_side;
mod support;
mod templates;
mod unparsable;
