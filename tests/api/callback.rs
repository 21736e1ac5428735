//! The way back from a DataHUB.

use std::time::{Duration, Instant};

use datahub::behaviour::Answer;

use crate::browser::{Answer as Got, Browser, FETCH, parameter, sign_in};
use crate::gateway::{BASE, Gateway, Setup, datahub, datahub_with, wait_until};

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
    // No refresh writes the second one again.
    for (name, ends) in [("__Host-Http-session-a=", "86400"), ("__Host-Http-sid-a=", "604800")] {
        let attributes = format!("; HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age={ends}");
        assert!(cookie(name).ends_with(&attributes), "{cookies:?}");
    }
    let note = cookie("__Host-Http-login=");
    assert!(note.contains("SameSite=Lax") && note.len() < 350, "where a login has ended, and no more: {note}");
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
        ("a list of codes", "failed", |_, _, code, state| format!("code[]={code}&state={state}")),
        ("a code that is no UTF-8", "failed", |_, _, _, state| format!("code=%ff%fe&state={state}")),
        ("a state that is no UTF-8", "expired", |_, _, code, _| format!("code={code}&state=%ff%fe")),
        ("nothing at all", "failed", |_, _, _, _| "&&".to_owned()),
        ("a code with a control character", "failed", |_, _, _, state| format!("code=a%00b&state={state}")),
        ("no cookie", "cookies_blocked", |browser, _, code, state| {
            browser.remove_cookie("__Host-Http-login");
            format!("code={code}&state={state}")
        }),
        ("a cookie with a letter changed", "failed", |browser, _, code, state| {
            let cookie = browser.cookie("__Host-Http-login").expect("a pending login");
            let at = cookie.len() - 20;
            let other = if &cookie[at..=at] == "A" { "B" } else { "A" };
            browser.set_cookie("__Host-Http-login", &format!("{}{other}{}", &cookie[..at], &cookie[at + 1..]));
            format!("code={code}&state={state}")
        }),
        ("two cookies of its name", "failed", |browser, _, code, state| {
            browser.set_cookie("x", "y; __Host-Http-login=z");
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
    for event in ["state_mismatch", "unseal_failed", "duplicate_cookie"] {
        let line = gateway.wait_for_event(event);
        assert!(line["reason"].is_string() && line["datahub"] == "a" && line["client"] == "127.0.0.1", "{line}");
    }
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
    for (id, hub) in [("one", &one), ("other", &other)] {
        Browser::default().log_in(&gateway, id, hub, "testuser");
    }
}

/// CB-01: of a DataHUB that is none of ours, or not one alone, nothing is looked for anywhere.
#[test]
fn a_callback_names_one_datahub_of_ours() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("datahubs.a.aliases = [\"tübingen\"]").start();
    let callback = |named: &str| {
        let browser = Browser::default();
        let target = browser.begin_login(&gateway, "a", &hub, "testuser");
        assert!(target.contains("?datahub=a&"), "{target}");
        hub.clear();
        browser.open(&gateway, &target.replace("datahub=a&", named))
    };
    for named in [
        "",
        "datahub=&",
        "datahub&",
        "datahub=b&",
        "datahub=A&",
        "datahub=../&",
        "datahub=..%2Fa&",
        "datahub=a%00&",
        "datahub=%00&",
        "datahub[]=a&",
        "datahub=a&datahub=a&",
        "datahub=b&datahub=a&",
        &format!("datahub={}&", "a".repeat(10_000)),
    ] {
        let answer = callback(named);
        refused(&answer, "failed", named);
        assert!(answer.text().is_empty() && hub.requests().is_empty(), "{named}");
    }
    for named in ["datahub=a&", "datahub=t%C3%BCbingen&"] {
        assert_eq!(callback(named).location(), "/arcmanager/app/", "{named}");
    }
}

/// CB-04: an issuer that the answer names is this one to the letter.
#[test]
fn an_answer_that_names_another_issuer_is_refused() {
    let (hub, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &hub), ("b", &other)]).start();
    for issuer in [
        other.url().to_owned(),
        format!("{}/", hub.url()),
        hub.url().to_uppercase(),
        hub.url().replace("127.0.0.1", "localhost"),
        String::new(),
        format!("{0}&iss={0}", hub.url()),
    ] {
        let browser = Browser::default();
        let callback = format!("{}&iss={issuer}", browser.begin_login(&gateway, "a", &hub, "testuser"));
        refused(&browser.open(&gateway, &callback), "failed", &issuer);
    }
    assert_eq!(hub.counts().code_exchanges + hub.counts().code_exchanges_refused, 0);
    gateway.wait_for_event("issuer_mismatch");
    let browser = Browser::default();
    let callback = format!("{}&iss={}", browser.begin_login(&gateway, "a", &hub, "testuser"), hub.url());
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/", "the same with the right one");
}

