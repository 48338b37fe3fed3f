//! A network's status for people.

use std::fmt::Write as _;

use bsn_core::evidence::SIGNED_WINDOW;
use comfy_table::{CellAlignment, Table, presets};
use jiff::{SignedDuration, Timestamp};

use super::status::NetworkStatus;
use crate::cluster::registry::HUB;
use crate::evidence::route::Via;
use crate::view::{ForeignView, Liveness, NetworkView, NodeView};

/// What stands where nothing is known.
const UNKNOWN: &str = "-";

/// Writes a network's status as text.
pub fn render_status(status: &NetworkStatus, now: Timestamp) -> String {
    let mut out = format!("{}  chain {}\n\n", status.key, status.chain_id);
    let mut conditions = Table::new();
    conditions.load_style(presets::NOTHING).set_header([
        "CONDITION",
        "STATUS",
        "REASON",
        "MESSAGE",
    ]);
    for condition in &status.conditions {
        conditions.add_row([
            &condition.type_,
            &condition.status,
            &condition.reason,
            &condition.message,
        ]);
    }
    let _ = match status.conditions.as_slice() {
        [] => writeln!(out, "No conditions yet: the operator has not looked at this network."),
        _ => writeln!(out, "{}", trimmed(&conditions)),
    };
    // Writing to a String cannot fail.
    let _ = match (&status.live, &status.live_problem) {
        (Some(view), _) => {
            write!(out, "\n{}\n\n{}{}", summary(view), nodes(view, now), foreign(&view.foreign))
        }
        (None, Some(why)) => write!(out, "\nNo live numbers: {why}"),
        (None, None) => Ok(()),
    };
    out
}

fn summary(view: &NetworkView) -> String {
    if !view.formed {
        return "The chain is being formed: no node has started yet.".to_owned();
    }
    let word = match view.liveness {
        Liveness::Live => "live",
        Liveness::Standing => "standing still",
        Liveness::Silent => "not known, no engine answers",
        Liveness::Frozen => "frozen by a block that cannot be applied",
        Liveness::Unknown => "not watched for long enough to say",
    };
    let mut text = format!("Chain: {word}; height {}", view.head);
    if view.head > 0 {
        let _ = write!(text, ", {:.1} s ago", view.head_age_seconds);
    }
    if let Some(interval) = view.block_interval_seconds {
        let _ = write!(text, ", a block every {interval:.1} s");
    }
    let down = match view.margin {
        0 => "no validator may be down".to_owned(),
        1 => "1 validator may be down".to_owned(),
        more => format!("{more} validators may be down"),
    };
    let _ = write!(
        text,
        "\nQuorum: {} of {} voting power; {down}",
        view.quorum_power, view.total_power
    );
    text
}

/// Columns that are there only if they tell something.
#[derive(Clone, Copy)]
struct Shows {
    cluster: bool,
    via: bool,
}

fn nodes(view: &NetworkView, now: Timestamp) -> String {
    let shows = Shows {
        cluster: view.nodes.iter().any(|node| node.cluster != HUB),
        // By their addresses is how it should be, and how it always is on the hub.
        via: view.nodes.iter().any(|node| node.via == Some(Via::ApiServer)),
    };
    let mut header = vec![
        "NODE",
        "ROLE",
        "HEIGHT",
        "LAG",
        "IN SYNC",
        "PEERS",
        "POWER",
        "SIGNED",
        "CERTIFICATE",
        "SEEN",
    ];
    header.extend(shows.cluster.then_some("CLUSTER"));
    header.extend(shows.via.then_some("VIA"));
    header.push("NOTE");
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in [2, 3, 5, 6, 7, 8, 9] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for node in &view.nodes {
        table.add_row(row(node, now, shows));
    }
    trimmed(&table)
}

/// Voters of other owners. Only their signatures are seen from here.
fn foreign(voters: &[ForeignView]) -> String {
    if voters.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    let header = ["VALIDATOR OF ANOTHER OWNER", "POWER", "SIGNED", "SEEN TO SIGN"];
    table.load_style(presets::NOTHING).set_header(header);
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for voter in voters {
        table.add_row([
            voter.address.clone(),
            voter.voting_power.to_string(),
            format!("{}/{SIGNED_WINDOW}", voter.signed),
            if voter.signs { "yes" } else { "no" }.to_owned(),
        ]);
    }
    format!("\n\n{}", trimmed(&table))
}

fn row(node: &NodeView, now: Timestamp, shows: Shows) -> Vec<String> {
    let number = |value: Option<u64>| value.map_or_else(|| UNKNOWN.to_owned(), |n| n.to_string());
    let left = node
        .certificate_ends
        .as_ref()
        .and_then(|end| end.parse::<Timestamp>().ok())
        .map(|end| time_left(end.duration_since(now)));
    let seen = node.evidence_age_seconds.map(|age| format!("{age:.0}s"));
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
    let cluster = if node.cluster == HUB { "hub" } else { &node.cluster };
    let via = node.via.map(|via| match via {
        Via::Direct => "address".to_owned(),
        Via::ApiServer => "API server".to_owned(),
    });
    let mut row = vec![
        node.name.clone(),
        node.role.clone(),
        number(node.height),
        number(node.lag),
        if node.in_sync { "yes" } else { "no" }.to_owned(),
        number(node.peers),
        number(node.voting_power),
        or_unknown(node.signed.map(|signed| format!("{signed}/{SIGNED_WINDOW}"))),
        or_unknown(left),
        or_unknown(seen),
    ];
    row.extend(shows.cluster.then(|| cluster.to_owned()));
    row.extend(shows.via.then(|| or_unknown(via)));
    row.push(node.problem.clone().unwrap_or_default());
    row
}

