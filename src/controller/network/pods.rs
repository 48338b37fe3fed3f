//! What is described of the nodes' pods, checked and put together. What passes here the API server takes: a template
//! that it refused would be in force, and no pod would come of it.

use std::collections::BTreeMap;

use bsn_core::names::is_dns_label;

use crate::api::{AppContainer, NodePod, NodeSet, Spread};
use crate::build::application::{AppWorkload, OWN_VARIABLES};
use crate::build::stateful_set::GRACE_SECONDS;
use crate::labels;

/// Prefixes and whole keys of labels by which pods are found.
const TAKEN_LABELS: [&str; 7] = [
    labels::PREFIX,
    "statefulset.kubernetes.io/",
    "apps.kubernetes.io/",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "controller-revision-hash",
];
/// Prefix of the operator's own annotations.
const TAKEN_ANNOTATIONS: [&str; 1] = [labels::PREFIX];
/// Longest that keys and values of annotations may be together, in bytes. The template in force is kept in a
/// `ConfigMap`, with all else that is in it.
const MAX_ANNOTATIONS: usize = 32 << 10;

/// What of a pod makes no sense; the message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPod {
    /// A key that no object can have.
    #[error(
        "{field}: {key:?} is no key; write a name of at most 63 letters, digits, '-', '_' and '.', with a domain and '/' \
         before it if you like, for example example.com/team"
    )]
    Key {
        /// Where.
        field: String,
        /// The key.
        key: String,
    },
    /// A value that no label can have.
    #[error(
        "{field}: {value:?} cannot be the value of a label; write at most 63 letters, digits, '-', '_' and '.', beginning \
         and ending with a letter or digit"
    )]
    Value {
        /// Where.
        field: String,
        /// The value.
        value: String,
    },
    /// A key that the operator or Kubernetes sets.
    #[error("{field}: {key:?} is set by the operator or by Kubernetes; use a prefix of your own")]
    Taken {
        /// Where.
        field: String,
        /// The key.
        key: String,
    },
    /// Annotations that are too long.
    #[error("{field} is longer than 32 KiB; keep long texts elsewhere")]
    TooLong {
        /// Where.
        field: String,
    },
    /// A variable that the operator sets.
    #[error("spec.engine.cometbft.app.container.env: {0} is set by the operator; use another name")]
    TakenVariable(String),
}

/// Puts together and checks what is described of the pods of a set. What is said as it is by default counts as not said:
/// it restarts nobody.
pub fn validate_pod(default: Option<&NodePod>, set: &NodeSet) -> Result<NodePod, InvalidPod> {
    let pod = put_together(default, set.pod.as_ref());
    let field = |name: &str| format!("pod.{name} of set {}", set.name);
    check_labels(&field("labels"), &pod.labels, &TAKEN_LABELS)?;
    check_labels(&field("nodeSelector"), &pod.node_selector, &[])?;
    check_keys(&field("annotations"), &pod.annotations, &TAKEN_ANNOTATIONS)?;
    let length: usize = pod.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if length > MAX_ANNOTATIONS {
        return Err(InvalidPod::TooLong { field: field("annotations") });
    }
    for toleration in &pod.tolerations {
        let field = field("tolerations");
        if let Some(key) = toleration.key.as_ref().filter(|key| !is_key(key)) {
            return Err(InvalidPod::Key { field, key: key.clone() });
        }
        if let Some(value) = toleration.value.as_ref().filter(|value| !is_label_value(value)) {
            return Err(InvalidPod::Value { field, value: value.clone() });
        }
    }
    Ok(pod)
}

/// Checks a user's application.
pub fn validate_app(container: &AppContainer) -> Result<AppWorkload, InvalidPod> {
    let AppContainer { image, command, args, env, mounts, resources, halt } = container;
    let halts_by = halt.iter().map(|halt| halt.env.as_str());
    let taken: Vec<&str> = OWN_VARIABLES.into_iter().chain(halts_by).collect();
    if let Some(variable) = env.iter().find(|variable| taken.contains(&variable.name.as_str())) {
        return Err(InvalidPod::TakenVariable(variable.name.clone()));
    }
    Ok(AppWorkload {
        image: image.clone(),
        command: command.clone(),
        args: args.clone(),
        env: env.clone(),
        mounts: mounts.clone(),
        resources: resources.clone(),
    })
}

/// What a set says, else what the network says, field by field.
fn put_together(default: Option<&NodePod>, set: Option<&NodePod>) -> NodePod {
    let said: Vec<&NodePod> = set.into_iter().chain(default).collect();
    let spread = first_said(&said, |pod| &pod.spread);
    let grace = first_said(&said, |pod| &pod.termination_grace_period_seconds);
    NodePod {
        labels: first_said(&said, |pod| &pod.labels),
        annotations: first_said(&said, |pod| &pod.annotations),
        node_selector: first_said(&said, |pod| &pod.node_selector),
        tolerations: first_said(&said, |pod| &pod.tolerations),
        spread: spread.filter(|spread| *spread != Spread::default()),
        priority_class_name: first_said(&said, |pod| &pod.priority_class_name),
        image_pull_secrets: first_said(&said, |pod| &pod.image_pull_secrets),
        termination_grace_period_seconds: grace.filter(|seconds| *seconds != GRACE_SECONDS),
    }
}

