//! How a DataHUB behaves: as GitLab does, until a test says otherwise.

use std::time::Duration;

use crate::hex;

/// What [`set`](crate::DataHub::set) changes while the DataHUB runs.
///
/// Each endpoint has its own [`Manner`]. The default is a healthy GitLab.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// `/.well-known/openid-configuration`.
    pub discovery: Manner,
    /// `/oauth/discovery/keys`.
    pub keys: Manner,
    /// `/oauth/authorize`.
    pub authorize: Manner,
    /// `/oauth/token`.
    pub token: Manner,
    /// `/oauth/revoke`.
    pub revoke: Manner,
    /// `/oauth/userinfo` and `/oauth/token/info`.
    pub userinfo: Manner,
    /// Everything else, `/api/v4` above all.
    pub api: Manner,
    /// Paths with a manner of their own, by what they begin with. None by default.
    pub by_path: Vec<(&'static str, Manner)>,
    /// How long access tokens of new logins live. A refreshed token inherits the lifetime of its predecessor.
    pub token_lifetime: Duration,
    /// When a refresh revokes the old pair of tokens.
    pub refresh: RefreshMode,
    /// What goes wrong with refreshes at random. Nothing by default.
    pub refresh_trouble: RefreshTrouble,
    /// Usernames of people whose tokens it fails to refresh: always 500, without effect.
    pub poisoned_users: Vec<String>,
    /// A login gets the tokens of an earlier one by the same person with the same scopes, while they are good: Doorkeeper's
    /// option of this name.
    pub reuse_access_token: bool,
    /// Leaves `expires_in` out of token answers, as GitLab 14.10 and 15.0 did.
    pub leave_out_expires_in: bool,
    /// Makes tokens without a refresh token, as Doorkeeper does without `use_refresh_token`.
    pub leave_out_refresh_token: bool,
    /// The `scope` of token answers, verbatim, such as `openid  profile api `. By default, what was asked for.
    pub token_scope: Option<String>,
    /// The personal access tokens that it knows. None by default.
    pub personal_tokens: Vec<PersonalToken>,
    /// How many groups `/oauth/userinfo` names, at about 80 bytes each.
    pub userinfo_groups: usize,
    /// The key that signs ID tokens, and the only one published.
    pub signing_key: SigningKey,
    /// Names the issuer in answers of `/oauth/authorize`, and announces it (RFC 9207), as Doorkeeper 6 will.
    pub announces_iss: bool,
    /// How long everything takes, at random.
    pub jitter: Jitter,
    /// Added to every answer of the API, such as `("Clear-Site-Data", "\"*\"")`.
    pub extra_headers: Vec<(String, String)>,
    /// Every answer of the API says who asked for what, in `X-Gitlab-Caller`: such as `testuser GET /api/v4/user?n=7`.
    pub names_caller: bool,
}

/// A personal access token, as `/api/v4/personal_access_tokens/self` shows it. It opens the API as long as it is in the list.
#[derive(Clone, Debug)]
pub struct PersonalToken {
    /// The token itself.
    pub token: String,
    /// The number of whose it is.
    pub user: u64,
    /// Such as `api`.
    pub scopes: Vec<&'static str>,
    /// What it says of itself.
    pub is_active: bool,
    /// What it says of itself.
    pub is_revoked: bool,
    /// The day it ends, such as `2099-01-01`.
    pub expires_at: Option<&'static str>,
}

impl Default for Behaviour {
    fn default() -> Self {
        let normal = Manner::default;
        Self {
            discovery: normal(),
            keys: normal(),
            authorize: normal(),
            token: normal(),
            revoke: normal(),
            userinfo: normal(),
            api: normal(),
            by_path: Vec::new(),
            token_lifetime: Duration::from_secs(7200),
            refresh: RefreshMode::RevokeAtOnce,
            refresh_trouble: RefreshTrouble::default(),
            poisoned_users: Vec::new(),
            reuse_access_token: false,
            leave_out_expires_in: false,
            leave_out_refresh_token: false,
            token_scope: None,
            personal_tokens: Vec::new(),
            userinfo_groups: 1,
            signing_key: SigningKey::First,
            announces_iss: false,
            jitter: Jitter::default(),
            extra_headers: Vec::new(),
            names_caller: false,
        }
    }
}

