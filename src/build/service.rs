//! A node's Service: the one name under which it is reached, in configs, certificates and by peers. It has the same
//! name in every cluster of the network; where the node is in another one, it is a *mirror*.

use bsn_core::engine::cometbft::P2P_PORT;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::NodeParts;
use crate::api::Exposure;
use crate::labels::{GATEWAY_PORT, RUNS_IN};

/// Name of the port by which peers reach a node.
pub const P2P: &str = "p2p";
/// Name of the port of its gateway.
pub const GATEWAY: &str = "gateway";

/// Builds a node's Service in the cluster where the node runs, with an address of its own: the engine resolves a
/// peer's name once, and a pod's address would not survive a restart.
pub fn build_service(node: &NodeParts<'_>, exposure: Exposure) -> Service {
    let port = |(name, number): (&str, u16)| ServicePort {
        target_port: Some(IntOrString::String(name.to_owned())),
        ..service_port(name, number)
    };
    let kind = match exposure {
        // What leads to it from elsewhere, if anything, is made by others.
        Exposure::ClusterIP | Exposure::External => "ClusterIP",
        Exposure::NodePort => "NodePort",
        Exposure::LoadBalancer => "LoadBalancer",
    };
    Service {
        metadata: node.owned(node.name.to_string()),
        spec: Some(ServiceSpec {
            type_: Some(kind.to_owned()),
            selector: Some(node.selector()),
            // Validators need each other before any of them can be ready.
            publish_not_ready_addresses: Some(true),
            ports: Some(PORTS.map(port).to_vec()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Builds the Service that stands for a node in a cluster where the node does not run. It selects no pod; an
/// `EndpointSlice` says where it leads. It belongs to the network rather than to the `BsnNode`: one that is deleted and
/// stamped again would otherwise take it along, and engines that know its address would not learn the new one.
pub fn build_mirror_service(node: &NodeParts<'_>) -> Service {
    let metadata = node.network.owned(node.name.to_string());
    let mut labels = node.labels();
    let cluster = Some(node.identity.cluster.as_str()).filter(|name| !name.is_empty());
    labels.insert(RUNS_IN.to_owned(), cluster.unwrap_or("hub").to_owned());
    Service {
        metadata: ObjectMeta { labels: Some(labels), ..metadata },
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            ports: Some(PORTS.map(|(name, number)| service_port(name, number)).to_vec()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Whether a Service of ours stands for a node in another cluster. Its mark tells, not its selector: a node's own, whose
/// selector somebody took away, is not one.
pub fn is_mirror(service: &Service) -> bool {
    service.labels().contains_key(RUNS_IN)
}

const PORTS: [(&str, u16); 2] = [(P2P, P2P_PORT), (GATEWAY, GATEWAY_PORT)];

fn service_port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::samples::with_node;

    #[test]
    fn the_exposure_is_the_type_of_the_nodes_own_service() {
        let kind = |exposure| {
            with_node(None, |node| build_service(node, exposure).spec.and_then(|spec| spec.type_))
        };
        assert_eq!(kind(Exposure::ClusterIP).as_deref(), Some("ClusterIP"));
        assert_eq!(kind(Exposure::External).as_deref(), Some("ClusterIP"));
        assert_eq!(kind(Exposure::NodePort).as_deref(), Some("NodePort"));
        assert_eq!(kind(Exposure::LoadBalancer).as_deref(), Some("LoadBalancer"));
    }

    #[test]
    fn a_mirror_selects_nothing_and_belongs_to_the_network() {
        with_node(Some("hub"), |node| {
            let (mirror, own) =
                (build_mirror_service(node), build_service(node, Exposure::NodePort));
            assert!(is_mirror(&mirror) && !is_mirror(&own));
            insta::assert_yaml_snapshot!(mirror);
        });
    }

    #[test]
    fn in_a_member_cluster_a_mirror_has_no_owner() {
        with_node(None, |node| {
            assert_eq!(build_mirror_service(node).metadata.owner_references, None);
        });
    }
}
