use std::fmt::Write as _;

use serde_json::json;

use super::super::render::{render_join, render_leave, render_yaml};
use super::*;
use crate::cluster::kubeconfig::parse_kubeconfig;

fn endpoint() -> Endpoint {
    Endpoint {
        server: "https://10.1.0.1:6443".into(),
        ca: Some("Q0E=".into()),
        tls_server_name: None,
    }
}

fn asked(namespaces: &[&str]) -> Asked {
    Asked {
        namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        ..Asked::default()
    }
}

fn wish(asked: &Asked, found: &Found) -> Wish {
    resolve_wish("hangzhou", "hub-1", "bsn-system", endpoint(), asked, found).unwrap()
}

/// What is there after a plan was carried out, as the API servers give it back.
fn carried_out(wish: &Wish, planned: &[Planned], before: &Found) -> Found {
    let mut found = before.clone();
    for Planned { key, action, object, .. } in planned {
        match action {
            Action::Keep => {}
            Action::Remove => {
                found.remove(key);
            }
            Action::Make | Action::Change => {
                let mut object = object.clone();
                object["metadata"]["uid"] = json!(key.to_string());
                object["metadata"]["resourceVersion"] = json!("1");
                let fields = object.as_object_mut().unwrap();
                fields.retain(|field, _| field != "apiVersion" && field != "kind");
                if key.name == wish.token_name() {
                    // What Kubernetes fills in.
                    object["data"] = json!({"token": "dG9rZW4=", "ca.crt": "Q0E="});
                }
                found.insert(key.clone(), object);
            }
        }
    }
    // The command knows the token by the time it writes this.
    let secret =
        super::super::build::build_kubeconfig_secret(wish, &known_kubeconfig(wish, &found));
    found.get_mut(&secret.key).unwrap()["data"] = secret.object["data"].clone();
    found
}

fn joined(namespaces: &[&str]) -> Found {
    let wish = wish(&asked(namespaces), &Found::new());
    carried_out(&wish, &plan_join(&wish, &Found::new()).unwrap(), &Found::new())
}

fn changes(planned: &[Planned]) -> String {
    let mut text = String::new();
    for one in planned.iter().filter(|one| one.action != Action::Keep) {
        writeln!(text, "{:?} {:?} {}", one.action, one.key.side, one.key).unwrap();
    }
    text
}

#[test]
fn a_first_join() {
    let wish = wish(&asked(&["ledger", "trade"]), &Found::new());
    let planned = plan_join(&wish, &Found::new()).unwrap();
    let undo = "kubectl bsn cluster leave hangzhou --kubeconfig hangzhou.yaml";
    insta::assert_snapshot!(render_join(&wish, &planned, undo));
}

#[test]
fn a_join_as_objects_for_git() {
    let wish = Wish { token: 1, ..wish(&asked(&["ledger"]), &Found::new()) };
    let text = render_yaml(&wish);
    insta::assert_snapshot!(text);
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let built = build_objects(&wish, "");
    let kinds = |all: &[Value]| all.iter().map(|one| one["kind"].clone()).collect::<Vec<_>>();
    let built: Vec<Value> = built.into_iter().map(|one| one.object).collect();
    assert_eq!(kinds(&objects), kinds(&built));
}

#[test]
fn a_second_join_changes_nothing() {
    let found = joined(&["ledger"]);
    let wish = wish(&Asked::default(), &found);
    assert_eq!(changes(&plan_join(&wish, &found).unwrap()), "");
}

#[test]
fn a_namespace_is_added_to_those_there_are() {
    let found = joined(&["ledger"]);
    let wish = wish(&asked(&["trade"]), &found);
    assert_eq!(wish.spec.allowed_namespaces, ["ledger", "trade"]);
    insta::assert_snapshot!(changes(&plan_join(&wish, &found).unwrap()));
}

#[test]
fn rights_in_a_namespace_that_left_the_description_are_taken_back() {
    let mut found = joined(&["ledger", "trade"]);
    let (_, cluster) = found.iter_mut().find(|(key, _)| key.kind == Kind::BsnCluster).unwrap();
    cluster["spec"]["allowedNamespaces"] = json!(["ledger"]);
    let wish = wish(&Asked::default(), &found);
    insta::assert_snapshot!(changes(&plan_join(&wish, &found).unwrap()));
}

/// The old token is revoked only when the operator has the new one.
#[test]
fn a_rotation_makes_before_it_removes() {
    let found = joined(&["ledger"]);
    let wish = wish(&Asked { rotate: true, ..Asked::default() }, &found);
    let planned = plan_join(&wish, &found).unwrap();
    insta::assert_snapshot!(changes(&planned));
    let after = carried_out(&wish, &planned, &found);
    let again = self::wish(&Asked::default(), &after);
    assert_eq!(changes(&plan_join(&again, &after).unwrap()), "");
}

