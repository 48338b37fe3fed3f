//! `kubectl bsn cluster`: lets nodes run in another cluster, and takes it out again.
//!
//! A command reads what is there, plans, says what it will do, asks, and does it. It can be run again at any time: what is
//! as it should be is left alone, so a second run goes on where the first was interrupted.

mod build;
mod plan;
mod render;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use clap::{Args, Subcommand, ValueEnum};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::config::Kubeconfig;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use self::build::{
    Endpoint, Key, Kind, Side, Wish, build_kubeconfig_secret, build_objects, labels_of,
    render_kubeconfig,
};
use self::plan::{
    Action, Asked, Found, Planned, Refusal, plan_join, plan_leave, resolve_wish, token_in,
};
use self::render::{render_join, render_leave, render_yaml};
use super::ClusterArgs;
use super::status::{StatusError, connect};
use crate::apply::{ApiError, bounded, read};
use crate::build::secret::entry;
use crate::cli::run::{HUB_ID, HUB_SECRET};
use crate::cluster::rights::EVERYWHERE;

/// How long the member may take to make a token.
const TOKEN_DEADLINE: Duration = Duration::from_secs(30);
/// How long the old token is good after the new one was written: the operator reads it every ten seconds.
const OLD_TOKEN_HOLDS: Duration = Duration::from_secs(20);
/// Field manager of what a join writes.
const FIELD_MANAGER: &str = build::MADE_BY;

/// What can be done with clusters.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Let nodes run in another cluster: make the operator's identity and its rights there, and describe the cluster
    /// on the hub.
    ///
    /// It says first what it will do. Run it again to add a namespace, to give rights that a newer operator needs, or
    /// to mend what was removed.
    Join(JoinArgs),
    /// Undo a join. Namespaces stay, with all that is in them.
    Leave(LeaveArgs),
}

/// The two clusters.
#[derive(Debug, Clone, Args)]
pub struct SidesArgs {
    /// Kubeconfig file of the other cluster, with the rights of an administrator there. It is not stored.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the other cluster, in that file or in what kubectl uses.
    #[arg(long)]
    pub context: Option<String>,

    /// Kubeconfig file of the hub; by default what kubectl uses.
    #[arg(long)]
    pub hub_kubeconfig: Option<PathBuf>,

    /// Context of the hub; by default the current one.
    #[arg(long)]
    pub hub_context: Option<String>,

    /// Namespace of the operator, on the hub. Its identity in the other cluster is in one of the same name.
    #[arg(long, default_value = "bsn-system")]
    pub operator_namespace: String,

    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}

/// How to print a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JoinOutput {
    /// For people.
    Table,
    /// As objects, for Git. Nothing is done.
    Yaml,
}

/// Options of `join`.
#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// Name of the cluster.
    pub name: String,

    /// Namespace whose networks may have nodes there; may be given several times. Those it has already stay.
    #[arg(short, long = "namespace")]
    pub namespaces: Vec<String>,

    /// Address by which the hub reaches the cluster's API server; by default that in the kubeconfig.
    #[arg(long)]
    pub server: Option<String>,

    /// Where the cluster is.
    #[arg(long)]
    pub region: Option<String>,

    /// Image of the agents in nodes there; by default the operator's own.
    #[arg(long)]
    pub image: Option<String>,

    /// Make a new token, and revoke the old one once the operator has the new one.
    #[arg(long)]
    pub rotate: bool,

    /// How to print.
    #[arg(short, long, value_enum, default_value_t = JoinOutput::Table)]
    pub output: JoinOutput,

    /// Which clusters.
    #[command(flatten)]
    pub sides: SidesArgs,
}

/// Options of `leave`.
#[derive(Debug, Clone, Args)]
pub struct LeaveArgs {
    /// Name of the cluster.
    pub name: String,

    /// Also if it hosts nodes. They run on, and nobody looks after them.
    #[arg(long)]
    pub force: bool,

    /// Change nothing in the cluster itself, for one that is gone.
    #[arg(long, conflicts_with_all = ["kubeconfig", "context"])]
    pub hub_only: bool,

    /// Which clusters.
    #[command(flatten)]
    pub sides: SidesArgs,
}

/// Why nothing was done, or not all.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No connection.
    #[error("{side}: {source}")]
    Connect {
        /// To which cluster.
        side: &'static str,
        /// Why.
        #[source]
        source: Box<StatusError>,
    },
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// It makes no sense.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing says which cluster.
    #[error("name the other cluster: --kubeconfig FILE or --context NAME")]
    NoMember,
    /// No operator on the hub.
    #[error(
        "there is no Secret {0}/{HUB_SECRET} on the hub: install the operator first, or name its namespace with \
         --operator-namespace"
    )]
    NoHub(String),
    /// The kubeconfig of the member.
    #[error("the kubeconfig of the other cluster: {0}")]
    Kubeconfig(String),
    /// Nobody to ask.
    #[error("add --yes to do it without asking")]
    NotAsked,
    /// A person said no.
    #[error("nothing was done")]
    Declined,
    /// No token.
    #[error(
        "the cluster made no token within {} s; run the command again", TOKEN_DEADLINE.as_secs()
    )]
    NoToken,
}

