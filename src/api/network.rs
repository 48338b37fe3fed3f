use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AppMount, AppVariable, DeletionPolicy, Disruption, Exposure, ExternalPeer, Genesis, Membership,
    NodeAccess, NodePod, Repair,
};

/// A permissioned blockchain network: one chain and the nodes that run it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "bsn-operator.io",
    version = "v1alpha1",
    kind = "BsnNetwork",
    plural = "bsnnetworks",
    singular = "bsnnetwork",
    shortname = "bsnnet",
    category = "bsn",
    namespaced,
    status = "BsnNetworkStatus",
    doc = "A permissioned blockchain network: one chain and the nodes that run it.",
    printcolumn(name = "Chain", type_ = "string", json_path = ".spec.chainId"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Live", type_ = "string", json_path = ".status.conditions[?(@.type==\"ChainLive\")].status"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Validators", type_ = "integer", json_path = ".status.validators", priority = 1),
    printcolumn(name = "Margin", type_ = "integer", json_path = ".status.margin", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 30 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("use a name of at most 30 characters that starts with a letter and holds only lower-case letters, digits and '-': nodes and their Services are named after it"),
    validation = Rule::new("!has(self.spec.genesis) || !has(self.spec.genesis.from) || !has(oldSelf.spec.genesis) || !has(oldSelf.spec.genesis.from) || self.spec.genesis.from.sha256 == oldSelf.spec.genesis.from.sha256 || !has(oldSelf.status) || !has(oldSelf.status.genesisHash) || self.spec.genesis.from.sha256 == oldSelf.status.genesisHash")
        .message("genesis.from.sha256 is immutable once the genesis was taken over: set it back to status.genesisHash, or apply a network of another name for another chain"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.genesis) && has(self.genesis.from)) || self.nodeSets.exists(s, s.role == 'Validator' && s.replicas > 0 && (!has(s.voting) || s.voting))")
        .message("a chain needs a validator that votes: add a node set with role: Validator and replicas of at least 1, and without voting: false"),
    validation = Rule::new("(has(self.genesis) && has(self.genesis.from)) == (has(oldSelf.genesis) && has(oldSelf.genesis.from))")
        .message("whether a network forms a chain or joins one is immutable: apply a network of another name"),
    validation = Rule::new("!has(self.genesis) || !has(self.genesis.from) || (has(self.externalPeers) && size(self.externalPeers) > 0)")
        .message("a network that joins a chain needs externalPeers: name at least one node of its owners, as kubectl bsn bundle prints them"),
    validation = Rule::new("!has(self.membership) || !has(self.membership.submit) || !has(self.engine.cometbft) || has(self.engine.cometbft.app.container)")
        .message("membership.submit is for an application of your own: remove it, the operator knows the transactions of the built-in store"),
    validation = Rule::new("!has(self.upgrade) || self.upgrade.strategy != 'AtHeight' || (has(self.engine.cometbft.app.container) && has(self.engine.cometbft.app.container.halt))")
        .message("upgrade.strategy: AtHeight needs app.container.halt: name the environment variable by which your application is told to stop at a height"),
    validation = Rule::new("!has(self.engine.cometbft.app.container) || !has(oldSelf.engine.cometbft.app.container) || has(self.upgrade) || (self.engine.cometbft.app.container.image == oldSelf.engine.cometbft.app.container.image && (has(self.engine.cometbft.app.container.command) ? self.engine.cometbft.app.container.command : []) == (has(oldSelf.engine.cometbft.app.container.command) ? oldSelf.engine.cometbft.app.container.command : []) && (has(self.engine.cometbft.app.container.args) ? self.engine.cometbft.app.container.args : []) == (has(oldSelf.engine.cometbft.app.container.args) ? oldSelf.engine.cometbft.app.container.args : []) && (has(self.engine.cometbft.app.container.env) ? self.engine.cometbft.app.container.env : []) == (has(oldSelf.engine.cometbft.app.container.env) ? oldSelf.engine.cometbft.app.container.env : []) && (has(self.engine.cometbft.app.container.mounts) ? self.engine.cometbft.app.container.mounts : []) == (has(oldSelf.engine.cometbft.app.container.mounts) ? oldSelf.engine.cometbft.app.container.mounts : []))")
        .message("say how the application's new version reaches the nodes: upgrade: {strategy: Rolling} one by one, if it makes the same blocks as the old one; upgrade: {strategy: AtHeight} all together after one block, if not"),
    validation = Rule::new("!has(self.upgrade) || self.upgrade.strategy != 'AtHeight' || !has(oldSelf.engine.cometbft.app.container) || self.engine.cometbft.app.container.image == oldSelf.engine.cometbft.app.container.image || (has(oldSelf.engine.cometbft.app.container.halt) && self.engine.cometbft.app.container.halt == oldSelf.engine.cometbft.app.container.halt)")
        .message("the version that runs is told to stop by app.container.halt: add that first, and change the image afterwards"),
    validation = Rule::new("!has(self.networkPolicy) || !has(self.networkPolicy.outsideAddresses) || size(self.networkPolicy.outsideAddresses) > 0 || self.nodeSets.all(s, !has(s.cluster))")
        .message("nodes in other clusters come from outside addresses: put their ranges into networkPolicy.outsideAddresses, or leave it out to admit them from anywhere"),
)]
pub struct BsnNetworkSpec {
    /// The chain family that the network runs. Exactly one of its keys is set.
    #[x_kube(
        validation = Rule::new("has(self.cometbft)")
            .message("name one engine, for example engine: {cometbft: {version: 0.38.25, app: {persistentKvstore: {}}}}"),
        validation = Rule::new("!has(self.cometbft) || !has(oldSelf.cometbft) || has(self.cometbft.app.container) == has(oldSelf.cometbft.app.container)")
            .message("a chain keeps its kind of application: keep app.persistentKvstore or app.container as it was, or apply a new network"),
    )]
    pub engine: Engine,

    /// Id of the chain, 1 to 50 characters. It is part of every signature, hence immutable.
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$"))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("chainId is immutable: every block is signed with it; apply a new network for another chain"))]
    pub chain_id: String,

    /// Where the first block's terms come from. Left out: a new chain is formed. Whether a network forms a chain or joins
    /// one is immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.create) != has(self.from)")
        .message("name one origin of the chain: genesis: {create: {}} for a new one, or genesis: {from: {configMapRef: {name: …}, sha256: …}} to join one that exists"))]
    pub genesis: Option<Genesis>,

    /// Nodes of other owners that the nodes of this network dial; at most 100, each id once. It may change at any time
    /// and restarts nothing: a node reads the list when it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["nodeId".to_owned()]))]
    pub external_peers: Vec<ExternalPeer>,

    /// Groups of nodes that are alike; at most 20.
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub node_sets: Vec<NodeSet>,

    /// What the pods of all nodes have besides what the operator gives them; a node set may say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<NodePod>,

    /// Who changes the members of the chain, and how.
    #[serde(default)]
    pub membership: Membership,

    /// How much of the chain's margin the operator may use up.
    #[serde(default)]
    pub disruption: Disruption,

    /// What is done about a node that is down for good.
    #[serde(default)]
    pub repair: Repair,

    /// How another version of your own application reaches the nodes. Needed when that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,

    /// Certificates.
    #[serde(default)]
    pub pki: Pki,

    /// Who may connect to the nodes' pods. Left out: peers, the network's own pods and the operator. It may change at
    /// any time and restarts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NodeAccess>,

    /// What goes with a node that was removed, or with the network.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// Leave everything as it is: the operator neither makes nor changes anything of this network
    /// while this is true. Nodes run on; certificates are not renewed.
    #[serde(default)]
    pub paused: bool,
}

