//! The disruption budget of a network whose voters are in several clusters.
//!
//! Kubernetes asks a `PodDisruptionBudget` before it evicts a pod, and knows only the pods of its own cluster. So the
//! voters that the chain can miss are dealt out: each cluster has a *share*, the number of its voters that may be
//! evicted there at once, and its budget says `minAvailable` = voters there − share. Failures, restarts of our own and
//! shares draw on the same margin ([`crate::quorum`]), at every moment, by what is in force and not by what is wanted:
//!
//! 1. **Lower.** A share that is too large is written smaller. Always safe, so always first.
//! 2. **Record.** The anchor never says less than what may be in force: a share is recorded smaller when the cluster's
//!    disruption controller was seen to apply the smaller one, and larger before that is written.
//! 3. **Raise.** A share is written larger when it is recorded and the chain can still miss so many.
//!
//! Between any two of these the operator may end, and goes on from what it finds. A cluster that cannot be asked keeps
//! its recorded share: it counts as used up, in addition to the voters there that are not seen to sign.
//!
//! A voter that was evicted uses its cluster's share until its pod is ready again: Kubernetes counts it, and allows no
//! other there. Whether the share may go elsewhere meanwhile follows from the same arithmetic: that voter is missed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::names::cluster_in_words;
use crate::quorum::{Quorum, margin};

/// Voters that may be evicted at once, by cluster; empty name = the hub. As the anchor has it.
pub type Shares = BTreeMap<String, u32>;

/// A voter of the network's ledger, or a validator that does not vote: the budget of its cluster counts that, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voter {
    /// Its node's name; of a foreign one its key.
    pub name: String,
    /// The cluster of its pod; empty = the hub, `None` = it is foreign.
    pub cluster: Option<String>,
    /// Its voting power; 1 where the engine has no weights, 0 = it does not vote though the budget selects its pod.
    pub power: u64,
    /// Others see it sign.
    pub live: bool,
    /// Its pod, read *after* its cluster's budget was: an eviction that a larger share allowed is then seen.
    pub pod: Pod,
}

impl Voter {
    /// Its cluster's budget counts it as not available.
    fn is_counted(&self) -> bool {
        matches!(self.pod, Pod::NotReady | Pod::Ending)
    }
}

/// A voter's pod as a `PodDisruptionBudget` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pod {
    /// It counts as healthy, and may be evicted.
    Ready,
    /// It is absent or not ready. It uses up its cluster's share.
    NotReady,
    /// It is being deleted, or its eviction was granted (`status.disruptedPods`). It uses up its cluster's share, and
    /// its votes end at any moment.
    Ending,
    /// Its cluster cannot be asked, or it is not ours.
    Unknown,
}

/// A cluster's budget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// What is there; `None` = the cluster cannot be asked.
    pub seen: Option<Seen>,
    /// Voters whose machine is cordoned or whose eviction waits, with the machine.
    pub wants: BTreeMap<String, String>,
}

/// A `PodDisruptionBudget` as it was read. Without one, or with one that is not ours, both numbers are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Voters that it selects, whether their pods exist or not.
    pub voters: u32,
    /// `spec.minAvailable`.
    pub written: u32,
    /// `minAvailable` of the generation that the disruption controller applies; the smallest it may be, where
    /// `status.observedGeneration` lags and that is not known.
    pub in_force: u32,
}

impl Seen {
    fn written(self) -> u32 {
        self.voters.saturating_sub(self.written)
    }

    fn largest(self) -> u32 {
        self.voters.saturating_sub(self.written.min(self.in_force))
    }
}

/// A step of ours that the chain feels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnStep {
    /// This voter is restarted.
    Restart(String),
    /// A change of members.
    Change {
        /// Whose power changes.
        voter: String,
        /// To what; 0 = it leaves.
        power: u64,
    },
}

/// All that the budget depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The engine's formula.
    pub quorum: Quorum,
    /// Voters that must be spare beyond what shares allow (`disruption.reserve`).
    pub reserve: usize,
    /// All voters.
    pub voters: Vec<Voter>,
    /// What is known of them is fresh and agreed. If not, nothing is changed: silence is no evidence.
    pub fresh: bool,
    /// What we do ourselves, from its record until it is settled.
    pub own_step: Option<OwnStep>,
    /// Shares as recorded in the anchor.
    pub recorded: Shares,
    /// Clusters with voters.
    pub clusters: BTreeMap<String, Cluster>,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum BudgetStep {
    /// Write a smaller share: a larger `minAvailable`.
    Lower {
        /// In which cluster.
        cluster: String,
        /// Voters that must stay available there.
        min_available: u32,
    },
    /// Record these shares in the anchor, in place of all that are there.
    Record {
        /// All shares.
        shares: Shares,
    },
    /// Write a larger share, against the version of the budget that was read.
    Raise {
        /// In which cluster.
        cluster: String,
        /// Voters that must stay available there.
        min_available: u32,
    },
}

