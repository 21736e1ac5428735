//! Getting in and out: the table of the `/auth` routes, and what their handlers share.

mod callback;
mod exchange;
mod login;
mod logout;
pub mod pending;
mod personal_token;
mod refresh;
pub mod return_to;
mod status;

use std::sync::Arc;

use ::cookie::{Cookie, SameSite};
use actix_web::http::header::{HeaderValue, LOCATION, SET_COOKIE};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, Route, guard};
use url::form_urlencoded;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::Schema;

use crate::access_log::Event;
use crate::auth::pending::PendingLogins;
use crate::auth::personal_token::Document;
use crate::auth::status::{Choice, Status};
use crate::context::RequestContext;
use crate::datahub::tasks::Tasks;
use crate::datahub::{DataHub, DataHubs};
use crate::error::{ApiError, Code};
use crate::guard::origins::TrustedOrigins;
use crate::metrics;
use crate::rate::RateLimiter;
use crate::seal::cookie::{self, Found};
use crate::session::refresh::Refresher;
use crate::session::{Sessions, readable};

/// What the handlers work with.
#[derive(Debug)]
pub struct Auth {
    /// The DataHUBs one can log in at.
    pub datahubs: DataHubs,
    /// Sessions, read and written.
    pub sessions: Arc<Sessions>,
    /// Newer tokens.
    pub refresher: Refresher,
    /// Where codes are exchanged.
    pub tasks: Tasks,
    /// Logins that are under way.
    pub pending: PendingLogins,
    /// How often one client may begin a login.
    pub logins: RateLimiter,
    /// How often one client may end a login.
    pub callbacks: RateLimiter,
    /// Where the app is: a path or a URL.
    pub app_url: String,
    /// Where its pages may be.
    pub origins: TrustedOrigins,
}

/// The routes below the gateway's base path.
pub fn routes(config: &mut ServiceConfig, auth: &Auth) {
    let form = if auth.sessions.are_for_arcmanager() { Form::GetToo } else { Form::Post };
    config
        .service(
            web::resource("/auth/login")
                .wrap_fn(pending::restore_cookies)
                .wrap(auth.pending.middleware())
                .wrap_fn(pending::keep_only_login_cookie)
                .get(login::login)
                .default_service(method_not_allowed("GET")),
        )
        .service(
            web::resource("/auth/callback")
                .wrap_fn(pending::restore_cookies)
                .wrap(auth.pending.middleware())
                .wrap_fn(pending::keep_only_login_cookie)
                .get(callback::callback)
                .default_service(method_not_allowed("GET")),
        )
        .service(
            web::resource("/auth/session")
                .get(status::status)
                .head(status::status)
                .default_service(method_not_allowed("GET, HEAD")),
        )
        .service(
            web::resource("/auth/refresh")
                .route(form.route().to(refresh::refresh))
                .default_service(method_not_allowed(form.allow())),
        )
        .service(
            web::resource("/auth/logout")
                .wrap_fn(pending::restore_cookies)
                .wrap(auth.pending.middleware())
                .wrap_fn(pending::keep_only_login_cookie)
                .route(form.route().to(logout::logout))
                .default_service(method_not_allowed(form.allow())),
        )
        .service(
            web::resource("/datahubs")
                .get(status::datahubs)
                .head(status::datahubs)
                .default_service(method_not_allowed("GET, HEAD")),
        );
    if auth.sessions.are_for_arcmanager() {
        config
            .service(web::resource("/auth/addPAT").put(personal_token::add).default_service(method_not_allowed("PUT")));
    }
}

/// The JSON that these routes speak, for the API documents: each by its name, with what it is made of.
pub fn schemas() -> Vec<(String, RefOr<Schema>)> {
    let mut schemas = Vec::new();
    add_schema::<Status>(&mut schemas);
    add_schema::<Choice<'_>>(&mut schemas);
    add_schema::<Document>(&mut schemas);
    schemas
}

