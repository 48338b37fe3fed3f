//! What is seen becomes what the core plans on; what it plans is written so that nothing late does harm.

use std::sync::{Arc, Mutex};

use bsn_core::budget::{Budget, plan_budget};
use bsn_core::membership::model::Member;
use bsn_core::quorum::Quorum;
use hyper::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use kube::runtime::reflector::{store, store::Writer};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;

const NETWORK_ID: &str = "n1";

fn name() -> NetworkName {
    NetworkName::parse("city-ledger").unwrap()
}

fn wish(min_available: usize) -> PodDisruptionBudget {
    let name = name();
    let parts = NetworkParts {
        namespace: "ledger",
        name: &name,
        network_id: NETWORK_ID,
        hub_id: "h1",
        owner: None,
    };
    build_disruption_budget(&parts, min_available)
}

/// A budget as the API server has it, which the disruption controller has looked at.
fn budget(min_available: usize, healthy: usize) -> PodDisruptionBudget {
    let mut budget = serde_json::to_value(wish(min_available)).unwrap();
    budget["metadata"]["generation"] = json!(2);
    budget["metadata"]["resourceVersion"] = json!("7");
    budget["status"] = json!({
        "observedGeneration": 2, "currentHealthy": healthy, "desiredHealthy": min_available,
        "disruptionsAllowed": 0, "expectedPods": 3,
    });
    serde_json::from_value(budget).unwrap()
}

fn changed(budget: &PodDisruptionBudget, change: impl FnOnce(&mut Value)) -> PodDisruptionBudget {
    let mut value = serde_json::to_value(budget).unwrap();
    change(&mut value);
    serde_json::from_value(value).unwrap()
}

fn pod(node: &str, ready: bool) -> Pod {
    let status = if ready { "True" } else { "False" };
    let pod = json!({
        "metadata": {"name": format!("{node}-0"), "namespace": "ledger"},
        "spec": {"nodeName": "m1", "containers": []},
        "status": {"conditions": [{"type": "Ready", "status": status}]},
    });
    serde_json::from_value(pod).unwrap()
}

fn node(name: &str) -> NodeName {
    NodeName::from_object(name)
}

fn nodes(names: &[&str]) -> BTreeSet<NodeName> {
    names.iter().copied().map(node).collect()
}

fn counted(budget: Option<PodDisruptionBudget>, pods: Vec<Pod>) -> Counted {
    let pods = pods.into_iter().map(Arc::new).collect();
    let selected = Selected { budget: budget.map(Arc::new), pods };
    count(&selected, &nodes(&["l-a-0", "l-a-1", "l-a-2"]), &wish(0), NETWORK_ID, None)
}

fn all_ready() -> Vec<Pod> {
    ["l-a-0", "l-a-1", "l-a-2"].map(|node| pod(node, true)).into()
}

fn seen(written: u32, in_force: u32) -> Seen {
    Seen { voters: 3, written, in_force }
}

#[test]
fn pods_are_counted_as_their_budget_counts_them() {
    let granted = changed(&budget(2, 3), |budget| {
        budget["status"]["disruptedPods"] = json!({"l-a-0-0": "2026-01-01T00:00:00Z"});
    });
    let mut ends = pod("l-a-1", true);
    let at: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    ends.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at));
    let found = counted(Some(granted), vec![pod("l-a-0", true), ends, pod("l-a-2", false)]);
    let states = ["l-a-0", "l-a-1", "l-a-2", "l-a-3"].map(|name| found.of(&node(name)));
    assert_eq!(states, [Counts::Ending, Counts::Ending, Counts::NotReady, Counts::NotReady]);
    assert_eq!(found.seen, seen(2, 2));
}

#[test]
fn a_pod_of_a_node_that_has_left_is_selected_and_so_counted() {
    let mut pods = all_ready();
    pods.push(pod("l-a-9", true));
    let found = counted(Some(budget(3, 4)), pods);
    assert_eq!(found.seen, Seen { voters: 4, written: 3, in_force: 3 }, "one may be evicted");
}

