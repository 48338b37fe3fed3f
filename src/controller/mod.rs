//! The controllers. Both have the same steps in files of the same names: `observe`, `validate` (the
//! network's, shared), `plan` (in `bsn-core`), `apply`, `report`.

/// Goes on with the value, or ends the pass with the refusal.
macro_rules! or_refuse {
    ($step:expr) => {
        match $step {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

pub mod context;
pub(crate) mod copies;
#[cfg(test)]
mod gitops_tests;
pub mod network;
pub mod node;
pub mod retention;
pub mod run;

use crate::anchor::StoreError;
use crate::api::conditions::{READY, RECONCILING, Reason, STALLED, State};
use crate::apply::ApiError;
use crate::cluster::registry::Absent;
use crate::pki::PkiError;
use bsn_core::anchor::AnchorError;

/// Why a pass ended early. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The anchor.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate or key could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A step of the protocol was not done.
    #[error(transparent)]
    Steps(#[from] crate::intent::DriveError),
    /// A cluster cannot be used now.
    #[error(transparent)]
    Cluster(#[from] Absent),
    /// A pass took too long.
    #[error("the pass did not end within {} s", .0.as_secs())]
    PassDeadline(std::time::Duration),
}

impl Error {
    /// The kind of error, from a fixed list: safe as a metric's label.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api(error) | Self::Store(StoreError::Api(error)) => error.category(),
            Self::Store(_) => "anchor",
            Self::Pki(_) => "pki",
            Self::Steps(_) => "steps",
            Self::Cluster(_) => "cluster",
            Self::PassDeadline(_) => "pass-deadline",
        }
    }
}

/// Why something is not done until a person helps. It becomes a condition, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, as it is written in the condition.
    pub reason: Reason,
    /// What is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// What an object says that can't be looked at any further.
    pub fn states(&self) -> [State; 3] {
        let Self { reason, message } = self;
        let stalled = !reason.may_pass();
        let waits = if stalled { "waiting for a person" } else { message };
        [
            State::new(READY, false, *reason, message),
            State::new(STALLED, stalled, *reason, if stalled { message } else { "" }),
            State::new(RECONCILING, !stalled, *reason, waits),
        ]
    }
}

impl From<AnchorError> for Refusal {
    fn from(error: AnchorError) -> Self {
        Self::new(Reason::AnchorRefused, error.to_string())
    }
}

/// A step's end: done, or refused. Errors that a later try may cure travel beside it.
pub type Step<T> = Result<Result<T, Refusal>, Error>;

/// Turns errors that no later try cures into refusals.
pub fn refused<T>(result: Result<T, impl Into<Error>>) -> Step<T> {
    match result.map_err(Into::into) {
        Ok(value) => Ok(Ok(value)),
        Err(
            Error::Api(error @ ApiError::NameTaken { .. })
            | Error::Store(StoreError::Api(error @ ApiError::NameTaken { .. })),
        ) => Ok(Err(Refusal::new(Reason::NameTaken, error.to_string()))),
        Err(Error::Store(StoreError::Anchor(error))) => Ok(Err(error.into())),
        Err(Error::Store(error @ (StoreError::Missing(_) | StoreError::Taken { .. }))) => {
            Ok(Err(Refusal::new(Reason::AnchorRefused, error.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// Turns what the API server does not accept into a refusal: the description, or the cluster, has to change first.
pub fn told<T>(step: Step<T>) -> Step<T> {
    match step {
        Err(Error::Api(error)) if error.is_refused() => {
            let message = format!(
                "the API server does not accept what follows from the description: {}. Correct the field it is about, or have \
                 the cluster's rule changed; it is tried again by itself",
                error.answer()
            );
            Ok(Err(Refusal::new(Reason::ObjectRefused, message)))
        }
        step => step,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn answered(code: u16) -> Step<()> {
        let status = Status::failure("spec.memory: must be less", "Invalid").with_code(code);
        let source = Box::new(kube::Error::Api(status.boxed()));
        Err(Error::Api(ApiError::Request { what: "create StatefulSet".into(), source }))
    }

    #[test]
    fn what_the_api_server_does_not_accept_is_told_and_what_fails_is_tried_again() {
        for code in [422, 403] {
            let refusal = told(answered(code)).unwrap().unwrap_err();
            assert_eq!(refusal.reason, Reason::ObjectRefused);
            assert!(refusal.message.contains("spec.memory: must be less"), "{}", refusal.message);
        }
        for code in [401, 404, 409, 429, 500] {
            assert!(told(answered(code)).is_err(), "{code}");
        }
        let deadline = ApiError::Deadline { what: "create".into() };
        assert!(told::<()>(Err(deadline.into())).is_err());
    }
}
