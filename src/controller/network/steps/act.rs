//! The effects of steps: which is whose, those on nodes, and how a step ends; `changes` and `restarts` have the others.
//! What cannot be taken back goes through the protocol of [`bsn_core::intent`], and is preceded by a live read.

use std::collections::BTreeSet;
use std::time::Duration;

use bsn_core::anchor::{Anchor, CureRecord, IdentityKeys};
use bsn_core::engine::cometbft::LEDGER;
use bsn_core::engine::cometbft::settle::Verdict;
use bsn_core::forming::add_identity;
use bsn_core::intent::record::{NewStep, Phase};
use bsn_core::intent::writer::Task;
use bsn_core::membership::model::{Change, Engine, Gate, Progress, Step as PlannedStep};
use bsn_core::names::NodeName;
use bsn_core::steps::{Effect, Outcome, PastStep, RecordedStep, is_halted};
use bsn_core::watch::{Known, Sight};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::memory::Memory;
use super::observe::{Facts, StepIntent, World};
use super::{history, with_names};
use crate::api::BsnNetwork;
use crate::api::conditions::Reason;
use crate::apply::read;
use crate::cluster::registry::HUB;
use crate::controller::context::RandomIds;
use crate::controller::network::apply::Pass;
use crate::controller::network::budgets::ObservedBudget;
use crate::controller::node::restart;
use crate::controller::{Error, Refusal, Step};
use crate::engine::cometbft::driver::{Chain, Obstacle};
use crate::evidence::known::engine_state;
use crate::intent::Effects;

/// What an effect needs.
pub struct Acting<'a> {
    pub pass: &'a Pass<'a>,
    pub world: &'a World<'a>,
    pub chain: &'a Chain<'a>,
    pub sight: &'a Sight,
    pub verdict: Option<&'a Verdict>,
    pub known: &'a [Known],
    /// What the network's shares depend on; `None` = it is on the hub alone.
    pub budget: Option<&'a ObservedBudget>,
}

/// A step taken: the anchor, if it was changed.
pub(super) type Taken = Step<Option<Anchor>>;