impl Behaviour {
    pub(crate) fn manner(&self, path: &str) -> &Manner {
        if let Some((_, manner)) = self.by_path.iter().find(|(begin, _)| path.starts_with(begin)) {
            return manner;
        }
        match path {
            "/.well-known/openid-configuration" => &self.discovery,
            "/oauth/discovery/keys" => &self.keys,
            "/oauth/authorize" => &self.authorize,
            "/oauth/token" => &self.token,
            "/oauth/revoke" => &self.revoke,
            "/oauth/userinfo" | "/oauth/token/info" => &self.userinfo,
            _ => &self.api,
        }
    }
}

/// How one endpoint answers, and how long it takes.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// Time between the request's head and the work on it.
    pub delay: Duration,
    /// What comes back.
    pub answer: Answer,
    /// Time between the work, which is done and stays done, and its answer.
    pub answer_delay: Duration,
    /// How the answer's end is told. Not of [`Answer::Raw`].
    pub framing: Framing,
    /// Whether a `103 Early Hints` comes before the answer (RFC 8297). Not before [`Answer::Raw`].
    pub early_hints: bool,
}

/// How the end of an answer's body is told (RFC 9112, section 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// By its length; in chunks where it is not known.
    #[default]
    ContentLength,
    /// By nothing: the body ends with the connection.
    UntilClose,
    /// In chunks.
    Chunked,
}

/// What an endpoint answers. All but [`Answer::Hang`] read the request's body to its end first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// What GitLab would.
    #[default]
    Normal,
    /// This status with a short JSON body; 429 with GitLab's `Retry later` and `Retry-After: 60`.
    Status(u16),
    /// 429 with `Retry later` and this `Retry-After`: seconds or a date (RFC 9110, section 10.2.3).
    Throttled {
        /// Verbatim.
        retry_after: String,
    },
    /// An error of the token endpoint (RFC 6749, section 5.2), such as 401 `invalid_client`.
    OauthError {
        /// The status of the answer.
        status: u16,
        /// Its `error`.
        error: String,
    },
    /// This status with an HTML page, as during an upgrade.
    Html(u16),
    /// 302 to this address.
    Redirect(String),
    /// These bytes, verbatim and without a head of ours; then the connection closes.
    Raw(Vec<u8>),
    /// Bytes, verbatim and without a head of ours, and then others again and again until the peer closes.
    Endless {
        /// What comes first.
        begin: Vec<u8>,
        /// What comes for ever.
        again: Vec<u8>,
    },
    /// Nothing, until the peer closes.
    Hang,
    /// Nothing is done, nothing is answered; the connection closes.
    CloseWithoutAnswer,
    /// Everything is done, the answer is lost; the connection closes.
    LoseAnswer,
}

/// Random time before the work on a request, and again between the work and its answer. None by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jitter {
    /// Up to so long, evenly.
    pub usual: Duration,
    /// Up to so long, evenly, once in `one_in` times.
    pub rare: Duration,
    /// How seldom `rare` is; 0 is never.
    pub one_in: u64,
}

impl Jitter {
    pub(crate) async fn pass(self) {
        if self != Self::default() {
            tokio::time::sleep(self.next()).await;
        }
    }

    /// A time such as this may be.
    pub fn next(self) -> Duration {
        let most = if self.one_in > 0 && hex::dice(self.one_in) == 0 { self.rare } else { self.usual };
        up_to(most)
    }
}

/// What goes wrong with refreshes at random.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefreshTrouble {
    /// Each takes up to so long, evenly: some of it before its work, the rest between the work and its answer.
    pub max: Duration,
    /// One in so many is answered by 429 with `Retry-After: 1`, at once and without effect; 0 is none.
    pub one_in: u64,
}

impl RefreshTrouble {
    pub(crate) fn throttles(self) -> bool {
        self.one_in > 0 && hex::dice(self.one_in) == 0
    }

    /// Times before and after the work.
    pub(crate) fn next(self) -> (Duration, Duration) {
        let whole = up_to(self.max);
        let before = up_to(whole);
        (before, whole.saturating_sub(before))
    }
}

/// Evenly, at random.
fn up_to(max: Duration) -> Duration {
    Duration::from_micros(hex::dice(u64::try_from(max.as_micros()).unwrap_or(u64::MAX).max(1)))
}

/// When a refresh revokes the pair of tokens it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshMode {
    /// GitLab: in the same transaction. The old access token dies too, and the loser of a race gets `invalid_grant`.
    RevokeAtOnce,
    /// Doorkeeper with a `previous_refresh_token` column: at the first use of the new access token.
    RevokeOnUse,
}

/// One of the two key pairs in `keys/`. They are public and fixed, because making one takes seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKey {
    /// `keys/first.pem`.
    First,
    /// `keys/second.pem`, after a rotation.
    Second,
}
