//! Everything that may happen next: the operator's effects, the chain's and Kubernetes' own doings, faults,
//! people.

use std::collections::BTreeSet;

use super::defects::Defect;
use super::rules;
use super::world::{B, BAD, C, FOREIGN_KEY, N, Scenario, World, index};
use crate::membership::model::{
    Begun, Cure, Decision, Engine, Fate, Head, Inputs, Liveness, Node, Observed, Progress, Step,
};
use crate::membership::next_step;

/// A move, for people, and where it leads.
pub type Move = (String, World);

/// What was broken, by which move.
#[derive(Debug, Clone)]
pub struct Violation {
    pub rule: &'static str,
    pub by: String,
}

/// How an operator may see the world: all of it, or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    Clear,
    Stale,
    Contradicting,
    HeadUnknown,
    NoApiServer,
    /// The ledger is not in the picture at all, or has no members in it.
    NoLedger,
    NoMembers,
    /// Nothing is known of this node.
    Blind(u8),
    /// Pods in clusters that cannot be asked look as they did before what was done there last …
    OldPods,
    /// … or are not remembered, since the operator has restarted.
    NoPods,
}

impl Sight {
    fn all(world: &World) -> Vec<Self> {
        let mut all = vec![
            Self::Clear,
            Self::Stale,
            Self::Contradicting,
            Self::HeadUnknown,
            Self::NoApiServer,
            Self::NoLedger,
            Self::NoMembers,
        ];
        all.extend(world.nodes.iter().map(|node| Self::Blind(node.index)));
        if world.unasked.contains(&true) {
            all.extend([Self::OldPods, Self::NoPods]);
        }
        all
    }

    fn age_pods(self, seen: &mut Observed) {
        let (progressed, cured, inputs) = match self {
            Self::OldPods => (Progress::Ordered, Cure::Ordered, Inputs::Pending),
            _ => (Progress::Down, Cure::Trying, Inputs::Current),
        };
        let unasked = |node: &Node| node.engine == Engine::Unknown;
        if let Some(Begun::Restart { node, progress, .. }) = &mut seen.begun
            && *progress != Progress::Untouched
            && seen.nodes.get(node).is_some_and(unasked)
        {
            *progress = progressed;
        }
        for node in seen.nodes.values_mut().filter(|node| unasked(node)) {
            node.inputs = inputs;
            if matches!(node.cure, Cure::Ordered | Cure::Trying) {
                node.cure = cured;
            }
        }
    }

    /// What is seen of `seen` this way.
    pub fn dim(self, seen: &mut Observed) {
        // What was sent is not seen to end, and a node not seen to be back.
        match &mut seen.begun {
            Some(Begun::Change { fate, .. }) if *fate != Fate::Recorded && self != Self::Clear => {
                *fate = Fate::Sent;
            }
            Some(Begun::Restart { progress, .. })
                if *progress == Progress::Back && self != Self::Clear =>
            {
                *progress = Progress::Down;
            }
            _ => {}
        }
        if self == Self::NoLedger {
            seen.ledgers.clear();
        }
        if matches!(self, Self::OldPods | Self::NoPods) {
            self.age_pods(seen);
        }
        for ledger in seen.ledgers.values_mut() {
            // An older picture: who came last is not in it.
            let newest = ledger
                .members
                .iter()
                .filter(|(_, member)| member.node.is_some())
                .map(|(key, _)| key);
            let newest = newest.max().cloned();
            match self {
                Self::Clear | Self::NoLedger | Self::OldPods | Self::NoPods => {}
                Self::NoMembers => ledger.members.clear(),
                Self::Stale | Self::Contradicting => {
                    ledger.members.retain(|key, _| Some(key) != newest.as_ref());
                    ledger.age_seconds = if self == Self::Stale { 99 } else { 0 };
                    ledger.agreed = self == Self::Stale;
                }
                Self::HeadUnknown => ledger.head = Head::Unknown,
                Self::NoApiServer => {
                    for member in ledger.members.values_mut() {
                        if member.liveness == Liveness::ProvedDown {
                            member.liveness = Liveness::Unknown;
                        }
                    }
                }
                Self::Blind(node) => {
                    ledger.followers.remove(&super::world::name(node));
                    if let Some(member) = ledger.members.get_mut(&super::world::key(node)) {
                        member.liveness = Liveness::Unknown;
                        member.signed = 0;
                    }
                }
            }
        }
        for (name, node) in &mut seen.nodes {
            let blind = match self {
                Self::NoApiServer => true,
                Self::Blind(index) => *name == super::world::name(index),
                _ => false,
            };
            if blind {
                node.engine = Engine::Unknown;
            }
        }
    }
}

