//! What is known of a node from elsewhere than its gateway: its own API server's word.

use bsn_core::membership::model::Engine;
use bsn_core::names::NodeName;
use bsn_core::watch::Known;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;

use super::poller::Target;
use crate::cluster::Clusters;
use crate::cluster::watches::cached;

/// Name of the engine's container.
pub const ENGINE: &str = "engine";

/// Puts together what is known of a node.
pub fn know(target: &Target, clusters: &Clusters, namespace: &str) -> Known {
    let seen = clusters.seen(&target.cluster, namespace);
    let pod = seen
        .as_ref()
        .and_then(|seen| cached(&seen.objects.pods, namespace, &format!("{}-0", target.name)));
    let fresh = seen.is_some_and(|seen| seen.fresh);
    Known {
        name: NodeName::from_object(&target.name),
        address: target.address.clone(),
        node_id: target.node_id.clone(),
        // What a cluster said that cannot be asked now says nothing about now.
        engine: if fresh { engine_state(pod.as_deref()) } else { Engine::Unknown },
        pod: pod.as_ref().and_then(|pod| pod.uid()),
        power: target.power,
    }
}

/// What a node's API server says of its engine. A machine that cannot be reached leaves its pods' containers
/// as they were last seen: then this is old news, and the chain alone tells.
pub fn engine_state(pod: Option<&Pod>) -> Engine {
    let running = pod.and_then(engine_status).is_some_and(|engine| {
        engine.ready && engine.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    if running { Engine::Ready } else { Engine::NotReady }
}

/// Id of the engine's process: a new one at each start of its container.
pub fn engine_start(pod: &Pod) -> Option<String> {
    let engine = engine_status(pod)?;
    engine.state.as_ref()?.running.as_ref()?;
    engine.container_id.clone()
}

fn engine_status(pod: &Pod) -> Option<&ContainerStatus> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.iter().find(|container| container.name == ENGINE)
}
