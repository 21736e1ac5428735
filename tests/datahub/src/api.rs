//! GitLab's REST API below `/api/v4`: who is asking, which resource, and the fields around every answer.

mod commits;
mod files;
mod jobs;
mod paging;
mod projects;
mod uploads;

use std::io;
use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::hex;
use crate::http::Request;
use crate::http::body::Body;
use crate::http::response::{Content, Response};
use crate::hub::Hub;
use crate::oauth;
use crate::oauth::grants::Refusal;
use crate::params::Params;
use crate::world::{Project, User, World};

pub async fn answer(hub: &Hub, request: &Request, body: &mut Body<'_>) -> io::Result<Response> {
    let call_number = {
        let mut counts = hub.counts();
        counts.api_calls += 1;
        counts.api_calls
    };
    let (response, caller) = match authenticate(hub, request) {
        Ok(user) => (route(hub, request, body, user.as_ref()).await?, user),
        Err(refusal) => (refusal, None),
    };
    let response = if hub.behaviour().names_caller {
        let name = caller.map_or_else(|| "nobody".to_owned(), |user| user.username);
        response.header("X-Gitlab-Caller", format!("{name} {} {}", request.method, request.target))
    } else {
        response
    };
    Ok(dress(hub, response, call_number))
}

/// Counts a call that carries a mark.
fn record_execution(hub: &Hub, request: &Request) {
    if let Some((_, mark)) = form_urlencoded::parse(request.query().as_bytes()).find(|(name, _)| name == "mark") {
        *hub.executions().entry(mark.into_owned()).or_default() += 1;
    }
}

/// One call, read to its end.
struct Call<'a> {
    hub: &'a Hub,
    request: &'a Request,
    user: Option<&'a User>,
    params: Params,
}

/// Both sides are what GitLab answers.
type Outcome = Result<Response, Response>;

/// `None` is somebody without a token: sees what is public.
fn authenticate(hub: &Hub, request: &Request) -> Result<Option<User>, Response> {
    let Some(token) = request.bearer() else {
        return Ok(None);
    };
    if form_urlencoded::parse(request.query().as_bytes()).any(|(name, _)| name == "access_token") {
        let why = "Both Authorization header and payload includes access token.";
        return Err(Response::json(400, &json!({ "error": "invalid_request", "error_description": why })));
    }
    let personal = hub.behaviour().personal_tokens.iter().find(|known| known.token == token).map(|known| known.user);
    if let Some(user) = personal {
        return Ok(hub.world().user(user).cloned());
    }
    let why = match hub.grants().authenticate(token, SystemTime::now()) {
        Ok(pair) if pair.has_scope("api") || pair.has_scope("read_api") && is_safe(request) => {
            if hub.is_blocked(pair.user) {
                return Err(message(403, "403 Forbidden - Your account has been blocked."));
            }
            return Ok(hub.world().user(pair.user).cloned());
        }
        Ok(_) => {
            let why = "The request requires higher privileges than provided by the access token.";
            let body = json!({ "error": "insufficient_scope", "error_description": why, "scope": "api" });
            return Err(Response::json(403, &body)
                .header("WWW-Authenticate", oauth::challenge("The API", "insufficient_scope", why)));
        }
        Err(Refusal::Unknown) => return Err(unauthorized()),
        Err(Refusal::Expired) => "Token is expired. You can either do re-authorization or token refresh.",
        Err(Refusal::Revoked) => "Token was revoked. You have to re-authorize from the user.",
    };
    Err(Response::json(401, &json!({ "error": "invalid_token", "error_description": why }))
        .header("WWW-Authenticate", oauth::challenge("The API", "invalid_token", why)))
}