/// The operator's decision in `world`, seen this way, with a defect or without.
pub fn decide(
    scenario: &Scenario,
    world: &World,
    sight: Sight,
    defect: Option<Defect>,
) -> Decision {
    let mut seen = world.observe(scenario);
    sight.dim(&mut seen);
    let desired = world.desired(scenario);
    let policy = world.policy(scenario);
    match defect {
        None => next_step(&desired, &seen, &policy),
        Some(defect) => defect.decide(&desired, seen, &policy),
    }
}

/// All that may happen next. The first rule that a move breaks ends the search.
pub fn moves(
    scenario: &Scenario,
    world: &World,
    defect: Option<Defect>,
) -> Result<Vec<Move>, Violation> {
    let mut moves = Vec::new();
    let mut steps = BTreeSet::new();
    for sight in Sight::all(world) {
        let decision = decide(scenario, world, sight, defect);
        take(scenario, world, &decision, sight, &mut steps, &mut moves)?;
        if let (Sight::Clear, Decision::NeedsConsent(refusal)) = (sight, &decision)
            && let Some(consent) = &refusal.consent
        {
            let mut next = world.clone();
            next.consents.insert(consent.clone());
            moves.push((format!("person: consents to {consent}"), next));
        }
    }
    own_doings(scenario, world, &mut moves);
    faults(scenario, world, &mut moves);
    people(scenario, world, &mut moves);
    Ok(moves)
}

fn take(
    scenario: &Scenario,
    world: &World,
    decision: &Decision,
    sight: Sight,
    steps: &mut BTreeSet<String>,
    moves: &mut Vec<Move>,
) -> Result<(), Violation> {
    let Decision::Step { step, consents } = decision else { return Ok(()) };
    let label = format!("operator ({sight:?}): {step}");
    if let Err(rule) = rules::check_effect(scenario, world, step, consents) {
        return Err(Violation { rule, by: label });
    }
    // Several ways of seeing lead to the same effect.
    if steps.insert(format!("{step}{consents:?}")) {
        for (how, next) in effects(scenario, world, step, consents) {
            moves.push((format!("{label}{how}"), next));
        }
    }
    Ok(())
}

/// What a step may come to: whole, or cut off between two writes.
pub fn effects(
    scenario: &Scenario,
    world: &World,
    step: &Step,
    consents: &BTreeSet<String>,
) -> Vec<(&'static str, World)> {
    let mut next = world.clone();
    next.consents.retain(|consent| !consents.contains(consent));
    let described = scenario.wants[usize::from(world.want)].inputs;
    let of = |node: &crate::names::NodeName| index(node.as_str()).unwrap_or(u8::MAX);
    match step {
        Step::TakeOver => next.hub_older = false,
        Step::Provision { set } => {
            let set = u8::from(set == "b");
            let index = next.next;
            let made = !next.unasked[usize::from(set)];
            next.next += 1;
            next.nodes.push(N {
                index,
                set,
                runs: described,
                template: described,
                up: described != BAD && made,
                link: !next.cut[usize::from(set)],
                reach: made,
                made,
                ..N::default()
            });
        }
        Step::Condemn { node } => {
            if let Some(node) = next.node(of(node)) {
                node.condemned = true;
            }
        }
        Step::BeginChange { change, .. } => {
            next.begun = Some(B::Change { change: change.clone() });
            next.fate = Fate::Recorded;
        }
        Step::Send => {
            let Some(B::Change { change }) = &world.begun else { return Vec::new() };
            next.fate = Fate::Sent;
            let mut sent = next.clone();
            sent.pool.push(change.clone());
            // A crash between the record and the call: it is never sent, and proved so later.
            next.fate = Fate::Impossible;
            return vec![("", sent), (", crash before it is sent", next)];
        }
        Step::Settle | Step::Withdraw => next.begun = None,
        Step::BeginRestart { node } => {
            next.begun =
                Some(B::Restart { node: of(node), ordered: false, consents: BTreeSet::new() });
        }
        Step::EndPod { node } => {
            let index = of(node);
            if let Some(B::Restart { ordered, consents: used, .. }) = &mut next.begun {
                *ordered = true;
                used.extend(consents.iter().cloned());
            }
            let Some(node) = next.node(index) else { return Vec::new() };
            node.template = described;
            let ordered = next.clone();
            let node = next.node(index).unwrap();
            node.runs = described;
            node.up = false;
            node.hung = false;
            node.long = false;
            return vec![("", next), (", crash before the pod is ended", ordered)];
        }
        Step::Cure { node } => {
            let Some(node) = next.node(of(node)) else { return Vec::new() };
            node.cure = C::Ordered;
            let recorded = next.clone();
            let node = next.node(index_of(step)).unwrap();
            node.cure = C::Trying;
            node.template = described;
            node.runs = described;
            node.hung = false;
            return vec![("", next), (", crash before the pod is ended", recorded)];
        }
        Step::BeginSwitch { .. } | Step::Halt { .. } | Step::Switch { .. } => return Vec::new(),
        Step::Retire { node } => {
            let index = of(node);
            next.nodes.retain(|node| node.index != index);
        }
    }
    vec![("", next)]
}

