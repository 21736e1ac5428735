//! What a defect of the gateway costs: the one call that meets it.
//!
//! The binary has no route that panics. So the library's server runs in a process of its own, with routes that do: this
//! test binary, started once more.

use std::future::Ready;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::ServiceResponse;
use actix_web::web::{self, Bytes, ServiceConfig};
use actix_web::{Error, HttpResponse};
use arcmanager_gateway::admin::{ProcessHealth, systemd};
use arcmanager_gateway::config::Config;
use arcmanager_gateway::server;
use arcmanager_gateway::server::socket::{Socket, Sockets};
use listenfd::ListenFd;

use crate::gateway::{Gateway, Setup, datahub};
use crate::wire::{Wire, lines};

/// Stands for what is at hand when something breaks.
const CANARY: &str = "glpat-canary-of-a-panic";

fn routes(config: &mut ServiceConfig) {
    config
        .route("/good", web::get().to(async || "good"))
        .route("/bad", web::get().to(async || -> &str { panic!("plain words, expected") }))
        .route("/bad/value", web::get().to(async || -> &str { panic!("what is at hand: {CANARY}") }))
        .route(
            "/bad/later",
            web::get().to(async || -> &str {
                actix_web::rt::time::sleep(Duration::from_millis(100)).await;
                panic!("later, expected")
            }),
        )
        // A defect of another kind: nothing else of the worker's goes on meanwhile.
        .route(
            "/stuck",
            web::get().to(async || {
                std::thread::sleep(Duration::from_secs(3));
                "no more"
            }),
        )
        // Before there is a future to wait for.
        .service(web::resource("/worse").wrap_fn(|_, _| panicking()).to(async || "never"))
        // After the head of the answer has gone.
        .route(
            "/worst",
            web::get().to(async || {
                HttpResponse::Ok().streaming(futures_util::stream::unfold(0, async |at| {
                    actix_web::rt::time::sleep(Duration::from_millis(50)).await;
                    assert!(at == 0, "in a body, expected");
                    Some((Ok::<_, Error>(Bytes::from_static(b"half")), at + 1))
                }))
            }),
        );
}

fn panicking() -> Ready<Result<ServiceResponse, Error>> {
    panic!("early, expected")
}

/// The server of the library, until somebody ends it; only in the process that [`world`] starts.
#[test]
fn the_other_process() {
    let Some(file) = std::env::var_os("GATEWAY_OF_A_TEST") else { return };
    // Whatever stands on this line belongs to the test's own report.
    std::io::stdout().write_all(b"\n").expect("a parent that reads");
    let config = Arc::new(Config::load(&[PathBuf::from(file)]).expect("a good configuration"));
    arcmanager_gateway::access_log::start(config.log.0, config.log.1);
    let sockets = Sockets::open(ListenFd::empty(), &config).expect("free ports");
    let ended = actix_web::rt::System::new().block_on(async {
        let health = ProcessHealth::default();
        let operators = sockets.admin.expect("one");
        let places: Vec<_> = [&operators, &sockets.main[0]].map(Socket::address).into();
        let (server, _tasks) = server::gateway(&config, sockets.main, &health, routes)?;
        log::info!(listen = places[0]; "operators may ask");
        actix_web::rt::spawn(server::admin_server(operators, &health)?);
        actix_web::rt::spawn(systemd::watch(health));
        log::info!(listen = places[1]; "serving");
        server.await
    });
    ended.expect("it serves");
}

fn world() -> Gateway {
    // One worker: neighbours are on the same one.
    world_with("server.workers = 1", |_| {})
}

/// The other process with these lines in its configuration, started by a command that `change` may change.
pub fn world_with(lines: &str, change: impl FnOnce(&mut Command)) -> Gateway {
    let mut command = Command::new(std::env::current_exe().expect("a test binary"));
    command.env_clear().args(["--exact", "panics::the_other_process", "--nocapture", "--test-threads", "2"]);
    change(&mut command);
    let gateway = Setup::new(&[("a", &datahub())]).and(lines).start_as(command);
    gateway.keep_secret([CANARY.to_owned()]);
    gateway
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost:8000\r\nX-CSRF: 1\r\n\r\n")
}

fn is_good(wire: &mut Wire, case: &str) {
    wire.send(get("/good"));
    let answer = wire.answer().expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, "good"), "{case}");
}

fn panics(gateway: &Gateway) -> u64 {
    let metrics = gateway.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix("gateway_panics_total "));
    line.and_then(|count| count.parse().ok()).expect("a number")
}

