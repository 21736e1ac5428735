//! Going through: forwards one API call.
//!
//! The recipe, top to bottom: which DataHUB, whose session, which target, fresh tokens, up, down. Whoever reads
//! [`Proxy::forward`] has read it all; each step has a room of its own.

pub mod graphql;
pub mod inspect;
pub mod limiter;
pub mod rejection;
pub mod request;
pub mod response;
pub mod target;
pub mod upstream;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use actix_web::http::StatusCode;
use memchr::memchr2;

use crate::access_log::{Event, chain};
use crate::context::{Incomplete, RequestContext};
use crate::datahub::{DataHub, DataHubs};
use crate::error::{ApiError, Code};
use crate::guard::{Access, Guard};
use crate::http::body::{BodyLength, CHUNK_END, LAST_CHUNK, write_chunk_size};
use crate::http::buffer::BufferPool;
use crate::http::client::ResponseBodyError;
use crate::http::date::DateClock;
use crate::http::head::RequestHead;
use crate::http::server::{BodyError, ClientLeft, Connection, WriteError};
use crate::proxy::inspect::RequestBody;
use crate::proxy::limiter::{CircuitBreaker, ConcurrencyLimit};
use crate::proxy::request::Message;
use crate::proxy::response::UrlRewriter;
use crate::proxy::target::{Policy, Target};
use crate::proxy::upstream::{Deadlines, Exchange, SendError, Upstream, UpstreamRequest};
use crate::session::decision::Reason;
use crate::session::open_session::OpenSession;
use crate::session::refresh::{Refresher, Resolution};
use crate::session::replay::{self, ReplayTarget};
use crate::session::{Sessions, Sid};

/// One worker's proxy to all DataHUBs.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    guard: Arc<Guard>,
    /// In the order of the DataHUBs.
    routes: Vec<Route>,
    pool: BufferPool,
    clock: DateClock,
}

/// The way to one DataHUB and back.
#[derive(Debug)]
struct Route {
    upstream: Upstream,
    /// The gateway's URL for the DataHUB.
    public: String,
}

/// What the proxies of all workers share.
#[derive(Debug)]
pub struct Shared {
    /// `/…/datahubs/`: what stands before a DataHUB's id in a path.
    prefix: String,
    /// The gateway's own address, without a slash at its end.
    public: String,
    settings: Settings,
    datahubs: DataHubs,
    /// In the order of the DataHUBs.
    limits: Vec<(Arc<ConcurrencyLimit>, Arc<CircuitBreaker>)>,
    sessions: Arc<Sessions>,
    refresher: Refresher,
}

impl Shared {
    /// A proxy to `datahubs` below `public` and `base_path`.
    pub fn new(
        public: &str,
        base_path: &str,
        settings: Settings,
        datahubs: DataHubs,
        sessions: Arc<Sessions>,
        refresher: Refresher,
    ) -> Self {
        let Limits { in_flight, waiting, .. } = settings.limits;
        let limits = datahubs.iter().map(|datahub| {
            let limit = Arc::new(ConcurrencyLimit::new(in_flight, waiting));
            (limit, Arc::new(CircuitBreaker::new(datahub.id.clone())))
        });
        let (limits, public, prefix) = (limits.collect(), public.to_owned(), format!("{base_path}/datahubs/"));
        Self { prefix, public, settings, datahubs, limits, sessions, refresher }
    }
}

/// What the proxy is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What may be forwarded.
    pub policy: Policy,
    /// How much one call may bring.
    pub limits: Limits,
    /// How long each step of a call may take.
    pub deadlines: Deadlines,
}

/// How much one call may bring.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest head, in bytes.
    pub head: usize,
    /// Most fields in a head.
    pub fields: usize,
    /// Longest target, in bytes, the replay counter not counted.
    pub target: usize,
    /// Longest body, in bytes.
    pub body: u64,
    /// Most calls under way at one DataHUB.
    pub in_flight: usize,
    /// Most calls waiting for one DataHUB.
    pub waiting: usize,
}

/// A call that comes to no answer of the DataHUB's; nothing has been written to the client.
#[derive(Debug)]
pub enum Failure {
    /// It is answered with this.
    Refused(ApiError),
    /// Nobody waits for an answer.
    ClientLeft,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::Refused(code.into())
    }
}

impl From<ClientLeft> for Failure {
    fn from(_: ClientLeft) -> Self {
        Self::ClientLeft
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::ClientLeft(_) => Self::ClientLeft,
            error => Self::Refused(error.into()),
        }
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Gone(_) => Self::ClientLeft,
            error => Self::Refused(error.into()),
        }
    }
}

