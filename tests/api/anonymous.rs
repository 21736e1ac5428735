//! Calls without a login: what is public at a DataHUB, where its operator wants that.

use std::time::Duration;

use datahub::DataHub;
use datahub::behaviour::Answer as Manner;

use crate::browser::{Answer, Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub};
use crate::token_endpoint::{USER, logged_in};
use crate::wire::summary;

const PROJECTS: &str = "/datahubs/a/api/v4/projects";
const PROXIED: &str = "server.trusted_proxies = [\"127.0.0.0/8\"]\n";

/// In front of `hub`, which may be asked without a login.
fn open(hub: &DataHub, lines: &str) -> Gateway {
    Setup::new(&[("a", hub)]).and(&format!("datahubs.a.anonymous = true\n{lines}")).start()
}

/// A call of this client's without a login, behind a proxy.
fn from(gateway: &Gateway, client: &str, path: &str) -> Answer {
    let fields = format!("{FETCH}X-Forwarded-For: {client}\r\n");
    Browser::default().send(gateway, "GET", &format!("{BASE}{path}"), &fields, b"")
}

/// What an answer says of the session.
fn says(answer: &Answer) -> Option<String> {
    answer.header("x-gateway-session")
}

#[test]
fn what_is_public_is_read_before_anyone_logs_in() {
    let (hub, closed) = (datahub(), datahub());
    let setup = Setup::new(&[("a", &hub), ("b", &closed)]).and("datahubs.a.anonymous = true");
    let gateway = setup.start();
    let browser = Browser::default();
    browser.log_in(&gateway, "b", &closed, "testuser");
    browser.set_cookie("of_the_app", "1");
    for method in ["GET", "HEAD"] {
        hub.clear();
        let fields = format!("{FETCH}Authorization: Bearer own\r\nPrivate-Token: own\r\nAccept: application/json\r\n");
        let answer = browser.send(&gateway, method, &format!("{BASE}{PROJECTS}?per_page=1"), &fields, b"");
        assert_eq!((answer.status, says(&answer).as_deref()), (200, Some("none")), "{method} {}", answer.head);
        assert_eq!(answer.header("cache-control").as_deref(), Some("private, no-store"));
        assert!(answer.headers("vary").concat().contains("Cookie") && answer.headers("set-cookie").is_empty());
        assert_eq!(method == "HEAD", answer.body.is_empty());
        let requests = hub.requests();
        assert_eq!(requests.len(), 1, "{method}");
        let names: Vec<_> = requests[0].headers().into_iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        assert!(names.contains(&"x-forwarded-for".to_owned()) && names.contains(&"accept".to_owned()), "{names:?}");
        for name in ["authorization", "cookie", "private-token"] {
            assert!(!names.contains(&name.to_owned()), "{method}: {name} went up");
        }
        let id = answer.header("x-request-id").expect("an id");
        let line = gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
        assert_eq!((&line["datahub"], &line["anonymous"]), (&"a".into(), &true.into()), "{line}");
    }
    // Its twins: who is logged in calls as themselves, and another DataHUB stays closed.
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    let answer = browser.fetch(&gateway, "GET", PROJECTS);
    assert_eq!((answer.status, says(&answer)), (200, None));
    assert!(hub.requests()[0].header("authorization").is_some_and(|value| value.starts_with("Bearer ")));
    let id = answer.header("x-request-id").expect("an id");
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
    assert!(line["anonymous"].is_null(), "{line}");
    let answer = Browser::default().fetch(&gateway, "GET", "/datahubs/b/api/v4/projects");
    assert_eq!((summary(&answer).as_str(), says(&answer)), ("401 not_logged_in", None));

    let list = Browser::default().fetch(&gateway, "GET", "/datahubs").json();
    assert_eq!((&list[0]["anonymous"], list[1].get("anonymous")), (&true.into(), None), "{list}");
    let metrics = gateway.metrics();
    assert!(metrics.contains("gateway_anonymous_calls_total{datahub=\"a\",result=\"passed\"} 2\n"), "{metrics}");
}

