//! A browser's connection, between the network and actix-http: what that leaves open is closed here.
//!
//! - *Heads* are handed on whole, within their deadline and limits, with strict line ends and one framing; later ones too.
//! - *Bodies* are followed to their end, by strict chunks. What is read of one is never far ahead of whoever takes it, and
//!   what nobody takes any more is not waited for long.
//! - *Answers* must find somebody who reads them. `Expect: 100-continue` is answered once somebody wants the body.
//! - *Idle* connections end with the process.
//!
//! For actix-http all of this is a stream of bytes; [`Flow`] is what both ends know of each other.

use std::io;
use std::mem;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::web::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::door::Door;
use super::flow::{Flow, MOST_UNREAD};
use super::head::Head;
use crate::admin;
use crate::error::Code;
use crate::proxy::framing::{Chunks, Piece};
use crate::proxy::request::Framing;

/// One connection.
pub(super) struct Connection<S> {
    stream: S,
    door: Rc<Door>,
    peer: Option<IpAddr>,
    flow: Rc<Flow>,
    phase: Phase,
    /// What has been read and not handed on: the beginning of a head, but for so many bytes that may go on.
    held: BytesMut,
    ready: usize,
    /// Since when there has been nothing to do: the connection was made, or its last answer taken.
    quiet: Instant,
    /// Whether an answer has been due since.
    is_busy: bool,
    /// Since when a head has been coming.
    begun: Option<Instant>,
    /// Whether a head may be held whose turn has not come: requests are handed on one after the other.
    is_queued: bool,
    /// Since when an answer has been waiting to be taken.
    blocked: Option<Instant>,
    /// Since when we have said all that we had to say.
    ended: Option<Instant>,
    /// How much has been read since.
    thrown_away: usize,
    /// Whether nothing more is to be read.
    is_over: bool,
    timer: Option<Pin<Box<Sleep>>>,
    process_ends: Pin<Box<WaitForCancellationFutureOwned>>,
    _counted: admin::Connection,
}

/// What is being read.
enum Phase {
    Head(Head),
    Body(u64),
    Chunks(Chunks),
    /// Nothing any more: chunks that are none.
    Broken,
    /// Nothing any more: a head that is none. The answer, as far as it has not been written.
    Refused(Bytes),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S, peer: Option<IpAddr>, door: Rc<Door>) -> Self {
        Self {
            stream,
            peer,
            flow: Rc::new(Flow::new(door.config.patience.body, door.config.proxy.limits.body)),
            phase: Phase::Head(Head::default()),
            held: BytesMut::new(),
            ready: 0,
            quiet: Instant::now(),
            is_busy: false,
            begun: None,
            is_queued: false,
            blocked: None,
            ended: None,
            thrown_away: 0,
            is_over: false,
            timer: None,
            process_ends: Box::pin(door.draining.ended()),
            _counted: door.draining.connection(),
            door,
        }
    }

    /// What requests know of it.
    pub(super) fn flow(&self) -> Rc<Flow> {
        Rc::clone(&self.flow)
    }

    /// Follows `bytes`, which come next, and says how many of them may be handed on.
    fn follow(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let is_idle = self.is_idle();
            match &mut self.phase {
                Phase::Head(_) if !is_idle => {
                    self.is_queued = true;
                    return at;
                }
                Phase::Head(head) => match head.read(&bytes[at..], &self.door.config.proxy.limits) {
                    Ok(Some(whole)) => {
                        if let Some(expect) = whole.expect {
                            // Ours to answer: what is behind must not know it.
                            bytes[at + expect.at] = b'-';
                        }
                        let has_body = whole.framing.length() != Some(0);
                        self.flow.pass(has_body && whole.expect.is_some_and(|expect| expect.is_continue));
                        self.begun = None;
                        self.is_busy = true;
                        at += whole.length;
                        self.phase = Phase::of(whole.framing);
                    }
                    Ok(None) => {
                        self.begun.get_or_insert_with(Instant::now);
                        return at;
                    }
                    Err(code) => {
                        self.refuse(code);
                        return at;
                    }
                },
                Phase::Body(left) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                    *left -= length as u64;
                    self.flow.read(length);
                    at += length;
                    if *left == 0 {
                        self.phase = Phase::default();
                    }
                }
                Phase::Chunks(chunks) => match chunks.piece(&bytes[at..]) {
                    Ok(Piece::Nothing) => at = bytes.len(),
                    Ok(Piece::Data(skipped, length)) => {
                        self.flow.read(length);
                        at += skipped + length;
                    }
                    Ok(Piece::End(skipped)) => {
                        self.flow.read(0);
                        at += skipped;
                        self.phase = Phase::default();
                    }
                    Err(_) => {
                        self.phase = Phase::Broken;
                        self.flow.spoil();
                        return at;
                    }
                },
                Phase::Broken | Phase::Refused(_) => return at,
            }
        }
        at
    }

    fn refuse(&mut self, code: Code) {
        self.phase = Phase::Refused(self.door.refusal(code, self.peer));
    }

    /// Follows what is held.
    fn go_on(&mut self) {
        let mut held = mem::take(&mut self.held);
        self.ready = self.follow(&mut held);
        self.held = held;
        self.drop_unreadable();
    }

    /// Behind what is malformed, nothing can be told apart.
    fn drop_unreadable(&mut self) {
        if matches!(self.phase, Phase::Broken | Phase::Refused(_)) {
            self.held.truncate(self.ready);
        }
    }

    /// Whether every request has been answered, and every answer taken.
    fn is_idle(&self) -> bool {
        self.flow.is_idle() && self.blocked.is_none()
    }

    /// Ready once there has been enough waiting: for a byte, or for whoever reads an answer.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let patience = self.door.config.patience;
            let deadline = if let Some(since) = self.blocked {
                since + patience.answer
            } else if !self.flow.is_idle() {
                return Poll::Pending;
            } else if self.flow.must_close() || !matches!(self.phase, Phase::Head(_)) {
                return Poll::Ready(Ok(()));
            } else if let Some(begun) = self.begun {
                begun.max(self.quiet) + patience.head
            } else if self.process_ends.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            } else {
                self.quiet + if self.flow.is_new() { patience.head } else { KEEP_ALIVE }
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() < deadline {
                timer.as_mut().reset(deadline);
            } else if self.blocked.is_some() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            } else if self.begun.is_some() {
                self.held.clear();
                self.refuse(Code::RequestTimeout);
                self.write_refusal(cx);
                return Poll::Ready(Ok(()));
            } else {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes the answer to a head that is none; then the connection is over. Those before it have theirs: no head is read
    /// before that.
    fn write_refusal(&mut self, cx: &mut Context<'_>) {
        let Phase::Refused(answer) = &mut self.phase else { return };
        while !answer.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, answer) {
                Poll::Ready(Ok(written)) if written > 0 => answer.advance(written),
                // Whoever leaves no room for a few hundred bytes does not read.
                _ => break,
            }
        }
    }

    /// Says that a body may come, if somebody waits for it and the browser for them.
    fn invite(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.flow.is_to_invite() {
            match Pin::new(&mut self.stream).poll_write(cx, GO_ON)? {
                Poll::Ready(written) if written == GO_ON.len() => {}
                _ => return Err(io::ErrorKind::WriteZero.into()),
            }
        }
        Ok(())
    }
}

