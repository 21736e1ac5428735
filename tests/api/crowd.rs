//! More connections than there may be, and heads that never end.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub};
use crate::wire::{Wire, exchange};

/// Held by whoever opens thousands of files, of which a process has but so many.
pub static THOUSANDS_OF_FILES: Mutex<()> = Mutex::new(());

fn request(fields: &str) -> String {
    format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n{fields}\r\n")
}

/// A connection from `127.0.0.N`.
fn from(gateway: &Gateway, number: u8) -> TcpStream {
    let address: SocketAddr = gateway.address.parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, number], 0))).expect("this machine's own");
        socket.connect(address).await.expect("it listens").into_std().expect("a socket")
    });
    stream.set_nonblocking(false).expect("a socket");
    stream
}

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("longer than nothing");
    match stream.read(&mut [0; 1024]) {
        Ok(count) => {
            assert_eq!(count, 0, "nothing is said");
            true
        }
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

fn refused(gateway: &Gateway, reason: &str) -> u64 {
    let metrics = gateway.metrics();
    let name = format!("gateway_connections_refused_total{{reason=\"{reason}\"}} ");
    let count = metrics.lines().find_map(|line| line.strip_prefix(name.as_str()));
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

#[test]
fn the_oldest_unfinished_head_of_the_address_that_has_most_makes_room() {
    let gateway = Setup::new(&[("a", &datahub())]).and("limits.connections = 20\nserver.workers = 1").start();
    let mut streams: Vec<_> = (0..20).map(|at| from(&gateway, if at < 8 { 2 } else { 3 })).collect();
    for stream in &mut streams {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: ").expect("it reads");
    }
    // Each new one is served, and costs one of those of 127.0.0.3, which has 12, until both have as many.
    let mut kept = Vec::new();
    for closed in 1..=4_u8 {
        let mut wire = Wire::open(&gateway.address);
        wire.send(request(""));
        assert_eq!(wire.answer().expect("an answer").status, 200);
        kept.push(wire);
        let all: Vec<_> = streams.iter_mut().map(is_closed).collect();
        let expected: Vec<_> = (0..20).map(|at| (8..8 + usize::from(closed)).contains(&at)).collect();
        assert_eq!(all, expected, "after {closed}");
        assert_eq!((refused(&gateway, "unfinished_head"), refused(&gateway, "full")), (u64::from(closed), 0));
    }
    // Who goes on is answered.
    let stream = streams.last_mut().expect("the last");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("longer than nothing");
    stream.write_all(b"localhost:8000\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let told = gateway.wait_for_line(|line| line["reason"] == "unfinished_head");
    assert_eq!(told["level"], "WARN");
    let told = gateway.log().iter().filter(|line| line["reason"] == "unfinished_head").count();
    assert_eq!(told, 1, "once a minute");
}

#[test]
fn without_an_unfinished_head_the_new_connection_is_closed() {
    let gateway = Setup::new(&[("a", &datahub())]).and("limits.connections = 5").start();
    let mut kept: Vec<_> = (0..5).map(|_| Wire::open(&gateway.address)).collect();
    for wire in &mut kept {
        wire.send(request(""));
        assert_eq!(wire.answer().expect("an answer").status, 200);
    }
    assert!(exchange(&gateway.address, request("Connection: close\r\n")).is_empty());
    assert_eq!((refused(&gateway, "unfinished_head"), refused(&gateway, "full")), (0, 1));
    for wire in &mut kept {
        wire.send(request(""));
        assert_eq!(wire.answer().expect("an answer").status, 200, "those that are there stay");
    }
    // A later head that has begun is an unfinished one, too.
    kept[3].send("GET /half HTT");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(exchange(&gateway.address, request("Connection: close\r\n"))[0].status, 200);
    assert!(kept[3].answer().is_none());
    assert_eq!((refused(&gateway, "unfinished_head"), refused(&gateway, "full")), (1, 1));
    // And who leaves makes room.
    drop(kept.split_off(3));
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..10 {
        assert_eq!(exchange(&gateway.address, request("Connection: close\r\n"))[0].status, 200);
    }
    assert_eq!((refused(&gateway, "unfinished_head"), refused(&gateway, "full")), (1, 1));
}

#[test]
fn an_address_that_holds_connections_makes_room_for_one_that_holds_fewer() {
    let gateway = Setup::new(&[("a", &datahub())]).and("limits.connections = 20\nserver.workers = 1").start();
    let ask = |stream: &mut TcpStream| {
        stream.write_all(request("").as_bytes()).expect("it reads");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("longer than nothing");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
        while stream.read(&mut [0; 4096]).expect("the rest of it") == 4096 {}
    };
    let mut held: Vec<_> = (0..20).map(|_| from(&gateway, 2)).collect();
    held.iter_mut().for_each(ask);
    let mut others: Vec<_> = (0..10).map(|_| from(&gateway, 3)).collect();
    others.iter_mut().for_each(ask);
    let closed: Vec<_> = held.iter_mut().map(is_closed).collect();
    assert_eq!(closed, [[true; 10], [false; 10]].concat(), "the oldest ones");
    assert_eq!((refused(&gateway, "idle"), refused(&gateway, "full")), (10, 0));
    // Now both have as many, and neither gets one of the other's.
    assert!([2, 3].iter().all(|number| is_closed(&mut from(&gateway, *number))));
    assert_eq!((refused(&gateway, "idle"), refused(&gateway, "full")), (10, 2));
    held[10..].iter_mut().chain(&mut others).for_each(ask);
    let told = gateway.wait_for_line(|line| line["reason"] == "idle");
    assert_eq!(told["level"], "WARN");
}

/// As many as the issue saw, or as many as this machine lets a process open.
#[test]
fn fifteen_thousand_half_sent_heads_take_less_than_256_mib() {
    let _files = THOUSANDS_OF_FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    let setup = Setup::new(&[("a", &datahub())]).and("server.workers = 2").quiet();
    let gateway = setup.listening_at(&format!("unix:{}", path.display())).start();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = 15_000.min(files.saturating_sub(2_000));
    let half = format!("GET / HTTP/1.1\r\nHost: localhost:8000\r\nA: {}", "x".repeat(30_000));
    let begun = Instant::now();
    let mut streams = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let open = |_| {
                        let mut stream = UnixStream::connect(&path).expect("it listens");
                        // One that is closed meanwhile takes no more.
                        let _ = stream.write_all(half.as_bytes());
                        stream
                    };
                    (0..count / 4).map(open).collect::<Vec<_>>()
                })
            })
            .collect();
        streams = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    });
    let took = begun.elapsed();
    let mut honest = UnixStream::connect(&path).expect("it listens");
    honest.write_all(request("Connection: close\r\n").as_bytes()).expect("it reads");
    let mut answer = String::new();
    honest.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (peak, closed) = (gateway.peak_memory() >> 20, refused(&gateway, "unfinished_head"));
    let _ =
        writeln!(std::io::stderr(), "{} half heads in {took:.1?}: {peak} MiB at most, {closed} closed", streams.len());
    assert!(peak < 256, "{peak} MiB");
    assert!(closed + 10_000 >= streams.len() as u64, "{closed} closed of {}", streams.len());
}

