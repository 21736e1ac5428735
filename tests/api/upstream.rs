//! A DataHUB that answers as none should; and one that does not answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use datahub::DataHub;
use datahub::behaviour::Answer as Manner;

use crate::browser::{Browser, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub};

/// What the caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The answer, whole.
    Whole,
    /// Status and no body.
    Empty(u16),
    /// A transfer that breaks off.
    Broken,
    /// 502 with this code.
    Refused(&'static str),
}

use Outcome::{Broken, Empty, Refused, Whole};

const INVALID: Outcome = Refused("datahub_invalid_response");

/// An answer, and whether its connection is closed after it.
struct Case {
    name: &'static str,
    method: &'static str,
    answer: Vec<u8>,
    closes: bool,
    outcome: Outcome,
    /// Whether bytes follow the answer.
    has_more: bool,
}

fn cases() -> Vec<Case> {
    let case = |name, answer: &str, closes, outcome| Case {
        name,
        method: "GET",
        answer: answer.replace('\n', "\r\n").replace('¶', "\n").into_bytes(),
        closes,
        outcome,
        has_more: HAVE_MORE.contains(&name),
    };
    let good = "HTTP/1.1 200 OK\nContent-Length: 6\n\nSECRET";
    let forged = "HTTP/1.1 200 OK\nContent-Length: 6\n\nFORGED";
    let with = |fields: &str| format!("HTTP/1.1 200 OK\n{fields}\n\nSECRET");
    let many = (0..200).map(|number| format!("X-{number}: 1\n")).collect::<String>();
    let mut cases = vec![
        // PR-09.
        case("as it should be", good, false, Whole),
        case("early hints", &format!("HTTP/1.1 103 Early Hints\nLink: </x>\n\n{good}"), false, Whole),
        case("100 twice", &format!("HTTP/1.1 100 Continue\n\nHTTP/1.1 100 Continue\n\n{good}"), false, Whole),
        case("processing", &format!("HTTP/1.1 102 Processing\n\n{good}"), false, Whole),
        case("an interim answer with a length", &format!("HTTP/1.1 103 x\nContent-Length: 6\n\n{good}"), false, Whole),
        case("an upgrade", "HTTP/1.1 101 Switching Protocols\nUpgrade: x\nConnection: upgrade\n\n", false, INVALID),
        case("an upgrade, then an answer", &format!("HTTP/1.1 101 x\n\n{good}"), false, INVALID),
        case("as many interim answers as there may be", &("HTTP/1.1 103 x\n\n".repeat(16) + good), false, Whole),
        case("one interim answer too many", &("HTTP/1.1 103 x\n\n".repeat(17) + good), false, INVALID),
        case("interim answers without end", &"HTTP/1.1 103 x\n\n".repeat(50_000), false, INVALID),
        case("an interim answer and the end", "HTTP/1.1 103 x\n\n", true, INVALID),
        // PR-10.
        case("bytes left over", &format!("{good}{forged}"), false, Whole),
        case("chunks and bytes left over", &format!("{}{forged}", chunked("6\nSECRET\n0\n\n")), false, Whole),
        case("chunks, extensions, trailers", &chunked("3;a=b\nSEC\n3;c\nRET\n0\nX: y\n\n"), false, Whole),
        case("no framing", "HTTP/1.1 200 OK\n\nSECRET", true, Whole),
        case("HTTP/1.0", "HTTP/1.0 200 OK\nContent-Length: 6\n\nSECRET", true, Whole),
        case("closing", &with("Content-Length: 6\nConnection: x, Close"), true, Whole),
        case("a length and chunks", &with("Content-Length: 6\nTransfer-Encoding: chunked"), false, INVALID),
        case("two lengths", &with("Content-Length: 6\nContent-Length: 60"), false, INVALID),
        case("the same length twice", &with("Content-Length: 6\nContent-Length: 6"), false, INVALID),
        case("two lengths in one", &with("Content-Length: 6, 6"), false, INVALID),
        case("a length with a sign", &with("Content-Length: +6"), false, INVALID),
        case("a length in hex", &with("Content-Length: 0x6"), false, INVALID),
        case("a length without digits", &with("Content-Length: "), false, INVALID),
        case("a length beyond 64 bits", &with("Content-Length: 18446744073709551622"), false, INVALID),
        case("a length that is too long", &with("Content-Length: 60"), true, Broken),
        case("a length that is too short", &format!("{}{forged}", with("Content-Length: 6")), false, Whole),
        case("another coding", &with("Transfer-Encoding: gzip, chunked"), false, INVALID),
        case("chunked twice", &with("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"), false, INVALID),
        case("chunks in HTTP/1.0", "HTTP/1.0 200 OK\nTransfer-Encoding: chunked\n\n0\n\n", true, INVALID),
        case("a bad chunk", &chunked("3\nSEC\nx\nRET\n0\n\n"), false, Broken),
        case("a chunk that is too long", &chunked("3\nSECRET\n0\n\n"), false, Broken),
        case("a bare LF in chunks", &chunked("6¶SECRET\n0\n\n"), false, Broken),
        case("chunks that break off", &chunked("6\nSECRET\n"), true, Broken),
        case("a chunk that breaks off", &chunked("60\nSECRET"), true, Broken),
        case("a last chunk without its end", &chunked("6\nSECRET\n0\n"), true, Broken),
        case("200 fields", &format!("HTTP/1.1 200 OK\n{many}Content-Length: 6\n\nSECRET"), false, INVALID),
        case("a field of a mebibyte", &with(&format!("X: {}", "x".repeat(1 << 20))), false, INVALID),
        case("a folded field", &with("X: a\n b\nContent-Length: 6"), false, INVALID),
        case("a NUL", &with("X: a\0b\nContent-Length: 6"), false, INVALID),
        case("a space before the colon", &with("Content-Length : 6"), false, INVALID),
        case("a field without a name", &with(": x\nContent-Length: 6"), false, INVALID),
        case("no answer but bytes", "SECRET\n\n", false, INVALID),
        case("another version", "HTTP/2.0 200 OK\nContent-Length: 6\n\nSECRET", false, INVALID),
        case("a status of two digits", "HTTP/1.1 20 OK\nContent-Length: 6\n\nSECRET", false, INVALID),
        case("a status of 999", "HTTP/1.1 999 OK\nContent-Length: 6\n\nSECRET", false, INVALID),
        case("a head that breaks off", "HTTP/1.1 200 OK\nContent-Le", true, INVALID),
        case("nothing", "", true, Refused("datahub_unreachable")),
        case("a body after 204", &good.replace("200 OK", "204 No Content"), false, Empty(204)),
        case("a body after 304", &good.replace("200 OK", "304 Not Modified"), false, Empty(304)),
    ];
    cases.push(Case { method: "HEAD", ..case("a body after HEAD", good, false, Empty(200)) });
    cases.push(Case { method: "POST", ..case("an answer before the body", good, false, Whole) });
    cases.push(Case { method: "POST", ..case("an answer before the body, and the end", good, true, Whole) });
    cases
}

