//! Newer tokens, without shared state: the browser's cookie jar is what all processes share.
//!
//! GitLab revokes the old pair of tokens the moment it gives out the new one, with no grace. Of several refreshes of one
//! token one wins, and the others get `invalid_grant`, which harms nobody. Each rule here is there because of an order of
//! events that did happen. A call that is not forwarded under one of them has not been made: the browser is told by a 307
//! to send it again ([`crate::session::replay`]), with the cookies it has then.
//!
//! 1. *When.* A call whose token is about to expire is not forwarded before a refresh. Before a long body that is sooner:
//!    GitLab looks at the token again when the body is there. For the same reason it is not, while another long body is on
//!    its way up with that token. A young token is not refreshed, whoever asks, unless GitLab has rejected it.
//!    ([`crate::session::open_session::OpenSession::is_stale_at`], [`Session::is_young_at`])
//! 2. *One at a time.* There is one refresh for each refresh token in a process, over all workers, in a task of its own
//!    that goes on when the client leaves: once begun, its answer must reach somebody. It waits for that as long as
//!    `timeouts.token`, callers [`MAX_WAIT`] at most. The process awaits the task before it ends.
//! 3. *Who waited* gets the new cookie with the 307, all of them: any one of them may be the one whose answer arrives.
//! 4. *Latecomers.* What followed a token is kept for a while, in memory only. A call with a superseded cookie is sent
//!    again **without** a cookie first: the jar may hold something newer than this process knows, and an older cookie on
//!    top of that would be fatal. If it comes back with a superseded cookie, it is given the newest that is known, at the
//!    end of the chain.
//! 5. *Losers.* `invalid_grant` means that another process has won, and the jar has the new cookie or will have it. No
//!    cookie is written or removed. The call is sent again after a pause that grows, over a new connection, so that a load
//!    balancer may choose the process that knows. If that leads nowhere, the session has ended: 401, at once from then on,
//!    and a security event, since somebody else may have used a copy of the token. Where the DataHUB is slow, the process
//!    that has won may still wait for its answer; as long as that may be, the call is 503 instead ([`pace`]).
//! 6. *GitLab rejects a token.* It is refreshed once, however young. A token that has come out of a refresh on account of
//!    the same call is not. One that cannot be renewed is looked for in the jar once, where somebody may have put another.
//! 7. *Failures.* A refresh that fails never ends a session. After anything that is no clear refusal nothing is asked for
//!    that token for a while, and after some of it for no token at that DataHUB ([`backoff`]). A call whose token is valid
//!    goes up with it meanwhile; any other is 503, and told when to come back. A person whom the DataHUB has blocked has no
//!    session for a minute; then it is asked again.
//! 8. *Logout* waits for a refresh under way, revokes the newest pair, and ends every token of the chain. Tokens that come
//!    after that are revoked.
//! 9. *What is left.* The session is lost, and people log in again, if the process dies between GitLab's commit and the
//!    moment the browser has the cookie, if GitLab's answer is lost, or if the browser never gets a 307 with the cookie and
//!    no later call meets a process that knows it in time.
//!
//! [`crate::session::decision`] chooses between them.

mod backoff;
mod cache;
mod pace;
mod task;
pub mod uploads;

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use actix_web::http::header::HeaderValue;

use crate::access_log::Event;
use crate::context::RequestContext;
use crate::datahub::revocation::Revoker;
use crate::datahub::tasks::Tasks;
use crate::datahub::token::{RefreshToken, SessionToken, TokenSet};
use crate::datahub::{DataHub, DataHubs};
use crate::error::{ApiError, Code};
use crate::metrics;
use crate::session::decision::{Attempt, CacheEntry, Decision, MAX_WAIT, Reason, decide};
use crate::session::refresh::backoff::Backoff;
use crate::session::refresh::cache::{Begun, CacheKey, RefreshCache};
use crate::session::refresh::pace::Pace;
use crate::session::refresh::task::Refresh;
use crate::session::refresh::uploads::{Upload, Uploads};
use crate::session::{Session, SessionLimits, Sessions, Sid};

/// Renews token sets, for all workers of the process.
#[derive(Debug, Clone)]
pub struct Refresher {
    shared: Arc<Shared>,
    tasks: Tasks,
    limits: SessionLimits,
    /// Revokes what comes too late.
    pub revoker: Revoker,
}

