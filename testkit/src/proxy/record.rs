//! The record of calls, their counts, and the calls that stand still.

use std::collections::{BTreeMap, VecDeque};

use hyper::Method;
use tokio::sync::oneshot;

use super::rules::{Action, RuleSet};

/// Calls kept in the record; of more, the oldest are forgotten. A story of minutes makes some thousands.
const MAX_CALLS: usize = 1 << 16;

/// What tells that a call changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effects {
    /// Its HTTP method: everything but GET, HEAD and OPTIONS. For the API server.
    ByMethod,
    /// Its JSON-RPC method: one that broadcasts a transaction. For the gateways, where reads are POST, too.
    ByJsonRpc,
}

impl Effects {
    /// Whether a call can be judged only with its body.
    pub(super) fn needs_body(self, method: &Method) -> bool {
        self == Self::ByJsonRpc && method == Method::POST
    }

    /// Whether a call changes something, and its JSON-RPC method if it has one.
    pub(super) fn judge(self, method: &Method, body: Option<&[u8]>) -> (bool, Option<String>) {
        match self {
            Self::ByMethod => {
                (!matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS), None)
            }
            Self::ByJsonRpc => {
                let rpc = body.and_then(rpc_method);
                let write = rpc.as_deref().is_some_and(|name| name.starts_with("broadcast_"));
                (write, rpc)
            }
        }
    }
}

/// The method of a single JSON-RPC call; batches are refused by the gateways anyway.
fn rpc_method(body: &[u8]) -> Option<String> {
    let call: serde_json::Value = serde_json::from_slice(body).ok()?;
    call.get("method")?.as_str().map(str::to_owned)
}

/// What the rules see of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// HTTP method.
    pub(super) method: String,
    /// Path without the query.
    pub(super) path: String,
    /// Query without the question mark.
    pub(super) query: Option<String>,
    /// Whether it changes something.
    pub(super) write: bool,
    /// Its JSON-RPC method.
    pub(super) rpc: Option<String>,
}

/// How a call went, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is neither answered nor given up yet.
    UnderWay,
    /// It stands still until the test releases or cuts it.
    Held,
    /// The server's answer was passed on; of a watch, its beginning.
    Answered,
    /// The proxy answered by itself.
    Substituted,
    /// It gets no answer.
    Dropped,
    /// Its connection was closed before it was forwarded.
    Cut,
    /// The server has done it; its connection was closed without the answer.
    AnswerLost,
    /// Its connection was closed within the answer's body.
    Truncated,
    /// Its client went away before it had an answer. Whether the server got it is in [`Call::forwarded`].
    Abandoned,
    /// The server could not be reached, or broke off; the connection was closed. With the reason.
    Failed(String),
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number, from 1.
    pub number: u64,
    /// Its HTTP method.
    pub method: String,
    /// Its path without the query.
    pub path: String,
    /// Its query without the question mark.
    pub query: Option<String>,
    /// Whether it changes something: see [`Effects`].
    pub write: bool,
    /// Its JSON-RPC method, before gateways only.
    pub rpc: Option<String>,
    /// Name of the rule that decided.
    pub rule: Option<String>,
    /// Whether it was sent to the server.
    pub forwarded: bool,
    /// The HTTP status the server answered with, or the one the proxy put in its place.
    pub status: Option<u16>,
    /// How it went.
    pub outcome: Outcome,
}

/// What becomes of a call that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Release,
    /// Its connection is closed.
    Cut,
}

struct Waiting {
    verdict: oneshot::Sender<Verdict>,
    held: bool,
}

/// Everything that is remembered.
#[derive(Default)]
pub(super) struct Book {
    pub(super) rules: RuleSet,
    calls: VecDeque<Call>,
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
}

