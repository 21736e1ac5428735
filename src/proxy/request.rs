//! What goes up: an allow-list of fields, and the bearer or the old backend's cookie, if the caller is logged in.
//!
//! Only what is named here reaches a DataHUB; so no cookie, no other way to authenticate and no forwarding field of the
//! browser's does, and `Connection` can name nothing away.

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Range;

use zeroize::Zeroize as _;

use crate::context::RequestContext;
use crate::datahub::transport::Address;
use crate::error::Code;
use crate::http::body::{BodyLength, CHUNK_END, LAST_CHUNK, write_chunk_size, write_content_length};
use crate::http::buffer::{Buffer, append};
use crate::http::head::{RequestHead, is_name};
use crate::proxy::inspect::MAX_INSPECTED;
use crate::session::open_session::OpenSession;

/// What the messages of one call are made of besides its own fields.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// Where to.
    pub(super) address: &'a Address,
    /// What tells whose it is.
    pub(super) credential: Credential<'a>,
    /// Its id, and the client it comes from.
    pub(super) context: &'a RequestContext,
    /// That of the gateway's own address.
    pub(super) scheme: &'a str,
}

/// What a message bears, and with it what a browser may tell whoever reads that.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// For a DataHUB: the session's token; none for a call without a login.
    Bearer(Option<&'a OpenSession>),
    /// For the old backend: a value for its one cookie; none for a call that needs no login there.
    DataCookie(Option<&'a str>),
}

impl fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential([redacted])")
    }
}

/// A message on its way up: a head, and the body if that is short. The credential in it is wiped when it is dropped.
#[derive(Debug)]
pub struct Message {
    bytes: Buffer,
    credential: Range<usize>,
}

impl Message {
    /// The head of a call with the fields of `request`, whose body is delimited by `length`, and that body if it is here already.
    ///
    /// # Errors
    /// `bad_request` if something is said twice that may be said once: we and GitLab might go by another one each.
    pub fn of_call(
        mut bytes: Buffer,
        request: &RequestHead,
        target: &str,
        length: BodyLength,
        body: Option<&[u8]>,
        envelope: Envelope<'_>,
    ) -> Result<Self, Code> {
        let Envelope { context, scheme, .. } = envelope;
        let (fields, id) = (request.fields(), context.id.as_bytes());
        bytes.make_room(request.len() + envelope.length() + body.map_or(0, |body| body.len() + MAX_CHUNK_FRAMING));
        let credential = begin(&mut bytes, request.method().as_str(), target, envelope);
        // From here on the credential is wiped, whatever comes of the rest.
        let mut message = Self { bytes, credential };
        let passing = envelope.credential.passing_fields();
        let bytes = &mut message.bytes;
        let (mut seen, mut has_type) = (0_u16, false);
        for field in fields.iter() {
            let Some((at, is_list)) = forwarded(field.name) else { continue };
            if passing & (1 << at) == 0 {
                continue;
            }
            if seen & (1 << at) != 0 && !is_list {
                return Err(Code::BadRequest);
            }
            seen |= 1 << at;
            // To Rack an empty type is none (`lib/rack/request.rb`).
            if at == CONTENT_TYPE && matches!(field.value.first(), None | Some(b';' | b',')) {
                continue;
            }
            has_type |= at == CONTENT_TYPE;
            field.write(bytes);
        }
        // Without a type a body is a form to Rack, however long it is (`lib/rack/request.rb`). Nobody looks through one that may be
        // long, so it goes up as what no parameter is read from.
        if !has_type && length.may_exceed(MAX_INSPECTED as u64) {
            bytes.extend_from_slice(b"Content-Type: application/octet-stream\r\n");
        }
        match length {
            BodyLength::None | BodyLength::UntilClose => {}
            BodyLength::Known(length) => write_content_length(length, bytes),
            BodyLength::Chunked => bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        if let Some(client) = context.client.address {
            bytes.extend_from_slice(b"X-Forwarded-For: ");
            write_address(client, bytes);
            bytes.extend_from_slice(b"\r\n");
        }
        append(bytes, [b"X-Forwarded-Proto: ", scheme.as_bytes(), b"\r\nX-Request-Id: ", id]);
        bytes.extend_from_slice(b"\r\ntraceparent: ");
        match fields.only("traceparent") {
            Ok(Some(value)) if is_traceparent(value) => bytes.extend_from_slice(value),
            _ => append(bytes, [b"00-", id, b"-", &id[16..], b"-00"]),
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        match body {
            Some(body) if length == BodyLength::Chunked => write_one_chunk(body, bytes),
            body => bytes.extend_from_slice(body.unwrap_or_default()),
        }
        Ok(message)
    }

    /// A request of our own: whose is the token? Answered to any token that the DataHUB accepts (GitLab `lib/api/users.rb`).
    pub(super) fn probe(mut bytes: Buffer, envelope: Envelope<'_>) -> Self {
        bytes.make_room(envelope.length());
        let credential = begin(&mut bytes, "GET", "/api/v4/user", envelope);
        append(&mut bytes, [b"X-Request-Id: ", envelope.context.id.as_bytes(), b"\r\n\r\n"]);
        Self { bytes, credential }
    }

    /// The bytes, as they go over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.bytes[self.credential.clone()].zeroize();
    }
}

impl Envelope<'_> {
    /// Room for what it adds to the browser's own fields, in bytes.
    fn length(&self) -> usize {
        let cookie = match self.credential {
            Credential::DataCookie(Some(value)) => value.len(),
            Credential::Bearer(_) | Credential::DataCookie(None) => 0,
        };
        self.address.root().len() + cookie + MAX_OURS
    }
}

