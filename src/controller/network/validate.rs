//! Turns a description into typed values. The schema has refused most wrong input at admission; what
//! it cannot say, or an older schema let through, is refused here with an instruction.

use std::collections::BTreeMap;

use bsn_core::anchor::Role;
use bsn_core::consent::CONSENT_ANNOTATION;
use bsn_core::engine::cometbft::{DEFAULT_POWER, MAX_CHAIN_ID, Version, VersionError};
use bsn_core::forming::{DesiredNetwork, DesiredSet};
use bsn_core::hash::short_hash;
use bsn_core::names::{NameError, NetworkName, SetName};
use bsn_core::pki::LeafPolicy;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::ResourceExt;

use crate::api::{App, BsnNetwork, NodeRole, Storage};
use crate::build::stateful_set::AppWorkload;

/// A description that makes sense.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedNetwork {
    /// Its namespace.
    pub namespace: String,
    /// Name, chain and node sets.
    pub desired: DesiredNetwork,
    /// The engine's image.
    pub engine_image: String,
    /// A user's application, or the built-in store.
    pub app: Option<AppWorkload>,
    /// How long the engine waits after a block; `None` = its default.
    pub timeout_commit: Option<String>,
    /// Resources of engines, by node set.
    pub resources: BTreeMap<String, Option<ResourceRequirements>>,
    /// Disks, by node set.
    pub storage: BTreeMap<String, Storage>,
    /// How long certificates last.
    pub leaf: LeafPolicy,
    /// Leave everything as it is.
    pub paused: bool,
    /// Consents, as annotated.
    pub consent: Option<String>,
}

impl ValidatedNetwork {
    /// Hash of what the user described of how a node of `set` runs. A change of it, and nothing else, makes
    /// a node restart.
    pub fn inputs_hash(&self, set: &str) -> String {
        let app = self.app.as_ref().map(|app| (&app.image, &app.command, &app.args));
        let resources = self.resources.get(set);
        let inputs = (&self.engine_image, app, &self.timeout_commit, resources);
        // Strings and lists of them: serialising them cannot fail.
        short_hash(&serde_json::to_vec(&inputs).unwrap_or_default())
    }
}

/// Why a description makes no sense; the message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// A name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The engine's version.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// No engine.
    #[error(
        "spec.engine names no engine; set engine: {{cometbft: {{version: 0.38.25, app: {{persistentKvstore: {{}}}}}}}}"
    )]
    NoEngine,
    /// No application, or two.
    #[error("spec.engine.cometbft.app must name exactly one of persistentKvstore and container")]
    OneApp,
    /// The chain id's length.
    #[error("spec.chainId has {0} characters; use 1 to {MAX_CHAIN_ID}")]
    ChainId(usize),
    /// Two sets of one name.
    #[error("two node sets are named {0:?}; give each its own name")]
    DuplicateSet(String),
    /// No validator.
    #[error("no node set has role Validator and replicas of at least 1; a chain needs a validator")]
    NoValidators,
    /// A duration.
    #[error(
        "spec.pki.leaf.{field}: {value:?} is not a duration; write hours, minutes and seconds, for example 2160h"
    )]
    Duration {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
    /// Renewed before it is issued.
    #[error("spec.pki.leaf.renewBefore must be shorter than validity")]
    RenewBefore,
}

