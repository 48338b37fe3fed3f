//! `bsn-operator run`.

use std::sync::Arc;
use std::time::Duration;

use bsn_core::hash::hex;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;

use super::RunArgs;
use crate::api::ClusterImage;
use crate::apply::{ApiError, bounded, read};
use crate::build::secret::entry;
use crate::cluster::{
    Clusters, Machines, Proofs, Resolver, Scope, Watches as HubWatches, client, member, namespaces,
    watches,
};
use crate::controller::context::{Context, Credentials, RecentReads, Reservations, Settings};
use crate::controller::network::budgets::Writes;
use crate::controller::network::members::Errands;
use crate::controller::network::steps::memory::Memories;
use crate::controller::network::steps::slots::Slots;
use crate::controller::{network, node, retention, run};
use crate::evidence::poller::{Poller, Targets};
use crate::evidence::route::Ways;
use crate::evidence::watches::Watches;
use crate::labels;
use crate::lease::LeaderElection;
use crate::pki::random_bytes;
use crate::telemetry::{Events, Health, Metrics, server};
use crate::turns::Turns;
use crate::view::{Memberships, Views};

/// Secret with this hub's id; back it up.
pub(super) const HUB_SECRET: &str = "bsn-operator-hub";
/// Its entry.
pub(super) const HUB_ID: &str = "hubId";

/// Between two looks for rights in namespaces that were left out.
const LEFT_OUT_LOOK: Duration = Duration::from_mins(1);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No connection to the cluster.
    #[error("cannot reach the cluster: {0}")]
    Connect(#[source] Box<kube::Error>),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] crate::pki::PkiError),
    /// A listener.
    #[error("cannot listen: {0}")]
    Listen(#[from] std::io::Error),
    /// The hub's id is not readable.
    #[error(
        "Secret {0} has no entry {HUB_ID}; delete it if this hub never managed a network, else restore it from a backup"
    )]
    HubId(String),
    /// Rights in none of the namespaces that it is for.
    #[error(
        "the operator has too few rights in all namespaces it is for ({0}); give it the Roles of the chart, by \
         watchNamespaces"
    )]
    NoNamespace(String),
    /// Another replica leads now.
    #[error("leadership was lost; ending, so that nothing is done twice")]
    LeadershipLost,
}

