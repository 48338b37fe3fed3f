//! `cargo xtask test`: everything that is tested, in parts with a budget each.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bsn_testkit::lab::{Lab, LabSpec, tools};
use bsn_testkit::operator::{self, OperatorImage};
use clap::Args;

use crate::programs::{self, cargo};
use crate::stories::{Stories, print_table};

const CLUSTER: usize = 0;
const SPEC: LabSpec = LabSpec { clusters: 1, machines: 2 };
const POLL: Duration = Duration::from_millis(200);

/// Options of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Only what needs no cluster and no root.
    #[arg(long)]
    quick: bool,

    /// Leave the local cluster up afterwards.
    #[arg(long)]
    keep: bool,

    /// Only the stories whose names contain one of these, and nothing else.
    stories: Vec<String>,
}

/// A part that was run.
struct Part {
    name: &'static str,
    took: Duration,
    budget: Duration,
    failure: Option<String>,
}

#[derive(Default)]
struct Parts(Vec<Part>);

impl Parts {
    /// Runs one part. The budget is generous: a part that exceeds it hangs.
    fn run(
        &mut self,
        name: &'static str,
        budget_minutes: u64,
        work: impl FnOnce(Instant) -> Result<()>,
    ) -> bool {
        println!("\n=== {name}");
        let began = Instant::now();
        let budget = Duration::from_mins(budget_minutes);
        let failure = work(began + budget).err().map(|error| format!("{error:#}"));
        if let Some(why) = &failure {
            eprintln!("{name} failed: {why}");
        }
        let passed = failure.is_none();
        self.0.push(Part { name, took: began.elapsed(), budget, failure });
        passed
    }

    fn summarise(&self) -> Result<()> {
        println!("\n{:<12} {:>8} {:>8}  result", "part", "minutes", "budget");
        for part in &self.0 {
            let minutes = |duration: Duration| duration.as_secs_f64() / 60.0;
            println!(
                "{:<12} {:>8.1} {:>8.0}  {}",
                part.name,
                minutes(part.took),
                minutes(part.budget),
                part.failure.as_ref().map_or("passed", |_| "FAILED"),
            );
        }
        let failed: Vec<_> =
            self.0.iter().filter(|part| part.failure.is_some()).map(|part| part.name).collect();
        if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
    }
}

/// Runs a program until it ends or `deadline` passes; then it is killed with all it started.
fn run_until(deadline: Instant, command: &mut Command) -> Result<()> {
    let mut child = command.process_group(0).spawn().context("starting it")?;
    let status = wait_until(deadline, &mut child)?;
    if status.success() { Ok(()) } else { bail!("it ended with {status}") }
}

/// Waits for a program that was started in a process group of its own. After `deadline` it is killed with all it
/// started, which is an error.
pub fn wait_until(deadline: Instant, child: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", "--", &group]).status()?;
            child.wait()?;
            bail!("it did not end within its budget and was killed");
        }
        std::thread::sleep(POLL);
    }
}

/// Runs all parts; those that need another that failed are left out, which is a failure, too.
pub async fn run(args: TestArgs) -> Result<()> {
    let mut parts = Parts::default();
    if args.stories.is_empty() && (!run_without_cluster(&mut parts) || args.quick) {
        return parts.summarise();
    }
    let kept = Lab::load().is_ok();
    let lab = bring_up(&mut parts).await;
    if let Some(lab) = &lab {
        let passed = parts.run("manifests", 1, |end| check_manifests(lab, end))
            & run_stories(&mut parts, &args.stories);
        if !passed {
            diagnose(lab);
        }
    }
    if args.keep || kept {
        println!("\nThe local cluster stays up; `cargo xtask lab down` removes it.");
    } else {
        parts.run("removal", 2, |_| Lab::down());
    }
    parts.summarise()
}

