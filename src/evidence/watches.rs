//! What the poller remembers of all networks, shared with the controllers that decide on it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bsn_core::watch::{Known, Sight, Watch};
use tokio::time::Instant;

use crate::view::NetworkKey;

/// What is remembered of a network.
#[derive(Clone, Default)]
pub struct Watched {
    /// Random id of the network it is about.
    pub network_id: String,
    /// Its nodes' answers.
    pub watch: Watch,
    /// When the last round of questions began.
    pub round_began: Duration,
}

/// All of them. Times are since the start of this process.
#[derive(Clone)]
pub struct Watches {
    start: Instant,
    all: Arc<RwLock<BTreeMap<NetworkKey, Watched>>>,
}

impl Default for Watches {
    fn default() -> Self {
        Self { start: Instant::now(), all: Arc::default() }
    }
}

impl Watches {
    /// Time since the start of this process.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Changes what is remembered of a network.
    pub fn update<T>(&self, key: &NetworkKey, change: impl FnOnce(&mut Watched) -> T) -> T {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(key.clone()).or_default())
    }

    /// Forgets all networks that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(&NetworkKey) -> bool) {
        self.all.write().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }

    /// What is seen of a network now, and when the questions began that this rests on; `None` = it was not
    /// asked yet. `own_transaction`: see [`Watch::sight`].
    pub fn sight(
        &self,
        key: &NetworkKey,
        network_id: &str,
        chain_id: &str,
        nodes: &[Known],
        own_transaction: Option<&str>,
    ) -> Option<(Sight, Duration)> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let watched = all.get(key).filter(|watched| watched.network_id == network_id)?;
        let sight = watched.watch.sight(chain_id, nodes, own_transaction, self.now());
        Some((sight, watched.round_began))
    }
}
