//! A request's body on its way up. Short ones that hold parameters are read and inspected, all others are streamed.
//!
//! GitLab takes credentials from parameters too, and prefers some of them to the bearer; and Rack makes another method of a form
//! that says so (`lib/rack/method_override.rb`), which the policy would not have judged. So no form goes up unread: a long
//! multipart body is read while it passes, any other long form is refused. A long body in JSON is not inspected: a token in
//! there is one that the sender had already, and it changes no method. Whether a body in chunks is short shows at its end; so it
//! is held until it ends or has become too long. Nobody waits for an answer in the middle of one, and what is refused half way
//! has done nothing: GitLab's own server, Puma, reads a body to its end before the application sees the request.

use std::fmt;

use memchr::memmem;
use serde::de::{self, IgnoredAny, MapAccess};
use serde::{Deserialize, Deserializer};
use url::form_urlencoded;

use crate::context::RequestContext;
use crate::error::{ApiError, Code};
use crate::http::body::BodyLength;
use crate::http::head::{Fields, RequestHead};
use crate::http::server::ServerConnection;
use crate::proxy::failure::Failure;
use crate::proxy::target::{is_credential, mentions_credential};

/// What becomes of a request's body.
#[derive(Debug)]
pub(super) enum RequestBody {
    /// It has been read and inspected.
    Buffered(Vec<u8>),
    /// It is passed on as it comes.
    Streaming,
    /// The same, while the names of its parts are read.
    Watched(PartNames),
}

/// Reads a short body that may hold parameters and looks for credentials in it; any other stays where it is.
///
/// # Errors
/// `credential_parameter` for a top-level name that GitLab would take for a credential; `bad_request` for a body that
/// breaks off, or is not plainly what its Content-Type says; `request_timeout` for one that comes too slowly;
/// `body_too_large` for a long form that is not multipart.
pub(super) async fn inspect(
    request: &RequestHead,
    downstream: &mut ServerConnection,
    context: &RequestContext,
) -> Result<RequestBody, Failure> {
    if request.body.is_empty() {
        return Ok(RequestBody::Buffered(Vec::new()));
    }
    let Some(kind) = Kind::of(request.fields()) else { return Ok(RequestBody::Streaming) };
    let Some(body) = buffer(request.body, downstream, context).await? else { return kind.stream() };
    let is_credential = kind.names_credential(&body).map_err(ApiError::from)?;
    if is_credential { Err(Code::CredentialParameter.into()) } else { Ok(RequestBody::Buffered(body)) }
}

/// All of a short body; `None` for one above 64 KiB, which can still be read from its beginning.
///
/// # Errors
/// As [`ServerConnection::hold_body`].
pub(super) async fn buffer(
    length: BodyLength,
    downstream: &mut ServerConnection,
    context: &RequestContext,
) -> Result<Option<Vec<u8>>, Failure> {
    if length.known().is_some_and(|length| length > MAX_INSPECTED as u64) {
        return Ok(None);
    }
    let body = downstream.hold_body(MAX_INSPECTED).await;
    match &body {
        Ok(body) => context.count_in(body.as_ref().map_or(0, Vec::len)),
        Err(_) => context.count_in(downstream.held_bytes()),
    }
    Ok(body?)
}

/// Bodies whose parameters GitLab reads, told apart as Rack and Grape do (`lib/rack/media_type.rb`: up to a `;` or `,`).
#[derive(Debug)]
pub enum Kind {
    /// Pairs of names and values.
    Form,
    /// With its Content-Type, which holds the boundary.
    Multipart(String),
    /// An object, if it holds parameters.
    Json,
    /// Without a Content-Type: a form to Rack (`lib/rack/request.rb`), JSON to Grape (`lib/grape/middleware/formatter.rb`).
    Untyped,
}

