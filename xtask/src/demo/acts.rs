//! What the demo does and looks at, each with the command that a person would type.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bsn_operator::view::NetworkView;
use bsn_testkit::lab::Lab;
use serde::Deserialize;

use super::{Course, CutReport, DemoReport, HUB, MEMBER, NodeReport};
use crate::programs;

/// What the hub calls the other.
const CITY: &str = "nanjing";
const SAMPLE: &str = "manifests/samples/two-cities.yaml";
pub const NETWORK: &str = "two-cities";
pub const NAMESPACE: &str = "ledger";
/// Every node restarts for it, and the chain is a little faster afterwards.
const CHANGE: &str = r#"{"spec":{"engine":{"cometbft":{"timeoutCommit":"700ms"}}}}"#;
/// Blocks every node must add before the network counts as running.
const BLOCKS: u64 = 5;
/// Longest a network may take from its YAML to these blocks, or to go on after the cut.
const DEADLINE: Duration = Duration::from_mins(3);
/// Longest for four restarts, one after the other.
const ROLL_DEADLINE: Duration = Duration::from_mins(6);
const POLL: Duration = Duration::from_millis(500);

/// The part of `kubectl bsn status -o json` used here.
#[derive(Debug, Deserialize)]
struct Status {
    live: Option<NetworkView>,
}

/// The clusters, and how commands find their programs.
pub struct Demo {
    /// The clusters.
    pub lab: Lab,
    path: OsString,
}

impl Demo {
    /// A demo in this lab.
    pub fn new(lab: Lab) -> Result<Self> {
        let old = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(lab.layout().bin()).chain(std::env::split_paths(&old));
        let path =
            std::env::join_paths(all).context("a directory of PATH has a colon in its name")?;
        Ok(Self { lab, path })
    }

