//! What a token endpoint may do to us, and what becomes of people then: a table of each kind, with its twins.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant, SystemTime};

use datahub::DataHub;
use datahub::behaviour::{Answer, Framing, Manner, RefreshTrouble};

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub_with, run, wait_until};

pub const USER: &str = "/datahubs/a/api/v4/user";

/// A DataHUB whose tokens live so long, in seconds.
pub fn lifetime(seconds: u64) -> DataHub {
    datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(seconds))
}

pub fn logged_in(gateway: &Gateway, hub: &DataHub, user: &str) -> Browser {
    let browser = Browser::default();
    browser.log_in(gateway, "a", hub, user);
    browser
}

/// So many people, each logged in once.
pub fn crowd(gateway: &Gateway, hub: &DataHub, count: u64) -> Vec<Browser> {
    hub.add_people(count);
    (1..=count).map(|number| logged_in(gateway, hub, &format!("person{number}"))).collect()
}

/// How often the token endpoint was asked for a refresh.
pub fn refreshes(hub: &DataHub) -> usize {
    let is_refresh = |body: &[u8]| String::from_utf8_lossy(body).contains("grant_type=refresh_token");
    hub.requests().iter().filter(|request| request.path() == "/oauth/token" && is_refresh(&request.body)).count()
}

/// What each row of the next test expects.
enum Expected {
    /// 503, to come back in so many seconds; so many requests however often people ask.
    Unavailable(RangeInclusive<u64>, usize),
    /// 401, and no session for a while.
    Blocked,
}

/// LO-05: a failure costs time and no session; it is remembered, so that the DataHUB is left in peace; a refusal that is
/// final for another reason than the token is no failure.
#[test]
fn a_failure_is_remembered_and_costs_no_session() {
    use Expected::{Blocked, Unavailable};

    let raw = |text: &str| Answer::Raw(text.as_bytes().to_vec());
    let throttled = |retry_after: &str| Answer::Throttled { retry_after: retry_after.to_owned() };
    let error = |status, error: &str| Answer::OauthError { status, error: error.to_owned() };
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n{}", "x".repeat(400_000));
    let rows = [
        ("broken", Answer::Status(500), Unavailable(1..=1, 1)),
        ("an upgrade", Answer::Html(502), Unavailable(1..=1, 1)),
        ("throttled", Answer::Status(429), Unavailable(58..=60, 1)),
        ("throttled until a date", throttled(&date), Unavailable(80..=100, 1)),
        ("throttled for a day", throttled("86400"), Unavailable(298..=300, 1)),
        ("throttled for no time", throttled("0"), Unavailable(1..=1, 1)),
        ("throttled, it does not say for how long", throttled("soon"), Unavailable(1..=1, 1)),
        ("a maintenance page", Answer::Redirect("http://127.0.0.1:9/maintenance".into()), Unavailable(1..=1, 1)),
        ("another page of its own", Answer::Redirect("/users/sign_in/elsewhere".into()), Unavailable(1..=1, 1)),
        ("another host's sign-in", Answer::Redirect("http://127.0.0.1:9/users/sign_in".into()), Unavailable(1..=1, 1)),
        ("its own sign-in page", Answer::Redirect("/users/sign_in".into()), Blocked),
        ("closed", Answer::CloseWithoutAnswer, Unavailable(1..=1, 2)),
        ("hangs", Answer::Hang, Unavailable(1..=1, 1)),
        ("no JSON", raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"), Unavailable(1..=1, 1)),
        ("nothing", raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Unavailable(1..=1, 1)),
        ("no HTTP", raw("SSH-2.0-OpenSSH\r\n"), Unavailable(1..=1, 1)),
        ("too much", raw(&long), Unavailable(1..=1, 1)),
        ("half of it", raw("HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n{"), Unavailable(1..=1, 2)),
        ("another refusal", error(400, "invalid_request"), Unavailable(1..=1, 1)),
        ("a refusal of our client", error(401, "invalid_client"), Unavailable(1..=1, 1)),
        ("another refusal of our client", error(400, "unauthorized_client"), Unavailable(1..=1, 1)),
    ];
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(case, trouble, expected)| {
            let hub = lifetime(2);
            let gateway = Setup::new(&[("a", &hub)]).and("timeouts.token = \"1s\"").start();
            let browser = logged_in(&gateway, &hub, "testuser");
            hub.set(|behaviour| behaviour.token.answer = trouble);
            (case, expected, hub, gateway, browser)
        })
        .collect();
    std::thread::sleep(Duration::from_millis(2_100));
    std::thread::scope(|scope| {
        for (case, expected, hub, gateway, browser) in &rows {
            scope.spawn(move || {
                let cookies = browser.cookie_field();
                for (method, path) in [("GET", USER), ("GET", USER), ("POST", "/auth/refresh"), ("GET", USER)] {
                    let answer = browser.fetch(gateway, method, path);
                    assert!(answer.headers("set-cookie").is_empty(), "{case}: {}", answer.head);
                    let (code, retry_after) = (answer.code(), answer.header("retry-after"));
                    match expected {
                        Unavailable(seconds, _) => {
                            assert_eq!((answer.status, code.as_str()), (503, "refresh_unavailable"), "{case}");
                            let told = retry_after.and_then(|told| told.parse().ok()).expect("a number");
                            assert!(seconds.contains(&told), "{case}: {told} s");
                        }
                        Blocked => assert_eq!((answer.status, code.as_str()), (401, "session_expired"), "{case}"),
                    }
                }
                let asked = if let Unavailable(_, asked) = expected { *asked } else { 1 };
                assert_eq!(refreshes(hub), asked, "{case}: it is asked no more for a while");
                let sessions =
                    browser.fetch(gateway, "GET", "/auth/session").json()["sessions"].as_array().map(Vec::len);
                let is_blocked = matches!(expected, Blocked);
                assert_eq!((sessions, browser.cookie_field()), (Some(usize::from(!is_blocked)), cookies), "{case}");
                let is_refused = case.contains("our client");
                if is_refused {
                    let event = gateway.wait_for_event("client_refused");
                    assert_eq!(event["level"], "ERROR", "{case}: {event}");
                    assert!(event["detail"].as_str().is_some_and(|detail| detail.starts_with("a: ")), "{event}");
                }
                let refused = gateway.metrics().contains("gateway_client_refused_total{datahub=\"a\"} 1\n");
                assert_eq!(refused, is_refused, "{case}");
                hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
                if matches!(expected, Unavailable(seconds, _) if *seconds.end() == 1) {
                    std::thread::sleep(Duration::from_millis(1_100));
                    assert_eq!(browser.fetch_following(gateway, "GET", USER, b"").status, 200, "{case}: it passes");
                }
            });
        }
    });
}

