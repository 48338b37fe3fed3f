use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{NodeRole, Storage};

/// One node of a network: one process with one identity. The network's operator stamps it from a
/// node set; edit the `BsnNetwork`, not this.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "bsn-operator.io",
    version = "v1alpha1",
    kind = "BsnNode",
    plural = "bsnnodes",
    singular = "bsnnode",
    shortname = "bsnnode",
    category = "bsn",
    namespaced,
    status = "BsnNodeStatus",
    doc = "One node of a network: one process with one identity. Stamped from a node set of a BsnNetwork; edit that instead.",
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.networkRef.name"),
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.cluster"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Certificate-Ends",
        type_ = "string",
        json_path = ".status.certificateEnds",
        priority = 1
    ),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.address", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.cluster) == has(oldSelf.cluster) && (!has(self.cluster) || self.cluster == oldSelf.cluster)")
    .message("cluster is immutable: a node that moves is another node, with keys of its own"))]
pub struct BsnNodeSpec {
    /// The network, in the same namespace.
    #[x_kube(validation = Rule::new("self == oldSelf").message("networkRef is immutable: a node belongs to one network"))]
    pub network_ref: NetworkRef,

    /// The node set it was stamped from.
    #[schemars(length(min = 1, max = 15))]
    pub node_set: String,

    /// What it does on the chain.
    pub role: NodeRole,

    /// The `BsnCluster` it is in; left out: the cluster the operator runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub cluster: Option<String>,

    /// Its disk.
    #[serde(default)]
    pub storage: Storage,
}

/// A network in the same namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRef {
    /// Its name.
    #[schemars(length(min = 1, max = 30))]
    pub name: String,
}

/// What the operator reports about a node; it changes on transitions only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::unseen_status()))]
pub struct BsnNodeStatus {
    /// Generation of the spec this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Ready`, `Reconciling`, `Stalled`, `CertificatesValid`; and `DiskAsDescribed` once its disk was to grow.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,

    /// Random id of the identity; a new one is never made under the same node name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_id: Option<String>,

    /// Address of the consensus key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,

    /// Id of the node in the peer-to-peer network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,

    /// When the node's certificate ends (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_ends: Option<String>,
}
