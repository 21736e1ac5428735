//! Connections to one DataHUB. Each carries one call at a time, streamed both ways, and is kept for the next call.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::context::RequestContext;
use crate::datahub::DataHubId;
use crate::datahub::health::Health;
use crate::datahub::transport::{Address, ConnectError};
use crate::error::{ApiError, Code};
use crate::http::body::BodyLength;
use crate::http::buffer::{Buffer, BufferPool};
use crate::http::client::{ClientConnection, ReceiveError, Response, ResponseBodyError, SendBodyError, Sent};
use crate::http::head::RequestHead;
use crate::http::server::{BodyError, ClientLeft, ServerConnection};
use crate::http::timer::Elapsed;
use crate::places::LimitReached;
use crate::proxy::ProxyLimits;
use crate::proxy::breaker::{CircuitBreaker, CircuitOpen};
use crate::proxy::failure::Failure;
use crate::proxy::idle::{IdlePool, SessionTag, Wanted};
use crate::proxy::inspect::{PartNames, Unreadable};
use crate::proxy::limiter::{ConcurrencyLimit, Holder, Permit, RETRY_AFTER};

/// One worker's connections to one DataHUB.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<SharedUpstream>,
    pool: BufferPool,
    idle: IdlePool,
}

/// What the connections of all workers to one host share.
#[derive(Debug)]
pub struct SharedUpstream {
    address: Address,
    timeouts: UpstreamTimeouts,
    limit: ConcurrencyLimit,
    breaker: Arc<CircuitBreaker>,
    max_in_flight: usize,
}

impl SharedUpstream {
    /// The host at `address`, which log and metrics know by `name`, and which nobody has called yet.
    pub fn new(
        name: DataHubId,
        health: &Arc<Health>,
        address: Address,
        timeouts: UpstreamTimeouts,
        limits: ProxyLimits,
    ) -> Self {
        health.publish();
        let ProxyLimits { in_flight, waiting, .. } = limits;
        let limit = ConcurrencyLimit::new(in_flight, waiting);
        let breaker = Arc::new(CircuitBreaker::new(name, Arc::clone(health)));
        Self { address, timeouts, limit, breaker, max_in_flight: in_flight }
    }
}

/// How long each step may take. A whole call has no limit: a gigabyte takes as long as it takes.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamTimeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// From the end of the request to the head of the answer.
    pub first_byte: Duration,
    /// Between two pieces of an answer, and for the DataHUB to take a piece of a request.
    pub idle: Duration,
}

/// A request to the DataHUB.
#[derive(Debug)]
pub struct UpstreamRequest<'a> {
    /// The head, and the whole body if it is short.
    pub(super) message: &'a [u8],
    /// How the rest of the body is delimited, which is still to be read from the client; none if the message is the whole.
    pub(super) rest: BodyLength,
    /// Whether the method is HEAD, whose answer has no body whatever its head says.
    pub(super) is_head: bool,
    /// Whether the same request twice does what it does once (RFC 9110 section 9.2.2).
    pub(super) is_idempotent: bool,
    /// The session of the call, if it has one.
    pub(super) session: Option<SessionTag>,
    /// Reads the names of the parts in the rest, where that is multipart.
    pub(super) part_names: Option<RefCell<PartNames>>,
}

impl<'a> UpstreamRequest<'a> {
    /// A request of this method whose first part is `message`.
    pub fn new(method: &str, message: &'a [u8], rest: BodyLength, session: Option<SessionTag>) -> Self {
        let is_idempotent = matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE");
        Self { message, rest, is_head: method == "HEAD", is_idempotent, session, part_names: None }
    }
}

/// An answer whose head is there, with the connection and the permit that its call holds until the answer's end.
#[derive(Debug)]
pub struct Exchange<'a> {
    upstream: &'a Upstream,
    connection: Option<ClientConnection>,
    permit: Option<Permit<'a>>,
    holder: Holder,
    /// That of the request.
    pub(super) session: Option<SessionTag>,
    /// The answer.
    pub response: Response,
    /// Whether the whole request went up before it.
    pub is_request_whole: bool,
    /// From the end of the request to the head of the answer.
    pub took: Duration,
}

impl Upstream {
    /// That of one of `workers`: no connection yet. All of them together keep as many as may be in use at once.
    pub fn new(shared: Arc<SharedUpstream>, pool: BufferPool, workers: usize) -> Self {
        let health = Arc::clone(shared.breaker.health());
        let idle = IdlePool::new(shared.max_in_flight.div_ceil(workers.max(1)), health);
        Self { shared, pool, idle }
    }

