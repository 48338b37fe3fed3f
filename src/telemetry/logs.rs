//! Logs: JSON lines for machines, plain text at a terminal.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// What is logged by default. The client would tell every failed request a second time.
const DEFAULT: &str = "info,kube_client::client::builder=off";

/// Starts logging to standard error. `RUST_LOG` sets what is logged, as in
/// [`EnvFilter`]; by default `info` and above.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).init();
    }
}
