//! `kubectl bsn plan`: the steps to a new description, before they are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use bsn_core::engine::cometbft::{LEDGER, QUORUM};
use bsn_core::forming::DesiredNetwork;
use bsn_core::membership::Decision;
use bsn_core::membership::model::{
    Follower, Head, Inputs, Ledger, Liveness, Member, Node, Observed, Step,
};
use bsn_core::membership::play::{Plan, plan};
use bsn_core::names::{NameError, NodeName};
use comfy_table::{CellAlignment, Table, presets};
use kube::ResourceExt;
use serde::Serialize;

use super::live::{LiveError, fetch_membership};
use super::plan_disks::{ShownDisks, Shrinks, disks_that_grow as compare_disks};
use super::status::{StatusError, connect};
use super::steps::{
    Names, advice, before, begun_words, consent_command, names_of, refusal_of, spare_words,
    step_words, text,
};
use super::table::trimmed;
use super::{PlanArgs, PlanOutput};
use crate::api::BsnNetwork;
use crate::cli::render::{RenderError, read_networks};
use crate::controller::network::invalid::InvalidSpec;
use crate::controller::network::validate::{Authority, ValidatedNetwork, validate_network};
use crate::view::{InForce, NetworkKey};

/// There are steps.
const STEPS: u8 = 2;
/// A step is refused.
const REFUSED: u8 = 3;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A file.
    #[error(transparent)]
    File(#[from] RenderError),
    /// No such network in the file, or several.
    #[error("{file} holds {}; name one of them: kubectl bsn plan NAME -f {file}", .found.join(", "))]
    Which {
        /// The file.
        file: String,
        /// Networks in it.
        found: Vec<String>,
    },
    /// A description that makes no sense.
    #[error("{file}: {why}")]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong.
        #[source]
        why: InvalidSpec,
    },
    /// A disk that gets smaller.
    #[error("{file}: {why}")]
    Shrinks {
        /// The file.
        file: String,
        /// Which.
        #[source]
        why: Shrinks,
    },
    /// Another chain.
    #[error(
        "{0} describes another chain id or genesis; that is another network, and not a change of this one"
    )]
    AnotherChain(String),
    /// A name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] StatusError),
    /// The operator.
    #[error("{0}")]
    Live(#[from] LiveError),
    /// Printing.
    #[error("cannot print: {0}")]
    Print(#[from] serde_json::Error),
}

/// A plan as it is printed: stable, for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownPlan {
    /// Namespace and name.
    #[serde(flatten)]
    pub network: NetworkKey,
    /// The steps, in their order.
    pub steps: Vec<ShownStep>,
    /// Disks that grow meanwhile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<ShownDisks>,
    /// `converged`, `waits`, `needs a consent` or `is stuck`.
    pub end: &'static str,
    /// Why it does not go on, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<ShownRefusal>,
    /// What is allowed, and not wise, once all is as described.
    pub warnings: Vec<String>,
}

/// A step, from its record to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownStep {
    /// From 1.
    pub number: usize,
    /// What, in words.
    pub what: String,
    /// How many voters may be down, at the least moment of it; `null` = the chain stands meanwhile.
    pub spare_voters: Option<usize>,
    /// The consents it uses up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub consents: Vec<String>,
}

/// Why a plan ends before all is as described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownRefusal {
    /// The gate that is closed.
    pub gate: String,
    /// The step it stands before; empty = none, a node needs a person.
    pub before: String,
    /// Why it is closed.
    pub message: String,
    /// What opens it.
    pub advice: &'static str,
    /// The consent that opens it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consent: Option<String>,
}

