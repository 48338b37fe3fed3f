//! The command line of `kubectl bsn`, the kubectl plug-in.

mod live;
mod status;
mod table;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Shows networks that bsn-operator runs.
#[derive(Debug, Parser)]
#[command(name = "kubectl bsn", bin_name = "kubectl bsn", version, about)]
pub struct KubectlCli {
    /// What to do.
    #[command(subcommand)]
    pub command: KubectlCommand,
}

/// What the plug-in can do.
#[derive(Debug, Subcommand)]
pub enum KubectlCommand {
    /// Show a network: its conditions, and each node's height, peers, voting power and certificate.
    Status(StatusArgs),
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Which cluster, as kubectl names it.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Kubeconfig file; by default what kubectl uses.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,

    /// Context in the kubeconfig; by default the current one.
    #[arg(long)]
    pub context: Option<String>,

    /// Namespace; by default the context's.
    #[arg(short, long)]
    pub namespace: Option<String>,

    /// Namespace the operator runs in.
    #[arg(long, default_value = "bsn-system")]
    pub operator_namespace: String,
}

/// Options of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Name of the BsnNetwork.
    pub network: String,

    /// Show it again every two seconds until interrupted.
    #[arg(short, long)]
    pub watch: bool,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Runs a command; an error is for people, with the next step where there is one.
pub async fn execute(cli: KubectlCli) -> Result<(), Box<dyn std::error::Error>> {
    match cli.command {
        KubectlCommand::Status(args) => status::run(args).await?,
    }
    Ok(())
}
