//! An operator with nothing to do writes nothing.

use std::time::Duration;

use crate::audit::{Request, count};
use crate::support::World;

const QUIET: Duration = Duration::from_mins(5);
/// Time for statuses to settle after a network has become ready.
const SETTLE: Duration = Duration::from_secs(30);

/// All that write, but for the Lease.
pub fn writes(requests: &[Request]) -> Vec<&Request> {
    requests.iter().filter(|request| request.writes() && request.resource != "leases").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_five_quiet_minutes_and_over_a_restart_the_operator_writes_its_lease_only() {
    let world = World::new("quiet").await;
    world.apply(&world.yaml(&World::sample_spec()));
    world.await_ready().await;
    tokio::time::sleep(SETTLE).await;

    let mark = world.mark();
    tokio::time::sleep(QUIET).await;
    let requests = world.requests_since(mark);
    println!("requests in {} quiet seconds: {:?}", QUIET.as_secs(), count(&requests));
    assert_eq!(writes(&requests), Vec::<&Request>::new());
    assert!(requests.iter().any(Request::writes), "the log must at least show the Lease");

    let mark = world.mark();
    let args = ["rollout", "restart", "deployment/bsn-operator", "-n", "bsn-system"];
    world.kubectl_ok(&args);
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.await_operator().await;
    // The new leader has looked at everything, and watched the chain for long enough to judge it.
    world.await_height_above(world.head().await + 5, Duration::from_mins(1)).await;
    tokio::time::sleep(SETTLE).await;
    let requests = world.requests_since(mark);
    println!("requests over a restart: {:?}", count(&requests));
    assert_eq!(writes(&requests), Vec::<&Request>::new());
    world.remove();
}