#[test]
fn without_a_budget_of_ours_nothing_stays() {
    assert_eq!(counted(None, all_ready()).seen, seen(0, 0));
    let strangers = changed(&budget(3, 3), |budget| {
        budget["metadata"]["labels"][labels::NETWORK_ID] = json!("n2");
    });
    assert_eq!(counted(Some(strangers), all_ready()).seen, seen(0, 0));
    let about_others = changed(&budget(3, 3), |budget| {
        budget["spec"]["selector"]["matchLabels"] = json!({"app": "web"});
    });
    assert_eq!(counted(Some(about_others), all_ready()).seen, seen(0, 0));
    let percentage = changed(&budget(3, 3), |budget| {
        budget["spec"]["minAvailable"] = json!("50%");
    });
    assert_eq!(counted(Some(percentage), all_ready()).seen, seen(0, 0));
}

#[test]
fn what_the_disruption_controller_has_not_seen_is_not_in_force_yet() {
    let lags = changed(&budget(2, 3), |budget| {
        budget["metadata"]["generation"] = json!(3);
        budget["spec"]["minAvailable"] = json!(3);
    });
    assert_eq!(counted(Some(lags), all_ready()).seen, seen(3, 2));
    // Under one that it never looked at, nobody is evicted.
    let new = changed(&budget(2, 3), |budget| {
        budget.as_object_mut().unwrap().remove("status");
    });
    assert_eq!(counted(Some(new), all_ready()).seen, seen(2, 2));
}

#[test]
fn a_pod_that_looks_ready_and_is_not_counted_may_have_been_evicted() {
    // The share was 1 and was taken back; the eviction it allowed is not in the cache of pods yet.
    assert_eq!(counted(Some(budget(3, 2)), all_ready()).seen, seen(3, 2));
    // What it counts is covered by the share that is in force.
    assert_eq!(counted(Some(budget(2, 2)), all_ready()).seen, seen(2, 2));
    let known = vec![pod("l-a-0", false), pod("l-a-1", true), pod("l-a-2", true)];
    assert_eq!(counted(Some(budget(3, 2)), known).seen, seen(3, 3));
}

#[test]
fn a_larger_share_that_was_sent_counts_until_its_version_has_passed() {
    let selected = Selected { budget: Some(Arc::new(budget(3, 3))), pods: Vec::new() };
    let validators = nodes(&["l-a-0", "l-a-1", "l-a-2"]);
    let found = count(&selected, &validators, &wish(0), NETWORK_ID, Some(1));
    assert_eq!(found.seen, seen(3, 1));
}

fn of() -> (NetworkKey, String) {
    let key = NetworkKey { namespace: "ledger".to_owned(), name: "city-ledger".to_owned() };
    (key, "a".to_owned())
}

