//! One HTTP exchange over a connection of its own, bounded in size. The caller bounds its time.

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection broke, or what came was not HTTP.
    #[error("the connection broke: {0}")]
    Http(#[from] hyper::Error),
    /// Too long, or broken off in the middle.
    #[error("the answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// Sends `request` over `stream` and reads the whole answer, at most `max_bytes` of it.
pub async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    max_bytes: usize,
) -> Result<(StatusCode, Bytes), ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), max_bytes)
            .collect()
            .await
            .map_err(ExchangeError::Body)?;
        Ok((status, body.to_bytes()))
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    tokio::select! {
        answered = &mut answer => answered,
        // The server may close before its last bytes were taken from the buffer.
        ended = &mut connection => { ended?; answer.await }
    }
}
