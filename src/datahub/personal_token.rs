//! What a DataHUB says of a personal access token: whose it is, what it may do, until when.
//!
//! The token is somebody's text until the DataHUB has said so itself, in two answers of its API.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::datahub::DataHub;
use crate::datahub::back_channel::BackChannelError;
use crate::datahub::token::AccessToken;
use crate::error::{ApiError, Code};

/// A token that a session may go on with.
#[derive(Debug)]
pub struct PersonalToken {
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it ends; a token may have no end of its own.
    pub expires_at: Option<SystemTime>,
}

impl DataHub {
    /// Asks whether `token` is an active one of the user with `user_id` that opens the API, and no more than that.
    ///
    /// # Errors
    /// [`PersonalTokenError`]; none of them says anything about the session.
    pub async fn inspect_personal_token(
        &self,
        token: &AccessToken,
        user_id: &str,
        now: SystemTime,
    ) -> Result<PersonalToken, PersonalTokenError> {
        let User { id } = self.read_as(token, "/api/v4/user").await?;
        if id.to_string() != user_id {
            return Err(PersonalTokenError::Refused("it is another person's"));
        }
        let TokenInfo { active, revoked, scopes, expires_at } =
            self.read_as(token, "/api/v4/personal_access_tokens/self").await?;
        let has = |name: &str| scopes.iter().any(|scope| scope == name);
        if !active || revoked {
            return Err(PersonalTokenError::Refused("it is not active"));
        }
        if MIGHTY_SCOPES.into_iter().any(has) {
            return Err(PersonalTokenError::Refused("it has the scope sudo or admin_mode"));
        }
        if !API_SCOPES.into_iter().any(has) {
            return Err(PersonalTokenError::Refused("it has neither the scope api nor read_api"));
        }
        let expires_at = expires_at.as_deref().map(midnight).transpose()?;
        if expires_at.is_some_and(|end| end <= now) {
            return Err(PersonalTokenError::Refused("it has expired"));
        }
        Ok(PersonalToken { scopes, expires_at })
    }

    /// What the API answers at `path` to whoever has `token`.
    async fn read_as<T: DeserializeOwned>(&self, token: &AccessToken, path: &str) -> Result<T, PersonalTokenError> {
        let url = format!("{}{path}", self.address.as_str().trim_end_matches('/'));
        let request = http::Request::get(url)
            .header(http::header::AUTHORIZATION, token.bearer().as_bytes())
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|_| PersonalTokenError::Invalid)?;
        let response = self.provider.read_api(request).await?;
        match response.status() {
            http::StatusCode::OK => serde_json::from_slice(response.body()).map_err(|_| PersonalTokenError::Invalid),
            // It may be unknown, revoked, of too little scope, a blocked person's, or no personal one.
            status if status.is_client_error() => Err(PersonalTokenError::Refused("the DataHUB does not take it")),
            _ => Err(PersonalTokenError::Invalid),
        }
    }
}

/// The beginning of a day in UTC: GitLab's tokens end then.
fn midnight(date: &str) -> Result<SystemTime, PersonalTokenError> {
    humantime::parse_rfc3339(&format!("{date}T00:00:00Z")).map_err(|_| PersonalTokenError::Invalid)
}

/// GitLab, "Users API": for the one who asks.
#[derive(Deserialize)]
struct User {
    id: u64,
}

/// GitLab, "Personal access tokens API": of the token that asks.
#[derive(Deserialize)]
struct TokenInfo {
    active: bool,
    revoked: bool,
    scopes: Vec<String>,
    expires_at: Option<String>,
}

/// Why no session goes on with a token. Names no token.
#[derive(Debug, thiserror::Error)]
pub enum PersonalTokenError {
    /// It is not one that a session may go on with.
    #[error("the personal access token is refused: {0}")]
    Refused(&'static str),
    /// The DataHUB cannot be asked.
    #[error("the DataHUB cannot be asked about a personal access token")]
    Unanswered(#[from] BackChannelError),
    /// An answer that is not GitLab's.
    #[error("the DataHUB's answer about a personal access token cannot be read")]
    Invalid,
}

impl From<PersonalTokenError> for ApiError {
    fn from(error: PersonalTokenError) -> Self {
        let code = match &error {
            PersonalTokenError::Refused(_) => Code::PatRefused,
            PersonalTokenError::Unanswered(cause) if cause.may_pass() => {
                return Self::because(Code::DatahubUnreachable, error).retry_after(RETRY_AFTER);
            }
            PersonalTokenError::Unanswered(_) | PersonalTokenError::Invalid => Code::DatahubInvalidResponse,
        };
        Self::because(code, error)
    }
}

/// When to ask a DataHUB again that did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// What makes a token more than its person is in the app: acting as others, or as an administrator.
const MIGHTY_SCOPES: [&str; 2] = ["sudo", "admin_mode"];
/// One of these opens the API.
const API_SCOPES: [&str; 2] = ["api", "read_api"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_when_its_day_begins() {
        let seconds = |date| midnight(date).ok().map(humantime::format_rfc3339).map(|time| time.to_string());
        assert_eq!(seconds("2026-11-27").as_deref(), Some("2026-11-27T00:00:00Z"));
        for date in ["", "2026", "2026-13-01", "2026-02-30", "27.11.2026", "2026-11-27T10:00:00Z", "never"] {
            assert_eq!(seconds(date), None, "{date}");
        }
    }
}
