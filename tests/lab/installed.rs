//! The operator itself comes, goes, and becomes another version: none of that is the nodes' business.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bsn_testkit::operator::{NAME, NAMESPACE, OperatorImage, install};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::audit::Request;
use crate::quiet::writes;
use crate::roll::check_restarts;
use crate::sampler::watch_pods;
use crate::support::{World, hub};

const LONG: Duration = Duration::from_mins(8);
/// For a new leader to look at everything, and to do what it should not.
const WHILE: Duration = Duration::from_secs(25);

/// A variable in every pod, and what another version calls it.
const VARIABLE: &str = "BSN_TEMPLATE_HASH";
const RENAMED: &str = "BSN_TEMPLATE_SIGN";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The operator that is installed, and another version: one that differs from this build in what it renders.
fn images(world: &World) -> [OperatorImage; 2] {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("images-{}", hub()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut program = std::fs::read(env!("CARGO_BIN_EXE_bsn-operator")).unwrap();
    let (old, new) = (VARIABLE.as_bytes(), RENAMED.as_bytes());
    let places = program.windows(old.len()).enumerate().filter(|(_, text)| *text == old);
    let places: Vec<_> = places.map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "{VARIABLE} is not in the program");
    for at in places {
        program[at..at + new.len()].copy_from_slice(new);
    }
    let binary = folder.join("other-version");
    std::fs::write(&binary, program).unwrap();
    let other = OperatorImage::build(&binary, &folder).unwrap();
    let deployment = format!("deployment/{NAME}");
    let image = "-o=jsonpath={.spec.template.spec.containers[0].image}";
    let image = world.kubectl_ok(&["get", &deployment, "-n", NAMESPACE, image]);
    let tag = image.trim().rsplit_once(':').unwrap().1.to_owned();
    // Its own file was imported before; that of the other one does no harm.
    [OperatorImage { tag, ..other.clone() }, other]
}

/// Names of the variables and images that a pod was made with.
fn made_of(pod: &Pod) -> BTreeSet<String> {
    let spec = pod.spec.as_ref().unwrap();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let both = |container: &k8s_openapi::api::core::v1::Container| {
        let names = container.env.iter().flatten().map(|variable| variable.name.clone());
        names.chain(container.image.clone()).collect::<Vec<_>>()
    };
    containers.flat_map(both).collect()
}

async fn assert_made_of(world: &World, image: &OperatorImage, variable: &str, not: &str) {
    for pod in world.pods().await {
        let made_of = made_of(&pod);
        let name = pod.name_any();
        assert!(made_of.contains(variable) && !made_of.contains(not), "{name}: {made_of:?}");
        assert!(made_of.iter().any(|part| part.ends_with(&image.tag)), "{name}: {made_of:?}");
    }
}

fn helm(world: &World, args: &[&str]) {
    let output = world.run(world.lab.tool("helm"), args, "");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm {}: {error}", args.join(" "));
}

/// A new operator has looked at the network, and at its chain for a while.
async fn await_settled(world: &World) {
    world.await_operator().await;
    world.await_height_above(world.head().await + 5, Duration::from_mins(1)).await;
    tokio::time::sleep(WHILE).await;
    world.await_ready().await;
}

fn spec(timeout_commit: &str) -> String {
    let with = format!("version: 0.38.25\n    timeoutCommit: {timeout_commit}");
    World::sample_spec().replace("version: 0.38.25", &with)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_removed_comes_back_and_is_upgraded_without_a_restart_of_a_node() {
    let world = World::new("installed").await;
    let [this, other] = images(&world);
    world.apply(&world.yaml(&spec("1s")));
    world.await_converged(LONG).await;
    assert_made_of(&world, &this, VARIABLE, RENAMED).await;
    let pods = world.pod_uids().await;
    tokio::time::sleep(WHILE).await;

    // Removed, and installed again.
    let (mark, head) = (world.mark(), world.head().await);
    helm(&world, &["uninstall", NAME, "--namespace", NAMESPACE, "--wait"]);
    tokio::time::sleep(Duration::from_secs(15)).await;
    world.get().await.expect("what users described stays, with its definition");
    install(&world.lab, hub(), root(), &this).unwrap();
    await_settled(&world).await;
    assert!(world.head().await > head + 15, "no blocks without the operator, from {head} on");
    assert_eq!(world.pod_uids().await, pods, "a pod was restarted");
    let requests = world.requests_since(mark);
    assert_eq!(writes(&requests), Vec::<&Request>::new());

    // Another version takes over, and everything stays as the one before made it.
    let mark = world.mark();
    install(&world.lab, hub(), root(), &other).unwrap();
    await_settled(&world).await;
    assert_eq!(world.pod_uids().await, pods, "a pod was restarted for a version of the operator");
    let requests = world.requests_since(mark);
    assert_eq!(writes(&requests), Vec::<&Request>::new());
    assert_made_of(&world, &this, VARIABLE, RENAMED).await;

    // The user's next change brings it to the nodes, one by one.
    let watch = watch_pods(&world);
    world.apply(&world.yaml(&spec("900ms")));
    world.await_converged(LONG).await;
    check_restarts(&watch.end().await, 4);
    assert_made_of(&world, &other, RENAMED, VARIABLE).await;

    // Back to the version before: again nobody is restarted.
    let pods = world.pod_uids().await;
    helm(&world, &["rollback", NAME, "1", "--namespace", NAMESPACE, "--wait", "--timeout=3m"]);
    await_settled(&world).await;
    assert_eq!(world.pod_uids().await, pods, "a pod was restarted for a rollback of the operator");
    world.remove();
}
