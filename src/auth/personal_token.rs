//! `PUT /auth/addPAT`: a session goes on with a personal access token of the same person, which the ARCmanager's app asks for.
//!
//! The DataHUB is asked first; until it has said yes, nothing changes. Then the session is sealed anew beside a new sid, so that
//! a refresh under way brings the old one back to no browser, and the pair of the login is revoked. Nobody renews or
//! revokes such a token: it is the person's own.

use std::rc::Rc;
use std::time::SystemTime;

use actix_web::http::header::{CONTENT_TYPE, ContentType, SET_COOKIE};
use actix_web::web::{Bytes, Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::access_log::Event;
use crate::auth::logout::MAX_WAIT;
use crate::auth::{Auth, Parameters};
use crate::context::RequestContext;
use crate::datahub::personal_token::PersonalTokenError;
use crate::datahub::token::AccessToken;
use crate::error::{ApiError, Code};
use crate::seal::cookie;
use crate::session::SessionError;

/// A text, once the session goes on with the token. Without `datahub` that is the one that began last.
///
/// # Errors
/// `pat_refused` for a token that the session cannot go on with, `bad_request` for a body that holds none, `rate_limited` as
/// for logins; what is said of a DataHUB that does not answer. The session stays as it is then.
pub(super) async fn add(
    req: HttpRequest,
    body: Bytes,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    // Each asks the DataHUB, which counts them all as ours.
    if let Err(limited) = auth.logins.check(context.client) {
        return Err(ApiError::from(Code::RateLimited).retry_after(limited.retry_after));
    }
    let now = SystemTime::now();
    let cookies = || cookie::fields(req.headers());
    let (datahub, session) = match auth.named_datahub(&Parameters::of(&req), &context)? {
        Some(datahub) => auth.sessions.open(cookies(), datahub, &context, now).map(|(_, session)| (datahub, session)),
        None => auth.sessions.latest(cookies, &context, now).map(|(datahub, _, session)| (datahub, session)),
    }?;
    context.set_datahub(datahub.id.as_str());
    let session = session.decode();
    if auth.refresher.has_ended(datahub, &session.tokens) {
        return Err(SessionError::Ended.into());
    }
    let token = match token_of(&req, &body)? {
        Ok(token) => datahub.inspect_personal_token(&token, &session.user.id, now).await.map(|info| (token, info)),
        Err(error) => Err(error),
    };
    let (token, info) = token.map_err(|error| {
        context.event_because(Event::PatRefused, datahub.id.as_str(), &error.to_string());
        ApiError::from(error)
    })?;

    // A logout that came meanwhile counts, and a browser that has left keeps what it has.
    if auth.refresher.has_ended(datahub, &session.tokens) {
        return Err(SessionError::Ended.into());
    }
    let replaced = session.revocable_token().filter(|_| !context.has_left.get());
    let now = SystemTime::now();
    let (sid, session) = session.with_personal_token(token, &info.scopes, info.expires_at, now);
    let written = auth.sessions.login_cookies(datahub, &sid, &session, &context, now)?;
    let token = session.tokens.session_token();
    auth.refresher.begin_session(datahub, &session.tokens);
    if let Some(replaced) = replaced {
        auth.refresher.end_session(datahub, replaced, Some(&token), MAX_WAIT).await;
    }
    context.event(Event::PatAccepted, datahub.id.as_str());
    let readable = auth.sessions.readable_cookies(cookies, &[(datahub, Some(&session))], &context, now);
    let mut response = HttpResponse::Ok()
        .content_type(ContentType::plaintext())
        .body("Your Personal Access token was added successfully!");
    for cookie in written.into_iter().chain(readable) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

/// The token in a request's body, or why it cannot be one; `bad_request` for a body that holds none.
fn token_of(req: &HttpRequest, body: &Bytes) -> Result<Result<AccessToken, PersonalTokenError>, ApiError> {
    let kind = req.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_json = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    // A list in the order of the fields would pass for the object otherwise.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let document = serde_json::from_slice(body).ok().filter(|_| is_json && is_object);
    let Document { pat } = document.ok_or(Code::BadRequest)?;
    let length = pat.len();
    Ok(AccessToken::try_from(pat)
        .ok()
        .filter(|_| length <= MAX_TOKEN_BYTES)
        .ok_or(PersonalTokenError::Refused("it is empty, too long or not of visible ASCII")))
}

// It has no `Debug`.
/// What the app sends.
#[derive(Deserialize, ToSchema)]
#[schema(as = PersonalToken)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// A personal access token of the session's own user, with the scope `api`.
    pat: String,
}

/// Longest token, in bytes. GitLab's have 26 to about 300.
const MAX_TOKEN_BYTES: usize = 512;
