//! What is allowed, and not wise.

use std::collections::BTreeMap;

use super::model::{Gate, Ledger, Node, Observed, Policy};
use super::projection::Projection;
use crate::names::cluster_in_words;

/// A gate that would be closed if it were one, and why.
pub type Warning = (Gate, String);

/// Ledgers that stop when one failure domain, or one cluster, is lost.
pub fn warnings(observed: &Observed, policy: &Policy) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (name, ledger) in &observed.ledgers {
        let mut warn = |gate, group: String| {
            warnings.push((gate, format!("ledger {name} stops when {group} is lost")));
        };
        let domain = |node: &'_ Node| Some(node.domain.clone()).filter(|name| !name.is_empty());
        for domain in fatal_groups(observed, ledger, policy, domain) {
            warn(Gate::VotersShareFailureDomain, format!("failure domain {domain}"));
        }
        for cluster in
            fatal_groups(observed, ledger, policy, |node| Some(cluster_in_words(&node.cluster)))
        {
            warn(Gate::MajorityNotInOneCluster, cluster);
        }
    }
    warnings
}

/// Groups of voters without which there is no quorum, where there is more than one group. A node whose group is
/// not known counts in none.
fn fatal_groups(
    observed: &Observed,
    ledger: &Ledger,
    policy: &Policy,
    group_of: impl Fn(&Node) -> Option<String>,
) -> Vec<String> {
    let mut power: BTreeMap<String, u64> = BTreeMap::new();
    for member in ledger.members.values() {
        let node = member.node.as_ref().and_then(|node| observed.nodes.get(node));
        let Some(group) = node.and_then(&group_of) else { continue };
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

    #[test]
    fn the_hub_is_a_cluster_as_well() {
        let mut observed = healthy(Quorum::MoreThanTwoThirds, true, &[1000; 4]);
        for node in observed.nodes.values_mut().skip(2) {
            node.cluster = "c1".to_owned();
        }
        let found = warnings(&observed, &Policy::default());
        let texts: Vec<_> = found.iter().map(|(_, text)| text.as_str()).collect();
        let lost = |what| format!("ledger main stops when {what} is lost");
        assert_eq!(texts, [lost("cluster c1"), lost("the hub")]);
    }
}