/// The chain family, as a union: exactly one key is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    /// `CometBFT` 0.38.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cometbft: Option<CometBft>,
}

/// A `CometBFT` network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CometBft {
    /// Version of the engine: 0.38.15 or a later 0.38 release.
    #[schemars(regex(pattern = r"^0\.38\.(1[5-9]|[2-9][0-9]|[1-9][0-9][0-9])$"))]
    pub version: String,

    /// Image of the engine, with the binary `cometbft` on the path. Left out:
    /// `cometbft/cometbft:v<version>`, from the registry the operator is set up with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// How long the engine waits after a block before it begins the next, which sets the time between
    /// blocks; for example `500ms` or `5s`. Left out: the engine's default, one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 10), regex(pattern = r"^[1-9][0-9]*(ms|s)$"))]
    pub timeout_commit: Option<String>,

    /// The application whose state the chain replicates. Exactly one key is set.
    #[x_kube(validation = Rule::new("has(self.persistentKvstore) != has(self.container)")
        .message("name one application: app: {persistentKvstore: {}} for the built-in store, or app: {container: {image: …}} for your own"))]
    pub app: App,
}

/// The application of a `CometBFT` chain, as a union: exactly one key is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct App {
    /// The engine's built-in key-value store, kept on the node's disk. For trials and tests: it
    /// checks no signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_kvstore: Option<PersistentKvstore>,

    /// Your own ABCI application, in a container beside the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<AppContainer>,
}

