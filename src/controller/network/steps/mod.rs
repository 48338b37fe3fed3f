//! Steps: what the planner wants next, and doing it.
//!
//! One pass takes at most one step. It is decided on evidence that was asked for after the last write, so that
//! nothing is judged by what was true before; and the protocol of [`bsn_core::intent`] sees to it that no step
//! happens twice or is forgotten.

mod act;
mod changes;
mod history;
pub mod memory;
mod observe;
mod record;
mod restarts;
pub mod slots;

use std::time::Duration;

use bsn_core::anchor::{Anchor, EntryRecord};
use bsn_core::budget::{Budget, DrainWaits, OwnStep, plan_budget};
use bsn_core::engine::cometbft::LEDGER;
use bsn_core::engine::cometbft::settle::{PoolState, Verdict};
use bsn_core::intent::record::{Phase, Record};
use bsn_core::membership::model::{Change, Engine, Gate, Inputs, Liveness, Step as PlannedStep};
use bsn_core::membership::{Decision, Observed, Policy, Refusal as Refused, next_step, warnings};
use bsn_core::names::NodeName;
use bsn_core::steps::{Effect, RecordedStep};
use bsn_core::watch::{Known, Sight};
use k8s_openapi::api::core::v1::ConfigMap;
use tokio::sync::OwnedMutexGuard;

use self::memory::Memory;
use self::observe::World;
use super::apply::Pass;
use super::budgets::ObservedBudget;
use super::validate::Authority;
use crate::api::BsnNetwork;
use crate::api::conditions::Reason;
use crate::cluster::machines::Machine;
use crate::controller::node::end::forgotten;
use crate::controller::{Refusal, Step};
use crate::engine::cometbft::driver::{Chain, Obstacle};
use crate::evidence::known::engine_start;
use crate::evidence::poller::Attention;
use crate::intent::{STEPS_KEY, parse_record};
use crate::view::{DisruptionView, InForce, MembershipView};

/// Blocks there are at least before a switch: a chain may become faster.
const MIN_SWITCH_LEAD: u64 = 30;

/// Where the steps of a network are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// The planner's answer; `None` = it was not asked: the chain is not formed, or not seen yet.
    pub decision: Option<Decision>,
    /// The step that comes next, in words.
    pub next: Option<String>,
    /// The step under way, in words.
    pub under_way: Option<String>,
    /// It restarts a node.
    pub restarts: bool,
    /// Nodes that do not run what is described.
    pub pending: usize,
    /// Powers of the voters, by the chain; empty while no node tells.
    pub powers: Vec<u64>,
    /// The same of those that are other owners'.
    pub foreign: Vec<u64>,
    /// Drains of machines that cannot go on yet, in a network that spans clusters; `None` = it was not looked.
    pub drains: Option<Vec<DrainWaits>>,
}

/// Reads the record of steps out of an anchor's `ConfigMap`.
fn read_record(map: Option<&ConfigMap>) -> Result<Option<Record<RecordedStep>>, Refusal> {
    map.map(parse_record).transpose().map(Option::flatten).map_err(|error| {
        let message =
            format!("{STEPS_KEY} in the anchor cannot be read: {error}; restore it from a backup");
        Refusal::new(Reason::AnchorRefused, message)
    })
}

