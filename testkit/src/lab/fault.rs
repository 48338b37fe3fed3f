//! Faults: what tests and demonstrations do to a running lab.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::layout::MachineId;
use super::process::ProcessId;
use super::{Lab, network};

/// The kubelet ends within a second when asked to.
const GRACE: Duration = Duration::from_secs(5);

impl Lab {
    /// Drops all packets between two clusters, both ways: machines, pods and control planes.
    pub fn partition(&self, a: usize, b: usize) -> Result<()> {
        self.check_cluster(a)?;
        self.check_cluster(b)?;
        network::partition(a, b)
    }

    /// From cluster `a`, this TCP port of the machines of cluster `b` is not reached any more; everything else is.
    pub fn block_port(&self, a: usize, b: usize, port: u16) -> Result<()> {
        self.check_cluster(a)?;
        self.check_cluster(b)?;
        network::block_port(a, b, port)
    }

    /// Ends all partitions and blocks, and redirects that a killed test has left.
    pub fn heal(&self) -> Result<()> {
        network::heal()?;
        self.remove_stray_redirects()
    }

    /// Stops a cluster's API server; pods go on.
    pub fn stop_api_server(&self, cluster: usize) -> Result<()> {
        self.control_plane(cluster)?.stop_api_server()
    }

    /// Starts a cluster's API server again; does not wait until it is ready.
    pub fn start_api_server(&self, cluster: usize) -> Result<()> {
        self.control_plane(cluster)?.start_api_server()
    }

    /// Waits until a cluster's API server is ready.
    pub async fn wait_api_server(&self, cluster: usize) -> Result<()> {
        let client = self.client(cluster).await?;
        self.control_plane(cluster)?.wait_ready(&client).await
    }

    /// Stops a kubelet in order; its pods go on, but nobody tends or reports them.
    pub fn stop_kubelet(&self, id: MachineId) -> Result<()> {
        self.machine(id)?.kubelet().with(|process| process.terminate(GRACE))
    }

    /// Kills a kubelet.
    pub fn kill_kubelet(&self, id: MachineId) -> Result<()> {
        self.machine(id)?.kubelet().with(ProcessId::kill9)
    }

    /// Starts a kubelet.
    pub fn start_kubelet(&self, id: MachineId) -> Result<()> {
        self.machine(id)?.start_kubelet()
    }

    /// Freezes a kubelet: alive, but silent.
    pub fn pause_kubelet(&self, id: MachineId) -> Result<()> {
        self.machine(id)?.kubelet().with(ProcessId::pause)
    }

    /// Lets a frozen kubelet go on.
    pub fn resume_kubelet(&self, id: MachineId) -> Result<()> {
        self.machine(id)?.kubelet().with(ProcessId::resume)
    }

    /// A power cut: all processes of the machine end at once, containers included, and its network is gone.
    /// Disks stay.
    pub fn stop_machine(&self, id: MachineId) -> Result<()> {
        let off = self.machine(id)?.power_off();
        off.with_context(|| format!("switching off machine {id}"))
    }

    /// Switches a machine on again; does not wait until its node is Ready.
    pub fn start_machine(&self, id: MachineId) -> Result<()> {
        let machine = self.machine(id)?;
        machine.prepare(&[])?;
        machine.start_node()
    }
}
