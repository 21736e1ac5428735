//! Starting, listening, ending.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use datahub::behaviour::Answer;

use crate::browser::{self, Browser, Connection, FETCH, NAVIGATION, parameter, sign_in};
use crate::gateway::{BASE, Folder, Setup, datahub, new_key, signal};
use crate::token_endpoint::{USER, lifetime, logged_in};
use crate::wire::{exchange, summary};

#[test]
fn a_call_under_way_is_finished_before_the_end() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let mut connection =
        browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/projects/230/jobs/9/trace"), FETCH);
    let answer = connection.head();
    gateway.terminate();
    connection.body(&answer).expect("the whole trace, which takes two seconds");
    assert!(gateway.wait_for_end().expect("it ends").success());
}

#[test]
fn a_kept_connection_learns_from_its_last_answer_that_it_was_the_last() {
    let hub = datahub();
    let mut gateway = Setup::new(&[("a", &hub)]).start();
    let mut connection = Connection::open(&gateway.address);
    let request = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\n\r\n");
    connection.write(request.as_bytes());
    assert_eq!(connection.answer(true).header("connection"), None);
    gateway.terminate();
    gateway.wait_for_line(|line| line["message"] == "ending");
    connection.write(request.as_bytes());
    let last = connection.answer(true);
    assert_eq!((last.status, last.header("connection").as_deref()), (200, Some("close")));
    let begun = Instant::now();
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_refresh_under_way_is_finished_before_the_end() {
    let hub = crate::gateway::datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let mut gateway = Setup::new(&[("a", &hub)]).start();
    gateway.expects_orphans(1, "who was to get it has left, and the process that remembers it has ended");
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    std::thread::sleep(Duration::from_millis(3_200));
    hub.set(|behaviour| behaviour.token.delay = Duration::from_millis(600));
    let connection = browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/user"), FETCH);
    std::thread::sleep(Duration::from_millis(200));
    drop(connection);
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert_eq!(hub.counts().refreshes, 1);
    assert!(gateway.log().iter().any(|line| line["result"] == "refreshed"), "its answer was read");
}

#[test]
fn a_unix_socket_is_listened_on_and_one_left_behind_is_replaced() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a path of our own"));
    let gateway = Setup::new(&[("a", &hub)]).listening_at(&format!("unix:{}", path.display())).start();
    let mut stream = UnixStream::connect(&path).expect("it listens");
    let request = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    drop(gateway);
}

#[test]
fn a_socket_that_somebody_listens_on_is_left_alone() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    let there = std::os::unix::net::UnixListener::bind(&path).expect("a path of our own");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let tcp_address = tcp.local_addr().expect("it is bound").to_string();
    for place in [format!("unix:{}", path.display()), tcp_address] {
        let setup = Setup::new(&[("a", &hub)]).listening_at(&place);
        let output = crate::gateway::run(&["--config", setup.write().to_str().expect("a plain path")], &[]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains("server.listen"), "{place}: {told}");
    }
    drop(there);
}

#[test]
fn every_socket_of_the_list_is_served() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    let list = format!("127.0.0.1:0, unix:{}", path.display());
    let mut command = std::process::Command::new("/bin/sh");
    let script = "exec \"$0\" --config \"$GATEWAY_OF_A_TEST\"";
    command.env_clear().env("GATEWAY__SERVER__LISTEN", list).args(["-c", script]).arg(crate::gateway::binary());
    let gateway = Setup::new(&[("a", &hub)]).start_as(command);
    let (tcp, unix) = gateway.address.split_once(' ').expect("two places");
    assert_eq!(unix, format!("unix:{}", path.display()));
    let request = format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\nConnection: close\r\n\r\n");
    let answers = crate::wire::exchange(tcp, &request);
    assert_eq!(answers[0].status, 200);
    let mut stream = UnixStream::connect(&path).expect("it listens");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn every_request_has_a_line_in_the_log_that_names_its_route_and_nothing_secret() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let answer = browser.fetch_with(
        &gateway,
        "POST",
        "/datahubs/a/api/v4/projects/230/issues?canary=1",
        "application/json",
        b"{\"title\":\"canary\"}",
    );
    let id = answer.header("x-request-id").expect("an id");
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
    for (field, value) in
        [("method", "POST"), ("route", "/datahubs/{datahub}/{path}"), ("datahub", "a"), ("level", "INFO")]
    {
        assert_eq!(line[field], value);
    }
    assert_eq!((line["status"].as_u64(), line["bytes_in"].as_u64()), (Some(u64::from(answer.status)), Some(18)));
    assert_eq!(line["bytes_out"].as_u64(), Some(answer.body.len() as u64));
    assert!(line["duration_ms"].as_f64() > line["upstream_ms"].as_f64() && line["upstream_ms"].as_f64() > Some(0.0));
    assert!(!gateway.log().iter().any(|line| line.to_string().contains("canary")), "neither query nor body");
}

