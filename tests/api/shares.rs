//! One person's share of the places at a DataHUB: who has it in use waits, and nobody else does.

use std::io::BufReader;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use datahub::DataHub;

use crate::browser::{Browser, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Gateway, Setup, datahub, wait_until};
use crate::token_endpoint::logged_in;
use crate::wire::{Wire, summary};

struct World {
    gateway: Gateway,
    hub: DataHub,
    /// The target of each call below `/api/v4/own` once it is at the far end, which never answers.
    came: Receiver<String>,
}

impl World {
    fn new(lines: &str) -> Self {
        let (arrive, came) = channel();
        let arrive = Mutex::new(arrive);
        let hub = datahub();
        let far = far_end::before(hub.address(), move |reader: &mut BufReader<TcpStream>, head: &str| {
            let target = head.split(' ').nth(1).expect("a target").to_owned();
            let _ = arrive.lock().expect("no panic while held").send(target);
            let _ = far_end::end(reader);
        });
        let lines = format!("datahubs.a.connect = \"{far}\"\n{lines}");
        Self { gateway: Setup::new(&[("a", &hub)]).and(&lines).start(), hub, came }
    }

    fn person(&self, user: &str) -> Browser {
        logged_in(&self.gateway, &self.hub, user)
    }

    /// Begins a call that ends when its client leaves.
    fn begin(&self, browser: &Browser, request: &str) -> Wire {
        self.begin_as(&browser.cookie_field(), request)
    }

    /// The same with these fields.
    fn begin_as(&self, fields: &str, request: &str) -> Wire {
        let mut wire = Wire::open(&self.gateway.address);
        let (method, name, rest) = match request.split(' ').collect::<Vec<_>>()[..] {
            ["upload", name] => {
                ("PUT", name, "Content-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\nx")
            }
            [name] => ("GET", name, "\r\n"),
            _ => panic!("{request}"),
        };
        let target = format!("{BASE}/datahubs/a/api/v4/own/{name}");
        wire.send(format!("{method} {target} HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}{fields}{rest}"));
        wire
    }

    /// The name of the next call at the far end.
    fn arrival(&self) -> String {
        let target = self.came.recv_timeout(Duration::from_secs(5)).expect("a call at the far end");
        target.rsplit('/').next().expect("a name").to_owned()
    }

    /// How many calls are under way at the gateway, those that wait for a place too.
    fn in_flight(&self) -> u64 {
        let metrics = self.gateway.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix("gateway_inflight "));
        line.and_then(|count| count.parse().ok()).expect("a number")
    }

    fn nobody_arrives(&self) -> bool {
        self.came.recv_timeout(Duration::from_millis(150)).is_err()
    }
}

/// Slow uploads and calls without an answer, of however many logins, hold one share; everybody else is served at once.
#[test]
fn one_person_holds_an_eighth_of_the_places_however_often_they_are_logged_in() {
    let world = World::new("limits.in_flight = 16\nlimits.waiting = 16");
    let (one, again, other) = (world.person("testuser"), world.person("testuser"), world.person("joerg"));
    let first = world.begin(&one, "upload first");
    let second = world.begin(&again, "second");
    let mut arrived = [world.arrival(), world.arrival()];
    arrived.sort();
    assert_eq!(arrived, ["first", "second"], "two of sixteen");
    let mut third = world.begin(&one, "third");
    assert!(world.nobody_arrives() && third.is_quiet(Duration::from_millis(1)), "the third one waits");
    let mut fourth = world.begin(&again, "fourth");
    assert!(world.nobody_arrives() && fourth.is_quiet(Duration::from_millis(1)), "two may wait");
    let fifth = world.begin(&one, "fifth").answer().expect("an answer");
    assert_eq!(summary(&fifth), "503 overloaded");
    assert_eq!(fifth.header("retry-after").as_deref(), Some("1"));
    let _others = ["upload another", "more"].map(|request| world.begin(&other, request));
    let mut arrived = [world.arrival(), world.arrival()];
    arrived.sort();
    assert_eq!(arrived, ["another", "more"], "everybody else is served");
    // Who leaves, from a place or from a queue, makes room for that person's next call.
    drop(third);
    wait_until(|| world.in_flight() == 5);
    let fifth = world.begin(&one, "fifth");
    assert!(world.nobody_arrives());
    drop(first);
    assert_eq!(world.arrival(), "fourth");
    drop(second);
    assert_eq!(world.arrival(), "fifth");
    drop((fourth, fifth));
    let _again = [world.begin(&one, "again"), world.begin(&one, "again")];
    assert_eq!([world.arrival(), world.arrival()], ["again", "again"], "everything has been given back");
}

