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
    let dry = if dry { "--dry-run=server" } else { "--dry-run=none" };
    ask(world, name, spec, &["--validate=strict", dry])
}

/// The same with these flags.
fn ask(world: &World, name: &str, spec: &Value, flags: &[&str]) -> Result<(), String> {
    let object = json!({
        "apiVersion": "bsn-operator.io/v1alpha1",
        "kind": "BsnNetwork",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": spec,
    });
    let args = [&["apply", "-f", "-"][..], flags].concat();
    let output = world.kubectl(&args, &object.to_string());
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn assert_refused(world: &World, cases: &[(Value, &str)]) {
    assert_refused_of(world, "admission", cases);
}

fn assert_refused_of(world: &World, network: &str, cases: &[(Value, &str)]) {
    for (spec, expected) in cases {
        match answer(world, network, spec, true) {
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
    let block = json!({"cidr": "192.168.7.0/24"});
    let secret = |name: &str| json!({"node": "admission-voter-0", "secretName": name});
    let keys = |keys: Value| with("/nodeSets/0/keys", keys);
    vec![
        (with("/networkPolicy", json!({"gatewayFrom": [{}]})), "give it a podSelector"),
        (
            with("/networkPolicy", json!({"gatewayFrom": [{"ipBlock": block, "podSelector": {}}]})),
            "or else an ipBlock alone",
        ),
        (
            with("/networkPolicy", json!({"outsideAddresses": ["192.168.7.1"]})),
            "outsideAddresses holds ranges of addresses",
        ),
        (
            keys(json!([{"node": "admission-w-0", "secretName": "k"}])),
            "keys take names of this set's nodes",
        ),
        (keys(json!([secret("a"), secret("b")])), "Duplicate"),
        (keys(json!([secret("Upper")])), "secretName: Invalid value"),
    ]
}

fn wrong_joins() -> Vec<(Value, &'static str)> {
    let id = "cd".repeat(20);
    let upper = json!({"from": {"configMapRef": {"name": "x"}, "sha256": "AB"}});
    let nameless = json!({"from": {"sha256": "ab".repeat(32)}});
    let listed = |peers: Value| with("/externalPeers", peers);
    let mut both = from();
    both["create"] = json!({});
    vec![
        (with("/genesis", json!({})), "name one origin of the chain"),
        (joining(&from(), &json!([])), "needs externalPeers"),
        (joining(&both, &peers()), "name one origin of the chain"),
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

fn wrong_descriptions() -> Vec<(Value, &'static str)> {
    let app = |app: Value| with("/engine/cometbft/app", app);
    vec![
        (with("/chainId", json!("")), "chainId"),
        (with("/engine", json!({})), "name one engine"),
        (with("/engine/cometbft/version", json!("0.37.1")), "version"),
        (app(json!({})), "name one application"),
        (
            app(json!({"persistentKvstore": {}, "container": {"image": "x"}})),
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
        (with("/nodeSets/0/retire", json!(["admission-reader-0"])), "names of this set's nodes"),
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
        (with("/upgrade", json!({"strategy": "AtHeight"})), "AtHeight needs app.container.halt"),
        (with("/upgrade", json!({"strategy": "Rolling", "restartTime": "0s"})), "restartTime"),
        (with("/disruption", json!({"reserve": 31})), "reserve"),
        (with("/repair", json!({"mode": "Never"})), "mode"),
        (with("/repair", json!({"cureAfter": "0s"})), "cureAfter must be at least 1s"),
        (with("/repair", json!({"gracePeriod": "1m"})), "make gracePeriod longer"),
        (own_application("{power} {serial}"), "txTemplate must hold {power}, {serial} and one of"),
        (own_application("{address} {power}"), "txTemplate must hold {power}, {serial} and one of"),
    ]
}

/// What is too long, too many, too large, or none of the words there are.
fn out_of_bounds() -> Vec<(Value, &'static str)> {
    let set = |field: &str, value: Value| with(&format!("/nodeSets/0/{field}"), value);
    let sets: Vec<Value> = (0..21)
        .map(|number| json!({"name": format!("v{number}"), "role": "Validator", "replicas": 1}))
        .collect();
    let names: Vec<String> = (0..101).map(|index| format!("admission-voter-{index}")).collect();
    let template = format!("{{address}} {{power}} {{serial}}{}", "x".repeat(4096));
    let leaf = json!({"leaf": {"validity": "43801h", "renewBefore": "1h"}});
    vec![
        (with("/chainId", json!("c".repeat(51))), "spec.chainId: Too long"),
        (with("/chainId", json!("-c")), "spec.chainId: Invalid value"),
        (with("/nodeSets", json!(sets)), "spec.nodeSets: Too many"),
        (set("name", json!("v".repeat(16))), "spec.nodeSets[0].name: Too long"),
        (with("/nodeSets/1/name", json!("voter")), "spec.nodeSets[1]: Duplicate value"),
        (set("role", json!("Observer")), "spec.nodeSets[0].role: Unsupported value"),
        (set("replicas", json!(101)), "spec.nodeSets[0].replicas: Invalid value"),
        (set("votingPower", json!(0)), "spec.nodeSets[0].votingPower: Invalid value"),
        (set("votingPower", json!(1_000_000_001)), "spec.nodeSets[0].votingPower: Invalid value"),
        (set("retire", json!(names)), "spec.nodeSets[0].retire: Too many"),
        (set("hold", json!(names)), "spec.nodeSets[0].hold: Too many"),
        (set("storage", json!({"size": "20 GB"})), "storage.size: Invalid value"),
        (own_application(&template), "membership.submit.txTemplate: Too long"),
        (with("/membership", json!({"catchUp": {"maxLagBlocks": 1001}})), "maxLagBlocks"),
        (with("/membership", json!({"catchUp": {"stableSeconds": 3601}})), "stableSeconds"),
        (with("/pki", leaf), "validity must be between 2m and 43800h"),
        (with("/repair", json!({"gracePeriod": "721h"})), "gracePeriod at most 720h"),
        (with("/repair", json!({"gracePeriod": "30d"})), "repair.gracePeriod: Invalid value"),
        (
            with("/upgrade", json!({"strategy": "Rolling", "restartTime": "25h"})),
            "restartTime must be between 1s and 24h",
        ),
        (application(&json!({"halt": {"env": "APP_DATA"}})), "this name is taken"),
    ]
}

/// Other engines, and other versions than the line that is supported.
fn wrong_engines() -> Vec<(Value, &'static str)> {
    let unknown = r#"unknown field "spec.engine.fabric""#;
    let version = |version: &str| with("/engine/cometbft/version", json!(version));
    ["0.38.14", "0.38.4", "0.38.1000", "0.39.0", "v0.38.25", "0.38.25-dev"]
        .map(|given| (version(given), "spec.engine.cometbft.version: Invalid value"))
        .into_iter()
        .chain([
            (with("/engine", json!({"fabric": {}})), unknown),
            (with("/engine/fabric", json!({})), unknown),
        ])
        .collect()
}

/// A set whose nodes are reached like this from other clusters.
fn reached(exposure: &str, addresses: Value) -> Value {
    let mut spec = with("/nodeSets/0/externalAddresses", addresses);
    spec["nodeSets"][0]["exposure"] = json!(exposure);
    spec
}

fn addresses(node: &str) -> Value {
    json!([{"node": node, "host": "a.example", "p2pPort": 30656}])
}

/// What cannot be said of where nodes are, and of how they are reached there.
fn wrong_places() -> Vec<(Value, &'static str)> {
    let node = "admission-voter-0";
    let unreached = with("/nodeSets/0/externalAddresses", addresses(node));
    let cluster = |name: &str| with("/nodeSets/0/cluster", json!(name));
    let mut shut_out = cluster("hangzhou");
    shut_out["networkPolicy"] = json!({"outsideAddresses": []});
    vec![
        (unreached, "externalAddresses are for exposure: External"),
        (reached("NodePort", addresses(node)), "externalAddresses are for exposure: External"),
        (
            reached("External", addresses("admission-reader-0")),
            "externalAddresses take names of this set's nodes",
        ),
        (
            reached("External", json!([{"node": node, "host": "a"}, {"node": node, "host": "b"}])),
            "Duplicate",
        ),
        (
            reached("External", json!([{"node": node, "host": "a", "gatewayPort": 0}])),
            "gatewayPort: Invalid value",
        ),
        (with("/nodeSets/0/exposure", json!("Ingress")), "exposure: Unsupported value"),
        (cluster("hub"), "leave cluster out for the cluster the operator runs in"),
        (cluster("Hangzhou"), "spec.nodeSets[0].cluster: Invalid value"),
        (shut_out, "nodes in other clusters come from outside addresses"),
    ]
}

/// A network with such an application of the user's own, and readers in another cluster.
fn elsewhere(container: &Value, upgrade: Option<&str>) -> Value {
    let mut spec = with("/engine/cometbft/app", json!({"container": container}));
    spec["nodeSets"][1]["cluster"] = json!("hangzhou");
    if let Some(strategy) = upgrade {
        spec["upgrade"] = json!({"strategy": strategy});
    }
    spec
}

/// An application changes only in a way that is said, and a node set never moves.
fn assert_kept(world: &World) {
    let network = "admission-own";
    let plain = json!({"image": "x"});
    answer(world, network, &elsewhere(&plain, None), false).unwrap();
    let halts = |image: &str| json!({"image": image, "halt": {"env": "STOP_AT"}});
    let with_more = |field: &str, value: Value| {
        let mut container = plain.clone();
        container[field] = value;
        elsewhere(&container, None)
    };
    let (mut moved, mut back) = (elsewhere(&plain, None), elsewhere(&plain, None));
    moved["nodeSets"][1]["cluster"] = json!("nanjing");
    back["nodeSets"][1].as_object_mut().unwrap().remove("cluster");
    let unsaid = "say how the application's new version reaches the nodes";
    let mount = json!([{"path": "/etc/x", "secret": {"name": "x"}}]);
    assert_refused_of(
        world,
        network,
        &[
            (elsewhere(&json!({"image": "y"}), None), unsaid),
            (with_more("command", json!(["x"])), unsaid),
            (with_more("args", json!(["x"])), unsaid),
            (with_more("env", json!([{"name": "A", "value": "1"}])), unsaid),
            (with_more("mounts", mount), unsaid),
            (
                elsewhere(&halts("y"), Some("AtHeight")),
                "add that first, and change the image afterwards",
            ),
            (moved, "the cluster of a node set is immutable"),
            (back, "the cluster of a node set is immutable"),
        ],
    );
    for spec in [
        elsewhere(&json!({"image": "y"}), Some("Rolling")),
        elsewhere(&halts("x"), None),
        with_more("resources", json!({"limits": {"memory": "1Gi"}})),
    ] {
        answer(world, network, &spec, true).unwrap_or_else(|error| panic!("{error}: {spec}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_refused_with_an_instruction() {
    let world = World::new("admission").await;
    for cases in [
        wrong_descriptions(),
        out_of_bounds(),
        wrong_engines(),
        wrong_places(),
        wrong_joins(),
        wrong_access(),
        wrong_pods(),
    ] {
        assert_refused(&world, &cases);
    }
    // Who does not ask for unknown fields has them taken away unheard, and is told that no engine is left.
    let other = with("/engine", json!({"fabric": {}}));
    let unasked = ["--validate=ignore", "--dry-run=server"];
    let message = ask(&world, "admission", &other, &unasked).unwrap_err();
    assert!(message.contains("name one engine"), "{message}");
    answer(&world, "admission", &joining(&from(), &peers()), true).unwrap();
    for spec in good_pods().into_iter().chain([reached("External", addresses("admission-voter-0"))])
    {
        answer(&world, "admission", &spec, true).unwrap_or_else(|error| panic!("{error}: {spec}"));
    }
    let template = r#"{"key":"{pubKeyBase64}","power":{power},"serial":{serial}}"#;
    answer(&world, "admission", &own_application(template), true).unwrap();
    for name in ["1st", "dot.ted", &"n".repeat(31)] {
        let message = answer(&world, name, &good(), true).unwrap_err();
        assert!(message.contains("use a name of at most 30 characters"), "{message}");
    }

    // What a running chain depends on can't be changed. It is paused: nothing is made of it.
    answer(&world, "admission", &good(), false).unwrap();
    assert_refused(
        &world,
        &[
            (with("/chainId", json!("admission-2")), "chainId is immutable"),
            (
                with("/engine/cometbft/app", json!({"container": {"image": "x"}})),
                "a chain keeps its kind of application",
            ),
            (with("/engine/cometbft/timeoutCommit", json!("fast")), "timeoutCommit"),
            (with("/nodeSets/1/role", json!("Validator")), "role of a node set is immutable"),
            (
                with("/nodeSets/1/cluster", json!("hangzhou")),
                "the cluster of a node set is immutable",
            ),
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
    assert_kept(&world);
    assert!(world.pods().await.is_empty() && world.fingerprint().await.is_empty());
    world.remove();
}
