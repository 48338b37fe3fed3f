//! `kubectl bsn explain`: what is done now, or why nothing is.

use std::fmt::Write as _;

use bsn_core::membership::Decision;
use bsn_core::membership::model::{
    Begun, Engine, Fate, Inputs, Ledger, Liveness, Member, Observed, Progress, SILENT, Stand,
};
use comfy_table::{CellAlignment, Table, presets};
use kube::api::Api;

use super::live::{LiveError, fetch_membership};
use super::status::{StatusError, connect};
use super::steps::{
    Names, advice, before, begun_words, consent_command, names_of, refusal_of, step_words, text,
};
use super::table::trimmed;
use super::{GATE_PAGE, NetworkArgs, Output};
use crate::api::BsnNetwork;
use crate::apply::{ApiError, bounded};
use crate::view::{MembershipView, NetworkKey};

/// Why nothing was explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] StatusError),
    /// The API server.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// The operator.
    #[error("{0}")]
    Live(#[from] LiveError),
    /// Printing.
    #[error("cannot print: {0}")]
    Print(#[from] serde_json::Error),
}

/// Explains a network.
pub async fn run(args: &NetworkArgs) -> Result<(), ExplainError> {
    let (client, namespace) = connect(&args.cluster).await?;
    let key = NetworkKey { namespace, name: args.network.clone() };
    let networks = Api::<BsnNetwork>::namespaced(client.clone(), &key.namespace);
    bounded(|| format!("get BsnNetwork {key}"), networks.get_opt(&key.name))
        .await?
        .ok_or_else(|| StatusError::Missing(key.clone()))?;
    let view = fetch_membership(&client, &args.cluster.operator_namespace, &key).await?;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&view)?),
        Output::Table => println!("{}", render_explanation(&key, &view)),
    }
    Ok(())
}

/// An explanation for people.
pub fn render_explanation(key: &NetworkKey, view: &MembershipView) -> String {
    let names = names_of(&view.observed);
    let mut out = format!("{key}\n\n");
    // Writing to a String cannot fail.
    let _ = match (&view.decision, refusal_of(&view.decision)) {
        (Decision::Step { step, .. }, _) => {
            writeln!(out, "Next: {}.", step_words(step, &names))
        }
        (_, Some((class, refusal))) => {
            let _ = writeln!(
                out,
                "It {class}, for {}{}.\nGate {}: {}\nWhat helps: {}.",
                duration(view.for_seconds),
                before(", ", &text(&refusal.step, &names)),
                refusal.gate,
                text(&refusal.message, &names),
                advice(refusal.gate)
            );
            if let Some(consent) = &refusal.consent {
                let _ = writeln!(out, "To consent: {}", consent_command(key, consent));
            }
            writeln!(out, "More: {GATE_PAGE}#{}", refusal.gate)
        }
        _ => writeln!(out, "All is as described, for {}.", duration(view.for_seconds)),
    };
    if let Some(begun) = &view.observed.begun {
        let _ = writeln!(out, "Under way: {}.", begun_so_far(begun, &names));
    }
    if !view.policy.consents.is_empty() {
        let given: Vec<&str> = view.policy.consents.iter().map(String::as_str).collect();
        let _ = writeln!(out, "Consents given and not used: {}.", given.join(", "));
    }
    for wait in view.disruption.iter().flat_map(|disruption| &disruption.waits) {
        let _ = writeln!(out, "Besides, {}.", wait.why);
    }
    for warning in &view.warnings {
        let _ = writeln!(out, "Warning: {}.", text(warning, &names));
    }
    let _ = write!(out, "\n{}", nodes(&view.observed));
    out
}

/// How far the step under way is.
fn begun_so_far(begun: &Begun, names: &Names) -> String {
    let how = match begun {
        Begun::Change { fate, .. } => match fate {
            Fate::Recorded => "; recorded, and not sent",
            Fate::Sent => "; sent, and not settled",
            Fate::Confirmed => "; read back from the chain",
            Fate::Impossible => "; proved never to take effect",
        },
        Begun::Restart { progress, .. } => match progress {
            Progress::Untouched => "; recorded, and not begun",
            Progress::Ordered => "; its old pod still runs",
            Progress::Down => "; not back yet",
            Progress::Back => "; back",
        },
        // The nodes below say.
        Begun::Switch { .. } => "",
    };
    begun_words(begun, names) + how
}

/// Voters first, each with what is known of it and why.
fn nodes(observed: &Observed) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "NODE",
        "VOTES WITH",
        "COUNTS AS",
        "BECAUSE",
        "LAG",
        "RUNS",
    ]);
    for column in [1, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut shown = Vec::new();
    for ledger in observed.ledgers.values() {
        // Ours by name, not by key as the ledger has them; then those of others.
        let mut members: Vec<_> = ledger.members.iter().collect();
        members.sort_by_key(|(_, member)| (member.node.is_none(), member.node.as_ref()));
        for (key, member) in members {
            let name = member.node.as_ref().map_or(key.as_str(), |node| node.as_str());
            let (counts, because) = liveness(observed, member);
            shown.push(member.node.clone());
            table.add_row(row(name, &member.power.to_string(), counts, &because, observed, ledger));
        }
        for (name, node) in &observed.nodes {
            if shown.iter().any(|one| one.as_ref() == Some(name)) {
                continue;
            }
            let because = engine_words(node.engine).to_owned();
            table.add_row(row(name.as_str(), "-", "observer", &because, observed, ledger));
        }
    }
    trimmed(&table)
}

fn row(
    name: &str,
    power: &str,
    counts: &str,
    because: &str,
    observed: &Observed,
    ledger: &Ledger,
) -> [String; 6] {
    let node = observed.nodes.iter().find(|(node, _)| node.as_str() == name);
    let lag = ledger.followers.iter().find(|(node, _)| node.as_str() == name);
    let lag = lag.map(|(_, follower)| follower.lag).filter(|lag| *lag != SILENT);
    let runs = match node {
        Some((_, node)) if node.held => "held",
        Some((_, node)) if node.inputs == Inputs::Pending => "to be restarted",
        Some((_, node)) if node.stand == Stand::Halts => "halts at the block",
        Some((_, node)) if node.inputs == Inputs::Switch => "to be switched",
        Some(_) => "as described",
        None => "another owner's",
    };
    let lag = lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string());
    [name, power, counts, because, lag.as_str(), runs].map(str::to_owned)
}

fn liveness(observed: &Observed, member: &Member) -> (&'static str, String) {
    let node = member.node.as_ref().and_then(|node| observed.nodes.get(node));
    let engine = node.map_or(Engine::Unknown, |node| node.engine);
    let down = node.map_or(0, |node| node.down_seconds);
    match member.liveness {
        Liveness::Live => ("live", format!("signed {} of the last 12 blocks", member.signed)),
        Liveness::ProvedDown => (
            "down",
            format!(
                "{}, and the chain shows no sign of it, for {}",
                engine_words(engine),
                duration(down)
            ),
        ),
        Liveness::Unknown if node.is_some() => (
            "unknown",
            format!("{}, and not seen to sign, for {}", engine_words(engine), duration(down)),
        ),
        Liveness::Unknown => ("unknown", "not seen to sign".to_owned()),
    }
}

fn engine_words(engine: Engine) -> &'static str {
    match engine {
        Engine::Ready => "its engine is ready",
        Engine::NotReady => "its engine is not ready",
        Engine::Unknown => "its API server does not tell",
    }
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60) {
        (2.., _) => format!("{} h", seconds / 3600),
        (_, 2..) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
