//! Where a node is reached from other clusters. Pure.

use std::net::IpAddr;

use bsn_core::anchor::{Anchor, Identity};
use bsn_core::engine::cometbft::P2P_PORT;
use k8s_openapi::api::core::v1::{Pod, Service};

use super::validate::ValidatedNetwork;
use crate::api::{Exposure, ExternalAddress};
use crate::build::endpoint_slice::Reached;
use crate::build::service::{GATEWAY, P2P};
use crate::labels::GATEWAY_PORT;

/// Whether a network has nodes outside the hub. Else everything is reached as it always was.
pub fn spans_clusters(anchor: &Anchor) -> bool {
    anchor.members().any(|(_, identity)| !identity.cluster.is_empty())
}

/// How a node is reached from other clusters: as its node set says, else as its cluster does (`default`). A network
/// that is on the hub alone opens nothing to the outside, whatever is written.
pub fn exposure_of(
    validated: &ValidatedNetwork,
    anchor: &Anchor,
    identity: &Identity,
    default: Exposure,
) -> Exposure {
    if !spans_clusters(anchor) {
        return Exposure::ClusterIP;
    }
    let set = validated.exposure.get(&identity.set);
    set.and_then(|set| set.how).unwrap_or(default)
}

/// Why other clusters do not reach a node yet. Where they did before, they still try the same address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreached {
    /// Nothing is known of the cluster it runs in.
    #[error("its cluster is not known: {0}")]
    Cluster(String),
    /// Not made, or not seen yet.
    #[error("its Service is not there yet")]
    NoService,
    /// Not started, or ended.
    #[error("its pod has no address yet")]
    NoPod,
    /// The API server has given it none.
    #[error("its Service has no node ports yet")]
    NoNodePorts,
    /// Who makes load balancers there has not made this one.
    #[error("its load balancer has no address yet")]
    NoLoadBalancer,
    /// Nobody has said where it is reached.
    #[error("its node set has no address for it: add it to externalAddresses")]
    NoExternalAddress,
    /// A name that leads nowhere.
    #[error("{host} cannot be resolved: {why}")]
    Unresolved {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// Kubernetes accepts no such address in an `EndpointSlice`.
    #[error("{0} leads to the machine that asks, not to the node")]
    OwnAddress(IpAddr),
}

impl Unreached {
    /// Whether it is so at every start of a node, for a moment.
    pub fn passes(&self) -> bool {
        matches!(self, Self::NoService | Self::NoPod)
    }

    /// Whether that is not as described, though the node runs. Of a cluster that is not known, others tell.
    pub fn is_pending(&self) -> bool {
        !self.passes() && !matches!(self, Self::Cluster(_))
    }
}

/// What is known of a node where it runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct ObservedNode<'a> {
    /// How it is reached.
    pub exposure: Exposure,
    /// Its own Service.
    pub service: Option<&'a Service>,
    /// Its pod.
    pub pod: Option<&'a Pod>,
    /// The address that its node set names.
    pub external: Option<&'a ExternalAddress>,
}

/// Says where a node is reached from other clusters. `resolve` gives the addresses of a name, or why there are none.
pub fn plan_reached(
    node: &ObservedNode<'_>,
    resolve: impl Fn(&str) -> Result<Vec<IpAddr>, String>,
) -> Result<Reached, Unreached> {
    let resolve = |host: &str| {
        resolve(host).map_err(|why| Unreached::Unresolved { host: host.to_owned(), why })
    };
    let (addresses, p2p, gateway) = match node.exposure {
        Exposure::ClusterIP => (pod_addresses(node.pod), P2P_PORT, GATEWAY_PORT),
        Exposure::NodePort => {
            let service = node.service.ok_or(Unreached::NoService)?;
            let port = |name| node_port(service, name).ok_or(Unreached::NoNodePorts);
            // Any machine of the cluster forwards it. The node's own is one that is there while the node is.
            (machine_addresses(node.pod), port(P2P)?, port(GATEWAY)?)
        }
        Exposure::LoadBalancer => {
            let service = node.service.ok_or(Unreached::NoService)?;
            (balancer_addresses(service, resolve)?, P2P_PORT, GATEWAY_PORT)
        }
        Exposure::External => {
            let given = node.external.ok_or(Unreached::NoExternalAddress)?;
            (resolve(&given.host)?, given.p2p_port, given.gateway_port)
        }
    };
    // In one order, so that nothing is written when only the order of a name's addresses changes.
    let (mut usable, own): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| leads_elsewhere(*address));
    usable.sort_unstable();
    usable.dedup();
    match (usable.is_empty(), own.first()) {
        (false, _) => Ok(Reached { addresses: usable, p2p, gateway }),
        (true, Some(own)) => Err(Unreached::OwnAddress(*own)),
        (true, None) => Err(Unreached::NoPod),
    }
}

