//! Long bodies, slow bodies, and bodies that break off.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use datahub::behaviour::{Answer as Manner, Manner as Way};
use sha2::{Digest, Sha256};

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Setup, datahub};

/// What is sent and fetched, in bytes: a gibibyte in `make long`.
fn long() -> u64 {
    if std::env::var_os("LONG").is_some() { 1 << 30 } else { 256 << 20 }
}

const MOST_MEMORY: u64 = 32 << 20;

#[test]
fn a_long_upload_takes_no_memory_and_arrives_whole() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let before = gateway.peak_memory();
    let piece: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let pieces = long() >> 20;
    for framing in [format!("Content-Length: {}\r\n", long()), "Transfer-Encoding: chunked\r\n".to_owned()] {
        hub.clear();
        let target = format!("{BASE}/datahubs/a/api/v4/projects/230/packages/generic/p/1.0.0/long.bin");
        let mut connection = browser.begin(&gateway, "PUT", &target, &format!("{FETCH}{framing}"));
        let mut hash = Sha256::new();
        for _ in 0..pieces {
            hash.update(&piece);
            if framing.starts_with("Content") {
                connection.write(&piece);
            } else {
                connection.write(format!("{:x}\r\n", piece.len()).as_bytes());
                connection.write(&piece);
                connection.write(b"\r\n");
            }
        }
        if framing.starts_with("Transfer") {
            connection.write(b"0\r\n\r\n");
        }
        assert_eq!(connection.answer(true).status, 201, "{framing}");
        let upload = hub.requests().pop().expect("an upload");
        let sent: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((upload.body_length, upload.body_sha256()), (long(), sent), "{framing}");
    }
    let added = gateway.peak_memory() - before;
    assert!(added < MOST_MEMORY, "{added} bytes of memory");
}

#[test]
fn a_long_download_takes_no_memory_and_arrives_whole() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let before = gateway.peak_memory();
    let target = format!("{BASE}/datahubs/a/api/v4/projects/230/packages/generic/blob/1.0.0/{}.bin", long());
    let mut connection = browser.begin(&gateway, "GET", &target, FETCH);
    let answer = connection.head();
    assert_eq!((answer.status, answer.header("content-length")), (200, Some(long().to_string())));
    // The byte at `i` is `i % 251`: read modulo 251 it is a straight line.
    let (mut at, mut is_right) = (0_u64, true);
    connection
        .body_into(&answer, |piece| {
            let first = u8::try_from(at % 251).expect("below 251");
            is_right &= piece.iter().zip((0..251).cycle().skip(first.into())).all(|(byte, expected)| *byte == expected);
            at += piece.len() as u64;
        })
        .expect("a whole body");
    assert!(is_right && at == long(), "{at} bytes");
    let added = gateway.peak_memory() - before;
    assert!(added < MOST_MEMORY, "{added} bytes of memory");
}

#[test]
fn a_reader_that_stops_stops_the_datahub_too() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let before = gateway.peak_memory();
    let target = format!("{BASE}/datahubs/a/api/v4/projects/230/packages/generic/blob/1.0.0/{}.bin", 1_u64 << 30);
    let connections: Vec<_> = (0..10).map(|_| browser.begin(&gateway, "GET", &target, FETCH)).collect();
    std::thread::sleep(std::time::Duration::from_millis(700));
    let added = gateway.peak_memory() - before;
    assert!(added < MOST_MEMORY, "{added} bytes of memory for ten readers that do not read");
    drop(connections);
}

#[test]
fn what_drips_arrives_drop_by_drop() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let mut connection =
        browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/projects/230/jobs/9/trace"), FETCH);
    let answer = connection.head();
    assert_eq!(answer.status, 200);
    let started = Instant::now();
    let mut came = Vec::new();
    while !connection.chunk().expect("a chunk").is_empty() {
        came.push(started.elapsed());
    }
    let (first, last) = (came[0], came[came.len() - 1]);
    assert!(
        came.len() > 5 && last.checked_sub(first).unwrap() > std::time::Duration::from_secs(1),
        "all at once: {came:?}"
    );
}

