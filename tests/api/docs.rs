//! The API's document, and the pages that show it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::browser::{Answer, Browser, FETCH, NAVIGATION};
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub, run};
use crate::wire::summary;

const PAGES: [(&str, &str); 6] = [
    ("/openapi.json", "application/json"),
    ("/docs/", "text/html; charset=utf-8"),
    ("/docs/check", "text/html; charset=utf-8"),
    ("/docs/page.css", "text/css; charset=utf-8"),
    ("/docs/page.js", "text/javascript; charset=utf-8"),
    ("/docs/check.js", "text/javascript; charset=utf-8"),
];
const FROM_ELSEWHERE: &str = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

fn document(gateway: &Gateway) -> Value {
    let answer = Browser::default().fetch(gateway, "GET", "/openapi.json");
    assert_eq!(answer.status, 200);
    answer.json()
}

/// What the command line prints, with this configuration if any.
fn printed(config: Option<&str>) -> Value {
    let arguments: Vec<_> = ["openapi"].into_iter().chain(config.map(|_| "--config")).chain(config).collect();
    let output = run(&arguments, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_document_is_printed_without_a_configuration() {
    let hub = datahub();
    let document = printed(None);
    assert_eq!((&document["openapi"], &document["servers"][0]["url"]), (&"3.1.0".into(), &BASE.into()));
    assert_eq!(document, self::document(&Setup::new(&[("a", &hub)]).start()), "the same is served");
}

#[test]
fn the_document_says_the_base_path_and_the_limits_of_the_configuration() {
    let hub = datahub();
    let lines = "server.base_path = \"/hub/v1\"\nlimits.target = \"4KiB\"\nlimits.body = \"3MiB\"";
    let setup = Setup::new(&[("a", &hub)]).and(lines);
    let gateway = setup.start();
    let served = Browser::default().send(&gateway, "GET", "/hub/v1/openapi.json", NAVIGATION, b"").json();
    assert_eq!(served["servers"][0]["url"], "/hub/v1");
    let forwarded = served["paths"]["/datahubs/{datahub}/{path}"]["get"]["description"].as_str().expect("a text");
    assert!(forwarded.contains("4.0 KiB") && forwarded.contains("3.0 MiB"), "{forwarded}");
    // Neither keys nor DataHUBs are needed for that.
    let folder = Folder::default();
    let file = folder.file("gateway.toml", lines);
    assert_eq!(printed(file.to_str()), served);
    let page = Browser::default().send(&gateway, "GET", "/hub/v1/docs/", NAVIGATION, b"");
    assert_eq!(page.status, 200);
    for link in page.text().split('"').filter(|text| text.starts_with("page.")) {
        let file = Browser::default().send(&gateway, "GET", &format!("/hub/v1/docs/{link}"), FETCH, b"");
        assert_eq!(file.status, 200, "{link}");
    }
    let file = folder.file("wrong.toml", "server.base_path = \"no path\"\nlimits.body = \"-1\"");
    let output = run(&["openapi", "--config", file.to_str().expect("a plain path")], &[]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{errors}");
    assert!(errors.contains("server.base_path") && errors.contains("limits.body"), "{errors}");
}

/// What has no method of the document says which there are.
#[test]
fn every_route_of_the_document_is_there_with_these_methods_and_no_other() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("app.arcmanager = true").start();
    let document = document(&gateway);
    for (path, item) in document["paths"].as_object().expect("paths").iter().filter(|(path, _)| !path.contains('{')) {
        let documented: BTreeSet<_> =
            item.as_object().expect("a path").keys().map(|name| name.to_uppercase()).collect();
        let answer = Browser::default().fetch(&gateway, "PATCH", path);
        assert_eq!(summary(&answer), "405 method_not_allowed", "{path}");
        let allowed = answer.header("allow").expect("RFC 9110 section 15.5.6");
        assert_eq!(allowed.split(", ").map(str::to_owned).collect::<BTreeSet<_>>(), documented, "{path}");
    }
    let forwarded = document["paths"]["/datahubs/{datahub}/{path}"].as_object().expect("the proxy");
    for method in forwarded.keys().map(|name| name.to_uppercase()) {
        let answer = Browser::default().fetch(&gateway, &method, "/datahubs/a/api/v4/user");
        assert_eq!(answer.status, 401, "{method}");
    }
}

/// The answers of a login's whole life have the members and cookies of the document, and these attributes.
#[test]
fn answers_and_cookies_are_those_of_the_document() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("app.arcmanager = true").start();
    let (document, browser) = (document(&gateway), Browser::default());
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    let mut answers = vec![browser.copy().navigate(&gateway, &format!("{BASE}/auth/login?datahub=a"))];
    // A login that comes back without its cookie.
    answers.push(Browser::default().navigate(&gateway, &callback));
    answers.push(browser.navigate(&gateway, &callback));
    for (method, path, name) in [("GET", "/auth/session", "Sessions"), ("POST", "/auth/refresh", "Sessions")] {
        let answer = browser.fetch(&gateway, method, path);
        let found = answer.json();
        has_members_of(&document, name, &found);
        has_members_of(&document, "Session", &found["sessions"][0]);
        has_members_of(&document, "User", &found["sessions"][0]["user"]);
        answers.push(answer);
    }
    has_members_of(&document, "DataHub", &browser.fetch(&gateway, "GET", "/datahubs").json()[0]);
    has_members_of(&document, "Problem", &browser.fetch(&gateway, "GET", "/nothing").json());
    answers.push(browser.fetch(&gateway, "POST", "/auth/logout"));
    let documented = document["x-cookies"].as_array().expect("a list");
    let mut seen = BTreeSet::new();
    for cookie in answers.iter().flat_map(|answer| answer.headers("set-cookie")) {
        let (pair, attributes) = cookie.split_once("; ").expect("attributes");
        let name = pair.split('=').next().expect("a name").replace("-a", "-{datahub}");
        let entry =
            documented.iter().find(|entry| entry["name"] == name.as_str()).unwrap_or_else(|| panic!("{cookie}"));
        let said: BTreeSet<_> = entry["attributes"].as_str().expect("a text").split("; ").collect();
        let set: BTreeSet<_> = attributes
            .split("; ")
            .map(|part| part.split('=').next().filter(|name| *name == "Max-Age").unwrap_or(part))
            .collect();
        // One that is removed has a lifetime, whatever it had before.
        assert!(set == said || attributes.contains("Max-Age=0"), "{cookie}");
        seen.insert(name);
    }
    assert_eq!(seen.len(), documented.len(), "{seen:?}");
}

/// An answer has all members that its schema requires, and none that it does not know.
fn has_members_of(document: &Value, name: &str, value: &Value) {
    let schema = &document["components"]["schemas"][name];
    let known = schema["properties"].as_object().expect(name);
    let members = value.as_object().unwrap_or_else(|| panic!("{name}: {value}"));
    for member in members.keys() {
        assert!(known.contains_key(member), "{name}: {member}");
    }
    for member in schema["required"].as_array().expect(name) {
        assert!(members.contains_key(member.as_str().expect("a name")), "{name}: {member}");
    }
}

fn hardening(answer: &Answer) -> [Option<String>; 4] {
    ["content-security-policy", "x-frame-options", "x-content-type-options", "cache-control"]
        .map(|name| answer.header(name))
}

#[test]
fn the_pages_may_be_opened_from_anywhere_and_framed_nowhere() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    for (path, kind) in PAGES {
        let target = format!("{BASE}{path}");
        for fields in [FROM_ELSEWHERE, NAVIGATION, FETCH, ""] {
            let answer = browser.send(&gateway, "GET", &target, fields, b"");
            assert_eq!((answer.status, answer.header("content-type").as_deref()), (200, Some(kind)), "{path}");
            let [policy, framing, sniffing, caching] = hardening(&answer);
            assert_eq!((sniffing.as_deref(), caching.as_deref()), (Some("nosniff"), Some("no-cache")), "{path}");
            let is_page = path.starts_with("/docs/");
            assert_eq!(policy.as_deref() == Some(POLICY), is_page, "{path}: {policy:?}");
            assert_eq!(framing.as_deref(), is_page.then_some("DENY"), "{path}");
            assert!(policy.is_some_and(|policy| policy.contains("frame-ancestors 'none'")), "{path}");
            assert_eq!(answer.headers("set-cookie"), [""; 0]);
        }
        let whole = browser.send(&gateway, "GET", &target, NAVIGATION, b"");
        let mut connection = browser.begin(&gateway, "HEAD", &target, NAVIGATION);
        let head = connection.answer(false);
        assert_eq!((head.status, head.header("content-length")), (200, whole.header("content-length")), "{path}");
        let refused = browser.fetch(&gateway, "POST", path);
        assert_eq!(
            (summary(&refused).as_str(), refused.header("allow").as_deref()),
            ("405 method_not_allowed", Some("GET, HEAD"))
        );
        assert!(
            hardening(&refused)[0].as_deref().is_some_and(|policy| policy.contains("sandbox")),
            "an error runs nothing"
        );
    }
    let answer = browser.send(&gateway, "GET", &format!("{BASE}/docs"), FROM_ELSEWHERE, b"");
    assert_eq!(
        (answer.status, answer.location().as_str()),
        (307, "docs/"),
        "relative, whatever a front puts before it"
    );
    // What is not there is told, and by a page that runs nothing; what is no document is not opened from elsewhere.
    let answer = browser.send(&gateway, "GET", &format!("{BASE}/docs/nothing"), FROM_ELSEWHERE, b"");
    assert_eq!(summary(&answer), "404 not_found");
    assert!(hardening(&answer)[0].as_deref().is_some_and(|policy| policy.contains("sandbox")));
    for path in ["/auth/session", "/openapi.json/x", "/docs/../auth/session", "/docs/%2e%2e/auth/session", "/docsx"] {
        let answer = browser.send(&gateway, "GET", &format!("{BASE}{path}"), FROM_ELSEWHERE, b"");
        assert!(
            ["403 cross_site_request", "404 not_found"].contains(&summary(&answer).as_str()),
            "{path}: {}",
            answer.head
        );
    }
}

/// What the page calls is what it would be without it: its policy opens nothing.
#[test]
fn a_page_of_another_origin_gets_no_more_by_it() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let fields = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n";
    for (path, _) in PAGES {
        let answer = Browser::default().send(&gateway, "GET", &format!("{BASE}{path}"), fields, b"");
        assert_eq!(answer.headers("access-control-allow-origin"), [""; 0], "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy").as_deref(), Some("same-origin"), "{path}");
    }
}
