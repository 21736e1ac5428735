//! Thousands of people at once, each with a token of their own, before a DataHUB that does what it must not: whoever leaves, and
//! whatever it answers, nobody gets a byte of what is another's.
//!
//! An answer repeats the hash of the token it was asked with, and the target, as often as fits: so each byte of it says whose
//! it is, also of one that breaks off.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use arcmanager_gateway::datahub::oidc::User;
use arcmanager_gateway::datahub::token::TokenSet;
use arcmanager_gateway::seal::Keyring;
use arcmanager_gateway::seal::cookie::SealedCookie;
use arcmanager_gateway::session::Session;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::time::{sleep, timeout};

use crate::browser::FETCH;
use crate::crowd::THOUSANDS_OF_FILES;
use crate::gateway::{BASE, PUBLIC_URL, Setup, datahub, new_key};

#[test]
fn of_two_thousand_people_at_once_nobody_gets_what_is_anothers() {
    cross(2_000, 2);
}

#[test]
#[ignore = "make long"]
fn of_ten_thousand_people_at_once_nobody_gets_what_is_anothers() {
    cross(10_000, 3);
}

/// So many people, each of whom goes so many rounds.
fn cross(people: usize, rounds: usize) {
    let _files = THOUSANDS_OF_FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let hubs = [datahub(), datahub()];
    let far_ends = [false, true].map(begin_far_end);
    let key = new_key();
    let lines = format!(
        "datahubs.a.connect = \"{}\"
        datahubs.b.connect = \"{}\"
        server.workers = 2
        limits.connections = 20000
        limits.in_flight = 512
        limits.waiting = 20000
        timeouts.connect = \"60s\"",
        far_ends[0], far_ends[1]
    );
    let setup = Setup::with_keys(&[("a", &hubs[0]), ("b", &hubs[1])], &[&key]).and(&lines);
    let gateway = setup.quiet().forgetting(&["\"target\":\"access\""]).start();
    let address = gateway.address.parse().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let figures: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let crossed = runtime.block_on(async {
        let all = Arc::new(Barrier::new(people));
        let tasks: Vec<_> = (0..people)
            .map(|number| {
                let person = Person::new(number, &key, address, Arc::clone(&figures));
                tokio::spawn(person.go(rounds, Arc::clone(&all)))
            })
            .collect();
        let mut crossed = Vec::new();
        for task in tasks {
            crossed.extend(task.await.expect("no panic").err());
        }
        crossed
    });
    let figures = figures.lock().expect("no panic while held");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{people} people: {figures:#?}\n").as_bytes());
    assert!(
        crossed.is_empty(),
        "{} people got what is not theirs: {:#?}",
        crossed.len(),
        &crossed[..crossed.len().min(10)]
    );
    let count = |what: &str| figures.get(what).copied().unwrap_or_default();
    let strange: Vec<_> = figures.keys().filter(|what| !EXPECTED.contains(&what.as_str())).collect();
    assert!(strange.is_empty(), "{strange:?}");
    for (what, least) in
        [("200", people * rounds), ("502", people / 50), ("broke off", people / 50), ("left", people / 10)]
    {
        assert!(count(what) >= least, "{what}: {} of {least} at least", count(what));
    }
    // Who answers everything twice is found out at the first three.
    assert!(gateway.metrics().contains("gateway_upstream_desync_total{datahub=\"a\"} 0\n"), "{}", gateway.metrics());
    assert!(!gateway.metrics().contains("gateway_upstream_desync_total{datahub=\"b\"} 0\n"), "{}", gateway.metrics());
}

/// How a call may end.
const EXPECTED: &[&str] = &["200", "502", "broke off", "left"];
/// What a call is answered with, in bytes, at most.
const LONGEST: usize = 20_000;

struct Person {
    number: usize,
    datahub: &'static str,
    cookies: String,
    /// The hash of the token.
    hash: String,
    address: SocketAddr,
    figures: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Person {
    /// One in ten is at the DataHUB `b`.
    fn new(number: usize, key: &str, address: SocketAddr, figures: Arc<Mutex<BTreeMap<String, usize>>>) -> Self {
        let datahub = if number % 10 == 9 { "b" } else { "a" };
        let token = format!("{number:x}-{:x}", dice(u64::MAX));
        let now = SystemTime::now();
        let day = Duration::from_hours(24);
        let session = Session {
            created_at: now,
            expires_at: now + day,
            idle_expires_at: now + day,
            user: User { id: number.to_string(), username: format!("person{number}"), name: String::new() },
            scopes: None,
            tokens: TokenSet {
                access: token.clone().try_into().expect("a token"),
                refresh: Some(format!("refresh-{token}").try_into().expect("a token")),
                issued: now,
                lifetime: day,
            },
            is_personal: false,
        };
        let ring = Keyring::new(vec![key.parse().expect("a key")]).expect("one key");
        let sid = std::array::from_fn(|_| u8::try_from(dice(256)).expect("a byte"));
        let sealed = SealedCookie::<Session>::new(format!("__Host-Http-session-{datahub}"), PUBLIC_URL);
        let (value, sid) = (sealed.seal(&ring, &sid, &session), URL_SAFE_NO_PAD.encode(sid));
        let cookies = format!("Cookie: {}={value}; __Host-Http-sid-{datahub}={sid}\r\n", sealed.name());
        Self { number, datahub, cookies, hash: hash(&token), address, figures }
    }

    /// All are connected before anybody asks. An error is what somebody got who should not have it.
    async fn go(self, rounds: usize, all: Arc<Barrier>) -> std::result::Result<(), String> {
        let mut connection = BufReader::new(TcpStream::connect(self.address).await.expect("it listens"));
        all.wait().await;
        for round in 0..rounds {
            let targets: Vec<_> =
                (0..=dice(4)).map(|call| format!("/api/v4/own/{}/{round}/{call}", self.number)).collect();
            if dice(4) == 0 {
                self.ask_and_leave(connection, &targets).await;
            } else if self.ask(&mut connection, &targets).await? {
                continue;
            }
            connection = BufReader::new(TcpStream::connect(self.address).await.expect("it listens"));
        }
        Ok(())
    }

    fn note(&self, what: impl Into<String>) {
        *self.figures.lock().expect("no panic while held").entry(what.into()).or_default() += 1;
    }

    /// GETs behind each other, and sometimes a POST as the last one.
    fn requests(&self, targets: &[String]) -> Vec<u8> {
        let mut requests = Vec::new();
        let has_body = dice(3) == 0;
        for (at, target) in targets.iter().enumerate() {
            let (method, body) = if has_body && at + 1 == targets.len() { ("POST", BODY) } else { ("GET", "") };
            let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
            requests.extend_from_slice(
                format!(
                    "{method} {BASE}/datahubs/{}{target} HTTP/1.1\r\nHost: localhost:8000\r\n{FETCH}{}{length}\r\n{body}",
                    self.datahub, self.cookies
                )
                .as_bytes(),
            );
        }
        requests
    }

    /// Leaves after a part of the requests or with answers unread, which resets the connection.
    async fn ask_and_leave(&self, mut connection: BufReader<TcpStream>, targets: &[String]) {
        let requests = self.requests(targets);
        let part = if dice(2) == 0 {
            requests.len()
        } else {
            usize::try_from(dice(requests.len() as u64)).expect("it was one")
        };
        let _ = connection.write_all(&requests[..part]).await;
        sleep(Duration::from_micros(dice(100_000))).await;
        self.note("left");
    }

    /// Whether the connection is of use after it.
    async fn ask(
        &self,
        connection: &mut BufReader<TcpStream>,
        targets: &[String],
    ) -> std::result::Result<bool, String> {
        let _ = connection.write_all(&self.requests(targets)).await;
        for target in targets {
            let mark = format!("{} {target} ", self.hash);
            let (mut status, mut body) = (0, Vec::new());
            let outcome = timeout(Duration::from_mins(2), answer(connection, &mut status, &mut body)).await;
            if status == 200 && !body.iter().zip(mark.as_bytes().iter().cycle()).all(|(got, own)| got == own) {
                return Err(format!("{mark}: {}", String::from_utf8_lossy(&body[..body.len().min(200)])));
            }
            let Ok(outcome) = outcome else {
                self.note(format!("no answer in time, status {status}"));
                return Ok(false);
            };
            // What comes behind one that breaks off is not answered any more.
            self.note(if outcome.is_ok() { status.to_string() } else { "broke off".to_owned() });
            if !outcome.unwrap_or(false) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

const BODY: &str = "{\"title\":\"something to be read to its end, or not\"}";

/// The next answer, and whether the connection is kept. What came of one that breaks off is in `body`.
async fn answer(connection: &mut BufReader<TcpStream>, status: &mut u16, body: &mut Vec<u8>) -> Result<bool> {
    let head = loop {
        let head = head(connection).await?;
        *status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        if *status >= 200 {
            break head;
        }
    };
    if let Some(length) = field(&head, "content-length") {
        take(connection, length.parse().map_err(|_| ErrorKind::InvalidData)?, body).await?;
    } else {
        loop {
            let mut line = String::new();
            connection.read_line(&mut line).await?;
            let length = usize::from_str_radix(line.trim_end(), 16).map_err(|_| ErrorKind::UnexpectedEof)?;
            take(connection, length, body).await?;
            connection.read_exact(&mut [0; 2]).await?;
            if length == 0 {
                break;
            }
        }
    }
    Ok(field(&head, "connection").is_none())
}

async fn head(connection: &mut BufReader<TcpStream>) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read_until(b'\n', &mut head).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    String::from_utf8(head).map_err(Error::other)
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

async fn take(connection: &mut BufReader<TcpStream>, length: usize, body: &mut Vec<u8>) -> Result<()> {
    let end = body.len() + length;
    while body.len() < end {
        let mut piece = vec![0; (end - body.len()).min(8_192)];
        let count = connection.read(&mut piece).await?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        body.extend_from_slice(&piece[..count]);
    }
    Ok(())
}

/// A DataHUB on a thread of its own, as long as the process lasts. `b` answers everything twice.
fn begin_far_end(is_twice: bool) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            tell.send(listener.local_addr().expect("it is bound")).expect("somebody waits");
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(BufReader::new(stream), is_twice));
                }
            }
        });
    });
    told.recv().expect("it listens")
}

