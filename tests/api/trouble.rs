//! What hostile and unlucky people, providers and proxies may do to logins and sessions.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use datahub::DataHub;
use datahub::behaviour::Answer;

use crate::browser::{Browser, FETCH, NAVIGATION, parameter, sign_in};
use crate::gateway::{BASE, Setup, datahub, datahub_with, wait_until};
use crate::token_endpoint::{USER, crowd, lifetime, logged_in, refreshes};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn throttled(retry_after: &str) -> Answer {
    Answer::Throttled { retry_after: retry_after.to_owned() }
}

fn told(answer: &crate::browser::Answer) -> u64 {
    answer.header("retry-after").and_then(|told| told.parse().ok()).unwrap_or(u64::MAX)
}

/// A try that hangs is the only one for ten seconds at most.
#[test]
fn a_try_that_hangs_stops_nobody_for_longer_than_ten_seconds() {
    let hub = lifetime(2);
    let gateway = Setup::new(&[("a", &hub)]).and("server.shutdown_timeout = \"1s\"").start();
    let (one, other) = (logged_in(&gateway, &hub, "testuser"), logged_in(&gateway, &hub, "joerg"));
    hub.set(|behaviour| behaviour.token.answer = throttled("1"));
    sleep(ms(2_100));
    assert_eq!(one.fetch(&gateway, "GET", USER).status, 503);
    sleep(ms(1_200));
    hub.set(|behaviour| behaviour.token.answer = Answer::Hang);
    let _left = other.begin(&gateway, "GET", &format!("{BASE}{USER}"), FETCH);
    wait_until(|| refreshes(&hub) == 2);
    hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    let started = Instant::now();
    while one.fetch_following(&gateway, "GET", USER, b"").status != 200 {
        assert!(started.elapsed() < Duration::from_secs(15), "the DataHUB is well, and this person waits");
        sleep(ms(1_000));
    }
}

/// Tokens that the DataHUB always fails at take no turn from the others, however often their tabs poll.
#[test]
fn poisoned_tokens_that_poll_starve_nobody() {
    let hub = lifetime(2);
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let poisoned = ["joerg"; 3].map(|user| logged_in(&gateway, &hub, user));
    let good = logged_in(&gateway, &hub, "testuser");
    hub.set(|behaviour| behaviour.poisoned_users = vec!["joerg".to_owned()]);
    sleep(ms(2_100));
    for person in &poisoned {
        person.fetch(&gateway, "GET", USER);
    }
    let is_done = AtomicBool::new(false);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for person in &poisoned {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    person.fetch(&gateway, "GET", USER);
                    sleep(ms(250));
                }
            });
        }
        while good.fetch_following(&gateway, "GET", USER, b"").status != 200
            && started.elapsed() < Duration::from_secs(45)
        {
            sleep(ms(2_000));
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert!(started.elapsed() < Duration::from_secs(45), "never, in {:?}", started.elapsed());
}

/// Whoever leaves a callback, at whatever moment, leaves no token behind.
#[test]
fn who_leaves_a_callback_leaves_no_token() {
    let mut wrong = Vec::new();
    for (case, token, token_answer, userinfo) in
        [("before the exchange", 600, 0, 0), ("after it", 0, 600, 0), ("during userinfo", 0, 0, 600)]
    {
        let hub = datahub();
        let gateway = Setup::new(&[("a", &hub)]).start();
        let browser = Browser::default();
        let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
        hub.set(|behaviour| {
            behaviour.token.delay = ms(token);
            behaviour.token.answer_delay = ms(token_answer);
            behaviour.userinfo.delay = ms(userinfo);
        });
        let connection = browser.begin(&gateway, "GET", &callback, NAVIGATION);
        sleep(ms(200));
        drop(connection);
        gateway.wait_for_line(|line| line["target"] == "access" && line["status"] == 499);
        sleep(ms(500));
        wrong.extend((!hub.live_tokens().is_empty()).then_some(case));
    }
    assert!(wrong.is_empty(), "tokens live in no cookie: {wrong:?}");
}

