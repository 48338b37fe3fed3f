//! `cargo xtask demo`: from nothing to a running network.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bsn_operator::view::NetworkView;
use bsn_testkit::lab::{Lab, LabSpec};
use bsn_testkit::operator::{self, OperatorImage};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::programs;

const CLUSTER: usize = 0;
const SPEC: LabSpec = LabSpec { clusters: 1, machines: 2 };
const SAMPLE: &str = "manifests/samples/city-ledger.yaml";
const NETWORK: &str = "city-ledger";
const NAMESPACE: &str = "ledger";
/// Blocks every node must add before the demo counts as a success.
const BLOCKS: u64 = 5;
/// Longest a network may take from its YAML to these blocks.
const DEADLINE: Duration = Duration::from_mins(3);
const POLL: Duration = Duration::from_millis(500);

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Remove everything the demo made.
    #[arg(long)]
    down: bool,

    /// Also write the phases with their seconds, and each node's heights, to this file.
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
    nodes: BTreeMap<String, Heights>,
    succeeded: bool,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: String,
    seconds: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Heights {
    first: u64,
    last: u64,
}

/// The part of `kubectl bsn status -o json` used here.
#[derive(Debug, Deserialize)]
struct Status {
    live: Option<NetworkView>,
}

struct Demo {
    lab: Lab,
    path: std::ffi::OsString,
}

impl Demo {
    fn kubectl(&self) -> Command {
        let mut kubectl = Command::new(self.lab.tool("kubectl"));
        kubectl
            .env("KUBECONFIG", self.lab.kubeconfig(CLUSTER))
            .env("PATH", &self.path)
            .current_dir(programs::root());
        kubectl
    }

    fn apply(&self) -> Result<()> {
        let applied = self.kubectl().args(["apply", "-f", SAMPLE]).status();
        if !applied.context("running kubectl")?.success() {
            bail!("kubectl apply failed: see above");
        }
        Ok(())
    }

    fn status(&self, more: &[&str]) -> Command {
        let mut kubectl = self.kubectl();
        kubectl.args(["bsn", "status", NETWORK, "-n", NAMESPACE]).args(more);
        kubectl
    }

    fn view(&self) -> Result<Option<NetworkView>> {
        let output = self.status(&["-o", "json"]).output().context("running kubectl bsn")?;
        if !output.status.success() {
            bail!("kubectl bsn status: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let status: Status = serde_json::from_slice(&output.stdout)?;
        Ok(status.live)
    }

    /// Watches until every node has added its blocks. Gives the seconds to the first block.
    fn watch(&self, report: &mut DemoReport) -> Result<()> {
        let began = Instant::now();
        let mut shown = Instant::now();
        loop {
            // The operator may be changing its leader: a question may fail, the deadline counts.
            let view = self.view().unwrap_or_else(|error| {
                eprintln!("{error:#}");
                None
            });
            if let Some(view) = view {
                if view.head > 0 && report.apply_to_first_block_seconds.is_none() {
                    report.apply_to_first_block_seconds = Some(began.elapsed().as_secs_f64());
                    println!("first block after {:.1} s", began.elapsed().as_secs_f64());
                }
                record(&view, &mut report.nodes);
                let enough = |heights: &Heights| heights.last >= heights.first + BLOCKS;
                if view.nodes.len() == report.nodes.len()
                    && !view.nodes.is_empty()
                    && report.nodes.values().all(enough)
                {
                    return Ok(());
                }
            }
            if began.elapsed() > DEADLINE {
                bail!(
                    "the chain did not advance on every node within {} s; look with: kubectl bsn status {NETWORK} -n {NAMESPACE}",
                    DEADLINE.as_secs()
                );
            }
            if std::io::stdout().is_terminal() && shown.elapsed() > Duration::from_secs(2) {
                print!("\x1b[2J\x1b[H");
                self.status(&[]).status().context("running kubectl bsn")?;
                shown = Instant::now();
            }
            std::thread::sleep(POLL);
        }
    }
}

fn record(view: &NetworkView, nodes: &mut BTreeMap<String, Heights>) {
    for node in &view.nodes {
        let Some(height) = node.height.filter(|height| *height > 0) else {
            continue;
        };
        nodes
            .entry(node.name.clone())
            .and_modify(|heights| heights.last = height)
            .or_insert(Heights { first: height, last: height });
    }
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

    println!("Bringing up a Kubernetes cluster of {} machines", SPEC.machines);
    let (lab, up) = Lab::up(SPEC).await?;
    for (name, seconds) in &up.phases {
        println!("           {seconds:6.1} s  {name}");
    }
    report.built = up.built.into_iter().map(|(name, seconds)| Phase { name, seconds }).collect();
    lap(report, "cluster up");

    println!("Installing the operator with Helm");
    let image = OperatorImage::build(&programs.operator, &lab.layout().images())?;
    operator::install(&lab, CLUSTER, &programs::root(), &image)?;
    // On the path of kubectl, so that it is found as a plug-in; and it outlives `cargo clean`.
    let plugin = lab.tool("kubectl-bsn");
    std::fs::copy(&programs.kubectl_plugin, &plugin)
        .with_context(|| format!("copying to {}", plugin.display()))?;
    lap(report, "operator installed");

    println!("Applying {SAMPLE}");
    let demo = Demo { path: path_with(&lab)?, lab };
    demo.apply()?;
    demo.watch(report)?;
    lap(report, "network running");

    println!();
    demo.status(&[]).status().context("running kubectl bsn")?;
    print_next_steps(&demo.lab);
    Ok(())
}

fn path_with(lab: &Lab) -> Result<std::ffi::OsString> {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(lab.layout().bin()).chain(std::env::split_paths(&old));
    std::env::join_paths(all).context("a directory of PATH has a colon in its name")
}

fn print_next_steps(lab: &Lab) {
    println!(
        "
It runs on. To try next:

  export KUBECONFIG={kubeconfig} PATH={bin}:$PATH
  kubectl bsn status {NETWORK} -n {NAMESPACE} --watch
  kubectl get bsnnetworks,bsnnodes,pods -n {NAMESPACE}
  kubectl delete pod {NETWORK}-hangzhou-0-0 -n {NAMESPACE}    # one of four may be down
  kubectl apply -f manifests/samples/with-full-node.yaml      # adds a full node
  cargo xtask lab stop apiserver {CLUSTER}                            # the chain does not need it; start it again
  cargo xtask demo --down                                     # removes everything",
        kubeconfig = lab.kubeconfig(CLUSTER).display(),
        bin = lab.layout().bin().display(),
    );
}
