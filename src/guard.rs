//! Who may call, and what keeps an answer from acting on our origin.
//!
//! Cookies come along with whatever a browser sends, so a cookie alone is no proof that our app asked. The proof is Fetch
//! Metadata, which no page can forge, or, from a browser without it, a header that a foreign page cannot send without a
//! preflight. All routes need that proof but the few that people or other sites may open by a link. On its way out every
//! answer gets the hardening fields: a DataHUB's answer stands on our origin, beside our cookies.

pub mod origins;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use actix_web::http::Method;
use ipnet::{IpNet, Ipv4Net};

use crate::access_log::{self, Event, LastSaid};
use crate::context::{Client, RequestContext};
use crate::error::{ApiError, Code};
use crate::guard::origins::TrustedOrigins;
use crate::http::buffer::append;
use crate::http::head::{Fields, HeadError, Known, RequestHead};
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

/// Whose page an answer is: what may run on our origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// None: nothing in it runs.
    None,
    /// One of the app's files, by the policy that its operator has set.
    App,
    /// A page of the API's documents: its own script, which may call us and nobody else.
    Docs,
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
    pub fn client(&self, peer: Option<IpAddr>, request: &RequestHead) -> Client {
        let is_loopback = peer.is_none_or(|peer| peer.is_loopback());
        if let Some(peer) = peer.filter(|peer| !self.is_trusted(*peer)) {
            let speaks_for_others = FORWARDING.into_iter().any(|name| request.only(name) != Ok(None));
            if speaks_for_others {
                self.record_untrusted(peer);
            }
            return Client { address: Some(peer), is_local: is_loopback && !speaks_for_others };
        }
        let forwarded = request.fields().list("x-forwarded-for").filter_map(|text| std::str::from_utf8(text).ok());
        let address = forwarded.fold(None, |last, text| match forwarded_address(text).map(|ip| ip.to_canonical()) {
            Some(ip) if self.is_trusted(ip) => last.or(Some(None)),
            address => Some(address),
        });
        Client { address: address.flatten().or(peer), is_local: is_loopback && address.is_none() }
    }

    /// Whether a peer is a front of ours: one on a unix socket, or a trusted proxy.
    pub fn is_front(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|peer| self.is_trusted(peer))
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

    /// Checks a call to a DataHUB, or to the old backend.
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
        if self.is_file(path) && !matches!(*request.method(), Method::GET | Method::HEAD) {
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
            "/datahubs" | "/auth/login" | CALLBACK => self.open_access(request),
            "/client.js" | "/client.d.ts" | "/openapi.json" | "/docs" => self.open_access(request),
            route if route.starts_with(DOCS) => self.open_access(request),
            _ => self.check_origin(request, false, context)?,
        };
        check_purpose(request, matches!(route, "/auth/login" | CALLBACK | "/auth/refresh" | "/auth/logout"))?;
        Ok(access)
    }

    /// How a request gets to what is open to all.
    fn open_access(&self, request: &RequestHead) -> Access {
        if self.dev_origin(request.fields()).is_some() { Access::Dev } else { Access::Open }
    }

    /// Whether a request is one that we take, whatever it asks for.
    fn check_request(&self, request: &RequestHead) -> Result<(), ApiError> {
        let code = if !METHODS.contains(&request.method().as_str()) {
            Code::MethodNotImplemented
        } else if !request.is_below("/") {
            Code::BadRequestTarget
        } else if !self.origins.are_addressed(request) {
            Code::WrongHost
        } else if request.only(Known::Upgrade) != Ok(None) {
            Code::UpgradeRefused
        } else if is_safe(request.method()) && !request.body.is_empty() {
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
            if !self.origins.is_commonplace(request) {
                context.event(Event::CrossSiteRefused, "");
            }
            error.into()
        })
    }

    fn is_preflight(&self, request: &RequestHead) -> bool {
        let fields = request.fields();
        *request.method() == Method::OPTIONS
            && self.dev_origin(fields).is_some()
            && fields.contains("access-control-request-method")
    }

    /// Whether a request is one by which people come back from a DataHUB. Redirect URIs are registered with this very path.
    pub fn is_callback(&self, method: &[u8], target: &[u8]) -> bool {
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        method == b"GET" && path.strip_prefix(self.base_path.as_bytes()) == Some(CALLBACK.as_bytes())
    }

    /// What an answer at a path may do, if it is no error.
    pub fn page(&self, path: &str) -> Page {
        if self.is_file(path) {
            Page::App
        } else if below(&self.base_path, path).is_some_and(|route| route.starts_with(DOCS)) {
            Page::Docs
        } else {
            Page::None
        }
    }

    /// Whether a path is one of the app's files. None below our own routes is, even if the app is at `/`.
    fn is_file(&self, path: &str) -> bool {
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

    /// Appends the fields that keep an answer from acting on our origin; the app's own files and our pages may run.
    pub fn harden(&self, page: Page, out: &mut Vec<u8>) {
        match (page, &self.files) {
            (Page::App, Some(files)) => {
                append(out, [b"content-security-policy: ", files.csp.as_bytes(), FILE_HARDENING]);
            }
            (Page::Docs, _) => append(out, [DOCS_POLICY, FILE_HARDENING]),
            _ => out.extend_from_slice(HARDENING),
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

impl ProxyNetwork {
    /// Whether every address of a family is in it.
    pub fn is_everybody(&self) -> bool {
        self.0.prefix_len() == 0
    }
}

impl fmt::Display for ProxyNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() { self.0.addr().fmt(f) } else { self.0.fmt(f) }
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
            | "x-frame-options"
    )
}

/// Refuses what a browser asks for before anybody wants it, where that would begin, spend or change something: what is
/// answered to such a request is used for the click itself (W3C Speculation Rules). Reads may be prefetched.
fn check_purpose(request: &RequestHead, is_stateful: bool) -> Result<(), ApiError> {
    let is_stateful = is_stateful || !is_safe(request.method());
    if is_stateful && request.fields().contains("sec-purpose") { Err(Code::PrefetchRefused.into()) } else { Ok(()) }
}

/// An answer to bytes that are no request.
impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let code = match error {
            RequestError::Head(HeadError::Malformed) => Code::BadRequest,
            RequestError::Head(HeadError::Target) => Code::BadRequestTarget,
            RequestError::Head(HeadError::TooLarge) => Code::HeadTooLarge,
            RequestError::Timeout => Code::RequestTimeout,
            RequestError::Displaced(_) => Code::Overloaded,
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
            // Nobody gets the answer to one that is gone, or closed for others.
            BodyError::Malformed | BodyError::Gone(_) | BodyError::Displaced(_) => Code::BadRequest,
        };
        Self::because(code, error)
    }
}

