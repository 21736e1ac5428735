//! Who may call, and what keeps an answer from acting on our origin.
//!
//! Cookies come along with whatever a browser sends, so a cookie alone is no proof that our app asked. The proof is Fetch
//! Metadata, which no page can forge, or, from a browser without it, a header that a foreign page cannot send without a
//! preflight. All routes need that proof but the few that people or other sites may open by a link. On its way out every
//! answer gets the hardening fields: a DataHUB's answer stands on our origin, beside our cookies.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use actix_web::http::header::{HeaderMap, HeaderValue};
use ipnet::{IpNet, Ipv4Net};

use crate::access_log::{self, Event, LastSaid};
use crate::context::{Client, RequestContext};
use crate::error::{ApiError, Code};
use crate::http::buffer::append;
use crate::http::head::{Fields, HeadError, Known, RequestHead, Several};
use crate::http::server::{BodyError, RequestError};
use crate::metrics;

/// What requests must be, and what answers get.
#[derive(Debug)]
pub struct Guard {
    origins: TrustedOrigins,
    base_path: String,
    files: Option<AppFiles>,
    trusted_proxies: Vec<ProxyNetwork>,
    /// When the log was last told of a peer that is none of them and speaks for others.
    untrusted_told: LastSaid,
    is_https: bool,
}

/// The app's own files, where the gateway serves them.
#[derive(Debug, Clone)]
pub struct AppFiles {
    /// The path they are served at, without a slash at the end.
    pub path: String,
    /// The folder they are in.
    pub dir: PathBuf,
    /// What their pages may load and run: the value of Content-Security-Policy.
    pub csp: String,
}

/// Where trusted proxies are: an address, or a network such as `10.0.0.0/8`. Those of IPv4 are such, however they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyNetwork(IpNet);

/// An address as proxies write it: bare, in brackets, with a port.
fn forwarded_address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text).parse().ok();
    bare().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// The origins whose script may call.
#[derive(Debug, Clone)]
pub struct TrustedOrigins {
    /// That of `server.public_url`.
    pub own: String,
    /// Those of `app.dev_origins`: a development server on another port of the same host.
    pub dev: Vec<String>,
}

/// How a request got in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// By a route that is open to all.
    Open,
    /// As our own origin's script.
    Script,
    /// As script of a development origin.
    Dev,
    /// As a download that our own page offers, whose answer must not be shown.
    Download,
    /// As a development origin's question what its script may send (Fetch, CORS protocol).
    Preflight,
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

impl Guard {
    /// A guard of the routes below `base_path` and of the app's `files`.
    pub fn new(
        origins: TrustedOrigins,
        base_path: String,
        files: Option<AppFiles>,
        trusted_proxies: Vec<ProxyNetwork>,
    ) -> Self {
        let is_https = origins.own.starts_with("https:");
        Self { origins, base_path, files, trusted_proxies, untrusted_told: LastSaid::default(), is_https }
    }

