//! The way to a DataHUB.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use datahub::behaviour::Answer;
use sha2::{Digest, Sha256};

use crate::browser::{self, Browser, Connection, FETCH, NAVIGATION, parameter};
use crate::gateway::{BASE, Gateway, PUBLIC_URL, Setup, datahub, datahub_with, wait_until};

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

/// AR-01: what the token endpoint is told belongs to the challenge of the same login.
#[test]
fn the_verifier_is_that_of_the_challenge() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    for _ in 0..2 {
        let browser = Browser::default();
        let authorize = browser.authorize(&gateway, "a");
        hub.clear();
        browser.open(&gateway, &browser::sign_in(&hub, &authorize, "user=testuser"));
        let requests = hub.requests();
        let exchange = requests.iter().find(|request| request.target() == "/oauth/token").expect("an exchange");
        let body = String::from_utf8_lossy(&exchange.body).into_owned();
        let verifier = parameter(&format!("?{body}"), "code_verifier").expect("a verifier");
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&verifier));
        assert_eq!(parameter(&authorize, "code_challenge"), Some(challenge));
        assert!(verifier.len() >= 43, "256 bits at least");
    }
}

/// AR-02: a thousand logins.
#[test]
fn no_state_and_no_nonce_comes_twice_or_says_anything() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let mut seen = HashSet::new();
    for _ in 0..1_000 {
        let target = format!("{BASE}/auth/login?datahub=a&return_to=/arcmanager/app/deep");
        let location = Browser::default().navigate(&gateway, &target).location();
        for name in ["state", "nonce"] {
            let value = parameter(&location, name).expect(name);
            let bytes = URL_SAFE_NO_PAD.decode(&value).expect("base64url");
            assert!(bytes.len() >= 16, "{name} has {} bits", bytes.len() * 8);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(!text.contains("arcmanager") && !text.contains("datahub"), "{text:?}");
            assert!(seen.insert(value), "{name} came twice");
        }
    }
}

/// AR-04.
#[test]
fn the_redirect_uri_is_a_constant() {
    let hub = datahub();
    let redirect_uri = "https://elsewhere.example.test/auth/callback?datahub=b";
    let gateway = Setup::new(&[("a", &hub), ("b", &hub)])
        .and(&format!("datahubs.b.redirect_uri = {redirect_uri:?}"))
        .and("server.trusted_proxies = [\"127.0.0.1\"]")
        .start();
    let login = |id: &str, fields: &str| {
        let target = format!("{BASE}/auth/login?datahub={id}");
        Browser::default().send(&gateway, "GET", &target, &format!("{NAVIGATION}{fields}"), b"").location()
    };
    for fields in [
        "",
        "X-Forwarded-Host: evil.test\r\n",
        "X-Forwarded-Proto: https\r\nX-Forwarded-Port: 444\r\n",
        "Forwarded: host=evil.test;proto=http\r\n",
        "X-Forwarded-Prefix: /evil\r\nX-Original-URL: /evil\r\n",
    ] {
        let own = format!("http://localhost:8000{BASE}/auth/callback?datahub=a");
        assert_eq!(parameter(&login("a", fields), "redirect_uri"), Some(own), "{fields}");
        assert_eq!(parameter(&login("b", fields), "redirect_uri").as_deref(), Some(redirect_uri), "{fields}");
    }
    let target = format!("{BASE}/auth/login?datahub=a");
    for head in [
        format!("GET {target} HTTP/1.1\r\nHost: evil.test\r\n"),
        format!("GET http://evil.test{target} HTTP/1.1\r\nHost: localhost:8000\r\n"),
    ] {
        let mut connection = Connection::open(&gateway.address);
        connection.write(format!("{head}{NAVIGATION}\r\n").as_bytes());
        let answer = connection.answer(true);
        assert!(matches!(answer.code().as_str(), "wrong_host" | "bad_request_target"), "{}", answer.head);
        assert!(answer.headers("location").is_empty() && !answer.text().contains("evil.test"), "{}", answer.head);
    }
}