impl Proxy {
    /// A worker's own proxy, one of `workers`: its connections are its own, all else is shared.
    pub fn new(shared: Arc<Shared>, guard: Arc<Guard>, pool: BufferPool, workers: usize) -> Self {
        let Settings { deadlines, limits, .. } = shared.settings;
        // As many as may be in use at once, over all workers.
        let max_idle = limits.in_flight.div_ceil(workers.max(1));
        let routes = shared.datahubs.iter().zip(shared.limits.iter().cloned()).map(|(datahub, (limit, breaker))| {
            let address = datahub.address.clone();
            let upstream = Upstream::new(address, deadlines, limit, breaker, pool.clone(), max_idle);
            Route { upstream, public: format!("{}{}{}", shared.public, shared.prefix, datahub.id) }
        });
        Self { routes: routes.collect(), shared, guard, pool, clock: DateClock::default() }
    }

    /// Whether a request is a call of the proxy's.
    pub fn serves(&self, request: &RequestHead) -> bool {
        request.is_below(&self.shared.prefix)
    }

    /// Forwards one call and passes the answer on.
    ///
    /// # Errors
    /// [`Failure`]; where nothing was sent upstream the code says so.
    pub async fn forward(
        &self,
        request: &RequestHead,
        client: &mut Connection,
        access: Access,
        is_last: bool,
        context: &RequestContext,
    ) -> Result<(), Failure> {
        let Shared { settings, sessions, refresher, .. } = &*self.shared;
        let now = SystemTime::now();
        let raw = request.target();
        self.check_length(raw, MAX_COUNTER)?;
        let replay = ReplayTarget::parse(raw).map_err(ApiError::from)?;
        let (datahub, raw) = self.datahub(replay.target, context)?;
        context.replay.set(replay.replays);
        let session = sessions.open(request.fields().values("cookie"), datahub, context, now);
        let (sid, session) = session.map_err(ApiError::from)?;
        let target = Target::parse(raw, &settings.policy).map_err(|error| refused(error.into(), datahub, context))?;
        let length = body_length(request);
        if length.known().is_some_and(|length| length > settings.limits.body) {
            return Err(Code::BodyTooLarge.into());
        }

        let call = Call { proxy: self, replay, datahub, sid: &sid, session: &session, context };
        let is_expiring = session.is_stale_at(now, self.refresh_ahead(length));
        let may_be_known = session.refresh_filter_hash().is_some_and(|hash| refresher.may_have_entry_for(hash));
        let is_superseded = || may_be_known && refresher.has_entry_for(datahub, &session.decode().tokens);
        if is_expiring || is_superseded() {
            // The body first: should it be too long, no refresh has been spent on a call that cannot be sent again.
            drain(client, length.known()).await?;
            return Err(call.retry(if is_expiring { Reason::Expiring } else { Reason::None }).await.into());
        }

        let scheme = self.shared.public.split(':').next().unwrap_or_default();
        let mut message =
            Message::of_call(self.pool.take(), request, target, length, datahub, &session, context, scheme)?;
        let body = if target.is_graphql() {
            graphql::inspect(request, client, context).await
        } else {
            inspect::inspect(request, client, context).await
        };
        let rest = match body.map_err(|failure| failure.recorded(datahub, context))? {
            RequestBody::Buffered(body) => {
                message.append(&body);
                BodyLength::None
            }
            RequestBody::Streaming => length,
        };
        let (is_head, is_idempotent) = (request.method() == "HEAD", is_idempotent(request.method()));
        let up = UpstreamRequest { message: message.as_bytes(), rest, is_head, is_idempotent };
        let upstream = &self.routes[datahub.index()].upstream;
        let sent = Instant::now();
        let mut exchange = upstream.exchange(&up, client, context).await?;
        context.upstream.set(Some(sent.elapsed()));
        drop(message);

        let mut peeked = Vec::new();
        let probe = || Message::probe(self.pool.take(), datahub, &session, context);
        if rejection::is_invalid_token(&mut exchange, &mut peeked, upstream, probe, client, context).await? {
            drop(exchange);
            drain(client, None).await?;
            return Err(call.retry(Reason::Rejected).await.into());
        }
        replay.record_outcome("passed");
        self.pass_down(exchange, &peeked, datahub, request, client, access, is_last, context).await
    }

