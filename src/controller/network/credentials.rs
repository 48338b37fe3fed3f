//! Certificates that belong to no node: the operator's own, in memory, and the clients'.

use bsn_core::anchor::{Anchor, KeyRecord};
use bsn_core::names::NetworkName;
use bsn_core::pki::{OPERATOR_VALIDITY, Role, client_names, next_leaf};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;

use super::apply::parse_authority;
use super::validate::ValidatedNetwork;
use crate::api::conditions::Reason;
use crate::apply::{ensure, is_ours_by, read, restore_marks};
use crate::build::NetworkParts;
use crate::build::secret::{TLS_CERT, TLS_KEY, build_client_secret, entry};
use crate::controller::context::{Context, OperatorLeaf};
use crate::controller::{Refusal, Step, refused};
use crate::pki::{Authority, new_key, observe_leaf, spki_sha256_of_key};
use crate::view::NetworkKey;

/// How long the network's Secrets are trusted to be there without a look. Secrets are not watched.
const CHECK_EVERY: SignedDuration = SignedDuration::from_mins(1);

/// Gives the operator's certificate for a network, and looks after the network's Secrets when due.
pub async fn ensure_credentials(
    ctx: &Context,
    key: &NetworkKey,
    network: &NetworkParts<'_>,
    anchor: &Anchor,
    validated: &ValidatedNetwork,
) -> Step<OperatorLeaf> {
    let now = ctx.now();
    let Some(record) = &anchor.ca else {
        return Ok(Err(Refusal::new(Reason::AnchorRefused, "the anchor records no CA")));
    };
    let kept = ctx.credentials.get(key).filter(|leaf| leaf.ca_spki == record.spki_sha256);
    if let Some(leaf) = &kept
        && now < leaf.check_at
    {
        return Ok(Ok(leaf.clone()));
    }
    let authority = match read_authority(ctx, key, &validated.desired.name, anchor).await? {
        Ok(authority) => authority,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let client_due = match ensure_client(ctx, key, network, anchor, validated, &authority).await? {
        Ok(due) => due,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let leaf = match kept {
        Some(leaf) if now < leaf.renew_at => leaf,
        _ => {
            let names = client_names("bsn-operator", Role::Operator, &anchor.network_id);
            let key_pem = new_key()?;
            OperatorLeaf {
                ca_spki: record.spki_sha256.clone(),
                ca_pem: authority.cert_pem().to_owned(),
                cert_pem: authority.issue(&names, &key_pem, OPERATOR_VALIDITY, now, false)?,
                key_pem,
                renew_at: now + OPERATOR_VALIDITY / 2,
                check_at: now,
            }
        }
    };
    let leaf = OperatorLeaf { check_at: client_due.min(now + CHECK_EVERY), ..leaf };
    ctx.credentials.put(key.clone(), leaf.clone());
    Ok(Ok(leaf))
}

/// Reads the network's CA and checks that it is the one recorded. Marks that it lost are put back.
pub async fn read_authority(
    ctx: &Context,
    key: &NetworkKey,
    network: &NetworkName,
    anchor: &Anchor,
) -> Step<Authority> {
    let name = network.ca();
    let namespace = &key.namespace;
    let Some(record) = &anchor.ca else {
        return Ok(Err(lost(namespace, &name, "is not recorded in the anchor")));
    };
    let Some(secret) = read::<Secret>(&ctx.client, namespace, &name).await? else {
        return Ok(Err(lost(namespace, &name, "with the network's CA is missing")));
    };
    let authority = or_refuse!(parse_recorded(&secret, namespace, &name, record));
    let marks = NetworkParts::new(namespace, network, anchor, None).held(name);
    restore_marks(&ctx.client, &secret, &marks).await?;
    Ok(Ok(authority))
}

/// Reads a CA out of its Secret. Which object that is does not count: only the CA that was recorded is taken.
fn parse_recorded(
    secret: &Secret,
    namespace: &str,
    name: &str,
    record: &KeyRecord,
) -> Result<Authority, Refusal> {
    let authority = parse_authority(secret, name)?;
    if authority.spki_sha256() == record.spki_sha256 {
        Ok(authority)
    } else {
        let what = "holds another CA than the one this network was formed with";
        Err(lost(namespace, name, what))
    }
}

/// What is told where a network's CA is not what it was.
fn lost(namespace: &str, name: &str, what: &str) -> Refusal {
    let message = format!(
        "Secret {namespace}/{name} {what}; restore it from a backup. It is never made again: no node would trust it. \
         Nodes run on until their certificates end"
    );
    Refusal::new(Reason::KeyLost, message)
}

/// The clients' certificate. Losing it harms nobody: it is made anew. Returns when it is due.
async fn ensure_client(
    ctx: &Context,
    key: &NetworkKey,
    network: &NetworkParts<'_>,
    anchor: &Anchor,
    validated: &ValidatedNetwork,
    authority: &Authority,
) -> Step<Timestamp> {
    let name = validated.desired.name.client();
    let marks = network.owned(name.clone());
    let existing = match read::<Secret>(&ctx.client, &key.namespace, &name).await? {
        // Whose a private key is, its content does not tell.
        Some(secret) if !is_ours_by(&secret, None, &anchor.network_id, &marks) => {
            let message =
                format!("Secret {name} exists and is not this network's; delete or rename it");
            return Ok(Err(Refusal::new(Reason::NameTaken, message)));
        }
        Some(secret) => {
            let restored = restore_marks(&ctx.client, &secret, &marks).await?;
            Some(restored.unwrap_or(secret))
        }
        None => None,
    };
    let names = client_names(&validated.desired.name.client(), Role::Client, &anchor.network_id);
    // A key that can be read is kept.
    let kept_key = existing
        .as_ref()
        .and_then(|secret| entry(secret, TLS_KEY))
        .and_then(|pem| spki_sha256_of_key(pem).ok().map(|spki| (pem.to_owned(), spki)));
    let observed = existing
        .as_ref()
        .and_then(|secret| entry(secret, TLS_CERT))
        .and_then(|pem| observe_leaf(pem, authority.cert_pem()).ok());
    let (key_pem, spki) = match kept_key {
        Some(kept) => kept,
        None => {
            let pem = new_key()?;
            let spki = spki_sha256_of_key(&pem)?;
            (pem, spki)
        }
    };
    let now = ctx.now();
    let policy = validated.leaf;
    let Some(why) = next_leaf(observed.as_ref(), &spki, &names, policy, now) else {
        let end = observed.map_or(now, |leaf| leaf.not_after);
        return Ok(Ok(end - policy.renew_before));
    };
    tracing::info!(network = %key, secret = %name, ?why, "issuing the clients' certificate");
    let cert = authority.issue(&names, &key_pem, policy.validity, now, false)?;
    let wish = build_client_secret(network, &cert, &key_pem, authority.cert_pem());
    let id = &anchor.network_id;
    let made = ensure(&ctx.client, existing.as_ref(), wish, None, id).await;
    Ok(refused(made)?.map(|_| now + policy.validity - policy.renew_before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::samples::with_node;
    use crate::build::secret::build_ca_secret;

    /// The Secret of a new CA, and its fingerprint.
    fn made() -> (Secret, String) {
        let network = NetworkName::parse("city-ledger").unwrap();
        let (cert, key) = Authority::make(&network, Timestamp::now()).unwrap();
        let spki = Authority::parse(&cert, &key).unwrap().spki_sha256().to_owned();
        (with_node(None, |node| build_ca_secret(&node.network, &cert, &key)), spki)
    }

    fn parsed(secret: &Secret, spki: &str) -> Result<Authority, Refusal> {
        let record = KeyRecord { spki_sha256: spki.to_owned(), secret_uid: "u1".to_owned() };
        parse_recorded(secret, "ledger", "city-ledger-ca", &record)
    }

    /// No node would trust what another one issues.
    #[test]
    fn another_authority_in_the_place_of_the_one_recorded_is_refused() {
        let ((secret, spki), (other, _)) = (made(), made());
        // As from a backup: with whatever uid.
        let mut restored = secret.clone();
        restored.metadata.uid = Some("u2".to_owned());
        assert_eq!(parsed(&restored, &spki).unwrap().spki_sha256(), spki);
        let refusal = parsed(&other, &spki).unwrap_err();
        assert_eq!(refusal.reason, Reason::KeyLost);
        let words = "Secret ledger/city-ledger-ca holds another CA than the one this network was \
                     formed with; restore it from a backup";
        assert!(refusal.message.starts_with(words), "{}", refusal.message);
    }

    #[test]
    fn an_authority_in_parts_is_refused() {
        let ((secret, spki), (mut other, _)) = (made(), made());
        let own = secret.data.clone().unwrap();
        other.data.as_mut().unwrap().insert(TLS_CERT.to_owned(), own[TLS_CERT].clone());
        let mut half = secret;
        half.data.as_mut().unwrap().remove(TLS_KEY);
        for (secret, words) in [(other, "does not hold the network's CA"), (half, "lacks")] {
            let refusal = parsed(&secret, &spki).unwrap_err();
            assert_eq!(refusal.reason, Reason::KeyLost);
            assert!(refusal.message.contains(words), "{}", refusal.message);
        }
    }
}
