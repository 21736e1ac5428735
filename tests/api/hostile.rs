//! One hostile person with an account, and fifty honest ones at the same DataHUB, who must not notice.
//!
//! Each row of [`ROWS`] is a way in which that person could harm others. The honest ones go on with their calls all the
//! time; not one of these may fail, nor may the hostile one's calls come to nothing. How long they take beside each row is
//! printed, which `make bench` shows for a release build: the same for 20 s a row.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use datahub::behaviour::{Answer as Manner, Manner as Way};

use crate::browser::{Answer, Browser, Connection, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub};

/// How many honest people there are.
const PEOPLE: u64 = 50;
/// How often each of them calls.
const INTERVAL: Duration = Duration::from_millis(100);

/// What the line carries by which somebody reads who is timed, in bytes a second: 1 Gbit/s. Without that bound both ends of the
/// gateway use up the two cores of a small machine, and what is timed is these ([docs/speed.md](../../docs/speed.md)).
const LINE: u64 = 125_000_000;

/// Longest that an honest call may take, but for one in a hundred: machines are slow.
const MAX_P99: Duration = Duration::from_secs(5);

/// What is done, by how many threads at once, how one of them does it until it is told to end, and what the hostile one sees
/// how often at least where that did its harm.
type Row = (&'static str, usize, fn(&Hostile), (&'static str, usize));

const ROWS: &[Row] = &[
    ("nobody is hostile", 0, |_| {}, ("", 0)),
    (
        "an endpoint that closes without an answer",
        4,
        |it| it.call_again_and_again("GET", "/odd/close", 90),
        ("502", 10),
    ),
    ("an endpoint that never answers", 100, |it| it.call_again_and_again("GET", "/odd/silent", 1_000), ("504", 4)),
    ("uploads of a byte now and then", 100, |it| it.upload_slowly(), (HELD, 4)),
    ("interim answers without end", 8, |it| it.call_again_and_again("GET", "/odd/interim", 10), ("502", 10)),
    ("answers without end", 4, |it| it.read("/odd/endless"), ("a chunk", 100)),
    ("answers without end that nobody reads", 100, |it| it.ask_and_wait("/odd/endless"), ("200", 4)),
    ("requests behind each other without end", 4, |it| it.pipeline(), ("200", 100)),
    ("heads that never end", 100, |it| it.send_half_a_head(), (HELD, 100)),
    ("bodies that must be looked through", 4, |it| it.send_bodies(), ("201", 10)),
    ("refreshes, asked for without end", 4, |it| it.call_again_and_again("POST", "/auth/refresh", 10), ("200", 10)),
    ("calls without a login", 4, |it| it.call_without_a_login(), ("200", 10)),
];

/// Nothing was said on a connection, and nobody ended it.
pub const HELD: &str = "held";

#[test]
fn fifty_people_notice_nothing_of_a_hostile_one() {
    let lasts = Duration::from_secs(if is_long() { 20 } else { 3 });

    let hub = datahub();
    hub.add_people(PEOPLE);
    let way = |answer| Way { answer, ..Way::default() };
    let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(200);
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let chunk = [b"8000\r\n".as_slice(), &b"x".repeat(0x8000), b"\r\n"].concat();
    hub.set(|behaviour| {
        behaviour.by_path = vec![
            ("/api/v4/odd/close", way(Manner::CloseWithoutAnswer)),
            ("/api/v4/odd/silent", way(Manner::Hang)),
            ("/api/v4/odd/interim", way(Manner::Endless { begin: Vec::new(), again: interim })),
            ("/api/v4/odd/endless", way(Manner::Endless { begin: head, again: chunk })),
            ("/api/v4/odd/unread", way(Manner::Status(201))),
        ];
    });
    let lines = "
        server.workers = 2
        timeouts.first_byte = \"2s\"
        limits.in_flight = 64
        limits.waiting = 64
        datahubs.a.anonymous = true

        rate_limit.login = \"1000/1s\"
        rate_limit.callback = \"1000/1s\"";
    let gateway = Setup::new(&[("a", &hub)]).and(lines).logging("info,access=warn").start();
    let person = |name: &str| {
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, name);
        browser
    };
    let people: Vec<_> =
        (1..=PEOPLE).map(|number| format!("person{number}")).map(|name| (person(&name), name)).collect();
    let cookies = person("testuser").cookie_field();

    let (row, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let felt: Vec<Mutex<Felt>> = ROWS.iter().map(|_| Mutex::default()).collect();
    let mut seen = Vec::new();
    scope(|all| {
        for (browser, name) in &people {
            let (gateway, felt, row, is_over) = (&gateway, &felt, &row, &is_over);
            all.spawn(move || {
                let mut connection = None;
                while !is_over.load(Ordering::Relaxed) {
                    let (began, of) = (Instant::now(), row.load(Ordering::Relaxed));
                    let outcome = call(gateway, browser, name, &mut connection);
                    felt[of].lock().expect("no panic while held").note(began.elapsed(), outcome);
                    sleep(INTERVAL.saturating_sub(began.elapsed()));
                }
            });
        }
        for (at, (_, threads, act, _)) in ROWS.iter().enumerate() {
            // What is left of the row before ends, and how long calls take undisturbed is known of the whole time.
            row.store(0, Ordering::Relaxed);
            sleep(lasts / 4);
            row.store(at, Ordering::Relaxed);
            let (cookies, until) = (cookies.clone(), Instant::now() + lasts);
            let hostile = Hostile { address: &gateway.address, cookies, until, saw: Mutex::default() };
            scope(|row| {
                for _ in 0..*threads {
                    row.spawn(|| act(&hostile));
                }
                sleep(lasts);
            });
            seen.push(hostile.saw.into_inner().expect("no panic while held"));
        }
        is_over.store(true, Ordering::Relaxed);
    });

    let mut failures = Vec::new();
    let mut undisturbed = Duration::ZERO;
    for (((name, _, _, (harm, least)), felt), seen) in ROWS.iter().zip(felt).zip(seen) {
        let mut felt = felt.into_inner().expect("no panic while held");
        felt.times.sort_unstable();
        let [p50, p99] = [50, 99].map(|percent| felt.times[felt.times.len() * percent / 100]);
        undisturbed = if undisturbed.is_zero() { p99 } else { undisturbed };
        let ratio = p99.as_secs_f64() / undisturbed.as_secs_f64();
        let calls = felt.times.len();
        let _ = writeln!(
            std::io::stderr(),
            "{name}: {calls} calls of honest people, {} failed, p50 {p50:.1?}, p99 {p99:.1?}, {ratio:.1} of undisturbed; the hostile one: {seen:?}",
            felt.failures.len()
        );
        assert!(calls > 100, "{name}: {calls} calls");
        assert!(p99 < MAX_P99, "{name}: p99 {p99:.1?}");
        assert!(seen.get(*harm).copied().unwrap_or_default() >= *least, "{name}: it did no harm: {seen:?}");
        failures.extend(felt.failures.into_iter().map(|failure| format!("{name}: {failure}")));
    }
    assert!(
        failures.is_empty(),
        "{} calls of honest people failed: {:#?}",
        failures.len(),
        &failures[..failures.len().min(20)]
    );
}

