//! The engine's configuration file (`config/config.go`, `config/toml.go`).
//!
//! Only what must differ from the engine's defaults is written. The list of peers is not part of
//! it: that changes with every node that joins and is filled in when a node starts.

use std::net::IpAddr;

use serde::Serialize;

use super::keys::{CONSENSUS_KEY_FILE, NODE_KEY_FILE};
use super::signing::SIGNING_STATE_FILE;
use super::{ABCI_PORT, P2P_PORT, RPC_PORT};

/// File name of the configuration.
pub const CONFIG_FILE: &str = "config.toml";
/// The application whose state the chain replicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Application {
    /// The engine's built-in key-value store, kept on the node's disk.
    PersistentKvstore,
    /// A user's program in a container of its own in the same pod.
    Socket,
}

/// Where a node's files are inside its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The engine's directory on the node's disk: blocks, state, signing state.
    pub data: String,
    /// Where the private keys are mounted.
    pub keys: String,
    /// Where the genesis is mounted.
    pub genesis: String,
}

/// What a node's configuration depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig<'a> {
    /// The node's name, shown to peers.
    pub moniker: &'a str,
    /// The application.
    pub application: Application,
    /// File locations.
    pub paths: &'a Paths,
    /// How long the engine waits after a block before it begins the next, as it writes durations;
    /// `None` = its default.
    pub timeout_commit: Option<&'a str>,
}

#[derive(Serialize)]
struct File<'a> {
    moniker: &'a str,
    proxy_app: String,
    abci: &'static str,
    db_dir: &'a str,
    log_format: &'static str,
    genesis_file: String,
    priv_validator_key_file: String,
    priv_validator_state_file: String,
    node_key_file: String,
    rpc: Rpc,
    p2p: P2p,
    consensus: Consensus<'a>,
}

#[derive(Serialize)]
struct Rpc {
    laddr: String,
}

#[derive(Serialize)]
struct P2p {
    laddr: String,
    addr_book_file: String,
    addr_book_strict: bool,
    allow_duplicate_ip: bool,
    pex: bool,
    persistent_peers_max_dial_period: &'static str,
}

#[derive(Serialize)]
struct Consensus<'a> {
    wal_file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_commit: Option<&'a str>,
}

/// Renders `config.toml` without peers.
pub fn render_config(node: &NodeConfig<'_>) -> String {
    let paths = node.paths;
    let file = File {
        moniker: node.moniker,
        proxy_app: match node.application {
            Application::PersistentKvstore => "persistent_kvstore".to_owned(),
            Application::Socket => format!("tcp://127.0.0.1:{ABCI_PORT}"),
        },
        abci: "socket",
        db_dir: &paths.data,
        log_format: "json",
        genesis_file: paths.genesis.clone(),
        priv_validator_key_file: format!("{}/{CONSENSUS_KEY_FILE}", paths.keys),
        priv_validator_state_file: format!("{}/{SIGNING_STATE_FILE}", paths.data),
        node_key_file: format!("{}/{NODE_KEY_FILE}", paths.keys),
        // Loopback only: whoever reaches the RPC of the built-in store can change the validators.
        rpc: Rpc { laddr: format!("tcp://127.0.0.1:{RPC_PORT}") },
        p2p: P2p {
            laddr: format!("tcp://0.0.0.0:{P2P_PORT}"),
            // No `external_address`: nobody dials what a node says of itself, and a name there must resolve wherever a peer
            // runs, in other owners' clusters too, or that peer refuses the connection (`DefaultNodeInfo.Validate`).
            // Beside the data, since the home directory does not outlive the pod.
            addr_book_file: format!("{}/addrbook.json", paths.data),
            // Service addresses are private ones.
            addr_book_strict: false,
            // Peers behind one machine's address translation share an address.
            allow_duplicate_ip: true,
            // Every node is told its peers; nobody else's word is taken.
            pex: false,
            // The default backs off exponentially and gives up.
            persistent_peers_max_dial_period: "10s",
        },
        consensus: Consensus {
            wal_file: format!("{}/cs.wal/wal", paths.data),
            timeout_commit: node.timeout_commit,
        },
    };
    // Strings and booleans in plain structs: serialising them cannot fail.
    toml::to_string(&file).unwrap_or_default()
}

