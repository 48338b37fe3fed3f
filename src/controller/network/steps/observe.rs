//! Puts together what the planner is told: the anchor, the record of steps, the nodes' evidence, their pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bsn_core::anchor::{Anchor, EntryRecord, Identity};
use bsn_core::engine::cometbft::LEDGER;
use bsn_core::engine::cometbft::settle::Verdict;
use bsn_core::intent::record::{Intent, Phase, Record};
use bsn_core::membership::model::{
    Agents, Begun, Engine, Entry, Fate, Hub, Inputs, Node, Progress, Replacement, Stand,
};
use bsn_core::membership::{Observed, Policy};
use bsn_core::names::NodeName;
use bsn_core::steps::{
    Described, Effect, PodSeen, RecordedRestart, RecordedStep, RecordedSwitch, cure_progress,
    inputs, is_halted, restart_progress, stand, switched_before,
};
use bsn_core::watch::{Known, Sight};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::memory::Memory;
use crate::api::conditions::{READY, Reason, STALLED, find};
use crate::build::application::halts_at_of;
use crate::build::stateful_set::template_hash_of;
use crate::cluster::watches::cached;
use crate::controller::context::Context;
use crate::controller::network::validate::ValidatedNetwork;
use crate::controller::node::{image, is_stamped_by};
use crate::evidence::known::{engine_start, know};
use crate::evidence::poller::NetworkTargets;
use crate::view::NetworkKey;

/// The intent of a step.
pub type StepIntent = Intent<RecordedStep>;

/// Everything a decision rests on.
pub struct World<'a> {
    pub ctx: &'a Context,
    pub key: &'a NetworkKey,
    pub validated: &'a ValidatedNetwork,
    pub anchor: &'a Anchor,
    pub record: Option<&'a Record<RecordedStep>>,
    pub targets: &'a NetworkTargets,
    /// Uid of the `BsnNetwork`.
    pub network_uid: Option<String>,
    /// Clusters that a person gave up for lost: what ran there has ended.
    pub forgotten: BTreeSet<String>,
}

