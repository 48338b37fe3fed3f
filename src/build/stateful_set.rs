//! A node's `StatefulSet`: one replica, `OnDelete`, so that a restart is a decision and never a side
//! effect. Single nodes can be restarted, moved and removed in any order.

use std::collections::BTreeMap;

use bsn_core::engine::cometbft::P2P_PORT;
use bsn_core::engine::cometbft::config::Application;
use bsn_core::engine::cometbft::genesis::GENESIS_FILE;
use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, NODE_KEY_FILE};
use bsn_core::guard::PodIdentity;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::NodeParts;
use super::application::{AppWorkload, build_application, build_application_volumes};
use super::pod_extras::{build_spread, put_extras};
use crate::agent::paths;
use crate::api::{ClusterImage, NodePod};
use crate::labels::{self, GATEWAY_PORT, PROBE_PORT};

/// User and group of every container in a node's pod; any id but root would do.
pub(super) const POD_USER: i64 = 65532;

/// Time between SIGTERM and SIGKILL, in seconds. The engine stops within one; a user's application may
/// have to finish a block.
pub const GRACE_SECONDS: u32 = 60;

/// What a node runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The engine's image.
    pub engine_image: String,
    /// The operator's own image, and how it is pulled.
    pub agent_image: ClusterImage,
    /// A user's application, if the chain runs one.
    pub app: Option<AppWorkload>,
    /// Resources of the engine; `None` = modest requests and no limit.
    pub resources: Option<ResourceRequirements>,
    /// What its pod has besides.
    pub extras: NodePod,
}

impl Workload {
    /// How the engine reaches its application.
    pub fn application(&self) -> Application {
        if self.app.is_some() { Application::Socket } else { Application::PersistentKvstore }
    }
}

/// Name of the guard's container.
const GUARD: &str = "guard";

/// Names of the objects a pod mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    /// The configuration `ConfigMap`.
    pub config: String,
    /// The genesis `ConfigMap`.
    pub genesis: String,
    /// The peers `ConfigMap`.
    pub peers: String,
}

/// Builds a node's `StatefulSet` around the pod template in force.
pub fn build_stateful_set(node: &NodeParts<'_>, template: PodTemplateSpec) -> StatefulSet {
    StatefulSet {
        metadata: node.owned(node.name.to_string()),
        spec: Some(StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(node.name.to_string()),
            selector: LabelSelector {
                match_labels: Some(node.selector()),
                ..LabelSelector::default()
            },
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                ..StatefulSetUpdateStrategy::default()
            }),
            template,
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

/// Builds a pod template. `identity` is the one the pod runs for.
pub fn build_template(
    node: &NodeParts<'_>,
    workload: &Workload,
    mounts: &Mounts,
    identity: &PodIdentity,
) -> PodTemplateSpec {
    let NodePod { labels: added, annotations, .. } = &workload.extras;
    let mut pod_labels = added.clone();
    // Over those that were added: pods are found by them.
    pod_labels.extend(node.labels());
    pod_labels.insert(labels::APP_NAME.to_owned(), "cometbft".to_owned());
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels),
            annotations: (!annotations.is_empty()).then(|| annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(node, workload, mounts, identity)),
    }
}

/// Marks a template with its own hash, so that every pod says which one it was made from.
pub fn with_template_hash(mut template: PodTemplateSpec, hash: &str) -> PodTemplateSpec {
    let metadata = template.metadata.get_or_insert_default();
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(labels::TEMPLATE_HASH.to_owned(), hash.to_owned());
    template
}

/// The hash of the template that a pod or template was marked with.
pub fn template_hash_of(annotations: Option<&BTreeMap<String, String>>) -> Option<String> {
    annotations?.get(labels::TEMPLATE_HASH).cloned()
}

/// Whether the agents in a pod are this image, pulled with its credentials. Other credentials may be named besides: for
/// the images of the engine and of an application, or by a service account.
pub fn runs_agents(pod: &PodSpec, image: &ClusterImage) -> bool {
    let guard = pod.init_containers.iter().flatten().find(|container| container.name == GUARD);
    let named = |secret: &String| {
        pod.image_pull_secrets.iter().flatten().any(|known| known.name == *secret)
    };
    guard.and_then(|guard| guard.image.as_ref()) == Some(&image.reference)
        && image.pull_secret_name.iter().all(named)
}