/// CB-04: a DataHUB that announces it names its issuer, in a refusal too.
#[test]
fn an_announced_issuer_is_demanded() {
    let hub = datahub_with(|behaviour| behaviour.announces_iss = true);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let callback = |choice: &str| {
        let browser = Browser::default();
        let callback = sign_in(&hub, &browser.authorize(&gateway, "a"), choice);
        let without = |target: &str| target.split("&iss=").next().expect("a first part").to_owned();
        (browser, without(&callback), callback)
    };
    for (choice, told) in [("user=testuser", None), ("deny=true", Some("denied"))] {
        let (browser, without, _) = callback(choice);
        refused(&browser.open(&gateway, &without), "failed", choice);
        let (browser, without, whole) = callback(choice);
        assert_ne!(without, whole, "the DataHUB names its issuer");
        let answer = browser.open(&gateway, &whole);
        match told {
            None => assert_eq!(answer.location(), "/arcmanager/app/"),
            Some(told) => refused(&answer, told, choice),
        }
    }
    gateway.wait_for_event("issuer_mismatch");
}

/// CB-08: nothing of the session that was there goes on, and at the DataHUB it is over.
#[test]
fn a_login_takes_the_place_of_a_session_and_revokes_its_tokens() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let before = browser.copy();

    let callback = browser.begin_login(&gateway, "a", &hub, "joerg");
    assert_eq!(hub.counts().revocations, 0, "not before the new session is there");
    assert_eq!(before.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    // The session's own cookies are Strict: they do not come back with this navigation.
    let bare = Browser::default();
    bare.set_cookie("__Host-Http-login", &browser.cookie("__Host-Http-login").expect("a pending login"));
    let answer = bare.open(&gateway, &callback);
    assert_eq!(answer.location(), "/arcmanager/app/");
    assert_eq!(hub.counts().revocations, 1);
    browser.apply(&answer);
    browser.keep_jar_secret(&gateway);
    gateway.keep_secret(hub.secrets());
    let sessions = browser.fetch(&gateway, "GET", "/auth/session").json();
    assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1));
    assert_eq!(sessions["sessions"][0]["user"]["username"], "joerg");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    assert_ne!(browser.cookie("__Host-Http-sid-a"), before.cookie("__Host-Http-sid-a"));
    assert_eq!(before.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 401, "a copy of the old one is dead");
}

/// CB-08: to GitLab a session that ended by our clock is as alive as any.
#[test]
fn a_login_revokes_the_tokens_of_a_session_that_has_ended() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("session.max_age = \"2s\"").start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "session_expired");
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(hub.counts().revocations, 1);
}

/// CB-08.
#[test]
fn a_login_that_fails_leaves_the_session_that_is_there() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let callback = sign_in(&hub, &browser.authorize(&gateway, "a"), "deny=true");
    refused(&browser.open(&gateway, &callback), "denied", "the person says no");
    let callback = browser.begin_login(&gateway, "a", &hub, "joerg");
    hub.set(|behaviour| behaviour.userinfo.answer = Answer::Status(500));
    refused(&browser.open(&gateway, &callback), "unavailable", "userinfo is out of order");
    wait_until(|| hub.counts().revocations == 1);
    let sessions = browser.fetch(&gateway, "GET", "/auth/session").json();
    assert_eq!(sessions["sessions"][0]["user"]["username"], "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
}

/// RD-04: where the person lands was fixed at the login.
#[test]
fn a_callback_follows_no_parameter() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let extra = "return_to=//evil.test&redirect_uri=https://evil.test&url=https://evil.test";
    let callback = format!("{}&{extra}", browser.begin_login(&gateway, "a", &hub, "testuser"));
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/");
    refused(&browser.open(&gateway, &format!("{BASE}/auth/callback?{extra}")), "failed", "without a login");
    let logout =
        browser.fetch(&gateway, "POST", &format!("/auth/logout?post_logout_redirect_uri=https://evil.test&{extra}"));
    assert_eq!((logout.status, logout.headers("location").len()), (204, 0));
}

