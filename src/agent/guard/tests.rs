//! The guard on real files, without other nodes.

use std::fs;
use std::path::PathBuf;

use bsn_core::engine::cometbft::genesis::GENESIS_FILE;
use bsn_core::engine::cometbft::keys::{CONSENSUS_KEY_FILE, NODE_KEY_FILE, PrivateKey};
use bsn_core::engine::cometbft::signing::{SIGNING_STATE_FILE, SignedAt};
use bsn_core::guard::{MARKER_FILE, PodIdentity, Token};
use bsn_core::hash::sha256_hex;

use super::*;

struct Pod {
    root: tempfile::TempDir,
    identity: PodIdentity,
}

impl Pod {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let key = PrivateKey::from_random([7; 32]);
        let genesis = "{}";
        let own = format!("{}@self.invalid:26656 00\n", key.public().node_id());
        for (directory, file, text) in [
            (paths::GENESIS_DIR, GENESIS_FILE, genesis.to_owned()),
            (paths::KEYS, CONSENSUS_KEY_FILE, key.consensus_key_file()),
            (paths::KEYS, NODE_KEY_FILE, key.node_key_file()),
            (paths::CONFIG_DIR, "config.toml", "[p2p]\nladdr = \"x\"\n".to_owned()),
            (paths::PEERS_DIR, paths::PEERS_FILE, own),
        ] {
            let directory = Files::below(root.path()).path(directory);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), text).unwrap();
        }
        for directory in [paths::DISK, paths::HOME, paths::RUN_DIR, paths::TOKEN_DIR] {
            fs::create_dir_all(Files::below(root.path()).path(directory)).unwrap();
        }
        let identity = PodIdentity {
            network_id: "n1".into(),
            identity_id: "i1".into(),
            consensus_key: key.public().base64().to_owned(),
            genesis_hash: sha256_hex(genesis.as_bytes()),
            disk_uid: "d1".into(),
        };
        Self { root, identity }
    }

    fn path(&self, path: &str) -> PathBuf {
        Files::below(self.root.path()).path(path)
    }

    fn give_token(&self) {
        let token = Token {
            nonce: "t1".into(),
            identity: self.identity.clone(),
            signing_state: SignedAt::default(),
        };
        let file = self.path(paths::TOKEN_DIR).join(paths::TOKEN_FILE);
        fs::write(file, serde_json::to_string(&token).unwrap()).unwrap();
    }

    /// Lets the guard work for a moment; gives its last report.
    async fn start(&self) -> GuardReport {
        let args = GuardArgs {
            identity: self.identity.clone(),
            machine: "m1".into(),
            root: self.root.path().to_owned(),
            dns_wait_seconds: 0,
        };
        // A refusal never ends by itself.
        let _ = tokio::time::timeout(Duration::from_millis(300), run(args)).await;
        let report = fs::read(self.path(paths::RUN_DIR).join(paths::GUARD_FILE)).unwrap();
        serde_json::from_slice(&report).unwrap()
    }

    fn signing_state(&self) -> PathBuf {
        self.path(paths::ENGINE_DATA).join(SIGNING_STATE_FILE)
    }
}

#[tokio::test]
async fn first_start_makes_signing_state_and_every_later_start_keeps_it() {
    let pod = Pod::new();
    fs::create_dir(pod.path(paths::DISK).join("lost+found")).unwrap();
    let report = pod.start().await;
    assert!(report.state == GuardState::Refused && report.message.starts_with("DiskEmpty"));
    pod.give_token();
    let report = pod.start().await;
    assert_eq!((report.state, report.nonce.as_deref()), (GuardState::Passed, Some("t1")));
    let config = fs::read_to_string(pod.path(paths::HOME).join("config/config.toml")).unwrap();
    assert!(!config.contains("self.invalid"), "{config}");
    let signed = SignedAt::past(9).render_record();
    fs::write(pod.signing_state(), &signed).unwrap();
    assert_eq!(pod.start().await.state, GuardState::Passed);
    assert_eq!(fs::read_to_string(pod.signing_state()).unwrap(), signed);
}

