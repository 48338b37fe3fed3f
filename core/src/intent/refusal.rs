//! Why a step of the protocol is not taken.

/// Why not, and what to do. See [`Refusal::category`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// A newer leader has written.
    #[error("a leader of epoch {by_epoch} has taken over; end this leader's term")]
    Fenced {
        /// Its epoch.
        by_epoch: u64,
    },
    /// This leader's lease ended, or is about to.
    #[error("the lease has ended; end this leader's term")]
    LeaseEnded,
    /// A step was begun since the decision.
    #[error("decided after step {decided_on}, but step {found} was begun since; decide again")]
    Moved {
        /// Newest step the decision knew of.
        decided_on: u64,
        /// Newest step there is.
        found: u64,
    },
    /// The ledger has a step under way.
    #[error("step {number} is under way on ledger {ledger}; end it first")]
    Occupied {
        /// Which ledger.
        ledger: String,
        /// Its open step.
        number: u64,
    },
    /// There is no such open step.
    #[error("step {number} is not under way on ledger {ledger}; decide again")]
    NoSuchStep {
        /// Which ledger.
        ledger: String,
        /// Which step.
        number: u64,
    },
    /// Another leader's step.
    #[error("step {number} carries epoch {epoch} of another leader; resume it first")]
    NotResumed {
        /// Which step.
        number: u64,
        /// Its epoch.
        epoch: u64,
    },
    /// Nothing was sent, so nothing can be settled.
    #[error("step {number} was never sent; withdraw it instead")]
    NotSent {
        /// Which step.
        number: u64,
    },
    /// It cannot be taken back.
    #[error(
        "step {number} may have been sent, so it must be settled; if that never ends, consent \"{consent}\" gives it up"
    )]
    Irreversible {
        /// Which step.
        number: u64,
        /// The consent that gives it up.
        consent: String,
    },
    /// The consent names something else.
    #[error("consent \"{given}\" does not fit; if it is meant, give \"{needed}\"")]
    OtherConsent {
        /// What was given.
        given: String,
        /// What would fit.
        needed: String,
    },
    /// There is no record at all: nothing was ever done in a member cluster.
    #[error("the network has no anchor, here or beside its nodes; create it first")]
    Absent,
    /// Another network of the same name.
    #[error("the anchor {place} belongs to network {found}; choose another name or namespace")]
    AnotherNetwork {
        /// Its id.
        found: String,
        /// Where.
        place: String,
    },
    /// Another hub writes there.
    #[error(
        "the anchor {place} belongs to hub {found}; one network has one hub. If that hub is stopped for good, \
         give consent \"{consent}\""
    )]
    AnotherHub {
        /// Its id.
        found: String,
        /// Where.
        place: String,
        /// The consent that takes the network over.
        consent: String,
    },
    /// This hub came from a backup.
    #[error(
        "this hub is older than the network: the anchor {place} is newer than its own (step {copy_step} there). \
         See that the description is the newest one, then give consent \"{consent}\""
    )]
    HubOlder {
        /// Newest step this hub knows of; `None` = it has no anchor.
        primary_step: Option<u64>,
        /// Newest step known there.
        copy_step: u64,
        /// Where.
        place: String,
        /// The consent that goes on from there.
        consent: String,
    },
    /// A step names a place that is not among the network's.
    #[error(
        "the step happens in {place}, which is not among the network's clusters; register it first"
    )]
    UnknownPlace {
        /// Which.
        place: String,
    },
}

/// What to do about a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// This process leads no more.
    EndTerm,
    /// Observe and decide anew; nothing is wrong.
    DecideAgain,
    /// A person may consent, or must act.
    Person,
    /// The caller asked for something that is never right.
    Misuse,
}

impl Refusal {
    /// What to do about it. Bounded, for metrics.
    pub fn category(&self) -> Category {
        match self {
            Self::Fenced { .. } | Self::LeaseEnded => Category::EndTerm,
            // Decided to withdraw it before it was seen to be sent.
            Self::Irreversible { .. }
            | Self::Moved { .. }
            | Self::Occupied { .. }
            | Self::NoSuchStep { .. } => Category::DecideAgain,
            Self::OtherConsent { .. }
            | Self::AnotherNetwork { .. }
            | Self::AnotherHub { .. }
            | Self::HubOlder { .. }
            | Self::UnknownPlace { .. } => Category::Person,
            Self::NotResumed { .. } | Self::NotSent { .. } | Self::Absent => Category::Misuse,
        }
    }

    /// The consent that opens the way, if one does.
    pub fn consent(&self) -> Option<&str> {
        match self {
            Self::AnotherHub { consent, .. } | Self::HubOlder { consent, .. } => Some(consent),
            Self::OtherConsent { needed, .. } => Some(needed),
            _ => None,
        }
    }
}