    /// Who sent a request: the peer, or whom a front proxy that we trust speaks for. Of the addresses in X-Forwarded-For the
    /// last one that is not itself a trusted proxy counts; whoever sent the request may have written those before it.
    pub fn client(&self, peer: Option<IpAddr>, fields: Fields<'_>) -> Client {
        let is_loopback = peer.is_none_or(|peer| peer.is_loopback());
        if let Some(peer) = peer.filter(|peer| !self.is_trusted(*peer)) {
            let speaks_for_others = FORWARDING.into_iter().any(|name| fields.contains(name));
            if speaks_for_others {
                self.record_untrusted(peer);
            }
            return Client { address: Some(peer), is_local: is_loopback && !speaks_for_others };
        }
        let forwarded: Vec<&str> =
            fields.list("x-forwarded-for").filter_map(|text| std::str::from_utf8(text).ok()).collect();
        if forwarded.is_empty() {
            return Client { address: peer, is_local: is_loopback };
        }
        let parsed = forwarded.iter().rev().map_while(|text| forwarded_address(text)).map(|ip| ip.to_canonical());
        let address = parsed.into_iter().find(|ip| !self.is_trusted(*ip));
        Client { address: address.or(peer), is_local: false }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.0.contains(&address))
    }

    /// Counts a request of a peer that speaks for others and is not believed. Once an hour the log is told of one: behind a
    /// proxy that was forgotten in the configuration all people are one client.
    fn record_untrusted(&self, peer: IpAddr) {
        metrics::untrusted_forwarded_for();
        if self.untrusted_told.is_due(UNTRUSTED_INTERVAL, Instant::now()) {
            let reason = "forwarding headers were not believed: if this peer is a proxy of yours, name it in \
                server.trusted_proxies; else somebody tries to pass for another client";
            access_log::event_because(Event::UntrustedForwardedFor, "", Some(peer), reason);
        }
    }

    /// Checks a call to a DataHUB.
    ///
    /// # Errors
    /// What [`Guard::check_request`] refuses, and `cross_site_request`.
    pub fn check_call(&self, request: &RequestHead, context: &RequestContext) -> Result<Access, ApiError> {
        self.check_request(request)?;
        if self.is_preflight(request) {
            return Ok(Access::Preflight);
        }
        let access = self.check_origin(request, true, context)?;
        check_purpose(request, false)?;
        Ok(access)
    }

    /// Checks a request for one of our own routes or of the app's files. `path` is the decoded one that the router goes by,
    /// so that the route that is checked is the one that answers.
    ///
    /// # Errors
    /// What [`Guard::check_request`] refuses, `cross_site_request`, and `method_not_allowed` for a file.
    pub fn check_route(&self, request: &RequestHead, path: &str, context: &RequestContext) -> Result<Access, ApiError> {
        self.check_request(request)?;
        if self.is_preflight(request) {
            return Ok(Access::Preflight);
        }
        if self.is_file(path) && !matches!(request.method(), "GET" | "HEAD") {
            context.set_route(self.files.as_ref().map_or_else(String::new, |files| files.path.clone()));
            return Err(ApiError::method_not_allowed("GET, HEAD"));
        }
        let Some(route) = below(&self.base_path, path) else {
            if self.is_file(path) {
                return Ok(self.open_access(request));
            }
            // Nothing of ours is there. Browsers ask for an icon by themselves, and that is no security event.
            return self.origins.check(request, false).map_err(|_| Code::NotFound.into());
        };
        let access = match route {
            "/datahubs" | "/auth/login" | "/auth/callback" => self.open_access(request),
            _ => self.check_origin(request, false, context)?,
        };
        check_purpose(request, matches!(route, "/auth/login" | "/auth/callback" | "/auth/refresh" | "/auth/logout"))?;
        Ok(access)
    }

    /// How a request gets to what is open to all.
    fn open_access(&self, request: &RequestHead) -> Access {
        if self.dev_origin(request.fields()).is_some() { Access::Dev } else { Access::Open }
    }

    /// Whether a request is one that we take, whatever it asks for.
    fn check_request(&self, request: &RequestHead) -> Result<(), ApiError> {
        let code = if !METHODS.contains(&request.method()) {
            Code::MethodNotImplemented
        } else if !request.is_below("/") {
            Code::BadRequestTarget
        } else if !self.origins.are_addressed(request) {
            Code::WrongHost
        } else if request.only(Known::Upgrade) != Ok(None) {
            Code::UpgradeRefused
        } else if matches!(request.method(), "GET" | "HEAD" | "OPTIONS") && !request.body.is_empty() {
            // It means nothing there, and a proxy in front may not expect it (RFC 9110 section 9.3.1).
            Code::BadRequest
        } else {
            return Ok(());
        };
        // A client that sends this may also disagree with us on where its next request begins.
        Err(ApiError::from(code).closing())
    }

    fn check_origin(&self, request: &RequestHead, is_call: bool, context: &RequestContext) -> Result<Access, ApiError> {
        self.origins.check(request, is_call).map_err(|error| {
            context.event(Event::CrossSiteRefused, "");
            error.into()
        })
    }

    fn is_preflight(&self, request: &RequestHead) -> bool {
        let fields = request.fields();
        request.method() == "OPTIONS"
            && self.dev_origin(fields).is_some()
            && fields.contains("access-control-request-method")
    }

    /// Whether a path is one of the app's files. None below our own routes is, even if the app is at `/`.
    pub fn is_file(&self, path: &str) -> bool {
        below(&self.base_path, path).is_none()
            && self.files.as_ref().is_some_and(|files| below(&files.path, path).is_some())
    }

    /// The trusted development origin that sent this request, if one did.
    fn dev_origin(&self, fields: Fields<'_>) -> Option<&str> {
        if self.origins.dev.is_empty() {
            return None;
        }
        let origin = fields.only("origin").ok()??;
        self.origins.dev.iter().find(|dev| origin == dev.as_bytes()).map(String::as_str)
    }

    /// Appends the fields that keep an answer from acting on our origin; the app's own files may run.
    pub fn harden(&self, is_file: bool, out: &mut Vec<u8>) {
        match self.files.as_ref().filter(|_| is_file) {
            Some(files) => append(out, [b"content-security-policy: ", files.csp.as_bytes(), FILE_HARDENING]),
            None => out.extend_from_slice(HARDENING),
        }
        if self.is_https {
            out.extend_from_slice(b"strict-transport-security: max-age=31536000\r\n");
        }
    }

    /// Appends what lets the development origin that sent a request read its answer; nothing for any other.
    pub fn write_cors(&self, access: Access, fields: Fields<'_>, out: &mut Vec<u8>) {
        let is_let_in = matches!(access, Access::Dev | Access::Preflight);
        if let Some(origin) = self.dev_origin(fields).filter(|_| is_let_in) {
            append(out, [b"access-control-allow-origin: ", origin.as_bytes(), CORS.as_bytes()]);
        }
    }
}