/// A blocked person is not logged out for good; GitLab's own words are passed on as long as the token lives.
#[test]
fn a_blocked_person_has_no_session_for_a_minute() {
    let hub = lifetime(2);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let (blocked, other) = (logged_in(&gateway, &hub, "testuser"), logged_in(&gateway, &hub, "joerg"));
    hub.block("testuser");
    assert_eq!(blocked.fetch(&gateway, "GET", USER).status, 403, "the DataHUB's own answer");
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(blocked.fetch(&gateway, "GET", USER).code(), "session_expired");
    assert_eq!(other.fetch_following(&gateway, "GET", USER, b"").status, 200, "somebody else");
    hub.unblock("testuser");
    assert_eq!(blocked.fetch(&gateway, "GET", USER).code(), "session_expired", "it is remembered");
    assert_eq!(refreshes(&hub), 2);
    blocked.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(blocked.fetch(&gateway, "GET", USER).status, 200, "who logs in again is there at once");
}

/// What cannot be asked for twice is waited for, by the task and not by the person.
#[test]
fn an_answer_that_takes_longer_than_people_wait_is_not_lost() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let (browser, newcomer) = (logged_in(&gateway, &hub, "testuser"), Browser::default());
    hub.expire_access_tokens();
    hub.set(|behaviour| behaviour.token.answer_delay = Duration::from_secs(11));
    let callback = newcomer.begin_login(&gateway, "a", &hub, "joerg");
    std::thread::scope(|scope| {
        let login = scope.spawn(|| newcomer.open(&gateway, &callback));
        let started = Instant::now();
        let answer = browser.fetch(&gateway, "GET", USER);
        assert_eq!((answer.status, answer.code().as_str()), (503, "refresh_unavailable"));
        assert!((10..=11).contains(&started.elapsed().as_secs()), "a person waits");
        assert_eq!(hub.counts().refreshes, 1, "and the DataHUB has committed");
        assert_eq!(browser.fetch_following(&gateway, "GET", USER, b"").status, 200, "its answer was waited for");
        assert_eq!((hub.counts().refreshes, hub.counts().refreshes_refused), (1, 0));
        assert_eq!(login.join().expect("no panic").location(), "/arcmanager/app/", "a login, too");
    });
}

