//! `check`, line by line: whether the gateway would work, and what to do where it would not.

use std::fs::{self, Permissions};
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use datahub::behaviour::Answer;

use crate::gateway::{Folder, Setup, binary, datahub, new_key, run};

/// Exit status, standard output, standard error.
type Told = (Option<i32>, String, String);

fn check(setup: &Setup, more: &[&str]) -> Told {
    let file = setup.write();
    let arguments = [&["check", "--config", file.to_str().expect("a plain path")], more].concat();
    let output = run(&arguments, &[]);
    let [told, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    (output.status.code(), told, errors)
}

/// The lines that begin so.
fn lines<'a>(told: &'a str, start: &str) -> Vec<&'a str> {
    told.lines().filter(|line| line.starts_with(start)).collect()
}

#[test]
fn it_says_a_line_about_each_thing_and_what_a_front_must_do() {
    let hub = datahub();
    let (one, other) = (new_key(), new_key());
    let setup = Setup::with_keys(&[("a", &hub)], &[&one, &other]).listening_at("127.0.0.1:0");
    let (code, told, errors) = check(&setup, &[]);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{told}");
    let [keys] = lines(&told, "keys: ")[..] else { panic!("{told}") };
    let words: Vec<_> = keys.split(' ').collect();
    assert!(
        words[2..] == ["seals,", words[3], "unseal", "too"] && words[1].len() == 8 && words[3].len() == 8,
        "{keys}"
    );
    for line in [
        "configuration: good",
        "server.listen 127.0.0.1:0: free",
        "admin.listen 127.0.0.1:0: free",
        "a: good",
        "a: its application there must have the redirect URI http://localhost:8000/arcmanager/api/v1/auth/callback?datahub=a",
        "front: Host must arrive as localhost:8000 (nginx: proxy_set_header Host $http_host;)",
        "app: people land at http://localhost:8000/arcmanager/app/, which something in front of the gateway must serve",
    ] {
        assert!(told.lines().any(|other| other == line), "{line}\nis not in\n{told}");
    }
    let front = lines(&told, "front: ");
    assert!(
        front[0].starts_with("front: behind one over TCP without server.trusted_proxies all people share one login")
    );
    assert!(
        front[2].contains("proxy_set_header X-Forwarded-For $remote_addr;") && front[2].contains("unix sockets alone")
    );

    let (_, told, _) = check(&setup.clone().and("server.trusted_proxies = [\"10.0.0.0/8\", \"192.0.2.1\"]"), &[]);
    let front = lines(&told, "front: ");
    assert!(front.len() == 2 && front[1].contains("from unix sockets, 10.0.0.0/8, 192.0.2.1 alone"), "{told}");
    let (_, told, _) = check(&setup.listening_at("unix:/tmp/arcmanager-gateway-check-front.sock"), &[]);
    assert!(!told.contains("share one login limit"), "{told}");
}

/// What is away may come back; what is wrong stays so.
#[test]
fn it_asks_every_datahub_and_one_that_is_away_is_not_wrong() {
    let (good, gone) = (datahub(), datahub());
    let setup = Setup::new(&[("good", &good), ("gone", &gone)]);
    drop(gone);
    let (code, told, errors) = check(&setup, &[]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("\ngood: good\n") && told.contains("\ngone: cannot fetch the metadata"), "{told}");
    assert_eq!(errors, "1 of them did not answer as they should\n");
    let (code, _, errors) = check(&setup.at(good.client_secret(), "another-secret-than-it-has"), &[]);
    assert_eq!(
        (code, errors.as_str()),
        (Some(78), "1 of them did not answer as they should\n1 of them will not work\n")
    );
}