#[tokio::test]
async fn a_crash_after_any_write_of_the_first_start_is_finished() {
    // After the unfinished file, after the signing state, and after the unfinished marker.
    for crash in 0..3 {
        let pod = Pod::new();
        pod.give_token();
        let data = pod.path(paths::ENGINE_DATA);
        fs::create_dir(&data).unwrap();
        let fresh = SignedAt::default().render_record();
        if crash == 0 {
            fs::write(data.join(format!("{SIGNING_STATE_FILE}.unfinished")), "{").unwrap();
        } else {
            fs::write(pod.signing_state(), &fresh).unwrap();
        }
        if crash == 2 {
            let marker = format!("{MARKER_FILE}.unfinished");
            fs::write(pod.path(paths::DISK).join(marker), "{").unwrap();
        }
        assert_eq!(pod.start().await.state, GuardState::Passed, "crash {crash}");
        assert_eq!(fs::read_to_string(pod.signing_state()).unwrap(), fresh);
        assert_eq!(pod.start().await.state, GuardState::Passed);
    }
}

#[tokio::test]
async fn a_refusal_writes_nothing_but_its_reason() {
    let pod = Pod::new();
    pod.give_token();
    pod.start().await;
    fs::remove_file(pod.signing_state()).unwrap();
    let report = pod.start().await;
    assert!(report.message.starts_with("SigningStateLost:"), "{}", report.message);
    assert!(!pod.signing_state().exists());
}

#[tokio::test]
async fn another_key_or_genesis_is_refused_before_the_disk_is_touched() {
    let mut pod = Pod::new();
    pod.identity.genesis_hash = "00".into();
    pod.give_token();
    assert!(pod.start().await.message.starts_with("GenesisDiffers"));
    assert_eq!(fs::read_dir(pod.path(paths::DISK)).unwrap().count(), 0);
    let mut pod = Pod::new();
    pod.identity.consensus_key = PrivateKey::from_random([8; 32]).public().base64().to_owned();
    pod.give_token();
    assert!(pod.start().await.message.starts_with("KeyDiffers"));
    assert_eq!(fs::read_dir(pod.path(paths::DISK)).unwrap().count(), 0);
}

#[tokio::test]
async fn a_disk_with_strange_data_is_refused_even_with_a_token() {
    let pod = Pod::new();
    pod.give_token();
    fs::write(pod.path(paths::DISK).join("blockstore.db"), "x").unwrap();
    assert!(pod.start().await.message.starts_with("DiskNotEmpty"));
}

#[tokio::test]
async fn nodes_of_other_owners_are_dialled_and_a_line_that_is_none_is_left_out() {
    let pod = Pod::new();
    pod.give_token();
    let external = format!("{}@192.0.2.7:7000\nwhatever\n", "ab".repeat(20));
    let list = pod.path(paths::PEERS_DIR).join(paths::EXTERNAL_PEERS_FILE);
    fs::write(list, &external).unwrap();
    assert_eq!(pod.start().await.state, GuardState::Passed);
    let config = fs::read_to_string(pod.path(paths::HOME).join("config/config.toml")).unwrap();
    let expected = format!("persistent_peers = \"{}@192.0.2.7:7000\"", "ab".repeat(20));
    assert!(config.contains(&expected), "{config}");
}

#[tokio::test]
async fn the_first_start_on_a_chain_of_others_waits_for_one_of_them_and_no_later_one_does() {
    let pod = Pod::new();
    pod.give_token();
    fs::write(pod.path(paths::PEERS_DIR).join(paths::JOINS_FILE), "").unwrap();
    let report = pod.start().await;
    assert_eq!((report.state, report.nonce.as_deref()), (GuardState::Waiting, Some("t1")));
    assert!(report.message.contains("check spec.externalPeers"), "{}", report.message);
    // Its engine has run: the chain may need it, and its own word is enough.
    fs::create_dir(pod.path(paths::ENGINE_DATA).join("blockstore.db")).unwrap();
    assert_eq!(pod.start().await.state, GuardState::Passed);
}

#[tokio::test]
async fn one_that_accepts_connections_is_enough_to_begin() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = |port| {
        let (node_id, host) = ("ab".repeat(20), "127.0.0.1".to_owned());
        ExternalPeer { node_id, host, port }
    };
    let there = peer(listener.local_addr().unwrap().port());
    assert!(is_anyone_there(&[], &[peer(1), there.clone()]).await);
    drop(listener);
    assert!(!is_anyone_there(&[], &[peer(1), there]).await);
}
