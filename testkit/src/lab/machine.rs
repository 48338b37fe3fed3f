//! One machine: a network namespace with its own container runtime, kubelet and kube-proxy.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::command::{self, ip};
use super::folders::Layout;
use super::layout::{self, BRIDGE, BRIDGE_IP, MachineId};
use super::pki::{PROXY, Pki};
use super::process::{ProcessId, Service};
use super::{cgroup, machine_config, network, packages, teardown};

/// containerd listens after about a second, on a busy machine later.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(30);

/// One machine of the lab.
#[derive(Clone, Debug)]
pub struct Machine {
    layout: Layout,
    id: MachineId,
}

impl Machine {
    /// Machine `id`.
    pub fn new(layout: &Layout, id: MachineId) -> Self {
        Self { layout: layout.clone(), id }
    }

    /// Its kubelet.
    pub fn kubelet(&self) -> Service {
        self.service("kubelet")
    }

    /// Its processes, in the order in which they are started.
    pub fn services(&self) -> [Service; 3] {
        ["containerd", "kubelet", "kube-proxy"].map(|name| self.service(name))
    }

    /// Those that need an API server.
    pub fn agents(&self) -> [Service; 2] {
        ["kubelet", "kube-proxy"].map(|name| self.service(name))
    }

    /// Where everything of it is.
    pub fn folder(&self) -> PathBuf {
        self.layout.machine(self.id)
    }

    fn service(&self, name: &str) -> Service {
        Service::new(&self.folder(), name)
    }

    /// Network, container runtime and images: what needs no API server.
    pub fn prepare(&self, images: &[PathBuf]) -> Result<()> {
        let prepared = self.prepare_inner(images);
        prepared.with_context(|| format!("preparing machine {}", self.id))
    }

    fn prepare_inner(&self, images: &[PathBuf]) -> Result<()> {
        if !teardown::netns_path(&self.id.namespace()).exists() {
            // The machine is off, perhaps because the host was started anew: nothing that lived in memory
            // then may still be believed.
            self.power_off()?;
        }
        self.ensure_network()?;
        cgroup::ensure(&self.id.namespace())?;
        let (folder, socket) = (self.folder(), self.layout.containerd_socket(self.id));
        let config = folder.join("containerd.toml");
        command::write(&config, machine_config::containerd(&folder, &socket))?;
        let cni = serde_json::to_vec_pretty(&machine_config::cni(&folder, self.id))?;
        command::write(&folder.join("cni/10-lab.conflist"), cni)?;
        let containerd = packages::find("containerd")
            .context("containerd is missing: run `cargo xtask lab up`, which installs it")?;
        let args = ["-c".to_owned(), config.display().to_string()];
        let service = self.service("containerd");
        service.start(Some(&self.id.namespace()), &containerd, &args)?;
        wait_for_socket(&socket, &service)?;
        images.iter().try_for_each(|image| self.import_image(image))
    }

    /// Kubelet and kube-proxy.
    pub fn start_node(&self) -> Result<()> {
        self.start_kubelet()?;
        let pki = Pki::ensure(&self.layout, self.id.cluster)?;
        let args = [
            format!("--kubeconfig={}", pki.kubeconfig(PROXY)?),
            "--proxy-mode=iptables".to_owned(),
            format!("--cluster-cidr={}", layout::cluster_pods(self.id.cluster)),
            format!("--hostname-override={}", self.id.node_name()),
            // The limit belongs to the whole machine; a namespace may not set it.
            "--conntrack-max-per-core=0".to_owned(),
        ];
        let program = self.layout.bin().join("kube-proxy");
        self.service("kube-proxy").start(Some(&self.id.namespace()), &program, &args).map(drop)
    }