/// The cases in which bytes follow the answer.
const HAVE_MORE: [&str; 6] = [
    "bytes left over",
    "chunks and bytes left over",
    "a length that is too short",
    "a body after 204",
    "a body after 304",
    "a body after HEAD",
];

fn chunked(body: &str) -> String {
    format!("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n{body}")
}

/// PR-09, PR-10, FR-09: after each of them the next caller on the same connections gets the own answer.
#[test]
fn whatever_came_before_the_next_caller_gets_the_own_answer() {
    let hub = datahub();
    let cases = Arc::new(cases());
    let (between, connections) = between(hub.address(), Arc::clone(&cases));
    let lines = format!("datahubs.a.connect = \"{between}\"\nserver.workers = 1\ntimeouts.first_byte = \"20s\"");
    let start = || {
        let gateway = Setup::new(&[("a", &hub)]).and(&lines).quiet().start();
        let people = [Browser::default(), Browser::default()];
        for person in &people {
            person.log_in(&gateway, "a", &hub, "testuser");
        }
        (gateway, people)
    };
    let check = |gateway: &Gateway, [attacker, next]: &[Browser; 2], number: usize, round: usize| {
        let case = &cases[number];
        assert_eq!(asked(attacker, gateway, case, number), case.outcome, "{}", case.name);
        for own in 0..2 {
            let answer = next.fetch(gateway, "GET", &format!("/datahubs/a/api/v4/own/{round}-{number}-{own}"));
            assert_eq!(answer.text(), format!("/api/v4/own/{round}-{number}-{own}"), "after {}", case.name);
        }
    };
    let (with_more, others): (Vec<_>, Vec<_>) = (0..cases.len()).partition(|number| cases[*number].has_more);
    let (gateway, people) = start();
    let rounds = if std::env::var_os("LONG").is_some() { 1_000 } else { 1_000_usize.div_ceil(cases.len()) };
    for round in 0..rounds {
        for number in &others {
            check(&gateway, &people, *number, round);
        }
    }
    assert!(gateway.metrics().contains("gateway_upstream_desync_total{datahub=\"a\"} 0"), "nothing came unasked");
    // After the third time nothing is kept any more, and nothing can go wrong. So each of them has a gateway of its own.
    for number in with_more {
        let (name, (gateway, people)) = (cases[number].name, start());
        for round in 0..3 {
            check(&gateway, &people, number, round);
        }
        assert!(gateway.metrics().contains("gateway_upstream_desync_total{datahub=\"a\"} 3"), "{name}");
        let lines = gateway.log();
        let errors = lines.iter().filter(|line| line["level"] == "ERROR" && line["datahub"] == "a").count();
        assert_eq!(errors, 4, "{name}");
        let before = connections.load(Ordering::SeqCst);
        check(&gateway, &people, number, 3);
        assert_eq!(connections.load(Ordering::SeqCst), before + 3, "{name}: a connection is used again");
    }
}