/// A file with secrets that others may read is a warning, and one that is given to a service is not.
#[test]
fn a_file_with_secrets_that_others_may_read_is_a_warning() {
    const NOBODY: u32 = 65534;
    let (hub, folder) = (datahub(), Folder::default());
    let keys = folder.file("keys", &new_key());
    let secret = folder.file("a.secret", hub.client_secret());
    let (url, client) = (hub.url(), hub.client_id());
    let datahub = format!("datahubs.a = {{ url = {url:?}, client_id = {client:?}, client_secret_file = {secret:?} }}");
    let config = folder.file("gateway.toml", &format!("session.keys_file = {keys:?}\n{datahub}"));
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("our own file");
    let told = |environment: &[(&str, &str)]| {
        let output = run(&["check", "--config", config.to_str().expect("a plain path")], environment);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(0), "{text}");
        let is_of_it = |line: &&str| line.starts_with("warning: ") && !line.contains("open files");
        text.lines().filter(is_of_it).map(str::to_owned).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(told(&[]), "");
    for (mode, who) in [(0o604, "everybody"), (0o644, "everybody"), (0o602, "everybody"), (0o660, "its group")] {
        set(&keys, mode);
        let text = told(&[]);
        assert!(
            text.starts_with(&format!("warning: session.keys_file names a file with secrets that {who}")),
            "{text}"
        );
        assert!(text.ends_with("may read or change: chmod 600") && text.lines().count() == 1, "{mode:o}: {text}");
    }
    // **Seen**: not looked at, since the operator had exported that folder as the document says.
    let credentials = [("CREDENTIALS_DIRECTORY", folder.path().to_str().expect("a plain path"))];
    assert!(told(&credentials).starts_with("warning: session.keys_file names a file with secrets that its group"));
    // Those of systemd are the user's own, or root's with an ACL, whose mask is where the group's rights are.
    set(&keys, 0o400);
    assert_eq!(told(&credentials), "");
    if rustix::process::geteuid().is_root() {
        set(&keys, 0o440);
        assert_eq!(told(&credentials), "");
    }
    set(&keys, 0o600);
    set(&secret, 0o644);
    assert!(told(&[]).starts_with("warning: datahubs.a.client_secret_file names a file with secrets that everybody"));

    // Root has given it to the service's group, as Kubernetes does with what it mounts. Anybody else's is like that by mistake.
    set(&secret, 0o440);
    if chown(&secret, Some(0), None).is_ok() {
        assert_eq!(told(&[]), "");
        chown(&secret, Some(NOBODY), None).expect("we are root");
    }
    assert!(told(&[]).starts_with("warning: datahubs.a.client_secret_file names a file with secrets that its group"));
    set(&secret, 0o400);
    assert_eq!(told(&[]), "");

    // The configuration itself, if a secret is in it.
    set(&config, 0o644);
    assert_eq!(told(&[]), "");
    let with_secret = folder.file("gateway.toml", &format!("session.keys = [{:?}]\n{datahub}", new_key()));
    set(&with_secret, 0o600);
    assert_eq!(told(&[]), "");
    set(&with_secret, 0o644);
    let text = told(&[]);
    assert!(text.contains("gateway.toml holds a secret that everybody on this machine may read or change"), "{text}");
    let inline = datahub
        .replace("client_secret_file", "client_secret")
        .replace(&format!("{secret:?}"), &format!("{:?}", hub.client_secret()));
    folder.file("gateway.toml", &format!("session.keys_file = {keys:?}\n{inline}"));
    let text = told(&[]);
    assert!(
        text.contains("gateway.toml holds a secret that everybody") && !text.contains(hub.client_secret()),
        "{text}"
    );
}

