//! `cargo xtask lab`: real local clusters, and faults in them.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use bsn_testkit::lab::{Lab, LabSpec, MachineId, provisioner, tools};
use clap::{Subcommand, ValueEnum};

/// What to do with the lab.
#[derive(Subcommand)]
pub enum Command {
    /// Starts the lab, makes it larger, or starts what died. Needs root.
    Up {
        /// Kubernetes clusters.
        #[arg(long, default_value_t = 2)]
        clusters: usize,
        /// Machines in each cluster.
        #[arg(long, default_value_t = 2)]
        machines: usize,
    },
    /// Ends the lab and removes everything but built programs and images.
    Down,
    /// Shows what runs.
    Status,
    /// Prints the path of a cluster's kubeconfig.
    Kubeconfig {
        /// The cluster's number.
        cluster: usize,
    },
    /// Prints the path of a built program, such as kubectl.
    Tool {
        /// Its name.
        name: String,
    },
    /// Drops all packets between two clusters.
    Partition {
        /// One cluster.
        a: usize,
        /// The other.
        b: usize,
    },
    /// Ends all partitions.
    Heal,
    /// Stops a kubelet in order, an API server at once, or a machine as a power cut does.
    Stop {
        /// What to stop.
        part: Part,
        /// The API server's cluster (0), or the machine (0/1).
        which: String,
    },
    /// Starts what `stop` stopped.
    Start {
        /// What to start.
        part: Part,
        /// The API server's cluster (0), or the machine (0/1).
        which: String,
    },
    /// Freezes a kubelet.
    Pause {
        /// Only kubelets can be frozen.
        part: KubeletOnly,
        /// The machine (0/1).
        machine: MachineId,
    },
    /// Lets a frozen kubelet go on.
    Resume {
        /// Only kubelets can be frozen.
        part: KubeletOnly,
        /// The machine (0/1).
        machine: MachineId,
    },
    /// Kills a kubelet.
    Kill {
        /// Only kubelets can be killed alone.
        part: KubeletOnly,
        /// The machine (0/1).
        machine: MachineId,
    },
    /// Serves the volumes of a cluster; started by `up`.
    #[command(hide = true)]
    Provisioner {
        #[arg(long)]
        cluster: usize,
    },
}

/// A part of the lab that can be stopped.
#[derive(Clone, Copy, ValueEnum)]
pub enum Part {
    /// A cluster's API server.
    Apiserver,
    /// A machine's kubelet; its pods go on.
    Kubelet,
    /// A machine with all its pods.
    Machine,
}

/// The one part that can be frozen or killed.
#[derive(Clone, Copy, ValueEnum)]
pub enum KubeletOnly {
    /// A machine's kubelet.
    Kubelet,
}

/// Does what a command says.
pub async fn run(command: Command) -> Result<()> {
    let start = Instant::now();
    let done = match command {
        Command::Provisioner { cluster } => return provisioner::run(cluster).await,
        Command::Status => return show_status().await,
        Command::Kubeconfig { cluster } => return show_kubeconfig(cluster),
        Command::Tool { name } => return show_tool(&name),
        Command::Up { clusters, machines } => start_lab(LabSpec { clusters, machines }).await?,
        Command::Down => Lab::down().map(|()| "the lab is gone".to_owned())?,
        Command::Partition { a, b } => {
            Lab::load()?.partition(a, b)?;
            format!("clusters {a} and {b} are cut from each other; `cargo xtask lab heal` ends it")
        }
        Command::Heal => {
            Lab::load()?.heal().map(|()| "all clusters reach each other".to_owned())?
        }
        Command::Stop { part, which } => stop(part, &which)?,
        Command::Start { part, which } => start_part(part, &which).await?,
        Command::Pause { machine, .. } => {
            Lab::load()?.pause_kubelet(machine)?;
            format!(
                "kubelet {machine} is frozen; `cargo xtask lab resume kubelet {machine}` ends it"
            )
        }
        Command::Resume { machine, .. } => {
            Lab::load()?.resume_kubelet(machine)?;
            format!("kubelet {machine} goes on")
        }
        Command::Kill { machine, .. } => {
            Lab::load()?.kill_kubelet(machine)?;
            format!(
                "kubelet {machine} is dead; `cargo xtask lab start kubelet {machine}` starts it"
            )
        }
    };
    println!("{done} ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(())
}

async fn start_lab(spec: LabSpec) -> Result<String> {
    let (lab, report) = Lab::up(spec).await?;
    for (phase, seconds) in &report.phases {
        println!("  {phase:<38} {seconds:>6.1} s");
    }
    for cluster in 0..lab.spec().clusters {
        println!("  export KUBECONFIG={}", lab.kubeconfig(cluster).display());
    }
    let LabSpec { clusters, machines } = lab.spec();
    Ok(format!("the lab is up: {clusters} clusters with {machines} machines each"))
}

async fn show_status() -> Result<()> {
    let status = Lab::load()?.status().await;
    for line in &status.lines {
        println!("{:<4} {:<12} {}", if line.well { "ok" } else { "BAD" }, line.what, line.detail);
    }
    if status.partitioned {
        println!("clusters are cut from each other: `cargo xtask lab heal` ends it");
    }
    if status.lines.iter().any(|line| !line.well) {
        println!("`cargo xtask lab up` starts what is dead");
    }
    Ok(())
}

fn show_kubeconfig(cluster: usize) -> Result<()> {
    let path = Lab::load()?.kubeconfig(cluster);
    if !path.exists() {
        bail!("the lab has no cluster {cluster}: see `cargo xtask lab status`");
    }
    println!("{}", path.display());
    Ok(())
}

fn show_tool(name: &str) -> Result<()> {
    let known: Vec<_> = tools::names().collect();
    if !known.contains(&name) {
        bail!("no tool {name}; there are {}", known.join(", "));
    }
    println!("{}", Lab::load()?.tool(name).display());
    Ok(())
}

fn stop(part: Part, which: &str) -> Result<String> {
    let lab = Lab::load()?;
    match part {
        Part::Apiserver => lab.stop_api_server(cluster(which)?)?,
        Part::Kubelet => lab.stop_kubelet(which.parse()?)?,
        Part::Machine => lab.stop_machine(which.parse()?)?,
    }
    let name = part.name();
    Ok(format!("{name} {which} is stopped; `cargo xtask lab start {name} {which}` starts it"))
}

async fn start_part(part: Part, which: &str) -> Result<String> {
    let lab = Lab::load()?;
    match part {
        Part::Apiserver => {
            lab.start_api_server(cluster(which)?)?;
            lab.wait_api_server(cluster(which)?).await?;
        }
        Part::Kubelet => lab.start_kubelet(which.parse()?)?,
        Part::Machine => lab.start_machine(which.parse()?)?,
    }
    Ok(format!("{} {which} is started", part.name()))
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Apiserver => "apiserver",
            Self::Kubelet => "kubelet",
            Self::Machine => "machine",
        }
    }
}

fn cluster(text: &str) -> Result<usize> {
    text.parse().with_context(|| format!("a cluster is written as its number, not {text:?}"))
}
