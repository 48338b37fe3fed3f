use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who changes the members of the chain, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// Who changes the chain's validators. With `Submit` the operator does, by transactions. With `External`
    /// it makes and retires nodes and watches; the chain's own governance changes its validators. An
    /// application of your own without `submit` is treated as `External`, whatever is set here.
    #[serde(default)]
    pub authority: MembershipAuthority,

    /// When a new node follows the chain well enough to vote.
    #[serde(default)]
    pub catch_up: CatchUp,

    /// How your own application is told to change a validator. Not for the built-in store, whose
    /// transactions the operator knows; not used with `External`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submit: Option<Submission>,
}

/// Who changes a chain's validators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MembershipAuthority {
    /// The operator, by transactions.
    #[default]
    Submit,
    /// The chain's own governance. The operator makes and retires nodes and watches.
    External,
}

/// When a node is caught up; it does not vote before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CatchUp {
    /// By how many blocks it may trail the newest one, 1 to 1000.
    #[serde(default = "default_max_lag_blocks")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_lag_blocks: u32,

    /// For how many seconds it must have kept to that, at most 3600.
    #[serde(default = "default_stable_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub stable_seconds: u32,
}

fn default_max_lag_blocks() -> u32 {
    5
}

fn default_stable_seconds() -> u32 {
    30
}

impl Default for CatchUp {
    fn default() -> Self {
        Self { max_lag_blocks: default_max_lag_blocks(), stable_seconds: default_stable_seconds() }
    }
}

/// Transactions by which an application of your own changes its validators.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.txTemplate.contains('{power}') && self.txTemplate.contains('{serial}') && (self.txTemplate.contains('{pubKeyBase64}') || self.txTemplate.contains('{pubKeyHex}') || self.txTemplate.contains('{address}'))")
    .message("txTemplate must hold {power}, {serial} and one of {pubKeyBase64}, {pubKeyHex} and {address}: put them where your application reads them"))]
pub struct Submission {
    /// The transaction that gives one validator a power, as text of at most 4096 characters. It is sent as
    /// it stands here, in UTF-8, after these words are filled in: `{pubKeyBase64}` or `{pubKeyHex}`, the
    /// validator's public key; `{address}`, the address of that key in upper-case hexadecimal digits;
    /// `{power}`, its new voting power, 0 for a validator that is to go; `{serial}`, a number that makes
    /// the bytes of each transaction different, since nodes refuse bytes they have seen before.
    #[schemars(length(min = 1, max = 4096))]
    pub tx_template: String,
}

/// How much of the chain's margin the operator may use up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disruption {
    /// How many validators must be spare while one restarts: more of them could be lost at that moment
    /// and the chain would go on. At most 30.
    #[serde(default)]
    #[schemars(range(min = 0, max = 30))]
    pub reserve: u32,

    /// A restart may stop the chain for a while where it has no validator to spare in any case, as with
    /// one to three of equal power. Without it, such a restart waits for a person's consent.
    #[serde(default)]
    pub allow_downtime: bool,
}

/// What is done about a node that is down for good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.cureAfter) >= duration('1s') && duration(self.gracePeriod) <= duration('720h')")
        .message("cureAfter must be at least 1s, and gracePeriod at most 720h"),
    validation = Rule::new("duration(self.cureAfter) <= duration(self.gracePeriod)")
        .message("make gracePeriod longer or cureAfter shorter: a node is restarted before it is replaced"),
)]
pub struct Repair {
    /// Whether voters are replaced without asking. `Manual`: no, name the node in its set's `retire`.
    /// `Automatic`: a voter that is proved down, that no restart helped, for longer than the grace period
    /// is replaced by a new node with a new key.
    #[serde(default)]
    pub mode: RepairMode,

    /// How long a voter must be down before it is replaced, for example `10m`; at most `720h`.
    #[serde(default = "default_grace_period")]
    #[schemars(length(min = 2, max = 20), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    pub grace_period: String,

    /// How long a node must be down before it is restarted as a cure, for example `3m`. It applies in
    /// both modes. Before that, its machine tries by itself.
    #[serde(default = "default_cure_after")]
    #[schemars(length(min = 2, max = 20), regex(pattern = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    pub cure_after: String,
}

/// Whether voters that are down for good are replaced without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RepairMode {
    /// A person asks for it.
    #[default]
    Manual,
    /// The operator replaces them.
    Automatic,
}

fn default_grace_period() -> String {
    "10m".to_owned()
}

fn default_cure_after() -> String {
    "3m".to_owned()
}

impl Default for Repair {
    fn default() -> Self {
        Self {
            mode: RepairMode::default(),
            grace_period: default_grace_period(),
            cure_after: default_cure_after(),
        }
    }
}
