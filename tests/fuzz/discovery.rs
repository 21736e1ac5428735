//! Anything as a DataHUB's metadata and keys: what is taken is of the issuer that was asked, leads to no other place for a second
//! reader of the same JSON, and has a key that can sign.
//!
//! An input is the metadata, a zero, and the keys.
#![no_main]

use arcmanager_gateway::datahub::discovery::{self, MetadataError};
use libfuzzer_sys::fuzz_target;
use openidconnect::IssuerUrl;
use openidconnect::core::CoreJsonWebKeySet;
use serde_json::Value;
use url::Url;

fuzz_target!(|input: &[u8]| {
    let (document, keys) = input.split_at(input.iter().position(|byte| *byte == 0).unwrap_or(input.len()));
    let Ok(document) = serde_json::from_slice::<Value>(document) else { return };
    let issuer = IssuerUrl::new(ISSUER.to_owned()).expect("a URL");
    let metadata = match discovery::metadata(document.clone(), &issuer) {
        Ok(metadata) => metadata,
        Err(error) => {
            let told = error.to_string();
            assert!(told.len() < 2_000 && !told.contains(char::is_control), "fit for a line of the log: {told:?}");
            return;
        }
    };
    assert_eq!(document["issuer"], ISSUER);
    for name in ["authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri", "revocation_endpoint"] {
        let Some(text) = document[name].as_str() else {
            assert!(name == "revocation_endpoint" && document[name].is_null(), "{name}");
            continue;
        };
        let url = Url::parse(text).expect("an endpoint is a URL");
        assert_eq!(url.origin().ascii_serialization(), ISSUER, "{name}");
    }
    let Ok(keys) = serde_json::from_slice::<Value>(keys.strip_prefix(b"\0").unwrap_or_default()) else { return };
    let Ok(set) = serde_json::from_value::<CoreJsonWebKeySet>(keys.clone()) else { return };
    let may_sign = |key: &Value| {
        let is = |name: &str, value: &str| key[name].is_null() || key[name] == value;
        key["kty"] == "RSA" && is("use", "sig") && is("alg", "RS256")
    };
    let can_sign = keys["keys"].as_array().is_some_and(|keys| keys.iter().any(may_sign));
    match discovery::with_keys(metadata, set) {
        Ok(_) => assert!(can_sign, "{keys}"),
        Err(error) => assert!(matches!(error, MetadataError::NoKey)),
    }
});

const ISSUER: &str = "https://git.example.org";
