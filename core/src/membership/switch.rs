//! A switch of all nodes to another application after one block, where the old and the new one make different
//! blocks: as one step, since the nodes of such a chain can't be restarted with it one by one.
//!
//! 1. **Begin**: a block is chosen, far enough ahead.
//! 2. **Halt**: one by one, nodes are restarted with the old application told to make no block after that one. If
//!    that block comes too near before all are told, it is given up: those that were told are restarted as before
//!    (a roll, with the roll's gates), and another block is chosen.
//! 3. The block is made, and none after it: proved by every node.
//! 4. **Switch** one node, the one whose loss costs least, and see it run for a while. Then all others, together.
//! 5. **Settle** when three more blocks were made.
//!
//! Before the ledger is halted it can be taken back by taking back the description; after that, too, as long as
//! no second node was switched: then all nodes go on with the old application, which is what is described. A new
//! application that does not start has harmed one node, which gets another one as soon as that is described. From
//! the second node on all get what the first one has, and what was described meanwhile comes by another switch:
//! nodes with different applications must not make a block together.

use super::gates::{Granted, check_agents, check_reachable};
use super::model::{Begun, Engine, Gate, Head, Inputs, Ledger, LedgerName, Node, Stand, Step};
use super::planner::{Open, Planner, open, open_or};
use super::refusal::{Check, Closed, gate};
use crate::names::{NodeName, cluster_in_words};

/// Blocks after the switch that prove it.
const PROOF: u64 = 3;

impl<'a> Planner<'a> {
    /// Another application is described, and not all nodes have it.
    pub(super) fn wants_switch(&self) -> bool {
        self.observed.nodes.values().any(|node| node.inputs == Inputs::Switch)
    }

    /// All nodes stand, or are about to, since they were told to.
    pub(super) fn is_halting(&self) -> bool {
        let Some(Begun::Switch { ledger, height }) = &self.observed.begun else { return false };
        let reached = self.observed.ledgers.get(ledger).is_some_and(|one| one.height >= *height);
        reached || self.observed.nodes.values().any(|node| node.stand.is_new())
    }

    pub(super) fn begin_switch(&self, closed: &mut Vec<Closed>) -> Option<Open> {
        let (name, ledger) = self.observed.ledgers.iter().next()?;
        let height = ledger.height.saturating_add(self.policy.switch_lead);
        let step = Step::BeginSwitch { ledger: name.clone(), height };
        open_or(closed, step, self.check_begin_switch(name, ledger))
    }

    fn check_begin_switch(&self, name: &'a LedgerName, ledger: &'a Ledger) -> Check<Granted> {
        self.check_not_paused()?;
        for (name, node) in &self.observed.nodes {
            self.check_not_held(name)?;
            check_reachable(name, node)?;
            // Before the chain is halted: then it is too late to wait for them.
            check_agents(name, node)?;
        }
        self.check_at_rest(name, ledger)?;
        let foreign = ledger.members.values().any(|member| member.node.is_none());
        gate(Gate::AllHaltTogether, !foreign, |g| {
            let what = "has voters of another owner, whom nobody here can halt";
            let how =
                "agree on a block with them, and use an application that changes by itself there";
            Closed::stuck(g, format!("ledger {name} {what}; {how}"))
        })?;
        let pending = self.observed.nodes.iter().find(|(_, node)| node.inputs == Inputs::Pending);
        gate(Gate::AllHaltTogether, pending.is_none(), |g| {
            let who = pending.map(|(name, _)| name.as_str()).unwrap_or_default();
            Closed::wait(g, format!("{who} has to be restarted first"))
        })?;
        self.check_live(name, ledger, "switch", |_, _| false)
    }

    pub(super) fn settle_switch(&self, name: &'a LedgerName, height: u64) -> Check<Open> {
        let Some(ledger) = self.observed.ledgers.get(name) else {
            let message = format!("ledger {name} is not seen");
            return Err(Closed::wait(Gate::EvidenceIsFresh, message).before(&Step::Settle));
        };
        self.check_evidence(name, ledger)?;
        if ledger.head == Head::Unknown {
            return Err(self.without_blocks(name, ledger).before(&Step::Settle));
        }
        if self.observed.nodes.values().any(|node| node.stand.is_new()) {
            return self.go_on(ledger, height);
        }
        // Too few were halted, and the others went on.
        if ledger.height > height {
            return Ok((Step::Settle, Granted::new()));
        }
        let stands = ledger.height == height && ledger.head != Head::Producing;
        // Of one that does not run it is enough that it can only come back halted.
        let halts = |node: &Node| match node.stand {
            Stand::Halts => true,
            Stand::HaltDown => stands && node.engine == Engine::NotReady,
            _ => false,
        };
        let all_halt = self.observed.nodes.values().all(halts);
        if stands && all_halt {
            return self.go_on(ledger, height);
        }
        if ledger.height < height {
            let left = height - ledger.height;
            let too_near = !all_halt && left < self.policy.switch_lead / 3;
            if !self.wants_switch() || too_near {
                return Ok((Step::Settle, Granted::new()));
            }
            if all_halt {
                let message = format!("all nodes halt at block {height}, in {left} blocks");
                return Err(Closed::wait(Gate::AllHaltTogether, message).before(&Step::Settle));
            }
        }
        self.halt_next(height, stands)
    }

