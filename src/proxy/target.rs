//! Which methods, paths and queries are forwarded at all.
//!
//! One parser: the bytes that are checked are the bytes that are sent. Nothing is decoded but copies to look at.
//!
//! Most targets hold nothing that a decoding would change: they are judged as they are, in one pass. The others are decoded
//! first, and held to the same rules.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::LazyLock;

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
        if let Some((names, query)) = plain_names(raw) {
            refuse_credentials(query)?;
            policy.check(names)?;
            return Ok(Self(raw));
        }
        let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
        if !path.starts_with('/') || path.contains('\\') {
            return Err(TargetError::Malformed);
        }
        // A front proxy or GitLab may decode once more than we do. What is wrong before a decoding is wrong after it, too.
        if has_dot_segment_or_control(&decoded(&decoded(path.as_bytes()))) {
            return Err(TargetError::Malformed);
        }
        refuse_credentials(query.as_bytes())?;
        if !(policy.graphql && raw == GRAPHQL) {
            policy.check_path(path)?;
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

/// Whether a decoded parameter name is one that GitLab takes as a credential or an override.
pub(super) fn is_credential(name: &str) -> bool {
    CREDENTIAL_NAMES.contains(&base_name(name))
}

/// Whether the name of such a parameter is anywhere in `text`.
pub(super) fn mentions_credential(text: &[u8]) -> bool {
    CREDENTIAL_NAMES.iter().any(|name| memchr::memmem::find(text, name.as_bytes()).is_some())
}

/// A parameter's name as Rack 2 reads it (`lib/rack/query_parser.rb`): brackets before it do not count, nor does what follows
/// the next one.
fn base_name(name: &str) -> &str {
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
    fn check_path(&self, path: &str) -> Result<(), TargetError> {
        let mut segments = path.as_bytes().split(|byte| *byte == b'/').skip(1);
        let is_api =
            ["api", "v4"].iter().all(|name| segments.next().is_some_and(|given| *decoded(given) == *name.as_bytes()));
        let mut names = [const { None }; MAX_NAMES];
        for (name, segment) in names.iter_mut().zip(segments.filter(|segment| is_api && !segment.is_empty())) {
            *name = Some(decoded(segment));
        }
        self.check(names.each_ref().map(|name| {
            let name = name.as_deref()?;
            Some(&name[..name.iter().position(|byte| *byte == b'.').unwrap_or(name.len())])
        }))
    }

    /// Judges a path by its names.
    fn check(&self, names: PathNames<'_>) -> Result<(), TargetError> {
        names[0].ok_or(TargetError::NotForwarded)?;
        // A path below a refused endpoint holds the endpoint's last name. Nearly all paths hold none that is like one.
        if !names.iter().flatten().any(|name| resembles_refused(name)) {
            return Ok(());
        }
        let is_below = |pattern: &str| {
            let mut given = names.iter().flatten();
            pattern.split('/').all(|wanted| {
                given.next().is_some_and(|name| wanted == "*" || name.eq_ignore_ascii_case(wanted.as_bytes()))
            })
        };
        if ADMIN_ENDPOINTS.into_iter().any(is_below) {
            return Err(TargetError::NotForwarded);
        }
        let mut refused =
            CREDENTIAL_ENDPOINTS.into_iter().map(CredentialEndpoint).filter(|endpoint| is_below(endpoint.0));
        match refused.find(|endpoint| !self.exceptions.contains(endpoint)) {
            Some(_) => Err(TargetError::CredentialEndpoint),
            None => Ok(()),
        }
    }
}

/// Whether a name has the first letter and the length of the last name of an endpoint that is refused. Few others have.
fn resembles_refused(name: &[u8]) -> bool {
    let lengths = name.first().map_or(0, |first| REFUSED_LENGTHS[usize::from(first.to_ascii_lowercase())]);
    name.len() < 32 && lengths >> name.len() & 1 == 1
}

/// By their first letter: the lengths of the last names of the endpoints that are refused, a bit for each length.
static REFUSED_LENGTHS: LazyLock<[u32; 256]> = LazyLock::new(|| {
    let mut lengths = [0; 256];
    for endpoint in ADMIN_ENDPOINTS.iter().chain(&CREDENTIAL_ENDPOINTS) {
        let name = endpoint.split('/').rfind(|name| *name != "*").expect("no endpoint is all stars");
        lengths[usize::from(name.as_bytes()[0])] |= 1 << name.len();
    }
    lengths
});

/// The first names below `/api/v4/`, of which there may be fewer.
type PathNames<'a> = [Option<&'a [u8]>; MAX_NAMES];

