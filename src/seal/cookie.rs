//! A typed value, sealed into one cookie.
//!
//! The cookie's name is authenticated too, so a login cookie is never taken for a session, nor one DataHUB's session for
//! another's; and so are the login it belongs to (its sid) and our origin, so a cookie is worth nothing on another
//! deployment that happens to hold the same key. Cookies are read from the raw header: exact name, nothing decoded, and
//! two of one name count as none, since nobody can tell which one is ours (a sibling domain may have set the other).

use std::marker::PhantomData;
use std::time::Duration;

use actix_web::http::header::{COOKIE, HeaderMap, HeaderValue};
use cookie::{Cookie, SameSite};
use zeroize::Zeroizing;

use crate::metrics;
use crate::seal::{Keyring, UnsealError, Unsealed};

/// What can be sealed: a value with exactly one encoding.
pub trait Plaintext: Sized {
    /// The value as bytes.
    fn encode(&self) -> Zeroizing<Vec<u8>>;
    /// The value of `bytes`; `None` unless they are its one encoding.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// Which cookie holds a `T`, and what its seal is bound to.
#[derive(Debug)]
pub struct SealedCookie<T> {
    name: String,
    /// Name, a zero byte, our origin: what follows the sid in the additional data.
    context: Vec<u8>,
    holds: PhantomData<fn() -> T>,
}

impl<T: Plaintext> SealedCookie<T> {
    /// `origin` is that of `server.public_url`.
    pub fn new(name: String, origin: &str) -> Self {
        let context = [name.as_bytes(), b"\0", origin.as_bytes()].concat();
        Self { name, context, holds: PhantomData }
    }

    /// The cookie's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cookie's value; it unseals beside the same `sid` only.
    pub fn seal(&self, keyring: &Keyring, sid: &[u8; 16], value: &T) -> String {
        keyring.seal(&[sid, &self.context], &value.encode())
    }

    /// What a cookie's raw value holds.
    ///
    /// # Errors
    /// [`UnsealError`], whatever the reason.
    pub fn unseal(&self, keyring: &Keyring, sid: &[u8; 16], value: &[u8]) -> Result<T, UnsealError> {
        self.unseal_as(keyring, sid, value, |plaintext| T::decode(&plaintext))
    }

    /// What `read` makes of the encoding of a `T`, which it may keep; it refuses whatever `T` refuses.
    ///
    /// # Errors
    /// [`UnsealError`], whatever the reason.
    pub fn unseal_as<R>(
        &self,
        keyring: &Keyring,
        sid: &[u8; 16],
        value: &[u8],
        read: impl FnOnce(Unsealed) -> Option<R>,
    ) -> Result<R, UnsealError> {
        let plaintext = keyring.unseal(&[sid, &self.context], value);
        plaintext.ok().and_then(read).ok_or_else(|| {
            metrics::unseal_failed();
            UnsealError
        })
    }
}

/// What the request's Cookie fields hold under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// No cookie of that name.
    None,
    /// Its raw value.
    One(&'a [u8]),
    /// More than one: counts as none, and is worth a line in the log.
    Duplicate,
}

/// The raw values of the Cookie fields among `headers`.
pub fn fields(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(COOKIE).map(HeaderValue::as_bytes)
}

/// Looks for the exact bytes of each of `names` in the raw values of all Cookie fields (RFC 6265 section 4.2.1), in one
/// pass; nothing is decoded.
pub fn find<'a, const N: usize>(fields: impl Iterator<Item = &'a [u8]>, names: [&str; N]) -> [Found<'a>; N] {
    let mut found = [Found::None; N];
    for pair in fields.flat_map(pairs) {
        for (name, found) in names.iter().zip(&mut found) {
            if pair.get(name.len()) == Some(&b'=') && pair.starts_with(name.as_bytes()) {
                *found = match found {
                    Found::None => Found::One(&pair[name.len() + 1..]),
                    Found::One(_) | Found::Duplicate => Found::Duplicate,
                };
            }
        }
    }
    found
}

/// What stands between the semicolons, without the white space before it.
fn pairs(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(field);
    std::iter::from_fn(move || {
        let field = rest?;
        let end = memchr::memchr(b';', field);
        rest = end.map(|end| &field[end + 1..]);
        Some(field[..end.unwrap_or(field.len())].trim_ascii_start())
    })
}

