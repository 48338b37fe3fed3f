//! The examples for both tools fit each other and this version.

use std::path::Path;

use kube::ResourceExt;
use serde_json::Value;

use super::validate_network;
use crate::cli::render::read_networks;

fn file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples/gitops").join(name)
}

fn documents(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(file(name)).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

/// The value at a JSON pointer in each document that has it.
fn all_at<'a>(documents: &'a [Value], pointer: &str) -> Vec<&'a Value> {
    documents.iter().filter_map(|document| document.pointer(pointer)).collect()
}

#[test]
fn the_network_in_git_is_valid_and_flux_waits_for_it() {
    let networks = read_networks(&file("ledger/network.yaml")).unwrap();
    let [network] = &networks[..] else { panic!("one network: {networks:?}") };
    validate_network(network, "").unwrap();
    let kustomizations = documents("flux/kustomizations.yaml");
    let awaited = all_at(&kustomizations, "/spec/healthChecks/0");
    let [awaited] = awaited[..] else { panic!("one health check: {awaited:?}") };
    assert_eq!(awaited["apiVersion"], "bsn-operator.io/v1alpha1");
    assert_eq!(awaited["kind"], "BsnNetwork");
    assert_eq!(awaited["name"], network.name_any());
    assert_eq!(awaited["namespace"], network.namespace().unwrap());
}

#[test]
fn neither_tool_deletes_the_network_or_its_namespace() {
    for document in documents("ledger/network.yaml") {
        let annotations = &document["metadata"]["annotations"];
        assert_eq!(annotations["argocd.argoproj.io/sync-options"], "Prune=false,Delete=false");
        assert_eq!(annotations["kustomize.toolkit.fluxcd.io/prune"], "disabled");
    }
}

#[test]
fn both_install_the_operator_of_this_version() {
    let tag = concat!("v", env!("CARGO_PKG_VERSION"));
    let argocd = documents("argocd/operator.yaml");
    assert_eq!(all_at(&argocd, "/spec/source/targetRevision"), [tag]);
    let flux = documents("flux/operator.yaml");
    assert_eq!(all_at(&flux, "/spec/ref/tag"), [tag]);
    let chart = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in all_at(&argocd, "/spec/source/path")
        .into_iter()
        .chain(all_at(&flux, "/spec/chart/spec/chart"))
    {
        assert!(chart.join(path.as_str().unwrap()).join("Chart.yaml").is_file(), "{path}");
    }
}