/// The first names below `/api/v4/`, and the query, of a target whose path means nothing but itself, however often it is
/// decoded: what nearly all targets are.
fn plain_names(raw: &str) -> Option<(PathNames<'_>, &[u8])> {
    let mut rest = raw.strip_prefix("/api/v4/")?.as_bytes();
    let (mut names, mut count) = ([None; MAX_NAMES], 0);
    loop {
        let (name, after) = rest.split_at(plain_length(rest));
        if !name.is_empty() && count < MAX_NAMES {
            names[count] = Some(name);
            count += 1;
        }
        match after.split_first() {
            None => return Some((names, b"")),
            Some((b'?', query)) => return Some((names, query)),
            Some((b'/', below)) => rest = below,
            Some(_) => return None,
        }
    }
}

/// How many bytes in front are letters, digits, `-` and `_`.
fn plain_length(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| !PLAIN[usize::from(*byte)]).unwrap_or(bytes.len())
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
fn refuse_credentials(query: &[u8]) -> Result<(), TargetError> {
    if query.is_empty() || !may_have_credential(query) {
        return Ok(());
    }
    let mut rest = query;
    while !rest.is_empty() {
        let (name, value) = rest.split_at(plain_length(rest));
        let length = value.iter().position(|byte| matches!(byte, b'&' | b';'));
        let is_refused = match value.first() {
            // Nothing in the name is to be decoded.
            None | Some(b'=' | b'&' | b';') => is_refused(name),
            Some(_) => {
                let piece = &rest[..name.len() + length.unwrap_or(value.len())];
                form_urlencoded::parse(piece).any(|(name, _)| is_refused(base_name(&name).as_bytes()))
            }
        };
        if is_refused {
            return Err(TargetError::Credential);
        }
        rest = length.map_or(b"", |length| &value[length + 1..]);
    }
    Ok(())
}

/// Whether a query contains `oke`, `udo` or `eth`, one of which is in every name that is refused, or a percent sign, which
/// may encode one. Few queries do. It goes by blocks, which compilers turn into vector instructions.
#[expect(clippy::needless_bitwise_bool, reason = "branches would keep compilers from that")]
fn may_have_credential(query: &[u8]) -> bool {
    const BLOCK: usize = 16;
    const SPAN: usize = BLOCK + 2;
    let mut padded = [0; SPAN];
    let query = match padded.get_mut(..query.len()) {
        Some(start) => {
            start.copy_from_slice(query);
            &padded
        }
        None => query,
    };
    let mut found = [false; BLOCK];
    let mut look = |span: &[u8; SPAN]| {
        for (at, found) in found.iter_mut().enumerate() {
            let is = |three: &[u8; 3]| (span[at] == three[0]) & (span[at + 1] == three[1]) & (span[at + 2] == three[2]);
            *found |= is(b"oke") | is(b"udo") | is(b"eth") | (span[at] == b'%');
        }
    };
    let mut rest = query;
    while let Some(span) = rest.first_chunk() {
        look(span);
        rest = &rest[BLOCK..];
    }
    // The last span overlaps the one before. No escape begins in the last two bytes.
    look(query.last_chunk().expect("at least as long as one"));
    found.contains(&true)
}

