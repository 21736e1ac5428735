//! Staying in: who is calling, and with which tokens.
//!
//! A session lives in two cookies and nowhere else. One holds everything, sealed; it is replaced at each refresh. The
//! other, the sid, names the login and stays; its bytes take part in the seal, so a session opens beside its own sid
//! only, and a refresh that arrives after a logout, or after someone else's login, brings nothing back to life.

pub mod decision;
pub mod encoding;
pub mod not_before;
pub mod open_session;
pub mod readable;
pub mod refresh;
pub mod replay;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_web::http::header::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::access_log::Event;
use crate::context::RequestContext;
use crate::datahub::oidc::{LoginResult, User};
use crate::datahub::token::{AccessToken, SessionToken, TokenSet};
use crate::datahub::{DataHub, DataHubs};
use crate::error::{ApiError, Code};
use crate::seal::cookie::{self, Found, SealedCookie};
use crate::seal::{self, KeyId, Keyring, UnsealError};
use crate::session::not_before::NotBefore;
use crate::session::open_session::OpenSession;

/// One person at one DataHUB, from login to the end. Times are whole seconds but for the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// When the login was.
    pub created_at: SystemTime,
    /// When it ends, whatever happens.
    pub expires_at: SystemTime,
    /// When it ends unless a refresh comes first.
    pub idle_expires_at: SystemTime,
    /// Whose it is.
    pub user: User,
    /// What the tokens may do; `None` if that is what the configuration asks for.
    pub scopes: Option<Vec<String>>,
    /// What opens the API.
    pub tokens: TokenSet,
    /// Whether that is a personal access token, which nobody renews or revokes but its person.
    pub is_personal: bool,
}

impl Session {
    /// When it ends if no refresh comes: at the earlier of its absolute and its idle end.
    pub fn ends_at(&self) -> SystemTime {
        self.expires_at.min(self.idle_expires_at)
    }

    /// As [`OpenSession::user_key`].
    fn user_key(&self) -> u64 {
        encoding::user_key(self.user.id.as_bytes())
    }

    /// What is to be revoked when it ends.
    pub fn revocable_token(&self) -> Option<SessionToken> {
        (!self.is_personal).then(|| self.tokens.session_token())
    }

    /// The same session with a new sid, which goes on with a personal access token until the session or that ends, at
    /// `token_ends_at`. It never is idle.
    pub fn with_personal_token(
        &self,
        access: AccessToken,
        scopes: &[String],
        token_ends_at: Option<SystemTime>,
        now: SystemTime,
    ) -> (Sid, Self) {
        let expires_at = token_ends_at.map_or(self.expires_at, |end| end.min(self.expires_at));
        // From a whole second on, as the cookie will have it, or it would end a second before its session.
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(encoding::seconds(now));
        let lifetime = expires_at.duration_since(issued).unwrap_or_default();
        let tokens = TokenSet { access, refresh: None, issued, lifetime };
        let scopes = Some(scopes_of(scopes).into_iter().map(str::to_owned).collect());
        let user = self.user.clone();
        let created_at = self.created_at;
        let session =
            Self { created_at, expires_at, idle_expires_at: expires_at, user, scopes, tokens, is_personal: true };
        (Sid::random(), session)
    }

    /// Whether the access token is so young that a refresh would bring nothing but load.
    fn is_young_at(&self, now: SystemTime, limits: &SessionLimits) -> bool {
        now < self.tokens.issued + limits.remember.min(self.tokens.lifetime / 2)
    }

    /// The same session with newer tokens.
    #[must_use]
    pub fn renewed(&self, tokens: TokenSet, limits: &SessionLimits) -> Self {
        let idle_expires_at = limits.idle_expires_at(&tokens);
        Self { idle_expires_at, tokens, ..self.clone() }
    }
}

/// How long sessions last and when their tokens are renewed.
#[derive(Debug, Clone)]
pub struct SessionLimits {
    /// From login to the end.
    pub max_age: Duration,
    /// From the last login or refresh to the end.
    pub idle_timeout: Duration,
    /// A token with less left is renewed before a call.
    pub refresh_ahead: Duration,
    /// The same before a call with a long body.
    pub refresh_ahead_body: Duration,
    /// How long a process remembers what a refresh brought.
    pub remember: Duration,
}

impl SessionLimits {
    /// Never before twice the life of the token: who comes back right after it has expired is still there.
    fn idle_expires_at(&self, tokens: &TokenSet) -> SystemTime {
        after(tokens.issued, self.idle_timeout.max(tokens.lifetime.saturating_mul(2)))
    }
}

