//! Heads of requests and answers, read once and strictly: fields are slices of the buffer.
//!
//! `httparse` finds the pieces; what it lets pass and servers read in two ways is refused here: lines that do not end with
//! CR LF, more than one empty line before a request, a framing that is said twice or in another spelling, and bytes in a
//! target that no URI holds (RFC 9112 sections 2.2, 3.2, 5 and 6).

use std::mem::MaybeUninit;
use std::time::Duration;

use actix_web::http::Method;
use memchr::{memchr, memchr_iter, memchr3};

use crate::http::body::BodyLength;
use crate::http::buffer::{Buffer, append};

/// How long a head may be.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// In bytes.
    pub length: usize,
    /// How many fields it may have: [`MAX_FIELDS`] at most.
    pub fields: usize,
}

/// The head of a request. It owns the bytes it was read from.
#[derive(Debug)]
pub struct RequestHead {
    bytes: Buffer,
    method: Method,
    target: Span,
    /// Whether it is HTTP/1.1, and not HTTP/1.0.
    pub is_http_1_1: bool,
    /// How its body is delimited.
    pub body: BodyLength,
    /// Whether the client waits for an interim answer before it sends the body (RFC 9110 section 10.1.1).
    pub expects_continue: bool,
    /// Whether the client would send another request on this connection (RFC 9112 section 9.3).
    pub is_persistent: bool,
    fields: Vec<FieldSpan>,
    /// Where in `fields` each of them is.
    known: [Option<Result<u8, Several>>; Known::COUNT],
}

/// A field that is looked at in every request, and so is found while its head is read.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each is the field of its name")]
pub enum Known {
    Host,
    Origin,
    SecFetchSite,
    SecFetchMode,
    SecFetchDest,
    XCsrf,
    Upgrade,
    Expect,
    Forwarded,
    XForwardedFor,
    XRealIp,
}

impl Known {
    const COUNT: usize = Self::XRealIp as usize + 1;

    /// The one of this name; mostly none, and the length tells.
    #[inline]
    fn of(name: &[u8]) -> Option<Self> {
        match name.len() {
            4 if is_name(name, "host") => Some(Self::Host),
            6 if is_name(name, "origin") => Some(Self::Origin),
            6 if is_name(name, "x-csrf") => Some(Self::XCsrf),
            6 if is_name(name, "expect") => Some(Self::Expect),
            7 if is_name(name, "upgrade") => Some(Self::Upgrade),
            9 if is_name(name, "forwarded") => Some(Self::Forwarded),
            9 if is_name(name, "x-real-ip") => Some(Self::XRealIp),
            14 if is_name(name, "sec-fetch-site") => Some(Self::SecFetchSite),
            14 if is_name(name, "sec-fetch-mode") => Some(Self::SecFetchMode),
            14 if is_name(name, "sec-fetch-dest") => Some(Self::SecFetchDest),
            15 if is_name(name, "x-forwarded-for") => Some(Self::XForwardedFor),
            _ => None,
        }
    }
}

