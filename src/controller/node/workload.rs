//! The workload: the pod template in force, kept and re-applied; changed only as the first effect of this
//! node's own restart (`restart`).
//!
//! The template in force is an immutable `ConfigMap`, its hash is in the anchor. A StatefulSet that was
//! edited or deleted is made again from it, so that no pod ever comes back with a configuration nobody has
//! tried. Whether a node is to change is told by a hash of what the *user* described, never by rendered
//! text: a new version of the operator alone restarts nobody.

use bsn_core::anchor::{Anchor, Identity};
use bsn_core::guard::PodIdentity;
use bsn_core::hash::short_hash;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PodTemplateSpec};
use kube::ResourceExt;

use super::apply::Pass;
use crate::api::conditions::Reason;
use crate::apply::{delete, ensure, ensure_exists, read};
use crate::build::NodeParts;
use crate::build::config_map::{TEMPLATE_KEY, build_config_map, build_template_map};
use crate::build::stateful_set::{
    Mounts, Workload, build_stateful_set, build_template, config_of, identity_of, put_identity,
    template_hash_of, with_template_hash,
};
use crate::cluster::watches::cached;
use crate::controller::{Error, Refusal, Step, refused};
use crate::labels;

/// What a template that is put in force stands for, for the anchor.
pub(super) enum Puts {
    /// What is described.
    Described,
    /// What was in force, for another disk.
    Same,
    /// What was in force, so that it halts after this block, or after none any more.
    Halts(Option<u64>),
    /// The new application of the switch at this height: as described, or of another node, with that one's hash.
    Switched(u64, Option<String>),
}