impl Kind {
    /// The one that these fields tell of; `None` for a body in which nobody looks for parameters.
    pub fn of(fields: Fields<'_>) -> Option<Self> {
        let value = lossy(fields.values("content-type").next().unwrap_or_default());
        let essence = value.split([';', ',']).next().unwrap_or(&value).trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-www-form-urlencoded" => Some(Self::Form),
            "multipart/form-data" | "multipart/mixed" | "multipart/related" => Some(Self::Multipart(value)),
            "application/json" | "application/jsonrequest" | "text/x-json" => Some(Self::Json),
            essence if essence.ends_with("+json") => Some(Self::Json),
            "" => Some(Self::Untyped),
            _ => None,
        }
    }

    /// What becomes of one that is too long to be held.
    fn stream(&self) -> Result<RequestBody, Failure> {
        match self {
            Self::Form => Err(Code::BodyTooLarge.into()),
            Self::Multipart(kind) => Ok(RequestBody::Watched(PartNames::of(kind).map_err(ApiError::from)?)),
            // One without a type goes up with one.
            Self::Json | Self::Untyped => Ok(RequestBody::Streaming),
        }
    }

    /// Whether GitLab would find a parameter in this body that it takes for a credential.
    ///
    /// # Errors
    /// [`Unreadable`] where it might be read in another way than here.
    pub fn names_credential(&self, body: &[u8]) -> Result<bool, Unreadable> {
        match self {
            _ if body.is_empty() => Ok(false),
            Self::Form => Ok(form_names_credential(body)),
            Self::Multipart(kind) => part_names_credential(kind, body),
            Self::Json => json_names_credential(body),
            Self::Untyped if begins_like_json(body) => Ok(form_names_credential(body) || json_names_credential(body)?),
            Self::Untyped => Ok(form_names_credential(body)),
        }
    }
}

fn form_names_credential(body: &[u8]) -> bool {
    let pieces = body.split(|byte| matches!(byte, b'&' | b';'));
    pieces.flat_map(form_urlencoded::parse).any(|(name, _)| is_credential(&name))
}

/// What is not JSON to us may be JSON to GitLab: some parsers take comments or malformed numbers. So what is not JSON passes
/// only if it names no credential anywhere and has nothing that could hide one: no escapes, and no zeros, which UTF-16 has.
///
/// An object is parsed twice, since [`Names`] takes raw control characters in a name, which are no JSON.
fn json_names_credential(body: &[u8]) -> Result<bool, Unreadable> {
    let json = without_mark(body);
    let is_object = json.trim_ascii_start().starts_with(b"{");
    match serde_json::from_slice::<IgnoredAny>(json) {
        Ok(_) if is_object => serde_json::from_slice::<Names>(json).map(|names| names.0).map_err(|_| Unreadable),
        Ok(_) => Ok(false),
        Err(_) if json.contains(&b'\\') || json.contains(&0) => Err(Unreadable),
        Err(_) => Ok(mentions_credential(json)),
    }
}

/// Whether this may be a JSON object, before comments at most; many files begin with a brace.
fn begins_like_json(body: &[u8]) -> bool {
    let inside = without_comments(without_mark(body)).strip_prefix(b"{");
    inside.is_some_and(|inside| without_comments(inside).starts_with(b"\""))
}

/// What follows a byte order mark, which may be ignored (RFC 8259 section 8.1).
fn without_mark(json: &[u8]) -> &[u8] {
    json.strip_prefix("\u{feff}".as_bytes()).unwrap_or(json)
}

/// What follows white space and comments.
fn without_comments(json: &[u8]) -> &[u8] {
    let mut rest = json.trim_ascii_start();
    loop {
        let end: &[u8] = match rest {
            [b'/', b'*', ..] => b"*/",
            [b'/', b'/', ..] => b"\n",
            _ => return rest,
        };
        let Some(at) = memmem::find(&rest[2..], end) else { return b"" };
        rest = rest[2 + at + end.len()..].trim_ascii_start();
    }
}