impl FromStr for ProxyNetwork {
    type Err = ProxyNetworkError;

    fn from_str(text: &str) -> Result<Self, ProxyNetworkError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.to_canonical().into()));
        }
        let network: IpNet = text.parse().map_err(|_| ProxyNetworkError::Malformed)?;
        if network.addr() != network.network() {
            return Err(ProxyNetworkError::HostBits);
        }
        // Peers of IPv4 are never met as mapped ones.
        let mapped = match network {
            IpNet::V6(network) => network.addr().to_ipv4_mapped().zip(network.prefix_len().checked_sub(MAPPED_PREFIX)),
            IpNet::V4(_) => None,
        };
        Ok(Self(mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(network, IpNet::V4)))
    }
}

/// A text that is no [`ProxyNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyNetworkError {
    /// Neither an address nor a network.
    #[error("must be addresses or networks, such as 192.0.2.1, 10.0.0.0/8 or fd00::/8")]
    Malformed,
    /// A network that may be meant as the address it is written with.
    #[error("has a network with bits set behind its prefix: write 10.0.0.0/8, or the address alone")]
    HostBits,
}

/// Whether `name` is one of the fields that [`Guard::harden`] writes; lower case.
pub fn is_hardening(name: &str) -> bool {
    matches!(
        name,
        "content-security-policy"
            | "x-content-type-options"
            | "referrer-policy"
            | "cross-origin-resource-policy"
            | "cross-origin-opener-policy"
            | "strict-transport-security"
    )
}

impl TrustedOrigins {
    /// Whether script of a trusted origin sent this request; `is_call` says that it is one to the proxy.
    ///
    /// # Errors
    /// [`CrossSite`] without that proof.
    fn check(&self, request: &RequestHead, is_call: bool) -> Result<Access, CrossSite> {
        // W3C Fetch Metadata.
        let (site, mode) = (request.only(Known::SecFetchSite)?, request.only(Known::SecFetchMode)?);
        let dest = request.only(Known::SecFetchDest)?;
        let from_here = site == Some(b"same-origin");
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
        let may_be_download = is_call && origin.is_none() && matches!(request.method(), "GET" | "HEAD");
        if site.is_none() && mode.is_none() && dest.is_none() {
            return match request.only(Known::XCsrf)? {
                Some(b"1") => Ok(script),
                // `<a download>` of our own page in WebKit, which says nothing but where it comes from.
                None if may_be_download && self.is_own_referer(request.fields())? => Ok(Access::Download),
                _ => Err(CrossSite),
            };
        }
        let from_dev = is_dev && site == Some(b"same-site");
        if (from_here || from_dev) && matches!(mode, Some(b"cors" | b"same-origin")) && dest == Some(b"empty") {
            return Ok(script);
        }
        // The same in Chromium, which calls its destination `empty`, and Firefox: `document`.
        let is_link = mode == Some(b"navigate") && matches!(dest, Some(b"empty" | b"document"));
        if may_be_download && from_here && is_link { Ok(Access::Download) } else { Err(CrossSite) }
    }