/// A node of the same network, as its peers reach it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Id of its peer-to-peer key.
    pub node_id: String,
    /// Name under which it is reached.
    pub host: String,
    /// SHA-256 of its gateway's TLS public key, in hexadecimal.
    pub tls_spki_sha256: String,
}

impl Peer {
    /// The engine's form: `<id>@<host>:<port>`.
    pub fn address(&self) -> String {
        format!("{}@{}:{P2P_PORT}", self.node_id, self.host)
    }

    /// One line of the peer list: the engine's form, a blank, the gateway's key.
    pub fn line(&self) -> String {
        format!("{} {}", self.address(), self.tls_spki_sha256)
    }

    /// Reads a line of the peer list.
    pub fn parse(line: &str) -> Option<Self> {
        let (address, spki) = line.trim().split_once(' ')?;
        let (node_id, address) = address.split_once('@')?;
        let (host, port) = address.rsplit_once(':')?;
        (port.parse() == Ok(P2P_PORT) && !host.is_empty()).then(|| Self {
            node_id: node_id.to_owned(),
            host: host.to_owned(),
            tls_spki_sha256: spki.to_owned(),
        })
    }
}

/// A node of another owner, as it is dialled. Nobody here asks its gateway: that is its owner's alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExternalPeer {
    /// Id of its peer-to-peer key, by which it proves who it is.
    pub node_id: String,
    /// A name or an IP address.
    pub host: String,
    /// Its port there.
    pub port: u16,
}

impl ExternalPeer {
    /// The engine's form: `<id>@<host>:<port>`, one line of the list.
    pub fn address(&self) -> String {
        let Self { node_id, host, port } = self;
        // As the engine splits it (`net.SplitHostPort`).
        if host.contains(':') {
            format!("{node_id}@[{host}]:{port}")
        } else {
            format!("{node_id}@{host}:{port}")
        }
    }

    /// Reads a line of the list. What the engine would end over is none.
    pub fn parse(line: &str) -> Option<Self> {
        let (node_id, address) = line.trim().split_once('@')?;
        let (host, port) = address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let peer =
            Self { node_id: node_id.to_owned(), host: host.to_owned(), port: port.parse().ok()? };
        peer.check().is_none().then_some(peer)
    }

    /// Why this cannot be dialled, if so. The engine ends over such an entry when it starts.
    pub fn check(&self) -> Option<&'static str> {
        let Self { node_id, host, port } = self;
        let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if node_id.len() != 40 || !node_id.chars().all(digit) {
            return Some(
                "nodeId must be 40 hexadecimal digits in lower case, as `cometbft show-node-id` prints them",
            );
        }
        if *port == 0 {
            return Some("port must be 1 to 65535");
        }
        let itself =
            "host leads to the node itself; use an address by which others reach that peer";
        match host.parse::<IpAddr>() {
            Ok(address) if address.is_unspecified() || address.is_loopback() => Some(itself),
            Ok(_) => None,
            Err(_) if host.eq_ignore_ascii_case("localhost") => Some(itself),
            Err(_) if is_name(host) => None,
            Err(_) => Some("host must be a DNS name or an IP address, without a port"),
        }
    }
}

/// A DNS name: labels of letters, digits, `-` and `_`, and not an address with a slip in it.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len())
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= 253 && host.split('.').all(label) && !last.chars().all(|c| c.is_ascii_digit())
}

/// Why a configuration could not be completed.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is not what the operator renders: {0}")]
pub struct ConfigError(String);

