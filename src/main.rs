//! The operator's binary; what it does is in the library.

use std::process::ExitCode;

use bsn_operator::cli::{Cli, execute};
use bsn_operator::telemetry::logs;
use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    logs::init();
    match execute(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bsn-operator: {error}");
            ExitCode::FAILURE
        }
    }
}
