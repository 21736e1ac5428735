//! Going through: forwards one API call.
//!
//! [`Proxy::forward`] is the recipe. It finds the DataHUB, opens the session, checks the target, makes sure that the tokens
//! are current, sends the request up and passes the answer down. Each of these steps has a module of its own. A call without
//! a login goes the same way without tokens, to DataHUBs that may be asked so.

mod breaker;
pub mod call;
pub mod caller;
pub mod failure;
mod graphql;
mod idle;
pub mod inspect;
pub mod limiter;
pub mod policy;
mod rejection;
mod relay;
pub mod request;
pub mod response;
pub mod target;
pub mod upstream;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::SystemTime;

use actix_web::http::Method;
use memchr::memchr2;

use crate::context::RequestContext;
use crate::datahub::{DataHub, DataHubs};
use crate::error::{ApiError, Code};
use crate::guard::{Access, Guard};
use crate::http::body::BodyLength;
use crate::http::buffer::BufferPool;
use crate::http::date::DateClock;
use crate::http::head::RequestHead;
use crate::http::server::ServerConnection;
use crate::metrics;
use crate::proxy::call::Call;
use crate::proxy::caller::{Caller, Login};
use crate::proxy::failure::Failure;
use crate::proxy::inspect::RequestBody;
use crate::proxy::policy::Policy;
use crate::proxy::request::{Credential, Message};
use crate::proxy::response::UrlRewriter;
use crate::proxy::target::Target;
use crate::proxy::upstream::{SharedUpstream, Upstream, UpstreamRequest, UpstreamTimeouts};
use crate::rate::{Rate, RateLimiter, TotalRateLimiter};
use crate::session::decision::Reason;
use crate::session::refresh::Refresher;
use crate::session::replay::ReplayTarget;
use crate::session::{SessionError, Sessions};

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

/// What one worker needs to forward calls to one DataHUB.
#[derive(Debug)]
struct Route {
    upstream: Upstream,
    /// The gateway's URL for the DataHUB, which the browser knows it by.
    public_url: String,
}

/// What the proxies of all workers share.
#[derive(Debug)]
pub struct SharedProxy {
    /// What stands before a DataHUB's id in a path: `/…/datahubs/`.
    prefix: String,
    /// The gateway's own address, without a slash at its end.
    public: String,
    /// The scheme of `public`.
    scheme: String,
    settings: ProxySettings,
    datahubs: DataHubs,
    /// In the order of the DataHUBs.
    routes: Vec<SharedRoute>,
    /// How often each client may call without a login.
    anonymous_clients: RateLimiter,
    sessions: Arc<Sessions>,
    refresher: Refresher,
}

/// What the calls of all workers to one DataHUB share.
#[derive(Debug)]
struct SharedRoute {
    upstream: Arc<SharedUpstream>,
    /// How often all clients together may call without a login, if they may.
    anonymous: Option<TotalRateLimiter>,
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
        let ProxySettings { timeouts, limits, .. } = settings;
        let routes = datahubs.iter().map(|datahub| {
            let (name, health, address) = (datahub.id.clone(), datahub.provider.health(), datahub.address.clone());
            SharedRoute {
                upstream: Arc::new(SharedUpstream::new(name, health, address, timeouts, limits)),
                anonymous: datahub.anonymous_rate.map(TotalRateLimiter::new),
            }
        });
        let anonymous_clients = RateLimiter::new(settings.anonymous_client_rate);
        let scheme = public.split(':').next().unwrap_or_default().to_owned();
        Self {
            prefix: format!("{base_path}/datahubs/"),
            public: public.to_owned(),
            scheme,
            settings,
            routes: routes.collect(),
            datahubs,
            anonymous_clients,
            sessions,
            refresher,
        }
    }
}

/// The proxy's part of the configuration.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// What may be forwarded.
    pub policy: Policy,
    /// How large one call may be, and how many there may be.
    pub limits: ProxyLimits,
    /// How long each step of a call may take.
    pub timeouts: UpstreamTimeouts,
    /// How often one client may call without a login.
    pub anonymous_client_rate: Rate,
}

