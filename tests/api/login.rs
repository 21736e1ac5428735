//! The way to a DataHUB.

use std::time::{Duration, Instant};

use datahub::behaviour::Answer;

use crate::browser::{Browser, FETCH, parameter};
use crate::gateway::{BASE, Setup, datahub, datahub_with};

/// AR-01, AR-02.
#[test]
fn a_login_is_code_flow_with_pkce_state_and_nonce_all_new_each_time() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let [first, second] = [(), ()].map(|()| Browser::default().authorize(&gateway, "a"));
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", hub.client_id()),
        ("scope", "openid profile api"),
        ("redirect_uri", "http://localhost:8000/arcmanager/api/v1/auth/callback?datahub=a"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(parameter(&first, name).as_deref(), Some(value), "{first}");
    }
    for (name, least) in [("state", 22), ("nonce", 22), ("code_challenge", 43)] {
        let [one, other] = [&first, &second].map(|url| parameter(url, name).expect(name));
        assert!(one.len() >= least && one != other, "{name}: {one} {other}");
    }
    assert_eq!(first.split('?').next(), Some(format!("{}/oauth/authorize", hub.url()).as_str()));
}

/// AR-05.
#[test]
fn nothing_of_the_request_enters_the_authorisation() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let plain = Browser::default().authorize(&gateway, "a");
    let extra =
        "scope=api+sudo&redirect_uri=https://evil.test&client_id=y&code_challenge_method=plain&state=x&prompt=none";
    let crowded = Browser::default().navigate(&gateway, &format!("{BASE}/auth/login?datahub=a&{extra}")).location();
    for name in ["scope", "redirect_uri", "client_id", "code_challenge_method", "prompt"] {
        assert_eq!(parameter(&plain, name), parameter(&crowded, name), "{name}");
    }
    assert_ne!(parameter(&crowded, "state").as_deref(), Some("x"));
    assert_eq!(plain.matches('=').count(), crowded.matches('=').count());
}

/// AR-03.
#[test]
fn the_pending_login_is_a_sealed_cookie_that_comes_back_from_the_datahub_and_ends_soon() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a"));
    let cookie = answer.header("set-cookie").expect("one cookie");
    let (pair, attributes) = cookie.split_once("; ").expect("attributes");
    assert!(pair.starts_with("__Host-Http-login="), "{pair}");
    assert_eq!(attributes, "HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=600");
    let location = answer.location();
    for name in ["state", "nonce"] {
        assert!(!pair.contains(&parameter(&location, name).expect(name)), "{name} can be read in the cookie");
    }
    for _ in 0..20 {
        browser.authorize(&gateway, "a");
    }
    assert!(browser.cookie_field().len() < 4_096, "pending logins pile up");
}

#[test]
fn a_datahub_is_found_by_id_or_alias_and_by_nothing_else() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("datahubs.a.aliases = [\"old-name\", \"tübingen\"]").start();
    let open = |query: &str| Browser::default().navigate(&gateway, &format!("{BASE}/auth/login{query}"));
    assert_eq!(open("?datahub=a").status, 302);
    assert_eq!(open("?datahub=old-name").status, 302);
    assert_eq!(open("?datahub=t%C3%BCbingen").status, 302);
    let path = Browser::default().fetch(&gateway, "GET", "/datahubs/old-name/api/v4/user");
    assert_eq!(path.code(), "unknown_datahub", "an alias is for the login only");
    for query in [
        "?datahub=b",
        "?datahub=",
        "?datahub=A",
        "?datahub=a%00",
        "?datahub=..%2F",
        &format!("?datahub={}", "a".repeat(5_000)),
    ] {
        let answer = open(query);
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_datahub"), "{query}");
        assert!(answer.headers("location").is_empty() && answer.headers("set-cookie").is_empty());
    }
    assert_eq!(open("").code(), "bad_request");
    assert_eq!(open("?datahub=a&datahub=a").code(), "bad_request");
}