impl RequestHead {
    /// The head that `read` begins with; `None` if more must be read. A whole head is taken out of `read`, which then holds
    /// what follows it.
    ///
    /// # Errors
    /// [`HeadError`] for what is no head, or too much of one.
    pub fn parse(read: &mut Buffer, limits: HeadLimits) -> Result<Option<Self>, HeadError> {
        // One empty line before a request is let pass (RFC 9112 section 2.2).
        let start = if read.starts_with(b"\r\n") { 2 } else { 0 };
        let bytes = &read[start..];
        // A line is judged once it has ended, so that it does not matter how it arrives.
        let Some(line_end) = memchr(b'\n', bytes) else {
            return if read.len() > limits.length { Err(HeadError::TooLarge) } else { Ok(None) };
        };
        check_request_line(&bytes[..line_end])?;
        let mut slots = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut slots[..limits.fields.min(MAX_FIELDS)]);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => {
                check_line_ends(bytes)?;
                return if read.len() > limits.length { Err(HeadError::TooLarge) } else { Ok(None) };
            }
            Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
            Err(_) => {
                let is_too_large = read.len() > limits.length || memchr_iter(b'\n', bytes).count() > limits.fields + 1;
                return Err(if is_too_large { HeadError::TooLarge } else { HeadError::Malformed });
            }
        };
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
            return Err(HeadError::Malformed);
        };
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed)?;
        if !is_target(target.as_bytes()) || !bytes[..length].ends_with(b"\r\n\r\n") {
            return Err(HeadError::Malformed);
        }
        let source = Source(read);
        let mut fields = Vec::with_capacity(request.headers.len());
        let (mut framing, mut known) = (Framing::default(), [None; Known::COUNT]);
        for field in &*request.headers {
            let name = field.name.as_bytes();
            if let Some(known_name) = Known::of(name) {
                let place = &mut known[known_name as usize];
                let at = u8::try_from(fields.len()).map_err(|_| HeadError::TooLarge)?;
                *place = Some(if place.is_none() { Ok(at) } else { Err(Several) });
            } else if matches!(name.len(), 10 | 14 | 17)
                && (is_misspelled(name) || framing.read(name, field.value).is_err())
            {
                return Err(HeadError::Malformed);
            }
            fields.push(source.strict_field(field)?);
        }
        if start + length > limits.length {
            return Err(HeadError::TooLarge);
        }
        let is_http_1_1 = version == 1;
        let only = |name: Known| known[name as usize].transpose().map_err(|_| HeadError::Malformed);
        let (host, expectation) = (only(Known::Host)?, only(Known::Expect)?);
        let body = framing.body(is_http_1_1).map_err(|_| HeadError::Malformed)?;
        // A request of HTTP/1.1 names its host (RFC 9112 section 3.2), and a POST of HTTP/1.0 says how long it is (RFC 1945
        // section 8.3).
        let is_ambiguous = if is_http_1_1 { host.is_none() } else { method == Method::POST && body.is_none() };
        if is_ambiguous {
            return Err(HeadError::Malformed);
        }
        let expectation = expectation.map(|at| request.headers[usize::from(at)].value);
        let expects_continue = is_http_1_1 && expectation.is_some_and(|it| it.eq_ignore_ascii_case(b"100-continue"));
        let is_persistent = !framing.closes && (is_http_1_1 || framing.is_kept_alive);
        let target = source.span(target.as_bytes());
        let (body, bytes) = (body.unwrap_or(BodyLength::None), read.split_off_front(start + length));
        Ok(Some(Self { bytes, method, target, is_http_1_1, body, expects_continue, is_persistent, fields, known }))
    }

    /// The method, as it came.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The target, as it came: visible ASCII.
    pub fn target(&self) -> &str {
        std::str::from_utf8(self.target.of(&self.bytes)).expect("a target is ASCII")
    }

    /// The only value of a field that is looked at in every request.
    ///
    /// # Errors
    /// [`Several`] fields of this name.
    pub fn only(&self, name: Known) -> Result<Option<&[u8]>, Several> {
        Ok(self.known[name as usize].transpose()?.map(|at| self.fields[usize::from(at)].value.of(&self.bytes)))
    }

    /// Whether the target is a path on this server that begins with `prefix`.
    pub fn is_below(&self, prefix: &str) -> bool {
        self.target.of(&self.bytes).starts_with(prefix.as_bytes())
    }

    /// The length of the head, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "no head is empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// All fields, in order.
    pub fn fields(&self) -> Fields<'_> {
        Fields { bytes: &self.bytes, spans: &self.fields }
    }
}

/// Method and target of a request whose head may be malformed, or not have come whole: as far as they can be told.
pub(super) fn begun_request(read: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = if read.starts_with(b"\r\n") { 2 } else { 0 };
    let line = read[start..].split(|byte| *byte == b'\n').next()?;
    let mut parts = line.split(|byte| *byte == b' ');
    Some((parts.next()?, parts.next()?))
}

