use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Who may connect to the nodes' pods. In each cluster the operator makes a `NetworkPolicy` that admits peers at port
/// 26656 and, at the gateways' port 8443, the network's own pods and the operator; everything else is denied. What nodes
/// connect to is not restricted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeAccess {
    /// Make the policies. With `false` the operator removes its own, and who may connect is left to yours.
    #[serde(default = "default_enabled")]
    pub enabled: bool,

    /// Who else may reach the nodes' gateways, as in a `NetworkPolicy`; at most 50. It counts in every cluster of the
    /// network; a `podSelector` without a `namespaceSelector` is about pods in the network's own namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    #[x_kube(validation = Rule::new("self.all(p, has(p.ipBlock) ? !has(p.podSelector) && !has(p.namespaceSelector) : has(p.podSelector) || has(p.namespaceSelector))")
        .message("each entry of gatewayFrom names pods or addresses: give it a podSelector, a namespaceSelector or both, or else an ipBlock alone"))]
    pub gateway_from: Vec<NetworkPolicyPeer>,

    /// Ranges of addresses (CIDR) from which those come that are no pods of the network in the same cluster: nodes of
    /// other owners and, if the network has nodes in several clusters, those in the others, their gateways' callers and
    /// the operator. At most 50. Left out: from anywhere; who may take part is then decided by keys and certificates
    /// alone. Empty: from nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50), inner(length(min = 1, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(c, isCIDR(c))")
        .message("outsideAddresses holds ranges of addresses, for example 192.168.7.0/24 or fd00:7::/48; one address is a range of /32 or /128"))]
    pub outside_addresses: Option<Vec<String>>,
}

fn default_enabled() -> bool {
    true
}

impl Default for NodeAccess {
    fn default() -> Self {
        Self { enabled: default_enabled(), gateway_from: Vec::new(), outside_addresses: None }
    }
}
