//! What users add to pods reaches them one node at a time, and disks grow without a restart.

use std::path::PathBuf;
use std::time::Duration;

use bsn_operator::api::conditions::{DISK_AS_DESCRIBED, READY, RECONCILING, Reason, STALLED, find};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::roll::check_restarts;
use crate::sampler::watch_pods;
use crate::support::{World, eventually, find_process};

const MINUTE: Duration = Duration::from_mins(1);
/// Longest for four restarts, or a new node, on a busy machine.
const LONG: Duration = Duration::from_mins(10);

/// A class of disks that cannot grow, and its only volume. Both are the story's alone.
const CLASS: &str = "story-pods-fixed";

const SPEC: &str = r"
chainId: pods-1
engine:
  cometbft:
    version: 0.38.25
    app:
      container:
        image: localhost/abci-kvstore:0.38.25
        args: [kvstore, --address=$(ABCI_ADDRESS), --persist=$(APP_DATA)]
nodeSets:
  - name: a
    role: Validator
    replicas: 4
    storage: {size: 1Gi}
";

/// What is added to all pods, but for the labels of one set.
fn extras() -> Value {
    json!({
        "labels": {"example.com/team": "all"},
        "annotations": {"example.com/restarted": "once"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "example.com/chain", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": CLASS,
        "imagePullSecrets": [{"name": "registry"}],
        "terminationGracePeriodSeconds": 45,
    })
}

struct Described(Value);

impl Described {
    fn plain() -> Self {
        Self(serde_saphyr::from_str(SPEC).unwrap())
    }

    /// With what the schema lets through and the API server does not.
    fn impossible() -> Self {
        let Self(mut spec) = Self::plain();
        spec["engine"]["cometbft"]["app"]["container"]["resources"] =
            json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "256Mi"}});
        Self(spec)
    }

    /// With all that can be added.
    fn with_extras() -> Self {
        let Self(mut spec) = Self::plain();
        spec["pod"] = extras();
        spec["nodeSets"][0]["pod"] = json!({"labels": {"example.com/team": "voters"}});
        spec["upgrade"] = json!({"strategy": "Rolling"});
        let container = &mut spec["engine"]["cometbft"]["app"]["container"];
        container["env"] = json!([
            {"name": "LEDGER_MODE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}},
            {"name": "LEDGER_TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}},
            {"name": "LEDGER_LOG", "value": "$(APP_DATA)/log"},
        ]);
        container["mounts"] = json!([{"path": "/etc/ledger", "configMap": {"name": "settings"}}]);
        container["resources"] = json!({"requests": {"cpu": "10m"}, "limits": {"memory": "256Mi"}});
        Self(spec)
    }

    /// And a full node on a disk that cannot grow; all disks of this size.
    fn with_disks(size: &str) -> Self {
        let Self(mut spec) = Self::with_extras();
        let sets = spec["nodeSets"].as_array_mut().unwrap();
        sets.push(json!({
            "name": "fixed", "role": "FullNode", "replicas": 1, "storage": {"storageClassName": CLASS},
        }));
        for set in sets {
            set["storage"]["size"] = json!(size);
        }
        Self(spec)
    }

    fn apply(&self, world: &World) {
        self.try_apply(world).unwrap();
    }

    fn try_apply(&self, world: &World) -> Result<(), String> {
        let object = json!({
            "apiVersion": "bsn-operator.io/v1alpha1",
            "kind": "BsnNetwork",
            "metadata": {"name": world.network, "namespace": world.namespace},
            "spec": self.0,
        });
        world.try_apply(&object.to_string())
    }
}

/// What is not in the namespace: nothing else uses it.
fn remove_class(world: &World) {
    for kind in ["persistentvolume", "storageclass", "priorityclass"] {
        world.kubectl_ok(&["delete", kind, CLASS, "--ignore-not-found", "--wait=false"]);
    }
}

fn make_settings(world: &World) {
    let meta = |name: &str| json!({"name": name, "namespace": world.namespace});
    for object in [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("settings"), "data": {"mode": "fast"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("token"), "stringData": {"token": "t0"}}),
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": CLASS},
            "value": 0, "preemptionPolicy": "Never",
        }),
    ] {
        world.apply(&object.to_string());
    }
}

/// A volume for one claim, in a class whose disks cannot grow.
fn make_fixed_volume(world: &World, folder: &PathBuf) {
    std::fs::create_dir_all(folder).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder, open).unwrap();
    let claim =
        json!({"namespace": world.namespace, "name": format!("{}-fixed-0-data", world.network)});
    for object in [
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
            "provisioner": "kubernetes.io/no-provisioner", "allowVolumeExpansion": false,
        }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLASS},
            "spec": {
                "storageClassName": CLASS, "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain", "claimRef": claim,
                "hostPath": {"path": folder, "type": "Directory"},
            },
        }),
    ] {
        world.apply(&object.to_string());
    }
}

