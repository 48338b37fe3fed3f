//! bsn-operator's developer commands: `cargo xtask <command>`.

mod generate;
mod lab;

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes everything that follows from the API types.
    Gen,
    /// Real local clusters on this machine, and faults in them.
    #[command(subcommand)]
    Lab(lab::Command),
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is in no repository")?;
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match Cli::parse().command {
        Command::Gen => generate::run(root),
        Command::Lab(command) => runtime()?.block_on(lab::run(command)),
    }
}
