//! What was found of a cluster becomes its conditions. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::identity::Other;
use super::image::{Proof, about, image_state};
use super::kubeconfig::KubeconfigFault;
use super::probe::{NamespaceRights, PROBE_DEADLINE, ProbeFault};
use crate::api::conditions::{
    AGENT_IMAGE_AVAILABLE, REACHABLE, READY, RECONCILING, RIGHTS_SUFFICIENT, Reason, STALLED,
    State, find, merge,
};
use crate::api::{BsnClusterStatus, ClusterImage, KubeconfigSecretRef};
use crate::controller::network::report::state_of;

/// How often in a row a cluster may fail to answer before it counts as unreachable: one lost packet is no news.
const TOLERATED: u32 = 1;

/// How the operator is connected to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Nothing is known yet.
    Connecting,
    /// There is no kubeconfig.
    NoKubeconfig(NoKubeconfig),
    /// The kubeconfig is not accepted.
    Refused(KubeconfigFault),
    /// It cannot be used now.
    Down(ProbeFault),
    /// It answers, and is another cluster than it was.
    Another(Box<Another>),
    /// It answers, and is known by another name already.
    Twice(Other),
    /// It answers; this is its version.
    Up(String),
}

/// Two clusters of one name, by the uids of their `kube-system`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Another {
    /// What it was at first.
    pub before: String,
    /// What answers now.
    pub now: String,
}

/// Why there is no kubeconfig.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKubeconfig {
    /// The Secret does not exist.
    Secret,
    /// It has no such entry.
    Key,
}

impl Connection {
    /// The connection after a round that found `found`, the last `failures` ones included in a row having failed.
    #[must_use]
    pub fn after(&self, found: Self, failures: u32) -> Self {
        match (&found, self) {
            (Self::Down(fault), Self::Up(_)) if fault.may_pass() && failures <= TOLERATED => {
                self.clone()
            }
            _ => found,
        }
    }
}

/// What is known of a cluster.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where its kubeconfig should be.
    pub secret: &'a KubeconfigSecretRef,
    /// In which namespace: the operator's.
    pub secret_namespace: &'a str,
    /// Its address, from the kubeconfig.
    pub server: &'a str,
    /// The connection.
    pub connection: &'a Connection,
    /// What the operator may do, by allowed namespace; absent = not asked yet.
    pub rights: &'a BTreeMap<String, Option<NamespaceRights>>,
    /// All caches of it are filled.
    pub filled: bool,
    /// Image of the agents there.
    pub image: &'a ClusterImage,
    /// What is known of that image, by namespace; absent = nothing.
    pub proofs: &'a BTreeMap<String, Proof>,
}

/// One fact that keeps a cluster from being used.
struct Obstacle {
    reason: Reason,
    message: String,
    /// A person must help.
    lasting: bool,
}

/// Whether a cluster can be used, and if not, why. What is wrong in one namespace says nothing of the others.
pub fn standing(known: &Known<'_>) -> Result<(), (Reason, String)> {
    reach(known).map_or(Ok(()), |obstacle| Err((obstacle.reason, obstacle.message)))
}

/// Why a namespace, whose caches are not filled, cannot be used.
pub fn why_not_in(known: &Known<'_>, namespace: &str) -> (Reason, String) {
    let rights = known.rights.get(namespace).cloned().flatten();
    let alone = BTreeMap::from([(namespace.to_owned(), rights)]);
    let known = Known { rights: &alone, filled: false, ..known.clone() };
    // There is always one: the caches are not filled.
    obstacle(&known).map_or_else(
        || (Reason::Connecting, "its objects are being listed".to_owned()),
        |obstacle| (obstacle.reason, obstacle.message),
    )
}

