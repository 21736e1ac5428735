//! Connections to a DataHUB: one call a time on each, kept for the next one, streamed both ways.
//!
//! The door is small: a head and a body go in, a head and a body come out. Behind it is HTTP/1.1 (RFC 9112) as a client
//! speaks it to a server that it does not trust. Interim answers are skipped. A body ends where its framing says so or
//! breaks off with an error, which the browser sees as a transfer that broke off. Whenever the framing is in doubt, or a
//! byte is left over, the connection is closed and never used again: the next one on it may be someone else.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, MessageBody};
use actix_web::error::PayloadError;
use actix_web::http::Method;
use actix_web::web::{Buf, Bytes, BytesMut};
use futures_util::Stream as _;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Sleep, timeout};

use crate::datahub::transport::{Address, Stream};
use crate::error::{ApiError, Code};
use crate::log;
use crate::proxy::framing::{ChunkError, Chunks};
use crate::proxy::gate::{Full, Gate, Place};
use crate::proxy::request::{Body, Framing};

/// One worker's connections to one DataHUB.
#[derive(Debug)]
pub struct Upstream {
    address: Address,
    deadlines: Deadlines,
    gate: Arc<Gate>,
    idle: RefCell<Vec<Idle>>,
}

/// How long each step may take. There is no limit on the whole: a gigabyte takes what it takes.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// To a connection, TLS included.
    pub connect: Duration,
    /// From the end of the request to the head of the answer.
    pub first_byte: Duration,
    /// Between two pieces of an answer, and for the DataHUB to take a piece of a request.
    pub idle: Duration,
    /// Between two pieces of a request's body.
    pub request_body: Duration,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Upstream {
    /// No connection yet; `gate` is shared with the other workers.
    pub fn new(address: Address, deadlines: Deadlines, gate: Arc<Gate>) -> Rc<Self> {
        Rc::new(Self { address, deadlines, gate, idle: RefCell::default() })
    }

    /// Sends one request and waits for the head of its answer. A request that is `idempotent` and has no body is sent once
    /// more, on a new connection, if a kept one turns out to be closed before a byte came back; no other ever is.
    ///
    /// # Errors
    /// [`SendError`]; the connection is closed then.
    pub async fn send(self: &Rc<Self>, request: Outgoing) -> Result<Answer, SendError> {
        let place = self.gate.enter().await?;
        let Outgoing { head, body, framing, is_head, is_idempotent } = request;
        if let Some(mut connection) = self.take_idle() {
            let may_repeat = is_idempotent && framing == Framing::None;
            if may_repeat {
                match connection.exchange(&head, Body::Held(Bytes::new()), framing, is_head, &self.deadlines).await {
                    Err(SendError::Closed) => {}
                    outcome => return outcome.map(|exchanged| self.answer(connection, exchanged, place)),
                }
            } else {
                let exchanged = connection.exchange(&head, body, framing, is_head, &self.deadlines).await?;
                return Ok(self.answer(connection, exchanged, place));
            }
        }
        let stream = timeout(self.deadlines.connect, self.address.connect())
            .await
            .map_err(|_| SendError::ConnectTimeout)?
            .map_err(SendError::Connect)?;
        let mut connection = Connection { stream, read: BytesMut::new() };
        let exchanged = connection.exchange(&head, body, framing, is_head, &self.deadlines).await?;
        Ok(self.answer(connection, exchanged, place))
    }

    fn answer(self: &Rc<Self>, connection: Connection, exchanged: Exchanged, place: Place) -> Answer {
        let Exchanged { head, length, is_reusable } = exchanged;
        let mut body = AnswerBody {
            upstream: Rc::clone(self),
            connection: Some(connection),
            place: Some(place),
            length,
            is_reusable,
            stalled: None,
        };
        if matches!(body.length, Length::Known { left: 0, .. } | Length::None { .. }) {
            body.finish();
        }
        Answer { head, body }
    }

    /// A kept connection on which nothing has happened since: closed ones, and those that said something unasked, go.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { mut connection, since }) = idle.pop() {
            if since.elapsed() < LONGEST_IDLE && connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MOST_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }
}