/// The process ends in the middle of both.
#[test]
fn a_process_that_ends_waits_for_what_the_datahub_has_taken() {
    let hub = crate::gateway::datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let mut gateway = setup.start();
    let browser = logged_in(&gateway, &hub, "testuser");
    hub.expire_access_tokens();
    hub.set(|behaviour| behaviour.token.answer_delay = Duration::from_secs(3));
    let newcomer = Browser::default();
    let callback = newcomer.begin_login(&gateway, "a", &hub, "joerg");
    std::thread::scope(|scope| {
        let call = scope.spawn(|| browser.fetch(&gateway, "GET", USER));
        let login = scope.spawn(|| newcomer.open(&gateway, &callback));
        wait_until(|| hub.counts().refreshes == 1 && hub.counts().code_exchanges == 2);
        gateway.terminate();
        let answer = call.join().expect("no panic");
        assert_eq!((answer.status, answer.headers("set-cookie").len()), (307, 1), "{}", answer.head);
        assert_eq!(login.join().expect("no panic").location(), "/arcmanager/app/");
    });
    assert!(gateway.wait_for_end().is_some_and(|status| status.success()));
    let next = setup.start();
    assert_eq!(newcomer.fetch(&next, "GET", USER).status, 200);
    assert_eq!(browser.fetch_following(&next, "GET", USER, b"").status, 200, "with what came by the last answer");
}

/// What is said to one is said to all, since all share an address; meanwhile good tokens serve, and the wait is told.
#[test]
fn refreshes_are_held_back_for_all_and_good_tokens_go_up() {
    let hub = lifetime(8);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let people = ["testuser", "joerg", "testuser"].map(|user| logged_in(&gateway, &hub, user));
    hub.set(|behaviour| behaviour.token.answer = Answer::Status(429));
    std::thread::sleep(Duration::from_millis(6_200));
    for _ in 0..20 {
        for person in &people {
            assert_eq!(person.fetch_following(&gateway, "GET", USER, b"").status, 200, "its token lives");
        }
    }
    assert_eq!(refreshes(&hub), 1);
    let answer = people[1].fetch(&gateway, "POST", "/auth/refresh");
    assert_eq!((answer.status, answer.code().as_str()), (503, "refresh_unavailable"), "an app that asks is told");
    std::thread::sleep(Duration::from_secs(2));
    for person in &people {
        let answer = person.fetch(&gateway, "GET", USER);
        let told: u64 = answer.header("retry-after").and_then(|told| told.parse().ok()).expect("a number");
        assert_eq!((answer.status, answer.code().as_str()), (503, "refresh_unavailable"));
        assert!((50..=58).contains(&told), "{told} s of the 60 are left");
    }
    assert_eq!(refreshes(&hub), 1);
    hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    let newcomer = logged_in(&gateway, &hub, "joerg");
    assert_eq!(newcomer.fetch(&gateway, "GET", USER).status, 200, "a login is no refresh");
}

/// One person's poisoned token stops everybody else for a moment at most.
#[test]
fn tokens_that_always_fail_do_not_stop_the_others() {
    let hub = lifetime(2);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let poisoned = ["joerg"; 3].map(|user| logged_in(&gateway, &hub, user));
    let good = ["testuser"; 3].map(|user| logged_in(&gateway, &hub, user));
    hub.set(|behaviour| behaviour.poisoned_users = vec!["joerg".to_owned()]);
    std::thread::sleep(Duration::from_millis(2_100));
    for person in &poisoned[..2] {
        assert_eq!(person.fetch(&gateway, "GET", USER).code(), "refresh_unavailable");
    }
    assert_eq!(good[0].fetch_following(&gateway, "GET", USER, b"").status, 200, "two are not everybody");
    // A success has come between; three more in a row are needed now.
    std::thread::sleep(Duration::from_millis(1_100));
    for person in &poisoned {
        assert_eq!(person.fetch(&gateway, "GET", USER).code(), "refresh_unavailable");
    }
    let before = refreshes(&hub);
    assert_eq!(good[1].fetch(&gateway, "GET", USER).code(), "refresh_unavailable", "held back");
    assert_eq!(refreshes(&hub), before);
    std::thread::sleep(Duration::from_millis(1_100));
    for person in &good[1..] {
        assert_eq!(person.fetch_following(&gateway, "GET", USER, b"").status, 200, "one tried, and ended it");
    }
}

