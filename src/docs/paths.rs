//! Every route, in OpenAPI.

use bytesize::ByteSize;
use serde_json::{Value, json};
use utoipa::openapi::content::{Content, ContentBuilder};
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem, PathItemBuilder, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, Type, empty};
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Ref, RefOr, Required};

use crate::docs::failures::{ANY, EVERYWHERE, FORWARDED, Failures, answer};
use crate::error::Code;
use crate::guard::{self, METHODS};

/// Every route, each with all its methods, below the base path. `max_target` and `max_body` are in bytes.
pub(super) fn paths(max_target: usize, max_body: u64, failures: &mut Failures) -> PathsBuilder {
    let changes = [Code::UnknownDatahub, Code::PrefetchRefused, Code::CrossSiteRequest];
    let paths = PathsBuilder::new()
        .path("/datahubs", own([("GET", datahubs()), ("HEAD", datahubs())], &[], failures))
        .path("/auth/login", own([("GET", login())], &[Code::UnknownDatahub, Code::PrefetchRefused], failures))
        .path("/auth/callback", own([("GET", callback())], &[Code::PrefetchRefused], failures))
        .path("/auth/session", own([("GET", session()), ("HEAD", session())], &[Code::CrossSiteRequest], failures))
        .path("/auth/refresh", {
            let by_get = form("Renew the access tokens now, by GET", "Session refresh was successful!");
            let codes = [&changes[..], &REFRESH].concat();
            own([("POST", refresh()), ("GET", by_get)], &codes, failures)
        })
        .path("/auth/logout", {
            let by_get = form("Log out, by GET", "logout successful");
            own([("POST", logout()), ("GET", by_get)], &changes, failures)
        })
        .path("/auth/addPAT", own([("PUT", add_pat())], &[&changes[..], &ADD_PAT].concat(), failures))
        .path("/datahubs/{datahub}/{path}", forwarded(max_target, max_body, failures));
    let to_the_page = || operation("documents", "Leads to the page", "").response("307", to("To `/docs/`."));
    let paths = paths.path("/docs", own([("GET", to_the_page()), ("HEAD", to_the_page())], &[], failures));
    DOCUMENTS.into_iter().fold(paths, |paths, (path, kind, summary)| {
        let file = || {
            let file = answer("The file.").content(kind, Content::new(Some(empty())));
            let same = answer("The file is the one of `If-None-Match`.");
            operation("documents", summary, "").response("200", file).response("304", same)
        };
        paths.path(path, own([("GET", file()), ("HEAD", file())], &[], failures))
    })
}

fn datahubs() -> OperationBuilder {
    let text = "For a login chooser. With `\"anonymous\": true` what is public there can be read without a login.";
    let list: Schema = ArrayBuilder::new().items(Ref::from_schema_name("DataHub")).into();
    let example = json!([{
        "id": "tuebingen",
        "name": "Tübingen",
        "description": "For all members",
        "url": "https://gitlab.example.org",
    }]);
    operation("login", "The DataHUBs one can log in at", text)
        .response("200", answer("All of them, in the order of their ids.").content(JSON, content(list, example)))
}

fn login() -> OperationBuilder {
    let text = "For a link or `location.assign`, not for `fetch`. A login that fails comes back to the app with \
        `?login_error=`: `denied`, `expired`, `unavailable`, `cookies_blocked`, `busy` or `failed`. A link from another \
        site starts nothing and leads to the app.";
    let return_to = "A path of this origin where people go after the login; without it they go to the app.";
    let prompt = "What the DataHUB asks, even of those who are logged in there.";
    operation("login", "Log in", text)
        .parameter(datahub(Required::True))
        .parameter(query("return_to", return_to, text_schema()).example(Some(json!("/arcmanager/app/"))))
        .parameter(query("prompt", prompt, words(&["login", "select_account", "consent"])))
        .response("302", to("To the DataHUB. Sets `__Host-Http-login`."))
        .response("303", to("To the app, with `?login_error=` unless it was a link from another site."))
}

fn callback() -> OperationBuilder {
    let text = "Only the DataHUB makes links to it. Sets `__Host-Http-session-{datahub}` and \
        `__Host-Http-sid-{datahub}`, and spends one login of `__Host-Http-login`.";
    operation("login", "The DataHUB sends people back", text)
        .parameter(query("datahub", "Its id.", id_schema()))
        .parameter(query("state", "What the login sent.", text_schema()))
        .parameter(query("code", "What the gateway gets tokens for.", text_schema()))
        .parameter(query("error", "Instead of `code`: why there is none.", text_schema()))
        .response("303", to("To `return_to` or the app; with `?login_error=` if it failed."))
}