/// Reads a multipart body (RFC 2046 section 5.1.1, RFC 7578), in pieces if it comes so, and tells of the names of its parts. It
/// takes what is written in any way that has one reading, and no other: whoever reads more leniently than we, as Rack does
/// (`lib/rack/multipart/parser.rb`), must find the same parts and the same names.
#[derive(Debug)]
pub(super) struct PartNames {
    /// Two dashes and the boundary.
    delimiter: Vec<u8>,
    /// The same with what stands before a comma in the boundary, at which Rack's ends.
    shorter: Option<Vec<u8>>,
    /// What has come and may be the beginning of something. Contents are not kept.
    unread: Vec<u8>,
    place: Place,
}

/// What comes next in a multipart body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A part's content, or what stands before the first part, up to a delimiter.
    Content,
    /// What follows a delimiter: a line end, or the two dashes of the last one.
    Delimited,
    /// A part's head.
    Head,
    /// What follows the last delimiter: a line end or nothing.
    End,
    /// What is behind all parts.
    Epilogue,
}

impl PartNames {
    /// Of a body with this Content-Type.
    fn of(kind: &str) -> Result<Self, Unreadable> {
        let boundary = boundary(kind).ok_or(Unreadable)?;
        let (delimiter, shorter) = (format!("--{boundary}").into(), boundary.split_once(','));
        let shorter = shorter.map(|(shorter, _)| format!("--{shorter}").into());
        // A delimiter stands at the beginning of a line, and so does the body.
        Ok(Self { delimiter, shorter, unread: b"\r\n".to_vec(), place: Place::Content })
    }

    /// Reads the next piece. Whether a part whose head ends in it is named like a credential.
    ///
    /// # Errors
    /// [`Unreadable`] for what may be read in two ways.
    pub(super) fn name_credential(&mut self, piece: &[u8]) -> Result<bool, Unreadable> {
        self.unread.extend_from_slice(piece);
        if let Some(shorter) = &self.shorter {
            // Rack finds no part behind it as long as a comma follows.
            let goes_on = |at: usize| self.unread.get(at + shorter.len()).is_none_or(|next| *next == b',');
            if !memmem::find_iter(&self.unread, shorter).all(goes_on) {
                return Err(Unreadable);
            }
        }
        let (mut found, mut at) = (false, 0);
        loop {
            let rest = &self.unread[at..];
            let next = memmem::find(rest, &self.delimiter);
            let (read, place) = match (self.place, next) {
                // To older ones of Rack each is a delimiter, wherever in a line.
                (Place::Content, Some(next)) if !rest[..next].ends_with(b"\r\n") => return Err(Unreadable),
                (Place::Content, Some(next)) => (next + self.delimiter.len(), Place::Delimited),
                (Place::Epilogue, Some(_)) => return Err(Unreadable),
                (Place::Content | Place::Epilogue, None) => {
                    // Of a line end and a delimiter all but the last byte may be here.
                    at += rest.len().saturating_sub(self.delimiter.len() + 1);
                    break;
                }
                (Place::Delimited | Place::End, _) if rest.len() < 2 => break,
                (Place::Delimited, _) if rest.starts_with(b"--") => (2, Place::End),
                (Place::Delimited, _) if rest.starts_with(b"\r\n") => (2, Place::Head),
                (Place::End, _) if rest.starts_with(b"\r\n") => (0, Place::Epilogue),
                (Place::Delimited | Place::End, _) => return Err(Unreadable),
                (Place::Head, _) => match memmem::find(rest, b"\r\n\r\n") {
                    Some(end) if memmem::find(&rest[..end], &self.delimiter).is_some() => return Err(Unreadable),
                    Some(end) => {
                        found |= head_names_credential(&rest[..end]).ok_or(Unreadable)?;
                        (end + 2, Place::Content)
                    }
                    None if rest.len() > MAX_PART_HEAD => return Err(Unreadable),
                    None => break,
                },
            };
            at += read;
            self.place = place;
        }
        self.unread.drain(..at);
        Ok(found)
    }

    /// Whether the body may end here.
    fn is_whole(&self) -> bool {
        let ends_short = self.shorter.as_ref().is_some_and(|shorter| self.unread.ends_with(shorter));
        (self.place == Place::Epilogue && !ends_short) || (self.place == Place::End && self.unread.is_empty())
    }
}

