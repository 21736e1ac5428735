//! The `data` cookie of the ARCmanager's old backend: an RS256 JWT around two Fernet tokens.
//!
//! The backend opens it with the public key and the Fernet key (`getData` in its `projects.py`):
//!
//! ```text
//! data    = JWT (RFC 7519), RS256, of {"gitlab": FERNET, "target": DATAHUB, "refresh": FERNET}
//! FERNET  = base64url with padding of: 0x80 | time (8 bytes, seconds, big-endian) | IV (16) | AES-128-CBC, PKCS #7 | HMAC (32)
//! ```
//!
//! `gitlab` holds the access token. `refresh` holds a random text: the backend's own routes for logins are not behind the
//! gateway, nothing else of it reads that, and a refresh token that is used twice ends the session. The *Fernet key* is 32
//! bytes: the first half signs all that stands before the HMAC (SHA-256), the second half encrypts.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aes_gcm::aes::Aes128;
use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeEncrypt, KeyIvInit};
use hmac::{Hmac, Mac};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::datahub::DataHubId;
use crate::seal;
use crate::session::open_session::OpenSession;

/// The keys that the old backend opens its cookies with. Clones hold the same ones, which may be replaced while others read.
#[derive(Debug, Clone)]
pub struct DataCookieKeys(Arc<ArcSwap<Keys>>);

#[derive(Debug)]
struct Keys {
    jwt: JwtKey,
    fernet: FernetKey,
}

impl DataCookieKeys {
    /// What signs the JWT, and what encrypts the tokens in it.
    pub fn new(jwt: JwtKey, fernet: FernetKey) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Keys { jwt, fernet })))
    }

    /// From now on holds the keys of `other`, for everybody who has a clone.
    pub fn replace_by(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    /// A cookie's value for one call: the access token of `session` at `datahub`.
    pub fn mint(&self, session: &OpenSession, datahub: &DataHubId, now: SystemTime) -> Zeroizing<String> {
        let keys = self.0.load();
        // Large enough for any token, so that it never moves and leaves a copy behind.
        let mut token = Zeroizing::new(Vec::with_capacity(MAX_TOKEN));
        session.write_bearer(&mut token);
        let mut random = [0; 32];
        seal::random(&mut random);
        let refresh = URL_SAFE_NO_PAD.encode(random);
        let [gitlab, refresh] = [&token, refresh.as_bytes()].map(|text| keys.fernet.encrypt(text, now));
        // An id and base64 need no escapes in JSON.
        keys.jwt.sign(&format!(r#"{{"gitlab":"{gitlab}","target":"{datahub}","refresh":"{refresh}"}}"#))
    }
}

/// An RSA private key, which signs JWTs: less than half a millisecond each with 2048 bits (`docs/speed.md`). What it was read from is
/// wiped; ring itself wipes no key.
pub struct JwtKey(KeyPair);

impl JwtKey {
    /// The first private key in `pem`: PKCS #8 or PKCS #1, of 2048 to 4096 bits.
    ///
    /// # Errors
    /// [`BridgeKeyError`]
    pub fn from_pem(pem: &[u8]) -> Result<Self, BridgeKeyError> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|_| BridgeKeyError::NoPrivateKey)?;
        let der = Zeroizing::new(der);
        let pair = match &*der {
            PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err(BridgeKeyError::NotRsa),
        };
        pair.map(Self).map_err(|_| BridgeKeyError::NotRsa)
    }

    /// The JWT of these claims.
    fn sign(&self, claims: &str) -> Zeroizing<String> {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", encode(br#"{"alg":"RS256","typ":"JWT"}"#), encode(claims.as_bytes()));
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("the signature is as long as the modulus, and the system's random generator works");
        Zeroizing::new(format!("{signed}.{}", encode(&signature)))
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtKey([redacted])")
    }
}

/// A Fernet key (<https://github.com/fernet/spec>), which encrypts and signs.
pub struct FernetKey {
    signing: [u8; 16],
    encryption: [u8; 16],
}