/// The head of an answer, read from bytes that stay where they are.
#[derive(Debug)]
pub(super) struct ResponseHead {
    /// From 100 to 599.
    pub(super) status: u16,
    /// Whether it is HTTP/1.1, and not HTTP/1.0.
    pub(super) is_http_1_1: bool,
    /// The length of the head, in bytes.
    pub(super) length: usize,
    fields: Vec<FieldSpan>,
}

impl ResponseHead {
    /// The head that `bytes` begin with; `None` if more must be read.
    ///
    /// # Errors
    /// [`HeadError`] for what is no head, or too much of one.
    pub(super) fn parse(bytes: &[u8], limits: HeadLimits) -> Result<Option<Self>, HeadError> {
        let mut slots = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let slots = &mut slots[..limits.fields.min(MAX_FIELDS)];
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, slots);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= limits.length => length,
            Ok(httparse::Status::Partial) if bytes.len() <= limits.length => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
            Err(_) => return Err(HeadError::Malformed),
        };
        let status = response.code.filter(|status| (100..600).contains(status)).ok_or(HeadError::Malformed)?;
        let source = Source(bytes);
        let fields = response.headers.iter().map(|field| source.field(field)).collect();
        Ok(Some(Self { status, is_http_1_1: response.version == Some(1), length, fields }))
    }

    /// All fields, in order; `bytes` are those the head was read from.
    pub(super) fn fields<'a>(&'a self, bytes: &'a [u8]) -> Fields<'a> {
        Fields { bytes, spans: &self.fields }
    }
}

/// The fields of a head, in order.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    spans: &'a [FieldSpan],
}

impl<'a> Fields<'a> {
    /// Each field.
    pub fn iter(self) -> impl Iterator<Item = Field<'a>> + Clone {
        self.spans.iter().map(move |span| Field {
            name: span.name.of(self.bytes),
            value: span.value.of(self.bytes),
            bytes: self.bytes,
            span,
        })
    }

    /// The values of all fields of the name `lower`, which is written in lower case.
    pub fn values(self, lower: &str) -> impl Iterator<Item = &'a [u8]> + Clone {
        let is_wanted =
            move |span: &&FieldSpan| span.name.len() == lower.len() && is_name(span.name.of(self.bytes), lower);
        self.spans.iter().filter(is_wanted).map(move |span| span.value.of(self.bytes))
    }

    /// Whether there is a field of this name.
    pub fn contains(self, lower: &str) -> bool {
        self.values(lower).next().is_some()
    }

    /// The only value of the name `lower`; of several of one name, nobody can say which one counts.
    ///
    /// # Errors
    /// [`Several`] fields of this name.
    pub fn only(self, lower: &str) -> Result<Option<&'a [u8]>, Several> {
        let mut values = self.values(lower);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Several),
        }
    }

    /// What all fields of the name `lower` list, between commas (RFC 9110 section 5.6.1).
    pub fn list(self, lower: &str) -> impl Iterator<Item = &'a [u8]> {
        self.values(lower).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    }
}

/// One field of a head.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a> {
    /// As it was written: a token.
    pub name: &'a [u8],
    /// Without the white space around it.
    pub value: &'a [u8],
    bytes: &'a [u8],
    span: &'a FieldSpan,
}

impl Field<'_> {
    /// Whether this is its name; `lower` is written in lower case: letters, digits and hyphens alone.
    pub fn is(&self, lower: &str) -> bool {
        is_name(self.name, lower)
    }

    /// Appends the field to `out`, as a line: as it came, if it came in the usual form.
    pub fn write(&self, out: &mut Vec<u8>) {
        let FieldSpan { name, value } = self.span;
        let (begin, end) = (name.begin(), value.end());
        let is_usual = value.begin() == name.end() + 2 && self.bytes[name.end() + 1] == b' ';
        match self.bytes.get(begin..end + 2) {
            Some(line) if is_usual && line.ends_with(b"\r\n") => out.extend_from_slice(line),
            _ => append(out, [self.name, b": ", self.value, b"\r\n"]),
        }
    }
}

/// Several fields of a name of which one alone has a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a field is there more than once")]
pub struct Several;

