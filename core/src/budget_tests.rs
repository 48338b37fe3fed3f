//! Shares on a model: drains in two clusters at once, voters that fail, a restart of our own, API servers that cannot
//! be asked, a disruption controller that lags, and an operator that ends between any two writes. At each eviction the
//! chain can miss what goes, and once faults stop all drains end.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

/// A voter that signs, in a cluster.
fn voter(name: &str, cluster: &str, power: u64) -> Voter {
    let cluster = Some(cluster.to_owned());
    Voter { name: name.to_owned(), cluster, power, live: true, pod: Pod::Ready }
}

/// Two voters in each of two clusters, with these shares written and in force.
fn two_and_two(recorded: [u32; 2]) -> Observed {
    let names = [("a-0", "a"), ("a-1", "a"), ("b-0", "b"), ("b-1", "b")];
    let cluster = |share: u32| Cluster {
        seen: Some(Seen { voters: 2, written: 2 - share, in_force: 2 - share }),
        wants: BTreeMap::new(),
    };
    let shares = [("a", recorded[0]), ("b", recorded[1])];
    Observed {
        quorum: Quorum::MoreThanTwoThirds,
        reserve: 0,
        voters: names.map(|(name, cluster)| voter(name, cluster, 1)).into(),
        fresh: true,
        own_step: None,
        recorded: shares
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(c, n)| (c.to_owned(), n))
            .collect(),
        clusters: shares.into_iter().map(|(c, n)| (c.to_owned(), cluster(n))).collect(),
    }
}

fn want(observed: &mut Observed, cluster: &str, node: &str, machine: &str) {
    let wants = &mut observed.clusters.get_mut(cluster).unwrap().wants;
    wants.insert(node.to_owned(), machine.to_owned());
}

/// Does the steps of one plan, and lets the disruption controllers see them.
fn apply(observed: &mut Observed, steps: Vec<BudgetStep>) {
    for step in steps {
        match step {
            BudgetStep::Record { shares } => observed.recorded = shares,
            BudgetStep::Lower { cluster, min_available }
            | BudgetStep::Raise { cluster, min_available } => {
                let seen = observed.clusters.get_mut(&cluster).unwrap().seen.as_mut().unwrap();
                (seen.written, seen.in_force) = (min_available, min_available);
            }
        }
    }
}

fn why(observed: &Observed) -> Vec<String> {
    plan_budget(observed).waits.into_iter().map(|wait| wait.why).collect()
}

#[test]
fn a_share_goes_where_a_drain_waits_by_way_of_the_anchor() {
    let mut observed = two_and_two([1, 0]);
    assert_eq!(plan_budget(&observed), Budget::default(), "whoever has it keeps it");
    want(&mut observed, "b", "b-0", "m2");
    assert_eq!(
        why(&observed),
        [
            "the drain of machine m2 in cluster b waits: the chain can miss 1 voter, and the share of cluster a is taken \
          back first"
        ]
    );
    let (a, b) = ("a".to_owned(), "b".to_owned());
    let lower = BudgetStep::Lower { cluster: a.clone(), min_available: 2 };
    assert_eq!(plan_budget(&observed).steps, [lower]);
    // Written, and not applied yet.
    observed.clusters.get_mut("a").unwrap().seen.as_mut().unwrap().written = 2;
    assert_eq!(plan_budget(&observed).steps, []);
    observed.clusters.get_mut("a").unwrap().seen.as_mut().unwrap().in_force = 2;
    let record = BudgetStep::Record { shares: [(b.clone(), 1)].into() };
    assert_eq!(plan_budget(&observed).steps, std::slice::from_ref(&record));
    apply(&mut observed, vec![record]);
    let raise = BudgetStep::Raise { cluster: b, min_available: 1 };
    assert_eq!(plan_budget(&observed).steps, std::slice::from_ref(&raise));
    apply(&mut observed, vec![raise]);
    assert_eq!(plan_budget(&observed), Budget::default());
    // The drain of another cluster waits until this one ended.
    want(&mut observed, "a", "a-1", "m1");
    assert_eq!(
        why(&observed),
        [
            "the drain of machine m1 in cluster a waits: the chain can miss 1 voter, and the drain of machine m2 in \
          cluster b comes first"
        ]
    );
    assert_eq!(plan_budget(&observed).steps, []);
}

