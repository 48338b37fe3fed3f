//! Where things are inside a node's pod. The pod's builder mounts them, the agents read them.

/// The node's disk.
pub const DISK: &str = "/bsn/disk";
/// The engine's directory on the disk.
pub const ENGINE_DATA: &str = "/bsn/disk/engine";
/// A user's application's directory on the disk.
pub const APP_DATA: &str = "/bsn/disk/app";
/// The engine's home, made anew at every start of the pod.
pub const HOME: &str = "/bsn/home";
/// The engine's private keys (files named as the engine names them).
pub const KEYS: &str = "/bsn/keys";
/// Directory of the TLS private key.
pub const TLS_KEY_DIR: &str = "/bsn/tls-key";
/// File name and Secret key of the TLS private key.
pub const TLS_KEY_FILE: &str = "tls.key";
/// Directory of the leaf certificate and the CA bundle.
pub const CERT_DIR: &str = "/bsn/cert";
/// File name of the leaf certificate (PEM).
pub const CERT_FILE: &str = "tls.crt";
/// File name of the CA bundle (PEM).
pub const CA_FILE: &str = "ca.crt";
/// Directory of the rendered configuration (`config.toml`).
pub const CONFIG_DIR: &str = "/bsn/config";
/// Directory of the list of peers.
pub const PEERS_DIR: &str = "/bsn/peers";
/// File name of the list of peers: one node a line, this one included.
pub const PEERS_FILE: &str = "peers";
/// File name, beside it, of the list of nodes of other owners; left out if there are none.
pub const EXTERNAL_PEERS_FILE: &str = "external-peers";
/// File name, beside it, that says by being there that the chain was made by others.
pub const JOINS_FILE: &str = "joins";
/// Directory of the first-start token; empty while there is none.
pub const TOKEN_DIR: &str = "/bsn/token";
/// File name and Secret key of the first-start token.
pub const TOKEN_FILE: &str = "token.json";
/// Where the guard tells the gateway what it thinks.
pub const RUN_DIR: &str = "/bsn/run";
/// File name of the guard's report.
pub const GUARD_FILE: &str = "guard.json";
/// Directory of the genesis (`genesis.json`).
pub const GENESIS_DIR: &str = "/bsn/genesis";
