//! Newer tokens, without the app noticing.

use std::time::{Duration, Instant};

use datahub::DataHub;
use datahub::behaviour::{Answer, RefreshMode};
use serde_json::json;

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub_with};

const SESSION: &str = "__Host-Http-session-a";

/// A DataHUB whose tokens are stale after three quarters of four seconds.
fn short() -> DataHub {
    datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4))
}

/// A browser whose token is stale.
fn stale(gateway: &Gateway, hub: &DataHub) -> Browser {
    let browser = Browser::default();
    browser.log_in(gateway, "a", hub, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    browser
}

#[test]
fn a_call_with_a_stale_token_is_sent_again_by_the_browser_with_a_new_cookie() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for (path, again) in [
        ("/datahubs/a/api/v4/user", "?_gateway_replay=1"),
        ("/datahubs/a/api/v4/user?", "?&_gateway_replay=1"),
        ("/datahubs/a/api/v4/projects?per_page=2&search=a%2Fb", "?per_page=2&search=a%2Fb&_gateway_replay=1"),
    ] {
        let browser = stale(&gateway, &hub);
        hub.clear();
        let (old, sid) = (browser.cookie(SESSION), browser.cookie("__Host-Http-sid-a"));
        let answer = browser.fetch(&gateway, "GET", path);
        assert_eq!((answer.status, answer.location().as_str()), (307, again), "{path}");
        assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
        assert_eq!(answer.headers("set-cookie").len(), 1, "the session and nothing else");
        assert!(browser.cookie(SESSION) != old && browser.cookie("__Host-Http-sid-a") == sid);
        assert!(hub.requests().iter().all(|request| !request.target().starts_with("/api/")), "nothing was forwarded");

        let target = format!("{}{}", path.split('?').next().expect("a path"), answer.location());
        let answer = browser.fetch(&gateway, "GET", &target);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.headers("set-cookie").is_empty(), "SC-09: a forwarded call's answer never carries the cookie");
        let forwarded = hub.requests().pop().expect("a request").target();
        assert_eq!(format!("{BASE}/datahubs/a{forwarded}"), format!("{BASE}{path}"), "the original bytes");
        browser.keep_jar_secret(&gateway);
        gateway.keep_secret(hub.secrets());
    }
}

#[test]
fn a_body_is_sent_again_and_arrives_once() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    hub.clear();
    let body = vec![b'x'; 3_000_000];
    let answer =
        browser.fetch_following(&gateway, "PUT", "/datahubs/a/api/v4/projects/230/packages/generic/p/1/f.bin", &body);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let uploads: Vec<_> = hub.requests().into_iter().filter(|request| request.method() == "PUT").collect();
    assert_eq!((uploads.len(), uploads[0].body_length), (1, 3_000_000));
}

/// LO-03.
#[test]
fn many_calls_at_once_cause_one_refresh() {
    for mode in [RefreshMode::RevokeAtOnce, RefreshMode::RevokeOnUse] {
        let hub = short();
        hub.set(|behaviour| {
            behaviour.refresh = mode;
            behaviour.token.delay = Duration::from_millis(100);
        });
        let gateway = Setup::new(&[("a", &hub)]).start();
        let browser = stale(&gateway, &hub);
        let calls: Vec<_> = (0..30)
            .map(|_| {
                let (browser, address) = (browser.copy(), &gateway);
                (browser, address)
            })
            .collect();
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let running: Vec<_> = calls
                .iter()
                .map(|(browser, gateway)| {
                    scope.spawn(|| browser.fetch_following(gateway, "GET", "/datahubs/a/api/v4/user", b"").status)
                })
                .collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(statuses, vec![200; 30], "{mode:?}");
        assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 0), "{mode:?}");
    }
}

#[test]
fn who_comes_with_the_old_cookie_a_moment_later_gets_the_same_tokens() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    let late = browser.copy();
    assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    assert_eq!(late.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 0));
}

#[test]
fn a_client_that_leaves_does_not_stop_a_refresh() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(300));
    let connection = browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), FETCH);
    wait_until(|| hub.requests().iter().filter(|request| request.target() == "/oauth/token").count() == 2);
    drop(connection);
    wait_until(|| hub.counts().refreshes == 1);
    assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    assert_eq!(hub.counts().refreshes, 1, "the answer was remembered");
}

