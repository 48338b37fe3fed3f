//! The command line of `kubectl bsn`, the kubectl plug-in.

mod bundle;
mod cluster;
mod explain;
mod history;
mod live;
mod plan;
mod plan_disks;
mod status;
mod steps;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// The page that says what to do about a closed gate; its headings are the gates' names.
pub const GATE_PAGE: &str = "docs/reasons/gates.md";

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
    /// Show the steps to what a file describes, and how many validators may be down after each.
    ///
    /// Ends with 0 if there is nothing to do, 2 if there are steps, 3 if a step is refused, 1 if it failed.
    Plan(PlanArgs),
    /// Say what the operator does for a network now, or what it waits for and what would help.
    Explain(NetworkArgs),
    /// List the steps that were taken, when, and how long they took.
    History(NetworkArgs),
    /// Print what another owner needs to join the chain with nodes of their own: genesis, peers, and a network to apply.
    Bundle(BundleArgs),
    /// Let nodes run in another cluster, or take it out again.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
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

/// How to print a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanOutput {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For a comment of a pull request.
    Markdown,
}

/// Options of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Name of the BsnNetwork, if the file holds several.
    pub network: Option<String>,

    /// File with the new description (YAML, several documents allowed); `-` = standard input.
    #[arg(short, long)]
    pub filename: PathBuf,

    /// File with the old description: the plan is made without a cluster, for a network that is healthy and just
    /// as this file says.
    #[arg(long)]
    pub from: Option<PathBuf>,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t = PlanOutput::Table)]
    pub output: PlanOutput,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// How to print a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BundleOutput {
    /// For `kubectl apply`.
    Yaml,
    /// For programs.
    Json,
}

/// Options of `bundle`.
#[derive(Debug, Clone, Args)]
pub struct BundleArgs {
    /// Name of the BsnNetwork whose chain is to be joined.
    pub network: String,

    /// Name for the other owner's BsnNetwork; by default the same.
    #[arg(long)]
    pub name: Option<String>,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t = BundleOutput::Yaml)]
    pub output: BundleOutput,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Options of commands about one network.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// Name of the BsnNetwork.
    pub network: String,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Runs a command; an error is for people, with the next step where there is one.
pub async fn execute(cli: KubectlCli) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match cli.command {
        KubectlCommand::Status(args) => status::run(args).await?,
        KubectlCommand::Plan(args) => return Ok(plan::run(&args).await?),
        KubectlCommand::Explain(args) => explain::run(&args).await?,
        KubectlCommand::History(args) => history::run(&args).await?,
        KubectlCommand::Bundle(args) => bundle::run(&args).await?,
        KubectlCommand::Cluster(command) => cluster::run(&command).await?,
    }
    Ok(ExitCode::SUCCESS)
}
