use super::*;
use crate::evidence::{EngineAnswer, PROTOCOL};

const CHAIN: &str = "c1";

/// A network of `n` voters whose chain is played forward second by second, a block in each.
struct Play {
    watch: Watch,
    nodes: Vec<Known>,
    voters: usize,
    /// Nodes that answer and sign.
    up: BTreeSet<usize>,
    height: u64,
    last_signed: BTreeMap<String, u64>,
    /// Nodes that say they read old blocks.
    catching_up: BTreeSet<usize>,
    peers: u64,
    /// No block is made, whoever is up.
    stands: bool,
    now: u64,
}

fn name(n: usize) -> NodeName {
    NodeName::from_object(&format!("net-a-{n}"))
}

impl Play {
    fn new(n: usize) -> Self {
        let nodes = (0..n).map(|n| Known {
            name: name(n),
            address: format!("A{n}"),
            node_id: format!("p{n}"),
            engine: Engine::Ready,
            pod: Some(format!("pod-{n}")),
            power: 1000,
        });
        let mut play = Self {
            watch: Watch::default(),
            nodes: nodes.collect(),
            voters: n,
            up: (0..n).collect(),
            height: 100,
            last_signed: BTreeMap::new(),
            catching_up: BTreeSet::new(),
            peers: 3,
            stands: false,
            now: 0,
        };
        play.run(20);
        play
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1;
            if !self.stands && self.up.len() * 3 > self.voters * 2 {
                self.height += 1;
                for n in &self.up {
                    self.last_signed.insert(format!("A{n}"), self.height - 1);
                }
            }
            let answers = self.up.iter().map(|n| (name(*n), self.evidence(*n))).collect();
            let now = Duration::from_secs(self.now);
            self.watch.record(CHAIN, &self.nodes, &answers, &Policy::default(), now);
        }
    }

    fn evidence(&self, n: usize) -> NodeEvidence {
        let powers = (0..self.voters).map(|n| (format!("A{n}"), 1000));
        let peers = self.up.iter().filter(|other| **other != n);
        let report = EngineReport {
            chain_id: CHAIN.into(),
            version: "v".into(),
            node_id: format!("p{n}"),
            address: format!("A{n}"),
            height: self.height,
            block_time: String::new(),
            applied_height: self.height,
            consensus_height: self.height + 1,
            catching_up: self.catching_up.contains(&n),
            peers: self.peers,
            voting_power: 1000,
            signed: Some(self.last_signed.keys().map(|key| (key.clone(), 12)).collect()),
            // Before the first block there is none.
            ledger: self.height.checked_sub(1).map(|final_height| LedgerReport {
                powers: powers.collect(),
                final_height,
                last_signed: self.last_signed.clone(),
                pool_changes: Vec::new(),
            }),
            peer_ids: peers.map(|n| format!("p{n}")).collect(),
        };
        NodeEvidence {
            protocol: PROTOCOL,
            identity_id: String::new(),
            engine: EngineAnswer::Report(Box::new(report)),
            guard: None,
            template_hash: None,
            certificate_not_after: String::new(),
            agents: None,
        }
    }

    fn down(&mut self, n: usize) {
        self.up.remove(&n);
        self.nodes[n].engine = Engine::NotReady;
    }

    fn up(&mut self, n: usize) {
        self.up.insert(n);
        self.nodes[n].engine = Engine::Ready;
        self.nodes[n].pod = Some(format!("pod-{n}-again"));
    }

    fn sight(&self) -> Sight {
        let now = Duration::from_secs(self.now);
        self.watch.sight(CHAIN, &self.nodes, None, now)
    }

    fn liveness(&self) -> Vec<Liveness> {
        self.sight().ledger.members.values().map(|member| member.liveness).collect()
    }
}

#[test]
fn four_that_sign_are_live_and_follow() {
    let play = Play::new(4);
    let sight = play.sight();
    assert_eq!(play.liveness(), [Liveness::Live; 4]);
    assert!(sight.ledger.agreed && sight.ledger.head == Head::Producing);
    assert!(sight.ledger.followers.values().all(|f| f.lag == 0 && f.connected));
    assert!(sight.nodes.values().all(|node| node.back && node.down_seconds == 0));
}

#[test]
fn a_voter_is_down_only_if_its_api_server_says_so_and_the_chain_does_not_show_it() {
    let mut play = Play::new(4);
    play.nodes[1].engine = Engine::NotReady;
    play.run(1);
    assert_eq!(play.liveness()[1], Liveness::Unknown, "it signs and is not ready");
    play.down(1);
    play.run(15);
    assert_eq!(play.liveness()[1], Liveness::ProvedDown);
    play.nodes[1].engine = Engine::Ready;
    assert_eq!(play.liveness()[1], Liveness::Unknown, "it is ready and does not sign");
    play.nodes[1].engine = Engine::Unknown;
    assert_eq!(play.liveness()[1], Liveness::Unknown, "its API server is silent, and so is it");
    assert!(play.sight().nodes[&name(1)].down_seconds >= 10);
}

