//! The command line of `bsn-operator`. (That of the kubectl plug-in is in [`kubectl`].)

pub mod kubectl;
pub(crate) mod render;
mod run;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use bsn_core::guard::PodIdentity;
use bsn_core::names::is_dns_label;
use clap::{Args, Parser, Subcommand};

/// Runs permissioned blockchain networks on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "bsn-operator", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the binary can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator.
    Run(RunArgs),
    /// Print every object the operator would make for the networks in a file, without any cluster.
    Render(RenderArgs),
    /// In a node's pod: decide whether the engine may start, and make its home.
    Guard(GuardArgs),
    /// In a node's pod: serve the engine's RPC over mutual TLS and report evidence.
    Gateway(GatewayArgs),
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Namespace of the operator's own objects: its Lease and the hub id.
    #[arg(long, env = "BSN_NAMESPACE", default_value = "bsn-system")]
    pub namespace: String,

    /// Name of this replica in the Lease; in a cluster, the pod's name.
    #[arg(long, env = "BSN_POD_NAME", default_value = "bsn-operator-local")]
    pub identity: String,

    /// Image of the agents in every node's pod: this operator's own.
    #[arg(long, env = "BSN_AGENT_IMAGE")]
    pub agent_image: String,

    /// Registry and path that stand before the default images of engines, such as
    /// `registry.example.com/mirror`. Empty = the images' own registries.
    #[arg(long, env = "BSN_IMAGE_PREFIX", default_value = "")]
    pub image_prefix: String,

    /// The namespaces in which networks are looked after, separated by commas; empty = all.
    #[arg(long, env = "BSN_WATCH_NAMESPACES", default_value = "", value_parser = parse_namespaces)]
    pub watch_namespaces: Namespaces,

    /// How many networks may restart nodes at the same time, so that a mistake in a change of many is seen on
    /// the first few.
    #[arg(long, env = "BSN_MAX_CONCURRENT_ROLLS", default_value = "5")]
    pub max_rolls: std::num::NonZeroU16,

    /// Where to serve /livez, /readyz and /metrics.
    #[arg(long, env = "BSN_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Where to serve live numbers for `kubectl bsn`. Keep it on loopback: it is reached by
    /// port-forward, which the API server authorises.
    #[arg(long, env = "BSN_STATUS_LISTEN", default_value = "127.0.0.1:8082")]
    pub status_listen: SocketAddr,
}

/// Names of namespaces; none = all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces(pub Vec<String>);

fn parse_namespaces(text: &str) -> Result<Namespaces, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let names: BTreeSet<&str> = names.collect();
    let wrong = |name: &&str| name.len() > 63 || !is_dns_label(name);
    match names.iter().copied().find(wrong) {
        Some(name) => Err(format!("{name:?} is no name of a namespace")),
        None => Ok(Namespaces(names.into_iter().map(str::to_owned).collect())),
    }
}

/// Options of `render`.
#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    /// File with BsnNetwork objects (YAML, several documents allowed); `-` = standard input.
    #[arg(short, long)]
    pub filename: PathBuf,

    /// Namespace for networks that name none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,

    /// Image of the agents.
    #[arg(
        long,
        env = "BSN_AGENT_IMAGE",
        default_value = "ghcr.io/bsn-operator/bsn-operator:0.1.0"
    )]
    pub agent_image: String,

    /// Namespace of the operator, which its nodes admit.
    #[arg(long, env = "BSN_NAMESPACE", default_value = "bsn-system")]
    pub operator_namespace: String,
}

fn parse_identity(text: &str) -> Result<PodIdentity, String> {
    serde_json::from_str(text).map_err(|err| format!("not an identity: {err}"))
}

/// Options of `guard`. Everything else is found under fixed paths.
#[derive(Debug, Clone, Args)]
pub struct GuardArgs {
    /// The identity this pod runs for, as JSON.
    #[arg(long, env = "BSN_IDENTITY", value_parser = parse_identity)]
    pub identity: PodIdentity,

    /// Name of the machine.
    #[arg(long, env = "BSN_MACHINE")]
    pub machine: String,

    /// Root of all fixed paths (for tests).
    #[arg(long, hide = true, default_value = "/")]
    pub root: PathBuf,

    /// How long to wait for the peers' names to resolve, in seconds, before starting without them.
    #[arg(long, default_value_t = 60)]
    pub dns_wait_seconds: u64,
}

/// Options of `gateway`. Certificates and keys are found under fixed paths.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// The identity this pod runs for, as JSON.
    #[arg(long, env = "BSN_IDENTITY", value_parser = parse_identity)]
    pub identity: PodIdentity,

    /// Where to serve the gateway (HTTPS, mutual TLS).
    #[arg(long, default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,

    /// Where to answer the kubelet's probes (plain HTTP).
    #[arg(long, default_value = "0.0.0.0:8081")]
    pub probe_listen: SocketAddr,

    /// Hash of the template this pod was made from, to be reported.
    #[arg(long, env = "BSN_TEMPLATE_HASH")]
    pub template_hash: Option<String>,

    /// The engine's RPC.
    #[arg(long, default_value = "127.0.0.1:26657")]
    pub engine_rpc: SocketAddr,

    /// Refuse transactions that change the validators, except from the operator (for the built-in
    /// key-value store, which checks no signatures).
    #[arg(long)]
    pub guard_validators: bool,

    /// Root of all fixed paths (for tests).
    #[arg(long, hide = true, default_value = "/")]
    pub root: PathBuf,
}

/// Runs a command; an error is for people, with the next step where there is one.
pub async fn execute(cli: Cli) -> Result<(), Box<dyn std::error::Error>> {
    match cli.command {
        Command::Run(args) => run::run(args).await?,
        Command::Render(args) => print!("{}", render::render(&args)?),
        Command::Guard(args) => crate::agent::guard::run(args).await?,
        Command::Gateway(args) => crate::agent::gateway::run(args).await?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_separated_by_commas_and_none_are_all() {
        let read = |text| parse_namespaces(text).map(|names| names.0);
        assert_eq!(read(" trade,ledger,, ledger"), Ok(vec!["ledger".into(), "trade".into()]));
        assert_eq!(read(""), Ok(vec![]));
        for wrong in ["Ledger", "a b", "-a", "a-", "*"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
