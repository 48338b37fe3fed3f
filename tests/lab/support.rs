//! What the stories share: a network in a namespace of its own, and ways to look at it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bsn_core::consent::CONSENT_ANNOTATION;
use bsn_operator::api::conditions::{MEMBERSHIP_CONVERGED, Reason, STALLED, find};
use bsn_operator::api::{BsnNetwork, BsnNode};
use bsn_testkit::lab::process::ProcessId;
use bsn_testkit::lab::{Lab, Roles};
use bsn_testkit::operator::NAMESPACE as OPERATOR_NAMESPACE;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodCondition, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde_json::Value;

const POLL: Duration = Duration::from_millis(500);
/// Longest a network of four may take to be ready, with images present, on a busy machine.
pub const READY_WITHIN: Duration = Duration::from_mins(3);

/// The cluster with the operator.
pub fn hub() -> usize {
    Roles::from_env().unwrap().hub
}

/// Asks again and again until there is an answer; fails with the last reason why there was none.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    eventually_every(POLL, what, within, ask).await
}

/// The same for what soon passes: asks this often.
pub async fn eventually_every<T>(
    every: Duration,
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let began = Instant::now();
    loop {
        let why = match ask().await {
            Ok(answer) => return answer,
            Err(why) => why,
        };
        assert!(began.elapsed() < within, "{what}: not within {} s: {why}", within.as_secs());
        tokio::time::sleep(every).await;
    }
}

/// The message of the condition `Stalled`, if it is true for this reason and has these words.
fn stalled(conditions: &[Condition], reason: Reason, words: &str) -> Result<String, String> {
    match find(conditions, STALLED) {
        Some(found)
            if found.status == "True"
                && found.reason == reason.as_str()
                && found.message.contains(words) =>
        {
            Ok(found.message.clone())
        }
        other => Err(format!("{other:?}")),
    }
}

/// A network in its own namespace, whose pods must meet the restricted standard. It has the story's name,
/// so that its pods differ from those of a story that failed and was left to be looked at.
#[derive(Clone)]
pub struct World {
    pub lab: Lab,
    /// The cluster with its operator.
    pub hub: usize,
    /// Of the hub.
    pub client: Client,
    /// Of the other clusters in which the network has nodes; none for most stories.
    pub members: Vec<Client>,
    pub namespace: String,
    pub network: String,
}

impl World {
    /// Makes an empty namespace for a story; one that an earlier run left is removed first.
    pub async fn new(story: &str) -> Self {
        Self::with_hub(story, hub()).await
    }

    /// The same with another hub than the story's.
    pub async fn with_hub(story: &str, hub: usize) -> Self {
        let lab = Lab::load().unwrap();
        let client = lab.client(hub).await.unwrap();
        let world = Self {
            lab,
            hub,
            client,
            members: Vec::new(),
            namespace: format!("story-{story}"),
            network: story.to_owned(),
        };
        world.remove();
        world.apply(&namespace_yaml(&world.namespace));
        world
    }

    /// Removes the namespace and everything in it. Stories that fail leave it, to be looked at.
    pub fn remove(&self) {
        self.release();
        let args = ["delete", "namespace", &self.namespace, "--ignore-not-found", "--timeout=120s"];
        self.kubectl_ok(&args);
    }

    /// Lets go of what is kept of the network, once that is deleted; others may need it.
    pub fn release(&self) {
        let anchor = format!("configmap/{}-anchor", self.network);
        let id = r"-o=jsonpath={.metadata.labels.bsn-operator\.io/network-id}";
        let found = self.kubectl(&["get", &anchor, "-n", &self.namespace, id], "");
        if found.status.success() {
            let id = String::from_utf8_lossy(&found.stdout).into_owned();
            let release = format!("bsn-operator.io/release={}", id.trim());
            self.kubectl_ok(&["annotate", &anchor, "-n", &self.namespace, "--overwrite", &release]);
            let network = format!("bsnnetwork/{}", self.network);
            let consent = format!("{CONSENT_ANNOTATION}=delete/{}", id.trim());
            // It may be deleted already.
            self.kubectl(
                &["annotate", &network, "-n", &self.namespace, "--overwrite", &consent],
                "",
            );
        }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        self.api_in(&self.client)
    }

