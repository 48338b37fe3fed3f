//! What the operator tells Prometheus.

use std::net::SocketAddr;

use bsn_operator::http::exchange;
use bsn_testkit::operator::NAMESPACE as OPERATOR_NAMESPACE;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::net::TcpStream;

use crate::rpc::ip_of;
use crate::support::World;

impl World {
    /// All that the leader tells.
    pub async fn metrics(&self) -> String {
        let leader = self.leader().await;
        let pods = Api::<Pod>::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        let pod = pods.get(&leader).await.unwrap();
        let request = Request::get("/metrics").header("host", "x").body(Full::default()).unwrap();
        let stream = TcpStream::connect(SocketAddr::new(ip_of(&pod), 8080)).await.unwrap();
        let (status, body) = exchange(stream, request, 1 << 20).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        String::from_utf8(body.to_vec()).unwrap()
    }
}

/// A histogram without labels: upper bounds, and how many samples are not above each.
#[derive(Debug)]
pub struct Histogram(Vec<(f64, u64)>);

impl Histogram {
    pub fn parse(text: &str, name: &str) -> Self {
        let bucket = format!("{name}_bucket{{le=\"");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&bucket));
        let read = |line: &str| {
            let (bound, count) = line.split_once("\"} ").unwrap();
            (bound.parse().unwrap(), count.parse().unwrap())
        };
        let buckets: Vec<_> = lines.map(read).collect();
        assert!(!buckets.is_empty(), "no {name} in {text}");
        Self(buckets)
    }

    /// The samples that came since an earlier look at the same process.
    pub fn since(self, before: &Self) -> Self {
        let pairs = self.0.into_iter().zip(&before.0);
        let less = |now: u64, before: u64| {
            now.checked_sub(before).expect("the same process of the operator leads")
        };
        Self(pairs.map(|((bound, now), (_, before))| (bound, less(now, *before))).collect())
    }

    /// How many samples.
    pub fn count(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }

    /// The lowest bound that so many per cent of the samples are not above.
    pub fn within(&self, percent: u64) -> f64 {
        let enough = |count: u64| count * 100 >= self.count() * percent;
        self.0.iter().find(|(_, count)| enough(*count)).map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}
