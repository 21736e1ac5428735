//! What a gateway listens on: it takes nothing away from anybody, and leaves nothing behind.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::gateway::{BASE, Folder, Setup, binary, datahub, signal, wait_until};
use crate::wire::exchange;

const EX_CONFIG: i32 = 78;

fn request() -> String {
    format!("GET {BASE}/datahubs HTTP/1.1\r\nHost: localhost:8000\r\nConnection: close\r\n\r\n")
}

/// The answer to `bytes` on the unix socket at `path`.
fn ask(path: &Path, bytes: &str) -> String {
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream.write_all(bytes.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

/// The exit status of a gateway that does not get as far as serving, and what it said. One that serves is ended: no status.
fn refused(setup: &Setup) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.env_clear().arg("--config").arg(setup.write()).stdout(Stdio::null()).stderr(Stdio::piped());
    ended(command)
}

/// The same of any command.
fn ended(mut command: Command) -> (Option<i32>, String) {
    let mut child = command.spawn().expect("the binary is built");
    let until = Instant::now() + Duration::from_secs(5);
    while child.try_wait().expect("our own child").is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The setup with a unix socket at `path` for `key`.
fn at(setup: &Setup, key: &str, path: &Path) -> Setup {
    let place = format!("unix:{}", path.display());
    match key {
        "server.listen" => setup.clone().listening_at(&place),
        _ => setup.clone().at("127.0.0.1:0", &place).listening_at("127.0.0.1:0"),
    }
}

#[test]
fn nothing_but_a_socket_on_which_nobody_listens_is_replaced() {
    let hub = datahub();
    let (setup, folder) = (Setup::new(&[("a", &hub)]), Folder::default());
    let path = |name: &str| folder.path().join(name);
    let _living = UnixListener::bind(path("living")).expect("a path of our own");
    let _datagrams = UnixDatagram::bind(path("datagrams")).expect("a path of our own");
    drop(UnixListener::bind(path("dead-behind")).expect("a path of our own"));
    folder.file("file", "precious");
    fs::create_dir(path("folder")).expect("a folder of our own");
    symlink(path("nowhere"), path("dangling")).expect("a folder of our own");
    symlink(path("file"), path("link-to-a-file")).expect("a folder of our own");
    symlink(path("dead-behind"), path("link-to-a-dead-socket")).expect("a folder of our own");
    assert!(Command::new("mkfifo").arg(path("pipe")).status().expect("coreutils").success());
    for key in ["server.listen", "admin.listen"] {
        for (name, code, words) in [
            ("file", EX_CONFIG, "is a file"),
            ("folder", EX_CONFIG, "is a folder"),
            ("dangling", EX_CONFIG, "is a symbolic link"),
            ("link-to-a-file", EX_CONFIG, "is a symbolic link"),
            ("link-to-a-dead-socket", EX_CONFIG, "is a symbolic link"),
            ("pipe", EX_CONFIG, "is no socket"),
            ("living", 1, "is in use"),
            ("datagrams", EX_CONFIG, "is a socket of another kind"),
            ("missing/socket", EX_CONFIG, "its folder is not there: make it"),
        ] {
            let path = path(name);
            let before = fs::symlink_metadata(&path).ok().map(|it| (it.ino(), it.mode(), it.len()));
            let (status, told) = refused(&at(&setup, key, &path));
            assert_eq!(status, Some(code), "{key} {name}: {told}");
            let line = told.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{key} {name}: {told}"));
            assert!(line.contains(key) && line.contains(&path.display().to_string()), "{key} {name}: {told}");
            let after = fs::symlink_metadata(&path).ok().map(|it| (it.ino(), it.mode(), it.len()));
            assert_eq!(after, before, "{key} {name}");
        }
        assert_eq!(fs::read(path("file")).expect("it is there"), b"precious");
        // The twin.
        let dead = path("dead");
        drop(UnixListener::bind(&dead).expect("a path of our own"));
        let gateway = at(&setup, key, &dead).start();
        let target = if key == "server.listen" { request() } else { healthz() };
        // Health waits for every worker to have begun.
        wait_until(|| ask(&dead, &target).starts_with("HTTP/1.1 200 "));
        drop(gateway);
    }
}

fn healthz() -> String {
    "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into()
}

/// A process that is too busy to take connections lives all the same, and a start does not wait for it.
#[test]
fn a_socket_whose_queue_is_full_is_in_use() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("busy.sock");
    let _busy = UnixListener::bind(&path).expect("a path of our own");
    let _queued: Vec<_> = std::iter::from_fn(|| {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .expect("a socket");
        let address = rustix::net::SocketAddrUnix::new(&path).expect("a short path");
        rustix::net::connect(&socket, &address).ok().map(|()| socket)
    })
    .collect();
    let begun = Instant::now();
    let (status, told) = refused(&at(&Setup::new(&[("a", &hub)]), "server.listen", &path));
    assert!(status == Some(1) && told.contains("is in use"), "{status:?} {told}");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let (status, told) = refused(&Setup::new(&[("a", &datahub())]).listening_at(&address));
    assert!(status == Some(1) && told.contains(&format!("server.listen: {address} is in use")), "{status:?} {told}");
}

/// Also not for the moment between its birth and the change of its mode, with a process that would open it to all.
#[test]
fn a_socket_is_never_open_to_more_people_than_it_is_meant_for() {
    let hub = datahub();
    let is_root = rustix::process::geteuid().is_root();
    let group = |id: u32| if is_root { id } else { rustix::process::getegid().as_raw() };
    let named = fs::read_to_string("/etc/group").expect("there is one");
    let daemon = named.lines().find_map(|line| line.strip_prefix("daemon:x:")?.split(':').next()?.parse().ok());
    for (lines, mode, id) in [
        (String::new(), 0o660, None),
        ("server.unix_mode = \"0600\"".into(), 0o600, None),
        (format!("server.unix_group = {}", group(12_345)), 0o660, Some(group(12_345))),
        (format!("server.unix_mode = \"0666\"\nserver.unix_group = \"{}\"", group(54_321)), 0o666, Some(group(54_321))),
        ("server.unix_group = \"daemon\"".into(), 0o660, daemon.filter(|_| is_root)),
    ] {
        if lines.contains("daemon") && !is_root {
            continue;
        }
        let folder = Folder::default();
        let [main, admin] = ["main.sock", "admin.sock"].map(|name| folder.path().join(name));
        let setup = at(&Setup::new(&[("a", &hub)]).and(&lines), "admin.listen", &admin);
        let setup = at(&setup, "server.listen", &main);
        let is_over = AtomicBool::new(false);
        let mut command = Command::new("/bin/sh");
        command.env_clear().args(["-c", "umask 0; exec \"$0\" --config \"$GATEWAY_OF_A_TEST\""]).arg(binary());
        let modes = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut modes = std::collections::BTreeSet::new();
                while !is_over.load(Ordering::Relaxed) {
                    modes.extend([&main, &admin].iter().filter_map(|path| fs::metadata(path).ok()).map(|it| it.mode()));
                }
                modes
            });
            let _gateway = setup.start_as(command);
            is_over.store(true, Ordering::Relaxed);
            for path in [&main, &admin] {
                let file = fs::metadata(path).expect("it is there");
                assert_eq!(file.mode() & 0o777, mode, "{lines}: {path:?}");
                assert!(id.is_none_or(|id| file.gid() == id), "{lines}: {path:?} {}", file.gid());
            }
            watch.join().expect("no panic")
        });
        let too_open: Vec<_> = modes.iter().map(|it| it & 0o777).filter(|it| ![0, mode].contains(it)).collect();
        assert!(too_open.is_empty(), "{lines}: {too_open:?}");
    }
}

