//! Short bodies are looked through, however they are framed, and read as GitLab's Rack and Grape read them.

use std::time::Duration;

use datahub::DataHub;
use datahub::record::Recorded;

use crate::browser::{Answer, Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub, wait_until};

const ISSUES: &str = "/api/v4/projects/230/issues";
const JSON: &str = "Content-Type: application/json\r\n";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
/// The longest body that is looked through, in bytes.
const LONGEST: usize = 64 * 1024;

/// Somebody who is logged in.
struct World {
    hub: DataHub,
    gateway: Gateway,
    browser: Browser,
}

impl World {
    fn new(lines: &str) -> Self {
        let hub = datahub();
        let gateway = Setup::new(&[("a", &hub)]).and(lines).start();
        let browser = Browser::default();
        browser.log_in(&gateway, "a", &hub, "testuser");
        hub.clear();
        Self { hub, gateway, browser }
    }

    fn call(&self, method: &str, raw: &str, fields: &str, body: &[u8]) -> Answer {
        self.hub.clear();
        self.browser.send(&self.gateway, method, &format!("{BASE}/datahubs/a{raw}"), &format!("{FETCH}{fields}"), body)
    }

    /// The one request that went up; it had come to its end.
    fn arrived(&self) -> Option<Recorded> {
        let mut requests = self.hub.requests();
        assert!(requests.len() < 2 && requests.iter().all(|request| request.complete));
        requests.pop()
    }

    /// Sends a body by its length, in one chunk, and in chunks of some bytes: the same becomes of it each time.
    fn expect(&self, method: &str, kind: &str, body: &[u8], code: &str) {
        let length = format!("Content-Length: {}\r\n", body.len());
        for (framing, sent) in
            [(length.as_str(), body.to_vec()), (CHUNKED, chunks(body, body.len().max(1))), (CHUNKED, chunks(body, 7))]
        {
            let case = format!("{method} {kind}{framing}{}", String::from_utf8_lossy(&body[..body.len().min(300)]));
            let answer = self.call(method, ISSUES, &format!("{kind}{framing}"), &sent);
            match self.arrived() {
                Some(request) => {
                    assert_eq!(code, "", "{case}");
                    assert_eq!(request.body, body, "{case}");
                    assert_eq!(request.header("transfer-encoding").is_some(), framing == CHUNKED, "{case}");
                }
                None => assert_eq!((answer.status, answer.code().as_str()), (400, code), "{case}"),
            }
        }
    }
}

/// A body in chunks of this size.
fn chunks(body: &[u8], size: usize) -> Vec<u8> {
    let chunk = |piece: &[u8]| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
    body.chunks(size).flat_map(chunk).chain(*b"0\r\n\r\n").collect()
}

/// A part of a multipart body whose boundary is `b`.
fn part(head: &str) -> String {
    format!("--b\r\n{head}\r\n\r\nroot\r\n--b--\r\n")
}

/// PQ-12.
#[test]
fn a_credential_in_a_short_body_is_refused_however_it_is_framed() {
    let world = World::new("");
    let parts = "Content-Type: multipart/form-data; boundary=b\r\n";
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for (kind, body, twin) in [
            (JSON, r#"{"private_token":"x"}"#.to_owned(), r#"{"private-token":"x"}"#.to_owned()),
            (FORM, "private_token=abc123".to_owned(), "private-token=abc123".to_owned()),
            (FORM, "title=a&_method=PUT".to_owned(), "title=a&method=PUT".to_owned()),
            (
                parts,
                part("Content-Disposition: form-data; name=\"sudo\""),
                part("Content-Disposition: form-data; name=\"a\""),
            ),
        ] {
            world.expect(method, kind, body.as_bytes(), "credential_parameter");
            world.expect(method, kind, twin.as_bytes(), "");
        }
    }
    world.gateway.wait_for_event("credential_refused");
}

