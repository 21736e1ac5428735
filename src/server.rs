//! Listeners, routes and middleware, in the order a request meets them.
//!
//! A connection is guarded by [`connection`], below HTTP. Every request gets an id and a line in the log, whatever becomes of it; then it is measured; then it must show that our
//! own script sent it. On its way back every answer gets the hardening headers, and every failure its body.

mod connection;
mod flow;
mod head;

use std::fmt::Debug;
use std::fs;
use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_files::Files;
use actix_http::error::DispatchError;
use actix_http::{HttpService, KeepAlive, Request};
use actix_server::Server;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::body::{BodySize, BoxBody, EitherBody, MessageBody};
use actix_web::dev::{AppConfig, Path as Matched, ServiceRequest, ServiceResponse, Url};
use actix_web::http::header::{
    self, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{ConnectionType, Version};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, Data};
use actix_web::{App, Error, HttpMessage, HttpResponse, HttpServer, ResponseError};
use futures_util::future::Either;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use self::connection::{Connection, LINGER};
use self::flow::{Answer, Flow};

use crate::admin::{self, Draining};
use crate::auth::pending::PendingLogins;
use crate::auth::rate::Limiter;
use crate::auth::{self, Auth};
use crate::config::Config;
use crate::datahub::transport::Endpoint;
use crate::error::{ApiError, Code};
use crate::log::{self, Call, Client, Counted, Event, chain};
use crate::origin::Admission;
use crate::proxy::request::Framing;
use crate::proxy::{self, Proxy};
use crate::session::refresh::{Refresher, Tasks};

/// A socket to take connections from.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

impl Socket {
    /// Listens at `endpoint`. A unix socket that a dead process left behind is replaced.
    ///
    /// # Errors
    /// What the system said.
    pub fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            Endpoint::Unix(path) => {
                if std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
                {
                    fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(Self::Unix)
            }
        }
    }

    /// Where it listens, for people to read.
    pub fn place(&self) -> String {
        match self {
            Self::Tcp(socket) => socket.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
            Self::Unix(socket) => {
                let path = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
                format!("unix:{}", path.unwrap_or_default().display())
            }
        }
    }
}

/// The gateway on `sockets`, and the tasks that it leaves to whoever runs it.
///
/// # Errors
/// A socket that cannot be listened on.
pub fn gateway(config: &Arc<Config>, sockets: Vec<Socket>, draining: &Draining) -> io::Result<(Server, Tasks)> {
    let (refresher, tasks) = Refresher::new(config.session.remember);
    let origin = &config.app.origins.own;
    let datahubs = &config.datahubs;
    let sessions = Arc::new(config.sessions());
    let auth = Data::new(Auth {
        datahubs: datahubs.clone(),
        sessions: Arc::clone(&sessions),
        refresher: refresher.clone(),
        pending: PendingLogins::new(config.keyring.clone(), origin),
        logins: Limiter::new(config.login_rate),
        callbacks: Limiter::new(config.callback_rate),
        app_url: config.app.url.clone(),
    });
    let shared = Arc::new(proxy::Shared::new(
        &config.server.public_url,
        &config.server.base_path,
        config.proxy.clone(),
        datahubs.clone(),
        sessions,
        refresher,
    ));

    let (workers, shutdown) = (config.server.workers, config.server.shutdown_timeout);
    let (config, draining) = (Arc::clone(config), draining.clone());
    let app = move |door: Rc<Door>| {
        let base_path = door.config.server.base_path.clone();
        let files = door.config.app.files.clone();
        let app = App::new()
            .app_data(auth.clone())
            .app_data(Data::new(Proxy::new(Arc::clone(&shared))))
            .wrap_fn(move |mut req, next| {
                let door = Rc::clone(&door);
                let flow = follow(&mut req);
                let call = Call::begin(req.method().clone(), client(&req, &door.config.server.trusted_proxies));
                let work = match door.admit(&req) {
                    Ok(None) => Either::Left(actix_web::dev::Service::call(next, req)),
                    Ok(Some(answer)) => Either::Right(ready(Ok(req.into_response(answer)))),
                    Err(error) => Either::Right(ready(Ok(req.error_response(error)))),
                };
                async move {
                    let response = call.scope(work).await?;
                    Ok(finish(door.leave(response, &call), flow))
                }
            })
            .service(
                web::scope(&base_path)
                    .configure(|routes| auth::routes(routes, &auth))
                    // Not a pattern: the router would match a decoded copy, by regular expressions.
                    .default_service(web::to(proxy::forward)),
            )
            .default_service(web::to(|| async { Err::<HttpResponse, _>(ApiError::from(Code::NotFound)) }));
        match &files {
            // Relative links of the app's page need the slash.
            Some((path, dir)) if !path.is_empty() => app
                .service(web::redirect(path.clone(), format!("{path}/")))
                .service(Files::new(path, dir).index_file("index.html")),
            Some((_, dir)) => app.service(Files::new("/", dir).index_file("index.html")),
            None => app,
        }
    };
    let door = move || Rc::new(Door { config: Arc::clone(&config), draining: draining.clone() });
    let server = Server::build().workers(workers).shutdown_timeout(shutdown.as_secs().max(1)).disable_signals();
    let server = sockets.into_iter().try_fold(server, |server, socket| {
        let (app, door, place) = (app.clone(), door.clone(), socket.place());
        match socket {
            Socket::Tcp(socket) => server.listen(place, socket, move || {
                let door = door();
                http(app(Rc::clone(&door)).into_factory(), door, |stream: &TcpStream| {
                    // An answer's last packet must not wait for the one before to be acknowledged.
                    let _ = stream.set_nodelay(true);
                    stream.peer_addr().ok()
                })
            }),
            Socket::Unix(socket) => server.listen_uds(place, socket, move || {
                let door = door();
                http(app(Rc::clone(&door)).into_factory(), door, |_: &UnixStream| None)
            }),
        }
    })?;
    Ok((server.run(), tasks))
}