    /// Sends one request of `downstream`'s, at a place of `holder`'s, and waits for the head of its answer. An idempotent
    /// request that is all in its message is sent once more, on a new connection, if a kept connection turns out to be closed
    /// before a byte came back; no other ever is.
    ///
    /// # Errors
    /// [`SendError`]; the connection is closed then.
    pub async fn exchange(
        &self,
        holder: Holder,
        request: &UpstreamRequest<'_>,
        downstream: &mut ServerConnection,
        context: &RequestContext,
    ) -> Result<Exchange<'_>, SendError> {
        let SharedUpstream { timeouts, limit, breaker, .. } = &*self.shared;
        breaker.check()?;
        let permit = {
            let acquiring = pin!(limit.acquire(holder, timeouts.connect));
            downstream.unless_client_leaves(acquiring).await??
        };
        self.exchange_holding(Some(permit), holder, request, downstream, context).await
    }

    /// The same for who holds a permit already: `permit`, or that of another exchange of the same call.
    async fn exchange_holding<'a>(
        &'a self,
        permit: Option<Permit<'a>>,
        holder: Holder,
        request: &UpstreamRequest<'_>,
        downstream: &mut ServerConnection,
        context: &RequestContext,
    ) -> Result<Exchange<'a>, SendError> {
        let SharedUpstream { address, timeouts, breaker, .. } = &*self.shared;
        let outcome = self.exchange_over_any(request, downstream, context).await;
        match &outcome {
            Ok(_) | Err(SendError::Answer(ReceiveError::Invalid(_))) => breaker.record_success(),
            Err(SendError::Connect(error)) => breaker.record_failure(error, address, timeouts.connect),
            // What else becomes of a call says nothing about the host.
            Err(_) => {}
        }
        let (connection, Answer { response, is_request_whole, awaited_since }) = outcome?;
        let received = Instant::now();
        let took = received - awaited_since;
        let (connection, session) = (Some(connection), request.session);
        let mut exchange =
            Exchange { upstream: self, connection, permit, holder, session, response, is_request_whole, took };
        exchange.release_at_end(received);
        Ok(exchange)
    }

    /// The same over a kept connection, else over a new one.
    async fn exchange_over_any(
        &self,
        request: &UpstreamRequest<'_>,
        downstream: &mut ServerConnection,
        context: &RequestContext,
    ) -> Result<(ClientConnection, Answer), SendError> {
        let may_repeat = request.is_idempotent && request.rest.is_empty();
        let wanted = Wanted { session: request.session, may_repeat };
        if let Some(mut connection) = self.idle.take(wanted, Instant::now()) {
            match self.exchange_over(&mut connection, request, downstream, context).await {
                Err(SendError::Answer(ReceiveError::Closed)) if may_repeat => {}
                outcome => return outcome.map(|answer| (connection, answer)),
            }
        }
        // In a box, as whatever few calls do: most calls need no memory for it then.
        let mut connection = Box::pin(self.connect(downstream)).await?;
        let answer = self.exchange_over(&mut connection, request, downstream, context).await?;
        Ok((connection, answer))
    }

    /// A new connection, unless others have found meanwhile that there is none to be had.
    async fn connect(&self, downstream: &mut ServerConnection) -> Result<ClientConnection, SendError> {
        let SharedUpstream { address, timeouts, breaker, .. } = &*self.shared;
        breaker.check()?;
        let begun = Instant::now();
        let connecting = address.connect(timeouts.connect);
        let connected = downstream.unless_client_leaves(pin!(connecting)).await;
        if connected.is_err() && begun.elapsed() >= SLOW_CONNECT {
            breaker.record_failure(&ConnectError::Timeout, address, timeouts.connect);
        }
        let stream = connected??;
        breaker.record_success();
        Ok(ClientConnection::new(stream, &self.pool))
    }

    /// The same over one connection.
    async fn exchange_over(
        &self,
        connection: &mut ClientConnection,
        request: &UpstreamRequest<'_>,
        downstream: &mut ServerConnection,
        context: &RequestContext,
    ) -> Result<Answer, SendError> {
        let UpstreamTimeouts { first_byte, idle, .. } = self.shared.timeouts;
        let is_taken = connection.send(request.message, idle).await?;
        let sent = match is_taken {
            true if request.rest.is_empty() => Sent::Whole,
            true => {
                let next = async || {
                    let piece = downstream.next_piece().await?;
                    context.count_in(piece.as_ref().map_or(0, |piece| piece.len()));
                    match (&request.part_names, &piece) {
                        (Some(names), Some(piece)) if names.borrow_mut().name_credential(piece)? => {
                            Err(SendError::Credential)
                        }
                        _ => Ok(piece),
                    }
                };
                Box::pin(connection.send_body(request.rest, request.is_head, next, idle)).await?
            }
            false => Sent::NotTaken,
        };
        let awaited_since = Instant::now();
        let is_request_whole = matches!(sent, Sent::Whole);
        let mut response = if let Sent::Early(response) = sent {
            *response
        } else {
            let receiving = connection.receive(request.is_head, first_byte);
            match downstream.unless_client_leaves(pin!(receiving)).await? {
                Err(ReceiveError::Stalled) if !is_request_whole => return Err(SendError::Stalled),
                response => response?,
            }
        };
        response.is_reusable &= is_request_whole;
        Ok(Answer { response, is_request_whole, awaited_since })
    }
}

/// An answer to one request.
struct Answer {
    response: Response,
    /// Whether the whole request went up before it.
    is_request_whole: bool,
    /// When nothing was left to be sent.
    awaited_since: Instant,
}

