//! What goes up: an allow-list of headers, and the bearer.
//!
//! Only what is named here reaches a DataHUB; so no cookie, no other way to authenticate and no forwarding header of the
//! browser's does, and `Connection` can name nothing away.

use std::convert::Infallible;

use actix_web::HttpRequest;
use actix_web::http::Method;
use actix_web::http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::StreamExt;
use multer::Multipart;
use url::form_urlencoded;

use crate::datahub::DataHub;
use crate::datahub::token::AccessToken;
use crate::error::{ApiError, Code};
use crate::log::{self, Call};
use crate::proxy::target::{Target, is_credential};

/// The head of an outbound request, as it goes over the wire. `public` is the gateway's own address.
pub fn head(
    req: &HttpRequest,
    target: Target<'_>,
    framing: Framing,
    datahub: &DataHub,
    token: &AccessToken,
    call: &Call,
    public: &str,
) -> BytesMut {
    let headers = req.headers();
    let proto = public.split(':').next().unwrap_or(public);
    let mut head = BytesMut::with_capacity(1024);
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    let root = datahub.address.root();
    put(&[req.method().as_str().as_bytes(), b" ", root.as_bytes(), target.as_str().as_bytes(), b" HTTP/1.1\r\n"]);
    put(&[b"Host: ", datahub.address.host_header().as_bytes(), b"\r\n"]);
    put(&[b"Authorization: ", token.bearer().as_bytes(), b"\r\n"]);
    for name in &FORWARDED {
        for value in headers.get_all(name) {
            put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    match framing {
        Framing::None => {}
        Framing::Length(length) => put(&[b"Content-Length: ", length.to_string().as_bytes(), b"\r\n"]),
        Framing::Chunked => put(&[b"Transfer-Encoding: chunked\r\n"]),
    }
    if let Some(client) = call.client.address {
        put(&[b"X-Forwarded-For: ", client.to_string().as_bytes(), b"\r\n"]);
    }
    put(&[b"X-Forwarded-Proto: ", proto.as_bytes(), b"\r\nX-Request-Id: ", call.id.as_bytes(), b"\r\n"]);
    match headers.get(&TRACEPARENT).filter(|value| is_traceparent(value.as_bytes())) {
        Some(value) => put(&[b"traceparent: ", value.as_bytes(), b"\r\n\r\n"]),
        None => put(&[b"traceparent: 00-", call.id.as_bytes(), b"-", &call.id.as_bytes()[16..], b"-00\r\n\r\n"]),
    }
    head
}

/// The head of a request of our own: whose is `token`? Answered to any token that the DataHUB accepts (GitLab
/// `lib/api/users.rb`).
pub fn probe(datahub: &DataHub, token: &AccessToken, call: &Call) -> BytesMut {
    let (root, host) = (datahub.address.root(), datahub.address.host_header());
    let mut head = BytesMut::with_capacity(512);
    head.extend_from_slice(format!("GET {root}/api/v4/user HTTP/1.1\r\nHost: {host}\r\n").as_bytes());
    for part in [b"Authorization: ", token.bearer().as_bytes(), b"\r\nX-Request-Id: ", call.id.as_bytes(), b"\r\n\r\n"]
    {
        head.extend_from_slice(part);
    }
    head
}

/// How an outbound body is delimited (RFC 9112 section 6). Ours, whatever the browser's was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

impl Framing {
    /// What the framing of an inbound request, which actix-http has checked, says of its body.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        if headers.contains_key(TRANSFER_ENCODING) {
            return Self::Chunked;
        }
        match headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()) {
            Some(length) => Self::Length(length),
            // These have a body by definition, if an empty one (RFC 9110 section 8.6).
            None if [Method::POST, Method::PUT, Method::PATCH].contains(method) => Self::Length(0),
            None => Self::None,
        }
    }

    /// How many bytes will come, if that is known.
    pub fn length(self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Length(length) => Some(length),
            Self::Chunked => None,
        }
    }

    /// Whether more than `limit` bytes may come.
    pub fn may_exceed(self, limit: u64) -> bool {
        self.length().is_none_or(|length| length > limit)
    }
}

/// An outbound body.
pub enum Body {
    /// Small enough to have been looked through.
    Held(Bytes),
    /// Passed on as it comes.
    Streamed(Payload),
}

