//! Proxies in the lab: before a cluster's API server, and before a node's gateway.
//!
//! Both stand on the cluster's control-plane address, so that a partition cuts them off as it does the API
//! server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Client;
use kube::api::{Api, ListParams};

use super::{Effects, Proxy, Upstream, tls};
use crate::lab::pki::Pki;
use crate::lab::{Lab, Redirect, command, layout};
use crate::operator;

/// Labels of the operator's pods, as the chart gives them.
const OPERATOR_PODS: &str = "app.kubernetes.io/name=bsn-operator";
/// Port of the gateways: `labels::GATEWAY_PORT` of the operator.
const GATEWAY_PORT: u16 = 8443;
/// A new replica is ready within seconds, an old one ends within its grace of 30 s, one after the other.
const ROLLOUT_DEADLINE: Duration = Duration::from_mins(4);
const POLL: Duration = Duration::from_millis(500);

/// A proxy before a cluster's API server, and whether the operator is sent through it.
///
/// Dropping it sends the operator's next pods to the API server again, also when a test fails. If the test is
/// killed, `operator::install` does it, or
/// `kubectl set env -n bsn-system deployment/bsn-operator KUBERNETES_SERVICE_HOST- KUBERNETES_SERVICE_PORT-`.
pub struct ApiServerProxy {
    proxy: Proxy,
    lab: Lab,
    cluster: usize,
    diverted: bool,
}

/// Starts a proxy before the API server of `cluster`. Clients that trust the cluster's CA, as every pod
/// does, take it for the API server.
pub async fn before_api_server(lab: &Lab, cluster: usize) -> Result<ApiServerProxy> {
    // Checks the number as well.
    lab.client(cluster).await?;
    let pki = Pki::ensure(lab.layout(), cluster)?;
    let ip = layout::control_plane_ip(cluster);
    let (cert, key) = pki.issue_server("kube-apiserver-proxy", IpAddr::V4(ip))?;
    let upstream = Upstream {
        address: SocketAddr::new(IpAddr::V4(ip), layout::API_PORT),
        server_name: ip.to_string(),
        tls: Arc::new(tls::client_config(&pki.ca_cert()?)?),
        effects: Effects::ByMethod,
    };
    let listen = SocketAddr::new(IpAddr::V4(ip), 0);
    let proxy = Proxy::start(listen, tls::server_config(&cert, &key)?, upstream).await?;
    Ok(ApiServerProxy { proxy, lab: lab.clone(), cluster, diverted: false })
}

impl ApiServerProxy {
    /// The proxy.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Sends the operator through the proxy: its pods are made anew with the proxy's address for that of
    /// the API server. Returns when all replicas are ready and no pod of before is left.
    ///
    /// A container's own variables win over those the kubelet gives it for the `kubernetes` Service, and
    /// kube-rs reads the address from them (`Config::incluster_env`) and the CA from the mounted file.
    pub async fn divert_operator(&mut self) -> Result<()> {
        // Before the try: if it fails half-way, it must be undone as well.
        self.diverted = true;
        let address = self.proxy.address();
        let host = format!("KUBERNETES_SERVICE_HOST={}", address.ip());
        let port = format!("KUBERNETES_SERVICE_PORT={}", address.port());
        set_operator_env(&self.lab, self.cluster, &[&host, &port])
            .context("sending the operator through the proxy")?;
        self.await_rollout().await
    }

    /// Sends the operator to the API server itself again. Returns when no pod uses the proxy any more.
    pub async fn restore_operator(&mut self) -> Result<()> {
        restore_operator(&self.lab, self.cluster)?;
        self.diverted = false;
        self.await_rollout().await
    }

    async fn await_rollout(&self) -> Result<()> {
        let client = self.lab.client(self.cluster).await?;
        let end = Instant::now() + ROLLOUT_DEADLINE;
        loop {
            let state = rollout(&client).await?;
            if state.is_none() {
                return Ok(());
            }
            if Instant::now() >= end {
                let why = state.unwrap_or_default();
                bail!("the operator's pods are not replaced after {ROLLOUT_DEADLINE:?}: {why}");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for ApiServerProxy {
    fn drop(&mut self) {
        if self.diverted
            && let Err(error) = restore_operator(&self.lab, self.cluster)
        {
            tracing::warn!(error = format!("{error:#}"), "the operator still uses the proxy");
        }
    }
}

/// What is missing until all pods of the operator are those of its Deployment now; `None` = nothing.
async fn rollout(client: &Client) -> Result<Option<String>> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), operator::NAMESPACE);
    let deployment = deployments.get(operator::NAME).await.context("reading the Deployment")?;
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let status = deployment.status.unwrap_or_default();
    let observed = status.observed_generation >= deployment.metadata.generation;
    if !observed || status.updated_replicas != wanted || status.ready_replicas != wanted {
        let (updated, ready) = (status.updated_replicas, status.ready_replicas);
        return Ok(Some(format!("{updated:?} new, {ready:?} ready of {wanted:?}")));
    }
    // A pod that ends is not counted any more, and may still lead.
    let there = operator_pods(client).await?.len();
    let wanted = wanted.and_then(|wanted| usize::try_from(wanted).ok()).unwrap_or(1);
    Ok((there != wanted).then(|| format!("{there} pods instead of {wanted}")))
}

async fn operator_pods(client: &Client) -> Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(client.clone(), operator::NAMESPACE);
    let selected = ListParams::default().labels(OPERATOR_PODS);
    Ok(pods.list(&selected).await.context("listing the operator's pods")?.items)
}

