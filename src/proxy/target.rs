//! Which methods, paths and queries are forwarded at all.
//!
//! One parser: the bytes that are checked are the bytes that are sent. Nothing is decoded but copies to look at.

use std::borrow::Cow;
use std::str::FromStr;

use actix_web::http::Method;
use url::form_urlencoded;

use crate::error::{ApiError, Code};

/// A path and query of a DataHUB that we forward, as the app wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a>(&'a str);

impl<'a> Target<'a> {
    /// `raw` begins with the slash after the DataHUB's id.
    ///
    /// # Errors
    /// [`TargetError`]; nothing has been sent then.
    pub fn parse(raw: &'a str, policy: &Policy) -> Result<Self, TargetError> {
        let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
        if !path.starts_with('/') || path.contains('\\') {
            return Err(TargetError::Malformed);
        }
        // A front proxy or GitLab may decode once more than we do.
        let once = decoded(path.as_bytes());
        let twice = decoded(&once);
        if [path.as_bytes(), &once, &twice].into_iter().any(has_dot_segment_or_control) {
            return Err(TargetError::Malformed);
        }
        if has_credential(query) {
            return Err(TargetError::Credential);
        }
        if !(policy.graphql && raw == GRAPHQL) {
            policy.permit(path)?;
        }
        Ok(Self(raw))
    }

    /// Whether what it does is in the body, which has a policy of its own.
    pub fn is_graphql(&self) -> bool {
        self.0 == GRAPHQL
    }

    /// The same bytes.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

/// Whether `method` is one that GitLab's API has; TRACE, CONNECT and whatever is made up are not.
pub fn is_forwarded(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS]
        .contains(method)
}

/// Whether a decoded parameter name is one that GitLab takes as a credential or an override.
pub fn is_credential(name: &str) -> bool {
    CREDENTIAL_NAMES.contains(&plain(name))
}

/// Whether the name of such a parameter is anywhere in `text`.
pub fn mentions_credential(text: &[u8]) -> bool {
    CREDENTIAL_NAMES.iter().any(|name| memchr::memmem::find(text, name.as_bytes()).is_some())
}

/// A parameter's name as Rack 2 reads it (`lib/rack/query_parser.rb`): brackets before it do not count, nor does what follows
/// the next one.
fn plain(name: &str) -> &str {
    let is_bracket = |letter| matches!(letter, '[' | ']');
    let name = name.trim_start_matches(|letter: char| is_bracket(letter) || letter.is_whitespace());
    name.split(is_bracket).next().unwrap_or(name)
}

/// Why a target is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Dot segments, control characters, backslashes, in any encoding.
    #[error("the path leads elsewhere or holds a control character")]
    Malformed,
    /// A parameter that GitLab might prefer to our token.
    #[error("the query holds a credential")]
    Credential,
    /// What would make or change credentials.
    #[error("the policy forwards nothing that makes credentials")]
    CredentialEndpoint,
    /// Nothing that the policy lets through.
    #[error("the policy does not forward this path")]
    NotForwarded,
}

impl From<TargetError> for ApiError {
    fn from(error: TargetError) -> Self {
        let code = match error {
            TargetError::Malformed => Code::BadRequestTarget,
            TargetError::Credential => Code::CredentialParameter,
            TargetError::CredentialEndpoint => Code::CredentialEndpoint,
            TargetError::NotForwarded => Code::NotForwarded,
        };
        Self::because(code, error)
    }
}

/// GitLab's REST API without what would make one visit of a hostile script a lasting credential, and without what is for
/// administrators and machines; and what `proxy.*` adds to that.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Whether calls to `/api/graphql` are forwarded, after a look into their bodies.
    pub graphql: bool,
    /// What is forwarded although it makes credentials.
    pub exceptions: Vec<CredentialEndpoint>,
}

