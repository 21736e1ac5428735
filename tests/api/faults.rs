//! Each call out, and each way in which what is at its other end may fail: what people are told, how soon, and at what cost.
//!
//! [`TABLE`] is the document. Each of its rows has a gateway of its own, before DataHUBs of which each fails at one call, and
//! before one that is well, which must not notice. Once a DataHUB is as it should be, whoever was logged in there still is.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufReader, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use ::datahub::{DataHub, Options};
use rustix::net::sockopt::{set_socket_linger, set_socket_send_buffer_size};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::bridge::bridged;
use crate::browser::{Browser, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Gateway, Setup, binary, datahub, new_key, wait_until};
use crate::tls::{Authority, Far};

/// What the gateway asks of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Discovery,
    Keys,
    Exchange,
    Userinfo,
    Refresh,
    Revoke,
    Api,
    Bridge,
}

/// How that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Nobody listens.
    Refused,
    /// The connection is reset once the request is there.
    Reset,
    /// The request is taken, and nothing said.
    Stall,
    /// A byte now and then, without an end: of the head where bodies are passed on as they come, else of the body.
    Drip,
    /// The connection ends within the body.
    Truncated,
    /// It is reset there.
    ResetWithin,
    /// Bytes that are no HTTP.
    Garbage,
    /// A head of 1 MiB.
    LongHead,
    /// A body of 10 GiB.
    LongBody,
    /// A certificate that nobody known vouches for.
    WrongTls,
    /// The name is not to be found.
    NoName,
    /// Whoever knows the name says nothing.
    SlowName,
}

const CALLS: [Call; 8] = {
    use Call::{Api, Bridge, Discovery, Exchange, Keys, Refresh, Revoke, Userinfo};
    [Discovery, Keys, Exchange, Userinfo, Refresh, Revoke, Api, Bridge]
};

const FAULTS: [Fault; 12] = {
    use Fault::{
        Drip, Garbage, LongBody, LongHead, NoName, Refused, Reset, ResetWithin, SlowName, Stall, Truncated, WrongTls,
    };
    [Refused, Reset, Stall, Drip, Truncated, ResetWithin, Garbage, LongHead, LongBody, WrongTls, NoName, SlowName]
};

/// What comes of each of [`FAULTS`] at each of [`CALLS`]: the status and its code, or the word that the app is told; of an
/// answer that is not whole the code that the log has. What the bridge has comes of the API, too.
const TABLE: &str = "
             discovery    keys         code         userinfo     refresh                  revoke  API and bridge
Refused      unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     502:datahub_unreachable
Reset        unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     502:datahub_unreachable
Stall        unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     504:datahub_timeout
Drip         unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     504:datahub_timeout
Truncated    unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     200:upstream_broke
ResetWithin  unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     200:upstream_broke
Garbage      unavailable  unavailable  unavailable  failed       503:refresh_unavailable  204     502:datahub_invalid_response
LongHead     unavailable  unavailable  unavailable  failed       503:refresh_unavailable  204     502:datahub_invalid_response
LongBody     unavailable  unavailable  failed       failed       503:refresh_unavailable  204     200:client_gone
WrongTls     unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     502:datahub_unreachable
NoName       unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     502:datahub_unreachable
SlowName     unavailable  unavailable  unavailable  unavailable  503:refresh_unavailable  204     504:datahub_timeout
";

/// Every limit of the gateways here.
const LIMIT: Duration = Duration::from_secs(3);
/// After these a revocation is not tried again: no pause turns them into an answer. The tokens live on, and the log says so.
const LASTING: [Fault; 3] = [Fault::Garbage, Fault::LongHead, Fault::LongBody];
/// How long a token is young: `session.remember` of the gateways here.
const YOUNG: Duration = Duration::from_secs(1);
/// How long a call may take: a refresh that broke is tried twice; the rest is for slow machines.
const MAX_TIME: Duration = Duration::from_secs(12);
/// By how much the highest memory may grow in each row, in bytes: documents of 2 MiB are held a few times over.
const MAX_GROWTH: u64 = 32 << 20;
/// How much of an answer without end people read, in bytes.
const READ: usize = 2 << 20;

