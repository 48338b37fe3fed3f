//! Asks a cluster whether it answers, and what the operator may do there.

use std::error::Error as StdError;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, PostParams};

use super::rights::{EVERYWHERE, missing, missing_for_policies};

/// Longest a cluster may take to answer one question. A tenth of it is long for an API server far away.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Why a cluster cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeFault {
    /// No connection: no such name, no route, refused.
    Unreachable(String),
    /// No answer within [`PROBE_DEADLINE`].
    Hangs,
    /// It answers with a failure of its own.
    Failing(String),
    /// Something else than Kubernetes answers.
    NotKubernetes(String),
    /// Its certificate is not one that the kubeconfig's authority issued for this address.
    Untrusted(String),
    /// It does not accept the credentials.
    CredentialsRefused,
    /// It accepts them, and refuses what everybody may who is known.
    Forbidden(String),
    /// The client could not be made or used.
    Other(String),
}

impl ProbeFault {
    /// Whether it may pass by itself. What does not, is for a person to mend.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Hangs | Self::Failing(_) => true,
            Self::NotKubernetes(_)
            | Self::Untrusted(_)
            | Self::CredentialsRefused
            | Self::Forbidden(_)
            | Self::Other(_) => false,
        }
    }
}

/// What the operator may do in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceRights {
    /// All it needs.
    Granted,
    /// All that nodes need, but not this, as `verb resource`: they have no `NetworkPolicy`.
    WithoutPolicies(String),
    /// Not these, as `verb resource`.
    Missing(Vec<String>),
    /// There is no such namespace.
    NoNamespace,
}

impl NamespaceRights {
    /// Whether nodes can be looked after there.
    pub fn suffice(&self) -> bool {
        matches!(self, Self::Granted | Self::WithoutPolicies(_))
    }
}

/// Asks for the cluster's version: one small answer that needs valid credentials and no rights.
pub async fn observe_version(client: &Client) -> Result<String, ProbeFault> {
    within_deadline(client.apiserver_version()).await.map(|info| info.git_version)
}

