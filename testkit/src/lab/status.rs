//! What runs and what does not.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::process::{ProcessState, Service};
use super::{Lab, addons, network, up};

/// A stopped API server must not hold up the table.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// State of the lab.
#[derive(Clone, Debug)]
pub struct Status {
    /// One line for each part.
    pub lines: Vec<Line>,
    /// Whether clusters are cut from each other.
    pub partitioned: bool,
}

/// State of one part.
#[derive(Clone, Debug)]
pub struct Line {
    /// Which part, such as `machine 0/1`.
    pub what: String,
    /// Whether all of it works.
    pub well: bool,
    /// What works and what does not.
    pub detail: String,
}

impl Lab {
    /// State of all parts.
    pub async fn status(&self) -> Status {
        let mut lines = Vec::new();
        for cluster in 0..self.spec.clusters {
            let nodes = self.ready_nodes(cluster).await;
            let answers = match &nodes {
                Ok(ready) => format!("{} of {} nodes Ready", ready.len(), self.spec.machines),
                Err(error) => format!("API server does not answer: {error}"),
            };
            let mut services = super::ControlPlane::new(&self.layout, cluster).services().to_vec();
            services.push(up::provisioner_service(&self.layout, cluster));
            let what = format!("cluster {cluster}");
            lines.push(line(what, &services, nodes.is_ok(), &answers));
            for id in self.spec.machines().filter(|id| id.cluster == cluster) {
                let ready = nodes.as_ref().is_ok_and(|names| names.contains(&id.node_name()));
                let state = if ready { "Ready" } else { "not Ready" };
                let detail = format!("{} at {}: {state}", id.node_name(), id.ip());
                let services = self.machine_of(id).services();
                lines.push(line(format!("machine {id}"), &services, ready, &detail));
            }
        }
        Status { lines, partitioned: network::is_partitioned() }
    }

    async fn ready_nodes(&self, cluster: usize) -> anyhow::Result<Vec<String>> {
        let nodes = Api::<Node>::all(self.client(cluster).await?);
        let listed =
            tokio::time::timeout(ANSWER_DEADLINE, nodes.list(&ListParams::default())).await??;
        Ok(listed.iter().filter(|node| addons::is_ready(node)).map(ResourceExt::name_any).collect())
    }
}

fn line(what: String, services: &[Service], answers: bool, detail: &str) -> Line {
    let mut detail = detail.to_owned();
    let mut well = answers;
    for service in services {
        let state = match service.state() {
            ProcessState::Running => continue,
            ProcessState::Paused => "paused",
            ProcessState::Dead => "dead",
        };
        well = false;
        detail = format!("{detail}; {} {state}", service.name());
    }
    Line { what, well, detail }
}
