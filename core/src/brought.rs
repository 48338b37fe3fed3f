//! May a node be made with a key that its owner brings? The key has had a life before, of which nothing is known here
//! but what the chain shows. A key that two processes sign with is a key that signs twice.

use crate::engine::cometbft::signing::SignedAt;
use crate::membership::Policy;
use crate::membership::model::{Head, Ledger, Liveness};
use crate::membership::projection::is_fresh;

/// Blocks above the newest one that the new signing state lies: what the key may have signed at heights that nobody has
/// stored yet stays below it.
pub const AHEAD: u64 = 10;

/// Why a key is not taken, or not yet; the message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Nobody answers who could tell.
    #[error(
        "whether it signs somewhere is not known, since no node of this network tells of the newest blocks; it is looked \
         at again by itself. A network that joins a chain needs a node without a key that is brought, to look"
    )]
    NotSeen,
    /// The chain counts it, and makes no blocks.
    #[error(
        "the chain counts it as a voter and stands still, so that nobody can tell whether it signs elsewhere; it is \
         looked at again when blocks are made"
    )]
    Standing,
    /// It signs.
    #[error(
        "it signs blocks now ({signed} of the last {window}), and no node of this network holds it: two processes with one key \
         sign twice. End the process that signs with it, for good; once the chain is seen without its signatures for that \
         many blocks, the node is made"
    )]
    Signs {
        /// Blocks it signed.
        signed: u64,
        /// Of how many.
        window: u64,
    },
}

/// How many of the newest blocks are looked at.
const WINDOW: u64 = 12;

/// Whether a key that no node of the network holds may be taken, and the height up to which it must not sign (0 = it may sign
/// from the first block). `ledger` is what is seen of the chain; `None` = nothing. Of a chain that is not `begun`
/// there is no block that it could have signed: one that this network is yet to form, and none that it joins.
///
/// # Errors
///
/// Why not.
pub fn may_take(
    begun: bool,
    ledger: Option<&Ledger>,
    policy: &Policy,
    address: &str,
) -> Result<u64, NotTaken> {
    if !begun {
        return Ok(0);
    }
    let ledger = ledger.filter(|ledger| ledger.height > 0 && is_fresh(ledger, policy));
    let ledger = ledger.ok_or(NotTaken::NotSeen)?;
    if let Some(member) = ledger.members.get(address) {
        match ledger.head {
            Head::Producing => {}
            Head::Standing | Head::Frozen => return Err(NotTaken::Standing),
            Head::Unknown => return Err(NotTaken::NotSeen),
        }
        if member.signed > 0 || member.liveness == Liveness::Live {
            return Err(NotTaken::Signs { signed: member.signed, window: WINDOW });
        }
    }
    Ok(ledger.height + AHEAD)
}

/// The signing state that a node with such a key begins with.
pub fn signing_state(not_up_to: u64) -> SignedAt {
    if not_up_to == 0 { SignedAt::default() } else { SignedAt::past(not_up_to) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::cometbft::QUORUM;
    use crate::membership::model::Member;

    const KEY: &str = "AA";

    fn ledger(head: Head, signed: Option<u64>) -> Ledger {
        let member = signed.map(|signed| Member {
            power: 10,
            node: None,
            liveness: if signed > 3 { Liveness::Live } else { Liveness::Unknown },
            signed,
        });
        let other = Member { power: 10, node: None, liveness: Liveness::Live, signed: 12 };
        let own = member.map(|member| (KEY.to_owned(), member));
        let members = own.into_iter().chain([("BB".to_owned(), other)]).collect();
        Ledger {
            quorum: QUORUM,
            weights: true,
            members,
            agreed: true,
            age_seconds: 0,
            head,
            height: 100,
            pending: None,
            followers: BTreeMap::new(),
        }
    }

    fn ask(ledger: Option<&Ledger>) -> Result<u64, NotTaken> {
        may_take(true, ledger, &Policy::default(), KEY)
    }

    #[test]
    fn before_the_first_block_nothing_was_signed() {
        assert_eq!(may_take(false, None, &Policy::default(), KEY), Ok(0));
        assert_eq!(signing_state(0), SignedAt::default());
    }

    #[test]
    fn a_key_that_signs_is_refused_until_it_is_silent() {
        for signed in [12, 1] {
            let found = ask(Some(&ledger(Head::Producing, Some(signed))));
            assert_eq!(found, Err(NotTaken::Signs { signed, window: WINDOW }));
        }
        assert_eq!(ask(Some(&ledger(Head::Producing, Some(0)))), Ok(110));
        assert_eq!(signing_state(110), SignedAt::past(110));
    }

    #[test]
    fn a_key_that_is_no_voters_begins_beyond_the_head_all_the_same() {
        for head in [Head::Producing, Head::Standing] {
            assert_eq!(ask(Some(&ledger(head, None))), Ok(110));
        }
    }

    /// On a chain that stands still nobody signs.
    #[test]
    fn silence_on_a_chain_that_stands_still_proves_nothing() {
        assert_eq!(ask(Some(&ledger(Head::Standing, Some(0)))), Err(NotTaken::Standing));
        assert_eq!(ask(Some(&ledger(Head::Frozen, Some(0)))), Err(NotTaken::Standing));
        assert_eq!(ask(Some(&ledger(Head::Unknown, Some(0)))), Err(NotTaken::NotSeen));
    }

    #[test]
    fn unknown_is_not_silent() {
        assert_eq!(ask(None), Err(NotTaken::NotSeen));
        let mut torn = ledger(Head::Producing, Some(0));
        torn.agreed = false;
        assert_eq!(ask(Some(&torn)), Err(NotTaken::NotSeen));
        let mut old = ledger(Head::Producing, Some(0));
        old.age_seconds = 3600;
        assert_eq!(ask(Some(&old)), Err(NotTaken::NotSeen));
    }
}