/// How much of what has no end is taken, in bytes: what the system's buffers of two connections may hold, and a little more.
fn max_taken() -> u64 {
    let longest = |buffer| {
        let sizes = fs::read_to_string(format!("/proc/sys/net/ipv4/{buffer}")).expect("Linux tells");
        sizes.split_whitespace().last().and_then(|max| max.parse::<u64>().ok()).expect("three sizes")
    };
    2 * (longest("tcp_rmem") + longest("tcp_wmem")) + (4 << 20)
}

#[test]
fn whatever_fails_is_told_in_time_and_costs_neither_memory_nor_a_session_nor_anybody_else() {
    let wrong: Vec<String> = thread::scope(|scope| {
        let lines = TABLE.lines().skip(2).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let rows = FAULTS.into_iter().zip(lines).map(|(fault, expected)| {
            assert_eq!(format!("{fault:?}"), expected[0]);
            scope.spawn(move || row(fault, &expected[1..]))
        });
        rows.collect::<Vec<_>>().into_iter().flat_map(|row| row.join().expect("each row runs to its end")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A thread looks up each name, for as long as whoever knows it says nothing: those who wait for one must not take them all.
#[test]
fn names_that_nobody_tells_keep_nobody_from_other_names() {
    let Some(World { hub, fronts, gateway, people, .. }) = &World::new(Fault::SlowName, Duration::from_secs(5)) else {
        return;
    };
    hub.add_people(5);
    let crowd: Vec<_> = (1..=5).map(|number| (Browser::default(), format!("person{number}"))).collect();
    for (person, name) in &crowd {
        person.log_in(gateway, "api", hub, name);
    }
    let well = || people[CALLS.len()].fetch(gateway, "GET", "/datahubs/well/api/v4/user").status;
    assert_eq!(well(), 200);
    let front = fronts.iter().find(|front| front.call == Some(Call::Api)).expect("one of the calls");
    front.arm();
    let path = format!("{BASE}/datahubs/api/api/v4/user");
    let waiting: Vec<_> = crowd
        .iter()
        // One person holds no more places than these.
        .flat_map(|(person, _)| (0..128).map(|_| person.begin(gateway, "GET", &path, FETCH)))
        .collect();
    let begun = Instant::now();
    let mut answers = Vec::new();
    while begun.elapsed() < LIMIT / 3 {
        answers.push(well());
    }
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
    assert!(begun.elapsed() < LIMIT, "somebody waited: {:?}", begun.elapsed());
    drop(waiting);
    front.disarm();
    // The gateway itself finds out that the name is known again.
    wait_until(|| ask(gateway, &crowd[0].0, "/datahubs/api/api/v4/user") == "200");
}

/// What is held for clients has its limits (`tests/api/crowd.rs`); a machine that has less than that is told so at once, and
/// whoever watches the process may start another.
#[test]
fn a_process_without_memory_ends_at_once_with_a_line() {
    let hub = datahub();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 60000 && exec \"$0\" --config \"$GATEWAY_OF_A_TEST\""]).arg(binary()).env_clear();
    let mut gateway = Setup::new(&[("a", &hub)]).and("server.workers = 1").quiet().start_as(command);
    assert_eq!(Browser::default().fetch(&gateway, "GET", "/datahubs").status, 200, "there is enough for one");
    let half = format!("GET / HTTP/1.1\r\nHost: localhost:8000\r\nX-Half: {}", "a".repeat(30 << 10));
    let begun = Instant::now();
    let mut crowd = Vec::new();
    while begun.elapsed() < MAX_TIME {
        let Ok(mut stream) = TcpStream::connect(&gateway.address) else { break };
        if stream.write_all(half.as_bytes()).is_err() {
            break;
        }
        crowd.push(stream);
    }
    let status = gateway.wait_for_end().expect("it ends");
    assert_eq!(status.signal(), Some(6), "{status:?} with {} connections", crowd.len());
    gateway.wait_for(|line| line.starts_with("memory allocation of ").then_some(()));
}

/// Runs all calls with one fault; returns what was not as expected.
fn row(fault: Fault, expected: &[&str]) -> Vec<String> {
    let Some(world) = World::new(fault, LIMIT) else { return Vec::new() };
    let World { hub, fronts, gateway, people, .. } = &world;
    if LASTING.contains(&fault) {
        gateway.expects_orphans(1, "what answers a revocation is not the DataHUB");
    }
    let (memory, is_over) = (gateway.peak_memory(), AtomicBool::new(false));
    let mut wrong: Vec<String> = thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (mut failures, well, started) = (Vec::new(), &people[CALLS.len()], Instant::now());
            // Nor for ever, should a row panic.
            while !is_over.load(Ordering::Relaxed) && started.elapsed() < Duration::from_mins(1) {
                let begun = Instant::now();
                let status = well.fetch(gateway, "GET", "/datahubs/well/api/v4/user").status;
                if status != 200 || begun.elapsed() > MAX_TIME {
                    failures.push(format!("the other DataHUB: {status} after {:?}", begun.elapsed()));
                }
                sleep(LIMIT / 30);
            }
            failures
        });
        let calls = CALLS.into_iter().enumerate().map(|(at, call)| {
            let (front, person, expected) = (&fronts[at], &people[at], expected[at.min(expected.len() - 1)]);
            scope.spawn(move || one(call, expected, front, gateway, hub, person))
        });
        let calls: Vec<_> = calls.collect();
        let mut wrong: Vec<_> =
            calls.into_iter().flat_map(|call| call.join().expect("each call runs to its end")).collect();
        is_over.store(true, Ordering::Relaxed);
        wrong.extend(other.join().expect("it does not panic"));
        wrong
    });
    let growth = gateway.peak_memory().saturating_sub(memory);
    if growth >= MAX_GROWTH {
        wrong.push(format!("{growth} bytes more"));
    }
    wrong.into_iter().map(|what| format!("{fault:?}: {what}")).collect()
}

