//! A browser's connection: requests in, answers out, one after the other.
//!
//! - *Heads* are taken whole, within their deadline and limits, the first one and all later ones. While an answer is due,
//!   what else arrives waits for its turn; it is only watched whether the client leaves.
//! - *Bodies* are read when somebody asks for them, within a deadline for each piece and at a least rate. `Expect:
//!   100-continue` is answered then. One that is held until it ends is bounded together with the unfinished heads.
//! - *Answers* are given up if the client takes none of them for too long.
//! - *Whether it goes on* after an answer is decided in one place, [`ServerConnection::decide_persistence`], before the
//!   answer's head is written. Where it ends while the client may still be sending, it is closed slowly
//!   ([`ServerConnection::close`]), so that the answer is not lost to a reset.

use std::io::{self, IoSlice};
use std::mem;
use std::num::NonZeroU64;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use actix_web::http::StatusCode;
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until};
use tokio_util::either::Either;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::http::admission::{Admission, Displaced};
use crate::http::body::{BodyDecoder, CHUNK_END, LAST_CHUNK, write_chunk_size, write_content_length};
use crate::http::buffer::{Buffer, BufferPool, MIN_READ, append};
use crate::http::date::DateClock;
use crate::http::head::{HeadError, HeadLimits, RequestHead, begun_request};
use crate::http::timer::{Elapsed, Timer};
use crate::http::turn::{MESSAGE_BYTES, Turn};

/// One connection, and what is known of the request that is being answered on it.
#[expect(clippy::struct_excessive_bools, reason = "what is known of the request that is due, and of its answer")]
pub struct ServerConnection {
    stream: AcceptedStream,
    settings: Rc<ServerSettings>,
    admission: Admission,
    pool: BufferPool,
    /// What has been read and not used yet: of the next request, or of the body of this one.
    read_buffer: Buffer,
    timer: Timer,
    turn: Turn,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    is_draining: Arc<AtomicBool>,
    /// Whether no request has come yet.
    is_new: bool,
    /// Whether the connection goes on after the answer that is due.
    is_persistent: bool,
    /// Whether the answer that is due has begun.
    has_answered: bool,
    /// Whether an answer broke off whose body only the end of the connection delimits (HTTP/1.0). It is reset then.
    is_cut_off: bool,
    is_http_1_1: bool,
    /// Whether the answer's body is sent in chunks.
    is_chunked: bool,
    body: BodyDecoder,
    /// What is held of the body: the next piece again, if it is not taken whole.
    held: Option<Buffer>,
    /// How many bytes of the body may still come.
    body_allowance: u64,
    /// How long we may still wait for the body. Waiting takes from it, and each byte that comes adds what it may take at
    /// `body_rate`.
    body_wait_left: Duration,
    /// Whether the client waits to be told that its body may come.
    expects_continue: bool,
}

/// What all connections of a worker are held to.
#[derive(Debug, Clone, Copy)]
pub struct ServerSettings {
    /// How long a head may be.
    pub head: HeadLimits,
    /// How long a body may be, in bytes.
    pub body: u64,
    /// How many bytes of it must come a second, on the whole, while we wait for them.
    pub body_rate: NonZeroU64,
    /// How long a client may take.
    pub timeouts: ClientTimeouts,
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct ClientTimeouts {
    /// For the head of a request, from its first byte to its last, and on a new connection as long again before that first byte.
    pub head: Duration,
    /// For the next piece of a request's body.
    pub body: Duration,
    /// For taking the next piece of an answer.
    pub answer: Duration,
}

impl ServerConnection {
    /// A connection that was just accepted. Once `is_draining` is set, the next answer is its last; once `shutdown` is
    /// ready, it ends as soon as nothing is under way; a head that has begun has a second more, and so has the next request
    /// after an answer that was on its way when `is_draining` was set.
    pub fn new(
        stream: AcceptedStream,
        settings: Rc<ServerSettings>,
        admission: Admission,
        pool: BufferPool,
        shutdown: WaitForCancellationFutureOwned,
        is_draining: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            read_buffer: pool.none(),
            pool,
            timer: Timer::new(now + settings.timeouts.head),
            turn: Turn::default(),
            settings,
            admission,
            shutdown: Box::pin(shutdown),
            is_draining,
            is_new: true,
            is_persistent: true,
            has_answered: false,
            is_cut_off: false,
            is_http_1_1: true,
            is_chunked: false,
            body: BodyDecoder::Done,
            held: None,
            body_allowance: 0,
            body_wait_left: MAX_BODY_WAIT,
            expects_continue: false,
        }
    }

    /// The next request; `None` if the connection is to end, because either side wants it or it has been idle for too long.
    ///
    /// # Errors
    /// [`RequestError`] for what is no request. Nothing more can be read then.
    pub async fn next_request(&mut self) -> Result<Option<RequestHead>, RequestError> {
        if !self.is_persistent {
            return Ok(None);
        }
        let read = self.read_head().await;
        match self.admission.finish() {
            Ok(parked) if parked.is_empty() => {}
            // It ends without an answer. So what came of the head is dropped, and no more of it is waited for.
            Ok(_) if matches!(read, Ok(None)) => {}
            // It is answered that the head did not come in time. What did come may tell for whom, and more may be coming.
            Ok(parked) => *self.read_buffer = parked,
            // That counts, whatever was read.
            Err(displaced) => {
                self.forget_request();
                return Err(displaced.into());
            }
        }
        read
    }

    async fn read_head(&mut self) -> Result<Option<RequestHead>, RequestError> {
        let timeouts = self.settings.timeouts;
        self.turn.spend(MESSAGE_BYTES).await;
        let idle = if self.is_new { timeouts.head } else { KEEP_ALIVE_TIMEOUT };
        let mut head_deadline = None;
        // Who was answered while the process ends has a second for the next request, which may be on its way: that answer's head
        // did not say yet that it was the last one.
        let mut shutdown_deadline =
            self.is_draining.load(Ordering::Relaxed).then(|| Instant::now() + LAST_REQUEST_TIMEOUT);
        let mut scanned = 0;
        loop {
            if scanned < self.read_buffer.len() {
                if self.read_buffer[scanned..].contains(&b'\n')
                    && let Some(head) = RequestHead::parse(&mut self.read_buffer, self.settings.head)?
                {
                    self.begin(&head);
                    return Ok(Some(head));
                }
                if self.read_buffer.len() > self.settings.head.length {
                    return Err(HeadError::TooLarge.into());
                }
                scanned = self.read_buffer.len();
                // From the first byte of a head to its last, however many pieces it comes in.
                if head_deadline.is_none() {
                    head_deadline = Some(Instant::now() + timeouts.head);
                    shutdown_deadline = None;
                }
            }
            let is_idle = self.read_buffer.is_empty();
            let is_parked = !is_idle && readable(&self.stream).now_or_never().is_none();
            if is_parked {
                self.admission.park(mem::replace(&mut self.read_buffer, self.pool.none()).to_vec());
            }
            if is_idle {
                // A connection that waits holds no buffer.
                self.read_buffer.release();
                self.admission.begin_idle();
            }
            let Self { stream, timer, turn, shutdown, admission, .. } = self;
            // Whether there is something to read; if not, the connection is to end.
            let arrival = async {
                tokio::select! {
                    biased;
                    () = admission.displaced() => Ok(false),
                    is_ready = readable(stream) => is_ready.map(|()| true),
                    () = async {
                        shutdown.as_mut().await;
                        if !is_idle {
                            // The rest of the head may be on its way, too.
                            shutdown_deadline.get_or_insert_with(|| Instant::now() + LAST_REQUEST_TIMEOUT);
                        }
                        if let Some(deadline) = shutdown_deadline {
                            // In a box, so that no other connection holds memory for it.
                            Box::pin(sleep_until(deadline)).await;
                        }
                    } => Ok(false),
                }
            };
            // Called only if there is something to wait for: then its turn is over.
            let on_wait = || {
                turn.renew();
                head_deadline.unwrap_or_else(|| Instant::now() + idle)
            };
            let arrival = timer.until(on_wait, pin!(arrival)).await;
            if is_idle {
                self.admission.end_idle()?;
            }
            match arrival {
                Ok(Ok(true)) => {}
                Err(Elapsed) if !is_idle => return Err(RequestError::Timeout),
                Ok(_) | Err(Elapsed) => return Ok(None),
            }
            if is_parked {
                let Some(parked) = self.admission.unpark() else { return Ok(None) };
                *self.read_buffer = parked;
            }
            // No buffer before there is something to put into it.
            self.read_buffer.make_room(MIN_READ);
            match read(&mut self.stream, &mut self.read_buffer, self.settings.head.length).now_or_never() {
                Some(Ok(count)) if count > 0 => {}
                Some(_) => return Ok(None),
                // The socket said that it was readable, and was not.
                None => {}
            }
        }
    }