fn check_extras(pod: &Pod) {
    let name = pod.name_any();
    let pod = serde_json::to_value(pod).unwrap();
    let (meta, spec) = (&pod["metadata"], &pod["spec"]);
    assert_eq!(meta["labels"]["example.com/team"], "voters", "{name}");
    assert_eq!(meta["annotations"]["example.com/restarted"], "once", "{name}");
    let extras = extras();
    for field in
        ["nodeSelector", "priorityClassName", "imagePullSecrets", "terminationGracePeriodSeconds"]
    {
        assert_eq!(spec[field], extras[field], "{field} of {name}");
    }
    // Kubernetes adds some of its own.
    let tolerations = spec["tolerations"].as_array().unwrap();
    assert!(tolerations.contains(&extras["tolerations"][0]), "{name}: {tolerations:?}");
    // What the operator gives by default stays beside it.
    assert!(spec["affinity"]["podAntiAffinity"].is_object(), "{name}");
    let containers = spec["containers"].as_array().unwrap();
    let app = containers.iter().find(|container| container["name"] == "app").unwrap();
    assert_eq!(app["resources"]["limits"]["memory"], "256Mi", "{name}");
    let mounts = app["volumeMounts"].as_array().unwrap();
    let mounted = mounts.iter().find(|mount| mount["mountPath"] == "/etc/ledger").unwrap();
    assert_eq!(mounted["readOnly"], true, "{name}");
}

/// What the application of a pod has in its environment.
fn environment(pod: &str) -> Vec<String> {
    let process =
        find_process(pod, "abci-cli").unwrap_or_else(|| panic!("no application in {pod}"));
    let text = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap();
    let entries = text.split(|byte| *byte == 0);
    entries.map(|entry| String::from_utf8_lossy(entry).into_owned()).collect()
}

/// Waits until a node tells this of its disk.
async fn await_disk(world: &World, node: &str, status: &str, reason: Reason) -> String {
    eventually(&format!("disk of {node}: {reason}"), 3 * MINUTE, async || {
        let nodes = world.nodes().await;
        let found = nodes.iter().find(|one| one.name_any() == node).ok_or("no such node")?;
        let conditions = found.status.as_ref().map(|status| status.conditions.as_slice());
        match find(conditions.unwrap_or_default(), DISK_AS_DESCRIBED) {
            Some(told) if told.status == status && told.reason == reason.as_str() => {
                Ok(told.message.clone())
            }
            told => Err(format!("{told:?}")),
        }
    })
    .await
}