    /// The same in another of the network's clusters.
    pub fn api_in<K>(&self, client: &Client) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(client.clone(), &self.namespace)
    }

    /// Clients of all the network's clusters, the hub's first.
    pub fn clients(&self) -> impl Iterator<Item = &Client> {
        std::iter::once(&self.client).chain(&self.members)
    }

    /// Runs a program with the hub's kubeconfig and this on its standard input.
    pub fn run(&self, program: PathBuf, args: &[&str], input: &str) -> Output {
        run_in(&self.lab, self.hub, program, args, input)
    }

    pub fn kubectl(&self, args: &[&str], input: &str) -> Output {
        self.run(self.lab.tool("kubectl"), args, input)
    }

    pub fn kubectl_ok(&self, args: &[&str]) -> String {
        let output = self.kubectl(args, "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {error}", args.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn apply(&self, yaml: &str) {
        self.try_apply(yaml).unwrap_or_else(|error| panic!("kubectl apply: {error}\n{yaml}"));
    }

    /// Applies what may be refused; gives what kubectl says then.
    pub fn try_apply(&self, yaml: &str) -> Result<(), String> {
        let output = self.kubectl(&["apply", "-f", "-"], yaml);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// The network's YAML with the given rest of its spec.
    pub fn yaml(&self, spec: &str) -> String {
        let spec = spec.trim_end().replace('\n', "\n  ");
        format!(
            "apiVersion: bsn-operator.io/v1alpha1\nkind: BsnNetwork\nmetadata:\n  name: {}\n  namespace: {}\nspec:\n  {spec}\n",
            self.network, self.namespace
        )
    }

    /// What the sample says, in this story's namespace.
    pub fn sample_spec() -> String {
        let text = include_str!("../../manifests/samples/city-ledger.yaml");
        let spec = text.split_once("\nspec:\n").unwrap().1;
        spec.lines()
            .map(|line| line.strip_prefix("  ").unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub async fn get(&self) -> Result<BsnNetwork, String> {
        self.api::<BsnNetwork>().get(&self.network).await.map_err(|error| error.to_string())
    }

    /// Waits until a condition of the network has this status for its current generation; gives its message.
    pub async fn await_condition(&self, kind: &str, status: &str, within: Duration) -> String {
        let what = format!("{kind}={status} of {}/{}", self.namespace, self.network);
        eventually(&what, within, async || {
            let network = self.get().await?;
            let generation = network.metadata.generation;
            let conditions = network.status.unwrap_or_default().conditions;
            match find(&conditions, kind) {
                Some(found)
                    if found.status == status && found.observed_generation == generation =>
                {
                    Ok(found.message.clone())
                }
                found => Err(format!("{found:?}")),
            }
        })
        .await
    }

    pub async fn await_ready(&self) {
        self.await_condition("Ready", "True", READY_WITHIN).await;
    }

    /// Waits until the members are as described, and all nodes run.
    pub async fn await_converged(&self, within: Duration) {
        self.await_condition(MEMBERSHIP_CONVERGED, "True", within).await;
        self.await_ready().await;
    }

    /// Waits until the next step is refused for this reason, in a message with all these words; gives it.
    pub async fn await_refused(&self, reason: Reason, words: &[&str], within: Duration) -> String {
        let what = format!("{}/{} refused: {reason}: {words:?}", self.namespace, self.network);
        eventually(&what, within, async || {
            let network = self.get().await?;
            let generation = network.metadata.generation;
            let conditions = network.status.unwrap_or_default().conditions;
            let found = find(&conditions, MEMBERSHIP_CONVERGED).ok_or("no such condition")?;
            let refused = found.status == "False" && found.reason == reason.as_str();
            let named = words.iter().all(|word| found.message.contains(word));
            if refused && named && found.observed_generation == generation {
                Ok(found.message.clone())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await
    }

    /// Waits until the network asks for a person, for this reason and in a message with these words; gives it.
    pub async fn await_stalled(&self, reason: Reason, words: &str, within: Duration) -> String {
        let of = format!("{}/{}", self.namespace, self.network);
        eventually(&format!("{of} stalled: {reason}: {words}"), within, async || {
            stalled(&self.get().await?.status.unwrap_or_default().conditions, reason, words)
        })
        .await
    }

    /// The same of a node.
    pub async fn await_node_stalled(
        &self,
        node: &str,
        reason: Reason,
        words: &str,
        within: Duration,
    ) -> String {
        eventually(&format!("{node} stalled: {reason}: {words}"), within, async || {
            let nodes = self.nodes().await;
            let found = nodes.iter().find(|found| found.name_any() == node);
            let status = found.ok_or("no such node")?.status.clone().unwrap_or_default();
            stalled(&status.conditions, reason, words)
        })
        .await
    }

    /// Takes a finalizer away that keeps an object, as somebody does who insists.
    pub fn let_go(&self, name: &str) {
        let patch = r#"{"metadata":{"finalizers":null}}"#;
        let namespace = self.namespace.as_str();
        self.kubectl_ok(&["patch", name, "-n", namespace, "--type=merge", "-p", patch]);
    }

    /// Deletes an object that a finalizer keeps. In this order: to what is being deleted the operator cannot put a finalizer
    /// back.
    pub fn lose(&self, name: &str) {
        self.kubectl_ok(&["delete", name, "-n", &self.namespace, "--wait=false"]);
        self.let_go(name);
    }

    /// Makes an object that was lost again, as from a backup: another uid, the same content.
    pub fn restore(&self, mut object: Value) {
        let meta = object["metadata"].as_object_mut().unwrap();
        for assigned in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
            meta.remove(assigned);
        }
        let output = self.kubectl(&["create", "-f", "-"], &object.to_string());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Gives consents, separated by commas, in place of those given before.
    pub fn consent(&self, consents: &str) {
        let annotation = format!("{CONSENT_ANNOTATION}={consents}");
        let (network, namespace) = (self.network.as_str(), self.namespace.as_str());
        let args = ["annotate", "bsnnetwork", network, "-n", namespace, "--overwrite", &annotation];
        self.kubectl_ok(&args);
    }

    /// Waits until every node is in sync at a height above `height`; gives the head.
    pub async fn await_height_above(&self, height: u64, within: Duration) -> u64 {
        eventually(&format!("all nodes above height {height}"), within, async || {
            let view = self.view()?;
            let behind: Vec<_> = view
                .nodes
                .iter()
                .filter(|node| !node.in_sync || node.height.unwrap_or(0) <= height)
                .map(|node| format!("{} at {:?} ({:?})", node.name, node.height, node.problem))
                .collect();
            if behind.is_empty() && view.head > height {
                Ok(view.head)
            } else {
                Err(behind.join(", "))
            }
        })
        .await
    }

    pub async fn head(&self) -> u64 {
        eventually("live numbers", Duration::from_mins(1), async || Ok(self.view()?.head)).await
    }

    /// The pods of nodes, in all clusters.
    pub async fn pods(&self) -> Vec<Pod> {
        self.try_pods().await.unwrap()
    }

    /// The same; an error if one of the clusters does not answer.
    pub async fn try_pods(&self) -> Result<Vec<Pod>, kube::Error> {
        let mut pods = Vec::new();
        for client in self.clients() {
            // Not those that only prove an image, which come and go.
            let nodes = ListParams::default().labels(bsn_operator::labels::NODE);
            pods.extend(self.api_in::<Pod>(client).list(&nodes).await?);
        }
        Ok(pods)
    }

    pub async fn nodes(&self) -> Vec<BsnNode> {
        self.api::<BsnNode>().list(&ListParams::default()).await.unwrap().items
    }

    /// Each node's pod that runs, by uid.
    pub async fn pod_uids(&self) -> BTreeMap<String, String> {
        let uid = |pod: &Pod| Some((node_of(pod), pod.uid()?));
        self.pods().await.iter().filter_map(uid).collect()
    }

    /// What the network's `ConfigMap` of this suffix holds under a key; empty = nothing.
    pub async fn stored(&self, suffix: &str, key: &str) -> String {
        let name = format!("{}-{suffix}", self.network);
        let map = self.api::<ConfigMap>().get(&name).await.unwrap();
        map.data.unwrap_or_default().remove(key).unwrap_or_default()
    }

    /// Uid and content of everything that must never be made twice: private keys and the genesis, in all clusters.
    pub async fn fingerprint(&self) -> BTreeMap<String, String> {
        let mut prints = BTreeMap::new();
        for (number, client) in self.clients().enumerate() {
            let place = if number == 0 { String::new() } else { format!("member {number}: ") };
            let print = |content: serde_json::Result<Vec<u8>>| {
                bsn_core::hash::sha256_hex(&content.unwrap())
            };
            for secret in self.api_in::<Secret>(client).list(&ListParams::default()).await.unwrap()
            {
                let name = secret.name_any();
                if name.ends_with("-keys") || name.ends_with("-ca") {
                    let content = serde_json::to_vec(&(secret.uid(), secret.data));
                    prints.insert(format!("{place}{name}"), print(content));
                }
            }
            for map in self.api_in::<ConfigMap>(client).list(&ListParams::default()).await.unwrap()
            {
                let name = map.name_any();
                if name.contains("-genesis-") {
                    let content = serde_json::to_vec(&(map.uid(), map.data));
                    prints.insert(format!("{place}{name}"), print(content));
                }
            }
        }
        prints
    }

    /// Switches the operator off (0) or on again.
    pub async fn scale_operator(&self, replicas: u32) {
        let count = format!("--replicas={replicas}");
        self.kubectl_ok(&["scale", "deployment/bsn-operator", "-n", OPERATOR_NAMESPACE, &count]);
        let pods = Api::<Pod>::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        eventually("the operator's pods", Duration::from_mins(2), async || {
            let all = pods.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let count = all.items.len();
            if count == replicas as usize { Ok(()) } else { Err(format!("{count} are there")) }
        })
        .await;
        if replicas > 0 {
            self.await_operator().await;
        }
    }

    /// Stops a node's pod (0) or lets it start again (1), behind the operator's back.
    pub async fn scale_node(&self, node: &str, replicas: u32) {
        let count = format!("--replicas={replicas}");
        let set = format!("statefulset/{node}");
        self.kubectl_ok(&["scale", &set, "-n", &self.namespace, &count]);
        if replicas == 0 {
            let pod = format!("{node}-0");
            eventually("the pod's end", Duration::from_mins(2), async || {
                match self.api::<Pod>().get_opt(&pod).await {
                    Ok(None) => Ok(()),
                    other => Err(format!("{:?}", other.map(|pod| pod.is_some()))),
                }
            })
            .await;
        }
    }

    /// Where a node's volume lies on this machine.
    pub fn volume(&self, node: &str) -> PathBuf {
        let claim = format!("{node}-data");
        let path = "-o=jsonpath={.spec.volumeName}";
        let volume = self.kubectl_ok(&["get", "pvc", &claim, "-n", &self.namespace, path]);
        let path = "-o=jsonpath={.spec.hostPath.path}";
        PathBuf::from(self.kubectl_ok(&["get", "pv", volume.trim(), path]).trim())
    }

    /// Waits until a node's guard says something that begins like this.
    pub async fn await_guard(&self, node: &str, expected: &str, within: Duration) {
        let pod = format!("{node}-0");
        eventually(&format!("guard of {node}: {expected}"), within, async || {
            let args = ["logs", &pod, "-n", &self.namespace, "-c", "guard", "--tail=1"];
            let output = self.kubectl(&args, "");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said.contains(&format!("\"message\":\"{expected}")) {
                Ok(())
            } else {
                Err(said + &String::from_utf8_lossy(&output.stderr))
            }
        })
        .await;
    }

    /// The operator's replica that leads.
    pub async fn leader(&self) -> String {
        let leases = Api::<Lease>::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        eventually("a leader", Duration::from_mins(1), async || {
            let lease = leases.get("bsn-operator").await.map_err(|error| error.to_string())?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
            // The holder may have died without a word.
            if find_process(&holder, "bsn-operator").is_some() {
                Ok(holder)
            } else {
                Err(format!("{holder:?} leads and does not run"))
            }
        })
        .await
    }

    /// Waits until all replicas of the operator are ready.
    pub async fn await_operator(&self) {
        let deployments = Api::<Deployment>::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        eventually("the operator's replicas", Duration::from_mins(3), async || {
            let deployment =
                deployments.get("bsn-operator").await.map_err(|error| error.to_string())?;
            let wanted = deployment.spec.and_then(|spec| spec.replicas);
            let status = deployment.status.unwrap_or_default();
            if status.ready_replicas == wanted && status.updated_replicas == wanted {
                Ok(())
            } else {
                Err(format!("{:?} of {wanted:?} are ready", status.ready_replicas))
            }
        })
        .await;
    }
}

/// A namespace whose pods must meet the restricted standard.
pub fn namespace_yaml(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n"
    )
}

/// Runs a program with the kubeconfig of a cluster and this on its standard input.
pub fn run_in(lab: &Lab, cluster: usize, program: PathBuf, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .env("KUBECONFIG", lab.kubeconfig(cluster))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The node that a pod runs.
pub fn node_of(pod: &Pod) -> String {
    let name = pod.name_any();
    name.strip_suffix("-0").unwrap_or(&name).to_owned()
}

/// Whether a pod works and is not being ended.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        |all: &Vec<_>| all.iter().any(|c: &PodCondition| c.type_ == "Ready" && c.status == "True");
    pod.metadata.deletion_timestamp.is_none() && conditions.is_some_and(ready)
}

/// The consent that a refusal asks for.
pub fn consent_in(refusal: &str) -> String {
    let (_, consent) = refusal.split_once(&format!("{CONSENT_ANNOTATION}=")).unwrap();
    consent.split_whitespace().next().unwrap().to_owned()
}

/// Kills a process in a pod with SIGKILL, as a crash would.
pub fn kill9(pod: &str, program: &str) {
    let process = find_process(pod, program)
        .unwrap_or_else(|| panic!("no process {program} of pod {pod} runs"));
    process.kill9().unwrap();
}

/// Containers' processes are visible on this machine; the pod's name is in their environment.
pub fn find_process(pod: &str, program: &str) -> Option<ProcessId> {
    let hostname = format!("HOSTNAME={pod}");
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // Any of these files may be gone a moment later.
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let first = command.split(|byte| *byte == 0).next()?;
        let named = std::str::from_utf8(first).ok()?.rsplit('/').next()? == program;
        let mut variables = environment.split(|byte| *byte == 0);
        (named && variables.any(|variable| variable == hostname.as_bytes()))
            .then(|| ProcessId::of(pid))?
    })
}

/// Names of objects, to compare sets of them.
pub fn names<K: kube::Resource<DynamicType = ()>>(objects: &[K]) -> BTreeSet<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}
