//! One request's way: its context, the guard, the proxy or our own routes, the hardened answer, the line in the log.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::body::{BodySize, BoxBody, MessageBody as _};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::web::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::access_log::chain;
use crate::admin::Draining;
use crate::context::{Client, Incomplete, RequestContext};
use crate::error::{ApiError, Code};
use crate::guard::{self, Access, Guard};
use crate::http::body::{self, CHUNK_END, LAST_CHUNK, write_chunk_size, write_content_length};
use crate::http::buffer::{Buffer, BufferPool, append};
use crate::http::date::DateClock;
use crate::http::head::RequestHead;
use crate::http::server::{AcceptedStream, RequestError, ServerConnection, ServerSettings, WriteError};
use crate::metrics::worker::WorkerMetrics;
use crate::proxy::{Failure, Proxy};
use crate::server::web::{Web, WebRequest};

/// What one worker serves its connections with.
pub(super) struct Worker {
    pub(super) settings: Rc<ServerSettings>,
    pub(super) guard: Arc<Guard>,
    pub(super) proxy: Proxy,
    pub(super) web: Web,
    pub(super) draining: Draining,
    /// Ready once idle connections are to end.
    pub(super) shutdown: CancellationToken,
    pub(super) pool: BufferPool,
    pub(super) clock: DateClock,
    pub(super) metrics: Rc<WorkerMetrics>,
}

impl Worker {
    /// Serves one connection to its end.
    pub(super) async fn serve(&self, stream: AcceptedStream, peer: Option<SocketAddr>) {
        let _open = self.draining.connection();
        let shutdown = self.shutdown.clone().cancelled_owned();
        let mut connection =
            ServerConnection::new(stream, Rc::clone(&self.settings), self.pool.clone(), shutdown, self.draining.flag());
        if let Err(error) = self.answer_all(&mut connection, peer).await {
            self.answer_request_error(error, &mut connection, peer).await;
        }
        connection.close().await;
    }

    /// Answers one request after the other, until the connection ends.
    async fn answer_all(
        &self,
        connection: &mut ServerConnection,
        peer: Option<SocketAddr>,
    ) -> Result<(), RequestError> {
        while let Some(request) = connection.next_request().await? {
            self.dispatch(&request, connection, peer).await;
            connection.finish();
        }
        Ok(())
    }

    /// Answers one request. Whatever becomes of it, it has an id, and a line in the log when its context is dropped.
    async fn dispatch(&self, request: &RequestHead, connection: &mut ServerConnection, peer: Option<SocketAddr>) {
        let client = self.guard.client(peer.map(canonical), request.fields());
        let method = Method::from_bytes(request.method().as_bytes()).expect("the head's parser takes tokens only");
        let context = RequestContext::new(method, client, Rc::clone(&self.metrics));
        context.id.scope(pin!(self.answer_or_write_error(request, connection, peer, &context))).await;
    }

    /// Answers one request. Where that fails before anything has been written, the answer is an error.
    async fn answer_or_write_error(
        &self,
        request: &RequestHead,
        connection: &mut ServerConnection,
        peer: Option<SocketAddr>,
        context: &Rc<RequestContext>,
    ) {
        // Kept out here, since an error that is written instead of the answer depends on it, too (CORS, downloads).
        let mut access = Access::Open;
        // In a box, so that an idle connection holds no memory for a call. A panic ends this request and not the worker.
        let answer = Box::pin(self.answer(request, connection, peer, &mut access, context));
        let answered = AssertUnwindSafe(answer).catch_unwind().await;
        match answered.unwrap_or_else(|_| Err(ApiError::from(Code::Internal).closing().into())) {
            Ok(()) => {}
            Err(Failure::ClientLeft) => {
                context.record_incomplete(Incomplete::ClientGone);
                connection.abort();
            }
            Err(Failure::Error(_)) if connection.has_answered() => {
                context.record_incomplete(Incomplete::Internal);
                connection.abort();
            }
            Err(Failure::Error(error)) => {
                self.write_error(&error, Some(request), access, connection, context).await;
            }
        }
    }

