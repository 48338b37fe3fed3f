//! A user's application in a node's pod: its container, the files it sees, and how it is told to halt.

use std::collections::BTreeMap;

use bsn_core::engine::cometbft::ABCI_PORT;
use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, ConfigMapVolumeSource, Container, EnvVar, EnvVarSource, PodTemplateSpec,
    ResourceRequirements, SecretKeySelector, SecretVolumeSource, Volume, VolumeMount,
};

use super::stateful_set::{mount, resources, restricted, value_env};
use crate::agent::paths;
use crate::api::{AppMount, AppVariable, AppVariableSource, EntryRef};
use crate::labels;

/// Name of its container.
const APP: &str = "app";
/// What the names of volumes begin with that only the application mounts.
const VOLUME: &str = "app-";

/// The variables that the operator sets.
pub const OWN_VARIABLES: [&str; 2] = ["ABCI_ADDRESS", "APP_DATA"];

/// A user's application.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AppWorkload {
    /// Its image.
    pub image: String,
    /// Replaces the entry point, unless empty.
    pub command: Vec<String>,
    /// Arguments.
    pub args: Vec<String>,
    /// Variables besides the operator's.
    pub env: Vec<AppVariable>,
    /// What it sees as files.
    pub mounts: Vec<AppMount>,
    /// Its resources; `None` = modest requests and no limit.
    pub resources: Option<ResourceRequirements>,
}

/// Builds its container.
pub fn build_application(app: &AppWorkload) -> Container {
    let given = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    let [address, data] = OWN_VARIABLES;
    let mut env = vec![
        value_env(address, format!("tcp://127.0.0.1:{ABCI_PORT}")),
        value_env(data, paths::APP_DATA.to_owned()),
    ];
    env.extend(app.env.iter().map(variable));
    let mut volume_mounts = vec![
        VolumeMount {
            // Its own directory only: blocks and signing state are none of its business.
            sub_path: Some("app".to_owned()),
            ..mount("disk", paths::APP_DATA, false)
        },
        mount("tmp", "/tmp", false),
    ];
    let mounts = app.mounts.iter().enumerate();
    volume_mounts.extend(mounts.map(|(i, one)| mount(&volume_name(i), &one.path, true)));
    Container {
        name: APP.to_owned(),
        image: Some(app.image.clone()),
        command: given(&app.command),
        args: given(&app.args),
        env: Some(env),
        resources: Some(app.resources.clone().unwrap_or_else(|| resources("100m", "128Mi", None))),
        security_context: Some(restricted()),
        volume_mounts: Some(volume_mounts),
        ..Container::default()
    }
}

