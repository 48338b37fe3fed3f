//! Evidence about nodes: asking their gateways, and keeping what they say.

pub mod client;
pub mod known;
pub mod poller;
pub mod route;
pub mod watches;
