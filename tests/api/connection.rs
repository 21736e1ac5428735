//! Whether a connection goes on after an answer, and how long it is kept: `timeouts` and `Connection` in every combination.

use std::io::Write;
use std::time::{Duration, Instant};

use datahub::DataHub;

use crate::browser::{Browser, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub};
use crate::wire::{Wire, exchange, summary};

struct World {
    hub: DataHub,
    gateway: Gateway,
    session: String,
    _folder: Folder,
}

impl World {
    fn new() -> Self {
        let (hub, folder) = (datahub(), Folder::default());
        folder.file("index.html", "the app");
        let dir = folder.path().to_str().expect("a plain path");
        let gateway = Setup::new(&[("a", &hub)]).and(&format!("app.dir = {dir:?}")).start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        let session = format!("Host: localhost:8000\r\n{FETCH}{}", browser.cookie_field());
        Self { hub, gateway, session, _folder: folder }
    }

    /// A request of somebody who is logged in; `rest` are further fields, the empty line and a body.
    fn request(&self, line: &str, rest: &str) -> String {
        format!("{line}\r\n{}{rest}", self.session)
            .replace("{api}", &format!("{BASE}/datahubs/a/api/v4"))
            .replace("{base}", BASE)
    }

    fn get(&self, target: &str) -> String {
        self.request(&format!("GET {target} HTTP/1.1"), "\r\n")
    }

    fn exchange(&self, bytes: &str) -> Vec<String> {
        exchange(&self.gateway.address, bytes).iter().map(summary).collect()
    }
}

/// Every kind of answer, with its request line, what follows, and its summary.
const KINDS: [(&str, &str, &str); 17] = [
    ("GET {base}/datahubs", "\r\n", "200"),
    ("GET {base}/auth/session", "\r\n", "200"),
    ("GET {base}/auth/callback", "\r\n", "303"),
    ("GET /arcmanager/app/", "\r\n", "200"),
    ("GET /arcmanager/app", "\r\n", "307"),
    ("GET /arcmanager/app/nothing.js", "\r\n", "404 not_found"),
    ("POST /arcmanager/app/", "Content-Length: 0\r\n\r\n", "405 method_not_allowed"),
    ("POST {base}/datahubs", "\r\n", "405 method_not_allowed"),
    ("GET {base}/nothing", "\r\n", "404 not_found"),
    ("GET {api}/user", "\r\n", "200"),
    ("GET {api}/nothing", "\r\n", "404"),
    ("GET {api}/projects/230/repository/archive.tar.gz", "\r\n", "200"),
    ("GET {api}/user?sudo=1", "\r\n", "400 credential_parameter"),
    ("GET {api}/user/personal_access_tokens", "\r\n", "403 credential_endpoint"),
    ("PUT {api}/projects/230/packages/generic/p/1.0.0/f.bin", "Content-Length: 5\r\n\r\nhello", "201"),
    (
        "PUT {api}/projects/230/packages/generic/p/1.0.0/f.bin",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "201",
    ),
    ("POST {base}/auth/logout?datahub=a", "\r\n", "204"),
];

