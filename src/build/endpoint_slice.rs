//! Where a mirror Service leads: the addresses of a node that runs in another cluster.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use super::NodeParts;
use super::service::{GATEWAY, P2P};
use crate::labels;

/// Where a node is reached from other clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Addresses, any of which will do; sorted.
    pub addresses: Vec<IpAddr>,
    /// The port there that leads to its peer-to-peer port.
    pub p2p: u16,
    /// The port there that leads to its gateway.
    pub gateway: u16,
}

/// A family of addresses. A Service forwards within its own only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Four bytes.
    IPv4,
    /// Sixteen bytes.
    IPv6,
}

impl Family {
    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::IPv4,
            IpAddr::V6(_) => Self::IPv6,
        }
    }

    /// That in which a Service is reached first, as the API server chose it.
    pub fn of_service(service: &Service) -> Self {
        let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
        match families.and_then(|families| families.first()).map(String::as_str) {
            Some("IPv6") => Self::IPv6,
            _ => Self::IPv4,
        }
    }

    /// As it is written in an `EndpointSlice`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
}

/// Builds the `EndpointSlice` of a node's mirror Service, with the addresses of one family. The family is part of its
/// name, since it cannot be changed. It goes when the mirror goes.
pub fn build_endpoint_slice(
    node: &NodeParts<'_>,
    mirror: &Service,
    family: Family,
    reached: &Reached,
) -> EndpointSlice {
    let endpoint = |address: &IpAddr| Endpoint {
        // One each: only the first address of an endpoint is used.
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
        ..Endpoint::default()
    };
    let port = |(name, number): (&str, u16)| EndpointPort {
        name: Some(name.to_owned()),
        port: Some(i32::from(number)),
        protocol: Some("TCP".to_owned()),
        ..EndpointPort::default()
    };
    let mut all = node.labels();
    all.insert(labels::SERVICE_NAME.to_owned(), node.name.to_string());
    all.insert(labels::SLICE_MANAGED_BY.to_owned(), labels::OPERATOR.to_owned());
    let name = format!("{}-{}", node.name, family.as_str().to_lowercase());
    let addresses = reached.addresses.iter().filter(|address| Family::of(**address) == family);
    EndpointSlice {
        metadata: ObjectMeta {
            labels: Some(all),
            owner_references: mirror.owner_ref(&()).map(|owner| vec![owner]),
            ..node.network.kept(name)
        },
        address_type: family.as_str().to_owned(),
        endpoints: addresses.map(endpoint).collect(),
        ports: Some([(P2P, reached.p2p), (GATEWAY, reached.gateway)].map(port).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceSpec;

    use super::*;
    use crate::build::samples::with_node;
    use crate::build::service::build_mirror_service;

    #[test]
    fn a_slice_leads_to_every_address_of_its_family() {
        let reached = Reached {
            addresses: ["10.1.0.7", "10.1.0.8", "fd00::7"].map(|ip| ip.parse().unwrap()).to_vec(),
            p2p: 30656,
            gateway: 30843,
        };
        with_node(None, |node| {
            let mut mirror = build_mirror_service(node);
            mirror.metadata.uid = Some("mirror-uid".to_owned());
            insta::assert_yaml_snapshot!(build_endpoint_slice(
                node,
                &mirror,
                Family::IPv4,
                &reached
            ));
            let slice = build_endpoint_slice(node, &mirror, Family::IPv6, &reached);
            assert_eq!(slice.metadata.name.as_deref(), Some("city-ledger-hangzhou-0-ipv6"));
            assert_eq!(slice.address_type, "IPv6");
            assert_eq!(slice.endpoints[0].addresses, ["fd00::7"]);
            assert_eq!(slice.endpoints.len(), 1);
        });
    }

    #[test]
    fn a_service_forwards_in_the_family_the_server_gave_it_first() {
        let with = |families: &[&str]| Service {
            spec: Some(ServiceSpec {
                ip_families: Some(families.iter().map(|one| (*one).to_owned()).collect()),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        };
        assert_eq!(Family::of_service(&with(&["IPv6", "IPv4"])), Family::IPv6);
        assert_eq!(Family::of_service(&with(&["IPv4"])), Family::IPv4);
        assert_eq!(Family::of_service(&Service::default()), Family::IPv4);
    }
}
