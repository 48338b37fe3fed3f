//! A proxy that counts, records and disturbs calls: it stands before the API server and the nodes'
//! gateways, so that an unmodified operator can be killed at every one of its effects.
//!
//! It ends TLS with a certificate it is given, and connects to the server with a TLS client configuration it
//! is given. Headers are passed on, bearer tokens included; bodies are streamed both ways, so watches work.
//! Every call gets a number and a record ([`Call`]); [`Rule`]s say what to do with which call.
//!
//! ```no_run
//! # async fn story(proxy: bsn_testkit::proxy::Proxy) -> anyhow::Result<()> {
//! use std::time::Duration;
//! use bsn_testkit::proxy::{Action, Rule, Side};
//!
//! proxy.rule(Rule::new("stop", Action::Hold(Side::AfterAnswer)).writes().not_path("/leases/").only(3));
//! let call = proxy.await_held(Duration::from_secs(30)).await?;
//! // The third write is done, and nobody knows it yet: a good moment to kill the operator.
//! println!("{} {} stands still", call.method, call.path);
//! proxy.cut();
//! # Ok(())
//! # }
//! ```
//!
//! Not there: HTTP/2, which neither kube-rs nor the gateways speak here, and upgraded connections (`exec`,
//! `port-forward`), which are answered 501. HTTP trailers are not passed on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

mod forward;
mod lab;
mod record;
mod rules;
mod server;
pub mod tls;

pub(crate) use lab::restore_operator;
pub use lab::{ApiServerProxy, GatewayProxy, GatewayTls, before_api_server, before_gateway};
use record::{Book, Verdict};
pub use record::{Call, Effects, Outcome};
pub use rules::{Action, Rule, Side};

/// Everything of a proxy ends within a moment: its tasks only have to be dropped.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// The server behind a proxy.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name or address that its certificate is checked for.
    pub server_name: String,
    /// How to connect to it.
    pub tls: Arc<rustls::ClientConfig>,
    /// What tells that a call to it changes something.
    pub effects: Effects,
}

/// A place in the record; by default, its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(u64);

/// What the tasks share with the handles.
struct Shared {
    upstream: Mutex<Upstream>,
    book: Mutex<Book>,
    changed: watch::Sender<()>,
    exchanges: Mutex<JoinSet<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn upstream(&self) -> Upstream {
        lock(&self.upstream).clone()
    }

    fn effects(&self) -> Effects {
        lock(&self.upstream).effects
    }

    /// Changes the book, and tells those who wait for something in it.
    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let changed = change(&mut lock(&self.book));
        self.changed.send_replace(());
        changed
    }

    /// Runs an exchange that must not end with its client's connection; it ends with the proxy.
    fn spawn(&self, exchange: impl Future<Output = ()> + Send + 'static) {
        let mut exchanges = lock(&self.exchanges);
        while exchanges.try_join_next().is_some() {}
        exchanges.spawn(exchange);
    }

    fn take_exchanges(&self) -> JoinSet<()> {
        std::mem::take(&mut *lock(&self.exchanges))
    }
}

/// The tasks of a proxy; they end when the last handle goes.
struct Running {
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// A handle of a running proxy. Handles can be cloned; with the last one the proxy ends.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Arc<Running>,
}

