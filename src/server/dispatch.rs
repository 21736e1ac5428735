//! One request's way: its context, the guard, the proxy or our own routes, the hardened answer, the line in the log.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::body::{BodySize, BoxBody, MessageBody as _};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::web::{Bytes, Data};
use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::access_log::{LastSaid, chain};
use crate::admin::{HEALTHZ, ProcessHealth, READYZ};
use crate::auth::Auth;
use crate::bridge::Bridge;
use crate::context::{Client, Incomplete, RequestContext};
use crate::datahub::revocation::Obtained;
use crate::error::{ApiError, Code};
use crate::guard::{self, Access, Guard, Page};
use crate::http::admission::{ConnectionLimit, Displaced};
use crate::http::body;
use crate::http::buffer::{Buffer, BufferPool, append};
use crate::http::date::DateClock;
use crate::http::head::RequestHead;
use crate::http::server::{AcceptedStream, RequestError, ServerConnection, ServerSettings, WriteError};
use crate::metrics;
use crate::metrics::worker::WorkerMetrics;
use crate::proxy::Proxy;
use crate::proxy::failure::Failure;
use crate::rate::network;
use crate::server::web::{self, Web, WebRequest};

/// What one worker serves its connections with.
pub(super) struct Worker {
    pub(super) settings: Rc<ServerSettings>,
    pub(super) connections: Arc<Connections>,
    pub(super) guard: Arc<Guard>,
    pub(super) auth: Data<Auth>,
    pub(super) proxy: Proxy,
    /// To the ARCmanager's old backend, if there is one.
    pub(super) bridge: Option<Bridge>,
    pub(super) web: Web,
    pub(super) health: ProcessHealth,
    /// Below which path a front may ask for it, if it may.
    pub(super) health_path: Option<String>,
    /// Ready once idle connections are to end.
    pub(super) shutdown: CancellationToken,
    pub(super) pool: BufferPool,
    pub(super) clock: DateClock,
    pub(super) metrics: Rc<WorkerMetrics>,
}

/// The connections of all workers.
pub(super) struct Connections {
    limit: ConnectionLimit,
    /// When the log was last told that there were too many.
    told: LastSaid,
}

impl Connections {
    /// At most `max` at once.
    pub(super) fn new(max: usize) -> Self {
        Self { limit: ConnectionLimit::new(max), told: LastSaid::default() }
    }

    /// Counts one that was closed for want of room, and says so once a minute.
    fn record_closed(&self, reason: &'static str) {
        metrics::connection_refused(reason);
        if self.told.is_due(CROWDED_INTERVAL, Instant::now()) {
            log::warn!(reason; "connections are closed or refused for want of room: limits.connections are open, or unfinished heads and bodies hold 128 MiB");
        }
    }
}

impl Worker {
    /// Serves one connection to its end.
    pub(super) async fn serve(&self, stream: AcceptedStream, peer: Option<SocketAddr>) {
        // An IPv4 address is one, also where it came mapped into an IPv6 one.
        let peer = peer.map(|peer| peer.ip().to_canonical());
        let Some(admission) = self.connections.limit.admit(peer.map(network)) else {
            return self.connections.record_closed("full");
        };
        let draining = &self.health.draining;
        let _open = draining.connection();
        let (settings, shutdown) = (Rc::clone(&self.settings), self.shutdown.clone().cancelled_owned());
        let mut connection =
            ServerConnection::new(stream, settings, admission, self.pool.clone(), shutdown, draining.flag());
        match self.answer_all(&mut connection, peer).await {
            Ok(()) => {}
            Err(RequestError::Displaced(displaced)) => self.connections.record_closed(match displaced {
                Displaced::Unfinished => "unfinished_head",
                Displaced::Idle => "idle",
            }),
            Err(error) => self.answer_request_error(error, &mut connection, peer).await,
        }
        connection.close().await;
    }

    /// Answers one request after the other, until the connection ends.
    async fn answer_all(&self, connection: &mut ServerConnection, peer: Option<IpAddr>) -> Result<(), RequestError> {
        while let Some(request) = connection.next_request().await? {
            let client = self.guard.client(peer, &request);
            let mut dispatch = self.begin(request.method().clone(), client, Some(&request), connection);
            // What is logged meanwhile, by libraries too, carries the request's id.
            dispatch.context.id.scope(pin!(dispatch.run(&request, peer))).await;
        }
        Ok(())
    }