impl Policy {
    /// An encoded slash makes no segment, and `%61pi` is `api` to GitLab, so it is to us; so are `//`, a slash at the end,
    /// a format such as `.json` and capital letters.
    fn permit(&self, path: &str) -> Result<(), TargetError> {
        let segments: Vec<_> = path.split('/').map(|segment| decoded(segment.as_bytes())).collect();
        let mut segments = segments.iter().map(|segment| &**segment).skip(1);
        let is_api = segments.next() == Some(b"api") && segments.next() == Some(b"v4");
        let names = segments.filter(|segment| !segment.is_empty());
        let names: Vec<&[u8]> = names.map(|name| &name[..memchr::memchr(b'.', name).unwrap_or(name.len())]).collect();
        let first = names.first().copied().unwrap_or_default();
        let is_below = |pattern: &str| {
            // Most patterns begin with another word and are done with here.
            let may_be = pattern.as_bytes().get(..first.len()).is_some_and(|start| start.eq_ignore_ascii_case(first));
            let mut given = names.iter();
            may_be
                && pattern.split('/').all(|wanted| {
                    given.next().is_some_and(|name| wanted == "*" || name.eq_ignore_ascii_case(wanted.as_bytes()))
                })
        };
        if !is_api || names.is_empty() || ADMIN_ENDPOINTS.iter().any(|pattern| is_below(pattern)) {
            return Err(TargetError::NotForwarded);
        }
        let is_credential =
            |endpoint: &&'static str| is_below(endpoint) && !self.exceptions.contains(&CredentialEndpoint(endpoint));
        if CREDENTIAL_ENDPOINTS.iter().any(is_credential) { Err(TargetError::CredentialEndpoint) } else { Ok(()) }
    }
}

/// One of the endpoints that make credentials, named as in the list of them: `projects/*/triggers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CredentialEndpoint(&'static str);

impl FromStr for CredentialEndpoint {
    type Err = UnknownEndpoint;

    fn from_str(text: &str) -> Result<Self, UnknownEndpoint> {
        CREDENTIAL_ENDPOINTS.into_iter().find(|endpoint| *endpoint == text).map(Self).ok_or(UnknownEndpoint)
    }
}

/// Not in the list: what is not refused needs no exception, and a pattern of one's own might open more than was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {}", CREDENTIAL_ENDPOINTS.join(", "))]
pub struct UnknownEndpoint;

/// Rack 2 splits queries at `;` too. `token` is refused here only: in a body it is a parameter like any other.
fn has_credential(query: &str) -> bool {
    query
        .split(['&', ';'])
        .flat_map(|piece| form_urlencoded::parse(piece.as_bytes()))
        .any(|(name, _)| is_credential(&name) || plain(&name) == "token")
}

/// Whether a piece between slashes or backslashes is `.` or `..`, parameters (`;…`) aside, or holds a control character.
fn has_dot_segment_or_control(path: &[u8]) -> bool {
    path.iter().any(u8::is_ascii_control)
        || path.split(|byte| matches!(byte, b'/' | b'\\')).any(|piece| {
            let name = piece.split(|byte| *byte == b';').next().unwrap_or(piece);
            matches!(name, b"." | b"..")
        })
}

/// Percent-decoded once (RFC 3986 section 2.1); what is no escape stays.
fn decoded(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.contains(&b'%') {
        return Cow::Borrowed(bytes);
    }
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if let (b'%', Some(high), Some(low)) = (byte, digit(at + 1), digit(at + 2)) {
            out.push(u8::try_from(high * 16 + low).expect("two hex digits are a byte"));
            at += 3;
        } else {
            out.push(*byte);
            at += 1;
        }
    }
    Cow::Owned(out)
}

/// What authenticates or overrides (GitLab `lib/gitlab/auth/auth_finders.rb`, `config/initializers/doorkeeper.rb`).
const CREDENTIAL_NAMES: [&str; 12] = [
    "access_token",
    "authenticity_token",
    "bearer_token",
    "feed_token",
    "job_token",
    "oauth_token",
    "personal_access_token",
    "private_token",
    "rss_token",
    "secret_token",
    "sudo",
    "_method",
];

