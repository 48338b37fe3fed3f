//! What the user described of how nodes run, and hashes of it: they tell whether a node has to restart, and are in the anchor of
//! every network. What came to the description later is left out of them where it is not set, so that a new version of
//! the operator restarts nobody.

use bsn_core::hash::short_hash;
use serde::Serialize;

use super::validate::ValidatedNetwork;
use crate::api::{AppMount, AppVariable, ClusterImage, NodePod};
use crate::build::application::AppWorkload;
use crate::build::stateful_set::Workload;

impl ValidatedNetwork {
    /// What a node of `set` runs, with these agents.
    pub fn workload(&self, set: &str, agent_image: ClusterImage) -> Workload {
        Workload {
            engine_image: self.engine_image.clone(),
            agent_image,
            app: self.app.clone(),
            resources: self.resources.get(set).cloned().flatten(),
            extras: self.pods.get(set).cloned().unwrap_or_default(),
        }
    }

    /// Hash of what the user described of how a node of `set` runs. A change of it, and nothing else, makes
    /// a node restart.
    pub fn inputs_hash(&self, set: &str) -> String {
        let app = self.app.as_ref().map(app_inputs);
        let resources = self.resources.get(set);
        let inputs = (&self.engine_image, app, &self.timeout_commit, resources);
        let pod = self.pods.get(set).filter(|pod| **pod != NodePod::default());
        let app_resources = self.app.as_ref().and_then(|app| app.resources.as_ref());
        // Without what came later the hash is what it was before that came: in force it stands for the same template.
        if pod.is_none() && app_resources.is_none() {
            hash_of(&inputs)
        } else {
            hash_of(&(inputs, pod, app_resources))
        }
    }

    /// Hash of the user's own application; `None` = it is the engine's.
    pub fn app_hash(&self) -> Option<String> {
        Some(hash_of(&app_inputs(self.app.as_ref()?)))
    }

    /// The same, if it may change at one height only.
    pub fn switches(&self) -> Option<String> {
        self.app_hash().filter(|_| self.at_height.is_some())
    }
}

fn hash_of(inputs: &impl Serialize) -> String {
    // Plain values in structs and lists: serialising them cannot fail.
    short_hash(&serde_json::to_vec(inputs).unwrap_or_default())
}

/// What of an application may change the blocks it makes. Its resources do not.
#[derive(Serialize)]
#[serde(untagged)]
enum AppInputs<'a> {
    Plain(&'a String, &'a Vec<String>, &'a Vec<String>),
    With(&'a String, &'a Vec<String>, &'a Vec<String>, &'a Vec<AppVariable>, &'a Vec<AppMount>),
}

fn app_inputs(app: &AppWorkload) -> AppInputs<'_> {
    let AppWorkload { image, command, args, env, mounts, resources: _ } = app;
    // Without what came later the hash is what it was before that came.
    if env.is_empty() && mounts.is_empty() {
        AppInputs::Plain(image, command, args)
    } else {
        AppInputs::With(image, command, args, env, mounts)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::BsnNetwork;
    use crate::controller::network::validate::validate_network;

    /// A network with these sets, and this application instead of the built-in store.
    fn network(sets: &Value, app: Option<Value>) -> ValidatedNetwork {
        let app = app.map_or(json!({"persistentKvstore": {}}), |app| json!({"container": app}));
        let spec = json!({
            "chainId": "net-1",
            "engine": {"cometbft": {"version": "0.38.25", "app": app}},
            "nodeSets": sets,
        });
        let network = BsnNetwork::new("net", serde_json::from_value(spec).unwrap());
        validate_network(&network, "").unwrap()
    }

    fn one_voter() -> Value {
        json!([{"name": "v", "role": "Validator", "replicas": 1}])
    }

    /// It is in the anchor of every network: were it computed otherwise, every node would restart. The agents' image
    /// is no part of it, nor is anything else of the operator's.
    #[test]
    fn what_was_described_has_the_hash_it_always_had() {
        assert_eq!(network(&one_voter(), None).inputs_hash("v"), "db5b52286d");
        let mut sets = one_voter();
        sets[0]["resources"] = json!({"requests": {"cpu": "1"}});
        let app = json!({"image": "x", "command": ["y"], "args": ["z"]});
        let network = network(&sets, Some(app));
        let hashes = (network.inputs_hash("v"), network.app_hash().unwrap());
        assert_eq!(hashes, ("f8dfbc5f83".to_owned(), "f586330ebc".to_owned()));
    }

    #[test]
    fn what_pods_have_besides_restarts_the_nodes_of_that_set_and_no_others() {
        let hashes = |extra: Value| {
            let mut sets = json!([
                {"name": "v", "role": "Validator", "replicas": 1},
                {"name": "w", "role": "Validator", "replicas": 1},
            ]);
            sets[0]["pod"] = extra;
            let network = network(&sets, None);
            ["v", "w"].map(|set| network.inputs_hash(set))
        };
        let plain = hashes(Value::Null);
        assert_eq!(hashes(json!({})), plain);
        assert_eq!(hashes(json!({"terminationGracePeriodSeconds": 60})), plain);
        let [v, w] = hashes(json!({"labels": {"team": "ledger"}}));
        assert!(v != plain[0] && w == plain[1]);
        assert_ne!(hashes(json!({"annotations": {"team": "ledger"}}))[0], v);
    }

    #[test]
    fn variables_and_files_are_part_of_an_application_and_its_resources_are_not() {
        let hashes = |extra: Value| {
            let mut container = json!({"image": "x"});
            for (field, value) in extra.as_object().unwrap() {
                container[field] = value.clone();
            }
            let network = network(&one_voter(), Some(container));
            (network.inputs_hash("v"), network.app_hash())
        };
        let plain = hashes(json!({}));
        for extra in [
            json!({"env": [{"name": "A", "value": "1"}]}),
            json!({"mounts": [{"path": "/etc/x", "secret": {"name": "x"}}]}),
        ] {
            let (inputs, app) = hashes(extra);
            assert!(inputs != plain.0 && app != plain.1);
        }
        let (inputs, app) = hashes(json!({"resources": {"limits": {"memory": "1Gi"}}}));
        assert!(inputs != plain.0 && app == plain.1);
    }
}
