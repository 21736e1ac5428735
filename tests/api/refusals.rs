//! Which refusal wins where two apply, and that the connection ends after each.

use crate::browser::FETCH;
use crate::gateway::{BASE, Setup, datahub};
use crate::proxy::set_up;
use crate::wire::{Wire, exchange, summary};

/// A fault: its name, what it changes in the good request, into what, how the request with it alone is answered, and
/// whether the connection then ends.
type Fault = (&'static str, &'static str, &'static str, &'static str, bool);

const GOOD: &str = "GET {base}/auth/session HTTP/1.1\r\nHost: localhost:8000\r\n{fetch}\r\n\r\n";

/// In the order in which they win: each one hides all that follow.
const FAULTS: [Fault; 10] = [
    // What is no head.
    ("a control sign in the target", "session ", "session\u{1} ", "400 bad_request_target", true),
    ("two lengths", "\r\n\r\n", "\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", "400 bad_request", true),
    ("a coding", "Host", "Transfer-Encoding: gzip\r\nHost", "400 bad_request", true),
    ("a space in a name", "\r\n\r\n", "\r\nX Y: 1\r\n\r\n", "400 bad_request", true),
    // What is a head, and none that we take.
    ("the method", "GET ", "TRACE ", "501 method_not_implemented", true),
    ("the target", " {base}", " http://localhost:8000{base}", "400 bad_request_target", true),
    ("the host", "localhost:8000\r", "localhost:8001\r", "421 wrong_host", true),
    ("an upgrade", "\r\n\r\n", "\r\nUpgrade: h2c\r\n\r\n", "501 upgrade_refused", true),
    // A body with GET is refused before anybody asks who sent it.
    ("a body", "\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello", "400 bad_request", true),
    ("another site", "same-origin", "cross-site", "403 cross_site_request", false),
];

fn request(faults: &[&Fault]) -> String {
    let good = GOOD.replace("{fetch}", FETCH.trim_end());
    // From the last to the first, so that a body stays behind its head.
    let changed = faults.iter().rev().fold(good, |request, (name, from, to, ..)| {
        assert!(request.contains(from), "{name}: there is no {from:?} to replace");
        request.replacen(from, to, 1)
    });
    changed.replace("{base}", BASE)
}

/// PQ-07, PQ-08, FR-06, FR-12.
#[test]
fn the_first_refusal_wins_and_ends_the_connection() {
    let gateway = Setup::new(&[("a", &datahub())]).start();
    let last = "GET /arcmanager/api/v1/datahubs HTTP/1.1\r\nHost: localhost:8000\r\nConnection: close\r\n\r\n";
    let good: Vec<_> = exchange(&gateway.address, request(&[]) + last).iter().map(summary).collect();
    assert_eq!(good, ["200", "200"]);
    for (at, first) in FAULTS.iter().enumerate() {
        let (name, _, _, expected, closes) = first;
        let alone: Vec<_> = exchange(&gateway.address, request(&[first]) + last).iter().map(summary).collect();
        let end = if *closes { None } else { Some("200") };
        assert_eq!(alone, [*expected].into_iter().chain(end).collect::<Vec<_>>(), "{name}");
        for second in &FAULTS[at + 1..] {
            // Two that change the same place cannot both be there.
            if first.1 == second.1 && !first.1.starts_with('\r') {
                continue;
            }
            let answers = exchange(&gateway.address, request(&[first, second]) + last);
            let both: Vec<_> = answers.iter().map(summary).collect();
            assert_eq!(both, [*expected], "{name}, and {}", second.0);
            assert_eq!(answers[0].header("connection").as_deref(), Some("close"), "{name}, and {}", second.0);
        }
    }
}

/// FR-08: on a kept connection, too: what came before has its answer, what comes behind has none.
#[test]
fn a_refusal_ends_a_kept_connection() {
    let gateway = Setup::new(&[("a", &datahub())]).start();
    for (name, _, _, expected, _) in FAULTS.iter().filter(|fault| fault.4) {
        let fault = FAULTS.iter().find(|fault| fault.0 == *name).expect("it is one");
        // One after the other, and all at once.
        let mut wire = Wire::open(&gateway.address);
        for _ in 0..2 {
            wire.send(request(&[]));
            assert_eq!(summary(&wire.answer().expect("an answer")), "200", "{name}");
        }
        wire.send(request(&[fault]));
        assert_eq!(summary(&wire.answer().expect("an answer")), *expected, "{name}");
        assert!(wire.answer().is_none(), "{name}: it ends");
        let all = request(&[]) + &request(&[]) + &request(&[fault]) + &request(&[]);
        let all: Vec<_> = exchange(&gateway.address, all).iter().map(summary).collect();
        assert_eq!(all, ["200", "200", expected], "{name}");
    }
}

/// DS-01: limits are those of a head, so that nothing in it is looked at before.
#[test]
fn a_head_that_is_too_large_is_nothing_else() {
    let gateway = Setup::new(&[("a", &datahub())]).and("limits.head = \"2KiB\"\nlimits.fields = 10").start();
    let long =
        |faults: &[&Fault]| request(faults).replacen("\r\n\r\n", &format!("\r\nX: {}\r\n\r\n", "a".repeat(3000)), 1);
    let many =
        |faults: &[&Fault]| request(faults).replacen("\r\n\r\n", &format!("\r\n{}\r\n", "X: a\r\n".repeat(10)), 1);
    for fault in FAULTS.iter().skip(4) {
        for bytes in [long(&[fault]), many(&[fault])] {
            let answers: Vec<_> = exchange(&gateway.address, bytes).iter().map(summary).collect();
            assert_eq!(answers, ["431 head_too_large"], "{}", fault.0);
        }
    }
    // A line that is none is found before the limit that comes behind it.
    for fault in &FAULTS[..2] {
        let answers: Vec<_> = exchange(&gateway.address, long(&[fault])).iter().map(summary).collect();
        assert_eq!(answers, [fault.3], "{}", fault.0);
    }
}

