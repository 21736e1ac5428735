//! A session as few bytes: what the seal of the session cookie holds.
//!
//! ```text
//! flags (1) | created_at (u32) | issued - created_at | lifetime | expires_at - created_at
//!   | idle_expires_at - issued | user id | username | name | access token | refresh token, if there is one | scopes, if they are not the configured ones
//! ```
//!
//! Times are whole seconds, `created_at` since 1970 and big-endian, the others LEB128. A text is its length as LEB128 and
//! its bytes. A token's length is doubled; an odd one says that the token is lower-case hex and packed to half. A user id that
//! is a decimal number is LEB128. A name that equals the username is empty, and no name is longer than 64 bytes. Scopes are
//! one text, separated by spaces. Each session has one encoding: whatever else decodes is refused.

#![expect(clippy::disallowed_methods, reason = "what is packed here is sealed next")]

use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::datahub::oidc::User;
use crate::datahub::token::{AccessToken, RefreshToken, TokenSet};
use crate::seal::cookie::Plaintext;
use crate::session::Session;

impl Plaintext for Session {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let number = decimal(&self.user.id);
        let flags = [
            (NUMERIC_ID, number.is_some()),
            (REFRESHABLE, self.tokens.refresh.is_some()),
            (OWN_SCOPES, self.scopes.is_some()),
        ];
        // One allocation that never moves, so that no copy of a token stays behind.
        let mut out = Zeroizing::new(Vec::with_capacity(self.max_encoded_len()));
        out.push(flags.iter().filter(|(_, set)| *set).map(|(flag, _)| flag).sum());
        let created_at = seconds(self.created_at);
        out.extend_from_slice(&u32::try_from(created_at).unwrap_or(u32::MAX).to_be_bytes());
        put_number(&mut out, seconds(self.tokens.issued).saturating_sub(created_at));
        put_number(&mut out, self.tokens.lifetime.as_secs());
        put_number(&mut out, seconds(self.expires_at).saturating_sub(created_at));
        put_number(&mut out, seconds(self.idle_expires_at).saturating_sub(seconds(self.tokens.issued)));
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
        let mut rest = Reader(bytes);
        let flags = rest.byte()?;
        if flags & !(NUMERIC_ID | REFRESHABLE | OWN_SCOPES) != 0 {
            return None;
        }
        let created_at =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u32::from_be_bytes(rest.take(4)?.try_into().ok()?).into());
        let issued = created_at + rest.seconds()?;
        let lifetime = rest.seconds()?;
        let expires_at = created_at + rest.seconds()?;
        let idle_expires_at = issued + rest.seconds()?;
        let id = match flags & NUMERIC_ID {
            0 => rest.text().filter(|id| decimal(id).is_none())?,
            _ => rest.number()?.to_string(),
        };
        let username = rest.text()?;
        let name = match rest.text()? {
            name if name.is_empty() => username.clone(),
            name if name == username || name.len() > MAX_NAME_BYTES => return None,
            name => name,
        };
        let access = AccessToken::try_from(rest.token()?).ok()?;
        let refresh = match flags & REFRESHABLE {
            0 => None,
            _ => Some(RefreshToken::try_from(rest.token()?).ok()?),
        };
        let scopes = match flags & OWN_SCOPES {
            0 => None,
            _ => Some(scopes(&rest.text()?)?),
        };
        rest.0.is_empty().then_some(Self {
            created_at,
            expires_at,
            idle_expires_at,
            user: User { id, username, name },
            scopes,
            tokens: TokenSet { access, refresh, issued, lifetime },
        })
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

/// The scopes that are joined in `text`, single spaces between them.
fn scopes(text: &str) -> Option<Vec<String>> {
    let scopes = text.split(' ').map(|scope| (!scope.is_empty()).then(|| scope.to_owned()));
    if text.is_empty() { Some(Vec::new()) } else { scopes.collect() }
}