fn asked(browser: &Browser, gateway: &Gateway, case: &Case, number: usize) -> Outcome {
    let target = format!("{BASE}/datahubs/a/api/v4/evil/{number}");
    // Longer than any buffer between here and there, so that it cannot have been sent when the answer comes.
    let length = if case.method == "POST" { 32 << 20 } else { 0 };
    let fields = if length > 0 { format!("{FETCH}Content-Length: {length}\r\n") } else { FETCH.to_owned() };
    let mut connection = browser.begin(gateway, case.method, &target, &fields);
    if length > 0 {
        connection.write(&vec![b'x'; 1 << 16]);
    }
    // What breaks off has begun: without a byte of an answer a browser would send the call again.
    let answer = connection.head();
    if case.method == "HEAD" || matches!(answer.status, 204 | 304) {
        let announced = if answer.status == 204 { None } else { Some("6".to_owned()) };
        assert_eq!(answer.header("content-length"), announced, "{}", case.name);
        return Empty(answer.status);
    }
    match connection.body(&answer) {
        Err(_) => Broken,
        Ok(body) if answer.status == 200 && body == b"SECRET" => Whole,
        Ok(body) => {
            let text = String::from_utf8_lossy(&body);
            let codes = ["datahub_invalid_response", "datahub_unreachable"];
            let code = codes.into_iter().find(|code| text.contains(code)).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(answer.status, 502);
            Refused(code)
        }
    }
}

/// Stands between the gateway and the DataHUB at `hub`: answers `/api/v4/evil/{number}` as the case says,
/// `/api/v4/own/…` with its own path, and leaves everything else to the DataHUB. Counts connections.
fn between(hub: SocketAddr, cases: Arc<Vec<Case>>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let cases = Arc::clone(&cases);
            thread::spawn(move || serve(&stream, hub, &cases));
        }
    });
    (address, count)
}

fn serve(stream: &TcpStream, hub: SocketAddr, cases: &[Case]) -> Option<()> {
    let mut reader = BufReader::new(stream);
    stream.set_nodelay(true).ok()?;
    for turn in 1_usize.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
        }
        let text = String::from_utf8_lossy(&head);
        let target = text.split(' ').nth(1)?;
        if let Some(number) = target.strip_prefix("/api/v4/evil/") {
            let case = cases.get(number.parse::<usize>().ok()?)?;
            // The answer comes in two pieces, the second from any place of its first half; never after a whole answer, which
            // would be a second one that comes too late for anybody to notice.
            let (first, rest) = case.answer.split_at(turn * 7919 % (case.answer.len() / 2).max(1));
            (&*stream).write_all(first).ok()?;
            thread::sleep(Duration::from_micros((turn * 37 % 500) as u64));
            (&*stream).write_all(rest).ok()?;
            if case.closes {
                return None;
            }
        } else if target.starts_with("/api/v4/own/") {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
            (&*stream).write_all(answer.as_bytes()).ok()?;
        } else {
            let mut far = TcpStream::connect(hub).ok()?;
            far.write_all(&head).ok()?;
            far.write_all(reader.buffer()).ok()?;
            let (mut down, mut near) = (far.try_clone().ok()?, stream.try_clone().ok()?);
            thread::spawn(move || {
                std::io::copy(&mut down, &mut near).ok();
                near.shutdown(std::net::Shutdown::Both).ok();
            });
            std::io::copy(&mut &*stream, &mut far).ok();
            far.shutdown(std::net::Shutdown::Both).ok();
            return None;
        }
    }
    None
}

