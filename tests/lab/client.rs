//! A user's program that never stops: ordinary transactions through every gateway in turn, while a story
//! changes the network. Afterwards each one that was acknowledged must be where it was said to be.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::rpc::{Client, Gateways, gateways, submit};
use crate::support::{World, is_ready};

/// Transactions under way at once. Each waits for its block, about a second: so two to five in a second.
const AT_ONCE: u64 = 4;
/// Between two transactions of the same hand.
const PAUSE: Duration = Duration::from_millis(200);
/// The engine answers within 10 s; a gateway whose engine hangs does not.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// How often the program looks which gateways there are.
const LOOK: Duration = Duration::from_secs(2);

/// Transactions that a node said are in a block, with its height, by key.
pub type Acknowledged = BTreeMap<String, u64>;

/// What the hands share.
struct Shared {
    ended: AtomicBool,
    next: AtomicU64,
    /// Knows the gateways that are there now.
    client: Mutex<Client>,
    acknowledged: Mutex<Acknowledged>,
    /// How often something went wrong, by what. That is no failure: nothing was promised.
    refused: Mutex<BTreeMap<String, u64>>,
}

/// The running program.
pub struct Traffic {
    shared: Arc<Shared>,
    began: Instant,
    tasks: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts it on a network that is ready.
    pub async fn start(world: &World) -> Self {
        let shared = Arc::new(Shared {
            ended: AtomicBool::new(false),
            next: AtomicU64::new(0),
            client: Mutex::new(Client::new(world).await),
            acknowledged: Mutex::default(),
            refused: Mutex::default(),
        });
        let mut tasks = vec![tokio::spawn(look_for_gateways(world.clone(), shared.clone()))];
        for _ in 0..AT_ONCE {
            tasks.push(tokio::spawn(send(shared.clone())));
        }
        Self { shared, began: Instant::now(), tasks }
    }

    /// How many are acknowledged by now.
    pub fn count(&self) -> usize {
        self.shared.acknowledged.lock().unwrap().len()
    }

    /// Ends it, when the last transaction has got its answer.
    pub async fn end(self) -> Acknowledged {
        self.shared.ended.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let acknowledged = std::mem::take(&mut *self.shared.acknowledged.lock().unwrap());
        let seconds = self.began.elapsed().as_secs();
        println!(
            "{} of {} transactions acknowledged in {seconds} s; not acknowledged: {:?}",
            acknowledged.len(),
            self.shared.next.load(Ordering::Relaxed),
            self.shared.refused.lock().unwrap(),
        );
        let enough = usize::try_from(seconds / 4).unwrap();
        assert!(
            acknowledged.len() > enough,
            "once in four seconds is too little to prove anything"
        );
        acknowledged
    }
}

/// Nodes come and go, and their pods change addresses.
async fn look_for_gateways(world: World, shared: Arc<Shared>) {
    let clusters: Vec<Api<Pod>> = world.clients().map(|client| world.api_in(client)).collect();
    let mut known = vec![Gateways::new(); clusters.len()];
    while !shared.ended.load(Ordering::Relaxed) {
        for (pods, known) in clusters.iter().zip(&mut known) {
            // Of a cluster that does not answer, those known before.
            if let Ok(list) = pods.list(&ListParams::default()).await {
                let ready: Vec<_> = list.items.into_iter().filter(is_ready).collect();
                *known = gateways(&world, &ready);
            }
        }
        shared.client.lock().unwrap().nodes = known.clone().into_iter().flatten().collect();
        tokio::time::sleep(LOOK).await;
    }
}

async fn send(shared: Arc<Shared>) {
    while !shared.ended.load(Ordering::Relaxed) {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let client = shared.client.lock().unwrap().clone();
        let count = u64::try_from(client.nodes.len()).unwrap();
        if let Some(turn) = number.checked_rem(count) {
            let node = client.nodes.keys().nth(usize::try_from(turn).unwrap()).unwrap();
            // What is not acknowledged is never sent again: it may be in a block all the same, and a node
            // that has forgotten it in a restart would take it twice. The next key goes to the next node.
            let key = format!("k{number}");
            match send_one(&client, node, &key).await {
                Ok(height) => {
                    shared.acknowledged.lock().unwrap().insert(key, height);
                }
                Err(why) => *shared.refused.lock().unwrap().entry(why).or_default() += 1,
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The height of the block that the transaction is in.
async fn send_one(client: &Client, node: &str, key: &str) -> Result<u64, String> {
    let call = submit(&format!("{key}=v"));
    let answer = tokio::time::timeout(ANSWERS_WITHIN, client.try_call(node, &call)).await;
    let answer = answer.map_err(|_| "no answer".to_owned())??;
    let result = &answer["result"];
    let taken = |code: &Value| code.as_u64() == Some(0);
    let height = result["height"].as_str().and_then(|height| height.parse().ok());
    match height {
        Some(height)
            if height > 0
                && taken(&result["check_tx"]["code"])
                && taken(&result["tx_result"]["code"]) =>
        {
            Ok(height)
        }
        _ => Err(reason(&answer)),
    }
}

/// What an answer says went wrong.
fn reason(answer: &Value) -> String {
    let said = [&answer["error"]["data"], &answer["error"], &answer["result"]["check_tx"]["log"]];
    let said = said.into_iter().find_map(Value::as_str);
    said.map_or_else(|| answer.to_string(), str::to_owned)
}
