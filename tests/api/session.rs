//! Who is logged in, and by which cookies.

use serde_json::json;

use crate::browser::{Answer, Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub, new_key};

const SESSION: &str = "__Host-Http-session-a";
const SID: &str = "__Host-Http-sid-a";

#[test]
fn the_session_says_who_one_is_and_nothing_that_is_secret() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let nobody = browser.fetch(&gateway, "GET", "/auth/session");
    assert_eq!((nobody.status, nobody.json()["sessions"].clone()), (200, json!([])));

    browser.log_in(&gateway, "a", &hub, "joerg");
    let answer = browser.fetch(&gateway, "GET", "/auth/session");
    let status = answer.json();
    let session = &status["sessions"][0];
    assert_eq!(session["datahub"], "a");
    assert_eq!(session["user"]["username"], "joerg");
    assert_eq!(session["user"]["name"], "Jörg 100% Müller");
    assert!(session["user"]["id"].is_string());
    assert_eq!(session["scopes"], json!(["openid", "profile", "api"]));
    for time in [&session["expires_at"], &session["session_ends_at"], &status["now"]] {
        let text = time.as_str().expect("a text");
        assert!(text.len() == 20 && text.ends_with('Z'), "{text}");
    }
    let names: Vec<_> = session.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, ["datahub", "expires_at", "scopes", "session_ends_at", "user"]);
    assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
    assert_eq!(answer.header("vary").as_deref(), Some("Cookie"));
    for secret in hub.secrets() {
        assert!(!answer.text().contains(&secret) && !answer.head.contains(&secret));
    }
}

#[test]
fn two_sessions_at_two_datahubs_live_in_one_browser() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("one", &one), ("other", &other)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "other", &other, "joerg");
    browser.log_in(&gateway, "one", &one, "testuser");
    let status = browser.fetch(&gateway, "GET", "/auth/session").json();
    let who: Vec<_> = status["sessions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| (&s["datahub"], &s["user"]["username"]))
        .collect();
    assert_eq!(who, [(&json!("one"), &json!("testuser")), (&json!("other"), &json!("joerg"))]);
    for (id, user) in [("one", "testuser"), ("other", "joerg")] {
        let me = browser.fetch(&gateway, "GET", &format!("/datahubs/{id}/api/v4/user"));
        assert_eq!((me.status, me.json()["username"].clone()), (200, json!(user)));
    }
    // PQ-15: no DataHUB has seen the other's token.
    let bearer = |hub: &datahub::DataHub| {
        hub.requests().iter().filter_map(|request| request.header("authorization")).collect::<Vec<_>>()
    };
    for token in other.secrets() {
        assert!(!bearer(&one).iter().any(|value| value.contains(&token)));
    }
}

#[test]
fn two_processes_with_one_key_serve_one_browser_by_turns() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let (first, second) = (setup.start(), setup.start());
    let browser = Browser::default();
    // Begun at one process, ended at the other.
    let callback = browser.begin_login(&first, "a", &hub, "testuser");
    assert_eq!(browser.open(&second, &callback).location(), "/arcmanager/app/");
    for _ in 0..5 {
        assert_eq!(browser.fetch(&first, "GET", "/datahubs/a/api/v4/user").status, 200);
        assert_eq!(browser.fetch(&second, "GET", "/datahubs/a/api/v4/user").status, 200);
    }
    assert_eq!(browser.fetch(&first, "POST", "/auth/logout").status, 204);
    assert_eq!(browser.fetch(&second, "GET", "/datahubs/a/api/v4/user").code(), "not_logged_in");
}