/// A 200 of the token endpoint that is not understood has spent the old token; the new ones are revoked.
#[test]
fn tokens_of_an_answer_that_is_not_understood_are_revoked() {
    type Change = fn(&mut serde_json::Value);
    let rows: [(&str, Change); 4] = [
        ("expires_in is a text", |answer| answer["expires_in"] = answer["expires_in"].to_string().into()),
        ("expires_in is a float", |answer| answer["expires_in"] = answer["expires_in"].as_f64().into()),
        ("no token_type", |answer| drop(answer.as_object_mut().expect("an object").remove("token_type"))),
        ("scope is a list", |answer| answer["scope"] = serde_json::json!(["api", "openid"])),
    ];
    let mut wrong = Vec::new();
    for (case, change) in rows {
        for kind in ["login", "refresh"] {
            let hub = datahub();
            let is_bent: Arc<AtomicBool> = Arc::default();
            let front = front(&hub, {
                let is_bent = Arc::clone(&is_bent);
                move |request, answer| {
                    let is_tokens = request.starts_with("POST /oauth/token") && answer.starts_with("HTTP/1.1 200");
                    if !is_tokens || !is_bent.load(Ordering::SeqCst) {
                        return answer;
                    }
                    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
                    let mut tokens: serde_json::Value = serde_json::from_str(body).expect("JSON");
                    change(&mut tokens);
                    let body = tokens.to_string();
                    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                }
            });
            let gateway = Setup::new(&[("a", &hub)]).and(&format!("datahubs.a.connect = {front:?}")).start();
            gateway.expects_orphans_up_to(1, "asserted below");
            if kind == "login" {
                is_bent.store(true, Ordering::SeqCst);
                let browser = Browser::default();
                let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
                browser.open(&gateway, &callback);
            } else {
                let browser = logged_in(&gateway, &hub, "testuser");
                hub.expire_access_tokens();
                is_bent.store(true, Ordering::SeqCst);
                browser.fetch(&gateway, "GET", USER);
            }
            sleep(ms(500));
            let (live, revoked) = (hub.live_tokens().len(), hub.counts().revocations);
            wrong.extend((live > 0 && revoked == 0).then(|| format!("{case}, {kind}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// An answer of a proxy in maintenance is no end of a revocation, and a page no success.
#[test]
fn a_revocation_outlives_a_maintenance_page() {
    let mut wrong = Vec::new();
    for (case, answer) in [
        ("302", Answer::Redirect("/maintenance".into())),
        ("404", Answer::Html(404)),
        ("408", Answer::Status(408)),
        ("a page with 200", Answer::Html(200)),
    ] {
        let hub = datahub();
        let gateway = Setup::new(&[("a", &hub)]).start();
        gateway.expects_orphans_up_to(1, "asserted below");
        let browser = logged_in(&gateway, &hub, "testuser");
        hub.set(|behaviour| behaviour.revoke.answer = answer);
        assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
        hub.set(|behaviour| behaviour.revoke.answer = Answer::Normal);
        sleep(ms(2_500));
        wrong.extend((!hub.live_tokens().is_empty()).then_some(case));
    }
    assert!(wrong.is_empty(), "never tried again: {wrong:?}");
}

/// A 429 for a code is of the token endpoint, too.
#[test]
fn a_429_for_a_code_holds_back_refreshes() {
    let hub = lifetime(2);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = logged_in(&gateway, &hub, "testuser");
    sleep(ms(2_100));
    hub.set(|behaviour| behaviour.token.answer = throttled("60"));
    let other = Browser::default();
    let callback = other.begin_login(&gateway, "a", &hub, "joerg");
    assert_eq!(other.open(&gateway, &callback).location(), "/arcmanager/app/?login_error=unavailable");
    let answer = browser.fetch(&gateway, "GET", USER);
    assert_eq!((answer.status, refreshes(&hub)), (503, 0), "asked in spite of the 429");
}

/// Of a blocked and a held-back session, the one that is kept decides what an app is told.
#[test]
fn a_refresh_of_several_does_not_say_session_expired_while_one_is_kept() {
    let hubs = [lifetime(2), lifetime(2)];
    let list = [("a", &hubs[0]), ("b", &hubs[1])];
    let gateway = Setup::new(&list).start();
    let browser = Browser::default();
    for (id, hub) in list {
        browser.log_in(&gateway, id, hub, "testuser");
    }
    sleep(ms(2_100));
    hubs[0].block("testuser");
    hubs[1].set(|behaviour| behaviour.token.answer = throttled("60"));
    let answer = browser.fetch(&gateway, "POST", "/auth/refresh");
    assert_eq!((answer.status, answer.code().as_str()), (503, "refresh_unavailable"), "b's session is still there");
}

/// One blocked person, or one that alters a nonce, says nothing about the DataHUB.
#[test]
fn one_person_makes_no_datahub_look_ill() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let is_up = || gateway.metrics().contains("gateway_datahub_up{datahub=\"a\"} 1\n");
    let browser = Browser::default();
    let authorize = browser.authorize(&gateway, "a");
    let nonce = parameter(&authorize, "nonce").expect("a nonce");
    let callback = sign_in(&hub, &authorize.replace(&nonce, "mine"), "user=joerg");
    browser.open(&gateway, &callback);
    let after_nonce = is_up();
    logged_in(&gateway, &hub, "testuser");
    assert!(is_up());
    gateway.expects_orphans_up_to(1, "that one's browser is gone");
    let callback = browser.begin_login(&gateway, "a", &hub, "joerg");
    hub.block("joerg");
    browser.open(&gateway, &callback);
    assert_eq!((after_nonce, is_up()), (true, true), "after a nonce of one's own, after a blocked person's login");
}

/// What was said is remembered as long as it was said, however short `session.remember` is.
#[test]
fn failures_blocks_and_ends_last_however_short_session_remember_is() {
    let mut wrong = Vec::new();
    let busy = b"HTTP/1.1 503 X\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n".to_vec();
    for (case, answer) in
        [("503 for a minute", Answer::Raw(busy)), ("blocked", Answer::Redirect("/users/sign_in".into()))]
    {
        let hub = lifetime(2);
        let gateway = Setup::new(&[("a", &hub)]).and("session.remember = \"1s\"").start();
        let browser = logged_in(&gateway, &hub, "testuser");
        sleep(ms(2_100));
        hub.set(|behaviour| behaviour.token.answer = answer);
        browser.fetch(&gateway, "GET", USER);
        sleep(ms(1_200));
        browser.fetch(&gateway, "GET", USER);
        wrong.extend((refreshes(&hub) != 1).then_some(case));
    }
    let hub = datahub_with(|behaviour| behaviour.leave_out_refresh_token = true);
    let gateway = Setup::new(&[("a", &hub)]).and("session.remember = \"1s\"").start();
    gateway.expects_orphans_up_to(1, "the DataHUB does not revoke it");
    let browser = logged_in(&gateway, &hub, "testuser");
    let thief = browser.copy();
    hub.set(|behaviour| behaviour.revoke.answer = Answer::Status(403));
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
    assert_eq!(thief.fetch(&gateway, "GET", USER).status, 401);
    sleep(ms(1_200));
    wrong.extend((thief.fetch(&gateway, "GET", USER).status != 401).then_some("dead in this process"));
    assert!(wrong.is_empty(), "forgotten: {wrong:?}");
}

/// Whoever comes back when they were told to is served.
#[test]
fn who_comes_back_when_told_is_served() {
    let hub = lifetime(2);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = logged_in(&gateway, &hub, "testuser");
    sleep(ms(2_100));
    hub.set(|behaviour| behaviour.token.answer = throttled("2"));
    for round in 1..=2 {
        let answer = browser.fetch(&gateway, "GET", USER);
        assert_eq!((told(&answer), refreshes(&hub)), (2, round), "round {round}");
        sleep(Duration::from_secs(told(&answer)) + ms(50));
    }
    hub.set(|behaviour| behaviour.token.answer = Answer::Normal);
    assert_eq!(browser.fetch_following(&gateway, "GET", USER, b"").status, 200, "it came when it was told to");
}

/// Numbers and lists of Retry-After that are too much for us are a long time, and no second.
#[test]
fn a_retry_after_beyond_all_bounds_is_five_minutes() {
    let mut wrong = Vec::new();
    for (value, expected) in
        [("99999999999999999999999", 298..=300), ("60\r\nRetry-After: 90", 58..=90), ("60, 90", 58..=90)]
    {
        let hub = datahub();
        let gateway = Setup::new(&[("a", &hub)]).start();
        let browser = logged_in(&gateway, &hub, "testuser");
        hub.expire_access_tokens();
        let raw = format!("HTTP/1.1 429 X\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n");
        hub.set(|behaviour| behaviour.token.answer = Answer::Raw(raw.into_bytes()));
        let told = told(&browser.fetch(&gateway, "GET", USER));
        wrong.extend((!expected.contains(&told)).then_some((value, told)));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A call that waits for its turn while its session is logged out is told so.
#[test]
fn a_call_of_a_session_that_is_logged_out_meanwhile_says_so() {
    let hub = lifetime(8);
    let gateway = Setup::new(&[("a", &hub)]).start();
    let people = crowd(&gateway, &hub, 17);
    sleep(ms(8_100));
    hub.set(|behaviour| behaviour.token.delay = Duration::from_secs(4));
    let code = std::thread::scope(|scope| {
        for person in &people[..16] {
            scope.spawn(|| assert_eq!(person.fetch_following(&gateway, "GET", USER, b"").status, 200));
        }
        wait_until(|| refreshes(&hub) == 16);
        let (copy, at) = (people[16].copy(), &gateway);
        let call = scope.spawn(move || copy.fetch(at, "GET", USER).code());
        sleep(ms(300));
        assert_eq!(people[16].fetch(&gateway, "POST", "/auth/logout").status, 204);
        call.join().expect("no panic")
    });
    assert_eq!(code, "session_expired", "it is told that the session is kept");
}

/// A hundred people log out at once, and the DataHUB sees sixteen of them at a time.
#[test]
fn revocations_come_a_few_at_a_time() {
    let hub = datahub();
    let counts: Arc<(AtomicUsize, AtomicUsize)> = Arc::default();
    let front = front(&hub, {
        let counts = Arc::clone(&counts);
        move |request, answer| {
            if request.starts_with("POST /oauth/revoke") {
                counts.1.fetch_max(counts.0.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                sleep(ms(700));
                counts.0.fetch_sub(1, Ordering::SeqCst);
            }
            answer
        }
    });
    let gateway = Setup::new(&[("a", &hub)]).quiet().and(&format!("datahubs.a.connect = {front:?}")).start();
    let people: Vec<_> = (0..100).map(|_| logged_in(&gateway, &hub, "testuser")).collect();
    std::thread::scope(|scope| {
        for person in &people {
            scope.spawn(|| assert_eq!(person.fetch(&gateway, "POST", "/auth/logout").status, 204));
        }
    });
    let until = Instant::now() + Duration::from_secs(30);
    while !hub.live_tokens().is_empty() {
        assert!(Instant::now() < until, "some live on");
        sleep(ms(50));
    }
    let most = counts.1.load(Ordering::SeqCst);
    assert!(most <= 16, "{most} at once");
}

/// Proxies that write ports (Azure's, some IIS) speak for as many clients as they have.
#[test]
fn forwarded_addresses_with_ports_are_clients_of_their_own() {
    let hub = datahub();
    let mut wrong = Vec::new();
    for (one, other) in [("192.0.2.1:5000", "192.0.2.2:5000"), ("[2001:db8::1]:443", "[2001:db8:1::1]:443")] {
        let lines = "server.trusted_proxies = [\"127.0.0.0/8\"]\nrate_limit.login = \"1/1m\"";
        let gateway = Setup::new(&[("a", &hub)]).and(lines).start();
        let statuses = [one, other].map(|client| {
            let fields = format!("{NAVIGATION}X-Forwarded-For: {client}\r\n");
            Browser::default().send(&gateway, "GET", &format!("{BASE}/auth/login?datahub=a"), &fields, b"").status
        });
        wrong.extend((statuses != [302, 302]).then_some((one, statuses)));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A rate without bound is refused at the start.
#[test]
fn a_rate_without_bound_is_refused() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]).and("rate_limit.login = \"1/100000000000d\"");
    let output = crate::gateway::run(&["check", "--config", setup.write().to_str().expect("a plain path")], &[]);
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stdout));
}

/// A DataHUB in maintenance is `unavailable`, at a callback, too.
#[test]
fn a_callback_during_a_maintenance_is_unavailable() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let mut wrong = Vec::new();
    for (case, answer) in [("302", Answer::Redirect("/maintenance".into())), ("a page", Answer::Html(200))] {
        hub.set(|behaviour| behaviour.discovery.answer = Answer::Normal);
        let (one, other) = (setup.start(), setup.start());
        let browser = Browser::default();
        let callback = browser.begin_login(&one, "a", &hub, "testuser");
        hub.set(|behaviour| behaviour.discovery.answer = answer);
        let location = browser.open(&other, &callback).location();
        wrong.extend((!location.ends_with("=unavailable")).then_some((case, location)));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A front at another port, one request a connection, whose answers `bend` may change.
fn front(hub: &DataHub, bend: impl Fn(&str, String) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (at, address) = (hub.address(), listener.local_addr().expect("bound").to_string());
    let bend = Arc::new(bend);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let bend = Arc::clone(&bend);
            std::thread::spawn(move || {
                let _ = one(stream, &at.to_string(), &*bend);
            });
        }
    });
    address
}

fn one(mut stream: TcpStream, at: &str, bend: &dyn Fn(&str, String) -> String) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| {
                    l.to_ascii_lowercase().strip_prefix("content-length:").and_then(|l| l.trim().parse().ok())
                })
                .unwrap_or(0);
            if body.len() >= length {
                break;
            }
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    let mut hub = TcpStream::connect(at)?;
    hub.write_all(text.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
    let mut answer = Vec::new();
    let _ = hub.read_to_end(&mut answer);
    let answer = bend(&text, String::from_utf8_lossy(&answer).into_owned());
    stream.write_all(answer.as_bytes())
}