impl Body {
    /// Holds a short form, multipart or JSON body and looks for credentials in it; any other stays a stream.
    ///
    /// # Errors
    /// `credential_parameter` for a top-level name that GitLab would take for a credential; `bad_request` for a body that
    /// breaks off, or whose parts cannot be told apart.
    pub async fn inspected(payload: Payload, framing: Framing, headers: &HeaderMap) -> Result<Self, ApiError> {
        let length = match framing {
            Framing::None | Framing::Length(0) => return Ok(Self::Held(Bytes::new())),
            Framing::Length(length) if length <= LONGEST_INSPECTED => length,
            _ => return Ok(Self::Streamed(payload)),
        };
        let Some(kind) = Kind::of(headers) else { return Ok(Self::Streamed(payload)) };
        let body = Self::hold(payload, length).await?;
        if kind.names_credential(&body).await? { Err(Code::CredentialParameter.into()) } else { Ok(Self::Held(body)) }
    }

    /// The same body once more, if it is still there.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Held(body) => Some(Self::Held(body.clone())),
            Self::Streamed(_) => None,
        }
    }

    /// All of a short body.
    ///
    /// # Errors
    /// `body_too_large` above 64 KiB; `bad_request` if it breaks off.
    pub async fn hold(mut payload: Payload, length: u64) -> Result<Bytes, ApiError> {
        if length > LONGEST_INSPECTED {
            return Err(Code::BodyTooLarge.into());
        }
        let mut body = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
        while let Some(piece) = payload.next().await {
            body.extend_from_slice(&piece?);
        }
        log::count_in(body.len());
        Ok(body.freeze())
    }
}

/// Bodies whose parameters GitLab reads.
enum Kind {
    Form,
    Multipart(String),
    Json,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let essence = value.split(';').next()?.trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-www-form-urlencoded" => Some(Self::Form),
            "multipart/form-data" => Some(Self::Multipart(multer::parse_boundary(value).unwrap_or_default())),
            "application/json" => Some(Self::Json),
            other if other.ends_with("+json") => Some(Self::Json),
            _ => None,
        }
    }

    async fn names_credential(&self, body: &Bytes) -> Result<bool, ApiError> {
        match self {
            Self::Form => Ok(body
                .split(|byte| matches!(byte, b'&' | b';'))
                .flat_map(form_urlencoded::parse)
                .any(|(name, _)| is_credential(&name))),
            Self::Multipart(boundary) => Self::part_names_credential(boundary, body).await,
            Self::Json => Ok(serde_json::from_slice::<Names>(body).is_ok_and(|names| names.0)),
        }
    }

    /// Of parts that nobody can tell apart, or without a name, GitLab may make something else than we.
    async fn part_names_credential(boundary: &str, body: &Bytes) -> Result<bool, ApiError> {
        let body = futures_util::stream::iter([Ok::<_, Infallible>(body.clone())]);
        let mut parts = Multipart::new(body, boundary);
        while let Some(part) = parts.next_field().await.map_err(|error| ApiError::because(Code::BadRequest, error))? {
            if is_credential(part.name().ok_or(Code::BadRequest)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a JSON object has a credential among its own names; nothing else of it is kept.
struct Names(bool);

impl<'de> serde::Deserialize<'de> for Names {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Names;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut found = false;
                while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    found |= is_credential(&name);
                    map.next_value::<serde::de::IgnoredAny>()?;
                }
                Ok(Names(found))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// W3C Trace Context section 3.2: version 00, in lower-case hex.
fn is_traceparent(value: &[u8]) -> bool {
    value.len() == 55
        && value.starts_with(b"00-")
        && value.iter().enumerate().all(|(at, byte)| match at {
            2 | 35 | 52 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

/// What a browser may tell a DataHUB.
const FORWARDED: [HeaderName; 11] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    CONTENT_TYPE,
    IF_MATCH,
    IF_MODIFIED_SINCE,
    IF_NONE_MATCH,
    IF_RANGE,
    IF_UNMODIFIED_SINCE,
    RANGE,
    USER_AGENT,
];

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// How long a body may be to be held and looked through, in bytes.
const LONGEST_INSPECTED: u64 = 64 * 1024;