impl Credential<'_> {
    /// Which of the fields that [`forwarded`] numbers go up beside it, a bit each.
    fn passing_fields(self) -> u16 {
        match self {
            Self::Bearer(_) => u16::MAX,
            // Accept, Content-Type, Accept-Encoding, Accept-Language: the original reads no other.
            Self::DataCookie(_) => 1 << 1 | 1 << 5 | 1 << 7 | 1 << 8,
        }
    }
}

/// Writes a whole body in chunks: one and the last one, which is the only one that is empty.
fn write_one_chunk(body: &[u8], out: &mut Buffer) {
    if !body.is_empty() {
        write_chunk_size(body.len(), out);
        append(out, [body, CHUNK_END]);
    }
    out.extend_from_slice(LAST_CHUNK);
}

/// Writes the first lines of a message; where in it the credential is. There is room for them, so that nothing moves.
fn begin(bytes: &mut Buffer, method: &str, target: &str, envelope: Envelope<'_>) -> Range<usize> {
    let Envelope { address, credential, .. } = envelope;
    let parts = [method, " ", address.root(), target, " HTTP/1.1\r\nHost: ", address.host_header()];
    append(bytes, parts.map(str::as_bytes));
    bytes.extend_from_slice(b"\r\n");
    let start;
    match credential {
        Credential::Bearer(Some(session)) => {
            bytes.extend_from_slice(b"Authorization: Bearer ");
            start = bytes.len();
            session.write_bearer(bytes);
        }
        Credential::DataCookie(Some(value)) => {
            bytes.extend_from_slice(b"Cookie: data=");
            start = bytes.len();
            bytes.extend_from_slice(value.as_bytes());
        }
        Credential::Bearer(None) | Credential::DataCookie(None) => return 0..0,
    }
    let written = start..bytes.len();
    bytes.extend_from_slice(b"\r\n");
    written
}

/// An IPv4 address is written without the detour of a formatter: every call has one.
fn write_address(address: IpAddr, bytes: &mut Vec<u8>) {
    let IpAddr::V4(address) = address else {
        write!(bytes, "{address}").expect("a Vec takes everything");
        return;
    };
    for (at, octet) in address.octets().into_iter().enumerate() {
        if at > 0 {
            bytes.push(b'.');
        }
        bytes.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
    }
}

