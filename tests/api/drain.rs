//! How a process ends: what is under way is finished, kept connections learn it from their last answer, others take over.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datahub::behaviour::Answer as Manner;

use crate::browser::{Browser, Connection, FETCH};
use crate::gateway::{BASE, Gateway, Setup, binary, datahub, signal};
use crate::wire::{Wire, exchange, summary};

fn request() -> String {
    format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n\r\n")
}

fn readiness(gateway: &Gateway) -> u16 {
    let line = gateway.wait_for_line(|line| line["message"] == "operators may ask");
    let bytes = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    exchange(line["listen"].as_str().expect("a text"), bytes)[0].status
}

/// A gateway on a socket that somebody else made and passes on, as systemd does; the socket stays open here.
fn with_a_passed_socket(setup: &Setup) -> (Gateway, TcpListener) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    (on_a_passed_socket(setup, &socket), socket)
}

/// Another one on the same socket.
pub fn on_a_passed_socket(setup: &Setup, socket: &TcpListener) -> Gateway {
    let passed = OwnedFd::from(socket.try_clone().expect("a descriptor"));
    let mut command = Command::new("/bin/sh");
    let script = "exec 3<&0; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" --config \"$GATEWAY_OF_A_TEST\" </dev/null";
    command.env_clear().args(["-c", script]).arg(binary()).stdin(Stdio::from(passed));
    setup.start_as(command)
}

/// Four processes on one socket are replaced one after the other, while clients call: over connections of one call, over kept
/// ones, and with uploads that are longer than the change of a process. Nobody is refused, and nothing is cut off.
#[test]
fn a_rolling_restart_of_four_processes_loses_no_call() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]).and("server.workers = 1").quiet();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound").to_string();
    let mut gateways: Vec<_> = (0..4).map(|_| on_a_passed_socket(&setup, &socket)).collect();
    let browser = Browser::default();
    browser.log_in(&gateways[0], "a", &hub, "testuser");
    let fields = format!("Host: localhost:8000\r\n{FETCH}{}", browser.cookie_field());
    let call = format!("GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\n{fields}\r\n");
    let last = format!("GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\nConnection: close\r\n{fields}\r\n");
    let upload = format!(
        "PUT {BASE}/datahubs/a/api/v4/projects/230/packages/generic/p/1/f.bin HTTP/1.1\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: 10\r\nConnection: close\r\n{fields}\r\n"
    );
    let (is_over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let done = |status: u16, expected: u16, what: &str| {
        assert_eq!(status, expected, "{what}");
        calls.fetch_add(1, Ordering::Relaxed);
    };
    let goes_on = || !is_over.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while goes_on() {
                    done(exchange(&address, &last).pop().expect("an answer").status, 200, "a connection of its own");
                }
            });
            scope.spawn(|| {
                while goes_on() {
                    let mut wire = Wire::open(&address);
                    let mut is_kept = true;
                    while is_kept && goes_on() {
                        wire.send(&call);
                        let answer = wire.answer().expect("an answer, since the one before did not say close");
                        is_kept = answer.header("connection").is_none();
                        done(answer.status, 200, "a kept connection");
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            });
            scope.spawn(|| {
                while goes_on() {
                    let mut wire = Wire::open(&address);
                    wire.send(&upload);
                    for _ in 0..10 {
                        wire.send("x");
                        std::thread::sleep(Duration::from_millis(60));
                    }
                    done(wire.answer().expect("an answer").status, 201, "an upload");
                }
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        for gateway in &mut gateways {
            gateway.terminate();
            assert!(gateway.wait_for_end().expect("it ends").success());
            *gateway = on_a_passed_socket(&setup, &socket);
        }
        std::thread::sleep(Duration::from_millis(300));
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(calls.load(Ordering::Relaxed) > 200, "that was no load: {calls:?}");
}

/// A gateway is there for whoever needs no DataHUB while all of them are away, and for the others as soon as one is back.
#[test]
fn a_start_does_not_wait_for_a_datahub() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]).at(hub.url(), "http://127.0.0.1:1");
    let begun = Instant::now();
    let gateway = setup.start();
    assert_eq!(readiness(&gateway), 200);
    let mut wire = Wire::open(&gateway.address);
    wire.send(request());
    assert_eq!(wire.answer().expect("an answer").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let answer = Browser::default().navigate(&gateway, &format!("{BASE}/auth/login?datahub=a"));
    assert!(answer.location().contains("login_error=unavailable"), "{}", answer.head);
}

/// The half that had not come is waited for, and taken.
#[test]
fn an_upload_under_way_is_finished_before_the_end() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let fields = format!("Host: localhost:8000\r\n{FETCH}{}", browser.cookie_field());
    let mut wire = Wire::open(&gateway.address);
    wire.send(format!(
        "PUT {BASE}/datahubs/a/api/v4/projects/230/packages/generic/p/1/f.bin HTTP/1.1\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: 200000\r\n{fields}\r\n"
    ));
    wire.send(vec![b'x'; 100_000]);
    std::thread::sleep(Duration::from_millis(100));
    gateway.terminate();
    gateway.wait_for_line(|line| line["message"] == "ending");
    std::thread::sleep(Duration::from_millis(1_500));
    wire.send(vec![b'x'; 100_000]);
    let answer = wire.answer().expect("an answer");
    assert_eq!((answer.status, answer.header("connection").as_deref()), (201, Some("close")), "{}", answer.text());
    assert_eq!(answer.json()["size"], 200_000);
    assert!(gateway.wait_for_end().expect("it ends").success());
}

