//! The client for apps, as the gateway serves it; what it does is tested in `tests/clients` and `tests/browser`.

use crate::browser::{Answer, Browser, FETCH, NAVIGATION};
use crate::gateway::{BASE, Gateway, Setup, datahub};

const MODULE: &str = "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: script\r\n";

fn send(gateway: &Gateway, method: &str, name: &str, fields: &str) -> Answer {
    Browser::default().send(gateway, method, &format!("{BASE}/{name}"), fields, b"")
}

#[test]
fn the_client_is_served_to_whoever_loads_it() {
    let gateway = Setup::new(&[("a", &datahub())]).start();
    for (name, kind, text) in [
        ("client.js", "text/javascript; charset=utf-8", include_str!("../../client/client.js")),
        ("client.d.ts", "text/plain; charset=utf-8", include_str!("../../client/client.d.ts")),
    ] {
        for fields in [MODULE, FETCH, NAVIGATION, ""] {
            let answer = send(&gateway, "GET", name, fields);
            assert_eq!((answer.status, answer.text().as_str()), (200, text), "{name} {fields}");
            assert_eq!(answer.header("content-type").as_deref(), Some(kind));
            assert_eq!(answer.header("x-content-type-options").as_deref(), Some("nosniff"));
            // No other origin may run it.
            assert_eq!(answer.header("cross-origin-resource-policy").as_deref(), Some("same-origin"));
        }
        let head = send(&gateway, "HEAD", name, MODULE);
        assert_eq!((head.status, head.header("content-length")), (200, Some(text.len().to_string())), "{name}");
        let refused = send(&gateway, "POST", name, FETCH);
        assert_eq!((refused.status, refused.code().as_str()), (405, "method_not_allowed"), "{name}");
        assert_eq!(refused.header("allow").as_deref(), Some("GET, HEAD"));
    }
    // Its twins: nothing else is there, and what is beside it stays shut.
    assert_eq!(send(&gateway, "GET", "client.js.map", FETCH).code(), "not_found");
    assert_eq!(send(&gateway, "GET", "auth/session", MODULE).code(), "cross_site_request");
}

/// A front that compresses makes the tag a weak one.
#[test]
fn a_browser_gets_the_client_again_only_if_it_has_changed() {
    let gateway = Setup::new(&[("a", &datahub())]).start();
    let first = send(&gateway, "GET", "client.js", MODULE);
    let tag = first.header("etag").expect("one");
    assert_eq!(first.header("cache-control").as_deref(), Some("no-cache"));
    assert_ne!(send(&gateway, "GET", "client.d.ts", MODULE).header("etag"), Some(tag.clone()));
    for (known, status) in [
        (tag.clone(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"other\", {tag}"), 304),
        ("*".into(), 304),
        ("\"other\"".into(), 200),
        ("nonsense".into(), 200),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = send(&gateway, method, "client.js", &format!("{MODULE}If-None-Match: {known}\r\n"));
            assert_eq!((answer.status, answer.header("etag")), (status, Some(tag.clone())), "{method} {known}");
            assert_eq!(answer.text().is_empty(), status == 304 || method == "HEAD", "{method} {known}");
        }
    }
}

/// A development server's page loads it from here, by CORS.
#[test]
fn a_development_origin_may_load_the_client() {
    let origin = "http://localhost:5173";
    let gateway = Setup::new(&[("a", &datahub())]).and(&format!("app.dev_origins = [{origin:?}]")).start();
    let module = "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: script\r\n";
    for (from, allowed) in [(origin, Some(origin)), ("http://localhost:5174", None)] {
        let answer = send(&gateway, "GET", "client.js", &format!("Origin: {from}\r\n{module}"));
        assert_eq!(answer.header("access-control-allow-origin").as_deref(), allowed, "{from}");
    }
}