/// One in use is as it should be beside a gateway that runs; nothing is left behind or taken away.
#[test]
fn it_says_of_each_socket_whether_it_can_be_had() {
    let (hub, folder) = (datahub(), Folder::default());
    let base = folder.path().to_str().expect("a plain path");
    let file = folder.file("file", "ours");
    fs::create_dir(folder.path().join("folder")).expect("a folder of our own");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let living = UnixListener::bind(folder.path().join("living")).expect("a path of our own");
    drop(UnixListener::bind(folder.path().join("dead")).expect("a path of our own"));
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).expect("a path of our own");
    let before = names(folder.path());
    for (listen, code, line) in [
        (format!("127.0.0.1:{port}"), 0, format!("server.listen 127.0.0.1:{port}: in use, as it should be")),
        ("127.0.0.1:0".to_owned(), 0, "server.listen 127.0.0.1:0: free".to_owned()),
        ("192.0.2.1:8000".to_owned(), 1, "server.listen: 192.0.2.1:8000 is no address of this machine".to_owned()),
        (format!("unix:{base}/living"), 0, format!("server.listen unix:{base}/living: in use")),
        (format!("unix:{base}/dead"), 0, format!("server.listen unix:{base}/dead: nobody listens at the socket")),
        (format!("unix:{base}/new"), 0, format!("server.listen unix:{base}/new: free")),
        (
            format!("unix:{base}/file"),
            78,
            format!("server.listen: unix:{base}/file is a file: only a socket on which nobody listens is replaced"),
        ),
        (format!("unix:{base}/folder"), 78, format!("server.listen: unix:{base}/folder is a folder: ")),
        (format!("unix:{base}/dangling"), 78, format!("server.listen: unix:{base}/dangling is a symbolic link: ")),
        (
            format!("unix:{base}/none/new"),
            78,
            format!("server.listen: unix:{base}/none/new cannot be listened on: its folder is not there: make it"),
        ),
        (
            "unix:/run/gateway-check-none/new".to_owned(),
            0,
            "warning: server.listen unix:/run/gateway-check-none/new: its folder".to_owned(),
        ),
    ] {
        let (is, told, errors) = check(&Setup::new(&[("a", &hub)]).listening_at(&listen), &[]);
        assert!(is == Some(code) && lines(&told, &line).len() == 1, "{listen}: {is:?} {told}{errors}");
    }
    assert_eq!(names(folder.path()), before);
    assert_eq!(fs::read_to_string(file).expect("it is there"), "ours");
    drop(living);
}

