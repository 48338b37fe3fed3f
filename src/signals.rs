//! Being asked to end.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the process is asked to end: by Kubernetes (SIGTERM) or at a terminal (Ctrl-C).
pub async fn terminated() {
    let Ok(mut term) = signal(SignalKind::terminate()) else {
        // Then nobody can ask; the kernel still ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        // An error here means that Ctrl-C cannot be watched; SIGTERM still can.
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
}
