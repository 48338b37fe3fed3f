//! Wrong input is refused at once, by the API server, with a message that says what to do.

use serde_json::{Value, json};

use crate::support::World;

fn good() -> Value {
    json!({
        "chainId": "admission-1",
        "paused": true,
        "engine": {"cometbft": {"version": "0.38.25", "app": {"persistentKvstore": {}}}},
        "nodeSets": [
            {"name": "voter", "role": "Validator", "replicas": 1},
            {"name": "reader", "role": "FullNode", "replicas": 0},
        ],
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut spec = good();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        parent => parent[key] = value,
    }
    spec
}

/// An application of the user's own, with this besides its image.
fn application(extra: &Value) -> Value {
    let mut container = json!({"image": "x", "halt": {"env": "STOP_AT"}});
    for (field, value) in extra.as_object().unwrap() {
        container[field] = value.clone();
    }
    with("/engine/cometbft/app", json!({"container": container}))
}

fn variable(name: &str) -> Value {
    application(&json!({"env": [{"name": name, "value": "1"}]}))
}

fn mounted(path: &str) -> Value {
    application(&json!({"mounts": [{"path": path, "secret": {"name": "tls"}}]}))
}

fn submit(template: &str) -> Value {
    json!({"submit": {"txTemplate": template}})
}

/// A network whose validators are changed by such transactions.
fn own_application(template: &str) -> Value {
    let mut spec = with("/engine/cometbft/app", json!({"container": {"image": "x"}}));
    spec["membership"] = submit(template);
    spec
}

/// What kubectl says to this object.
fn answer(world: &World, name: &str, spec: &Value, dry: bool) -> Result<(), String> {
    let object = json!({
        "apiVersion": "bsn-operator.io/v1alpha1",
        "kind": "BsnNetwork",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": spec,
    });
    let mut args = vec!["apply", "--validate=strict", "-f", "-"];
    if dry {
        args.push("--dry-run=server");
    }
    let output = world.kubectl(&args, &object.to_string());
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn assert_refused(world: &World, cases: &[(Value, &str)]) {
    for (spec, expected) in cases {
        match answer(world, "admission", spec, true) {
            Ok(()) => panic!("accepted, instead of {expected:?}: {spec}"),
            Err(message) => {
                assert!(message.contains(expected), "{message}\ninstead of {expected:?}");
            }
        }
    }
}

/// What no pod may have.
fn wrong_pods() -> Vec<(Value, &'static str)> {
    let pod = |extra: Value| with("/pod", extra);
    let of_set = |extra: Value| with("/nodeSets/0/pod", extra);
    let tolerates = |toleration: Value| pod(json!({"tolerations": [toleration]}));
    let from = |source: Value| application(&json!({"env": [{"name": "A", "valueFrom": source}]}));
    let entry = json!({"name": "n", "key": "k"});
    vec![
        (of_set(json!({"labels": {"bsn-operator.io/node": "x"}})), "this label is taken"),
        (pod(json!({"labels": {"app.kubernetes.io/name": "x"}})), "this label is taken"),
        (pod(json!({"annotations": {"bsn-operator.io/x": "y"}})), "use a prefix of your own"),
        (tolerates(json!({"operator": "Exists", "value": "x"})), "has no value"),
        (tolerates(json!({"value": "x"})), "has a key"),
        (tolerates(json!({"key": "a", "effect": "Never"})), "effect"),
        (
            tolerates(json!({"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5})),
            "tolerationSeconds is for effect: NoExecute",
        ),
        (pod(json!({"priorityClassName": "High"})), "priorityClassName"),
        (pod(json!({"imagePullSecrets": [{"name": "a"}, {"name": "a"}]})), "Duplicate"),
        (pod(json!({"terminationGracePeriodSeconds": 5})), "terminationGracePeriodSeconds"),
        (pod(json!({"spread": {"machines": "Sometimes"}})), "machines"),
        (pod(json!({"serviceAccountName": "x"})), "unknown field"),
        (variable("APP_DATA"), "this variable is the operator's"),
        (variable("BSN_IDENTITY"), "this variable is the operator's"),
        (variable("STOP_AT"), "halt.env names a variable that the operator sets"),
        (variable("1A"), "name"),
        (application(&json!({"env": [{"name": "A"}]})), "either value or valueFrom"),
        (from(json!({})), "name one source"),
        (from(json!({"secretKeyRef": entry, "configMapKeyRef": entry})), "name one source"),
        (mounted("/bsn/disk"), "mount it elsewhere"),
        (mounted("/tmp"), "mount it elsewhere"),
        (mounted("/etc/../bsn"), "mount it elsewhere"),
        (mounted("etc"), "path"),
        (application(&json!({"mounts": [{"path": "/etc/x"}]})), "name one source"),
    ]
}

/// What pods may have.
fn good_pods() -> Vec<Value> {
    let secret = json!({"secretKeyRef": {"name": "n", "key": "k", "optional": true}});
    vec![
        with(
            "/pod",
            json!({
                "labels": {"app.kubernetes.io/part-of": "ledger", "team": "a"},
                "annotations": {"note": "any text"},
                "nodeSelector": {"disk": "fast"},
                "tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b"}],
                "spread": {"machines": "Required", "zones": "Ignored"},
                "priorityClassName": "system-cluster-critical",
                "imagePullSecrets": [{"name": "a"}, {"name": "b"}],
                "terminationGracePeriodSeconds": 600,
            }),
        ),
        application(&json!({
            "env": [{"name": "A", "value": ""}, {"name": "B", "valueFrom": secret}],
            "mounts": [{"path": "/etc/tmp/.x", "configMap": {"name": "x"}}],
            "resources": {"limits": {"memory": "1Gi"}},
        })),
    ]
}

fn from() -> Value {
    json!({"from": {"configMapRef": {"name": "theirs"}, "sha256": "ab".repeat(32)}})
}

fn peer(id: &str, port: u32) -> Value {
    json!({"nodeId": id, "host": "a.example", "port": port})
}

fn peers() -> Value {
    json!([peer(&"cd".repeat(20), 7000), peer(&"ef".repeat(20), 7000)])
}

/// A network that joins a chain, with no voter of its own yet.
fn joining(genesis: &Value, peers: &Value) -> Value {
    let mut spec = with("/nodeSets/0/replicas", json!(0));
    spec["genesis"] = genesis.clone();
    spec["externalPeers"] = peers.clone();
    spec
}

fn wrong_access() -> Vec<(Value, &'static str)> {
    vec![
        (with("/networkPolicy", json!({"gatewayFrom": [{}]})), "give it a podSelector"),
        (
            with("/networkPolicy", json!({"outsideAddresses": ["192.168.7.1"]})),
            "outsideAddresses holds ranges of addresses",
        ),
        (
            with("/nodeSets/0/keys", json!([{"node": "admission-w-0", "secretName": "k"}])),
            "keys take names of this set's nodes",
        ),
    ]
}

fn wrong_joins() -> Vec<(Value, &'static str)> {
    let id = "cd".repeat(20);
    let upper = json!({"from": {"configMapRef": {"name": "x"}, "sha256": "AB"}});
    let nameless = json!({"from": {"sha256": "ab".repeat(32)}});
    let listed = |peers: Value| with("/externalPeers", peers);
    vec![
        (with("/genesis", json!({})), "name one origin of the chain"),
        (joining(&from(), &json!([])), "needs externalPeers"),
        (joining(&json!({"create": {}}), &peers()), "a chain needs a validator that votes"),
        (joining(&nameless, &peers()), "configMapRef"),
        (joining(&upper, &peers()), "sha256"),
        (listed(json!([peer("ab", 1)])), "nodeId"),
        (listed(json!([peer(&id.to_uppercase(), 1)])), "nodeId"),
        (listed(json!([peer(&id, 1), peer(&id, 2)])), "Duplicate"),
        (listed(json!([peer(&id, 0)])), "port"),
        (listed(json!([{"nodeId": id, "host": "a,b"}])), "host"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_refused_with_an_instruction() {
    let world = World::new("admission").await;
    let cometbft = "/engine/cometbft";
    assert_refused(
        &world,
        &[
            (with("/chainId", json!("")), "chainId"),
            (with("/engine", json!({})), "name one engine"),
            (with(&format!("{cometbft}/version"), json!("0.37.1")), "version"),
            (with(&format!("{cometbft}/app"), json!({})), "name one application"),
            (
                with(
                    &format!("{cometbft}/app"),
                    json!({"persistentKvstore": {}, "container": {"image": "x"}}),
                ),
                "name one application",
            ),
            (with("/nodeSets", json!([])), "nodeSets"),
            (with("/deletionPolicy", json!({"keys": "Delete"})), "needs data: Delete"),
            (with("/deletionPolicy", json!({"data": "Keep"})), "deletionPolicy.data"),
            (
                with("/nodeSets", json!([{"name": "r", "role": "FullNode", "replicas": 1}])),
                "add a node set with role: Validator",
            ),
            (with("/nodeSets/0/replicas", json!(0)), "a chain needs a validator that votes"),
            (with("/nodeSets/0/voting", json!(false)), "a chain needs a validator that votes"),
            (with("/nodeSets/1/votingPower", json!(5)), "votingPower is for validators"),
            (with("/nodeSets/1/voting", json!(true)), "voting is for validators"),
            (
                with("/nodeSets/0/retire", json!(["admission-reader-0"])),
                "names of this set's nodes",
            ),
            (with("/nodeSets/0/hold", json!(["voter0"])), "names of this set's nodes"),
            (
                with("/nodeSets/0/retire", json!(["admission-voter-1", "admission-voter-1"])),
                "Duplicate",
            ),
            (with("/nodeSets/0/name", json!("Voter")), "name"),
            (with("/nodeSets/0/replica", json!(3)), "unknown field"),
            (
                with("/pki", json!({"leaf": {"validity": "1h", "renewBefore": "2h"}})),
                "renewBefore must be shorter",
            ),
            (
                with("/pki", json!({"leaf": {"validity": "1s", "renewBefore": "0s"}})),
                "validity must be between",
            ),
            (with("/membership", json!({"authority": "Nobody"})), "authority"),
            (with("/membership", json!({"catchUp": {"maxLagBlocks": 0}})), "maxLagBlocks"),
            (
                with("/membership", submit("{address} {power} {serial}")),
                "membership.submit is for an application of your own",
            ),
            (
                with("/upgrade", json!({"strategy": "AtHeight"})),
                "AtHeight needs app.container.halt",
            ),
            (with("/upgrade", json!({"strategy": "Rolling", "restartTime": "0s"})), "restartTime"),
            (with("/disruption", json!({"reserve": 31})), "reserve"),
            (with("/repair", json!({"mode": "Never"})), "mode"),
            (with("/repair", json!({"cureAfter": "0s"})), "cureAfter must be at least 1s"),
            (with("/repair", json!({"gracePeriod": "1m"})), "make gracePeriod longer"),
            (
                own_application("{power} {serial}"),
                "txTemplate must hold {power}, {serial} and one of",
            ),
            (
                own_application("{address} {power}"),
                "txTemplate must hold {power}, {serial} and one of",
            ),
        ],
    );
    assert_refused(&world, &wrong_joins());
    assert_refused(&world, &wrong_access());
    answer(&world, "admission", &joining(&from(), &peers()), true).unwrap();
    assert_refused(&world, &wrong_pods());
    for spec in good_pods() {
        answer(&world, "admission", &spec, true).unwrap_or_else(|error| panic!("{error}: {spec}"));
    }
    let template = r#"{"key":"{pubKeyBase64}","power":{power},"serial":{serial}}"#;
    answer(&world, "admission", &own_application(template), true).unwrap();
    let long = "n".repeat(31);
    let message = answer(&world, &long, &good(), true).unwrap_err();
    assert!(message.contains("use a name of at most 30 characters"), "{message}");

    // What a running chain depends on can't be changed. It is paused: nothing is made of it.
    answer(&world, "admission", &good(), false).unwrap();
    assert_refused(
        &world,
        &[
            (with("/chainId", json!("admission-2")), "chainId is immutable"),
            (
                with(&format!("{cometbft}/app"), json!({"container": {"image": "x"}})),
                "a chain keeps its kind of application",
            ),
            (with(&format!("{cometbft}/timeoutCommit"), json!("fast")), "timeoutCommit"),
            (with("/nodeSets/1/role", json!("Validator")), "role of a node set is immutable"),
            (
                joining(&from(), &peers()),
                "whether a network forms a chain or joins one is immutable",
            ),
            (
                with("/nodeSets/0/storage", json!({"size": "19Gi"})),
                "a disk can grow and never shrink",
            ),
            (
                with("/nodeSets/0/storage", json!({"size": "20G"})),
                "a disk can grow and never shrink",
            ),
            (
                with("/nodeSets/0/storage", json!({"storageClassName": "fast"})),
                "the storage class of a node set is immutable",
            ),
        ],
    );
    // Its members can: full nodes and validators, their powers, whole sets. So can the care that is taken.
    let second = json!({"name": "later", "role": "Validator", "replicas": 2, "voting": false});
    for spec in [
        with("/nodeSets/1/replicas", json!(3)),
        with("/nodeSets/0/replicas", json!(4)),
        with("/nodeSets/0/votingPower", json!(5)),
        with("/nodeSets/0/retire", json!(["admission-voter-0"])),
        with("/nodeSets/0/hold", json!(["admission-voter-0"])),
        with("/nodeSets/0/name", json!("other")),
        with("/nodeSets/1", second),
        with("/externalPeers", peers()),
        with("/genesis", json!({"create": {}})),
        with("/nodeSets/0/storage", json!({"size": "1Ti"})),
        with("/nodeSets/0/storage", json!({"size": "20480Mi"})),
        with("/nodeSets/0/pod", json!({"labels": {"team": "ledger"}})),
        with("/membership", json!({"authority": "External"})),
        with("/disruption", json!({"reserve": 1, "allowDowntime": true})),
        with("/repair", json!({"mode": "Automatic", "gracePeriod": "1h", "cureAfter": "1m"})),
    ] {
        answer(&world, "admission", &spec, true).unwrap_or_else(|error| panic!("{error}: {spec}"));
    }
    assert!(world.pods().await.is_empty() && world.fingerprint().await.is_empty());
    world.remove();
}
