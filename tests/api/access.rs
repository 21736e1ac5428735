//! One line in the log for each request: exactly one, whatever becomes of it. And who it says is calling.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use datahub::behaviour::{Answer as Manner, Manner as Way};
use serde_json::Value;

use crate::browser::{Browser, FETCH, NAVIGATION};
use crate::far_end;
use crate::gateway::{BASE, Folder, Gateway, Setup, binary, datahub, signal, wait_until};
use crate::wire::{Wire, exchange, lines, summary};

fn of(gateway: &Gateway, id: &str) -> Vec<Value> {
    let is_it = |line: &Value| line["target"] == "access" && line["request_id"] == id;
    gateway.wait_for_line(is_it);
    gateway.log().into_iter().filter(is_it).collect()
}

/// EL-01, EL-06: each kind of answer, with what its line says.
#[test]
fn every_answer_has_one_line() {
    let (hub, folder) = (datahub(), Folder::default());
    folder.file("index.html", "the app");
    let dir = folder.path().to_str().expect("a plain path");
    let gateway = Setup::new(&[("a", &hub)]).and(&format!("app.dir = {dir:?}")).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let mut count = lines(&gateway, 2).len();
    let call = "/datahubs/{datahub}/{path}";
    for (method, target, fields, expected, route, datahub) in [
        ("GET", "{base}/datahubs", FETCH, "200", "/arcmanager/api/v1/datahubs", ""),
        ("GET", "{base}/auth/session", FETCH, "200", "/arcmanager/api/v1/auth/session", ""),
        ("GET", "{base}/auth/%73ession", FETCH, "200", "/arcmanager/api/v1/auth/session", ""),
        ("GET", "{base}/auth/login?datahub=a", NAVIGATION, "302", "/arcmanager/api/v1/auth/login", "a"),
        ("PUT", "{base}/auth/login", FETCH, "405 method_not_allowed", "/arcmanager/api/v1/auth/login", ""),
        ("GET", "{base}/datahubs/a/api/v4/user", FETCH, "200", call, "a"),
        ("HEAD", "{base}/datahubs/a/api/v4/user", FETCH, "200", call, "a"),
        ("GET", "{base}/datahubs/a/api/v4/none", FETCH, "404", call, "a"),
        ("GET", "{base}/datahubs/a/oauth", FETCH, "404 not_forwarded", call, "a"),
        ("GET", "{base}/datahubs/x/api/v4/user", FETCH, "404 unknown_datahub", "", ""),
        ("GET", "{base}/none", FETCH, "404 not_found", "", ""),
        ("GET", "/arcmanager/app/", "", "200", "/arcmanager/app", ""),
        ("GET", "/arcmanager/app", "", "307", "/arcmanager/app", ""),
        ("GET", "/arcmanager/app/none.js", "", "404 not_found", "/arcmanager/app", ""),
        ("POST", "/arcmanager/app/", FETCH, "405 method_not_allowed", "/arcmanager/app", ""),
        // Who is not let in gets no further than the guard. Which route it would have been need not be said.
        ("GET", "{base}/auth/session", "", "403 cross_site_request", "/arcmanager/api/v1/auth/session", ""),
        ("GET", "{base}/datahubs/a/api/v4/user", "", "403 cross_site_request", "", ""),
        ("GET", "{base}/datahubs", "Host: x\r\n", "421 wrong_host", "/arcmanager/api/v1/datahubs", ""),
        ("TRACE", "{base}/datahubs", "", "501 method_not_implemented", "/arcmanager/api/v1/datahubs", ""),
        ("X-OTHER", "{base}/none", "", "501 method_not_implemented", "", ""),
        ("GET", "{base}/datahubs", "Upgrade: x\r\n", "501 upgrade_refused", "/arcmanager/api/v1/datahubs", ""),
        ("POST", "{base}/auth/logout?datahub=a", FETCH, "204", "/arcmanager/api/v1/auth/logout", "a"),
    ] {
        let answer = browser.copy().send(&gateway, method, &target.replace("{base}", BASE), fields, b"");
        assert_eq!(summary(&answer), if method == "HEAD" { "200" } else { expected }, "{method} {target}");
        let lines = of(&gateway, &answer.header("x-request-id").expect("an id"));
        assert_eq!(lines.len(), 1, "{method} {target}: {lines:?}");
        let line = &lines[0];
        let (status, code) = expected.split_once(' ').unwrap_or((expected, ""));
        let bytes = u64::try_from(answer.body.len()).expect("few");
        for (field, value) in [
            ("level", Value::from("INFO")),
            ("message", "request".into()),
            ("method", method.into()),
            ("route", route.into()),
            ("datahub", datahub.into()),
            ("status", status.parse::<u64>().expect("a number").into()),
            ("code", code.into()),
            ("bytes_in", 0.into()),
            ("bytes_out", bytes.into()),
            ("replay", 0.into()),
        ] {
            let is_refused_at_the_door = ["403", "421", "501"].contains(&status);
            assert!(line[field] == value || (field == "route" && is_refused_at_the_door), "{target}, {field}: {line}");
        }
        assert!(line["duration_ms"].as_f64() >= Some(0.0), "{line}");
        let has_gone_up = route == call && code.is_empty();
        assert_eq!(line["upstream_ms"].is_f64(), has_gone_up, "{method} {target}: {line}");
        count += 1;
    }
    assert_eq!(lines(&gateway, count).len(), count, "and no line more");
}

