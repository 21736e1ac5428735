//! The bridge to the ARCmanager's old backend, which is played by hand here; `tests/clients/test_bridge.py` has a real one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::browser::{Answer, Browser, FETCH};
use crate::far_end;
use crate::gateway::{BASE, Folder, Setup, datahub, datahub_with, run, wait_until};

const JWT_KEY: &str = include_str!("../datahub/keys/first.pem");
const OTHER_JWT_KEY: &str = include_str!("../datahub/keys/second.pem");
const FERNET_KEY: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

/// The old backend: remembers what came, and answers by the last word of the path.
#[derive(Clone, Default)]
struct Backend(Arc<Mutex<Vec<Request>>>);

#[derive(Clone)]
struct Request {
    head: String,
    body: usize,
}

impl Request {
    fn target(&self) -> &str {
        self.head.split(' ').nth(1).expect("a target")
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (other, value) = line.split_once(':')?;
            other.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The claims of its cookie, whose signature is good under `key`.
    fn claims_under(&self, key: &str) -> Value {
        let cookie = self.field("cookie").and_then(|cookie| cookie.strip_prefix("data=")).expect("the one cookie");
        let (signed, signature) = cookie.rsplit_once('.').expect("three parts");
        let der = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).expect("an RSA key");
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, pair.public_key().as_ref());
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64url");
        public.verify(signed.as_bytes(), &decode(signature)).expect("a good signature");
        let (header, claims) = signed.split_once('.').expect("three parts");
        assert_eq!(
            serde_json::from_slice::<Value>(&decode(header)).expect("JSON"),
            json!({"alg": "RS256", "typ": "JWT"})
        );
        serde_json::from_slice(&decode(claims)).expect("JSON")
    }

    fn claims(&self) -> Value {
        self.claims_under(JWT_KEY)
    }
}

impl Backend {
    fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (backend, url) = (Self::default(), format!("http://{}", listener.local_addr().expect("it is bound")));
        let own = backend.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                thread::spawn(move || own.serve(stream.try_clone().expect("a socket"), stream));
            }
        });
        (backend, url)
    }

    fn serve(&self, reader: impl Read, mut writer: impl Write) -> Option<()> {
        let mut reader = BufReader::new(reader);
        while let Some(head) = far_end::head(&mut reader) {
            let mut request = Request { head, body: 0 };
            let word = request.target().split('?').next()?.rsplit('/').next()?.to_owned();
            if word == "deaf" {
                thread::sleep(Duration::from_secs(5));
            }
            if word != "early" {
                request.body = body(&mut reader, &request)?;
            }
            let is_head = request.head.starts_with("HEAD");
            self.0.lock().expect("no panic while held").push(request);
            let (status, fields) = match word.as_str() {
                "silent" => {
                    thread::sleep(Duration::from_secs(5));
                    return None;
                }
                "unauthorized" => ("401 Unauthorized", ""),
                "early" => ("504 Gateway Timeout", ""),
                "moved" => {
                    ("307 Temporary Redirect", "Location: http://inner:1/arcmanager/api/v1/projects/arc_list\r\n")
                }
                _ => (
                    "200 OK",
                    "total-pages: 3\r\nMissing-Package: 2\r\nSet-Cookie: data=canary\r\nServer: uvicorn\r\n\
                     Access-Control-Allow-Origin: *\r\nCache-Control: public\r\n",
                ),
            };
            let body = if is_head { "" } else { "{\"detail\":\"x\"}" };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 14\r\n{fields}\r\n{body}"
            );
            writer.write_all(head.as_bytes()).ok()?;
            if word == "early" {
                thread::sleep(Duration::from_millis(300));
                return None;
            }
        }
        None
    }

    fn requests(&self) -> Vec<Request> {
        self.0.lock().expect("no panic while held").clone()
    }

    /// The only one, which is forgotten then.
    fn one(&self) -> Request {
        let mut requests = self.0.lock().expect("no panic while held");
        assert_eq!(requests.len(), 1, "{:?}", requests.iter().map(|request| &request.head).collect::<Vec<_>>());
        requests.remove(0)
    }
}

/// Reads a body to its end; its length.
fn body(reader: &mut impl BufRead, request: &Request) -> Option<usize> {
    if request.field("transfer-encoding").is_none() {
        let length = request.field("content-length").map_or(0, |length| length.parse().expect("a number"));
        return usize::try_from(std::io::copy(&mut reader.take(length), &mut std::io::sink()).ok()?).ok();
    }
    let mut read = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        read += length;
        std::io::copy(&mut reader.take(length as u64 + 2), &mut std::io::sink()).ok()?;
        if length == 0 {
            return Some(read);
        }
    }
}

