//! Who is logged in, and by which cookies.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use datahub::behaviour::Answer as Manner;
use serde_json::json;

use crate::browser::{Answer, Browser, Connection, FETCH, NAVIGATION};
use crate::gateway::{BASE, Gateway, Setup, datahub, datahub_with, new_key};

const SESSION: &str = "__Host-Http-session-a";
const SID: &str = "__Host-Http-sid-a";

#[test]
fn the_session_says_who_one_is_and_nothing_that_is_secret() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let nobody = browser.fetch(&gateway, "GET", "/auth/session");
    assert_eq!((nobody.status, nobody.json()["sessions"].clone()), (200, json!([])));

    browser.log_in(&gateway, "a", &hub, "joerg");
    let answer = browser.fetch(&gateway, "GET", "/auth/session");
    let status = answer.json();
    let session = &status["sessions"][0];
    assert_eq!(session["datahub"], "a");
    assert_eq!(session["user"]["username"], "joerg");
    assert_eq!(session["user"]["name"], "Jörg 100% Müller");
    assert!(session["user"]["id"].is_string());
    assert_eq!(session["scopes"], json!(["openid", "profile", "api"]));
    for time in [&session["expires_at"], &session["session_ends_at"], &status["now"]] {
        let text = time.as_str().expect("a text");
        assert!(text.len() == 20 && text.ends_with('Z'), "{text}");
    }
    let names: Vec<_> = session.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, ["datahub", "expires_at", "scopes", "session_ends_at", "user"]);
    assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
    assert_eq!(answer.header("vary").as_deref(), Some("Cookie"));
    for secret in hub.secrets() {
        assert!(!answer.text().contains(&secret) && !answer.head.contains(&secret));
    }
}

#[test]
fn two_sessions_at_two_datahubs_live_in_one_browser() {
    let (one, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("one", &one), ("other", &other)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "other", &other, "joerg");
    browser.log_in(&gateway, "one", &one, "testuser");
    let status = browser.fetch(&gateway, "GET", "/auth/session").json();
    let who: Vec<_> = status["sessions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| (&s["datahub"], &s["user"]["username"]))
        .collect();
    assert_eq!(who, [(&json!("one"), &json!("testuser")), (&json!("other"), &json!("joerg"))]);
    for (id, user) in [("one", "testuser"), ("other", "joerg")] {
        let me = browser.fetch(&gateway, "GET", &format!("/datahubs/{id}/api/v4/user"));
        assert_eq!((me.status, me.json()["username"].clone()), (200, json!(user)));
    }
    // ID-07: one subject at two issuers is two people.
    let browser = Browser::default();
    browser.log_in(&gateway, "one", &one, "testuser");
    browser.log_in(&gateway, "other", &other, "testuser");
    let status = browser.fetch(&gateway, "GET", "/auth/session").json();
    let [here, there] = [&status["sessions"][0], &status["sessions"][1]];
    assert_eq!(here["user"]["id"], there["user"]["id"]);
    assert_ne!(here["datahub"], there["datahub"]);
    // PQ-15: no DataHUB has seen the other's token.
    let bearer = |hub: &datahub::DataHub| {
        hub.requests().iter().filter_map(|request| request.header("authorization")).collect::<Vec<_>>()
    };
    for token in other.secrets() {
        assert!(!bearer(&one).iter().any(|value| value.contains(&token)));
    }
}

#[test]
fn two_processes_with_one_key_serve_one_browser_by_turns() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let (first, second) = (setup.start(), setup.start());
    let browser = Browser::default();
    // Begun at one process, ended at the other.
    let callback = browser.begin_login(&first, "a", &hub, "testuser");
    assert_eq!(browser.open(&second, &callback).location(), "/arcmanager/app/");
    for _ in 0..5 {
        assert_eq!(browser.fetch(&first, "GET", "/datahubs/a/api/v4/user").status, 200);
        assert_eq!(browser.fetch(&second, "GET", "/datahubs/a/api/v4/user").status, 200);
    }
    assert_eq!(browser.fetch(&first, "POST", "/auth/logout").status, 204);
    assert_eq!(browser.fetch(&second, "GET", "/datahubs/a/api/v4/user").code(), "not_logged_in");
}

