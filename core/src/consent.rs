//! Consents: a person allows one step that is refused otherwise.
//!
//! A consent names exactly the step, so that it fits nothing else, and works once: the anchor records its
//! use. It is given as an annotation of the `BsnNetwork`; several are separated by commas. That to delete a network
//! without which other owners' chain stands, `delete/<network id>`, is asked for by the API server: see the policy in the
//! chart.

use std::collections::BTreeSet;
use std::fmt;

/// The annotation.
pub const CONSENT_ANNOTATION: &str = "bsn-operator.io/consent";

/// A step that needs a person's consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consent {
    /// A node whose disk is gone for good starts on an empty one.
    StartWithEmptyDisk {
        /// Its identity.
        identity_id: String,
        /// Uid of the empty disk's claim.
        disk_uid: String,
    },
}

impl fmt::Display for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartWithEmptyDisk { identity_id, disk_uid } => {
                write!(f, "start-with-empty-disk/{identity_id}/{disk_uid}")
            }
        }
    }
}

/// All consents that `annotation` gives, used or not.
pub fn given(annotation: Option<&str>) -> BTreeSet<String> {
    let all = annotation.unwrap_or_default().split(',').map(str::trim);
    all.filter(|one| !one.is_empty()).map(str::to_owned).collect()
}

impl Consent {
    /// Whether `annotation` gives this consent and it was not `used` before.
    pub fn given(&self, annotation: Option<&str>, used: &[String]) -> bool {
        let text = self.to_string();
        given(annotation).contains(&text) && !used.contains(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consents_are_separated_by_commas() {
        let read = |text| given(text).into_iter().collect::<Vec<_>>();
        assert_eq!(read(Some(" b/2 , a/1,, b/2")), ["a/1", "b/2"]);
        for none in [None, Some(""), Some(" , ")] {
            assert!(read(none).is_empty(), "{none:?}");
        }
    }

    #[test]
    fn a_consent_fits_one_step_and_works_once() {
        let consent =
            Consent::StartWithEmptyDisk { identity_id: "i1".into(), disk_uid: "d2".into() };
        let text = consent.to_string();
        assert_eq!(text, "start-with-empty-disk/i1/d2");
        assert!(consent.given(Some(&format!("other, {text}")), &[]));
        assert!(!consent.given(Some(&text), std::slice::from_ref(&text)));
        for other in
            [None, Some(""), Some("start-with-empty-disk/i1"), Some("start-with-empty-disk/i1/d3")]
        {
            assert!(!consent.given(other, &[]), "{other:?}");
        }
    }
}
