//! The gates before a change of members and before a restart, judged on the projected state.

use std::collections::BTreeSet;

use super::goals::{Goal, Seat};
use super::model::{
    Agents, Begun, Change, Engine, Entry, Gate, Head, Inputs, Ledger, LedgerName, Liveness, Member,
};
use super::model::{MemberKey, Node, SILENT};
use super::planner::Planner;
use super::projection::{Projection, is_fresh, liveness};
use super::refusal::{Check, Closed, gate};
use crate::names::{NodeName, cluster_in_words};

/// Consents that gates needed and got.
pub type Granted = BTreeSet<String>;

impl<'a> Planner<'a> {
    /// The user has not paused the network.
    pub(super) fn check_not_paused(&self) -> Check {
        gate(Gate::NotPaused, !self.desired.paused, |g| {
            Closed::wait(g, "spec.paused is set; set it to false to go on")
        })
    }

    /// The operator changes members itself.
    fn check_submits(&self) -> Check {
        gate(Gate::AuthoritySubmits, self.policy.submits, |g| {
            let message = "spec.membership.authority is External, or no transaction is described: the chain's own \
                           governance has to do this; its nodes are ready";
            Closed::wait(g, message)
        })
    }

    /// The user does not hold this node.
    pub(super) fn check_not_held(&self, node: &NodeName) -> Check {
        let held = self.observed.nodes.get(node).is_some_and(|node| node.held);
        gate(Gate::NotHeld, !held, |g| {
            Closed::wait(g, format!("{node} is held; take the hold from it to go on"))
        })
    }

    /// Members and their liveness are known well enough to change something.
    pub(super) fn check_evidence(&self, name: &str, ledger: &Ledger) -> Check {
        let fresh = is_fresh(ledger, self.policy);
        gate(Gate::EvidenceIsFresh, fresh, |g| {
            let why = match ledger.answering() {
                _ if ledger.agreed && !ledger.members.is_empty() => {
                    format!("the newest evidence is {} s old", ledger.age_seconds)
                }
                0 if !ledger.followers.is_empty() => "none of its nodes answers".to_owned(),
                1 if ledger.followers.len() > 1 => "only one of its nodes answers".to_owned(),
                _ if !ledger.followers.is_empty()
                    && !ledger.followers.values().any(|one| one.connected) =>
                {
                    "none of its nodes has caught up with it yet".to_owned()
                }
                _ => "its nodes do not give the same members".to_owned(),
            };
            Closed::wait(g, format!("ledger {name}: {why}"))
        })
    }

    /// The ledger is at rest: it makes blocks, and nobody else changes its members.
    pub(super) fn check_at_rest(&self, name: &LedgerName, ledger: &Ledger) -> Check {
        self.check_evidence(name, ledger)?;
        check_not_frozen(name, ledger)?;
        gate(Gate::ChainIsProducing, ledger.head == Head::Producing, |_| {
            self.standing(name, ledger).unwrap_or_else(|| self.without_blocks(name, ledger))
        })?;
        check_nothing_pending(name, ledger)
    }

    /// Why a standing ledger cannot go on without a person, if so: too much power is down for good.
    pub(super) fn standing(&self, name: &str, ledger: &Ledger) -> Option<Closed> {
        // Of a chain that others made, nothing may have been heard yet.
        if ledger.members.is_empty() {
            return None;
        }
        let mut lost = Vec::new();
        let mut left = 0;
        for (key, member) in &ledger.members {
            let down = liveness(ledger, key, self.policy) == Liveness::ProvedDown;
            let node = member.node.as_ref().and_then(|node| self.observed.nodes.get(node));
            if down && node.is_none_or(is_beyond_cure) {
                lost.push(name_of(key, member));
            } else {
                left += member.power;
            }
        }
        let projection = Projection::of(ledger, self.policy);
        let needed = projection.needed();
        (ledger.head == Head::Standing && left < needed).then(|| {
            let message = format!(
                "ledger {name} has lost its quorum: {left} of {} power is left and {needed} is needed; bring back \
                 {} power of {}: restore volumes, or correct the configuration",
                projection.total(),
                needed - left,
                lost.join(", ")
            );
            Closed::stuck(Gate::NodeWorks, message)
        })
    }

