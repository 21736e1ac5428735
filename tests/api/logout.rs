//! The end of a session, here and at the DataHUB.

use std::time::{Duration, Instant};

use datahub::behaviour::Answer;

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Setup, datahub, datahub_with};

/// LO-01, LO-02.
#[test]
fn a_logout_revokes_the_refresh_token_and_removes_all_cookies() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let thief = browser.copy();
    hub.clear();
    let answer = browser.fetch(&gateway, "POST", "/auth/logout");
    assert_eq!((answer.status, answer.text().as_str()), (204, ""));
    let mut cookies = answer.headers("set-cookie");
    cookies.sort();
    let login = cookies.remove(0);
    assert!(login.starts_with("__Host-Http-login=; HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=0"), "{login}");
    let attributes = "HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=0";
    assert_eq!(cookies, ["session", "sid"].map(|name| format!("__Host-Http-{name}-a=; {attributes}")));
    assert_eq!(browser.cookie_field(), "");

    let requests = hub.requests();
    let [revocation] = requests.as_slice() else { panic!("{} requests", requests.len()) };
    assert_eq!((revocation.method().as_str(), revocation.target().as_str()), ("POST", "/oauth/revoke"));
    assert!(revocation.header("authorization").expect("client authentication").starts_with("Basic "));
    assert!(String::from_utf8_lossy(&revocation.body).ends_with("&token_type_hint=refresh_token"));
    assert_eq!(hub.counts().revocations, 1);
    // A copy of the cookie still opens; the token in it opens nothing any more.
    assert_eq!(thief.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 401);
}

/// LO-02: at each process that holds the keys, whatever the copy is used for.
#[test]
fn a_copy_of_the_cookie_is_worth_nothing_after_a_logout() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let (one, other) = (setup.start(), setup.start());
    let browser = Browser::default();
    browser.log_in(&one, "a", &hub, "testuser");
    let thief = browser.copy();
    for gateway in [&one, &other] {
        assert_eq!(thief.fetch(gateway, "GET", "/datahubs/a/api/v4/user").status, 200, "before");
    }
    assert_eq!(browser.fetch(&one, "POST", "/auth/logout").status, 204);
    assert!(hub.live_tokens().is_empty());
    let stolen = thief.cookie_field();
    for (case, gateway) in [("the same process", &one), ("another one", &other)] {
        for (method, path) in [("GET", "/datahubs/a/api/v4/user"), ("POST", "/auth/refresh")] {
            let answer = thief.fetch_following(gateway, method, path, b"");
            assert_eq!((answer.status, answer.code().as_str()), (401, "session_expired"), "{case}: {method}");
        }
        assert_eq!(thief.fetch(gateway, "GET", "/auth/session").json()["sessions"], serde_json::json!([]), "{case}");
    }
    assert_eq!(thief.cookie_field(), stolen, "nothing newer was given out");
    assert!(hub.live_tokens().is_empty());
}

#[test]
fn a_logout_at_one_datahub_leaves_the_other_alone() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &one), ("b", &other)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &one, "testuser");
    browser.log_in(&gateway, "b", &other, "testuser");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout?datahub=c").code(), "unknown_datahub");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout?datahub=a").headers("set-cookie").len(), 3);
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "not_logged_in");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/b/api/v4/user").status, 200);
    assert_eq!((one.counts().revocations, other.counts().revocations), (1, 0));

    browser.log_in(&gateway, "a", &one, "testuser");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").headers("set-cookie").len(), 5);
    assert_eq!(browser.cookie_field(), "");
}

/// Nobody is logged in there any more, so that a late callback says so; what is under way goes on.
#[test]
fn a_logout_forgets_that_a_login_ended_and_leaves_those_that_are_under_way() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &one), ("b", &other)]).start();
    let browser = Browser::default();
    let [spent, under_way, elsewhere] =
        [("a", &one), ("a", &one), ("b", &other)].map(|(id, hub)| browser.begin_login(&gateway, id, hub, "testuser"));
    assert_eq!(browser.open(&gateway, &spent).location(), "/arcmanager/app/");
    assert_eq!(browser.open(&gateway, &spent).location(), "/arcmanager/app/", "late, and logged in");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout?datahub=b").headers("set-cookie").len(), 1);
    assert_eq!(browser.open(&gateway, &spent).location(), "/arcmanager/app/", "another DataHUB's logout");
    browser.keep_jar_secret(&gateway);
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout?datahub=a").status, 204);
    assert_eq!(browser.open(&gateway, &spent).location(), "/arcmanager/app/?login_error=expired");
    for (callback, revocations) in [(&under_way, 1), (&elsewhere, 1)] {
        assert_eq!(browser.open(&gateway, callback).location(), "/arcmanager/app/");
        assert_eq!(one.counts().revocations, revocations, "the logout's own, and none twice");
    }
}

#[test]
fn a_logout_without_a_session_is_done_at_once_and_removes_what_is_useless() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let answer = browser.fetch(&gateway, "POST", "/auth/logout");
    assert_eq!((answer.status, answer.headers("set-cookie").len()), (204, 0));
    browser.set_cookie("__Host-Http-session-a", "junk");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").headers("set-cookie").len(), 2);
    browser.set_cookie("__Host-Http-login", "junk");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").headers("set-cookie").len(), 1);
    assert_eq!(browser.cookie_field(), "");
    let got = browser.fetch(&gateway, "GET", "/auth/logout");
    assert_eq!(
        (got.status, got.code().as_str(), got.header("allow").as_deref()),
        (405, "method_not_allowed", Some("POST"))
    );
}

