//! Logins that a DataHUB has not answered yet: in a cookie of their own, through actix-session.
//!
//! A browser may have many under way, one in each tab; each is found by its state. The cookie is sealed like a session.
//! actix-session signs what our store gives it once more, with a key that takes no part in anything: it is a constant, so
//! that a login may end at another process than it began, in the middle of a rotation. What protects the cookie is the
//! seal.
//!
//! The cookie outlives the logins in it by an hour, so that who comes too late is told so. It also notes where a login has
//! ended well: a callback of a tab that comes after that finds a session, which the callback itself cannot see, since Strict
//! cookies do not come with it.

mod login_cookie;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_session::config::{CookieContentSecurity, PersistentSession};
use actix_session::storage::{LoadError, SaveError, SessionKey, SessionStore, UpdateError};
use actix_session::{Session, SessionMiddleware, SessionStatus};
use actix_web::body::MessageBody;
use actix_web::cookie::{Key, SameSite};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openidconnect::{Nonce, PkceCodeVerifier};
use serde_json::json;

use crate::auth::pending::login_cookie::{Login, LoginCookie};
use crate::auth::return_to::ReturnTo;
use crate::datahub::DataHubId;
use crate::datahub::oidc::AuthorizationRequest;
use crate::datahub::token::SessionToken;
use crate::seal::cookie::{self, Found, Plaintext, SealedCookie};
use crate::seal::{self, KeyId, Keyring};

/// Where pending logins are kept.
#[derive(Debug, Clone)]
pub struct PendingLogins(Arc<Store>);

#[derive(Debug)]
struct Store {
    keyring: Keyring,
    cookie: SealedCookie<LoginCookie>,
    login_timeout: Duration,
}

impl PendingLogins {
    /// Sealed for `origin`, that of `server.public_url`. A person may take `login_timeout` at the DataHUB.
    pub fn new(keyring: Keyring, origin: &str, login_timeout: Duration) -> Self {
        let cookie = SealedCookie::new(COOKIE_NAME.to_owned(), origin);
        Self(Arc::new(Store { keyring, cookie, login_timeout }))
    }

    /// What reads them from a request and writes them into its answer.
    pub(super) fn middleware(&self) -> SessionMiddleware<Self> {
        let lifetime = self.cookie_lifetime().try_into().expect("two hours at most");
        SessionMiddleware::builder(self.clone(), Key::from(&[0; 64]))
            .cookie_name(COOKIE_NAME.to_owned())
            .cookie_path("/".to_owned())
            .cookie_secure(true)
            .cookie_http_only(true)
            // The callback is a navigation that begins at the DataHUB.
            .cookie_same_site(SameSite::Lax)
            .cookie_content_security(CookieContentSecurity::Signed)
            .session_lifecycle(PersistentSession::default().session_ttl(lifetime))
            .build()
    }

    /// Keeps what `authorization` must be told by when it comes back. `replaces` belongs to the session that is there.
    pub(super) fn store(
        &self,
        session: &Session,
        authorization: &AuthorizationRequest,
        datahub: &DataHubId,
        return_to: Option<ReturnTo>,
        replaces: Option<&SessionToken>,
        now: SystemTime,
    ) {
        let mut cookie = read(session);
        let login = Login {
            datahub: datahub.to_string(),
            created_at: now,
            state: authorization.state.secret().clone(),
            nonce: authorization.nonce.secret().clone(),
            verifier: authorization.verifier.secret().clone(),
            return_to: return_to.map(ReturnTo::into_string).unwrap_or_default(),
        };
        cookie.add(login, replaces);
        self.write(session, cookie, now);
    }

