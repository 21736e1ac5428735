//! `PUT /auth/addPAT`: a session goes on with a personal access token, if the DataHUB has said that it may.

use std::time::{Duration, SystemTime};

use datahub::DataHub;
use datahub::behaviour::{Answer as Manner, Manner as Way, PersonalToken};
use serde_json::{Value, json};

use crate::browser::{Answer, Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub, datahub_with, wait_until};

const PAT: &str = "glpat-0123456789AbCdEfGhIj";
const USER: &str = "/datahubs/a/api/v4/user";
/// The number of testuser's.
const TESTUSER: u64 = 7;

fn personal_token() -> PersonalToken {
    PersonalToken {
        token: PAT.to_owned(),
        user: TESTUSER,
        scopes: vec!["api"],
        is_active: true,
        is_revoked: false,
        expires_at: Some("2099-01-01"),
    }
}

fn start(hub: &DataHub, lines: &str) -> (Gateway, Browser) {
    let gateway = Setup::new(&[("a", hub)]).and("app.arcmanager = true").and(lines).start();
    gateway.keep_secret([PAT.to_owned()]);
    let browser = Browser::default();
    browser.log_in(&gateway, "a", hub, "testuser");
    (gateway, browser)
}

fn add(browser: &Browser, gateway: &Gateway, pat: &str) -> Answer {
    let body = json!({ "pat": pat }).to_string();
    browser.fetch_with(gateway, "PUT", "/auth/addPAT", "application/json", body.as_bytes())
}

fn session(browser: &Browser, gateway: &Gateway) -> Value {
    browser.fetch(gateway, "GET", "/auth/session").json()["sessions"][0].clone()
}

fn bearers(hub: &DataHub, path: &str) -> Vec<String> {
    let requests = hub.requests().into_iter().filter(|request| request.target().ends_with(path));
    requests.map(|request| request.header("authorization").unwrap_or_default()).collect()
}

#[test]
fn a_session_goes_on_with_a_personal_access_token() {
    let hub = datahub_with(|behaviour| behaviour.personal_tokens = vec![personal_token()]);
    let (gateway, browser) = start(&hub, "");
    let (before, sid) = (session(&browser, &gateway), browser.cookie("__Host-Http-sid-a"));
    let old = browser.copy();
    hub.clear();
    let answer = add(&browser, &gateway, PAT);
    browser.keep_jar_secret(&gateway);
    assert_eq!((answer.status, answer.text().as_str()), (200, "Your Personal Access token was added successfully!"));
    assert_eq!(answer.header("content-type").as_deref(), Some("text/plain; charset=utf-8"));
    let mut cookies = answer.headers("set-cookie");
    cookies.sort();
    let names: Vec<_> = cookies.iter().map(|cookie| cookie.split('=').next().expect("a name")).collect();
    assert_eq!(names, ["__Host-Http-session-a", "__Host-Http-sid-a", "logged_in", "pat", "timer", "username"]);
    assert!(cookies[3].starts_with("pat=true; SameSite=Strict; Secure; Path=/"), "{cookies:?}");
    assert!(!cookies[3].contains("Max-Age"), "{cookies:?}");

    // The same person and the same end, another sid; nothing of it is idle.
    let after = session(&browser, &gateway);
    assert_ne!(browser.cookie("__Host-Http-sid-a"), sid);
    assert_eq!((&after["user"], &after["scopes"]), (&before["user"], &json!(["api"])));
    let week = SystemTime::now() + Duration::from_mins(7 * 24 * 60 + 1);
    assert!(after["session_ends_at"].as_str() > before["session_ends_at"].as_str(), "{after} {before}");
    assert!(after["session_ends_at"].as_str() < Some(&humantime::format_rfc3339_seconds(week).to_string()), "{after}");
    assert_eq!(browser.fetch(&gateway, "GET", USER).json()["username"], "testuser");
    assert_eq!(bearers(&hub, "/api/v4/user"), [format!("Bearer {PAT}"), format!("Bearer {PAT}")]);

    // The pair of the login is gone, and so is whoever held it.
    assert_eq!((hub.counts().revocations, hub.live_tokens().len()), (1, 0));
    assert_eq!(old.fetch(&gateway, "GET", USER).code(), "session_expired");
    assert_eq!(gateway.wait_for_event("pat_accepted")["datahub"], "a");

    // Nobody renews it, and a logout forgets it.
    for method in ["POST", "GET"] {
        let answer = browser.fetch(&gateway, method, "/auth/refresh");
        assert_eq!(answer.status, 200);
        assert!(answer.headers("set-cookie").iter().any(|cookie| cookie.starts_with("pat=true;")), "{}", answer.head);
        assert!(!answer.head.contains("__Host-Http-"), "{}", answer.head);
    }
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/logout").text(), "logout successful");
    assert_eq!(browser.cookie_field(), "");
    assert_eq!((hub.counts().refreshes, hub.counts().revocations), (0, 1));
    // After a login there is none any more, and the same one is taken again.
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(
        (browser.cookie("pat"), session(&browser, &gateway)["scopes"].as_array().map(Vec::len)),
        (None, Some(3))
    );
    assert_eq!(add(&browser, &gateway, PAT).status, 200);
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
    // A login takes its place and does not revoke it, either.
    let revocations = hub.counts().revocations;
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!((hub.counts().revocations, browser.cookie("pat")), (revocations, None));
    let revoked: Vec<_> = hub.requests().into_iter().filter(|request| request.target() == "/oauth/revoke").collect();
    let names_it = |body: &[u8]| String::from_utf8_lossy(body).contains(PAT);
    assert!(revoked.len() == 2 && !revoked.iter().any(|request| names_it(&request.body)), "{}", revoked.len());
}