/// How large one call may be, and how many there may be at one DataHUB.
#[derive(Debug, Clone, Copy)]
pub struct ProxyLimits {
    /// Longest target, in bytes, without the replay counter.
    pub target: usize,
    /// Longest body, in bytes.
    pub body: u64,
    /// Most calls under way at one DataHUB. One person has an eighth of them, at least one.
    pub in_flight: usize,
    /// Most calls waiting for one DataHUB. One person has an eighth of them, at least one.
    pub waiting: usize,
}

impl Proxy {
    /// The proxy of one of `workers`: its connections are its own, all else is shared.
    pub fn new(shared: Arc<SharedProxy>, guard: Arc<Guard>, pool: BufferPool, workers: usize) -> Self {
        let routes = shared.datahubs.iter().zip(&shared.routes).map(|(datahub, route)| {
            let upstream = Upstream::new(Arc::clone(&route.upstream), pool.clone(), workers);
            Route { upstream, public_url: format!("{}{}{}", shared.public, shared.prefix, datahub.id) }
        });
        Self { routes: routes.collect(), shared, guard, pool, clock: DateClock::default() }
    }

    /// Whether a request is a call to a DataHUB.
    pub fn serves(&self, request: &RequestHead) -> bool {
        request.is_below(&self.shared.prefix)
    }

    /// Forwards one call of the browser at `downstream` and passes the answer on.
    ///
    /// # Errors
    /// [`Failure`], before anything was written to the browser.
    pub async fn forward(
        &self,
        request: &RequestHead,
        downstream: &mut ServerConnection,
        access: Access,
        context: &RequestContext,
    ) -> Result<(), Failure> {
        let settings = &self.shared.settings;
        let now = SystemTime::now();
        let replay = ReplayTarget::parse(request.target());
        let (datahub, raw_target) = self.find_datahub(&replay.target, context)?;
        context.replay.set(replay.replays);
        let caller = self.identify(request, datahub, context, now)?;
        let logged = |failure: Failure| failure.log_if_security_event(datahub.id.as_str(), context);
        let target = Target::parse(request.method().as_str(), raw_target, &settings.policy);
        let target = target.map_err(|error| logged(ApiError::from(error).into()))?;
        let length = body_length(request);
        if length.known().is_some_and(|length| length > settings.limits.body) {
            return Err(Code::BodyTooLarge.into());
        }

        let call = Call { proxy: self, request, access, replay: &replay, context };
        let is_long = length.may_exceed(LONG_BODY_BYTES);
        match &caller.login {
            Some(login) => call.check_login(login, is_long, downstream, now).await?,
            None => self.check_anonymous(datahub, context)?,
        }
        let upload = caller.login.as_ref().filter(|_| is_long).map(|login| call.begin_upload(login));

        let inspected = if target.is_graphql() {
            graphql::inspect(request, downstream, context).await
        } else {
            inspect::inspect(request, downstream, context).await
        };
        let (body, rest, part_names) = match inspected.map_err(logged)? {
            RequestBody::Buffered(body) => (Some(body), BodyLength::None, None),
            RequestBody::Streaming => (None, length, None),
            RequestBody::Watched(names) => (None, length, Some(RefCell::new(names))),
        };
        let (method, body) = (request.method().as_str(), body.as_deref());
        let envelope = call.envelope(&datahub.address, Credential::Bearer(caller.session()));
        let message = Message::of_call(self.pool.take(), request, target.as_str(), length, body, envelope)?;
        let upstream_request =
            UpstreamRequest { part_names, ..UpstreamRequest::new(method, message.as_bytes(), rest, caller.tag()) };
        let Route { upstream, public_url } = &self.routes[datahub.index()];
        let exchanged = upstream.exchange(caller.holder(context), &upstream_request, downstream, context).await;
        // A long body in parts shows a credential only on its way up.
        let mut exchange = exchanged.map_err(|error| logged(error.failure(request)))?;
        call.check_answer(&exchange)?;
        // The bearer is wiped, and whoever asks next may renew the token.
        drop((message, upload));

        let mut peeked = None;
        let probe = || Message::probe(self.pool.take(), envelope);
        if let Some(login) = &caller.login
            && rejection::is_invalid_token(&mut exchange, &mut peeked, probe, downstream, context).await?
        {
            // Its place and its connection are others' while newer tokens are waited for.
            drop(exchange);
            // How much is left of the body nobody knows: some of it may have gone up.
            return Err(Box::pin(call.ask_to_retry(&login.decode(), None, Reason::Rejected, downstream)).await);
        }
        replay.record_outcome("passed");
        let rewriter = UrlRewriter {
            upstream: &datahub.address,
            public: public_url,
            forwards: |target: &str| Target::parse("GET", target, &settings.policy).is_ok(),
            own: target.as_str(),
            more_fields: &[],
            dropped: Cell::default(),
        };
        let head = call.write_head(&exchange, &rewriter, downstream);
        // That is told even if the head cannot be passed on.
        if let Some(reason) = rewriter.dropped.get() {
            datahub.report_dropped_link(reason);
        }
        call.relay(&mut exchange, head?, peeked.as_deref(), datahub.id.as_str(), downstream).await;
        Ok(())
    }

