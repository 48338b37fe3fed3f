//! What a leader remembers of a network's steps during its term. None of it is needed for safety: a new leader
//! begins with nothing and finds out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use bsn_core::engine::cometbft::settle::Settling;
use bsn_core::intent::writer::Writer;
use bsn_core::membership::Decision;
use bsn_core::names::NodeName;
use bsn_core::steps::RecordedStep;
use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::cluster::machines::Machine;
use crate::engine::cometbft::driver::{Obstacle, Scan};
use crate::view::NetworkKey;

/// What is remembered of one network.
pub struct Memory {
    /// Writes the record of steps.
    pub writer: Writer<RecordedStep>,
    /// Random id of the network.
    pub network_id: String,
    /// Nothing is decided on what was asked before: see [`bsn_core::membership::Observed`].
    pub not_before: Duration,
    /// Of the transaction under way.
    pub settling: Settling,
    /// A node held it at the last look.
    pub held: bool,
    /// Blocks searched for it.
    pub scan: Scan,
    /// Why the step under way has had no effect yet, at the last try, by number.
    pub unsent: Option<(u64, Obstacle)>,
    /// When it was first sent, by number.
    pub sent: Option<(u64, Timestamp)>,
    /// When it was last sent, and what the engine said.
    pub last_try: Option<(Duration, String)>,
    /// Since when each cure is being tried.
    pub trying: BTreeMap<NodeName, Duration>,
    /// Machines whose drains people were told of.
    pub drains: BTreeSet<Machine>,
    /// The last answer of the planner, and since when it is that.
    pub decided: Option<(Decision, Duration)>,
    /// Generation of the description that it is about.
    pub generation: Option<i64>,
}

impl Memory {
    /// A new leader's.
    pub fn new(hub_id: &str, network_id: &str, transitions: u64) -> Self {
        Self {
            writer: Writer::new(hub_id, network_id, transitions, []),
            network_id: network_id.to_owned(),
            not_before: Duration::ZERO,
            settling: Settling::default(),
            held: false,
            scan: Scan::default(),
            unsent: None,
            sent: None,
            last_try: None,
            trying: BTreeMap::new(),
            drains: BTreeSet::new(),
            decided: None,
            generation: None,
        }
    }

    /// The step is sent, if it was not yet.
    pub fn note_sent(&mut self, step: u64, now: Timestamp) {
        if self.sent.as_ref().is_none_or(|(number, _)| *number != step) {
            self.sent = Some((step, now));
        }
    }
}

/// All of them.
#[derive(Clone, Default)]
pub struct Memories(Arc<StdMutex<BTreeMap<NetworkKey, Arc<Mutex<Memory>>>>>);

impl Memories {
    /// The memory of a network; `new` makes it.
    pub fn of(&self, key: &NetworkKey, new: impl FnOnce() -> Memory) -> Arc<Mutex<Memory>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(key.clone()).or_insert_with(|| Arc::new(Mutex::new(new()))).clone()
    }

    /// Forgets a network.
    pub fn remove(&self, key: &NetworkKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}
