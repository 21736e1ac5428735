//! Keys and cut-offs that change while gateways run, and what operators see of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use datahub::DataHub;
use sha2::{Digest, Sha256};

use crate::browser::Browser;
use crate::gateway::{Folder, Gateway, Setup, binary, datahub, datahub_with, new_key, run_with_input};
use crate::token_endpoint::USER;

const SESSION: &str = "__Host-Http-session-a";
const SID: &str = "__Host-Http-sid-a";

/// Two machines with two processes each, and a shell that reaches them, for what docs/operate.md says.
struct Machines {
    folder: Folder,
    /// The blocks of the document, which are run one after the other; the first one is about all others.
    blocks: Vec<String>,
    processes: String,
    layout: Layout,
}

/// Where the document says that keys are, and how a process gets to know them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `session.keys_file`, which is read anew by itself.
    File,
    /// The folder of credentials, which systemd copies at a start.
    Systemd,
}

impl Machines {
    const NAMES: [&str; 2] = ["gw1.example.org", "gw2.example.org"];

    /// All of them have this key.
    fn new(key: &str, layout: Layout) -> Self {
        let folder = Folder::default();
        for name in Self::NAMES {
            std::fs::create_dir_all(folder.path().join(name).join("credentials")).expect("a folder of our own");
            let place = if layout == Layout::Systemd { "credentials/keys" } else { "keys" };
            folder.file(&format!("{name}/{place}"), &format!("{key}\n"));
        }
        // What is said to a machine happens in its folder.
        let etc = format!("s#/etc/arcmanager-gateway#{}/$1#", folder.path().display());
        for (name, script) in [
            ("ssh", format!("MACHINE=$1 exec sh -euc \"$(printf %s \"$2\" | sed \"{etc}\")\"\n")),
            ("systemctl", SYSTEMCTL.to_owned()),
        ] {
            let file = folder.file(name, &format!("#!/bin/sh -eu\n{script}"));
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o700)).expect("a file of our own");
        }
        symlink(binary(), folder.path().join("arcmanager-gateway")).expect("a folder of our own");
        let document = include_str!("../../docs/operate.md").split("```sh rotation\n").skip(1);
        let blocks = document.map(|rest| rest.split("```").next().expect("its end").to_owned()).collect();
        Self { folder, blocks, processes: String::new(), layout }
    }

    fn keys(&self, name: &str) -> PathBuf {
        self.folder.path().join(name).join(if self.layout == Layout::Systemd { "credentials/keys" } else { "keys" })
    }

    fn start(&mut self, datahub: &DataHub) -> Vec<Gateway> {
        let start = |name: &&str| Setup::with_keys_file(&[("a", datahub)], &self.keys(name)).start();
        let gateways: Vec<_> = Self::NAMES.iter().flat_map(|name| [name, name]).map(start).collect();
        let process = |(at, gateway): (usize, &Gateway)| {
            let line = gateway.wait_for_line(|line| line["message"] == "operators may ask");
            let port = line["listen"].as_str().expect("a text").rsplit(':').next().expect("a port").to_owned();
            format!("{}:{port} ", Self::NAMES[at / 2])
        };
        self.processes = gateways.iter().enumerate().map(process).collect();
        gateways
    }

    /// One process on each machine, started as systemd does.
    fn start_services(&mut self, datahub: &DataHub) -> Services<'_> {
        let port = || TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("it is bound").port();
        for name in Self::NAMES {
            let port = port();
            let (url, client) = (datahub.url(), datahub.client_id());
            let text = format!(
                "server.listen = \"127.0.0.1:0\"\nadmin.listen = \"127.0.0.1:{port}\"\n\
                 datahubs.a = {{ url = {url:?}, client_id = {client:?} }}\n"
            );
            self.folder.file(&format!("{name}/gateway.toml"), &text);
            self.folder.file(&format!("{name}/port"), &port.to_string());
            write!(self.processes, "{name}:{port} ").expect("a String takes everything");
        }
        let services = Services(self);
        for name in Self::NAMES {
            let (is_done, told) = services.0.run(&format!("ssh {name} 'systemctl restart arcmanager-gateway'"));
            assert!(is_done, "{told}");
        }
        services
    }

    /// Does what this block of the document says, word for word but for the places of the processes, and where there is no systemd
    /// with the folder and the restart of its table.
    fn run(&self, block: &str) -> (bool, String) {
        let mut first = self.blocks[0].clone();
        let mut replace = |text: &str, by: &str| {
            assert!(first.contains(text), "{first}");
            first = first.replace(text, by);
        };
        replace("gw1.example.org:9000 gw2.example.org:9000", &self.processes);
        if self.layout == Layout::File {
            replace("FOLDER=/etc/arcmanager-gateway/credentials\n", "FOLDER=/etc/arcmanager-gateway\n");
            replace("RESTART=\"systemctl restart arcmanager-gateway\"\n", "RESTART=true\n");
        }
        let script = format!("{first}\n{block}");
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", self.folder.path().display());
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).env_clear().env("PATH", path).current_dir(self.folder.path());
        let output = shell.output().expect("there is a shell");
        let told = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        (output.status.success(), told)
    }
}