/// A pod that has ended keeps its address in its status; nobody is there any more.
fn running(pod: Option<&Pod>) -> Option<&k8s_openapi::api::core::v1::PodStatus> {
    let status = pod?.status.as_ref()?;
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    (!ended).then_some(status)
}

fn parse<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
    addresses.into_iter().filter_map(|address| address.parse().ok()).collect()
}

fn pod_addresses(pod: Option<&Pod>) -> Vec<IpAddr> {
    let Some(status) = running(pod) else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|one| one.ip.as_str());
    parse(all.chain(status.pod_ip.as_deref()))
}

/// As the pod names them: no right to read machines is needed.
fn machine_addresses(pod: Option<&Pod>) -> Vec<IpAddr> {
    let Some(status) = running(pod) else { return Vec::new() };
    let all = status.host_ips.iter().flatten().map(|one| one.ip.as_str());
    parse(all.chain(status.host_ip.as_deref()))
}

fn node_port(service: &Service, name: &str) -> Option<u16> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    let port = ports.iter().find(|port| port.name.as_deref() == Some(name))?.node_port?;
    u16::try_from(port).ok().filter(|port| *port > 0)
}

/// Some load balancers have addresses, others names.
fn balancer_addresses(
    service: &Service,
    resolve: impl Fn(&str) -> Result<Vec<IpAddr>, Unreached>,
) -> Result<Vec<IpAddr>, Unreached> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.and_then(|balancer| balancer.ingress.as_ref());
    let mut found = Vec::new();
    let mut failure = Unreached::NoLoadBalancer;
    for entry in entries.into_iter().flatten() {
        match (&entry.ip, &entry.hostname) {
            (Some(ip), _) => found.extend(parse([ip.as_str()])),
            (None, Some(host)) => match resolve(host) {
                Ok(addresses) => found.extend(addresses),
                Err(why) => failure = why,
            },
            (None, None) => {}
        }
    }
    if found.is_empty() { Err(failure) } else { Ok(found) }
}

