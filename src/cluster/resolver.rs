//! Addresses of names: asking never waits. A task resolves what was asked for, again and again, and tells the networks
//! that depend on a name when it leads elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::Triggers;
use crate::view::NetworkKey;

/// How old an answer may be. Load balancers' names have times to live of about a minute.
const HOLD: Duration = Duration::from_secs(30);
/// Longest one name may take, so that a name server which hangs delays others by no more.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long a name is kept after it was asked for last; longer than the time between two looks at a network.
const WANTED: Duration = Duration::from_mins(30);

/// The names asked for; clones share them.
#[derive(Clone, Default)]
pub struct Resolver(Arc<Shared>);

#[derive(Default)]
struct Shared {
    names: Mutex<BTreeMap<String, Name>>,
    news: Notify,
}

#[derive(Default)]
struct Name {
    /// The last addresses, or why there never were any.
    answer: Option<Result<Vec<IpAddr>, String>>,
    asked_at: Option<Instant>,
    /// Who wants to know, and when it asked last.
    wanted_by: BTreeMap<NetworkKey, Instant>,
}

impl Resolver {
    /// The addresses of a name, or of an address itself, as far as they are known now; else why not. The network is told
    /// when they change.
    pub fn resolve(&self, host: &str, network: &NetworkKey) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let mut names = self.names();
        let name = names.entry(host.to_owned()).or_default();
        name.wanted_by.insert(network.clone(), Instant::now());
        match &name.answer {
            Some(answer) => answer.clone(),
            None => {
                self.0.news.notify_one();
                Err("it is being looked up".to_owned())
            }
        }
    }

    /// Resolves until it is dropped.
    pub async fn run(self, triggers: Triggers) {
        loop {
            for network in self.refresh(&look_up).await {
                triggers.network(&network.namespace, &network.name);
            }
            // Either way: a new name, or the others' answers have aged.
            let _ = timeout(HOLD, self.0.news.notified()).await;
        }
    }

    /// Looks up what is due. Returns the networks for which something has changed.
    async fn refresh<F>(&self, look_up: &impl Fn(String) -> F) -> BTreeSet<NetworkKey>
    where
        F: Future<Output = Result<Vec<IpAddr>, String>>,
    {
        let lookups = self.due().into_iter().map(async |host| {
            let answer = match timeout(DEADLINE, look_up(host.clone())).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
            };
            (host, answer)
        });
        let answers = join_all(lookups).await;
        let mut names = self.names();
        let mut told = BTreeSet::new();
        for (host, answer) in answers {
            let Some(name) = names.get_mut(&host) else { continue };
            let answer = match (answer, &name.answer) {
                (Ok(mut addresses), _) => {
                    addresses.sort_unstable();
                    addresses.dedup();
                    Ok(addresses)
                }
                // A name server that is away moves no node.
                (Err(why), Some(Ok(addresses))) => {
                    tracing::warn!(%host, %why, "a name cannot be resolved; its last addresses are used");
                    Ok(addresses.clone())
                }
                (Err(why), _) => Err(why),
            };
            if name.answer.as_ref() != Some(&answer) {
                name.answer = Some(answer);
                told.extend(name.wanted_by.keys().cloned());
            }
        }
        told
    }

    /// Names whose answer has aged, marked as asked now. Those that nobody wants any more are forgotten.
    fn due(&self) -> Vec<String> {
        let mut names = self.names();
        for name in names.values_mut() {
            name.wanted_by.retain(|_, at| at.elapsed() < WANTED);
        }
        names.retain(|_, name| !name.wanted_by.is_empty());
        let due = names
            .iter_mut()
            .filter(|(_, name)| name.asked_at.is_none_or(|at| at.elapsed() >= HOLD));
        due.map(|(host, name)| {
            name.asked_at = Some(Instant::now());
            host.clone()
        })
        .collect()
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<String, Name>> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look_up(host: String) -> Result<Vec<IpAddr>, String> {
    match tokio::net::lookup_host((host.as_str(), 0)).await {
        Ok(found) => Ok(found.map(|address| address.ip()).collect()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> NetworkKey {
        NetworkKey { namespace: "ledger".to_owned(), name: name.to_owned() }
    }

    fn ips(all: &[&str]) -> Vec<IpAddr> {
        all.iter().map(|address| address.parse().unwrap()).collect()
    }

    /// One round in which every name has this answer. Returns who was told.
    async fn round(resolver: &Resolver, answer: Result<Vec<IpAddr>, String>) -> Vec<String> {
        let told = resolver.refresh(&|_| std::future::ready(answer.clone())).await;
        told.into_iter().map(|network| network.name).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_asked_are_told_when_a_name_leads_elsewhere_and_only_then() {
        let resolver = Resolver::default();
        assert!(resolver.resolve("lb.example", &key("one")).is_err());
        assert!(resolver.resolve("lb.example", &key("two")).is_err());
        assert_eq!(round(&resolver, Ok(ips(&["10.0.0.2", "10.0.0.1"]))).await, ["one", "two"]);
        assert_eq!(resolver.resolve("lb.example", &key("one")), Ok(ips(&["10.0.0.1", "10.0.0.2"])));
        // Not due yet.
        assert!(round(&resolver, Ok(ips(&["10.0.0.3"]))).await.is_empty());
        tokio::time::advance(HOLD).await;
        // The same in another order.
        assert!(round(&resolver, Ok(ips(&["10.0.0.1", "10.0.0.2"]))).await.is_empty());
        tokio::time::advance(HOLD).await;
        assert_eq!(round(&resolver, Ok(ips(&["10.0.0.3"]))).await, ["one", "two"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_is_away_moves_no_node() {
        let resolver = Resolver::default();
        let network = key("one");
        assert!(resolver.resolve("lb.example", &network).is_err());
        assert_eq!(round(&resolver, Err("away".to_owned())).await, ["one"]);
        assert_eq!(resolver.resolve("lb.example", &network), Err("away".to_owned()));
        tokio::time::advance(HOLD).await;
        assert_eq!(round(&resolver, Ok(ips(&["10.0.0.1"]))).await, ["one"]);
        tokio::time::advance(HOLD).await;
        assert!(round(&resolver, Err("away".to_owned())).await.is_empty());
        assert_eq!(resolver.resolve("lb.example", &network), Ok(ips(&["10.0.0.1"])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_hangs_ends_with_a_reason_and_what_nobody_wants_is_forgotten() {
        let resolver = Resolver::default();
        assert!(resolver.resolve("lb.example", &key("one")).is_err());
        let told = resolver.refresh(&|_| std::future::pending()).await;
        assert_eq!(told.len(), 1);
        let why = resolver.resolve("lb.example", &key("one")).unwrap_err();
        assert_eq!(why, "no answer within 5 s");
        tokio::time::advance(WANTED).await;
        assert!(round(&resolver, Ok(ips(&["10.0.0.1"]))).await.is_empty());
        assert!(resolver.names().is_empty());
    }

    #[test]
    fn an_address_needs_no_name_server() {
        let resolver = Resolver::default();
        assert_eq!(resolver.resolve("10.0.0.1", &key("one")), Ok(ips(&["10.0.0.1"])));
        assert!(resolver.names().is_empty());
    }
}
