//! What goes up: an allow-list of fields, and the bearer.
//!
//! Only what is named here reaches a DataHUB; so no cookie, no other way to authenticate and no forwarding field of the
//! browser's does, and `Connection` can name nothing away.

use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Range;

use zeroize::Zeroize as _;

use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::error::Code;
use crate::http::body::{BodyLength, write_content_length, write_decimal};
use crate::http::buffer::{Buffer, append};
use crate::http::head::{RequestHead, is_name};
use crate::proxy::target::Target;
use crate::session::open_session::OpenSession;

/// Whose call goes up, and where to.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Where to.
    pub datahub: &'a DataHub,
    /// Whose token it bears.
    pub session: &'a OpenSession,
    /// Its id, and the client it comes from.
    pub context: &'a RequestContext,
    /// That of the gateway's own address.
    pub scheme: &'a str,
}

/// A message on its way up: a head, and the body if that is short. The bearer in it is wiped when it is dropped.
#[derive(Debug)]
pub struct Message {
    bytes: Buffer,
    bearer: Range<usize>,
}

impl Message {
    /// The head of a call with the fields of `request`.
    ///
    /// # Errors
    /// `bad_request` if something is said twice that may be said once: we and GitLab might go by another one each.
    pub fn of_call(
        mut bytes: Buffer,
        request: &RequestHead,
        target: Target<'_>,
        length: BodyLength,
        caller: Caller<'_>,
    ) -> Result<Self, Code> {
        let Caller { datahub, context, scheme, .. } = caller;
        let (fields, id) = (request.fields(), context.id.as_bytes());
        bytes.make_room(request.len() + datahub.address.root().len() + MAX_OURS);
        let bearer = begin(&mut bytes, request.method(), target.as_str(), caller);
        let mut seen = 0_u16;
        for field in fields.iter() {
            let Some((at, is_list)) = forwarded(field.name) else { continue };
            if seen & (1 << at) != 0 && !is_list {
                return Err(Code::BadRequest);
            }
            seen |= 1 << at;
            field.write(&mut bytes);
        }
        match length {
            BodyLength::None | BodyLength::UntilClose => {}
            BodyLength::Known(length) => write_content_length(length, &mut bytes),
            BodyLength::Chunked => bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        if let Some(client) = context.client.address {
            bytes.extend_from_slice(b"X-Forwarded-For: ");
            write_address(client, &mut bytes);
            bytes.extend_from_slice(b"\r\n");
        }
        append(&mut bytes, [b"X-Forwarded-Proto: ", scheme.as_bytes(), b"\r\nX-Request-Id: ", id]);
        bytes.extend_from_slice(b"\r\ntraceparent: ");
        match fields.values("traceparent").next().filter(|value| is_traceparent(value)) {
            Some(value) => bytes.extend_from_slice(value),
            None => append(&mut bytes, [b"00-", id, b"-", &id[16..], b"-00"]),
        }
        bytes.extend_from_slice(b"\r\n\r\n");
        Ok(Self { bytes, bearer })
    }

    /// A request of our own: whose is the token? Answered to any token that the DataHUB accepts (GitLab `lib/api/users.rb`).
    pub fn probe(mut bytes: Buffer, caller: Caller<'_>) -> Self {
        bytes.make_room(caller.datahub.address.root().len() + MAX_OURS);
        let bearer = begin(&mut bytes, "GET", "/api/v4/user", caller);
        append(&mut bytes, [b"X-Request-Id: ", caller.context.id.as_bytes(), b"\r\n\r\n"]);
        Self { bytes, bearer }
    }

    /// Adds the body.
    pub fn append(&mut self, body: &[u8]) {
        // What moves leaves a copy behind.
        if self.bytes.capacity() - self.bytes.len() < body.len() {
            let mut roomier = Vec::with_capacity(self.bytes.len() + body.len());
            roomier.extend_from_slice(&self.bytes);
            self.bytes[self.bearer.clone()].zeroize();
            *self.bytes = roomier;
        }
        self.bytes.extend_from_slice(body);
    }

    /// The bytes, as they go over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        self.bytes[self.bearer.clone()].zeroize();
    }
}

/// Writes the first lines of a message; where in it the bearer is. There is room for them, so that nothing moves.
fn begin(bytes: &mut Buffer, method: &str, target: &str, caller: Caller<'_>) -> Range<usize> {
    let Caller { datahub, session, .. } = caller;
    let parts = [method, " ", datahub.address.root(), target, " HTTP/1.1\r\nHost: ", datahub.address.host_header()];
    append(bytes, parts.map(str::as_bytes));
    bytes.extend_from_slice(b"\r\nAuthorization: Bearer ");
    let start = bytes.len();
    session.write_bearer(bytes);
    let bearer = start..bytes.len();
    bytes.extend_from_slice(b"\r\n");
    bearer
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
        write_decimal(octet.into(), bytes);
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
        12 => (5, "content-type", false),
        13 => (6, "if-none-match", true),
        15 if is_name(name, "accept-encoding") => (7, "accept-encoding", true),
        15 => (8, "accept-language", true),
        17 => (9, "if-modified-since", false),
        19 => (10, "if-unmodified-since", false),
        _ => return None,
    };
    is_name(name, lower).then_some((at, is_list))
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

/// Room for what we add to a head: the token, a host, an address and ids, in bytes. Tokens fit into a cookie.
const MAX_OURS: usize = 4096 + 1024;