    /// The login that `state` belongs to, which is forgotten with that. `fields` are the request's.
    ///
    /// # Errors
    /// [`PendingError`]; nothing has been sent anywhere then.
    pub(super) fn take(
        &self,
        session: &Session,
        fields: &HeaderMap,
        state: &str,
        now: SystemTime,
    ) -> Result<PendingLogin, PendingError> {
        if !has_come(session) {
            return Err(match find(fields) {
                Found::None => PendingError::None,
                Found::Duplicate => PendingError::Duplicate,
                Found::One(value) => self.unseal_failure(value),
            });
        }
        let mut cookie = read(session);
        let (login, replaces) = cookie.remove(state).ok_or(PendingError::State)?;
        self.write(session, cookie, now);
        let expires_at = login.created_at + self.0.login_timeout;
        Ok(PendingLogin { login, replaces, expires_at })
    }

    /// Why a cookie does not open.
    fn unseal_failure(&self, value: &[u8]) -> PendingError {
        match seal::key_id(sealed_text(value)) {
            Some(key) if !self.0.keyring.ids().contains(&key) => PendingError::UnknownKey(key),
            _ => PendingError::Unsealed,
        }
    }

    /// Notes that a login has ended well. `token` is that of the session it began: if another login that is under way ends
    /// well, too, it takes the place of that one.
    pub(super) fn record_success(
        &self,
        session: &Session,
        Confirmed(datahub): &Confirmed,
        token: &SessionToken,
        now: SystemTime,
    ) {
        let mut cookie = read(session);
        cookie.record_success(datahub.as_str(), Some(token), now);
        self.write(session, cookie, now);
    }

    /// Whether a login at `datahub` has ended well in this browser, as long as that is remembered.
    pub(super) fn has_ended_well(&self, session: &Session, datahub: &DataHubId, now: SystemTime) -> bool {
        read(session).ended_at(datahub.as_str()).is_some_and(|ended_at| now < ended_at + self.cookie_lifetime())
    }

    /// Forgets that logins have ended well at these DataHUBs, and the tokens that were kept for others: the sessions are over.
    pub(super) fn forget<'a>(
        &self,
        session: &Session,
        datahubs: impl IntoIterator<Item = &'a DataHubId>,
        now: SystemTime,
    ) {
        let mut cookie = read(session);
        let known = datahubs.into_iter().filter(|datahub| cookie.forget(datahub.as_str())).count();
        if known > 0 {
            self.write(session, cookie, now);
        }
    }

    fn write(&self, session: &Session, mut cookie: LoginCookie, now: SystemTime) {
        cookie.tidy(self.0.login_timeout, self.cookie_lifetime(), now);
        if cookie.is_empty() {
            session.remove(ENTRY);
        } else {
            session.insert(ENTRY, to_text(&cookie)).expect("a string always serialises");
        }
    }

    fn cookie_lifetime(&self) -> Duration {
        self.0.login_timeout + EXTRA_LIFETIME
    }
}

/// Whether the browser has sent a login cookie, and it opens.
pub(super) fn has_come(session: &Session) -> bool {
    !session.entries().is_empty()
}

/// What actix-session holds during a request.
fn read(session: &Session) -> LoginCookie {
    session.get::<String>(ENTRY).ok().flatten().and_then(|text| of_text(&text)).unwrap_or_default()
}

/// actix-session holds texts.
fn to_text(cookie: &LoginCookie) -> String {
    STANDARD.encode(&*cookie.encode())
}

fn of_text(text: &str) -> Option<LoginCookie> {
    STANDARD.decode(text).ok().and_then(|bytes| LoginCookie::decode(&bytes))
}

/// A request's fields as they came, while actix-session reads others.
struct OriginalHeaders(HeaderMap);

/// Leaves nothing in the Cookie field but the exact pair of the pending logins: actix-session would decode names. It stands
/// before actix-session, and [`restore_cookies`] behind it.
pub(super) fn keep_only_login_cookie<B: MessageBody, S>(
    mut req: ServiceRequest,
    next: &S,
) -> impl Future<Output = Result<ServiceResponse<B>, actix_web::Error>> + use<B, S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
    S::Future: 'static,
{
    let pair = match find(req.headers()) {
        Found::One(value) => HeaderValue::from_bytes(&[COOKIE_NAME.as_bytes(), b"=", value].concat()).ok(),
        Found::None | Found::Duplicate => None,
    };
    let original = OriginalHeaders(req.headers().clone());
    req.extensions_mut().insert(original);
    req.headers_mut().remove(COOKIE);
    if let Some(pair) = pair {
        req.headers_mut().insert(COOKIE, pair);
    }
    next.call(req)
}

