//! A DataHUB's tokens: redacted in every output, wiped when dropped.

use std::fmt;
use std::time::{Duration, SystemTime};

use actix_web::http::header::HeaderValue;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// The access and refresh token that GitLab gave out together, and for how long.
///
/// Expiry follows our own clock from the moment of the request: GitLab's `created_at` is another clock's time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSet {
    /// Opens the API.
    pub access: AccessToken,
    /// Buys the next set, once; a personal access token has none.
    pub refresh: Option<RefreshToken>,
    /// When they were asked for: they are no older.
    pub issued: SystemTime,
    /// How long the access token lives.
    pub lifetime: Duration,
}

impl TokenSet {
    /// When the access token ends.
    pub fn expires_at(&self) -> SystemTime {
        self.issued + self.lifetime
    }

    /// The token that these are known by, and whose revocation ends them all.
    pub fn session_token(&self) -> SessionToken {
        match &self.refresh {
            Some(token) => SessionToken::Refresh(token.clone()),
            None => SessionToken::Access(self.access.clone()),
        }
    }
}

/// Lifetime of an access token whose answer has no `expires_in` (GitLab `config/initializers/doorkeeper.rb`).
pub(super) const DEFAULT_LIFETIME: Duration = Duration::from_hours(2);

/// Opens a DataHUB's API for one person.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(Zeroizing<String>);

impl AccessToken {
    /// The value of `Authorization` (RFC 6750 section 2.1), marked sensitive.
    pub fn bearer(&self) -> HeaderValue {
        let text = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        let mut value = HeaderValue::from_str(&text).expect("`TryFrom` lets only visible ASCII in");
        value.set_sensitive(true);
        value
    }

    /// The token itself, for the seal and for GitLab.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AccessToken {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        checked(text).map(Self)
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken([redacted])")
    }
}

/// Buys a new [`TokenSet`], once: GitLab revokes the old pair the moment it gives out the new one.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken(Zeroizing<String>);

impl RefreshToken {
    /// The token itself, for the seal and for GitLab.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RefreshToken {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        checked(text).map(Self)
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken([redacted])")
    }
}

/// The token that a session is known by: the refresh token or, where there is none, the access token. GitLab keeps both in
/// one row, so that who revokes the refresh token revokes the access token, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionToken {
    /// A refresh token.
    Refresh(RefreshToken),
    /// An access token without one.
    Access(AccessToken),
}

impl SessionToken {
    /// The token itself, for the seal and for GitLab.
    pub fn expose(&self) -> &str {
        self.text()
    }

    fn text(&self) -> &str {
        match self {
            Self::Refresh(token) => &token.0,
            Self::Access(token) => &token.0,
        }
    }

    /// What RFC 7009 section 2.1 calls its kind.
    pub(super) fn type_hint(&self) -> &'static str {
        match self {
            Self::Refresh(_) => "refresh_token",
            Self::Access(_) => "access_token",
        }
    }

    /// Names the token of a DataHUB without telling it: what tables are keyed by.
    pub fn digest_at(&self, datahub: &str) -> [u8; 32] {
        Sha256::new().chain_update(datahub).chain_update([0]).chain_update(self.text()).finalize().into()
    }

    /// [`filter_hash`] of it.
    pub fn filter_hash(&self) -> u64 {
        filter_hash(self.text().as_bytes())
    }

    /// The first 10 hex digits of the SHA-256: what a log may hold.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.text())[..5].iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }
}

/// A number that tells most tokens apart at the cost of a multiplication. It depends on the last eight bytes of a token
/// alone, and is 0 for a shorter one: tokens are random, and those that begin alike (JWTs) end differently.
pub fn filter_hash(token: &[u8]) -> u64 {
    let end = token.last_chunk().map_or(0, |end| u64::from_le_bytes(*end));
    // Fibonacci hashing (Knuth, The Art of Computer Programming, section 6.4): the upper bits depend on all of `end`.
    end.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// A text that cannot be a token. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is empty or holds something other than visible ASCII")]
pub struct TokenError;

/// RFC 6749 appendix A.12: tokens are visible ASCII; more could break out of a header.
fn checked(text: String) -> Result<Zeroizing<String>, TokenError> {
    let text = Zeroizing::new(text);
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::tests::is_left;

    #[test]
    fn a_token_that_could_break_out_of_a_header_is_refused() {
        for text in ["", "a b", "a\r\nX: y", "tök", "a\0"] {
            assert_eq!(AccessToken::try_from(text.to_owned()), Err(TokenError), "{text:?}");
            assert_eq!(RefreshToken::try_from(text.to_owned()), Err(TokenError), "{text:?}");
        }
        let token = AccessToken::try_from("glpat-A_b.c~1+/=".to_owned()).expect("every character a token may have");
        assert_eq!(token.bearer(), "Bearer glpat-A_b.c~1+/=");
    }

    #[test]
    fn no_debug_output_shows_a_token() {
        let access = AccessToken::try_from("canary".to_owned()).expect("visible ASCII");
        let refresh = RefreshToken::try_from("canary".to_owned()).expect("visible ASCII");
        let shown = format!("{access:?} {refresh:?} {:?}", access.bearer());
        assert!(!shown.contains("canary"), "{shown}");
    }

    /// CR-11.
    #[test]
    fn tokens_are_wiped_when_dropped() {
        let text = || "canary-".repeat(20);
        assert!(is_left(text(), String::as_bytes, drop), "what is not wiped can be read, so that this test sees it");
        let access = AccessToken::try_from(text()).expect("visible ASCII");
        assert!(!is_left(access, |it| it.0.as_bytes(), drop), "an access token");
        let refresh = RefreshToken::try_from(text()).expect("visible ASCII");
        assert!(!is_left(refresh, |it| it.0.as_bytes(), drop), "a refresh token");
    }
}