/// Each is refused for what its name says: `a_session_goes_on_with_a_personal_access_token` is their twin.
#[test]
fn a_token_that_is_not_the_persons_own_and_plain_is_refused_and_the_session_stays() {
    let hub = datahub();
    let (gateway, browser) = start(&hub, "");
    let held = browser.cookie_field();
    let known = |change: fn(&mut PersonalToken)| {
        let mut token = personal_token();
        change(&mut token);
        vec![token]
    };
    for (case, tokens) in [
        ("unknown", Vec::new()),
        ("another person's", known(|token| token.user = 8)),
        ("not active", known(|token| token.is_active = false)),
        ("revoked", known(|token| token.is_revoked = true)),
        ("expired", known(|token| token.expires_at = Some("2020-01-01"))),
        ("sudo", known(|token| token.scopes = vec!["api", "sudo"])),
        ("admin mode", known(|token| token.scopes = vec!["admin_mode", "api"])),
        ("no API", known(|token| token.scopes = vec!["read_user", "read_repository"])),
        ("no scope", known(|token| token.scopes = Vec::new())),
    ] {
        hub.set(|behaviour| behaviour.personal_tokens = tokens);
        let answer = add(&browser, &gateway, PAT);
        assert_eq!((answer.status, answer.code().as_str()), (400, "pat_refused"), "{case}");
        let detail = answer.json()["detail"].as_str().expect("a text").to_owned();
        assert!(detail.contains("token") && detail.contains("api"), "{detail}");
        assert_eq!((answer.headers("set-cookie").len(), browser.cookie_field()), (0, held.clone()), "{case}");
    }
    assert_eq!(gateway.wait_for_event("pat_refused")["datahub"], "a");
    // What GitLab gave an application is no personal token, though it is the person's.
    let own = hub.live_tokens().remove(0).access_token;
    assert_eq!(add(&browser, &gateway, &own).code(), "pat_refused");
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200, "the session is as it was");
    assert_eq!(hub.counts().revocations, 0);
    for scopes in [vec!["api", "read_repository"], vec!["read_api"]] {
        hub.set(|behaviour| behaviour.personal_tokens = vec![PersonalToken { scopes, ..personal_token() }]);
        assert_eq!(add(&browser, &gateway, PAT).status, 200);
        browser.keep_jar_secret(&gateway);
    }
}