/// What the sessions of one browser are ordered by: the greatest belongs to the one that began last. Of two logins at one time, as far
/// as a cookie tells, that at the DataHUB whose id sorts last counts as the later, whoever compares them.
fn beginning(datahub: &DataHub, created_at: SystemTime) -> (SystemTime, usize) {
    (encoding::stored(created_at), datahub.index())
}

/// The time that is `span` later, but 136 years at most: what the encoding holds, so that no sum of times overflows.
fn after(time: SystemTime, span: Duration) -> SystemTime {
    time + span.min(Duration::from_secs(u32::MAX.into()))
}

/// What stands between white space, each word once, in their order (RFC 6749 section 3.3 knows no other difference).
fn scopes_of(texts: &[String]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    texts.iter().flat_map(|text| text.split_whitespace()).filter(|scope| seen.insert(*scope)).collect()
}

/// The sessions of this deployment: opens them from a request, writes them into an answer.
#[derive(Debug)]
pub struct Sessions {
    keyring: Keyring,
    not_before: NotBefore,
    limits: SessionLimits,
    datahubs: DataHubs,
    /// By the index of their DataHUB.
    cookies: Vec<Cookies>,
    /// Whether the app is the ARCmanager's of today, which reads cookies by script.
    for_arcmanager: bool,
}

#[derive(Debug)]
struct Cookies {
    session: SealedCookie<Session>,
    sid: String,
}

impl Sessions {
    /// Sessions at `datahubs`, sealed for `origin`, that of `server.public_url`. `for_arcmanager` says that its app of today reads
    /// cookies by script.
    pub fn new(
        keyring: Keyring,
        not_before: NotBefore,
        limits: SessionLimits,
        datahubs: &DataHubs,
        origin: &str,
        for_arcmanager: bool,
    ) -> Self {
        let cookies = datahubs.iter().map(|datahub| {
            let session = SealedCookie::new(format!("__Host-Http-session-{}", datahub.id), origin);
            Cookies { session, sid: format!("__Host-Http-sid-{}", datahub.id) }
        });
        let (datahubs, cookies) = (datahubs.clone(), cookies.collect());
        Self { keyring, not_before, limits, datahubs, cookies, for_arcmanager }
    }

    /// How long they last.
    pub fn limits(&self) -> &SessionLimits {
        &self.limits
    }

    /// The request's session at `datahub`, beside its sid. `cookies` are the raw values of its Cookie fields.
    ///
    /// # Errors
    /// [`SessionError::NoCookie`] without a session cookie, [`SessionError::Unopened`] with one that does not open,
    /// [`SessionError::Ended`] if it has ended.
    pub fn open<'a>(
        &self,
        cookies: impl Iterator<Item = &'a [u8]>,
        datahub: &DataHub,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<(Sid, OpenSession), SessionError> {
        let names = self.cookies(datahub);
        let (sid, value) = names.find(cookies).map_err(|reason| {
            match reason {
                CookieError::NoCookie => return SessionError::NoCookie,
                CookieError::Duplicate => context.event(Event::DuplicateCookie, datahub.id.as_str()),
                _ => {}
            }
            SessionError::Unopened
        })?;
        let session = names.unseal(&self.keyring, &sid, value).map_err(|_| {
            let reason = self.unseal_failure(value);
            context.event_because(Event::UnsealFailed, datahub.id.as_str(), &reason.to_string());
            SessionError::Unopened
        })?;
        if self.has_ended(&session, datahub, now) {
            return Err(SessionError::Ended);
        }
        Ok((sid, session))
    }