impl Acting<'_> {
    /// Takes one step. Whatever it wrote, nothing is decided again on evidence from before.
    pub async fn take(
        &self,
        step: &PlannedStep,
        consents: &BTreeSet<String>,
        memory: &mut Memory,
    ) -> Taken {
        let taken = self.take_it(step, consents, memory).await;
        memory.not_before = self.pass.ctx.watches.now();
        if let Ok(Ok(_)) = &taken {
            self.pass.ctx.metrics.step_taken(kind(step));
        }
        taken
    }

    async fn take_it(
        &self,
        step: &PlannedStep,
        consents: &BTreeSet<String>,
        memory: &mut Memory,
    ) -> Taken {
        match step {
            // Done before anything is planned: see `controller::copies`.
            PlannedStep::TakeOver => Ok(Ok(None)),
            PlannedStep::Provision { set } => self.provision(set).await,
            PlannedStep::Condemn { node } => self.condemn(node).await,
            PlannedStep::Retire { node } => self.retire(node).await,
            PlannedStep::Cure { node } => self.cure(node).await,
            PlannedStep::BeginChange { ledger, change } => {
                self.begin_change(ledger, change, memory).await
            }
            PlannedStep::BeginRestart { node } => self.begin_restart(node, memory).await,
            PlannedStep::BeginSwitch { ledger, height } => {
                self.begin_switch(step, ledger, *height, memory).await
            }
            PlannedStep::Halt { node } => self.restart_for_switch(node, None, memory).await,
            PlannedStep::Switch { node, anew } => {
                self.restart_for_switch(node, Some(*anew), memory).await
            }
            PlannedStep::Send => match self.world.intent() {
                Some(intent) => self.send(intent, consents, memory).await,
                None => Ok(Ok(None)),
            },
            PlannedStep::EndPod { .. } => match self.world.intent() {
                Some(intent) => self.end_pod(intent, consents, memory).await,
                None => Ok(Ok(None)),
            },
            PlannedStep::Settle => match self.world.intent() {
                Some(intent) => self.settle(intent, memory).await,
                None => Ok(Ok(None)),
            },
            PlannedStep::Withdraw => match self.world.intent() {
                Some(intent) => self.withdraw(intent, memory).await,
                None => Ok(Ok(None)),
            },
        }
    }

    /// Whether drains leave room for the step under way: they draw on the same margin, and are allowed by others than us.
    pub(super) fn check_room(&self, gate: Gate) -> Result<(), Obstacle> {
        let checked = self.budget.map_or(Ok(()), ObservedBudget::check_own_step);
        checked.map_err(|why| Obstacle { gate, why })
    }

    /// Whether the step under way cannot have its effect now. Why is remembered for those who ask.
    pub(super) fn is_obstructed(
        &self,
        intent: &StepIntent,
        checked: Result<(), Obstacle>,
        memory: &mut Memory,
    ) -> bool {
        memory.unsent = checked.err().map(|obstacle| (intent.number, obstacle));
        let Some((_, obstacle)) = &memory.unsent else { return false };
        tracing::info!(network = %self.pass.key, why = obstacle.why, "not done now");
        true
    }

    // --- nodes ----------------------------------------------------------------------------------------

    async fn provision(&self, set: &str) -> Taken {
        let desired = &self.pass.validated.desired;
        let Some(wanted) = desired.sets.iter().find(|one| one.name.as_str() == set) else {
            return Ok(Ok(None));
        };
        let planned = self.world.anchor.next_index.get(set).copied().unwrap_or(0);
        let name = match desired.name.node(&wanted.name, planned) {
            Ok(name) => name,
            Err(error) => return Ok(Err(Refusal::new(Reason::InvalidSpec, error.to_string()))),
        };
        let mut ids = RandomIds::draw()?;
        let recorded = self
            .pass
            .update(|stored| {
                let next = stored.next_index.entry(set.to_owned()).or_insert(0);
                // Planned on what is stored, or not at all.
                if *next == planned {
                    *next += 1;
                    add_identity(stored, &name, wanted, &mut ids);
                }
            })
            .await?;
        self.remember(None, format!("provision {name}"), Outcome::Done).await;
        Ok(recorded.map(Some))
    }

    async fn condemn(&self, node: &NodeName) -> Taken {
        // Live: while a network is being deleted its nodes go, and nobody replaces them.
        let (namespace, name) = (&self.pass.key.namespace, &self.pass.key.name);
        let network = read::<BsnNetwork>(&self.pass.ctx.client, namespace, name).await?;
        let stays = |network: &BsnNetwork| {
            network.metadata.deletion_timestamp.is_none() && network.uid() == self.pass.meta.uid
        };
        if !network.as_ref().is_some_and(stays) {
            return Ok(Ok(None));
        }
        let recorded = self.change_identity(node, |identity| identity.replaced = true).await?;
        // In the words of `kubectl bsn plan`.
        let step = PlannedStep::Condemn { node: node.clone() };
        self.remember(None, step.to_string(), Outcome::Done).await;
        Ok(recorded.map(Some))
    }

    async fn retire(&self, node: &NodeName) -> Taken {
        if let Some(keys) = self.keys(node) {
            // Live: a node that votes is never stopped for good.
            let address = keys.consensus.validator_address();
            if self.chain.still_votes(&address).await != Some(false) {
                tracing::info!(%node, "not retired: that it does not vote could not be read");
                return Ok(Ok(None));
            }
        }
        let recorded = self.change_identity(node, |identity| identity.retired = true).await?;
        self.remember(None, format!("retire {node}"), Outcome::Done).await;
        Ok(recorded.map(Some))
    }

    async fn cure(&self, node: &NodeName) -> Taken {
        // Live: what the cache shows may have passed.
        let pod = self.live_pod(node).await?;
        let facts = pod.as_ref().map(Facts::of);
        let seen = facts.as_ref().map(Facts::seen);
        let halted = is_halted(seen, self.sight.height, self.world.halting());
        if engine_state(pod.as_ref()) != Engine::NotReady && !halted {
            return Ok(Ok(None));
        }
        let described = self.described(node);
        let uid = pod.as_ref().and_then(ResourceExt::uid);
        let recorded = self
            .change_identity(node, |identity| {
                let again = identity.cure.as_ref().is_some_and(|cure| cure.described == described);
                if !again {
                    let pod = uid.clone();
                    identity.cure = Some(CureRecord { described: described.clone(), pod });
                }
            })
            .await?;
        let anchor = match recorded {
            Ok(anchor) => anchor,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let old = anchor.identity(node).and_then(|identity| identity.cure.as_ref()?.pod.clone());
        self.remember(None, format!("restart {node}, which is down"), Outcome::Done).await;
        let how = restart::How::AsDescribed { halting: self.world.halting() };
        let restarting = self.restarting(&anchor);
        let done = restart::restart_node(&restarting, node, old.as_deref(), how).await?;
        Ok(done.map(|()| None))
    }

    // --- ends -----------------------------------------------------------------------------------------

    async fn settle(&self, intent: &StepIntent, memory: &mut Memory) -> Taken {
        if let (Effect::Switch(_), Phase::Begun) = (&intent.step.effect, intent.phase) {
            return self.withdraw(intent, memory).await;
        }
        let (outcome, height) = match self.verdict {
            _ if let Effect::Switch(switch) = &intent.step.effect => self.end_of(switch),
            _ if let Effect::Restart(restart) = &intent.step.effect => {
                let back = self.world.progress(intent, restart, self.sight) == Progress::Back;
                (if back { Outcome::Done } else { Outcome::NotBack }, None)
            }
            Some(Verdict::Confirmed { height }) => (Outcome::Done, Some(*height)),
            Some(Verdict::WithoutEffect { height }) => (Outcome::NeverTookEffect, Some(*height)),
            Some(Verdict::Impossible) => (Outcome::NeverTookEffect, None),
            Some(Verdict::Open { .. }) | None => (Outcome::Done, None),
        };
        // Before the step ends, so that a crash between the two does it again.
        let noted = match (&intent.step.effect, outcome) {
            (Effect::Change(recorded), Outcome::Done) => Some(self.note_vote(recorded).await?),
            (Effect::Restart(recorded), _) => {
                let number = intent.number;
                let noted = self.change_identity(&recorded.node, |one| one.last_restart = number);
                Some(noted.await?)
            }
            (Effect::Switch(_), _) => Some(self.end_switch().await?),
            (Effect::Change(_), _) => self.return_consents(intent).await?.transpose(),
        };
        let anchor = match noted {
            Some(Ok(anchor)) => Some(anchor),
            Some(Err(refusal)) => return Ok(Err(refusal)),
            None => None,
        };
        let task = Task::Finish { ledger: LEDGER.to_owned(), number: intent.number };
        let done = self.drive(task, memory, nothing).await?;
        if done.is_ok() {
            self.measure(height).await;
            self.end(intent, outcome, height, memory).await;
        }
        Ok(done.map(|()| anchor))
    }

    /// How long after the chain could prove it the step was ended: the set of a block is proved by the commit
    /// in the next one.
    async fn measure(&self, height: Option<u64>) {
        let now = self.pass.ctx.now();
        let Some(height) = height else { return };
        if let Some(proved) = self.chain.decided_at(height + 1).await {
            let took = Duration::try_from(now.duration_since(proved)).unwrap_or_default();
            self.pass.ctx.metrics.step_reaction(took);
        }
    }

    /// The consent that gives up a change which was sent, without proof of what became of it. Of other steps nothing is
    /// sent that could stay open: nodes that were halted for a switch must not go on beside those that have switched.
    pub fn abandon_consent(&self) -> Option<String> {
        let (record, intent) = (self.world.record?, self.world.intent()?);
        let is_open =
            intent.phase == Phase::Sent && matches!(intent.step.effect, Effect::Change(_));
        is_open.then(|| record.abandon_consent(intent.number))
    }

    /// Gives up the step under way, since a person consented to exactly that.
    pub async fn abandon(&self, consent: String, memory: &mut Memory) -> Step<()> {
        let Some(intent) = self.world.intent() else { return Ok(Ok(())) };
        tracing::warn!(network = %self.pass.key, consent, "given up without proof");
        let (ledger, number) = (LEDGER.to_owned(), intent.number);
        let done = self.drive(Task::Abandon { ledger, number, consent }, memory, nothing).await?;
        if done.is_ok() {
            self.end(intent, Outcome::Abandoned, None, memory).await;
        }
        memory.not_before = self.pass.ctx.watches.now();
        Ok(done)
    }

    pub(super) async fn withdraw(&self, intent: &StepIntent, memory: &mut Memory) -> Taken {
        if let Err(refusal) = self.return_consents(intent).await? {
            return Ok(Err(refusal));
        }
        let task = Task::Withdraw { ledger: LEDGER.to_owned(), number: intent.number };
        let done = self.drive(task, memory, nothing).await?;
        if done.is_ok() {
            self.end(intent, Outcome::Withdrawn, None, memory).await;
        }
        Ok(done.map(|()| None))
    }

    async fn end(
        &self,
        intent: &StepIntent,
        outcome: Outcome,
        height: Option<u64>,
        memory: &mut Memory,
    ) {
        let sent = memory.sent.take().filter(|(number, _)| *number == intent.number);
        memory.last_try = None;
        let past = PastStep {
            number: Some(intent.number),
            what: intent.step.what.clone(),
            outcome,
            begun_at: intent.step.begun_at,
            sent_at: sent.map(|(_, at)| at),
            ended_at: self.pass.ctx.now(),
            height,
        };
        self.write_history(past).await;
    }

    // --- shared ---------------------------------------------------------------------------------------

    pub(super) async fn begin(
        &self,
        step: &PlannedStep,
        effect: Effect,
        memory: &mut Memory,
    ) -> Step<()> {
        if self.world.record.is_none() {
            let made = self.drive(Task::Create, memory, nothing).await?;
            if made.is_err() {
                return Ok(made);
            }
        }
        let recorded = RecordedStep {
            begun_at: self.pass.ctx.now(),
            what: with_names(&step.to_string(), self.world.anchor),
            effect,
        };
        let new = NewStep {
            ledger: LEDGER.to_owned(),
            places: places_of(&recorded.effect, self.world.anchor),
            step: recorded,
            decided_on: self.world.record.map_or(0, |record| record.step_number),
        };
        memory.settling = bsn_core::engine::cometbft::settle::Settling::default();
        self.drive(Task::Begin(new), memory, nothing).await
    }

    /// Does a task of the protocol.
    pub(super) async fn drive(
        &self,
        task: Task<RecordedStep>,
        memory: &mut Memory,
        effects: impl Effects<RecordedStep>,
    ) -> Step<()> {
        self.pass.drive(self.world.anchor, task, memory, effects).await
    }

    /// Records that these consents are used, for this step, before the effect they allow.
    pub(super) async fn use_consents(
        &self,
        intent: &StepIntent,
        consents: &BTreeSet<String>,
    ) -> Taken {
        let new = consents.iter().any(|one| !self.world.anchor.used_consents.contains_key(one));
        if !new {
            return Ok(Ok(None));
        }
        tracing::warn!(network = %self.pass.key, ?consents, step = intent.number, "consents used");
        let recorded = self
            .pass
            .update(|stored| {
                for consent in consents {
                    stored.used_consents.entry(consent.clone()).or_insert(intent.number);
                }
            })
            .await?;
        Ok(recorded.map(Some))
    }

    /// What was consented to had no effect: the consents were not used up by it, and the same step needs no others.
    async fn return_consents(&self, intent: &StepIntent) -> Taken {
        let used = |number: &u64| *number == intent.number;
        if !self.world.anchor.used_consents.values().any(used) {
            return Ok(Ok(None));
        }
        let returned = self
            .pass
            .update(|stored| stored.used_consents.retain(|_, number| *number != intent.number))
            .await?;
        Ok(returned.map(Some))
    }

    pub(super) async fn change_identity(
        &self,
        node: &NodeName,
        change: impl Fn(&mut bsn_core::anchor::Identity),
    ) -> Step<Anchor> {
        self.pass
            .update(|stored| {
                let identity = stored.identities.get_mut(node.as_str());
                if let Some(identity) = identity.filter(|identity| !identity.retired) {
                    change(identity);
                }
            })
            .await
    }

    pub(super) fn keys(&self, node: &NodeName) -> Option<IdentityKeys> {
        self.world.anchor.identity(node)?.keys.clone()
    }

    pub(super) fn described(&self, node: &NodeName) -> String {
        let set = self.world.anchor.identity(node).map(|identity| identity.set.as_str());
        self.pass.validated.inputs_hash(set.unwrap_or_default())
    }

    /// A node's pod, by a live read in its own cluster.
    pub(super) async fn live_pod(&self, node: &NodeName) -> Result<Option<Pod>, Error> {
        let (ctx, namespace) = (self.pass.ctx, &self.pass.key.namespace);
        let Some(identity) = self.world.anchor.identity(node) else { return Ok(None) };
        let place = ctx.place_of(identity, namespace)?;
        Ok(read::<Pod>(&place.client, namespace, &format!("{node}-0")).await?)
    }

    async fn remember(&self, number: Option<u64>, what: String, outcome: Outcome) {
        let now = self.pass.ctx.now();
        let past = PastStep {
            number,
            what,
            outcome,
            begun_at: now,
            sent_at: None,
            ended_at: now,
            height: None,
        };
        self.write_history(past).await;
    }

    /// Tells the history and those who watch events. A failure is logged: nothing depends on it.
    async fn write_history(&self, past: PastStep) {
        let pass = self.pass;
        let (reason, good) = match past.outcome {
            Outcome::Done => ("StepDone", true),
            Outcome::Withdrawn => ("StepWithdrawn", true),
            Outcome::NeverTookEffect => ("StepWithoutEffect", false),
            Outcome::Abandoned => ("StepAbandoned", false),
            Outcome::NotBack => ("StepNodeNotBack", false),
        };
        tracing::info!(network = %pass.key, step = past.number, what = past.what, reason, "step ended");
        pass.ctx
            .events
            .tell::<BsnNetwork>(pass.meta, good, reason, "Step", past.what.clone())
            .await;
        let parts = pass.parts(self.world.anchor);
        if let Err(error) = history::append(pass.ctx, &parts, past).await {
            tracing::warn!(network = %pass.key, %error, "the history was not written");
        }
    }
}