#[test]
fn a_body_that_holds_no_token_is_refused_before_anybody_is_asked() {
    let hub = datahub_with(|behaviour| behaviour.personal_tokens = vec![personal_token()]);
    let (gateway, browser) = start(&hub, "");
    hub.clear();
    let (json, good) = ("application/json", format!("{{\"pat\":\"{PAT}\"}}"));
    let long = |length: usize| format!("{{\"pat\":\"{}\"}}", "a".repeat(length));
    for (case, kind, body, status, code) in [
        ("no JSON", json, PAT.to_owned(), 400, "bad_request"),
        ("nothing", json, String::new(), 400, "bad_request"),
        ("no object", json, format!("[\"{PAT}\"]"), 400, "bad_request"),
        ("no text", json, "{\"pat\":7}".to_owned(), 400, "bad_request"),
        ("another name", json, format!("{{\"token\":\"{PAT}\"}}"), 400, "bad_request"),
        ("more than that", json, format!("{{\"pat\":\"{PAT}\",\"sudo\":\"root\"}}"), 400, "bad_request"),
        ("twice", json, format!("{{\"pat\":\"{PAT}\",\"pat\":\"{PAT}\"}}"), 400, "bad_request"),
        ("a form", "application/x-www-form-urlencoded", format!("pat={PAT}"), 400, "bad_request"),
        ("a simple request's type", "text/plain", good.clone(), 400, "bad_request"),
        ("empty", json, "{\"pat\":\"\"}".to_owned(), 400, "pat_refused"),
        ("a space", json, format!("{{\"pat\":\" {PAT}\"}}"), 400, "pat_refused"),
        ("a line end", json, format!("{{\"pat\":\"{PAT}\\r\\nSudo: root\"}}"), 400, "pat_refused"),
        ("an umlaut", json, "{\"pat\":\"glpat-tüb\"}".to_owned(), 400, "pat_refused"),
        ("513 bytes", json, long(513), 400, "pat_refused"),
        ("10 KiB", json, long(10_240), 400, "pat_refused"),
        ("more than any route reads", json, long(65_536), 400, "bad_request"),
    ] {
        let answer = browser.fetch_with(&gateway, "PUT", "/auth/addPAT", kind, body.as_bytes());
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{case}");
        assert!(answer.json()["detail"].is_string() && answer.headers("set-cookie").is_empty(), "{case}");
    }
    assert!(hub.requests().is_empty());
    assert_eq!(browser.fetch_with(&gateway, "PUT", "/auth/addPAT", json, long(512).as_bytes()).code(), "pat_refused");
    assert_eq!(bearers(&hub, "/api/v4/user").len(), 1, "this one may be a token");
    let kind = "application/json; charset=utf-8";
    assert_eq!(browser.fetch_with(&gateway, "PUT", "/auth/addPAT", kind, good.as_bytes()).status, 200);
    browser.keep_jar_secret(&gateway);
}