/// GitLab's GraphQL endpoint, in the only spelling that is forwarded.
const GRAPHQL: &str = "/api/graphql";

/// Below `/api/v4/`: what makes credentials or takes accounts over. `*` is any one segment; what lies below counts too.
const CREDENTIAL_ENDPOINTS: [&str; 39] = [
    "ai/duo_workflows/direct_access",
    "applications",
    "code_suggestions/direct_access",
    "deploy_keys",
    "deploy_tokens",
    "groups/*/access_tokens",
    "groups/*/deploy_tokens",
    "groups/*/manage",
    "groups/*/runners",
    "groups/*/service_accounts",
    "groups/*/ssh_certificates",
    "groups/*/variables",
    "personal_access_tokens",
    "projects/*/access_tokens",
    "projects/*/cluster_agents/*/tokens",
    "projects/*/deploy_keys",
    "projects/*/deploy_tokens",
    "projects/*/error_tracking/client_keys",
    "projects/*/feature_flags_client/reset_token",
    "projects/*/pipeline_schedules/*",
    "projects/*/pipelines/*/variables",
    "projects/*/runners",
    "projects/*/secure_files",
    "projects/*/service_accounts",
    "projects/*/triggers",
    "projects/*/variables",
    "runners",
    "service_accounts",
    "user/emails",
    "user/gpg_keys",
    "user/keys",
    "user/personal_access_tokens",
    "user/runners",
    "user/support_pin",
    "users/*/emails",
    "users/*/gpg_keys",
    "users/*/impersonation_tokens",
    "users/*/keys",
    "users/*/personal_access_tokens",
];

