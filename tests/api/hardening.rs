//! The fields that every answer has, whoever gives it: exactly these, each once.

use datahub::behaviour::Answer as Manner;

use crate::browser::{Answer, Browser, FETCH, NAVIGATION};
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub};
use crate::wire::{Wire, exchange, summary};

const API_POLICY: &str = "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'";
const APP_POLICY: &str = "default-src 'self'; img-src 'self' data: https:; style-src 'self' 'unsafe-inline'; \
    object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const EXPOSED: &str = "Link, X-Total, X-Total-Pages, X-Page, X-Per-Page, X-Next-Page, X-Prev-Page, X-Gitlab-Blob-Id, \
    X-Gitlab-Commit-Id, X-Gitlab-Content-Sha256, X-Gitlab-Encoding, X-Gitlab-File-Name, X-Gitlab-File-Path, \
    X-Gitlab-Last-Commit-Id, X-Gitlab-Ref, X-Gitlab-Size, ETag, Retry-After, RateLimit-Limit, RateLimit-Remaining, \
    RateLimit-Reset, Content-Disposition, X-Request-Id, X-Upstream-Request-Id, X-Gateway-Session";

/// The fields of an answer in small letters, sorted, but for those that differ each time.
fn fields(answer: &Answer) -> Vec<(String, String)> {
    let fields = answer.head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let mut fields: Vec<_> = fields.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    fields.retain(|(name, _)| name != "date" && name != "x-request-id");
    fields.sort();
    fields
}

fn pairs(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    fields.sort();
    fields
}

/// A gateway with files, and a person who is logged in.
fn world(lines: &str) -> (datahub::DataHub, Gateway, Browser, Folder) {
    let (hub, folder) = (datahub(), Folder::default());
    folder.file("index.html", "the app");
    let dir = folder.path().to_str().expect("a plain path");
    let gateway = Setup::new(&[("a", &hub)]).and(&format!("app.dir = {dir:?}\n{lines}")).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    (hub, gateway, browser, folder)
}

/// PR-05: RFC 9110 section 6.6.1; the time is now, in its one good form.
#[test]
fn every_answer_has_its_date_and_an_id_of_its_own() {
    let (hub, gateway, browser, _folder) = world("");
    // A DataHUB's own is not passed on.
    hub.set(|behaviour| behaviour.extra_headers = vec![("Date".into(), "Thu, 01 Jan 1970 00:00:00 GMT".into())]);
    let mut ids = Vec::new();
    for (method, target, fields, expected) in [
        ("GET", "{base}/datahubs", FETCH, "200"),
        ("GET", "{base}/auth/session", FETCH, "200"),
        ("GET", "{base}/auth/login?datahub=a", NAVIGATION, "302"),
        ("GET", "{base}/datahubs/a/api/v4/user", FETCH, "200"),
        ("GET", "{base}/datahubs/a/api/v4/nothing", FETCH, "404"),
        ("GET", "{base}/datahubs/x/api/v4/user", FETCH, "404 unknown_datahub"),
        ("GET", "/arcmanager/app/", "", "200"),
        ("HEAD", "/arcmanager/app/", "", "200"),
        ("GET", "/arcmanager/app", "", "307"),
        ("GET", "/arcmanager/app/", "Range: bytes=0-1\r\n", "206"),
        ("GET", "/nothing", FETCH, "404 not_found"),
        ("GET", "{base}/auth/session", "", "403 cross_site_request"),
        ("POST", "{base}/datahubs", FETCH, "405 method_not_allowed"),
        ("TRACE", "{base}/datahubs", FETCH, "501 method_not_implemented"),
        ("GET", "{base}/datahubs", "Upgrade: x\r\n", "501 upgrade_refused"),
        ("GET", "{base}/datahubs", "Host: x\r\n", "421 wrong_host"),
        ("POST", "{base}/auth/logout", FETCH, "204"),
    ] {
        let answer = browser.copy().send(&gateway, method, &target.replace("{base}", BASE), fields, b"");
        assert_eq!(summary(&answer), expected, "{method} {target}");
        let date = answer.header("date").unwrap_or_else(|| panic!("{method} {target}: no Date: {}", answer.head));
        let time = httpdate(&date);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        assert!(now.abs_diff(time) <= 2, "{method} {target}: {date}");
        ids.push(answer.header("x-request-id").expect("an id"));
    }
    // What is no request has both, too.
    for bytes in ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\nb: c\r\n\r\n"] {
        let answers = exchange(&gateway.address, bytes);
        assert_eq!(answers.len(), 1);
        assert_eq!((summary(&answers[0]).as_str(), answers[0].headers("date").len()), ("400 bad_request", 1));
        ids.push(answers[0].header("x-request-id").expect("an id"));
    }
    assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))));
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "no two are alike");
}