#[test]
fn a_mode_is_octal_and_a_group_is_there() {
    let setup = Setup::new(&[("a", &datahub())]);
    for line in [
        "server.unix_mode = 660",
        "server.unix_mode = 0o660",
        "server.unix_mode = \"660\"",
        "server.unix_mode = \"0888\"",
        "server.unix_mode = \"rw-rw----\"",
        "server.unix_mode = \"\"",
        "server.unix_group = \"canary\"",
        "server.unix_group = \"\"",
        "server.unix_group = -1",
        "server.unix_group = 4294967295",
        "server.unix_group = \"4294967296\"",
        "server.health = \"canary\"",
        "limits.connections = 0",
        "limits.connections = \"canary\"",
    ] {
        let key = line.split(' ').next().expect("a key");
        let (status, told) = refused(&setup.clone().and(line));
        assert!(status == Some(EX_CONFIG) && told.contains(&format!("  {key} ")), "{line}: {told}");
        assert!(!told.contains("canary"), "{line}: {told}");
    }
}

#[test]
fn a_socket_of_ours_goes_with_us_and_what_took_its_place_stays() {
    let hub = datahub();
    let folder = Folder::default();
    let [main, admin] = ["main.sock", "admin.sock"].map(|name| folder.path().join(name));
    let setup = at(&Setup::new(&[("a", &hub)]), "admin.listen", &admin);
    let setup = at(&setup, "server.listen", &main);
    let mut gateway = setup.start();
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(!main.exists() && !admin.exists(), "nothing is left behind");

    let mut gateway = setup.start();
    let next = folder.path().join("next.sock");
    let _next = UnixListener::bind(&next).expect("a path of our own");
    fs::rename(&next, &main).expect("a folder of our own");
    fs::remove_file(&admin).expect("it is there");
    folder.file("admin.sock", "precious");
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(fs::metadata(&main).expect("it is there").file_type().is_socket());
    assert_eq!(fs::read(&admin).expect("it is there"), b"precious");
}