/// Three hundred that come at once would make any provider slow.
#[test]
fn sixteen_refreshes_begin_at_once_and_logins_have_places_of_their_own() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let people = crowd(&gateway, &hub, 60);
    hub.expire_access_tokens();
    hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(700));
    std::thread::scope(|scope| {
        for person in &people {
            scope.spawn(|| assert_eq!(person.fetch_following(&gateway, "GET", USER, b"").status, 200));
        }
        wait_until(|| hub.counts().refreshes_at_once == 16);
        let started = Instant::now();
        logged_in(&gateway, &hub, "joerg");
        assert!(started.elapsed() < Duration::from_millis(2_300), "no refresh is in its way: {:?}", started.elapsed());
    });
    assert_eq!((hub.counts().refreshes, hub.counts().refreshes_at_once), (60, 16));
}

/// One person who is logged in very often has two refreshes at a time, and whoever else comes has theirs at once.
#[test]
fn one_persons_many_logins_make_nobody_else_wait() {
    let hub = crate::gateway::datahub();
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let own: Vec<_> = (0..24).map(|_| logged_in(&gateway, &hub, "testuser")).collect();
    let others = crowd(&gateway, &hub, 3);
    hub.expire_access_tokens();
    hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(700));
    let at_once = std::thread::scope(|scope| {
        for browser in &own {
            scope.spawn(|| assert_eq!(browser.fetch_following(&gateway, "GET", USER, b"").status, 200));
        }
        wait_until(|| refreshes(&hub) >= 2);
        std::thread::sleep(Duration::from_millis(300));
        let at_once = hub.counts().refreshes_at_once;
        let started = Instant::now();
        for other in &others {
            let gateway = &gateway;
            scope.spawn(move || {
                assert_eq!(other.fetch_following(gateway, "GET", USER, b"").status, 200);
                assert!(started.elapsed() < Duration::from_millis(2_300), "it waited for {:?}", started.elapsed());
            });
        }
        at_once
    });
    assert_eq!((at_once, hub.counts().refreshes), (2, 27), "of that person alone, and of all in the end");
}

/// A refresh that nobody waits for any more when its turn comes costs nobody a token.
#[test]
fn a_refresh_that_has_not_begun_is_taken_back_when_everybody_has_left() {
    let hub = lifetime(8);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let people = crowd(&gateway, &hub, 17);
    std::thread::sleep(Duration::from_millis(6_100));
    hub.set(|behaviour| behaviour.token.delay = Duration::from_secs(1));
    let begin = |person: &Browser| person.begin(&gateway, "GET", &format!("{BASE}{USER}"), FETCH);
    let calls: Vec<_> = people[..16].iter().map(begin).collect();
    wait_until(|| refreshes(&hub) == 16);
    drop(begin(&people[16]));
    gateway.wait_for_line(|line| line["target"] == "access" && line["status"] == 499);
    for mut call in calls {
        assert_eq!(call.answer(true).status, 307);
    }
    assert_eq!(refreshes(&hub), 16);
    hub.set(|behaviour| behaviour.token.delay = Duration::ZERO);
    assert_eq!(people[16].fetch_following(&gateway, "GET", USER, b"").status, 200, "it can begin anew");
    assert_eq!(refreshes(&hub), 17);
    gateway.expects_orphans(16, "the sixteen answers were read here and not kept");
}

/// The provider is reached, and its answer is read as it is meant.
#[test]
fn every_way_to_frame_an_answer_is_read() {
    let hub = lifetime(4);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    for framing in [Framing::ContentLength, Framing::UntilClose, Framing::Chunked] {
        for early_hints in [false, true] {
            hub.set(|behaviour| behaviour.token = Manner { framing, early_hints, ..Manner::default() });
            browser.log_in(&gateway, "a", &hub, "testuser");
            std::thread::sleep(Duration::from_millis(3_100));
            let before = hub.counts().refreshes;
            let answer = browser.fetch_following(&gateway, "GET", USER, b"");
            assert_eq!((answer.status, hub.counts().refreshes), (200, before + 1), "{framing:?}, 103: {early_hints}");
        }
    }
    assert_eq!(hub.counts().refreshes_refused, 0);
}

