//! Where one request ends and the next begins: nothing but strict HTTP/1.1 gets in, and a connection ends at the first doubt.
//!
//! The requests are in `framing.json`. Each fault is one change to a request that is good: the good one passes, so the bad
//! one is refused for that change. h11 is asked about the same file (`tests/deploy/test_framing.py`).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use datahub::DataHub;
use datahub::behaviour::Answer;
use serde::Deserialize;

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub, wait_until};

/// What is wrong, the good request, what is replaced, by what, the status, what h11 makes of it.
type Row = (String, String, String, String, u16, String);

/// A gateway, a DataHUB behind it, and a person who is logged in.
struct World {
    hub: DataHub,
    gateway: Gateway,
    session: String,
}

/// What came back on one connection: the status of each answer, and how the connection ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    statuses: Vec<u16>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The gateway closed the connection.
    Closed,
    /// The connection is open, and nothing more came.
    Open,
}

impl World {
    fn new(lines: &str) -> Self {
        let hub = datahub();
        let gateway = Setup::new(&[("a", &hub)]).and(lines).start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        hub.clear();
        Self { hub, gateway, session: format!("{FETCH}{}", browser.cookie_field()) }
    }

    /// The bytes of a request that is written with `{api}` and `{session}`; one character is one byte.
    fn bytes(&self, request: &str) -> Vec<u8> {
        let request = request.replace("{api}", &format!("{BASE}/datahubs/a/api/v4"));
        latin1(&request.replace("{session}", &self.session))
    }

    /// A good request, to stand behind another one.
    fn next(&self) -> Vec<u8> {
        self.bytes("GET {api}/next HTTP/1.1\r\nHost: localhost:8000\r\n{session}\r\n")
    }

    fn lines_about_a_bad_request(&self) -> usize {
        let is_one = |line: &serde_json::Value| line["target"] == "access" && line["code"] == "bad_request";
        self.gateway.log().iter().filter(|line| is_one(line)).count()
    }

    fn open(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.gateway.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("longer than nothing");
        stream
    }

    /// Sends `bytes` at once and waits for so many answers, or for the end of the connection.
    fn send(&self, bytes: &[u8], answers: usize) -> Outcome {
        let mut stream = self.open();
        // What was refused early may be closed already.
        let _ = stream.write_all(bytes);
        if bytes.starts_with(b"HEAD ") {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a head");
                head.push(byte[0]);
            }
            let status = String::from_utf8_lossy(&head[9..12]).parse().expect("a status line");
            let Outcome { statuses, end } = read(&mut stream, answers - 1);
            return Outcome { statuses: [vec![status], statuses].concat(), end };
        }
        read(&mut stream, answers)
    }

    /// Sends a bad request with a good one behind it: the status is `status`, the connection closed, nothing forwarded.
    fn refuses(&self, case: &str, bytes: &[u8], status: u16) {
        self.hub.clear();
        let outcome = self.send(&[bytes, &self.next()].concat(), 3);
        assert_eq!(outcome, Outcome { statuses: vec![status], end: End::Closed }, "{case}");
        let forwarded: Vec<_> = self.hub.requests().into_iter().filter(|request| request.complete).collect();
        assert!(forwarded.is_empty(), "{case} was forwarded: {forwarded:?}");
    }

    /// Sends a good request with another one behind it: both are answered and forwarded, and the connection stays.
    fn takes(&self, case: &str, bytes: &[u8], status: u16) {
        self.hub.clear();
        let outcome = self.send(&[bytes, &self.next()].concat(), 2);
        assert_eq!(outcome, Outcome { statuses: vec![status, 404], end: End::Open }, "{case}");
        // One that was refused before may have broken off since.
        let forwarded: Vec<_> = self.hub.requests().into_iter().filter(|request| request.complete).collect();
        let paths: Vec<_> = forwarded.iter().map(datahub::record::Recorded::path).collect();
        assert!(paths.len() == 2 && paths[1] == "/api/v4/next", "{case}: {paths:?}");
        let body: &[u8] = if status == 201 { b"hello" } else { b"" };
        assert_eq!(forwarded[0].body, body, "{case}");
    }

    /// All rows of one requirement, and the good request of each.
    fn judge(&self, requirement: &str) {
        let text = include_str!("framing.json");
        let file: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let rows: Vec<Row> = Deserialize::deserialize(&file[requirement]).expect("rows");
        for (case, good, from, to, status, _) in rows {
            let good = file["requests"][&good].as_str().expect("a request");
            assert!(good.contains(&from), "{case}: there is no {from:?} to replace");
            let is_upload = good.starts_with("PUT");
            self.takes(&format!("{requirement}, without {case}"), &self.bytes(good), if is_upload { 201 } else { 200 });
            let (case, bytes) = (format!("{requirement}, {case}"), self.bytes(&good.replacen(&from, &to, 1)));
            if status < 300 { self.takes(&case, &bytes, status) } else { self.refuses(&case, &bytes, status) }
        }
    }
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(character).expect("one character is one byte")).collect()
}