/// SC-02, SC-03, CR-03, CR-04, CR-08, CR-09: one and the same answer to all of them.
#[test]
fn a_cookie_that_is_not_exactly_ours_is_no_session() {
    let (hub, other_hub) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &hub), ("b", &other_hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    browser.log_in(&gateway, "b", &other_hub, "testuser");
    let value = |name: &str| browser.cookie(name).expect(name);
    let (session, sid, logins) = (value(SESSION), value(SID), value("__Host-Http-login"));
    let good = format!("{SESSION}={session}; {SID}={sid}");
    assert_eq!(with_cookies(&gateway, &[&good]).status, 200);

    let stranger = Browser::default();
    stranger.log_in(&gateway, "a", &hub, "joerg");
    let mut cases: Vec<(String, Vec<String>)> = [
        ("no cookie", "x=y".to_owned()),
        ("no sid", format!("{SESSION}={session}")),
        ("no session", format!("{SID}={sid}")),
        ("another login's sid", format!("{SESSION}={session}; {SID}={}", stranger.cookie(SID).expect("a sid"))),
        (
            "another DataHUB's session",
            format!("{SESSION}={}; {SID}={}", value("__Host-Http-session-b"), value("__Host-Http-sid-b")),
        ),
        ("the logins of this browser", format!("{SESSION}={logins}; {SID}={sid}")),
        ("their seal", format!("{SESSION}={}; {SID}={sid}", logins.split_once("%3D").expect("two parts").1)),
        ("the sid in its place", format!("{SESSION}={sid}; {SID}={sid}")),
        ("each in the other's place", format!("{SESSION}={sid}; {SID}={session}")),
        ("an escaped name", format!("{}={session}; {SID}={sid}", SESSION.replace("__", "%5F%5F"))),
        ("a name in lower case", format!("{}={session}; {SID}={sid}", SESSION.to_lowercase())),
        ("a name inside a value", format!("x={SESSION}={session}; {SID}={sid}")),
        ("a name with a space", format!("{SESSION}%20={session}; {SID}={sid}")),
        ("padding", format!("{SESSION}={session}=; {SID}={sid}")),
        ("quotes", format!("{SESSION}=\"{session}\"; {SID}={sid}")),
        ("a byte more", format!("{SESSION}={session}A; {SID}={sid}")),
        ("a second session", format!("{good}; {SESSION}={session}")),
        ("junk before", format!("{SESSION}=junk; {good}")),
        ("junk behind", format!("{good}; {SESSION}=junk")),
        ("a second sid", format!("{good}; {SID}={sid}")),
    ]
    .map(|(case, cookies)| (case.to_owned(), vec![cookies]))
    .to_vec();
    cases.push(("junk in a field of its own".into(), vec![good.clone(), format!("{SESSION}=junk")]));
    let bytes = URL_SAFE_NO_PAD.decode(&session).expect("base64url");
    let mut altered = |case: String, bytes: &[u8]| {
        cases.push((case, vec![format!("{SESSION}={}; {SID}={sid}", URL_SAFE_NO_PAD.encode(bytes))]));
    };
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        altered(format!("bit {bit} flipped"), &flipped);
    }
    for version in (0..=255).filter(|version| *version != bytes[0]) {
        altered(format!("version {version}"), &[&[version], &bytes[1..]].concat());
    }
    altered("no key id".to_owned(), &[&bytes[..1], &bytes[5..]].concat());
    let mut swapped = bytes.clone();
    let tag = bytes.len() - 16;
    (0..16).for_each(|at| swapped.swap(5 + at, tag + at));
    altered("the tag where the nonce was".to_owned(), &swapped);
    altered("a key id of 10 KiB".to_owned(), &[&bytes[..1], &[7; 10_240], &bytes[5..]].concat());
    for length in 0..session.len() {
        cases.push((format!("cut at {length}"), vec![format!("{SESSION}={}; {SID}={sid}", &session[..length])]));
    }
    for length in 0..sid.len() {
        cases.push((format!("sid cut at {length}"), vec![format!("{SESSION}={session}; {SID}={}", &sid[..length])]));
    }
    cases.push(("the other alphabet".into(), vec![format!("{SESSION}=+/{}; {SID}={sid}", &session[2..])]));
    cases.push(("escaped".into(), vec![format!("{SESSION}={}; {SID}={sid}", escaped(&session))]));
    let last = session.bytes().last().expect("it is not empty");
    assert_ne!(session.len() % 4, 0, "the last letter has bits to spare");
    let spare = format!("{}{}", &session[..session.len() - 1], char::from(last + 1));
    cases.push(("a spare bit set".to_owned(), vec![format!("{SESSION}={spare}; {SID}={sid}")]));
    let expected = with_cookies(&gateway, &["x=y"]).without_ids();
    hub.clear();
    for (case, fields) in &cases {
        let answer = with_cookies(&gateway, &fields.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((answer.status, answer.code().as_str()), (401, "not_logged_in"), "{case}");
        assert_eq!(answer.without_ids(), expected, "{case}");
    }
    assert!(hub.requests().is_empty(), "nothing was forwarded");
    gateway.wait_for_event("duplicate_cookie");
    gateway.wait_for_event("unseal_failed");
}