/// The exit status and the words of a start that does not get as far as serving; 124 if it does.
fn serve(setup: &Setup, environment: &[(&str, &str)]) -> Told {
    let mut command = Command::new("timeout");
    command.arg("5").arg(binary()).arg("--config").arg(setup.write());
    let output = command.env_clear().envs(environment.iter().copied()).output().expect("coreutils");
    let [told, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    (output.status.code(), told, errors)
}

/// **Seen**: what `check` called wrong, a start called passing, and so systemd made it again and again.
#[test]
fn what_can_never_be_listened_on_is_the_same_to_it_and_to_a_start() {
    let (hub, folder) = (datahub(), Folder::default());
    let base = folder.path().to_str().expect("a plain path");
    folder.file("file", "ours");
    let _datagrams = UnixDatagram::bind(folder.path().join("datagrams")).expect("a path of our own");
    let before = names(folder.path());
    let long = "x".repeat(200);
    for (listen, code, words) in [
        (format!("unix:{base}/none/new"), 78, "cannot be listened on: its folder is not there: make it"),
        (format!("unix:{base}/file/new"), 78, "cannot be listened on: a part of its path is no folder"),
        (format!("unix:{base}/file"), 78, "is a file: only a socket on which nobody listens is replaced"),
        (format!("unix:{base}/datagrams"), 78, "is a socket of another kind, such as one for datagrams: only a"),
        (format!("unix:/proc/{long}"), 78, ""),
        // It may come, by DHCP.
        ("192.0.2.1:8000".to_owned(), 1, "is no address of this machine, or not yet"),
        ("nobody-knows.invalid:8000".to_owned(), 1, "cannot be looked up, which may pass: see to DNS"),
    ] {
        let setup = Setup::new(&[("a", &hub)]).listening_at(&listen);
        let (checked, told, _) = check(&setup, &[]);
        let (served, _, errors) = serve(&setup, &[]);
        assert_eq!((checked, served), (Some(code), Some(code)), "{listen}: {told}{errors}");
        assert!(told.contains(words) && errors.contains(words), "{listen}: {told}{errors}");
    }
    assert_eq!(names(folder.path()), before);
}

/// **Seen**: each by itself is free, and both cannot be had.
#[test]
fn two_places_with_an_address_in_common_are_found_before_the_start() {
    let hub = datahub();
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let has_ipv6 = TcpListener::bind("[::]:0").is_ok();
    for (first, second, collides) in [
        ("0.0.0.0", "[::]", true),
        ("[::]", "0.0.0.0", true),
        ("[::]", "127.0.0.1", true),
        ("localhost", "127.0.0.1", true),
        ("127.0.0.1", "localhost", true),
        ("127.0.0.2", "127.0.0.1", false),
        ("0.0.0.0", "[::1]", false),
    ] {
        if [first, second].iter().any(|place| place.starts_with('[')) && !has_ipv6 {
            continue;
        }
        if [first, second].contains(&"localhost") && is_two_addresses("localhost") {
            continue;
        }
        let port = free();
        let [first, second] = [first, second].map(|place| format!("{place}:{port}"));
        let listen = format!("{first},{second}");
        let setup = Setup::new(&[("a", &hub)]);
        let file = setup.write();
        let environment = [("GATEWAY__SERVER__LISTEN", listen.as_str())];
        let checked = || {
            let output = run(&["check", "--config", file.to_str().expect("a plain path")], &environment);
            (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
        };
        let (code, told) = checked();
        let line = format!(
            "server.listen: {second} is the same place as server.listen {first}, or a part of it: leave out one"
        );
        assert_eq!((code, told.contains(&line)), if collides { (Some(78), true) } else { (Some(0), false) }, "{told}");
        if collides {
            let (code, _, errors) = serve(&setup, &environment);
            assert_eq!((code, errors.contains(&line)), (Some(78), true), "{errors}");
            // Also beside a gateway that runs with the first one alone.
            let _running = TcpListener::bind(&first).expect("it is free");
            let (code, told) = checked();
            assert_eq!((code, told.contains(&line)), (Some(78), true), "{told}");
        }
    }
    // One file has many names.
    let folder = Folder::default();
    let base = folder.path().to_str().expect("a plain path");
    std::os::unix::fs::symlink(base, folder.path().join("link")).expect("a folder of our own");
    for (second, collides) in [("link/it", true), ("other", false)] {
        let listen = format!("unix:{base}/it,unix:{base}/{second}");
        let environment = [("GATEWAY__SERVER__LISTEN", listen.as_str())];
        let setup = Setup::new(&[("a", &hub)]);
        let output = run(&["check", "--config", setup.write().to_str().expect("a plain path")], &environment);
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        let line = format!("unix:{base}/{second} is the same place as server.listen unix:{base}/it, or");
        let expected = if collides { (Some(78), true) } else { (Some(0), false) };
        assert_eq!((output.status.code(), told.contains(&line)), expected, "{told}");
        if collides {
            let (code, _, errors) = serve(&setup, &environment);
            assert_eq!((code, errors.contains(&line)), (Some(78), true), "{errors}");
        }
        assert_eq!(names(folder.path()), ["link"]);
    }
    // The operators' place counts, too.
    let listen = format!("localhost:{}", free());
    let admin = listen.replace("localhost", "127.0.0.1");
    let setup = Setup::new(&[("a", &hub)]).at("127.0.0.1:0", &admin).listening_at(&listen);
    if !is_two_addresses("localhost") {
        let (code, told, _) = check(&setup, &[]);
        let line = format!("admin.listen: {admin} is the same place as server.listen {listen}, or");
        assert_eq!((code, told.contains(&line)), (Some(78), true), "{told}");
    }
}

/// Then a name is had as long as one of them is free.
fn is_two_addresses(name: &str) -> bool {
    (name, 0).to_socket_addrs().expect("it is looked up").count() > 1
}

/// **Seen**: called free, and then not to be given.
#[test]
fn a_group_that_the_user_may_not_give_is_found_before_the_start() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (hub, folder) = (datahub(), Folder::default());
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("our own");
    let place = folder.path().join("sockets");
    fs::create_dir(&place).expect("a folder of our own");
    chown(&place, Some(NOBODY), Some(NOBODY)).expect("we are root");
    let file = folder.path().join("gateway.toml");
    for (group, code) in [("0", 78), ("65534", 0)] {
        let setup = Setup::new(&[("a", &hub)]).listening_at(&format!("unix:{}/it", place.display()));
        let text =
            fs::read_to_string(setup.and(&format!("server.unix_group = {group:?}")).write()).expect("it is there");
        fs::write(&file, text).expect("our own");
        fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("our own");
        let mut commands = [Command::new(binary()), Command::new("timeout")];
        commands[0].arg("check");
        commands[1].arg("2").arg(binary());
        for (command, code) in commands.iter_mut().zip([code, if code == 0 { 124 } else { code }]) {
            let output =
                command.env_clear().arg("--config").arg(&file).uid(NOBODY).gid(NOBODY).output().expect("built");
            let told = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
            assert_eq!(output.status.code(), Some(code), "{group}: {told}");
            let words = "cannot be given to the group that server.unix_group names";
            assert_eq!(told.contains(words), code == 78, "{group}: {told}");
        }
        assert_eq!(names(&place), Vec::<String>::new());
    }
    // A folder that is not this user's: the user who serves may be another, but a start of this one will never do.
    let setup = Setup::new(&[("a", &hub)]).listening_at(&format!("unix:{}/it", folder.path().display()));
    fs::write(&file, fs::read_to_string(setup.write()).expect("it is there")).expect("our own");
    for (command, code) in [("check", 0), ("serve", 78)] {
        let output =
            Command::new(binary()).env_clear().arg(command).arg("--config").arg(&file).uid(NOBODY).gid(NOBODY).output();
        let output = output.expect("it is built");
        let told = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        assert_eq!((output.status.code(), told.contains("/it is not for this user")), (Some(code), true), "{told}");
    }
}

/// They are asked at once, so that five that are silent take as long as one.
#[test]
fn datahubs_that_are_silent_keep_it_waiting_once() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it is bound");
    let datahubs = (1..=5).map(|number| {
        format!("datahubs.d{number} = {{ url = \"http://{address}\", client_id = \"d{number}\", client_secret = \"0123456789abcdef\" }}\n")
    });
    let config = format!(
        "session.keys = [{:?}]\nserver.listen = \"127.0.0.1:0\"\nadmin.listen = \"none\"\n\
         timeouts = {{ connect = \"1s\", back_channel = \"1s\", token = \"1s\" }}\n{}",
        new_key(),
        datahubs.collect::<String>()
    );
    let folder = Folder::default();
    let file = folder.file("gateway.toml", &config);
    let begun = Instant::now();
    let output = run(&["check", "--config", file.to_str().expect("a plain path")], &[]);
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}: {told}", begun.elapsed());
    let lines: Vec<_> = told.lines().filter(|line| line.contains(": cannot fetch the metadata")).collect();
    let ids: Vec<_> = lines.iter().map(|line| &line[..2]).collect();
    assert_eq!((output.status.code(), ids), (Some(1), vec!["d1", "d2", "d3", "d4", "d5"]), "{told}");
}

