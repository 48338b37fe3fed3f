//! The API: `BsnNetwork`, `BsnNode` and `BsnCluster`, group `bsn-operator.io`.
//!
//! A field exists only once it does something. Schema and CEL rules answer wrong input at
//! admission, with messages that say what to do.

mod access;
mod cluster;
pub mod conditions;
mod deletion;
mod joining;
mod membership;
mod network;
mod node;
mod pod;

pub use access::*;
pub use cluster::*;
pub use deletion::*;
pub use joining::*;
pub use membership::*;
pub use network::*;
pub use node::*;
pub use pod::*;

/// API group of all kinds.
pub const GROUP: &str = "bsn-operator.io";
/// API version of all kinds.
pub const VERSION: &str = "v1alpha1";

/// The status of an object that the operator has not seen yet: of a generation that never is. Tools that wait by
/// kstatus take an object without any status for one that is done.
pub(crate) fn unseen_status() -> serde_json::Value {
    serde_json::json!({"observedGeneration": -1})
}
