//! A browser's connection: requests in, answers out, one after the other.
//!
//! - *Heads* come whole, within their deadline and limits, later ones too. While an answer is due, what else arrives waits;
//!   only whether the client leaves is watched.
//! - *Bodies* are read when somebody asks for them, within a deadline for each piece. `Expect: 100-continue` is answered then.
//! - *Answers* must find somebody who reads them.
//! - *Whether it goes on* after an answer is decided in one place, [`Connection::persists`], before the answer's head is
//!   written. Where it ends while the client may still be sending, it is closed slowly ([`Connection::close`]), so that the
//!   answer is not lost to a reset.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::http::body::BodyDecoder;
use crate::http::buffer::{Buffer, BufferPool, PIECE};
use crate::http::head::{HeadError, HeadLimits, RequestHead};
use crate::http::timer::{Elapsed, Timer};

/// One connection.
pub struct Connection {
    stream: Stream,
    settings: Rc<Settings>,
    pool: BufferPool,
    /// What has been read and not used: the beginning of a request, or of the rest of a body.
    read: Buffer,
    timer: Timer,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Since when nothing is under way.
    idle_since: Instant,
    is_new: bool,
    /// Whether the connection goes on after the answer that is due.
    is_persistent: bool,
    /// Whether the answer that is due has begun.
    has_answered: bool,
    is_http_1_1: bool,
    body: BodyDecoder,
    /// How many bytes of the body may still come.
    body_allowance: u64,
    /// Whether the client waits to be told that its body may come.
    expects_continue: bool,
}

/// What all connections of a worker are held to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a head may be.
    pub head: HeadLimits,
    /// How long a body may be, in bytes.
    pub body: u64,
    /// How long a client may take.
    pub timeouts: Timeouts,
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the head of a request, from its first byte to its last, and on a new connection until there is one.
    pub head: Duration,
    /// For the next piece of a request's body.
    pub body: Duration,
    /// For taking the next piece of an answer.
    pub answer: Duration,
}

