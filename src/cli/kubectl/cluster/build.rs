//! The objects of a join. Pure.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, Role, RoleBinding, RoleRef, Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::ApiResource;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{BsnCluster, BsnClusterSpec};
use crate::cluster::rights::{EVERYWHERE, cluster_role_rules, role_rules};
use crate::labels;

/// Value of the label that says what made an object. Not the operator's: its watches must not see these.
pub const MADE_BY: &str = "kubectl-bsn";
/// Entry of the Secret with the kubeconfig.
pub const KUBECONFIG_KEY: &str = "kubeconfig";
/// Stands for the token in what is printed.
pub const NO_TOKEN: &str = "(the token)";
/// Stands for the authority in what is printed, where only the cluster itself knows it.
pub const NO_CA: &str = "(ca.crt of the token's Secret)";

/// In which cluster an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The one that joins.
    Member,
    /// The one the operator runs in.
    Hub,
}

/// Kinds of objects that a join makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A namespace.
    Namespace,
    /// The operator's identity in the member.
    ServiceAccount,
    /// Its token, and the kubeconfig with it.
    Secret,
    /// Rights on the namespaces themselves.
    ClusterRole,
    /// Gives them.
    ClusterRoleBinding,
    /// Rights in a namespace.
    Role,
    /// Gives them.
    RoleBinding,
    /// The cluster's description on the hub.
    BsnCluster,
}

impl Kind {
    /// The kind as the API has it.
    pub fn resource(self) -> ApiResource {
        match self {
            Self::Namespace => ApiResource::erase::<Namespace>(&()),
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::Secret => ApiResource::erase::<Secret>(&()),
            Self::ClusterRole => ApiResource::erase::<ClusterRole>(&()),
            Self::ClusterRoleBinding => ApiResource::erase::<ClusterRoleBinding>(&()),
            Self::Role => ApiResource::erase::<Role>(&()),
            Self::RoleBinding => ApiResource::erase::<RoleBinding>(&()),
            Self::BsnCluster => ApiResource::erase::<BsnCluster>(&()),
        }
    }
}

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// In which cluster.
    pub side: Side,
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty = it has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// How the member's API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub server: String,
    /// Its authority, in base64; `None` = the one that the member gives its own pods.
    pub ca: Option<String>,
    /// The name in its certificate, if it is not that of the address.
    pub tls_server_name: Option<String>,
}

/// What is to be.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The cluster's name.
    pub name: String,
    /// Id of the hub.
    pub hub_id: String,
    /// Namespace of the operator's objects, on the hub and in the member.
    pub operator_namespace: String,
    /// How the member is reached.
    pub endpoint: Endpoint,
    /// The description.
    pub spec: BsnClusterSpec,
    /// Which of its tokens: 1, and one more with each rotation.
    pub token: u32,
}

/// An object that is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where.
    pub key: Key,
    /// What.
    pub object: Value,
    /// What for, in a few words.
    pub note: String,
}

impl Wish {
    /// Name of the operator's identity in the member, and of all that belongs to it.
    pub fn member_name(&self) -> String {
        format!("bsn-member-{}", self.name)
    }

    /// Name of the Secret with the token.
    pub fn token_name(&self) -> String {
        format!("{}-token-{}", self.member_name(), self.token)
    }

    /// Labels of all objects of a join.
    pub fn labels(&self) -> BTreeMap<String, String> {
        labels_of(&self.name, &self.hub_id)
    }

    fn meta(&self, namespace: Option<&str>, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: namespace.map(str::to_owned),
            labels: Some(self.labels()),
            ..ObjectMeta::default()
        }
    }

    fn subject(&self) -> Vec<Subject> {
        vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: self.member_name(),
            namespace: Some(self.operator_namespace.clone()),
            api_group: None,
        }]
    }
}