/// The built-in key-value store; it has no settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct PersistentKvstore {}

/// An ABCI application. It must listen on `tcp://127.0.0.1:26658` (also given in the environment
/// variable `ABCI_ADDRESS`), run as any non-root user with a read-only root file system, and keep its
/// state under the directory in `APP_DATA`, on the node's disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.halt) || !has(self.env) || self.env.all(e, e.name != self.halt.env)")
    .message("halt.env names a variable that the operator sets: remove it from env, or use another name"))]
pub struct AppContainer {
    /// Image of the application.
    #[schemars(length(min = 1, max = 512))]
    pub image: String,

    /// Replaces the image's entry point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub command: Vec<String>,

    /// Arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,

    /// Environment variables besides `ABCI_ADDRESS` and `APP_DATA`; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub env: Vec<AppVariable>,

    /// Secrets and `ConfigMap`s that it sees as files; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".to_owned()]))]
    pub mounts: Vec<AppMount>,

    /// Resources of its container, as in a pod. Left out: requests of 100m and 128Mi, and no limit. A change restarts
    /// the nodes one by one, whatever `upgrade` says: it makes no other blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// How it is told to stop at a height. Needed for `upgrade.strategy: AtHeight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub halt: Option<Halt>,
}

/// How an application is told to stop at a height.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Halt {
    /// Name of an environment variable. Where it holds a height N, the application commits block N, agrees to
    /// no block after it, and stays up; it answers `Info` as before.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z_][A-Z0-9_]*$"))]
    #[x_kube(validation = Rule::new("!(self in ['ABCI_ADDRESS', 'APP_DATA'])")
        .message("this name is taken: the operator sets it to something else; use another one"))]
    pub env: String,
}

/// How another version of an application reaches the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// `Rolling`: node by node, while the chain goes on; for versions that make the same blocks. `AtHeight`:
    /// all nodes stop after one block and go on with the new version; for versions that do not.
    /// The chain stands for about two minutes; naming this strategy is the consent to that.
    pub strategy: UpgradeStrategy,

    /// How long the restart of one node takes at most, for example `60s`, for `AtHeight`: the nodes stop after the
    /// block that is made once all of them could have been restarted three times.
    #[serde(default = "default_restart_time")]
    #[schemars(length(min = 2, max = 20), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("restartTime must be between 1s and 24h"))]
    pub restart_time: String,
}

fn default_restart_time() -> String {
    "60s".to_owned()
}

/// See [`Upgrade`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpgradeStrategy {
    /// Node by node.
    Rolling,
    /// All together, after one block.
    AtHeight,
}

