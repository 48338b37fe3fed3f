//! Real local clusters for bsn-operator's tests and demo.
//!
//! [`lab`] turns one Linux machine without Docker into several Kubernetes clusters of several machines
//! each: real API servers, kubelets, pods, networks and disks, which can be cut, stopped and healed.
//! [`proxy`] stands before a server and stops, cuts or loses the call that a test names.

pub mod lab;
pub mod operator;
pub mod proxy;
