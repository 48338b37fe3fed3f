//! The lab's address plan and names. Pure.
//!
//! The control plane of each cluster has an address of its own on the lab's bridge, and each machine an
//! address of its own in a network namespace. A partition between clusters is then a few rules on
//! addresses, and all programs can keep their usual ports.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail};

/// The bridge in the root namespace to which every machine is linked.
pub const BRIDGE: &str = "bsnlab0";
/// The bridge's hardware address. Without one of its own a bridge takes the lowest of its links', and all
/// machines lose the gateway for half a minute when one machine goes.
pub const BRIDGE_MAC: &str = "02:62:73:6e:ff:01";
/// The bridge's own address, the machines' default gateway.
pub const BRIDGE_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// All control planes and machines.
pub const LAB_NET: Subnet = Subnet { base: Ipv4Addr::new(10, 99, 0, 0), bits: 16 };
/// All pods of all clusters.
pub const ALL_PODS: Subnet = Subnet { base: Ipv4Addr::new(10, 244, 0, 0), bits: 16 };
/// All Services of all clusters.
pub const ALL_SERVICES: Subnet = Subnet { base: Ipv4Addr::new(10, 96, 0, 0), bits: 16 };
/// The chain in the root namespace that holds the lab's rules and faults.
pub const CHAIN: &str = "BSNLAB";
/// What the names of the lab's network namespaces and cgroups begin with.
pub const PREFIX: &str = "bsnlab-";
/// Largest number of clusters: 16 ranges of 16 machines fill the pod network.
pub const MAX_CLUSTERS: usize = 16;
/// Largest number of machines per cluster.
pub const MAX_MACHINES: usize = 16;
/// The API server's port on its cluster's control-plane address.
pub const API_PORT: u16 = 6443;

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// First address.
    pub base: Ipv4Addr,
    /// Length of the prefix.
    pub bits: u8,
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

/// How large the lab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LabSpec {
    /// Clusters, numbered from 0.
    pub clusters: usize,
    /// Machines in each cluster, numbered from 0.
    pub machines: usize,
}

impl LabSpec {
    /// Refuses a lab that is empty or larger than the address plan.
    pub fn validate(self) -> Result<()> {
        if !(1..=MAX_CLUSTERS).contains(&self.clusters)
            || !(1..=MAX_MACHINES).contains(&self.machines)
        {
            bail!(
                "a lab has 1 to {MAX_CLUSTERS} clusters of 1 to {MAX_MACHINES} machines, not {} of {}",
                self.clusters,
                self.machines
            );
        }
        Ok(())
    }

    /// Every machine, cluster by cluster.
    pub fn machines(self) -> impl Iterator<Item = MachineId> {
        (0..self.clusters).flat_map(move |cluster| {
            (0..self.machines).map(move |machine| MachineId { cluster, machine })
        })
    }

    /// The smallest lab that contains both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            clusters: self.clusters.max(other.clusters),
            machines: self.machines.max(other.machines),
        }
    }
}

/// One machine of the lab, written `K/M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MachineId {
    /// Its cluster.
    pub cluster: usize,
    /// Its number in the cluster.
    pub machine: usize,
}

impl std::fmt::Display for MachineId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.cluster, self.machine)
    }
}

impl std::str::FromStr for MachineId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(cluster, machine)| {
            Some(Self { cluster: cluster.parse().ok()?, machine: machine.parse().ok()? })
        });
        parsed
            .with_context(|| format!("a machine is written CLUSTER/MACHINE, as 0/1, not {text:?}"))
    }
}

impl MachineId {
    /// Name of the network namespace, and of the cgroup.
    pub fn namespace(self) -> String {
        format!("{PREFIX}{}-{}", self.cluster, self.machine)
    }

    /// Name of the Kubernetes node.
    pub fn node_name(self) -> String {
        format!("c{}-m{}", self.cluster, self.machine)
    }

    /// Name of the link's end on the bridge; interface names have at most 15 characters.
    pub fn link(self) -> String {
        format!("bsnlab{}-{}", self.cluster, self.machine)
    }

    /// Hardware address: fixed, because others remember it across a power cut.
    pub fn mac(self) -> String {
        format!("02:62:73:6e:{:02x}:{:02x}", octet(self.cluster), octet(self.machine))
    }

    /// The machine's address.
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, octet(self.cluster + 1), octet(self.machine + 10))
    }

    /// Addresses of the pods on this machine.
    pub fn pods(self) -> Subnet {
        let third = octet(self.cluster * MAX_MACHINES + self.machine);
        Subnet { base: Ipv4Addr::new(10, 244, third, 0), bits: 24 }
    }
}

/// Address of a cluster's control plane.
pub fn control_plane_ip(cluster: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, octet(cluster + 100))
}

/// Loopback address of a cluster's etcd, which has no authentication and so must not be on the bridge.
pub fn etcd_ip(cluster: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 99, 0, octet(cluster + 1))
}

/// Addresses of a cluster's machines.
pub fn machines_net(cluster: usize) -> Subnet {
    Subnet { base: Ipv4Addr::new(10, 99, octet(cluster + 1), 0), bits: 24 }
}

/// Addresses of all pods of a cluster.
pub fn cluster_pods(cluster: usize) -> Subnet {
    Subnet { base: Ipv4Addr::new(10, 244, octet(cluster * MAX_MACHINES), 0), bits: 20 }
}

/// Addresses of a cluster's Services.
pub fn services(cluster: usize) -> Subnet {
    Subnet { base: Ipv4Addr::new(10, 96, octet(cluster), 0), bits: 24 }
}

/// Address of the `kubernetes` Service: the first of the range, as the API server chooses it.
pub fn kubernetes_service_ip(cluster: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, octet(cluster), 1)
}

/// Address of the cluster's DNS Service.
pub fn dns_ip(cluster: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, octet(cluster), 10)
}

/// URL of a cluster's API server.
pub fn api_url(cluster: usize) -> String {
    format!("https://{}:{API_PORT}", control_plane_ip(cluster))
}

/// Numbers come from a validated [`LabSpec`]; a number beyond the plan must not become another's address.
fn octet(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
