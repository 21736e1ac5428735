//! `POST /auth/logout`: ends sessions, at the DataHUB and in the browser. The ARCmanager's app of today does it by GET.

use std::rc::Rc;
use std::time::{Duration, SystemTime};

use actix_session::Session;
use actix_web::http::header::{ContentType, SET_COOKIE};
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::join_all;

use crate::auth::pending::remove_empty_cookie;
use crate::auth::{Auth, Parameters, is_get_form};
use crate::context::RequestContext;
use crate::error::ApiError;
use crate::seal::cookie;

/// 204, with a session or without; the cookies go whatever the DataHUB says. A text for the GET form.
///
/// # Errors
/// `unknown_datahub` for one we do not serve, `cross_site_request` for a GET without Fetch Metadata.
pub(super) async fn logout(
    req: HttpRequest,
    pending: Session,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    let is_get_form = is_get_form(&req, &context)?;
    let now = SystemTime::now();
    let chosen = auth.selected_datahubs(&Parameters::of(&req), &context)?;
    let ends = chosen.iter().filter_map(|datahub| {
        // One that has ended, too: at the DataHUB it lives on.
        let (_, session) = auth.sessions.inspect(cookie::fields(req.headers()), datahub).ok()?;
        // A personal access token is its person's: it is forgotten.
        Some(auth.refresher.end_session(datahub, session.decode().revocable_token()?, None, MAX_WAIT))
    });
    join_all(ends).await;
    auth.pending.forget(&pending, chosen.iter().map(|datahub| &datahub.id), now);

    let mut response = if is_get_form {
        HttpResponse::Ok().content_type(ContentType::plaintext()).body("logout successful")
    } else {
        HttpResponse::NoContent().finish()
    };
    let cookies = || cookie::fields(req.headers());
    let held = chosen.iter().filter(|datahub| auth.sessions.has_cookies(cookies(), datahub));
    let removals = held.flat_map(|datahub| auth.sessions.removal_cookies(datahub));
    let ended: Vec<_> = chosen.iter().map(|datahub| (&***datahub, None)).collect();
    for cookie in removals.chain(auth.sessions.readable_cookies(cookies, &ended, &context, now)) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    remove_empty_cookie(&req, &pending, &mut response);
    Ok(response)
}

/// How long a person waits for a refresh under way, and for the revocation.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(1_500);