/// A whole life: everything that is secret passes, goes wrong and ends. What an operator, a log's reader or another person
/// of the machine can read of the process is searched when it ends.
#[test]
fn no_secret_can_be_read_anywhere() {
    let (hub, key) = (lifetime(2), new_key());
    let gateway = Setup::with_keys(&[("a", &hub)], &[&key]).start();
    let newcomer = Browser::default();
    let callback = newcomer.begin_login(&gateway, "a", &hub, "joerg");
    newcomer.keep_jar_secret(&gateway);
    newcomer.open(&gateway, &callback.replace("code=", "code=0"));
    let (browser, other) = (logged_in(&gateway, &hub, "testuser"), logged_in(&gateway, &hub, "joerg"));
    let file = "/datahubs/a/api/v4/projects/230/packages/generic/p/1/f.bin";
    assert_eq!(browser.fetch_following(&gateway, "PUT", file, &[b'x'; 10_000]).status, 201);
    std::thread::sleep(Duration::from_millis(2_100));
    assert_eq!(browser.fetch_following(&gateway, "GET", USER, b"").status, 200);
    browser.keep_jar_secret(&gateway);
    hub.expire_access_tokens();
    assert_eq!(browser.fetch_following(&gateway, "GET", USER, b"").status, 200);
    browser.keep_jar_secret(&gateway);
    for answer in [Answer::Status(500), Answer::CloseWithoutAnswer, Answer::Raw(b"nonsense".to_vec())] {
        hub.set(|behaviour| (behaviour.api.answer, behaviour.token.answer) = (answer.clone(), answer));
        browser.fetch(&gateway, "GET", USER);
        other.fetch(&gateway, "GET", USER);
    }
    hub.set(|behaviour| (behaviour.api.answer, behaviour.token.answer) = (Answer::Normal, Answer::Normal));
    // Nothing that is sealed opens here, and whoever is told so is told of none of it.
    let altered = browser.copy();
    altered.set_cookie("__Host-Http-sid-a", &other.cookie("__Host-Http-sid-a").expect("logged in"));
    assert_eq!(altered.fetch(&gateway, "GET", USER).code(), "not_logged_in");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);

    let requests = hub.requests();
    let exchanged = requests.iter().filter(|request| request.path() == "/oauth/token");
    let bodies: Vec<_> = exchanged.map(|request| format!("?{}", String::from_utf8_lossy(&request.body))).collect();
    let secrets = hub.secrets();
    for name in ["code", "code_verifier", "refresh_token"] {
        let sent: Vec<_> = bodies.iter().filter_map(|body| parameter(body, name)).collect();
        assert!(!sent.is_empty() && sent.iter().all(|it| secrets.contains(it) || it.starts_with('0')), "{name}");
    }
    let bearer = requests.iter().filter_map(|request| request.header("authorization"));
    let mut bearer = bearer.filter_map(|value| value.strip_prefix("Bearer ").map(str::to_owned));
    assert!(bearer.all(|token| secrets.contains(&token)), "access tokens");
    gateway.keep_secret(secrets.into_iter().chain([key, hub.client_secret().to_owned()]));
    let process = |name: &str| std::fs::read(format!("/proc/{}/{name}", gateway.pid())).expect("it runs");
    for text in [gateway.metrics().into_bytes(), process("cmdline"), process("comm")] {
        assert!(!text.is_empty());
        gateway.keep_answer("", &text);
    }
}