/// AR-05.
#[test]
fn nothing_of_the_request_enters_the_authorisation() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let plain = Browser::default().authorize(&gateway, "a");
    let extra =
        "scope=api+sudo&redirect_uri=https://evil.test&client_id=y&code_challenge_method=plain&state=x&max_age=0";
    let crowded = Browser::default().navigate(&gateway, &format!("{BASE}/auth/login?datahub=a&{extra}")).location();
    for name in ["scope", "redirect_uri", "client_id", "code_challenge_method", "prompt", "max_age"] {
        assert_eq!(parameter(&plain, name), parameter(&crowded, name), "{name}");
    }
    assert_ne!(parameter(&crowded, "state").as_deref(), Some("x"));
    assert_eq!(plain.matches('=').count(), crowded.matches('=').count());
}

/// AR-05: but one word of three, so that a person may choose another account (OpenID Connect Core section 3.1.2.1).
#[test]
fn a_prompt_is_passed_on_if_it_is_one_that_people_answer() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let open = |query: &str| Browser::default().navigate(&gateway, &format!("{BASE}/auth/login?datahub=a{query}"));
    let plain = open("").location();
    assert_eq!(parameter(&plain, "prompt"), None);
    for word in ["login", "select_account", "consent"] {
        let location = open(&format!("&prompt={word}")).location();
        assert_eq!(parameter(&location, "prompt").as_deref(), Some(word));
        assert_eq!(location.matches("prompt=").count(), 1, "{location}");
        assert_eq!(location.matches('=').count(), plain.matches('=').count() + 1, "nothing else is new: {location}");
    }
    for query in [
        "&prompt=none",
        "&prompt=",
        "&prompt",
        "&prompt=LOGIN",
        "&prompt=create",
        "&prompt=login%20consent",
        "&prompt=login+none",
        "&prompt=login%00",
        "&prompt=login&prompt=login",
        "&prompt=login&prompt=none",
    ] {
        let answer = open(query);
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{query}");
        assert!(answer.headers("location").is_empty() && answer.headers("set-cookie").is_empty(), "{query}");
    }
    let browser = Browser::default();
    let location = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a&prompt=login")).location();
    let callback = browser::sign_in(&hub, &location, "user=testuser");
    assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/");
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
    assert_eq!(attributes, "HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=4500", "15m, and 1h more");
    let location = answer.location();
    for name in ["state", "nonce"] {
        assert!(!pair.contains(&parameter(&location, name).expect(name)), "{name} can be read in the cookie");
    }
    assert_eq!(answer.headers("set-cookie").len(), 1);
    // However many begin in one second, the last of them can always be finished.
    for _ in 0..5 {
        for _ in 0..20 {
            browser.authorize(&gateway, "a");
        }
        browser.log_in(&gateway, "a", &hub, "testuser");
    }
}

/// AR-03: neither what proves the login nor a token can be read in it, whoever looks at its bytes.
#[test]
fn the_pending_login_can_be_read_by_nobody() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    let begin = || {
        let target = format!("{BASE}/auth/login?datahub=a&return_to=/arcmanager/app/deep");
        let location = browser.navigate(&gateway, &target).location();
        let callback = browser::sign_in(&hub, &location, "user=testuser");
        (browser.cookie("__Host-Http-login").expect("a pending login"), location, callback)
    };
    // Before anybody is logged in; while somebody is, whose session the login takes the place of; and when it has ended.
    let (first, mut location, callback) = begin();
    browser.open(&gateway, &callback);
    let (second, another, callback) = begin();
    location.push_str(&another);
    browser.open(&gateway, &callback);
    browser.keep_jar_secret(&gateway);
    let third = browser.cookie("__Host-Http-login").expect("a note");
    let secrets = hub.secrets();
    assert!(secrets.iter().any(|secret| location.contains(secret.as_str())), "state and nonce are among them");
    assert!(hub.live_tokens().iter().all(|token| secrets.contains(&token.access_token)), "and the tokens");
    for (case, cookie) in [("before", first), ("between", second), ("behind", third)] {
        // A signature that says nothing, and the seal.
        let (_, sealed) = cookie.split_once("%3D").expect("two parts");
        let bytes = URL_SAFE_NO_PAD.decode(sealed).unwrap_or_else(|error| panic!("{case}: {error}: {cookie}"));
        let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
        for secret in &secrets {
            let packed = (0..secret.len() / 2).map(|at| u8::from_str_radix(secret.get(2 * at..2 * at + 2)?, 16).ok());
            let packed = packed.collect::<Option<Vec<u8>>>().filter(|packed| packed.len() >= 8);
            let decoded = URL_SAFE_NO_PAD.decode(secret).ok().filter(|decoded| decoded.len() >= 8);
            assert!(!cookie.contains(secret.as_str()) && !has(secret.as_bytes()), "{case}: as it is");
            assert!(!packed.is_some_and(|packed| has(&packed)), "{case}: packed");
            assert!(!decoded.is_some_and(|decoded| has(&decoded)), "{case}: decoded");
        }
        for word in ["arcmanager", "deep", "datahub", "{\""] {
            assert!(!has(word.as_bytes()), "{case}: {word}");
        }
    }
}