    /// Why nothing is changed on a ledger that is not seen to make blocks.
    pub(super) fn without_blocks(&self, name: &str, ledger: &Ledger) -> Closed {
        let wait = |gate, what: &str| Closed::wait(gate, format!("ledger {name} {what}"));
        if ledger.head == Head::Unknown {
            let what = "has not been watched for long enough to say whether it makes blocks";
            return wait(Gate::ChainIsProducing, what);
        }
        // It counts as standing, so that cures are not held up; it may as well be the way to its nodes.
        if ledger.answering() == 0 && !ledger.followers.is_empty() {
            let what = "may make blocks or not: none of its nodes answers";
            return wait(Gate::EvidenceIsFresh, what);
        }
        let now = Projection::of(ledger, self.policy);
        let silent = ledger.members.iter().filter(|(key, member)| {
            member.node.is_some() && liveness(ledger, key, self.policy) != Liveness::Live
        });
        let silent: Vec<&str> = silent.map(|(key, member)| name_of(key, member)).collect();
        let unasked = self.unasked(&silent);
        if unasked.is_empty() || now.has_quorum() {
            return wait(Gate::ChainIsProducing, "makes no blocks; it waits for its voters");
        }
        let (live, total, needed) = (now.live(), now.total(), now.needed());
        let what = format!(
            "makes no blocks: {live} of {total} power is seen and {needed} is needed, so no voter can be replaced either; \
             it waits for {}{unasked}",
            silent.join(", ")
        );
        wait(Gate::ChainIsProducing, &what)
    }

    /// Whether a person gave this consent, now or when the step that is under way was done.
    fn is_given(&self, consent: &str) -> bool {
        let used = match &self.observed.begun {
            Some(Begun::Restart { consents, .. }) => consents.contains(consent),
            _ => false,
        };
        used || self.policy.consents.contains(consent)
    }

    /// Every ledger the description names is seen. One that is not says nothing about who votes there.
    pub(super) fn check_all_ledgers_seen(&self) -> Check {
        let mut named = self.desired.sets.iter().flat_map(|set| &set.votes_on);
        let unseen = named.find(|ledger| !self.observed.ledgers.contains_key(*ledger));
        gate(Gate::EvidenceIsFresh, unseen.is_none(), |g| {
            let ledger = unseen.map(String::as_str).unwrap_or_default();
            Closed::wait(g, format!("nothing is known of ledger {ledger}"))
        })
    }

    /// May this change be begun, or sent, now?
    pub(super) fn check_change(&self, name: &'a LedgerName, change: &Change) -> Check<Granted> {
        self.check_not_paused()?;
        self.check_submits()?;
        let ledger = &self.observed.ledgers[name];
        self.check_at_rest(name, ledger)?;
        let node = match change {
            Change::Add { node, .. } => Some(node),
            Change::SetPower { member, .. } | Change::Remove { member } => {
                ledger.members.get(member).and_then(|member| member.node.as_ref())
            }
        };
        if let Some(node) = node {
            self.check_not_held(node)?;
        }
        // Taking out a voter that is not seen to sign gives the others more room, never less.
        let repairs = matches!(change, Change::Remove { member }
            if liveness(ledger, member, self.policy) != Liveness::Live);
        let granted =
            if repairs { Granted::new() } else { self.check_others_healthy(name, ledger, change)? };
        let now = Projection::of(ledger, self.policy);
        match change {
            Change::Add { node, .. } => {
                self.check_caught_up(name, ledger, node)?;
                check_newcomer_counts_as_failed(name, &now, change)?;
            }
            Change::SetPower { member, power } => {
                let raised = ledger.members.get(member).is_some_and(|old| old.power < *power);
                if raised {
                    self.check_signs(ledger, member)?;
                }
                check_quorum_after(name, &now.with(change, true))?;
            }
            Change::Remove { .. } => {
                let after = now.with(change, true);
                gate(Gate::NotTheLastVoter, after.count() > 0, |g| {
                    let successor = self.observed.nodes.keys().any(|node| {
                        self.goals.power(node, name).is_some()
                            && self.seats.on(node, name).is_none()
                    });
                    if successor {
                        let what = "has no other voter yet; one that is to vote has to enter first";
                        return Closed::wait(g, format!("ledger {name} {what}"));
                    }
                    let what = "would have no voter left and could never go on; keep one";
                    Closed::stuck(g, format!("ledger {name} {what}"))
                })?;
                check_quorum_after(name, &after)?;
                if !repairs {
                    self.check_successor_first(name, ledger, change)?;
                }
            }
        }
        Ok(granted)
    }

