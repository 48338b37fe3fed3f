//! A network's certificate authority.

use bsn_core::hash::sha256_hex;
use bsn_core::names::NetworkName;
use bsn_core::pki::{CA_VALIDITY, CLOCK_SKEW, LeafNames};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};

use super::{PkiError, certificate_der, new_key, parse_certificate, random_bytes, read_key};

/// A network's certificate authority, with its key.
pub struct Authority {
    cert_pem: String,
    spki_sha256: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.spki_sha256)
    }
}

impl Authority {
    /// Makes a new authority; gives its certificate and its key (PEM). Nothing is stored.
    pub fn make(network: &NetworkName, now: Timestamp) -> Result<(String, String), PkiError> {
        let key_pem = new_key()?;
        let key = read_key(&key_pem)?;
        let mut params = params(&format!("{network} network CA"), CA_VALIDITY, now)?;
        // It signs leaves only, no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params
            .self_signed(&key)
            .map_err(PkiError::make("the CA's certificate could not be made"))?;
        Ok((cert.pem(), key_pem))
    }

    /// Reads an authority; certificate and key must belong together.
    pub fn parse(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key = read_key(key_pem)?;
        let spki = key.subject_public_key_info();
        let der = certificate_der(cert_pem, "the CA's certificate")?;
        if parse_certificate(&der, "the CA's certificate")?.public_key().raw != spki {
            return Err(PkiError::KeyDiffers);
        }
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key)
            .map_err(PkiError::make("the CA's certificate cannot be used"))?;
        Ok(Self { cert_pem: cert_pem.to_owned(), spki_sha256: sha256_hex(&spki), issuer })
    }

    /// SHA-256 of its public key, in hexadecimal.
    pub fn spki_sha256(&self) -> &str {
        &self.spki_sha256
    }

    /// Its certificate (PEM).
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Issues a leaf for the key `key_pem`, as PEM. Leaves that `serve` may be used by servers, too.
    pub fn issue(
        &self,
        names: &LeafNames,
        key_pem: &str,
        validity: SignedDuration,
        now: Timestamp,
        serves: bool,
    ) -> Result<String, PkiError> {
        let mut params = params(&names.common_name, validity, now)?;
        let name = |name: &String| {
            name.as_str().try_into().map_err(PkiError::make("a name cannot stand in a certificate"))
        };
        for dns in &names.dns {
            params.subject_alt_names.push(SanType::DnsName(name(dns)?));
        }
        params.subject_alt_names.push(SanType::URI(name(&names.uri)?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if serves {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let cert = params
            .signed_by(&read_key(key_pem)?, &self.issuer)
            .map_err(PkiError::make("the certificate could not be issued"))?;
        Ok(cert.pem())
    }
}

/// What all certificates share.
fn params(
    common_name: &str,
    validity: SignedDuration,
    now: Timestamp,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // The library would derive it from the key, and a renewed leaf keeps its key: two certificates of
    // one issuer must not share a number (RFC 5280, 4.1.2.2).
    let mut serial = random_bytes::<16>()?;
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let time = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second())
            .map_err(|error| PkiError::read("the time", error))
    };
    params.not_before = time(now - CLOCK_SKEW)?;
    params.not_after = time(now + validity)?;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use bsn_core::names::NodeName;
    use bsn_core::pki::{LeafPolicy, Renewal, Role, client_names, next_leaf, node_names};

    use super::*;
    use crate::pki::{observe_leaf, spki_sha256_of_key};

    fn make() -> (String, String) {
        Authority::make(&NetworkName::parse("net").unwrap(), Timestamp::now()).unwrap()
    }

    fn names() -> LeafNames {
        node_names(&NodeName::from_object("net-a-0"), "ledger", "n1")
    }

    #[test]
    fn an_issued_leaf_is_what_the_plan_asked_for() {
        let (cert, key) = make();
        let authority = Authority::parse(&cert, &key).unwrap();
        let leaf_key = new_key().unwrap();
        let policy = LeafPolicy {
            validity: SignedDuration::from_hours(2),
            renew_before: SignedDuration::from_hours(1),
        };
        let now = Timestamp::now();
        let leaf = authority.issue(&names(), &leaf_key, policy.validity, now, true).unwrap();
        let observed = observe_leaf(&leaf, authority.cert_pem()).unwrap();
        let spki = spki_sha256_of_key(&leaf_key).unwrap();
        let next = |at| next_leaf(Some(&observed), &spki, &names(), policy, at);
        assert_eq!(next(now), None);
        assert_eq!(next(now + SignedDuration::from_mins(61)), Some(Renewal::Due));
        let again = authority.issue(&names(), &leaf_key, policy.validity, now, true).unwrap();
        assert_ne!(leaf, again, "every certificate has its own number");
    }

    #[test]
    fn another_authority_of_the_same_name_did_not_sign_it() {
        let ((cert, key), (other, _)) = (make(), make());
        let authority = Authority::parse(&cert, &key).unwrap();
        let hour = SignedDuration::from_hours(1);
        let names = client_names("c", Role::Client, "n1");
        let leaf =
            authority.issue(&names, &new_key().unwrap(), hour, Timestamp::now(), false).unwrap();
        assert!(!observe_leaf(&leaf, &other).unwrap().signed_by_ca);
        assert!(matches!(Authority::parse(&other, &key), Err(PkiError::KeyDiffers)));
    }

    #[test]
    fn errors_hold_no_key() {
        let (cert, key) = make();
        let body = key.lines().nth(1).unwrap().to_owned();
        let broken = key.replace("BEGIN PRIVATE KEY", "BEGIN SOMETHING");
        let error = Authority::parse(&cert, &broken).unwrap_err();
        assert!(!format!("{error:?} {error}").contains(&body));
    }
}
