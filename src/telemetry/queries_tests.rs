//! The chart's alerts and dashboard ask for metrics. One that is not emitted, or not with these labels, gives no result:
//! the alert never fires, and nobody hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use promql_parser::label::{MatchOp, Matchers};
use promql_parser::parser::VectorMatchCardinality::{ManyToOne, OneToMany};
use promql_parser::parser::{self, AggregateExpr, BinaryExpr, Call, Expr, LabelModifier};
use serde::Deserialize;
use serde_json::Value;

use super::definitions;
use crate::api::conditions::NETWORK_TYPES;

/// The one label whose values are words of the API.
const CONDITION: &str = "condition";

const ALERTS: &str = include_str!("../../helm/bsn-operator/files/alerts.yaml");
const DASHBOARD: &str = include_str!("../../helm/bsn-operator/files/dashboard.json");

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for")]
    wait: String,
    labels: Severity,
    annotations: Annotations,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Severity {
    severity: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    summary: String,
    description: String,
    runbook: String,
}

fn rules() -> Vec<Rule> {
    let rules: Rules = serde_saphyr::from_str(ALERTS).unwrap();
    rules.groups.into_iter().flat_map(|group| group.rules).collect()
}

/// Keys of a result's labels; `None` = the result is a number or a text.
type Keys = Option<BTreeSet<String>>;

/// What can be asked for: series, and keys of their labels.
fn series() -> BTreeMap<String, BTreeSet<String>> {
    let names = definitions::ALL.iter().flat_map(|of| {
        of.series().into_iter().map(move |name| {
            let bucket = name.ends_with("_bucket").then_some("le");
            let keys = of.labels.iter().copied().chain(bucket);
            (name, keys.map(str::to_owned).collect())
        })
    });
    names.collect()
}

/// Checks an expression, and tells what labels its results have.
fn check(query: &str) -> Result<Keys, String> {
    // Grafana puts a duration in its place.
    let query = query.replace("$__rate_interval", "5m");
    let parsed = parser::parse(&query)?;
    keys_of(&parsed).map_err(|why| format!("{why} in {query}"))
}

fn keys_of(expr: &Expr) -> Result<Keys, String> {
    match expr {
        Expr::VectorSelector(vector) => selected(vector.name.as_deref(), &vector.matchers),
        Expr::MatrixSelector(matrix) => selected(matrix.vs.name.as_deref(), &matrix.vs.matchers),
        Expr::Aggregate(aggregate) => aggregated(aggregate),
        Expr::Binary(binary) => combined(binary),
        Expr::Call(call) => called(call),
        Expr::Paren(inner) => keys_of(&inner.expr),
        Expr::Unary(inner) => keys_of(&inner.expr),
        Expr::Subquery(inner) => keys_of(&inner.expr),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(None),
        Expr::Extension(_) => Err("an extension".to_owned()),
    }
}

fn selected(name: Option<&str>, matchers: &Matchers) -> Result<Keys, String> {
    let name = name.ok_or("a selector without a metric")?;
    let keys = series().remove(name).ok_or_else(|| format!("{name} is not emitted"))?;
    let alternatives = matchers.or_matchers.iter().flatten();
    for matcher in matchers.matchers.iter().chain(alternatives) {
        has(&keys, &matcher.name)?;
        let words: Vec<&str> = match (&matcher.op, matcher.name.as_str()) {
            (MatchOp::Equal | MatchOp::NotEqual, CONDITION) => vec![&matcher.value],
            (_, CONDITION) => matcher.value.split('|').collect(),
            _ => continue,
        };
        if let Some(unknown) = words.into_iter().find(|word| !NETWORK_TYPES.contains(word)) {
            return Err(format!("there is no condition {unknown}"));
        }
    }
    Ok(Some(keys))
}

fn aggregated(aggregate: &AggregateExpr) -> Result<Keys, String> {
    let keys = keys_of(&aggregate.expr)?.ok_or("an aggregate of a number")?;
    let named = named(&keys, aggregate.modifier.as_ref())?;
    Ok(Some(match &aggregate.modifier {
        Some(LabelModifier::Exclude(_)) => &keys - &named,
        Some(LabelModifier::Include(_)) | None => named,
    }))
}

fn combined(binary: &BinaryExpr) -> Result<Keys, String> {
    let (left, right) = match (keys_of(&binary.lhs)?, keys_of(&binary.rhs)?) {
        (Some(left), Some(right)) => (left, right),
        (left, right) => return Ok(left.or(right)),
    };
    let matching = binary.modifier.as_ref().and_then(|modifier| modifier.matching.as_ref());
    let matched = |keys: &BTreeSet<String>| {
        let named = named(keys, matching)?;
        Ok::<_, String>(match matching {
            Some(LabelModifier::Include(_)) => named,
            Some(LabelModifier::Exclude(_)) | None => keys - &named,
        })
    };
    let on = matched(&left)?;
    if on != matched(&right)? {
        return Err(format!("{left:?} never match {right:?}"));
    }
    Ok(Some(match binary.modifier.as_ref().map(|modifier| &modifier.card) {
        Some(OneToMany(_)) => right,
        Some(ManyToOne(_)) => left,
        _ if binary.op.is_set_operator() => left,
        _ => on,
    }))
}