/// The name without what the username tells anyway, cut at 64 bytes and between characters.
fn shown_name(user: &User) -> &str {
    let name = if user.name == user.username { "" } else { &user.name };
    &name[..name.floor_char_boundary(MAX_NAME_BYTES)]
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The number that `text` spells in the one way `to_string` would.
fn decimal(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().filter(|number| number.to_string() == text)
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_token(out: &mut Vec<u8>, token: &str) {
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

/// What is left to decode.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// LEB128, shortest form only.
    fn number(&mut self) -> Option<u64> {
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

    fn text(&mut self) -> Option<String> {
        let length = self.number()?.try_into().ok()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn token(&mut self) -> Option<String> {
        let length: usize = self.number()?.try_into().ok()?;
        if length.is_multiple_of(2) {
            let token = self.take(length / 2).filter(|token| !is_hex(token))?;
            return String::from_utf8(token.to_vec()).ok();
        }
        let packed = self.take(length / 2)?;
        let mut token = vec![0; packed.len() * 2];
        for (digits, byte) in token.chunks_exact_mut(2).zip(packed) {
            digits.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
        }
        Some(String::from_utf8(token).expect("hex digits are ASCII"))
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";
/// Of a name, in bytes.
const MAX_NAME_BYTES: usize = 64;
const NUMERIC_ID: u8 = 1;
const REFRESHABLE: u8 = 2;
const OWN_SCOPES: u8 = 4;

#[cfg(test)]
mod tests {
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
        }
    }

    #[test]
    fn every_kind_of_session_comes_back_as_it_was() {
        let hex = "0123456789abcdef".repeat(4);
        let mut own_scopes = session(&hex, Some(&hex));
        own_scopes.scopes = Some(vec!["openid".into(), "read_api".into()]);
        let mut same_name = session(&hex, Some(&hex));
        same_name.user.name = "testuser".into();
        let mut odd_id = session(&hex, Some(&hex));
        odd_id.user.id = "007".into();
        for (case, session) in [
            ("GitLab's tokens", session(&hex, Some(&hex))),
            ("a personal token", session("glpat-AbCdEfGhIjKlMnOpQrSt", None)),
            ("a token of an odd number of hex digits", session("abc", Some("abcd"))),
            ("a token of capital hex digits", session("ABCD", Some("gliamat-eyJh.eyJz.c2ln"))),
            ("scopes of its own", own_scopes),
            ("a name like the username", same_name),
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
    fn any_session() -> impl Strategy<Value = Session> {
        let token = || prop_oneof!["[!-~]{1,1300}", "([0-9a-f]{2}){1,64}"];
        let text = "\\PC{0,16}";
        let times = (0..u64::from(u32::MAX), 0..600_000_u64, 0..86_400_u64, 0..600_000_u64, 0..600_000_u64);
        let user = (prop_oneof!["[0-9]{1,20}", text], text, text);
        let scopes = proptest::option::of(proptest::collection::vec("[a-z_]{1,12}", 1..4));
        (times, user, scopes, token(), proptest::option::of(token())).prop_map(
            |((created_at, age, lifetime, max_age, idle), (id, username, name), scopes, access, refresh)| {
                let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(created_at);
                let issued = created_at + Duration::from_secs(age);
                let name = if name.is_empty() { username.clone() } else { name };
                Session {
                    created_at,
                    expires_at: created_at + Duration::from_secs(max_age),
                    idle_expires_at: issued + Duration::from_secs(idle),
                    user: User { id, username, name },
                    scopes,
                    tokens: TokenSet {
                        access: access.try_into().expect("visible ASCII"),
                        refresh: refresh.map(|token| token.try_into().expect("visible ASCII")),
                        issued,
                        lifetime: Duration::from_secs(lifetime),
                    },
                }
            },
        )
    }

    #[test]
    fn the_usual_session_fits_into_200_characters_for_good() {
        let hex = "0123456789abcdef".repeat(4);
        let mut usual = session(&hex, Some(&hex));
        usual.user.name = "8 bytes!".into();
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
        assert_eq!(Reader(&[0x80, 0]).number(), None, "a number that is longer than it need be");
        assert_eq!(Reader(&[0x7f]).number(), Some(127));
        assert_eq!(Reader(&[8, b'a', b'b', b'c', b'd']).token(), None, "hex that is not packed");
        assert_eq!(Reader(&[6, b'a', b'b', b'c']).token().as_deref(), Some("abc"));
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
    fn a_long_name_is_cut_between_characters() {
        let mut long = session("abcd", None);
        long.user.name = format!("a{}", "ü".repeat(40));
        let decoded = Session::decode(&long.encode()).expect("our own encoding");
        assert_eq!(decoded.user.name, format!("a{}", "ü".repeat(31)));
    }
}