fn set_operator_env(lab: &Lab, cluster: usize, variables: &[&str]) -> Result<()> {
    let mut kubectl = Command::new(lab.tool("kubectl"));
    kubectl.env("KUBECONFIG", lab.kubeconfig(cluster));
    kubectl.args(["set", "env", "--request-timeout=10s", "-n", operator::NAMESPACE]);
    kubectl.arg(format!("deployment/{}", operator::NAME)).args(variables);
    command::run_command(&mut kubectl).map(drop)
}

/// Undoes what [`ApiServerProxy::divert_operator`] did; harmless if it did nothing.
pub(crate) fn restore_operator(lab: &Lab, cluster: usize) -> Result<()> {
    set_operator_env(lab, cluster, &["KUBERNETES_SERVICE_HOST-", "KUBERNETES_SERVICE_PORT-"])
        .context("sending the operator to the API server itself")
}

/// The two sides of a proxy before a gateway.
pub struct GatewayTls {
    /// With the node's own certificate and key: the operator has pinned the key.
    pub server: rustls::ServerConfig,
    /// With a certificate of the role `operator` in the node's network.
    pub client: rustls::ClientConfig,
}

/// A proxy before a node's gateway, through which all replicas of the operator go, and nobody else:
/// otherwise other nodes would ask with the operator's rights.
///
/// Dropping it removes the redirect, also when a test fails.
pub struct GatewayProxy {
    // First, so that it is dropped first: the operator must not be sent to a proxy that is gone.
    redirect: Option<Redirect>,
    proxy: Proxy,
    lab: Lab,
    cluster: usize,
    namespace: String,
    node: String,
}

/// Starts a proxy before the gateway of `node`, and sends the operator's pods of this moment through it.
pub async fn before_gateway(
    lab: &Lab,
    cluster: usize,
    namespace: &str,
    node: &str,
    tls: GatewayTls,
) -> Result<GatewayProxy> {
    let client = lab.client(cluster).await?;
    let upstream = Upstream {
        address: gateway_address(&client, namespace, node).await?,
        server_name: format!("{node}.{namespace}.svc"),
        tls: Arc::new(tls.client),
        effects: Effects::ByJsonRpc,
    };
    let listen = SocketAddr::new(IpAddr::V4(layout::control_plane_ip(cluster)), 0);
    let proxy = Proxy::start(listen, tls.server, upstream).await?;
    let mut gateway = GatewayProxy {
        redirect: None,
        proxy,
        lab: lab.clone(),
        cluster,
        namespace: namespace.to_owned(),
        node: node.to_owned(),
    };
    gateway.renew().await?;
    Ok(gateway)
}

impl GatewayProxy {
    /// The proxy.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// Looks again where the node's and the operator's pods are: needed when one of them was made anew, not
    /// when only its program was started again.
    pub async fn renew(&mut self) -> Result<()> {
        let client = self.lab.client(self.cluster).await?;
        let address = gateway_address(&client, &self.namespace, &self.node).await?;
        self.proxy.set_upstream_address(address);
        let services = Api::<Service>::namespaced(client.clone(), &self.namespace);
        let service = services.get(&self.node).await.context("reading the node's Service")?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        let ip: Ipv4Addr = ip.parse().with_context(|| format!("its address is {ip:?}"))?;
        let pods = operator_pods(&client).await?;
        let sources = pods.iter().map(ip_of).collect::<Result<Vec<_>>>()?;
        let SocketAddr::V4(to) = self.proxy.address() else {
            bail!("the lab has IPv4 addresses only");
        };
        // The old one goes only when the new one is there: meanwhile no call passes by.
        let service = SocketAddrV4::new(ip, GATEWAY_PORT);
        let new = self.lab.redirect(self.cluster, &sources, service, to)?;
        self.redirect = Some(new);
        Ok(())
    }

    /// Ends the redirect and the proxy, and says whether that worked.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(redirect) = self.redirect.take() {
            redirect.end().context("ending the redirect to a gateway's proxy")?;
        }
        self.proxy.stop().await
    }
}

async fn gateway_address(client: &Client, namespace: &str, node: &str) -> Result<SocketAddr> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let pod = pods.get(&format!("{node}-0")).await.context("reading the node's pod")?;
    Ok(SocketAddr::new(IpAddr::V4(ip_of(&pod)?), GATEWAY_PORT))
}

fn ip_of(pod: &Pod) -> Result<Ipv4Addr> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let ip = ip.with_context(|| format!("pod {name} has no address yet"))?;
    ip.parse().with_context(|| format!("pod {name} has the address {ip:?}"))
}
