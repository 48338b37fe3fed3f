use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A cluster in which nodes of networks may run, besides the one the operator runs in.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "bsn-operator.io",
    version = "v1alpha1",
    kind = "BsnCluster",
    plural = "bsnclusters",
    singular = "bsncluster",
    shortname = "bsncluster",
    category = "bsn",
    status = "BsnClusterStatus",
    doc = "A cluster in which nodes of networks may run, besides the one the operator runs in. `kubectl bsn cluster join` makes it.",
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Networks", type_ = "integer", json_path = ".status.networks", priority = 1),
    printcolumn(name = "Last-Contact", type_ = "date", json_path = ".status.lastContact", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("use a name of at most 40 characters that holds only lower-case letters, digits and '-': objects in the cluster are named after it"),
    validation = Rule::new("self.metadata.name != 'hub'")
        .message("the name hub is kept for the cluster the operator runs in: use another one"),
)]
#[serde(rename_all = "camelCase")]
pub struct BsnClusterSpec {
    /// How to reach the cluster: a Secret in the operator's own namespace that holds a kubeconfig. It is
    /// read again and again: to rotate the credentials, write new ones into it.
    pub kubeconfig_secret_ref: KubeconfigSecretRef,

    /// Where the cluster is, for people and for spreading voters; for example `cn-east-hangzhou`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    pub region: Option<String>,

    /// Namespaces whose networks may have nodes in the cluster, 1 to 50. A network's nodes are in a namespace
    /// of the network's own, in every cluster. The operator makes none: `kubectl bsn cluster join` does.
    #[schemars(
        length(min = 1, max = 50),
        inner(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))
    )]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("!self.exists(n, n.startsWith('kube-'))")
            .message("namespaces that begin with kube- belong to Kubernetes: give networks one of their own"),
    )]
    pub allowed_namespaces: Vec<String>,

    /// What holds for nodes in the cluster unless their node set says otherwise.
    #[serde(default)]
    pub defaults: ClusterDefaults,

    /// Image of the agents in every node's pod there. Left out: the operator's own. Set it where the machines
    /// pull from another registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ClusterImage>,
}

/// A kubeconfig in a Secret of the operator's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeconfigSecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// The entry. What it holds must be complete in itself: no names of files, no commands.
    #[serde(default = "default_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn default_key() -> String {
    "kubeconfig".to_owned()
}

/// What holds for nodes in a cluster unless their node set says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDefaults {
    /// How nodes there are reached from other clusters.
    #[serde(default)]
    pub exposure: Exposure,

    /// Storage class of the nodes' disks; left out: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// How a node is reached from other clusters, by the type of the Service that does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Exposure {
    /// Pods of all clusters reach each other's addresses.
    #[default]
    ClusterIP,
    /// By a port of the cluster's machines.
    NodePort,
    /// By a load balancer of its own.
    LoadBalancer,
    /// By an address that the node set names in `externalAddresses`.
    External,
}

/// Image of the agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterImage {
    /// The image, with registry and tag or digest.
    #[schemars(length(min = 1, max = 512))]
    pub reference: String,

    /// Secret with the registry's credentials, in each of the allowed namespaces there. Left out: none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pull_secret_name: Option<String>,
}

/// What the operator reports about a cluster; it changes on transitions only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::unseen_status()))]
pub struct BsnClusterStatus {
    /// Generation of the spec this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Ready`, `Reconciling`, `Stalled`, `Reachable`, `RightsSufficient`, `AgentImageAvailable`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,

    /// Version of its Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Uid of its namespace `kube-system`, which tells it from other clusters. It is kept from the first contact on: an
    /// address that leads to another cluster later is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,

    /// When its API server answered last (RFC 3339), as of the last change of this status. While `Reachable` is
    /// true it answers every few seconds, and nothing is written for that; the metric
    /// `bsn_cluster_last_contact_age_seconds` has the live number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_contact: Option<String>,

    /// How many nodes it hosts, as far as was last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,

    /// Of how many networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<u32>,
}
