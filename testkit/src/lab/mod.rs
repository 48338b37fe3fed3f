//! Kubernetes clusters of several machines on one Linux machine without Docker.

pub mod layout;