/// Nodes that are alike, as the pods of a `StatefulSet` are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.role == 'Validator' || !has(self.votingPower)")
        .message("votingPower is for validators: remove it from sets with another role"),
    validation = Rule::new("self.role == 'Validator' || !has(self.voting)")
        .message("voting is for validators: remove it from sets with another role"),
    validation = Rule::new("(!has(self.retire) || self.retire.all(n, n.contains('-' + self.name + '-'))) && (!has(self.hold) || self.hold.all(n, n.contains('-' + self.name + '-')))")
        .message("retire and hold take names of this set's nodes, <network>-<set>-<index>: correct the names, or move them to the set they belong to"),
    validation = Rule::new("self.role == oldSelf.role")
        .message("the role of a node set is immutable: add another set"),
    validation = Rule::new("has(self.cluster) == has(oldSelf.cluster) && (!has(self.cluster) || self.cluster == oldSelf.cluster)")
        .message("the cluster of a node set is immutable: a node that moves is another node, with keys of its own. Add a set in the other cluster, and lower the replicas of this one once its nodes vote"),
    validation = Rule::new("!has(self.externalAddresses) || (has(self.exposure) && self.exposure == 'External')")
        .message("externalAddresses are for exposure: External; remove them, or set that"),
    validation = Rule::new("!has(self.externalAddresses) || self.externalAddresses.all(a, a.node.contains('-' + self.name + '-'))")
        .message("externalAddresses take names of this set's nodes, <network>-<set>-<index>: correct the names"),
    validation = Rule::new("!has(self.keys) || self.keys.all(k, k.node.contains('-' + self.name + '-'))")
        .message("keys take names of this set's nodes, <network>-<set>-<index>: correct the names, or move them to the set they belong to"),
    validation = Rule::new("has(self.storage.storageClassName) == has(oldSelf.storage.storageClassName) && (!has(self.storage.storageClassName) || self.storage.storageClassName == oldSelf.storage.storageClassName)")
        .message("the storage class of a node set is immutable: a disk does not move. Add another set, and lower the replicas of this one once its nodes vote"),
    validation = Rule::new("quantity(self.storage.size).compareTo(quantity(oldSelf.storage.size)) >= 0")
        .message("a disk can grow and never shrink: keep storage.size as it was or make it larger; for smaller disks add another set"),
)]
pub struct NodeSet {
    /// Name of the set, at most 15 characters; nodes are named `<network>-<set>-<index>`.
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// What the nodes do on the chain.
    pub role: NodeRole,

    /// The `BsnCluster` its nodes are in; left out: the cluster the operator runs in. In every cluster they are in
    /// a namespace of the same name as here. Immutable: to move nodes, add a set and remove this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self != 'hub'")
        .message("leave cluster out for the cluster the operator runs in"))]
    pub cluster: Option<String>,

    /// How nodes in other clusters, and the operator, reach these nodes. Left out: as the cluster's `defaults` say;
    /// of the cluster the operator runs in `ClusterIP`. It means nothing while all nodes of the network are in one
    /// cluster, that of the operator. It may change at any time and restarts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<Exposure>,

    /// Where nodes with exposure `External` are reached; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".to_owned()]))]
    pub external_addresses: Vec<ExternalAddress>,

    /// How many nodes, at most 100. It may change at any time, for validators too.
    #[schemars(range(min = 0, max = 100))]
    pub replicas: u32,

    /// Whether the validators of this set vote; true if left out, and only for role Validator. It may
    /// change at any time. A validator can be demoted and kept: its nodes follow without voting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voting: Option<bool>,

    /// Voting power of each validator; 1000 if left out. Powers count relative to each other: more
    /// than two thirds of the sum must agree on a block. It may change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub voting_power: Option<u64>,

    /// Names of nodes of this set that must go, whatever the count; at most 100. As long as `replicas`
    /// asks for as many, new nodes with new names take their places. A name may stay in the list: it
    /// is never used again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 52)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub retire: Vec<String>,

    /// Names of nodes of this set that are left as they are: not restarted, not removed, no power
    /// changed, until taken from the list; at most 100. It goes before `retire`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 52)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub hold: Vec<String>,

    /// Keys that you bring, for nodes that are yet to be made; at most 100. Nodes that are not named here get keys of
    /// their own. What a node was made with stays: a later change here is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".to_owned()]))]
    pub keys: Vec<NodeKeys>,

    /// Resources of the engine's container, as in a pod. Left out: requests of 100m and 256Mi, and no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// What the pods of these nodes have besides what the operator gives them. What is left out is as `spec.pod` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<NodePod>,

    /// The nodes' disks.
    #[serde(default)]
    pub storage: Storage,
}

