//! `POST /auth/logout`: ends sessions, at the DataHUB and in the browser.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use actix_web::http::header::SET_COOKIE;
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::join_all;

use crate::access_log::{Event, chain};
use crate::auth::{Auth, Parameters};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::token::RefreshToken;
use crate::error::ApiError;
use crate::seal::cookie;

/// 204, with a session or without; the cookies go whatever the DataHUB says.
///
/// # Errors
/// `unknown_datahub` for one we do not serve.
pub(super) async fn logout(
    req: HttpRequest,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    let now = SystemTime::now();
    let chosen = auth.selected_datahubs(&Parameters::of(&req), &context)?;
    let ends = chosen.iter().filter_map(|datahub| {
        let (_, session) = auth.sessions.open(cookie::fields(req.headers()), datahub, &context, now).ok()?;
        Some(auth.end_session(datahub, session.decode().tokens.refresh?, &context))
    });
    join_all(ends).await;

    let mut response = HttpResponse::NoContent();
    for datahub in
        chosen.into_iter().filter(|datahub| auth.sessions.has_cookies(cookie::fields(req.headers()), datahub))
    {
        for cookie in auth.sessions.removal_cookies(datahub) {
            response.append_header((SET_COOKIE, cookie));
        }
    }
    Ok(response.finish())
}

impl Auth {
    /// Revokes the newest pair this process knows of: a refresh under way is waited for, or its tokens would live on.
    pub(super) async fn end_session(&self, datahub: &DataHub, token: RefreshToken, context: &RequestContext) {
        let newest = self.refresher.invalidate_chain(datahub, &token, MAX_WAIT).await;
        let revocation = datahub.provider.revoke(&newest);
        let reason = match tokio::time::timeout(MAX_WAIT, revocation).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "no answer in time".to_owned(),
        };
        log::warn!(datahub = datahub.id.as_str(), reason; "the tokens of a session that ended could not be revoked");
        context.event(Event::RevokeFailed, datahub.id.as_str());
    }
}

/// How long a person waits for a refresh under way, and for the revocation.
const MAX_WAIT: Duration = Duration::from_millis(1_500);
