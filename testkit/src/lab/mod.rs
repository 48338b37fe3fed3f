//! Kubernetes clusters of several machines on one Linux machine without Docker.
//!
//! Every process is real: API servers with etcd in the root network namespace, and for each machine a
//! namespace with containerd, kubelet and kube-proxy. Clusters reach each other only over machine and
//! control-plane addresses, as separate data centres do.
//!
//! Not there: enforcement of network policies (the bridge plug-in has none), limits on a volume's size,
//! and images from registries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

pub mod addons;
mod backup;
pub mod cgroup;
pub mod command;
pub mod control_plane;
mod down;
mod fault;
pub mod folders;
pub mod image;
pub mod layout;
pub mod machine;
mod machine_config;
pub mod network;
pub mod packages;
pub mod pki;
pub mod pod_cut;
pub mod process;
pub mod provisioner;
mod redirect;
mod roles;
mod status;
pub mod teardown;
pub mod tools;
mod up;

pub use backup::Backup;
use control_plane::ControlPlane;
use folders::Layout;
pub use layout::{LabSpec, MachineId};
use machine::Machine;
pub use redirect::Redirect;
pub use roles::{HUB_VARIABLE, Roles};
pub use status::{Line, Status};
pub use up::Report;

/// A running lab.
#[derive(Clone, Debug)]
pub struct Lab {
    layout: Layout,
    spec: LabSpec,
}

impl Lab {
    /// The lab that is up.
    pub fn load() -> Result<Self> {
        let layout = Layout::from_env()?;
        let spec = read_spec(&layout)?.with_context(|| {
            let file = layout.lab_file();
            format!("no lab is up ({} is missing): run `cargo xtask lab up`", file.display())
        })?;
        Ok(Self { layout, spec })
    }

    /// Makes the lab at least as large as `wanted`: starts what is missing or died, keeps what runs.
    ///
    /// Volumes are served by this very program, started again as `lab provisioner --cluster K`; so only
    /// `cargo xtask` can do this. Tests use [`Lab::load`].
    pub async fn up(wanted: LabSpec) -> Result<(Self, Report)> {
        up::up(wanted).await
    }

    /// Ends and removes everything of the lab, also what a crashed run left. Programs and images stay in
    /// the cache.
    pub fn down() -> Result<()> {
        require_root()?;
        let layout = Layout::from_env()?;
        let _lock = lock(&layout)?;
        down::remove_all(&layout)
    }

    /// How large it is.
    pub fn spec(&self) -> LabSpec {
        self.spec
    }

    /// Its directories.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A cluster's kubeconfig for its administrator; it can be copied.
    pub fn kubeconfig(&self, cluster: usize) -> PathBuf {
        self.layout.kubeconfig(cluster)
    }

    /// A cluster's audit log: one JSON object per line, requests of service accounts of `bsn-system` only.
    pub fn audit_log(&self, cluster: usize) -> PathBuf {
        self.layout.audit_log(cluster)
    }

    /// A built program.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.layout.bin().join(name)
    }

    /// A client of a cluster's administrator.
    pub async fn client(&self, cluster: usize) -> Result<Client> {
        self.check_cluster(cluster)?;
        connect(&self.kubeconfig(cluster)).await
    }

    /// Gives an image file to all machines of the named clusters.
    pub fn import_image(&self, image: &Path, clusters: &[usize]) -> Result<()> {
        clusters.iter().try_for_each(|&cluster| self.check_cluster(cluster))?;
        let concerned = self.spec.machines().filter(|id| clusters.contains(&id.cluster));
        let machines: Vec<_> = concerned.map(|id| self.machine_of(id)).collect();
        in_parallel(&machines, |machine| machine.import_image(image))
    }

    fn control_plane(&self, cluster: usize) -> Result<ControlPlane> {
        self.check_cluster(cluster)?;
        Ok(ControlPlane::new(&self.layout, cluster))
    }

    fn machine(&self, id: MachineId) -> Result<Machine> {
        self.check_cluster(id.cluster)?;
        if id.machine >= self.spec.machines {
            bail!(
                "cluster {} has machines 0 to {}, not {}",
                id.cluster,
                self.spec.machines - 1,
                id.machine
            );
        }
        Ok(self.machine_of(id))
    }

    fn machine_of(&self, id: MachineId) -> Machine {
        Machine::new(&self.layout, id)
    }

    fn check_cluster(&self, cluster: usize) -> Result<()> {
        if cluster >= self.spec.clusters {
            bail!("the lab has clusters 0 to {}, not {cluster}", self.spec.clusters - 1);
        }
        Ok(())
    }
}

/// A client for a kubeconfig. It does not retry by itself: a test wants to see the first answer.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    let shown = kubeconfig.display();
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {shown}"))?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("using {shown}"))?;
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).with_context(|| format!("connecting as {shown} says"))
}

fn read_spec(layout: &Layout) -> Result<Option<LabSpec>> {
    let file = layout.lab_file();
    match std::fs::read(&file) {
        Ok(text) => {
            let spec: LabSpec = serde_json::from_slice(&text)
                .with_context(|| format!("{}: run `cargo xtask lab down`", file.display()))?;
            spec.validate()?;
            Ok(Some(spec))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the lab makes network namespaces and mounts: run it as root, for example with `sudo -E`"
        );
    }
    Ok(())
}

/// Held while the lab is changed; released when dropped, also by a crash.
fn lock(layout: &Layout) -> Result<std::fs::File> {
    let path = layout.cache.join("lab.lock");
    std::fs::create_dir_all(&layout.cache)?;
    let file =
        std::fs::File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another command is changing the lab: wait for it to end")
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).context("locking the lab"),
    }
}

/// Does a step for all items at once; the first error, when all have ended.
fn in_parallel<T: Sync>(items: &[T], step: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let step = &step;
    std::thread::scope(|scope| {
        let running: Vec<_> = items.iter().map(|item| scope.spawn(move || step(item))).collect();
        let ended: Vec<_> = running.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        ended.into_iter().try_for_each(|result| {
            result.unwrap_or_else(|_| bail!("a step of the lab panicked: see above"))
        })
    })
}
