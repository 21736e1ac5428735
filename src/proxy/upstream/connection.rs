//! One connection: a request out, the head of its answer in.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use actix_web::web::{Buf, Bytes, BytesMut, Payload};
use futures_util::Stream as _;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::context::RequestContext;
use crate::datahub::transport::Stream;
use crate::proxy::body::Body;
use crate::proxy::framing::Chunks;
use crate::proxy::request::Framing;
use crate::proxy::upstream::{Deadlines, SendError};

/// A connection to a DataHUB, on which one call a time runs.
pub struct Connection {
    stream: Stream,
    /// Bytes that were read and not used yet.
    pub(super) read: BytesMut,
    /// Whether anything has come back since the last request was sent.
    has_begun: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// What has come once a head is there.
pub(super) struct Exchanged {
    pub(super) head: Head,
    pub(super) length: Length,
    pub(super) is_reusable: bool,
    /// What is left of the request's body, if the answer came before its end.
    pub(super) unsent: Option<Payload>,
}

impl Connection {
    /// A connection on which nothing has been said.
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, read: BytesMut::new(), has_begun: false }
    }

    /// Sends a request and reads the head of its final answer.
    pub(super) async fn exchange(
        &mut self,
        head: &[u8],
        body: Body,
        framing: Framing,
        is_head: bool,
        context: &RequestContext,
        deadlines: &Deadlines,
    ) -> Result<Exchanged, SendError> {
        self.has_begun = false;
        // A DataHUB that takes no more may have said why before it closed the connection (RFC 9112 section 9.6), so that
        // it is the answer's head that tells how this went, and not the error of a write.
        let Sent { is_whole, early, unsent } = match body {
            Body::Held(body) => {
                let both;
                let message = if body.is_empty() {
                    head
                } else {
                    both = [head, &body].concat();
                    &both
                };
                let is_whole = within(deadlines.idle, self.write(message)).await?.is_ok();
                Sent { is_whole, early: None, unsent: None }
            }
            Body::Streamed(payload) => match within(deadlines.idle, self.write(head)).await? {
                Ok(()) => self.send_body(payload, framing, context, deadlines).await?,
                Err(_) => Sent { is_whole: false, early: None, unsent: Some(payload) },
            },
        };
        let (head, is_persistent) = match early {
            Some(answer) => answer,
            None => within(deadlines.first_byte, std::future::poll_fn(|cx| self.poll_head(cx))).await??,
        };
        let length = Length::of(&head, is_head)?;
        let is_reusable = is_whole && is_persistent && !matches!(length, Length::UntilClose);
        Ok(Exchanged { head, length, is_reusable, unsent })
    }

    /// Through TLS what was written is on its way only once it has been flushed.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends the body until it has ended, or until an answer comes or nothing more is taken before that.
    async fn send_body(
        &mut self,
        mut payload: Payload,
        framing: Framing,
        context: &RequestContext,
        deadlines: &Deadlines,
    ) -> Result<Sent, SendError> {
        let mut pending = Pending::default();
        let mut has_ended = false;
        let mut is_flushed = true;
        loop {
            // The browser has its own time for the next bytes of its body, and no longer.
            let is_waiting = pending.is_empty() && is_flushed && !has_ended;
            let limit = if is_waiting { Duration::MAX } else { deadlines.idle };
            let step = std::future::poll_fn(|cx| {
                if let Poll::Ready(answer) = self.poll_head(cx) {
                    return Poll::Ready(Ok(Step::Answered(answer?)));
                }
                if !pending.is_empty() {
                    is_flushed = false;
                    let written = std::task::ready!(pending.poll_write(Pin::new(&mut self.stream), cx));
                    return Poll::Ready(Ok(match written {
                        Ok(0) | Err(_) => Step::NotTaken,
                        Ok(_) => Step::Progress,
                    }));
                }
                if !is_flushed {
                    let flushed = std::task::ready!(Pin::new(&mut self.stream).poll_flush(cx));
                    is_flushed = true;
                    return Poll::Ready(Ok(if flushed.is_ok() { Step::Progress } else { Step::NotTaken }));
                }
                if has_ended {
                    return Poll::Ready(Ok(Step::Done));
                }
                match std::task::ready!(Pin::new(&mut payload).poll_next(cx)) {
                    Some(Ok(piece)) => {
                        context.count_in(piece.len());
                        pending.enclose(piece, framing);
                    }
                    Some(Err(error)) => return Poll::Ready(Err(SendError::Body(error))),
                    None => {
                        has_ended = true;
                        if framing == Framing::Chunked {
                            pending.0[0] = Bytes::from_static(b"0\r\n\r\n");
                        }
                    }
                }
                Poll::Ready(Ok(Step::Progress))
            });
            match timeout(limit, step).await.map_err(|_| SendError::Stalled)?? {
                Step::Progress => {}
                Step::Done => return Ok(Sent { is_whole: true, early: None, unsent: None }),
                Step::Answered(answer) => {
                    return Ok(Sent { is_whole: false, early: Some(answer), unsent: Some(payload) });
                }
                Step::NotTaken => return Ok(Sent { is_whole: false, early: None, unsent: Some(payload) }),
            }
        }
    }

    /// The head of the final answer, and whether the connection may persist after it.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Head, bool), SendError>> {
        loop {
            self.has_begun |= !self.read.is_empty();
            if !self.read.is_empty()
                && let Some((head, is_persistent)) = Head::parse(&mut self.read)?
            {
                match head.status {
                    101 => return Poll::Ready(Err(SendError::Invalid("an upgrade nobody asked for"))),
                    100..200 => continue,
                    _ => return Poll::Ready(Ok((head, is_persistent))),
                }
            }
            if self.read.len() > LONGEST_HEAD {
                return Poll::Ready(Err(SendError::Invalid("a head that is too long")));
            }
            return Poll::Ready(Err(match std::task::ready!(self.poll_read(cx)) {
                Ok(0) if self.has_begun => SendError::Invalid("a head that breaks off"),
                Ok(0) => SendError::Closed,
                Ok(_) => continue,
                Err(error) if self.has_begun => SendError::Lost(error),
                Err(error) => SendError::lost(error),
            }));
        }
    }

    /// Reads what is there, into `read`; 0 is the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.capacity() - self.read.len() < LEAST_READ {
            self.read.reserve(READ_AHEAD);
        }
        std::pin::pin!(self.stream.read_buf(&mut self.read)).poll(cx)
    }

    /// Whether the other side has neither closed the connection nor said anything.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && self.poll_read(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

