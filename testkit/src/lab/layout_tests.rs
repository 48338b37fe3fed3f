use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;

const LARGEST: LabSpec = LabSpec { clusters: MAX_CLUSTERS, machines: MAX_MACHINES };

fn contains(net: Subnet, ip: Ipv4Addr) -> bool {
    let mask = u32::MAX << (32 - net.bits);
    u32::from(net.base) & mask == u32::from(ip) & mask
}

#[test]
fn no_two_machines_share_an_address_or_pod_range() {
    let ips: BTreeSet<_> = LARGEST.machines().map(MachineId::ip).collect();
    let pods: BTreeSet<_> = LARGEST.machines().map(|id| id.pods().base).collect();
    assert_eq!(ips.len(), MAX_CLUSTERS * MAX_MACHINES);
    assert_eq!(pods.len(), MAX_CLUSTERS * MAX_MACHINES);
}

#[test]
fn ranges_of_a_cluster_contain_its_machines_and_no_others() {
    for id in LARGEST.machines() {
        for cluster in 0..MAX_CLUSTERS {
            let own = cluster == id.cluster;
            assert_eq!(contains(machines_net(cluster), id.ip()), own);
            assert_eq!(contains(cluster_pods(cluster), id.pods().base), own);
        }
        assert!(contains(LAB_NET, id.ip()) && contains(ALL_PODS, id.pods().base));
    }
}

#[test]
fn control_planes_are_outside_the_ranges_of_machines() {
    for cluster in 0..MAX_CLUSTERS {
        let ip = control_plane_ip(cluster);
        assert!((0..MAX_CLUSTERS).all(|other| !contains(machines_net(other), ip)));
        assert_ne!(ip, BRIDGE_IP);
    }
}

#[test]
fn service_addresses_are_in_the_service_range() {
    for cluster in 0..MAX_CLUSTERS {
        for ip in [dns_ip(cluster), kubernetes_service_ip(cluster)] {
            assert!(contains(services(cluster), ip) && contains(ALL_SERVICES, ip));
        }
    }
}

#[test]
fn link_names_fit_the_kernel_limit() {
    assert!(LARGEST.machines().all(|id| id.link().len() <= 15));
}

#[test]
fn machine_is_read_as_it_is_written() {
    let id: MachineId = "2/11".parse().unwrap();
    assert_eq!(id, MachineId { cluster: 2, machine: 11 });
    assert_eq!(id.to_string(), "2/11");
    assert!("2".parse::<MachineId>().is_err());
}

#[test]
fn refuses_labs_beyond_the_address_plan() {
    assert!(LARGEST.validate().is_ok());
    assert!(LabSpec { clusters: 17, machines: 1 }.validate().is_err());
    assert!(LabSpec { clusters: 1, machines: 0 }.validate().is_err());
}