#[test]
fn it_is_there_for_the_arcmanagers_app_with_a_session_alone() {
    let hub = datahub_with(|behaviour| behaviour.personal_tokens = vec![personal_token()]);
    let (gateway, browser) = start(&hub, "");
    for method in ["GET", "POST", "DELETE"] {
        let answer = browser.fetch(&gateway, method, "/auth/addPAT");
        assert_eq!((answer.status, answer.header("allow").as_deref()), (405, Some("PUT")), "{method}");
    }
    let body = format!("{{\"pat\":\"{PAT}\"}}");
    let put = |browser: &Browser, path: &str, fields: &str| {
        let fields = format!("{fields}Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        browser.send(&gateway, "PUT", &format!("{BASE}{path}"), &fields, body.as_bytes())
    };
    let elsewhere = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n";
    assert_eq!(put(&browser, "/auth/addPAT", elsewhere).code(), "cross_site_request");
    assert_eq!(put(&browser, "/auth/addPAT", "").code(), "cross_site_request");
    assert_eq!(put(&browser, "/auth/addPAT", &format!("{FETCH}Sec-Purpose: prefetch\r\n")).code(), "prefetch_refused");
    assert_eq!(put(&browser, "/auth/addPAT?datahub=b", FETCH).code(), "unknown_datahub");
    assert_eq!(put(&Browser::default(), "/auth/addPAT", FETCH).code(), "not_logged_in");
    assert!(bearers(&hub, "/personal_access_tokens/self").is_empty());
    assert_eq!(put(&browser, "/auth/addPAT?datahub=a", FETCH).status, 200);
    browser.keep_jar_secret(&gateway);
    // A thief of the cookie needs the sid, too.
    let thief = browser.copy();
    thief.remove_cookie("__Host-Http-sid-a");
    assert_eq!(thief.fetch(&gateway, "GET", USER).code(), "not_logged_in");
}

/// Each of them asks the DataHUB, which counts them all as ours.
#[test]
fn a_client_tries_as_many_as_it_may_begin_logins() {
    let hub = datahub();
    let (gateway, browser) = start(&hub, "rate_limit.login = \"2/1m\"\nserver.trusted_proxies = [\"127.0.0.1\"]");
    let body = format!("{{\"pat\":\"{PAT}\"}}");
    let fields = format!(
        "{FETCH}X-Forwarded-For: 192.0.2.7\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    let put = || browser.send(&gateway, "PUT", &format!("{BASE}/auth/addPAT"), &fields, body.as_bytes());
    assert_eq!([put(), put()].map(|answer| answer.code()), ["pat_refused", "pat_refused"]);
    let limited = put();
    assert_eq!((limited.status, limited.code().as_str()), (429, "rate_limited"));
    assert!(limited.header("retry-after").is_some());
}

#[test]
fn a_datahub_that_does_not_answer_leaves_the_session_as_it_was() {
    let hub = datahub_with(|behaviour| behaviour.personal_tokens = vec![personal_token()]);
    let (gateway, browser) = start(&hub, "timeouts.back_channel = \"400ms\"");
    let held = browser.cookie_field();
    let raw = |text: &str| Manner::Raw(text.as_bytes().to_vec());
    for (case, manner, status, comes_back) in [
        ("broken", Manner::Status(500), 502, true),
        ("busy", Manner::Status(429), 502, true),
        ("closed", Manner::CloseWithoutAnswer, 502, true),
        ("silent", Manner::Hang, 502, true),
        ("no JSON", raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html"), 502, false),
        ("another's JSON", raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), 502, false),
        ("leads away", Manner::Redirect("http://canary.test/".to_owned()), 502, false),
    ] {
        hub.set(|behaviour| behaviour.api.answer = manner);
        let answer = add(&browser, &gateway, PAT);
        assert_eq!(
            (answer.status, answer.header("retry-after").is_some()),
            (status, comes_back),
            "{case}: {}",
            answer.text()
        );
        assert_eq!((answer.headers("set-cookie").len(), browser.cookie_field()), (0, held.clone()), "{case}");
    }
    hub.set(|behaviour| behaviour.api.answer = Manner::Normal);
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
    assert_eq!(add(&browser, &gateway, PAT).status, 200);
    browser.keep_jar_secret(&gateway);
}

#[test]
fn it_ends_with_the_token_or_with_the_session() {
    let day = |days: u64| {
        let time = SystemTime::now() + Duration::from_secs(days * 86_400);
        &*humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned().leak()
    };
    let hub = datahub();
    let (gateway, browser) = start(&hub, "session.idle_timeout = \"7d\"");
    let absolute = session(&browser, &gateway)["session_ends_at"].as_str().expect("a time").to_owned();
    for (case, expires_at, expected) in [
        ("never", None, absolute.clone()),
        ("after the session", Some(day(30)), absolute.clone()),
        ("before it", Some(day(3)), format!("{}T00:00:00Z", day(3))),
    ] {
        hub.set(|behaviour| behaviour.personal_tokens = vec![PersonalToken { expires_at, ..personal_token() }]);
        assert_eq!(add(&browser, &gateway, PAT).status, 200, "{case}");
        browser.keep_jar_secret(&gateway);
        let session = session(&browser, &gateway);
        assert_eq!(
            (&session["session_ends_at"], &session["expires_at"]),
            (&json!(expected), &json!(expected)),
            "{case}"
        );
    }
}

/// Another tab may have put something newer into the jar, so the call is sent again once.
#[test]
fn a_token_that_the_person_revokes_ends_the_session() {
    let hub = datahub_with(|behaviour| behaviour.personal_tokens = vec![personal_token()]);
    let (gateway, browser) = start(&hub, "");
    assert_eq!(add(&browser, &gateway, PAT).status, 200);
    browser.keep_jar_secret(&gateway);
    hub.set(|behaviour| behaviour.personal_tokens.clear());
    let first = browser.fetch(&gateway, "GET", USER);
    assert_eq!((first.status, first.headers("set-cookie").len()), (307, 0));
    let path = format!("{USER}{}", first.location());
    let second = browser.fetch(&gateway, "GET", &path);
    assert_eq!(
        (second.status, second.code().as_str(), second.headers("set-cookie").len()),
        (401, "session_expired", 0)
    );
    // That is remembered: the DataHUB is not asked twice.
    hub.clear();
    assert_eq!(browser.fetch(&gateway, "GET", USER).code(), "session_expired");
    assert_eq!((hub.requests().len(), session(&browser, &gateway)), (0, Value::Null));
    // Until it says yes to the very token.
    hub.set(|behaviour| behaviour.personal_tokens = vec![personal_token()]);
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(add(&browser, &gateway, PAT).status, 200);
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
}

/// Two tabs: the one's refresh is under way when the other changes to a personal token.
#[test]
fn a_refresh_under_way_brings_the_old_session_back_to_nobody() {
    for (case, delay) in [("in time", 400), ("too late", 2_500)] {
        let hub = datahub_with(|behaviour| {
            behaviour.token_lifetime = Duration::from_secs(4);
            behaviour.personal_tokens = vec![personal_token()];
        });
        let (gateway, browser) = start(&hub, "");
        std::thread::sleep(Duration::from_millis(3_200));
        hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(delay));
        let other_tab = browser.copy();
        std::thread::scope(|scope| {
            let call = scope.spawn(|| other_tab.fetch(&gateway, "GET", USER));
            std::thread::sleep(Duration::from_millis(150));
            assert_eq!(add(&browser, &gateway, PAT).status, 200, "{case}");
            browser.keep_jar_secret(&gateway);
            let late = call.join().expect("no panic");
            assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200, "{case}");
            // The late answer's cookie beside the new sid is no session, and not the old one.
            if late.headers("set-cookie").iter().any(|cookie| cookie.starts_with("__Host-Http-session-a=")) {
                let mixed = browser.copy();
                mixed.apply(&late);
                assert_eq!(mixed.fetch(&gateway, "GET", USER).code(), "not_logged_in", "{case}");
            }
        });
        wait_until(|| hub.live_tokens().is_empty());
        assert_eq!(browser.fetch(&gateway, "GET", USER).json()["username"], "testuser", "{case}");
    }
}

