//! `POST /auth/refresh`: newer tokens now, for an app that plans ahead, such as before a long upload.
//!
//! Where a forwarded call would be sent round without a cookie, so is this one; else it answers at once.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use actix_web::http::header::{HeaderValue, SET_COOKIE};
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::join_all;

use crate::auth::status::{Entry, answer};
use crate::auth::{Auth, Parameters};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::error::ApiError;
use crate::session::refresh::{Fresh, Need};
use crate::session::replay::ReplayTarget;
use crate::session::{Session, SessionError, Sid};

/// The sessions with their new times; each is treated by itself.
///
/// # Errors
/// That of the session, if none works: `not_logged_in` without any.
pub async fn refresh(
    req: HttpRequest,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    let now = SystemTime::now();
    let target = ReplayTarget::parse(req.uri().path_and_query().map_or("", |raw| raw.as_str()))?;
    let mut closed = SessionError::None;
    let mut opened = Vec::new();
    for datahub in auth.chosen(&Parameters::read(target.query().unwrap_or_default()), &context)? {
        match auth.sessions.open(req.headers(), datahub, &context, now) {
            Ok((sid, session)) => opened.push((datahub, sid, session)),
            Err(SessionError::Ended) => closed = SessionError::Ended,
            Err(SessionError::None) => {}
        }
    }
    let renewals =
        opened.iter().map(|(datahub, sid, session)| auth.renew(datahub, sid, session, target.replays, &context));
    let renewals = join_all(renewals).await;
    if renewals.iter().all(Result::is_err) {
        return Err(renewals.into_iter().find_map(Result::err).unwrap_or_else(|| closed.into()));
    }

    let (mut entries, mut cookies, mut elsewhere) = (Vec::new(), Vec::new(), None);
    for ((datahub, _, session), renewal) in opened.iter().zip(renewals) {
        match renewal {
            Ok(Renewal::Here(renewed, cookie)) => {
                entries.push(Entry::new(datahub, &renewed));
                cookies.extend(cookie);
            }
            Ok(Renewal::Elsewhere { closes }) => elsewhere = Some(closes || elsewhere == Some(true)),
            Err(error) => entries.push(Entry::new(datahub, session).failed(error.code())),
        }
    }
    if let Some(closes) = elsewhere {
        // Sessions that have new cookies get them with this round, and are young in the next.
        return Err(target.retry_response(cookies, closes));
    }
    let mut response = answer(entries, now);
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

/// What became of one session.
enum Renewal {
    /// It goes on, with a new cookie if its tokens are new.
    Here(Box<Session>, Option<HeaderValue>),
    /// Somebody else may know more.
    Elsewhere { closes: bool },
}

impl Auth {
    /// The session with newer tokens; the session itself if its tokens are young, or cannot be renewed.
    async fn renew(
        &self,
        datahub: &Arc<DataHub>,
        sid: &Sid,
        session: &Session,
        replays: u8,
        context: &RequestContext,
    ) -> Result<Renewal, ApiError> {
        let (now, limits) = (SystemTime::now(), self.sessions.limits());
        let is_lasting = session.tokens.refresh.is_none() && now < session.tokens.expires();
        let need = if is_lasting || session.is_young_at(now, limits) { Need::None } else { Need::Stale };
        Ok(match self.refresher.fresh(datahub, session, need, replays, limits, context).await? {
            Fresh::AsIs => Renewal::Here(Box::new(session.clone()), None),
            Fresh::Newer(tokens) => {
                let renewed = session.renewed(tokens, limits);
                let cookie = self.sessions.renewed(datahub, sid, &renewed, context, SystemTime::now())?;
                Renewal::Here(Box::new(renewed), Some(cookie))
            }
            Fresh::Elsewhere { closes } => Renewal::Elsewhere { closes },
        })
    }
}
