//! One cluster's control plane: etcd, API server, controller manager and scheduler, in the root namespace
//! on the cluster's own address.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::folders::Layout;
use super::layout;
use super::pki::{self, Pki};
use super::process::{ProcessId, Service};
use super::{command, network};

/// A cold start on two cores takes about 15 s, of several clusters at once on a busy machine over a minute.
const READY_DEADLINE: Duration = Duration::from_mins(3);

/// Longest for etcd to write down what it holds.
const ETCD_GRACE: Duration = Duration::from_secs(10);

/// What the operator under test did, and nothing else: its requests, without bodies, once each.
const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:bsn-system"]
- level: None
"#;

/// One cluster's control plane.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    layout: Layout,
    cluster: usize,
}

impl ControlPlane {
    /// That of `cluster`.
    pub fn new(layout: &Layout, cluster: usize) -> Self {
        Self { layout: layout.clone(), cluster }
    }

    /// Its processes, in the order in which they are started.
    pub fn services(&self) -> [Service; 4] {
        ["etcd", "kube-apiserver", pki::CONTROLLER_MANAGER, pki::SCHEDULER]
            .map(|name| self.service(name))
    }

    /// Those that need an API server.
    pub fn controllers(&self) -> [Service; 2] {
        [pki::CONTROLLER_MANAGER, pki::SCHEDULER].map(|name| self.service(name))
    }

    fn service(&self, name: &str) -> Service {
        Service::new(&self.layout.cluster(self.cluster), name)
    }

    /// Starts etcd and the API server, if they do not run.
    pub fn start(&self) -> Result<()> {
        let pki = Pki::ensure(&self.layout, self.cluster)?;
        network::ensure_address(layout::control_plane_ip(self.cluster))?;
        self.launch("etcd", &self.etcd_args())?;
        self.start_api_server_with(&pki)
    }

    /// Starts controller manager and scheduler, if they do not run. Only once the API server is ready: a new one
    /// writes its roles last, and a controller manager that may do nothing for twenty seconds ends.
    pub fn start_controllers(&self) -> Result<()> {
        let pki = Pki::ensure(&self.layout, self.cluster)?;
        let config = pki.kubeconfig(pki::CONTROLLER_MANAGER)?;
        self.launch(pki::CONTROLLER_MANAGER, &self.controller_manager_args(&pki, &config))?;
        let config = pki.kubeconfig(pki::SCHEDULER)?;
        self.launch(pki::SCHEDULER, &self.scheduler_args(&config))
    }

    /// Starts the API server alone.
    pub fn start_api_server(&self) -> Result<()> {
        self.start_api_server_with(&Pki::ensure(&self.layout, self.cluster)?)
    }

    /// Stops the API server alone, without a farewell to its watches: clients see refused connections.
    pub fn stop_api_server(&self) -> Result<()> {
        self.service("kube-apiserver").with(ProcessId::kill9)
    }

    /// Stops etcd alone, in order: what it holds is complete on the disk then.
    pub fn stop_etcd(&self) -> Result<()> {
        self.service("etcd").with(|process| process.terminate(ETCD_GRACE))
    }

    /// Where etcd keeps what it holds.
    pub fn etcd_folder(&self) -> PathBuf {
        self.folder().join("etcd")
    }

    /// Stops everything; etcd last, so that the others can end in order.
    pub fn stop(&self) -> Result<()> {
        // Nothing here is worth a grace: the state is removed, or etcd's log has it.
        self.services().iter().rev().try_for_each(|service| service.with(ProcessId::kill9))
    }