#[test]
fn who_is_down_is_named_to_whoever_drains() {
    let mut observed = two_and_two([0, 0]);
    want(&mut observed, "b", "b-0", "m2");
    observed.voters[1].live = false;
    observed.voters[1].pod = Pod::NotReady;
    let waits = "the drain of machine m2 in cluster b waits: the chain can miss 1 voter, and a-1 in cluster a is down";
    assert_eq!(why(&observed), [waits]);
    // It is covered by the share of its own cluster, where nobody else can be evicted then.
    let shares = [("a".to_owned(), 1)].into();
    assert_eq!(plan_budget(&observed).steps, [BudgetStep::Record { shares }]);
    observed.reserve = 1;
    assert!(why(&observed)[0].ends_with("the chain can miss no voter beyond the reserve of 1"));
    observed.fresh = false;
    assert_eq!(plan_budget(&observed).steps, [], "silence changes nothing");
}

#[test]
fn a_cluster_that_cannot_be_asked_keeps_its_share() {
    let mut observed = two_and_two([1, 0]);
    want(&mut observed, "b", "b-0", "m2");
    observed.clusters.get_mut("a").unwrap().seen = None;
    for voter in &mut observed.voters[..2] {
        voter.pod = Pod::Unknown;
    }
    assert_eq!(plan_budget(&observed).steps, []);
    let waits = "the drain of machine m2 in cluster b waits: the chain can miss 1 voter, and cluster a cannot be asked, \
                 so its share of 1 counts as used";
    assert_eq!(why(&observed), [waits]);
}

#[test]
fn a_restart_of_our_own_waits_until_the_shares_have_made_room() {
    let mut observed = two_and_two([1, 0]);
    observed.own_step = Some(OwnStep::Restart("b-1".into()));
    assert_eq!(
        check_own_step(&observed).unwrap_err(),
        "disruption budgets still let voters be evicted (1 in cluster a); they are lowered first"
    );
    for _ in 0..2 {
        let steps = plan_budget(&observed).steps;
        apply(&mut observed, steps);
    }
    assert_eq!(check_own_step(&observed), Ok(()));
    assert_eq!(observed.recorded, Shares::new());
    observed.voters[0].live = false;
    let why = check_own_step(&observed).unwrap_err();
    let missed = "a-0 in cluster a is not seen to sign, b-1 in cluster b is being restarted";
    assert_eq!(why, format!("the chain cannot miss b-1 as well; {missed}"));
}

#[test]
fn a_change_of_members_waits_until_the_shares_fit_those_before_and_after_it() {
    let changing = |voter: &str, power| Some(OwnStep::Change { voter: voter.into(), power });
    let mut observed = two_and_two([1, 0]);
    // Of three none can be missed.
    observed.own_step = changing("b-1", 0);
    assert!(check_own_step(&observed).unwrap_err().contains("1 in cluster a"));
    want(&mut observed, "b", "b-0", "m2");
    let waits = "the drain of machine m2 in cluster b waits: the chain can miss 1 voter, and b-1 is leaving; the share of \
                 cluster a is taken back first";
    assert_eq!(why(&observed), [waits]);
    for _ in 0..2 {
        let steps = plan_budget(&observed).steps;
        apply(&mut observed, steps);
    }
    assert_eq!((check_own_step(&observed), &observed.recorded), (Ok(()), &Shares::new()));
    // Of five one can be missed, but the newcomer may never sign; of seven two.
    for (voters, waits) in [(4, true), (6, false)] {
        let mut observed = two_and_two([1, 0]);
        observed.voters.extend((4..voters).map(|n| voter(&format!("a-{n}"), "a", 1)));
        observed.voters.push(voter("b-2", "b", 0));
        for (cluster, there) in [("a", voters - 2), ("b", 3)] {
            let share = u32::from(cluster == "a");
            let seen = Seen { voters: there, written: there - share, in_force: there - share };
            observed.clusters.get_mut(cluster).unwrap().seen = Some(seen);
        }
        observed.own_step = changing("b-2", 1);
        assert_eq!(check_own_step(&observed).is_err(), waits, "{voters} voters");
    }
}