/// The conditions of a cluster, which had these before.
pub fn judge(known: &Known<'_>, old: &[Condition]) -> Vec<State> {
    let reached = reach(known);
    let reachable = match (&reached, known.connection) {
        (None, _) => State::new(
            REACHABLE,
            true,
            Reason::ClusterAnswers,
            format!("its API server answers at {}", known.server),
        ),
        (Some(obstacle), Connection::Connecting) => {
            State::new(REACHABLE, None, obstacle.reason, &*obstacle.message)
        }
        (Some(obstacle), _) => State::new(REACHABLE, false, obstacle.reason, &*obstacle.message),
    };
    let rights = match (&reached, may(known), without_policies(known)) {
        (Some(_), ..) => State::new(
            RIGHTS_SUFFICIENT,
            None,
            Reason::NotYetObserved,
            "not known while the cluster cannot be asked",
        ),
        (None, Some(obstacle), _) => {
            let known = obstacle.lasting.then_some(false);
            State::new(RIGHTS_SUFFICIENT, known, obstacle.reason, obstacle.message)
        }
        (None, None, Some(message)) => {
            State::new(RIGHTS_SUFFICIENT, false, Reason::RightsMissing, message)
        }
        (None, None, None) => State::new(
            RIGHTS_SUFFICIENT,
            true,
            Reason::RightsGranted,
            format!("it may do what it needs in {}", list(known.rights.keys())),
        ),
    };
    let mut states = vec![reachable, rights, image(known, old)];
    match obstacle(known) {
        None => {
            let message = "the cluster answers, and the operator may do what it needs";
            states.push(State::new(READY, true, Reason::AsDescribed, message));
            states.push(State::new(STALLED, false, Reason::AsDescribed, ""));
            states.push(State::new(RECONCILING, false, Reason::AsDescribed, ""));
        }
        Some(Obstacle { reason, message, lasting }) => {
            states.push(State::new(READY, false, reason, &*message));
            let (stalled, reconciling) = if lasting { (&*message, "") } else { ("", &*message) };
            states.push(State::new(STALLED, lasting, reason, stalled));
            states.push(State::new(RECONCILING, !lasting, reason, reconciling));
        }
    }
    states
}

/// Whether the agents' image can be run. It says nothing of nodes that run already, so it is no obstacle. What was known
/// of the same image before the operator was restarted still holds: nobody needed to know it since.
fn image(known: &Known<'_>, old: &[Condition]) -> State {
    let kept = || {
        let old = find(old, AGENT_IMAGE_AVAILABLE)?;
        let same = old.message.starts_with(&about(known.image));
        same.then(|| state_of(old, AGENT_IMAGE_AVAILABLE)).flatten()
    };
    image_state(known.name, known.image, known.proofs).or_else(kept).unwrap_or_else(|| {
        let message = format!("{}no node has needed it there yet", about(known.image));
        State::new(AGENT_IMAGE_AVAILABLE, None, Reason::ImageNotProved, message)
    })
}

fn obstacle(known: &Known<'_>) -> Option<Obstacle> {
    reach(known).or_else(|| may(known)).or_else(|| {
        let message = "its objects are being listed".to_owned();
        (!known.filled).then_some(Obstacle { reason: Reason::Connecting, message, lasting: false })
    })
}

