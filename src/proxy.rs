//! Going through: forwards one API call.
//!
//! The recipe, top to bottom: which DataHUB, whose session, which target, fresh tokens, up, down. Whoever reads
//! [`forward`] has read it all; each step has a room of its own.

pub mod body;
pub mod framing;
pub mod gate;
pub mod graphql;
pub mod refusal;
pub mod request;
pub mod response;
pub mod target;
pub mod upstream;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use actix_web::web::{Data, Payload, ReqData};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};

use crate::access_log::Event;
use crate::context::RequestContext;
use crate::datahub::{DataHub, DataHubId, DataHubs};
use crate::error::{ApiError, Code};
use crate::origin::Admission;
use crate::proxy::body::Body;
use crate::proxy::gate::Gate;
use crate::proxy::request::Framing;
use crate::proxy::response::Addresses;
use crate::proxy::target::{Policy, Target};
use crate::proxy::upstream::{Deadlines, Outgoing, Upstream};
use crate::session::decision::Reason;
use crate::session::refresh::{Refresher, Resolution};
use crate::session::replay::{self, ReplayTarget};
use crate::session::{Session, Sessions, Sid};

/// One worker's proxy to all DataHUBs.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    upstreams: BTreeMap<DataHubId, Rc<Upstream>>,
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
    gates: BTreeMap<DataHubId, Arc<Gate>>,
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
        let gates = datahubs.iter().map(|datahub| {
            (
                datahub.id.clone(),
                Arc::new(Gate::new(datahub.id.clone(), settings.limits.in_flight, settings.limits.waiting)),
            )
        });
        let (gates, public, prefix) = (gates.collect(), public.to_owned(), format!("{base_path}/datahubs/"));
        Self { prefix, public, settings, datahubs, gates, sessions, refresher }
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

/// Forwards one call.
///
/// # Errors
/// [`ApiError`]; where nothing was sent upstream the code says so.
pub async fn forward(
    req: HttpRequest,
    body: Payload,
    proxy: Data<Proxy>,
    context: ReqData<Rc<RequestContext>>,
) -> Result<HttpResponse, ApiError> {
    let now = SystemTime::now();
    if !target::is_forwarded(req.method()) {
        return Err(Code::MethodNotImplemented.into());
    }
    let counted = ReplayTarget::parse(proxy.raw_target(&req)?)?;
    let shared = &*proxy.shared;
    let (datahub, raw) = proxy.datahub(counted.target, &context)?;
    context.replay.set(counted.replays);
    let (sid, session) = shared.sessions.open(req.headers(), datahub, &context, now)?;
    let target = Target::parse(raw, &shared.settings.policy)
        .map_err(ApiError::from)
        .inspect_err(|error| refused(error, datahub, &context))?;
    let framing = Framing::of(req.method(), req.headers());
    if matches!(framing, Framing::Length(length) if length > shared.settings.limits.body) {
        return Err(Code::BodyTooLarge.into());
    }

    let round = Round { proxy: &proxy, context: &context, counted, datahub, sid: &sid, session: &session };
    let is_stale = session.is_stale_at(now, proxy.refresh_ahead(framing));
    if is_stale || shared.refresher.has_entry_for(datahub, &session.tokens) {
        // The body first: should it be too long, no refresh has been spent on a call that cannot be sent again.
        replay::drain(body, framing.length()).await?;
        return round.again(if is_stale { Reason::Expiring } else { Reason::None }).await;
    }

    let head = request::head(&req, target, framing, datahub, &session.tokens.access, &context, &shared.public)?;
    let body = if target.is_graphql() {
        graphql::inspected(req.method(), req.headers(), body, framing, &context).await
    } else {
        Body::inspected(body, framing, req.headers(), &context).await
    };
    let body = body.inspect_err(|error| refused(error, datahub, &context))?;
    let sent = Instant::now();
    let upstream = &proxy.upstreams[&datahub.id];
    let mut answer = upstream.send(Outgoing::new(req.method(), head, body, framing, &context)).await?;
    context.upstream.set(Some(sent.elapsed()));
    if refusal::is_of_token(&mut answer, upstream, datahub, &session.tokens.access, &context).await {
        if let Some(rest) = answer.unsent {
            replay::drain(rest, None).await?;
        }
        return round.again(Reason::Rejected).await;
    }
    round.has_passed();

    let here = format!("{}{}{}", shared.public, shared.prefix, datahub.id);
    let is_download = req.extensions().get() == Some(&Admission::Download);
    let addresses = Addresses { there: &datahub.address, here: &here, policy: &shared.settings.policy };
    response::inbound(answer, &addresses, is_download).map(HttpResponse::map_into_boxed_body)
}