/// The same with a bridge to `url`, whose keys are beside the configuration.
pub fn bridged(setup: Setup, url: &str) -> Setup {
    let [jwt, fernet] = [("jwt.pem", JWT_KEY), ("fernet", FERNET_KEY)].map(|(name, text)| file(&setup, name, text));
    setup.and(&format!("bridge.url = {url:?}\nbridge.jwt_key_file = {jwt:?}\nbridge.fernet_key_file = {fernet:?}"))
}

/// The path of a file beside the configuration.
fn file(setup: &Setup, name: &str, text: &str) -> String {
    setup.file(name, text).to_str().expect("a plain path").to_owned()
}

/// Whether people read of the backend, and of no DataHUB.
fn is_told_of_the_backend(answer: &Answer) -> bool {
    let problem = answer.json();
    let texts = ["title", "detail"].map(|name| problem[name].as_str().expect("a text").to_owned());
    texts[1].contains("The ARCmanager's backend") && !texts.join(" ").contains("DataHUB")
}

fn is_quiet(backend: &Backend, answer: &Answer) -> bool {
    backend.requests().is_empty() && answer.status >= 400
}

/// The whole head, but for what differs from call to call.
#[test]
fn a_call_goes_up_with_the_minted_cookie_and_nothing_else_of_the_browsers() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let gateway = bridged(Setup::new(&[("a", &hub)]), &url).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    gateway.keep_secret([FERNET_KEY.to_owned()]);
    browser.set_cookie("data", "own");
    let target = format!("{BASE}/projects/arc_path?path=a%20b/c+d%25&&id=7&branch=main%20&");
    let fields = format!(
        "{FETCH}Content-Type: application/json\r\nContent-Length: 2\r\nAccept: */*\r\nAccept-Language: de\r\nAccept-Encoding: gzip\r\n\
         Authorization: Bearer own\r\nPrivate-Token: own\r\nUser-Agent: own\r\nReferer: http://localhost:8000/x\r\nX-Own: 1\r\n\
         Range: bytes=0-1\r\nIf-None-Match: x\r\nX-Forwarded-For: 192.0.2.1\r\n"
    );
    let answer = browser.send(&gateway, "POST", &target, &fields, b"{}");
    assert_eq!(answer.status, 200, "{}", answer.head);
    let request = backend.one();
    assert_eq!((request.target(), request.body), (target.as_str(), 2), "byte for byte");
    let names: Vec<_> =
        request.head.lines().skip(1).filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    let expected = [
        "Host",
        "Cookie",
        "Content-Type",
        "Accept",
        "Accept-Language",
        "Accept-Encoding",
        "content-length",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Request-Id",
        "traceparent",
    ];
    assert_eq!(names, expected);
    assert_eq!(request.field("host"), url.strip_prefix("http://"));
    let id = answer.header("x-request-id").expect("an id");
    assert_eq!(request.field("x-request-id"), Some(id.as_str()));
    let minted = request.field("cookie").and_then(|cookie| cookie.strip_prefix("data=")).expect("the one cookie");
    gateway.keep_secret(minted.split('.').skip(1).map(str::to_owned).chain(JWT_KEY.lines().map(str::to_owned)));
    let claims = request.claims();
    let names: Vec<_> = claims.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!((names, &claims["target"]), (vec!["gitlab", "refresh", "target"], &json!("a")));
    assert!(claims["gitlab"].as_str().expect("a text").starts_with("gAAAA"), "Fernet, of these decades");

    // Down: the list, and what the app reads of this backend's.
    for (name, value) in
        [("total-pages", Some("3")), ("missing-package", Some("2")), ("set-cookie", None), ("server", None)]
    {
        assert_eq!(answer.header(name).as_deref(), value, "{name}");
    }
    for (name, value) in [
        ("cache-control", "private, no-store"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(answer.header(name).as_deref(), Some(value), "{name}");
    }
    assert!(answer.header("access-control-allow-origin").is_none());
    let line = gateway.wait_for_line(|line| line["target"] == "access" && line["request_id"] == id.as_str());
    assert_eq!(
        (&line["datahub"], &line["route"], &line["bytes_in"]),
        (&"bridge".into(), &"/projects/{path}".into(), &2.into())
    );
    assert!(line["upstream_ms"].is_number(), "{line}");
    let metrics = gateway.metrics();
    for line in [
        "gateway_requests_total{datahub=\"bridge\",method=\"POST\",status=\"200\"} 1",
        "gateway_datahub_up{datahub=\"bridge\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert_eq!(
        browser
            .send(&gateway, "HEAD", &format!("{BASE}/projects/arc_list"), FETCH, b"")
            .header("total-pages")
            .as_deref(),
        Some("3")
    );
}