/// Labels of all objects of a cluster's join to a hub.
pub fn labels_of(cluster: &str, hub_id: &str) -> BTreeMap<String, String> {
    [(labels::MANAGED_BY, MADE_BY), (labels::CLUSTER, cluster), (labels::HUB_ID, hub_id)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn wanted<K>(side: Side, kind: Kind, object: &K, note: impl Into<String>) -> Wanted
where
    K: Resource + Serialize,
{
    let meta = object.meta();
    let key = Key {
        side,
        kind,
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    };
    // Built from typed values: serialising them cannot fail.
    Wanted { key, object: serde_json::to_value(object).unwrap_or_default(), note: note.into() }
}

/// All objects, in the order in which they are made. The last two are the hub's, when all is ready for it.
pub fn build_objects(wish: &Wish, kubeconfig: &str) -> Vec<Wanted> {
    let member = build_member_objects(wish);
    member
        .into_iter()
        .chain([build_kubeconfig_secret(wish, kubeconfig), build_cluster(wish)])
        .collect()
}

fn build_member_objects(wish: &Wish) -> Vec<Wanted> {
    let name = wish.member_name();
    let own = Some(wish.operator_namespace.as_str());
    let allowed = &wish.spec.allowed_namespaces;
    let namespace = |name: &str, note: &str| {
        let namespace = Namespace { metadata: wish.meta(None, name), ..Namespace::default() };
        wanted(Side::Member, Kind::Namespace, &namespace, note)
    };
    let mut all = vec![namespace(&wish.operator_namespace, "for the operator's identity there")];
    let others = allowed.iter().filter(|name| **name != wish.operator_namespace);
    all.extend(others.map(|name| namespace(name, "for nodes")));
    let account = ServiceAccount {
        metadata: wish.meta(own, &name),
        // No pod runs in its name.
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    };
    all.push(wanted(Side::Member, Kind::ServiceAccount, &account, "the operator's identity there"));
    let mut token = Secret {
        metadata: wish.meta(own, &wish.token_name()),
        type_: Some("kubernetes.io/service-account-token".to_owned()),
        ..Secret::default()
    };
    let of = ("kubernetes.io/service-account.name".to_owned(), name.clone());
    token.metadata.annotations = Some([of].into());
    let note = "its token, good until this Secret is deleted";
    all.push(wanted(Side::Member, Kind::Secret, &token, note));
    let role = ClusterRole {
        metadata: wish.meta(None, &name),
        rules: Some(cluster_role_rules(allowed)),
        ..ClusterRole::default()
    };
    let note = format!("get namespaces {}, {EVERYWHERE}", allowed.join(", "));
    all.push(wanted(Side::Member, Kind::ClusterRole, &role, note));
    let role_ref = |kind: &str| RoleRef {
        api_group: "rbac.authorization.k8s.io".to_owned(),
        kind: kind.to_owned(),
        name: name.clone(),
    };
    let binding = ClusterRoleBinding {
        metadata: wish.meta(None, &name),
        role_ref: role_ref("ClusterRole"),
        subjects: Some(wish.subject()),
    };
    all.push(wanted(Side::Member, Kind::ClusterRoleBinding, &binding, ""));
    for namespace in allowed {
        let role = Role { metadata: wish.meta(Some(namespace), &name), rules: Some(role_rules()) };
        all.push(wanted(Side::Member, Kind::Role, &role, "the rights below"));
        let binding = RoleBinding {
            metadata: wish.meta(Some(namespace), &name),
            role_ref: role_ref("Role"),
            subjects: Some(wish.subject()),
        };
        all.push(wanted(Side::Member, Kind::RoleBinding, &binding, ""));
    }
    all
}

/// The Secret on the hub.
pub fn build_kubeconfig_secret(wish: &Wish, kubeconfig: &str) -> Wanted {
    let reference = &wish.spec.kubeconfig_secret_ref;
    let content = ByteString(kubeconfig.as_bytes().to_vec());
    let secret = Secret {
        metadata: wish.meta(Some(&wish.operator_namespace), &reference.name),
        data: Some([(reference.key.clone(), content)].into()),
        ..Secret::default()
    };
    wanted(Side::Hub, Kind::Secret, &secret, "a kubeconfig with that token")
}

fn build_cluster(wish: &Wish) -> Wanted {
    let mut cluster = BsnCluster::new(&wish.name, wish.spec.clone());
    cluster.metadata.labels = Some(wish.labels());
    wanted(Side::Hub, Kind::BsnCluster, &cluster, "tells the operator to use it")
}

/// The kubeconfig that the operator gets.
pub fn render_kubeconfig(wish: &Wish, token: &str, ca: &str) -> String {
    let Endpoint { server, tls_server_name, .. } = &wish.endpoint;
    let (cluster, user) = (&wish.name, wish.member_name());
    let mut endpoint = json!({"server": server, "certificate-authority-data": ca});
    if let Some(name) = tls_server_name {
        endpoint["tls-server-name"] = json!(name);
    }
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": endpoint}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    });
    // Strings in maps: writing them cannot fail.
    serde_saphyr::to_string(&config).unwrap_or_default()
}