/// EL-01: what people write into a request is neither in the log, at any level, nor in what the gateway itself answers.
#[test]
fn nothing_of_a_request_is_written_down_or_said_again() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    let (browser, nobody) = (logged_in(&gateway, &hub, "testuser"), Browser::default());
    let json = "Content-Type: application/json\r\n";
    for (case, browser, method, target, fields, body, expected) in [
        ("a query", &nobody, "GET", "/auth/session?pwd=canary", FETCH, "", "200"),
        ("an app's cookie", &nobody, "GET", "/auth/session", &format!("{FETCH}Cookie: a=canary\r\n"), "", "200"),
        (
            "a cookie like ours",
            &nobody,
            "GET",
            USER,
            &format!("{FETCH}Cookie: __Host-Http-session-a=canary; __Host-Http-sid-a=canary\r\n"),
            "",
            "401 not_logged_in",
        ),
        (
            "a token",
            &nobody,
            "GET",
            USER,
            &format!("{FETCH}Authorization: Bearer canary\r\nPrivate-Token: canary\r\n"),
            "",
            "401 not_logged_in",
        ),
        (
            "what browsers say",
            &nobody,
            "GET",
            "/datahubs",
            "User-Agent: canary\r\nReferer: http://localhost:8000/canary\r\nX-Request-Id: canary\r\ntraceparent: canary\r\nX-Forwarded-For: canary\r\n",
            "",
            "200",
        ),
        (
            "another origin",
            &nobody,
            "POST",
            "/auth/logout",
            "X-CSRF: 1\r\nOrigin: https://canary.test\r\n",
            "",
            "403 cross_site_request",
        ),
        ("a method", &nobody, "A-METHOD-THAT-IS-A-canary", "/datahubs", FETCH, "", "501 method_not_implemented"),
        ("another host", &nobody, "GET", "/datahubs", "Host: canary.test\r\n", "", "421 wrong_host"),
        ("a path", &nobody, "GET", "/canary", FETCH, "", "404 not_found"),
        ("a DataHUB", &nobody, "GET", "/datahubs/canary/api/v4/user", FETCH, "", "404 unknown_datahub"),
        ("a login's DataHUB", &nobody, "GET", "/auth/login?datahub=canary", NAVIGATION, "", "404 unknown_datahub"),
        ("a login's prompt", &nobody, "GET", "/auth/login?datahub=a&prompt=canary", NAVIGATION, "", "400 bad_request"),
        ("a login's aim", &nobody, "GET", "/auth/login?datahub=a&return_to=//canary.test", NAVIGATION, "", "302"),
        ("a callback", &nobody, "GET", "/auth/callback?datahub=a&code=canary&state=canary", NAVIGATION, "", "303"),
        ("a body for us", &browser, "POST", "/auth/refresh", &format!("{FETCH}{json}"), "{\"pat\":\"canary\"", "200"),
        (
            "a parameter",
            &browser,
            "GET",
            &format!("{USER}?private_token=canary"),
            FETCH,
            "",
            "400 credential_parameter",
        ),
        ("a way elsewhere", &browser, "GET", "/datahubs/a/api/v4/../canary", FETCH, "", "400 bad_request_target"),
        ("a key", &browser, "GET", "/datahubs/a/api/v4/user/keys/canary", FETCH, "", "403 credential_endpoint"),
        ("no API", &browser, "GET", "/datahubs/a/canary", FETCH, "", "404 not_forwarded"),
        (
            "a body",
            &browser,
            "POST",
            "/datahubs/a/api/v4/projects/230/issues",
            &format!("{FETCH}{json}"),
            "{\"sudo\":\"canary\"}",
            "400 credential_parameter",
        ),
        (
            "a body that is broken",
            &browser,
            "POST",
            "/datahubs/a/api/v4/projects/230/issues",
            &format!("{FETCH}Content-Type: multipart/form-data; boundary=canary\r\n"),
            "canary",
            "400 bad_request",
        ),
        (
            "a long field",
            &browser,
            "GET",
            USER,
            &format!("{FETCH}X-Long: {}\r\n", "canary".repeat(6_000)),
            "",
            "431 head_too_large",
        ),
    ] {
        let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        let fields = format!("{fields}{length}");
        let answer = browser.copy().send(&gateway, method, &format!("{BASE}{target}"), &fields, body.as_bytes());
        assert_eq!(summary(&answer), expected, "{case}: {}", answer.text());
        assert!(!answer.head.contains("canary") && !answer.text().contains("canary"), "{case}: {}", answer.head);
    }
    for bytes in ["canary\r\n\r\n", "GET /canary HTTP/1.1\r\nHost: localhost:8000\r\ncanary canary\r\n\r\n"] {
        let answers = exchange(&gateway.address, bytes);
        assert!(answers.len() == 1 && !answers[0].text().contains("canary"), "{bytes}");
    }
    hub.clear();
    let answer = browser.fetch_with(
        &gateway,
        "POST",
        "/datahubs/a/api/v4/projects/230/issues?title=canary",
        "application/json",
        b"{\"description\":\"canary\"}",
    );
    assert_eq!(answer.status, 201, "what is the DataHUB's business goes there: {}", answer.text());
    let request = hub.requests().pop().expect("it was forwarded");
    assert!(request.target().contains("canary") && String::from_utf8_lossy(&request.body).contains("canary"));
    let id = answer.header("x-request-id").expect("an id");
    gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
    let told: Vec<_> = gateway.output().into_iter().filter(|line| line.contains("canary")).collect();
    assert!(told.is_empty() && !gateway.metrics().contains("canary"), "{told:?}");
}