/// Gives the handler the cookies as they came.
pub(super) fn restore_cookies<B: MessageBody, S>(
    mut req: ServiceRequest,
    next: &S,
) -> impl Future<Output = Result<ServiceResponse<B>, actix_web::Error>> + use<B, S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
    S::Future: 'static,
{
    let original = req.extensions_mut().remove::<OriginalHeaders>();
    if let Some(OriginalHeaders(fields)) = original {
        *req.headers_mut() = fields;
    }
    next.call(req)
}

/// The login cookie's raw value.
fn find(fields: &HeaderMap) -> Found<'_> {
    let [found] = cookie::find(cookie::fields(fields), [COOKIE_NAME]);
    found
}

/// What we have sealed, in the cookie's value: it follows actix-session's signature, whose last sign is escaped.
fn sealed_text(value: &[u8]) -> &[u8] {
    let end = value.windows(SIGNATURE_END.len()).rposition(|part| part == SIGNATURE_END);
    end.map_or(value, |end| &value[end + SIGNATURE_END.len()..])
}

/// A login that a DataHUB has not answered yet. Its secrets come out by [`PendingLogin::confirm`] alone.
pub(super) struct PendingLogin {
    login: Login,
    replaces: Option<SessionToken>,
    expires_at: SystemTime,
}

/// A login whose state has come back in the browser that began it, at the DataHUB it began at, in time.
pub(super) struct ConfirmedLogin {
    /// What the exchange proves it with.
    pub(super) proof: LoginProof,
    /// Where the person wanted to go.
    pub(super) return_to: Option<ReturnTo>,
    /// The token of the session that the new one takes the place of: of the one that was there when the last login
    /// began, or that another login has begun since.
    pub(super) replaces: Option<SessionToken>,
    /// For [`PendingLogins::record_success`].
    pub(super) confirmed: Confirmed,
}

/// What proves that tokens are those of this login.
pub(super) struct LoginProof {
    /// For the token endpoint.
    pub(super) verifier: PkceCodeVerifier,
    /// For the ID token.
    pub(super) nonce: Nonce,
}

/// At which DataHUB a login was confirmed: no other can have ended well.
pub(super) struct Confirmed(DataHubId);

impl PendingLogin {
    /// The login's secrets, if it began at `datahub` and not too long ago.
    ///
    /// # Errors
    /// [`PendingError`]; nothing has been sent anywhere then.
    pub(super) fn confirm(self, datahub: &DataHubId, now: SystemTime) -> Result<ConfirmedLogin, PendingError> {
        let Self { login, replaces, expires_at } = self;
        if login.datahub != datahub.as_str() {
            return Err(PendingError::DataHub);
        }
        if now >= expires_at {
            return Err(PendingError::Expired);
        }
        Ok(ConfirmedLogin {
            proof: LoginProof { verifier: PkceCodeVerifier::new(login.verifier), nonce: Nonce::new(login.nonce) },
            return_to: ReturnTo::restore(login.return_to),
            replaces,
            confirmed: Confirmed(datahub.clone()),
        })
    }
}

/// Removes a cookie that holds nothing, such as one that does not unseal; it would only come back.
pub(super) fn remove_empty_cookie(req: &HttpRequest, session: &Session, response: &mut HttpResponse) {
    if !session.entries().is_empty() || !matches!(find(req.headers()), Found::One(_)) {
        return;
    }
    if session.status() == SessionStatus::Unchanged {
        response.headers_mut().append(SET_COOKIE, cookie::remove(COOKIE_NAME));
    } else {
        session.purge();
    }
}

