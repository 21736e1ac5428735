//! A session as few bytes: what the seal of the session cookie holds.
//!
//! ```text
//! flags (1) | created_at (u32) | its milliseconds (u16), if it has any
//!   | issued - created_at | lifetime | expires_at - created_at | idle_expires_at - issued
//!   | user id | username | name | access token | refresh token, if there is one
//!   | scopes, if they are not the configured ones
//! ```
//!
//! Times are whole seconds, `created_at` since 1970 and big-endian, the others LEB128. The milliseconds of `created_at` (1 to 999,
//! big-endian) tell which of two logins was the later one. A text is its length as LEB128 and its bytes. A token's length is doubled;
//! an odd one says that the token is lower-case hex and packed to half. A user id that is a decimal number is LEB128. A name is cut
//! at 64 bytes; one that equals the username, before the cut or after it, is empty. Scopes are one text, separated by single spaces.
//! Each session has one encoding: whatever else decodes is refused.

#![expect(clippy::disallowed_methods, reason = "what is encoded here is sealed next")]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::datahub::oidc::User;
use crate::datahub::token::{AccessToken, RefreshToken, TokenSet, filter_hash};
use crate::seal::cookie::Plaintext;
use crate::session::Session;

impl Plaintext for Session {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let number = decimal(self.user.id.as_bytes());
        let millis = millis(self.created_at);
        let flags = [
            (NUMERIC_ID, number.is_some()),
            (REFRESHABLE, self.tokens.refresh.is_some()),
            (OWN_SCOPES, self.scopes.is_some()),
            (PERSONAL, self.is_personal),
            (MILLISECONDS, millis != 0),
        ];
        // One allocation that never moves, so that no copy of a token stays behind.
        let mut out = Zeroizing::new(Vec::with_capacity(self.max_encoded_len()));
        out.push(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag).sum());
        let created_at = seconds(self.created_at).min(u32::MAX.into());
        out.extend_from_slice(&u32::try_from(created_at).expect("the line above").to_be_bytes());
        if millis != 0 {
            out.extend_from_slice(&millis.to_be_bytes());
        }
        // A clock that was set back leaves tokens that are older than the login. They count as of the login then.
        let issued = seconds(self.tokens.issued).max(created_at);
        put_seconds(&mut out, issued - created_at);
        put_seconds(&mut out, self.tokens.lifetime.as_secs());
        put_seconds(&mut out, seconds(self.expires_at).saturating_sub(created_at));
        put_seconds(&mut out, seconds(self.idle_expires_at).saturating_sub(issued));
        match number {
            Some(number) => put_number(&mut out, number),
            None => put_text(&mut out, &self.user.id),
        }
        put_text(&mut out, &self.user.username);
        put_text(&mut out, shown_name(&self.user));
        put_token(&mut out, self.tokens.access.expose());
        if let Some(token) = &self.tokens.refresh {
            put_token(&mut out, token.expose());
        }
        if let Some(scopes) = &self.scopes {
            put_text(&mut out, &scopes.join(" "));
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        EncodedFields::read(bytes).map(|fields| fields.session(bytes))
    }
}

/// What an encoded session says, and where in its bytes: each field is checked and nothing is copied. Whatever is not the
/// one encoding of a session is refused here and nowhere else.
#[derive(Debug)]
pub(super) struct EncodedFields {
    pub created_at: SystemTime,
    pub expires_at: SystemTime,
    pub idle_expires_at: SystemTime,
    pub issued: SystemTime,
    pub lifetime: Duration,
    pub user_id: UserId,
    pub access: Token,
    pub refresh: Option<Token>,
    is_personal: bool,
    username: Range<usize>,
    /// Empty if it equals the username.
    name: Range<usize>,
    /// As they are joined; `None` if they are the configured ones.
    scopes: Option<Range<usize>>,
}

