//! The kubectl plug-in's binary; what it does is in the library.

use std::process::ExitCode;

use bsn_operator::cli::kubectl::{KubectlCli, execute};
use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match execute(KubectlCli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kubectl bsn: {error}");
            ExitCode::FAILURE
        }
    }
}