#[test]
fn one_that_restarted_is_back_when_it_signs_again() {
    let mut play = Play::new(4);
    play.down(2);
    play.run(12);
    assert!(!play.sight().nodes[&name(2)].back);
    play.up(2);
    play.run(1);
    assert!(!play.sight().nodes[&name(2)].back, "it answers; the others have not seen it sign");
    play.run(2);
    assert!(play.sight().nodes[&name(2)].back);
    assert_eq!(play.sight().nodes[&name(2)].down_seconds, 0);
}

#[test]
fn on_a_chain_that_stands_still_one_is_back_when_the_others_have_had_it_as_a_peer_for_a_while() {
    let mut play = Play::new(7);
    for n in 0..4 {
        play.down(n);
    }
    play.run(25);
    let sight = play.sight();
    assert_eq!(sight.ledger.head, Head::Standing);
    assert_eq!(play.liveness()[..4], [Liveness::ProvedDown; 4]);
    assert_eq!(play.liveness()[4..], [Liveness::Live; 3]);
    play.up(0);
    play.run(10);
    assert_eq!(play.liveness()[0], Liveness::Unknown);
    play.run(7);
    assert_eq!(play.liveness()[0], Liveness::Live);
    assert!(play.sight().nodes[&name(0)].back);
}

#[test]
fn if_no_engine_answers_the_voters_last_known_are_down_as_far_as_their_api_servers_say_so() {
    let mut play = Play::new(2);
    play.down(0);
    play.down(1);
    play.nodes[1].engine = Engine::Unknown;
    play.run(30);
    let sight = play.sight();
    assert!(sight.ledger.agreed && sight.ledger.head == Head::Standing);
    assert_eq!(play.liveness(), [Liveness::ProvedDown, Liveness::Unknown]);
    // The same for an operator that has just started.
    let mut fresh = Play { watch: Watch::default(), ..play };
    fresh.run(30);
    assert_eq!(fresh.liveness(), [Liveness::ProvedDown, Liveness::Unknown]);
}

/// Four were begun with a description that cannot run; one was cured, and runs alone. There is no block that it could
/// tell of, and the others' cure must not wait for one.
#[test]
fn before_the_first_block_one_that_runs_alone_hides_nobody_who_does_not() {
    let mut play = Play::new(4);
    play.watch = Watch::default();
    (play.height, play.stands) = (0, true);
    for n in 0..4 {
        play.down(n);
    }
    play.run(30);
    play.up(0);
    play.run(30);
    let sight = play.sight();
    assert!(sight.ledger.agreed && sight.ledger.head == Head::Standing);
    assert_eq!(play.liveness()[1..], [Liveness::ProvedDown; 3]);
    assert_eq!(sight.ledger.members.len(), 4);
}

#[test]
fn one_witness_is_not_enough_where_two_run_and_a_different_word_is_none() {
    let mut play = Play::new(4);
    // Three sign, one answers the operator.
    let answers = [(name(0), play.evidence(0))].into();
    for _ in 0..12 {
        play.now += 1;
        play.height += 1;
        let now = Duration::from_secs(play.now);
        let mut evidence: BTreeMap<NodeName, NodeEvidence> = BTreeMap::clone(&answers);
        evidence.insert(name(0), play.evidence(0));
        play.watch.record(CHAIN, &play.nodes, &evidence, &Policy::default(), now);
    }
    assert!(!play.sight().ledger.agreed);

    let mut play = Play::new(4);
    let mut evidence: BTreeMap<NodeName, NodeEvidence> =
        (0..4).map(|n| (name(n), play.evidence(n))).collect();
    if let EngineAnswer::Report(report) = &mut evidence.get_mut(&name(3)).unwrap().engine {
        report.ledger.as_mut().unwrap().powers.insert("A9".into(), 1);
    }
    play.now += 1;
    let now = Duration::from_secs(play.now);
    play.watch.record(CHAIN, &play.nodes, &evidence, &Policy::default(), now);
    assert!(!play.sight().ledger.agreed);
}

#[test]
fn signatures_on_a_chain_that_has_just_stopped_say_nothing_about_now() {
    let mut play = Play::new(4);
    play.down(0);
    play.down(1);
    play.run(7);
    assert_eq!(play.sight().ledger.head, Head::Producing, "not late enough to be called standing");
    assert_eq!(play.liveness()[2..], [Liveness::Unknown; 2]);
}

#[test]
fn a_single_voter_bears_witness_for_itself() {
    let play = Play::new(1);
    assert_eq!(play.liveness(), [Liveness::Live]);
    assert!(play.sight().ledger.agreed);
}