    /// Answers one request: a call by the proxy, anything else by our own routes and the app's files. `access` is what the
    /// guard has found.
    async fn answer(
        &self,
        request: &RequestHead,
        connection: &mut ServerConnection,
        peer: Option<SocketAddr>,
        access: &mut Access,
        context: &Rc<RequestContext>,
    ) -> Result<(), Failure> {
        if self.proxy.serves(request) {
            *access = self.guard.check_call(request, context)?;
            if *access == Access::Preflight {
                self.write_preflight(request, false, connection, context).await;
                return Ok(());
            }
            return self.proxy.forward(request, connection, *access, context).await;
        }
        let web_request = WebRequest::new(request, peer)?;
        *access = self.guard.check_route(request, web_request.path(), context)?;
        let is_file = self.guard.is_file(web_request.path());
        if *access == Access::Preflight {
            self.write_preflight(request, is_file, connection, context).await;
            return Ok(());
        }
        let body = read_body(request, connection, context).await?;
        let mut answer = pin!(self.web.call(web_request, body, context));
        let response = match connection.unless_client_leaves(answer.as_mut()).await {
            Ok(response) => response?,
            Err(left) => {
                // What has begun is not dropped half way: a logout ends the session, tokens that came are kept or revoked.
                let _ = answer.await;
                return Err(left.into());
            }
        };
        self.write_response(response, request, *access, is_file, connection, context).await;
        Ok(())
    }