fn part_names_credential(kind: &str, body: &[u8]) -> Result<bool, Unreadable> {
    let mut names = PartNames::of(kind)?;
    let found = names.name_credential(body)?;
    if names.is_whole() { Ok(found) } else { Err(Unreadable) }
}

/// The boundary, if there is one and no more, however its name is written. Rack finds none that begins with a comma.
fn boundary(kind: &str) -> Option<&str> {
    let lower = kind.to_ascii_lowercase();
    let (before, after) = lower.split_once("boundary")?;
    let value = &kind[kind.len() - after.strip_prefix('=')?.len()..];
    let (value, rest) = match value.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => value.split_at(value.find(';').unwrap_or(value.len())),
    };
    let is_alone = before.ends_with([';', ' ', '\t'])
        && (rest.is_empty() || rest.trim_start().starts_with(';'))
        && !value.to_ascii_lowercase().contains("boundary=")
        && !rest.to_ascii_lowercase().contains("boundary");
    let is_plain = !value.is_empty()
        && !value.starts_with(',')
        && value.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\;".contains(&byte));
    (is_alone && is_plain).then_some(value)
}

/// Whether a part is named like a credential, whichever of the names in its head counts.
fn head_names_credential(head: &[u8]) -> Option<bool> {
    // A line that begins with a blank goes on from the one before (RFC 5322 section 2.2.3).
    let head = lossy(head).replace("\r\n ", "  ").replace("\r\n\t", "  ");
    let lower = head.to_ascii_lowercase();
    // Rack looks for a name up to the next colon, on the next line too.
    let is_field_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_field = |line: &str| line.split_once(':').is_some_and(|(name, _)| is_field_name(name));
    // To Rack a vertical tab or a form feed ends a name.
    let is_text = |line: &str| !line.contains(|letter: char| letter.is_ascii_control() && letter != '\t');
    let is_plain = head.split("\r\n").all(|line| is_text(line) && is_field(line));
    if !is_plain || lower.matches("content-disposition").count() != 1 || lower.contains("content-id") {
        return None;
    }
    let dispositions = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let mut dispositions = dispositions.filter(|(name, _)| name.eq_ignore_ascii_case("content-disposition"));
    let (kind, parameters) = dispositions.next()?.1.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return None;
    }
    let starts = [0].into_iter().chain(parameters.match_indices(';').map(|(at, _)| at + 1));
    let mut found = None;
    for at in starts {
        let parameter = parameters[at..].trim_start();
        let value = parameter.get(..4).filter(|word| word.eq_ignore_ascii_case("name")).map(|_| &parameter[4..]);
        if let Some(value) = value.filter(|value| value.trim_start().starts_with(['=', '*'])) {
            // Behind a colon Rack sees no name, and takes the name of the file for it.
            if found.is_none() && parameters[..at].contains(':') {
                return None;
            }
            found = Some(found.unwrap_or(false) | is_credential(part_name(value.strip_prefix('=')?)?));
        }
    }
    found
}

/// The name in a value that begins so, if nothing in it is escaped; without quotes, up to what no token holds.
fn part_name(value: &str) -> Option<&str> {
    let name = match value.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?.0,
        None => value.split(|letter| "()<>@,;:\\\"/[]?= \t".contains(letter)).next()?,
    };
    (!name.is_empty() && !name.contains('\\')).then_some(name)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A body that is not plainly what its Content-Type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not what its Content-Type says")]
pub struct Unreadable;

impl From<Unreadable> for ApiError {
    fn from(error: Unreadable) -> Self {
        Self::because(Code::BadRequest, error)
    }
}

/// Whether a JSON object has a credential among its own names; nothing else of it is kept.
struct Names(bool);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut found = false;
                while let Some(IsCredential(is_credential)) = map.next_key()? {
                    found |= is_credential;
                    map.next_value::<IgnoredAny>()?;
                }
                Ok(Names(found))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Whether a name in JSON is that of a credential, even one that is no text: another parser may take it, and what stands beside
