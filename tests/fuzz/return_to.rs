//! Anything as where a person wants to go back to: what passes is a path of our own origin for a WHATWG parser too, whatever has
//! been decoded once on the way, and can be the value of a Location field.
#![no_main]

use actix_web::http::header::HeaderValue;
use arcmanager_gateway::auth::return_to::ReturnTo;
use libfuzzer_sys::fuzz_target;
use reference::decoded;
use url::Url;

fuzz_target!(|text: &str| {
    let Some(path) = ReturnTo::parse(text).map(ReturnTo::into_string) else { return };
    assert_eq!(path, text, "it is kept as it is");
    assert!(HeaderValue::from_str(&path).is_ok_and(|value| value.to_str().is_ok()));
    let public_url = Url::parse(PUBLIC_URL).expect("a URL");
    let (before_query, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let once = format!("{}{query}", String::from_utf8_lossy(&decoded(before_query.as_bytes())));
    // A front or the app may decode a path once, and a page may lie anywhere below the origin.
    for spelling in [&path, &once] {
        for base in [PUBLIC_URL, "https://arc.example.org/arcmanager/app/index.html?a#b"] {
            let there = Url::parse(base).and_then(|base| base.join(spelling)).expect("what passes leads somewhere");
            assert_eq!(there.origin(), public_url.origin(), "{spelling}");
            assert!(there.username().is_empty() && there.password().is_none());
        }
    }
    let there = public_url.join(&path).expect("as above");
    // Nothing is taken out of it: neither dots nor an empty segment.
    assert_eq!(there.path(), before_query);
});

const PUBLIC_URL: &str = "https://arc.example.org";
