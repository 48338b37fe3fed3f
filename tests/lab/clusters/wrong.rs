//! What can be wrong with a cluster: each has a reason of its own and leaves all nodes and the other clusters alone, and
//! the same command that joined the cluster mends it.

use std::time::{Duration, Instant};

use bsn_operator::api::BsnCluster;
use bsn_operator::api::conditions::{REACHABLE, READY, RIGHTS_SUFFICIENT, Reason};
use bsn_operator::labels;
use bsn_testkit::operator::NAMESPACE as OPERATOR_NAMESPACE;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::faults::Mute;
use super::leftovers::leave;
use super::span::{CLUSTERS_REACHABLE, LONG, Member, NOTICED_WITHIN, Span, await_rise, heights};
use crate::rpc::Client;
use crate::support::hub;

/// A second name for the first member.
pub const AGAIN: &str = "city-a-again";

const MINUTE: Duration = Duration::from_mins(1);
/// Rights that were there are asked for again every five minutes.
const RIGHTS_WITHIN: Duration = Duration::from_mins(6);
/// An API server believes in a token for ten seconds more (`--authentication-token-webhook-cache-ttl` and the cache
/// before all authenticators, `pkg/kubeapiserver/authenticator/config.go`).
const REVOKED_WITHIN: Duration = Duration::from_mins(1);
/// Blocks that every node must make meanwhile.
const BLOCKS: u64 = 3;

/// The authority in the kubeconfig of a cluster of the lab, in base64.
fn authority_of(span: &Span, cluster: usize) -> String {
    let text = std::fs::read(span.world.lab.kubeconfig(cluster)).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let authority = &config["clusters"][0]["cluster"]["certificate-authority-data"];
    authority.as_str().unwrap().to_owned()
}

/// Another authority in the kubeconfig that the operator has.
async fn give_wrong_authority(span: &Span, member: &Member) {
    let client = span.world.client.clone();
    let clusters = Api::<BsnCluster>::all(client.clone());
    let reference = clusters.get(member.name).await.unwrap().spec.kubeconfig_secret_ref;
    let secrets = Api::<Secret>::namespaced(client, OPERATOR_NAMESPACE);
    let mut data = secrets.get(&reference.name).await.unwrap().data.unwrap();
    let ByteString(text) = data.remove(&reference.key).unwrap();
    let mut config: Value = serde_saphyr::from_str(&String::from_utf8(text).unwrap()).unwrap();
    config["clusters"][0]["cluster"]["certificate-authority-data"] =
        json!(authority_of(span, hub()));
    // JSON is YAML.
    let content = ByteString(config.to_string().into_bytes());
    let patch = Patch::Merge(json!({"data": {reference.key: content}}));
    secrets.patch(&reference.name, &PatchParams::default(), &patch).await.unwrap();
}

/// Deletes the Secret that the operator's token is good by.
fn revoke_token(span: &Span, member: &Member) {
    let of = format!("{}={}", labels::CLUSTER, member.name);
    let args = ["delete", "secret", "-n", OPERATOR_NAMESPACE, "-l", &of];
    let said = span.kubectl_in(member, &args);
    assert!(said.contains("deleted"), "no token: {said}");
}

/// Waits until the trouble is told, for this reason; meanwhile the chain goes on everywhere. Then joins the cluster again,
/// and all is well.
async fn see_and_mend(
    span: &Span,
    member: &Member,
    reason: Reason,
    words: &[&str],
    within: Duration,
) {
    let client = Client::new(&span.world).await;
    let before = heights(&client).await;
    let said = span.await_cluster(member, REACHABLE, "False", reason, within).await;
    let missing: Vec<_> = words.iter().filter(|words| !said.contains(**words)).collect();
    assert!(missing.is_empty(), "not said: {missing:?} in {said}");
    span.await_cluster(member, READY, "False", reason, NOTICED_WITHIN).await;
    span.await_unreachable(member, NOTICED_WITHIN).await;
    await_rise(&client, &before, BLOCKS).await;
    span.join(member, &[]);
    span.await_cluster(member, READY, "True", Reason::AsDescribed, MINUTE).await;
}

/// Lets a member join by another name: only the first one is used, and it is not disturbed.
async fn name_twice(span: &Span, member: &Member) {
    let ready = span.since(member, READY).await;
    let again = Member { name: AGAIN, cluster: member.cluster, client: member.client.clone() };
    span.join(&again, &[]);
    let reason = Reason::ClusterTwice;
    let said = span.await_cluster(&again, READY, "False", reason, MINUTE).await;
    let named = format!("cluster {} already", member.name);
    assert!(said.contains(&named) && said.contains("kubectl bsn cluster leave"), "{said}");
    leave(&span.world.lab, AGAIN, again.cluster, false).unwrap();
    assert_eq!(span.since(member, READY).await, ready, "{} was disturbed", member.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_wrong_with_a_cluster() {
    let span = Span::start("wrong", [2, 1, 1]).await;
    let world = &span.world;
    let [one, other] = &span.members;
    let (pods, prints) = (world.pod_uids().await, world.fingerprint().await);
    let (history, reached) = (world.history(), span.since(other, REACHABLE).await);

    // The last to be noticed comes first: the other cluster takes the right away.
    let account = other.account();
    span.kubectl_in(other, &["delete", "rolebinding", &account, "-n", &world.namespace]);
    let taken = Instant::now();

    name_twice(&span, one).await;

    give_wrong_authority(&span, one).await;
    let words = ["does not fit the authority in the kubeconfig", "kubectl bsn cluster join city-a"];
    see_and_mend(&span, one, Reason::CertificateUntrusted, &words, MINUTE).await;

    revoke_token(&span, one);
    let words = ["does not accept the credentials", "kubectl bsn cluster join city-a"];
    see_and_mend(&span, one, Reason::CredentialsRefused, &words, REVOKED_WITHIN).await;

    let mute = Mute::listen().await;
    let server = format!("https://{}", mute.address);
    span.join(one, &["--server", &server]);
    mute.await_caller(MINUTE).await;
    let words = [server.as_str(), "does not answer within 5 s"];
    see_and_mend(&span, one, Reason::ClusterHangs, &words, MINUTE).await;
    drop(mute);

    let reason = Reason::RightsMissing;
    let within = RIGHTS_WITHIN.saturating_sub(taken.elapsed()).max(NOTICED_WITHIN);
    let said = span.await_cluster(other, RIGHTS_SUFFICIENT, "False", reason, within).await;
    assert!(said.contains(&world.namespace) && said.contains("statefulsets"), "{said}");
    println!("noticed within {} s: {said}", taken.elapsed().as_secs());
    span.await_cluster(other, READY, "False", reason, NOTICED_WITHIN).await;
    span.join(other, &[]);
    span.await_cluster(other, READY, "True", Reason::AsDescribed, MINUTE).await;

    world.await_condition(CLUSTERS_REACHABLE, "True", MINUTE).await;
    world.await_converged(LONG).await;
    assert_eq!(span.since(other, REACHABLE).await, reached, "{} was disturbed", other.name);
    assert_eq!(world.history(), history, "a step because of a cluster that cannot be used");
    assert_eq!((world.pod_uids().await, world.fingerprint().await), (pods, prints));
    span.remove().await;
}