/// Checks a description.
pub fn validate_network(
    network: &BsnNetwork,
    image_prefix: &str,
) -> Result<ValidatedNetwork, InvalidSpec> {
    let spec = &network.spec;
    let cometbft = spec.engine.cometbft.as_ref().ok_or(InvalidSpec::NoEngine)?;
    let version = Version::parse(&cometbft.version)?;
    let app = match &cometbft.app {
        App { persistent_kvstore: Some(_), container: None } => None,
        App { persistent_kvstore: None, container: Some(container) } => Some(AppWorkload {
            image: container.image.clone(),
            command: container.command.clone(),
            args: container.args.clone(),
        }),
        _ => return Err(InvalidSpec::OneApp),
    };
    let id_length = spec.chain_id.chars().count();
    if id_length == 0 || id_length > MAX_CHAIN_ID {
        return Err(InvalidSpec::ChainId(id_length));
    }
    let mut sets: Vec<DesiredSet> = Vec::with_capacity(spec.node_sets.len());
    let mut storage = BTreeMap::new();
    let mut resources = BTreeMap::new();
    for set in &spec.node_sets {
        let desired = DesiredSet {
            name: SetName::parse(&set.name)?,
            role: match set.role {
                NodeRole::Validator => Role::Validator,
                NodeRole::FullNode => Role::FullNode,
            },
            voting: true,
            replicas: set.replicas,
            power: set.voting_power.unwrap_or(DEFAULT_POWER),
        };
        if storage.insert(set.name.clone(), set.storage.clone()).is_some() {
            return Err(InvalidSpec::DuplicateSet(set.name.clone()));
        }
        resources.insert(set.name.clone(), set.resources.clone());
        sets.push(desired);
    }
    if !sets.iter().any(|set| set.role == Role::Validator && set.replicas > 0) {
        return Err(InvalidSpec::NoValidators);
    }
    let leaf = LeafPolicy {
        validity: parse_duration("validity", &spec.pki.leaf.validity)?,
        renew_before: parse_duration("renewBefore", &spec.pki.leaf.renew_before)?,
    };
    if leaf.renew_before >= leaf.validity {
        return Err(InvalidSpec::RenewBefore);
    }
    Ok(ValidatedNetwork {
        namespace: network.namespace().unwrap_or_default(),
        desired: DesiredNetwork {
            name: NetworkName::parse(&network.name_any())?,
            chain_id: spec.chain_id.clone(),
            sets,
        },
        engine_image: cometbft
            .image
            .clone()
            .unwrap_or_else(|| default_image(version, image_prefix)),
        app,
        timeout_commit: cometbft.timeout_commit.clone(),
        resources,
        storage,
        leaf,
        paused: spec.paused,
        consent: network.annotations().get(CONSENT_ANNOTATION).cloned(),
    })
}

fn default_image(version: Version, prefix: &str) -> String {
    let image = format!("cometbft/cometbft:v{version}");
    match prefix.trim_end_matches('/') {
        "" => image,
        prefix => format!("{prefix}/{image}"),
    }
}

/// Reads `<h>h<m>m<s>s`, any part of which may be left out.
fn parse_duration(field: &'static str, text: &str) -> Result<SignedDuration, InvalidSpec> {
    let bad = || InvalidSpec::Duration { field, value: text.to_owned() };
    let mut rest = text;
    let mut seconds: i64 = 0;
    for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, after)) = rest.split_once(unit) {
            let number: i64 = number.parse().map_err(|_| bad())?;
            seconds = number
                .checked_mul(factor)
                .and_then(|part| seconds.checked_add(part))
                .filter(|sum| number >= 0 && *sum >= 0)
                .ok_or_else(bad)?;
            rest = after;
        }
    }
    if !rest.is_empty() || text.is_empty() {
        Err(bad())
    } else {
        Ok(SignedDuration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let read = |text| parse_duration("validity", text).map(|d| d.as_secs());
        assert_eq!(read("2160h"), Ok(2160 * 3600));
        assert_eq!(read("1h30m"), Ok(5400));
        assert_eq!(read("90s"), Ok(90));
        for bad in
            ["", "12", "h", "1m1h", "-1h", "1d", "99999999999999999999h", "9223372036854775807h"]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn images_come_from_the_mirror_if_there_is_one() {
        let version = Version::parse("0.38.25").unwrap();
        assert_eq!(default_image(version, ""), "cometbft/cometbft:v0.38.25");
        assert_eq!(
            default_image(version, "registry.example.com/mirror/"),
            "registry.example.com/mirror/cometbft/cometbft:v0.38.25"
        );
    }
}
