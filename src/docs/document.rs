//! The API's document: OpenAPI 3.1, made of what the code has: its codes and texts, the JSON that it speaks, the methods that it
//! takes, its limits.

use serde_json::{Value, json};
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::info::InfoBuilder;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::server::Server;
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{OpenApi, OpenApiBuilder, RefOr, Required};
use utoipa::{PartialSchema as _, ToSchema as _};

use crate::docs::failures::{self, Failures};
use crate::docs::paths::paths;
use crate::error::{Code, Problem};
use crate::metrics;

/// What differs between gateways.
#[derive(Debug, Clone)]
pub struct Description {
    /// What stands before every route; begins with a slash and ends without one.
    pub base_path: String,
    /// Longest target of a forwarded call, in bytes.
    pub max_target: usize,
    /// Longest body of a forwarded call, in bytes.
    pub max_body: u64,
}

/// The document of one gateway. `schemas` is the JSON of its own routes, by name.
pub fn document(description: &Description, schemas: Vec<(String, RefOr<Schema>)>) -> OpenApi {
    let base = if description.base_path.is_empty() { "/" } else { &description.base_path };
    let tags = TAGS.map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build());
    let info = InfoBuilder::new().title("arcmanager-gateway").version(metrics::VERSION).description(Some(ABOUT));
    let (problems, codes) = (Problem::name(), Code::name());
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .schema(codes, Code::schema())
        .schema(problems, Problem::schema())
        .parameter("csrf", csrf())
        .header("request_id", header("Names this request, in our log, too."))
        .header("location", header("Where to go."))
        .header("retry_after", header("Seconds to wait before the next try."))
        .security_scheme("session", cookie(COOKIES[0].0, COOKIES[0].1))
        .security_scheme("sid", cookie(COOKIES[1].0, COOKIES[1].1));
    let mut failures = Failures::default();
    let paths = paths(description.max_target, description.max_body, &mut failures);
    let components = components.responses_from_iter(failures.into_responses());
    let components =
        failures::examples().fold(components, |components, (name, example)| components.example(name, example));
    let cookies: Vec<_> = COOKIES
        .iter()
        .map(|(name, holds, attributes)| json!({ "name": name, "holds": holds, "attributes": attributes }))
        .collect();
    let mut document = OpenApiBuilder::new()
        .info(info)
        .servers(Some([Server::new(base)]))
        .tags(Some(tags))
        .paths(paths)
        .components(Some(components.build()))
        .build();
    document.extensions = Some(ExtensionsBuilder::new().add("x-cookies", Value::Array(cookies)).build());
    document
}

fn header(description: &str) -> Header {
    HeaderBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .description(Some(description))
        .build()
}

fn csrf() -> Parameter {
    let text = "What a client sends that is no browser, or one without Fetch Metadata. Browsers of today need nothing.";
    let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["1"]));
    let parameter = ParameterBuilder::new().name("X-CSRF").parameter_in(ParameterIn::Header).required(Required::False);
    parameter.description(Some(text)).schema(Some(schema)).build()
}

fn cookie(name: &str, holds: &str) -> SecurityScheme {
    SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(name, holds)))
}

