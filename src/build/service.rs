//! A node's Service: the one name under which it is reached, in configs, certificates and by peers.

use bsn_core::engine::cometbft::P2P_PORT;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::NodeParts;
use crate::labels::GATEWAY_PORT;

/// Builds a node's Service, with an address of its own: the engine resolves a peer's name once, and
/// a pod's address would not survive a restart.
pub fn build_service(node: &NodeParts<'_>) -> Service {
    let port = |name: &str, port: u16| ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(port),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata: node.owned(node.name.to_string()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(node.selector()),
            // Validators need each other before any of them can be ready.
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![port("p2p", P2P_PORT), port("gateway", GATEWAY_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