/// What keeps it from being reached.
fn reach(known: &Known<'_>) -> Option<Obstacle> {
    let Known { name, server, secret_namespace, .. } = known;
    let KubeconfigSecretRef { name: secret, key } = known.secret;
    let again = format!("kubectl bsn cluster join {name} --kubeconfig FILE");
    let nodes = "Nodes there run on";
    let found = |reason, lasting, message| Some(Obstacle { reason, message, lasting });
    match known.connection {
        Connection::Up(_) => None,
        Connection::Connecting => {
            found(Reason::Connecting, false, "the operator connects to it".to_owned())
        }
        Connection::NoKubeconfig(NoKubeconfig::Secret) => found(
            Reason::KubeconfigMissing,
            true,
            format!("there is no Secret {secret_namespace}/{secret}. Make it: {again}"),
        ),
        Connection::NoKubeconfig(NoKubeconfig::Key) => found(
            Reason::KubeconfigMissing,
            true,
            format!(
                "the Secret {secret_namespace}/{secret} has no entry {key}. Correct \
                 spec.kubeconfigSecretRef.key, or make the Secret anew: {again}"
            ),
        ),
        Connection::Refused(fault) => found(
            Reason::KubeconfigRefused,
            true,
            format!(
                "the kubeconfig in Secret {secret_namespace}/{secret} is not accepted: {fault}"
            ),
        ),
        Connection::Another(another) => found(
            Reason::AnotherCluster,
            true,
            format!(
                "{server} leads to another cluster than before: the uid of its kube-system is {}, not {}. Nothing is \
                 done there. Correct the kubeconfig; or, if {name} was built anew and hosts nothing of the old one, \
                 make it another cluster: kubectl bsn cluster leave {name} --hub-only, then join it",
                another.now, another.before
            ),
        ),
        Connection::Twice(other) => {
            let which = match other {
                Other::Hub => {
                    "the hub itself: leave cluster out of a node set whose nodes are to be there"
                        .to_owned()
                }
                Other::Member(other) => {
                    format!("cluster {other} already: use that name in node sets")
                }
            };
            let message = format!(
                "{server} leads to {which}. Nothing is done there by the name {name}. Correct the kubeconfig, or take this \
                 one out: kubectl bsn cluster leave {name} --kubeconfig FILE"
            );
            found(Reason::ClusterTwice, true, message)
        }
        Connection::Down(fault) => {
            let (reason, message) = match fault {
                ProbeFault::Unreachable(why) => (
                    Reason::ClusterUnreachable,
                    format!(
                        "{server} cannot be reached: {why}. {nodes}; the operator tries again. Look whether the \
                         cluster's API server runs and a firewall lets the operator through"
                    ),
                ),
                ProbeFault::Hangs => (
                    Reason::ClusterHangs,
                    format!(
                        "{server} does not answer within {} s. {nodes}; the operator tries again. Look whether a \
                         firewall drops the operator's packets, and whether the address is still right",
                        PROBE_DEADLINE.as_secs()
                    ),
                ),
                ProbeFault::Failing(why) => (
                    Reason::ClusterFailing,
                    format!(
                        "the API server at {server} fails: {why}. {nodes}; the operator tries again"
                    ),
                ),
                ProbeFault::NotKubernetes(why) => (
                    Reason::NotKubernetes,
                    format!(
                        "what answers at {server} is no Kubernetes API server: {why}. Correct the address in the \
                         kubeconfig: {again} --server https://…"
                    ),
                ),
                ProbeFault::Untrusted(why) => (
                    Reason::CertificateUntrusted,
                    format!(
                        "the certificate at {server} does not fit the authority in the kubeconfig: {why}. If the \
                         cluster's authority or address has changed, write the new kubeconfig: {again}. If not, \
                         somebody else answers in its place"
                    ),
                ),
                ProbeFault::CredentialsRefused => (
                    Reason::CredentialsRefused,
                    format!(
                        "{server} does not accept the credentials in Secret {secret_namespace}/{secret}: they have \
                         ended or were revoked. Write new ones: {again}"
                    ),
                ),
                ProbeFault::Forbidden(why) => (
                    Reason::RightsMissing,
                    format!(
                        "{server} refuses to tell its version ({why}). Give the rights: {again}"
                    ),
                ),
                ProbeFault::Other(why) => (
                    Reason::KubeconfigRefused,
                    format!(
                        "the kubeconfig in Secret {secret_namespace}/{secret} cannot be used ({why}). Write \
                         another: {again}"
                    ),
                ),
            };
            found(reason, !fault.may_pass(), message)
        }
    }
}

/// The command that gives the rights.
fn join_again(known: &Known<'_>) -> String {
    let namespaces: Vec<_> = known.rights.keys().map(String::as_str).collect();
    format!(
        "kubectl bsn cluster join {} --kubeconfig FILE -n {}",
        known.name,
        namespaces.join(" -n ")
    )
}