impl EncodedFields {
    /// The fields of the session that `bytes` are the encoding of.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Reader::new(bytes);
        let flags = rest.byte()?;
        let is_personal = flags & PERSONAL != 0;
        if flags & !FLAGS != 0 || is_personal && flags & REFRESHABLE != 0 {
            return None;
        }
        let second = u32::from_be_bytes(bytes[rest.take(4)?].try_into().ok()?);
        let second = SystemTime::UNIX_EPOCH + Duration::from_secs(second.into());
        let created_at = if flags & MILLISECONDS == 0 {
            second
        } else {
            let millis = u16::from_be_bytes(bytes[rest.take(2)?].try_into().ok()?);
            second
                + Some(millis)
                    .filter(|millis| (1..1_000).contains(millis))
                    .map(|it| Duration::from_millis(it.into()))?
        };
        let issued = second + rest.seconds()?;
        let lifetime = rest.seconds()?;
        let expires_at = second + rest.seconds()?;
        let idle_expires_at = issued + rest.seconds()?;
        let user_id = if flags & NUMERIC_ID == 0 {
            UserId::Text(rest.text().filter(|id| decimal(&bytes[id.clone()]).is_none())?)
        } else {
            UserId::Number(rest.number()?)
        };
        let (username, name) = (rest.text()?, rest.text()?);
        if name.len() > MAX_NAME_BYTES || (!name.is_empty() && bytes[name.clone()] == bytes[username.clone()]) {
            return None;
        }
        let access = rest.token()?;
        let refresh = if flags & REFRESHABLE == 0 { None } else { Some(rest.token()?) };
        let scopes = if flags & OWN_SCOPES == 0 {
            None
        } else {
            Some(rest.text().filter(|text| are_scopes(&bytes[text.clone()]))?)
        };
        rest.is_at_end().then_some(Self {
            created_at,
            expires_at,
            idle_expires_at,
            issued,
            lifetime,
            user_id,
            access,
            refresh,
            is_personal,
            username,
            name,
            scopes,
        })
    }

    /// All of it, of the `bytes` that it was read from.
    pub(super) fn session(&self, bytes: &[u8]) -> Session {
        let text = |span: &Range<usize>| str::from_utf8(&bytes[span.clone()]).expect("`read` lets only UTF-8 in");
        let token = |token: &Token| {
            // One allocation that never moves, so that no copy of the token stays behind.
            let mut text = Vec::with_capacity(token.len());
            token.write(bytes, &mut text);
            String::from_utf8(text).expect("`read` lets only visible ASCII in")
        };
        let tokens = TokenSet {
            access: AccessToken::try_from(token(&self.access)).expect("`read` lets only visible ASCII in"),
            refresh: self
                .refresh
                .as_ref()
                .map(|refresh| RefreshToken::try_from(token(refresh)).expect("`read` lets only visible ASCII in")),
            issued: self.issued,
            lifetime: self.lifetime,
        };
        let id = match &self.user_id {
            UserId::Number(number) => number.to_string(),
            UserId::Text(span) => text(span).to_owned(),
        };
        let name = if self.name.is_empty() { &self.username } else { &self.name };
        let scopes = self.scopes.as_ref().map(|span| text(span).split_terminator(' ').map(str::to_owned).collect());
        Session {
            created_at: self.created_at,
            expires_at: self.expires_at,
            idle_expires_at: self.idle_expires_at,
            user: User { id, username: text(&self.username).to_owned(), name: text(name).to_owned() },
            scopes,
            tokens,
            is_personal: self.is_personal,
        }
    }
}

/// A user's id, or where it is.
#[derive(Debug)]
pub(super) enum UserId {
    Number(u64),
    /// Anything but the decimal form of a number.
    Text(Range<usize>),
}

/// Where a token is, and in which form.
#[derive(Debug)]
pub enum Token {
    /// The bytes that lower-case hex stands for; never empty.
    Packed(Range<usize>),
    /// Visible ASCII; neither empty nor hex that could be packed.
    Plain(Range<usize>),
}

impl Token {
    /// Length of the token itself, in bytes.
    fn len(&self) -> usize {
        match self {
            Self::Packed(span) => span.len() * 2,
            Self::Plain(span) => span.len(),
        }
    }

    /// The [`filter_hash`] of the token itself, which is somewhere in `bytes`.
    pub(super) fn filter_hash(&self, bytes: &[u8]) -> u64 {
        match self {
            Self::Plain(span) => filter_hash(&bytes[span.clone()]),
            // Hex of four bytes, if there are as many.
            Self::Packed(span) => bytes[span.clone()].last_chunk::<4>().map_or(0, |end| {
                let digits = end.map(|byte| [hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
                filter_hash(digits.as_flattened())
            }),
        }
    }

    /// Appends the token itself, which is somewhere in `bytes`.
    pub fn write(&self, bytes: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Plain(span) => out.extend_from_slice(&bytes[span.clone()]),
            Self::Packed(span) => {
                let start = out.len();
                out.resize(start + self.len(), 0);
                for (digits, byte) in out[start..].chunks_exact_mut(2).zip(&bytes[span.clone()]) {
                    digits.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
                }
            }
        }
    }
}

impl Session {
    /// An upper bound of the encoding's length, in bytes.
    fn max_encoded_len(&self) -> usize {
        let texts = [&self.user.id, &self.user.username, &self.user.name].map(String::len).iter().sum::<usize>();
        let refresh = self.tokens.refresh.as_ref().map_or(0, |token| token.expose().len());
        let scopes = self.scopes.iter().flatten().map(|scope| scope.len() + 1).sum::<usize>();
        128 + texts + self.tokens.access.expose().len() + refresh + scopes
    }
}

/// Whether these are scopes with single spaces between them, or none at all.
fn are_scopes(text: &[u8]) -> bool {
    text.is_empty() || text.split(|byte| *byte == b' ').all(|scope| !scope.is_empty())
}

/// The name, cut at 64 bytes and between characters; nothing if the username tells it anyway, before the cut or after it.
pub(super) fn shown_name(user: &User) -> &str {
    let name = &user.name[..user.name.floor_char_boundary(MAX_NAME_BYTES)];
    if [name, &user.name].contains(&user.username.as_str()) { "" } else { name }
}

/// Since 1970, whole: what a cookie holds of a time.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// As [`OpenSession::user_key`](crate::session::open_session::OpenSession::user_key), of an id as text.
pub(super) fn user_key(id: &[u8]) -> u64 {
    decimal(id).unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        hasher.finish()
    })
}

