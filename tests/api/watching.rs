//! What operators watch: each counter moves when it should, and each security event is one line that says who and when.

use serde_json::Value;

use crate::browser::{Browser, FETCH, NAVIGATION, parameter, sign_in};
use crate::gateway::{BASE, Folder, Setup, datahub, new_key, wait_until};
use crate::token_endpoint::{USER, lifetime, logged_in};

const SESSION: &str = "__Host-Http-session-a";

/// EL-06. What takes longer to bring about is in the test of its own room.
#[test]
fn an_event_is_one_line_with_its_time_its_request_and_its_client_and_no_secret() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = logged_in(&gateway, &hub, "testuser");
    let (session, other) = (browser.cookie(SESSION).expect("logged in"), logged_in(&gateway, &hub, "joerg"));
    let newcomer = Browser::default();
    let get = |target: &str| newcomer.send(&gateway, "GET", &format!("{BASE}{target}"), FETCH, b"");
    let call = |browser: &Browser, path: &str| browser.fetch(&gateway, "GET", &format!("/datahubs/a{path}"));
    let triggers: [(&str, &str, &dyn Fn() -> u16); 11] = [
        ("login_ok", "a", &|| newcomer.open(&gateway, &newcomer.begin_login(&gateway, "a", &hub, "testuser")).status),
        ("login_failed", "a", &|| {
            let callback = sign_in(&hub, &newcomer.authorize(&gateway, "a"), "deny=true");
            newcomer.open(&gateway, &callback).status
        }),
        ("login_failed", "", &|| newcomer.open(&gateway, &format!("{BASE}/auth/callback?datahub=canary")).status),
        ("state_mismatch", "a", &|| {
            let callback = newcomer.begin_login(&gateway, "a", &hub, "testuser");
            let state = parameter(&callback, "state").expect("a state");
            newcomer.open(&gateway, &callback.replace(&state, "canary")).status
        }),
        ("issuer_mismatch", "a", &|| {
            let callback = newcomer.begin_login(&gateway, "a", &hub, "testuser");
            newcomer.open(&gateway, &format!("{callback}&iss=http://canary.example")).status
        }),
        ("unseal_failed", "a", &|| {
            let altered = browser.copy();
            altered.set_cookie("__Host-Http-sid-a", &other.cookie("__Host-Http-sid-a").expect("logged in"));
            call(&altered, "/api/v4/user").status
        }),
        ("duplicate_cookie", "a", &|| {
            let doubled = browser.copy();
            doubled.set_cookie("x", &format!("canary; {SESSION}={session}"));
            call(&doubled, "/api/v4/user").status
        }),
        ("cross_site_refused", "", &|| newcomer.send(&gateway, "POST", &format!("{BASE}/auth/logout"), "", b"").status),
        ("target_refused", "a", &|| call(&browser, "/users/canary").status),
        ("credential_refused", "a", &|| call(&browser, "/api/v4/user?private_token=canary").status),
        ("return_to_dropped", "a", &|| {
            let target = format!("{BASE}/auth/login?datahub=a&return_to=https://canary.example");
            newcomer.send(&gateway, "GET", &target, NAVIGATION, b"").status
        }),
    ];
    assert_eq!(get("/datahubs").status, 200);
    let events = || -> Vec<Value> { gateway.log().into_iter().filter(|line| line["target"] == "security").collect() };
    for (name, at, trigger) in triggers {
        // Of the logins that this one needs.
        let before = events().len();
        let status = trigger();
        gateway.wait_for_line(|_| events().len() > before);
        // Whatever else this request says comes before its own line.
        let id = events().last().expect("one")["request_id"].clone();
        gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id);
        let told = events().split_off(before);
        let [event] = &told[..] else { panic!("{name}, {status}: {told:?}") };
        assert_eq!(
            (&event["event"], &event["datahub"], &event["client"]),
            (&name.into(), &at.into(), &"127.0.0.1".into())
        );
        let time = event["time"].as_str().expect("a text");
        assert!(time.len() == 24 && time.ends_with('Z'), "{event}");
        assert_eq!(event["request_id"].as_str().map(str::len), Some(32), "{event}");
        assert!(!event.to_string().contains("canary"), "{event}");
    }
}

