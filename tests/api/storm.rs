//! Everything at once: browsers with many tabs, four gateways behind nginx by turns, tokens of three seconds, answers
//! that take their time, connections that break, processes that are killed.
//!
//! A few thousand calls are part of every test run; `make storm` runs hundreds of thousands and prints figures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datahub::DataHub;
use datahub::behaviour::{Answer as Manner, Jitter, RefreshMode, RefreshTrouble};

use crate::browser::{Browser, Connection, FETCH};
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub_with, new_key};
use crate::nginx::Nginx;

/// What the weather is like.
#[derive(Clone, Copy)]
struct Weather {
    calls: usize,
    /// And it lasts so long at the least, however fast the machine is: tokens must grow old.
    lasts: Duration,
    /// Of a hundred connections, so many are cut by the client.
    cuts: u64,
    /// One process is killed and started again, again and again.
    kills: bool,
    mode: RefreshMode,
    /// For ten seconds in the middle, refreshes are answered like this.
    trouble: Option<fn() -> Manner>,
    /// What goes wrong with refreshes at random, all the time.
    refresh_trouble: RefreshTrouble,
}

const CALM: Weather = Weather {
    calls: 2_000,
    lasts: Duration::from_secs(8),
    cuts: 0,
    kills: false,
    mode: RefreshMode::RevokeAtOnce,
    trouble: None,
    refresh_trouble: RefreshTrouble { max: Duration::ZERO, one_in: 0 },
};

/// A DataHUB that takes its time for refreshes and throttles them.
const SLOW: Weather = Weather {
    calls: 500,
    lasts: Duration::from_secs(30),
    refresh_trouble: RefreshTrouble { max: Duration::from_secs(20), one_in: 10 },
    ..CALM
};

#[test]
fn a_small_storm_costs_no_call_and_no_session() {
    let figures = storm(CALM);
    assert_eq!((figures.failed(), figures.forced_logins, figures.doubled), (0, 0, 0), "{figures}");
    assert_eq!(usize::try_from(figures.refreshes), Ok(figures.generations), "{figures}");
    assert!(figures.refreshes >= 10, "{figures}");
}

#[test]
fn a_small_storm_in_front_of_a_slow_datahub_costs_no_session() {
    loses_no_session(SLOW);
}

#[test]
#[ignore = "make storm"]
fn with_a_slow_datahub() {
    loses_no_session(Weather { calls: 5_000, lasts: Duration::from_mins(5), ..SLOW });
}

/// A call that cannot wait so long is told to come again.
fn loses_no_session(weather: Weather) {
    let figures = storm(weather);
    let unavailable = figures.others.get("503 refresh_unavailable").copied().unwrap_or_default();
    assert_eq!((figures.failed() - unavailable, figures.forced_logins, figures.doubled), (0, 0, 0), "{figures}");
    assert!(figures.refreshes >= 10, "{figures}");
}

#[test]
#[ignore = "make storm"]
fn calm() {
    let figures = storm(Weather { calls: 100_000, ..CALM });
    assert_eq!((figures.failed(), figures.forced_logins, figures.doubled), (0, 0, 0), "{figures}");
    assert_eq!(usize::try_from(figures.refreshes), Ok(figures.generations), "{figures}");
    assert!(figures.refreshes >= 300, "{figures}");
}

#[test]
#[ignore = "make storm"]
fn with_cuts() {
    let figures = storm(Weather { calls: 100_000, cuts: 5, ..CALM });
    assert_eq!((figures.failed(), figures.forced_logins, figures.doubled), (0, 0, 0), "{figures}");
}

#[test]
#[ignore = "make storm"]
fn with_cuts_and_kills() {
    let figures = storm(Weather { calls: 100_000, cuts: 5, kills: true, ..CALM });
    assert_eq!((figures.failed(), figures.doubled), (0, 0), "{figures}");
    assert!(figures.forced_logins <= figures.kills, "{figures}");
    // A late cookie of a lost session may fall on those of the login after it: they do not open together, and the person
    // logs in once more. That is no loss of a session, and not in the log as one.
    let late = figures.forced_by.get("not_logged_in").copied().unwrap_or_default();
    assert!(late <= figures.lost.len(), "{figures}");
    assert!(figures.forced_logins - late <= figures.lost.len(), "each is in the log: {figures}");
    assert!(figures.lost.iter().all(|why| why.contains("(a)")), "{figures}");
}

#[test]
#[ignore = "make storm"]
fn with_a_datahub_that_keeps_the_old_pair_until_the_new_one_is_used() {
    let figures = storm(Weather { calls: 100_000, mode: RefreshMode::RevokeOnUse, ..CALM });
    assert_eq!((figures.failed(), figures.forced_logins, figures.doubled), (0, 0, 0), "{figures}");
}