/// Whether a query may not have a parameter of this name.
fn is_refused(name: &[u8]) -> bool {
    // Most names differ from all of the list in their last letters.
    (name.ends_with(b"token") || matches!(name, b"sudo" | b"_method"))
        && (name == b"token" || CREDENTIAL_NAMES.iter().any(|credential| credential.as_bytes() == name))
}

/// Whether a piece between slashes or backslashes is `.` or `..`, parameters (`;…`) aside, or holds a control character.
fn has_dot_segment_or_control(path: &[u8]) -> bool {
    let is_dot_segment = |at: usize| {
        let is_first = at == 0 || matches!(path[at - 1], b'/' | b'\\');
        let rest = &path[at + 1..];
        let rest = rest.strip_prefix(b".").unwrap_or(rest);
        is_first && matches!(rest.first(), None | Some(b'/' | b'\\' | b';'))
    };
    path.iter().fold(false, |has, byte| has | byte.is_ascii_control())
        || memchr::memchr_iter(b'.', path).any(is_dot_segment)
}

/// Percent-decoded once (RFC 3986 section 2.1); what is no escape stays.
fn decoded(bytes: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = bytes.iter().position(|byte| *byte == b'%') else { return Cow::Borrowed(bytes) };
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut out, mut copied) = (Vec::with_capacity(bytes.len()), 0);
    for at in (first..bytes.len()).filter(|at| bytes[*at] == b'%') {
        if let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) {
            out.extend_from_slice(&bytes[copied..at]);
            out.push(u8::try_from(high * 16 + low).expect("two hex digits are a byte"));
            copied = at + 3;
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    Cow::Owned(out)
}

/// Letters, digits, `-` and `_`.
static PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let bytes = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
    let mut at = 0;
    while at < bytes.len() {
        plain[bytes[at] as usize] = true;
        at += 1;
    }
    plain
};

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