/// Makes one call that fails, and looks what is left of the session; returns what was not as expected.
fn one(
    call: Call,
    expected: &str,
    front: &Arc<Front>,
    gateway: &Gateway,
    hub: &DataHub,
    person: &Browser,
) -> Vec<String> {
    let prepared = prepare(call, gateway, hub, person);
    front.arm();
    let begun = Instant::now();
    let got = act(call, gateway, person, &prepared);
    let took = begun.elapsed();
    front.disarm();
    wait_until(|| front.failing.load(Ordering::SeqCst) == 0);
    let (has_begun, taken) = (front.has_begun.load(Ordering::SeqCst), front.taken.load(Ordering::SeqCst));
    let again = afterwards(call, gateway, hub, person);
    let checks = [
        (got == expected, format!("{got}, expected {expected}")),
        (has_begun, "nothing failed".to_owned()),
        (took < MAX_TIME, format!("took {took:?}")),
        (taken < max_taken(), format!("{taken} bytes taken")),
        (again == "200", format!("and afterwards {again}")),
    ];
    checks.into_iter().filter(|(is_right, _)| !is_right).map(|(_, what)| format!("{call:?}: {what}")).collect()
}

/// The DataHUB's id, and that of the front before it.
fn id(call: Call) -> String {
    format!("{call:?}").to_lowercase()
}

/// What must have been before a call is made: where a login comes back to, or that the metadata are known.
fn prepare(call: Call, gateway: &Gateway, hub: &DataHub, person: &Browser) -> String {
    match call {
        Call::Exchange | Call::Userinfo => person.begin_login(gateway, &id(call), hub, "testuser"),
        Call::Refresh | Call::Revoke => {
            // A token that is younger is not renewed.
            sleep(YOUNG);
            Browser::default().authorize(gateway, &id(call))
        }
        _ => String::new(),
    }
}

/// Does what makes the gateway call; returns what comes of it.
fn act(call: Call, gateway: &Gateway, person: &Browser, callback: &str) -> String {
    let id = id(call);
    let answer = match call {
        Call::Discovery | Call::Keys => person.navigate(gateway, &format!("{BASE}/auth/login?datahub={id}")),
        Call::Exchange | Call::Userinfo => person.open(gateway, callback),
        Call::Refresh => person.fetch(gateway, "POST", &format!("/auth/refresh?datahub={id}")),
        Call::Revoke => person.fetch(gateway, "POST", "/auth/logout"),
        Call::Api => return ask(gateway, person, &format!("/datahubs/{id}/api/v4/user")),
        Call::Bridge => return ask(gateway, person, "/projects/arc_list"),
    };
    match answer.status {
        303 => answer.location().rsplit('=').next().expect("a word").to_owned(),
        200..400 => answer.status.to_string(),
        status => format!("{status}:{}", answer.code()),
    }
}