#[test]
fn an_archive_of_unknown_length_arrives_whole() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let answer = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/projects/230/repository/archive.tar.gz?sha=main");
    assert_eq!((answer.status, &answer.body[..2]), (200, &[0x1f, 0x8b][..]));
    assert!(answer.header("content-disposition").expect("one").starts_with("attachment"));
}

/// A browser sends a call again if its connection closes before a byte has come, a POST too. So the head of an answer goes
/// down as soon as it is there, whatever becomes of the rest.
#[test]
fn the_head_of_an_answer_arrives_though_nothing_follows() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let target = format!("{BASE}/datahubs/a/api/v4/projects/230/issues");
    for (method, length) in [("POST", "Content-Length: 2\r\n"), ("GET", "")] {
        for (case, status, raw) in [
            ("a length", 201, "HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\n"),
            ("chunks", 201, "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"),
            ("a half chunk", 201, "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf"),
            ("an error", 500, "HTTP/1.1 500 Oh\r\nContent-Length: 10\r\n\r\n"),
            ("a 401 of the app's own", 401, "HTTP/1.1 401 No\r\nContent-Length: 10\r\n\r\nhalf"),
        ] {
            hub.clear();
            hub.set(|behaviour| {
                behaviour.by_path =
                    vec![("/api/v4/projects", Way { answer: Manner::Raw(raw.as_bytes().to_vec()), ..Way::default() })];
            });
            for _ in 0..20 {
                let fields = format!("{FETCH}Content-Type: application/json\r\n{length}");
                let mut connection = browser.begin(&gateway, method, &target, &fields);
                connection.write(if method == "POST" { b"{}" } else { b"" });
                let answer = connection.head();
                assert_eq!((answer.status, connection.body(&answer).is_err()), (status, true), "{method}, {case}");
            }
            let calls = hub.requests().iter().filter(|request| request.path().ends_with("/issues")).count();
            assert_eq!(calls, 20, "{method}, {case}");
        }
    }
}

/// FR-09, PR-10.
#[test]
fn what_breaks_off_is_never_taken_for_whole() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    for (case, raw) in [
        ("a body with a length", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        ("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nhalf"),
        ("a chunk's size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n"),
    ] {
        hub.set(|behaviour| behaviour.api.answer = Manner::Raw(raw.as_bytes().to_vec()));
        let mut connection = browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), FETCH);
        let answer = connection.head();
        assert_eq!((answer.status, connection.body(&answer).is_err()), (200, true), "{case}");
    }
    // An older client takes the end of the connection for the end of the body: it gets none.
    let older = format!(
        "GET {BASE}/datahubs/a/api/v4/user HTTP/1.0\r\nHost: localhost:8000\r\n{FETCH}{}\r\n",
        browser.cookie_field()
    );
    for (chunks, is_whole) in [("4\r\nhalf\r\n", false), ("4\r\nhalf\r\n0\r\n\r\n", true)] {
        let raw = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        hub.set(|behaviour| behaviour.api.answer = Manner::Raw(raw.into_bytes()));
        let mut stream = TcpStream::connect(&gateway.address).expect("it listens");
        stream.write_all(older.as_bytes()).expect("it takes a request");
        let end = stream.read_to_end(&mut Vec::new());
        assert_eq!(end.as_ref().err().map(Error::kind), (!is_whole).then_some(ErrorKind::ConnectionReset), "{end:?}");
    }
    hub.set(|behaviour| behaviour.api.answer = Manner::Normal);
    // And the other way: an upload whose sender leaves does not look finished to the DataHUB.
    hub.clear();
    let target = format!("{BASE}/datahubs/a/api/v4/projects/230/packages/generic/p/1.0.0/half.bin");
    for framing in ["Content-Length: 100000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let fields = format!("{FETCH}Content-Type: application/octet-stream\r\n{framing}");
        let mut connection = browser.begin(&gateway, "PUT", &target, &fields);
        connection.write(b"5\r\nhello\r\n");
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(connection);
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    let uploads = hub.requests();
    assert_eq!((uploads.len(), uploads.iter().filter(|upload| upload.complete).count()), (2, 0));
}