    /// Writes the answer of one of our own routes, or a file.
    async fn write_response(
        &self,
        response: HttpResponse<BoxBody>,
        request: &RequestHead,
        access: Access,
        is_file: bool,
        connection: &mut ServerConnection,
        context: &RequestContext,
    ) {
        let status = response.status();
        let is_file = is_file && !status.is_client_error();
        let size = response.body().size();
        let is_stream = matches!(size, BodySize::Stream);
        let is_chunked = is_stream && connection.takes_chunks();
        let closes = response.head().connection_type() == ConnectionType::Close || (is_stream && !is_chunked);
        connection.decide_persistence(closes);

        let mut out = self.begin_head(status, connection);
        let headers = response.headers();
        for (name, value) in headers.iter().filter(|(name, _)| !guard::is_hardening(name.as_str())) {
            append(&mut out, [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        for (name, line) in [("cache-control", "cache-control: no-store\r\n"), ("vary", "vary: Cookie\r\n")] {
            if !is_file && !headers.contains_key(name) {
                out.extend_from_slice(line.as_bytes());
            }
        }
        match size {
            BodySize::Sized(length) if status != StatusCode::NO_CONTENT => write_content_length(length, &mut out),
            BodySize::Stream if is_chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            _ => {}
        }
        self.end_head(Some(request), access, is_file, connection, context, &mut out);
        context.record_answer(status.as_u16(), None);

        let mut written = connection.write(&[&out]).await;
        let mut body = response.into_body();
        let has_body = request.method() != "HEAD" && !matches!(size, BodySize::None | BodySize::Sized(0));
        while has_body && written.is_ok() {
            let piece = match body::next_piece(&mut body).await {
                // A chunk of no bytes would be the last one.
                Some(Ok(piece)) if piece.is_empty() => continue,
                Some(Ok(piece)) => piece,
                Some(Err(error)) => {
                    log::warn!(reason = error.to_string(); "a file could not be read to its end");
                    context.record_incomplete(Incomplete::Internal);
                    connection.abort();
                    return;
                }
                None => break,
            };
            out.clear();
            context.count_out(piece.len());
            written = if is_chunked {
                write_chunk_size(piece.len(), &mut out);
                connection.write(&[&out, &piece, CHUNK_END]).await
            } else {
                connection.write(&[&piece]).await
            };
        }
        if has_body && is_chunked && written.is_ok() {
            written = connection.write(&[LAST_CHUNK]).await;
        }
        record_written(&written, context);
    }

    /// Writes an error's problem document to the browser, and its cause to the log if the fault is on our side.
    async fn write_error(
        &self,
        error: &ApiError,
        request: Option<&RequestHead>,
        access: Access,
        connection: &mut ServerConnection,
        context: &RequestContext,
    ) {
        let status = error.status();
        if let Some(source) = std::error::Error::source(error).filter(|_| status.is_server_error()) {
            log::warn!(code = error.code().as_str(), reason = chain(source); "a call failed");
        }
        let problem = error.problem(context.id.as_str());
        connection.decide_persistence(error.closes());
        let mut out = self.begin_head(status, connection);
        out.extend_from_slice(b"content-type: application/problem+json\r\ncache-control: no-store\r\nvary: Cookie\r\n");
        for (name, value) in error.fields() {
            append(&mut out, [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        if access == Access::Download {
            out.extend_from_slice(b"content-disposition: attachment\r\n");
        }
        write_content_length(problem.len() as u64, &mut out);
        self.end_head(request, access, false, connection, context, &mut out);
        context.record_answer(status.as_u16(), Some(error.code()));
        if request.is_none_or(|request| request.method() != "HEAD") {
            context.count_out(problem.len());
            out.extend_from_slice(problem.as_bytes());
        }
        record_written(&connection.write(&[&out]).await, context);
    }

    /// Answers bytes that are no request; the connection is closed after that. They have a line in the log, too.
    async fn answer_request_error(
        &self,
        error: RequestError,
        connection: &mut ServerConnection,
        peer: Option<SocketAddr>,
    ) {
        let method = Method::from_bytes(b"-").expect("a token");
        let client = Client { address: peer.map(canonical), is_local: false };
        let context = RequestContext::new(method, client, Rc::clone(&self.metrics));
        let error = ApiError::from(error);
        context.id.scope(pin!(self.write_error(&error, None, Access::Open, connection, &context))).await;
    }

    /// Answers a development origin's preflight, the question what its script may send (Fetch, CORS protocol).
    async fn write_preflight(
        &self,
        request: &RequestHead,
        is_file: bool,
        connection: &mut ServerConnection,
        context: &RequestContext,
    ) {
        connection.decide_persistence(false);
        let mut out = self.begin_head(StatusCode::NO_CONTENT, connection);
        out.extend_from_slice(guard::PREFLIGHT);
        out.extend_from_slice(b"cache-control: no-store\r\nvary: Cookie\r\n");
        self.end_head(Some(request), Access::Preflight, is_file, connection, context, &mut out);
        context.record_answer(StatusCode::NO_CONTENT.as_u16(), None);
        record_written(&connection.write(&[&out]).await, context);
    }

    /// The status line.
    fn begin_head(&self, status: StatusCode, connection: &ServerConnection) -> Buffer {
        let mut out = self.pool.take();
        connection.write_status_line(status, &mut out);
        out
    }

    /// Writes the fields that every answer of ours has, and the end of its head.
    fn end_head(
        &self,
        request: Option<&RequestHead>,
        access: Access,
        is_file: bool,
        connection: &ServerConnection,
        context: &RequestContext,
        out: &mut Vec<u8>,
    ) {
        self.guard.harden(is_file, out);
        if let Some(request) = request {
            self.guard.write_cors(access, request.fields(), out);
        }
        connection.end_head(context.id.as_bytes(), &self.clock, out);
    }
}

/// The whole body of a request for one of our own routes. A body that is too long is taken for empty, since no route needs
/// one, and so is one that the client sends only after a 100. It stays unread, and the connection ends after the answer.
async fn read_body(
    request: &RequestHead,
    connection: &mut ServerConnection,
    context: &RequestContext,
) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    if request.expects_continue || request.body.known().is_some_and(|length| length > MAX_BODY) {
        return Ok(Bytes::new());
    }
    while let Some(piece) = connection.next_piece().await? {
        context.count_in(piece.len());
        body.extend_from_slice(&piece);
        if body.len() as u64 > MAX_BODY {
            connection.abort();
            return Ok(Bytes::new());
        }
    }
    Ok(body.freeze())
}

/// Tells the log if the client did not get the whole answer.
fn record_written(written: &Result<(), WriteError>, context: &RequestContext) {
    match written {
        Ok(()) => {}
        Err(WriteError::Gone(_)) => context.record_incomplete(Incomplete::ClientGone),
        Err(WriteError::TooSlow) => context.record_incomplete(Incomplete::ResponseTimeout),
    }
}

/// A peer's address: an IPv4 address as such, also where it came mapped into an IPv6 one.
fn canonical(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

/// Longest body for one of our own routes, in bytes.
const MAX_BODY: u64 = 64 * 1024;