fn called(call: &Call) -> Result<Keys, String> {
    let mut keys = None;
    for argument in &call.args.args {
        keys = keys.or(keys_of(argument)?);
    }
    Ok(match (call.func.name, keys) {
        ("absent", Some(_)) => Some(BTreeSet::new()),
        ("histogram_quantile", Some(mut keys)) => {
            has(&keys, "le")?;
            keys.remove("le");
            Some(keys)
        }
        (_, keys) => keys,
    })
}

/// The labels that `by`, `without`, `on` or `ignoring` names.
fn named(
    keys: &BTreeSet<String>,
    modifier: Option<&LabelModifier>,
) -> Result<BTreeSet<String>, String> {
    let labels = modifier.into_iter().flat_map(|modifier| modifier.labels().labels.clone());
    labels.map(|label| has(keys, &label).map(|()| label)).collect()
}

fn has(keys: &BTreeSet<String>, key: &str) -> Result<(), String> {
    if keys.contains(key) { Ok(()) } else { Err(format!("{key} is none of {keys:?}")) }
}

/// The words that follow `before` in a text.
fn words_after<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let parts = text.split(before).skip(1).map(str::trim_start);
    parts.map(|part| part.split(|c| !is_part(c)).next().unwrap_or_default()).collect()
}

#[test]
fn alerts_ask_for_what_is_emitted() {
    for Rule { alert, expr, wait, labels, annotations } in rules() {
        let keys = check(&expr).unwrap_or_else(|why| panic!("{alert}: {why}")).unwrap();
        for text in [&annotations.summary, &annotations.description] {
            for label in words_after(text, "$labels.") {
                has(&keys, label).unwrap_or_else(|why| panic!("{alert}: {why}"));
            }
        }
        assert!(["critical", "warning"].contains(&labels.severity.as_str()), "{alert}");
        // One bad scrape is no news.
        assert!(wait.ends_with('m'), "{alert}");
    }
}

#[test]
fn the_dashboard_asks_for_what_is_emitted() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut asked = 0;
    for target in targets {
        let keys = check(target["expr"].as_str().unwrap()).unwrap().unwrap();
        for label in words_after(target["legendFormat"].as_str().unwrap(), "{{") {
            has(&keys, label).unwrap_or_else(|why| panic!("{why}: {target}"));
        }
        asked += 1;
    }
    assert!(asked > 20, "{asked} queries");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(query) = variable["query"]["query"].as_str() else { continue };
        let inner = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (selector, label) = inner.rsplit_once(", ").unwrap();
        has(&check(selector).unwrap().unwrap(), label).unwrap();
    }
}

/// By what a heading is reached: `## A node: so` by `#a-node-so`.
fn anchor(heading: &str) -> String {
    let title = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn the_page_that_an_alert_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for rule in rules() {
        let runbook = &rule.annotations.runbook;
        let (file, part) = runbook.split_once('#').unwrap_or((runbook, ""));
        let page = std::fs::read_to_string(root.join(file)).unwrap();
        let mut headings = page.lines().filter(|line| line.starts_with('#'));
        let found = part.is_empty() || headings.any(|heading| anchor(heading) == part);
        assert!(found, "{}: {runbook}", rule.alert);
    }
}

#[test]
fn a_query_that_can_have_no_result_is_noticed() {
    for (query, why) in [
        ("bsn_chain_alive == 0", "bsn_chain_alive is not emitted"),
        ("bsn_reconciles > 0", "bsn_reconciles is not emitted"),
        (r#"bsn_chain_live{cluster="a"}"#, "cluster is none of"),
        ("max by (network, node) (bsn_chain_live)", "node is none of"),
        (r#"bsn_network_condition{condition="Staled"} == 1"#, "no condition Staled"),
        (r#"bsn_network_condition{condition=~"Ready|Staled"} == 1"#, "no condition Staled"),
        ("bsn_node_in_sync == 0 and bsn_chain_live", "never match"),
        ("bsn_node_in_sync == 0 and on (cluster) bsn_chain_live", "cluster is none of"),
        ("bsn_node_in_sync unless max by (network) (bsn_chain_live)", "never match"),
        ("histogram_quantile(0.9, rate(bsn_reconcile_duration_seconds_sum[5m]))", "le is none of"),
    ] {
        let found = check(query).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
}

#[test]
fn a_scrape_leaves_the_namespace_of_a_network_as_it_is() {
    let monitor = include_str!("../../helm/bsn-operator/templates/servicemonitor.yaml");
    assert!(monitor.contains("honorLabels: true"));
}
