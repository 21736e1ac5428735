//! `GET /auth/login?datahub=…`: sends a person to a DataHUB.
//!
//! The order of checks: the DataHUB is one of ours, and what it is to ask the person is one of three things; a person opened the
//! login, and no page behind their back; the client does not come too often. What no person opened is not counted, or pages
//! elsewhere could use up what all people of one address may do. What is wrong with `return_to` is no reason to stop anybody.

use std::rc::Rc;
use std::time::SystemTime;

use actix_session::Session;
use actix_web::http::StatusCode;
use actix_web::web::{Data, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use openidconnect::core::CoreAuthPrompt;

use crate::access_log::{Event, chain};
use crate::auth::return_to::ReturnTo;
use crate::auth::{Auth, LoginError, Parameters, redirect};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::token::SessionToken;
use crate::error::{ApiError, Code};
use crate::guard::origins::Opener;
use crate::seal::cookie;

/// 302 to the DataHUB; the pending login goes into its cookie. 303 to the app if there is a reason not to go.
///
/// # Errors
/// `unknown_datahub` for one we do not serve, `bad_request` without a DataHUB and for any other prompt.
pub(super) async fn login(
    req: HttpRequest,
    session: Session,
    auth: Data<Auth>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    let parameters = Parameters::of(&req);
    let datahub = auth.named_datahub(&parameters, &context)?.ok_or(Code::BadRequest)?;
    let prompt = parameters.one("prompt")?.map(|word| prompt(word).ok_or(Code::BadRequest)).transpose()?;
    let opener = auth.origins.opener(req.headers());
    if opener == Opener::Other {
        // A link from elsewhere, or a page behind the person's back: they land in the app and decide there.
        return Ok(auth.redirect_to_app(None));
    }
    if auth.logins.check(context.client).is_err() {
        return Ok(auth.redirect_limited(&context));
    }
    let wanted = parameters.one("return_to");
    let return_to = wanted.as_ref().ok().copied().flatten().and_then(ReturnTo::parse);
    if return_to.is_none() && !matches!(wanted, Ok(None)) {
        context.event(Event::ReturnToDropped, datahub.id.as_str());
    }
    let return_to = match opener {
        // They come back to where they are at work.
        Opener::Dev(origin) => Some(ReturnTo::at(origin, return_to.as_ref(), auth.app_path())),
        Opener::Own | Opener::Other => return_to,
    };
    let replaces = auth.replaced_token(&req, datahub);
    match datahub.provider.authorization_request(prompt).await {
        Ok(authorization) => {
            let now = SystemTime::now();
            auth.pending.store(&session, &authorization, &datahub.id, return_to, replaces.as_ref(), now);
            Ok(redirect(StatusCode::FOUND, authorization.url.as_str()))
        }
        Err(error) => {
            let reason = format!("the login cannot begin: {}", chain(&error));
            context.event_because(Event::LoginFailed, datahub.id.as_str(), &reason);
            Ok(auth.redirect_to_app(Some(LoginError::Unavailable)))
        }
    }
}

/// The prompts that a link of the app may ask for. Not `none`: it would turn a login into a question that nobody sees.
fn prompt(word: &str) -> Option<CoreAuthPrompt> {
    match word {
        "login" => Some(CoreAuthPrompt::Login),
        "select_account" => Some(CoreAuthPrompt::SelectAccount),
        "consent" => Some(CoreAuthPrompt::Consent),
        _ => None,
    }
}

impl Auth {
    /// The token of the session that a login at `datahub` takes the place of, one that has ended too: at GitLab
    /// it lives on. The callback cannot know it, since Strict cookies do not come with a navigation from elsewhere.
    fn replaced_token(&self, req: &HttpRequest, datahub: &DataHub) -> Option<SessionToken> {
        let (_, session) = self.sessions.inspect(cookie::fields(req.headers()), datahub).ok()?;
        session.decode().revocable_token()
    }
}
