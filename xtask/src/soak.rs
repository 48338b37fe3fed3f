//! `cargo xtask soak` and `cargo xtask bench`: what takes too long, or measures, and so is no test.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::programs::cargo;

/// Runs the model checks with their full bounds; they print what they explored.
pub fn run() -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--release", "--locked", "--package", "bsn-core", "--lib"]);
    // Named by their modules; `--nocapture` shows the numbers of states.
    cargo.args(["--", "check::", "model::", "switch::", "budget::"]);
    cargo.args(["--nocapture", "--test-threads", "1"]);
    succeed(cargo.env("BSN_MODEL", "full"), "the model checks")
}

/// Runs the benchmarks.
pub fn bench() -> Result<()> {
    succeed(cargo().args(["bench", "--locked", "--package", "bsn-core"]), "the benchmarks")
}

fn succeed(command: &mut Command, what: &str) -> Result<()> {
    if command.status().with_context(|| format!("running {what}"))?.success() {
        Ok(())
    } else {
        bail!("{what} failed: see above")
    }
}
