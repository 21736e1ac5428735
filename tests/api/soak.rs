//! Everything at once for an hour: two gateways behind nginx, people with tabs, uploads and streams, tokens that are renewed
//! every 20 s, new keys and a restart each minute, and hostile clients beside all that. Nothing may go wrong, and nothing grow.
//!
//! Each answer of the DataHUB says who asked for what, and is checked, as is its body. A minute of this is part of every test
//! run; `make soak` runs the hour, and writes the picture and the figures of `docs/soak.md`.

mod picture;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use datahub::behaviour::{Answer as Manner, Manner as Way, PersonalToken};
use datahub::{DataHub, Options};
use sha2::{Digest as _, Sha256};

use self::picture::{Curve, Panel};
use crate::browser::{Answer, Browser, Connection, FETCH};
use crate::drain::on_a_passed_socket;
use crate::gateway::{BASE, Folder, Gateway, Setup, binary, new_key};
use crate::hostile::{HELD, Hostile};
use crate::nginx::Nginx;

/// A token that lives so long is renewed after three quarters of it, which is every 20 s.
const TOKEN_LIFETIME: Duration = Duration::from_secs(27);
/// How often everything is looked at.
const WINDOW: Duration = Duration::from_secs(5);
/// What lasts so long gets into `docs/`, and its p99 is judged: in a minute beside other tests that says nothing.
const LONG: Duration = Duration::from_mins(5);
/// Two tabs each, who stay logged in; those who come and go; and those who leave calls at any moment.
const WORKERS: u64 = 12;
const VISITORS: u64 = 3;
const LEAVERS: u64 = 3;

/// A way to do harm, by how many people at once, how one of them does it, and what that one sees where it did.
type Row = (&'static str, u64, fn(&Hostile), &'static str);

const HOSTILE: &[Row] = &[
    ("heads that never end", 10, |it| it.send_half_a_head(), HELD),
    ("uploads of a byte now and then", 4, |it| it.upload_slowly(), HELD),
    ("what is no HTTP", 1, |it| it.send_garbage(), "400"),
    ("cookies that open nothing", 2, |it| it.flood_with_bad_cookies(), "401"),
    ("requests behind each other", 1, |it| it.pipeline_and_leave(), "200"),
    ("an endpoint that closes", 1, |it| it.call_again_and_again("GET", "/odd/close", 100), "502"),
    ("answers without end that nobody reads", 2, |it| it.ask_and_wait("/odd/endless"), "200"),
];

#[test]
fn two_minutes_cost_no_call_and_nothing_grows() {
    let samples = soak(Duration::from_mins(2), Duration::from_millis(300));
    assert!(samples.iter().map(|sample| sample.calls).sum::<usize>() > 1_000, "that was no load");
}

/// `MINUTES` says how long.
#[test]
#[ignore = "make soak"]
fn an_hour() {
    let minutes = std::env::var("MINUTES").map_or(60, |minutes| minutes.parse().expect("MINUTES is a number"));
    soak(Duration::from_mins(minutes), Duration::from_millis(100));
}

