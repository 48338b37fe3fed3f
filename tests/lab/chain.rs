//! A chain as its nodes tell it, read once from the first block to the last: what a story compares and
//! measures afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::client::Acknowledged;
use crate::rpc::Client;
use crate::sampler::Outage;
use crate::support::{World, eventually};

/// Blocks asked for at once.
const AT_ONCE: usize = 8;
/// A node that was just made has all blocks to read.
const IN_SYNC_WITHIN: Duration = Duration::from_mins(3);

/// Longest until the nodes tell the powers that the operator has just read back.
const VOTES_WITHIN: Duration = Duration::from_mins(1);

/// No block takes longer, in seconds, while the chain goes on: two rounds without their proposers take 11 s
/// (3 + 1 + 1 s, and 0.5 s more each in the next), and two processors serve three clusters.
const LONGEST_GAP: f64 = 20.0;

/// A block, as far as stories look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub height: u64,
    pub hash: String,
    /// When the block before it was agreed to: the voters' median (`spec/consensus/bft-time.md`).
    pub time: Timestamp,
    /// In which round the block before it was agreed to.
    pub previous_round: u64,
    /// Hash of the voters and their powers.
    pub voters_hash: String,
    pub transactions: Vec<String>,
}

/// One node's chain.
pub struct Chain {
    pub node: String,
    /// From height 1 on.
    pub blocks: Vec<Block>,
}

/// How long a block took.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub height: u64,
    pub seconds: f64,
    /// In which round it was agreed to.
    pub round: u64,
    /// When.
    pub end: Timestamp,
}

impl Chain {
    async fn read(client: &Client, node: &str, head: u64) -> Self {
        let blocks = stream::iter(1..=head).map(|height| read_block(client, node, height));
        Self { node: node.to_owned(), blocks: blocks.buffered(AT_ONCE).collect().await }
    }

    /// How long each block took that was agreed to after `since`.
    pub fn gaps(&self, since: Timestamp) -> Vec<Gap> {
        let pairs = self.blocks.windows(2).map(|pair| Gap {
            height: pair[0].height,
            seconds: pair[1].time.duration_since(pair[0].time).as_secs_f64(),
            round: pair[1].previous_round,
            end: pair[1].time,
        });
        pairs.filter(|gap| gap.end > since).collect()
    }

    /// Each acknowledged transaction is in the block it was said to be in, and none is in two.
    fn check(&self, acknowledged: &Acknowledged) {
        let mut places: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for block in &self.blocks {
            for transaction in &block.transactions {
                places.entry(transaction).or_default().push(block.height);
            }
        }
        let node = &self.node;
        for (transaction, heights) in &places {
            assert_eq!(heights.len(), 1, "{transaction} more than once on {node}: {heights:?}");
        }
        for (key, height) in acknowledged {
            let found = places.get(format!("{key}=v").as_str());
            assert_eq!(found, Some(&vec![*height]), "{key} acknowledged at {height}, on {node}");
        }
    }

    /// From one block to the next at most one voter comes, goes or gets another power.
    pub async fn check_voters(&self, client: &Client) {
        let mut before: Option<(&str, BTreeMap<String, u64>)> = None;
        let mut changes = 0;
        for block in &self.blocks {
            if before.as_ref().is_some_and(|(hash, _)| *hash == block.voters_hash) {
                continue;
            }
            let voters = client.voters(&self.node, Some(block.height)).await;
            if let Some((_, old)) = &before {
                let names: BTreeSet<&String> = old.keys().chain(voters.keys()).collect();
                let other: Vec<_> =
                    names.into_iter().filter(|name| old.get(*name) != voters.get(*name)).collect();
                assert_eq!(other.len(), 1, "at {}: {old:?} to {voters:?}", block.height);
                changes += 1;
            }
            before = Some((&block.voters_hash, voters));
        }
        println!("the voters changed {changes} times, one at a time");
    }
}

