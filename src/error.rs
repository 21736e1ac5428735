//! What the browser is told when a call fails.
//!
//! Every failure ends as one `application/problem+json` (RFC 9457) whose `code` a program can act on. The text is ours
//! alone: nothing that a DataHUB, a browser or a library said is repeated.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use actix_web::ResponseError;
use actix_web::http::StatusCode;
use serde::Serialize;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// A call that failed: what the browser is told, and what only the log learns.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", code.as_str())]
pub struct ApiError {
    code: Code,
    fields: Vec<(&'static str, String)>,
    closes: bool,
    is_of_backend: bool,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl ApiError {
    /// A failure whose reason is for the log and never for the body.
    pub fn because(code: Code, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { source: Some(source.into().into()), ..Self::from(code) }
    }

    /// A method that the route does not have; `allow` lists those it has (RFC 9110 section 10.2.1).
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self::from(Code::MethodNotAllowed).with_field("allow", allow)
    }

    /// Asks the caller to come back after `wait`, in whole seconds, and no earlier (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        self.with_field("retry-after", wait.as_millis().div_ceil(1_000).max(1).to_string())
    }

    /// Adds a field to the answer, such as Location or Set-Cookie; `name` is in lower case. A name may come twice.
    #[must_use]
    pub fn with_field(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Ends the connection after the answer.
    #[must_use]
    pub fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    /// The same about the ARCmanager's old backend: where people would read of a DataHUB, they read of that.
    #[must_use]
    pub fn of_backend(self) -> Self {
        Self { is_of_backend: true, ..self }
    }

    /// What a program acts on.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The fields that this failure adds to those of every failure (Content-Type, Cache-Control), in the order they were
    /// added: name in lower case, value.
    pub fn fields(&self) -> &[(&'static str, String)] {
        &self.fields
    }

    /// Whether the connection ends after the answer.
    pub fn closes(&self) -> bool {
        self.closes
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.code.row().0).expect("the table holds valid status codes")
    }

    /// The body, which names the request it answers.
    pub fn problem(&self, request_id: &str) -> String {
        let (status, _, title, detail) = self.code.row();
        let of_backend = if self.is_of_backend { self.code.texts_of_backend() } else { None };
        let (title, detail) = of_backend.unwrap_or((title, detail));
        let problem = Problem { r#type: "about:blank", title, status, detail, code: self.code.as_str(), request_id };
        serde_json::to_string(&problem).expect("strings and a number always serialise")
    }
}

impl From<Code> for ApiError {
    fn from(code: Code) -> Self {
        Self { code, fields: Vec::new(), closes: false, is_of_backend: false, source: None }
    }
}

/// For our own routes, which fail with it. It is taken out of their answer and written by the server, which knows the
/// request's id.
impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status()
    }
}

/// A failure's name, fixed for ever: apps act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the table in `row` says what each one means")]
pub enum Code {
    BadRequest,
    BadRequestTarget,
    BodyTooLarge,
    CredentialEndpoint,
    CredentialParameter,
    CrossSiteRequest,
    DatahubInvalidResponse,
    DatahubTimeout,
    DatahubUnreachable,
    Internal,
    MethodNotAllowed,
    MethodNotImplemented,
    NotForwarded,
    NotFound,
    NotLoggedIn,
    Overloaded,
    PatRefused,
    PrefetchRefused,
    RateLimited,
    RefreshFirst,
    RefreshUnavailable,
    HeadTooLarge,
    RequestTimeout,
    SessionExpired,
    SessionSuperseded,
    TargetTooLong,
    UnknownDatahub,
    UpgradeRefused,
    WrongHost,
}

impl Code {
    /// All of them, in the order above.
    pub const ALL: [Self; 29] = [
        Self::BadRequest,
        Self::BadRequestTarget,
        Self::BodyTooLarge,
        Self::CredentialEndpoint,
        Self::CredentialParameter,
        Self::CrossSiteRequest,
        Self::DatahubInvalidResponse,
        Self::DatahubTimeout,
        Self::DatahubUnreachable,
        Self::Internal,
        Self::MethodNotAllowed,
        Self::MethodNotImplemented,
        Self::NotForwarded,
        Self::NotFound,
        Self::NotLoggedIn,
        Self::Overloaded,
        Self::PatRefused,
        Self::PrefetchRefused,
        Self::RateLimited,
        Self::RefreshFirst,
        Self::RefreshUnavailable,
        Self::HeadTooLarge,
        Self::RequestTimeout,
        Self::SessionExpired,
        Self::SessionSuperseded,
        Self::TargetTooLong,
        Self::UnknownDatahub,
        Self::UpgradeRefused,
        Self::WrongHost,
    ];

