//! The way back from a DataHUB.

use std::time::{Duration, Instant};

use datahub::behaviour::Answer;

use crate::browser::{Answer as Got, Browser, parameter, sign_in};
use crate::gateway::{BASE, Gateway, Setup, datahub};

/// SC-01, CB-09.
#[test]
fn a_login_ends_in_the_app_with_a_session_and_its_sid() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    let answer = browser.open(&gateway, &callback);
    browser.keep_jar_secret(&gateway);
    gateway.keep_secret(hub.secrets());

    assert_eq!((answer.status, answer.location().as_str(), answer.text().as_str()), (303, "/arcmanager/app/", ""));
    assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
    assert_eq!(answer.header("referrer-policy").as_deref(), Some("no-referrer"));
    let cookies = answer.headers("set-cookie");
    let cookie = |name: &str| cookies.iter().find(|cookie| cookie.starts_with(name)).expect(name);
    for name in ["__Host-Http-session-a=", "__Host-Http-sid-a="] {
        assert!(cookie(name).ends_with("; HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=86400"), "{cookies:?}");
    }
    assert!(cookie("__Host-Http-login=;").contains("Max-Age=0"), "the pending login is spent");
    let session = browser.cookie("__Host-Http-session-a").expect("a session");
    assert!(session.len() <= 200, "{} bytes for 64 + 64 hex digits", session.len());
    let event = gateway.wait_for_event("login_ok");
    assert_eq!(
        (event["datahub"].as_str(), event["request_id"].as_str()),
        (Some("a"), answer.header("x-request-id").as_deref())
    );
}

/// CB-01, CB-05, AR-03: refused before anything is sent to the DataHUB.
#[test]
fn a_callback_that_does_not_belong_to_this_browsers_login_is_refused() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub), ("b", &hub)]).start();
    let query = |target: &str, name: &str| parameter(target, name).expect(name);
    for (case, told, spoil) in [
        (
            "no state",
            "failed",
            (|_, _, code, _| format!("code={code}")) as fn(&Browser, &Gateway, &str, &str) -> String,
        ),
        ("another state", "expired", |_, _, code, _| format!("code={code}&state=AAAAAAAAAAAAAAAAAAAAAA")),
        ("an empty state", "expired", |_, _, code, _| format!("code={code}&state=")),
        ("two states", "failed", |_, _, code, state| format!("code={code}&state={state}&state={state}")),
        ("two codes", "failed", |_, _, code, state| format!("code={code}&code={code}&state={state}")),
        ("a code and an error", "failed", |_, _, code, state| format!("code={code}&error=x&state={state}")),
        ("neither", "failed", |_, _, _, state| format!("state={state}")),
        ("an empty code", "failed", |_, _, _, state| format!("code=&state={state}")),
        ("a code of 4 KiB", "failed", |_, _, _, state| format!("code={}&state={state}", "a".repeat(4_096))),
        ("a code with a control character", "failed", |_, _, _, state| format!("code=a%00b&state={state}")),
        ("no cookie", "cookies_blocked", |browser, _, code, state| {
            browser.remove_cookie("__Host-Http-login");
            format!("code={code}&state={state}")
        }),
        ("a cookie with a letter changed", "cookies_blocked", |browser, _, code, state| {
            let cookie = browser.cookie("__Host-Http-login").expect("a pending login");
            let at = cookie.len() - 20;
            let other = if &cookie[at..=at] == "A" { "B" } else { "A" };
            browser.set_cookie("__Host-Http-login", &format!("{}{other}{}", &cookie[..at], &cookie[at + 1..]));
            format!("code={code}&state={state}")
        }),
        ("another browser's login", "expired", |browser, gateway, code, state| {
            let other = Browser::default();
            other.authorize(gateway, "a");
            browser.set_cookie("__Host-Http-login", &other.cookie("__Host-Http-login").expect("a pending login"));
            format!("code={code}&state={state}")
        }),
    ] {
        let browser = Browser::default();
        let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
        let query = spoil(&browser, &gateway, &query(&callback, "code"), &query(&callback, "state"));
        let before = hub.counts();
        let answer = browser.open(&gateway, &format!("{BASE}/auth/callback?datahub=a&{query}"));
        refused(&answer, told, case);
        let after = hub.counts();
        assert_eq!(
            (after.code_exchanges, after.code_exchanges_refused),
            (before.code_exchanges, before.code_exchanges_refused),
            "{case}"
        );
    }
    gateway.wait_for_event("state_mismatch");
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
}

/// CB-03.
#[test]
fn a_login_ends_at_the_datahub_where_it_began() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("one", &one), ("other", &other)]).start();
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "one", &one, "testuser").replace("datahub=one", "datahub=other");
    refused(&browser.open(&gateway, &callback), "failed", "mixed up");
    assert_eq!(one.counts().code_exchanges + one.counts().code_exchanges_refused, 0);
    assert_eq!(other.counts().code_exchanges + other.counts().code_exchanges_refused, 0);
    gateway.wait_for_event("state_mismatch");
}

/// CB-02.
#[test]
fn a_callback_works_once() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    let saved = browser.copy();
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/");
    refused(&browser.open(&gateway, &callback), "cookies_blocked", "the same jar");
    refused(&saved.open(&gateway, &callback), "failed", "a copy of the pending login: the DataHUB refuses the code");
    assert_eq!(hub.counts().code_exchanges, 1);
}