#[test]
#[ignore = "make storm"]
fn with_a_datahub_in_trouble() {
    for trouble in [
        (|| Manner::Status(429)) as fn() -> Manner,
        || Manner::Status(500),
        || Manner::Html(502),
        || Manner::CloseWithoutAnswer,
        || Manner::Hang,
    ] {
        let figures = storm(Weather { calls: 20_000, trouble: Some(trouble), ..CALM });
        let unavailable = figures.others.get("503 refresh_unavailable").copied().unwrap_or_default();
        assert_eq!((figures.failed() - unavailable, figures.forced_logins, figures.doubled), (0, 0, 0), "{figures}");
        assert!(unavailable > 0, "{figures}");
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Figures {
    calls: usize,
    good: usize,
    /// By status and code.
    others: BTreeMap<String, usize>,
    forced_logins: usize,
    /// The codes that did it.
    forced_by: BTreeMap<String, usize>,
    /// Ended while their session was lost, beside the one that made the person log in.
    of_lost_sessions: usize,
    /// Cut by the client, or under way at a process that was killed: not counted.
    cut: usize,
    killed: usize,
    /// Calls by how often they were sent again.
    replays: BTreeMap<usize, usize>,
    refreshes: u64,
    refreshes_refused: u64,
    /// Refresh tokens that were renewed, as the gateways say.
    generations: usize,
    doubled: usize,
    kills: usize,
    lost: Vec<String>,
    seconds: f64,
}

impl Figures {
    fn failed(&self) -> usize {
        self.others.values().sum()
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { calls, good, forced_logins, cut, killed, refreshes, refreshes_refused, doubled, kills, .. } = self;
        writeln!(
            f,
            "{calls} calls in {:.0} s: {good} good, {forced_logins} forced logins, {} failed",
            self.seconds,
            self.failed()
        )?;
        writeln!(f, "forced by {:?}; {} calls of lost sessions beside those", self.forced_by, self.of_lost_sessions)?;
        writeln!(f, "not counted: {cut} cut by the client, {killed} under way at one of {kills} killed processes")?;
        writeln!(
            f,
            "{refreshes} refreshes, {refreshes_refused} refused, {} token generations, {doubled} POSTs executed twice",
            self.generations
        )?;
        writeln!(f, "sent again: {:?}", self.replays)?;
        writeln!(f, "failures: {:?}", self.others)?;
        self.lost.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn storm(weather: Weather) -> Figures {
    let hub = datahub_with(|behaviour| {
        behaviour.token_lifetime = Duration::from_secs(3);
        behaviour.refresh = weather.mode;
        behaviour.refresh_trouble = weather.refresh_trouble;
        behaviour.jitter = Jitter { usual: Duration::from_millis(4), rare: Duration::from_secs(4), one_in: 400 };
    });
    let folder = Folder::default();
    let key = new_key();
    let places: Vec<_> =
        (0..4).map(|at| format!("unix:{}", folder.path().join(format!("{at}.sock")).display())).collect();
    let setups: Vec<_> = places
        .iter()
        .map(|place| {
            let setup = Setup::with_keys(&[("a", &hub)], &[&key])
                .and("server.workers = 2")
                .and("rate_limit.login = \"1000/1s\"");
            setup.and("rate_limit.callback = \"1000/1s\"").quiet().listening_at(place)
        })
        .collect();
    let gateways: Vec<_> = setups.iter().map(|setup| Mutex::new(setup.start())).collect();
    let nginx = Nginx::start(&folder, &places, "");
    let sea = Sea {
        hub: &hub,
        address: nginx.address.clone(),
        weather,
        begun: Instant::now(),
        left: AtomicUsize::new(weather.calls),
        marks: AtomicUsize::new(0),
        figures: Mutex::default(),
    };
    hub.add_people(20);
    let ship = |number| Ship { user: format!("person{number}"), browser: Browser::default(), logins: Mutex::new(0) };
    let ships: Vec<_> = (1..=20).map(ship).collect();
    for ship in &ships {
        gateways[0].lock().expect("no panic while held").meet(&ship.browser);
        sea.log_in(ship);
    }

    let is_over = AtomicBool::new(false);
    let mut kills = 0;
    let mut witness = Witness::default();
    std::thread::scope(|scope| {
        let crew: Vec<_> = ships
            .iter()
            .flat_map(|ship| (0..6).map(move |_| ship))
            .map(|ship| scope.spawn(|| sea.sail(ship)))
            .collect();
        let reaper = weather.kills.then(|| {
            scope.spawn(|| {
                let (mut kills, mut witness) = (0, Witness::default());
                while !is_over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_secs(4));
                    let at = kills % gateways.len();
                    let mut gateway = gateways[at].lock().expect("no panic while held");
                    gateway.kill();
                    witness.hear(&gateway, true);
                    *gateway = setups[at].start();
                    kills += 1;
                }
                (kills, witness)
            })
        });
        if let Some(trouble) = weather.trouble {
            std::thread::sleep(Duration::from_secs(5));
            hub.set(|behaviour| behaviour.token.answer = trouble());
            std::thread::sleep(Duration::from_secs(10));
            hub.set(|behaviour| behaviour.token.answer = Manner::Normal);
        }
        for sailor in crew {
            sailor.join().expect("no panic");
        }
        is_over.store(true, Ordering::Relaxed);
        if let Some(reaper) = reaper {
            (kills, witness) = reaper.join().expect("no panic");
        }
    });
    // A late answer of `/auth/refresh` may have put an older cookie over the newest one: a call finds that again.
    hub.set(|behaviour| behaviour.refresh_trouble = RefreshTrouble::default());
    for ship in &ships {
        let ask = || sea.call(ship, &mut None, "GET", "/datahubs/a/api/v4/user", 0);
        let mut tries = 0..30;
        while let Ended::Answered { status: 503, .. } = ask()
            && tries.next().is_some()
        {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    let mut figures = sea.figures.into_inner().expect("no panic while held");
    figures.seconds = sea.begun.elapsed().as_secs_f64();
    figures.refreshes = hub.counts().refreshes;
    figures.refreshes_refused = hub.counts().refreshes_refused;
    figures.doubled = hub.executions().iter().filter(|(mark, count)| mark.starts_with("POST") && **count > 1).count();
    figures.kills = kills;
    for gateway in &gateways {
        witness.hear(&gateway.lock().expect("no panic while held"), false);
    }
    figures.lost = witness.tell();
    figures.generations = witness.renewed.len();
    let gateway = gateways[0].lock().expect("no panic while held");
    if weather.mode == RefreshMode::RevokeOnUse {
        let twice = usize::try_from(figures.refreshes).expect("few") - figures.generations;
        gateway.expects_orphans_up_to(twice, "of two refreshes of one pair both succeed, and one's answer wins");
    } else if weather.cuts > 0 || weather.kills {
        let most = ships.len() + figures.forced_logins + kills;
        gateway.expects_orphans_up_to(most, "the last answers of those who were cut, and what led to forced logins");
    }
    drop(gateway);
    let _ = std::io::Write::write_all(&mut std::io::stderr(), figures.to_string().as_bytes());
    figures
}

/// What the logs say of sessions that were lost.
#[derive(Default)]
struct Witness {
    /// By the refresh token's hash: whether the process that renewed it was killed.
    renewed: BTreeMap<String, bool>,
    lost: BTreeSet<String>,
}

impl Witness {
    fn hear(&mut self, gateway: &Gateway, is_killed: bool) {
        // What it wrote last is on its way to us.
        std::thread::sleep(Duration::from_millis(50));
        for line in gateway.log() {
            let Some(hash) = line["refresh_token_hash"].as_str() else { continue };
            if line["result"] == "refreshed" {
                self.renewed.insert(hash.to_owned(), is_killed);
            } else if line["message"].as_str().is_some_and(|message| message.starts_with("a session is lost")) {
                self.lost.insert(hash.to_owned());
            }
        }
    }

    fn tell(&self) -> Vec<String> {
        let why = |hash: &String| match self.renewed.get(hash) {
            Some(true) => format!("{hash} {DIED}"),
            None => format!("{hash} (a) nobody got the DataHUB's answer"),
            Some(false) => format!("{hash} (b) the process that knew what followed lives, and nobody met it"),
        };
        self.lost.iter().map(why).collect()
    }
}

/// Why a session was lost.
const DIED: &str = "(a) the process that knew what followed was killed";

/// One browser: a jar, and six connections that its tabs share.
struct Ship {
    /// Who signs in.
    user: String,
    browser: Browser,
    /// A person logs in once, however many tabs ask for it. How often that was.
    logins: Mutex<usize>,
}

struct Sea<'a> {
    hub: &'a DataHub,
    address: String,
    weather: Weather,
    begun: Instant,
    left: AtomicUsize,
    marks: AtomicUsize,
    figures: Mutex<Figures>,
}

/// How a call came out.
enum Ended {
    Answered { status: u16, code: String, rounds: usize },
    Cut,
    Killed,
}

impl Sea<'_> {
    fn sail(&self, ship: &Ship) {
        let mut connection = None;
        while self.is_more() {
            let mark = self.marks.fetch_add(1, Ordering::Relaxed);
            let project = "/datahubs/a/api/v4/projects/230";
            let (method, path, length) = match dice(1_000) {
                0..5 => ("POST", "/auth/refresh".to_owned(), 0),
                5..150 => ("POST", format!("{project}/issues?title=storm&mark=POST{mark}"), 0),
                150..165 => ("PUT", format!("{project}/packages/generic/p/1/f.bin?mark=PUT{mark}"), dice(2 << 20)),
                165 => ("PUT", format!("{project}/packages/generic/p/1/f.bin?mark=PUT{mark}"), 20 << 20),
                _ => ("GET", "/datahubs/a/api/v4/user".to_owned(), 0),
            };
            let logins = *ship.logins.lock().expect("no panic while held");
            let ended = self.call(ship, &mut connection, method, &path, usize::try_from(length).expect("20 MB"));
            let mut figures = self.figures.lock().expect("no panic while held");
            figures.calls += 1;
            match ended {
                Ended::Cut => figures.cut += 1,
                Ended::Killed => figures.killed += 1,
                Ended::Answered { status, code, rounds } => {
                    *figures.replays.entry(rounds).or_default() += 1;
                    match status {
                        200 | 201 => figures.good += 1,
                        401 => {
                            drop(figures);
                            self.log_in_again(ship, logins, &code);
                        }
                        _ => *figures.others.entry(format!("{status} {code}")).or_default() += 1,
                    }
                }
            }
        }
    }

    /// Whether there is a call to make.
    fn is_more(&self) -> bool {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        taken.is_ok() || self.begun.elapsed() < self.weather.lasts
    }

    /// One call as a browser makes it: goes round where it is sent, with its body and with what the jar holds then.
    fn call(&self, ship: &Ship, connection: &mut Option<Connection>, method: &str, path: &str, length: usize) -> Ended {
        let mut path = path.to_owned();
        for round in 0..=20 {
            let head = format!(
                "{method} {BASE}{path} HTTP/1.1\r\nHost: localhost:8000\r\n{}{FETCH}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
                ship.browser.cookie_field()
            );
            // On the way there, and on the way back.
            std::thread::sleep(hop());
            let is_cut = dice(100) < self.weather.cuts;
            let mut line = connection.take().unwrap_or_else(|| Connection::open(&self.address));
            line.write(head.as_bytes());
            // A number, as JSON goes.
            let body = vec![b'1'; length.min(64 << 10)];
            let pieces = length.div_ceil(64 << 10);
            for at in 0..pieces {
                if is_cut && at * 2 > pieces {
                    return Ended::Cut;
                }
                line.write(&body[..body.len().min(length - at * (64 << 10))]);
            }
            if is_cut {
                std::thread::sleep(Duration::from_millis(dice(20)));
                return Ended::Cut;
            }
            let Ok(mut answer) = line.try_head() else { return Ended::Killed };
            if answer.status != 204 {
                let Ok(body) = line.body(&answer) else { return Ended::Killed };
                answer.body = body;
            }
            if answer.header("x-request-id").is_none() {
                // nginx's own words.
                return if self.weather.kills { Ended::Killed } else { answered(&answer.text(), answer.status, round) };
            }
            std::thread::sleep(hop());
            ship.browser.apply(&answer);
            if answer.header("connection").as_deref() != Some("close") {
                *connection = Some(line);
            }
            if answer.status != 307 {
                let code = if answer.status >= 400 {
                    answer.json()["code"].as_str().unwrap_or("?").to_owned()
                } else {
                    String::new()
                };
                return answered(&code, answer.status, round);
            }
            path = format!("{}{}", path.split('?').next().expect("a path"), answer.location());
        }
        answered("too many redirects", 307, 20)
    }

    fn log_in(&self, ship: &Ship) {
        let mut told = String::new();
        // A process may be killed under a login, too; people try again.
        for _ in 0..10 {
            match ship.browser.try_log_in(&self.address, self.hub, &ship.user) {
                Ok(()) => return,
                Err(answer) => told = answer,
            }
        }
        panic!("no login in ten tries: {told}");
    }

    /// Unless another tab has done so since this one's call began, with `logins` logins before it.
    fn log_in_again(&self, ship: &Ship, logins: usize, code: &str) {
        let mut current = ship.logins.lock().expect("no panic while held");
        let mut figures = self.figures.lock().expect("no panic while held");
        if *current == logins {
            *current += 1;
            figures.forced_logins += 1;
            *figures.forced_by.entry(code.to_owned()).or_default() += 1;
            drop(figures);
            self.log_in(ship);
        } else {
            figures.of_lost_sessions += 1;
        }
    }
}

fn answered(code: &str, status: u16, rounds: usize) -> Ended {
    Ended::Answered { status, code: code.to_owned(), rounds }
}

/// How long one hop takes: next to nothing, now and then a moment, seldom very long.
fn hop() -> Duration {
    match dice(1_000) {
        0..5 => Duration::from_millis(dice(10_000)),
        5..100 => Duration::from_millis(dice(200)),
        _ => Duration::from_micros(dice(3_000)),
    }
}

fn dice(sides: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system's generator");
    u64::from_le_bytes(bytes) % sides
}
