//! `kubectl bsn history`: the steps that were taken.

use bsn_core::names::{NameError, NetworkName};
use bsn_core::steps::{HISTORY_KEY, Outcome, PastStep};
use comfy_table::{CellAlignment, Table, presets};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;

use super::status::{StatusError, connect};
use super::table::trimmed;
use super::{NetworkArgs, Output};
use crate::apply::{ApiError, read};

/// Why nothing was shown.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] StatusError),
    /// The name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The API server.
    #[error("{0}")]
    Api(#[from] ApiError),
    /// Not what the operator writes.
    #[error("the history is not understood ({0}); use the kubectl-bsn of the operator's version")]
    Unreadable(#[from] serde_json::Error),
}

/// Shows the history.
pub async fn run(args: &NetworkArgs) -> Result<(), HistoryError> {
    let (client, namespace) = connect(&args.cluster).await?;
    let name = NetworkName::parse(&args.network)?.history();
    let map = read::<ConfigMap>(&client, &namespace, &name).await?;
    let text = map.as_ref().and_then(|map| map.data.as_ref()?.get(HISTORY_KEY));
    let steps: Vec<PastStep> =
        text.map(|text| serde_json::from_str(text)).transpose()?.unwrap_or_default();
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&steps)?),
        Output::Table => println!("{}", render_history(&steps)),
    }
    Ok(())
}

/// The steps for people, oldest first.
pub fn render_history(steps: &[PastStep]) -> String {
    if steps.is_empty() {
        return "No step was taken since the chain was formed.".to_owned();
    }
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["NUMBER", "STEP", "BEGUN", "TO SEND", "TO END", "OUTCOME", "HEIGHT"]);
    for column in [0, 3, 4, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for step in steps {
        let numbered = step.number.is_some();
        let took = |from: Timestamp, to: Timestamp| seconds(to.duration_since(from));
        table.add_row([
            or_none(step.number.map(|number| number.to_string())),
            step.what.clone(),
            step.begun_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            or_none(step.sent_at.map(|sent| took(step.begun_at, sent))),
            or_none(numbered.then(|| took(step.sent_at.unwrap_or(step.begun_at), step.ended_at))),
            outcome(step.outcome).to_owned(),
            or_none(step.height.map(|height| height.to_string())),
        ]);
    }
    trimmed(&table)
}

fn seconds(duration: SignedDuration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Withdrawn => "withdrawn",
        Outcome::NeverTookEffect => "never took effect",
        Outcome::Abandoned => "abandoned",
        Outcome::NotBack => "node not back",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_with_and_without_a_record_of_their_own() {
        let at = |second: i64| Timestamp::from_second(1_767_225_600 + second).unwrap();
        let made = PastStep {
            number: None,
            what: "provision city-ledger-a-4".into(),
            outcome: Outcome::Done,
            begun_at: at(0),
            sent_at: None,
            ended_at: at(0),
            height: None,
        };
        let added = PastStep {
            number: Some(12),
            what: "add city-ledger-a-4 as a voter with power 10".into(),
            begun_at: at(40),
            sent_at: Some(at(41)),
            ended_at: at(44),
            height: Some(4711),
            ..made.clone()
        };
        let given_up = PastStep {
            number: Some(13),
            what: "restart city-ledger-a-0".into(),
            outcome: Outcome::Withdrawn,
            sent_at: None,
            height: None,
            ..added.clone()
        };
        insta::assert_snapshot!(render_history(&[made, added, given_up]));
        assert!(render_history(&[]).starts_with("No step"));
    }
}