impl Pass<'_> {
    /// What this leader remembers of the network's steps. Of another network of this name nothing is.
    async fn memory(&self, anchor: &Anchor) -> OwnedMutexGuard<Memory> {
        let fresh = || {
            let transitions = self.ctx.term.transitions();
            Memory::new(&self.ctx.hub_id, &anchor.network_id, transitions)
        };
        let mut memory = self.ctx.memories.of(self.key, fresh).lock_owned().await;
        if memory.network_id != anchor.network_id {
            *memory = fresh();
        }
        memory
    }

    /// Takes the next step, if there is one; of a paused network it only tells which that would be.
    pub(super) async fn take_step(&self, mut anchor: Anchor) -> Step<(Anchor, Steps)> {
        if !anchor.formed {
            return Ok(Ok((anchor, Steps::default())));
        }
        let record = match read_record(self.observed.map.as_ref()) {
            Ok(record) => record,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Some(targets) = self.ctx.targets.get(self.key) else {
            return Ok(Ok((anchor, Steps::default())));
        };
        let mut memory = self.memory(&anchor).await;
        if !self.validated.paused
            && let Err(refusal) = self.read_copies(&anchor, &mut memory).await?
        {
            return Ok(Err(refusal));
        }
        let world = World {
            ctx: self.ctx,
            key: self.key,
            validated: self.validated,
            anchor: &anchor,
            record: record.as_ref(),
            targets: &targets,
            network_uid: self.meta.uid.clone(),
            forgotten: forgotten(self.meta),
        };
        let known = world.known();
        let sight = self.ctx.watches.sight(
            self.key,
            &anchor.network_id,
            &anchor.chain_id,
            &known,
            world.own_transaction(),
        );
        let Some((sight, round_began)) = sight else {
            return Ok(Ok((anchor, Steps::default())));
        };
        // What was asked before the last write may be the past of what was written.
        if round_began < memory.not_before {
            // Nor does an answer about another description say anything about this one.
            let about_this = memory.generation == self.meta.generation;
            let decided = memory.decided.as_ref().filter(|_| about_this);
            let decision = decided.map(|(decision, _)| decision.clone());
            return Ok(Ok((anchor.clone(), steps(&world, &sight, decision, None))));
        }
        // A paused network is looked at, so that nobody takes it for what is described; nothing is written.
        let paused = self.validated.paused;
        if !paused && is_outdated(&anchor, &sight, &known) {
            let recorded = self.forget(&sight, &known).await?;
            memory.not_before = self.ctx.watches.now();
            return Ok(recorded.map(|anchor| (anchor, Steps::default())));
        }
        let chain = Chain {
            targets: &targets,
            caches: &self.ctx.caches,
            clusters: &self.ctx.clusters,
            ways: &self.ctx.ways,
            key: self.key,
        };
        let verdict = self.verdict(&world, &chain, &known, &mut memory).await;
        let policy = self.policy(&anchor, sight.interval);
        let observed = world.observed(&sight, &known, verdict.as_ref(), &mut memory, &policy);
        let decision = next_step(&self.validated.membership, &observed, &policy);
        let restarts = world.intent().is_some_and(is_restart);
        let pending = observed.nodes.values().any(|node| node.inputs == Inputs::Pending);
        let decision = if paused {
            // It goes on when a person says so: the others do not wait for that.
            self.ctx.slots.release(self.key);
            decision
        } else {
            self.ctx.slots.settle(self.key, restarts, pending, decision)
        };
        let own_step = world.intent().and_then(|intent| own_step(intent, &decision, &sight));
        let budget = self.observe_budget(&anchor, &sight, own_step);
        let shares = budget.as_ref().map(|budget| plan_budget(&budget.observed));
        let number = world.intent().map(|intent| intent.number);
        let unsent = memory.unsent.as_ref().filter(|(of, _)| Some(*of) == number);
        let unsent = unsent.map(|(_, obstacle)| obstacle);
        let told = self.told(&decision, &world, verdict.as_ref(), unsent);
        let disruption = shares.as_ref().map(|planned| DisruptionView {
            shares: anchor.shares.clone(),
            waits: planned.waits.clone(),
        });
        self.publish_decision(&anchor, &observed, &policy, &told, disruption, &mut memory);
        let told = memory.decided.as_ref().map(|(decision, _)| decision.clone());
        let mut shown = steps(&world, &sight, told, Some(&observed));
        shown.drains = shares.as_ref().map(|planned| planned.waits.clone());
        let acts = matches!(decision, Decision::Step { .. }) || shown.under_way.is_some();
        let busy = acts && !paused;
        let settled = shares.as_ref().is_none_or(|planned| *planned == Budget::default());
        let attention = match &decision {
            _ if busy => Attention::Busy,
            // What is done about a node that is silent or down comes with time, and time is no change.
            Decision::Converged if all_well(&observed) && settled => Attention::Calm,
            _ => Attention::Watchful,
        };
        self.ctx.targets.attend(self.key, attention);
        if paused {
            return Ok(Ok((anchor, shown)));
        }
        let mut newest = None;
        if let (Some(budget), Some(planned)) = (&budget, shares) {
            self.tell_drains(budget, &planned.waits, &mut memory).await;
            newest = match self.apply_budget(&anchor, budget, planned.steps).await? {
                Ok(changed) => changed,
                Err(refusal) => return Ok(Err(refusal)),
            };
        }
        let acting = act::Acting {
            pass: self,
            world: &world,
            chain: &chain,
            sight: &sight,
            verdict: verdict.as_ref(),
            known: &known,
            budget: budget.as_ref(),
        };
        if let Some(consent) = acting.abandon_consent().filter(|one| policy.consents.contains(one))
        {
            let done = acting.abandon(consent, &mut memory).await?;
            return Ok(done.map(|()| (anchor.clone(), shown)));
        }
        if let Decision::Step { step, consents } = &decision {
            match acting.take(step, consents, &mut memory).await? {
                Ok(changed) => newest = changed.or(newest),
                Err(refusal) => return Ok(Err(refusal)),
            }
        } else if let Some(Verdict::Open { .. }) = &verdict {
            acting.send_again_if_lost(&mut memory).await?;
        }
        if let Some(newest) = newest {
            anchor = newest;
        }
        Ok(Ok((anchor, shown)))
    }

    /// Tells those who watch events of each drain that waits, once.
    async fn tell_drains(
        &self,
        budget: &ObservedBudget,
        waits: &[DrainWaits],
        memory: &mut Memory,
    ) {
        let drained = budget.drained();
        memory.drains.retain(|machine| drained.contains(machine));
        for DrainWaits { cluster, machine, why } in waits {
            if memory.drains.insert(Machine { cluster: cluster.clone(), name: machine.clone() }) {
                let (meta, why) = (self.meta, why.clone());
                self.ctx.events.tell::<BsnNetwork>(meta, true, "DrainWaits", "Drain", why).await;
            }
        }
    }

    /// What people are told of a decision: also what the change under way waits for, which is not the planner's.
    fn told(
        &self,
        decision: &Decision,
        world: &World<'_>,
        verdict: Option<&Verdict>,
        unsent: Option<&Obstacle>,
    ) -> Decision {
        let (Some(record), Some(intent)) = (world.record, world.intent()) else {
            return decision.clone();
        };
        match (decision, verdict, unsent) {
            (
                Decision::Step {
                    step:
                        step @ (PlannedStep::Send
                        | PlannedStep::EndPod { .. }
                        | PlannedStep::Halt { .. }),
                    ..
                },
                _,
                Some(obstacle),
            ) => {
                let (gate, message) = (obstacle.gate, obstacle.why.clone());
                Decision::Wait(Refused { gate, step: step.to_string(), message, consent: None })
            }
            (Decision::Wait(refusal), Some(Verdict::Open { why }), _)
                if refusal.gate == Gate::OneChangeAtATime =>
            {
                let message = format!("{}: {why}", refusal.message);
                let age = self.ctx.now().duration_since(intent.step.begun_at);
                let age_seconds = u64::try_from(age.as_secs()).unwrap_or(0);
                if age_seconds < self.validated.policy.grace_seconds {
                    return Decision::Wait(Refused { message, ..refusal.clone() });
                }
                // It may never settle: only a person can give it up, and is told how.
                let message = format!(
                    "{message}. It has not settled for {} min: bring back the nodes that may hold it. If that cannot be, a \
                     consent gives it up without proof: it may yet take effect",
                    age.as_mins()
                );
                let consent = Some(record.abandon_consent(intent.number));
                Decision::NeedsConsent(Refused { message, consent, ..refusal.clone() })
            }
            _ => decision.clone(),
        }
    }

    /// The user's policy, with the consents that were not used yet.
    fn policy(&self, anchor: &Anchor, interval: Option<Duration>) -> Policy {
        let mut policy = self.validated.policy.clone();
        policy.submits = self.validated.authority != Authority::External;
        if let Some(at_height) = &self.validated.at_height {
            // How many blocks are made while every node is restarted three times.
            let nodes = u32::try_from(anchor.members().count()).unwrap_or(u32::MAX);
            let roll = at_height.restart_time * nodes;
            let interval = interval.unwrap_or(Duration::from_secs(1)).max(Duration::from_millis(1));
            policy.switch_lead = u64::try_from((roll * 3).as_millis() / interval.as_millis())
                .unwrap_or(u64::MAX)
                .max(MIN_SWITCH_LEAD);
        }
        policy.consents.retain(|consent| !anchor.used_consents.contains_key(consent));
        policy
    }

    /// Forgets what is over.
    async fn forget(&self, sight: &Sight, known: &[Known]) -> Step<Anchor> {
        self.update(|stored| {
            for (name, identity) in &mut stored.identities {
                let name = NodeName::from_object(name);
                if identity.vote.entry == EntryRecord::Entering && has_signed(&name, sight) {
                    identity.vote.entry = EntryRecord::Over;
                }
                if identity.cure.is_some() && is_cured(&name, identity, sight, known) {
                    identity.cure = None;
                }
            }
        })
        .await
    }

    /// What became of the transaction under way, if one was sent.
    async fn verdict(
        &self,
        world: &World<'_>,
        chain: &Chain<'_>,
        known: &[Known],
        memory: &mut Memory,
    ) -> Option<Verdict> {
        let intent = world.intent().filter(|intent| intent.phase == Phase::Sent)?;
        let Effect::Change(recorded) = &intent.step.effect else { return None };
        let ended = world.without_engine(known);
        let entry = world.pod(&recorded.entry);
        let start = entry.as_deref().and_then(engine_start);
        // What a cluster said that cannot be asked now proves no end.
        let gone = world.is_seen(&recorded.entry) && start.as_ref() != Some(&recorded.entry_start);
        let entry_ended = gone || world.is_forgotten(&recorded.entry);
        let look = chain.look(recorded, &ended, entry_ended, &mut memory.scan).await;
        memory.held = look.pools.values().any(|state| *state == PoolState::Holds);
        Some(memory.settling.look(recorded, &look))
    }

    /// Shows what was decided, to `kubectl bsn plan` and `explain`.
    fn publish_decision(
        &self,
        anchor: &Anchor,
        observed: &Observed,
        policy: &Policy,
        decision: &Decision,
        disruption: Option<DisruptionView>,
        memory: &mut Memory,
    ) {
        let now = self.ctx.watches.now();
        let since = match &memory.decided {
            Some((before, since)) if same(before, decision) => *since,
            _ => {
                if *decision != Decision::Converged {
                    tracing::info!(network = %self.key, decision = with_names(&words(decision), anchor), "decided");
                }
                now
            }
        };
        memory.generation = self.meta.generation;
        // The first of answers that are the same for people: a status is not written for a number in it.
        if memory.decided.as_ref().is_none_or(|(before, _)| !same(before, decision)) {
            memory.decided = Some((decision.clone(), since));
        }
        let sets = &self.validated.desired.sets;
        let described = sets
            .iter()
            .map(|set| (set.name.to_string(), self.validated.inputs_hash(set.name.as_str())));
        let in_force = anchor
            .members()
            .filter_map(|(name, identity)| {
                let app = identity.app_hash.clone();
                Some((name, InForce { inputs: identity.inputs_hash.clone()?, app }))
            })
            .collect();
        let view = MembershipView {
            desired: self.validated.membership.clone(),
            observed: observed.clone(),
            policy: policy.clone(),
            decision: decision.clone(),
            for_seconds: now.saturating_sub(since).as_secs(),
            described: described.collect(),
            in_force,
            image_prefix: self.ctx.settings.image_prefix.clone(),
            next_index: anchor.next_index.clone(),
            disks: self.validated.disks().collect(),
            disruption,
            warnings: warnings(observed, policy).into_iter().map(|(_, text)| text).collect(),
        };
        self.ctx.memberships.put(self.key.clone(), view);
    }
}