/// Runs a command.
pub async fn run(command: &ClusterCommand) -> Result<(), ClusterError> {
    match command {
        ClusterCommand::Join(args) => join(args).await,
        ClusterCommand::Leave(args) => leave(args).await,
    }
}

/// Clients of both clusters.
struct Sides {
    hub: Client,
    hub_id: String,
    /// None: it is left alone.
    member: Option<Client>,
}

impl Sides {
    async fn connect(args: &SidesArgs, with_member: bool) -> Result<Self, ClusterError> {
        let failed = |side| move |source| ClusterError::Connect { side, source: Box::new(source) };
        let hub = ClusterArgs {
            kubeconfig: args.hub_kubeconfig.clone(),
            context: args.hub_context.clone(),
            namespace: None,
            operator_namespace: args.operator_namespace.clone(),
        };
        let member = ClusterArgs {
            kubeconfig: args.kubeconfig.clone(),
            context: args.context.clone(),
            ..hub.clone()
        };
        if with_member && member.kubeconfig.is_none() && member.context.is_none() {
            return Err(ClusterError::NoMember);
        }
        let (hub, _) = connect(&hub).await.map_err(failed("the hub"))?;
        let secret = read::<Secret>(&hub, &args.operator_namespace, HUB_SECRET).await?;
        let hub_id = secret
            .and_then(|secret| entry(&secret, HUB_ID).map(|id| id.trim().to_owned()))
            .ok_or_else(|| ClusterError::NoHub(args.operator_namespace.clone()))?;
        let member = if with_member {
            let (member, _) = connect(&member).await.map_err(failed("the other cluster"))?;
            Some(member)
        } else {
            None
        };
        Ok(Self { hub, hub_id, member })
    }

    fn api(&self, key: &Key) -> Option<Api<DynamicObject>> {
        let client = match key.side {
            Side::Hub => self.hub.clone(),
            Side::Member => self.member.clone()?,
        };
        let resource = key.kind.resource();
        Some(if key.namespace.is_empty() {
            Api::all_with(client, &resource)
        } else {
            Api::namespaced_with(client, &key.namespace, &resource)
        })
    }

    async fn read(&self, key: &Key) -> Result<Option<Value>, ApiError> {
        let Some(api) = self.api(key) else { return Ok(None) };
        let found = bounded(|| format!("get {key}"), api.get_opt(&key.name)).await?;
        Ok(found.map(as_value))
    }

    /// What an earlier join made, found by its labels.
    async fn observe_marked(
        &self,
        name: &str,
        operator_namespace: &str,
    ) -> Result<Found, ApiError> {
        let own = operator_namespace;
        let places = [
            (Side::Hub, Kind::Secret, own),
            (Side::Member, Kind::ServiceAccount, own),
            (Side::Member, Kind::Secret, own),
            (Side::Member, Kind::ClusterRole, ""),
            (Side::Member, Kind::ClusterRoleBinding, ""),
            // In all namespaces: those of an earlier description, too.
            (Side::Member, Kind::Role, ""),
            (Side::Member, Kind::RoleBinding, ""),
        ];
        let labels = labels_of(name, &self.hub_id);
        let selector: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let selector = ListParams::default().labels(&selector.join(","));
        let lists = places.map(async |(side, kind, namespace)| {
            let key = Key { side, kind, namespace: namespace.to_owned(), name: String::new() };
            let Some(api) = self.api(&key) else { return Ok(Vec::new()) };
            let all = bounded(|| format!("list {kind:?}s"), api.list(&selector)).await?;
            Ok::<_, ApiError>(
                all.into_iter()
                    .map(|object| {
                        let namespace = object.namespace().unwrap_or_default();
                        (Key { side, kind, namespace, name: object.name_any() }, as_value(object))
                    })
                    .collect(),
            )
        });
        let mut found: Found = try_join_all(lists).await?.into_iter().flatten().collect();
        let cluster = Key {
            side: Side::Hub,
            kind: Kind::BsnCluster,
            namespace: String::new(),
            name: name.to_owned(),
        };
        if let Some(object) = self.read(&cluster).await? {
            found.insert(cluster, object);
        }
        Ok(found)
    }

