//! Whose script may call.

use std::time::Duration;

use datahub::record::Recorded;

use crate::browser::{Browser, FETCH, NAVIGATION, sign_in};
use crate::gateway::{BASE, Folder, Setup, datahub};
use crate::token_endpoint::lifetime;

/// With the status of a call that is let in.
const GUARDED: [(&str, &str, u16); 6] = [
    ("GET", "/auth/session", 200),
    ("GET", "/datahubs/a/api/v4/user", 200),
    // The DataHUB's own: an issue has a title.
    ("POST", "/datahubs/a/api/v4/projects/230/issues", 400),
    ("GET", "/nothing/here", 404),
    ("POST", "/auth/refresh", 200),
    ("POST", "/auth/logout", 204),
];

/// CS-01, CS-02, CS-03, CS-05, PR-06, EL-06.
#[test]
fn every_guarded_route_wants_proof_that_our_own_script_is_calling() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    for (method, path, _) in GUARDED {
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
            (
                "another site's form with a file",
                "Origin: https://evil.test\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nContent-Type: multipart/form-data; boundary=X\r\n",
            ),
            (
                "a sibling's form with a file",
                "Origin: http://x.localhost:8000\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nContent-Type: multipart/form-data; boundary=X\r\n",
            ),
        ] {
            let answer = browser.send(&gateway, method, &format!("{BASE}{path}"), fields, b"");
            assert_eq!((answer.status, answer.code().as_str()), (403, "cross_site_request"), "{method} {path}: {case}");
            assert!(answer.headers("set-cookie").is_empty(), "{method} {path}: {case}");
        }
    }
    assert!(hub.requests().is_empty(), "nothing was forwarded, nothing revoked");
    gateway.wait_for_event("cross_site_refused");
    for line in gateway.log().iter().filter(|line| line["event"] == "cross_site_refused") {
        assert_eq!(line["request_id"].as_str().map(str::len), Some(32), "{line}");
        assert_eq!(line["client"], "127.0.0.1", "{line}");
    }
    for (method, path, expected) in GUARDED {
        for fields in [FETCH, "X-CSRF: 1\r\n", "X-CSRF: 1\r\nOrigin: http://localhost:8000\r\n"] {
            let answer = browser.copy().send(
                &gateway,
                method,
                &format!("{BASE}{path}"),
                &format!("{fields}Content-Length: 0\r\n"),
                b"",
            );
            assert_eq!(answer.status, expected, "{method} {path}: {}", answer.text());
        }
    }
    let is_issue = |request: &Recorded| request.path() == "/api/v4/projects/230/issues";
    assert_eq!(hub.requests().into_iter().filter(is_issue).count(), 3, "each of them was forwarded");
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
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let asks = "Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: x-csrf\r\n";
    for origin in ["https://evil.test", "http://localhost:5173", "null", "http://localhost:8000"] {
        for path in ["/auth/session", "/datahubs", "/datahubs/a/api/v4/user"] {
            let answer = browser.send(
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

/// CS-04: an address as in production, and origins that look like it.
#[test]
fn in_production_no_origin_is_told_anything_and_ours_needs_not_be() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("server.public_url = \"https://nfdi4plants.de\"").start();
    let send = |method: &str, path: &str, fields: &str| {
        let fields = format!("Host: nfdi4plants.de\r\n{fields}");
        Browser::default().send(&gateway, method, &format!("{BASE}{path}"), &fields, b"")
    };
    let own = format!("Origin: https://nfdi4plants.de\r\n{FETCH}");
    for origin in [
        "http://localhost:5173",
        "http://localhost:4173",
        "http://localhost",
        "https://localhost",
        "null",
        "https://nfdi4plants.de.evil.test",
        "https://evil.test",
        "https://evilnfdi4plants.de",
        "https://www.nfdi4plants.de",
        "http://nfdi4plants.de",
        "https://nfdi4plants.de:443",
        "https://nfdi4plants.de:8443",
        "https://nfdi4plants.de:80",
        "https://nfdi4plants.de/",
        "https://nfdi4plants.de/arcmanager/app/index.html",
        "https://user@nfdi4plants.de",
        "HTTPS://NFDI4PLANTS.DE",
        "https://nfdi4plants.de https://evil.test",
        "https://nfdi4plants.de, https://evil.test",
        "*",
    ] {
        let field = format!("Origin: {origin}\r\n");
        let asks = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: content-type, x-evil\r\n";
        for (method, path, fields) in [
            ("OPTIONS", "/auth/session", format!("{field}{asks}")),
            ("OPTIONS", "/datahubs/a/api/v4/user", format!("{field}{asks}")),
            ("GET", "/datahubs", field.clone()),
            ("GET", "/auth/session", field.clone() + "X-CSRF: 1\r\n"),
            ("GET", "/auth/session", field.clone() + &FETCH.replace("same-origin", "cross-site")),
            ("POST", "/auth/logout", field.clone() + "X-CSRF: 1\r\nContent-Length: 0\r\n"),
        ] {
            let answer = send(method, path, &fields);
            let head = answer.head.to_lowercase();
            assert!(!head.contains("access-control") && !head.contains("x-evil"), "{origin} {method}: {head}");
            assert!(answer.status == 403 || path == "/datahubs", "{origin} {method} {path}: {}", answer.status);
        }
    }
    assert!(hub.requests().is_empty());
    for (method, path, status) in
        [("GET", "/auth/session", 200), ("POST", "/auth/logout", 204), ("GET", "/datahubs", 200)]
    {
        let answer = send(method, path, &format!("{own}Content-Length: 0\r\n"));
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert!(!answer.head.to_lowercase().contains("access-control"), "{}", answer.head);
    }
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

/// A page on a development server leads to a login, comes back to where it was, and asks for newer tokens by itself.
#[test]
fn a_development_page_logs_in_and_comes_back() {
    const DEV: &str = "http://localhost:5173";
    let hub = lifetime(2);
    let with_dev = Setup::new(&[("a", &hub)])
        .and("app.dev_origins = [\"http://localhost:4173\", \"http://localhost:5173\"]")
        .start();
    let without = Setup::new(&[("a", &hub)]).start();
    let navigation = "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    let from = |origin: &str| format!("{navigation}Referer: {origin}/\r\n");
    let login = |query: &str| format!("{BASE}/auth/login?datahub=a{query}");
    let refused = Browser::default().send(&without, "GET", &login(""), &from(DEV), b"");
    assert_eq!(
        (refused.status, refused.location().as_str()),
        (303, "/arcmanager/app/"),
        "no such origin is configured"
    );
    let begun = Browser::default();
    for (query, origin, lands) in [
        ("", DEV, "http://localhost:5173/arcmanager/app/"),
        ("&return_to=%2Fx%3Fa%3Db", DEV, "http://localhost:5173/x?a=b"),
        ("&return_to=%2F%2Fevil.test", DEV, "http://localhost:5173/arcmanager/app/"),
        // A page that does not say which one it is.
        ("", "http://localhost:6173", "http://localhost:4173/arcmanager/app/"),
    ] {
        let answer = begun.send(&with_dev, "GET", &login(query), &from(origin), b"");
        assert_eq!(answer.status, 302, "{query}");
        let callback = sign_in(&hub, &answer.location(), "user=testuser");
        let back = begun.open(&with_dev, &callback);
        assert_eq!((back.status, back.location().as_str()), (303, lands), "{query}");
    }
    let call =
        format!("Origin: {DEV}\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n");
    let user = |fields: &str| begun.send(&with_dev, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), fields, b"");
    assert_eq!(user(&call).status, 200);
    std::thread::sleep(Duration::from_millis(1_600));
    let stale = user(&call);
    assert_eq!((stale.status, stale.code().as_str()), (409, "refresh_first"));
    assert_eq!(stale.header("access-control-allow-origin").as_deref(), Some(DEV));
    assert_eq!(hub.counts().refreshes, 0, "nothing is spent on the way");
    let refreshed =
        begun.send(&with_dev, "POST", &format!("{BASE}/auth/refresh"), &format!("{call}Content-Length: 0\r\n"), b"");
    assert_eq!((refreshed.status, user(&call).status), (200, 200));
    begun.keep_jar_secret(&with_dev);
}

/// CS-01, as each engine follows `<a download>` of our own page; and what else a browser navigates by.
#[test]
fn a_download_is_an_attachment_and_nothing_else() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    let link =
        |site, mode, dest| format!("Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n");
    let navigation = |site, dest| link(site, "navigate", dest);
    let from = |referer: &str| format!("Referer: {referer}\r\n");
    let file = format!("{BASE}/datahubs/a/api/v4/projects/230/repository/files/README.md/raw?ref=main");
    let taken = [
        ("Chromium", navigation("same-origin", "empty")),
        ("Firefox", navigation("same-origin", "document")),
        ("WebKit", from("http://localhost:8000/arcmanager/app/?a=b")),
        ("WebKit, from the origin alone", from("http://localhost:8000/")),
    ];
    for (case, fields) in &taken {
        for method in ["GET", "HEAD"] {
            let answer = browser.send(&gateway, method, &file, fields, b"");
            assert_eq!(answer.status, 200, "{case} {method}");
            assert!(answer.header("content-disposition").expect("one").starts_with("attachment"), "{case} {method}");
            assert!(answer.header("content-security-policy").expect("one").contains("sandbox"), "{case} {method}");
            assert_eq!(answer.header("x-content-type-options").as_deref(), Some("nosniff"), "{case} {method}");
            assert_eq!(
                answer.header("cross-origin-resource-policy").as_deref(),
                Some("same-origin"),
                "{case} {method}"
            );
        }
        let refused = browser.send(&gateway, "GET", &format!("{BASE}/datahubs/a/oauth/token"), fields, b"");
        assert_eq!(
            (refused.status, refused.header("content-disposition").as_deref()),
            (404, Some("attachment")),
            "{case}"
        );
        for (method, target) in [("POST", file.as_str()), ("GET", &format!("{BASE}/auth/session"))] {
            let answer = browser.send(&gateway, method, target, fields, b"");
            assert_eq!(answer.code(), "cross_site_request", "{case}: {method} {target}");
        }
        let with_origin = format!("{fields}Origin: http://localhost:8000\r\n");
        assert_eq!(
            browser.send(&gateway, "GET", &file, &with_origin, b"").code(),
            "cross_site_request",
            "{case}, Origin"
        );
    }
    let asked = hub.requests().len();
    assert_eq!(asked, 2 * taken.len());
    for (case, fields) in [
        ("a typed address or a bookmark", navigation("none", "document")),
        ("a link of another site", navigation("cross-site", "document")),
        ("a link of a sibling", navigation("same-site", "document")),
        ("a sibling's download", navigation("same-site", "empty")),
        ("a frame", navigation("same-origin", "iframe")),
        ("an object", navigation("same-origin", "object")),
        ("a script", link("same-origin", "no-cors", "script")),
        ("an image", link("same-origin", "no-cors", "image")),
        ("a typed address without metadata", String::new()),
        ("a page of another site without metadata", from("https://evil.test/http://localhost:8000/")),
        ("a sibling without metadata", from("http://x.localhost:8000/")),
        ("another port without metadata", from("http://localhost:80001/")),
        ("a host that begins alike", from("http://localhost:8000.evil.test/")),
        ("a name before ours", from("http://localhost:8000@evil.test/")),
        ("another scheme", from("https://localhost:8000/")),
        ("no path", from("http://localhost:8000")),
        ("two pages", from("http://localhost:8000/") + &from("http://localhost:8000/")),
        ("our page and a wrong header", from("http://localhost:8000/") + "X-CSRF: 0\r\n"),
        ("our page and metadata of another", from("http://localhost:8000/") + &navigation("cross-site", "document")),
    ] {
        let answer = browser.send(&gateway, "GET", &file, &fields, b"");
        assert_eq!((answer.status, answer.code().as_str()), (403, "cross_site_request"), "{case}");
    }
    assert_eq!(hub.requests().len(), asked, "nothing was forwarded");
}

/// What is answered to a request ahead of time is used for the click itself, so nothing may have come of it.
#[test]
fn nothing_is_begun_spent_or_changed_ahead_of_time() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    let ahead = |fields: &str| format!("{fields}Sec-Purpose: prefetch\r\n");
    let counts = hub.counts();
    for (method, path, fields) in [
        ("GET", format!("{BASE}/auth/login?datahub=a"), NAVIGATION),
        ("GET", callback.clone(), NAVIGATION),
        ("POST", format!("{BASE}/auth/refresh"), FETCH),
        ("POST", format!("{BASE}/auth/logout"), FETCH),
        ("DELETE", format!("{BASE}/datahubs/a/api/v4/projects/230"), FETCH),
    ] {
        for purpose in ["prefetch", "prefetch;prerender", "x"] {
            let fields = format!("{fields}Sec-Purpose: {purpose}\r\n");
            let answer = browser.send(&gateway, method, &path, &fields, b"");
            assert_eq!((answer.status, answer.code().as_str()), (503, "prefetch_refused"), "{method} {path}");
            assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"), "{method} {path}");
            assert!(answer.headers("set-cookie").is_empty(), "{method} {path}");
        }
    }
    assert_eq!((hub.counts().refreshes, hub.counts().revocations), (counts.refreshes, counts.revocations));
    // Reads may come early, and the click after it all is a request of its own.
    let user = browser.send(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), &ahead(FETCH), b"");
    assert_eq!(user.status, 200);
    assert_eq!(browser.send(&gateway, "GET", &format!("{BASE}/auth/session"), &ahead(FETCH), b"").status, 200);
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/");
}