#[test]
fn a_budget_that_somebody_deleted_is_written_again() {
    let mut observed = two_and_two([1, 0]);
    let seen = Some(Seen { voters: 2, written: 0, in_force: 0 });
    observed.clusters.get_mut("b").unwrap().seen = seen;
    let steps = plan_budget(&observed).steps;
    assert_eq!(steps[0], BudgetStep::Lower { cluster: "b".into(), min_available: 2 });
    assert!(matches!(steps[..], [_, BudgetStep::Record { .. }]), "{steps:?}");
}

#[test]
fn where_the_margin_allows_every_cluster_has_a_share_and_one_alone_has_all() {
    let cluster = |voters| Cluster {
        seen: Some(Seen { voters, written: voters, in_force: voters }),
        wants: BTreeMap::new(),
    };
    let shares = |counts: &[(&str, u32)]| {
        let voters = counts.iter().flat_map(|(name, count)| {
            (0..*count).map(move |n| voter(&format!("{name}-{n}"), name, 1000))
        });
        let mut observed = Observed {
            voters: voters.collect(),
            recorded: Shares::new(),
            clusters: counts.iter().map(|(name, n)| ((*name).to_owned(), cluster(*n))).collect(),
            ..two_and_two([0, 0])
        };
        for _ in 0..4 {
            let steps = plan_budget(&observed).steps;
            apply(&mut observed, steps);
        }
        assert_eq!(plan_budget(&observed), Budget::default());
        observed.recorded.into_iter().collect::<Vec<_>>()
    };
    let of = |name: &str, share| (name.to_owned(), share);
    assert_eq!(shares(&[("", 4)]), [of("", 1)]);
    assert_eq!(shares(&[("a", 5), ("b", 5)]), [of("a", 2), of("b", 1)]);
    assert_eq!(shares(&[("a", 2), ("b", 1), ("c", 1)]), [of("a", 1)]);
    assert_eq!(shares(&[("a", 2), ("b", 1)]), []);
}

proptest! {
    /// Whatever the powers: all that the shares allow to be evicted together can be missed.
    #[test]
    fn what_all_shares_allow_together_leaves_a_quorum(
        voters in proptest::collection::vec((0usize..3, 1u64..50, any::<bool>(), 0u8..3), 1..10),
        reserve in 0usize..2,
        recorded in proptest::collection::vec(0u32..3, 3),
    ) {
        let name = |n: usize| ["a", "b", "c"][n];
        let count = |c: usize| u32::try_from(voters.iter().filter(|v| v.0 == c).count()).unwrap();
        let all = voters.iter().enumerate().map(|(n, (cluster, power, live, pod))| Voter {
            live: *live,
            pod: [Pod::Ready, Pod::NotReady, Pod::Ending][usize::from(*pod)],
            ..voter(&format!("v{n}"), name(*cluster), *power)
        });
        let mut observed = Observed {
            reserve,
            voters: all.collect(),
            recorded: Shares::new(),
            clusters: (0..3)
                .map(|c| {
                    let share = recorded[c].min(count(c));
                    let seen = Seen {
                        voters: count(c), written: count(c) - share, in_force: count(c) - share,
                    };
                    (name(c).to_owned(), Cluster { seen: Some(seen), wants: BTreeMap::new() })
                })
                .collect(),
            ..two_and_two([0, 0])
        };
        for _ in 0..5 {
            let steps = plan_budget(&observed).steps;
            apply(&mut observed, steps);
        }
        prop_assert_eq!(plan_budget(&observed).steps, []);
        // Every set of voters that may be gone: those lost already, and in each cluster as many more as allowed.
        let lost = |v: &Voter| !v.live || v.pod == Pod::Ending;
        let total: u64 = observed.voters.iter().map(|v| v.power).sum();
        let needed = observed.quorum.needed(total);
        let before: u64 = observed.voters.iter().filter(|v| !lost(v)).map(|v| v.power).sum();
        for set in 0u32..1 << observed.voters.len() {
            let gone = |n: usize| set & (1 << n) != 0;
            let allowed = observed.clusters.iter().all(|(cluster, one)| {
                let share = one.seen.map_or(0, |seen| seen.voters - seen.in_force);
                let there = observed.voters.iter().enumerate();
                let mut there = there.filter(|(_, v)| v.cluster.as_ref() == Some(cluster));
                let evicted = there.clone().filter(|(n, v)| gone(*n) && v.pod == Pod::Ready).count();
                let counted = there.by_ref().filter(|(_, v)| v.pod != Pod::Ready).count();
                evicted == 0 || evicted + counted <= share as usize
            });
            let ready = observed.voters.iter().enumerate().all(|(n, v)| !gone(n) || v.pod == Pod::Ready);
            if allowed && ready && before >= needed && set != 0 {
                let left = observed.voters.iter().enumerate().filter(|(n, v)| !lost(v) && !gone(*n));
                let left: u64 = left.map(|(_, v)| v.power).sum();
                prop_assert!(left >= needed, "{:?} {:?}", observed, set);
            }
        }
    }
}

