//! Newer tokens, without the app noticing.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datahub::DataHub;
use datahub::behaviour::{Answer, RefreshMode};
use datahub::record::Recorded;
use serde_json::json;

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub_with, wait_until};
use crate::token_endpoint::lifetime;

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
        assert_eq!(answer.code(), "session_superseded");
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

/// LO-03: whether we knew that the token had expired or the DataHUB said so, and although one of the tabs is closed meanwhile.
#[test]
fn fifty_calls_with_an_expired_token_cost_one_refresh() {
    for (case, seconds) in [("by the clock", 4), ("by the DataHUB's word", 7_200)] {
        let hub = lifetime(seconds);
        let gateway = Setup::new(&[("a", &hub)]).start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        match seconds {
            4 => std::thread::sleep(Duration::from_millis(4_100)),
            _ => hub.expire_access_tokens(),
        }
        hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(500));
        let (late, tabs) = (browser.copy(), [(); 50].map(|()| browser.copy()));
        let closed = browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), FETCH);
        std::thread::scope(|scope| {
            let gateway = &gateway;
            let calls = tabs.each_ref().map(|tab| {
                scope.spawn(move || tab.fetch_following(gateway, "GET", "/datahubs/a/api/v4/user", b"").status)
            });
            wait_until(|| hub.requests().iter().filter(|request| request.path() == "/oauth/token").count() == 2);
            drop(closed);
            assert_eq!(calls.map(|call| call.join().expect("no panic")), [200; 50], "{case}");
        });
        assert_eq!(late.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200, "{case}: late");
        assert_ne!(late.cookie(SESSION), browser.cookie(SESSION), "{case}: with the newer cookie");
        assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 0), "{case}");
    }
}

/// The token endpoint hears of our client and of one refresh token, and where it leads elsewhere, nobody follows.
#[test]
fn a_refresh_says_who_we_are_and_what_for_and_nothing_else() {
    let (hub, elsewhere) = (lifetime(2), crate::gateway::datahub());
    let gateway = Setup::new(&[("a", &hub)]).start();
    let [browser, led_here, led_away] = [(); 3].map(|()| Browser::default());
    browser.log_in(&gateway, "a", &hub, "testuser");
    let tokens = hub.live_tokens().pop().expect("one pair");
    let refresh_token = tokens.refresh_token.expect("it can be refreshed");
    for browser in [&led_here, &led_away] {
        browser.log_in(&gateway, "a", &hub, "joerg");
    }
    std::thread::sleep(Duration::from_millis(2_100));
    hub.clear();
    let fields = format!("{FETCH}Authorization: Bearer {}\r\n", "c".repeat(64));
    let answer = browser.send(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), &fields, b"");
    assert_eq!(answer.status, 307);
    let requests = hub.requests();
    let [request] = requests.as_slice() else { panic!("{} requests", requests.len()) };
    assert_eq!((request.method().as_str(), request.target().as_str()), ("POST", "/oauth/token"));
    let mut parameters: Vec<_> = url::form_urlencoded::parse(&request.body).into_owned().collect();
    parameters.sort();
    let expected = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.as_str())];
    assert_eq!(parameters, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let client = STANDARD.encode(format!("{}:{}", hub.client_id(), hub.client_secret()));
    assert_eq!(request.header_values("authorization"), [format!("Basic {client}")]);
    assert!(request.header_values("cookie").is_empty(), "{:?}", request.headers());
    assert!(!String::from_utf8_lossy(&request.head).contains(&tokens.access_token));

    for (browser, location) in
        [(&led_here, "/api/v4/version".to_owned()), (&led_away, format!("{}/oauth/token", elsewhere.url()))]
    {
        hub.set(|behaviour| behaviour.token.answer = Answer::Redirect(location.clone()));
        hub.clear();
        assert_eq!(
            browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(),
            "refresh_unavailable",
            "{location}"
        );
        assert_eq!(hub.requests().iter().map(Recorded::path).collect::<Vec<_>>(), ["/oauth/token"], "{location}");
        assert!(elsewhere.requests().is_empty(), "{location}");
    }
    hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
}