fn add_schema<T: ToSchema>(schemas: &mut Vec<(String, RefOr<Schema>)>) {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
}

/// By which methods the app refreshes and logs out.
#[derive(Debug, Clone, Copy)]
enum Form {
    Post,
    /// The ARCmanager's app of today knows no other way than GET.
    GetToo,
}

impl Form {
    fn route(self) -> Route {
        match self {
            Self::Post => web::post(),
            Self::GetToo => web::route().guard(guard::Any(guard::Post()).or(guard::Get())),
        }
    }

    fn allow(self) -> &'static str {
        match self {
            Self::Post => "POST",
            Self::GetToo => "GET, POST",
        }
    }
}

/// The answer to every other method.
fn method_not_allowed(allow: &'static str) -> Route {
    web::to(move || async move { Err::<HttpResponse, _>(ApiError::method_not_allowed(allow)) })
}

impl Auth {
    /// The DataHUB that `?datahub=` names by id or alias; `None` without the parameter.
    ///
    /// # Errors
    /// `unknown_datahub` for a name that is none, `bad_request` for two of them.
    fn named_datahub(
        &self,
        parameters: &Parameters,
        context: &RequestContext,
    ) -> Result<Option<&Arc<DataHub>>, ApiError> {
        let Some(name) = parameters.one("datahub")? else { return Ok(None) };
        let datahub = self.datahubs.by_name(name).ok_or(Code::UnknownDatahub)?;
        context.set_datahub(datahub.id.as_str());
        Ok(Some(datahub))
    }

    /// The one that is named, or all of them.
    fn selected_datahubs(
        &self,
        parameters: &Parameters,
        context: &RequestContext,
    ) -> Result<Vec<&Arc<DataHub>>, ApiError> {
        Ok(self
            .named_datahub(parameters, context)?
            .map_or_else(|| self.datahubs.iter().collect(), |datahub| vec![datahub]))
    }

    /// The path of the app, at whichever origin.
    fn app_path(&self) -> &str {
        let Some((_, rest)) = self.app_url.split_once("://") else { return &self.app_url };
        rest.find('/').map_or("/", |at| &rest[at..])
    }

    /// A cookie that says that a callback came without ours, for `/auth/session`.
    fn blocked_note(&self) -> HeaderValue {
        let (name, is_https) = (self.blocked_note_name(), self.is_https());
        let note = Cookie::build((name, BLOCKED_NOTE)).http_only(true).same_site(SameSite::Strict).path("/");
        let note = note.max_age(BLOCKED_NOTE_LIFETIME).secure(is_https);
        HeaderValue::from_str(&note.to_string()).expect("all of it is visible ASCII")
    }

    /// Whether that cookie has come, with what we have written into it, and no other of its name.
    fn has_blocked_note(&self, req: &HttpRequest) -> bool {
        let found = cookie::find(cookie::fields(req.headers()), [self.blocked_note_name()]);
        found == [Found::One(BLOCKED_NOTE.as_bytes())]
    }

