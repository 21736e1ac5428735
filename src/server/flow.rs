//! What a connection and the request on it know of each other, from the first byte of a head to the last of its answer.
//!
//! [`Flow`] is held at both ends: by the connection, which sees bytes, and by the request's body ([`Incoming`]) and its
//! answer ([`Answer`]), which know whether somebody takes them.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures_util::Stream;
use tokio::time::{Instant, Sleep};

use crate::context::RequestContext;

/// What a connection and the request on it know of each other.
#[derive(Debug)]
pub(super) struct Flow {
    /// How long a body may take for its next bytes.
    patience: Duration,
    /// How many bytes it may have.
    longest: u64,
    /// Whether no head has been handed on yet, and whether the last one's answer has ended.
    is_new: Cell<bool>,
    is_idle: Cell<bool>,
    /// Whether the last head has reached the gateway, and whether nothing more is to come after its answer.
    has_reached: Cell<bool>,
    closes: Cell<bool>,
    /// Of its body: how many bytes were read and not taken, whether somebody wants them, whether they are none.
    unread: Cell<usize>,
    is_wanted: Cell<bool>,
    is_broken: Cell<bool>,
    expects: Cell<Expects>,
    /// The task in which all of this happens.
    task: RefCell<Option<Waker>>,
}

/// Whether the last request waits to be told that its body may come (RFC 9110 section 10.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Nothing,
    AnAnswer,
    /// It does, and somebody wants the body.
    ItNow,
}

impl Flow {
    /// Of a new connection, whose bodies may take `patience` for their next bytes and have `longest` of them.
    pub(super) fn new(patience: Duration, longest: u64) -> Self {
        Self {
            patience,
            longest,
            is_new: Cell::new(true),
            is_idle: Cell::new(true),
            has_reached: Cell::new(true),
            closes: Cell::new(false),
            unread: Cell::new(0),
            is_wanted: Cell::new(true),
            is_broken: Cell::new(false),
            expects: Cell::new(Expects::Nothing),
            task: RefCell::new(None),
        }
    }

    /// The request has reached the gateway, which will answer it.
    pub(super) fn reach(&self) {
        self.has_reached.set(true);
    }

    /// Whether what is behind the connection has not let the last head through.
    pub(super) fn is_out_of_reach(&self) -> bool {
        !self.has_reached.get()
    }

    /// The answer to this request is the last one.
    pub(super) fn close(&self) {
        self.closes.set(true);
    }

    /// The body of the request that has just reached the gateway.
    pub(super) fn body(self: &Rc<Self>, payload: Payload) -> Payload {
        let body = Incoming { payload, flow: Rc::clone(self), left: self.longest, timer: None, has_ended: false };
        Payload::Stream { payload: Box::pin(body) }
    }

    /// Whether the connection ends once this request is answered: somebody wants it, or nobody can tell where the next one
    /// begins, since the body was not read to its end or may never come.
    pub(super) fn must_close(&self) -> bool {
        self.closes.get() || !self.is_wanted.get() || self.expects.get() != Expects::Nothing
    }

    /// Whether no head has been handed on yet.
    pub(super) fn is_new(&self) -> bool {
        self.is_new.get()
    }

    /// Whether the last request has its answer.
    pub(super) fn is_idle(&self) -> bool {
        self.is_idle.get()
    }

    /// The last request has its answer.
    pub(super) fn rest(&self) {
        self.is_idle.set(true);
    }

    /// Whether the browser is to be told that its body may come. It is told once.
    pub(super) fn is_to_invite(&self) -> bool {
        let is_to = self.expects.get() == Expects::ItNow;
        if is_to {
            self.expects.set(Expects::Nothing);
        }
        is_to
    }

    /// A head is handed on.
    pub(super) fn pass(&self, expects: bool) {
        self.is_new.set(false);
        self.is_idle.set(false);
        self.has_reached.set(false);
        self.unread.set(0);
        self.expects.set(if expects { Expects::AnAnswer } else { Expects::Nothing });
    }

    /// So many bytes of the body, or its end, have been read.
    pub(super) fn read(&self, length: usize) {
        // Who sends it waits no more to be told so.
        self.expects.set(Expects::Nothing);
        self.unread.set(self.unread.get() + length);
    }

    /// The body is malformed from here on.
    pub(super) fn spoil(&self) {
        self.is_broken.set(true);
        self.wake();
    }

    /// Whether enough of the body has been read for now.
    pub(super) fn is_full(&self) -> bool {
        self.is_wanted.get() && self.unread.get() >= MOST_UNREAD
    }

    /// Remembers the task that reads on.
    pub(super) fn keep(&self, waker: &Waker) {
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|kept| kept.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }
}

/// An answer's body, whose end is the end of its request.
pub(super) struct Answer<B> {
    body: B,
    flow: Rc<Flow>,
}

impl<B> Answer<B> {
    pub(super) fn new(body: B, flow: Rc<Flow>) -> Self {
        Self { body, flow }
    }
}

impl<B> Drop for Answer<B> {
    fn drop(&mut self) {
        self.flow.rest();
    }
}

impl<B: MessageBody + Unpin> MessageBody for Answer<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

/// A body that is counted on its way out.
pub(super) struct Counted<B> {
    body: B,
    context: Rc<RequestContext>,
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, context: Rc<RequestContext>) -> Self {
        Self { body, context }
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
            self.context.count_out(piece.len());
        }
        polled
    }
}

/// A request's body, on its way to whoever takes it. Its next bytes must come in time and not be too many, or it ends in an
/// error.
struct Incoming {
    payload: Payload,
    flow: Rc<Flow>,
    /// How many bytes may still come.
    left: u64,
    timer: Option<Pin<Box<Sleep>>>,
    has_ended: bool,
}

impl Stream for Incoming {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { payload, flow, left, timer, has_ended } = &mut *self;
        if flow.expects.get() == Expects::AnAnswer {
            flow.expects.set(Expects::ItNow);
            flow.wake();
        }
        if flow.is_broken.get() {
            return Poll::Ready(Some(Err(PayloadError::EncodingCorrupted)));
        }
        let Poll::Ready(item) = Pin::new(payload).poll_next(cx) else {
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(flow.patience)));
            return timer.as_mut().poll(cx).map(|()| Some(Err(PayloadError::Io(io::ErrorKind::TimedOut.into()))));
        };
        if let Some(timer) = timer {
            timer.as_mut().reset(Instant::now() + flow.patience);
        }
        match &item {
            Some(Ok(piece)) => {
                let was_full = flow.is_full();
                flow.unread.set(flow.unread.get().saturating_sub(piece.len()));
                if was_full {
                    flow.wake();
                }
                match left.checked_sub(piece.len() as u64) {
                    Some(rest) => *left = rest,
                    None => return Poll::Ready(Some(Err(PayloadError::Overflow))),
                }
            }
            Some(Err(_)) => {}
            None => *has_ended = true,
        }
        Poll::Ready(item)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.has_ended {
            self.flow.is_wanted.set(false);
            self.flow.wake();
        }
    }
}

/// How much of a body is read before somebody takes it, in bytes.
pub(super) const MOST_UNREAD: usize = 32 * 1024;
