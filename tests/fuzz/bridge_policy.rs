//! Anything as a target for the old backend: what goes up leads nowhere else, meets no hole that is shut, and is judged the same
//! in every spelling.
//!
//! Decoding and splitting are done once more here, in the plainest way.
#![no_main]

use arcmanager_gateway::bridge::policy::{BridgePolicy, Hole};
use libfuzzer_sys::fuzz_target;
use reference::decoded;

fuzz_target!(|raw: &str| {
    // What a request's line may hold: `http::head` has refused everything else before.
    let (path, query) = raw.split_at(raw.find('?').unwrap_or(raw.len()));
    let is_good = |part: &str, bad: &[u8]| part.bytes().all(|byte| byte.is_ascii_graphic() && !bad.contains(&byte));
    if !path.starts_with('/') || !is_good(path, b"#<>`") || !is_good(query, b"#<>\"") {
        return;
    }
    let query = query.strip_prefix('?').unwrap_or(query);
    let [shut, open] = [Vec::new(), HOLES.to_vec()].map(|holes| BridgePolicy::new(BASE, holes));
    let below = path.strip_prefix(BASE).and_then(|rest| rest.strip_prefix('/'));
    let group = below.map(|below| below.split('/').next().unwrap_or(below));
    let route = group.filter(|group| GROUPS.contains(group)).map(|group| format!("/{group}/{{path}}"));
    assert_eq!(shut.route(raw), route.as_deref(), "six groups, and each its own route");
    for method in ["GET", "HEAD", "POST"] {
        let is_public = method != "POST" && below.is_some_and(|below| PUBLIC.contains(&below));
        assert_eq!(shut.is_public(method, raw), is_public);
        let is_opened = below.is_some_and(|below| OPENED.contains(&below));
        assert_eq!(open.is_public(method, raw), is_public || is_opened);
    }

    let readings = [decoded(path.as_bytes()), decoded(&decoded(path.as_bytes()))];
    if shut.check(raw).is_ok() {
        assert!(open.check(raw).is_ok(), "what is open stops nothing");
        // As the backend reads it: it decodes once, and writes what it gets into the query of a call to the DataHUB.
        for part in query.split('&').map(|part| decoded(part.as_bytes())) {
            assert!(!part.iter().any(|byte| b"&;#".contains(byte)), "a second parameter");
        }
        let words: Vec<_> = readings.iter().flat_map(|path| pieces(path, b"/\\;?#")).collect();
        for name in ["exportproject", "publisharc"] {
            assert!(!words.contains(&name.into()), "{name}");
        }
        let is_file_path =
            |part: &str| lower(&decoded(part.split('=').next().unwrap_or(part).as_bytes())) == "filepath";
        assert!(
            !words.contains(&"commitfile".into()) || !query.split('&').any(is_file_path),
            "a file of the backend's"
        );
    }
    if open.check(raw).is_ok() {
        for path in &readings {
            assert!(!path.iter().any(u8::is_ascii_control));
            let segments = pieces(path, b"/\\").into_iter().map(|segment| pieces(segment.as_bytes(), b";?#").remove(0));
            assert!(segments.into_iter().all(|segment| segment != "." && segment != ".."), "it leads elsewhere");
        }
    }

    // A letter or digit is the same behind an escape. The group is known by its plain spelling only.
    let start = raw.len() - below.map_or(raw.len(), |below| below.len() + raw.len() - path.len());
    let start = start + group.map_or(0, str::len);
    let is_escape = |at: usize| raw[..at].bytes().rev().take(2).any(|byte| byte == b'%');
    let letters = raw.bytes().enumerate().filter(|(at, byte)| byte.is_ascii_alphanumeric() && !is_escape(*at));
    for (at, byte) in letters.filter(|(at, _)| *at >= start).take(32) {
        let escaped = format!("{}%{byte:02x}{}", &raw[..at], &raw[at + 1..]);
        assert_eq!((shut.route(&escaped), shut.check(&escaped)), (shut.route(raw), shut.check(raw)), "{escaped}");
        assert_eq!(open.check(&escaped), open.check(raw), "{escaped}");
        assert!(at >= path.len() || !open.is_public("GET", &escaped), "public in its plain spelling only");
    }
});

/// What stands between these separators, in lower case.
fn pieces(path: &[u8], separators: &[u8]) -> Vec<String> {
    path.split(|byte| separators.contains(byte)).map(lower).collect()
}

fn lower(text: &[u8]) -> String {
    String::from_utf8_lossy(text).to_ascii_lowercase()
}

const BASE: &str = "/arcmanager/api/v1";
const GROUPS: [&str; 6] = ["projects", "fnf", "tnt", "user", "validate", "search"];
/// Without a login.
const PUBLIC: [&str; 5] = [
    "projects/public_arcs",
    "tnt/getTemplates",
    "tnt/getTerms",
    "tnt/getTermSuggestions",
    "tnt/getTermSuggestionsByParentTerm",
];
/// The same where an operator has opened them.
const OPENED: [&str; 2] = ["tnt/saveTemplate", "search/createArcJson"];
const HOLES: [Hole; 6] = [
    Hole::CommitFile,
    Hole::ExportProject,
    Hole::PublishArc,
    Hole::SaveTemplate,
    Hole::CreateArcJson,
    Hole::Parameters,
];
