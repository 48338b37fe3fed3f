//! Copies of a network's anchor, beside its nodes in member clusters.
//!
//! A copy is written before anything depends on a fact in that cluster, so that a hub that comes from a backup, or
//! is built anew, cannot forget what was done there (design: "facts that must not be forgotten").

use std::collections::BTreeMap;

use bsn_core::anchor::{Anchor, CopyStanding};
use bsn_core::intent::judge::{Found, Judgement};
use bsn_core::intent::record::Record;
use bsn_core::membership::Refusal as StepRefusal;
use bsn_core::membership::model::{Gate, Step as PlannedStep};
use bsn_core::names::{NetworkName, NodeName};
use bsn_core::steps::RecordedStep;
use k8s_openapi::api::core::v1::ConfigMap;

use super::context::Context;
use super::{Error, Refusal, Step, refused};
use crate::anchor::{Expected, StoreError, copy_of, is_strangers, parse_map, seen_copy};
use crate::api::conditions::Reason;
use crate::apply::{name_taken, read};
use crate::build::NetworkParts;
use crate::build::config_map::build_anchor_map;
use crate::cluster::registry::{Absent, HUB, Place};
use crate::cluster::watches::cached;
use crate::intent::{STEPS_KEY, parse_record};
use crate::view::NetworkKey;

/// The member clusters of a network: those it has nodes in, had, or is to have.
pub type Members = BTreeMap<String, Result<Place, Absent>>;

/// Brings the copy in a member cluster up to `anchor`. On the hub there is none.
pub async fn mirror(
    ctx: &Context,
    place: &Place,
    key: &NetworkKey,
    name: &NetworkName,
    anchor: &Anchor,
) -> Step<()> {
    if place.is_hub() {
        return Ok(Ok(()));
    }
    let wish = build_anchor_map(&NetworkParts::new(&key.namespace, name, anchor, None), anchor);
    match ctx.anchors.mirror(place, key, anchor, wish).await {
        Err(StoreError::CopyAhead { cluster }) => {
            let live = read::<ConfigMap>(&ctx.client, &key.namespace, &name.anchor()).await?;
            let newer = live.as_ref().and_then(|map| copy_of(map).ok());
            if newer.is_some_and(|newer| newer.revision > anchor.revision) {
                // Only this pass is behind.
                return Err(Error::Store(StoreError::CopyAhead { cluster }));
            }
            let message = format!(
                "the anchor's copy in cluster {cluster} knows more than the hub does; see BsnNetwork {}",
                key.name
            );
            Ok(Err(Refusal::new(Reason::HubOlder, message)))
        }
        done => refused(done),
    }
}

/// Whether the copy in a node's cluster holds all that the anchor says of the node.
pub fn holds_node(
    place: &Place,
    key: &NetworkKey,
    anchor_name: &str,
    anchor: &Anchor,
    node: &NodeName,
) -> bool {
    let copy = seen_copy(&place.objects.config_maps, &key.namespace, anchor_name);
    copy.is_some_and(|copy| {
        copy.hub_id == anchor.hub_id
            && copy.network_id == anchor.network_id
            && copy.genesis_hash == anchor.genesis_hash
            && copy.formed == anchor.formed
            && copy.identity(node) == anchor.identity(node)
            && anchor.compare(&copy) != CopyStanding::Ahead
    })
}

/// Whether a copy that was seen anywhere is newer than this anchor: either a cache is behind, or the hub is, and its
/// network says so. In neither case anything is done on the old one's word.
pub fn is_outdated(ctx: &Context, key: &NetworkKey, anchor_name: &str, anchor: &Anchor) -> bool {
    ctx.clusters.all().iter().filter(|cluster| cluster.name != HUB).any(|cluster| {
        let copy = cluster
            .objects(&key.namespace)
            .and_then(|objects| seen_copy(&objects.config_maps, &key.namespace, anchor_name));
        copy.is_some_and(|copy| {
            copy.network_id == anchor.network_id
                && (copy.revision > anchor.revision || anchor.compare(&copy) == CopyStanding::Ahead)
        })
    })
}

/// Copies that know more than the primary does.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// The newest of them.
    pub newest: Anchor,
    /// Where it is; `None` = on this hub, where another hub's is.
    pub cluster: Option<String>,
    /// The consent to go on from it.
    pub consent: String,
    /// All anchors found.
    pub found: Vec<Anchor>,
    /// There is a record of steps to go on from, too.
    pub has_steps: bool,
}