/// it.
struct IsCredential(bool);

impl<'de> Deserialize<'de> for IsCredential {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = IsCredential;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E>(self, name: &[u8]) -> Result<IsCredential, E> {
                Ok(IsCredential(is_credential(&String::from_utf8_lossy(name))))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// Longest body that is held and inspected, in bytes.
pub(super) const MAX_INSPECTED: usize = 64 * 1024;
/// Longest head of a part, in bytes. Browsers write a name, the name of a file and a type.
const MAX_PART_HEAD: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
    use proptest::{collection, sample};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 10_000, ..ProptestConfig::default() })]

        #[test]
        fn a_name_that_rack_finds_in_a_multipart_body_is_found_or_the_body_refused(
            pieces in collection::vec(sample::select(&PIECES[..]), 0..14),
            begins_well in any::<bool>(),
        ) {
            let start = if begins_well { "--b\r\nContent-Disposition: form-data; name=\"a\"" } else { "" };
            let body = format!("{start}{}", pieces.concat());
            let found = part_names_credential("multipart/form-data; boundary=b", body.as_bytes());
            prop_assert!(found != Ok(false) || !rack_names(&body).iter().any(|name| name == "sudo"), "{body:?}");
        }

        #[test]
        fn a_multipart_body_is_the_same_in_whatever_pieces_it_comes(
            pieces in collection::vec(sample::select(&PIECES[..]), 0..14),
            step in 1..12_usize,
        ) {
            let body = format!("--b\r\nContent-Disposition: form-data; name=\"a\"{}", pieces.concat());
            let kind = "multipart/form-data; boundary=b";
            let mut names = PartNames::of(kind).expect("a boundary");
            let in_pieces = body.as_bytes().chunks(step).try_fold(false, |found, piece| {
                Ok::<_, Unreadable>(found | names.name_credential(piece)?)
            });
            let in_pieces = in_pieces.and_then(|found| if names.is_whole() { Ok(found) } else { Err(Unreadable) });
            prop_assert!(in_pieces == part_names_credential(kind, body.as_bytes()), "{body:?}");
        }

        #[test]
        fn no_type_and_no_body_is_too_odd(kind in "(multipart/|boundary|=|\"|;|,| |[a-b\u{e4}]){0,9}", body in "[-ab\r\n\u{e4}{}/*\"\\\\:;=]{0,40}") {
            let kinds = [Kind::Form, Kind::Multipart(kind), Kind::Json, Kind::Untyped];
            for kind in kinds {
                let _ = kind.names_credential(body.as_bytes());
            }
        }
    }

    /// Rack 2.2.22 reads a `private_token` out of the first three.
    #[test]
    fn a_boundary_within_a_part_is_refused() {
        let disposition = |name: &str| format!("Content-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        let [a, b, token] = ["a", "b", "private_token"].map(disposition);
        let names = |parts: &str| {
            let body = format!("--b\r\n{parts}\r\n--b--\r\n");
            part_names_credential("multipart/form-data; boundary=b", body.as_bytes())
        };
        for parts in [
            format!("{a}x--b--\n --b \n{token}x"),
            format!("{a}x--b\r\n\t--b\n{token}x"),
            format!("{a}--b\r\n{b} --b \n{token}x"),
            format!("{a}--b\r\nX: y\r\n --b\r\n{b}"),
            format!("{a}x--b"),
        ] {
            assert!(names(&parts).is_err(), "{parts:?}");
        }
        for parts in [format!("{a}x--c--\n --c \n{token}x"), format!("{a}--b\r\n{b} -- \n-b \nx")] {
            assert!(names(&parts).is_ok_and(|found| !found), "{parts:?}");
        }
    }

    /// Rack would take the name there for the part's own.
    #[test]
    fn a_line_of_a_part_that_is_no_field_is_refused() {
        let names = |line: &str| {
            let head = format!("--b\r\nContent-Disposition: form-data; name=\"a\"{line}\r\n\r\n\r\n--b--");
            part_names_credential("multipart/form-data; boundary=b", head.as_bytes())
        };
        for line in ["; \r\nname=\"sudo\"", "\r\n--b--; name=\"sudo\"", "\r\nX; name=\"sudo\": y"] {
            assert_eq!(names(line), Err(Unreadable), "{line:?}");
        }
        assert_eq!(names("\r\nContent-Type: text/plain; name=\"x\""), Ok(false));
    }

    /// What is no JSON is searched as text.
    #[test]
    fn a_raw_control_character_in_a_name_is_no_json() {
        assert_eq!(json_names_credential(b"{\"a\n\":\"sudo\"}"), Ok(true));
        assert_eq!(json_names_credential(b"{\"a\":\"sudo\"}"), Ok(false));
    }

    /// What multipart bodies are made of, and what might lead a reader astray.
    const PIECES: [&str; 24] = [
        "\r\n--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n",
        "\r\n--b\r\nContent-Disposition: form-data; name=\"sudo\"\r\n\r\n",
        "\r\n--b--",
        "--b\r\n",
        "--b--\r\n",
        "--b",
        "\r\n",
        "\r\n\r\n",
        "\r\n ",
        "\n",
        "--",
        "-",
        "b",
        "Content-Disposition: form-data; ",
        "content-disposition:form-data",
        "Content-ID: sudo",
        "name=\"sudo\"",
        "name=sudo",
        "filename=\"x",
        "; ",
        ";",
        ":",
        "\"",
        "a",
    ];

    /// The names that Rack 2.2 reads of a body whose boundary is `b` (`lib/rack/multipart/parser.rb`), in other words.
    fn rack_names(body: &str) -> Vec<String> {
        let (mut rest, mut names, mut is_begun) = (body, Vec::new(), false);
        loop {
            let Some((_, after, is_end)) = delimiter(rest) else { return names };
            rest = after;
            if is_end && is_begun {
                return names;
            }
            if is_end {
                continue;
            }
            is_begun = true;
            let Some(length) = rest.find("\r\n\r\n") else { return names };
            names.extend(name(&rest[..length + 2]));
            rest = &rest[length + 4..];
            // From behind the line end that stands before a delimiter, or so Rack thinks, the next one is looked for.
            let Some((before, _, _)) = delimiter(rest) else { return names };
            rest = &rest[before.len() + 2..];
        }
    }

    /// What stands before the next delimiter, what behind it, and whether it is the last.
    fn delimiter(text: &str) -> Option<(&str, &str, bool)> {
        let at_start = ["--b\r\n", "--b--"].into_iter().filter(|token| text.starts_with(token)).map(|token| (0, token));
        let later = ["\r\n--b\r\n", "\r\n--b--"].into_iter().filter_map(|token| text.find(token).map(|at| (at, token)));
        let (at, token) = at_start.chain(later).min()?;
        Some((&text[..at], &text[at + token.len()..], token.ends_with("--")))
    }

    /// The name of a part: what follows the last `;` and `name=` that no colon separates from the field's name, or its id.
    fn name(head: &str) -> Option<String> {
        let lower = head.to_ascii_lowercase();
        let fields = lower.match_indices("content-disposition:").map(|(at, field)| &head[at + field.len()..]);
        let named = fields.filter_map(|value| {
            let value = &value[..value.find(':').unwrap_or(value.len())];
            let starts = value.match_indices(';').map(|(at, _)| value[at + 1..].trim_start()).rev();
            let mut values = starts.filter_map(|text| text.strip_prefix("name="));
            values.find_map(|value| match value.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').map(|(name, _)| name.to_owned()),
                None => Some(
                    value
                        .split(|letter: char| letter.is_whitespace() || "()<>,;:\\\"/[]?=".contains(letter))
                        .next()?
                        .to_owned(),
                ),
            })
        });
        let id = || {
            lower
                .split_once("content-id:")
                .map(|(_, id)| id.trim_start().split(['\r', '\n']).next().unwrap_or_default().to_owned())
        };
        named.into_iter().next().or_else(id)
    }
}
