//! A proxy on the way to a DataHUB: asked by CONNECT, for calls and for our own requests alike.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::browser::Browser;
use crate::far_end::head;
use crate::gateway::{Folder, Setup, datahub, new_key, run, wait_until};
use crate::tls::{Authority, Far, listen};
use crate::token_endpoint::{USER, lifetime};

const YES: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// A proxy that leads to one place, whatever name it is asked for.
struct Proxy {
    address: SocketAddr,
    seen: Arc<Seen>,
}

struct Seen {
    /// What it says to CONNECT; if that is no 2xx, there is no tunnel.
    answer: Mutex<Vec<u8>>,
    /// The heads that it was sent.
    heads: Mutex<Vec<String>>,
    /// What went up through its tunnels.
    up: Mutex<Vec<u8>>,
}

impl Proxy {
    fn to(place: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::new(Seen { answer: Mutex::new(YES.to_vec()), heads: Mutex::default(), up: Mutex::default() });
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&shared);
                thread::spawn(move || serve(stream, place, &seen));
            }
        });
        Self { address, seen }
    }

    /// From now on answers so.
    fn answer(&self, answer: &[u8]) {
        *self.seen.answer.lock().expect("no panic while held") = answer.to_vec();
    }

    fn heads(&self) -> Vec<String> {
        self.seen.heads.lock().expect("no panic while held").clone()
    }

    fn up(&self) -> String {
        String::from_utf8_lossy(&self.seen.up.lock().expect("no panic while held")).into_owned()
    }

    /// Leads `datahubs.a` through it, by a name that nobody else knows.
    fn lines(&self) -> String {
        format!("datahubs.a.connect = \"hub.of.a.test.invalid:8443\"\ndatahubs.a.via = \"http://{}\"", self.address)
    }
}

fn serve(stream: TcpStream, place: SocketAddr, seen: &Seen) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream);
    let head = head(&mut reader)?;
    seen.heads.lock().expect("no panic while held").push(head);
    let answer = seen.answer.lock().expect("no panic while held").clone();
    if answer == b"silent" {
        std::io::copy(&mut reader, &mut std::io::sink()).ok()?;
        return Some(());
    }
    reader.get_mut().write_all(&answer).ok()?;
    if answer != YES {
        return reader.get_ref().shutdown(Shutdown::Write).ok();
    }
    let mut far = TcpStream::connect(place).ok()?;
    far.set_nodelay(true).ok()?;
    let (mut down, mut near) = (far.try_clone().ok()?, reader.get_ref().try_clone().ok()?);
    thread::spawn(move || {
        std::io::copy(&mut down, &mut near).ok();
        near.shutdown(Shutdown::Both).ok();
    });
    let mut piece = [0; 4096];
    loop {
        match reader.read(&mut piece) {
            Ok(count @ 1..) => {
                seen.up.lock().expect("no panic while held").extend_from_slice(&piece[..count]);
                far.write_all(&piece[..count]).ok()?;
            }
            _ => return far.shutdown(Shutdown::Both).ok(),
        }
    }
}

/// Discovery, keys, code, userinfo, calls, refresh and revocation all go through it, and the proxy looks the name up.
#[test]
fn whatever_goes_to_the_datahub_goes_through_the_proxy() {
    let hub = lifetime(3);
    let proxy = Proxy::to(hub.address());
    let setup = Setup::new(&[("a", &hub)]).and(&proxy.lines());
    let gateway = setup.start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!(browser.fetch_following(&gateway, "GET", USER, b"").status, 200);
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout").status, 204);
    wait_until(|| hub.live_tokens().is_empty());
    let expected = "CONNECT hub.of.a.test.invalid:8443 HTTP/1.1\r\nHost: hub.of.a.test.invalid:8443\r\n\r\n";
    let heads = proxy.heads();
    assert!(heads.len() >= 6 && heads.iter().all(|head| head == expected), "{heads:?}");
    let up = proxy.up();
    for path in
        ["/.well-known/openid-configuration", "/oauth/token", "/oauth/userinfo", "/api/v4/user", "/oauth/revoke"]
    {
        assert!(up.contains(path), "{path} went another way");
    }
    assert_eq!(hub.counts().refreshes, 1);

    let file = setup.write();
    let output = run(&["check", "--config", file.to_str().expect("a plain path")], &[]);
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(told.contains(&format!("http://{}", proxy.address)), "{told}");
}

