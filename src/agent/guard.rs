//! `bsn-operator guard`: may the engine start?
//!
//! Runs at every creation of the pod, also when the operator is away. The decision is
//! [`bsn_core::guard`]; this file feeds it, once a second: what is on the disk, whether a token is there,
//! and what the other nodes' gateways have seen of this key. It never exits to refuse: it stays, tells its
//! reason through the gateway, and looks again, so that what a person mends takes effect at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bsn_core::engine::cometbft::P2P_PORT;
use bsn_core::engine::cometbft::config::{ExternalPeer, Peer};
use bsn_core::evidence::{GuardReport, GuardState, VotesAnswer};
use bsn_core::guard::{
    Decision, Found, Input, Marker, ObservedDisk, PeerAnswer, Watch, next_start,
};
use futures::future::join_all;
use tokio::time::Instant;

use super::home::{Files, HomeError};
use super::paths;
use crate::cli::GuardArgs;
use crate::evidence::client::{EvidenceError, fetch_votes};
use crate::evidence::route::Gateway;
use crate::labels::GATEWAY_PORT;
use crate::pki::tls;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest another gateway may take to answer: its engine searches some forty blocks.
const DEADLINE: Duration = Duration::from_secs(3);

/// Longest a peer may take to accept a connection, when the first start waits for one.
const CONTACT: Duration = Duration::from_secs(2);
/// Longest the names of other owners' nodes are waited for. A name of theirs that is gone must not hold up each start for
/// as long as one of ours, which is made before any pod.
const EXTERNAL_DNS_WAIT: Duration = Duration::from_secs(15);

/// Why the guard ended without a decision.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Its report could not be written for the gateway.
    #[error("the guard's report cannot be written: {0}")]
    Report(#[from] io::Error),
}