/// CB-10: the address of a callback holds a code and a state. An answer that stayed there would leave them where script of the
/// app can read them.
#[test]
fn a_callback_that_is_refused_leads_to_the_app_all_the_same() {
    let lines = "limits.head = \"2KiB\"\nlimits.fields = 10\ntimeouts.request_head = \"1s\"";
    let gateway = Setup::new(&[("a", &datahub())]).and(lines).start();
    gateway.keep_secret(["canary-code".to_owned()]);
    let callback = "/auth/callback?datahub=a&code=canary-code&state=canary-code";
    let at = |path: &str, request: &str| request.replacen("/auth/session", path, 1);
    let good = request(&[]);
    let mut cases: Vec<(&str, String, &str)> = vec![
        (
            "a cookie that is too long",
            good.replace("\r\n\r\n", &format!("\r\nCookie: a={}\r\n\r\n", "a".repeat(3_000))),
            "431 head_too_large",
        ),
        (
            "too many fields",
            good.replace("\r\n\r\n", &format!("\r\n{}\r\n", "X: a\r\n".repeat(10))),
            "431 head_too_large",
        ),
        (
            "a target that is too long",
            good.replace(" HTTP", &format!("{}a=a HTTP", "&a=a".repeat(3_000))),
            "431 head_too_large",
        ),
        ("one that does not end", format!("GET {BASE}/auth/session{}", "&a=a".repeat(3_000)), "431 head_too_large"),
        ("a head that does not end", good.replace("\r\n\r\n", "\r\n"), "408 request_timeout"),
        ("no host", good.replace("Host: localhost:8000\r\n", ""), "400 bad_request"),
        ("an empty line before", good.replace("GET", "\r\nGET").replace("Host", "X Y: 1\r\nHost"), "400 bad_request"),
    ];
    let is_of_all = |fault: &&Fault| !["the method", "the target", "another site"].contains(&fault.0);
    cases.extend(FAULTS.iter().filter(is_of_all).map(|fault| (fault.0, request(&[fault]), fault.3)));
    for (name, request, expected) in &cases {
        let answers: Vec<_> = exchange(&gateway.address, request).iter().map(summary).collect();
        assert_eq!(answers, [*expected], "{name}, elsewhere");
        let answers = exchange(&gateway.address, at(callback, request));
        let [answer] = &answers[..] else { panic!("{name}: {} answers", answers.len()) };
        assert_eq!((answer.status, answer.location().as_str()), (303, "/arcmanager/app/?login_error=failed"), "{name}");
        assert!(answer.text().is_empty() && !answer.head.contains("canary"), "{name}: {}", answer.head);
        for (field, value) in
            [("referrer-policy", "no-referrer"), ("cache-control", "no-store"), ("connection", "close")]
        {
            assert_eq!(answer.header(field).as_deref(), Some(value), "{name}");
        }
        let (_, code) = expected.split_once(' ').expect("status and code");
        gateway.wait_for_line(|line| line["status"] == 303 && line["code"] == code);
        let reason = format!("the callback was refused before it was read: {code}");
        gateway.wait_for_line(|line| line["event"] == "login_failed" && line["reason"] == reason.as_str());
    }
    let counted = format!("gateway_logins_total{{result=\"failed\"}} {}", cases.len());
    assert!(gateway.metrics().contains(&counted), "{counted}");
    // What is no callback, or is asked for ahead of time, is refused as anything else.
    for (path, method, fields, expected) in [
        ("/auth/callbacks?code=a", "GET", "", "404 not_found"),
        ("/auth?/auth/callback?code=a", "GET", "", "404 not_found"),
        (callback, "POST", "Content-Length: 0\r\n", "405 method_not_allowed"),
        (callback, "TRACE", "", "501 method_not_implemented"),
        (callback, "GET", "Sec-Purpose: prefetch\r\n", "503 prefetch_refused"),
    ] {
        let request = at(path, &good).replacen("GET", method, 1).replacen(
            "\r\n\r\n",
            &format!("\r\n{fields}Connection: close\r\n\r\n"),
            1,
        );
        let answers: Vec<_> = exchange(&gateway.address, request).iter().map(summary).collect();
        assert_eq!(answers, [expected], "{method} {path}");
    }
}

/// A text that anybody may write into a request is no session.
#[test]
fn no_personal_access_token_is_taken() {
    let (hub, gateway, browser) = set_up("");
    let json = "application/json";
    for path in ["/auth/addPAT", "/auth/addPAT?datahub=a"] {
        for method in ["PUT", "POST"] {
            let answer = browser.fetch_with(&gateway, method, path, json, b"{\"pat\":\"glpat-00000000000000000000\"}");
            assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{method} {path}");
            assert!(answer.headers("set-cookie").is_empty());
        }
    }
    assert!(hub.requests().is_empty());
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200, "the session is as it was");
}