/// The answers on a connection, taken apart strictly; interim ones count.
fn read(stream: &mut TcpStream, answers: usize) -> Outcome {
    let (mut read, mut statuses, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
    let end = loop {
        while let Some((status, length)) = answer(&read) {
            statuses.push(status);
            read.drain(..length);
        }
        if statuses.len() == answers {
            // Whether it closes now, or says more.
            stream.set_read_timeout(Some(Duration::from_millis(20))).expect("longer than nothing");
        }
        match stream.read(&mut buffer) {
            Ok(0) => break End::Closed,
            Ok(count) => read.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break End::Closed,
            // A machine that is halted and goes on ends waits with a time limit.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                break End::Open;
            }
        }
    };
    assert!(read.is_empty(), "half an answer: {}", String::from_utf8_lossy(&read));
    Outcome { statuses, end }
}

/// The status and the length of the first answer in `read`, if it is all there.
fn answer(read: &[u8]) -> Option<(u16, usize)> {
    let end = read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let status: u16 = head.get(9..12).and_then(|digits| digits.parse().ok()).expect("a status line");
    if status < 200 {
        return Some((status, end));
    }
    // Whoever refuses a request, it has an id and a body that says why (PR-05).
    assert!(head.contains("\r\nx-request-id: ") && head.contains("\r\nx-content-type-options: nosniff\r\n"), "{head}");
    assert!(status < 400 || status == 404 || head.contains("\r\ncontent-type: application/problem+json\r\n"), "{head}");
    let field = |name: &str| head.split("\r\n").find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length = match field("content-length:") {
        Some(length) => end + length.parse::<usize>().expect("a number"),
        None if status == 204 => end,
        None => {
            assert_eq!(field("transfer-encoding:"), Some("chunked"), "{head}");
            end + read[end..].windows(5).position(|window| window == b"0\r\n\r\n")? + 5
        }
    };
    (read.len() >= length).then_some((status, length))
}

/// FR-01.
#[test]
fn a_body_has_a_length_or_chunks_and_never_both() {
    World::new("").judge("FR-01");
}

/// FR-02.
#[test]
fn the_only_transfer_coding_is_chunked_once() {
    World::new("").judge("FR-02");
}

/// FR-03.
#[test]
fn a_length_is_one_plain_number() {
    World::new("").judge("FR-03");
}

/// FR-04: and what broke off is never whole for the DataHUB.
#[test]
fn chunks_are_strict() {
    World::new("").judge("FR-04");
}