fn index_of(step: &Step) -> u8 {
    match step {
        Step::Cure { node } => index(node.as_str()).unwrap_or(u8::MAX),
        _ => u8::MAX,
    }
}

/// What the chain and Kubernetes do by themselves.
pub fn own_doings(scenario: &Scenario, world: &World, moves: &mut Vec<Move>) {
    let producing = world.has_quorum(scenario.quorum);
    let mut doing = |label: String, change: &dyn Fn(&mut World)| {
        let mut next = world.clone();
        change(&mut next);
        moves.push((label, next));
    };
    if producing {
        for (place, change) in world.pool.iter().enumerate() {
            doing(format!("chain: \"{change}\" takes effect"), &|next| {
                let change = next.pool.remove(place);
                next.include(&change);
                let mine =
                    matches!(&next.begun, Some(B::Change { change: mine, .. }) if *mine == change);
                if mine && next.fate == Fate::Sent {
                    next.fate = Fate::Confirmed;
                }
            });
        }
    }
    for n in &world.nodes {
        let i = n.index;
        if !n.made && n.reach {
            doing(format!("node {i} is made"), &|next| {
                let node = next.node(i).unwrap();
                node.made = true;
                node.up = node.can_start();
            });
        }
        if !n.up && n.can_start() {
            doing(format!("node {i} starts"), &|next| {
                let node = next.node(i).unwrap();
                node.up = true;
                node.runs = node.template;
                node.cure = C::Untried;
                node.long = false;
            });
        }
        if !n.up && n.cure == C::Trying && n.made && !n.can_start() {
            doing(format!("the cure of node {i} fails"), &|next| {
                next.node(i).unwrap().cure = C::Failed;
            });
        }
        // It signs for a while, and is killed later.
        if n.runs == BAD && n.up {
            doing(format!("node {i} breaks by its configuration"), &|next| {
                let node = next.node(i).unwrap();
                node.up = false;
                node.hung = true;
            });
        }
        if n.runs == BAD && !n.up && !n.hung && !n.disk_lost && n.cure != C::Trying {
            doing(format!("node {i} works for a while"), &|next| {
                next.node(i).unwrap().up = true;
            });
        }
        if n.up && n.link && !n.synced && producing {
            doing(format!("node {i} catches up"), &|next| next.node(i).unwrap().synced = true);
        }
        if n.entering && n.votes_live() && n.synced && producing {
            doing(format!("node {i} signs"), &|next| {
                let node = next.node(i).unwrap();
                node.entering = false;
                node.long = false;
            });
        }
        let silent = (!n.up || !n.link) && !n.long;
        if silent
            && (n.power > 0 || matches!(world.begun, Some(B::Restart { node, .. }) if node == i))
        {
            doing(format!("node {i} is down for long"), &|next| next.node(i).unwrap().long = true);
        }
    }
}