/// The member clusters in which a step has its effects: the anchor's copies there must hold it first.
fn places_of(effect: &Effect, anchor: &Anchor) -> BTreeSet<String> {
    let cluster = |node: &NodeName| Some(anchor.identity(node)?.cluster.clone());
    let clusters: Vec<String> = match effect {
        Effect::Restart(restart) => cluster(&restart.node).into_iter().collect(),
        Effect::Switch(_) => {
            anchor.members().map(|(_, identity)| identity.cluster.clone()).collect()
        }
        // Who is taken out may be in a cluster that is lost: the transaction goes to the entry.
        Effect::Change(change) => match &change.change {
            Change::Add { node, .. } => {
                [node, &change.entry].into_iter().filter_map(cluster).collect()
            }
            Change::SetPower { .. } | Change::Remove { .. } => {
                cluster(&change.entry).into_iter().collect()
            }
        },
    };
    clusters.into_iter().filter(|cluster| cluster != HUB).collect()
}

/// No effect outside of the anchor.
fn nothing(_: &StepIntent) {}

/// A step's kind, for metrics.
fn kind(step: &PlannedStep) -> &'static str {
    match step {
        PlannedStep::TakeOver => "take-over",
        PlannedStep::Provision { .. } => "provision",
        PlannedStep::Condemn { .. } => "condemn",
        PlannedStep::BeginChange { .. } => "begin-change",
        PlannedStep::Send => "send",
        PlannedStep::Settle => "settle",
        PlannedStep::Withdraw => "withdraw",
        PlannedStep::BeginRestart { .. } => "begin-restart",
        PlannedStep::EndPod { .. } => "end-pod",
        PlannedStep::BeginSwitch { .. } => "begin-switch",
        PlannedStep::Halt { .. } => "halt",
        PlannedStep::Switch { .. } => "switch",
        PlannedStep::Cure { .. } => "cure",
        PlannedStep::Retire { .. } => "retire",
    }
}
