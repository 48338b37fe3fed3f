use serde_json::json;

use super::*;
use crate::cli::render::parse_networks;

fn network(replicas: u32, timeout: &str) -> BsnNetwork {
    let text = format!(
        r"
apiVersion: v1
kind: Namespace
metadata: {{name: ledger}}
---
apiVersion: bsn-operator.io/v1alpha1
kind: BsnNetwork
metadata: {{name: city-ledger, namespace: ledger}}
spec:
  chainId: city-ledger-1
  engine:
    cometbft: {{version: 0.38.25, timeoutCommit: {timeout}, app: {{persistentKvstore: {{}}}}}}
  nodeSets:
  - {{name: a, role: Validator, replicas: {replicas}}}
  - {{name: readers, role: FullNode, replicas: 1}}
"
    );
    parse_networks(&text, "test.yaml").unwrap().remove(0)
}

/// With an application of the user's own.
fn with_application(image: &str, strategy: &str) -> BsnNetwork {
    let mut network = network(4, "1s");
    let app = json!({"container": {"image": image, "halt": {"env": "HALT_HEIGHT"}}});
    network.spec.engine.cometbft.as_mut().unwrap().app = serde_json::from_value(app).unwrap();
    network.spec.upgrade = Some(serde_json::from_value(json!({"strategy": strategy})).unwrap());
    network
}

fn planned(old: &BsnNetwork, new: &BsnNetwork) -> ShownPlan {
    plan_offline(old, new, ["old.yaml".to_owned(), "new.yaml".to_owned()]).unwrap()
}

#[test]
fn nothing_to_do() {
    let plan = planned(&network(4, "1s"), &network(4, "1s"));
    assert_eq!((plan.steps.len(), plan.end, exit_code(&plan)), (0, "converged", 0));
    assert!(render_table(&plan).ends_with("Nothing to do: all is as described."));
}

#[test]
fn a_fifth_voter_is_made_enters_small_and_is_raised() {
    let plan = planned(&network(4, "1s"), &network(5, "1s"));
    assert_eq!(exit_code(&plan), STEPS);
    insta::assert_snapshot!(render_table(&plan));
}

#[test]
fn four_become_one() {
    let plan = planned(&network(4, "1s"), &network(1, "1s"));
    insta::assert_snapshot!(render_markdown(&plan));
}

#[test]
fn another_pause_restarts_one_after_the_other() {
    let plan = planned(&network(4, "1s"), &network(4, "500ms"));
    let steps: Vec<&str> = plan.steps.iter().map(|step| step.what.as_str()).collect();
    assert_eq!(
        steps,
        [
            "restart city-ledger-readers-0",
            "restart city-ledger-a-0",
            "restart city-ledger-a-1",
            "restart city-ledger-a-2",
            "restart city-ledger-a-3"
        ]
    );
    let spare: Vec<Option<usize>> = plan.steps.iter().map(|step| step.spare_voters).collect();
    assert_eq!(spare, [Some(1), Some(0), Some(0), Some(0), Some(0)]);
}

#[test]
fn another_application_comes_to_all_nodes_at_one_height_or_one_by_one() {
    let old = with_application("ledger:1", "Rolling");
    let plan = planned(&old, &with_application("ledger:2", "AtHeight"));
    assert_eq!(exit_code(&plan), STEPS);
    insta::assert_snapshot!(render_table(&plan));
    let plan = planned(&old, &with_application("ledger:2", "Rolling"));
    assert_eq!(plan.steps[0].what, "restart city-ledger-readers-0");
    // The strategy alone changes nothing.
    assert_eq!(planned(&old, &with_application("ledger:1", "AtHeight")).steps.len(), 0);
}

#[test]
fn without_a_voter_to_spare_a_restart_asks_and_a_consent_lets_it_go_on() {
    let (old, mut new) = (network(1, "1s"), network(1, "500ms"));
    let plan = planned(&old, &new);
    assert_eq!(exit_code(&plan), REFUSED);
    insta::assert_snapshot!(render_table(&plan));
    let consent = plan.refusal.unwrap().consent.unwrap();
    new.annotations_mut().insert(bsn_core::consent::CONSENT_ANNOTATION.to_owned(), consent);
    let plan = planned(&old, &new);
    assert_eq!(exit_code(&plan), STEPS);
    let last = plan.steps.last().unwrap();
    assert_eq!((last.spare_voters, last.consents.len()), (None, 1));
}