/// AR-01: each group, and the twin without a bridge.
#[test]
fn six_groups_of_paths_go_to_the_backend_if_there_is_one() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let gateway = bridged(Setup::new(&[("a", &hub)]), &url).start();
    let without = Setup::new(&[("a", &hub)]).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    for (method, path) in [
        ("GET", "/projects/arc_list?owned=true&page=1"),
        ("DELETE", "/fnf/deleteFile?id=7"),
        ("PUT", "/tnt/saveTemplate"),
        ("GET", "/user/getUser"),
        ("GET", "/validate/validateArc?id=7"),
        ("PATCH", "/projects/syncAssay"),
        ("GET", "/search/getArcJson"),
    ] {
        assert_eq!(browser.fetch(&gateway, method, path).status, 200, "{path}");
        assert_eq!(backend.one().target(), format!("{BASE}{path}"));
        assert_eq!(browser.fetch(&without, method, path).status, 404, "{path}");
    }
    assert_eq!(browser.fetch(&gateway, "GET", "/projectss/x").status, 404);
    assert_eq!(browser.fetch(&gateway, "GET", "/auth/session").status, 200);
    let moved = browser.fetch(&gateway, "GET", "/projects/moved");
    assert_eq!(moved.status, 502, "a redirect to who knows where: {}", moved.head);
    assert!(backend.requests().len() == 1);
}

#[test]
fn what_anybody_may_have_goes_up_without_a_token_at_the_rate_of_calls_without_a_login() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let setup =
        Setup::new(&[("a", &hub)]).and("rate_limit.anonymous = \"5/1h\"\nserver.trusted_proxies = [\"127.0.0.0/8\"]");
    let gateway = bridged(setup, &url).start();
    let (nobody, somebody) = (Browser::default(), Browser::default());
    somebody.log_in(&gateway, "a", &hub, "testuser");
    let paths = [
        "/projects/public_arcs?target=a&page=1",
        "/tnt/getTemplates",
        "/tnt/getTerms?input=x",
        "/tnt/getTermSuggestions?input=x",
        "/tnt/getTermSuggestionsByParentTerm?input=x",
    ];
    let from = |browser: &Browser, path: &str| {
        let fields = format!("{FETCH}X-Forwarded-For: 192.0.2.1\r\n");
        browser.send(&gateway, "GET", &format!("{BASE}{path}"), &fields, b"")
    };
    for path in paths {
        let answer = from(&nobody, path);
        assert_eq!((answer.status, answer.header("x-gateway-session").as_deref()), (200, Some("none")), "{path}");
        assert_eq!(backend.one().field("cookie"), None, "{path}");
    }
    let limited = from(&nobody, paths[0]);
    assert_eq!((limited.status, limited.code()), (429, "rate_limited".to_owned()));
    assert!(is_quiet(&backend, &limited) && limited.header("retry-after").is_some());
    assert!(
        gateway.metrics().contains("gateway_anonymous_calls_total{datahub=\"bridge\",result=\"client_limited\"} 1")
    );
    // Who is logged in is not counted so, and needs no token for it either.
    let answer = from(&somebody, paths[0]);
    assert_eq!((answer.status, answer.header("x-gateway-session")), (200, None));
    assert_eq!(backend.one().field("cookie"), None);
}

