//! Heads and bodies that come in pieces: how they arrive changes nothing, and nobody reads far ahead of who takes them.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use datahub::DataHub;

use crate::browser::{Browser, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Gateway, Setup, datahub};
use crate::wire::{Wire, summary};

struct World {
    hub: DataHub,
    gateway: Gateway,
    session: String,
}

impl World {
    fn new(lines: &str) -> Self {
        Self::before(datahub(), lines)
    }

    fn before(hub: DataHub, lines: &str) -> Self {
        let gateway = Setup::new(&[("a", &hub)]).and(lines).start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        hub.clear();
        let session = format!("Host: localhost:8000\r\n{FETCH}{}", browser.cookie_field());
        Self { hub, gateway, session }
    }

    /// A request of somebody who is logged in; `rest` are further fields, the empty line and a body.
    fn request(&self, line: &str, rest: &str) -> String {
        let line = line.replace("{api}", &format!("{BASE}/datahubs/a/api/v4")).replace("{base}", BASE);
        format!("{line} HTTP/1.1\r\n{}{rest}", self.session)
    }
}

const UPLOAD: &str = "PUT {api}/projects/230/packages/generic/p/1.0.0/f.bin";

/// FR-07, FR-09.
#[test]
fn a_request_is_the_same_however_it_arrives() {
    let world = World::new("");
    let close = "Connection: close\r\n";
    for (line, rest, expected) in [
        ("GET {base}/datahubs", "\r\n", &["200"][..]),
        ("GET {api}/user", "\r\n", &["200"]),
        (UPLOAD, "Content-Length: 5\r\n\r\nhello", &["201"]),
        (UPLOAD, "Transfer-Encoding: chunked\r\n\r\n4;a=b\r\nhell\r\n1\r\no\r\n0\r\nX: y\r\n\r\n", &["201"]),
        ("\r\nGET {base}/datahubs", "\r\n", &["200"]),
        ("GET {base}/datahubs", "X: \r", &["400 bad_request"]),
        ("GET {base}/\u{1}", "\r\n", &["400 bad_request_target"]),
        (UPLOAD, "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n", &["400 bad_request"]),
    ] {
        let bytes = world.request(line, &format!("{close}{rest}"));
        for size in [1, 2, 3, 7, 50, bytes.len()] {
            world.hub.clear();
            let mut wire = Wire::open(&world.gateway.address);
            let after = if rest == "X: \r" { "x" } else { "" };
            for (at, piece) in (bytes.clone() + after).as_bytes().chunks(size).enumerate() {
                wire.send(piece);
                if at % 40 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            // A bare line feed after a chunk is noticed with what follows.
            wire.send("0\r\n\r\n");
            let answers: Vec<_> = wire.rest().iter().map(summary).collect();
            assert_eq!(answers, expected, "{line} {rest}, in pieces of {size}");
            let bodies: Vec<_> = world.hub.requests().iter().map(|request| request.complete).collect();
            assert_eq!(bodies.contains(&false), line == UPLOAD && expected != ["201"] && !bodies.is_empty(), "{rest}");
            if expected == ["201"] {
                assert_eq!(world.hub.requests()[0].body, b"hello", "{rest}, in pieces of {size}");
            }
        }
    }
}

/// DS-03: it is the next piece that must come in time, not the whole.
#[test]
fn a_body_may_come_slowly() {
    let world = World::new("timeouts.request_body = \"600ms\"");
    let mut wire = Wire::open(&world.gateway.address);
    wire.send(world.request(UPLOAD, "Content-Length: 8\r\n\r\n"));
    for byte in b"slowly, " {
        std::thread::sleep(Duration::from_millis(250));
        wire.send([*byte]);
    }
    assert_eq!(summary(&wire.answer().expect("an answer")), "201");
    wire.send(world.request(UPLOAD, "Content-Length: 8\r\n\r\nhalf"));
    let begun = Instant::now();
    assert_eq!(summary(&wire.answer().expect("an answer")), "408 request_timeout");
    assert!(begun.elapsed() > Duration::from_millis(500) && begun.elapsed() < Duration::from_secs(3));
    assert!(wire.answer().is_none(), "it ends");
}

/// DS-05: by its length, or when so much has come.
#[test]
fn a_body_has_a_limit_however_it_is_framed() {
    let world = World::new("limits.body = \"20KiB\"");
    for length in [20 * 1024, 20 * 1024 + 1] {
        let body = "x".repeat(length);
        for framing in [
            format!("Content-Length: {length}\r\n\r\n{body}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
            format!("Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", "1\r\nx\r\n".repeat(length)),
        ] {
            world.hub.clear();
            let bytes = world.request(UPLOAD, &format!("Connection: close\r\n{framing}"));
            let mut wire = Wire::open(&world.gateway.address);
            wire.send(bytes);
            let answer = wire.answer().expect("an answer");
            let is_good = length == 20 * 1024;
            assert_eq!(summary(&answer), if is_good { "201" } else { "413 body_too_large" }, "{framing:.40}");
            assert!(wire.answer().is_none(), "{framing:.40}: it ends");
            assert_eq!(world.hub.requests().iter().any(|request| request.complete), is_good, "{framing:.40}");
        }
    }
}

/// FR-03, RFC 9110 section 9.3: where a body means nothing there must be none.
#[test]
fn a_body_goes_with_methods_that_have_one() {
    let world = World::new("");
    for framing in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        for (method, is_taken) in [
            ("GET", false),
            ("HEAD", false),
            ("OPTIONS", false),
            ("POST", true),
            ("PUT", true),
            ("PATCH", true),
            ("DELETE", true),
        ] {
            world.hub.clear();
            let bytes = world.request(&format!("{method} {{api}}/nothing"), &format!("Connection: close\r\n{framing}"));
            let mut wire = Wire::open(&world.gateway.address);
            wire.send(bytes);
            let answer = if method == "HEAD" { wire.head() } else { wire.answer() }.expect("an answer");
            assert_eq!(answer.status, if is_taken { 404 } else { 400 }, "{method}");
            let bodies: Vec<_> = world.hub.requests().into_iter().map(|request| request.body).collect();
            assert_eq!(bodies, if is_taken { vec![b"hello".to_vec()] } else { vec![] }, "{method}");
        }
    }
}

/// DS-05: 32 KiB ahead of whoever takes it, and what the network holds.
#[test]
fn a_body_that_the_datahub_does_not_take_waits() {
    let hub = datahub();
    let far =
        far_end::before(hub.address(), |_: &mut BufReader<TcpStream>, _| std::thread::sleep(Duration::from_secs(3)));
    let lines = format!("datahubs.a.connect = \"{far}\"\nserver.shutdown_timeout = \"1s\"");
    let world = World::before(hub, &lines);
    let mut stream = TcpStream::connect(&world.gateway.address).expect("it listens");
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("longer than nothing");
    let head =
        world.request("PUT {api}/own", "Content-Type: application/octet-stream\r\nContent-Length: 99999999\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it takes a head");
    let before = world.gateway.peak_memory();
    let piece = vec![0; 64 * 1024];
    let count = (0..1_500).take_while(|_| stream.write_all(&piece).is_ok()).count();
    assert!(count < 400, "{count} pieces of 64 KiB were taken");
    let more = world.gateway.peak_memory() - before;
    assert!(more < 2 * 1024 * 1024, "{more} bytes");
}

/// FR-08: of a body that nobody wants 8 MiB are heard, so that the answer is heard, too.
#[test]
fn a_body_that_nobody_wants_is_heard_for_a_while() {
    let world = World::new("");
    let head = world.request("POST {base}/nothing", "Content-Length: 99999999\r\n\r\n");
    let piece = vec![0; 64 * 1024];
    // Whoever sends no more than that finds the answer, and no reset.
    let mut wire = Wire::open(&world.gateway.address);
    wire.send(&head);
    (0..100).for_each(|_| wire.send(&piece));
    assert_eq!(summary(&wire.answer().expect("an answer")), "404 not_found");
    let mut wire = Wire::open(&world.gateway.address);
    wire.send(&head);
    let count = (0..1_500).take_while(|_| wire.try_send(&piece)).count();
    assert!((128..500).contains(&count), "{count} pieces of 64 KiB were taken");
}