/// CR-03, CR-06.
#[test]
fn a_cookie_is_worth_nothing_under_another_key_or_at_another_address() {
    let hub = datahub();
    let (key, other) = (new_key(), new_key());
    let setup = |keys: &[&str]| Setup::with_keys(&[("a", &hub)], keys);
    let gateway = setup(&[&key]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let call = |gateway: &Gateway| browser.fetch(gateway, "GET", "/datahubs/a/api/v4/user").status;

    assert_eq!(call(&setup(&[&key]).start()), 200);
    assert_eq!(call(&setup(&[&other, &key]).start()), 200, "a newer key stands before ours");
    assert_eq!(call(&setup(&[&other]).start()), 401);
    let elsewhere = setup(&[&key]).and("server.public_url = \"https://elsewhere.example\"").start();
    let target = format!("{BASE}/datahubs/a/api/v4/user");
    let fields = format!("Host: elsewhere.example\r\n{FETCH}");
    assert_eq!(browser.send(&elsewhere, "GET", &target, &fields, b"").code(), "not_logged_in");
}

/// PQ-15: no other DataHUB stands in for one that is gone.
#[test]
fn a_session_at_a_datahub_that_is_no_longer_served_reaches_nobody() {
    let (kept, gone, key) = (datahub(), datahub(), new_key());
    let before = Setup::with_keys(&[("a", &kept), ("b", &gone)], &[&key]).start();
    let browser = Browser::default();
    browser.log_in(&before, "b", &gone, "testuser");
    assert_eq!(browser.fetch(&before, "GET", "/datahubs/b/api/v4/user").status, 200);

    let after = Setup::with_keys(&[("a", &kept)], &[&key]).start();
    kept.clear();
    gone.clear();
    let cookie = |name: &str| browser.cookie(name).expect(name);
    let moved = browser.copy();
    moved.set_cookie(SESSION, &cookie("__Host-Http-session-b"));
    moved.set_cookie(SID, &cookie("__Host-Http-sid-b"));
    for (method, path, code) in [
        ("GET", "/datahubs/b/api/v4/user", "unknown_datahub"),
        ("POST", "/datahubs/b/api/v4/projects", "unknown_datahub"),
        ("POST", "/auth/refresh?datahub=b", "unknown_datahub"),
        ("POST", "/auth/logout?datahub=b", "unknown_datahub"),
        ("GET", "/datahubs/a/api/v4/user", "not_logged_in"),
        ("POST", "/auth/refresh", "not_logged_in"),
    ] {
        for browser in [&browser, &moved] {
            let answer =
                browser.send(&after, method, &format!("{BASE}{path}"), &format!("{FETCH}Content-Length: 0\r\n"), b"");
            assert_eq!(answer.code(), code, "{method} {path}");
        }
    }
    assert_eq!(browser.fetch(&after, "GET", "/auth/session").json()["sessions"], json!([]));
    assert!(kept.requests().is_empty() && gone.requests().is_empty());
    assert_eq!(browser.fetch(&before, "GET", "/datahubs/b/api/v4/user").status, 200, "where it is served, it goes on");
}

/// SC-01, SC-09: every cookie that any route sets, with all its attributes; what is not in the table sets none.
#[test]
fn these_are_the_cookies_of_every_answer() {
    const STRICT: &str = "HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=";
    const LAX: &str = "HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=";

    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let gateway = Setup::new(&[("a", &hub)]).start();
    let [first, second, other] = [(); 3].map(|()| Browser::default());
    let login = format!("{BASE}/auth/login?datahub=a");
    // Each cookie by its name and attributes, and how many seconds it has to live: none if it is removed.
    let audit = |case: &str, answer: &Answer, status: u16, expected: &[(&str, &str, u64)]| {
        assert_eq!(answer.status, status, "{case}: {} {}", answer.head, answer.text());
        let mut cookies = answer.headers("set-cookie");
        assert_eq!(cookies.len(), expected.len(), "{case}: {cookies:?}");
        cookies.sort();
        for (cookie, (name, attributes, lifetime)) in cookies.iter().zip(expected) {
            let (value, rest) = cookie
                .strip_prefix(&format!("{name}="))
                .and_then(|rest| rest.split_once("; "))
                .unwrap_or_else(|| panic!("{case}: {cookie}"));
            // A removal may say it in the older way besides.
            let rest = rest.split("; Expires=").next().expect("a first part");
            let seconds = rest.strip_prefix(attributes).and_then(|seconds| seconds.parse::<u64>().ok());
            let is_right = seconds.is_some_and(|it| it <= *lifetime && it + 100 >= *lifetime);
            assert!(is_right && value.is_empty() == (*lifetime == 0), "{case}: {cookie}");
        }
    };
    let [pending, no_pending] = [4_500, 0].map(|lifetime| ("__Host-Http-login", LAX, lifetime));
    let [session, no_session] = [86_400, 0].map(|lifetime| ("__Host-Http-session-a", STRICT, lifetime));
    let [sid, no_sid] = [604_800, 0].map(|lifetime| ("__Host-Http-sid-a", STRICT, lifetime));

    for browser in [&first, &second] {
        let answer = browser.navigate(&gateway, &login);
        audit("a login begins", &answer, 302, &[pending]);
        let callback = crate::browser::sign_in(&hub, &answer.location(), "user=testuser");
        let answer = browser.open(&gateway, &callback);
        audit("a login ends", &answer, 303, &[pending, session, sid]);
    }
    let denied = crate::browser::sign_in(&hub, &other.authorize(&gateway, "a"), "deny=true");
    audit("a login is denied", &other.open(&gateway, &denied), 303, &[no_pending]);
    let note = ("gateway-login-note", "HttpOnly; SameSite=Strict; Path=/; Max-Age=", 300);
    audit("no cookie comes back", &other.open(&gateway, &denied), 303, &[note]);
    for (case, method, path, fields, status) in [
        ("the list", "GET", "/datahubs", "", 200),
        ("who is there", "GET", "/auth/session", FETCH, 200),
        ("a call", "GET", "/datahubs/a/api/v4/user", FETCH, 200),
        ("a call that fails", "GET", "/datahubs/a/api/v4/nothing", FETCH, 404),
        ("a call that is refused", "GET", "/datahubs/a/api/v4/user/keys", FETCH, 403),
        ("another site", "POST", "/auth/logout", "Sec-Fetch-Site: cross-site\r\n", 403),
        ("another DataHUB", "GET", "/auth/login?datahub=b", NAVIGATION, 404),
        ("a page's script", "GET", "/auth/login?datahub=a", FETCH, 303),
        ("another method", "GET", "/auth/logout", FETCH, 405),
        ("a refresh of what is new", "POST", "/auth/refresh", FETCH, 200),
        ("nothing", "GET", "/nothing", FETCH, 404),
    ] {
        let fields = if method == "POST" { format!("{fields}Content-Length: 0\r\n") } else { fields.to_owned() };
        audit(case, &first.send(&gateway, method, &format!("{BASE}{path}"), &fields, b""), status, &[]);
    }
    std::thread::sleep(Duration::from_millis(3_200));
    let again = first.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    audit("a call is sent again", &again, 307, &[session]);
    let path = format!("/datahubs/a/api/v4/user{}", again.location());
    audit("and passes", &first.fetch(&gateway, "GET", &path), 200, &[]);
    audit("a refresh", &second.fetch(&gateway, "POST", "/auth/refresh"), 200, &[session]);
    audit("a logout", &first.fetch(&gateway, "POST", "/auth/logout"), 204, &[no_pending, no_session, no_sid]);
    audit("a second one", &first.fetch(&gateway, "POST", "/auth/logout"), 204, &[]);
    audit("nobody", &first.fetch(&gateway, "GET", "/datahubs/a/api/v4/user"), 401, &[]);
}

/// SC-05, SC-06.
#[test]
fn a_session_ends_when_it_said_it_would_whatever_the_browser_kept() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("session.max_age = \"2s\"").start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "session_expired");
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/session").json()["sessions"], json!([]));
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/refresh").code(), "session_expired");
    browser.log_in(&gateway, "a", &hub, "testuser");
}