/// AR-06.
#[test]
fn only_people_begin_a_login() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let target = format!("{BASE}/auth/login?datahub=a");
    for (case, fields) in [
        (
            "a link of another site",
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n",
        ),
        ("a frame", "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n"),
        ("a script", FETCH),
        (
            "a prefetch",
            "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nSec-Purpose: prefetch\r\n",
        ),
    ] {
        let answer = browser.send(&gateway, "GET", &target, fields, b"");
        assert_eq!((answer.status, answer.location().as_str()), (303, "/arcmanager/app/"), "{case}");
        assert!(answer.headers("set-cookie").is_empty(), "{case}");
    }
    assert_eq!(browser.navigate(&gateway, &target).status, 302, "a person");
    assert_eq!(browser.send(&gateway, "GET", &target, "", b"").status, 302, "an old browser");
    let posted = browser.send(&gateway, "POST", &target, FETCH, b"");
    assert_eq!(
        (posted.status, posted.code().as_str(), posted.header("allow").as_deref()),
        (405, "method_not_allowed", Some("GET"))
    );
}

#[test]
fn a_deep_link_survives_the_login_and_a_foreign_one_does_not() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for (return_to, lands) in [
        ("/arcmanager/app/?project=230", "/arcmanager/app/?project=230"),
        ("//evil.test", "/arcmanager/app/"),
        ("https://evil.test/", "/arcmanager/app/"),
        ("/\\evil.test", "/arcmanager/app/"),
        ("/%09/evil.test", "/arcmanager/app/"),
    ] {
        let browser = Browser::default();
        let encoded: String = url::form_urlencoded::byte_serialize(return_to.as_bytes()).collect();
        let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a&return_to={encoded}"));
        let callback = crate::browser::sign_in(&hub, &answer.location(), "user=testuser");
        assert_eq!(browser.open(&gateway, &callback).location(), lands, "{return_to}");
    }
}

#[test]
fn a_datahub_in_trouble_ends_its_own_logins_in_time_and_nobody_elses() {
    for (case, trouble) in [
        ("closed", Answer::CloseWithoutAnswer),
        ("broken", Answer::Status(500)),
        ("a page", Answer::Html(200)),
        ("leads away", Answer::Redirect("http://127.0.0.1:9/".into())),
        ("hangs", Answer::Hang),
    ] {
        let (bad, good) = (datahub_with(|behaviour| behaviour.discovery.answer = trouble), datahub());
        let gateway = Setup::new(&[("bad", &bad), ("good", &good)]).and("timeouts.back_channel = \"1s\"").start();
        let started = Instant::now();
        let answer = Browser::default().navigate(&gateway, &format!("{BASE}/auth/login?datahub=bad"));
        assert_eq!(
            (answer.status, answer.location().as_str()),
            (303, "/arcmanager/app/?login_error=unavailable"),
            "{case}"
        );
        assert!(started.elapsed() < Duration::from_secs(8), "{case}: {:?}", started.elapsed());
        gateway.wait_for_event("login_failed");
        Browser::default().log_in(&gateway, "good", &good, "testuser");

        bad.set(|behaviour| behaviour.discovery.answer = Answer::Normal);
        // A fetch that failed is not repeated for five seconds.
        std::thread::sleep(Duration::from_millis(5_100));
        Browser::default().log_in(&gateway, "bad", &bad, "testuser");
    }
}

#[test]
fn a_datahub_that_is_not_there_stops_neither_the_start_nor_the_others() {
    let (gone, good) = (datahub(), datahub());
    let setup = Setup::new(&[("gone", &gone), ("good", &good)]);
    drop(gone);
    let gateway = setup.start();
    let answer = Browser::default().navigate(&gateway, &format!("{BASE}/auth/login?datahub=gone"));
    assert_eq!(answer.location(), "/arcmanager/app/?login_error=unavailable");
    Browser::default().log_in(&gateway, "good", &good, "testuser");
}