/// A Set-Cookie field for a cookie that only same-site requests carry; it ends after `max_age`, in whole seconds.
pub fn set(name: &str, value: &str, max_age: Duration) -> HeaderValue {
    field(name, value, max_age)
}

/// A Set-Cookie field that removes what [`set`] has set. The attributes are the same: browsers keep a `__Host-` cookie
/// that is removed without `Secure` or `Path=/`.
pub fn remove(name: &str) -> HeaderValue {
    field(name, "", Duration::ZERO)
}

fn field(name: &str, value: &str, max_age: Duration) -> HeaderValue {
    let max_age = cookie::time::Duration::seconds(max_age.as_secs().try_into().unwrap_or(i64::MAX));
    let cookie = Cookie::build((name, value))
        .secure(true)
        .http_only(true)
        .same_site(SameSite::Strict)
        .path("/")
        .max_age(max_age);
    HeaderValue::from_str(&cookie.to_string()).expect("cookie names and base64url are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::Key;

    /// CR-03.
    #[test]
    fn a_value_unseals_under_its_own_name_sid_and_origin_only() {
        let keyring = Keyring::new(vec![Key::generate().parse().expect("a generated key")]).expect("one key");
        let cookie = |name: &str, origin| SealedCookie::<Text>::new(name.to_owned(), origin);
        let here = cookie("__Host-Http-session-a", "https://here.example");
        let value = here.seal(&keyring, &[1; 16], &Text("hello".into()));
        assert_eq!(here.name(), "__Host-Http-session-a");

        let unsealed = |by: &SealedCookie<Text>, sid| by.unseal(&keyring, sid, value.as_bytes());
        assert_eq!(unsealed(&here, &[1; 16]), Ok(Text("hello".into())));
        assert_eq!(unsealed(&here, &[2; 16]), Err(UnsealError), "another login's sid");
        assert_eq!(unsealed(&cookie("__Host-Http-session-b", "https://here.example"), &[1; 16]), Err(UnsealError));
        assert_eq!(unsealed(&cookie("__Host-Http-session-a", "https://there.example"), &[1; 16]), Err(UnsealError));
    }

    /// SC-02, SC-03.
    #[test]
    fn a_cookie_is_found_by_its_exact_bytes() {
        for (header, expected) in [
            ("a=1; n=2; b=3", Found::One(&b"2"[..])),
            ("n=2", Found::One(b"2")),
            ("n=", Found::One(b"")),
            ("n=2 ", Found::One(b"2 ")),
            ("n=a=b", Found::One(b"a=b")),
            ("n=\"2\"", Found::One(b"\"2\"")),
            ("n=1; n=2", Found::Duplicate),
            ("n=1;n=1", Found::Duplicate),
            ("%6E=2", Found::None),
            ("N=2", Found::None),
            ("n =2", Found::None),
            ("x=n=2", Found::None),
            ("nn=2; n; ;;;=", Found::None),
            ("", Found::None),
        ] {
            assert_eq!(find([header.as_bytes()].into_iter(), ["n"]), [expected], "{header}");
        }
    }

    #[test]
    fn two_fields_are_read_as_one() {
        let fields = [&b"n=1"[..], b"m=2", b"n=3"];
        assert_eq!(find(fields.into_iter(), ["m", "n", "o"]), [Found::One(b"2"), Found::Duplicate, Found::None]);
    }

    #[test]
    fn removing_repeats_every_attribute_of_setting() {
        let set = set("__Host-Http-sid-a", "v", Duration::from_mins(1));
        assert_eq!(set, "__Host-Http-sid-a=v; HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=60");
        let removed = remove("__Host-Http-sid-a");
        assert_eq!(removed, "__Host-Http-sid-a=; HttpOnly; SameSite=Strict; Secure; Path=/; Max-Age=0");
    }

    #[derive(Debug, PartialEq)]
    struct Text(String);

    impl Plaintext for Text {
        fn encode(&self) -> Zeroizing<Vec<u8>> {
            Zeroizing::new(self.0.clone().into_bytes())
        }

        fn decode(bytes: &[u8]) -> Option<Self> {
            String::from_utf8(bytes.to_vec()).ok().map(Self)
        }
    }
}
