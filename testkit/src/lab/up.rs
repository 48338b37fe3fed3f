//! Bringing the lab up: idempotent, in phases, each as parallel as it can be.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;

use super::control_plane::ControlPlane;
use super::folders::Layout;
use super::layout::LabSpec;
use super::machine::Machine;
use super::process::Service;
use super::{Lab, addons, command, down, image, network, packages, tools};

/// Nodes are Ready after about 8 s, and DNS a few seconds later; a busy machine takes several times as long.
const READY_DEADLINE: Duration = Duration::from_mins(4);
/// From one look at what runs to the next.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// What `up` did, for people and reports.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Programs that had to be built, with seconds.
    pub built: Vec<(String, f64)>,
    /// Phases in their order, with seconds.
    pub phases: Vec<(&'static str, f64)>,
}

impl Report {
    /// Seconds of all phases.
    pub fn seconds(&self) -> f64 {
        self.phases.iter().map(|(_, seconds)| seconds).sum()
    }
}

/// Measures phases: each lasts from the end of the one before.
struct Clock {
    since: Instant,
    report: Report,
}

impl Clock {
    fn lap(&mut self, phase: &'static str) {
        self.report.phases.push((phase, self.since.elapsed().as_secs_f64()));
        self.since = Instant::now();
    }
}

pub(super) async fn up(wanted: LabSpec) -> Result<(Lab, Report)> {
    wanted.validate()?;
    super::require_root()?;
    let provisioner = provisioner_program()?;
    let layout = Layout::from_env()?;
    let _lock = super::lock(&layout)?;
    let mut clock = Clock { since: Instant::now(), report: Report::default() };

    packages::install()?;
    clock.lap("packages");
    clock.report.built = tools::build(&layout.bin())?;
    clock.lap("programs");
    let images = image::ensure_own(&layout.bin(), &layout.images())?;
    clock.lap("images");

    let spec = match super::read_spec(&layout)? {
        Some(spec) => spec.union(wanted),
        None => {
            // Without a record nothing can be kept: whatever is left is of a crashed run.
            down::remove_all(&layout).context("removing what an earlier run left")?;
            wanted
        }
    };
    command::write(&layout.lab_file(), serde_json::to_vec(&spec)?)?;
    let lab = Lab { layout, spec };
    network::ensure(spec)?;
    let planes: Vec<_> =
        (0..spec.clusters).map(|cluster| ControlPlane::new(&lab.layout, cluster)).collect();
    super::in_parallel(&planes, ControlPlane::start)?;
    clock.lap("network and control planes");

    let machines: Vec<_> = spec.machines().map(|id| Machine::new(&lab.layout, id)).collect();
    let prepared = prepare_machines(machines.clone(), images);
    tokio::try_join!(prepared, wait_for_control_planes(&lab, &planes))?;
    clock.lap("machines prepared, API servers ready");

    // Only now: a kubelet that finds no API server backs off for longer than the wait has been.
    start_provisioners(&lab, &provisioner)?;
    try_join_all((0..spec.clusters).map(|cluster| finish_cluster(&lab, cluster))).await?;
    clock.lap("nodes and DNS ready");
    Ok((lab, clock.report))
}

async fn prepare_machines(machines: Vec<Machine>, images: Vec<PathBuf>) -> Result<()> {
    let prepare = move || super::in_parallel(&machines, |machine| machine.prepare(&images));
    tokio::task::spawn_blocking(prepare).await.context("preparing machines")?
}

async fn wait_for_control_planes(lab: &Lab, planes: &[ControlPlane]) -> Result<()> {
    let waits = planes.iter().enumerate().map(async |(cluster, plane)| {
        let client = lab.client(cluster).await?;
        plane.wait_ready(&client).await
    });
    try_join_all(waits).await.map(drop)
}

async fn finish_cluster(lab: &Lab, cluster: usize) -> Result<()> {
    let client = lab.client(cluster).await?;
    addons::apply(&client, cluster).await?;
    tend_until_ready(lab, cluster).await
}

/// Starts what needs an API server, and again what has ended, as an init system does: a kubelet ends when another takes
/// the one socket for device plug-ins in the same instant. Until all machines are Ready and DNS answers.
pub(super) async fn tend_until_ready(lab: &Lab, cluster: usize) -> Result<()> {
    let client = lab.client(cluster).await?;
    let plane = ControlPlane::new(&lab.layout, cluster);
    let ids = lab.spec.machines().filter(|id| id.cluster == cluster);
    let machines: Vec<_> = ids.map(|id| lab.machine_of(id)).collect();
    let end = Instant::now() + READY_DEADLINE;
    let mut restart = tokio::time::interval(RESTART_PAUSE);
    loop {
        restart.tick().await;
        let died = start_agents(&plane, &machines)?;
        let missing = addons::observe_readiness(&client, machines.len()).await;
        match missing {
            Ok(None) => return Ok(()),
            _ if Instant::now() < end => {}
            Ok(Some(missing)) => bail!(
                "cluster {cluster} is not ready after {READY_DEADLINE:?}: {missing}; see `kubectl get pods,nodes -A` \
                 and the logs.{}",
                died.join("\n")
            ),
            Err(error) => {
                let context = format!("cluster {cluster} is not ready after {READY_DEADLINE:?}");
                return Err(error).context(context);
            }
        }
    }
}

/// Starts what needs an API server and does not run. Returns the last words of what ran before.
fn start_agents(plane: &ControlPlane, machines: &[Machine]) -> Result<Vec<String>> {
    let ended = |services: [Service; 2]| -> Vec<String> {
        services.iter().filter_map(|service| service.check().err()).map(|e| e.to_string()).collect()
    };
    let mut died = ended(plane.controllers());
    if !died.is_empty() {
        plane.start_controllers()?;
    }
    for machine in machines {
        let agents = ended(machine.agents());
        if !agents.is_empty() {
            machine.start_node()?;
            died.extend(agents);
        }
    }
    Ok(died)
}

fn start_provisioners(lab: &Lab, program: &std::path::Path) -> Result<()> {
    for cluster in 0..lab.spec.clusters {
        let args = ["lab", "provisioner", "--cluster", &cluster.to_string()].map(str::to_owned);
        provisioner_service(&lab.layout, cluster).start(None, program, &args)?;
    }
    Ok(())
}

/// The provisioner of a cluster.
pub(super) fn provisioner_service(layout: &Layout, cluster: usize) -> Service {
    Service::new(&layout.cluster(cluster), "provisioner")
}

/// This program, if it is one that can be started again as provisioner: a test binary would take the
/// arguments for names of tests.
fn provisioner_program() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program's own file")?;
    if program.file_stem().is_none_or(|stem| stem != "xtask") {
        bail!("the lab is brought up by `cargo xtask lab up`, not from {}", program.display());
    }
    Ok(program)
}