/// Where nodes have no policy for want of a right, and how to give it. It keeps the cluster from nothing else.
fn without_policies(known: &Known<'_>) -> Option<String> {
    let lacks: Vec<_> = known
        .rights
        .iter()
        .filter_map(|(namespace, rights)| match rights {
            Some(NamespaceRights::WithoutPolicies(what)) => Some(format!("in {namespace}: {what}")),
            _ => None,
        })
        .collect();
    let join = join_again(known);
    (!lacks.is_empty()).then(|| {
        format!(
            "the operator lacks rights {}. Until it has them, nodes there run without a NetworkPolicy; all else goes on. \
             Give them: {join}",
            lacks.join("; ")
        )
    })
}

/// What the operator may not do.
fn may(known: &Known<'_>) -> Option<Obstacle> {
    let all = || known.rights.iter();
    let join = join_again(known);
    let missing: Vec<_> = all()
        .filter(|(_, rights)| matches!(rights, Some(NamespaceRights::NoNamespace)))
        .map(|(namespace, _)| namespace)
        .collect();
    if !missing.is_empty() {
        let (message, lasting) = (
            format!(
                "the cluster has no namespace {}. Make it, with the operator's rights in it: {join}",
                list(missing)
            ),
            true,
        );
        return Some(Obstacle { reason: Reason::NamespaceMissing, message, lasting });
    }
    let lacks: Vec<_> = all()
        .filter_map(|(namespace, rights)| match rights {
            Some(NamespaceRights::Missing(what)) => {
                Some(format!("in {namespace}: {}", what.join(", ")))
            }
            _ => None,
        })
        .collect();
    if !lacks.is_empty() {
        let message = format!("the operator lacks rights {}. Give them: {join}", lacks.join("; "));
        return Some(Obstacle { reason: Reason::RightsMissing, message, lasting: true });
    }
    let message = "the operator asks what it may do there".to_owned();
    all().any(|(_, rights)| rights.is_none()).then_some(Obstacle {
        reason: Reason::Connecting,
        message,
        lasting: false,
    })
}

fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// What a cluster hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hosted {
    /// Nodes.
    pub nodes: u32,
    /// Their networks.
    pub networks: u32,
}