/// A table of a document, whose last column names tests: `file::name` in `tests/api/`, or `file::*` for all of a file; `unit`,
/// `fuzz`, `deploy` and `browser` with the name of a file.
fn every_row_names_tests_that_are_there(document: &str, header: &str) -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(root.join(document)).expect("the list");
    let rows = list.lines().filter(|line| line.starts_with("| ") && !line.starts_with(header));
    let rows: Vec<_> = rows.map(str::to_owned).collect();
    for row in &rows {
        let holds = row.trim_end_matches(" |").rsplit(" | ").next().expect("a cell");
        assert!(holds.contains("::"), "no test: {row}");
        for (file, name) in holds.split('`').filter_map(|word| word.split_once("::")) {
            let text = std::fs::read_to_string(root.join(format!("tests/api/{file}.rs"))).unwrap_or_default();
            let is_there = if name == "*" { text.contains("#[test]") } else { text.contains(&format!("fn {name}()")) };
            assert!(is_there, "{file}::{name}: {row}");
        }
        for (kind, folder, extension) in [
            ("unit", "src", "rs"),
            ("fuzz", "tests/fuzz", "rs"),
            ("deploy", "tests/deploy", "py"),
            ("browser", "tests/browser", "py"),
        ] {
            for name in holds.split(&format!("{kind} `")).skip(1).filter_map(|rest| rest.split('`').next()) {
                let text =
                    std::fs::read_to_string(root.join(format!("{folder}/{name}.{extension}"))).unwrap_or_default();
                let is_there = ["#[test]", "fuzz_target!", "def test_"].iter().any(|mark| text.contains(mark));
                assert!(is_there, "{kind} {name}: {row}");
            }
        }
    }
    rows
}

#[test]
fn every_row_about_connections_names_tests_that_are_there() {
    assert!(!every_row_names_tests_that_are_there("docs/connections.md", "| what |").is_empty());
}

/// Every defect of the backend that this gateway takes the place of, once and in order.
#[test]
fn every_defect_of_the_old_backend_has_its_tests() {
    let rows = every_row_names_tests_that_are_there("docs/security.md", "| id |");
    let told = rows.iter().map(|row| row.split(" | ").next().expect("a cell").trim_start_matches("| ").to_owned());
    let list = [("A", 1..=11), ("B", 1..=12), ("C", 1..=7), ("D", 4..=4), ("D", 8..=8), ("E", 1..=3)];
    let all = list.into_iter().flat_map(|(group, numbers)| numbers.map(move |number| format!("{group}{number}")));
    assert_eq!(told.collect::<Vec<_>>(), all.collect::<Vec<_>>());
}

/// EL-01: the search at the end of every test is able to find something.
#[test]
#[should_panic(expected = "is in the output")]
fn a_secret_in_the_output_fails_a_test() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    gateway.keep_secret(["http://localhost:8000".to_owned()]);
}

/// PR-08: and so is the search in the answers.
#[test]
#[should_panic(expected = "is in the answers")]
fn a_secret_in_an_answer_fails_a_test() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).start();
    assert_eq!(Browser::default().fetch(&gateway, "GET", "/nothing").status, 404);
    gateway.keep_secret(["There is nothing at this path".to_owned()]);
}