    /// A command as a person types it on the hub, with the lab's programs.
    fn shell(&self, line: &str) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", line])
            .env("KUBECONFIG", self.lab.kubeconfig(HUB))
            .env("PATH", &self.path)
            .current_dir(programs::root());
        shell
    }

    /// Shows a command and runs it.
    pub fn run(&self, line: &str) -> Result<()> {
        println!("$ {line}");
        let status = self.shell(line).status().context("running sh")?;
        if !status.success() {
            bail!("it ended with {status}: see above");
        }
        Ok(())
    }

    /// `kubectl bsn` with this command about the network.
    pub fn bsn(command: &str) -> String {
        format!("kubectl bsn {command} {NETWORK} -n {NAMESPACE}")
    }

    /// The command that waits for a condition of the network.
    fn wait(condition: &str, within: Duration) -> String {
        let seconds = within.as_secs();
        format!(
            "kubectl wait bsnnetwork/{NETWORK} -n {NAMESPACE} --for=condition={condition} --timeout={seconds}s"
        )
    }

    fn output(&self, line: &str) -> Result<Vec<u8>> {
        let output = self.shell(line).output().context("running sh")?;
        if !output.status.success() {
            bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout)
    }

    fn view(&self) -> Result<Option<NetworkView>> {
        let status: Status =
            serde_json::from_slice(&self.output(&(Self::bsn("status") + " -o json"))?)?;
        Ok(status.live)
    }

    /// The steps the operator has taken.
    fn history(&self) -> Result<Vec<u8>> {
        self.output(&(Self::bsn("history") + " -o json"))
    }

    /// Looks at the network again and again until `enough`.
    fn look_until(
        &self,
        within: Duration,
        mut enough: impl FnMut(&NetworkView) -> bool,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            // The operator may be changing its leader: a question may fail, the deadline counts.
            match self.view() {
                Ok(Some(view)) if enough(&view) => return Ok(()),
                Ok(_) => {}
                Err(error) => eprintln!("{error:#}"),
            }
            if began.elapsed() > within {
                bail!(
                    "what was waited for did not come within {} s; look with: {}",
                    within.as_secs(),
                    Self::bsn("status")
                );
            }
            std::thread::sleep(POLL);
        }
    }

    fn head(&self) -> Result<u64> {
        let mut head = 0;
        self.look_until(DEADLINE, |view| {
            head = view.head;
            true
        })?;
        Ok(head)
    }

    /// The other cluster joins, as any cluster of a user does.
    pub fn join(&self) -> Result<()> {
        let kubeconfig = self.lab.kubeconfig(MEMBER);
        let kubeconfig = kubeconfig.display();
        self.run(&format!(
            "kubectl bsn cluster join {CITY} --kubeconfig {kubeconfig} -n {NAMESPACE} --yes"
        ))?;
        self.run(&format!("kubectl wait bsncluster/{CITY} --for=condition=Ready --timeout=60s"))
    }

    /// The network comes up: watches until every node has added its blocks.
    pub fn start(&self, report: &mut DemoReport) -> Result<()> {
        self.run(&format!("kubectl apply -f {SAMPLE}"))?;
        let began = Instant::now();
        let mut shown = Instant::now();
        self.look_until(DEADLINE, |view| {
            if view.head > 0 && report.apply_to_first_block_seconds.is_none() {
                report.apply_to_first_block_seconds = Some(began.elapsed().as_secs_f64());
                println!("first block after {:.1} s", began.elapsed().as_secs_f64());
            }
            record(view, &mut report.nodes);
            if std::io::stdout().is_terminal() && shown.elapsed() > Duration::from_secs(2) {
                print!("\x1b[2J\x1b[H");
                // Only to look at; what counts was read above.
                let _ = self.shell(&Self::bsn("status")).status();
                shown = Instant::now();
            }
            let enough = |node: &NodeReport| node.last >= node.first + BLOCKS;
            !view.nodes.is_empty()
                && view.nodes.len() == report.nodes.len()
                && report.nodes.values().all(enough)
        })
    }

    /// Every node restarts on another description, one at a time, while blocks keep coming.
    pub fn change(&self) -> Result<Course> {
        self.run(&format!(
            "kubectl patch bsnnetwork {NETWORK} -n {NAMESPACE} --type=merge -p '{CHANGE}'"
        ))?;
        let line = Self::wait("Ready", ROLL_DEADLINE);
        println!("$ {line}");
        let mut changed = self.shell(&line).spawn().context("running sh")?;
        let mut heads: Vec<(Instant, u64)> = Vec::new();
        let mut runs = BTreeMap::new();
        // kubectl ends first.
        self.look_until(2 * ROLL_DEADLINE, |view| {
            if heads.last().is_none_or(|(_, head)| *head < view.head) {
                heads.push((Instant::now(), view.head));
            }
            for node in view.nodes.iter().filter(|node| node.template_hash.is_some()) {
                let old = runs.insert(node.name.clone(), node.template_hash.clone());
                if old.is_some_and(|old| old != node.template_hash) {
                    println!("  height {}: {} has restarted", view.head, node.name);
                }
            }
            !matches!(changed.try_wait(), Ok(None))
        })?;
        if !changed.wait()?.success() {
            bail!("the change was not done: see {}", Self::bsn("explain"));
        }
        let ((began, from), (ended, to)) =
            heads.first().zip(heads.last()).context("no block was seen")?;
        let pauses = heads.windows(2).map(|pair| pair[1].0.duration_since(pair[0].0));
        Ok(Course {
            from: *from,
            to: *to,
            seconds: ended.duration_since(*began).as_secs_f64(),
            longest_pause_seconds: pauses.max().unwrap_or_default().as_secs_f64(),
        })
    }

    /// The clusters do not reach each other for a while. Neither has a quorum: the chain stands, and nothing else
    /// happens.
    pub fn cut(&self) -> Result<CutReport> {
        let (before, steps) = (self.head()?, self.history()?);
        println!("$ cargo xtask lab partition {HUB} {MEMBER}");
        let began = Instant::now();
        self.lab.partition(HUB, MEMBER)?;
        let seen = self.look_at_cut();
        // Whatever was seen: nobody is left with clusters that are cut from each other.
        println!("$ cargo xtask lab heal");
        self.lab.heal()?;
        let (healed, during) = (Instant::now(), seen?);
        let cut_seconds = began.elapsed().as_secs_f64();

        self.look_until(DEADLINE, |view| view.head > during)?;
        let stood_on_seconds = healed.elapsed().as_secs_f64();
        self.run(&Self::wait("ClustersReachable", DEADLINE))?;
        self.run(&Self::wait("Ready", DEADLINE))?;
        if self.history()? != steps {
            bail!("the operator took a step because of the cut: see {}", Self::bsn("history"));
        }
        Ok(CutReport { before, during, after: self.head()?, cut_seconds, stood_on_seconds })
    }

    /// Waits until the operator says what is wrong, and shows it. Gives the height at which the chain stands.
    fn look_at_cut(&self) -> Result<u64> {
        let soon = Duration::from_mins(1);
        self.run(&Self::wait("ChainLive=false", soon))?;
        let stands_at = self.head()?;
        self.run(&Self::wait("ClustersReachable=false", soon))?;
        self.run(&Self::bsn("status"))?;
        self.run(&Self::bsn("explain"))?;
        let head = self.head()?;
        if head != stands_at {
            bail!("the chain went on from {stands_at} to {head} without a quorum");
        }
        Ok(head)
    }
}

fn record(view: &NetworkView, nodes: &mut BTreeMap<String, NodeReport>) {
    for node in &view.nodes {
        let Some(height) = node.height.filter(|height| *height > 0) else {
            continue;
        };
        let cluster = if node.cluster.is_empty() { "hub" } else { &node.cluster };
        nodes.entry(node.name.clone()).and_modify(|report| report.last = height).or_insert_with(
            || NodeReport { cluster: cluster.to_owned(), first: height, last: height },
        );
    }
}