/// `Thu, 26 Nov 2026 12:59:42 GMT`, as seconds since 1970.
fn httpdate(text: &str) -> u64 {
    let words: Vec<_> = text.split(' ').collect();
    let [weekday, day, month, year, time, "GMT"] = words[..] else { panic!("{text}") };
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month).expect(text) + 1;
    assert!(day.len() == 2 && year.len() == 4 && time.len() == 8 && weekday.len() == 4, "{text}");
    let time = format!("{year}-{month:02}-{day}T{time}Z");
    let time = humantime::parse_rfc3339(&time).expect(text);
    time.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// PR-05: nothing more and nothing less.
#[test]
fn these_are_the_fields_of_an_answer() {
    let (hub, gateway, browser, _folder) = world("");
    let hardening = [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
    ];
    let api = [("content-security-policy", API_POLICY), ("vary", "Cookie")];
    let problem = [("cache-control", "no-store"), ("content-type", "application/problem+json")];
    let of = |method: &str, target: &str, fields: &str| {
        let answer = browser.copy().send(&gateway, method, &target.replace("{base}", BASE), fields, b"");
        let mut fields = self::fields(&answer);
        fields.retain(|(name, value)| name != "content-length" || value == "0");
        fields
    };
    let all = |more: &[(&str, &str)], problem: &[(&str, &str)]| pairs(&[&hardening[..], &api, more, problem].concat());
    let datahubs = [("cache-control", "no-cache"), ("content-type", "application/json")];
    assert_eq!(of("GET", "{base}/datahubs", ""), all(&datahubs, &[]));
    assert_eq!(of("GET", "{base}/nothing", FETCH), all(&[], &problem));
    assert_eq!(of("GET", "{base}/auth/session", ""), all(&[], &problem));
    assert_eq!(of("POST", "{base}/datahubs", FETCH), all(&[("allow", "GET, HEAD")], &problem));
    assert_eq!(of("GET", "{base}/datahubs", "Host: x\r\n"), all(&[("connection", "close")], &problem));
    assert_eq!(of("GET", "{base}/datahubs", "Content-Length: +\r\n"), all(&[("connection", "close")], &problem));
    let nobody = Browser::default();
    let logout = nobody.send(&gateway, "POST", &format!("{BASE}/auth/logout"), FETCH, b"");
    assert_eq!(fields(&logout), all(&[("cache-control", "no-store")], &[]));
    // A call's answer has no `Vary` of ours if the DataHUB gave one that says more.
    hub.set(|behaviour| {
        behaviour.api.answer =
            Manner::Raw(b"HTTP/1.1 200 OK\r\nVary: Accept\r\nX-Total: 1\r\nContent-Length: 0\r\n\r\n".to_vec());
    });
    let answer = browser.send(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), FETCH, b"");
    let call = [("cache-control", "private, no-store"), ("content-length", "0"), ("x-total", "1")];
    let vary = answer.headers("vary");
    let mut rest = fields(&answer);
    rest.retain(|(name, _)| name != "vary");
    assert_eq!(rest, pairs(&[&hardening[..], &api[..1], &call].concat()));
    assert!(vary.join(", ").contains("Cookie"), "{vary:?}");

    // The app's files may run, and be kept; what is not there is no file.
    let file = of("GET", "/arcmanager/app/", "");
    let of_files = hardening.map(|(name, value)| (name, if name == "referrer-policy" { "same-origin" } else { value }));
    let caching = [("content-security-policy", APP_POLICY), ("cache-control", "no-cache")];
    for (name, value) in of_files.iter().chain(&caching) {
        assert_eq!(file.iter().filter(|field| field.0 == *name).map(|field| &*field.1).collect::<Vec<_>>(), [*value]);
    }
    for name in ["vary", "strict-transport-security"] {
        assert!(file.iter().all(|field| field.0 != name), "{name}");
    }
    for name in ["etag", "last-modified", "accept-ranges", "content-type"] {
        assert_eq!(file.iter().filter(|field| field.0 == name).count(), 1, "{name}");
    }
    assert_eq!(of("GET", "/arcmanager/app/nothing.js", ""), all(&[], &problem));
    let unsatisfiable = of("GET", "/arcmanager/app/", "Range: bytes=90-91\r\n");
    assert!(unsatisfiable.contains(&("content-security-policy".into(), API_POLICY.into())), "{unsatisfiable:?}");
    assert!(unsatisfiable.contains(&("cache-control".into(), "no-store".into())), "{unsatisfiable:?}");
}

