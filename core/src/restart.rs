//! One node at a time: which node may restart next, so that a changed configuration takes effect.
//!
//! A pod that restarts by itself comes back on its old template. A changed one is put in force only as
//! the first effect of the node's own restart step, which begins here: nodes that do not vote first, then
//! voters, each when the chain makes blocks and all others follow it, and the next only when this one
//! follows it again.

use crate::names::NodeName;

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// Its name.
    pub name: NodeName,
    /// It votes.
    pub voter: bool,
    /// It does not run what is described.
    pub pending: bool,
    /// It follows the chain, on the template in force.
    pub in_sync: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartStep {
    /// Nothing.
    Rest,
    /// Record that this node restarts now.
    Begin(NodeName),
    /// It restarts.
    Await(NodeName),
    /// It is back: record that.
    Finish(NodeName),
    /// This node would be next; the gate is closed.
    Closed(NodeName, Gate),
}

/// What must hold before a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// Blocks advance.
    ChainIsProducing,
    /// All other nodes follow the chain; these do not.
    OthersInSync(Vec<NodeName>),
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ChainIsProducing => f.write_str("chain_is_producing: the chain makes no blocks"),
            Self::OthersInSync(nodes) => {
                let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
                write!(f, "others_in_sync: {} do not follow the chain", names.join(", "))
            }
        }
    }
}

/// Decides, given which node's restart is recorded as under way.
pub fn next_restart(
    under_way: Option<&NodeName>,
    nodes: &[NodeState],
    producing: bool,
) -> RestartStep {
    if let Some(name) = under_way {
        return match nodes.iter().find(|node| node.name == *name) {
            // Described anew while it restarts: it is down or broken anyway, so it gets that at once.
            Some(node) if node.pending => RestartStep::Begin(name.clone()),
            Some(node) if !node.in_sync => RestartStep::Await(name.clone()),
            // Back, or gone for good.
            _ => RestartStep::Finish(name.clone()),
        };
    }
    let mut pending: Vec<&NodeState> = nodes.iter().filter(|node| node.pending).collect();
    pending.sort_by(|a, b| (a.voter, &a.name).cmp(&(b.voter, &b.name)));
    // One that is broken anyway first: it may be what keeps the others' gate shut.
    let Some(next) = pending.iter().find(|node| !node.in_sync).or(pending.first()) else {
        return RestartStep::Rest;
    };
    if !producing {
        return RestartStep::Closed(next.name.clone(), Gate::ChainIsProducing);
    }
    let behind: Vec<NodeName> = nodes
        .iter()
        .filter(|node| node.name != next.name && !node.in_sync)
        .map(|node| node.name.clone())
        .collect();
    if behind.is_empty() {
        RestartStep::Begin(next.name.clone())
    } else {
        RestartStep::Closed(next.name.clone(), Gate::OthersInSync(behind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(n: usize) -> NodeName {
        NodeName::from_object(&format!("net-a-{n}"))
    }

    fn nodes(states: &[(bool, bool, bool)]) -> Vec<NodeState> {
        states
            .iter()
            .enumerate()
            .map(|(n, &(voter, pending, in_sync))| NodeState {
                name: name(n),
                voter,
                pending,
                in_sync,
            })
            .collect()
    }

    #[test]
    fn full_nodes_restart_before_voters() {
        let all = nodes(&[(true, true, true), (false, true, true)]);
        assert_eq!(next_restart(None, &all, true), RestartStep::Begin(name(1)));
    }

    #[test]
    fn nobody_restarts_while_another_is_behind_or_the_chain_stands() {
        let all = nodes(&[(true, true, true), (true, false, false)]);
        assert_eq!(
            next_restart(None, &all, true),
            RestartStep::Closed(name(0), Gate::OthersInSync(vec![name(1)]))
        );
        let all = nodes(&[(true, true, true), (true, false, true)]);
        assert_eq!(
            next_restart(None, &all, false),
            RestartStep::Closed(name(0), Gate::ChainIsProducing)
        );
    }

    #[test]
    fn a_node_broken_by_its_configuration_is_mended_first() {
        let all = nodes(&[(true, true, true), (true, true, false), (true, true, true)]);
        assert_eq!(next_restart(None, &all, true), RestartStep::Begin(name(1)));
    }

    #[test]
    fn what_is_under_way_ends_before_anything_else_begins() {
        let back = nodes(&[(true, false, true), (true, true, true)]);
        assert_eq!(next_restart(Some(&name(0)), &back, true), RestartStep::Finish(name(0)));
        let down = nodes(&[(true, false, false), (true, true, true)]);
        assert_eq!(next_restart(Some(&name(0)), &down, true), RestartStep::Await(name(0)));
        assert_eq!(next_restart(Some(&name(7)), &down, true), RestartStep::Finish(name(7)));
    }

    proptest! {
        #[test]
        fn a_healthy_voter_restarts_only_if_all_others_are_in_sync(
            states in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..8),
            producing: bool,
        ) {
            let all = nodes(&states);
            if let RestartStep::Begin(begun) = next_restart(None, &all, producing) {
                prop_assert!(producing);
                prop_assert!(all.iter().all(|node| node.name == begun || node.in_sync));
                prop_assert!(all.iter().any(|node| node.name == begun && node.pending));
            }
        }

        /// Played through, every pending node restarts once and the play ends.
        #[test]
        fn a_roll_ends(pending in proptest::collection::vec(any::<bool>(), 1..8)) {
            let states: Vec<_> = pending.iter().map(|pending| (true, *pending, true)).collect();
            let mut all = nodes(&states);
            let mut under_way = None;
            let mut begun = 0;
            for _ in 0..100 {
                match next_restart(under_way.as_ref(), &all, true) {
                    RestartStep::Rest => break,
                    RestartStep::Begin(name) => {
                        begun += 1;
                        let node = all.iter_mut().find(|node| node.name == name).unwrap();
                        node.pending = false;
                        node.in_sync = false;
                        under_way = Some(name);
                    }
                    RestartStep::Await(name) => {
                        all.iter_mut().find(|node| node.name == name).unwrap().in_sync = true;
                    }
                    RestartStep::Finish(_) => under_way = None,
                    RestartStep::Closed(..) => prop_assert!(false, "closed with all in sync"),
                }
            }
            prop_assert_eq!(begun, pending.iter().filter(|pending| **pending).count());
            prop_assert_eq!(under_way, None);
        }
    }
}
