//! The pure part of bsn-operator.