fn first_said<T: Clone + Default + PartialEq>(
    said: &[&NodePod],
    field: impl Fn(&NodePod) -> &T,
) -> T {
    let mut all = said.iter().map(|pod| field(pod));
    all.find(|value| **value != T::default()).cloned().unwrap_or_default()
}

fn check_labels(
    field: &str,
    labels: &BTreeMap<String, String>,
    taken: &[&str],
) -> Result<(), InvalidPod> {
    check_keys(field, labels, taken)?;
    match labels.values().find(|value| !is_label_value(value)) {
        Some(value) => Err(InvalidPod::Value { field: field.to_owned(), value: value.clone() }),
        None => Ok(()),
    }
}

fn check_keys(
    field: &str,
    entries: &BTreeMap<String, String>,
    taken: &[&str],
) -> Result<(), InvalidPod> {
    for key in entries.keys() {
        let (field, key) = (field.to_owned(), key.clone());
        if !is_key(&key) {
            return Err(InvalidPod::Key { field, key });
        }
        let is_taken =
            |one: &&str| if one.ends_with('/') { key.starts_with(*one) } else { key == **one };
        if taken.iter().any(is_taken) {
            return Err(InvalidPod::Taken { field, key });
        }
    }
    Ok(())
}

/// Whether Kubernetes takes this as the key of a label, annotation or taint: a name, perhaps behind a DNS name.
fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => is_domain(domain) && is_name(name),
        None => is_name(key),
    }
}

fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: char| c.is_ascii_alphanumeric();
    name.len() <= 63 && name.chars().all(inner) && name.starts_with(ends) && name.ends_with(ends)
}

fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_name(value)
}

fn is_domain(domain: &str) -> bool {
    domain.len() <= 253 && domain.split('.').all(is_dns_label)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(pod: &Value) -> NodeSet {
        let set = json!({"name": "a", "role": "Validator", "replicas": 1, "pod": pod});
        serde_json::from_value(set).unwrap()
    }

    fn pod(pod: Value) -> NodePod {
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_set_says_otherwise_field_by_field() {
        let default = pod(json!({
            "labels": {"team": "ledger"},
            "priorityClassName": "chains",
            "spread": {"machines": "Required"},
        }));
        let described =
            json!({"labels": {"city": "hangzhou"}, "terminationGracePeriodSeconds": 90});
        let expected = pod(json!({
            "labels": {"city": "hangzhou"},
            "priorityClassName": "chains",
            "spread": {"machines": "Required"},
            "terminationGracePeriodSeconds": 90,
        }));
        assert_eq!(validate_pod(Some(&default), &set(&described)), Ok(expected));
        assert_eq!(validate_pod(Some(&default), &set(&json!({}))), Ok(default));
    }

    #[test]
    fn what_is_so_by_default_counts_as_not_said() {
        let said = set(&json!({
            "spread": {"machines": "Preferred", "zones": "Preferred"},
            "terminationGracePeriodSeconds": 60,
        }));
        assert_eq!(validate_pod(None, &said), Ok(NodePod::default()));
        // Over what the network says it is something.
        let default = pod(json!({"terminationGracePeriodSeconds": 90}));
        assert_eq!(validate_pod(Some(&default), &said), Ok(NodePod::default()));
    }

    #[test]
    fn what_the_api_server_would_refuse_is_refused_with_an_instruction() {
        let long = "x".repeat(64);
        for (described, words) in [
            (json!({"labels": {"a b": "c"}}), "pod.labels of set a: \"a b\" is no key"),
            (json!({"labels": {"/x": "c"}}), "is no key"),
            (json!({"labels": {"Example.com/x": "c"}}), "is no key"),
            (json!({"labels": {long.clone(): "c"}}), "is no key"),
            (json!({"labels": {"team": "the ledger"}}), "cannot be the value of a label"),
            (json!({"labels": {"team": "-"}}), "cannot be the value of a label"),
            (json!({"nodeSelector": {"disk": long}}), "pod.nodeSelector of set a"),
            (json!({"tolerations": [{"key": "a b"}]}), "pod.tolerations of set a"),
            (json!({"labels": {"bsn-operator.io/node": "x"}}), "use a prefix of your own"),
            (json!({"labels": {"app.kubernetes.io/name": "x"}}), "use a prefix of your own"),
            (json!({"annotations": {"bsn-operator.io/x": ""}}), "use a prefix of your own"),
            (json!({"annotations": {"text": "x".repeat(33 << 10)}}), "longer than 32 KiB"),
        ] {
            let error = validate_pod(None, &set(&described)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let good = json!({
            "labels": {"example.com/team": "", "app.kubernetes.io/part-of": "Ledger_1.x"},
            "annotations": {"note": "any text, in any form"},
            "nodeSelector": {"node-role.kubernetes.io/chain": ""},
        });
        validate_pod(None, &set(&good)).unwrap();
    }

    #[test]
    fn variables_that_the_operator_sets_are_taken() {
        let app = |name: &str| {
            let app = json!({
                "image": "x", "env": [{"name": name, "value": "1"}], "halt": {"env": "STOP_AT"},
            });
            validate_app(&serde_json::from_value(app).unwrap())
        };
        for name in ["ABCI_ADDRESS", "APP_DATA", "STOP_AT"] {
            assert_eq!(app(name), Err(InvalidPod::TakenVariable(name.to_owned())));
        }
        assert_eq!(app("LOG_LEVEL").unwrap().env[0].name, "LOG_LEVEL");
    }
}