/// Each cookie: its name, what it holds, its attributes.
const COOKIES: [(&str, &str, &str); 9] = [
    ("__Host-Http-session-{datahub}", "The sealed session at one DataHUB.", SEALED),
    ("__Host-Http-sid-{datahub}", "Names the login that the session belongs to; it opens beside no other.", SEALED),
    ("__Host-Http-login", "Logins under way, sealed.", "Secure; HttpOnly; SameSite=Lax; Path=/; Max-Age"),
    (
        "gateway-login-note",
        "That a login came back without its cookie, for /auth/session. At https it is called `__Host-Http-login-note`.",
        "HttpOnly; SameSite=Strict; Path=/; Max-Age",
    ),
    ("logged_in", "`true`, with app.arcmanager.", READABLE),
    ("timer", "When the access token ends, less 7,200 s, with app.arcmanager.", READABLE),
    ("username", "The person's name, with app.arcmanager.", READABLE),
    ("pat", "`true` for a session with a personal access token, with app.arcmanager.", READABLE),
    (
        "error",
        "What the app alerts after a login that failed, with app.arcmanager.",
        "Secure; SameSite=Strict; Path=/; Max-Age",
    ),
];
const SEALED: &str = "Secure; HttpOnly; SameSite=Strict; Path=/; Max-Age";
const READABLE: &str = "Secure; SameSite=Strict; Path=/";
const TAGS: [(&str, &str); 4] = [
    ("login", "Getting in: links for people, not calls."),
    ("session", "Who is logged in, for how long, and getting out."),
    ("datahub", "Everything else: GitLab's own API, with the token attached."),
    ("documents", "What you read now."),
];
/// What one must know before the first call, in Markdown's plainest form.
const ABOUT: &str = "A backend-for-frontend gateway for GitLab. Your single-page app calls it by same-origin `fetch`; it holds the tokens, in cookies that no script can read.\n\n\
    Only this origin's own script may call: Fetch Metadata says so by itself, in every browser of today; anything else sends `X-CSRF: 1`. All else is 403 `cross_site_request`.\n\n\
    Every failure of the gateway is `application/problem+json`; act on its `code`. An error of another media type is the DataHUB's own.\n\n\
    When an access token is renewed, a call is answered by 307 to itself, which `fetch` follows; nothing was sent to the DataHUB before.";
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::docs::paths::{DATAHUB_ID, example_sessions};

    fn written() -> Value {
        let description = Description { base_path: "/api".into(), max_target: 8192, max_body: 1 << 30 };
        let schemas = crate::auth::schemas();
        serde_json::to_value(document(&description, schemas)).expect("it is JSON")
    }

    /// The names below a place of the document, each `$ref` followed.
    fn references(value: &Value, into: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                into.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|value| references(value, into));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, into)),
            _ => {}
        }
    }

    #[test]
    fn every_code_is_the_example_of_a_response() {
        let mut named = BTreeSet::new();
        // A response is made when a call needs it.
        references(&written(), &mut named);
        for code in Code::ALL {
            assert!(named.contains(&format!("#/components/examples/{}", code.as_str())), "{code:?}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let (document, mut named) = (written(), BTreeSet::new());
        references(&document, &mut named);
        assert!(!named.is_empty());
        for place in named {
            assert!(document.pointer(place.trim_start_matches('#')).is_some(), "{place}");
        }
    }

    /// Adds the routes of each file of `folder`: in the sources one stands as `web::resource("…")`, below the base path.
    fn read_routes(folder: &Path, routes: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                read_routes(&path, routes);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(path).expect("a text");
                let code = text.split("#[cfg(test)]\nmod tests").next().expect("what stands before the tests");
                let named = code.split("web::resource(\"").skip(1).filter_map(|rest| rest.split('"').next());
                routes.extend(named.map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_route_of_the_code_is_in_the_document_and_none_besides() {
        let mut routes = BTreeSet::new();
        read_routes(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut routes);
        assert!(routes.insert("/datahubs/{datahub}/{path}".into()), "the proxy is no route of actix-web");
        let document = written();
        let documented: BTreeSet<_> = document["paths"].as_object().expect("paths").keys().cloned().collect();
        assert_eq!(documented, routes);
    }

    #[test]
    fn the_pattern_of_an_id_is_the_one_that_is_parsed() {
        let longest = DATAHUB_ID.split(['{', '}']).nth(1).expect("a repetition");
        assert_eq!(longest, "0,30", "with both ends 32, as `DataHubId` says");
        for text in ["a", "a-b", "a_b", &"a".repeat(32)] {
            assert!(text.parse::<crate::datahub::DataHubId>().is_ok(), "{text}");
        }
    }

    #[test]
    fn the_example_of_a_session_has_every_member_that_its_schema_requires() {
        let (document, example) = (written(), example_sessions());
        for (name, value) in
            [("Sessions", &example), ("Session", &example["sessions"][0]), ("User", &example["sessions"][0]["user"])]
        {
            let schema = &document["components"]["schemas"][name];
            let (known, required) = (schema["properties"].as_object().expect(name), &schema["required"]);
            let members = value.as_object().expect("an object");
            assert!(members.keys().all(|member| known.contains_key(member)), "{name}");
            for member in required.as_array().expect("a list") {
                assert!(members.contains_key(member.as_str().expect("a name")), "{name}: {member}");
            }
        }
    }
}