// --- the model ------------------------------------------------------------------------------------------------

const CLUSTERS: [&str; 2] = ["a", "b"];

/// Powers of the voters in the two clusters.
type Powers = [&'static [u64]; 2];

/// What is explored: powers by cluster, and how much may happen.
struct Bounds {
    powers: Powers,
    reserve: usize,
    /// Machines that are drained, each with a voter.
    drains: u8,
    failures: u8,
    restarts: u8,
    /// Members that leave, or enter: those without power.
    changes: u8,
    /// Clusters may be lost from sight.
    cuts: bool,
}

/// A voter. Its pod was evicted, or ended by us, while `goes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct V {
    cluster: usize,
    power: u64,
    state: S,
    /// Its machine is drained.
    wanted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum S {
    Up,
    /// Its pod is ending, of somebody's will; it signs for a moment more.
    Ending,
    /// Its pod is gone by that.
    Gone,
    /// It failed, and its pod is not ready.
    Failed,
    /// It failed, and its pod is ready: cut off.
    Silent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    voters: Vec<V>,
    recorded: [u32; 2],
    /// Shares as written, and as the disruption controller applies them.
    written: [u32; 2],
    in_force: [u32; 2],
    unasked: [bool; 2],
    restarting: Option<usize>,
    /// The member that leaves or enters.
    changing: Option<usize>,
    /// What the operator is about to write.
    plan: Vec<Write>,
    /// Failures that the budgets in force have taken in.
    known: Vec<usize>,
    drains: u8,
    failures: u8,
    restarts: u8,
    changes: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Write {
    Share { cluster: usize, share: u32 },
    Record([u32; 2]),
}

/// Defects made on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    /// What was written is taken for what is in force.
    WrittenIsInForce,
    /// A cluster that cannot be asked counts for nothing.
    UnaskedIsNothing,
    /// A larger share is written before it is recorded.
    RaisesUnrecorded,
    /// A pod that is being deleted still counts as one that signs.
    EndingIsUp,
    /// A restart of our own does not wait for the shares.
    RestartsAtOnce,
    /// A change of members does not wait for the shares.
    ChangesAtOnce,
}

impl World {
    fn start(bounds: &Bounds) -> Self {
        let voters = bounds.powers.iter().enumerate().flat_map(|(cluster, powers)| {
            powers.iter().map(move |power| V {
                cluster,
                power: *power,
                state: S::Up,
                wanted: false,
            })
        });
        Self {
            voters: voters.collect(),
            recorded: [0; 2],
            written: [0; 2],
            in_force: [0; 2],
            unasked: [false; 2],
            restarting: None,
            changing: None,
            plan: Vec::new(),
            known: Vec::new(),
            drains: bounds.drains,
            failures: bounds.failures,
            restarts: bounds.restarts,
            changes: bounds.changes,
        }
    }

    /// What is under way, as the operator recorded it.
    fn own_step(&self) -> Option<OwnStep> {
        let change = |n: usize| OwnStep::Change { voter: n.to_string(), power: self.changed(n) };
        let restart = |n: usize| OwnStep::Restart(n.to_string());
        self.restarting.map(restart).or(self.changing.map(change))
    }

    /// The power of a member once it has left, or entered.
    fn changed(&self, n: usize) -> u64 {
        u64::from(self.voters[n].power == 0)
    }

    fn count(&self, cluster: usize) -> u32 {
        u32::try_from(self.voters.iter().filter(|v| v.cluster == cluster).count()).unwrap()
    }

    fn observe(&self, bounds: &Bounds, defect: Option<Defect>) -> Observed {
        let mut voters = Vec::new();
        for (n, v) in self.voters.iter().enumerate() {
            let pod = match v.state {
                _ if self.unasked[v.cluster] => Pod::Unknown,
                S::Ending if defect == Some(Defect::EndingIsUp) => Pod::Ready,
                S::Up | S::Silent => Pod::Ready,
                S::Ending => Pod::Ending,
                S::Gone | S::Failed => Pod::NotReady,
            };
            let live = matches!(v.state, S::Up | S::Ending);
            voters.push(Voter { live, pod, ..voter(&n.to_string(), CLUSTERS[v.cluster], v.power) });
        }
        let cluster = |c: usize| {
            let count = self.count(c);
            let shown = if defect == Some(Defect::WrittenIsInForce) {
                self.written[c]
            } else {
                self.in_force[c]
            };
            let seen =
                Seen { voters: count, written: count - self.written[c], in_force: count - shown };
            let there = self.voters.iter().enumerate().filter(|(_, v)| v.cluster == c && v.wanted);
            Cluster {
                seen: (!self.unasked[c]).then_some(seen),
                wants: there.map(|(n, _)| (n.to_string(), format!("m{n}"))).collect(),
            }
        };
        let counts = |c: &usize| {
            let forgotten = defect == Some(Defect::UnaskedIsNothing) && self.unasked[*c];
            self.recorded[*c] > 0 && !forgotten
        };
        Observed {
            reserve: bounds.reserve,
            voters,
            own_step: self.own_step(),
            recorded: (0..2)
                .filter(counts)
                .map(|c| (CLUSTERS[c].to_owned(), self.recorded[c]))
                .collect(),
            clusters: (0..2).map(|c| (CLUSTERS[c].to_owned(), cluster(c))).collect(),
            ..two_and_two([0, 0])
        }
    }

    fn writes(&self, steps: Vec<BudgetStep>, defect: Option<Defect>) -> Vec<Write> {
        let index = |name: &str| CLUSTERS.iter().position(|c| *c == name).unwrap();
        let mut writes = Vec::new();
        for step in steps {
            match step {
                BudgetStep::Record { shares } => {
                    let new = CLUSTERS.map(|name| share(&shares, name));
                    if defect == Some(Defect::RaisesUnrecorded) {
                        for c in (0..2).filter(|c| new[*c] > self.written[*c]) {
                            writes.push(Write::Share { cluster: c, share: new[c] });
                        }
                    }
                    writes.push(Write::Record(new));
                }
                BudgetStep::Lower { cluster, min_available }
                | BudgetStep::Raise { cluster, min_available } => {
                    let cluster = index(&cluster);
                    writes
                        .push(Write::Share { cluster, share: self.count(cluster) - min_available });
                }
            }
        }
        writes
    }

    fn look(&self, bounds: &Bounds, defect: Option<Defect>) -> Self {
        let mut next = self.clone();
        let steps = plan_budget(&self.observe(bounds, defect)).steps;
        next.plan = self.writes(steps, defect);
        // What is in force has taken in the failures there are.
        if next.plan.is_empty() && self.written == self.in_force && self.unasked == [false; 2] {
            next.known = (0..self.voters.len())
                .filter(|n| matches!(self.voters[*n].state, S::Failed | S::Silent))
                .collect();
        }
        next
    }

    fn write(&self) -> Option<Self> {
        let mut next = self.clone();
        if self.plan.is_empty() {
            return None;
        }
        match next.plan.remove(0) {
            Write::Record(shares) => next.recorded = shares,
            // The write fails, and the operator looks again.
            Write::Share { cluster, .. } if self.unasked[cluster] => next.plan.clear(),
            Write::Share { cluster, share } => next.written[cluster] = share,
        }
        Some(next)
    }

    /// What Kubernetes' eviction API says.
    fn may_evict(&self, n: usize) -> bool {
        let v = self.voters[n];
        let counted = self
            .voters
            .iter()
            .filter(|o| {
                o.cluster == v.cluster && matches!(o.state, S::Ending | S::Gone | S::Failed)
            })
            .count();
        v.state == S::Up && v.wanted && u32::try_from(counted).unwrap() < self.in_force[v.cluster]
    }

    /// Just after a voter was made to go: the chain can miss all that go by somebody's will, and all that failed
    /// before the budgets took it in.
    fn check_going(&self, bounds: &Bounds) -> Result<(), String> {
        let total: u64 = self.voters.iter().map(|v| v.power).sum();
        let mut left: Vec<u64> = Vec::new();
        for (n, v) in self.voters.iter().enumerate() {
            let goes = matches!(v.state, S::Ending | S::Gone);
            let failed = matches!(v.state, S::Failed | S::Silent) && self.known.contains(&n);
            if !goes && !failed {
                left.push(v.power);
            }
        }
        left.sort_unstable_by(|a, b| b.cmp(a));
        let left: u64 = left.iter().skip(bounds.reserve).sum();
        if left >= Quorum::MoreThanTwoThirds.needed(total) {
            Ok(())
        } else {
            Err("more go at once than the chain can miss".to_owned())
        }
    }

    fn set(&self, n: usize, state: S) -> Self {
        let mut next = self.clone();
        next.voters[n].state = state;
        if state == S::Up {
            next.known.retain(|known| *known != n);
        }
        next
    }

    /// Where our own restart stands: its pod may be ended when the planner's gates are open too.
    fn may_restart(&self, bounds: &Bounds, defect: Option<Defect>) -> bool {
        self.restarting.is_some_and(|n| {
            let live = |(m, v): (usize, &V)| m == n || v.state == S::Up;
            !self.unasked[self.voters[n].cluster]
                && self.voters[n].state == S::Up
                && self.voters.iter().enumerate().all(live)
                && (defect == Some(Defect::RestartsAtOnce)
                    || check_own_step(&self.observe(bounds, defect)).is_ok())
        })
    }

    /// Whether the change under way may be sent: its cluster need not be asked for that.
    fn may_change(&self, bounds: &Bounds, defect: Option<Defect>) -> bool {
        self.changing.is_some()
            && self.voters.iter().all(|v| v.state == S::Up)
            && (defect == Some(Defect::ChangesAtOnce)
                || check_own_step(&self.observe(bounds, defect)).is_ok())
    }

    fn change(&self) -> Self {
        let mut next = self.clone();
        if let Some(n) = next.changing.take() {
            next.voters[n].power = self.changed(n);
        }
        next
    }

    fn moves(
        &self,
        bounds: &Bounds,
        defect: Option<Defect>,
    ) -> Result<Vec<(String, Self)>, String> {
        let mut moves = vec![("operator looks".to_owned(), self.look(bounds, defect))];
        if let Some(next) = self.write() {
            moves.push((format!("operator: {:?}", self.plan[0]), next));
        }
        if self.may_restart(bounds, defect) {
            let n = self.restarting.unwrap_or_default();
            let next = self.set(n, S::Ending);
            let what = format!("operator ends the pod of {n}");
            next.check_going(bounds).map_err(|why| format!("{what}: {why}"))?;
            moves.push((what, next));
        }
        if self.may_change(bounds, defect) {
            let next = self.change();
            let what = format!("{:?} changes", self.changing);
            next.check_going(bounds).map_err(|why| format!("{what}: {why}"))?;
            moves.push((what, next));
        }
        for c in 0..2 {
            if self.written[c] != self.in_force[c] {
                let mut next = self.clone();
                next.in_force[c] = self.written[c];
                moves.push((format!("the budget of {c} is applied"), next));
            }
            if bounds.cuts {
                let mut next = self.clone();
                next.unasked[c] = !self.unasked[c];
                moves.push((format!("cluster {c} can be asked: {}", self.unasked[c]), next));
            }
        }
        for n in 0..self.voters.len() {
            let state = self.voters[n].state;
            if self.may_evict(n) {
                let next = self.set(n, S::Ending);
                next.check_going(bounds).map_err(|why| format!("{n} is evicted: {why}"))?;
                moves.push((format!("{n} is evicted"), next));
            }
            match state {
                S::Ending => moves.push((format!("{n} is gone"), self.set(n, S::Gone))),
                S::Gone => moves.push((format!("{n} is back elsewhere"), self.comes_back(n))),
                S::Failed | S::Silent => {
                    moves.push((format!("{n} recovers"), self.set(n, S::Up)));
                }
                S::Up if self.failures > 0 => {
                    for failed in [S::Failed, S::Silent] {
                        let mut next = self.set(n, failed);
                        next.failures -= 1;
                        moves.push((format!("{n}: {failed:?}"), next));
                    }
                }
                S::Up => {}
            }
            if self.drains > 0 && !self.voters[n].wanted {
                let mut next = self.clone();
                next.voters[n].wanted = true;
                next.drains -= 1;
                moves.push((format!("the machine of {n} is drained"), next));
            }
            let free = self.restarting.is_none() && self.changing.is_none() && state == S::Up;
            if self.changes > 0 && free {
                let mut next = self.clone();
                next.changing = Some(n);
                next.changes -= 1;
                moves.push((format!("operator begins to change {n}"), next));
            }
            if self.restarts > 0 && free {
                let mut next = self.clone();
                next.restarting = Some(n);
                next.restarts -= 1;
                moves.push((format!("operator begins to restart {n}"), next));
            }
        }
        Ok(moves)
    }

    fn comes_back(&self, n: usize) -> Self {
        let mut next = self.set(n, S::Up);
        next.voters[n].wanted = false;
        if next.restarting == Some(n) {
            next.restarting = None;
        }
        next
    }

    /// Faults stop; then every drain and restart ends, and the operator falls quiet.
    fn heals(&self, bounds: &Bounds, defect: Option<Defect>) -> Result<(), String> {
        let mut world = Self { unasked: [false; 2], failures: 0, ..self.clone() };
        (world.restarts, world.changes) = (0, 0);
        for _ in 0..60 {
            for n in 0..world.voters.len() {
                world = match world.voters[n].state {
                    S::Failed | S::Silent => world.set(n, S::Up),
                    S::Ending => world.set(n, S::Gone),
                    S::Gone => world.comes_back(n),
                    S::Up if world.may_evict(n) => world.set(n, S::Ending),
                    S::Up => world,
                };
            }
            if world.may_restart(bounds, defect) {
                world = world.set(world.restarting.unwrap_or_default(), S::Ending);
            }
            if world.may_change(bounds, defect) {
                world = world.change();
            }
            world.in_force = world.written;
            world = world.look(bounds, defect);
            let quiet = world.plan.is_empty() && world.own_step().is_none();
            // Who can be missed by nobody is not drained.
            let powers: Vec<u64> = world.voters.iter().map(|v| v.power).collect();
            let may_end = margin(Quorum::MoreThanTwoThirds, &powers) > bounds.reserve;
            let ended = |v: &V| v.state == S::Up && !(v.wanted && may_end);
            if quiet && world.voters.iter().all(ended) {
                return Ok(());
            }
            while let Some(next) = world.write() {
                world = next;
            }
        }
        Err(format!("a drain never ends: {world:?}"))
    }
}

/// All states; the way to the first harm, if there is one.
fn explore(bounds: &Bounds, defect: Option<Defect>) -> Result<usize, String> {
    let start = World::start(bounds);
    let mut known = HashMap::from([(start.clone(), 0)]);
    let mut queue = vec![(start, 0usize, "at first".to_owned())];
    let mut at = 0;
    let way = |queue: &[(World, usize, String)], mut at: usize, why: &str| {
        let mut path = vec![why.to_owned()];
        while at > 0 {
            path.push(queue[at].2.clone());
            at = queue[at].1;
        }
        path.reverse();
        path.join("\n  ")
    };
    while at < queue.len() {
        let world = queue[at].0.clone();
        world.heals(bounds, defect).map_err(|why| way(&queue, at, &why))?;
        let moves = world.moves(bounds, defect).map_err(|why| way(&queue, at, &why))?;
        for (what, next) in moves {
            if !known.contains_key(&next) {
                known.insert(next.clone(), queue.len());
                queue.push((next, at, what));
            }
        }
        at += 1;
    }
    Ok(queue.len())
}

#[test]
fn no_more_go_at_once_than_the_chain_can_miss_and_all_drains_end() {
    let full = std::env::var("BSN_MODEL").is_ok_and(|bound| bound == "full");
    let bounds = |powers: Powers, drains, failures, restarts, cuts| Bounds {
        powers,
        reserve: 0,
        drains,
        failures,
        restarts,
        changes: 0,
        cuts,
    };
    let four: Powers = [&[1, 1], &[1, 1]];
    let uneven: Powers = [&[3, 1], &[2, 2, 2]];
    let seven: Powers = [&[1, 1, 1], &[1, 1, 1, 1]];
    let mut all = vec![
        bounds(four, 2, 1, 0, true),
        bounds(four, 2, 0, 1, false),
        bounds(uneven, 2, 1, 0, false),
        bounds(seven, 2, 0, 0, false),
        Bounds { changes: 1, ..bounds(four, 2, 0, 0, true) },
        Bounds { changes: 1, ..bounds([&[1, 1], &[1, 1, 0]], 2, 0, 0, false) },
        Bounds { changes: 1, ..bounds(seven, 1, 0, 0, false) },
    ];
    if full {
        all.push(bounds(four, 3, 1, 1, true));
        all.push(bounds(uneven, 3, 1, 0, true));
        all.push(bounds(seven, 3, 0, 0, true));
        all.push(Bounds { reserve: 1, ..bounds(seven, 2, 1, 0, false) });
    }
    for bounds in all {
        let states = explore(&bounds, None).unwrap_or_else(|way| panic!("{way}"));
        println!("powers {:?}, reserve {}: {states} states", bounds.powers, bounds.reserve);
    }
}

#[test]
fn every_defect_lets_too_many_go() {
    let four = |failures, restarts, cuts| Bounds {
        powers: [&[1, 1], &[1, 1]],
        reserve: 0,
        drains: 2,
        failures,
        restarts,
        changes: 0,
        cuts,
    };
    for (defect, bounds) in [
        (Defect::WrittenIsInForce, four(0, 0, false)),
        (Defect::UnaskedIsNothing, four(0, 0, true)),
        (Defect::RaisesUnrecorded, four(0, 0, true)),
        (Defect::EndingIsUp, four(1, 0, false)),
        (Defect::RestartsAtOnce, four(0, 1, false)),
        (Defect::ChangesAtOnce, Bounds { changes: 1, ..four(0, 0, false) }),
    ] {
        match explore(&bounds, Some(defect)) {
            Err(way) => println!("{defect:?}:\n  {way}\n"),
            Ok(states) => panic!("{defect:?} is not caught in {states} states"),
        }
    }
}
