//! `POST /auth/logout`: ends sessions, at the DataHUB and in the browser.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use actix_session::Session;
use actix_web::http::header::SET_COOKIE;
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::join_all;

use crate::auth::pending::remove_empty_cookie;
use crate::auth::{Auth, Parameters};
use crate::context::RequestContext;
use crate::error::ApiError;
use crate::seal::cookie;

/// 204, with a session or without; the cookies go whatever the DataHUB says.
///
/// # Errors
/// `unknown_datahub` for one we do not serve.
pub(super) async fn logout(
    req: HttpRequest,
    pending: Session,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    let now = SystemTime::now();
    let chosen = auth.selected_datahubs(&Parameters::of(&req), &context)?;
    let ends = chosen.iter().filter_map(|datahub| {
        // One that has ended, too: at the DataHUB it lives on.
        let (_, session) = auth.sessions.inspect(cookie::fields(req.headers()), datahub).ok()?;
        Some(auth.refresher.end_session(datahub, session.decode().tokens.session_token(), None, MAX_WAIT))
    });
    join_all(ends).await;
    auth.pending.forget(&pending, chosen.iter().map(|datahub| &datahub.id), now);

    let mut response = HttpResponse::NoContent();
    for datahub in
        chosen.into_iter().filter(|datahub| auth.sessions.has_cookies(cookie::fields(req.headers()), datahub))
    {
        for cookie in auth.sessions.removal_cookies(datahub) {
            response.append_header((SET_COOKIE, cookie));
        }
    }
    let mut response = response.finish();
    remove_empty_cookie(&req, &pending, &mut response);
    Ok(response)
}

/// How long a person waits for a refresh under way, and for the revocation.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(1_500);