impl Default for Phase {
    fn default() -> Self {
        Self::Head(Head::default())
    }
}

impl Phase {
    /// What follows a head.
    fn of(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::default(),
            Framing::Length(length) => Self::Body(length),
            Framing::Chunked => Self::Chunks(Chunks::default()),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.flow.keep(cx.waker());
        loop {
            if this.ready > 0 {
                let length = this.ready.min(buf.remaining());
                buf.put_slice(&this.held[..length]);
                this.held.advance(length);
                this.ready -= length;
                return Poll::Ready(Ok(()));
            }
            if this.is_over {
                return Poll::Ready(Ok(()));
            }
            match this.phase {
                Phase::Refused(_) => {
                    this.write_refusal(cx);
                    return Poll::Ready(Ok(()));
                }
                Phase::Head(_) if this.is_queued && this.is_idle() && !this.flow.must_close() => {
                    this.is_queued = false;
                    this.go_on();
                    continue;
                }
                Phase::Head(_) if this.is_queued => {
                    // It waits for its turn. Whoever sent it may leave meanwhile, and take the call before it with them.
                    if this.flow.must_close() || this.held.len() >= MOST_UNREAD {
                        return this.poll_patience(cx);
                    }
                    let mut space = [0; 1024];
                    let mut more = ReadBuf::new(&mut space);
                    if Pin::new(&mut this.stream).poll_read(cx, &mut more)?.is_pending() {
                        return this.poll_patience(cx);
                    }
                    if more.filled().is_empty() {
                        this.is_over = true;
                    }
                    this.held.extend_from_slice(more.filled());
                    continue;
                }
                Phase::Broken => return this.poll_patience(cx),
                _ if this.flow.is_full() => return this.poll_patience(cx),
                _ => this.invite(cx)?,
            }

            let start = buf.filled().len();
            if Pin::new(&mut this.stream).poll_read(cx, buf)?.is_pending() {
                return this.poll_patience(cx);
            }
            let read = &mut buf.filled_mut()[start..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // What is whole goes on from where it is; only what is not is copied.
            let mut passed = 0;
            if this.held.is_empty() {
                passed = this.follow(read);
                this.held.extend_from_slice(&read[passed..]);
                this.drop_unreadable();
            } else {
                this.held.extend_from_slice(read);
                this.go_on();
            }
            buf.set_filled(start + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.flow.is_out_of_reach() {
            // What did not reach the gateway is refused by what is behind, without a word and without a line in the log, and
            // nobody is listened to afterwards.
            if !matches!(this.phase, Phase::Refused(_)) {
                this.flow.rest();
                this.refuse(Code::BadRequest);
            }
            this.write_refusal(cx);
            return Pin::new(this).poll_shutdown(cx).map_ok(|()| buf.len());
        }
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        if written.is_ready() {
            this.blocked = None;
            return written;
        }
        this.blocked.get_or_insert_with(Instant::now);
        ready!(this.poll_patience(cx))?;
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        if this.flow.is_idle() && mem::take(&mut this.is_busy) {
            this.quiet = Instant::now();
            if this.is_queued || this.poll_patience(cx).is_ready() {
                this.is_over |= !this.is_queued;
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        if matches!(this.phase, Phase::Head(_)) && this.begun.is_none() && !this.is_queued {
            return Poll::Ready(Ok(()));
        }
        // Something may still be coming: to close now would reset the connection, and our answer with it (RFC 9112
        // section 9.6).
        let deadline = *this.ended.get_or_insert_with(Instant::now) + LINGER;
        let mut space = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf)? {
                Poll::Ready(()) if buf.filled().is_empty() || this.thrown_away > MOST_THROWN_AWAY => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(()) => this.thrown_away += buf.filled().len(),
                Poll::Pending => break,
            }
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        timer.as_mut().reset(deadline);
        timer.as_mut().poll(cx).map(Ok)
    }
}

/// How long an idle connection is kept: longer than front proxies keep theirs (nginx: 60 s), so that it is they who close.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long we listen to whoever has not heard yet that we are done.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// How much we listen to, in bytes.
const MOST_THROWN_AWAY: usize = 8 * 1024 * 1024;
/// The interim answer to `Expect`.
const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
