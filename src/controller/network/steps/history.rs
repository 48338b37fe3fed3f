//! The history of steps, for people: a `ConfigMap` beside the anchor. Nothing is decided on it.

use bsn_core::steps::{HISTORY_KEY, HISTORY_LENGTH, PastStep};
use k8s_openapi::api::core::v1::ConfigMap;

use crate::apply::{ensure, read};
use crate::build::NetworkParts;
use crate::build::config_map::build_history_map;
use crate::controller::Error;
use crate::controller::context::Context;

/// Appends a step.
pub async fn append(ctx: &Context, parts: &NetworkParts<'_>, past: PastStep) -> Result<(), Error> {
    let (namespace, name) = (parts.namespace, parts.name.history());
    let stored = read::<ConfigMap>(&ctx.client, namespace, &name).await?;
    let text = stored.as_ref().and_then(|map| map.data.as_ref()?.get(HISTORY_KEY));
    // One that cannot be read is begun anew.
    let mut all: Vec<PastStep> =
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    all.push(past);
    let first = all.len().saturating_sub(HISTORY_LENGTH);
    let wish = build_history_map(parts, &all[first..]);
    ensure(&ctx.client, stored.as_ref(), wish, None, parts.network_id).await?;
    Ok(())
}