/// RFC 9112 section 9.6: with every kind of answer, said once, and nothing behind it is answered.
#[test]
fn a_client_that_says_close_gets_one_answer_that_says_so() {
    let world = World::new();
    let behind = world.get("{base}/datahubs");
    let last = world.request("GET {base}/datahubs HTTP/1.1", "Connection: close\r\n\r\n");
    for (line, rest, expected) in KINDS {
        let line = format!("{line} HTTP/1.1");
        let kept = world.exchange(&(world.request(&line, rest) + &last));
        assert_eq!(kept, [expected, "200"], "{line}");
        let closing = world.request(&line, &format!("Connection: close\r\n{rest}"));
        let answers = exchange(&world.gateway.address, closing + &behind);
        assert_eq!(answers.iter().map(summary).collect::<Vec<_>>(), [expected], "{line}");
        assert_eq!(answers[0].header("connection").as_deref(), Some("close"), "{line}");
    }
    for (fields, is_kept) in [
        ("Connection: keep-alive\r\n", true),
        ("Connection: x\r\n", true),
        ("Connection: \r\n", true),
        ("Connection: closed\r\n", true),
        ("Connection: x-close\r\n", true),
        ("Proxy-Connection: close\r\n", true),
        ("Keep-Alive: timeout=1\r\n", true),
        ("Connection: Close\r\n", false),
        ("connection:close\r\n", false),
        ("Connection: x, close\r\n", false),
        ("Connection: close ,x\r\n", false),
        ("Connection: keep-alive, close\r\n", false),
        ("Connection: close, keep-alive\r\n", false),
        ("Connection: upgrade\r\n", false),
        ("Connection: keep-alive, Upgrade\r\n", false),
        // Fields of one name are one list, but the last of them that says something of it wins.
        ("Connection: close\r\nConnection: x\r\n", false),
        ("Connection: keep-alive\r\nConnection: close\r\n", false),
        ("Connection: close\r\nConnection: keep-alive\r\n", false),
    ] {
        for target in ["{base}/datahubs", "{api}/user", "/arcmanager/app/"] {
            let request = world.request(&format!("GET {target} HTTP/1.1"), &format!("{fields}\r\n"));
            let answers = exchange(&world.gateway.address, request + &last);
            assert_eq!(answers.len() == 2, is_kept, "{target}, {fields}");
            let says = answers[0].header("connection");
            assert_eq!(says.as_deref(), if is_kept { None } else { Some("close") }, "{target}, {fields}");
        }
    }
}

/// RFC 9112 section 9.3, appendix C.2.2: an older client is kept if it asks for it, and told so.
#[test]
fn an_older_client_is_kept_if_it_asks() {
    let world = World::new();
    for (line, rest, expected) in KINDS {
        // Without an upload in chunks, and without an answer in chunks: its end is that of the connection.
        if rest.contains("chunked") || line.contains("archive") || line.starts_with("POST {base}/datahubs") {
            continue;
        }
        let rest = if line.starts_with("POST") { "Content-Length: 0\r\n\r\n" } else { rest };
        let line = format!("{line} HTTP/1.0");
        for (field, is_kept) in [
            ("", false),
            ("Connection: x\r\n", false),
            ("Connection: keep-alive, close\r\n", false),
            ("Proxy-Connection: keep-alive\r\n", false),
            ("Connection: keep-alive\r\n", true),
            ("Connection: x, Keep-Alive\r\n", true),
        ] {
            let request = world.request(&line, &format!("{field}{rest}"));
            let behind = world.request("GET {base}/datahubs HTTP/1.0", "\r\n");
            let answers = exchange(&world.gateway.address, request + &behind);
            let words: Vec<_> = answers.iter().map(summary).collect();
            assert_eq!(words, if is_kept { vec![expected, "200"] } else { vec![expected] }, "{line}, {field}");
            let head = &answers[0].head;
            assert!(head.starts_with("HTTP/1.0 ") && !head.contains("transfer-encoding"), "{line}, {field}: {head}");
            let says = answers[0].header("connection");
            assert_eq!(says.as_deref(), if is_kept { Some("keep-alive") } else { None }, "{line}, {field}");
        }
    }
    // What ends the connection ends it whatever the client wants.
    for (line, rest, expected) in [
        ("GET {base}/datahubs", "Upgrade: x\r\n\r\n", "501 upgrade_refused"),
        ("GET {base}/datahubs", "Content-Length: 5\r\n\r\nhello", "400 bad_request"),
        ("TRACE {base}/datahubs", "\r\n", "501 method_not_implemented"),
    ] {
        let request = world.request(&format!("{line} HTTP/1.0"), &format!("Connection: keep-alive\r\n{rest}"));
        let answers = exchange(&world.gateway.address, request + &world.get("{base}/datahubs"));
        assert_eq!(answers.iter().map(summary).collect::<Vec<_>>(), [expected], "{line}");
        assert_ne!(answers[0].header("connection").as_deref(), Some("keep-alive"), "{line}");
    }
    // A connection may change its version, and each request is answered in its own.
    let old = world.request("GET {base}/datahubs HTTP/1.0", "Connection: keep-alive\r\n\r\n");
    let answers = exchange(
        &world.gateway.address,
        old.clone()
            + &world.get("{api}/user")
            + &old
            + &world.request("GET {base}/datahubs HTTP/1.1", "Connection: close\r\n\r\n"),
    );
    let versions: Vec<_> = answers.iter().map(|answer| (&answer.head[..8], answer.header("connection"))).collect();
    let kept = Some("keep-alive".to_owned());
    let expected =
        [("HTTP/1.0", kept.clone()), ("HTTP/1.1", None), ("HTTP/1.0", kept), ("HTTP/1.1", Some("close".into()))];
    assert_eq!(versions, expected);
}