/// Whether `name` is `lower` in any case. `name` is a token and `lower` holds letters, digits and hyphens alone, so that no
/// other byte of a token differs from one of `lower` in the bit of the case.
#[inline]
#[expect(clippy::needless_bitwise_bool, reason = "without a branch for each byte many are compared at once")]
pub fn is_name(name: &[u8], lower: &str) -> bool {
    let is_same = |is_same, (byte, lower): (&u8, &u8)| is_same & (byte | 0x20 == *lower);
    name.len() == lower.len() && name.iter().zip(lower.as_bytes()).fold(true, is_same)
}

/// Why bytes are no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not HTTP/1.1, or not the one reading of it that we take.
    #[error("the head is malformed")]
    Malformed,
    /// A target, or what stands in its place, with a byte that no target holds.
    #[error("the request line holds a byte that no target may hold")]
    Target,
    /// More bytes or fields than are taken.
    #[error("the head is too large")]
    TooLarge,
}

/// Which bytes of a head, which is never as long as 4 GiB. A call has some thirty fields of four such places in all.
#[derive(Debug, Clone, Copy)]
struct Span {
    begin: u32,
    end: u32,
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.begin()..self.end()]
    }

    fn begin(self) -> usize {
        self.begin as usize
    }

    fn end(self) -> usize {
        self.end as usize
    }

    fn len(self) -> usize {
        self.end() - self.begin()
    }
}

#[derive(Debug, Clone, Copy)]
struct FieldSpan {
    name: Span,
    value: Span,
}

/// The bytes that a head is read from, to find where in them a slice is.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    /// Where `part`, which is one of the bytes' own slices, is in them.
    #[expect(clippy::cast_possible_truncation, reason = "no more is read of a head than its limit, of 1 MiB at most")]
    fn span(&self, part: &[u8]) -> Span {
        let begin = part.as_ptr().addr() - self.0.as_ptr().addr();
        Span { begin: begin as u32, end: (begin + part.len()) as u32 }
    }

    fn field(&self, field: &httparse::Header<'_>) -> FieldSpan {
        FieldSpan { name: self.span(field.name.as_bytes()), value: self.span(field.value) }
    }

    /// The same, if the field's line ends with CR LF.
    fn strict_field(&self, field: &httparse::Header<'_>) -> Result<FieldSpan, HeadError> {
        let span = self.field(field);
        let rest = &self.0[span.value.end()..];
        // White space may follow the value.
        let is_strict = rest.starts_with(b"\r\n")
            || memchr(b'\n', rest).and_then(|end| end.checked_sub(1)).is_some_and(|last| rest[last] == b'\r');
        if is_strict { Ok(span) } else { Err(HeadError::Malformed) }
    }
}

/// What the fields of a head say of its body's framing and of the connection.
#[derive(Debug, Default)]
pub(super) struct Framing {
    pub(super) content_length: Option<u64>,
    /// Of Transfer-Encoding, if there is one.
    is_chunked: Option<bool>,
    pub(super) closes: bool,
    is_kept_alive: bool,
    /// How long the connection is kept between two requests, in an answer's Keep-Alive.
    pub(super) keep_alive: Option<Duration>,
}

