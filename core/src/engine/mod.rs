//! Chain families: what each needs to know about itself, without talking to it.
//!
//! Every engine has the same files: `keys` (identities), `genesis`, `config` (its configuration
//! files), `status` (reading its answers) and `requests` (what a client may send). The parts of an
//! engine that talk to a running chain are in the operator's own `engine` module.

pub mod cometbft;