/// RFC 9112 section 9.3.2: own routes, files and calls mixed are answered in their order, however they arrive.
#[test]
fn what_comes_at_once_is_answered_in_its_order() {
    let world = World::new();
    let last = world.request("GET {base}/datahubs HTTP/1.1", "Connection: close\r\n\r\n");
    let mut all = String::new();
    let mut expected = Vec::new();
    for step in [1, 3, 5] {
        for at in 0..KINDS.len() - 1 {
            // Another order each round; the logout comes never.
            let (line, rest, answer) = KINDS[(at * step) % (KINDS.len() - 1)];
            all += &world.request(&format!("{line} HTTP/1.1"), rest);
            expected.push(answer);
        }
    }
    all += &last;
    expected.push("200");
    for size in [all.len(), 1000, 61] {
        world.hub.clear();
        let mut wire = Wire::open(&world.gateway.address);
        for piece in all.as_bytes().chunks(size) {
            wire.send(piece);
        }
        let answers: Vec<_> = wire.rest().iter().map(summary).collect();
        assert_eq!(answers, expected, "in pieces of {size}");
        let calls = world.hub.requests();
        assert!(calls.iter().all(|call| call.complete), "in pieces of {size}");
        assert_eq!(calls.iter().filter(|call| call.body == b"hello").count(), 6, "in pieces of {size}");
    }
}