#[test]
fn all_else_needs_a_login() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let gateway = bridged(Setup::new(&[("a", &hub)]), &url).start();
    let (browser, stranger) = (Browser::default(), Browser::default());
    browser.log_in(&gateway, "a", &hub, "testuser");
    for (method, path) in [
        ("GET", "/projects/arc_list"),
        ("POST", "/projects/public_arcs"),
        ("PUT", "/tnt/saveTemplate"),
        ("POST", "/search/createArcJson"),
    ] {
        let answer = stranger.fetch(&gateway, method, path);
        assert_eq!((answer.status, answer.code()), (401, "not_logged_in".to_owned()), "{path}");
        assert!(is_quiet(&backend, &answer));
        assert_eq!(browser.fetch(&gateway, method, path).status, 200, "{path}");
        backend.one();
    }
    let ended = bridged(Setup::new(&[("a", &hub)]).and("session.max_age = \"1s\""), &url).start();
    let late = Browser::default();
    late.log_in(&ended, "a", &hub, "testuser");
    thread::sleep(Duration::from_millis(1_100));
    assert_eq!(late.fetch(&ended, "GET", "/projects/arc_list").code(), "session_expired");
    browser.set_cookie("__Host-Http-session-a", "canary");
    assert_eq!(browser.fetch(&gateway, "GET", "/projects/arc_list").code(), "not_logged_in");
    assert_eq!(
        browser.fetch(&gateway, "GET", "/projects/public_arcs").status,
        200,
        "what needs no login needs no good one"
    );
}

/// F1, F2, F3, F4, F5, F7: each stays shut, and `bridge.allow` opens it.
#[test]
fn the_holes_of_the_original_stay_shut_until_they_are_opened_by_name() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let shut = bridged(Setup::new(&[("a", &hub)]), &url).start();
    let names = r#"["commitFile", "exportProject", "publishArc", "saveTemplate", "createArcJson", "parameters"]"#;
    let open = bridged(Setup::new(&[("a", &hub)]), &url).and(&format!("bridge.allow = {names}")).start();
    let browsers = [&shut, &open].map(|gateway| {
        let browser = Browser::default();
        browser.log_in(gateway, "a", &hub, "testuser");
        browser
    });
    for (method, path, status, code) in [
        ("PUT", "/projects/commitFile?id=7&file%50ath=/etc/passwd", 404, "not_forwarded"),
        ("POST", "/projects/publish%41rc", 404, "not_forwarded"),
        ("POST", "/projects/exportProject", 404, "not_forwarded"),
        ("GET", "/projects/arc_tree?id=7&branch=main%26private_token%3Dx", 400, "bad_request_target"),
        ("GET", "/projects/arc_tree?id=7&branch=main;private_token=x", 400, "bad_request_target"),
    ] {
        let refused = browsers[0].fetch(&shut, method, path);
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{path}");
        assert!(is_quiet(&backend, &refused), "{path}");
        assert_eq!(browsers[1].fetch(&open, method, path).status, 200, "{path}");
        assert_eq!(backend.one().target(), format!("{BASE}{path}"));
    }
    assert_eq!(shut.wait_for_event("target_refused")["datahub"], "bridge");
    let nobody = Browser::default();
    for (method, path) in [("PUT", "/tnt/saveTemplate"), ("POST", "/search/createArcJson")] {
        let refused = nobody.fetch(&shut, method, path);
        assert_eq!(
            (refused.status, refused.json()["detail"].as_str()),
            (401, Some("There is no session at any DataHUB. Log in first."))
        );
        assert_eq!(nobody.fetch(&open, method, path).status, 200, "{path}");
        assert_eq!(backend.one().field("cookie"), None);
    }
    for path in ["/projects/%2e%2e/auth/session", "/projects/..%2fx", "/projects/x%00"] {
        let answer = browsers[1].fetch(&open, "GET", path);
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request_target"), "{path}");
    }
    assert!(
        open.log().iter().any(|line| line["message"].as_str().is_some_and(|text| text.starts_with("bridge.allow ")))
    );
}

#[test]
fn only_this_origins_own_script_may_call() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let gateway = bridged(Setup::new(&[("a", &hub)]), &url).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    for fields in [
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n",
        "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\nOrigin: http://evil.example\r\n",
        "",
    ] {
        for path in ["/fnf/deleteFile", "/projects/public_arcs"] {
            let answer = browser.send(&gateway, "POST", &format!("{BASE}{path}"), fields, b"");
            assert_eq!((answer.status, answer.code()), (403, "cross_site_request".to_owned()), "{fields}");
            assert!(is_quiet(&backend, &answer));
        }
    }
    assert_eq!(browser.fetch(&gateway, "DELETE", "/fnf/deleteFile").status, 200);

    // A development server's script may, and may read what the app reads.
    let origin = "http://localhost:5173";
    let dev = bridged(Setup::new(&[("a", &hub)]).and(&format!("app.dev_origins = [{origin:?}]")), &url).start();
    let fields =
        format!("Origin: {origin}\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n");
    let answer = browser.send(&dev, "GET", &format!("{BASE}/projects/public_arcs"), &fields, b"");
    assert_eq!((answer.status, answer.header("access-control-allow-origin").as_deref()), (200, Some(origin)));
    assert!(answer.headers("access-control-expose-headers").join(", ").ends_with("total-pages, missing-package"));
}

