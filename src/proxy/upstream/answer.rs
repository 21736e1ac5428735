//! The answer on its way down, and the end of it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::{Bytes, BytesMut, Payload};
use tokio::time::Sleep;

use crate::proxy::framing::ChunkError;
use crate::proxy::gate::Place;
use crate::proxy::upstream::Upstream;
use crate::proxy::upstream::connection::{Connection, Exchanged, Head, Length};

/// What comes down.
pub struct Answer {
    /// Status and fields.
    pub head: Head,
    /// The body, as it comes.
    pub body: AnswerBody,
    /// What is left of the request's body, if the DataHUB did not wait for it.
    pub unsent: Option<Payload>,
}

impl Answer {
    /// The answer whose head came over `connection`; it holds its `place` at the DataHUB until its body has ended.
    pub(super) fn new(upstream: &Rc<Upstream>, connection: Connection, exchanged: Exchanged, place: Place) -> Self {
        let Exchanged { head, length, is_reusable, unsent } = exchanged;
        let mut body = AnswerBody {
            upstream: Rc::clone(upstream),
            connection: Some(connection),
            place: Some(place),
            length,
            is_reusable,
            stalled: None,
            peeked: Bytes::new(),
            broken: None,
        };
        if matches!(body.length, Length::Known { left: 0, .. } | Length::None { .. }) {
            body.finish();
        }
        Self { head, body, unsent }
    }
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
    /// What was looked at and not passed on yet.
    peeked: Bytes,
    /// How it broke off while it was looked at.
    broken: Option<AnswerError>,
}

impl AnswerBody {
    /// What Content-Length says, of an answer to HEAD too.
    pub fn announced(&self) -> Option<u64> {
        match &self.length {
            Length::None { announced, .. } => *announced,
            Length::Known { total, .. } => Some(*total),
            Length::Chunked(_) | Length::UntilClose => None,
        }
    }

    /// The beginning of the body, up to its end or `most` bytes and a little; it is passed on all the same. Less if the body
    /// breaks off.
    pub async fn peek(&mut self, most: usize) -> &[u8] {
        let mut bytes = BytesMut::from(&*std::mem::take(&mut self.peeked));
        while bytes.len() < most {
            match std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await {
                Some(Ok(piece)) => bytes.extend_from_slice(&piece),
                Some(Err(error)) => {
                    self.broken = Some(error);
                    break;
                }
                None => break,
            }
        }
        self.peeked = bytes.freeze();
        &self.peeked
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
            // For actix-http too an answer to HEAD, and no other, has a size and no bytes.
            Length::None { announced: Some(length), is_head: true } => BodySize::Sized(*length),
            Length::None { .. } => BodySize::None,
            Length::Known { total, .. } => BodySize::Sized(*total),
            Length::Chunked(_) | Length::UntilClose => BodySize::Stream,
        }
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, AnswerError>>> {
        let this = &mut *self;
        if !this.peeked.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut this.peeked))));
        }
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
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
