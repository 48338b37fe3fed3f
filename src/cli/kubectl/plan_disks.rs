//! Disks in a plan: they grow beside the steps, and no step waits for them.

use std::collections::BTreeMap;
use std::fmt;

use bsn_core::membership::model::Observed;
use bsn_core::quantity::parse_bytes;
use serde::Serialize;

/// Disks of a set that grow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownDisks {
    /// The set.
    pub set: String,
    /// Their size now.
    pub from: String,
    /// Their size then.
    pub to: String,
    /// How many there are now.
    pub count: usize,
}

impl fmt::Display for ShownDisks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, from, to, count } = self;
        let what = if *count == 1 { "1 disk grows" } else { &format!("{count} disks grow") };
        write!(f, "Set {set}: {what} from {from} to {to}, without a restart")
    }
}

/// Disks that would get smaller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the disks of set {set} would shrink from {from} to {to}, which is refused; keep the size, or add another set with \
     smaller disks"
)]
pub struct Shrinks {
    set: String,
    from: String,
    to: String,
}

/// Compares sizes by set, old and new. A set that comes or goes has no disks that grow.
pub fn disks_that_grow(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    observed: &Observed,
) -> Result<Vec<ShownDisks>, Shrinks> {
    let mut disks = Vec::new();
    for (set, to) in new {
        let Some(from) = old.get(set) else { continue };
        let (set, from, to) = (set.clone(), from.clone(), to.clone());
        let (before, after) = (parse_bytes(&from), parse_bytes(&to));
        if after < before {
            return Err(Shrinks { set, from, to });
        }
        let count = observed.nodes.values().filter(|node| node.set == set).count();
        if after > before && count > 0 {
            disks.push(ShownDisks { set, from, to, count });
        }
    }
    Ok(disks)
}