/// What all workers and tasks share.
#[derive(Debug)]
struct Shared {
    cache: RefreshCache,
    /// In the order of the DataHUBs.
    endpoints: Vec<Mutex<EndpointState>>,
    uploads: Uploads,
}

/// What is known of one DataHUB's token endpoint.
#[derive(Debug, Default)]
struct EndpointState {
    backoff: Backoff,
    pace: Pace,
}

/// What becomes of a request whose tokens had to be looked at.
#[derive(Debug)]
pub enum Resolution {
    /// It goes on with the tokens that it has.
    UseCurrent,
    /// The session has newer tokens; the browser must have this cookie first.
    Renewed(Box<Session>, HeaderValue),
    /// Somebody else may have newer ones: the browser sends the call again, with the cookies it has then.
    Retry {
        /// Whether this connection ends, so that the next may lead to another process.
        closes: bool,
    },
}

/// A session of the request, and why it asks for newer tokens.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Where the session is.
    pub datahub: &'a Arc<DataHub>,
    /// Its name.
    pub sid: &'a Sid,
    /// The session.
    pub session: &'a Session,
    /// Why it asks.
    pub reason: Reason,
    /// How often the browser has sent the request again.
    pub replays: u8,
}

impl Refresher {
    /// A refresher for sessions at `datahubs` with these `limits`. Its refreshes are among `tasks`.
    pub fn new(datahubs: &DataHubs, limits: SessionLimits, tasks: Tasks) -> Self {
        let endpoints = datahubs.iter().map(|_| Mutex::default()).collect();
        let shared = Shared { cache: RefreshCache::new(limits.remember), endpoints, uploads: Uploads::default() };
        Self { shared: Arc::new(shared), revoker: Revoker::new(tasks.clone()), tasks, limits }
    }

    /// Whether something may be known of a session's token of this [`filter_hash`](crate::datahub::token::filter_hash);
    /// `false` is certain, and the answer for nearly every call. Costs two loads and no lock.
    pub fn may_have_entry_for(&self, filter_hash: u64) -> bool {
        self.shared.cache.may_hold(filter_hash)
    }

    /// Whether a call cannot go on with the tokens that it has, so that [`Refresher::resolve`] must be asked.
    pub fn must_resolve(&self, asking: Asking<'_>, now: SystemTime) -> bool {
        let (attempt, entry) = self.attempt(asking, now);
        decide(entry.as_ref(), attempt, Instant::now()) != Decision::UseCurrent
    }

    /// Whether the session with these tokens has ended here, though its cookie still opens.
    pub fn has_ended(&self, datahub: &DataHub, tokens: &TokenSet) -> bool {
        let now = Instant::now();
        let lookup =
            |tokens: &TokenSet| self.shared.cache.lookup(&CacheKey::new(datahub, &tokens.session_token()), tokens, now);
        let known = match lookup(tokens) {
            Some(CacheEntry::Superseded(next)) => lookup(&self.shared.cache.newest(datahub, &next, now)),
            known => known,
        };
        match known {
            Some(CacheEntry::Invalidated) => true,
            Some(CacheEntry::Blocked { until }) => now < until,
            _ => false,
        }
    }

    /// Notes that a long body is on its way up with a session's token, until what is returned is dropped.
    pub fn begin_upload(&self, filter_hash: u64) -> Upload {
        self.shared.uploads.begin(filter_hash)
    }

    /// Whether a long body is on its way up with a session's token: GitLab looks at the token once more when all of it is
    /// there, and would refuse one that has been renewed meanwhile.
    pub fn has_upload(&self, filter_hash: u64) -> bool {
        self.shared.uploads.contains(filter_hash)
    }

