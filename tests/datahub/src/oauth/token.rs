//! The token endpoint: exchanges codes, refreshes, and revokes.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{INVALID_CLIENT, INVALID_SCOPE, error};
use crate::http::Request;
use crate::http::response::Response;
use crate::hub::Hub;
use crate::oauth::grants::{self, Pair};
use crate::oauth::id_token;
use crate::pages;
use crate::params::Params;

pub async fn answer(hub: &Hub, request: &Request, params: &Params) -> Response {
    let grant_type = params.text("grant_type").unwrap_or_default();
    let mut rest = Duration::ZERO;
    if grant_type == "refresh_token" {
        let trouble = hub.behaviour().refresh_trouble;
        if trouble.throttles() {
            return Response::throttled("1");
        }
        let (before, after) = trouble.next();
        tokio::time::sleep(before).await;
        rest = after;
    }
    let response = decide(hub, request, params, grant_type, SystemTime::now());
    tokio::time::sleep(rest).await;
    response
}

fn decide(hub: &Hub, request: &Request, params: &Params, grant_type: &str, now: SystemTime) -> Response {
    let result = match grant_type {
        "" => Err(Refused::Missing("grant_type")),
        "authorization_code" => authenticate(hub, request, params).and_then(|()| exchange(hub, params, now)),
        // Doorkeeper looks at the token before it looks at the client.
        "refresh_token" if !knows_refresh_token(hub, params) => Err(Refused::Grant),
        "refresh_token" => authenticate(hub, request, params).and_then(|()| refresh(hub, params, now)),
        _ => Err(Refused::GrantType),
    };
    let mut counts = hub.counts();
    match (grant_type, result.is_ok()) {
        ("authorization_code", true) => counts.code_exchanges += 1,
        ("authorization_code", false) => counts.code_exchanges_refused += 1,
        ("refresh_token", true) => counts.refreshes += 1,
        ("refresh_token", false) => counts.refreshes_refused += 1,
        _ => {}
    }
    drop(counts);
    result.unwrap_or_else(|refused| refused.response(hub))
}

/// An unknown token is fine. So is an expired access token, and then nothing happens: GitLab's silent no-op.
pub fn revoke(hub: &Hub, request: &Request, params: &Params, now: SystemTime) -> Response {
    let (token, hint) = (params.text("token").unwrap_or_default(), params.text("token_type_hint"));
    let mut grants = hub.grants();
    if grants.knows(token) && authenticate(hub, request, params).is_err() {
        let why = "You are not authorized to revoke this token";
        return Response::json(403, &json!({ "error": "unauthorized_client", "error_description": why }));
    }
    match grants.revoke(token, hint == Some("refresh_token"), now) {
        true => hub.counts().revocations += 1,
        false => hub.counts().revocations_without_effect += 1,
    }
    Response::json(200, &json!({}))
}

/// HTTP Basic, split at the first colon without decoding, or parameters; not both (Doorkeeper 5.9.5).
fn authenticate(hub: &Hub, request: &Request, params: &Params) -> Result<(), Refused> {
    let basic = request.header("authorization").and_then(|value| value.strip_prefix("Basic "));
    let decoded = basic.and_then(|coded| String::from_utf8(STANDARD.decode(coded).ok()?).ok());
    let client = match (basic, params.text("client_secret")) {
        (Some(_), Some(_)) => return Err(Refused::TwoClientAuthentications),
        (Some(_), None) => decoded.as_deref().and_then(|pair| pair.split_once(':')),
        (None, secret) => params.text("client_id").zip(secret),
    };
    match client == Some((&hub.client_id, &hub.client_secret)) {
        true => Ok(()),
        false => Err(Refused::Client),
    }
}

fn exchange(hub: &Hub, params: &Params, now: SystemTime) -> Result<Response, Refused> {
    let code = params.text("code").ok_or(Refused::Missing("code"))?;
    let redirect_uri = params.text("redirect_uri").ok_or(Refused::Missing("redirect_uri"))?;
    let verifier = params.text("code_verifier");
    hub.add_secret(verifier.unwrap_or_default());
    let behaviour = hub.behaviour().clone();
    let mut grants = hub.grants();
    if verifier.is_none() && grants.wants_verifier(code) {
        return Err(Refused::Missing("code_verifier"));
    }
    let code = grants.redeem(code, redirect_uri, verifier, now).ok_or(Refused::Grant)?;
    if hub.is_blocked(code.user) {
        return Err(Refused::Blocked);
    }
    let reused = behaviour.reuse_access_token.then(|| grants.matching(code.user, &code.scopes, now)).flatten();
    let pair = reused.unwrap_or_else(|| {
        let is_refreshable = !behaviour.leave_out_refresh_token;
        grants.issue(code.user, code.scopes, code.given, behaviour.token_lifetime, is_refreshable, now)
    });
    Ok(tokens(hub, &pair, code.nonce.as_deref(), now))
}

