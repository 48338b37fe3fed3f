//! A switch on a model: nodes crash, the user changes their mind, the operator ends between any two effects, and
//! blocks come when they like. No two nodes ever apply one block by different rules, and once faults stop, all
//! nodes run what is described and the chain goes on.

use std::collections::{BTreeMap, HashMap};

use crate::anchor::{Identity, Role};
use crate::membership::model::{
    Begun, Decision, Desired, DesiredSet, Engine, Follower, Gate, Head, Hub, Ledger, Liveness,
    Member, Node, Observed, Policy, Stand, Step,
};
use crate::membership::next_step;
use crate::names::NodeName;
use crate::quorum::Quorum;
use crate::steps::{self, Described, PodSeen};

const LEDGER: &str = "main";
/// Blocks from the begin of a switch to its height.
const LEAD: u64 = 6;
/// Blocks beyond this are not explored: the second switch after one that was given up ends before.
const LAST_BLOCK: u64 = 15;

/// Applications: the one all begin with, another, and one that never starts.
const OLD: u8 = 0;
const NEW: u8 = 1;
const BAD: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Template {
    app: u8,
    halts_at: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct N {
    in_force: Template,
    runs: Template,
    switched_at: Option<u64>,
    up: bool,
    /// The newest block it applied.
    height: u64,
}

impl Template {
    fn hash(self) -> String {
        format!("{}-{:?}", self.app, self.halts_at)
    }
}

impl N {
    /// As the anchor has it. Nothing but the application is described.
    fn identity(&self) -> Identity {
        let app = self.in_force.app.to_string();
        Identity {
            template_hash: Some(self.in_force.hash()),
            inputs_hash: Some(app.clone()),
            app_hash: Some(app),
            halts_at: self.in_force.halts_at,
            switched_at: self.switched_at,
            ..Identity::new("i".into(), "a".into(), Role::Validator)
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    nodes: Vec<N>,
    height: u64,
    want: u8,
    begun: Option<u64>,
    /// Crashes and edits that may still happen.
    crashes: u8,
    edits: u8,
}

fn name(n: usize) -> NodeName {
    NodeName::from_object(&format!("net-a-{n}"))
}

fn index(node: &NodeName) -> usize {
    node.as_str().rsplit('-').next().unwrap().parse().unwrap()
}

impl World {
    fn start(count: usize, crashes: u8, edits: u8) -> Self {
        let template = Template { app: OLD, halts_at: None };
        let node = N { in_force: template, runs: template, switched_at: None, up: true, height: 3 };
        let nodes = vec![node; count];
        Self { nodes, height: 3, want: NEW, begun: None, crashes, edits }
    }

    fn needed(&self) -> usize {
        self.nodes.len() * 2 / 3 + 1
    }

    fn identities(&self) -> BTreeMap<String, Identity> {
        let all = self.nodes.iter().enumerate();
        all.map(|(i, n)| (name(i).to_string(), n.identity())).collect()
    }

    /// It takes part in the block after the head.
    fn willing(&self, n: &N) -> bool {
        n.up && n.runs.halts_at.is_none_or(|last| self.height < last)
    }

    fn produces(&self) -> bool {
        self.nodes.iter().filter(|n| self.willing(n)).count() >= self.needed()
    }

    /// The next block, where there is a quorum for it.
    fn block(&self) -> Result<Option<Self>, String> {
        if !self.produces() {
            return Ok(None);
        }
        let mut apps: Vec<u8> =
            self.nodes.iter().filter(|n| self.willing(n)).map(|n| n.runs.app).collect();
        apps.sort_unstable();
        apps.dedup();
        if apps.len() > 1 {
            return Err(format!("block {} is made by nodes of different rules", self.height + 1));
        }
        let mut next = self.clone();
        next.height += 1;
        for (n, old) in next.nodes.iter_mut().zip(&self.nodes) {
            if self.willing(old) {
                n.height = next.height;
            }
        }
        Ok(Some(next))
    }

    fn observe(&self) -> (Desired, Observed) {
        let votes_on = [LEDGER.to_owned()].into();
        let replicas = u32::try_from(self.nodes.len()).unwrap();
        let set = DesiredSet {
            name: "a".into(),
            replicas,
            votes_on,
            power: 10,
            retire: [].into(),
            cluster: String::new(),
        };
        let (mut nodes, mut members, mut followers) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let described = self.want.to_string();
        let identities = self.identities();
        for (i, n) in self.nodes.iter().enumerate() {
            let identity = &identities[name(i).as_str()];
            let runs = n.runs.hash();
            let halts_at = n.runs.halts_at;
            let pod = PodSeen { uid: "u", template: Some(&runs), halts_at, ending: false };
            let stand = self.begun.map_or(Stand::Old, |height| {
                let before = steps::switched_before(height, &identities, &name(i));
                let target = before.and_then(|(_, one)| one.app_hash.as_deref());
                let target = target.unwrap_or(&described);
                steps::stand(height, identity, target, Some(pod), n.up)
            });
            let describes = Described { inputs: &described, switches: Some(&described) };
            let node = Node {
                engine: if n.up { Engine::Ready } else { Engine::NotReady },
                inputs: steps::inputs(identity, Some(pod), describes, self.begun),
                stand,
                halted: steps::is_halted(Some(pod), self.height, self.begun),
                back_seconds: 99,
                ..Node::new("a")
            };
            nodes.insert(name(i), node);
            let there = if self.produces() { self.willing(n) } else { n.up };
            let liveness = match (there, n.up) {
                (true, _) => Liveness::Live,
                (false, true) => Liveness::Unknown,
                (false, false) => Liveness::ProvedDown,
            };
            let signed = if there { 12 } else { 0 };
            let member = Member { power: 10, node: Some(name(i)), liveness, signed };
            members.insert(format!("k{i}"), member);
            let lag = self.height - n.height;
            followers.insert(name(i), Follower { lag, steady_seconds: 99, connected: n.up });
        }
        let ledger = Ledger {
            quorum: Quorum::MoreThanTwoThirds,
            weights: true,
            members,
            agreed: true,
            age_seconds: 0,
            head: if self.produces() { Head::Producing } else { Head::Standing },
            height: self.height,
            pending: None,
            followers,
        };
        let begun = self.begun.map(|height| Begun::Switch { ledger: LEDGER.into(), height });
        let desired = Desired { sets: vec![set], paused: false };
        let ledgers = [(LEDGER.to_owned(), ledger)].into();
        (desired, Observed { nodes, ledgers, begun, hub: Hub::Current })
    }

    fn decide(&self) -> Decision {
        let (desired, observed) = self.observe();
        let policy = Policy {
            switch_lead: LEAD,
            cure_seconds: 0,
            allow_downtime: true,
            ..Policy::default()
        };
        next_step(&desired, &observed, &policy)
    }

    /// What may come of the operator's next step, with a crash between two effects or without.
    fn steps(&self) -> Vec<(String, Self)> {
        let Decision::Step { step, .. } = self.decide() else { return Vec::new() };
        let mut next = self.clone();
        let put = |node: &NodeName, template: Template, switched_at: Option<u64>| {
            let mut ordered = self.clone();
            let n = &mut ordered.nodes[index(node)];
            (n.in_force, n.switched_at) = (template, switched_at);
            let mut done = ordered.clone();
            let n = &mut done.nodes[index(node)];
            // Its pod is ended; it comes back by `recover`.
            (n.runs, n.up) = (template, false);
            vec![
                (format!("{step}, crash before the pod is ended"), ordered),
                (step.to_string(), done),
            ]
        };
        match &step {
            Step::BeginSwitch { height, .. } => next.begun = Some(*height),
            Step::Settle | Step::Withdraw => {
                next.begun = None;
                for n in &mut next.nodes {
                    n.switched_at = None;
                }
            }
            Step::Halt { node } => {
                let app = self.nodes[index(node)].in_force.app;
                return put(node, Template { app, halts_at: self.begun }, None);
            }
            Step::Switch { node, anew } => {
                let identities = self.identities();
                let before = steps::switched_before(self.begun.unwrap(), &identities, node);
                let before = before.and_then(|(_, one)| one.app_hash.as_ref()?.parse().ok());
                let app = before.filter(|_| !anew).unwrap_or(self.want);
                return put(node, Template { app, halts_at: None }, self.begun);
            }
            // The application stays, whatever is described: that is the switch's alone.
            Step::BeginRestart { node } | Step::EndPod { node } | Step::Cure { node } => {
                let n = &self.nodes[index(node)];
                let halts_at = n.in_force.halts_at.filter(|_| n.in_force.halts_at == self.begun);
                let template = Template { app: n.in_force.app, halts_at };
                return put(node, template, n.switched_at);
            }
            other => panic!("{other} in a world of healthy members"),
        }
        vec![(step.to_string(), next)]
    }

    /// A node's kubelet starts it, and it catches up.
    fn recover(&self, n: usize) -> Option<Self> {
        let mut next = self.clone();
        let node = &mut next.nodes[n];
        if node.up || node.runs.app == BAD {
            return None;
        }
        node.up = true;
        node.height = node.runs.halts_at.map_or(self.height, |last| self.height.min(last));
        Some(next)
    }

    fn moves(&self) -> Result<Vec<(String, Self)>, String> {
        let mut all = self.steps();
        if self.height < LAST_BLOCK {
            all.extend(self.block()?.map(|next| ("a block".to_owned(), next)));
        }
        for n in 0..self.nodes.len() {
            all.extend(self.recover(n).map(|next| (format!("{} comes up", name(n)), next)));
            if self.nodes[n].up && self.crashes > 0 {
                let mut next = self.clone();
                next.crashes -= 1;
                next.nodes[n].up = false;
                // Its pod may be another one then, of the template in force.
                let mut evicted = next.clone();
                evicted.nodes[n].runs = evicted.nodes[n].in_force;
                all.push((format!("{} crashes", name(n)), next));
                all.push((format!("{} is evicted", name(n)), evicted));
            }
        }
        if self.edits > 0 {
            for want in [OLD, NEW, BAD].into_iter().filter(|want| *want != self.want) {
                let next = Self { want, edits: self.edits - 1, ..self.clone() };
                all.push((format!("application {want} is described"), next));
            }
        }
        Ok(all)
    }

    fn is_done(&self) -> bool {
        let wanted = Template { app: self.want, halts_at: None };
        self.begun.is_none()
            && self.produces()
            && self.nodes.iter().all(|n| n.runs == wanted && n.in_force == wanted && n.up)
    }

    /// Faults stop, the user keeps to a description that works: does it end well?
    fn heals(&self, want: u8) -> Result<(), String> {
        let mut world = Self { want, ..self.clone() };
        let mut way = Vec::new();
        for _ in 0..200 {
            if world.is_done() {
                return Ok(());
            }
            if let Some((what, next)) = world.steps().pop() {
                way.push(what);
                world = next;
            }
            for n in 0..world.nodes.len() {
                world = world.recover(n).unwrap_or(world);
            }
            world = world.block()?.unwrap_or(world);
        }
        way.dedup();
        Err(format!("never done: {way:#?}\n{world:#?}\n{:?}", world.decide()))
    }
}

fn explore(start: World) -> usize {
    let mut known: HashMap<World, usize> = HashMap::from([(start.clone(), usize::MAX)]);
    let mut queue = vec![(start, usize::MAX, String::new())];
    let mut at = 0;
    while at < queue.len() {
        let path = |queue: &[(World, usize, String)], why: &str| {
            let (mut way, mut one) = (Vec::new(), at);
            while one != usize::MAX {
                way.push(queue[one].2.clone());
                one = queue[one].1;
            }
            way.reverse();
            panic!("{why}\nafter {way:#?}\nin {:#?}", queue[at].0);
        };
        let world = queue[at].0.clone();
        for want in [OLD, NEW] {
            if let Err(why) = world.heals(want) {
                path(&queue, &why);
            }
        }
        match world.moves() {
            Err(why) => path(&queue, &why),
            Ok(moves) => {
                for (what, next) in moves {
                    if !known.contains_key(&next) {
                        known.insert(next.clone(), at);
                        queue.push((next, at, what));
                    }
                }
            }
        }
        at += 1;
    }
    queue.len()
}

#[test]
fn no_two_nodes_apply_a_block_by_different_rules_and_all_end_with_what_is_described() {
    let full = std::env::var("BSN_MODEL").is_ok_and(|bound| bound == "full");
    let bounds: &[_] =
        if full { &[(1, 2, 3), (3, 2, 2), (4, 1, 2)] } else { &[(1, 1, 2), (3, 1, 1)] };
    for &(count, crashes, edits) in bounds {
        let states = explore(World::start(count, crashes, edits));
        println!("{count} nodes, {crashes} crashes, {edits} edits: {states} states");
        assert!(states > 1000, "{states}");
    }
}

#[test]
fn an_application_that_never_starts_reaches_one_node_only() {
    let mut world = World { want: BAD, ..World::start(4, 0, 0) };
    for _ in 0..200 {
        if let Some((_, next)) = world.steps().pop() {
            world = next;
        }
        for n in 0..4 {
            world = world.recover(n).unwrap_or(world);
        }
        world = world.block().unwrap().unwrap_or(world);
    }
    assert_eq!(world.nodes.iter().filter(|n| n.runs.app == BAD).count(), 1);
    assert!(matches!(world.decide(), Decision::Wait(_)), "{:?}", world.decide());
    world.heals(OLD).unwrap();
    world.heals(NEW).unwrap();
}

#[test]
fn an_application_that_starts_and_makes_no_block_is_replaced_on_all_when_another_is_described() {
    // All were switched and stand: as if the new application agreed to nothing.
    let mut world = World::start(4, 0, 0);
    let new = Template { app: NEW, halts_at: None };
    (world.begun, world.height, world.want) = (Some(9), 9, OLD);
    for n in &mut world.nodes {
        *n = N { in_force: new, runs: new, switched_at: Some(9), up: true, height: 9 };
    }
    let decide = |world: &World, down_seconds| {
        let (desired, mut observed) = world.observe();
        observed.ledgers.get_mut(LEDGER).unwrap().head = Head::Standing;
        for node in observed.nodes.values_mut() {
            node.down_seconds = down_seconds;
        }
        next_step(&desired, &observed, &Policy::default())
    };
    assert!(matches!(decide(&world, 10), Decision::Wait(_)), "the user may have to wait a little");
    let old = Template { app: OLD, halts_at: None };
    for n in 0..4 {
        let Decision::Step { step: Step::Switch { node, anew }, .. } = decide(&world, 9999) else {
            panic!("{:?}", decide(&world, 9999));
        };
        assert_eq!((index(&node), anew), (n, n == 0), "the others get what the first one has");
        (world.nodes[n].in_force, world.nodes[n].runs) = (old, old);
    }
    assert!(matches!(decide(&world, 9999), Decision::Stuck(_)), "{:?}", decide(&world, 9999));
}

#[test]
fn a_switch_waits_for_a_cluster_that_cannot_be_asked_and_restarts_nobody_there() {
    let decide = |world: &World| {
        let (desired, mut observed) = world.observe();
        observed.nodes.get_mut(&name(0)).unwrap().engine = Engine::Unknown;
        next_step(&desired, &observed, &Policy::default())
    };
    let waits = |decision: &Decision| matches!(decision, Decision::Wait(refusal) if refusal.gate == Gate::ClusterReachable);
    let mut world = World { want: NEW, ..World::start(4, 0, 0) };
    assert!(waits(&decide(&world)), "it is not begun: {:?}", decide(&world));
    // It was begun before, and all have halted.
    let halted = Template { app: OLD, halts_at: Some(9) };
    (world.begun, world.height) = (Some(9), 9);
    for n in &mut world.nodes {
        *n = N { in_force: halted, runs: halted, switched_at: None, up: true, height: 9 };
    }
    let new = Template { app: NEW, halts_at: None };
    for _ in 0..3 {
        let Decision::Step { step: Step::Switch { node, .. }, .. } = decide(&world) else {
            panic!("{:?}", decide(&world));
        };
        assert_ne!(index(&node), 0);
        let n = &mut world.nodes[index(&node)];
        (n.in_force, n.runs, n.switched_at) = (new, new, Some(9));
    }
    assert!(waits(&decide(&world)), "{:?}", decide(&world));
}
