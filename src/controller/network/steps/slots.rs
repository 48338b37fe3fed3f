//! Slots: how many networks may restart nodes at the same time, over all that this operator looks after. A
//! mistake in a change that reaches many networks is then seen on the first few.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bsn_core::membership::model::{Gate, Refusal};
use bsn_core::membership::{Decision, model::Step as PlannedStep};

use crate::view::NetworkKey;

/// The slots; clones share them.
#[derive(Debug, Clone)]
pub struct Slots {
    limit: usize,
    held: Arc<Mutex<BTreeSet<NetworkKey>>>,
}

impl Slots {
    /// So many.
    pub fn new(limit: usize) -> Self {
        Self { limit, held: Arc::default() }
    }

    /// Gives a network's slot back.
    pub fn release(&self, key: &NetworkKey) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Takes or gives back a network's slot, as the decision needs it. Who began a restart keeps the slot until
    /// it is over, or until only a person can help: the others must not wait for that person. Gives what is
    /// decided in the end.
    ///
    /// `restarts` = a restart is under way; `pending` = some node does not run what is described.
    pub fn settle(
        &self,
        key: &NetworkKey,
        restarts: bool,
        pending: bool,
        decision: Decision,
    ) -> Decision {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let needs_person = matches!(decision, Decision::NeedsConsent(_) | Decision::Stuck(_));
        match &decision {
            Decision::Step { step: PlannedStep::BeginRestart { node }, .. } => {
                if held.contains(key) || held.len() < self.limit {
                    held.insert(key.clone());
                    return decision;
                }
                let message = format!(
                    "{} other networks restart nodes, as many as the operator is set up for (maxConcurrentRolls)",
                    held.len()
                );
                let step = PlannedStep::BeginRestart { node: node.clone() }.to_string();
                Decision::Wait(Refusal { gate: Gate::RollSlotIsFree, step, message, consent: None })
            }
            // Begun by an earlier leader, perhaps: then it has a slot, whatever the limit.
            _ if restarts && !needs_person => {
                held.insert(key.clone());
                decision
            }
            // Between two nodes of one roll it stays.
            Decision::Step { .. } | Decision::Wait(_) if pending && held.contains(key) => decision,
            _ => {
                held.remove(key);
                decision
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bsn_core::names::NodeName;

    fn key(n: u8) -> NetworkKey {
        NetworkKey { namespace: "ledger".into(), name: format!("net-{n}") }
    }

    fn begin() -> Decision {
        let step = PlannedStep::BeginRestart { node: NodeName::from_object("net-a-0") };
        Decision::Step { step, consents: [].into() }
    }

    fn refused(gate: Gate) -> Refusal {
        Refusal { gate, step: String::new(), message: String::new(), consent: None }
    }

    #[test]
    fn one_more_than_there_are_slots_waits_until_another_is_done() {
        let slots = Slots::new(2);
        assert_eq!(slots.settle(&key(1), false, true, begin()), begin());
        assert_eq!(slots.settle(&key(2), false, true, begin()), begin());
        let waits = slots.settle(&key(3), false, true, begin());
        assert!(matches!(&waits, Decision::Wait(why) if why.gate == Gate::RollSlotIsFree));
        // Between two nodes of its roll a network keeps its slot.
        slots.settle(&key(1), false, true, Decision::Wait(refused(Gate::OthersHealthy)));
        assert!(matches!(slots.settle(&key(3), false, true, begin()), Decision::Wait(_)));
        slots.settle(&key(1), false, true, Decision::Converged);
        assert_eq!(slots.settle(&key(3), false, true, begin()), begin());
    }

    #[test]
    fn who_waits_for_a_person_holds_no_slot_and_who_began_before_has_one() {
        let slots = Slots::new(1);
        assert_eq!(slots.settle(&key(1), false, true, begin()), begin());
        slots.settle(&key(1), true, true, Decision::Stuck(refused(Gate::NodeComesBack)));
        assert_eq!(slots.settle(&key(2), false, true, begin()), begin());
        slots.settle(&key(1), true, true, Decision::Wait(refused(Gate::NodeComesBack)));
        slots.settle(&key(2), false, true, Decision::Converged);
        assert!(matches!(slots.settle(&key(2), false, true, begin()), Decision::Wait(_)));
    }
}
