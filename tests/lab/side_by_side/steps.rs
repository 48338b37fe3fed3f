//! The protocol of steps on a real API server: its swaps, its conflicts, its restores.

use std::collections::BTreeMap;
use std::time::Duration;

use bsn_core::intent::record::{Intent, NewStep};
use bsn_core::intent::refusal::Refusal;
use bsn_core::intent::writer::{Place, Task, Writer};
use bsn_operator::intent::{DriveError, MapStore, STEPS_KEY, drive};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::support::World;

const LEASE: Duration = Duration::from_secs(15);

struct Anchors {
    world: World,
    stores: BTreeMap<Place, MapStore>,
}

impl Anchors {
    async fn new() -> Self {
        let world = World::new("steps").await;
        let store = |name: &str| MapStore {
            client: Some(world.client.clone()),
            namespace: world.namespace.clone(),
            name: name.to_owned(),
        };
        // A member cluster has an API server of its own; its anchor is a ConfigMap like any other.
        let stores = [
            (Place::Primary, store("primary")),
            (Place::Copy("east".to_owned()), store("copy-in-the-east")),
        ];
        Self { stores: stores.into(), world }
    }

    fn writer(transitions: u64) -> Writer<String> {
        Writer::new("h1", "n1", transitions, ["east".to_owned()])
    }

    /// Does a task; gives the effects that were asked for.
    async fn run(
        &self,
        writer: &mut Writer<String>,
        task: Task<String>,
    ) -> Result<Vec<String>, DriveError> {
        let mut effects = Vec::new();
        writer.start(task);
        drive(
            writer,
            &self.stores,
            || LEASE,
            |intent: &Intent<String>| effects.push(intent.step.clone()),
        )
        .await?;
        Ok(effects)
    }

    async fn primary(&self) -> ConfigMap {
        self.world.api::<ConfigMap>().get("primary").await.unwrap()
    }
}

fn begin(step: &str, decided_on: u64) -> Task<String> {
    let (ledger, places) = ("main".to_owned(), ["east".to_owned()].into());
    Task::Begin(NewStep { ledger, places, step: step.to_owned(), decided_on })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_done_once_by_two_leaders_and_a_restored_hub_asks() {
    let anchors = Anchors::new().await;
    let send = |number| Task::Send { ledger: "main".to_owned(), number };
    let finish = |number| Task::Finish { ledger: "main".to_owned(), number };
    let mut first = Anchors::writer(1);
    anchors.run(&mut first, Task::Create).await.unwrap();
    anchors.run(&mut first, begin("add", 0)).await.unwrap();
    let backup = anchors.primary().await;

    // Somebody else's entry in the same ConfigMap is no harm: the swap fails, and is done again.
    let patch = Patch::Merge(json!({"data": {"anchor.json": "{}"}}));
    let maps = anchors.world.api::<ConfigMap>();
    maps.patch("primary", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(anchors.run(&mut first, send(1)).await.unwrap(), ["add"]);
    assert_eq!(anchors.primary().await.data.unwrap()["anchor.json"], "{}");

    // Another leader goes on with the same step; the old one is fenced.
    let mut second = Anchors::writer(2);
    assert_eq!(anchors.run(&mut second, send(1)).await.unwrap(), ["add"]);
    let fenced = anchors.run(&mut first, send(1)).await.unwrap_err();
    assert!(matches!(fenced, DriveError::Refused(Refusal::Fenced { .. })), "{fenced}");
    anchors.run(&mut second, finish(1)).await.unwrap();
    let version = anchors.primary().await.metadata.resource_version;
    anchors.run(&mut second, Task::Rest).await.unwrap();
    assert_eq!(
        anchors.primary().await.metadata.resource_version,
        version,
        "at rest nothing is written"
    );

    // The hub comes back from a backup: the copy knows more.
    let patch = Patch::Merge(json!({"data": {STEPS_KEY: backup.data.unwrap()[STEPS_KEY]}}));
    maps.patch("primary", &PatchParams::default(), &patch).await.unwrap();
    let mut third = Anchors::writer(3);
    let refused = anchors.run(&mut third, send(1)).await.unwrap_err();
    let DriveError::Refused(Refusal::HubOlder { consent, .. }) = refused else {
        panic!("{refused}");
    };
    anchors.run(&mut third, Task::TakeOver { consent }).await.unwrap();

    // Damaged by hand: nothing is guessed, nothing overwritten.
    let patch = Patch::Merge(json!({"data": {STEPS_KEY: "{"}}));
    maps.patch("primary", &PatchParams::default(), &patch).await.unwrap();
    let damaged = anchors.run(&mut third, begin("remove", 2)).await.unwrap_err();
    assert!(matches!(damaged, DriveError::Unreadable { .. }), "{damaged}");
    assert_eq!(anchors.primary().await.data.unwrap()[STEPS_KEY], "{");
    anchors.world.remove();
}