fn faults(scenario: &Scenario, world: &World, moves: &mut Vec<Move>) {
    let mut doing = |label: String, change: &dyn Fn(&mut World)| {
        let mut next = world.clone();
        change(&mut next);
        moves.push((label, next));
    };
    if scenario.clusters {
        // The operator's own network is no fault of the nodes'.
        for set in 0..2 {
            let can = world.unasked[usize::from(set)];
            let label = if can { "can be asked again" } else { "cannot be asked" };
            doing(format!("cluster {set} {label}"), &|next| next.ask(set, can));
        }
    }
    // Healing is free.
    for set in 0..2 {
        if world.cut[usize::from(set)] {
            doing(format!("cluster {set} reaches the other again"), &|next| {
                next.connect(set, true);
            });
        }
    }
    for n in world.nodes.iter().filter(|_| !scenario.clusters) {
        let i = n.index;
        if !n.reach {
            doing(format!("the API server of node {i} is back"), &|next| {
                next.node(i).unwrap().reach = true;
            });
        }
        if !n.link {
            doing(format!("node {i} reaches the others again"), &|next| {
                let node = next.node(i).unwrap();
                node.link = true;
                node.long &= !node.up;
            });
        }
    }
    if let Some(foreign) = &world.foreign
        && !foreign.up
    {
        doing("the foreign voter is back".to_owned(), &|next| {
            next.foreign.as_mut().unwrap().up = true;
        });
    }
    if world.stalled {
        doing("the chain goes on".to_owned(), &|next| next.stalled = false);
    }
    if world.faults == 0 {
        return;
    }
    let mut fault = |label: String, change: &dyn Fn(&mut World)| {
        doing(label, &|next| {
            next.faults -= 1;
            change(next);
        });
    };
    for n in &world.nodes {
        let i = n.index;
        if n.up && scenario.crashes {
            fault(format!("node {i} crashes"), &|next| next.node(i).unwrap().up = false);
        }
        if n.up && scenario.hangs {
            fault(format!("node {i} dies and does not come back by itself"), &|next| {
                let node = next.node(i).unwrap();
                node.up = false;
                node.hung = true;
            });
        }
        if n.made && !n.disk_lost && scenario.wipes {
            fault(format!("node {i} loses its disk"), &|next| {
                let node = next.node(i).unwrap();
                node.up = false;
                node.disk_lost = true;
                node.synced = false;
            });
        }
        if scenario.cuts && !scenario.clusters && n.reach {
            fault(format!("the API server of node {i} is unreachable"), &|next| {
                next.node(i).unwrap().reach = false;
            });
        }
        if scenario.cuts && !scenario.clusters && n.link {
            fault(format!("node {i} is cut off from the others"), &|next| {
                next.node(i).unwrap().link = false;
            });
        }
    }
    // A part with a quorum would go on by itself: then it is the other one that is cut off.
    for set in 0..2u8 {
        let whole = world.cut == [false; 2] && world.power_in(1 - set) > 0;
        let part = world.power_in(set) < scenario.quorum.needed(world.total());
        if scenario.clusters && scenario.cuts && whole && part {
            fault(format!("cluster {set} is cut off from the other"), &|next| {
                next.connect(set, false);
            });
        }
    }
    if let Some(foreign) = &world.foreign
        && foreign.up
    {
        fault("the foreign voter goes silent".to_owned(), &|next| {
            next.foreign.as_mut().unwrap().up = false;
        });
        // Its owner takes it out: a change that is not ours. Owners are careful, too: not below quorum.
        let rest = World { foreign: None, ..world.clone() };
        if world.pool.is_empty() && rest.has_quorum(scenario.quorum) {
            fault("the foreign voter's owner takes it out".to_owned(), &|next| {
                next.pool.push(crate::membership::model::Change::Remove {
                    member: FOREIGN_KEY.to_owned(),
                });
            });
        }
    }
    if scenario.cuts && !scenario.clusters && !world.stalled {
        fault("the chain stands, and no voter shows why".to_owned(), &|next| next.stalled = true);
    }
    if scenario.lost_transactions && !world.pool.is_empty() {
        fault("what was sent is lost for good".to_owned(), &|next| {
            next.pool.clear();
            if next.fate == Fate::Sent {
                next.fate = Fate::Impossible;
            }
        });
    }
    if scenario.restored_hub && !world.hub_older {
        fault("the hub is restored from an old backup".to_owned(), &|next| next.hub_older = true);
    }
}

fn people(scenario: &Scenario, world: &World, moves: &mut Vec<Move>) {
    if world.edits == 0 {
        return;
    }
    for want in 0..scenario.wants.len() {
        let want = u8::try_from(want).unwrap();
        if want != world.want {
            let next = World { want, edits: world.edits - 1, ..world.clone() };
            moves.push((format!("user: wants {:?}", scenario.wants[usize::from(want)]), next));
        }
    }
    if scenario.asks {
        for n in world.nodes.iter().filter(|n| !n.asked && !n.condemned) {
            let mut next = World { edits: world.edits - 1, ..world.clone() };
            next.node(n.index).unwrap().asked = true;
            moves.push((format!("user: asks to replace node {}", n.index), next));
        }
    }
}