/// Makes a call that is passed on, and reads some of its answer; of one that is not whole, what the log has.
fn ask(gateway: &Gateway, person: &Browser, path: &str) -> String {
    let mut connection = person.begin(gateway, "GET", &format!("{BASE}{path}"), FETCH);
    let mut answer = connection.head();
    let is_whole = if answer.header("transfer-encoding").is_some() {
        let mut read = 0;
        while read < READ {
            read += connection.chunk().expect("it has no end").len();
        }
        // Nobody reads now.
        sleep(LIMIT / 6);
        drop(connection);
        false
    } else {
        connection.body(&answer).map(|body| answer.body = body).is_ok()
    };
    let code = match (is_whole, answer.status) {
        (true, 200) => return "200".to_owned(),
        (true, _) => answer.code(),
        (false, _) => {
            let id = answer.header("x-request-id");
            let line = gateway
                .wait_for_line(|line| line["target"] == "access" && line["request_id"].as_str() == id.as_deref());
            line["code"].as_str().unwrap_or_default().to_owned()
        }
    };
    format!("{}:{code}", answer.status)
}

/// What becomes of a session once its DataHUB is as it should be.
fn afterwards(call: Call, gateway: &Gateway, hub: &DataHub, person: &Browser) -> String {
    match call {
        Call::Revoke => person.log_in(gateway, &id(call), hub, "testuser"),
        Call::Bridge => return ask(gateway, person, "/projects/arc_list"),
        _ => {}
    }
    ask(gateway, person, &format!("/datahubs/{}/api/v4/user", id(call)))
}

/// One gateway before one DataHUB, to which a front for each call leads.
struct World {
    gateway: Gateway,
    /// One for each of [`CALLS`], and one who is logged in where all is well.
    people: Vec<Browser>,
    fronts: Vec<Arc<Front>>,
    hub: DataHub,
}

impl World {
    /// Everything is well, and a connection may take so long; `None` where the fault needs rights that we lack.
    fn new(fault: Fault, connect: Duration) -> Option<Self> {
        let is_of_names = matches!(fault, Fault::NoName | Fault::SlowName);
        let names = is_of_names.then(Names::start);
        if matches!(names, Some(None)) {
            // Past what the test harness captures.
            let _ = writeln!(std::io::stderr(), "NOT RUN: {fault:?}: only root may say who knows names");
            return None;
        }
        let names = names.flatten();
        let has_tls = fault == Fault::WrongTls;
        let public_url = has_tls.then(|| "https://localhost:1".to_owned());
        let hub = DataHub::start(Options { public_url, ..Options::default() }).expect("a free port");
        let [authority, other] = [Authority::new(), Authority::new()];
        let fronts = CALLS.map(Some).into_iter().chain([None]).map(|call| {
            let certify = |authority: &Authority| {
                let far = Far::tls(authority.certify("localhost", 2020, 2050), &[&rustls::version::TLS13]);
                let Far::Tls(config) = far else { unreachable!("it is TLS") };
                config
            };
            let tls = has_tls.then(|| [&authority, &other].map(certify));
            let name = match call {
                Some(call) => format!("{}.localhost", id(call)),
                None => "well.localhost".to_owned(),
            };
            Front::start(call, fault, hub.address(), tls, names.clone().map(|names| (names, name)))
        });
        let fronts: Vec<_> = fronts.collect();

        let mut lines = "server.workers = 2\nsession.remember = \"1s\"\n".to_owned();
        let (url, client, secret) = (hub.url(), hub.client_id(), hub.client_secret());
        for front in fronts.iter().filter(|front| front.call != Some(Call::Bridge)) {
            let id = front.call.map_or("well".to_owned(), id);
            writeln!(
                lines,
                "datahubs.{id} = {{ url = {url:?}, client_id = {client:?}, client_secret = {secret:?}, connect = {:?} }}",
                front.place()
            )
            .expect("a String takes everything");
        }
        let bridge = fronts.iter().find(|front| front.call == Some(Call::Bridge)).expect("one of the calls");
        // The books know the DataHUB by another id.
        let setup = Setup::with_keys(&[("own", &hub)], &[&new_key()]).and(&lines);
        let port = bridge.address.port();
        let url = if has_tls { format!("https://localhost:{port}") } else { format!("http://{}", bridge.place()) };
        let setup = bridged(setup, &url);
        let script = names.as_ref().map_or_else(String::new, |names| {
            let file =
                setup.file("resolv.conf", &format!("nameserver {}\noptions timeout:4 attempts:1\n", names.address));
            format!("mount --bind {} /etc/resolv.conf && ", file.display())
        });
        let start = |setup: &Setup| {
            let mut command = Command::new(if is_of_names { "unshare" } else { "sh" });
            command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
            if is_of_names {
                command.args(["--mount", "sh"]);
            }
            command.env("SSL_CERT_FILE", setup.file("ca.pem", &authority.pem()));
            command.args(["-c", &format!("{script}exec \"$0\" --config \"$GATEWAY_OF_A_TEST\"")]).arg(binary());
            setup.start_as(command)
        };
        // They log in by another process, so that this one has asked for nothing yet.
        let before = start(&setup);
        let person = |id: String| {
            let browser = Browser::default();
            browser.log_in(&before, &id, &hub, "testuser");
            browser
        };
        let at = |call| if call == Call::Bridge { "well".to_owned() } else { id(call) };
        let people = CALLS.map(at).into_iter().chain(["well".to_owned()]).map(person).collect();
        drop(before);
        let limits =
            ["timeouts.first_byte", "timeouts.idle", "timeouts.back_channel", "timeouts.token", "bridge.first_byte"];
        let limits = limits.map(|key| (key, LIMIT)).into_iter().chain([("timeouts.connect", connect)]);
        let limits: Vec<_> = limits.map(|(key, limit)| format!("{key} = \"{}s\"", limit.as_secs())).collect();
        Some(Self { gateway: start(&setup.clone().and(&limits.join("\n"))), people, fronts, hub })
    }
}