impl FernetKey {
    /// Base64url of 32 bytes, with padding, as Python's `Fernet.generate_key` writes it; white space around it does not count.
    ///
    /// # Errors
    /// [`BridgeKeyError`]
    pub fn parse(text: &str) -> Result<Self, BridgeKeyError> {
        let bytes = Zeroizing::new(URL_SAFE.decode(text.trim()).map_err(|_| BridgeKeyError::NotFernet)?);
        let (signing, encryption) = bytes.split_at_checked(16).ok_or(BridgeKeyError::NotFernet)?;
        let half = |half: &[u8]| half.try_into().map_err(|_| BridgeKeyError::NotFernet);
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(BridgeKeyError::Weak);
        }
        Ok(Self { signing: half(signing)?, encryption: half(encryption)? })
    }

    fn encrypt(&self, text: &[u8], now: SystemTime) -> String {
        let mut iv = [0; 16];
        seal::random(&mut iv);
        self.encrypt_with(text, now, iv)
    }

    /// The token of `text`. Never encrypt twice with one `iv`.
    fn encrypt_with(&self, text: &[u8], now: SystemTime, iv: [u8; 16]) -> String {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // There is always padding: a whole block of it where the text ends with one.
        let end = FERNET_HEAD + (text.len() / 16 + 1) * 16;
        let mut token = Zeroizing::new(Vec::with_capacity(end + 32));
        token.push(FERNET_VERSION);
        token.extend_from_slice(&seconds.to_be_bytes());
        token.extend_from_slice(&iv);
        token.extend_from_slice(text);
        token.resize(end, 0);
        cbc::Encryptor::<Aes128>::new((&self.encryption).into(), (&iv).into())
            .encrypt_padded::<Pkcs7>(&mut token[FERNET_HEAD..], text.len())
            .expect("there is room for the padding");
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.signing).expect("a key of any length will do");
        mac.update(&token);
        token.extend_from_slice(&mac.finalize().into_bytes());
        URL_SAFE.encode(&*token)
    }
}

impl Drop for FernetKey {
    fn drop(&mut self) {
        self.signing.zeroize();
        self.encryption.zeroize();
    }
}

impl fmt::Debug for FernetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FernetKey([redacted])")
    }
}

/// Why a file holds no key for the bridge. Never holds the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BridgeKeyError {
    /// No PEM, or one of something else.
    #[error("holds no private key in PEM; the public key stays with the backend, and an encrypted one cannot be read")]
    NoPrivateKey,
    /// A private key that RS256 cannot use.
    #[error("holds a private key that is not RSA of 2048 to 4096 bits")]
    NotRsa,
    /// Some other text.
    #[error("is not base64url of 32 bytes with padding, as Python's Fernet.generate_key() writes it")]
    NotFernet,
    /// All bytes are equal.
    #[error("is not random")]
    Weak,
}

/// Longest access token, in bytes: it fits into a cookie.
const MAX_TOKEN: usize = 4096;
/// The only version there is.
const FERNET_VERSION: u8 = 0x80;
/// Length of version, time and IV, in bytes.
const FERNET_HEAD: usize = 1 + 8 + 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// `generate.json` of the specification.
    #[test]
    fn a_token_is_that_of_the_specification() {
        let key = FernetKey::parse("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=").expect("a good key");
        let seconds = 499_162_800;
        let now = UNIX_EPOCH + Duration::from_secs(seconds);
        let iv = std::array::from_fn(|at| u8::try_from(at).expect("at most 15"));
        assert_eq!(
            key.encrypt_with(b"hello", now, iv),
            "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA=="
        );
    }

    #[test]
    fn no_two_tokens_of_one_text_are_alike_and_every_length_has_padding() {
        let key = FernetKey::parse("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=\n").expect("a good key");
        for length in [0, 1, 15, 16, 17, 64, 3_000] {
            let text = vec![b'x'; length];
            let [one, other] = [(), ()].map(|()| key.encrypt(&text, UNIX_EPOCH));
            assert_ne!(one, other);
            assert_eq!(URL_SAFE.decode(one).expect("base64").len(), FERNET_HEAD + (length / 16 + 1) * 16 + 32);
        }
    }

    #[test]
    fn what_is_no_fernet_key_is_refused() {
        for (text, expected) in [
            ("", BridgeKeyError::NotFernet),
            ("canary", BridgeKeyError::NotFernet),
            ("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4", BridgeKeyError::NotFernet),
            ("cw/0x689RpI+jtRR7oE8h/eQsKImvJapLeSbXpwF4e4=", BridgeKeyError::NotFernet),
            ("cw_0x689RpI-jtRR7oE8hw==", BridgeKeyError::NotFernet),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", BridgeKeyError::Weak),
        ] {
            assert_eq!(FernetKey::parse(text).map(|_| ()), Err(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_rsa_private_key_is_refused() {
        let elliptic = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        for (case, pem, expected) in [
            ("nothing", "", BridgeKeyError::NoPrivateKey),
            ("no PEM", "canary", BridgeKeyError::NoPrivateKey),
            (
                "a public key",
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
                BridgeKeyError::NoPrivateKey,
            ),
            ("another kind", &elliptic, BridgeKeyError::NotRsa),
            ("a wrong one", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", BridgeKeyError::NotRsa),
        ] {
            assert_eq!(JwtKey::from_pem(pem.as_bytes()).map(|_| ()), Err(expected), "{case}");
        }
    }

    #[test]
    fn no_debug_output_shows_a_key() {
        let key = FernetKey::parse("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=").expect("a good key");
        assert_eq!(format!("{key:?}"), "FernetKey([redacted])");
    }
}