    /// What becomes of a request that asks for newer tokens, or must. Waits where there is something to wait for, 10 s at
    /// most.
    ///
    /// # Errors
    /// `session_expired` or `refresh_unavailable`; the session's cookie stays as it is. `datahub_invalid_response` for
    /// tokens that do not fit into a cookie.
    pub async fn resolve(
        &self,
        asking: Asking<'_>,
        sessions: &Sessions,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<Resolution, ApiError> {
        let Asking { datahub, session, replays, .. } = asking;
        let token = session.tokens.session_token();
        let (mut attempt, mut entry) = self.attempt(asking, now);
        loop {
            match decide(entry.as_ref(), attempt, Instant::now()) {
                Decision::UseCurrent => return Ok(Resolution::UseCurrent),
                Decision::UseNewest(next) => {
                    if !attempt.has_waited {
                        record("remembered", datahub, &token);
                    }
                    return self.renewed(asking, next, sessions, context);
                }
                Decision::Refresh => {
                    let Some(refresh_token) = &session.tokens.refresh else {
                        return Err(RefreshFailure::Expired.into());
                    };
                    entry = self.refresh(datahub, refresh_token, session).await;
                    attempt.has_waited = true;
                    attempt.is_valid = SystemTime::now() < session.tokens.expires_at();
                    attempt.patience = self.patience(datahub, Instant::now());
                }
                Decision::Retry => return Ok(Resolution::Retry { closes: false }),
                Decision::RetryElsewhere { pause, closes } => {
                    record("lost", datahub, &token);
                    tokio::time::sleep(pause).await;
                    return Ok(Resolution::Retry { closes });
                }
                Decision::GiveUp => {
                    record("lost", datahub, &token);
                    self.give_up(datahub, &token, replays, context);
                    return Err(RefreshFailure::Expired.into());
                }
                Decision::Expired => {
                    // One that nobody can renew is over with the DataHUB's word, which need not be asked for twice.
                    if asking.reason == Reason::Rejected && session.tokens.refresh.is_none() {
                        self.shared.cache.insert(
                            CacheKey::new(datahub, &token),
                            CacheEntry::Invalidated,
                            Instant::now(),
                        );
                    }
                    return Err(RefreshFailure::Expired.into());
                }
                Decision::Unavailable { retry_after } => {
                    record("unavailable", datahub, &token);
                    return Err(RefreshFailure::Unavailable { retry_after }.into());
                }
            }
        }
    }

    /// The session with the newest tokens that follow `next`, and its cookie.
    fn renewed(
        &self,
        asking: Asking<'_>,
        next: &TokenSet,
        sessions: &Sessions,
        context: &RequestContext,
    ) -> Result<Resolution, ApiError> {
        let Asking { datahub, sid, session, .. } = asking;
        let newest = self.shared.cache.newest(datahub, next, Instant::now());
        let renewed = session.renewed(newest, &self.limits);
        match sessions.session_cookie(datahub, sid, &renewed, context, SystemTime::now()) {
            Ok(cookie) => Ok(Resolution::Renewed(Box::new(renewed), cookie)),
            Err(error) => {
                // Nobody will ever hold them.
                let token = session.tokens.session_token();
                if let Some(orphan) = self.shared.cache.invalidate_chain(datahub, token, None, Instant::now()) {
                    drop(self.revoker.revoke(datahub, orphan));
                }
                Err(error.into())
            }
        }
    }

    /// Ends a session, here and at the DataHUB: the newest tokens that follow `token`. A refresh of it that is under way is
    /// waited for, and the revocation, `patience` each; both go on after that. What is `kept` is not ended: a DataHUB may
    /// give out the same tokens again.
    pub async fn end_session(
        &self,
        datahub: &Arc<DataHub>,
        token: SessionToken,
        kept: Option<&SessionToken>,
        patience: Duration,
    ) {
        if let Some(mut outcome) = self.shared.cache.in_flight(&CacheKey::new(datahub, &token), Instant::now()) {
            // Whatever came of it, the cache knows.
            let _ = tokio::time::timeout(patience, outcome.wait_for(Option::is_some)).await;
        }
        if let Some(newest) = self.shared.cache.invalidate_chain(datahub, token, kept, Instant::now()) {
            let _ = tokio::time::timeout(patience, self.revoker.revoke(datahub, newest)).await;
        }
    }

    /// The token endpoint has said 429 to a login: that is about all of us.
    pub fn hold_back(&self, datahub: &DataHub, retry_after: Option<Duration>) {
        self.shared.endpoint(datahub).backoff.hold(false, retry_after, Instant::now());
    }

    /// A login has just brought these tokens: whatever was known of them is over.
    pub fn begin_session(&self, datahub: &DataHub, tokens: &TokenSet) {
        self.shared.cache.forget(&CacheKey::new(datahub, &tokens.session_token()));
    }

    /// What a request asks, and what is known of its token. Where nothing is, refreshes may be held back for everybody.
    fn attempt(&self, asking: Asking<'_>, now: SystemTime) -> (Attempt, Option<CacheEntry>) {
        let Asking { datahub, session, reason, replays, .. } = asking;
        let tokens = &session.tokens;
        let asked = Instant::now();
        let attempt = Attempt {
            reason,
            replays,
            is_young: session.is_young_at(now, &self.limits),
            is_valid: now < tokens.expires_at(),
            can_refresh: tokens.refresh.is_some(),
            has_waited: false,
            patience: self.patience(datahub, asked),
        };
        let key = CacheKey::new(datahub, &tokens.session_token());
        let entry = self.shared.cache.lookup(&key, tokens, asked);
        let failures = match entry {
            None => 0,
            Some(CacheEntry::Failed { until, failures }) if until <= asked => failures,
            _ => return (attempt, entry),
        };
        let held = self.shared.endpoint(datahub).backoff.held_until(key, asked);
        let held = held.map(|until| CacheEntry::Failed { until, failures });
        (attempt, held.or(entry))
    }

    /// How long another process may wait for an answer that this one cannot see.
    fn patience(&self, datahub: &DataHub, now: Instant) -> Duration {
        let is_slow = self.shared.endpoint(datahub).pace.is_slow(now);
        if is_slow { datahub.provider.patience() } else { Duration::ZERO }
    }

    /// Waits for a refresh of a session's tokens, and begins one if none is under way: what is known afterwards. If it takes too
    /// long, it still is in flight.
    async fn refresh(&self, datahub: &Arc<DataHub>, token: &RefreshToken, session: &Session) -> Option<CacheEntry> {
        let tokens = &session.tokens;
        let key = CacheKey::new(datahub, &tokens.session_token());
        let since = Instant::now();
        let (mut receiver, since, failures) = match self.shared.cache.begin(key, tokens, since) {
            Begun::Known(CacheEntry::InFlight { outcome, since, failures }) => {
                record("joined", datahub, &tokens.session_token());
                (outcome, since, failures)
            }
            Begun::Known(entry) => return Some(entry),
            Begun::New { sender, outcome, failures } => {
                let (datahub, token, shared) = (Arc::clone(datahub), token.clone(), Arc::clone(&self.shared));
                let (revoker, begun) = (self.revoker.clone(), Cell::default());
                let person = session.user_key();
                let refresh = Refresh { datahub, token, person, key, failures, sender, shared, revoker, begun };
                drop(self.tasks.run(move || refresh.run()));
                (outcome, since, failures)
            }
        };
        let outcome = tokio::time::timeout(MAX_WAIT, receiver.wait_for(Option::is_some)).await;
        match outcome.map(|outcome| outcome.map(|outcome| outcome.clone())) {
            Ok(Ok(outcome)) => outcome,
            // It was not begun: the session has ended meanwhile, or the process ends.
            Ok(Err(_)) => self.shared.cache.lookup(&key, tokens, Instant::now()),
            Err(_) => Some(CacheEntry::InFlight { outcome: receiver, since, failures }),
        }
    }

    /// The session is lost: from now on its token is known to have ended.
    fn give_up(&self, datahub: &DataHub, token: &SessionToken, replays: u8, context: &RequestContext) {
        self.shared.cache.insert(CacheKey::new(datahub, token), CacheEntry::Invalidated, Instant::now());
        log::warn!(datahub = datahub.id.as_str(), refresh_token_hash = token.fingerprint(), replays;
            "a session is lost: nobody knows what followed its refresh token");
        context.event(Event::RefreshReuse, datahub.id.as_str());
    }
}

impl Shared {
    fn endpoint(&self, datahub: &DataHub) -> MutexGuard<'_, EndpointState> {
        self.endpoints[datahub.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts and logs how a call met a refresh.
fn record(result: &'static str, datahub: &DataHub, token: &SessionToken) {
    metrics::refresh(result);
    log::info!(datahub = datahub.id.as_str(), refresh_token_hash = token.fingerprint(), result; "refresh");
}

/// Why a call cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum RefreshFailure {
    /// The tokens are spent or revoked, and nobody has newer ones.
    #[error("the tokens are spent, or the DataHUB has blocked the person")]
    Expired,
    /// The DataHUB did not answer in time, or not as it should.
    #[error("no refresh at the moment; the DataHUB is asked again later")]
    Unavailable {
        /// When to come back.
        retry_after: Duration,
    },
}

impl From<RefreshFailure> for ApiError {
    fn from(failure: RefreshFailure) -> Self {
        match failure {
            RefreshFailure::Expired => Self::because(Code::SessionExpired, failure),
            RefreshFailure::Unavailable { retry_after } => {
                Self::because(Code::RefreshUnavailable, failure).retry_after(retry_after)
            }
        }
    }
}
