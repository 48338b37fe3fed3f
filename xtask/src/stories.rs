//! Runs the stories on the cluster, each in a process of its own: so its lines and its time can be told from those of
//! others that run beside it, and one that hangs is ended alone.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bsn_testkit::lab::{HUB_VARIABLE, Roles};
use serde::Deserialize;

use crate::programs::{cargo, root};
use crate::test::wait_until;

/// A part of the run.
pub struct Group {
    /// The part's name.
    pub name: &'static str,
    /// Its budget.
    pub minutes: u64,
    /// Module of `tests/lab` that its stories are in; empty = all others.
    module: &'static str,
    /// How many of them run at once in each hub.
    at_once: usize,
    /// In how many hubs.
    hubs: usize,
}

/// In the order in which they run.
pub const GROUPS: [Group; 3] = [
    // They disturb nobody. More networks than three share two processors at the cost of time limits.
    Group { name: "side by side", minutes: 35, module: "side_by_side::", at_once: 3, hubs: 1 },
    // Each alone in its cluster. One leaves two thirds of two processors idle.
    Group { name: "alone", minutes: 45, module: "", at_once: 1, hubs: 3 },
    // Networks in three clusters, which are cut from each other: last, since a story that fails may leave such a cut.
    Group { name: "clusters", minutes: 70, module: "clusters::", at_once: 1, hubs: 1 },
];

/// Told when they are asked for by name, or when there is time for everything ([`THOROUGH`]): with them a run takes longer
/// than a change can wait for.
const LONG: [&str; 9] = [
    "clusters::cuts::",
    "clusters::drains::",
    "clusters::exposed::",
    "clusters::images::",
    "clusters::lost::",
    "clusters::restored::",
    "clusters::slow::",
    "clusters::wrong::",
    "killed::the_operator_killed",
];
/// Set if there is time for everything. Stories look at it, too.
const THOROUGH: &str = "BSN_THOROUGH";

/// What of a story's name stands before its lines.
const SHOWN_NAME: usize = 28;

/// The stories that were asked for.
pub struct Stories {
    program: PathBuf,
    names: Vec<String>,
}

/// One that was run.
pub struct Told {
    name: String,
    took: Duration,
    failure: Option<String>,
}

/// What Cargo says about a file it has built.
#[derive(Deserialize)]
struct Built {
    target: Option<BuiltTarget>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct BuiltTarget {
    name: String,
}

impl Stories {
    /// Builds the stories and picks those whose names contain one of `names`; if there are none, all there is time for.
    pub fn build(names: &[String]) -> Result<Self> {
        let program = build_program()?;
        let listed = Command::new(&program).args(["--list", "--format", "terse"]).output()?;
        let listed = String::from_utf8(listed.stdout).context("the list of stories")?;
        let thorough = std::env::var_os(THOROUGH).is_some();
        let wanted = |story: &&str| match names {
            [] => thorough || !LONG.iter().any(|module| story.starts_with(module)),
            names => names.iter().any(|name| story.contains(name)),
        };
        let stories = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        let (stories, others): (Vec<&str>, Vec<&str>) = stories.partition(wanted);
        if names.is_empty() && !others.is_empty() {
            println!("not told without {THOROUGH}=1: {}", others.join(", "));
        }
        let stories: Vec<String> = stories.into_iter().map(str::to_owned).collect();
        if stories.is_empty() {
            bail!("no story's name contains one of {names:?}");
        }
        Ok(Self { program, names: stories })
    }

    /// Whether there are any of this group.
    pub fn has(&self, group: &Group) -> bool {
        self.of(group).next().is_some()
    }

    fn of(&self, group: &Group) -> impl Iterator<Item = &String> {
        self.names.iter().filter(|story| module_of(story) == group.module)
    }

