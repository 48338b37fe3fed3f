//! The operator behind a proxy, killed at its own writes.
//!
//! The operator is the installed one, unmodified; only its way to the server is another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bsn_core::pki::{OPERATOR_VALIDITY, Role, client_names};
use bsn_operator::api::conditions::find;
use bsn_operator::build::secret::{TLS_CERT, TLS_KEY, entry};
use bsn_operator::labels::NETWORK_ID;
use bsn_operator::pki::{Authority, new_key, spki_sha256_of_key, tls};
use bsn_testkit::proxy::{
    Action, Call, GatewayTls, Mark, Outcome, Proxy, Rule, Side, before_api_server,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::ResourceExt;

use crate::support::{READY_WITHIN, World, eventually, hub, kill9};

/// At how many writes the operator is killed, spread over a bring-up: a round takes most of a minute.
/// `BSN_KILLS` says another number; one larger than twice that of the writes means every write, both before
/// and after it is done.
const KILLS: usize = 4;
const MINUTE: Duration = Duration::from_mins(1);
/// Name of the rule in force.
const STOP: &str = "stop";

const ONE_VALIDATOR: &str = r"
chainId: proxy-1
engine:
  cometbft:
    version: 0.38.25
    app:
      persistentKvstore: {}
nodeSets:
  - name: voter
    role: Validator
    replicas: 1
    storage: {size: 1Gi}
";

/// Everything seen of what may be made only once: prints of uid and content, by name.
type Seen = BTreeMap<String, BTreeSet<String>>;

/// An effect on the story's network. Not events, which nothing is built on and which come in any order.
pub fn effects(world: &World, name: &str, action: Action) -> Rule {
    let namespace = format!("/namespaces/{}/", world.namespace);
    Rule::new(name, action).writes().path(&namespace).not_path("/events")
}

async fn look(world: &World, seen: &mut Seen) {
    for (name, print) in world.fingerprint().await {
        seen.entry(name).or_default().insert(print);
    }
}

async fn is_ready(world: &World) -> Result<(), String> {
    let conditions = world.get().await?.status.unwrap_or_default().conditions;
    match find(&conditions, "Ready") {
        Some(ready) if ready.status == "True" => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Names without what differs from run to run: a genesis is named by its hash.
fn kinds(seen: &Seen) -> BTreeSet<String> {
    let kind = |name: &String| match name.split_once("-genesis-") {
        Some((network, _)) => format!("{network}-genesis"),
        None => name.clone(),
    };
    let kinds: Vec<_> = seen.keys().map(kind).collect();
    let different = kinds.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(different.len(), kinds.len(), "two of a kind: {seen:?}");
    different
}

/// At which writes to kill the operator, and on which side of each; `default` = how many times, unless
/// `BSN_KILLS` says another number. At every write, it may begin with another than the first: `BSN_KILLS_FROM`.
pub fn moments(writes: u64, default: usize) -> Vec<(u64, Side)> {
    let number = |variable: &str, default: u64| match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a number")),
        Err(_) => default,
    };
    let kills = number("BSN_KILLS", u64::try_from(default).unwrap());
    let sides = [Side::BeforeForward, Side::AfterAnswer];
    if kills >= 2 * writes {
        let first = number("BSN_KILLS_FROM", 1);
        return (first..=writes).flat_map(|k| sides.map(|side| (k, side))).collect();
    }
    let kills = kills.clamp(1, writes);
    let place = |number: u64| 1 + number * (writes - 1) / (kills - 1).max(1);
    (0..kills).map(place).zip(sides.into_iter().cycle()).collect()
}

/// Waits for the held call; none if the network is ready without it.
async fn await_held(world: &World, proxy: &Proxy) -> Option<Call> {
    let began = Instant::now();
    loop {
        if let Ok(call) = proxy.await_held(Duration::from_secs(1)).await {
            return Some(call);
        }
        let ready = is_ready(world).await;
        if ready.is_ok() {
            // The last status is still on its way, perhaps.
            return proxy.await_held(Duration::from_secs(5)).await.ok();
        }
        assert!(began.elapsed() < READY_WITHIN, "neither held nor ready: {ready:?}");
    }
}

/// Brings the network up from nothing and kills the operator at its k-th write; gives what was seen.
async fn bring_up_and_kill(proxy: &Proxy, k: u64, side: Side) -> Seen {
    let world = World::new("proxy-kills").await;
    let leader = world.leader().await;
    proxy.rule(effects(&world, STOP, Action::Hold(side)).only(k));
    world.apply(&world.yaml(ONE_VALIDATOR.trim_start()));
    let mut seen = Seen::new();
    if let Some(call) = await_held(&world, proxy).await {
        println!("killed {side:?} of write {k}: {} {}", call.method, call.path);
        kill9(&leader, "bsn-operator");
        proxy.cut();
        let ended = |seen: &Call| {
            seen.number == call.number && !matches!(seen.outcome, Outcome::Held | Outcome::UnderWay)
        };
        let call = proxy.await_call(Mark::default(), MINUTE, ended).await.unwrap();
        let done = side == Side::AfterAnswer;
        assert_eq!((call.forwarded, call.status.is_some()), (done, done), "{call:?}");
        look(&world, &mut seen).await;
    } else {
        let writes = proxy.fitted(STOP).unwrap();
        assert!(writes < k, "write {k} of {writes} came and was not held");
        println!("this bring-up had {writes} writes only, not {k}");
    }
    eventually("the network after the kill", READY_WITHIN, async || {
        look(&world, &mut seen).await;
        is_ready(&world).await
    })
    .await;
    look(&world, &mut seen).await;
    proxy.clear_rules();
    world.remove();
    // A new pod: the kubelet waits for minutes before it starts a program again that died several times.
    world.kubectl_ok(&["delete", "pod", &leader, "-n", "bsn-system", "--ignore-not-found"]);
    world.await_operator().await;
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_killed_at_every_write_of_a_bring_up_ends_in_the_same_state() {
    let world = World::new("proxy-kills").await;
    world.await_operator().await;
    let mut front = before_api_server(&world.lab, hub()).await.unwrap();
    front.divert_operator().await.unwrap();
    let proxy = front.proxy().clone();
    world.leader().await;

    // Undisturbed, to know how many writes there are and what they make.
    proxy.rule(effects(&world, STOP, Action::Pass));
    world.apply(&world.yaml(ONE_VALIDATOR.trim_start()));
    world.await_ready().await;
    let writes = proxy.fitted(STOP).unwrap();
    let mut seen = Seen::new();
    look(&world, &mut seen).await;
    let expected = kinds(&seen);
    proxy.clear_rules();
    world.remove();
    println!("a bring-up has {writes} writes and makes once: {expected:?}");
    assert!(writes >= 5, "the operator does not go through the proxy: {:?}", proxy.calls());
    assert_eq!(expected.len(), 3, "the node's keys, the CA and the genesis: {expected:?}");

    for (k, side) in moments(writes, KILLS) {
        let seen = bring_up_and_kill(&proxy, k, side).await;
        assert_eq!(kinds(&seen), expected, "killed {side:?} of write {k}");
        assert!(seen.values().all(|prints| prints.len() == 1), "made twice: {seen:?}");
    }
    front.restore_operator().await.unwrap();
    world.await_operator().await;
}

/// Both sides of a proxy before the gateway of `node`, made of what the cluster has.
pub async fn gateway_tls(world: &World, node: &str) -> GatewayTls {
    let keys = world.api::<Secret>().get(&format!("{node}-keys")).await.unwrap();
    let cert = world.api::<ConfigMap>().get(&format!("{node}-cert")).await.unwrap();
    let ca = world.api::<Secret>().get(&format!("{}-ca", world.network)).await.unwrap();
    let anchor = world.api::<ConfigMap>().get(&format!("{}-anchor", world.network)).await.unwrap();

    let (node_key, cert) = (entry(&keys, TLS_KEY).unwrap(), cert.data.unwrap());
    let authority =
        Authority::parse(entry(&ca, TLS_CERT).unwrap(), entry(&ca, TLS_KEY).unwrap()).unwrap();
    let names = client_names("bsn-operator", Role::Operator, &anchor.labels()[NETWORK_ID]);
    let own_key = new_key().unwrap();
    let now = Timestamp::now();
    let own = authority.issue(&names, &own_key, OPERATOR_VALIDITY, now, false).unwrap();
    let pinned = spki_sha256_of_key(node_key).unwrap();
    GatewayTls {
        server: tls::server_config(&cert[TLS_CERT], node_key, &cert["ca.crt"]).unwrap(),
        client: tls::client_config(&pinned, &own, &own_key).unwrap(),
    }
}