/// The gateways of [`Machines`] that its `systemctl` has started.
struct Services<'a>(&'a Machines);

impl Drop for Services<'_> {
    fn drop(&mut self) {
        for name in Machines::NAMES {
            let _ = Command::new("sh")
                .args(["-c", "kill \"$(cat pid)\" 2> /dev/null"])
                .current_dir(self.0.folder.path().join(name))
                .status();
        }
    }
}

/// A `systemctl` that can restart the gateway of the machine where it is called, with copies of the credentials as they are then.
const SYSTEMCTL: &str = r#"[ "$*" = "restart arcmanager-gateway" ]
cd "${0%/*}/$MACHINE"
is_there() { curl -fso /dev/null "http://127.0.0.1:$(cat port)/healthz"; }
[ ! -e pid ] || kill "$(cat pid)" || true
while is_there; do sleep 0.02; done
rm -rf copies
mkdir copies
for file in credentials/*; do cp "$file" "copies/gateway_${file##*/}"; done
CREDENTIALS_DIRECTORY=copies arcmanager-gateway --config gateway.toml < /dev/null >> log 2>&1 &
echo $! > pid
for _ in $(seq 200); do
    if is_there; then exit 0; fi
    [ -e "/proc/$!/exe" ] || exit 1
    sleep 0.02
done
exit 1
"#;

/// Waits until each has read its keys so many times.
fn wait_for_reloads(gateways: &[Gateway], count: usize) {
    for gateway in gateways {
        let is_reload = |line: &&serde_json::Value| line["event"] == "keys_reloaded";
        gateway.wait_for_line(|_| gateway.log().iter().filter(is_reload).count() >= count);
        gateway.wait_for_event("keys_reloaded");
    }
}