/// Below `/api/v4/`: for administrators and for GitLab's own machines.
const ADMIN_ENDPOINTS: [&str; 9] =
    ["admin", "application", "features", "geo", "hooks", "internal", "jobs/request", "license", "sidekiq"];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Result<Target<'_>, TargetError> {
        Target::parse(raw, &Policy::default())
    }

    #[test]
    fn what_gitlab_takes_is_forwarded_as_it_is() {
        for raw in [
            "/api/v4/projects",
            "/api/v4/projects?min_access_level=30&page=2",
            "/api/v4/projects/lu98be%2Ftestarc?license=true",
            "/api/v4/projects/group%2fsub%2fproj%2Ename/repository/branches",
            "/api/v4/projects/230/repository/files/100%25%20sure%252Fnot.txt/raw?ref=main",
            "/api/v4/projects/230/repository/files/a+b;c,d@e!f(g)'h*~.csv/raw?ref=v1.0.0-rc.1",
            "/api/v4/projects/1/jobs?scope[]=success&scope%5B%5D=manual",
            "/api/v4/version?",
            "/api/v4/version/",
            "/api/v4//version",
            "/api/v4/projects/a..b/...",
            "/api/v4/projects/1/repository/files/.gitattributes",
            "/%61pi/v4/user",
            "/api/v4/projects?search=token&tokens=1",
        ] {
            assert_eq!(parse(raw), Ok(Target(raw)), "{raw}");
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused_in_every_spelling() {
        for path in [
            "/api/v4/projects/1/../../../oauth/token",
            "/api/v4/%2e%2e/%2e%2e/users/sign_in",
            "/api/v4/projects/..%2f..%2fadmin",
            "/api/v4/./user",
            "/api/v4/projects/x%5c..%5cy",
            "/api/v4/projects/x\\..\\y",
            "/api/v4/projects/%252e%252e%252fadmin",
            "/api/v4/projects/.%2e/x",
            "/api/v4/..;/x",
            "/api/v4/user%00",
            "/api/v4/user%0d%0aX:y",
            "/api/v4/user%250a",
            "/api/v4/..",
            "api/v4/user",
            "",
        ] {
            assert_eq!(parse(path), Err(TargetError::Malformed), "{path}");
        }
    }

    #[test]
    fn what_is_not_the_api_is_not_forwarded() {
        for path in [
            "/",
            "/api",
            "/api/v4",
            "/api/v4/",
            "/api/v3/user",
            "/API/v4/user",
            "/oauth/token",
            "/-/profile",
            "/x/api/v4/user",
            "/api%2fv4/user",
            "//evil.test/api/v4/user",
            "/api/graphql",
            "/group/project.git/info/refs",
        ] {
            assert_eq!(parse(path), Err(TargetError::NotForwarded), "{path}");
        }
    }

    #[test]
    fn a_credential_in_the_query_is_refused() {
        for query in [
            "private_token=x",
            "access%5Ftoken=x",
            "a=1;access_token=x",
            "bearer_token[]=x",
            "sudo=root",
            "a&_method=DELETE",
            "token=x",
            "%74oken%5b%5d=x",
            "[private_token]=x",
            "a=1&%5Bsudo%5D=x",
            "]sudo=x",
            "[[access_token=x",
            "sudo]=x",
            "a=1;%20sudo=x",
        ] {
            let raw = format!("/api/v4/user?{query}");
            assert_eq!(parse(&raw), Err(TargetError::Credential), "{query}");
        }
    }

    /// PQ-02.
    #[test]
    fn what_makes_credentials_is_refused_in_every_spelling_and_its_neighbours_are_not() {
        for path in CREDENTIAL_ENDPOINTS.map(|pattern| format!("/api/v4/{}", pattern.replace('*', "group%2Fproject"))) {
            for spelling in [
                path.clone(),
                format!("{path}/7"),
                format!("{path}/"),
                format!("{path}.json"),
                path.replace("v4/", "v4//"),
            ] {
                assert_eq!(parse(&spelling), Err(TargetError::CredentialEndpoint), "{spelling}");
            }
        }
        for path in ["/api/v4/%75ser/keys", "/api/v4/user/KEYS", "/api/v4/projects/1//%61ccess_tokens"] {
            assert_eq!(parse(path), Err(TargetError::CredentialEndpoint), "{path}");
        }
        for path in ADMIN_ENDPOINTS.map(|pattern| format!("/api/v4/{pattern}")) {
            assert_eq!(parse(&path), Err(TargetError::NotForwarded), "{path}");
        }
        for path in [
            "/api/v4/user",
            "/api/v4/users/7",
            "/api/v4/projects/1/repository/branches/triggers",
            "/api/v4/projects/1/repository/files/access_tokens?ref=main",
            "/api/v4/projects/runners%2Fkeys",
            "/api/v4/projects/1/jobs",
            "/api/v4/groups/runners",
        ] {
            assert_eq!(parse(path), Ok(Target(path)), "{path}");
        }
    }

    /// PQ-02.
    #[test]
    fn an_exception_opens_what_it_names_and_nothing_else() {
        let policy = Policy { graphql: false, exceptions: vec!["projects/*/triggers".parse().expect("it is known")] };
        let own = "/api/v4/projects/1/triggers/7";
        assert_eq!(Target::parse(own, &policy), Ok(Target(own)));
        for path in CREDENTIAL_ENDPOINTS.iter().filter(|endpoint| **endpoint != "projects/*/triggers") {
            let raw = format!("/api/v4/{}", path.replace('*', "1"));
            assert_eq!(Target::parse(&raw, &policy), Err(TargetError::CredentialEndpoint), "{raw}");
        }
        for text in ["/**", "*", "", "projects", "projects/*/triggers/", "user/keys/*", "admin", "USER/KEYS"] {
            assert_eq!(text.parse::<CredentialEndpoint>(), Err(UnknownEndpoint), "{text}");
        }
    }

    /// PQ-03.
    #[test]
    fn graphql_has_one_spelling_and_is_closed_unless_it_is_opened() {
        let open = Policy { graphql: true, ..Policy::default() };
        assert_eq!(parse("/api/graphql"), Err(TargetError::NotForwarded));
        assert!(Target::parse("/api/graphql", &open).is_ok_and(|target| target.is_graphql()));
        for raw in [
            "/api/graphql/",
            "/api/graphql?query={a}",
            "/api/graphql?",
            "/api//graphql",
            "/api/%67raphql",
            "/-/graphql",
        ] {
            assert_eq!(Target::parse(raw, &open), Err(TargetError::NotForwarded), "{raw}");
        }
        assert!(Target::parse("/api/v4/graphql", &open).is_ok_and(|target| !target.is_graphql()));
    }

    /// PQ-01, PQ-06: of a million random targets each is refused, or it is the very bytes, on the same host for a WHATWG
    /// parser too, and within the policy as another reading of it has it.
    #[test]
    fn of_a_million_random_targets_only_those_of_the_policy_pass_and_pass_as_they_are() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let (mut passed, mut refused) = (0, 0);
        for _ in 0..1_000_000 {
            let mut raw = if dice.roll(8) == 0 { String::new() } else { "/api/v4".to_owned() };
            for _ in 0..dice.roll(7) {
                raw.push_str(PIECES[dice.roll(PIECES.len())]);
            }
            match parse(&raw) {
                Ok(target) => {
                    assert_eq!(target.as_str(), raw);
                    assert!(is_plainly_good(&raw), "{raw}");
                    passed += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(passed > 100_000 && refused > 100_000, "{passed} passed, {refused} were refused");
    }

    fn is_plainly_good(raw: &str) -> bool {
        let url = url::Url::parse(&format!("http://hub{raw}")).expect("it is a URL");
        let same = url.as_str().strip_prefix("http://hub") == Some(raw);
        let path = url.path().to_owned();
        let mut once = String::new();
        for segment in path.split('/').skip(1) {
            let text = format!("a={}", segment.replace('+', "%2B").replace('&', "%26"));
            let (_, decoded) = form_urlencoded::parse(text.as_bytes()).next().expect("one pair");
            once = format!("{once}/{}", decoded.replace('/', "%2F"));
        }
        let Some(below) = once.strip_prefix("/api/v4/") else { return false };
        let names: Vec<String> = below
            .split('/')
            .filter(|name| !name.is_empty())
            .map(|name| name.split('.').next().expect("at least one").to_lowercase())
            .collect();
        let is_denied = CREDENTIAL_ENDPOINTS.iter().chain(&ADMIN_ENDPOINTS).any(|pattern| {
            let wanted: Vec<_> = pattern.split('/').collect();
            names.len() >= wanted.len()
                && wanted.iter().zip(&names).all(|(wanted, name)| *wanted == "*" || wanted == name)
        });
        same && !is_denied && !names.is_empty() && !below.replace("%2F", "/").split('/').any(|piece| piece == "..")
    }

    const PIECES: [&str; 48] = [
        "/",
        "/",
        "/",
        "//",
        "/projects",
        "/1",
        "/group%2Fproject",
        "/user",
        "/%75ser",
        "/users",
        "/keys",
        "/KEYS",
        "/triggers.json",
        "/access_tokens",
        "/runners",
        "/admin",
        "/..",
        "/.",
        "/...",
        "%2e%2e",
        ".%2E",
        "%2F",
        "%5c",
        "\\",
        "%00",
        "%0d%0a",
        "%252e%252e%252f",
        "..;",
        ";x",
        "?",
        "?a=b",
        "&c[]=d",
        "?private_token=x",
        "&sudo=1",
        ";access%5Ftoken=x",
        "@evil.test",
        ":80",
        "//evil.test",
        "/repository",
        "/files",
        "/a+b",
        "%",
        "%zz",
        ".json",
        "/api/v4",
        "/personal_access_tokens",
        "/graphql",
        "/variables",
    ];

    /// Xorshift: the same million every time.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).expect("31 bits fit") % sides
        }
    }
}