/// EL-01: what is no request has a line, too; a connection without one has none.
#[test]
fn what_is_no_request_has_one_line() {
    let gateway = Setup::new(&[("a", &datahub())]).and("timeouts.request_head = \"300ms\"").start();
    for (at, (bytes, status, code)) in [
        ("nonsense\r\n\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("GET /< HTTP/1.1\r\nHost: localhost:8000\r\n\r\n", 400, "bad_request"),
        ("GET /\u{1} HTTP/1.1\r\nHost: localhost:8000\r\n\r\n", 400, "bad_request_target"),
        ("GET / HTTP/1.1\r\nHost: local", 408, "request_timeout"),
        ("G", 408, "request_timeout"),
        (&"A: b\r\n".repeat(10_000), 431, "head_too_large"),
    ]
    .into_iter()
    .enumerate()
    {
        let answers = exchange(&gateway.address, bytes);
        assert_eq!(answers.iter().map(summary).collect::<Vec<_>>(), [format!("{status} {code}")], "{bytes:.20}");
        let lines = lines(&gateway, at + 1);
        assert_eq!(lines.len(), at + 1, "{bytes:.20}");
        let line = &lines[at];
        assert_eq!(line["request_id"].as_str(), answers[0].header("x-request-id").as_deref(), "{bytes:.20}");
        let said = (&line["method"], &line["route"], &line["status"], &line["code"]);
        assert_eq!(said, (&"-".into(), &"".into(), &status.into(), &code.into()), "{line}");
    }
    // Nothing was said, or nothing that was whole.
    for bytes in ["", "\r\n", "GET / HT"] {
        let mut wire = Wire::open(&gateway.address);
        wire.send(bytes);
        drop(wire);
    }
    let mut wire = Wire::open(&gateway.address);
    assert!(wire.answer().is_none());
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(lines(&gateway, 8).len(), 8, "and no line more");
}

/// EL-01: an answer that breaks off, an upload that breaks off, an answer that nobody takes.
#[test]
fn what_breaks_off_has_one_line() {
    let hub = datahub();
    let gateway =
        Setup::new(&[("a", &hub)]).and("timeouts.idle = \"500ms\"\ntimeouts.request_body = \"500ms\"").start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let api = format!("{BASE}/datahubs/a/api/v4");
    let one = |id: &str, case: &str| {
        let mut lines = of(&gateway, id);
        assert_eq!(lines.len(), 1, "{case}: {lines:?}");
        lines.remove(0)
    };
    // The DataHUB breaks off, or says nothing more.
    for (case, answer, code) in [
        ("a length", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "upstream_broke"),
        ("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "upstream_broke"),
        ("no chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n", "upstream_broke"),
    ] {
        hub.set(|behaviour| behaviour.api.answer = Manner::Raw(answer.into()));
        let mut connection = browser.begin(&gateway, "GET", &format!("{api}/user"), FETCH);
        // Broken off within the body, or before the head if all of that came at once.
        assert!(connection.try_head().and_then(|answer| connection.body(&answer)).is_err(), "{case}");
        let id = hub.requests().last().and_then(|request| request.header("x-request-id")).expect("it went up");
        let line = one(&id, case);
        assert_eq!((&line["status"], line["bytes_out"].as_u64() <= Some(4)), (&200.into(), true), "{case}: {line}");
        assert_eq!(line["code"], code, "{case}: {line}");
        // The reason has the same id.
        let reasons = gateway.log().into_iter().filter(|line| line["request_id"] == *id && line["level"] == "WARN");
        assert_eq!(reasons.filter(|line| line["message"] == "an answer broke off").count(), 1, "{case}");
    }
    hub.set(|behaviour| behaviour.api.answer = Manner::Normal);
    // The reader leaves, or takes nothing any more.
    for (case, code) in [("leaves", "client_gone"), ("stays", "response_timeout")] {
        let path = format!("{api}/projects/230/packages/generic/blob/1.0.0/50000000.bin");
        let mut connection = browser.begin(&gateway, "GET", &path, FETCH);
        let answer = connection.head();
        let kept = (case == "stays").then_some(connection);
        let line = one(&answer.header("x-request-id").expect("an id"), case);
        assert_eq!((&line["status"], &line["code"]), (&200.into(), &code.into()), "{case}: {line}");
        assert!(line["bytes_out"].as_u64() < Some(50_000_000), "{case}: {line}");
        drop(kept);
    }
    // The sender leaves, or sends nothing any more, when the call is at the DataHUB.
    for (case, status, code) in [("leaves", 499, "client_gone"), ("stays", 408, "request_timeout")] {
        hub.clear();
        let path = format!("{api}/projects/230/packages/generic/p/1.0.0/f.bin");
        let fields = format!("{FETCH}Content-Type: application/octet-stream\r\nContent-Length: 10\r\n");
        let mut connection = browser.begin(&gateway, "PUT", &path, &fields);
        connection.write(b"half");
        wait_until(|| !hub.requests().is_empty());
        let id = hub.requests()[0].header("x-request-id").expect("every call has one");
        if case == "leaves" {
            drop(connection);
        } else {
            assert_eq!(connection.head().status, 408);
        }
        let line = one(&id, case);
        assert_eq!((&line["status"], &line["code"]), (&status.into(), &code.into()), "{case}: {line}");
        assert_eq!((&line["bytes_in"], &line["method"]), (&4.into(), &"PUT".into()), "{case}: {line}");
    }
}

/// EL-01: what the browser takes for its upload is not the DataHUB's time.
#[test]
fn how_long_the_datahub_took_counts_from_the_end_of_the_request() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let pause = Duration::from_millis(700);
    for is_hub_slow in [false, true] {
        let manner = Way { answer_delay: if is_hub_slow { pause } else { Duration::ZERO }, ..Way::default() };
        hub.set(|behaviour| behaviour.by_path = vec![("/api/v4/projects/230/packages", manner)]);
        let path = format!("{BASE}/datahubs/a/api/v4/projects/230/packages/generic/p/1.0.0/f.bin");
        let fields = format!("{FETCH}Content-Type: application/octet-stream\r\nContent-Length: 8\r\n");
        let mut connection = browser.begin(&gateway, "PUT", &path, &fields);
        connection.write(b"half");
        std::thread::sleep(if is_hub_slow { Duration::ZERO } else { pause });
        connection.write(b"half");
        let answer = connection.head();
        assert_eq!(answer.status, 201);
        let line = &of(&gateway, &answer.header("x-request-id").expect("an id"))[0];
        let [whole, upstream] = ["duration_ms", "upstream_ms"].map(|name| line[name].as_f64().expect("a number"));
        assert!(whole >= 600.0 && (upstream >= 600.0) == is_hub_slow, "{line}");
    }
}

/// EL-01: a DataHUB that says nothing more is told from one that leaves, and from one that says nothing at all.
#[test]
fn what_stalls_has_one_line_that_says_so() {
    let hub = datahub();
    let far = far_end::before(hub.address(), |reader, head| {
        let said = if head.contains("half") { "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf" } else { "" };
        let _ = reader.get_mut().write_all(said.as_bytes());
        let _ = far_end::end(reader);
    });
    let lines = format!("datahubs.a.connect = \"{far}\"\ntimeouts.idle = \"400ms\"\ntimeouts.first_byte = \"400ms\"");
    let gateway = Setup::new(&[("a", &hub)]).and(&lines).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    for (target, status, code) in [("own/half", 200, "upstream_stalled"), ("own/none", 504, "datahub_timeout")] {
        let path = format!("{BASE}/datahubs/a/api/v4/{target}");
        let mut connection = browser.begin(&gateway, "GET", &path, FETCH);
        let answer = connection.head();
        assert_eq!((answer.status, connection.body(&answer).is_ok()), (status, status == 504), "{target}");
        let lines = of(&gateway, &answer.header("x-request-id").expect("an id"));
        assert_eq!(
            (lines.len(), &lines[0]["status"], &lines[0]["code"]),
            (1, &status.into(), &code.into()),
            "{lines:?}"
        );
    }
}

/// EL-06: a failure of ours or of the DataHUB's has its reason in the log, once, and not in the answer.
#[test]
fn a_failure_has_its_reason_in_the_log() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    for (manner, expected, reasons) in [
        (Manner::CloseWithoutAnswer, "502 datahub_unreachable", 1),
        (Manner::Raw(b"nonsense\r\n\r\n".to_vec()), "502 datahub_invalid_response", 1),
        (Manner::Status(502), "502", 0),
        (Manner::Status(404), "404", 0),
    ] {
        hub.set(|behaviour| behaviour.api.answer = manner);
        let answer = browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user");
        assert_eq!(summary(&answer), expected);
        let id = answer.header("x-request-id").expect("an id");
        assert_eq!(of(&gateway, &id).len(), 1, "{expected}");
        let is_reason = |line: &Value| line["message"] == "a call failed" && line["request_id"] == id.as_str();
        let lines: Vec<_> = gateway.log().into_iter().filter(is_reason).collect();
        assert_eq!(lines.len(), reasons, "{expected}: {lines:?}");
        for line in lines {
            let reason = line["reason"].as_str().expect("a text");
            assert!(line["level"] == "WARN" && expected.ends_with(line["code"].as_str().expect("a text")), "{line}");
            assert!(reason.len() > 5 && !answer.text().contains(reason), "{line}");
        }
    }
}