/// Only who has no session cookie at all, and only what changes nothing.
#[test]
fn a_session_that_does_not_open_or_has_ended_is_none_to_call_with() {
    let hub = datahub();
    let gateway = open(&hub, "session.max_age = \"1s\"\nsession.idle_timeout = \"1s\"");
    let nobody = Browser::default();
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let answer = nobody.fetch_with(&gateway, method, PROJECTS, "application/json", b"{}");
        assert_eq!((summary(&answer).as_str(), says(&answer)), ("401 not_logged_in", None), "{method}");
    }
    let one = logged_in(&gateway, &hub, "testuser");
    let (session, sid) = ("__Host-Http-session-a", "__Host-Http-sid-a");
    let value = one.cookie(session).expect("a session");
    hub.clear();
    for (case, fields) in [
        ("one that is altered", format!("{session}={}; {sid}={}", &value[1..], one.cookie(sid).expect("a sid"))),
        ("one without its sid", format!("{session}={value}")),
        ("an empty one", format!("{session}=")),
        ("two of them", format!("{session}={value}; {session}={value}")),
    ] {
        let fields = format!("{FETCH}Cookie: {fields}\r\n");
        let answer = nobody.send(&gateway, "GET", &format!("{BASE}{PROJECTS}"), &fields, b"");
        assert_eq!((summary(&answer).as_str(), says(&answer)), ("401 not_logged_in", None), "{case}");
    }
    std::thread::sleep(Duration::from_millis(1_100));
    let answer = one.fetch(&gateway, "GET", PROJECTS);
    assert_eq!((summary(&answer).as_str(), says(&answer)), ("401 session_expired", None));
    assert!(hub.requests().is_empty(), "nothing of that went up");
    // The twin: once the browser has dropped the session, the app learns that it is gone.
    one.remove_cookie(session);
    let answer = one.fetch(&gateway, "GET", PROJECTS);
    assert_eq!((answer.status, says(&answer).as_deref()), (200, Some("none")));
}

/// The rules of who may call, and of what is forwarded, are the same.
#[test]
fn a_call_without_a_login_passes_the_same_checks() {
    let hub = datahub();
    let gateway = open(&hub, "app.dev_origins = [\"http://localhost:5173\"]");
    let dev = "Origin: http://localhost:5173\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n";
    let download = "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: empty\r\n";
    let cross = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n";
    for (path, fields, expected, says_none) in [
        (PROJECTS, FETCH, "200", true),
        (PROJECTS, dev, "200", true),
        (PROJECTS, download, "200", true),
        (PROJECTS, "", "403 cross_site_request", false),
        (PROJECTS, cross, "403 cross_site_request", false),
        ("/datahubs/a/api/v4/user/keys", FETCH, "403 credential_endpoint", true),
        ("/datahubs/a/users/sign_in", FETCH, "404 not_forwarded", true),
        ("/datahubs/a/api/v4/projects/../user", FETCH, "400 bad_request_target", true),
        ("/datahubs/a/api/v4/projects?private_token=x", FETCH, "400 credential_parameter", true),
        ("/datahubs/x/api/v4/projects", FETCH, "404 unknown_datahub", false),
    ] {
        hub.clear();
        let answer = Browser::default().send(&gateway, "GET", &format!("{BASE}{path}"), fields, b"");
        assert_eq!(summary(&answer), expected, "{path} {fields}");
        assert_eq!(says(&answer).is_some(), says_none, "{path} {fields}");
        assert_eq!(hub.requests().len(), usize::from(expected == "200"), "{path} {fields}");
        assert_eq!(answer.header("content-disposition").is_some(), fields == download, "{path}");
        let exposed = answer.headers("access-control-expose-headers").concat();
        assert_eq!(exposed.contains("X-Gateway-Session"), fields == dev, "{path} {fields}");
    }
}

