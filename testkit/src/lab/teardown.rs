//! Ending a machine so that nothing of it is left: processes, mounts, namespaces.
//!
//! Found by looking at the system, not only at records: a crashed earlier run may have left none.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{UnmountFlags, unmount};

use super::command::ip;
use super::layout::PREFIX;
use super::process::ProcessId;

/// Links of containers' logs.
const CONTAINER_LOGS: &str = "/var/log/containers";
/// What network plug-ins remember.
const CNI_RESULTS: &str = "/var/lib/cni/results";
/// A folder that kubelets use for sockets of plug-ins whatever their root.
const KUBELET: &str = "/var/lib/kubelet";

/// Programs of the lab that are recognised by a path of the lab in their arguments.
const PROGRAMS: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
];

/// Where the kernel's handle of a network namespace is.
pub fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Processes of programs of the lab which name something below `folder` in their arguments.
fn processes_of(folder: &Path, programs: &[&str]) -> Vec<ProcessId> {
    let inside = format!("{}/", folder.display());
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            // The start time before the arguments: a pid reused in between does not match later.
            let id = ProcessId::of(pid)?;
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let program = Path::new(line.split('\0').next()?).file_name()?.to_str()?.to_owned();
            (programs.contains(&program.as_str()) && line.contains(&inside)).then_some(id)
        })
        .collect()
}

/// Kills the shims of a machine: they outlive its containerd by design.
pub fn kill_shims(folder: &Path) -> Result<()> {
    processes_of(folder, &["containerd-shim-runc-v2"]).into_iter().try_for_each(ProcessId::kill9)
}

/// Kills every program of the lab whose arguments name something below `state`.
pub fn kill_stray(state: &Path) -> Result<()> {
    processes_of(state, &PROGRAMS).into_iter().try_for_each(ProcessId::kill9)
}

/// Removes the sockets of a machine's shims, which are in one folder for all containerds.
pub fn remove_shim_sockets(folder: &Path) {
    let tasks = folder.join("containerd/state/io.containerd.runtime.v2.task/k8s.io");
    let Ok(entries) = std::fs::read_dir(tasks) else {
        return;
    };
    for entry in entries.flatten() {
        let address = std::fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if let Some(path) = address.trim().strip_prefix("unix://") {
            // Containers of one pod share a socket, so most are gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the remembered results of a machine's network plug-ins, which are in one folder for all.
pub fn remove_cni_results(network: &str) {
    let Ok(entries) = std::fs::read_dir(CNI_RESULTS) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pod) = pod_of_result(&name, network) {
            let _ = std::fs::remove_file(entry.path());
            // The loopback plug-in belongs to no network of ours; it is known by the pod.
            let loopback = format!("cni-loopback-{pod}-lo");
            let _ = std::fs::remove_file(Path::new(CNI_RESULTS).join(loopback));
        }
    }
}

/// The pod's id in `NETWORK-ID-eth0`.
fn pod_of_result<'a>(file: &'a str, network: &str) -> Option<&'a str> {
    file.strip_prefix(network)?.strip_prefix('-')?.strip_suffix("-eth0")
}

/// Removes links and folders which the programs make outside the lab's folder, whatever they are told; only
/// what leads into the lab or is empty.
pub fn remove_outside(state: &Path) {
    for entry in std::fs::read_dir(CONTAINER_LOGS).into_iter().flatten().flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(state)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    // Every kubelet uses these files, and the last one leaves them; a kubelet that is the host's own has
    // its configuration beside them.
    if !Path::new(KUBELET).join("config.yaml").exists() {
        for file in ["kubelet.sock", "kubelet_internal_checkpoint"] {
            let _ = std::fs::remove_file(Path::new(KUBELET).join("device-plugins").join(file));
        }
        let _ = std::fs::remove_dir(Path::new(KUBELET).join("device-plugins"));
    }
    // A folder that still has something in it stays.
    for folder in [CONTAINER_LOGS, CNI_RESULTS, "/var/lib/cni", KUBELET] {
        let _ = std::fs::remove_dir(folder);
    }
}

/// Unmounts everything below a folder, deepest first.
pub fn unmount_below(folder: &Path) -> Result<()> {
    for target in mounts_below(folder) {
        // A mount that is still in use is taken out of the tree at once and freed when it is not.
        let gone = unmount(&target, UnmountFlags::empty())
            .or_else(|_| unmount(&target, UnmountFlags::DETACH));
        gone.with_context(|| format!("unmounting {}", target.display()))?;
    }
    let left = mounts_below(folder);
    if let Some(first) = left.first() {
        bail!("{} mounts are left below {}, as {}", left.len(), folder.display(), first.display());
    }
    Ok(())
}

/// Mount points below a folder, the latest first, which is also deepest first.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    parse_mounts(&table, folder)
}

fn parse_mounts(table: &str, folder: &Path) -> Vec<PathBuf> {
    let paths = table.lines().filter_map(|line| line.split(' ').nth(1));
    // The kernel writes blanks as octal numbers.
    let decoded = paths.map(|path| PathBuf::from(path.replace("\\040", " ")));
    let mut found: Vec<_> =
        decoded.filter(|path| path.starts_with(folder) && path != folder).collect();
    found.reverse();
    found
}

/// Names of all network namespaces of the lab.
pub fn netns_names() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

/// Removes a network namespace, and with it its link to the bridge.
pub fn remove_netns(name: &str) -> Result<()> {
    if netns_path(name).exists() {
        // The kernel removes links some time later; a machine started again at once would meet its old one.
        let link = name.replacen(PREFIX, "bsnlab", 1);
        if super::network::exists(&link) {
            ip(&format!("link del {link}"))?;
        }
        ip(&format!("netns del {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_undone_in_reverse_and_only_below_the_folder() {
        let table = "a /lab x rw 0 0\nb /lab/m0 x rw 0 0\nc /lab/m0/pods/a\\040b x rw 0 0\nd /labour/x y rw 0 0\n";
        let found = parse_mounts(table, Path::new("/lab"));
        assert_eq!(found, [Path::new("/lab/m0/pods/a b"), Path::new("/lab/m0")]);
    }

    #[test]
    fn results_of_machine_ten_are_not_those_of_machine_one() {
        assert_eq!(pod_of_result("bsnlab-0-1-4fc-eth0", "bsnlab-0-1"), Some("4fc"));
        assert_eq!(pod_of_result("bsnlab-0-10-4fc-eth0", "bsnlab-0-1"), None);
    }

    #[test]
    fn link_belongs_to_its_namespace() {
        let id = crate::lab::layout::MachineId { cluster: 3, machine: 11 };
        assert_eq!(id.namespace().replacen(PREFIX, "bsnlab", 1), id.link());
    }
}
