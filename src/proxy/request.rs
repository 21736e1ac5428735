//! What goes up: an allow-list of headers, and the bearer.
//!
//! Only what is named here reaches a DataHUB; so no cookie, no other way to authenticate and no forwarding header of the
//! browser's does, and `Connection` can name nothing away.

use actix_web::HttpRequest;
use actix_web::http::Method;
use actix_web::http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use actix_web::web::BytesMut;

use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::token::AccessToken;
use crate::error::{ApiError, Code};
use crate::proxy::target::Target;

/// The head of an outbound request, as it goes over the wire. `public` is the gateway's own address.
///
/// # Errors
/// `bad_request` if something is said twice that may be said once: we and GitLab might go by another one each.
pub fn head(
    req: &HttpRequest,
    target: Target<'_>,
    framing: Framing,
    datahub: &DataHub,
    token: &AccessToken,
    context: &RequestContext,
    public: &str,
) -> Result<BytesMut, ApiError> {
    let headers = req.headers();
    let proto = public.split(':').next().unwrap_or(public);
    let mut head = BytesMut::with_capacity(1024);
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| head.extend_from_slice(part));
    let root = datahub.address.root();
    put(&[req.method().as_str().as_bytes(), b" ", root.as_bytes(), target.as_str().as_bytes(), b" HTTP/1.1\r\n"]);
    put(&[b"Host: ", datahub.address.host_header().as_bytes(), b"\r\n"]);
    put(&[b"Authorization: ", token.bearer().as_bytes(), b"\r\n"]);
    for (name, is_list) in &FORWARDED {
        for (at, value) in headers.get_all(name).enumerate() {
            if at > 0 && !is_list {
                return Err(Code::BadRequest.into());
            }
            put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
    }
    match framing {
        Framing::None => {}
        Framing::Length(length) => put(&[b"Content-Length: ", length.to_string().as_bytes(), b"\r\n"]),
        Framing::Chunked => put(&[b"Transfer-Encoding: chunked\r\n"]),
    }
    if let Some(client) = context.client.address {
        put(&[b"X-Forwarded-For: ", client.to_string().as_bytes(), b"\r\n"]);
    }
    put(&[b"X-Forwarded-Proto: ", proto.as_bytes(), b"\r\nX-Request-Id: ", context.id.as_str().as_bytes(), b"\r\n"]);
    match headers.get(&TRACEPARENT).filter(|value| is_traceparent(value.as_bytes())) {
        Some(value) => put(&[b"traceparent: ", value.as_bytes(), b"\r\n\r\n"]),
        None => put(&[
            b"traceparent: 00-",
            context.id.as_str().as_bytes(),
            b"-",
            &context.id.as_str().as_bytes()[16..],
            b"-00\r\n\r\n",
        ]),
    }
    Ok(head)
}

/// The head of a request of our own: whose is `token`? Answered to any token that the DataHUB accepts (GitLab
/// `lib/api/users.rb`).
pub fn probe(datahub: &DataHub, token: &AccessToken, context: &RequestContext) -> BytesMut {
    let (root, host) = (datahub.address.root(), datahub.address.host_header());
    let mut head = BytesMut::with_capacity(512);
    head.extend_from_slice(format!("GET {root}/api/v4/user HTTP/1.1\r\nHost: {host}\r\n").as_bytes());
    for part in [
        b"Authorization: ",
        token.bearer().as_bytes(),
        b"\r\nX-Request-Id: ",
        context.id.as_str().as_bytes(),
        b"\r\n\r\n",
    ] {
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

/// What a browser may tell a DataHUB, and whether that may be said in several fields (RFC 9110 section 5.3).
const FORWARDED: [(HeaderName, bool); 11] = [
    (ACCEPT, true),
    (ACCEPT_ENCODING, true),
    (ACCEPT_LANGUAGE, true),
    (CONTENT_TYPE, false),
    (IF_MATCH, true),
    (IF_MODIFIED_SINCE, false),
    (IF_NONE_MATCH, true),
    (IF_RANGE, false),
    (IF_UNMODIFIED_SINCE, false),
    (RANGE, false),
    (USER_AGENT, false),
];

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
