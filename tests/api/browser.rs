//! A client with a cookie jar that sends bytes as it is told and tidies nothing up.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datahub::DataHub;
use serde_json::Value;

use crate::gateway::{BASE, Gateway};

/// One browser: a jar, however many connections.
#[derive(Clone)]
pub struct Browser {
    jar: Arc<Mutex<Jar>>,
    jars: Jars,
}

/// The jars of a browser and of all its copies.
pub type Jars = Arc<Mutex<Vec<Arc<Mutex<Jar>>>>>;

type Cookies = BTreeMap<String, String>;

/// What a browser holds.
#[derive(Default)]
pub struct Jar {
    cookies: Cookies,
    /// What was in it each time before a test changed it by hand: the test has it still.
    aside: Vec<Cookies>,
    /// Every value of a cookie that no script may read, whatever became of it.
    secrets: BTreeSet<String>,
}

impl Default for Browser {
    fn default() -> Self {
        let jar: Arc<Mutex<Jar>> = Arc::default();
        Self { jars: Arc::new(Mutex::new(vec![Arc::clone(&jar)])), jar }
    }
}

/// What a browser says of who is asking.
pub const FETCH: &str = "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n";
pub const NAVIGATION: &str = "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
const FROM_ELSEWHERE: &str = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";

impl Browser {
    /// Logs in the way a person does, and is back in the app.
    pub fn log_in(&self, gateway: &Gateway, id: &str, datahub: &DataHub, user: &str) {
        let callback = self.begin_login(gateway, id, datahub, user);
        let answer = self.open(gateway, &callback);
        assert_eq!((answer.status, answer.location()), (303, "/arcmanager/app/".to_owned()), "{}", answer.head);
        self.keep_jar_secret(gateway);
        gateway.keep_secret(datahub.secrets());
    }

    /// Logs in at `address`, where something passes requests on to gateways.
    ///
    /// # Errors
    /// What was answered instead.
    pub fn try_log_in(&self, address: &str, datahub: &DataHub, user: &str) -> Result<(), String> {
        let ask = |target: &str| {
            let mut connection = Connection::open(address);
            let cookies = self.cookie_field();
            connection.write(
                format!("GET {target} HTTP/1.1\r\nHost: localhost:8000\r\n{cookies}{NAVIGATION}\r\n").as_bytes(),
            );
            let answer = connection.answer(true);
            self.apply(&answer);
            answer
        };
        let login = ask(&format!("{BASE}/auth/login?datahub=a"));
        if login.status != 302 {
            return Err(format!("{}{}", login.head, login.text()));
        }
        let answer = ask(&sign_in(datahub, &login.location(), &format!("user={user}")));
        if answer.header("location").as_deref() == Some("/arcmanager/app/") { Ok(()) } else { Err(answer.head) }
    }

    /// Goes to the DataHUB and signs in; returns the target of the callback.
    pub fn begin_login(&self, gateway: &Gateway, id: &str, datahub: &DataHub, user: &str) -> String {
        let authorize = self.authorize(gateway, id);
        sign_in(datahub, &authorize, &format!("user={user}"))
    }

    /// Where the gateway sends a browser that wants to log in.
    pub fn authorize(&self, gateway: &Gateway, id: &str) -> String {
        let answer = self.navigate(gateway, &format!("{BASE}/auth/login?datahub={id}"));
        assert_eq!(answer.status, 302, "{}", answer.head);
        answer.location()
    }

    /// A person opens an address.
    pub fn navigate(&self, gateway: &Gateway, target: &str) -> Answer {
        self.send(gateway, "GET", target, NAVIGATION, b"")
    }

    /// Another site leads to an address, as a DataHUB does after a login.
    pub fn open(&self, gateway: &Gateway, target: &str) -> Answer {
        self.send(gateway, "GET", target, FROM_ELSEWHERE, b"")
    }

    /// The app fetches, relative to the base path.
    pub fn fetch(&self, gateway: &Gateway, method: &str, path: &str) -> Answer {
        self.send(gateway, method, &format!("{BASE}{path}"), FETCH, b"")
    }