    /// What has the names that a join needs, whoever made it.
    async fn observe_named(&self, wish: &Wish, found: &mut Found) -> Result<(), ApiError> {
        let keys: Vec<Key> = build_objects(wish, "")
            .into_iter()
            .map(|wanted| wanted.key)
            .filter(|key| !found.contains_key(key))
            .collect();
        let reads = keys.into_iter().map(async |key| {
            let object = self.read(&key).await?;
            Ok::<_, ApiError>(object.map(|object| (key, object)))
        });
        found.extend(try_join_all(reads).await?.into_iter().flatten());
        Ok(())
    }

    /// Whether both are the same cluster: a namespace that every cluster has has another uid in each.
    async fn are_one(&self) -> Result<bool, ApiError> {
        let uid = async |client: &Client| {
            let api = Api::<Namespace>::all(client.clone());
            let what = || format!("get Namespace {EVERYWHERE}");
            let found = bounded(what, api.get_opt(EVERYWHERE)).await?;
            Ok::<_, ApiError>(found.and_then(|namespace| namespace.uid()))
        };
        let Some(member) = &self.member else { return Ok(false) };
        let (hub, member) = (uid(&self.hub).await?, uid(member).await?);
        Ok(hub.is_some() && hub == member)
    }
}

fn as_value(object: DynamicObject) -> Value {
    // It came as JSON.
    serde_json::to_value(object).unwrap_or_default()
}

async fn join(args: &JoinArgs) -> Result<(), ClusterError> {
    let sides = Sides::connect(&args.sides, true).await?;
    if sides.are_one().await? {
        return Err(Refusal::IsHub.into());
    }
    let operator_namespace = &args.sides.operator_namespace;
    let endpoint = read_endpoint(args)?;
    let mut found = sides.observe_marked(&args.name, operator_namespace).await?;
    let asked = Asked {
        namespaces: args.namespaces.clone(),
        region: args.region.clone(),
        image: args.image.clone(),
        rotate: args.rotate,
    };
    let wish =
        resolve_wish(&args.name, &sides.hub_id, operator_namespace, endpoint, &asked, &found)?;
    if args.output == JoinOutput::Yaml {
        print!("{}", render_yaml(&wish));
        return Ok(());
    }
    sides.observe_named(&wish, &mut found).await?;
    let planned = plan_join(&wish, &found)?;
    let undo = undo_command(args);
    print!("{}", render_join(&wish, &planned, &undo));
    if planned.iter().all(|one| one.action == Action::Keep) {
        println!("\nAll of this is so already.");
        return Ok(());
    }
    if args.sides.dry_run {
        return Ok(());
    }
    confirm(args.sides.yes)?;
    for one in &planned {
        let mut one = one.clone();
        if (one.key.side, one.key.kind, one.action == Action::Remove)
            == (Side::Hub, Kind::Secret, false)
        {
            // The token is there now, or soon.
            let (token, ca) = sides.await_token(&wish).await?;
            one.object =
                build_kubeconfig_secret(&wish, &render_kubeconfig(&wish, &token, &ca)).object;
        }
        if (one.key.kind, one.action) == (Kind::Secret, Action::Remove) {
            println!(
                "waiting {} s for the operator to use the new token",
                OLD_TOKEN_HOLDS.as_secs()
            );
            tokio::time::sleep(OLD_TOKEN_HOLDS).await;
        }
        sides.apply(&one, &found).await?;
    }
    println!(
        "\nDone. The operator connects within seconds:\n\n  kubectl wait bsncluster/{0} --for=condition=Ready\n  \
         kubectl get bsncluster {0}",
        args.name
    );
    Ok(())
}

async fn leave(args: &LeaveArgs) -> Result<(), ClusterError> {
    let sides = Sides::connect(&args.sides, !args.hub_only).await?;
    let found = sides.observe_marked(&args.name, &args.sides.operator_namespace).await?;
    let planned = plan_leave(&args.name, &sides.hub_id, &found, args.force)?;
    print!("{}", render_leave(&args.name, &planned, args.hub_only));
    if args.sides.dry_run {
        return Ok(());
    }
    confirm(args.sides.yes)?;
    for one in &planned {
        sides.apply(one, &found).await?;
    }
    println!("\nDone.");
    Ok(())
}

fn confirm(yes: bool) -> Result<(), ClusterError> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(ClusterError::NotAsked);
    }
    print!("\nGo on? [y/N] ");
    // Without the question the answer is no.
    let mut answer = String::new();
    let asked = std::io::stdout().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    match (asked, answer.trim()) {
        (Ok(_), "y" | "Y" | "yes") => Ok(()),
        _ => Err(ClusterError::Declined),
    }
}

