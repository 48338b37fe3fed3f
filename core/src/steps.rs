//! What is kept of steps: all that is needed to do one again in exactly the same way, while it is under way
//! ([`RecordedStep`], in the anchor), and what people want to know afterwards ([`PastStep`], in the history).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::anchor::Identity;
use crate::membership::model::{Change, Cure, Inputs, LedgerName, Progress, Stand};
use crate::names::NodeName;

/// A step under way. It is what an intent of the protocol ([`crate::intent`]) carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedStep {
    /// When it was recorded, on the operator's clock; for people.
    pub begun_at: Timestamp,
    /// What it is, in words, with nodes by name.
    pub what: String,
    /// What it does.
    #[serde(flatten)]
    pub effect: Effect,
}

/// What a step does outside of the anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// Sends a transaction that changes the members of a ledger.
    Change(RecordedChange),
    /// Restarts a node.
    Restart(RecordedRestart),
    /// Switches all nodes to another application at one height.
    Switch(RecordedSwitch),
}

/// A transaction, pinned: it is sent to this process, in these bytes, or never.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedChange {
    /// Which ledger.
    pub ledger: LedgerName,
    /// What changes.
    pub change: Change,
    /// Address of the consensus key it is about.
    pub address: String,
    /// Power of that key once it has taken effect; 0 = it votes no more.
    pub power: u64,
    /// The transaction, in standard base64.
    pub transaction: String,
    /// The node it is sent to.
    pub entry: NodeName,
    /// Id of that node's engine process.
    pub entry_start: String,
    /// Newest block when it was recorded: the transaction is in no block up to this one.
    pub after_height: u64,
}

/// A restart, so that what is described takes effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedRestart {
    /// Which node.
    pub node: NodeName,
    /// Short hash of what is described for it.
    pub described: String,
    /// Hash of the template in force when it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_template: Option<String>,
    /// Uid of the pod that is to end; `None` = there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_pod: Option<String>,
}

/// A switch of all nodes to another application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RecordedSwitch {
    /// Which ledger.
    pub ledger: LedgerName,
    /// The last block of the old application.
    pub height: u64,
}

/// A step that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastStep {
    /// Its number; `None` = one that needs no record of its own (a node made, retired, or restarted as a cure).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// What it was, in words.
    pub what: String,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was recorded.
    pub begun_at: Timestamp,
    /// When it was first sent, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// Height at which it was read back, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It took effect.
    Done,
    /// It was given up before anything was done.
    Withdrawn,
    /// It was sent, and is proved never to take effect.
    NeverTookEffect,
    /// A person gave it up by consent.
    Abandoned,
    /// The node that was restarted did not come back, and something else is done about it now.
    NotBack,
}

/// Key of the history in its `ConfigMap`.
pub const HISTORY_KEY: &str = "history.json";
/// Steps kept; older ones are dropped.
pub const HISTORY_LENGTH: usize = 100;

/// A node's pod, as its API server has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodSeen<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// Hash of the template it was made from.
    pub template: Option<&'a str>,
    /// Its application was told to make no block after this one.
    pub halts_at: Option<u64>,
    /// It is being ended.
    pub ending: bool,
}

/// What is described for a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described<'a> {
    /// Hash of all that makes it restart.
    pub inputs: &'a str,
    /// Hash of its application, if that may change at one height only.
    pub switches: Option<&'a str>,
}

/// Whether a node runs what is described. One that was never started gets that when it is. `halting` = the
/// height of the switch under way.
pub fn inputs(
    identity: &Identity,
    pod: Option<PodSeen<'_>>,
    described: Described<'_>,
    halting: Option<u64>,
) -> Inputs {
    let Some(in_force) = identity.template_hash.as_deref() else { return Inputs::Current };
    let behind = pod.and_then(|pod| pod.template).is_some_and(|runs| runs != in_force);
    // A switch that was given up is undone first, of the template and of the pod.
    let halts = halting.is_some() && identity.halts_at == halting;
    if !halts && (behind || identity.halts_at.is_some()) {
        return Inputs::Pending;
    }
    if identity.inputs_hash.as_deref() == Some(described.inputs) {
        return Inputs::Current;
    }
    match described.switches {
        Some(app) if identity.app_hash.as_deref() != Some(app) => Inputs::Switch,
        _ => Inputs::Pending,
    }
}

