//! The steps in their order of consideration, one operation after the other.

use super::gates::{Granted, check_agents, check_not_frozen, check_reachable, is_beyond_cure};
use super::goals::{Goal, Goals, Seat, Seats};
use super::model::{
    Begun, Change, Cure, Decision, Desired, Engine, Fate, Gate, Head, Hub, Inputs, Ledger,
    LedgerName, Liveness, MemberKey, Node, Observed, Policy, Progress, Replacement, SILENT, Step,
};
use super::projection::{Projection, is_fresh, liveness};
use super::refusal::{Check, Closed, gate};
use crate::names::{NodeName, cluster_in_words};

/// One decision.
pub struct Planner<'a> {
    pub(super) desired: &'a Desired,
    pub(super) observed: &'a Observed,
    pub(super) policy: &'a Policy,
    pub(super) goals: Goals<'a>,
    pub(super) seats: Seats<'a>,
}

/// A step that may be taken, with the consent it uses.
pub(super) type Open = (Step, Granted);

/// One kind of step; says why not, if there is one to take.
type Operation<'a> = fn(&Planner<'a>, &mut Vec<Closed>) -> Option<Open>;

impl<'a> Planner<'a> {
    /// Prepares the decision.
    pub fn new(desired: &'a Desired, observed: &'a Observed, policy: &'a Policy) -> Self {
        let seats = Seats::new(observed, policy);
        let goals = Goals::new(desired, observed, &seats);
        Self { desired, observed, policy, goals, seats }
    }

