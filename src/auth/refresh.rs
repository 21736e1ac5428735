//! `POST /auth/refresh`: newer tokens now, for an app that plans ahead, such as before a long upload.

use std::sync::Arc;
use std::time::SystemTime;

use actix_web::http::header::{HeaderValue, SET_COOKIE};
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::join_all;

use crate::auth::status::{Entry, answer};
use crate::auth::{Auth, Parameters};
use crate::datahub::DataHub;
use crate::error::ApiError;
use crate::session::{Session, SessionError, Sid};

/// The sessions with their new times; each is treated by itself.
///
/// # Errors
/// That of the session, if none works: `not_logged_in` without any.
pub async fn refresh(req: HttpRequest, auth: Data<Auth>) -> Result<HttpResponse, ApiError> {
    let now = SystemTime::now();
    let mut closed = SessionError::None;
    let mut opened = Vec::new();
    for datahub in auth.chosen(&Parameters::of(&req))? {
        match auth.sessions.open(req.headers(), datahub, now) {
            Ok((sid, session)) => opened.push((datahub, sid, session)),
            Err(SessionError::Ended) => closed = SessionError::Ended,
            Err(SessionError::None) => {}
        }
    }
    let renewals = opened.iter().map(|(datahub, sid, session)| auth.renew(datahub, sid, session, now));
    let outcomes = join_all(renewals).await;

    if outcomes.iter().all(Result::is_err) {
        return Err(outcomes.into_iter().find_map(Result::err).unwrap_or_else(|| closed.into()));
    }
    let (mut entries, mut cookies) = (Vec::new(), Vec::new());
    for ((datahub, _, session), outcome) in opened.iter().zip(outcomes) {
        match outcome {
            Ok((renewed, cookie)) => {
                entries.push(Entry::new(datahub, &renewed));
                cookies.extend(cookie);
            }
            Err(error) => entries.push(Entry::new(datahub, session).failed(error.code())),
        }
    }
    let mut response = answer(entries, now);
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

impl Auth {
    /// The session with newer tokens and its cookie; the session itself if its tokens are new, or cannot be renewed.
    async fn renew(
        &self,
        datahub: &Arc<DataHub>,
        sid: &Sid,
        session: &Session,
        now: SystemTime,
    ) -> Result<(Session, Option<HeaderValue>), ApiError> {
        let is_over = now >= session.tokens.expires();
        if session.is_young_at(now, self.sessions.limits()) || (session.tokens.refresh.is_none() && !is_over) {
            return Ok((session.clone(), None));
        }
        let (renewed, cookie) = self.sessions.renew(&self.refresher, datahub, sid, session, now).await?;
        Ok((renewed, Some(cookie)))
    }
}