/// Where a node is reached from other clusters, by means that the operator does not make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAddress {
    /// The node's name.
    #[schemars(length(min = 1, max = 52))]
    pub node: String,

    /// An IP address, or a name that is resolved again and again.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,

    /// Port that leads to the node's port 26656.
    #[serde(default = "default_p2p_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub p2p_port: u16,

    /// Port that leads to the node's port 8443.
    #[serde(default = "default_gateway_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub gateway_port: u16,
}

/// Keys that an owner brings for a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeKeys {
    /// The node's name.
    #[schemars(length(min = 1, max = 52))]
    pub node: String,

    /// A Secret in the network's namespace, in the cluster where the node runs. It holds the consensus key in
    /// `priv_validator_key.json` and may hold the peer-to-peer key in `node_key.json`, both as the engine writes them. It
    /// is read once, when the node is made: the operator copies the keys into the node's own Secret, and yours can go.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub secret_name: String,
}

fn default_p2p_port() -> u16 {
    bsn_core::engine::cometbft::P2P_PORT
}

fn default_gateway_port() -> u16 {
    crate::labels::GATEWAY_PORT
}

/// What a node does on its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeRole {
    /// Votes on blocks, unless its set says `voting: false`.
    Validator,
    /// Follows the chain without voting.
    FullNode,
}

/// A node's disk. It outlives the pod, the node and the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size, as a Kubernetes quantity. It may grow, if the storage class allows expansion: the disks of existing nodes
    /// follow without a restart. It never shrinks.
    #[serde(default = "default_storage_size")]
    #[schemars(length(max = 20), regex(pattern = r"^[1-9][0-9]*(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"))]
    pub size: String,

    /// Storage class. Left out: as the cluster's `defaults` say, else the default class there. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

fn default_storage_size() -> String {
    "20Gi".to_owned()
}

impl Default for Storage {
    fn default() -> Self {
        Self { size: default_storage_size(), storage_class_name: None }
    }
}

/// Certificates of a network. The operator runs a certificate authority of its own for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pki {
    /// Certificates of nodes and clients.
    #[serde(default)]
    pub leaf: Leaf,
}

/// How long certificates last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.renewBefore) < duration(self.validity)")
        .message("renewBefore must be shorter than validity: a certificate is renewed when that much is left of it"),
    validation = Rule::new("duration(self.validity) >= duration('2m') && duration(self.validity) <= duration('43800h')")
        .message("validity must be between 2m and 43800h (five years)"),
)]
pub struct Leaf {
    /// From issue to end, for example `2160h`.
    #[serde(default = "default_validity")]
    #[schemars(length(max = 20), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    pub validity: String,

    /// A certificate is renewed, with the same key, when no more than this is left of it. It is also
    /// the longest time the operator may be away before certificates end.
    #[serde(default = "default_renew_before")]
    #[schemars(length(max = 20), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    pub renew_before: String,
}

fn default_validity() -> String {
    "2160h".to_owned()
}

fn default_renew_before() -> String {
    "720h".to_owned()
}

impl Default for Leaf {
    fn default() -> Self {
        Self { validity: default_validity(), renew_before: default_renew_before() }
    }
}

/// What the operator reports about a network. It changes on transitions only: heights and other
/// live numbers are in the metrics and in `kubectl bsn status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = super::unseen_status()))]
pub struct BsnNetworkStatus {
    /// Generation of the spec this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// `Ready`, `Reconciling`, `Stalled`, `ChainLive`, `MembershipConverged`, `CertificatesValid`,
    /// `Paused`; and over several clusters `ClustersReachable` and `DrainsWaiting`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,

    /// Random id of the network; it stays when the object is deleted and applied again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,

    /// SHA-256 of the genesis, once it is fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_hash: Option<String>,

    /// Nodes that are ready, of all: `4/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,

    /// Number of validators that vote, by the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validators: Option<u32>,

    /// How many of them are other owners'; left out if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_validators: Option<u32>,

    /// `true` if other owners' validators make no blocks without this network's. Then it is deleted only with a consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_by_others: Option<bool>,

    /// How many validators may be down before the chain stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<u32>,

    /// The earliest end of a node's certificate (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates_end: Option<String>,
}
