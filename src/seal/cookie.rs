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
use crate::seal::{Keyring, UnsealError};

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
        keyring.seal(&self.bound_to(sid), &value.encode())
    }

    /// What a cookie's raw value holds.
    ///
    /// # Errors
    /// [`UnsealError`], whatever the reason.
    pub fn unseal(&self, keyring: &Keyring, sid: &[u8; 16], value: &[u8]) -> Result<T, UnsealError> {
        let plaintext = keyring.unseal(&self.bound_to(sid), value);
        let value = plaintext.ok().and_then(|plaintext| T::decode(&plaintext));
        value.ok_or_else(|| {
            metrics::unseal_failed();
            UnsealError
        })
    }

    fn bound_to(&self, sid: &[u8; 16]) -> Vec<u8> {
        [sid, self.context.as_slice()].concat()
    }
}

/// What the request's Cookie fields hold under one name.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// No cookie of that name.
    None,
    /// Its raw value.
    One(&'a [u8]),
    /// More than one: counts as none, and is worth a line in the log.
    Several,
}

/// Looks for the exact bytes of `name` in all Cookie fields (RFC 6265 section 4.2.1); nothing is decoded.
pub fn find<'a>(headers: &'a HeaderMap, name: &str) -> Found<'a> {
    let mut found = Found::None;
    for pair in headers.get_all(COOKIE).flat_map(|field| field.as_bytes().split(|byte| *byte == b';')) {
        let pair = pair.trim_ascii_start();
        if let Some(value) = pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) {
            if found != Found::None {
                return Found::Several;
            }
            found = Found::One(value);
        }
    }
    found
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
    use actix_web::test::TestRequest;

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
            ("n=1; n=2", Found::Several),
            ("n=1;n=1", Found::Several),
            ("%6E=2", Found::None),
            ("N=2", Found::None),
            ("n =2", Found::None),
            ("x=n=2", Found::None),
            ("nn=2; n; ;;;=", Found::None),
            ("", Found::None),
        ] {
            let request = TestRequest::default().insert_header((COOKIE, header)).to_srv_request();
            assert_eq!(find(request.headers(), "n"), expected, "{header}");
        }
    }

    #[test]
    fn two_fields_are_read_as_one() {
        let request = TestRequest::default().append_header((COOKIE, "n=1")).append_header((COOKIE, "m=2"));
        let request = request.append_header((COOKIE, "n=3")).to_srv_request();
        assert_eq!(find(request.headers(), "m"), Found::One(b"2"));
        assert_eq!(find(request.headers(), "n"), Found::Several);
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
