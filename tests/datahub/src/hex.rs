//! Strings of hex digits: digests, and tokens nobody can guess. And the numbers they are made of.

use sha2::{Digest, Sha256};

/// The SHA-256 of some bytes, 64 lower-case hex digits.
pub fn digest(bytes: impl AsRef<[u8]>) -> String {
    encode(&Sha256::digest(bytes))
}

/// 64 random lower-case hex digits: what GitLab's access tokens, refresh tokens and codes look like.
pub fn random() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the system's generator answers on every platform we test on");
    encode(&bytes)
}

/// A number below `sides`, at random.
pub fn dice(sides: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system's generator answers on every platform we test on");
    u64::from_le_bytes(bytes) % sides
}

/// Two lower-case hex digits a byte.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