/// Segments are split while still encoded, so that `%2F` never makes one.
async fn route(hub: &Hub, request: &Request, body: &mut Body<'_>, user: Option<&User>) -> io::Result<Response> {
    let path = request.path().strip_prefix("/api/").unwrap_or_default();
    let decoded: Vec<String> = path
        .strip_suffix('/')
        .unwrap_or(path)
        .split('/')
        .map(|segment| percent_decode_str(segment).decode_utf8_lossy().into_owned())
        .collect();
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();

    // What may be larger than memory is taken as it comes.
    match (request.method.as_str(), segments.as_slice()) {
        ("POST", ["v4", "projects", id, "uploads"]) => {
            return uploads::attach(hub, request, body, user, id).await;
        }
        ("PUT", ["v4", "projects", id, "packages", "generic", file @ ..]) => {
            return uploads::put_package(hub, request, body, user, id, file).await;
        }
        _ => record_execution(hub, request),
    }
    let Some(params) = Params::read(request, body).await? else {
        return Ok(Response::json(400, &json!({ "error": "The request body cannot be read" })));
    };
    let call = Call { hub, request, user, params };
    let outcome = match segments.as_slice() {
        ["graphql"] => call.needs_user().map(|_| Response::json(200, &graphql())),
        ["v4", "projects", id, rest @ ..] => call.project(id, rest),
        ["v4", rest @ ..] => call.top_level(rest),
        _ => Err(no_route()),
    };
    Ok(outcome.unwrap_or_else(|refusal| refusal))
}

impl Call<'_> {
    /// HEAD is served as GET; its body is left out on the wire.
    fn method(&self) -> &str {
        if self.request.method == "HEAD" { "GET" } else { &self.request.method }
    }

    fn top_level(&self, segments: &[&str]) -> Outcome {
        let url = &self.hub.url;
        match (self.method(), segments) {
            ("GET", ["version"]) => {
                self.needs_user()?;
                let version = json!({ "version": "18.4.1", "revision": "0123456789a", "enterprise": false });
                Ok(Response::json(200, &version))
            }
            ("GET", ["user"]) => {
                let user = self.needs_user()?;
                let mut body = user_json(user, url);
                body["email"] = user.email().into();
                body["two_factor_enabled"] = false.into();
                Ok(Response::json(200, &body))
            }
            ("GET", ["personal_access_tokens", "self"]) => {
                let user = self.needs_user()?;
                let behaviour = self.hub.behaviour();
                let bearer = self.request.bearer();
                let token = behaviour.personal_tokens.iter().find(|known| Some(known.token.as_str()) == bearer);
                let token = token.ok_or_else(|| message(404, "404 Not Found"))?;
                let body = json!({
                    "id": 3,
                    "name": "for the ARCmanager",
                    "revoked": token.is_revoked,
                    "created_at": "2026-01-01T00:00:00.000Z",
                    "description": null,
                    "scopes": token.scopes,
                    "user_id": user.id,
                    "last_used_at": null,
                    "active": token.is_active,
                    "expires_at": token.expires_at,
                });
                Ok(Response::json(200, &body))
            }
            ("GET", ["users"]) => {
                self.needs_user()?;
                paging::by_number(self, &self.hub.world().users, |user| user_json(user, url))
            }
            ("GET", ["groups"]) => {
                self.needs_user()?;
                paging::by_number(self, &["plantlab"], |path| projects::namespace_json(path, url))
            }
            ("GET", ["broadcast_messages"]) => paging::by_number(self, &[] as &[Value], Value::clone),
            ("GET", ["projects"]) => projects::list(self),
            ("POST", ["projects"]) => projects::create(self),
            _ => Err(no_route()),
        }
    }

    fn project(&self, id: &str, rest: &[&str]) -> Outcome {
        if id == "old/name" {
            return Ok(Response::redirect(301, &format!("{}/api/v4/projects/81", self.hub.url)));
        }
        let mut world = self.hub.world();
        if let ("GET", ["packages", "generic", file @ ..]) = (self.method(), rest) {
            return uploads::get_package(self, &mut world, id, file);
        }
        if let ["members", ..] = rest {
            return projects::members(self, &mut world, id, rest);
        }
        let project = find(&mut world, id, self.user)?;
        match (self.method(), rest) {
            ("GET", []) => Ok(Response::json(200, &projects::project_json(project, &self.hub.url, self.user))),
            ("GET", ["repository", "tree"]) => files::tree(self, project),
            ("GET", ["repository", "files", path]) => files::show(self, project, path),
            ("GET", ["repository", "files", path, "raw"]) => files::raw(self, project, path),
            ("POST" | "PUT" | "DELETE", ["repository", "files", path]) => commits::change_file(self, project, path),
            ("GET", ["repository", archive]) if archive.starts_with("archive") => files::archive(self, project),
            ("GET", ["repository", "commits"]) => commits::list(self, project),
            ("POST", ["repository", "commits"]) => commits::create(self, project),
            ("GET", ["repository", "branches"]) => commits::branches(self, project),
            _ => projects::side_show(self, project, rest),
        }
    }

    fn needs_user(&self) -> Result<&User, Response> {
        self.user.ok_or_else(unauthorized)
    }

    fn needs(&self, name: &str) -> Result<&str, Response> {
        self.params.text(name).ok_or_else(|| missing(name))
    }
}