/// SC-07: whatever the bytes, the answer is the one to no cookie at all; a hundred thousand of them in `make long`.
#[test]
fn no_bytes_in_a_cookie_do_anything_but_to_be_no_session() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let good = browser.cookie_field();
    let good = good.trim_end().trim_start_matches("Cookie: ").as_bytes().to_vec();
    let count = if std::env::var_os("LONG").is_some() { 100_000 } else { 5_000 };
    let mut dice = Dice(0x2026_1124);
    let mut connection = Connection::open(&gateway.address);
    let mut ask = |cookie: &[u8]| {
        let head = format!("GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}Cookie: ");
        connection.write(&[head.as_bytes(), cookie, b"\r\n\r\n"].concat());
        connection.answer(true)
    };
    assert_eq!(ask(&good).status, 200, "the cookie as it is");
    let expected = ask(b"").without_ids();
    assert!(expected.contains("not_logged_in"));
    for round in 0..count {
        let cookie = match dice.roll(6) {
            0 => (0..dice.roll(4_096)).map(|_| dice.letter()).collect(),
            1 => {
                let mut altered = good.clone();
                for _ in 0..=dice.roll(8) {
                    let at = dice.roll(altered.len());
                    altered[at] = dice.letter();
                }
                altered
            }
            2 => good[..dice.roll(good.len())].to_vec(),
            3 => [b";;;", b"=x;", &good[dice.roll(good.len())..], b"; =", &good[..dice.roll(good.len())]].concat(),
            4 => format!("{SESSION}={}; {SID}=", "A".repeat(dice.roll(4_096))).into_bytes(),
            _ => (0..200).flat_map(|at| format!("{SESSION}-chunks{at}=99999999; ").into_bytes()).collect(),
        };
        let answer = ask(&cookie);
        // Some letters of the other parts may be changed and the session still be ours.
        if answer.status == 200 {
            let is_whole = |name: &str| {
                let pair = format!("{name}={}", browser.cookie(name).expect("logged in"));
                cookie.split(|byte| *byte == b';').filter(|other| other.trim_ascii() == pair.as_bytes()).count() == 1
            };
            assert!(is_whole(SESSION) && is_whole(SID), "round {round}: {}", String::from_utf8_lossy(&cookie));
        } else {
            assert_eq!(answer.without_ids(), expected, "round {round}: {}", String::from_utf8_lossy(&cookie));
        }
    }
}