/// Asks which cluster this is; `None` = it may not be asked that.
pub async fn observe_identity(client: &Client) -> Result<Option<String>, ProbeFault> {
    let namespaces = Api::<Namespace>::all(client.clone());
    match within_deadline(namespaces.get(EVERYWHERE)).await {
        Ok(found) => Ok(found.metadata.uid),
        Err(ProbeFault::Forbidden(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Asks what the operator may do in a namespace.
pub async fn observe_rights(
    client: &Client,
    namespace: &str,
) -> Result<NamespaceRights, ProbeFault> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let found = async {
        match namespaces.get_opt(namespace).await {
            // It may exist; the rules tell more than this one refusal.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(true),
            found => found.map(|found| found.is_some()),
        }
    };
    if !within_deadline(found).await? {
        return Ok(NamespaceRights::NoNamespace);
    }
    let rules = match observe_rules(client, namespace).await {
        // Whoever may not even ask, may do nothing: such a kubeconfig names no user at all.
        Err(ProbeFault::Forbidden(_)) => Vec::new(),
        rules => rules?,
    };
    let lacks = missing(&rules);
    if !lacks.is_empty() {
        return Ok(NamespaceRights::Missing(lacks));
    }
    let without = missing_for_policies(&rules);
    Ok(without.map_or(NamespaceRights::Granted, NamespaceRights::WithoutPolicies))
}

/// Asks what the asker may do in a namespace, whether that exists or not.
pub async fn observe_rules(
    client: &Client,
    namespace: &str,
) -> Result<Vec<ResourceRule>, ProbeFault> {
    let review = SelfSubjectRulesReview {
        spec: SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) },
        ..SelfSubjectRulesReview::default()
    };
    let reviews = Api::<SelfSubjectRulesReview>::all(client.clone());
    let params = PostParams::default();
    let answer = within_deadline(reviews.create(&params, &review)).await?;
    Ok(answer.status.map(|status| status.resource_rules).unwrap_or_default())
}

async fn within_deadline<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ProbeFault> {
    match tokio::time::timeout(PROBE_DEADLINE, request).await {
        Ok(answer) => answer.map_err(|error| classify(&error)),
        Err(_) => Err(ProbeFault::Hangs),
    }
}

/// Says what an error tells of the cluster.
pub fn classify(error: &kube::Error) -> ProbeFault {
    match error {
        kube::Error::Api(status) => match status.code {
            401 => ProbeFault::CredentialsRefused,
            403 => ProbeFault::Forbidden(status.message.clone()),
            429 | 500.. => ProbeFault::Failing(format!("{} {}", status.code, status.message)),
            // The version is for everybody who is known at all, and where it is, nothing else is.
            404 => ProbeFault::NotKubernetes("it has no /version".to_owned()),
            code => ProbeFault::Other(format!("{code} {}", status.message)),
        },
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => {
            ProbeFault::NotKubernetes("its answer is not that of an API server".to_owned())
        }
        kube::Error::Service(source) => by_cause(&**source),
        kube::Error::HyperError(source) => by_cause(source),
        other => ProbeFault::Other(other.to_string()),
    }
}

/// Looks for the cause down a chain of errors, of which each layer of the connection adds one.
fn by_cause(error: &(dyn StdError + 'static)) -> ProbeFault {
    let mut deepest = error;
    let mut next = Some(error);
    while let Some(cause) = next {
        deepest = cause;
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return by_tls(tls);
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            if io.kind() == std::io::ErrorKind::TimedOut {
                return ProbeFault::Hangs;
            }
            // What it wraps is not in the chain of sources.
            if let Some(inner) = io.get_ref() {
                next = Some(inner);
                continue;
            }
        }
        next = cause.source();
    }
    ProbeFault::Unreachable(deepest.to_string())
}

fn by_tls(error: &rustls::Error) -> ProbeFault {
    use rustls::CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(why) => ProbeFault::Untrusted(match why {
            Certificate::UnknownIssuer | Certificate::BadSignature => {
                "it was issued by another authority".to_owned()
            }
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                "it is for other names".to_owned()
            }
            Certificate::Expired | Certificate::ExpiredContext { .. } => "it has ended".to_owned(),
            other => other.to_string(),
        }),
        // The server says so while the connection is made: it asked for a client certificate.
        rustls::Error::AlertReceived(
            rustls::AlertDescription::BadCertificate
            | rustls::AlertDescription::CertificateExpired
            | rustls::AlertDescription::CertificateRequired
            | rustls::AlertDescription::UnknownCA
            | rustls::AlertDescription::AccessDenied,
        ) => ProbeFault::CredentialsRefused,
        other => ProbeFault::NotKubernetes(format!("the TLS handshake failed: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use kube::core::Status;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn answered(code: u16) -> kube::Error {
        let status =
            Status { code, message: "the server's word".to_owned(), ..Status::failure("", "") };
        kube::Error::Api(status.boxed())
    }

    fn connecting(error: impl Into<Box<dyn StdError + Send + Sync>>) -> kube::Error {
        kube::Error::Service(error.into())
    }

    #[test]
    fn every_error_tells_what_is_wrong_with_the_cluster() {
        let tls = |error| connecting(io::Error::other(rustls::Error::InvalidCertificate(error)));
        let cases = [
            (answered(401), ProbeFault::CredentialsRefused),
            (answered(503), ProbeFault::Failing("503 the server's word".into())),
            (answered(404), ProbeFault::NotKubernetes("it has no /version".into())),
            (
                tls(rustls::CertificateError::UnknownIssuer),
                ProbeFault::Untrusted("it was issued by another authority".into()),
            ),
            (
                tls(rustls::CertificateError::NotValidForName),
                ProbeFault::Untrusted("it is for other names".into()),
            ),
            (
                connecting(io::Error::new(io::ErrorKind::ConnectionRefused, "refused")),
                ProbeFault::Unreachable("refused".into()),
            ),
            (connecting(io::Error::new(io::ErrorKind::TimedOut, "too long")), ProbeFault::Hangs),
        ];
        for (error, fault) in cases {
            assert_eq!(classify(&error), fault, "{error}");
        }
    }

    /// A client for a port of this machine that trusts one authority.
    fn client(port: u16, authority: Vec<u8>) -> Client {
        let mut config = kube::Config::new(format!("https://localhost:{port}").parse().unwrap());
        config.default_retry = false;
        config.root_cert = Some(vec![authority]);
        Client::try_from(config).unwrap()
    }

    /// A certificate of itself for a name: in DER, and the server's settings with it.
    fn certificate(name: &str) -> (Vec<u8>, Arc<rustls::ServerConfig>) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        (made.cert.der().to_vec(), Arc::new(config))
    }

    /// Real connections: how the layers between hyper and rustls wrap an error is theirs to decide.
    #[tokio::test]
    async fn certificates_that_do_not_fit_are_told_from_servers_that_are_down() {
        let (other, _) = certificate("localhost");
        for (name, trusts_it, expected) in [
            ("localhost", false, "it was issued by another authority"),
            ("elsewhere", true, "it is for other names"),
        ] {
            let (own, config) = certificate(name);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let serving = tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                // The client breaks it off.
                let _ = TlsAcceptor::from(config).accept(stream).await;
            });
            let authority = if trusts_it { own } else { other.clone() };
            let fault = observe_version(&client(port, authority)).await.unwrap_err();
            assert_eq!(fault, ProbeFault::Untrusted(expected.to_owned()));
            serving.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_port_where_nobody_listens_and_one_that_speaks_no_tls() {
        use tokio::io::AsyncWriteExt as _;
        let (authority, _) = certificate("localhost");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        let client = client(port, authority);
        let fault = observe_version(&client).await.unwrap_err();
        assert!(matches!(fault, ProbeFault::NotKubernetes(_)), "{fault:?}");
        serving.await.unwrap();
        let fault = observe_version(&client).await.unwrap_err();
        assert!(matches!(fault, ProbeFault::Unreachable(_)), "{fault:?}");
    }
}