/// A call that is not made now: the browser sends it again, with newer tokens or to look for some.
struct Round<'a> {
    proxy: &'a Proxy,
    context: &'a RequestContext,
    counted: ReplayTarget<'a>,
    datahub: &'a Arc<DataHub>,
    sid: &'a Sid,
    session: &'a Session,
}

impl Round<'_> {
    async fn again(self, reason: Reason) -> Result<HttpResponse, ApiError> {
        let Self { proxy, context, counted, datahub, sid, session } = self;
        let Shared { sessions, refresher, .. } = &*proxy.shared;
        match refresher.resolve(datahub, session, reason, counted.replays, context, SystemTime::now()).await {
            // What was known is forgotten; but the body has been read.
            Ok(Resolution::UseCurrent) => Err(counted.retry_response(None, false)),
            Ok(Resolution::Renewed(tokens)) => {
                let renewed = session.renewed(tokens, sessions.limits());
                let cookie = sessions.renewed(datahub, sid, &renewed, context, SystemTime::now())?;
                Err(counted.retry_response(Some(cookie), false))
            }
            Ok(Resolution::Retry { closes }) => Err(counted.retry_response(None, closes)),
            Err(failure) => {
                counted.record_outcome("lost");
                Err(failure.into())
            }
        }
    }

    fn has_passed(&self) {
        self.counted.record_outcome("passed");
    }
}

impl Proxy {
    /// A worker's own proxy: its connections are its own, all else is shared.
    pub fn new(shared: Arc<Shared>) -> Self {
        let upstreams = shared.datahubs.iter().map(|datahub| {
            let gate = Arc::clone(&shared.gates[&datahub.id]);
            (datahub.id.clone(), Upstream::new(datahub.address.clone(), shared.settings.deadlines, gate))
        });
        Self { upstreams: upstreams.collect(), shared }
    }

    /// The request's target, raw, if it is a path on this server and not too long.
    fn raw_target<'a>(&self, req: &'a HttpRequest) -> Result<&'a str, ApiError> {
        let uri = req.uri();
        if uri.authority().is_some() {
            return Err(Code::BadRequestTarget.into());
        }
        let raw = uri.path_and_query().ok_or(Code::BadRequestTarget)?.as_str();
        if raw.len() > self.shared.settings.limits.target + LONGEST_COUNTER {
            return Err(ApiError::from(Code::TargetTooLong).closing());
        }
        Ok(raw)
    }

    /// The DataHUB that a target names, and what follows its id.
    fn datahub<'a>(&self, target: &'a str, context: &RequestContext) -> Result<(&Arc<DataHub>, &'a str), ApiError> {
        let rest = target.strip_prefix(&self.shared.prefix).ok_or(Code::NotFound)?;
        let (id, raw) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let datahub = self.shared.datahubs.by_id(id).ok_or(Code::UnknownDatahub)?;
        if target.len() > self.shared.settings.limits.target {
            return Err(ApiError::from(Code::TargetTooLong).closing());
        }
        context.set_datahub(datahub.id.as_str());
        context.set_route(ROUTE);
        Ok((datahub, raw))
    }

    /// With how much of its life left a token is renewed before this call: more before a long body, since it is
    /// GitLab's answer to that body, long after its first byte, that the token must live to see.
    fn refresh_ahead(&self, framing: Framing) -> Duration {
        let limits = self.shared.sessions.limits();
        if framing.may_exceed(LONG_BODY) { limits.refresh_ahead_body } else { limits.refresh_ahead }
    }
}

fn refused(error: &ApiError, datahub: &DataHub, context: &RequestContext) {
    match error.code() {
        Code::CredentialParameter | Code::CredentialEndpoint => {
            context.event(Event::CredentialRefused, datahub.id.as_str());
        }
        Code::BadRequestTarget | Code::NotForwarded => context.event(Event::TargetRefused, datahub.id.as_str()),
        _ => {}
    }
}

/// What the log calls a forwarded call.
const ROUTE: &str = "/datahubs/{datahub}/{path}";
/// `?_gateway_replay=16`, in bytes.
const LONGEST_COUNTER: usize = 19;
/// A longer body, in bytes, is a long one.
const LONG_BODY: u64 = 1024 * 1024;