#[test]
fn what_a_person_wrote_into_the_description_stays() {
    let mut found = joined(&["ledger"]);
    let (_, cluster) = found.iter_mut().find(|(key, _)| key.kind == Kind::BsnCluster).unwrap();
    cluster["spec"]["defaults"] = json!({"exposure": "NodePort", "storageClassName": "fast"});
    let wish = wish(&Asked { region: Some("cn-east".into()), ..Asked::default() }, &found);
    assert_eq!(wish.spec.defaults.storage_class_name.as_deref(), Some("fast"));
    assert_eq!(wish.spec.region.as_deref(), Some("cn-east"));
}

#[test]
fn somebody_elses_objects_are_not_touched() {
    let fresh = wish(&asked(&["ledger"]), &Found::new());
    let others = [
        json!({"metadata": {}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}}),
        json!({"metadata": {"labels": {
            "app.kubernetes.io/managed-by": "kubectl-bsn",
            "bsn-operator.io/cluster": "hangzhou",
            "bsn-operator.io/hub-id": "hub-2",
        }}}),
    ];
    for wanted in build_objects(&fresh, "") {
        for other in &others {
            let found = Found::from([(wanted.key.clone(), other.clone())]);
            let planned = plan_join(&fresh, &found);
            if wanted.key.kind == Kind::Namespace {
                let kept = planned.unwrap();
                assert!(kept.iter().any(|one| one.key == wanted.key && one.action == Action::Keep));
            } else {
                assert!(matches!(planned, Err(Refusal::NameTaken { .. })), "{}", wanted.key);
            }
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_an_instruction() {
    let refusal = |name: &str, server: &str, namespaces: &[&str]| {
        let endpoint = Endpoint { server: server.to_owned(), ..endpoint() };
        resolve_wish(name, "hub-1", "bsn-system", endpoint, &asked(namespaces), &Found::new())
            .unwrap_err()
    };
    let https = "https://10.1.0.1:6443";
    assert_eq!(refusal("hangzhou", https, &[]), Refusal::NoNamespaces);
    assert_eq!(refusal("hub", https, &["ledger"]), Refusal::ReservedName);
    assert!(matches!(refusal("Hang_zhou", https, &["ledger"]), Refusal::BadName(_)));
    assert!(matches!(refusal("hangzhou", "http://x", &["ledger"]), Refusal::NotHttps(_)));
    assert!(matches!(refusal("hangzhou", https, &["kube-system"]), Refusal::SystemNamespace(_)));
}

#[test]
fn a_leave_tells_the_operator_first_and_leaves_namespaces() {
    let found = joined(&["ledger"]);
    let planned = plan_leave("hangzhou", "hub-1", &found, false).unwrap();
    insta::assert_snapshot!(render_leave("hangzhou", &planned, false));
    insta::assert_snapshot!("in_the_order_of_a_leave", changes(&planned));
    let namespaces = found.keys().filter(|key| key.kind == Kind::Namespace).count();
    assert_eq!(found.len() - planned.len(), namespaces);
}

#[test]
fn a_cluster_with_nodes_is_left_only_by_force() {
    let mut found = joined(&["ledger"]);
    let (_, cluster) = found.iter_mut().find(|(key, _)| key.kind == Kind::BsnCluster).unwrap();
    cluster["status"] = json!({"nodes": 3, "networks": 2});
    let leave = |force| plan_leave("hangzhou", "hub-1", &found, force);
    assert_eq!(leave(false).unwrap_err(), Refusal::Hosts { nodes: 3, networks: 2 });
    assert!(leave(true).is_ok());
    let nothing = plan_leave("nanjing", "hub-1", &Found::new(), false);
    assert_eq!(nothing.unwrap_err(), Refusal::Nothing("nanjing".into()));
}

/// The operator refuses kubeconfigs that do more than connect; it must take this one.
#[test]
fn the_operator_accepts_the_kubeconfig() {
    let endpoint = Endpoint { tls_server_name: Some("api.hangzhou".into()), ..endpoint() };
    let wish = Wish { endpoint, ..wish(&asked(&["ledger"]), &Found::new()) };
    let config = parse_kubeconfig(&render_kubeconfig(&wish, "token", "Q0E=")).unwrap();
    let cluster = config.clusters[0].cluster.as_ref().unwrap();
    assert_eq!(cluster.tls_server_name.as_deref(), Some("api.hangzhou"));
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory as _;
    super::super::super::KubectlCli::command().debug_assert();
}
