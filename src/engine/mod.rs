//! Talking to engines. What their answers mean is in [`bsn_core::engine`].

pub mod cometbft;
