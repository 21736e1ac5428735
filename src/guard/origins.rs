//! Whose script a request is of, and who leads a browser to a URL: what Host, Origin and Fetch Metadata prove.

use actix_web::http::Method;
use actix_web::http::header::{HeaderMap, HeaderValue};

use crate::error::{ApiError, Code};
use crate::guard::Access;
use crate::http::head::{Known, RequestHead, Several};

/// The origins whose script may call.
#[derive(Debug, Clone)]
pub struct TrustedOrigins {
    /// That of `server.public_url`.
    pub own: String,
    /// Those of `app.dev_origins`: a development server on another port of the same host.
    pub dev: Vec<String>,
}

/// Who leads a browser to a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opener<'a> {
    /// A person, by a link of our app or by hand.
    Own,
    /// A page of this development origin: the one it names, or the first.
    Dev(&'a str),
    /// Another site, or a page without being asked.
    Other,
}

impl TrustedOrigins {
    /// Whether script of a trusted origin sent this request; `is_call` says that it is one to the proxy.
    ///
    /// # Errors
    /// [`CrossSite`] without that proof.
    pub(super) fn check(&self, request: &RequestHead, is_call: bool) -> Result<Access, CrossSite> {
        let names = [Known::SecFetchSite, Known::SecFetchMode, Known::SecFetchDest];
        let metadata = FetchMetadata::new(names.map(|name| request.only(name)))?;
        let from_here = metadata.is_some_and(|metadata| metadata.site == Some(b"same-origin"));
        let origin = request.only(Known::Origin)?;
        let is_dev = match origin {
            None => false,
            Some(origin) if origin == self.own.as_bytes() => false,
            // A page whose policy is `no-referrer` says no more than this, also to its own origin.
            Some(b"null") if from_here => false,
            Some(origin) if self.dev.iter().any(|dev| origin == dev.as_bytes()) => true,
            Some(_) => return Err(CrossSite),
        };
        let script = if is_dev { Access::Dev } else { Access::Script };
        let may_be_download = is_call && origin.is_none() && matches!(*request.method(), Method::GET | Method::HEAD);
        let Some(FetchMetadata { site, mode, dest }) = metadata else {
            return match request.only(Known::XCsrf)? {
                Some(b"1") => Ok(script),
                // `<a download>` of our own page in WebKit, which says nothing but where it comes from.
                None if may_be_download && is_page_of(&self.own, request.fields().only("referer")?) => {
                    Ok(Access::Download)
                }
                _ => Err(CrossSite),
            };
        };
        let from_dev = is_dev && site == Some(b"same-site");
        if (from_here || from_dev) && matches!(mode, Some(b"cors" | b"same-origin")) && dest == Some(b"empty") {
            return Ok(script);
        }
        // The same in Chromium, which calls its destination `empty`, and Firefox: `document`.
        let is_link = mode == Some(b"navigate") && matches!(dest, Some(b"empty" | b"document"));
        if may_be_download && from_here && is_link { Ok(Access::Download) } else { Err(CrossSite) }
    }

    /// Whether a request without that proof is one that browsers send by themselves, or for a person who follows a link or a
    /// bookmark: an icon, an image, a page that is fetched ahead. Nobody has to look at it. What changes something, and what
    /// script of another origin sends, is none of these.
    pub(super) fn is_commonplace(&self, request: &RequestHead) -> bool {
        let fields = request.fields();
        let is_of = |names: &[&str], field: Known| {
            request.only(field).is_ok_and(|value| names.iter().any(|name| value == Some(name.as_bytes())))
        };
        let is_ours = |origin: Option<&[u8]>| origin.is_none_or(|origin| origin == self.own.as_bytes());
        matches!(*request.method(), Method::GET | Method::HEAD)
            && request.only(Known::Origin).is_ok_and(is_ours)
            && (is_of(&["navigate"], Known::SecFetchMode)
                || is_of(&["image", "audio", "video", "manifest"], Known::SecFetchDest)
                || fields.contains("sec-purpose"))
    }

