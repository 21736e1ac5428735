//! A connection to a DataHUB: one exchange at a time, as a client speaks HTTP/1.1 to a server that it does not trust.
//!
//! Interim answers are skipped. An answer's body ends where its framing says so, or it breaks off with an error. Whenever
//! the framing is in doubt, or a byte is left over, the connection is never used again: the next call on it may be
//! somebody else's.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use zeroize::Zeroize as _;

use crate::http::body::{BodyDecoder, BodyLength, CHUNK_END, ChunkError, Extent, LAST_CHUNK, write_chunk_size};
use crate::http::buffer::{Buffer, BufferPool, MIN_READ};
use crate::http::head::{Fields, Framing, HeadLimits, ResponseHead};
use crate::http::timer::{Elapsed, Timer};
use crate::http::turn::{TURN_BYTES, Turn};

/// A connection of any kind.
pub type Stream = Box<dyn Duplex>;

/// What every kind of connection can do.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + std::fmt::Debug {}
impl<T: AsyncRead + AsyncWrite + Unpin + std::fmt::Debug> Duplex for T {}

/// One connection.
#[derive(Debug)]
pub struct ClientConnection {
    io: Io,
    timer: Timer,
    turn: Turn,
}

/// The stream and what has been read from it.
#[derive(Debug)]
struct Io {
    stream: Stream,
    /// What has been read and not used yet.
    read_buffer: Buffer,
    /// How much of that has been looked at for a head's end, in bytes.
    scanned: usize,
    /// Whether anything has come back since the last request was sent.
    has_begun: bool,
    /// How many interim answers have come since then.
    interim: usize,
}

/// An answer whose head is there.
#[derive(Debug)]
pub struct Response {
    head: ResponseHead,
    bytes: Buffer,
    /// How much of the body came with the head, in bytes.
    start: usize,
    /// The rest of the body.
    pub body: BodyDecoder,
    /// How its body is delimited.
    pub length: BodyLength,
    /// What Content-Length says, also of a body that is not sent: to HEAD, with a 304.
    pub content_length: Option<u64>,
    /// Whether the connection may be used again once the body has ended.
    pub is_reusable: bool,
    /// How long the connection is kept between two requests, if the other side says so.
    pub keep_alive: Option<Duration>,
}

impl Response {
    /// The final status, 200 or above.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The fields of its head.
    pub fn fields(&self) -> Fields<'_> {
        self.head.fields(&self.bytes)
    }

    /// Wipes the head and what came with it of the body.
    pub fn wipe(mut self) {
        self.bytes.zeroize();
    }

    /// What came of the body together with the head.
    pub fn start(&self) -> &[u8] {
        &self.bytes[self.head.length..self.head.length + self.start]
    }

    /// The final answer that `read` begins with, interim ones skipped; `None` if more must be read. It is taken out of
    /// `read` with what is there of its body. `interim` counts the interim answers of the call.
    ///
    /// # Errors
    /// [`ReceiveError::Invalid`] for what is no answer, or one that leaves its framing in doubt, and for interim answers
    /// without end.
    pub fn parse(read: &mut Buffer, is_head: bool, interim: &mut usize) -> Result<Option<Self>, ReceiveError> {
        let mut skipped = 0;
        let head = loop {
            let head = ResponseHead::parse(&read[skipped..], LIMITS);
            match head.map_err(|_| ReceiveError::Invalid("a head that is not HTTP"))? {
                Some(head) if head.status == 101 => return Err(ReceiveError::Invalid("an upgrade nobody asked for")),
                Some(head) if head.status < 200 && *interim >= MAX_INTERIM => {
                    return Err(ReceiveError::Invalid("one of too many interim ones"));
                }
                Some(head) if head.status < 200 => {
                    skipped += head.length;
                    *interim += 1;
                }
                head => break head,
            }
        };
        if skipped > 0 {
            drop(read.split_off_front(skipped));
        }
        let Some(head) = head else { return Ok(None) };
        let framing = Framing::of(head.fields(read)).map_err(ReceiveError::Invalid)?;
        let (length, content_length) = body_length(&head, &framing, is_head).map_err(ReceiveError::Invalid)?;
        let is_persistent = head.is_http_1_1 && !framing.closes;
        let mut body = BodyDecoder::new(length);
        // Malformed chunks are found again when the body is passed on, so that packets make no difference.
        let rest = &mut read[head.length..];
        let extent = body.decode(rest).unwrap_or(Extent { data: 0, used: rest.len() });
        let is_reusable = is_persistent && length != BodyLength::UntilClose && head.length + extent.used == read.len();
        let bytes = read.split_off_front(head.length + extent.used);
        let (start, keep_alive) = (extent.data, framing.keep_alive);
        Ok(Some(Self { head, bytes, start, body, length, content_length, is_reusable, keep_alive }))
    }
}

/// How long the body of an answer is (RFC 9112 section 6.3), and what Content-Length says.
fn body_length(
    head: &ResponseHead,
    framing: &Framing,
    is_head: bool,
) -> Result<(BodyLength, Option<u64>), &'static str> {
    let length = framing.body(head.is_http_1_1)?;
    Ok(match head.status {
        // A 204 has no length to announce, whatever it says (RFC 9110 section 8.6).
        204 => (BodyLength::None, None),
        status if is_head || status == 304 => (BodyLength::None, framing.content_length),
        _ => (length.unwrap_or(BodyLength::UntilClose), framing.content_length),
    })
}

