//! ID tokens: who signed in, signed with RS256, good for two minutes.

use std::sync::LazyLock;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::RsaPrivateKey;
use rsa::pkcs1v15;
use rsa::pkcs8::DecodePrivateKey;
use rsa::signature::{SignatureEncoding, Signer};
use rsa::traits::PublicKeyParts;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::behaviour::SigningKey;
use crate::oauth::grants::{Pair, seconds};

/// The claims GitLab puts into it; a name is not among them. Only a code exchange passes a nonce.
pub fn sign(
    key: SigningKey,
    issuer: &str,
    audience: &str,
    pair: &Pair,
    nonce: Option<&str>,
    now: SystemTime,
) -> String {
    let now = seconds(now);
    let mut claims = json!({
        "iss": issuer,
        "sub": pair.user.to_string(),
        "aud": audience,
        "exp": now + LIFETIME_SECONDS,
        "iat": now,
        "auth_time": seconds(pair.signed_in),
    });
    if let Some(nonce) = nonce {
        claims["nonce"] = nonce.into();
    }
    let header = json!({ "typ": "JWT", "kid": key_id(key), "alg": "RS256" });
    let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let signature = pkcs1v15::SigningKey::<Sha256>::new(private(key).clone()).sign(signed.as_bytes());
    format!("{signed}.{}", encode(signature.to_bytes()))
}

/// What `jwks_uri` serves (RFC 7517).
pub fn key_set(key: SigningKey) -> Value {
    let (modulus, exponent) = public(key);
    json!({ "keys": [{ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": key_id(key), "n": modulus, "e": exponent }] })
}

/// The key's thumbprint (RFC 7638), as GitLab does it.
fn key_id(key: SigningKey) -> String {
    let (modulus, exponent) = public(key);
    encode(Sha256::digest(format!(r#"{{"e":"{exponent}","kty":"RSA","n":"{modulus}"}}"#)))
}

fn public(key: SigningKey) -> (String, String) {
    (encode(private(key).n().to_bytes_be()), encode(private(key).e().to_bytes_be()))
}

fn private(key: SigningKey) -> &'static RsaPrivateKey {
    static FIRST: LazyLock<RsaPrivateKey> = LazyLock::new(|| read(include_str!("../../keys/first.pem")));
    static SECOND: LazyLock<RsaPrivateKey> = LazyLock::new(|| read(include_str!("../../keys/second.pem")));
    match key {
        SigningKey::First => &FIRST,
        SigningKey::Second => &SECOND,
    }
}

fn read(pem: &str) -> RsaPrivateKey {
    RsaPrivateKey::from_pkcs8_pem(pem).expect("the two keys in `keys/` are sound, every sign-in test reads them")
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// GitLab's default.
const LIFETIME_SECONDS: u64 = 120;
