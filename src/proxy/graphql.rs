//! GraphQL, where `proxy.graphql` opens it: one operation a call, as JSON, and nothing about credentials.
//!
//! GitLab has one path for everything, so the policy of paths does not see what a call does. Here the operation is parsed
//! and the names of its fields are read, wherever in the document they stand. GitLab names a mutation by what it
//! changes (`personalAccessTokenCreate`) and a token by that word, so the words in a name are what is refused, however they
//! are joined; a call may so be refused that would have done no harm, and none passes because its name was not in a list.

use actix_web::http::Method;
use apollo_parser::Parser;
use apollo_parser::cst::{CstNode, Definition, Field, FragmentDefinition};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::context::RequestContext;
use crate::error::{ApiError, Code};
use crate::http::head::RequestHead;
use crate::http::server::ServerConnection;
use crate::proxy::failure::Failure;
use crate::proxy::inspect::{self, RequestBody};

/// The body of a call to `/api/graphql`, if it is one that we forward.
///
/// # Errors
/// `method_not_allowed` but for POST; `bad_request` for anything but one well-formed operation in JSON, introspection
/// among it; `body_too_large` above 64 KiB; `credential_endpoint` for what is about credentials.
pub(super) async fn inspect(
    request: &RequestHead,
    downstream: &mut ServerConnection,
    context: &RequestContext,
) -> Result<RequestBody, Failure> {
    if *request.method() != Method::POST {
        return Err(ApiError::method_not_allowed("POST").into());
    }
    let fields = request.fields();
    let kind =
        fields.values("content-type").next().and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or(kind).trim();
    if !essence.eq_ignore_ascii_case("application/json") || fields.contains("content-encoding") {
        return Err(ApiError::from(GraphqlError::NotJson).into());
    }
    let body = inspect::buffer(request.body, downstream, context).await?.ok_or(Code::BodyTooLarge)?;
    check(&body).map_err(ApiError::from)?;
    Ok(RequestBody::Buffered(body))
}

/// Why a GraphQL call is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum GraphqlError {
    /// Another Content-Type, or a Content-Encoding.
    #[error("a GraphQL call must be JSON")]
    NotJson,
    /// Not one object of `query`, `variables`, `operationName` and `extensions`: a batch, say.
    #[error("the body is not one GraphQL call")]
    NotOneCall,
    /// None, or several to choose from.
    #[error("the query is not one operation")]
    NotOneOperation,
    /// Not GraphQL, too deep, or no operation of a client's: a subscription, a schema.
    #[error("the query is not a GraphQL query or mutation")]
    NotGraphql,
    /// `__schema` or `__type`.
    #[error("introspection is not forwarded")]
    Introspection,
    /// A field about tokens, keys, secrets or CI variables.
    #[error("the operation is about credentials")]
    Credential,
}

impl From<GraphqlError> for ApiError {
    fn from(error: GraphqlError) -> Self {
        let code = if error == GraphqlError::Credential { Code::CredentialEndpoint } else { Code::BadRequest };
        Self::because(code, error)
    }
}

/// What GitLab reads of a call (`app/controllers/graphql_controller.rb`). Other names are refused: with `_json` it would
/// read a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GraphqlRequest<'a> {
    #[serde(borrow)]
    query: std::borrow::Cow<'a, str>,
    #[serde(rename = "variables")]
    _variables: Option<IgnoredAny>,
    #[serde(rename = "operationName")]
    _operation_name: Option<IgnoredAny>,
    #[serde(rename = "extensions")]
    _extensions: Option<IgnoredAny>,
}

/// Whether GitLab might find other fields in it than our parser. To GitLab (graphql-ruby's `lexer.rb`) a comment goes on behind a
/// lone carriage return, and a block string may end with five quotes; an app has variables instead of block strings. Before that it
/// makes an escape of each newline between two quotes (`app/controllers/graphql_controller.rb`, graphql-ruby's `language.rb`), also
/// where they stand in comments, which would not end there then: so each line has an even number of them.
fn is_ambiguous(query: &str) -> bool {
    query.contains("\"\"\"")
        || query.split("\r\n").any(|line| line.contains('\r'))
        || query.replace("\\\"", "").split('\n').any(|line| line.matches('"').count() % 2 == 1)
}

