//! Kubernetes clusters of several machines on one Linux machine without Docker.

pub mod addons;
pub mod cgroup;
pub mod command;
pub mod control_plane;
pub mod image;
pub mod layout;
pub mod machine;
pub mod machine_config;
pub mod network;
pub mod packages;
pub mod pki;
pub mod process;
pub mod provisioner;
pub mod quantity;
pub mod teardown;
pub mod tools;