    /// The request's session at `datahub` and the key it is sealed under, ended or not, for operators. `cookies` are the
    /// raw values of its Cookie fields.
    ///
    /// # Errors
    /// [`CookieError`], which browsers are never told.
    pub fn inspect<'a>(
        &self,
        cookies: impl Iterator<Item = &'a [u8]>,
        datahub: &DataHub,
    ) -> Result<(KeyId, OpenSession), CookieError> {
        let names = self.cookies(datahub);
        let (sid, value) = names.find(cookies)?;
        let session = names.unseal(&self.keyring, &sid, value);
        let unsealed = session.ok().and_then(|session| Some((seal::key_id(value)?, session)));
        unsealed.ok_or_else(|| self.unseal_failure(value))
    }

    /// Why a session cookie's `value` does not open.
    fn unseal_failure(&self, value: &[u8]) -> CookieError {
        match seal::key_id(value) {
            None => CookieError::Malformed,
            Some(key) if !self.keyring.ids().contains(&key) => CookieError::UnknownKey(key),
            Some(key) => CookieError::Altered(key),
        }
    }

    /// Of the request's sessions the one that began last: the ARCmanager's app and its old backend know one only. `cookies` gives
    /// the raw values of its Cookie fields.
    ///
    /// # Errors
    /// [`SessionError::Ended`] if none opens and one of them has ended: that tells people more than a cookie that does not
    /// open. [`SessionError::NoCookie`] otherwise.
    pub fn latest<'a, C: Iterator<Item = &'a [u8]>>(
        &self,
        cookies: impl Fn() -> C,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<(&Arc<DataHub>, Sid, OpenSession), SessionError> {
        self.latest_at(self.datahubs.iter(), cookies, context, now)
    }

    /// The same of those at `datahubs`.
    fn latest_at<'a, 'd, C: Iterator<Item = &'a [u8]>>(
        &self,
        datahubs: impl Iterator<Item = &'d Arc<DataHub>>,
        cookies: impl Fn() -> C,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<(&'d Arc<DataHub>, Sid, OpenSession), SessionError> {
        let mut latest: Result<(&Arc<DataHub>, _, OpenSession), _> = Err(SessionError::NoCookie);
        for datahub in datahubs {
            match (self.open(cookies(), datahub, context, now), &latest) {
                (Ok((_, session)), Ok((there, _, other)))
                    if beginning(datahub, session.created_at()) < beginning(there, other.created_at()) => {}
                (Ok((sid, session)), _) => latest = Ok((datahub, sid, session)),
                (Err(SessionError::Ended), Err(_)) => latest = Err(SessionError::Ended),
                (Err(_), _) => {}
            }
        }
        latest
    }

    /// The Set-Cookie fields for what the ARCmanager's app reads, on every answer that writes or removes a session: they describe
    /// the one that began last, once those at some DataHUBs are as in `changed` (`None`: there is none any more). Nothing for any
    /// other app. `cookies` gives the raw values of the request's Cookie fields.
    pub fn readable_cookies<'a, C: Iterator<Item = &'a [u8]>>(
        &self,
        cookies: impl Fn() -> C,
        changed: &[(&DataHub, Option<&Session>)],
        context: &RequestContext,
        now: SystemTime,
    ) -> Vec<HeaderValue> {
        if !self.for_arcmanager {
            return Vec::new();
        }
        let is_unchanged = |datahub: &&Arc<DataHub>| changed.iter().all(|(other, _)| other.index() != datahub.index());
        let unchanged = self.latest_at(self.datahubs.iter().filter(is_unchanged), cookies, context, now);
        let unchanged = unchanged.ok().map(|(datahub, _, session)| (datahub, session.decode()));
        let unchanged = unchanged.as_ref().map(|(datahub, session)| (&***datahub, session));
        let changed = changed.iter().filter_map(|(datahub, session)| Some((*datahub, (*session)?)));
        let latest = unchanged.into_iter().chain(changed).max_by_key(|(datahub, it)| beginning(datahub, it.created_at));
        readable::cookies(latest.map(|(_, session)| session))
    }

    /// Whether the app is the ARCmanager's of today.
    pub fn are_for_arcmanager(&self) -> bool {
        self.for_arcmanager
    }

    /// Whether `session` has ended, by its own times or by a cut-off.
    pub fn has_ended(&self, session: &OpenSession, datahub: &DataHub, now: SystemTime) -> bool {
        now >= session.ends_at() || self.not_before.has_ended(session, &datahub.id)
    }

    /// A new session, with a new sid: nothing of an earlier one is taken over.
    pub fn begin(&self, login: LoginResult, datahub: &DataHub) -> (Sid, Session) {
        let LoginResult { user, tokens, scopes } = login;
        let created_at = tokens.issued;
        let (granted, configured) = (scopes_of(&scopes), scopes_of(datahub.provider.scopes()));
        let is_usual = BTreeSet::from_iter(&granted) == BTreeSet::from_iter(&configured);
        let scopes = (!is_usual).then(|| granted.into_iter().map(str::to_owned).collect());
        let expires_at = after(created_at, self.limits.max_age);
        let idle_expires_at = self.limits.idle_expires_at(&tokens);
        let is_personal = false;
        (Sid::random(), Session { created_at, expires_at, idle_expires_at, user, scopes, tokens, is_personal })
    }

    /// The Set-Cookie fields of a login: session and sid. No refresh writes the sid again, so it stays until the absolute end,
    /// however early the session would end without one.
    ///
    /// # Errors
    /// [`SealError`] if the cookie would be of no use.
    pub fn login_cookies(
        &self,
        datahub: &DataHub,
        sid: &Sid,
        session: &Session,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<[HeaderValue; 2], SealError> {
        let left = session.expires_at.duration_since(now).unwrap_or_default();
        let sid_cookie = cookie::set(&self.cookies(datahub).sid, &sid.to_cookie(), left);
        Ok([self.session_cookie(datahub, sid, session, context, now)?, sid_cookie])
    }

    /// The Set-Cookie field of a refresh: the session; the sid stays as it is.
    ///
    /// # Errors
    /// [`SealError`] if the cookie would be of no use.
    pub fn session_cookie(
        &self,
        datahub: &DataHub,
        sid: &Sid,
        session: &Session,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<HeaderValue, SealError> {
        let left = session.ends_at().duration_since(now).unwrap_or_default();
        let cookies = self.cookies(datahub);
        let value = cookies.session.seal(&self.keyring, &sid.0, session);
        if value.len() > MAX_VALUE_BYTES {
            context.event(Event::SessionTooLarge, datahub.id.as_str());
            return Err(SealError::TooLarge);
        }
        // As the next request will. A login that looks like one and opens nothing would go round and round.
        if cookies.unseal(&self.keyring, sid, value.as_bytes()).is_err() {
            context.event(Event::SessionUnreadable, datahub.id.as_str());
            return Err(SealError::Unreadable);
        }
        Ok(cookie::set(cookies.session.name(), &value, left))
    }

    /// The Set-Cookie fields of a logout.
    pub fn removal_cookies(&self, datahub: &DataHub) -> [HeaderValue; 2] {
        let cookies = self.cookies(datahub);
        [cookie::remove(cookies.session.name()), cookie::remove(&cookies.sid)]
    }

    /// Whether the request carries a cookie of ours for `datahub`, good or not. `cookies` are the raw values of its Cookie
    /// fields.
    pub fn has_cookies<'a>(&self, cookies: impl Iterator<Item = &'a [u8]>, datahub: &DataHub) -> bool {
        let names = self.cookies(datahub);
        cookie::find(cookies, [names.session.name(), &names.sid]) != [Found::None; 2]
    }

    fn cookies(&self, datahub: &DataHub) -> &Cookies {
        &self.cookies[datahub.index()]
    }
}

impl Cookies {
    /// The sid and the sealed session among raw Cookie fields.
    fn find<'a>(&self, fields: impl Iterator<Item = &'a [u8]>) -> Result<(Sid, &'a [u8]), CookieError> {
        match cookie::find(fields, [self.session.name(), &self.sid]) {
            [Found::Duplicate, _] | [_, Found::Duplicate] => Err(CookieError::Duplicate),
            [Found::None, _] => Err(CookieError::NoCookie),
            [Found::One(_), Found::None] => Err(CookieError::NoSid),
            [Found::One(value), Found::One(sid)] => Ok((Sid::from_cookie(sid).ok_or(CookieError::NoSid)?, value)),
        }
    }

    fn unseal(&self, keyring: &Keyring, sid: &Sid, value: &[u8]) -> Result<OpenSession, UnsealError> {
        self.session.unseal_as(keyring, &sid.0, value, OpenSession::read)
    }
}