    /// Decides. See the [module](super) for the order.
    pub fn decide(&self) -> Decision {
        if let Some(decision) = self.take_over() {
            return decision;
        }
        let begun = self.observed.begun.as_ref().map(|begun| self.settle(begun));
        if let Some(Ok(open)) = begun {
            return decision(open);
        }
        let (mut closed, mut later) = (Vec::new(), Vec::new());
        let all =
            [Self::condemn, Self::retire, Self::provision, Self::replace, Self::roll, Self::scale];
        // Until all nodes have switched, none is made: it would run an application of which the ledger knows nothing.
        let before_switch =
            [Self::condemn, Self::retire, Self::replace, Self::roll, Self::begin_switch];
        let operations: &[Operation<'a>] = if self.wants_switch() { &before_switch } else { &all };
        let halted = self.is_halting();
        // Whoever is down while all are halted is brought back by the switch itself.
        if !halted && let Some(open) = self.cure(&mut closed, &mut later) {
            return decision(open);
        }
        if let Some(Err(open_step)) = begun {
            // One change at a time: whatever else there is to do comes after.
            closed.push(open_step);
        } else {
            for operation in operations {
                if let Some(open) = operation(self, &mut closed) {
                    return decision(open);
                }
            }
        }
        closed.extend(later);
        if !halted {
            closed.extend(self.broken());
        }
        // What a person must do comes before what time may bring.
        let worst = closed.into_iter().rev().max_by_key(|closed| closed.class);
        worst.map_or(Decision::Converged, Closed::decision)
    }

    /// A hub that came from a backup forgets what was done since: nothing is safe until a person says that
    /// the newest anchor counts.
    fn take_over(&self) -> Option<Decision> {
        let Hub::Older { id } = &self.observed.hub else { return None };
        let consent = format!("take-over/{id}");
        let given = self.policy.consents.contains(&consent);
        let check = gate(Gate::HubStateNotOlderThanAnchor, given, |g| {
            let message = "an anchor beside the nodes knows of steps that this hub does not: the hub came from a backup. \
                           Check that the description is the newest one, then consent";
            Closed::consent(g, message, consent.clone()).before(&Step::TakeOver)
        });
        match check {
            Err(closed) => Some(closed.decision()),
            Ok(()) if given => Some(decision((Step::TakeOver, [consent].into()))),
            // Only where the gate was taken away to see what it prevents.
            Ok(()) => None,
        }
    }

    // --- settle ---------------------------------------------------------------------------------------

    /// What was begun is ended first.
    fn settle(&self, begun: &'a Begun) -> Check<Open> {
        match begun {
            Begun::Change { ledger, change, fate } => self.settle_change(ledger, change, *fate),
            Begun::Restart { node, progress, .. } => self.settle_restart(node, *progress),
            Begun::Switch { ledger, height } => self.settle_switch(ledger, *height),
        }
    }

    fn settle_change(&self, name: &'a LedgerName, change: &'a Change, fate: Fate) -> Check<Open> {
        match fate {
            Fate::Confirmed | Fate::Impossible => Ok((Step::Settle, Granted::new())),
            Fate::Sent => {
                let Some(ledger) = self.observed.ledgers.get(name) else {
                    return Err(Closed::wait(
                        Gate::EvidenceIsFresh,
                        format!("ledger {name} is not seen"),
                    ));
                };
                check_not_frozen(name, ledger)?;
                if let Some(closed) = self.standing(name, ledger) {
                    return Err(closed.before(&Step::Settle));
                }
                let message = format!(
                    "\"{change}\" was sent; it is settled when it took effect, or never can"
                );
                Err(Closed::wait(Gate::OneChangeAtATime, message).before(&Step::Settle))
            }
            // Judged again on what is known now: nothing has left yet.
            Fate::Recorded => {
                let wanted = self.observed.ledgers.get(name).is_some_and(|ledger| {
                    self.changes(name, ledger).iter().any(|wanted| wanted == change)
                });
                let check = if wanted { self.check_change(name, change).ok() } else { None };
                Ok(check.map_or((Step::Withdraw, Granted::new()), |granted| (Step::Send, granted)))
            }
        }
    }

    fn settle_restart(&self, name: &'a NodeName, progress: Progress) -> Check<Open> {
        let Some(node) = self.observed.nodes.get(name) else {
            return Ok((Step::Settle, Granted::new()));
        };
        let end_pod = Step::EndPod { node: name.clone() };
        // Who died meanwhile is missed by nobody: its restart is a cure.
        let gates = || {
            if self.is_down(name, node) {
                self.check_cure(name, node).map(|()| Granted::new())
            } else {
                self.check_restart(name, node)
            }
        };
        match progress {
            Progress::Back => Ok((Step::Settle, Granted::new())),
            // It goes anyway, and its cluster cannot be asked. Only once the chain shows no sign of it: whatever comes
            // next is judged by that, and an old pod that lives on may yet end.
            Progress::Ordered | Progress::Down
                if node.engine == Engine::Unknown
                    && self.is_to_go(name, node)
                    && self.is_seen_silent(name) =>
            {
                Ok((Step::Settle, Granted::new()))
            }
            Progress::Untouched => {
                let wanted = node.inputs == Inputs::Pending && self.goals.of(name) != Goal::Go;
                let check = if wanted { gates().ok() } else { None };
                Ok(check.map_or((Step::Withdraw, Granted::new()), |granted| (end_pod, granted)))
            }
            Progress::Ordered => open(end_pod, gates()),
            // What it needs now is another disk, or another node; the restart has nothing more to give.
            Progress::Down if node.disk_lost || node.replacement != Replacement::No => {
                Ok((Step::Settle, Granted::new()))
            }
            // Nobody waits for an observer that goes.
            Progress::Down if self.goals.of(name) == Goal::Go && self.seats.of(name).is_empty() => {
                Ok((Step::Settle, Granted::new()))
            }
            Progress::Down => {
                // Described anew while it is down: it gets that at once, nobody misses it.
                let anew = node.inputs == Inputs::Pending;
                if anew && self.is_not_back(name, node) {
                    self.check_not_paused()?;
                    self.check_not_held(name)?;
                    check_agents(name, node)?;
                    return Ok((end_pod, Granted::new()));
                }
                for (ledger_name, ledger) in &self.observed.ledgers {
                    check_not_frozen(ledger_name, ledger)?;
                }
                let message = format!("{name} was restarted and does not follow yet");
                if node.engine == Engine::Unknown {
                    let cluster = cluster_in_words(&node.cluster);
                    let message = format!(
                        "{name} was restarted, and the API server of {cluster} cannot be asked whether it is back; if that \
                         cluster is lost, replace the node"
                    );
                    return Err(Closed::wait(Gate::ClusterReachable, message).before(&Step::Settle));
                }
                if node.down_seconds < self.policy.grace_seconds {
                    return Err(Closed::wait(Gate::NodeComesBack, message).before(&Step::Settle));
                }
                let message = format!(
                    "{message}, for {} s; see its own condition, and correct or revert its description",
                    node.down_seconds
                );
                Err(Closed::stuck(Gate::NodeComesBack, message).before(&Step::Settle))
            }
        }
    }

    /// The user has it replaced, or the description has no place for it any more.
    fn is_to_go(&self, name: &NodeName, node: &Node) -> bool {
        node.replacement != Replacement::No || self.goals.of(name) == Goal::Go
    }

    /// All ledgers are seen, and none shows its signatures.
    fn is_seen_silent(&self, name: &NodeName) -> bool {
        let fresh = self.observed.ledgers.values().all(|ledger| is_fresh(ledger, self.policy));
        fresh && self.check_all_ledgers_seen().is_ok() && !self.seats.is_live(name)
    }

    // --- repair ---------------------------------------------------------------------------------------

    /// Restarts a node that is proved down and does not come back by itself, or gets another description. No
    /// gate of quorum or blocks stands before it: it is what a stalled chain waits for, and nothing is lost
    /// by it. One at a time, once for each description. `later`: cures that are not due yet; what they hold up
    /// says more about why nothing happens.
    fn cure(&self, closed: &mut Vec<Closed>, later: &mut Vec<Closed>) -> Option<Open> {
        let nodes = &self.observed.nodes;
        let votes = |name: &NodeName| !self.seats.of(name).is_empty();
        // One in a cluster that cannot be asked may be back, or never be: it holds up nobody else's.
        let trying: Vec<_> = nodes
            .iter()
            .filter(|(name, node)| {
                node.cure == Cure::Trying
                    && node.engine != Engine::Unknown
                    && !self.seats.is_live(name)
            })
            .map(|(name, _)| name)
            .collect();
        if let Some(name) = trying.first() {
            let message = format!("{name} was restarted as a cure and is not back yet");
            closed.push(Closed::wait(Gate::NodeComesBack, message));
        }
        // One at a time; no observer stands before a voter.
        let has_turn = |name: &NodeName| {
            trying.is_empty() || (votes(name) && !trying.iter().any(|other| votes(other)))
        };
        let mut down: Vec<_> = nodes
            .iter()
            .filter(|(name, node)| {
                (self.is_down(name, node) || self.is_unheard(name, node))
                    && Some(*name) != self.restarting()
                    && matches!(node.cure, Cure::Untried | Cure::Ordered)
                    && !node.disk_lost
                    && has_turn(name)
            })
            .collect();
        // What was begun first; then who gets another description, the likeliest to recover.
        down.sort_by_key(|(name, node)| {
            (node.cure != Cure::Ordered, !votes(name), node.inputs == Inputs::Current)
        });
        for (name, node) in down {
            let step = Step::Cure { node: name.clone() };
            // Its kubelet starts it again by itself, at first.
            let due = node.inputs == Inputs::Pending
                || node.cure == Cure::Ordered
                || node.down_seconds >= self.policy.cure_seconds;
            if !due {
                let after = self.policy.cure_seconds;
                let message = format!("{name} is down; it is restarted when that lasts {after} s");
                later.push(Closed::wait(Gate::NodeWorks, message).before(&step));
                continue;
            }
            let check = self.check_cure(name, node).map(|()| Granted::new());
            if let Some(open) = open_or(closed, step, check) {
                return Some(open);
            }
        }
        None
    }

    /// A node is proved down: its own API server says so, and no ledger shows a sign of it. Or it was told to make no
    /// block any more.
    pub(super) fn is_down(&self, name: &NodeName, node: &Node) -> bool {
        match node.engine {
            // What was last seen of its pod is old news.
            Engine::Unknown => return false,
            _ if node.halted => return true,
            Engine::Ready => return false,
            Engine::NotReady => {}
        }
        if !self.seats.of(name).is_empty() {
            return self.seats.is_down(name);
        }
        self.observed.ledgers.values().all(|ledger| {
            let follower = ledger.followers.get(name);
            is_fresh(ledger, self.policy) && follower.is_none_or(|follower| !follower.connected)
        })
    }

    /// A node that does not run is described anew, and nobody of ours has told of a member of its ledgers: the first node
    /// that joins a chain of others. No evidence can come before it runs, so none is waited for.
    fn is_unheard(&self, name: &NodeName, node: &Node) -> bool {
        let silent = |ledger: &Ledger| {
            let follower = ledger.followers.get(name);
            ledger.members.is_empty() && follower.is_none_or(|follower| follower.lag == SILENT)
        };
        let described_anew = node.engine == Engine::NotReady && node.inputs == Inputs::Pending;
        described_anew && self.observed.ledgers.values().all(silent)
    }

    /// A node that was restarted does nothing for its ledgers yet, by what is seen of it.
    fn is_not_back(&self, name: &NodeName, node: &Node) -> bool {
        match node.engine {
            Engine::Unknown => false,
            Engine::NotReady => !self.seats.is_live(name),
            Engine::Ready if self.check_all_ledgers_seen().is_err() => false,
            // It runs, and that is all.
            Engine::Ready => self.observed.ledgers.iter().all(|(ledger_name, ledger)| {
                let follower = ledger.followers.get(name);
                let idle = match self.seats.on(name, ledger_name) {
                    Some(seat) => seat.liveness == Liveness::Unknown,
                    None => follower.is_none_or(|one| one.lag > self.policy.max_lag_blocks),
                };
                is_fresh(ledger, self.policy) && ledger.head == Head::Producing && idle
            }),
        }
    }

    /// The node whose restart was begun.
    fn restarting(&self) -> Option<&'a NodeName> {
        match &self.observed.begun {
            Some(Begun::Restart { node, .. }) => Some(node),
            _ => None,
        }
    }