    /// Whoever takes a living voter's place enters first, if that leaves as much to spare.
    fn check_successor_first(&self, name: &LedgerName, ledger: &Ledger, removal: &Change) -> Check {
        let successor = self.observed.nodes.keys().find(|node| {
            let Some(power) = self.goals.power(node, name) else { return false };
            if let Some(seat) = self.seats.on(node, name) {
                return self.is_entering(node, seat.member, power);
            }
            let add = Change::Add { node: (*node).clone(), power };
            self.score(name, ledger, [&add, removal]) >= self.score(name, ledger, [removal, &add])
        });
        gate(Gate::CaughtUp, successor.is_none(), |g| {
            let who = successor.map(NodeName::as_str).unwrap_or_default();
            Closed::wait(g, format!("ledger {name}: {who} is to vote first, with its full power"))
        })
    }

    /// All other voters are seen to sign. Exempt: whom this change is about, if it is taken out or made
    /// weaker, and dead ones that are being replaced.
    fn check_others_healthy(
        &self,
        name: &LedgerName,
        ledger: &Ledger,
        change: &Change,
    ) -> Check<Granted> {
        let exempt = |key: &MemberKey, member: &Member| {
            let subject = match change {
                Change::Remove { member } => member == key,
                Change::SetPower { member: subject, power } => {
                    subject == key && *power < member.power
                }
                Change::Add { .. } => false,
            };
            let replaced = member.node.as_ref().is_some_and(|node| self.goals.of(node) == Goal::Go)
                && liveness(ledger, key, self.policy) == Liveness::ProvedDown;
            subject || replaced
        };
        self.check_live(name, ledger, &slug_of(change), exempt)
    }

    pub(super) fn check_live(
        &self,
        name: &LedgerName,
        ledger: &Ledger,
        step: &str,
        exempt: impl Fn(&MemberKey, &Member) -> bool,
    ) -> Check<Granted> {
        let (mut own, mut foreign) = (Vec::new(), Vec::new());
        for (key, member) in &ledger.members {
            if liveness(ledger, key, self.policy) == Liveness::Live || exempt(key, member) {
                continue;
            }
            let list = if member.node.is_some() { &mut own } else { &mut foreign };
            list.push(name_of(key, member));
        }
        gate(Gate::OthersHealthy, own.is_empty(), |g| {
            let who = own.join(", ");
            let message = format!("ledger {name}: {who} not seen to sign; it has to recover first");
            Closed::wait(g, message + &self.unasked(&own))
        })?;
        // Another owner's voter that is gone must not hold this network for ever: a consent for each.
        let mut granted = Granted::new();
        for who in foreign {
            let consent = format!("despite-silent/{name}/{who}/{step}");
            gate(Gate::OthersHealthy, self.is_given(&consent), |g| {
                let message = format!("ledger {name}: {who} of another owner not seen to sign");
                Closed::consent(g, message, consent.clone())
            })?;
            granted.insert(consent);
        }
        Ok(granted)
    }

