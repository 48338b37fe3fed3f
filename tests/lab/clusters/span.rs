//! A network in three clusters, beside its [`World`]: the other two clusters join as users let them join, and leave in
//! the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bsn_operator::api::BsnCluster;
use bsn_operator::api::conditions::{REACHABLE, READY, Raw, Reason, find};
use bsn_testkit::lab::{Lab, Roles};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Service};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;

use super::leftovers::{leave, sweep};
use crate::audit::{Request, audit_mark, requests_since};
use crate::chain::{check_pace, print_gaps, verify};
use crate::client::Traffic;
use crate::plugin::plugin_program;
use crate::rpc;
use crate::sampler::{Outage, Sampler, StepsSeen, watch_steps};
use crate::support::{World, eventually, hub, namespace_yaml, run_in};

/// The network's condition about its clusters.
pub const CLUSTERS_REACHABLE: &str = "ClustersReachable";
/// How the members are named on the hub.
pub const NAMES: [&str; 2] = ["city-a", "city-b"];
/// The node sets, one in each cluster: on the hub, in `city-a`, in `city-b`.
pub const SETS: [&str; 3] = ["home", "a", "b"];
/// Power of each validator.
pub const POWER: u64 = 1000;

const MINUTE: Duration = Duration::from_mins(1);
/// Longest for a change of one node, or for bringing the network up, on a busy machine.
pub const LONG: Duration = Duration::from_mins(5);
/// Longest for the blocks that a story waits for.
const RISES_WITHIN: Duration = Duration::from_mins(2);
/// Longest until what the operator knows of a cluster is in its status: it asks every ten seconds, waits five for an
/// answer, and asks twice before it believes in a failure.
pub const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// Whether there is time for everything: in a quick run, stories of clusters leave out what takes longest.
pub fn is_thorough() -> bool {
    std::env::var_os("BSN_THOROUGH").is_some()
}

/// A cluster that has joined.
pub struct Member {
    /// On the hub.
    pub name: &'static str,
    /// In the lab.
    pub cluster: usize,
    pub client: Client,
}

impl Member {
    async fn of(lab: &Lab, name: &'static str, cluster: usize) -> Self {
        Self { name, cluster, client: lab.client(cluster).await.unwrap() }
    }

    /// The operator's account there.
    pub fn account(&self) -> String {
        format!("bsn-member-{}", self.name)
    }
}

/// A story's network and its clusters.
pub struct Span {
    pub world: World,
    pub members: [Member; 2],
}

/// A description: how many validators in each cluster, the hub's first, and the pause after a block, whose change
/// restarts them. The nodes in `city-b` are exposed as their cluster's defaults say.
pub fn spec(replicas: [usize; 3], pause: &str) -> String {
    let [home, a, b] = replicas;
    format!(
        r"
chainId: clusters-1
engine:
  cometbft:
    version: 0.38.25
    timeoutCommit: {pause}
    app:
      persistentKvstore: {{}}
membership:
  catchUp: {{stableSeconds: 5}}
nodeSets:
  - name: home
    role: Validator
    replicas: {home}
    exposure: NodePort
    storage: {{size: 1Gi}}
  - name: a
    role: Validator
    cluster: city-a
    replicas: {a}
    exposure: NodePort
    storage: {{size: 1Gi}}
  - name: b
    role: Validator
    cluster: city-b
    replicas: {b}
    storage: {{size: 1Gi}}
"
    )
    .trim_start()
    .to_owned()
}

impl Span {
    /// Both members have joined and are ready, and the story's namespace is empty in all three clusters.
    pub async fn new(story: &str) -> Self {
        let roles = Roles::from_env().unwrap();
        sweep(roles).await;
        let mut world = World::new(&format!("clusters-{story}")).await;
        world.await_operator().await;
        let [first, second] = roles.members;
        let members = [
            Member::of(&world.lab, NAMES[0], first).await,
            Member::of(&world.lab, NAMES[1], second).await,
        ];
        world.members = members.iter().map(|member| member.client.clone()).collect();
        let span = Self { world, members };
        for member in &span.members {
            // Before the join, which leaves a namespace that is there as it is.
            span.apply_in(member, &namespace_yaml(&span.world.namespace));
            println!("{}", span.join(member, &[]));
        }
        let defaults = r#"{"spec":{"defaults":{"exposure":"NodePort"}}}"#;
        let args = ["patch", "bsncluster", NAMES[1], "--type=merge", "-p", defaults];
        span.world.kubectl_ok(&args);
        for member in &span.members {
            span.await_cluster(member, READY, "True", Reason::AsDescribed, MINUTE).await;
        }
        span
    }

