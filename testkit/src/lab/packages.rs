//! Programs from Debian packages, installed only where they are missing.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::command;

/// Folders in which programs of the administrator are, which a user's PATH may lack.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];
/// Where Debian's package puts the CNI plug-ins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// What must be there, and the package that brings it.
const NEEDED: [(&str, &str); 14] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/lib/cni/portmap", "containernetworking-plugins"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("conntrack", "conntrack"),
    ("gcc", "gcc"),
    ("/usr/include/stdlib.h", "libc6-dev"),
    ("setsid", "util-linux"),
    ("nsenter", "util-linux"),
    ("umount", "mount"),
    ("sysctl", "procps"),
];

/// Where a program is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Packages whose programs are missing.
pub fn missing() -> Vec<&'static str> {
    let mut packages: Vec<_> = NEEDED
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    packages
}

/// Installs what is missing; returns the packages it installed.
pub fn install() -> Result<Vec<&'static str>> {
    let packages = missing();
    if packages.is_empty() {
        return Ok(packages);
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("the lab needs {}, and knows only apt: install them by hand", packages.join(", "));
    }
    let install = || {
        let flags = ["install", "-y", "-q", "--no-install-recommends"];
        command::run_command(
            std::process::Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(flags)
                .args(&packages),
        )
    };
    // A fresh machine has no package lists yet; one that has them is spared the download.
    if install().is_err() {
        command::run("apt-get", ["update", "-q"]).context("updating apt's package lists")?;
        install().context("installing packages: are the package sources reachable?")?;
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_by_name_and_by_path() {
        assert!(find("sh").is_some());
        assert!(find("/bin/sh").is_some());
        assert!(find("no-such-program").is_none());
        assert!(find("/no/such/file").is_none());
    }
}
