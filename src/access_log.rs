//! The log: a line for each request, a line for each security event, all through `env_logger`.
//!
//! A line is one JSON object. It never holds a token, cookie, code, state, verifier, body, query or name: requests are
//! named by their route's pattern and by an id that the answer carries too. Whatever is logged while a request is worked
//! on carries that id by itself.
//!
//! Nobody waits for standard output: lines go through a bounded queue to a thread that writes them, and are dropped and
//! counted where they would have to wait.

mod access;
mod line;
mod queue;

use std::cell::{Cell, RefCell};
use std::env;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::str::FromStr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use env_logger::{Builder, Target};
use log::{Level, LevelFilter, Metadata, Record};

use self::queue::{Priority, Queue};
use crate::metrics;

/// The parts of the variable `RUST_LOG` that say something, and whether there are others. The logger would say of those that
/// they are ignored, in words of its own and not in the log.
fn filter() -> (String, bool) {
    let text = env::var_os(VARIABLE).unwrap_or_default();
    let Some(text) = text.to_str() else { return (String::new(), true) };
    // What stands behind a slash is looked for in the text.
    if text.matches('/').count() > 1 {
        return (String::new(), true);
    }
    let (parts, words) = text.split_at(text.find('/').unwrap_or(text.len()));
    let is_level = |text: &str| text.trim().is_empty() || text.trim().parse::<LevelFilter>().is_ok();
    // Also a level by itself.
    let is_name = |text: &str| text.trim().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-.".contains(&byte));
    let is_good = |part: &&str| match part.split('=').collect::<Vec<_>>()[..] {
        [name] => is_name(name),
        [name, level] => is_name(name) && is_level(level),
        _ => false,
    };
    let good: Vec<_> = parts.split(',').filter(is_good).collect();
    (good.join(",") + words, good.len() < parts.split(',').count())
}

/// What is wrong with the variable `RUST_LOG`, if anything is.
pub fn filter_warning() -> Option<&'static str> {
    filter().1.then_some(
        "RUST_LOG has a part that says nothing and is not heeded: write levels (off, error, warn, info, debug, trace), each by itself \
         or for a target, such as info,access=off",
    )
}

/// Starts the log. `RUST_LOG` wins over `level`.
pub fn start(format: Format, level: LevelFilter) {
    let (filter, _) = filter();
    let write = match format {
        Format::Json => line::write_json,
        Format::Text => line::write_text,
    };
    // Not `io::stdout()` itself: it has a buffer, and a lock that would be held while a reader stalls.
    let out = io::stdout().as_fd().try_clone_to_owned().expect("a process that begins may open one more file");
    let thread = thread::Builder::new()
        .name("log".into())
        .spawn(move || QUEUE.run(File::from(out), |lines| dropped(lines, write)));
    thread.expect("a process that begins may start one more thread");
    let logger = Builder::new()
        .filter_level(level)
        // It tells of every worker and listener, twice.
        .filter_module("actix_server", level.min(LevelFilter::Warn))
        .parse_filters(&filter)
        .target(Target::Pipe(Box::new(Pipe)))
        .format(move |out, record| {
            out.write_all(&[priority(record.metadata()) as u8])?;
            write(out, record)
        })
        .build();
    let record = Record::builder().level(Level::Info).target("access").args(format_args!("request")).build();
    if logger.matches(&record) {
        ACCESS.set(format).expect("the log is started once");
    }
    log::set_max_level(logger.filter());
    log::set_boxed_logger(Box::new(logger)).expect("the log is started once");
    panic::set_hook(Box::new(panicked));
}

/// Waits until what is logged is written, but for `limit` at most: a reader that stalls does not keep the process.
pub fn flush(limit: Duration) {
    QUEUE.flush(limit);
}

/// Logs a panic: where it happened and its message if that is a literal, never one with a value in it.
fn panicked(panic: &PanicHookInfo<'_>) {
    metrics::panicked();
    let at = panic.location().map(ToString::to_string);
    let reason = panic.payload().downcast_ref::<&'static str>();
    log::error!(at, reason; "a defect of the gateway: one call failed, the others go on; please report it");
    // It may be the last thing that the process does.
    flush(PANIC_FLUSH);
}