/// EL-02, EL-05: whenever it happens, but for what is told of an answer that has begun.
#[test]
fn a_panic_is_a_500_for_one_request_and_the_worker_goes_on() {
    let gateway = world();
    let mut neighbour = Wire::open(&gateway.address);
    is_good(&mut neighbour, "before");
    for (count, (path, reason)) in [
        ("/bad", Some("plain words, expected")),
        ("/bad/value", None),
        ("/bad/later", Some("later, expected")),
        ("/worse", Some("early, expected")),
    ]
    .into_iter()
    .enumerate()
    {
        let mut unlucky = Wire::open(&gateway.address);
        // The same connection before, and what was sent behind: never answered, and never taken for anything.
        is_good(&mut unlucky, path);
        unlucky.send(get(path) + &get("/good"));
        is_good(&mut neighbour, path);
        let answer = unlucky.answer().expect("an answer");
        assert_eq!((answer.status, answer.code().as_str()), (500, "internal"), "{path}");
        for (name, value) in [
            ("content-security-policy", "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("vary", "Cookie"),
            ("connection", "close"),
        ] {
            assert_eq!(answer.headers(name), [value], "{path}: {name}");
        }
        gateway.keep_answer(&answer.head, &answer.body);
        assert!(unlucky.answer().is_none(), "{path}: it is closed in peace");
        is_good(&mut neighbour, path);
        is_good(&mut Wire::open(&gateway.address), path);
        assert_eq!(panics(&gateway), count as u64 + 1, "{path}");

        let id = answer.header("x-request-id").expect("an id");
        let of_it = || gateway.log().into_iter().filter(|line| line["request_id"] == id.as_str());
        gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
        let line: Vec<_> = of_it().filter(|line| line["target"] == "access").collect();
        assert_eq!(line.len(), 1, "{path}: {line:?}");
        assert_eq!((&line[0]["status"], &line[0]["code"]), (&500.into(), &"internal".into()), "{path}");
        let error: Vec<_> = of_it().filter(|line| line["level"] == "ERROR").collect();
        assert_eq!(error.len(), 1, "{path}: {error:?}");
        assert!(error[0]["at"].as_str().is_some_and(|at| at.starts_with("tests/api/panics.rs:")), "{path}: {error:?}");
        assert_eq!(error[0]["reason"].as_str(), reason, "{path}");
    }
}

/// It tells whoever reads the log before it goes on, but waits for them no longer than a moment.
#[test]
fn a_panic_waits_for_the_log_a_tenth_of_a_second() {
    let gateway = world();
    gateway.stop_reading();
    let mut neighbour = Wire::open(&gateway.address);
    // A pipe holds 64 KiB.
    for _ in 0..1_000 {
        is_good(&mut neighbour, "before");
    }
    let begun = Instant::now();
    let mut unlucky = Wire::open(&gateway.address);
    unlucky.send(get("/bad"));
    assert_eq!(unlucky.answer().expect("an answer").status, 500);
    let took = begun.elapsed().as_millis();
    assert!((90..1_500).contains(&took), "{took} ms");
    is_good(&mut neighbour, "after");
    gateway.read_on();
    gateway.wait_for_line(|line| line["level"] == "ERROR" && line["reason"] == "plain words, expected");
}

/// EL-05: what has begun cannot be taken back, but never looks whole.
#[test]
fn a_panic_in_a_body_cuts_it_off() {
    let gateway = world();
    let mut neighbour = Wire::open(&gateway.address);
    is_good(&mut neighbour, "before");
    let mut unlucky = crate::browser::Connection::open(&gateway.address);
    unlucky.write(get("/worst").as_bytes());
    let answer = unlucky.head();
    assert_eq!(answer.status, 200);
    assert_eq!(unlucky.chunk().expect("the first half"), b"half");
    assert!(unlucky.chunk().is_err(), "no end that could be believed");
    is_good(&mut neighbour, "after");
    assert_eq!(panics(&gateway), 1);
    let id = answer.header("x-request-id").expect("an id");
    let lines: Vec<_> = lines(&gateway, 3).into_iter().filter(|line| line["request_id"] == id.as_str()).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((&lines[0]["status"], &lines[0]["code"]), (&200.into(), &"internal".into()), "{lines:?}");
    let error = gateway.wait_for_line(|line| line["level"] == "ERROR" && !line["at"].is_null());
    assert_eq!(error["reason"].as_str(), Some("in a body, expected"));
}