impl Framing {
    /// What the `fields` of an answer say, or what is wrong with them.
    pub(super) fn of(fields: Fields<'_>) -> Result<Self, &'static str> {
        let mut framing = Self::default();
        for field in fields.iter().filter(|field| matches!(field.name.len(), 10 | 14 | 17)) {
            if is_name(field.name, "keep-alive") {
                framing.read_keep_alive(field.value);
            } else {
                framing.read(field.name, field.value)?;
            }
        }
        Ok(framing)
    }

    /// Every server knows this field (RFC 2068 section 19.7.1.1). The shortest time counts: zero if no other request is taken.
    fn read_keep_alive(&mut self, value: &[u8]) {
        for parameter in value.split(|byte| *byte == b',') {
            let parameter = std::str::from_utf8(parameter).ok().and_then(|parameter| parameter.split_once('='));
            let Some((name, Ok(number))) = parameter.map(|(name, number)| (name.trim(), number.trim().parse())) else {
                continue;
            };
            let limit = match number {
                _ if name.eq_ignore_ascii_case("timeout") => Duration::from_secs(number),
                0 if name.eq_ignore_ascii_case("max") => Duration::ZERO,
                _ => continue,
            };
            self.keep_alive = Some(self.keep_alive.map_or(limit, |before| before.min(limit)));
        }
    }

    /// Takes note of a field; a second one, even one that agrees, is one too many.
    fn read(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let is_second = match name.len() {
            10 if is_name(name, "connection") => {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    // We do not switch protocols; whoever asks for it would speak another one from here on.
                    self.closes |= option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"upgrade");
                    self.is_kept_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
                false
            }
            14 if is_name(name, "content-length") => {
                self.content_length.replace(decimal(value).ok_or("a content length that is no number")?).is_some()
            }
            17 if is_name(name, "transfer-encoding") => {
                self.is_chunked.replace(value.eq_ignore_ascii_case(b"chunked")).is_some()
            }
            _ => false,
        };
        if is_second { Err(AMBIGUOUS) } else { Ok(()) }
    }

    /// How the body is delimited, if these fields say so. Only one of them may, and chunks came with HTTP/1.1 (RFC 9112
    /// sections 6.1 and 6.3).
    pub(super) fn body(&self, is_http_1_1: bool) -> Result<Option<BodyLength>, &'static str> {
        match (self.is_chunked, self.content_length) {
            (None, length) => Ok(length.map(BodyLength::Known)),
            (Some(true), None) if is_http_1_1 => Ok(Some(BodyLength::Chunked)),
            (Some(false), None) => Err("a transfer coding that is not chunked"),
            _ => Err(AMBIGUOUS),
        }
    }
}

/// Whether `name` says how a body is delimited to servers that take an underscore for a hyphen.
fn is_misspelled(name: &[u8]) -> bool {
    let is = |wrong: &[u8]| name.len() == wrong.len() && name.eq_ignore_ascii_case(wrong);
    is(b"content_length") || is(b"transfer_encoding")
}

/// Digits and nothing else.
fn decimal(text: &[u8]) -> Option<u64> {
    let push = |number: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    text.iter().try_fold(0, push).filter(|_| !text.is_empty())
}

/// The request line: visible ASCII and single spaces, no fragment. A fragment is never sent (RFC 9112 section 3.2); cut off,
/// the rest would pass for the target.
#[expect(clippy::needless_bitwise_bool, reason = "without a branch for each byte many are compared at once")]
fn check_request_line(line: &[u8]) -> Result<(), HeadError> {
    let is_good = |is, byte: &u8| is & (*byte >= b' ') & (*byte <= b'~') & (*byte != b'#');
    match line.strip_suffix(b"\r") {
        None | Some(b"") => Err(HeadError::Malformed),
        Some(line) if line.iter().fold(true, is_good) => Ok(()),
        Some(line) => Err(if line.contains(&b'\r') { HeadError::Malformed } else { HeadError::Target }),
    }
}

/// Every line that has come of a head whose end has not: a bad one is refused at once.
fn check_line_ends(bytes: &[u8]) -> Result<(), HeadError> {
    let is_strict = memchr_iter(b'\n', bytes).all(|end| end > 0 && bytes[end - 1] == b'\r');
    if is_strict { Ok(()) } else { Err(HeadError::Malformed) }
}

/// What a path and a query may hold, of what is visible: what a URI's may, and what browsers and scripts send besides
/// (WHATWG URL, "path state" and "query state").
fn is_target(target: &[u8]) -> bool {
    // Nearly no target holds one of these at all; that is found out for many bytes at once.
    let is_rare = |is, byte: &u8| is | matches!(byte, b'<' | b'>' | b'`' | b'"');
    if !target.iter().fold(false, is_rare) {
        return true;
    }
    let (path, query) = target.split_at(memchr(b'?', target).unwrap_or(target.len()));
    memchr3(b'<', b'>', b'`', path).is_none() && memchr3(b'<', b'>', b'"', query).is_none()
}