/// A browser asks for an icon by itself; that is nothing that somebody should look at.
#[test]
fn what_is_neither_ours_nor_the_apps_is_not_found_and_no_event() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for path in
        ["/", "/favicon.ico", "/robots.txt", "/arcmanager", "/arcmanager/api", "/arcmanager/api/v10/auth/session"]
    {
        for fields in [
            "",
            NAVIGATION,
            FETCH,
            "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n",
        ] {
            for method in ["GET", "HEAD", "POST"] {
                let fields = format!("{fields}Content-Length: 0\r\n");
                let answer = Browser::default().send(&gateway, method, path, &fields, b"");
                assert_eq!(answer.status, 404, "{method} {path} {fields}");
            }
        }
    }
    assert!(gateway.log().iter().all(|line| line["event"] != "cross_site_refused"));
    let ours = Browser::default().send(&gateway, "GET", &format!("{BASE}/nothing"), "", b"");
    assert_eq!(ours.code(), "cross_site_request", "what is below the base path is guarded");
}

/// EL-06: whatever proves nothing is refused; an event is what a browser would not send by itself, nor for a click.
#[test]
fn what_any_browser_asks_for_is_refused_without_an_event() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let count = || gateway.log().iter().filter(|line| line["event"] == "cross_site_refused").count();
    let metadata = |site: &str, mode: &str, dest: &str| {
        format!("Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n")
    };
    let foreign = |fields: String| format!("Origin: https://evil.test\r\n{fields}");
    for (case, method, fields, is_event) in [
        ("an icon", "GET", metadata("same-origin", "no-cors", "image"), false),
        ("another site's image", "GET", metadata("cross-site", "no-cors", "image"), false),
        ("another site's video", "GET", metadata("cross-site", "no-cors", "video"), false),
        ("the page's manifest", "GET", metadata("same-origin", "cors", "manifest"), false),
        ("a bookmark", "GET", metadata("none", "navigate", "document"), false),
        ("a link elsewhere", "GET", metadata("cross-site", "navigate", "document"), false),
        ("a frame elsewhere", "GET", metadata("cross-site", "navigate", "iframe"), false),
        (
            "fetched ahead",
            "GET",
            format!("Sec-Purpose: prefetch\r\n{}", metadata("cross-site", "no-cors", "empty")),
            false,
        ),
        ("a look at the head", "HEAD", metadata("none", "navigate", "document"), false),
        ("another site's script reads", "GET", foreign(metadata("cross-site", "cors", "empty")), true),
        ("one that may not read the answer", "GET", metadata("cross-site", "no-cors", "empty"), true),
        ("a sibling's script reads", "GET", foreign(metadata("same-site", "cors", "empty")), true),
        ("another site runs it", "GET", metadata("cross-site", "no-cors", "script"), true),
        ("an image for a script", "GET", foreign(metadata("cross-site", "cors", "image")), true),
        (
            "a page without an origin",
            "GET",
            format!("Origin: null\r\n{}", metadata("cross-site", "cors", "empty")),
            true,
        ),
        ("another site's form", "POST", foreign(metadata("cross-site", "navigate", "document")), true),
        ("a beacon", "POST", foreign(metadata("cross-site", "no-cors", "empty")), true),
        (
            "a page's write ahead of time",
            "POST",
            format!("Sec-Purpose: prefetch\r\n{}", metadata("cross-site", "no-cors", "empty")),
            true,
        ),
        ("a write without a word", "POST", String::new(), true),
        ("a program that proves nothing", "GET", String::new(), true),
        ("may it write?", "OPTIONS", foreign("Access-Control-Request-Method: POST\r\n".to_owned()), true),
    ] {
        for path in ["/auth/session", "/datahubs/a/api/v4/user", "/nothing"] {
            let before = count();
            let answer = Browser::default().send(&gateway, method, &format!("{BASE}{path}"), &fields, b"");
            assert_eq!(answer.status, 403, "{case}: {path}");
            assert!(method == "HEAD" || answer.code() == "cross_site_request", "{case}: {path}");
            let id = answer.header("x-request-id").expect("an id");
            // An event comes before the line of its request.
            gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
            assert_eq!(count() - before, usize::from(is_event), "{case}: {path}");
        }
    }
}

