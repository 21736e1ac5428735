//! Nothing that was obtained and is not kept stays alive at the DataHUB. The books of each test look at that, too.

use std::time::{Duration, Instant};

use datahub::behaviour::Answer;

use crate::browser::{Browser, parameter, sign_in};
use crate::gateway::{Setup, datahub, datahub_with, wait_until};
use crate::token_endpoint::{USER, logged_in};

/// It outlives the request, waits for metadata, and is tried again.
#[test]
fn a_revocation_takes_as_long_as_it_takes() {
    let second = Duration::from_millis(800);
    for (case, answers) in [
        ("slow", &[][..]),
        ("broken for a while", &[Answer::Status(503), Answer::CloseWithoutAnswer][..]),
        ("throttled for a while", &[Answer::Status(429)][..]),
    ] {
        let hub = datahub();
        let setup = Setup::new(&[("a", &hub)]);
        let browser = logged_in(&setup.start(), &hub, "testuser");
        let gateway = setup.start();
        hub.set(|behaviour| {
            for manner in [&mut behaviour.discovery, &mut behaviour.keys, &mut behaviour.revoke] {
                manner.delay = second;
            }
        });
        hub.clear();
        let started = Instant::now();
        assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204, "{case}");
        assert!(started.elapsed() < Duration::from_secs(2), "{case}: a person waits {:?}", started.elapsed());
        for (at, answer) in answers.iter().enumerate() {
            hub.set(|behaviour| behaviour.revoke.answer = answer.clone());
            wait_until(|| hub.requests().iter().filter(|request| request.path() == "/oauth/revoke").count() > at);
        }
        hub.set(|behaviour| behaviour.revoke.answer = Answer::Normal);
        wait_until(|| hub.counts().revocations == 1);
        assert!(hub.live_tokens().is_empty(), "{case}");
        wait_until(|| gateway.metrics().contains("gateway_revocations_total{result=\"ok\"} 1\n"));
        assert!(gateway.metrics().contains("gateway_revocations_total{result=\"failed\"} 0\n"), "{case}");
    }
}

/// One that a DataHUB refuses for good is not tried for a minute; one without an end is given up at the end.
#[test]
fn a_revocation_that_is_in_vain_says_so() {
    for (case, answer, ends) in [("refused", Answer::Status(403), false), ("hangs", Answer::Hang, true)] {
        let hub = datahub();
        let gateway = Setup::new(&[("a", &hub)]).and("server.shutdown_timeout = \"1s\"").start();
        gateway.expects_orphans(1, "the DataHUB revokes nothing");
        let browser = logged_in(&gateway, &hub, "testuser");
        hub.set(|behaviour| behaviour.revoke.answer = answer);
        assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204, "{case}");
        let is_counted = || gateway.metrics().contains("gateway_revocations_total{result=\"failed\"} 1\n");
        if ends {
            assert!(!is_counted(), "{case}");
            gateway.terminate();
        } else {
            wait_until(is_counted);
        }
        assert_eq!(gateway.wait_for_event("revoke_failed")["datahub"], "a", "{case}");
    }
}

/// A session without a refresh token ends by its access token, and a copy of it is dead here at once.
#[test]
fn a_session_without_a_refresh_token_is_revoked_too() {
    let hub = datahub_with(|behaviour| behaviour.leave_out_refresh_token = true);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = logged_in(&gateway, &hub, "testuser");
    let (thief, other) = (browser.copy(), logged_in(&gateway, &hub, "testuser"));
    assert_eq!(thief.fetch(&gateway, "GET", USER).status, 200);
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
    hub.clear();
    assert_eq!(thief.fetch(&gateway, "GET", USER).code(), "session_expired");
    assert_eq!(thief.fetch(&gateway, "POST", "/auth/refresh").code(), "session_expired");
    assert!(hub.requests().is_empty(), "the DataHUB is not asked");
    assert_eq!((hub.counts().revocations, hub.live_tokens().len()), (1, 1));
    assert_eq!(other.fetch(&gateway, "GET", USER).status, 200, "another session of the person");
    assert_eq!(other.fetch(&gateway, "POST", "/auth/refresh").status, 200, "there is nothing to renew");
    other.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!((hub.counts().revocations, hub.live_tokens().len()), (2, 1), "a login takes its place");
}

/// However a login fails once the DataHUB has given out tokens, they are revoked.
#[test]
fn what_a_failed_login_has_obtained_is_revoked() {
    let body = r#"{"sub":"8","name":"x"}"#;
    let other = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for (case, answer) in [
        ("userinfo is broken", Answer::Status(500)),
        ("userinfo is refused", Answer::Status(403)),
        ("userinfo hangs", Answer::Hang),
        ("userinfo is closed", Answer::CloseWithoutAnswer),
        ("userinfo speaks of somebody else", Answer::Raw(other.into_bytes())),
        ("the nonce is another login's", Answer::Normal),
        ("the twin, which is kept", Answer::Normal),
    ] {
        let hub = datahub();
        let gateway = Setup::new(&[("a", &hub)]).and("timeouts.back_channel = \"1s\"").start();
        let browser = Browser::default();
        let mut authorize = browser.authorize(&gateway, "a");
        if case.starts_with("the nonce") {
            let nonce = parameter(&authorize, "nonce").expect("a nonce");
            authorize = authorize.replace(&nonce, &nonce.chars().rev().collect::<String>());
        }
        let callback = sign_in(&hub, &authorize, "user=testuser");
        hub.set(|behaviour| behaviour.userinfo.answer = answer);
        let is_good = case.starts_with("the twin");
        assert_eq!(browser.open(&gateway, &callback).location() == "/arcmanager/app/", is_good, "{case}");
        assert_eq!(hub.counts().code_exchanges, 1, "{case}");
        wait_until(|| hub.counts().revocations == u64::from(!is_good));
        assert_eq!(hub.live_tokens().len(), usize::from(is_good), "{case}");
    }
}