/// DS-04: as many calls as may be under way, as many as may wait, and not one more.
#[test]
fn who_finds_no_place_is_told_when_to_come_again() {
    let hub = datahub();
    let lines = "limits.in_flight = 1\nlimits.waiting = 1\ntimeouts.connect = \"2s\"";
    let gateway = Setup::new(&[("a", &hub)]).and(lines).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    hub.set(|behaviour| behaviour.api.answer = Manner::Hang);
    let user = format!("{BASE}/datahubs/a/api/v4/user");
    let first = browser.begin(&gateway, "GET", &user, FETCH);
    while hub.requests().last().is_none_or(|request| request.target() != "/api/v4/user") {
        thread::sleep(Duration::from_millis(10));
    }
    let mut second = browser.begin(&gateway, "GET", &user, FETCH);
    thread::sleep(Duration::from_millis(300));
    let third = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
    assert_eq!((third.status, third.code().as_str()), (503, "overloaded"));
    assert_eq!(third.header("retry-after").as_deref(), Some("1"));
    assert_eq!(second.answer(true).code(), "overloaded", "nobody waits for ever");
    hub.set(|behaviour| behaviour.api.answer = Manner::Normal);
    // A client that leaves makes room.
    drop(first);
    let begin = Instant::now();
    while browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(10), "the place is still taken");
    }
}

/// A DataHUB behind a unix socket: answers one `/api/v4/own/…` on each connection and closes it at the next, without a
/// byte; leaves everything else to the DataHUB at `hub`. Gives what it was asked.
fn forgetful(path: &Path, hub: SocketAddr) -> Arc<Mutex<Vec<String>>> {
    let (listener, asked) = (UnixListener::bind(path).expect("a path of our own"), Arc::new(Mutex::new(Vec::new())));
    let keep = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let asked = Arc::clone(&keep);
            thread::spawn(move || remember_once(&stream, hub, &asked));
        }
    });
    asked
}

