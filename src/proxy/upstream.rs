//! Connections to a DataHUB: one call a time on each, kept for the next one, streamed both ways.
//!
//! The door is small: a head and a body go in, a head and a body come out. Behind it is HTTP/1.1 (RFC 9112) as a client
//! speaks it to a server that it does not trust. Interim answers are skipped. A body ends where its framing says so or
//! breaks off with an error, which the browser sees as a transfer that broke off. Whenever the framing is in doubt, or a
//! byte is left over, the connection is closed and never used again: the next one on it may be someone else.

pub mod answer;
pub mod connection;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::error::PayloadError;
use actix_web::http::Method;
use actix_web::web::BytesMut;
use tokio::time::timeout;

use crate::context::RequestContext;
use crate::datahub::transport::Address;
use crate::error::{ApiError, Code};
use crate::proxy::body::Body;
use crate::proxy::gate::{Closed, Gate, Place};
use crate::proxy::request::Framing;
use crate::proxy::upstream::answer::Answer;
use crate::proxy::upstream::connection::Connection;

/// One worker's connections to one DataHUB.
#[derive(Debug)]
pub struct Upstream {
    address: Address,
    deadlines: Deadlines,
    gate: Arc<Gate>,
    /// The last one used is the next one taken.
    idle: RefCell<VecDeque<Idle>>,
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

    /// Sends one request and waits for the head of its answer. An idempotent one whose body, if any, is held is sent once
    /// more, on a new connection, if a kept one turns out to be closed before a byte came back; no other ever is.
    ///
    /// # Errors
    /// [`SendError`]; the connection is closed then.
    pub async fn send(self: &Rc<Self>, request: Outgoing<'_>) -> Result<Answer, SendError> {
        let place = self.gate.enter(self.deadlines.connect).await?;
        let outcome = self.exchange(request, place).await;
        match &outcome {
            Ok(_) | Err(SendError::Invalid(_)) => self.gate.answered(),
            Err(SendError::Body(_) | SendError::NotSent(_)) => {}
            Err(_) => self.gate.unanswered(),
        }
        outcome
    }

    async fn exchange(self: &Rc<Self>, request: Outgoing<'_>, place: Place) -> Result<Answer, SendError> {
        let Outgoing { context, head, mut body, framing, is_head, is_idempotent } = request;
        if let Some(mut connection) = self.take_idle() {
            let again = if is_idempotent { body.again() } else { None };
            match (connection.exchange(&head, body, framing, is_head, context, &self.deadlines).await, again) {
                (Err(SendError::Closed), Some(again)) => body = again,
                (outcome, _) => return outcome.map(|exchanged| Answer::new(self, connection, exchanged, place)),
            }
        }
        let stream = timeout(self.deadlines.connect, self.address.connect())
            .await
            .map_err(|_| SendError::ConnectTimeout)?
            .map_err(SendError::Connect)?;
        let mut connection = Connection::new(stream);
        let exchanged = connection.exchange(&head, body, framing, is_head, context, &self.deadlines).await?;
        Ok(Answer::new(self, connection, exchanged, place))
    }

    /// A kept connection on which nothing has happened since: closed ones, and those that said something unasked, go.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(Idle { mut connection, since }) = idle.pop_back() {
            if since.elapsed() < LONGEST_IDLE && connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        while idle.front().is_some_and(|oldest| oldest.since.elapsed() >= LONGEST_IDLE) {
            idle.pop_front();
        }
        if idle.len() < MOST_IDLE {
            idle.push_back(Idle { connection, since: Instant::now() });
        }
    }
}

/// What goes up.
pub struct Outgoing<'a> {
    /// Of the request it is for.
    pub context: &'a RequestContext,
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

impl<'a> Outgoing<'a> {
    /// A request whose method is `method`.
    pub fn new(method: &Method, head: BytesMut, body: Body, framing: Framing, context: &'a RequestContext) -> Self {
        Self { context, head, body, framing, is_head: method == Method::HEAD, is_idempotent: method.is_idempotent() }
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It was not to be tried.
    #[error(transparent)]
    NotSent(#[from] Closed),
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
            SendError::NotSent(closed) => return closed.into(),
            SendError::Connect(_) | SendError::Closed | SendError::Lost(_) => Code::DatahubUnreachable,
            SendError::ConnectTimeout | SendError::Stalled => Code::DatahubTimeout,
            SendError::Invalid(_) => Code::DatahubInvalidResponse,
            SendError::Body(error) => return error.into(),
        };
        Self::because(code, error)
    }
}

/// Most connections that a worker keeps to one DataHUB.
const MOST_IDLE: usize = 128;
/// How long a connection is kept: less than the 65 s and more after which GitLab's nginx closes it.
const LONGEST_IDLE: Duration = Duration::from_secs(50);