    /// Answers bytes that are no request; the connection is closed after that. They have a line in the log, too.
    async fn answer_request_error(&self, error: RequestError, connection: &mut ServerConnection, peer: Option<IpAddr>) {
        let client = Client { address: peer, is_local: false };
        let no_method = Method::from_bytes(b"-").expect("it is a token");
        let mut dispatch = self.begin(no_method, client, None, connection);
        dispatch.context.id.scope(pin!(dispatch.write_error(&error.into()))).await;
    }

    fn begin<'a>(
        &'a self,
        method: Method,
        client: Client,
        request: Option<&'a RequestHead>,
        connection: &'a mut ServerConnection,
    ) -> Dispatch<'a> {
        let context = RequestContext::new(method, client, Rc::clone(&self.metrics));
        Dispatch { worker: self, connection, context, request, access: Access::Open, page: Page::None }
    }
}

/// One request on its way. Whatever becomes of it, it has an id, and a line in the log when its context is dropped.
struct Dispatch<'a> {
    worker: &'a Worker,
    connection: &'a mut ServerConnection,
    context: Rc<RequestContext>,
    /// None if the bytes were no request.
    request: Option<&'a RequestHead>,
    /// What the guard has found. An error's answer depends on it, too (CORS, downloads).
    access: Access,
    /// Whose page is asked for.
    page: Page,
}