/// Lasts so long; people pause for up to `pause` between two calls. Fails if anything was wrong, after the report is written.
fn soak(lasts: Duration, pause: Duration) -> Vec<Sample> {
    let hub = DataHub::start(Options { keep_requests: 0, ..Options::default() }).expect("a free port");
    let people = WORKERS + VISITORS + LEAVERS + HOSTILE.iter().map(|(_, threads, ..)| threads).sum::<u64>();
    hub.add_people(people);
    let way = |answer| Way { answer, ..Way::default() };
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let chunk = [b"8000\r\n".as_slice(), &b"x".repeat(0x8000), b"\r\n"].concat();
    hub.set(|behaviour| {
        behaviour.token_lifetime = TOKEN_LIFETIME;
        behaviour.names_caller = true;
        behaviour.by_path = vec![
            ("/api/v4/odd/close", way(Manner::CloseWithoutAnswer)),
            ("/api/v4/odd/endless", way(Manner::Endless { begin: head, again: chunk })),
        ];
        behaviour.personal_tokens = vec![PersonalToken {
            token: BARE_TOKEN.to_owned(),
            user: 1_001,
            scopes: vec!["api"],
            is_active: true,
            is_revoked: false,
            expires_at: None,
        }];
    });
    let folder = Folder::default();
    let keys = folder.file("keys", &new_key());
    let setup = Setup::with_keys_file(&[("a", &hub)], &keys).quiet().forgetting(TRAFFIC).and(
        "server.workers = 2
        server.trusted_proxies = [\"127.0.0.1\"]
        rate_limit.login = \"1000/1s\"
        rate_limit.callback = \"1000/1s\"",
    );
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("it is bound").to_string();
    let start = || on_a_passed_socket(&setup, &socket);
    let (lasting, restarted) = (start(), Mutex::new(start()));
    let bare = format!("location /bare/ {{ proxy_pass http://{}/; }}", hub.address());
    let nginx = Nginx::start(&folder, std::slice::from_ref(&address), &bare);
    let soak = Soak {
        hub: &hub,
        front: &nginx.address,
        gateways: &address,
        pause,
        begun: Instant::now(),
        is_over: AtomicBool::new(false),
        number: AtomicUsize::new(0),
        relogins: AtomicUsize::new(0),
        window: Mutex::default(),
        done: Mutex::default(),
    };
    let pid = AtomicU32::new(restarted.lock().expect("no panic while held").pid());
    let mut names = (1..=people).map(|number| {
        let person = Person { name: format!("person{number}"), browser: Browser::default() };
        lasting.meet(&person.browser);
        person
    });
    let mut some = |count: u64| names.by_ref().take(usize::try_from(count).expect("few")).collect::<Vec<_>>();
    let (workers, visitors, leavers) = (some(WORKERS), some(VISITORS), some(LEAVERS));
    let hostile: Vec<_> =
        HOSTILE.iter().flat_map(|row| some(row.1).into_iter().map(move |person| (row, person))).collect();

    let mut samples = Vec::new();
    scope(|scope| {
        for person in &workers {
            soak.log_in(person);
            for _ in 0..2 {
                scope.spawn(|| soak.work(person));
            }
        }
        for person in &visitors {
            scope.spawn(|| soak.visit(person));
        }
        for person in &leavers {
            scope.spawn(|| soak.leave(person));
        }
        for (row, person) in &hostile {
            scope.spawn(|| soak.attack(row, person));
        }
        scope.spawn(|| soak.call_bare());
        scope.spawn(|| soak.operate(&keys, &lasting, &restarted, &|| start(), &pid));
        while soak.begun.elapsed() < lasts {
            sleep(WINDOW);
            samples.push(soak.sample([lasting.pid(), pid.load(Ordering::Relaxed)]));
        }
        soak.is_over.store(true, Ordering::Relaxed);
    });
    // The last cookies of those who left may have been lost with the answers; whoever asks again has them.
    for person in leavers.iter().chain(hostile.iter().map(|(_, person)| person)) {
        let _ = soak.call(person, &mut None, Kind::User);
    }
    lasting.expects_orphans_up_to(soak.relogins.load(Ordering::Relaxed), "whoever leaves calls may lose a session");

    let panics: f64 = [&lasting, &*restarted.lock().expect("no panic while held")].map(panics).iter().sum();
    let mut faults = soak.window.into_inner().expect("no panic while held").faults;
    faults.extend(samples.iter().flat_map(|sample| sample.faults.iter().cloned()));
    faults.extend((panics > 0.0).then(|| format!("{panics} panics")));
    faults.extend(growth(&samples, lasts >= LONG));
    if !faults.is_empty() {
        faults.extend(nginx.complaints().into_iter().take(20));
    }
    let done = soak.done.into_inner().expect("no panic while held");
    report(lasts, &samples, &done, &hub, soak.relogins.load(Ordering::Relaxed), &faults);
    for (name, _, _, harm) in HOSTILE {
        assert!(done.keys().any(|key| key == &format!("{name}: {harm}")), "{name}: it did no harm: {done:#?}");
    }
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(20)]);
    samples
}

