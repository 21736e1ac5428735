//! What is counted of requests.

use std::time::{Duration, Instant};

use crate::browser::{Browser, FETCH};
use crate::gateway::{BASE, Gateway, Setup, datahub, run};
use crate::wire::exchange;

#[test]
fn every_request_is_counted_once_by_datahub_method_and_status() {
    let (one, two) = (datahub(), datahub());
    let gateway = Setup::new(&[("a", &one), ("b", &two)]).and("server.workers = 4").quiet().start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &one, "testuser");
    for _ in 0..20 {
        assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    }
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/b/api/v4/user").status, 401);
    for method in ["BREW", "CANARY", "get"] {
        assert_eq!(browser.fetch(&gateway, method, "/datahubs/a/api/v4/user").status, 501);
    }
    for (line, count) in [
        ("requests_total{datahub=\"a\",method=\"GET\",status=\"200\"}", 20.0),
        ("requests_total{datahub=\"b\",method=\"GET\",status=\"401\"}", 1.0),
        ("requests_total{datahub=\"\",method=\"other\",status=\"501\"}", 3.0),
        // The login and its callback are about it, too.
        ("request_duration_seconds_count{datahub=\"a\"}", 22.0),
        ("request_duration_seconds_bucket{le=\"+Inf\",datahub=\"a\"}", 22.0),
        ("request_duration_seconds_count{datahub=\"b\"}", 1.0),
        ("upstream_duration_seconds_count{datahub=\"a\"}", 20.0),
        ("upstream_duration_seconds_count{datahub=\"b\"}", 0.0),
        ("inflight", 0.0),
    ] {
        wait_for(&gateway, line, count);
    }
    assert!(number(&gateway, "upstream_duration_seconds_sum{datahub=\"a\"}") > Some(0.0));
    let metrics = gateway.metrics();
    assert!(!metrics.contains("CANARY") && !metrics.contains("BREW"), "{metrics}");
}

#[test]
fn a_request_is_under_way_from_its_head_to_the_end_of_its_answer() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    wait_for(&gateway, "inflight", 0.0);
    let mut connection =
        browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/projects/230/jobs/9/trace"), FETCH);
    let answer = connection.head();
    wait_for(&gateway, "inflight", 1.0);
    connection.body(&answer).expect("the whole trace, which takes two seconds");
    wait_for(&gateway, "inflight", 0.0);
    // And one that its client leaves.
    let mut connection =
        browser.begin(&gateway, "GET", &format!("{BASE}/datahubs/a/api/v4/projects/230/jobs/9/trace"), FETCH);
    connection.head();
    wait_for(&gateway, "inflight", 1.0);
    drop(connection);
    wait_for(&gateway, "inflight", 0.0);
}

#[test]
fn the_process_says_what_it_is_and_what_it_uses() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let metrics = gateway.metrics();
    let process = |name: &str| {
        let number = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("{name}: {metrics}"))
    };
    assert!((1e6..1e9).contains(&process("process_resident_memory_bytes")), "{metrics}");
    assert!(process("process_virtual_memory_bytes") > process("process_resident_memory_bytes"), "{metrics}");
    assert!((0.0..60.0).contains(&process("process_cpu_seconds_total")), "{metrics}");
    assert!((3.0..100.0).contains(&process("process_threads")), "{metrics}");
    assert!(process("process_open_fds") > 5.0 && process("process_open_fds") < process("process_max_fds"), "{metrics}");
    let now = std::time::UNIX_EPOCH.elapsed().expect("it is after 1970").as_secs_f64();
    assert!((now - 60.0..=now).contains(&process("process_start_time_seconds")), "{metrics}");
    // The same everywhere: the commit, where git is there and this is a checkout.
    let git = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output();
    let head = git.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let line = gateway.wait_for_line(|line| line["message"] == "serving");
    let (version, revision) = (env!("CARGO_PKG_VERSION"), line["revision"].as_str().expect("a text"));
    let is_known = head.is_some_and(|head| !head.is_empty()) && std::path::Path::new(".git").exists();
    assert_eq!(revision.trim_end_matches("-dirty").len() == 40, is_known, "{revision}");
    assert!(is_known || revision == "unknown", "{revision}");
    let build = format!("gateway_build_info{{version=\"{version}\",revision=\"{revision}\"}} 1\n");
    assert!(metrics.contains(&build) && line["version"] == version, "{metrics}");
    for option in ["--version", "-V"] {
        let told = run(&[option], &[]);
        let expected = format!("arcmanager-gateway {version} (commit {revision})\n");
        assert_eq!((told.status.code(), String::from_utf8_lossy(&told.stdout)), (Some(0), expected.into()), "{option}");
    }
}

/// What is counted is for operators, by a listener that has nothing else, and it names nobody and nothing of theirs.
#[test]
fn what_is_counted_is_on_a_listener_of_its_own_and_names_nobody() {
    let hub = datahub();
    let gateway = Setup::new(&[("a", &hub)]).quiet().start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "joerg");
    for path in ["projects/230/issues?search=canary", "users/canary", "projects/lu98be%2Fcanary"] {
        assert!(browser.fetch(&gateway, "GET", &format!("/datahubs/a/api/v4/{path}")).status < 500, "{path}");
    }
    let metrics = gateway.metrics();
    for word in ["canary", "joerg", "rg 100", "ller", "issues", "lu98be", "search", hub.client_id(), "Mozilla"] {
        assert!(!metrics.contains(word), "{word}: {metrics}");
    }
    for path in ["/metrics", "/healthz", "/readyz", "/metrics?pwd=canary"] {
        for target in [path.to_owned(), format!("{BASE}{path}")] {
            let answer = browser.send(&gateway, "GET", &target, FETCH, b"");
            assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"), "{target}");
        }
    }
    let line = gateway.wait_for_line(|line| line["message"] == "operators may ask");
    for (target, status) in [
        ("/metrics", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/arcmanager/api/v1/datahubs", 404),
        ("/arcmanager/api/v1/auth/session", 404),
        ("/arcmanager/api/v1/datahubs/a/api/v4/user", 404),
    ] {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{FETCH}{}\r\n",
            browser.cookie_field()
        );
        assert_eq!(exchange(line["listen"].as_str().expect("a text"), request)[0].status, status, "{target}");
    }
}

fn wait_for(gateway: &Gateway, line: &str, count: f64) {
    let until = Instant::now() + Duration::from_secs(10);
    while number(gateway, line) != Some(count) {
        assert!(Instant::now() < until, "{line} is not {count}: {}", gateway.metrics());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What follows in the line that begins so.
fn number(gateway: &Gateway, line: &str) -> Option<f64> {
    let line = format!("gateway_{line} ");
    gateway.metrics().lines().find_map(|other| other.strip_prefix(&line)?.parse().ok())
}