fn remember_once(stream: &UnixStream, hub: SocketAddr, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    for turn in 0.. {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if reader.read_until(b'\n', &mut head).ok()? == 0 {
                return None;
            }
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let target = text.split(' ').nth(1)?.to_owned();
        if target.starts_with("/api/v4/own/") {
            asked.lock().expect("no panic while held").push(target);
            if turn == 1 {
                return None;
            }
            (&*stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nown").ok()?;
            continue;
        }
        let mut far = TcpStream::connect(hub).ok()?;
        far.write_all(&head).ok()?;
        far.write_all(reader.buffer()).ok()?;
        let (mut down, mut near) = (far.try_clone().ok()?, stream.try_clone().ok()?);
        thread::spawn(move || {
            std::io::copy(&mut down, &mut near).ok();
            near.shutdown(std::net::Shutdown::Both).ok();
        });
        std::io::copy(&mut &*stream, &mut far).ok();
        far.shutdown(std::net::Shutdown::Both).ok();
        return None;
    }
    None
}

#[test]
fn what_may_be_repeated_is_sent_once_more_when_a_kept_connection_turns_out_to_be_closed() {
    let (hub, folder) = (datahub(), Folder::default());
    let path = folder.path().join("gitlab.sock");
    let asked = forgetful(&path, hub.address());
    let lines = format!("datahubs.a.connect = \"unix:{}\"\nserver.workers = 1", path.display());
    let gateway = Setup::new(&[("a", &hub)]).and(&lines).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let ask = |method: &str, name: &str, kind: &str| {
        let fields = if method == "GET" { FETCH.to_owned() } else { format!("{FETCH}{kind}Content-Length: 2\r\n") };
        let body: &[u8] = if method == "GET" { b"" } else { b"{}" };
        let answer = browser.send(&gateway, method, &format!("{BASE}/datahubs/a/api/v4/own/{name}"), &fields, body);
        (answer.status, std::mem::take(&mut *asked.lock().expect("no panic while held")).len())
    };
    let json = "Content-Type: application/json\r\n";
    for (method, name, kind, expected) in [
        ("GET", "new", "", (200, 1)),
        ("GET", "kept", "", (200, 2)),
        ("POST", "kept", json, (502, 1)),
        ("GET", "new-again", "", (200, 1)),
        ("DELETE", "kept", json, (200, 2)),
        // It might be repeated, but its body is gone.
        ("PUT", "kept", "Content-Type: application/octet-stream\r\n", (502, 1)),
    ] {
        assert_eq!(ask(method, name, kind), expected, "{method} {name}");
    }
}

/// Answers `/api/v4/own…` by the number of the connection, after a moment, and says that it keeps one for a second; a request
/// that comes after more than half of it meets the end of the connection.
fn brief(hub: SocketAddr) -> SocketAddr {
    let count = AtomicUsize::new(0);
    far_end::before(hub, move |reader, head| {
        let (mut head, number) = (Some(head.to_owned()), count.fetch_add(1, Ordering::SeqCst).to_string());
        while let Some(request) = head {
            let has_body = request.to_ascii_lowercase().contains("content-length: 2");
            let read = reader.read_exact(&mut vec![0; if has_body { 2 } else { 0 }]);
            thread::sleep(Duration::from_millis(if request.contains("slow") { 200 } else { 0 }));
            let length = number.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: {length}\r\n\r\n{number}");
            if read.and_then(|()| reader.get_mut().write_all(answer.as_bytes())).is_err() {
                return;
            }
            let answered = Instant::now();
            head = far_end::head(reader).filter(|_| answered.elapsed() < Duration::from_millis(500));
        }
    })
}

/// The number of the connection that a call of this person went over.
fn went_over(browser: &Browser, gateway: &Gateway, method: &str, name: &str) -> String {
    let path = format!("/datahubs/a/api/v4/own/{name}");
    let answer = match method {
        "GET" => browser.fetch(gateway, method, &path),
        _ => browser.fetch_with(gateway, method, &path, "application/json", b"{}"),
    };
    assert_eq!(answer.status, 200, "{method} {name}");
    answer.text()
}

#[test]
fn what_must_not_be_sent_twice_goes_over_no_connection_that_the_datahub_is_about_to_close() {
    let hub = datahub();
    let lines = format!("datahubs.a.connect = \"{}\"\nserver.workers = 1", brief(hub.address()));
    let gateway = Setup::new(&[("a", &hub)]).and(&lines).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    for method in ["POST", "PATCH", "PUT", "GET"] {
        let first = went_over(&browser, &gateway, method, "a");
        assert_eq!(went_over(&browser, &gateway, method, "a"), first, "{method}: it is kept");
        thread::sleep(Duration::from_millis(600));
        assert_ne!(went_over(&browser, &gateway, method, "a"), first, "{method}: it is too old");
    }
}

#[test]
fn each_session_goes_on_over_the_connection_that_it_used_last() {
    let hub = datahub();
    let lines = format!("datahubs.a.connect = \"{}\"\nserver.workers = 1", brief(hub.address()));
    let gateway = Setup::new(&[("a", &hub)]).and(&lines).start();
    let [one, other] = ["testuser", "testuser"].map(|user| {
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, user);
        browser
    });
    let (first, second) = thread::scope(|scope| {
        let call = scope.spawn(|| went_over(&one, &gateway, "GET", "slow"));
        let second = went_over(&other, &gateway, "GET", "slow");
        (call.join().expect("no panic"), second)
    });
    assert_ne!(first, second, "they were under way at once");
    for (person, expected) in [(&one, &first), (&other, &second), (&other, &second), (&one, &first), (&one, &first)] {
        assert_eq!(&went_over(person, &gateway, "GET", "a"), expected);
    }
}

