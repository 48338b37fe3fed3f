//! Certificates are renewed while the nodes run.

use std::time::Duration;

use crate::support::{World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_are_served_without_a_restart() {
    let world = World::new("certificates").await;
    let short = "\npki:\n  leaf:\n    validity: 6m\n    renewBefore: 5m\n";
    world.apply(&world.yaml(&(World::sample_spec() + short)));
    world.await_ready().await;
    let pods = world.pods().await;
    let first: Vec<_> =
        world.view().unwrap().nodes.into_iter().map(|node| node.certificate_ends).collect();
    assert!(first.iter().all(Option::is_some), "{first:?}");

    // Due after one minute; then the kubelet takes up to another minute to show the new file.
    eventually("new certificates on all nodes", Duration::from_mins(4), async || {
        let view = world.view()?;
        let all_new = view
            .nodes
            .iter()
            .zip(&first)
            .all(|(node, first)| node.certificate_ends > *first && node.in_sync);
        if all_new { Ok(()) } else { Err(format!("{:?}", view.nodes)) }
    })
    .await;
    world.await_condition("CertificatesValid", "True", Duration::from_secs(5)).await;
    for (now, before) in world.pods().await.iter().zip(&pods) {
        assert_eq!(now.metadata.uid, before.metadata.uid);
        let status = now.status.as_ref().unwrap();
        let containers = status.container_statuses.iter().chain(&status.init_container_statuses);
        assert!(containers.flatten().all(|container| container.restart_count == 0), "{status:?}");
    }
    world.remove();
}