/// Builds the volumes that only the application mounts.
pub fn build_application_volumes(app: &AppWorkload) -> Vec<Volume> {
    let volume = |(i, one): (usize, &AppMount)| Volume {
        name: volume_name(i),
        secret: one.secret.as_ref().map(|secret| SecretVolumeSource {
            secret_name: Some(secret.name.clone()),
            // Readable for the pod's group, which is the volume's.
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        config_map: one.config_map.as_ref().map(|map| ConfigMapVolumeSource {
            name: map.name.clone(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    app.mounts.iter().enumerate().map(volume).collect()
}

fn volume_name(index: usize) -> String {
    format!("{VOLUME}{index}")
}

fn variable(one: &AppVariable) -> EnvVar {
    EnvVar {
        name: one.name.clone(),
        value: one.value.clone(),
        value_from: one.value_from.as_ref().map(source),
    }
}

fn source(from: &AppVariableSource) -> EnvVarSource {
    let optional = |entry: &EntryRef| entry.optional.then_some(true);
    EnvVarSource {
        secret_key_ref: from.secret_key_ref.as_ref().map(|entry| SecretKeySelector {
            name: entry.name.clone(),
            key: entry.key.clone(),
            optional: optional(entry),
        }),
        config_map_key_ref: from.config_map_key_ref.as_ref().map(|entry| ConfigMapKeySelector {
            name: entry.name.clone(),
            key: entry.key.clone(),
            optional: optional(entry),
        }),
        ..EnvVarSource::default()
    }
}

/// The block after which the application of a pod or template halts.
pub fn halts_at_of(annotations: Option<&BTreeMap<String, String>>) -> Option<u64> {
    annotations?.get(labels::HALTS_AT)?.parse().ok()
}

/// Has the application of a template halt after a block, by this environment variable; `None` = at none.
pub fn put_halt(template: &mut PodTemplateSpec, halt: Option<(&str, u64)>) {
    let metadata = template.metadata.get_or_insert_default();
    let annotations = metadata.annotations.get_or_insert_default();
    let old = annotations.remove(labels::HALT_ENV);
    annotations.remove(labels::HALTS_AT);
    let apps = template.spec.iter_mut().flat_map(|spec| &mut spec.containers);
    for app in apps.filter(|container| container.name == APP) {
        let env = app.env.get_or_insert_default();
        env.retain(|variable| Some(&variable.name) != old.as_ref());
        env.extend(halt.map(|(name, height)| value_env(name, height.to_string())));
    }
    if let Some((name, height)) = halt {
        annotations.insert(labels::HALT_ENV.to_owned(), name.to_owned());
        annotations.insert(labels::HALTS_AT.to_owned(), height.to_string());
    }
}

/// Gives a template the application of another one.
pub fn put_app_of(template: &mut PodTemplateSpec, other: &PodTemplateSpec) {
    let is_app = |container: &&Container| container.name == APP;
    let app = other.spec.iter().flat_map(|spec| &spec.containers).find(is_app);
    let is_its = |volume: &Volume| volume.name.starts_with(VOLUME);
    let theirs = other.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let Some(spec) = &mut template.spec else { return };
    spec.containers.retain(|container| container.name != APP);
    spec.containers.extend(app.cloned());
    // It mounts them by name.
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| !is_its(volume));
        volumes.extend(theirs.filter(|volume| is_its(volume)).cloned());
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    fn with_app(image: &str) -> PodTemplateSpec {
        let app = AppWorkload { image: image.to_owned(), ..AppWorkload::default() };
        let engine = Container { name: "cometbft".to_owned(), ..Container::default() };
        with_container(&app, engine)
    }

    fn with_container(app: &AppWorkload, engine: Container) -> PodTemplateSpec {
        let disk = Volume { name: "disk".to_owned(), ..Volume::default() };
        let spec = PodSpec {
            containers: vec![engine, build_application(app)],
            volumes: Some([vec![disk], build_application_volumes(app)].concat()),
            ..PodSpec::default()
        };
        PodTemplateSpec { metadata: None, spec: Some(spec) }
    }

    fn app_of(template: &PodTemplateSpec) -> &Container {
        &template.spec.as_ref().unwrap().containers[1]
    }

    fn halt_of(template: &PodTemplateSpec) -> (Option<u64>, Vec<(&str, &str)>) {
        let annotations = template.metadata.as_ref().and_then(|meta| meta.annotations.as_ref());
        let env = app_of(template).env.iter().flatten().skip(2);
        let env = env.map(|one| (one.name.as_str(), one.value.as_deref().unwrap())).collect();
        (halts_at_of(annotations), env)
    }

    #[test]
    fn an_application_is_told_one_height_at_most_and_it_is_taken_back() {
        let mut template = with_app("ledger:1");
        put_halt(&mut template, Some(("STOP_AT", 90)));
        assert_eq!(halt_of(&template), (Some(90), vec![("STOP_AT", "90")]));
        // By another name: the user corrected it.
        put_halt(&mut template, Some(("HALT_HEIGHT", 120)));
        assert_eq!(halt_of(&template), (Some(120), vec![("HALT_HEIGHT", "120")]));
        put_halt(&mut template, None);
        assert_eq!(halt_of(&template), (None, vec![]));
        assert_eq!(template.spec, with_app("ledger:1").spec);
    }

    #[test]
    fn only_the_application_is_taken_from_another_node() {
        let mut template = with_app("ledger:1");
        template.spec.as_mut().unwrap().containers[0].image = Some("engine:1".to_owned());
        put_app_of(&mut template, &with_app("ledger:2"));
        assert_eq!(app_of(&template).image.as_deref(), Some("ledger:2"));
        let engine = &template.spec.as_ref().unwrap().containers[0];
        assert_eq!(engine.image.as_deref(), Some("engine:1"));
        assert_eq!(template.spec.as_ref().unwrap().containers.len(), 2);
    }
    fn described(app: serde_json::Value) -> AppWorkload {
        let app: crate::api::AppContainer = serde_json::from_value(app).unwrap();
        let crate::api::AppContainer { image, command, args, env, mounts, resources, halt: _ } =
            app;
        AppWorkload { image, command, args, env, mounts, resources }
    }

    #[test]
    fn an_application_without_extras_is_as_it_ever_was() {
        let app = described(serde_json::json!({"image": "ledger:1", "args": ["--x"]}));
        insta::assert_json_snapshot!(build_application(&app));
        assert_eq!(build_application_volumes(&app), []);
    }

    #[test]
    fn an_application_gets_variables_and_files_and_nothing_of_the_engine() {
        let app = described(serde_json::json!({
            "image": "ledger:1",
            "env": [
                {"name": "LOG", "value": "$(APP_DATA)/log"},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "api", "key": "token"}}},
                {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": true}}},
            ],
            "mounts": [
                {"path": "/etc/ledger", "configMap": {"name": "settings"}},
                {"path": "/etc/tls", "secret": {"name": "tls"}},
            ],
            "resources": {"limits": {"memory": "1Gi"}},
        }));
        insta::assert_json_snapshot!((build_application(&app), build_application_volumes(&app)));
    }

    #[test]
    fn the_files_of_an_application_come_with_it() {
        let with = |mounts: serde_json::Value| {
            let app = described(serde_json::json!({"image": "ledger:1", "mounts": mounts}));
            let engine = Container { name: "cometbft".to_owned(), ..Container::default() };
            with_container(&app, engine)
        };
        let files = serde_json::json!([{"path": "/etc/tls", "secret": {"name": "tls"}}]);
        let (with_files, without) = (with(files), with(serde_json::json!([])));
        let mut template = without.clone();
        put_app_of(&mut template, &with_files);
        assert_eq!(template, with_files);
        put_app_of(&mut template, &without);
        assert_eq!(template, without);
    }
}
