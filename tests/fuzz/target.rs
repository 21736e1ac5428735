//! Anything as a target: what passes is the very bytes, on the same host for a WHATWG parser too.
#![no_main]

use arcmanager_gateway::proxy::target::{Policy, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|raw: &str| {
    // What a request's line may hold: actix-http's parser has refused everything else before.
    if !raw.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>#`{}|^".contains(&byte)) {
        return;
    }
    for graphql in [false, true] {
        let policy = Policy { graphql, exceptions: Vec::new() };
        // An escape is seen through: another way leads to the same verdict.
        if let Some(rest) = raw.strip_prefix("/api/v4/") {
            let escaped = format!("/%61pi/v4/{rest}");
            let verdict = |raw| Target::parse(raw, &policy).map(|_| ());
            assert_eq!(verdict(&escaped), verdict(raw));
        }
        if let Ok(target) = Target::parse(raw, &policy) {
            assert_eq!(target.as_str(), raw);
            let url = url::Url::parse(&format!("http://hub{raw}")).expect("what is forwarded is a URL");
            // A quote in a query is the one thing that it encodes and we do not.
            assert_eq!(url.as_str().replace("%27", "'"), format!("http://hub{raw}").replace("%27", "'"));
            assert_eq!(target.is_graphql(), raw == "/api/graphql");
        }
    }
});