fn session() -> OperationBuilder {
    let text = "Asks no DataHUB and holds no token. Without a session the list is empty, and `login_error` says for five \
        minutes if the last login failed because cookies are blocked.";
    ours("session", "Who is logged in", text)
        .response("200", answer("The sessions that open.").content(JSON, sessions()))
}

fn refresh() -> OperationBuilder {
    let text = "Calls renew them by themselves. Ask before a `fetch` that cannot be sent again: with `redirect: \
        \"manual\"`, with a stream for a body, or after a 409 `refresh_first`. Each session is treated by itself; the \
        status is 200 if one works at least.";
    let all = answer("The sessions as they are now, with `error` in each that was not renewed.");
    ours("session", "Renew the access tokens now", text)
        .parameter(datahub(Required::False))
        .response("200", all.content(JSON, sessions()))
}

fn logout() -> OperationBuilder {
    let text = "Revokes the tokens at the DataHUB and removes the cookies, with a session or without.";
    ours("session", "Log out", text).parameter(datahub(Required::False)).response("204", answer("Logged out."))
}

/// What the ARCmanager's app of today does by GET.
fn form(summary: &str, said: &str) -> OperationBuilder {
    let text = "For the ARCmanager's app of today, with `app.arcmanager`; else 405. Needs Fetch Metadata; `X-CSRF` does \
        not do.";
    ours("session", summary, text)
        .parameter(datahub(Required::False))
        .response("200", answer("A text.").content(TEXT, content(text_schema(), json!(said))))
}

fn add_pat() -> OperationBuilder {
    let text = "With `app.arcmanager`; else 404. Without `datahub` it is for the session that began last.";
    let said = json!("Your Personal Access token was added successfully!");
    let token = content(Ref::from_schema_name("PersonalToken"), json!({ "pat": "glpat-…" }));
    ours("session", "Go on with a personal access token", text)
        .parameter(datahub(Required::False))
        .request_body(Some(RequestBodyBuilder::new().content(JSON, token).required(Some(Required::True)).build()))
        .response("200", answer("The session goes on with it.").content(TEXT, content(text_schema(), said)))
}

/// The proxy, by every method that there is.
fn forwarded(max_target: usize, max_body: u64, failures: &mut Failures) -> PathItem {
    let limits = format!("at most {}, a body {}", ByteSize(max_target as u64), ByteSize(max_body));
    let text = format!(
        "The gateway adds the access token, and renews it before it ends. Status, body and fields are those of the \
        DataHUB; an error without `application/problem+json` is its own. Links in `Link` and `Location` lead through the \
        gateway. Path and query are {limits}. What makes or changes credentials is not forwarded, nor what is no API or \
        file."
    );
    let path = "The path at the DataHUB, with its slashes as they are, and its query behind it.";
    let anything = || Content::new(Some(empty()));
    let item = METHODS.into_iter().fold(PathItemBuilder::new(), |item, name| {
        let is_safe = name.parse().is_ok_and(|method| guard::is_safe(&method));
        let body = (!is_safe).then(|| {
            let text = "Whatever the DataHUB takes. It is sent again if tokens are renewed first, but for a stream.";
            RequestBodyBuilder::new().description(Some(text)).content(ANY, anything()).build()
        });
        let datahub = parameter("datahub", ParameterIn::Path, "Its id, not an alias.", id_schema());
        let operation = ours("datahub", &format!("Call the DataHUB by {name}"), &text)
            .parameter(datahub.example(Some(json!("tuebingen"))))
            .parameter(
                parameter("path", ParameterIn::Path, path, text_schema()).example(Some(json!("api/v4/projects"))),
            )
            .request_body(body)
            .security(SecurityRequirement::new("session", [""; 0]).add("sid", [""; 0]))
            .security(SecurityRequirement::default())
            .response("default", answer("The DataHUB's answer.").content(ANY, anything()));
        let more: &[Code] = if is_safe { &[] } else { &[Code::PrefetchRefused] };
        item.operation(method(name), failures.add(operation, &[&FORWARDED[..], &EVERYWHERE, more].concat(), true))
    });
    item.build()
}

