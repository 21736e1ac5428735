//! Whose script may call.

use crate::browser::{Browser, FETCH, NAVIGATION};
use crate::gateway::{BASE, Folder, Setup, datahub};

const GUARDED: [(&str, &str); 6] = [
    ("GET", "/auth/session"),
    ("POST", "/auth/refresh"),
    ("POST", "/auth/logout"),
    ("GET", "/datahubs/a/api/v4/user"),
    ("POST", "/datahubs/a/api/v4/projects/230/issues"),
    ("GET", "/nothing/here"),
];

/// CS-01, CS-02, CS-03, CS-05, PR-06, EL-06.
#[test]
fn every_guarded_route_wants_proof_that_our_own_script_is_calling() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    for (method, path) in GUARDED {
        for (case, fields) in [
            ("nothing", ""),
            ("a person opens it", NAVIGATION),
            ("another site fetches", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"),
            ("a sibling fetches", "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"),
            ("an image", "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n"),
            ("a form", "Content-Type: text/plain\r\n"),
            ("the header with another value", "X-CSRF: 0\r\n"),
            ("the header twice", "X-CSRF: 1\r\nX-CSRF: 1\r\n"),
            ("another origin", "X-CSRF: 1\r\nOrigin: http://localhost:5173\r\n"),
            ("no origin", "X-CSRF: 1\r\nOrigin: null\r\n"),
            (
                "a service worker",
                "Service-Worker: script\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: same-origin\r\nSec-Fetch-Dest: serviceworker\r\n",
            ),
            ("part of the metadata", "Sec-Fetch-Site: same-origin\r\nX-CSRF: 1\r\n"),
        ] {
            let answer = browser.send(&gateway, method, &format!("{BASE}{path}"), fields, b"");
            assert_eq!((answer.status, answer.code().as_str()), (403, "cross_site_request"), "{method} {path}: {case}");
        }
    }
    assert!(hub.requests().is_empty(), "nothing was forwarded, nothing revoked");
    gateway.wait_for_event("cross_site_refused");
    for line in gateway.log().iter().filter(|line| line["event"] == "cross_site_refused") {
        assert_eq!(line["request_id"].as_str().map(str::len), Some(32), "{line}");
        assert_eq!(line["client"], "127.0.0.1", "{line}");
    }
    for (method, path) in GUARDED {
        for fields in [FETCH, "X-CSRF: 1\r\n", "X-CSRF: 1\r\nOrigin: http://localhost:8000\r\n"] {
            let answer = browser.copy().send(
                &gateway,
                method,
                &format!("{BASE}{path}"),
                &format!("{fields}Content-Length: 0\r\n"),
                b"",
            );
            assert_ne!(answer.status, 403, "{method} {path}: {}", answer.text());
        }
    }
}

/// CS-01, CS-02, PR-05: whichever way a path is written, and wherever the app's files are.
#[test]
fn an_app_at_the_root_opens_nothing_but_its_files() {
    let hub = datahub();
    let folder = Folder::default();
    folder.file("index.html", "the app");
    let place = folder.path().to_str().expect("a plain path");
    let fields = "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for url in ["/", "/arcmanager/", "/arcmanager/app/"] {
        let gateway = Setup::new(&[("a", &hub)]).and(&format!("app.url = \"{url}\"\napp.dir = {place:?}")).start();
        let browser = Browser::default();
        let file = browser.send(&gateway, "GET", url, fields, b"");
        assert_eq!((file.status, file.text().as_str()), (200, "the app"), "{url}");
        assert!(file.header("content-security-policy").expect("one").starts_with("default-src 'self'"), "{url}");
        let posted = browser.send(&gateway, "POST", &format!("{url}index.html"), FETCH, b"");
        assert_eq!((posted.status, posted.code().as_str()), (405, "method_not_allowed"), "{url}");
        assert_eq!(posted.header("allow").as_deref(), Some("GET, HEAD"), "{url}");
        for path in [
            "/arcmanager/api/v1/auth/session",
            "/arcmanager/%61pi/v1/auth/session",
            "/arcmanager/api/%761/auth/session",
            "/arcmanager/api/v1/%61uth/session",
            "/arcmanager/api/v1/auth/sessio%6e",
            "/arcmanager/%61pi/v1/datahubs/a/api/v4/user",
            "/arcmanager/api/v1",
        ] {
            let refused = browser.send(&gateway, "GET", path, fields, b"");
            assert_eq!(refused.code(), "cross_site_request", "{url}, {path}");
            for answer in [refused, browser.send(&gateway, "GET", path, FETCH, b"")] {
                let policy = answer.header("content-security-policy").expect("one");
                assert!(policy.contains("sandbox"), "{url}, {path}: {policy}");
                assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"), "{url}, {path}");
            }
        }
    }
}