impl ClientConnection {
    /// A connection on which nothing has been said.
    pub fn new(stream: Stream, pool: &BufferPool) -> Self {
        Self {
            io: Io { stream, read_buffer: pool.none(), scanned: 0, has_begun: false, interim: 0 },
            timer: Timer::new(Instant::now() + INITIAL_DEADLINE),
            turn: Turn::default(),
        }
    }

    /// Sends the beginning of a request, or all of it, and says whether the other side took it. If not, that is no error
    /// yet: it may have said why before it closed the connection (RFC 9112 section 9.6), so that an answer may still be
    /// there.
    ///
    /// # Errors
    /// [`Elapsed`] if it takes longer than `limit`.
    pub async fn send(&mut self, bytes: &[u8], limit: Duration) -> Result<bool, Elapsed> {
        let Self { io, timer, .. } = self;
        (io.scanned, io.has_begun, io.interim) = (0, false, 0);
        let sent = async {
            io.stream.write_all(bytes).await?;
            // Through TLS what was written is on its way only once it has been flushed.
            io.stream.flush().await
        };
        timer.within(limit, pin!(sent)).await.map(|sent: io::Result<()>| sent.is_ok())
    }

    /// Sends the body of a request, piece by piece out of `next`, until the body has ended, an answer has come, or the other
    /// side takes no more. It may take `limit` for each piece; how long `next` may take is for `next` to say.
    ///
    /// # Errors
    /// [`SendBodyError`]; the connection cannot be used any more then.
    pub async fn send_body<E>(
        &mut self,
        length: BodyLength,
        is_head: bool,
        mut next: impl AsyncFnMut() -> Result<Option<Buffer>, E>,
        limit: Duration,
    ) -> Result<Sent, SendBodyError<E>> {
        let Self { io, timer, .. } = self;
        let is_chunked = length == BodyLength::Chunked;
        loop {
            let piece = {
                let mut next = pin!(next());
                // The body is asked first: if it has ended, all of it went up, even if an answer is there.
                std::future::poll_fn(|cx| match next.as_mut().poll(cx) {
                    Poll::Ready(piece) => Poll::Ready(Ok(piece)),
                    Poll::Pending => io.poll_response(cx, is_head).map(Err),
                })
                .await
            };
            let piece = match piece {
                Ok(piece) => piece.map_err(SendBodyError::Source)?,
                Err(early) => return Ok(Sent::Early(Box::new(early?))),
            };
            let mut size = Vec::new();
            let parts: [&[u8]; 3] = match &piece {
                Some(piece) if is_chunked => {
                    write_chunk_size(piece.len(), &mut size);
                    [&size, piece, CHUNK_END]
                }
                Some(piece) => [piece, b"", b""],
                None if is_chunked => [LAST_CHUNK, b"", b""],
                None => return Ok(Sent::Whole),
            };
            match timer.within(limit, pin!(io.write_or_response(&parts, is_head))).await {
                Err(Elapsed) => return Err(SendBodyError::Stalled),
                Ok(Ok(Sent::Whole)) if piece.is_some() => {}
                Ok(sent) => return Ok(sent?),
            }
        }
    }

    /// The head of the final answer, which may take `limit`.
    ///
    /// # Errors
    /// [`ReceiveError`]; the connection cannot be used any more then.
    pub async fn receive(&mut self, is_head: bool, limit: Duration) -> Result<Response, ReceiveError> {
        let Self { io, timer, .. } = self;
        let received = std::future::poll_fn(|cx| io.poll_response(cx, is_head));
        timer.within(limit, received).await.unwrap_or(Err(ReceiveError::Stalled))
    }

