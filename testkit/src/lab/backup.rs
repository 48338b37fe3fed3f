//! A backup of what a cluster's API server keeps, and its restore, as administrators do both.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::process::ProcessId;
use super::{Lab, command};

/// What a cluster's etcd held at some time. There is one for each cluster: the next takes its place.
#[derive(Clone, Debug)]
pub struct Backup {
    cluster: usize,
    folder: PathBuf,
}

impl Lab {
    /// Copies what a cluster's etcd holds. Its API server is away meanwhile, for some seconds.
    pub async fn back_up(&self, cluster: usize) -> Result<Backup> {
        let plane = self.control_plane(cluster)?;
        let folder = self.layout.cluster(cluster).join("etcd.backup");
        plane.stop_api_server()?;
        plane.stop_etcd()?;
        copy(&plane.etcd_folder(), &folder)?;
        plane.start()?;
        self.wait_api_server(cluster).await?;
        Ok(Backup { cluster, folder })
    }

    /// Puts a backup in the place of what a cluster's etcd holds. What the control plane and the machines remember is
    /// newer than what they are told then, so they are started anew; pods go on.
    pub async fn restore(&self, backup: &Backup) -> Result<()> {
        let plane = self.control_plane(backup.cluster)?;
        let ids = self.spec.machines().filter(|id| id.cluster == backup.cluster);
        let machines: Vec<_> = ids.map(|id| self.machine_of(id)).collect();
        for machine in &machines {
            let [_runtime, kubelet, proxy] = machine.services();
            kubelet.with(ProcessId::kill9)?;
            proxy.with(ProcessId::kill9)?;
        }
        plane.stop()?;
        copy(&backup.folder, &plane.etcd_folder())?;
        plane.start()?;
        self.wait_api_server(backup.cluster).await?;
        super::up::tend_until_ready(self, backup.cluster).await
    }
}

/// Makes `to` a copy of `from`.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
    }
    command::run("cp", [Path::new("-a"), from, to]).map(drop)
}
