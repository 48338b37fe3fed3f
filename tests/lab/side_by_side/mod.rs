//! Stories that disturb nobody: each touches its own namespace only, and nothing that it asserts depends on how busy
//! the machine or the operator is with other networks. `cargo xtask test` runs several of them at once; all others
//! run alone. What has to be alone: to stop or restart an API server, a machine or the operator, to count the
//! operator's requests, to measure its memory, and to hold the gaps between blocks to a limit.

mod admission;
mod at_height;
mod brought_keys;
mod certificates;
mod changes;
mod deletion;
mod entry_node;
mod gitops;
mod heals;
mod keys;
mod objects;
mod own_application;
mod owners;
mod pods;
mod policies;
mod refusals;
mod silent_gateway;
mod steps;
mod tutorial;
mod waits;
