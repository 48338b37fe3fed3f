//! One cluster: a client, and a cache per kind that one watch each keeps current.

pub mod client;
pub mod watches;

pub use watches::{Caches, Triggers, Watches};