/// How many names the longest of these patterns has.
const MAX_NAMES: usize = 5;

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

    /// Two readings of the same rules: the one in use, and one that decodes everything and goes through the lists.
    #[test]
    fn the_quick_way_and_the_thorough_way_agree_on_random_targets() {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let exceptions = ["user/keys", "projects/*/triggers", "projects/*/cluster_agents/*/tokens"];
        let exceptions = exceptions.map(|endpoint| endpoint.parse().expect("it is known"));
        let policies = [Policy::default(), Policy { graphql: true, exceptions: exceptions.to_vec() }];
        let words: Vec<&str> = CREDENTIAL_ENDPOINTS.iter().chain(&ADMIN_ENDPOINTS).flat_map(|p| p.split('/')).collect();
        let names: Vec<&str> =
            CREDENTIAL_NAMES.into_iter().chain(["token", "tokens", "page", "a.b", "", "[", "%5b"]).collect();
        let mut passed = 0;
        for _ in 0..100_000 {
            let mut raw = ["/api/v4", "/api/v4", "/api/v4/", "/%61pi/v4", "/api", ""][dice.roll(6)].to_owned();
            for _ in 0..dice.roll(6) {
                match dice.roll(4) {
                    0 => raw.push_str(PIECES[dice.roll(PIECES.len())]),
                    1 => raw = format!("{raw}/{}", words[dice.roll(words.len())].to_uppercase()),
                    _ => raw = format!("{raw}/{}", words[dice.roll(words.len())]),
                }
            }
            for at in 0..dice.roll(4) {
                let separator = if at == 0 { "?" } else { ["&", ";", "&&", "%26"][dice.roll(4)] };
                let value = ["", "=", "=1", "=a%20b", "=[x]", "[]=1", "%5D=", "+=2", "=token"][dice.roll(9)];
                raw = format!("{raw}{separator}{}{value}", names[dice.roll(names.len())]);
            }
            for policy in &policies {
                assert_eq!(Target::parse(&raw, policy).map(|target| target.as_str()), thorough(&raw, policy), "{raw}");
            }
            passed += usize::from(parse(&raw).is_ok());
        }
        assert!((10_000..90_000).contains(&passed), "{passed} passed");
    }

    fn thorough<'a>(raw: &'a str, policy: &Policy) -> Result<&'a str, TargetError> {
        let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
        let once = unescaped(path.as_bytes());
        let leads_elsewhere = |path: &[u8]| {
            path.iter().any(u8::is_ascii_control)
                || path
                    .split(|byte| matches!(byte, b'/' | b'\\'))
                    .any(|piece| matches!(piece.split(|byte| *byte == b';').next(), Some(b"." | b"..")))
        };
        let is_good = path.starts_with('/') && !path.contains('\\');
        if !is_good || [path.as_bytes(), &once, &unescaped(&once)].into_iter().any(leads_elsewhere) {
            return Err(TargetError::Malformed);
        }
        let mut names = query.split(['&', ';']).flat_map(|piece| form_urlencoded::parse(piece.as_bytes()));
        if names.any(|(name, _)| CREDENTIAL_NAMES.contains(&base_name(&name)) || base_name(&name) == "token") {
            return Err(TargetError::Credential);
        }
        if policy.graphql && raw == "/api/graphql" {
            return Ok(raw);
        }
        let segments: Vec<_> = path.split('/').map(|segment| unescaped(segment.as_bytes())).collect();
        let (first, names) = segments[1..].split_at(segments.len().min(3) - 1);
        let names: Vec<_> = names.iter().filter(|name| !name.is_empty()).collect();
        if first != [&b"api"[..], b"v4"] || names.is_empty() {
            return Err(TargetError::NotForwarded);
        }
        let is_below = |pattern: &str| {
            let wanted: Vec<_> = pattern.split('/').collect();
            wanted.len() <= names.len()
                && wanted.iter().zip(&names).all(|(wanted, name)| {
                    let name = name.split(|byte| *byte == b'.').next().expect("one piece at least");
                    *wanted == "*" || name.to_ascii_lowercase() == wanted.as_bytes()
                })
        };
        if ADMIN_ENDPOINTS.into_iter().any(is_below) {
            return Err(TargetError::NotForwarded);
        }
        let mut refused = CREDENTIAL_ENDPOINTS.into_iter().filter(|endpoint| is_below(endpoint));
        match refused.find(|endpoint| !policy.exceptions.contains(&CredentialEndpoint(endpoint))) {
            Some(_) => Err(TargetError::CredentialEndpoint),
            None => Ok(raw),
        }
    }

    fn unescaped(bytes: &[u8]) -> Vec<u8> {
        let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let (mut out, mut at) = (Vec::new(), 0);
        while let Some(byte) = bytes.get(at) {
            if let (b'%', Some(high), Some(low)) = (byte, digit(at + 1), digit(at + 2)) {
                out.push(u8::try_from(high * 16 + low).expect("two hex digits"));
                at += 3;
            } else {
                out.push(*byte);
                at += 1;
            }
        }
        out
    }

    #[test]
    fn the_lists_are_what_the_quick_way_takes_them_for() {
        for name in CREDENTIAL_NAMES.iter().chain(&["token"]) {
            assert!(is_refused(name.as_bytes()), "{name}");
            for before in 0..40 {
                let query = format!("{}{name}", "x".repeat(before));
                assert!(may_have_credential(query.as_bytes()), "{query}");
                assert!(may_have_credential(format!("{query}={}", "x".repeat(20)).as_bytes()), "{query}");
            }
        }
        assert!(!may_have_credential(b"order_by=created_at&owned=false&page=2&per_page=20&sort=desc"));
        let patterns = CREDENTIAL_ENDPOINTS.iter().chain(&ADMIN_ENDPOINTS);
        assert_eq!(patterns.map(|pattern| pattern.split('/').count()).max(), Some(MAX_NAMES));
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
