//! Which bytes may stand where in a request's head, each of the 256 asked: the answers are in `odd_bytes.json`.
//!
//! Behind each request comes a good one with `Connection: close`, so that `200 +` says: answered, and the connection went
//! on; `400 bad_request`: answered, and closed. What is forwarded has gone up as it came.

use std::collections::BTreeMap;

use datahub::DataHub;
use serde::Deserialize;

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Folder, Gateway, Setup, datahub};
use crate::wire::{exchange, lines, summary};

#[derive(Deserialize)]
struct Table {
    /// A request with a `{byte}` in it, and for each way to answer it the bytes, as ranges in hex.
    bytes: BTreeMap<String, (String, BTreeMap<String, String>)>,
    /// What is odd, the whole request, its answer.
    lines: Vec<(String, String, String)>,
}

struct World {
    hub: DataHub,
    gateway: Gateway,
    session: String,
    _folder: Folder,
}

impl World {
    fn new() -> Self {
        let (hub, folder) = (datahub(), Folder::default());
        folder.file("index.html", "the app");
        let dir = format!("app.dir = {:?}", folder.path().to_str().expect("a plain path"));
        // A trace of thousands of requests is a lot to read.
        let gateway = Setup::new(&[("a", &hub)]).and(&dir).quiet().start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        let session = format!("Host: localhost:8000\r\n{FETCH}{}", browser.cookie_field());
        Self { hub, gateway, session, _folder: folder }
    }

    /// Sends a request with a good one behind it; says what the answers are and whether the good one was among them.
    fn ask(&self, request: &[u8]) -> (String, usize) {
        let last = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\nConnection: close\r\n\r\n");
        let answers = exchange(&self.gateway.address, [request, last.as_bytes()].concat());
        let words: Vec<String> = answers.iter().map(summary).collect();
        let outcome = match &words[..] {
            [] => "nothing".to_owned(),
            [one] => one.clone(),
            [one, two] if two == "200" => format!("{one} +"),
            more => more.join(", "),
        };
        (outcome, answers.len())
    }

    /// The bytes of a request; one character is one byte.
    fn bytes(&self, request: &str, byte: u8) -> Vec<u8> {
        let request = request.replace("{api}", &format!("{BASE}/datahubs/a/api/v4")).replace("{base}", BASE);
        let request = request.replace("{session}", &self.session);
        let request = request.replace("{1000}", &"a".repeat(1000)).replace("{byte}", &char::from(byte).to_string());
        request.chars().map(|character| u8::try_from(character).expect("one character is one byte")).collect()
    }
}

/// `00-1f 7f` of 0 to 31 and 127.
fn ranges(bytes: &[u8]) -> String {
    let mut ranges: Vec<(u8, u8)> = Vec::new();
    for &byte in bytes {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == byte => *end = byte,
            _ => ranges.push((byte, byte)),
        }
    }
    let text = |(start, end)| if start == end { format!("{start:02x}") } else { format!("{start:02x}-{end:02x}") };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(" ")
}

fn table() -> Table {
    serde_json::from_str(include_str!("odd_bytes.json")).expect("a table")
}

/// FR-07, PQ-01.
#[test]
fn each_byte_has_its_answer_wherever_it_stands() {
    let world = World::new();
    let mut count = lines(&world.gateway, 2).len();
    let mut wrong = Vec::new();
    for (place, (template, expected)) in table().bytes {
        let mut answers: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for byte in 0..=255 {
            world.hub.clear();
            let request = world.bytes(&template, byte);
            let (outcome, answered) = world.ask(&request);
            count += answered;
            // Whatever goes up is what came.
            if let Some(gone) = world.hub.requests().first() {
                let is_in = |part: &[u8]| gone.head.windows(part.len()).any(|window| window == part);
                let whole = [b'x', byte, b'y'];
                let is_forwarded = template.contains("x{byte}y") && !place.contains("not forwarded");
                let head = String::from_utf8_lossy(&gone.head);
                assert!(is_in(&whole) || !is_forwarded, "{place}, {byte:02x}: {head}");
            }
            answers.entry(outcome).or_default().push(byte);
        }
        let answers: BTreeMap<_, _> = answers.into_iter().map(|(answer, bytes)| (answer, ranges(&bytes))).collect();
        if answers != expected {
            wrong.push(format!("{place:?}: {}", serde_json::to_string(&(template, answers)).expect("texts")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(",\n"));
    // Every answer has its line, and nothing else has one.
    assert_eq!(lines(&world.gateway, count).len(), count);
}

/// FR-05, FR-07.
#[test]
fn odd_lines_have_their_answers() {
    let world = World::new();
    let mut wrong = Vec::new();
    for (case, request, expected) in table().lines {
        let (outcome, _) = world.ask(&world.bytes(&request, 0));
        if outcome != expected {
            wrong.push(serde_json::to_string(&(case, request, outcome)).expect("texts"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join(",\n"));
}
