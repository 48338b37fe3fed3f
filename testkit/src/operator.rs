//! Installs the operator in a cluster of the lab, the way its users do: an image, and Helm.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::lab::Lab;
use crate::lab::image::{Image, NON_ROOT};

/// Namespace and release name of the operator, as the README has them.
pub const NAMESPACE: &str = "bsn-system";
/// Name of its Deployment: that of the release.
pub const NAME: &str = "bsn-operator";
const REPOSITORY: &str = "localhost/bsn-operator";
/// Longest the installation may take until its pods are ready.
const HELM_TIMEOUT: &str = "3m";

/// An image of the operator, ready to be imported.
#[derive(Debug, Clone)]
pub struct OperatorImage {
    /// Its tag: a hash of the program, so that a changed one is a changed image.
    pub tag: String,
    /// The file.
    pub file: PathBuf,
}

impl OperatorImage {
    /// Packs a binary of this machine, without its debug information, into an image below `folder`.
    pub fn build(binary: &Path, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let stripped = folder.join("bsn-operator");
        let done = Command::new("strip")
            .arg("-o")
            .args([&stripped, binary])
            .status()
            .context("running strip (Debian package binutils)")?;
        if !done.success() {
            bail!("strip {} failed", binary.display());
        }
        let mut tag = Sha256::digest(std::fs::read(&stripped)?)
            .iter()
            .take(6)
            .fold(String::new(), |tag, byte| tag + &format!("{byte:02x}"));
        tag.insert_str(0, "lab-");
        let image =
            Image::new(&format!("{REPOSITORY}:{tag}"), &["/usr/bin/bsn-operator"], NON_ROOT)
                .dynamic_binary(&stripped, "/usr/bin/bsn-operator")?;
        Ok(Self { tag, file: image.write(folder)? })
    }
}

/// Imports the image and installs or upgrades the chart at `root`; returns when its pods are ready.
pub fn install(lab: &Lab, cluster: usize, root: &Path, image: &OperatorImage) -> Result<()> {
    lab.import_image(&image.file, &[cluster])?;
    // A test with a proxy that was killed left the operator without an API server; Helm keeps variables
    // that it did not set. Fails where nothing is installed yet.
    if let Err(error) = crate::proxy::restore_operator(lab, cluster) {
        tracing::debug!(error = format!("{error:#}"), "no operator to restore");
    }
    let output = Command::new(lab.tool("helm"))
        .env("KUBECONFIG", lab.kubeconfig(cluster))
        .args(["upgrade", "--install", NAME])
        .arg(root.join("helm/bsn-operator"))
        .args(["--namespace", NAMESPACE, "--create-namespace", "--wait"])
        .args(["--timeout", HELM_TIMEOUT])
        .args(["--set", &format!("image.repository={REPOSITORY},image.tag={}", image.tag)])
        .args(["--set", "image.pullPolicy=Never"])
        .output()
        .context("running helm")?;
    if !output.status.success() {
        bail!(
            "helm failed:\n{}\nlook with: kubectl get pods,events -n {NAMESPACE}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