    fn check_cure(&self, name: &NodeName, node: &Node) -> Check {
        self.check_not_paused()?;
        self.check_not_held(name)?;
        check_reachable(name, node)?;
        check_agents(name, node)?;
        for (ledger_name, ledger) in &self.observed.ledgers {
            check_not_frozen(ledger_name, ledger)?;
        }
        Ok(())
    }

    /// Records that a node is to be replaced: its user asked for it, or it is dead and the policy says so.
    /// Of the dead, one at a time.
    fn condemn(&self, closed: &mut Vec<Closed>) -> Option<Open> {
        let nodes = &self.observed.nodes;
        let under_way = nodes.iter().any(|(name, node)| {
            node.replacement == Replacement::Recorded && !self.seats.of(name).is_empty()
        });
        let asked = nodes.iter().find(|(_, node)| node.replacement == Replacement::Asked);
        let dead = nodes.iter().find(|(name, node)| {
            self.policy.replace_dead
                && !under_way
                && node.replacement == Replacement::No
                && self.is_down(name, node)
                && is_beyond_cure(node)
                && node.down_seconds >= self.policy.grace_seconds
                && self.goals.of(name) != Goal::Go
        });
        let (name, _) = asked.or(dead)?;
        let step = Step::Condemn { node: name.clone() };
        let check = self.check_not_paused().and_then(|()| self.check_not_held(name));
        open_or(closed, step, check.map(|()| Granted::new()))
    }

