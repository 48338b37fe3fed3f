//! The network in the root namespace: the bridge, the control planes' addresses, routes to pods and the
//! packet filter.
//!
//! Every machine has a host address (/32) and reaches everything through the bridge's address, so all
//! traffic between machines is routed here and passes FORWARD. It then depends on no bridge setting of the
//! kernel whether a partition holds.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::command::{self, ip};
use super::layout::{
    self, ALL_PODS, BRIDGE, BRIDGE_IP, BRIDGE_MAC, CHAIN, LAB_NET, LabSpec, MachineId,
};

/// The chain that holds faults only, so that `up` can renew the rest without healing.
const FAULTS: &str = "BSNLAB-FAULTS";
/// Chains of the filter table through which the lab's packets go.
const HOOKS: [&str; 3] = ["INPUT", "FORWARD", "OUTPUT"];

/// Makes the bridge and the packet filter, or completes them.
pub fn ensure(spec: LabSpec) -> Result<()> {
    if !Path::new("/proc/sys/net/bridge").exists() {
        // In the machines, an answer between two pods of one machine must pass the packet filter, which
        // knows that the question was for a Service. Without the module such connections hang.
        command::run("modprobe", ["br_netfilter"])
            .context("loading br_netfilter: Services between pods of one machine need it")?;
    }
    if !exists(BRIDGE) {
        ip(&format!("link add {BRIDGE} address {BRIDGE_MAC} type bridge"))?;
    }
    ip(&format!("link set {BRIDGE} up"))?;
    ip(&format!("addr replace {BRIDGE_IP}/{} dev {BRIDGE}", LAB_NET.bits))?;
    // On the bridge alone: the host's own setting stays as it is. No redirects, because machines cannot
    // reach each other without us.
    for (key, value) in [("forwarding", "1"), ("send_redirects", "0"), ("rp_filter", "0")] {
        command::run("sysctl", ["-qw", &format!("net.ipv4.conf.{BRIDGE}.{key}={value}")])?;
    }
    for chain in [CHAIN, FAULTS] {
        if !command::succeeds("iptables", ["-w", "-n", "-L", chain]) {
            command::run("iptables", ["-w", "-N", chain])?;
        }
    }
    restore(&base_rules(spec))?;
    for hook in HOOKS {
        if !command::succeeds("iptables", ["-w", "-C", hook, "-j", CHAIN]) {
            command::run("iptables", ["-w", "-I", hook, "1", "-j", CHAIN])?;
        }
    }
    Ok(())
}

/// Whether an interface is there.
pub fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

/// Adds a control plane's address to the bridge.
pub fn ensure_address(address: Ipv4Addr) -> Result<()> {
    ip(&format!("addr replace {address}/32 dev {BRIDGE}"))
}

/// Lets the API server, which runs in the root namespace, reach the pods of a machine.
pub fn ensure_pod_route(id: MachineId) -> Result<()> {
    ip(&format!("route replace {} via {} dev {BRIDGE}", id.pods(), id.ip()))
}

/// Drops all packets between two clusters, both ways. The clusters' own traffic is untouched.
pub fn partition(a: usize, b: usize) -> Result<()> {
    if a == b {
        bail!("a partition is between two clusters; {a} is one");
    }
    restore(&partition_rules(a, b))
}

/// Lets packets from one cluster's machines and pods to this TCP port of another's machines vanish.
pub fn block_port(a: usize, b: usize, port: u16) -> Result<()> {
    let machines = layout::machines_net(b);
    let mut rules = "*filter\n".to_owned();
    for from in [layout::machines_net(a), layout::cluster_pods(a)] {
        let _ =
            writeln!(rules, "-A {FAULTS} -s {from} -d {machines} -p tcp --dport {port} -j DROP");
    }
    rules.push_str("COMMIT\n");
    restore(&rules)
}

