//! What the operator accepts as a kubeconfig.
//!
//! Whoever writes the Secret must not get more than a connection to a cluster: no program run in the operator's
//! pod, no file of it read and sent elsewhere, and keys of nodes only to a server that proved who it is.

use kube::config::{AuthInfo, Cluster, Kubeconfig};

/// Why a kubeconfig is not accepted, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeconfigFault {
    /// Not YAML, or not a kubeconfig.
    #[error("it is not a kubeconfig ({0}); write a complete one")]
    Unreadable(String),
    /// Nothing says which of several contexts.
    #[error("it has no current-context; set one")]
    NoContext,
    /// A name in it leads nowhere.
    #[error("its current-context names the {kind} {name:?}, which it does not hold; add it")]
    Dangling {
        /// `context`, `cluster` or `user`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// It reads files.
    #[error(
        "{0} names a file, and the operator reads none; put the content itself into the kubeconfig"
    )]
    File(&'static str),
    /// It runs a program.
    #[error(
        "it gets its credentials by {0}, which the operator does not run; use a token or a client certificate, for \
         example those that `kubectl bsn cluster join` makes"
    )]
    Program(&'static str),
    /// Anybody could be the server.
    #[error(
        "{0}, so anybody could take the server's place; use https with certificate-authority-data"
    )]
    Unproved(&'static str),
    /// The client cannot use it.
    #[error("it cannot be used: {0}")]
    Unusable(String),
}

/// Reads a kubeconfig and leaves of it what is in use: one context, one cluster, one user.
pub fn parse_kubeconfig(text: &str) -> Result<Kubeconfig, KubeconfigFault> {
    // The parser's word may quote what it read, keys included: only the place is told.
    let mut config: Kubeconfig = serde_saphyr::from_str(text)
        .map_err(|_| KubeconfigFault::Unreadable("wrong YAML or wrong fields".to_owned()))?;
    let wanted = config.current_context.clone().ok_or(KubeconfigFault::NoContext)?;
    let dangling = |kind, name: &str| KubeconfigFault::Dangling { kind, name: name.to_owned() };
    config.contexts.retain(|entry| entry.name == wanted);
    let context = config.contexts.first().and_then(|entry| entry.context.clone());
    let context = context.ok_or_else(|| dangling("context", &wanted))?;
    config.clusters.retain(|entry| entry.name == context.cluster);
    let cluster = config.clusters.first().and_then(|entry| entry.cluster.as_ref());
    check_cluster(cluster.ok_or_else(|| dangling("cluster", &context.cluster))?)?;
    let user = context.user.unwrap_or_default();
    config.auth_infos.retain(|entry| entry.name == user);
    let info = config.auth_infos.first().and_then(|entry| entry.auth_info.as_ref());
    check_user(info.ok_or_else(|| dangling("user", &user))?)?;
    Ok(config)
}

fn check_cluster(cluster: &Cluster) -> Result<(), KubeconfigFault> {
    let server = cluster.server.as_deref().unwrap_or_default();
    if !server.starts_with("https://") {
        return Err(KubeconfigFault::Unproved("its server is not an https address"));
    }
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err(KubeconfigFault::Unproved("it sets insecure-skip-tls-verify"));
    }
    if cluster.certificate_authority.is_some() {
        return Err(KubeconfigFault::File("certificate-authority"));
    }
    if cluster.certificate_authority_data.is_none() {
        return Err(KubeconfigFault::Unproved("it has no certificate-authority-data"));
    }
    Ok(())
}

fn check_user(user: &AuthInfo) -> Result<(), KubeconfigFault> {
    let files = [
        ("tokenFile", &user.token_file),
        ("client-certificate", &user.client_certificate),
        ("client-key", &user.client_key),
    ];
    if let Some((field, _)) = files.iter().find(|(_, value)| value.is_some()) {
        return Err(KubeconfigFault::File(field));
    }
    if user.exec.is_some() {
        return Err(KubeconfigFault::Program("exec"));
    }
    if user.auth_provider.is_some() {
        return Err(KubeconfigFault::Program("auth-provider"));
    }
    Ok(())
}

/// The address in a kubeconfig that was accepted.
pub fn server_of(config: &Kubeconfig) -> Option<&str> {
    config.clusters.first()?.cluster.as_ref()?.server.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}, {{name: d, context: {{cluster: l, user: v}}}}]\n\
             clusters: [{{name: k, cluster: {{{cluster}}}}}, {{name: l, cluster: {{server: 'http://x'}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}, {{name: v, user: {{tokenFile: /x}}}}]\n"
        )
    }

    const CLUSTER: &str = "server: 'https://10.0.0.1:6443', certificate-authority-data: AA==";

    #[test]
    fn what_is_in_use_is_kept_and_the_rest_is_nobodys_business() {
        let config = parse_kubeconfig(&text(CLUSTER, "token: t")).unwrap();
        assert_eq!(server_of(&config), Some("https://10.0.0.1:6443"));
        assert_eq!((config.clusters.len(), config.auth_infos.len()), (1, 1));
    }

    #[test]
    fn whoever_writes_the_secret_gets_no_more_than_a_connection() {
        let cases = [
            (
                CLUSTER,
                "tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token",
                "tokenFile",
            ),
            (CLUSTER, "client-key: /etc/key", "client-key"),
            (CLUSTER, "exec: {command: sh, args: [-c, id]}", "exec"),
            (CLUSTER, "auth-provider: {name: gcp, config: {}}", "auth-provider"),
            ("server: 'http://10.0.0.1', certificate-authority-data: AA==", "token: t", "https"),
            ("server: 'https://10.0.0.1', insecure-skip-tls-verify: true", "token: t", "skip"),
            ("server: 'https://10.0.0.1', certificate-authority: /ca", "token: t", "a file"),
            ("server: 'https://10.0.0.1'", "token: t", "certificate-authority-data"),
        ];
        for (cluster, user, word) in cases {
            let fault = parse_kubeconfig(&text(cluster, user)).unwrap_err().to_string();
            assert!(fault.contains(word), "{fault}");
        }
    }

    #[test]
    fn names_that_lead_nowhere_are_told_and_content_is_not() {
        let dangling = text(CLUSTER, "token: t").replace("user: u}", "user: nobody}");
        let fault = parse_kubeconfig(&dangling).unwrap_err().to_string();
        assert!(fault.contains("nobody"), "{fault}");
        let fault = parse_kubeconfig("token-of-somebody").unwrap_err().to_string();
        assert!(!fault.contains("token-of-somebody"), "{fault}");
        let none = text(CLUSTER, "token: t").replace("current-context: c\n", "");
        assert_eq!(parse_kubeconfig(&none).unwrap_err(), KubeconfigFault::NoContext);
    }
}