    /// The word in the problem's `code`.
    pub fn as_str(self) -> &'static str {
        self.row().1
    }

    /// Status, code, title and detail: the whole table.
    fn row(self) -> (u16, &'static str, &'static str, &'static str) {
        match self {
            Self::BadRequest => (
                400,
                "bad_request",
                "Bad request",
                "The request lacks something or holds something that does not belong in it.",
            ),
            Self::BadRequestTarget => (
                400,
                "bad_request_target",
                "Bad request target",
                "The path or the query of the request cannot be forwarded as it is written.",
            ),
            Self::BodyTooLarge => {
                (413, "body_too_large", "Body too large", "The body of the request is longer than this gateway takes.")
            }
            Self::CredentialEndpoint => (
                403,
                "credential_endpoint",
                "Not forwarded",
                "This part of the DataHUB's API makes or changes credentials and is not forwarded.",
            ),
            Self::CredentialParameter => (
                400,
                "credential_parameter",
                "Credential in the request",
                "The request carries a parameter that could authenticate as someone else. Remove it.",
            ),
            Self::CrossSiteRequest => (
                403,
                "cross_site_request",
                "Cross-site request",
                "Only this origin's own script may make this call: by fetch, or with the header X-CSRF: 1.",
            ),
            Self::DatahubInvalidResponse => (
                502,
                "datahub_invalid_response",
                "Invalid answer from the DataHUB",
                "The DataHUB gave an answer that cannot be passed on.",
            ),
            Self::DatahubTimeout => {
                (504, "datahub_timeout", "The DataHUB took too long", "The DataHUB did not answer in time.")
            }
            Self::DatahubUnreachable => {
                (502, "datahub_unreachable", "DataHUB unreachable", "The DataHUB cannot be reached at the moment.")
            }
            Self::HeadTooLarge => (
                431,
                "head_too_large",
                "Head too large",
                "The head of the request is longer, or has more fields, than this gateway takes.",
            ),
            Self::Internal => (
                500,
                "internal",
                "Internal error",
                "Something went wrong in the gateway. The request id leads to the log.",
            ),
            Self::MethodNotAllowed => {
                (405, "method_not_allowed", "Method not allowed", "This route does not have that method.")
            }
            Self::MethodNotImplemented => {
                (501, "method_not_implemented", "Method not implemented", "This method is not forwarded.")
            }
            Self::NotForwarded => (404, "not_forwarded", "Not forwarded", "This part of the DataHUB is not forwarded."),
            Self::NotFound => (404, "not_found", "Not found", "There is nothing at this path."),
            Self::NotLoggedIn => {
                (401, "not_logged_in", "Not logged in", "There is no session at this DataHUB. Log in first.")
            }
            Self::Overloaded => {
                (503, "overloaded", "Overloaded", "Too many calls are under way. Try again in a moment.")
            }
            Self::PatRefused => (
                400,
                "pat_refused",
                "Personal access token refused",
                "The DataHUB must know this personal access token as an active one of your own, with the scope api and without sudo and admin_mode. Make one there and try again. You are still logged in as before.",
            ),
            Self::PrefetchRefused => (
                503,
                "prefetch_refused",
                "Not ahead of time",
                "This begins or changes something, and is not done before somebody asks for it. Ask again by a click.",
            ),
            Self::RateLimited => (
                429,
                "rate_limited",
                "Too many calls",
                "Too many calls without a login are made. Wait as long as Retry-After says, or log in.",
            ),
            Self::RefreshFirst => (
                409,
                "refresh_first",
                "Refresh first",
                "The access token is about to expire and the body is too long to be sent twice. Call POST /auth/refresh, then send again.",
            ),
            Self::RefreshUnavailable => (
                503,
                "refresh_unavailable",
                "Refresh unavailable",
                "The DataHUB did not renew the access token in time. The session is kept; try again.",
            ),
            Self::RequestTimeout => (408, "request_timeout", "Request timeout", "The request did not arrive in time."),
            Self::SessionExpired => (401, "session_expired", "Session expired", "The session has ended. Log in again."),
            Self::SessionSuperseded => (
                307,
                "session_superseded",
                "Session superseded",
                "The call was not made: the session has newer tokens, or may have. Send it again with the cookies of now.",
            ),
            Self::TargetTooLong => (
                414,
                "target_too_long",
                "Target too long",
                "The path and query of the request are longer than this gateway takes.",
            ),
            Self::UnknownDatahub => {
                (404, "unknown_datahub", "Unknown DataHUB", "This gateway serves no DataHUB of that name.")
            }
            Self::WrongHost => (
                421,
                "wrong_host",
                "Wrong host",
                "This gateway answers at the address of `server.public_url` only; a proxy in front must pass the Host field on.",
            ),
            Self::UpgradeRefused => {
                (501, "upgrade_refused", "Upgrade refused", "This gateway does not switch protocols.")
            }
        }
    }

    /// Title and detail about the ARCmanager's old backend, where those of the table name a DataHUB.
    fn texts_of_backend(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::DatahubInvalidResponse => Some((
                "Invalid answer from the ARCmanager's backend",
                "The ARCmanager's backend gave an answer that cannot be passed on.",
            )),
            Self::DatahubTimeout => {
                Some(("The ARCmanager's backend took too long", "The ARCmanager's backend did not answer in time."))
            }
            Self::DatahubUnreachable => {
                Some(("ARCmanager's backend unreachable", "The ARCmanager's backend cannot be reached at the moment."))
            }
            Self::NotForwarded => Some(("Not forwarded", "This part of the ARCmanager's backend is not forwarded.")),
            Self::NotLoggedIn => Some(("Not logged in", "There is no session at any DataHUB. Log in first.")),
            _ => None,
        }
    }
}

/// The codes, for the API documents.
impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let words = Self::ALL.map(Self::as_str);
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).into()
    }
}

impl ToSchema for Code {}

/// Why a call failed (RFC 9457 section 3.1, with two members of the gateway's): act on `code`.
#[derive(Serialize, ToSchema)]
pub struct Problem<'a> {
    /// Always `about:blank`: `code` says what it is.
    r#type: &'static str,
    /// For people; `code` is for programs.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// One sentence for people; never what the DataHUB said.
    detail: &'static str,
    /// What a program acts on, fixed for ever.
    #[schema(value_type = Code)]
    code: &'static str,
    /// The same as in the field X-Request-Id: it leads to the log.
    request_id: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_codes_is_whole() {
        let source = include_str!("error.rs");
        let (_, rest) = source.split_once("pub enum Code {\n").expect("the enum");
        let (variants, _) = rest.split_once('}').expect("its end");
        let listed = Code::ALL.map(|code| format!("{code:?}"));
        assert_eq!(variants.split(',').map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>(), listed);
    }
}
