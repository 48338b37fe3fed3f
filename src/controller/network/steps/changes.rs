//! Changes of members: recorded, sent in the same bytes to the same process, and remembered.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bsn_core::anchor::{Anchor, EntryRecord, IdentityKeys};
use bsn_core::engine::cometbft::LEDGER;
use bsn_core::engine::cometbft::transaction::{fill_template, validator_transaction};
use bsn_core::intent::record::Phase;
use bsn_core::intent::writer::Task;
use bsn_core::membership::model::{Change, Gate, Liveness, Step as PlannedStep};
use bsn_core::names::NodeName;
use bsn_core::steps::{Effect, RecordedChange, RecordedStep};

use super::act::{Acting, Taken};
use super::memory::Memory;
use super::observe::StepIntent;
use crate::api::conditions::Reason;
use crate::controller::network::validate::Authority;
use crate::controller::{Error, Refusal, Step};
use crate::engine::cometbft::driver::Chain;
use crate::evidence::known::engine_start;
use crate::intent::Effects;

/// Before a transaction that seems to be lost is sent again, in the same bytes to the same process.
const SEND_AGAIN_AFTER: Duration = Duration::from_secs(5);

impl Acting<'_> {
    pub(super) async fn begin_change(
        &self,
        ledger: &str,
        change: &Change,
        memory: &mut Memory,
    ) -> Taken {
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
            let pod = match self.live_pod(name).await {
                Ok(pod) => pod,
                // Another one will do.
                Err(Error::Cluster(absent)) => {
                    tracing::debug!(node = %name, %absent, "not an entry");
                    continue;
                }
                Err(error) => return Err(error),
            };
            if let Some(start) = pod.as_ref().and_then(engine_start) {
                return Ok(Some((name.clone(), start)));
            }
        }
        Ok(None)
    }

    pub(super) async fn send(
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
            let checked = checked.and_then(|()| self.check_room(Gate::QuorumAfterChange));
            if self.is_obstructed(intent, checked, memory) {
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

    /// Remembers a node's power, and its entry or its end as a voter.
    pub(super) async fn note_vote(&self, recorded: &RecordedChange) -> Step<Anchor> {
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
}

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
