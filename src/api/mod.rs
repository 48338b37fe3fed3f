//! The API: `BsnNetwork` and `BsnNode`, group `bsn-operator.io`.
//!
//! A field exists only once it does something. Schema and CEL rules answer wrong input at
//! admission, with messages that say what to do.

pub mod conditions;
mod membership;
mod network;
mod node;

pub use membership::*;
pub use network::*;
pub use node::*;

/// API group of all kinds.
pub const GROUP: &str = "bsn-operator.io";
/// API version of all kinds.
pub const VERSION: &str = "v1alpha1";