/// The operators' listener.
///
/// # Errors
/// A socket that cannot be listened on.
pub fn operators(socket: Socket, draining: &Draining) -> io::Result<Server> {
    let draining = draining.clone();
    let server = HttpServer::new(move || App::new().app_data(Data::new(draining.clone())).configure(admin::routes));
    let server = server.workers(1).shutdown_timeout(1).disable_signals();
    let server = match socket {
        Socket::Tcp(socket) => server.listen(socket),
        Socket::Unix(socket) => server.listen_uds(socket),
    }?;
    Ok(server.run())
}

/// `app` over HTTP/1.1 on guarded connections, and nothing else: no upgrade, no HTTP/2.
fn http<S, A, B>(
    app: A,
    door: Rc<Door>,
    peer: fn(&S) -> Option<SocketAddr>,
) -> impl ServiceFactory<S, Config = (), Response = (), Error = impl Debug, InitError = impl Debug>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    A: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = Error> + 'static,
    A::InitError: Debug,
    B: MessageBody + 'static,
{
    let http = HttpService::build()
        // The connection's own.
        .client_request_timeout(Duration::ZERO)
        .keep_alive(KeepAlive::Os)
        .client_disconnect_timeout(LINGER)
        // A client that leaves takes its call with it.
        .h1_allow_half_closed(false)
        .on_connect_ext(|connection: &Connection<S>, data| {
            data.insert(connection.flow());
        })
        .h1(map_config(app, |()| AppConfig::default()));
    fn_service(move |stream: S| {
        let peer = peer(&stream);
        ready(Ok::<_, DispatchError>((
            Connection::new(stream, peer.map(|peer| peer.ip().to_canonical()), Rc::clone(&door)),
            peer,
        )))
    })
    .and_then(http)
}

/// What its connection and a request know of each other, from here to the end of the answer.
fn follow(req: &mut ServiceRequest) -> Rc<Flow> {
    let flow = Rc::clone(req.conn_data::<Rc<Flow>>().expect("`http` gives every connection one"));
    flow.reach();
    if has_body(req) {
        let body = flow.body(req.take_payload());
        req.set_payload(body);
    }
    flow
}