/// What the API server accepts in an `EndpointSlice`: its `ValidateNonSpecialIP`.
fn leads_elsewhere(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments()[0] & 0xff0f == 0xff02,
    };
    !local && !address.is_unspecified() && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(ports: [u16; 2], ingress: &Value) -> Service {
        let status = json!({"loadBalancer": {"ingress": ingress}});
        let [p2p, gateway] = ports;
        let ports = json!([
            {"name": "p2p", "port": 26656, "nodePort": p2p},
            {"name": "gateway", "port": 8443, "nodePort": gateway},
        ]);
        serde_json::from_value(json!({"spec": {"ports": ports}, "status": status})).unwrap()
    }

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({"status": status})).unwrap()
    }

    fn here(phase: &str) -> Pod {
        pod(&json!({
            "phase": phase, "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}],
            "hostIP": "192.168.7.3",
        }))
    }

    fn reached(addresses: &[&str], p2p: u16, gateway: u16) -> Reached {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Reached { addresses, p2p, gateway }
    }

    fn nobody(_: &str) -> Result<Vec<IpAddr>, String> {
        Err("no such name".to_owned())
    }

    #[test]
    fn where_pods_reach_each_other_it_is_the_pods_own_address() {
        let pod = here("Running");
        let mut node = ObservedNode { pod: Some(&pod), ..ObservedNode::default() };
        let expected = reached(&["10.244.1.5", "fd00::5"], 26656, 8443);
        assert_eq!(plan_reached(&node, nobody), Ok(expected));
        let ended = here("Failed");
        node.pod = Some(&ended);
        assert_eq!(plan_reached(&node, nobody), Err(Unreached::NoPod));
        node.pod = None;
        assert_eq!(plan_reached(&node, nobody), Err(Unreached::NoPod));
    }

    #[test]
    fn a_node_port_is_reached_at_the_machine_of_the_pod() {
        let (pod, with) = (here("Pending"), service([30656, 30843], &json!([])));
        let mut node = ObservedNode {
            exposure: Exposure::NodePort,
            service: Some(&with),
            pod: Some(&pod),
            external: None,
        };
        assert_eq!(plan_reached(&node, nobody), Ok(reached(&["192.168.7.3"], 30656, 30843)));
        // As it is while its type is ClusterIP still.
        let without = service([0, 0], &json!([]));
        node.service = Some(&without);
        assert_eq!(plan_reached(&node, nobody), Err(Unreached::NoNodePorts));
        node.service = None;
        assert_eq!(plan_reached(&node, nobody), Err(Unreached::NoService));
    }

    #[test]
    fn a_load_balancer_has_addresses_or_names() {
        let reach = |ingress: Value, resolve: &dyn Fn(&str) -> Result<Vec<IpAddr>, String>| {
            let service = service([0, 0], &ingress);
            let node = ObservedNode {
                exposure: Exposure::LoadBalancer,
                service: Some(&service),
                ..ObservedNode::default()
            };
            plan_reached(&node, resolve)
        };
        assert_eq!(reach(json!([]), &nobody), Err(Unreached::NoLoadBalancer));
        let address = reach(json!([{"ip": "203.0.113.9"}]), &nobody);
        assert_eq!(address, Ok(reached(&["203.0.113.9"], 26656, 8443)));
        let name = json!([{"hostname": "lb.example"}]);
        let why = Unreached::Unresolved { host: "lb.example".into(), why: "no such name".into() };
        assert_eq!(reach(name.clone(), &nobody), Err(why));
        let two =
            |_: &str| Ok(vec!["203.0.113.9".parse().unwrap(), "203.0.113.4".parse().unwrap()]);
        let expected = reached(&["203.0.113.4", "203.0.113.9"], 26656, 8443);
        assert_eq!(reach(name, &two), Ok(expected));
    }

    #[test]
    fn a_given_address_has_ports_of_its_own() {
        let given = ExternalAddress {
            node: "ledger-one-0".into(),
            host: "nodes.example".into(),
            p2p_port: 7000,
            gateway_port: 7001,
        };
        let mut node = ObservedNode {
            exposure: Exposure::External,
            external: Some(&given),
            ..ObservedNode::default()
        };
        let resolve = |host: &str| {
            assert_eq!(host, "nodes.example");
            Ok(vec!["203.0.113.9".parse().unwrap()])
        };
        assert_eq!(plan_reached(&node, resolve), Ok(reached(&["203.0.113.9"], 7000, 7001)));
        node.external = None;
        assert_eq!(plan_reached(&node, resolve), Err(Unreached::NoExternalAddress));
    }

    #[test]
    fn an_address_that_the_api_server_refuses_is_a_reason_and_not_an_error() {
        let given = ExternalAddress {
            node: "ledger-one-0".into(),
            host: "nodes.example".into(),
            p2p_port: 7000,
            gateway_port: 7001,
        };
        let node = ObservedNode {
            exposure: Exposure::External,
            external: Some(&given),
            ..ObservedNode::default()
        };
        for own in ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.5", "::1", "fe80::1", "ff02::1"]
        {
            let own: IpAddr = own.parse().unwrap();
            let alone = plan_reached(&node, |_| Ok(vec![own]));
            assert_eq!(alone, Err(Unreached::OwnAddress(own)));
            let both = plan_reached(&node, |_| Ok(vec![own, "203.0.113.9".parse().unwrap()]));
            assert_eq!(both, Ok(reached(&["203.0.113.9"], 7000, 7001)));
        }
    }
}