/// Whether the anchor remembers something of a node that is over.
fn is_outdated(anchor: &Anchor, sight: &Sight, known: &[Known]) -> bool {
    anchor.members().any(|(name, identity)| {
        (identity.vote.entry == EntryRecord::Entering && has_signed(&name, sight))
            || (identity.cure.is_some() && is_cured(&name, identity, sight, known))
    })
}

/// Every node of ours answers and runs, and those that vote are seen to sign.
fn all_well(observed: &Observed) -> bool {
    let mut engines = observed.nodes.values().map(|node| node.engine);
    engines.all(|engine| engine == Engine::Ready)
        && observed.ledgers.values().all(|ledger| {
            let mut ours = ledger.members.values().filter(|member| member.node.is_some());
            ledger.answering() == ledger.followers.len()
                && ours.all(|member| member.liveness == Liveness::Live)
        })
}

fn is_restart(intent: &observe::StepIntent) -> bool {
    matches!(intent.step.effect, Effect::Restart(_))
}

/// What the voters feel of the step under way.
fn own_step(intent: &observe::StepIntent, decision: &Decision, sight: &Sight) -> Option<OwnStep> {
    match &intent.step.effect {
        Effect::Restart(restart) => Some(OwnStep::Restart(restart.node.to_string())),
        Effect::Change(change) => {
            let voter = match &change.change {
                Change::Add { node, .. } => node,
                Change::SetPower { member, .. } | Change::Remove { member } => {
                    sight.ledger.members.get(member)?.node.as_ref()?
                }
            };
            Some(OwnStep::Change { voter: voter.to_string(), power: change.power })
        }
        // One after the other, while the chain runs.
        Effect::Switch(_) => match decision {
            Decision::Step { step: PlannedStep::Halt { node }, .. } => {
                Some(OwnStep::Restart(node.to_string()))
            }
            _ => None,
        },
    }
}

