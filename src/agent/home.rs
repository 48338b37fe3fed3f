//! `bsn-operator init-home`: may the engine start on this disk, and if so, its home directory.
//!
//! Runs at every creation of the pod, also when the operator is away. The decision is
//! [`next_start`]; this file looks at the disk and writes what was decided, in an order that a crash
//! between any two writes cannot turn into a second first start:
//!
//! 1. signing state (made durable),
//! 2. the marker (made durable): from here on the disk is used,
//! 3. everything else.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bsn_core::disk::{
    Decision, MARKER_FILE, Marker, ObservedDisk, ObservedMarker, Refusal, next_start,
};
use bsn_core::engine::cometbft::P2P_PORT;
use bsn_core::engine::cometbft::config::{
    CONFIG_FILE, ConfigError, FRESH_SIGNING_STATE, Peer, SIGNING_STATE_FILE, complete_config,
};
use bsn_core::engine::cometbft::genesis::GENESIS_FILE;
use bsn_core::engine::cometbft::keys::{
    CONSENSUS_KEY_FILE, KeyFileError, NODE_KEY_FILE, PrivateKey,
};
use bsn_core::hash::sha256_hex;

use super::paths;
use crate::cli::InitHomeArgs;

/// File that Kubernetes shows as the reason why a container ended.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Made by `mkfs.ext4` on every new disk.
const LOST_AND_FOUND: &str = "lost+found";
/// A write that was not finished; see [`write_durably`].
const UNFINISHED: &str = ".unfinished";

