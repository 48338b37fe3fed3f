use std::collections::BTreeMap;

use bsn_core::engine::cometbft::{LEDGER, QUORUM};
use bsn_core::membership::model::{Change, Follower, Gate, Head, Hub, Node, Step};
use bsn_core::membership::{Desired, Policy, Refusal};
use bsn_core::names::NodeName;

use super::*;

fn name(index: usize) -> NodeName {
    NodeName::from_object(&format!("city-ledger-a-{index}"))
}

/// Keys are in another order than names.
fn key(index: usize) -> String {
    format!("AAAA000000000000000000000000000000000{:03}", 9 - index)
}

/// Three voters of ours and one of another owner: the second is down and to be restarted, of the third nothing is
/// known. A fourth node of ours follows, far behind, and is held.
fn observed() -> Observed {
    let mut nodes: BTreeMap<NodeName, Node> =
        (0..4).map(|index| (name(index), Node::new("a"))).collect();
    let down = nodes.get_mut(&name(1)).unwrap();
    (down.engine, down.inputs, down.down_seconds) = (Engine::NotReady, Inputs::Pending, 320);
    let unknown = nodes.get_mut(&name(2)).unwrap();
    (unknown.engine, unknown.down_seconds) = (Engine::Unknown, 45);
    nodes.get_mut(&name(3)).unwrap().held = true;
    let member = |index: usize, liveness, signed| {
        (key(index), Member { power: 1000, node: Some(name(index)), liveness, signed })
    };
    let foreign = Member { power: 700, node: None, liveness: Liveness::Unknown, signed: 0 };
    let follower = |lag| Follower { lag, steady_seconds: 60, connected: true };
    let ledger = Ledger {
        quorum: QUORUM,
        weights: true,
        members: [
            member(0, Liveness::Live, 12),
            member(1, Liveness::ProvedDown, 0),
            member(2, Liveness::Unknown, 3),
            (key(9), foreign),
        ]
        .into(),
        agreed: true,
        age_seconds: 1,
        head: Head::Producing,
        height: 100,
        pending: None,
        followers: [(name(0), follower(0)), (name(1), follower(u64::MAX)), (name(3), follower(17))]
            .into(),
    };
    Observed {
        nodes,
        ledgers: [(LEDGER.to_owned(), ledger)].into(),
        begun: None,
        hub: Hub::Current,
    }
}

fn view(decision: Decision) -> MembershipView {
    MembershipView {
        desired: Desired::default(),
        observed: observed(),
        policy: Policy::default(),
        decision,
        for_seconds: 75,
        described: BTreeMap::new(),
        in_force: BTreeMap::new(),
        image_prefix: String::new(),
        next_index: BTreeMap::new(),
        disks: BTreeMap::new(),
        disruption: None,
        warnings: Vec::new(),
    }
}

fn explained(view: &MembershipView) -> String {
    let key = NetworkKey { namespace: "ledger".to_owned(), name: "city-ledger".to_owned() };
    render_explanation(&key, view)
}

fn refusal(gate: Gate, step: &str, message: &str) -> Refusal {
    Refusal { gate, step: step.to_owned(), message: message.to_owned(), consent: None }
}

#[test]
fn a_closed_gate_is_named_with_its_time_its_reason_and_what_opens_it() {
    let step = format!("remove voter {} (ledger main)", key(0));
    let message =
        "ledger main: city-ledger-a-1, city-ledger-a-2 not seen to sign; it has to recover first";
    let refusal = refusal(Gate::OthersHealthy, &step, message);
    insta::assert_snapshot!(explained(&view(Decision::Wait(refusal))));
}

#[test]
fn a_node_that_needs_a_person_holds_up_no_step() {
    let message = "city-ledger-a-1 is down, and a restart cannot help or did not; replace it";
    let told = explained(&view(Decision::Stuck(refusal(Gate::NodeWorks, "", message))));
    assert!(told.contains("\n\nIt is stuck, for 75 s.\nGate node_works: "), "{told}");
}

#[test]
fn a_consent_is_asked_for_with_the_command_that_gives_it() {
    let message = "while city-ledger-a-0 restarts, ledger main has 0 live power and needs 667, with 0 voters to spare";
    let mut refusal = refusal(Gate::QuorumDuringRestart, "restart city-ledger-a-0", message);
    refusal.consent = Some("restart-with-downtime/city-ledger-a-0/9ef9876615".to_owned());
    let mut view = view(Decision::NeedsConsent(refusal));
    view.policy.consents.insert("restart-with-downtime/city-ledger-a-0/0000000000".to_owned());
    view.for_seconds = 7300;
    insta::assert_snapshot!(explained(&view));
}

#[test]
fn a_step_under_way_is_shown_with_how_far_it_is() {
    let change = Change::SetPower { member: key(0), power: 500 };
    let step = Step::BeginChange { ledger: LEDGER.to_owned(), change: change.clone() };
    let mut view = view(Decision::Step { step, consents: [].into() });
    assert!(explained(&view).contains("\nNext: give city-ledger-a-0 power 500.\n"));
    view.decision =
        Decision::Wait(refusal(Gate::OneChangeAtATime, "settle the step begun", "it was sent"));
    view.observed.begun =
        Some(Begun::Change { ledger: LEDGER.to_owned(), change, fate: Fate::Sent });
    view.warnings.push(format!("{} holds a third of the power (ledger main)", key(0)));
    insta::assert_snapshot!(explained(&view));
}

#[test]
fn where_all_is_as_described_only_that_and_the_nodes_are_shown() {
    insta::assert_snapshot!(explained(&view(Decision::Converged)));
}