    /// Waits until the API server says that it is ready.
    pub async fn wait_ready(&self, client: &kube::Client) -> Result<()> {
        let end = Instant::now() + READY_DEADLINE;
        loop {
            for service in &self.services()[..2] {
                service.check()?;
            }
            let request = http_get("/readyz")?;
            let answer =
                tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
            let reason = match answer {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer within 5 s".to_owned(),
            };
            if Instant::now() >= end {
                let log = self.service("kube-apiserver").log();
                bail!(
                    "API server of cluster {} is not ready after {READY_DEADLINE:?} ({reason}): see {}",
                    self.cluster,
                    log.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn start_api_server_with(&self, pki: &Pki) -> Result<()> {
        let policy = self.folder().join("audit-policy.yaml");
        command::write(&policy, AUDIT_POLICY)?;
        self.launch("kube-apiserver", &self.api_server_args(pki))
    }

    fn launch(&self, name: &str, args: &[String]) -> Result<()> {
        let program = self.layout.bin().join(name);
        let started = self.service(name).start(None, &program, args);
        started.with_context(|| format!("cluster {}", self.cluster)).map(drop)
    }

    fn folder(&self) -> PathBuf {
        self.layout.cluster(self.cluster)
    }

    fn etcd_args(&self) -> Vec<String> {
        let ip = layout::etcd_ip(self.cluster);
        let (client, peer) = (format!("http://{ip}:2379"), format!("http://{ip}:2380"));
        vec![
            format!("--data-dir={}", self.etcd_folder().display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            // The lab survives a process's end, not the machine's: fsync would only slow it down.
            "--unsafe-no-fsync".to_owned(),
        ]
    }

    fn api_server_args(&self, pki: &Pki) -> Vec<String> {
        let ip = layout::control_plane_ip(self.cluster);
        let folder = self.folder();
        vec![
            format!("--etcd-servers=http://{}:2379", layout::etcd_ip(self.cluster)),
            format!("--secure-port={}", layout::API_PORT),
            format!("--bind-address={ip}"),
            format!("--advertise-address={ip}"),
            format!("--tls-cert-file={}", pki.path("server.crt")),
            format!("--tls-private-key-file={}", pki.path("server.key")),
            format!("--client-ca-file={}", pki.path("ca.crt")),
            format!("--token-auth-file={}", pki.path("tokens.csv")),
            format!("--service-account-key-file={}", pki.path("sa.pub")),
            format!("--service-account-signing-key-file={}", pki.path("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={}", layout::services(self.cluster)),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--kubelet-client-certificate={}", pki.path("kubelet-client.crt")),
            format!("--kubelet-client-key={}", pki.path("kubelet-client.key")),
            // Else logs and exec try to resolve the node's name.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--profiling=false".to_owned(),
            format!("--cert-dir={}", folder.join("certs").display()),
            format!("--audit-policy-file={}", folder.join("audit-policy.yaml").display()),
            format!("--audit-log-path={}", self.layout.audit_log(self.cluster).display()),
        ]
    }

    fn controller_manager_args(&self, pki: &Pki, kubeconfig: &str) -> Vec<String> {
        vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--bind-address={}", layout::control_plane_ip(self.cluster)),
            format!("--service-account-private-key-file={}", pki.path("sa.key")),
            format!("--root-ca-file={}", pki.path("ca.crt")),
            format!("--cluster-signing-cert-file={}", pki.path("ca.crt")),
            format!("--cluster-signing-key-file={}", pki.path("ca.key")),
            "--use-service-account-credentials=true".to_owned(),
            // Each machine's range is fixed by the address plan and given to its CNI plug-in.
            "--allocate-node-cidrs=false".to_owned(),
            // One instance each: an election would only delay the start.
            "--leader-elect=false".to_owned(),
            "--profiling=false".to_owned(),
            format!("--cert-dir={}", self.folder().join("certs").display()),
        ]
    }

    fn scheduler_args(&self, kubeconfig: &str) -> Vec<String> {
        vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--bind-address={}", layout::control_plane_ip(self.cluster)),
            "--leader-elect=false".to_owned(),
            "--profiling=false".to_owned(),
            format!("--cert-dir={}", self.folder().join("certs").display()),
        ]
    }
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path).body(Vec::new()).context("building a request")
}
