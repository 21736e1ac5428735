//! How calls fail, in OpenAPI: one response for each set of codes, made of the table in [`crate::error`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use utoipa::ToSchema as _;
use utoipa::openapi::content::{Content, ContentBuilder};
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::path::OperationBuilder;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::empty;
use utoipa::openapi::{Ref, RefOr};

use crate::error::{ApiError, Code, Problem};

/// The responses that say how calls fail, each by the names of its codes: many calls fail alike.
#[derive(Default)]
pub(super) struct Failures(BTreeMap<String, Response>);

impl Failures {
    /// All of them, by name.
    pub(super) fn into_responses(self) -> BTreeMap<String, Response> {
        self.0
    }

    /// Adds how an operation may fail: a response for each status, with an example for each code. What is forwarded may have
    /// the same status from the DataHUB, with any other media type.
    pub(super) fn add(&mut self, operation: OperationBuilder, codes: &[Code], is_forwarded: bool) -> OperationBuilder {
        let mut by_status: BTreeMap<u16, BTreeSet<&str>> = BTreeMap::new();
        for code in codes {
            by_status.entry(ApiError::from(*code).status().as_u16()).or_default().insert(code.as_str());
        }
        by_status.into_iter().fold(operation, |operation, (status, names)| {
            let origin = if is_forwarded { ".or_datahub" } else { "" };
            let name = names.iter().copied().collect::<Vec<_>>().join(".") + origin;
            let reference = Ref::from_response_name(&name);
            self.0.entry(name).or_insert_with(|| failure(status, &names, is_forwarded));
            operation.response(status.to_string(), reference)
        })
    }
}

/// The response with one of these codes.
fn failure(status: u16, names: &BTreeSet<&str>, is_forwarded: bool) -> Response {
    let codes = Code::ALL.into_iter().filter(|code| names.contains(code.as_str()));
    let details: Vec<_> = codes.map(|code| format!("`{}`: {}", code.as_str(), detail(code))).collect();
    let examples = names.iter().map(|name| (*name, Ref::new(format!("#/components/examples/{name}"))));
    let problem = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(Problem::name())))
        .examples_from_iter(examples.map(|(name, example)| (name, RefOr::<Example>::Ref(example))));
    let mut response = answer(&details.join("\n\n")).content(PROBLEM, problem.build());
    if matches!(status, 429 | 502 | 503) {
        response = response.header_ref("Retry-After", Ref::new("#/components/headers/retry_after"));
    }
    if status == 307 {
        response = response.header_ref("Location", Ref::new("#/components/headers/location"));
    }
    if is_forwarded {
        response = response.content(ANY, Content::new(Some(empty())));
    }
    response.build()
}

/// An answer of the gateway's, which has a request id as each has.
pub(super) fn answer(description: &str) -> ResponseBuilder {
    ResponseBuilder::new()
        .description(description)
        .header_ref("X-Request-Id", Ref::new("#/components/headers/request_id"))
}

/// What each code looks like, by its name.
pub(super) fn examples() -> impl Iterator<Item = (&'static str, Example)> {
    Code::ALL.into_iter().map(|code| {
        let problem = problem(code);
        let title = problem["title"].as_str().unwrap_or_default();
        (code.as_str(), ExampleBuilder::new().summary(title).value(Some(problem.clone())).build())
    })
}

/// The body of a failure, as it is sent.
fn problem(code: Code) -> Value {
    serde_json::from_str(&ApiError::from(code).problem("6f2c1d0a9b8e47f3")).expect("it is JSON")
}

fn detail(code: Code) -> String {
    problem(code)["detail"].as_str().unwrap_or_default().to_owned()
}

/// What any request may meet, whatever it asks for.
pub(super) const EVERYWHERE: [Code; 9] = [
    Code::BadRequest,
    Code::BadRequestTarget,
    Code::RequestTimeout,
    Code::WrongHost,
    Code::HeadTooLarge,
    Code::Internal,
    Code::MethodNotImplemented,
    Code::UpgradeRefused,
    Code::Overloaded,
];
/// What a call to a DataHUB may meet besides.
pub(super) const FORWARDED: [Code; 18] = [
    Code::SessionSuperseded,
    Code::CredentialParameter,
    Code::NotLoggedIn,
    Code::SessionExpired,
    Code::CrossSiteRequest,
    Code::CredentialEndpoint,
    Code::UnknownDatahub,
    Code::NotForwarded,
    Code::NotFound,
    Code::RefreshFirst,
    Code::BodyTooLarge,
    Code::TargetTooLong,
    Code::RateLimited,
    Code::DatahubUnreachable,
    Code::DatahubInvalidResponse,
    Code::RefreshUnavailable,
    Code::Overloaded,
    Code::DatahubTimeout,
];
const PROBLEM: &str = "application/problem+json";
/// Any media type.
pub(super) const ANY: &str = "*/*";
