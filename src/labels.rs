//! Labels, annotations, field manager and ports, each defined once.

/// Prefix of the operator's own labels, annotations and finalizers.
pub const PREFIX: &str = "bsn-operator.io/";

/// Standard label: what made the object. Watches select on it.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const OPERATOR: &str = "bsn-operator";
/// Standard label: the program that runs.
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// Standard label: the network.
pub const INSTANCE: &str = "app.kubernetes.io/instance";

/// The network's name.
pub const NETWORK: &str = "bsn-operator.io/network";
/// The network's random id; an object of another id is a stranger's.
pub const NETWORK_ID: &str = "bsn-operator.io/network-id";
/// The node's name.
pub const NODE: &str = "bsn-operator.io/node";
/// The identity's random id.
pub const IDENTITY_ID: &str = "bsn-operator.io/identity-id";
/// The node's role, for selectors.
pub const ROLE: &str = "bsn-operator.io/role";
/// Id of the hub that manages the object.
pub const HUB_ID: &str = "bsn-operator.io/hub-id";

/// Of a Service that stands for a node of another cluster: which, as `BsnCluster`s are named, or `hub`.
pub const RUNS_IN: &str = "bsn-operator.io/runs-in";

/// The member cluster that an object belongs to the join of.
pub const CLUSTER: &str = "bsn-operator.io/cluster";

/// Of a pod that only proves that the agents' image can be run where it is.
pub const IMAGE_PROOF: &str = "bsn-operator.io/image-proof";

/// Annotation of a Secret with a node's keys: the owner's Secret that they were copied from.
pub const KEYS_FROM: &str = "bsn-operator.io/keys-from";

/// Annotation: hash of what was applied last, to see a changed wish without asking the API server.
pub const APPLIED_HASH: &str = "bsn-operator.io/applied-hash";

/// Annotation of a `BsnNetwork` or `BsnNode`: member clusters, separated by commas, that are lost for good and not
/// waited for any more.
pub const FORGET_CLUSTER: &str = "bsn-operator.io/forget-cluster";

/// Annotation of pods: hash of the template they were made from.
pub const TEMPLATE_HASH: &str = "bsn-operator.io/template-hash";
/// Annotation of a pod: the block after which its application halts.
pub const HALTS_AT: &str = "bsn-operator.io/halts-at";
/// Annotation of a pod: the environment variable that tells its application.
pub const HALT_ENV: &str = "bsn-operator.io/halt-env";

/// Field manager of every server-side apply.
pub const FIELD_MANAGER: &str = "bsn-operator";

/// Kubernetes' label of an `EndpointSlice`: the Service it is for.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Kubernetes' label of an `EndpointSlice`: what keeps it. Kubernetes' own controller leaves those of others alone.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Selector of all objects the operator makes.
pub fn managed_selector() -> String {
    format!("{MANAGED_BY}={OPERATOR}")
}

/// Selector of the `EndpointSlice`s the operator makes: Kubernetes copies a Service's labels to those that it makes
/// itself, [`MANAGED_BY`] among them.
pub fn slice_selector() -> String {
    format!("{},{SLICE_MANAGED_BY}={OPERATOR}", managed_selector())
}

/// Port of a node's gateway (HTTPS, mutual TLS).
pub const GATEWAY_PORT: u16 = 8443;
/// Port of a node's probes (plain HTTP, answers nothing but ready or not).
pub const PROBE_PORT: u16 = 8081;
/// Port of the operator's `/livez`, `/readyz` and `/metrics`.
pub const OPERATOR_PORT: u16 = 8080;
/// Port of the operator's status endpoint, on loopback only: `kubectl bsn` reaches it by port-forward,
/// so the API server authenticates and authorises its readers.
pub const STATUS_PORT: u16 = 8082;

/// Name of the Lease that elects the operator's leader; also the operator's Deployment by default.
pub const LEASE: &str = "bsn-operator";