/// B1, B2: the one that began last, and only tokens that are current.
#[test]
fn the_login_that_began_last_counts_and_its_tokens_are_renewed_before_the_call() {
    let (hub, (backend, url)) = (datahub_with(|it| it.token_lifetime = Duration::from_secs(2)), Backend::start());
    let other = datahub();
    let gateway = bridged(Setup::new(&[("a", &hub), ("b", &other)]), &url).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "b", &other, "testuser");
    browser.log_in(&gateway, "a", &hub, "joerg");
    assert_eq!(browser.fetch(&gateway, "GET", "/projects/arc_list").status, 200);
    let first = backend.one().claims();
    assert_eq!(first["target"], "a");
    thread::sleep(Duration::from_secs(2));
    let answer = browser.fetch_with(&gateway, "POST", "/fnf/uploadFile?x=1", "text/plain", b"body");
    assert_eq!((answer.status, answer.location().as_str(), hub.counts().refreshes), (307, "?x=1&_gateway_replay=1", 1));
    assert!(backend.requests().is_empty(), "nothing went up with the old token");
    let answer = browser.fetch_following(&gateway, "POST", "/fnf/uploadFile?x=1", b"body");
    assert_eq!(answer.status, 200, "{}", answer.head);
    let request = backend.one();
    assert_eq!((request.target(), request.body), (format!("{BASE}/fnf/uploadFile?x=1").as_str(), 4));
    assert_ne!(request.claims()["gitlab"], first["gitlab"]);
    assert!(request.head.len() < 4_096, "{}", request.head.len());
    browser.log_in(&gateway, "b", &other, "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", "/projects/arc_list").status, 200);
    assert_eq!(backend.one().claims()["target"], "b", "this one began last now");
    assert_eq!(browser.fetch(&gateway, "POST", "/auth/logout?datahub=b").status, 204);
    assert_eq!(browser.fetch_following(&gateway, "GET", "/projects/arc_list", b"").status, 200);
    assert_eq!(backend.one().claims()["target"], "a");
}

/// The app takes a 504 for success.
#[test]
fn a_504_comes_only_once_the_whole_body_went_up() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let limits = "timeouts.idle = \"500ms\"\nbridge.first_byte = \"700ms\"\n";
    let gateway = bridged(Setup::new(&[("a", &hub)]).and(limits), &url).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let call = |path: &str, body: &[u8]| {
        let answer = browser.fetch_with(&gateway, "POST", path, "application/octet-stream", body);
        if answer.status >= 500 {
            assert!(is_told_of_the_backend(&answer), "{}", answer.text());
        }
        (answer.status, if answer.status >= 500 { answer.code() } else { String::new() })
    };
    let large = vec![0; 24 << 20];
    assert_eq!(call("/fnf/silent", b"body"), (504, "datahub_timeout".to_owned()));
    assert_eq!(call("/fnf/deaf", &large), (502, "datahub_unreachable".to_owned()), "the body was not taken");
    assert_eq!(call("/fnf/early", &large), (502, "datahub_invalid_response".to_owned()), "another's 504");
    assert_eq!(call("/fnf/unauthorized", b"body"), (401, String::new()), "the backend's own, as it is");
    assert_eq!(call("/fnf/uploadFile", &large), (200, String::new()));
    assert_eq!(backend.requests().last().expect("it came").body, large.len());

    let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port");
    let nowhere = bridged(Setup::new(&[("a", &hub)]), &format!("http://{free}")).start();
    browser.log_in(&nowhere, "a", &hub, "testuser");
    for _ in 0..6 {
        let answer = browser.fetch(&nowhere, "GET", "/projects/arc_list");
        assert_eq!((answer.status, answer.code().as_str()), (502, "datahub_unreachable"));
        assert!(is_told_of_the_backend(&answer), "{}", answer.text());
    }
    let line = nowhere.wait_for_line(|line| line["message"] == "a call failed");
    assert_eq!(line["datahub"], "bridge", "{line}");
    let line =
        nowhere.wait_for_line(|line| line["message"] == "a DataHUB cannot be reached; the gateway goes on trying");
    assert_eq!(line["datahub"], "bridge");
    assert_eq!(
        browser.fetch(&nowhere, "GET", "/datahubs/a/api/v4/user").status,
        200,
        "a DataHUB has places of its own"
    );
    nowhere.expects_orphans_up_to(1, "the browser has logged in twice");
}

