//! The log: a line for each request, a line for each security event, all through `env_logger`.
//!
//! A line is one JSON object. It never holds a token, cookie, code, state, verifier, body, query or name: requests are
//! named by their route's pattern and by an id that the answer carries too. Whatever is logged while a request is worked
//! on carries that id by itself.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::Method;
use actix_web::http::header::HeaderValue;
use actix_web::web::Bytes;
use env_logger::{Builder, Env, Target};
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, LevelFilter, Record};

use crate::error::Code;

/// Starts the log. `RUST_LOG` wins over `level`.
pub fn start(format: Format, level: LevelFilter) {
    let write = match format {
        Format::Json => write_json,
        Format::Text => write_text,
    };
    Builder::new()
        .filter_level(level)
        // It tells of every worker and listener, twice.
        .filter_module("actix_server", level.min(LevelFilter::Warn))
        .parse_env(Env::default())
        .target(Target::Stdout)
        .format(move |out, record| write(out, record))
        .init();
}

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(FormatError),
        }
    }
}

/// A format that we do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be json or text")]
pub struct FormatError;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, for machines.
    Json,
    /// For people at a terminal.
    Text,
}

/// Something that whoever watches over security wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each one's name in the log says what it is")]
pub enum Event {
    CredentialRefused,
    CrossSiteRefused,
    DatahubTlsFailed,
    DuplicateCookie,
    IssuerMismatch,
    KeysReloaded,
    LoginFailed,
    LoginOk,
    NonceMismatch,
    RefreshReuse,
    ReloadFailed,
    RevokeFailed,
    SessionTooLarge,
    StateMismatch,
    TargetRefused,
    UnsealFailed,
}

impl Event {
    fn level(self) -> Level {
        match self {
            Self::KeysReloaded | Self::LoginOk => Level::Info,
            _ => Level::Warn,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::CredentialRefused => "credential_refused",
            Self::CrossSiteRefused => "cross_site_refused",
            Self::DatahubTlsFailed => "datahub_tls_failed",
            Self::DuplicateCookie => "duplicate_cookie",
            Self::IssuerMismatch => "issuer_mismatch",
            Self::KeysReloaded => "keys_reloaded",
            Self::LoginFailed => "login_failed",
            Self::LoginOk => "login_ok",
            Self::NonceMismatch => "nonce_mismatch",
            Self::RefreshReuse => "refresh_reuse",
            Self::ReloadFailed => "reload_failed",
            Self::RevokeFailed => "revoke_failed",
            Self::SessionTooLarge => "session_too_large",
            Self::StateMismatch => "state_mismatch",
            Self::TargetRefused => "target_refused",
            Self::UnsealFailed => "unseal_failed",
        }
    }
}

/// Logs a security event at a DataHUB, or at none in particular (an empty id).
pub fn event(event: Event, datahub: &str) {
    let client = current().and_then(|call| call.client.address).map(|ip| ip.to_string());
    let (level, event) = (event.level(), event.name());
    log::log!(target: "security", level, event, datahub, client; "{event}");
}

/// Logs a security event of the process itself.
pub fn event_of_ours(event: Event, detail: &str) {
    let (level, event) = (event.level(), event.name());
    log::log!(target: "security", level, event, detail; "{event}");
}

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
pub struct Call {
    /// 32 hex digits, on the answer as `X-Request-Id`.
    pub id: String,
    /// Which DataHUB it is about.
    pub datahub: RefCell<String>,
    /// How often the browser has sent it again.
    pub replay: Cell<u8>,
    /// From sending it upstream to the head of the answer.
    pub upstream: Cell<Option<Duration>>,
    bytes_in: Cell<u64>,
    /// Who sent it, as far as we can know.
    pub client: Client,
    method: Method,
    /// The pattern of its route, where the router does not know it.
    pub route: RefCell<Cow<'static, str>>,
    status: Cell<u16>,
    code: Cell<Option<Code>>,
    bytes_out: Cell<u64>,
    started: Instant,
}

impl Call {
    /// A request that has just come in from `client`.
    pub fn begin(method: Method, client: Client) -> Rc<Self> {
        Rc::new(Self {
            id: request_id(),
            datahub: RefCell::default(),
            replay: Cell::default(),
            upstream: Cell::default(),
            bytes_in: Cell::default(),
            client,
            method,
            route: RefCell::default(),
            status: Cell::default(),
            code: Cell::default(),
            bytes_out: Cell::default(),
            started: Instant::now(),
        })
    }

    /// What the answer is, once its head is known; the line is written when its body has ended.
    pub fn answered(&self, route: Option<String>, status: u16, code: Option<Code>) {
        if let Some(route) = route {
            self.route.replace(route.into());
        }
        self.status.set(status);
        self.code.set(code);
    }

    /// Runs `work` so that whatever it logs carries this request's id.
    pub fn scope<F>(self: &Rc<Self>, work: F) -> Scope<F> {
        Scope { call: Rc::clone(self), work: Box::pin(work) }
    }

    /// The id as a header's value.
    pub fn id_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.id).expect("hex digits")
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let datahub = self.datahub.borrow();
        let code = self.code.get().map_or("", Code::as_str);
        let route = &**self.route.borrow();
        log::info!(
            target: "access",
            request_id = self.id.as_str(),
            method = self.method.as_str(),
            route,
            datahub = datahub.as_str(),
            status = self.status.get(),
            code,
            duration_ms = milliseconds(self.started.elapsed()),
            upstream_ms = self.upstream.get().map(milliseconds),
            bytes_in = self.bytes_in.get(),
            bytes_out = self.bytes_out.get(),
            replay = self.replay.get();
            "request"
        );
    }
}

