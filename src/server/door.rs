//! The door: what every request passes on its way in and every answer on its way out.
//!
//! In: it must be one that we take, at our address, and our own script's. Out: every failure gets its body, every answer the
//! headers that keep it from acting on our origin.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{Path as Matched, ServiceRequest, ServiceResponse, Url};
use actix_web::http::header::{
    self, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::web::Bytes;
use actix_web::{HttpMessage, HttpResponse, ResponseError};

use crate::access_log::{Event, chain};
use crate::admin::Draining;
use crate::config::Config;
use crate::context::{Client, RequestContext};
use crate::error::{ApiError, Code};
use crate::metrics::worker::WorkerMetrics;
use crate::origin::Admission;
use crate::proxy::request::Framing;
use crate::server::flow::Counted;

/// What a worker's door is made by.
pub(super) struct Door {
    pub(super) config: Arc<Config>,
    pub(super) draining: Draining,
    metrics: Rc<WorkerMetrics>,
}

impl Door {
    /// A worker's own.
    pub(super) fn new(config: Arc<Config>, draining: Draining) -> Self {
        let metrics = WorkerMetrics::new(config.datahubs.iter().map(|datahub| datahub.id.as_str()));
        Self { config, draining, metrics }
    }
}

impl Door {
    /// Notes that a request has come.
    pub(super) fn begin(&self, req: &ServiceRequest) -> Rc<RequestContext> {
        let client = client(req, &self.config.server.trusted_proxies);
        RequestContext::new(req.method().clone(), client, Rc::clone(&self.metrics))
    }

    /// Lets a request in, or answers it here.
    pub(super) fn admit(
        &self,
        req: &ServiceRequest,
        context: &RequestContext,
    ) -> Result<Option<HttpResponse>, ApiError> {
        // Who asks for such things is not to be trusted with where the next request begins.
        self.check(req).map_err(|code| ApiError::from(code).closing())?;
        let (origins, path) = (&self.config.app.origins, routed(req.match_info()));
        if req.method() == Method::OPTIONS
            && let Some(origin) = origins.dev_origin(req.headers())
            && req.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        {
            return Ok(Some(preflight(origin)));
        }
        if self.is_file(path) && ![Method::GET, Method::HEAD].contains(req.method()) {
            return Err(ApiError::method_not_allowed("GET, HEAD"));
        }
        if self.is_open(path) {
            if origins.dev_origin(req.headers()).is_some() {
                req.extensions_mut().insert(Admission::Dev);
            }
            return Ok(None);
        }
        let is_proxied = self.below_base(path).is_some_and(|path| path.starts_with("/datahubs/"));
        match origins.admit(req.method(), req.headers(), is_proxied) {
            Ok(Admission::Script) => {}
            Ok(admission) => {
                req.extensions_mut().insert(admission);
            }
            Err(error) => {
                context.event(Event::CrossSiteRefused, "");
                return Err(error.into());
            }
        }
        Ok(None)
    }

    /// Whether it is one that we take, whatever it asks for.
    fn check(&self, req: &ServiceRequest) -> Result<(), Code> {
        if !METHODS.contains(req.method()) {
            return Err(Code::MethodNotImplemented);
        }
        if req.uri().authority().is_some() || !req.uri().path().starts_with('/') {
            return Err(Code::BadRequestTarget);
        }
        if !self.config.app.origins.are_addressed(req.headers()) {
            return Err(Code::WrongHost);
        }
        if req.headers().contains_key(header::UPGRADE) {
            return Err(Code::UpgradeRefused);
        }
        // It means nothing there, and a proxy in front may not expect it (RFC 9110 section 9.3.1).
        if req.method().is_safe() && has_body(req) {
            return Err(Code::BadRequest);
        }
        Ok(())
    }

    /// The routes that people and other sites may open: exact paths, and the app's files.
    fn is_open(&self, path: &str) -> bool {
        match self.below_base(path) {
            Some(path) => matches!(path, "/datahubs" | "/auth/login" | "/auth/callback"),
            None => self.is_file(path),
        }
    }

    /// Whether the app's files are asked; what is below our own routes never is one, even if the app is at `/`.
    fn is_file(&self, path: &str) -> bool {
        let files = self.config.app.files.as_ref();
        self.below_base(path).is_none() && files.is_some_and(|(place, _)| below(place, path).is_some())
    }

    fn below_base<'a>(&self, path: &'a str) -> Option<&'a str> {
        below(&self.config.server.base_path, path)
    }

    /// Gives an answer what every answer has.
    pub(super) fn leave(
        &self,
        response: ServiceResponse<BoxBody>,
        context: &Rc<RequestContext>,
    ) -> ServiceResponse<impl MessageBody + use<>> {
        let admission = response.request().extensions().get::<Admission>().copied();
        let is_dev = admission == Some(Admission::Dev);
        let is_file = self.is_file(routed(response.request().match_info())) && !response.status().is_client_error();
        let code = response.response().error().map(|error| code_of(error, response.status()));
        if let Some(route) = response.request().match_pattern() {
            context.set_route(route);
        }
        context.record_answer(response.status().as_u16(), code);

        let dev_origin = response.request().headers().get(header::ORIGIN).filter(|_| is_dev).cloned();
        let mut response = match code {
            None => response.map_body(|_, body| EitherBody::left(body)),
            Some(code) => {
                let problem = ApiError::from(code).problem(context.id.as_str());
                response.map_body(|_, _| EitherBody::right(problem))
            }
        };
        let headers = response.headers_mut();
        self.harden(headers, is_file);
        headers.insert(X_REQUEST_ID, context.id_header());
        if code.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if admission == Some(Admission::Download) && !headers.contains_key(header::CONTENT_DISPOSITION) {
            headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
        }
        if let Some(origin) = dev_origin {
            allow(headers, origin);
        }
        if self.draining.has_begun() {
            response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
        }
        let context = Rc::clone(context);
        response.map_body(|_, body| Counted::new(body, context))
    }

    /// Answers what is no request: the whole answer, as bytes, after which the connection is closed. Its line is in the log,
    /// too.
    pub(super) fn refusal(&self, code: Code, peer: Option<IpAddr>) -> Bytes {
        let none = Method::from_bytes(b"-").expect("a token");
        let client = Client { address: peer, is_local: false };
        let response = self.failure(code, &RequestContext::new(none, client, Rc::clone(&self.metrics)));
        let answer = format!("HTTP/1.1 {}\r\ncontent-length: {}\r\n", response.status(), response.body().len());
        let mut answer = answer.into_bytes();
        for (name, value) in response.headers() {
            answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(response.body().as_bytes());
        answer.into()
    }

    /// The whole answer to what has not come to its end through the layers; the connection is closed after it.
    pub(super) fn failure(&self, code: Code, context: &RequestContext) -> HttpResponse<String> {
        let error = ApiError::from(code).closing();
        context.record_answer(error.status_code().as_u16(), Some(code));
        let mut response = error.error_response().set_body(error.problem(context.id.as_str()));
        self.harden(response.headers_mut(), false);
        response.headers_mut().insert(X_REQUEST_ID, context.id_header());
        response
    }

    /// The headers that keep an answer from acting on our origin and out of every cache; the app's own files may run, and be
    /// kept.
    fn harden(&self, headers: &mut HeaderMap, is_file: bool) {
        let policy = if is_file { APP_POLICY } else { API_POLICY };
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        headers.insert(CROSS_ORIGIN_OPENER_POLICY, HeaderValue::from_static("same-origin"));
        for (name, value) in [(header::CACHE_CONTROL, "no-store"), (header::VARY, "Cookie")] {
            if !is_file && !headers.contains_key(&name) {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        if self.config.server.public_url.starts_with("https:") {
            headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
        }
    }
}

/// Whether a request has a body, by its framing.
pub(super) fn has_body(req: &ServiceRequest) -> bool {
    Framing::of(req.method(), req.headers()).length() != Some(0)
}

/// The path that the router goes by: a decoded copy. Whoever judges another reading of it judges another route.
fn routed(info: &Matched<Url>) -> &str {
    info.as_str()
}

/// What follows `place` in a path that is there or below.
fn below<'a>(place: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(place).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The code of a failure; one that is a library's own gets the code that fits its status.
fn code_of(error: &actix_web::Error, status: StatusCode) -> Code {
    match error.as_error::<ApiError>() {
        Some(error) => {
            if let (true, Some(source)) = (status.is_server_error(), std::error::Error::source(error)) {
                let reason = chain(source);
                log::warn!(code = error.code().as_str(), reason; "a call failed");
            }
            error.code()
        }
        None => match status {
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
            status if status.is_client_error() => Code::BadRequest,
            _ => Code::Internal,
        },
    }
}

/// Lets a development origin's script send what it asks about (Fetch, CORS protocol).
fn preflight(origin: &str) -> HttpResponse {
    let mut response = HttpResponse::NoContent().finish();
    let headers = response.headers_mut();
    allow(headers, HeaderValue::from_str(origin).expect("an origin is ASCII"));
    let (methods, names) =
        ("GET, HEAD, POST, PUT, PATCH, DELETE", "content-type, x-csrf, range, if-match, if-none-match");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(names));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// Lets a development origin's script read an answer.
fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// Who sent a request: the peer, or whom a front proxy that we trust speaks for. Of the addresses in X-Forwarded-For the
/// last one that is not itself a trusted proxy counts; whoever sent the request may have written those before it.
fn client(req: &ServiceRequest, trusted: &[IpAddr]) -> Client {
    let peer = req.peer_addr().map(|address| address.ip().to_canonical());
    let forwarded = req.headers().get_all(X_FORWARDED_FOR).filter_map(|value| value.to_str().ok());
    let forwarded: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
    let is_trusted = peer.is_none_or(|peer| trusted.contains(&peer));
    if !is_trusted || forwarded.is_empty() {
        return Client { address: peer, is_local: peer.is_none_or(|peer| peer.is_loopback()) && forwarded.is_empty() };
    }
    let mut last = forwarded.iter().rev().map_while(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
    let address = last.find(|ip| !trusted.contains(ip));
    Client { address: address.or(peer), is_local: false }
}

const API_POLICY: &str = "default-src 'none'; sandbox; frame-ancestors 'none'; base-uri 'none'";
const APP_POLICY: &str = "default-src 'self'; img-src 'self' data: https:; style-src 'self' 'unsafe-inline'; \
    object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
const EXPOSED: &str = "Link, X-Total, X-Total-Pages, X-Page, X-Per-Page, X-Next-Page, X-Prev-Page, X-Gitlab-Blob-Id, \
    X-Gitlab-Commit-Id, X-Gitlab-Content-Sha256, X-Gitlab-Encoding, X-Gitlab-File-Name, X-Gitlab-File-Path, \
    X-Gitlab-Last-Commit-Id, X-Gitlab-Ref, X-Gitlab-Size, ETag, Retry-After, RateLimit-Limit, RateLimit-Remaining, \
    RateLimit-Reset, Content-Disposition, X-Request-Id, X-Upstream-Request-Id";

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const CROSS_ORIGIN_OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// What our routes, the proxy and CORS know.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    /// PQ-13: also where one socket serves both families of addresses.
    #[test]
    fn an_address_is_the_same_in_either_family() {
        for (peer, forwarded, address) in [
            ("[::ffff:127.0.0.1]:1", "203.0.113.9", "203.0.113.9"),
            ("[::ffff:127.0.0.1]:1", "::ffff:203.0.113.9", "203.0.113.9"),
            ("127.0.0.1:1", "203.0.113.9, ::ffff:127.0.0.1", "203.0.113.9"),
            ("[::ffff:192.0.2.1]:1", "203.0.113.9", "192.0.2.1"),
            ("[2001:db8::1]:1", "203.0.113.9", "2001:db8::1"),
        ] {
            let request = TestRequest::default().peer_addr(peer.parse().expect(peer));
            let request = request.insert_header((X_FORWARDED_FOR, forwarded)).to_srv_request();
            let client = client(&request, &["127.0.0.1".parse().expect("an address")]);
            let expected = Client { address: address.parse().ok(), is_local: false };
            assert_eq!(client, expected, "{peer} {forwarded}");
        }
    }
}
