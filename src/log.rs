//! The log: a line for each request, a line for each security event, all through `env_logger`.
//!
//! A line is one JSON object. It never holds a token, cookie, code, state, verifier, body, query or name: requests are
//! named by their route's pattern and by an id that the answer carries too. Whatever is logged while a request is worked
//! on carries that id by itself.

mod line;

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::panic::{self, PanicHookInfo};
use std::pin::Pin;
use std::rc::Rc;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::Method;
use actix_web::http::header::HeaderValue;
use actix_web::web::Bytes;
use env_logger::{Builder, Env, Target};
use log::{Level, LevelFilter};

use crate::error::Code;
use crate::metrics;

/// Starts the log. `RUST_LOG` wins over `level`.
pub fn start(format: Format, level: LevelFilter) {
    let write = match format {
        Format::Json => line::write_json,
        Format::Text => line::write_text,
    };
    Builder::new()
        .filter_level(level)
        // It tells of every worker and listener, twice.
        .filter_module("actix_server", level.min(LevelFilter::Warn))
        .parse_env(Env::default())
        .target(Target::Stdout)
        .format(move |out, record| write(out, record))
        .init();
    panic::set_hook(Box::new(panicked));
}

/// A panic's line: where it happened and what our source says about it, never what a value at hand adds to that.
fn panicked(panic: &PanicHookInfo<'_>) {
    metrics::panicked();
    let at = panic.location().map(ToString::to_string);
    let reason = panic.payload().downcast_ref::<&'static str>();
    log::error!(at, reason; "a defect of the gateway: one call failed, the others go on; please report it");
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

    /// Does `work`; whatever it logs carries this request's id.
    pub fn within<T>(self: &Rc<Self>, work: impl FnOnce() -> T) -> T {
        let _outer = Outer(CURRENT.replace(Some(Rc::clone(self))));
        work()
    }

    /// Runs `work`; whatever it logs carries this request's id.
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
        let Self { call, work } = &mut *self;
        call.within(|| work.as_mut().poll(cx))
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

    /// EL-02. The log is the process's own, so that this test runs itself once more as another process.
    #[test]
    fn a_panic_has_its_line_and_no_value_is_in_it() {
        const NAME: &str = "log::tests::a_panic_has_its_line_and_no_value_is_in_it";
        if std::env::var_os("PANIC_OF_A_TEST").is_some() {
            start(Format::Json, LevelFilter::Trace);
            let call = Call::begin(Method::GET, Client { address: None, is_local: false });
            let mut work = call.scope(async {
                let token = "glpat-canary".to_owned();
                let _ = catch_unwind(|| panic!("what is at hand: {token}"));
                panic!("plain words");
            });
            let poll = || Pin::new(&mut work).poll(&mut Context::from_waker(Waker::noop()));
            assert!(catch_unwind(AssertUnwindSafe(poll)).is_err());
            return;
        }
        let mut again = std::process::Command::new(std::env::current_exe().expect("a test binary"));
        let output =
            again.args(["--exact", NAME, "--nocapture"]).env("PANIC_OF_A_TEST", "1").output().expect("it runs");
        let told = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
        assert!(output.status.success() && !told.contains("canary"), "{told}");
        let lines: Vec<serde_json::Value> = told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let panics: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
        assert_eq!(panics.len(), 2, "{told}");
        assert!(panics[0]["reason"].is_null() && panics[1]["reason"] == "plain words", "{told}");
        for line in panics {
            assert!(line["at"].as_str().is_some_and(|at| at.starts_with("src/log.rs:")), "{told}");
            assert_eq!(line["request_id"].as_str().map(str::len), Some(32), "{told}");
        }
    }
}