/// EL-01: what the DataHUB gave out, what a browser held and what is in a file of keys is searched for, though no test says so.
#[test]
fn every_secret_of_a_test_is_searched_for_though_nobody_names_it() {
    for (case, is_told) in [("nothing", false), ("the DataHUB's", true), ("a cookie", true), ("in a file", true)] {
        let hub = datahub();
        let folder = Folder::default();
        let file = folder.file("client.secret", hub.client_secret());
        let setup = Setup::new(&[("a", &hub)]).with_secret_file(hub.client_secret(), &file);
        let gateway = setup.start();
        let person = Browser::default();
        // Something that is in the log, and no secret otherwise.
        let id = person.fetch(&gateway, "GET", "/datahubs").header("x-request-id").expect("an id");
        gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
        match case {
            "the DataHUB's" => {
                let authorize = person.authorize(&gateway, "a");
                let state = parameter(&authorize, "state").expect("a state");
                sign_in(&hub, &authorize.replace(&state, &id), "user=testuser");
            }
            "a cookie" => {
                let head = format!("HTTP/1.1 200 OK\r\nset-cookie: __Host-Http-sid-a={id}; Path=/\r\n\r\n");
                person.apply(&browser::Answer { status: 200, head, body: Vec::new() });
            }
            "in a file" => {
                folder.file("client.secret", &id);
                gateway.reload();
            }
            _ => {}
        }
        let end = catch_unwind(AssertUnwindSafe(|| drop(gateway)));
        let told = end.err().and_then(|panic| panic.downcast::<String>().ok());
        assert_eq!(told.is_some_and(|told| told.contains("that nobody named")), is_told, "{case}");
    }
}

/// CF-01: what comes by file is neither in the arguments nor in the environment that others may read of a process; what comes by
/// a variable is in the latter, and that is why files are better.
#[test]
fn secrets_that_come_by_file_are_in_no_list_of_processes() {
    let (hub, folder, key) = (datahub(), Folder::default(), new_key());
    let (keys, secret) = (folder.file("keys", &key), folder.file("client.secret", hub.client_secret()));
    let by_file = Setup::with_keys_file(&[("a", &hub)], &keys).with_secret_file(hub.client_secret(), &secret);
    let script = "exec \"$0\" --config \"$GATEWAY_OF_A_TEST\"";
    let mut by_variable = Command::new("/bin/sh");
    by_variable.env_clear().env("GATEWAY__SESSION__KEYS", &key).args(["-c", script]).arg(crate::gateway::binary());
    let without_keys = Setup::with_keys(&[("a", &hub)], &[]);
    for (case, gateway, shows) in
        [("by file", by_file.start(), false), ("by a variable", without_keys.start_as(by_variable), true)]
    {
        let process = |name: &str| std::fs::read(format!("/proc/{}/{name}", gateway.pid()));
        let holds = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
        let arguments = process("cmdline").expect("everybody may");
        assert!(holds(&arguments, "--config"), "{case}");
        assert!([key.as_str(), hub.client_secret()].iter().all(|secret| !holds(&arguments, secret)), "{case}");
        match process("environ") {
            Ok(environment) => {
                assert_eq!(holds(&environment, &key), shows, "{case}");
                assert!(holds(&environment, "RUST_LOG") && !holds(&environment, hub.client_secret()), "{case}");
            }
            // Nobody but root may, since its memory is its own.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{case}"),
        }
    }
}

/// SU-04: a process that is killed by a signal that leaves a core dump leaves none, however large one might be.
#[test]
fn a_gateway_that_dies_leaves_no_core_dump() {
    let hub = datahub();
    let unlimited = |script: &str| {
        let mut command = Command::new("/bin/sh");
        let folder = Folder::default();
        command.current_dir(folder.path()).args(["-c", &format!("ulimit -c unlimited && {script}")]);
        (command, folder)
    };
    let (mut twin, _folder) = unlimited("kill -ABRT $$");
    if !twin.stderr(Stdio::null()).status().expect("a shell").core_dumped() {
        return; // This machine lets nobody have one.
    }
    let (mut command, _folder) = unlimited("exec \"$0\" --config \"$GATEWAY_OF_A_TEST\"");
    command.arg(crate::gateway::binary());
    let mut gateway = Setup::new(&[("a", &hub)]).start_as(command);
    signal("ABRT", gateway.pid());
    let status = gateway.wait_for_end().expect("it ends at once");
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
}