/// Counts what came in of the body of the request that is being worked on.
pub fn count_in(bytes: usize) {
    CURRENT.with_borrow(|call| {
        if let Some(call) = call {
            call.bytes_in.set(call.bytes_in.get() + bytes as u64);
        }
    });
}

/// The request that is being worked on right now.
pub fn current() -> Option<Rc<Call>> {
    CURRENT.with_borrow(Clone::clone)
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Call>>> = const { RefCell::new(None) };
    /// Random for each worker, then counted: unique without asking the system for each request.
    static NEXT_ID: Cell<(u64, u64)> = Cell::new({
        let mut seed = [0; 16];
        crate::seal::random(&mut seed);
        let (prefix, count) = seed.split_at(8);
        let number = |half: &[u8]| u64::from_be_bytes(half.try_into().expect("half of 16 bytes"));
        (number(prefix), number(count))
    });
}

fn request_id() -> String {
    let (prefix, count) = NEXT_ID.get();
    NEXT_ID.set((prefix, count.wrapping_add(1)));
    format!("{prefix:016x}{count:016x}")
}

/// A future whose log lines carry a request's id.
pub struct Scope<F> {
    call: Rc<Call>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _outer = Outer(CURRENT.replace(Some(Rc::clone(&self.call))));
        self.work.as_mut().poll(cx)
    }
}

/// Whose turn it is again afterwards, even if `work` panics.
struct Outer(Option<Rc<Call>>);

impl Drop for Outer {
    fn drop(&mut self) {
        CURRENT.replace(self.0.take());
    }
}

/// A body that is counted on its way out.
pub struct Counted<B> {
    body: B,
    call: Rc<Call>,
}

impl<B> Counted<B> {
    /// Counts `body` for `call`, whose line is written once the last holder of `call` is gone.
    pub fn new(body: B, call: Rc<Call>) -> Self {
        Self { body, call }
    }
}

impl<B: MessageBody + Unpin> MessageBody for Counted<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_next(cx);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            self.call.bytes_out.set(self.call.bytes_out.get() + piece.len() as u64);
        }
        polled
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn write_json(out: &mut dyn Write, record: &Record<'_>) -> io::Result<()> {
    let mut line = String::with_capacity(512);
    line.push_str("{\"time\":\"");
    line.push_str(&humantime::format_rfc3339_millis(SystemTime::now()).to_string());
    line.push_str("\",\"level\":\"");
    line.push_str(record.level().as_str());
    line.push('"');
    let mut fields = JsonFields { line: &mut line, has_request_id: false };
    fields.put("target", record.target());
    fields.put("message", record.args().to_string());
    let visited = record.key_values().visit(&mut fields);
    if let (false, Some(call)) = (fields.has_request_id, current()) {
        fields.put("request_id", &call.id);
    }
    visited.map_err(io::Error::other)?;
    line.push_str("}\n");
    out.write_all(line.as_bytes())
}

fn write_text(out: &mut dyn Write, record: &Record<'_>) -> io::Result<()> {
    let mut line = format!("{:5} {}", record.level(), record.args());
    let visited = record.key_values().visit(&mut TextFields(&mut line));
    visited.map_err(io::Error::other)?;
    // A line is a line, whatever a library puts into its message.
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    writeln!(out, "{line}")
}

struct JsonFields<'a> {
    line: &'a mut String,
    has_request_id: bool,
}

impl JsonFields<'_> {
    fn put(&mut self, name: &str, value: impl serde::Serialize) {
        self.line.push(',');
        self.line.push_str(&serde_json::to_string(name).expect("a string always serialises"));
        self.line.push(':');
        self.line.push_str(&serde_json::to_string(&value).expect("a plain value always serialises"));
    }
}

impl<'kvs> VisitSource<'kvs> for JsonFields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.has_request_id |= key.as_str() == "request_id";
        let mut plain = Plain(serde_json::Value::Null);
        value.visit(&mut plain)?;
        self.put(key.as_str(), plain.0);
        Ok(())
    }
}

/// A field's value, as JSON has it.
struct Plain(serde_json::Value);

impl VisitValue<'_> for Plain {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = value.to_string().into();
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_error(&mut self, error: &(dyn std::error::Error + 'static)) -> Result<(), kv::Error> {
        self.0 = chain(error).into();
        Ok(())
    }
}

struct TextFields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for TextFields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let mut plain = Plain(serde_json::Value::Null);
        value.visit(&mut plain)?;
        if key.as_str() != "request_id" && !plain.0.is_null() && plain.0 != "" {
            let _ = write!(self.0, " {key}={}", plain.0);
        }
        Ok(())
    }
}

/// An error and what caused it.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::task::Waker;

    use super::*;

    #[test]
    fn a_panic_leaves_its_id_to_nobody() {
        let call = Call::begin(Method::GET, Client { address: None, is_local: false });
        for is_bad in [false, true] {
            let mut work = call.scope(async { assert!(current().is_some() && !is_bad, "this panic is expected") });
            let poll = || Pin::new(&mut work).poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(catch_unwind(AssertUnwindSafe(poll)).is_err(), is_bad);
            assert!(current().is_none());
        }
    }
}
