//! Strings of hex digits: digests, and tokens nobody can guess.

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

/// Two lower-case hex digits a byte.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
