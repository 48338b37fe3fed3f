//! A client that counts its requests and never waits for ever.

use std::task::{Context, Poll};
use std::time::Duration;

use hyper::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{Layer, Service};

use crate::telemetry::Metrics;

/// Longest silence on a connection before it counts as broken. Watches are renewed by the server after
/// at most 295 s and get a bookmark every minute, so a healthy one is never silent that long.
const READ_TIMEOUT: Duration = Duration::from_mins(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a client from the environment: in a cluster the service account, else the kubeconfig.
pub async fn connect(metrics: &Metrics) -> Result<Client, kube::Error> {
    build(Config::infer().await.map_err(kube::Error::InferConfig)?, metrics)
}

/// Makes a client for a member cluster from a kubeconfig that [`parse_kubeconfig`] accepted. Nothing is dialled.
///
/// [`parse_kubeconfig`]: super::kubeconfig::parse_kubeconfig
pub async fn connect_member(
    kubeconfig: Kubeconfig,
    metrics: &Metrics,
) -> Result<Client, kube::Error> {
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    build(config.map_err(kube::Error::InferKubeconfig)?, metrics)
}

fn build(mut config: Config, metrics: &Metrics) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // The client would repeat any method up to fifteen times, creates included, for minutes; every
    // caller here has its own deadline and decides anew after a failure.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config)?;
    Ok(builder.with_layer(&Counting(metrics.clone())).build())
}

/// Counts requests by verb, resource and the answer's code.
#[derive(Clone)]
struct Counting(Metrics);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counted { inner, metrics: self.0.clone() }
    }
}

#[derive(Clone)]
struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send,
    B: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = classify(request.method().as_str(), request.uri());
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let result = answer.await;
            let code = result.as_ref().map_or(0, |response| response.status().as_u16());
            metrics.api_request(verb, &resource, code);
            result
        })
    }
}

/// Verb and resource of a request, as the API server's own metrics name them.
fn classify(method: &str, uri: &hyper::Uri) -> (&'static str, String) {
    let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let (["api", _, rest @ ..] | ["apis", _, _, rest @ ..]) = parts.as_slice() else {
        return ("other", "none".to_owned());
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        other => other,
    };
    let (resource, named) = match rest {
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, subresource, ..] => (format!("{resource}/{subresource}"), true),
        [] => ("none".to_owned(), false),
    };
    let watching = uri.query().is_some_and(|query| query.contains("watch=true"));
    let verb = match (method, named) {
        ("GET", false) if watching => "watch",
        ("GET", false) => "list",
        ("GET", true) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_as_the_api_server_names_them() {
        for (method, path, expected) in [
            ("GET", "/api/v1/namespaces/n/secrets/s", ("get", "secrets")),
            ("GET", "/apis/apps/v1/statefulsets?watch=true&x=y", ("watch", "statefulsets")),
            ("GET", "/api/v1/pods?limit=500", ("list", "pods")),
            ("POST", "/api/v1/namespaces/n/services", ("create", "services")),
            ("PATCH", "/apis/g/v1/namespaces/n/bsnnodes/x/status", ("patch", "bsnnodes/status")),
            ("GET", "/version", ("other", "none")),
        ] {
            let uri = path.parse().unwrap();
            let (verb, resource) = classify(method, &uri);
            assert_eq!((verb, resource.as_str()), expected, "{path}");
        }
    }
}