    /// Clusters of these nodes that cannot be asked, for people: there lies the cause, or the way to it.
    fn unasked(&self, names: &[&str]) -> String {
        let nodes = &self.observed.nodes;
        let unknown = nodes
            .iter()
            .filter(|(name, node)| node.engine == Engine::Unknown && names.contains(&name.as_str()))
            .map(|(_, node)| cluster_in_words(&node.cluster));
        let clusters: BTreeSet<String> = unknown.collect();
        if clusters.is_empty() {
            return String::new();
        }
        let clusters: Vec<String> = clusters.into_iter().collect();
        format!(", and the API server of {} cannot be asked", clusters.join(", "))
    }

    /// A newcomer follows the ledger for a while, from a node that can start again.
    fn check_caught_up(&self, name: &str, ledger: &Ledger, node: &NodeName) -> Check {
        let known = self.observed.nodes.get(node);
        gate(Gate::NodeWorks, known.is_some_and(|known| !known.disk_lost), |g| {
            Closed::stuck(g, format!("{node} has no usable disk; see its own condition"))
        })?;
        gate(Gate::NewcomerSigns, known.is_some_and(|known| known.entry != Entry::Failed), |g| {
            let what = "voted once and never signed; find out why, then replace it";
            Closed::stuck(g, format!("{node} {what}"))
        })?;
        let policy = self.policy;
        let caught_up = ledger.followers.get(node).is_some_and(|follower| {
            follower.lag <= policy.max_lag_blocks
                && follower.steady_seconds >= policy.stable_seconds
                && follower.connected
        });
        gate(Gate::CaughtUp, caught_up, |g| {
            let message = format!(
                "{node} does not follow ledger {name} yet: at most {} blocks behind for {} s, and connected",
                policy.max_lag_blocks, policy.stable_seconds
            );
            Closed::wait(g, message)
        })
    }

    /// A voter signs almost every block: it may be given more power.
    fn check_signs(&self, ledger: &Ledger, key: &MemberKey) -> Check {
        let member = ledger.members.get(key);
        let signed = member.map_or(0, |member| member.signed);
        let live = liveness(ledger, key, self.policy) == Liveness::Live;
        gate(Gate::NewcomerSigns, live && signed >= self.policy.signed_of_window, |g| {
            let (who, wanted) =
                (member.map_or(key.as_str(), |m| name_of(key, m)), self.policy.signed_of_window);
            Closed::wait(
                g,
                format!("{who} signed {signed} of the last 12 blocks; {wanted} are needed"),
            )
        })
    }

    /// May this node restart now?
    pub(super) fn check_restart(&self, name: &'a NodeName, node: &Node) -> Check<Granted> {
        self.check_not_paused()?;
        self.check_not_held(name)?;
        self.check_all_ledgers_seen()?;
        check_reachable(name, node)?;
        check_agents(name, node)?;
        let mut granted = Granted::new();
        for (ledger_name, ledger) in &self.observed.ledgers {
            let seat = self.seats.on(name, ledger_name);
            if seat.is_none() && !ledger.followers.contains_key(name) {
                continue;
            }
            self.check_at_rest(ledger_name, ledger)?;
            self.check_others_follow(ledger_name, ledger, name)?;
            if seat.is_some() {
                let exempt = |_: &MemberKey, member: &Member| member.node.as_ref() == Some(name);
                let slug = format!("restart/{name}/{}", node.described);
                granted.extend(self.check_live(ledger_name, ledger, &slug, exempt)?);
                granted.extend(self.check_quorum_during(name, node, ledger_name, ledger)?);
            }
        }
        Ok(granted)
    }