/// Why a callback belongs to no login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PendingError {
    /// The browser sent no pending login at all.
    #[error(
        "no pending login came back: the browser blocks cookies, or this is another browser, or the login began long ago"
    )]
    None,
    /// Two cookies of its name, of which one is not ours.
    #[error(
        "two cookies of one name came back, and one of them is not ours: look for whoever sets it on this host, or above"
    )]
    Duplicate,
    /// It names a key that is not on the ring.
    #[error(
        "the pending login is sealed under key {0}, which is not on this process's ring: give all processes the same keys, and \
         drop one only when all of them have sealed under another for auth.login_timeout"
    )]
    UnknownKey(KeyId),
    /// It does not unseal under the key that it names, or names none.
    #[error("the pending login does not open: it was altered, or sealed for another public_url, or by another release")]
    Unsealed,
    /// None of the pending logins has this state.
    #[error(
        "the state is of no pending login of this browser: that one has ended, gave way to newer ones, or never was here"
    )]
    State,
    /// The login began at another DataHUB.
    #[error("the login began at another DataHUB: two answers were mixed up, perhaps by intent")]
    DataHub,
    /// It began too long ago.
    #[error("the login took longer than auth.login_timeout")]
    Expired,
}

/// A "session key" of actix-session is here the sealed cookie itself: there is nothing to look up.
impl SessionStore for PendingLogins {
    async fn load(&self, key: &SessionKey) -> Result<Option<HashMap<String, String>>, LoadError> {
        let Store { keyring, cookie, .. } = &*self.0;
        let unsealed = cookie.unseal(keyring, &NO_SID, key.as_ref().as_bytes()).ok();
        Ok(unsealed.map(|cookie| HashMap::from([(ENTRY.to_owned(), json!(to_text(&cookie)).to_string())])))
    }

    async fn save(
        &self,
        state: HashMap<String, String>,
        _: &actix_web::cookie::time::Duration,
    ) -> Result<SessionKey, SaveError> {
        let Store { keyring, cookie, .. } = &*self.0;
        let text = state.get(ENTRY).and_then(|json| serde_json::from_str::<String>(json).ok());
        let value = text.and_then(|text| of_text(&text)).unwrap_or_default();
        SessionKey::try_from(cookie.seal(keyring, &NO_SID, &value)).map_err(|error| SaveError::Other(error.into()))
    }

    async fn update(
        &self,
        _: SessionKey,
        state: HashMap<String, String>,
        lifetime: &actix_web::cookie::time::Duration,
    ) -> Result<SessionKey, UpdateError> {
        self.save(state, lifetime).await.map_err(|error| match error {
            SaveError::Serialization(error) => UpdateError::Serialization(error),
            SaveError::Other(error) => UpdateError::Other(error),
        })
    }

    async fn update_ttl(&self, _: &SessionKey, _: &actix_web::cookie::time::Duration) -> anyhow::Result<()> {
        Ok(())
    }

    async fn delete(&self, _: &SessionKey) -> anyhow::Result<()> {
        Ok(())
    }
}

const COOKIE_NAME: &str = "__Host-Http-login";
/// How base64 of 32 bytes ends, as cookies escape it.
const SIGNATURE_END: &[u8] = b"%3D";
/// What the cookie is called within actix-session's state.
const ENTRY: &str = "logins";
/// How much longer than a login may take the cookie is kept, and a login that has ended well is remembered.
const EXTRA_LIFETIME: Duration = Duration::from_hours(1);
/// A login has no sid yet.
const NO_SID: [u8; 16] = [0; 16];

#[cfg(test)]
mod tests {
    use actix_session::SessionExt;
    use actix_web::test::TestRequest;
    use openidconnect::CsrfToken;
    use url::Url;

    use super::*;
    use crate::seal::Key;