/// FR-05, FR-11: only HTTP/1, only plain TCP.
#[test]
fn other_protocols_are_refused() {
    let world = World::new("");
    world.judge("FR-05");
    for (case, bytes) in [
        ("HTTP/2 with prior knowledge", &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..]),
        ("a WebSocket's frame", b"\x81\x85\0\0\0\0hello\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        ("SMTP", b"EHLO evil.test\r\nMAIL FROM:<a@evil.test>\r\n\r\n"),
        ("an answer", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ] {
        world.refuses(case, bytes, 400);
    }
}

/// FR-05: to an older client a body ends with its connection, and chunks mean nothing.
#[test]
fn an_older_client_gets_no_chunks() {
    let world = World::new("");
    let trace = "GET {api}/projects/230/jobs/9/trace HTTP/1.1\r\nHost: localhost:8000\r\n{session}\r\n";
    let newer = world.send(&world.bytes(trace), 1);
    assert_eq!(newer, Outcome { statuses: vec![200], end: End::Open });
    let older = trace.replace("HTTP/1.1", "HTTP/1.0").replace("Host:", "Connection: keep-alive\r\nHost:");
    let mut stream = world.open();
    stream.write_all(&world.bytes(&older)).expect("it takes a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an end");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(!head.contains("keep-alive") && !head.contains("transfer-encoding"), "{head}");
    assert!(body.lines().count() > 5 && body.lines().all(|line| line.len() > 2), "{body}");
}

/// FR-07: what the parser behind us refuses has its line in the log, too.
#[test]
fn a_request_that_gets_nowhere_is_logged() {
    let world = World::new("");
    let get = "GET {api}/user HTTP/1.1\r\nHost: localhost:8000\r\n{session}\r\n";
    world.takes("the twin", &world.bytes(get), 200);
    for (case, from, to) in [
        ("another version", "HTTP/1.1", "HTTP/1.2"),
        ("no host", "Host: localhost:8000\r\n", ""),
        ("a space before the colon", "Host:", "Host :"),
        ("a backtick in the target", "/user", "/us`er"),
    ] {
        let before = world.lines_about_a_bad_request();
        world.refuses(case, &world.bytes(&get.replacen(from, to, 1)), 400);
        wait_until(|| world.lines_about_a_bad_request() == before + 1);
    }
    // Whoever still sends hears the answer before the connection ends, and so does whoever asked before.
    let long = format!("Content-Length: 400000\r\n\r\n{}", "x".repeat(400_000));
    let bad = world.bytes(&get.replacen("GET", "PUT", 1).replacen("Host: localhost:8000\r\n", "", 1));
    let bad = [&bad[..bad.len() - 2], long.as_bytes()].concat();
    for _ in 0..20 {
        let outcome = world.send(&[&world.next(), &bad[..]].concat(), 3);
        assert_eq!(outcome, Outcome { statuses: vec![404, 400], end: End::Closed });
    }
}

/// FR-06, FR-11: not one byte after it is tunnelled, or taken for a body.
#[test]
fn an_upgrade_is_refused_and_the_connection_closed() {
    let world = World::new("");
    world.judge("FR-06");
    let h2c = "GET {api}/user HTTP/1.1\r\nHost: localhost:8000\r\n{session}Connection: Upgrade, HTTP2-Settings\r\n\
        Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let twin = h2c.replace("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", "");
    world.takes("HTTP2-Settings alone", &world.bytes(&twin), 200);
    world.refuses("h2c", &[&world.bytes(h2c)[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"].concat(), 501);
    // Without something to upgrade to there is nothing to refuse, but the connection ends.
    let alone = world.bytes(&h2c.replace("Upgrade, HTTP2-Settings\r\nUpgrade: h2c", "upgrade"));
    world.hub.clear();
    assert_eq!(world.send(&alone, 1), Outcome { statuses: vec![200], end: End::Closed });
    let outcome = world.send(&[alone, world.next()].concat(), 2);
    assert_eq!(outcome, Outcome { statuses: vec![200], end: End::Closed });
    assert!(world.hub.requests().iter().all(|request| request.path() == "/api/v4/user"));
    world.refuses("h2c, and nonsense", &[&world.bytes(h2c)[..], b"nonsense\nX\r\n\r\n"].concat(), 501);
}

/// FR-07.
#[test]
fn fields_are_strict() {
    World::new("").judge("FR-07");
}

/// FR-08: an answer before the body has come never lets the body be read as the next request.
#[test]
fn a_body_that_nobody_reads_is_not_the_next_request() {
    let world = World::new("limits.target = \"2KiB\"\nlimits.body = \"1KiB\"");
    let hidden = "GET {api}/hidden HTTP/1.1\r\nHost: localhost:8000\r\n{session}\r\n";
    let hidden = String::from_utf8(world.bytes(hidden)).expect("ASCII");
    let chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    let long = format!("{{api}}/{}", "a".repeat(3000));
    for (case, status, method, target, fields) in [
        ("nobody", 401, "POST", "{api}/user", FETCH),
        ("another site", 403, "POST", "{api}/user", "Sec-Fetch-Site: cross-site\r\n"),
        ("nowhere", 404, "POST", "/nowhere", "{session}"),
        ("no such DataHUB", 404, "POST", "/arcmanager/api/v1/datahubs/b/user", "{session}"),
        ("no such method", 405, "POST", "/arcmanager/api/v1/auth/login", "{session}"),
        ("a long target", 414, "POST", long.as_str(), "{session}"),
        ("a traversal", 400, "POST", "{api}/../user", "{session}"),
        ("not forwarded", 404, "POST", "/arcmanager/api/v1/datahubs/a/api/graphql", "{session}"),
        ("a token's maker", 403, "POST", "{api}/user/personal_access_tokens", "{session}"),
    ] {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost:8000\r\n{fields}");
        let with_length = world.bytes(&format!("{head}Content-Length: {}\r\n\r\n{hidden}", hidden.len()));
        let with_chunks = world.bytes(&format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}"));
        world.hub.clear();
        for bytes in [with_length, with_chunks] {
            // At once, and the body later, when the answer has been written.
            let outcome = world.send(&bytes, 2);
            assert_eq!(outcome.statuses, [status], "{case}");
            let body = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
            let mut stream = world.open();
            stream.write_all(&bytes[..body]).expect("it takes a head");
            std::thread::sleep(Duration::from_millis(20));
            let _ = stream.write_all(&bytes[body..]);
            assert_eq!(read(&mut stream, 2).statuses, [status], "{case}, later");
        }
        assert!(world.hub.requests().iter().all(|request| !request.path().contains("hidden")), "{case}");
    }
    // A length closes the connection; a request behind it is lost, not answered.
    let head = format!("POST {{api}}/user HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}");
    let refused = world.bytes(&format!("{head}Content-Length: {}\r\n\r\n{hidden}", hidden.len()));
    world.refuses("nobody, and a request behind it", &refused, 401);
    // The same without a body leaves the connection open.
    world.hub.clear();
    let kept = world.send(&[&world.bytes(&format!("{head}Content-Length: 0\r\n\r\n"))[..], &world.next()].concat(), 2);
    assert_eq!(kept, Outcome { statuses: vec![401, 404], end: End::Open });
}

/// FR-08: the app's files take no body either.
#[test]
fn a_body_for_a_file_is_not_the_next_request() {
    let folder = crate::gateway::Folder::default();
    folder.file("index.html", "the app");
    let place = folder.path().to_str().expect("a plain path");
    let world = World::new(&format!("app.dir = {place:?}"));
    let target = "/arcmanager/app/index.html HTTP/1.1\r\nHost: localhost:8000\r\n";
    world.hub.clear();
    let twin = world.send(&[format!("GET {target}\r\n").as_bytes(), &world.next()].concat(), 2);
    assert_eq!(twin, Outcome { statuses: vec![200, 404], end: End::Open });
    let next = world.next();
    for method in ["GET", "HEAD"] {
        let with_body = format!("{method} {target}Content-Length: {}\r\n\r\n", next.len());
        world.refuses(method, with_body.as_bytes(), 400);
    }
}

/// FR-09: what the browser says of its body's framing never goes up; what breaks off never looks whole.
#[test]
fn the_framing_that_goes_up_is_ours() {
    let world = World::new("");
    let put = "PUT {api}/projects/230/packages/generic/p/1.0.0/f.bin HTTP/1.1\r\nHost: localhost:8000\r\n{session}";
    for (framing, body, up) in [
        ("Content-Length: 005\r\n", "hello", ("content-length", "5")),
        ("transfer-encoding: CHUNKED\r\n", "5;a=b\r\nhello\r\n0\r\nX-A: b\r\n\r\n", ("transfer-encoding", "chunked")),
    ] {
        world.takes(framing, &world.bytes(&format!("{put}{framing}\r\n{body}")), 201);
        let fields: Vec<_> = world.hub.requests()[0].headers();
        let of_framing = |name: &str| ["content-length", "transfer-encoding", "te", "trailer"].contains(&name);
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
            .filter(|(name, _)| of_framing(name))
            .collect();
        assert_eq!(fields, [(up.0.to_owned(), up.1)]);
    }
    for (case, framing, half) in [
        ("a length", "Content-Length: 10\r\n", "hello"),
        ("chunks", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
        ("a chunk", "Transfer-Encoding: chunked\r\n", "a\r\nhello"),
        ("the last chunk", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"),
    ] {
        for is_reset in [false, true] {
            world.hub.clear();
            let mut stream = world.open();
            let file = "Content-Type: application/octet-stream\r\n";
            stream.write_all(&world.bytes(&format!("{put}{file}{framing}\r\n{half}"))).expect("it takes a body");
            wait_until(|| world.hub.requests().iter().any(|request| request.body_length > 0));
            if is_reset {
                drop(stream);
            } else {
                stream.shutdown(Shutdown::Write).expect("our own socket");
                let outcome = read(&mut stream, 1);
                assert!(outcome.statuses.iter().all(|status| *status == 400), "{case}: {outcome:?}");
                assert_eq!(outcome.end, End::Closed, "{case}");
            }
            // The next call is made on a new connection, after the broken one has ended.
            world.send(&world.next(), 1);
            let requests = world.hub.requests();
            assert_eq!((requests.len(), requests[0].complete), (2, false), "{case}: {requests:?}");
        }
    }
}

/// FR-10: `Expect` is answered here, and only to somebody who may be let through; it does not go up, and no trailer does.
#[test]
fn expectations_and_trailers_end_here() {
    let world = World::new("");
    let target = "PUT {api}/projects/230/packages/generic/p/1.0.0/f.bin HTTP/1.1\r\nHost: localhost:8000\r\n";
    let expect = "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let go_on = world.bytes(&format!("{target}{{session}}{expect}"));
    let mut stream = world.open();
    stream.write_all(&go_on).expect("it takes a head");
    assert_eq!(read(&mut stream, 1), Outcome { statuses: vec![100], end: End::Open });
    stream.write_all(b"hello").expect("it takes a body");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("longer than nothing");
    assert_eq!(read(&mut stream, 1), Outcome { statuses: vec![201], end: End::Open });
    assert_eq!(world.hub.requests()[0].header("expect"), None);

    // Whoever does not wait to be told is not told.
    world.takes("an expectation and the body", &[&go_on[..], b"hello"].concat(), 201);

    let nothing = "GET {api}/user HTTP/1.1\r\nHost: localhost:8000\r\nExpect: 100-continue\r\n{session}\r\n";
    world.takes("an expectation of nothing", &world.bytes(nothing), 200);

    let nobody = world.bytes(&format!("{target}{FETCH}{expect}"));
    world.refuses("nobody is told to go on", &nobody, 401);

    let other = world.bytes(&format!("{target}{{session}}Expect: x\r\nContent-Length: 5\r\n\r\nhello"));
    world.takes("another expectation", &other, 201);
    assert_eq!(world.hub.requests()[0].header("expect"), None);

    for trailer in
        ["Authorization: Bearer x", "Content-Length: 9", "Cookie: a=b", "Transfer-Encoding: gzip", "Host: evil.test"]
    {
        let body = format!("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{trailer}\r\n\r\n");
        world.takes(trailer, &world.bytes(&format!("{target}{{session}}{body}")), 201);
        let request = &world.hub.requests()[0];
        let (_, value) = trailer.split_once(": ").expect("a field");
        assert!(!String::from_utf8_lossy(&request.head).contains(&format!(": {value}\r\n")), "{trailer}");
    }
}

/// FR-12.
#[test]
fn methods_that_no_app_needs_are_refused() {
    let world = World::new("");
    world.judge("FR-12");
    let long = world.bytes("GET {api}/user HTTP/1.1\r\nHost: localhost:8000\r\n{session}\r\n");
    world.takes("GET", &long, 200);
    world.refuses("a long name", &[&[b'A'; 1000][..], &long].concat(), 501);
}

/// PQ-07.
#[test]
fn a_target_is_a_path_on_this_server() {
    World::new("").judge("PQ-07");
}

/// PQ-08: and the DataHUB is told its own name.
#[test]
fn a_request_names_this_host_once() {
    let world = World::new("");
    world.judge("PQ-08");
    world.takes("our own host", &world.bytes("GET {api}/user HTTP/1.1\r\nHost: localhost:8000\r\n{session}\r\n"), 200);
    let host = world.hub.requests()[0].header_values("host");
    assert_eq!(host, [world.hub.address().to_string()]);
}

/// DS-01: just under a limit passes, just over is refused.
#[test]
fn a_head_has_limits() {
    let world = World::new("");
    let start = "GET {api}/user";
    let rest = " HTTP/1.1\r\nHost: localhost:8000\r\n{session}";
    let target = |length: usize| {
        let path = world.bytes(start).len() - "GET ?".len() + 2;
        world.bytes(&format!("{start}?{}{rest}\r\n", "a".repeat(length - path)))
    };
    let head = |length: usize| {
        let before = world.bytes(&format!("{start}{rest}X-Long: \r\n\r\n")).len();
        world.bytes(&format!("{start}{rest}X-Long: {}\r\n\r\n", "a".repeat(length - before)))
    };
    let fields = |count: usize| {
        let before = world.bytes(rest).windows(2).filter(|window| window == b"\r\n").count() - 1;
        world.bytes(&format!("{start}{rest}{}\r\n", "X-Many: 1\r\n".repeat(count - before)))
    };
    for (case, under, over, status) in [
        ("a target of 8 KiB", target(8 * 1024), target(8 * 1024 + 32), 414),
        ("a target of 30 KiB", target(8 * 1024), target(30 * 1024), 414),
        ("a head of 32 KiB", head(32 * 1024), head(32 * 1024 + 1), 431),
        ("a head of 128 KiB", head(32 * 1024), head(128 * 1024), 431),
        ("a head without an end", head(32 * 1024), head(64 * 1024 * 1024), 431),
        ("96 fields", fields(96), fields(97), 431),
        ("10,000 fields", fields(96), fields(10_000), 431),
    ] {
        world.takes(&format!("{case}, just under"), &under, 200);
        world.refuses(&format!("{case}, just over"), &over, status);
    }
    assert!(world.gateway.peak_memory() < 128 * 1024 * 1024, "{} bytes", world.gateway.peak_memory());
}

/// DS-03: later heads of a connection too, and bodies that nobody waits for.
#[test]
fn nothing_may_come_in_for_ever() {
    let world = World::new("timeouts.request_head = \"500ms\"\ntimeouts.request_body = \"500ms\"");
    let next = world.next();
    let unread =
        format!("POST {{api}}/user HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}Transfer-Encoding: chunked\r\n\r\n");
    for (case, first, slow, statuses) in [
        ("a first head", vec![], next.clone(), vec![408]),
        ("a second head", next.clone(), next.clone(), vec![404, 408]),
        ("nothing", vec![], vec![], vec![]),
        ("a body that nobody waits for", world.bytes(&unread), vec![], vec![401]),
    ] {
        let mut stream = world.open();
        stream.write_all(&first).expect("it takes a request");
        let mut writer = stream.try_clone().expect("a descriptor");
        // A byte now and then keeps no head alive.
        let drip = std::thread::spawn(move || {
            for byte in slow {
                if writer.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begun = Instant::now();
        let outcome = read(&mut stream, 3);
        assert_eq!(outcome, Outcome { statuses, end: End::Closed }, "{case}");
        let has_waited = begun.elapsed() > Duration::from_millis(400);
        // What has its answer already is not waited for.
        assert_eq!(has_waited, case != "a body that nobody waits for", "{case}");
        drop(stream);
        drip.join().expect("no panic");
    }
    // Between two requests there is more time than within one.
    let mut stream = world.open();
    for _ in 0..2 {
        stream.write_all(&next).expect("it takes a request");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("longer than nothing");
        assert_eq!(read(&mut stream, 1), Outcome { statuses: vec![404], end: End::Open });
        std::thread::sleep(Duration::from_millis(800));
    }
}

/// DS-04: a client that leaves takes its call with it, even if more than one request of it has come.
#[test]
fn who_leaves_is_noticed() {
    for more in [&b""[..], b"G", b"GET /another HTTP/1.1\r\n"] {
        let world = World::new("limits.in_flight = 1");
        world.hub.set(|behaviour| behaviour.api.answer = Answer::Hang);
        let mut stream = world.open();
        stream.write_all(&[&world.next(), more].concat()).expect("it takes a request");
        wait_until(|| !world.hub.requests().is_empty());
        drop(stream);
        world.hub.set(|behaviour| behaviour.api.answer = Answer::Normal);
        let begun = Instant::now();
        assert_eq!(world.send(&world.next(), 1).statuses, [404], "{more:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{more:?}: the DataHUB still works for nobody");
    }
}

/// DS-03: an answer that nobody reads is given up; one that somebody reads slowly is not.
#[test]
fn an_answer_is_not_offered_for_ever() {
    const LENGTH: usize = 64 * 1024 * 1024;
    let world = World::new("timeouts.idle = \"1s\"");
    let file = format!(
        "GET {{api}}/projects/230/packages/generic/blob/1.0.0/{LENGTH}.bin HTTP/1.1\r\nHost: localhost:8000\r\n{{session}}\r\n"
    );
    for (case, waits, pauses, is_whole) in [("nobody", 1, 3_000, false), ("slowly", 10, 300, true)] {
        let mut stream = world.open();
        stream.write_all(&world.bytes(&file)).expect("it takes a request");
        let (mut read, mut buffer) = (0, vec![0; LENGTH / 16]);
        for _ in 0..waits {
            std::thread::sleep(Duration::from_millis(pauses));
            read += stream.read(&mut buffer).unwrap_or_default();
        }
        while let Ok(count) = stream.read(&mut buffer) {
            read += count;
            if count == 0 || read > LENGTH {
                break;
            }
        }
        assert_eq!(read > LENGTH, is_whole, "{case}: {read} bytes");
    }
}

/// DS-05.
#[test]
fn what_stands_between_chunks_is_bounded() {
    let world = World::new("");
    let head = "PUT {api}/projects/230/packages/generic/p/1.0.0/f.bin HTTP/1.1\r\nHost: localhost:8000\r\n{session}\
        Transfer-Encoding: chunked\r\n\r\n";
    let head = world.bytes(head);
    let short = "a".repeat(200);
    let chunks = |text: &str, times: usize| text.repeat(times);
    for (case, good, bad) in [
        ("one extension", format!("5;{short}\r\nhello\r\n0\r\n\r\n"), format!("5;{}", chunks(&short, 250_000))),
        (
            "an extension for each byte",
            format!("5\r\nhello\r\n0;{short}\r\n\r\n"),
            chunks(&format!("1;{short}\r\na\r\n"), 250_000),
        ),
        (
            "one trailer",
            format!("5\r\nhello\r\n0\r\nX: {short}\r\n\r\n"),
            format!("0\r\nX: {}", chunks(&short, 250_000)),
        ),
        (
            "many trailers",
            format!("5\r\nhello\r\n0\r\nX: {short}\r\nX: {short}\r\n\r\n"),
            format!("0\r\n{}", chunks(&format!("X: {short}\r\n"), 250_000)),
        ),
    ] {
        world.takes(case, &[&head, good.as_bytes()].concat(), 201);
        world.hub.clear();
        let mut stream = world.open();
        stream.write_all(&head).expect("it takes a head");
        let sent = bad.as_bytes().chunks(64 * 1024).take_while(|piece| stream.write_all(piece).is_ok()).count() * 64;
        assert!(sent < 20 * 1024, "{case}: {sent} KiB were taken");
        let outcome = read(&mut stream, 3);
        assert!(outcome.statuses.iter().all(|status| *status == 400), "{case}: {outcome:?}");
        assert_eq!(outcome.end, End::Closed, "{case}");
        assert!(world.hub.requests().iter().all(|request| !request.complete), "{case}");
    }
    // Many small chunks are one body: a slow way to send it, but a legal one, and larger ones go up.
    world.hub.clear();
    let small = "1\r\na\r\n".repeat(100_000) + "0\r\n\r\n";
    assert_eq!(world.send(&[&head, small.as_bytes()].concat(), 1).statuses, [201]);
    assert_eq!(world.hub.requests()[0].body_length, 100_000);
}