/// SC-02: no cookie is our own fault, whichever route it comes to; what is in it does not come back.
#[test]
fn a_cookie_that_opens_nothing_is_told_in_words() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let pair = |name: &str| format!("{name}={}", browser.cookie(name).expect(name));
    let (session, sid) = (pair(SESSION), pair("__Host-Http-sid-a"));
    hub.clear();
    let send = |cookies: &str, method: &str, path: &str| {
        let fields = format!("{FETCH}Cookie: {cookies}\r\nContent-Length: 0\r\n");
        Browser::default().send(&gateway, method, &format!("{BASE}{path}"), &fields, b"")
    };
    for (case, cookies) in [
        ("none", String::new()),
        ("nothing in it", format!("{SESSION}=; {sid}")),
        ("garbage", format!("{SESSION}=canary; {sid}")),
        ("garbage that is no text", format!("{SESSION}=canary\u{e4}\u{df}; {sid}")),
        ("a token of the old backend", format!("{SESSION}=eyJhbGciOiJSUzI1NiJ9.canary.canary; {sid}")),
        ("too much", format!("{SESSION}={}; {sid}", "canary".repeat(5_000))),
        ("twice", format!("{session}; {session}; {sid}")),
        ("without its sid", session.clone()),
    ] {
        for (method, path) in
            [("POST", "/auth/refresh"), ("POST", "/auth/refresh?datahub=a"), ("GET", "/datahubs/a/api/v4/user")]
        {
            let answer = send(&cookies, method, path);
            assert_eq!((answer.status, answer.code().as_str()), (401, "not_logged_in"), "{case}: {method} {path}");
            assert!(!answer.text().contains("canary") && !answer.head.contains("canary"), "{case}: {method} {path}");
        }
        assert_eq!(send(&cookies, "GET", "/auth/session").json()["sessions"], json!([]), "{case}");
        assert_eq!(send(&cookies, "POST", "/auth/logout").status, 204, "{case}");
    }
    assert!(hub.requests().is_empty(), "nothing was asked for, forwarded or revoked");
    let good = format!("{session}; {sid}");
    assert_eq!(send(&good, "POST", "/auth/refresh").status, 200);
    assert_eq!(send(&good, "GET", "/datahubs/a/api/v4/user").status, 200);
}

/// Rule 1: a long body wants a token that lives longer.
#[test]
fn before_a_long_body_a_token_is_renewed_sooner() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(12));
    let limits = "session.refresh_ahead = \"1s\"\nsession.refresh_ahead_body = \"3s\"";
    let gateway = Setup::new(&[("a", &hub)]).and(limits).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_millis(9_300));
    let file = "/datahubs/a/api/v4/projects/230/packages/generic/p/1/f.bin";
    let put = |length: usize| browser.fetch_with(&gateway, "PUT", file, "application/octet-stream", &vec![0; length]);
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    assert_eq!(put(1 << 20).status, 201, "a mebibyte is not long");
    assert_eq!((put((1 << 20) + 1).status, hub.counts().refreshes), (307, 1));
}

/// A tab that was stopped, a laptop that was closed: the first call afterwards works.
#[test]
fn a_token_that_has_expired_long_ago_is_renewed_by_the_first_call() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 0));
}

/// Rule 3: any one of the answers may be the one that arrives.
#[test]
fn whoever_waited_for_a_refresh_gets_the_cookie() {
    let hub = short();
    hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(300));
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    std::thread::scope(|scope| {
        let tabs: Vec<_> =
            (0..8).map(|_| scope.spawn(|| browser.copy().fetch(&gateway, "GET", "/datahubs/a/api/v4/user"))).collect();
        for tab in tabs {
            let answer = tab.join().expect("no panic");
            assert_eq!((answer.status, answer.headers("set-cookie").len()), (307, 1));
        }
    });
    assert_eq!(hub.counts().refreshes, 1);
    let metrics = gateway.metrics();
    for line in ["gateway_refresh_total{result=\"refreshed\"} 1\n", "gateway_refresh_total{result=\"joined\"} 7\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert!(metrics.contains("gateway_replay_total{result=\"again\",number=\"1\"} 8\n"), "{metrics}");
}

/// Rule 4: first without a cookie, since the jar may hold something newer; then with the newest there is.
#[test]
fn a_latecomer_looks_into_its_jar_before_it_is_given_what_is_remembered() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    let late = browser.copy();
    for _ in 0..2 {
        assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
        std::thread::sleep(Duration::from_millis(3_200));
    }
    assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    assert_eq!(hub.counts().refreshes, 3);
    hub.clear();
    let again = late.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    assert_eq!((again.status, again.headers("set-cookie").len()), (307, 0));
    let given = late.fetch(&gateway, "GET", &format!("/datahubs/a/api/v4/user{}", again.location()));
    assert_eq!((given.status, given.headers("set-cookie").len()), (307, 1));
    let answer = late.fetch(&gateway, "GET", &format!("/datahubs/a/api/v4/user{}", given.location()));
    assert_eq!((answer.status, hub.requests().len()), (200, 1), "the end of the chain, and no call but this one");
    assert!(gateway.metrics().contains("gateway_refresh_total{result=\"remembered\"} 1\n"));
    assert!(gateway.metrics().contains("gateway_replay_total{result=\"passed\",number=\"2\"} 1\n"));
}