/// What follows `prefix` in a path that is `prefix` or below it.
fn below<'a>(prefix: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// By these a proxy says for whom it speaks; of a trusted one the first counts.
const FORWARDING: [Known; 3] = [Known::XForwardedFor, Known::Forwarded, Known::XRealIp];
/// How often the log is told of those who are not believed.
const UNTRUSTED_INTERVAL: Duration = Duration::from_hours(1);
/// The bits before an IPv4 address that is mapped into IPv6 (RFC 4291 section 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

/// The methods that are taken at all, by our routes, the proxy and CORS.
pub const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Whether a method changes nothing (RFC 9110 section 9.2.1).
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Below the base path, where people come back from a DataHUB.
const CALLBACK: &str = "/auth/callback";
/// Below the base path, the pages of the API's documents.
const DOCS: &str = "/docs/";
const HARDENING: &[u8] =
    b"content-security-policy: default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'\r\n\
    x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncross-origin-resource-policy: same-origin\r\n\
    cross-origin-opener-policy: same-origin\r\n";
/// What the pages of the API's documents may do. Trusted Types turn a text that becomes HTML into an error, where a browser
/// has them. The first field is for browsers that know no frame-ancestors.
const DOCS_POLICY: &[u8] = b"x-frame-options: DENY\r\ncontent-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; \
    trusted-types 'none'";
/// What follows the app's own policy, or that. Its pages name themselves to our own origin, so that a download is known as theirs.
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
    use super::*;
    use crate::guard::origins::tests::{OWN, head};

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
            let client = guard.client(Some(peer.to_canonical()), &head("GET", &[("X-Forwarded-For", forwarded)]));
            assert_eq!(client, Client { address: address.parse().ok(), is_local: false }, "{peer} {forwarded}");
        }
    }

    /// Whom no limit counts, since nobody but people of this machine can be it; and who may ask how the process does.
    #[test]
    fn who_is_of_this_machine_or_a_front_is_known_by_the_peer() {
        let guard = |trusted: &[&str]| {
            let trusted = trusted.iter().map(|text| text.parse().expect(text)).collect();
            Guard::new(TrustedOrigins { own: OWN.into(), dev: Vec::new() }, "/api".into(), None, trusted)
        };
        let (alone, behind) = (guard(&[]), guard(&["127.0.0.1", "192.0.2.1"]));
        for (case, guard, peer, forwarded, is_local, is_front) in [
            ("a neighbour", &alone, Some("127.0.0.1"), false, true, false),
            ("a front that is not known", &alone, Some("127.0.0.1"), true, false, false),
            ("somebody", &alone, Some("203.0.113.9"), false, false, false),
            ("somebody who says otherwise", &alone, Some("203.0.113.9"), true, false, false),
            ("a unix socket", &alone, None, false, true, true),
            ("a front on a unix socket", &alone, None, true, false, true),
            ("a front of this machine", &behind, Some("127.0.0.1"), true, false, true),
            ("its own question", &behind, Some("127.0.0.1"), false, true, true),
            ("another machine's front", &behind, Some("192.0.2.1"), true, false, true),
            ("its own question, from there", &behind, Some("192.0.2.1"), false, false, true),
        ] {
            let peer: Option<IpAddr> = peer.map(|text| text.parse().expect(text));
            let fields: &[(&str, &str)] = if forwarded { &[("X-Forwarded-For", "203.0.113.7")] } else { &[] };
            assert_eq!(guard.client(peer, &head("GET", fields)).is_local, is_local, "{case}");
            assert_eq!(guard.is_front(peer), is_front, "{case}");
        }
    }

    #[test]
    fn every_field_that_is_written_for_protection_is_known_as_one() {
        let origins = TrustedOrigins { own: OWN.into(), dev: Vec::new() };
        let guard = Guard::new(origins, "/api".into(), None, Vec::new());
        for page in [Page::None, Page::App, Page::Docs] {
            let mut out = Vec::new();
            guard.harden(page, &mut out);
            let lines = String::from_utf8(out).expect("ASCII");
            let names: Vec<&str> = lines.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
            assert!(names.len() > 3 && names.iter().all(|name| is_hardening(name)), "{names:?}");
        }
        assert!(!is_hardening("content-type"));
    }

    #[test]
    fn a_network_of_everybody_is_known_as_one() {
        for (text, is_everybody) in [("0.0.0.0/0", true), ("::/0", true), ("0.0.0.0/1", false), ("10.0.0.0/8", false)] {
            assert_eq!(text.parse::<ProxyNetwork>().expect(text).is_everybody(), is_everybody, "{text}");
        }
    }
}