/// SC-08: on login, callback, session, refresh, logout, and calls that end well, not modified, refused and in trouble.
#[test]
fn every_answer_that_has_to_do_with_cookies_stays_out_of_caches() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let nobody = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    let login = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a"));
    let callback = crate::browser::sign_in(&hub, &login.location(), "user=testuser");
    let callback = browser.open(&gateway, &callback);
    let session = browser.fetch(&gateway, "GET", "/auth/session");
    let refresh = browser.fetch(&gateway, "POST", "/auth/refresh");
    let call = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    let raw = "/datahubs/a/api/v4/projects/230/repository/files/README.md/raw?ref=main";
    let etag = browser.fetch(&gateway, "GET", raw).header("etag").expect("an ETag");
    let condition = format!("{FETCH}If-None-Match: {etag}\r\n");
    let same = browser.send(&gateway, "GET", &format!("{BASE}{raw}"), &condition, b"");
    let refused = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user/personal_access_tokens");
    hub.set(|behaviour| behaviour.api.answer = Manner::Status(503));
    let trouble = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    hub.set(|behaviour| behaviour.api.answer = Manner::Normal);
    let logout = browser.fetch(&gateway, "POST", "/auth/logout");
    let answers = [nobody, login, callback, session, refresh, call, same, refused, trouble, logout];
    for (answer, status) in answers.iter().zip([401, 302, 303, 200, 200, 200, 304, 403, 503, 204]) {
        assert_eq!(answer.status, status, "{}", answer.head);
        assert!(answer.header("cache-control").is_some_and(|value| value.contains("no-store")), "{}", answer.head);
        let vary = answer.header("vary").unwrap_or_default();
        assert!(vary.split(", ").any(|name| name == "Cookie"), "{}", answer.head);
    }
}

