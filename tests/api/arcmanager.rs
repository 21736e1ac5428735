//! The ARCmanager's app of today: what it calls, what it reads, and nothing of that for any other app.

use std::io::Write;
use std::time::{Duration, SystemTime};

use datahub::DataHub;

use crate::browser::{Answer, Browser, FETCH, NAVIGATION, sign_in};
use crate::far_end;
use crate::gateway::{BASE, Gateway, Setup, datahub, datahub_with, wait_until};

const STRICT: &str = "SameSite=Strict; Secure; Path=/";

fn set_up(hub: &DataHub) -> Gateway {
    Setup::new(&[("a", hub)]).and("app.arcmanager = true").start()
}

/// The cookies of an answer that scripts may read: name, value and attributes, in the order of their names.
fn readable(answer: &Answer) -> Vec<(String, String, String)> {
    let mut cookies: Vec<_> = answer
        .headers("set-cookie")
        .into_iter()
        .filter(|cookie| !cookie.contains("HttpOnly"))
        .map(|cookie| {
            let (pair, attributes) = cookie.split_once("; ").expect("attributes");
            let (name, value) = pair.split_once('=').expect("a pair");
            (name.to_owned(), value.to_owned(), attributes.to_owned())
        })
        .collect();
    cookies.sort();
    cookies
}

fn names(answer: &Answer) -> Vec<String> {
    let cookies = readable(answer).into_iter();
    cookies
        .map(|(name, _, attributes)| if attributes.ends_with("Max-Age=0") { format!("-{name}") } else { name })
        .collect()
}

/// When the countdown of a browser ends, in seconds since 1970: what the app makes of `timer`.
fn countdown_end(browser: &Browser) -> f64 {
    browser.cookie("timer").expect("a timer").parse::<f64>().expect("a number") + 7_200.0
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

const SESSION: [&str; 4] = ["logged_in", "-pat", "timer", "username"];
const NO_SESSION: [&str; 4] = ["-logged_in", "-pat", "-timer", "-username"];

fn sorted(names: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    names.sort_by_key(|name| name.trim_start_matches('-').to_owned());
    names
}

#[test]
fn the_app_refreshes_and_logs_out_by_get() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = set_up(&hub);
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    for (path, text) in [("/auth/refresh", "Session refresh was successful!"), ("/auth/logout", "logout successful")] {
        std::thread::sleep(Duration::from_millis(2_100));
        let head = browser.fetch(&gateway, "HEAD", path);
        assert_eq!((head.status, head.header("allow").as_deref()), (405, Some("GET, POST")), "{path}");
        for (fields, status, case) in [
            ("X-CSRF: 1\r\n", 403, "no page's script can say so, but a link brings no field at all"),
            ("", 403, "a link in an old browser"),
            ("Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n", 403, "another site"),
            ("Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n", 403, "an image"),
            (NAVIGATION, 403, "a typed address"),
            (&format!("{FETCH}Sec-Purpose: prefetch\r\n"), 503, "ahead of time"),
        ] {
            let answer = browser.send(&gateway, "GET", &format!("{BASE}{path}"), fields, b"");
            assert_eq!((answer.status, answer.headers("set-cookie").len()), (status, 0), "{path}: {case}");
            assert!(answer.json()["detail"].is_string(), "{path}: {case}");
        }
        let answer = browser.fetch(&gateway, "GET", path);
        assert_eq!((answer.status, answer.text().as_str()), (200, text));
        assert_eq!(answer.header("content-type").as_deref(), Some("text/plain; charset=utf-8"));
    }
    assert_eq!((hub.counts().refreshes, hub.counts().revocations), (1, 1));
    assert_eq!(browser.cookie_field(), "");
    // Without a session: an error that the app can show; a logout is as good as done.
    let answer = browser.fetch(&gateway, "GET", "/auth/refresh");
    assert_eq!((answer.status, answer.code().as_str()), (401, "not_logged_in"));
    assert!(answer.json()["detail"].is_string());
    let answer = browser.fetch(&gateway, "GET", "/auth/logout?datahub=a");
    assert_eq!((answer.status, answer.text().as_str()), (200, "logout successful"));
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/logout?datahub=b").code(), "unknown_datahub");
}

