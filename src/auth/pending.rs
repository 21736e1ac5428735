//! Logins that a DataHUB has not answered yet: in a cookie of their own, through actix-session.
//!
//! A browser may have three under way, in three tabs; each is found by its state. The cookie is sealed like a session.
//! actix-session signs what our store gives it once more, with a key that takes no part in anything: it is a constant, so
//! that a login may end at another process than it began, in the middle of a rotation. What protects the cookie is the
//! seal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_session::config::{CookieContentSecurity, PersistentSession};
use actix_session::storage::{LoadError, SaveError, SessionKey, SessionStore, UpdateError};
use actix_session::{Session, SessionMiddleware};
use actix_web::body::MessageBody;
use actix_web::cookie::{Key, SameSite};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse};
use actix_web::http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use openidconnect::{Nonce, PkceCodeVerifier};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::auth::return_to::ReturnTo;
use crate::datahub::DataHubId;
use crate::datahub::oidc::AuthorizationRequest;
use crate::datahub::token::{RefreshToken, SessionToken};
use crate::seal::Keyring;
use crate::seal::cookie::{self, Found, Plaintext, SealedCookie};

/// Where pending logins are kept.
#[derive(Debug, Clone)]
pub struct PendingLogins(Arc<Store>);

#[derive(Debug)]
struct Store {
    keyring: Keyring,
    cookie: SealedCookie<States>,
}

impl PendingLogins {
    /// Sealed for `origin`, that of `server.public_url`.
    pub fn new(keyring: Keyring, origin: &str) -> Self {
        Self(Arc::new(Store { keyring, cookie: SealedCookie::new(COOKIE_NAME.to_owned(), origin) }))
    }

