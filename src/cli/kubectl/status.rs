//! `kubectl bsn status`.

use std::io::IsTerminal as _;
use std::time::Duration;

use jiff::Timestamp;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Serialize;

use super::live::fetch_view;
use super::table::render_status;
use super::{ClusterArgs, Output, StatusArgs};
use crate::api::BsnNetwork;
use crate::api::conditions::Raw;
use crate::apply::{ApiError, bounded};
use crate::view::{NetworkKey, NetworkView};

/// Time between two looks of `--watch`.
const INTERVAL: Duration = Duration::from_secs(2);
/// Clears a terminal and goes to its top left corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Why nothing was shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The kubeconfig.
    #[error("cannot use the kubeconfig: {0}")]
    Config(#[from] kube::config::KubeconfigError),
    /// The client.
    #[error("cannot connect to the cluster: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The API server.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// No such network.
    #[error("BsnNetwork {0} does not exist (kubectl get bsnnetworks -A lists all)")]
    Missing(NetworkKey),
    /// Printing.
    #[error("cannot print: {0}")]
    Print(#[from] serde_json::Error),
}

/// A network as shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// Which.
    #[serde(flatten)]
    pub key: NetworkKey,
    /// Id of its chain.
    pub chain_id: String,
    /// From its status.
    pub conditions: Vec<Raw>,
    /// From the operator's memory.
    pub live: Option<NetworkView>,
    /// Why there are no live numbers, if there are none.
    pub live_problem: Option<String>,
}

/// Shows a network, once or again and again.
pub async fn run(args: StatusArgs) -> Result<(), StatusError> {
    let (client, namespace) = connect(&args.cluster).await?;
    let key = NetworkKey { namespace, name: args.network.clone() };
    loop {
        let shown = async {
            let status = observe_status(&client, &args.cluster.operator_namespace, &key).await?;
            print_status(&args, &status)
        };
        match shown.await {
            Ok(()) if !args.watch => return Ok(()),
            Ok(()) => {}
            // A watcher outlives restarts of the API server; what will not pass ends it.
            Err(StatusError::Api(error)) if args.watch => eprintln!("{error}"),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

pub(super) async fn connect(args: &ClusterArgs) -> Result<(Client, String), StatusError> {
    let options =
        KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &args.kubeconfig {
        Some(path) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
        }
        None => Config::from_kubeconfig(&options).await?,
    };
    // Errors are shown rather than tried again for minutes.
    config.default_retry = false;
    let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| StatusError::Client(Box::new(error)))?;
    Ok((client, namespace))
}

async fn observe_status(
    client: &Client,
    operator_namespace: &str,
    key: &NetworkKey,
) -> Result<NetworkStatus, StatusError> {
    let networks = Api::<BsnNetwork>::namespaced(client.clone(), &key.namespace);
    let network = bounded(|| format!("get BsnNetwork {key}"), networks.get_opt(&key.name))
        .await?
        .ok_or_else(|| StatusError::Missing(key.clone()))?;
    let (live, live_problem) = match fetch_view(client, operator_namespace, key).await {
        Ok(view) => (Some(view), None),
        Err(error) => (None, Some(error.to_string())),
    };
    Ok(NetworkStatus {
        key: key.clone(),
        chain_id: network.spec.chain_id,
        conditions: network.status.map(|status| status.conditions).unwrap_or_default(),
        live,
        live_problem,
    })
}

fn print_status(args: &StatusArgs, status: &NetworkStatus) -> Result<(), StatusError> {
    match (args.output, args.watch) {
        // One line each, for programs that read a stream.
        (Output::Json, true) => println!("{}", serde_json::to_string(status)?),
        (Output::Json, false) => println!("{}", serde_json::to_string_pretty(status)?),
        (Output::Table, watch) => {
            let clear = if watch && std::io::stdout().is_terminal() { CLEAR } else { "" };
            println!("{clear}{}", render_status(status, Timestamp::now()));
        }
    }
    Ok(())
}
