//! Rolling a changed description over the nodes, one at a time. The decision is
//! [`bsn_core::restart`]; the effects on a node are its own controller's, once the anchor names it.

use bsn_core::anchor::{Anchor, Role};
use bsn_core::names::NodeName;
use bsn_core::restart::{NodeState, RestartStep, next_restart};

use super::apply::Pass;
use crate::controller::Step;
use crate::view::{Liveness, NodeView};

/// Evidence older than this says nothing about a node that restarts. Seconds; polls are two apart.
const FRESH_SECONDS: f64 = 5.0;

/// Where a roll is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roll {
    /// Nodes that do not run what is described.
    pub pending: Vec<NodeName>,
    /// The node that restarts now.
    pub restarting: Option<String>,
    /// The node that would be next, and the gate that is closed.
    pub closed: Option<String>,
}

impl Roll {
    /// For people; `None` = nothing rolls.
    pub fn message(&self) -> Option<String> {
        let more = self.pending.len();
        match (&self.restarting, &self.closed) {
            (Some(node), _) => Some(format!("restarting {node}; {more} more to go")),
            (None, Some(closed)) => Some(format!("{more} nodes to restart; {closed}")),
            (None, None) if more > 0 => Some(format!("{more} nodes to restart")),
            (None, None) => None,
        }
    }
}

impl Pass<'_> {
    /// Takes the next step of a roll, if there is one.
    pub(super) async fn roll(&self, anchor: Anchor) -> Step<(Anchor, Roll)> {
        if !anchor.formed {
            return Ok(Ok((anchor, Roll::default())));
        }
        let view = self.ctx.views.get(self.key);
        let producing = view.as_ref().is_some_and(|view| view.liveness == Liveness::Live);
        let seen = |name: &NodeName| {
            let nodes = view.iter().flat_map(|view| &view.nodes);
            nodes.into_iter().find(|node| node.name == name.as_str())
        };
        let under_way = anchor.restarting.as_deref().map(NodeName::from_object);
        let mut states = Vec::new();
        for (name, identity) in anchor.members() {
            // One that was never started gets what is described when it is.
            let Some(in_force) = &identity.template_hash else { continue };
            let node = seen(&name);
            let runs = node.and_then(|node| node.template_hash.as_ref());
            let described = self.validated.inputs_hash(&identity.set);
            let behind =
                under_way.as_ref() != Some(&name) && runs.is_some_and(|runs| runs != in_force);
            states.push(NodeState {
                voter: identity.role == Role::Validator,
                pending: identity.inputs_hash.as_ref() != Some(&described) || behind,
                in_sync: runs == Some(in_force) && node.is_some_and(follows),
                name,
            });
        }
        let mut roll = Roll {
            pending: states.iter().filter(|s| s.pending).map(|s| s.name.clone()).collect(),
            restarting: anchor.restarting.clone(),
            closed: None,
        };
        let record = match next_restart(under_way.as_ref(), &states, producing) {
            RestartStep::Rest | RestartStep::Await(_) => return Ok(Ok((anchor, roll))),
            RestartStep::Closed(name, gate) => {
                roll.closed = Some(format!("{name} is next and waits for {gate}"));
                return Ok(Ok((anchor, roll)));
            }
            RestartStep::Begin(name) if Some(&name) == under_way.as_ref() => {
                return Ok(Ok((anchor, roll)));
            }
            RestartStep::Begin(name) => Some(name.to_string()),
            RestartStep::Finish(_) => None,
        };
        tracing::info!(network = %self.key, restarting = ?record, pending = roll.pending.len(), "rolling");
        let before = anchor.restarting.clone();
        let recorded = self
            .update(|stored| {
                // Only from the state this was decided on.
                if stored.restarting == before {
                    stored.restarting.clone_from(&record);
                }
            })
            .await?;
        roll.restarting = record;
        Ok(recorded.map(|anchor| (anchor, roll)))
    }
}

fn follows(node: &NodeView) -> bool {
    node.in_sync && node.evidence_age_seconds.is_some_and(|age| age < FRESH_SECONDS)
}