/// A page that says `no-referrer` sends `Origin: null` with what it posts, also to its own origin.
#[test]
fn an_origin_that_is_kept_secret_is_ours_if_the_browser_says_so() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let from = |site| {
        format!("Origin: null\r\nSec-Fetch-Site: {site}\r\nSec-Fetch-Mode: same-origin\r\nSec-Fetch-Dest: empty\r\n")
    };
    for path in ["/auth/refresh", "/auth/logout"] {
        for fields in [from("cross-site"), from("same-site"), from("none"), "Origin: null\r\nX-CSRF: 1\r\n".to_owned()]
        {
            let answer = browser.send(
                &gateway,
                "POST",
                &format!("{BASE}{path}"),
                &format!("{fields}Content-Length: 0\r\n"),
                b"",
            );
            assert_eq!(answer.code(), "cross_site_request", "{path} {fields}");
        }
        let fields = from("same-origin") + "Content-Length: 0\r\n";
        let answer = browser.send(&gateway, "POST", &format!("{BASE}{path}"), &fields, b"");
        assert!(matches!(answer.status, 200 | 204), "{path} {}", answer.status);
    }
}

/// HEAD is there wherever GET is, without what GET does.
#[test]
fn head_looks_and_touches_nothing() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    for (path, fields) in [("/auth/session", FETCH), ("/datahubs", ""), ("/datahubs/a/api/v4/user", FETCH)] {
        let [head, get] =
            ["HEAD", "GET"].map(|method| browser.send(&gateway, method, &format!("{BASE}{path}"), fields, b""));
        assert_eq!((head.status, head.header("content-length")), (200, get.header("content-length")), "{path}");
        assert!(head.headers("set-cookie").is_empty(), "{path}");
    }
    for target in [format!("{BASE}/auth/login?datahub=a"), callback.clone()] {
        let answer = browser.send(&gateway, "HEAD", &target, NAVIGATION, b"");
        assert_eq!((answer.status, answer.header("allow").as_deref()), (405, Some("GET")), "{target}");
        assert!(answer.headers("set-cookie").is_empty(), "{target}");
    }
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/", "the code is not spent");
}
