//! What a join or a leave does, for people and for Git. Pure.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use super::super::table::trimmed;
use super::build::{Kind, NO_CA, NO_TOKEN, Side, Wish, build_objects, render_kubeconfig};
use super::plan::{Action, Planned};
use crate::cluster::rights::{Right, in_namespace};

/// A join for people.
pub fn render_join(wish: &Wish, planned: &[Planned], undo: &str) -> String {
    let Wish { name, endpoint, spec, .. } = wish;
    let mut out = format!("Joins the cluster {name} at {} to the hub.\n", endpoint.server);
    // Writing to a String cannot fail.
    if is_loopback(&endpoint.server) {
        let _ = writeln!(
            out,
            "\nWarning: the operator on the hub cannot reach {}. Name an address that it can: --server https://…",
            endpoint.server
        );
    }
    render_changes(&mut out, name, planned);
    let _ = write!(
        out,
        "\nThe operator may then do this in {}, and nothing else in the cluster:\n\n",
        spec.allowed_namespaces.join(", ")
    );
    let mut rights = Table::new();
    rights.load_style(presets::NOTHING).set_header(["  WHAT", "MAY", "FOR"]);
    for Right { resource, verbs, why, .. } in in_namespace() {
        rights.add_row([&format!("  {resource}"), &verbs.join(", "), &(*why).to_owned()]);
    }
    let _ = write!(out, "{}\n\nTo undo it: {undo}\n", trimmed(&rights));
    out
}

/// A leave for people.
pub fn render_leave(name: &str, planned: &[Planned], hub_only: bool) -> String {
    let mut out = format!("Takes the cluster {name} from the hub.\n");
    render_changes(&mut out, name, planned);
    let kept = if hub_only {
        "\nNothing is changed in the cluster itself: the operator's identity and its rights stay there until a leave \
         with --kubeconfig.\n"
    } else {
        "\nNamespaces stay, with all that is in them: nodes, disks and keys.\n"
    };
    out.push_str(kept);
    out
}

fn render_changes(out: &mut String, name: &str, planned: &[Planned]) {
    let mut sides = [(Side::Member, format!("In {name}")), (Side::Hub, "On the hub".to_owned())];
    // In the order in which it happens.
    if planned.first().is_some_and(|first| first.key.side == Side::Hub) {
        sides.reverse();
    }
    for (side, title) in sides {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for Planned { key, action, note, .. } in planned.iter().filter(|one| one.key.side == side) {
            let word = match action {
                Action::Make => "make",
                Action::Change => "change",
                Action::Keep => "keep",
                Action::Remove => "remove",
            };
            table.add_row([&format!("  {word}"), &key.to_string(), note]);
        }
        if !table.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\n{title}\n{}\n", trimmed(&table));
        }
    }
}

/// Only the machine itself answers there.
fn is_loopback(server: &str) -> bool {
    let host = server.trim_start_matches("https://");
    ["127.", "localhost", "[::1]", "0.0.0.0"].iter().any(|prefix| host.starts_with(prefix))
}

/// The objects of a join as YAML, for Git. The token is not in it: only the member makes that.
pub fn render_yaml(wish: &Wish) -> String {
    let ca = wish.endpoint.ca.as_deref().unwrap_or(NO_CA);
    let mut out = String::new();
    let mut side = None;
    for one in build_objects(wish, &render_kubeconfig(wish, NO_TOKEN, ca)) {
        out.push_str("---\n");
        if side != Some(one.key.side) {
            let place = match one.key.side {
                Side::Member => format!("In the cluster {}", wish.name),
                Side::Hub => "On the hub".to_owned(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# {place}:");
            side = Some(one.key.side);
        }
        let mut object = one.object;
        if (one.key.side, one.key.kind) == (Side::Hub, Kind::Secret) {
            let reference = &wish.spec.kubeconfig_secret_ref;
            let text = render_kubeconfig(wish, NO_TOKEN, ca);
            object["stringData"] = serde_json::json!({ &reference.key: text });
            if let Some(object) = object.as_object_mut() {
                object.remove("data");
            }
            let _ = write!(
                out,
                "# Put the token in, and keep this out of Git unless it is encrypted. In the cluster {}:\n\
                 #   kubectl -n {} get secret {} -o jsonpath='{{.data.token}}' | base64 -d\n",
                wish.name,
                wish.operator_namespace,
                wish.token_name()
            );
        }
        let yaml = serde_saphyr::to_string(&object).unwrap_or_default();
        let _ = writeln!(out, "{}", yaml.trim_end());
    }
    out
}