/// As many as an attacker tried, or as this machine lets a process open: bodies for our own routes, one of which would read them,
/// and forms that are looked through.
#[test]
fn nine_thousand_half_sent_bodies_take_less_than_256_mib() {
    let _files = THOUSANDS_OF_FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("server.workers = 2").quiet().start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let count = 9_000.min(files.saturating_sub(2_000));
    let post = |line: &str, fields: &str| {
        let fields = format!("Host: localhost:8000\r\n{FETCH}{}{fields}", browser.cookie_field());
        format!("{line} HTTP/1.1\r\n{fields}Content-Length: 65536\r\n\r\n{}", "x".repeat(65_000))
    };
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let halves = [
        post(&format!("POST {BASE}/auth/session"), ""),
        post(&format!("PUT {BASE}/auth/addPAT"), "Content-Type: application/json\r\n"),
        post(&format!("POST {BASE}/datahubs/a/api/v4/projects/230/issues"), form),
    ];
    let begun = Instant::now();
    let mut streams = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let open = |(_, half): (u64, &String)| {
                        let mut stream = TcpStream::connect(&gateway.address).expect("it listens");
                        // One that is closed meanwhile takes no more.
                        let _ = stream.write_all(half.as_bytes());
                        stream
                    };
                    (0..count / 3).zip(halves.iter().cycle()).map(open).collect::<Vec<_>>()
                })
            })
            .collect();
        streams = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    });
    let took = begun.elapsed();
    // Who sends a whole one is answered meanwhile, and so is the youngest of them, which comes to its end.
    let honest = browser.send(
        &gateway,
        "POST",
        &format!("{BASE}/datahubs/a/api/v4/projects/230/issues"),
        &format!("{FETCH}{form}Content-Length: 3\r\n"),
        b"a=b",
    );
    assert_eq!(honest.status, 400, "GitLab's own answer");
    let mut last = TcpStream::connect(&gateway.address).expect("it listens");
    last.write_all(halves[2].as_bytes()).expect("it reads");
    last.set_read_timeout(Some(Duration::from_secs(10))).expect("longer than nothing");
    last.write_all(&[b'x'; 536]).expect("it reads");
    let mut answer = [0; 12];
    last.read_exact(&mut answer).expect("it answers");
    assert_eq!(answer, *b"HTTP/1.1 400", "GitLab's own answer");
    let (peak, closed) = (gateway.peak_memory() >> 20, refused(&gateway, "unfinished_body"));
    let _ =
        writeln!(std::io::stderr(), "{} half bodies in {took:.1?}: {peak} MiB at most, {closed} closed", streams.len());
    assert!(peak < 256, "{peak} MiB");
    assert!(closed > 0 && closed + 1_000 < count, "{closed} closed of {count}");
    let line = gateway.wait_for_line(|line| line["code"] == "displaced");
    assert_eq!((&line["status"], &line["bytes_out"]), (&499.into(), &0.into()), "{line}");
    let told = gateway.wait_for_line(|line| line["reason"] == "unfinished_body");
    assert_eq!(told["level"], "WARN");
}