impl Ahead {
    /// Why nothing is done, and the consent that goes on.
    pub fn refusal(&self, hub_id: &str, primary: Option<&Anchor>) -> StepRefusal {
        let Self { newest, consent, .. } = self;
        let place = match &self.cluster {
            Some(cluster) => format!("in cluster {cluster}"),
            None => "on this hub".to_owned(),
        };
        let message = match primary {
            _ if newest.hub_id != hub_id => format!(
                "the anchor {place} belongs to hub {}, this is hub {hub_id}; one network has one hub. Consent if that one is \
                 gone for good, and the description here is the newest one",
                newest.hub_id
            ),
            Some(primary) => format!(
                "this hub came from a backup: the anchor {place} was written {} times, its own {} times. Consent if the \
                 description here is the newest one",
                newest.revision, primary.revision
            ),
            None => format!(
                "this hub has no anchor of the network, and there is one {place}: it was built anew. Consent if the \
                 description here is the newest one; or delete that ConfigMap if that network is gone for good"
            ),
        };
        StepRefusal {
            gate: Gate::HubStateNotOlderThanAnchor,
            step: PlannedStep::TakeOver.to_string(),
            message,
            consent: Some(consent.clone()),
        }
    }
}

/// Looks whether a copy knows more than the primary. What a cache says is confirmed by live reads: caches of two
/// clusters are not equally young.
pub async fn find_ahead(
    ctx: &Context,
    key: &NetworkKey,
    members: &Members,
    primary: Option<&ConfigMap>,
    name: &str,
    expected: &Expected,
) -> Step<Option<Ahead>> {
    let places = || members.values().filter_map(|place| place.as_ref().ok());
    if primary.is_none() && members.is_empty() {
        return Ok(Ok(None));
    }
    if let Some(map) = primary {
        let seen = |place: &Place| cached(&place.objects.config_maps, &key.namespace, name);
        let copies: Vec<_> =
            places().filter_map(|place| Some((&place.cluster, seen(place)?))).collect();
        let copies = copies.iter().map(|(cluster, map)| (cluster.as_str(), map.as_ref()));
        if matches!(judge(Some(map), copies.collect(), expected), Ok(Judged { ahead: false, .. })) {
            return Ok(Ok(None));
        }
    }
    // Copies first: what is written meanwhile is in the primary before it is in a copy.
    let mut copies: BTreeMap<&str, ConfigMap> = BTreeMap::new();
    for place in places() {
        if let Some(map) = read::<ConfigMap>(&place.client, &key.namespace, name).await? {
            copies.insert(&place.cluster, map);
        }
    }
    let primary = read::<ConfigMap>(&ctx.client, &key.namespace, name).await?;
    let copies = copies.iter().map(|(cluster, map)| (*cluster, map)).collect();
    let judged = or_refuse!(judge(primary.as_ref(), copies, expected));
    Ok(Ok(judged.into_ahead()))
}

/// What anchors say of each other.
struct Judged {
    /// What is on the hub is not the newest, or not this hub's.
    ahead: bool,
    own: Option<Anchor>,
    copies: BTreeMap<String, Anchor>,
    consent: Option<String>,
    has_steps: bool,
}

