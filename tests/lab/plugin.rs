//! What `kubectl bsn` says, run as users run it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use bsn_core::membership::Decision;
use bsn_core::membership::model::Gate;
use bsn_core::steps::{Outcome, PastStep};
use bsn_operator::view::{MembershipView, NetworkView};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::support::{World, eventually};

/// There are steps: `kubectl bsn plan --help`.
const STEPS: i32 = 2;

#[derive(Deserialize)]
struct Status {
    live: Option<NetworkView>,
    #[serde(rename = "liveProblem")]
    problem: Option<String>,
}

#[derive(Deserialize)]
struct Plan {
    steps: Vec<PlannedStep>,
    end: String,
}

#[derive(Deserialize)]
struct PlannedStep {
    what: String,
}

/// What an explanation must say.
pub struct Explained<'a> {
    /// The closed gate.
    pub gate: Gate,
    /// For how long at least, in seconds.
    pub seconds: u64,
    /// What else the lines about it say: for what it waits, for example.
    pub words: &'a [&'a str],
    /// What would open it.
    pub helps: &'a str,
}

/// The plug-in, as it was built.
pub fn plugin_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_kubectl-bsn"))
}

impl World {
    /// Runs the plug-in in the story's namespace.
    pub fn plugin(&self, args: &[&str], input: &str) -> Output {
        let args = [args, &["-n", &self.namespace]].concat();
        self.run(plugin_program(), &args, input)
    }

    /// What it tells programs about the network.
    fn told<T: DeserializeOwned>(&self, command: &str) -> Result<T, String> {
        let output = self.plugin(&[command, &self.network, "-o", "json"], "");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// Live numbers.
    pub fn view(&self) -> Result<NetworkView, String> {
        let status: Status = self.told("status")?;
        status.live.ok_or_else(|| status.problem.unwrap_or_default())
    }

    /// The steps from the network as it is now to this description, in words. All is as described after them.
    pub fn planned(&self, yaml: &str) -> Vec<String> {
        self.try_planned(yaml).unwrap_or_else(|why| panic!("kubectl bsn plan: {why}"))
    }

    /// The same, or what is said instead: a step may be refused for a moment while a node does not answer.
    pub fn try_planned(&self, yaml: &str) -> Result<Vec<String>, String> {
        let output = self.plugin(&["plan", "-f", "-", "-o", "json"], yaml);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.code() != Some(STEPS) {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned() + &said);
        }
        let plan: Plan = serde_json::from_str(&said).unwrap();
        assert_eq!(plan.end, "converged");
        Ok(plan.steps.into_iter().map(|step| step.what).collect())
    }

    /// The steps that were taken since the chain was formed. Not those that were given up before anything was done:
    /// the same step comes again, if it is still wanted.
    pub fn history(&self) -> Vec<PastStep> {
        let mut steps: Vec<PastStep> = self.told("history").unwrap();
        steps.retain(|step| step.outcome != Outcome::Withdrawn);
        steps
    }

    /// Waits until the next step is explained like this.
    pub async fn await_explained(&self, expected: Explained<'_>, within: Duration) {
        let Explained { gate, seconds, words, helps } = expected;
        let what = format!("{}/{} explained: {gate}: {words:?}", self.namespace, self.network);
        let said = eventually(&what, within, async || {
            let view: MembershipView = self.told("explain")?;
            let (class, refusal) = match &view.decision {
                Decision::Wait(refusal) => ("waits", refusal),
                Decision::NeedsConsent(refusal) => ("needs a consent", refusal),
                Decision::Stuck(refusal) => ("is stuck", refusal),
                other => return Err(format!("{other:?}")),
            };
            let output = self.plugin(&["explain", &self.network], "");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let lines = [
                format!("\nIt {class}, for "),
                format!("\nGate {gate}: "),
                format!("\nWhat helps: {helps}"),
            ];
            let lines = lines.iter().map(String::as_str).chain(words.iter().copied());
            let missing: Vec<_> = lines.filter(|words| !text.contains(words)).collect();
            if refusal.gate == gate && view.for_seconds >= seconds && missing.is_empty() {
                Ok(text)
            } else {
                Err(format!("for {} s, without {missing:?}:\n{text}", view.for_seconds))
            }
        })
        .await;
        // Without the nodes.
        println!("{}", said.split("\n\nNODE").next().unwrap_or_default());
    }
}

/// Names newcomers by the order in which they enter: which of several catches up first no plan can know.
fn by_entry(steps: &[String]) -> Vec<String> {
    let entered = |step: &String| {
        let node = step.strip_prefix("add ")?.split_whitespace().next()?;
        Some(node.to_owned())
    };
    let newcomers: BTreeMap<String, usize> =
        steps.iter().filter_map(entered).enumerate().map(|(place, node)| (node, place)).collect();
    let named = |word: &str| match newcomers.get(word) {
        Some(place) => format!("newcomer-{place}"),
        None => word.to_owned(),
    };
    // They are made, all of them, before the first enters: there a plan knows the order.
    let rename = |step: &String| match step.strip_prefix("provision ") {
        Some(_) => step.clone(),
        None => step.split(' ').map(named).collect::<Vec<_>>().join(" "),
    };
    steps.iter().map(rename).collect()
}

/// The steps that were taken are those that the plan showed, in its order.
pub fn check_plan(planned: &[String], taken: &[String]) {
    let list = |steps: &[String]| steps.join("\n  ");
    assert_eq!(
        by_entry(planned),
        by_entry(taken),
        "planned:\n  {}\ntaken:\n  {}",
        list(planned),
        list(taken)
    );
    println!("{} steps as planned", taken.len());
}
