//! What owners of a shared chain do, and bring.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret, Service};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{World, eventually};

/// The documents of a bundle, by kind.
pub fn bundle(from: &World, name: &str) -> BTreeMap<String, Value> {
    let output = from.plugin(&["bundle", &from.network, "--name", name], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let secret = ["PrivKey", "PRIVATE KEY", "CERTIFICATE"];
    assert!(!secret.iter().any(|word| text.contains(word)), "{text}");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    documents.into_iter().map(|one| (one["kind"].as_str().unwrap().to_owned(), one)).collect()
}

/// Applies a document in a world's namespace, as its owner would.
pub fn apply_in(world: &World, document: &Value) {
    let args = ["apply", "-n", &world.namespace, "-f", "-"];
    let output = world.kubectl(&args, &document.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Changes a network's spec; gives what kubectl says if it is refused.
pub fn try_patch(world: &World, spec: &Value) -> Result<(), String> {
    let patch = json!({"spec": spec}).to_string();
    let (network, namespace) = (world.network.as_str(), world.namespace.as_str());
    let args = ["patch", "bsnnetwork", network, "-n", namespace, "--type=merge", "-p", &patch];
    let output = world.kubectl(&args, "");
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The same, which must not be refused.
pub fn patch(world: &World, spec: &Value) {
    try_patch(world, spec).unwrap_or_else(|error| panic!("{error}: {spec}"));
}

/// Waits until the chain has so many voters by a network's status, and so many of them are other owners'; each of those
/// is shown with this power, and as one that signs.
pub async fn await_voters(world: &World, all: u32, foreign: u32, power: u64) {
    let what = format!("{all} voters, {foreign} foreign, as {} shows them", world.network);
    eventually(&what, Duration::from_mins(2), async || {
        let status = world.get().await?.status.unwrap_or_default();
        let counted = (status.validators, status.foreign_validators);
        let shown = world.view()?.foreign;
        let well = shown.iter().all(|voter| voter.signs && voter.voting_power == power);
        let expected = (Some(all), Some(foreign).filter(|foreign| *foreign > 0));
        if counted == expected && shown.len() == foreign as usize && well {
            Ok(())
        } else {
            Err(format!("{counted:?}, {shown:?}"))
        }
    })
    .await;
}

/// Writes a Secret with these entries, over the one there is.
pub async fn put(world: &World, name: &str, entries: &[(&str, &str)]) {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let entries = entries.iter().map(|(key, text)| ((*key).to_owned(), bytes(text)));
    let mut secret = Secret { data: Some(entries.collect()), ..Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    let params = PatchParams::apply("story").force();
    world.api::<Secret>().patch(name, &params, &Patch::Apply(&secret)).await.unwrap();
}

/// Nothing of a node was made.
pub async fn assert_nothing_made(world: &World, node: &str) {
    let keys = world.api::<Secret>().get_opt(&format!("{node}-keys")).await.unwrap();
    assert!(keys.is_none(), "keys were made");
    let disk = world.api::<PersistentVolumeClaim>().get_opt(&format!("{node}-data")).await.unwrap();
    assert!(disk.is_none(), "a disk was made");
    assert!(world.api::<Service>().get_opt(node).await.unwrap().is_none(), "a Service was made");
}