/// PR-05: HSTS, on every answer, if and only if people come by HTTPS.
#[test]
fn hsts_is_for_https_only() {
    let (hub, folder) = (datahub(), Folder::default());
    folder.file("index.html", "the app");
    let dir = folder.path().to_str().expect("a plain path");
    for (url, hsts) in [("https://localhost:8000", &["max-age=31536000"][..]), ("http://localhost:8000", &[])] {
        let setup = Setup::new(&[("a", &hub)]).and(&format!("server.public_url = {url:?}\napp.dir = {dir:?}"));
        let gateway = setup.start();
        for (method, target, fields, status) in [
            ("GET", "/arcmanager/api/v1/datahubs", FETCH, 200),
            ("GET", "/arcmanager/app/", "", 200),
            ("GET", "/arcmanager/app", "", 307),
            ("GET", "/arcmanager/app/nothing.js", "", 404),
            ("GET", "/arcmanager/app/route", "", 200),
            ("POST", "/arcmanager/api/v1/auth/logout", FETCH, 204),
            ("GET", "/arcmanager/api/v1/datahubs/a/api/v4/user", FETCH, 401),
            ("GET", "/nothing", "", 404),
            ("GET", "/", "Host: x\r\n", 421),
            ("GET", "/", "Content-Length: +\r\n", 400),
            ("GET", "/<", "", 400),
        ] {
            let answer = Browser::default().send(&gateway, method, target, fields, b"");
            assert_eq!(answer.status, status, "{url} {target}");
            assert_eq!(answer.headers("strict-transport-security"), hsts, "{url} {target}");
        }
    }
}