/// The status to be written; equal to `old` if nothing changed but the time.
pub fn next_status(
    old: &BsnClusterStatus,
    known: &Known<'_>,
    uid: Option<&str>,
    hosted: Option<Hosted>,
    last_contact: Option<Timestamp>,
    generation: Option<i64>,
    now: Timestamp,
) -> BsnClusterStatus {
    let version = match known.connection {
        Connection::Up(version) => Some(version.clone()),
        // What it was is worth more than nothing.
        _ => old.version.clone(),
    };
    let mut status = BsnClusterStatus {
        observed_generation: generation,
        conditions: merge(&old.conditions, &judge(known, &old.conditions), generation, now),
        version,
        cluster_uid: old.cluster_uid.clone().or_else(|| uid.map(str::to_owned)),
        last_contact: old.last_contact.clone(),
        nodes: hosted.map_or(old.nodes, |hosted| Some(hosted.nodes)),
        networks: hosted.map_or(old.networks, |hosted| Some(hosted.networks)),
    };
    // The time alone is no reason to write.
    if status != *old
        && let Some(contact) = last_contact
    {
        let second = Timestamp::from_second(contact.as_second()).unwrap_or(contact);
        status.last_contact = Some(second.to_string());
    }
    status
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn secret() -> KubeconfigSecretRef {
        KubeconfigSecretRef { name: "bsn-cluster-hangzhou".into(), key: "kubeconfig".into() }
    }

    fn rights(
        all: &[(&str, Option<NamespaceRights>)],
    ) -> BTreeMap<String, Option<NamespaceRights>> {
        all.iter().map(|(name, rights)| ((*name).to_owned(), rights.clone())).collect()
    }

    fn with<T>(
        connection: &Connection,
        all: &[(&str, Option<NamespaceRights>)],
        filled: bool,
        then: impl FnOnce(&Known<'_>) -> T,
    ) -> T {
        then(&Known {
            name: "hangzhou",
            secret: &secret(),
            secret_namespace: "bsn-system",
            server: "https://10.1.0.1:6443",
            connection,
            rights: &rights(all),
            filled,
            image: &image(),
            proofs: &BTreeMap::new(),
        })
    }

    fn image() -> ClusterImage {
        ClusterImage { reference: "registry.example/operator:1".into(), pull_secret_name: None }
    }

    fn up() -> Connection {
        Connection::Up("v1.33.2".into())
    }

    /// Every fault has a reason of its own and says what to do.
    #[test]
    fn what_is_found_becomes_conditions() {
        use NamespaceRights::{Granted, Missing, NoNamespace};
        let all = [("ledger", Some(Granted)), ("trade", Some(Granted))];
        let lacking = [
            ("ledger", Some(Granted)),
            ("trade", Some(Missing(vec!["update configmaps".into(), "get/list pods".into()]))),
        ];
        let older = "get/list/watch/create/patch/delete networkpolicies".to_owned();
        let older =
            [("ledger", Some(Granted)), ("trade", Some(NamespaceRights::WithoutPolicies(older)))];
        let unknown = [("ledger", None)];
        let down = Connection::Down;
        let cases: Vec<(&str, Connection, &[_], bool)> = vec![
            ("all is well", up(), &all, true),
            ("connecting", Connection::Connecting, &unknown, false),
            ("rights not asked for yet", up(), &unknown, false),
            ("caches not filled yet", up(), &all, false),
            ("too few rights", up(), &lacking, false),
            ("a role of a version without policies", up(), &older, true),
            ("a namespace is missing", up(), &[("ledger", Some(NoNamespace))], false),
            ("no Secret", Connection::NoKubeconfig(NoKubeconfig::Secret), &unknown, false),
            ("no such entry", Connection::NoKubeconfig(NoKubeconfig::Key), &unknown, false),
            (
                "a kubeconfig that runs a program",
                Connection::Refused(KubeconfigFault::Program("exec")),
                &unknown,
                false,
            ),
            ("an expired token", down(ProbeFault::CredentialsRefused), &all, true),
            (
                "a wrong CA",
                down(ProbeFault::Untrusted("it was issued by another authority".into())),
                &all,
                true,
            ),
            (
                "a cluster that was built anew",
                Connection::Another(Box::new(Another { before: "u1".into(), now: "u2".into() })),
                &all,
                false,
            ),
            ("the hub joined to itself", Connection::Twice(Other::Hub), &unknown, false),
            (
                "a cluster that another BsnCluster names",
                Connection::Twice(Other::Member("beijing".into())),
                &unknown,
                false,
            ),
            ("an address that hangs", down(ProbeFault::Hangs), &all, true),
            (
                "an address where nobody listens",
                down(ProbeFault::Unreachable("connection refused".into())),
                &all,
                true,
            ),
            (
                "an API server without its etcd",
                down(ProbeFault::Failing("500 etcdserver: request timed out".into())),
                &all,
                true,
            ),
            (
                "a web server",
                down(ProbeFault::NotKubernetes("it has no /version".into())),
                &all,
                true,
            ),
        ];
        let mut text = String::new();
        for (case, connection, rights, filled) in cases {
            let states = with(&connection, rights, filled, |known| judge(known, &[]));
            writeln!(text, "{case}").unwrap();
            for State { kind, status, reason, message } in states {
                let status = status.map_or("Unknown", |yes| if yes { "True" } else { "False" });
                writeln!(text, "  {kind}: {status} {reason} {message}").unwrap();
            }
        }
        insta::assert_snapshot!(text);
    }

    /// Of kstatus' words at most one is true, whatever was found.
    #[test]
    fn exactly_one_of_ready_stalled_and_reconciling_is_true() {
        let connections = [
            up(),
            Connection::Connecting,
            Connection::Down(ProbeFault::Hangs),
            Connection::Down(ProbeFault::CredentialsRefused),
        ];
        let findings = [None, Some(NamespaceRights::Granted), Some(NamespaceRights::NoNamespace)];
        for connection in &connections {
            for found in &findings {
                for filled in [true, false] {
                    let states = with(connection, &[("a", found.clone())], filled, |known| {
                        judge(known, &[])
                    });
                    let true_ones = states.iter().filter(|state| {
                        [READY, STALLED, RECONCILING].contains(&state.kind)
                            && state.status == Some(true)
                    });
                    assert_eq!(true_ones.count(), 1, "{connection:?} {found:?} {filled}");
                }
            }
        }
    }

    #[test]
    fn one_lost_answer_is_no_news_and_a_refused_token_is() {
        let hangs = Connection::Down(ProbeFault::Hangs);
        assert_eq!(up().after(hangs.clone(), 1), up());
        assert_eq!(up().after(hangs.clone(), 2), hangs);
        assert_eq!(Connection::Connecting.after(hangs.clone(), 1), hangs);
        let refused = Connection::Down(ProbeFault::CredentialsRefused);
        assert_eq!(up().after(refused.clone(), 1), refused);
        assert_eq!(hangs.after(up(), 0), up());
    }

    #[test]
    fn what_was_known_of_an_image_holds_until_it_is_another() {
        let image_of = |known: &Known<'_>, old: &[Condition]| super::image(known, old);
        let granted = [("ledger", Some(NamespaceRights::Granted))];
        with(&up(), &granted, true, |known| {
            let proved = BTreeMap::from([("ledger".to_owned(), Proof::Proved)]);
            let first = image_of(&Known { proofs: &proved, ..known.clone() }, &[]);
            assert_eq!(first.status, Some(true));
            let now = Timestamp::from_second(1).unwrap();
            let old = merge(&[], std::slice::from_ref(&first), None, now);
            // The operator was restarted, and nobody has asked since.
            assert_eq!(image_of(known, &old), first);
            let next = ClusterImage { reference: "registry.example/operator:2".into(), ..image() };
            assert_eq!(image_of(&Known { image: &next, ..known.clone() }, &old).status, None);
        });
    }

    /// Nodes that run already need no image.
    #[test]
    fn a_cluster_without_the_image_stands_and_is_ready() {
        let granted = [("ledger", Some(NamespaceRights::Granted))];
        with(&up(), &granted, true, |known| {
            let failed = Proof::Unavailable("ErrImagePull: not found".to_owned());
            let proofs = BTreeMap::from([("ledger".to_owned(), failed)]);
            let known = Known { proofs: &proofs, ..known.clone() };
            assert_eq!(standing(&known), Ok(()));
            let states = judge(&known, &[]);
            let state = |kind| states.iter().find(|state| state.kind == kind).unwrap().status;
            assert_eq!((state(READY), state(AGENT_IMAGE_AVAILABLE)), (Some(true), Some(false)));
        });
    }

    #[test]
    fn nothing_is_written_while_nothing_changes() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let granted = [("ledger", Some(NamespaceRights::Granted))];
        let hosted = Some(Hosted { nodes: 2, networks: 1 });
        let status = |old: &BsnClusterStatus, connection: &Connection, hosted, contact, now| {
            with(connection, &granted, true, |known| {
                next_status(old, known, Some("u1"), hosted, Some(at(contact)), Some(1), at(now))
            })
        };
        let first = status(&BsnClusterStatus::default(), &up(), hosted, 10, 10);
        assert_eq!(first.last_contact.as_deref(), Some("1970-01-01T00:00:10Z"));
        assert_eq!(status(&first, &up(), hosted, 20, 20), first);
        // The last contact before it was lost, and what it hosted then.
        let lost = status(&first, &Connection::Down(ProbeFault::Hangs), None, 30, 47);
        assert_eq!(lost.last_contact.as_deref(), Some("1970-01-01T00:00:30Z"));
        assert_eq!((lost.nodes, lost.version.as_deref()), (Some(2), Some("v1.33.2")));
        assert_eq!(status(&lost, &Connection::Down(ProbeFault::Hangs), None, 30, 90), lost);
    }
}
