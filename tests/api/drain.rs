//! How a process ends: what is under way is finished, kept connections learn it from their last answer, others take over.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use datahub::behaviour::Answer as Manner;

use crate::browser::{Browser, FETCH};
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
    let passed = OwnedFd::from(socket.try_clone().expect("a descriptor"));
    let mut command = Command::new("/bin/sh");
    let script = "exec 3<&0; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" --config \"$GATEWAY_OF_A_TEST\" </dev/null";
    command.env_clear().args(["-c", script]).arg(binary()).stdin(Stdio::from(passed));
    (setup.start_as(command), socket)
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
#[test]
fn silent_connections_do_not_keep_a_process() {
    let mut gateway = Setup::new(&[("a", &datahub())]).start();
    let mut wires: Vec<_> = (0..3).map(|_| Wire::open(&gateway.address)).collect();
    wires[0].send(request());
    assert_eq!(wires[0].answer().expect("an answer").status, 200);
    // Half a head is under way: its deadline is its own, but the process does not wait for it longer than it must.
    wires[1].send("GET / HT");
    let begun = Instant::now();
    gateway.terminate();
    assert!(wires[0].answer().is_none() && wires[2].answer().is_none());
    assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
    drop(wires);
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
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