    /// AR-03: the cookie is there for an hour longer, so that who comes too late is told that and nothing else.
    #[test]
    fn a_login_has_its_time_and_too_late_is_expired() {
        let pending = PendingLogins::new(keyring(), "https://app.example.org", Duration::from_mins(15));
        assert_eq!(pending.cookie_lifetime(), Duration::from_mins(75));
        for (seconds, expected) in [
            (0, None),
            (899, None),
            (900, Some(PendingError::Expired)),
            (4_499, Some(PendingError::Expired)),
            // Browsers have dropped the cookie by now; who has not finds no more.
            (400_000, Some(PendingError::Expired)),
        ] {
            let (session, now) = (session(), start() + Duration::from_secs(seconds));
            let state = begin(&pending, &session, "a", start());
            let outcome =
                pending.take(&session, &HeaderMap::new(), &state, now).and_then(|login| login.confirm(&id("a"), now));
            assert_eq!(outcome.err(), expected, "{seconds} s");
        }
    }

    #[test]
    fn a_login_is_found_by_its_state_once_and_belongs_to_one_datahub() {
        let pending = PendingLogins::new(keyring(), "https://app.example.org", Duration::from_mins(15));
        let (session, now) = (session(), start());
        let take = |state: &str, at: &str| {
            pending.take(&session, &HeaderMap::new(), state, now).and_then(|login| login.confirm(&id(at), now))
        };
        assert_eq!(take("a", "a").err(), Some(PendingError::None));
        let states = ["a", "b", "a"].map(|at| begin(&pending, &session, at, now));
        assert_eq!(take("", "a").err(), Some(PendingError::State));
        let confirmed = take(&states[0], "a").expect("the first one");
        assert_eq!(confirmed.proof.nonce.secret(), &random("nonce", &states[0]));
        assert_eq!(confirmed.proof.verifier.secret(), &random("verifier", &states[0]));
        assert_eq!(take(&states[0], "a").err(), Some(PendingError::State), "spent");
        assert_eq!(take(&states[1], "a").err(), Some(PendingError::DataHub));
        assert_eq!(take(&states[1], "b").err(), Some(PendingError::State), "spent by that");
        assert!(take(&states[2], "a").is_ok());
    }

    #[test]
    fn a_login_that_ended_well_is_remembered_for_as_long_as_the_cookie_and_at_its_datahub() {
        let pending = PendingLogins::new(keyring(), "https://app.example.org", Duration::from_mins(15));
        let (session, now) = (session(), start());
        let state = begin(&pending, &session, "a", now);
        let confirmed =
            pending.take(&session, &HeaderMap::new(), &state, now).and_then(|login| login.confirm(&id("a"), now));
        assert!(!pending.has_ended_well(&session, &id("a"), now), "a confirmed one has not ended");
        let token = SessionToken::Refresh("a".to_owned().try_into().expect("visible ASCII"));
        pending.record_success(&session, &confirmed.expect("ours").confirmed, &token, now);
        for (minutes, expected) in [(0, true), (74, true), (75, false)] {
            let now = now + Duration::from_mins(minutes);
            assert_eq!(pending.has_ended_well(&session, &id("a"), now), expected, "{minutes} min");
            assert!(!pending.has_ended_well(&session, &id("b"), now), "{minutes} min");
        }
    }

    /// A login whose nonce and verifier follow from its state.
    fn begin(pending: &PendingLogins, session: &Session, at: &str, now: SystemTime) -> String {
        let state = CsrfToken::new_random();
        let authorization = AuthorizationRequest {
            url: Url::parse("https://git.example.org").expect("a URL"),
            nonce: Nonce::new(random("nonce", state.secret())),
            verifier: PkceCodeVerifier::new(random("verifier", state.secret())),
            state,
        };
        pending.store(session, &authorization, &id(at), None, None, now);
        authorization.state.secret().clone()
    }

    fn random(name: &str, state: &str) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!("{name} of {state}"))
    }

    fn session() -> Session {
        TestRequest::default().to_http_request().get_session()
    }

    fn id(text: &str) -> DataHubId {
        text.parse().expect("an id")
    }

    fn keyring() -> Keyring {
        Keyring::new(vec![Key::generate().parse().expect("a generated key")]).expect("one key")
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
    }
}
