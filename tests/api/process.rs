//! Starting, listening, ending.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::browser::{Browser, Connection, FETCH};
use crate::gateway::{BASE, Folder, Setup, datahub};

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

/// The list in `docs/connections.md`: `file::name`, or `file::*` for all of a file.
#[test]
fn every_row_about_connections_names_tests_that_are_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(root.join("docs/connections.md")).expect("the list");
    for row in list.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what |")) {
        let holds = row.trim_end_matches(" |").rsplit(" | ").next().expect("a cell");
        assert!(holds.contains("::"), "no test: {row}");
        for (file, name) in holds.split('`').filter_map(|word| word.split_once("::")) {
            let text = std::fs::read_to_string(root.join(format!("tests/api/{file}.rs"))).unwrap_or_default();
            let is_there = if name == "*" { text.contains("#[test]") } else { text.contains(&format!("fn {name}()")) };
            assert!(is_there, "{file}::{name}: {row}");
        }
        let others = [("unit", "src", "rs"), ("fuzz", "tests/fuzz", "rs"), ("deploy", "tests/deploy", "py")];
        for (kind, folder, extension) in others {
            for name in holds.split(&format!("{kind} `")).skip(1).filter_map(|rest| rest.split('`').next()) {
                let text =
                    std::fs::read_to_string(root.join(format!("{folder}/{name}.{extension}"))).unwrap_or_default();
                let is_there = ["#[test]", "fuzz_target!", "def test_"].iter().any(|mark| text.contains(mark));
                assert!(is_there, "{kind} {name}: {row}");
            }
        }
    }
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
