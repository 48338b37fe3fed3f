//! What must never happen, judged by the truth.

use super::world::{HUBS, LEDGERS, PLACES, Rec, Scenario, World};
use crate::intent::record::{Intent, Phase};
use crate::intent::refusal::Refusal;

/// A broken rule.
pub type Broken = &'static str;

/// An effect, at the moment it happens.
pub fn check_effect(
    scenario: &Scenario,
    world: &World,
    proc: usize,
    ledger: &str,
    intent: &Intent<u8>,
) -> Result<(), Broken> {
    let hub = scenario.hub_of(proc);
    let Some(lead) = world.lead(proc) else { return Err("an effect of a process that leads not") };
    if !lead.within {
        return Err("an effect by a leader whose lease has ended");
    }
    if !lead.stamped.contains(&intent.epoch) {
        return Err("an effect for an intent that this leader did not stamp");
    }
    let held =
        |store: usize| world.stores[store].now.as_ref().and_then(|record| record.open.get(ledger));
    // Between the last read and the effect nothing can be excluded but this: what was restored in between.
    let primary_blind = lead.blind.contains(&hub);
    if held(hub) != Some(intent) && !primary_blind {
        return Err("an effect whose intent is not in the primary");
    }
    if intent.phase != Phase::Sent {
        return Err("an effect before its intent says that it may have been sent");
    }
    for place in &intent.places {
        let store = scenario.hubs() + PLACES.iter().position(|known| known == place).unwrap();
        if held(store) != Some(intent) && !lead.blind.contains(&store) {
            return Err("an effect whose intent is not in the copy of its place");
        }
    }
    for (place, store) in world.stores.iter().enumerate().skip(scenario.hubs()) {
        let other = store.now.as_ref().is_some_and(|copy| copy.hub_id != HUBS[hub]);
        if other && !lead.blind.contains(&place) {
            return Err("an effect by a hub while a copy names another hub");
        }
    }
    for effect in world.effects.iter() {
        let same_ledger = LEDGERS[scenario.jobs[usize::from(effect.job)].ledger] == ledger;
        let same = effect.job == intent.step && effect.places == intent.places;
        if effect.number == intent.number && !same {
            return Err("one step number for two steps");
        }
        if effect.number != intent.number && effect.job == intent.step {
            return Err("a step done twice under two numbers");
        }
        if effect.number != intent.number && same_ledger && !effect.settled {
            return Err("a second effect while another is not settled");
        }
    }
    Ok(())
}

/// A store's content is replaced by somebody's write.
pub fn check_write(
    scenario: &Scenario,
    world: &World,
    store: usize,
    next: &Rec,
) -> Result<(), Broken> {
    let Some(before) = &world.stores[store].now else { return Ok(()) };
    if next.epoch < before.epoch {
        return Err("the epoch runs backwards");
    }
    if next.step_number < before.step_number {
        return Err("the step number runs backwards");
    }
    if next.revision <= before.revision {
        return Err("a revision that is not newer");
    }
    let is_primary = store < scenario.hubs();
    if is_primary && next.hub_id == before.hub_id && next.revision != before.revision + 1 {
        // A take-over goes beyond all copies.
        let taken_over = world.rewound && next.step_number > before.step_number;
        if !taken_over {
            return Err("a write of the primary that is not the next revision");
        }
    }
    for (ledger, intent) in &before.open {
        let kept = next.open.get(ledger).is_some_and(|kept| {
            kept.number == intent.number && kept.step == intent.step && kept.phase >= intent.phase
        });
        let open = world.effects.iter().any(|effect| {
            effect.number == intent.number && effect.job == intent.step && !effect.settled
        });
        if open && !kept {
            return Err("what was sent and is not settled is forgotten");
        }
    }
    Ok(())
}

/// A leader is refused.
pub fn check_refusal(world: &World, within: bool, refusal: &Refusal) -> Result<(), Broken> {
    match refusal {
        Refusal::HubOlder { .. } | Refusal::AnotherHub { .. } | Refusal::Absent
            if !world.rewound =>
        {
            Err("a hub is taken for a restored one, and is not")
        }
        Refusal::Fenced { .. } if within => Err("a leader is fenced within its lease"),
        // Decided on a record that a restore then took away.
        Refusal::NotSent { .. } if world.rewound => Ok(()),
        Refusal::NotResumed { .. }
        | Refusal::NotSent { .. }
        | Refusal::AnotherNetwork { .. }
        | Refusal::UnknownPlace { .. } => Err("a refusal that a sound leader never meets"),
        _ => Ok(()),
    }
}
