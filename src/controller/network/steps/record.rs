//! The record of steps: in the anchor, and in its copies beside the nodes of member clusters.

use std::collections::BTreeMap;

use bsn_core::anchor::Anchor;
use bsn_core::intent::refusal::{Category, Refusal as StepRefusal};
use bsn_core::intent::writer::{Place, Task};
use bsn_core::steps::RecordedStep;

use super::memory::Memory;
use crate::api::conditions::Reason;
use crate::controller::network::apply::Pass;
use crate::controller::{Error, Refusal, Step};
use crate::intent::{DriveError, Effects, MapStore, drive};

impl Pass<'_> {
    /// Does a task of the protocol. What another try may cure is logged, or an error.
    pub(super) async fn drive(
        &self,
        anchor: &Anchor,
        task: Task<RecordedStep>,
        memory: &mut Memory,
        effects: impl Effects<RecordedStep>,
    ) -> Step<()> {
        let stores = self.stores(anchor);
        set_places(memory, &stores);
        memory.writer.start(task);
        let ctx = self.ctx;
        let done = drive(&mut memory.writer, &stores, || ctx.term.remaining(), effects).await;
        // Whatever it was, the cache is behind it.
        ctx.anchors.note_written(self.key, Some(String::new()));
        match done {
            Ok(()) => Ok(Ok(())),
            Err(DriveError::Refused(refusal)) => match refusal.category() {
                Category::Person | Category::Misuse => {
                    Ok(Err(Refusal::new(Reason::AnchorRefused, refusal.to_string())))
                }
                Category::DecideAgain | Category::EndTerm => {
                    tracing::info!(network = %self.key, %refusal, "decided again");
                    Err(Error::Steps(DriveError::Refused(refusal)))
                }
            },
            Err(error @ DriveError::Closed { .. }) => {
                Ok(Err(Refusal::new(Reason::ClusterUnreachable, error.to_string())))
            }
            Err(error) => Err(Error::Steps(error)),
        }
    }

    /// Reads all copies once in a term, as soon as all can be: so that none of them holds up steps elsewhere when it
    /// cannot be asked later. Writes nothing but what a crash left undone.
    pub(super) async fn read_copies(&self, anchor: &Anchor, memory: &mut Memory) -> Step<()> {
        let stores = self.stores(anchor);
        set_places(memory, &stores);
        if memory.writer.has_read_all() || stores.values().any(|store| store.client.is_none()) {
            return Ok(Ok(()));
        }
        memory.writer.start(Task::Rest);
        let ctx = self.ctx;
        match drive(&mut memory.writer, &stores, || ctx.term.remaining(), |_: &_| {}).await {
            // No step was ever begun: what was to be read was read.
            Ok(()) | Err(DriveError::Refused(StepRefusal::Absent)) => Ok(Ok(())),
            Err(DriveError::Refused(refusal)) if refusal.category() == Category::Person => {
                Ok(Err(Refusal::new(Reason::AnchorRefused, refusal.to_string())))
            }
            Err(error) => Err(Error::Steps(error)),
        }
    }

    /// Goes on from the newest record of steps, since a person consented to that.
    pub(in crate::controller::network) async fn take_over_steps(
        &self,
        anchor: &Anchor,
        consent: &str,
    ) -> Step<()> {
        let mut memory = self.memory(anchor).await;
        let task = Task::TakeOver { consent: consent.to_owned() };
        self.drive(anchor, task, &mut memory, |_: &_| {}).await
    }

    /// Where the record is kept.
    fn stores(&self, anchor: &Anchor) -> BTreeMap<Place, MapStore> {
        let (namespace, name) = (&self.key.namespace, self.validated.desired.name.anchor());
        let store = |client| MapStore { client, namespace: namespace.clone(), name: name.clone() };
        let primary = (Place::Primary, store(Some(self.ctx.client.clone())));
        let hosts = anchor.clusters();
        // Those a person gave up for lost are not among the members.
        let members = self.observed.members.iter();
        let copies = members.filter(|(cluster, _)| hosts.contains(cluster.as_str())).map(
            |(cluster, place)| {
                let client = place.as_ref().ok().map(|place| place.client.clone());
                (Place::Copy(cluster.clone()), store(client))
            },
        );
        [primary].into_iter().chain(copies).collect()
    }
}

/// Tells the writer which clusters the network has, and which of them cannot be asked now.
fn set_places(memory: &mut Memory, stores: &BTreeMap<Place, MapStore>) {
    let places = || {
        stores.iter().filter_map(|(place, store)| match place {
            Place::Primary => None,
            Place::Copy(cluster) => Some((cluster.clone(), store.client.is_none())),
        })
    };
    let closed = places().filter(|(_, closed)| *closed).map(|(cluster, _)| cluster);
    memory.writer.set_places(places().map(|(cluster, _)| cluster), closed);
}