    /// The same with a body.
    pub fn fetch_with(&self, gateway: &Gateway, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
        let fields = format!("{FETCH}Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
        self.send(gateway, method, &format!("{BASE}{path}"), &fields, body)
    }

    /// A fetch that goes round as often as the gateway says, as browsers do.
    pub fn fetch_following(&self, gateway: &Gateway, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut path = path.to_owned();
        for _ in 0..20 {
            let answer = self.fetch_with(gateway, method, &path, "application/octet-stream", body);
            if answer.status != 307 {
                return answer;
            }
            path = format!("{}{}", path.split('?').next().expect("a path"), answer.location());
        }
        panic!("too many redirects");
    }

    /// Sends one request on a connection of its own and applies the cookies of its answer.
    pub fn send(&self, gateway: &Gateway, method: &str, target: &str, fields: &str, body: &[u8]) -> Answer {
        let mut connection = self.begin(gateway, method, target, fields);
        connection.write(body);
        let answer = connection.answer(method != "HEAD");
        self.apply(&answer);
        gateway.keep_answer(&answer.head, &answer.body);
        answer
    }

    /// Sends a head and leaves the rest to the caller.
    pub fn begin(&self, gateway: &Gateway, method: &str, target: &str, fields: &str) -> Connection {
        gateway.meet(self);
        let mut connection = Connection::open(&gateway.address);
        let cookies = if fields.contains("Cookie:") { String::new() } else { self.cookie_field() };
        let host = if fields.starts_with("Host:") { "" } else { "Host: localhost:8000\r\n" };
        connection.write(format!("{method} {target} HTTP/1.1\r\n{host}{cookies}{fields}\r\n").as_bytes());
        connection
    }

    pub fn apply(&self, answer: &Answer) {
        let mut jar = self.jar.lock().expect("no panic while held");
        for cookie in answer.headers("set-cookie") {
            let (pair, attributes) = cookie.split_once(';').expect("our cookies have attributes");
            let (name, value) = pair.split_once('=').expect("a pair");
            if attributes.contains("Max-Age=0") {
                let removed = jar.cookies.remove(name);
                jar.aside.retain(|cookies| cookies.get(name) != removed.as_ref());
            } else {
                jar.cookies.insert(name.to_owned(), value.to_owned());
                if name.starts_with("__Host-Http-") {
                    jar.secrets.insert(value.to_owned());
                }
            }
        }
    }

    pub fn cookie(&self, name: &str) -> Option<String> {
        self.jar.lock().expect("no panic while held").cookies.get(name).cloned()
    }

    pub fn set_cookie(&self, name: &str, value: &str) {
        self.change_by_hand(|cookies| cookies.insert(name.to_owned(), value.to_owned()));
    }

    pub fn remove_cookie(&self, name: &str) {
        self.change_by_hand(|cookies| cookies.remove(name));
    }

    fn change_by_hand(&self, change: impl FnOnce(&mut Cookies) -> Option<String>) {
        let mut jar = self.jar.lock().expect("no panic while held");
        let before = jar.cookies.clone();
        jar.aside.push(before);
        change(&mut jar.cookies);
    }

    /// Another browser with the same cookies.
    pub fn copy(&self) -> Self {
        let cookies = self.jar.lock().expect("no panic while held").cookies.clone();
        let jar = Arc::new(Mutex::new(Jar { cookies, ..Jar::default() }));
        self.jars.lock().expect("no panic while held").push(Arc::clone(&jar));
        Self { jar, jars: Arc::clone(&self.jars) }
    }

    pub fn cookie_field(&self) -> String {
        let header = cookie_header(&self.jar.lock().expect("no panic while held").cookies);
        if header.is_empty() { header } else { format!("Cookie: {header}\r\n") }
    }

    /// The output of `gateway` must not hold what the jar holds, but for cookies that scripts may read.
    pub fn keep_jar_secret(&self, gateway: &Gateway) {
        let jar = self.jar.lock().expect("no panic while held");
        let secrets = jar.cookies.iter().filter(|(name, _)| name.starts_with("__Host-Http-"));
        gateway.keep_secret(secrets.map(|(_, value)| value.clone()));
    }

    /// The jars of this browser and of all its copies.
    pub fn jars(&self) -> &Jars {
        &self.jars
    }

    /// Every value of a cookie that a browser with one of `jars` was ever given and no script may read.
    pub fn secret_cookies(jars: &Jars) -> Vec<String> {
        let jars = jars.lock().expect("no panic while held");
        jars.iter().flat_map(|jar| jar.lock().expect("no panic while held").secrets.clone()).collect()
    }

    /// Every Cookie header that a browser with one of `jars` sends, or sent before a test changed it by hand.
    pub fn cookie_headers(jars: &Jars) -> Vec<String> {
        let jars = jars.lock().expect("no panic while held");
        let of_one = |jar: &Arc<Mutex<Jar>>| {
            let jar = jar.lock().expect("no panic while held");
            jar.aside.iter().chain([&jar.cookies]).map(cookie_header).collect::<Vec<_>>()
        };
        jars.iter().flat_map(of_one).collect()
    }
}

fn cookie_header(cookies: &Cookies) -> String {
    let pairs: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("; ")
}

/// Signs in at the DataHUB's page `authorize`; returns the target that the browser is sent back to.
pub fn sign_in(datahub: &DataHub, authorize: &str, choice: &str) -> String {
    let target = authorize.strip_prefix(datahub.url()).expect("it leads to this DataHUB");
    let mut connection = Connection::open(&datahub.address().to_string());
    connection.write(format!("POST {target}&{choice} HTTP/1.1\r\nHost: hub\r\nContent-Length: 0\r\n\r\n").as_bytes());
    let answer = connection.answer(true);
    assert_eq!(answer.status, 302, "{} {}", answer.head, answer.text());
    let location = answer.location();
    location.strip_prefix(crate::gateway::PUBLIC_URL).expect("back to the gateway").to_owned()
}

/// One connection, read by hand.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_mins(1))).expect("longer than nothing");
        Self(BufReader::new(stream))
    }

    /// From now on waits so long for an answer at most, which may be nothing.
    pub fn give_up_after(&self, limit: Duration) {
        let limit = limit.max(Duration::from_millis(1));
        self.0.get_ref().set_read_timeout(Some(limit)).expect("longer than nothing");
    }

    /// What was refused may have closed the connection already; the answer tells.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        let _ = self.0.get_ref().shutdown(Shutdown::Write);
    }

    /// Ends it as a client does that crashes: whatever is on its way is lost.
    pub fn reset(self) {
        let _ = rustix::net::sockopt::set_socket_linger(self.0.get_ref(), Some(Duration::ZERO));
    }

    pub fn answer(&mut self, has_body: bool) -> Answer {
        let mut answer = self.head();
        if has_body && answer.status != 204 && answer.status != 304 {
            answer.body = self.body(&answer).expect("a whole body");
        }
        answer
    }

    /// The status of an interim answer.
    pub fn interim(&mut self) -> u16 {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).expect("a line in time") > 0, "{head}");
        }
        head[9..12].parse().expect("a status")
    }

    pub fn head(&mut self) -> Answer {
        self.try_head().expect("a whole head in time")
    }

    /// # Errors
    /// A head that breaks off.
    pub fn try_head(&mut self) -> std::io::Result<Answer> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if self.0.read_until(b'\n', &mut head)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let status = head[9..12].parse().expect("a status");
            if status != 100 {
                return Ok(Answer { status, head, body: Vec::new() });
            }
        }
    }

    /// # Errors
    /// A body that breaks off.
    pub fn body(&mut self, answer: &Answer) -> std::io::Result<Vec<u8>> {
        let mut body = Vec::new();
        self.body_into(answer, |piece| body.extend_from_slice(piece))?;
        Ok(body)
    }

    /// # Errors
    /// A body that breaks off.
    pub fn body_into(&mut self, answer: &Answer, mut take: impl FnMut(&[u8])) -> std::io::Result<()> {
        if let Some(length) = answer.header("content-length") {
            return self.pass(length.parse().expect("a length"), &mut take);
        }
        assert_eq!(answer.header("transfer-encoding").as_deref(), Some("chunked"), "{}", answer.head);
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(());
            }
            take(&chunk);
        }
    }

    fn pass(&mut self, mut left: usize, take: &mut impl FnMut(&[u8])) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        while left > 0 {
            let most = left.min(buffer.len());
            let count = match self.0.read(&mut buffer[..most]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            take(&buffer[..count]);
            left -= count;
        }
        Ok(())
    }

    /// The next chunk; an empty one is the end.
    ///
    /// # Errors
    /// A body that breaks off.
    pub fn chunk(&mut self) -> std::io::Result<Vec<u8>> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let size = usize::from_str_radix(line.trim_end(), 16).expect("hex digits");
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok(chunk)
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn headers(&self, name: &str) -> Vec<String> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let values = self.headers(name);
        assert!(values.len() <= 1, "{name} more than once: {}", self.head);
        values.into_iter().next()
    }

    pub fn location(&self) -> String {
        self.header("location").unwrap_or_else(|| panic!("no Location: {} {}", self.head, self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {} {}", self.head, self.text()))
    }

    /// The `code` of a problem, whose form is checked with it.
    pub fn code(&self) -> String {
        assert_eq!(
            self.header("content-type").as_deref(),
            Some("application/problem+json"),
            "{} {}",
            self.head,
            self.text()
        );
        assert_eq!(self.header("cache-control").as_deref(), Some("no-store"));
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        assert_eq!(problem["type"], "about:blank");
        assert!(problem["title"].is_string() && problem["detail"].is_string());
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id").as_deref());
        problem["code"].as_str().expect("a text").to_owned()
    }

    /// The answer without what differs from one request to the next.
    pub fn without_ids(&self) -> String {
        let id = self.header("x-request-id").unwrap_or_default();
        let head: Vec<_> = self.head.lines().filter(|line| !line.starts_with("date: ")).collect();
        let mut head = head;
        head.sort_unstable();
        format!("{}\n{}", head.join("\n"), self.text()).replace(&id, "ID")
    }
}

/// One parameter of a URL's query.
pub fn parameter(url: &str, name: &str) -> Option<String> {
    let (_, query) = url.split_once('?')?;
    url::form_urlencoded::parse(query.as_bytes()).find(|(other, _)| other == name).map(|(_, value)| value.into_owned())
}