/// Decides, again and again, until the engine may start; then makes its home.
pub async fn run(args: GuardArgs) -> Result<(), GuardError> {
    let files = Files::below(&args.root);
    let began = Instant::now();
    let mut guard =
        Guard { files: &files, args: &args, watch: Watch::default(), began, told: None };
    loop {
        let report = match guard.look().await {
            Ok(report) => report,
            // What is mounted is wrong or a file cannot be read: the same for the one who must help.
            Err(error) => {
                GuardReport { state: GuardState::Refused, message: error.to_string(), nonce: None }
            }
        };
        guard.tell(&report)?;
        if report.state == GuardState::Passed {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

struct Guard<'a> {
    files: &'a Files,
    args: &'a GuardArgs,
    watch: Watch,
    began: Instant,
    told: Option<GuardReport>,
}

impl Guard<'_> {
    async fn look(&mut self) -> Result<GuardReport, HomeError> {
        let expected = &self.args.identity;
        self.files.check_inputs(expected)?;
        let peers = self.files.other_peers()?;
        let disk = self.files.observe_disk()?;
        let token = self.files.observe_token();
        let answers = self.ask(&peers, &disk).await?;
        self.watch.observe(&answers, self.began.elapsed());
        // Again, after the answers: on storage that an old process still writes, the record moves on
        // while they travel.
        let disk = self.files.observe_disk()?;
        let decision = next_start(&Input {
            disk: &disk,
            identity: expected,
            token: token.as_ref(),
            machine: &self.args.machine,
            answers: &answers,
            watch: &self.watch,
            elapsed: self.began.elapsed(),
        });
        let report = |state, message, nonce| Ok(GuardReport { state, message, nonce });
        let nonce = match &disk.marker {
            Found::Present(marker) => Some(marker.nonce.clone()),
            _ => None,
        };
        match decision {
            Decision::Wait(wait) => return report(GuardState::Waiting, wait.to_string(), nonce),
            Decision::Refuse(refusal) => {
                return report(GuardState::Refused, refusal.to_string(), nonce);
            }
            Decision::FirstStart(state) => self.files.write_signing_state(state)?,
            Decision::FinishFirstStart | Decision::Start => {}
        }
        let nonce = match (nonce, token) {
            (Some(nonce), _) => nonce,
            // Only a token leads here without a marker.
            (None, token) => {
                let nonce = token.map(|token| token.nonce).unwrap_or_default();
                let marker = Marker { identity: expected.clone(), nonce: nonce.clone() };
                self.files.write_marker(&marker)?;
                nonce
            }
        };
        let external = self.files.external_peers()?;
        if self.files.begins_to_join() && !is_anyone_there(&peers, &external).await {
            // The engine reads its peers once, when it starts: before it has anything to lose by waiting, the list is read
            // again and again, so that a wrong address can be corrected.
            let message = format!(
                "no peer accepts connections, so the chain cannot be joined yet; check spec.externalPeers, and whether \
                 these are reached from here: {}",
                external.iter().map(ExternalPeer::address).collect::<Vec<_>>().join(", ")
            );
            return report(GuardState::Waiting, message, Some(nonce));
        }
        let longest = Duration::from_secs(self.args.dns_wait_seconds);
        let own = peers.iter().map(|peer| (peer.host.as_str(), P2P_PORT));
        let others = external.iter().map(|peer| (peer.host.as_str(), peer.port));
        tokio::join!(
            await_names(own, longest),
            await_names(others, longest.min(EXTERNAL_DNS_WAIT)),
        );
        self.files.assemble(&peers, &external)?;
        self.files.write_machine(&self.args.machine)?;
        let message = format!("started after {:.1} s", self.began.elapsed().as_secs_f64());
        report(GuardState::Passed, message, Some(nonce))
    }

    /// Asks all other nodes at once what they have seen of this key.
    async fn ask(&self, peers: &[Peer], disk: &ObservedDisk) -> Result<Vec<PeerAnswer>, HomeError> {
        let read = |directory: &str, file: &str| {
            std::fs::read_to_string(self.files.path(directory).join(file)).unwrap_or_default()
        };
        // Read anew each time: the certificate may have been renewed while the guard waits.
        let cert = read(paths::CERT_DIR, paths::CERT_FILE);
        let key = read(paths::TLS_KEY_DIR, paths::TLS_KEY_FILE);
        let address = self.files.consensus_address()?;
        let recorded = match &disk.signing_state {
            Found::Present(state) => state.height,
            Found::Absent | Found::Damaged(_) => 0,
        };
        let path = format!("/v1/votes/{address}?from={recorded}");
        let answers = join_all(peers.iter().map(|peer| ask_peer(peer, &cert, &key, &path))).await;
        Ok(answers)
    }

    /// Tells the gateway, and the log when it is news.
    fn tell(&mut self, report: &GuardReport) -> Result<(), GuardError> {
        if self.told.as_ref() == Some(report) {
            return Ok(());
        }
        tracing::info!(state = ?report.state, machine = %self.args.machine, "{}", report.message);
        let directory = self.files.path(paths::RUN_DIR);
        let file = directory.join(paths::GUARD_FILE);
        let unfinished = directory.join("guard.unfinished");
        std::fs::write(&unfinished, serde_json::to_vec(report).unwrap_or_default())?;
        std::fs::rename(unfinished, file)?;
        self.told = Some(report.clone());
        Ok(())
    }
}

async fn ask_peer(peer: &Peer, cert: &str, key: &str, path: &str) -> PeerAnswer {
    let asked = async {
        let tls = tls::client_config(&peer.tls_spki_sha256, cert, key)
            .map_err(|error| EvidenceError::Body(Box::new(error)))?;
        let host = peer.host.as_str();
        let address = tokio::net::lookup_host((host, GATEWAY_PORT)).await?.next();
        let address = address.ok_or(EvidenceError::NoAddress)?;
        fetch_votes(&Gateway::at(address, host, Arc::new(tls)), path, DEADLINE).await
    };
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(VotesAnswer::Seen { head, vote })) => PeerAnswer::Seen { head, vote },
        Ok(Ok(VotesAnswer::NotStarted)) => PeerAnswer::NotStarted,
        Ok(Err(error)) => {
            tracing::debug!(peer = %peer.host, %error, "no answer");
            PeerAnswer::Silent
        }
        Err(_) => PeerAnswer::Silent,
    }
}

/// Waits for the peers' names to resolve: the engine looks each up once, when it starts, and never dials
/// one it did not find (`p2p/switch.go`, `AddPersistentPeers`). After the wait it is started anyway, since
/// a peer that is gone for good must not stop the others. Until its next start the engine then waits to be dialled
/// by that peer.
async fn await_names(peers: impl Iterator<Item = (&str, u16)>, longest: Duration) {
    let deadline = Instant::now() + longest;
    for (host, port) in peers {
        loop {
            let Err(problem) = tokio::net::lookup_host((host, port)).await else { break };
            if Instant::now() >= deadline {
                tracing::warn!(peer = %host, %problem, "its name does not resolve; starting without waiting longer");
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Whether any peer, ours or another owner's, accepts a connection.
async fn is_anyone_there(peers: &[Peer], external: &[ExternalPeer]) -> bool {
    let own = peers.iter().map(|peer| (peer.host.clone(), P2P_PORT));
    let others = external.iter().map(|peer| (peer.host.clone(), peer.port));
    let dials = own.chain(others).map(|(host, port)| async move {
        let dial = tokio::net::TcpStream::connect((host.as_str(), port));
        matches!(tokio::time::timeout(CONTACT, dial).await, Ok(Ok(_)))
    });
    join_all(dials).await.contains(&true)
}

#[cfg(test)]
mod tests;
