//! Kubernetes clusters of several machines on one Linux machine without Docker.

pub mod command;
pub mod image;
pub mod layout;
pub mod packages;
pub mod process;
pub mod tools;
