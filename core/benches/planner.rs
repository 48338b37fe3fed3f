//! How long a decision takes, and what it allocates: `cargo xtask bench`.
#![allow(missing_docs, reason = "a benchmark is no library")]

use std::collections::BTreeMap;

use bsn_core::membership::model::{
    Desired, DesiredSet, Follower, Head, Hub, Inputs, Ledger, Liveness, Member, Node, Observed,
    Policy,
};
use bsn_core::membership::next_step;
use bsn_core::names::NodeName;
use bsn_core::quorum::Quorum;
use divan::AllocProfiler;
use divan::counter::ItemsCount;

#[global_allocator]
static ALLOCATIONS: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const LEDGER: &str = "main";
const NODES: [usize; 4] = [4, 20, 100, 300];

/// So many voters, one of them pending, in ten sets.
fn network(nodes: usize) -> (Desired, Observed) {
    let set = |n: usize| format!("set{}", n % 10);
    let name = |n: usize| NodeName::from_object(&format!("net-{}-{}", set(n), n / 10));
    let mut observed = Observed {
        nodes: BTreeMap::new(),
        ledgers: BTreeMap::new(),
        begun: None,
        hub: Hub::Current,
    };
    let mut ledger = Ledger {
        quorum: Quorum::MoreThanTwoThirds,
        weights: true,
        members: BTreeMap::new(),
        agreed: true,
        age_seconds: 1,
        head: Head::Producing,
        height: 100,
        pending: None,
        followers: BTreeMap::new(),
    };
    for n in 0..nodes {
        let node = Some(name(n));
        let member = Member { power: 1000, node, liveness: Liveness::Live, signed: 12 };
        ledger.members.insert(format!("{n:040X}"), member);
        ledger.followers.insert(name(n), Follower { lag: 0, steady_seconds: 99, connected: true });
        let node = Node {
            domain: format!("machine{n}"),
            inputs: if n == nodes - 1 { Inputs::Pending } else { Inputs::Current },
            ..Node::new(&set(n))
        };
        observed.nodes.insert(name(n), node);
    }
    observed.ledgers.insert(LEDGER.to_owned(), ledger);
    let sets = (0..nodes.min(10)).map(|n| DesiredSet {
        name: set(n),
        replicas: u32::try_from((nodes - n).div_ceil(10)).unwrap_or_default(),
        votes_on: [LEDGER.to_owned()].into(),
        power: 1000,
        retire: [].into(),
        cluster: String::new(),
    });
    (Desired { sets: sets.collect(), paused: false }, observed)
}

/// Nothing to do: what is asked most often.
#[divan::bench(args = NODES)]
fn converged(bencher: divan::Bencher<'_, '_>, nodes: usize) {
    let (desired, mut observed) = network(nodes);
    for node in observed.nodes.values_mut() {
        node.inputs = Inputs::Current;
    }
    let policy = Policy::default();
    bencher.counter(ItemsCount::new(nodes)).bench_local(|| next_step(&desired, &observed, &policy));
}

/// A restart that passes all its gates.
#[divan::bench(args = NODES)]
fn restart(bencher: divan::Bencher<'_, '_>, nodes: usize) {
    let (desired, observed) = network(nodes);
    let policy = Policy::default();
    bencher.counter(ItemsCount::new(nodes)).bench_local(|| next_step(&desired, &observed, &policy));
}

/// Ten voters more, and the gates of an addition.
#[divan::bench(args = NODES)]
fn addition(bencher: divan::Bencher<'_, '_>, nodes: usize) {
    let (mut desired, mut observed) = network(nodes);
    let gone: Vec<String> =
        observed.ledgers[LEDGER].members.keys().take(nodes.min(10) / 2).cloned().collect();
    for ledger in observed.ledgers.values_mut() {
        ledger.members.retain(|key, _| !gone.contains(key));
    }
    for set in &mut desired.sets {
        set.power = 2000;
    }
    let policy = Policy::default();
    bencher.counter(ItemsCount::new(nodes)).bench_local(|| next_step(&desired, &observed, &policy));
}