    /// Passes an answer on, of whose body `peeked` has been read, or else what came with the head.
    async fn pass_down(
        &self,
        mut exchange: Exchange<'_>,
        peeked: &[u8],
        datahub: &DataHub,
        request: &RequestHead,
        client: &mut Connection,
        access: Access,
        is_last: bool,
        context: &RequestContext,
    ) -> Result<(), Failure> {
        let (response, is_head) = (&exchange.response, request.method() == "HEAD");
        let public = &self.routes[datahub.index()].public;
        let rewriter = UrlRewriter { upstream: &datahub.address, public, policy: &self.shared.settings.policy };
        let is_unbounded = response.length.known().is_none();
        let is_chunked = is_unbounded && client.takes_chunks();
        client.persists(is_last || (is_unbounded && !is_chunked));

        let mut out = self.pool.take();
        write_status(client.version(), response.status(), &mut out);
        response::write_fields(response, rewriter, is_head, access == Access::Download, &mut out)?;
        response::write_framing(response, is_chunked, &mut out);
        self.guard.harden(false, &mut out);
        out.extend_from_slice(b"cache-control: private, no-store\r\nvary: Cookie, Accept-Encoding\r\n");
        self.guard.write_cors(access, request.fields(), &mut out);
        out.extend_from_slice(client.persistence_field());
        out.extend_from_slice(b"x-request-id: ");
        out.extend_from_slice(context.id.as_str().as_bytes());
        out.extend_from_slice(b"\r\ndate: ");
        self.clock.write(SystemTime::now(), &mut out);
        out.extend_from_slice(b"\r\n\r\n");
        context.record_answer(response.status(), None);

        let start = if peeked.is_empty() { response.start() } else { peeked };
        context.count_out(start.len());
        let is_whole = response.body.is_done();
        let mut written = if start.is_empty() {
            client.write(&[&out]).await
        } else if is_chunked {
            write_chunk_size(start.len(), &mut out);
            client.write(&[&out, start, CHUNK_END, if is_whole { LAST_CHUNK } else { b"" }]).await
        } else if start.len() <= MAX_COPIED {
            out.extend_from_slice(start);
            client.write(&[&out]).await
        } else {
            client.write(&[&out, start]).await
        };
        let mut ended = is_whole && !(is_chunked && start.is_empty());
        while written.is_ok() && !ended {
            let piece = match client.unless_client_leaves(pin!(exchange.next_piece())).await {
                Ok(Ok(piece)) => piece,
                Ok(Err(error)) => return Ok(break_off(&error, datahub, client, context)),
                Err(ClientLeft) => {
                    context.record_incomplete(Incomplete::ClientGone);
                    client.abort();
                    return Ok(());
                }
            };
            out.clear();
            written = match &piece {
                Some(piece) if is_chunked => {
                    write_chunk_size(piece.len(), &mut out);
                    client.write(&[&out, piece, CHUNK_END]).await
                }
                Some(piece) => client.write(&[piece]).await,
                None if is_chunked => client.write(&[LAST_CHUNK]).await,
                None => Ok(()),
            };
            context.count_out(piece.as_ref().map_or(0, |piece| piece.len()));
            ended = piece.is_none();
        }
        match written {
            Ok(()) => {}
            Err(WriteError::Gone(_)) => context.record_incomplete(Incomplete::ClientGone),
            Err(WriteError::TooSlow) => context.record_incomplete(Incomplete::ResponseTimeout),
        }
        Ok(())
    }

    /// Whether a target of `longest` bytes more than may be would still be taken.
    fn check_length(&self, target: &str, more: usize) -> Result<(), ApiError> {
        let is_short = target.len() <= self.shared.settings.limits.target + more;
        if is_short { Ok(()) } else { Err(ApiError::from(Code::TargetTooLong).closing()) }
    }

    /// The DataHUB that a target names, and what follows its id.
    fn datahub<'a>(&self, target: &'a str, context: &RequestContext) -> Result<(&Arc<DataHub>, &'a str), ApiError> {
        let rest = target.strip_prefix(&self.shared.prefix).ok_or(Code::NotFound)?;
        let (id, raw) = rest.split_at(memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len()));
        let datahub = self.shared.datahubs.by_id(id).ok_or(Code::UnknownDatahub)?;
        self.check_length(target, 0)?;
        context.set_datahub(datahub.id.as_str());
        context.set_route(ROUTE);
        Ok((datahub, raw))
    }

    /// With how much of its life left a token is renewed before this call: more before a long body, since it is
    /// GitLab's answer to that body, long after its first byte, that the token must live to see.
    fn refresh_ahead(&self, length: BodyLength) -> Duration {
        let limits = self.shared.sessions.limits();
        if length.may_exceed(LONG_BODY) { limits.refresh_ahead_body } else { limits.refresh_ahead }
    }
}

