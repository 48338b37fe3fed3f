//! Who may connect to a network's pods in one cluster.
//!
//! Nothing but these two ports is admitted, and only what comes in is restricted:
//!
//! - **26656, peers.** From anywhere, unless the description names ranges. Who may be a peer is decided by the chain, not
//!   by Kubernetes: nodes of other owners, and of other clusters, come from addresses that nobody here knows, and often
//!   from that of a machine which forwarded them. A peer that is shut out by mistake may cost the chain its quorum; what a
//!   stranger gains by a connection is little: peers prove their keys to each other, and the engine admits a bounded number
//!   of connections beside those that it makes itself.
//! - **8443, the gateway.** The network's own pods, whose guards ask each other before an engine starts; the operator, by
//!   its namespace; and whom the description names. If the network spans clusters, the same come from outside of this one,
//!   and so from anywhere, unless ranges are named. The gateway asks everybody for a certificate of the network.
//! - **Probes** come from the machine the pod is on, which Kubernetes always admits. What comes by a port-forward begins
//!   inside of the pod.
//! - **What goes out** is not restricted: peers and names are wherever the network's owners put them, an application of
//!   the user's own may need anything, and a policy that is wrong about it stops a chain. A policy of the user's own for the
//!   same pods can deny it.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use bsn_core::engine::cometbft::P2P_PORT;

use super::NetworkParts;
use crate::api::NodeAccess;
use crate::labels;

/// Kubernetes' label of a namespace: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Who is admitted.
#[derive(Debug, Clone, Copy)]
pub struct Admitted<'a> {
    /// What is described.
    pub access: &'a NodeAccess,
    /// Namespace of the operator; `None` = it runs in another cluster.
    pub operator: Option<&'a str>,
    /// Nodes of the network are in other clusters than this.
    pub spans_clusters: bool,
}

/// Builds the policy of a network's pods in one cluster.
pub fn build_network_policy(network: &NetworkParts<'_>, admitted: &Admitted<'_>) -> NetworkPolicy {
    let Admitted { access, operator, spans_clusters } = *admitted;
    let own = || selector(labels::NETWORK_ID, network.network_id);
    let own_pods =
        || NetworkPolicyPeer { pod_selector: Some(own()), ..NetworkPolicyPeer::default() };
    // `None` = from anywhere.
    let outside =
        access.outside_addresses.as_ref().map(|ranges| ranges.iter().map(|range| within(range)));
    let peers = outside.clone().map(|outside| [own_pods()].into_iter().chain(outside).collect());
    let operator = operator.map(|namespace| NetworkPolicyPeer {
        namespace_selector: Some(selector(NAMESPACE_NAME, namespace)),
        ..NetworkPolicyPeer::default()
    });
    let named = [own_pods()].into_iter().chain(operator).chain(access.gateway_from.iter().cloned());
    let callers = match (spans_clusters, outside) {
        (false, _) => Some(named.collect()),
        (true, Some(outside)) => Some(named.chain(outside).collect()),
        (true, None) => None,
    };
    NetworkPolicy {
        metadata: network.owned(network.name.network_policy()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(own()),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![rule(P2P_PORT, peers), rule(labels::GATEWAY_PORT, callers)]),
            egress: None,
        }),
    }
}

fn rule(port: u16, from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    let port = NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    NetworkPolicyIngressRule { from, ports: Some(vec![port]) }
}

fn selector(key: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some([(key.to_owned(), value.to_owned())].into()),
        ..LabelSelector::default()
    }
}

fn within(cidr: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr: cidr.to_owned(), except: None }),
        ..NetworkPolicyPeer::default()
    }
}

#[cfg(test)]
#[path = "network_policy_tests.rs"]
mod tests;
