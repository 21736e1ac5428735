//! Keys and cut-offs that change while gateways run, and what operators see of them.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use crate::browser::Browser;
use crate::gateway::{Folder, Gateway, Setup, datahub, datahub_with, new_key, run_with_input};
use crate::token_endpoint::USER;

const SESSION: &str = "__Host-Http-session-a";
const SID: &str = "__Host-Http-sid-a";

/// CR-05: four processes, each with a file of its own, go through a rotation under load, one after the other. A jar that
/// is used at all of them by turns is never logged out, and ends up sealed under the new key.
#[test]
fn a_rotation_logs_nobody_out() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let folder = Folder::default();
    let (old, new) = (new_key(), new_key());
    let files: Vec<String> = (0..4).map(|at| format!("keys-{at}")).collect();
    let gateways: Vec<_> =
        files.iter().map(|file| Setup::with_keys_file(&[("a", &hub)], &folder.file(file, &old)).start()).collect();
    for gateway in &gateways {
        gateway.keep_secret([old.clone(), new.clone()]);
    }
    let browsers: Vec<_> = ["testuser", "joerg", "testuser"].map(|user| (Browser::default(), user)).into();
    for (browser, user) in &browsers {
        browser.log_in(&gateways[0], "a", &hub, user);
        assert_eq!(sealed_under(browser), id(&old));
    }

    let (is_over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (browser, _) in &browsers {
            let (is_over, calls, gateways) = (&is_over, &calls, &gateways);
            scope.spawn(move || {
                for gateway in gateways.iter().cycle().take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    let answer = browser.fetch_following(gateway, "GET", USER, b"");
                    assert_eq!(answer.status, 200, "{} {}", answer.head, answer.text());
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let step = |keys: &[&str]| {
            for (file, gateway) in files.iter().zip(&gateways) {
                folder.file(file, &keys.join("\n"));
                assert_eq!(gateway.reload()["event"], "keys_reloaded");
                std::thread::sleep(Duration::from_millis(300));
            }
        };
        step(&[&old, &new]);
        step(&[&new, &old]);
        let until = Instant::now() + Duration::from_secs(20);
        while browsers.iter().any(|(browser, _)| sealed_under(browser) != id(&new)) {
            assert!(Instant::now() < until, "nothing was sealed under the new key");
            std::thread::sleep(Duration::from_millis(50));
        }
        step(&[&new]);
        std::thread::sleep(Duration::from_secs(1));
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(calls.load(Ordering::Relaxed) > 300, "that was no load: {calls:?} calls");
    for gateway in &gateways {
        let metrics = gateway.metrics();
        assert!(metrics.contains(&format!("gateway_key_info{{key=\"{}\",role=\"seal\"}} 1\n", id(&new))), "{metrics}");
        assert!(!metrics.contains(&format!("gateway_key_info{{key=\"{}\"", id(&old))), "{metrics}");
        assert!(metrics.contains("gateway_unseal_failures_total 0\n"), "{metrics}");
    }
    assert!(gateways.iter().any(|gateway| gateway.metrics().contains(&seals(&new))), "gateway_seals_total");
}

/// CR-06: dropping a key ends what it has sealed, at once; a new login works.
#[test]
fn whoever_is_sealed_under_a_key_that_is_gone_is_logged_out() {
    let hub = datahub();
    let folder = Folder::default();
    let (old, new) = (new_key(), new_key());
    let gateway = Setup::with_keys_file(&[("a", &hub)], &folder.file("keys", &old)).start();
    gateway.expects_orphans(1, "without the key that is gone, nobody can read which tokens to revoke");
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
    folder.file("keys", &new);
    gateway.reload();
    let answer = browser.fetch(&gateway, "GET", USER);
    assert_eq!((answer.code().as_str(), answer.headers("set-cookie").len()), ("not_logged_in", 0));
    gateway.wait_for_event("unseal_failed");
    assert!(gateway.metrics().contains("gateway_unseal_failures_total 1\n"));
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!((browser.fetch(&gateway, "GET", USER).status, sealed_under(&browser)), (200, id(&new)));
}

/// A folder as Kubernetes mounts one: the file leads through a link that is swapped.
#[test]
fn a_changed_file_is_taken_over_without_a_word_also_behind_a_link_that_is_swapped() {
    let hub = datahub();
    let folder = Folder::default();
    let (old, new) = (new_key(), new_key());
    let version = |name: &str, keys: &[&str]| {
        std::fs::create_dir(folder.path().join(name)).expect("a folder of our own");
        folder.file(&format!("{name}/keys"), &keys.join("\n"));
        symlink(name, folder.path().join("next")).expect("a folder of our own");
        std::fs::rename(folder.path().join("next"), folder.path().join("..data")).expect("a folder of our own");
    };
    version("one", &[&old]);
    symlink("..data/keys", folder.path().join("keys")).expect("a folder of our own");
    let gateway = Setup::with_keys_file(&[("a", &hub)], &folder.path().join("keys")).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");

    let changed = Instant::now();
    version("two", &[&new, &old]);
    let line = gateway.wait_for_event("keys_reloaded");
    assert!(changed.elapsed() < Duration::from_secs(10));
    assert!(line["detail"].as_str().expect("a text").ends_with(&format!("{} {}", id(&new), id(&old))), "{line}");
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(sealed_under(&browser), id(&new));
}

#[test]
fn a_broken_file_leaves_the_keys_as_they_were_and_says_what_is_wrong() {
    let hub = datahub();
    let folder = Folder::default();
    let (old, new) = (new_key(), new_key());
    let path = folder.file("keys", &old);
    let gateway = Setup::with_keys_file(&[("a", &hub)], &path).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let short = STANDARD.encode([7; 31]);
    for (text, expected) in [
        ("", "session.keys holds no key"),
        ("# nothing but a comment\n", "session.keys holds no key"),
        ("canary canary canary", "session.keys_file line 1 is not base64"),
        (&format!("{new}\n{short}"), "session.keys_file line 2 is 31 bytes long and must be 32"),
        (&format!("{new} # one\n\n{new}"), "session.keys holds the same key twice"),
        ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "session.keys_file line 1 is not random"),
    ] {
        folder.file("keys", text);
        let line = gateway.reload();
        assert_eq!(line["event"], "reload_failed", "{text}");
        assert!(line["detail"].as_str().expect("a text").contains(expected), "{line}");
        assert!(!line.to_string().contains("canary"));
        assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200, "{text}");
    }
    std::fs::remove_file(&path).expect("it is there");
    assert_eq!(gateway.reload()["event"], "reload_failed");
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
    assert!(failed_reloads(&gateway) >= 7, "each of them, and each poll that tried again");

    folder.file("keys", &format!("  {new} # the next\n# between\n{old}\n"));
    assert_eq!(gateway.reload()["event"], "keys_reloaded");
    assert!(gateway.metrics().contains(&format!("gateway_key_info{{key=\"{}\",role=\"unseal\"}} 1\n", id(&old))));
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(sealed_under(&browser), id(&new));
}

/// A file that comes back is taken over by itself, also one that was never watched, since only a new configuration names it.
#[test]
fn a_reload_that_failed_is_tried_until_it_succeeds_and_told_once() {
    let hub = datahub();
    let folder = Folder::default();
    let (old, new) = (new_key(), new_key());
    let setup = Setup::with_keys(&[("a", &hub)], &[&old]);
    let gateway = setup.start();
    let path = folder.path().join("keys-to-come");
    let other = Setup::with_keys_file(&[("a", &hub)], &path);
    setup.file("gateway.toml", &std::fs::read_to_string(other.write()).expect("a text"));
    gateway.wait_for_event("reload_failed");
    let until = Instant::now() + Duration::from_secs(20);
    while failed_reloads(&gateway) < 3 {
        assert!(Instant::now() < until, "it was not tried again");
        std::thread::sleep(Duration::from_millis(50));
    }
    let told = gateway.log().iter().filter(|line| line["event"] == "reload_failed").count();
    assert_eq!(told, 1, "the same reason is told once");
    gateway.keep_secret([new.clone()]);
    folder.file("keys-to-come", &new);
    gateway.wait_for_event("keys_reloaded");
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(sealed_under(&browser), id(&new));
}

/// CR-05: nobody who is at the DataHUB's login page while keys change has to begin again.
#[test]
fn a_login_that_began_under_one_key_is_finished_under_another() {
    let hub = datahub();
    let (old, new) = (new_key(), new_key());
    let with = |keys: &[&str]| Setup::with_keys(&[("a", &hub)], keys).start();
    let (before, added, promoted, retired) = (with(&[&old]), with(&[&old, &new]), with(&[&new, &old]), with(&[&new]));
    for (begun_at, ended_at, location) in [
        (&before, &added, "/arcmanager/app/"),
        (&before, &promoted, "/arcmanager/app/"),
        (&promoted, &added, "/arcmanager/app/"),
        (&promoted, &retired, "/arcmanager/app/"),
        (&before, &retired, "/arcmanager/app/?login_error=failed"),
    ] {
        let browser = Browser::default();
        let callback = browser.begin_login(begun_at, "a", &hub, "testuser");
        assert_eq!(browser.open(ended_at, &callback).location(), location);
    }
}

/// CR-07.
#[test]
fn a_cut_off_ends_older_sessions_of_everybody_of_a_datahub_or_of_one_person() {
    let (hub, other) = (datahub(), datahub());
    let setup = Setup::new(&[("a", &hub), ("b", &other)]);
    let gateway = setup.start();
    let [one, two] = [Browser::default(), Browser::default()];
    let log_in = || {
        one.log_in(&gateway, "a", &hub, "testuser");
        two.log_in(&gateway, "a", &hub, "joerg");
        two.log_in(&gateway, "b", &other, "joerg");
        let ids = one.fetch(&gateway, "GET", "/auth/session").json();
        // A cut-off is to the second.
        std::thread::sleep(Duration::from_millis(1_100));
        ids["sessions"][0]["user"]["id"].as_str().expect("a text").to_owned()
    };
    let now = || humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let works = |browser: &Browser, id: &str| {
        let answer = browser.fetch(&gateway, "GET", &format!("/datahubs/{id}/api/v4/user"));
        assert!(answer.status == 200 || answer.code() == "session_expired", "{}", answer.text());
        answer.status == 200
    };
    let cut = |line: &str| {
        setup.clone().and(line).write();
        assert_eq!(gateway.reload()["event"], "keys_reloaded");
        [works(&one, "a"), works(&two, "a"), works(&two, "b")]
    };

    let user = log_in();
    assert_eq!(cut(""), [true, true, true]);
    assert_eq!(cut(&format!("datahubs.a.not_before_users = {{ {user:?} = {:?} }}", now())), [false, true, true]);
    assert_eq!(one.fetch(&gateway, "POST", "/auth/refresh").code(), "session_expired");
    log_in();
    assert_eq!([works(&one, "a"), works(&two, "a"), works(&two, "b")], [true, true, true], "logged in later");
    assert_eq!(cut(&format!("datahubs.a.not_before = {:?}", now())), [false, false, true]);
    log_in();
    assert_eq!(cut(&format!("session.not_before = {}", now())), [false, false, false], "TOML's own form of a time");
    log_in();
    assert_eq!([works(&one, "a"), works(&two, "a"), works(&two, "b")], [true, true, true], "logged in later");
    assert_eq!(cut("session.not_before = \"2026-01-01T01:00:00+01:00\""), [true, true, true], "long ago");

    setup.clone().and("datahubs.a.not_before_users = { \"7\" = \"canary\" }").write();
    let line = gateway.reload().to_string();
    assert!(
        line.contains("reload_failed") && line.contains("datahubs.a.not_before_users.7") && !line.contains("canary")
    );
    assert!(works(&one, "a"));
}

#[test]
fn inspect_tells_what_is_in_a_cookie_header_and_never_a_token() {
    let (hub, other) = (datahub(), datahub());
    let (old, new) = (new_key(), new_key());
    let setup = |keys: &[&str]| Setup::with_keys(&[("a", &hub), ("b", &other)], keys);
    let gateway = setup(&[&old]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    browser.log_in(&gateway, "b", &other, "joerg");
    let status = browser.fetch(&gateway, "GET", "/auth/session").json();
    let inspect = |setup: &Setup, input: &str| {
        let file = setup.write();
        let output = run_with_input(&["inspect", "--config", file.to_str().expect("a plain path")], input);
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        for secret in hub.secrets().iter().chain(&other.secrets()) {
            assert!(!told.contains(secret.as_str()), "a token");
        }
        (output.status.success(), told)
    };

    let rotated = setup(&[&new, &old]);
    let (good, told) = inspect(&rotated, &browser.cookie_field());
    assert!(good && told.lines().count() == 2, "{told}");
    for (at, line) in told.lines().enumerate() {
        let session = &status["sessions"][at];
        let text = |name: &str| session[name].as_str().expect("a text");
        let expected = format!(
            "{}: key {}, user {}, began ",
            text("datahub"),
            id(&old),
            session["user"]["id"].as_str().expect("a text")
        );
        assert!(line.starts_with(&expected), "{line}");
        let times = format!("token expires {}, session ends {}", text("expires_at"), text("session_ends_at"));
        assert!(line.ends_with(&times), "{line}");
    }
    let cookies = browser.cookie_field();
    let pairs = cookies.trim_end().trim_start_matches("Cookie: ");
    assert_eq!(inspect(&rotated, pairs), (true, told), "the field's name may be missing");

    let (session, sid) = (browser.cookie(SESSION).expect("logged in"), browser.cookie(SID).expect("logged in"));
    let other_letter = if session.as_bytes()[80] == b'A' { "B" } else { "A" };
    let altered = format!("{}{other_letter}{}", &session[..80], &session[81..]);
    for (case, input, expected) in [
        ("nothing", String::new(), ""),
        ("no sid", format!("{SESSION}={session}"), "a: there is no sid cookie"),
        ("no session", format!("{SID}={sid}"), "a: there is no session cookie"),
        ("two", format!("{SESSION}={session}; {SESSION}={session}; {SID}={sid}"), "a: there are two cookies"),
        ("cut", format!("{SESSION}={}; {SID}={sid}", &session[..40]), "a: the session cookie is cut"),
        ("altered", format!("{SESSION}={altered}; {SID}={sid}"), "a: it says it is sealed"),
    ] {
        let (is_good, told) = inspect(&rotated, &input);
        assert!(!is_good && told.starts_with(expected), "{case}: {told}");
    }
    let (is_good, told) = inspect(&setup(&[&new]), &browser.cookie_field());
    assert!(!is_good && told.contains(&format!("under key {}, which is not on the ring", id(&old))), "{told}");
    let elsewhere = rotated.clone().and("server.public_url = \"https://elsewhere.example\"");
    assert!(!inspect(&elsewhere, &browser.cookie_field()).0);
    let cut_off = rotated.and("session.not_before = 2099-01-01T00:00:00Z");
    let (is_good, told) = inspect(&cut_off, &browser.cookie_field());
    assert!(is_good && told.lines().all(|line| line.ends_with(", has ended")), "{told}");
}

fn failed_reloads(gateway: &Gateway) -> u64 {
    let metrics = gateway.metrics();
    let line = retired.wait_for_event("unseal_failed");
    let reason = line["reason"].as_str().expect("a text");
    assert!(reason.contains(&format!("sealed under key {}, which is not on", id(&old))), "{line}");
    assert!(retired.metrics().contains("gateway_logins_total{result=\"failed\"} 1\n"));
    assert!(retired.metrics().contains("gateway_unseal_failures_total 1\n"));
    let count = metrics.lines().find_map(|line| line.strip_prefix("gateway_reloads_total{result=\"failed\"} "));
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// The key id that a session's cookie names, as the gateway shows it.
fn sealed_under(browser: &Browser) -> String {
    let cookie = browser.cookie(SESSION).expect("logged in");
    hex(&URL_SAFE_NO_PAD.decode(cookie).expect("base64url")[1..5])
}

fn id(key: &str) -> String {
    hex(&Sha256::digest(STANDARD.decode(key).expect("base64"))[..4])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seals(key: &str) -> String {
    format!("gateway_seals_total{{key=\"{}\"}} ", id(key))
}