/// Lines of the log of which there are too many to keep.
const TRAFFIC: &[&str] = &["\"target\":\"access\"", "\"event\":\"unseal_failed\"", "\"event\":\"duplicate_cookie\""];
/// Opens the API for calls that go past the gateways.
const BARE_TOKEN: &str = "glpat-of-the-soak";

fn panics(gateway: &Gateway) -> f64 {
    let metrics = gateway.metrics();
    let count = metrics.lines().find_map(|line| line.strip_prefix("gateway_panics_total "));
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

struct Person {
    name: String,
    browser: Browser,
}

/// What somebody asks for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    User,
    Issue,
    Upload(usize),
    Download(usize),
    Trace,
    Status,
    Refresh,
    Logout,
}

/// Why a call came to nothing, or to something wrong.
enum Trouble {
    /// 401: there is no session.
    LoggedOut,
    Fault(String),
}

struct Soak<'a> {
    hub: &'a DataHub,
    /// nginx.
    front: &'a str,
    /// The socket that the gateways share.
    gateways: &'a str,
    pause: Duration,
    begun: Instant,
    is_over: AtomicBool,
    number: AtomicUsize,
    /// Logins of those who leave calls, or attack, and may lose their sessions by that.
    relogins: AtomicUsize,
    window: Mutex<Window>,
    /// What was done how often.
    done: Mutex<BTreeMap<String, usize>>,
}

/// What happened since the last sample.
#[derive(Default)]
struct Window {
    /// Times of small calls, through the gateways and past them.
    times: Vec<Duration>,
    bare: Vec<Duration>,
    calls: usize,
    faults: Vec<String>,
}

/// One look at everything. Processes: the one that lasts, and the one that is restarted, if it is there.
struct Sample {
    minutes: f64,
    processes: [Option<Process>; 2],
    calls: usize,
    /// Of small calls, in milliseconds.
    p50: f64,
    p99: f64,
    /// The same of those that go past the gateways.
    bare_p99: f64,
    faults: Vec<String>,
}

#[derive(Clone, Copy)]
struct Process {
    mib: f64,
    files: f64,
    threads: f64,
}

// People.