/// Prints a plan; the exit code is for CI.
pub async fn run(args: &PlanArgs) -> Result<ExitCode, PlanError> {
    let mut new = read_network(&args.filename, args.network.as_deref())?;
    let shown = match &args.from {
        Some(from) => {
            let old = read_network(from, Some(&new.name_any()))?;
            plan_offline(&old, &new, [from, &args.filename].map(|path| path.display().to_string()))?
        }
        None => {
            let (client, namespace) = connect(&args.cluster).await?;
            let namespace = new.namespace().unwrap_or(namespace);
            new.metadata.namespace = Some(namespace.clone());
            let key = NetworkKey { namespace, name: new.name_any() };
            let operator = &args.cluster.operator_namespace;
            let view = fetch_membership(&client, operator, &key).await?;
            let file = args.filename.display().to_string();
            let new = validate(&new, &view.image_prefix, &file)?;
            let mut observed = view.observed;
            for (name, node) in &mut observed.nodes {
                describe(node, name, &new, view.in_force.get(name));
            }
            let mut policy = new.policy.clone();
            // Those of the file count as much as those that were given; used ones do not.
            policy.consents.extend(view.policy.consents);
            policy.submits = new.authority != Authority::External;
            let mut next = view.next_index;
            let name = |set: &str| next_name(&new.desired, set, &mut next);
            let played = plan(&new.membership, &observed, &policy, name);
            let disks = disks_that_grow(&view.disks, &new.disks().collect(), &observed, &file)?;
            ShownPlan { disks, ..show(key, &observed, &played) }
        }
    };
    match args.output {
        PlanOutput::Table => println!("{}", render_table(&shown)),
        PlanOutput::Json => println!("{}", serde_json::to_string_pretty(&shown)?),
        PlanOutput::Markdown => println!("{}", render_markdown(&shown)),
    }
    Ok(ExitCode::from(exit_code(&shown)))
}

fn exit_code(plan: &ShownPlan) -> u8 {
    match (&plan.refusal, plan.steps.is_empty() && plan.disks.is_empty()) {
        (Some(_), _) => REFUSED,
        (None, false) => STEPS,
        (None, true) => 0,
    }
}

fn read_network(path: &Path, name: Option<&str>) -> Result<BsnNetwork, PlanError> {
    let networks = read_networks(path)?;
    let found: Vec<String> = networks.iter().map(ResourceExt::name_any).collect();
    let mut fitting: Vec<BsnNetwork> = networks
        .into_iter()
        .filter(|network| name.is_none_or(|name| network.name_any() == name))
        .collect();
    match (fitting.len(), fitting.pop()) {
        (1, Some(network)) => Ok(network),
        _ => Err(PlanError::Which { file: path.display().to_string(), found }),
    }
}

fn validate(
    network: &BsnNetwork,
    image_prefix: &str,
    file: &str,
) -> Result<ValidatedNetwork, PlanError> {
    validate_network(network, image_prefix)
        .map_err(|why| PlanError::Invalid { file: file.to_owned(), why })
}

/// The plan from one file to another, for a network that is healthy and just as the first says.
fn plan_offline(
    old: &BsnNetwork,
    new: &BsnNetwork,
    files: [String; 2],
) -> Result<ShownPlan, PlanError> {
    let [old_file, new_file] = files;
    let (old, new_network) = (validate(old, "", &old_file)?, new);
    let new = validate(new_network, "", &new_file)?;
    if (&old.desired.chain_id, &old.desired.joins) != (&new.desired.chain_id, &new.desired.joins) {
        return Err(PlanError::AnotherChain(new_file));
    }
    let mut next = BTreeMap::new();
    let mut observed = healthy(&old, &mut next)?;
    for (name, node) in &mut observed.nodes {
        let in_force = InForce { inputs: old.inputs_hash(&node.set), app: old.app_hash() };
        describe(node, name, &new, Some(&in_force));
    }
    let mut policy = new.policy.clone();
    policy.submits = new.authority != Authority::External;
    let name = |set: &str| next_name(&new.desired, set, &mut next);
    let played = plan(&new.membership, &observed, &policy, name);
    let namespace = new_network.namespace().unwrap_or_else(|| "default".to_owned());
    let key = NetworkKey { namespace, name: new_network.name_any() };
    let sizes = [&old, &new].map(|network| network.disks().collect());
    let disks = disks_that_grow(&sizes[0], &sizes[1], &observed, &new_file)?;
    Ok(ShownPlan { disks, ..show(key, &observed, &played) })
}

/// A node as it stands to the new description. One of a set that is no longer described only goes.
fn describe(node: &mut Node, name: &NodeName, new: &ValidatedNetwork, in_force: Option<&InForce>) {
    node.held = new.holds.contains(name);
    if !new.membership.sets.iter().any(|set| set.name == node.set) {
        return;
    }
    let described = new.inputs_hash(&node.set);
    let switches = new.switches();
    if in_force.is_some_and(|runs| switches.is_some() && runs.app != switches) {
        node.inputs = Inputs::Switch;
    } else if in_force.is_some_and(|runs| runs.inputs != described) {
        node.inputs = Inputs::Pending;
        // What comes behind it, if anything, is the number of its last restart.
        let tail = node.described.split_once('-').map(|(_, number)| format!("-{number}"));
        node.described = described + &tail.unwrap_or_default();
    } else if in_force.is_some() {
        node.inputs = Inputs::Current;
    }
}