async fn read_block(client: &Client, node: &str, height: u64) -> Block {
    let answer = client.patient_result(node, "block", &json!({"height": height.to_string()})).await;
    let (block, header) = (&answer["block"], &answer["block"]["header"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let transactions = block["data"]["txs"].as_array().into_iter().flatten();
    let decode = |transaction: &Value| BASE64.decode(text(transaction)).unwrap();
    assert_eq!(text(&header["height"]), height.to_string(), "asked {node}");
    Block {
        height,
        hash: text(&answer["block_id"]["hash"]),
        time: text(&header["time"]).parse().unwrap(),
        previous_round: block["last_commit"]["round"].as_u64().unwrap_or_default(),
        voters_hash: text(&header["validators_hash"]),
        transactions: transactions
            .map(|transaction| String::from_utf8_lossy(&decode(transaction)).into_owned())
            .collect(),
    }
}

/// Reads the whole chain from every node in sync. All must tell the same one, which holds every acknowledged
/// transaction once, where it was said to be.
pub async fn verify(world: &World, acknowledged: &Acknowledged) -> Chain {
    let last = acknowledged.values().max().copied().unwrap_or_default();
    let head = world.await_height_above(last, IN_SYNC_WITHIN).await;
    // The highest that all of them have.
    let nodes = world.view().unwrap().nodes;
    let head = nodes.iter().filter_map(|node| node.height).min().unwrap_or(head).min(head);
    let client = Client::new(world).await;
    let mut first: Option<Chain> = None;
    for node in nodes.iter().filter(|node| node.in_sync) {
        let chain = Chain::read(&client, &node.name, head).await;
        chain.check(acknowledged);
        match &first {
            Some(first) => assert!(
                chain.blocks == first.blocks,
                "{} and {} tell different chains: {:?}",
                chain.node,
                first.node,
                chain.blocks.iter().zip(&first.blocks).find(|(one, other)| one != other)
            ),
            None => first = Some(chain),
        }
    }
    println!("{} nodes tell the same {head} blocks", nodes.len());
    first.expect("a node in sync")
}

/// Waits until the chain has so many voters, each with that power, and there are no other nodes.
pub async fn await_voters(world: &World, replicas: usize, power: u64) {
    let client = Client::new(world).await;
    let expected = vec![power; replicas];
    eventually(&format!("{replicas} voters with power {power}"), VOTES_WITHIN, async || {
        let view = world.view()?;
        let witness = view.nodes.iter().find(|node| node.in_sync && node.voting_power > Some(0));
        let witness = witness.ok_or_else(|| format!("{view:?}"))?;
        let voters = client.voters(&witness.name, None).await;
        let powers: Vec<u64> = voters.values().copied().collect();
        if powers == expected && view.nodes.len() == replicas {
            Ok(())
        } else {
            Err(format!("{voters:?}, {} nodes", view.nodes.len()))
        }
    })
    .await;
}

/// The middle one of the gaps, in seconds.
pub fn median(gaps: &[Gap]) -> f64 {
    quantile(gaps, 50)
}

/// That many per cent of the gaps are not longer, in seconds.
fn quantile(gaps: &[Gap], percent: usize) -> f64 {
    let mut seconds: Vec<f64> = gaps.iter().map(|gap| gap.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let last = seconds.len().checked_sub(1).expect("a gap");
    seconds[last * percent / 100]
}

/// Prints how evenly blocks came, in all and around each restart.
pub fn print_gaps(gaps: &[Gap], outages: &[Outage]) {
    println!(
        "{} blocks: median {:.2} s, 95 % within {:.2} s, {}",
        gaps.len(),
        median(gaps),
        quantile(gaps, 95),
        longest(gaps.iter()),
    );
    for outage in outages {
        let during = || gaps.iter().filter(|gap| outage.touches(gap));
        let late = during().filter(|gap| gap.round > 0).count();
        println!(
            "{outage}: {} blocks, {}, {late} in a later round",
            during().count(),
            longest(during())
        );
    }
}

/// The chain never stood still for long, whatever happened.
pub fn check_pace(gaps: &[Gap]) {
    let slow: Vec<&Gap> = gaps.iter().filter(|gap| gap.seconds > LONGEST_GAP).collect();
    assert!(slow.is_empty(), "blocks that took more than {LONGEST_GAP} s: {slow:?}");
}

fn longest<'a>(gaps: impl Iterator<Item = &'a Gap>) -> String {
    match gaps.max_by(|one, other| one.seconds.total_cmp(&other.seconds)) {
        Some(gap) => format!("longest {:.2} s (block {})", gap.seconds, gap.height),
        None => "none ended".to_owned(),
    }
}

/// Whose turn it was to propose a block first. Each voter's priority grows by its power, and the highest
/// proposes, of equal ones that with the lower address (`types/validator_set.go`, `IncrementProposerPriority`);
/// what the node tells is the state after the block before, as long as nobody came or went.
pub async fn first_proposer(client: &Client, node: &str, height: u64) -> String {
    let params = json!({"height": (height - 1).to_string(), "per_page": "100"});
    let answer = client.patient_result(node, "validators", &params).await;
    let number = |value: &Value| value.as_str().unwrap().parse::<i64>().unwrap();
    let voters = answer["validators"].as_array().unwrap().iter();
    let turns = voters.map(|voter| {
        let priority = number(&voter["proposer_priority"]) + number(&voter["voting_power"]);
        (std::cmp::Reverse(priority), voter["address"].as_str().unwrap().to_owned())
    });
    turns.min().unwrap().1
}