    /// The next piece of an answer's `body`, which may take `limit`; `None` once it has ended.
    ///
    /// # Errors
    /// [`ResponseBodyError`]; the connection cannot be used any more then.
    pub async fn next_piece(
        &mut self,
        body: &mut BodyDecoder,
        limit: Duration,
    ) -> Result<Option<Buffer>, ResponseBodyError> {
        let Self { io, timer, turn } = self;
        while !body.is_done() {
            if let Some(room) = body.room(&io.read_buffer) {
                io.read_buffer.make_room(room);
                let read = io.stream.read_buf(&mut *io.read_buffer);
                let on_wait = || {
                    turn.renew();
                    Instant::now() + limit
                };
                match timer.until(on_wait, pin!(read)).await {
                    Ok(Ok(0)) if matches!(body, BodyDecoder::UntilClose) => {
                        *body = BodyDecoder::Done;
                        return Ok(None);
                    }
                    Ok(Ok(0)) => return Err(ResponseBodyError::Truncated),
                    Ok(Ok(count)) => turn.spend(count).await,
                    Ok(Err(error)) => return Err(ResponseBodyError::Lost(error)),
                    Err(Elapsed) => return Err(ResponseBodyError::Stalled),
                }
            }
            let piece = body.take_piece(&mut io.read_buffer)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Whether every byte that came has been used.
    pub fn is_drained(&self) -> bool {
        self.io.read_buffer.is_empty()
    }

    /// What the other side has done since its last answer, which was read to its end.
    pub fn since_answer(&mut self) -> SinceAnswer {
        let mut bytes = [0; TIMED_OUT[0].len()];
        // Without `unconstrained`, a task that has used up its turn would be told that there is nothing to read.
        let read = pin!(tokio::task::unconstrained(self.io.stream.read(&mut bytes)));
        match read.poll(&mut Context::from_waker(Waker::noop())) {
            _ if !self.is_drained() => SinceAnswer::Unasked,
            Poll::Pending => SinceAnswer::Nothing,
            Poll::Ready(Ok(0) | Err(_)) => SinceAnswer::Closed,
            // Some say so before they close (RFC 9110 section 15.5.9).
            Poll::Ready(Ok(_)) if TIMED_OUT.contains(&&bytes) => SinceAnswer::Closed,
            Poll::Ready(Ok(_)) => SinceAnswer::Unasked,
        }
    }
}

/// What has happened on a connection since its last answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinceAnswer {
    /// Nothing: another request may be sent.
    Nothing,
    /// The other side has closed it, or is about to.
    Closed,
    /// It has sent something that nobody asked for.
    Unasked,
}

impl Io {
    fn poll_response(&mut self, cx: &mut Context<'_>, is_head: bool) -> Poll<Result<Response, ReceiveError>> {
        let mut left = TURN_BYTES;
        loop {
            self.has_begun |= !self.read_buffer.is_empty();
            if let Some(response) = self.parse_response(is_head)? {
                return Poll::Ready(Ok(response));
            }
            self.read_buffer.make_room(MIN_READ);
            let Poll::Ready(read) = pin!(self.stream.read_buf(&mut *self.read_buffer)).poll(cx) else {
                // Many calls may wait at once, and none of them is to hold room for an answer so long.
                self.read_buffer.release();
                return Poll::Pending;
            };
            let count = match read {
                Ok(0) if self.has_begun => return Poll::Ready(Err(ReceiveError::Invalid("a head that breaks off"))),
                Ok(0) => return Poll::Ready(Err(ReceiveError::Closed)),
                Err(error) if self.has_begun => return Poll::Ready(Err(ReceiveError::Lost(error))),
                Err(error) => return Poll::Ready(Err(ReceiveError::before_a_byte(error))),
                Ok(count) => count,
            };
            if count >= left {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            left -= count;
        }
    }

    /// The answer that has been read. A head is judged by its first bytes, and whenever a line of it may have ended.
    fn parse_response(&mut self, is_head: bool) -> Result<Option<Response>, ReceiveError> {
        let more = self.read_buffer.get(self.scanned..).unwrap_or_default();
        if more.is_empty() {
            return Ok(None);
        }
        let is_worth_it = self.scanned == 0 || more.contains(&b'\n') || self.read_buffer.len() > LIMITS.length;
        let response =
            if is_worth_it { Response::parse(&mut self.read_buffer, is_head, &mut self.interim)? } else { None };
        // Interim answers have been taken out.
        self.scanned = self.read_buffer.len();
        Ok(response)
    }

    /// Writes all of `parts`, unless an answer comes or nothing more is taken before that.
    async fn write_or_response(&mut self, parts: &[&[u8]; 3], is_head: bool) -> Result<Sent, ReceiveError> {
        let mut slices = parts.map(IoSlice::new);
        let mut slices = slices.as_mut_slice();
        // Takes empty ones out at the front.
        IoSlice::advance_slices(&mut slices, 0);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(early) = self.poll_response(cx, is_head) {
                return Poll::Ready(Ok(Sent::Early(Box::new(early?))));
            }
            while !slices.is_empty() {
                match ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices)) {
                    Ok(count) if count > 0 => IoSlice::advance_slices(&mut slices, count),
                    _ => return Poll::Ready(Ok(Sent::NotTaken)),
                }
            }
            let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
            Poll::Ready(Ok(if flushed.is_ok() { Sent::Whole } else { Sent::NotTaken }))
        })
        .await
    }
}

/// How far the body of a request has got.
#[derive(Debug)]
pub enum Sent {
    /// To its end.
    Whole,
    /// An answer came before its end: nothing more of it is wanted.
    Early(Box<Response>),
    /// The other side takes no more; there may be an answer that says why.
    NotTaken,
}

/// Why the body of a request was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendBodyError<E> {
    /// Where it comes from.
    #[error("the body broke off")]
    Source(E),
    /// An answer that is not to be passed on came before its end.
    #[error(transparent)]
    Answer(#[from] ReceiveError),
    /// The other side did not take it in time.
    #[error("the body was not taken in time")]
    Stalled,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The connection was closed before a byte came back.
    #[error("the connection was closed without an answer")]
    Closed,
    /// The connection broke in the middle of an answer's head.
    #[error("the connection broke")]
    Lost(#[source] io::Error),
    /// It did not come in time.
    #[error("no answer came in time")]
    Stalled,
    /// What came is not to be passed on.
    #[error("the answer was {0}")]
    Invalid(&'static str),
}

impl ReceiveError {
    fn before_a_byte(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                Self::Closed
            }
            // Through TLS: the connection ended without saying so (`close_notify`).
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Lost(error),
        }
    }
}

/// Why the body of an answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    /// The connection ended before the body did.
    #[error("the answer broke off")]
    Truncated,
    /// The connection broke.
    #[error("the connection broke in the middle of an answer")]
    Lost(#[source] io::Error),
    /// Nothing came for too long.
    #[error("the answer stalled")]
    Stalled,
    /// Its chunks are malformed.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
}