/// Whether a node's application makes no block any more because a switch that was given up told it to.
pub fn is_halted(pod: Option<PodSeen<'_>>, head: u64, halting: Option<u64>) -> bool {
    let last = pod.and_then(|pod| pod.halts_at);
    last.is_some_and(|last| last <= head && Some(last) != halting)
}

/// The node whose application `node` is to run after the switch at `height`: the first one that was switched. `None`
/// = what is described: no other was. From the second node on all get what the first one has: nodes with
/// different applications must not make a block together.
pub fn switched_before<'a>(
    height: u64,
    identities: &'a BTreeMap<String, Identity>,
    node: &NodeName,
) -> Option<(&'a str, &'a Identity)> {
    let mut switched = identities
        .iter()
        .filter(|(_, identity)| identity.switched_at == Some(height) && !identity.retired);
    let (name, identity) = switched.next()?;
    let alone = name == node.as_str() && switched.next().is_none();
    (!alone).then_some((name.as_str(), identity))
}

/// Where a node stands in the switch at `height`. `target` = hash of the application that it is to run then, see
/// [`switched_before`]; `back` = see [`crate::watch::NodeSight`].
pub fn stand(
    height: u64,
    identity: &Identity,
    target: &str,
    pod: Option<PodSeen<'_>>,
    back: bool,
) -> Stand {
    let in_force = identity.template_hash.as_deref();
    let runs_it = pod.map(|pod| !pod.ending && pod.template == in_force);
    let of = |ordered, down, up| match runs_it {
        Some(true) if back => up,
        Some(false) if !pod.is_some_and(|pod| pod.ending) => ordered,
        _ => down,
    };
    if identity.switched_at == Some(height) {
        if identity.app_hash.as_deref() != Some(target) {
            return Stand::NewOrdered;
        }
        of(Stand::NewOrdered, Stand::NewDown, Stand::New)
    } else if identity.halts_at == Some(height) {
        of(Stand::HaltOrdered, Stand::HaltDown, Stand::Halts)
    } else {
        Stand::Old
    }
}

/// How far a restart is. `sent` = its effects were begun; `described` = hash of what is described now, which may
/// have changed since; `back` = see [`crate::watch::NodeSight`].
pub fn restart_progress(
    restart: &RecordedRestart,
    sent: bool,
    identity: &Identity,
    described: &str,
    pod: Option<PodSeen<'_>>,
    back: bool,
) -> Progress {
    if !sent {
        return Progress::Untouched;
    }
    let in_force = identity.template_hash.as_deref();
    // Of what is described nothing was put in force: a leader ended between the record and its effect.
    let untouched = in_force == restart.old_template.as_deref()
        && identity.inputs_hash.as_deref() != Some(described);
    match pod {
        Some(pod) if pod.ending => Progress::Down,
        Some(pod) if restart.old_pod.as_deref() == Some(pod.uid) => Progress::Ordered,
        Some(pod) if untouched || pod.template != in_force => Progress::Ordered,
        None if untouched => Progress::Ordered,
        Some(_) if back => Progress::Back,
        Some(_) | None => Progress::Down,
    }
}

