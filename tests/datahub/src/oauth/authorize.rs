//! The authorization endpoint: asks who signs in, and sends them back with a code.

use std::time::SystemTime;

use super::{INVALID_CLIENT, INVALID_SCOPE, SCOPES};
use crate::http::Request;
use crate::http::response::Response;
use crate::hub::Hub;
use crate::oauth::grants::{Challenge, Code};
use crate::pages;
use crate::params::Params;
use crate::world::User;

pub fn ask(hub: &Hub, request: &Request, params: &Params) -> Result<Response, Response> {
    let authorization = Authorization::check(hub, params)?;
    let users: Vec<User> = hub.world().users.iter().filter(|user| user.signs_in).cloned().collect();
    let page = pages::sign_in(hub, &request.target, authorization.scopes, &users);
    Ok(Response::html(200, page).header("Cache-Control", "no-store").header("X-Frame-Options", "DENY"))
}

/// The user chose who to be, or to deny.
pub fn decide(hub: &Hub, params: &Params, now: SystemTime) -> Result<Response, Response> {
    let authorization = Authorization::check(hub, params)?;
    if params.flag("deny") {
        return Ok(authorization.refuse("access_denied", DENIED));
    }
    let username = params.text("user").unwrap_or_default();
    let user = hub.world().users.iter().find(|user| user.signs_in && user.username == username).map(|user| user.id);
    let user = user.ok_or_else(|| Response::html(422, pages::refused(hub, "Choose one of the users.")))?;
    let code = hub.grants().give_code(Code {
        user,
        redirect_uri: authorization.redirect_uri.to_owned(),
        scopes: authorization.scopes.to_owned(),
        nonce: params.text("nonce").map(str::to_owned),
        challenge: authorization.challenge.clone(),
        given: now,
    });
    hub.add_secret(&code);
    hub.counts().sign_ins += 1;
    Ok(authorization.redirect(&[("code", &code)]))
}

/// A sign-in that may go on.
struct Authorization<'a> {
    redirect_uri: &'a str,
    scopes: &'a str,
    state: Option<&'a str>,
    challenge: Option<Challenge>,
    issuer: Option<&'a str>,
}

impl<'a> Authorization<'a> {
    /// The refusal is a page where the client or its redirect URI is wrong, else a redirect.
    fn check(hub: &'a Hub, params: &'a Params) -> Result<Self, Response> {
        for name in ["state", "nonce"] {
            hub.add_secret(params.text(name).unwrap_or_default());
        }
        if params.text("client_id") != Some(&hub.client_id) {
            return Err(Response::html(401, pages::refused(hub, INVALID_CLIENT)));
        }
        let redirect_uri = params
            .text("redirect_uri")
            .filter(|uri| is_registered(hub, uri))
            .ok_or_else(|| Response::html(400, pages::refused(hub, "The redirect URI included is not valid.")))?;
        let scopes = params.text("scope").filter(|scope| !scope.is_empty()).unwrap_or("api");
        let issuer = hub.behaviour().announces_iss.then_some(hub.url.as_str());
        let mut authorization = Self { redirect_uri, scopes, state: params.text("state"), challenge: None, issuer };
        let challenge = params.text("code_challenge").filter(|challenge| !challenge.is_empty());
        authorization.challenge = match (challenge, params.text("code_challenge_method")) {
            (None, _) => None,
            (Some(challenge), Some("S256")) => Some(Challenge::Sha256(challenge.to_owned())),
            (Some(challenge), Some("plain")) => Some(Challenge::Plain(challenge.to_owned())),
            _ => return Err(authorization.refuse("invalid_code_challenge_method", INVALID_METHOD)),
        };
        if params.text("response_type") != Some("code") {
            return Err(authorization.refuse("unsupported_response_type", UNSUPPORTED_TYPE));
        }
        if params.text("response_mode").is_some_and(|mode| mode != "query") {
            return Err(authorization.refuse("unsupported_response_mode", UNSUPPORTED_MODE));
        }
        if !scopes.split(' ').all(|scope| SCOPES.contains(&scope)) {
            return Err(authorization.refuse("invalid_scope", INVALID_SCOPE));
        }
        Ok(authorization)
    }

    fn refuse(&self, error: &str, why: &str) -> Response {
        self.redirect(&[("error", error), ("error_description", why)])
    }

    fn redirect(&self, answer: &[(&str, &str)]) -> Response {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(answer);
        if let Some(state) = self.state {
            query.append_pair("state", state);
        }
        if let Some(issuer) = self.issuer {
            query.append_pair("iss", issuer);
        }
        let joint = if self.redirect_uri.contains('?') { '&' } else { '?' };
        Response::redirect(302, &format!("{}{joint}{}", self.redirect_uri, query.finish()))
            .header("Cache-Control", "no-store")
    }
}

fn is_registered(hub: &Hub, uri: &str) -> bool {
    if !hub.redirect_uris.is_empty() {
        return hub.redirect_uris.iter().any(|registered| registered == uri);
    }
    let authority =
        uri.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let host = authority
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(authority, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]") || host.ends_with(".localhost")
}

const DENIED: &str = "The resource owner or authorization server denied the request.";
const INVALID_METHOD: &str = "The code_challenge_method must be plain or S256.";
const UNSUPPORTED_MODE: &str = "The authorization server does not support this response mode.";
const UNSUPPORTED_TYPE: &str = "The authorization server does not support this response type.";
