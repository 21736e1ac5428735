//! The same way to the old Python backend.
//!
//! An installation may still have the ARCmanager's old backend for what it makes of files: spreadsheets, templates,
//! validation, uploads. Its paths go there as they are, with the one cookie that it knows, made for each call; the browser
//! holds nothing but the sealed session. All else is the proxy's: refresh, replay, limits, log, metrics.
//!
//! Two things differ by necessity. The backend turns a DataHUB's 401 into answers of other kinds, so a token that GitLab has
//! refused looks like any other failure: what keeps tokens good is that they are renewed before they expire. And the app takes a
//! 504 for "the upload goes on in the background", so there is none before the whole body went up.

pub mod data_cookie;
pub mod policy;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::access_log::{Event, LastSaid, event_because};
use crate::bridge::data_cookie::DataCookieKeys;
use crate::bridge::policy::BridgePolicy;
use crate::context::RequestContext;
use crate::datahub::health::Health;
use crate::datahub::transport::Address;
use crate::datahub::{DataHubId, REPORT_INTERVAL};
use crate::error::{ApiError, Code};
use crate::guard::Access;
use crate::http::buffer::BufferPool;
use crate::http::head::RequestHead;
use crate::http::server::ServerConnection;
use crate::proxy::call::Call;
use crate::proxy::caller::{Login, anonymous_holder};
use crate::proxy::failure::Failure;
use crate::proxy::limiter::Holder;
use crate::proxy::request::{Credential, Message};
use crate::proxy::response::UrlRewriter;
use crate::proxy::upstream::{SharedUpstream, Upstream, UpstreamRequest, UpstreamTimeouts};
use crate::proxy::{LONG_BODY_BYTES, Proxy, ProxyLimits, ProxySettings, body_length};
use crate::session::replay::ReplayTarget;
use crate::session::{SessionError, Sessions};

/// One worker's bridge.
#[derive(Debug)]
pub struct Bridge {
    shared: Arc<SharedBridge>,
    upstream: Upstream,
    pool: BufferPool,
}

/// What the bridges of all workers share.
#[derive(Debug)]
pub struct SharedBridge {
    settings: BridgeSettings,
    upstream: Arc<SharedUpstream>,
    /// The gateway's own address, without a slash at its end.
    public: String,
    limits: ProxyLimits,
    sessions: Arc<Sessions>,
    /// That a link of its answers was dropped.
    link_reported: LastSaid,
}

/// The bridge's part of the configuration.
#[derive(Debug, Clone)]
pub struct BridgeSettings {
    /// Where the old backend is.
    pub address: Address,
    /// What its cookies are made with.
    pub keys: DataCookieKeys,
    /// What goes up.
    pub policy: BridgePolicy,
    /// From the end of a request to the head of the answer.
    pub first_byte: Duration,
}

impl SharedBridge {
    /// A bridge below `public`, which is held to what the proxy is held to.
    pub fn new(public: &str, settings: BridgeSettings, proxy: &ProxySettings, sessions: Arc<Sessions>) -> Self {
        let timeouts = UpstreamTimeouts { first_byte: settings.first_byte, ..proxy.timeouts };
        let name: DataHubId = NAME.parse().expect("it is a good id");
        let health = Arc::new(Health::of_backend(name.clone()));
        let upstream = Arc::new(SharedUpstream::new(name, &health, settings.address.clone(), timeouts, proxy.limits));
        let (public, limits, link_reported) = (public.to_owned(), proxy.limits, LastSaid::default());
        Self { settings, upstream, public, limits, sessions, link_reported }
    }
}

impl Bridge {
    /// The bridge of one of `workers`: its connections are its own, all else is shared.
    pub fn new(shared: Arc<SharedBridge>, pool: BufferPool, workers: usize) -> Self {
        Self { upstream: Upstream::new(Arc::clone(&shared.upstream), pool.clone(), workers), shared, pool }
    }

    /// Whether a request is one for the old backend.
    pub fn serves(&self, request: &RequestHead) -> bool {
        self.shared.settings.policy.route(request.target()).is_some()
    }