impl Dispatch<'_> {
    /// Answers the request. Where that fails before anything has been written, the answer is an error.
    async fn run(&mut self, request: &RequestHead, peer: Option<IpAddr>) {
        // A panic ends this request and not the worker.
        let answered = AssertUnwindSafe(self.answer(request, peer)).catch_unwind().await;
        match answered.unwrap_or_else(|_| Err(ApiError::from(Code::Internal).closing().into())) {
            Ok(()) => {}
            Err(Failure::Error(error)) if !self.connection.has_answered() => Box::pin(self.write_error(&error)).await,
            Err(failure) => {
                self.context.record_incomplete(match failure {
                    Failure::ClientLeft => Incomplete::ClientGone,
                    Failure::Displaced => {
                        self.worker.connections.record_closed("unfinished_body");
                        Incomplete::Displaced
                    }
                    Failure::Error(_) => Incomplete::Internal,
                });
                self.connection.abort();
            }
        }
    }

    /// A call is answered by the proxy or the bridge, anything else by our own routes and the app's files: each in a box of its
    /// own, so that an idle connection holds no memory for them, and none of them memory for the others.
    async fn answer(&mut self, request: &RequestHead, peer: Option<IpAddr>) -> Result<(), Failure> {
        if let Some(path) = &self.worker.health_path
            && let Some(route) = health_route(path, request.target())
        {
            return Box::pin(self.answer_health(route, request, peer)).await;
        }
        let Worker { guard, proxy, bridge, .. } = self.worker;
        let is_call = proxy.serves(request);
        let bridge = bridge.as_ref().filter(|bridge| !is_call && bridge.serves(request));
        if !is_call && bridge.is_none() {
            return Box::pin(self.answer_route(request)).await;
        }
        self.access = guard.check_call(request, &self.context)?;
        if self.access == Access::Preflight {
            return Box::pin(self.write_preflight()).await;
        }
        let (downstream, context) = (&mut *self.connection, &self.context);
        match bridge {
            Some(bridge) => Box::pin(bridge.forward(proxy, request, downstream, self.access, context)).await,
            None => Box::pin(proxy.forward(request, downstream, self.access, context)).await,
        }
    }

    /// Answers by one of our own routes, or with one of the app's files.
    async fn answer_route(&mut self, request: &RequestHead) -> Result<(), Failure> {
        let guard = &self.worker.guard;
        let web_request = WebRequest::new(request)?;
        self.access = guard.check_route(request, web_request.path(), &self.context)?;
        self.page = guard.page(web_request.path());
        if self.access == Access::Preflight {
            return self.write_preflight().await;
        }
        let body = read_body(request, self.connection, &self.context).await?;
        let response = {
            let mut answer = pin!(self.worker.web.call(web_request, body, &self.context));
            match self.connection.unless_client_leaves(answer.as_mut()).await {
                Ok(response) => response?,
                Err(left) => {
                    // What has begun is not dropped half way: a logout ends the session, tokens that came are revoked.
                    self.context.has_left.set(true);
                    let _ = answer.await;
                    return Err(left.into());
                }
            }
        };
        self.write_response(response).await
    }

    /// Tells a front of ours how the process does, whatever Host it names: a health check names none, or any.
    async fn answer_health(
        &mut self,
        route: &'static str,
        request: &RequestHead,
        peer: Option<IpAddr>,
    ) -> Result<(), Failure> {
        if !self.worker.guard.is_front(peer) {
            return Err(ApiError::from(Code::NotFound).into());
        }
        self.context.set_route(route);
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed("GET, HEAD").into());
        }
        let health = &self.worker.health;
        let verdict = if route == HEALTHZ { health.alive().await } else { health.ready() };
        let status = if verdict.is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut out = self.begin_head(status, false, false);
        out.extend_from_slice(b"content-type: text/plain\r\ncache-control: no-store\r\n");
        self.connection.write_framing(Some(verdict.text.len() as u64), &mut out);
        self.write_whole(out, status, None, verdict.text.as_bytes()).await;
        Ok(())
    }

    /// Writes the answer of one of our own routes, or a file.
    async fn write_response(&mut self, mut response: HttpResponse<BoxBody>) -> Result<(), Failure> {
        let (status, size) = (response.status(), response.body().size());
        let has_body = !self.is_head() && !matches!(size, BodySize::None | BodySize::Sized(0));
        // Our own refusals are errors; this is a library's, of a range for example, and no page.
        if status.is_client_error() {
            self.page = Page::None;
        }
        let is_file = self.page == Page::App;
        let closes = response.head().connection_type() == ConnectionType::Close;
        let mut out = self.begin_head(status, closes, has_body && size == BodySize::Stream);
        let headers = response.headers();
        for (name, value) in headers.iter().filter(|(name, _)| !guard::is_hardening(name.as_str())) {
            append(&mut out, [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        if is_file {
            out.extend_from_slice(self.request.map_or(b"", |request| web::caching(request.target())));
        }
        for (name, line) in [("cache-control", "cache-control: no-store\r\n"), ("vary", "vary: Cookie\r\n")] {
            if !is_file && !headers.contains_key(name) {
                out.extend_from_slice(line.as_bytes());
            }
        }
        let length = match size {
            BodySize::Sized(length) if status != StatusCode::NO_CONTENT => Some(length),
            _ => None,
        };
        self.connection.write_framing(length, &mut out);
        self.end_head(&mut out);

        self.context.record_answer(status.as_u16(), None);
        let obtained = response.extensions_mut().remove::<Obtained>();
        let mut body = response.into_body();
        let mut written = Ok(());
        while has_body && written.is_ok() {
            let Some(piece) = body::next_piece(&mut body).await else { break };
            let piece = piece.map_err(|error| {
                log::warn!(reason = error.to_string(); "a file could not be read to its end");
                ApiError::from(Code::Internal)
            })?;
            self.context.count_out(piece.len());
            written = self.connection.write_piece(&mut out, &piece).await;
        }
        if written.is_ok() {
            written = self.connection.end_body(&out).await;
        }
        // Tokens that the browser has a cookie with are kept; any others are revoked.
        if let (Some(obtained), Ok(())) = (obtained, written) {
            obtained.keep();
        }
        self.record_written(written);
        Ok(())
    }

    /// Writes an error's problem document to the browser, and its cause to the log if the fault is on our side. A callback goes on
    /// to the app instead, whatever is wrong with it.
    async fn write_error(&mut self, error: &ApiError) {
        let status = error.status();
        if let Some(source) = std::error::Error::source(error).filter(|_| status.is_server_error()) {
            log::warn!(datahub = self.context.datahub_id(), code = error.code().as_str(), reason = chain(source); "a call failed");
        }
        self.page = Page::None;
        // What is refused ahead of time is asked for again by the person's own click; nothing stays at the address before that.
        if self.is_callback() && error.code() != Code::PrefetchRefused {
            return self.write_refused_callback(error).await;
        }
        let problem = error.problem(self.context.id.as_str());
        let mut out = self.begin_head(status, error.closes(), false);
        out.extend_from_slice(b"content-type: application/problem+json\r\ncache-control: no-store\r\nvary: Cookie\r\n");
        for (name, value) in error.fields() {
            append(&mut out, [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        self.context.write_session_field(&mut out);
        if self.access == Access::Download {
            out.extend_from_slice(b"content-disposition: attachment\r\n");
        }
        self.connection.write_framing(Some(problem.len() as u64), &mut out);
        self.write_whole(out, status, Some(error.code()), problem.as_bytes()).await;
    }

    /// Whether the answer is one to HEAD, which has no body.
    fn is_head(&self) -> bool {
        self.request.is_some_and(|request| *request.method() == Method::HEAD)
    }

    /// Whether it is a callback, as far as can be told: of what is no head, the first line may have come.
    fn is_callback(&self) -> bool {
        let request = match self.request {
            Some(request) => Some((request.method().as_str().as_bytes(), request.target().as_bytes())),
            None => self.connection.refused_request(),
        };
        request.is_some_and(|(method, target)| self.worker.guard.is_callback(method, target))
    }

    async fn write_refused_callback(&mut self, error: &ApiError) {
        let response = self.worker.auth.redirect_refused(error.code(), &self.context);
        let mut out = self.begin_head(response.status(), error.closes(), false);
        for (name, value) in response.headers() {
            append(&mut out, [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        out.extend_from_slice(b"cache-control: no-store\r\nvary: Cookie\r\n");
        self.connection.write_framing(Some(0), &mut out);
        self.write_whole(out, response.status(), Some(error.code()), b"").await;
    }

    /// Answers a development origin's preflight, the question what its script may send (Fetch, CORS protocol).
    async fn write_preflight(&mut self) -> Result<(), Failure> {
        let mut out = self.begin_head(StatusCode::NO_CONTENT, false, false);
        out.extend_from_slice(guard::PREFLIGHT);
        out.extend_from_slice(b"cache-control: no-store\r\nvary: Cookie\r\n");
        self.write_whole(out, StatusCode::NO_CONTENT, None, b"").await;
        Ok(())
    }

    /// Writes the rest of an answer whose body is here already.
    async fn write_whole(&mut self, mut out: Buffer, status: StatusCode, code: Option<Code>, body: &[u8]) {
        let body = if self.is_head() { b"" } else { body };
        self.end_head(&mut out);
        self.context.record_answer(status.as_u16(), code);
        self.context.count_out(body.len());
        let written = self.connection.write_piece(&mut out, body).await;
        self.record_written(written);
    }

    /// Decides whether the connection goes on, and begins the head with the status line. `is_last` and `is_unbounded` are as in
    /// [`ServerConnection::decide_persistence`].
    fn begin_head(&mut self, status: StatusCode, is_last: bool, is_unbounded: bool) -> Buffer {
        self.connection.decide_persistence(is_last, is_unbounded);
        let mut out = self.worker.pool.take();
        self.connection.write_status_line(status, &mut out);
        out
    }

    /// Writes the fields that every answer of ours has, and the end of its head.
    fn end_head(&self, out: &mut Vec<u8>) {
        self.worker.guard.harden(self.page, out);
        if let Some(request) = self.request {
            self.worker.guard.write_cors(self.access, request.fields(), out);
        }
        self.connection.end_head(self.context.id.as_bytes(), &self.worker.clock, out);
    }

    /// Tells the log if the client did not get the whole answer.
    fn record_written(&self, written: Result<(), WriteError>) {
        if let Err(error) = written {
            self.context.record_incomplete(error.into());
        }
    }
}

/// The whole body of a request for one of our own routes. No route but a PUT, which brings a token, has one: any other body is
/// thrown away as it comes and taken for empty, and so is one that is too long, and one that the client sends only after a
/// 100. What is longer than [`MAX_BODY`] stays unread, and the connection ends after the answer.
async fn read_body(
    request: &RequestHead,
    connection: &mut ServerConnection,
    context: &RequestContext,
) -> Result<Bytes, Failure> {
    let is_unread = request.expects_continue || request.body.known().is_some_and(|length| length > MAX_BODY);
    if is_unread || request.body.is_empty() {
        return Ok(Bytes::new());
    }
    // Of what is thrown away nothing is held: while it is waited for, the connection can be closed for others.
    let mut max_held = if *request.method() == Method::PUT { MAX_HELD } else { 0 };
    let mut discarded = 0;
    loop {
        if let Some(body) = connection.hold_body(max_held).await? {
            context.count_in(body.len());
            return Ok(if discarded == 0 { body.into() } else { Bytes::new() });
        }
        max_held = 0;
        let piece = connection.next_piece().await?.map_or(0, |piece| piece.len());
        context.count_in(piece);
        discarded += piece as u64;
        if discarded > MAX_BODY {
            // The answer is the last one, even if the body ended with this piece.
            connection.end_after_answer();
            return Ok(Bytes::new());
        }
    }
}

/// Which route about the process's health a target is, below `path`.
fn health_route(path: &str, target: &str) -> Option<&'static str> {
    let path = target.split('?').next()?.strip_prefix(path)?;
    [HEALTHZ, READYZ].into_iter().find(|route| *route == path)
}

/// How often the log is told that there are too many connections.
const CROWDED_INTERVAL: Duration = Duration::from_mins(1);
/// Longest body that is read for one of our own routes, in bytes.
const MAX_BODY: u64 = 64 * 1024;
/// Longest body that one of them may have, in bytes: thirty tokens' room.
const MAX_HELD: usize = 16 * 1024;