/// What stands before the DataHUB, and fails at one call in one way. For the bridge it is the backend itself.
struct Front {
    /// None for one that never fails.
    call: Option<Call>,
    fault: Fault,
    hub: SocketAddr,
    address: SocketAddr,
    /// How it should be, and how it should not.
    tls: Option<[Arc<ServerConfig>; 2]>,
    /// By which name it is reached, if it is by one, and who knows that.
    name: Option<(Arc<Names>, String)>,
    state: Mutex<State>,
    has_begun: AtomicBool,
    listening: Mutex<Option<JoinHandle<()>>>,
    /// Connections on which it fails just now.
    failing: AtomicUsize,
    /// How much was taken of what has no end, in bytes.
    taken: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Well,
    /// It fails once the call comes, or is about to.
    Armed,
    Failing,
}

impl Front {
    fn start(
        call: Option<Call>,
        fault: Fault,
        hub: SocketAddr,
        tls: Option<[Arc<ServerConfig>; 2]>,
        name: Option<(Arc<Names>, String)>,
    ) -> Arc<Self> {
        // Nobody else takes a port of this address while nobody listens there. Certificates are for the other one's name.
        let ip = Ipv4Addr::new(127, 0, 0, if fault == Fault::Refused { 2 } else { 1 });
        let listener = TcpListener::bind((ip, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (state, listening) = (Mutex::new(State::Well), Mutex::default());
        let (has_begun, failing, taken) = Default::default();
        let front =
            Arc::new(Self { call, fault, hub, address, tls, name, state, has_begun, listening, failing, taken });
        front.listen(listener);
        front
    }

    /// Where it is reached.
    fn place(&self) -> String {
        self.name
            .as_ref()
            .map_or_else(|| self.address.to_string(), |(_, name)| format!("{name}:{}", self.address.port()))
    }

    fn listen(self: &Arc<Self>, listener: TcpListener) {
        let front = Arc::clone(self);
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if front.fault == Fault::Refused && *front.state() == State::Failing {
                    return;
                }
                let front = Arc::clone(&front);
                // A connection that fails is what this is about.
                thread::spawn(move || front.accept(stream).ok());
            }
        });
        *self.listening.lock().expect("no panic while held") = Some(thread);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// From now on the call fails.
    fn arm(&self) {
        *self.state() = State::Armed;
        if self.fault.is_of_connections() && self.before().is_none() {
            self.begin();
        }
    }