    /// Nodes that are down and that nothing above will mend.
    fn broken(&self) -> Option<Closed> {
        for (name, ledger) in &self.observed.ledgers {
            if let Err(closed) = check_not_frozen(name, ledger) {
                return Some(closed);
            }
            if let Some(closed) = self.standing(name, ledger) {
                return Some(closed);
            }
            if ledger.head == Head::Standing {
                return Some(self.without_blocks(name, ledger));
            }
        }
        let mute = self.observed.nodes.iter().find(|(name, node)| {
            let silent = |seat: &Seat<'_>| {
                let ledger = &self.observed.ledgers[seat.ledger];
                seat.liveness == Liveness::Unknown
                    && is_fresh(ledger, self.policy)
                    && ledger.head == Head::Producing
            };
            node.engine == Engine::Ready
                && node.down_seconds >= self.policy.grace_seconds
                && self.seats.of(name).iter().any(silent)
        });
        if let Some((name, node)) = mute {
            let message = format!(
                "{name} is ready and has not signed for {} s; find out why, then restart or replace it",
                node.down_seconds
            );
            return Some(Closed::stuck(Gate::NodeWorks, message));
        }
        let (name, node) = self.observed.nodes.iter().find(|(name, node)| {
            self.is_down(name, node)
                && is_beyond_cure(node)
                && self.goals.of(name) != Goal::Go
                && Some(*name) != self.restarting()
        })?;
        let grace = self.policy.grace_seconds;
        if self.policy.replace_dead && node.down_seconds < grace && !node.held {
            let message = format!("{name} is down; it is replaced when that lasts {grace} s");
            return Some(Closed::wait(Gate::NodeWorks, message));
        }
        let message = format!(
            "{name} is down, and a restart cannot help or did not; restore its volume, correct its description, or replace it"
        );
        Some(Closed::stuck(Gate::NodeWorks, message))
    }

    // --- nodes ----------------------------------------------------------------------------------------

    /// Stops nodes that go and that no ledger counts any more.
    fn retire(&self, closed: &mut Vec<Closed>) -> Option<Open> {
        for name in self.observed.nodes.keys() {
            if self.goals.of(name) != Goal::Go || !self.seats.of(name).is_empty() {
                continue;
            }
            let step = Step::Retire { node: name.clone() };
            let check = self.check_retire(name).map(|()| Granted::new());
            if let Some(open) = open_or(closed, step, check) {
                return Some(open);
            }
        }
        None
    }

    /// Makes the nodes that are missing; until they are added to a ledger they only observe.
    fn provision(&self, closed: &mut Vec<Closed>) -> Option<Open> {
        let (set, _) = self.goals.missing.first()?;
        let step = Step::Provision { set: set.name.clone() };
        open_or(closed, step, self.check_not_paused().map(|()| Granted::new()))
    }

    // --- members --------------------------------------------------------------------------------------

    /// Changes that repair: dead voters go, and what takes their place comes, in the safer order; newcomers
    /// that entered are raised, or taken out again if they never sign.
    fn replace(&self, closed: &mut Vec<Closed>) -> Option<Open> {
        for (name, ledger) in &self.observed.ledgers {
            let changes = self.changes(name, ledger);
            let mends = |change: &&Change| match change {
                Change::Remove { member } => {
                    liveness(ledger, member, self.policy) != Liveness::Live
                }
                Change::SetPower { member, power } => {
                    let member = &ledger.members[member];
                    member.power < *power
                        && member.node.as_ref().is_some_and(|n| self.is_entering(n, member, *power))
                }
                Change::Add { .. } => false,
            };
            let dead = changes.iter().find(|change| mends(change) && is_removal(change));
            let add = changes.iter().find(|change| matches!(change, Change::Add { .. }));
            let mut first: Vec<&Change> = changes.iter().filter(mends).collect();
            if let (Some(dead), Some(add)) = (dead, add)
                && self.score(name, ledger, [add, dead]) > self.score(name, ledger, [dead, add])
            {
                first.insert(0, add);
            }
            if let Some(open) = self.first_open(name, first, closed) {
                return Some(open);
            }
        }
        None
    }

    /// Brings every ledger's members to what is described.
    fn scale(&self, closed: &mut Vec<Closed>) -> Option<Open> {
        for (name, ledger) in &self.observed.ledgers {
            // Between a newcomer's entry and its full power the ledger is at rest; only repairs go first.
            let enters = ledger.members.values().any(|member| {
                let node = member.node.as_ref();
                node.and_then(|node| Some((node, self.goals.power(node, name)?)))
                    .is_some_and(|(node, power)| self.is_entering(node, member, power))
            });
            if enters {
                continue;
            }
            let changes = self.changes(name, ledger);
            if let Some(open) = self.first_open(name, &changes, closed) {
                return Some(open);
            }
        }
        None
    }

    fn first_open<'c>(
        &self,
        ledger: &'a LedgerName,
        changes: impl IntoIterator<Item = &'c Change>,
        closed: &mut Vec<Closed>,
    ) -> Option<Open> {
        changes.into_iter().find_map(|change| {
            let step = Step::BeginChange { ledger: ledger.clone(), change: change.clone() };
            open_or(closed, step, self.check_change(ledger, change).map(|_| Granted::new()))
        })
    }

    /// What a ledger's members lack: powers of newcomers, then additions, then removals (who is not seen to
    /// sign first, then the newest), then other powers.
    fn changes(&self, name: &'a LedgerName, ledger: &'a Ledger) -> Vec<Change> {
        let (mut raises, mut adds, mut removes, mut powers) = (vec![], vec![], vec![], vec![]);
        for (key, member) in &ledger.members {
            // Foreign members are never touched.
            let Some(node) = &member.node else { continue };
            let known = self.observed.nodes.get(node);
            let seat = self.seats.on(node, name);
            let failed =
                known.zip(seat).is_some_and(|(known, seat)| self.is_failed_entry(&seat, known));
            match self.goals.power(node, name) {
                Some(power) if !failed => {
                    let change = Change::SetPower { member: key.clone(), power };
                    let list = if power > member.power { &mut raises } else { &mut powers };
                    if power != member.power && ledger.weights {
                        list.push(change);
                    }
                }
                _ => removes.push((key, node)),
            }
        }
        let now = Projection::of(ledger, self.policy);
        for node in self.observed.nodes.keys() {
            let Some(target) = self.goals.power(node, name) else { continue };
            if self.seats.on(node, name).is_some() {
                continue;
            }
            let entry = if ledger.weights { now.entry_power(target) } else { None };
            // The smallest there is, where quorum needs even that.
            let least = if ledger.weights { 1 } else { target };
            adds.push(Change::Add { node: node.clone(), power: entry.unwrap_or(least) });
        }
        removes.sort_by_key(|(key, node)| {
            let live = liveness(ledger, key, self.policy) == Liveness::Live;
            (live, std::cmp::Reverse(super::goals::index(node)))
        });
        let remove = |(key, _): (&MemberKey, &NodeName)| Change::Remove { member: key.clone() };
        raises.extend(adds);
        raises.extend(removes.into_iter().map(remove));
        raises.extend(powers);
        raises
    }

    /// How good an order of changes is: the smallest number of voters to spare in any state on the way, with
    /// newcomers live, then with newcomers failed. Quorum lost counts below zero.
    pub(super) fn score(&self, name: &str, ledger: &Ledger, order: [&Change; 2]) -> [i64; 2] {
        [true, false].map(|newcomer_live| {
            let mut state = Projection::of(ledger, self.policy);
            let mut worst = i64::MAX;
            for change in order {
                let target = match change {
                    Change::Add { node, .. } => self.goals.power(node, name),
                    _ => None,
                };
                // It is raised before anything else happens.
                let change = match (change, target) {
                    (Change::Add { node, .. }, Some(power)) => {
                        Change::Add { node: node.clone(), power }
                    }
                    (change, _) => change.clone(),
                };
                state = state.with(&change, newcomer_live);
                let spare = state.spare().and_then(|spare| i64::try_from(spare).ok());
                worst = worst.min(spare.unwrap_or(-1));
            }
            worst
        })
    }

    // --- roll -----------------------------------------------------------------------------------------

    /// Restarts nodes that do not run what is described: unready ones first, then observers, then voters. Those in
    /// clusters that cannot be asked wait, and hold up nobody else.
    fn roll(&self, closed: &mut Vec<Closed>) -> Option<Open> {
        let mut pending: Vec<_> = self
            .observed
            .nodes
            .iter()
            .filter(|(name, node)| {
                node.inputs == Inputs::Pending
                    && self.goals.of(name) != Goal::Go
                    // Those are cured, not rolled.
                    && !self.is_down(name, node)
            })
            .collect();
        pending.sort_by_key(|(name, node)| {
            let votes = !self.seats.of(name).is_empty();
            (node.engine == Engine::Unknown, node.engine != Engine::NotReady, votes, *name)
        });
        for (name, node) in pending {
            let step = Step::BeginRestart { node: name.clone() };
            if let Some(open) =
                open_or(closed, step, self.check_restart(name, node).map(|_| Granted::new()))
            {
                return Some(open);
            }
        }
        None
    }
}

fn is_removal(change: &Change) -> bool {
    matches!(change, Change::Remove { .. })
}

fn decision((step, consents): Open) -> Decision {
    Decision::Step { step, consents }
}

/// The step, if its gates are open; why not, and that it is this one, else.
pub(super) fn open(step: Step, check: Check<Granted>) -> Check<Open> {
    match check {
        Ok(granted) => Ok((step, granted)),
        Err(why) => Err(why.before(&step)),
    }
}

/// The same; why not goes to the others.
pub(super) fn open_or(closed: &mut Vec<Closed>, step: Step, check: Check<Granted>) -> Option<Open> {
    open(step, check).map_err(|why| closed.push(why)).ok()
}
