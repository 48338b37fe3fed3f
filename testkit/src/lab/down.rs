//! Taking the lab down: nothing is left but the cache.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

use super::control_plane::ControlPlane;
use super::folders::Layout;
use super::layout::{LabSpec, MAX_CLUSTERS, MAX_MACHINES, MachineId, PREFIX};
use super::machine::Machine;
use super::process::ProcessId;
use super::{cgroup, network, teardown, up};

/// Removes everything of the lab, whether or not it is recorded.
pub(super) fn remove_all(layout: &Layout) -> Result<()> {
    let all = LabSpec { clusters: MAX_CLUSTERS, machines: MAX_MACHINES };
    for cluster in (0..MAX_CLUSTERS).filter(|&cluster| layout.cluster(cluster).exists()) {
        up::provisioner_service(layout, cluster).with(ProcessId::kill9)?;
        ControlPlane::new(layout, cluster).stop()?;
    }
    let named: BTreeSet<String> =
        teardown::netns_names().into_iter().chain(cgroup::names()).collect();
    let machines: Vec<_> = all
        .machines()
        .filter(|&id| named.contains(&id.namespace()) || layout.machine(id).exists())
        .collect();
    super::in_parallel(&machines, |&id: &MachineId| {
        let off = Machine::new(layout, id).power_off();
        off.with_context(|| format!("removing machine {id}"))
    })?;
    // What no record names.
    teardown::kill_stray(&layout.state)?;
    teardown::unmount_below(&layout.state)?;
    network::remove()?;
    teardown::remove_outside(&layout.state);
    remove_state(layout)?;
    check_nothing_left(layout)
}

fn remove_state(layout: &Layout) -> Result<()> {
    match std::fs::remove_dir_all(&layout.state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", layout.state.display()))
        }
        _ => Ok(()),
    }
}

/// `down` promises that nothing is left: better an error than a second lab on the first one's remains.
fn check_nothing_left(layout: &Layout) -> Result<()> {
    let mut left: Vec<String> = teardown::netns_names();
    left.extend(cgroup::names().into_iter().map(|name| format!("cgroup {name}")));
    left.extend(
        teardown::mounts_below(&layout.state).iter().map(|path| path.display().to_string()),
    );
    if !left.is_empty() {
        bail!("still there after `down`: {} (names begin with {PREFIX})", left.join(", "));
    }
    Ok(())
}