/// As in `check | head -1`.
#[test]
fn whoever_has_read_enough_does_not_change_what_comes_of_it() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    for (setup, code) in [(setup.clone(), 0), (setup.at(hub.client_secret(), "another-secret-than-it-has"), 78)] {
        let mut command = Command::new(binary());
        command.env_clear().arg("check").arg("--config").arg(setup.write());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary is built");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.contains("Broken pipe")), (Some(code), false), "{told}");
        assert_eq!(told.is_empty(), code == 0, "{told}");
    }
}

/// In words of ours, in the log of a gateway that serves, and nothing of it is said again.
#[test]
fn a_log_filter_that_says_nothing_is_a_warning() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let file = setup.write();
    for (filter, is_wrong) in [
        ("info", false),
        ("info,access=off", false),
        ("", false),
        ("warn,actix_server::worker=DEBUG,,", false),
        ("debug/words to look for", false),
        ("canary===", true),
        ("info,access=canary", true),
        ("info;access=off", true),
        ("info access", true),
        ("info/a/canary", true),
    ] {
        let output = run(&["check", "--config", file.to_str().expect("a plain path")], &[("RUST_LOG", filter)]);
        let [told, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
        let warned = told.contains("\nwarning: RUST_LOG has a part that says nothing and is not heeded: write levels");
        assert_eq!((output.status.code(), warned, errors.as_str()), (Some(0), is_wrong, ""), "{filter}: {told}");
        assert!(!told.contains("canary"), "{filter}: {told}");
    }
    let gateway = setup.logging("info,access=off,canary===").start();
    let line =
        gateway.wait_for_line(|line| line["message"].as_str().is_some_and(|text| text.starts_with("RUST_LOG has")));
    assert_eq!(line["level"], "WARN");
    let output = gateway.output().join("\n");
    assert!(!output.contains("canary") && !output.contains("logging spec"), "{output}");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().expect("a plain name")).collect();
    names.sort();
    names
}

