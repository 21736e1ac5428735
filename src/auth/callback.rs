//! `GET /auth/callback?datahub=…&code=…&state=…`: a person comes back from a DataHUB.
//!
//! Whatever happens, the person lands in the app and the pending login is spent. The order of checks is that of
//! [`finish`]: nothing is sent to the DataHUB before the state has been found to be one of this browser.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use actix_session::Session;
use actix_web::http::header::SET_COOKIE;
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use openidconnect::AuthorizationCode;

use crate::access_log::{Event, chain};
use crate::auth::logout::MAX_WAIT;
use crate::auth::pending::{PendingError, PendingLogin, remove_empty_cookie};
use crate::auth::return_to::ReturnTo;
use crate::auth::{Auth, LoginError, Parameters, see_other};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::back_channel::BackChannelError;
use crate::datahub::discovery::MetadataError;
use crate::datahub::id_token::IdTokenError;
use crate::datahub::oidc::ExchangeError;
use crate::datahub::token_endpoint::TokenEndpointError;
use crate::error::ApiError;
use crate::metrics;

/// 303 to where the person wanted to go, with a session; or to the app, with a word about what went wrong.
///
/// # Errors
/// `rate_limited`, and nothing else.
pub(super) async fn callback(
    req: HttpRequest,
    session: Session,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    auth.callbacks.check(context.client)?;
    let mut response = match finish(&Parameters::of(&req), &session, &auth, &context).await {
        Ok(response) => response,
        Err(failure) => {
            let reason = failure.reason;
            log::info!(datahub = failure.datahub.as_str(), reason; "a login failed");
            context.event(failure.event, &failure.datahub);
            auth.redirect_to_app(Some(failure.error))
        }
    };
    remove_empty_cookie(&req, &session, &mut response);
    Ok(response)
}

async fn finish(
    parameters: &Parameters,
    session: &Session,
    auth: &Auth,
    context: &RequestContext,
) -> Result<HttpResponse, LoginFailure> {
    // The query says one thing only, of a DataHUB that we serve.
    let Query { datahub, state, issuer, outcome } = Query::read(parameters, auth, context)?;
    // A login of this browser has this state; from here on it is spent. It began at this DataHUB, not long ago.
    let now = SystemTime::now();
    let login = PendingLogin::take(session, state)
        .and_then(|login| login.confirm(&datahub.id, now))
        .map_err(|error| LoginFailure::pending(error, datahub))?;
    // It is this DataHUB that answers, be it yes or no.
    datahub.provider.check_issuer(issuer).await.map_err(|error| LoginFailure::exchange(&error, datahub))?;
    // It said yes.
    let code = outcome.map_err(|error| LoginFailure::new(error, datahub, "the DataHUB said no"))?;
    // It takes the code with the verifier; ID token and userinfo are signed, of now, of this login and of one person.
    let (replaces, return_to) = (login.replaces.clone(), login.return_to.clone());
    let exchanged = auth.exchange(datahub, code, login, context, now).await;
    let (result, obtained) = exchanged.map_err(|error| LoginFailure::exchange(&error, datahub))?;
    // The session is new in every part, and browsers will keep it.
    let (sid, session) = auth.sessions.begin(result, datahub);
    let cookies = auth
        .sessions
        .login_cookies(datahub, &sid, &session, context, now)
        .map_err(|error| LoginFailure::new(LoginError::Failed, datahub, &error.to_string()))?;
    auth.refresher.begin_session(datahub, &obtained.tokens);
    obtained.keep();
    // The one it takes the place of is over at the DataHUB, too.
    if let Some(token) = replaces {
        let kept = session.tokens.session_token();
        auth.refresher.end_session(datahub, token, Some(&kept), MAX_WAIT).await;
    }

    context.event(Event::LoginOk, datahub.id.as_str());
    metrics::login("ok");
    let to = return_to.map_or_else(|| auth.app_url.clone(), ReturnTo::into_string);
    let mut response = see_other(&to);
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

/// What a DataHUB tells us through the browser (RFC 6749 section 4.1.2, RFC 9207 section 2), every parameter once and of a
/// sane length.
struct Query<'a> {
    datahub: &'a Arc<DataHub>,
    state: &'a str,
    issuer: Option<&'a str>,
    outcome: Result<AuthorizationCode, LoginError>,
}