/// A code that was taken brings tokens, also when the person has gone elsewhere meanwhile: nobody would hold them.
#[test]
fn a_login_whose_browser_leaves_keeps_nothing_alive() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    hub.set(|behaviour| behaviour.token.answer_delay = Duration::from_secs(1));
    let connection = browser.begin(&gateway, "GET", &callback, crate::browser::NAVIGATION);
    wait_until(|| hub.counts().code_exchanges == 1);
    drop(connection);
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["status"] == 499);
    assert!(line["route"].as_str().is_some_and(|route| route.ends_with("/auth/callback")), "{line}");
    wait_until(|| hub.counts().revocations == 1 && hub.live_tokens().is_empty());
    // Whoever stays has the session.
    hub.set(|behaviour| behaviour.token.answer_delay = Duration::ZERO);
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!((browser.fetch(&gateway, "GET", USER).status, hub.live_tokens().len()), (200, 1));
}

/// The session that a login was to replace is what such a browser has still.
#[test]
fn a_login_whose_browser_leaves_ends_no_session() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for leaves in [true, false] {
        let browser = logged_in(&gateway, &hub, "testuser");
        let callback = browser.begin_login(&gateway, "a", &hub, "joerg");
        hub.clear();
        hub.set(|behaviour| behaviour.token.answer_delay = Duration::from_secs(1));
        let mut connection = browser.begin(&gateway, "GET", &callback, crate::browser::NAVIGATION);
        wait_until(|| hub.requests().iter().any(|request| request.path() == "/oauth/token"));
        if leaves {
            drop(connection);
        } else {
            assert_eq!(connection.head().status, 303);
        }
        hub.set(|behaviour| behaviour.token.answer_delay = Duration::ZERO);
        // Either the pair that nobody holds is revoked, or the one that was replaced.
        wait_until(|| hub.requests().iter().any(|request| request.path() == "/oauth/revoke"));
        wait_until(|| hub.live_tokens().len() == 1);
        assert_eq!(browser.fetch(&gateway, "GET", USER).status == 200, leaves);
        hub.revoke_all_tokens();
    }
}

/// One person's logouts cost nobody else a place in the memory, and the DataHUB no call.
#[test]
fn what_has_ended_is_not_revoked_again() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = logged_in(&gateway, &hub, "testuser");
    for _ in 0..20 {
        let copy = browser.copy();
        assert_eq!(copy.fetch(&gateway, "POST", "/auth/logout").status, 204);
        assert_eq!(copy.cookie("__Host-Http-session-a"), None, "its cookies go each time");
    }
    let revocations = hub.requests().iter().filter(|request| request.path() == "/oauth/revoke").count();
    assert_eq!((revocations, hub.live_tokens().len()), (1, 0));
}

/// A session that has ended here lives on at the DataHUB until somebody ends it there.
#[test]
fn a_logout_of_a_session_that_has_ended_revokes_its_tokens() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("session.max_age = \"2s\"").start();
    let browser = logged_in(&gateway, &hub, "testuser");
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(browser.fetch(&gateway, "GET", USER).code(), "session_expired");
    let answer = browser.fetch(&gateway, "POST", "/auth/logout");
    assert_eq!((answer.status, hub.counts().revocations), (204, 1));
    assert!(hub.live_tokens().is_empty());
}

/// The end of a process waits for a code's answer, but not for ever.
#[test]
fn a_login_that_a_process_has_no_time_for_is_given_up() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).and("server.shutdown_timeout = \"1s\"").start();
    gateway.expects_orphans(1, "the process had to end before the DataHUB answered");
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    hub.set(|behaviour| behaviour.token.answer_delay = Duration::from_secs(8));
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until(|| hub.counts().code_exchanges == 1);
            gateway.terminate();
        });
        let mut connection = browser.begin(&gateway, "GET", &callback, crate::browser::NAVIGATION);
        // It is given up, and nobody is logged in; whether somebody is still told so depends on what ends first.
        let told = connection.try_head().map(|answer| answer.location());
        assert!(told.is_err() || told.as_ref().is_ok_and(|told| told.ends_with("login_error=unavailable")), "{told:?}");
    });
    assert!(gateway.wait_for_end().is_some_and(|status| status.success()));
    assert!(started.elapsed() < Duration::from_secs(5), "twice the second, and two: {:?}", started.elapsed());
}

/// Doorkeeper's `reuse_access_token`: a login gets the tokens that the session holds already.
#[test]
fn a_login_never_revokes_what_it_has_just_got() {
    let hub = datahub_with(|behaviour| behaviour.reuse_access_token = true);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = logged_in(&gateway, &hub, "testuser");
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!((browser.fetch(&gateway, "GET", USER).status, hub.live_tokens().len()), (200, 1));
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    hub.set(|behaviour| behaviour.userinfo.answer = Answer::Status(500));
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/?login_error=unavailable");
    assert_eq!((browser.fetch(&gateway, "GET", USER).status, hub.counts().revocations), (200, 0), "a failed one, too");
    hub.set(|behaviour| behaviour.userinfo.answer = Answer::Normal);
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
    assert_eq!((hub.counts().revocations, hub.live_tokens().len()), (1, 0));
    // The next login gets new ones, of which this process knows nothing bad.
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
}
