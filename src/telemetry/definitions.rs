//! What each metric is, once: its name, type, unit, labels and help. [`super::metrics`] fills them, `docs/metrics.md`
//! lists them, and the chart's alerts and dashboard are checked against them.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// Stands before every metric's name.
pub const PREFIX: &str = "bsn";

/// What a metric is.
#[derive(Debug)]
pub struct Definition {
    /// Its name without prefix, unit and what the type adds.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricType,
    /// Its unit; `None` = it counts, or says yes or no.
    pub unit: Option<Unit>,
    /// Keys of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// For people, without the full stop that is put after it.
    pub help: &'static str,
}

impl Definition {
    /// The name under which it is described: with prefix and unit.
    pub fn family(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!("_{}", unit.as_str()));
        format!("{PREFIX}_{}{}", self.name, unit.unwrap_or_default())
    }

    /// The names under which its numbers can be asked for.
    pub fn series(&self) -> Vec<String> {
        let suffixes: &[&str] = match self.kind {
            MetricType::Counter => &["_total"],
            MetricType::Histogram => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let family = self.family();
        suffixes.iter().map(|suffix| format!("{family}{suffix}")).collect()
    }
}

macro_rules! definitions {
    ($($name:ident = $kind:ident, $metric:literal, $unit:expr, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $name: Definition = Definition {
                name: $metric,
                kind: MetricType::$kind,
                unit: $unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// Every metric there is.
        pub static ALL: &[&Definition] = &[$(&$name),*];
    };
}

// Labels name networks, nodes and clusters, or are one of a few words: so many series there are, and no more.
definitions! {
    CHAIN_HEIGHT = Gauge, "chain_height", None, ["namespace", "network"],
        "Highest block any node reported";
    CHAIN_LIVE = Gauge, "chain_live", None, ["namespace", "network"],
        "1 = blocks advance, 0 = they do not; absent = not known";
    CHAIN_HEAD_AGE = Gauge, "chain_head_age", Some(Unit::Seconds), ["namespace", "network"],
        "Time since the head advanced";
    CHAIN_BLOCK_INTERVAL = Gauge, "chain_block_interval", Some(Unit::Seconds), ["namespace", "network"],
        "Average time between blocks";
    CHAIN_MARGIN = Gauge, "chain_margin", None, ["namespace", "network"],
        "Validators that may be down before the chain stops, if all others are up";
    CHAIN_MARGIN_LEFT = Gauge, "chain_margin_left", None, ["namespace", "network"],
        "Validators that may still be lost before the chain stops, besides those that are not seen to sign; absent = not known";
    NETWORK_CONDITION = Gauge, "network_condition", None, ["namespace", "network", "condition"],
        "Conditions in the status of the BsnNetwork: 1 = true, 0 = false; absent = unknown";

    NODE_HEIGHT = Gauge, "node_height", None, ["namespace", "network", "node"],
        "Newest block of the node";
    NODE_IN_SYNC = Gauge, "node_in_sync", None, ["namespace", "network", "node"],
        "1 = the node follows the head, 0 = it does not; absent = its engine does not answer";
    NODE_SIGNED_BLOCKS = Gauge, "node_signed_blocks", None, ["namespace", "network", "node"],
        "Of the newest 12 final blocks, those it signed, as others see it; absent = it does not vote, or nobody could be asked";
    NODE_PEERS = Gauge, "node_peers", None, ["namespace", "network", "node"],
        "Connected peers";
    NODE_VOTING_POWER = Gauge, "node_voting_power", None, ["namespace", "network", "node"],
        "Voting power; 0 = does not vote";
    NODE_EVIDENCE_AGE = Gauge, "node_evidence_age", Some(Unit::Seconds), ["namespace", "network", "node"],
        "Time since the node's gateway answered; absent = it never has";
    NODE_CERTIFICATE_EXPIRY = Gauge, "node_certificate_expiry_timestamp", Some(Unit::Seconds), ["namespace", "network", "node"],
        "When the certificate that the node serves ends (Unix time)";
    NODE_AGENT_VERSIONS_BEHIND = Gauge, "node_agent_versions_behind", None, ["namespace", "network", "node"],
        "Minor versions by which the guard and the gateway of the node are older than the operator";

    CLUSTER_USABLE = Gauge, "cluster_usable", None, ["cluster"],
        "1 = the cluster answers and the operator may do what it needs";
    CLUSTER_LAST_CONTACT_AGE = Gauge, "cluster_last_contact_age", Some(Unit::Seconds), ["cluster"],
        "Time since the cluster's API server answered";
    DISRUPTION_SHARE = Gauge, "disruption_share", None, ["namespace", "network", "cluster"],
        "Validators of the network that may be evicted in the cluster at once, as recorded";

    LEADER = Gauge, "leader", None, [],
        "1 while this replica leads";
    STEPS = Counter, "steps", None, ["step"],
        "Steps of the planner that were taken";
    STEP_REACTION = Histogram, "step_reaction", Some(Unit::Seconds), [],
        "From the block that proves a change of members to its step's end, by the voters' clocks";
    RECONCILES = Counter, "reconciles", None, ["controller", "outcome"],
        "Passes of the controllers";
    RECONCILE_ERRORS = Counter, "reconcile_errors", None, ["controller", "category"],
        "Passes that failed, by kind of error";
    RECONCILE_DURATION = Histogram, "reconcile_duration", Some(Unit::Seconds), ["controller"],
        "Duration of the controllers' passes";
    API_REQUESTS = Counter, "api_requests", None, ["verb", "resource", "code"],
        "Requests to the Kubernetes API; code 0 = no answer";
    EVIDENCE_REQUESTS = Counter, "evidence_requests", None, ["outcome"],
        "Questions to the gateways of nodes";
}