/// A drain that cannot go on yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DrainWaits {
    /// In which cluster.
    pub cluster: String,
    /// Of which machine.
    pub machine: String,
    /// Why, for people.
    pub why: String,
}

/// What to write, and which drains wait.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Budget {
    /// In this order; each is safe whether those before it were done or not. None = all is as it should be.
    pub steps: Vec<BudgetStep>,
    /// Drains that wait, by cluster and machine.
    pub waits: Vec<DrainWaits>,
}

/// The next writes.
pub fn plan_budget(observed: &Observed) -> Budget {
    let arithmetic = Arithmetic::new(observed);
    let waits = arithmetic.waits();
    if !observed.fresh {
        return Budget { steps: Vec::new(), waits };
    }
    let target = arithmetic.target();
    let mut steps = Vec::new();
    let mut recorded = arithmetic.largest.clone();
    for (name, seen) in arithmetic.seen() {
        let target = share(&target, name);
        let cluster = name.clone();
        if seen.written() > target {
            steps.push(BudgetStep::Lower { cluster, min_available: seen.voters - target });
            continue;
        }
        // What was recorded and is not in force was lowered since, or never raised. What is used stays recorded: if the
        // cluster is lost from sight now, nothing else tells of a pod that is ending there.
        let in_force = seen.largest();
        let used = arithmetic.used(name);
        let now = recorded.entry(cluster.clone()).or_default();
        *now = in_force.max(target.max(used).min(*now));
        // The others count with what may be in force there, not with what is wanted.
        let mut then = arithmetic.largest.clone();
        then.insert(cluster.clone(), target);
        let is_recorded = share(&observed.recorded, name) >= target;
        if target > in_force && is_recorded && arithmetic.holds(&then) {
            steps.push(BudgetStep::Raise { cluster, min_available: seen.voters - target });
        }
    }
    // Only now is it known what else may be in force.
    for (name, _) in arithmetic.seen() {
        let target = share(&target, name);
        if target > share(&recorded, name) {
            let mut larger = recorded.clone();
            larger.insert(name.clone(), target);
            // What is lowered by this very plan counts until that is seen.
            if arithmetic.holds(&larger) {
                recorded = larger;
            }
        }
    }
    recorded.retain(|_, share| *share > 0);
    if recorded != observed.recorded {
        steps.push(BudgetStep::Record { shares: recorded });
    }
    steps.sort();
    Budget { steps, waits }
}

/// Whether [`Observed::own_step`] leaves quorum, whatever the budgets in force let others evict meanwhile: once it is
/// recorded, the shares make room for it, and only then it has its effect.
///
/// # Errors
///
/// Why not yet, for people.
pub fn check_own_step(observed: &Observed) -> Result<(), String> {
    let arithmetic = Arithmetic::new(observed);
    if arithmetic.holds(&arithmetic.largest) {
        return Ok(());
    }
    let allowed = arithmetic.largest.iter().filter(|(_, share)| **share > 0);
    let allowed: Vec<String> =
        allowed.map(|(name, share)| format!("{share} in {}", cluster_in_words(name))).collect();
    let missing = arithmetic.missing_in_words();
    Err(match (allowed.as_slice(), &observed.own_step) {
        ([], Some(OwnStep::Restart(who))) => {
            format!("the chain cannot miss {who} as well; {missing}")
        }
        ([], _) => format!("the change would leave no quorum; {missing}"),
        _ => format!(
            "disruption budgets still let voters be evicted ({}); they are lowered first",
            allowed.join(", ")
        ),
    })
}

fn share(shares: &Shares, cluster: &str) -> u32 {
    shares.get(cluster).copied().unwrap_or_default()
}

/// The voters after a change. A newcomer is not counted on before it is seen to sign.
fn after(voters: &[Voter], name: &str, power: u64) -> Vec<Voter> {
    let changed = |one: &Voter| match one {
        one if one.name == name => Voter { power, live: one.live && one.power > 0, ..one.clone() },
        one => one.clone(),
    };
    voters.iter().map(changed).collect()
}

/// What the chain can miss.
struct Arithmetic<'a> {
    observed: &'a Observed,
    /// The voters as a change under way leaves them.
    after: Option<Vec<Voter>>,
    /// The largest share that may be in force in each cluster.
    largest: Shares,
}