    /// Who leads a browser to a URL that only a person may open, such as a login.
    pub fn opener(&self, headers: &HeaderMap) -> Opener<'_> {
        let only = |name: &str| {
            let mut values = headers.get_all(name).map(HeaderValue::as_bytes);
            values.next().map_or(Ok(None), |value| if values.next().is_none() { Ok(Some(value)) } else { Err(Several) })
        };
        let metadata = FetchMetadata::new(["sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"].map(only));
        let FetchMetadata { site, mode, dest } = match metadata {
            Ok(Some(metadata)) => metadata,
            Ok(None) => return Opener::Own,
            Err(Several) => return Opener::Other,
        };
        let is_page = mode == Some(b"navigate") && dest == Some(b"document");
        // A service worker of the app passes a navigation on without its destination.
        let is_passed_on = mode == Some(b"navigate") && dest == Some(b"empty");
        match site {
            Some(b"same-origin" | b"none") if is_page => Opener::Own,
            Some(b"same-origin") if is_passed_on => Opener::Own,
            Some(b"same-site") if is_page => {
                let referer = only("referer").unwrap_or_default();
                let dev = self.dev.iter().find(|dev| is_page_of(dev, referer)).or(self.dev.first());
                dev.map_or(Opener::Other, |dev| Opener::Dev(dev))
            }
            _ => Opener::Other,
        }
    }

    /// Whether a request is addressed to a trusted origin: one Host field, of exactly that host and port (RFC 9110 section
    /// 7.2). Another name that leads here is another site's way to our cookies (DNS rebinding), or a mistake.
    pub(super) fn are_addressed(&self, request: &RequestHead) -> bool {
        let Ok(Some(host)) = request.only(Known::Host) else { return false };
        std::iter::once(&self.own).chain(&self.dev).any(|origin| {
            let (own, default) = match (origin.strip_prefix("https://"), origin.strip_prefix("http://")) {
                (Some(own), _) => (own, b":443".as_slice()),
                (None, Some(own)) => (own, b":80".as_slice()),
                (None, None) => return false,
            };
            let is_own = |host: &[u8]| own.as_bytes().eq_ignore_ascii_case(host);
            is_own(host) || host.strip_suffix(default).is_some_and(is_own)
        })
    }
}

/// What a browser says of a request by itself (W3C Fetch Metadata): from where, how and for what.
#[derive(Debug, Clone, Copy)]
struct FetchMetadata<'a> {
    site: Option<&'a [u8]>,
    mode: Option<&'a [u8]>,
    dest: Option<&'a [u8]>,
}

impl<'a> FetchMetadata<'a> {
    /// What Sec-Fetch-Site, -Mode and -Dest say; `None` without any of them.
    fn new([site, mode, dest]: [Result<Option<&'a [u8]>, Several>; 3]) -> Result<Option<Self>, Several> {
        let metadata = Self { site: site?, mode: mode?, dest: dest? };
        Ok([metadata.site, metadata.mode, metadata.dest].iter().any(Option::is_some).then_some(metadata))
    }
}

/// Whether a request comes from a page of `origin`, as Referer says. No other page can say so.
fn is_page_of(origin: &str, referer: Option<&[u8]>) -> bool {
    referer.and_then(|referer| referer.strip_prefix(origin.as_bytes())).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Nothing in the request proves that our own origin's script has sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not sent by this origin's own script")]
pub(super) struct CrossSite;

/// A field that is there twice proves nothing.
impl From<Several> for CrossSite {
    fn from(_: Several) -> Self {
        Self
    }
}

impl From<CrossSite> for ApiError {
    fn from(error: CrossSite) -> Self {
        Self::because(Code::CrossSiteRequest, error)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::http::buffer::BufferPool;
    use crate::http::head::HeadLimits;

    pub(in crate::guard) const OWN: &str = "https://app.example.test";

    pub(in crate::guard) fn head(method: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut read = BufferPool::default().take();
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        read.extend_from_slice(format!("{method} / HTTP/1.0\r\nContent-Length: 0\r\n{lines}\r\n").as_bytes());
        let head = RequestHead::parse(&mut read, HeadLimits { length: 4096, fields: 96 });
        head.expect("a good head").expect("a whole one")
    }

    fn check(method: &str, fields: &[(&str, &str)], is_call: bool) -> Result<Access, CrossSite> {
        let trusted = TrustedOrigins { own: OWN.into(), dev: vec!["https://app.example.test:5173".into()] };
        trusted.check(&head(method, fields), is_call)
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
                    assert_eq!(check("GET", &headers, false).is_ok(), ours, "{site} {mode} {dest}");
                }
            }
        }
    }

