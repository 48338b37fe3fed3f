//! May an engine start on this disk?
//!
//! The home-making step runs at every creation of a pod, also when the operator is away. It compares
//! a marker on the disk with the identity it was given, and makes signing state on a disk that holds
//! nothing at all, never on one that held something.

use serde::{Deserialize, Serialize};

/// File name of the marker at the root of the disk.
pub const MARKER_FILE: &str = "bsn-identity.json";

/// The identity a disk belongs to; written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Marker {
    /// Random id of the network.
    pub network_id: String,
    /// Random id of the identity.
    pub identity_id: String,
    /// Consensus public key, as the engine writes it.
    pub consensus_key: String,
    /// SHA-256 of the genesis the data grew from.
    pub genesis_hash: String,
}

/// What was found on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedDisk {
    /// The marker: absent, readable, or damaged.
    pub marker: ObservedMarker,
    /// The engine's signing state is there.
    pub signing_state: bool,
    /// Anything else is there (blocks, an application's data, strange files).
    pub other_files: bool,
}

/// A marker as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservedMarker {
    /// No such file.
    Absent,
    /// A marker.
    Present(Marker),
    /// A file that is not a marker; with the parser's word.
    Damaged(String),
}

/// What the step may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The disk is empty: write signing state, then the marker, and start.
    FirstStart,
    /// Signing state was written but the marker was not (a crash between the two): write the
    /// marker, and start. The engine never ran: it starts only after the marker is there.
    FinishFirstStart,
    /// The disk is this identity's: start.
    Start,
    /// Do not start.
    Refuse(Refusal),
}

/// Why an engine may not start on a disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The marker is another identity's.
    #[error(
        "DiskOfAnotherIdentity: this disk belongs to identity {found} of network {found_network}, not to {expected}; \
         attach the right volume"
    )]
    OtherIdentity {
        /// Identity in the marker.
        found: String,
        /// Network in the marker.
        found_network: String,
        /// Identity the pod runs for.
        expected: String,
    },
    /// Same identity, but its key or genesis differs from when the disk was first used.
    #[error(
        "DiskOfAnotherChain: the {what} this disk was first used with is {found}, now it is {expected}"
    )]
    OtherTerms {
        /// Which of them.
        what: &'static str,
        /// In the marker.
        found: String,
        /// Given to the pod.
        expected: String,
    },
    /// The marker is there, the signing state is not.
    #[error(
        "SigningStateLost: the disk was used before, but the record of what this key signed is missing; starting \
         could sign twice. Restore the whole volume, or replace the node"
    )]
    SigningStateLost,
    /// Data without a marker: not a disk this operator prepared.
    #[error(
        "DiskNotEmpty: the disk holds data but no {MARKER_FILE}; it is not this node's. Attach an empty volume"
    )]
    NotEmpty,
    /// The marker can't be read.
    #[error("MarkerDamaged: {MARKER_FILE} cannot be read: {0}")]
    MarkerDamaged(String),
}

/// Decides by what is on the disk and whose pod this is.
pub fn next_start(disk: &ObservedDisk, expected: &Marker) -> Decision {
    let marker = match &disk.marker {
        ObservedMarker::Damaged(why) => {
            return Decision::Refuse(Refusal::MarkerDamaged(why.clone()));
        }
        ObservedMarker::Absent => {
            return match (disk.signing_state, disk.other_files) {
                (false, false) => Decision::FirstStart,
                (true, false) => Decision::FinishFirstStart,
                (_, true) => Decision::Refuse(Refusal::NotEmpty),
            };
        }
        ObservedMarker::Present(marker) => marker,
    };
    if marker.identity_id != expected.identity_id || marker.network_id != expected.network_id {
        return Decision::Refuse(Refusal::OtherIdentity {
            found: marker.identity_id.clone(),
            found_network: marker.network_id.clone(),
            expected: expected.identity_id.clone(),
        });
    }
    for (what, found, expected) in [
        ("consensus key", &marker.consensus_key, &expected.consensus_key),
        ("genesis", &marker.genesis_hash, &expected.genesis_hash),
    ] {
        if found != expected {
            return Decision::Refuse(Refusal::OtherTerms {
                what,
                found: found.clone(),
                expected: expected.clone(),
            });
        }
    }
    if disk.signing_state { Decision::Start } else { Decision::Refuse(Refusal::SigningStateLost) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker() -> Marker {
        Marker {
            network_id: "n1".into(),
            identity_id: "i1".into(),
            consensus_key: "k1".into(),
            genesis_hash: "g1".into(),
        }
    }

    /// Every input: no pair of "it was used" and "make signing state" exists.
    #[test]
    fn signing_state_is_made_only_on_a_disk_without_marker_and_without_data() {
        let mut markers = vec![ObservedMarker::Absent, ObservedMarker::Damaged("x".into())];
        for network_id in ["n1", "n2"] {
            for identity_id in ["i1", "i2"] {
                for consensus_key in ["k1", "k2"] {
                    for genesis_hash in ["g1", "g2"] {
                        markers.push(ObservedMarker::Present(Marker {
                            network_id: network_id.into(),
                            identity_id: identity_id.into(),
                            consensus_key: consensus_key.into(),
                            genesis_hash: genesis_hash.into(),
                        }));
                    }
                }
            }
        }
        for found in markers {
            for signing_state in [false, true] {
                for other_files in [false, true] {
                    let disk = ObservedDisk { marker: found.clone(), signing_state, other_files };
                    let decision = next_start(&disk, &marker());
                    let first = decision == Decision::FirstStart;
                    let bare = found == ObservedMarker::Absent && !signing_state && !other_files;
                    assert_eq!(first, bare, "{disk:?}");
                    let starts = decision == Decision::Start;
                    let whole = found == ObservedMarker::Present(marker()) && signing_state;
                    assert_eq!(starts, whole, "{disk:?}");
                }
            }
        }
    }

    #[test]
    fn a_crash_between_the_two_first_writes_is_finished() {
        let disk = ObservedDisk {
            marker: ObservedMarker::Absent,
            signing_state: true,
            other_files: false,
        };
        assert_eq!(next_start(&disk, &marker()), Decision::FinishFirstStart);
    }
}