/// CS-06: an image or a link cannot log anybody out.
#[test]
fn logout_and_refresh_are_posts() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.clear();
    for path in ["/auth/logout", "/auth/refresh"] {
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE"] {
            let answer = browser.fetch(&gateway, method, path);
            assert_eq!((answer.status, answer.header("allow").as_deref()), (405, Some("POST")), "{method} {path}");
            assert!(answer.headers("set-cookie").is_empty(), "{method} {path}");
        }
    }
    assert!(hub.requests().is_empty(), "nothing was revoked");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    for path in ["/auth/refresh", "/auth/logout"] {
        assert!(browser.fetch(&gateway, "POST", path).status < 300, "{path}");
    }
    assert!(!hub.requests().is_empty());
}

/// LO-01.
#[test]
fn a_logout_removes_the_cookies_whatever_the_datahub_says_and_in_time() {
    for (case, trouble) in
        [("broken", Answer::Status(500)), ("closed", Answer::CloseWithoutAnswer), ("hangs", Answer::Hang)]
    {
        let hub = datahub_with(|behaviour| behaviour.revoke.answer = trouble);
        let gateway = Setup::new(&[("a", &hub)]).and("server.shutdown_timeout = \"1s\"").start();
        gateway.expects_orphans(1, "the DataHUB revokes nothing");
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        let started = Instant::now();
        let answer = browser.fetch(&gateway, "POST", "/auth/logout");
        assert_eq!((answer.status, answer.headers("set-cookie").len()), (204, 3), "{case}");
        assert!(started.elapsed() < Duration::from_secs(6), "{case}: {:?}", started.elapsed());
        // It is tried for a minute, or until the process ends.
        gateway.terminate();
        assert_eq!(gateway.wait_for_event("revoke_failed")["datahub"], "a", "{case}");
    }
}

#[test]
fn a_logout_waits_for_a_refresh_under_way_and_revokes_what_it_brings() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(400));
    let other_tab = browser.copy();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| other_tab.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status);
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
        assert_eq!(call.join().expect("no panic"), 307);
    });
    assert_eq!((hub.counts().refreshes, hub.counts().revocations), (1, 1));
    // The late answer's cookie, without the sid that the logout removed, is no session; and its tokens are dead.
    browser.set_cookie("__Host-Http-session-a", &other_tab.cookie("__Host-Http-session-a").expect("it got one"));
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "not_logged_in");
    assert_eq!(other_tab.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 401);
}

/// A page that goes elsewhere as soon as it has asked for a logout is logged out, too.
#[test]
fn a_logout_whose_client_leaves_ends_the_session() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(800));
    let call = browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), FETCH);
    std::thread::sleep(Duration::from_millis(200));
    let logout = browser.begin(&gateway, "POST", &format!("{BASE}/auth/logout"), FETCH);
    std::thread::sleep(Duration::from_millis(200));
    drop(logout);
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["method"] == "POST");
    assert_eq!((&line["status"], &line["code"]), (&499.into(), &"client_gone".into()), "{line}");
    assert!(line["route"].as_str().is_some_and(|route| route.ends_with("/auth/logout")), "{line}");
    drop(call);
    assert_eq!((hub.counts().refreshes, hub.counts().revocations), (1, 1));
    let answer = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user?_gateway_replay=1");
    assert_eq!((answer.status, answer.headers("set-cookie").len()), (401, 0), "a copy of the cookie: {}", answer.head);
}

/// Rule 8: a refresh that a logout did not wait for brings nothing that lives on.
#[test]
fn what_a_refresh_brings_after_a_logout_is_revoked() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    hub.set(|behaviour| behaviour.token.delay = Duration::from_secs(3));
    let thief = browser.copy();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| browser.copy().fetch(&gateway, "GET", "/datahubs/a/api/v4/user"));
        std::thread::sleep(Duration::from_millis(150));
        let started = Instant::now();
        assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
        assert!(started.elapsed() < Duration::from_secs(3), "a person waits");
        let answer = call.join().expect("no panic");
        assert_eq!((answer.status, answer.headers("set-cookie").len()), (307, 0), "{}", answer.head);
    });
    let until = Instant::now() + Duration::from_secs(5);
    while hub.counts().revocations == 0 {
        assert!(Instant::now() < until, "nothing was revoked");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(thief.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "session_expired");
}

/// Somebody else logs in while a refresh of the first one's session is under way: its late answer brings nobody back.
#[test]
fn a_late_cookie_of_an_earlier_login_opens_nothing() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    gateway.expects_orphans(1, "the late cookie takes the place of the one that holds it");
    let first = browser.copy();
    let late = first.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    assert_eq!(late.status, 307);
    browser.log_in(&gateway, "a", &hub, "joerg");
    let who = |browser: &Browser| browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").json()["username"].clone();
    assert_eq!(who(&browser), "joerg");
    browser.apply(&late);
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "not_logged_in");
    browser.log_in(&gateway, "a", &hub, "joerg");
    assert_eq!(who(&browser), "joerg");
}