/// Name of the configuration that a pod mounts.
pub fn config_of(pod: &PodSpec) -> Option<String> {
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == "config")?;
    Some(volume.config_map.as_ref()?.name.clone())
}

fn pod(
    node: &NodeParts<'_>,
    workload: &Workload,
    mounts: &Mounts,
    identity: &PodIdentity,
) -> PodSpec {
    let mut containers = vec![engine(workload, identity)];
    if let Some(app) = &workload.app {
        containers.push(build_application(app));
    }
    let mut volumes = volumes(node, mounts);
    volumes.extend(workload.app.iter().flat_map(build_application_volumes));
    let mut pod = PodSpec {
        // The gateway first: it answers while the next step works, and goes last.
        init_containers: Some(vec![gateway(workload, identity), guard(workload, identity)]),
        containers,
        volumes: Some(volumes),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: pull_secrets(&workload.agent_image),
        termination_grace_period_seconds: Some(i64::from(GRACE_SECONDS)),
        affinity: build_spread(node, workload.extras.spread.unwrap_or_default()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(POD_USER),
            run_as_group: Some(POD_USER),
            fs_group: Some(POD_USER),
            // A large volume would otherwise be walked through at every start.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(runtime_default()),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    };
    put_extras(&mut pod, &workload.extras);
    pod
}

/// What the kubelet needs to pull an image, in a pod; nothing where it needs nothing, so that such a template stays
/// as it ever was.
pub fn pull_secrets(image: &ClusterImage) -> Option<Vec<LocalObjectReference>> {
    let name = image.pull_secret_name.clone()?;
    Some(vec![LocalObjectReference { name }])
}

pub(super) fn runtime_default() -> SeccompProfile {
    SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }
}

/// What a container may do in a namespace of the pod security standard `restricted`.
pub(super) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            ..Capabilities::default()
        }),
        ..SecurityContext::default()
    }
}

pub(super) fn resources(
    cpu: &str,
    memory: &str,
    memory_limit: Option<&str>,
) -> ResourceRequirements {
    let quantity = |name: &str, value: &str| (name.to_owned(), Quantity(value.to_owned()));
    ResourceRequirements {
        requests: Some([quantity("cpu", cpu), quantity("memory", memory)].into()),
        limits: memory_limit.map(|limit| [quantity("memory", limit)].into()),
        ..ResourceRequirements::default()
    }
}

pub(super) fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// Variable that tells the agents whom they run for.
const IDENTITY_ENV: &str = "BSN_IDENTITY";

fn identity_env(identity: &PodIdentity) -> Vec<EnvVar> {
    vec![value_env(IDENTITY_ENV, identity_json(identity))]
}

pub(super) fn value_env(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), ..EnvVar::default() }
}