/// Slow, and one in ten throttled: what people see is a wait, or a 503 that says how long.
#[test]
fn a_slow_and_moody_provider_loses_nobody() {
    let hub = lifetime(4);
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let people = crowd(&gateway, &hub, 12);
    hub.set(|behaviour| behaviour.refresh_trouble = RefreshTrouble { max: Duration::from_secs(3), one_in: 10 });
    std::thread::scope(|scope| {
        for person in &people {
            scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(15);
                while Instant::now() < until {
                    let answer = person.fetch_following(&gateway, "GET", USER, b"");
                    assert!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.code());
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
        }
    });
    assert!(hub.counts().refreshes > 20, "{:?}", hub.counts());
}

/// An operator's fault is found before people meet it, and is no other thing than that.
#[test]
fn check_finds_a_client_that_the_datahub_refuses() {
    let hub = crate::gateway::datahub();
    let check = |setup: &Setup| {
        let output = run(&["check", "--config", setup.write().to_str().expect("a plain path")], &[]);
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    // GitLab says of a refresh token that nobody has `invalid_grant`, whoever asks; of a code only to a client that it knows.
    let wrong = Setup::new(&[("a", &hub)]).at(hub.client_secret(), "another-secret-than-it-has");
    let (code, text) = check(&wrong);
    assert_eq!(
        (code, text.contains("\na: the DataHUB refuses this gateway's client (invalid_client)")),
        (Some(78), true),
        "{text}"
    );
    assert_eq!(hub.counts().refreshes_refused, 0);

    let setup = Setup::new(&[("a", &hub)]);
    let error = |status, error: &str| Answer::OauthError { status, error: error.to_owned() };
    let untold = "\na: whether the DataHUB knows this gateway's client could not be told: ";
    for (case, answer, expected, told) in [
        ("as it should be", Answer::Normal, 0, "\na: good\n"),
        ("a refusal of the code", error(400, "invalid_grant"), 0, "\na: good\n"),
        ("the wrong secret", error(401, "invalid_client"), 78, "(invalid_client): check client_id and client_secret"),
        ("not its grant", error(400, "unauthorized_client"), 78, "(unauthorized_client): check client_id and"),
        ("a refusal of the request", error(400, "invalid_request"), 1, "(invalid_request)"),
        ("a word of its own", error(400, "canary"), 1, "(other)"),
        ("throttled", Answer::Status(429), 1, "the DataHUB's token endpoint answered with 429"),
        ("broken", Answer::Status(500), 1, "the DataHUB's token endpoint answered with 500"),
        ("away", Answer::Html(502), 1, "the DataHUB's token endpoint answered with 502"),
        ("a page", Answer::Html(404), 1, "see what its own log says about /oauth/token"),
        ("a page of good status", Answer::Html(200), 1, "see what its own log says about /oauth/token"),
        ("a maintenance page", Answer::Redirect("/maintenance".into()), 1, "answered with a redirect"),
        ("a sign-in page", Answer::Redirect("/users/sign_in".into()), 1, "sends the person to its sign-in page"),
        ("silent", Answer::CloseWithoutAnswer, 1, "gave no answer"),
    ] {
        hub.set(|behaviour| behaviour.token.answer = answer);
        let (code, text) = check(&setup);
        assert!(code == Some(expected) && text.contains(told) && !text.contains("canary"), "{case}: {code:?} {text}");
        assert_eq!(text.contains(untold), expected == 1, "{case}: {text}");
    }
    // Tokens for a code that nobody has: whatever answers there, it is no GitLab.
    let json = r#"{"access_token":"canary-canary","token_type":"Bearer","expires_in":7200}"#;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", json.len());
    hub.set(|behaviour| behaviour.token.answer = Answer::Raw(format!("{head}{json}").into_bytes()));
    let (code, text) = check(&setup);
    assert!(code == Some(1) && text.contains(untold) && !text.contains("canary"), "{text}");
}