/// Others saw it sign, as a voter.
fn has_signed(name: &NodeName, sight: &Sight) -> bool {
    let mut members = sight.ledger.members.values();
    members.any(|member| {
        member.node.as_ref() == Some(name) && member.liveness == Liveness::Live && member.signed > 0
    })
}

/// It works again, in another pod than the one that was to end.
fn is_cured(
    name: &NodeName,
    identity: &bsn_core::anchor::Identity,
    sight: &Sight,
    known: &[Known],
) -> bool {
    let pod = known.iter().find(|known| known.name == *name).and_then(|known| known.pod.as_ref());
    let other = identity.cure.as_ref().is_some_and(|cure| cure.pod.as_ref() != pod);
    other && sight.nodes.get(name).is_some_and(|node| node.back)
}

fn steps(
    world: &World<'_>,
    sight: &Sight,
    decision: Option<Decision>,
    observed: Option<&Observed>,
) -> Steps {
    let intent = world.intent();
    let pending = observed.map_or(0, |observed| {
        observed.nodes.values().filter(|node| node.inputs != Inputs::Current).count()
    });
    let decision = decision.map(|decision| for_people(&decision, world.anchor));
    let next = match &decision {
        Some(Decision::Step { step, .. }) => Some(with_names(&step.to_string(), world.anchor)),
        _ => None,
    };
    // What is remembered where no node tells knows nothing of other owners' voters.
    let told = sight.ledger.agreed && sight.ledger.answering() > 0;
    let voters = || sight.ledger.members.values().filter(|_| told);
    Steps {
        decision,
        next,
        under_way: intent.map(|intent| intent.step.what.clone()),
        restarts: intent.is_some_and(is_restart),
        pending,
        powers: voters().map(|voter| voter.power).collect(),
        foreign: voters().filter(|voter| voter.node.is_none()).map(|voter| voter.power).collect(),
        drains: None,
    }
}