/// A variable that the kubelet fills in from the pod.
fn field_env(name: &str, field_path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                // Named, as the server would: then a comparison finds no difference.
                api_version: Some("v1".to_owned()),
                field_path: field_path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

fn identity_json(identity: &PodIdentity) -> String {
    // A plain struct of strings: serialising it cannot fail.
    serde_json::to_string(identity).unwrap_or_default()
}

/// Whom a pod runs for, by its guard.
pub fn identity_of(pod: &PodSpec) -> Option<PodIdentity> {
    let guard = pod.init_containers.iter().flatten().find(|container| container.name == GUARD)?;
    let variable = guard.env.iter().flatten().find(|variable| variable.name == IDENTITY_ENV)?;
    serde_json::from_str(variable.value.as_ref()?).ok()
}

/// Puts another identity into a pod template and leaves everything else as it is.
pub fn put_identity(pod: &mut PodSpec, identity: &PodIdentity) {
    let containers = pod.init_containers.iter_mut().flatten().chain(&mut pod.containers);
    for variable in containers.flat_map(|container| container.env.iter_mut().flatten()) {
        if variable.name == IDENTITY_ENV {
            variable.value = Some(identity_json(identity));
        }
    }
}

fn container_port(name: &str, port: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: i32::from(port),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(i32::from(PROBE_PORT)),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn gateway(workload: &Workload, identity: &PodIdentity) -> Container {
    let mut args = vec!["gateway".to_owned()];
    if workload.app.is_none() {
        args.push("--guard-validators".to_owned());
    }
    let mut env = identity_env(identity);
    env.push(field_env(
        "BSN_TEMPLATE_HASH",
        &format!("metadata.annotations['{}']", labels::TEMPLATE_HASH),
    ));
    Container {
        name: "gateway".to_owned(),
        image: Some(workload.agent_image.reference.clone()),
        args: Some(args),
        env: Some(env),
        // A native sidecar: starts before the engine, restarts alone, stops after it.
        restart_policy: Some("Always".to_owned()),
        ports: Some(vec![
            container_port("gateway", GATEWAY_PORT),
            container_port("probe", PROBE_PORT),
        ]),
        readiness_probe: Some(probe("/readyz", 5, 3)),
        liveness_probe: Some(probe("/livez", 20, 3)),
        resources: Some(resources("20m", "32Mi", Some("128Mi"))),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![
            mount("cert", paths::CERT_DIR, true),
            mount("tls-key", paths::TLS_KEY_DIR, true),
            mount("run", paths::RUN_DIR, true),
        ]),
        ..Container::default()
    }
}

fn guard(workload: &Workload, identity: &PodIdentity) -> Container {
    let mut env = identity_env(identity);
    env.push(field_env("BSN_MACHINE", "spec.nodeName"));
    Container {
        name: GUARD.to_owned(),
        image: Some(workload.agent_image.reference.clone()),
        args: Some(vec!["guard".to_owned()]),
        env: Some(env),
        resources: Some(resources("20m", "32Mi", Some("128Mi"))),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![
            mount("disk", paths::DISK, false),
            mount("home", paths::HOME, false),
            mount("run", paths::RUN_DIR, false),
            mount("keys", paths::KEYS, true),
            mount("config", paths::CONFIG_DIR, true),
            mount("peers", paths::PEERS_DIR, true),
            mount("genesis", paths::GENESIS_DIR, true),
            mount("token", paths::TOKEN_DIR, true),
            // To ask the other nodes what they have seen of this key.
            mount("cert", paths::CERT_DIR, true),
            mount("tls-key", paths::TLS_KEY_DIR, true),
        ]),
        ..Container::default()
    }
}

fn engine(workload: &Workload, identity: &PodIdentity) -> Container {
    let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    Container {
        name: "engine".to_owned(),
        image: Some(workload.engine_image.clone()),
        command: Some(text(&["cometbft"])),
        args: Some(text(&[
            "start",
            "--home",
            paths::HOME,
            // The engine checks the file it was given once more.
            "--genesis_hash",
            &identity.genesis_hash,
        ])),
        ports: Some(vec![container_port("p2p", P2P_PORT)]),
        // No liveness probe: an engine that lives says nothing about consensus, and one that ends is
        // restarted anyway.
        readiness_probe: Some(probe("/engine/readyz", 3, 3)),
        resources: Some(
            workload.resources.clone().unwrap_or_else(|| resources("100m", "256Mi", None)),
        ),
        security_context: Some(restricted()),
        volume_mounts: Some(vec![
            mount("disk", paths::DISK, false),
            mount("home", paths::HOME, false),
            mount("keys", paths::KEYS, true),
            mount("genesis", paths::GENESIS_DIR, true),
        ]),
        ..Container::default()
    }
}