/// The socket's other holder gets what comes from the end's beginning on; who is connected already is served.
#[test]
fn a_passed_socket_is_left_to_others() {
    let (mut gateway, socket) = with_a_passed_socket(&Setup::new(&[("a", &datahub())]));
    let address = socket.local_addr().expect("it is bound").to_string();
    assert_eq!(gateway.address, address, "it serves on the socket that it was passed");
    let mut kept = Wire::open(&address);
    kept.send(request());
    assert_eq!(kept.answer().expect("an answer").header("connection"), None);
    gateway.terminate();
    gateway.wait_for_line(|line| line["message"] == "ending");
    std::thread::sleep(Duration::from_millis(200));
    // Nobody takes it but us.
    socket.set_nonblocking(true).expect("a socket");
    let _late = TcpStream::connect(&address).expect("the socket is there");
    std::thread::sleep(Duration::from_millis(50));
    assert!(socket.accept().is_ok(), "it is left to others");
    kept.send(request());
    assert_eq!(kept.answer().expect("an answer").header("connection").as_deref(), Some("close"));
    assert!(kept.answer().is_none());
    assert!(gateway.wait_for_end().expect("it ends").success());
}

/// Its own socket is served for as long as somebody is connected, for a second at most: whoever comes hears that it ends.
#[test]
fn every_answer_at_the_end_is_the_last_on_its_connection() {
    let hub = datahub();
    let folder = crate::gateway::Folder::default();
    folder.file("index.html", "the app");
    let dir = folder.path().to_str().expect("a plain path");
    let mut gateway = Setup::new(&[("a", &hub)]).and(&format!("app.dir = {dir:?}")).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(readiness(&gateway), 200);
    let fields = format!("Host: localhost:8000\r\n{FETCH}{}\r\n", browser.cookie_field());
    let targets = [
        ("GET {base}/datahubs", "200"),
        ("GET {base}/datahubs/a/api/v4/user", "200"),
        ("GET {base}/nothing", "404 not_found"),
        ("GET /arcmanager/app/", "200"),
        ("POST {base}/auth/logout?datahub=x", "404 unknown_datahub"),
    ];
    let mut wires: Vec<_> = targets.iter().map(|_| Wire::open(&gateway.address)).collect();
    for wire in &mut wires {
        wire.send(request());
        assert_eq!(wire.answer().expect("an answer").header("connection"), None);
    }
    gateway.terminate();
    gateway.wait_for_line(|line| line["message"] == "ending");
    assert_eq!(readiness(&gateway), 503);
    for (wire, (line, expected)) in wires.iter_mut().zip(targets) {
        // What comes behind has no answer.
        let all = format!("{} HTTP/1.1\r\n{fields}", line.replace("{base}", BASE)) + &request();
        wire.send(&all);
        let answer = wire.answer().expect("an answer");
        let says = answer.header("connection");
        assert_eq!((summary(&answer).as_str(), says.as_deref()), (expected, Some("close")), "{line}");
        assert!(wire.answer().is_none(), "{line}");
    }
    assert!(gateway.wait_for_end().expect("it ends").success());
}