/// CR-05: the document's own commands, under load: people work at all processes by turns, and log in at one and end it at
/// another. Nobody is logged out, and all end up sealed under the new key.
#[test]
fn a_rotation_as_the_document_says_logs_nobody_out() {
    let hub = datahub_with(|behaviour| behaviour.token_lifetime = Duration::from_secs(4));
    let old = new_key();
    let mut machines = Machines::new(&old, Layout::File);
    let gateways = machines.start(&hub);
    for gateway in &gateways {
        gateway.keep_secret([old.clone()]);
    }
    let browsers: Vec<_> = ["testuser", "joerg", "testuser"].map(|user| (Browser::default(), user)).into();
    for (browser, user) in &browsers {
        browser.log_in(&gateways[0], "a", &hub, user);
        assert_eq!(sealed_under(browser), id(&old));
    }
    let [_, add, added, promote, promoted, retire, retired] = &machines.blocks[..] else {
        panic!("{:?}", machines.blocks)
    };

    let (is_over, calls, logins) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let new = std::thread::scope(|scope| {
        let (is_over, calls, logins) = (&is_over, &calls, &logins);
        let by_turns = || gateways.iter().cycle().take_while(|_| !is_over.load(Ordering::Relaxed));
        for (browser, _) in &browsers {
            let by_turns = by_turns();
            scope.spawn(move || {
                for gateway in by_turns {
                    let answer = browser.fetch_following(gateway, "GET", USER, b"");
                    assert_eq!(answer.status, 200, "{} {}", answer.head, answer.text());
                    calls.fetch_add(1, Ordering::Relaxed);
                    // The tests beside this one need the machine, too.
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        let (began, ended, hub) = (by_turns(), by_turns().skip(1), &hub);
        scope.spawn(move || {
            let newcomer = Browser::default();
            for (began, ended) in began.zip(ended) {
                let callback = newcomer.begin_login(began, "a", hub, "joerg");
                std::thread::sleep(Duration::from_millis(100));
                assert_eq!(newcomer.open(ended, &callback).location(), "/arcmanager/app/");
                logins.fetch_add(1, Ordering::Relaxed);
            }
        });
        let step = |block: &str, check: &str, reloads: usize| {
            let (is_done, told) = machines.run(block);
            assert!(is_done, "{told}");
            wait_for_reloads(&gateways, reloads);
            let (is_good, told) = machines.run(check);
            assert!(is_good && told.lines().all(|line| line.trim_start().starts_with("4 gateway_key_info{")), "{told}");
            assert_eq!(told.lines().count(), if reloads < 3 { 2 } else { 1 }, "{told}");
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            step(add, added, 1);
            let new =
                std::fs::read_to_string(machines.folder.path().join("new-key")).expect("it is made").trim().to_owned();
            for gateway in &gateways {
                gateway.keep_secret([new.clone()]);
            }
            step(promote, promoted, 2);
            let until = Instant::now() + Duration::from_secs(20);
            while browsers.iter().any(|(browser, _)| sealed_under(browser) != id(&new)) {
                assert!(Instant::now() < until, "nothing was sealed under the new key");
                std::thread::sleep(Duration::from_millis(50));
            }
            std::thread::sleep(Duration::from_millis(500));
            step(retire, retired, 3);
            std::thread::sleep(Duration::from_secs(1));
            new
        }));
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(calls.load(Ordering::Relaxed) > 300, "that was no load: {calls:?} calls");
    assert!(logins.load(Ordering::Relaxed) > 20, "that was no load: {logins:?} logins");
    for gateway in &gateways {
        let metrics = gateway.metrics();
        assert!(metrics.contains(&format!("gateway_key_info{{key=\"{}\",role=\"seal\"}} 1\n", id(&new))), "{metrics}");
        assert!(!metrics.contains(&format!("gateway_key_info{{key=\"{}\"", id(&old))), "{metrics}");
        assert!(metrics.contains("gateway_unseal_failures_total 0\n"), "{metrics}");
    }
    let has_sealed = |gateway: &Gateway| !gateway.metrics().contains(&format!("{}0\n", seals(&new)));
    assert!(gateways.iter().any(has_sealed), "gateway_seals_total");
    for name in Machines::NAMES {
        assert_eq!(std::fs::read_to_string(machines.keys(name)).expect("it is there"), format!("{new}\n"));
        assert_eq!(std::fs::metadata(machines.keys(name)).expect("it is there").permissions().mode() & 0o777, 0o600);
    }
}

/// What the document once said: a key of its own on each machine. The document's check finds it, and so does the log.
#[test]
fn a_key_of_its_own_on_each_machine_is_found() {
    let hub = datahub();
    let mut machines = Machines::new(&new_key(), Layout::File);
    let gateways = machines.start(&hub);
    let (add, check) = (machines.blocks[1].clone(), machines.blocks[2].clone());
    assert!(machines.run(&add).0);
    wait_for_reloads(&gateways, 1);
    assert!(machines.run(&check).0);
    for name in Machines::NAMES {
        let (is_done, told) =
            machines.run(&format!("ssh {name} 'arcmanager-gateway key >> /etc/arcmanager-gateway/keys'"));
        assert!(is_done, "{told}");
    }
    wait_for_reloads(&gateways, 2);
    let (is_good, told) = machines.run(&check);
    let counts: Vec<_> = told.lines().map(|line| line.trim_start().split(' ').next().unwrap_or_default()).collect();
    assert!(!is_good && told.lines().count() == 4, "{told}");
    let times = |text| counts.iter().filter(|count| **count == text).count();
    assert_eq!((times("2"), times("4")), (2, 2), "{told}");
}

/// **Seen**: the document's commands knew nothing of the folder that the same document has for keys, nor of the restart.
#[test]
fn a_rotation_as_the_document_says_works_with_the_credentials_of_systemd() {
    let hub = datahub();
    let old = new_key();
    let mut machines = Machines::new(&old, Layout::Systemd);
    for name in Machines::NAMES {
        machines.folder.file(&format!("{name}/credentials/a.secret"), hub.client_secret());
    }
    let services = machines.start_services(&hub);
    let machines = services.0;
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("it is there").trim().to_owned();
    let [_, add, added, promote, promoted, retire, retired] = &machines.blocks[..] else {
        panic!("{:?}", machines.blocks)
    };
    let shown = |told: &str| {
        let lines = told.lines().map(str::trim_start);
        lines.map(|line| line.replace("gateway_key_info", "").replace("} 1", "}")).collect::<BTreeSet<_>>()
    };
    let line = |key: &str, role: &str| format!("2 {{key=\"{}\",role=\"{role}\"}}", id(key));
    let check = |block: &str, is_good: bool, keys: &[String]| {
        let (is, told) = machines.run(block);
        assert_eq!((is, shown(&told)), (is_good, keys.iter().cloned().collect()), "{block}: {told}");
    };
    // Nothing is done with a key that was not made, and what was not done is not called done.
    machines.folder.file("new-key", "");
    check(added, false, &[line(&old, "seal")]);
    for (step, block) in [promote, retire].into_iter().enumerate() {
        let (is_done, told) = machines.run(block);
        assert!(!is_done && told.contains("new-key is empty"), "{step}: {told}");
        check([promoted, retired][step], false, &[line(&old, "seal")]);
    }
    std::fs::remove_file(machines.folder.path().join("new-key")).expect("it is ours");

    let step = |block: &str| {
        let (is_done, told) = machines.run(block);
        assert!(is_done, "{told}");
    };
    step(add);
    let new = read(machines.folder.path().join("new-key"));
    let both = [line(&old, "seal"), line(&new, "unseal")];
    check(added, true, &both);
    check(promoted, false, &both);
    step(add);
    check(added, true, &both);
    step(promote);
    let both = [line(&new, "seal"), line(&old, "unseal")];
    check(promoted, true, &both);
    check(added, false, &both);
    check(retired, false, &both);
    step(retire);
    check(retired, true, &[line(&new, "seal")]);
    check(promoted, false, &[line(&new, "seal")]);
    for name in Machines::NAMES {
        assert_eq!(read(machines.keys(name)), new);
        let log = read(machines.folder.path().join(name).join("log"));
        assert!(!log.contains(&old) && !log.contains(&new), "{log}");
    }

    // One that does not start ends it before the next machine.
    let before = read(machines.keys(Machines::NAMES[1]));
    std::fs::rename(machines.folder.path().join("gw1.example.org/gateway.toml"), machines.folder.path().join("away"))
        .expect("our own");
    machines.folder.file("new-key", &new_key());
    assert!(!machines.run(add).0);
    assert_eq!(read(machines.keys(Machines::NAMES[1])), before);
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

/// A secret that was renewed at the DataHUB: in a file of its own, on SIGHUP and by itself, and in the configuration.
/// Whoever opens a pipe waits for its other end: nobody does, and the end of the process does not either.
#[test]
fn a_file_that_becomes_a_pipe_is_a_fault_and_hangs_nothing() {
    let (hub, folder) = (datahub(), Folder::default());
    let path = folder.file("keys", &new_key());
    let mut gateway = Setup::with_keys_file(&[("a", &hub)], &path).start();
    std::fs::remove_file(&path).expect("it is there");
    assert!(Command::new("mkfifo").arg(&path).status().expect("coreutils").success());
    let told = gateway.reload();
    assert_eq!(told["event"], "reload_failed");
    let detail = told["detail"].as_str().expect("a text");
    assert!(detail.contains("session.keys_file cannot be read: it is a pipe"), "{detail}");
    assert!(failed_reloads(&gateway) > 0);
    std::fs::remove_file(&path).expect("it is there");
    folder.file("keys", &new_key());
    assert_eq!(gateway.reload()["event"], "keys_reloaded");
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
}

#[test]
fn a_client_secret_is_taken_over_without_a_restart() {
    const WRONG: &str = "gloas-canary-of-a-secret-that-was-renewed";
    let hub = datahub();
    let folder = Folder::default();
    let own = Setup::new(&[("a", &hub)]);
    let path = folder.file("a.secret", WRONG);
    for (case, before, change) in [
        ("a file and SIGHUP", own.clone().with_secret_file(hub.client_secret(), &path), 0),
        ("a file alone", own.clone().with_secret_file(hub.client_secret(), &path), 1),
        ("the configuration", own.clone().at(hub.client_secret(), WRONG), 2),
    ] {
        folder.file("a.secret", WRONG);
        let gateway = before.start();
        gateway.keep_secret([WRONG.to_owned()]);
        let browser = Browser::default();
        let log_in = || {
            let callback = browser.begin_login(&gateway, "a", &hub, "testuser");
            browser.open(&gateway, &callback).location()
        };
        assert!(log_in().contains("login_error="), "{case}");
        gateway.wait_for_event("client_refused");
        match change {
            2 => drop(own.write()),
            _ => drop(folder.file("a.secret", &format!("{}\n", hub.client_secret()))),
        }
        if change == 1 {
            gateway.wait_for_event("keys_reloaded");
        } else {
            assert_eq!(gateway.reload()["event"], "keys_reloaded", "{case}");
        }
        assert_eq!(log_in(), "/arcmanager/app/", "{case}");
        // A fault changes nothing, also here.
        folder.file("a.secret", "short");
        own.clone().with_secret_file(hub.client_secret(), &path).write();
        let line = gateway.reload();
        assert_eq!(line["event"], "reload_failed", "{case}");
        assert!(
            line["detail"].as_str().is_some_and(|it| it.contains("datahubs.a.client_secret is too short")),
            "{line}"
        );
        assert_eq!(log_in(), "/arcmanager/app/", "{case}");
    }
}

#[test]
fn what_counts_at_the_next_start_only_is_named() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let gateway = setup.start();
    let told = || gateway.log().into_iter().filter(|line| line["keys"].is_string()).collect::<Vec<_>>();
    setup.clone().and("session.not_before = 2026-01-01T00:00:00Z").write();
    assert_eq!(gateway.reload()["event"], "keys_reloaded");
    assert_eq!(told().len(), 0, "all of it is taken over: {:?}", told());
    setup.clone().and("limits.waiting = 7\nsession.max_age = \"8d\"\ndatahubs.a.name = \"canary\"").write();
    assert_eq!(gateway.reload()["event"], "keys_reloaded");
    assert_eq!(told().len(), 1, "{:?}", told());
    assert_eq!(told()[0]["keys"], "datahubs.a.name limits.waiting session.max_age");
    assert_eq!(told()[0]["level"], "WARN");
    assert!(!told()[0].to_string().contains("canary"));
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
    let line = retired.wait_for_event("unseal_failed");
    let reason = line["reason"].as_str().expect("a text");
    assert!(reason.contains(&format!("sealed under key {}, which is not on", id(&old))), "{line}");
    assert!(retired.metrics().contains("gateway_logins_total{result=\"failed\"} 1\n"));
    assert!(retired.metrics().contains("gateway_unseal_failures_total 1\n"));
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
    let count = metrics.lines().find_map(|line| line.strip_prefix("gateway_reloads_total{result=\"failed\"} "));
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// The key id that a session's cookie names, as the gateway shows it.
fn sealed_under(browser: &Browser) -> String {
    let cookie = browser.cookie(SESSION).expect("logged in");
    hex(&URL_SAFE_NO_PAD.decode(cookie).expect("base64url")[1..5])
}

/// A key's id, as log and metrics have it.
pub fn id(key: &str) -> String {
    hex(&Sha256::digest(STANDARD.decode(key).expect("base64"))[..4])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seals(key: &str) -> String {
    format!("gateway_seals_total{{key=\"{}\"}} ", id(key))
}
