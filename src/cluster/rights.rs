//! The rights the operator needs in a member cluster: one table, from which `kubectl bsn cluster join` makes the
//! roles, against which the operator checks what it was given, and which `docs/clusters.md` shows.
//!
//! A right is added here together with the first request that needs it. Clusters joined before then show the
//! condition `RightsSufficient` as false, with the command that adds it.

use k8s_openapi::api::authorization::v1::ResourceRule;
use k8s_openapi::api::rbac::v1::PolicyRule;

use crate::api::GROUP;

/// Rights on one kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// API group; "" = the core group.
    pub group: &'static str,
    /// The kind, as it is written in roles.
    pub resource: &'static str,
    /// What may be done.
    pub verbs: &'static [&'static str],
    /// What each verb is for.
    pub why: &'static str,
}

/// In every allowed namespace, by a Role there.
pub const IN_NAMESPACE: &[Right] = &[
    Right {
        group: "",
        resource: "configmaps",
        verbs: &["get", "list", "watch", "create", "patch", "update", "delete"],
        why: "the network's anchor beside its nodes (update: compare-and-swap); genesis, configuration, certificates \
              and lists of peers; what is no longer in force is deleted",
    },
    Right {
        group: "",
        resource: "secrets",
        verbs: &["get", "create", "patch", "delete"],
        why: "keys of nodes, made once, and first-start tokens, deleted once used. No list and no watch: only Secrets \
              are read whose names the operator knows",
    },
    Right {
        group: "",
        resource: "services",
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
        why: "the name under which a node is reached, in every cluster of its network; deleted with the node",
    },
    Right {
        group: "discovery.k8s.io",
        resource: "endpointslices",
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
        why: "where such a name leads, for nodes in other clusters; only those it made itself",
    },
    Right {
        group: "",
        resource: "persistentvolumeclaims",
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
        why: "disks, made once; patched to grow, to put back their marks and to let go of a released one, and deleted only \
              where the network's `deletionPolicy` names them",
    },
    Right {
        group: "",
        resource: "pods",
        verbs: &["get", "list", "watch", "create", "delete"],
        why: "why a node is not ready; deleted as a step of the node's own restart. One small pod is made, and deleted, \
              to prove that the agents' image can be run before nodes depend on it",
    },
    TO_PODS,
    Right {
        group: "apps",
        resource: "statefulsets",
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
        why: "the workload of each node; deleted with it",
    },
    Right {
        group: "policy",
        resource: "poddisruptionbudgets",
        verbs: &["get", "list", "watch", "create", "patch", "delete"],
        why: "keeps drains from taking more validators than the chain can miss; deleted with the network",
    },
];

/// In every allowed namespace, by the same Role. Roles of versions before this one do not give it. Without it nodes have
/// no `NetworkPolicy` there, which [`missing_for_policies`] tells; that is no reason not to use a cluster.
pub const ON_POLICIES: Right = Right {
    group: "networking.k8s.io",
    resource: "networkpolicies",
    verbs: &["get", "list", "watch", "create", "patch", "delete"],
    why: "says who may connect to the nodes; deleted with the network's last node there",
};

/// The way to a node's gateway that needs nothing but the API server. A websocket begins with a GET; from
/// Kubernetes 1.35 on the API server wants the right to create as well (KEP 4006).
const TO_PODS: Right = Right {
    group: "",
    resource: "pods/portforward",
    verbs: &["get", "create"],
    why: "to ask a node how it is, where the hub does not reach it by its address",
};

/// For the whole cluster, but only on the objects named: by a `ClusterRole` with `resourceNames`. The names are
/// those of the allowed namespaces, and [`EVERYWHERE`].
pub const ON_NAMED_NAMESPACES: Right = Right {
    group: "",
    resource: "namespaces",
    verbs: &["get"],
    why: "to tell a namespace that does not exist from one without rights, and by kube-system this cluster from others",
};

/// For the whole cluster, by the same `ClusterRole`: names of machines are not known beforehand, and they come and go.
/// Without it no drain is known, and a share does not go to the cluster where one waits; it is no reason not to use a
/// cluster, and so [`missing`] does not ask for it.
pub const ON_MACHINES: Right = Right {
    group: "",
    resource: "nodes",
    verbs: &["get"],
    why: "whether the machine of a validator is being drained. No list and no watch: only machines are read that \
          validators run on",
};

