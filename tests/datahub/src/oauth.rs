//! Login as GitLab offers it: OpenID Connect discovery, authorization code with PKCE, refresh, revocation.

mod authorize;
pub mod grants;
mod id_token;
mod token;

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::http::Request;
use crate::http::response::Response;
use crate::hub::Hub;
use crate::oauth::grants::{Pair, Refusal};
use crate::pages;
use crate::params::Params;
use crate::world::User;

/// Whether this path is answered here.
pub fn serves(path: &str) -> bool {
    path.starts_with("/oauth/") || path.starts_with("/.well-known/")
}

/// Whether it asks for tokens.
pub fn is_token_request(request: &Request) -> bool {
    request.method == "POST" && request.path() == "/oauth/token"
}

/// `params` are `None` if they cannot be read.
pub async fn answer(hub: &Hub, request: &Request, params: Option<&Params>) -> Response {
    let Some(params) = params else {
        return Response::json(400, &json!({ "status": 400, "error": "Bad Request" }));
    };
    let now = SystemTime::now();
    match (request.method.as_str(), request.path()) {
        ("GET" | "HEAD", "/.well-known/openid-configuration") => {
            hub.counts().discoveries += 1;
            let mut metadata = metadata(&hub.url);
            if hub.behaviour().announces_iss {
                metadata["authorization_response_iss_parameter_supported"] = true.into();
            }
            Response::json(200, &metadata)
        }
        ("GET" | "HEAD", "/oauth/discovery/keys") => {
            hub.counts().key_fetches += 1;
            Response::json(200, &id_token::key_set(hub.behaviour().signing_key))
        }
        ("GET" | "HEAD", "/oauth/authorize") => authorize::ask(hub, request, params).unwrap_or_else(|refusal| refusal),
        ("POST", "/oauth/authorize") => authorize::decide(hub, params, now).unwrap_or_else(|refusal| refusal),
        ("POST", "/oauth/token") => token::answer(hub, request, params).await,
        ("POST", "/oauth/revoke") => token::revoke(hub, request, params, now),
        ("GET" | "POST", "/oauth/userinfo") => userinfo(hub, request, now),
        ("GET", "/oauth/token/info") => token_info(hub, request, now),
        _ => Response::html(404, pages::not_found(hub)),
    }
}

fn metadata(url: &str) -> Value {
    json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/oauth/authorize"),
        "token_endpoint": format!("{url}/oauth/token"),
        "revocation_endpoint": format!("{url}/oauth/revoke"),
        "introspection_endpoint": format!("{url}/oauth/introspect"),
        "userinfo_endpoint": format!("{url}/oauth/userinfo"),
        "jwks_uri": format!("{url}/oauth/discovery/keys"),
        "scopes_supported": SCOPES,
        "response_types_supported": ["code"],
        "response_modes_supported": ["query", "fragment", "form_post"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "claim_types_supported": ["normal"],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "name", "nickname", "preferred_username", "email",
            "email_verified", "website", "profile", "picture", "groups"],
        "code_challenge_methods_supported": ["plain", "S256"],
    })
}

fn userinfo(hub: &Hub, request: &Request, now: SystemTime) -> Response {
    hub.counts().userinfos += 1;
    let pair = match hub.grants().authenticate(request.bearer().unwrap_or_default(), now) {
        Ok(pair) => pair,
        // Doorkeeper tells it in the header only.
        Err(refusal) => {
            return Response::new(401).header("WWW-Authenticate", invalid_token(refusal));
        }
    };
    let world = hub.world();
    let user = world.users.iter().find(|user| user.id == pair.user && pair.has_scope("openid"));
    let groups = hub.behaviour().userinfo_groups;
    user.map_or_else(|| Response::new(403), |user| Response::json(200, &claims(user, &hub.url, &pair, groups)))
}

fn claims(user: &User, url: &str, pair: &Pair, groups: usize) -> Value {
    let more = (1..groups).map(|number| format!("plantlab/{number:0>68}"));
    let groups: Vec<String> = ["plantlab".to_owned()].into_iter().take(groups).chain(more).collect();
    let mut claims = json!({
        "sub": user.id.to_string(),
        "name": user.name,
        "nickname": user.username,
        "preferred_username": user.username,
        "profile": format!("{url}/{}", user.username),
        "picture": null,
        "groups": groups,
    });
    if pair.has_scope("email") {
        claims["email"] = user.email().into();
        claims["email_verified"] = true.into();
    }
    claims
}

fn token_info(hub: &Hub, request: &Request, now: SystemTime) -> Response {
    match hub.grants().authenticate(request.bearer().unwrap_or_default(), now) {
        Ok(pair) => {
            let scopes: Vec<&str> = pair.scopes.split(' ').collect();
            let expires_in = pair.expires_in(now).as_secs();
            Response::json(
                200,
                &json!({
                    "resource_owner_id": pair.user,
                    "scope": scopes,
                    "expires_in": expires_in,
                    "application": { "uid": hub.client_id },
                    "created_at": grants::seconds(pair.created),
                    "scopes": scopes,
                    "expires_in_seconds": expires_in,
                }),
            )
        }
        Err(refusal) => {
            Response::json(401, &json!({ "error": "invalid_token", "error_description": describe(refusal) }))
                .header("WWW-Authenticate", invalid_token(refusal))
        }
    }
}

fn invalid_token(refusal: Refusal) -> String {
    challenge("Doorkeeper", "invalid_token", describe(refusal))
}

fn describe(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Unknown => "The access token is invalid",
        Refusal::Expired => "The access token expired",
        Refusal::Revoked => "The access token was revoked",
    }
}

/// An error of the token endpoint (RFC 6749, section 5.2), with the fields around it.
pub fn error(status: u16, error: &str, why: &str) -> Response {
    Response::json(status, &json!({ "error": error, "error_description": why }))
        .header("Cache-Control", "no-store, no-cache")
        .header("WWW-Authenticate", challenge("Doorkeeper", error, why))
}

/// The value of `WWW-Authenticate`.
pub fn challenge(realm: &str, error: &str, description: &str) -> String {
    format!(r#"Bearer realm="{realm}", error="{error}", error_description="{description}""#)
}

const SCOPES: [&str; 8] =
    ["api", "read_api", "read_user", "read_repository", "write_repository", "openid", "profile", "email"];
const INVALID_CLIENT: &str = "Client authentication failed due to unknown client, no client authentication included, \
                              or unsupported authentication method.";
const INVALID_SCOPE: &str = "The requested scope is invalid, unknown, or malformed.";