/// What goes up.
pub struct Outgoing {
    /// The head, as it goes over the wire.
    pub head: BytesMut,
    /// The body.
    pub body: Body,
    /// How the head says that the body is delimited.
    pub framing: Framing,
    /// Whether the method is HEAD, whose answer has no body whatever its head says.
    pub is_head: bool,
    /// Whether the same request twice does what it does once (RFC 9110 section 9.2.2).
    pub is_idempotent: bool,
}

impl Outgoing {
    /// A request whose method is `method`.
    pub fn new(method: &Method, head: BytesMut, body: Body, framing: Framing) -> Self {
        Self { head, body, framing, is_head: method == Method::HEAD, is_idempotent: method.is_idempotent() }
    }
}

/// What comes down.
pub struct Answer {
    /// Status and fields.
    pub head: Head,
    /// The body, as it comes.
    pub body: AnswerBody,
}

/// The head of an answer: the raw bytes and where each field is in them.
#[derive(Debug)]
pub struct Head {
    /// The final status, 200 or above.
    pub status: u16,
    raw: Bytes,
    fields: Vec<[usize; 4]>,
}

impl Head {
    /// Names and values, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields
            .iter()
            .map(|[name, name_end, value, value_end]| (&self.raw[*name..*name_end], &self.raw[*value..*value_end]))
    }

    fn values<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields().filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes())).map(|(_, value)| value)
    }
}

struct Connection {
    stream: Stream,
    /// Bytes that were read and not used yet.
    read: BytesMut,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

struct Exchanged {
    head: Head,
    length: Length,
    is_reusable: bool,
}

impl Connection {
    async fn exchange(
        &mut self,
        head: &[u8],
        body: Body,
        framing: Framing,
        is_head: bool,
        deadlines: &Deadlines,
    ) -> Result<Exchanged, SendError> {
        let is_sent = match body {
            Body::Held(body) => {
                let message = [head, &body].concat();
                within(deadlines.idle, self.stream.write_all(&message)).await?.map_err(SendError::lost)?;
                true
            }
            Body::Streamed(payload) => {
                within(deadlines.idle, self.stream.write_all(head)).await?.map_err(SendError::lost)?;
                self.send_body(payload, framing, deadlines).await?
            }
        };
        let (head, is_persistent) = within(deadlines.first_byte, self.read_head()).await??;
        let length = Length::of(&head, is_head)?;
        Ok(Exchanged { is_reusable: is_sent && is_persistent && !matches!(length, Length::UntilClose), head, length })
    }