/// PQ-13: the peer, or whom a front proxy that is trusted speaks for; in either family, and canonical.
#[test]
fn an_address_is_the_same_in_either_family() {
    let hub = datahub();
    for (trusted, rows) in [
        (
            "\"127.0.0.1\"",
            &[
                ("", "127.0.0.1"),
                ("203.0.113.9", "203.0.113.9"),
                ("::ffff:203.0.113.9", "203.0.113.9"),
                ("203.0.113.9, ::ffff:127.0.0.1", "203.0.113.9"),
                ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
                ("198.51.100.1,203.0.113.9 , 127.0.0.1,127.0.0.1", "203.0.113.9"),
                ("2001:DB8::1", "2001:db8::1"),
                // The last one that is no address ends the search: whoever wrote it, it was not the proxy.
                ("203.0.113.9, unknown", "127.0.0.1"),
                // Some proxies write a port.
                ("203.0.113.9:1234", "203.0.113.9"),
                ("[2001:db8::1]", "2001:db8::1"),
                ("[2001:db8::1]:443", "2001:db8::1"),
                ("2001:db8::1]:443", "127.0.0.1"),
                ("203.0.113.9:", "127.0.0.1"),
                ("unknown, 203.0.113.9", "203.0.113.9"),
                ("127.0.0.1", "127.0.0.1"),
                (",", "127.0.0.1"),
                // Fields of one name are one list.
                ("198.51.100.1\r\nX-Forwarded-For: 203.0.113.9", "203.0.113.9"),
                ("203.0.113.9\r\nX-Forwarded-For: 127.0.0.1", "203.0.113.9"),
            ][..],
        ),
        (
            "\"127.0.0.1\", \"203.0.113.9\"",
            &[("198.51.100.1, 203.0.113.9", "198.51.100.1"), ("203.0.113.9", "127.0.0.1")],
        ),
        ("\"192.0.2.1\"", &[("", "127.0.0.1"), ("203.0.113.9", "127.0.0.1"), ("192.0.2.1", "127.0.0.1")]),
        ("", &[("203.0.113.9", "127.0.0.1")]),
        // Networks, of either family; an IPv4 address is one, however it is written.
        (
            "\"127.0.0.0/8\", \"10.0.0.0/8\", \"fd00::/8\"",
            &[
                ("203.0.113.9, 10.1.2.3", "203.0.113.9"),
                ("203.0.113.9, ::ffff:10.1.2.3, fd12::1", "203.0.113.9"),
                ("203.0.113.9, 11.1.2.3", "11.1.2.3"),
                ("203.0.113.9, fe80::1", "fe80::1"),
            ],
        ),
        ("\"::ffff:127.0.0.0/104\"", &[("203.0.113.9", "203.0.113.9")]),
        ("\"127.0.0.1/32\"", &[("203.0.113.9", "203.0.113.9")]),
        ("\"10.0.0.0/8\", \"127.0.0.2\", \"::/0\"", &[("203.0.113.9", "127.0.0.1")]),
    ] {
        for listen in ["127.0.0.1:0", "[::]:0"] {
            let setup = Setup::new(&[("a", &hub)]).and(&format!("server.trusted_proxies = [{trusted}]"));
            let mut gateway = setup.listening_at(listen).start();
            // To a socket of both families an address of the older one is written in the newer one's way.
            gateway.address = gateway.address.replace("[::]", "127.0.0.1");
            let browser = Browser::default();
            browser.log_in(&gateway, "a", &hub, "testuser");
            for (forwarded, expected) in rows {
                hub.clear();
                let field =
                    if forwarded.is_empty() { String::new() } else { format!("X-Forwarded-For: {forwarded}\r\n") };
                let target = format!("{BASE}/datahubs/a/api/v4/user");
                let answer = browser.send(&gateway, "GET", &target, &format!("{FETCH}{field}"), b"");
                assert_eq!(answer.status, 200);
                let gone = hub.requests()[0].header_values("x-forwarded-for");
                assert_eq!(gone, [*expected], "{listen}, {trusted}, {forwarded}");
            }
        }
    }
}