/// Judges anchors and the records of steps in them.
fn judge(
    primary: Option<&ConfigMap>,
    maps: BTreeMap<&str, &ConfigMap>,
    expected: &Expected,
) -> Result<Judged, Refusal> {
    let own = primary.map(copy_of).transpose()?;
    let mut copies = BTreeMap::new();
    let mut records: BTreeMap<&str, Record<RecordedStep>> = BTreeMap::new();
    for (cluster, map) in maps {
        let refuse = |error: String| {
            Refusal::new(Reason::AnchorRefused, format!("the anchor in cluster {cluster}: {error}"))
        };
        if is_strangers(map) {
            let message = format!("in cluster {cluster}: {}", name_taken::<ConfigMap>(map));
            return Err(Refusal::new(Reason::NameTaken, message));
        }
        let copy = copy_of(map).map_err(|error| refuse(error.to_string()))?;
        if let Some(own) = own.as_ref().filter(|own| own.network_id != copy.network_id) {
            let message = format!(
                "it is that of another network of this name (id {}, here {}); choose another name or namespace, or \
                 release what that one left",
                copy.network_id, own.network_id
            );
            return Err(refuse(message));
        }
        if let Some(record) = parse_record(map).map_err(|error| refuse(error.to_string()))? {
            records.insert(cluster, record);
        }
        copies.insert(cluster.to_owned(), copy);
    }
    let record = primary.map(parse_record).transpose();
    let record: Option<Record<RecordedStep>> = record
        .map_err(|error| Refusal::new(Reason::AnchorRefused, format!("{STEPS_KEY}: {error}")))?
        .flatten();
    let found = Found {
        primary: record.as_ref(),
        copies: records.iter().map(|(cluster, record)| (*cluster, record)).collect(),
        memory: None,
    };
    let newest = copies.values().chain(&own).max_by_key(|anchor| anchor.revision);
    let consent = match (found.newest(), newest) {
        (Some((_, record)), _) => Some(record.take_over_consent()),
        (None, newest) => newest.map(|newest| {
            let record = Record::<RecordedStep>::new(&newest.hub_id, &newest.network_id, 0);
            // Without steps the anchor's own number stands in, so that the consent works once all the same.
            Record { step_number: newest.revision, ..record }.take_over_consent()
        }),
    };
    let steps_ahead = newest.is_some_and(|newest| {
        let judgement = found.judge(&expected.hub_id, &newest.network_id, None);
        matches!(judgement, Judgement::HubOlder { .. } | Judgement::AnotherHub { .. })
    });
    let ahead = steps_ahead
        || match &own {
            None => !copies.is_empty(),
            Some(own) => {
                own.hub_id != expected.hub_id || copies.values().any(|copy| knows_more(copy, own))
            }
        };
    Ok(Judged { ahead, own, copies, consent, has_steps: found.newest().is_some() })
}

/// Whether a copy knows what the anchor on the hub does not.
fn knows_more(copy: &Anchor, own: &Anchor) -> bool {
    matches!(own.compare(copy), CopyStanding::Ahead | CopyStanding::AnotherHub)
}

impl Judged {
    fn into_ahead(self) -> Option<Ahead> {
        let Self { ahead, own, copies, consent, has_steps } = self;
        // What the hub's anchor knows already is not the newest, and one of another history is, however often the hub
        // has written since: effects depended on it.
        let news = |copy: &Anchor| own.as_ref().is_none_or(|own| knows_more(copy, own));
        let newest =
            copies.iter().filter(|(_, copy)| news(copy)).max_by_key(|(_, copy)| copy.revision);
        let (cluster, newest) = match newest {
            Some((cluster, copy)) => (Some(cluster.clone()), copy.clone()),
            None => (None, own.clone()?),
        };
        let mut found: Vec<Anchor> = copies.into_values().collect();
        found.extend(own);
        let consent = consent.filter(|_| ahead)?;
        Some(Ahead { newest, cluster, consent, found, has_steps })
    }
}

/// Goes on from the newest copy, since a person consented to that: the primary becomes its successor.
pub async fn take_over(
    ctx: &Context,
    key: &NetworkKey,
    name: &NetworkName,
    ahead: &Ahead,
) -> Step<Anchor> {
    tracing::warn!(network = %key, consent = ahead.consent, cluster = ?ahead.cluster, "taking over");
    let mut next = ahead.newest.taken_over(&ctx.hub_id, &ahead.found);
    next.used_consents.insert(ahead.consent.clone(), 0);
    let parts = NetworkParts::new(&key.namespace, name, &next, None);
    let wish = build_anchor_map(&parts, &next);
    let map = or_refuse!(refused(ctx.anchors.replace(&ctx.client, key, wish).await)?);
    let expected = Expected { hub_id: ctx.hub_id.clone(), chain_id: next.chain_id.clone() };
    Ok(parse_map(&map, &expected).map_err(Refusal::from))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A network that was never there has no backup to restore from.
    #[test]
    fn a_strangers_map_is_not_asked_for_from_a_backup() {
        let map = json!({"metadata": {"name": "net-anchor"}, "data": {"a": "b"}});
        let map: ConfigMap = serde_json::from_value(map).unwrap();
        let expected = Expected { hub_id: "h1".to_owned(), chain_id: "c".to_owned() };
        let refusal = judge(None, [("city-a", &map)].into(), &expected).err().unwrap();
        assert_eq!(refusal.reason, Reason::NameTaken);
        let words = "in cluster city-a: ConfigMap net-anchor exists and is not this network's";
        assert!(refusal.message.starts_with(words), "{}", refusal.message);
        let mut emptied = map;
        emptied.metadata.finalizers = Some(vec!["bsn-operator.io/keep".to_owned()]);
        let refusal = judge(None, [("city-a", &emptied)].into(), &expected).err().unwrap();
        assert_eq!(refusal.reason, Reason::AnchorRefused);
    }
}