/// Ends all partitions and blocks.
pub fn heal() -> Result<()> {
    command::run("iptables", ["-w", "-F", FAULTS]).map(drop).context("is the lab up?")
}

/// Whether any partition is in force.
pub fn is_partitioned() -> bool {
    command::run("iptables", ["-w", "-S", FAULTS]).is_ok_and(|rules| rules.contains("-j DROP"))
}

/// Removes the bridge, with it its addresses and routes, and the packet filter's rules.
pub fn remove() -> Result<()> {
    for hook in HOOKS {
        while command::succeeds("iptables", ["-w", "-D", hook, "-j", CHAIN]) {}
    }
    for chain in [CHAIN, FAULTS] {
        if command::succeeds("iptables", ["-w", "-F", chain]) {
            // The first refers to the second, so this order and no other.
            command::run("iptables", ["-w", "-X", chain])?;
        }
    }
    if exists(BRIDGE) {
        ip(&format!("link del {BRIDGE}"))?;
    }
    Ok(())
}

/// Faults first. Then pods are reachable from their own cluster only, as in real clusters. Then everything
/// of the lab is accepted, because the policy of FORWARD is DROP on machines with Docker.
fn base_rules(spec: LabSpec) -> String {
    let mut rules = format!("*filter\n:{CHAIN} - [0:0]\n-A {CHAIN} -j {FAULTS}\n");
    for cluster in 0..spec.clusters {
        let pods = layout::cluster_pods(cluster);
        for from in [pods, layout::machines_net(cluster)] {
            let _ = writeln!(rules, "-A {CHAIN} -i {BRIDGE} -s {from} -d {pods} -j ACCEPT");
        }
    }
    let _ = write!(
        rules,
        "-A {CHAIN} -i {BRIDGE} -o {BRIDGE} -d {ALL_PODS} -j DROP\n\
         -A {CHAIN} -i {BRIDGE} -j ACCEPT\n-A {CHAIN} -o {BRIDGE} -j ACCEPT\nCOMMIT\n"
    );
    rules
}

/// Every address of the one against every address of the other.
fn partition_rules(a: usize, b: usize) -> String {
    let addresses = |cluster: usize| {
        [
            layout::machines_net(cluster).to_string(),
            layout::cluster_pods(cluster).to_string(),
            layout::control_plane_ip(cluster).to_string(),
        ]
    };
    let mut rules = "*filter\n".to_owned();
    for one in addresses(a) {
        for other in addresses(b) {
            for (from, to) in [(&one, &other), (&other, &one)] {
                let _ = writeln!(rules, "-A {FAULTS} -s {from} -d {to} -j DROP");
            }
        }
    }
    rules.push_str("COMMIT\n");
    rules
}

/// Applies rules at once, leaving other chains alone. A chain named in a line with a colon is emptied first.
fn restore(rules: &str) -> Result<()> {
    let mut child = Command::new("iptables-restore")
        .args(["-w", "--noflush"])
        .stdin(Stdio::piped())
        .spawn()
        .context("starting iptables-restore")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(rules.as_bytes())?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("iptables-restore ended with {status} for:\n{rules}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_cuts_all_kinds_of_addresses_both_ways() {
        let rules = partition_rules(0, 2);
        assert_eq!(rules.matches("-j DROP").count(), 18);
        assert!(rules.contains("-s 10.99.1.0/24 -d 10.99.0.102 -j DROP"));
        assert!(rules.contains("-s 10.99.0.102 -d 10.99.1.0/24 -j DROP"));
        assert!(!rules.contains("10.99.2.0"), "cluster 1 is not concerned");
    }

    #[test]
    fn faults_come_before_everything_that_accepts() {
        let rules = base_rules(LabSpec { clusters: 2, machines: 1 });
        let position = |text: &str| rules.find(text).unwrap();
        assert!(position(FAULTS) < position("ACCEPT"));
        assert!(position("-d 10.244.16.0/20 -j ACCEPT") < position("DROP"));
    }
}