/// Waits until a node says that it is not ready, with all these words.
async fn await_not_ready(world: &World, node: &str, words: &[&str]) {
    eventually(&format!("{node} not ready: {words:?}"), 3 * MINUTE, async || {
        let nodes = world.nodes().await;
        let found = nodes.iter().find(|one| one.name_any() == node).ok_or("no such node")?;
        let conditions = found.status.as_ref().map(|status| status.conditions.as_slice());
        let told = find(conditions.unwrap_or_default(), READY).ok_or("no such condition")?;
        let named = words.iter().all(|word| told.message.contains(word));
        if told.status == "False" && named { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

/// Waits until the network says this for this reason, in a message with these words.
async fn await_told(world: &World, kind: &str, reason: Reason, words: &[&str]) {
    eventually(&format!("{kind}: {reason}: {words:?}"), 3 * MINUTE, async || {
        let conditions = world.get().await?.status.unwrap_or_default().conditions;
        let told = find(&conditions, kind).ok_or("no such condition")?;
        let named = words.iter().all(|word| told.message.contains(word));
        if told.status == "True" && told.reason == reason.as_str() && named {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })
    .await;
}

async fn claim(world: &World, node: &str) -> PersistentVolumeClaim {
    world.api::<PersistentVolumeClaim>().get(&format!("{node}-data")).await.unwrap()
}

/// What was asked for, and what there is.
async fn sizes(world: &World, node: &str) -> (String, String) {
    let claim = serde_json::to_value(claim(world, node).await).unwrap();
    let text = |size: &Value| size.as_str().unwrap_or_default().to_owned();
    let requested = text(&claim["spec"]["resources"]["requests"]["storage"]);
    (requested, text(&claim["status"]["capacity"]["storage"]))
}

/// Says of a claim what its storage system would.
fn patch_claim_status(world: &World, node: &str, status: &Value) {
    let (claim, patch) = (format!("{node}-data"), json!({"status": status}).to_string());
    let namespace = &world.namespace;
    let what = ["patch", "pvc", &claim, "-n", namespace, "--subresource=status"];
    world.kubectl_ok(&[&what[..], &["--type=merge", "-p", &patch]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_added_to_pods_comes_one_by_one_and_disks_grow_without_a_restart() {
    let world = World::new("pods").await;
    remove_class(&world);
    make_settings(&world);
    Described::impossible().apply(&world);
    await_told(&world, STALLED, Reason::ObjectRefused, &["pods-a-", "memory limit"]).await;
    Described::plain().apply(&world);
    world.await_converged(LONG).await;

    let pods = watch_pods(&world);
    Described::with_extras().apply(&world);
    world.await_converged(LONG).await;
    check_restarts(&pods.end().await, 4);
    for pod in world.pods().await {
        check_extras(&pod);
        let environment = environment(&pod.name_any());
        for expected in ["LEDGER_MODE=fast", "LEDGER_TOKEN=t0", "LEDGER_LOG=/bsn/disk/app/log"] {
            assert!(environment.iter().any(|one| one == expected), "{expected}: {environment:?}");
        }
    }

    // Disks grow, all but one; nothing else waits for that one.
    let (voter, fixed) = ("pods-a-0", "pods-fixed-0");
    Described::with_disks("1Gi").apply(&world);
    // Its class is not there yet.
    let class = format!("its storage class is {CLASS}");
    await_not_ready(&world, fixed, &["on no machine yet", &class, "kubectl describe pvc"]).await;
    make_fixed_volume(&world, &world.volume(voter).with_file_name(CLASS));
    world.await_converged(LONG).await;
    let before = world.pod_uids().await;
    Described::with_disks("2Gi").apply(&world);
    for node in ["pods-a-0", "pods-a-1", "pods-a-2", "pods-a-3"] {
        eventually(&format!("a larger disk of {node}"), 2 * MINUTE, async || {
            match sizes(&world, node).await {
                (requested, capacity) if requested == "2Gi" && capacity == "2Gi" => Ok(()),
                sizes => Err(format!("{sizes:?}")),
            }
        })
        .await;
    }
    let words = format!("kubectl patch storageclass {CLASS}");
    let said = await_disk(&world, fixed, "False", Reason::DiskGrowthRefused).await;
    println!("{said}");
    assert!(said.contains(&words), "{said}");
    await_told(&world, STALLED, Reason::DiskGrowthRefused, &[fixed, &words]).await;
    assert_eq!(sizes(&world, fixed).await, ("1Gi".to_owned(), "1Gi".to_owned()));
    let nodes = world.nodes().await;
    for node in &nodes {
        let conditions = &node.status.as_ref().unwrap().conditions;
        assert_eq!(find(conditions, READY).unwrap().status, "True", "{}", node.name_any());
    }

    // It cannot be taken back, and no disk moves to another class.
    let error = Described::with_disks("1Gi").try_apply(&world).unwrap_err();
    assert!(error.contains("a disk can grow and never shrink"), "{error}");
    let mut moved = Described::with_disks("2Gi");
    moved.0["nodeSets"][0]["storage"]["storageClassName"] = json!(CLASS);
    let error = moved.try_apply(&world).unwrap_err();
    assert!(error.contains("storage class of a node set is immutable"), "{error}");

    // As the message says.
    let allow = r#"{"allowVolumeExpansion":true}"#;
    world.kubectl_ok(&["patch", "storageclass", CLASS, "-p", allow]);
    await_disk(&world, fixed, "False", Reason::DiskGrowing).await;
    await_told(&world, RECONCILING, Reason::DiskGrowing, &[fixed, "from 1Gi to 2Gi"]).await;
    assert_eq!(sizes(&world, fixed).await, ("2Gi".to_owned(), "1Gi".to_owned()));
    let pending = json!([{"type": "FileSystemResizePending", "status": "True"}]);
    patch_claim_status(&world, fixed, &json!({"conditions": pending}));
    let said = await_disk(&world, fixed, "False", Reason::FileSystemPending).await;
    assert!(said.contains("spec.nodeSets[].pod.annotations"), "{said}");
    patch_claim_status(&world, fixed, &json!({"conditions": [], "capacity": {"storage": "2Gi"}}));
    await_disk(&world, fixed, "True", Reason::AsDescribed).await;
    world.await_converged(2 * MINUTE).await;
    assert_eq!(world.pod_uids().await, before, "a disk that grows restarts nobody");
    let head = world.head().await;
    world.await_height_above(head + 2, MINUTE).await;

    let folder = world.volume(fixed);
    world.remove();
    remove_class(&world);
    std::fs::remove_dir_all(folder).unwrap();
}