/// A call that was under way before is no other.
#[test]
fn a_call_under_way_is_the_last_on_its_connection() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.set(|behaviour| behaviour.api.delay = Duration::from_millis(500));
    let fields = format!("Host: localhost:8000\r\n{FETCH}{}\r\n", browser.cookie_field());
    let mut wire = Wire::open(&gateway.address);
    wire.send(format!("GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\n{fields}"));
    std::thread::sleep(Duration::from_millis(200));
    gateway.terminate();
    let answer = wire.answer().expect("an answer");
    assert_eq!((answer.status, answer.header("connection").as_deref()), (200, Some("close")));
    assert!(wire.answer().is_none());
    assert!(gateway.wait_for_end().expect("it ends").success());
}

/// Who stays silent is waited for a second, and closed without a word.
/// An answer that began before the end did not say that it is the last one, and a proxy uses such a connection again at once.
#[test]
fn whoever_is_answered_at_the_end_has_time_for_the_next_request() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let request = |path: &str| {
        let fields = format!("Host: localhost:8000\r\n{FETCH}{}", browser.cookie_field());
        format!("GET {BASE}/datahubs/a/api/v4/{path} HTTP/1.1\r\n{fields}\r\n").into_bytes()
    };
    let mut connection = Connection::open(&gateway.address);
    connection.write(&request("projects/230/packages/generic/blob/1/50000000.bin"));
    let long = connection.try_head().expect("an answer");
    assert_eq!((long.status, long.header("connection")), (200, None));
    gateway.terminate();
    // Until idle connections have been closed. So much does not fit into the system's buffers.
    std::thread::sleep(Duration::from_millis(1_500));
    assert_eq!(connection.body(&long).expect("all of it").len(), 50_000_000);
    std::thread::sleep(Duration::from_millis(300));
    connection.write(&request("user"));
    let next = connection.try_head().expect("an answer");
    assert_eq!((next.status, next.header("connection").as_deref()), (200, Some("close")));
}

#[test]
fn silent_connections_do_not_keep_a_process() {
    let mut gateway = Setup::new(&[("a", &datahub())]).start();
    let mut wires: Vec<_> = (0..3).map(|_| Wire::open(&gateway.address)).collect();
    wires[0].send(request());
    assert_eq!(wires[0].answer().expect("an answer").status, 200);
    // The rest of a head that has begun may be on the way, for a second more.
    wires[1].send("GET / HT");
    let begun = Instant::now();
    gateway.terminate();
    assert!(wires[0].answer().is_none() && wires[2].answer().is_none());
    assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
    assert!(wires[1].answer().is_none());
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop(wires);
}

/// SIGINT ends the process at once, also if it ends already: whoever is in front of it does not want to wait.
#[test]
fn who_has_no_time_for_the_end_says_so_by_a_second_signal() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).start();
    let mut wire = Wire::open(&gateway.address);
    wire.send(format!(
        "POST {BASE}/auth/refresh HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}Content-Length: 9\r\n\r\nabc"
    ));
    std::thread::sleep(Duration::from_millis(100));
    gateway.terminate();
    gateway.wait_for_line(|line| line["message"] == "ending");
    std::thread::sleep(Duration::from_millis(1_200));
    let begun = Instant::now();
    signal("INT", gateway.pid());
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
}

/// A call under way is waited for, but for `server.shutdown_timeout`; by SIGINT, for nothing.
#[test]
fn a_call_that_takes_too_long_is_given_up() {
    for (name, least, most) in [("TERM", 1_800, 6_000), ("INT", 0, 1_500)] {
        let hub = datahub();
        let mut gateway = Setup::new(&[("a", &hub)]).and("server.shutdown_timeout = \"2s\"").start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        hub.set(|behaviour| behaviour.api.answer = Manner::Hang);
        let fields = format!("Host: localhost:8000\r\n{FETCH}{}\r\n", browser.cookie_field());
        let mut wire = Wire::open(&gateway.address);
        hub.clear();
        wire.send(format!("GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\n{fields}"));
        while hub.requests().is_empty() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let begun = Instant::now();
        signal(name, gateway.pid());
        assert!(wire.answer().is_none(), "{name}: there is no answer");
        assert!(gateway.wait_for_end().expect("it ends").success(), "{name}");
        let took = begun.elapsed().as_millis();
        assert!((least..most).contains(&took), "{name}: {took} ms");
    }
}
