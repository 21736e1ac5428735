//! A request's body on its way up. Short ones that hold parameters are read and inspected, all others are streamed.
//!
//! GitLab takes credentials from parameters too, and prefers some of them to the bearer. A long body, or one without a
//! length or a Content-Type, is not inspected: a token in there is one that the sender had already.

use std::fmt;

use memchr::memmem;
use serde::de::{self, IgnoredAny, MapAccess};
use serde::{Deserialize, Deserializer};
use url::form_urlencoded;

use crate::context::RequestContext;
use crate::error::{ApiError, Code};
use crate::http::body::BodyLength;
use crate::http::head::{Fields, RequestHead};
use crate::http::server::ServerConnection;
use crate::proxy::Failure;
use crate::proxy::target::{is_credential, mentions_credential};

/// What becomes of a request's body.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// It has been read and inspected.
    Buffered(Vec<u8>),
    /// It is passed on as it comes.
    Streaming,
}

/// Reads a short form, multipart or JSON body and looks for credentials in it; any other stays where it is.
///
/// # Errors
/// `credential_parameter` for a top-level name that GitLab would take for a credential; `bad_request` for a body that
/// breaks off, or is not plainly what its Content-Type says.
pub(super) async fn inspect(
    request: &RequestHead,
    downstream: &mut ServerConnection,
    context: &RequestContext,
) -> Result<RequestBody, Failure> {
    let length = match request.body {
        body if body.is_empty() => return Ok(RequestBody::Buffered(Vec::new())),
        BodyLength::Known(length) if length <= MAX_INSPECTED => length,
        _ => return Ok(RequestBody::Streaming),
    };
    let Some(kind) = Kind::of(request.fields()) else { return Ok(RequestBody::Streaming) };
    let body = buffer(length, downstream, context).await?;
    let is_credential = kind.names_credential(&body).map_err(ApiError::from)?;
    if is_credential { Err(Code::CredentialParameter.into()) } else { Ok(RequestBody::Buffered(body)) }
}

/// All of a short body.
///
/// # Errors
/// `body_too_large` above 64 KiB; `bad_request` if it breaks off.
pub(super) async fn buffer(
    length: u64,
    downstream: &mut ServerConnection,
    context: &RequestContext,
) -> Result<Vec<u8>, Failure> {
    if length > MAX_INSPECTED {
        return Err(Code::BodyTooLarge.into());
    }
    let mut body = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    while let Some(piece) = downstream.next_piece().await? {
        context.count_in(piece.len());
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Bodies whose parameters GitLab reads, told apart as Rack and Grape do (`lib/rack/media_type.rb`: up to a `;` or `,`).
enum Kind {
    Form,
    /// With its Content-Type, which holds the boundary.
    Multipart(String),
    Json,
}

impl Kind {
    fn of(fields: Fields<'_>) -> Option<Self> {
        let value = lossy(fields.values("content-type").next()?);
        let essence = value.split([';', ',']).next().unwrap_or(&value).trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-www-form-urlencoded" => Some(Self::Form),
            "multipart/form-data" | "multipart/mixed" | "multipart/related" => Some(Self::Multipart(value)),
            "application/json" | "application/jsonrequest" | "text/x-json" => Some(Self::Json),
            essence if essence.ends_with("+json") => Some(Self::Json),
            _ => None,
        }
    }

    fn names_credential(&self, body: &[u8]) -> Result<bool, Unreadable> {
        match self {
            Self::Form => Ok(form_names_credential(body)),
            Self::Multipart(kind) => part_names_credential(kind, body).ok_or(Unreadable),
            Self::Json => json_names_credential(body),
        }
    }
}

fn form_names_credential(body: &[u8]) -> bool {
    let pieces = body.split(|byte| matches!(byte, b'&' | b';'));
    pieces.flat_map(form_urlencoded::parse).any(|(name, _)| is_credential(&name))
}

/// What is not JSON to us may be JSON to GitLab: some parsers take comments, a byte order mark, or malformed numbers. So
/// what is not JSON passes only if it names no credential anywhere and has no escapes that could hide one.
fn json_names_credential(body: &[u8]) -> Result<bool, Unreadable> {
    let is_object = body.trim_ascii_start().starts_with(b"{");
    match serde_json::from_slice::<IgnoredAny>(body) {
        Ok(_) if is_object => serde_json::from_slice::<Names>(body).map(|names| names.0).map_err(|_| Unreadable),
        Ok(_) => Ok(false),
        Err(_) if body.contains(&b'\\') => Err(Unreadable),
        Err(_) => Ok(mentions_credential(body)),
    }
}

/// Multipart bodies (RFC 7578) as browsers and the usual clients write them, and no others: whoever reads more leniently
/// than we, as Rack does (`lib/rack/multipart/parser.rb`), must find the same parts and the same names.
fn part_names_credential(kind: &str, body: &[u8]) -> Option<bool> {
    let boundary = boundary(kind)?;
    // Rack's ends at a comma.
    let short = boundary.split([',', ';']).next().filter(|short| *short != boundary);
    if short.is_some_and(|short| memmem::find(body, format!("--{short}\r\n").as_bytes()).is_some()) {
        return None;
    }
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = body.strip_prefix(&delimiter.as_bytes()[2..])?;
    let mut found = false;
    while !matches!(rest, b"--" | b"--\r\n") {
        let part = rest.strip_prefix(b"\r\n")?;
        let head = &part[..memmem::find(part, b"\r\n\r\n")?];
        found |= head_names_credential(head)?;
        let content = &part[head.len() + 2..];
        rest = &content[memmem::find(content, delimiter.as_bytes())? + delimiter.len()..];
    }
    Some(found)
}

/// The boundary, if there is one and no more.
fn boundary(kind: &str) -> Option<&str> {
    let lower = kind.to_ascii_lowercase();
    let mut places = lower.match_indices("boundary=");
    let (Some((at, word)), None) = (places.next(), places.next()) else { return None };
    let value = kind[at + word.len()..].trim_end();
    let value = match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => value,
    };
    let is_plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\;".contains(&byte));
    (kind[..at].ends_with([';', ' ']) && is_plain).then_some(value)
}

