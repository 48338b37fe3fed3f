//! The lab's provisioner of volumes: one directory each, open to every user, and growable.
//!
//! The built-in hostpath provisioner makes directories that only root can write and cannot expand them.
//! A directory has no size, so capacity is a number here and nothing enforces it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bsn_core::quantity::parse_bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt as _, utils};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::addons::STORAGE_CLASS;
use super::folders::Layout;

/// Name of the provisioner in the class and on its volumes.
pub const PROVISIONER: &str = "lab.bsn-operator.io/directory";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// A failed step is tried again when the watch starts anew.
const RETRY: Duration = Duration::from_secs(2);

enum Event {
    Claim(Box<PersistentVolumeClaim>),
    Volume(Box<PersistentVolume>),
}

/// Serves the volumes of one cluster until it is killed or the cluster's state is removed.
pub async fn run(cluster: usize) -> Result<()> {
    let layout = Layout::from_env()?;
    let kubeconfig = layout.kubeconfig(cluster);
    let client = super::connect(&kubeconfig).await?;
    let provisioner = Provisioner { client, root: layout.volumes(cluster) };
    tokio::select! {
        () = provisioner.serve_always() => Ok(()),
        // It ends by itself with its cluster, also where no record leads to it.
        () = removed(&kubeconfig) => Ok(()),
    }
}

async fn removed(file: &Path) {
    while file.exists() {
        tokio::time::sleep(RETRY).await;
    }
}

struct Provisioner {
    client: Client,
    root: PathBuf,
}

impl Provisioner {
    async fn serve_always(&self) {
        loop {
            // Every step follows from what is observed, so a new start is all the error handling needed.
            if let Err(error) = self.serve().await {
                eprintln!("{error:#}; starting again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn serve(&self) -> Result<()> {
        let claims = Api::<PersistentVolumeClaim>::all(self.client.clone());
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let config = watcher::Config::default;
        let claims =
            watcher(claims, config()).applied_objects().map_ok(|c| Event::Claim(Box::new(c)));
        let volumes =
            watcher(volumes, config()).applied_objects().map_ok(|v| Event::Volume(Box::new(v)));
        let mut events = utils::StreamBackoff::new(
            futures::stream::select(claims.boxed(), volumes.boxed()),
            watcher::DefaultBackoff::default(),
        )
        .boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Claim(claim)) => self.handle_claim(&claim).await?,
                Ok(Event::Volume(volume)) => self.handle_volume(&volume).await?,
                // The watch itself backs off and goes on, as when the API server was stopped.
                Err(error) => eprintln!("watching: {error}"),
            }
        }
        Ok(())
    }

    async fn handle_claim(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let Some(spec) = &claim.spec else {
            return Ok(());
        };
        let ours = spec.storage_class_name.as_deref() == Some(STORAGE_CLASS);
        if !ours || claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let Some(wanted) = requested(claim) else {
            return Ok(());
        };
        let name = claim.name_any();
        match (&spec.volume_name, phase(claim)) {
            (None, _) => {
                self.provision(claim, &wanted).await.with_context(|| format!("claim {name}"))
            }
            (Some(volume), Some("Bound")) if is_larger(&wanted, capacity(claim)) => {
                self.expand(claim, volume, &wanted).await.with_context(|| format!("growing {name}"))
            }
            _ => Ok(()),
        }
    }

    async fn provision(&self, claim: &PersistentVolumeClaim, size: &Quantity) -> Result<()> {
        let uid = claim.uid().context("the claim has no uid")?;
        let name = format!("pvc-{uid}");
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        if volumes.get_opt(&name).await?.is_some() {
            return Ok(());
        }
        let classes = Api::<StorageClass>::all(self.client.clone());
        let policy = classes.get(STORAGE_CLASS).await?.reclaim_policy;
        let folder = self.root.join(&name);
        std::fs::create_dir_all(&folder)?;
        // Pods run as any user, and no fsGroup is applied to a host path.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
        let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.clone());
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
            "spec": {
                "storageClassName": STORAGE_CLASS,
                "capacity": {"storage": size},
                "accessModes": modes,
                "persistentVolumeReclaimPolicy": policy.unwrap_or_else(|| "Delete".to_owned()),
                // The type makes a pod wait, not run on an empty new directory, should it be gone.
                "hostPath": {"path": folder, "type": "Directory"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": claim.namespace(),
                    "name": claim.name_any(),
                    "uid": uid,
                },
            },
        }))?;
        match volumes.create(&PostParams::default(), &volume).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            result => result.map(drop).context("creating the volume"),
        }
    }

    /// The volume first: a claim must never say more than its volume has.
    async fn expand(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &str,
        size: &Quantity,
    ) -> Result<()> {
        let capacity = BTreeMap::from([("storage", size)]);
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        let patch = Patch::Merge(json!({"spec": {"capacity": capacity}}));
        volumes.patch(volume, &PatchParams::default(), &patch).await?;
        let namespace = claim.namespace().unwrap_or_default();
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"status": {"capacity": capacity}}));
        claims.patch_status(&claim.name_any(), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn handle_volume(&self, volume: &PersistentVolume) -> Result<()> {
        let ours = volume.annotations().get(PROVISIONED_BY).is_some_and(|by| by == PROVISIONER);
        let released = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Released");
        let spec = volume.spec.as_ref();
        let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        if !ours || !released || policy != Some("Delete") {
            return Ok(());
        }
        let name = volume.name_any();
        // Its own directory by its own name: never what the object says, which anybody may have changed.
        let folder = self.root.join(&name);
        let declared =
            spec.and_then(|spec| spec.host_path.as_ref()).map(|host| PathBuf::from(&host.path));
        if declared.as_ref() != Some(&folder) || name.contains('/') {
            eprintln!("volume {name} is not where it was made: left alone");
            return Ok(());
        }
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let volumes = Api::<PersistentVolume>::all(self.client.clone());
        match volumes.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            result => result.map(drop).with_context(|| format!("deleting volume {name}")),
        }
    }
}

fn requested(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage").cloned()
}

fn capacity(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.status.as_ref()?.capacity.as_ref()?.get("storage")
}

fn phase(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.status.as_ref()?.phase.as_deref()
}

/// Whether more is wanted than there is; not before a bound claim shows its capacity.
fn is_larger(wanted: &Quantity, current: Option<&Quantity>) -> bool {
    let bytes = |quantity: &Quantity| parse_bytes(&quantity.0);
    current.is_some_and(|current| bytes(wanted) > bytes(current))
}