impl<'a> Exchange<'a> {
    /// Sends another request for the same call. It needs no permit of its own while this one has one: calls that wait for
    /// each other's would wait in vain.
    ///
    /// # Errors
    /// [`SendError`]
    pub(super) async fn exchange_again(
        &self,
        request: &UpstreamRequest<'_>,
        downstream: &mut ServerConnection,
        context: &RequestContext,
    ) -> Result<Exchange<'a>, SendError> {
        match self.permit {
            Some(_) => self.upstream.exchange_holding(None, self.holder, request, downstream, context).await,
            None => self.upstream.exchange(self.holder, request, downstream, context).await,
        }
    }

    /// The next piece of the answer's body after [`Response::start`]; `None` once it has ended.
    ///
    /// # Errors
    /// [`ResponseBodyError`]; what has been passed on is not whole.
    pub(super) async fn next_piece(&mut self) -> Result<Option<Buffer>, ResponseBodyError> {
        if self.response.body.is_done() {
            return Ok(None);
        }
        // An answer that has broken off stays broken off.
        let connection = self.connection.as_mut().ok_or(ResponseBodyError::Truncated)?;
        let piece = connection.next_piece(&mut self.response.body, self.upstream.shared.timeouts.idle).await;
        if piece.is_err() {
            self.connection = None;
        }
        self.release_at_end(Instant::now());
        piece
    }

    /// Once the body has ended, gives the permit back and keeps the connection if it may be used again. What follows the body
    /// is the answer to no request.
    fn release_at_end(&mut self, now: Instant) {
        if !self.response.body.is_done() {
            return;
        }
        self.permit = None;
        let Some(connection) = self.connection.take() else { return };
        if !connection.is_drained() {
            self.upstream.shared.breaker.health().report_unasked(now);
        } else if self.response.is_reusable {
            self.upstream.idle.put(connection, self.session, self.response.keep_alive, self.took, now);
        }
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The limit did not let it pass.
    #[error(transparent)]
    LimitReached(#[from] LimitReached),
    /// The circuit breaker did not let it pass.
    #[error(transparent)]
    CircuitOpen(#[from] CircuitOpen),
    /// Its client left.
    #[error(transparent)]
    ClientLeft(#[from] ClientLeft),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The DataHUB did not take the request in time.
    #[error("the DataHUB did not take the request in time")]
    Stalled,
    /// No answer, or one that is not to be passed on.
    #[error("the DataHUB gave no answer that can be passed on")]
    Answer(#[from] ReceiveError),
    /// The client's body broke off.
    #[error("the body of the request broke off")]
    Body(#[source] BodyError),
    /// A part of the client's body is named like a credential.
    #[error("the body of the request holds a credential")]
    Credential,
    /// The client's body is not plainly what it says.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl SendError {
    /// Why `request` got no answer. With a body there is no 504 before all of it went up
    /// ([`Call::check_answer`](crate::proxy::call::Call::check_answer)).
    pub fn failure(self, request: &RequestHead) -> Failure {
        match self {
            Self::ClientLeft(_) => Failure::ClientLeft,
            Self::Connect(ConnectError::Timeout) | Self::Stalled if !request.body.is_empty() => {
                ApiError::because(Code::DatahubUnreachable, self).into()
            }
            error => Failure::Error(error.into()),
        }
    }
}

impl From<Elapsed> for SendError {
    fn from(_: Elapsed) -> Self {
        Self::Stalled
    }
}

impl From<BodyError> for SendError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Gone(_) => Self::ClientLeft(ClientLeft),
            error => Self::Body(error),
        }
    }
}

impl From<SendBodyError<Self>> for SendError {
    fn from(error: SendBodyError<Self>) -> Self {
        match error {
            SendBodyError::Source(error) => error,
            SendBodyError::Answer(error) => Self::Answer(error),
            SendBodyError::Stalled => Self::Stalled,
        }
    }
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        let code = match error {
            SendError::LimitReached(reached) => return reached.into(),
            SendError::CircuitOpen(open) => return open.into(),
            SendError::Connect(ConnectError::OutOfResources(_)) => {
                return Self::because(Code::Overloaded, error).retry_after(RETRY_AFTER);
            }
            SendError::Body(error) => return error.into(),
            SendError::Credential => Code::CredentialParameter,
            SendError::Unreadable(error) => return error.into(),
            // Nobody gets this answer.
            SendError::ClientLeft(_) => Code::BadRequest,
            SendError::Answer(ReceiveError::Invalid(_)) => Code::DatahubInvalidResponse,
            SendError::Connect(ConnectError::Timeout)
            | SendError::Stalled
            | SendError::Answer(ReceiveError::Stalled) => Code::DatahubTimeout,
            SendError::Connect(_) | SendError::Answer(_) => Code::DatahubUnreachable,
        };
        Self::because(code, error)
    }
}

/// After how long a connect that its client does not wait for is a failure. A packet that is lost once costs one second
/// (RFC 6298 section 2), so that nobody opens the breaker of a host that is well by leaving early.
const SLOW_CONNECT: Duration = Duration::from_secs(2);