    /// Forgets the last request for this one.
    fn begin(&mut self, head: &RequestHead) {
        self.is_new = false;
        self.is_persistent = head.is_persistent;
        self.is_http_1_1 = head.is_http_1_1;
        self.has_answered = false;
        self.body = BodyDecoder::new(head.body);
        self.held = None;
        self.body_allowance = self.settings.body;
        self.body_wait_left = MAX_BODY_WAIT;
        self.expects_continue = head.expects_continue && !self.body.is_done();
    }

    /// Method and target of what [`ServerConnection::next_request`] has just found to be no request, as far as they came.
    pub fn refused_request(&self) -> Option<(&[u8], &[u8])> {
        begun_request(&self.read_buffer)
    }

    /// The next piece of the request's body; `None` once it has ended. Nothing is lost if the caller stops waiting.
    ///
    /// # Errors
    /// [`BodyError`]; the rest of the body cannot be read then.
    pub async fn next_piece(&mut self) -> Result<Option<Buffer>, BodyError> {
        match self.held.take() {
            Some(piece) => Ok(Some(piece)),
            None => self.read_piece().await,
        }
    }

    /// All of the rest of the request's body, if it has no more than `max_bytes`; `None` for a longer one, which can still be read
    /// from where reading stood. While more is waited for, what has come counts with the unfinished heads, and can be let go of like one.
    ///
    /// # Errors
    /// As [`ServerConnection::next_piece`], and [`BodyError::Displaced`].
    pub async fn hold_body(&mut self, max_bytes: usize) -> Result<Option<Vec<u8>>, BodyError> {
        // From here on what is held is parked while more is waited for ([`ServerConnection::fill_body`]).
        self.held.get_or_insert_with(|| self.pool.none());
        let outcome = loop {
            let piece = match self.read_piece().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break Ok(true),
                Err(error) => break Err(error),
            };
            let held = self.held.get_or_insert_with(|| self.pool.none());
            // It grows with what comes, and not beyond what is held.
            let length = held.len();
            held.reserve_exact(piece.len().max(max_bytes.min(2 * length).saturating_sub(length)));
            held.extend_from_slice(&piece);
            if held.len() > max_bytes {
                break Ok(false);
            }
        };
        if let Err(displaced) = self.admission.finish() {
            self.forget_request();
            return Err(displaced.into());
        }
        Ok(if outcome? { self.held.take().map(|mut held| mem::take(&mut *held)) } else { None })
    }

    /// How many bytes are held of the request's body.
    pub fn held_bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.len())
    }

    /// Forgets what came of a request that was closed for others. Nobody waits for its client to read an answer.
    fn forget_request(&mut self) {
        (self.held, self.read_buffer) = (None, self.pool.none());
        self.body = BodyDecoder::Done;
    }

    async fn read_piece(&mut self) -> Result<Option<Buffer>, BodyError> {
        while !self.body.is_done() {
            if let Some(room) = self.body.room(&self.read_buffer) {
                self.fill_body(room).await?;
            }
            let piece = self.body.take_piece(&mut self.read_buffer).map_err(|_| BodyError::Malformed)?;
            let Some(allowance) = self.body_allowance.checked_sub(piece.len() as u64) else {
                // Nothing that follows is read, not even if this piece ended where the body does.
                self.body = BodyDecoder::Broken;
                return Err(BodyError::TooLarge);
            };
            self.body_allowance = allowance;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Lowers the bound on the request's body to `max_bytes`.
    pub fn limit_body(&mut self, max_bytes: u64) {
        self.body_allowance = self.body_allowance.min(max_bytes);
    }

    /// Reads at most `max_bytes` more of the body, after a 100 if the client waits for one.
    async fn fill_body(&mut self, max_bytes: usize) -> Result<(), BodyError> {
        if mem::take(&mut self.expects_continue) {
            self.write_all(&[CONTINUE]).await.map_err(|_| BodyError::Gone(io::ErrorKind::WriteZero.into()))?;
        }
        let limit = self.settings.timeouts.body.min(self.body_wait_left);
        let mut waited_since = None;
        let read = loop {
            let is_parked = self.held.is_some() && readable(&self.stream).now_or_never().is_none();
            if let (Some(held), true) = (&mut self.held, is_parked) {
                self.admission.park_body(mem::take(&mut **held));
            }
            let Self { stream, timer, admission, .. } = &mut *self;
            let arrival = async {
                tokio::select! {
                    biased;
                    () = admission.displaced(), if is_parked => Ok(()),
                    is_ready = readable(stream) => is_ready,
                }
            };
            let on_wait = || *waited_since.get_or_insert_with(Instant::now) + limit;
            let arrival = timer.until(on_wait, pin!(arrival)).await;
            if let (Some(held), true) = (&mut self.held, is_parked) {
                **held = self.admission.unpark().ok_or(Displaced::Unfinished)?;
            }
            match arrival {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(BodyError::Gone(error)),
                Err(Elapsed) => break Err(BodyError::Timeout),
            }
            // No buffer before there is something to put into it.
            self.read_buffer.make_room(max_bytes);
            match read(&mut self.stream, &mut self.read_buffer, max_bytes).now_or_never() {
                Some(Ok(0)) => break Err(BodyError::Gone(io::ErrorKind::UnexpectedEof.into())),
                Some(read) => break read.map_err(BodyError::Gone),
                // The socket said that it was readable, and was not.
                None => self.read_buffer.release(),
            }
        };
        let Self { turn, body_wait_left, settings, .. } = self;
        if let Some(since) = waited_since {
            turn.renew();
            *body_wait_left = body_wait_left.saturating_sub(since.elapsed());
        }
        let count = read?;
        let worth = Duration::from_nanos((count as u64).saturating_mul(1_000_000_000) / settings.body_rate);
        *body_wait_left = (*body_wait_left + worth).min(MAX_BODY_WAIT);
        turn.spend(count).await;
        Ok(())
    }

    /// Awaits `work`, unless the client leaves before that. A client has left if it has closed the connection, or its own
    /// half of it. What else it sends meanwhile is kept for its turn, up to a bound. `work` comes pinned, since a future
    /// passed by value would be copied.
    ///
    /// # Errors
    /// [`ClientLeft`]; `work` is not polled any more then.
    pub async fn unless_client_leaves<T>(
        &mut self,
        mut work: impl Future<Output = T> + Unpin,
    ) -> Result<T, ClientLeft> {
        tokio::select! {
            biased;
            output = &mut work => Ok(output),
            () = self.client_leaves() => Err(ClientLeft),
        }
    }

    /// Reads ahead until the client leaves. Behind more than is read ahead nobody can see that.
    async fn client_leaves(&mut self) {
        while self.read_buffer.len() < MAX_READ_AHEAD {
            if readable(&self.stream).await.is_err() {
                return;
            }
            let max_bytes = MAX_READ_AHEAD - self.read_buffer.len();
            self.read_buffer.make_room(max_bytes.min(MIN_READ));
            if !matches!(read(&mut self.stream, &mut self.read_buffer, max_bytes).await, Ok(count) if count > 0) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// Whether the connection goes on after the answer whose head is about to be written. This is where that is decided: not
    /// if the client, the answer (`is_last`) or the end of the process wants it to end, and not if nobody can tell where the
    /// next request begins, since the body of this one was not read to its end. An answer whose body has no known length
    /// (`is_unbounded`) is sent in chunks; to a client of HTTP/1.0, which takes none, the end of the connection is its end
    /// (RFC 9112 section 6.1).
    pub fn decide_persistence(&mut self, is_last: bool, is_unbounded: bool) -> bool {
        self.is_chunked = is_unbounded && self.is_http_1_1;
        let ends_by_closing = is_unbounded && !self.is_http_1_1;
        self.is_persistent &=
            !is_last && !ends_by_closing && !self.is_draining.load(Ordering::Relaxed) && self.body.is_done();
        self.is_persistent
    }

    /// Writes the first line of an answer's head. Its version is no newer than the client's.
    pub fn write_status_line(&self, status: StatusCode, out: &mut Vec<u8>) {
        let version = if self.is_http_1_1 { "HTTP/1.1 " } else { "HTTP/1.0 " };
        let reason = status.canonical_reason().unwrap_or_default();
        append(out, [version, status.as_str(), " ", reason, "\r\n"].map(str::as_bytes));
    }

    /// Writes how the answer's body is delimited: by its length if that is known, also that of a body that is not sent.
    pub fn write_framing(&self, content_length: Option<u64>, out: &mut Vec<u8>) {
        match content_length {
            Some(length) => write_content_length(length, out),
            None if self.is_chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            None => {}
        }
    }

    /// Writes the last fields of an answer's head, and its end: what [`ServerConnection::decide_persistence`] decided, where that
    /// is not the version's default, the request's id, and the time.
    pub fn end_head(&self, request_id: &[u8], clock: &DateClock, out: &mut Vec<u8>) {
        let persistence: &[u8] = match (self.is_persistent, self.is_http_1_1) {
            (false, true) => b"connection: close\r\n",
            (true, false) => b"connection: keep-alive\r\n",
            (true, true) | (false, false) => b"",
        };
        append(out, [persistence, b"x-request-id: ", request_id, b"\r\ndate: "]);
        clock.write(SystemTime::now(), out);
        out.extend_from_slice(b"\r\n\r\n");
    }

    /// Whether some of the answer has been written.
    pub fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Writes all of `parts`, in one piece if the client takes it: a part of the answer, which has begun then.
    ///
    /// # Errors
    /// [`WriteError`]; the connection ends then.
    async fn write_answer(&mut self, parts: &[&[u8]]) -> Result<(), WriteError> {
        self.has_answered = true;
        let written = self.write_all(parts).await;
        self.is_persistent &= written.is_ok();
        written
    }

    async fn write_all(&mut self, parts: &[&[u8]]) -> Result<(), WriteError> {
        let mut slices = [IoSlice::new(&[]); MAX_PARTS];
        let used = parts.iter().filter(|part| !part.is_empty());
        let count = slices.iter_mut().zip(used).map(|(slice, part)| *slice = IoSlice::new(part)).count();
        let mut slices = &mut slices[..count];
        while !slices.is_empty() {
            match try_write(&self.stream, slices) {
                Ok(count) if count > 0 => IoSlice::advance_slices(&mut slices, count),
                // Mostly there is room, and nothing to wait for. So no answer holds memory for that.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Box::pin(self.until_writable()).await?,
                _ => return Err(WriteError::Gone),
            }
        }
        Ok(())
    }

    /// Waits until the client takes more of the answer.
    async fn until_writable(&mut self) -> Result<(), WriteError> {
        let Self { stream, timer, settings, .. } = self;
        match timer.within(settings.timeouts.answer, pin!(writable(stream))).await {
            Ok(ready) => ready.map_err(|_| WriteError::Gone),
            Err(Elapsed) => Err(WriteError::TooSlow),
        }
    }

    /// Writes what is in `out`, the answer's head at first, and the next piece of its body behind it. `out` is empty then.
    ///
    /// # Errors
    /// [`WriteError`]; the connection ends then.
    pub async fn write_piece(&mut self, out: &mut Vec<u8>, piece: &[u8]) -> Result<(), WriteError> {
        // A chunk of no bytes would be the last one.
        let is_chunk = self.is_chunked && !piece.is_empty();
        if is_chunk {
            write_chunk_size(piece.len(), out);
        }
        let end = if is_chunk { CHUNK_END } else { b"" };
        let written = if piece.len() <= MAX_COPIED {
            append(out, [piece, end]);
            self.write_answer(&[out]).await
        } else {
            self.write_answer(&[out, piece, end]).await
        };
        out.clear();
        written
    }

    /// Writes what is in `out`, and the end of the answer's body.
    ///
    /// # Errors
    /// [`WriteError`]; the connection ends then.
    pub async fn end_body(&mut self, out: &[u8]) -> Result<(), WriteError> {
        self.write_answer(&[out, if self.is_chunked { LAST_CHUNK } else { b"" }]).await
    }

    /// The next answer is the last one: what follows the request is not to be read.
    pub fn end_after_answer(&mut self) {
        self.is_persistent = false;
    }

    /// The answer cannot be brought to its end: the connection ends, so that nobody takes what there is of it for the whole.
    pub fn abort(&mut self) {
        self.is_persistent = false;
        self.is_cut_off = self.has_answered && !self.is_http_1_1;
    }

    /// Ends the connection. Where more may be coming, closing at once would reset the connection, and our answer might be
    /// lost (RFC 9112 section 9.6). So our half is closed, and what comes is read and thrown away for a while.
    pub async fn close(mut self) {
        if let (Either::Left(stream), true) = (&self.stream, self.is_cut_off) {
            // To an older client the end of the connection is the end of the body; only a reset says that it is not.
            let _ = stream.set_zero_linger();
            return;
        }
        let is_all_read = self.body.is_done() && self.read_buffer.is_empty();
        if self.stream.shutdown().await.is_err() || is_all_read {
            return;
        }
        let mut left = MAX_DISCARDED;
        let Self { stream, pool, read_buffer, timer, turn, admission, .. } = &mut self;
        // Nobody is to be kept out by connections that are ending.
        admission.begin_idle();
        let discarding = async {
            loop {
                // Many may be closed at once, and none of them is to hold what it has read for so long.
                *read_buffer = pool.none();
                let is_ready = tokio::select! {
                    biased;
                    () = admission.displaced() => false,
                    is_ready = readable(stream) => is_ready.is_ok(),
                };
                if !is_ready {
                    break;
                }
                read_buffer.make_room(MIN_READ);
                match read(stream, read_buffer, left).await {
                    Ok(count) if count > 0 => {
                        left -= count;
                        turn.spend(count).await;
                    }
                    _ => break,
                }
            }
        };
        let _ = timer.within(LINGER_TIMEOUT, pin!(discarding)).await;
    }
}

/// The stream of an accepted connection: TCP, or a unix socket.
pub type AcceptedStream = Either<TcpStream, UnixStream>;

async fn readable(stream: &AcceptedStream) -> io::Result<()> {
    match stream {
        Either::Left(stream) => stream.readable().await,
        Either::Right(stream) => stream.readable().await,
    }
}

async fn writable(stream: &AcceptedStream) -> io::Result<()> {
    match stream {
        Either::Left(stream) => stream.writable().await,
        Either::Right(stream) => stream.writable().await,
    }
}

/// Writes what there is room for.
fn try_write(stream: &AcceptedStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    match (stream, parts) {
        (Either::Left(stream), [part]) => stream.try_write(part),
        (Either::Left(stream), parts) => stream.try_write_vectored(parts),
        (Either::Right(stream), parts) => stream.try_write_vectored(parts),
    }
}

/// Reads what there is, as far as `into` has room, but not more than `max_bytes`.
async fn read(stream: &mut AcceptedStream, into: &mut Vec<u8>, max_bytes: usize) -> io::Result<usize> {
    stream.take(max_bytes as u64).read_buf(into).await
}

/// Why there is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// What came is no head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A head began and did not end in time.
    #[error("the head of a request did not come in time")]
    Timeout,
    /// The connection was closed to make room for others, and nobody is to be told.
    #[error(transparent)]
    Displaced(#[from] Displaced),
}

/// Why a request's body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its chunks are malformed.
    #[error("the chunks of the body are malformed")]
    Malformed,
    /// More bytes than are taken.
    #[error("the body is longer than this gateway takes")]
    TooLarge,
    /// The next piece did not come in time, or too little did on the whole.
    #[error("the body did not come in time")]
    Timeout,
    /// The client left.
    #[error("the client left in the middle of its body")]
    Gone(#[source] io::Error),
    /// The connection was closed to make room for others, and nobody is to be told.
    #[error(transparent)]
    Displaced(#[from] Displaced),
}

/// The client has closed the connection, or its half of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client left")]
pub struct ClientLeft;

/// Why an answer could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The client left.
    #[error("the client left before the answer's end")]
    Gone,
    /// The client did not take the next piece in time.
    #[error("the client did not take the answer in time")]
    TooSlow,
}

/// How long an idle connection is kept: longer than front proxies keep theirs (nginx: 60 s), so that it is they who close.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long the rest of a head may take once idle connections end, and the next request after an answer of that time.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a body may keep us waiting before anything has come of it, and the most that can be left after any amount of it.
const MAX_BODY_WAIT: Duration = Duration::from_mins(1);
/// How long a connection that is closed is still read, so that the client gets the last answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// How much is read and thrown away meanwhile, in bytes.
const MAX_DISCARDED: usize = 8 * 1024 * 1024;
/// How much is read while an answer is due, in bytes.
const MAX_READ_AHEAD: usize = 32 * 1024;
/// Up to this length, in bytes, a piece of a body is copied behind what is before it, since one part is written faster than
/// two.
const MAX_COPIED: usize = 8 * 1024;
/// How many parts one write may have.
const MAX_PARTS: usize = 4;
/// The interim answer to `Expect`.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::http::admission::ConnectionLimit;
    use crate::http::client::Response;
    use crate::http::turn::tests::turns;

    const SECOND: Duration = Duration::from_secs(1);
    const GET: &str = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

    /// Lets both ends of a connection run as one task, by a clock that goes on to the next deadline whenever they wait.
    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(test)
    }

    /// A connection, the client's end of it, and what ends the process. Bodies may have 100 bytes.
    fn connected() -> (ServerConnection, UnixStream, CancellationToken) {
        let timeouts = ClientTimeouts { head: 10 * SECOND, body: 30 * SECOND, answer: 60 * SECOND };
        let (head, body_rate) = (HeadLimits { length: 32 * 1024, fields: 8 }, NonZeroU64::new(1024).expect("not zero"));
        let settings = ServerSettings { head, body: 100, body_rate, timeouts };
        let (ours, client) = UnixStream::pair().expect("a pair of sockets");
        let process = CancellationToken::new();
        let shutdown = process.clone().cancelled_owned();
        let (settings, is_draining) = (Rc::new(settings), Arc::default());
        let stream = Either::Right(ours);
        let admission = ConnectionLimit::new(1).admit(None).expect("the first");
        let connection =
            ServerConnection::new(stream, settings, admission, BufferPool::default(), shutdown, is_draining);
        (connection, client, process)
    }

    /// The same, on which `text` has arrived.
    async fn with(text: &str) -> (ServerConnection, UnixStream) {
        let (connection, mut client, _) = connected();
        client.write_all(text.as_bytes()).await.expect("there is room");
        (connection, client)
    }

    impl ServerConnection {
        async fn request(&mut self) -> RequestHead {
            self.next_request().await.expect("a good head").expect("a request")
        }

        async fn whole_body(&mut self) -> Result<Vec<u8>, BodyError> {
            let mut body = Vec::new();
            while let Some(piece) = self.next_piece().await? {
                body.extend_from_slice(&piece);
            }
            Ok(body)
        }

        async fn answer(&mut self) {
            self.decide_persistence(false, false);
            self.write_answer(&[ANSWER]).await.expect("there is room");
        }
    }

    #[test]
    fn a_body_too_long_to_be_held_is_the_next_piece_again_and_of_no_other_body() {
        run(async {
            let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd";
            let (mut connection, _client) = with(&put.repeat(4)).await;
            for (max_bytes, is_read_again) in [(3, true), (4, false), (0, false), (3, true)] {
                connection.request().await;
                let held = connection.hold_body(max_bytes).await.expect("a good body");
                assert_eq!(held.as_deref(), (max_bytes >= 4).then_some(&b"abcd"[..]));
                assert_eq!(connection.held_bytes(), if max_bytes >= 4 { 0 } else { 4 });
                if is_read_again {
                    assert_eq!(connection.whole_body().await.expect("the same"), b"abcd");
                }
                connection.answer().await;
            }
        });
    }

    /// However small the pieces are, what is held is not moved for each of them, and has no room that it never fills.
    #[test]
    fn what_is_held_of_a_body_grows_to_twice_its_length_and_no_further_than_may_be_held() {
        run(async {
            for (count, room) in [(5, 8), (40, 50)] {
                let (mut connection, mut client) =
                    with("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n").await;
                connection.request().await;
                let sending = async {
                    for _ in 0..count {
                        client.write_all(b"x").await.expect("there is room");
                        tokio::time::sleep(SECOND / 10).await;
                    }
                    client.shutdown().await.expect("it is open");
                };
                let (held, ()) = tokio::join!(connection.hold_body(50), sending);
                assert!(matches!(held, Err(BodyError::Gone(_))), "{held:?}");
                let held = connection.held.expect("what came");
                assert_eq!((held.len(), held.capacity()), (count, room));
            }
        });
    }

    #[test]
    fn what_is_held_of_a_body_can_be_let_go_of_while_more_is_awaited() {
        run(async {
            let begun = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\na";
            for is_wanted_by_others in [false, true] {
                let (mut connection, mut client) = with(begun).await;
                connection.request().await;
                let limit = ConnectionLimit::new(1);
                connection.admission = limit.admit(None).expect("the first");
                connection.admission.finish().expect("it is there");
                assert!(limit.admit(None).is_none(), "whose head is there stays");
                let sending = async {
                    for piece in [b"b", b"c", b"d"] {
                        tokio::time::sleep(SECOND).await;
                        if is_wanted_by_others {
                            return limit.admit(None);
                        }
                        client.write_all(piece).await.expect("it is open");
                    }
                    None
                };
                let (held, other) = tokio::join!(seconds(connection.hold_body(4)), sending);
                match other {
                    Some(_) => {
                        assert!(matches!(held, (Err(BodyError::Displaced(Displaced::Unfinished)), 1)), "{held:?}");
                    }
                    None => assert!(matches!(&held, (Ok(Some(body)), 3) if body == b"abcd"), "{held:?}"),
                }
                assert_eq!((connection.admission.finish().is_err(), connection.held_bytes()), (is_wanted_by_others, 0));
                assert!(is_wanted_by_others || limit.admit(None).is_none(), "who is answered stays");
                assert_eq!(seconds(connection.close()).await, ((), 0), "whoever had to go does not linger");
            }
        });
    }

    /// How long `work` takes, in seconds.
    async fn seconds<T>(work: impl Future<Output = T>) -> (T, u64) {
        let begun = Instant::now();
        let output = work.await;
        let took = begun.elapsed();
        assert!(took.subsec_millis() < 10, "{took:?}");
        (output, took.as_secs())
    }

    /// What has arrived at the client.
    async fn heard(client: &mut UnixStream) -> String {
        let mut bytes = Vec::new();
        let reading = client.read_to_end(&mut bytes);
        let _ = tokio::time::timeout(Duration::from_millis(1), reading).await;
        String::from_utf8(bytes).expect("ASCII")
    }

    /// FR-08.
    #[test]
    fn requests_and_bodies_are_the_same_however_they_arrive() {
        let script = [
            ("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n", "GET /1 "),
            ("PUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nGET / \r\n\r\nab", "PUT /2 GET / \r\n\r\nab"),
            (
                "\r\nPOST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\nA: b\r\n\r\n",
                "POST /3 abcd",
            ),
            ("PUT /4 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "PUT /4 "),
            ("GET /5 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET /5 "),
            ("GET /6 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET /6 "),
        ];
        let (bytes, expected): (Vec<_>, Vec<_>) = script.iter().map(|(request, read)| (*request, *read)).unzip();
        let bytes = bytes.concat() + "GET /7 HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut random = 1_u64;
        for round in 0..500 {
            let read = run(async {
                let (mut connection, mut client, _process) = connected();
                let sending = async {
                    let mut rest = bytes.as_bytes();
                    while !rest.is_empty() {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let length = 1 + (random >> 33) as usize % if round % 2 == 0 { 9 } else { 150 };
                        let (piece, others) = rest.split_at(length.min(rest.len()));
                        client.write_all(piece).await.expect("it is read");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        rest = others;
                    }
                };
                let serving = async {
                    let mut read = Vec::new();
                    while let Some(request) = connection.next_request().await.expect("good heads") {
                        let body = connection.whole_body().await.expect("good bodies");
                        let body = String::from_utf8(body).expect("ASCII");
                        read.push(format!("{} {} {body}", request.method(), request.target()));
                        connection.answer().await;
                    }
                    read
                };
                tokio::join!(serving, sending).0
            });
            assert_eq!(read, expected, "round {round}");
        }
    }

    /// DS-04: a client that always has one request more, or more of a body, lets others work.
    #[test]
    fn what_a_client_sends_without_end_leaves_the_others_their_turn() {
        run(async {
            let (mut connection, mut client, _process) = connected();
            client.write_all(GET.repeat(64).as_bytes()).await.expect("there is room");
            let serving = async {
                for _ in 0..64 {
                    connection.request().await;
                    connection.answer().await;
                }
            };
            let count = turns(serving).await;
            assert!((4..=6).contains(&count), "{count} turns for requests");
            let (mut connection, mut client) = with("").await;
            Rc::get_mut(&mut connection.settings).expect("it is the only one").body = 1 << 30;
            let body =
                format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n{}", "a".repeat(100_000));
            client.write_all(body.as_bytes()).await.expect("there is room");
            let serving = async {
                connection.request().await;
                let mut left = 90_000_usize;
                while left > 0 {
                    let piece = connection.next_piece().await.expect("a body").expect("it goes on");
                    left = left.saturating_sub(piece.len());
                }
            };
            let count = turns(serving).await;
            assert!((2..=4).contains(&count), "{count} turns for a body");
        });
    }

    /// DS-03.
    #[test]
    fn a_head_has_its_time_on_a_new_connection_and_on_a_kept_one() {
        run(async {
            let (mut connection, _client, _process) = connected();
            assert!(matches!(seconds(connection.next_request()).await, (Ok(None), 10)), "silent from the start");

            let (mut connection, mut client_of_half) = with("GET / HT").await;
            let sending = async {
                for byte in [b"T", b"P", b"/"] {
                    tokio::time::sleep(3 * SECOND).await;
                    client_of_half.write_all(byte).await.expect("there is room");
                }
            };
            let reading = seconds(async { connection.next_request().await.map(|_| ()) });
            assert_eq!(tokio::join!(reading, sending).0, (Err(RequestError::Timeout), 10), "no byte brings more time");

            let (mut connection, mut client) = with(GET).await;
            for wait in [0, 9, 74] {
                connection.request().await;
                tokio::time::sleep(20 * SECOND).await;
                connection.answer().await;
                let sending = async {
                    tokio::time::sleep(wait * SECOND).await;
                    client.write_all(GET.as_bytes()).await.expect("there is room");
                };
                tokio::join!(sending, async { readable(&connection.stream).await.expect("it is open") });
            }
            connection.request().await;
            connection.answer().await;
            assert!(matches!(seconds(connection.next_request()).await, (Ok(None), 75)), "between two requests");

            let (mut connection, mut client) = with(GET).await;
            connection.request().await;
            connection.answer().await;
            let sending = async {
                tokio::time::sleep(74 * SECOND).await;
                client.write_all(b"G").await.expect("there is room");
            };
            let reading = seconds(async { connection.next_request().await.map(|_| ()) });
            assert_eq!(tokio::join!(reading, sending).0, (Err(RequestError::Timeout), 84), "from the first byte");
        });
    }

    #[test]
    fn what_is_no_head_is_refused_and_what_breaks_off_is_nothing() {
        run(async {
            let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(8));
            let long = "x".repeat(40 * 1024);
            for (text, error) in [
                ("GET /\r\n\r\n", HeadError::Malformed),
                ("\r\n\r\n", HeadError::Malformed),
                ("\x16\x03\x01\x02\n", HeadError::Malformed),
                ("GET /\u{e4} HTTP/1.1\r\n", HeadError::Target),
                (&many, HeadError::TooLarge),
                (&long, HeadError::TooLarge),
            ] {
                let (mut connection, _client) = with(text).await;
                assert_eq!(connection.next_request().await.unwrap_err(), error.into(), "{text:.30}");
            }
            let (begin, rest) = long.split_at(30 * 1024);
            let (mut connection, mut client) = with(begin).await;
            let sending = async {
                tokio::time::sleep(SECOND).await;
                client.write_all(rest.as_bytes()).await.expect("there is room");
            };
            let (read, ()) = tokio::join!(connection.next_request(), sending);
            assert_eq!(read.unwrap_err(), HeadError::TooLarge.into(), "a piece that goes far beyond the limit");
            for length in 0..GET.len() {
                let (mut connection, mut client) = with(&GET[..length]).await;
                client.shutdown().await.expect("it is open");
                assert!(matches!(connection.next_request().await, Ok(None)), "{length} bytes");
            }
            let (mut connection, mut client) = with(GET).await;
            client.shutdown().await.expect("it is open");
            connection.request().await;
            connection.answer().await;
            assert!(matches!(connection.next_request().await, Ok(None)));
            drop(connection);
            assert_eq!(heard(&mut client).await.as_bytes(), ANSWER);
        });
    }

    #[test]
    fn a_connection_ends_with_the_process_once_nothing_is_under_way() {
        run(async {
            // Also those that fill the buffer exactly.
            for length in [100, 4096, 8191, 8192, 8193, 16_384] {
                let (mut connection, mut client, process) = connected();
                let request = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(length - 32));
                assert_eq!(request.len(), length);
                client.write_all(request.as_bytes()).await.expect("there is room");
                connection.request().await;
                process.cancel();
                connection.answer().await;
                let (end, waited) = seconds(connection.next_request()).await;
                assert!(matches!((end, waited), (Ok(None), 0)), "{length} bytes, {waited} s");
                assert_eq!(heard(&mut client).await.as_bytes(), ANSWER);
            }
            // What is answered meanwhile may have said that the connection goes on: the next request has a second.
            for (silent, is_served) in [(900, true), (1_100, false)] {
                let (mut connection, mut client) = with(GET).await;
                let process = CancellationToken::new();
                connection.shutdown = Box::pin(process.clone().cancelled_owned());
                connection.request().await;
                connection.answer().await;
                connection.is_draining.store(true, Ordering::Relaxed);
                process.cancel();
                let sending = async {
                    tokio::time::sleep(Duration::from_millis(silent)).await;
                    let _ = client.write_all(GET.as_bytes()).await;
                };
                let (request, ()) = tokio::join!(connection.next_request(), sending);
                assert_eq!(request.expect("no error").is_some(), is_served, "{silent} ms");
            }
            // Of a head that has begun the rest may be on the way, for a second and no longer, however it comes.
            for (pieces, is_whole) in [(1, true), (8, false)] {
                let (mut connection, mut client, process) = connected();
                client.write_all(b"GET / HT").await.expect("there is room");
                let rest = b"TP/1.1\r\nHost: a\r\n\r\n";
                let sending = async {
                    tokio::time::sleep(SECOND).await;
                    process.cancel();
                    for piece in rest.chunks(rest.len().div_ceil(pieces)) {
                        tokio::time::sleep(SECOND * 9 / 10).await;
                        let _ = client.write_all(piece).await;
                    }
                };
                let reading = async {
                    let begun = Instant::now();
                    let request = connection.next_request().await.expect("no error");
                    let took = begun.elapsed();
                    if request.is_none() {
                        connection.close().await;
                    }
                    assert!(took <= 2 * SECOND && begun.elapsed() == took, "{took:?}, and then {:?}", begun.elapsed());
                    request.is_some()
                };
                assert_eq!(tokio::join!(reading, sending).0, is_whole, "{pieces} pieces");
            }
        });
    }

    /// DS-02: a head that has begun on a kept connection makes room for others, and silence between two requests for who has
    /// fewer connections.
    #[test]
    fn a_kept_connection_can_be_let_go_of_while_a_head_is_unfinished_or_for_who_has_fewer() {
        let displaced = |displaced: Displaced| (Err(displaced.into()), 1);
        run(async {
            for (begun, is_same, expected) in [
                ("", true, (Ok(()), 75)),
                ("", false, displaced(Displaced::Idle)),
                ("G", true, displaced(Displaced::Unfinished)),
                ("G", false, displaced(Displaced::Unfinished)),
            ] {
                let (mut connection, mut client) = with(GET).await;
                let limit = ConnectionLimit::new(1);
                connection.admission = limit.admit(None).expect("the first");
                connection.request().await;
                connection.answer().await;
                client.write_all(begun.as_bytes()).await.expect("there is room");
                let coming = async {
                    tokio::time::sleep(SECOND).await;
                    limit.admit((!is_same).then_some([192, 0, 2, 1].into()))
                };
                let reading = seconds(async { connection.next_request().await.map(|head| assert!(head.is_none())) });
                let (read, other) = tokio::join!(reading, coming);
                assert_eq!((&read, other.is_some()), (&expected, read.0.is_err()), "{begun:?}, {is_same}");
            }
        });
    }

    /// What is no request is answered, and what follows it is read for a while, so that the answer arrives.
    #[test]
    fn a_connection_that_ends_slowly_gives_way_to_who_has_fewer() {
        run(async {
            for (is_same, ends_after) in [(true, 5), (false, 1)] {
                let (mut connection, _client) = with("x\r\n\r\n").await;
                let limit = ConnectionLimit::new(1);
                connection.admission = limit.admit(None).expect("the first");
                connection.next_request().await.expect_err("no request");
                let coming = async {
                    tokio::time::sleep(SECOND).await;
                    limit.admit((!is_same).then_some([192, 0, 2, 1].into())).is_some()
                };
                let (((), took), is_admitted) = tokio::join!(seconds(connection.close()), coming);
                assert_eq!((took, is_admitted), (ends_after, !is_same));
            }
        });
    }

    /// FR-10.
    #[test]
    fn a_body_is_asked_for_once_and_only_if_somebody_wants_it() {
        run(async {
            let head = |version, length| {
                format!("PUT / HTTP/1.{version}\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
            };
            for (case, text, is_asked) in [
                ("a body to come", head(1, 5), true),
                ("to an older client", head(0, 5), false),
                ("no body", head(1, 0), false),
                ("a body that is there", head(1, 5) + "hello", false),
            ] {
                let (mut connection, mut client) = with(&text).await;
                connection.request().await;
                tokio::time::sleep(SECOND).await;
                assert_eq!(heard(&mut client).await, "", "{case}: nobody has asked");
                let sending = async {
                    tokio::time::sleep(SECOND).await;
                    let said = heard(&mut client).await;
                    for byte in "hello"[..if text.ends_with("hello") { 0 } else { 5 }].bytes() {
                        client.write_all(&[byte]).await.expect("it is read");
                        tokio::time::sleep(SECOND).await;
                    }
                    said
                };
                let (body, said) = tokio::join!(connection.whole_body(), sending);
                let body = body.expect("a whole body");
                assert!(body == b"hello" || text.contains("Length: 0"), "{case}: {body:?}");
                assert_eq!(said.as_bytes(), if is_asked { CONTINUE } else { b"" }, "{case}");
                assert_eq!(heard(&mut client).await, "", "{case}: once");
            }
            let (mut connection, mut client) = with(&head(1, 5)).await;
            connection.request().await;
            connection.answer().await;
            assert_eq!(heard(&mut client).await.as_bytes(), ANSWER, "a refusal");
            assert!(matches!(connection.next_request().await, Ok(None)), "what comes now may be the body");
        });
    }

    /// DS-02.
    #[test]
    fn a_body_has_a_limit_however_it_is_framed() {
        run(async {
            for (limit, length, is_taken) in [
                (u64::MAX, 1, true),
                (u64::MAX, 99, true),
                (u64::MAX, 100, true),
                (u64::MAX, 101, false),
                (u64::MAX, 200, false),
                (3, 3, true),
                (3, 4, false),
            ] {
                let (known, data) = (format!("Content-Length: {length}\r\n\r\n"), "x".repeat(length));
                let chunks = "1\r\nx\r\n".repeat(length) + "0\r\n\r\n";
                for body in [known + &data, "Transfer-Encoding: chunked\r\n\r\n".to_owned() + &chunks] {
                    let (mut connection, _client) = with(&format!("PUT / HTTP/1.1\r\nHost: a\r\n{body}")).await;
                    connection.request().await;
                    connection.limit_body(limit);
                    match connection.whole_body().await {
                        Ok(body) => assert!(is_taken && body.len() == length, "{length}"),
                        Err(error) => assert!(!is_taken && matches!(error, BodyError::TooLarge), "{length}: {error}"),
                    }
                    assert!(
                        is_taken || connection.next_piece().await.is_err(),
                        "{length}: nothing of it comes after that"
                    );
                    assert_eq!(connection.decide_persistence(false, false), is_taken, "{length}");
                }
            }
        });
    }

    /// DS-03: the time is that of the next piece.
    #[test]
    fn a_body_comes_in_time_or_breaks_off() {
        run(async {
            for (pause, rest, expected) in [
                (29, "lo", "Ok([104, 101, 108, 108, 111])"),
                (31, "lo", "Err(Timeout)"),
                (1, "l", "Err(Timeout)"),
                (1, "", "Err(Gone(Kind(UnexpectedEof)))"),
            ] {
                let head = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel";
                let (mut connection, mut client) = with(head).await;
                connection.request().await;
                let sending = async {
                    tokio::time::sleep(pause * SECOND).await;
                    for byte in rest.bytes() {
                        client.write_all(&[byte]).await.expect("it is open");
                        tokio::time::sleep(pause * SECOND).await;
                    }
                    if rest.is_empty() {
                        client.shutdown().await.expect("it is open");
                    }
                };
                let (body, ()) = tokio::join!(connection.whole_body(), sending);
                assert_eq!(format!("{body:?}"), expected, "{rest:?} after {pause} s");
            }
            for chunks in ["2\r\nab\r\nx", "2\r\nabc", "\r\n", "2\nab\n"] {
                let head = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
                let (mut connection, _client) = with(&format!("{head}{chunks}")).await;
                connection.request().await;
                for _ in 0..2 {
                    let body = connection.whole_body().await;
                    assert!(matches!(body, Err(BodyError::Malformed)), "{chunks:?}: {body:?}");
                }
                assert!(!connection.decide_persistence(false, false), "{chunks:?}");
            }
        });
    }

    /// DS-03: no byte in time brings more time than it is worth. Only waiting for the client counts.
    #[test]
    fn a_body_has_a_least_rate() {
        run(async {
            let (busy, idle) = (Duration::from_secs(50), Duration::ZERO);
            for (case, first, size, pause, pieces, work, fails_after) in [
                ("a byte every 20 s", 0, 1, 20, 10, idle, Some(60)),
                ("the same after a lot that came fast", 500_000, 1, 20, 10, idle, Some(60)),
                ("too little every second", 0, 900, 1, 1_000, idle, Some(488)),
                ("enough every second", 0, 1024, 1, 1_000, idle, None),
                ("enough every 25 s", 0, 25 * 1024, 25, 20, idle, None),
                ("not quite enough, but soon over", 0, 1, 20, 2, idle, None),
                ("a byte every 20 s to somebody who takes longer to use it", 0, 1, 20, 10, busy, None),
            ] {
                let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", first + size * pieces);
                let (mut connection, mut client) = with(&head).await;
                connection.settings = Rc::new(ServerSettings { body: 1 << 30, ..*connection.settings });
                connection.request().await;
                let sending = async {
                    client.write_all(&vec![b'x'; first]).await.expect("it is read");
                    for _ in 0..pieces {
                        tokio::time::sleep(pause * SECOND).await;
                        if client.write_all(&vec![b'x'; size]).await.is_err() {
                            break;
                        }
                    }
                };
                let reading = async {
                    let begun = Instant::now();
                    let mut read = 0;
                    let outcome = loop {
                        match connection.next_piece().await {
                            Ok(Some(piece)) => read += piece.len(),
                            Ok(None) => break Ok(read),
                            Err(error) => break Err((format!("{error:?}"), begun.elapsed().as_secs())),
                        }
                        tokio::time::sleep(work).await;
                    };
                    drop(connection);
                    outcome
                };
                let (outcome, ()) = tokio::join!(reading, sending);
                let expected =
                    fails_after.map_or(Ok(first + size * pieces), |after| Err(("Timeout".to_owned(), after)));
                assert_eq!(outcome, expected, "{case}");
            }
        });
    }

    #[test]
    fn who_leaves_takes_the_call_along_whatever_was_sent_behind() {
        run(async {
            for behind in ["", "G", GET, &GET.repeat(1_000)] {
                for closes_half in [false, true] {
                    let (mut connection, mut client) = with(&format!("{GET}{behind}")).await;
                    connection.request().await;
                    let leaving = async {
                        tokio::time::sleep(SECOND).await;
                        client.shutdown().await.expect("it is open");
                        closes_half.then_some(client)
                    };
                    let call = connection.unless_client_leaves(std::future::pending::<()>());
                    let (left, _client) = tokio::join!(seconds(call), leaving);
                    assert_eq!(left, (Err(ClientLeft), 1), "{behind:.30}");
                }
            }
            let (mut connection, mut client) = with(GET).await;
            connection.request().await;
            client.shutdown().await.expect("it is open");
            let work = connection.unless_client_leaves(std::future::ready(5)).await;
            assert_eq!(work, Ok(5), "what is there at once is answered");
        });
    }

    /// DS-02.
    #[test]
    fn what_is_sent_behind_a_call_waits_for_its_turn_and_is_bounded() {
        run(async {
            let (mut connection, mut client) = with(GET).await;
            connection.request().await;
            let two = async {
                client
                    .write_all(b"PUT /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
                    .await
                    .expect("there is room");
                client.write_all(GET.as_bytes()).await.expect("there is room");
                tokio::time::sleep(SECOND).await;
            };
            connection.unless_client_leaves(pin!(two)).await.expect("it is there");
            connection.answer().await;
            assert_eq!(connection.request().await.target(), "/b");
            assert_eq!(connection.whole_body().await.expect("a body"), b"ab");
            connection.answer().await;
            assert_eq!(connection.request().await.target(), "/a");

            let mut sent = 0;
            let flood = async {
                client.write_all(&vec![b'x'; 32 * 1024 - 1]).await.expect("there is room");
                tokio::time::sleep(SECOND).await;
                while tokio::time::timeout(SECOND, client.writable()).await.is_ok() {
                    sent += client.try_write(&[b'x'; 1000]).unwrap_or(0);
                }
                tokio::time::sleep(SECOND).await;
            };
            connection.unless_client_leaves(pin!(flood)).await.expect("it is there");
            assert!(sent > 64 * 1024, "{sent}");
            assert_eq!(connection.read_buffer.len(), 32 * 1024);
            drop(client);
            let pause = pin!(tokio::time::sleep(SECOND));
            let work = connection.unless_client_leaves(pause);
            assert_eq!(work.await, Ok(()), "behind so much nobody sees who leaves");
        });
    }

    /// FR-08.
    #[test]
    fn one_place_says_whether_a_connection_goes_on() {
        let (keep, close) = ("Connection: keep-alive\r\n", "Connection: close\r\n");
        let body = "Content-Length: 2\r\n\r\nab";
        run(async {
            for (case, version, fields, is_last, is_read, goes_on, says) in [
                ("as usual", 1, "", false, true, true, ""),
                ("the client closes", 1, close, false, true, false, "close"),
                ("the client would switch", 1, "Connection: Upgrade\r\n", false, true, false, "close"),
                ("we close", 1, "", true, true, false, "close"),
                ("a body that is read", 1, body, false, true, true, ""),
                ("a body that is not", 1, body, false, false, false, "close"),
                ("half a body", 1, "Content-Length: 3\r\n\r\nab", false, false, false, "close"),
                ("no body to read", 1, "", false, false, true, ""),
                ("an older client", 0, "", false, true, false, ""),
                ("an older client that stays", 0, keep, false, true, true, "keep-alive"),
                ("an older client, and we close", 0, keep, true, true, false, ""),
                ("an older client that wants both", 0, "Connection: keep-alive, close\r\n", false, true, false, ""),
            ] {
                let end = if fields.contains("\r\n\r\n") { "" } else { "\r\n" };
                let (mut connection, mut client) =
                    with(&format!("PUT / HTTP/1.{version}\r\nHost: a\r\n{fields}{end}")).await;
                connection.request().await;
                if is_read {
                    connection.whole_body().await.expect("it is there");
                }
                assert_eq!(connection.decide_persistence(is_last, false), goes_on, "{case}");
                let mut head = Vec::new();
                connection.write_status_line(StatusCode::NOT_FOUND, &mut head);
                connection.end_head(b"id", &DateClock::default(), &mut head);
                let field = if says.is_empty() { String::new() } else { format!("connection: {says}\r\n") };
                let expected = format!("HTTP/1.{version} 404 Not Found\r\n{field}x-request-id: id\r\ndate: ");
                let head = String::from_utf8(head).expect("ASCII");
                assert!(head.starts_with(&expected) && head.ends_with(" GMT\r\n\r\n"), "{case}: {head}");
                connection.write_answer(&[ANSWER]).await.expect("there is room");
                client.write_all(GET.as_bytes()).await.expect("there is room");
                assert_eq!(connection.next_request().await.expect("good so far").is_some(), goes_on, "{case}");
            }
            let (mut connection, _client) = with(&GET.repeat(2)).await;
            connection.request().await;
            assert!(connection.decide_persistence(false, false));
            connection.abort();
            assert!(connection.next_request().await.expect("good so far").is_none(), "an answer that broke off");

            let (mut connection, _client) = with(&GET.repeat(2)).await;
            connection.request().await;
            connection.is_draining.store(true, Ordering::Relaxed);
            assert!(!connection.decide_persistence(false, false), "the process ends");
        });
    }

    /// FR-09.
    #[test]
    fn the_framing_that_goes_down_is_ours() {
        run(async {
            let (known, chunks) = ("Content-Length: 05\r\n", "Transfer-Encoding: Chunked\r\n");
            for (status, fields, is_head, is_http_1_1, expected, goes_on) in [
                (200, known, false, true, "content-length: 5\r\n", true),
                (200, known, false, false, "content-length: 5\r\n", true),
                (200, known, true, true, "content-length: 5\r\n", true),
                (304, known, false, true, "content-length: 5\r\n", true),
                (204, known, false, true, "", true),
                (204, "", false, true, "", true),
                (200, chunks, false, true, "transfer-encoding: chunked\r\n", true),
                (200, chunks, false, false, "", false),
                (200, chunks, true, true, "", true),
                (200, "", false, true, "transfer-encoding: chunked\r\n", true),
                (200, "", false, false, "", false),
            ] {
                let mut read = BufferPool::default().take();
                read.extend_from_slice(format!("HTTP/1.1 {status} OK\r\n{fields}\r\n").as_bytes());
                let response = Response::parse(&mut read, is_head, &mut 0).expect("an answer").expect("its head");
                let (mut connection, _client, _process) = connected();
                connection.is_http_1_1 = is_http_1_1;
                let case = format!("{status} {fields:?}, HEAD: {is_head}, HTTP/1.1: {is_http_1_1}");
                assert_eq!(connection.decide_persistence(false, response.length.known().is_none()), goes_on, "{case}");
                let mut out = Vec::new();
                connection.write_framing(response.content_length, &mut out);
                assert_eq!(String::from_utf8(out).expect("ASCII"), expected, "{case}");
            }
        });
    }

    #[test]
    fn a_body_is_written_as_it_is_or_in_chunks() {
        run(async {
            let long = [b'x'; MAX_COPIED + 1];
            let plain = [b"head body".as_slice(), &long].concat();
            let chunked = [b"head 4\r\nbody\r\n2001\r\n", &long[..], b"\r\n0\r\n\r\n"].concat();
            for (is_unbounded, expected) in [(false, plain), (true, chunked)] {
                let (mut connection, mut client) = with(GET).await;
                connection.request().await;
                connection.decide_persistence(false, is_unbounded);
                let mut out = b"head ".to_vec();
                for piece in [&b"body"[..], b"", &long] {
                    connection.write_piece(&mut out, piece).await.expect("there is room");
                    assert!(out.is_empty() && out.capacity() < MAX_COPIED, "what is long is not copied");
                }
                connection.end_body(&out).await.expect("there is room");
                drop(connection);
                let mut read = Vec::new();
                client.read_to_end(&mut read).await.expect("it is open");
                assert_eq!(String::from_utf8(read), String::from_utf8(expected), "in chunks: {is_unbounded}");
            }
        });
    }

    #[test]
    fn parts_are_written_in_order_and_whole() {
        run(async {
            let (mut connection, mut client) = with(GET).await;
            connection.request().await;
            assert!(!connection.has_answered());
            let (many, mut read) = (vec![b'x'; 3 << 20], Vec::new());
            let writing = async {
                connection.write_answer(&[b"a", b"", &many, b"b"]).await.expect("it is read");
                connection.write_answer(&[b""]).await.expect("nothing to write");
                connection.write_answer(&[b"c", b"", b""]).await.expect("it is read");
                assert!(connection.has_answered());
                connection.close().await;
            };
            let (read, ()) = tokio::join!(async { client.read_to_end(&mut read).await.map(|_| read) }, writing);
            assert_eq!(read.expect("it is open"), [b"a", &many[..], b"bc"].concat());
        });
    }

    /// DS-03.
    #[test]
    fn an_answer_is_not_offered_for_ever_and_a_slow_reader_gets_all_of_it() {
        run(async {
            let many = vec![b'x'; 1 << 20];
            let (mut connection, _client) = with(GET).await;
            connection.request().await;
            let (written, took) = seconds(connection.write_answer(&[&many])).await;
            assert!(matches!((written, took), (Err(WriteError::TooSlow), 60)), "{took} s");
            assert!(matches!(seconds(connection.next_request()).await, (Ok(None), 0)), "it is over");

            let (mut connection, mut client) = with(GET).await;
            connection.request().await;
            let reading = async {
                let mut read = 0;
                let mut piece = vec![0; 512 * 1024];
                while read < many.len() {
                    tokio::time::sleep(50 * SECOND).await;
                    read += client.read(&mut piece).await.expect("it is open");
                }
            };
            let parts = [&*many];
            let (written, ()) = tokio::join!(connection.write_answer(&parts), reading);
            written.expect("it is read in the end");

            let (mut connection, client) = with(GET).await;
            connection.request().await;
            drop(client);
            let written = connection.write_answer(&[&many]).await;
            assert!(matches!(written, Err(WriteError::Gone)), "{written:?}");
        });
    }

    /// FR-08: who still sends hears the answer, and is listened to for a while.
    #[test]
    fn a_connection_is_closed_slowly_where_more_may_be_coming() {
        run(async {
            let body = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\nab";
            for (case, text, flood, expected) in [
                ("all is read", GET.to_owned(), 0, 0..1),
                ("a body", body.to_owned(), 0, 5_000..5_010),
                ("a body of which nothing came yet", body.replace("ab", ""), 0, 5_000..5_010),
                ("a body that comes", body.to_owned(), 1_000_000, 5_000..5_010),
                ("a body that comes fast", body.to_owned(), 9_000_000, 0..4_000),
                ("the next request", GET.repeat(2), 0, 5_000..5_010),
            ] {
                let (mut connection, mut client) = with(&text).await;
                connection.request().await;
                connection.decide_persistence(true, false);
                connection.write_answer(&[ANSWER]).await.expect("there is room");
                let begun = Instant::now();
                let closing = async {
                    connection.close().await;
                    begun.elapsed().as_millis()
                };
                let sending = async {
                    let mut answer = Vec::new();
                    client.read_to_end(&mut answer).await.expect("the answer ends at once");
                    assert!(answer == ANSWER && begun.elapsed() < SECOND, "{case}");
                    // A millisecond for each 10,000 bytes.
                    for _ in 0..flood / 10_000 {
                        if client.write_all(&[b'x'; 10_000]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let (took, ()) = tokio::join!(closing, sending);
                assert!(expected.contains(&took), "{case}: {took} ms");
            }
            let (mut connection, _client) = with("GET /a HT").await;
            assert_eq!(connection.next_request().await.unwrap_err(), RequestError::Timeout);
            assert_eq!(connection.refused_request(), Some((&b"GET"[..], &b"/a"[..])), "what came of it is still known");
            let ((), took) = seconds(connection.close()).await;
            assert_eq!(took, 5, "the rest of a head may be coming");

            let (mut connection, client) = with(body).await;
            connection.request().await;
            drop(client);
            let ((), took) = seconds(connection.close()).await;
            assert_eq!(took, 0, "who has left is not waited for");
        });
    }

    /// FR-08: to an older client the end of the connection would be the end of the answer. Everybody else sees that it broke
    /// off, and gets what there is of it.
    #[test]
    fn an_answer_that_breaks_off_is_reset_only_where_nothing_else_would_tell() {
        run(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("its address");
            for (version, is_begun, is_reset) in
                [(0, true, true), (0, false, false), (1, true, false), (1, false, false)]
            {
                let mut client = TcpStream::connect(address).await.expect("open");
                let (ours, _) = listener.accept().await.expect("one comes");
                let (mut connection, ..) = connected();
                connection.stream = Either::Left(ours);
                let text = format!("GET / HTTP/1.{version}\r\nHost: a\r\n\r\n");
                client.write_all(text.as_bytes()).await.expect("there is room");
                // While nothing but this is waited for, the clock stands still.
                readable(&connection.stream).await.expect("it is open");
                connection.request().await;
                connection.decide_persistence(false, true);
                if is_begun {
                    connection.write_answer(&[ANSWER]).await.expect("there is room");
                }
                connection.abort();
                connection.close().await;
                let end = client.read_to_end(&mut Vec::new()).await;
                assert_eq!(end.is_err(), is_reset, "HTTP/1.{version}, begun: {is_begun}, {end:?}");
            }
        });
    }

    #[test]
    fn a_connection_holds_no_buffer_while_it_waits() {
        run(async {
            let (mut connection, mut client, _process) = connected();
            // Behind what fills the buffer exactly, the socket says that there is more.
            let full = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(8192 - 32));
            for text in [GET, &full, GET] {
                assert!(matches!(poll(&mut std::pin::pin!(connection.next_request())), Poll::Pending));
                assert_eq!(connection.read_buffer.capacity(), 0);
                client.write_all(text.as_bytes()).await.expect("there is room");
                drop(connection.request().await);
                connection.answer().await;
            }
        });
    }

    fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }
}