/// The twin is `logout::logout_and_refresh_are_posts`.
#[test]
fn the_post_forms_stay_as_they_are() {
    let hub = datahub();
    let gateway = set_up(&hub);
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let answer = browser.fetch(&gateway, "POST", "/auth/refresh");
    assert_eq!((answer.status, answer.json()["sessions"][0]["datahub"].as_str()), (200, Some("a")));
    assert_eq!(names(&answer), sorted(&SESSION));
    let csrf =
        browser.send(&gateway, "POST", &format!("{BASE}/auth/refresh"), "X-CSRF: 1\r\nContent-Length: 0\r\n", b"");
    assert_eq!(csrf.status, 200);
    let answer = browser.fetch(&gateway, "POST", "/auth/logout");
    assert_eq!((answer.status, answer.text().as_str()), (204, ""));
    assert_eq!(names(&answer), sorted(&NO_SESSION));
}

/// SC-01: what scripts may read, on every answer that writes a session or removes one, and on no other.
#[test]
fn these_are_the_cookies_that_the_app_reads() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = set_up(&hub);
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    let before = now();
    let answer = browser.open(&gateway, &callback);
    browser.keep_jar_secret(&gateway);
    assert_eq!((answer.status, answer.location()), (303, "/arcmanager/app/".to_owned()));
    let expected: Vec<_> = [
        ("error", "", format!("{STRICT}; Max-Age=0")),
        ("logged_in", "true", STRICT.to_owned()),
        ("pat", "", format!("{STRICT}; Max-Age=0")),
        ("timer", &browser.cookie("timer").expect("a timer"), STRICT.to_owned()),
        ("username", "Test", STRICT.to_owned()),
    ]
    .map(|(name, value, attributes)| (name.to_owned(), value.to_owned(), attributes))
    .into();
    assert_eq!(readable(&answer), expected);
    let first = countdown_end(&browser);
    assert!((first - before - 4.0).abs() < 2.0, "{first} {before}");
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/session").json()["sessions"][0]["user"]["name"], "Test");

    for path in ["/datahubs/a/api/v4/user", "/datahubs/a/api/v4/nothing", "/auth/session", "/datahubs", "/nothing"] {
        assert!(browser.fetch(&gateway, "GET", path).headers("set-cookie").is_empty(), "{path}");
    }
    // A refresh in the background.
    std::thread::sleep(Duration::from_millis(3_200));
    let again = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    assert_eq!((again.status, again.headers("set-cookie").len()), (307, 5));
    assert_eq!(names(&again), sorted(&SESSION));
    let second = countdown_end(&browser);
    assert!(second - first >= 3.0 && (second - now() - 4.0).abs() < 2.0, "{first} {second}");
    let path = format!("/datahubs/a/api/v4/user{}", again.location());
    let passed = browser.fetch(&gateway, "GET", &path);
    assert_eq!((passed.status, passed.headers("set-cookie").len()), (200, 0));
    assert!(hub.requests().iter().all(|request| request.header("cookie").is_none()), "none goes up");
    // The button.
    std::thread::sleep(Duration::from_millis(2_100));
    let answer = browser.fetch(&gateway, "GET", "/auth/refresh");
    assert_eq!((answer.status, names(&answer)), (200, sorted(&SESSION)));
    assert!(countdown_end(&browser) > second);
    let answer = browser.fetch(&gateway, "GET", "/auth/logout");
    assert_eq!(names(&answer), sorted(&NO_SESSION));
    for (name, value, attributes) in readable(&answer) {
        assert_eq!((value.as_str(), attributes), ("", format!("{STRICT}; Max-Age=0")), "{name}");
    }
    assert_eq!(browser.cookie_field(), "");
}