/// What the operator needs in every namespace of the hub in which networks are: by a Role in each that the installation
/// lists, or by a `ClusterRole` for all. The chart gives these; a test holds the two together.
pub const ON_HUB: &[(&str, &str, &[&str])] = &[
    (GROUP, "bsnnetworks", &["get", "list", "watch", "patch"]),
    (GROUP, "bsnnetworks/status", &["patch"]),
    (GROUP, "bsnnodes", &["get", "list", "watch", "create", "patch", "delete"]),
    (GROUP, "bsnnodes/status", &["patch"]),
    ("", "configmaps", &["get", "list", "watch", "create", "patch", "update", "delete"]),
    ("", "services", &["get", "list", "watch", "create", "patch", "delete"]),
    ("discovery.k8s.io", "endpointslices", &["get", "list", "watch", "create", "patch", "delete"]),
    ("", "persistentvolumeclaims", &["get", "list", "watch", "create", "patch", "delete"]),
    ("apps", "statefulsets", &["get", "list", "watch", "create", "patch", "delete"]),
    ("", "pods", &["get", "list", "watch", "delete"]),
    ("", "secrets", &["get", "create", "patch", "delete"]),
    ("policy", "poddisruptionbudgets", &["get", "list", "watch", "create", "patch", "delete"]),
    (
        "networking.k8s.io",
        "networkpolicies",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    ("events.k8s.io", "events", &["create", "patch"]),
];

/// What of [`ON_HUB`] the rules do not give, but for what is done without: policies and events.
pub fn missing_on_hub(rules: &[ResourceRule]) -> Vec<String> {
    let needed = ON_HUB.iter().filter(|(_, what, _)| !["networkpolicies", "events"].contains(what));
    let rights = needed.map(|(group, resource, verbs)| Right { group, resource, verbs, why: "" });
    rights.filter_map(|right| lacking(rules, &right)).collect()
}

/// A namespace that every cluster has, with a uid that is its own: it tells clusters apart.
pub const EVERYWHERE: &str = "kube-system";

/// What the Role in an allowed namespace gives.
pub fn in_namespace() -> impl Iterator<Item = &'static Right> {
    IN_NAMESPACE.iter().chain([&ON_POLICIES])
}

/// The rules of the Role in an allowed namespace.
pub fn role_rules() -> Vec<PolicyRule> {
    in_namespace().map(|right| rule(right, None)).collect()
}

/// The rules of the `ClusterRole`.
pub fn cluster_role_rules(namespaces: &[String]) -> Vec<PolicyRule> {
    let names = namespaces.iter().map(String::as_str).chain([EVERYWHERE]).map(str::to_owned);
    vec![rule(&ON_NAMED_NAMESPACES, Some(names.collect())), rule(&ON_MACHINES, None)]
}

fn rule(right: &Right, names: Option<Vec<String>>) -> PolicyRule {
    PolicyRule {
        api_groups: Some(vec![right.group.to_owned()]),
        resources: Some(vec![right.resource.to_owned()]),
        resource_names: names,
        verbs: right.verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        ..PolicyRule::default()
    }
}

/// What of [`IN_NAMESPACE`] the rules do not give, as `verb resource`. `rules` is what the API server says that
/// the operator may do in a namespace.
pub fn missing(rules: &[ResourceRule]) -> Vec<String> {
    IN_NAMESPACE.iter().filter_map(|right| lacking(rules, right)).collect()
}

/// The same of [`ON_POLICIES`].
pub fn missing_for_policies(rules: &[ResourceRule]) -> Option<String> {
    lacking(rules, &ON_POLICIES)
}

fn lacking(rules: &[ResourceRule], right: &Right) -> Option<String> {
    let verbs = right.verbs.iter().copied();
    let lacks: Vec<_> =
        verbs.filter(|verb| !rules.iter().any(|rule| gives(rule, right, verb))).collect();
    (!lacks.is_empty()).then(|| format!("{} {}", lacks.join("/"), right.resource))
}