    /// Whether a page of our own origin names itself as where a request comes from. No other page can.
    fn is_own_referer(&self, fields: Fields<'_>) -> Result<bool, Several> {
        let referer = fields.only("referer")?;
        Ok(referer
            .and_then(|referer| referer.strip_prefix(self.own.as_bytes()))
            .is_some_and(|rest| rest.starts_with(b"/")))
    }

    /// Who leads a browser to a URL that only a person may open, such as a login.
    pub fn opener(&self, headers: &HeaderMap) -> Opener<'_> {
        let value = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
        let [site, mode, dest] = ["sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"].map(value);
        if site.is_none() && mode.is_none() && dest.is_none() {
            return Opener::Own;
        }
        let is_page = mode == Some(b"navigate") && dest == Some(b"document");
        match site {
            Some(b"same-origin" | b"none") if is_page => Opener::Own,
            Some(b"same-site") if is_page => {
                let referer = value("referer").unwrap_or_default();
                let is_named =
                    |dev: &&String| referer.strip_prefix(dev.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
                let dev = self.dev.iter().find(is_named).or(self.dev.first());
                dev.map_or(Opener::Other, |dev| Opener::Dev(dev))
            }
            _ => Opener::Other,
        }
    }

    /// Whether a request is addressed to a trusted origin: one Host field, of exactly that host and port (RFC 9110 section
    /// 7.2). Another name that leads here is another site's way to our cookies (DNS rebinding), or a mistake.
    fn are_addressed(&self, request: &RequestHead) -> bool {
        let Ok(Some(host)) = request.only(Known::Host) else { return false };
        std::iter::once(&self.own).chain(&self.dev).filter_map(|origin| origin.split_once("://")).any(
            |(scheme, own)| {
                let default = if scheme == "https" { b":443".as_slice() } else { b":80" };
                let is_own = |host: &[u8]| own.as_bytes().eq_ignore_ascii_case(host);
                is_own(host) || host.strip_suffix(default).is_some_and(is_own)
            },
        )
    }
}

/// Refuses what a browser asks for before anybody wants it, where that would begin, spend or change something: what is
/// answered to such a request is used for the click itself (W3C Speculation Rules). Reads may be prefetched.
fn check_purpose(request: &RequestHead, is_stateful: bool) -> Result<(), ApiError> {
    let is_stateful = is_stateful || !matches!(request.method(), "GET" | "HEAD" | "OPTIONS");
    if is_stateful && request.fields().contains("sec-purpose") { Err(Code::PrefetchRefused.into()) } else { Ok(()) }
}

/// Nothing in the request proves that our own origin's script has sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not sent by this origin's own script")]
struct CrossSite;

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

/// An answer to bytes that are no request.
impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let code = match error {
            RequestError::Head(HeadError::Malformed) => Code::BadRequest,
            RequestError::Head(HeadError::Target) => Code::BadRequestTarget,
            RequestError::Head(HeadError::TooLarge) => Code::HeadTooLarge,
            RequestError::Timeout => Code::RequestTimeout,
        };
        Self::because(code, error).closing()
    }
}

/// An answer to a request whose body did not come whole, or not in time.
impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let code = match error {
            BodyError::TooLarge => Code::BodyTooLarge,
            BodyError::Timeout => Code::RequestTimeout,
            BodyError::Malformed | BodyError::Gone(_) => Code::BadRequest,
        };
        Self::because(code, error)
    }
}

/// What follows `prefix` in a path that is `prefix` or below it.
fn below<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// By these a proxy says for whom it speaks; of a trusted one the first counts.
const FORWARDING: [&str; 3] = ["x-forwarded-for", "forwarded", "x-real-ip"];
/// How often the log is told of those who are not believed.
const UNTRUSTED_INTERVAL: Duration = Duration::from_hours(1);
/// The bits before an IPv4 address that is mapped into IPv6 (RFC 4291 section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

