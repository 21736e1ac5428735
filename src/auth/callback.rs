//! `GET /auth/callback?datahub=…&code=…&state=…`: a person comes back from a DataHUB.
//!
//! Whatever happens, the person lands in the app, and the pending login is spent, unless too many come or it cannot be read as an
//! answer of the DataHUB's. The order of checks is that of [`finish`]: nothing is sent to the DataHUB before the state has been found
//! to be one of this browser.

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
use crate::auth::pending::{self, PendingError, remove_empty_cookie};
use crate::auth::return_to::ReturnTo;
use crate::auth::{Auth, LoginError, Parameters, see_other};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::id_token::IdTokenError;
use crate::datahub::oidc::error::ExchangeError;
use crate::datahub::token_endpoint::TokenEndpointError;
use crate::error::Code;
use crate::metrics;
use crate::session::readable;

/// 303 to where the person wanted to go, with a session; or to the app, with a word about what went wrong.
pub(super) async fn callback(
    req: HttpRequest,
    session: Session,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> HttpResponse {
    // Without a login cookie of ours nothing is sent anywhere, and no state can be guessed. Such callbacks are not counted, or
    // pages elsewhere could use up what all people of one address may do.
    if pending::has_come(&session) && auth.callbacks.check(context.client).is_err() {
        return auth.redirect_limited(&context);
    }
    let mut response = match finish(&req, &session, &auth, &context).await {
        Ok(response) => response,
        Err(failure) => {
            context.event_because(failure.event, &failure.datahub, &failure.reason);
            if failure.error.is_none() {
                metrics::login("late");
            }
            let mut response = auth.redirect_to_app(failure.error);
            if failure.error == Some(LoginError::CookiesBlocked) {
                response.headers_mut().append(SET_COOKIE, auth.blocked_note());
            }
            response
        }
    };
    remove_empty_cookie(&req, &session, &mut response);
    response
}

async fn finish(
    req: &HttpRequest,
    pending: &Session,
    auth: &Auth,
    context: &RequestContext,
) -> Result<HttpResponse, LoginFailure> {
    // The query says one thing only, of a DataHUB that we serve.
    let parameters = Parameters::of(req);
    let Query { datahub, state, issuer, outcome } = Query::read(&parameters, auth, context)?;
    // A login of this browser has this state; from here on it is spent. It began at this DataHUB, not long ago.
    let now = SystemTime::now();
    let login = auth.pending.take(pending, req.headers(), state, now);
    let login = login.and_then(|login| login.confirm(&datahub.id, now)).map_err(|error| {
        LoginFailure::pending(error, datahub, auth.pending.has_ended_well(pending, &datahub.id, now))
    })?;
    // It is this DataHUB that answers, be it yes or no.
    datahub.provider.check_issuer(issuer).await.map_err(|error| LoginFailure::exchange(&error, datahub))?;
    // It said yes.
    let code = outcome.map_err(|(error, reason)| LoginFailure::new(error, datahub, reason))?;
    // It takes the code with the verifier; ID token and userinfo are signed, of now, of this login and of one person.
    let exchanged = auth.exchange(datahub, code, login.proof, login.replaces.clone(), context, now).await;
    let (result, obtained) = exchanged.map_err(|error| LoginFailure::exchange(&error, datahub))?;
    // The session is new in every part, and browsers will keep it.
    let (sid, session) = auth.sessions.begin(result, datahub);
    let cookies = auth
        .sessions
        .login_cookies(datahub, &sid, &session, context, now)
        .map_err(|error| LoginFailure::new(LoginError::Failed, datahub, &error.to_string()))?;
    // Whatever else there is began earlier.
    let readable = auth.sessions.readable_cookies(std::iter::empty, &[(datahub, Some(&session))], context, now);
    let no_error = (!readable.is_empty()).then(readable::no_error);
    auth.refresher.begin_session(datahub, &obtained.tokens);
    let token = session.tokens.session_token();
    auth.pending.record_success(pending, &login.confirmed, &token, now);
    // The one it takes the place of is over at the DataHUB, too; but the browser has it still if it has left.
    if let Some(replaced) = login.replaces.filter(|_| !context.has_left.get()) {
        auth.refresher.end_session(datahub, replaced, Some(&token), MAX_WAIT).await;
    }

    context.event(Event::LoginOk, datahub.id.as_str());
    metrics::login("ok");
    let to = login.return_to.map_or_else(|| auth.app_url.clone(), ReturnTo::into_string);
    let mut response = see_other(&to);
    for cookie in cookies.into_iter().chain(readable).chain(no_error) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    // Whoever writes the answer keeps them.
    response.extensions_mut().insert(obtained);
    Ok(response)
}

/// What a DataHUB tells us through the browser (RFC 6749 section 4.1.2, RFC 9207 section 2), every parameter once and of a
/// sane length.
struct Query<'a> {
    datahub: &'a Arc<DataHub>,
    state: &'a str,
    issuer: Option<&'a str>,
    /// A code; or what the app and the log are told of a refusal.
    outcome: Result<AuthorizationCode, (LoginError, &'static str)>,
}

impl<'a> Query<'a> {
    fn read(parameters: &'a Parameters, auth: &'a Auth, context: &RequestContext) -> Result<Self, LoginFailure> {
        let named = auth.named_datahub(parameters, context).map_err(|error| match error.code() {
            Code::UnknownDatahub => LoginFailure::without_datahub(UNKNOWN_DATAHUB),
            _ => LoginFailure::without_datahub(AMBIGUOUS),
        });
        let datahub = named?.ok_or(LoginFailure::without_datahub(UNKNOWN_DATAHUB))?;
        let failed = |reason| LoginFailure::new(LoginError::Failed, datahub, reason);
        let one = |name| match parameters.one(name) {
            Ok(value) if value.is_none_or(|value| value.len() <= MAX_PARAMETER_BYTES) => Ok(value),
            _ => Err(failed(AMBIGUOUS)),
        };
        let state = one("state")?.ok_or_else(|| failed(NO_STATE))?;
        let outcome = match (one("code")?, one("error")?) {
            (Some(code), None) if !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(AuthorizationCode::new(code.to_owned()))
            }
            (None, Some(error)) => Err(refusal(error)),
            _ => {
                return Err(failed(
                    "the callback holds neither one code nor one error: it is not an answer of the DataHUB's",
                ));
            }
        };
        Ok(Self { datahub, state, issuer: one("iss")?, outcome })
    }
}