/// PQ-13: what a peer says of others and is not believed is in the log once, and counted each time.
#[test]
fn forwarding_headers_of_a_peer_that_is_not_trusted_are_said_once() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]).and("server.workers = 2");
    let ask = |gateway: &Gateway, fields: &str| {
        Browser::default().send(gateway, "GET", &format!("{BASE}/datahubs"), fields, b"").status
    };
    let claims = ["X-Forwarded-For: 203.0.113.9\r\n", "Forwarded: for=203.0.113.9\r\n", "X-REAL-IP: 203.0.113.9\r\n"];
    let is_event = |line: &Value| line["event"] == "untrusted_forwarded_for";
    let count = |gateway: &Gateway| {
        let name = "gateway_untrusted_forwarded_for_total ";
        gateway.metrics().lines().find_map(|line| line.strip_prefix(name)).expect("a metric").to_owned()
    };
    let gateway = setup.clone().start();
    assert_eq!((ask(&gateway, ""), ask(&gateway, "X-Forwarded-Proto: https\r\n")), (200, 200));
    assert_eq!(count(&gateway), "0");
    for _ in 0..3 {
        assert_eq!(claims.map(|claim| ask(&gateway, claim)), [200; 3]);
    }
    assert_eq!(ask(&gateway, &claims.concat()), 200);
    let event = gateway.wait_for_line(is_event);
    assert_eq!((&event["client"], &event["level"]), (&"127.0.0.1".into(), &"WARN".into()), "{event}");
    assert!(event["reason"].as_str().is_some_and(|reason| reason.contains("server.trusted_proxies")), "{event}");
    assert!(!event.to_string().contains("203.0.113.9"), "{event}");
    assert_eq!(count(&gateway), "10");
    assert_eq!(gateway.log().iter().filter(|line| is_event(line)).count(), 1);

    let gateway = setup.and("server.trusted_proxies = [\"127.0.0.1\"]").start();
    assert_eq!(claims.map(|claim| ask(&gateway, claim)), [200; 3]);
    assert_eq!((count(&gateway).as_str(), gateway.log().iter().filter(|line| is_event(line)).count()), ("0", 0));
}