#[test]
fn an_upload_is_bounded_and_streams() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let gateway = bridged(Setup::new(&[("a", &hub)]), &url).quiet().start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let fields =
        |length: u64| format!("{FETCH}Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n");
    let target = format!("{BASE}/fnf/uploadFile");
    let refused = browser.begin(&gateway, "POST", &target, &fields((128 << 20) + 1)).answer(true);
    assert_eq!((refused.status, refused.code()), (413, "body_too_large".to_owned()));
    let before = gateway.peak_memory();
    let (piece, count) = (vec![0; 1 << 20], 101);
    let mut connection = browser.begin(&gateway, "POST", &target, &fields(count << 20));
    (0..count).for_each(|_| connection.write(&piece));
    assert_eq!(connection.answer(true).status, 200);
    assert_eq!(backend.one().body, 101 << 20);
    let more = gateway.peak_memory() - before;
    assert!(more < 16 << 20, "{more} bytes more");
    // In chunks, whose length nobody says before.
    let fields = format!("{FETCH}Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n");
    let mut connection = browser.begin(&gateway, "POST", &target, &fields);
    connection.write(b"4\r\nbody\r\n0\r\n\r\n");
    assert_eq!(connection.answer(true).status, 200);
    assert_eq!(backend.one().field("transfer-encoding"), Some("chunked"));
    let mut connection = browser.begin(&gateway, "POST", &target, &fields);
    let chunk = [b"100000\r\n", &piece[..], b"\r\n"].concat();
    (0..128).for_each(|_| connection.write(&chunk));
    connection.write(b"1\r\nx\r\n");
    assert_eq!(connection.answer(true).code(), "body_too_large");
}

/// The last piece of a body may wait in the gateway while an answer comes.
#[test]
fn a_504_that_comes_before_the_last_byte_was_taken_is_none() {
    let hub = datahub();
    let folder = Folder::default();
    let path = folder.path().join("backend.sock");
    let listener = UnixListener::bind(&path).expect("a free path");
    let taken = Arc::new(Mutex::new(0));
    let count = Arc::clone(&taken);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
            let Some(head) = far_end::head(&mut reader) else { continue };
            // A socket holds about 200 KiB, so that the gateway waits with whatever is longer.
            thread::sleep(Duration::from_millis(60));
            let answer = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(answer).expect("it is read");
            thread::sleep(Duration::from_millis(20));
            drop(head);
            *count.lock().expect("no panic while held") =
                std::io::copy(&mut reader, &mut std::io::sink()).unwrap_or_default();
        }
    });
    let gateway = bridged(Setup::new(&[("a", &hub)]), &format!("unix:{}", path.display())).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let mut statuses = std::collections::BTreeSet::new();
    for length in (0..24).map(|step: usize| 4 + step * (24 << 10)) {
        let answer = browser.fetch_with(&gateway, "POST", "/fnf/uploadFile", "text/plain", &vec![b'x'; length]);
        statuses.insert(answer.status);
        if answer.status == 504 {
            let is_whole = || *taken.lock().expect("no panic while held") == length as u64;
            wait_until(is_whole);
        } else {
            assert_eq!((answer.status, answer.code().as_str()), (502, "datahub_invalid_response"), "{length}");
        }
    }
    assert_eq!(Vec::from_iter(statuses), [502, 504], "short ones go up whole, long ones do not");
}

