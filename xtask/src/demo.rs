//! `cargo xtask demo`: from nothing to a network in two clusters, which is changed while it runs, cut in two, and healed.

mod acts;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use bsn_testkit::lab::{Lab, LabSpec};
use bsn_testkit::operator::{self, OperatorImage};
use clap::Args;
use serde::Serialize;

use self::acts::{Demo, NAMESPACE, NETWORK};
use crate::programs;

/// The cluster with the operator, and the one that joins it.
const HUB: usize = 0;
const MEMBER: usize = 1;
const SPEC: LabSpec = LabSpec { clusters: 2, machines: 2 };

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Remove everything the demo made.
    #[arg(long)]
    down: bool,

    /// Also write the phases with their seconds, each node's cluster and heights, and what the change and the cut did
    /// to the chain, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct DemoReport {
    phases: Vec<Phase>,
    /// Programs that had to be compiled.
    built: Vec<Phase>,
    seconds: f64,
    apply_to_first_block_seconds: Option<f64>,
    nodes: BTreeMap<String, NodeReport>,
    change: Option<Course>,
    cut: Option<CutReport>,
    succeeded: bool,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: String,
    seconds: f64,
}

/// Where a node is, and how far it came while the network came up.
#[derive(Debug, Serialize)]
struct NodeReport {
    cluster: String,
    first: u64,
    last: u64,
}

/// How the chain went on for a while.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Course {
    from: u64,
    to: u64,
    seconds: f64,
    /// Longest time in which no new block was seen, to about a second.
    longest_pause_seconds: f64,
}

/// Heights around the cut.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CutReport {
    before: u64,
    during: u64,
    after: u64,
    /// How long the clusters were cut from each other.
    cut_seconds: f64,
    /// From the heal to the first new block.
    stood_on_seconds: f64,
}

/// Runs the demo. What was reached is written to the report also when it fails.
pub async fn run(args: DemoArgs) -> Result<()> {
    if args.down {
        Lab::down()?;
        println!("Everything is removed; what was compiled stays in the cache.");
        return Ok(());
    }
    let began = Instant::now();
    let mut report = DemoReport::default();
    let ended = demonstrate(&mut report).await;
    report.seconds = began.elapsed().as_secs_f64();
    report.succeeded = ended.is_ok();
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    ended
}

async fn demonstrate(report: &mut DemoReport) -> Result<()> {
    let mut since = Instant::now();
    let mut lap = |report: &mut DemoReport, name: &str| {
        let seconds = since.elapsed().as_secs_f64();
        println!("[{seconds:6.1} s] {name}");
        report.phases.push(Phase { name: name.to_owned(), seconds });
        since = Instant::now();
    };
    println!("Building the operator");
    let programs = programs::build()?;
    lap(report, "operator built");

    println!(
        "Bringing up {} Kubernetes clusters of {} machines each",
        SPEC.clusters, SPEC.machines
    );
    let (lab, up) = Lab::up(SPEC).await?;
    for (name, seconds) in &up.phases {
        println!("           {seconds:6.1} s  {name}");
    }
    report.built = up.built.into_iter().map(|(name, seconds)| Phase { name, seconds }).collect();
    // A demo that was interrupted may have left them cut from each other.
    lab.heal()?;
    lap(report, "clusters up");

    println!("Installing the operator on the hub with Helm");
    let image = OperatorImage::build(&programs.operator, &lab.layout().images())?;
    operator::install(&lab, HUB, &programs::root(), &image)?;
    // The agents in the nodes' pods are of this image, too.
    lab.import_image(&image.file, &[MEMBER])?;
    // On the path of kubectl, so that it is found as a plug-in; and it outlives `cargo clean`.
    let plugin = lab.tool("kubectl-bsn");
    std::fs::copy(&programs.kubectl_plugin, &plugin)
        .with_context(|| format!("copying to {}", plugin.display()))?;
    lap(report, "operator installed");

    let demo = Demo::new(lab)?;
    println!("\nThe second cluster joins; no part of the operator is installed there");
    demo.join()?;
    lap(report, "cluster joined");

    println!("\nA network of four validators, two in each city");
    demo.start(report)?;
    lap(report, "network running");

    println!("\nA shorter block time: every node restarts for it, one at a time");
    let change = demo.change()?;
    println!(
        "The chain went from height {} to {} meanwhile, at most {:.0} s without a new block.",
        change.from, change.to, change.longest_pause_seconds
    );
    report.change = Some(change);
    lap(report, "changed, while blocks came");

    println!(
        "\nThe link between the cities is cut: two of four validators on each side, no quorum"
    );
    let cut = demo.cut()?;
    println!(
        "Height {} before the cut, {} after {:.0} s of it, and now {}.\n\
         The chain went on by itself {:.1} s after the link was back; the operator took no step.",
        cut.before, cut.during, cut.cut_seconds, cut.after, cut.stood_on_seconds
    );
    report.cut = Some(cut);
    lap(report, "cut and healed");

    println!();
    demo.run(&Demo::bsn("status"))?;
    print_next_steps(&demo.lab);
    Ok(())
}

fn print_next_steps(lab: &Lab) {
    println!(
        "
It runs on. To try next:

  export KUBECONFIG={kubeconfig} PATH={bin}:$PATH
  kubectl bsn status {NETWORK} -n {NAMESPACE} --watch
  kubectl get bsnclusters,bsnnetworks,bsnnodes,pods -n {NAMESPACE}
  kubectl bsn history {NETWORK} -n {NAMESPACE}                # what was done, and when
  kubectl delete pod {NETWORK}-hangzhou-0-0 -n {NAMESPACE}    # one of four may be down
  cargo xtask lab stop apiserver {MEMBER}                            # the nodes there go on; start it again
  kubectl apply -f manifests/samples/city-ledger.yaml         # another network, on the hub alone
  cargo xtask demo --down                                     # removes everything",
        kubeconfig = lab.kubeconfig(HUB).display(),
        bin = lab.layout().bin().display(),
    );
}