/// There is no token that a 401 could be about: it is the DataHUB's own, whatever it says, and nothing is asked again.
#[test]
fn a_401_to_a_call_without_a_login_is_the_datahubs_own() {
    let hub = datahub();
    let gateway = open(&hub, "");
    let invalid =
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer error=\"invalid_token\"\r\nContent-Length: 2\r\n\r\n{}";
    for (case, manner) in [("GitLab's", Manner::Normal), ("about a token", Manner::Raw(invalid.into()))] {
        hub.set(|behaviour| behaviour.api.answer = manner);
        hub.clear();
        let answer = Browser::default().fetch(&gateway, "GET", USER);
        assert_eq!((answer.status, says(&answer).as_deref()), (401, Some("none")), "{case}");
        assert_ne!(answer.header("content-type").as_deref(), Some("application/problem+json"), "{case}");
        assert_eq!((hub.requests().len(), hub.counts().refreshes), (1, 0), "{case}");
    }
    // Failures of our own say it, too.
    hub.set(|behaviour| behaviour.api.answer = Manner::CloseWithoutAnswer);
    let answer = Browser::default().fetch(&gateway, "GET", USER);
    assert_eq!((summary(&answer).as_str(), says(&answer).as_deref()), ("502 datahub_unreachable", Some("none")));
}

#[test]
fn a_client_without_a_login_comes_only_so_often() {
    let hub = datahub();
    let gateway =
        open(&hub, &format!("{PROXIED}rate_limit.anonymous = \"2/1h\"\ndatahubs.a.anonymous_rate = \"7/1h\""));
    // What is not forwarded costs nothing; what finds no place or no DataHUB has been counted.
    for _ in 0..5 {
        assert_eq!(from(&gateway, "192.0.2.1", "/datahubs/a/api/v4/user/keys").status, 403);
    }
    for (client, same) in
        [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::ffff:1"), ("2001:db8:0:1::1", "2001:db8:0:1::2")]
    {
        assert_eq!([client, same].map(|client| from(&gateway, client, PROJECTS).status), [200, 200], "{client}");
        let answer = from(&gateway, same, PROJECTS);
        assert_eq!(
            (summary(&answer).as_str(), says(&answer).as_deref()),
            ("429 rate_limited", Some("none")),
            "{client}"
        );
        let wait: u64 = answer.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a number of seconds");
        assert!((1_700..=1_800).contains(&wait), "{wait}: half an hour for each");
    }
    // Six have passed, and a client that is limited takes nothing from the others.
    assert_eq!(from(&gateway, "192.0.2.2", PROJECTS).status, 200);
    let answer = from(&gateway, "192.0.2.3", PROJECTS);
    assert_eq!(summary(&answer), "429 rate_limited", "seven in all");
    let wait: u64 = answer.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a number of seconds");
    assert!((400..=515).contains(&wait), "{wait}: one in 514 s");
    // Peers on this machine that speak for themselves have no limit of their own, but take part in that of all.
    assert_eq!(Browser::default().fetch(&gateway, "GET", PROJECTS).code(), "rate_limited");
    let metrics = gateway.metrics();
    for (result, count) in [("passed", 7), ("client_limited", 3), ("datahub_limited", 2)] {
        let line = format!("gateway_anonymous_calls_total{{datahub=\"a\",result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    // The twin: who is logged in is not limited by that.
    let person = logged_in(&gateway, &hub, "testuser");
    let fields = format!("{FETCH}X-Forwarded-For: 192.0.2.1\r\n");
    for _ in 0..4 {
        assert_eq!(person.send(&gateway, "GET", &format!("{BASE}{PROJECTS}"), &fields, b"").status, 200);
    }
}

/// What is limited at one DataHUB is not at another, but a client is one client everywhere.
#[test]
fn each_datahub_has_a_rate_of_its_own() {
    let (one, other) = (datahub(), datahub());
    let lines = "rate_limit.anonymous = \"3/1h\"\ndatahubs.a.anonymous_rate = \"1/1h\"\n\
        datahubs.a.anonymous = true\ndatahubs.b.anonymous = true";
    let gateway = Setup::new(&[("a", &one), ("b", &other)]).and(&format!("{PROXIED}{lines}")).start();
    let there = "/datahubs/b/api/v4/projects";
    assert_eq!(from(&gateway, "192.0.2.1", PROJECTS).status, 200);
    assert_eq!(from(&gateway, "192.0.2.1", PROJECTS).status, 429);
    assert_eq!(from(&gateway, "192.0.2.1", there).status, 200);
    assert_eq!(from(&gateway, "192.0.2.1", there).status, 429, "three, two of them at the other one");
    assert_eq!(from(&gateway, "192.0.2.2", there).status, 200);
}