fn check(body: &[u8]) -> Result<(), GraphqlError> {
    let call: GraphqlRequest<'_> = serde_json::from_slice(body).map_err(|_| GraphqlError::NotOneCall)?;
    if is_ambiguous(&call.query) {
        return Err(GraphqlError::NotGraphql);
    }
    let tree = Parser::new(&call.query).recursion_limit(MAX_DEPTH).token_limit(MAX_TOKENS).parse();
    if tree.errors().next().is_some() {
        return Err(GraphqlError::NotGraphql);
    }
    let (mut changes, mut operations) = (false, 0);
    for definition in tree.document().definitions() {
        match definition {
            Definition::FragmentDefinition(_) => {}
            Definition::OperationDefinition(operation) => match operation.operation_type() {
                Some(kind) if kind.subscription_token().is_some() => return Err(GraphqlError::NotGraphql),
                kind => {
                    operations += 1;
                    changes |= kind.is_some_and(|kind| kind.mutation_token().is_some());
                }
            },
            _ => return Err(GraphqlError::NotGraphql),
        }
    }
    let document = tree.document();
    let mut has_pairs = false;
    let mut pairs = Vec::new();
    for field in document.syntax().descendants().filter_map(Field::cast) {
        let name = plain_name(&field).ok_or(GraphqlError::NotGraphql)?;
        if matches!(&*name, "schema" | "type") && field.name().is_some_and(|name| name.text().starts_with("__")) {
            return Err(GraphqlError::Introspection);
        }
        let speaks_of = |words: &[&str]| words.iter().any(|word| name.contains(word));
        if speaks_of(&SECRET) || (changes && speaks_of(&CHANGED)) {
            return Err(GraphqlError::Credential);
        }
        has_pairs |= name.contains(PAIRS);
        if matches!(&*name, "key" | "value") {
            pairs.push(field);
        }
    }
    if has_pairs && pairs.iter().any(may_be_of_pair) {
        return Err(GraphqlError::Credential);
    }
    if operations == 1 { Ok(()) } else { Err(GraphqlError::NotOneOperation) }
}

/// A field's name in small letters and without `_`: `createToken2`, `TOKEN_create` and `apitokenCreate` all say `token`.
fn plain_name(field: &Field) -> Option<String> {
    Some(field.name()?.text().replace('_', "").to_ascii_lowercase())
}

/// Whether a `key` or `value` stands below a field of headers, or in a fragment, which may be spread there.
fn may_be_of_pair(field: &Field) -> bool {
    field.syntax().ancestors().skip(1).any(|above| {
        FragmentDefinition::can_cast(above.kind())
            || Field::cast(above).and_then(|field| plain_name(&field)).is_some_and(|name| name.contains(PAIRS))
    })
}

/// What a script could keep once it has read it, and what only people should change. Some of it holds a token without saying
/// so: the addresses to which a person sends notes and issues (`createNoteEmail`, `newWorkItemEmailAddress`), and those of
/// their feeds (`rssPath`, `calendarPath`).
const SECRET: [&str; 12] = [
    "accesskey",
    "apikey",
    "calendarpath",
    "credential",
    "emailaddress",
    "noteemail",
    "password",
    "privatekey",
    "rsspath",
    "secret",
    "token",
    "variable",
];
/// What lets somebody in once it has been changed. People may end and run a schedule; who makes one gives it variables. A
/// workspace gets a token of the person who makes it, in the cluster of an agent.
const CHANGED: [&str; 12] = [
    "certificate",
    "clusteragent",
    "identity",
    "key",
    "oauth",
    "pipelineschedulecreate",
    "pipelinescheduleupdate",
    "remotedevelopment",
    "runner",
    "serviceaccount",
    "trigger",
    "workspace",
];
/// Pairs of `key` and `value` that webhooks and other destinations send: the values are passwords. Those of variables are
/// refused by that word.
const PAIRS: &str = "header";