impl Pass<'_> {
    /// Brings the workload to the template in force; changes the template only where that was decided.
    pub(super) async fn ensure_workload(
        &self,
        parts: &NodeParts<'_>,
        pod: &PodIdentity,
        anchor: &Anchor,
    ) -> Step<Anchor> {
        let Some(identity) = anchor.identity(self.name) else { return Ok(Ok(anchor.clone())) };
        let (template, anchor) = if identity.template_hash.is_none() {
            if self.waits_for_switch(anchor) {
                tracing::info!(node = %self.name, "not started before all others have switched");
                return Ok(Ok(anchor.clone()));
            }
            or_refuse!(self.check_image());
            let template = self.build_new_template(parts, identity, pod, anchor).await?;
            let template = or_refuse!(template);
            or_refuse!(self.put_in_force(parts, template, Puts::Described).await?)
        } else {
            let template = or_refuse!(self.template_in_force(parts, identity, pod, anchor).await?);
            let names_disk = template.spec.as_ref().and_then(identity_of);
            if names_disk.as_ref() == Some(pod) {
                (template, anchor.clone())
            } else {
                // A person consented to another disk: the same template, for that disk.
                let mut template = template;
                if let Some(spec) = &mut template.spec {
                    put_identity(spec, pod);
                }
                or_refuse!(self.put_in_force(parts, template, Puts::Same).await?)
            }
        };
        let set = build_stateful_set(parts, template);
        let known = self.known_set().await?;
        let id = parts.network.network_id;
        let made = ensure(&self.place.client, known.as_ref(), set, None, id).await;
        let (set, _) = or_refuse!(refused(made)?);
        let in_force = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
        self.end_pod_of_other_disk(&in_force).await?;
        or_refuse!(self.restore_config(parts, &in_force).await?);
        self.prune(&in_force).await?;
        Ok(Ok(anchor))
    }

    /// Makes the configuration that the template in force mounts again, if it is gone and exactly the same one follows from
    /// the description.
    async fn restore_config(&self, parts: &NodeParts<'_>, in_force: &PodTemplateSpec) -> Step<()> {
        let namespace = &self.key.namespace;
        let Some(name) = in_force.spec.as_ref().and_then(config_of) else { return Ok(Ok(())) };
        if cached(&self.place.objects.config_maps, namespace, &name).is_some()
            || read::<ConfigMap>(&self.place.client, namespace, &name).await?.is_some()
        {
            return Ok(Ok(()));
        }
        let timeout = self.validated.timeout_commit.as_deref();
        let application = self.described(&parts.identity.set).application();
        let config = build_config_map(parts, application, timeout);
        if config.name_any() == name {
            let id = parts.network.network_id;
            let made = ensure_exists(&self.place.client, None, config, None, id).await;
            return Ok(refused(made)?.map(|_| ()));
        }
        let message = format!(
            "ConfigMap {namespace}/{name} with the configuration in force is missing; restore it from a backup. The node runs \
             on as long as its pod does"
        );
        Ok(Err(Refusal::new(Reason::TemplateLost, message)))
    }

    /// The description has an application that the chain does not run yet.
    fn waits_for_switch(&self, anchor: &Anchor) -> bool {
        let Some(described) = self.validated.switches() else { return false };
        let mut runs = anchor.members().filter_map(|(_, identity)| identity.app_hash.as_ref());
        runs.any(|app| *app != described)
    }

    pub(super) async fn known_set(&self) -> Result<Option<StatefulSet>, Error> {
        let (namespace, name) = (&self.key.namespace, self.name.as_str());
        match cached(&self.place.objects.stateful_sets, namespace, name) {
            Some(set) => Ok(Some((*set).clone())),
            None => Ok(read(&self.place.client, namespace, name).await?),
        }
    }

    fn described(&self, set: &str) -> Workload {
        self.validated.workload(set, self.place.agent_image.clone())
    }

    /// What is described now, with the configuration it mounts.
    pub(super) async fn build_new_template(
        &self,
        parts: &NodeParts<'_>,
        identity: &Identity,
        pod: &PodIdentity,
        anchor: &Anchor,
    ) -> Step<PodTemplateSpec> {
        let workload = self.described(&identity.set);
        let timeout = self.validated.timeout_commit.as_deref();
        let config = build_config_map(parts, workload.application(), timeout);
        let genesis_hash = anchor.genesis_hash.as_deref().unwrap_or_default();
        let mounts = Mounts {
            config: config.name_any(),
            genesis: self.validated.desired.name.genesis(genesis_hash),
            peers: self.validated.desired.name.peers(),
        };
        let template = build_template(parts, &workload, &mounts, pod);
        let maps = &self.place.objects.config_maps;
        let known = cached(maps, &self.key.namespace, &config.name_any());
        let id = parts.network.network_id;
        let made = ensure_exists(&self.place.client, known.as_deref(), config, None, id).await;
        Ok(refused(made)?.map(|_| template))
    }

    /// Stores a template, then names it in the anchor: from here on it is the one.
    pub(super) async fn put_in_force(
        &self,
        parts: &NodeParts<'_>,
        template: PodTemplateSpec,
        puts: Puts,
    ) -> Step<(PodTemplateSpec, Anchor)> {
        // Built from typed values: serialising it cannot fail.
        let text = serde_json::to_string(&template).unwrap_or_default();
        let hash = short_hash(text.as_bytes());
        let map = build_template_map(parts, &hash, text);
        let known = cached(&self.place.objects.config_maps, &self.key.namespace, &map.name_any());
        let id = parts.network.network_id;
        let made = ensure_exists(&self.place.client, known.as_deref(), map, None, id).await;
        or_refuse!(refused(made)?);
        let anchor = or_refuse!(
            self.update(|anchor| {
                if let Some(identity) = anchor.identities.get_mut(self.name.as_str()) {
                    identity.template_hash = Some(hash.clone());
                    self.note(identity, &puts);
                }
            })
            .await?
        );
        Ok(Ok((with_template_hash(template, &hash), anchor)))
    }

    /// Notes in the anchor what a template stands for.
    fn note(&self, identity: &mut Identity, puts: &Puts) {
        match puts {
            Puts::Same => {}
            Puts::Halts(height) => identity.halts_at = *height,
            Puts::Described | Puts::Switched(_, None) => {
                identity.inputs_hash = Some(self.validated.inputs_hash(&identity.set));
                identity.app_hash = self.validated.app_hash();
                identity.halts_at = None;
            }
            // The rest of what is described comes by a roll.
            Puts::Switched(_, Some(app)) => {
                identity.app_hash = Some(app.clone());
                identity.halts_at = None;
            }
        }
        if let Puts::Switched(height, _) = puts {
            identity.switched_at = Some(*height);
        }
    }

    /// Reads the template in force. If its `ConfigMap` is gone, it is made again only if exactly the
    /// same one follows from the description.
    pub(super) async fn template_in_force(
        &self,
        parts: &NodeParts<'_>,
        identity: &Identity,
        pod: &PodIdentity,
        anchor: &Anchor,
    ) -> Step<PodTemplateSpec> {
        let hash = identity.template_hash.clone().unwrap_or_default();
        let name = self.name.template(&hash);
        let namespace = &self.key.namespace;
        let map = match cached(&self.place.objects.config_maps, namespace, &name) {
            Some(map) => Some((*map).clone()),
            None => read::<ConfigMap>(&self.place.client, namespace, &name).await?,
        };
        let text = map.as_ref().and_then(|map| map.data.as_ref()?.get(TEMPLATE_KEY));
        if let Some(text) = text.filter(|text| short_hash(text.as_bytes()) == hash)
            && let Ok(template) = serde_json::from_str(text)
        {
            return Ok(Ok(with_template_hash(template, &hash)));
        }
        if map.is_none() {
            let template = or_refuse!(self.build_new_template(parts, identity, pod, anchor).await?);
            let text = serde_json::to_string(&template).unwrap_or_default();
            if short_hash(text.as_bytes()) == hash {
                let map = build_template_map(parts, &hash, text);
                let id = parts.network.network_id;
                let made = ensure_exists(&self.place.client, None, map, None, id).await;
                or_refuse!(refused(made)?);
                return Ok(Ok(with_template_hash(template, &hash)));
            }
        }
        let message = format!(
            "ConfigMap {namespace}/{name} with the pod template in force is missing or was replaced; restore it from \
             a backup. The node runs on, and is not made anew from another template"
        );
        Ok(Err(Refusal::new(Reason::TemplateLost, message)))
    }

    /// Ends a pod that was made for a disk that is gone: its guard would refuse for ever.
    async fn end_pod_of_other_disk(&self, in_force: &PodTemplateSpec) -> Result<(), Error> {
        let namespace = &self.key.namespace;
        let running = cached(&self.place.objects.pods, namespace, &format!("{}-0", self.name));
        let Some(running) = running.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(());
        };
        let identity = |spec: Option<&_>| spec.and_then(identity_of);
        if identity(running.spec.as_ref()) == identity(in_force.spec.as_ref()) {
            return Ok(());
        }
        tracing::info!(node = %self.name, "ending the pod of another disk");
        Ok(delete(&self.place.client, &*running).await?)
    }

    /// Removes templates and configurations that neither the template in force nor the pod that runs
    /// needs any more.
    async fn prune(&self, in_force: &PodTemplateSpec) -> Result<(), Error> {
        let namespace = &self.key.namespace;
        let annotations = in_force.metadata.as_ref().and_then(|meta| meta.annotations.as_ref());
        let Some(hash) = template_hash_of(annotations) else { return Ok(()) };
        let view = self.ctx.views.get(self.key);
        let seen = view
            .as_ref()
            .and_then(|view| view.nodes.iter().find(|node| node.name == self.name.as_str()));
        // Only once the node follows the chain on it: until then the old one may be wanted back.
        if !seen.is_some_and(|node| node.in_sync && node.template_hash.as_ref() == Some(&hash)) {
            return Ok(());
        }
        let keep = [Some(self.name.template(&hash)), in_force.spec.as_ref().and_then(config_of)];
        let old = self.place.objects.config_maps.state_filter(|map| {
            let name = map.name_any();
            map.namespace().as_ref() == Some(namespace)
                && map.labels().get(labels::NODE).map(String::as_str) == Some(self.name.as_str())
                && (name.starts_with(&self.name.template(""))
                    || name.starts_with(&self.name.config("")))
                && !keep.contains(&Some(name))
        });
        for map in old {
            delete(&self.place.client, &*map).await?;
        }
        Ok(())
    }
}