/// Ends an answer as its connection needs it.
fn finish<B: MessageBody>(mut response: ServiceResponse<B>, flow: Rc<Flow>) -> ServiceResponse<Answer<B>> {
    let request = response.request();
    // Chunks came with HTTP/1.1: to an older client the end of the connection is the end of the body (RFC 9112 section 6.1).
    let is_endless =
        request.version() < Version::HTTP_11 && matches!(response.response().body().size(), BodySize::Stream);
    // An `upgrade` alone is to actix-http the end of the connection, of which it says nothing.
    let is_last = request.head().connection_type() != ConnectionType::KeepAlive;
    let head = response.response_mut().head_mut();
    head.no_chunking(is_endless);
    if is_last || is_endless || flow.must_close() {
        head.set_connection_type(ConnectionType::Close);
    }
    // Heads are used again, so that an HTTP/1.0 of before would stand for a close.
    head.version = Version::HTTP_11;
    if head.connection_type() == ConnectionType::Close {
        flow.close();
    }
    response.map_body(|_, body| Answer::new(body, flow))
}

fn has_body(req: &ServiceRequest) -> bool {
    Framing::of(req.method(), req.headers()).length() != Some(0)
}

/// What every request passes on its way in and every answer on its way out.
struct Door {
    config: Arc<Config>,
    draining: Draining,
}

impl Door {
    /// Answers what is no request: the whole answer, after which the connection is closed. Its line is in the log, too.
    fn refusal(&self, code: Code, peer: Option<IpAddr>) -> Bytes {
        let none = Method::from_bytes(b"-").expect("a token");
        let call = Call::begin(none, Client { address: peer, is_local: false });
        let status = ApiError::from(code).status_code();
        call.answered(None, status.as_u16(), Some(code));
        let problem = ApiError::from(code).problem(&call.id);
        let mut headers = HeaderMap::new();
        harden(&mut headers, false, self.config.server.public_url.starts_with("https:"));
        headers.insert(X_REQUEST_ID, call.id_header());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(problem.len()));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let mut answer = format!("HTTP/1.1 {status}\r\n").into_bytes();
        for (name, value) in &headers {
            answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(problem.as_bytes());
        answer.into()
    }

    /// Lets a request in, or answers it here.
    fn admit(&self, req: &ServiceRequest) -> Result<Option<HttpResponse>, ApiError> {
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
                log::event(Event::CrossSiteRefused, "");
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
    fn leave(&self, response: ServiceResponse<BoxBody>, call: &Rc<Call>) -> ServiceResponse<impl MessageBody + use<>> {
        let admission = response.request().extensions().get::<Admission>().copied();
        let is_dev = admission == Some(Admission::Dev);
        let is_file = self.is_file(routed(response.request().match_info())) && !response.status().is_client_error();
        let code = response.response().error().map(|error| code_of(error, response.status(), call));
        call.answered(response.request().match_pattern(), response.status().as_u16(), code);

        let dev_origin = response.request().headers().get(header::ORIGIN).filter(|_| is_dev).cloned();
        let mut response = match code {
            None => response.map_body(|_, body| EitherBody::left(body)),
            Some(code) => {
                let problem = ApiError::from(code).problem(&call.id);
                response.map_body(|_, _| EitherBody::right(problem))
            }
        };
        let is_public_tls = self.config.server.public_url.starts_with("https:");
        let headers = response.headers_mut();
        harden(headers, is_file, is_public_tls);
        headers.insert(X_REQUEST_ID, call.id_header());
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
        let call = Rc::clone(call);
        response.map_body(|_, body| Counted::new(body, call))
    }
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
fn code_of(error: &actix_web::Error, status: StatusCode, call: &Rc<Call>) -> Code {
    match error.as_error::<ApiError>() {
        Some(error) => {
            if let (true, Some(source)) = (status.is_server_error(), std::error::Error::source(error)) {
                let reason = chain(source);
                ::log::warn!(request_id = call.id.as_str(), code = error.code().as_str(), reason; "a call failed");
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

/// The headers that keep an answer from acting on our origin and out of every cache; the app's own files may run, and be
/// kept.
fn harden(headers: &mut HeaderMap, is_file: bool, is_public_tls: bool) {
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
    if is_public_tls {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
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