    /// Nodes that do not restart follow the ledger: one bad configuration must not take one node after
    /// the other.
    fn check_others_follow(&self, name: &str, ledger: &Ledger, restarting: &NodeName) -> Check {
        let behind: Vec<&str> = self
            .observed
            .nodes
            .iter()
            .filter(|(other, node)| {
                let follower = ledger.followers.get(*other);
                *other != restarting
                    && !self.is_out_of_sight(other, node, name, ledger)
                    // Whoever has to restart anyway is mended by that.
                    && !(node.inputs == Inputs::Pending && node.engine == Engine::NotReady)
                    && self.goals.of(other) != Goal::Go
                    && follower.is_some_and(|f| f.lag > self.policy.max_lag_blocks)
            })
            .map(|(other, _)| other.as_str())
            .collect();
        gate(Gate::OthersHealthy, behind.is_empty(), |g| {
            let who = behind.join(", ");
            Closed::wait(
                g,
                format!("ledger {name}: {who} does not follow; it has to recover first"),
            )
        })
    }

    /// Nothing can be asked about this node, and that is no evidence: an observer counts for nothing, and of a voter
    /// the others see that it signs.
    fn is_out_of_sight(&self, node: &NodeName, known: &Node, name: &str, ledger: &Ledger) -> bool {
        let seat = self.seats.on(node, name);
        known.engine == Engine::Unknown
            && ledger.followers.get(node).is_none_or(|follower| follower.lag == SILENT)
            && seat.is_none_or(|seat| seat.liveness == Liveness::Live)
    }

    fn check_quorum_during(
        &self,
        name: &NodeName,
        node: &Node,
        ledger_name: &str,
        ledger: &Ledger,
    ) -> Check<Granted> {
        let spare = |p: Projection<'_>| p.without_node(name).spare();
        let now = Projection::of(ledger, self.policy);
        let enough = |spare: Option<usize>| spare.is_some_and(|spare| spare >= self.policy.reserve);
        // It could never be enough: a person has to say that the chain may stop.
        let never = !enough(spare(now.clone().all_live()));
        // Who wants a switch has the ledger stand for a while anyway.
        let switches = matches!(self.observed.begun, Some(Begun::Switch { .. }));
        let may_stop = never && (self.policy.allow_downtime || switches);
        if enough(spare(now.clone())) || may_stop {
            return Ok(Granted::new());
        }
        let consent = format!("restart-with-downtime/{name}/{}", node.described);
        let given = never && self.is_given(&consent);
        gate(Gate::QuorumDuringRestart, given, |g| {
            let left = now.without_node(name);
            let message = format!(
                "while {name} restarts, ledger {ledger_name} has {} live power and needs {}, with {} voters to spare",
                left.live(),
                left.needed(),
                self.policy.reserve,
            );
            if never {
                Closed::consent(g, message, consent.clone())
            } else {
                Closed::wait(g, message)
            }
        })?;
        Ok(given.then_some(consent).into_iter().collect())
    }

    /// No ledger counts this node, so that it may stop for good.
    pub(super) fn check_retire(&self, name: &NodeName) -> Check {
        self.check_not_paused()?;
        self.check_not_held(name)?;
        self.check_all_ledgers_seen()?;
        for (ledger_name, ledger) in &self.observed.ledgers {
            self.check_evidence(ledger_name, ledger)?;
            check_nothing_pending(ledger_name, ledger)?;
        }
        Ok(())
    }

    /// Whether a voter has entered and is not a full one yet: it was not seen to sign, or still has the small
    /// power it entered with. `power` = what it is to have.
    pub(super) fn is_entering(&self, node: &NodeName, member: &Member, power: u64) -> bool {
        let entry = self.observed.nodes.get(node).map(|node| node.entry);
        entry == Some(Entry::Entering) || member.power.saturating_mul(100) <= power
    }