#[test]
fn it_compares_how_many_files_may_be_open_with_the_limits() {
    let hub = datahub();
    let told = |most: u32, lines: &str| {
        let setup = Setup::new(&[("a", &hub)]).and("server.workers = 1").and(lines);
        let file = setup.write();
        let script = format!("ulimit -n {most} && exec \"$0\" check --config \"$1\"");
        let output = Command::new("sh").args(["-c", &script]).arg(binary()).arg(file).output().expect("a shell");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    let few = "limits = { in_flight = 100, connections = 100 }";
    let (code, text) = told(1000, few);
    assert!(code == Some(0) && text.contains("\nopen files: 1000, enough for limits.connections"), "{text}");
    let (code, text) = told(267, few);
    let line =
        "\nwarning: open files: 267 here, and limits.connections and limits.in_flight need 268: raise LimitNOFILE=";
    assert!(code == Some(0) && text.contains(line), "{text}");
    let (code, text) = told(60, few);
    assert!(code == Some(78) && text.contains("\nopen files: 60, and 68 are needed to start: raise"), "{text}");

    // Else the workers would panic one after the other, and the process stay.
    let setup = Setup::new(&[("a", &hub)]).and("server.workers = 20");
    let script = "ulimit -n 100 && exec \"$0\" --config \"$1\"";
    let output = Command::new("sh").args(["-c", script]).arg(binary()).arg(setup.write()).output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr);
    let told = "open files: 100, and 144 are needed to start: raise LimitNOFILE= of the unit, or `ulimit -n`\n";
    assert_eq!((output.status.code(), &*text), (Some(78), told));
}

/// By the Date of an answer of its own.
#[test]
fn a_clock_that_goes_wrong_is_told_with_the_way() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let (_, told, _) = check(&setup, &[]);
    assert!(!told.contains("clock"), "{told}");
    let json = metadata(&hub);
    for (offset, code, line) in [
        (20, 0, None),
        (-20, 0, None),
        (
            100,
            0,
            Some(("warning: a: its clock is ", " s ahead of this machine's: see that both follow NTP (`timedatectl`)")),
        ),
        (
            -100,
            0,
            Some(("warning: a: its clock is ", " s behind this machine's: see that both follow NTP (`timedatectl`)")),
        ),
        (
            400,
            78,
            Some((
                "a: its clock is ",
                " s ahead of this machine's: see that both follow NTP (`timedatectl`); no login works like this",
            )),
        ),
        (
            -400,
            78,
            Some((
                "a: its clock is ",
                " s behind this machine's: see that both follow NTP (`timedatectl`); no login works like this",
            )),
        ),
    ] {
        let shift = Duration::from_secs(i64::unsigned_abs(offset));
        let date = if offset > 0 { SystemTime::now() + shift } else { SystemTime::now() - shift };
        let date = httpdate::fmt_http_date(date);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: {date}\r\nContent-Length: {}\r\n\r\n",
            json.len()
        );
        hub.set(|behaviour| behaviour.discovery.answer = Answer::Raw(format!("{head}{json}").into_bytes()));
        let (is, told, _) = check(&setup, &[]);
        assert_eq!(is, Some(code), "{offset}: {told}");
        match line {
            None => assert!(!told.contains("clock"), "{offset}: {told}"),
            Some((start, end)) => {
                let [line] = lines(&told, start)[..] else { panic!("{offset}: {told}") };
                let seconds = line.strip_prefix(start).and_then(|rest| rest.strip_suffix(end)).expect(line);
                let seconds: i64 = seconds.parse().expect("a number");
                assert!((seconds - i64::abs(offset)).abs() < 10, "{offset}: {line}");
            }
        }
    }
}

/// What it answers to discovery.
fn metadata(hub: &datahub::DataHub) -> String {
    use std::io::{Read as _, Write as _};

    let mut stream = std::net::TcpStream::connect(hub.address()).expect("it listens");
    let request = "GET /.well-known/openid-configuration HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
}