impl Connection {
    /// A connection that was just accepted. Once `shutdown` is ready it ends as soon as nothing is under way.
    pub fn new(
        stream: Stream,
        settings: Rc<Settings>,
        pool: BufferPool,
        shutdown: WaitForCancellationFutureOwned,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            read: pool.none(),
            pool,
            timer: Timer::new(now + settings.timeouts.head),
            settings,
            shutdown: Box::pin(shutdown),
            idle_since: now,
            is_new: true,
            is_persistent: true,
            has_answered: false,
            is_http_1_1: true,
            body: BodyDecoder::Done,
            body_allowance: 0,
            expects_continue: false,
        }
    }

    /// The next request; `None` once the connection ends: either side wants it, or nothing came for long.
    ///
    /// # Errors
    /// [`RequestError`] for what is no request. Nothing more can be read then.
    pub async fn next_request(&mut self) -> Result<Option<RequestHead>, RequestError> {
        let timeouts = self.settings.timeouts;
        if !self.is_persistent {
            return Ok(None);
        }
        let mut deadline = self.idle_since + if self.is_new { timeouts.head } else { KEEP_ALIVE };
        let mut scanned = 0;
        loop {
            if scanned < self.read.len() {
                if scanned == 0 {
                    deadline = Instant::now() + timeouts.head;
                }
                if self.read[scanned..].contains(&b'\n')
                    && let Some(head) = RequestHead::parse(&mut self.read, self.settings.head)?
                {
                    self.begin(&head);
                    return Ok(Some(head));
                }
                if self.read.len() > self.settings.head.length {
                    return Err(HeadError::TooLarge.into());
                }
                scanned = self.read.len();
            }
            let is_idle = self.read.is_empty();
            let Self { stream, read, timer, shutdown, settings, .. } = self;
            let arrival = async {
                tokio::select! {
                    biased;
                    count = async {
                        // No buffer before there is something to put into it.
                        stream.readable().await?;
                        read.make_room(MIN_READ);
                        stream.read(read, settings.head.length).await
                    } => count,
                    // A socket may say that it is readable and not be.
                    () = shutdown.as_mut(), if is_idle => Ok(0),
                }
            };
            match timer.within(deadline, arrival).await {
                Ok(Ok(count)) if count > 0 => {}
                Err(Elapsed) if !is_idle => return Err(RequestError::Timeout),
                Ok(_) | Err(Elapsed) => return Ok(None),
            }
        }
    }

    fn begin(&mut self, head: &RequestHead) {
        self.is_new = false;
        self.is_persistent = head.is_persistent;
        self.is_http_1_1 = head.is_http_1_1;
        self.has_answered = false;
        self.body = BodyDecoder::new(head.body);
        self.body_allowance = self.settings.body;
        self.expects_continue = head.expects_continue && !self.body.is_done();
    }

    /// The next piece of the request's body; `None` once it has ended. Nothing is lost if the caller stops waiting.
    ///
    /// # Errors
    /// [`BodyError`]; the rest of the body cannot be read then.
    pub async fn next_piece(&mut self) -> Result<Option<Buffer>, BodyError> {
        while !self.body.is_done() {
            if self.read.is_empty() && !matches!(self.body, BodyDecoder::Broken) {
                self.fill_body().await?;
            }
            let extent = self.body.decode(&mut self.read).map_err(|_| BodyError::Malformed)?;
            let mut piece = self.read.split_off_front(extent.used);
            piece.truncate(extent.data);
            self.body_allowance = self.body_allowance.checked_sub(extent.data as u64).ok_or(BodyError::TooLarge)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Reads more of the body.
    async fn fill_body(&mut self) -> Result<(), BodyError> {
        if std::mem::take(&mut self.expects_continue)
            && !matches!(self.stream.try_write(&[IoSlice::new(CONTINUE)]), Ok(count) if count == CONTINUE.len())
        {
            // Whoever leaves no room for 25 bytes does not read.
            return Err(BodyError::Gone(io::ErrorKind::WriteZero.into()));
        }
        let most =
            self.body.remaining().and_then(|left| usize::try_from(left).ok()).unwrap_or(PIECE).clamp(MIN_READ, PIECE);
        self.read.make_room(most);
        let deadline = Instant::now() + self.settings.timeouts.body;
        let Self { stream, read, timer, .. } = self;
        match timer.within(deadline, stream.read(read, most)).await {
            Ok(Ok(0)) => Err(BodyError::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(BodyError::Gone(error)),
            Err(Elapsed) => Err(BodyError::Timeout),
        }
    }

    /// What `work` comes to, unless the client leaves before that: whoever closes the connection, or its own half of it, takes
    /// the call along. What else arrives is kept for its turn, up to a bound.
    ///
    /// # Errors
    /// [`ClientLeft`]; `work` is dropped then.
    pub async fn unless_client_leaves<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ClientLeft> {
        tokio::select! {
            biased;
            output = work => Ok(output),
            () = self.client_leaves() => Err(ClientLeft),
        }
    }

    async fn client_leaves(&mut self) {
        while self.read.len() < MAX_READ_AHEAD {
            if self.stream.readable().await.is_err() {
                return;
            }
            let most = MAX_READ_AHEAD - self.read.len();
            self.read.make_room(most.min(MIN_READ));
            if !matches!(self.stream.read(&mut self.read, most).await, Ok(count) if count > 0) {
                return;
            }
        }
        std::future::pending().await
    }

    /// Whether the connection goes on after the answer whose head is about to be written. This is where that is decided: not
    /// if the client or `is_last` wants it to end, and not if nobody can tell where the next request begins, since the body
    /// of this one was not read to its end.
    pub fn persists(&mut self, is_last: bool) -> bool {
        self.is_persistent &= !is_last && self.body.is_done();
        self.is_persistent
    }

    /// The version that the answer's head begins with: no newer one than the client's.
    pub fn version(&self) -> &'static str {
        if self.is_http_1_1 { "HTTP/1.1 " } else { "HTTP/1.0 " }
    }

    /// The field that tells the client what [`Connection::persists`] says, as a line; nothing where that goes without saying.
    pub fn persistence_field(&self) -> &'static [u8] {
        match (self.is_persistent, self.is_http_1_1) {
            (false, true) => b"connection: close\r\n",
            (true, false) => b"connection: keep-alive\r\n",
            (true, true) | (false, false) => b"",
        }
    }

    /// Whether the client takes chunks; one of HTTP/1.0 takes the end of the connection for the end of the body (RFC 9112
    /// section 6.1).
    pub fn takes_chunks(&self) -> bool {
        self.is_http_1_1
    }

    /// Whether some of the answer has been written.
    pub fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Writes a part of the answer, all of `parts` in one piece if the client takes it.
    ///
    /// # Errors
    /// [`WriteError`]; the connection ends then.
    pub async fn write(&mut self, parts: &[&[u8]]) -> Result<(), WriteError> {
        self.has_answered = true;
        let written = self.write_all(parts).await;
        self.is_persistent &= written.is_ok();
        written
    }

    async fn write_all(&mut self, parts: &[&[u8]]) -> Result<(), WriteError> {
        let mut slices = [IoSlice::new(&[]); MAX_PARTS];
        let mut slices = &mut slices[..parts.len()];
        slices.iter_mut().zip(parts).for_each(|(slice, part)| *slice = IoSlice::new(part));
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.stream.try_write(slices) {
                Ok(0) => return Err(WriteError::Gone(io::ErrorKind::WriteZero.into())),
                Ok(count) => IoSlice::advance_slices(&mut slices, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let deadline = Instant::now() + self.settings.timeouts.answer;
                    let Self { stream, timer, .. } = self;
                    match timer.within(deadline, stream.writable()).await {
                        Ok(ready) => ready.map_err(WriteError::Gone)?,
                        Err(Elapsed) => return Err(WriteError::TooSlow),
                    }
                }
                Err(error) => return Err(WriteError::Gone(error)),
            }
        }
        Ok(())
    }

    /// The answer has been written: the connection waits for the next request.
    pub fn finish(&mut self) {
        self.idle_since = Instant::now();
        if self.read.is_empty() {
            self.read = self.pool.none();
        }
    }

    /// The answer cannot be brought to its end: the connection ends, so that nobody takes what there is of it for the whole.
    pub fn abort(&mut self) {
        self.is_persistent = false;
    }

    /// Ends the connection. Where more may be coming, to close at once would reset the connection, and our answer with it
    /// (RFC 9112 section 9.6): it is listened to for a while.
    pub async fn close(mut self) {
        let is_all_read = self.body.is_done() && self.read.is_empty();
        if self.stream.shutdown().await.is_err() || is_all_read {
            return;
        }
        let mut left = MAX_DISCARDED;
        let deadline = Instant::now() + LINGER;
        let Self { stream, read, timer, .. } = &mut self;
        let _ = timer
            .within(deadline, async {
                loop {
                    read.clear();
                    read.make_room(MIN_READ);
                    match stream.read(read, left).await {
                        Ok(count) if count > 0 => left -= count,
                        _ => break,
                    }
                }
            })
            .await;
    }
}

