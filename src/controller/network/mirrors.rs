//! Makes every node of a network known by its name in every cluster of the network. Where the node runs, its own Service
//! does that, which the node's controller makes. Everywhere else it is a mirror: a Service of the same name without a
//! selector, and an `EndpointSlice` that says where it leads.
//!
//! What a mirror leads to changes while its own address stays, since engines resolve a name once. Of a node whose
//! address is not known for the moment the last one stays published.

use std::collections::BTreeMap;

use bsn_core::anchor::{Anchor, Identity};
use bsn_core::names::NodeName;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;

use super::addresses::{ObservedNode, Unreached, exposure_of, plan_reached, spans_clusters};
use super::validate::ValidatedNetwork;
use crate::apply::{ApiError, delete, ensure, ensure_if, is_ours};
use crate::build::endpoint_slice::{Family, Reached, build_endpoint_slice};
use crate::build::service::{build_mirror_service, is_mirror};
use crate::build::{NetworkParts, NodeParts};
use crate::cluster::registry::{HUB, Place};
use crate::cluster::watches::cached;
use crate::controller::context::Context;
use crate::controller::{Step, refused};
use crate::labels;
use crate::view::NetworkKey;

/// Where the nodes of a network are reached from other clusters.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Nodes that are reached.
    pub reached: BTreeMap<NodeName, Reached>,
    /// Nodes that are not, and why.
    pub unreached: BTreeMap<NodeName, Unreached>,
}

/// Finds out where the nodes are reached, by what was seen last in their clusters. It asks nobody. Of a network that is on
/// the hub alone there is nothing to find out.
pub fn observe_addresses(
    ctx: &Context,
    key: &NetworkKey,
    validated: &ValidatedNetwork,
    anchor: &Anchor,
) -> Addresses {
    let mut addresses = Addresses::default();
    if !spans_clusters(anchor) {
        return addresses;
    }
    for (name, identity) in anchor.members() {
        match observe_reached(ctx, key, validated, anchor, (&name, identity)) {
            Ok(reached) => {
                addresses.reached.insert(name, reached);
            }
            Err(why) => {
                addresses.unreached.insert(name, why);
            }
        }
    }
    addresses
}

fn observe_reached(
    ctx: &Context,
    key: &NetworkKey,
    validated: &ValidatedNetwork,
    anchor: &Anchor,
    (name, identity): (&NodeName, &Identity),
) -> Result<Reached, Unreached> {
    let namespace = &key.namespace;
    let cluster = ctx.clusters.get(&identity.cluster);
    let seen = cluster.as_deref().and_then(|cluster| {
        Some((cluster.objects(namespace)?, cluster.defaults.as_ref()?.exposure))
    });
    let Some((objects, default)) = seen else {
        return Err(match ctx.clusters.place(&identity.cluster, namespace) {
            Err(absent) => Unreached::Cluster(absent.to_string()),
            // It became known between the two questions.
            Ok(_) => Unreached::NoService,
        });
    };
    let service = cached(&objects.services, namespace, name.as_str()).filter(|service| {
        let recorded = identity.uids.service.as_deref();
        !is_mirror(service) && is_ours(&**service, recorded, &anchor.network_id)
    });
    let pod = cached(&objects.pods, namespace, &format!("{name}-0"))
        .filter(|pod| pod.labels().get(labels::IDENTITY_ID) == Some(&identity.id));
    let set = validated.exposure.get(&identity.set);
    let mut given = set.into_iter().flat_map(|set| &set.addresses);
    let node = ObservedNode {
        exposure: exposure_of(validated, anchor, identity, default),
        service: service.as_deref(),
        pod: pod.as_deref(),
        external: given.find(|address| address.node == name.as_str()),
    };
    plan_reached(&node, |host| ctx.resolver.resolve(host, key))
}

/// Makes the mirrors of a network in one cluster so, and removes those there that stand for no node any more. A name
/// that somebody else's object has hinders no other.
pub async fn ensure_mirrors(
    place: &Place,
    network: NetworkParts<'_>,
    anchor: &Anchor,
    reached: &BTreeMap<NodeName, Reached>,
) -> Step<()> {
    ensure_in(place, network, &elsewhere(&place.cluster, anchor, reached)).await
}