/// TLS is between us and the DataHUB: the proxy sees where we go and nothing else, and cannot be in its place.
#[test]
fn the_proxy_sees_no_token_and_cannot_stand_in_for_the_datahub() {
    let (hub, key) = (datahub(), new_key());
    let browser = Browser::default();
    let logged_in_at = Setup::with_keys(&[("a", &hub)], &[&key]).start();
    browser.log_in(&logged_in_at, "a", &hub, "testuser");
    let authority = Authority::new();
    for (name, is_taken) in [("localhost", true), ("proxy.example", false)] {
        let (far, heard) = listen(Far::tls(authority.certify(name, 2020, 2050), &[&rustls::version::TLS13]));
        let proxy = Proxy::to(far);
        let setup = Setup::with_keys(&[("a", &hub)], &[&key]).at(hub.url(), "https://localhost:8443");
        let ca_file = setup.file("ca.pem", &authority.pem());
        let lines = format!("datahubs.a.via = \"http://{}\"\ndatahubs.a.ca_file = {ca_file:?}", proxy.address);
        let gateway = setup.and(&lines).start();
        let answer = browser.fetch(&gateway, "GET", USER);
        assert_eq!(
            (answer.status, heard.load(Ordering::Relaxed)),
            if is_taken { (200, 1) } else { (502, 0) },
            "{name}"
        );
        let heads = proxy.heads();
        assert_eq!(heads, ["CONNECT localhost:8443 HTTP/1.1\r\nHost: localhost:8443\r\n\r\n"], "{name}");
        let up = proxy.up();
        assert!(!up.is_empty() && !up.contains("Bearer") && !up.contains("/api/v4"), "{name}");
        assert!(hub.secrets().iter().all(|secret| !up.contains(secret.as_str())), "{name}");
        if !is_taken {
            gateway.wait_for_event("datahub_tls_failed");
        }
    }
}

