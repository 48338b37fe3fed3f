//! Which namespaces are watched: all, or those that the installation lists, each by a watch of its own.
//!
//! Many watches of one kind fill one cache. Nothing of it shows before all of them were listed, since what is not there
//! would be taken for gone; after that each is listed anew by itself.

use std::collections::BTreeMap;

use futures::stream::{self, BoxStream, select_all};
use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::runtime::watcher::{Error, Event};
use kube::{Client, Resource, ResourceExt};

use super::probe::{ProbeFault, observe_rules};
use super::rights::missing_on_hub;

/// Where the objects of a kind are watched.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// In all namespaces of the hub.
    Everywhere,
    /// In these of the hub.
    Listed(&'a [String]),
    /// In one of a member cluster.
    Member(&'a str),
}

impl<'a> Scope<'a> {
    /// Of the hub; none listed = all.
    pub fn of_hub(listed: &'a [String]) -> Self {
        if listed.is_empty() { Self::Everywhere } else { Self::Listed(listed) }
    }

    /// The ways to ask for a kind.
    pub(super) fn apis<K>(self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let within = |namespace: &str| Api::namespaced(client.clone(), namespace);
        match self {
            Self::Everywhere => vec![Api::all(client.clone())],
            Self::Listed(namespaces) => namespaces.iter().map(|one| within(one)).collect(),
            Self::Member(namespace) => vec![within(namespace)],
        }
    }
}

/// What is known of one of the streams.
struct Part<K> {
    /// What was listed last and what came since; `None` = it was never listed.
    known: Option<BTreeMap<String, K>>,
    /// The list under way.
    listing: BTreeMap<String, K>,
}

/// Puts the events of many watches together, as if they were those of one.
struct Merger<K> {
    parts: Vec<Part<K>>,
    /// All were listed.
    complete: bool,
}

impl<K: Resource<DynamicType = ()> + Clone> Merger<K> {
    fn new(count: usize) -> Self {
        let part = || Part { known: None, listing: BTreeMap::new() };
        Self { parts: std::iter::repeat_with(part).take(count).collect(), complete: false }
    }

    fn take(&mut self, number: usize, event: Event<K>) -> Vec<Event<K>> {
        let complete = self.complete;
        let Some(part) = self.parts.get_mut(number) else { return Vec::new() };
        match event {
            Event::Init => {
                part.listing.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                part.listing.insert(object.name_any(), object);
                Vec::new()
            }
            Event::InitDone => {
                let now = std::mem::take(&mut part.listing);
                let before = part.known.replace(now.clone()).unwrap_or_default();
                if complete {
                    let gone = before.into_iter().filter(|(name, _)| !now.contains_key(name));
                    let gone: Vec<_> = gone.map(|(_, object)| Event::Delete(object)).collect();
                    gone.into_iter().chain(now.into_values().map(Event::Apply)).collect()
                } else {
                    self.begin()
                }
            }
            Event::Apply(object) => {
                if let Some(known) = &mut part.known {
                    known.insert(object.name_any(), object.clone());
                }
                if complete { vec![Event::Apply(object)] } else { Vec::new() }
            }
            Event::Delete(object) => {
                if let Some(known) = &mut part.known {
                    known.remove(&object.name_any());
                }
                if complete { vec![Event::Delete(object)] } else { Vec::new() }
            }
        }
    }

    /// The first list, once all parts have theirs.
    fn begin(&mut self) -> Vec<Event<K>> {
        if self.parts.iter().any(|part| part.known.is_none()) {
            return Vec::new();
        }
        self.complete = true;
        let all = self.parts.iter().filter_map(|part| part.known.as_ref()).flatten();
        let all = all.map(|(_, object)| Event::InitApply(object.clone()));
        [Event::Init].into_iter().chain(all).chain([Event::InitDone]).collect()
    }
}

/// The events of many watches as those of one. Failures of each are passed on.
pub(super) fn merge<K>(
    watches: Vec<BoxStream<'static, Result<Event<K>, Error>>>,
) -> impl Stream<Item = Result<Event<K>, Error>> + Send
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let mut merger = Merger::new(watches.len());
    let numbered = watches.into_iter().enumerate();
    let numbered = numbered.map(|(number, watch)| watch.map(move |event| (number, event)).boxed());
    select_all(numbered).flat_map(move |(number, event)| {
        stream::iter(match event {
            Ok(event) => merger.take(number, event).into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    })
}

/// Which of the listed namespaces can be looked after, and why the others cannot. One that cannot must not hold up the
/// others: its objects are never listed, and nothing shows before all are.
///
/// What the operator may do there is asked once. Where that cannot be asked, the watches show it.
pub async fn usable(client: &Client, listed: &[String]) -> (Vec<String>, BTreeMap<String, String>) {
    let (mut usable, mut left_out) = (Vec::new(), BTreeMap::new());
    for namespace in listed {
        let lacks = match observe_rules(client, namespace).await {
            Ok(rules) => missing_on_hub(&rules),
            Err(ProbeFault::Forbidden(_)) => Vec::new(),
            Err(fault) => {
                tracing::warn!(%namespace, ?fault, "what the operator may do there is not known");
                Vec::new()
            }
        };
        if lacks.is_empty() {
            usable.push(namespace.clone());
        } else {
            left_out.insert(namespace.clone(), lacks.join(", "));
        }
    }
    (usable, left_out)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(namespace: &str, name: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some(namespace.to_owned());
        map.metadata.name = Some(name.to_owned());
        map
    }

    fn words(events: &[Event<ConfigMap>]) -> Vec<String> {
        let name = |map: &ConfigMap| format!("{}/{}", map.namespace().unwrap(), map.name_any());
        let word = |event: &Event<ConfigMap>| match event {
            Event::Init => "init".to_owned(),
            Event::InitApply(map) => format!("has {}", name(map)),
            Event::InitDone => "done".to_owned(),
            Event::Apply(map) => format!("apply {}", name(map)),
            Event::Delete(map) => format!("delete {}", name(map)),
        };
        events.iter().map(word).collect()
    }

    /// A list of one namespace.
    fn list(merger: &mut Merger<ConfigMap>, number: usize, maps: &[ConfigMap]) -> Vec<String> {
        let mut told = merger.take(number, Event::Init);
        for map in maps {
            told.extend(merger.take(number, Event::InitApply(map.clone())));
        }
        told.extend(merger.take(number, Event::InitDone));
        words(&told)
    }

    #[test]
    fn nothing_shows_before_every_namespace_was_listed() {
        let mut merger = Merger::new(2);
        assert!(list(&mut merger, 0, &[map("a", "x"), map("a", "y")]).is_empty());
        // What comes meanwhile is in the first list of all.
        assert!(merger.take(0, Event::Apply(map("a", "z"))).is_empty());
        assert!(merger.take(0, Event::Delete(map("a", "y"))).is_empty());
        let first = list(&mut merger, 1, &[map("b", "x")]);
        assert_eq!(first, ["init", "has a/x", "has a/z", "has b/x", "done"]);
        assert_eq!(words(&merger.take(1, Event::Apply(map("b", "y")))), ["apply b/y"]);
    }

    #[test]
    fn a_namespace_that_is_listed_anew_says_nothing_of_the_others() {
        let mut merger = Merger::new(2);
        list(&mut merger, 0, &[map("a", "x"), map("a", "y")]);
        list(&mut merger, 1, &[map("b", "x")]);
        merger.take(0, Event::Apply(map("a", "z")));
        let again = list(&mut merger, 0, &[map("a", "x")]);
        assert_eq!(again, ["delete a/y", "delete a/z", "apply a/x"]);
        // A list that was broken off says nothing.
        merger.take(1, Event::Init);
        assert_eq!(list(&mut merger, 1, &[map("b", "x")]), ["apply b/x"]);
    }
}