    /// Brings the network up.
    pub async fn start(story: &str, replicas: [usize; 3]) -> Self {
        let span = Self::new(story).await;
        let began = Instant::now();
        span.world.apply(&span.world.yaml(&spec(replicas, "1s")));
        span.world.await_converged(LONG).await;
        println!("{replicas:?} validators are ready after {} s", began.elapsed().as_secs());
        span.world.await_condition(CLUSTERS_REACHABLE, "True", MINUTE).await;
        span.world.await_height_above(5, MINUTE).await;
        span
    }

    /// Removes the network, lets go of its keys and disks in all clusters, and lets the members leave.
    pub async fn remove(self) {
        // With the anchor on the hub, which goes last, the members' keys and disks are released.
        self.world.remove();
        for member in &self.members {
            // What a cluster hosts is counted every few seconds.
            eventually(&format!("{} leaves", member.name), MINUTE, async || {
                leave(&self.world.lab, member.name, member.cluster, false)
            })
            .await;
            let namespace = &self.world.namespace;
            let args = ["delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s"];
            self.kubectl_in(member, &args);
        }
    }

    /// Name of a node.
    pub fn node(&self, set: &str, index: usize) -> String {
        format!("{}-{set}-{index}", self.world.network)
    }

    /// Lets a member join, with these options besides; gives what was said.
    pub fn join(&self, member: &Member, options: &[&str]) -> String {
        let lab = &self.world.lab;
        let file = lab.kubeconfig(member.cluster).display().to_string();
        let fixed = ["cluster", "join", member.name, "--kubeconfig", &file, "--yes"];
        let args = [&fixed[..], &["-n", &self.world.namespace], options].concat();
        let output = run_in(lab, hub(), plugin_program(), &args, "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl bsn {}: {error}", args.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs kubectl in a member's cluster.
    pub fn kubectl_in(&self, member: &Member, args: &[&str]) -> String {
        let lab = &self.world.lab;
        let output = run_in(lab, member.cluster, lab.tool("kubectl"), args, "");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {} in {}: {error}", args.join(" "), member.name);
        String::from_utf8(output.stdout).unwrap()
    }

    fn apply_in(&self, member: &Member, yaml: &str) {
        let lab = &self.world.lab;
        let args = ["apply", "-f", "-"];
        let output = run_in(lab, member.cluster, lab.tool("kubectl"), &args, yaml);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl apply in {}: {error}\n{yaml}", member.name);
    }

    async fn conditions(&self, member: &Member) -> Result<Vec<Raw>, String> {
        let clusters = Api::<BsnCluster>::all(self.world.client.clone());
        let found = clusters.get(member.name).await.map_err(|error| error.to_string())?;
        Ok(found.status.unwrap_or_default().conditions)
    }

    /// Waits until a condition of a member is so, for this reason; gives its message, and prints how long it took.
    pub async fn await_cluster(
        &self,
        member: &Member,
        kind: &str,
        status: &str,
        reason: Reason,
        within: Duration,
    ) -> String {
        let began = Instant::now();
        let what = format!("{}: {kind}={status}, {reason}", member.name);
        let said = eventually(&what, within, async || {
            let conditions = self.conditions(member).await?;
            match find(&conditions, kind) {
                Some(found) if found.status == status && found.reason == reason.as_str() => {
                    Ok(found.message.clone())
                }
                found => Err(format!("{found:?}")),
            }
        })
        .await;
        println!("{what} after {:.0} s: {said}", began.elapsed().as_secs_f64());
        said
    }

    /// Waits until the operator uses a member at this address, and no other.
    pub async fn await_server(&self, member: &Member, server: &str) {
        let what = format!("{} at {server}", member.name);
        eventually(&what, MINUTE, async || {
            let conditions = self.conditions(member).await?;
            let well = |kind: &str| find(&conditions, kind).filter(|found| found.status == "True");
            let there = well(REACHABLE).is_some_and(|found| found.message.ends_with(server));
            if there && well(READY).is_some() { Ok(()) } else { Err(format!("{conditions:?}")) }
        })
        .await;
    }

    /// Waits until the network says that it cannot reach this member; not a word of the other.
    pub async fn await_lost(&self, lost: &Member) {
        let began = Instant::now();
        let said = self.await_unreachable(lost, NOTICED_WITHIN).await;
        println!("noticed after {:.0} s: {said}", began.elapsed().as_secs_f64());
        let other = self.members.iter().find(|member| member.name != lost.name).unwrap();
        assert!(!said.contains(other.name), "{} is not lost: {said}", other.name);
    }

    /// Waits until the network names a member among those that it cannot use.
    pub async fn await_unreachable(&self, member: &Member, within: Duration) -> String {
        let what = format!("{CLUSTERS_REACHABLE}=False with {}", member.name);
        eventually(&what, within, async || {
            let conditions = self.world.get().await?.status.unwrap_or_default().conditions;
            match find(&conditions, CLUSTERS_REACHABLE) {
                Some(found) if found.status == "False" && found.message.contains(member.name) => {
                    Ok(found.message.clone())
                }
                found => Err(format!("{found:?}")),
            }
        })
        .await
    }

    /// Since when a condition of a member is as it is: it has not changed in between if this has not.
    pub async fn since(&self, member: &Member, kind: &str) -> (String, Timestamp) {
        let conditions = self.conditions(member).await.unwrap();
        let found = find(&conditions, kind).unwrap();
        (found.status.clone(), found.last_transition_time.0)
    }

    /// Names and uids of what runs, leads to, and is the disk of the nodes in a cluster.
    pub async fn inventory(&self, client: &Client) -> BTreeMap<String, String> {
        let sets = uids::<StatefulSet>(self.world.api_in(client)).await;
        let services = uids::<Service>(self.world.api_in(client)).await;
        let disks = uids::<PersistentVolumeClaim>(self.world.api_in(client)).await;
        sets.into_iter().chain(services).chain(disks).collect()
    }

    /// A place in the audit logs of all clusters, for [`Span::requests_since`].
    pub fn marks(&self) -> BTreeMap<usize, u64> {
        let clusters = self.members.iter().map(|member| member.cluster).chain([hub()]);
        clusters.map(|cluster| (cluster, audit_mark(&self.world.lab, cluster))).collect()
    }

    /// Requests of the operator to a member since then.
    pub fn requests_to(&self, member: &Member, marks: &BTreeMap<usize, u64>) -> Vec<Request> {
        let account = member.account();
        requests_since(&self.world.lab, member.cluster, &account, marks[&member.cluster])
    }

    /// Requests of the operator to all clusters since then, of this network.
    pub fn requests_since(&self, marks: &BTreeMap<usize, u64>) -> Vec<Request> {
        let mut requests = self.world.requests_since(marks[&hub()]);
        for member in &self.members {
            requests.extend(self.requests_to(member, marks));
        }
        requests.retain(|request| request.namespace == self.world.namespace);
        requests
    }
}

/// What is looked at while a network changes: the steps under way, and the chain by a client that uses it.
pub struct Watch {
    world: World,
    steps: Sampler<StepsSeen>,
    pub traffic: Traffic,
    began: Timestamp,
}

impl Watch {
    pub async fn start(world: &World) -> Self {
        let steps = watch_steps(world);
        let traffic = Traffic::start(world).await;
        Self { world: world.clone(), steps, traffic, began: Timestamp::now() }
    }

    /// Every transaction that was acknowledged is in the chain, once; one step was under way at a time; and blocks kept
    /// coming, but for the time that a node was away.
    pub async fn end(self, outages: &[Outage]) {
        let acknowledged = self.traffic.end().await;
        let steps = self.steps.end().await;
        let chain = verify(&self.world, &acknowledged).await;
        steps.check();
        chain.check_voters(&rpc::Client::new(&self.world).await).await;
        let gaps = chain.gaps(self.began);
        print_gaps(&gaps, outages);
        check_pace(&gaps);
    }
}

async fn uids<K>(api: Api<K>) -> BTreeMap<String, String>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let list = api.list(&ListParams::default()).await.unwrap();
    let named =
        |object: &K| Some((format!("{} {}", K::kind(&()), object.name_any()), object.uid()?));
    list.items.iter().filter_map(named).collect()
}

/// All that was there is there, and is the same.
pub fn assert_kept(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let lost: BTreeSet<_> =
        before.iter().filter(|(name, uid)| after.get(*name) != Some(*uid)).collect();
    assert!(lost.is_empty(), "gone or made anew: {lost:?}");
}

/// Each node's height, as it tells it itself: it does not matter what the operator sees.
pub async fn heights(client: &rpc::Client) -> BTreeMap<String, u64> {
    let mut heights = BTreeMap::new();
    for node in client.nodes.keys() {
        let what = format!("the height of {node}");
        let height = eventually(&what, MINUTE, async || client.height(node).await).await;
        heights.insert(node.clone(), height);
    }
    heights
}

/// Waits until each of these nodes is so many blocks higher.
pub async fn await_rise(client: &rpc::Client, from: &BTreeMap<String, u64>, blocks: u64) {
    for (node, before) in from {
        let what = format!("{node} above {}", before + blocks);
        eventually(&what, RISES_WITHIN, async || {
            let now = client.height(node).await?;
            if now > before + blocks { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    }
}
