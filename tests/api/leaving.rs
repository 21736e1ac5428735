//! Who leaves while a call is under way takes it along, whatever was sent behind it; and the log has one line about it.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use datahub::DataHub;

use crate::browser::{Browser, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Gateway, Setup, datahub};
use crate::wire::{Wire, lines, summary};

struct World {
    gateway: Gateway,
    session: String,
    /// The id of each call that waits at the far end, and when and how that connection ended.
    came: Receiver<String>,
    ended: Receiver<(Instant, std::io::Result<u64>)>,
    _hub: DataHub,
}

impl World {
    /// In front of a DataHUB that never answers a call below `/api/v4/own`.
    fn new(lines: &str) -> Self {
        let (arrive, came) = channel();
        let (end, ended) = channel();
        let senders = Mutex::new((arrive, end));
        let hub = datahub();
        let far = far_end::before(hub.address(), move |reader: &mut BufReader<TcpStream>, head: &str| {
            let (arrive, end) = senders.lock().expect("no panic while held").clone();
            let id = head.split("X-Request-Id: ").nth(1).and_then(|rest| rest.get(..32)).expect("an id");
            let _ = arrive.send(id.to_owned());
            let outcome = far_end::end(reader);
            let _ = end.send((Instant::now(), outcome));
        });
        let connect = format!("datahubs.a.connect = \"{far}\"\n{lines}");
        let gateway = Setup::new(&[("a", &hub)]).and(&connect).start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        let session = format!("Host: localhost:8000\r\n{FETCH}{}", browser.cookie_field());
        Self { gateway, session, came, ended, _hub: hub }
    }

    fn call(&self, rest: &str) -> String {
        format!("GET {BASE}/datahubs/a/api/v4/own HTTP/1.1\r\n{}\r\n{rest}", self.session)
    }

    /// Waits for a call to be at the far end.
    fn arrival(&self) -> String {
        self.came.recv_timeout(Duration::from_secs(10)).expect("a call")
    }

    /// How long after `since` the far end saw its connection end.
    fn end(&self, since: Instant) -> Duration {
        let (at, outcome) = self.ended.recv_timeout(Duration::from_secs(10)).expect("the call is given up");
        assert!(outcome.is_ok_and(|more| more == 0), "an end in peace, and nothing more before it");
        at.saturating_duration_since(since)
    }

    /// The one line about a call that nobody waited for.
    fn line(&self, id: &str) -> serde_json::Value {
        self.gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id);
        std::thread::sleep(Duration::from_millis(20));
        let lines: Vec<_> = self.gateway.log();
        let mut lines = lines.into_iter().filter(|line| line["target"] == "access" && line["request_id"] == id);
        let line = lines.next().expect("a line");
        assert!(lines.next().is_none(), "one line");
        line
    }
}

/// DS-04.
#[test]
fn who_leaves_is_noticed_whatever_was_sent_behind() {
    let world = World::new("limits.in_flight = 1");
    let whole = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n\r\n");
    for (case, behind) in [
        ("nothing", String::new()),
        ("a byte", "G".into()),
        ("half a head", whole[..20].into()),
        ("a whole request", whole.clone()),
        ("another call", world.call("")),
        (
            "a body",
            format!("POST {BASE}/auth/refresh HTTP/1.1\r\nHost: localhost:8000\r\nContent-Length: 9999\r\n\r\nx"),
        ),
        ("nonsense", "nonsense\r\n\r\n".into()),
        ("30 KiB", whole.repeat(30 * 1024 / whole.len())),
        ("bytes one after the other", "slowly".into()),
    ] {
        let mut wire = Wire::open(&world.gateway.address);
        if case == "bytes one after the other" {
            wire.send(world.call(""));
            for byte in behind.bytes() {
                wire.send([byte]);
                std::thread::sleep(Duration::from_millis(5));
            }
        } else {
            wire.send(world.call(&behind));
        }
        let id = world.arrival();
        assert!(wire.is_quiet(Duration::from_millis(30)), "{case}: what is behind waits for its turn");
        let left = Instant::now();
        drop(wire);
        let noticed = world.end(left);
        assert!(noticed < Duration::from_secs(2), "{case}: {noticed:?}");
        let line = world.line(&id);
        // No answer was given: the status that logs have for it.
        assert_eq!((&line["status"], &line["code"]), (&499.into(), &"client_gone".into()), "{case}: {line}");
        assert_eq!((&line["datahub"], &line["bytes_out"]), (&"a".into(), &0.into()), "{case}: {line}");
    }
    assert!(world.came.try_recv().is_err(), "what was sent behind was never made");
}

/// DS-04: an end of what is sent is not the end of the client, if the answer is there at once.
#[test]
fn who_has_said_all_is_answered_at_once_or_not_at_all() {
    let world = World::new("");
    let request = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n\r\n");
    for count in [1, 3] {
        let mut wire = Wire::open(&world.gateway.address);
        wire.send(request.repeat(count));
        wire.finish();
        let answers: Vec<_> = wire.rest().iter().map(summary).collect();
        // Those behind the first one may be given up.
        assert!(!answers.is_empty() && answers.iter().all(|answer| answer == "200"), "{answers:?}");
    }
    let mut wire = Wire::open(&world.gateway.address);
    wire.send(world.call(""));
    let id = world.arrival();
    let left = Instant::now();
    wire.finish();
    assert!(world.end(left) < Duration::from_secs(2));
    assert!(wire.answer().is_none());
    let line = world.line(&id);
    assert_eq!((&line["status"], &line["code"]), (&499.into(), &"client_gone".into()), "{line}");
}

/// DS-04: a call that waits for a place is given up, too, and makes room for the next.
#[test]
fn who_leaves_while_waiting_makes_room() {
    let world = World::new("limits.in_flight = 1\nlimits.waiting = 1\ntimeouts.connect = \"4s\"");
    let mut first = Wire::open(&world.gateway.address);
    first.send(world.call(""));
    let _first = world.arrival();
    let mut second = Wire::open(&world.gateway.address);
    second.send(world.call(""));
    assert!(second.is_quiet(Duration::from_millis(100)));
    let mut third = Wire::open(&world.gateway.address);
    third.send(world.call(""));
    assert_eq!(summary(&third.answer().expect("an answer")), "503 overloaded");
    drop(second);
    // Its line says that it is over.
    let is_over = |line: &&serde_json::Value| line["status"] == 499;
    for _ in 0..400 {
        if lines(&world.gateway, 3).iter().any(|line| is_over(&line)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    third.send(world.call(""));
    assert!(third.is_quiet(Duration::from_millis(100)), "there is room to wait");
    drop(first);
    let _third = world.arrival();
}

/// DS-05: of what is sent behind a call no more than 32 KiB is kept; the network holds the rest, and its sender.
#[test]
fn what_waits_behind_a_call_is_bounded() {
    let world = World::new("server.shutdown_timeout = \"1s\"");
    // Behind so much nobody sees who leaves: at its end the process gives the call up.
    let whole = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n\r\n").repeat(1000);
    let mut stream = TcpStream::connect(&world.gateway.address).expect("it listens");
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("longer than nothing");
    stream.write_all(world.call("").as_bytes()).expect("it takes a request");
    world.arrival();
    let before = world.gateway.peak_memory();
    let pieces = (0..1000).take_while(|_| stream.write_all(whole.as_bytes()).is_ok()).count();
    assert!(pieces * whole.len() < 32 * 1024 * 1024, "{pieces} pieces were taken");
    let more = world.gateway.peak_memory() - before;
    assert!(more < 2 * 1024 * 1024, "{more} bytes");
}
