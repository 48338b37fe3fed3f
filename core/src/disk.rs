//! Disks that grow: what comes next for a node's disk, from the size that is described and from what its claim says.
//!
//! A disk never shrinks, and a size that cannot be read is not a small one: nothing follows from it.

use crate::quantity::parse_bytes;

/// What a claim says of its size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObservedClaim<'a> {
    /// It is bound to a volume. The API server changes the size of no other.
    pub bound: bool,
    /// The size that was asked for last.
    pub requested: Option<&'a str>,
    /// The size that there is.
    pub capacity: Option<&'a str>,
    /// The volume has grown, the file system on it not yet.
    pub file_system_pending: bool,
    /// The storage system has given up.
    pub infeasible: bool,
}

/// What is so, and what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// It is as large as described, or larger; or its first volume is not there yet.
    Done,
    /// More is described than was asked for: ask.
    Ask,
    /// More is described than was asked for, and the claim has no volume yet that could grow.
    AwaitVolume,
    /// Asked for; the volume grows.
    Growing,
    /// The volume has grown; the file system follows when the machine takes it in use.
    FileSystemPending,
    /// Asked for; the storage system has given up.
    Infeasible,
    /// A size cannot be read.
    Unknown,
}

/// What comes next for a disk of which `wanted` is described.
pub fn next_growth(wanted: &str, claim: &ObservedClaim<'_>) -> Growth {
    let (Some(wanted), Some(requested)) =
        (parse_bytes(wanted), claim.requested.and_then(parse_bytes))
    else {
        return Growth::Unknown;
    };
    if wanted > requested {
        return if claim.bound { Growth::Ask } else { Growth::AwaitVolume };
    }
    let Some(capacity) = claim.capacity else { return Growth::Done };
    match parse_bytes(capacity) {
        None => Growth::Unknown,
        Some(capacity) if capacity >= wanted => Growth::Done,
        Some(_) if claim.infeasible => Growth::Infeasible,
        Some(_) if claim.file_system_pending => Growth::FileSystemPending,
        Some(_) => Growth::Growing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim<'a>(requested: &'a str, capacity: &'a str) -> ObservedClaim<'a> {
        ObservedClaim {
            bound: true,
            requested: Some(requested),
            capacity: Some(capacity),
            ..ObservedClaim::default()
        }
    }

    #[test]
    fn more_is_asked_for_once_and_then_waited_for() {
        assert_eq!(next_growth("2Gi", &claim("1Gi", "1Gi")), Growth::Ask);
        assert_eq!(next_growth("2Gi", &claim("2Gi", "1Gi")), Growth::Growing);
        let pending = ObservedClaim { file_system_pending: true, ..claim("2Gi", "1Gi") };
        assert_eq!(next_growth("2Gi", &pending), Growth::FileSystemPending);
        let infeasible = ObservedClaim { infeasible: true, ..claim("2Gi", "1Gi") };
        assert_eq!(next_growth("2Gi", &infeasible), Growth::Infeasible);
        assert_eq!(next_growth("2Gi", &claim("2Gi", "2Gi")), Growth::Done);
    }

    #[test]
    fn a_disk_never_shrinks_and_what_another_made_larger_stays() {
        assert_eq!(next_growth("1Gi", &claim("2Gi", "2Gi")), Growth::Done);
        assert_eq!(next_growth("1Gi", &claim("5Gi", "2Gi")), Growth::Done);
        // Storage systems round up.
        assert_eq!(next_growth("2G", &claim("2G", "2Gi")), Growth::Done);
        // What is left over of an older end is no news.
        let done = ObservedClaim { infeasible: true, ..claim("2Gi", "2Gi") };
        assert_eq!(next_growth("2Gi", &done), Growth::Done);
    }

    #[test]
    fn a_claim_without_a_volume_is_not_changed() {
        let unbound = ObservedClaim { bound: false, capacity: None, ..claim("1Gi", "") };
        assert_eq!(next_growth("2Gi", &unbound), Growth::AwaitVolume);
        assert_eq!(next_growth("1Gi", &unbound), Growth::Done);
    }

    #[test]
    fn nothing_follows_from_a_size_that_cannot_be_read() {
        assert_eq!(next_growth("much", &claim("1Gi", "1Gi")), Growth::Unknown);
        assert_eq!(next_growth("2Gi", &claim("little", "1Gi")), Growth::Unknown);
        assert_eq!(next_growth("2Gi", &claim("2Gi", "little")), Growth::Unknown);
        assert_eq!(next_growth("2Gi", &ObservedClaim::default()), Growth::Unknown);
    }
}
