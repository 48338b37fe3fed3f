//! The effects of steps. What cannot be taken back goes through the protocol of [`bsn_core::intent`], and is
//! preceded by a live read.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bsn_core::anchor::{Anchor, CureRecord, EntryRecord, IdentityKeys};
use bsn_core::engine::cometbft::LEDGER;
use bsn_core::engine::cometbft::settle::Verdict;
use bsn_core::engine::cometbft::transaction::{fill_template, validator_transaction};
use bsn_core::forming::add_identity;
use bsn_core::intent::record::{NewStep, Phase};
use bsn_core::intent::refusal::Category;
use bsn_core::intent::writer::{Place, Task};
use bsn_core::membership::model::{Change, Engine, Liveness, Progress, Step as PlannedStep};
use bsn_core::names::NodeName;
use bsn_core::steps::{
    Effect, Outcome, PastStep, RecordedChange, RecordedRestart, RecordedStep, RecordedSwitch,
    is_halted,
};
use bsn_core::watch::{Known, Sight};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::memory::Memory;
use super::observe::{Facts, StepIntent, World};
use super::{history, with_names};
use crate::api::BsnNetwork;
use crate::api::conditions::Reason;
use crate::apply::read;
use crate::controller::context::RandomIds;
use crate::controller::network::apply::Pass;
use crate::controller::network::validate::Authority;
use crate::controller::node::restart;
use crate::controller::{Error, Refusal, Step};
use crate::engine::cometbft::driver::Chain;
use crate::evidence::known::{engine_start, engine_state};
use crate::intent::{DriveError, Effects, MapStore, drive};

/// Before a transaction that seems to be lost is sent again, in the same bytes to the same process.
const SEND_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What an effect needs.
pub struct Acting<'a> {
    pub pass: &'a Pass<'a>,
    pub world: &'a World<'a>,
    pub chain: &'a Chain<'a>,
    pub sight: &'a Sight,
    pub verdict: Option<&'a Verdict>,
    pub known: &'a [Known],
}