    /// By this name nobody can set it but this host, not even script. Safari keeps no Secure cookie of `http://localhost`, and so
    /// none of such a name; there it is a word of which anybody may make use.
    fn blocked_note_name(&self) -> &'static str {
        if self.is_https() { "__Host-Http-login-note" } else { "gateway-login-note" }
    }

    fn is_https(&self) -> bool {
        self.origins.own.starts_with("https:")
    }

    /// Back to the app for a client that comes too often. There is no Retry-After: with a redirect it would ask the browser to
    /// wait before it goes there (RFC 9110 section 10.2.3).
    fn redirect_limited(&self, context: &RequestContext) -> HttpResponse {
        context.event_because(Event::LoginFailed, "", TOO_MANY_LOGINS);
        self.redirect_to_app(Some(LoginError::Busy))
    }

    /// Back to the app for a callback that is refused before it is read as one. Its address holds a code and a state: an answer that
    /// stays at it leaves them in the history, where script of the app could read them and hand them to whoever began the login.
    pub fn redirect_refused(&self, code: Code, context: &RequestContext) -> HttpResponse {
        let reason = format!("the callback was refused before it was read: {}", code.as_str());
        context.event_because(Event::LoginFailed, "", &reason);
        self.redirect_to_app(Some(LoginError::Failed))
    }

    /// Back to the app, with a word about why the login failed, which is counted. The ARCmanager's app of today does not see the
    /// word: it alerts a text.
    fn redirect_to_app(&self, error: Option<LoginError>) -> HttpResponse {
        match error {
            None => see_other(&self.app_url),
            Some(error) => {
                metrics::login(error.as_str());
                let separator = if self.app_url.contains('?') { '&' } else { '?' };
                let mut response = see_other(&format!("{}{separator}login_error={}", self.app_url, error.as_str()));
                if self.sessions.are_for_arcmanager() {
                    response.headers_mut().append(SET_COOKIE, readable::error(error.text()));
                }
                response
            }
        }
    }
}

/// Why a login failed, as the app is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoginError {
    /// Too many logins come from the client's address.
    Busy,
    /// The person said no at the DataHUB.
    Denied,
    /// It took too long, or was finished already.
    Expired,
    /// The DataHUB cannot be reached.
    Unavailable,
    /// The browser sent no cookie of ours back.
    CookiesBlocked,
    /// Anything else.
    Failed,
}

impl LoginError {
    fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Unavailable => "unavailable",
            Self::CookiesBlocked => "cookies_blocked",
            Self::Failed => "failed",
        }
    }

    /// What the ARCmanager's app of today alerts.
    fn text(self) -> &'static str {
        match self {
            Self::Busy => "Too many logins come from your network. Please try again in a minute.",
            Self::Denied => "You did not allow access at the DataHUB.",
            Self::Expired => "The login took too long or was finished before. Please start again.",
            Self::Unavailable => "DataHUB not available. Please try again in a few minutes.",
            Self::CookiesBlocked => "Your browser did not send the cookie of the login back. Please allow cookies.",
            Self::Failed => "The login at the DataHUB failed. Please try again.",
        }
    }
}

/// A request's query, decoded.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(req: &HttpRequest) -> Self {
        Self::read(req.query_string())
    }

    fn read(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The value of `name`; two of one name are an error, since two readers might each take another.
    fn one(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.0.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Code::BadRequest.into()),
        }
    }
}

/// Whether a request is a GET form, whose answer is a text; any page may link to one, so nothing but Fetch Metadata lets it
/// in.
///
/// # Errors
/// `cross_site_request` for one without them.
fn is_get_form(req: &HttpRequest, context: &RequestContext) -> Result<bool, ApiError> {
    let is_get = req.method() == Method::GET;
    if is_get && !req.headers().contains_key("sec-fetch-site") {
        context.event(Event::CrossSiteRefused, "");
        return Err(Code::CrossSiteRequest.into());
    }
    Ok(is_get)
}

fn see_other(location: &str) -> HttpResponse {
    redirect(StatusCode::SEE_OTHER, location)
}

fn redirect(status: StatusCode, location: &str) -> HttpResponse {
    HttpResponse::build(status).insert_header((LOCATION, location)).finish()
}

/// What operators are told of a client that is limited.
const TOO_MANY_LOGINS: &str = "too many logins from this client: if many people share its address, raise rate_limit.login and \
    rate_limit.callback; if it is a proxy of yours, name it in server.trusted_proxies";

/// What the cookie says that says that a callback came without ours.
const BLOCKED_NOTE: &str = "no-cookie-came-back";
/// For as long as somebody may look into why the login failed.
const BLOCKED_NOTE_LIFETIME: ::cookie::time::Duration = ::cookie::time::Duration::minutes(5);