/// Runs the operator until it is told to stop or loses the lead.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    let metrics = Metrics::new();
    let views = Views::default();
    let memberships = Memberships::default();
    let client =
        client::connect(&metrics).await.map_err(|error| RunError::Connect(Box::new(error)))?;
    let (begin_anew, stop) = stop_at_a_signal();
    let stopped = || {
        let mut stop = stop.clone();
        async move {
            // A closed channel is a stop, too.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    };

    let health = Health::new();
    metrics.watch_views(&views);
    let public =
        server::serve_public(args.listen, health.clone(), metrics.clone(), stopped()).await?;
    let shown = server::Shown {
        health: health.clone(),
        views: views.clone(),
        memberships: memberships.clone(),
    };
    let status = server::serve_status(args.status_listen, shown, stopped()).await?;
    tokio::spawn(public);
    tokio::spawn(status);

    let hub_id = ensure_hub_id(&client, &args.namespace).await?;
    tracing::info!(%hub_id, identity = %args.identity, "waiting for the lead");
    // A follower is ready: it has nothing to do but wait.
    health.set_ready(true);
    let election =
        LeaderElection::new(client.clone(), &args.namespace, labels::LEASE, &args.identity);
    let Some(leadership) = election.acquire(stopped()).await else {
        return Ok(());
    };
    tracing::info!("leading");
    metrics.set_leader(true);
    health.set_leading(true);

    let (namespaces, left_out) = choose_namespaces(&client, &args.watch_namespaces.0).await?;
    let HubWatches { caches, triggers, network_queue, node_queue, mut tasks } =
        watches::watch_hub(&client, Scope::of_hub(&namespaces));
    let agent_image = ClusterImage { reference: args.agent_image, pull_secret_name: None };
    let clusters = Clusters::with_hub(client.clone(), caches.objects.clone(), agent_image.clone());
    metrics.watch_networks(&caches.networks);
    metrics.watch_clusters(&clusters);
    metrics.watch_memberships(&memberships);
    let (members, notice, watching_members) = member::watch_clusters(&client);
    tasks.push(watching_members);
    let events = Events::new(client.clone(), &args.identity);
    let proofs =
        Proofs::new(hub_id.clone(), clusters.clone(), caches.described(), triggers.clone());
    let shared = member::Shared {
        hub: client.clone(),
        namespace: args.namespace.clone(),
        hub_id: hub_id.clone(),
        agent_image,
        clusters: clusters.clone(),
        identities: Arc::default(),
        all: members,
        proofs: proofs.clone(),
        described: caches.described(),
        triggers: triggers.clone(),
        events: events.clone(),
        dial: dialler(&metrics),
    };
    let ctx = Arc::new(Context {
        client: client.clone(),
        caches: caches.clone(),
        clusters,
        resolver: Resolver::default(),
        machines: Machines::default(),
        proofs,
        triggers: triggers.clone(),
        anchors: crate::anchor::AnchorStore::new(hex(&random_bytes::<8>()?)),
        targets: Targets::default(),
        ways: Ways::default(),
        views,
        metrics,
        events,
        hub_id,
        settings: Settings { image_prefix: args.image_prefix, namespace: args.namespace },
        credentials: Credentials::default(),
        recent: RecentReads::default(),
        reservations: Reservations::default(),
        watches: Watches::default(),
        memories: Memories::default(),
        errands: Errands::default(),
        budgets: Writes::default(),
        slots: Slots::new(args.max_rolls.get().into()),
        memberships,
        term: leadership.term(),
        node_turns: Turns::default(),
    });
    let poller = poller_of(&ctx);
    let watching = async {
        let mut tasks: FuturesUnordered<_> = tasks.into_iter().collect();
        while tasks.next().await.is_some() {}
    };
    let controlling = async {
        // Deciding on a half-filled cache would make things that are there already.
        caches.wait_until_ready().await;
        tracing::info!("caches are filled");
        futures::join!(
            run::run_controller(
                "network",
                network::reconcile,
                ctx.clone(),
                caches.networks.clone(),
                network_queue,
                stopped(),
            ),
            run::run_controller(
                "node",
                node::reconcile,
                ctx.clone(),
                caches.nodes.clone(),
                node_queue,
                stopped(),
            ),
        );
    };
    let lost = leadership.lost();
    let ended = tokio::select! {
        // Passes under way are finished before this returns.
        () = controlling => Ok(()),
        () = watching => Ok(()),
        () = poller.run() => Ok(()),
        () = ctx.resolver.clone().run(triggers.clone()) => Ok(()),
        () = ctx.machines.clone().run(ctx.clusters.clone(), triggers) => Ok(()),
        () = retention::run(ctx.clone()) => Ok(()),
        () = member::run(shared, notice) => Ok(()),
        () = await_namespaces(&client, left_out, &begin_anew) => Ok(()),
        () = lost => Err(RunError::LeadershipLost),
    };
    if ended.is_ok() {
        leadership.release().await;
    }
    ended
}

/// Turns to true when the process is told to end; whoever has the sender may do the same.
fn stop_at_a_signal() -> (watch::Sender<bool>, watch::Receiver<bool>) {
    let (sender, stop) = watch::channel(false);
    let at_a_signal = sender.clone();
    tokio::spawn(async move {
        crate::signals::terminated().await;
        tracing::info!("stopping");
        // No receiver left means everything has ended already.
        let _ = at_a_signal.send(true);
    });
    (sender, stop)
}

/// Those of the namespaces it is for in which it has the rights, and those in which it has not. None = all there are.
async fn choose_namespaces(
    client: &kube::Client,
    wanted: &[String],
) -> Result<(Vec<String>, Vec<String>), RunError> {
    let (usable, lacking) = namespaces::usable(client, wanted).await;
    for (namespace, lacks) in &lacking {
        tracing::error!(%namespace, %lacks, "not looked after for want of rights; networks there are left as they are");
    }
    let left_out: Vec<String> = lacking.into_keys().collect();
    if usable.is_empty() && !wanted.is_empty() {
        return Err(RunError::NoNamespace(left_out.join(", ")));
    }
    Ok((usable, left_out))
}

/// Asks for the process's end once there are rights in one of the namespaces that were left out: caches are filled once, so
/// that a namespace is added by beginning anew. Whoever runs it starts it again. It never returns: passes under way are finished.
async fn await_namespaces(
    client: &kube::Client,
    left_out: Vec<String>,
    stop: &watch::Sender<bool>,
) {
    while !left_out.is_empty() {
        tokio::time::sleep(LEFT_OUT_LOOK).await;
        let (usable, _) = namespaces::usable(client, &left_out).await;
        if !usable.is_empty() {
            tracing::info!(
                ?usable,
                "ending, to begin anew with the namespaces in which there are rights now"
            );
            let _ = stop.send(true);
            break;
        }
    }
    std::future::pending::<()>().await;
}

/// Makes the clients of members; their requests are counted as the hub's are.
fn dialler(metrics: &Metrics) -> member::Dial {
    let metrics = metrics.clone();
    Arc::new(move |config| {
        let metrics = metrics.clone();
        async move { client::connect_member(config, &metrics).await }.boxed()
    })
}

/// What asks the nodes.
fn poller_of(ctx: &Context) -> Poller {
    Poller {
        targets: ctx.targets.clone(),
        watches: ctx.watches.clone(),
        ways: ctx.ways.clone(),
        views: ctx.views.clone(),
        caches: ctx.caches.clone(),
        clusters: ctx.clusters.clone(),
        triggers: ctx.triggers.clone(),
        credentials: ctx.credentials.clone(),
        metrics: ctx.metrics.clone(),
    }
}

/// Reads this hub's id, or makes it the first time.
async fn ensure_hub_id(client: &kube::Client, namespace: &str) -> Result<String, RunError> {
    for _ in 0..3 {
        if let Some(secret) = read::<Secret>(client, namespace, HUB_SECRET).await? {
            return entry(&secret, HUB_ID)
                .map(|id| id.trim().to_owned())
                .filter(|id| !id.is_empty())
                .ok_or_else(|| RunError::HubId(format!("{namespace}/{HUB_SECRET}")));
        }
        let id = hex(&random_bytes::<16>()?);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(HUB_SECRET.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            immutable: Some(true),
            data: Some([(HUB_ID.to_owned(), ByteString(id.into_bytes()))].into()),
            ..Secret::default()
        };
        let api = Api::<Secret>::namespaced(client.clone(), namespace);
        let params = PostParams::default();
        let made = bounded(
            || format!("create Secret {namespace}/{HUB_SECRET}"),
            api.create(&params, &secret),
        )
        .await;
        match made {
            // Read back: another replica may have been first.
            Ok(_) => {}
            Err(error) if error.code() == Some(409) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(RunError::HubId(format!("{namespace}/{HUB_SECRET}")))
}