fn knows_refresh_token(hub: &Hub, params: &Params) -> bool {
    params.text("refresh_token").is_none_or(|token| hub.grants().owner(token).is_some())
}

fn refresh(hub: &Hub, params: &Params, now: SystemTime) -> Result<Response, Refused> {
    let refresh_token = params.text("refresh_token").ok_or(Refused::Missing("refresh_token"))?;
    let behaviour = hub.behaviour().clone();
    let mut grants = hub.grants();
    if let Some(user) = grants.owner(refresh_token) {
        if hub.world().user(user).is_some_and(|user| behaviour.poisoned_users.contains(&user.username)) {
            return Err(Refused::Poisoned);
        }
        if hub.is_blocked(user) {
            return Err(Refused::Blocked);
        }
    }
    let old = grants.refreshable(refresh_token).ok_or(Refused::Grant)?;
    if params.text("scope").is_some_and(|scope| !scope.split(' ').all(|s| old.has_scope(s))) {
        return Err(Refused::Scope);
    }
    let is_refreshable = !behaviour.leave_out_refresh_token;
    let pair = grants.refresh(refresh_token, behaviour.refresh, is_refreshable, now).ok_or(Refused::Grant)?;
    Ok(tokens(hub, &pair, None, now))
}

fn tokens(hub: &Hub, pair: &Pair, nonce: Option<&str>, now: SystemTime) -> Response {
    let behaviour = hub.behaviour();
    let mut body = json!({
        "access_token": pair.access_token,
        "token_type": "Bearer",
        "scope": behaviour.token_scope.as_ref().unwrap_or(&pair.scopes),
        "created_at": grants::seconds(pair.created),
    });
    if !behaviour.leave_out_expires_in {
        body["expires_in"] = (pair.expires_in(now) + Duration::from_millis(500)).as_secs().into();
    }
    if let Some(refresh_token) = &pair.refresh_token {
        body["refresh_token"] = refresh_token.as_str().into();
        hub.add_secret(refresh_token);
    }
    if pair.has_scope("openid") {
        let signed = id_token::sign(behaviour.signing_key, &hub.url, &hub.client_id, pair, nonce, now);
        hub.add_secret(&signed);
        body["id_token"] = signed.into();
    }
    hub.add_secret(&pair.access_token);
    Response::json(200, &body).header("Cache-Control", "no-store, no-cache")
}

/// What the token endpoint refuses with.
enum Refused {
    Blocked,
    Client,
    Grant,
    GrantType,
    Missing(&'static str),
    Poisoned,
    Scope,
    TwoClientAuthentications,
}

impl Refused {
    fn response(self, hub: &Hub) -> Response {
        match self {
            Self::Blocked => Response::redirect(302, &format!("{}/users/sign_in", hub.url)),
            Self::Client => error(401, "invalid_client", INVALID_CLIENT),
            Self::Grant => error(400, "invalid_grant", INVALID_GRANT),
            Self::GrantType => error(400, "unsupported_grant_type", UNSUPPORTED_GRANT_TYPE),
            Self::Missing(name) => error(400, "invalid_request", &format!("Missing required parameter: {name}.")),
            Self::Poisoned => Response::html(500, pages::failed(hub)),
            Self::Scope => error(400, "invalid_scope", INVALID_SCOPE),
            Self::TwoClientAuthentications => error(400, "invalid_request", TWO_CLIENT_AUTHENTICATIONS),
        }
    }
}

const INVALID_GRANT: &str = "The provided authorization grant is invalid, expired, revoked, does not match the \
                             redirection URI used in the authorization request, or was issued to another client.";
const UNSUPPORTED_GRANT_TYPE: &str = "The authorization grant type is not supported by the authorization server.";
const TWO_CLIENT_AUTHENTICATIONS: &str = "The client must use one authentication method only.";