#[test]
fn a_proxy_that_lets_nobody_through_is_named_in_the_log_with_what_it_said() {
    let (hub, key) = (datahub(), new_key());
    let browser = Browser::default();
    let logged_in_at = Setup::with_keys(&[("a", &hub)], &[&key]).start();
    browser.log_in(&logged_in_at, "a", &hub, "testuser");
    let long = format!("HTTP/1.1 200 OK\r\nVia: {}\r\n\r\n", "a".repeat(17_000));
    for (case, answer, code, told) in [
        ("as it should be", YES, "", ""),
        ("refused", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\ncanary", "datahub_unreachable", "with 403"),
        ("a password", b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n", "datahub_unreachable", "with 407"),
        ("nobody there", b"HTTP/1.1 503 x\r\n\r\n", "datahub_unreachable", "with 503"),
        (
            "two answers",
            b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "datahub_unreachable",
            "more than an answer",
        ),
        ("a long answer", long.as_bytes(), "datahub_unreachable", "longer than 16 KiB"),
        ("no HTTP", b"SSH-2.0-canary\r\n\r\n", "datahub_unreachable", "not HTTP"),
        ("nothing", b"", "datahub_unreachable", "without an answer"),
        ("silent", b"silent", "datahub_timeout", "timeouts.connect"),
    ] {
        let proxy = Proxy::to(hub.address());
        proxy.answer(answer);
        let lines = format!("{}\ntimeouts.connect = \"500ms\"", proxy.lines());
        let gateway = Setup::with_keys(&[("a", &hub)], &[&key]).and(&lines).start();
        hub.clear();
        let answer = browser.fetch(&gateway, "GET", USER);
        if code.is_empty() {
            assert_eq!((answer.status, hub.requests().len()), (200, 1), "{case}");
            continue;
        }
        assert_eq!((answer.code().as_str(), hub.requests().len()), (code, 0), "{case}");
        let line = gateway.wait_for_line(|line| line["message"] == "a call failed");
        let reason = line["reason"].as_str().expect("a text");
        assert!(reason.contains(told) && !reason.contains("canary"), "{case}: {line}");
        assert!(reason.contains(&format!("http://{}", proxy.address)) || case == "silent", "{case}: {line}");
    }
}

/// What speaks no TLS, or shows a certificate of its own, may be the proxy: it says 200, and answers itself.
#[test]
fn a_proxy_that_answers_in_the_datahubs_place_is_named() {
    let hub = datahub();
    let (far, _) = listen(Far::tls(Authority::new().certify("localhost", 2020, 2050), &[&rustls::version::TLS13]));
    for (place, words) in [(hub.address(), "speaks no TLS"), (far, "nobody known vouches for its certificate")] {
        let proxy = Proxy::to(place);
        let setup = Setup::new(&[("a", &hub)]).at(hub.url(), "https://localhost:8443");
        for (lines, is_named) in [
            (format!("datahubs.a.via = \"http://{}\"", proxy.address), true),
            (format!("datahubs.a.connect = \"{place}\""), false),
        ] {
            let file = setup.clone().and(&lines).write();
            let output = run(&["check", "--config", file.to_str().expect("a plain path")], &[]);
            let told = String::from_utf8(output.stdout).expect("UTF-8");
            let line = told.lines().find(|line| line.starts_with("a: ") && line.contains(words)).expect(&told);
            let name = format!("it was reached through http://{}, which may answer in its place", proxy.address);
            assert_eq!(line.contains(&name), is_named, "{line}");
            assert!(!is_named || !line.contains("write http://"), "{line}");
        }
    }
}

/// A proxy that is gone is a DataHUB that cannot be reached: after five failures nobody waits for it any more.
#[test]
fn the_breaker_takes_a_proxy_for_the_way_that_it_is() {
    let (dead, alive) = (datahub(), datahub());
    let proxy = Proxy::to(dead.address());
    let gateway = Setup::new(&[("a", &dead), ("b", &alive)]).and(&proxy.lines()).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "b", &alive, "testuser");
    browser.log_in(&gateway, "a", &dead, "testuser");
    proxy.answer(b"HTTP/1.1 502 Bad Gateway\r\n\r\n");
    let before = proxy.heads().len();
    for _ in 0..5 {
        assert_eq!(browser.fetch(&gateway, "GET", USER).code(), "datahub_unreachable");
    }
    let (answer, asked) = (browser.fetch(&gateway, "GET", USER), proxy.heads().len());
    assert_eq!((answer.code().as_str(), answer.header("retry-after").as_deref()), ("datahub_unreachable", Some("1")));
    assert_eq!(asked, before + 5, "the sixth was not tried");
    assert!(gateway.metrics().contains("gateway_datahub_up{datahub=\"a\"} 0\n"));
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/b/api/v4/user").status, 200, "who needs no proxy needs none");
    proxy.answer(YES);
    wait_until(|| gateway.metrics().contains("gateway_datahub_up{datahub=\"a\"} 1\n"));
    assert_eq!(browser.fetch(&gateway, "GET", USER).status, 200);
}

#[test]
fn a_way_that_cannot_be_is_a_fault_and_no_secret_is_told() {
    let folder = Folder::default();
    for (via, connect, told) in [
        ("https://proxy.example:3128", "hub.example:443", Some("datahubs.a.via must be http://host:port")),
        ("proxy.example:3128", "hub.example:443", Some("datahubs.a.via must be http://host:port")),
        ("http://proxy.example:3128/path", "hub.example:443", Some("datahubs.a.via must be http://host:port")),
        (
            "http://user:canary@proxy.example:3128",
            "hub.example:443",
            Some("datahubs.a.via must hold no user and no password"),
        ),
        ("http://proxy.example:3128", "unix:/run/hub.sock", Some("datahubs.a.connect must not be a unix socket")),
        ("http://127.0.0.1:1", "hub.example:443", None),
    ] {
        let config = format!(
            "session.keys = [\"{}\"]\ndatahubs.a = {{ url = \"https://hub.example\", client_id = \"a\", \
             client_secret = \"0123456789abcdef\", via = \"{via}\", connect = \"{connect}\" }}",
            new_key()
        );
        let file = folder.file("gateway.toml", &config);
        let output = run(&["check", "--config", file.to_str().expect("a plain path")], &[]);
        let output = (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8"));
        assert!(!output.1.contains("canary"), "{via}");
        match told {
            Some(told) => assert!(output.0 == Some(78) && output.1.contains(told), "{via}: {}", output.1),
            // Nobody is there, which is not the configuration's fault.
            None => assert!(output.0 == Some(1) && output.1.contains("through http://127.0.0.1:1"), "{}", output.1),
        }
    }
}