fn time_left(left: SignedDuration) -> String {
    match (left.as_hours() / 24, left.as_hours(), left.as_mins()) {
        _ if left.is_negative() || left.is_zero() => "ended".to_owned(),
        (days @ 2.., ..) => format!("{days}d"),
        (_, hours @ 2.., _) => format!("{hours}h"),
        (.., minutes) => format!("{minutes}m"),
    }
}

/// A table without spaces at line ends.
pub(super) fn trimmed(table: &Table) -> String {
    // The first column is padded as well.
    let line = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::{READY, Reason, State, merge};
    use crate::view::NetworkKey;

    fn node(name: &str, height: Option<u64>, problem: Option<&str>) -> NodeView {
        NodeView {
            name: name.into(),
            cluster: HUB.into(),
            role: "Validator".into(),
            via: Some(Via::Direct),
            evidence_age_seconds: height.map(|_| 0.7),
            problem: problem.map(Into::into),
            height,
            lag: height.map(|height| 120 - height),
            in_sync: height.is_some(),
            peers: height.map(|_| 3),
            voting_power: height.map(|_| 1000),
            version: None,
            signed: height.map(|_| 12),
            template_hash: None,
            guard: None,
            certificate_ends: height.map(|_| "2026-04-01T00:00:00Z".into()),
            agents: None,
        }
    }

    fn status(live: Option<NetworkView>) -> NetworkStatus {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let state = State::new(READY, true, Reason::AsDescribed, "all 2 nodes follow the chain");
        NetworkStatus {
            key: NetworkKey { namespace: "ledger".into(), name: "city-ledger".into() },
            chain_id: "city-ledger-1".into(),
            conditions: merge(&[], &[state], Some(1), now),
            live_problem: live.is_none().then(|| "no operator leads".to_owned()),
            live,
        }
    }

    fn view(nodes: Vec<NodeView>) -> NetworkView {
        NetworkView {
            chain_id: "city-ledger-1".into(),
            formed: true,
            head: 120,
            liveness: Liveness::Live,
            head_age_seconds: 0.42,
            block_interval_seconds: Some(1.04),
            quorum_power: 2667,
            total_power: 4000,
            margin: 1,
            foreign: Vec::new(),
            margin_left: Some(1),
            nodes,
        }
    }

    #[test]
    fn a_network_with_a_silent_node() {
        let view = view(vec![
            node("city-ledger-hangzhou-0", Some(120), None),
            node("city-ledger-hangzhou-1", None, Some("its gateway did not answer within 2 s")),
        ]);
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        insta::assert_snapshot!(render_status(&status(Some(view)), now));
    }

    #[test]
    fn clusters_are_shown_once_a_node_is_outside_the_hub() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let far = NodeView {
            cluster: "beijing".into(),
            ..node("city-ledger-beijing-0", Some(119), None)
        };
        let view = view(vec![far, node("city-ledger-hangzhou-0", Some(120), None)]);
        insta::assert_snapshot!(nodes(&view, now));
    }

    #[test]
    fn the_way_to_a_node_is_shown_once_one_is_not_its_address() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let far = NodeView {
            via: Some(Via::ApiServer),
            ..node("city-ledger-beijing-0", Some(119), None)
        };
        let view = view(vec![far, node("city-ledger-hangzhou-0", Some(120), None)]);
        insta::assert_snapshot!(nodes(&view, now));
    }

    #[test]
    fn validators_of_other_owners_are_shown_by_the_address_of_their_key() {
        let voter = |address: &str, signs| ForeignView {
            address: address.repeat(20),
            voting_power: 1000,
            signed: if signs { 12 } else { 3 },
            signs,
        };
        insta::assert_snapshot!(foreign(&[voter("AB", true), voter("CD", false)]));
        assert_eq!(foreign(&[]), "");
    }

    #[test]
    fn conditions_are_shown_without_live_numbers() {
        let text = render_status(&status(None), "2026-01-01T00:00:00Z".parse().unwrap());
        assert!(
            text.contains("AsDescribed") && text.contains("No live numbers: no operator leads"),
            "{text}"
        );
    }

    #[test]
    fn time_left_is_short_and_never_says_more_than_there_is() {
        for (seconds, text) in [
            (-1, "ended"),
            (59, "0m"),
            (7199, "119m"),
            (7200, "2h"),
            (180_000, "2d"),
            (172_799, "47h"),
        ] {
            assert_eq!(time_left(SignedDuration::from_secs(seconds)), text);
        }
    }
}
