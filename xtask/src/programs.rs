//! Builds the project's own programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The project's root.
pub fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// `cargo` of the toolchain that runs this.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // What `cargo run` tells this program about itself. The build script of `ring` asks to be run again when it
    // changes, and with it half of all there is would be compiled anew for each `cargo xtask` (seen: two minutes).
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The built programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `bsn-operator`.
    pub operator: PathBuf,
    /// `kubectl-bsn`.
    pub kubectl_plugin: PathBuf,
}

/// Builds the operator and its kubectl plug-in, with the profile this program was built with: most of
/// their code is compiled already.
pub fn build() -> Result<Programs> {
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--locked", "--package", "bsn-operator", "--bins"]);
    if !cargo.status().context("running cargo build")?.success() {
        bail!("cargo build failed: see above");
    }
    let here = std::env::current_exe().context("finding this program's own file")?;
    let target = here.parent().context("this program lies in no directory")?;
    Ok(Programs {
        operator: target.join("bsn-operator"),
        kubectl_plugin: target.join("kubectl-bsn"),
    })
}