    /// Forwards one call of the browser at `downstream` and passes the answer on. `proxy` is that of the same worker.
    ///
    /// No body is looked through for credentials, as the proxy does: those are parameters of GitLab's API, and the backend
    /// reads parameters of its own and writes its calls to GitLab by itself. What it would pass on from a query unread is
    /// the policy's concern.
    ///
    /// # Errors
    /// [`Failure`], before anything was written to the browser.
    pub async fn forward(
        &self,
        proxy: &Proxy,
        request: &RequestHead,
        downstream: &mut ServerConnection,
        access: Access,
        context: &RequestContext,
    ) -> Result<(), Failure> {
        let SharedBridge { settings, public, limits, link_reported, .. } = &*self.shared;
        let BridgeSettings { address, keys, policy, .. } = settings;
        let now = SystemTime::now();
        let replay = ReplayTarget::parse(request.target());
        let target = &*replay.target;
        context.set_datahub(NAME);
        context.set_route(policy.route(target).ok_or(Code::NotFound)?);
        context.replay.set(replay.replays);
        if target.len() > limits.target {
            return Err(ApiError::from(Code::TargetTooLong).closing().into());
        }
        let is_public = policy.is_public(request.method().as_str(), target);
        let login = match self.identify(request, context, now) {
            Ok(login) => Some(login),
            Err(_) if is_public => None,
            Err(error) => return Err(ApiError::from(error).of_backend().into()),
        };
        policy
            .check(target)
            .map_err(|error| Failure::from(ApiError::from(error).of_backend()).log_if_security_event(NAME, context))?;
        let (length, max_body) = (body_length(request), limits.body.min(MAX_BODY));
        if length.known().is_some_and(|length| length > max_body) {
            return Err(Code::BodyTooLarge.into());
        }
        downstream.limit_body(max_body);

        let call = Call { proxy, request, access, replay: &replay, context };
        let is_long = length.may_exceed(LONG_BODY_BYTES);
        // What anybody may have is asked for without a token, also by who has one.
        let bearer = login.as_ref().filter(|_| !is_public);
        match bearer {
            Some(login) => call.check_login(login, is_long, downstream, now).await?,
            None if login.is_some() => {}
            None => {
                context.is_anonymous.set(true);
                proxy.check_anonymous_client(NAME, context, None)?;
            }
        }
        let upload = bearer.filter(|_| is_long).map(|login| call.begin_upload(login));

        let cookie = bearer.map(|login| keys.mint(&login.session, &login.datahub.id, now));
        let envelope = call.envelope(address, Credential::DataCookie(cookie.as_ref().map(|value| value.as_str())));
        let message = Message::of_call(self.pool.take(), request, target, length, None, envelope)?;
        let upstream_request =
            UpstreamRequest::new(request.method().as_str(), message.as_bytes(), length, bearer.map(Login::tag));
        let holder = holder(login.as_ref(), context);
        let exchanged = self.upstream.exchange(holder, &upstream_request, downstream, context).await;
        let mut exchange = exchanged.map_err(|error| error.failure(request).of_backend())?;
        call.check_answer(&exchange).map_err(Failure::of_backend)?;
        drop((message, cookie, upload));

        replay.record_outcome("passed");
        let rewriter = UrlRewriter {
            upstream: address,
            public,
            forwards: |target: &str| policy.route(target).is_some() && policy.check(target).is_ok(),
            own: target,
            more_fields: &["total-pages", "missing-package"],
            dropped: Cell::default(),
        };
        let head = call.write_head(&exchange, &rewriter, downstream).map_err(ApiError::of_backend);
        if let Some(reason) = rewriter.dropped.get().filter(|_| link_reported.is_due(REPORT_INTERVAL, Instant::now())) {
            event_because(Event::LinkDropped, NAME, None, reason);
        }
        call.relay(&mut exchange, head?, None, NAME, downstream).await;
        Ok(())
    }

    /// Who calls: of the sessions that open, the one that began last, as the app's readable cookies have it. The backend knows
    /// one login only.
    fn identify<'a>(
        &'a self,
        request: &RequestHead,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<Login<'a>, SessionError> {
        let latest = self.shared.sessions.latest(|| request.fields().values("cookie"), context, now);
        latest.map(|(datahub, sid, session)| Login { datahub, sid, session })
    }
}

/// Whose share of the places a call has. Two people at two DataHUBs may have the same number there.
fn holder(login: Option<&Login<'_>>, context: &RequestContext) -> Holder {
    login.map_or_else(
        || anonymous_holder(context),
        |login| Holder::Person(login.session.user_key() ^ (login.datahub.index() as u64) << 48),
    )
}

/// What log and metrics call the old backend, beside the ids of DataHUBs.
pub const NAME: &str = "bridge";
/// Longest body, in bytes: the app sends uploads in pieces of 100 MiB. A call that is sent again has no longer one, either.
const MAX_BODY: u64 = 128 * 1024 * 1024;