#[test]
fn no_other_app_gets_them() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let denied = sign_in(&hub, &browser.authorize(&gateway, "a"), "deny=true");
    let mut answers = vec![browser.open(&gateway, &denied)];
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    answers.push(browser.open(&gateway, &callback));
    browser.keep_jar_secret(&gateway);
    std::thread::sleep(Duration::from_millis(3_200));
    answers.push(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user"));
    answers.push(browser.fetch(&gateway, "POST", "/auth/refresh"));
    answers.push(browser.fetch(&gateway, "POST", "/auth/logout"));
    for answer in &answers {
        assert_eq!(readable(answer), [], "{}", answer.head);
    }
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [303, 303, 307, 200, 204]);
}

#[test]
fn of_several_sessions_they_describe_the_one_that_began_last() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &one), ("b", &other)]).and("app.arcmanager = true").start();
    let browser = Browser::default();
    let who = || browser.cookie("username");
    browser.log_in(&gateway, "b", &other, "joerg");
    let joerg = who().expect("a name");
    assert!(joerg.starts_with("J%C3%B6rg"), "{joerg}");
    std::thread::sleep(Duration::from_millis(1_100));
    browser.log_in(&gateway, "a", &one, "testuser");
    assert_eq!(who().as_deref(), Some("Test"));
    // A refresh of the older one changes nothing, nor does one of both.
    for path in ["/auth/refresh?datahub=b", "/auth/refresh"] {
        assert_eq!(browser.fetch(&gateway, "GET", path).status, 200);
        assert_eq!(who().as_deref(), Some("Test"), "{path}");
    }
    let answer = browser.fetch(&gateway, "GET", "/auth/logout?datahub=a");
    assert_eq!((names(&answer), who()), (sorted(&SESSION), Some(joerg)));
    let answer = browser.fetch(&gateway, "GET", "/auth/logout");
    assert_eq!((names(&answer), browser.cookie_field().as_str()), (sorted(&NO_SESSION), ""));
}

/// A session may end without a logout; then the logout button still clears what the app goes by.
#[test]
fn a_logout_without_a_session_removes_them() {
    let hub = datahub();
    let gateway = set_up(&hub);
    let browser = Browser::default();
    browser.set_cookie("logged_in", "true");
    assert_eq!(names(&browser.fetch(&gateway, "GET", "/auth/logout")), sorted(&NO_SESSION));
    assert_eq!(browser.cookie_field(), "");
}

/// The app reads no query: it alerts what follows `error=`, and cannot remove the cookie.
#[test]
fn a_login_that_fails_is_told_by_a_cookie_for_less_than_a_minute() {
    let hub = datahub();
    let gateway = set_up(&hub);
    let browser = Browser::default();
    let denied = sign_in(&hub, &browser.authorize(&gateway, "a"), "deny=true");
    let mut failures =
        vec![("denied", browser.open(&gateway, &denied)), ("cookies_blocked", browser.open(&gateway, &denied))];
    failures.push((
        "failed",
        browser.open(
            &gateway,
            &format!("{BASE}/auth/callback?datahub=a&error=%3Cb%3Eevil;x&error_description=%0D%0Aevil"),
        ),
    ));
    let gone = datahub();
    let without = Setup::new(&[("a", &gone)]).and("app.arcmanager = true").start();
    drop(gone);
    failures.push(("unavailable", browser.navigate(&without, &format!("{BASE}/auth/login?datahub=a"))));
    for (word, answer) in failures {
        assert_eq!((answer.status, answer.location()), (303, format!("/arcmanager/app/?login_error={word}")));
        let cookies = readable(&answer);
        let cookies: Vec<_> = cookies.iter().filter(|(name, ..)| name == "error").collect();
        let [(_, text, attributes)] = cookies.as_slice() else { panic!("{word}: {}", answer.head) };
        let seconds = attributes.strip_prefix(&format!("{STRICT}; Max-Age=")).expect("the attributes");
        assert!((1..=60).contains(&seconds.parse::<u32>().expect("seconds")), "{word}");
        assert!(text.len() > 10 && text.len() < 100 && !text.contains("evil"), "{word}: {text}");
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && !b"\";,\\".contains(&byte)), "{word}: {text}");
    }
    // It comes once: what works removes it.
    assert!(browser.cookie("error").is_some());
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.cookie("error"), None);
    // What leads nowhere is an error that the browser shows, and no cookie is about that.
    let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=x"));
    assert_eq!(
        (answer.status, answer.code().as_str(), answer.headers("set-cookie").len()),
        (404, "unknown_datahub", 0)
    );
}