fn gives(rule: &ResourceRule, right: &Right, verb: &str) -> bool {
    let holds = |list: Option<&Vec<String>>, wanted: &str| {
        list.is_some_and(|list| list.iter().any(|one| one == "*" || one == wanted))
    };
    // A rule for named objects does not cover those that are yet to be made.
    rule.resource_names.as_ref().is_none_or(Vec::is_empty)
        && holds(rule.api_groups.as_ref(), right.group)
        && holds(rule.resources.as_ref(), right.resource)
        && holds(Some(&rule.verbs), verb)
}

/// The table for people, in Markdown.
pub fn render_markdown() -> String {
    let others = [
        ("these namespaces themselves, and `kube-system`", &ON_NAMED_NAMESPACES),
        ("the cluster", &ON_MACHINES),
    ];
    let rows = in_namespace().map(|right| ("each allowed namespace", right)).chain(others);
    let rows = rows.map(|(place, Right { group, resource, verbs, why })| {
        let dot = if group.is_empty() { "" } else { "." };
        format!("| {place} | `{resource}{dot}{group}` | {} | {why} |", verbs.join(", "))
    });
    let head = ["| where | what | may | for |", "| --- | --- | --- | --- |"].map(str::to_owned);
    head.into_iter().chain(rows).map(|row| row + "\n").collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn granted(rules: &[PolicyRule]) -> Vec<ResourceRule> {
        let granted = rules.iter().map(|rule| ResourceRule {
            api_groups: rule.api_groups.clone(),
            resources: rule.resources.clone(),
            resource_names: rule.resource_names.clone(),
            verbs: rule.verbs.clone(),
        });
        granted.collect()
    }

    #[test]
    fn the_role_gives_what_the_check_asks_for() {
        assert!(missing(&granted(&role_rules())).is_empty());
        let all = ResourceRule {
            api_groups: Some(vec!["*".into()]),
            resources: Some(vec!["*".into()]),
            resource_names: None,
            verbs: vec!["*".into()],
        };
        assert!(missing(std::slice::from_ref(&all)).is_empty());
        let named = ResourceRule { resource_names: Some(vec!["one".into()]), ..all };
        assert_eq!(missing(&[named]).len(), IN_NAMESPACE.len());
    }

    #[test]
    fn a_role_of_an_older_version_lacks_the_policies_and_nothing_else() {
        let rules = granted(&role_rules());
        assert_eq!(missing_for_policies(&rules), None);
        let older: Vec<_> = IN_NAMESPACE.iter().map(|right| rule(right, None)).collect();
        assert!(missing(&granted(&older)).is_empty());
        let lacks = missing_for_policies(&granted(&older));
        assert_eq!(lacks.as_deref(), Some("get/list/watch/create/patch/delete networkpolicies"));
    }

    #[test]
    fn a_missing_verb_is_named_with_its_kind() {
        let mut rules = role_rules();
        rules[0].verbs.retain(|verb| verb != "update" && verb != "delete");
        rules.retain(|rule| rule.resources.as_deref() != Some(&["pods".to_owned()][..]));
        assert_eq!(
            missing(&granted(&rules)),
            ["update/delete configmaps", "get/list/watch/create/delete pods"]
        );
    }

    /// The Secrets of a namespace are nobody's business but those whose names the operator made.
    #[test]
    fn secrets_are_never_listed() {
        let secrets = IN_NAMESPACE.iter().filter(|right| right.resource == "secrets");
        for right in secrets {
            assert!(!right.verbs.contains(&"list") && !right.verbs.contains(&"watch"));
        }
    }

    /// The rules of the Roles and `ClusterRole`s in a rendering of the chart, by kind, namespace and name.
    fn rendered(file: &str) -> BTreeMap<String, Vec<ResourceRule>> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
        let roles = documents.into_iter().filter_map(|document| {
            let kind = document["kind"].as_str()?.to_owned();
            let rules = document.get("rules")?.clone();
            let of = document["metadata"]["namespace"].as_str().unwrap_or("-");
            let name = document["metadata"]["name"].as_str()?;
            let rules: Vec<PolicyRule> = serde_json::from_value(rules).unwrap();
            Some((format!("{kind} {of} {name}"), granted(&rules)))
        });
        roles.collect()
    }

    /// What a role gives, in the words of [`ON_HUB`].
    fn given(rules: &[ResourceRule]) -> BTreeSet<(String, String, BTreeSet<String>)> {
        let rules = rules.iter().filter(|rule| rule.resource_names.is_none());
        rules
            .flat_map(|rule| {
                let group = rule.api_groups.clone().unwrap()[0].clone();
                let what = rule.resources.clone().unwrap();
                let verbs: BTreeSet<String> = rule.verbs.iter().cloned().collect();
                what.into_iter().map(move |what| (group.clone(), what, verbs.clone()))
            })
            .collect()
    }

    fn on_hub() -> BTreeSet<(String, String, BTreeSet<String>)> {
        let verbs = |verbs: &[&str]| verbs.iter().map(|verb| (*verb).to_owned()).collect();
        let all = ON_HUB.iter();
        all.map(|(group, what, may)| ((*group).to_owned(), (*what).to_owned(), verbs(may)))
            .collect()
    }

    /// What no Role can give, since it is in no namespace.
    const IN_NO_NAMESPACE: [&str; 3] = ["bsnclusters", "bsnclusters/status", "nodes"];

    #[test]
    fn the_chart_gives_what_the_operator_needs_on_the_hub_and_no_more() {
        let roles = rendered("manifests/install.yaml");
        let all = given(&roles["ClusterRole - bsn-operator"]);
        let (others, needed): (BTreeSet<_>, BTreeSet<_>) =
            all.into_iter().partition(|(_, what, _)| IN_NO_NAMESPACE.contains(&what.as_str()));
        assert_eq!(needed, on_hub());
        assert_eq!(others.len(), IN_NO_NAMESPACE.len());
        assert!(missing_on_hub(&roles["ClusterRole - bsn-operator"]).is_empty());
    }

    #[test]
    fn for_listed_namespaces_there_are_roles_in_these_and_nothing_of_a_namespace_for_all() {
        let roles = rendered("manifests/rbac-namespaces.yaml");
        for namespace in ["ledger", "trade"] {
            let rules = &roles[&format!("Role {namespace} bsn-operator-networks")];
            assert_eq!(given(rules), on_hub());
            assert!(missing_on_hub(rules).is_empty());
        }
        let for_all = given(&roles["ClusterRole - bsn-operator"]);
        let names: BTreeSet<&str> = for_all.iter().map(|(_, what, _)| what.as_str()).collect();
        assert_eq!(names, IN_NO_NAMESPACE.into());
        // Kubernetes keeps events of what is in no namespace there.
        let events = given(&roles["Role default bsn-operator-events"]);
        assert!(events.iter().all(|(_, what, _)| what == "events") && events.len() == 1);
    }

    #[test]
    fn a_namespace_without_policies_or_events_is_looked_after_all_the_same() {
        let rules =
            rendered("manifests/install.yaml").remove("ClusterRole - bsn-operator").unwrap();
        let without = |gone: &str| -> Vec<ResourceRule> {
            let has =
                |rule: &&ResourceRule| !rule.resources.clone().unwrap().contains(&gone.into());
            rules.iter().filter(has).cloned().collect()
        };
        assert!(missing_on_hub(&without("networkpolicies")).is_empty());
        assert!(missing_on_hub(&without("events")).is_empty());
        assert_eq!(missing_on_hub(&without("secrets")), ["get/create/patch/delete secrets"]);
    }

    #[test]
    fn the_documentation_shows_the_table() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clusters.md");
        let page = std::fs::read_to_string(path).unwrap();
        assert!(page.contains(&render_markdown()), "put this into it:\n{}", render_markdown());
    }

    /// The hub is a cluster like the others: the chart gives there at least what a member gives. Only its nodes are
    /// always reached by their addresses, and its machines run the operator's image already; the rights to any pod's ports
    /// and to make pods, in any namespace, are large ones.
    #[test]
    fn the_chart_gives_no_less_on_the_hub_but_for_what_only_members_need() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/install.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
        let role = documents
            .into_iter()
            .find(|object| {
                object["kind"] == "ClusterRole" && object["metadata"]["name"] == "bsn-operator"
            })
            .unwrap();
        let rules: Vec<PolicyRule> = serde_json::from_value(role["rules"].clone()).unwrap();
        assert_eq!(missing(&granted(&rules)), ["create pods", "get/create pods/portforward"]);
        assert!(rules.contains(&rule(&ON_MACHINES, None)), "its machines, too");
    }
}
