//! Evidence about nodes: asking their gateways, and keeping what they say.

pub mod client;
pub mod poller;