/// What needs no cluster. Gives whether the cluster's turn has come: bad style does not bar it.
fn run_without_cluster(parts: &mut Parts) -> bool {
    parts.run("format", 1, |end| run_until(end, cargo().args(["fmt", "--all", "--check"])));
    parts.run("lints", 15, |end| {
        let args = ["clippy", "--quiet", "--workspace", "--all-targets", "--locked"];
        run_until(end, cargo().args(args).args(["--", "--deny", "warnings"]))?;
        // Left out above, since `cargo test` alone must not run it.
        let args = ["clippy", "--quiet", "--package", "bsn-operator", "--test", "lab", "--locked"];
        run_until(end, cargo().args(args).args(["--", "--deny", "warnings"]))
    });
    parts.run("gitops", 10, |end| run_until(end, &mut tools::test("gitops")?));
    parts.run("quick", 15, |end| run_until(end, cargo().args(["test", "--workspace", "--locked"])))
}

async fn bring_up(parts: &mut Parts) -> Option<Lab> {
    println!("\n=== cluster");
    let began = Instant::now();
    let up = async {
        let programs = programs::build()?;
        let (lab, _) = Lab::up(SPEC).await?;
        let image = OperatorImage::build(&programs.operator, &lab.layout().images())?;
        operator::install(&lab, CLUSTER, &programs::root(), &image)?;
        Ok::<_, anyhow::Error>(lab)
    };
    let budget = Duration::from_mins(25);
    let up = tokio::time::timeout(budget, up).await.context("not up within its budget");
    let up = up.and_then(|up| up);
    let failure = up.as_ref().err().map(|error| format!("{error:#}"));
    if let Some(why) = &failure {
        eprintln!("cluster failed: {why}");
    }
    parts.0.push(Part { name: "cluster", took: began.elapsed(), budget, failure });
    up.ok()
}

/// The committed plain manifests are what the chart renders.
fn check_manifests(lab: &Lab, deadline: Instant) -> Result<()> {
    let file = programs::root().join("manifests/install.yaml");
    let before = std::fs::read(&file).context("reading manifests/install.yaml")?;
    let mut render = Command::new("sh");
    render.arg("manifests/render.sh").current_dir(programs::root()).env("HELM", lab.tool("helm"));
    run_until(deadline, &mut render)?;
    if std::fs::read(&file)? != before {
        bail!("manifests/install.yaml was out of date and is rendered anew now: commit it");
    }
    Ok(())
}

/// Runs the stories of these names: those that disturb nobody first, side by side, then the others.
fn run_stories(parts: &mut Parts, names: &[String]) -> bool {
    let mut stories = None;
    let built = parts.run("build", 15, |_| {
        stories = Some(Stories::build(names)?);
        Ok(())
    });
    let Some(stories) = stories.filter(|_| built) else { return false };
    let (mut passed, mut told) = (true, Vec::new());
    let (side_by_side, alone) = stories.counts();
    if side_by_side > 0 {
        passed &= parts.run("side by side", 25, |end| stories.run_side_by_side(end, &mut told));
    }
    if alone > 0 {
        passed &= parts.run("alone", 60, |end| stories.run_alone(end, &mut told));
    }
    print_table(&told);
    passed
}

/// Shows what a person would look at first.
fn diagnose(lab: &Lab) {
    for args in [
        vec!["get", "bsnnetworks,bsnnodes,pods", "-A", "-o", "wide"],
        vec!["get", "events", "-A", "--sort-by=.lastTimestamp"],
        vec![
            "logs",
            "-n",
            operator::NAMESPACE,
            "-l",
            "app.kubernetes.io/name=bsn-operator",
            "--tail",
            "60",
        ],
    ] {
        println!("\n$ kubectl {}", args.join(" "));
        let shown = Command::new(lab.tool("kubectl"))
            .env("KUBECONFIG", lab.kubeconfig(CLUSTER))
            .args(&args)
            .arg("--request-timeout=10s")
            .status();
        if let Err(error) = shown {
            eprintln!("kubectl could not be run: {error}");
        }
    }
}