/// How long the head of an answer may be, and how many fields it may have.
const LIMITS: HeadLimits = HeadLimits { length: 64 * 1024, fields: 128 };
/// How many interim answers a call may get; the registered ones have reason for a few.
const MAX_INTERIM: usize = 16;
/// How an answer begins by which a server says that it closes an idle connection.
const TIMED_OUT: [&[u8; 12]; 2] = [b"HTTP/1.1 408", b"HTTP/1.0 408"];
/// The first deadline of a new connection's timer, which any earlier one moves.
const INITIAL_DEADLINE: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use tokio_test::io::Builder;

    use super::*;
    use crate::http::turn::tests::turns;
    use crate::seal::tests::is_left;

    const HOUR: Duration = Duration::from_hours(1);
    const SECOND: Duration = Duration::from_secs(1);
    const EMPTY: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

    #[test]
    fn what_came_unasked_is_seen_also_by_a_task_that_has_used_up_its_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let ours = tokio::net::TcpStream::connect(listener.local_addr().expect("its address")).await.expect("open");
            let (mut theirs, _) = listener.accept().await.expect("one comes");
            let use_up = || {
                std::future::poll_fn(|cx| {
                    while let Poll::Ready(turn) = tokio::task::coop::poll_proceed(cx) {
                        turn.made_progress();
                    }
                    Poll::Ready(())
                })
            };

            let mut connection = connection(ours);
            use_up().await;
            assert_eq!(connection.since_answer(), SinceAnswer::Nothing);
            theirs.write_all(EMPTY).await.expect("it takes it");
            tokio::time::sleep(Duration::from_millis(50)).await;
            use_up().await;
            assert_eq!(connection.since_answer(), SinceAnswer::Unasked, "an answer to no request has come");
        });
    }

    #[test]
    fn a_connection_holds_no_buffer_while_it_waits_for_an_answer() {
        run(async {
            let (ours, mut theirs) = tokio::io::duplex(64);
            let mut connection = connection(ours);
            let (begin, rest) = EMPTY.split_at(9);
            assert!(connection.receive(false, HOUR).now_or_never().is_none());
            assert_eq!(connection.io.read_buffer.capacity(), 0);
            theirs.write_all(begin).await.expect("there is room");
            assert!(connection.receive(false, HOUR).now_or_never().is_none());
            assert_eq!(&**connection.io.read_buffer, begin, "what has come is kept");
            theirs.write_all(rest).await.expect("there is room");
            connection.receive(false, HOUR).await.expect("an answer");
        });
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(test)
    }

    fn connection(stream: impl Duplex + 'static) -> ClientConnection {
        ClientConnection::new(Box::new(stream), &BufferPool::default())
    }

    /// A body of `pieces`, with a second before each of them.
    fn slowly(pieces: &[&str]) -> impl AsyncFnMut() -> Result<Option<Buffer>, &'static str> {
        let pieces: Vec<_> = pieces.iter().map(|text| (*text).to_owned()).collect();
        let (pool, mut pieces) = (BufferPool::default(), pieces.into_iter());
        async move || {
            let Some(text) = pieces.next() else { return Ok(None) };
            tokio::time::sleep(SECOND).await;
            let mut piece = pool.take();
            piece.extend_from_slice(text.as_bytes());
            Ok(Some(piece))
        }
    }

    /// What becomes of a request with a body in two pieces: how far it got, and the answer.
    async fn exchanged(
        stream: impl Duplex + 'static,
        length: BodyLength,
    ) -> Result<(&'static str, Response), SendBodyError<&'static str>> {
        let mut connection = connection(stream);
        if !connection.send(b"head", HOUR).await.expect("in time") {
            return Ok(("not begun", connection.receive(false, HOUR).await?));
        }
        match connection.send_body(length, false, slowly(&["bo", "dy"]), HOUR).await? {
            Sent::Early(response) => Ok(("early", *response)),
            Sent::Whole => Ok(("whole", connection.receive(false, HOUR).await?)),
            Sent::NotTaken => Ok(("not taken", connection.receive(false, HOUR).await?)),
        }
    }

    /// An answer that arrives in pieces of `step` bytes, after which the connection ends: the head, the body, and whether
    /// that was all; or what is wrong with it.
    async fn arrived(text: &str, step: usize, is_head: bool) -> Result<(Response, String, bool), String> {
        let (ours, mut theirs) = tokio::io::duplex(step);
        let reading = async {
            let mut connection = connection(ours);
            let mut response = connection.receive(is_head, HOUR).await.map_err(|error| format!("{error:?}"))?;
            let mut read = response.start().to_vec();
            while !response.body.is_done() {
                let piece = connection.next_piece(&mut response.body, HOUR).await;
                read.extend(piece.map_err(|error| format!("{error:?}"))?.iter().flat_map(|piece| piece.iter()));
            }
            Ok((response, String::from_utf8(read).expect("ASCII"), connection.is_drained()))
        };
        let writing = async {
            let _ = theirs.write_all(text.as_bytes()).await;
            drop(theirs);
        };
        tokio::join!(reading, writing).0
    }

    /// FR-08, FR-09: what was said before the connection was closed counts, whichever of the two is noticed first.
    #[test]
    fn a_body_that_is_not_taken_may_have_an_answer() {
        let closed = || io::ErrorKind::BrokenPipe.into();
        let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n";
        run(async {
            let scripts = [
                ("not begun", Builder::new().write_error(closed()).read(answer).build()),
                ("not taken", Builder::new().write(b"head").write_error(closed()).read(answer).build()),
                ("not taken", Builder::new().write(b"head").write(b"bo").write_error(closed()).read(answer).build()),
                ("early", Builder::new().write(b"head").read(answer).build()),
                ("early", Builder::new().write(b"head").write(b"bo").read(answer).build()),
                ("whole", Builder::new().write(b"head").write(b"bo").write(b"dy").wait(SECOND).read(answer).build()),
                ("whole", Builder::new().write(b"head").write(b"bo").write(b"dy").read(answer).build()),
            ];
            for (expected, script) in scripts {
                let (sent, response) = exchanged(script, BodyLength::Known(4)).await.expect("there is an answer");
                assert_eq!((sent, response.status()), (expected, 413));
            }
            // Who takes nothing more without saying so is not asked for ever.
            for (room, expected) in [(6, "not taken"), (8, "whole")] {
                let answers = Builder::new().wait(5 * SECOND).read(answer).build();
                let stream = tokio::io::join(answers, io::Cursor::new(vec![0; room].into_boxed_slice()));
                let (sent, response) = exchanged(stream, BodyLength::Known(4)).await.expect("there is an answer");
                assert_eq!((sent, response.status()), (expected, 413));
            }
            let script = Builder::new().write(b"head").write_error(closed()).build();
            let none = exchanged(script, BodyLength::Known(4)).await;
            assert!(matches!(none, Err(SendBodyError::Answer(ReceiveError::Closed))), "{none:?}");
            let script = Builder::new().write(b"head").read(b"HTTP/1.1 2").read_error(closed()).build();
            let none = exchanged(script, BodyLength::Known(4)).await;
            assert!(matches!(none, Err(SendBodyError::Answer(ReceiveError::Lost(_)))), "{none:?}");
        });
    }

    /// PR-09: an interim answer is not the answer, whenever it comes.
    #[test]
    fn a_body_goes_on_after_an_interim_answer() {
        run(async {
            for interim in ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </a>"] {
                let interim = format!("HTTP/1.1 {interim}\r\n\r\n");
                let mut script = Builder::new();
                script.write(b"head").read(interim.as_bytes()).write(b"bo").read(interim.repeat(2).as_bytes());
                script.write(b"dy").wait(SECOND).read(interim.as_bytes()).read(EMPTY);
                let (sent, response) = exchanged(script.build(), BodyLength::Known(4)).await.expect("an answer");
                assert_eq!((sent, response.status(), response.is_reusable), ("whole", 204, true), "{interim}");
            }
            let upgrade = Builder::new().write(b"head").read(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").build();
            let refused = exchanged(upgrade, BodyLength::Known(4)).await;
            assert!(matches!(refused, Err(SendBodyError::Answer(ReceiveError::Invalid(_)))), "{refused:?}");
        });
    }

    /// RFC 9110 section 15.5.9: a 408 that nobody asked for says that an idle connection is closed, and nothing else does.
    #[test]
    fn a_server_may_say_that_it_closes_an_idle_connection() {
        run(async {
            for (said, expected) in [
                ("", SinceAnswer::Nothing),
                ("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n", SinceAnswer::Closed),
                ("HTTP/1.0 408 Request Timeout\r\n\r\n", SinceAnswer::Closed),
                ("HTTP/1.1 400 Bad Request\r\n\r\n", SinceAnswer::Unasked),
                ("HTTP/1.1 40", SinceAnswer::Unasked),
            ] {
                let (ours, mut theirs) = tokio::io::duplex(1024);
                let mut connection = connection(ours);
                theirs.write_all(said.as_bytes()).await.expect("there is room");
                assert_eq!(connection.since_answer(), expected, "{said}");
            }
        });
    }

    /// PR-10: session tickets and new keys are no answers.
    #[test]
    fn what_tls_says_by_itself_is_not_something_unasked() {
        use rustls::pki_types::{PrivateKeyDer, ServerName};
        use tokio_rustls::{TlsAcceptor, TlsConnector};

        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certified.cert.der().clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
        let server = server.with_safe_default_protocol_versions().expect("known versions").with_no_client_auth();
        let server = server.with_single_cert(vec![certified.cert.der().clone()], key).expect("its key");
        let client = rustls::ClientConfig::builder_with_provider(provider);
        let client = client.with_safe_default_protocol_versions().expect("known versions");
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let connector = TlsConnector::from(Arc::new(client));
        run(async {
            for (is_end, expected) in [(true, SinceAnswer::Closed), (false, SinceAnswer::Unasked)] {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                let name = ServerName::try_from("localhost").expect("a name");
                let (ours, theirs) = tokio::join!(connector.connect(name, ours), acceptor.accept(theirs));
                let (mut connection, mut theirs) = (connection(ours.expect("trusted")), theirs.expect("trusted"));
                theirs.get_mut().1.refresh_traffic_keys().expect("TLS 1.3");
                theirs.flush().await.expect("there is room");
                assert_eq!(connection.since_answer(), SinceAnswer::Nothing, "tickets and a key update");
                if is_end {
                    theirs.shutdown().await.expect("there is room");
                } else {
                    theirs.write_all(EMPTY).await.expect("there is room");
                    theirs.flush().await.expect("there is room");
                }
                assert_eq!(connection.since_answer(), expected);
            }
        });
    }

    #[test]
    fn a_server_says_how_long_it_keeps_a_connection() {
        for (fields, expected) in [
            ("", None),
            ("Keep-Alive: timeout=5\r\n", Some(5)),
            ("keep-alive: TimeOut = 5 , max=100\r\n", Some(5)),
            ("Keep-Alive: max=100\r\nKeep-Alive: timeout=7\r\nKeep-Alive: timeout=6\r\n", Some(6)),
            ("Keep-Alive: timeout=5, max=0\r\n", Some(0)),
            ("Keep-Alive: timeout=0\r\n", Some(0)),
            ("Keep-Alive: timeout=18446744073709551615\r\n", Some(u64::MAX)),
            ("Keep-Alive: timeout=18446744073709551616\r\n", None),
            ("Keep-Alive: timeout=-1, timeout=, =5, timeout, \u{e9}=1\r\n", None),
            ("Connection: keep-alive\r\n", None),
        ] {
            let mut read = BufferPool::default().take();
            read.extend_from_slice(format!("HTTP/1.1 204 No Content\r\n{fields}\r\n").as_bytes());
            let response = Response::parse(&mut read, false, &mut 0).expect("good").expect("whole");
            assert_eq!(response.keep_alive, expected.map(Duration::from_secs), "{fields}");
        }
    }

    /// PR-10.
    #[test]
    fn a_call_gets_a_few_interim_answers_and_not_one_more() {
        let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
        for step in [1, 7, 1 << 20] {
            for (count, is_taken) in [(0, true), (1, true), (16, true), (17, false), (100_000, false)] {
                let bytes = [interim.repeat(count), EMPTY.to_vec()].concat();
                let (mut read, mut interim) = (BufferPool::default().take(), 0);
                let mut response = Ok(None);
                for piece in bytes.chunks(step) {
                    read.extend_from_slice(piece);
                    response = Response::parse(&mut read, false, &mut interim);
                    if response.is_err() {
                        break;
                    }
                }
                let status = response.map(|response| response.map(|response| response.status()));
                let is_final = matches!(status, Ok(Some(204)));
                let is_refused = matches!(status, Err(ReceiveError::Invalid("one of too many interim ones")));
                assert_eq!((is_final, is_refused), (is_taken, !is_taken), "{count} in pieces of {step}");
            }
        }
        run(async {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let mut connection = connection(ours);
            for _ in 0..3 {
                assert!(connection.send(b"head", HOUR).await.expect("in time"));
                theirs.write_all(&[interim.repeat(16), EMPTY.to_vec()].concat()).await.expect("there is room");
                assert_eq!(connection.receive(false, HOUR).await.expect("each call has its own").status(), 204);
            }
        });
    }

    /// A kept connection may end in the moment that it is used again, by a reset as well: the call was not taken then.
    #[test]
    fn a_reset_before_a_byte_has_closed_the_connection_and_one_behind_it_has_lost_an_answer() {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
        for (kind, has_begun, is_closed) in [
            (ConnectionReset, false, true),
            (ConnectionAborted, false, true),
            (BrokenPipe, false, true),
            (UnexpectedEof, false, true),
            (TimedOut, false, false),
            (ConnectionReset, true, false),
            (UnexpectedEof, true, false),
        ] {
            let mut script = Builder::new();
            script.write(b"head");
            if has_begun {
                script.read(b"HTTP/1.1 ");
            }
            let stream = script.read_error(kind.into()).build();
            // It would share the error.
            drop(script);
            run(async {
                let mut connection = connection(stream);
                assert!(connection.send(b"head", HOUR).await.expect("in time"));
                let error = connection.receive(false, HOUR).await.expect_err("no answer");
                assert_eq!(matches!(error, ReceiveError::Closed), is_closed, "{kind}, {has_begun}");
            });
        }
    }

    #[test]
    fn an_upgrade_is_no_interim_answer_and_a_final_one_is_none() {
        let parse = |begin: &str| {
            let mut read = BufferPool::default().take();
            read.extend_from_slice(format!("{begin}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").as_bytes());
            let response = Response::parse(&mut read, false, &mut 0);
            response.map(|response| response.map(|it| it.status())).map_err(|error| error.to_string())
        };
        assert_eq!(parse("HTTP/1.1 103 Early Hints\r\n\r\n"), Ok(Some(200)));
        assert_eq!(parse(&"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(MAX_INTERIM)), Ok(Some(200)));
        let refused = parse("HTTP/1.1 101 Switching Protocols\r\n\r\n");
        assert_eq!(refused, Err("the answer was an upgrade nobody asked for".to_owned()));
    }

    /// DS-04: an answer that is always there already lets others work.
    #[test]
    fn an_answer_without_end_leaves_the_others_their_turn() {
        for (case, head) in [
            ("a body", &b"HTTP/1.1 200 OK\r\n\r\n"[..]),
            ("chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n"),
        ] {
            let count = run(async {
                let (ours, mut theirs) = tokio::io::duplex(4 << 20);
                theirs.write_all(&[head, &vec![b'a'; 1 << 20]].concat()).await.expect("there is room");
                let mut connection = connection(ours);
                let reading = async {
                    let (mut response, mut left) =
                        (connection.receive(false, HOUR).await.expect("an answer"), 1_000_000);
                    while left > 0 {
                        let piece = connection.next_piece(&mut response.body, HOUR).await.expect("a body");
                        left -= piece.expect("it goes on").len().min(left);
                    }
                };
                turns(reading).await
            });
            assert!((10..=24).contains(&count), "{case}: {count} turns");
        }
        let count = run(async {
            let (ours, mut theirs) = tokio::io::duplex(4 << 20);
            let interim = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "a".repeat(60_000));
            theirs.write_all(interim.repeat(MAX_INTERIM).as_bytes()).await.expect("there is room");
            theirs.write_all(EMPTY).await.expect("there is room");
            let mut connection = connection(ours);
            turns(async { assert_eq!(connection.receive(false, HOUR).await.expect("an answer").status(), 204) }).await
        });
        assert!((10..=16).contains(&count), "interim answers: {count} turns");
    }

    /// FR-09.
    #[test]
    fn a_body_goes_up_in_the_framing_that_was_announced() {
        run(async {
            for (length, written) in [
                (BodyLength::Known(4), &["head", "bo", "dy"][..]),
                (BodyLength::Chunked, &["head", "2\r\n", "bo", "\r\n", "2\r\n", "dy", "\r\n", "0\r\n\r\n"]),
            ] {
                let mut script = Builder::new();
                for bytes in written {
                    script.write(bytes.as_bytes());
                }
                let (sent, response) =
                    exchanged(script.wait(SECOND).read(EMPTY).build(), length).await.expect("an answer");
                assert_eq!((sent, response.status()), ("whole", 204), "{length:?}");
            }
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let (mut connection, mut pieces) = (connection(ours), slowly(&["bo"]));
            let breaks_off = async || match pieces().await {
                Ok(Some(piece)) => Ok(Some(piece)),
                _ => Err("it broke off"),
            };
            let sent = connection.send_body(BodyLength::Chunked, false, breaks_off, HOUR).await;
            assert!(matches!(sent, Err(SendBodyError::Source("it broke off"))), "{sent:?}");
            drop(connection);
            let mut written = String::new();
            theirs.read_to_string(&mut written).await.expect("ASCII");
            assert_eq!(written, "2\r\nbo\r\n", "and no last chunk");
        });
    }

    /// DS-04.
    #[test]
    fn each_step_has_its_time() {
        run(async {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
            let (ours, mut theirs) = tokio::io::duplex(4);
            let mut connection = connection(ours);
            assert_eq!(connection.send(b"more than 4", SECOND).await, Err(Elapsed));
            let sent = connection.send_body(BodyLength::Known(4), false, slowly(&["body"]), SECOND).await;
            assert!(matches!(sent, Err(SendBodyError::Stalled)), "{sent:?}");
            let received = connection.receive(false, SECOND).await;
            assert!(matches!(received, Err(ReceiveError::Stalled)), "{received:?}");
            let receiving = connection.receive(false, SECOND);
            let (response, _) = tokio::join!(receiving, theirs.write_all(answer));
            let mut body = response.expect("an answer").body;
            let piece = connection.next_piece(&mut body, SECOND).await;
            assert!(matches!(piece, Err(ResponseBodyError::Stalled)), "{piece:?}");
            let (piece, _) = tokio::join!(connection.next_piece(&mut body, SECOND), theirs.write_all(b"ab"));
            assert_eq!(**piece.expect("in time").expect("the body"), *b"ab");
            assert!(connection.next_piece(&mut body, SECOND).await.expect("it has ended").is_none());
        });
    }

    /// A kept connection that is closed before a byte of the next answer came is told from one that breaks: that call may be
    /// made again.
    #[test]
    fn each_call_on_a_connection_begins_anew() {
        run(async {
            for (rest, expected) in [("", "Closed"), ("H", "Invalid(\"a head that breaks off\")")] {
                let (ours, mut theirs) = tokio::io::duplex(1024);
                let mut connection = connection(ours);
                for _ in 0..2 {
                    assert!(connection.send(b"head", HOUR).await.expect("in time"));
                    theirs.write_all(EMPTY).await.expect("there is room");
                    assert_eq!(connection.receive(false, HOUR).await.expect("an answer").status(), 204);
                }
                assert!(connection.send(b"head", HOUR).await.expect("in time"));
                theirs.write_all(rest.as_bytes()).await.expect("there is room");
                drop(theirs);
                let error = connection.receive(false, HOUR).await.expect_err("it is closed");
                assert_eq!(format!("{error:?}"), expected);
            }
        });
    }

    /// What a layer such as TLS keeps back until it is flushed goes up, too.
    #[test]
    fn nothing_is_kept_back() {
        run(async {
            for is_in_pieces in [false, true] {
                let (ours, mut theirs) = tokio::io::duplex(64);
                let mut connection = connection(tokio::io::BufWriter::new(ours));
                let hub = async {
                    let mut request = [0; 8];
                    theirs.read_exact(&mut request).await.expect("a request");
                    theirs.write_all(EMPTY).await.expect("somebody reads it");
                    request
                };
                let call = async {
                    if is_in_pieces {
                        assert!(connection.send(b"head", HOUR).await.expect("in time"));
                        let body = slowly(&["bo", "dy"]);
                        connection.send_body(BodyLength::Known(4), false, body, HOUR).await.expect("it is taken");
                    } else {
                        assert!(connection.send(b"headbody", HOUR).await.expect("in time"));
                    }
                    connection.receive(false, 5 * SECOND).await
                };
                let both = tokio::time::timeout(9 * SECOND, async { tokio::join!(call, hub) });
                let (answer, request) = both.await.expect("in time");
                assert_eq!((answer.expect("an answer").status(), &request), (204, b"headbody"));
            }
        });
    }

    /// PR-10.
    #[test]
    fn an_answer_is_the_same_however_it_arrives() {
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n3;x=y\r\nbcd\r\n0\r\nA: b\r\n\r\n";
        run(async {
            for (text, is_head, body, is_reusable) in [
                ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", false, "abcd", true),
                (chunks, false, "abcd", true),
                ("HTTP/1.1 100 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", false, "abcd", true),
                ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: a, CLOSE\r\n\r\nabcd", false, "abcd", false),
                ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nabcd", false, "abcd", false),
                ("HTTP/1.1 200 OK\r\n\r\nabcd", false, "abcd", false),
                ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", true, "", true),
                ("HTTP/1.1 204 No\r\nContent-Length: 4\r\n\r\n", false, "", true),
                ("HTTP/1.1 304 No\r\nContent-Length: 4\r\n\r\n", false, "", true),
                ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", false, "", true),
            ] {
                for step in [1, 2, 7, 1024] {
                    let (response, read, is_all) = arrived(text, step, is_head).await.expect("a whole answer");
                    assert_eq!((&*read, response.is_reusable, is_all), (body, is_reusable, true), "{text}");
                }
            }
        });
    }

    /// PR-10.
    #[test]
    fn what_breaks_off_or_is_in_doubt_is_never_whole() {
        run(async {
            for (text, expected) in [
                ("", "Closed"),
                ("HTTP/1.1 200 OK\r\nContent-Le", "Invalid(\"a head that breaks off\")"),
                ("HTTP/1.1 100 Continue\r\n\r\n", "Invalid(\"a head that breaks off\")"),
                ("SSH-2.0-a\r\n", "Invalid(\"a head that is not HTTP\")"),
                (
                    "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
                    "Invalid(\"a framing that is ambiguous\")",
                ),
                (
                    "HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nabcd",
                    "Invalid(\"a content length that is no number\")",
                ),
                (
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabcd",
                    "Invalid(\"a transfer coding that is not chunked\")",
                ),
                (
                    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                    "Invalid(\"a framing that is ambiguous\")",
                ),
                (
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
                    "Invalid(\"a framing that is ambiguous\")",
                ),
                ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd", "Truncated"),
                ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n", "Truncated"),
                ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\nx", "Chunks(ChunkError)"),
                ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx", "Chunks(ChunkError)"),
            ] {
                for step in [1, 2, 7, 1024] {
                    let error = arrived(text, step, false).await.map(|(_, body, _)| body);
                    assert_eq!(error, Err(expected.to_owned()), "{text}");
                }
            }
        });
    }

    /// PR-10: what is left over may be taken for the answer to somebody else's call.
    #[test]
    fn a_connection_on_which_anything_is_left_is_not_used_again() {
        run(async {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
            for (case, pieces, is_good) in [
                ("nothing", &[answer][..], true),
                ("the next answer", &[answer, "HTTP/1.1 200 OK\r\n"], false),
                ("the next answer in the same piece", &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabH"], false),
                ("the next answer behind half a body", &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", "bH"], false),
                ("a body that none should have", &["HTTP/1.1 204 OK\r\nContent-Length: 1\r\n\r\na"], false),
            ] {
                let (ours, mut theirs) = tokio::io::duplex(1024);
                let mut connection = connection(ours);
                let mut pieces = pieces.iter();
                let mut send = async || {
                    if let Some(piece) = pieces.next() {
                        theirs.write_all(piece.as_bytes()).await.expect("there is room");
                    }
                };
                send().await;
                let mut response = connection.receive(false, HOUR).await.expect("an answer");
                send().await;
                while connection.next_piece(&mut response.body, HOUR).await.expect("a whole body").is_some() {}
                // Whoever has one to keep asks the first two, and whoever takes one that was kept the last.
                let is_kept = response.is_reusable && connection.is_drained();
                let is_open = connection.since_answer() == SinceAnswer::Nothing;
                assert_eq!((is_kept && is_open, is_open), (is_good, is_good), "{case}");
                drop(theirs);
                assert_ne!(connection.since_answer(), SinceAnswer::Nothing, "{case}: it is closed");
            }
        });
    }

    /// CR-11: a token endpoint's answer holds tokens, and its buffer goes back to the pool.
    #[test]
    fn an_answer_is_wiped_if_it_is_told_so() {
        let pool = BufferPool::default();
        let answer = || {
            let mut read = pool.take();
            read.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n");
            read.extend_from_slice("canary--".repeat(8).as_bytes());
            Response::parse(&mut read, false, &mut 0).expect("good").expect("whole")
        };
        assert!(is_left(answer(), Response::start, drop), "what is not wiped can be read, so that this test sees it");
        assert!(!is_left(answer(), Response::start, Response::wipe));
    }
}
