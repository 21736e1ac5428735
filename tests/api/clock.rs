//! A clock that jumps: what has ended by it has ended, what was begun goes on, and nothing waits for it.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use datahub::behaviour::Behaviour;

use crate::browser::{Browser, NAVIGATION};
use crate::gateway::{BASE, Gateway, Setup, binary, datahub_with};
use crate::token_endpoint::USER;

/// Debian's libfaketime, which tells a process a time of our choice while it runs.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// Longest that anything may take: an hour would be one that waits for the clock.
const MAX_TIME: Duration = Duration::from_secs(10);

#[test]
fn a_clock_that_jumps_by_an_hour_or_a_day_ends_what_is_over_and_nothing_else() {
    let Some(library) = library() else {
        // Past what the test harness captures.
        let _ = writeln!(std::io::stderr(), "NOT RUN: a_clock_that_jumps: there is no libfaketime (make deploy-tools)");
        return;
    };
    let hub = datahub_with(|behaviour: &mut Behaviour| behaviour.token_lifetime = Duration::from_mins(30));
    let lines = "session.max_age = \"12h\"\nrate_limit.login = \"2/1s\"\nserver.trusted_proxies = [\"127.0.0.0/8\"]";
    let setup = Setup::new(&[("a", &hub)]).and(lines);
    let clock = setup.file("clock", "+0");
    // Those that only go forward stay as they are, as they do when a clock is set.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" --config \"$GATEWAY_OF_A_TEST\""]).arg(binary()).env_clear();
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock);
    command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
    let gateway = setup.start_as(command);
    let jump = |hours: i64| {
        // In the place of the other, since it is read all the time.
        fs::rename(setup.file("next", &format!("{:+}", hours * 3600)), &clock).expect("a folder of our own");
        Instant::now()
    };
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let ask = || {
        let answer = browser.fetch_following(&gateway, "GET", USER, b"");
        if answer.status == 200 { "200".to_owned() } else { format!("{} {}", answer.status, answer.code()) }
    };
    assert_eq!(ask(), "200");
    let told = |reason: &str| {
        gateway.wait_for_line(|line| line["reason"].as_str().is_some_and(|text| text.contains(reason)));
    };
    for (hours, call, refreshes, login) in [
        (1, "200", 1, Some("clock may be ahead of the DataHUB's")),
        (0, "200", 1, None),
        (-1, "200", 1, Some("clock may be behind the DataHUB's")),
        (24, "401 session_expired", 1, Some("clock may be ahead of the DataHUB's")),
        (-24, "200", 1, Some("clock may be behind the DataHUB's")),
        (0, "200", 1, None),
    ] {
        let jumped = jump(hours);
        assert_eq!((ask().as_str(), hub.counts().refreshes), (call, refreshes), "{hours} h");
        let other = Browser::default();
        let callback = other.begin_login(&gateway, "a", &hub, "joerg");
        let to = other.open(&gateway, &callback).location();
        match login {
            None => assert_eq!(to, "/arcmanager/app/", "{hours} h"),
            Some(reason) => {
                assert!(to.ends_with("=failed"), "{hours} h: {to}");
                told(reason);
            }
        }
        other.keep_jar_secret(&gateway);
        assert!(jumped.elapsed() < MAX_TIME, "{hours} h: {:?}", jumped.elapsed());
    }
    gateway.keep_secret(hub.secrets());
    no_rate_waits_for_the_clock(&gateway, jump);
    assert!(gateway.metrics().contains("gateway_panics_total 0"));
}

fn no_rate_waits_for_the_clock(gateway: &Gateway, jump: impl Fn(i64) -> Instant) {
    let login = || {
        let fields = format!("{NAVIGATION}X-Forwarded-For: 192.0.2.7\r\n");
        Browser::default().send(gateway, "GET", &format!("{BASE}/auth/login?datahub=a"), &fields, b"").location()
    };
    for hours in [24, -24] {
        jump(0);
        let begun = Instant::now();
        while !login().ends_with("=busy") {
            assert!(begun.elapsed() < MAX_TIME, "the rate has no end");
        }
        jump(hours);
        sleep(Duration::from_millis(1_100));
        assert!(!login().ends_with("=busy"), "{hours} h");
    }
}
