//! bsn-operator's developer commands: `cargo xtask <command>`.

mod demo;
mod generate;
mod lab;
#[cfg(test)]
mod links;
mod metrics_page;
mod programs;
mod reasons;
mod soak;
mod stories;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// From nothing to a running network of four validators, on a local cluster. Needs root.
    Demo(demo::DemoArgs),
    /// All tests: format and lints, the quick tier, then stories on a local cluster (needs root).
    Test(test::TestArgs),
    /// Real local clusters on this machine, and faults in them.
    #[command(subcommand)]
    Lab(lab::Command),
    /// The long versions: the model checks with their full bounds. Minutes to an hour.
    Soak,
    /// Benchmarks of the pure core: time and allocations.
    Bench,
    /// Writes everything that follows from the API types, and the index of reasons.
    Gen,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(args).await,
        Command::Test(args) => test::run(args).await,
        Command::Lab(command) => lab::run(command).await,
        Command::Soak => soak::run(),
        Command::Bench => soak::bench(),
        Command::Gen => generate::run(&programs::root()),
    }
}