/// AR-03: browsers keep 4,096 bytes; as many logins as fit into 3,800 of its value are there, be their paths short or long.
#[test]
fn as_many_pending_logins_are_kept_as_a_browser_keeps() {
    let (hub, other) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &hub), ("b", &other)]).start();
    // How many of twenty can be finished; the others were the first.
    for (case, path, usual) in
        [("no path", 0, 16), ("short paths", 60, 16), ("paths of 200 bytes", 200, 9), ("long paths", 2_048, 16)]
    {
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        let path = if path == 0 { String::new() } else { format!("&return_to=/{}", "a".repeat(path - 1)) };
        let callbacks: Vec<_> = (0..20)
            .map(|number| {
                let (id, hub) = if number % 5 == 0 { ("b", &other) } else { ("a", &hub) };
                let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub={id}{path}"));
                let cookie = answer.header("set-cookie").expect("one cookie");
                let (pair, _) = cookie.split_once(';').expect("attributes");
                let (_, value) = pair.split_once('=').expect("a pair");
                assert!(value.len() <= 3_800 && cookie.len() < 4_096, "{case}: {} {}", value.len(), cookie.len());
                (id, browser::sign_in(hub, &answer.location(), "user=testuser"))
            })
            .collect();
        let kept = browser.copy();
        let is_finished = |(_, callback): &(_, String)| {
            // Each from the same jar.
            let cookies = kept.copy().open(&gateway, callback).headers("set-cookie");
            cookies.iter().any(|cookie| cookie.starts_with("__Host-Http-session-"))
        };
        let finished: Vec<bool> = callbacks.iter().map(is_finished).collect();
        assert_eq!(finished.iter().filter(|finished| **finished).count(), usual, "{case}: {finished:?}");
        assert!(finished.is_sorted(), "{case}: the oldest went first: {finished:?}");
    }
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
        (
            "/arcmanager/app/?project=lu98be%2Ftestarc&x=100%25#/tree",
            "/arcmanager/app/?project=lu98be%2Ftestarc&x=100%25#/tree",
        ),
        ("/a?b=\\", "/arcmanager/app/"),
    ] {
        let dropped = gateway.log().iter().filter(|line| line["event"] == "return_to_dropped").count();
        let browser = Browser::default();
        let encoded: String = url::form_urlencoded::byte_serialize(return_to.as_bytes()).collect();
        let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a&return_to={encoded}"));
        let callback = browser::sign_in(&hub, &answer.location(), "user=testuser");
        assert_eq!(browser.open(&gateway, &callback).location(), lands, "{return_to}");
        let drops = || gateway.log().iter().filter(|line| line["event"] == "return_to_dropped").count() - dropped;
        let is_dropped = usize::from(return_to != lands);
        wait_until(|| drops() >= is_dropped);
        assert_eq!(drops(), is_dropped, "{return_to}");
        assert!(!gateway.output().iter().any(|line| line.contains("evil.test")), "{return_to}");
    }
}

/// RD-03: what is wrong with it stops nobody.
#[test]
fn a_malformed_return_path_is_an_ordinary_login() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let long = format!("/{}", "a".repeat(7_000));
    for raw in [
        "%",
        "%ff%fe",
        "%00",
        "http://%5B",
        "//%5B::1",
        "%F0%9F%8C%B1",
        "/%zz",
        &long,
        "",
        "/a&return_to=/b",
        "%2F%09%2Fx",
    ] {
        let browser = Browser::default();
        let answer = browser.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a&return_to={raw}"));
        assert_eq!(answer.status, 302, "{raw}");
        let callback = browser::sign_in(&hub, &answer.location(), "user=testuser");
        assert_eq!(browser.open(&gateway, &callback).location(), "/arcmanager/app/", "{raw}");
    }
}