/// The line about lines that were dropped.
fn dropped(lines: u64, write: fn(&mut dyn Write, &Record<'_>) -> io::Result<()>) -> Vec<u8> {
    let (mut line, field) = (Vec::new(), ("dropped", lines));
    let mut record = Record::builder();
    record.level(Level::Warn).target(module_path!()).key_values(&field);
    let written =
        write(&mut line, &record.args(format_args!("lines of the log were dropped: nobody read them")).build());
    written.expect("a Vec takes everything");
    line
}

/// What is dropped first, if a line must be.
fn priority(of: &Metadata<'_>) -> Priority {
    if of.level() <= Level::Warn || of.target() == SECURITY { Priority::High } else { Priority::Low }
}

/// How `env_logger` reaches the queue: each write is one line, behind one byte that says its priority.
struct Pipe;

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some((mark, line)) = bytes.split_first() {
            let priority = if *mark == Priority::High as u8 { Priority::High } else { Priority::Low };
            QUEUE.push(line, priority);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static QUEUE: Queue = Queue::new();
/// How the line of a request looks, if the log has any.
static ACCESS: OnceLock<Format> = OnceLock::new();
/// How long a panic waits for its line to be written.
const PANIC_FLUSH: Duration = Duration::from_millis(100);
/// What the log's filter is taken from.
const VARIABLE: &str = "RUST_LOG";
/// The target of security events.
const SECURITY: &str = "security";

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
    ClientRefused,
    CredentialRefused,
    CrossSiteRefused,
    DatahubTlsFailed,
    DuplicateCookie,
    IssuerMismatch,
    KeysReloaded,
    LinkDropped,
    LoginFailed,
    LoginOk,
    NonceMismatch,
    PatAccepted,
    PatRefused,
    RefreshReuse,
    ReloadFailed,
    ReturnToDropped,
    RevokeFailed,
    SessionTooLarge,
    SessionUnreadable,
    StateMismatch,
    TargetRefused,
    UnsealFailed,
    UntrustedForwardedFor,
}

impl Event {
    fn level(self) -> Level {
        match self {
            Self::KeysReloaded | Self::LoginOk | Self::PatAccepted | Self::ReturnToDropped => Level::Info,
            Self::ClientRefused => Level::Error,
            _ => Level::Warn,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::ClientRefused => "client_refused",
            Self::CredentialRefused => "credential_refused",
            Self::CrossSiteRefused => "cross_site_refused",
            Self::DatahubTlsFailed => "datahub_tls_failed",
            Self::DuplicateCookie => "duplicate_cookie",
            Self::IssuerMismatch => "issuer_mismatch",
            Self::KeysReloaded => "keys_reloaded",
            Self::LinkDropped => "link_dropped",
            Self::LoginFailed => "login_failed",
            Self::LoginOk => "login_ok",
            Self::NonceMismatch => "nonce_mismatch",
            Self::PatAccepted => "pat_accepted",
            Self::PatRefused => "pat_refused",
            Self::RefreshReuse => "refresh_reuse",
            Self::ReloadFailed => "reload_failed",
            Self::ReturnToDropped => "return_to_dropped",
            Self::RevokeFailed => "revoke_failed",
            Self::SessionTooLarge => "session_too_large",
            Self::SessionUnreadable => "session_unreadable",
            Self::StateMismatch => "state_mismatch",
            Self::TargetRefused => "target_refused",
            Self::UnsealFailed => "unseal_failed",
            Self::UntrustedForwardedFor => "untrusted_forwarded_for",
        }
    }
}

/// When something was last said that would be said too often.
#[derive(Debug, Default)]
pub struct LastSaid(Mutex<Option<Instant>>);

impl LastSaid {
    /// Whether it is to be said now, since it has not been for an `interval`.
    pub fn is_due(&self, interval: Duration, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

/// Logs a security event at a DataHUB, or at none in particular (an empty id), that a request of `client` brought about.
pub fn event(event: Event, datahub: &str, client: Option<IpAddr>) {
    let client = client.map(|ip| ip.to_string());
    let (level, event) = (event.level(), event.name());
    log::log!(target: SECURITY, level, event, datahub, client; "{event}");
}

/// The same with a sentence that says what is wrong and what to do. Nothing of it may come out of the request.
pub fn event_because(event: Event, datahub: &str, client: Option<IpAddr>, reason: &str) {
    let client = client.map(|ip| ip.to_string());
    let (level, event) = (event.level(), event.name());
    log::log!(target: SECURITY, level, event, datahub, client, reason; "{event}");
}

/// Logs a security event of the process itself.
pub fn process_event(event: Event, detail: &str) {
    let (level, event) = (event.level(), event.name());
    log::log!(target: SECURITY, level, event, detail; "{event}");
}

/// What the line of one request says.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each field is one of the line, which docs/operate.md explains")]
pub struct AccessLine<'a> {
    pub request_id: RequestId,
    pub method: &'a str,
    pub route: &'a str,
    pub datahub: &'a str,
    pub status: u16,
    pub code: &'a str,
    pub duration: Duration,
    pub upstream: Option<Duration>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub replay: u8,
    pub is_anonymous: bool,
}

/// Writes the line of one request, if the log is to have such lines.
pub fn request(line: &AccessLine<'_>) {
    let Some(format) = ACCESS.get() else { return };
    let push = |writer: &mut access::Writer| {
        QUEUE.push(writer.write(*format, line, SystemTime::now()), Priority::Low);
    };
    // A thread that ends lets go of its requests last.
    if WRITER.try_with(|writer| push(&mut writer.borrow_mut())).is_err() {
        push(&mut access::Writer::new());
    }
}

/// Names one request: 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// Random for each worker, then counted under a secret key: unique without asking the system for each request, and nobody can
    /// see how many there were.
    #[must_use]
    pub fn next() -> Self {
        let (mut id, count) = NEXT_ID.get();
        NEXT_ID.set((id, count.wrapping_add(1)));
        id[16..].copy_from_slice(&hex(ID_KEY.with(|key| key.hash_one(count))));
        Self(id)
    }

    /// The digits, in ASCII.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits are ASCII")
    }

    /// Does `work`; whatever it logs carries this id, whoever logs it.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

tokio::task_local! {
    /// The request that is being worked on right now, for the logger and the panic hook alone.
    static CURRENT: RequestId;
}

thread_local! {
    static WRITER: RefCell<access::Writer> = const { RefCell::new(access::Writer::new()) };
    static ID_KEY: RandomState = RandomState::new();
    /// The thread's own half of an id, before the other half, and what that begins to count from.
    static NEXT_ID: Cell<([u8; 32], u64)> = Cell::new({
        let random = || getrandom::u64().expect("the system's random generator works from the start of the process on");
        let mut id = [0; 32];
        id[..16].copy_from_slice(&hex(random()));
        (id, random())
    });
}

fn hex(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(number.to_be_bytes()) {
        *pair = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]];
    }
    digits
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