/// What a browser may tell a DataHUB: a number for each field, and whether it may be said in several (RFC 9110 section 5.3).
fn forwarded(name: &[u8]) -> Option<(u8, bool)> {
    let (at, lower, is_list) = match name.len() {
        5 => (0, "range", false),
        6 => (1, "accept", true),
        8 if is_name(name, "if-range") => (2, "if-range", false),
        8 => (3, "if-match", true),
        10 => (4, "user-agent", false),
        12 => (CONTENT_TYPE, "content-type", false),
        13 => (6, "if-none-match", true),
        15 if is_name(name, "accept-encoding") => (7, "accept-encoding", true),
        15 => (8, "accept-language", true),
        17 => (9, "if-modified-since", false),
        19 => (10, "if-unmodified-since", false),
        _ => return None,
    };
    is_name(name, lower).then_some((at, is_list))
}

/// The number of Content-Type.
const CONTENT_TYPE: u8 = 5;

/// W3C Trace Context section 3.2: version 00, in lower-case hex, neither id nothing but zeros.
fn is_traceparent(value: &[u8]) -> bool {
    value.len() == 55
        && value.starts_with(b"00-")
        && [3..35, 36..52].into_iter().all(|id| value[id].iter().any(|byte| *byte != b'0'))
        && value.iter().enumerate().all(|(at, byte)| match at {
            2 | 35 | 52 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// Room for what we add to a head: the token, a host, an address and ids, in bytes. Tokens fit into a cookie.
const MAX_OURS: usize = 4096 + 1024;
/// Room for what delimits one chunk and ends the body: a size of 16 digits, three line ends, and the last chunk, in bytes.
const MAX_CHUNK_FRAMING: usize = 32;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::time::{Duration, SystemTime};

    use actix_web::http::Method;

    use super::*;
    use crate::config::Config;
    use crate::context::Client;
    use crate::datahub::oidc::User;
    use crate::datahub::token::TokenSet;
    use crate::http::buffer::BufferPool;
    use crate::http::head::HeadLimits;
    use crate::metrics::worker::WorkerMetrics;
    use crate::seal::cookie::Plaintext as _;
    use crate::session::Session;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// The message of a call with these fields, from this client; and the call's id.
    fn message(fields: &str, length: BodyLength, client: Option<&str>) -> Result<(Message, String), Code> {
        message_in(&BufferPool::default(), fields, length, client, None)
    }

    /// The same with a body, in a buffer of this pool.
    fn message_in(
        pool: &BufferPool,
        fields: &str,
        length: BodyLength,
        client: Option<&str>,
        body: Option<&[u8]>,
    ) -> Result<(Message, String), Code> {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/gateway.toml");
        let config = Config::load(&[file.into()]).expect("a good configuration");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let (access, lifetime) = (TOKEN.to_owned().try_into().expect("visible ASCII"), Duration::from_hours(2));
        let session = Session {
            created_at: now,
            expires_at: now + lifetime,
            idle_expires_at: now + lifetime,
            user: User { id: "7".into(), username: String::new(), name: String::new() },
            scopes: None,
            tokens: TokenSet { access, refresh: None, issued: now, lifetime },
            is_personal: false,
        };
        let sealed = config.keyring.seal(&[], &session.encode());
        let session = config.keyring.unseal(&[], sealed.as_bytes()).expect("our own text");
        let session = OpenSession::read(session).expect("the encoding of a session");
        let client = Client { address: client.map(|text| text.parse().expect("an address")), is_local: false };
        let context = RequestContext::new(Method::GET, client, WorkerMetrics::new([]));
        let mut head = BufferPool::default().take();
        head.extend_from_slice(format!("PUT / HTTP/1.1\r\nHost: app\r\n{fields}\r\n").as_bytes());
        let head = RequestHead::parse(&mut head, HeadLimits { length: 4096, fields: 96 }).expect("a good head");
        let head = head.expect("a whole one");
        let datahub = config.datahubs.by_id("a").expect("it is configured");
        let credential = Credential::Bearer(Some(&session));
        let envelope = Envelope { address: &datahub.address, credential, context: &context, scheme: "https" };
        let message = Message::of_call(pool.take(), &head, "/api/v4/a%2Fb?c=d", length, body, envelope)?;
        Ok((message, context.id.as_str().to_owned()))
    }

    /// The lines of such a message that begin with one of `names`.
    fn lines(fields: &str, length: BodyLength, client: Option<&str>, names: &[&str]) -> Vec<String> {
        let (message, _) = message(fields, length, client).expect("a good call");
        let text = String::from_utf8(message.as_bytes().to_vec()).expect("ASCII");
        let is_wanted = |line: &&str| names.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
        text.split("\r\n").filter(is_wanted).map(str::to_owned).collect()
    }

    /// PQ-09, PQ-10, PQ-13.
    #[test]
    fn a_message_is_these_bytes_and_no_others() {
        let fields = "ACCEPT:a\r\naccept: b \r\nCookie: a=b\r\nAuthorization: Basic x\r\nContent-Type: text/plain\r\n\
            X-Forwarded-For: 192.0.2.1\r\nPrivate-Token: x\r\nRanges: x\r\nAccept-Charset: x\r\nIf-Nonne-Match: x\r\n";
        for body in [None, Some(""), Some("body"), Some(&*"x".repeat(64 * 1024))] {
            let body_bytes = body.map(str::as_bytes);
            let message =
                message_in(&BufferPool::default(), fields, BodyLength::Known(4), Some("203.0.113.10"), body_bytes);
            let (message, id) = message.expect("a good call");
            assert_eq!(message.bytes[message.credential.clone()], *TOKEN.as_bytes(), "what is wiped in the end");
            let text = String::from_utf8(message.as_bytes().to_vec()).expect("ASCII");
            let expected = format!(
                "PUT /api/v4/a%2Fb?c=d HTTP/1.1\r\nHost: git.example.org\r\nAuthorization: Bearer {TOKEN}\r\nACCEPT: a\r\n\
             accept: b\r\nContent-Type: text/plain\r\ncontent-length: 4\r\nX-Forwarded-For: 203.0.113.10\r\n\
             X-Forwarded-Proto: https\r\nX-Request-Id: {id}\r\ntraceparent: 00-{id}-{}-00\r\n\r\n{}",
                &id[16..],
                body.unwrap_or_default()
            );
            assert!(text == expected, "{text}");
        }
    }

    #[test]
    fn a_short_body_in_chunks_goes_up_as_one() {
        for (body, expected) in
            [("", "\r\n\r\n0\r\n\r\n"), ("a=b&c=d&e=f&g=h&", "\r\n\r\n10\r\na=b&c=d&e=f&g=h&\r\n0\r\n\r\n")]
        {
            let message = message_in(&BufferPool::default(), "", BodyLength::Chunked, None, Some(body.as_bytes()));
            let (message, _) = message.expect("a good call");
            assert!(message.as_bytes().ends_with(expected.as_bytes()), "{body}");
        }
    }

    /// PQ-09: two of them could mean two things, but for lists.
    #[test]
    fn what_is_said_twice_is_a_list_or_refused() {
        let lists = ["accept", "accept-encoding", "accept-language", "if-match", "if-none-match"];
        let others = ["range", "if-range", "user-agent", "content-type", "if-modified-since", "if-unmodified-since"];
        for name in lists.into_iter().chain(others) {
            let twice = format!("{name}: a\r\n{}: b\r\n", name.to_uppercase());
            assert_eq!(lines(&format!("{name}: a\r\n"), BodyLength::None, None, &[name]), [format!("{name}: a")]);
            if lists.contains(&name) {
                assert_eq!(lines(&twice, BodyLength::None, None, &[name]).len(), 2, "{name}");
            } else {
                let refused = message(&twice, BodyLength::None, None);
                assert_eq!(refused.err(), Some(Code::BadRequest), "{name}");
            }
        }
    }

    #[test]
    fn a_bearer_is_wiped_whether_its_call_goes_up_or_is_refused() {
        let good = lines("", BodyLength::None, None, &["authorization"]);
        assert_eq!(good, [format!("Authorization: Bearer {TOKEN}")]);
        for (case, fields, is_good) in
            [("one that goes up", "", true), ("one that is refused", "User-Agent: a\r\nUser-Agent: b\r\n", false)]
        {
            let pool = BufferPool::default();
            assert_eq!(message_in(&pool, fields, BodyLength::None, None, None).is_ok(), is_good, "{case}");
            // The pool gives a buffer back as it was, but for its length.
            let used = pool.take();
            let mut bytes = vec![0; used.capacity()];
            let memory = std::fs::File::open("/proc/self/mem").expect("our own memory");
            memory.read_exact_at(&mut bytes, used.as_ptr().addr() as u64).expect("it is ours");
            let holds = |text: &str| memchr::memmem::find(&bytes, text.as_bytes()).is_some();
            assert!(holds("Authorization: Bearer "), "{case}: not the buffer of the message");
            assert!(!holds(TOKEN), "{case}");
        }
    }

    /// FR-09.
    #[test]
    fn the_framing_is_ours() {
        for (length, expected) in [
            (BodyLength::None, &[][..]),
            (BodyLength::Known(0), &["content-length: 0"]),
            (BodyLength::Known(u64::MAX), &["content-length: 18446744073709551615"]),
            (BodyLength::Chunked, &["Transfer-Encoding: chunked"]),
        ] {
            let names = ["content-length", "transfer-encoding"];
            assert_eq!(lines("Content-Length: 005\r\n", length, None, &names), expected, "{length:?}");
        }
    }

    #[test]
    fn a_client_is_told_of_by_its_address_if_it_has_one() {
        for (client, expected) in [
            (None, &[][..]),
            (Some("0.10.200.255"), &["X-Forwarded-For: 0.10.200.255"]),
            (Some("2001:db8::1"), &["X-Forwarded-For: 2001:db8::1"]),
        ] {
            assert_eq!(lines("", BodyLength::None, client, &["x-forwarded-for"]), expected);
        }
    }

    #[test]
    fn a_trace_goes_on_if_it_is_one() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let zeros = "00000000000000000000000000000000";
        for (case, value, goes_on) in [
            ("as it should be", good.to_owned(), true),
            ("upper case", good.to_uppercase(), false),
            ("another version", good.replacen("00", "01", 1), false),
            ("no trace", good.replace("0af7651916cd43dd8448eb211c80319c", zeros), false),
            ("no parent", good.replace("b7ad6b7169203331", &zeros[16..]), false),
            ("longer", format!("{good}0"), false),
            ("shorter", good[1..].to_owned(), false),
            ("other hyphens", good.replace('-', "_"), false),
            ("a hyphen too many", good.replace("319c", "31-c"), false),
        ] {
            let lines = lines(&format!("Traceparent: {value}\r\n"), BodyLength::None, None, &["traceparent"]);
            assert_eq!((lines.len(), lines[0] == format!("traceparent: {value}")), (1, goes_on), "{case}: {lines:?}");
            assert!(is_traceparent(lines[0].trim_start_matches("traceparent: ").as_bytes()), "{case}: {lines:?}");
        }
        // Of two nobody knows which one counts; and what belongs to a trace of somebody else's stays here.
        for more in [format!("Traceparent: {good}\r\n"), "traceparent: a\r\n".to_owned()] {
            let fields = format!("Traceparent: {good}\r\n{more}");
            let lines = lines(&fields, BodyLength::None, None, &["traceparent"]);
            assert_eq!((lines.len(), lines[0].contains(&good[3..35])), (1, false), "{lines:?}");
        }
        let fields = format!("Traceparent: {good}\r\nTracestate: a=b\r\nBaggage: a=b\r\n");
        let none: [&str; 0] = [];
        assert_eq!(lines(&fields, BodyLength::None, None, &["tracestate", "baggage"]), none);
    }
}
