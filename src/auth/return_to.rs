//! Where a person wanted to go before logging in: a path of our own origin, or nothing.
//!
//! Browsers and URL parsers disagree about almost every odd path, so this takes plain ones only: one slash, then letters
//! that nobody decodes twice. Behind the first question mark nothing leads to another origin any more; there all that a
//! header's value can hold passes as it is.

/// A path, with its query, that leads nowhere but to our own origin, or to one where the app is developed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnTo(String);

impl ReturnTo {
    /// `None` for whatever is not plainly such a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let is_safe = text.len() <= MAX_BYTES
            && path.starts_with('/')
            && !path.contains("//")
            && path.split('/').all(|segment| !is_dots(segment))
            && is_plain(path)
            && query.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'));
        is_safe.then(|| Self(text.to_owned()))
    }

    /// The same at a development origin, `otherwise` where nothing is said.
    pub(super) fn at(origin: &str, path: Option<&Self>, otherwise: &str) -> Self {
        Self(format!("{origin}{}", path.map_or(otherwise, |Self(path)| path)))
    }

    /// What a login cookie has kept; it was parsed before it was sealed.
    pub(super) fn restore(text: String) -> Option<Self> {
        (!text.is_empty()).then_some(Self(text))
    }

    /// The path and query, behind the origin if it is another than ours.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// `.` or `..`, with dots written as `%2e` or not.
fn is_dots(segment: &str) -> bool {
    matches!(segment.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | "..")
}

/// The characters of RFC 3986's paths, and escapes of all but controls, `/`, `\`, `%` and DEL.
fn is_plain(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = match byte {
            b'%' => {
                let [high, low, after @ ..] = after else { return false };
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else { return false };
                if matches!(high * 16 + low, 0x00..=0x1f | 0x25 | 0x2f | 0x5c | 0x7f) {
                    return false;
                }
                after
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => after,
            byte if b"-._~!$&'()*+,;=:@/".contains(byte) => after,
            _ => return false,
        };
    }
    true
}

/// Longest path with its query, in bytes.
const MAX_BYTES: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_our_own_is_kept() {
        for text in [
            "/",
            "/arcmanager/app/",
            "/a/b.html?x=1&y=%C3%BC",
            "/a:b@c/(d)'e*;f=,g~!$",
            "/a?b?c",
            "/a...b/.c",
            "/app/?project=lu98be%2Ftestarc",
            "/a?to=//evil.test/../%2e%2e",
            "/a?x=100%25&y=%zz&z=%0d%0a",
            "/a?b=[{|}]^`<>#/route",
        ] {
            assert_eq!(ReturnTo::parse(text).map(ReturnTo::into_string).as_deref(), Some(text));
        }
    }

    #[test]
    fn whatever_might_lead_elsewhere_is_dropped() {
        let long = format!("/{}", "a".repeat(MAX_BYTES));
        for text in [
            "",
            "a",
            "//evil.test",
            "/\\evil.test",
            "\\/evil.test",
            "/%09/evil.test",
            "/%2f/evil.test",
            "/%5cevil.test",
            "/a//b",
            "/./a",
            "/../a",
            "/%2e%2E/a",
            "/a/..",
            "https://evil.test",
            "javascript:alert(1)",
            "/a#b",
            "/ a",
            "/a\r\nb",
            "/a%",
            "/a%2",
            "/a%zz",
            "/%252f",
            "/ü",
            "/a\0",
            "/%00",
            "/a?b=\\",
            "/a?b=\"",
            "/a?b c",
            "/a?b\r\nc",
            "/a?ü",
            "/a?b=\u{7f}",
            "/%2e%2e/?a",
            "/<b>",
            "/\"",
            long.as_str(),
        ] {
            assert_eq!(ReturnTo::parse(text), None, "{text}");
        }
    }
}