/// A network in which all works, and all is as described.
fn healthy(
    network: &ValidatedNetwork,
    next: &mut BTreeMap<String, u32>,
) -> Result<Observed, PlanError> {
    let mut nodes = BTreeMap::new();
    let mut members = BTreeMap::new();
    for (set, wanted) in network.desired.sets.iter().zip(&network.membership.sets) {
        next.insert(wanted.name.clone(), wanted.replicas);
        for index in 0..wanted.replicas {
            let name = network.desired.name.node(&set.name, index)?;
            if wanted.votes_on.contains(LEDGER) {
                let (power, node) = (wanted.power, Some(name.clone()));
                let member = Member { power, node, liveness: Liveness::Live, signed: 12 };
                members.insert(name.to_string(), member);
            }
            let described = network.inputs_hash(&wanted.name);
            nodes.insert(name, Node { described, ..Node::new(&wanted.name) });
        }
    }
    if network.desired.joins.is_some() {
        members.extend(others_voters(network));
    }
    let steady = Follower { lag: 0, steady_seconds: u64::MAX, connected: true };
    let ledger = Ledger {
        quorum: QUORUM,
        weights: true,
        members,
        agreed: true,
        age_seconds: 0,
        head: Head::Producing,
        height: 0,
        pending: None,
        followers: nodes.keys().map(|name| (name.clone(), steady)).collect(),
    };
    Ok(Observed {
        nodes,
        ledgers: [(LEDGER.to_owned(), ledger)].into(),
        begun: None,
        hub: bsn_core::membership::model::Hub::Current,
    })
}

/// How many voters of other owners a plan without a cluster takes for granted: as many as spare one.
const OTHERS: usize = 4;

/// Voters that stand for those of other owners. Nothing is known of them without a cluster: as many as make a chain with
/// a margin, each as strong as the strongest of ours, and all well.
fn others_voters(network: &ValidatedNetwork) -> impl Iterator<Item = (String, Member)> {
    let power = network.membership.sets.iter().map(|set| set.power).max().unwrap_or(1);
    (1..=OTHERS).map(move |number| {
        let member = Member { power, node: None, liveness: Liveness::Live, signed: 12 };
        (format!("other-owner-{number}"), member)
    })
}

/// The disks that grow with the new description, or why it would be refused.
fn disks_that_grow(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    observed: &Observed,
    file: &str,
) -> Result<Vec<ShownDisks>, PlanError> {
    compare_disks(old, new, observed)
        .map_err(|why| PlanError::Shrinks { file: file.to_owned(), why })
}

/// The name of a set's next node.
fn next_name(desired: &DesiredNetwork, set: &str, next: &mut BTreeMap<String, u32>) -> NodeName {
    let index = next.entry(set.to_owned()).or_insert(0);
    let name = NodeName::from_object(&format!("{}-{set}-{index}", desired.name));
    *index += 1;
    name
}

/// Puts what belongs together on one line: a change or a restart from its record to its end.
fn show(network: NetworkKey, observed: &Observed, plan: &Plan) -> ShownPlan {
    let names = names_of(observed);
    let mut steps: Vec<ShownStep> = Vec::new();
    let mut open = false;
    // One that was begun before is shown once it ends.
    if let Some(begun) = &observed.begun
        && !plan.steps.is_empty()
    {
        open = true;
        let what = begun_words(begun, &names);
        let what = format!("{what} (under way)");
        steps.push(ShownStep { number: 1, what, spare_voters: Some(usize::MAX), consents: vec![] });
    }
    for planned in &plan.steps {
        let ends = matches!(planned.step, Step::Settle | Step::Withdraw);
        let follows = ends || matches!(planned.step, Step::Send | Step::EndPod { .. });
        if !(open && follows) {
            let number = steps.len() + 1;
            // As the history will have it: with the node's name.
            let what = match &planned.made {
                Some(node) => format!("provision {node}"),
                None => step_words(&planned.step, &names),
            };
            steps.push(ShownStep { number, what, spare_voters: planned.spare, consents: vec![] });
            let begins = matches!(
                planned.step,
                Step::BeginChange { .. } | Step::BeginRestart { .. } | Step::BeginSwitch { .. }
            );
            // The nodes' turns in a switch have their own lines; it ends with the last.
            let turn = matches!(planned.step, Step::Halt { .. } | Step::Switch { .. });
            open = begins || turn;
        }
        if let Some(step) = steps.last_mut() {
            // `None` is the least: the chain stands.
            step.spare_voters = step.spare_voters.min(planned.spare);
            let consents: BTreeSet<&String> = planned.consents.iter().collect();
            step.consents.extend(consents.into_iter().cloned());
        }
        open &= !ends;
    }
    let refusal = refusal_of(&plan.end);
    let end = match (&plan.end, refusal) {
        (_, Some((class, _))) => class,
        (Decision::Step { .. }, None) => "is not at its end",
        (_, None) => "converged",
    };
    let refusal = refusal.map(|(_, refusal)| ShownRefusal {
        gate: refusal.gate.to_string(),
        before: text(&refusal.step, &names),
        message: text(&refusal.message, &names),
        advice: advice(refusal.gate),
        consent: refusal.consent.clone(),
    });
    let warnings = plan.warnings.iter().map(|(_, warning)| text(warning, &Names::new())).collect();
    ShownPlan { network, steps, disks: Vec::new(), end, refusal, warnings }
}

