//! What the operator says about itself: logs, metrics, events, health.

pub mod definitions;
mod events;
pub mod logs;
mod metrics;
#[cfg(test)]
mod queries_tests;
pub mod server;

pub use events::Events;
pub use metrics::Metrics;
pub use server::Health;