/// One of our own routes: each method, and how each may fail beside what any request may meet.
fn own<const N: usize>(operations: [(&str, OperationBuilder); N], codes: &[Code], failures: &mut Failures) -> PathItem {
    let codes = [codes, &EVERYWHERE, &[Code::MethodNotAllowed]].concat();
    let item = operations.into_iter().fold(PathItemBuilder::new(), |item, (name, operation)| {
        item.operation(method(name), failures.add(operation, &codes, false))
    });
    item.build()
}

fn operation(tag: &str, summary: &str, description: &str) -> OperationBuilder {
    OperationBuilder::new()
        .tag(tag)
        .summary(Some(summary))
        .description(Some(description).filter(|text| !text.is_empty()))
}

/// A call that only this origin's own script may make.
fn ours(tag: &str, summary: &str, description: &str) -> OperationBuilder {
    operation(tag, summary, description).parameter_ref(Ref::new("#/components/parameters/csrf"))
}

fn to(description: &str) -> Response {
    answer(description).header_ref("Location", Ref::new("#/components/headers/location")).build()
}

fn content(schema: impl Into<RefOr<Schema>>, example: Value) -> Content {
    ContentBuilder::new().schema(Some(schema)).example(Some(example)).build()
}

fn query(name: &str, description: &str, schema: Schema) -> ParameterBuilder {
    parameter(name, ParameterIn::Query, description, schema)
}

fn parameter(name: &str, place: ParameterIn, description: &str, schema: Schema) -> ParameterBuilder {
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(description))
        .schema(Some(schema))
}

fn datahub(required: Required) -> Parameter {
    let text = "A DataHUB's id or alias.";
    query("datahub", text, text_schema()).required(required).example(Some(json!("tuebingen"))).build()
}

fn text_schema() -> Schema {
    ObjectBuilder::new().schema_type(Type::String).into()
}

fn words(words: &[&str]) -> Schema {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.iter().copied())).into()
}

fn id_schema() -> Schema {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(DATAHUB_ID)).into()
}

fn method(name: &str) -> HttpMethod {
    match name {
        "GET" => HttpMethod::Get,
        "HEAD" => HttpMethod::Head,
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "PATCH" => HttpMethod::Patch,
        "DELETE" => HttpMethod::Delete,
        "OPTIONS" => HttpMethod::Options,
        other => unreachable!("{other} is none of guard::METHODS"),
    }
}

fn sessions() -> Content {
    content(Ref::from_schema_name("Sessions"), example_sessions())
}

pub(super) fn example_sessions() -> Value {
    json!({
        "sessions": [{
            "datahub": "tuebingen",
            "user": { "id": "7", "username": "testuser", "name": "Test User" },
            "scopes": ["openid", "profile", "api"],
            "expires_at": "2026-01-31T14:00:00Z",
            "session_ends_at": "2026-02-01T12:00:00Z",
        }],
        "now": "2026-01-31T12:00:00Z",
    })
}

/// How a refresh may fail besides.
const REFRESH: [Code; 4] = [Code::NotLoggedIn, Code::SessionExpired, Code::SessionSuperseded, Code::RefreshUnavailable];
/// How a personal access token may fail besides.
const ADD_PAT: [Code; 7] = [
    Code::NotLoggedIn,
    Code::SessionExpired,
    Code::PatRefused,
    Code::RateLimited,
    Code::NotFound,
    Code::DatahubUnreachable,
    Code::DatahubInvalidResponse,
];
/// The documents themselves: path, media type, what each is.
const DOCUMENTS: [(&str, &str, &str); 8] = [
    ("/openapi.json", JSON, "This document"),
    ("/docs/", HTML, "A page that shows this document and makes its calls"),
    ("/docs/check", HTML, "A page that says what is wrong between this browser and the gateway"),
    ("/docs/page.css", "text/css", "The pages' style"),
    ("/docs/page.js", "text/javascript", "The script of the first"),
    ("/docs/check.js", "text/javascript", "The script of the second"),
    ("/client.js", "text/javascript", "The client for apps, an ES module"),
    ("/client.d.ts", TEXT, "Its types"),
];
/// [`crate::datahub::DataHubId`], as a regular expression.
pub(super) const DATAHUB_ID: &str = "^(?!.*__)[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?$";
const JSON: &str = "application/json";
const HTML: &str = "text/html";
const TEXT: &str = "text/plain";