/// Who is at the other end.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Stream {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Unix(stream) => stream.writable().await,
        }
    }

    /// Reads what there is, as far as `into` has room, but not more than `most` bytes.
    async fn read(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.take(most as u64).read_buf(into).await,
            Self::Unix(stream) => stream.take(most as u64).read_buf(into).await,
        }
    }

    fn try_write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, parts) {
            (Self::Tcp(stream), [part]) => stream.try_write(part),
            (Self::Tcp(stream), _) => stream.try_write_vectored(parts),
            (Self::Unix(stream), _) => stream.try_write_vectored(parts),
        }
    }

    async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown().await,
            Self::Unix(stream) => stream.shutdown().await,
        }
    }
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
}

/// Why a request's body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Chunks that are none.
    #[error("the chunks of the body are malformed")]
    Malformed,
    /// More bytes than are taken.
    #[error("the body is longer than this gateway takes")]
    TooLarge,
    /// The next piece did not come in time.
    #[error("the body did not come in time")]
    Timeout,
    /// The client left.
    #[error("the client left in the middle of its body")]
    Gone(#[source] io::Error),
}

/// The client has closed the connection, or its half of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client left")]
pub struct ClientLeft;

/// Why an answer could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The client left.
    #[error("the client left before the answer's end")]
    Gone(#[source] io::Error),
    /// The client did not take the next piece in time.
    #[error("the client did not take the answer in time")]
    TooSlow,
}

/// How long an idle connection is kept: longer than front proxies keep theirs (nginx: 60 s), so that it is they who close.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long we listen to whoever has not heard yet that we are done.
const LINGER: Duration = Duration::from_secs(5);
/// How much we listen to, in bytes.
const MAX_DISCARDED: usize = 8 * 1024 * 1024;
/// How much is read while an answer is due, in bytes.
const MAX_READ_AHEAD: usize = 32 * 1024;
/// Room for what is read at least, in bytes.
const MIN_READ: usize = 4 * 1024;
/// Of how many parts one write may be.
const MAX_PARTS: usize = 4;
/// The interim answer to `Expect`.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
