//! How our requests to a DataHUB as its OAuth client fail.

use std::borrow::Cow;

use openidconnect::core::CoreErrorResponseType;
use openidconnect::{RequestTokenError, StandardErrorResponse};
use serde::Deserialize;

use crate::datahub::back_channel::BackChannelError;
use crate::datahub::discovery::MetadataError;
use crate::datahub::health::Outcome;
use crate::datahub::id_token::IdTokenError;
use crate::datahub::token::{AccessToken, RefreshToken, SessionToken, TokenError};
use crate::datahub::token_endpoint::TokenEndpointError;

/// Why a code brought no session.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The DataHUB's endpoints or keys are not known.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// An answer that is another issuer's, or does not say whose.
    #[error("the answer is not this issuer's: see that datahubs.ID.issuer is what the metadata call it")]
    Issuer,
    /// No answer of the token endpoint.
    #[error("the code could not be exchanged")]
    Endpoint(#[source] TokenEndpointError),
    /// No answer to who the person is.
    #[error("cannot fetch userinfo (see the DataHUB's own log)")]
    Userinfo(#[source] BackChannelError),
    /// A refusal of our own client.
    #[error("the DataHUB refuses this gateway's client ({0}): check client_id and client_secret")]
    Client(&'static str),
    /// The process ends.
    #[error("the process ends")]
    Ending,
    /// The token endpoint said no, in a word of RFC 6749 section 5.2.
    #[error("the DataHUB refused the code ({0}): see that its application has this redirect URI and these scopes")]
    ErrorResponse(Cow<'static, str>),
    /// An answer that is not to be believed.
    #[error("the DataHUB's answer is not to be believed: {0}; see what its own log says about /oauth/token")]
    Invalid(&'static str),
    /// Tokens that live, in an answer that cannot be read.
    #[error(
        "the DataHUB's answer is invalid: tokens, but not as RFC 6749 section 5.1 has it; see what answers at its /oauth/token"
    )]
    Unusable(SessionToken),
    /// An ID token that is not to be believed.
    #[error(transparent)]
    IdToken(#[from] IdTokenError),
    /// A token that cannot be a header's value.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl ExchangeError {
    /// What it says about the endpoint that was called, if one was. A code that is refused says nothing against it.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Metadata(_) | Self::Issuer | Self::Ending => None,
            Self::Endpoint(TokenEndpointError::SignIn) | Self::IdToken(IdTokenError::Nonce) => Some(Outcome::Good),
            Self::Endpoint(error) => error.outcome(),
            Self::Userinfo(error) => error.outcome(),
            Self::ErrorResponse(code) if code == CoreErrorResponseType::InvalidGrant.as_ref() => Some(Outcome::Good),
            Self::Client(_)
            | Self::ErrorResponse(_)
            | Self::Invalid(_)
            | Self::Unusable(_)
            | Self::IdToken(_)
            | Self::Token(_) => Some(Outcome::Failed),
        }
    }

    pub(super) fn from_token_endpoint(error: TokenRequestError) -> Self {
        match error {
            RequestTokenError::ServerResponse(response) => match refused_client(response.error()) {
                Some(word) => Self::Client(word),
                None => Self::ErrorResponse(error_code(response.error())),
            },
            RequestTokenError::Request(error) => Self::Endpoint(error),
            // Their text may hold the answer, and so a token.
            RequestTokenError::Parse(_, body) => token_in(&body).map_or(Self::Invalid("token answer"), Self::Unusable),
            RequestTokenError::Other(_) => Self::Invalid("token answer"),
        }
    }
}

/// Why a DataHUB is not as it should be for logins.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Its endpoints or keys are not known.
    #[error(transparent)]
    Metadata(MetadataError),
    /// A refusal of our own client.
    #[error("the DataHUB refuses this gateway's client ({0}): check client_id and client_secret")]
    Client(&'static str),
    /// Anything else than that it refuses a code that nobody has.
    #[error("whether the DataHUB knows this gateway's client could not be told")]
    Untold(#[source] ExchangeError),
}

impl CheckError {
    /// Whether it stays so until somebody changes our own configuration.
    pub fn is_ours(&self) -> bool {
        matches!(
            self,
            Self::Client(_) | Self::Metadata(MetadataError::Issuer { .. } | MetadataError::ForeignEndpoint(_))
        )
    }
}

/// Why a refresh brought no tokens.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The token is spent or revoked.
    #[error("the DataHUB no longer accepts the refresh token")]
    InvalidGrant,
    /// The DataHUB's endpoints are not known.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// No answer that decides anything.
    #[error("there was no refresh")]
    Endpoint(#[source] TokenEndpointError),
    /// A refusal of our own client.
    #[error("the DataHUB refuses this gateway's client ({0}): check client_id and client_secret")]
    Client(&'static str),
    /// Another refusal.
    #[error("the DataHUB refused the refresh: {0}")]
    ErrorResponse(Cow<'static, str>),
    /// An answer that is none.
    #[error("the DataHUB's answer to the refresh is invalid: see what answers at its /oauth/token")]
    Invalid,
    /// Tokens that live and cannot be used.
    #[error("the DataHUB's answer to the refresh brought tokens, but not as RFC 6749 section 5.1 has it")]
    Unusable(SessionToken),
}

impl RefreshError {
    /// What it says about the token endpoint, if it was called. A token that is refused says nothing against it.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Metadata(_) => None,
            Self::InvalidGrant | Self::Endpoint(TokenEndpointError::SignIn) => Some(Outcome::Good),
            Self::Endpoint(error) => error.outcome(),
            Self::Client(_) | Self::ErrorResponse(_) | Self::Invalid | Self::Unusable(_) => Some(Outcome::Failed),
        }
    }

    pub(super) fn from_token_endpoint(error: TokenRequestError) -> Self {
        match error {
            RequestTokenError::ServerResponse(response) => match (response.error(), refused_client(response.error())) {
                (CoreErrorResponseType::InvalidGrant, _) => Self::InvalidGrant,
                (_, Some(word)) => Self::Client(word),
                (other, None) => Self::ErrorResponse(error_code(other)),
            },
            RequestTokenError::Request(error) => Self::Endpoint(error),
            RequestTokenError::Parse(_, body) => token_in(&body).map_or(Self::Invalid, Self::Unusable),
            RequestTokenError::Other(_) => Self::Invalid,
        }
    }
}

/// Why a revocation is not certain.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// The DataHUB's endpoints are not known.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The metadata name no revocation endpoint.
    #[error("the DataHUB has no revocation endpoint: an administrator there can revoke the application's tokens")]
    NoEndpoint,
    /// No answer.
    #[error("the DataHUB did not answer the revocation")]
    BackChannel(#[from] BackChannelError),
    /// A page, such as one of a proxy before it.
    #[error("the DataHUB answered the revocation with a page: see that it is not in maintenance")]
    Page,
    /// Anything but 200.
    #[error(
        "the DataHUB answered the revocation with {0}: see its own log, and that the client is the one that the tokens were given to"
    )]
    Status(http::StatusCode),
}