/// A person who is alone has no more than a share, and who waits for one of their own is told when to come again.
#[test]
fn who_waits_for_a_place_of_their_own_waits_as_long_as_anybody() {
    let world = World::new("limits.in_flight = 7\nlimits.waiting = 7\ntimeouts.connect = \"300ms\"");
    let one = world.person("testuser");
    let _held = world.begin(&one, "held");
    assert_eq!(world.arrival(), "held");
    let begun = Instant::now();
    let answer = world.begin(&one, "next").answer().expect("an answer");
    assert_eq!(summary(&answer), "503 overloaded", "an eighth of seven is one");
    assert!((290..2_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert!(world.nobody_arrives());
}

/// Calls without a login are no person each: all of them have one share, and each address an eighth of it.
#[test]
fn calls_without_a_login_have_one_share_together() {
    let lines = "datahubs.a.anonymous = true\nserver.trusted_proxies = [\"127.0.0.0/8\"]";
    let world = World::new(&format!("limits.in_flight = 16\nlimits.waiting = 16\n{lines}"));
    let from = |client: &str, name: &str| world.begin_as(&format!("X-Forwarded-For: {client}\r\n"), name);
    let first = from("192.0.2.1", "first");
    assert_eq!(world.arrival(), "first");
    let mut again = from("192.0.2.1", "again");
    assert!(world.nobody_arrives() && again.is_quiet(Duration::from_millis(1)), "an eighth of two is one");
    let _second = from("2001:db8::1", "second");
    assert_eq!(world.arrival(), "second", "another address");
    let mut third = from("192.0.2.3", "third");
    assert!(world.nobody_arrives() && third.is_quiet(Duration::from_millis(1)), "two of sixteen in all");
    let refused = from("192.0.2.4", "fourth").answer().expect("an answer");
    assert_eq!(summary(&refused), "503 overloaded", "and two may wait");
    assert_eq!(refused.header("x-gateway-session").as_deref(), Some("none"));
    let _person = world.begin(&world.person("testuser"), "person");
    assert_eq!(world.arrival(), "person", "people are served");
    drop(first);
    assert_eq!(world.arrival(), "third", "it has waited for less, but with no place");
}

/// A byte every few seconds is never late, and yet no body. Those of our own routes are read whole before, and held to it, too.
#[test]
#[ignore = "make long"]
fn a_body_that_drips_is_given_up_after_a_minute() {
    let world = World::new("");
    let one = world.person("testuser");
    let refresh =
        format!("POST {BASE}/auth/refresh HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}Content-Length: 1000\r\n\r\nx");
    let mut own = Wire::open(&world.gateway.address);
    own.send(refresh);
    let mut dripping = [world.begin(&one, "upload file"), own];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(55) {
        std::thread::sleep(Duration::from_secs(5));
        for wire in &mut dripping {
            assert!(wire.is_quiet(Duration::from_millis(1)), "{:?}", begun.elapsed());
            wire.send("x");
        }
    }
    for wire in &mut dripping {
        assert_eq!(summary(&wire.answer().expect("an answer")), "408 request_timeout");
    }
    assert!((58..66).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}
