//! What operators say, and what they are told.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use datahub::DataHub;

use crate::gateway::{Folder, binary, datahub, new_key, run, signal};

const EX_CONFIG: i32 = 78;

fn started_with(config: &str, environment: &[(&str, &str)]) -> Output {
    let folder = Folder::default();
    let file = folder.file("gateway.toml", config);
    run(&["check", "--config", file.to_str().expect("a plain path")], environment)
}

/// The section of a DataHUB that knows us.
fn section(id: &str, hub: &DataHub) -> String {
    let (url, client, secret) = (hub.url(), hub.client_id(), hub.client_secret());
    format!("datahubs.{id} = {{ url = {url:?}, client_id = {client:?}, client_secret = {secret:?} }}\n")
}

/// CF-02.
#[test]
fn all_faults_are_told_at_once_each_by_its_key_and_never_by_its_value() {
    let config = r#"
        surprise = 1
        server = { public_url = "http://canary-host.example", base_path = "no-slash", listen = ["canary-listen"], workers = "canary", trusted_proxies = ["canary"], typo = 1 }
        proxy = { graphql = "canary", allow_credential_endpoints = ["/**", "canary"] }
        app = { arcmanager = "canary", url = "canary app", dir = "/canary/dir", dev_origins = ["https://canary.example"] }
        auth = { login_timeout = "canary", typo = 1 }
        session = { keys = ["canary-key", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="], max_age = "canary", remember = "0s" }
        limits = { head = "0B", target = "canary", fields = 129, in_flight = 0, waiting = "canary" }
        timeouts = { idle = "canary" }
        rate_limit = { login = "canary", anonymous = "canary" }
        log = { format = "canary", level = "canary" }
        datahubs.BAD = { url = "https://git.example.org" }
        datahubs.a = { url = "http://git.example.org", client_id = "a", client_secret = "canary" }
        datahubs.b = { url = "https://canary:canary@git.example.org", client_secret_file = "/canary/secret", ca_file = "/canary/ca", connect = "canary", anonymous = "canary", anonymous_rate = "canary" }
    "#;
    let output = started_with(config, &[]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(EX_CONFIG), "{told}");
    for key in [
        "surprise",
        "server.public_url",
        "server.base_path",
        "server.listen",
        "server.workers",
        "server.trusted_proxies",
        "server.typo",
        "app.dir",
        "app.arcmanager",
        "auth.login_timeout",
        "auth.typo",
        "proxy.graphql",
        "proxy.allow_credential_endpoints",
        "session.keys",
        "session.max_age",
        "session.remember",
        "limits.head",
        "limits.target",
        "limits.fields",
        "limits.in_flight",
        "limits.waiting",
        "timeouts.idle",
        "rate_limit.login",
        "rate_limit.anonymous",
        "log.format",
        "log.level",
        "datahubs.BAD",
        "datahubs.a.url",
        "datahubs.a.client_secret",
        "datahubs.b.url",
        "datahubs.b.client_id",
        "datahubs.b.client_secret_file",
        "datahubs.b.ca_file",
        "datahubs.b.connect",
        "datahubs.b.anonymous ",
        "datahubs.b.anonymous_rate",
    ] {
        assert!(told.lines().any(|line| line.trim_start().starts_with(key)), "{key} is not in\n{told}");
    }
    assert!(!told.contains("canary"), "{told}");
}

#[test]
fn a_trusted_proxy_is_an_address_or_a_network() {
    let hub = datahub();
    let told = |proxies: &str| {
        let (key, datahub) = (new_key(), section("a", &hub));
        let config = format!("session.keys = [{key:?}]\nserver.trusted_proxies = [{proxies}]\n{datahub}");
        let output = started_with(&config, &[]);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for good in
        ["", "\"192.0.2.1\", \"::1\"", "\"10.0.0.0/8\", \"fd00::/8\"", "\"::ffff:10.0.0.0/104\"", "\"127.0.0.1/32\""]
    {
        let (code, told) = told(good);
        // What a front must do is said in any case.
        let is_complaint = |line: &str| line.contains("trusted_proxies") && !line.starts_with("front: ");
        assert!(code == Some(0) && !told.lines().any(is_complaint), "{good}: {told}");
    }
    for (bad, words) in [
        ("localhost", "addresses or networks"),
        ("203.0.113.0/", "addresses or networks"),
        ("203.0.113.0/33", "addresses or networks"),
        ("203.0.113.0/255.255.255.0", "addresses or networks"),
        ("203.0.113/24", "addresses or networks"),
        ("/24", "addresses or networks"),
        ("fd01::/129", "addresses or networks"),
        ("[::1]", "addresses or networks"),
        ("203.0.113.1/24", "behind its prefix"),
        ("fd00::1/8", "behind its prefix"),
    ] {
        let (code, told) = told(&format!("\"127.0.0.1\", {bad:?}"));
        let line = told.lines().find(|line| line.trim_start().starts_with("server.trusted_proxies ")).expect(bad);
        assert!(code == Some(EX_CONFIG) && line.contains(words) && !line.contains(bad), "{bad}: {told}");
    }
}

/// What a template left empty must not open what the list would have closed.
#[test]
fn a_list_has_no_empty_entry() {
    let hub = datahub();
    let told = |only: &str| {
        let (key, datahub) = (new_key(), section("a", &hub));
        let config = format!("session.keys = [{key:?}]\nproxy.only = {only}\n{datahub}");
        let output = started_with(&config, &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for good in ["[]", "\"\"", "[\"GET a\"]", "\"GET a, GET b\""] {
        let (code, told) = told(good);
        assert_eq!(code, Some(0), "{good}: {told}");
    }
    for bad in ["[\"\"]", "[\" \"]", "[\"GET a\", \"\"]", "\",\"", "\"GET a,\""] {
        let (code, told) = told(bad);
        assert!(code == Some(EX_CONFIG) && told.contains("  proxy.only must not hold an empty entry"), "{bad}: {told}");
    }
}

#[test]
fn a_login_may_take_from_a_minute_to_an_hour() {
    let hub = datahub();
    let told = |timeout: &str| {
        let (key, datahub) = (new_key(), section("a", &hub));
        let config = format!("session.keys = [{key:?}]\nauth.login_timeout = {timeout:?}\n{datahub}");
        let output = started_with(&config, &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for good in ["1m", "15m", "60m", "1h"] {
        assert_eq!(told(good).0, Some(0), "{good}");
    }
    for bad in ["0s", "59s", "61m", "3601s", "1d", "", "15"] {
        let (code, told) = told(bad);
        assert!(code == Some(EX_CONFIG) && told.contains("  auth.login_timeout must be "), "{bad}: {told}");
    }
}

#[test]
fn a_rate_of_bodies_is_a_size_and_not_none() {
    let hub = datahub();
    let told = |rate: &str| {
        let (key, datahub) = (new_key(), section("a", &hub));
        let config = format!("session.keys = [{key:?}]\nlimits.body_rate = {rate:?}\n{datahub}");
        let output = started_with(&config, &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for good in ["1", "1KiB", "10MB"] {
        assert_eq!(told(good).0, Some(0), "{good}");
    }
    for bad in ["0", "0KiB", "", "-1", "1KiB/s", "fast"] {
        let (code, told) = told(bad);
        assert!(code == Some(EX_CONFIG) && told.contains("  limits.body_rate must be "), "{bad}: {told}");
    }
}

#[test]
fn what_is_required_and_missing_is_said() {
    let told = started_with("", &[]);
    let text = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(EX_CONFIG));
    assert!(text.contains("session.keys_file or keys must hold a key") && text.contains("datahubs"), "{text}");
}

/// The file and the place in it, and why; never what stands there, which may be a secret.
#[test]
fn a_file_that_is_no_toml_is_said_without_quoting_it() {
    let folder = Folder::default();
    let good = folder.file("good.toml", "log.level = \"warn\"\n");
    let told = |text: &[u8]| {
        let file = folder.file("bad.toml", "");
        std::fs::write(&file, text).expect("a folder of our own");
        let [good, bad] = [&good, &file].map(|path| path.to_str().expect("a plain path"));
        let output = run(&["check", "--config", good, "--config", bad], &[]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(EX_CONFIG) && !text.contains("canary"), "{text}");
        text
    };
    for (case, text, place) in [
        ("open", "a = 1\nsession.keys = [\"canary\n", "line 2, column "),
        ("bare", "session.keys = canary\n", "line 1, column "),
        ("twice", "canary = 1\ncanary = 2\n", "line 2, column "),
        ("a key alone", "\n\ncanary\n", "line 3, column "),
        ("an escape", "a = \"canary\\q canary\"\n", "line 1, column "),
        ("a section twice", "[canary]\n[canary]\n", "line 2, column "),
        ("a control character", "a = \"canary\u{1}canary\"\n", "line 1, column "),
        ("a table of a value", "canary = 1\n[canary.canary]\n", "line 2, column "),
        ("more behind it", "a = 1 canary\n", "line 1, column "),
        ("a number", "a = 1\nb = 123456789012345678901234567890\n", "line 2: a number is too large"),
    ] {
        let text = told(text.as_bytes());
        assert!(text.contains("bad.toml is no TOML at ") && text.contains(place), "{case}: {text}");
        assert!(!text.contains("good.toml"), "{case}: {text}");
    }
    assert!(told(b"a = \"canary\xff\"\n").contains("bad.toml cannot be read: it is no UTF-8 text"));
    // As editors of Windows begin a file.
    let marked = "\u{feff}surprise = 1\n";
    assert!(told(marked.as_bytes()).contains("\n  surprise is no key"));
}

/// Of several that are missing each is named, and nothing else is said.
#[test]
fn a_file_that_cannot_be_read_is_said_with_its_path() {
    let folder = Folder::default();
    let missing = run(&["check", "--config", "/nowhere/gateway.toml", "--config", "gateway2.toml"], &[]);
    let text = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(EX_CONFIG));
    assert_eq!(
        text.lines().collect::<Vec<_>>()[1..],
        ["  /nowhere/gateway.toml cannot be read: it is not there", "  gateway2.toml cannot be read: it is not there"],
        "{text}"
    );
    let path = folder.path().to_str().expect("a plain path");
    let text = run(&["check", "--config", path], &[]);
    let text = String::from_utf8_lossy(&text.stderr);
    assert!(text.contains(&format!("{path} cannot be read: it is a folder")), "{text}");
}

/// Each value with which the gateway cannot work, how the message begins, and the nearest value that is good.
/// Whatever a setting names is read at once or not at all: who opens a pipe waits, and some devices have no end.
#[test]
fn a_file_that_is_none_is_a_fault_and_hangs_nothing() {
    let (hub, folder) = (datahub(), Folder::default());
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("coreutils").success());
    let pipe = pipe.to_str().expect("a plain path");
    let long = folder.file("long", &"# a comment\n".repeat(100_000));
    let long = long.to_str().expect("a plain path");
    let keys = folder.file("keys", &new_key());
    symlink(&keys, folder.path().join("link")).expect("a folder of our own");
    let with_keys = |path: &Path| format!("session.keys_file = {path:?}\n{}", section("a", &hub));
    let good = with_keys(&keys);
    let (url, client) = (hub.url(), hub.client_id());
    let jwt = "bridge.url = \"http://127.0.0.1:1\"\nbridge.jwt_key_file";
    let secret = format!("datahubs.b = {{ url = {url:?}, client_id = {client:?}, client_secret_file");
    let ca =
        format!("datahubs.b = {{ url = {url:?}, client_id = {client:?}, client_secret = \"{client:0<32}\", ca_file");
    for (file, kind) in [(pipe, "it is a pipe"), ("/dev/zero", "it is a device"), (long, "it is longer than 1 MiB")] {
        for (key, config) in [
            ("session.keys_file", with_keys(Path::new(file))),
            ("datahubs.b.client_secret_file", format!("{good}{secret} = {file:?} }}")),
            ("datahubs.b.ca_file", format!("{good}{ca} = {file:?} }}")),
            ("bridge.jwt_key_file", format!("{good}{jwt} = {file:?}\nbridge.fernet_key_file = {keys:?}")),
            ("bridge.fernet_key_file", format!("{good}{jwt} = {keys:?}\nbridge.fernet_key_file = {file:?}")),
        ] {
            let path = folder.file("gateway.toml", &config);
            for command in ["check", "serve"] {
                let (status, told) = within_seconds(&[command, "--config", path.to_str().expect("a plain path")]);
                assert_eq!(status, Some(EX_CONFIG), "{command} {key} {file}: {told}");
                assert!(told.contains(&format!("{key} cannot be read: {kind}")), "{command} {key}: {told}");
            }
        }
        for command in ["check", "serve", "health", "inspect"] {
            let (status, told) = within_seconds(&[command, "--config", file]);
            assert_eq!(status, Some(EX_CONFIG), "{command} {file}: {told}");
            assert!(told.contains(&format!("{file} cannot be read: {kind}")), "{command}: {told}");
        }
    }
    // The twin: what Kubernetes mounts is links.
    let path = folder.file("gateway.toml", &with_keys(&folder.path().join("link")));
    symlink(&path, folder.path().join("link.toml")).expect("a folder of our own");
    let link = folder.path().join("link.toml");
    let (status, told) = within_seconds(&["check", "--config", link.to_str().expect("a plain path")]);
    assert_eq!(status, Some(0), "{told}");
}

/// The exit status of a command and what it said; none if it has not ended after some seconds.
fn within_seconds(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary is built");
    let until = Instant::now() + Duration::from_secs(5);
    while child.try_wait().expect("our own child").is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_will_not_work_is_refused_and_what_is_next_to_it_taken() {
    let hub = datahub();
    let (key, folder) = (new_key(), Folder::default());
    folder.file("index.html", "the app");
    let (dir, a) = (folder.path().to_str().expect("a plain path"), section("a", &hub));
    let (url, client) = (hub.url(), hub.client_id());
    let b = |lines: &str| {
        format!("datahubs.b = {{ url = {url:?}, client_id = \"b\", client_secret = \"0123456789abcdef\", {lines} }}")
    };
    let b_with = |client: &str, secret: &str| {
        format!("datahubs.b = {{ url = {url:?}, client_id = {client:?}, client_secret = {secret:?} }}")
    };
    let app = |url: &str| format!("app.dir = {dir:?}\napp.url = {url:?}");
    let socket = |length: usize| format!("server.listen = [\"unix:/{}\"]", "a".repeat(length - 1));
    let plain = |line: &str| line.to_owned();
    let rows = [
        (
            plain("server.workers = 513"),
            "server.workers must be a whole number from 0 to 512",
            plain("server.workers = 512"),
        ),
        (plain("server.workers = 100000"), "server.workers must be a whole number", plain("server.workers = 1")),
        (
            plain("server.listen = [\"*:8000\"]"),
            "server.listen must name an address: 0.0.0.0",
            plain("server.listen = [\"0.0.0.0:0\"]"),
        ),
        (
            plain("server.listen = [\":8000\"]"),
            "server.listen must be host:port",
            plain("server.listen = [\"[::1]:0\"]"),
        ),
        (
            plain("server.listen = [\"http://localhost:8000\"]"),
            "server.listen must be host:port",
            plain("server.listen = [\"localhost:0\"]"),
        ),
        (
            socket(108),
            "server.listen must be a shorter path",
            plain("server.listen = [\"unix:/tmp/gateway-check.sock\"]"),
        ),
        (
            plain("server.listen = [\"unix:/run/\"]"),
            "server.listen must be host:port or unix:/path",
            plain("server.listen = []"),
        ),
        (
            plain("server.listen = [\"127.0.0.1:8765\", \"127.0.0.1:8765\"]"),
            "server.listen names one place twice",
            plain("server.listen = [\"127.0.0.1:8765\", \"127.0.0.1:8766\"]"),
        ),
        (
            plain("server.listen = [\"0.0.0.0:8765\", \"127.0.0.1:8765\"]"),
            "server.listen names one place twice",
            plain("server.listen = [\"0.0.0.0:0\", \"127.0.0.1:0\"]"),
        ),
        (
            plain("server.listen = [\"localhost:8765\", \"localhost:8765\"]"),
            "server.listen names one place twice",
            plain("server.listen = [\"127.0.0.1:8765\", \"[::1]:8765\"]"),
        ),
        (
            plain("server.listen = [\"127.0.0.1:9000\"]"),
            "admin.listen is where server.listen is",
            plain("server.listen = [\"127.0.0.1:9000\"]\nadmin.listen = \"none\""),
        ),
        (
            plain("server.listen = [\"unix:/tmp/a\"]\nadmin.listen = \"unix:/tmp/a\""),
            "admin.listen is where",
            plain("server.listen = [\"unix:/tmp/a\"]\nadmin.listen = \"unix:/tmp/b\""),
        ),
        (
            plain("admin.listen = \"*:9000\""),
            "admin.listen must name an address",
            plain("admin.listen = \"127.0.0.1:0\""),
        ),
        (
            plain("server.public_url = \"https://a.example/app\""),
            "server.public_url must be scheme, host and port",
            plain("server.public_url = \"https://a.example\""),
        ),
        (
            plain("server.public_url = \"https://a.example:0\""),
            "server.public_url must be scheme, host and port",
            plain("server.public_url = \"https://a.example:1\""),
        ),
        (
            plain("server.public_url = \"a.example\""),
            "server.public_url must be a URL such as",
            plain("server.public_url = \"https://a.example/\""),
        ),
        (
            plain("server.public_url = \"https://:pass@a.example\""),
            "server.public_url must be scheme, host",
            plain("server.public_url = \"https://a.example:8443\""),
        ),
        (
            plain("server.base_path = \"\"\napp.url = \"/\""),
            "server.base_path is where the app is",
            plain("server.base_path = \"\"\napp.url = \"/app/\""),
        ),
        (
            plain("server.base_path = \"/app\"\napp.url = \"/app/index.html\""),
            "server.base_path is where the app is",
            plain("server.base_path = \"/app\"\napp.url = \"/\""),
        ),
        (
            format!("server.base_path = \"\"\n{}", app("/app/")),
            "app.url is below server.base_path",
            format!("server.base_path = \"/api\"\n{}", app("/")),
        ),
        (
            format!("server.base_path = \"/api\"\n{}", app("/api/app/")),
            "app.url is below server.base_path",
            format!("server.base_path = \"/api\"\n{}", app("/apis/app/")),
        ),
        (
            plain("server.base_path = \"/a/../b\""),
            "server.base_path must be a path",
            plain("server.base_path = \"/a/..b\""),
        ),
        (
            format!("server.base_path = \"/{}\"", "a".repeat(200)),
            "server.base_path must be a path",
            format!("server.base_path = \"/{}\"", "a".repeat(199)),
        ),
        (plain("app.url = \"/app/#top\""), "app.url must be a path such as /app/", plain("app.url = \"/app/?top\"")),
        (
            plain("app.url = \"https://a.example/#a\""),
            "app.url must be a path",
            plain("app.url = \"https://a.example/a\""),
        ),
        (plain("app.url = \"/app\\nx/\""), "app.url must be a path", plain("app.url = \"/appx/\"")),
        (
            plain("app.url = \"/app\\r\\nSet-Cookie: a=b\""),
            "app.url must be a path",
            plain("app.url = \"/appSet-Cookie:a=b\""),
        ),
        (plain("app.url = \"/a b/\""), "app.url must be a path", plain("app.url = \"/a%20b/\"")),
        (plain("app.url = \"/ä/\""), "app.url must be a path", plain("app.url = \"/%C3%A4/\"")),
        (plain("app.url = \"/a\\\\b\""), "app.url must be a path", plain("app.url = \"/a/b\"")),
        (
            plain("app.dev_origins = [\"localhost\"]"),
            "app.dev_origins must be origins",
            plain("app.dev_origins = [\"http://localhost:5173\"]"),
        ),
        (plain("app.arcmanager = \"yes\""), "app.arcmanager must be true or false", plain("app.arcmanager = \"true\"")),
        (plain("proxy.graphql = 1"), "proxy.graphql must be true or false", plain("proxy.graphql = false")),
        (
            plain("session.max_age = \"999ms\""),
            "session.max_age must be 1s at least",
            plain("session.max_age = \"1s\""),
        ),
        (
            plain("session.idle_timeout = \"1ms\""),
            "session.idle_timeout must be 1s at least",
            plain("session.idle_timeout = \"1s\""),
        ),
        (plain("limits.fields = 0"), "limits.fields must be a whole number from 8 to 128", plain("limits.fields = 8")),
        (
            plain("limits.head = \"1B\""),
            "limits.head must be a size from 1KiB to 1024KiB",
            plain("limits.head = \"1KiB\""),
        ),
        (plain("limits.head = \"1GiB\""), "limits.head must be a size from 1KiB", plain("limits.head = \"1MiB\"")),
        (
            plain("limits.target = \"100B\""),
            "limits.target must be a size from 1KiB",
            plain("limits.target = \"1KiB\""),
        ),
        (
            plain("limits.body = \"0\""),
            "limits.body must be more than none: 0 is not \"no limit\"",
            plain("limits.body = \"1B\""),
        ),
        (
            plain("limits.in_flight = 0"),
            "limits.in_flight must be a whole number from 1",
            plain("limits.in_flight = 1"),
        ),
        (
            plain("timeouts.connect = \"9ms\""),
            "timeouts.connect must be 10ms at least",
            plain("timeouts.connect = \"10ms\""),
        ),
        (plain("timeouts.token = \"1ns\""), "timeouts.token must be 10ms at least", plain("timeouts.token = \"10s\"")),
        (
            plain("log.level = \"loud\""),
            "log.level must be off, error, warn, info, debug or trace",
            plain("log.level = \"WARN\""),
        ),
        (
            b_with("", "0123456789abcdef"),
            "datahubs.b.client_id must be the Application ID",
            b_with("x", "0123456789abcdef"),
        ),
        (
            b_with("a b", "0123456789abcdef"),
            "datahubs.b.client_id must be the Application ID",
            b_with("a_b", "0123456789abcdef"),
        ),
        (
            b_with("b", "01234567\n89abcdef"),
            "datahubs.b.client_secret must be one line",
            b_with("b", "0123456789abcdef"),
        ),
        (
            b_with("b", "0123456789 abcdef"),
            "datahubs.b.client_secret must be one line",
            b_with("b", "0123456789~abcdef"),
        ),
        (b("scopes = [\"api\"]"), "datahubs.b.scopes must hold openid", b("scopes = [\"openid\", \"api\"]")),
        (
            b("scopes = [\"openid profile api\"]"),
            "datahubs.b.scopes must be a list such as",
            b("scopes = \"openid,profile,api\""),
        ),
        (
            b("redirect_uri = \"/auth/callback\""),
            "datahubs.b.redirect_uri must be a URL",
            b("redirect_uri = \"http://localhost:8000/auth/callback\""),
        ),
        (
            b("redirect_uri = \"http://localhost:8000/#a\""),
            "datahubs.b.redirect_uri must be a URL",
            b("redirect_uri = \"http://localhost:8000/a\""),
        ),
        (
            b("redirect_uri = \"http://localhost:8000/a\\nb\""),
            "datahubs.b.redirect_uri must be a URL",
            b("redirect_uri = \"http://localhost:8000/ab\""),
        ),
        // **Seen**: a username was taken, and the person stayed in.
        (
            b("not_before_users = { canary = 2026-01-01T00:00:00Z }"),
            "datahubs.b.not_before_users must name people by GitLab's number of them, such as \"7\"",
            b("not_before_users = { 7 = 2026-01-01T00:00:00Z, \"18446744073709551615\" = \"2026-01-01T00:00:00Z\" }"),
        ),
        (
            b("not_before_users = { \"007\" = 2026-01-01T00:00:00Z }"),
            "datahubs.b.not_before_users must name people by",
            b("not_before_users = {}"),
        ),
        (b("issuer = \"gitlab\""), "datahubs.b.issuer must be a URL such as", b("issuer = \"http://127.0.0.1:1\"")),
        (b("connect = \"*:443\""), "datahubs.b.connect must name an address", b("connect = \"127.0.0.1:1\"")),
        (b("connect = \"127.0.0.1:0\""), "datahubs.b.connect must name a port", b("connect = \"[::1]:1\"")),
        (b("anonymous = \"maybe\""), "datahubs.b.anonymous must be true or false", b("anonymous = false")),
    ];
    assert!(rows.iter().all(|(bad, _, _)| !bad.contains(client)), "the table makes its own clients");
    let told = |lines: &str| {
        let output = started_with(&format!("session.keys = [{key:?}]\n{lines}\n{a}"), &[]);
        (output.status.code(), String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned())
    };
    let mut wrong = Vec::new();
    for (bad, message, good) in rows {
        let (code, text) = told(&bad);
        let is_told = text.lines().any(|line| line.strip_prefix("  ").is_some_and(|line| line.starts_with(message)));
        if code != Some(EX_CONFIG) || !is_told || text.lines().count() != 2 {
            wrong.push(format!("{bad:?} is {code:?}: {text}"));
        }
        let (_, text) = told(&good);
        if !text.starts_with("configuration: good\n") && !text.contains("\nconfiguration: good\n") {
            wrong.push(format!("{good:?} is refused: {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whoever knows its name would be given it.
#[test]
fn the_folder_of_the_app_holds_nothing_that_the_gateway_reads_for_itself() {
    let (hub, app, apart) = (datahub(), Folder::default(), Folder::default());
    for folder in [&app, &apart] {
        folder.file("index.html", "the app");
        folder.file("keys", &new_key());
    }
    let dir = app.path().to_str().expect("a plain path");
    let told = |folder: &Folder, keys: &Folder| {
        let keys = keys.path().join("keys");
        let lines = format!("session.keys_file = {keys:?}\napp.dir = {dir:?}\n{}", section("a", &hub));
        let file = folder.file("gateway.toml", &lines);
        let output = run(&["check", "--config", file.to_str().expect("a plain path")], &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let fault = "\n  app.dir holds the gateway's own configuration or keys: whoever asks for that file would get it\n";
    for (folder, keys) in [(&app, &apart), (&apart, &app)] {
        let (code, text) = told(folder, keys);
        assert!(code == Some(EX_CONFIG) && text.contains(fault), "{text}");
    }
    let (code, text) = told(&apart, &apart);
    assert_eq!(code, Some(0), "{text}");
}

/// It works, and yet it is seldom what somebody wants.
#[test]
fn what_works_and_is_seldom_meant_is_a_warning() {
    let hub = datahub();
    let (key, a) = (new_key(), section("a", &hub));
    let (url, client, secret) = (hub.url(), hub.client_id(), hub.client_secret());
    let b = |lines: &str| {
        format!("datahubs.b = {{ url = {url:?}, client_id = \"b\", client_secret = \"0123456789abcdef\", {lines} }}")
    };
    let twin = format!("datahubs.b = {{ url = \"{url}/\", client_id = {client:?}, client_secret = {secret:?} }}");
    for (lines, warning) in [
        ("server.trusted_proxies = [\"0.0.0.0/0\"]".to_owned(), "server.trusted_proxies names all addresses"),
        ("server.trusted_proxies = [\"::/0\"]".to_owned(), "server.trusted_proxies names all addresses"),
        ("limits.head = \"4KiB\"".to_owned(), "limits.head is less than 8KiB"),
        ("limits.fields = 31".to_owned(), "limits.fields is less than 32"),
        ("app.url = \"https://app.example/\"".to_owned(), "app.url is on another origin"),
        ("app.dir = \"/proc/self/fd\"".to_owned(), "app.dir holds no index.html"),
        (b("scopes = [\"openid\"]"), "datahubs.b.scopes hold neither api nor read_api"),
        (
            b("redirect_uri = \"https://elsewhere.example/callback\""),
            "datahubs.b.redirect_uri is not at server.public_url",
        ),
        (
            b("redirect_uri = \"http://localhost:8000/x\""),
            "datahubs.b.redirect_uri is not /arcmanager/api/v1/auth/callback?datahub=b, where logins end",
        ),
        (
            b("redirect_uri = \"http://localhost:8000/arcmanager/api/v1/auth/callback?datahub=a\""),
            "datahubs.b.redirect_uri is not /arcmanager/api/v1/auth/callback?datahub=b, where logins end",
        ),
        (twin, "datahubs.b has the url and client_id of another DataHUB"),
    ] {
        let output = started_with(&format!("session.keys = [{key:?}]\n{lines}\n{a}"), &[]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_ne!(output.status.code(), Some(2));
        assert!(text.contains(&format!("\nwarning: {warning}")), "{lines}: {text}");
    }
    let good = "server.trusted_proxies = [\"10.0.0.0/8\"]\nlimits = { head = \"8KiB\", fields = 32 }\n\
        app = { url = \"http://localhost:5173/\", dev_origins = [\"http://localhost:5173\"] }";
    let own = b("redirect_uri = \"http://localhost:8000/arcmanager/api/v1/auth/callback?datahub=b\"");
    let output = started_with(&format!("session.keys = [{key:?}]\n{good}\n{own}\n{a}"), &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    let is_of_it = |line: &&str| line.starts_with("warning: ") && !line.contains("open files");
    assert_eq!(text.lines().find(is_of_it), None, "{text}");
}

/// One that would set a key is a fault: what it says would be ignored without a word.
#[test]
fn a_variable_with_one_underscore_is_named_with_its_right_spelling() {
    let hub = datahub();
    let config = format!("session.keys = [{:?}]\n{}", new_key(), section("a", &hub));
    let told = |name: &str| {
        let output = started_with(&config, &[(name, "canary-canary-canary")]);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!text.contains("canary"), "{text}");
        (output.status.code(), text)
    };
    for (name, spelled) in [
        ("GATEWAY_SERVER_PUBLIC_URL", "GATEWAY__SERVER__PUBLIC_URL"),
        ("GATEWAY_SERVER__PUBLIC_URL", "GATEWAY__SERVER__PUBLIC_URL"),
        ("GATEWAY_SERVER_LISTEN", "GATEWAY__SERVER__LISTEN"),
        ("GATEWAY__SERVER_LISTEN", "GATEWAY__SERVER__LISTEN"),
        ("GATEWAY__RATE_LIMIT_LOGIN", "GATEWAY__RATE_LIMIT__LOGIN"),
        ("GATEWAY__DATAHUBS_NEW_URL", "GATEWAY__DATAHUBS__ID__KEY"),
        ("gateway_log_level", "GATEWAY__LOG__LEVEL"),
        ("GATEWAY_SESSION_KEYS_FILE", "GATEWAY__SESSION__KEYS_FILE"),
        ("GATEWAY_DATAHUBS_A_CLIENT_SECRET", "GATEWAY__DATAHUBS__A__CLIENT_SECRET"),
        ("GATEWAY_DATAHUBS_NEW_URL", "GATEWAY__DATAHUBS__ID__KEY"),
    ] {
        let (code, text) = told(name);
        let line = format!("\n  {name} is not read: write {spelled}, with two underscores");
        assert!(code == Some(EX_CONFIG) && text.contains(&line), "{name}: {text}");
    }
    let (code, text) = told("GATEWAY_URL");
    assert!(code == Some(0) && text.contains("\nwarning: GATEWAY_URL is not read"), "{text}");
    // What Kubernetes says of a Service of that name.
    for name in [
        "GATEWAY_SERVICE_HOST",
        "GATEWAY_PORT",
        "GATEWAY_PORT_8000_TCP_ADDR",
        "GATEWAYS",
        "PATH",
        "A_GATEWAY_LOG_LEVEL",
    ] {
        let (code, text) = told(name);
        assert!(code == Some(0) && !text.contains(name), "{name}: {text}");
    }
    for name in ["GATEWAY__", "GATEWAY__SERVER__", "GATEWAY____SERVER", "GATEWAY__NO_SUCH", "GATEWAY__A_PORT"] {
        let (code, text) = told(name);
        assert!(code == Some(EX_CONFIG) && text.contains(&format!("\n  {name} is no name of a key")), "{name}: {text}");
    }
    let output = std::process::Command::new(binary())
        .args(["check"])
        .env_clear()
        .env("GATEWAY__LOG__LEVEL", OsStr::from_bytes(b"canary\xff"))
        .output()
        .expect("the binary is built");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("\n  GATEWAY__LOG__LEVEL is no UTF-8 text") && !text.contains("canary"), "{text}");
}

#[test]
fn a_key_that_is_unknown_is_told_with_the_one_that_may_be_meant() {
    let hub = datahub();
    let (key, a) = (new_key(), section("a", &hub));
    for (line, told) in [
        ("server.listn = \"x\"", "server.listn is no key of this gateway: is server.listen meant?"),
        ("sever.listen = [\"x\"]", "sever is no key of this gateway: is server meant?"),
        ("session.key_file = \"x\"", "session.key_file is no key of this gateway: is session.keys_file meant?"),
        (
            "datahubs.b = { url = \"https://b.example\", client-id = \"b\" }",
            "datahubs.b.client-id is no key of this gateway: is datahubs.b.client_id meant?",
        ),
        ("public_url = \"https://a.example\"", "public_url is no key of this gateway: is server.public_url meant?"),
        ("server.graphql = true", "server.graphql is no key of this gateway: is proxy.graphql meant?"),
        ("server.surprise = true", "server.surprise is no key of this gateway"),
    ] {
        let output = started_with(&format!("session.keys = [{key:?}]\n{line}\n{a}"), &[]);
        let text = String::from_utf8_lossy(&output.stderr);
        let is_told = text.lines().any(|line| line == format!("  {told}"));
        assert!(output.status.code() == Some(EX_CONFIG) && is_told, "{line}: {text}");
    }
}

#[test]
fn a_section_that_is_missing_or_none_is_one_fault() {
    let key = new_key();
    for (lines, told) in [
        ("", "datahubs is missing: each DataHUB needs a section, such as [datahubs.tuebingen]"),
        ("datahubs = 1", "datahubs must be a section"),
        ("datahubs.a = 1", "datahubs.a must be a section, such as [datahubs.a]"),
        (
            "server = 1\ndatahubs.a = { url = \"https://a.example\", client_id = \"a\", client_secret = \"0123456789abcdef\" }",
            "server must be a section",
        ),
    ] {
        let output = started_with(&format!("session.keys = [{key:?}]\n{lines}\n"), &[]);
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.len() == 2 && lines[1].starts_with(&format!("  {told}")), "{text}");
    }
}

#[test]
fn weak_and_double_keys_are_refused_and_good_ones_taken() {
    let hub = datahub();
    let datahub = section("a", &hub);
    let (one, other) = (new_key(), new_key());
    let with = |keys: &[&str]| started_with(&format!("session.keys = {keys:?}\n{datahub}"), &[]).status.code();
    assert_eq!(with(&[&one]), Some(0));
    assert_eq!(with(&[&one, &other]), Some(0));
    assert_eq!(with(&[&one, &one]), Some(EX_CONFIG));
    assert_eq!(with(&["changeme"]), Some(EX_CONFIG));
    assert_eq!(with(&[&one[..40]]), Some(EX_CONFIG));
    assert_eq!(with(&[]), Some(EX_CONFIG));

    let folder = Folder::default();
    let file = folder.file("keys", &format!("# the newest first\n{one} # of today\n\n{other}\n"));
    let keys_file = format!("session.keys_file = {file:?}\n{datahub}");
    assert_eq!(started_with(&keys_file, &[]).status.code(), Some(0));
    folder.file("keys", &format!("{one}\nchangeme\n"));
    let told = started_with(&keys_file, &[]);
    assert!(
        told.status.code() == Some(EX_CONFIG)
            && String::from_utf8_lossy(&told.stderr).contains("session.keys_file line 2")
    );
}

/// CF-02: no secret has a default that would do.
#[test]
fn a_secret_that_is_missing_or_weak_stops_the_start() {
    let hub = datahub();
    let (good, folder, key) = (section("a", &hub), Folder::default(), new_key());
    let keys = format!("session.keys = [{key:?}]\n");
    let empty = folder.file("empty", "\n");
    let client = |secret: &str| {
        let (url, id) = (hub.url(), hub.client_id());
        format!("{keys}datahubs.a = {{ url = {url:?}, client_id = {id:?}{secret} }}\n")
    };
    for (case, config, told) in [
        ("no key", good.clone(), "session.keys_file or keys must hold a key"),
        ("no key in the list", format!("session.keys = []\n{good}"), "session.keys"),
        ("an empty key", format!("session.keys = [\"\"]\n{good}"), "session.keys"),
        ("a short key", format!("session.keys = [{:?}]\n{good}", &key[..40]), "session.keys"),
        ("a word", format!("session.keys = [\"canary\"]\n{good}"), "session.keys"),
        ("a key twice", format!("session.keys = [{key:?}, {key:?}]\n{good}"), "session.keys holds the same key twice"),
        ("no file of keys", format!("session.keys_file = \"/canary\"\n{good}"), "session.keys_file"),
        ("an empty file of keys", format!("session.keys_file = {empty:?}\n{good}"), "session.keys"),
        ("no client secret", client(""), "datahubs.a.client_secret or client_secret_file is missing"),
        ("an empty one", client(", client_secret = \"\""), "datahubs.a.client_secret is too short"),
        ("a short one", client(", client_secret = \"canary\""), "datahubs.a.client_secret is too short"),
        ("no file of one", client(", client_secret_file = \"/canary\""), "datahubs.a.client_secret_file"),
        ("an empty file of one", client(&format!(", client_secret_file = {empty:?}")), "datahubs.a.client_secret"),
        (
            "two of them",
            client(&format!(", client_secret = \"canary-canary-canary\", client_secret_file = {empty:?}")),
            "datahubs.a.client_secret and client_secret_file must not both be set",
        ),
    ] {
        let output = started_with(&config, &[]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EX_CONFIG), "{case}: {text}");
        assert!(text.lines().any(|line| line.trim_start().starts_with(told)), "{case}: {text}");
        assert!(!text.contains("canary") && !text.contains(&key[..40]), "{case}: {text}");
    }
    assert_eq!(started_with(&format!("{keys}{good}"), &[]).status.code(), Some(0));
}

/// CS-04: script of a development server is let in on the machine of whoever develops, and nowhere else.
/// As systemd hands them over: each by itself, or all of a folder, whose name stands before theirs.
#[test]
fn keys_and_secrets_come_from_the_credentials_where_nothing_else_is_said() {
    let (hub, longer) = (datahub(), datahub());
    let without_secret = |id: &str, hub: &DataHub| {
        let (url, client) = (hub.url(), hub.client_id());
        format!("datahubs.{id} = {{ url = {url:?}, client_id = {client:?} }}\n")
    };
    let config = without_secret("a", &hub) + &without_secret("b_a", &longer);
    let (key, other, [a, b_a]) = (new_key(), new_key(), [hub.client_secret(), longer.client_secret()]);
    let check = |files: &[(&str, &str)], config: &str| {
        let folder = Folder::default();
        for (name, text) in files {
            folder.file(name, &format!("{text}\n"));
        }
        let output = started_with(config, &[("CREDENTIALS_DIRECTORY", folder.path().to_str().expect("a plain path"))]);
        let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(![&key[..], &other, a, b_a].iter().any(|secret| told.contains(secret)), "{told}");
        (output.status.code(), told)
    };
    // The DataHUBs themselves say whether the secret is theirs.
    let said = format!("session.keys = [{key:?}]\n{}{}", section("a", &hub), section("b_a", &longer));
    for (files, config) in [
        (&[("keys", &key[..]), ("a.secret", a), ("b_a.secret", b_a)], &config),
        (&[("g_keys", &key), ("g_a.secret", a), ("g_b_a.secret", b_a)], &config),
        (&[("keys", "canary"), ("a.secret", "canary"), ("g_a.secret", "canary")], &said),
    ] {
        let (code, told) = check(files, config);
        let is_good =
            ["configuration: good", "a: good", "b_a: good"].iter().all(|line| told.lines().any(|it| it == *line));
        assert!(code == Some(0) && is_good, "{code:?} {told}");
    }

    for (case, files, told) in [
        (
            "another's, whose name ends alike",
            vec![("g_keys", &key[..]), ("g_b_a.secret", b_a)],
            "datahubs.a.client_secret or client_secret_file is missing, and $CREDENTIALS_DIRECTORY has no file a.secret",
        ),
        (
            "two that fit",
            vec![("keys", &key), ("g_a.secret", a), ("h_a.secret", a), ("b_a.secret", b_a)],
            "datahubs.a.client_secret or client_secret_file is missing, and $CREDENTIALS_DIRECTORY must have only one of \
             g_a.secret, h_a.secret",
        ),
        (
            "two rings",
            vec![("keys", &key), ("g_keys", &other), ("a.secret", a), ("b_a.secret", b_a)],
            "session.keys_file or keys must hold a key, and $CREDENTIALS_DIRECTORY must have only one of g_keys, keys",
        ),
        (
            "no ring",
            vec![("a.secret", a), ("b_a.secret", b_a)],
            "session.keys_file or keys must hold a key, and $CREDENTIALS_DIRECTORY has no file keys or NAME_keys",
        ),
        ("a weak ring", vec![("keys", "canary"), ("a.secret", a), ("b_a.secret", b_a)], "session.keys_file line 1"),
    ] {
        let (code, text) = check(&files, &config);
        assert_eq!(code, Some(EX_CONFIG), "{case}: {text}");
        assert!(text.lines().any(|line| line.trim_start().starts_with(told)), "{case}: {text}");
        assert_eq!(text.lines().count(), 2, "{case}: {text}");
    }

    for (folder, told) in [("/nowhere", "cannot be read"), ("", "is not set")] {
        let output = started_with(&config, &[("CREDENTIALS_DIRECTORY", folder)]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(EX_CONFIG) && text.matches(told).count() == 3, "{text}");
    }
}

#[test]
fn a_development_origin_is_refused_in_production() {
    let hub = datahub();
    let told = |public_url: &str, origin: &str| {
        let (key, datahub) = (new_key(), section("a", &hub));
        let lines = format!("server.public_url = {public_url:?}\napp.dev_origins = [{origin:?}]\n");
        let output = started_with(&format!("session.keys = [{key:?}]\n{lines}{datahub}"), &[]);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for origin in
        ["http://localhost:5173", "https://nfdi4plants.de:5173", "https://nfdi4plants.de/arcmanager/app/index.html"]
    {
        let (code, told) = told("https://nfdi4plants.de", origin);
        assert!(code == Some(EX_CONFIG) && told.contains("  app.dev_origins must be "), "{origin}: {told}");
    }
    let (code, told) = told("http://localhost:8000", "http://localhost:5173");
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn the_environment_comes_last_and_its_lists_have_commas() {
    let hub = datahub();
    let key = new_key();
    let environment = [
        ("GATEWAY__SESSION__KEYS", key.as_str()),
        ("GATEWAY__SERVER__LISTEN", "127.0.0.1:0, 127.0.0.1:0"),
        ("GATEWAY__DATAHUBS__A__URL", hub.url()),
        ("GATEWAY__DATAHUBS__A__CLIENT_ID", hub.client_id()),
        ("GATEWAY__DATAHUBS__A__CLIENT_SECRET", hub.client_secret()),
        ("GATEWAY__DATAHUBS__A__ALIASES", "x,y"),
    ];
    let output = started_with("log.level = \"warn\"\nsession.keys = [\"changeme\"]\n", &environment);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.starts_with("configuration: good\n") && told.contains("\na: good\n"), "{told}");
    assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{told}");
    let typo = started_with("", &[&environment[..], &[("GATEWAY__SERVER__PUBLIC_URI", "x")]].concat());
    assert!(String::from_utf8_lossy(&typo.stderr).contains("server.public_uri"));
}

#[test]
fn the_command_line_helps() {
    let help = run(&["--help"], &[]);
    let text = String::from_utf8_lossy(&help.stdout);
    for word in ["serve", "check", "key", "health", "--config", "GATEWAY__", "78"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    for (command, word) in [
        ("serve", "server.shutdown_timeout"),
        ("check", "--against <URL>"),
        // Never appended to the keys of one machine: that is the outage of docs/operate.md.
        ("key", "Example: (umask 077; arcmanager-gateway key > new-key)"),
        ("inspect", "< cookie.txt"),
        ("policy", "policy GET /api/v4/projects"),
        ("openapi", "arcmanager-gateway openapi > openapi.json"),
        ("health", "78 admin.listen cannot be read"),
    ] {
        let text = run(&[command, "--help"], &[]);
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains(word) && text.contains("--config <FILE>"), "{word} is not in\n{text}");
    }
    let keys = [new_key(), new_key()];
    assert!(keys[0] != keys[1] && keys.iter().all(|key| key.len() == 44));
    assert_eq!(run(&["sevre"], &[]).status.code(), Some(2));
}

#[test]
fn health_asks_a_running_gateway() {
    let hub = datahub();
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let folder = Folder::default();
    let config = format!(
        "session.keys = [{:?}]\nadmin.listen = \"{free}\"\nserver.listen = [\"127.0.0.1:0\"]\n{}",
        new_key(),
        section("a", &hub)
    );
    let file = folder.file("gateway.toml", &config);
    let ask = || run(&["health", "--config", file.to_str().expect("a plain path")], &[]).status.code();
    assert_eq!(ask(), Some(1), "nobody is there");
    let mut child = std::process::Command::new(binary())
        .arg("--config")
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("the binary is built");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while ask() != Some(0) {
        assert!(std::time::Instant::now() < until, "it never became healthy");
    }
    signal("TERM", child.id());
    assert!(child.wait().expect("our own child").success());
}
