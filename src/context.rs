//! What is known of one request, from its first byte to its line in the log.
//!
//! It is passed as an argument to whoever works on the request, and never looked up. When the last holder lets it go, the
//! request's one line is written, whatever became of the request.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::http::Method;

use crate::access_log::{self, AccessLine, Event, RequestId};
use crate::error::Code;
use crate::http::server::WriteError;
use crate::metrics::worker::{DataHubIndex, WorkerMetrics};

/// Who sent a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The peer, or whom a trusted proxy says it speaks for; nothing for a unix socket without a word about it.
    pub address: Option<IpAddr>,
    /// Whether the peer is on this machine and speaks for itself.
    pub is_local: bool,
}

/// What is noted about one request while it is worked on.
#[derive(Debug)]
pub struct RequestContext {
    /// On the answer as `X-Request-Id`, on the call that goes up, and on every line of the log.
    pub id: RequestId,
    /// Who sent it, as far as we can know.
    pub client: Client,
    /// How often the browser has sent it again.
    pub replay: Cell<u8>,
    /// Whether it is a call without a login, to a DataHUB that may be asked without one.
    pub is_anonymous: Cell<bool>,
    /// Whether the client has left while its answer was made.
    pub has_left: Cell<bool>,
    /// How long the DataHUB took, from the end of the request to the head of the answer.
    pub upstream: Cell<Option<Duration>>,
    method: Method,
    route: RefCell<Cow<'static, str>>,
    datahub: Cell<DataHubIndex>,
    status: Cell<u16>,
    code: Cell<&'static str>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    started: Instant,
    metrics: Rc<WorkerMetrics>,
}

impl RequestContext {
    /// A request that has just come in from `client`, counted by its worker's `metrics`.
    pub fn new(method: Method, client: Client, metrics: Rc<WorkerMetrics>) -> Rc<Self> {
        metrics.record_start();
        Rc::new(Self {
            id: RequestId::next(),
            client,
            replay: Cell::default(),
            is_anonymous: Cell::default(),
            has_left: Cell::default(),
            upstream: Cell::default(),
            method,
            route: RefCell::default(),
            datahub: Cell::default(),
            status: Cell::default(),
            code: Cell::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            started: Instant::now(),
            metrics,
        })
    }

    /// Sets the pattern of its route, never its path.
    pub fn set_route(&self, route: impl Into<Cow<'static, str>>) {
        self.route.replace(route.into());
    }

    /// Sets which of its worker's DataHUBs it is about.
    pub fn set_datahub(&self, id: &str) {
        self.datahub.set(self.metrics.datahub(id));
    }

    /// The id of the DataHUB it is about, or what the bridge is called; empty for none.
    pub fn datahub_id(&self) -> &str {
        self.metrics.datahub_id(self.datahub.get())
    }

    /// Notes what the answer is, once its head is known.
    pub fn record_answer(&self, status: u16, code: Option<Code>) {
        self.status.set(status);
        self.code.set(code.map_or("", Code::as_str));
    }

    /// Notes that the answer, or the request, did not come to its end.
    pub fn record_incomplete(&self, reason: Incomplete) {
        self.code.set(reason.as_str());
        if self.status.get() == 0 {
            self.status.set(CLIENT_CLOSED_REQUEST);
        }
    }

    /// Counts what came in of the request's body, in bytes.
    pub fn count_in(&self, bytes: usize) {
        self.bytes_in.set(self.bytes_in.get() + bytes as u64);
    }

    /// Counts what went out of the answer's body, in bytes.
    pub fn count_out(&self, bytes: usize) {
        self.bytes_out.set(self.bytes_out.get() + bytes as u64);
    }

    /// The method for the log. A token has no sign that could begin a line; one of a client's own may be as long as a head.
    fn method(&self) -> &str {
        Some(self.method.as_str()).filter(|method| method.len() <= MAX_METHOD_BYTES).unwrap_or("other")
    }

    /// Writes what the answer to a call without a login has besides, so that an app sees that its session is gone.
    pub fn write_session_field(&self, out: &mut Vec<u8>) {
        if self.is_anonymous.get() {
            out.extend_from_slice(b"x-gateway-session: none\r\n");
        }
    }

    /// Logs a security event at a DataHUB, or at none in particular (an empty id).
    pub fn event(&self, event: Event, datahub: &str) {
        access_log::event(event, datahub, self.client.address);
    }

    /// The same, with a reason as [`access_log::event_because`] wants it.
    pub fn event_because(&self, event: Event, datahub: &str, reason: &str) {
        access_log::event_because(event, datahub, self.client.address, reason);
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        if self.status.get() == 0 {
            self.record_incomplete(Incomplete::ClientGone);
        }
        let (method, datahub, status) = (self.method(), self.datahub.get(), self.status.get());
        let (duration, upstream) = (self.started.elapsed(), self.upstream.get());
        self.metrics.record_end(datahub, method, status, duration, upstream);
        access_log::request(&AccessLine {
            request_id: self.id,
            method,
            route: &self.route.borrow(),
            datahub: self.metrics.datahub_id(datahub),
            status,
            code: self.code.get(),
            duration,
            upstream,
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            replay: self.replay.get(),
            is_anonymous: self.is_anonymous.get(),
        });
    }
}

/// Why a request has no whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incomplete {
    /// The client left before the end.
    ClientGone,
    /// The connection was closed to make room for others.
    Displaced,
    /// The DataHUB's answer broke off.
    UpstreamBroke,
    /// The DataHUB's answer stalled.
    UpstreamStalled,
    /// The client did not take the answer in time.
    ResponseTimeout,
    /// We failed ourselves in the middle of it.
    Internal,
}

impl Incomplete {
    /// The word in the line's `code`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::Displaced => "displaced",
            Self::UpstreamBroke => "upstream_broke",
            Self::UpstreamStalled => "upstream_stalled",
            Self::ResponseTimeout => "response_timeout",
            Self::Internal => "internal",
        }
    }
}

impl From<WriteError> for Incomplete {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Gone => Self::ClientGone,
            WriteError::TooSlow => Self::ResponseTimeout,
        }
    }
}

/// Longest method that the line says, in bytes: longer than all that are registered (RFC 9110 section 16.1).
const MAX_METHOD_BYTES: usize = 20;
/// What the line says for the status of an answer that was never begun, since its client had left (nginx's word for it).
const CLIENT_CLOSED_REQUEST: u16 = 499;
