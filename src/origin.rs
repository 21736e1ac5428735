//! Turns away what is not this origin's own script.
//!
//! Cookies come along with whatever a browser sends, so a cookie alone is no proof that our app asked. The proof is Fetch
//! Metadata, which no page can forge, or, from a browser without it, a header that a foreign page cannot send without
//! asking first. It is wanted of every route but the few that people or other sites may open by a link.

use actix_web::http::Method;
use actix_web::http::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};

use crate::error::{ApiError, Code};

/// The origins whose script may call.
#[derive(Debug, Clone)]
pub struct TrustedOrigins {
    /// That of `server.public_url`.
    pub own: String,
    /// Those of `app.dev_origins`: a development server on another port of the same host.
    pub dev: Vec<String>,
}

impl TrustedOrigins {
    /// Whether script of a trusted origin sent this request.
    ///
    /// # Errors
    /// [`CrossSite`] without that proof.
    pub fn admit(&self, method: &Method, headers: &HeaderMap, is_proxied: bool) -> Result<Admission, CrossSite> {
        let origin = match one(headers, &ORIGIN)? {
            None => None,
            Some(origin) if origin == self.own.as_str() => None,
            Some(origin) => Some(self.dev.iter().find(|dev| origin == dev.as_str()).ok_or(CrossSite)?),
        };
        let [site, mode, dest] = [&SEC_FETCH_SITE, &SEC_FETCH_MODE, &SEC_FETCH_DEST].map(|name| one(headers, name));
        let (site, mode, dest) = (site?, mode?, dest?);
        let is = |value: Option<&HeaderValue>, word: &str| value.is_some_and(|value| value == word);

        if site.is_none() && mode.is_none() && dest.is_none() {
            let has_proof = is(one(headers, &X_CSRF)?, "1");
            return if has_proof { Ok(Admission::from(origin)) } else { Err(CrossSite) };
        }
        let from_here = is(site, "same-origin");
        let from_dev = origin.is_some() && is(site, "same-site");
        if (from_here || from_dev) && (is(mode, "cors") || is(mode, "same-origin")) && is(dest, "empty") {
            return Ok(Admission::from(origin));
        }
        // `<a download>` of our own page.
        if is_proxied && method == Method::GET && from_here && is(mode, "navigate") && is(dest, "empty") {
            return Ok(Admission::Download);
        }
        Err(CrossSite)
    }

    /// Whether a request is addressed to a trusted origin: one Host field, of exactly that host and port (RFC 9110 section
    /// 7.2). Another name that leads here is another site's way to our cookies (DNS rebinding), or a mistake.
    pub fn are_addressed(&self, headers: &HeaderMap) -> bool {
        let Ok(Some(host)) = one(headers, &HOST) else { return false };
        std::iter::once(&self.own).chain(&self.dev).filter_map(|origin| origin.split_once("://")).any(
            |(scheme, own)| {
                let default = if scheme == "https" { b":443".as_slice() } else { b":80" };
                let host = host.as_bytes();
                own.as_bytes().eq_ignore_ascii_case(host)
                    || host.strip_suffix(default).is_some_and(|host| own.as_bytes().eq_ignore_ascii_case(host))
            },
        )
    }

    /// The trusted development origin that sent this request, if one did.
    pub fn dev_origin(&self, headers: &HeaderMap) -> Option<&str> {
        let origin = one(headers, &ORIGIN).ok()??;
        self.dev.iter().find(|dev| origin == dev.as_str()).map(String::as_str)
    }
}

/// How a request got in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Our own origin's script.
    Script,
    /// Script of a development origin, whose answer needs CORS headers.
    Dev,
    /// A download that our own page offers, whose answer must not be shown.
    Download,
}

impl From<Option<&String>> for Admission {
    fn from(dev: Option<&String>) -> Self {
        if dev.is_some() { Self::Dev } else { Self::Script }
    }
}

/// Whether people, and not a page behind their back, are opening the login: a link of our app or of nobody's.
pub fn is_own_navigation(headers: &HeaderMap) -> bool {
    let value = |name| headers.get(name).map(HeaderValue::as_bytes);
    let (site, mode, dest) = (value(&SEC_FETCH_SITE), value(&SEC_FETCH_MODE), value(&SEC_FETCH_DEST));
    if headers.contains_key(&SEC_PURPOSE) {
        return false;
    }
    (site.is_none() && mode.is_none() && dest.is_none())
        || (matches!(site, Some(b"same-origin" | b"none")) && mode == Some(b"navigate") && dest == Some(b"document"))
}

/// The request cannot show that it is this origin's own script's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not sent by this origin's own script")]
pub struct CrossSite;

impl From<CrossSite> for ApiError {
    fn from(error: CrossSite) -> Self {
        Self::because(Code::CrossSiteRequest, error)
    }
}

