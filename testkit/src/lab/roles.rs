//! Which clusters of the lab the stories use, and as what.

use anyhow::{Context as _, Result};

use super::layout::LabSpec;

/// Names the hub's cluster. So stories can be tried while others run on cluster 0.
pub const HUB_VARIABLE: &str = "BSN_LAB_HUB";
/// Two machines each: the least on which a drain can end, and voters spread.
const MACHINES: usize = 2;

/// The clusters of the stories: the one with the operator, and two that join it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// The cluster with the operator.
    pub hub: usize,
    /// Those that join it.
    pub members: [usize; 2],
}

impl Roles {
    /// The hub is cluster 0, or the one that `BSN_LAB_HUB` names; the two after it join.
    pub fn from_env() -> Result<Self> {
        match std::env::var(HUB_VARIABLE) {
            Ok(text) if !text.is_empty() => {
                let hub = text.parse().with_context(|| {
                    format!("{HUB_VARIABLE} is the number of a cluster, not {text:?}")
                })?;
                Ok(Self::of(hub))
            }
            _ => Ok(Self::of(0)),
        }
    }

    fn of(hub: usize) -> Self {
        Self { hub, members: [hub + 1, hub + 2] }
    }

    /// Clusters that have an operator of their own: stories that need no member run in any of them.
    pub fn hubs(self) -> [usize; 3] {
        self.all()
    }

    /// All of them, the hub first.
    pub fn all(self) -> [usize; 3] {
        let [first, second] = self.members;
        [self.hub, first, second]
    }

    /// The smallest lab that has them.
    pub fn spec(self) -> LabSpec {
        LabSpec { clusters: self.all().into_iter().max().unwrap_or(0) + 1, machines: MACHINES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_is_just_large_enough_for_the_hub_and_its_members() {
        assert_eq!(Roles::of(0).spec(), LabSpec { clusters: 3, machines: 2 });
        assert_eq!(Roles::of(1).all(), [1, 2, 3]);
        assert_eq!(Roles::of(1).spec(), LabSpec { clusters: 4, machines: 2 });
    }
}