/// Whether times are what the run is for.
fn is_long() -> bool {
    std::env::var_os("LONG").is_some()
}

/// What the honest people felt beside one row.
#[derive(Default)]
struct Felt {
    times: Vec<Duration>,
    failures: Vec<String>,
}

impl Felt {
    fn note(&mut self, took: Duration, outcome: Result<(), String>) {
        self.times.push(took);
        self.failures.extend(outcome.err());
    }
}

/// One call of an honest person, over a kept connection if there is one. The answer must be about that very person.
fn call(gateway: &Gateway, browser: &Browser, name: &str, kept: &mut Option<Connection>) -> Result<(), String> {
    let mut connection = kept.take().unwrap_or_else(|| Connection::open(&gateway.address));
    let cookies = browser.cookie_field();
    let head = format!("GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\nHost: localhost:8000\r\n{cookies}{FETCH}\r\n");
    connection.write(head.as_bytes());
    let mut answer = connection.try_head().map_err(|error| format!("{name}: no answer: {error}"))?;
    answer.body = connection.body(&answer).map_err(|error| format!("{name}: a broken answer: {error}"))?;
    if answer.header("connection").is_none() {
        *kept = Some(connection);
    }
    if answer.status == 200 && answer.json()["username"] == *name {
        return Ok(());
    }
    Err(format!("{name}: {} {}", answer.status, answer.text()))
}

/// Somebody with an account at the DataHUB, and ideas.
pub struct Hostile<'a> {
    /// Where a gateway listens.
    pub address: &'a str,
    pub cookies: String,
    pub until: Instant,
    /// How often what came back.
    pub saw: Mutex<BTreeMap<String, usize>>,
}