/// Why the engine may not start.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// By what is on the disk.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The genesis is another one.
    #[error(
        "GenesisDiffers: the genesis in this pod has SHA-256 {found}, the node belongs to {expected}"
    )]
    Genesis {
        /// Of the mounted file.
        found: String,
        /// Of this identity.
        expected: String,
    },
    /// The consensus key is another one.
    #[error(
        "KeyDiffers: the consensus key in this pod is {found}, the node's is {expected}; restore its Secret"
    )]
    Key {
        /// Public part of the mounted key.
        found: String,
        /// Public key of this identity.
        expected: String,
    },
    /// A key file is damaged.
    #[error("KeyUnreadable: {0}; restore the node's Secret")]
    KeyFile(#[from] KeyFileError),
    /// The configuration is damaged.
    #[error("ConfigUnreadable: {0}")]
    Config(#[from] ConfigError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |source| HomeError::File { path, source }
}

/// Decides and makes the home, or says why not, also where Kubernetes shows it.
pub async fn run(args: InitHomeArgs) -> Result<(), HomeError> {
    let made = assemble(&args).await;
    if let Err(error) = &made {
        let log = below(&args.root, TERMINATION_LOG);
        if let Err(problem) = fs::write(&log, error.to_string()) {
            tracing::warn!(path = %log.display(), %problem, "the reason could not be left for Kubernetes");
        }
    }
    made
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

async fn assemble(args: &InitHomeArgs) -> Result<(), HomeError> {
    let expected = &args.identity;
    let root = |path: &str| below(&args.root, path);
    // Before anything is written: are these the genesis and the key of this identity?
    check_inputs(&args.root, expected)?;

    let disk = root(paths::DISK);
    let data = root(paths::ENGINE_DATA);
    let observed = observe_disk(&disk, &data)?;
    let decision = next_start(&observed, expected);
    tracing::info!(?observed, ?decision, identity = %expected.identity_id, "looked at the disk");
    match decision {
        Decision::Refuse(refusal) => return Err(refusal.into()),
        Decision::Start => {}
        Decision::FirstStart => {
            write_signing_state(&disk, &data)?;
            write_marker(&disk, expected)?;
        }
        Decision::FinishFirstStart => write_marker(&disk, expected)?,
    }
    let app = root(paths::APP_DATA);
    fs::create_dir_all(&app).map_err(at(&app))?;

    let list = root(paths::PEERS_DIR).join(paths::PEERS_FILE);
    let peers = other_peers(&args.root, &fs::read_to_string(&list).map_err(at(&list))?)?;
    await_names(&peers, Duration::from_secs(args.dns_wait_seconds)).await;

    let rendered = root(paths::CONFIG_DIR).join(CONFIG_FILE);
    let text = fs::read_to_string(&rendered).map_err(at(&rendered))?;
    let config = root(paths::HOME).join("config");
    fs::create_dir_all(&config).map_err(at(&config))?;
    let file = config.join(CONFIG_FILE);
    fs::write(&file, complete_config(&text, &peers)?).map_err(at(&file))
}

fn check_inputs(root: &Path, expected: &Marker) -> Result<(), HomeError> {
    let genesis = below(root, paths::GENESIS_DIR).join(GENESIS_FILE);
    let found = sha256_hex(&fs::read(&genesis).map_err(at(&genesis))?);
    if found != expected.genesis_hash {
        return Err(HomeError::Genesis { found, expected: expected.genesis_hash.clone() });
    }
    let file = below(root, paths::KEYS).join(CONSENSUS_KEY_FILE);
    let text = fs::read_to_string(&file).map_err(at(&file))?;
    let found = PrivateKey::parse_consensus_key_file(&text)?.public();
    if found.base64() != expected.consensus_key {
        return Err(HomeError::Key {
            found: found.base64().to_owned(),
            expected: expected.consensus_key.clone(),
        });
    }
    Ok(())
}

fn observe_disk(disk: &Path, data: &Path) -> Result<ObservedDisk, HomeError> {
    let mut observed =
        ObservedDisk { marker: ObservedMarker::Absent, signing_state: false, other_files: false };
    for entry in fs::read_dir(disk).map_err(at(disk))? {
        let entry = entry.map_err(at(disk))?;
        let name = entry.file_name();
        let path = entry.path();
        if name == MARKER_FILE {
            let text = fs::read_to_string(&path).map_err(at(&path))?;
            observed.marker = match serde_json::from_str(&text) {
                Ok(marker) => ObservedMarker::Present(marker),
                Err(error) => ObservedMarker::Damaged(error.to_string()),
            };
        } else if path == data {
            observe_data(data, &mut observed)?;
        } else if name != LOST_AND_FOUND && !is_unfinished(&name) {
            observed.other_files = true;
        }
    }
    Ok(observed)
}

fn observe_data(data: &Path, observed: &mut ObservedDisk) -> Result<(), HomeError> {
    for entry in fs::read_dir(data).map_err(at(data))? {
        let name = entry.map_err(at(data))?.file_name();
        if name == SIGNING_STATE_FILE {
            observed.signing_state = true;
        } else if !is_unfinished(&name) {
            observed.other_files = true;
        }
    }
    Ok(())
}

fn is_unfinished(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().ends_with(UNFINISHED)
}

fn write_signing_state(disk: &Path, data: &Path) -> Result<(), HomeError> {
    fs::create_dir_all(data).map_err(at(data))?;
    write_durably(data, SIGNING_STATE_FILE, FRESH_SIGNING_STATE.as_bytes())?;
    // The directory's own entry, too.
    sync_directory(disk)
}

fn write_marker(disk: &Path, marker: &Marker) -> Result<(), HomeError> {
    // A plain struct of strings: serialising it cannot fail.
    let text = serde_json::to_string_pretty(marker).unwrap_or_default();
    write_durably(disk, MARKER_FILE, text.as_bytes())
}

/// Writes a file that is there whole or not at all, and stays there after a power cut.
fn write_durably(directory: &Path, name: &str, content: &[u8]) -> Result<(), HomeError> {
    let unfinished = directory.join(format!("{name}{UNFINISHED}"));
    let path = directory.join(name);
    let written = File::create(&unfinished)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&unfinished, &path));
    written.map_err(at(&path))?;
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> Result<(), HomeError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

/// All peers but this node itself, by its own peer-to-peer key.
fn other_peers(root: &Path, list: &str) -> Result<Vec<Peer>, HomeError> {
    let file = below(root, paths::KEYS).join(NODE_KEY_FILE);
    let text = fs::read_to_string(&file).map_err(at(&file))?;
    let own = PrivateKey::parse_node_key_file(&text)?.public().node_id();
    let peers = list.lines().filter_map(|line| {
        let peer = Peer::parse(line);
        if peer.is_none() {
            tracing::warn!(line, "not a peer; left out");
        }
        peer
    });
    Ok(peers.filter(|peer| peer.node_id != own).collect())
}

/// Waits for the peers' names to resolve: the engine looks each up once, when it starts, and never dials
/// one it did not find (`p2p/switch.go`, `AddPersistentPeers`). After the wait it is started anyway, since
/// a peer that is gone for good must not stop the others.
async fn await_names(peers: &[Peer], longest: Duration) {
    let deadline = tokio::time::Instant::now() + longest;
    for peer in peers {
        loop {
            let address = (peer.host.clone(), P2P_PORT);
            let found = tokio::task::spawn_blocking(move || address.to_socket_addrs()).await;
            let problem = match found {
                Ok(Ok(_)) => break,
                Ok(Err(problem)) => problem.to_string(),
                Err(problem) => problem.to_string(),
            };
            if tokio::time::Instant::now() >= deadline {
                tracing::warn!(peer = %peer.host, problem, "its name does not resolve; starting without waiting longer");
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pod {
        root: tempfile::TempDir,
        identity: Marker,
    }

    impl Pod {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let key = PrivateKey::from_random([7; 32]);
            let genesis = "{}";
            for (directory, file, text) in [
                (paths::GENESIS_DIR, GENESIS_FILE, genesis.to_owned()),
                (paths::KEYS, CONSENSUS_KEY_FILE, key.consensus_key_file()),
                (paths::KEYS, NODE_KEY_FILE, key.node_key_file()),
                (paths::CONFIG_DIR, CONFIG_FILE, "[p2p]\nladdr = \"x\"\n".to_owned()),
                (
                    paths::PEERS_DIR,
                    paths::PEERS_FILE,
                    format!(
                        "{}@self.invalid:26656\n{}@localhost:26656\n",
                        key.public().node_id(),
                        "ab".repeat(20)
                    ),
                ),
            ] {
                let directory = below(root.path(), directory);
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join(file), text).unwrap();
            }
            for directory in [paths::DISK, paths::HOME, "/dev"] {
                fs::create_dir_all(below(root.path(), directory)).unwrap();
            }
            let identity = Marker {
                network_id: "n1".into(),
                identity_id: "i1".into(),
                consensus_key: key.public().base64().to_owned(),
                genesis_hash: sha256_hex(genesis.as_bytes()),
            };
            Self { root, identity }
        }

        fn path(&self, path: &str) -> PathBuf {
            below(self.root.path(), path)
        }

        async fn start(&self) -> Result<(), HomeError> {
            let args = InitHomeArgs {
                identity: self.identity.clone(),
                root: self.root.path().to_owned(),
                dns_wait_seconds: 0,
            };
            run(args).await
        }

        fn signing_state(&self) -> PathBuf {
            self.path(paths::ENGINE_DATA).join(SIGNING_STATE_FILE)
        }
    }

    #[tokio::test]
    async fn first_start_makes_signing_state_and_every_later_start_keeps_it() {
        let pod = Pod::new();
        fs::create_dir(pod.path(paths::DISK).join(LOST_AND_FOUND)).unwrap();
        pod.start().await.unwrap();
        let config = fs::read_to_string(pod.path(paths::HOME).join("config/config.toml")).unwrap();
        assert!(
            config.contains("@localhost:26656") && !config.contains("self.invalid"),
            "{config}"
        );
        fs::write(pod.signing_state(), "signed").unwrap();
        pod.start().await.unwrap();
        assert_eq!(fs::read_to_string(pod.signing_state()).unwrap(), "signed");
    }

    #[tokio::test]
    async fn a_crash_after_any_write_of_the_first_start_is_finished() {
        // After the unfinished file, after the signing state, and after the unfinished marker.
        for crash in 0..3 {
            let pod = Pod::new();
            let data = pod.path(paths::ENGINE_DATA);
            fs::create_dir(&data).unwrap();
            let unfinished = |name: &str| format!("{name}{UNFINISHED}");
            if crash == 0 {
                fs::write(data.join(unfinished(SIGNING_STATE_FILE)), "{").unwrap();
            } else {
                fs::write(pod.signing_state(), FRESH_SIGNING_STATE).unwrap();
            }
            if crash == 2 {
                fs::write(pod.path(paths::DISK).join(unfinished(MARKER_FILE)), "{").unwrap();
            }
            pod.start().await.unwrap();
            assert_eq!(fs::read_to_string(pod.signing_state()).unwrap(), FRESH_SIGNING_STATE);
            pod.start().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_refusal_writes_nothing_but_its_reason() {
        let pod = Pod::new();
        pod.start().await.unwrap();
        fs::remove_file(pod.signing_state()).unwrap();
        let error = pod.start().await.unwrap_err();
        assert!(matches!(error, HomeError::Refused(Refusal::SigningStateLost)), "{error}");
        assert!(!pod.signing_state().exists());
        let told = fs::read_to_string(pod.path(TERMINATION_LOG)).unwrap();
        assert!(told.starts_with("SigningStateLost:"), "{told}");
    }

    #[tokio::test]
    async fn another_key_or_genesis_is_refused_before_the_disk_is_touched() {
        let mut pod = Pod::new();
        pod.identity.genesis_hash = "00".into();
        assert!(matches!(pod.start().await, Err(HomeError::Genesis { .. })));
        let mut pod = Pod::new();
        pod.identity.consensus_key = PrivateKey::from_random([8; 32]).public().base64().to_owned();
        assert!(matches!(pod.start().await, Err(HomeError::Key { .. })));
        assert_eq!(fs::read_dir(pod.path(paths::DISK)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_disk_with_strange_data_is_refused() {
        let pod = Pod::new();
        fs::write(pod.path(paths::DISK).join("blockstore.db"), "x").unwrap();
        assert!(matches!(pod.start().await, Err(HomeError::Refused(Refusal::NotEmpty))));
    }
}
