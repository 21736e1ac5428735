//! Which methods, paths and queries are forwarded at all.
//!
//! One parser: the bytes that are checked are the bytes that are sent. Nothing is decoded but copies to look at.
//!
//! Most targets hold nothing that a decoding would change: they are judged as they are. The others are decoded first, and
//! held to the same rules (`policy.rs`).

use std::borrow::Cow;

use url::form_urlencoded;

use crate::error::{ApiError, Code};
use crate::proxy::policy::rule::PLAIN;
use crate::proxy::policy::{Ground, Policy, Refusal, Resemblance};

/// A path and query of a DataHUB that we forward, as the app wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a>(&'a str);

impl<'a> Target<'a> {
    /// `raw` begins with the slash after the DataHUB's id.
    ///
    /// # Errors
    /// [`TargetError`]; nothing has been sent then.
    pub fn parse(method: &str, raw: &'a str, policy: &Policy) -> Result<Self, TargetError> {
        Self::judge(method, raw, policy).map(|_| Self(raw))
    }

    /// Why a target is forwarded.
    ///
    /// # Errors
    /// [`TargetError`]: why it is not.
    pub fn judge<'b>(method: &str, raw: &str, policy: &'b Policy) -> Result<Ground<'b>, TargetError> {
        if let Some((below, query, resembles)) = plain_path(raw, Resemblance::of(method)) {
            refuse_credentials(query)?;
            return Ok(policy.judge(method, below, resembles)?);
        }
        let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
        if !path.starts_with('/') || path.contains('\\') {
            return Err(TargetError::Malformed);
        }
        let once = decoded(path.as_bytes())?;
        let twice = decoded_again(path, &once)?;
        refuse_credentials(query.as_bytes())?;
        if policy.graphql && raw == GRAPHQL {
            return Ok(Ground::Graphql);
        }
        // `%61pi` is `api` to GitLab, so it is to us; `%2561pi` is not.
        if !once.starts_with(API) {
            return Err(Refusal::Elsewhere.into());
        }
        let (below, names) = (&twice[API.len()..], Resemblance::of(method));
        // Who decodes once or twice may end the path at a `#` or a `?`, and take a backslash for a slash, as a browser's
        // parser of URLs does both. Each of these readings must be forwarded, too.
        if memchr::memchr3(b'#', b'?', b'\\', below).is_some() {
            if let Some(mark) = memchr::memchr(b'?', below) {
                refuse_credentials(&below[mark + 1..])?;
            }
            for path in [&once[API.len()..], below] {
                let slashes: Vec<_> = path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect();
                for path in [path, &slashes] {
                    for end in [memchr::memchr(b'#', path), memchr::memchr(b'?', path), None] {
                        policy.judge(method, &path[..end.unwrap_or(path.len())], true)?;
                    }
                }
            }
        }
        Ok(policy.judge(method, below, names.is_in_path(below))?)
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

/// A parameter's name as Rack 2 reads it (`lib/rack/query_parser.rb`): brackets before it do not count, nor does what
/// follows the next one.
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
    /// What the policy does not forward.
    #[error("not forwarded: {0}")]
    Refused(#[from] Refusal),
}

impl From<TargetError> for ApiError {
    fn from(error: TargetError) -> Self {
        let code = match error {
            TargetError::Malformed => Code::BadRequestTarget,
            TargetError::Credential => Code::CredentialParameter,
            TargetError::Refused(refusal) if refusal.is_credential() => Code::CredentialEndpoint,
            TargetError::Refused(_) => Code::NotForwarded,
        };
        Self::because(code, error)
    }
}

/// What follows `/api/v4`, the query, and whether a name resembles one of the policy's, of a target whose path means nothing
/// but itself, however often it is decoded: what nearly all targets are.
fn plain_path<'a>(raw: &'a str, names: &Resemblance) -> Option<(&'a [u8], &'a [u8], bool)> {
    let below = raw.strip_prefix("/api/v4/")?.as_bytes();
    let (mut rest, mut resembles) = (below, false);
    loop {
        let (name, after) = rest.split_at(plain_length(rest));
        resembles |= names.is_in(name);
        match after.split_first() {
            None => return Some((below, b"", resembles)),
            Some((b'?', query)) => return Some((&below[..below.len() - after.len()], query, resembles)),
            Some((b'/', next)) => rest = next,
            Some(_) => return None,
        }
    }
}

