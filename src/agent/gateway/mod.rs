//! `bsn-operator gateway`: the only way to a node's RPC from outside its pod.
//!
//! Mutual TLS with the network's authority. Who asks is told by the role in the certificate
//! ([`bsn_core::pki::Role`]); what may be asked, by [`bsn_core::engine::cometbft::requests`]. A second,
//! plain listener answers the kubelet's probes with nothing but ready or not.

mod certificates;
mod probes;
mod requests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bsn_core::guard::PodIdentity;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use self::certificates::Certificates;
use super::paths;
use crate::cli::GatewayArgs;
use crate::engine::cometbft::Signatures;
use crate::pki::{PkiError, tls};

/// Longest a client may take for its TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest a client may take to send a request's head, also between two requests.
const IDLE_DEADLINE: Duration = Duration::from_mins(1);
/// Connections served at once; more wait. Bounds memory, since every one may hold an answer of blocks.
const MAX_CONNECTIONS: usize = 64;
/// How long requests under way may go on after the pod was asked to end.
const GRACE: Duration = Duration::from_secs(5);

/// Why the gateway ended.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Certificate or key.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A mounted file.
    #[error("{0}: {1}")]
    File(std::path::PathBuf, std::io::Error),
    /// A listener.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
}

/// What every request may use.
struct Shared {
    identity: PodIdentity,
    guard_report: PathBuf,
    signatures: Signatures,
    template_hash: Option<String>,
    engine_rpc: SocketAddr,
    guard_validators: bool,
    certificates: watch::Receiver<Arc<Certificates>>,
}

/// Serves until the pod is asked to end.
pub async fn run(args: GatewayArgs) -> Result<(), GatewayError> {
    let root = |path: &str| args.root.join(path.trim_start_matches('/'));
    let files = certificates::Files {
        cert: root(paths::CERT_DIR).join(paths::CERT_FILE),
        ca: root(paths::CERT_DIR).join(paths::CA_FILE),
        key: root(paths::TLS_KEY_DIR).join(paths::TLS_KEY_FILE),
    };
    let (sender, certificates) = watch::channel(Arc::new(Certificates::load(&files)?));
    let shared = Arc::new(Shared {
        identity: args.identity,
        template_hash: args.template_hash,
        signatures: Signatures::default(),
        guard_report: root(paths::RUN_DIR).join(paths::GUARD_FILE),
        engine_rpc: args.engine_rpc,
        guard_validators: args.guard_validators,
        certificates,
    });
    let bind = async |address| {
        TcpListener::bind(address).await.map_err(|error| GatewayError::Listen(address, error))
    };
    let listener = bind(args.listen).await?;
    let probe_listener = bind(args.probe_listen).await?;
    tracing::info!(listen = %args.listen, identity = %shared.identity.identity_id, "serving");
    tokio::select! {
        () = serve(listener, &shared) => {}
        () = certificates::reload(&files, &sender, certificates::INTERVAL) => {}
        () = probes::serve(probe_listener, args.engine_rpc) => {}
    }
    Ok(())
}

/// Accepts connections until the process is asked to end, then lets those under way finish.
async fn serve(listener: TcpListener, shared: &Arc<Shared>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let (stop_sender, stop) = watch::channel(false);
    let stopped = crate::signals::terminated();
    tokio::pin!(stopped);
    loop {
        // A place first: whoever finds none waits in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else {
            break;
        };
        let stream = tokio::select! {
            () = &mut stopped => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a client that was gone already: both pass.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        while connections.try_join_next().is_some() {}
        let (shared, stop) = (shared.clone(), stop.clone());
        connections.spawn(async move {
            serve_connection(stream, shared, stop).await;
            drop(place);
        });
    }
    drop(listener);
    // No receiver left means that no connection is open.
    let _ = stop_sender.send(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("some requests did not end in time and were cut off");
    }
}

async fn serve_connection(stream: TcpStream, shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let config = shared.certificates.borrow().tls.clone();
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let role = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| tls::peer_role(leaf, &shared.identity.network_id));
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, std::convert::Infallible>(requests::answer(&shared, role, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let stopped = async {
        // A closed channel is a stop, too.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

#[cfg(test)]
mod tests;