/// The methods that are taken at all, by our routes, the proxy and CORS.
pub const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

const HARDENING: &[u8] =
    b"content-security-policy: default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'\r\n\
    x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncross-origin-resource-policy: same-origin\r\n\
    cross-origin-opener-policy: same-origin\r\n";
/// What follows the app's own policy. Its pages name themselves to our own origin, so that a download is known as theirs.
const FILE_HARDENING: &[u8] = b"\r\nx-content-type-options: nosniff\r\nreferrer-policy: same-origin\r\n\
    cross-origin-resource-policy: same-origin\r\ncross-origin-opener-policy: same-origin\r\n";
/// What follows the origin in an answer to a development origin.
const CORS: &str = "\r\naccess-control-allow-credentials: true\r\naccess-control-expose-headers: Link, X-Total, X-Total-Pages, \
    X-Page, X-Per-Page, X-Next-Page, X-Prev-Page, X-Gitlab-Blob-Id, X-Gitlab-Commit-Id, X-Gitlab-Content-Sha256, \
    X-Gitlab-Encoding, X-Gitlab-File-Name, X-Gitlab-File-Path, X-Gitlab-Last-Commit-Id, X-Gitlab-Ref, X-Gitlab-Size, ETag, \
    Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Content-Disposition, X-Request-Id, \
    X-Upstream-Request-Id, X-Gateway-Session\r\nvary: Origin\r\n";
/// What an answer to a development origin's preflight has besides.
pub const PREFLIGHT: &[u8] = b"access-control-allow-methods: GET, HEAD, POST, PUT, PATCH, DELETE\r\n\
    access-control-allow-headers: content-type, x-csrf, range, if-match, if-none-match\r\naccess-control-max-age: 600\r\n";

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::http::buffer::BufferPool;
    use crate::http::head::HeadLimits;

    const OWN: &str = "https://app.example.test";

    fn head(method: &str, fields: &[(&str, &str)]) -> RequestHead {
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

    /// PQ-13: also where one socket serves both families of addresses.
    #[test]
    fn an_address_is_the_same_in_either_family() {
        let trusted = ["127.0.0.1", "::ffff:10.0.0.0/104", "fd00::/8"].map(|text| text.parse().expect(text)).to_vec();
        let origins = TrustedOrigins { own: OWN.into(), dev: Vec::new() };
        let guard = Guard::new(origins, "/api".into(), None, trusted);
        for (peer, forwarded, address) in [
            ("::ffff:127.0.0.1", "203.0.113.9", "203.0.113.9"),
            ("::ffff:127.0.0.1", "::ffff:203.0.113.9", "203.0.113.9"),
            ("127.0.0.1", "203.0.113.9, ::ffff:127.0.0.1", "203.0.113.9"),
            ("::ffff:192.0.2.1", "203.0.113.9", "192.0.2.1"),
            ("::ffff:10.1.2.3", "203.0.113.9, 10.9.9.9, fd00::7", "203.0.113.9"),
            ("fd00::1", "203.0.113.9", "203.0.113.9"),
            ("fe80::1", "203.0.113.9", "fe80::1"),
            ("2001:db8::1", "203.0.113.9", "2001:db8::1"),
        ] {
            let peer: IpAddr = peer.parse().expect(peer);
            let client =
                guard.client(Some(peer.to_canonical()), head("GET", &[("X-Forwarded-For", forwarded)]).fields());
            assert_eq!(client, Client { address: address.parse().ok(), is_local: false }, "{peer} {forwarded}");
        }
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
            (same_site.to_vec(), Opener::Other, Opener::Dev(first)),
            ([&same_site[..], &from("https://app.example.test:5174/a")].concat(), Opener::Other, Opener::Dev(second)),
            ([&same_site[..], &from("https://app.example.test:51741/a")].concat(), Opener::Other, Opener::Dev(first)),
            ([&link("cross-site")[..], &from("https://app.example.test:5174/")].concat(), Opener::Other, Opener::Other),
            ([("sec-fetch-site", "same-site"), script[1], script[2]].to_vec(), Opener::Other, Opener::Other),
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