/// DS-06: how often one client may begin and end logins, by the address that a trusted proxy reports. Who comes too often
/// lands in the app, which says so.
#[test]
fn one_client_cannot_keep_the_login_busy() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]).and("rate_limit = { login = \"3/1h\", callback = \"2/1h\" }");
    let gateway = setup.clone().and("server.trusted_proxies = [\"127.0.0.0/8\"]").start();
    let (login, callback) = ("/auth/login?datahub=a", "/auth/callback?datahub=a&code=a&state=b");
    for _ in 0..3 {
        assert_eq!(send(&gateway, login, "192.0.2.1").status, 302);
    }
    let limited = send(&gateway, login, "192.0.2.1");
    assert_eq!((limited.status, limited.location().as_str()), (303, "/arcmanager/app/?login_error=busy"));
    assert!(limited.headers("set-cookie").is_empty() && limited.text().is_empty());
    assert_eq!(send(&gateway, login, "192.0.2.2").status, 302, "another client");
    assert_eq!(
        send(&gateway, login, "192.0.2.1, 192.0.2.3").status,
        302,
        "what the client itself put before is not believed"
    );
    // One host has a /64 of IPv6 at least.
    let of = |client: &str| send(&gateway, login, client).status;
    assert_eq!(["2001:db8::1", "2001:db8::2:1", "2001:db8::ffff:0:0:1", "2001:db8::1"].map(of), [302, 302, 302, 303]);
    assert_eq!(of("2001:db8:0:1::1"), 302, "another /64");

    // Nobody can guess a state often, with a login of their own under way.
    let guesser = Browser::default();
    assert_eq!(send_by(&guesser, &gateway, login, "192.0.2.9").status, 302);
    let words = [(); 3].map(|()| {
        let answer = send_by(&guesser, &gateway, callback, "192.0.2.1");
        answer.location().split('=').next_back().expect("a word").to_owned()
    });
    assert_eq!(words, ["expired", "expired", "busy"]);
    assert_eq!(hub.counts().code_exchanges_refused, 0);
    let event = gateway.wait_for_event("login_failed");
    assert_eq!((&event["client"], &event["level"]), (&"192.0.2.1".into(), &"WARN".into()), "{event}");
    let reason = event["reason"].as_str().expect("a reason");
    assert!(reason.contains("rate_limit.login") && reason.contains("server.trusted_proxies"), "{reason}");
    assert!(gateway.metrics().contains("gateway_logins_total{result=\"busy\"} 3"), "two logins and a callback");
    // Without a proxy that is trusted, what is said of others is not believed: it is one client, whoever it names.
    let gateway = setup.start();
    let statuses =
        ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(|client| send(&gateway, login, client).status);
    assert_eq!(statuses, [302, 302, 302, 303]);
    assert!(
        (0..10).all(|_| Browser::default().navigate(&gateway, &format!("{BASE}{login}")).status == 302),
        "this machine"
    );
}

/// DS-06: a seminar behind one address logs in within a minute.
#[test]
fn by_default_three_hundred_logins_a_minute_are_nobodys_attack() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("server.trusted_proxies = [\"127.0.0.1\"]").quiet().start();
    let one = Browser::default();
    one.navigate(&gateway, &format!("{BASE}/auth/login?datahub=a"));
    for path in ["/auth/login?datahub=a", "/auth/callback?datahub=a&code=a&state=b"] {
        let is_busy = |client| send_by(&one.copy(), &gateway, path, client).location().ends_with("login_error=busy");
        assert!(!(0..300).any(|_| is_busy("192.0.2.1")), "{path}");
        // Five come back each second.
        assert!((0..100).any(|_| is_busy("192.0.2.1")), "{path}");
        assert!(!is_busy("192.0.2.2"), "{path}: another client");
    }
}

