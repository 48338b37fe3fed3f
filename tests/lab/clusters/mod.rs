//! Networks whose nodes are in three clusters: the hub, and two that join it through the plug-in; and two owners, each
//! with a hub. The stories cut these
//! clusters from each other and stop their API servers, so each runs alone, and begins by mending what the one before
//! has left.

mod api_servers;
mod cuts;
mod drains;
mod elsewhere;
mod exposed;
mod faults;
mod grows;
mod images;
mod leftovers;
mod lost;
mod restored;
mod slow;
mod span;
mod wrong;