fn find<'w>(world: &'w mut World, id: &str, user: Option<&User>) -> Result<&'w mut Project, Response> {
    world.project(id, user).ok_or_else(|| message(404, "404 Project Not Found"))
}

/// A member of at least this access level; others are told 403, those without a token 401.
fn needs_level<'u>(project: &Project, user: Option<&'u User>, level: u64) -> Result<&'u User, Response> {
    let user = user.ok_or_else(unauthorized)?;
    if project.level_of(Some(user)) < level { Err(message(403, "403 Forbidden")) } else { Ok(user) }
}

fn is_safe(request: &Request) -> bool {
    matches!(request.method.as_str(), "GET" | "HEAD")
}

fn user_json(user: &User, url: &str) -> Value {
    json!({
        "id": user.id,
        "username": user.username,
        "name": user.name,
        "state": "active",
        "locked": false,
        "avatar_url": null,
        "web_url": format!("{url}/{}", user.username),
    })
}

/// The one query that the corpus of proxied calls sends.
fn graphql() -> Value {
    json!({ "data": { "project": { "id": "gid://gitlab/Project/230" } } })
}

fn message(status: u16, text: &str) -> Response {
    Response::json(status, &json!({ "message": text }))
}

fn missing(name: &str) -> Response {
    Response::json(400, &json!({ "error": format!("{name} is missing") }))
}

fn unauthorized() -> Response {
    message(401, "401 Unauthorized")
}

/// What Grape says where no route matches.
fn no_route() -> Response {
    Response::json(404, &json!({ "error": "404 Not Found" }))
}

/// The fields nginx, Workhorse and Rails put around an answer. A gateway must let few of them through.
fn dress(hub: &Hub, response: Response, call_number: u64) -> Response {
    let etag = match &response.content {
        Content::Bytes(bytes) if response.status < 300 => Some(format!("W/\"{}\"", &hex::digest(bytes)[..32])),
        _ => None,
    };
    let request_id = format!("01HUB{call_number:021}");
    let dressed = response
        .default_header("Cache-Control", "max-age=0, private, must-revalidate")
        .header("Server", "nginx")
        .header(
            "Set-Cookie",
            "_gitlab_session=0123456789abcdef0123456789abcdef; path=/; secure; HttpOnly; SameSite=None",
        )
        .header("Strict-Transport-Security", "max-age=63072000")
        .header("Vary", "Origin")
        .header("X-Content-Type-Options", "nosniff")
        .header("X-Frame-Options", "SAMEORIGIN")
        .header("X-Gitlab-Meta", format!(r#"{{"correlation_id":"{request_id}","version":"1"}}"#))
        .header("X-Request-Id", request_id)
        .header("X-Runtime", "0.012345")
        .header("RateLimit-Limit", "2000")
        .header("RateLimit-Name", "throttle_authenticated_api")
        .header("RateLimit-Observed", "1")
        .header("RateLimit-Remaining", "1999")
        .header("RateLimit-Reset", "1714651260");
    let dressed = etag.into_iter().fold(dressed, |response, etag| response.default_header("ETag", etag));
    let extra = hub.behaviour().extra_headers.clone();
    extra.iter().fold(dressed, |response, (name, value)| response.header(name, value))
}
