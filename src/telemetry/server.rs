//! The operator's two listeners.
//!
//! One for the cluster: `/livez`, `/readyz`, `/metrics`. One on loopback for `kubectl bsn`, which reaches
//! it by port-forward, so that the API server authenticates and authorises its readers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;

use super::Metrics;
use crate::view::{Memberships, NetworkKey, Views};

/// What the probes ask; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    ready: AtomicBool,
    leading: AtomicBool,
}

impl Health {
    /// Neither ready nor leading.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says whether this replica does, or could do, its work.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// Says whether this replica leads, so that it has live numbers.
    pub fn set_leading(&self, leading: bool) {
        self.0.leading.store(leading, Ordering::Relaxed);
    }
}

async fn serve(
    address: SocketAddr,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let listener = TcpListener::bind(address).await?;
    Ok(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
            tracing::error!(%address, %error, "a listener ended");
        }
    })
}

/// Binds the cluster's listener; the future serves it.
pub async fn serve_public(
    address: SocketAddr,
    health: Health,
    metrics: Metrics,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let ready = async move || {
        if health.0.ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "starting")
        }
    };
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(async move || encoded(&metrics)));
    serve(address, router, stop).await
}

fn encoded(metrics: &Metrics) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What the listener for `kubectl bsn` shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Whether this replica leads.
    pub health: Health,
    /// Live numbers.
    pub views: Views,
    /// What was decided about members.
    pub memberships: Memberships,
}

/// Binds the listener for `kubectl bsn`; the future serves it.
pub async fn serve_status(
    address: SocketAddr,
    shown: Shown,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    serve(address, build_status_router(shown), stop).await
}

fn build_status_router(shown: Shown) -> Router {
    Router::new()
        .route("/v1/networks/{namespace}/{name}", get(network))
        .route("/v1/networks/{namespace}/{name}/membership", get(membership))
        .with_state(shown)
}

async fn network(
    State(shown): State<Shown>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let key = NetworkKey { namespace, name };
    let view = shown.views.get(&key);
    shown.answer(view, || format!("the operator does not watch the nodes of {key} yet"))
}

async fn membership(
    State(shown): State<Shown>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let key = NetworkKey { namespace, name };
    let view = shown.memberships.get(&key);
    shown.answer(view, || {
        format!(
            "the operator has decided nothing about the members of {key} yet: its chain is not formed or not seen, \
             or it is paused; kubectl bsn status shows which"
        )
    })
}

impl Shown {
    fn answer(&self, view: Option<impl Serialize>, missing: impl FnOnce() -> String) -> Response {
        if let Some(view) = view {
            return Json(view).into_response();
        }
        let (status, why) = if self.health.0.leading.load(Ordering::Relaxed) {
            (StatusCode::NOT_FOUND, missing())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "this replica does not lead".to_owned())
        };
        (status, Json(json!({ "error": why }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use bsn_core::membership::{Decision, Desired, Observed, Policy};
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;
    use crate::view::MembershipView;

    async fn asked(shown: &Shown, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = build_status_router(shown.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn what_was_decided_is_shown_by_who_leads() {
        let shown = Shown {
            health: Health::new(),
            views: Views::default(),
            memberships: Memberships::default(),
        };
        let path = "/v1/networks/ledger/city-ledger/membership";
        let (status, _) = asked(&shown, path).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        shown.health.set_leading(true);
        let (status, body) = asked(&shown, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body["error"].as_str().unwrap().contains("ledger/city-ledger"), "{body}");
        let view = MembershipView {
            desired: Desired::default(),
            observed: Observed {
                nodes: [].into(),
                ledgers: [].into(),
                begun: None,
                hub: bsn_core::membership::model::Hub::Current,
            },
            policy: Policy::default(),
            decision: Decision::Converged,
            for_seconds: 3,
            described: [].into(),
            in_force: [].into(),
            image_prefix: String::new(),
            next_index: [].into(),
            disks: [].into(),
            disruption: None,
            warnings: Vec::new(),
        };
        let key = NetworkKey { namespace: "ledger".into(), name: "city-ledger".into() };
        shown.memberships.put(key, view.clone());
        let (status, body) = asked(&shown, path).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(serde_json::from_value::<MembershipView>(body).unwrap(), view);
    }
}