/// CR-10: where a person wants to go does not get into the session, so its cookie's length tells and leaks nothing.
#[test]
fn what_a_request_chooses_is_not_sealed_together_with_tokens() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let mut lengths = std::collections::BTreeSet::new();
    for length in 0..40 {
        let there = "a".repeat(length * 20);
        // One login in a thousand falls on a whole second, which takes two bytes less. Of two it is hardly ever both.
        let sealed = [(); 2].map(|()| {
            let browser = Browser::default();
            let login = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a&return_to=/{there}"));
            let callback = crate::browser::sign_in(&hub, &login.location(), "user=testuser");
            assert_eq!(browser.open(&gateway, &callback).location(), format!("/{there}"));
            browser.cookie(SESSION).expect("logged in").len()
        });
        lengths.insert(sealed.into_iter().max());
    }
    assert_eq!(lengths.len(), 1, "{lengths:?}");
}

/// Every letter as `%XX`.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Numbers that look random and are the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).expect("64 bits") % sides
    }

    /// A byte that a header may hold (RFC 9110 section 5.5).
    fn letter(&mut self) -> u8 {
        loop {
            let byte = self.roll(256).to_le_bytes()[0];
            if byte >= 0x20 && byte != 0x7f {
                return byte;
            }
        }
    }
}

/// SC-05: a session that nobody uses ends, and one that is used goes on.
#[test]
fn a_session_that_is_not_used_ends() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(2));
    let gateway = Setup::new(&[("a", &hub)]).and("session.idle_timeout = \"1s\"").start();
    let [busy, idle] = [Browser::default(), Browser::default()];
    busy.log_in(&gateway, "a", &hub, "testuser");
    idle.log_in(&gateway, "a", &hub, "testuser");
    // Twice the life of a token, which is more than the configured second.
    for _ in 0..14 {
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(busy.fetch_following(&gateway, "GET", "/datahubs/a/api/v4/user", b"").status, 200);
    }
    assert_eq!(idle.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").code(), "session_expired");
}

/// The test's own Cookie fields, as they are.
fn with_cookies(gateway: &Gateway, fields: &[&str]) -> Answer {
    let cookies: String = fields.iter().map(|field| format!("Cookie: {field}\r\n")).collect();
    Browser::default().send(
        gateway,
        "GET",
        &format!("{BASE}/datahubs/a/api/v4/user"),
        &format!("{FETCH}{cookies}"),
        b"",
    )
}