    /// The kubelet alone.
    pub fn start_kubelet(&self) -> Result<()> {
        let folder = self.folder();
        let pki = Pki::ensure(&self.layout, self.id.cluster)?;
        let socket = self.layout.containerd_socket(self.id);
        let config = machine_config::kubelet(&folder, self.id, &pki.path("ca.crt"), &socket);
        let config_path = folder.join("kubelet.json");
        command::write(&config_path, serde_json::to_vec_pretty(&config)?)?;
        // Nothing outside the lab is resolved; the kubelet only wants the file.
        command::write(&folder.join("resolv.conf"), format!("nameserver {BRIDGE_IP}\n"))?;
        let args = [
            format!("--config={}", config_path.display()),
            format!("--kubeconfig={}", pki.kubeconfig(&Pki::kubelet_user(self.id))?),
            format!("--hostname-override={}", self.id.node_name()),
            format!("--node-ip={}", self.id.ip()),
            format!("--root-dir={}", folder.join("kubelet").display()),
            format!("--cert-dir={}", folder.join("kubelet/pki").display()),
            "--v=2".to_owned(),
        ];
        let program = self.layout.bin().join("kubelet");
        self.kubelet().start(Some(&self.id.namespace()), &program, &args).map(drop)
    }

    /// Gives an image to the container runtime, once.
    pub fn import_image(&self, image: &Path) -> Result<()> {
        let name = image.file_name().with_context(|| format!("{} is no file", image.display()))?;
        let done = self.folder().join("images").join(name);
        if done.exists() {
            return Ok(());
        }
        let socket = self.layout.containerd_socket(self.id);
        let (socket, file) = (socket.display().to_string(), image.display().to_string());
        command::run("ctr", ["-a", &socket, "-n", "k8s.io", "images", "import", &file])?;
        command::write(&done, "")
    }

    fn ensure_network(&self) -> Result<()> {
        let (id, name, link) = (self.id, self.id.namespace(), self.id.link());
        if !teardown::netns_path(&name).exists() {
            ip(&format!("netns add {name}"))?;
        }
        if !network::exists(&link) {
            let mac = id.mac();
            ip(&format!("link add {link} type veth peer name eth0 address {mac} netns {name}"))?;
        }
        ip(&format!("link set {link} master {BRIDGE} up"))?;
        ip(&format!("-n {name} addr replace {}/32 dev eth0", id.ip()))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} route replace default via {BRIDGE_IP} dev eth0 onlink"))?;
        network::ensure_pod_route(id)?;
        let settings =
            ["ip_forward=1", "conf.all.accept_redirects=0", "conf.eth0.accept_redirects=0"];
        for setting in settings {
            self.inside(&["sysctl", "-qw", &format!("net.ipv4.{setting}")])?;
        }
        self.inside(&["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"])?;
        let pods = layout::cluster_pods(id.cluster).to_string();
        let rule = ["POSTROUTING", "-s", &pods, "!", "-d", &pods, "-o", "eth0", "-j", "MASQUERADE"];
        let iptables = |action| [&["iptables", "-w", "-t", "nat", action], &rule[..]].concat();
        if self.inside(&iptables("-C")).is_err() {
            self.inside(&iptables("-A"))?;
        }
        Ok(())
    }

    /// Runs a command in the machine's network.
    fn inside(&self, words: &[&str]) -> Result<String> {
        let netns = format!("--net=/run/netns/{}", self.id.namespace());
        command::run("nsenter", [&[netns.as_str()], words].concat())
    }

    /// Power cut: every process ends at once, and what lives in memory is gone; disks stay.
    pub fn power_off(&self) -> Result<()> {
        for service in ["kubelet", "kube-proxy", "containerd"] {
            self.service(service).with(ProcessId::kill9)?;
        }
        let (name, folder) = (self.id.namespace(), self.folder());
        teardown::kill_shims(&folder)?;
        cgroup::kill_all(&name)?;
        teardown::unmount_below(&folder)?;
        teardown::remove_netns(&name)?;
        cgroup::remove(&name)?;
        teardown::remove_shim_sockets(&folder);
        teardown::remove_cni_results(&name);
        let state = folder.join("containerd/state");
        if state.exists() {
            std::fs::remove_dir_all(&state)
                .with_context(|| format!("removing {}", state.display()))?;
        }
        Ok(())
    }
}

fn wait_for_socket(socket: &Path, service: &Service) -> Result<()> {
    let end = Instant::now() + RUNTIME_DEADLINE;
    while UnixStream::connect(socket).is_err() {
        service.check()?;
        if Instant::now() >= end {
            bail!(
                "containerd does not listen after {RUNTIME_DEADLINE:?}: see {}",
                service.log().display()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