/// A step taken: the anchor, if it was changed.
type Taken = Step<Option<Anchor>>;

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
            // There is no copy of the anchor elsewhere yet, so no hub is found to be older.
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

    // --- changes --------------------------------------------------------------------------------------

    async fn begin_change(&self, ledger: &str, change: &Change, memory: &mut Memory) -> Taken {
        let Some((node, power)) = self.subject(change) else { return Ok(Ok(None)) };
        let Some(keys) = self.keys(&node) else { return Ok(Ok(None)) };
        let Some((entry, entry_start)) = self.entry(&node).await? else {
            tracing::info!(network = %self.pass.key, "no node can take a transaction now");
            return Ok(Ok(None));
        };
        // Counted before it is used: bytes that were made once are never made again.
        let counted =
            self.change_identity(&node, |identity| identity.vote.transactions += 1).await?;
        let anchor = match counted {
            Ok(anchor) => anchor,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let count = anchor.identity(&node).map_or(1, |identity| identity.vote.transactions);
        let bytes = match self.transaction(&keys, power, count - 1) {
            Ok(bytes) => bytes,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let recorded = RecordedChange {
            ledger: ledger.to_owned(),
            change: change.clone(),
            address: keys.consensus.validator_address(),
            power,
            transaction: BASE64.encode(bytes),
            entry,
            entry_start,
            after_height: self.sight.height,
        };
        let step = PlannedStep::BeginChange { ledger: ledger.to_owned(), change: change.clone() };
        let begun = self.begin(&step, Effect::Change(recorded), memory).await?;
        Ok(begun.map(|()| Some(anchor)))
    }

    /// The node a change is about, and its power afterwards.
    fn subject(&self, change: &Change) -> Option<(NodeName, u64)> {
        match change {
            Change::Add { node, power } => Some((node.clone(), *power)),
            Change::SetPower { member, power } => Some((self.node_of(member)?, *power)),
            Change::Remove { member } => Some((self.node_of(member)?, 0)),
        }
    }

    fn node_of(&self, member: &str) -> Option<NodeName> {
        self.sight.ledger.members.get(member)?.node.clone()
    }

    fn transaction(
        &self,
        keys: &IdentityKeys,
        power: u64,
        serial: u32,
    ) -> Result<Vec<u8>, Refusal> {
        let template = match &self.pass.validated.authority {
            Authority::Submit { template } => template.as_deref(),
            Authority::External => None,
        };
        match template {
            None => Ok(validator_transaction(&keys.consensus, power, serial)),
            Some(template) => fill_template(template, &keys.consensus, power, serial)
                .map_err(|error| Refusal::new(Reason::InvalidSpec, error.to_string())),
        }
    }

    /// The node a transaction is given to, and its process: one at the head that votes, if there is one, and
    /// that the change is not about.
    async fn entry(&self, subject: &NodeName) -> Result<Option<(NodeName, String)>, Error> {
        let ledger = &self.sight.ledger;
        let votes: BTreeSet<&NodeName> =
            ledger.members.values().filter_map(|member| member.node.as_ref()).collect();
        let mut able: Vec<_> = ledger
            .followers
            .iter()
            .filter(|(_, follower)| follower.lag <= 1 && follower.connected)
            .map(|(name, _)| name)
            .collect();
        able.sort_by_key(|name| (*name == subject, !votes.contains(name), *name));
        for name in able {
            let pod = self.live_pod(name).await?;
            if let Some(start) = pod.as_ref().and_then(engine_start) {
                return Ok(Some((name.clone(), start)));
            }
        }
        Ok(None)
    }

    async fn send(
        &self,
        intent: &StepIntent,
        consents: &BTreeSet<String>,
        memory: &mut Memory,
    ) -> Taken {
        let Effect::Change(recorded) = &intent.step.effect else { return Ok(Ok(None)) };
        if intent.phase == Phase::Begun {
            let pod = self.live_pod(&recorded.entry).await?;
            if pod.as_ref().and_then(engine_start).as_ref() != Some(&recorded.entry_start) {
                // Nothing was sent yet: begun again with another process.
                tracing::info!(entry = %recorded.entry, "its process has ended; begun again");
                return self.withdraw(intent, memory).await;
            }
            let Some((node, power)) = self.subject(&recorded.change) else { return Ok(Ok(None)) };
            let Some(keys) = self.keys(&node) else { return Ok(Ok(None)) };
            let (key, excused) = (&keys.consensus, self.excused(&recorded.change));
            let entry = &recorded.entry;
            let checked = self.chain.check_before_sending(entry, key, power, &excused).await;
            memory.unsent = checked.err().map(|obstacle| (intent.number, obstacle));
            if let Some((_, obstacle)) = &memory.unsent {
                tracing::info!(network = %self.pass.key, why = obstacle.why, "not sent now");
                return Ok(Ok(None));
            }
        }
        let used = self.use_consents(intent, consents).await?;
        let sent = self.drive_change(intent, recorded, memory).await?;
        Ok(sent.and(used))
    }

    /// Nodes that need not answer before a change is sent: those without an engine, and all when it takes out a
    /// voter that does not work itself: that waits for nobody.
    fn excused(&self, change: &Change) -> BTreeSet<NodeName> {
        let repairs = matches!(change, Change::Remove { member }
            if self.sight.ledger.members.get(member).is_none_or(|one| one.liveness != Liveness::Live));
        if repairs {
            return self.sight.nodes.keys().cloned().collect();
        }
        self.world.without_engine(self.known)
    }

    async fn drive_change(
        &self,
        intent: &StepIntent,
        recorded: &RecordedChange,
        memory: &mut Memory,
    ) -> Step<()> {
        let ctx = self.pass.ctx;
        memory.note_sent(intent.number, ctx.now());
        let task = Task::Send { ledger: LEDGER.to_owned(), number: intent.number };
        let mut submission = Submission { chain: self.chain, recorded, said: None };
        let done = self.drive(task, memory, &mut submission).await?;
        memory.last_try = submission.said.map(|text| (ctx.watches.now(), text));
        Ok(done)
    }

    /// A transaction whose request may have been lost is given to the same process again, in the same bytes: it
    /// takes them once.
    pub async fn send_again_if_lost(&self, memory: &mut Memory) -> Result<(), Error> {
        let Some(intent) = self.world.intent().filter(|intent| intent.phase == Phase::Sent) else {
            return Ok(());
        };
        let Effect::Change(recorded) = &intent.step.effect else { return Ok(()) };
        let now = self.pass.ctx.watches.now();
        let recent = memory
            .last_try
            .as_ref()
            .is_some_and(|(at, _)| now.saturating_sub(*at) < SEND_AGAIN_AFTER);
        if recent || memory.scan.found().is_some() || memory.held {
            return Ok(());
        }
        let pod = self.live_pod(&recorded.entry).await?;
        if pod.as_ref().and_then(engine_start).as_ref() != Some(&recorded.entry_start) {
            return Ok(());
        }
        if let Err(refusal) = self.drive_change(intent, recorded, memory).await? {
            tracing::warn!(message = refusal.message, "not sent again");
        }
        memory.not_before = self.pass.ctx.watches.now();
        Ok(())
    }

    // --- restarts -------------------------------------------------------------------------------------

    async fn begin_restart(&self, node: &NodeName, memory: &mut Memory) -> Taken {
        let described = self.described(node);
        let identity = self.world.anchor.identity(node);
        let pod = self.live_pod(node).await?;
        let effect = Effect::Restart(RecordedRestart {
            node: node.clone(),
            described,
            old_template: identity.and_then(|identity| identity.template_hash.clone()),
            old_pod: pod.as_ref().and_then(ResourceExt::uid),
        });
        let step = PlannedStep::BeginRestart { node: node.clone() };
        Ok(self.begin(&step, effect, memory).await?.map(|()| None))
    }

    async fn end_pod(
        &self,
        intent: &StepIntent,
        consents: &BTreeSet<String>,
        memory: &mut Memory,
    ) -> Taken {
        let Effect::Restart(recorded) = &intent.step.effect else { return Ok(Ok(None)) };
        let used = match self.use_consents(intent, consents).await? {
            Ok(used) => used,
            Err(refusal) => return Ok(Err(refusal)),
        };
        memory.note_sent(intent.number, self.pass.ctx.now());
        let task = Task::Send { ledger: LEDGER.to_owned(), number: intent.number };
        let anchor = used.as_ref().unwrap_or(self.world.anchor);
        let restarting = self.restarting(anchor);
        let (node, old_pod) = (&recorded.node, recorded.old_pod.as_deref());
        let how = restart::How::AsDescribed { halting: None };
        let mut end = PodEnd { restarting, node, old_pod, how, ended: None };
        let done = self.drive(task, memory, &mut end).await?;
        Ok(end.into_result(node)?.and(done).map(|()| used))
    }

    fn restarting<'b>(&'b self, anchor: &'b Anchor) -> restart::Restarting<'b> {
        restart::Restarting {
            ctx: self.pass.ctx,
            key: self.pass.key,
            validated: self.pass.validated,
            expected: self.pass.expected(),
            anchor,
        }
    }

    // --- switches -------------------------------------------------------------------------------------

    async fn begin_switch(
        &self,
        step: &PlannedStep,
        ledger: &str,
        height: u64,
        memory: &mut Memory,
    ) -> Taken {
        let ledger = ledger.to_owned();
        let effect = Effect::Switch(RecordedSwitch { ledger, height });
        Ok(self.begin(step, effect, memory).await?.map(|()| None))
    }

    /// Restarts a node for the switch under way: to halt, or with the new application.
    async fn restart_for_switch(
        &self,
        node: &NodeName,
        anew: Option<bool>,
        memory: &mut Memory,
    ) -> Taken {
        let Some(intent) = self.world.intent() else { return Ok(Ok(None)) };
        let Effect::Switch(RecordedSwitch { height, .. }) = intent.step.effect else {
            return Ok(Ok(None));
        };
        let first = self.world.anchor.members().all(|(_, one)| one.switched_at.is_none());
        if anew.is_some() && first {
            // Live: nobody has gone on by the old rules.
            if let Some(why) = self.chain.is_beyond(height).await {
                tracing::info!(network = %self.pass.key, %node, why, "not switched now");
                return Ok(Ok(None));
            }
        }
        memory.note_sent(intent.number, self.pass.ctx.now());
        let how = match anew {
            None => restart::How::Halts(height),
            Some(anew) => restart::How::Switched { height, anew },
        };
        let task = Task::Send { ledger: LEDGER.to_owned(), number: intent.number };
        let restarting = self.restarting(self.world.anchor);
        let mut end = PodEnd { restarting, node, old_pod: None, how, ended: None };
        let done = self.drive(task, memory, &mut end).await?;
        Ok(end.into_result(node)?.and(done).map(|()| None))
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
            (Effect::Change(_), _) => None,
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

    /// Whether a switch was done, or given up.
    fn end_of(&self, switch: &RecordedSwitch) -> (Outcome, Option<u64>) {
        let mut members = self.world.anchor.members();
        if members.any(|(_, identity)| identity.switched_at == Some(switch.height)) {
            (Outcome::Done, Some(switch.height))
        } else {
            (Outcome::Withdrawn, None)
        }
    }

    /// Forgets who was switched.
    async fn end_switch(&self) -> Step<Anchor> {
        let forget = |stored: &mut Anchor| {
            for identity in stored.identities.values_mut() {
                identity.switched_at = None;
            }
        };
        self.pass.update(forget).await
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

    /// The consent that gives up a step which was sent, without proof of what became of it.
    pub fn abandon_consent(&self) -> Option<String> {
        let (record, intent) = (self.world.record?, self.world.intent()?);
        (intent.phase == Phase::Sent).then(|| record.abandon_consent(intent.number))
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

    /// Remembers a node's power, and its entry or its end as a voter.
    async fn note_vote(&self, recorded: &RecordedChange) -> Step<Anchor> {
        self.pass
            .update(|stored| {
                let mut identities = stored.identities.values_mut();
                let Some(identity) = identities.find(|identity| {
                    let address = |keys: &IdentityKeys| keys.consensus.validator_address();
                    identity.keys.as_ref().map(address).as_ref() == Some(&recorded.address)
                }) else {
                    return;
                };
                // Once only: a second pass after a crash must not take a new entry for an old one.
                if identity.vote.power == Some(recorded.power) {
                    return;
                }
                identity.vote.power = Some(recorded.power);
                match (&recorded.change, identity.vote.entry) {
                    (Change::Add { .. }, _) => identity.vote.entry = EntryRecord::Entering,
                    (Change::Remove { .. }, EntryRecord::Entering) => {
                        identity.vote.entry = EntryRecord::Failed;
                    }
                    _ => {}
                }
            })
            .await
    }

    async fn withdraw(&self, intent: &StepIntent, memory: &mut Memory) -> Taken {
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

    async fn begin(&self, step: &PlannedStep, effect: Effect, memory: &mut Memory) -> Step<()> {
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
            places: BTreeSet::new(),
            step: recorded,
            decided_on: self.world.record.map_or(0, |record| record.step_number),
        };
        memory.settling = bsn_core::engine::cometbft::settle::Settling::default();
        self.drive(Task::Begin(new), memory, nothing).await
    }

    /// Does a task of the protocol. What another try may cure is logged, or an error.
    async fn drive(
        &self,
        task: Task<RecordedStep>,
        memory: &mut Memory,
        effects: impl Effects<RecordedStep>,
    ) -> Step<()> {
        let pass = self.pass;
        let name = pass.validated.desired.name.anchor();
        let store = MapStore {
            client: pass.ctx.client.clone(),
            namespace: pass.key.namespace.clone(),
            name,
        };
        let stores = BTreeMap::from([(Place::Primary, store)]);
        memory.writer.start(task);
        let done = drive(&mut memory.writer, &stores, || pass.ctx.term.remaining(), effects).await;
        // Whatever it was, the cache is behind it.
        pass.ctx.anchors.note_written(pass.key, Some(String::new()));
        match done {
            Ok(()) => Ok(Ok(())),
            Err(DriveError::Refused(refusal)) => match refusal.category() {
                Category::Person | Category::Misuse => {
                    Ok(Err(Refusal::new(Reason::AnchorRefused, refusal.to_string())))
                }
                Category::DecideAgain | Category::EndTerm => {
                    tracing::info!(network = %pass.key, %refusal, "decided again");
                    Err(Error::Steps(DriveError::Refused(refusal)))
                }
            },
            Err(error) => Err(Error::Steps(error)),
        }
    }

    /// Records that these consents are used, for this step, before the effect they allow.
    async fn use_consents(&self, intent: &StepIntent, consents: &BTreeSet<String>) -> Taken {
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

    async fn change_identity(
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

    fn keys(&self, node: &NodeName) -> Option<IdentityKeys> {
        self.world.anchor.identity(node)?.keys.clone()
    }

    fn described(&self, node: &NodeName) -> String {
        let set = self.world.anchor.identity(node).map(|identity| identity.set.as_str());
        self.pass.validated.inputs_hash(set.unwrap_or_default())
    }

    async fn live_pod(&self, node: &NodeName) -> Result<Option<Pod>, Error> {
        let name = format!("{node}-0");
        Ok(read::<Pod>(&self.pass.ctx.client, &self.pass.key.namespace, &name).await?)
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

/// No effect outside of the anchor.
fn nothing(_: &StepIntent) {}

/// Gives a transaction to its entry node.
struct Submission<'a> {
    chain: &'a Chain<'a>,
    recorded: &'a RecordedChange,
    said: Option<String>,
}

impl Effects<RecordedStep> for &mut Submission<'_> {
    async fn act(&mut self, intent: &StepIntent) {
        let RecordedChange { entry, transaction, .. } = self.recorded;
        let text = match self.chain.submit(entry, transaction).await {
            Ok(submitted) if submitted.code == 0 => "taken into its pool".to_owned(),
            Ok(submitted) => format!("refused: {} {}", submitted.code, submitted.log),
            // Done or not, the chain tells.
            Err(error) => error.to_string(),
        };
        tracing::info!(step = intent.number, %entry, answer = text, "sent");
        self.said = Some(text);
    }
}

/// Puts a template in force and ends the pod of the old one.
struct PodEnd<'a> {
    restarting: restart::Restarting<'a>,
    node: &'a NodeName,
    old_pod: Option<&'a str>,
    how: restart::How,
    ended: Option<Step<()>>,
}

impl PodEnd<'_> {
    /// What came of it. An error is none: it may have been done all the same, and the pod tells.
    fn into_result(self, node: &NodeName) -> Step<()> {
        match self.ended {
            Some(Err(error)) => {
                tracing::warn!(%node, %error, "the restart was not ended");
                Ok(Ok(()))
            }
            Some(ended) => ended,
            None => Ok(Ok(())),
        }
    }
}

impl Effects<RecordedStep> for &mut PodEnd<'_> {
    async fn act(&mut self, _: &StepIntent) {
        let done = restart::restart_node(&self.restarting, self.node, self.old_pod, self.how);
        self.ended = Some(done.await);
    }
}

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