impl<'a> Arithmetic<'a> {
    fn new(observed: &'a Observed) -> Self {
        let mut largest = observed.recorded.clone();
        for (name, cluster) in &observed.clusters {
            let seen = cluster.seen.map_or(0, Seen::largest);
            let known = largest.entry(name.clone()).or_default();
            *known = seen.max(*known);
        }
        let after = match &observed.own_step {
            Some(OwnStep::Change { voter, power }) => Some(after(&observed.voters, voter, *power)),
            _ => None,
        };
        Self { observed, after, largest }
    }

    /// Budgets that can be read, and so be written.
    fn seen(&self) -> impl Iterator<Item = (&'a String, Seen)> {
        let clusters = self.observed.clusters.iter();
        clusters.filter_map(|(name, cluster)| Some((name, cluster.seen?)))
    }

    /// How many voters its budget counts as not available.
    fn used(&self, cluster: &str) -> u32 {
        let counted = self
            .observed
            .voters
            .iter()
            .filter(|voter| voter.cluster.as_deref() == Some(cluster) && voter.is_counted());
        u32::try_from(counted.count()).unwrap_or(u32::MAX)
    }

    fn is_restarting(&self, voter: &Voter) -> bool {
        matches!(&self.observed.own_step, Some(OwnStep::Restart(name)) if *name == voter.name)
    }

    /// Missed, or about to be, though no share has a place for it: no budget counts it.
    fn is_lost_beside(&self, voter: &Voter) -> bool {
        self.is_restarting(voter) || (!voter.live && !voter.is_counted())
    }

    /// Missed, or about to be, and counted by its cluster's budget.
    fn is_lost_within(&self, voter: &Voter) -> bool {
        !self.is_lost_beside(voter)
            && (voter.pod == Pod::Ending || (!voter.live && voter.pod == Pod::NotReady))
    }

    /// Whether quorum is left, with the reserve, whatever happens under these shares; while a change is under way, by
    /// the voters before it and after it.
    fn holds(&self, shares: &Shares) -> bool {
        let after = self.after.as_deref();
        self.leaves_quorum(&self.observed.voters, shares)
            && after.is_none_or(|after| self.leaves_quorum(after, shares))
    }

    /// Whether quorum of these voters is left.
    ///
    /// In a cluster the worst is the larger of two: those that are down and counted, or as many of its heaviest as the
    /// share allows. In between some came back and others were evicted, which weighs no more.
    fn leaves_quorum(&self, voters: &[Voter], shares: &Shares) -> bool {
        let total: u64 = voters.iter().map(|voter| voter.power).sum();
        let mut lost: u64 =
            voters.iter().filter(|one| self.is_lost_beside(one)).map(|one| one.power).sum();
        let mut spare = Vec::new();
        let clusters: BTreeSet<Option<&str>> =
            voters.iter().map(|voter| voter.cluster.as_deref()).collect();
        for cluster in clusters {
            let there = voters
                .iter()
                .filter(|one| one.cluster.as_deref() == cluster && !self.is_lost_beside(one));
            let down: Vec<u64> =
                there.clone().filter(|one| self.is_lost_within(one)).map(|one| one.power).collect();
            let mut powers: Vec<u64> = there.map(|one| one.power).collect();
            powers.sort_unstable_by(|a, b| b.cmp(a));
            let share = cluster.map_or(0, |name| share(shares, name));
            let allowed = powers.len().min(usize::try_from(share).unwrap_or(usize::MAX));
            let evicted: u64 = powers[..allowed].iter().sum();
            let down: u64 = down.iter().sum();
            lost += evicted.max(down);
            // Who is left when the heaviest are gone.
            if evicted >= down {
                spare.extend_from_slice(&powers[allowed..]);
            } else {
                let left = voters.iter().filter(|one| {
                    one.cluster.as_deref() == cluster
                        && !self.is_lost_beside(one)
                        && !self.is_lost_within(one)
                });
                spare.extend(left.map(|one| one.power));
            }
        }
        spare.sort_unstable_by(|a, b| b.cmp(a));
        let reserve: u64 = spare.iter().take(self.observed.reserve).sum();
        !voters.is_empty() && total - lost >= self.observed.quorum.needed(total) + reserve
    }