/// The app concatenates what it has, umlauts and all; browsers escape them.
#[test]
fn a_datahub_has_the_name_that_the_app_calls_it() {
    let hub = datahub();
    let setup =
        Setup::new(&[("tuebingen", &hub)]).and("app.arcmanager = true\ndatahubs.tuebingen.aliases = [\"tübingen\"]");
    let gateway = setup.start();
    let browser = Browser::default();
    let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=t%C3%BCbingen"));
    assert_eq!(answer.status, 302, "{}", answer.head);
    let callback = sign_in(&hub, &answer.location(), "user=testuser");
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/");
    browser.keep_jar_secret(&gateway);
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/refresh?datahub=t%C3%BCbingen").status, 200);
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/logout?datahub=t%C3%BCbingen").text(), "logout successful");
}

/// The app shows `detail` of whatever fails, by `slice`.
#[test]
fn every_error_is_json_with_a_text() {
    let hub = datahub();
    let gateway = set_up(&hub);
    let browser = Browser::default();
    for (method, path, status) in [
        ("GET", "/auth/login", 400),
        ("GET", "/auth/login?datahub=x", 404),
        ("GET", "/auth/refresh", 401),
        ("PUT", "/auth/refresh", 405),
        ("GET", "/auth/logout?datahub=x", 404),
        ("GET", "/projects/getBanner", 404),
        ("GET", "/datahubs/a/api/v4/user", 401),
        ("GET", "/datahubs/a/api/v4/user%00", 401),
        ("BREW", "/auth/refresh", 501),
    ] {
        let answer = browser.fetch(&gateway, method, path);
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("content-type").as_deref(), Some("application/problem+json"), "{method} {path}");
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{method} {path}");
    }
}

/// The file that is there for it.
#[test]
fn its_configuration_has_all_that_it_needs() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and(include_str!("../../config/arcmanager.toml")).start();
    let browser = Browser::default();
    let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/index.html");
    browser.keep_jar_secret(&gateway);
    gateway.keep_secret(hub.secrets());
    assert_eq!(browser.cookie("logged_in").as_deref(), Some("true"));
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/logout").text(), "logout successful");
    wait_until(|| hub.counts().revocations == 1);
}

/// The app takes a 504 for an upload that goes on in the background.
#[test]
fn a_504_about_an_upload_comes_only_once_the_whole_body_went_up() {
    let hub = datahub();
    let far = far_end::before(hub.address(), |reader, head| {
        if head.contains("early") {
            let _ = reader.get_mut().write_all(b"HTTP/1.1 504 X\r\nContent-Length: 0\r\n\r\n");
        }
        std::thread::sleep(Duration::from_secs(2));
    });
    let lines = format!("datahubs.a.connect = \"{far}\"\ntimeouts.idle = \"500ms\"\ntimeouts.first_byte = \"500ms\"");
    let gateway = Setup::new(&[("a", &hub)]).and(&lines).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let large = vec![0; 24 << 20];
    for (target, body, status, code) in [
        ("silent", &b"body"[..], 504, "datahub_timeout"),
        ("deaf", &large, 502, "datahub_unreachable"),
        ("early", &large, 502, "datahub_invalid_response"),
    ] {
        let path = format!("/datahubs/a/api/v4/own/{target}");
        let answer = browser.fetch_with(&gateway, "PUT", &path, "application/octet-stream", body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{target}");
    }
}