/// Whether every node of the network has its name in a cluster. An engine that cannot resolve a peer's name when it
/// starts never dials that peer, so no pod is made before.
pub fn are_known(place: &Place, namespace: &str, anchor: &Anchor) -> bool {
    elsewhere(&place.cluster, anchor, &BTreeMap::new())
        .keys()
        .all(|name| cached(&place.objects.services, namespace, name.as_str()).is_some())
}

/// Nodes that run in other clusters than one, and where they are reached.
type Elsewhere<'a> = BTreeMap<NodeName, (&'a Identity, Option<&'a Reached>)>;

/// The nodes that a cluster has to know and that do not run there. On the hub that is all of them, since the operator asks
/// them from there; where no node of the network is, none.
fn elsewhere<'a>(
    cluster: &str,
    anchor: &'a Anchor,
    reached: &'a BTreeMap<NodeName, Reached>,
) -> Elsewhere<'a> {
    let needed = cluster == HUB || anchor.members().any(|(_, node)| node.cluster == cluster);
    let others = anchor.members().filter(|(_, node)| needed && node.cluster != cluster);
    others.map(|(name, node)| (name.clone(), (node, reached.get(&name)))).collect()
}

async fn ensure_in(place: &Place, network: NetworkParts<'_>, nodes: &Elsewhere<'_>) -> Step<()> {
    let (namespace, id) = (network.namespace, network.network_id);
    // In another cluster the network's uid means nothing, and the garbage collector would take its objects for orphans.
    let owner = network.owner.filter(|_| place.is_hub());
    let network = NetworkParts { owner, ..network };
    let mut taken = None;
    // The slices that are right. Of a node without one here, all stay that there are.
    let mut right = BTreeMap::new();
    for (name, (identity, reached)) in nodes {
        let node = NodeParts { network, name, identity, owner: None };
        let known = cached(&place.objects.services, namespace, name.as_str());
        // A node's own Service is never made a mirror: then this cluster would be known by two names.
        let may = |service: &Service| is_mirror(service) && is_ours(service, None, id);
        let wish = build_mirror_service(&node);
        let mirror = match refused(ensure_if(&place.client, known.as_deref(), wish, may).await)? {
            Ok((mirror, _)) => mirror,
            Err(refusal) => {
                taken.get_or_insert(refusal);
                continue;
            }
        };
        let family = Family::of_service(&mirror);
        let reached = reached.filter(|reached| {
            reached.addresses.iter().any(|address| Family::of(*address) == family)
        });
        let Some(reached) = reached else { continue };
        let wish = build_endpoint_slice(&node, &mirror, family, reached);
        let slice = wish.name_any();
        let known = cached(&place.objects.slices, namespace, &slice);
        match refused(ensure(&place.client, known.as_deref(), wish, None, id).await)? {
            Ok(_) => {
                right.insert(name.as_str(), slice);
            }
            Err(refusal) => {
                taken.get_or_insert(refusal);
            }
        }
    }
    let stays = |node: &str, slice: Option<&str>| {
        nodes.contains_key(&NodeName::from_object(node))
            && slice.is_none_or(|slice| right.get(node).is_none_or(|right| right == slice))
    };
    delete_mirrors(place, namespace, id, stays).await?;
    Ok(taken.map_or(Ok(()), Err))
}