/// What is left of a time beside its whole seconds, in milliseconds.
fn millis(time: SystemTime) -> u16 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u16::try_from(since.subsec_millis()).expect("there are a thousand in a second")
}

/// When a session began as its cookie has it: to the millisecond.
pub(super) fn stored(created_at: SystemTime) -> SystemTime {
    let millis = Duration::from_millis(millis(created_at).into());
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(created_at)) + millis
}

/// The number that `text` spells in the one way `to_string` would.
fn decimal(text: &[u8]) -> Option<u64> {
    let is_canonical = text == b"0" || text.first().is_some_and(|first| matches!(first, b'1'..=b'9'));
    str::from_utf8(text).ok().filter(|_| is_canonical)?.parse().ok()
}

/// Appends a number as LEB128.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// At most 136 years, which is as much as [`Reader::seconds`] takes.
fn put_seconds(out: &mut Vec<u8>, seconds: u64) {
    put_number(out, seconds.min(u32::MAX.into()));
}

/// Appends a text and, before it, its length.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Appends a token and, before it, its length doubled; packed to half if it is hex.
pub fn put_token(out: &mut Vec<u8>, token: &str) {
    let digits = token.as_bytes();
    if is_hex(digits) {
        put_number(out, digits.len() as u64 | 1);
        out.extend(digits.chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])));
    } else {
        put_number(out, digits.len() as u64 * 2);
        out.extend_from_slice(digits);
    }
}

fn is_hex(token: &[u8]) -> bool {
    token.len().is_multiple_of(2) && token.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

fn nibble(digit: u8) -> u8 {
    if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 }
}

/// Bytes, and how far they have been read. `None` is what is cut off, or in another form than its one.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// From the first byte on.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Whether all has been read.
    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Where the next so many bytes are.
    pub fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let span = self.at..self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        self.at = span.end;
        Some(span)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A number: LEB128, shortest form only.
    pub fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return (byte != 0 || shift == 0).then_some(number);
            }
        }
        None
    }

    /// At most 136 years, so that no sum of times overflows.
    fn seconds(&mut self) -> Option<Duration> {
        self.number().filter(|seconds| *seconds <= u32::MAX.into()).map(Duration::from_secs)
    }

    /// Where a text is, which is UTF-8.
    pub fn text(&mut self) -> Option<Range<usize>> {
        let length = self.number()?.try_into().ok()?;
        let span = self.take(length)?;
        let text = &self.bytes[span.clone()];
        // Most texts are ASCII, which is quickly seen.
        (text.is_ascii() || str::from_utf8(text).is_ok()).then_some(span)
    }

    /// Where a token is, and in which form.
    pub fn token(&mut self) -> Option<Token> {
        let length: usize = self.number()?.try_into().ok()?;
        let span = self.take(length / 2).filter(|span| !span.is_empty())?;
        if !length.is_multiple_of(2) {
            return Some(Token::Packed(span));
        }
        let token = &self.bytes[span.clone()];
        (!is_hex(token) && token.iter().all(u8::is_ascii_graphic)).then_some(Token::Plain(span))
    }
}

/// The digit of a value below 16, by arithmetic: a table would be read at places that tell of the token.
fn hex_digit(value: u8) -> u8 {
    b'0' + value + u8::from(value > 9) * (b'a' - b'9' - 1)
}

