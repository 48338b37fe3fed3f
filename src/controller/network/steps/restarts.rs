//! Restarts of nodes: for what is described, and for a switch of all of them.

use std::collections::BTreeSet;

use bsn_core::anchor::Anchor;
use bsn_core::engine::cometbft::LEDGER;
use bsn_core::intent::record::Phase;
use bsn_core::intent::writer::Task;
use bsn_core::membership::model::{Gate, Step as PlannedStep};
use bsn_core::names::NodeName;
use bsn_core::steps::{Effect, Outcome, RecordedRestart, RecordedStep, RecordedSwitch};
use kube::ResourceExt;

use super::act::{Acting, Taken};
use super::memory::Memory;
use super::observe::StepIntent;
use crate::controller::Step;
use crate::controller::node::restart;
use crate::intent::Effects;

impl Acting<'_> {
    pub(super) async fn begin_restart(&self, node: &NodeName, memory: &mut Memory) -> Taken {
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

    pub(super) async fn end_pod(
        &self,
        intent: &StepIntent,
        consents: &BTreeSet<String>,
        memory: &mut Memory,
    ) -> Taken {
        let Effect::Restart(recorded) = &intent.step.effect else { return Ok(Ok(None)) };
        if intent.phase == Phase::Begun {
            let room = self.check_room(Gate::QuorumDuringRestart);
            if self.is_obstructed(intent, room, memory) {
                return Ok(Ok(None));
            }
        }
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

    pub(super) fn restarting<'b>(&'b self, anchor: &'b Anchor) -> restart::Restarting<'b> {
        restart::Restarting {
            ctx: self.pass.ctx,
            key: self.pass.key,
            validated: self.pass.validated,
            expected: self.pass.expected(),
            anchor,
        }
    }

    pub(super) async fn begin_switch(
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
    pub(super) async fn restart_for_switch(
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
        if anew.is_none()
            && self.is_obstructed(intent, self.check_room(Gate::QuorumDuringRestart), memory)
        {
            return Ok(Ok(None));
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

    /// Whether a switch was done, or given up.
    pub(super) fn end_of(&self, switch: &RecordedSwitch) -> (Outcome, Option<u64>) {
        let mut members = self.world.anchor.members();
        if members.any(|(_, identity)| identity.switched_at == Some(switch.height)) {
            (Outcome::Done, Some(switch.height))
        } else {
            (Outcome::Withdrawn, None)
        }
    }

    /// Forgets who was switched.
    pub(super) async fn end_switch(&self) -> Step<Anchor> {
        let forget = |stored: &mut Anchor| {
            for identity in stored.identities.values_mut() {
                identity.switched_at = None;
            }
        };
        self.pass.update(forget).await
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