    /// What reads them from a request and writes them into its answer.
    pub(super) fn middleware(&self) -> SessionMiddleware<Self> {
        let lifetime = actix_web::cookie::time::Duration::seconds(LOGIN_TTL.as_secs().try_into().expect("600 fits"));
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
}

/// A request's fields as they came, before [`keep_only_login_cookie`].
#[derive(Debug)]
pub(super) struct OriginalHeaders(pub(super) HeaderMap);

/// Leaves nothing in the Cookie field but the exact pair of the pending logins: actix-session would decode names.
pub(super) fn keep_only_login_cookie<B: MessageBody, S>(
    mut req: ServiceRequest,
    next: &S,
) -> impl Future<Output = Result<ServiceResponse<B>, actix_web::Error>> + use<B, S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = actix_web::Error>,
    S::Future: 'static,
{
    let [found] = cookie::find(cookie::fields(req.headers()), [COOKIE_NAME]);
    let pair = match found {
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

/// A login that a DataHUB has not answered yet. Its secrets come out by [`PendingLogin::confirm`] alone.
#[derive(Serialize, Deserialize)]
pub(super) struct PendingLogin {
    #[serde(rename = "d")]
    datahub: String,
    #[serde(rename = "n")]
    nonce: String,
    #[serde(rename = "v")]
    verifier: String,
    #[serde(rename = "r")]
    return_to: Option<String>,
    #[serde(rename = "o")]
    replaces: Option<String>,
    #[serde(rename = "t")]
    created_at: u64,
}

/// A login whose state has come back in the browser that began it, at the DataHUB it began at, in time.
pub(super) struct ConfirmedLogin {
    /// For the token endpoint.
    pub(super) verifier: PkceCodeVerifier,
    /// For the ID token.
    pub(super) nonce: Nonce,
    /// Where the person wanted to go.
    pub(super) return_to: Option<ReturnTo>,
    /// The token of the session that the new one takes the place of.
    pub(super) replaces: Option<SessionToken>,
}

impl PendingLogin {
    /// Keeps what `authorization` must be told by when it comes back.
    #[expect(clippy::disallowed_methods, reason = "it goes into the sealed cookie")]
    pub(super) fn store(
        session: &Session,
        authorization: &AuthorizationRequest,
        datahub: &DataHubId,
        return_to: Option<ReturnTo>,
        replaces: Option<&RefreshToken>,
        now: SystemTime,
    ) {
        let login = Self {
            datahub: datahub.to_string(),
            nonce: authorization.nonce.secret().clone(),
            verifier: authorization.verifier.secret().clone(),
            return_to: return_to.map(ReturnTo::into_string),
            replaces: replaces.map(|token| token.expose().to_owned()).filter(|token| token.len() <= MAX_TOKEN_BYTES),
            created_at: seconds(now),
        };
        let state = authorization.state.secret();
        session.insert(state, login).expect("strings and a number always serialise");
        evict_oldest(session, state);
    }

    /// The login that `state` belongs to, which is forgotten with that.
    ///
    /// # Errors
    /// [`PendingError`]; nothing has been sent anywhere then.
    pub(super) fn take(session: &Session, state: &str) -> Result<Self, PendingError> {
        if session.entries().is_empty() {
            return Err(PendingError::None);
        }
        // A key of a hash map, compared by a hash that nobody outside knows: no time tells a near miss.
        let login = session.remove(state).ok_or(PendingError::State)?;
        if session.entries().is_empty() {
            session.purge();
        }
        serde_json::from_str(&login).map_err(|_| PendingError::State)
    }

    /// The login's secrets, if it began at `datahub` and not too long ago.
    ///
    /// # Errors
    /// [`PendingError`]; nothing has been sent anywhere then.
    pub(super) fn confirm(self, datahub: &DataHubId, now: SystemTime) -> Result<ConfirmedLogin, PendingError> {
        if self.datahub != datahub.as_str() {
            return Err(PendingError::DataHub);
        }
        if seconds(now).saturating_sub(self.created_at) >= LOGIN_TTL.as_secs() {
            return Err(PendingError::Expired);
        }
        Ok(ConfirmedLogin {
            verifier: PkceCodeVerifier::new(self.verifier),
            nonce: Nonce::new(self.nonce),
            return_to: self.return_to.as_deref().and_then(ReturnTo::parse),
            replaces: self.replaces.and_then(|token| RefreshToken::try_from(token).ok()).map(SessionToken::Refresh),
        })
    }
}

/// Removes a cookie that holds no pending login, such as one that does not unseal; it would only come back.
pub(super) fn remove_empty_cookie(req: &HttpRequest, session: &Session, response: &mut HttpResponse) {
    if session.entries().is_empty()
        && session.status() == actix_session::SessionStatus::Unchanged
        && req.headers().contains_key(COOKIE)
    {
        let removed = cookie::remove(COOKIE_NAME);
        response.headers_mut().append(SET_COOKIE, removed);
    }
}

/// Drops the oldest logins, never the `newest`, until three are left and the cookie is short enough.
fn evict_oldest(session: &Session, newest: &str) {
    loop {
        let oldest = {
            let logins = session.entries();
            let length: usize = logins.iter().map(|(state, login)| state.len() + login.len()).sum();
            if logins.len() <= MAX_LOGINS && (length <= MAX_BYTES || logins.len() == 1) {
                return;
            }
            let created_at =
                |login: &str| serde_json::from_str(login).map_or(0, |login: PendingLogin| login.created_at);
            // Several may have begun in one second.
            let others = logins.iter().filter(|(state, _)| *state != newest);
            others.min_by_key(|(_, login)| created_at(login)).map(|(state, _)| state.clone())
        };
        session.remove(&oldest.expect("there are at least two"));
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Why a callback belongs to no login.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PendingError {
    /// The browser sent no pending login at all.
    #[error(
        "no pending login came back: the browser blocks cookies, or this is another browser, or the login began long ago"
    )]
    None,
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

/// What actix-session keeps: a state's text, and its login as JSON.
#[derive(Debug)]
struct States(HashMap<String, String>);

impl Plaintext for States {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec(&self.0).expect("a map of strings always serialises"))
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self)
    }
}

/// A "session key" of actix-session is here the sealed state itself: there is nothing to look up.
impl SessionStore for PendingLogins {
    async fn load(&self, key: &SessionKey) -> Result<Option<HashMap<String, String>>, LoadError> {
        let Store { keyring, cookie } = &*self.0;
        Ok(cookie.unseal(keyring, &NO_SID, key.as_ref().as_bytes()).ok().map(|states| states.0))
    }

    async fn save(
        &self,
        states: HashMap<String, String>,
        _: &actix_web::cookie::time::Duration,
    ) -> Result<SessionKey, SaveError> {
        let Store { keyring, cookie } = &*self.0;
        let sealed = cookie.seal(keyring, &NO_SID, &States(states));
        SessionKey::try_from(sealed).map_err(|error| SaveError::Other(error.into()))
    }

    async fn update(
        &self,
        _: SessionKey,
        states: HashMap<String, String>,
        lifetime: &actix_web::cookie::time::Duration,
    ) -> Result<SessionKey, UpdateError> {
        self.save(states, lifetime).await.map_err(|error| match error {
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
/// How long a person may take at the DataHUB.
const LOGIN_TTL: Duration = Duration::from_mins(10);
/// How many logins one browser may have under way.
const MAX_LOGINS: usize = 3;
/// How long they may be together, in bytes: sealed and signed they stay below actix-session's limit of 4,064.
const MAX_BYTES: usize = 2_600;
/// A refresh token that is longer is not kept, and so not revoked; GitLab's have 64 characters.
const MAX_TOKEN_BYTES: usize = 256;
/// A login has no sid yet.
const NO_SID: [u8; 16] = [0; 16];
