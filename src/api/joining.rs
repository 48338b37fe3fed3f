use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Where the first block's terms come from, as a union: exactly one key is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Genesis {
    /// A new chain is formed. Its founders are the validators that are described at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<GenesisCreate>,

    /// A chain that exists is joined. `kubectl bsn bundle` prints what its owners have to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<GenesisFrom>,
}

/// A new chain; it has no settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
pub struct GenesisCreate {}

/// The genesis of a chain that exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GenesisFrom {
    /// Where it is. The operator keeps a copy of its own: once `status.genesisHash` is set, this is not needed any more.
    pub config_map_ref: ConfigMapKeyRef,

    /// SHA-256 of its bytes, 64 hexadecimal digits in lower case. It tells this chain from any other: take it from
    /// somebody you trust, and not only from where the file comes from.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
}

/// An entry of a `ConfigMap` in the network's namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the `ConfigMap`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Its entry.
    #[serde(default = "default_genesis_key")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn default_genesis_key() -> String {
    bsn_core::engine::cometbft::genesis::GENESIS_FILE.to_owned()
}

/// A node of another owner, which the nodes of this network dial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPeer {
    /// Id of its peer-to-peer key, 40 hexadecimal digits in lower case: by it the node proves who it is.
    #[schemars(length(min = 40, max = 40), regex(pattern = r"^[0-9a-f]{40}$"))]
    pub node_id: String,

    /// An IP address or a DNS name, as this network's nodes reach it. A name is resolved when a node starts.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-_.:a-zA-Z0-9]+$"))]
    pub host: String,

    /// Its port there.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

fn default_port() -> u16 {
    bsn_core::engine::cometbft::P2P_PORT
}