#[test]
fn logins_are_counted_by_how_they_end() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
    for _ in 0..2 {
        let callback = Browser::default().begin_login(&gateway, "a", &hub, "testuser");
        refused(&Browser::default().open(&gateway, &callback), "cookies_blocked", "another browser, without a login");
    }
    let metrics = gateway.metrics();
    for line in ["gateway_logins_total{result=\"ok\"} 1", "gateway_logins_total{result=\"cookies_blocked\"} 2"] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

/// EL-06: one line about a login that fails, in plain words, with who it was; nothing of the request is in it.
#[test]
fn an_event_about_a_login_says_why() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub), ("b", &hub)]).start();
    let state = |browser: &Browser| parameter(&browser.authorize(&gateway, "a"), "state").expect("a state");
    for (case, event, told, words, query) in [
        ("no such DataHUB", "login_failed", "failed", "redirect URI", "datahub=canary&code=canary&state={state}"),
        ("no DataHUB", "login_failed", "failed", "redirect URI", "code=canary&state={state}"),
        ("twice", "login_failed", "failed", "twice", "datahub=a&code=canary&code=canary&state={state}"),
        ("no state", "login_failed", "failed", "by hand", "datahub=a&code=canary"),
        ("neither", "login_failed", "failed", "neither", "datahub=a&state={state}"),
        ("a foreign state", "state_mismatch", "expired", "gave way", "datahub=a&code=canary&state=canary"),
        ("mixed up", "state_mismatch", "failed", "another DataHUB", "datahub=b&code=canary&state={state}"),
        ("another issuer", "issuer_mismatch", "failed", "issuer", "datahub=a&code=canary&state={state}&iss=canary"),
        ("denied", "login_failed", "denied", "denied access", "datahub=a&error=access_denied&state={state}"),
        ("out of order", "login_failed", "unavailable", "out of order", "datahub=a&error=server_error&state={state}"),
        ("scopes", "login_failed", "failed", "scopes", "datahub=a&error=invalid_scope&state={state}"),
        ("an error of its own", "login_failed", "failed", "README", "datahub=a&error=canary&state={state}"),
        ("another code", "login_failed", "failed", "invalid_grant", "datahub=a&code=canary&state={state}"),
    ] {
        let browser = Browser::default();
        let query = query.replace("{state}", &state(&browser));
        let answer = browser.open(&gateway, &format!("{BASE}/auth/callback?{query}"));
        refused(&answer, told, case);
        let id = answer.header("x-request-id").expect("an id");
        gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
        let lines = gateway.log().into_iter().filter(|line| line["request_id"] == id.as_str());
        let lines: Vec<_> = lines.filter(|line| line["level"] != "TRACE" && line["target"] != "access").collect();
        assert_eq!(lines.len(), 1, "{case}: {lines:?}");
        let line = &lines[0];
        assert_eq!((&line["event"], &line["level"]), (&event.into(), &"WARN".into()), "{case}: {line}");
        assert_eq!(line["client"], "127.0.0.1", "{case}: {line}");
        let reason = line["reason"].as_str().expect(case);
        assert!(reason.contains(words) && reason.len() > 20 && !line.to_string().contains("canary"), "{case}: {line}");
    }
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
    assert!(gateway.wait_for_event("login_ok")["reason"].is_null());
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
    let again = browser.open(&gateway, &callback);
    assert_eq!((again.status, again.location().as_str()), (303, "/arcmanager/app/"), "the same jar: one is logged in");
    assert!(again.headers("set-cookie").is_empty(), "{}", again.head);
    gateway.wait_for_event("state_mismatch");
    refused(&saved.open(&gateway, &callback), "failed", "a copy of the pending login: the DataHUB refuses the code");
    assert_eq!(hub.counts().code_exchanges, 1);
}