impl Book {
    /// Numbers a call, and gives what to do with it.
    pub(super) fn begin(&mut self, seen: Seen) -> (u64, Action) {
        let decided = self.rules.decide(&seen);
        let (rule, action) = match decided {
            Some((name, action)) => (Some(name), action),
            None => (None, Action::Pass),
        };
        self.last += 1;
        let Seen { method, path, query, write, rpc } = seen;
        self.calls.push_back(Call {
            number: self.last,
            method,
            path,
            query,
            write,
            rpc,
            rule,
            forwarded: false,
            status: None,
            outcome: Outcome::UnderWay,
        });
        if self.calls.len() > MAX_CALLS {
            self.calls.pop_front();
        }
        (self.last, action)
    }

    /// Changes the record of a call, unless it is forgotten.
    pub(super) fn note(&mut self, number: u64, change: impl FnOnce(&mut Call)) {
        let first = self.calls.front().map_or(0, |call| call.number);
        let place = number.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        if let Some(call) = place.and_then(|place| self.calls.get_mut(place)) {
            change(call);
        }
    }

    /// The number of the last call; 0 = none yet.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// All remembered calls after the one with this number.
    pub(super) fn since(&self, number: u64) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| call.number > number)
    }

    /// Lets a call stand still; the receiver gets what becomes of it. Only a `held` call is one that the
    /// test waits for and may release.
    pub(super) fn wait(&mut self, number: u64, held: bool) -> oneshot::Receiver<Verdict> {
        let (verdict, receiver) = oneshot::channel();
        self.waiting.insert(number, Waiting { verdict, held });
        let outcome = if held { Outcome::Held } else { Outcome::Dropped };
        self.note(number, |call| call.outcome = outcome);
        receiver
    }

    /// Forgets that a call stands still.
    pub(super) fn end_wait(&mut self, number: u64) {
        self.waiting.remove(&number);
    }

    /// The first call that is held.
    pub(super) fn first_held(&self) -> Option<&Call> {
        self.calls.iter().find(|call| call.outcome == Outcome::Held)
    }

    /// Ends the standing still of all held calls and, when they are cut, of the dropped ones; gives how
    /// many these were.
    pub(super) fn settle_waiting(&mut self, verdict: Verdict) -> usize {
        let concerned: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.held || verdict == Verdict::Cut)
            .map(|(number, _)| *number)
            .collect();
        let mut settled = 0;
        for number in concerned {
            let Some(waiting) = self.waiting.remove(&number) else { continue };
            if waiting.held {
                // At once, so that the next wait for a held call does not find this one again.
                self.note(number, |call| call.outcome = Outcome::UnderWay);
            }
            // Its client may have gone away just now.
            settled += usize::from(waiting.verdict.send(verdict).is_ok());
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateways_effect_is_a_broadcast_and_not_every_post() {
        let judge = |body: &str| Effects::ByJsonRpc.judge(&Method::POST, Some(body.as_bytes()));
        assert_eq!(
            judge(r#"{"method":"broadcast_tx_sync","params":{}}"#),
            (true, Some("broadcast_tx_sync".to_owned()))
        );
        assert_eq!(judge(r#"{"method":"status"}"#), (false, Some("status".to_owned())));
        assert_eq!(judge("no call"), (false, None));
        assert!(!Effects::ByJsonRpc.judge(&Method::GET, None).0);
    }

    #[test]
    fn at_the_api_server_everything_but_reading_is_an_effect() {
        for (method, write) in [
            (Method::GET, false),
            (Method::HEAD, false),
            (Method::POST, true),
            (Method::PUT, true),
            (Method::PATCH, true),
            (Method::DELETE, true),
        ] {
            assert_eq!(Effects::ByMethod.judge(&method, None).0, write, "{method}");
        }
    }

    #[test]
    fn the_oldest_calls_are_forgotten_and_numbers_stay_right() {
        let mut book = Book::default();
        let seen = Seen {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            query: None,
            write: false,
            rpc: None,
        };
        let more = u64::try_from(MAX_CALLS).unwrap() + 2;
        for _ in 0..more {
            book.begin(seen.clone());
        }
        assert_eq!(book.last(), more);
        assert_eq!(book.since(0).count(), MAX_CALLS);
        book.note(1, |_| panic!("call 1 is forgotten"));
        book.note(more, |call| call.status = Some(200));
        assert_eq!(book.since(more - 1).next().unwrap().status, Some(200));
    }
}