/// A person who logs out while the DataHUB is asked about a token is logged out.
#[test]
fn a_logout_meanwhile_counts() {
    for (logs_out, status) in [(true, 401), (false, 200)] {
        let hub = datahub_with(|behaviour| {
            let slow = Way { answer_delay: Duration::from_secs(1), ..Way::default() };
            behaviour.by_path = vec![("/api/v4/personal_access_tokens", slow)];
            behaviour.personal_tokens = vec![personal_token()];
        });
        let (gateway, browser) = start(&hub, "");
        hub.clear();
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| add(&browser.copy(), &gateway, PAT));
            wait_until(|| hub.requests().iter().any(|request| request.path().contains("personal_access_tokens")));
            if logs_out {
                assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
            }
            let answer = adding.join().expect("no panic");
            assert_eq!(answer.status, status, "{}", answer.text());
            assert!(!logs_out || answer.code() == "session_expired", "{}", answer.text());
            let sets_session = answer.headers("set-cookie").iter().any(|it| it.starts_with("__Host-Http-session-a=A"));
            assert_eq!(sets_session, !logs_out);
        });
    }
}

/// Without `datahub` it is about the session that began last; the other one goes on as it is.
#[test]
fn of_several_sessions_the_one_that_began_last_goes_on_with_it() {
    let hubs = [(); 2].map(|()| datahub_with(|behaviour| behaviour.personal_tokens = vec![personal_token()]));
    let gateway = Setup::new(&[("a", &hubs[0]), ("b", &hubs[1])]).and("app.arcmanager = true").start();
    gateway.keep_secret([PAT.to_owned()]);
    let browser = Browser::default();
    browser.log_in(&gateway, "b", &hubs[1], "testuser");
    std::thread::sleep(Duration::from_millis(1_100));
    browser.log_in(&gateway, "a", &hubs[0], "testuser");
    assert_eq!(add(&browser, &gateway, PAT).status, 200);
    browser.keep_jar_secret(&gateway);
    assert_eq!(hubs.each_ref().map(|hub| hub.live_tokens().len()), [0, 1]);
    assert_eq!(browser.cookie("pat").as_deref(), Some("true"));
    for path in [USER, "/datahubs/b/api/v4/user"] {
        assert_eq!(browser.fetch(&gateway, "GET", path).status, 200, "{path}");
    }
    // The one that is left has no personal token.
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/logout?datahub=a").status, 200);
    assert_eq!((browser.cookie("pat"), browser.cookie("logged_in").as_deref()), (None, Some("true")));
}