fn volumes(node: &NodeParts<'_>, mounts: &Mounts) -> Vec<Volume> {
    let named = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    let config_map = |name: &str, object: &str| Volume {
        config_map: Some(ConfigMapVolumeSource {
            name: object.to_owned(),
            ..ConfigMapVolumeSource::default()
        }),
        ..named(name)
    };
    // One Secret, two mounts: the engine never sees the TLS key, the gateway never the consensus key.
    let secret = |name: &str, files: &[&str]| Volume {
        secret: Some(SecretVolumeSource {
            secret_name: Some(node.name.keys()),
            // Readable for the pod's group, which is the volume's.
            default_mode: Some(0o440),
            items: Some(
                files
                    .iter()
                    .map(|file| KeyToPath {
                        key: (*file).to_owned(),
                        path: (*file).to_owned(),
                        mode: None,
                    })
                    .collect(),
            ),
            ..SecretVolumeSource::default()
        }),
        ..named(name)
    };
    let empty =
        |name: &str| Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..named(name) };
    vec![
        Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: node.name.disk(),
                ..PersistentVolumeClaimVolumeSource::default()
            }),
            ..named("disk")
        },
        empty("home"),
        empty("run"),
        Volume {
            secret: Some(SecretVolumeSource {
                secret_name: Some(node.name.first_start()),
                // Nearly always absent: a pod needs none to start on its own disk.
                optional: Some(true),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..named("token")
        },
        empty("tmp"),
        secret("keys", &[CONSENSUS_KEY_FILE, NODE_KEY_FILE]),
        secret("tls-key", &[paths::TLS_KEY_FILE]),
        config_map("cert", &node.name.certificate()),
        config_map("config", &mounts.config),
        config_map("peers", &mounts.peers),
        Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: mounts.genesis.clone(),
                items: Some(vec![KeyToPath {
                    key: GENESIS_FILE.to_owned(),
                    path: GENESIS_FILE.to_owned(),
                    mode: None,
                }]),
                ..ConfigMapVolumeSource::default()
            }),
            ..named("genesis")
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(agent_image: ClusterImage) -> PodTemplateSpec {
        template_with(agent_image, NodePod::default())
    }

    fn template_with(agent_image: ClusterImage, extras: NodePod) -> PodTemplateSpec {
        let workload = Workload {
            engine_image: "engine:1".to_owned(),
            agent_image,
            app: None,
            resources: None,
            extras,
        };
        let mounts = Mounts {
            config: "config".to_owned(),
            genesis: "genesis".to_owned(),
            peers: "peers".to_owned(),
        };
        let identity = PodIdentity {
            network_id: "n1".to_owned(),
            identity_id: "i1".to_owned(),
            consensus_key: "k1".to_owned(),
            disk_uid: "d1".to_owned(),
            genesis_hash: "g1".to_owned(),
        };
        crate::build::samples::with_node(None, |node| {
            build_template(node, &workload, &mounts, &identity)
        })
    }

    fn agent(reference: &str, secret: Option<&str>) -> ClusterImage {
        ClusterImage { reference: reference.into(), pull_secret_name: secret.map(str::to_owned) }
    }

    /// Where none is named, the template is byte for byte what it was before there were any: it stays in force.
    #[test]
    fn a_pull_secret_is_all_that_a_private_image_adds_to_a_pod() {
        let plain = template(agent("operator:1", None));
        assert!(!serde_json::to_string(&plain).unwrap().contains("imagePullSecrets"));
        let mut private = template(agent("operator:1", Some("registry")));
        let spec = private.spec.as_mut().unwrap();
        let named = spec.image_pull_secrets.take().unwrap();
        assert_eq!(named, [LocalObjectReference { name: "registry".to_owned() }]);
        assert_eq!(private, plain);
    }

    #[test]
    fn a_template_says_which_agents_it_brings() {
        let plain = agent("operator:1", None);
        let private = agent("mirror/operator:1", Some("registry"));
        for image in [&plain, &private] {
            let spec = template(image.clone()).spec.unwrap();
            assert!(runs_agents(&spec, image));
            assert_eq!(
                [&plain, &private].map(|one| runs_agents(&spec, one)),
                [&plain, &private].map(|one| one == image)
            );
        }
        let mut with_others = template(plain.clone()).spec.unwrap();
        with_others.image_pull_secrets =
            Some(vec![LocalObjectReference { name: "mine".to_owned() }]);
        assert!(runs_agents(&with_others, &plain));
        assert!(!runs_agents(&with_others, &agent("operator:1", Some("registry"))));
    }

    #[test]
    fn labels_and_annotations_are_added_and_take_no_place_of_ours() {
        let plain = template(agent("operator:1", None)).metadata.unwrap();
        assert_eq!(plain.annotations, None);
        let extras = NodePod {
            labels: [("team", "ledger"), (labels::NODE, "another")].map(text).into(),
            annotations: [("restarted-at", "noon")].map(text).into(),
            ..NodePod::default()
        };
        let meta = template_with(agent("operator:1", None), extras).metadata.unwrap();
        let mut expected = plain.labels.unwrap();
        expected.insert("team".to_owned(), "ledger".to_owned());
        assert_eq!(meta.labels, Some(expected));
        assert_eq!(meta.annotations, Some([text(("restarted-at", "noon"))].into()));
    }

    fn text((key, value): (&str, &str)) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }
}