/// FR-08: our own routes take a body and do not mind what it says; it is never the next request. What follows it is, unless it
/// is longer than any of them wants.
#[test]
fn a_body_for_one_of_our_own_routes_is_no_request() {
    let world = World::new();
    let hidden = world.get("{api}/hidden");
    for length in [1, hidden.len(), 64 * 1024, 64 * 1024 + 1, 1024 * 1024] {
        let body = hidden.repeat(length / hidden.len() + 1);
        let body = &body[..length];
        for framing in [
            format!("Content-Length: {length}\r\n\r\n{body}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
        ] {
            for (line, expected) in [
                ("POST {base}/auth/refresh HTTP/1.1", "200"),
                ("POST {base}/auth/logout?datahub=x HTTP/1.1", "404 unknown_datahub"),
                ("POST {base}/datahubs HTTP/1.1", "405 method_not_allowed"),
                ("DELETE {base}/nothing HTTP/1.1", "404 not_found"),
            ] {
                world.hub.clear();
                let next = world.request("GET {base}/datahubs HTTP/1.1", "Connection: close\r\n\r\n");
                let answers = world.exchange(&(world.request(line, &framing) + &next));
                let all = if length <= 64 * 1024 { vec![expected, "200"] } else { vec![expected] };
                assert_eq!(answers, all, "{line}, {length}");
                assert!(world.hub.requests().is_empty(), "{line}, {length}");
            }
        }
    }
}

/// FR-10: who asks before the body goes up is told to go on exactly if somebody reads it, and once.
#[test]
fn an_expectation_is_met_if_the_body_is_wanted() {
    let world = World::new();
    let put = "PUT {api}/projects/230/packages/generic/p/1.0.0/f.bin HTTP/1.1";
    let (length, chunks) = ("Content-Length: 5\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n");
    let (hello, hello_chunked) = ("hello", "5\r\nhello\r\n0\r\n\r\n");
    // What is wanted, by a call that goes up or by one that is inspected before.
    for (case, line, fields, body, expected) in [
        ("a length", put, format!("Expect: 100-continue\r\n{length}"), hello, "201"),
        ("chunks", put, format!("Expect: 100-continue\r\n{chunks}"), hello_chunked, "201"),
        ("capitals", put, format!("eXPECT: 100-Continue\r\n{length}"), hello, "201"),
        ("spaces", put, format!("Expect:\t 100-continue \r\n{length}"), hello, "201"),
        (
            "a form",
            "POST {api}/projects/230/issues HTTP/1.1",
            format!("Content-Type: application/x-www-form-urlencoded\r\nExpect: 100-continue\r\n{length}"),
            "a=b&c",
            "400",
        ),
    ] {
        let mut wire = Wire::open(&world.gateway.address);
        for _ in 0..2 {
            wire.send(world.request(line, &fields));
            assert_eq!(wire.answer().expect("a word").status, 100, "{case}");
            wire.send(body);
            assert_eq!(summary(&wire.answer().expect("an answer")), expected, "{case}");
        }
    }
    // What nobody waits for: no body, another expectation, an older client, a body that is there already.
    for (case, line, fields, body, expected) in [
        ("no body", "GET {api}/user HTTP/1.1", "Expect: 100-continue\r\n\r\n".to_owned(), "", "200"),
        ("a length of nothing", put, "Expect: 100-continue\r\nContent-Length: 0\r\n\r\n".to_owned(), "", "201"),
        ("another one", put, format!("Expect: x\r\n{length}"), hello, "201"),
        ("more than one", put, format!("Expect: 100-continue, x\r\n{length}"), hello, "201"),
        ("an older client", &put.replace("1.1", "1.0"), format!("Expect: 100-continue\r\n{length}"), hello, "201"),
    ] {
        let mut wire = Wire::open(&world.gateway.address);
        wire.send(world.request(line, &fields));
        if !body.is_empty() {
            assert!(wire.is_quiet(Duration::from_millis(150)), "{case}");
        }
        wire.send(body);
        assert_eq!(summary(&wire.answer().expect("an answer")), expected, "{case}");
    }
    let both = world.request(put, &format!("Expect: 100-continue\r\n{length}{hello}"));
    let answers = world.exchange(&(both + &world.request("GET {base}/datahubs HTTP/1.1", "Connection: close\r\n\r\n")));
    assert_eq!(answers, ["201", "200"], "the body is there already");
    // Who is refused is not told to go on, and what comes then is not listened to.
    let fields = format!("Expect: 100-continue\r\n{length}");
    for (case, line, fields, expected) in [
        ("nowhere", "PUT {base}/nothing HTTP/1.1", fields.clone(), "404 not_found"),
        (
            "a token's maker",
            "POST {api}/user/personal_access_tokens HTTP/1.1",
            fields.clone(),
            "403 credential_endpoint",
        ),
        ("one of ours", "POST {base}/auth/refresh HTTP/1.1", fields.clone(), "200"),
        ("a file", "POST /arcmanager/app/ HTTP/1.1", fields.clone(), "405 method_not_allowed"),
        ("a body with GET", "GET {api}/user HTTP/1.1", fields.clone(), "400 bad_request"),
        ("twice", put, format!("Expect: 100-continue\r\n{fields}"), "400 bad_request"),
        (
            "too long",
            put,
            "Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n".to_owned(),
            "413 body_too_large",
        ),
    ] {
        let mut wire = Wire::open(&world.gateway.address);
        wire.send(world.request(line, &fields));
        assert_eq!(summary(&wire.answer().expect("an answer")), expected, "{case}");
        wire.send(world.get("{base}/datahubs"));
        assert!(wire.answer().is_none(), "{case}: it ends");
    }
}

/// DS-03: 10 s for a first byte, 75 s between two requests: longer than front proxies keep theirs.
#[test]
fn an_idle_connection_is_kept_longer_than_a_silent_one() {
    let world = World::new();
    let begun = Instant::now();
    let [mut kept, mut kept_by_a_call] = [(), ()].map(|()| Wire::open(&world.gateway.address));
    kept.send(world.get("{base}/datahubs"));
    kept_by_a_call.send(world.get("{api}/user"));
    for wire in [&mut kept, &mut kept_by_a_call] {
        assert_eq!(wire.answer().expect("an answer").status, 200);
    }
    let mut silent = Wire::open(&world.gateway.address);
    assert!(silent.answer().is_none(), "nothing is said to who said nothing");
    let waited = begun.elapsed();
    assert!(waited > Duration::from_millis(9_500) && waited < Duration::from_millis(11_500), "{waited:?}");
    // What comes slowly has been coming since its first byte, not since the last answer.
    std::thread::sleep(Duration::from_secs(11).saturating_sub(begun.elapsed()));
    for wire in [&mut kept, &mut kept_by_a_call] {
        assert!(wire.is_quiet(Duration::from_millis(1)), "it is kept");
        wire.send(world.get("{base}/datahubs"));
        assert_eq!(wire.answer().expect("an answer").status, 200);
    }
    if std::env::var_os("LONG").is_some() {
        let begun = Instant::now();
        assert!(
            kept.is_quiet(Duration::from_secs(74)) && !kept.is_quiet(Duration::from_secs(3)),
            "{:?}",
            begun.elapsed()
        );
    }
}

/// DS-03: after an answer that nobody waits to hear the end of, who still sends is heard for 5 s.
#[test]
fn who_still_sends_hears_the_answer_and_is_left_then() {
    let world = World::new();
    let mut wire = Wire::open(&world.gateway.address);
    wire.send(world.request("POST {base}/nothing HTTP/1.1", "Content-Length: 1000000\r\n\r\n"));
    let begun = Instant::now();
    assert_eq!(summary(&wire.answer().expect("an answer")), "404 not_found");
    assert!(wire.answer().is_none() && begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    while wire.try_send(b"x") {
        assert!(begun.elapsed() < Duration::from_secs(10), "it goes on for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// An answer's piece is not held back until the one before is acknowledged (RFC 896): 40 ms on Linux.
#[test]
fn small_pieces_are_not_collected() {
    let hub = datahub();
    let far = far_end::before(hub.address(), |reader, _| {
        let mut is_more = true;
        while is_more {
            let mut stream = reader.get_ref();
            let mut write = |bytes: &[u8]| {
                stream.write_all(bytes).expect("it reads");
                std::thread::sleep(Duration::from_millis(2));
            };
            write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            (0..5).for_each(|_| write(b"1\r\nx\r\n"));
            write(b"0\r\n\r\n");
            is_more = far_end::head(reader).is_some();
        }
    });
    let gateway = Setup::new(&[("a", &hub)]).and(&format!("datahubs.a.connect = \"{far}\"")).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let fields = format!("Host: localhost:8000\r\n{FETCH}{}\r\n", browser.cookie_field());
    let mut wire = Wire::open(&gateway.address);
    let ask = |_| {
        wire.send(format!("GET {BASE}/datahubs/a/api/v4/own HTTP/1.1\r\n{fields}"));
        let begun = Instant::now();
        assert_eq!(wire.answer().expect("an answer").body, b"xxxxx");
        begun.elapsed()
    };
    let mut times: Vec<_> = (0..20).map(ask).collect();
    times.sort();
    assert!(times[4] < Duration::from_millis(35), "{times:?}");
}
