//! The certificate served, read again when its file changes: renewal needs no restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::GatewayError;
use crate::pki::{observe_leaf, tls};

/// Time between two looks at the files. The kubelet itself takes up to a minute to update them; it
/// swaps links in a way that is easy to miss for watchers of files.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// Where certificate, CA bundle and key are.
pub struct Files {
    /// The leaf (PEM).
    pub cert: PathBuf,
    /// The CA bundle (PEM).
    pub ca: PathBuf,
    /// The leaf's key (PEM).
    pub key: PathBuf,
}

/// What is served from now on.
pub struct Certificates {
    /// For new connections; those that are open keep theirs.
    pub tls: Arc<rustls::ServerConfig>,
    /// When the leaf ends.
    pub not_after: Timestamp,
    texts: [String; 3],
}

impl Certificates {
    /// Reads the files.
    pub fn load(files: &Files) -> Result<Self, GatewayError> {
        Self::from_texts(read(files)?)
    }

    fn from_texts(texts: [String; 3]) -> Result<Self, GatewayError> {
        let [cert, ca, key] = &texts;
        let tls = Arc::new(tls::server_config(cert, key, ca)?);
        let not_after = observe_leaf(cert, ca)?.not_after;
        Ok(Self { tls, not_after, texts })
    }
}

fn read(files: &Files) -> Result<[String; 3], GatewayError> {
    let text = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| GatewayError::File(path.clone(), error))
    };
    Ok([text(&files.cert)?, text(&files.ca)?, text(&files.key)?])
}

/// Watches the files for ever. What cannot be used is reported, and the old certificate stays.
pub async fn reload(files: &Files, sender: &watch::Sender<Arc<Certificates>>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let texts = match read(files) {
            Ok(texts) if texts == sender.borrow().texts => continue,
            Ok(texts) => texts,
            Err(error) => {
                tracing::warn!(%error, "the certificate cannot be read again; the old one is served on");
                continue;
            }
        };
        match Certificates::from_texts(texts) {
            Ok(fresh) => {
                tracing::info!(not_after = %fresh.not_after, "serving a new certificate");
                sender.send_replace(Arc::new(fresh));
            }
            Err(error) => {
                tracing::warn!(%error, "the new certificate cannot be used; the old one is served on");
            }
        }
    }
}
