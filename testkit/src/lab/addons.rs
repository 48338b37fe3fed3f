//! What every cluster of the lab has inside: DNS and a default class of storage.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::image::COREDNS;
use super::layout;
use super::provisioner::PROVISIONER;

/// The lab's class of storage, the default.
pub const STORAGE_CLASS: &str = "lab";
/// Field manager of the lab's objects.
const MANAGER: &str = "bsn-lab";
const KUBELET_PORT: u16 = 10250;
const DNS_PORT: u16 = 53;
/// All of it is on this machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// Answers for five seconds only and no cache, so that a test soon sees a changed Service.
const COREFILE: &str = ".:53 {
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa {
        pods insecure
        ttl 5
    }
}
";

/// Creates or completes the objects of a cluster.
pub async fn apply(client: &Client, cluster: usize) -> Result<()> {
    for object in objects(cluster) {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        apply_object(client, object)
            .await
            .with_context(|| format!("applying {kind} of the lab"))?;
    }
    Ok(())
}

/// What a cluster misses, if anything. What the API server knows may be from before a restart, so the kubelets
/// and DNS must also accept connections.
pub async fn observe_readiness(client: &Client, machines: usize) -> Result<Option<String>> {
    let nodes = Api::<Node>::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await?;
    let mut ready = 0;
    for node in nodes.iter().filter(|node| is_ready(node)) {
        ready += usize::from(listens(node_ip(node), KUBELET_PORT).await);
    }
    if ready < machines {
        return Ok(Some(format!("{ready} of {machines} machines are Ready")));
    }
    let pods = Api::<Pod>::namespaced(client.clone(), "kube-system");
    let pods = pods.list(&ListParams::default().labels("k8s-app=kube-dns")).await?;
    for pod in pods.iter().filter(|pod| is_pod_ready(pod)) {
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref());
        if listens(ip, DNS_PORT).await {
            return Ok(None);
        }
    }
    Ok(Some("CoreDNS does not answer".to_owned()))
}

/// Whether something accepts connections there. Pods are reached as the API server reaches them.
async fn listens(ip: Option<&str>, port: u16) -> bool {
    let Some(ip) = ip else { return false };
    let connect = tokio::net::TcpStream::connect(format!("{ip}:{port}"));
    matches!(tokio::time::timeout(CONNECT_DEADLINE, connect).await, Ok(Ok(_)))
}

fn node_ip(node: &Node) -> Option<&str> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|a| a.type_ == "InternalIP")?;
    Some(&internal.address)
}

fn is_pod_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Whether a node says that it is Ready.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn apply_object(client: &Client, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("the object has no kind")?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await?;
    Ok(())
}

fn objects(cluster: usize) -> Vec<Value> {
    let meta = json!({"name": "coredns", "namespace": "kube-system"});
    let labels = json!({"k8s-app": "kube-dns"});
    vec![
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": PROVISIONER,
            "reclaimPolicy": "Delete",
            "allowVolumeExpansion": true,
            "volumeBindingMode": "Immediate",
        }),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "lab-coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "lab-coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "lab-coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta,
            "data": {"Corefile": COREFILE},
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
            "spec": {
                "clusterIP": layout::dns_ip(cluster).to_string(),
                "selector": labels,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
            },
        }),
    ]
}

fn pod_spec() -> Value {
    // DNS leaves a dead machine soon: with one replica, the default of five minutes would turn every
    // test of a power cut into one of DNS.
    let soon = |condition: &str| {
        let key = format!("node.kubernetes.io/{condition}");
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5})
    };
    json!({
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 1,
        "tolerations": [soon("not-ready"), soon("unreachable")],
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "coredns",
            "image": COREDNS,
            "imagePullPolicy": "Never",
            "args": ["-conf", "/etc/coredns/Corefile"],
            "ports": [
                {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
            ],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
            "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "failureThreshold": 5},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
            },
            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
        }],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    })
}