/// A front that answers everything twice, the second time up to 5 ms late.
#[test]
fn who_answers_twice_is_found_out_and_then_nobody_gets_what_is_anothers() {
    let hub = datahub();
    let front = far_end::before(hub.address(), |reader, head| {
        let mut head = Some(head.to_owned());
        for turn in 0.. {
            let Some(target) = head.as_deref().and_then(|head| head.split(' ').nth(1)) else { return };
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
            for pause in [0, turn % 6] {
                thread::sleep(Duration::from_millis(pause));
                if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            head = far_end::head(reader);
        }
    });
    let lines = format!("datahubs.a.connect = \"{front}\"\nserver.workers = 1");
    let gateway = Setup::new(&[("a", &hub)]).and(&lines).quiet().start();
    let people = ["one", "other"].map(|name| {
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        (name, browser)
    });
    let call = |(name, browser): &(&str, Browser), number: usize| {
        let target = format!("/api/v4/own/{name}/{number}");
        browser.fetch(&gateway, "GET", &format!("/datahubs/a{target}")).text() == target
    };
    let count = || {
        let metrics = gateway.metrics();
        let count = metrics.lines().find_map(|line| line.strip_prefix("gateway_upstream_desync_total{datahub=\"a\"} "));
        count.and_then(|count| count.parse::<u32>().ok()).expect("it is there from the beginning")
    };
    let until = Instant::now() + Duration::from_secs(10);
    while count() < 3 {
        assert!(Instant::now() < until, "it is not found out");
        thread::scope(|scope| {
            for person in &people {
                scope.spawn(|| call(person, 0));
            }
        });
    }
    for number in 1..=20 {
        assert!(people.iter().all(|person| call(person, number)), "somebody got what is not theirs");
    }
}

/// Nobody is accepted at `path` any more, and nobody refused: so many wait there already. Lasts as long as what it gives.
fn silence(path: &Path) -> impl Sized + use<> {
    std::fs::remove_file(path).expect("somebody was there");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (listener, mut waiting) = runtime.block_on(async {
        let socket = tokio::net::UnixSocket::new_stream().expect("a socket");
        socket.bind(path).expect("a path of our own");
        (socket.listen(1).expect("a listener"), Vec::new())
    });
    while let Ok(stream) = runtime.block_on(tokio::net::UnixStream::connect(path)) {
        waiting.push(stream);
    }
    (listener, waiting, runtime)
}

/// A gateway in front of a host that falls silent once somebody is logged in.
fn before_a_silent_host(lines: &str) -> (DataHub, Gateway, Browser, impl Sized + use<>) {
    let (hub, folder) = (datahub(), Folder::default());
    let path = folder.path().join("gitlab.sock");
    forgetful(&path, hub.address());
    let lines = format!("datahubs.a.connect = \"unix:{}\"\nserver.workers = 1\n{lines}", path.display());
    let gateway = Setup::new(&[("a", &hub)]).and(&lines).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let silence = silence(&path);
    (hub, gateway, browser, (folder, silence))
}

/// DS-04: who waits for a place meanwhile does not find out anew that the host is silent.
#[test]
fn who_has_waited_for_a_place_at_a_host_that_is_found_silent_does_not_try_it() {
    // Five places for each person.
    let (_hub, gateway, browser, _silence) = before_a_silent_host("limits.in_flight = 40\ntimeouts.connect = \"2s\"");
    let target = format!("{BASE}/datahubs/a/api/v4/own/a");
    let begin = || browser.begin(&gateway, "GET", &target, FETCH);
    let first: Vec<_> = (0..5).map(|_| begin()).collect();
    thread::sleep(Duration::from_millis(500));
    let waiting: Vec<_> = (0..5).map(|_| begin()).collect();
    for mut call in first {
        assert_eq!(call.answer(true).code(), "datahub_timeout");
    }
    let last = waiting.into_iter().map(|mut call| call.answer(true)).next_back().expect("five of them");
    assert_eq!((last.code().as_str(), last.header("retry-after").as_deref()), ("datahub_unreachable", Some("1")));
}

/// DS-04: apps that give up before `timeouts.connect` find out, too; not those that give up at once.
#[test]
fn a_silent_host_is_found_out_although_nobody_waits_for_it_to_the_end() {
    let (_hub, gateway, browser, _silence) = before_a_silent_host("timeouts.connect = \"20s\"");
    let target = format!("{BASE}/datahubs/a/api/v4/own/a");
    let leave_after = |patience: u64| {
        let calls: Vec<_> = (0..5).map(|_| browser.begin(&gateway, "GET", &target, FETCH)).collect();
        thread::sleep(Duration::from_millis(patience));
        drop(calls);
        thread::sleep(Duration::from_millis(200));
        gateway.metrics().contains("gateway_datahub_up{datahub=\"a\"} 1")
    };
    assert!(leave_after(300), "who leaves at once says nothing about the host");
    assert!(!leave_after(2_500), "nobody has found out");
}