/// Real systemd's helper passes one of each kind; they stay where they are when the process ends.
#[test]
fn sockets_that_systemd_passes_are_served_and_left() {
    let hub = datahub();
    let folder = Folder::default();
    let unix = folder.path().join("passed.sock");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let setup = Setup::new(&[("a", &hub)]).listening_at("unix:/nowhere/at/all");
    let mut command = Command::new("systemd-socket-activate");
    command
        .args(["--listen", &free.to_string(), "--listen", unix.to_str().expect("a plain path")])
        .args(["--fdname=web:front", "-E", "RUST_LOG=trace"])
        .args(["/bin/sh", "-c", "echo \"passed $LISTEN_FDS\" && exec \"$@\"", "sh"])
        .arg(binary())
        .arg("--config")
        .arg(setup.write());
    let mut gateway = std::thread::scope(|scope| {
        // The first connection starts it.
        scope.spawn(|| {
            let until = Instant::now() + Duration::from_secs(10);
            while TcpStream::connect(free).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        setup.start_as(command)
    });
    assert_eq!(gateway.address, format!("{free} unix:{}", unix.display()));
    assert_eq!(exchange(&free.to_string(), request())[0].status, 200);
    assert!(ask(&unix, &request()).starts_with("HTTP/1.1 200 "));
    assert!(gateway.output().iter().any(|line| line == "passed 2"), "it was passed two");
    gateway.terminate();
    assert!(gateway.wait_for_end().expect("it ends").success());
    assert!(unix.exists(), "it is systemd's");
}

/// Four processes find a dead socket at the same moment: one of them replaces it, and nobody takes it away from that one.
#[test]
fn of_processes_that_start_at_once_one_serves() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    let setup = Setup::new(&[("a", &hub)]).and("server.workers = 1").at("127.0.0.1:0", "none");
    let setup = setup.listening_at(&format!("unix:{}", path.display()));
    let config = setup.write();
    for round in 0..50 {
        let start = |_| {
            let mut command = Command::new(binary());
            command.env_clear().arg("--config").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("the binary is built")
        };
        let mut processes: Vec<_> = (0..4).map(start).collect();
        let until = Instant::now() + Duration::from_secs(5);
        let mut living = processes.len();
        while living > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
            living =
                processes.iter_mut().filter_map(|it| it.try_wait().expect("our own").is_none().then_some(())).count();
        }
        let answers = living == 1 && ask(&path, &request()).starts_with("HTTP/1.1 200 ");
        // As a power cut would: the socket is a dead one for the next round.
        for process in &mut processes {
            let _ = process.kill();
            process.wait().expect("our own child");
        }
        assert_eq!((living, answers), (1, true), "round {round}");
    }
}