/// Whether two answers are the same for people: numbers in a message change without meaning anything new.
fn same(a: &Decision, b: &Decision) -> bool {
    match (a, b) {
        (Decision::Wait(a), Decision::Wait(b))
        | (Decision::NeedsConsent(a), Decision::NeedsConsent(b))
        | (Decision::Stuck(a), Decision::Stuck(b)) => a.gate == b.gate && a.step == b.step,
        _ => a == b,
    }
}

/// A decision for the log.
fn words(decision: &Decision) -> String {
    match decision {
        Decision::Converged => "all is as described".to_owned(),
        Decision::Step { step, .. } => step.to_string(),
        Decision::Wait(refusal) => format!("waiting: {}: {}", refusal.gate, refusal.message),
        Decision::NeedsConsent(refusal) => format!("asking: {}: {}", refusal.gate, refusal.message),
        Decision::Stuck(refusal) => format!("stuck: {}: {}", refusal.gate, refusal.message),
    }
}

/// A text with nodes by name instead of by key, and without the name of the one ledger.
fn with_names(text: &str, anchor: &Anchor) -> String {
    let mut text = text.replace(&format!(" (ledger {LEDGER})"), "");
    for (name, identity) in anchor.members() {
        if let Some(keys) = &identity.keys {
            text = text.replace(&keys.consensus.validator_address(), name.as_str());
        }
    }
    text.replace(&format!("ledger {LEDGER}"), "the chain")
}