/// DS-06: what a page elsewhere makes browsers send begins and ends no login, and keeps nobody else from it.
#[test]
fn what_no_person_opened_counts_for_nobody() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]).and("rate_limit = { login = \"1/1h\", callback = \"1/1h\" }");
    let gateway = setup.and("server.trusted_proxies = [\"127.0.0.0/8\"]").start();
    let (login, callback) = ("/auth/login?datahub=a", "/auth/callback?datahub=a&code=a&state=b");
    let behind_their_back = [
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n",
        "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n",
    ];
    for fields in behind_their_back {
        for (path, location) in
            [(login, "/arcmanager/app/"), (callback, "/arcmanager/app/?login_error=cookies_blocked")]
        {
            let fields = format!("{fields}X-Forwarded-For: 192.0.2.1\r\n");
            let answer = Browser::default().send(&gateway, "GET", &format!("{BASE}{path}"), &fields, b"");
            assert_eq!((answer.status, answer.location().as_str()), (303, location), "{path}, {fields}");
        }
    }
    let person = Browser::default();
    let answer = send_by(&person, &gateway, login, "192.0.2.1");
    assert_eq!(answer.status, 302);
    let ends = browser::sign_in(&hub, &answer.location(), "user=testuser");
    let ends =
        ends.strip_prefix(PUBLIC_URL).unwrap_or(&ends).strip_prefix(BASE).expect("a callback of ours").to_owned();
    assert_eq!(send_by(&person, &gateway, &ends, "192.0.2.1").location(), "/arcmanager/app/");
    // Each of the two is one, and another is too many.
    for path in [login, callback] {
        let answer = send_by(&person, &gateway, path, "192.0.2.1");
        assert_eq!(answer.location(), "/arcmanager/app/?login_error=busy", "{path}");
    }
}

/// A new browser's navigation that the proxy in front says comes from `client`.
fn send(gateway: &Gateway, path: &str, client: &str) -> browser::Answer {
    send_by(&Browser::default(), gateway, path, client)
}

fn send_by(browser: &Browser, gateway: &Gateway, path: &str, client: &str) -> browser::Answer {
    let fields = format!("{NAVIGATION}X-Forwarded-For: {client}\r\n");
    browser.send(gateway, "GET", &format!("{BASE}{path}"), &fields, b"")
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
        let gateway = Setup::new(&[("bad", &bad), ("good", &good)])
            .and("timeouts.back_channel = \"1s\"\ntimeouts.token = \"1s\"")
            .start();
        let started = Instant::now();
        let answer = Browser::default().navigate(&gateway, &format!("{BASE}/auth/login?datahub=bad"));
        assert_eq!(
            (answer.status, answer.location().as_str()),
            (303, "/arcmanager/app/?login_error=unavailable"),
            "{case}"
        );
        assert!(started.elapsed() < Duration::from_secs(8), "{case}: {:?}", started.elapsed());
        let event = gateway.wait_for_event("login_failed");
        let reason = event["reason"].as_str().expect("a reason");
        assert!(reason.starts_with("the login cannot begin: ") && event["datahub"] == "bad", "{case}: {event}");
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

/// Metadata are fetched once and by nobody's login; where they never come, whoever waits for them stands in nobody's way.
#[test]
fn metadata_that_never_come_hold_up_no_login_elsewhere() {
    let (silent, good) = (datahub_with(|behaviour| behaviour.discovery.answer = Answer::Hang), datahub());
    let lines = "server.workers = 1\ntimeouts.back_channel = \"4s\"";
    let gateway = Setup::new(&[("silent", &silent), ("good", &good)]).and(lines).start();
    let target = format!("{BASE}/auth/login?datahub=silent");
    let mut waiting: Vec<_> = (0..50).map(|_| Browser::default().begin(&gateway, "GET", &target, NAVIGATION)).collect();
    wait_until(|| !silent.requests().is_empty());
    let browsers = [(); 3].map(|()| Browser::default());
    for browser in &browsers {
        browser.log_in(&gateway, "good", &good, "testuser");
    }
    let ended = gateway.log().iter().filter(|line| line["target"] == "access" && line["datahub"] == "silent").count();
    assert_eq!(ended, 0, "all fifty were waiting all the while");
    for connection in &mut waiting {
        let answer = connection.answer(true);
        assert_eq!((answer.status, answer.location().as_str()), (303, "/arcmanager/app/?login_error=unavailable"));
    }
    assert_eq!(silent.requests().len(), 1, "one fetch for all of them");
    assert_eq!((good.counts().discoveries, good.counts().key_fetches), (1, 1), "and for all who log in");
    let metrics = gateway.metrics();
    for line in ["gateway_datahub_up{datahub=\"silent\"} 0", "gateway_datahub_up{datahub=\"good\"} 1"] {
        assert!(metrics.contains(line), "{metrics}");
    }
}