impl Proxy {
    /// Starts a proxy that listens on `listen`, where port 0 is any free one, with the certificate in
    /// `tls`. Needs a running tokio runtime, and ends with it.
    pub async fn start(
        listen: SocketAddr,
        tls: rustls::ServerConfig,
        upstream: Upstream,
    ) -> Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("listening on {listen} for the proxy"))?;
        let address = listener.local_addr().context("reading the proxy's address")?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            book: Mutex::default(),
            changed: watch::Sender::new(()),
            exchanges: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let task = tokio::spawn(server::serve(listener, acceptor, shared.clone(), stopped));
        let running = Arc::new(Running { stop, task: Mutex::new(Some(task)) });
        Ok(Self { shared, address, running })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects to another address of the same server from the next call on: a pod's changes when it is
    /// made anew.
    pub fn set_upstream_address(&self, address: SocketAddr) {
        lock(&self.shared.upstream).address = address;
    }

    /// All calls so far, as far as they are remembered: the last 65 536.
    pub fn calls(&self) -> Vec<Call> {
        self.calls_since(Mark(0))
    }

    /// A place in the record, for [`Proxy::calls_since`].
    pub fn mark(&self) -> Mark {
        Mark(lock(&self.shared.book).last())
    }

    /// The calls after a mark.
    pub fn calls_since(&self, mark: Mark) -> Vec<Call> {
        lock(&self.shared.book).since(mark.0).cloned().collect()
    }

    /// Sets a rule, after those that are there or in the place of one of the same name; it counts from now.
    pub fn rule(&self, rule: Rule) {
        self.shared.change(|book| book.rules.put(rule));
    }

    /// Puts these rules in the place of all others at once.
    pub fn set_rules(&self, rules: impl IntoIterator<Item = Rule>) {
        let rules: Vec<_> = rules.into_iter().collect();
        self.shared.change(|book| {
            book.rules.clear();
            for rule in rules {
                book.rules.put(rule);
            }
        });
    }

    /// Removes the rule of this name. Calls it has stopped go on standing still.
    pub fn remove_rule(&self, name: &str) {
        self.shared.change(|book| book.rules.remove(name));
    }

    /// Removes all rules. Calls they have stopped go on standing still.
    pub fn clear_rules(&self) {
        self.shared.change(|book| book.rules.clear());
    }

    /// How many calls fitted the rule of this name since it was set, also those before or after its turn;
    /// `None` = there is no such rule.
    pub fn fitted(&self, rule: &str) -> Option<u64> {
        lock(&self.shared.book).rules.fitted(rule)
    }

    /// Waits until a call is held, and gives the first.
    pub async fn await_held(&self, within: Duration) -> Result<Call> {
        self.await_in_book("a held call", within, |book| book.first_held().cloned()).await
    }

    /// Waits until there is a call after `mark` of which `wanted` says yes, and gives the first.
    pub async fn await_call(
        &self,
        mark: Mark,
        within: Duration,
        wanted: impl Fn(&Call) -> bool,
    ) -> Result<Call> {
        let find = |book: &Book| book.since(mark.0).find(|call| wanted(call)).cloned();
        self.await_in_book("such a call", within, find).await
    }

    async fn await_in_book(
        &self,
        what: &str,
        within: Duration,
        find: impl Fn(&Book) -> Option<Call>,
    ) -> Result<Call> {
        // Before the first look, so that no change is missed in between.
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(call) = find(&lock(&self.shared.book)) {
                    return Ok(call);
                }
                changed.changed().await.context("the proxy ended")?;
            }
        };
        match tokio::time::timeout(within, waiting).await {
            Ok(found) => found,
            Err(_) => {
                let calls = lock(&self.shared.book).last();
                let within = within.as_secs_f64();
                bail!("the proxy saw no sign of {what} within {within:.1} s; it has {calls} calls")
            }
        }
    }

    /// Lets all held calls go on; gives how many these were. Later calls meet the same rules as before.
    pub fn release(&self) -> usize {
        self.shared.change(|book| book.settle_waiting(Verdict::Release))
    }

    /// Closes the connections of all held and dropped calls; gives how many these were.
    pub fn cut(&self) -> usize {
        self.shared.change(|book| book.settle_waiting(Verdict::Cut))
    }

    /// Ends the proxy for all handles: closes its listener and all connections. The record stays.
    pub async fn stop(&self) -> Result<()> {
        self.running.stop.send_replace(true);
        let task = lock(&self.running.task).take();
        let Some(task) = task else { return Ok(()) };
        let ended = tokio::time::timeout(STOP_DEADLINE, task).await;
        ended.context("the proxy does not end")?.context("a task of the proxy failed")
    }
}

#[cfg(test)]
mod tests;