/// Names one login: 16 random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sid([u8; 16]);

impl Sid {
    fn random() -> Self {
        let mut bytes = [0; 16];
        seal::random(&mut bytes);
        Self(bytes)
    }

    fn from_cookie(value: &[u8]) -> Option<Self> {
        let mut bytes = [0; 16];
        let length = URL_SAFE_NO_PAD.decode_slice(value, &mut bytes).ok()?;
        (length == bytes.len()).then_some(Self(bytes))
    }

    /// Stands for the session where a number must do: the same for the same session, mostly another for another, and too
    /// little to make the sid from.
    pub fn tag(&self) -> u64 {
        let half = |at: usize| u64::from_ne_bytes(self.0[at..at + 8].try_into().expect("there are 16 bytes"));
        half(0) ^ half(8)
    }

    fn to_cookie(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// What is wrong with a request's cookies at one DataHUB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CookieError {
    /// No session cookie.
    #[error("there is no session cookie")]
    NoCookie,
    /// A session cookie, but no good sid cookie.
    #[error("there is no sid cookie beside the session cookie, or one that is not ours")]
    NoSid,
    /// Two cookies of one name, of which one is not ours.
    #[error("there are two cookies of one name")]
    Duplicate,
    /// It has not the form of a sealed text.
    #[error("the session cookie is cut, or was never ours")]
    Malformed,
    /// It names a key that is not on the ring.
    #[error("it is sealed under key {0}, which is not on the ring")]
    UnknownKey(KeyId),
    /// It names a key on the ring and does not unseal under it.
    #[error("it says it is sealed under key {0}, but it was altered, or belongs to another sid, DataHUB or public_url")]
    Altered(KeyId),
}

/// Why a request has no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No session cookie.
    #[error("no session cookie")]
    NoCookie,
    /// A session cookie that does not open, whatever the reason.
    #[error("a session cookie that does not open")]
    Unopened,
    /// It opens, but it has ended by its own times or by a cut-off.
    #[error("the session has ended")]
    Ended,
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::NoCookie | SessionError::Unopened => Code::NotLoggedIn.into(),
            SessionError::Ended => Code::SessionExpired.into(),
        }
    }
}