#[test]
fn the_plan_for_programs_is_stable() {
    let plan = planned(&network(4, "1s"), &network(3, "1s"));
    insta::assert_json_snapshot!(plan);
}

#[test]
fn a_description_without_voters_and_another_chain_are_errors() {
    let files = || ["old.yaml".to_owned(), "new.yaml".to_owned()];
    let error = plan_offline(&network(4, "1s"), &network(0, "1s"), files()).unwrap_err();
    assert!(error.to_string().starts_with("new.yaml: a chain needs a validator"), "{error}");
    let mut other = network(4, "1s");
    other.spec.chain_id = "other-1".into();
    let error = plan_offline(&network(4, "1s"), &other, files()).unwrap_err();
    assert!(matches!(error, PlanError::AnotherChain(_)), "{error}");
}

/// One that joined a chain of other owners, with so many validators of its own.
fn joined(replicas: u32) -> BsnNetwork {
    let mut network = network(replicas, "1s");
    let genesis = json!({"from": {"configMapRef": {"name": "theirs"}, "sha256": "5e".repeat(32)}});
    network.spec.genesis = serde_json::from_value(genesis).unwrap();
    let peer = json!({"nodeId": "ab".repeat(20), "host": "a.example"});
    network.spec.external_peers = vec![serde_json::from_value(peer).unwrap()];
    network
}

#[test]
fn voters_come_and_go_beside_those_of_other_owners() {
    let plan = planned(&joined(0), &joined(1));
    assert_eq!(plan.end, "converged", "{plan:?}");
    let whats: Vec<&str> = plan.steps.iter().map(|step| step.what.as_str()).collect();
    assert!(whats.contains(&"add city-ledger-a-0 as a voter with power 10"), "{whats:?}");
    let plan = planned(&joined(1), &joined(0));
    assert_eq!(plan.end, "converged", "{plan:?}");
    // It is another network, not a change of this one.
    let files = ["old.yaml".to_owned(), "new.yaml".to_owned()];
    let other = plan_offline(&network(1, "1s"), &joined(1), files);
    assert!(matches!(other, Err(PlanError::AnotherChain(_))));
}

#[test]
fn disks_grow_beside_the_steps_and_never_shrink() {
    let with_disks = |replicas, size: &str| {
        let mut network = network(replicas, "1s");
        network.spec.node_sets[0].storage.size = size.to_owned();
        network
    };
    let plan = planned(&with_disks(4, "20Gi"), &with_disks(4, "40Gi"));
    assert_eq!((plan.steps.len(), plan.end, exit_code(&plan)), (0, "converged", STEPS));
    let expected = "No step is needed.\nSet a: 4 disks grow from 20Gi to 40Gi, without a restart.";
    assert!(render_table(&plan).ends_with(expected), "{}", render_table(&plan));
    let plan = planned(&with_disks(4, "20Gi"), &with_disks(5, "40Gi"));
    insta::assert_snapshot!(render_markdown(&plan));
    // The same size, written in another way.
    assert_eq!(exit_code(&planned(&with_disks(4, "1Gi"), &with_disks(4, "1024Mi"))), 0);
    let files = ["old.yaml".to_owned(), "new.yaml".to_owned()];
    let error = plan_offline(&with_disks(4, "40Gi"), &with_disks(4, "20Gi"), files).unwrap_err();
    assert!(error.to_string().starts_with("new.yaml: the disks of set a would shrink"), "{error}");
}

#[test]
fn what_pods_have_besides_restarts_the_nodes_of_its_set() {
    let mut new = network(4, "1s");
    let pod = json!({"annotations": {"restarted-at": "noon"}});
    new.spec.node_sets[1].pod = Some(serde_json::from_value(pod).unwrap());
    let plan = planned(&network(4, "1s"), &new);
    let steps: Vec<&str> = plan.steps.iter().map(|step| step.what.as_str()).collect();
    assert_eq!(steps, ["restart city-ledger-readers-0"]);
}