#[test]
fn the_open_routes_want_no_proof() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)])
        .and("datahubs.a.name = \"DataHUB A\"\ndatahubs.a.description = \"The first\"")
        .start();
    let answer = Browser::default().send(&gateway, "GET", &format!("{BASE}/datahubs"), "", b"");
    let expected = serde_json::json!([{"id": "a", "name": "DataHUB A", "description": "The first", "url": hub.url()}]);
    assert_eq!((answer.status, answer.json()), (200, expected));
}

/// CS-04.
#[test]
fn no_other_origin_gets_cors_headers() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let asks = "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: x-csrf\r\n";
    for origin in ["https://evil.test", "http://localhost:5173", "null", "http://localhost:8000"] {
        for path in ["/auth/session", "/datahubs", "/datahubs/a/api/v4/user"] {
            let answer = Browser::default().send(
                &gateway,
                "OPTIONS",
                &format!("{BASE}{path}"),
                &format!("Origin: {origin}\r\n{asks}"),
                b"",
            );
            assert!(!answer.head.to_lowercase().contains("access-control"), "{origin} {path}: {}", answer.head);
        }
    }
    assert!(hub.requests().iter().all(|request| request.method() != "OPTIONS"));
}

#[test]
fn a_development_origin_may_call_and_read() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("app.dev_origins = [\"http://localhost:5173\"]").start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let origin = "Origin: http://localhost:5173\r\n";
    let asks =
        format!("{origin}Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: content-type\r\n");
    let preflight = browser.send(&gateway, "OPTIONS", &format!("{BASE}/datahubs/a/api/v4/user"), &asks, b"");
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-origin").as_deref()),
        (204, Some("http://localhost:5173"))
    );
    let metadata = format!("{origin}Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n");
    for path in ["/datahubs/a/api/v4/user", "/auth/session", "/datahubs"] {
        let answer = browser.send(&gateway, "GET", &format!("{BASE}{path}"), &metadata, b"");
        assert_eq!(
            (answer.status, answer.header("access-control-allow-credentials").as_deref()),
            (200, Some("true")),
            "{path}"
        );
        assert!(answer.headers("vary").join(",").contains("Origin"));
    }
    let other = metadata.replace("5173", "4173");
    assert_eq!(
        browser.send(&gateway, "GET", &format!("{BASE}/auth/session"), &other, b"").code(),
        "cross_site_request"
    );
}

#[test]
fn a_download_is_an_attachment_and_nothing_else() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let link = "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: empty\r\n";
    let file = format!("{BASE}/datahubs/a/api/v4/projects/230/repository/files/README.md/raw?ref=main");
    let answer = browser.send(&gateway, "GET", &file, link, b"");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-disposition").expect("one").starts_with("attachment"));
    assert!(answer.header("content-security-policy").expect("one").contains("sandbox"));
    assert_eq!(answer.header("x-content-type-options").as_deref(), Some("nosniff"));
    let refused = browser.send(&gateway, "GET", &format!("{BASE}/datahubs/a/oauth/token"), link, b"");
    assert_eq!((refused.status, refused.header("content-disposition").as_deref()), (404, Some("attachment")));
    for (method, target) in [("POST", file.as_str()), ("GET", &format!("{BASE}/auth/session"))] {
        assert_eq!(browser.send(&gateway, method, target, link, b"").code(), "cross_site_request", "{method} {target}");
    }
}