/// What is passed is served, or it is a fault that says why not: no place of the configuration is served instead.
#[test]
fn what_is_passed_and_takes_no_connections_is_a_fault() {
    let hub = datahub();
    let setup = Setup::new(&[("a", &hub)]);
    let config = setup.write();
    let silent = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None);
    let (end, _other) = UnixStream::pair().expect("a pair");
    let datagrams = UnixDatagram::unbound().expect("a socket");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let copy = || OwnedFd::from(listener.try_clone().expect("a descriptor"));
    let number = "must be the number of sockets that are passed";
    for (case, passed, count, expected) in [
        ("it does not listen", silent.expect("a socket"), "1", "number 1 of 1 does not listen"),
        ("an end of a pair", end.into(), "1", "number 1 of 1 does not listen"),
        ("UDP", udp.into(), "1", "number 1 of 1 is one for UDP"),
        ("datagrams", datagrams.into(), "1", "number 1 of 1 is one for datagrams"),
        ("a file", fs::File::open("/dev/null").expect("it is there").into(), "1", "number 1 of 1 is no TCP socket"),
        ("one is missing", copy(), "2", "number 2 of 2 is no TCP socket"),
        ("a word", copy(), "two", number),
        ("less than none", copy(), "-1", number),
        ("more than there are", copy(), "4000000000", number),
    ] {
        let script = "exec 3<&0; export LISTEN_PID=$$; exec \"$0\" --config \"$1\" </dev/null 4<&-";
        let mut command = Command::new("/bin/sh");
        command.env_clear().env("LISTEN_FDS", count).args(["-c", script]).arg(binary()).arg(&config);
        command.stdin(Stdio::from(passed)).stdout(Stdio::null()).stderr(Stdio::piped());
        let (status, told) = ended(command);
        assert!(status == Some(EX_CONFIG) && told.contains("LISTEN_FDS") && told.contains(expected), "{case}: {told}");
    }
    // The twin: none at all, or what another process was told.
    for (name, value) in [("LISTEN_FDS", "0"), ("LISTEN_FDS", ""), ("LISTEN_PID", "1")] {
        let mut command = Command::new("/bin/sh");
        command.env_clear().env("LISTEN_FDS", "two").env(name, value);
        command.args(["-c", "exec \"$0\" --config \"$GATEWAY_OF_A_TEST\""]).arg(binary());
        let gateway = setup.start_as(command);
        assert_eq!(exchange(&gateway.address, request())[0].status, 200, "{name}={value}");
    }
}

/// What systemd, or whoever stands in for it, has heard.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: Folder,
}

impl Manager {
    fn new() -> Self {
        let folder = Folder::default();
        let path = folder.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("a path of our own");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("longer than nothing");
        Self { socket, path, _folder: folder }
    }

    /// The next message that is about `what`; others before it are passed over, but for a READY.
    fn hear(&self, what: &str) -> String {
        loop {
            let mut buffer = [0; 4096];
            let count = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if text.lines().any(|line| line.starts_with(what)) {
                return text;
            }
            assert!(!text.contains("READY=1"), "{what} comes first: {text}");
        }
    }

    /// What has come and was not heard yet.
    fn rest(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).expect("a socket");
        let next = || {
            let mut buffer = [0; 4096];
            let count = self.socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }
}

fn told_by(manager: &Manager, watchdog: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .env_clear()
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", watchdog)
        .args(["-c", "exec \"$0\" --config \"$GATEWAY_OF_A_TEST\""])
        .arg(binary());
    command
}

#[test]
fn systemd_hears_what_the_process_does() {
    let hub = datahub();
    let (setup, manager) = (Setup::new(&[("a", &hub)]), Manager::new());
    let mut gateway = setup.start_as(told_by(&manager, "400000"));
    assert!(manager.hear("READY=1").contains("STATUS=serving"));
    let begun = Instant::now();
    for _ in 0..5 {
        manager.hear("WATCHDOG=1");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "more often than each period: {:?}", begun.elapsed());
    for (lines, event, status) in
        [("", "keys_reloaded", "STATUS=serving"), ("surprise = 1", "reload_failed", "STATUS=serving as before")]
    {
        setup.clone().and(lines).write();
        assert_eq!(gateway.reload()["event"], event);
        let told = manager.hear("RELOADING=1");
        let micros = told.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse::<i64>().ok());
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let age = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000 - micros.expect("a number");
        assert!((0..20_000_000).contains(&age), "{told}");
        let told = manager.hear("READY=1");
        assert!(told.lines().any(|line| line.starts_with(status)), "{told}");
    }
    // Half a body is under way, so that it takes its time.
    let mut wire = crate::wire::Wire::open(&gateway.address);
    wire.send(format!(
        "POST {BASE}/auth/refresh HTTP/1.1\r\nHost: localhost:8000\r\nX-CSRF: 1\r\nContent-Length: 9\r\n\r\nabc"
    ));
    gateway.terminate();
    manager.hear("STOPPING=1");
    signal("HUP", gateway.pid());
    std::thread::sleep(Duration::from_millis(500));
    signal("INT", gateway.pid());
    assert!(gateway.wait_for_end().expect("it ends").success());
    for told in manager.rest() {
        assert!(!told.contains("RELOADING=1") && !told.contains("READY=1"), "it does not take back its end: {told}");
    }
}

