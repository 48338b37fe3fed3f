//! `cargo xtask test`: everything that is tested, in parts with a budget each.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bsn_testkit::lab::{Lab, LabSpec, Roles, tools};
use bsn_testkit::operator::{self, OperatorImage};
use clap::Args;

use crate::programs::{self, cargo};
use crate::stories::{GROUPS, Stories, print_table};

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
    let roles = Roles::from_env()?;
    let lab = bring_up(&mut parts, roles).await;
    if let Some(lab) = &lab {
        let passed = parts.run("manifests", 1, |end| check_manifests(lab, end))
            & run_stories(&mut parts, roles, &args.stories);
        if !passed {
            diagnose(lab, roles);
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

/// Three clusters: a cluster at rest takes 1 GiB (proportional set size after a day), two thirds of it the control plane.
async fn bring_up(parts: &mut Parts, roles: Roles) -> Option<Lab> {
    println!("\n=== cluster");
    let began = Instant::now();
    let up = async {
        let programs = programs::build()?;
        let lab = provide_lab(roles).await?;
        let image = OperatorImage::build(&programs.operator, &lab.layout().images())?;
        // The agents in the nodes' pods are of this image.
        lab.import_image(&image.file, &roles.members)?;
        for hub in roles.hubs() {
            operator::install(&lab, hub, &programs::root(), &image)?;
        }
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

/// The lab, large enough and with all of it started. With another hub than cluster 0, somebody works with the others:
/// what stands still there does so on purpose, and a lab that is large enough is taken as it is.
async fn provide_lab(roles: Roles) -> Result<Lab> {
    let wanted = roles.spec();
    let is_large = |spec: LabSpec| spec.union(wanted) == spec;
    match Lab::load() {
        Ok(lab) if roles.hub != 0 && is_large(lab.spec()) => Ok(lab),
        _ => Ok(Lab::up(wanted).await?.0),
    }
}

/// The committed plain manifests are what the chart renders.
fn check_manifests(lab: &Lab, deadline: Instant) -> Result<()> {
    let files =
        ["manifests/install.yaml", "manifests/monitoring.yaml", "manifests/rbac-namespaces.yaml"];
    let read = |file: &str| {
        std::fs::read(programs::root().join(file)).with_context(|| format!("reading {file}"))
    };
    let before = files.map(read);
    let mut render = Command::new("sh");
    render.arg("manifests/render.sh").current_dir(programs::root()).env("HELM", lab.tool("helm"));
    run_until(deadline, &mut render)?;
    for (file, before) in files.into_iter().zip(before) {
        if read(file)? != before? {
            bail!("{file} was out of date and is rendered anew now: commit it");
        }
    }
    Ok(())
}

/// Runs the stories of these names, group by group.
fn run_stories(parts: &mut Parts, roles: Roles, names: &[String]) -> bool {
    let mut stories = None;
    let built = parts.run("build", 15, |_| {
        stories = Some(Stories::build(names)?);
        Ok(())
    });
    let Some(stories) = stories.filter(|_| built) else { return false };
    let (mut passed, mut told) = (true, Vec::new());
    for group in &GROUPS {
        if stories.has(group) {
            passed &= parts
                .run(group.name, group.minutes, |end| stories.run(group, roles, end, &mut told));
        }
    }
    print_table(&told);
    passed
}

/// Shows what a person would look at first.
fn diagnose(lab: &Lab, roles: Roles) {
    let logs = ["logs", "-n", operator::NAMESPACE, "-l", "app.kubernetes.io/name=bsn-operator"];
    show(lab, roles.hub, &["get", "bsnclusters,bsnnetworks,bsnnodes,pods", "-A", "-o", "wide"]);
    show(lab, roles.hub, &["get", "events", "-A", "--sort-by=.lastTimestamp"]);
    show(lab, roles.hub, &[&logs[..], &["--tail", "60"]].concat());
    for member in roles.members {
        show(lab, member, &["get", "pods,services,endpointslices", "-A", "-o", "wide"]);
    }
}

fn show(lab: &Lab, cluster: usize, args: &[&str]) {
    println!("\n$ kubectl {}    # cluster {cluster}", args.join(" "));
    let shown = Command::new(lab.tool("kubectl"))
        .env("KUBECONFIG", lab.kubeconfig(cluster))
        .args(args)
        .arg("--request-timeout=10s")
        .status();
    if let Err(error) = shown {
        eprintln!("kubectl could not be run: {error}");
    }
}