/// PQ-13: a proxy on a unix socket is trusted; without its word nobody knows who calls.
#[test]
fn a_proxy_on_a_unix_socket_is_believed() {
    let (hub, folder) = (datahub(), Folder::default());
    let path = folder.path().join("gateway.sock");
    let setup = Setup::new(&[("a", &hub)]);
    let tcp = setup.clone().start();
    let browser = Browser::default();
    browser.log_in(&tcp, "a", &hub, "testuser");
    let gateway = setup.listening_at(&format!("unix:{}", path.display())).start();
    for (field, expected) in [("", &[][..]), ("X-Forwarded-For: 203.0.113.9\r\n", &["203.0.113.9"])] {
        hub.clear();
        let mut stream = UnixStream::connect(&path).expect("it listens");
        let cookie = browser.cookie_field();
        let fields = format!("Host: localhost:8000\r\nConnection: close\r\n{FETCH}{field}{cookie}\r\n");
        write!(stream, "GET {BASE}/datahubs/a/api/v4/user HTTP/1.1\r\n{fields}").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(hub.requests()[0].header_values("x-forwarded-for"), expected, "{field}");
    }
    drop(gateway);
}

/// `log.format = "text"`: a request, an event and a start on one line each, with the fields that say something.
#[test]
fn a_log_for_people_has_the_same_lines() {
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    let setup = Setup::new(&[("a", &datahub())]).and("log.format = \"text\"\nlog.level = \"info\"");
    let setup = setup.listening_at(&format!("unix:{}", path.display()));
    let mut command = Command::new(binary());
    command.env_clear().arg("--config").arg(setup.write()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let gateway = command.spawn().expect("the binary is built");
    let ask = |request: &str| {
        let mut stream = (0..1_000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            UnixStream::connect(&path).ok()
        });
        let stream = stream.as_mut().expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    };
    let head = " HTTP/1.1\r\nHost: localhost:8000\r\nConnection: close\r\n";
    assert!(ask(&format!("GET {BASE}/datahubs?canary=1{head}\r\n")).contains(" 200 OK"));
    assert!(ask(&format!("GET {BASE}/auth/session{head}X-Forwarded-For: 203.0.113.9\r\n\r\n")).contains(" 403 "));
    assert!(ask("nonsense\r\n\r\n").contains(" 400 "));
    signal("TERM", gateway.id());
    let output = gateway.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!text.contains("canary") && !text.contains('{'), "{text}");
    let line = |start: &str| -> Vec<&str> { text.lines().filter(|line| line.starts_with(start)).collect() };
    let requests = line("INFO  request ");
    assert_eq!(requests.len(), 3, "{text}");
    for (line, fields) in requests.iter().zip([
        &["method=\"GET\"", "route=\"/arcmanager/api/v1/datahubs\"", "status=200", "bytes_in=0", "replay=0"][..],
        &["method=\"GET\"", "status=403", "code=\"cross_site_request\""],
        &["method=\"-\"", "status=400", "code=\"bad_request\""],
    ]) {
        for field in fields {
            assert!(line.split(' ').any(|part| part == *field), "{field}: {line}");
        }
        assert!(line.contains(" duration_ms=") && line.contains(" bytes_out="), "{line}");
        // What says nothing is left out.
        assert!(!line.contains("upstream_ms") && !line.contains("datahub=") && !line.contains("request_id"), "{line}");
    }
    let events = line("WARN  cross_site_refused ");
    assert_eq!(events, ["WARN  cross_site_refused event=\"cross_site_refused\" client=\"203.0.113.9\""], "{text}");
    assert_eq!((line("INFO  serving ").len(), line("INFO  ended").len()), (1, 1), "{text}");
}
