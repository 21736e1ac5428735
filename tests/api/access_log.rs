//! The log, whoever reads it or does not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::browser::Browser;
use crate::gateway::{BASE, Gateway, Setup, datahub};

#[test]
fn a_reader_that_stalls_stops_no_call_and_misses_no_event() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).and("server.workers = 2").quiet().start();
    gateway.stop_reading();
    let mut calls = called(&gateway, 4, 7_500).len();
    // Nothing of this is read now, and there is room for it all the same.
    let refused =
        Browser::default().send(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), "X-CSRF: 0\r\n", b"");
    assert_eq!((refused.status, refused.code().as_str()), (403, "cross_site_request"));
    calls += 1;
    let dropped = dropped(&gateway);
    assert!(dropped > 0, "8 MiB hold fewer lines");

    gateway.read_on();
    gateway.wait_for_event("cross_site_refused");
    let told = gateway.wait_for_line(is_about_dropped);
    assert_eq!((&told["level"], told["dropped"].as_u64()), (&"WARN".into(), Some(dropped)));
    calls += called(&gateway, 1, 1).len();
    let lines = || gateway.output().iter().filter(|line| line.contains("\"target\":\"access\"")).count() as u64;
    gateway.wait_for_line(|_| lines() + dropped >= calls as u64);
    assert_eq!(lines() + dropped, calls as u64);
    assert_eq!(gateway.log().iter().filter(|line| is_about_dropped(line)).count(), 1);
    assert_eq!(self::dropped(&gateway), dropped, "nothing is lost now");
}

#[test]
fn a_reader_that_stalls_does_not_keep_a_process_that_ends() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).quiet().start();
    gateway.stop_reading();
    called(&gateway, 2, 500);
    let begun = Instant::now();
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn a_reader_that_is_gone_costs_lines_and_nothing_else() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).quiet().start();
    gateway.close_output();
    while dropped(&gateway) == 0 {
        called(&gateway, 1, 1);
    }
    called(&gateway, 2, 500);
    let until = Instant::now() + Duration::from_secs(10);
    while dropped(&gateway) < 1_000 {
        assert!(Instant::now() < until, "{}", dropped(&gateway));
        std::thread::sleep(Duration::from_millis(10));
    }
    let begun = Instant::now();
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_secs(2), "there is nothing to wait for: {:?}", begun.elapsed());
}

#[test]
fn no_line_is_lost_or_doubled_or_torn() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).and("server.workers = 8").quiet().start();
    let ids = called(&gateway, 8, 500);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4_000);
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    gateway.wait_for_line(|line| line["message"] == "ended");

    let output = gateway.output();
    let lines: Vec<Value> = output.iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    let access: Vec<_> = lines.iter().filter(|line| line["target"] == "access").collect();
    let logged: BTreeSet<_> = access.iter().map(|line| line["request_id"].as_str().expect("a text")).collect();
    assert_eq!((access.len(), logged), (4_000, ids.iter().map(String::as_str).collect()));
    // The lines of a connection are in the order of its requests.
    let places: BTreeMap<_, _> =
        access.iter().enumerate().map(|(at, line)| (line["request_id"].as_str(), at)).collect();
    for connection in ids.chunks(500) {
        let places: Vec<_> = connection.iter().map(|id| places[&Some(id.as_str())]).collect();
        assert!(places.is_sorted(), "{places:?}");
    }
    assert_eq!(lines.last().map(|line| &line["message"]), Some(&"ended".into()), "the end is not before what it ends");
}

#[test]
fn the_lines_of_requests_can_be_switched_off_alone() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).logging("info,access=warn").start();
    called(&gateway, 1, 10);
    assert_eq!(Browser::default().send(&gateway, "GET", &format!("{BASE}/datahubs/a/x"), "", b"").status, 403);
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    gateway.wait_for_line(|line| line["message"] == "ended");
    gateway.wait_for_event("cross_site_refused");
    assert_eq!(gateway.log().iter().filter(|line| line["target"] == "access").count(), 0);
}

fn is_about_dropped(line: &Value) -> bool {
    line["dropped"].is_u64()
}

/// How many lines `/metrics` says were dropped.
fn dropped(gateway: &Gateway) -> u64 {
    let metrics = gateway.metrics();
    let count = metrics.lines().find_map(|line| line.strip_prefix("gateway_log_dropped_total "));
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

/// Asks for the list of DataHUBs over so many connections, so often over each; returns the ids of the answers.
fn called(gateway: &Gateway, connections: usize, calls: usize) -> Vec<String> {
    let request = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n\r\n");
    let call = || {
        let mut stream = TcpStream::connect(&gateway.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("longer than nothing");
        let (mut ids, mut answers, mut buffer) = (Vec::new(), String::new(), vec![0; 256 * 1024]);
        while ids.len() < calls {
            let round = ids.len() + PIPELINED.min(calls - ids.len());
            stream.write_all(request.repeat(round - ids.len()).as_bytes()).expect("it reads");
            while ids.len() < round {
                let count = stream.read(&mut buffer).expect("it answers, whoever reads its log");
                assert_ne!(count, 0, "the connection stays: {answers}");
                answers.push_str(std::str::from_utf8(&buffer[..count]).expect("ASCII"));
                while let Some((answer, rest)) = answers.split_once("}]") {
                    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                    let (_, id) = answer.split_once("x-request-id: ").expect("an id");
                    ids.push(id[..32].to_owned());
                    answers = rest.to_owned();
                }
            }
        }
        ids
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(call)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no call fails")).collect()
    })
}

/// So many requests are sent before an answer is read.
const PIPELINED: usize = 20;
