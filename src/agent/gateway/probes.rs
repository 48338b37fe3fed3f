//! What the kubelet asks, without TLS since it has no certificate. Answers carry no data.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::engine::cometbft::observe_engine;

/// Shorter than the kubelet's own time-out of 2 s, so that it gets an answer.
const DEADLINE: Duration = Duration::from_millis(1500);

/// Serves until dropped.
pub async fn serve(listener: TcpListener, engine_rpc: SocketAddr) {
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        // The certificate was loaded before anything was served.
        .route("/readyz", get(|| async { "ok" }))
        .route(
            "/engine/readyz",
            get(move || async move {
                match observe_engine(engine_rpc, DEADLINE).await {
                    Ok(_) => (StatusCode::OK, "ok".to_owned()),
                    Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
                }
            }),
        );
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the probes' listener ended");
    }
}