/// Rule 5, LO-06: whoever was too late at the DataHUB is sent round, slower and slower, and in the end told so, once.
#[test]
fn a_loser_searches_for_the_newer_cookie_and_gives_up_in_the_end() {
    let hub = short();
    let setup = Setup::new(&[("a", &hub)]);
    let (winner, loser) = (setup.start(), setup.start());
    let browser = stale(&winner, &hub);
    let late = browser.copy();
    assert_eq!(browser.fetch_following(&winner, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    let mut path = "/datahubs/a/api/v4/user".to_owned();
    for round in 0..16 {
        let started = Instant::now();
        let answer = late.fetch(&loser, "GET", &path);
        assert_eq!((answer.status, answer.headers("set-cookie").len()), (307, 0), "round {round}");
        assert!(started.elapsed() >= Duration::from_millis([50, 100, 200, 400][round.min(3)]), "round {round}");
        let closes = answer.header("connection").as_deref() == Some("close");
        assert_eq!(closes, round > 0, "a new connection may lead to the process that knows");
        path = format!("/datahubs/a/api/v4/user{}", answer.location());
    }
    let answer = late.fetch(&loser, "GET", &path);
    assert_eq!((answer.code().as_str(), answer.headers("set-cookie").len()), ("session_expired", 0));
    assert_eq!(late.fetch(&loser, "GET", "/datahubs/a/api/v4/user").code(), "session_expired", "at once");
    assert_eq!(late.fetch(&loser, "GET", "/auth/session").json()["sessions"], json!([]));
    assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 1), "asked once");
    loser.wait_for_event("refresh_reuse");
    assert_eq!(loser.log().iter().filter(|line| line["event"] == "refresh_reuse").count(), 1);
    assert!(loser.metrics().contains("gateway_refresh_total{result=\"lost\"} 17\n"), "{}", loser.metrics());
    // At the process that knows it is a session like any other.
    assert_eq!(late.fetch_following(&winner, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
}

/// Rule 5: the jar gets what the winner has sent, and the loser is content.
#[test]
fn a_loser_goes_on_once_its_jar_has_the_newer_cookie() {
    let hub = short();
    let setup = Setup::new(&[("a", &hub)]);
    let (winner, loser) = (setup.start(), setup.start());
    let browser = stale(&winner, &hub);
    let late = browser.copy();
    assert_eq!(browser.fetch_following(&winner, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    let again = late.fetch(&loser, "GET", "/datahubs/a/api/v4/user");
    assert_eq!(again.status, 307);
    late.set_cookie(SESSION, &browser.cookie(SESSION).expect("the newer one"));
    assert_eq!(late.fetch(&loser, "GET", &format!("/datahubs/a/api/v4/user{}", again.location())).status, 200);
}

/// Rule 5: the answer with the new cookie was lost, and no call has met its process for a while.
#[test]
fn a_token_that_was_refused_long_ago_still_leads_to_the_process_that_knows_what_followed() {
    let hub = short();
    let setup = Setup::new(&[("a", &hub)]);
    let (winner, loser) = (setup.start(), setup.start());
    let browser = stale(&winner, &hub);
    let late = browser.copy();
    assert_eq!(browser.fetch_following(&winner, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    assert_eq!(late.fetch(&loser, "GET", "/datahubs/a/api/v4/user").status, 307);
    std::thread::sleep(Duration::from_millis(10_200));
    let mut query = String::new();
    for _ in 0..3 {
        let answer = late.fetch(&loser, "GET", &format!("/datahubs/a/api/v4/user{query}"));
        assert_eq!((answer.status, answer.header("set-cookie")), (307, None));
        query = answer.location();
    }
    let path = format!("/datahubs/a/api/v4/user{query}");
    assert_eq!(late.fetch_following(&winner, "GET", &path, b"").status, 200);
}

/// LO-04: the DataHUB says yes to one and no to the other, and nobody notices.
#[test]
fn two_processes_that_refresh_at_the_same_moment_cost_nothing() {
    let hub = short();
    let setup = Setup::new(&[("a", &hub)]);
    let (one, other) = (setup.start(), setup.start());
    let browsers: Vec<_> = (0..20).map(|_| Browser::default()).collect();
    for browser in &browsers {
        browser.log_in(&one, "a", &hub, "testuser");
    }
    std::thread::sleep(Duration::from_millis(3_200));
    std::thread::scope(|scope| {
        for browser in &browsers {
            for gateway in [&one, &other] {
                scope.spawn(move || {
                    assert_eq!(browser.fetch_following(gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
                });
            }
        }
    });
    assert_eq!(hub.counts().refreshes, 20);
    assert!(hub.counts().refreshes_refused > 0, "they never met");
}

/// Rule 6: what a person may not do is 401 at GitLab, and none of our business.
#[test]
fn a_401_that_is_not_about_the_token_passes_through_as_it_came() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    let merge = "/datahubs/a/api/v4/projects/230/merge_requests/1/merge";
    let answer = browser.fetch_with(&gateway, "PUT", merge, "application/json", b"{}");
    assert_eq!((answer.status, answer.json()), (401, json!({"message": "401 Unauthorized"})));
    assert_eq!(answer.header("content-type").as_deref(), Some("application/json"));
    let asked: Vec<_> =
        hub.requests().iter().map(|request| format!("{} {}", request.method(), request.path())).collect();
    assert_eq!(asked, ["PUT /api/v4/projects/230/merge_requests/1/merge", "GET /api/v4/user"]);
    assert_eq!(hub.counts().refreshes + hub.counts().refreshes_refused, 0);
}

/// Rule 6: GitLab says that the token has expired, whatever we thought.
#[test]
fn a_token_that_the_datahub_refuses_is_renewed_once_and_the_call_is_made_once() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.expire_access_tokens();
    let issue = "/datahubs/a/api/v4/projects/230/issues?title=once&mark=once";
    let again = browser.fetch_with(&gateway, "POST", issue, "application/json", b"{}");
    assert_eq!((again.status, again.headers("set-cookie").len(), hub.counts().refreshes), (307, 1, 1));
    let (path, _) = issue.split_once('?').expect("a query");
    let target = format!("{path}{}", again.location());
    assert_eq!(browser.fetch_with(&gateway, "POST", &target, "application/json", b"{}").status, 201);
    assert_eq!(hub.executions()["once"], 1);

    // It refuses whatever we send: that is no reason to go on for ever.
    let refusal = br#"{"error":"invalid_token"}"#;
    let raw = [format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n", refusal.len()).as_bytes(), refusal]
        .concat();
    hub.set(|behaviour| behaviour.api.answer = Answer::Raw(raw));
    let answer = browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"");
    assert_eq!((answer.status, answer.code().as_str()), (401, "session_expired"));
    assert_eq!(hub.counts().refreshes, 2, "one for this call");
}

/// Rule 6: a token that the DataHUB has never seen, or has deleted, is refused in the words of the app's own business.
#[test]
fn a_token_that_the_datahub_does_not_know_is_found_out_by_asking_again() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.set(|behaviour| behaviour.api.answer = Answer::Status(401));
    let again = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    assert_eq!((again.status, again.headers("set-cookie").len(), hub.counts().refreshes), (307, 1, 1));
    hub.set(|behaviour| behaviour.api.answer = Answer::Normal);
    let target = format!("/datahubs/a/api/v4/user{}", again.location());
    assert_eq!(browser.fetch(&gateway, "GET", &target).status, 200);
}

/// Its own call has the only place, and keeps it as long as the refusal's body is not at its end.
#[test]
fn asking_again_needs_no_second_place() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("limits.in_flight = 1").start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let raw = format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: 400000\r\n\r\n{}", "x".repeat(400_000));
    hub.set(|behaviour| behaviour.api.answer = Answer::Raw(raw.into_bytes()));
    let answer = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    assert_eq!((answer.status, hub.counts().refreshes), (307, 1), "{}", answer.head);
    hub.set(|behaviour| behaviour.api.answer = Answer::Normal);
    let target = format!("/datahubs/a/api/v4/user{}", answer.location());
    assert_eq!(browser.fetch(&gateway, "GET", &target).status, 200, "the place is free again");
}

/// `/auth/refresh`, rule 5: one session that is lost here does not renew the others again and again.
#[test]
fn of_two_sessions_one_that_is_searched_for_does_not_renew_the_other_twice() {
    let (one, other) = (short(), short());
    let setup = Setup::new(&[("a", &one), ("b", &other)]);
    let (winner, loser) = (setup.start(), setup.start());
    let browser = Browser::default();
    browser.log_in(&winner, "a", &one, "testuser");
    browser.log_in(&winner, "b", &other, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    let late = browser.copy();
    assert_eq!(browser.fetch_following(&winner, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    let again = late.fetch(&loser, "POST", "/auth/refresh");
    assert_eq!((again.status, again.location().as_str()), (307, "?_gateway_replay=1"));
    let cookies = again.headers("set-cookie");
    assert!(cookies.len() == 1 && cookies[0].starts_with("__Host-Http-session-b="), "{cookies:?}");
    late.set_cookie(SESSION, &browser.cookie(SESSION).expect("the newer one"));
    let answer = late.fetch(&loser, "POST", "/auth/refresh?_gateway_replay=1");
    assert_eq!((answer.status, answer.json()["sessions"].as_array().map(Vec::len)), (200, Some(2)));
    assert_eq!((one.counts().refreshes, other.counts().refreshes), (1, 1));
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
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["status"] == 499);
    assert_eq!(
        (&line["code"], hub.counts().refreshes),
        (&"client_gone".into(), 0),
        "noticed before the answer came: {line}"
    );
    wait_until(|| hub.counts().refreshes == 1);
    assert_eq!(browser.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    assert_eq!(hub.counts().refreshes, 1, "the answer was remembered");
}

/// What is thrown away came all the same; and who leaves in the middle of it has left.
#[test]
fn a_body_that_is_thrown_away_is_in_the_log() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    let target = format!("{BASE}/datahubs/a/api/v4/projects");
    let post = |length: usize, body: &[u8]| {
        let mut connection = browser.begin(&gateway, "POST", &target, &format!("{FETCH}Content-Length: {length}\r\n"));
        connection.write(body);
        connection
    };
    drop(post(100_000, &[b'x'; 5_000]));
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["method"] == "POST");
    assert_eq!((&line["status"], &line["code"]), (&499.into(), &"client_gone".into()), "{line}");
    browser.apply(&post(10, b"0123456789").answer(true));
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["status"] == 307);
    assert_eq!(line["bytes_in"], 10, "{line}");
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
    for (query, arrives) in [
        ("?_gateway_replay=1", ""),
        ("?_gateway_replay=0", ""),
        ("?_gateway_replay=17", ""),
        ("?_gateway_replay", ""),
        ("?_gateway_replay=1&a=b", "?a=b"),
        ("?_gateway_replay=1?a=b", "?a=b"),
        ("?a=b;_gateway_replay=1;c=d", "?a=b;c=d"),
        ("?a=b&_gateway_replay=2&c=d&_gateway_replay=1", "?a=b&c=d"),
        ("?%5Fgateway_replay=1", "?%5Fgateway_replay=1"),
    ] {
        hub.clear();
        let answer = browser.fetch(&gateway, "GET", &format!("/datahubs/a/api/v4/user{query}"));
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        assert_eq!(hub.requests()[0].target(), format!("/api/v4/user{arrives}"), "{query}");
    }
    // What is cut out hides nothing, and does not count against the limit.
    let hidden = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user?_gateway_replay=1&sudo=1&_gateway_replay=1");
    assert_eq!(hidden.code(), "credential_parameter");
    let long = format!("/datahubs/a/api/v4/user?a={}", "a".repeat(8 * 1024 - BASE.len() - 26));
    for counters in ["", "&_gateway_replay=1", "&_gateway_replay=9&_gateway_replay=1"] {
        assert_eq!(browser.fetch(&gateway, "GET", &format!("{long}{counters}")).status, 200, "{counters}");
    }
    assert_eq!(browser.fetch(&gateway, "GET", &format!("{long}a")).code(), "target_too_long");
}

/// Rule 4: an app that pages by appending to `response.url` makes a first call each time.
#[test]
fn a_stale_count_in_the_middle_does_not_make_a_first_call_look_like_a_second() {
    let hub = short();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = stale(&gateway, &hub);
    let path = "/datahubs/a/api/v4/projects?per_page=2&_gateway_replay=16&page=2";
    let answer = browser.fetch(&gateway, "GET", path);
    assert_eq!((answer.status, answer.location().as_str()), (307, "?per_page=2&page=2&_gateway_replay=1"));
    let answer = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/projects?per_page=2&page=2&_gateway_replay=1");
    assert_eq!((answer.status, answer.header("x-page").as_deref()), (200, Some("2")));
    for link in answer.header("link").expect("pages").split(',') {
        assert!(link.contains("page=") && !link.contains("_gateway_replay"), "{link}");
    }
    let replays = |replay: u64| {
        gateway.wait_for_line(|line| {
            line["route"].as_str().is_some_and(|r| r.contains("{path}")) && line["replay"] == replay
        })
    };
    assert_eq!((replays(0)["status"].as_u64(), replays(1)["status"].as_u64()), (Some(307), Some(200)));
}