#[test]
fn a_unix_socket_will_do_and_new_keys_are_taken_over() {
    let (hub, folder, backend) = (datahub(), Folder::default(), Backend::default());
    let path = folder.path().join("backend.sock");
    let (listener, own) = (UnixListener::bind(&path).expect("a folder of our own"), backend.clone());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let own = own.clone();
            thread::spawn(move || own.serve(stream.try_clone().expect("a socket"), stream));
        }
    });
    let setup = bridged(Setup::new(&[("a", &hub)]).quiet(), &format!("unix:{}", path.display()));
    let gateway = setup.start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    assert_eq!(browser.fetch(&gateway, "GET", "/projects/arc_list").status, 200);
    let request = backend.one();
    assert_eq!(request.field("host"), Some("localhost"));
    request.claims();
    setup.file("jwt.pem", OTHER_JWT_KEY);
    assert_eq!(gateway.reload()["event"], "keys_reloaded");
    assert_eq!(browser.fetch(&gateway, "GET", "/projects/arc_list").status, 200);
    backend.one().claims_under(OTHER_JWT_KEY);
    setup.file("jwt.pem", "no key");
    assert_eq!(gateway.reload()["event"], "reload_failed");
    assert_eq!(browser.fetch(&gateway, "GET", "/projects/arc_list").status, 200);
    backend.one().claims_under(OTHER_JWT_KEY);
}

/// CF-02.
#[test]
fn what_is_wrong_with_the_bridge_is_told_at_once_and_check_tries_it() {
    let (hub, (_, url)) = (datahub(), Backend::start());
    let check = |setup: &Setup| {
        let output = run(&["check", "--config", setup.write().to_str().expect("a plain path")], &[]);
        let [told, faults] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        (output.status.code(), told, faults)
    };
    let (code, told, _) = check(&bridged(Setup::new(&[("a", &hub)]), &url));
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("\nbridge: good\n"), "{told}");
    let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port");
    let (code, told, _) = check(&bridged(Setup::new(&[("a", &hub)]), &format!("http://{free}")));
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains(
            "\nbridge: the old backend cannot be reached: see that it runs, and at bridge.url (Connection refused"
        ),
        "{told}"
    );
    assert!(!told.lines().any(|line| line.starts_with("bridge: ") && line.contains("DataHUB")), "{told}");

    let setup = Setup::new(&[("bridge", &hub)]);
    let [jwt, fernet] = [("jwt.pem", "canary"), ("fernet", "canary")].map(|(name, text)| file(&setup, name, text));
    let lines = format!(
        "bridge = {{ url = \"http://canary.example\", jwt_key_file = {jwt:?}, fernet_key_file = {fernet:?}, allow = [\"canary\"], first_byte = \"canary\", typo = 1 }}"
    );
    let (code, _, faults) = check(&setup.and(&lines));
    assert_eq!(code, Some(78), "{faults}");
    for key in [
        "bridge.url must",
        "bridge.url makes",
        "bridge.jwt_key_file",
        "bridge.fernet_key_file",
        "bridge.allow",
        "bridge.first_byte",
        "bridge.typo",
    ] {
        assert!(faults.contains(&format!("\n  {key}")), "{key}: {faults}");
    }
    assert!(!faults.contains("canary"), "{faults}");
    for (case, lines, fault) in [
        (
            "no keys",
            "bridge.url = \"http://127.0.0.1:1\"",
            "bridge.jwt_key_file is missing, and there is no credential bridge-private.pem",
        ),
        ("no url", "bridge.jwt_key_file = \"/x\"", "bridge.jwt_key_file does nothing"),
        ("a path", "bridge.url = \"https://old.example/x\"", "bridge.url must"),
        ("not a path", "bridge.url = \"unix:x\"", "bridge.url must"),
        ("no URL", "bridge.url = \"old\"", "bridge.url must"),
    ] {
        let (code, _, faults) = check(&Setup::new(&[("a", &hub)]).and(lines));
        assert_eq!((code, faults.contains(fault)), (Some(78), true), "{case}: {faults}");
    }
}

/// The places at the backend are its own, and one person has a share of them.
#[test]
fn calls_that_wait_for_the_backend_hold_its_places_alone() {
    let (hub, (backend, url)) = (datahub(), Backend::start());
    let limits = "limits.in_flight = 2\nlimits.waiting = 0\nbridge.first_byte = \"2s\"";
    let gateway = bridged(Setup::new(&[("a", &hub)]).and(limits), &url).start();
    let browser = Browser::default();
    browser.log_in(&gateway, "a", &hub, "testuser");
    let waiting = browser.begin(&gateway, "GET", &format!("{BASE}/projects/silent"), FETCH);
    wait_until(|| !backend.requests().is_empty());
    let answer = browser.fetch(&gateway, "GET", "/projects/arc_list");
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert_eq!(browser.fetch(&gateway, "GET", "/datahubs/a/api/v4/user").status, 200);
    drop(waiting);
}
