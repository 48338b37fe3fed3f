//! What is allowed, and not wise.

use std::collections::BTreeMap;

use super::model::{Gate, Ledger, Node, Observed, Policy};
use super::projection::Projection;

/// A gate that would be closed if it were one, and why.
pub type Warning = (Gate, String);

/// Ledgers that stop when one failure domain, or one cluster, is lost.
pub fn warnings(observed: &Observed, policy: &Policy) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (name, ledger) in &observed.ledgers {
        let mut warn = |gate, what: &str, groups: Vec<&str>| {
            for group in groups {
                warnings.push((gate, format!("ledger {name} stops when {what} {group} is lost")));
            }
        };
        let domains = fatal_groups(observed, ledger, policy, |node| &node.domain);
        warn(Gate::VotersShareFailureDomain, "failure domain", domains);
        let clusters = fatal_groups(observed, ledger, policy, |node| &node.cluster);
        warn(Gate::MajorityNotInOneCluster, "cluster", clusters);
    }
    warnings
}

/// Groups of voters without which there is no quorum, where there is more than one group.
fn fatal_groups<'a>(
    observed: &'a Observed,
    ledger: &Ledger,
    policy: &Policy,
    group_of: impl Fn(&'a Node) -> &'a str,
) -> Vec<&'a str> {
    let mut power: BTreeMap<&str, u64> = BTreeMap::new();
    for member in ledger.members.values() {
        let node = member.node.as_ref().and_then(|node| observed.nodes.get(node));
        let Some(group) = node.map(&group_of).filter(|group| !group.is_empty()) else { continue };
        *power.entry(group).or_default() += member.power;
    }
    let all = Projection::of(ledger, policy);
    let (total, needed, many) = (all.total(), all.needed(), power.len() > 1);
    let fatal = power.into_iter().filter(|(_, power)| many && total - power < needed);
    fatal.map(|(group, _)| group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::play::tests::healthy;
    use crate::quorum::Quorum;

    #[test]
    fn three_of_four_voters_on_one_machine_are_a_warning() {
        let mut observed = healthy(Quorum::MoreThanTwoThirds, true, &[1000; 4]);
        for (n, node) in observed.nodes.values_mut().enumerate() {
            node.domain = if n == 3 { "m2" } else { "m1" }.to_owned();
            node.cluster = format!("c{n}");
        }
        let found = warnings(&observed, &Policy::default());
        assert_eq!(
            found,
            [(
                Gate::VotersShareFailureDomain,
                "ledger main stops when failure domain m1 is lost".to_owned()
            )]
        );
    }
}
