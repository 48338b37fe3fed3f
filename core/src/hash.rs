//! SHA-256 in the forms the project uses.

use sha2::{Digest, Sha256};

/// Lower-case hexadecimal of the SHA-256 of `bytes` (64 characters).
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The first ten hexadecimal digits of the SHA-256 of `bytes`: enough to name an object by its
/// content (40 bits; names live inside one namespace and belong to one node).
pub fn short_hash(bytes: &[u8]) -> String {
    let mut full = sha256_hex(bytes);
    full.truncate(10);
    full
}

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_the_standard_test_vector() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(short_hash(b"abc"), "ba7816bf8f");
    }
}
