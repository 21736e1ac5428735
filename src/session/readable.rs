//! The cookies that the ARCmanager's app reads by script: who is logged in, and how long the access token lives.
//!
//! They hold no secret and open nothing; the gateway never reads them. The app's way to read them is what each must survive:
//! it decodes `username` twice, takes what is JSON for an object, adds two hours to `timer`, and alerts whatever follows
//! `error=` if any name or value of a cookie has that word in it.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use actix_web::http::header::HeaderValue;
use cookie::{Cookie, SameSite};
use serde::de::IgnoredAny;

use crate::datahub::oidc::User;
use crate::session::Session;
use crate::session::encoding::shown_name;

/// The Set-Cookie fields that describe `session`, which is the one that began last; or remove what described one.
pub(super) fn cookies(session: Option<&Session>) -> Vec<HeaderValue> {
    let [logged_in, timer, username, pat] = NAMES;
    let Some(session) = session else {
        return NAMES.map(remove).into();
    };
    vec![
        set(logged_in, "true", None),
        set(timer, &timer_value(session.tokens.expires_at()), None),
        set(username, &username_value(&session.user), None),
        if session.is_personal { set(pat, "true", None) } else { remove(pat) },
    ]
}

/// What the app alerts when it is loaded next. It cannot remove the cookie, which therefore lives for the way back to the app
/// and little longer. `text` is one of ours: visible ASCII and single spaces, without quotes, commas and semicolons.
pub fn error(text: &'static str) -> HeaderValue {
    set(ERROR, text, Some(ERROR_LIFETIME))
}

/// Removes what [`error`] has set: after a login that went well nobody wants to hear of the one before.
pub fn no_error() -> HeaderValue {
    remove(ERROR)
}

/// Two hours before the access token ends, in seconds, as Python writes a time: the app adds the two hours.
fn timer_value(expires_at: SystemTime) -> String {
    let seconds = expires_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{}.0", seconds.saturating_sub(ASSUMED_LIFETIME.as_secs()))
}

/// The person's name, such that decoding it twice gives it back: `%` is escaped twice, all else once.
fn username_value(user: &User) -> String {
    let name = Some(shown_name(user)).filter(|name| !name.is_empty()).unwrap_or(&user.username);
    let is_json = name.trim_start().starts_with(['[', '{']) || serde_json::from_str::<IgnoredAny>(name).is_ok();
    if name.is_empty() || is_json {
        return NOBODY.to_owned();
    }
    let mut value = String::new();
    for byte in name.replace('%', "%25").bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => value.push(char::from(byte)),
            _ => write!(value, "%{byte:02X}").expect("a String takes everything"),
        }
    }
    // The app looks for the word before it decodes anything.
    value.replace(ERROR, "%65rror")
}

fn set(name: &'static str, value: &str, max_age: Option<Duration>) -> HeaderValue {
    // A session cookie of the browser's, as the app has always had them, unless it is to go by itself.
    let mut cookie = Cookie::build((name, value)).secure(true).same_site(SameSite::Strict).path("/");
    if let Some(max_age) = max_age {
        let seconds = max_age.as_secs().try_into().unwrap_or(i64::MAX);
        cookie = cookie.max_age(cookie::time::Duration::seconds(seconds));
    }
    HeaderValue::from_str(&cookie.to_string()).expect("names and values here are visible ASCII and spaces")
}

fn remove(name: &'static str) -> HeaderValue {
    set(name, "", Some(Duration::ZERO))
}

/// What describes a session.
const NAMES: [&str; 4] = ["logged_in", "timer", "username", "pat"];
/// What the app alerts, and the word it looks for.
const ERROR: &str = "error";
/// At most a minute, or people who load the app again hear of it again.
const ERROR_LIFETIME: Duration = Duration::from_secs(20);
/// For how long the app takes an access token to live.
const ASSUMED_LIFETIME: Duration = Duration::from_hours(2);
/// Who has no name that the app could show.
const NOBODY: &str = "user";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn username(name: &str) -> String {
        username_value(&User { id: "7".into(), username: "testuser".into(), name: name.into() })
    }

    #[test]
    fn a_name_comes_as_the_app_decodes_it() {
        for (name, value) in [
            ("Test", "Test"),
            ("Jörg 100% Müller", "J%C3%B6rg%20100%2525%20M%C3%BCller"),
            ("100% Bob", "100%2525%20Bob"),
            ("a+b; c=\"d\", e\\", "a%2Bb%3B%20c%3D%22d%22%2C%20e%5C"),
            ("%2F", "%25252F"),
            ("a\r\nb\0", "a%0D%0Ab%00"),
            ("Terror errorson", "T%65rror%20%65rrorson"),
            ("Error", "Error"),
            ("Bob [admin]", "Bob%20%5Badmin%5D"),
            // What the app would take for an object, or a number.
            ("[Bob]", "user"),
            (" {\"a\":1}", "user"),
            ("{", "user"),
            ("42", "user"),
            ("null", "user"),
            ("\"Bob\"", "user"),
            // The username stands for it.
            ("", "testuser"),
            ("testuser", "testuser"),
        ] {
            assert_eq!(username(name), value, "{name}");
        }
        assert_eq!(username_value(&User { id: "7".into(), username: String::new(), name: String::new() }), "user");
    }

    proptest! {
        #[test]
        fn whatever_the_name_decoding_it_twice_gives_it_back(name in "(\\PC|%|error|[0-9a-f]){0,16}") {
            let value = username(&name);
            prop_assert!(value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~%".contains(&byte)), "{}", value);
            prop_assert!(!value.contains("error"), "{}", value);
            let decoded = |text: &str| percent_decoded(text);
            let twice = decoded(&decoded(&value));
            prop_assert!(twice == name || twice == "user" || name.is_empty(), "{} {}", value, twice);
        }
    }

    fn percent_decoded(text: &str) -> String {
        let mut out = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                let digits = str::from_utf8(&digits).expect("ASCII");
                out.push(u8::from_str_radix(digits, 16).expect("hex"));
            } else {
                out.push(byte);
            }
        }
        String::from_utf8(out).expect("what was encoded")
    }

    #[test]
    fn the_timer_is_two_hours_before_the_end_of_the_token() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(timer_value(at(1_721_007_200)), "1721000000.0");
        assert_eq!(timer_value(at(7_100)), "0.0");
    }

    #[test]
    fn scripts_may_read_them_and_other_sites_do_not_send_them() {
        assert_eq!(set("logged_in", "true", None), "logged_in=true; SameSite=Strict; Secure; Path=/");
        assert_eq!(remove("pat"), "pat=; SameSite=Strict; Secure; Path=/; Max-Age=0");
        assert_eq!(error("a b"), "error=a b; SameSite=Strict; Secure; Path=/; Max-Age=20");
    }
}