impl<'a> Query<'a> {
    fn read(parameters: &'a Parameters, auth: &'a Auth, context: &RequestContext) -> Result<Self, LoginFailure> {
        let ambiguous = |_: ApiError| LoginFailure::without_datahub("an ambiguous query");
        let datahub = auth
            .named_datahub(parameters, context)
            .map_err(ambiguous)?
            .ok_or(LoginFailure::without_datahub("no DataHUB"))?;
        let one = |name| match parameters.one(name) {
            Ok(value) if value.is_none_or(|value| value.len() <= MAX_PARAMETER_BYTES) => Ok(value),
            _ => Err(LoginFailure::new(LoginError::Failed, datahub, "an ambiguous query")),
        };
        let state = one("state")?.ok_or(LoginFailure::new(LoginError::Failed, datahub, "no state"))?;
        let outcome = match (one("code")?, one("error")?) {
            (Some(code), None) if !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(AuthorizationCode::new(code.to_owned()))
            }
            (None, Some("access_denied")) => Err(LoginError::Denied),
            (None, Some("temporarily_unavailable" | "server_error")) => Err(LoginError::Unavailable),
            (None, Some(_)) => Err(LoginError::Failed),
            _ => return Err(LoginFailure::new(LoginError::Failed, datahub, "neither a code nor an error")),
        };
        Ok(Self { datahub, state, issuer: one("iss")?, outcome })
    }
}

/// What the app and the log are told. Nothing of it comes out of the request.
struct LoginFailure {
    error: LoginError,
    event: Event,
    datahub: String,
    reason: String,
}

impl LoginFailure {
    fn new(error: LoginError, datahub: &DataHub, reason: &str) -> Self {
        Self { error, event: Event::LoginFailed, datahub: datahub.id.to_string(), reason: reason.to_owned() }
    }

    fn without_datahub(reason: &str) -> Self {
        let (datahub, reason) = (String::new(), reason.to_owned());
        Self { error: LoginError::Failed, event: Event::LoginFailed, datahub, reason }
    }

    fn pending(error: PendingError, datahub: &DataHub) -> Self {
        let login_error = match error {
            PendingError::None => LoginError::CookiesBlocked,
            PendingError::State | PendingError::Expired => LoginError::Expired,
            PendingError::DataHub => LoginError::Failed,
        };
        let is_mismatch = matches!(error, PendingError::State | PendingError::DataHub);
        let event = if is_mismatch { Event::StateMismatch } else { Event::LoginFailed };
        Self { event, ..Self::new(login_error, datahub, &error.to_string()) }
    }

    fn exchange(error: &ExchangeError, datahub: &DataHub) -> Self {
        let login_error = match error {
            ExchangeError::Userinfo(BackChannelError::Malformed | BackChannelError::ForeignAddress)
            | ExchangeError::Endpoint(
                TokenEndpointError::ForeignAddress | TokenEndpointError::TooLarge | TokenEndpointError::SignIn,
            ) => LoginError::Failed,
            ExchangeError::Userinfo(_)
            | ExchangeError::Endpoint(_)
            | ExchangeError::Ending
            | ExchangeError::Metadata(MetadataError::Unreachable(_) | MetadataError::Paused) => LoginError::Unavailable,
            _ => LoginError::Failed,
        };
        let event = match error {
            ExchangeError::Issuer | ExchangeError::IdToken(IdTokenError::Issuer) => Event::IssuerMismatch,
            ExchangeError::IdToken(IdTokenError::Nonce) => Event::NonceMismatch,
            _ => Event::LoginFailed,
        };
        Self { event, ..Self::new(login_error, datahub, &chain(error)) }
    }
}

/// Longest parameter, in bytes; GitLab's codes and our states are shorter than 100.
const MAX_PARAMETER_BYTES: usize = 2_048;