fn raise() -> Raise {
    Raise { min_available: 1, over: Some("7".to_owned()), until: None }
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_answer_counts_until_it_can_have_no_effect_any_more() {
    let (writes, of) = (Writes::default(), of());
    assert!(writes.begin(&of, Some(raise())));
    assert!(!writes.begin(&of, None), "one at a time");
    tokio::time::advance(2 * MAY_ARRIVE).await;
    assert_eq!(writes.may_become(&of, Some("7")), Some(1), "it is under way");
    writes.end(&of, Outcome::MayCome);
    assert_eq!(writes.may_become(&of, Some("7")), Some(1));
    // Nor does a smaller share that is written then end it.
    assert!(writes.begin(&of, None));
    writes.end(&of, Outcome::NoEffect);
    assert_eq!(writes.may_become(&of, Some("7")), Some(1));
    tokio::time::advance(MAY_ARRIVE).await;
    assert_eq!(writes.may_become(&of, Some("7")), None);
}

#[tokio::test(start_paused = true)]
async fn a_refused_write_or_one_whose_version_has_passed_is_forgotten() {
    let (writes, of) = (Writes::default(), of());
    assert!(writes.begin(&of, Some(raise())));
    writes.end(&of, Outcome::NoEffect);
    assert_eq!(writes.may_become(&of, Some("7")), None);
    assert!(writes.begin(&of, Some(raise())));
    writes.end(&of, Outcome::MayCome);
    assert_eq!(writes.may_become(&of, Some("8")), None);
}

fn ledger(members: &[(&str, u64, Liveness)]) -> Ledger {
    let member = |(name, power, liveness): &(&str, u64, Liveness)| {
        let node = (!name.starts_with("foreign")).then(|| node(name));
        let member = Member { power: *power, node, liveness: *liveness, signed: 1 };
        (format!("key of {name}"), member)
    };
    Ledger {
        quorum: Quorum::MoreThanTwoThirds,
        weights: true,
        members: members.iter().map(member).collect(),
        agreed: true,
        age_seconds: 1,
        head: Head::Producing,
        height: 100,
        pending: None,
        followers: BTreeMap::new(),
    }
}

#[test]
fn foreign_voters_have_no_cluster_and_validators_that_do_not_vote_have_no_power() {
    let ledger = ledger(&[
        ("foreign", 5, Liveness::Live),
        ("l-a-0", 10, Liveness::Unknown),
        ("l-b-0", 10, Liveness::Live),
    ]);
    let validators =
        [("a".to_owned(), nodes(&["l-a-0", "l-a-1"])), ("b".to_owned(), nodes(&["l-b-0"]))];
    let pods = [(node("l-a-0"), Counts::NotReady), (node("l-a-1"), Counts::Ready)];
    let found = voters(&ledger, &validators.into(), &pods.into());
    let voter = |name: &str, cluster: Option<&str>, power, live, pod| Voter {
        name: name.to_owned(),
        cluster: cluster.map(str::to_owned),
        power,
        live,
        pod,
    };
    assert_eq!(
        found,
        [
            voter("key of foreign", None, 5, true, Counts::Unknown),
            voter("l-a-0", Some("a"), 10, false, Counts::NotReady),
            // Its cluster cannot be asked.
            voter("l-b-0", Some("b"), 10, true, Counts::Unknown),
            voter("l-a-1", Some("a"), 0, true, Counts::Ready),
        ]
    );
}

#[test]
fn nothing_is_known_while_blocks_are_late_or_the_chain_was_not_watched() {
    let policy = Policy::default();
    let well = ledger(&[("l-a-0", 10, Liveness::Live), ("l-b-0", 10, Liveness::Unknown)]);
    assert!(is_known(&well, &policy));
    let late = ledger(&[("l-a-0", 10, Liveness::Unknown), ("l-b-0", 10, Liveness::Unknown)]);
    assert!(!is_known(&late, &policy));
    assert!(is_known(&Ledger { head: Head::Standing, ..late.clone() }, &policy));
    assert!(!is_known(&Ledger { head: Head::Unknown, ..late }, &policy));
    assert!(!is_known(&Ledger { agreed: false, ..well }, &policy));
}

/// Voters with power 1 in two clusters of two, all well; share 1 is in `a`.
fn observed(voters: usize) -> ObservedBudget {
    let names = [("l-a-0", "a"), ("l-a-1", "a"), ("l-b-0", "b"), ("l-b-1", "b")];
    let voter = |(name, cluster): &(&str, &str)| Voter {
        name: (*name).to_owned(),
        cluster: Some((*cluster).to_owned()),
        power: 1,
        live: true,
        pod: Counts::Ready,
    };
    let there = |written| Cluster {
        seen: Some(Seen { voters: 2, written, in_force: written }),
        wants: BTreeMap::new(),
    };
    let observed = Observed {
        quorum: Quorum::MoreThanTwoThirds,
        reserve: 0,
        voters: names[..voters].iter().map(voter).collect(),
        fresh: true,
        own_step: None,
        recorded: [("a".to_owned(), 1)].into(),
        clusters: [("a".to_owned(), there(1)), ("b".to_owned(), there(2))].into(),
    };
    ObservedBudget { observed, budgets: BTreeMap::new() }
}

fn restarts(budget: &mut ObservedBudget, name: &str) -> Result<(), String> {
    budget.observed.own_step = Some(OwnStep::Restart(name.to_owned()));
    budget.check_own_step()
}

#[test]
fn a_restart_waits_for_shares_only_if_that_helps() {
    let mut four = observed(4);
    let why = restarts(&mut four, "l-b-0").unwrap_err();
    assert!(why.contains("1 in cluster a"), "{why}");
    // Lowering makes the room.
    let steps = plan_budget(&four.observed).steps;
    assert_eq!(steps, [BudgetStep::Lower { cluster: "a".to_owned(), min_available: 2 }]);
    four.observed.voters[2].live = false;
    assert_eq!(restarts(&mut four, "l-b-0"), Ok(()), "it is missed already");
    // Of three voters none can be missed, whoever decided on it: see `Gate::QuorumDuringRestart`.
    assert_eq!(restarts(&mut observed(3), "l-b-0"), Ok(()));
}

#[test]
fn a_restart_of_a_node_that_does_not_vote_waits_for_nobody() {
    let mut four = observed(4);
    four.observed.voters[0].live = false;
    assert_eq!(restarts(&mut four, "l-c-0"), Ok(()));
}

/// A cluster that does what it is asked, and notes it; it refuses a write over another version than it has.
struct Fake {
    place: Place,
    budgets: Writer<PodDisruptionBudget>,
    done: Arc<Mutex<Vec<String>>>,
    stored: Arc<Mutex<Value>>,
}

impl Fake {
    fn new(cluster: &str) -> Self {
        let done: Arc<Mutex<Vec<String>>> = Arc::default();
        let stored: Arc<Mutex<Value>> = Arc::default();
        let (notes, state) = (done.clone(), stored.clone());
        let name = cluster.to_owned();
        let serve = move |request: Request<Body>| {
            let (notes, state, name) = (notes.clone(), state.clone(), name.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let mut object: Value = serde_json::from_slice(&body).unwrap();
                let mut stored = state.lock().unwrap();
                let over = object["metadata"]["resourceVersion"].clone();
                if parts.method == Method::PATCH
                    && !over.is_null()
                    && over != stored["metadata"]["resourceVersion"]
                {
                    let status = json!({"kind": "Status", "status": "Failure", "code": 409});
                    let body = Body::from(status.to_string().into_bytes());
                    return Ok::<_, std::convert::Infallible>(
                        Response::builder().status(409).body(body).unwrap(),
                    );
                }
                let min = object["spec"]["minAvailable"].clone();
                notes.lock().unwrap().push(format!("{} in {name}: {min}", parts.method));
                let metadata = &stored["metadata"];
                let next = |key: &str| metadata[key].as_i64().unwrap_or(0) + 1;
                let version = metadata["resourceVersion"].as_str().unwrap_or("0");
                let version = version.parse::<i64>().unwrap() + 1;
                object["metadata"]["generation"] = json!(next("generation"));
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                object["metadata"]["uid"] = json!("u1");
                *stored = object.clone();
                Ok(Response::new(Body::from(object.to_string().into_bytes())))
            }
        };
        let client = Client::new(tower::service_fn(serve), "default");
        let (budgets, writer) = store();
        let mut place = Place::fake(cluster, client);
        place.objects.budgets = budgets;
        Self { place, budgets: writer, done, stored }
    }

    /// The disruption controller looks at what is stored, and the watch shows that.
    fn look(&mut self, healthy: u32) -> Arc<PodDisruptionBudget> {
        let mut stored = self.stored.lock().unwrap();
        let version: i64 = stored["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        stored["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        stored["status"] = json!({
            "observedGeneration": stored["metadata"]["generation"],
            "currentHealthy": healthy,
            "desiredHealthy": stored["spec"]["minAvailable"],
            "disruptionsAllowed": 0,
            "expectedPods": 2,
        });
        let budget: PodDisruptionBudget = serde_json::from_value(stored.clone()).unwrap();
        self.budgets.apply_watcher_event(&Event::Apply(budget.clone()));
        Arc::new(budget)
    }

    fn seen(&self) -> Seen {
        let budget = cached(&self.place.objects.budgets, "ledger", &wish(0).name_any());
        let selected = Selected { budget, pods: Vec::new() };
        let validators = nodes(&["l-0", "l-1"]);
        count(&selected, &validators, &wish(0), NETWORK_ID, None).seen
    }
}

/// Plans on what the two clusters show, and does it; a step's effect is seen at once.
async fn pass(observed: &mut Observed, fakes: &mut BTreeMap<&str, Fake>) -> Vec<BudgetStep> {
    for (cluster, fake) in fakes.iter() {
        observed.clusters.get_mut(*cluster).unwrap().seen = Some(fake.seen());
    }
    let Budget { steps, .. } = plan_budget(observed);
    for step in &steps {
        let (cluster, min_available, raises) = match step {
            BudgetStep::Lower { cluster, min_available } => (cluster, min_available, false),
            BudgetStep::Raise { cluster, min_available } => (cluster, min_available, true),
            BudgetStep::Record { shares } => {
                observed.recorded.clone_from(shares);
                continue;
            }
        };
        let fake = fakes.get_mut(cluster.as_str()).unwrap();
        let read = cached(&fake.place.objects.budgets, "ledger", &wish(0).name_any());
        let how = if raises { How::Raise(read.unwrap()) } else { How::Lower };
        let wish = wish(usize::try_from(*min_available).unwrap());
        write_budget(&fake.place, wish, &how, NETWORK_ID).await.unwrap();
        fake.look(2);
    }
    steps
}

#[tokio::test]
async fn a_share_is_taken_back_and_recorded_before_another_cluster_has_it() {
    let mut observed = observed(4).observed;
    observed.recorded.clear();
    let mut fakes = BTreeMap::from([("a", Fake::new("a")), ("b", Fake::new("b"))]);
    let done = |fakes: &BTreeMap<&str, Fake>| -> Vec<String> {
        let all = fakes.values().flat_map(|fake| std::mem::take(&mut *fake.done.lock().unwrap()));
        all.collect()
    };
    for fake in fakes.values_mut() {
        write_budget(&fake.place, wish(2), &How::Lower, NETWORK_ID).await.unwrap();
        fake.look(2);
    }
    assert_eq!(done(&fakes), ["POST in a: 2", "POST in b: 2"]);
    pass(&mut observed, &mut fakes).await;
    assert!(done(&fakes).is_empty(), "recorded, and not written yet");
    while !pass(&mut observed, &mut fakes).await.is_empty() {}
    assert_eq!(done(&fakes), ["PATCH in a: 1"]);
    assert_eq!(observed.recorded, [("a".to_owned(), 1)].into());

    let wants = &mut observed.clusters.get_mut("b").unwrap().wants;
    wants.insert("l-b-0".to_owned(), "m1".to_owned());
    pass(&mut observed, &mut fakes).await;
    assert_eq!(done(&fakes), ["PATCH in a: 2"]);
    pass(&mut observed, &mut fakes).await;
    assert!(done(&fakes).is_empty(), "recorded, and not written yet");
    assert_eq!(observed.recorded, [("b".to_owned(), 1)].into());
    pass(&mut observed, &mut fakes).await;
    assert_eq!(done(&fakes), ["PATCH in b: 1"]);
    assert!(pass(&mut observed, &mut fakes).await.is_empty());
}

#[tokio::test]
async fn a_larger_share_is_not_written_over_what_was_not_read() {
    let mut fake = Fake::new("a");
    write_budget(&fake.place, wish(2), &How::Lower, NETWORK_ID).await.unwrap();
    let read = fake.look(2);
    // An eviction changes the budget.
    fake.look(1);
    let late = write_budget(&fake.place, wish(1), &How::Raise(read), NETWORK_ID).await;
    assert_eq!(late.unwrap_err().code(), Some(409));
    assert_eq!(*fake.done.lock().unwrap(), ["POST in a: 2"]);
    // What is there is not written again.
    write_budget(&fake.place, wish(2), &How::Lower, NETWORK_ID).await.unwrap();
    assert_eq!(fake.done.lock().unwrap().len(), 1);
}
