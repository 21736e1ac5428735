//! Going through: forwards one API call.
//!
//! The recipe, top to bottom: which DataHUB, whose session, which target, fresh tokens, up, down. Whoever reads
//! [`Proxy::forward`] has read it all; each step has a room of its own.

mod graphql;
mod inspect;
mod limiter;
mod rejection;
mod relay;
mod request;
mod response;
pub mod target;
pub mod upstream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use memchr::memchr2;

use crate::access_log::Event;
use crate::context::RequestContext;
use crate::datahub::{DataHub, DataHubs};
use crate::error::{ApiError, Code};
use crate::guard::{Access, Guard};
use crate::http::body::BodyLength;
use crate::http::buffer::BufferPool;
use crate::http::date::DateClock;
use crate::http::head::RequestHead;
use crate::http::server::{BodyError, ClientLeft, ServerConnection};
use crate::proxy::inspect::RequestBody;
use crate::proxy::limiter::{CircuitBreaker, ConcurrencyLimit};
use crate::proxy::request::{Caller, Message};
use crate::proxy::target::{Policy, Target};
use crate::proxy::upstream::{SendError, Upstream, UpstreamRequest, UpstreamTimeouts};
use crate::session::decision::Reason;
use crate::session::open_session::OpenSession;
use crate::session::refresh::{Refresher, Resolution};
use crate::session::replay::{self, ReplayTarget};
use crate::session::{Sessions, Sid};

/// One worker's proxy to all DataHUBs.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<SharedProxy>,
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
pub struct SharedProxy {
    /// `/…/datahubs/`: what stands before a DataHUB's id in a path.
    prefix: String,
    /// The gateway's own address, without a slash at its end.
    public: String,
    /// That of the gateway's own address.
    scheme: String,
    settings: ProxySettings,
    datahubs: DataHubs,
    /// In the order of the DataHUBs.
    limits: Vec<(Arc<ConcurrencyLimit>, Arc<CircuitBreaker>)>,
    sessions: Arc<Sessions>,
    refresher: Refresher,
}

impl SharedProxy {
    /// A proxy to `datahubs` below `public` and `base_path`.
    pub fn new(
        public: &str,
        base_path: &str,
        settings: ProxySettings,
        datahubs: DataHubs,
        sessions: Arc<Sessions>,
        refresher: Refresher,
    ) -> Self {
        let ProxyLimits { in_flight, waiting, .. } = settings.limits;
        let limits = datahubs.iter().map(|datahub| {
            let limit = Arc::new(ConcurrencyLimit::new(in_flight, waiting));
            (limit, Arc::new(CircuitBreaker::new(datahub.id.clone())))
        });
        let scheme = public.split(':').next().unwrap_or_default().to_owned();
        let (limits, public, prefix) = (limits.collect(), public.to_owned(), format!("{base_path}/datahubs/"));
        Self { prefix, public, scheme, settings, datahubs, limits, sessions, refresher }
    }
}

/// What the proxy is told.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// What may be forwarded.
    pub policy: Policy,
    /// How much one call may bring.
    pub limits: ProxyLimits,
    /// How long each step of a call may take.
    pub timeouts: UpstreamTimeouts,
}

/// How much one call may bring.
#[derive(Debug, Clone, Copy)]
pub struct ProxyLimits {
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
    pub fn new(shared: Arc<SharedProxy>, guard: Arc<Guard>, pool: BufferPool, workers: usize) -> Self {
        let ProxySettings { timeouts, limits, .. } = shared.settings;
        // As many as may be in use at once, over all workers.
        let max_idle = limits.in_flight.div_ceil(workers.max(1));
        let routes = shared.datahubs.iter().zip(shared.limits.iter().cloned()).map(|(datahub, (limit, breaker))| {
            let address = datahub.address.clone();
            let upstream = Upstream::new(address, timeouts, limit, breaker, pool.clone(), max_idle);
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
        downstream: &mut ServerConnection,
        access: Access,
        context: &RequestContext,
    ) -> Result<(), Failure> {
        let SharedProxy { settings, sessions, refresher, .. } = &*self.shared;
        let now = SystemTime::now();
        let raw = request.target();
        self.check_length(raw, MAX_COUNTER_BYTES)?;
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

        let caller = Caller { datahub, session: &session, context, scheme: &self.shared.scheme };
        let call = Call { proxy: self, request, access, replay, datahub, sid: &sid, session: &session, context };
        let is_expiring = session.is_stale_at(now, self.refresh_ahead(length));
        let may_be_known = session.refresh_filter_hash().is_some_and(|hash| refresher.may_have_entry_for(hash));
        let is_superseded = || may_be_known && refresher.has_entry_for(datahub, &session.decode().tokens);
        if is_expiring || is_superseded() {
            // The body first: should it be too long, no refresh has been spent on a call that cannot be sent again.
            drain(downstream, length.known()).await?;
            return Err(call.retry(if is_expiring { Reason::Expiring } else { Reason::None }).await.into());
        }

        let mut message = Message::of_call(self.pool.take(), request, target, length, caller)?;
        let body = if target.is_graphql() {
            graphql::inspect(request, downstream, context).await
        } else {
            inspect::inspect(request, downstream, context).await
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
        let mut exchange = upstream.exchange(&up, downstream, context).await?;
        context.upstream.set(Some(exchange.took));
        drop(message);

        let mut peeked = Vec::new();
        let probe = || Message::probe(self.pool.take(), caller);
        if rejection::is_invalid_token(&mut exchange, &mut peeked, upstream, probe, downstream, context).await? {
            drop(exchange);
            drain(downstream, None).await?;
            return Err(call.retry(Reason::Rejected).await.into());
        }
        replay.record_outcome("passed");
        call.relay(exchange, &peeked, downstream).await
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
        if length.may_exceed(LONG_BODY_BYTES) { limits.refresh_ahead_body } else { limits.refresh_ahead }
    }
}

/// A call of a session's.
struct Call<'a> {
    proxy: &'a Proxy,
    request: &'a RequestHead,
    access: Access,
    replay: ReplayTarget<'a>,
    datahub: &'a Arc<DataHub>,
    sid: &'a Sid,
    session: &'a OpenSession,
    context: &'a RequestContext,
}

impl Call<'_> {
    /// What the browser is told of a call that is not made now: to send it again, with newer tokens or to look for some.
    async fn retry(&self, reason: Reason) -> ApiError {
        let Self { proxy, replay, datahub, sid, session, context, .. } = self;
        let SharedProxy { sessions, refresher, .. } = &*proxy.shared;
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
async fn drain(downstream: &mut ServerConnection, length: Option<u64>) -> Result<(), ApiError> {
    let next_piece = async || downstream.next_piece().await.map(|piece| piece.map(|piece| piece.len()));
    replay::discard_body(length, next_piece).await
}

/// What the log calls a forwarded call.
const ROUTE: &str = "/datahubs/{datahub}/{path}";
/// `?_gateway_replay=16`, in bytes.
const MAX_COUNTER_BYTES: usize = 19;
/// A body longer than this, in bytes, counts as one that takes long to upload.
const LONG_BODY_BYTES: u64 = 1024 * 1024;
