//! The disk and the engine's home: looking and writing, in an order that a crash between any two writes
//! cannot turn into a second first start:
//!
//! 1. signing state (made durable),
//! 2. the marker (made durable): from here on the disk is used,
//! 3. everything else.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bsn_core::engine::cometbft::config::{
    CONFIG_FILE, ConfigError, ExternalPeer, Peer, complete_config,
};
use bsn_core::engine::cometbft::genesis::GENESIS_FILE;
use bsn_core::engine::cometbft::keys::{
    CONSENSUS_KEY_FILE, KeyFileError, NODE_KEY_FILE, PrivateKey,
};
use bsn_core::engine::cometbft::signing::{SIGNING_STATE_FILE, SignedAt};
use bsn_core::guard::{Found, MACHINE_FILE, MARKER_FILE, Marker, ObservedDisk, PodIdentity, Token};
use bsn_core::hash::sha256_hex;

use super::paths;

/// Made by `mkfs.ext4` on every new disk.
const LOST_AND_FOUND: &str = "lost+found";
/// The engine's store of blocks: there from its first start on.
const BLOCK_STORE: &str = "blockstore.db";
/// A write that was not finished; see [`write_durably`].
const UNFINISHED: &str = ".unfinished";

/// Why a home could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
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

/// A pod's files, below a root.
#[derive(Debug, Clone)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Files below `root`; in a pod that is `/`.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// One of the fixed paths.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Checks what is mounted: are these the genesis and the key of this identity?
    pub fn check_inputs(&self, expected: &PodIdentity) -> Result<(), HomeError> {
        let genesis = self.path(paths::GENESIS_DIR).join(GENESIS_FILE);
        let found = sha256_hex(&fs::read(&genesis).map_err(at(&genesis))?);
        if found != expected.genesis_hash {
            return Err(HomeError::Genesis { found, expected: expected.genesis_hash.clone() });
        }
        let found = PrivateKey::parse_consensus_key_file(&self.key(CONSENSUS_KEY_FILE)?)?.public();
        if found.base64() != expected.consensus_key {
            return Err(HomeError::Key {
                found: found.base64().to_owned(),
                expected: expected.consensus_key.clone(),
            });
        }
        Ok(())
    }

    fn key(&self, file: &str) -> Result<String, HomeError> {
        let file = self.path(paths::KEYS).join(file);
        fs::read_to_string(&file).map_err(at(&file))
    }

    /// Address of the mounted consensus key.
    pub fn consensus_address(&self) -> Result<String, HomeError> {
        let key = PrivateKey::parse_consensus_key_file(&self.key(CONSENSUS_KEY_FILE)?)?;
        Ok(key.public().validator_address())
    }

    /// The first-start token, if one is there. One that cannot be read counts as none.
    pub fn observe_token(&self) -> Option<Token> {
        let text = fs::read_to_string(self.path(paths::TOKEN_DIR).join(paths::TOKEN_FILE)).ok()?;
        serde_json::from_str(&text)
            .inspect_err(|error| tracing::warn!(%error, "the first-start token cannot be read"))
            .ok()
    }

    /// What is on the disk.
    pub fn observe_disk(&self) -> Result<ObservedDisk, HomeError> {
        let (disk, data) = (self.path(paths::DISK), self.path(paths::ENGINE_DATA));
        let mut observed = ObservedDisk {
            marker: Found::Absent,
            signing_state: Found::Absent,
            other_files: false,
            last_machine: None,
        };
        for entry in fs::read_dir(&disk).map_err(at(&disk))? {
            let entry = entry.map_err(at(&disk))?;
            let (name, path) = (entry.file_name(), entry.path());
            let text = || fs::read_to_string(&path).map_err(at(&path));
            if name == MARKER_FILE {
                observed.marker = match serde_json::from_str(&text()?) {
                    Ok(marker) => Found::Present(marker),
                    Err(error) => Found::Damaged(error.to_string()),
                };
            } else if name == MACHINE_FILE {
                observed.last_machine = Some(text()?.trim().to_owned());
            } else if path == data {
                observe_data(&data, &mut observed)?;
            } else if name != LOST_AND_FOUND && !is_unfinished(&name) {
                observed.other_files = true;
            }
        }
        Ok(observed)
    }

    /// The first of the two writes of a first start.
    pub fn write_signing_state(&self, state: SignedAt) -> Result<(), HomeError> {
        let data = self.path(paths::ENGINE_DATA);
        fs::create_dir_all(&data).map_err(at(&data))?;
        write_durably(&data, SIGNING_STATE_FILE, state.render_record().as_bytes())?;
        // The directory's own entry, too.
        sync_directory(&self.path(paths::DISK))
    }

    /// The second: from here on the disk is used.
    pub fn write_marker(&self, marker: &Marker) -> Result<(), HomeError> {
        // Plain structs of strings: serialising them cannot fail.
        let text = serde_json::to_string_pretty(marker).unwrap_or_default();
        write_durably(&self.path(paths::DISK), MARKER_FILE, text.as_bytes())
    }

    /// Records the machine, before the engine starts on it.
    pub fn write_machine(&self, machine: &str) -> Result<(), HomeError> {
        write_durably(&self.path(paths::DISK), MACHINE_FILE, machine.as_bytes())
    }

    /// All nodes of the network but this one, which it knows by its own peer-to-peer key.
    pub fn other_peers(&self) -> Result<Vec<Peer>, HomeError> {
        let list = self.path(paths::PEERS_DIR).join(paths::PEERS_FILE);
        let list = fs::read_to_string(&list).map_err(at(&list))?;
        let own = PrivateKey::parse_node_key_file(&self.key(NODE_KEY_FILE)?)?.public().node_id();
        let peers = list.lines().filter_map(|line| {
            let peer = Peer::parse(line);
            if peer.is_none() {
                tracing::warn!(line, "not a peer; left out");
            }
            peer
        });
        Ok(peers.filter(|peer| peer.node_id != own).collect())
    }

    /// Nodes of other owners. A list that is not there is empty: a network need not have any.
    pub fn external_peers(&self) -> Result<Vec<ExternalPeer>, HomeError> {
        let list = self.path(paths::PEERS_DIR).join(paths::EXTERNAL_PEERS_FILE);
        let list = match fs::read_to_string(&list) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at(&list)(error)),
        };
        let peers = list.lines().filter_map(|line| {
            let peer = ExternalPeer::parse(line);
            if peer.is_none() {
                // The engine would end over it.
                tracing::warn!(line, "not a peer; left out");
            }
            peer
        });
        Ok(peers.collect())
    }

    /// Whether the engine has yet to read the first block of a chain that others made.
    pub fn begins_to_join(&self) -> bool {
        let joins = self.path(paths::PEERS_DIR).join(paths::JOINS_FILE);
        let blocks = self.path(paths::ENGINE_DATA).join(BLOCK_STORE);
        joins.exists() && !blocks.exists()
    }

    /// Puts the engine's home together, which lives as long as the pod.
    pub fn assemble(&self, peers: &[Peer], external: &[ExternalPeer]) -> Result<(), HomeError> {
        // Only now: before the marker was there it would have been a strange file.
        let app = self.path(paths::APP_DATA);
        fs::create_dir_all(&app).map_err(at(&app))?;
        let rendered = self.path(paths::CONFIG_DIR).join(CONFIG_FILE);
        let text = fs::read_to_string(&rendered).map_err(at(&rendered))?;
        let config = self.path(paths::HOME).join("config");
        fs::create_dir_all(&config).map_err(at(&config))?;
        let file = config.join(CONFIG_FILE);
        fs::write(&file, complete_config(&text, peers, external)?).map_err(at(&file))
    }
}

fn observe_data(data: &Path, observed: &mut ObservedDisk) -> Result<(), HomeError> {
    for entry in fs::read_dir(data).map_err(at(data))? {
        let name = entry.map_err(at(data))?.file_name();
        if name == SIGNING_STATE_FILE {
            let path = data.join(name);
            let text = fs::read_to_string(&path).map_err(at(&path))?;
            observed.signing_state = match SignedAt::parse_record(&text) {
                Ok(state) => Found::Present(state),
                Err(why) => Found::Damaged(why),
            };
        } else if !is_unfinished(&name) {
            observed.other_files = true;
        }
    }
    Ok(())
}

fn is_unfinished(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().ends_with(UNFINISHED)
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