/// How far a restart as a cure is. `tried_for` = for how long the old pod has been gone.
pub fn cure_progress(
    identity: &Identity,
    pod: Option<PodSeen<'_>>,
    described: &str,
    tried_for: impl FnOnce() -> Duration,
    cure_seconds: u64,
) -> Cure {
    let Some(cure) = identity.cure.as_ref().filter(|cure| cure.described == described) else {
        return Cure::Untried;
    };
    if pod.is_some_and(|pod| cure.pod.as_deref() == Some(pod.uid)) {
        Cure::Ordered
    } else if tried_for().as_secs() >= cure_seconds {
        Cure::Failed
    } else {
        Cure::Trying
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::{CureRecord, Role};

    #[test]
    fn a_recorded_step_reads_as_it_was_written() {
        let node = NodeName::from_object("net-a-0");
        let step = |effect| RecordedStep {
            begun_at: Timestamp::UNIX_EPOCH,
            what: "do it".to_owned(),
            effect,
        };
        let restart = RecordedRestart {
            node: node.clone(),
            described: "d1".into(),
            old_template: None,
            old_pod: Some("u1".into()),
        };
        let change = RecordedChange {
            ledger: "main".into(),
            change: Change::Add { node: node.clone(), power: 10 },
            address: "A0".into(),
            power: 10,
            transaction: "dmFsPQ==".into(),
            entry: node,
            entry_start: "containerd://1".into(),
            after_height: 7,
        };
        for effect in [Effect::Restart(restart), Effect::Change(change)] {
            let step = step(effect);
            let text = serde_json::to_string(&step).unwrap();
            assert_eq!(serde_json::from_str::<RecordedStep>(&text).unwrap(), step, "{text}");
        }
    }

    fn identity(in_force: &str, put: &str) -> Identity {
        Identity {
            template_hash: Some(in_force.into()),
            inputs_hash: Some(put.into()),
            ..Identity::new("i".into(), "a".into(), Role::Validator)
        }
    }

    fn pod(uid: &'static str, template: &'static str) -> PodSeen<'static> {
        PodSeen { uid, template: Some(template), halts_at: None, ending: false }
    }

    #[test]
    fn a_restart_is_over_when_the_new_pod_is_back_and_not_before() {
        let restart = RecordedRestart {
            node: NodeName::from_object("net-a-0"),
            described: "new".into(),
            old_template: Some("t1".into()),
            old_pod: Some("u1".into()),
        };
        let (old, new) = (identity("t1", "old"), identity("t2", "new"));
        let progress = |sent, identity: &Identity, pod, back| {
            restart_progress(&restart, sent, identity, "new", pod, back)
        };
        assert_eq!(progress(false, &old, Some(pod("u1", "t1")), true), Progress::Untouched);
        assert_eq!(progress(true, &old, Some(pod("u1", "t1")), true), Progress::Ordered);
        assert_eq!(
            progress(true, &old, Some(pod("u2", "t1")), true),
            Progress::Ordered,
            "evicted before the new template was in force: it came back on the old one"
        );
        let behind = RecordedRestart { old_template: Some("t2".into()), ..restart.clone() };
        let behind = restart_progress(&behind, true, &new, "new", Some(pod("u2", "t2")), true);
        assert_eq!(
            behind,
            Progress::Back,
            "its template was in force before, its pod was not of it"
        );
        assert_eq!(progress(true, &new, Some(pod("u1", "t1")), true), Progress::Ordered);
        let ending = PodSeen { ending: true, ..pod("u1", "t1") };
        assert_eq!(progress(true, &new, Some(ending), true), Progress::Down);
        assert_eq!(progress(true, &new, None, false), Progress::Down);
        assert_eq!(progress(true, &old, None, false), Progress::Ordered, "not put in force yet");
        let reverted = restart_progress(&restart, true, &old, "old", Some(pod("u3", "t1")), true);
        assert_eq!(reverted, Progress::Back, "the description went back, and so did the node");
        assert_eq!(progress(true, &new, Some(pod("u2", "t2")), false), Progress::Down);
        assert_eq!(progress(true, &new, Some(pod("u2", "t2")), true), Progress::Back);
    }

    #[test]
    fn a_node_has_to_restart_if_it_is_described_anew_or_its_pod_is_of_another_template() {
        let inputs = |identity: &Identity, pod, inputs| {
            super::inputs(identity, pod, Described { inputs, switches: None }, None)
        };
        let now = identity("t1", "d1");
        assert_eq!(inputs(&now, Some(pod("u", "t1")), "d1"), Inputs::Current);
        assert_eq!(inputs(&now, Some(pod("u", "t1")), "d2"), Inputs::Pending);
        assert_eq!(inputs(&now, Some(pod("u", "t0")), "d1"), Inputs::Pending);
        assert_eq!(inputs(&now, None, "d1"), Inputs::Current);
        let fresh = Identity { template_hash: None, inputs_hash: None, ..now.clone() };
        assert_eq!(inputs(&fresh, None, "d2"), Inputs::Current);
        let halts = Identity { halts_at: Some(9), ..now };
        assert_eq!(inputs(&halts, None, "d1"), Inputs::Pending, "of a switch that was given up");
    }

    #[test]
    fn another_application_that_may_come_at_one_height_only_is_a_switch() {
        let old = Identity { app_hash: Some("a1".into()), ..identity("t1", "d1") };
        let to = |switches| inputs(&old, None, Described { inputs: "d2", switches }, None);
        assert_eq!(to(Some("a2")), Inputs::Switch);
        assert_eq!(to(Some("a1")), Inputs::Pending, "something else of it changed");
        assert_eq!(to(None), Inputs::Pending, "it may come one by one");
        let unknown = identity("t1", "d2");
        let described = Described { inputs: "d2", switches: Some("a2") };
        assert_eq!(inputs(&unknown, None, described, None), Inputs::Current);
    }

    #[test]
    fn a_node_goes_from_the_old_application_over_halted_to_the_new_one() {
        let old = identity("t1", "d1");
        let at = |identity: &Identity, pod, back| stand(9, identity, "a2", pod, back);
        assert_eq!(at(&old, Some(pod("u1", "t1")), true), Stand::Old);
        let halts = Identity { halts_at: Some(9), ..identity("t2", "d1") };
        assert_eq!(at(&halts, Some(pod("u1", "t1")), true), Stand::HaltOrdered);
        let ending = PodSeen { ending: true, ..pod("u1", "t1") };
        assert_eq!(at(&halts, Some(ending), true), Stand::HaltDown);
        assert_eq!(at(&halts, None, false), Stand::HaltDown);
        assert_eq!(at(&halts, Some(pod("u2", "t2")), false), Stand::HaltDown);
        assert_eq!(at(&halts, Some(pod("u2", "t2")), true), Stand::Halts);
        let other = Identity { halts_at: Some(8), ..halts.clone() };
        assert_eq!(at(&other, Some(pod("u2", "t2")), true), Stand::Old, "of an earlier height");
        let app_hash = Some("a2".to_owned());
        let new = Identity { switched_at: Some(9), app_hash, ..identity("t3", "d2") };
        assert_eq!(at(&new, Some(pod("u2", "t2")), true), Stand::NewOrdered);
        assert_eq!(at(&new, None, false), Stand::NewDown);
        assert_eq!(at(&new, Some(pod("u3", "t3")), true), Stand::New);
        let anew = stand(9, &new, "a3", Some(pod("u3", "t3")), true);
        assert_eq!(anew, Stand::NewOrdered, "described anew");
        let all = [("net-a-0", &halts), ("net-a-1", &new), ("net-a-2", &new)];
        let before = |count: usize, node: &str| {
            let all = all[..count].iter().map(|(name, one)| ((*name).to_owned(), (*one).clone()));
            let before =
                switched_before(9, &all.collect(), &NodeName::from_object(node))?.0.to_owned();
            Some(before)
        };
        assert_eq!(before(1, "net-a-0"), None);
        assert_eq!(before(2, "net-a-1"), None, "one alone can be given another");
        assert_eq!(before(2, "net-a-0").as_deref(), Some("net-a-1"));
        assert_eq!(before(3, "net-a-1").as_deref(), Some("net-a-1"));
        assert_eq!(before(3, "net-a-2").as_deref(), Some("net-a-1"));
    }

    #[test]
    fn a_cure_is_tried_once_for_each_description() {
        let mut node = identity("t1", "d1");
        let cure = |node: &Identity, pod, described: &str, seconds| {
            cure_progress(node, pod, described, || Duration::from_secs(seconds), 180)
        };
        assert_eq!(cure(&node, Some(pod("u1", "t1")), "d1", 0), Cure::Untried);
        node.cure = Some(CureRecord { described: "d1".into(), pod: Some("u1".into()) });
        assert_eq!(cure(&node, Some(pod("u1", "t1")), "d1", 500), Cure::Ordered);
        assert_eq!(cure(&node, None, "d1", 0), Cure::Trying);
        assert_eq!(cure(&node, Some(pod("u2", "t1")), "d1", 180), Cure::Failed);
        assert_eq!(cure(&node, Some(pod("u2", "t1")), "d2", 500), Cure::Untried);
    }
}