    /// Runs those of a group.
    pub fn run(
        &self,
        group: &Group,
        roles: Roles,
        deadline: Instant,
        told: &mut Vec<Told>,
    ) -> Result<()> {
        let stories: Vec<&String> = self.of(group).collect();
        let hubs = roles.hubs().into_iter().take(group.hubs);
        let hands: Vec<usize> = hubs.flat_map(|hub| vec![hub; group.at_once]).collect();
        let queue: Mutex<VecDeque<&String>> = Mutex::new(stories.iter().copied().collect());
        let done = Mutex::new(Vec::new());
        // A function, so that the lock is not held while the story runs.
        let next = || lock(&queue).pop_front();
        std::thread::scope(|scope| {
            for hub in hands.into_iter().take(stories.len()) {
                let (next, done) = (&next, &done);
                scope.spawn(move || {
                    while let Some(story) = next() {
                        let one = tell(&self.program, story, hub, deadline);
                        lock(done).push(one);
                    }
                });
            }
        });
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failed = done.iter().filter(|one| one.failure.is_some());
        let failed: Vec<String> = failed.map(|one| one.name.clone()).collect();
        told.extend(done);
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join(", ")) }
    }
}

/// The module of a story that has a group of its own; empty = none.
fn module_of(story: &str) -> &'static str {
    let mut modules = GROUPS.iter().map(|group| group.module).filter(|module| !module.is_empty());
    modules.find(|module| story.starts_with(module)).unwrap_or_default()
}

/// A panic of a thread loses no result of the others.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn build_program() -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["test", "--locked", "--package", "bsn-operator", "--test", "lab", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = cargo.output().context("running cargo test --no-run")?;
    if !output.status.success() {
        bail!("the stories were not built: see above");
    }
    let built = output.stdout.split(|byte| *byte == b'\n');
    let built = built.filter_map(|line| serde_json::from_slice::<Built>(line).ok());
    let is_lab = |built: &Built| built.target.as_ref().is_some_and(|target| target.name == "lab");
    let found = built.filter(is_lab).find_map(|built| built.executable);
    found.context("Cargo named no program with the stories")
}

/// Runs one story, and says when it ends.
fn tell(program: &Path, story: &str, hub: usize, deadline: Instant) -> Told {
    let name = story.strip_prefix(module_of(story)).unwrap_or(story).to_owned();
    println!("--- {name}");
    let began = Instant::now();
    let failure =
        run_story(program, story, &name, hub, deadline).err().map(|why| format!("{why:#}"));
    let took = began.elapsed();
    match &failure {
        None => println!("--- {name}: passed after {:.0} s", took.as_secs_f64()),
        Some(why) => println!("--- {name}: FAILED after {:.0} s: {why}", took.as_secs_f64()),
    }
    Told { name, took, failure }
}

fn run_story(program: &Path, story: &str, name: &str, hub: usize, deadline: Instant) -> Result<()> {
    if Instant::now() >= deadline {
        bail!("not begun: the stories before it took the whole budget");
    }
    let mut command = Command::new(program);
    // With two threads the one test's name is printed when it ends, and not before its first line.
    command.args(["--exact", story, "--nocapture", "--test-threads", "2"]);
    command.env(HUB_VARIABLE, hub.to_string());
    command.current_dir(root()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).spawn().context("starting it")?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let status = std::thread::scope(|scope| {
        scope.spawn(|| out.map(|out| print_lines(name, out)));
        scope.spawn(|| err.map(|err| print_lines(name, err)));
        wait_until(deadline, &mut child)
    })?;
    if status.success() { Ok(()) } else { bail!("it ended with {status}") }
}

/// Prints what a story says, with its name before each line.
fn print_lines(name: &str, from: impl Read) {
    let shown = name.get(..SHOWN_NAME).unwrap_or(name);
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    // A pipe that cannot be read has ended.
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if !is_harness(text) {
            println!("{shown:<SHOWN_NAME$} | {text}");
        }
        line.clear();
    }
}

/// What the test harness says around a single test, which the table says better.
fn is_harness(line: &str) -> bool {
    line.is_empty()
        || line == "running 1 test"
        || line.starts_with("test result: ")
        || line.starts_with("test ") && line.ends_with(" ... ok")
        || line.starts_with("test ") && line.ends_with(" has been running for over 60 seconds")
}

/// How long each took.
pub fn print_table(told: &[Told]) {
    println!("\n{:>7}  {:<6}  story", "seconds", "result");
    for one in told {
        let result = if one.failure.is_none() { "passed" } else { "FAILED" };
        println!("{:>7.0}  {result:<6}  {}", one.took.as_secs_f64(), one.name);
    }
}