/// A decision as people read it. A consent stays word for word.
fn for_people(decision: &Decision, anchor: &Anchor) -> Decision {
    let refusal = |refusal: &Refused| Refused {
        step: with_names(&refusal.step, anchor),
        message: with_names(&refusal.message, anchor),
        ..refusal.clone()
    };
    match decision {
        Decision::Wait(why) => Decision::Wait(refusal(why)),
        Decision::NeedsConsent(why) => Decision::NeedsConsent(refusal(why)),
        Decision::Stuck(why) => Decision::Stuck(refusal(why)),
        Decision::Converged | Decision::Step { .. } => decision.clone(),
    }
}

#[cfg(test)]
mod tests {
    use bsn_core::engine::cometbft::QUORUM;
    use bsn_core::membership::model::{Follower, Head, Hub, Ledger, Member, Node, SILENT};

    use super::*;

    #[test]
    fn who_is_silent_or_down_is_looked_at_again_without_a_change() {
        let name = NodeName::from_object("net-a-0");
        let follower = Follower { lag: 0, steady_seconds: 60, connected: true };
        let member = |node: Option<&NodeName>, liveness| Member {
            power: 1000,
            node: node.cloned(),
            liveness,
            signed: 12,
        };
        let ledger = Ledger {
            quorum: QUORUM,
            weights: true,
            members: [
                ("own".to_owned(), member(Some(&name), Liveness::Live)),
                // Nothing is ever done about another owner's voter.
                ("foreign".to_owned(), member(None, Liveness::Unknown)),
            ]
            .into(),
            agreed: true,
            age_seconds: 1,
            head: Head::Producing,
            height: 100,
            pending: None,
            followers: [(name.clone(), follower)].into(),
        };
        let well = Observed {
            nodes: [(name.clone(), Node::new("a"))].into(),
            ledgers: [(LEDGER.to_owned(), ledger)].into(),
            begun: None,
            hub: Hub::Current,
        };
        assert!(all_well(&well));
        let mut stopped = well.clone();
        stopped.nodes.get_mut(&name).unwrap().engine = Engine::NotReady;
        assert!(!all_well(&stopped), "its last signature is young, and it will be proved down");
        let changed = |change: &dyn Fn(&mut Ledger)| {
            let mut world = well.clone();
            change(world.ledgers.get_mut(LEDGER).unwrap());
            all_well(&world)
        };
        assert!(!changed(&|ledger| ledger.followers.get_mut(&name).unwrap().lag = SILENT));
        let mute = member(Some(&name), Liveness::Unknown);
        assert!(!changed(&|ledger| _ = ledger.members.insert("own".to_owned(), mute.clone())));
    }
}