/// What the app and the log are told of an error response (RFC 6749 section 4.1.2.1, OpenID Connect Core section 3.1.2.6).
fn refusal(error: &str) -> (LoginError, &'static str) {
    match error {
        "access_denied" => (LoginError::Denied, "the person, or the DataHUB, denied access"),
        "temporarily_unavailable" | "server_error" => {
            (LoginError::Unavailable, "the DataHUB says that it is out of order; ask whoever runs it if that goes on")
        }
        "invalid_scope" => (LoginError::Failed, "the DataHUB refused the scopes: allow them to its application"),
        "unauthorized_client" => {
            (LoginError::Failed, "the DataHUB refused its application: make it a confidential one")
        }
        _ => (LoginError::Failed, "the DataHUB refused the login: compare its application with the README"),
    }
}

/// What the app and the log are told. Nothing of it comes out of the request.
struct LoginFailure {
    /// Nothing for a late callback of a browser where a login has ended well.
    error: Option<LoginError>,
    event: Event,
    datahub: String,
    reason: String,
}

impl LoginFailure {
    fn new(error: LoginError, datahub: &DataHub, reason: &str) -> Self {
        Self {
            error: Some(error),
            event: Event::LoginFailed,
            datahub: datahub.id.to_string(),
            reason: reason.to_owned(),
        }
    }

    fn without_datahub(reason: &str) -> Self {
        let (datahub, reason) = (String::new(), reason.to_owned());
        Self { error: Some(LoginError::Failed), event: Event::LoginFailed, datahub, reason }
    }

    fn pending(error: PendingError, datahub: &DataHub, has_ended_well: bool) -> Self {
        let login_error = match error {
            PendingError::None => LoginError::CookiesBlocked,
            PendingError::State | PendingError::Expired => LoginError::Expired,
            PendingError::DataHub | PendingError::Duplicate | PendingError::UnknownKey(_) | PendingError::Unsealed => {
                LoginError::Failed
            }
        };
        let event = match error {
            PendingError::State | PendingError::DataHub => Event::StateMismatch,
            PendingError::Duplicate => Event::DuplicateCookie,
            PendingError::UnknownKey(_) | PendingError::Unsealed => Event::UnsealFailed,
            PendingError::None | PendingError::Expired => Event::LoginFailed,
        };
        let failure = Self { event, ..Self::new(login_error, datahub, &error.to_string()) };
        // A person who has logged in by another tab wants to be in the app, and nothing else.
        if has_ended_well && login_error == LoginError::Expired { Self { error: None, ..failure } } else { failure }
    }

    fn exchange(error: &ExchangeError, datahub: &DataHub) -> Self {
        let login_error = match error {
            ExchangeError::Endpoint(
                TokenEndpointError::ForeignAddress(_)
                | TokenEndpointError::Redirect
                | TokenEndpointError::SignIn
                | TokenEndpointError::TooLarge,
            ) => LoginError::Failed,
            ExchangeError::Userinfo(error) if error.may_pass() => LoginError::Unavailable,
            ExchangeError::Endpoint(_) | ExchangeError::Ending | ExchangeError::Metadata(_) => LoginError::Unavailable,
            _ => LoginError::Failed,
        };
        let event = match error {
            ExchangeError::Issuer | ExchangeError::IdToken(IdTokenError::Issuer) => Event::IssuerMismatch,
            ExchangeError::IdToken(IdTokenError::Nonce) => Event::NonceMismatch,
            _ => Event::LoginFailed,
        };
        let advice = match error {
            ExchangeError::ErrorResponse(word) if word == "invalid_grant" => "; the person may simply log in again",
            _ => "",
        };
        Self { event, ..Self::new(login_error, datahub, &format!("{}{advice}", chain(error))) }
    }
}

const AMBIGUOUS: &str =
    "the callback has a parameter twice, or one of over 2,048 bytes: it is not the DataHUB's answer";
const UNKNOWN_DATAHUB: &str = "the callback names no DataHUB of the configuration: the redirect URI that is registered at \
    the GitLab must end with ?datahub= and the id of its section";
const NO_STATE: &str = "the callback has no state: it was opened by hand, or the DataHUB left it out";

/// Longest parameter, in bytes; GitLab's codes and our states are shorter than 100.
const MAX_PARAMETER_BYTES: usize = 2_048;