/// A call that is not made now: the browser sends it again, with newer tokens or to look for some.
struct Call<'a> {
    proxy: &'a Proxy,
    replay: ReplayTarget<'a>,
    datahub: &'a Arc<DataHub>,
    sid: &'a Sid,
    session: &'a OpenSession,
    context: &'a RequestContext,
}

impl Call<'_> {
    async fn retry(self, reason: Reason) -> ApiError {
        let Self { proxy, replay, datahub, sid, session, context } = self;
        let Shared { sessions, refresher, .. } = &*proxy.shared;
        let session = session.decode();
        match refresher.resolve(datahub, &session, reason, replay.replays, context, SystemTime::now()).await {
            // What was known is forgotten; but the body has been read.
            Ok(Resolution::UseCurrent) => replay.retry_response(None, false),
            Ok(Resolution::Renewed(tokens)) => {
                let renewed = session.renewed(tokens, sessions.limits());
                match sessions.session_cookie(datahub, sid, &renewed, context, SystemTime::now()) {
                    Ok(cookie) => replay.retry_response(Some(cookie), false),
                    Err(error) => error.into(),
                }
            }
            Ok(Resolution::Retry { closes }) => replay.retry_response(None, closes),
            Err(failure) => {
                replay.record_outcome("lost");
                failure.into()
            }
        }
    }
}

impl Failure {
    /// The same, and whoever watches over security learns of it.
    fn recorded(self, datahub: &DataHub, context: &RequestContext) -> Self {
        match self {
            Self::Refused(error) => Self::Refused(refused(error, datahub, context)),
            Self::ClientLeft => Self::ClientLeft,
        }
    }
}

fn refused(error: ApiError, datahub: &DataHub, context: &RequestContext) -> ApiError {
    match error.code() {
        Code::CredentialParameter | Code::CredentialEndpoint => {
            context.event(Event::CredentialRefused, datahub.id.as_str());
        }
        Code::BadRequestTarget | Code::NotForwarded => context.event(Event::TargetRefused, datahub.id.as_str()),
        _ => {}
    }
    error
}

/// An answer whose head has gone down does not come to its end: its connection ends with it, so that nobody takes it for whole.
fn break_off(error: &ResponseBodyError, datahub: &DataHub, client: &mut Connection, context: &RequestContext) {
    let incomplete = match error {
        ResponseBodyError::Stalled => Incomplete::UpstreamStalled,
        _ => Incomplete::UpstreamBroke,
    };
    log::warn!(datahub = datahub.id.as_str(), code = incomplete.as_str(), reason = chain(error); "an answer broke off");
    context.record_incomplete(incomplete);
    client.abort();
}

/// How the body of the request that goes up is delimited: ours, whatever the browser's was.
fn body_length(request: &RequestHead) -> BodyLength {
    match request.body {
        // These have a body by definition, if an empty one (RFC 9110 section 8.6).
        BodyLength::None if matches!(request.method(), "POST" | "PUT" | "PATCH") => BodyLength::Known(0),
        length => length,
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
}

/// Reads what is left of a request's body, of `length` if that is known, and throws it away.
async fn drain(client: &mut Connection, length: Option<u64>) -> Result<(), ApiError> {
    let next_piece = async || client.next_piece().await.map(|piece| piece.map(|piece| piece.len()));
    replay::discard_body(length, next_piece).await
}

fn write_status(version: &str, status: u16, out: &mut Vec<u8>) {
    let status = StatusCode::from_u16(status).expect("it was read as three digits");
    let reason = status.canonical_reason().unwrap_or_default();
    [version, status.as_str(), " ", reason, "\r\n"].iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

/// What the log calls a forwarded call.
const ROUTE: &str = "/datahubs/{datahub}/{path}";
/// `?_gateway_replay=16`, in bytes.
const MAX_COUNTER: usize = 19;
/// A longer body, in bytes, is a long one.
const LONG_BODY: u64 = 1024 * 1024;
/// So much of a body is copied behind its head, in bytes, and not written from where it is: one part is written faster than two.
const MAX_COPIED: usize = 8 * 1024;