/// CB-02: a callback spends the login that it belongs to, whatever comes of it; the same once more asks the DataHUB nothing.
#[test]
fn a_callback_spends_its_login_whatever_comes_of_it() {
    let (hub, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &hub), ("b", &other)]).start();
    let nobody = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    for (case, told) in [
        ("denied", "denied"),
        ("another DataHUB", "failed"),
        ("another issuer", "failed"),
        ("a code of another login", "failed"),
        ("the token endpoint is out of order", "unavailable"),
        ("userinfo speaks of nobody", "failed"),
    ] {
        let browser = Browser::default();
        let choice = if case == "denied" { "deny=true" } else { "user=testuser" };
        let mut callback = sign_in(&hub, &browser.authorize(&gateway, "a"), choice);
        match case {
            "another DataHUB" => callback = callback.replace("datahub=a", "datahub=b"),
            "another issuer" => callback.push_str("&iss=http://127.0.0.1:9"),
            "a code of another login" => {
                let another = Browser::default().begin_login(&gateway, "a", &hub, "testuser");
                let code = |target: &str| parameter(target, "code").expect("a code");
                callback = callback.replace(&code(&callback), &code(&another));
            }
            "the token endpoint is out of order" => hub.set(|behaviour| behaviour.token.answer = Answer::Status(500)),
            "userinfo speaks of nobody" => {
                hub.set(|behaviour| behaviour.userinfo.answer = Answer::Raw(nobody.as_bytes().to_vec()));
            }
            _ => {}
        }
        refused(&browser.open(&gateway, &callback), told, case);
        assert!(browser.cookie("__Host-Http-login").is_none(), "{case}");
        hub.set(|behaviour| (behaviour.token.answer, behaviour.userinfo.answer) = (Answer::Normal, Answer::Normal));
        // What was obtained is revoked behind the answer.
        wait_until(|| hub.live_tokens().is_empty());
        hub.clear();
        other.clear();
        refused(&browser.open(&gateway, &callback), "cookies_blocked", case);
        assert!(hub.requests().is_empty() && other.requests().is_empty(), "{case}");
    }
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
}

/// CB-06: what comes with a callback is shown to nobody, wherever in the checks it is refused.
#[test]
fn nothing_of_a_callback_is_shown() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let markup = "error=%3Cimg%20src=x%20onerror=canary%3E&error_description=%22'%3E%3Csvg/onload=canary%3E\
        &error_uri=javascript:canary";
    for (case, told, query) in [
        ("of this login", "failed", format!("datahub=a&state={{state}}&{markup}")),
        ("of no login", "expired", format!("datahub=a&state=canary&{markup}")),
        ("without a state", "failed", format!("datahub=a&{markup}")),
        ("without a DataHUB", "failed", format!("state={{state}}&{markup}")),
        ("of another DataHUB", "failed", format!("datahub=%3Ccanary%3E&state={{state}}&{markup}")),
        ("with a code", "failed", format!("datahub=a&code=canary&state={{state}}&{markup}")),
        ("of another issuer", "failed", format!("datahub=a&iss=%3Ccanary%3E&state={{state}}&{markup}")),
        ("in a browser that has begun nothing", "cookies_blocked", format!("datahub=a&state=canary&{markup}")),
    ] {
        let browser = Browser::default();
        let state = parameter(&browser.authorize(&gateway, "a"), "state").expect("a state");
        let browser = if told == "cookies_blocked" { Browser::default() } else { browser };
        let answer = browser.open(&gateway, &format!("{BASE}/auth/callback?{}", query.replace("{state}", &state)));
        refused(&answer, told, case);
        assert!(answer.text().is_empty() && answer.headers("content-type").is_empty(), "{case}: {}", answer.head);
        assert!(!answer.head.contains("canary") && !answer.head.contains("svg"), "{case}: {}", answer.head);
    }
    let raw =
        Browser::default().open(&gateway, &format!("{BASE}/auth/callback?datahub=a&error=<script>canary</script>"));
    refused(&raw, "failed", "what no browser writes into an address");
    assert!(raw.text().is_empty() && !raw.head.contains("canary"), "{}", raw.head);
    assert!(!gateway.output().iter().any(|line| line.contains("canary")));
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
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