    /// Counts a call without a login. First by its client, so that one who comes too often takes nothing from the others.
    fn check_anonymous(&self, datahub: &DataHub, context: &RequestContext) -> Result<(), ApiError> {
        let total = self.shared.routes[datahub.index()].anonymous.as_ref().ok_or(Code::NotLoggedIn)?;
        self.check_anonymous_client(datahub.id.as_str(), context, Some(total))
    }

    /// Counts a call without a login to `datahub` by its client, and then in `total`.
    ///
    /// # Errors
    /// `rate_limited`.
    pub fn check_anonymous_client(
        &self,
        datahub: &str,
        context: &RequestContext,
        total: Option<&TotalRateLimiter>,
    ) -> Result<(), ApiError> {
        let checked = match self.shared.anonymous_clients.check(context.client) {
            Ok(()) => total.map_or(Ok(()), TotalRateLimiter::check).map_err(|limited| (limited, "datahub_limited")),
            Err(limited) => Err((limited, "client_limited")),
        };
        metrics::anonymous_call(datahub, checked.map_or_else(|(_, result)| result, |()| "passed"));
        checked.map_err(|(limited, _)| limited.into())
    }

    /// The DataHUB whose id is in `target`, and what follows the id. The log learns of the DataHUB, also if the target is too long.
    fn find_datahub<'a>(
        &self,
        target: &'a str,
        context: &RequestContext,
    ) -> Result<(&Arc<DataHub>, &'a str), ApiError> {
        let rest = target.strip_prefix(&self.shared.prefix).ok_or(Code::NotFound)?;
        let (id, raw_target) = rest.split_at(memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len()));
        let datahub = self.shared.datahubs.by_id(id).ok_or(Code::UnknownDatahub)?;
        context.set_datahub(datahub.id.as_str());
        context.set_route(ROUTE);
        if target.len() > self.shared.settings.limits.target {
            return Err(ApiError::from(Code::TargetTooLong).closing());
        }
        Ok((datahub, raw_target))
    }

    /// Who calls: somebody without a login only where the DataHUB may be asked so. Whoever has a session cookie that does not open,
    /// or a session that has ended, is told so: they think that they are logged in.
    fn identify<'a>(
        &self,
        request: &RequestHead,
        datahub: &'a Arc<DataHub>,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<Caller<'a>, ApiError> {
        match self.shared.sessions.open(request.fields().values("cookie"), datahub, context, now) {
            Ok((sid, session)) => Ok(Caller { login: Some(Login { datahub, sid, session }) }),
            Err(SessionError::NoCookie)
                if datahub.anonymous_rate.is_some() && matches!(*request.method(), Method::GET | Method::HEAD) =>
            {
                context.is_anonymous.set(true);
                Ok(Caller { login: None })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// How the body is delimited in the request to the DataHUB. The browser's own fields about that are not forwarded.
pub fn body_length(request: &RequestHead) -> BodyLength {
    match request.body {
        // These have a body by definition, if an empty one (RFC 9110 section 8.6).
        BodyLength::None if matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH) => {
            BodyLength::Known(0)
        }
        length => length,
    }
}

/// The route of every forwarded call in the log.
const ROUTE: &str = "/datahubs/{datahub}/{path}";
/// A body longer than this, in bytes, counts as one that takes long to upload.
pub const LONG_BODY_BYTES: u64 = 1024 * 1024;
