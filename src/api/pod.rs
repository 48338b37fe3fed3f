use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the pods of nodes have besides what the operator gives them. What is left out of a node set is as `spec.pod`
/// says, field by field. A change restarts the nodes concerned, one by one, like any other change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePod {
    /// Labels of the pods; at most 32. Those of the operator are reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('bsn-operator.io/') && !k.startsWith('statefulset.kubernetes.io/') && !k.startsWith('apps.kubernetes.io/') && !(k in ['app.kubernetes.io/managed-by', 'app.kubernetes.io/name', 'app.kubernetes.io/instance', 'controller-revision-hash']))")
        .message("this label is taken: pods are found by the labels of the operator and of Kubernetes; use a prefix of your own"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations of the pods; at most 32, of 32 KiB in all. One that you change restarts the nodes one by one: the way
    /// to restart a set on purpose.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(k, !k.startsWith('bsn-operator.io/'))")
        .message("annotations that begin with bsn-operator.io/ are the operator's: use a prefix of your own"))]
    pub annotations: BTreeMap<String, String>,

    /// Labels that a machine must have to run the pods; at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of machines that the pods tolerate; at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<PodToleration>,

    /// How nodes of one role keep apart. Left out: they prefer different machines and different zones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,

    /// Priority class of the pods, which must exist in their cluster. Where machines are full, pods of a higher one push
    /// out those of a lower one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub priority_class_name: Option<String>,

    /// Secrets with the credentials of registries, for the images of the engine and of your application; at most 8.
    /// They must exist in the namespace of the pods, in their cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub image_pull_secrets: Vec<PullSecret>,

    /// How long a pod may take to end before it is killed, in seconds, 10 to 3600. Left out: 60. The engine ends within
    /// one second; set it to what your application needs to finish a block and write its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 3600))]
    pub termination_grace_period_seconds: Option<u32>,
}

/// A taint that pods tolerate, as in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.operator) && self.operator == 'Exists' ? !has(self.value) : has(self.key)")
        .message("a toleration with operator: Exists has no value, any other has a key"),
    validation = Rule::new("!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')")
        .message("tolerationSeconds is for effect: NoExecute"),
)]
pub struct PodToleration {
    /// Key of the taint; left out: every taint, with operator `Exists`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 316))]
    pub key: Option<String>,

    /// `Equal` (if left out): the taint has this value. `Exists`: whatever its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,

    /// Value of the taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub value: Option<String>,

    /// Effect of the taint; left out: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,

    /// For how long the pod stays on a machine that gets the taint, with effect `NoExecute`; left out: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub toleration_seconds: Option<i64>,
}

/// How a taint is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TolerationOperator {
    /// Any value.
    Exists,
    /// This value.
    Equal,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// New pods do not come.
    NoSchedule,
    /// New pods come if nothing else takes them.
    PreferNoSchedule,
    /// Pods that run are ended, too.
    NoExecute,
}

/// How nodes of one network and role keep apart, in all sets of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spread {
    /// Over machines.
    #[serde(default)]
    pub machines: Apart,

    /// Over zones, by the machines' label `topology.kubernetes.io/zone`.
    #[serde(default)]
    pub zones: Apart,
}

/// Whether two nodes may be in one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Apart {
    /// If no other place is left.
    #[default]
    Preferred,
    /// Never: a pod for which no place is left does not start.
    Required,
    /// It does not matter.
    Ignored,
}

/// A Secret with a registry's credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// An environment variable of an application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.value) != has(self.valueFrom)")
        .message("give the variable either value or valueFrom"),
    validation = Rule::new("!(self.name in ['ABCI_ADDRESS', 'APP_DATA']) && !self.name.startsWith('BSN_')")
        .message("this variable is the operator's, as are all that begin with BSN_: use another name"),
)]
pub struct AppVariable {
    /// Its name.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z_][-A-Za-z0-9_.]*$"))]
    pub name: String,

    /// Its value. `$(NAME)` stands for a variable before it; `ABCI_ADDRESS` and `APP_DATA` come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,

    /// Where its value is. Exactly one key is set. It is read when the pod starts: a change of what it refers to restarts
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.secretKeyRef) != has(self.configMapKeyRef)")
        .message("name one source: secretKeyRef or configMapKeyRef"))]
    pub value_from: Option<AppVariableSource>,
}

/// Where an application's variable comes from, as a union: exactly one key is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppVariableSource {
    /// An entry of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<EntryRef>,

    /// An entry of a `ConfigMap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<EntryRef>,
}

/// An entry of a Secret or `ConfigMap` in the namespace of the pods, in their cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EntryRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,

    /// Name of the entry.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,

    /// The pod starts without it, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// A Secret or `ConfigMap` that an application sees as files, read only. Exactly one of `secret` and `configMap` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.secret) != has(self.configMap)")
    .message("name one source: secret: {name: …} or configMap: {name: …}"))]
pub struct AppMount {
    /// The directory: an absolute path, not below `/bsn`, `/tmp`, `/dev`, `/proc` or `/sys`.
    #[schemars(length(min = 2, max = 253), regex(pattern = r"^(/[-._A-Za-z0-9]+)+$"))]
    #[x_kube(validation = Rule::new("!self.matches('^/(bsn|tmp|dev|proc|sys)(/|$)') && !self.matches('/[.][.]?(/|$)')")
        .message("mount it elsewhere: /bsn, /tmp, /dev, /proc and /sys are taken, and . and .. are no names"))]
    pub path: String,

    /// A Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<MountSource>,

    /// A `ConfigMap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<MountSource>,
}

/// An object in the namespace of the pods, in their cluster. It must exist: pods wait for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MountSource {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}