#[test]
fn each_counter_is_there_from_the_start_and_moves_when_it_should() {
    let (hub, folder) = (lifetime(3), Folder::default());
    let (old, new) = (new_key(), new_key());
    let file = folder.file("keys", &old);
    let setup = Setup::with_keys_file(&[("a", &hub)], &file).and("datahubs.a.anonymous = true").quiet();
    let gateway = setup.start();
    gateway.keep_secret([old.clone(), new.clone()]);
    let (browser, nobody) = (Browser::default(), Browser::default());
    let number = |series: &str| -> Option<u64> {
        let line = format!("gateway_{series} ");
        gateway.metrics().lines().find_map(|other| other.strip_prefix(&line)?.parse().ok())
    };
    let logs_in = || browser.log_in(&gateway, "a", &hub, "testuser");
    let denied = || {
        let callback = sign_in(&hub, &nobody.authorize(&gateway, "a"), "deny=true");
        nobody.open(&gateway, &callback);
    };
    let comes_without_a_cookie = || {
        Browser::default().open(&gateway, &nobody.begin_login(&gateway, "a", &hub, "testuser"));
    };
    let fails = || {
        nobody.open(&gateway, &format!("{BASE}/auth/callback?datahub=a"));
    };
    let asks = || assert_eq!(browser.fetch_following(&gateway, "GET", USER, b"").status, 200);
    let asks_later = || {
        std::thread::sleep(std::time::Duration::from_millis(2_500));
        asks();
    };
    let logs_out = || assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
    let asks_without_a_login = || assert_eq!(nobody.fetch(&gateway, "GET", "/datahubs/a/api/v4/projects").status, 200);
    let alters_a_cookie = || {
        let altered = browser.copy();
        altered.set_cookie("__Host-Http-sid-a", "AAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(altered.fetch(&gateway, "GET", USER).status, 401);
    };
    let speaks_for_others = || {
        let fields = format!("{FETCH}X-Forwarded-For: 203.0.113.9\r\n");
        assert_eq!(nobody.send(&gateway, "GET", &format!("{BASE}/datahubs"), &fields, b"").status, 200);
    };
    let reloads = |text: &str| {
        folder.file("keys", text);
        gateway.reload();
    };
    let adds_a_key = || reloads(&format!("{new}\n{old}"));
    let breaks_the_keys = || reloads("canary");
    let seals = |key: &str| format!("seals_total{{key=\"{}\"}}", crate::keys::id(key));
    let is_there = |key: &str, role: &str| format!("key_info{{key=\"{}\",role=\"{role}\"}}", crate::keys::id(key));
    assert_eq!(number(&is_there(&old, "seal")), Some(1));
    assert!(gateway.metrics().contains("gateway_build_info{version=\""), "{}", gateway.metrics());

    // What it is called, whether it is there from the start, and what moves it.
    let table: [(String, bool, &dyn Fn()); 21] = [
        ("logins_total{result=\"ok\"}".into(), true, &logs_in),
        (seals(&old), true, &logs_in),
        ("logins_total{result=\"denied\"}".into(), true, &denied),
        ("logins_total{result=\"cookies_blocked\"}".into(), true, &comes_without_a_cookie),
        ("logins_total{result=\"failed\"}".into(), true, &fails),
        ("requests_total{datahub=\"a\",method=\"GET\",status=\"200\"}".into(), false, &asks),
        ("request_duration_seconds_count{datahub=\"a\"}".into(), true, &asks),
        ("upstream_duration_seconds_count{datahub=\"a\"}".into(), true, &asks),
        ("refresh_total{result=\"refreshed\"}".into(), true, &asks_later),
        ("replay_total{result=\"again\",number=\"1\"}".into(), true, &asks_later),
        ("replay_total{result=\"passed\",number=\"1\"}".into(), true, &asks_later),
        ("unseal_failures_total".into(), true, &alters_a_cookie),
        ("revocations_total{result=\"ok\"}".into(), true, &logs_out),
        ("anonymous_calls_total{datahub=\"a\",result=\"passed\"}".into(), false, &asks_without_a_login),
        ("untrusted_forwarded_for_total".into(), true, &speaks_for_others),
        ("reloads_total{result=\"ok\"}".into(), true, &adds_a_key),
        (seals(&new), true, &logs_in),
        ("reloads_total{result=\"failed\"}".into(), true, &breaks_the_keys),
        ("client_refused_total{datahub=\"a\"}".into(), true, &|| ()),
        ("upstream_desync_total{datahub=\"a\"}".into(), true, &|| ()),
        ("panics_total".into(), true, &|| ()),
    ];
    for (series, is_there_before, trigger) in &table {
        let before = number(series);
        assert_eq!(before.is_some(), *is_there_before, "{series}: {}", gateway.metrics());
        trigger();
        if ["client_refused", "upstream_desync", "panics"].iter().any(|name| series.starts_with(name)) {
            // What brings these about is in the tests of their own rooms.
            assert_eq!(before, Some(0), "{series}");
        } else {
            wait_until(|| number(series) > before);
        }
    }
    assert_eq!(number("datahub_up{datahub=\"a\"}"), Some(1));
    assert_eq!((number(&is_there(&new, "seal")), number(&is_there(&old, "unseal"))), (Some(1), Some(1)));
    wait_until(|| number("inflight") == Some(0));
    assert_eq!(number("log_dropped_total"), Some(0));
}
