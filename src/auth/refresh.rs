//! `POST /auth/refresh`: newer tokens now, for an app that plans ahead, such as before a long upload.
//!
//! Where a forwarded call would be sent again without a cookie, so is this one; else it answers at once. The ARCmanager's app of
//! today asks by GET.

use std::rc::Rc;
use std::time::SystemTime;

use actix_web::http::header::{ContentType, SET_COOKIE};
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::join_all;

use crate::auth::status::{Entry, answer};
use crate::auth::{Auth, Parameters, is_get_form};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::error::ApiError;
use crate::seal::cookie;
use crate::session::SessionError;
use crate::session::decision::Reason;
use crate::session::refresh::{Asking, Resolution};
use crate::session::replay::ReplayTarget;

/// The sessions with their new times; each is treated by itself. A text for the GET form.
///
/// # Errors
/// That of the session, if none works: `not_logged_in` without any. `session_superseded` if one of them may have newer
/// tokens elsewhere. `cross_site_request` for a GET without Fetch Metadata.
pub(super) async fn refresh(
    req: HttpRequest,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    let is_get_form = is_get_form(&req, &context)?;
    let now = SystemTime::now();
    let target = ReplayTarget::parse(req.uri().path_and_query().map_or("", |raw| raw.as_str()));
    let mut closed = SessionError::NoCookie;
    let mut opened = Vec::new();
    let held = || cookie::fields(req.headers());
    let selected = auth.selected_datahubs(&Parameters::read(target.query().unwrap_or_default()), &context)?;
    for datahub in &selected {
        match auth.sessions.open(held(), datahub, &context, now) {
            Ok((sid, session)) => opened.push((*datahub, sid, session.decode())),
            Err(SessionError::Ended) => closed = SessionError::Ended,
            Err(SessionError::NoCookie | SessionError::Unopened) => {}
        }
    }
    let resolutions = opened.iter().map(|(datahub, sid, session)| {
        let asking = Asking { datahub, sid, session, reason: Reason::Requested, replays: target.replays };
        auth.refresher.resolve(asking, &auth.sessions, &context, now)
    });
    let resolutions = join_all(resolutions).await;

    let (mut entries, mut cookies, mut retry, mut failures) = (Vec::new(), Vec::new(), None, Vec::new());
    for ((datahub, _, session), resolution) in opened.iter_mut().zip(resolutions) {
        match resolution {
            Ok(Resolution::UseCurrent) => entries.push(Entry::new(datahub, session)),
            Ok(Resolution::Renewed(renewed, cookie)) => {
                entries.push(Entry::new(datahub, &renewed));
                cookies.push(cookie);
                *session = *renewed;
            }
            Ok(Resolution::Retry { closes }) => retry = Some(closes || retry == Some(true)),
            Err(error) => {
                entries.push(Entry::new(datahub, session).failed(error.code()));
                failures.push(error);
            }
        }
    }
    if retry.is_none() || !cookies.is_empty() {
        let session_at = |datahub: &DataHub| opened.iter().find(|(other, ..)| other.index() == datahub.index());
        let changed: Vec<_> =
            selected.iter().map(|datahub| (&***datahub, session_at(datahub).map(|(_, _, session)| session))).collect();
        cookies.extend(auth.sessions.readable_cookies(held, &changed, &context, now));
    }
    if let Some(closes) = retry {
        // Sessions that have new cookies get them with this answer, and are young when the call comes again.
        return Err(target.retry_response(cookies, closes));
    }
    if failures.len() == entries.len() {
        // If one of them may still be renewed, it is too early to log in again.
        let keeps = failures.iter().position(|failure| failure.status().is_server_error()).unwrap_or_default();
        return Err(failures.into_iter().nth(keeps).unwrap_or_else(|| closed.into()));
    }
    let mut response = if is_get_form {
        HttpResponse::Ok().content_type(ContentType::plaintext()).body("Session refresh was successful!")
    } else {
        answer(entries, now)
    };
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}