/// Puts the peers of this moment, own and others', into a configuration made by [`render_config`].
pub fn complete_config(
    rendered: &str,
    peers: &[Peer],
    external: &[ExternalPeer],
) -> Result<String, ConfigError> {
    let mut document: toml::Table =
        rendered.parse().map_err(|err: toml::de::Error| ConfigError(err.message().to_owned()))?;
    let own = peers.iter().map(Peer::address);
    let list = own.chain(external.iter().map(ExternalPeer::address)).collect::<Vec<_>>().join(",");
    document
        .get_mut("p2p")
        .and_then(toml::Value::as_table_mut)
        .ok_or_else(|| ConfigError("it has no [p2p] section".to_owned()))?
        .insert("persistent_peers".to_owned(), toml::Value::String(list));
    toml::to_string(&document).map_err(|err| ConfigError(err.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(application: Application) -> String {
        let paths = Paths {
            data: "/data/cometbft".to_owned(),
            keys: "/keys".to_owned(),
            genesis: "/genesis/genesis.json".to_owned(),
        };
        render_config(&NodeConfig {
            moniker: "city-ledger-hangzhou-0",
            application,
            paths: &paths,
            timeout_commit: None,
        })
    }

    #[test]
    fn config_with_the_built_in_store() {
        insta::assert_snapshot!(rendered(Application::PersistentKvstore));
    }

    #[test]
    fn config_with_a_users_application() {
        insta::assert_snapshot!(rendered(Application::Socket));
    }

    #[test]
    fn peers_are_added_and_nothing_else_changes() {
        let before = rendered(Application::PersistentKvstore);
        let peer = Peer {
            node_id: "ab".repeat(20),
            host: "city-ledger-hangzhou-1.ledger.svc".into(),
            tls_spki_sha256: "cd".repeat(32),
        };
        assert_eq!(Peer::parse(&peer.line()), Some(peer.clone()));
        let after = complete_config(&before, &[peer.clone(), peer.clone()], &[]).unwrap();
        let mut table: toml::Table = after.parse().unwrap();
        let p2p = table.get_mut("p2p").unwrap().as_table_mut().unwrap();
        let list = p2p.remove("persistent_peers").unwrap();
        assert_eq!(list.as_str().unwrap(), format!("{0},{0}", peer.address()));
        assert_eq!(table, before.parse::<toml::Table>().unwrap());
        assert!(complete_config("[rpc]", &[], &[]).is_err());
    }

    fn external(host: &str) -> ExternalPeer {
        ExternalPeer { node_id: "ab".repeat(20), host: host.into(), port: 7000 }
    }

    #[test]
    fn nodes_of_other_owners_are_dialled_beside_our_own() {
        let before = rendered(Application::PersistentKvstore);
        for (host, written) in [
            ("nodes.example", "nodes.example"),
            ("192.0.2.7", "192.0.2.7"),
            ("fd00::7", "[fd00::7]"),
        ] {
            let peer = external(host);
            assert_eq!(ExternalPeer::parse(&peer.address()), Some(peer.clone()));
            let after = complete_config(&before, &[], &[peer]).unwrap();
            let expected = format!("persistent_peers = \"{}@{written}:7000\"", "ab".repeat(20));
            assert!(after.contains(&expected), "{after}");
        }
    }

    #[test]
    fn a_peer_that_the_engine_would_end_over_is_none() {
        for host in
            ["", "a b", "a,b", "x:7", "-a", "a..b", "127.0.0.1", "::", "localhost", "10.0.0.300"]
        {
            assert!(external(host).check().is_some(), "{host:?}");
        }
        for node_id in ["ab", &"AB".repeat(20), &"xy".repeat(20)] {
            let peer = ExternalPeer { node_id: node_id.to_owned(), ..external("a") };
            assert!(peer.check().is_some() && ExternalPeer::parse(&peer.address()).is_none());
        }
        assert_eq!(ExternalPeer::parse("nothing"), None);
        assert_eq!(external("node-0.ns.svc.").check(), None);
    }
}