/// Whether a part is named like a credential, whichever of the names in its head counts.
fn head_names_credential(head: &[u8]) -> Option<bool> {
    let head = lossy(head);
    let lower = head.to_ascii_lowercase();
    let is_plain = head.split("\r\n").all(|line| !line.contains(['\r', '\n']));
    if !is_plain || lower.matches("content-disposition").count() != 1 || lower.contains("content-id") {
        return None;
    }
    let dispositions = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let mut dispositions = dispositions.filter(|(name, _)| name.eq_ignore_ascii_case("content-disposition"));
    let parameters = dispositions.next()?.1.trim_start().strip_prefix("form-data;")?.trim_start();
    if !parameters.starts_with("name=") {
        return None;
    }
    let starts = [0].into_iter().chain(parameters.match_indices(';').map(|(at, _)| at + 1));
    let mut found = false;
    for parameter in starts.map(|at| parameters[at..].trim_start()) {
        let value = parameter.get(..4).filter(|word| word.eq_ignore_ascii_case("name")).map(|_| &parameter[4..]);
        if let Some(value) = value.filter(|value| value.trim_start().starts_with(['=', '*'])) {
            found |= is_credential(part_name(value.strip_prefix('=')?)?);
        }
    }
    Some(found)
}

/// The name in a value that begins so, if nothing in it is escaped; without quotes, up to what no token holds.
fn part_name(value: &str) -> Option<&str> {
    let name = match value.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?.0,
        None => value.split(|letter| "()<>@,;:\\\"/[]?= \t".contains(letter)).next()?,
    };
    (!name.is_empty() && !name.contains('\\')).then_some(name)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A body that is not plainly what its Content-Type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not what its Content-Type says")]
pub(super) struct Unreadable;

impl From<Unreadable> for ApiError {
    fn from(error: Unreadable) -> Self {
        Self::because(Code::BadRequest, error)
    }
}

/// Whether a JSON object has a credential among its own names; nothing else of it is kept.
struct Names(bool);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut found = false;
                while let Some(Name(name)) = map.next_key()? {
                    found |= is_credential(&name);
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(Names(found))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// A name in JSON, even one that is no text: another parser may take it, and what stands beside it.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Name, E> {
                Ok(Name(lossy(bytes)))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// Longest body that is inspected, in bytes.
const MAX_INSPECTED: u64 = 64 * 1024;