/// CB-06.
#[test]
fn what_a_datahub_says_no_with_is_a_fixed_word() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for (error, told) in
        [("access_denied", "denied"), ("server_error", "unavailable"), ("%3Csvg%20onload=alert(1)%3E", "failed")]
    {
        let browser = Browser::default();
        let state = parameter(&browser.authorize(&gateway, "a"), "state").expect("a state");
        let target = format!(
            "{BASE}/auth/callback?datahub=a&state={state}&error={error}&error_description=%3Csvg%3E&error_uri=javascript:1"
        );
        let answer = browser.open(&gateway, &target);
        refused(&answer, told, error);
        assert!(!answer.head.contains("svg") && !answer.head.contains("javascript"), "{}", answer.head);
        assert!(browser.cookie("__Host-Http-login").is_none(), "the pending login is spent");
    }
    let browser = Browser::default();
    let callback = sign_in(&hub, &browser.authorize(&gateway, "a"), "deny=true");
    refused(&browser.open(&gateway, &callback), "denied", "the page's own button");
}

#[test]
fn two_tabs_log_in_at_once_and_of_four_the_oldest_is_forgotten() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("one", &one), ("other", &other)]).start();
    let browser = Browser::default();
    let first = browser.begin_login(&gateway, "one", &one, "testuser");
    let second = browser.begin_login(&gateway, "other", &other, "joerg");
    assert_eq!(browser.open(&gateway, &first).location(), "/arcmanager/app/");
    assert_eq!(browser.open(&gateway, &second).location(), "/arcmanager/app/");

    let browser = Browser::default();
    let oldest = browser.begin_login(&gateway, "one", &one, "testuser");
    // What is older is told by whole seconds.
    std::thread::sleep(Duration::from_millis(1_100));
    let later: Vec<_> = (0..3).map(|_| browser.begin_login(&gateway, "one", &one, "testuser")).collect();
    refused(&browser.open(&gateway, &oldest), "expired", "the fourth last");
    for callback in later {
        assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/");
    }
}

/// CB-07.
#[test]
fn a_token_endpoint_that_misbehaves_ends_the_login_without_a_session() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("timeouts.back_channel = \"1s\"").start();
    let json = |body: &str| {
        Answer::Raw(
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        )
    };
    for (case, trouble, told) in [
        ("closed", Answer::CloseWithoutAnswer, "unavailable"),
        ("hangs", Answer::Hang, "unavailable"),
        ("broken", Answer::Status(500), "unavailable"),
        ("a page", Answer::Html(200), "failed"),
        ("leads away", Answer::Redirect("http://127.0.0.1:9/".into()), "failed"),
        ("no tokens", json("{}"), "failed"),
        ("another kind of token", json(r#"{"access_token":"a","token_type":"mac","expires_in":1}"#), "failed"),
        (
            "no ID token",
            json(r#"{"access_token":"a","token_type":"Bearer","expires_in":7200,"refresh_token":"b"}"#),
            "failed",
        ),
        ("a lifetime below nothing", json(r#"{"access_token":"a","token_type":"Bearer","expires_in":-1}"#), "failed"),
        ("a megabyte", json(&format!(r#"{{"access_token":"{}"}}"#, "a".repeat(1 << 20))), "failed"),
    ] {
        let browser = Browser::default();
        let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
        hub.set(|behaviour| behaviour.token.answer = trouble);
        let started = Instant::now();
        refused(&browser.open(&gateway, &callback), told, case);
        assert!(started.elapsed() < Duration::from_secs(5), "{case}");
        hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    }
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
}

#[test]
fn userinfo_must_speak_of_the_person_of_the_id_token() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for (case, body) in
        [("another person", r#"{"sub":"8","name":"x"}"#), ("nobody", r#"{"name":"x"}"#), ("a list", "[]")]
    {
        let browser = Browser::default();
        let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        hub.set(|behaviour| behaviour.userinfo.answer = Answer::Raw(answer.into_bytes()));
        refused(&browser.open(&gateway, &callback), "failed", case);
        hub.set(|behaviour| behaviour.userinfo.answer = Answer::Normal);
    }
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
}

/// ID-09.
#[test]
fn a_datahub_changes_its_keys_without_a_restart_and_cannot_be_made_to_send_them_each_time() {
    use datahub::behaviour::SigningKey;

    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
    let before = hub.counts().key_fetches;
    hub.set(|behaviour| behaviour.signing_key = SigningKey::Second);
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(hub.counts().key_fetches, before + 1);

    // Another unknown key within the minute.
    hub.set(|behaviour| behaviour.signing_key = SigningKey::First);
    for _ in 0..3 {
        let browser = Browser::default();
        let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
        refused(&browser.open(&gateway, &callback), "failed", "within the minute");
    }
    assert_eq!(hub.counts().key_fetches, before + 1);
}

/// Refused: back to the app with a word, and no session.
fn refused(answer: &Got, told: &str, case: &str) {
    assert_eq!((answer.status, answer.location()), (303, format!("/arcmanager/app/?login_error={told}")), "{case}");
    let cookies = answer.headers("set-cookie");
    assert!(cookies.iter().all(|cookie| cookie.starts_with("__Host-Http-login=")), "{case}: {cookies:?}");
}
