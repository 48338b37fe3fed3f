//! What is looked at again and again while a story goes on, beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bsn_core::intent::record::Record;
use bsn_core::steps::RecordedStep;
use bsn_operator::intent::STEPS_KEY;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::Api;
use tokio::task::JoinHandle;

use crate::chain::Gap;
use crate::support::{World, is_ready, node_of};

/// Shorter than any step or restart takes.
const EVERY: Duration = Duration::from_millis(400);

/// Something that is looked at until the story ends it.
pub struct Sampler<T> {
    ended: Arc<AtomicBool>,
    task: JoinHandle<T>,
}

impl<T> Sampler<T> {
    /// Ends it; gives what was seen.
    pub async fn end(self) -> T {
        self.ended.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// What was seen of steps.
#[derive(Debug, Default)]
pub struct StepsSeen {
    looks: u64,
    /// In words, by number.
    pub steps: BTreeMap<u64, String>,
    wrong: Vec<String>,
}

impl StepsSeen {
    fn look(&mut self, record: &Record<RecordedStep>, newest: &mut (u64, u64)) {
        self.looks += 1;
        let shown = || format!("{record:?}");
        if record.open.len() > 1 {
            self.wrong.push(format!("two steps at once: {}", shown()));
        }
        // Numbers and revisions only grow, and what is open is the newest.
        let now = (record.revision, record.step_number);
        if now.0 < newest.0 || now.1 < newest.1 {
            self.wrong.push(format!("back from {newest:?}: {}", shown()));
        }
        *newest = now;
        for intent in record.open.values() {
            if intent.number != record.step_number {
                self.wrong.push(format!("an older step is open: {}", shown()));
            }
            let what = self.steps.entry(intent.number).or_default();
            if what.is_empty() {
                what.clone_from(&intent.step.what);
            } else if *what != intent.step.what {
                self.wrong.push(format!("a number used twice, first for {what}: {}", shown()));
            }
        }
    }

    /// No two steps were ever under way; prints those that were seen.
    pub fn check(&self) {
        println!("{} looks at the record; steps seen under way:", self.looks);
        for (number, what) in &self.steps {
            println!("  {number:>3} {what}");
        }
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        assert!(self.looks > 10 && !self.steps.is_empty(), "the record was not seen");
    }
}

/// Watches the steps that the network's anchor says are under way.
pub fn watch_steps(world: &World) -> Sampler<StepsSeen> {
    let maps: Api<ConfigMap> = world.api();
    let name = format!("{}-anchor", world.network);
    let ended = Arc::new(AtomicBool::new(false));
    let end = ended.clone();
    let task = tokio::spawn(async move {
        let (mut seen, mut newest) = (StepsSeen::default(), (0, 0));
        while !end.load(Ordering::Relaxed) {
            let map = maps.get(&name).await.ok();
            if let Some(text) = map.and_then(|map| map.data?.remove(STEPS_KEY)) {
                match serde_json::from_str(&text) {
                    Ok(record) => seen.look(&record, &mut newest),
                    Err(error) => seen.wrong.push(format!("{error}: {text}")),
                }
            }
            tokio::time::sleep(EVERY).await;
        }
        seen
    });
    Sampler { ended, task }
}

/// A time in which a node's pod was not ready, after it had been.
#[derive(Debug, Clone)]
pub struct Outage {
    pub node: String,
    pub from: Timestamp,
    /// When it was ready again, or the watch ended.
    pub to: Timestamp,
}

impl Outage {
    /// Whether a block was being agreed to in this time.
    pub fn touches(&self, gap: &Gap) -> bool {
        let began = gap.end - Duration::from_secs_f64(gap.seconds.max(0.0));
        gap.end >= self.from && began <= self.to
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.to.duration_since(self.from).as_secs_f64();
        write!(f, "{} not ready for {seconds:.1} s from {:.0}", self.node, self.from)
    }
}

/// What was seen of pods.
#[derive(Debug, Default)]
pub struct PodsSeen {
    /// Every pod that a node ever had, by uid.
    pub uids: BTreeMap<String, BTreeSet<String>>,
    /// In the order in which they began.
    pub outages: Vec<Outage>,
    /// How many nodes were not ready at once, at most.
    pub most_down: usize,
    down: BTreeMap<String, Timestamp>,
    was_ready: BTreeSet<String>,
}

impl PodsSeen {
    fn look(&mut self, pods: &[Pod], now: Timestamp) {
        let mut ready = BTreeSet::new();
        for pod in pods {
            self.uids.entry(node_of(pod)).or_default().extend(pod.uid());
            if is_ready(pod) {
                ready.insert(node_of(pod));
            }
        }
        for node in &ready {
            if let Some(from) = self.down.remove(node) {
                self.outages.push(Outage { node: node.clone(), from, to: now });
            }
        }
        let missing: Vec<_> = self.was_ready.difference(&ready).cloned().collect();
        for node in missing {
            self.down.entry(node).or_insert(now);
        }
        self.was_ready.append(&mut ready);
        self.most_down = self.most_down.max(self.down.len());
    }

    fn finish(mut self, now: Timestamp) -> Self {
        let down = std::mem::take(&mut self.down);
        self.outages.extend(down.into_iter().map(|(node, from)| Outage { node, from, to: now }));
        self.outages.sort_by_key(|outage| outage.from);
        self
    }
}

/// Watches which pods there are, and which are not ready that were.
pub fn watch_pods(world: &World) -> Sampler<PodsSeen> {
    let world = world.clone();
    let ended = Arc::new(AtomicBool::new(false));
    let end = ended.clone();
    let task = tokio::spawn(async move {
        let mut seen = PodsSeen::default();
        while !end.load(Ordering::Relaxed) {
            if let Ok(pods) = world.try_pods().await {
                seen.look(&pods, Timestamp::now());
            }
            tokio::time::sleep(EVERY).await;
        }
        seen.finish(Timestamp::now())
    });
    Sampler { ended, task }
}