enum Step {
    Progress,
    Done,
    /// Before the body's end: nothing more of it is wanted.
    Answered((Head, bool)),
    /// The DataHUB takes no more; there may be an answer that says why.
    NotTaken,
}

/// How far a request has got.
struct Sent {
    is_whole: bool,
    /// The head of an answer that came before the request's end.
    early: Option<(Head, bool)>,
    unsent: Option<Payload>,
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, SendError> {
    timeout(limit, work).await.map_err(|_| SendError::Stalled)
}

/// A piece of a body as the framing wants it: what stands before it, the piece itself, what stands after it. Never copied.
#[derive(Default)]
struct Pending([Bytes; 3]);

impl Pending {
    fn enclose(&mut self, piece: Bytes, framing: Framing) {
        if framing == Framing::Chunked && !piece.is_empty() {
            let size = format!("{:x}\r\n", piece.len());
            self.0 = [size.into(), piece, Bytes::from_static(b"\r\n")];
        } else {
            self.0[1] = piece;
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }

    /// Writes what the stream takes at once.
    fn poll_write(&mut self, stream: Pin<&mut Stream>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let slices = self.0.each_ref().map(|bytes| IoSlice::new(bytes));
        let count = std::task::ready!(stream.poll_write_vectored(cx, &slices))?;
        let mut left = count;
        for bytes in &mut self.0 {
            let written = left.min(bytes.len());
            bytes.advance(written);
            left -= written;
            if bytes.is_empty() {
                // An empty piece of something keeps all of it.
                *bytes = Bytes::new();
            }
        }
        Poll::Ready(Ok(count))
    }
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
    /// The head that `read` begins with, taken from it, and whether the connection may persist after its answer; `None` if
    /// more must be read.
    ///
    /// # Errors
    /// [`SendError::Invalid`] for what is no head, or one that leaves its framing in doubt.
    pub fn parse(read: &mut BytesMut) -> Result<Option<(Self, bool)>, SendError> {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(read) {
            Ok(httparse::Status::Partial) => return Ok(None),
            Ok(httparse::Status::Complete(length)) => length,
            Err(_) => return Err(SendError::Invalid("a head that is not HTTP")),
        };
        let status =
            response.code.filter(|status| (100..600).contains(status)).ok_or(SendError::Invalid("a status"))?;
        let is_http_1_1 = response.version == Some(1);
        let start = read.as_ptr() as usize;
        let fields = response
            .headers
            .iter()
            .map(|field| {
                let (name, value) = (field.name.as_ptr() as usize - start, field.value.as_ptr() as usize - start);
                [name, name + field.name.len(), value, value + field.value.len()]
            })
            .collect();
        let head = Self { status, raw: read.split_to(length).freeze(), fields };
        let is_persistent = is_http_1_1 && !head.options().any(|option| option.eq_ignore_ascii_case(b"close"));
        if !is_http_1_1 && head.values("transfer-encoding").next().is_some() {
            return Err(SendError::Invalid("a transfer coding in HTTP/1.0"));
        }
        Ok(Some((head, is_persistent)))
    }

    /// What `Connection` says: `close`, and names of fields that are for this connection only (RFC 9110 section 7.6.1).
    pub fn options(&self) -> impl Iterator<Item = &[u8]> {
        self.values("connection").flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    }

    /// Names and values, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields
            .iter()
            .map(|[name, name_end, value, value_end]| (&self.raw[*name..*name_end], &self.raw[*value..*value_end]))
    }

