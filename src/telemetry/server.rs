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
use serde_json::json;
use tokio::net::TcpListener;

use super::Metrics;
use crate::view::{NetworkKey, Views};

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

/// Binds the listener for `kubectl bsn`; the future serves it.
pub async fn serve_status(
    address: SocketAddr,
    health: Health,
    views: Views,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let router = Router::new()
        .route("/v1/networks/{namespace}/{name}", get(network))
        .with_state((health, views));
    serve(address, router, stop).await
}

async fn network(
    State((health, views)): State<(Health, Views)>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let key = NetworkKey { namespace, name };
    if let Some(view) = views.get(&key) {
        return Json(view).into_response();
    }
    let (status, why) = if health.0.leading.load(Ordering::Relaxed) {
        (StatusCode::NOT_FOUND, format!("the operator does not watch the nodes of {key} yet"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "this replica does not lead".to_owned())
    };
    (status, Json(json!({ "error": why }))).into_response()
}