/// CS-04: exactly these lists, and for that origin alone.
#[test]
fn a_development_origin_is_told_exactly_what_it_may() {
    let (_hub, gateway, browser, _folder) = world("app.dev_origins = [\"http://localhost:5173\"]");
    let origin = "Origin: http://localhost:5173\r\n";
    let asks = format!("{origin}Access-Control-Request-Method: PUT\r\n");
    let cors = [
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-origin", "http://localhost:5173"),
        ("access-control-expose-headers", EXPOSED),
    ];
    let preflight = [
        ("access-control-allow-headers", "content-type, x-csrf, range, if-match, if-none-match"),
        ("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE"),
        ("access-control-max-age", "600"),
    ];
    let allowed = |answer: &Answer| {
        let mut fields = fields(answer);
        fields.retain(|(name, _)| name.starts_with("access-control-"));
        fields
    };
    let varies = |answer: &Answer| answer.headers("vary").join(", ").split(", ").any(|name| name == "Origin");
    // Wherever it asks, and whatever is there: nothing is done for it.
    for target in ["{base}/datahubs/a/api/v4/user", "{base}/auth/logout", "{base}/nothing", "/", "/arcmanager/app/"] {
        let target = target.replace("{base}", BASE);
        let answer = browser.send(&gateway, "OPTIONS", &target, &asks, b"");
        assert_eq!((answer.status, allowed(&answer)), (204, pairs(&[&cors[..], &preflight].concat())), "{target}");
        assert!(varies(&answer) && answer.header("content-length").is_none_or(|length| length == "0"), "{target}");
        assert_eq!(
            answer.headers("content-security-policy"),
            [if target.contains("app") { APP_POLICY } else { API_POLICY }]
        );
        // OPTIONS without the question is no preflight.
        let answer = browser.send(&gateway, "OPTIONS", &target, origin, b"");
        assert!(
            answer.status >= 400 && !allowed(&answer).iter().any(|(name, _)| name.ends_with("methods")),
            "{target}"
        );
    }
    let metadata = format!("{origin}Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n");
    let old = format!("{origin}X-CSRF: 1\r\n");
    for fields in [&metadata, &old] {
        for (target, expected) in [
            ("{base}/datahubs/a/api/v4/user", "200"),
            ("{base}/auth/session", "200"),
            ("{base}/datahubs", "200"),
            ("{base}/datahubs/x/api/v4/user", "404 unknown_datahub"),
            ("{base}/nothing", "404 not_found"),
            ("/arcmanager/app/", "200"),
        ] {
            let answer = browser.send(&gateway, "GET", &target.replace("{base}", BASE), fields, b"");
            assert_eq!((summary(&answer).as_str(), allowed(&answer)), (expected, pairs(&cors)), "{target}");
            assert!(varies(&answer), "{target}: {}", answer.head);
        }
    }
    // Refused before anybody looks where it comes from, or because of it.
    for (fields, expected) in [
        (format!("Host: x\r\n{metadata}"), "421 wrong_host"),
        (format!("{metadata}Upgrade: x\r\n"), "501 upgrade_refused"),
        (origin.to_owned(), "403 cross_site_request"),
        (metadata.replace("5173", "4173"), "403 cross_site_request"),
        (format!("{metadata}{origin}"), "403 cross_site_request"),
        (FETCH.to_owned(), "200"),
        (format!("Origin: http://localhost:8000\r\n{FETCH}"), "200"),
    ] {
        let answer = browser.send(&gateway, "GET", &format!("{BASE}/auth/session"), &fields, b"");
        assert_eq!((summary(&answer).as_str(), allowed(&answer)), (expected, vec![]), "{fields}");
        assert!(!varies(&answer), "{fields}");
    }
}

/// RFC 9110 section 9.3.2: what a GET would have, without the body.
#[test]
fn head_has_the_length_and_not_the_body() {
    let (_hub, gateway, browser, _folder) = world("");
    let session = browser.cookie_field();
    let mut wire = Wire::open(&gateway.address);
    for (target, head, get) in [
        ("/arcmanager/app/", 200, 200),
        ("/arcmanager/app/index.html", 200, 200),
        ("/arcmanager/app", 307, 307),
        ("/arcmanager/app/nothing.js", 404, 404),
        ("/arcmanager/app/route", 200, 200),
        ("{base}/datahubs/a/api/v4/user", 200, 200),
        ("{base}/datahubs/a/api/v4/nothing", 404, 404),
        ("{base}/datahubs/x/api/v4/user", 404, 404),
        ("{base}/nothing", 404, 404),
        ("{base}/datahubs", 200, 200),
        ("{base}/auth/session", 200, 200),
        // It begins no login.
        ("{base}/auth/login?datahub=a", 405, 303),
    ] {
        let target = target.replace("{base}", BASE);
        let rest = format!("Host: localhost:8000\r\n{FETCH}{session}\r\n");
        // On one connection: a byte too many would be the next answer's first.
        wire.send(format!("HEAD {target} HTTP/1.1\r\n{rest}GET {target} HTTP/1.1\r\n{rest}"));
        let (short, whole) = (wire.head().expect("a head"), wire.answer().expect("an answer"));
        assert_eq!((short.status, whole.status), (head, get), "{target}");
        if head == get {
            let without_ids = |answer: &Answer| {
                let mut fields = fields(answer);
                fields.retain(|(name, _)| {
                    !["ratelimit", "x-gitlab-meta", "x-upstream"].iter().any(|start| name.starts_with(start))
                });
                fields
            };
            assert_eq!(without_ids(&short), without_ids(&whole), "{target}");
        }
        assert!(short.header("content-length").is_some() || short.status < 300, "{target}: {}", short.head);
    }
}