/// The only value of a header; two of one name prove nothing.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, CrossSite> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(CrossSite),
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const SEC_PURPOSE: HeaderName = HeaderName::from_static("sec-purpose");
const X_CSRF: HeaderName = HeaderName::from_static("x-csrf");

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    const OWN: &str = "https://app.example.test";

    fn admit(
        method: &Method,
        headers: &[(&'static str, &'static str)],
        is_proxied: bool,
    ) -> Result<Admission, CrossSite> {
        let trusted = TrustedOrigins { own: OWN.into(), dev: vec!["https://app.example.test:5173".into()] };
        let request = headers.iter().fold(TestRequest::default(), |request, header| request.append_header(*header));
        trusted.admit(method, request.to_srv_request().headers(), is_proxied)
    }

    /// CS-02.
    #[test]
    fn of_all_combinations_of_fetch_metadata_only_our_own_script_passes() {
        for site in ["cross-site", "same-origin", "same-site", "none"] {
            for mode in ["cors", "navigate", "no-cors", "same-origin", "websocket"] {
                for dest in [
                    "empty",
                    "document",
                    "iframe",
                    "image",
                    "script",
                    "style",
                    "worker",
                    "serviceworker",
                    "object",
                    "embed",
                    "font",
                    "manifest",
                ] {
                    let headers =
                        [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest), ("x-csrf", "1")];
                    let ours = site == "same-origin" && (mode == "cors" || mode == "same-origin") && dest == "empty";
                    assert_eq!(admit(&Method::GET, &headers, false).is_ok(), ours, "{site} {mode} {dest}");
                }
            }
        }
    }

    /// CS-01.
    #[test]
    fn without_fetch_metadata_the_header_is_the_proof() {
        assert_eq!(admit(&Method::POST, &[("x-csrf", "1")], false), Ok(Admission::Script));
        assert_eq!(admit(&Method::POST, &[], false), Err(CrossSite));
        assert_eq!(admit(&Method::POST, &[("x-csrf", "0")], false), Err(CrossSite));
        assert_eq!(admit(&Method::POST, &[("x-csrf", "")], false), Err(CrossSite));
        assert_eq!(admit(&Method::POST, &[("x_csrf", "1")], false), Err(CrossSite));
        assert_eq!(admit(&Method::POST, &[("x-csrf", "1"), ("x-csrf", "1")], false), Err(CrossSite));
        assert_eq!(admit(&Method::POST, &[("x-csrf", "1"), ("sec-fetch-site", "cross-site")], false), Err(CrossSite));
    }

    /// CS-03.
    #[test]
    fn an_origin_must_be_ours() {
        assert_eq!(admit(&Method::POST, &[("x-csrf", "1"), ("origin", OWN)], false), Ok(Admission::Script));
        for origin in [
            "null",
            "https://evil.test",
            "https://x.app.example.test",
            "https://app.example.test.evil.test",
            "http://app.example.test",
            "https://app.example.test:444",
            "https://app.example.test/",
            "",
        ] {
            assert_eq!(admit(&Method::POST, &[("x-csrf", "1"), ("origin", origin)], false), Err(CrossSite), "{origin}");
        }
        let twice = [("x-csrf", "1"), ("origin", OWN), ("origin", OWN)];
        assert_eq!(admit(&Method::POST, &twice, false), Err(CrossSite));
    }

    #[test]
    fn a_development_origin_may_be_same_site_and_no_other_may() {
        let call = |origin| {
            let metadata = [("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")];
            admit(&Method::POST, &[&metadata[..], &[("origin", origin)]].concat(), false)
        };
        assert_eq!(call("https://app.example.test:5173"), Ok(Admission::Dev));
        assert_eq!(call(OWN), Err(CrossSite));
        assert_eq!(call("https://app.example.test:4173"), Err(CrossSite));
    }

    #[test]
    fn a_download_passes_for_the_proxy_only() {
        let link = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "empty")];
        assert_eq!(admit(&Method::GET, &link, true), Ok(Admission::Download));
        assert_eq!(admit(&Method::GET, &link, false), Err(CrossSite));
        assert_eq!(admit(&Method::POST, &link, true), Err(CrossSite));
    }

    #[test]
    fn a_request_is_addressed_to_exactly_our_host() {
        let trusted = |own: &str| TrustedOrigins { own: own.into(), dev: vec!["http://localhost:5173".into()] };
        let addressed = |own: &str, hosts: &[&'static str]| {
            let request =
                hosts.iter().fold(TestRequest::default(), |request, host| request.append_header((HOST, *host)));
            trusted(own).are_addressed(request.to_srv_request().headers())
        };
        for host in ["app.example.test", "APP.example.test", "app.example.test:443", "localhost:5173"] {
            assert!(addressed(OWN, &[host]), "{host}");
        }
        for host in [
            "",
            "evil.test",
            "app.example.test.",
            "app.example.test:80",
            "app.example.test:444",
            "app.example.test:443:443",
            "app.example.test,evil.test",
            "x.app.example.test",
            "app.example.test@evil.test",
            "localhost",
        ] {
            assert!(!addressed(OWN, &[host]), "{host}");
        }
        assert!(!addressed(OWN, &[]) && !addressed(OWN, &["app.example.test", "app.example.test"]));
        assert!(
            addressed("http://localhost:8000", &["localhost:8000"])
                && !addressed("http://localhost:8000", &["localhost"])
        );
    }

    #[test]
    fn login_is_opened_by_people_only() {
        let opened = |headers: &[(&'static str, &'static str)]| {
            let request = headers.iter().fold(TestRequest::default(), |request, header| request.append_header(*header));
            is_own_navigation(request.to_srv_request().headers())
        };
        let link = |site| [("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(opened(&[]));
        assert!(opened(&link("same-origin")) && opened(&link("none")));
        assert!(!opened(&link("cross-site")) && !opened(&link("same-site")));
        assert!(!opened(&[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")]));
        assert!(!opened(&[&link("none")[..], &[("sec-purpose", "prefetch")]].concat()));
    }
}
