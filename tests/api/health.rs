//! Whether the process is of use to anybody: what operators, containers and systemd are told when it is not.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::thread;
use std::time::{Duration, Instant};

use crate::gateway::{Folder, Gateway, Setup, datahub, run, wait_until};
use crate::panics::{get, world_with};
use crate::wire::{Wire, exchange};

/// What `/healthz` says, and how long that took.
fn asked(gateway: &Gateway) -> (u16, String, Duration) {
    let line = gateway.wait_for_line(|line| line["message"] == "operators may ask");
    let begun = Instant::now();
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(line["listen"].as_str().expect("a text"), request).remove(0);
    (answer.status, answer.text(), begun.elapsed())
}

#[test]
fn a_worker_that_is_stuck_is_no_healthy_process() {
    let gateway = world_with("server.workers = 2", |_| {});
    wait_until(|| asked(&gateway).0 == 200);
    let mut stuck = Wire::open(&gateway.address);
    stuck.send(get("/stuck"));
    thread::sleep(Duration::from_millis(100));
    let (status, text, took) = asked(&gateway);
    assert_eq!((status, text.as_str()), (503, "1 of 2 workers answered\n"));
    assert!((1_800..3_000).contains(&took.as_millis()), "{took:?}");
    // Once it goes on, all is well.
    assert_eq!(stuck.answer().expect("an answer").status, 200);
    let (status, text, took) = asked(&gateway);
    assert_eq!((status, text.as_str()), (200, "alive\n"));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_watchdog_hears_nothing_while_a_worker_is_stuck() {
    let folder = Folder::default();
    let path = folder.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).expect("a path of our own");
    let gateway = world_with("server.workers = 2", |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    let hear = |limit: Duration| {
        manager.set_read_timeout(Some(limit)).expect("longer than nothing");
        let mut buffer = [0; 1024];
        manager.recv(&mut buffer).ok().map(|count| String::from_utf8_lossy(&buffer[..count]).into_owned())
    };
    assert!(hear(Duration::from_secs(10)).expect("it is told").contains("READY=1"));
    for _ in 0..3 {
        assert_eq!(hear(Duration::from_secs(5)).as_deref(), Some("WATCHDOG=1"));
    }
    let mut stuck = Wire::open(&gateway.address);
    stuck.send(get("/stuck"));
    thread::sleep(Duration::from_millis(500));
    while hear(Duration::from_millis(1)).is_some() {}
    assert_eq!(hear(Duration::from_secs(1)), None, "nothing while it is stuck");
    assert_eq!(hear(Duration::from_secs(3)).as_deref(), Some("STATUS=1 of 2 workers answered"));
    assert_eq!(stuck.answer().expect("an answer").status, 200);
    assert_eq!(hear(Duration::from_secs(5)).as_deref(), Some("WATCHDOG=1"));
    let line = gateway.wait_for_line(|line| line["level"] == "ERROR" && line["reason"] == "1 of 2 workers answered");
    assert!(line["message"].as_str().is_some_and(|message| message.contains("watchdog")), "{line}");
}

/// **Seen**: exit 78 in a container whose configuration is a file.
#[test]
fn health_needs_no_more_than_to_know_where_to_ask() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let line = gateway.wait_for_line(|line| line["message"] == "operators may ask");
    let address = line["listen"].as_str().expect("a text").to_owned();
    let port = address.rsplit_once(':').expect("a port").1;
    let (folder, variable) = (Folder::default(), "GATEWAY__ADMIN__LISTEN");
    let file = |text: &str| folder.file("gateway.toml", text).to_str().expect("a plain path").to_owned();
    let with_file = |text: &str| run(&["health", "--config", &file(text)], &[]);
    let with_variable = |text: &str| run(&["health"], &[(variable, text)]);
    for (case, output) in [
        ("a file", with_file(&format!("admin.listen = {address:?}"))),
        ("a file with faults", with_file(&format!("admin = {{ listen = {address:?}, typo = 1 }}\ndatahubs = 7"))),
        ("a variable", with_variable(&address)),
        ("a variable beside a file that is missing", run(&["health", "--config", "/nowhere"], &[(variable, &address)])),
        ("all addresses", with_variable(&format!("0.0.0.0:{port}"))),
        ("a name", with_variable(&format!("localhost:{port}"))),
    ] {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{case}: {told}");
    }
    for (case, output, code) in [
        ("admin.listen is wrong", with_file("admin.listen = \"canary\""), 78),
        ("in a variable", with_variable("canary"), 78),
        ("no TOML", with_file("admin.listen = \"127.0.0.1"), 78),
        ("admin.listen 127.0.0.1:1: no answer", with_variable("127.0.0.1:1"), 1),
        ("admin.listen unix:/nowhere/at/all: no answer", with_variable("unix:/nowhere/at/all"), 1),
        ("nobody is to be there", with_variable("none"), 1),
    ] {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{case}: {told}");
        assert!(!told.is_empty() && !told.contains("canary"), "{case}: {told}");
        assert!(!case.ends_with("no answer") || told.starts_with(case), "{told}");
    }
}