/// LO-05.
#[test]
fn a_datahub_in_trouble_costs_time_and_no_session() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).and("timeouts.back_channel = \"1s\"").start();
    let browser = stale(&gateway, &hub);
    for (case, trouble) in [
        ("broken", Answer::Status(500)),
        ("throttled", Answer::Status(429)),
        ("a page", Answer::Html(502)),
        ("leads away", Answer::Redirect("http://127.0.0.1:9/".into())),
        ("closed", Answer::CloseWithoutAnswer),
        ("hangs", Answer::Hang),
    ] {
        hub.set(|behaviour| behaviour.token.answer = trouble);
        for (method, path) in [("GET", "/datahubs/a/api/v4/user"), ("POST", "/auth/refresh")] {
            let answer = browser.fetch(&gateway, method, path);
            assert_eq!((answer.status, answer.code().as_str()), (503, "refresh_unavailable"), "{case} {path}");
            assert!(answer.header("retry-after").is_some() && answer.headers("set-cookie").is_empty(), "{case}");
        }
    }
    hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
}

#[test]
fn an_app_may_refresh_ahead() {
    let (short, long) = (short(), crate::gateway::datahub());
    let gateway = Setup::new(&[("a", &short), ("b", &long)]).start();
    assert_eq!(Browser::default().fetch(&gateway, "POST", "/auth/refresh").code(), "not_logged_in");
    let browser = stale(&gateway, &short);
    browser.log_in(&gateway, "b", &long, "testuser");
    let before = browser.fetch(&gateway, "GET", "/auth/session").json();
    let answer = browser.fetch(&gateway, "POST", "/auth/refresh");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers("set-cookie").len(), 1, "the token at b is new, and left alone");
    let after = answer.json();
    let expires = |status: &serde_json::Value, at: usize| status["sessions"][at]["expires_at"].clone();
    assert!(expires(&after, 0).as_str() > expires(&before, 0).as_str());
    assert_eq!(expires(&after, 1), expires(&before, 1));
    assert_eq!((short.counts().refreshes, long.counts().refreshes), (1, 0));

    assert_eq!(browser.fetch(&gateway, "POST", "/auth/refresh?datahub=a").status, 200);
    assert_eq!(short.counts().refreshes, 1, "it is new now");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/refresh?datahub=c").code(), "unknown_datahub");
    let got = browser.fetch(&gateway, "GET", "/auth/refresh");
    assert_eq!((got.status, got.header("allow").as_deref()), (405, Some("POST")));
}

#[test]
fn of_two_sessions_one_that_cannot_be_refreshed_says_so() {
    let (one, other) = (short(), short());
    let gateway = Setup::new(&[("a", &one), ("b", &other)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "b", &other, "testuser");
    browser.log_in(&gateway, "a", &one, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    one.set(|behaviour| behaviour.token.answer = Answer::Status(500));
    let answer = browser.fetch(&gateway, "POST", "/auth/refresh");
    let sessions = answer.json()["sessions"].clone();
    assert_eq!(
        (answer.status, &sessions[0]["error"], &sessions[1]["error"]),
        (200, &json!("refresh_unavailable"), &json!(null))
    );
    one.set(|behaviour| behaviour.token.answer = Answer::Normal);
}

#[test]
fn a_session_whose_tokens_were_revoked_has_ended() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    hub.revoke_all_tokens();
    let answer = browser.fetch_following(&gateway, "POST", "/auth/refresh", b"");
    assert_eq!((answer.status, answer.code().as_str()), (401, "session_expired"));
    assert!(answer.headers("set-cookie").is_empty(), "a refresh that fails removes no cookie");
    assert!(browser.cookie(SESSION).is_some());
    gateway.wait_for_event("refresh_reuse");
    hub.clear();
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "session_expired", "at once");
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/session").json()["sessions"], json!([]));
    assert!(hub.requests().is_empty(), "what is dead costs the DataHUB nothing");
    browser.log_in(&gateway, "a", &hub, "testuser");
}

#[test]
fn a_body_too_long_to_be_thrown_away_is_refused_before_a_token_is_spent() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    let fields = format!("{FETCH}Content-Length: {}\r\n", 200 * 1024 * 1024);
    let target = format!("{BASE}/datahubs/a/api/v4/projects/230/packages/generic/p/1/f.bin");
    let answer = browser.begin(&gateway, "PUT", &target, &fields).answer(true);
    assert_eq!((answer.status, answer.code().as_str()), (409, "refresh_first"));
    assert_eq!(hub.counts().refreshes, 0);
}

#[test]
fn the_replay_counter_belongs_to_the_gateway() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    for query in
        ["_gateway_replay=0", "_gateway_replay=17", "_gateway_replay=1&a=b", "_gateway_replay", "%5Fgateway_replay=1"]
    {
        let answer = browser.fetch(&gateway, "GET", &format!("/datahubs/a/api/v4/user?{query}"));
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request_target"), "{query}");
    }
    assert!(hub.requests().is_empty());
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user?_gateway_replay=1").status, 200);
    assert_eq!(hub.requests()[0].target(), "/api/v4/user");
}

fn wait_until(is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < until, "it never came true");
        std::thread::sleep(Duration::from_millis(5));
    }
}