/// How many bytes in front are letters, digits, `-` and `_`.
fn plain_length(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| !PLAIN[usize::from(*byte)]).unwrap_or(bytes.len())
}

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

/// Whether a piece between slashes or backslashes is `.` or `..`, up to a `;`, `#` or `?`, once it is decoded; or whether
/// there was a control character before.
fn has_dot_segment_or_control(path: &[u8], decoded: &[u8]) -> bool {
    let is_dot_segment = |at: usize| {
        let is_first = at == 0 || matches!(decoded[at - 1], b'/' | b'\\' | ENCODED_SLASH);
        let rest = &decoded[at + 1..];
        let rest = rest.strip_prefix(b".").unwrap_or(rest);
        is_first && matches!(rest.first(), None | Some(b'/' | b'\\' | b';' | b'#' | b'?' | &ENCODED_SLASH))
    };
    path.iter().fold(false, |has, byte| has | byte.is_ascii_control())
        || memchr::memchr_iter(b'.', decoded).any(is_dot_segment)
}

/// Whether two paths differ in their escapes alone, those of slashes too.
pub(super) fn is_same_path(one: &str, other: &str) -> bool {
    let slash = |byte: &u8| if *byte == ENCODED_SLASH { b'/' } else { *byte };
    match [one, other].map(|path| decoded(path.as_bytes())) {
        [Ok(one), Ok(other)] => one.iter().map(slash).eq(other.iter().map(slash)),
        _ => false,
    }
}

/// What stands between the separators of a path that was decoded twice, whichever of them whoever reads it goes by.
///
/// # Errors
/// [`TargetError::Malformed`] for a path that leads elsewhere or holds a control character.
pub fn words(path: &str) -> Result<Vec<Vec<u8>>, TargetError> {
    let once = decoded(path.as_bytes())?;
    let is_separator = |byte: &u8| b"/\\;?#".contains(byte) || *byte == ENCODED_SLASH;
    Ok(decoded_again(path, &once)?.split(is_separator).map(<[u8]>::to_vec).collect())
}

/// `path` decoded once more than `once`, as a front proxy or GitLab may do. What is wrong before a decoding is wrong after
/// it, too.
fn decoded_again<'a>(path: &str, once: &'a [u8]) -> Result<Cow<'a, [u8]>, TargetError> {
    let twice = decoded(once)?;
    if has_dot_segment_or_control(path.as_bytes(), &twice) { Err(TargetError::Malformed) } else { Ok(twice) }
}

/// Percent-decoded once (RFC 3986 section 2.1); what is no escape stays. An encoded slash makes no segment, so it becomes
/// what no path holds, and a control character is none that we take.
fn decoded(bytes: &[u8]) -> Result<Cow<'_, [u8]>, TargetError> {
    let Some(first) = memchr::memchr(b'%', bytes) else { return Ok(Cow::Borrowed(bytes)) };
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut out, mut copied) = (Vec::with_capacity(bytes.len()), 0);
    for at in memchr::memchr_iter(b'%', &bytes[first..]).map(|at| first + at) {
        if let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) {
            out.extend_from_slice(&bytes[copied..at]);
            out.push(match u8::try_from(high * 16 + low).expect("two hex digits are a byte") {
                b'/' => ENCODED_SLASH,
                byte if byte.is_ascii_control() => return Err(TargetError::Malformed),
                byte => byte,
            });
            copied = at + 3;
        }
    }
    out.extend_from_slice(&bytes[copied..]);
    Ok(Cow::Owned(out))
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

/// What stands for `%2F` in a decoded path.
const ENCODED_SLASH: u8 = b'\0';