impl Hostile<'_> {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// What stands before the body of a request.
    fn head(&self, method: &str, path: &str, fields: &str) -> String {
        let path = if path.starts_with("/auth/") { path.to_owned() } else { format!("/datahubs/a/api/v4{path}") };
        format!("{method} {BASE}{path} HTTP/1.1\r\nHost: localhost:8000\r\n{}{FETCH}{fields}\r\n", self.cookies)
    }

    fn send(&self, head: &str, body: &[u8]) -> Connection {
        let mut connection = Connection::open(self.address);
        connection.give_up_after(self.until.saturating_duration_since(Instant::now()));
        connection.write(head.as_bytes());
        connection.write(body);
        connection
    }

    fn see(&self, what: impl Into<String>) {
        *self.saw.lock().expect("no panic while held").entry(what.into()).or_default() += 1;
    }

    /// The next answer's status, or why there is none.
    fn see_answer(&self, connection: &mut Connection) -> Option<Answer> {
        let answer = connection.try_head();
        self.see(match &answer {
            Ok(answer) => answer.status.to_string(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => HELD.to_owned(),
            Err(_) => "an end".to_owned(),
        });
        answer.ok()
    }

    pub fn call_again_and_again(&self, method: &str, path: &str, pause_ms: u64) {
        while !self.is_over() {
            self.see_answer(&mut self.send(&self.head(method, path, "Content-Length: 0\r\n"), b""));
            sleep(Duration::from_millis(pause_ms));
        }
    }

    pub fn upload_slowly(&self) {
        let head = self.head("PUT", "/projects/230/packages/generic/p/1/f.bin", "Content-Length: 1000000\r\n");
        let mut connection = self.send(&head, b"x");
        while !self.is_over() {
            sleep(Duration::from_millis(500));
            connection.write(b"x");
        }
        connection.give_up_after(Duration::ZERO);
        self.see_answer(&mut connection);
    }

    /// Reads an answer as fast as it comes, or as a line brings it.
    fn read(&self, path: &str) {
        let line = if is_long() { LINE } else { u64::MAX };
        while !self.is_over() {
            let mut connection = self.send(&self.head("GET", path, ""), b"");
            let is_it = self.see_answer(&mut connection).is_some_and(|answer| answer.status == 200);
            let (began, mut bytes) = (Instant::now(), 0);
            while is_it && !self.is_over() {
                let Ok(chunk) = connection.chunk() else { break };
                self.see("a chunk");
                bytes += chunk.len() as u64;
                sleep(Duration::from_nanos(bytes * 1_000_000_000 / line).saturating_sub(began.elapsed()));
            }
        }
    }

    /// Reads nothing of it.
    pub fn ask_and_wait(&self, path: &str) {
        let mut connection = self.send(&self.head("GET", path, ""), b"");
        sleep(self.until.saturating_duration_since(Instant::now()));
        self.see_answer(&mut connection);
    }

    fn pipeline(&self) {
        let head = self.head("GET", "/user", "");
        let requests = head.repeat(50);
        while !self.is_over() {
            let mut connection = self.send(&requests, b"");
            for _ in 0..50 {
                let Some(answer) = self.see_answer(&mut connection) else { break };
                if connection.body(&answer).is_err() {
                    break;
                }
            }
        }
    }

    /// Asks for much at once, hears the beginning and is gone, which resets the connection.
    pub fn pipeline_and_leave(&self) {
        let requests = self.head("GET", "/user", "").repeat(50);
        while !self.is_over() {
            self.see_answer(&mut self.send(&requests, b""));
            sleep(Duration::from_millis(50));
        }
    }

    pub fn send_half_a_head(&self) {
        while !self.is_over() {
            let mut half = self.send(&format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(30_000)), b"");
            half.give_up_after(Duration::from_millis(200).min(self.until.saturating_duration_since(Instant::now())));
            self.see_answer(&mut half);
            // A front may refuse it at once.
            sleep(Duration::from_millis(10));
        }
    }

    /// As deep and as long as they may be. What the DataHUB makes of them is its own matter: here it is nothing.
    fn send_bodies(&self) {
        let deep = format!("{{\"title\":\"x\",\"a\":{}1{}}}", "[".repeat(100), "]".repeat(100));
        let long =
            format!("{{\"title\":\"x\",{}}}", (0..6_000).map(|at| format!("\"{at}\":1")).collect::<Vec<_>>().join(","));
        while !self.is_over() {
            for body in [&deep, &long] {
                let fields = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
                self.see_answer(&mut self.send(&self.head("POST", "/odd/unread", &fields), body.as_bytes()));
            }
        }
    }

    fn call_without_a_login(&self) {
        let head = format!("GET {BASE}/datahubs/a/api/v4/projects HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}\r\n");
        while !self.is_over() {
            self.see_answer(&mut self.send(&head, b""));
            sleep(Duration::from_millis(5));
        }
    }

    /// What is no HTTP, or none that we speak.
    pub fn send_garbage(&self) {
        let mut noise = vec![0; 2_000];
        while !self.is_over() {
            getrandom::fill(&mut noise).expect("the system's generator");
            let host = b"GET / HTTP/1.1\r\nHost: localhost:8000\r\n";
            for garbage in [
                noise.as_slice(),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"GET / HTTP/9.9\r\n\r\n",
                &[host, b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".as_slice()].concat(),
                &[host, noise.as_slice(), b"\r\n\r\n"].concat(),
            ] {
                let mut connection = Connection::open(self.address);
                connection.give_up_after(Duration::from_millis(50));
                connection.write(garbage);
                self.see_answer(&mut connection);
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Cookies that look like ours and do not open, that are there twice, and more of them than a head may hold.
    pub fn flood_with_bad_cookies(&self) {
        let cookies = self.cookies.trim_end();
        let altered = cookies.replace("session-a=A", "session-a=B").replace("sid-a=", "sid-a=A");
        let bad = [altered, format!("{cookies}; {}", &cookies[8..]), format!("{cookies}; a={}", "b".repeat(40_000))];
        while !self.is_over() {
            for cookies in &bad {
                let head = format!(
                    "GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\nHost: localhost:8000\r\n{cookies}\r\n{FETCH}\r\n"
                );
                self.see_answer(&mut self.send(&head, b""));
            }
            sleep(Duration::from_millis(20));
        }
    }
}