    /// The shares to have. One for each cluster in turn, as far as the margin goes: first where a drain goes on, then
    /// where one waits, then where the share is anyway, then by name.
    fn target(&self) -> Shares {
        let observed = self.observed;
        // What cannot be asked cannot be changed.
        let mut target: Shares = self.largest.clone();
        let mut order: Vec<(&String, Seen)> = self.seen().collect();
        for (name, _) in &order {
            target.insert((*name).clone(), 0);
        }
        let wants = |name: &str| observed.clusters.get(name).map_or(0, |one| one.wants.len());
        order.sort_by_key(|(name, _)| {
            (wants(name) == 0, share(&observed.recorded, name) == 0, (*name).clone())
        });
        // Drains get what they can use before anybody else gets any.
        for only_wanted in [true, false] {
            let mut grown = true;
            while grown {
                grown = false;
                for (name, seen) in &order {
                    let now = share(&target, name);
                    let most = if only_wanted {
                        u32::try_from(wants(name)).unwrap_or(u32::MAX).min(seen.voters)
                    } else {
                        seen.voters
                    };
                    let mut larger = target.clone();
                    larger.insert((*name).clone(), now.saturating_add(1));
                    if now < most && self.holds(&larger) {
                        target = larger;
                        grown = true;
                    }
                }
            }
        }
        target
    }

    fn waits(&self) -> Vec<DrainWaits> {
        let mut waits = Vec::new();
        for (name, cluster) in &self.observed.clusters {
            // What Kubernetes allows now.
            let free = cluster.seen.is_some_and(|seen| {
                seen.voters.saturating_sub(seen.in_force.max(seen.written)) > self.used(name)
            });
            let waiting = |node: &String| {
                let voter = self.observed.voters.iter().find(|voter| voter.name == *node);
                voter.is_some_and(|voter| voter.pod == Pod::Ready)
            };
            let machines: BTreeSet<&String> =
                cluster.wants.iter().filter(|(node, _)| waiting(node)).map(|(_, m)| m).collect();
            if free {
                continue;
            }
            waits.extend(machines.into_iter().map(|machine| {
                let place = cluster_in_words(name);
                let why = self.why(name);
                DrainWaits {
                    cluster: name.clone(),
                    machine: machine.clone(),
                    why: format!("the drain of machine {machine} in {place} waits: {why}"),
                }
            }));
        }
        waits
    }

    fn why(&self, waiting: &str) -> String {
        let observed = self.observed;
        if !observed.fresh {
            return "who votes and signs is not known at the moment".to_owned();
        }
        let powers: Vec<u64> = observed.voters.iter().map(|voter| voter.power).collect();
        let can_miss = margin(observed.quorum, &powers).saturating_sub(observed.reserve);
        let reserve = match observed.reserve {
            0 => String::new(),
            reserve => format!(" beyond the reserve of {reserve}"),
        };
        let voters = match can_miss {
            0 => return format!("the chain can miss no voter{reserve}"),
            1 => "1 voter".to_owned(),
            more => format!("{more} voters"),
        };
        let mut reasons = Vec::new();
        let missing = self.missing();
        if !missing.is_empty() {
            reasons.push(missing.join(", "));
        }
        match &observed.own_step {
            Some(OwnStep::Change { voter, power: 0 }) => {
                reasons.push(format!("{voter} is leaving"));
            }
            Some(OwnStep::Change { voter, power }) => {
                reasons.push(format!("{voter} is being given power {power}"));
            }
            Some(OwnStep::Restart(_)) | None => {}
        }
        for (name, share) in
            self.largest.iter().filter(|(name, share)| **share > 0 && *name != waiting)
        {
            let place = cluster_in_words(name);
            let cluster = observed.clusters.get(name);
            let machine = cluster.and_then(|one| one.wants.values().next());
            reasons.push(match (cluster.and_then(|one| one.seen), machine) {
                (None, _) => {
                    format!("{place} cannot be asked, so its share of {share} counts as used")
                }
                (_, Some(machine)) => {
                    format!("the drain of machine {machine} in {place} comes first")
                }
                (_, None) => format!("the share of {place} is taken back first"),
            });
        }
        if reasons.is_empty() {
            reasons.push("its budget is being written".to_owned());
        }
        format!("the chain can miss {voters}{reserve}, and {}", reasons.join("; "))
    }

    fn missing_in_words(&self) -> String {
        let missing = self.missing();
        if missing.is_empty() { "nothing is to spare".to_owned() } else { missing.join(", ") }
    }

    /// Who is missed, for people.
    fn missing(&self) -> Vec<String> {
        let words = |voter: &Voter| {
            let state = match (self.is_restarting(voter), voter.pod) {
                (true, _) => "is being restarted",
                (_, Pod::Ending) => "is being evicted",
                _ if voter.live || voter.power == 0 => return None,
                (_, Pod::NotReady) => "is down",
                _ => "is not seen to sign",
            };
            let place = voter.cluster.as_deref().map_or("of another owner".to_owned(), |cluster| {
                format!("in {}", cluster_in_words(cluster))
            });
            Some(format!("{} {place} {state}", voter.name))
        };
        self.observed.voters.iter().filter_map(words).collect()
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