#[test]
fn a_foreign_voter_is_live_by_its_signatures_or_unknown() {
    let mut play = Play::new(4);
    let foreign = play.nodes.remove(3);
    play.run(1);
    let member = &play.sight().ledger.members[&foreign.address];
    assert_eq!((member.node.as_ref(), member.liveness), (None, Liveness::Live));
    play.up.remove(&3);
    play.run(5);
    assert_eq!(play.sight().ledger.members[&foreign.address].liveness, Liveness::Unknown);
}

#[test]
fn somebody_elses_change_in_a_pool_is_pending_and_our_own_is_not() {
    let mut play = Play::new(4);
    let mut answers: BTreeMap<NodeName, NodeEvidence> =
        (0..4).map(|n| (name(n), play.evidence(n))).collect();
    if let EngineAnswer::Report(report) = &mut answers.get_mut(&name(3)).unwrap().engine {
        report.ledger.as_mut().unwrap().pool_changes.push("dmFsPQ==".into());
    }
    play.now += 1;
    let now = Duration::from_secs(play.now);
    play.watch.record(CHAIN, &play.nodes, &answers, &Policy::default(), now);
    assert!(play.sight().ledger.pending.is_some());
    let own = play.watch.sight(CHAIN, &play.nodes, Some("dmFsPQ=="), now);
    assert_eq!(own.ledger.pending, None);
}

/// A chain of four others' voters, followed by our only node.
fn joined() -> Play {
    let mut play = Play::new(5);
    play.nodes.drain(..4);
    play.nodes[0].power = 0;
    play.voters = 4;
    play.run(1);
    play
}

#[test]
fn a_chain_whose_voters_are_all_foreign_is_known_by_the_only_node_that_follows_it() {
    let mut play = joined();
    let sight = play.sight();
    assert!(sight.ledger.agreed && sight.ledger.head == Head::Producing);
    assert!(sight.ledger.members.values().all(|member| member.node.is_none()));
    assert_eq!(play.liveness(), [Liveness::Live; 4]);
    assert!(sight.ledger.followers[&name(4)].connected && sight.nodes[&name(4)].back);
    // Nobody but foreign nodes is there to hear the chain from.
    play.peers = 0;
    play.run(1);
    assert!(!play.sight().ledger.followers[&name(4)].connected);
}

#[test]
fn who_reads_old_blocks_of_a_chain_it_joined_tells_nothing_of_its_voters() {
    let mut play = joined();
    play.catching_up.insert(4);
    play.run(3);
    let sight = play.sight();
    assert_eq!(sight.ledger.head, Head::Producing, "its head moves");
    assert!(!sight.ledger.agreed && sight.ledger.members.is_empty());
    assert_eq!(sight.ledger.followers[&name(4)].steady_seconds, 0);
    play.catching_up.clear();
    play.run(1);
    assert!(play.sight().ledger.agreed && play.sight().ledger.members.len() == 4);
}

#[test]
fn an_operator_that_has_just_started_takes_no_word_from_who_reads_old_blocks() {
    let mut play = joined();
    play.catching_up.insert(4);
    play.watch = Watch::default();
    play.run(1);
    let sight = play.sight();
    assert_eq!(sight.ledger.head, Head::Unknown);
    assert!(!sight.ledger.agreed && sight.ledger.members.is_empty());
}

/// All were started at once, and no block is there to read that would tell them that they have caught up.
#[test]
fn the_word_of_nodes_that_catch_up_counts_on_a_chain_that_stands_still() {
    let mut play = Play::new(4);
    play.stands = true;
    play.catching_up = (0..4).collect();
    play.run(30);
    let sight = play.sight();
    assert_eq!(sight.ledger.head, Head::Standing);
    assert!(sight.ledger.agreed && sight.ledger.members.len() == 4);
    assert_eq!(play.liveness(), [Liveness::Live; 4], "they answer, and others list them");
    play.stands = false;
    play.catching_up.clear();
    play.run(12);
    assert!(play.sight().ledger.agreed && play.sight().nodes.values().all(|node| node.back));
}

#[test]
fn voters_are_judged_by_the_others_while_one_of_them_catches_up_after_its_restart() {
    let mut play = Play::new(4);
    play.down(3);
    play.run(20);
    play.up(3);
    play.catching_up.insert(3);
    play.last_signed.remove("A3");
    play.run(5);
    let sight = play.sight();
    assert!(sight.ledger.agreed && sight.ledger.head == Head::Producing);
    assert_eq!(play.liveness()[..3], [Liveness::Live; 3]);
    assert!(!sight.nodes[&name(3)].back);
    play.catching_up.clear();
    play.run(3);
    assert_eq!(play.liveness(), [Liveness::Live; 4]);
    assert!(play.sight().nodes[&name(3)].back);
}
