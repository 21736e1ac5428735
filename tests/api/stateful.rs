//! Whole connections on both sides, by the roll of dice: heads and bodies in pieces, pipelines of several people, clients that leave
//! or say no more, a far end that stalls, answers early, breaks off or talks nonsense, and tokens that are renewed between.
//!
//! Whatever happens, an answer is that of its request and its person, every request ends once, and nothing is left at the end. The
//! dice follow from a seed, which is told when it fails; `SEED=` plays the same again. `LONG=1` is five minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use datahub::{Books, DataHub};

use crate::browser::{Browser, Connection, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Gateway, Setup, datahub_with};
use crate::wire::Wire;

#[test]
fn every_request_ends_once_with_its_own_answer_and_nothing_is_left() {
    let lasts = Duration::from_secs(if std::env::var_os("LONG").is_some() { 300 } else { 8 });
    let seed = std::env::var("SEED").ok().map_or_else(random_seed, |seed| seed.parse().expect("a number"));
    let _told = Seed(seed);
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(6));
    hub.add_people(PEOPLE as u64);
    let far = Arc::new(FarEnd { books: hub.books(), tokens: Mutex::default(), held: AtomicUsize::new(0) });
    let taken = Arc::clone(&far);
    let place = far_end::before(hub.address(), move |reader, head| taken.serve(reader, head));
    let gateway = start(&hub, place);
    let people: Vec<_> = (1..=PEOPLE).map(|number| Person::log_in(&gateway, &hub, number)).collect();
    let sockets = sockets(&gateway);

    let game = Game { gateway: &gateway, people: &people, until: Instant::now() + lasts, figures: Mutex::default() };
    thread::scope(|scope| {
        let players: Vec<_> = (0..PLAYERS)
            .map(|at| {
                let game = &game;
                scope.spawn(move || game.play(Dice(seed.wrapping_add(at).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
            })
            .collect();
        let panics = players.into_iter().filter_map(|player| player.join().err()).count();
        assert_eq!(panics, 0, "players that saw what must not be");
    });
    let figures = game.figures.into_inner().expect("no panic while held");
    let _ = writeln!(std::io::stderr(), "{} connections, {:?}", figures.connections, figures.outcomes);
    gateway.expects_orphans_up_to(usize::MAX, "the answers of those who left");
    is_at_rest(&gateway, &far, &people, sockets);
    is_written_once(&gateway, &figures);
    let [whole, nobodys] =
        ["200", "200 to nobody known"].map(|name| figures.outcomes.get(name).copied().unwrap_or_default());
    let renewed = hub.counts().refreshes;
    assert!(whole > 200 && renewed > 5 && nobodys * 50 < whole, "{whole}, {nobodys} and {renewed} are too few to tell");
}

fn start(hub: &DataHub, place: std::net::SocketAddr) -> Gateway {
    Setup::new(&[("a", hub)])
        .and(&format!("datahubs.a.connect = \"{place}\""))
        .and("server.workers = 2")
        .and(&format!("limits.connections = {CONNECTIONS}\nlimits.in_flight = {IN_FLIGHT}\nlimits.body = \"1MiB\""))
        .and("timeouts.first_byte = \"1s\"\ntimeouts.idle = \"1s\"\ntimeouts.request_head = \"1s\"\ntimeouts.request_body = \"1s\"")
        .and("rate_limit.login = \"1000/1s\"\nrate_limit.callback = \"1000/1s\"")
        .quiet()
        .start()
}

/// Nothing is under way, all places are free, and nothing is open that was not before.
fn is_at_rest(gateway: &Gateway, far: &Arc<FarEnd>, people: &[Person], sockets: usize) {
    (0..people.len()).for_each(|person| catch_up(gateway, people, person));
    wait_for("rest", || gateway.metrics().contains("gateway_inflight 0\n"));
    // As many calls at once as there may be: each permit has come back.
    let held: Vec<_> = (0..IN_FLIGHT)
        .map(|at| {
            let mut wire = Wire::open(&gateway.address);
            wire.send(Request::bare(at % people.len(), "hold").bytes(people, ""));
            wire
        })
        .collect();
    wait_for("place for each call", || far.held.load(Ordering::SeqCst) == IN_FLIGHT);
    drop(held);
    wait_for("end of each call", || {
        far.held.load(Ordering::SeqCst) == 0 && gateway.metrics().contains("gateway_inflight 0\n")
    });
    // As many connections as there may be.
    let mut open: Vec<_> = (0..CONNECTIONS).map(|_| Wire::open(&gateway.address)).collect();
    for wire in &mut open {
        wire.send(format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n\r\n"));
        assert_eq!(wire.answer().expect("there is a place for each").status, 200);
    }
    drop(open);
    // Some connections to the far end are kept.
    wait_for("end of the other connections", || self::sockets(gateway) <= sockets + 2 * IN_FLIGHT);
}

/// A call that goes round as often as the gateway says, and so brings the newest cookie.
fn catch_up(gateway: &Gateway, people: &[Person], person: usize) {
    let mut query = String::new();
    for _ in 0..20 {
        let mut wire = Wire::open(&gateway.address);
        wire.send(Request::bare(person, "echo").bytes(people, &query));
        let answer = wire.answer().expect("an answer");
        people[person].browser.apply(&answer);
        match answer.status {
            200 => return,
            307 => query = answer.location(),
            503 => thread::sleep(Duration::from_millis(100)),
            _ => panic!("{} {}", answer.head, answer.text()),
        }
    }
    panic!("{} is sent round for ever", people[person].name);
}

/// Each request has one line of the log, those that were answered and those that were not.
fn is_written_once(gateway: &Gateway, figures: &Figures) {
    let counted = || -> u64 {
        let metrics = gateway.metrics();
        let lines = metrics.lines().filter(|line| line.starts_with("gateway_requests_total{"));
        lines.map(|line| line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a number")).sum()
    };
    let written = || gateway.output().iter().filter(|line| line.contains("\"target\":\"access\"")).count() as u64;
    wait_for("line for each call", || written() >= counted());
    let lines: Vec<_> = gateway.log().into_iter().filter(|line| line["target"] == "access").collect();
    let ids: BTreeSet<_> = lines.iter().map(|line| line["request_id"].as_str().expect("a text")).collect();
    assert_eq!((ids.len(), lines.len() as u64), (lines.len(), counted()), "a line each");
    let missing = figures.answered.iter().filter(|id| !ids.contains(id.as_str())).count();
    assert_eq!(missing, 0, "an answer without its line");
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < until, "no {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sockets that the gateway's process holds.
fn sockets(gateway: &Gateway) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("it runs");
    let links = folder.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

struct Person {
    name: String,
    browser: Browser,
}

impl Person {
    fn log_in(gateway: &Gateway, hub: &DataHub, number: usize) -> Self {
        let (name, browser) = (format!("person{number}"), Browser::default());
        browser.log_in(gateway, "a", hub, &name);
        Self { name, browser }
    }
}

/// What a client sends, and how the far end is to take it.
struct Request {
    person: usize,
    mark: u64,
    kind: &'static str,
    body: Vec<u8>,
    is_chunked: bool,
}

impl Request {
    fn bare(person: usize, kind: &'static str) -> Self {
        Self { person, mark: 0, kind, body: Vec::new(), is_chunked: false }
    }

    fn bytes(&self, people: &[Person], query: &str) -> Vec<u8> {
        let Self { person, mark, kind, body, is_chunked } = self;
        let method = if body.is_empty() { "GET" } else { "POST" };
        let framing = match (body.is_empty(), is_chunked) {
            (true, _) => String::new(),
            (false, false) => format!("Content-Length: {}\r\n", body.len()),
            (false, true) => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        let cookies = people[*person].browser.cookie_field();
        let head = format!(
            "{method} {BASE}/datahubs/a/api/v4/own/{kind}/{mark}{query} HTTP/1.1\r\nHost: localhost:8000\r\n{cookies}{FETCH}\
            Content-Type: application/octet-stream\r\n{framing}\r\n"
        );
        let mut bytes = head.into_bytes();
        if *is_chunked && !body.is_empty() {
            for piece in body.chunks(5_000) {
                bytes.extend(format!("{:x}\r\n", piece.len()).into_bytes());
                bytes.extend(piece);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
        } else {
            bytes.extend(body);
        }
        bytes
    }
}

struct Game<'a> {
    gateway: &'a Gateway,
    people: &'a [Person],
    until: Instant,
    figures: Mutex<Figures>,
}

#[derive(Default)]
struct Figures {
    connections: usize,
    /// By status, or by the way it ended.
    outcomes: BTreeMap<String, usize>,
    /// Request ids of whole answers.
    answered: Vec<String>,
}

impl Game<'_> {
    fn play(&self, mut dice: Dice) {
        while Instant::now() < self.until {
            self.figures.lock().expect("no panic while held").connections += 1;
            let mut connection = Connection::open(&self.gateway.address);
            for _ in 0..=dice.roll(3) {
                if !self.round(&mut dice, &mut connection) {
                    break;
                }
            }
            if dice.roll(4) == 0 {
                connection.reset();
            }
        }
    }

    /// A few requests in a row and their answers; whether the connection can go on.
    fn round(&self, dice: &mut Dice, connection: &mut Connection) -> bool {
        let requests: Vec<_> = (0..=[0, 0, 1, 3][dice.roll(4)]).map(|_| request(dice)).collect();
        let bytes = requests.iter().flat_map(|request| request.bytes(self.people, "")).collect::<Vec<_>>();
        // Now and then the client leaves somewhere on its way.
        let sent = if dice.roll(6) == 0 { dice.roll(bytes.len()) } else { bytes.len() };
        let most = [1 << 20, 10_000, 700, 60][dice.roll(4)];
        for piece in bytes[..sent].chunks(most.max(bytes.len() / 200)) {
            connection.write(piece);
            if dice.roll(8) == 0 {
                thread::sleep(Duration::from_micros(dice.roll(3_000) as u64));
            }
        }
        if sent < bytes.len() || dice.roll(12) == 0 {
            thread::sleep(Duration::from_millis(dice.roll(30) as u64));
            self.count("left");
            return false;
        }
        let says_all = dice.roll(8) == 0;
        if says_all {
            connection.finish();
        }
        requests.iter().all(|request| self.hear(dice, connection, request, says_all)) && !says_all
    }

    /// One answer; whether another can follow.
    fn hear(&self, dice: &mut Dice, connection: &mut Connection, request: &Request, says_all: bool) -> bool {
        let Ok(mut answer) = connection.try_head() else {
            // A call is given up once the client has said all. Who is answered before all was sent may lose it to a reset.
            let is_so = says_all || request.body.len() > 5_000;
            assert!(is_so, "no answer to {} of {} bytes", request.kind, request.body.len());
            self.count("lost");
            return false;
        };
        let person = &self.people[request.person];
        if dice.roll(20) == 0 {
            self.count("left within an answer");
            return false;
        }
        let Ok(body) = connection.body(&answer) else {
            let is_so = says_all || request.kind == "short" || request.body.len() > 5_000;
            assert!(is_so, "{} breaks off: {}", request.kind, answer.head);
            self.count("broken");
            return false;
        };
        answer.body = body;
        person.browser.apply(&answer);
        let status = answer.status;
        let is_good = match (status, request.kind) {
            (200, "echo" | "slow" | "chunks" | "open" | "early" | "eager") => {
                let text = answer.text();
                let start = format!("{}:{}:", person.name, request.mark);
                if text.starts_with(&format!("?:{}:", request.mark)) {
                    self.count("200 to nobody known");
                } else {
                    assert!(text.starts_with(&start), "not {start} but {text:.60}");
                }
                let length = text.split(':').nth(2).and_then(|length| length.parse::<usize>().ok());
                matches!(request.kind, "early" | "eager") || length == Some(request.body.len())
            }
            // There may be a newer cookie.
            (307, _) => {
                catch_up(self.gateway, self.people, request.person);
                true
            }
            // Too many at once, or a renewal that takes too long.
            (503, _) => true,
            (502 | 504, "short" | "nonsense" | "close" | "hang" | "early" | "eager") => true,
            // Large ones that are sent slowly may be late.
            (502 | 408, _) => request.body.len() > 5_000,
            _ => false,
        };
        assert!(is_good, "{status} to {}: {} {:.200}", request.kind, answer.head, answer.text());
        self.count(&status.to_string());
        let id = answer.header("x-request-id").expect("each answer has one");
        self.figures.lock().expect("no panic while held").answered.push(id);
        answer.header("connection").as_deref() != Some("close")
    }

    fn count(&self, outcome: &str) {
        *self.figures.lock().expect("no panic while held").outcomes.entry(outcome.to_owned()).or_default() += 1;
    }
}

fn request(dice: &mut Dice) -> Request {
    let kinds = [
        "echo", "echo", "echo", "slow", "chunks", "chunks", "open", "early", "eager", "short", "nonsense", "close",
        "hang",
    ];
    // What takes a second is seldom.
    let kind = match kinds[dice.roll(kinds.len())] {
        "hang" if dice.roll(8) > 0 => "echo",
        kind => kind,
    };
    let length = [0, 0, 1, 4_000, 70_000, 400_000][dice.roll(6)];
    let body = vec![b'x'; dice.roll(length + 1)];
    Request { person: dice.roll(PEOPLE), mark: dice.next(), kind, body, is_chunked: dice.roll(2) == 0 }
}

/// Answers `/api/v4/own/KIND/MARK` with who asked, for which mark, and how long the body was.
struct FarEnd {
    books: Books,
    /// Whose each access token is or was.
    tokens: Mutex<BTreeMap<String, String>>,
    /// Calls that are held at the moment.
    held: AtomicUsize,
}

impl FarEnd {
    fn serve(&self, reader: &mut BufReader<TcpStream>, head: &str) {
        let mut head = Some(head.to_owned());
        while head.is_some_and(|head| self.answer(reader, &head).is_some()) {
            head = far_end::head(reader);
        }
        let _ = reader.get_ref().shutdown(Shutdown::Both);
    }

    /// Nothing where the connection ends.
    fn answer(&self, reader: &mut BufReader<TcpStream>, head: &str) -> Option<()> {
        let mut path = head.split(' ').nth(1)?.split('/').skip(4);
        let (kind, mark) = (path.next()?, path.next()?);
        let person = self.person(field(head, "authorization")?.strip_prefix("Bearer ")?);
        let length = if matches!(kind, "early" | "eager") { 0 } else { body(reader, head)? };
        let text = format!("{person}:{mark}:{length}:{}", ".".repeat(mark.len() * 300));
        let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        let mut stream = reader.get_ref();
        match kind {
            "echo" => stream.write_all(whole.as_bytes()).ok(),
            "slow" => {
                thread::sleep(Duration::from_millis(mark.len() as u64 * 5));
                stream.write_all(whole.as_bytes()).ok()
            }
            "chunks" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
                for piece in text.as_bytes().chunks(1_500) {
                    stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).ok()?;
                    stream.write_all(piece).ok()?;
                    stream.write_all(b"\r\n").ok()?;
                }
                stream.write_all(b"0\r\n\r\n").ok()
            }
            "open" => {
                stream.write_all(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{text}").as_bytes()).ok()?;
                None
            }
            "early" => {
                let early = whole.replacen("\r\n", "\r\nConnection: close\r\n", 1);
                stream.write_all(early.as_bytes()).ok()?;
                let _ = stream.shutdown(Shutdown::Write);
                far_end::end(reader).ok();
                None
            }
            // It goes on reading, and keeps the connection.
            "eager" => {
                stream.write_all(whole.as_bytes()).ok()?;
                body(reader, head).map(drop)
            }
            "short" => {
                stream.write_all(&whole.as_bytes()[..whole.len() - 1]).ok()?;
                None
            }
            "nonsense" => {
                stream.write_all(b"\x16\x03\x01 HTTP\r\n\r\n").ok()?;
                None
            }
            "hang" | "hold" => {
                self.held.fetch_add(usize::from(kind == "hold"), Ordering::SeqCst);
                far_end::end(reader).ok();
                self.held.fetch_sub(usize::from(kind == "hold"), Ordering::SeqCst);
                None
            }
            _ => None,
        }
    }

    /// `?` for a token that had been renewed before it was seen here.
    fn person(&self, token: &str) -> String {
        let mut tokens = self.tokens.lock().expect("no panic while held");
        if !tokens.contains_key(token) {
            tokens.extend(self.books.live_tokens().into_iter().map(|live| (live.access_token, live.user)));
        }
        tokens.get(token).cloned().unwrap_or_else(|| "?".to_owned())
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Reads a body; its length.
fn body(reader: &mut BufReader<TcpStream>, head: &str) -> Option<usize> {
    let mut left = match field(head, "content-length") {
        Some(length) => length.parse().ok()?,
        None if field(head, "transfer-encoding").is_some() => {
            let mut length = 0;
            loop {
                let mut line = String::new();
                std::io::BufRead::read_line(reader, &mut line).ok().filter(|count| *count > 0)?;
                let size = usize::from_str_radix(line.trim_end(), 16).ok()?;
                reader.read_exact(&mut vec![0; size + 2]).ok()?;
                length += size;
                if size == 0 {
                    return Some(length);
                }
            }
        }
        None => 0,
    };
    let length = left;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let most = left.min(buffer.len());
        left -= reader.read(&mut buffer[..most]).ok().filter(|count| *count > 0)?;
    }
    Some(length)
}

/// xorshift64*: the same numbers from the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to one below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        ((self.next() >> 33) % sides.max(1) as u64) as usize
    }
}

/// Told when the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = writeln!(std::io::stderr(), "SEED={} plays the same again", self.0);
        }
    }
}

fn random_seed() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system's generator");
    u64::from_le_bytes(bytes)
}

const PEOPLE: usize = 8;
/// Clients at once.
const PLAYERS: u64 = 12;
/// Calls under way at once, of which a person may have an eighth.
const IN_FLIGHT: usize = 16;
const CONNECTIONS: usize = 40;