fn summary(plan: &ShownPlan) -> String {
    let least = plan.steps.iter().map(|step| step.spare_voters).min();
    match (plan.steps.len(), least) {
        (0, _) | (_, None) if plan.refusal.is_none() && plan.disks.is_empty() => {
            "Nothing to do: all is as described.".to_owned()
        }
        (0, _) | (_, None) if plan.refusal.is_none() => "No step is needed.".to_owned(),
        (0, _) | (_, None) => "No step can be taken.".to_owned(),
        (1, Some(least)) => format!("1 step; during it {}.", spare_words(least)),
        (count, Some(least)) => {
            format!("{count} steps; at the least moment {}.", spare_words(least))
        }
    }
}

fn render_table(plan: &ShownPlan) -> String {
    let mut out = format!("{}\n\n", plan.network);
    if !plan.steps.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["", "STEP", "VALIDATORS", "CONSENT"]);
        if let Some(column) = table.column_mut(0) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for step in &plan.steps {
            let consents = step.consents.join(", ");
            let spare = spare_words(step.spare_voters);
            table.add_row([step.number.to_string(), step.what.clone(), spare, consents]);
        }
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}\n", trimmed(&table));
    }
    let _ = writeln!(out, "{}", summary(plan));
    for disks in &plan.disks {
        let _ = writeln!(out, "{disks}.");
    }
    if let Some(refusal) = &plan.refusal {
        let _ = writeln!(
            out,
            "Then it {}{}.\nGate {}: {}\nWhat helps: {}.",
            plan.end,
            before(" ", &refusal.before),
            refusal.gate,
            refusal.message,
            refusal.advice
        );
        if let Some(consent) = &refusal.consent {
            let _ = writeln!(out, "To consent: {}", consent_command(&plan.network, consent));
        }
    }
    for warning in &plan.warnings {
        let _ = writeln!(out, "Warning: {warning}.");
    }
    out.trim_end().to_owned()
}

fn render_markdown(plan: &ShownPlan) -> String {
    let mut out = format!("### Plan for {}\n\n{}\n", plan.network, summary(plan));
    if !plan.steps.is_empty() {
        out.push_str("\n| | step | validators | consent |\n| ---: | --- | --- | --- |\n");
        for step in &plan.steps {
            let consents: Vec<String> =
                step.consents.iter().map(|consent| format!("`{consent}`")).collect();
            let spare = spare_words(step.spare_voters);
            let _ = writeln!(
                out,
                "| {} | {} | {spare} | {} |",
                step.number,
                step.what,
                consents.join(", ")
            );
        }
    }
    for disks in &plan.disks {
        let _ = writeln!(out, "\n{disks}.");
    }
    if let Some(refusal) = &plan.refusal {
        let _ = writeln!(
            out,
            "\n> **It {}**{}.\n> Gate `{}`: {}\n> What helps: {}.",
            plan.end,
            before(" ", &refusal.before),
            refusal.gate,
            refusal.message,
            refusal.advice
        );
        if let Some(consent) = &refusal.consent {
            let _ = writeln!(out, "> To consent: `{}`", consent_command(&plan.network, consent));
        }
    }
    for warning in &plan.warnings {
        let _ = writeln!(out, "\n> Warning: {warning}.");
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