impl Soak<'_> {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().expect("no panic while held")
    }

    fn note(&self, what: impl Into<String>) {
        *self.done.lock().expect("no panic while held").entry(what.into()).or_default() += 1;
    }

    fn fault(&self, what: &str) {
        self.window().faults.push(format!("at {:.0} s: {what}", self.begun.elapsed().as_secs_f64()));
    }

    fn rest(&self) {
        sleep(up_to(self.pause));
    }

    fn log_in(&self, person: &Person) {
        match person.browser.try_log_in(self.front, self.hub, &person.name) {
            Ok(()) => self.note("logins"),
            Err(told) => self.fault(&format!("{}: no login: {told}", person.name)),
        }
    }

    /// One tab of somebody who stays logged in.
    fn work(&self, person: &Person) {
        let mut connection = None;
        while self.goes_on() {
            self.must(person, &mut connection, any_kind());
            self.rest();
        }
    }

    /// Somebody who comes, looks around and goes.
    fn visit(&self, person: &Person) {
        let mut connection = None;
        while self.goes_on() {
            self.log_in(person);
            for _ in 0..dice(20) {
                self.must(person, &mut connection, any_kind());
                self.rest();
            }
            self.must(person, &mut connection, Kind::Logout);
            if self.call(person, &mut connection, Kind::User).is_ok() {
                self.fault(&format!("{}: logged out, and served", person.name));
            }
            sleep(Duration::from_secs(1));
        }
    }

    /// Somebody who leaves every second call at any moment, and so may lose the answer that renews the session.
    fn leave(&self, person: &Person) {
        let mut connection = None;
        self.log_in(person);
        while self.goes_on() {
            let kind = any_kind();
            if dice(2) == 0 {
                self.note("calls: left by their clients");
                let (method, path, body) = self.request(person, kind);
                let mut line = connection.take().unwrap_or_else(|| Connection::open(self.front));
                line.write(&head(person, method, &path, body.len()));
                line.write(&body[..usize::try_from(dice(body.len() as u64 + 1)).expect("it was one")]);
                sleep(up_to(Duration::from_millis(30)));
                drop(line);
            } else if self.call(person, &mut connection, kind).is_err_and(|trouble| self.is_fault(trouble)) {
                self.relogins.fetch_add(1, Ordering::Relaxed);
                self.log_in(person);
            }
            self.rest();
        }
    }

    /// Whether that is about a session that is gone. Anything else is a fault.
    fn is_fault(&self, trouble: Trouble) -> bool {
        match trouble {
            Trouble::LoggedOut => return true,
            Trouble::Fault(what) => self.fault(&what),
        }
        false
    }

    /// Somebody with an account who means harm; now and then as anybody, so that the session lasts.
    fn attack(&self, (name, _, act, _): &Row, person: &Person) {
        self.log_in(person);
        while self.goes_on() {
            if self.call(person, &mut None, Kind::User).is_err() {
                self.relogins.fetch_add(1, Ordering::Relaxed);
                self.log_in(person);
            }
            let until = Instant::now() + Duration::from_secs(5);
            // Through nginx, or past it.
            let address = if dice(2) == 0 { self.front } else { self.gateways };
            let hostile = Hostile { address, cookies: person.browser.cookie_field(), until, saw: Mutex::default() };
            act(&hostile);
            for (what, count) in hostile.saw.into_inner().expect("no panic while held") {
                *self.done.lock().expect("no panic while held").entry(format!("{name}: {what}")).or_default() += count;
            }
        }
    }

    /// The same small call past the gateways: when that takes longer, it is the machine.
    fn call_bare(&self) {
        let head = format!("GET /bare/api/v4/user HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {BARE_TOKEN}\r\n\r\n");
        let mut connection = Connection::open(self.front);
        let mut opened = Instant::now();
        while self.goes_on() {
            // nginx ends a connection after an hour, whatever it is used for (`keepalive_time`).
            if opened.elapsed() > Duration::from_mins(1) {
                (connection, opened) = (Connection::open(self.front), Instant::now());
            }
            let begun = Instant::now();
            connection.write(head.as_bytes());
            assert_eq!(connection.answer(true).status, 200);
            self.window().bare.push(begun.elapsed());
            self.rest();
        }
    }

    fn must(&self, person: &Person, connection: &mut Option<Connection>, kind: Kind) {
        match self.call(person, connection, kind) {
            Ok(()) => {}
            Err(Trouble::LoggedOut) => self.fault(&format!("{}: {kind:?}: 401", person.name)),
            Err(Trouble::Fault(what)) => self.fault(&what),
        }
    }

    /// One call with all its redirects; its answer is what was asked for, by this very person.
    fn call(&self, person: &Person, connection: &mut Option<Connection>, kind: Kind) -> Result<(), Trouble> {
        let (method, path, body) = self.request(person, kind);
        let begun = Instant::now();
        let answer = self.exchange(person, connection, method, &path, &body);
        if matches!(kind, Kind::User) {
            self.window().times.push(begun.elapsed());
        }
        self.window().calls += 1;
        self.note(format!("calls: {}", format!("{kind:?}").split('(').next().expect("a name")));
        let fault = |what: &str| Trouble::Fault(format!("{}: {method} {path}: {what}", person.name));
        let answer = answer.map_err(|why| fault(&why))?;
        if answer.status == 401 {
            return Err(Trouble::LoggedOut);
        }
        let mark = path.strip_prefix("/datahubs/a").map(|target| format!("{} {method} {target}", person.name));
        if answer.header("x-gitlab-caller") != mark || !is_right(person, kind, &path, &body, &answer) {
            let text: String = answer.text().chars().take(300).collect();
            return Err(fault(&format!("{} {text}", answer.head)));
        }
        Ok(())
    }

    fn request(&self, person: &Person, kind: Kind) -> (&'static str, String, Vec<u8>) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let project = "/datahubs/a/api/v4/projects/230";
        let name = &person.name;
        match kind {
            Kind::User => ("GET", format!("/datahubs/a/api/v4/user?n={number}"), Vec::new()),
            Kind::Issue => ("POST", format!("{project}/issues?title={name}-{number}"), Vec::new()),
            Kind::Upload(length) => {
                let body = format!("{name} {number} ").into_bytes().into_iter().cycle().take(length).collect();
                ("PUT", format!("{project}/packages/generic/p/1/{name}.bin?n={number}"), body)
            }
            Kind::Download(length) => {
                ("GET", format!("{project}/packages/generic/blob/1/{length}.bin?n={number}"), Vec::new())
            }
            Kind::Trace => ("GET", format!("{project}/jobs/9/trace?n={number}"), Vec::new()),
            Kind::Status => ("GET", "/auth/session".to_owned(), Vec::new()),
            Kind::Refresh => ("POST", "/auth/refresh".to_owned(), Vec::new()),
            Kind::Logout => ("POST", "/auth/logout?datahub=a".to_owned(), Vec::new()),
        }
    }

    /// Sends it, and again wherever it is sent, as browsers do.
    fn exchange(
        &self,
        person: &Person,
        connection: &mut Option<Connection>,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Answer, String> {
        let mut path = path.to_owned();
        for _ in 0..20 {
            let mut line = connection.take().unwrap_or_else(|| Connection::open(self.front));
            line.write(&head(person, method, &path, body.len()));
            line.write(body);
            let mut answer = line.try_head().map_err(|error| format!("no answer: {error}"))?;
            if answer.status != 204 {
                answer.body = line.body(&answer).map_err(|error| format!("{} breaks off: {error}", answer.head))?;
            }
            person.browser.apply(&answer);
            if answer.header("connection").as_deref() != Some("close") {
                *connection = Some(line);
            }
            if answer.status != 307 {
                return Ok(answer);
            }
            self.note("sent again");
            path = format!("{}{}", path.split('?').next().expect("a path"), answer.location());
        }
        Err("too many redirects".to_owned())
    }
}

