//! Anything as a target: what passes is the very bytes, on the same host for a WHATWG parser too.
#![no_main]

use arcmanager_gateway::proxy::policy::Policy;
use arcmanager_gateway::proxy::target::Target;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &str| {
    // What a request's line may hold: `http::head` has refused everything else before.
    let (path, query) = raw.split_at(raw.find('?').unwrap_or(raw.len()));
    let is_good = |part: &str, bad: &[u8]| part.bytes().all(|byte| byte.is_ascii_graphic() && !bad.contains(&byte));
    if !is_good(path, b"#<>`") || !is_good(query, b"#<>\"") {
        return;
    }
    for (method, graphql) in [("GET", false), ("POST", true), ("DELETE", true)] {
        let policy = Policy::new(graphql, &[], Vec::new());
        // An escape is seen through: another way leads to the same verdict.
        if let Some(rest) = raw.strip_prefix("/api/v4/") {
            let escaped = format!("/%61pi/v4/{rest}");
            let verdict = |raw| Target::parse(method, raw, &policy).map(|_| ());
            assert_eq!(verdict(&escaped), verdict(raw));
        }
        if let Ok(target) = Target::parse(method, raw, &policy) {
            assert_eq!(target.as_str(), raw);
            let url = url::Url::parse(&format!("http://hub{raw}")).expect("what is forwarded is a URL");
            // These it encodes and we do not.
            let plain = |url: &str| {
                let pairs = [("%22", "\""), ("%27", "'"), ("%5E", "^"), ("%7B", "{"), ("%7C", "|"), ("%7D", "}")];
                pairs.iter().fold(url.to_owned(), |url, (code, plain)| url.replace(code, plain))
            };
            assert_eq!(plain(url.as_str()), plain(&format!("http://hub{raw}")));
            assert_eq!(target.is_graphql(), raw == "/api/graphql");
        }
    }
});