/// Answers each call in another manner.
async fn serve(mut connection: BufReader<TcpStream>, is_twice: bool) -> Result<()> {
    connection.get_ref().set_nodelay(true)?;
    loop {
        let asked = head(&mut connection).await?;
        let target = asked.split(' ').nth(1).unwrap_or("?").to_owned();
        let token =
            field(&asked, "authorization").and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("nobody's");
        let mark = format!("{} {target} ", hash(token));
        let length = usize::try_from(dice(LONGEST as u64)).expect("small");
        let body: Vec<u8> = mark.bytes().cycle().take(length).collect();
        let plain = [format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), &body].concat();
        let length_asked = field(&asked, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let manner = dice(20);
        if manner != 0 || length_asked == 0 {
            take(&mut connection, length_asked, &mut Vec::new()).await?;
        }
        if is_twice {
            // Both at once: a second one that comes later is nobody's to tell from the answer of the next.
            connection.write_all(&plain.repeat(2)).await?;
            continue;
        }
        match manner {
            // Before the body is read, which is read then.
            0 => {
                connection.write_all(&plain).await?;
                take(&mut connection, length_asked, &mut Vec::new()).await?;
            }
            // In the middle, or before the beginning, it is gone.
            1 | 2 => {
                let most = if manner == 1 { plain.len() } else { 1 };
                let part = usize::try_from(dice(most as u64)).expect("it was one");
                connection.write_all(&plain[..part]).await?;
                return Ok(());
            }
            // Whole, and gone without a word.
            3 => return connection.write_all(&plain).await,
            4 => {
                connection
                    .write_all(&[b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".as_slice(), &plain].concat())
                    .await?;
            }
            // In chunks, with pauses.
            5..9 => {
                connection.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                for piece in body.chunks(4_000) {
                    sleep(Duration::from_millis(dice(20))).await;
                    let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
                    connection.write_all(&chunk).await?;
                }
                connection.write_all(b"0\r\n\r\n").await?;
            }
            // Not at once.
            9..12 => {
                sleep(Duration::from_millis(dice(300))).await;
                connection.write_all(&plain).await?;
            }
            _ => connection.write_all(&plain).await?,
        }
    }
}

fn hash(token: &str) -> String {
    Sha256::digest(token).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn dice(sides: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system's generator");
    u64::from_le_bytes(bytes) % sides
}