    /// CS-01.
    #[test]
    fn without_fetch_metadata_the_header_is_the_proof() {
        assert_eq!(check("POST", &[("x-csrf", "1")], false), Ok(Access::Script));
        assert_eq!(check("POST", &[], false), Err(CrossSite));
        assert_eq!(check("POST", &[("x-csrf", "0")], false), Err(CrossSite));
        assert_eq!(check("POST", &[("x-csrf", "")], false), Err(CrossSite));
        assert_eq!(check("POST", &[("x_csrf", "1")], false), Err(CrossSite));
        assert_eq!(check("POST", &[("x-csrf", "1"), ("x-csrf", "1")], false), Err(CrossSite));
        assert_eq!(check("POST", &[("x-csrf", "1"), ("sec-fetch-site", "cross-site")], false), Err(CrossSite));
    }

    /// CS-03.
    #[test]
    fn an_origin_must_be_ours() {
        assert_eq!(check("POST", &[("x-csrf", "1"), ("origin", OWN)], false), Ok(Access::Script));
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
            assert_eq!(check("POST", &[("x-csrf", "1"), ("origin", origin)], false), Err(CrossSite), "{origin}");
        }
        let twice = [("x-csrf", "1"), ("origin", OWN), ("origin", OWN)];
        assert_eq!(check("POST", &twice, false), Err(CrossSite));
    }

    #[test]
    fn a_development_origin_may_be_same_site_and_no_other_may() {
        let call = |origin| {
            let metadata = [("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")];
            check("POST", &[&metadata[..], &[("origin", origin)]].concat(), false)
        };
        assert_eq!(call("https://app.example.test:5173"), Ok(Access::Dev));
        assert_eq!(call(OWN), Err(CrossSite));
        assert_eq!(call("https://app.example.test:4173"), Err(CrossSite));
    }

    #[test]
    fn a_request_is_addressed_to_exactly_our_host() {
        let trusted = |own: &str| TrustedOrigins { own: own.into(), dev: vec!["http://localhost:5173".into()] };
        let addressed = |own: &str, hosts: &[&str]| {
            let hosts: Vec<_> = hosts.iter().map(|host| ("Host", *host)).collect();
            trusted(own).are_addressed(&head("GET", &hosts))
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
        assert!(!addressed(OWN, &[]));
        assert!(
            addressed("http://localhost:8000", &["localhost:8000"])
                && !addressed("http://localhost:8000", &["localhost"])
        );
    }

    #[test]
    fn login_is_opened_by_people_only() {
        let link = |site| [("sec-fetch-site", site), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        let script = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")];
        let [first, second] = ["https://app.example.test:5173", "https://app.example.test:5174"];
        let (same_site, from) = (link("same-site"), |page| vec![("referer", page)]);
        for (headers, without_dev, with_dev) in [
            (vec![], Opener::Own, Opener::Own),
            (link("same-origin").to_vec(), Opener::Own, Opener::Own),
            (link("none").to_vec(), Opener::Own, Opener::Own),
            (link("cross-site").to_vec(), Opener::Other, Opener::Other),
            (script.to_vec(), Opener::Other, Opener::Other),
            ([script[0], ("sec-fetch-mode", "navigate"), script[2]].to_vec(), Opener::Own, Opener::Own),
            (
                [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), script[2]].to_vec(),
                Opener::Other,
                Opener::Other,
            ),
            (same_site.to_vec(), Opener::Other, Opener::Dev(first)),
            ([&same_site[..], &from("https://app.example.test:5174/a")].concat(), Opener::Other, Opener::Dev(second)),
            ([&same_site[..], &from("https://app.example.test:51741/a")].concat(), Opener::Other, Opener::Dev(first)),
            ([&link("cross-site")[..], &from("https://app.example.test:5174/")].concat(), Opener::Other, Opener::Other),
            ([("sec-fetch-site", "same-site"), script[1], script[2]].to_vec(), Opener::Other, Opener::Other),
            ([&link("none")[..], &[("sec-fetch-site", "cross-site")]].concat(), Opener::Other, Opener::Other),
        ] {
            let add = |request: TestRequest, header: &(&'static str, &'static str)| request.append_header(*header);
            let request = headers.iter().fold(TestRequest::default(), add).to_srv_request();
            for (dev, expected) in [(vec![], without_dev), (vec![first.to_owned(), second.to_owned()], with_dev)] {
                let origins = TrustedOrigins { own: OWN.into(), dev };
                assert_eq!(origins.opener(request.headers()), expected, "{headers:?} {:?}", origins.dev);
            }
        }
    }
}