    /// What is asked just before the call, on a connection of its own.
    fn before(&self) -> Option<Call> {
        match self.call {
            Some(Call::Keys) => Some(Call::Discovery),
            Some(Call::Userinfo) => Some(Call::Exchange),
            _ => None,
        }
    }

    fn begin(&self) {
        *self.state() = State::Failing;
        self.has_begun.store(true, Ordering::SeqCst);
        if let Some((names, name)) = &self.name {
            names.forget(name, self.fault);
        }
        if self.fault == Fault::Refused {
            drop(TcpStream::connect(self.address));
            let thread = self.listening.lock().expect("no panic while held").take();
            thread.expect("it listens").join().expect("it does not panic");
        }
    }

    /// All is well again.
    fn disarm(self: &Arc<Self>) {
        let before = std::mem::replace(&mut *self.state(), State::Well);
        if let Some((names, name)) = &self.name {
            names.remember(name);
        }
        if self.fault == Fault::Refused && before == State::Failing {
            self.listen(TcpListener::bind(self.address).expect("it is ours"));
        }
    }

    fn accept(&self, stream: TcpStream) -> std::io::Result<()> {
        let socket = stream.try_clone()?;
        let Some([good, bad]) = &self.tls else { return self.serve(stream, &socket) };
        let config = if *self.state() == State::Failing { bad } else { good };
        let connection = ServerConnection::new(Arc::clone(config)).map_err(std::io::Error::other)?;
        let mut secure = StreamOwned::new(connection, stream);
        self.serve(&mut secure, &socket)?;
        secure.conn.send_close_notify();
        secure.flush()
    }

    /// One request, and one answer.
    fn serve(&self, stream: impl Read + std::io::Write, socket: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let Some(head) = far_end::head(&mut reader) else { return Ok(()) };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let call = called(&head, &body);
        let is_armed = *self.state() != State::Well;
        if is_armed && call == self.call && !self.fault.is_of_connections() {
            self.has_begun.store(true, Ordering::SeqCst);
            self.failing.fetch_add(1, Ordering::SeqCst);
            let outcome = self.fail(reader.get_mut(), socket);
            self.failing.fetch_sub(1, Ordering::SeqCst);
            return outcome;
        }
        let answer = if call == Some(Call::Bridge) {
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}".to_vec()
        } else {
            let (mut hub, mut answer) = (TcpStream::connect(self.hub)?, Vec::new());
            hub.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
            hub.write_all(&body)?;
            hub.read_to_end(&mut answer)?;
            answer
        };
        if is_armed && call.is_some() && call == self.before() && self.fault.is_of_connections() {
            self.begin();
        }
        reader.get_mut().write_all(&answer)
    }

    /// Fails once a request has come.
    fn fail(&self, stream: &mut (impl Read + std::io::Write), socket: &TcpStream) -> std::io::Result<()> {
        const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        let is_streamed = matches!(self.call, Some(Call::Api | Call::Bridge));
        match self.fault {
            Fault::Reset => Ok(set_socket_linger(socket, Some(Duration::ZERO))?),
            Fault::Stall => stream.read(&mut [0]).map(drop),
            Fault::Drip => {
                stream.write_all(HEAD.as_bytes())?;
                stream.write_all(if is_streamed { b"X-Drip: " } else { b"Content-Length: 1000\r\n\r\n{\"" })?;
                loop {
                    stream.write_all(b"a")?;
                    sleep(LIMIT / 30);
                }
            }
            Fault::Truncated => stream.write_all(format!("{HEAD}Content-Length: 1000\r\n\r\n{{\"").as_bytes()),
            Fault::Garbage => {
                stream.write_all(&(0..4096_u32).map(|at| (at * at % 251) as u8 | 0x80).collect::<Vec<_>>())
            }
            Fault::ResetWithin => {
                stream.write_all(format!("{HEAD}Content-Length: 1000\r\n\r\n{{\"").as_bytes())?;
                // What is on its way when the reset comes is lost.
                sleep(LIMIT / 30);
                Ok(set_socket_linger(socket, Some(Duration::ZERO))?)
            }
            Fault::LongHead => {
                let head = format!("{HEAD}X-Long: {}\r\nContent-Length: 2\r\n\r\n{{}}", "a".repeat(1 << 20));
                self.write_counted(stream, socket, head.as_bytes(), 1)
            }
            Fault::LongBody => {
                stream.write_all(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n").as_bytes())?;
                let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
                self.write_counted(stream, socket, chunk.as_bytes(), 10 << 30 >> 16)
            }
            Fault::Refused | Fault::WrongTls | Fault::NoName | Fault::SlowName => unreachable!("no request comes"),
        }
    }

    /// Writes `bytes` so many times, and counts those that are taken.
    fn write_counted(
        &self,
        stream: &mut impl std::io::Write,
        socket: &TcpStream,
        bytes: &[u8],
        times: u64,
    ) -> std::io::Result<()> {
        set_socket_send_buffer_size(socket, 64 << 10)?;
        for _ in 0..times {
            let mut left = bytes;
            while !left.is_empty() {
                let count = stream.write(left)?;
                self.taken.fetch_add(count as u64, Ordering::SeqCst);
                left = &left[count..];
            }
        }
        Ok(())
    }
}

