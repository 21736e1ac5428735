//! Anything as an ID token: only what the DataHUB's key has signed is taken, and only about this login.
//!
//! An input's first byte says what the others are: a whole token; claims, or a header, signed as only the DataHUB could; or a
//! change to a token that is good.
#![no_main]

use std::str::FromStr;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use arcmanager_gateway::datahub::discovery::{self, Metadata};
use arcmanager_gateway::datahub::id_token;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use openidconnect::core::{CoreIdToken, CoreJsonWebKeySet, CoreJwsSigningAlgorithm, CoreRsaPrivateSigningKey};
use openidconnect::{ClientId, ClientSecret, IssuerUrl, JsonWebKeyId, Nonce, PrivateSigningKey};
use serde_json::{Value, json};

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => assert_eq!(str::from_utf8(rest).ok().and_then(subject), None, "nobody else has the key"),
        1 => {
            if let Some(subject) = subject(&signed(HEADER.as_bytes(), rest)) {
                let claims = json(rest);
                assert!(is_about_this_login(&claims), "{claims}");
                assert_eq!(claims["sub"], subject);
            }
        }
        2 => {
            if subject(&signed(rest, CLAIMS.as_bytes())).is_some() {
                assert_eq!(json(rest)["alg"], "RS256");
            }
        }
        _ => {
            let mut token = DATAHUB.token.clone().into_bytes();
            for change in rest.chunks_exact(4) {
                let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % token.len();
                match change[2] % 3 {
                    0 => token[at] = change[3],
                    1 => token.insert(at, change[3]),
                    _ => token.truncate(at.max(1)),
                }
            }
            let subject = str::from_utf8(&token).ok().and_then(subject);
            assert!(subject.is_none_or(|subject| subject == "7"));
        }
    }
});

/// A member that nobody reads may be no text.
fn json(bytes: &[u8]) -> Value {
    serde_json::from_str(&String::from_utf8_lossy(bytes)).expect("what is taken is JSON")
}

/// Whom a token speaks of, if it is believed.
fn subject(token: &str) -> Option<String> {
    let token = CoreIdToken::from_str(token).ok()?;
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    let [client_id, nonce] = [CLIENT_ID, NONCE].map(str::to_owned);
    let (client_id, nonce) = (ClientId::new(client_id), Nonce::new(nonce));
    let secret = ClientSecret::new("0123456789abcdef0123456789abcdef".to_owned());
    let date = Some(now + Duration::from_secs(1));
    let subject = id_token::subject(&token, &DATAHUB.metadata, &client_id, &secret, &nonce, now, date);
    subject.ok().map(|subject| subject.to_string())
}

/// By OpenID Connect Core section 3.1.3.7, and what the gateway asks beside it.
fn is_about_this_login(claims: &Value) -> bool {
    let seconds = |name: &str| claims[name].as_f64();
    let (now, leeway) = (NOW as f64, 60.0);
    let is_client = |value: &Value| value == CLIENT_ID;
    let audience = match &claims["aud"] {
        Value::Array(values) => !values.is_empty() && values.iter().all(is_client),
        value => is_client(value),
    };
    claims["iss"] == ISSUER
        && audience
        && claims["nonce"] == NONCE
        && claims.get("azp").is_none_or(|azp| azp.is_null() || is_client(azp))
        && seconds("exp").is_some_and(|exp| exp > now - leeway)
        && seconds("iat").is_some_and(|iat| iat <= now + leeway && iat >= now - 600.0)
        && (claims["nbf"].is_null() || seconds("nbf").is_some_and(|nbf| nbf <= now + leeway))
        && claims["sub"].as_str().is_some_and(|sub| !sub.is_empty() && sub.len() <= 255 && sub.is_ascii())
}

struct DataHub {
    key: CoreRsaPrivateSigningKey,
    metadata: Metadata,
    /// A good one.
    token: String,
}

static DATAHUB: LazyLock<DataHub> = LazyLock::new(|| {
    let key = CoreRsaPrivateSigningKey::from_pem(KEY, Some(JsonWebKeyId::new("1".to_owned()))).expect("a key");
    let endpoint = |path: &str| format!("{ISSUER}/{path}");
    let document = json!({
        "issuer": ISSUER, "authorization_endpoint": endpoint("authorize"), "token_endpoint": endpoint("token"),
        "userinfo_endpoint": endpoint("userinfo"), "jwks_uri": endpoint("keys"), "response_types_supported": ["code"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["RS256"],
    });
    let issuer = IssuerUrl::new(ISSUER.to_owned()).expect("a URL");
    let metadata = discovery::metadata(document, &issuer).expect("good metadata");
    let keys = CoreJsonWebKeySet::new(vec![key.as_verification_key()]);
    let metadata = discovery::with_keys(metadata, keys).expect("a good key");
    let token = sign(&key, HEADER.as_bytes(), CLAIMS.as_bytes());
    DataHub { key, metadata, token }
});

fn signed(header: &[u8], claims: &[u8]) -> String {
    assert_eq!(subject(&DATAHUB.token).as_deref(), Some("7"), "else no refusal would mean anything");
    sign(&DATAHUB.key, header, claims)
}

fn sign(key: &CoreRsaPrivateSigningKey, header: &[u8], claims: &[u8]) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    let message = format!("{header}.{claims}");
    let signature = key.sign(&CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256, message.as_bytes()).expect("a good key");
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

const ISSUER: &str = "https://git.example.org";
const CLIENT_ID: &str = "fuzz";
const NONCE: &str = "n-0S6_WzA2Mj";
const NOW: u64 = 1_795_000_000;
const HEADER: &str = r#"{"alg":"RS256","kid":"1","typ":"JWT"}"#;
const CLAIMS: &str = r#"{"iss":"https://git.example.org","sub":"7","aud":"fuzz","exp":1795000120,"iat":1795000000,"nonce":"n-0S6_WzA2Mj"}"#;
/// Short, so that signing takes no time. It protects nothing.
const KEY: &str = "\
-----BEGIN RSA PRIVATE KEY-----\n\
MIIBPAIBAAJBAM4ATc8a6OEuwHlTo82OIXHaM5J630qD4DpD2FHzNRsCtw9LvtTV\n\
JngZZptqx4wwArr5MrxqbM8xisdLF4w18E0CAwEAAQJAVVVy5fPzvDQtrxSiqifS\n\
WuNUsb0MekWewQQRvADPYtxCBQGodXa8EzoJ/UhRGyPMaCj/eaXVVajS4Xf9Viua\n\
UQIhAPuC5zVkbJgFw7X3H4y2t3eSzLBHBBh5Fp4KaW4KnKADAiEA0a15uKJRiIGX\n\
T1Uszj7Zhhpa+6m92PYz48bZmfu5hW8CIQC92OCnd8dUtT02lHQXJjC0rHWfNevM\n\
gVJmNxu/+XiiewIhAJNpTckjvQSmbzVkIXMCtrVUNCD4TjOJrCN4OqXKVrzbAiEA\n\
r97el8kP4JED/wRUzwwtan62M0Ul5oYBuiDFQYGkSr8=\n\
-----END RSA PRIVATE KEY-----\n\
";
