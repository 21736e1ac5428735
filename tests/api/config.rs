//! What operators say, and what they are told.

use std::process::Output;

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
        assert!(code == Some(0) && !told.contains("trusted_proxies"), "{good}: {told}");
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

#[test]
fn a_file_that_is_no_toml_is_said_without_quoting_it() {
    let told = started_with("session.keys = [\"canary\n", &[]);
    let text = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.code() == Some(EX_CONFIG) && text.contains("line") && !text.contains("canary"), "{text}");
    let missing = run(&["check", "--config", "/nowhere/gateway.toml"], &[]);
    assert!(
        missing.status.code() == Some(EX_CONFIG)
            && String::from_utf8_lossy(&missing.stderr).contains("/nowhere/gateway.toml")
    );
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
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "configuration: good\na: good\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let typo = started_with("", &[&environment[..], &[("GATEWAY__SERVER__PUBLIC_URI", "x")]].concat());
    assert!(String::from_utf8_lossy(&typo.stderr).contains("server.public_uri"));
}

#[test]
fn check_asks_every_datahub() {
    let (good, gone) = (datahub(), datahub());
    let config = format!("session.keys = [{:?}]\n{}{}", new_key(), section("good", &good), section("gone", &gone));
    drop(gone);
    let output = started_with(&config, &[]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("good: good\n") && told.contains("gone: cannot fetch the metadata"), "{told}");
}

#[test]
fn the_command_line_helps() {
    let help = run(&["--help"], &[]);
    let text = String::from_utf8_lossy(&help.stdout);
    for word in ["serve", "check", "key", "health", "--config", "GATEWAY__", "78"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
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