/// Whether the answer is what `person` asked for.
fn is_right(person: &Person, kind: Kind, path: &str, body: &[u8], answer: &Answer) -> bool {
    let name = person.name.as_str();
    match kind {
        Kind::User => answer.status == 200 && answer.json()["username"] == name,
        Kind::Issue => {
            let issue = answer.json();
            answer.status == 201
                && issue["author"]["username"] == name
                && path.ends_with(issue["title"].as_str().unwrap_or("?"))
        }
        Kind::Upload(length) => {
            let stored = answer.json();
            let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
            answer.status == 201 && stored["size"] == length && stored["file_sha256"] == hash
        }
        Kind::Download(length) => {
            let is_next = |(at, byte): (usize, &u8)| at % 251 == usize::from(*byte);
            answer.status == 200 && answer.body.len() == length && answer.body.iter().enumerate().all(is_next)
        }
        Kind::Trace => {
            answer.status == 200 && answer.text().lines().count() == 20 && answer.text().ends_with("line 20 of 20\n")
        }
        Kind::Status | Kind::Refresh => {
            answer.status == 200 && answer.json()["sessions"][0]["user"]["username"] == name
        }
        Kind::Logout => answer.status == 204,
    }
}

fn head(person: &Person, method: &str, path: &str, length: usize) -> Vec<u8> {
    let cookies = person.browser.cookie_field();
    let kind = if method == "PUT" { "application/octet-stream" } else { "application/json" };
    let length =
        if method == "GET" { String::new() } else { format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n") };
    format!("{method} {BASE}{path} HTTP/1.1\r\nHost: localhost:8000\r\n{cookies}{FETCH}{length}\r\n").into_bytes()
}

fn any_kind() -> Kind {
    let bytes = |most: u64| usize::try_from(dice(most)).expect("a few MiB");
    match dice(1_000) {
        0..650 => Kind::User,
        650..800 => Kind::Issue,
        800..890 => Kind::Upload(bytes(256 << 10)),
        890..900 => Kind::Upload(bytes(8 << 20)),
        900..950 => Kind::Download(bytes(2 << 20)),
        950..970 => Kind::Trace,
        970..990 => Kind::Status,
        _ => Kind::Refresh,
    }
}

fn up_to(most: Duration) -> Duration {
    Duration::from_micros(dice(u64::try_from(most.as_micros()).expect("short") + 1))
}

fn dice(sides: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system's generator");
    u64::from_le_bytes(bytes) % sides
}

// Operation.

impl Soak<'_> {
    /// Each minute: a new key, as docs/operate.md says, and a restart of one of the two.
    fn operate(
        &self,
        keys: &Path,
        lasting: &Gateway,
        restarted: &Mutex<Gateway>,
        start: &dyn Fn() -> Gateway,
        pid: &AtomicU32,
    ) {
        let mut old = std::fs::read_to_string(keys).expect("it is there");
        let write = |text: &str| {
            let new = keys.with_extension("new");
            std::fs::write(&new, text)
                .and_then(|()| std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o600)))
                .expect("a folder of our own");
            std::fs::rename(&new, keys).expect("a folder of our own");
            for gateway in [lasting, &*restarted.lock().expect("no panic while held")] {
                let told = gateway.reload();
                if told["event"] != "keys_reloaded" {
                    self.fault(&told.to_string());
                }
            }
        };
        for minute in 0_u32.. {
            let wait_for = |second: u64| {
                let at = self.begun + Duration::from_mins(1) * minute + Duration::from_secs(second);
                while self.goes_on() && Instant::now() < at {
                    sleep(Duration::from_millis(100));
                }
                self.goes_on()
            };
            let new = new_key();
            if !wait_for(5) {
                return;
            }
            write(&format!("{old}\n{new}"));
            if !wait_for(8) {
                return;
            }
            write(&format!("{new}\n{old}"));
            self.note("new keys");
            if !wait_for(20) {
                return;
            }
            let mut gateway = restarted.lock().expect("no panic while held");
            gateway.terminate();
            if !gateway.wait_for_end().is_some_and(|status| status.success()) {
                self.fault("the gateway does not end as it should");
            }
            if !gateway.output().iter().all(|line| !line.contains("panicked")) {
                self.fault("a panic");
            }
            *gateway = start();
            pid.store(gateway.pid(), Ordering::Relaxed);
            drop(gateway);
            self.note("restarts");
            // By now every session in use has been renewed, and is sealed under the new key.
            if !wait_for(50) {
                return;
            }
            write(&new);
            old = new;
        }
    }

    fn sample(&self, pids: [u32; 2]) -> Sample {
        let Window { mut times, mut bare, calls, faults } = std::mem::take(&mut *self.window());
        let percentile = |times: &mut Vec<Duration>, percent: usize| {
            times.sort_unstable();
            times.get(times.len() * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        let minutes = self.begun.elapsed().as_secs_f64() / 60.0;
        let [p50, p99] = [50, 99].map(|percent| percentile(&mut times, percent));
        let bare_p99 = percentile(&mut bare, 99);
        Sample { minutes, processes: pids.map(process), calls, p50, p99, bare_p99, faults }
    }
}

/// What a process takes, if there is such a one.
fn process(pid: u32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(Process { mib: number("VmRSS:")? / 1024.0, files: float(files), threads: number("Threads:")? })
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("fewer than 2^32"))
}