/// CB-08: a browser restores its tabs, and in each of them a login goes on.
#[test]
fn eight_restored_tabs_all_end_in_the_app_and_one_session_is_left() {
    let (hub, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &hub), ("b", &other)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let path = "/arcmanager/app/?project=230&path=assays%20of%20a%20year";
    let begin = |(id, hub): (&str, _)| {
        let encoded: String = url::form_urlencoded::byte_serialize(path.as_bytes()).collect();
        let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub={id}&return_to={encoded}"));
        sign_in(hub, &answer.location(), "user=joerg")
    };
    let tabs = ["a", "a", "b", "a", "a", "b", "a", "a"].map(|id| begin((id, if id == "a" { &hub } else { &other })));
    let mut sessions = vec![browser.copy()];
    for callback in &tabs {
        let answer = browser.open(&gateway, callback);
        assert_eq!(answer.location(), path, "{}", answer.head);
        browser.keep_jar_secret(&gateway);
        sessions.push(browser.copy());
    }
    gateway.keep_secret(hub.secrets().into_iter().chain(other.secrets()));
    // The first session's tokens, and those that each tab began but for the last one.
    assert_eq!((hub.counts().revocations, other.counts().revocations), (6, 1));
    let status =
        |browser: &Browser, id: &str| browser.fetch(&gateway, "GET", &format!("/datahubs/{id}/api/v4/user")).status;
    assert_eq!((status(&browser, "a"), status(&browser, "b")), (200, 200));
    let newest = browser.cookie("__Host-Http-sid-a");
    for copy in sessions.iter().filter(|copy| copy.cookie("__Host-Http-sid-a") != newest) {
        assert_eq!(status(copy, "a"), 401, "a copy of one that is over");
    }
    let note = browser.cookie("__Host-Http-login").expect("a note");
    assert!(note.len() < 200, "no token is kept once no login is under way: {} bytes", note.len());
}

#[test]
fn a_late_callback_lands_in_the_app_where_a_login_has_ended_well_and_nowhere_else() {
    let (hub, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &hub), ("b", &other)]).start();
    let browser = Browser::default();
    let [dropped, elsewhere] =
        [("a", &hub), ("b", &other)].map(|(id, hub)| browser.begin_login(&gateway, id, hub, "joerg"));
    let later: Vec<_> = (0..16).map(|_| browser.begin_login(&gateway, "a", &hub, "testuser")).collect();
    let before = browser.copy();
    refused(&before.open(&gateway, &dropped), "expired", "the eighteenth last, and nobody is logged in");
    refused(&before.open(&gateway, &elsewhere), "expired", "the seventeenth last");

    assert_eq!(browser.open(&gateway, &later[15]).location(), "/arcmanager/app/");
    let session = browser.cookie("__Host-Http-session-a");
    for (case, callback) in [("dropped", &dropped), ("spent", &later[15])] {
        let answer = browser.open(&gateway, callback);
        assert_eq!((answer.status, answer.location().as_str()), (303, "/arcmanager/app/"), "{case}");
        assert!(answer.headers("set-cookie").is_empty(), "{case}: {}", answer.head);
        let id = answer.header("x-request-id").expect("an id");
        let event =
            gateway.wait_for_line(|line| line["event"] == "state_mismatch" && line["request_id"] == id.as_str());
        assert!(event["reason"].is_string() && event["client"] == "127.0.0.1", "{case}: {event}");
    }
    assert_eq!(browser.cookie("__Host-Http-session-a"), session);
    refused(&browser.open(&gateway, &elsewhere), "expired", "no login has ended there");
    // It is a note about a late callback, and about no other fault.
    let mixed_up = later[0].replace("datahub=a", "datahub=b");
    refused(&browser.open(&gateway, &mixed_up), "failed", "an answer that was mixed up");
    assert_eq!(browser.open(&gateway, &later[1]).location(), "/arcmanager/app/", "the others are still there");
    let denied = sign_in(&hub, &browser.authorize(&gateway, "a"), "deny=true");
    refused(&browser.open(&gateway, &denied), "denied", "a new one that fails says so");
    assert!(gateway.metrics().contains("gateway_logins_total{result=\"late\"} 2"));
}

/// CB-08: what is in flight is revoked even if it began while nobody was logged in.
#[test]
fn a_login_takes_the_place_of_one_that_ended_after_it_began() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let [first, second] = [(), ()].map(|()| browser.begin_login(&gateway, "a", &hub, "testuser"));
    assert_eq!(browser.open(&gateway, &first).location(), "/arcmanager/app/");
    assert_eq!(hub.counts().revocations, 0, "there was none before");
    let before = browser.copy();
    // Strict cookies do not come with the callback.
    let bare = Browser::default();
    bare.set_cookie("__Host-Http-login", &browser.cookie("__Host-Http-login").expect("a pending login"));
    assert_eq!(bare.open(&gateway, &second).location(), "/arcmanager/app/");
    assert_eq!(hub.counts().revocations, 1);
    assert_eq!(before.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 401);
    bare.keep_jar_secret(&gateway);
    browser.keep_jar_secret(&gateway);
    gateway.keep_secret(hub.secrets());
}