fn undo_command(args: &JoinArgs) -> String {
    let SidesArgs { kubeconfig, context, hub_kubeconfig, hub_context, operator_namespace, .. } =
        &args.sides;
    let mut command = format!("kubectl bsn cluster leave {}", args.name);
    let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let options = [
        ("kubeconfig", file(kubeconfig)),
        ("context", context.clone()),
        ("hub-kubeconfig", file(hub_kubeconfig)),
        ("hub-context", hub_context.clone()),
        (
            "operator-namespace",
            (operator_namespace != "bsn-system").then(|| operator_namespace.clone()),
        ),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            command.push_str(" --");
            command.push_str(name);
            command.push(' ');
            command.push_str(&value);
        }
    }
    command
}

/// How the member is reached, by the administrator's own kubeconfig.
fn read_endpoint(args: &JoinArgs) -> Result<Endpoint, ClusterError> {
    let failed = |error: &dyn std::fmt::Display| ClusterError::Kubeconfig(error.to_string());
    let config = match &args.sides.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let config = config.map_err(|error| failed(&error))?;
    let context = args.sides.context.clone().or(config.current_context);
    let context = context.ok_or_else(|| failed(&"it has no current-context; add --context"))?;
    let cluster = config
        .contexts
        .iter()
        .find(|entry| entry.name == context)
        .and_then(|entry| entry.context.as_ref())
        .and_then(|context| config.clusters.iter().find(|entry| entry.name == context.cluster))
        .and_then(|entry| entry.cluster.clone())
        .ok_or_else(|| failed(&format!("it holds no cluster for the context {context}")))?;
    let ca = match (cluster.certificate_authority_data, cluster.certificate_authority) {
        (Some(data), _) => Some(data),
        (None, Some(path)) => {
            let content = std::fs::read(&path).map_err(|error| failed(&error))?;
            Some(base64::engine::general_purpose::STANDARD.encode(content))
        }
        (None, None) => None,
    };
    let server = args.server.clone().or(cluster.server).unwrap_or_default();
    Ok(Endpoint { server, ca, tls_server_name: cluster.tls_server_name })
}

impl Sides {
    async fn await_token(&self, wish: &Wish) -> Result<(String, String), ClusterError> {
        let key = Key {
            side: Side::Member,
            kind: Kind::Secret,
            namespace: wish.operator_namespace.clone(),
            name: wish.token_name(),
        };
        let waiting = async {
            loop {
                let read = self.read(&key).await?;
                let found: Found = read.map(|object| (key.clone(), object)).into_iter().collect();
                if let Some(token) = token_in(wish, &found) {
                    return Ok::<_, ClusterError>(token);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        match tokio::time::timeout(TOKEN_DEADLINE, waiting).await {
            Ok(token) => token,
            Err(_) => Err(ClusterError::NoToken),
        }
    }

    async fn apply(&self, planned: &Planned, found: &BTreeMap<Key, Value>) -> Result<(), ApiError> {
        let Planned { key, action, object, .. } = planned;
        let Some(api) = self.api(key) else { return Ok(()) };
        let there = found.get(key).map(|there| &there["metadata"]);
        let of = |field: &str| there.and_then(|meta| meta[field].as_str()).map(str::to_owned);
        let manager = Some(FIELD_MANAGER.to_owned());
        match action {
            Action::Keep => return Ok(()),
            Action::Make => {
                let params = PostParams { field_manager: manager, ..PostParams::default() };
                // Built from typed values: it has a form.
                let object: DynamicObject = match serde_json::from_value(object.clone()) {
                    Ok(object) => object,
                    Err(error) => {
                        let source = Box::new(kube::Error::SerdeError(error));
                        return Err(ApiError::Request { what: format!("create {key}"), source });
                    }
                };
                bounded(|| format!("create {key}"), api.create(&params, &object)).await?;
            }
            Action::Change => {
                let mut patch = object.clone();
                // Nothing is changed that is not what the plan was made of.
                patch["metadata"]["uid"] = json!(of("uid"));
                patch["metadata"]["resourceVersion"] = json!(of("resourceVersion"));
                let params = PatchParams { field_manager: manager, ..PatchParams::default() };
                let patch = Patch::Merge(&patch);
                bounded(|| format!("patch {key}"), api.patch(&key.name, &params, &patch)).await?;
            }
            Action::Remove => {
                let preconditions = Preconditions { uid: of("uid"), resource_version: None };
                let params =
                    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                match bounded(|| format!("delete {key}"), api.delete(&key.name, &params)).await {
                    Err(error) if error.code() == Some(404) => {}
                    result => {
                        result?;
                    }
                }
            }
        }
        let word = match action {
            Action::Make => "made",
            Action::Change => "changed",
            Action::Keep => "kept",
            Action::Remove => "removed",
        };
        println!("{word} {key}");
        Ok(())
    }
}