// Judgement.

/// What is larger in the last quarter of the time than in the second, by medians; the first is for getting warm. Of the process
/// that lasts.
fn growth(samples: &[Sample], with_p99: bool) -> Vec<String> {
    type Value = fn(&Sample) -> Option<f64>;
    /// What it is, how to read it, and how far it may go: a factor, and so much beside it.
    const BOUNDS: &[(&str, Value, f64, f64)] = &[
        ("MiB of memory", |it| it.processes[0].map(|process| process.mib), 1.1, 8.0),
        ("descriptors", |it| it.processes[0].map(|process| process.files), 1.1, 20.0),
        ("threads", |it| it.processes[0].map(|process| process.threads), 1.0, 2.0),
        // Other programs have the machine as well: the same call past the gateways says how much of it is theirs.
        ("ms of p99 beyond that of bare calls", |it| Some((it.p99 - it.bare_p99).max(0.0)), 1.5, 50.0),
    ];
    let quarter = samples.len() / 4;
    let bounds = &BOUNDS[..BOUNDS.len() - usize::from(!with_p99)];
    let grown = bounds.iter().filter_map(|(what, value, factor, more)| {
        let median = |quarters: &[Sample]| {
            let mut values: Vec<_> = quarters.iter().filter_map(value).filter(|value| value.is_finite()).collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
        };
        let before = median(&samples[quarter..2 * quarter]);
        let after = median(&samples[samples.len() - quarter..]);
        // Written so that no number at all is growth, too.
        let holds = after <= before * factor + more;
        (!holds).then(|| format!("{what}: {before:.1} in the second quarter, {after:.1} in the last"))
    });
    grown.collect()
}

