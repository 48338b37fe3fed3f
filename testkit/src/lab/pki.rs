//! Certificates, tokens and kubeconfigs of one cluster.
//!
//! Made once per cluster and kept until `down`, so that a restarted control plane is still trusted and
//! still knows its service accounts.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::folders::Layout;
use super::layout::{LabSpec, MachineId};
use super::{command, layout, tools};

/// Client whose kubeconfig belongs to people and tests.
pub const ADMIN: &str = "admin";
/// Client of the controller manager.
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
/// Client of the scheduler.
pub const SCHEDULER: &str = "kube-scheduler";
/// Client of all kube-proxies.
pub const PROXY: &str = "kube-proxy";

/// Files of one cluster's identities.
#[derive(Clone, Debug)]
pub struct Pki {
    folder: PathBuf,
    cluster: usize,
}

impl Pki {
    /// The identities of `cluster`, made when missing.
    pub fn ensure(layout: &Layout, cluster: usize) -> Result<Self> {
        let pki = Self { folder: layout.cluster(cluster).join("pki"), cluster };
        // Written last, so it tells whether the others are complete.
        if !pki.file("tokens.csv").exists() {
            pki.create().with_context(|| format!("making certificates of cluster {cluster}"))?;
        }
        pki.write_kubeconfig(ADMIN, &layout.kubeconfig(cluster))?;
        Ok(pki)
    }

    /// One of the files, as an argument for a program.
    pub fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn create(&self) -> Result<()> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, format!("lab-ca-{}", self.cluster));
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca_cert = ca.self_signed(&ca_key)?;
        command::write(&self.file("ca.crt"), ca_cert.pem())?;
        command::write(&self.file("ca.key"), ca_key.serialize_pem())?;
        let token_seed = ca_key.serialize_pem();
        let issuer = Issuer::new(ca, ca_key);

        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut server = CertificateParams::new(names.map(str::to_owned))?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let ips =
            [layout::control_plane_ip(self.cluster), layout::kubernetes_service_ip(self.cluster)];
        server.subject_alt_names.extend(ips.map(|ip| SanType::IpAddress(IpAddr::V4(ip))));
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue("server", server, &issuer)?;

        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
        client.distinguished_name.push(DnType::OrganizationName, "system:masters");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue("kubelet-client", client, &issuer)?;

        let account_key = KeyPair::generate()?;
        command::write(&self.file("sa.key"), account_key.serialize_pem())?;
        command::write(&self.file("sa.pub"), account_key.public_key_pem())?;
        // Tokens follow from the CA's key: as secret as it, and no source of randomness of our own.
        let mut tokens = String::new();
        for (user, groups) in users() {
            let token = tools::hash(&[token_seed.as_str(), user.as_str()]);
            writeln!(tokens, "{token},{user},{user},\"{groups}\"")?;
        }
        command::write(&self.file("tokens.csv"), tokens)
    }

    fn issue(
        &self,
        name: &str,
        mut params: CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<()> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, issuer)?;
        command::write(&self.file(&format!("{name}.crt")), cert.pem())?;
        command::write(&self.file(&format!("{name}.key")), key.serialize_pem())
    }

    /// Certificate of the cluster's authority (PEM), which every pod trusts for the API server.
    pub fn ca_cert(&self) -> Result<String> {
        self.read("ca.crt")
    }

    /// Makes a certificate with which a server at `ip` is taken for one of the cluster's; certificate and
    /// key (PEM). Nothing is stored.
    pub fn issue_server(&self, common_name: &str, ip: IpAddr) -> Result<(String, String)> {
        let ca_key = KeyPair::from_pem(&self.read("ca.key")?).context("reading the CA's key")?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_cert()?, ca_key)?;
        let mut server = CertificateParams::default();
        server.distinguished_name.push(DnType::CommonName, common_name);
        server.subject_alt_names = vec![SanType::IpAddress(ip)];
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let cert = server.signed_by(&key, &issuer)?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    fn read(&self, name: &str) -> Result<String> {
        let file = self.file(name);
        std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// Writes the kubeconfig of a component into the cluster's folder and returns its path.
    pub fn kubeconfig(&self, user: &str) -> Result<String> {
        let path = self.file(&format!("{}.kubeconfig", user.replace(':', "-")));
        self.write_kubeconfig(user, &path)?;
        Ok(path.display().to_string())
    }

    /// The CA is inside, so the file can be copied anywhere.
    fn write_kubeconfig(&self, user: &str, path: &Path) -> Result<()> {
        let tokens = std::fs::read_to_string(self.file("tokens.csv"))?;
        let wanted = user_name(user);
        let token = tokens
            .lines()
            .filter_map(|line| line.split_once(','))
            .find(|(_, rest)| rest.split(',').next() == Some(wanted.as_str()))
            .map(|(token, _)| token)
            .with_context(|| {
                format!("no token for {wanted}: run `cargo xtask lab down`, then `up`")
            })?;
        let name = format!("lab-{}", self.cluster);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {
                "server": layout::api_url(self.cluster),
                "certificate-authority-data": BASE64.encode(std::fs::read(self.file("ca.crt"))?),
            }}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            "current-context": name,
        });
        command::write(path, serde_json::to_vec_pretty(&config)?)
    }

    /// Name of the client that is `id`'s kubelet.
    pub fn kubelet_user(id: MachineId) -> String {
        format!("system:node:{}", id.node_name())
    }
}

/// The name by which the API server knows a client.
fn user_name(client: &str) -> String {
    if client == ADMIN || client.contains(':') {
        client.to_owned()
    } else {
        format!("system:{client}")
    }
}

/// All users and their groups. Every machine that the address plan allows gets a token at once, because the
/// API server reads the file only when it starts, and the lab can grow.
fn users() -> Vec<(String, &'static str)> {
    let mut users: Vec<_> =
        [(ADMIN, "system:masters"), (CONTROLLER_MANAGER, ""), (SCHEDULER, ""), (PROXY, "")]
            .into_iter()
            .map(|(client, groups)| (user_name(client), groups))
            .collect();
    let all = LabSpec { clusters: layout::MAX_CLUSTERS, machines: layout::MAX_MACHINES };
    users.extend(all.machines().map(|id| (Pki::kubelet_user(id), "system:nodes")));
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeconfigs_carry_their_own_token_and_identities_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { state: folder.path().to_owned(), cache: folder.path().to_owned() };
        let pki = Pki::ensure(&layout, 1).unwrap();
        let before = std::fs::read_to_string(layout.kubeconfig(1)).unwrap();
        let node =
            pki.kubeconfig(&Pki::kubelet_user(MachineId { cluster: 1, machine: 2 })).unwrap();
        let token = |text: &str| {
            let config: serde_json::Value = serde_json::from_str(text).unwrap();
            config["users"][0]["user"]["token"].as_str().unwrap().to_owned()
        };
        assert_ne!(token(&before), token(&std::fs::read_to_string(node).unwrap()));
        Pki::ensure(&layout, 1).unwrap();
        assert_eq!(before, std::fs::read_to_string(layout.kubeconfig(1)).unwrap());
        assert!(before.contains("https://10.99.0.101:6443"));
    }
}
