//! A body on its way up: short ones that hold parameters are held and looked through, all others pass as they come.
//!
//! GitLab takes credentials from parameters too, and some of them before the bearer. What is in a long body or in one without
//! a length passes unseen; whoever sends it acts with a token that is the person's own.

use std::convert::Infallible;

use actix_web::http::header::{CONTENT_TYPE, HeaderMap};
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::StreamExt;
use multer::Multipart;
use url::form_urlencoded;

use crate::error::{ApiError, Code};
use crate::log;
use crate::proxy::request::Framing;
use crate::proxy::target::is_credential;

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

/// How long a body may be to be held and looked through, in bytes.
const LONGEST_INSPECTED: u64 = 64 * 1024;