    /// Sends the body until it has ended, or until an answer comes before that; tells whether it was sent to its end.
    async fn send_body(
        &mut self,
        mut payload: actix_web::web::Payload,
        framing: Framing,
        deadlines: &Deadlines,
    ) -> Result<bool, SendError> {
        let mut pending = BytesMut::new();
        let mut has_ended = false;
        loop {
            let is_ours = !pending.is_empty() || has_ended;
            let (limit, expired) = if is_ours {
                (deadlines.idle, SendError::Stalled)
            } else {
                (deadlines.request_body, SendError::BodyTimeout)
            };
            let step = std::future::poll_fn(|cx| {
                if self.has_answer(cx) {
                    return Poll::Ready(Ok(Step::Answered));
                }
                if !pending.is_empty() {
                    let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, &pending));
                    return Poll::Ready(match written {
                        Ok(0) => Err(SendError::lost(io::ErrorKind::WriteZero.into())),
                        Ok(count) => {
                            pending.advance(count);
                            Ok(Step::Progress)
                        }
                        Err(error) => Err(SendError::lost(error)),
                    });
                }
                if has_ended {
                    return Pin::new(&mut self.stream).poll_flush(cx).map_ok(|()| Step::Done).map_err(SendError::lost);
                }
                match std::task::ready!(Pin::new(&mut payload).poll_next(cx)) {
                    Some(Ok(piece)) => {
                        log::count_in(piece.len());
                        enclose(&mut pending, &piece, framing);
                    }
                    Some(Err(error)) => return Poll::Ready(Err(SendError::Body(error))),
                    None => {
                        has_ended = true;
                        if framing == Framing::Chunked {
                            pending.extend_from_slice(b"0\r\n\r\n");
                        }
                    }
                }
                Poll::Ready(Ok(Step::Progress))
            });
            match timeout(limit, step).await.map_err(|_| expired)?? {
                Step::Progress => {}
                Step::Done => return Ok(true),
                Step::Answered => return Ok(false),
            }
        }
    }

    /// Whether something, or the end, has come from the DataHUB.
    fn has_answer(&mut self, cx: &mut Context<'_>) -> bool {
        !self.read.is_empty() || matches!(self.poll_read(cx), Poll::Ready(Ok(count)) if count > 0)
    }

    /// The head of the final answer, and whether the connection may persist after it.
    async fn read_head(&mut self) -> Result<(Head, bool), SendError> {
        loop {
            if let Some((head, is_persistent)) = self.parse_head()? {
                match head.status {
                    101 => return Err(SendError::Invalid("an upgrade nobody asked for")),
                    100..200 => continue,
                    _ => return Ok((head, is_persistent)),
                }
            }
            if self.read.len() > LONGEST_HEAD {
                return Err(SendError::Invalid("a head that is too long"));
            }
            let has_begun = !self.read.is_empty();
            match std::future::poll_fn(|cx| self.poll_read(cx)).await {
                Ok(0) if has_begun => return Err(SendError::Invalid("a head that breaks off")),
                Ok(0) => return Err(SendError::Closed),
                Ok(_) => {}
                Err(error) if has_begun => return Err(SendError::Lost(error)),
                Err(error) => return Err(SendError::lost(error)),
            }
        }
    }

    fn parse_head(&mut self) -> Result<Option<(Head, bool)>, SendError> {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(&self.read) {
            Ok(httparse::Status::Partial) => return Ok(None),
            Ok(httparse::Status::Complete(length)) => length,
            Err(_) => return Err(SendError::Invalid("a head that is not HTTP")),
        };
        let status =
            response.code.filter(|status| (100..600).contains(status)).ok_or(SendError::Invalid("a status"))?;
        let is_http_1_1 = response.version == Some(1);
        let start = self.read.as_ptr() as usize;
        let fields = response
            .headers
            .iter()
            .map(|field| {
                let (name, value) = (field.name.as_ptr() as usize - start, field.value.as_ptr() as usize - start);
                [name, name + field.name.len(), value, value + field.value.len()]
            })
            .collect();
        let head = Head { status, raw: self.read.split_to(length).freeze(), fields };
        let mut options = head.values("connection").flat_map(|value| value.split(|byte| *byte == b','));
        let is_persistent = is_http_1_1 && !options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
        drop(options);
        if !is_http_1_1 && head.values("transfer-encoding").next().is_some() {
            return Err(SendError::Invalid("a transfer coding in HTTP/1.0"));
        }
        Ok(Some((head, is_persistent)))
    }

    /// Reads what is there, into `read`; 0 is the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.capacity() - self.read.len() < LEAST_READ {
            self.read.reserve(READ_AHEAD);
        }
        std::pin::pin!(self.stream.read_buf(&mut self.read)).poll(cx)
    }

    /// Whether the other side has neither closed the connection nor said anything.
    fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && self.poll_read(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

enum Step {
    Progress,
    Done,
    Answered,
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, SendError> {
    timeout(limit, work).await.map_err(|_| SendError::Stalled)
}

/// A piece of a body as the framing wants it.
fn enclose(pending: &mut BytesMut, piece: &[u8], framing: Framing) {
    match framing {
        Framing::Chunked if piece.is_empty() => {}
        Framing::Chunked => {
            pending.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            pending.extend_from_slice(piece);
            pending.extend_from_slice(b"\r\n");
        }
        Framing::Length(_) | Framing::None => pending.extend_from_slice(piece),
    }
}

/// How long the body of an answer is (RFC 9112 section 6.3).
#[derive(Debug)]
enum Length {
    /// No body; `announced` is what a HEAD or a 304 says the body would be.
    None { announced: Option<u64> },
    /// So many bytes.
    Known { total: u64, left: u64 },
    /// Chunks.
    Chunked(Chunks),
    /// Until the connection ends.
    UntilClose,
}

impl Length {
    fn of(head: &Head, is_head: bool) -> Result<Self, SendError> {
        let mut codings = head.values("transfer-encoding");
        let mut lengths = head.values("content-length");
        let (coding, length) = (codings.next(), lengths.next());
        if codings.next().is_some() || lengths.next().is_some() || (coding.is_some() && length.is_some()) {
            return Err(SendError::Invalid("a framing that is ambiguous"));
        }
        let length = match length {
            Some(text) => Some(decimal(text).ok_or(SendError::Invalid("a content length"))?),
            None => None,
        };
        if is_head || matches!(head.status, 204 | 304) {
            return Ok(Self::None { announced: length });
        }
        match (coding, length) {
            (Some(coding), _) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Self::Chunked(Chunks::default())),
            (Some(_), _) => Err(SendError::Invalid("a transfer coding that is not chunked")),
            (None, Some(total)) => Ok(Self::Known { total, left: total }),
            (None, None) => Ok(Self::UntilClose),
        }
    }
}

/// Digits and nothing else.
fn decimal(text: &[u8]) -> Option<u64> {
    let is_plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_plain)?.parse().ok()
}