/// Why a session is in no cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The DataHUB's tokens are too long for what browsers keep.
    #[error("the session does not fit into a cookie: the DataHUB's tokens are too long")]
    TooLarge,
    /// It would not open again: a defect of the encoding, met before the browser has it.
    #[error("the session does not open once it is sealed; please report it")]
    Unreadable,
}

impl From<SealError> for ApiError {
    fn from(error: SealError) -> Self {
        Self::because(Code::DatahubInvalidResponse, error)
    }
}

/// Longest value of a cookie, in bytes: with name and attributes it stays below the 4,096 that browsers must take (RFC
/// 6265 section 6.1).
const MAX_VALUE_BYTES: usize = 3_800;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;
    use crate::context::Client;
    use crate::datahub::back_channel::BackChannel;
    use crate::datahub::discovery::Discovery;
    use crate::datahub::health::Health;
    use crate::datahub::oidc::{Provider, Registration};
    use crate::datahub::token_endpoint::TokenEndpoint;
    use crate::datahub::transport::{Address, tls_config};
    use crate::seal::Key;
    use crate::seal::cookie::Plaintext;
    use crate::session::open_session::tests::open;

    /// SC-04.
    #[test]
    fn a_session_that_does_not_fit_into_a_cookie_is_refused_and_the_longest_that_does_is_not() {
        let (sessions, datahub) = sessions();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let cookies = |length: usize| {
            let tokens = TokenSet {
                access: "x".repeat(length).try_into().expect("visible ASCII"),
                refresh: None,
                issued: now,
                lifetime: Duration::from_hours(2),
            };
            let user = User { id: "7".into(), username: "testuser".into(), name: "Test".into() };
            let (sid, session) = sessions.begin(LoginResult { user, tokens, scopes: Vec::new() }, &datahub);
            sessions.login_cookies(&datahub, &sid, &session, &context(), now)
        };
        assert_eq!(cookies(2_800), Err(SealError::TooLarge));
        let [session, _] = cookies(2_700).expect("2,700 bytes fit");
        assert!(session.len() < 4_096, "{}", session.len());
    }

    #[test]
    fn a_session_that_would_not_open_is_never_sent_and_the_same_as_a_login_makes_it_is() {
        let (sessions, datahub) = sessions();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let (sid, session) = sessions.begin(login_of("7", "testuser", "Test", &["a ", "", " b"], now), &datahub);
        assert_eq!(session.scopes, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert!(sessions.session_cookie(&datahub, &sid, &session, &context(), now).is_ok());
        let unreadable = Session { scopes: Some(vec!["a ".to_owned(), String::new()]), ..session };
        let refused = sessions.session_cookie(&datahub, &sid, &unreadable, &context(), now);
        assert_eq!(refused, Err(SealError::Unreadable));
    }

    #[test]
    fn scopes_are_a_set_of_words_however_they_are_spaced_and_ordered() {
        let (sessions, datahubs) = sessions_at(["a"], &["openid", "profile api"]);
        let datahub = datahubs.by_id("a").expect("the one there is");
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        for (granted, stored) in [
            (&["openid", "profile", "api"][..], None),
            (&["openid", "profile", "api", ""], None),
            (&["", "api", "", "openid", "profile"], None),
            (&["openid profile  api "], None),
            (&["\topenid\nprofile", "api\u{a0}", "api"], None),
            (&["openid", "profile"], words(&["openid", "profile"])),
            (&["profile", "api", "openid", "x", "api"], words(&["profile", "api", "openid", "x"])),
            (&[" "], words(&[])),
            (&[], words(&[])),
        ] {
            let (_, session) = sessions.begin(login_of("7", "u", "U", granted, SystemTime::UNIX_EPOCH), datahub);
            assert_eq!(session.scopes, stored, "{granted:?}");
            let opened = open(&session.encode()).map(|open| open.decode().scopes);
            assert_eq!(opened, Some(stored), "{granted:?}");
        }
    }

    proptest! {
        /// Whatever a DataHUB says of a person and their tokens, and whatever the times, clocks that were set back included.
        #[test]
        fn every_session_that_a_login_or_a_refresh_makes_opens(
            (id, username, name) in (any_text(), any_text(), any_text()),
            is_prefix: bool,
            scopes in proptest::collection::vec(any_text(), 0..4),
            tokens in [any_tokens(), any_tokens()],
            (max_age, idle_timeout) in (any::<Duration>(), any::<Duration>()),
        ) {
            let (mut sessions, datahub) = sessions();
            (sessions.limits.max_age, sessions.limits.idle_timeout) = (max_age, idle_timeout);
            let username = if is_prefix { name[..name.floor_char_boundary(64)].to_owned() } else { username };
            let [tokens, newer] = tokens;
            let user = User { id, username, name };
            let words: Vec<_> = scopes.iter().flat_map(|text| text.split_whitespace()).map(str::to_owned).collect();
            let (sid, begun) = sessions.begin(LoginResult { user: user.clone(), tokens, scopes }, &datahub);
            for session in [begun.clone(), begun.renewed(newer, sessions.limits())] {
                let opened = open(&session.encode()).map(|open| open.decode());
                let opened = opened.expect("what was sealed opens");
                prop_assert_eq!(opened.encode(), session.encode(), "one encoding for one session");
                prop_assert_eq!((&opened.user.id, &opened.user.username), (&user.id, &user.username));
                prop_assert!(opened.user.name == user.username || user.name.starts_with(&opened.user.name));
                prop_assert_eq!(&opened.tokens.access, &session.tokens.access);
                prop_assert_eq!(&opened.tokens.refresh, &session.tokens.refresh);
                let told: BTreeSet<_> = opened.scopes.iter().flatten().collect();
                prop_assert_eq!(told, words.iter().collect::<BTreeSet<_>>());
                let whole = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
                prop_assert_eq!(whole(opened.created_at), whole(session.created_at));
                prop_assert_eq!(whole(opened.expires_at), whole(session.expires_at));
                let earliest = session.created_at.max(session.tokens.issued);
                prop_assert_eq!(whole(opened.tokens.issued), whole(earliest));
                prop_assert!(whole(opened.idle_expires_at) == whole(session.idle_expires_at.max(earliest)));
                let now = session.created_at;
                match sessions.session_cookie(&datahub, &sid, &session, &context(), now) {
                    Ok(_) | Err(SealError::TooLarge) => {}
                    Err(error) => prop_assert!(false, "{}", error),
                }
            }
        }
    }

    /// Texts of every kind of character, some of them about as long as a name may be.
    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof!["[0-9]{0,21}", "\\PC{0,70}", "[x ]{60,68}", any::<String>()]
    }

    fn any_tokens() -> impl Strategy<Value = TokenSet> {
        let token = || prop_oneof!["[!-~]{1,70}", "[0-9a-f]{1,70}"];
        let lifetime = prop_oneof![(0..90_000_u64).prop_map(Duration::from_secs), any::<Duration>()];
        // A clock between 1970 and 2106.
        (token(), proptest::option::of(token()), any::<u32>(), 0..1_000_000_000_u32, lifetime).prop_map(
            |(access, refresh, seconds, nanos, lifetime)| TokenSet {
                access: access.try_into().expect("visible ASCII"),
                refresh: refresh.map(|token| token.try_into().expect("visible ASCII")),
                issued: SystemTime::UNIX_EPOCH + Duration::new(seconds.into(), nanos),
                lifetime,
            },
        )
    }

    fn login_of(id: &str, username: &str, name: &str, scopes: &[&str], now: SystemTime) -> LoginResult {
        let tokens = TokenSet {
            access: "a".to_owned().try_into().expect("visible ASCII"),
            refresh: None,
            issued: now,
            lifetime: Duration::from_hours(2),
        };
        let user = User { id: id.into(), username: username.into(), name: name.into() };
        LoginResult { user, tokens, scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect() }
    }

    #[test]
    fn a_token_is_stale_ahead_of_its_end_but_never_in_the_first_three_quarters_of_its_life() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let session = |lifetime, refresh: Option<&str>| {
            let session = Session {
                created_at: issued,
                expires_at: issued + Duration::from_hours(168),
                idle_expires_at: issued + Duration::from_hours(24),
                user: User { id: "7".into(), username: String::new(), name: String::new() },
                scopes: None,
                tokens: TokenSet {
                    access: "a".to_owned().try_into().expect("visible ASCII"),
                    refresh: refresh.map(|token| token.to_owned().try_into().expect("visible ASCII")),
                    issued,
                    lifetime: Duration::from_secs(lifetime),
                },
                is_personal: false,
            };
            open(&session.encode()).expect("the encoding of a session")
        };
        for (case, session, ahead, fresh_until) in [
            ("two hours, a minute ahead", session(7_200, Some("r")), 60, 7_140),
            ("two hours, a quarter of an hour ahead", session(7_200, Some("r")), 900, 6_300),
            ("two minutes, a minute ahead", session(120, Some("r")), 60, 90),
            ("a token that cannot be renewed", session(7_200, None), 60, 7_200),
        ] {
            let stale_after =
                |seconds| session.is_stale_at(issued + Duration::from_secs(seconds), Duration::from_secs(ahead));
            assert!(!stale_after(fresh_until - 1) && stale_after(fresh_until), "{case}");
        }
    }

    /// SC-05, SC-06: the ends are sealed inside, whatever the browser keeps; Max-Age is what is left until the first.
    #[test]
    fn a_session_ends_at_its_idle_or_absolute_end_and_the_browser_is_told_so() {
        let (sessions, datahub) = sessions();
        let login = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let tokens = |issued| TokenSet {
            access: "a".to_owned().try_into().expect("visible ASCII"),
            refresh: None,
            issued,
            lifetime: hours(2),
        };
        let user = User { id: "7".into(), username: "testuser".into(), name: "Test".into() };
        let (sid, session) = sessions.begin(LoginResult { user, tokens: tokens(login), scopes: Vec::new() }, &datahub);
        let [cookie, sid_cookie] =
            sessions.login_cookies(&datahub, &sid, &session, &context(), login).expect("it fits");
        assert!(cookie.to_str().expect("ASCII").ends_with("Max-Age=86400"), "24 hours until it is idle");
        // The next session cookie, a refresh later, needs it still.
        assert!(sid_cookie.to_str().expect("ASCII").ends_with("Max-Age=604800"), "a week until the absolute end");
        let open = |cookie: &HeaderValue, now| {
            let pairs = [cookie, &sid_cookie].map(|cookie| cookie.to_str().expect("ASCII").split(';').next());
            let field = pairs.map(|pair| pair.expect("a pair")).join("; ");
            let opened = sessions.open([field.as_bytes()].into_iter(), &datahub, &context(), now);
            opened.map(|(_, session)| session.created_at())
        };
        let second = Duration::from_secs(1);
        assert_eq!(open(&cookie, login + hours(24) - second), Ok(login));
        assert_eq!(open(&cookie, login + hours(24)), Err(SessionError::Ended), "idle");
        for skew in [login - 30 * second, login + 30 * second] {
            assert_eq!(open(&cookie, skew), Ok(login), "another process's clock");
        }

        let late = login + hours(160);
        let renewed = session.renewed(tokens(late), sessions.limits());
        let cookie = sessions.session_cookie(&datahub, &sid, &renewed, &context(), late).expect("it fits");
        assert!(cookie.to_str().expect("ASCII").ends_with("Max-Age=28800"), "8 hours until the absolute end");
        assert_eq!(open(&cookie, login + hours(168) - second), Ok(login));
        assert_eq!(open(&cookie, login + hours(168)), Err(SessionError::Ended), "no refresh moves the absolute end");
    }

    fn context() -> std::rc::Rc<RequestContext> {
        let client = Client { address: None, is_local: false };
        RequestContext::new(actix_web::http::Method::GET, client, crate::metrics::worker::WorkerMetrics::new([]))
    }

    #[test]
    fn each_of_many_datahubs_has_cookies_of_its_own() {
        let ids: Vec<String> = (0..50).map(|number| format!("hub-{}", number * 7 % 50)).collect();
        let (sessions, datahubs) = sessions_at(ids.iter().map(String::as_str), &[]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let fields: Vec<_> = datahubs
            .iter()
            .map(|datahub| {
                let tokens = TokenSet {
                    access: datahub.id.to_string().try_into().expect("visible ASCII"),
                    refresh: None,
                    issued: now,
                    lifetime: Duration::from_hours(2),
                };
                let user = User { id: "7".into(), username: "testuser".into(), name: "Test".into() };
                let (sid, session) = sessions.begin(LoginResult { user, tokens, scopes: Vec::new() }, datahub);
                let cookies = sessions.login_cookies(datahub, &sid, &session, &context(), now).expect("it fits");
                cookies.map(|cookie| cookie.to_str().expect("ASCII").split(';').next().expect("a pair").to_owned())
            })
            .collect();
        let all: Vec<_> = fields.iter().flatten().map(String::as_bytes).collect();
        for (datahub, own) in datahubs.iter().zip(&fields) {
            assert!(datahubs.by_id(datahub.id.as_str()).is_some_and(|found| Arc::ptr_eq(found, datahub)));
            let (_, session) = sessions.open(all.iter().copied(), datahub, &context(), now).expect("its own is there");
            assert_eq!(session.decode().tokens.access.bearer(), format!("Bearer {}", datahub.id));
            let others = all.iter().copied().filter(|pair| own.iter().all(|own| own.as_bytes() != *pair));
            assert_eq!(sessions.open(others.clone(), datahub, &context(), now).err(), Some(SessionError::NoCookie));
            assert!(!sessions.has_cookies(others, datahub) && sessions.has_cookies(all.iter().copied(), datahub));
        }
        for id in ["", "hub", "hub-", "hub-50", "hub-0 ", "HUB-0", "zzz"] {
            assert!(datahubs.by_id(id).is_none(), "{id}");
        }
    }

    #[test]
    fn of_two_logins_within_one_second_the_bridge_and_the_app_take_the_later_one() {
        let (mut sessions, datahubs) = sessions_at(["a", "b"], &[]);
        sessions.for_arcmanager = true;
        let [a, b] = ["a", "b"].map(|id| &**datahubs.by_id(id).expect("it is there"));
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        let now = start + Duration::from_secs(2);
        let begin = |datahub: &DataHub, millis| {
            let login = login_of("7", datahub.id.as_str(), "", &[], start + Duration::from_millis(millis));
            let (sid, session) = sessions.begin(login, datahub);
            let cookies = sessions.login_cookies(datahub, &sid, &session, &context(), now).expect("it fits");
            let pairs = cookies.map(|it| it.to_str().expect("ASCII").split(';').next().expect("a pair").to_owned());
            (session, pairs.join("; "))
        };
        for (at_a, at_b, last) in
            [(0, 999, "b"), (999, 0, "a"), (998, 990, "a"), (1_000, 999, "a"), (7, 7, "b"), (3, 2, "a")]
        {
            let [(at_a, cookies_a), (at_b, cookies_b)] = [begin(a, at_a), begin(b, at_b)];
            let field = format!("{cookies_a}; {cookies_b}");
            let cookies = || std::iter::once(field.as_bytes());
            let (latest, ..) = sessions.latest(cookies, &context(), now).expect("both open");
            assert_eq!(latest.id.as_str(), last);
            let (in_a, in_b) = ((a, Some(&at_a)), (b, Some(&at_b)));
            for changed in [&[][..], &[in_a], &[in_b], &[in_a, in_b], &[in_b, in_a]] {
                let readable = sessions.readable_cookies(cookies, changed, &context(), now);
                let username = format!("username={last};");
                assert!(readable.iter().any(|it| it.as_bytes().starts_with(username.as_bytes())), "{readable:?}");
            }
        }
    }

    fn sessions() -> (Sessions, Arc<DataHub>) {
        let (sessions, datahubs) = sessions_at(["a"], &[]);
        (sessions, Arc::clone(datahubs.by_id("a").expect("the one there is")))
    }

    fn sessions_at<'a>(ids: impl IntoIterator<Item = &'a str>, scopes: &[&str]) -> (Sessions, DataHubs) {
        let url = Url::parse("https://git.example.org").expect("a URL");
        let address = Address::new(url.clone(), None, tls_config(None).expect("roots")).expect("an address");
        let datahub = |id: &str| {
            let back_channel = BackChannel::new(vec![address.clone()], Duration::from_secs(1), Duration::from_secs(1));
            let health = Arc::new(Health::new(id.parse().expect("an id")));
            let issuer = openidconnect::IssuerUrl::from_url(url.clone());
            let registration = Registration {
                client_id: openidconnect::ClientId::new("id".into()),
                client_secret: arc_swap::ArcSwap::from_pointee(openidconnect::ClientSecret::new("secret".into())),
                redirect_uri: openidconnect::RedirectUrl::from_url(url.clone()),
                scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
            };
            let provider = Provider::new(
                registration,
                Discovery::new(issuer, back_channel.clone(), Arc::clone(&health)),
                back_channel,
                TokenEndpoint::new(vec![address.clone()], Duration::from_secs(1), Duration::from_secs(1)),
                health,
            );
            let (name, description, aliases) = (String::new(), String::new(), Vec::new());
            DataHub::new(id.parse().expect("an id"), name, description, aliases, address.clone(), provider, None)
        };
        let keyring = Keyring::new(vec![Key::generate().parse().expect("a generated key")]).expect("one key");
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let limits = SessionLimits {
            max_age: hours(168),
            idle_timeout: hours(24),
            refresh_ahead: Duration::from_mins(1),
            refresh_ahead_body: Duration::from_mins(15),
            remember: Duration::from_mins(10),
        };
        let datahubs = DataHubs::new(ids.into_iter().map(datahub).collect());
        let sessions =
            Sessions::new(keyring, NotBefore::default(), limits, &datahubs, "https://app.example.org", false);
        (sessions, datahubs)
    }
}