/// Deletes the mirrors of a network in one cluster, and their slices, but those that `stays` names: by the node, and a
/// slice by its own name as well.
pub async fn delete_mirrors(
    place: &Place,
    namespace: &str,
    network_id: &str,
    stays: impl Fn(&str, Option<&str>) -> bool,
) -> Result<(), ApiError> {
    let slices = place.objects.slices.state_filter(|slice: &EndpointSlice| {
        slice.metadata.namespace.as_deref() == Some(namespace)
            && is_ours(slice, None, network_id)
            && slice.metadata.deletion_timestamp.is_none()
            && slice
                .labels()
                .get(labels::NODE)
                .is_some_and(|node| !stays(node, Some(&slice.name_any())))
    });
    for slice in slices {
        delete(&place.client, &*slice).await?;
    }
    let mirrors = place.objects.services.state_filter(|service: &Service| {
        is_mirror(service)
            && service.metadata.namespace.as_deref() == Some(namespace)
            && is_ours(service, None, network_id)
            && service.metadata.deletion_timestamp.is_none()
            && !stays(&service.name_any(), None)
    });
    for mirror in mirrors {
        delete(&place.client, &*mirror).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bsn_core::names::NetworkName;
    use hyper::{Method, Request, Response};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use kube::Client;
    use kube::client::Body;
    use kube::runtime::reflector::{store, store::Writer};
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Exposure;
    use crate::api::conditions::Reason;
    use crate::build::service::build_service;
    use crate::controller::Refusal;

    const NODE: &str = "city-ledger-hangzhou-0";

    /// A cluster that does what it is asked, and notes it.
    struct Fake {
        place: Place,
        services: Writer<Service>,
        slices: Writer<EndpointSlice>,
        done: Arc<Mutex<Vec<(String, Value)>>>,
    }

    impl Fake {
        fn new(cluster: &str) -> Self {
            let done: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
            let notes = done.clone();
            let serve = move |request: Request<Body>| {
                let notes = notes.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect_bytes().await.unwrap();
                    let mut object: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let what = format!("{} {}", parts.method, parts.uri.path());
                    notes.lock().unwrap().push((what, object.clone()));
                    if parts.method == Method::DELETE {
                        object = json!({"kind": "Status", "status": "Success"});
                    } else {
                        object["metadata"]["uid"] = json!("u1");
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(Body::from(
                        object.to_string().into_bytes(),
                    )))
                }
            };
            let client = Client::new(tower::service_fn(serve), "default");
            let ((services, services_writer), (slices, slices_writer)) = (store(), store());
            let mut place = Place::fake(cluster, client);
            (place.objects.services, place.objects.slices) = (services, slices);
            Self { place, services: services_writer, slices: slices_writer, done }
        }

        /// What was asked since the last time; what was made is seen from now on.
        fn done(&mut self) -> Vec<String> {
            let done = std::mem::take(&mut *self.done.lock().unwrap());
            for (what, object) in &done {
                let mut object = object.clone();
                object["metadata"]["uid"] = json!("u1");
                if what.starts_with("DELETE") {
                    continue;
                }
                if what.ends_with("endpointslices") || what.contains("endpointslices/") {
                    let slice = serde_json::from_value(object).unwrap();
                    self.slices.apply_watcher_event(&Event::Apply(slice));
                } else {
                    let service = serde_json::from_value(object).unwrap();
                    self.services.apply_watcher_event(&Event::Apply(service));
                }
            }
            let short = |what: String| {
                let (verb, path) = what.split_once(' ').unwrap();
                format!("{verb} {}", path.split_once("/ledger/").unwrap().1)
            };
            done.into_iter().map(|(what, _)| short(what)).collect()
        }

        async fn ensure(&self, nodes: &Elsewhere<'_>) -> Result<(), Refusal> {
            let owner = OwnerReference { uid: "hub-uid".to_owned(), ..OwnerReference::default() };
            let name = NetworkName::parse("city-ledger").unwrap();
            let network = NetworkParts {
                namespace: "ledger",
                name: &name,
                network_id: "n1",
                hub_id: "h1",
                owner: Some(&owner),
            };
            ensure_in(&self.place, network, nodes).await.unwrap()
        }
    }

    fn identity() -> Identity {
        let identity =
            json!({"id": "i1", "set": "hangzhou", "role": "Validator", "cluster": "hangzhou"});
        serde_json::from_value(identity).unwrap()
    }

    fn at(address: &str) -> Reached {
        Reached { addresses: vec![address.parse().unwrap()], p2p: 30656, gateway: 30843 }
    }

    fn one<'a>(identity: &'a Identity, reached: Option<&'a Reached>) -> Elsewhere<'a> {
        [(NodeName::from_object(NODE), (identity, reached))].into()
    }

    #[tokio::test]
    async fn a_node_elsewhere_gets_a_name_then_an_address_and_nothing_is_written_twice() {
        let (mut fake, identity) = (Fake::new("beijing"), identity());
        let nodes = one(&identity, None);
        fake.ensure(&nodes).await.unwrap();
        assert_eq!(fake.done(), ["POST services"]);
        let (first, second) = (at("192.168.7.3"), at("192.168.7.4"));
        let nodes = one(&identity, Some(&first));
        fake.ensure(&nodes).await.unwrap();
        assert_eq!(fake.done(), ["POST endpointslices"]);
        fake.ensure(&nodes).await.unwrap();
        assert!(fake.done().is_empty());
        let nodes = one(&identity, Some(&second));
        fake.ensure(&nodes).await.unwrap();
        assert_eq!(fake.done(), [format!("PATCH endpointslices/{NODE}-ipv4")]);
    }

    #[tokio::test]
    async fn the_last_address_stays_while_none_is_known() {
        let (mut fake, identity, reached) = (Fake::new("beijing"), identity(), at("192.168.7.3"));
        fake.ensure(&one(&identity, Some(&reached))).await.unwrap();
        fake.done();
        fake.ensure(&one(&identity, None)).await.unwrap();
        // Of another family than the Service's: it leads nowhere.
        let other = at("fd00::3");
        fake.ensure(&one(&identity, Some(&other))).await.unwrap();
        assert!(fake.done().is_empty());
    }

    #[tokio::test]
    async fn what_stands_for_no_node_any_more_is_removed_and_nothing_else() {
        let (mut fake, identity, reached) = (Fake::new("beijing"), identity(), at("192.168.7.3"));
        fake.ensure(&one(&identity, Some(&reached))).await.unwrap();
        fake.done();
        // A node that runs here, the selector of whose Service somebody took away.
        let mut own =
            crate::build::samples::with_node(None, |node| build_service(node, Exposure::ClusterIP));
        own.metadata.name = Some("city-ledger-beijing-0".to_owned());
        own.spec.as_mut().unwrap().selector = None;
        fake.services.apply_watcher_event(&Event::Apply(own));
        fake.ensure(&Elsewhere::new()).await.unwrap();
        let removed =
            [format!("DELETE endpointslices/{NODE}-ipv4"), format!("DELETE services/{NODE}")];
        assert_eq!(fake.done(), removed);
    }

    #[tokio::test]
    async fn a_nodes_own_service_is_never_made_a_mirror() {
        let (mut fake, identity, reached) = (Fake::new("beijing"), identity(), at("192.168.7.3"));
        let own =
            crate::build::samples::with_node(None, |node| build_service(node, Exposure::ClusterIP));
        fake.services.apply_watcher_event(&Event::Apply(own));
        let refusal = fake.ensure(&one(&identity, Some(&reached))).await.unwrap_err();
        assert_eq!(refusal.reason, Reason::NameTaken);
        assert!(fake.done().is_empty());
    }

    #[tokio::test]
    async fn only_on_the_hub_a_mirror_has_an_owner() {
        let identity = identity();
        for (cluster, owned) in [(HUB, true), ("beijing", false)] {
            let fake = Fake::new(cluster);
            fake.ensure(&one(&identity, None)).await.unwrap();
            let (_, made) = fake.done.lock().unwrap().pop().unwrap();
            assert_eq!(made["metadata"].get("ownerReferences").is_some(), owned, "{cluster:?}");
        }
    }

    #[test]
    fn a_cluster_knows_the_nodes_of_all_others_if_it_has_any_of_its_own_and_the_hub_always() {
        let node = |cluster: &str, retired: bool| json!({"id": "i", "set": "s", "role": "Validator", "cluster": cluster, "retired": retired});
        let anchor: Anchor = serde_json::from_value(json!({
            "version": 1, "hubId": "h1", "networkId": "n1", "chainId": "c",
            "genesisTime": "2026-01-01T00:00:00Z", "founders": [], "nextIndex": {},
            "identities": {
                "l-a-0": node("a", false), "l-b-0": node("b", false), "l-b-1": node("b", true),
                "l-c-0": node("c", true),
            },
        }))
        .unwrap();
        let known = |cluster: &str| -> Vec<String> {
            let reached = BTreeMap::new();
            elsewhere(cluster, &anchor, &reached).keys().map(ToString::to_string).collect()
        };
        assert_eq!(known(HUB), ["l-a-0", "l-b-0"]);
        assert_eq!(known("a"), ["l-b-0"]);
        assert_eq!(known("b"), ["l-a-0"]);
        assert!(known("c").is_empty());
    }
}