/// Prints the figures, and keeps them with the picture in `target/soak/`; those of an hour belong into `docs/`.
fn report(
    lasts: Duration,
    samples: &[Sample],
    done: &BTreeMap<String, usize>,
    hub: &DataHub,
    relogins: usize,
    faults: &[String],
) {
    let last = samples.last().expect("at least one");
    let calls: usize = samples.iter().map(|sample| sample.calls).sum();
    let mut text = String::new();
    let mut line =
        |what: &str, value: String| writeln!(text, "| {what} | {value} |").expect("a String takes everything");
    let range = |value: fn(&Sample) -> f64| {
        let mut values: Vec<_> = samples.iter().map(value).filter(|value| value.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at =
            |percent: usize| values.get(values.len() * percent / 100).or(values.last()).copied().unwrap_or(f64::NAN);
        format!("{:.1} · {:.1} · {:.1}", at(0), at(50), at(100))
    };
    line("what", "figure".to_owned());
    line("---", "---:".to_owned());
    line("lasted", format!("{:.0} min", last.minutes));
    line("calls, each answer checked", calls.to_string());
    line("wrong or failed", faults.len().to_string());
    line("refreshes at the DataHUB", hub.counts().refreshes.to_string());
    line("sessions that those who left calls lost by it", relogins.to_string());
    line(
        "MiB of the process that lasts: least · median · most",
        range(|it| it.processes[0].map_or(f64::NAN, |it| it.mib)),
    );
    line("MiB of the process that is restarted", range(|it| it.processes[1].map_or(f64::NAN, |it| it.mib)));
    line("descriptors of the process that lasts", range(|it| it.processes[0].map_or(f64::NAN, |it| it.files)));
    line("threads of the process that lasts", range(|it| it.processes[0].map_or(f64::NAN, |it| it.threads)));
    line("p50 of small calls in 5 s, ms", range(|it| it.p50));
    line("p99 of small calls in 5 s, ms", range(|it| it.p99));
    line("p99 of the same past the gateways, ms", range(|it| it.bare_p99));
    for (what, count) in done {
        line(what, count.to_string());
    }
    for fault in faults.iter().take(20) {
        line("fault", fault.replace(['\r', '\n', '|'], " "));
    }
    let build = if binary().iter().any(|part| part == "release") { "release" } else { "test" };
    writeln!(text, "\nOf a {build} build, on {} cores.", std::thread::available_parallelism().map_or(0, usize::from))
        .expect("a String takes everything");
    let curve = |name, value: fn(&Sample) -> f64| Curve {
        name,
        points: samples.iter().map(|sample| (sample.minutes, value(sample))).collect(),
    };
    let picture = picture::svg(&[
        Panel {
            title: "memory, MiB",
            curves: vec![
                curve("restarted each minute", |it| it.processes[1].map_or(f64::NAN, |it| it.mib)),
                curve("never restarted", |it| it.processes[0].map_or(f64::NAN, |it| it.mib)),
            ],
        },
        Panel {
            title: "small calls, ms",
            curves: vec![
                curve("p99 past the gateways", |it| it.bare_p99),
                curve("p50", |it| it.p50),
                curve("p99", |it| it.p99),
            ],
        },
        Panel { title: "calls a second", curves: vec![curve("calls", |it| float(it.calls) / WINDOW.as_secs_f64())] },
        Panel { title: "errors", curves: vec![curve("wrong or failed", |it| float(it.faults.len()))] },
    ]);
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kept = folder.join("target/soak");
    std::fs::create_dir_all(&kept).expect("a folder of our own");
    std::fs::write(kept.join("soak.svg"), &picture)
        .and_then(|()| std::fs::write(kept.join("soak.md"), &text))
        .expect("a folder of our own");
    if lasts >= LONG {
        let page = folder.join("docs/soak.md");
        let old = std::fs::read_to_string(&page).expect("it is in the repository");
        let (before, _) = old.split_once("<!-- soak -->\n").expect("the place of the figures");
        let (_, after) = old.split_once("<!-- end of soak -->").expect("the place of the figures");
        let new = format!("{before}<!-- soak -->\n{text}<!-- end of soak -->{after}");
        std::fs::write(&page, new)
            .and_then(|()| std::fs::write(folder.join("docs/soak.svg"), &picture))
            .expect("the repository");
    }
}

#[test]
fn what_grows_is_told() {
    let sample = |at: u32, grows: [f64; 4]| {
        let grown = |which: usize| grows[which] * f64::from(at) / 40.0;
        let process = Process { mib: 20.0 + grown(0), files: 50.0 + grown(1), threads: 8.0 + grown(2) };
        let (p50, bare_p99) = (1.0, 30.0);
        Sample {
            minutes: f64::from(at),
            processes: [Some(process), None],
            calls: 1,
            p50,
            p99: 40.0 + grown(3),
            bare_p99,
            faults: Vec::new(),
        }
    };
    let told = |grows| growth(&(0..40).map(|at| sample(at, grows)).collect::<Vec<_>>(), true);
    assert!(told([8.0, 20.0, 2.0, 50.0]).is_empty(), "as much as there may be");
    for (at, what) in ["MiB of memory", "descriptors", "threads", "ms of p99"].iter().enumerate() {
        let mut grows = [0.0; 4];
        grows[at] = 200.0;
        let told = told(grows);
        assert!(told.len() == 1 && told[0].starts_with(what), "{told:?}");
    }
    let nobody = |at| Sample { processes: [None, None], ..sample(at, [0.0; 4]) };
    assert_eq!(growth(&(0..40).map(nobody).collect::<Vec<_>>(), true).len(), 3, "nobody looked");
}
