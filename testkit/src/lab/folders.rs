//! The lab's directories.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::layout::MachineId;

/// The lab's directories.
#[derive(Clone, Debug)]
pub struct Layout {
    /// State: removed by `down`.
    pub state: PathBuf,
    /// Built programs and images: kept.
    pub cache: PathBuf,
}

impl Layout {
    /// From `BSN_LAB_DIR` (default `/var/lib/bsn-lab`) and `XDG_CACHE_HOME` (default `~/.cache`).
    pub fn from_env() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let state =
            variable("BSN_LAB_DIR").map_or_else(|| "/var/lib/bsn-lab".into(), PathBuf::from);
        let cache = match variable("XDG_CACHE_HOME") {
            Some(cache) => PathBuf::from(cache),
            None => Path::new(&variable("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
                .join(".cache"),
        };
        // `down` removes the whole directory, so it must plainly be one of the lab's own.
        if !state.is_absolute() || state.components().count() < 3 {
            bail!(
                "BSN_LAB_DIR must be an absolute path at least two levels deep, not {}",
                state.display()
            );
        }
        Ok(Self { state, cache: cache.join("bsn-operator") })
    }

    /// Built programs.
    pub fn bin(&self) -> PathBuf {
        self.cache.join("bin")
    }

    /// Built images.
    pub fn images(&self) -> PathBuf {
        self.cache.join("images")
    }

    /// State of one cluster.
    pub fn cluster(&self, cluster: usize) -> PathBuf {
        self.state.join(format!("c{cluster}"))
    }

    /// State of one machine.
    pub fn machine(&self, id: MachineId) -> PathBuf {
        self.cluster(id.cluster).join(format!("m{}", id.machine))
    }

    /// Directories of a cluster's volumes.
    pub fn volumes(&self, cluster: usize) -> PathBuf {
        self.cluster(cluster).join("volumes")
    }

    /// A cluster's kubeconfig, for administrators.
    pub fn kubeconfig(&self, cluster: usize) -> PathBuf {
        self.cluster(cluster).join("admin.kubeconfig")
    }

    /// A cluster's audit log.
    pub fn audit_log(&self, cluster: usize) -> PathBuf {
        self.cluster(cluster).join("audit.log")
    }

    /// Socket of a machine's containerd.
    pub fn containerd_socket(&self, id: MachineId) -> PathBuf {
        self.machine(id).join("containerd.sock")
    }

    /// What the lab was told to be.
    pub fn lab_file(&self) -> PathBuf {
        self.state.join("lab.json")
    }
}