#[test]
fn health_asks_at_all_addresses_of_either_family() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _ = stream.read(&mut [0; 1024]);
    });
    let output = run(&["health"], &[("GATEWAY__ADMIN__LISTEN", &format!("[::]:{port}"))]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Who answers there, how, and the exit status.
type Row = (&'static str, fn(TcpStream), i32);

/// Whatever answers there, or does not, costs three seconds at most.
#[test]
fn health_waits_for_no_more_than_its_limit() {
    let rows: [Row; 7] = [
        ("alive", |mut it| drop(it.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nalive\n")), 0),
        ("not alive", |mut it| drop(it.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n1 of 2 workers\n")), 1),
        ("nothing", |it| drop(it), 1),
        ("no HTTP", |mut it| drop(it.write_all(b"220 canary ESMTP\r\n")), 1),
        ("silence", |_it| thread::sleep(Duration::from_secs(6)), 1),
        (
            "a byte now and then",
            |mut it| {
                for byte in b"HTTP/1.1 200 OK\r\n\r\n".iter().cycle().take(60) {
                    let _ = it.write_all(&[*byte]);
                    thread::sleep(Duration::from_millis(100));
                }
            },
            1,
        ),
        (
            "an answer without end",
            |mut it| {
                let _ = it.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                while it.write_all(&[b'x'; 4096]).is_ok() {}
            },
            1,
        ),
    ];
    thread::scope(|scope| {
        for (case, answer, code) in rows {
            scope.spawn(move || {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
                let address = listener.local_addr().expect("it is bound").to_string();
                thread::spawn(move || {
                    let (mut stream, _) = listener.accept().expect("somebody");
                    let _ = stream.read(&mut [0; 1024]);
                    answer(stream);
                });
                let begun = Instant::now();
                let output = run(&["health"], &[("GATEWAY__ADMIN__LISTEN", &address)]);
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(code), "{case}: {told}");
                assert!(begun.elapsed() < Duration::from_secs(5), "{case}: {:?}", begun.elapsed());
                assert!(code == 0 || told.starts_with(&format!("admin.listen {address}: ")), "{case}: {told}");
                if case == "not alive" {
                    assert!(told.contains("503") && told.contains("1 of 2 workers"), "{told}");
                }
            });
        }
        // A socket that takes no connection.
        scope.spawn(|| {
            let folder = Folder::default();
            let path = folder.path().join("busy.sock");
            let _busy = UnixListener::bind(&path).expect("a path of our own");
            let begun = Instant::now();
            let place = format!("unix:{}", path.display());
            assert_eq!(run(&["health"], &[("GATEWAY__ADMIN__LISTEN", &place)]).status.code(), Some(1));
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        });
    });
}
