//! No key signs twice, whatever happens to disks and pods while nobody looks.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bsn_core::membership::model::Gate;
use bsn_operator::api::conditions::{Reason, find};
use bsn_testkit::lab::MachineId;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;

use crate::plugin::Explained;
use crate::rpc::Client;
use crate::support::{World, consent_in, eventually, find_process, hub};

const MINUTE: Duration = Duration::from_mins(1);
const LONG: Duration = Duration::from_mins(4);

fn shell(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}

/// Empties a directory, whose own entry stays: pods have it mounted.
fn empty(directory: &Path) {
    shell(&format!("find {} -mindepth 1 -delete", directory.display()));
}

/// Puts the content of one directory into another.
fn put_content(from: &Path, to: &Path) {
    empty(to);
    shell(&format!("cp -a {}/. {}/", from.display(), to.display()));
}

struct Chain {
    world: World,
    /// Address of each node's key.
    addresses: Vec<(String, String)>,
}

impl Chain {
    async fn start(story: &str) -> Self {
        let world = World::new(story).await;
        world.apply(&world.yaml(&World::sample_spec()));
        world.await_ready().await;
        world.await_height_above(5, MINUTE).await;
        let addresses = world
            .nodes()
            .await
            .iter()
            .map(|node| (node.name_any(), node.status.clone().unwrap().address.unwrap()))
            .collect();
        Self { world, addresses }
    }

    fn address(&self, node: &str) -> &str {
        &self.addresses.iter().find(|(name, _)| name == node).unwrap().1
    }