/// Of a name, in bytes.
const MAX_NAME_BYTES: usize = 64;
const NUMERIC_ID: u8 = 1;
const REFRESHABLE: u8 = 2;
const OWN_SCOPES: u8 = 4;
/// Beside [`REFRESHABLE`] never.
const PERSONAL: u8 = 8;
const MILLISECONDS: u8 = 16;
const FLAGS: u8 = NUMERIC_ID | REFRESHABLE | OWN_SCOPES | PERSONAL | MILLISECONDS;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::cookie::SealedCookie;
    use crate::seal::{Key, Keyring};

    fn session(access: &str, refresh: Option<&str>) -> Session {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Session {
            created_at: at(1_795_000_000),
            expires_at: at(1_795_604_800),
            idle_expires_at: at(1_795_386_400),
            user: User { id: "1234567".into(), username: "testuser".into(), name: "Test Üsr".into() },
            scopes: None,
            tokens: TokenSet {
                access: access.to_owned().try_into().expect("visible ASCII"),
                refresh: refresh.map(|token| token.to_owned().try_into().expect("visible ASCII")),
                issued: at(1_795_300_000),
                lifetime: Duration::from_hours(2),
            },
            is_personal: false,
        }
    }

    #[test]
    fn every_kind_of_session_comes_back_as_it_was() {
        let hex = "0123456789abcdef".repeat(4);
        let mut personal = session("glpat-AbCdEfGhIjKlMnOpQrSt", None);
        personal.is_personal = true;
        let mut own_scopes = session(&hex, Some(&hex));
        own_scopes.scopes = Some(vec!["openid".into(), "read_api".into()]);
        let mut same_name = session(&hex, Some(&hex));
        same_name.user.name = "testuser".into();
        let mut odd_id = session(&hex, Some(&hex));
        odd_id.user.id = "007".into();
        let mut within = session(&hex, Some(&hex));
        within.created_at += Duration::from_millis(999);
        for (case, session) in [
            ("GitLab's tokens", session(&hex, Some(&hex))),
            ("a token without a refresh token", session("AbCdEfGhIjKlMnOpQrSt", None)),
            ("a personal token", personal),
            ("a token of an odd number of hex digits", session("abc", Some("abcd"))),
            ("a token of capital hex digits", session("ABCD", Some("gliamat-eyJh.eyJz.c2ln"))),
            ("scopes of its own", own_scopes),
            ("a name like the username", same_name),
            ("a login within a second", within),
            ("a user id that is no plain number", odd_id),
        ] {
            assert_eq!(Session::decode(&session.encode()).as_ref(), Some(&session), "{case}");
        }
    }

    proptest! {
        #[test]
        fn any_session_comes_back_as_it_was_from_its_bytes_and_from_its_cookie(session in any_session()) {
            let encoded = session.encode();
            prop_assert!(encoded.len() <= session.max_encoded_len(), "its bytes have moved, and left a copy behind");
            prop_assert_eq!(Session::decode(&encoded), Some(session.clone()));

            let keyring = Keyring::new(vec![Key::generate().parse().expect("a generated key")]).expect("one key");
            let cookie = SealedCookie::<Session>::new("__Host-Http-session-a".into(), "https://app.example.org");
            let value = cookie.seal(&keyring, &[7; 16], &session);
            prop_assert_eq!(cookie.unseal(&keyring, &[7; 16], value.as_bytes()), Ok(session));
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(bytes in any_session().prop_map(|s| s.encode().to_vec()), at in any::<usize>(), byte: u8) {
            let mut altered = bytes;
            let at = at % altered.len();
            altered[at] = byte;
            if let Some(session) = Session::decode(&altered) {
                prop_assert_eq!(session.encode().to_vec(), altered);
            }
        }
    }

    /// Sessions as a DataHUB may cause them: tokens of any visible ASCII, names of any characters.
    pub(in crate::session) fn any_session() -> impl Strategy<Value = Session> {
        let token = || prop_oneof!["[!-~]{1,1300}", "([0-9a-f]{2}){1,64}"];
        let text = "\\PC{0,16}";
        let times =
            ((0..u64::from(u32::MAX), 0..1_000_u64), 0..600_000_u64, 0..86_400_u64, 0..600_000_u64, 0..600_000_u64);
        let user = (prop_oneof!["[0-9]{1,20}", text], text, text);
        let scopes = proptest::option::of(proptest::collection::vec("[a-z_]{1,12}", 1..4));
        (times, user, scopes, token(), proptest::option::of(token())).prop_map(
            |(((second, millis), age, lifetime, max_age, idle), (id, username, name), scopes, access, refresh)| {
                let second = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
                let created_at = second + Duration::from_millis(millis);
                let issued = second + Duration::from_secs(age);
                let name = if name.is_empty() { username.clone() } else { name };
                let is_personal = refresh.is_none() && lifetime.is_multiple_of(2);
                Session {
                    created_at,
                    expires_at: second + Duration::from_secs(max_age),
                    idle_expires_at: issued + Duration::from_secs(idle),
                    user: User { id, username, name },
                    scopes,
                    tokens: TokenSet {
                        access: access.try_into().expect("visible ASCII"),
                        refresh: refresh.map(|token| token.try_into().expect("visible ASCII")),
                        issued,
                        lifetime: Duration::from_secs(lifetime),
                    },
                    is_personal,
                }
            },
        )
    }

    #[test]
    fn the_usual_session_fits_into_200_characters_for_good() {
        let hex = "0123456789abcdef".repeat(4);
        let mut usual = session(&hex, Some(&hex));
        usual.user.name = "8 bytes!".into();
        usual.created_at += Duration::from_millis(1);
        // Version, key id, nonce and tag are 45 bytes; base64url makes 200 characters of 150.
        assert!(usual.encode().len() <= 150 - 45, "{}", usual.encode().len());
    }

    #[test]
    fn nothing_but_the_one_encoding_decodes() {
        let encoded = session("abcd", Some("xyz")).encode();
        for length in 0..encoded.len() {
            assert_eq!(Session::decode(&encoded[..length]), None, "cut to {length}");
        }
        assert_eq!(Session::decode(&[encoded.as_slice(), b"\0"].concat()), None, "one byte more");
        let mut unknown_flag = encoded.to_vec();
        unknown_flag[0] |= 0x80;
        assert_eq!(Session::decode(&unknown_flag), None);
        for (millis, is_good) in [(0_u16, false), (1, true), (999, true), (1_000, false)] {
            let within = [&[encoded[0] | MILLISECONDS], &encoded[1..5], &millis.to_be_bytes(), &encoded[5..]].concat();
            assert_eq!(Session::decode(&within).is_some(), is_good, "{millis} milliseconds");
        }
        let mut personal_pair = encoded.to_vec();
        personal_pair[0] |= PERSONAL;
        assert_eq!(Session::decode(&personal_pair), None, "a personal token that could be renewed");
        let number = |bytes| Reader { bytes, at: 0 }.number();
        assert_eq!(number(&[0x80, 0]), None, "a number that is longer than it need be");
        assert_eq!(number(&[0x7f]), Some(127));
        let token = |bytes| {
            let mut text = Vec::new();
            Reader { bytes, at: 0 }.token()?.write(bytes, &mut text);
            Some(text)
        };
        assert_eq!(token(&[8, b'a', b'b', b'c', b'd']), None, "hex that is not packed");
        assert_eq!(token(&[6, b'a', b'b', b'c']).as_deref(), Some(&b"abc"[..]));
    }

    #[test]
    fn a_name_is_written_only_where_it_tells_something_and_never_long() {
        let mut marked = session("abcd", None);
        marked.user.name = "NAME".into();
        let encoded = marked.encode();
        let at = encoded.windows(5).position(|bytes| bytes == b"\x04NAME").expect("the name");
        let named = |name: &str| {
            let mut piece = Vec::new();
            put_text(&mut piece, name);
            let decoded = Session::decode(&[&encoded[..at], &piece, &encoded[at + 5..]].concat());
            decoded.map(|session| session.user.name)
        };
        assert_eq!(named("testuser"), None, "as the username is");
        assert_eq!(named(&"x".repeat(65)), None);
        assert_eq!(named(&"x".repeat(64)), Some("x".repeat(64)));
        assert_eq!(named(""), Some("testuser".into()));
    }

    #[test]
    fn a_long_name_is_cut_between_characters_and_may_be_the_username_then() {
        let x = |count| "x".repeat(count);
        for (username, name, shown) in [
            ("testuser", format!("a{}", "ü".repeat(40)), format!("a{}", "ü".repeat(31))),
            (&x(64), format!("{} of the longer name", x(64)), x(64)),
            (&x(64), x(65), x(64)),
            (&x(64), x(64), x(64)),
            (&x(65), x(65), x(65)),
            (&x(65), x(66), x(64)),
            (&x(63), x(64), x(64)),
            (&format!("a{}", "ü".repeat(31)), format!("a{}", "ü".repeat(32)), format!("a{}", "ü".repeat(31))),
        ] {
            let mut long = session("abcd", None);
            (long.user.username, long.user.name) = (username.to_owned(), name.clone());
            let encoded = long.encode();
            let decoded = Session::decode(&encoded).map(|session| (session.encode(), session.user.name));
            assert_eq!(decoded, Some((encoded, shown)), "{username} {name}");
        }
    }
}