impl Fault {
    /// Whether it keeps requests from coming at all.
    fn is_of_connections(self) -> bool {
        matches!(self, Self::Refused | Self::WrongTls | Self::NoName | Self::SlowName)
    }
}

/// Which call a request is.
fn called(head: &str, body: &[u8]) -> Option<Call> {
    let path = head.split(' ').nth(1)?.split('?').next()?;
    let is_refresh = || String::from_utf8_lossy(body).contains("grant_type=refresh_token");
    Some(match path {
        "/.well-known/openid-configuration" => Call::Discovery,
        "/oauth/discovery/keys" => Call::Keys,
        "/oauth/token" if is_refresh() => Call::Refresh,
        "/oauth/token" => Call::Exchange,
        "/oauth/userinfo" => Call::Userinfo,
        "/oauth/revoke" => Call::Revoke,
        _ if path.starts_with("/api/v4/") => Call::Api,
        _ if path.starts_with(BASE) => Call::Bridge,
        _ => return None,
    })
}

/// A name server (RFC 1035) that knows `127.0.0.1` by every name, until it is told to forget one.
struct Names {
    address: Ipv4Addr,
    forgotten: Mutex<HashMap<String, Fault>>,
}

impl Names {
    /// `None` where its port cannot be had.
    fn start() -> Option<Arc<Self>> {
        static COUNT: AtomicU8 = AtomicU8::new(1);
        // Other tests of this machine have others.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, high | 1, low, COUNT.fetch_add(1, Ordering::Relaxed));
        let socket = UdpSocket::bind((address, 53)).ok()?;
        let can_mount = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success());
        let names = Arc::new(Self { address, forgotten: Mutex::default() });
        let own = Arc::clone(&names);
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                if let Some(answer) = own.answer(&query[..length]) {
                    socket.send_to(&answer, from).ok();
                }
            }
        });
        can_mount.then_some(names)
    }

    fn forget(&self, name: &str, fault: Fault) {
        self.forgotten.lock().expect("no panic while held").insert(name.to_owned(), fault);
    }

    fn remember(&self, name: &str) {
        self.forgotten.lock().expect("no panic while held").remove(name);
    }

    /// The answer to one question about one name: an address if it is asked for one of IPv4.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let (mut name, mut at) = (Vec::new(), 12);
        while let length @ 1.. = usize::from(*query.get(at)?) {
            name.push(String::from_utf8_lossy(query.get(at + 1..=at + length)?).to_lowercase());
            at += 1 + length;
        }
        let question = query.get(12..at + 5)?;
        let forgotten = self.forgotten.lock().expect("no panic while held").get(&name.join(".")).copied();
        let (code, answers) = match forgotten {
            Some(Fault::SlowName) => return None,
            Some(_) => (3, 0),
            None => (0, u8::from(question.ends_with(&[0, 1, 0, 1]))),
        };
        let head = [query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0];
        let address: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1];
        Some([head.as_slice(), question, if answers > 0 { address } else { &[] }].concat())
    }
}