    fn node(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.world.network)
    }

    /// Nobody signed two things at one height, by the chain's own proofs.
    async fn assert_no_double_sign(&self, witness: &str) {
        let client = Client::new(&self.world).await;
        let head = self.world.head().await;
        // Evidence of a double vote is put into a later block.
        self.world.await_height_above(head + 3, LONG).await;
        let proofs = client.double_signs(witness, 1, head + 2).await;
        assert!(proofs.is_empty(), "{proofs:?}");
    }

    /// Empties a node's disk while the operator looks away.
    async fn wipe(&self, node: &str) {
        let world = &self.world;
        world.scale_operator(0).await;
        world.scale_node(node, 0).await;
        empty(&world.volume(node));
        world.scale_node(node, 1).await;
        world.await_guard(node, "DiskEmpty:", LONG).await;
        world.scale_operator(2).await;
    }

    /// Waits until a node's key is seen to sign.
    async fn await_votes(&self, client: &Client, node: &str, witness: &str) {
        let head = self.world.head().await;
        eventually("its vote again", LONG, async || {
            let now = self.world.view()?.head;
            let signed =
                client.signed(witness, self.address(node), head, now.saturating_sub(1)).await;
            if signed.len() > 3 { Ok(()) } else { Err(format!("{signed:?} up to {now}")) }
        })
        .await;
    }

    async fn stalled_reason(&self, node: &str) -> Result<String, String> {
        let nodes = self.world.nodes().await;
        let found = nodes.iter().find(|found| found.name_any() == node).unwrap();
        let conditions = &found.status.as_ref().unwrap().conditions;
        let stalled = find(conditions, "Stalled").unwrap();
        if stalled.status == "True" {
            Ok(format!("{}: {}", stalled.reason, stalled.message))
        } else {
            Err(format!("{stalled:?}"))
        }
    }

    async fn await_stalled(&self, node: &str, expected: &str) -> String {
        eventually(&format!("{node} stalled: {expected}"), LONG, async || {
            let said = self.stalled_reason(node).await?;
            if said.contains(expected) { Ok(said) } else { Err(said) }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_refused_until_a_person_consents_and_then_nothing_is_signed_twice() {
    let chain = Chain::start("lost-disk").await;
    let world = &chain.world;
    let (lost, witness) = (chain.node("hangzhou-0"), chain.node("nanjing-0"));
    let namespace = world.namespace.as_str();
    let claim = format!("{lost}-data");
    let client = Client::new(world).await;

    // Wiped under its own claim: no uid differs, and the guard notices all the same.
    chain.wipe(&lost).await;
    let said = chain.await_stalled(&lost, "is empty now and was not before").await;
    // Where people look first: the network says which node it is, and what it waits for.
    let expected = ["node_works", &lost, "restore its volume"];
    println!("{}", world.await_refused(Reason::StepRefused, &expected, LONG).await);
    let expected = Explained {
        gate: Gate::NodeWorks,
        seconds: 10,
        words: &[&lost, "restore its volume"],
        helps: "see the node's own condition: kubectl describe bsnnode",
    };
    world.await_explained(expected, MINUTE).await;
    // And what to do about it.
    let network = world.get().await.unwrap();
    let stalled = find(&network.status.as_ref().unwrap().conditions, "Stalled").unwrap();
    assert_eq!(stalled.reason, Reason::DiskLost.as_str(), "{stalled:?}");
    assert_eq!(consent_in(&stalled.message), consent_in(&said));
    world.consent(&consent_in(&said));
    world.await_ready().await;
    chain.await_votes(&client, &lost, &witness).await;

    // The claim is lost, too.
    world.kubectl_ok(&["delete", "pvc", &claim, "-n", namespace, "--wait=false"]);
    world.kubectl_ok(&["delete", "pod", &format!("{lost}-0"), "-n", namespace]);
    chain.await_stalled(&lost, "is being deleted").await;
    // Its finalizer keeps it; only somebody who insists loses it.
    world.let_go(&format!("pvc/{claim}"));
    eventually("the claim's end", MINUTE, async || {
        let left = world.api::<PersistentVolumeClaim>().get_opt(&claim).await.unwrap();
        if left.is_none() { Ok(()) } else { Err("it is still there".to_owned()) }
    })
    .await;
    chain.await_stalled(&lost, "DiskLost").await;
    let gone_at = world.head().await;

    // An empty claim of that name, made by hand.
    world.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {claim}, namespace: {namespace}}}\n\
         spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}}}\n"
    ));
    world.await_guard(&lost, "DiskEmpty:", LONG).await;
    let said = chain.await_stalled(&lost, "bsn-operator.io/consent=").await;
    let head = world.head().await;
    eventually("blocks without it", MINUTE, async || {
        let now = world.view()?.head;
        if now > head + 5 { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    let address = chain.address(&lost);
    let signed = client.signed(&witness, address, gone_at + 2, head + 4).await;
    assert!(signed.is_empty(), "it signed without its disk: {signed:?}");

    world.consent(&consent_in(&said));
    world.await_ready().await;
    chain.await_votes(&client, &lost, &witness).await;

    chain.assert_no_double_sign(&witness).await;
    world.remove();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_swapped_disks_are_refused_without_the_operator() {
    let chain = Chain::start("old-disk").await;
    let world = &chain.world;
    let (one, two) = (chain.node("hangzhou-0"), chain.node("hangzhou-1"));
    let witness = chain.node("nanjing-0");
    let copies = tempfile::tempdir().unwrap();
    let keep = |name: &str| {
        let directory = copies.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        directory
    };

    // A copy of the disk, some blocks ago.
    let (old, newest) = (keep("old"), keep("newest"));
    put_content(&world.volume(&one), &old);
    world.await_height_above(world.head().await + 10, LONG).await;
    world.scale_operator(0).await;
    world.scale_node(&one, 0).await;
    put_content(&world.volume(&one), &newest);
    put_content(&old, &world.volume(&one));
    world.scale_node(&one, 1).await;
    world.await_guard(&one, "SignedBeyondDisk:", LONG).await;
    // Mended by a person: the guard sees it without a restart.
    put_content(&newest, &world.volume(&one));
    world.await_guard(&one, "started after", LONG).await;

    // Two disks swapped.
    world.scale_node(&one, 0).await;
    world.scale_node(&two, 0).await;
    let (first, second) = (keep("first"), keep("second"));
    put_content(&world.volume(&one), &first);
    put_content(&world.volume(&two), &second);
    put_content(&second, &world.volume(&one));
    put_content(&first, &world.volume(&two));
    world.scale_node(&one, 1).await;
    world.scale_node(&two, 1).await;
    world.await_guard(&one, "DiskOfAnotherIdentity:", LONG).await;
    world.await_guard(&two, "DiskOfAnotherIdentity:", LONG).await;
    put_content(&first, &world.volume(&one));
    put_content(&second, &world.volume(&two));
    world.await_guard(&one, "started after", LONG).await;
    world.await_guard(&two, "started after", LONG).await;

    world.scale_operator(2).await;
    world.await_ready().await;
    chain.assert_no_double_sign(&witness).await;
    world.remove();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_of_all_machines_the_chain_goes_on_by_itself() {
    let chain = Chain::start("power-cut").await;
    let world = &chain.world;
    let late = chain.node("nanjing-1");
    let witness = chain.node("hangzhou-0");
    let head = world.head().await;
    world.scale_operator(0).await;
    let machines = [0, 1].map(|machine| MachineId { cluster: hub(), machine });
    for machine in machines {
        world.lab.stop_machine(machine).unwrap();
    }
    // Three of four come back at once, one later.
    world.kubectl_ok(&[
        "scale",
        &format!("statefulset/{late}"),
        "-n",
        &world.namespace,
        "--replicas=0",
    ]);
    for machine in machines {
        world.lab.start_machine(machine).unwrap();
    }
    // Seen on the chain, since the operator is off.
    await_blocks(world, &witness, head + 5).await;
    world.scale_node(&late, 1).await;
    world.await_guard(&late, "started after", LONG).await;
    let now = height(world, &witness).await.unwrap();
    await_blocks(world, &late, now + 3).await;
    world.scale_operator(2).await;
    world.await_ready().await;
    chain.assert_no_double_sign(&witness).await;
    world.remove();
}

async fn height(world: &World, node: &str) -> Result<u64, String> {
    let pods = world.pods().await;
    let running = pods.iter().any(|pod| {
        pod.name_any() == format!("{node}-0")
            && pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some())
    });
    if !running {
        return Err("its pod does not run".to_owned());
    }
    Client::new(world).await.height(node).await
}

async fn await_blocks(world: &World, node: &str, above: u64) {
    eventually(&format!("{node} above {above}"), Duration::from_mins(6), async || {
        let now = height(world, node).await?;
        if now > above { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_recreated_elsewhere_waits_while_its_old_process_may_sign() {
    let chain = Chain::start("frozen-kubelet").await;
    let world = &chain.world;
    let machine = MachineId { cluster: hub(), machine: 1 };
    let node_name = machine.node_name();
    let on_machine = |pods: &[Pod]| -> Vec<String> {
        pods.iter()
            .filter(|pod| pod.spec.as_ref().unwrap().node_name.as_ref() == Some(&node_name))
            .map(|pod| pod.name_any().strip_suffix("-0").unwrap().to_owned())
            .collect()
    };
    let moved = on_machine(&world.pods().await);
    assert!(!moved.is_empty() && moved.len() < 4, "voters spread over machines: {moved:?}");
    let old: Vec<_> =
        moved.iter().map(|node| find_process(&format!("{node}-0"), "cometbft").unwrap()).collect();
    let mut names = chain.addresses.iter().map(|(name, _)| name.clone());
    let witness = names.find(|name| !moved.contains(name)).unwrap();

    world.lab.pause_kubelet(machine).unwrap();
    world.kubectl_ok(&["delete", "node", &node_name]);
    // Kubernetes takes the pods for gone and makes them anew; their old processes live on.
    for node in &moved {
        world.await_guard(node, "the node ran on another machine", LONG).await;
        eventually("the wait in its status", MINUTE, async || {
            let view = world.view()?;
            let seen = view.nodes.iter().find(|seen| seen.name == *node).unwrap();
            let said = seen.problem.clone().unwrap_or_default();
            if said.contains("another machine") { Ok(()) } else { Err(said) }
        })
        .await;
    }
    assert!(old.iter().all(|process| process.is_alive()), "the old processes must live on");
    let head = height(world, &witness).await.unwrap();
    await_blocks(world, &witness, head + 5).await;

    // The machine dies for good: then, and only then, the new pods start.
    world.lab.stop_machine(machine).unwrap();
    for node in &moved {
        world.await_guard(node, "started after", LONG).await;
    }
    world.lab.start_machine(machine).unwrap();
    world.await_operator().await;
    world.await_ready().await;
    chain.assert_no_double_sign(&witness).await;
    world.remove();
}
