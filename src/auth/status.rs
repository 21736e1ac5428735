//! `GET /auth/session` and `GET /datahubs`: who is logged in, and where one can be.

use std::ops::Not;
use std::rc::Rc;
use std::time::SystemTime;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::{Auth, LoginError};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::oidc::User;
use crate::error::Code;
use crate::seal::cookie;
use crate::session::Session;

/// The sessions that open and have not ended, without asking any DataHUB.
pub(super) async fn status(req: HttpRequest, auth: Data<Auth>, context: ReqData<Rc<RequestContext>>) -> HttpResponse {
    let now = SystemTime::now();
    let opened = auth.datahubs.iter().filter_map(|datahub| {
        let (_, session) = auth.sessions.open(cookie::fields(req.headers()), datahub, &context, now).ok()?;
        let session = session.decode();
        let has_ended = auth.refresher.has_ended(datahub, &session.tokens);
        (!has_ended).then(|| Entry::new(datahub, &session))
    });
    let sessions: Vec<_> = opened.collect();
    let is_blocked = sessions.is_empty() && auth.has_blocked_note(&req);
    let login_error = is_blocked.then(|| LoginError::CookiesBlocked.as_str());
    HttpResponse::Ok().json(Status { sessions, now: rfc3339(now), login_error })
}

/// The DataHUBs to choose from.
pub(super) async fn datahubs(auth: Data<Auth>) -> HttpResponse {
    let choices: Vec<_> = auth
        .datahubs
        .iter()
        .map(|datahub| Choice {
            id: datahub.id.as_str(),
            name: &datahub.name,
            description: &datahub.description,
            url: datahub.address.as_str(),
            anonymous: datahub.anonymous_rate.is_some(),
        })
        .collect();
    HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-cache")).json(choices)
}

/// The answer of `/auth/refresh`.
pub(super) fn answer(sessions: Vec<Entry>, now: SystemTime) -> HttpResponse {
    HttpResponse::Ok().json(Status { sessions, now: rfc3339(now), login_error: None })
}

/// Who is logged in where.
#[derive(Serialize, ToSchema)]
#[schema(as = Sessions)]
pub(super) struct Status {
    /// Those that open and have not ended, in the order of their DataHUBs' ids; empty when nobody is logged in.
    sessions: Vec<Entry>,
    /// The gateway's clock, by which the times of the sessions are to be read.
    #[schema(format = DateTime)]
    now: String,
    /// Why the last login failed, if that is for the browser to mend and nobody is logged in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    login_error: Option<&'static str>,
}

/// One session, as the app sees it: nothing in it is secret.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub(super) struct Entry {
    /// The DataHUB's id.
    datahub: String,
    user: SessionUser,
    /// What the access token may do at the DataHUB.
    scopes: Vec<String>,
    /// When the access token ends. It is renewed before, by the next call.
    #[schema(format = DateTime)]
    expires_at: String,
    /// When one must log in again, if nothing happens before.
    #[schema(format = DateTime)]
    session_ends_at: String,
    /// In the answer of `/auth/refresh`: the code of what went wrong with this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Code>, nullable = false)]
    error: Option<&'static str>,
}

/// Who a person is at a DataHUB.
#[derive(Serialize, ToSchema)]
#[schema(as = User)]
struct SessionUser {
    /// GitLab's number for them, as a string.
    id: String,
    username: String,
    /// What people call them; empty or cut where it is long.
    name: String,
}

impl Entry {
    pub(super) fn new(datahub: &DataHub, session: &Session) -> Self {
        let User { id, username, name } = session.user.clone();
        Self {
            datahub: datahub.id.to_string(),
            user: SessionUser { id, username, name },
            scopes: session.scopes.clone().unwrap_or_else(|| datahub.provider.scopes().to_vec()),
            expires_at: rfc3339(session.tokens.expires_at()),
            session_ends_at: rfc3339(session.ends_at()),
            error: None,
        }
    }

    /// The same with a word about what went wrong.
    pub(super) fn failed(self, code: Code) -> Self {
        Self { error: Some(code.as_str()), ..self }
    }
}

/// A DataHUB to choose.
#[derive(Serialize, ToSchema)]
#[schema(as = DataHub)]
pub(super) struct Choice<'a> {
    /// What paths and `?datahub=` call it.
    id: &'a str,
    /// What people call it.
    name: &'a str,
    /// One line for a login chooser.
    description: &'a str,
    /// Where its own pages are.
    url: &'a str,
    /// Whether what is public there can be read without a login.
    #[serde(skip_serializing_if = "Not::not")]
    anonymous: bool,
}

/// RFC 3339, UTC, whole seconds.
fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