#[test]
fn it_compares_its_keys_with_those_of_a_running_gateway() {
    let hub = datahub();
    let (one, other, third) = (new_key(), new_key(), new_key());
    let datahubs = [("a", &hub)];
    let gateway = Setup::with_keys(&datahubs, &[&one, &other]).start();
    let address = gateway.wait_for_address("operators may ask");
    let id = |key: &str| {
        let (_, told, _) = check(&Setup::with_keys(&datahubs, &[key]), &[]);
        lines(&told, "keys: ")[0].split(' ').nth(1).expect("an id").to_owned()
    };
    let url = format!("http://{address}");
    for (keys, code, told) in [
        (vec![&one, &other], 0, "the same".to_owned()),
        (vec![&other, &one], 1, format!("{} seals there; give every process the same session.keys_file", id(&one))),
        (vec![&one], 1, format!("{} is there and not here; give", id(&other))),
        (vec![&one, &other, &third], 1, format!("{} is here and not there; give", id(&third))),
    ] {
        let keys: Vec<_> = keys.into_iter().map(String::as_str).collect();
        let (is, text, _) = check(&Setup::with_keys(&datahubs, &keys), &["--against", &url]);
        let line = format!("keys at {url}: {told}");
        assert!(is == Some(code) && lines(&text, &line).len() == 1, "{line}: {text}");
    }
    let ours = Setup::with_keys(&datahubs, &[&one, &other]);
    let (is, text, _) = check(&ours, &["--against", &format!("{url}/metrics"), "--against", &url]);
    assert!(is == Some(0) && lines(&text, "keys at ").len() == 2, "{text}");

    // Not ours, nobody, and no address at all.
    let (is, text, _) = check(&ours, &["--against", hub.url()]);
    let line = format!("keys at {}: answered with ", hub.url());
    assert!(is == Some(1) && lines(&text, &line).len() == 1, "{text}");
    let (is, text, _) = check(&ours, &["--against", &format!("{url}/healthz")]);
    assert!(is == Some(1) && text.contains("/healthz: shows no keys: see that this is admin.listen"), "{text}");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port");
    let (is, text, _) = check(&ours, &["--against", &format!("http://{free}")]);
    assert!(is == Some(1) && text.contains(&format!("keys at http://{free}: no answer (")), "{text}");
    for bad in ["https://127.0.0.1:9000", "127.0.0.1:9000", "http://", "unix:x", "http://user@127.0.0.1:9000"] {
        let (is, _, errors) = check(&ours, &["--against", bad]);
        assert!(is == Some(2) && errors.contains("must be http://HOST:PORT or unix:/PATH"), "{bad}: {errors}");
    }
}

/// The id is beside the key and not in its file.
#[test]
fn key_says_its_id_on_standard_error() {
    let output = run(&["key"], &[]);
    let [key, said] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    assert!(key.len() == 45 && key.ends_with('\n') && key.lines().count() == 1, "one line of base64");
    let hub = datahub();
    let (_, told, _) = check(&Setup::with_keys(&[("a", &hub)], &[key.trim()]), &[]);
    let id = lines(&told, "keys: ")[0].split(' ').nth(1).expect("an id").to_owned();
    assert_eq!(said, format!("key id: {id}\n"));
}

/// Which key, which address, and what to do.
#[test]
fn a_place_that_cannot_be_listened_at_is_told_with_its_key_and_address() {
    let hub = datahub();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let started = |setup: &Setup| {
        let output = run(&["--config", setup.write().to_str().expect("a plain path")], &[]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    let text = started(&Setup::new(&[("a", &hub)]).listening_at(&address.to_string()));
    let told = format!(
        "server.listen: {address} is in use: end what listens there (`ss -ltnp` or `ss -lxp` says what it is), or"
    );
    assert!(text.contains(&told), "{text}");
    let text = started(&Setup::new(&[("a", &hub)]).listening_at("192.0.2.1:8000"));
    assert!(text.contains("server.listen: 192.0.2.1:8000 is no address of this machine"), "{text}");
    let setup = Setup::new(&[("a", &hub)]).listening_at("127.0.0.1:0");
    let text = started(&setup.at("127.0.0.1:0", &address.to_string()));
    assert!(text.contains(&format!("{address} is in use: end what listens there")), "{text}");
}