/// Where GitLab's REST API is.
const API: &[u8] = b"/api/v4/";

/// GitLab's GraphQL endpoint, in the only spelling that is forwarded.
const GRAPHQL: &str = "/api/graphql";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Result<Target<'_>, TargetError> {
        Target::parse("GET", raw, &Policy::default())
    }

    const ELSEWHERE: Result<Target<'_>, TargetError> = Err(TargetError::Refused(Refusal::Elsewhere));

    /// What the app is told of a GET.
    fn code(raw: &str) -> Result<(), Code> {
        parse(raw).map(|_| ()).map_err(|error| ApiError::from(error).code())
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
            "/api/v4/user/..%23/x",
            "/api/v4/user/x%5C..%253Fx",
            "/api/v4/namespaces/7/.%23",
            "/api/v4/user%00",
            "/api/v4/user%0d%0aX:y",
            "/api/v4/user%250a",
            "/api/v4/user\r",
            "/api/v4/user\r\n",
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
            "/api/scim/v2/groups/g/Users",
            "/%2561pi/v4/user",
            "/api/v%34%2fuser",
        ] {
            assert_eq!(parse(path), ELSEWHERE, "{path}");
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
            for mark in ["?", "%3F", "%253f"] {
                let raw = format!("/api/v4/user{mark}{query}");
                assert_eq!(parse(&raw), Err(TargetError::Credential), "{raw}");
            }
        }
    }

    /// PQ-02: however it is spelled, and whatever a front proxy or GitLab might still make of it.
    #[test]
    fn what_makes_credentials_is_refused_in_every_spelling_and_its_neighbours_are_not() {
        for raw in [
            "/api/v4/user/keys",
            "/api/v4/user/keys/7",
            "/api/v4/user/keys/",
            "/api/v4/user/keys.json",
            "/api/v4//user//keys",
            "/api/v4/user/KEYS",
            "/api/v4/%75ser/keys",
            "/%61pi/v4/user/keys",
            "/api/v4/projects/1//%61ccess_tokens",
            // Decoded twice.
            "/api/v4/%2575ser/keys",
            "/api/v4/user/ke%2579s/1",
            "/api/v4/user/keys%252Ejson",
            // What is read as a query, a fragment, a parameter or a format once it is decoded.
            "/api/v4/user/keys%23/x",
            "/api/v4/user/keys%23",
            "/api/v4/user/keys%2523/x",
            "/api/v4/user/keys%3Fx=y/z",
            "/api/v4/user/keys%253f",
            "/api/v4/user%3F/keys",
            "/api/v4/user/keys;x=y",
            "/api/v4/user/keys%3Bx",
            "/api/v4/user/keys%20/x",
            "/api/v4/user;x/keys%2e/1",
            "/api/v4/user%5Ckeys",
            "/api/v4/user%255ckeys%23/x",
            "/api/v4/projects/1/pipeline_schedules/7%23/x/y",
            "/api/v4/projects%5C1%5Cpipeline_schedules%5C7%23/x/y",
            "/api/v4/projects%255C1/pipeline_schedules%5C7%253F/x/y",
            // A reader of one of the two signs, or of what is decoded once.
            "/api/v4/projects/a%23b/pipeline_schedules/7%3F/x/y",
            "/api/v4/projects/a%3Fb/pipeline_schedules/7%23/x/y",
            "/api/v4/projects/a%2523b/pipeline_schedules/7%23/x/y",
            "/api/v4/projects%5C1/pipeline_schedules/7%255Cx%255Cy",
        ] {
            assert_eq!(code(raw), Err(Code::CredentialEndpoint), "{raw}");
        }
        for raw in ["/api/v4/admin", "/api/v4/ADMIN/ci/variables", "/api/v4/jobs%2523/1", "/api/v4/hooks.xml"] {
            assert_eq!(code(raw), Err(Code::NotForwarded), "{raw}");
        }
        for raw in [
            "/api/v4/user",
            "/api/v4/user%23/x",
            "/api/v4/user%5Cstatus",
            "/api/v4/user/keyset",
            "/api/v4/user%2Fkeys",
            "/api/v4/user%252Fkeys",
            "/api/v4/users/7",
            "/api/v4/projects/1/repository/branches/triggers",
            "/api/v4/projects/1/repository/files/access_tokens?ref=main",
            "/api/v4/projects/1/repository/files/user%23%2Fkeys/raw?ref=main",
            "/api/v4/projects/runners%2Fkeys",
            "/api/v4/projects/1/jobs",
            "/api/v4/groups/runners",
        ] {
            assert_eq!(parse(raw), Ok(Target(raw)), "{raw}");
        }
    }

    /// An exact row is as little avoided by a sign that ends a path as one with all below.
    #[test]
    fn a_write_is_refused_up_to_a_sign_that_might_end_its_path() {
        let judge =
            |raw| Target::parse("DELETE", raw, &Policy::default()).map_err(|error| ApiError::from(error).code());
        for raw in [
            "/api/v4/namespaces/7",
            "/api/v4/namespaces/7%23/x",
            "/api/v4/namespaces/7%253Fx/y",
            "/api/v4/namespaces%5C7%23/x/y",
        ] {
            assert_eq!(judge(raw), Err(Code::NotForwarded), "{raw}");
        }
        for raw in ["/api/v4/namespaces/7/x", "/api/v4/projects/7%23/x"] {
            assert_eq!(judge(raw), Ok(Target(raw)), "{raw}");
        }
    }

    /// PQ-03.
    #[test]
    fn graphql_has_one_spelling_and_is_closed_unless_it_is_opened() {
        let open = Policy::new(true, &[], Vec::new());
        let only = Policy::new(true, &[], vec!["GET projects".parse().expect("a rule")]);
        assert_eq!(parse("/api/graphql"), ELSEWHERE);
        for policy in [&open, &only] {
            assert!(Target::parse("POST", "/api/graphql", policy).is_ok_and(|target| target.is_graphql()));
        }
        for raw in [
            "/api/graphql/",
            "/api/graphql?query={a}",
            "/api/graphql?",
            "/api//graphql",
            "/api/%67raphql",
            "/-/graphql",
        ] {
            assert_eq!(Target::parse("POST", raw, &open), ELSEWHERE, "{raw}");
        }
        assert!(Target::parse("POST", "/api/v4/graphql", &open).is_ok_and(|target| !target.is_graphql()));
    }

    /// Two readings of a target: the one in use, and one that decodes everything.
    #[test]
    fn the_quick_way_and_the_thorough_way_agree_on_random_targets() {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let open = ["user/keys", "projects/*/triggers"].map(|endpoint| endpoint.parse().expect("it is known"));
        let only = ["GET projects/**", "* user/*", "PUT|POST groups/*"].map(|rule| rule.parse().expect("a rule"));
        let policies = [Policy::default(), Policy::new(true, &open, Vec::new()), Policy::new(true, &[], only.to_vec())];
        let words: Vec<&str> =
            "user keys projects triggers groups 1 access_tokens tokens users emails runners admin jobs files \
                                repository variables pipeline_schedules namespaces authorize rotate"
                .split(' ')
                .collect();
        let names: Vec<&str> =
            CREDENTIAL_NAMES.into_iter().chain(["token", "tokens", "page", "a.b", "", "[", "%5b"]).collect();
        let mut passed = 0;
        for _ in 0..100_000 {
            let mut raw = ["/api/v4", "/api/v4", "/api/v4/", "/%61pi/v4", "/api", ""][dice.roll(6)].to_owned();
            for _ in 0..dice.roll(6) {
                match dice.roll(5) {
                    0 => raw.push_str(PIECES[dice.roll(PIECES.len())]),
                    1 => raw.push_str(SIGNS[dice.roll(SIGNS.len())]),
                    2 => raw = format!("{raw}/{}", words[dice.roll(words.len())].to_uppercase()),
                    _ => raw = format!("{raw}/{}", words[dice.roll(words.len())]),
                }
            }
            for at in 0..dice.roll(4) {
                let separator = if at == 0 { "?" } else { ["&", ";", "&&", "%26"][dice.roll(4)] };
                let value = ["", "=", "=1", "=a%20b", "=[x]", "[]=1", "%5D=", "+=2", "=token"][dice.roll(9)];
                raw = format!("{raw}{separator}{}{value}", names[dice.roll(names.len())]);
            }
            let method = ["GET", "POST", "DELETE"][dice.roll(3)];
            for policy in &policies {
                let judged = Target::parse(method, &raw, policy).map(|target| target.as_str());
                assert_eq!(judged, thorough(method, &raw, policy), "{method} {raw}");
            }
            passed += usize::from(parse(&raw).is_ok());
        }
        assert!((10_000..90_000).contains(&passed), "{passed} passed");
    }

    fn thorough<'a>(method: &str, raw: &'a str, policy: &Policy) -> Result<&'a str, TargetError> {
        let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
        let once = unescaped(path.as_bytes());
        let leads_elsewhere = |path: &[u8]| {
            path.iter().any(u8::is_ascii_control)
                || path
                    .split(|byte| matches!(byte, b'/' | b'\\'))
                    .any(|piece| matches!(piece.split(|byte| b";#?".contains(byte)).next(), Some(b"." | b"..")))
        };
        let is_good = path.starts_with('/') && !path.contains('\\');
        if !is_good || [path.as_bytes(), &once, &unescaped(&once)].into_iter().any(leads_elsewhere) {
            return Err(TargetError::Malformed);
        }
        let names_credential = |piece: &str| {
            let mut names = form_urlencoded::parse(piece.as_bytes()).map(|(name, _)| name);
            names.any(|name| CREDENTIAL_NAMES.contains(&base_name(&name)) || base_name(&name) == "token")
        };
        if query.split(['&', ';']).any(names_credential) {
            return Err(TargetError::Credential);
        }
        if policy.graphql && raw == "/api/graphql" {
            return Ok(raw);
        }
        let segments: Vec<_> = path.split('/').skip(1).map(|segment| unescaped(segment.as_bytes())).collect();
        let once =
            segments.strip_prefix([&b"api"[..], b"v4"].map(<[u8]>::to_vec).as_slice()).ok_or(Refusal::Elsewhere)?;
        let twice: Vec<_> = once.iter().map(|name| unescaped(name)).collect();
        let [once, twice] = [once, &twice].map(|names| {
            let names = names.iter().map(|name| String::from_utf8_lossy(name).replace('/', "\0"));
            names.collect::<Vec<_>>().join("/")
        });
        if twice.contains(['#', '?', '\\']) {
            let after = twice.split_once('?').map_or("", |(_, after)| after);
            if after.split(['&', ';']).any(names_credential) {
                return Err(TargetError::Credential);
            }
            for names in [&once, &once.replace('\\', "/"), &twice, &twice.replace('\\', "/")] {
                for end in ["#", "?", "no end"] {
                    let reading = names.split(end).next().expect("one at least");
                    policy.judge(method, reading.as_bytes(), true)?;
                }
            }
        }
        policy.judge(method, twice.as_bytes(), true)?;
        Ok(raw)
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
        // What the pieces can make of the table's rows.
        let denied = "user/keys user/personal_access_tokens users/*/keys users/*/personal_access_tokens admin keys runners \
                      personal_access_tokens projects/*/triggers projects/*/access_tokens projects/*/runners \
                      projects/*/variables api";
        let is_denied = denied.split_whitespace().any(|pattern| {
            let wanted: Vec<_> = pattern.split('/').collect();
            names.len() >= wanted.len()
                && wanted.iter().zip(&names).all(|(wanted, name)| *wanted == "*" || wanted == name)
        });
        same && !is_denied && !names.is_empty() && !below.replace("%2F", "/").split('/').any(|piece| piece == "..")
    }

    const SIGNS: [&str; 8] = ["%23", "%2523", "%3F", "%253f", "%5C", "%255c", "%3Bx", "%2F"];

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