/// The body of an answer, as it comes. Its connection is kept once it has been read to its end, and closed else.
pub struct AnswerBody {
    upstream: Rc<Upstream>,
    connection: Option<Connection>,
    place: Option<Place>,
    length: Length,
    is_reusable: bool,
    /// Runs while nothing comes.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl AnswerBody {
    /// What Content-Length says, of an answer to HEAD too.
    pub fn announced(&self) -> Option<u64> {
        match &self.length {
            Length::None { announced } => *announced,
            Length::Known { total, .. } => Some(*total),
            Length::Chunked(_) | Length::UntilClose => None,
        }
    }

    /// Whether the framing leaves no room for a body: an answer to HEAD, a 204, a 304.
    pub fn is_none(&self) -> bool {
        matches!(self.length, Length::None { .. })
    }

    fn finish(&mut self) {
        self.place = None;
        if let Some(connection) = self.connection.take()
            && self.is_reusable
            && connection.read.is_empty()
        {
            self.upstream.keep(connection);
        }
    }

    /// The next piece out of what was read; `Ok(None)` if more must be read.
    fn piece(&mut self) -> Result<Option<Piece>, AnswerError> {
        let Some(connection) = &mut self.connection else { return Ok(Some(Piece::End)) };
        let read = &mut connection.read;
        Ok(match &mut self.length {
            Length::None { .. } | Length::Known { left: 0, .. } => Some(Piece::End),
            _ if read.is_empty() => None,
            Length::Known { left, .. } => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= count as u64;
                Some(Piece::Bytes(read.split_to(count).freeze()))
            }
            Length::Chunked(chunks) => match chunks.next(read)? {
                Some(piece) if piece.is_empty() => Some(Piece::End),
                Some(piece) => Some(Piece::Bytes(piece)),
                None => None,
            },
            Length::UntilClose => Some(Piece::Bytes(read.split().freeze())),
        })
    }
}

enum Piece {
    Bytes(Bytes),
    End,
}

impl MessageBody for AnswerBody {
    type Error = AnswerError;