impl<'a> World<'a> {
    /// The step under way.
    pub fn intent(&self) -> Option<&'a StepIntent> {
        self.record?.open.get(LEDGER)
    }

    /// The nodes as their API server knows them.
    pub fn known(&self) -> Vec<Known> {
        let nodes = self.targets.nodes.iter();
        nodes.map(|node| know(node, &self.ctx.clusters, &self.key.namespace)).collect()
    }

    /// The transaction under way, in base64.
    pub fn own_transaction(&self) -> Option<&'a str> {
        match &self.intent()?.step.effect {
            Effect::Change(change) => Some(&change.transaction),
            Effect::Restart(_) | Effect::Switch(_) => None,
        }
    }

    /// Height of the switch under way.
    pub fn halting(&self) -> Option<u64> {
        match &self.intent()?.step.effect {
            Effect::Switch(switch) => Some(switch.height),
            Effect::Change(_) | Effect::Restart(_) => None,
        }
    }

    fn stand(
        &self,
        name: &NodeName,
        identity: &Identity,
        pod: Option<PodSeen<'_>>,
        back: bool,
    ) -> Stand {
        let Some(height) = self.halting() else { return Stand::Old };
        let before = switched_before(height, &self.anchor.identities, name);
        let target = match before {
            Some((_, other)) => other.app_hash.clone(),
            None => self.validated.app_hash(),
        };
        stand(height, identity, target.as_deref().unwrap_or_default(), pod, back)
    }

    /// A node's pod, as it was last seen.
    pub fn pod(&self, node: &NodeName) -> Option<std::sync::Arc<Pod>> {
        let cluster = &self.anchor.identity(node)?.cluster;
        let seen = self.ctx.clusters.seen(cluster, &self.key.namespace)?;
        cached(&seen.objects.pods, &self.key.namespace, &format!("{node}-0"))
    }

    /// Whether what is known of a node's pod is as young as a watch makes it.
    pub fn is_seen(&self, node: &NodeName) -> bool {
        let identity = self.anchor.identity(node);
        identity.is_some_and(|one| self.ctx.place_of(one, &self.key.namespace).is_ok())
    }

    /// Nodes whose engine does not run any more, by their own API server.
    pub fn without_engine(&self, known: &[Known]) -> BTreeSet<NodeName> {
        let ended = known.iter().filter(|known| {
            let stopped = self.pod(&known.name).is_none_or(|pod| engine_start(&pod).is_none());
            (known.engine == Engine::NotReady && stopped) || self.is_forgotten(&known.name)
        });
        ended.map(|known| known.name.clone()).collect()
    }

    /// Whether a node is in a cluster that a person gave up for lost.
    pub fn is_forgotten(&self, node: &NodeName) -> bool {
        let identity = self.anchor.identity(node);
        identity.is_some_and(|identity| self.forgotten.contains(&identity.cluster))
    }

    /// What is told to the planner.
    pub fn observed(
        &self,
        sight: &Sight,
        known: &[Known],
        verdict: Option<&Verdict>,
        memory: &mut Memory,
        policy: &Policy,
    ) -> Observed {
        let now = self.ctx.watches.now();
        let mut nodes = BTreeMap::new();
        for (name, identity) in self.anchor.members() {
            // One whose keys are not made yet is not asked.
            let known = known.iter().find(|known| known.name == name);
            nodes.insert(
                name.clone(),
                self.node(&name, identity, known, sight, memory, policy, now),
            );
        }
        memory.trying.retain(|name, _| nodes.contains_key(name));
        Observed {
            nodes,
            ledgers: [(LEDGER.to_owned(), sight.ledger.clone())].into(),
            begun: self.begun(sight, verdict),
            hub: Hub::Current,
        }
    }

    #[allow(clippy::too_many_arguments, reason = "all that is known of one node")]
    fn node(
        &self,
        name: &NodeName,
        identity: &Identity,
        known: Option<&Known>,
        sight: &Sight,
        memory: &mut Memory,
        policy: &Policy,
        now: Duration,
    ) -> Node {
        let pod = self.pod(name);
        let described = self.validated.inputs_hash(&identity.set);
        let (sighted, switches) = (sight.nodes.get(name), self.validated.switches());
        let machine = pod.as_ref().and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        let (asked_to_go, disk_lost) = self.said_by_object(name);
        let facts = pod.as_deref().map(Facts::of);
        let seen = facts.as_ref().map(Facts::seen);
        // For how long a cure is tried is not counted while it cannot be seen whether it helped.
        let ended = identity.cure.as_ref().is_none_or(|cure| cure.described != described);
        if ended || !self.is_seen(name) {
            memory.trying.remove(name);
        }
        let inputs = inputs(
            identity,
            seen,
            Described { inputs: &described, switches: switches.as_deref() },
            self.halting(),
        );
        let tried_for = || now.saturating_sub(*memory.trying.entry(name.clone()).or_insert(now));
        Node {
            cluster: identity.cluster.clone(),
            domain: machine.unwrap_or_default(),
            engine: known.map_or(Engine::NotReady, |known| known.engine),
            inputs,
            stand: self.stand(name, identity, seen, sighted.is_some_and(|node| node.back)),
            halted: is_halted(seen, sight.height, self.halting()),
            back_seconds: sighted.map_or(0, |node| node.listed_seconds),
            disk_lost,
            replacement: match (identity.replaced, asked_to_go) {
                (true, _) => Replacement::Recorded,
                (false, true) => Replacement::Asked,
                (false, false) => Replacement::No,
            },
            held: self.validated.holds.contains(name),
            agents: if inputs == Inputs::Current {
                Agents::Available
            } else {
                self.agents(name, identity)
            },
            cure: cure_progress(identity, seen, &described, tried_for, policy.cure_seconds),
            entry: match identity.vote.entry {
                EntryRecord::Over => Entry::Over,
                EntryRecord::Entering => Entry::Entering,
                EntryRecord::Failed => Entry::Failed,
            },
            down_seconds: sighted.map_or(0, |node| node.down_seconds),
            described: asked_for(&described, identity.last_restart),
            ..Node::new(&identity.set)
        }
    }

    /// Whether a node can get the agents that a restart would bring.
    fn agents(&self, name: &NodeName, identity: &Identity) -> Agents {
        // Of a cluster that cannot be asked other gates tell.
        let Ok(place) = self.ctx.place_of(identity, &self.key.namespace) else {
            return Agents::Available;
        };
        match image::obstacle(&self.ctx.proofs, &place, &self.key.namespace, name) {
            None => Agents::Available,
            Some((reason, why)) if reason.may_pass() => Agents::NotProved(why),
            Some((_, why)) => Agents::Unavailable(why),
        }
    }

    /// Whether the user deleted the node's object, and whether it says that its disk is lost.
    fn said_by_object(&self, name: &NodeName) -> (bool, bool) {
        let object = cached(&self.ctx.caches.nodes, &self.key.namespace, name.as_str());
        let Some(Ok(node)) = object.as_ref().map(|guarded| guarded.0.as_ref()) else {
            return (false, false);
        };
        let conditions = node.status.as_ref().map(|status| status.conditions.as_slice());
        let conditions = conditions.unwrap_or_default();
        let lost = [Reason::DiskLost, Reason::DiskRefused, Reason::KeyLost];
        let disk_lost = find(conditions, STALLED).is_some_and(|stalled| {
            stalled.status == "True" && lost.iter().any(|reason| reason.as_str() == stalled.reason)
        });
        let ready = find(conditions, READY).is_some_and(|ready| ready.status == "True");
        // One that was stamped by a network object that is gone is stamped anew.
        let asked = node.metadata.deletion_timestamp.is_some()
            && is_stamped_by(node, self.network_uid.as_deref());
        (asked, disk_lost && !ready)
    }

    fn begun(&self, sight: &Sight, verdict: Option<&Verdict>) -> Option<Begun> {
        let intent = self.intent()?;
        Some(match &intent.step.effect {
            Effect::Change(recorded) => Begun::Change {
                ledger: recorded.ledger.clone(),
                change: recorded.change.clone(),
                fate: match (intent.phase, verdict) {
                    (Phase::Begun, _) => Fate::Recorded,
                    (Phase::Sent, Some(Verdict::Confirmed { .. })) => Fate::Confirmed,
                    (Phase::Sent, Some(Verdict::WithoutEffect { .. } | Verdict::Impossible)) => {
                        Fate::Impossible
                    }
                    (Phase::Sent, _) => Fate::Sent,
                },
            },
            Effect::Switch(RecordedSwitch { ledger, height }) => {
                Begun::Switch { ledger: ledger.clone(), height: *height }
            }
            Effect::Restart(restart) => Begun::Restart {
                node: restart.node.clone(),
                progress: self.progress(intent, restart, sight),
                consents: self.consents_of(intent.number),
            },
        })
    }

    fn consents_of(&self, number: u64) -> BTreeSet<String> {
        let used = self.anchor.used_consents.iter().filter(|(_, step)| **step == number);
        used.map(|(consent, _)| consent.clone()).collect()
    }

    /// How far the restart under way is.
    pub fn progress(
        &self,
        intent: &StepIntent,
        restart: &RecordedRestart,
        sight: &Sight,
    ) -> Progress {
        let Some(identity) = self.anchor.identity(&restart.node) else { return Progress::Back };
        let pod = self.pod(&restart.node);
        let facts = pod.as_deref().map(Facts::of);
        let back = sight.nodes.get(&restart.node).is_some_and(|node| node.back);
        let sent = intent.phase == Phase::Sent;
        let described = self.validated.inputs_hash(&identity.set);
        let seen = facts.as_ref().map(Facts::seen);
        restart_progress(restart, sent, identity, &described, seen, back)
    }
}

/// How a consent names the restart to what is described: the same description later is another restart.
fn asked_for(described: &str, last_restart: u64) -> String {
    match last_restart {
        0 => described.to_owned(),
        number => format!("{described}-{number}"),
    }
}

/// What matters of a pod.
pub struct Facts {
    uid: String,
    template: Option<String>,
    halts_at: Option<u64>,
    ending: bool,
}

impl Facts {
    pub fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.uid().unwrap_or_default(),
            template: template_hash_of(pod.metadata.annotations.as_ref()),
            halts_at: halts_at_of(pod.metadata.annotations.as_ref()),
            ending: pod.metadata.deletion_timestamp.is_some(),
        }
    }

    pub fn seen(&self) -> PodSeen<'_> {
        let template = self.template.as_deref();
        PodSeen { uid: &self.uid, template, halts_at: self.halts_at, ending: self.ending }
    }
}