/// What a framing is that is said twice, or that its version has not.
const AMBIGUOUS: &str = "a framing that is ambiguous";
/// Most fields that any head may have.
pub const MAX_FIELDS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::buffer::BufferPool;

    const LIMITS: HeadLimits = HeadLimits { length: 200, fields: 5 };

    /// Reads a head that arrives in pieces of `step`, and what follows it.
    fn read(bytes: &[u8], step: usize) -> Result<Option<(RequestHead, Vec<u8>)>, HeadError> {
        let mut buffer = BufferPool::default().take();
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            if let Some(head) = RequestHead::parse(&mut buffer, LIMITS)? {
                return Ok(Some((head, buffer.clone())));
            }
            if buffer.len() > LIMITS.length {
                return Err(HeadError::TooLarge);
            }
        }
        Ok(None)
    }

    fn error(head: &str) -> HeadError {
        read(head.as_bytes(), 200).map(|head| format!("{head:?}")).expect_err(head)
    }

    #[test]
    fn a_head_is_the_same_however_it_arrives() {
        for (text, body) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BodyLength::None),
            ("PUT / HTTP/1.1\r\nHost: a\r\ncontent-length: 005 \r\n\r\n", BodyLength::Known(5)),
            ("PUT / HTTP/1.0\r\nHost: a\r\nContent-Length:5\r\n\r\n", BodyLength::Known(5)),
            (
                "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tChunked\r\nConnection: close\r\n\r\n",
                BodyLength::Chunked,
            ),
        ] {
            for step in [1, 2, 7, 200] {
                let (head, rest) = read(text.as_bytes(), step).expect(text).expect(text);
                assert_eq!((head.target(), head.body, rest.len()), ("/", body, 0), "{text}");
            }
            for length in 0..text.len() {
                assert!(read(&text.as_bytes()[..length], 200).expect(text).is_none(), "{text:.length$}");
            }
        }
    }

    #[test]
    fn what_follows_a_head_stays() {
        let (head, rest) = read(b"PUT /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET", 200)
            .expect("good")
            .expect("whole");
        assert_eq!((head.method().as_str(), head.target(), rest.as_slice()), ("PUT", "/a?b", &b"abcGET"[..]));
    }

    #[test]
    fn what_is_in_doubt_is_refused() {
        for head in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a \n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nHost:\ra\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\n\r\n",
            "G$T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n A: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "PUT / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n\r\n",
            "GET /< HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /> HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /` HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /?< HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /?> HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /?\" HTTP/1.1\r\nHost: a\r\n\r\n",
            // Said as soon as the line is there.
            "GET / HTTP/1.1\r\nHost: a\nA: b",
        ] {
            assert_eq!(error(head), HeadError::Malformed, "{head}");
        }
        for head in ["GET /\"?` HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n"] {
            assert!(matches!(read(head.as_bytes(), 200), Ok(Some(_))), "{head}");
        }
        for head in ["GET /a#b HTTP/1.1\r\n\r\n", "GET /\u{e4} HTTP/1.1\r\n\r\n", "GET /\t HTTP/1.1\r\n\r\n"] {
            assert_eq!(error(head), HeadError::Target, "{head}");
        }
    }

    #[test]
    fn a_head_has_an_end() {
        let head = |length: usize| format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(length - 26));
        assert!(matches!(read(head(200).as_bytes(), 50), Ok(Some(_))));
        assert_eq!(error(&head(201)), HeadError::TooLarge);
        assert!(matches!(read(&[b'a'; 201], 50), Err(HeadError::TooLarge)));
        let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(count - 1));
        assert!(matches!(read(fields(5).as_bytes(), 50), Ok(Some(_))));
        assert_eq!(error(&fields(6)), HeadError::TooLarge);
    }

    /// However a head is cut, it is refused for its size at one byte too many, and not before.
    #[test]
    fn a_head_that_has_not_ended_is_bounded_to_the_byte() {
        let parse = |bytes: &[u8]| {
            let mut buffer = BufferPool::default().take();
            buffer.extend_from_slice(bytes);
            RequestHead::parse(&mut buffer, LIMITS).map(|head| head.is_some())
        };
        let begun = |begin: &str, length: usize| [begin.as_bytes(), &vec![b'a'; length - begin.len()]].concat();
        for begin in ["GET /", "GET / HTTP/1.1\r\nHost: "] {
            assert_eq!(parse(&begun(begin, 200)), Ok(false), "{begin}");
            assert_eq!(parse(&begun(begin, 201)), Err(HeadError::TooLarge), "{begin}");
        }
        // What is malformed is said to be too large if it is that, too: by its bytes or by its lines.
        let malformed =
            |length: usize| [begun("GET / HTTP/1.1\r\nHost: ", length - 9), b"\r\n bad\r\n\r".to_vec()].concat();
        assert_eq!((malformed(200).len(), parse(&malformed(200))), (200, Err(HeadError::Malformed)));
        assert_eq!(parse(&malformed(201)), Err(HeadError::TooLarge));
        let lines = |count: usize| format!("GET / HTTP/1.1\r\n bad\r\n{}", "A: b\r\n".repeat(count - 2));
        assert_eq!(parse(lines(LIMITS.fields + 1).as_bytes()), Err(HeadError::Malformed));
        assert_eq!(parse(lines(LIMITS.fields + 2).as_bytes()), Err(HeadError::TooLarge));
        let answer = |length: usize| begun("HTTP/1.1 200 OK\r\nServer: ", length);
        let whole = |length: usize| [answer(length - 4), b"\r\n\r\n".to_vec()].concat();
        let read = |bytes: &[u8]| ResponseHead::parse(bytes, LIMITS).map(|head| head.is_some()).ok();
        assert_eq!([read(&answer(200)), read(&answer(201))], [Some(false), None]);
        assert_eq!([read(&whole(200)), read(&whole(201))], [Some(true), None]);
    }

    #[test]
    fn a_field_that_is_looked_at_is_the_one_of_its_name() {
        let names =
            ["host", "origin", "x-csrf", "expect", "upgrade", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"];
        for name in names {
            let known = Known::of(name.as_bytes()).expect(name);
            assert_eq!(format!("{known:?}").to_lowercase(), name.replace('-', ""), "{name}");
            assert!(Known::of(name.to_uppercase().as_bytes()).is_some(), "{name}");
            for other in [format!("{}z", &name[1..]), format!("{name}z"), name[1..].to_owned()] {
                assert!(Known::of(other.as_bytes()).is_none(), "{other}");
            }
        }
    }

    #[test]
    fn a_head_tells_what_is_in_it() {
        let text = b"GET /base/x HTTP/1.1\r\nHost: a\r\nA: b, c\r\na:d\r\n\r\nrest";
        let (head, _) = read(text, 200).expect("good").expect("whole");
        assert_eq!(
            (head.len(), head.only(Known::Host), head.only(Known::Origin)),
            (text.len() - 4, Ok(Some(&b"a"[..])), Ok(None))
        );
        assert_eq!([head.is_below("/base/"), head.is_below("/base/x/"), head.is_below("/other")], [true, false, false]);
        let fields = head.fields();
        assert_eq!([fields.contains("a"), fields.contains("b")], [true, false]);
        assert_eq!(fields.list("a").collect::<Vec<_>>(), [&b"b"[..], b"c", b"d"]);
        assert_eq!(
            (fields.only("host"), fields.only("a"), fields.only("b")),
            (Ok(Some(&b"a"[..])), Err(Several), Ok(None))
        );
        assert_eq!(fields.iter().map(|field| field.is("a")).collect::<Vec<_>>(), [false, true, true]);
    }

    #[test]
    fn the_shortest_time_of_a_kept_connection_counts() {
        for (value, expected) in [
            ("timeout=5", Some(5)),
            ("timeout = 9, TIMEOUT=5, timeout=7", Some(5)),
            ("timeout=5, max=0", Some(0)),
            ("timeout=5, max=1", Some(5)),
            ("max=0", Some(0)),
            ("other=0", None),
            ("timeout=x", None),
            ("timeout", None),
        ] {
            let text = format!("HTTP/1.1 200 OK\r\nKeep-Alive: {value}\r\nConnection: x\r\n\r\n");
            let head = ResponseHead::parse(text.as_bytes(), LIMITS).expect("good").expect("whole");
            let framing = Framing::of(head.fields(text.as_bytes())).expect("no framing");
            assert_eq!((framing.keep_alive, framing.closes), (expected.map(Duration::from_secs), false), "{value}");
        }
    }

    #[test]
    fn an_expectation_and_the_end_of_a_connection_are_found() {
        for (fields, version, expects_continue, is_persistent) in [
            ("", 1, false, true),
            ("Expect: 100-Continue\r\n", 1, true, true),
            ("Expect: 100-continue\r\n", 0, false, false),
            ("Expect: something\r\n", 1, false, true),
            ("Connection: close\r\n", 1, false, false),
            ("Connection: Keep-Alive, Close\r\n", 1, false, false),
            ("Connection: upgrade\r\n", 1, false, false),
            ("Connection: keep-alive\r\n", 0, false, true),
            // Said twice it is said, and no other field says it.
            ("Connection: close, close\r\n", 1, false, false),
            ("Connection: close, x\r\nConnection: upgrade\r\n", 1, false, false),
            ("Connection: keep-alive, keep-alive\r\n", 0, false, true),
            ("Keep-Alive: close\r\n", 1, false, true),
            ("Accept-Charset: close\r\n", 1, false, true),
            ("If-Modified-Since: close\r\n", 1, false, true),
            ("Connection: x\r\n", 1, false, true),
        ] {
            let text = format!("PUT / HTTP/1.{version}\r\nHost: a\r\n{fields}\r\n");
            let (head, _) = read(text.as_bytes(), 200).expect("good").expect("whole");
            assert_eq!((head.expects_continue, head.is_persistent), (expects_continue, is_persistent), "{text}");
        }
    }

    #[test]
    fn a_field_is_written_in_the_usual_form() {
        for (fields, written) in [
            ("A: b\r\nC:d\r\nE: \t f  \r\nG:\r\n", "A: b\r\nC: d\r\nE: f\r\nG: \r\n"),
            ("A:\tb\r\nC:  d\r\nE: f \r\n", "A: b\r\nC: d\r\nE: f\r\n"),
        ] {
            let (head, _) =
                read(format!("GET / HTTP/1.0\r\n{fields}\r\n").as_bytes(), 200).expect("good").expect("whole");
            let mut out = Vec::new();
            head.fields().iter().for_each(|field| field.write(&mut out));
            assert_eq!(String::from_utf8_lossy(&out), written);
        }
    }

    #[test]
    fn a_name_is_the_same_in_any_case_and_no_other_is() {
        assert!(is_name(b"Content-LENGTH", "content-length"));
        for other in [&b"content_length"[..], b"content-lengt", b"content-lengthx", b"contentzlength"] {
            assert!(!is_name(other, "content-length"), "{other:?}");
        }
    }

    #[test]
    fn an_answers_head_is_read_where_it_is() {
        let bytes = b"HTTP/1.1 200 OK\r\nServer: a\r\nX-Page:  2 \r\n\r\nbody";
        let head = ResponseHead::parse(bytes, LIMITS).expect("good").expect("whole");
        assert_eq!((head.status, head.length), (200, bytes.len() - 4));
        assert_eq!(head.fields(bytes).only("x-page"), Ok(Some(&b"2"[..])));
        assert!(ResponseHead::parse(&bytes[..20], LIMITS).expect("good so far").is_none());
        for bad in ["HTTP/1.1 099 X\r\n\r\n", "HTTP/2.0 200 OK\r\n\r\n", "SSH-2.0\r\n", "HTTP/1.1 2000 OK\r\n\r\n"] {
            assert!(ResponseHead::parse(bad.as_bytes(), LIMITS).is_err(), "{bad}");
        }
    }
}