impl RevokeError {
    /// Whether another try may do better.
    pub(in crate::datahub) fn may_pass(&self) -> bool {
        match self {
            Self::Metadata(_) => true,
            Self::BackChannel(error) => error.may_pass(),
            Self::Status(status) => !matches!(status.as_u16(), 400 | 401 | 403),
            Self::Page => true,
            Self::NoEndpoint => false,
        }
    }
}

pub(super) type TokenRequestError = RequestTokenError<TokenEndpointError, StandardErrorResponse<CoreErrorResponseType>>;

/// The word, if the DataHUB refuses our own client and not what a person has.
fn refused_client(error: &CoreErrorResponseType) -> Option<&'static str> {
    match error {
        CoreErrorResponseType::InvalidClient => Some("invalid_client"),
        CoreErrorResponseType::UnauthorizedClient => Some("unauthorized_client"),
        _ => None,
    }
}

/// A word of the standard, or `other`: what a DataHUB makes up does not enter the log.
fn error_code(error: &CoreErrorResponseType) -> Cow<'static, str> {
    match error {
        CoreErrorResponseType::Extension(_) => Cow::Borrowed("other"),
        known => Cow::Owned(known.to_string()),
    }
}

/// The token in an answer that is wrong in some other way: it lives, and is to be revoked.
fn token_in(body: &[u8]) -> Option<SessionToken> {
    let answer: Tokens = serde_json::from_slice(body).ok()?;
    let refresh = answer.refresh_token.and_then(|token| RefreshToken::try_from(token).ok()).map(SessionToken::Refresh);
    let access = answer.access_token.and_then(|token| AccessToken::try_from(token).ok()).map(SessionToken::Access);
    refresh.or(access)
}

/// The members of an answer that matter then (RFC 6749 section 5.1).
#[derive(Deserialize)]
struct Tokens {
    access_token: Option<String>,
    refresh_token: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_whatever_answer_it_comes() {
        for (body, expected) in [
            (r#"{"access_token":"a","refresh_token":"r","expires_in":"soon"}"#, Some(("refresh_token", "r"))),
            (r#"{"access_token":"a","token_type":7}"#, Some(("access_token", "a"))),
            (r#"{"access_token":"a","refresh_token":"no token"}"#, Some(("access_token", "a"))),
            (r#"{"refresh_token":"r"}"#, Some(("refresh_token", "r"))),
            (r#"{"error":"invalid_grant"}"#, None),
            (r#"{"access_token":7}"#, None),
            (r#"["access_token"]"#, None),
            ("", None),
        ] {
            let found = token_in(body.as_bytes());
            #[expect(clippy::disallowed_methods, reason = "a test's own token")]
            let found = found.as_ref().map(|token| (token.type_hint(), token.expose()));
            assert_eq!(found, expected, "{body}");
        }
    }
}