/// GitLab's own limit is 20 levels or so.
const MAX_DEPTH: usize = 100;
const MAX_TOKENS: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(query: &str) -> Result<(), GraphqlError> {
        check(serde_json::json!({ "query": query, "variables": {}, "operationName": null }).to_string().as_bytes())
    }

    /// PQ-03.
    #[test]
    fn what_people_do_passes() {
        for query in [
            "{ currentUser { username } }",
            "query($p: ID!) { project(fullPath: $p) { id } }",
            "query { project(fullPath: \"a/personalAccessTokenCreate\") { token: id } }",
            "mutation { createNote(input: {noteableId: \"1\", body: \"a token, a key\"}) { note { id __typename } } }",
            "query A { a { ...F } } fragment F on B { c runner { id } key }",
            "{ a { headers { nodes { id active } } values { key value } } }",
            "query A { headers { ...F } } fragment F on Header { id }",
            "{ serviceAccounts { nodes { username } } runners { key } }",
            "{ workspaces { nodes { url } } project { clusterAgents { nodes { name } } } }",
            "{ currentUser { publicEmail emails { nodes { email } } } namespace { linkPaths { newIssue labelsManage } } }",
            "mutation { workItemAddClosingMergeRequest(input: {}) { errors } issueSetEscalationStatus(input: {}) { errors } }",
            "mutation { createNote(input: {}) { note { author { publicEmail } } } }",
            "mutation { pipelineScheduleDelete(input: {}) { errors } pipelineSchedulePlay(input: {}) { errors } }",
        ] {
            assert_eq!(checked(query), Ok(()), "{query}");
        }
    }

    /// PQ-02, PQ-03.
    #[test]
    fn what_makes_or_shows_credentials_is_refused_wherever_it_stands() {
        for query in [
            "mutation { personalAccessTokenCreate(input: {}) { errors } }",
            "mutation { harmless: projectDeployTokenCreate(input: {}) { errors } }",
            "mutation M { ... on Mutation { clusterAgentTokenCreate(input: {}) { secret } } }",
            "mutation M { ...F } fragment F on Mutation { runnerCreate(input: {}) { errors } }",
            "fragment F on Mutation { pipelineTriggerCreate(input: {}) { errors } } query Q { a } mutation M { ...F }",
            "mutation { createNote(input: {}) { errors } sshKeyCreate(input: {}) { errors } }",
            "mutation\u{feff}#x\n{httpIntegrationCreate(input:{}){integration{token}}}",
            "{ project(fullPath: \"a\") { ciVariables { nodes { value } } } }",
            "mutation { personal_access_token_create(input: {}) { errors } }",
            "{ project(fullPath: \"a\") { pipelineTriggers { nodes { token } } } }",
            // A word is found inside a name, however it is joined.
            "mutation { createToken2(input: {}) { errors } }",
            "mutation { TOKENcreate(input: {}) { errors } }",
            "mutation { apitokenCreate(input: {}) { errors } }",
            "mutation { to_ken_create(input: {}) { errors } }",
            "mutation { serviceAccountCreate(input: {}) { errors } }",
            "mutation { namespaceServiceAccountCreate(input: {}) { errors } }",
            "mutation { deployKEYcreate(input: {}) { errors } }",
            "mutation { sshcertificateCreate(input: {}) { errors } }",
            "mutation { pipelineScheduleCreate(input: {}) { errors } }",
            "{ instanceVARIABLES2 { nodes { id } } }",
            "{ user { apitokens { id } passwordHash } }",
            // What webhooks send.
            "{ group { destinations { nodes { headers { nodes { key } } } } } }",
            "{ group { customHeaders { value } } }",
            "{ group { headers { ... on Header { nodes { a: value } } } } }",
            "query Q { group { headers { ...F } } } fragment F on Header { key }",
        ] {
            assert_eq!(checked(query), Err(GraphqlError::Credential), "{query}");
        }
    }

    /// PQ-02, PQ-03: what GitLab 18 has of it, by kind. Each stands in a query or a mutation as GitLab would take it.
    #[test]
    fn what_gitlab_has_that_makes_or_shows_credentials_is_refused() {
        let shown = [
            // Addresses and feeds that hold a person's token.
            "project { issue { createNoteEmail } }",
            "project { mergeRequest { createNoteEmail } }",
            "workItem { createNoteEmail }",
            "namespace { linkPaths { newWorkItemEmailAddress } }",
            "namespace { linkPaths { rssPath } }",
            "namespace { linkPaths { calendarPath } }",
            "currentUser { incomingEmailToken }",
            "currentUser { feedToken }",
            "currentUser { staticObjectToken }",
            // Tokens.
            "currentUser { personalAccessTokens { nodes { id } } }",
            "project { accessTokens { nodes { id } } }",
            "project { runnersToken }",
            "group { runnerRegistrationToken }",
            "runner { ephemeralAuthenticationToken }",
            "project { clusterAgent { tokens { nodes { id } } } }",
            "project { ciJobTokenScope { projects { nodes { id } } } }",
            "project { deployTokens { nodes { id } } }",
            "project { dastSiteTokens { nodes { id } } }",
            "project { pipelineTriggers { nodes { token } } }",
            // Variables and secrets.
            "project { ciVariables { nodes { value } } }",
            "project { inheritedCiVariables { nodes { key } } }",
            "group { ciVariables { nodes { value } } }",
            "ciVariables { nodes { value } }",
            "project { ciConfigVariables { value } }",
            "project { pipelineSchedules { nodes { variables { nodes { value } } } } }",
            "project { job { manualVariables { nodes { value } } } }",
            "project { environmentScopedCiVariables { nodes { value } } }",
            "projectSecrets { nodes { name } }",
            "groupSecrets { nodes { name } }",
            "secretPermissions { nodes { id } }",
            // What integrations send and are asked with.
            "project { alertManagementHttpIntegrations { nodes { token } } }",
            "project { grafanaIntegration { token } }",
            "project { productAnalyticsSettings { cubeApiKey } }",
            "group { externalAuditEventDestinations { nodes { verificationToken } } }",
            "group { externalAuditEventStreamingDestinations { nodes { secretToken } } }",
            "group { amazonS3Configurations { nodes { accessKeyXid } } }",
            "googleCloudLoggingConfigurations { nodes { privateKey } }",
            "project { dastProfile { dastSiteProfile { auth { password } } } }",
        ];
        let changed = [
            "personalAccessTokenCreate",
            "personalAccessTokenRotate",
            "projectAccessTokenCreate",
            "groupAccessTokenCreate",
            "clusterAgentTokenCreate",
            "clusterAgentTokenRevoke",
            "deployTokenCreate",
            "runnerCreate",
            "runnerUpdate",
            "runnersRegistrationTokenReset",
            "pipelineTriggerCreate",
            "pipelineScheduleCreate",
            "ciJobTokenScopeAddProject",
            "ciJobTokenScopeUpdatePolicies",
            "ciVariableCreate",
            "projectVariableUpdate",
            "projectSecretCreate",
            "projectSecretsManagerInitialize",
            "groupSecretUpdate",
            "secretsPermissionUpdate",
            "sshKeyCreate",
            "keyCreate",
            "gpgKeyCreate",
            "deployKeyCreate",
            "sshCertificateCreate",
            "serviceAccountCreate",
            "namespaceServiceAccountTokenCreate",
            "httpIntegrationResetToken",
            "prometheusIntegrationResetToken",
            "dastSiteTokenCreate",
            "namespacesRegenerateNewWorkItemEmailAddress",
            "workspaceCreate",
            "workspaceUpdate",
            "namespaceCreateRemoteDevelopmentClusterAgentMapping",
            "organizationCreateClusterAgentMapping",
            "createClusterAgent",
            "clusterAgentUrlConfigurationCreate",
            "aiFlowTriggerCreate",
            "oauthApplicationCreate",
            "groupSamlIdentityUpdate",
            "cloudProviderAwsAccessKeyCreate",
        ];
        let shown = shown.map(|fields| format!("query {{ a {{ {fields} }} }}"));
        let changed = changed.map(|fields| format!("mutation {{ {fields}(input: {{}}) {{ errors }} }}"));
        for query in shown.iter().chain(&changed) {
            let as_alias = query.replace("{ a {", "{ b: a {");
            for query in [query, &as_alias] {
                assert_eq!(checked(query), Err(GraphqlError::Credential), "{query}");
            }
        }
    }

    /// PQ-03.
    #[test]
    fn what_is_no_one_operation_is_refused() {
        for query in ["{ __schema { types { name } } }", "{ a: __type(name: \"Query\") { name } }"] {
            assert_eq!(checked(query), Err(GraphqlError::Introspection), "{query}");
        }
        for query in ["", "{", "{ a", "type A { b: C }", "subscription { a }", "mutation { a } garbage", &deep(200)] {
            assert_eq!(checked(query), Err(GraphqlError::NotGraphql), "{query}");
        }
        for query in [
            "{project(fullPath:\"g/p\"){id #\r a(x:1)\n}}",
            "{project(fullPath:\"g/p\"){id #\r a(x:\"\"\"\n runnersToken #\"\"\")\n}}",
            "{a(b:[\"\"\"a\"\"\"\"\"\"g/p\"]){runnersToken} c(d:\"\"\"]){id} # \"\"\"){id}\n}",
            "{ a(b: \"\"\"c\"\"\") }",
            "{project(fullPath:\"g/p\"){id #\"\na(x:[ #\"\nrunnersToken #\"\n]) #\"\n}}",
            "mutation($i:A!){__typename #\"\n(x:\"\nrunnerCreate(input:$i){errors} #\")#\"\n}",
            "{a(x:\"b\\\\\") #\nc(x:[ #\"\nrunnersToken\n])\n}",
        ] {
            assert_eq!(checked(query), Err(GraphqlError::NotGraphql), "{query:?}");
        }
        for query in [
            "{project(fullPath:\"g/p\"){id #\r\n a(x:\"\")\n}}",
            "{a(x:\"b \\\"c\\\"\") #\"d\"\n{id}}",
            "{a #it's\n{id}}",
        ] {
            assert_eq!(checked(query), Ok(()), "{query:?}");
        }
        assert_eq!(checked(&deep(20)), Ok(()));
        for query in ["query A { a } query B { b }", "query A { a } mutation B { b }", "fragment F on A { a }"] {
            assert_eq!(checked(query), Err(GraphqlError::NotOneOperation), "{query}");
        }
        for body in [
            r#"[{"query":"{a}"}]"#,
            r#"{"_json":[{"query":"{a}"}]}"#,
            r#"{"query":"{a}","_json":[]}"#,
            r#"{"query":"{a}","query":"mutation{b}"}"#,
            r#"{"query":"{a}"} {"query":"{b}"}"#,
            r#"{"query":["{a}"]}"#,
            r#"{/**/"query":"{a}"}"#,
            r#"{"Query":"{a}"}"#,
            "{}",
            "",
        ] {
            assert_eq!(check(body.as_bytes()), Err(GraphqlError::NotOneCall), "{body}");
        }
    }

    /// The parser's stack holds whatever fits into a body.
    #[test]
    fn the_deepest_nonsense_is_an_error_and_no_more() {
        for piece in ["{a", "[", "(a:", "{a(b:{c:", "...on A{", "@a(b:[", "\"\"\"", "#"] {
            let query = piece.repeat(60_000 / piece.len());
            assert!(checked(&query).is_err(), "{piece}");
            assert!(checked(&format!("{{a(b:{query}")).is_err(), "{piece}");
        }
    }

    fn deep(levels: usize) -> String {
        format!("{}a{}", "{a".repeat(levels), "}".repeat(levels))
    }
}
