//! A body on its way up: short ones that hold parameters are held and looked through, all others pass as they come.
//!
//! GitLab takes credentials from parameters too, and some of them before the bearer. What is in a long body, or in one without
//! a length or a Content-Type, passes unseen; whoever sends it acts with a token that is the person's own.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;

use actix_web::http::header::{CONTENT_TYPE, HeaderMap};
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::StreamExt;
use multer::Multipart;
use serde::de::{self, IgnoredAny, MapAccess};
use serde::{Deserialize, Deserializer};
use url::form_urlencoded;

use crate::error::{ApiError, Code};
use crate::log;
use crate::proxy::request::Framing;
use crate::proxy::target::{is_credential, mentions_credential};

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
    /// breaks off, or is not plainly what its Content-Type says.
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

/// Bodies whose parameters GitLab reads, told apart as Rack and Grape do (`lib/rack/media_type.rb`: up to a `;` or `,`).
enum Kind {
    Form,
    /// With the whole Content-Type, which holds the boundary.
    Multipart(String),
    Json,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let value = lossy(headers.get(CONTENT_TYPE)?.as_bytes());
        let essence = value.split([';', ',']).next().unwrap_or(&value).trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-www-form-urlencoded" => Some(Self::Form),
            "multipart/form-data" | "multipart/mixed" | "multipart/related" => Some(Self::Multipart(value)),
            essence if essence.contains("json") => Some(Self::Json),
            _ => None,
        }
    }

    async fn names_credential(&self, body: &Bytes) -> Result<bool, Unreadable> {
        match self {
            Self::Form => Ok(form_names_credential(body)),
            Self::Multipart(kind) => part_names_credential(kind, body).await,
            Self::Json => json_names_credential(body),
        }
    }
}

fn form_names_credential(body: &[u8]) -> bool {
    let pieces = body.split(|byte| matches!(byte, b'&' | b';'));
    pieces.flat_map(form_urlencoded::parse).any(|(name, _)| is_credential(&name))
}

/// What is no JSON to us may be some to GitLab: there are parsers that take comments, a byte order mark, or numbers that are
/// none. So nothing of that kind may pass that names a credential anywhere, or hides what it names.
fn json_names_credential(body: &[u8]) -> Result<bool, Unreadable> {
    match serde_json::from_slice::<IgnoredAny>(body) {
        Ok(_) => Ok(serde_json::from_slice::<Names>(body).is_ok_and(|names| names.0)),
        Err(_) if body.contains(&b'\\') => Err(Unreadable),
        Err(_) => Ok(mentions_credential(body)),
    }
}

/// Of parts that cannot be told apart, or that have no name or two, GitLab may make something else than we.
async fn part_names_credential(kind: &str, body: &Bytes) -> Result<bool, Unreadable> {
    let boundary = multer::parse_boundary(kind).map_err(|_| Unreadable)?;
    if kind.to_ascii_lowercase().matches("boundary=").count() != 1 {
        return Err(Unreadable);
    }
    let body = futures_util::stream::iter([Ok::<_, Infallible>(body.clone())]);
    let mut parts = Multipart::new(body, boundary);
    while let Some(part) = parts.next_field().await.map_err(|_| Unreadable)? {
        let mut dispositions = part.headers().get_all("content-disposition").iter();
        let (Some(disposition), None) = (dispositions.next(), dispositions.next()) else { return Err(Unreadable) };
        if is_credential(only_name(&lossy(disposition.as_bytes())).ok_or(Unreadable)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The name in a part's Content-Disposition, if every way to read it finds the same one: there are no two, even within
/// quotes, and nothing in it is escaped.
fn only_name(disposition: &str) -> Option<&str> {
    let mut values = disposition.match_indices(';').filter_map(|(at, _)| {
        let rest = disposition[at + 1..].trim_start();
        let after = rest.get(..4).filter(|word| word.eq_ignore_ascii_case("name")).map(|_| rest[4..].trim_start())?;
        after.strip_prefix('=').or(after.starts_with('*').then_some(""))
    });
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let value = value.trim_start();
    let name = match value.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?.0,
        None => value.split([';', ' ', '\t']).next()?,
    };
    (!name.is_empty() && !name.contains('\\')).then_some(name)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A body that is not plainly what its Content-Type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not what its Content-Type says")]
pub struct Unreadable;

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
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    found |= is_credential(&name);
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(Names(found))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// How long a body may be to be held and looked through, in bytes.
const LONGEST_INSPECTED: u64 = 64 * 1024;