    fn size(&self) -> BodySize {
        match &self.length {
            Length::None { announced: Some(length) } => BodySize::Sized(*length),
            Length::None { announced: None } => BodySize::None,
            Length::Known { total, .. } => BodySize::Sized(*total),
            Length::Chunked(_) | Length::UntilClose => BodySize::Stream,
        }
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        let this = &mut *self;
        loop {
            match this.piece() {
                Ok(Some(Piece::Bytes(piece))) => {
                    if matches!(this.length, Length::Known { left: 0, .. }) {
                        this.finish();
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(Some(Piece::End)) => {
                    this.finish();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(error) => {
                    this.connection = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
            let connection = this.connection.as_mut().expect("without a connection there is an end");
            match connection.poll_read(cx) {
                Poll::Ready(Ok(0)) => {
                    let ends_here = matches!(this.length, Length::UntilClose);
                    this.connection = None;
                    return Poll::Ready((!ends_here).then_some(Err(AnswerError::Truncated)));
                }
                Poll::Ready(Ok(_)) => this.stalled = None,
                Poll::Ready(Err(error)) => {
                    this.connection = None;
                    return Poll::Ready(Some(Err(AnswerError::Lost(error))));
                }
                Poll::Pending => {
                    let limit = this.upstream.deadlines.idle;
                    let stalled = this.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                    std::task::ready!(stalled.as_mut().poll(cx));
                    this.connection = None;
                    return Poll::Ready(Some(Err(AnswerError::Stalled)));
                }
            }
        }
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Too many calls are under way.
    #[error(transparent)]
    Full(#[from] Full),
    /// No connection.
    #[error("cannot connect to the DataHUB")]
    Connect(#[source] io::Error),
    /// No connection in time.
    #[error("connecting to the DataHUB took too long")]
    ConnectTimeout,
    /// The connection was closed before a byte came back.
    #[error("the DataHUB closed the connection without an answer")]
    Closed,
    /// The connection broke in the middle of an answer's head.
    #[error("the connection to the DataHUB broke")]
    Lost(#[source] io::Error),
    /// The DataHUB neither took the request nor answered in time.
    #[error("the DataHUB did not answer in time")]
    Stalled,
    /// An answer that is not to be passed on.
    #[error("the DataHUB answered with {0}")]
    Invalid(&'static str),
    /// The browser's body broke off.
    #[error("the body of the request broke off")]
    Body(#[source] PayloadError),
    /// The browser's body did not come in time.
    #[error("the body of the request did not come in time")]
    BodyTimeout,
}

impl SendError {
    /// A connection that broke before a byte came back.
    fn lost(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                Self::Closed
            }
            _ => Self::Lost(error),
        }
    }
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        let code = match error {
            SendError::Full(full) => return full.into(),
            SendError::Connect(_) | SendError::Closed | SendError::Lost(_) => Code::DatahubUnreachable,
            SendError::ConnectTimeout | SendError::Stalled => Code::DatahubTimeout,
            SendError::Invalid(_) => Code::DatahubInvalidResponse,
            SendError::Body(_) => return Self::because(Code::BadRequest, error).closing(),
            SendError::BodyTimeout => return Self::because(Code::RequestTimeout, error).closing(),
        };
        Self::because(code, error)
    }
}

/// Why the body of an answer broke off. The browser's connection is closed, so that it cannot take it for whole.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The connection ended before the body did.
    #[error("the DataHUB's answer broke off")]
    Truncated,
    /// The connection broke.
    #[error("the connection to the DataHUB broke")]
    Lost(#[source] io::Error),
    /// Nothing came for too long.
    #[error("the DataHUB's answer stalled")]
    Stalled,
    /// Chunks that are none.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
}

/// How much is read at once, in bytes.
const READ_AHEAD: usize = 32 * 1024;
/// With less room than this, in bytes, a new buffer is taken.
const LEAST_READ: usize = 4 * 1024;
/// Longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 64 * 1024;
/// Most fields of an answer.
const MOST_FIELDS: usize = 128;
/// Most connections that a worker keeps to one DataHUB.
const MOST_IDLE: usize = 128;
/// How long a connection is kept: less than the 65 s and more after which GitLab's nginx closes it.
const LONGEST_IDLE: Duration = Duration::from_secs(50);