const HEX: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn an_id_names_one_request_and_says_nothing_of_how_many_there_were() {
        let counts = (0..1_000).map(|_| u64::from_str_radix(&RequestId::next().as_str()[16..], 16).expect("hex"));
        let counts: Vec<_> = counts.collect();
        assert_eq!(counts.iter().collect::<std::collections::HashSet<_>>().len(), 1_000);
        let near = counts.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 1 << 32).count();
        assert_eq!(near, 0, "one goes by the one before it");
    }

    #[test]
    fn a_panic_leaves_its_id_to_nobody() {
        let id = RequestId::next();
        for is_bad in [false, true] {
            let mut work = pin!(id.scope(async {
                assert!(CURRENT.try_with(|current| *current == id) == Ok(true) && !is_bad, "this panic is expected");
            }));
            let poll = || work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(catch_unwind(AssertUnwindSafe(poll)).is_err(), is_bad);
            assert!(CURRENT.try_with(|_| ()).is_err());
        }
    }

    #[test]
    fn what_would_be_said_too_often_is_said_now_and_then() {
        let (said, start) = (LastSaid::default(), Instant::now());
        let at = |minutes| said.is_due(Duration::from_hours(1), start + Duration::from_mins(minutes));
        assert_eq!([0, 1, 59, 60, 61, 119, 120].map(at), [true, false, false, true, false, false, true]);
    }

    /// EL-02. The log is the process's own, so that this test runs itself once more as another process.
    #[test]
    fn a_panic_has_its_line_and_no_value_is_in_it() {
        const NAME: &str = "access_log::tests::a_panic_has_its_line_and_no_value_is_in_it";
        if std::env::var_os("PANIC_OF_A_TEST").is_some() {
            start(Format::Json, LevelFilter::Trace);
            let mut work = pin!(RequestId::next().scope(async {
                let token = "glpat-canary".to_owned();
                let _ = catch_unwind(|| panic!("what is at hand: {token}"));
                panic!("plain words");
            }));
            let poll = || work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
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
            assert!(line["at"].as_str().is_some_and(|at| at.starts_with("src/access_log.rs:")), "{told}");
            assert_eq!(line["request_id"].as_str().map(str::len), Some(32), "{told}");
        }
    }
}