    /// Whether a seat is that of a newcomer which stays silent for too long. Its silence is what the other
    /// nodes see on a chain that makes blocks, not what an API server says or does not say.
    pub(super) fn is_failed_entry(&self, seat: &Seat<'_>, node: &Node) -> bool {
        let ledger = &self.observed.ledgers[seat.ledger];
        node.entry == Entry::Entering
            && is_fresh(ledger, self.policy)
            && ledger.head == Head::Producing
            && seat.liveness != Liveness::Live
            && seat.member.signed == 0
            && node.down_seconds >= self.policy.grace_seconds
    }
}

fn check_quorum_after(name: &str, after: &Projection<'_>) -> Check {
    gate(Gate::QuorumAfterChange, after.has_quorum(), |g| {
        let (live, needed, total) = (after.live(), after.needed(), after.total());
        let message =
            format!("ledger {name} would have {live} live of {total} power and need {needed}");
        Closed::wait(g, message)
    })
}

/// A change as a consent names it: each consent is for one step and works once.
fn slug_of(change: &Change) -> String {
    match change {
        Change::Add { node, .. } => format!("add/{node}"),
        Change::SetPower { member, power } => format!("power/{member}/{power}"),
        Change::Remove { member } => format!("remove/{member}"),
    }
}

/// A restart does not help it any more.
pub(super) fn is_beyond_cure(node: &Node) -> bool {
    node.disk_lost || node.cure == super::model::Cure::Failed
}

/// A member as people know it: its node, or its key.
fn name_of<'b>(key: &'b MemberKey, member: &'b Member) -> &'b str {
    member.node.as_ref().map_or(key.as_str(), |node| node.as_str())
}

/// Nobody else changes the ledger's members.
pub(super) fn check_nothing_pending(name: &str, ledger: &Ledger) -> Check {
    gate(Gate::NoPendingChange, ledger.pending.is_none(), |g| {
        let what = ledger.pending.as_deref().unwrap_or_default();
        Closed::wait(g, format!("ledger {name}: {what} is under way; it has to end first"))
    })
}

/// Whoever restarts this node can end its pod, and see whether it comes back.
pub(super) fn check_reachable(name: &NodeName, node: &Node) -> Check {
    gate(Gate::ClusterReachable, node.engine != Engine::Unknown, |g| {
        let cluster = cluster_in_words(&node.cluster);
        let message = format!(
            "the API server of {cluster} cannot be asked, and {name} is there: nobody could end its pod, nor see it come back"
        );
        Closed::wait(g, message)
    })
}

/// The agents that a restart of this node brings can be run where it is. Without them its engine would not start.
pub(super) fn check_agents(name: &NodeName, node: &Node) -> Check {
    let (why, lasts) = match &node.agents {
        Agents::Available => return Ok(()),
        Agents::NotProved(why) => (why, false),
        Agents::Unavailable(why) => (why, true),
    };
    gate(Gate::AgentImageAvailable, false, |g| {
        let message = format!("{name}: {why}");
        if lasts { Closed::stuck(g, message) } else { Closed::wait(g, message) }
    })
}

/// A restart would only make a frozen chain worse.
pub(super) fn check_not_frozen(name: &str, ledger: &Ledger) -> Check {
    gate(Gate::ChainIsNotFrozen, ledger.head != Head::Frozen, |g| {
        let what = "has stored a block that it cannot apply; restart no node, see docs/recovery.md";
        Closed::stuck(g, format!("ledger {name} {what}"))
    })
}

/// Quorum holds even if the newcomer never votes. Where no small power can be given and the set has no
/// margin anyway, a newcomer that follows and is connected may count as live: one voter could never
/// become two otherwise.
fn check_newcomer_counts_as_failed(name: &str, now: &Projection<'_>, change: &Change) -> Check {
    let failed = now.clone().with(change, false).has_quorum();
    let no_margin = now.clone().all_live().spare() == Some(0);
    let live = now.clone().with(change, true).has_quorum();
    gate(Gate::NewMemberCountsAsFailed, failed || (no_margin && live), |g| {
        let what = "would stop if the newcomer failed; the voters there are have to recover first";
        Closed::wait(g, format!("ledger {name} {what}"))
    })
}