    /// Tells the next node to halt.
    fn halt_next(&self, height: u64, stands: bool) -> Check<Open> {
        let nodes = &self.observed.nodes;
        if let Some((name, node)) = nodes.iter().find(|(_, node)| node.stand == Stand::HaltDown) {
            let message =
                format!("{name} was told to halt at block {height} and does not follow yet");
            return Err(self.not_back(node, &message));
        }
        let mut old: Vec<_> =
            nodes.iter().filter(|(_, node)| node.stand < Stand::HaltDown).collect();
        old.sort_by_key(|(name, node)| {
            let votes = !self.seats.of(name).is_empty();
            let unknown = node.engine == Engine::Unknown;
            (unknown, node.stand == Stand::Old, node.engine != Engine::NotReady, votes, *name)
        });
        let Some((name, node)) = old.first().copied() else {
            let message = format!("block {height} was made; it is seen whether another one is");
            return Err(Closed::wait(Gate::AllHaltTogether, message).before(&Step::Settle));
        };
        let step = Step::Halt { node: name.clone() };
        // While nothing is made, and of who is down already, nobody misses anything.
        let check = if stands || self.is_down(name, node) {
            self.check_not_paused()
                .and_then(|()| self.check_not_held(name))
                .and_then(|()| check_reachable(name, node))
                .map(|()| Granted::new())
        } else {
            self.check_restart(name, node)
        };
        open(step, check)
    }

    /// The ledger is halted: the new application comes, to one node first.
    fn go_on(&self, ledger: &Ledger, height: u64) -> Check<Open> {
        let nodes = &self.observed.nodes;
        let restart = |name: &NodeName, node: &Node, anew| {
            let step = Step::Switch { node: name.clone(), anew };
            let check = self
                .check_not_held(name)
                .and_then(|()| check_reachable(name, node))
                .and_then(|()| check_agents(name, node));
            open(step, check.map(|()| Granted::new()))
        };
        let switch = |(name, node): (&NodeName, &Node)| restart(name, node, false);
        let unknown = |node: &Node| node.engine == Engine::Unknown;
        let mut new = nodes.iter().filter(|(_, node)| node.stand.is_new());
        let Some((first, node)) = new.next() else {
            let power = |name: &NodeName| -> u64 {
                self.seats.of(name).iter().map(|seat| seat.member.power).sum()
            };
            let first = nodes.iter().min_by_key(|(name, node)| (unknown(node), power(name), *name));
            return first.map_or(Ok((Step::Settle, Granted::new())), switch);
        };
        let alone = new.next().is_none() && nodes.len() > 1 && ledger.height == height;
        if alone && (node.stand != Stand::New || node.back_seconds < self.policy.proved_seconds) {
            let for_seconds = self.policy.proved_seconds;
            let message = match node.stand {
                Stand::NewOrdered => return switch((first, node)),
                Stand::New => {
                    let message = format!(
                        "{first} runs with the new application; the others follow when it has for {for_seconds} s"
                    );
                    return Err(Closed::wait(Gate::NodeComesBack, message).before(&Step::Settle));
                }
                _ => format!("{first} was restarted with the new application and is not back yet"),
            };
            return Err(self.not_back(node, &message));
        }
        let behind = nodes.iter().filter(|(_, node)| node.stand <= Stand::NewOrdered);
        if let Some(next) = behind.min_by_key(|(_, node)| unknown(node)) {
            return switch(next);
        }
        if ledger.head == Head::Producing && ledger.height >= height + PROOF {
            return Ok((Step::Settle, Granted::new()));
        }
        let message = format!(
            "all nodes have the new application; done when block {} is made",
            height + PROOF
        );
        // Who is longest down shows for how long nothing has happened.
        let longest = nodes.values().max_by_key(|node| node.down_seconds).unwrap_or(node);
        // It makes none, for long, and another one is described: that is given to all.
        let mut anew = nodes.iter().filter(|(_, node)| node.inputs == Inputs::Switch);
        if let Some((name, node)) = anew.next()
            && ledger.height == height
            && longest.down_seconds >= self.policy.grace_seconds
        {
            return restart(name, node, true);
        }
        Err(self.not_back(longest, &message))
    }

    fn not_back(&self, node: &Node, message: &str) -> Closed {
        if node.engine == Engine::Unknown {
            let cluster = cluster_in_words(&node.cluster);
            let message = format!("{message}; the API server of {cluster} cannot be asked");
            return Closed::wait(Gate::ClusterReachable, message).before(&Step::Settle);
        }
        if node.down_seconds < self.policy.grace_seconds {
            return Closed::wait(Gate::NodeComesBack, message.to_owned()).before(&Step::Settle);
        }
        let message = format!(
            "{message}, for {} s; see the nodes' own conditions, and correct or revert the description",
            node.down_seconds
        );
        Closed::stuck(Gate::NodeComesBack, message).before(&Step::Settle)
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