/// PQ-12: without a type, a body is a form to Rack (`lib/rack/request.rb`) and JSON to Grape (`middleware/formatter.rb`).
#[test]
fn a_body_without_a_type_is_a_form_and_perhaps_json() {
    let world = World::new("");
    for (body, code) in [
        ("private_token=abc123", "credential_parameter"),
        ("a=b;sudo=root", "credential_parameter"),
        ("%5Fmethod=DELETE", "credential_parameter"),
        ("title=a&token=sudo", ""),
        (r#"{"sudo":1}"#, "credential_parameter"),
        (r#" {"\u0073udo":1}"#, "credential_parameter"),
        ("\u{feff}{\"sudo\":1}", "credential_parameter"),
        ("/* a */ {\"sudo\":1}", "credential_parameter"),
        ("// a\n{/**/\"\\u0073udo\":1}", "bad_request"),
        (r#"{"a":"sudo\n"}"#, ""),
        ("{\"a\":1}&sudo=1", "credential_parameter"),
        // Files that look a little like it.
        ("{\\rtf1\\ansi sudo}", ""),
        ("// \\u0073udo\nlet sudo = {}", ""),
        ("/* \\ sudo", ""),
        ("\0\u{1}\\private_token", ""),
        ("{", ""),
    ] {
        for kind in ["", "Content-Type:\r\n", "Content-Type: ; charset=utf-8\r\n"] {
            world.expect("POST", kind, body.as_bytes(), code);
        }
        world.expect("PUT", "", body.as_bytes(), code);
    }
}

/// PQ-12: what GitLab reads no parameters from is nobody's to look through.
#[test]
fn the_type_of_a_body_is_read_as_rack_reads_it() {
    let world = World::new("");
    for (kind, code) in [
        ("APPLICATION/JSON", "credential_parameter"),
        ("application/json;charset=utf-8", "credential_parameter"),
        ("application/json ; charset=utf-16", "credential_parameter"),
        ("application/json,text/plain", "credential_parameter"),
        ("application/vnd.gitlab+json", "credential_parameter"),
        ("text/plain", ""),
        ("text/json", ""),
        ("application/octet-stream", ""),
        ("application/xml", ""),
    ] {
        world.expect("POST", &format!("Content-Type: {kind}\r\n"), br#"{"sudo":1}"#, code);
    }
    for kind in ["application/json", "application/x-www-form-urlencoded", "text/plain"] {
        let twice = format!("Content-Type: {kind}\r\nContent-Type: text/plain\r\n");
        world.expect("POST", &twice, b"{}", "bad_request");
    }
}

/// RFC 8259 section 8.1: JSON is UTF-8, and a byte order mark before it may be ignored.
#[test]
fn json_with_a_byte_order_mark_is_json() {
    let world = World::new("");
    let utf_16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    for (body, code) in [
        ("\u{feff}{\"a\":\"b\\n\"}".as_bytes().to_vec(), ""),
        ("\u{feff} {\"a\":{\"sudo\":\"\\u00e4\"}}".as_bytes().to_vec(), ""),
        ("\u{feff}{\"\\u0073udo\":1}".as_bytes().to_vec(), "credential_parameter"),
        ("\u{feff}\u{feff}{\"\\u0073udo\":1}".as_bytes().to_vec(), "bad_request"),
        (utf_16("\u{feff}{\"sudo\":1}"), "bad_request"),
        (utf_16("{\"sudo\":1}"), "bad_request"),
        (b"".to_vec(), ""),
    ] {
        world.expect("POST", JSON, &body, code);
    }
}

/// RFC 2046 section 5.1.1 and Rack's `multipart/parser.rb`.
#[test]
fn a_multipart_body_may_be_written_in_every_way_that_is_read_in_one() {
    let world = World::new("");
    let [good, bad] = ["a", "sudo"].map(|name| part(&format!("Content-Disposition: form-data; name=\"{name}\"")));
    let good = good.as_str();
    for parameters in [
        "boundary=b; charset=utf-8",
        "boundary=b;charset=utf-8",
        "charset=utf-8; boundary=b",
        "charset=utf-8;\tboundary=\"b\"",
        "boundary=\"b\" ; charset=utf-8",
        "Boundary=b",
    ] {
        let kind = format!("Content-Type: multipart/form-data; {parameters}\r\n");
        world.expect("POST", &kind, good.as_bytes(), "");
        world.expect("POST", &kind, bad.as_bytes(), "credential_parameter");
    }
    for parameters in [
        "boundary=b ; charset=utf-8",
        "boundary=b; boundary=c",
        "boundary=b; boundary*=utf-8''c",
        "boundary*=utf-8''b",
        "boundary*0=b",
        "x=\"boundary=c\"; boundary=b",
        "boundary=\"b",
        "boundary=\"b\"c",
        "boundary=",
        "boundary",
        "boundary\u{e4}b",
        "boundary=b; charset=\"boundary\"",
        "x=\"; boundary=b\"",
        "boundary=aboundary=b",
        "boundary=,b",
        "boundary=b,c",
        "boundary=\"b,c\"",
        "charset=utf-8",
    ] {
        world.expect(
            "POST",
            &format!("Content-Type: multipart/form-data; {parameters}\r\n"),
            good.as_bytes(),
            "bad_request",
        );
    }
    let kind = "Content-Type: multipart/form-data; boundary=b\r\n";
    for (body, code) in [
        (format!("\r\n{good}"), ""),
        (format!("\r\n{bad}"), "credential_parameter"),
        (format!("a preamble\r\nof two lines\r\n{good}an epilogue"), ""),
        (format!("a preamble\r\n{bad}an epilogue"), "credential_parameter"),
        (good.trim_end().to_owned(), ""),
        (String::new(), ""),
        // What others may take for a delimiter is none of ours.
        (format!("a preamble --b\r\n{good}"), "bad_request"),
        (format!("a preamble\n{good}"), "bad_request"),
        (format!("--b \r\n{good}"), "bad_request"),
        (format!("{good}{bad}"), "bad_request"),
        (format!("--b--\r\n{bad}"), "bad_request"),
        (good.replace("--b--", "--b--c"), "bad_request"),
        (good.replace("\r\n", "\n"), "bad_request"),
    ] {
        world.expect("POST", kind, body.as_bytes(), code);
    }
    for (head, code) in [
        ("content-disposition:form-data;name=a", ""),
        ("Content-Disposition: Form-Data ; name=\"a\"", ""),
        ("Content-Disposition: form-data; filename=\"x.txt\"; name=\"a\"", ""),
        ("Content-Disposition: form-data; filename=\"x.txt\"; name=\"sudo\"", "credential_parameter"),
        ("Content-Disposition: form-data;\r\n name=\"a\";\r\n\tfilename=\"x\"", ""),
        ("Content-Disposition: form-data;\r\n\tname=\"sudo\"", "credential_parameter"),
        ("Content-Disposition: form-data; name=a\u{b}", "bad_request"),
        ("Content-Disposition: form-data; name=sudo\u{c}", "bad_request"),
        ("Content-Type: text/plain;\r\n charset=utf-8\r\nContent-Disposition: form-data; name=\"a\"", ""),
        // Rack goes by the filename then.
        ("Content-Disposition: form-data; x=\"a:b\"; filename=\"sudo\"; name=\"a\"", "bad_request"),
        ("Content-Disposition: attachment; name=\"a\"", "bad_request"),
        (" Content-Disposition: form-data; name=\"a\"", "bad_request"),
    ] {
        world.expect("POST", kind, part(head).as_bytes(), code);
    }
}

#[test]
fn a_longer_body_is_streamed_from_its_beginning() {
    let world = World::new("");
    let body = |length: usize| format!("{{\"sudo\":1,\"a\":\"{}\"}}", "x".repeat(length - 17)).into_bytes();
    for (method, kind) in [("POST", JSON), ("PUT", JSON), ("PUT", "")] {
        for (length, code) in [(LONGEST, "credential_parameter"), (LONGEST + 1, ""), (3 * LONGEST, "")] {
            let sized = format!("{kind}Content-Length: {length}\r\n");
            for (fields, sent) in [
                (sized.as_str(), body(length)),
                (&format!("{kind}{CHUNKED}"), chunks(&body(length), length)),
                (&format!("{kind}{CHUNKED}"), chunks(&body(length), 1_000)),
            ] {
                let answer = world.call(method, ISSUES, fields, &sent);
                if code.is_empty() {
                    let request = world.arrived().unwrap_or_else(|| panic!("{fields}: {}", answer.text()));
                    assert_eq!((request.body_length, &request.body[..]), (length as u64, &body(length)[..LONGEST]));
                } else {
                    assert_eq!((answer.code().as_str(), world.hub.requests().len()), (code, 0), "{fields}");
                }
            }
        }
    }
    let sent = world.gateway.log().iter().filter_map(|line| line["bytes_in"].as_u64()).max();
    assert_eq!(sent, Some(3 * LONGEST as u64), "each byte counts once");
}

/// PQ-12: Rack reads a form however long it is, and makes another method of one that says so (`lib/rack/method_override.rb`).
#[test]
fn a_form_that_is_too_long_to_be_looked_through_does_not_go_up() {
    let world = World::new("");
    let target = "/api/v4/projects/5/pipeline_schedules/5";
    let body = |length: usize| format!("title=a&a={}", "x".repeat(length - 10)).into_bytes();
    for (case, method, kind, length, is_refused) in [
        ("a form", "POST", FORM, LONGEST + 1, true),
        ("a form", "POST", FORM, LONGEST, false),
        ("a long form", "POST", FORM, 1024 * 1024, true),
        ("a form that changes something", "PUT", FORM, LONGEST + 1, true),
        ("a form that changes something", "PUT", FORM, LONGEST, false),
        ("a body without a type", "POST", "", LONGEST + 1, false),
        ("a body without a type", "POST", "", LONGEST, false),
        ("another without a type", "PUT", "", LONGEST + 1, false),
        ("an empty type", "POST", "Content-Type:\r\n", LONGEST + 1, false),
        ("an empty type", "POST", "Content-Type: ; charset=utf-8\r\n", LONGEST + 1, false),
        ("a file", "POST", "Content-Type: application/octet-stream\r\n", LONGEST + 1, false),
        ("JSON", "POST", JSON, LONGEST + 1, false),
    ] {
        for is_chunked in [false, true] {
            let body = body(length);
            let (framing, sent) = if is_chunked {
                (CHUNKED.to_owned(), chunks(&body, 10_000))
            } else {
                (format!("Content-Length: {length}\r\n"), body)
            };
            let target = if method == "POST" { target } else { ISSUES };
            let answer = world.call(method, target, &format!("{kind}{framing}"), &sent);
            if is_refused {
                assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"), "{case} {framing}");
            } else {
                let arrived = world.arrived().unwrap_or_else(|| panic!("{case} {framing} {}", answer.text()));
                // Rack takes a body without a type for a form: one that may not have been looked through gets a type.
                let is_typed = arrived.header("content-type").is_some_and(|kind| kind == "application/octet-stream");
                assert_eq!(
                    is_typed,
                    (!kind.contains('/') && (is_chunked || length > LONGEST)) || case == "a file",
                    "{case}"
                );
            }
            assert_eq!(world.hub.requests().is_empty(), is_refused, "{case} {framing}");
        }
    }
}

/// PQ-12: a multipart body may be as long as a file is, so the names of its parts are read while it goes up.
#[test]
fn the_parts_of_a_long_multipart_body_are_read_while_it_goes_up() {
    let world = World::new("");
    let kind = "Content-Type: multipart/form-data; boundary=b\r\n";
    let part = |name: &str, length: usize| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{}\r\n", "x".repeat(length))
    };
    let end = "--b--\r\n";
    for (case, body, code) in [
        ("no credential", format!("{}{}{end}", part("a", 200_000), part("method", 3)), ""),
        ("no delimiter that could be found", "x".repeat(200_000), ""),
        ("at the beginning", format!("{}{}{end}", part("_method", 3), part("a", 200_000)), "credential_parameter"),
        (
            "in the middle",
            format!("{}{}{}{end}", part("a", 200_000), part("private_token", 3), part("b", 100_000)),
            "credential_parameter",
        ),
        ("at the end", format!("{}{}{end}", part("a", 1_000_000), part("_method", 3)), "credential_parameter"),
        ("without an end", format!("{}{}", part("a", 200_000), part("sudo", 3)), "credential_parameter"),
        (
            "a name to Rack alone",
            format!("{}{}{end}", part("a", 200_000), part("b", 3).replace("name=", "name*=")),
            "bad_request",
        ),
        ("a delimiter in a line", format!("{}x{}{end}", part("a", 200_000).trim_end(), part("b", 3)), "bad_request"),
        ("more behind its end", format!("{}{end}{}{end}", part("a", 200_000), part("b", 3)), "bad_request"),
        (
            "a head without end",
            format!("{}--b\r\nContent-Disposition: {}", part("a", 200_000), "x".repeat(100_000)),
            "bad_request",
        ),
    ] {
        for size in [0, 1_000, 64 * 1024] {
            let (framing, sent) = match size {
                0 => (format!("Content-Length: {}\r\n", body.len()), body.clone().into_bytes()),
                size => (CHUNKED.to_owned(), chunks(body.as_bytes(), size)),
            };
            let answer = world.call("POST", ISSUES, &format!("{kind}{framing}"), &sent);
            if code.is_empty() {
                let request = world.arrived().unwrap_or_else(|| panic!("{case}, {size}: {}", answer.text()));
                assert_eq!(request.body_length, body.len() as u64, "{case}, {size}");
            } else {
                assert_eq!((answer.status, answer.code().as_str()), (400, code), "{case}, {size}");
                assert!(
                    world.hub.requests().iter().all(|request| !request.complete),
                    "{case}, {size}: it has all of it"
                );
            }
        }
    }
    for kind in ["boundary=b; boundary=c", "boundary*=b"] {
        let kind = format!("Content-Type: multipart/form-data; {kind}\r\nContent-Length: 100000\r\n");
        let answer = world.call("POST", ISSUES, &kind, &vec![b'x'; 100_000]);
        assert_eq!((answer.code().as_str(), world.hub.requests().len()), ("bad_request", 0), "{kind}");
    }
    world.gateway.wait_for_event("credential_refused");
}

/// DS-03: what is held waits for its end as long as each piece may take; what is longer, or no parameters, goes up at once.
#[test]
fn a_body_that_comes_slowly_is_held_only_while_it_may_be_short() {
    let world = World::new("timeouts.request_body = \"1s\"");
    let target = format!("{BASE}/datahubs/a{ISSUES}");
    for (case, kind, first, goes_up) in [
        ("a short form", FORM, 100, false),
        ("JSON that may be short", JSON, LONGEST, false),
        ("long JSON", JSON, LONGEST + 1, true),
        ("a file", "Content-Type: application/octet-stream\r\n", 100, true),
    ] {
        world.hub.clear();
        let mut connection = world.browser.begin(&world.gateway, "POST", &target, &format!("{FETCH}{kind}{CHUNKED}"));
        let chunk =
            |length: usize| [format!("{length:x}\r\n").into_bytes(), vec![b'x'; length], b"\r\n".to_vec()].concat();
        connection.write(&chunk(first));
        if goes_up {
            wait_until(|| world.hub.requests().iter().any(|request| request.body_length >= first as u64));
        } else {
            std::thread::sleep(Duration::from_millis(300));
            assert!(world.hub.requests().is_empty(), "{case}");
        }
        connection.write(&chunk(100));
        connection.write(b"0\r\n\r\n");
        assert_eq!(connection.answer(true).status, 400, "{case}: GitLab's own answer");
        assert_eq!(world.arrived().map(|request| request.body_length), Some(first as u64 + 100), "{case}");
    }
    world.hub.clear();
    let mut connection = world.browser.begin(&world.gateway, "POST", &target, &format!("{FETCH}{FORM}{CHUNKED}"));
    connection.write(b"3\r\na=b\r\n");
    assert_eq!(connection.answer(true).code(), "request_timeout");
    let malformed = world.call("POST", ISSUES, &format!("{FORM}{CHUNKED}"), b"3\r\na=b0\r\n\r\n");
    assert_eq!((malformed.code().as_str(), world.hub.requests().len()), ("bad_request", 0));
}

/// FR-10.
#[test]
fn who_asks_before_a_body_in_chunks_is_told_to_go_on() {
    let world = World::new("");
    let target = format!("{BASE}/datahubs/a{ISSUES}");
    for (kind, body, code) in
        [(FORM, "a=1", ""), (FORM, "sudo=1", "credential_parameter"), ("", "sudo=1", "credential_parameter")]
    {
        world.hub.clear();
        let fields = format!("{FETCH}{kind}{CHUNKED}Expect: 100-continue\r\n");
        let mut connection = world.browser.begin(&world.gateway, "POST", &target, &fields);
        assert_eq!(connection.interim(), 100);
        connection.write(&chunks(body.as_bytes(), 2));
        let answer = connection.answer(true);
        assert_eq!(answer.status, 400, "GitLab's own answer, or ours");
        assert_eq!(world.hub.requests().len(), usize::from(code.is_empty()), "{body}: {}", answer.text());
    }
}
