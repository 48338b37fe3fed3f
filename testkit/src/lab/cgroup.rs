//! Control groups: one root per machine, below which its kubelet makes those of its pods.
//!
//! With version 1 each controller has a tree of its own; with version 2 there is one tree.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::layout::PREFIX;
use super::process::ProcessId;

/// A group can be removed only some time after its last process has ended.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
/// Controllers a kubelet asks for, where version 2 must delegate them.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// Mount points of all trees, version 1 and 2.
fn trees() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup" || kind == "cgroup2").then(|| PathBuf::from(path))
        })
        .collect()
}

/// Makes the group `name` in every tree.
pub fn ensure(name: &str) -> Result<()> {
    for tree in trees() {
        if tree.join("cgroup.controllers").exists() {
            for controller in V2_CONTROLLERS {
                // A kernel without one of them says so when the kubelet misses it.
                let _ =
                    std::fs::write(tree.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        let group = tree.join(name);
        std::fs::create_dir_all(&group).with_context(|| {
            format!("making {}: are the cgroup mounts writable?", group.display())
        })?;
        // Version 1: a new cpuset is empty, and no process can enter it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (tree.join(file), group.join(file));
            if from.exists() && to.exists() {
                std::fs::write(&to, std::fs::read(&from)?)
                    .with_context(|| format!("filling {}", to.display()))?;
            }
        }
    }
    Ok(())
}

/// Kills every process in the group `name` and the groups below it.
pub fn kill_all(name: &str) -> Result<()> {
    // A fork may slip in between reading and killing: until nothing is left.
    for _ in 0..20 {
        let found: Vec<_> = roots(name).iter().flat_map(|root| processes(root)).collect();
        if found.is_empty() {
            break;
        }
        found.into_iter().try_for_each(ProcessId::kill9)?;
    }
    Ok(())
}

/// Removes the group `name` and the groups below it, deepest first.
pub fn remove(name: &str) -> Result<()> {
    let end = Instant::now() + REMOVE_DEADLINE;
    for root in roots(name) {
        while let Err(error) = remove_tree(&root) {
            if Instant::now() >= end {
                return Err(error).with_context(|| {
                    format!("removing {}: is a process left in it?", root.display())
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Names of all groups of the lab.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = trees()
        .iter()
        .filter_map(|tree| std::fs::read_dir(tree).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn roots(name: &str) -> Vec<PathBuf> {
    trees().into_iter().map(|tree| tree.join(name)).filter(|root| root.exists()).collect()
}

fn subgroups(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(group) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn processes(group: &Path) -> Vec<ProcessId> {
    let listed = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<_> = listed
        .lines()
        .filter_map(|line| ProcessId::of(line.parse().ok()?))
        .filter(|id| id.is_alive())
        .collect();
    found.extend(subgroups(group).iter().flat_map(|group| processes(group)));
    found
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    subgroups(group).iter().try_for_each(|group| remove_tree(group))?;
    match std::fs::remove_dir(group) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
