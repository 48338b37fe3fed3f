//! First-start tokens: permission to use an empty disk, given once.
//!
//! A pod sees no uid of its disk and can consume nothing, so the token lies in a Secret of its own that
//! the pod mounts if it is there. The anchor records the token *before* the Secret exists, and its use
//! before the Secret is deleted: a crash between any two writes resumes with the same token, and a used
//! one is never given again.

use serde::{Deserialize, Serialize};

use crate::engine::cometbft::signing::SignedAt;

/// How far an identity's token is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state", deny_unknown_fields)]
pub enum FirstStart {
    /// None was issued.
    #[default]
    NotIssued,
    /// Issued: the Secret exists, or will.
    Issued {
        /// Random; never issued twice.
        nonce: String,
        /// The disk it is for.
        #[serde(rename = "diskUid")]
        disk_uid: String,
        /// The signing state to begin with.
        #[serde(rename = "signingState")]
        signing_state: SignedAt,
    },
    /// The disk's marker names it: the Secret must go.
    Consumed {
        /// Of the token.
        nonce: String,
    },
    /// The Secret is gone.
    Used {
        /// Of the token.
        nonce: String,
    },
}

/// What to do next about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenStep {
    /// Record a new one in the anchor.
    Issue,
    /// See that the Secret exists.
    Publish,
    /// Record that it was used.
    RecordUse,
    /// See that the Secret does not exist, then record that.
    Withdraw,
    /// Nothing.
    Rest,
}

impl FirstStart {
    /// The next step, given the nonce in the marker that the node's gateway reports.
    pub fn next_step(&self, reported_nonce: Option<&str>) -> TokenStep {
        match self {
            Self::NotIssued => TokenStep::Issue,
            Self::Issued { nonce, .. } if reported_nonce == Some(nonce) => TokenStep::RecordUse,
            Self::Issued { .. } => TokenStep::Publish,
            Self::Consumed { .. } => TokenStep::Withdraw,
            Self::Used { .. } => TokenStep::Rest,
        }
    }

    /// Issues another token, whatever came before: a person has consented.
    pub fn issue_again(&mut self, issued: Issued<'_>) {
        *self = Self::Issued {
            nonce: issued.nonce.to_owned(),
            disk_uid: issued.disk_uid.to_owned(),
            signing_state: issued.signing_state,
        };
    }

    /// Records what `step` did. Steps that do not fit the state change nothing: another writer was first.
    pub fn record(&mut self, step: &TokenStep, issued: Issued<'_>) {
        *self = match (step, &*self) {
            (TokenStep::Issue, Self::NotIssued) => Self::Issued {
                nonce: issued.nonce.to_owned(),
                disk_uid: issued.disk_uid.to_owned(),
                signing_state: issued.signing_state,
            },
            (TokenStep::RecordUse, Self::Issued { nonce, .. }) => {
                Self::Consumed { nonce: nonce.clone() }
            }
            (TokenStep::Withdraw, Self::Consumed { nonce }) => Self::Used { nonce: nonce.clone() },
            _ => return,
        };
    }
}

/// Content of a token to be issued.
#[derive(Debug, Clone, Copy)]
pub struct Issued<'a> {
    /// Random.
    pub nonce: &'a str,
    /// The disk it is for.
    pub disk_uid: &'a str,
    /// The signing state to begin with.
    pub signing_state: SignedAt,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(state: &mut FirstStart, reported: Option<&str>, nonce: &str) -> TokenStep {
        let step = state.next_step(reported);
        let signing_state = SignedAt::default();
        state.record(&step, Issued { nonce, disk_uid: "d1", signing_state });
        step
    }

    #[test]
    fn a_token_is_issued_once_and_ends_used() {
        let mut state = FirstStart::default();
        assert_eq!(take(&mut state, None, "t1"), TokenStep::Issue);
        // A crash now, and the next pass draws another nonce: the recorded one stays.
        assert_eq!(take(&mut state, None, "t2"), TokenStep::Publish);
        assert_eq!(take(&mut state, Some("t0"), "t2"), TokenStep::Publish);
        assert!(matches!(&state, FirstStart::Issued { nonce, .. } if nonce == "t1"));
        assert_eq!(take(&mut state, Some("t1"), "t3"), TokenStep::RecordUse);
        // Once its use is recorded it is never published again, whatever a gateway reports.
        assert_eq!(take(&mut state, None, "t3"), TokenStep::Withdraw);
        assert_eq!(take(&mut state, None, "t3"), TokenStep::Rest);
        assert_eq!(state, FirstStart::Used { nonce: "t1".into() });
    }

    #[test]
    fn the_state_reads_back_from_the_anchor() {
        let mut state = FirstStart::default();
        for _ in 0..4 {
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<FirstStart>(&text).unwrap(), state, "{text}");
            take(&mut state, Some("t1"), "t1");
        }
    }
}