/// SC-02, SC-03, CR-03, CR-04, CR-08, CR-09: one and the same answer to all of them.
#[test]
fn a_cookie_that_is_not_exactly_ours_is_no_session() {
    let (hub, other_hub) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &hub), ("b", &other_hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    browser.log_in(&gateway, "b", &other_hub, "testuser");
    let value = |name: &str| browser.cookie(name).expect(name);
    let (session, sid) = (value(SESSION), value(SID));
    let good = format!("{SESSION}={session}; {SID}={sid}");
    assert_eq!(with_cookies(&gateway, &[&good]).status, 200);

    let stranger = Browser::default();
    stranger.log_in(&gateway, "a", &hub, "joerg");
    let mut cases: Vec<(String, Vec<String>)> = [
        ("no cookie", "x=y".to_owned()),
        ("no sid", format!("{SESSION}={session}")),
        ("no session", format!("{SID}={sid}")),
        ("another login's sid", format!("{SESSION}={session}; {SID}={}", stranger.cookie(SID).expect("a sid"))),
        (
            "another DataHUB's session",
            format!("{SESSION}={}; {SID}={}", value("__Host-Http-session-b"), value("__Host-Http-sid-b")),
        ),
        ("an escaped name", format!("{}={session}; {SID}={sid}", SESSION.replace("__", "%5F%5F"))),
        ("a name in lower case", format!("{}={session}; {SID}={sid}", SESSION.to_lowercase())),
        ("a name inside a value", format!("x={SESSION}={session}; {SID}={sid}")),
        ("a name with a space", format!("{SESSION}%20={session}; {SID}={sid}")),
        ("padding", format!("{SESSION}={session}=; {SID}={sid}")),
        ("quotes", format!("{SESSION}=\"{session}\"; {SID}={sid}")),
        ("a byte more", format!("{SESSION}={session}A; {SID}={sid}")),
        ("a second session", format!("{good}; {SESSION}={session}")),
        ("junk before", format!("{SESSION}=junk; {good}")),
        ("junk behind", format!("{good}; {SESSION}=junk")),
        ("a second sid", format!("{good}; {SID}={sid}")),
    ]
    .map(|(case, cookies)| (case.to_owned(), vec![cookies]))
    .to_vec();
    cases.push(("junk in a field of its own".into(), vec![good.clone(), format!("{SESSION}=junk")]));
    for at in (0..session.len()).step_by(7) {
        let other = if &session[at..=at] == "A" { "B" } else { "A" };
        let altered = format!("{}{other}{}", &session[..at], &session[at + 1..]);
        cases.push((format!("letter {at} changed"), vec![format!("{SESSION}={altered}; {SID}={sid}")]));
        cases.push((format!("cut at {at}"), vec![format!("{SESSION}={}; {SID}={sid}", &session[..at])]));
    }
    let expected = with_cookies(&gateway, &["x=y"]).without_ids();
    hub.clear();
    for (case, fields) in &cases {
        let answer = with_cookies(&gateway, &fields.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((answer.status, answer.code().as_str()), (401, "not_logged_in"), "{case}");
        assert_eq!(answer.without_ids(), expected, "{case}");
    }
    assert!(hub.requests().is_empty(), "nothing was forwarded");
    gateway.wait_for_event("duplicate_cookie");
    gateway.wait_for_event("unseal_failed");
}

/// CR-03, CR-06.
#[test]
fn a_cookie_is_worth_nothing_under_another_key_or_at_another_address() {
    let hub = datahub();
    let (key, other) = (new_key(), new_key());
    let setup = |keys: &[&str]| Setup::with_keys(&[("a", &hub)], keys);
    let gateway = setup(&[&key]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let call = |gateway: &Gateway| browser.fetch(gateway, "GET", "/datahubs/a/api/v4/user").status;

    assert_eq!(call(&setup(&[&key]).start()), 200);
    assert_eq!(call(&setup(&[&other, &key]).start()), 200, "a newer key stands before ours");
    assert_eq!(call(&setup(&[&other]).start()), 401);
    assert_eq!(call(&setup(&[&key]).and("server.public_url = \"https://elsewhere.example\"").start()), 401);
}

/// SC-05, SC-06.
#[test]
fn a_session_ends_when_it_said_it_would_whatever_the_browser_kept() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("session.max_age = \"2s\"").start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "session_expired");
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/session").json()["sessions"], json!([]));
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/refresh").code(), "session_expired");
    browser.log_in(&gateway, "a", &hub, "testuser");
}

/// The test's own Cookie fields, as they are.
fn with_cookies(gateway: &Gateway, fields: &[&str]) -> Answer {
    let cookies: String = fields.iter().map(|field| format!("Cookie: {field}\r\n")).collect();
    Browser::default().send(
        gateway,
        "GET",
        &format!("{BASE}/datahubs/a/api/v4/user"),
        &format!("{FETCH}{cookies}"),
        b"",
    )
}
