//! A blocking client that sends bytes and reads answers, so that nothing is tidied up on the way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use datahub::DataHub;
use serde_json::Value;

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}{}", self.head, self.text()))
    }

    /// One parameter of the address in `Location`.
    pub fn location_param(&self, name: &str) -> Option<String> {
        let (_, query) = self.header("location")?.split_once('?')?;
        form_urlencoded::parse(query.as_bytes()).find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
    }
}

pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn connect(hub: &DataHub) -> Self {
        let stream = TcpStream::connect(hub.address()).expect("the DataHUB listens");
        stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout above zero");
        Self(BufReader::new(stream))
    }

    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).expect("the DataHUB reads");
    }

    /// The next answer; its body is read only where `with_body` says that the request was no HEAD.
    pub fn answer(&mut self, with_body: bool) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).expect("a head"), 0, "closed within the head {head:?}");
        }
        let status = head[9..12].parse().expect("a status");
        let mut answer = Answer { status, head, body: Vec::new() };
        if !with_body {
            return answer;
        }
        if let Some(length) = answer.header("content-length") {
            answer.body = vec![0; length.parse().expect("a length")];
            self.0.read_exact(&mut answer.body).expect("the whole body");
        } else if answer.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
        }
        answer
    }

    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a chunk's size");
        let size = usize::from_str_radix(line.trim_end(), 16).expect("hex digits");
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).expect("a whole chunk");
        chunk.truncate(size);
        (size > 0).then_some(chunk)
    }

    /// What comes until the DataHUB closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("an end");
        rest
    }
}

pub fn send(hub: &DataHub, method: &str, target: &str, fields: &str, body: impl AsRef<[u8]>) -> Answer {
    let mut client = Client::connect(hub);
    let length = body.as_ref().len();
    client.write(format!("{method} {target} HTTP/1.1\r\nHost: hub\r\n{fields}Content-Length: {length}\r\n\r\n"));
    client.write(body);
    client.answer(method != "HEAD")
}

pub fn get(hub: &DataHub, target: &str, fields: &str) -> Answer {
    send(hub, "GET", target, fields, "")
}

pub fn form(hub: &DataHub, target: &str, fields: &str, body: &str) -> Answer {
    send(hub, "POST", target, &format!("{fields}Content-Type: application/x-www-form-urlencoded\r\n"), body)
}

pub fn json(hub: &DataHub, method: &str, target: &str, token: &str, body: &Value) -> Answer {
    send(hub, method, target, &format!("{}Content-Type: application/json\r\n", bearer(token)), body.to_string())
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

pub const REDIRECT_URI: &str = "http://127.0.0.1:9/auth/callback?datahub=freiburg";
/// RFC 7636, appendix B.
pub const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
pub const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// The target a gateway would send the browser to.
pub fn authorize_target(hub: &DataHub) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("client_id", hub.client_id())
        .append_pair("redirect_uri", REDIRECT_URI)
        .append_pair("response_type", "code")
        .append_pair("scope", "openid profile api")
        .append_pair("state", "the-state")
        .append_pair("nonce", "the-nonce")
        .append_pair("code_challenge", CHALLENGE)
        .append_pair("code_challenge_method", "S256")
        .finish();
    format!("/oauth/authorize?{query}")
}

pub fn code(hub: &DataHub, user: &str) -> String {
    let answer = send(hub, "POST", &format!("{}&user={user}", authorize_target(hub)), "", "");
    answer.location_param("code").expect("a code")
}

pub fn exchange(hub: &DataHub, code: &str, verifier: &str, redirect_uri: &str) -> Answer {
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "authorization_code")
        .append_pair("client_id", hub.client_id())
        .append_pair("client_secret", hub.client_secret())
        .append_pair("code", code)
        .append_pair("code_verifier", verifier)
        .append_pair("redirect_uri", redirect_uri)
        .finish();
    form(hub, "/oauth/token", "", &body)
}

pub fn refresh(hub: &DataHub, refresh_token: &str) -> Answer {
    let (id, secret) = (hub.client_id(), hub.client_secret());
    let body = format!("grant_type=refresh_token&client_id={id}&client_secret={secret}&refresh_token={refresh_token}");
    form(hub, "/oauth/token", "", &body)
}

/// What the token endpoint answered to a whole login.
pub fn sign_in(hub: &DataHub, user: &str) -> Value {
    exchange(hub, &code(hub, user), VERIFIER, REDIRECT_URI).json()
}

/// An access token.
pub fn token(hub: &DataHub, user: &str) -> String {
    text(&sign_in(hub, user), "access_token")
}

pub fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

pub fn hub() -> DataHub {
    DataHub::start(datahub::Options::default()).expect("a free port")
}