    /// The values of all fields of this name.
    pub fn values<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields().filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes())).map(|(_, value)| value)
    }
}

/// How long the body of an answer is (RFC 9112 section 6.3).
#[derive(Debug)]
pub enum Length {
    /// No body; `announced` is what a HEAD or a 304 says the body would be.
    None {
        /// In bytes.
        announced: Option<u64>,
        /// Whether the request was HEAD.
        is_head: bool,
    },
    /// So many bytes.
    Known {
        /// In bytes.
        total: u64,
        /// In bytes, not read yet.
        left: u64,
    },
    /// Chunks.
    Chunked(Chunks),
    /// Until the connection ends.
    UntilClose,
}

impl Length {
    /// What `head` says of it.
    ///
    /// # Errors
    /// [`SendError::Invalid`] for a framing in doubt.
    pub fn of(head: &Head, is_head: bool) -> Result<Self, SendError> {
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
            // A 204 has no length to announce, whatever it says (RFC 9110 section 8.6).
            return Ok(Self::None { announced: length.filter(|_| head.status != 204), is_head });
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

/// How much is read at once, in bytes.
const READ_AHEAD: usize = 32 * 1024;
/// With less room than this, in bytes, a new buffer is taken.
const LEAST_READ: usize = 4 * 1024;
/// Longest head of an answer, in bytes.
const LONGEST_HEAD: usize = 64 * 1024;
/// Most fields of an answer.
const MOST_FIELDS: usize = 128;

#[cfg(test)]
mod tests {
    use actix_web::FromRequest as _;
    use actix_web::test::TestRequest;
    use tokio_test::io::{Builder, Mock};

    use super::*;
    use crate::context::Client;

    const HOUR: Duration = Duration::from_hours(1);
    const DEADLINES: Deadlines = Deadlines { connect: HOUR, first_byte: HOUR, idle: HOUR };

    async fn exchanged(script: Mock, body: Body) -> Result<Exchanged, SendError> {
        let mut connection = Connection::new(Box::new(script));
        connection.exchange(b"head", body, Framing::Length(4), false, &context(), &DEADLINES).await
    }

    fn context() -> std::rc::Rc<RequestContext> {
        let client = Client { address: None, is_local: false };
        RequestContext::new(actix_web::http::Method::GET, client, crate::metrics::worker::WorkerMetrics::new([]))
    }

    async fn streamed() -> Body {
        let (request, mut payload) = TestRequest::default().set_payload("body").to_http_parts();
        Body::Streamed(Payload::from_request(&request, &mut payload).await.expect("it is always there"))
    }

    /// FR-09: what was said before the connection was closed counts, whichever of the two is noticed first.
    #[test]
    fn a_body_that_is_not_taken_may_have_an_answer() {
        actix_web::rt::System::new().block_on(not_taken_and_taken());
    }

    async fn not_taken_and_taken() {
        let closed = || io::ErrorKind::BrokenPipe.into();
        let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n";
        let script = Builder::new().write(b"head").write_error(closed()).read(answer).build();
        let early = exchanged(script, streamed().await).await.expect("there is an answer");
        assert_eq!((early.head.status, early.is_reusable), (413, false));
        let script = Builder::new().write_error(closed()).read(answer).build();
        let early = exchanged(script, Body::Held(Bytes::from_static(b"body"))).await.expect("there is an answer");
        assert_eq!((early.head.status, early.is_reusable), (413, false));
        let script = Builder::new().write(b"head").write(b"body").wait(Duration::from_millis(1)).read(answer).build();
        let whole = exchanged(script, streamed().await).await.expect("there is an answer");
        assert_eq!((whole.head.status, whole.is_reusable), (413, true));
        let script = Builder::new().write(b"head").write_error(closed()).build();
        let none = exchanged(script, streamed().await).await;
        assert!(matches!(none, Err(SendError::Closed)));
    }

    /// PR-09: an interim answer is not the answer, whenever it comes.
    #[test]
    fn a_body_goes_on_after_an_interim_answer() {
        actix_web::rt::System::new().block_on(async {
            for interim in ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </a>"] {
                let interim = format!("HTTP/1.1 {interim}\r\n\r\n");
                let mut script = Builder::new();
                script.write(b"head").read(interim.as_bytes()).write(b"body").wait(Duration::from_millis(1));
                let script = script.read(interim.as_bytes()).read(b"HTTP/1.1 204 No Content\r\n\r\n").build();
                let answer = exchanged(script, streamed().await).await.expect("there is an answer");
                assert_eq!((answer.head.status, answer.is_reusable), (204, true), "{interim}");
            }
        });
    }

    /// What a layer such as TLS keeps back until it is flushed goes up, too.
    #[test]
    fn nothing_is_kept_back() {
        actix_web::rt::System::new().block_on(async {
            for body in [streamed().await, Body::Held(Bytes::from_static(b"body"))] {
                let (ours, mut theirs) = tokio::io::duplex(64);
                let deadlines = Deadlines { first_byte: Duration::from_secs(5), ..DEADLINES };
                let mut connection = Connection::new(Box::new(tokio::io::BufWriter::new(ours)));
                let hub = async {
                    let mut request = [0; 8];
                    theirs.read_exact(&mut request).await.expect("a request");
                    theirs.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("somebody reads it");
                    request
                };
                let context = context();
                let call = connection.exchange(b"head", body, Framing::Length(4), false, &context, &deadlines);
                let (answer, request) =
                    timeout(Duration::from_secs(9), async { tokio::join!(call, hub) }).await.expect("in time");
                assert_eq!((answer.expect("an answer").head.status, &request), (204, b"headbody"));
            }
        });
    }
}
