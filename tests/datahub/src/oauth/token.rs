//! The token endpoint: exchanges codes, refreshes, and revokes.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{INVALID_CLIENT, INVALID_SCOPE, challenge};
use crate::http::Request;
use crate::http::response::Response;
use crate::hub::Hub;
use crate::oauth::grants::{self, Pair};
use crate::oauth::id_token;
use crate::params::Params;

pub fn answer(hub: &Hub, request: &Request, params: &Params, now: SystemTime) -> Response {
    let grant_type = params.text("grant_type").unwrap_or_default();
    let result = match grant_type {
        "" => Err(Refused::Missing("grant_type")),
        "authorization_code" => authenticate(hub, request, params).and_then(|()| exchange(hub, params, now)),
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
    result.unwrap_or_else(Response::from)
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
    let lifetime = hub.behaviour().token_lifetime;
    let mut grants = hub.grants();
    if verifier.is_none() && grants.wants_verifier(code) {
        return Err(Refused::Missing("code_verifier"));
    }
    let code = grants.redeem(code, redirect_uri, verifier, now).ok_or(Refused::Grant)?;
    let pair = grants.issue(code.user, code.scopes, code.given, lifetime, now);
    Ok(tokens(hub, &pair, code.nonce.as_deref(), now))
}

fn refresh(hub: &Hub, params: &Params, now: SystemTime) -> Result<Response, Refused> {
    let refresh_token = params.text("refresh_token").ok_or(Refused::Missing("refresh_token"))?;
    let mode = hub.behaviour().refresh;
    let mut grants = hub.grants();
    let old = grants.refreshable(refresh_token).ok_or(Refused::Grant)?;
    if params.text("scope").is_some_and(|scope| !scope.split(' ').all(|s| old.has_scope(s))) {
        return Err(Refused::Scope);
    }
    let pair = grants.refresh(refresh_token, mode, now).ok_or(Refused::Grant)?;
    Ok(tokens(hub, &pair, None, now))
}

fn tokens(hub: &Hub, pair: &Pair, nonce: Option<&str>, now: SystemTime) -> Response {
    let behaviour = hub.behaviour();
    let mut body = json!({
        "access_token": pair.access_token,
        "token_type": "Bearer",
        "refresh_token": pair.refresh_token,
        "scope": pair.scopes,
        "created_at": grants::seconds(pair.created),
    });
    if !behaviour.leave_out_expires_in {
        body["expires_in"] = pair.lifetime.as_secs().into();
    }
    if pair.has_scope("openid") {
        let signed = id_token::sign(behaviour.signing_key, &hub.url, &hub.client_id, pair, nonce, now);
        hub.add_secret(&signed);
        body["id_token"] = signed.into();
    }
    hub.add_secret(&pair.access_token);
    hub.add_secret(&pair.refresh_token);
    Response::json(200, &body).header("Cache-Control", "no-store, no-cache")
}

/// What the token endpoint refuses with.
enum Refused {
    Client,
    Grant,
    GrantType,
    Missing(&'static str),
    Scope,
    TwoClientAuthentications,
}

impl From<Refused> for Response {
    fn from(refused: Refused) -> Self {
        let (status, error, why) = match refused {
            Refused::Client => (401, "invalid_client", INVALID_CLIENT.to_owned()),
            Refused::Grant => (400, "invalid_grant", INVALID_GRANT.to_owned()),
            Refused::GrantType => (400, "unsupported_grant_type", UNSUPPORTED_GRANT_TYPE.to_owned()),
            Refused::Missing(name) => (400, "invalid_request", format!("Missing required parameter: {name}.")),
            Refused::Scope => (400, "invalid_scope", INVALID_SCOPE.to_owned()),
            Refused::TwoClientAuthentications => {
                (400, "invalid_request", "The client must use one authentication method only.".to_owned())
            }
        };
        Response::json(status, &json!({ "error": error, "error_description": why }))
            .header("Cache-Control", "no-store, no-cache")
            .header("WWW-Authenticate", challenge("Doorkeeper", error, &why))
    }
}

const INVALID_GRANT: &str = "The provided authorization grant is invalid, expired, revoked, does not match the \
                             redirection URI used in the authorization request, or was issued to another client.";
const UNSUPPORTED_GRANT_TYPE: &str = "The authorization grant type is not supported by the authorization server.";