/// CB-07.
#[test]
fn a_token_endpoint_that_misbehaves_ends_the_login_without_a_session() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("timeouts.back_channel = \"1s\"\ntimeouts.token = \"1s\"").start();
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

/// ID-09: what was known stays in use while new keys are not to be had.
#[test]
fn known_keys_outlive_a_datahub_that_cannot_send_them() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("timeouts.back_channel = \"1s\"\ntimeouts.token = \"1s\"").start();
    Browser::default().log_in(&gateway, "a", &hub, "testuser");
    for trouble in [Answer::Status(500), Answer::Hang, Answer::Html(200)] {
        use datahub::behaviour::SigningKey;

        hub.set(|behaviour| (behaviour.keys.answer, behaviour.signing_key) = (trouble.clone(), SigningKey::Second));
        let browser = Browser::default();
        let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
        let started = Instant::now();
        refused(&browser.open(&gateway, &callback), "failed", &format!("a new key, and {trouble:?}"));
        assert!(started.elapsed() < Duration::from_secs(5), "{trouble:?}");
        hub.set(|behaviour| behaviour.signing_key = SigningKey::First);
        Browser::default().log_in(&gateway, "a", &hub, "testuser");
    }
}

/// Refused: back to the app with a word, and no session.
fn refused(answer: &Got, told: &str, case: &str) {
    assert_eq!((answer.status, answer.location()), (303, format!("/arcmanager/app/?login_error={told}")), "{case}");
    let (notes, cookies): (Vec<_>, Vec<_>) =
        answer.headers("set-cookie").into_iter().partition(|cookie| cookie.starts_with("gateway-login-note="));
    assert_eq!(notes.len(), usize::from(told == "cookies_blocked"), "{case}");
    assert!(cookies.iter().all(|cookie| cookie.starts_with("__Host-Http-login=")), "{case}: {cookies:?}");
}

/// Where a browser keeps none of our cookies, an app that asks who is logged in learns why nobody is.
#[test]
fn a_callback_without_cookies_is_known_to_the_session_route_for_a_while() {
    let hub = datahub();
    for (url, attributes) in [
        ("http://localhost:8000", "HttpOnly; SameSite=Strict; Path=/; Max-Age=300"),
        ("https://localhost:8000", "HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=300"),
    ] {
        let gateway = Setup::new(&[("a", &hub)]).and(&format!("server.public_url = {url:?}")).start();
        let browser = Browser::default();
        let told = || browser.fetch(&gateway, "GET", "/auth/session").json()["login_error"].clone();
        assert_eq!(told(), serde_json::Value::Null);
        let answer = browser.open(&gateway, &format!("{BASE}/auth/callback?datahub=a&code=x&state=y"));
        let note = answer.header("set-cookie").expect("one");
        assert_eq!(note.split_once("; ").expect("attributes").1, attributes);
        assert_eq!(told(), "cookies_blocked", "{url}");
        // No other host can set a cookie of this name, where there is TLS; and nobody's word counts but ours.
        let (name, value) = note.split_once("; ").expect("attributes").0.split_once('=').expect("a value");
        assert_eq!(name == "__Host-Http-login-note", url.starts_with("https:"), "{name}");
        let sees = |cookies: &str| {
            let fields = format!("{FETCH}Cookie: {cookies}\r\n");
            let target = format!("{BASE}/auth/session");
            Browser::default().send(&gateway, "GET", &target, &fields, b"").json()["login_error"].clone()
        };
        assert_eq!(sees(&format!("{name}={value}")), "cookies_blocked");
        for planted in [format!("{name}=1"), format!("{name}={value}; {name}=1"), format!("login-note={value}")] {
            assert!(sees(&planted).is_null(), "{url}: {planted}");
        }
        if url.starts_with("https:") {
            assert!(sees(&format!("gateway-login-note={value}")).is_null());
        }
    }
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.open(&gateway, &format!("{BASE}/auth/callback?datahub=a&code=x&state=y"));
    browser.log_in(&gateway, "a", &hub, "testuser");
    let status = browser.fetch(&gateway, "GET", "/auth/session").json();
    assert!(status["login_error"].is_null() && status["sessions"].as_array().is_some_and(|all| all.len() == 1));
}