/// Who does not read what it asked to be told, or is not there, keeps nobody.
#[test]
fn a_manager_that_does_not_listen_is_no_obstacle() {
    let hub = datahub();
    let manager = Manager::new();
    let gateway = Setup::new(&[("a", &hub)]).start_as(told_by(&manager, "4000"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(exchange(&gateway.address, request())[0].status, 200);
    drop(gateway);
    fs::remove_file(&manager.path).expect("it is there");
    let gateway = Setup::new(&[("a", &hub)]).start_as(told_by(&manager, "nonsense"));
    assert_eq!(exchange(&gateway.address, request())[0].status, 200);
    gateway
        .wait_for_line(|line| line["message"].as_str().is_some_and(|it| it.starts_with("systemd could not be told")));
}

const PROBES: [&str; 5] = [
    // HAProxy's `option httpchk GET …`, with and without fields of one's own.
    "GET {} HTTP/1.0\r\n\r\n",
    "GET {} HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n",
    "GET {} HTTP/1.1\r\nHost: 10.0.0.7:8000\r\nConnection: close\r\n\r\n",
    "HEAD {} HTTP/1.0\r\nHost: a host with spaces\r\n\r\n",
    "GET {}?from=haproxy HTTP/1.1\r\nHost: x\r\nOrigin: https://elsewhere.example\r\nSec-Fetch-Site: cross-site\r\nConnection: close\r\n\r\n",
];

fn probe(probe: &str, path: &str) -> String {
    probe.replace("{}", &format!("{BASE}{path}"))
}

#[test]
fn a_front_may_ask_for_health_below_the_base_path_whatever_host_it_names() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    let setup = Setup::new(&[("a", &hub)]).and("server.health = true");
    let on_unix = setup.clone().listening_at(&format!("unix:{}", path.display()));
    let gateway = on_unix.start();
    for bytes in PROBES {
        for (route, body) in [("/healthz", "alive\n"), ("/readyz", "ready\n")] {
            let answer = ask(&path, &probe(bytes, route));
            assert!(answer.contains(" 200 OK\r\n") && answer.contains("\r\ncache-control: no-store\r\n"), "{answer}");
            assert_eq!(answer.ends_with(body), !bytes.starts_with("HEAD"), "{answer}");
        }
    }
    let other = ask(
        &path,
        &format!("POST {BASE}/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
    );
    assert!(other.starts_with("HTTP/1.1 405 ") && other.contains("allow: GET, HEAD\r\n"), "{other}");
    // Everything else there is judged as ever, also what looks alike.
    for (target, expected) in [("/datahubs", " 421 "), ("/healthz/", " 421 "), ("/healthzz", " 421 ")] {
        assert!(ask(&path, &probe(PROBES[2], target)).contains(expected), "{target}");
    }
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["route"] == "/healthz");
    assert_eq!((line["status"].as_u64(), line["method"].as_str()), (Some(200), Some("GET")));
    drop(gateway);

    let trusted = setup.clone().and("server.trusted_proxies = [\"127.0.0.1\"]").start();
    let stranger = setup.start();
    let off = Setup::new(&[("a", &hub)]).and("server.trusted_proxies = [\"127.0.0.1\"]").start();
    for bytes in PROBES.iter().filter(|bytes| bytes.starts_with("GET")) {
        for route in ["/healthz", "/readyz"] {
            let bytes = probe(bytes, route);
            let status = |address: &str| exchange(address, &bytes)[0].status;
            assert_eq!((status(&trusted.address), status(&stranger.address)), (200, 404), "{bytes}");
            assert_ne!(status(&off.address), 200, "{bytes}");
        }
    }
    // Nobody is told more by a page of our own.
    let page = format!("GET {BASE}/healthz HTTP/1.1\r\nHost: localhost:8000\r\nX-CSRF: 1\r\nConnection: close\r\n\r\n");
    for gateway in [&stranger, &off] {
        assert_eq!(crate::wire::summary(&exchange(&gateway.address, &page)[0]), "404 not_found");
    }
}

/// `/readyz` turns first, so that a front sends nothing more; the process lives on.
#[test]
fn a_front_sees_that_a_gateway_is_about_to_end() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("gateway.sock");
    let setup = Setup::new(&[("a", &hub)]).and("server.health = true");
    let mut gateway = setup.listening_at(&format!("unix:{}", path.display())).start();
    let mut streams = ["/readyz", "/healthz"].map(|route| (UnixStream::connect(&path).expect("it listens"), route));
    // Until a worker has them.
    std::thread::sleep(Duration::from_millis(100));
    gateway.terminate();
    gateway.wait_for_line(|line| line["message"] == "ending");
    for (stream, route) in &mut streams {
        stream.write_all(probe(PROBES[2], route).as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (status, body) = if *route == "/readyz" { (" 503 ", "draining\n") } else { (" 200 ", "alive\n") };
        assert!(answer.contains(status) && answer.ends_with(body), "{answer}");
    }
    assert!(gateway.wait_for_end().expect("it ends").success());
}
