//! Newer tokens, without shared state: the browser's cookie jar is what all processes share.
//!
//! GitLab revokes the old pair of tokens the moment it gives out the new one, with no grace. Of several refreshes of one
//! token one wins, and the others get `invalid_grant`, which harms nobody. Each rule here is there because of an order of
//! events that did happen. A call that is not forwarded under one of them has not been made: the browser is told by a 307
//! to send it again ([`crate::session::replay`]), with the cookies it has then.
//!
//! 1. *When.* A call whose token is about to expire is not forwarded before a refresh. Before a long body that is sooner:
//!    GitLab looks at the token again when the body is there. A young token is not refreshed, whoever asks, unless GitLab
//!    has rejected it. ([`crate::session::open_session::OpenSession::is_stale_at`], [`Session::is_young_at`])
//! 2. *One at a time.* There is one refresh for each refresh token in a process, over all workers, in a task of its own
//!    that goes on when the client leaves: once begun, its answer must reach somebody. Callers wait for it,
//!    [`MAX_WAIT`] at most. The process awaits the task before it ends.
//! 3. *Who waited* gets the new cookie with the 307, all of them: any one of them may be the one whose answer arrives.
//! 4. *Latecomers.* What followed a token is kept for a while, in memory only. A call with a superseded cookie is sent
//!    again **without** a cookie first: the jar may hold something newer than this process knows, and an older cookie on
//!    top of that would be fatal. If it comes back with a superseded cookie, it is given the newest that is known, at the
//!    end of the chain.
//! 5. *Losers.* `invalid_grant` means that another process has won, and the jar has the new cookie or will have it. No
//!    cookie is written or removed. The call is sent again after a pause that grows, over a new connection, so that a load
//!    balancer may choose the process that knows. If that leads nowhere, the session has ended: 401, at once from then on,
//!    and a security event, since somebody else may have used a copy of the token.
//! 6. *GitLab rejects a token.* It is refreshed once, however young. A token that has come out of a refresh on account of
//!    the same call is not.
//! 7. *Failures.* A refresh that fails never ends a session. Whatever is not a clear refusal is 503, and nothing changes.
//! 8. *Logout* waits for a refresh under way, revokes the newest pair, and ends every token of the chain.
//! 9. *What is left.* The session is lost, and people log in again, if the process dies between GitLab's commit and the
//!    moment the browser has the cookie, if GitLab's answer is lost, or if the browser never gets a 307 with the cookie and
//!    no later call meets a process that knows it in time.
//!
//! [`crate::session::decision`] chooses between them.

mod cache;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::access_log::{self, Event, chain};
use crate::context::RequestContext;
use crate::datahub::DataHub;
use crate::datahub::oidc::RefreshError;
use crate::datahub::token::{RefreshToken, TokenSet};
use crate::error::{ApiError, Code};
use crate::metrics;
use crate::session::decision::{Attempt, CacheEntry, Decision, Reason, decide};
use crate::session::refresh::cache::{Begun, CacheKey, RefreshCache};
use crate::session::{Session, SessionLimits};

/// Renews token sets, for all workers of the process.
#[derive(Debug, Clone)]
pub struct Refresher {
    cache: Arc<RefreshCache>,
    tasks: mpsc::UnboundedSender<Task>,
    limits: SessionLimits,
}

/// Which tokens a call goes on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// Those that it has.
    UseCurrent,
    /// These newer ones; the browser must have them first.
    Renewed(TokenSet),
    /// Somebody else may have newer ones: the browser sends the call again, with the cookies it has then.
    Retry {
        /// Whether this connection ends, so that the next may lead to another process.
        closes: bool,
    },
}

impl Refresher {
    /// A refresher for sessions with these `limits`, and the place where its tasks run.
    pub fn new(limits: SessionLimits) -> (Self, Tasks) {
        let (tasks, queue) = mpsc::unbounded_channel();
        (Self { cache: Arc::new(RefreshCache::new(limits.remember)), tasks, limits }, Tasks(queue))
    }

    /// Whether something may be known of a refresh token of this [`filter_hash`](crate::datahub::token::filter_hash); `false` is
    /// certain, and the answer for nearly every call. Costs two loads and no lock.
    pub fn may_have_entry_for(&self, filter_hash: u64) -> bool {
        self.cache.may_hold(filter_hash)
    }

    /// Whether a call with these tokens must ask [`Refresher::resolve`], whatever its own reason. Takes a lock only if
    /// [`Refresher::may_have_entry_for`].
    pub fn has_entry_for(&self, datahub: &DataHub, tokens: &TokenSet) -> bool {
        let Some(token) = &tokens.refresh else { return false };
        self.may_have_entry_for(token.filter_hash())
            && self.cache.lookup(&CacheKey::new(datahub, token), tokens, Instant::now()).is_some()
    }

    /// Whether the session with these tokens has ended here, though its cookie still opens.
    pub fn is_invalidated(&self, datahub: &DataHub, tokens: &TokenSet) -> bool {
        let Some(token) = &tokens.refresh else { return false };
        let entry = self.cache.lookup(&CacheKey::new(datahub, token), tokens, Instant::now());
        matches!(entry, Some(CacheEntry::Invalidated))
    }

    /// Which tokens a call of `session` goes on with, that the browser has sent `replays` times before. Waits where there is
    /// something to wait for, 10 s at most.
    ///
    /// # Errors
    /// [`RefreshFailure`]; the session's cookie stays as it is.
    pub async fn resolve(
        &self,
        datahub: &Arc<DataHub>,
        session: &Session,
        reason: Reason,
        replays: u8,
        context: &RequestContext,
        now: SystemTime,
    ) -> Result<Resolution, RefreshFailure> {
        let Some(token) = &session.tokens.refresh else {
            return if reason == Reason::None { Ok(Resolution::UseCurrent) } else { Err(RefreshFailure::Expired) };
        };
        let is_young = session.is_young_at(now, &self.limits);
        let mut attempt = Attempt { reason, replays, is_young, has_waited: false };
        let mut entry = self.cache.lookup(&CacheKey::new(datahub, token), &session.tokens, Instant::now());
        loop {
            match decide(entry.as_ref(), attempt, Instant::now()) {
                Decision::UseCurrent => return Ok(Resolution::UseCurrent),
                Decision::UseNewest(next) => {
                    if !attempt.has_waited {
                        record("remembered", datahub, token);
                    }
                    return Ok(Resolution::Renewed(self.cache.newest(datahub, next, Instant::now())));
                }
                Decision::Refresh => {
                    entry = Some(self.refresh(datahub, token, &session.tokens).await);
                    attempt.has_waited = true;
                }
                Decision::Retry => return Ok(Resolution::Retry { closes: false }),
                Decision::RetryElsewhere { pause, closes } => {
                    record("lost", datahub, token);
                    tokio::time::sleep(pause).await;
                    return Ok(Resolution::Retry { closes });
                }
                Decision::GiveUp => {
                    record("lost", datahub, token);
                    self.give_up(datahub, token, replays, context);
                    return Err(RefreshFailure::Expired);
                }
                Decision::Expired => return Err(RefreshFailure::Expired),
                Decision::Unavailable => return Err(RefreshFailure::Unavailable),
            }
        }
    }

    /// Ends a session: the newest token that follows `token`, once a refresh of it that is under way is done, or `patience`
    /// is over. Every token of the chain is invalid from then on; what a refresh brings after that is revoked.
    pub async fn invalidate_chain(&self, datahub: &DataHub, token: &RefreshToken, patience: Duration) -> RefreshToken {
        if let Some(mut outcome) = self.cache.in_flight(&CacheKey::new(datahub, token), Instant::now()) {
            // Whatever came of it, the cache knows.
            let _ = tokio::time::timeout(patience, outcome.wait_for(Option::is_some)).await;
        }
        self.cache.invalidate_chain(datahub, token, Instant::now())
    }

    /// Waits for a refresh of `tokens`, and begins one if none is under way: what is known afterwards. If it takes too long,
    /// it still is in flight.
    async fn refresh(&self, datahub: &Arc<DataHub>, token: &RefreshToken, tokens: &TokenSet) -> CacheEntry {
        let key = CacheKey::new(datahub, token);
        let mut receiver = match self.cache.begin(key, tokens, Instant::now()) {
            Begun::Known(CacheEntry::InFlight(receiver)) => {
                record("joined", datahub, token);
                receiver
            }
            Begun::Known(entry) => return entry,
            Begun::New(sender, receiver) => {
                let (datahub, token, cache) = (Arc::clone(datahub), token.clone(), Arc::clone(&self.cache));
                // Once the process ends nobody takes it, and the sender is dropped, which callers see.
                let _ = self.tasks.send(Task { datahub, token, key, outcome: sender, cache });
                receiver
            }
        };
        let outcome = match tokio::time::timeout(MAX_WAIT, receiver.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone(),
            Ok(Err(_)) => Some(CacheEntry::Failed),
            Err(_) => None,
        };
        outcome.unwrap_or(CacheEntry::InFlight(receiver))
    }

    /// The session is lost: from now on its token is known to have ended.
    fn give_up(&self, datahub: &DataHub, token: &RefreshToken, replays: u8, context: &RequestContext) {
        self.cache.insert(CacheKey::new(datahub, token), CacheEntry::Invalidated, Instant::now());
        log::warn!(datahub = datahub.id.as_str(), refresh_token_hash = token.fingerprint(), replays;
            "a session is lost: nobody knows what followed its refresh token");
        context.event(Event::RefreshReuse, datahub.id.as_str());
    }
}

/// Where refreshes run: on one thread that outlives the workers.
#[derive(Debug)]
pub struct Tasks(mpsc::UnboundedReceiver<Task>);

impl Tasks {
    /// Runs refreshes until `end` is ready and the last of them is done.
    pub async fn run(mut self, end: impl Future<Output = ()>) {
        let mut running = JoinSet::new();
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                Some(task) = self.0.recv() => { running.spawn_local(task.run()); }
                Some(_) = running.join_next() => {}
                () = &mut end => break,
            }
        }
        self.0.close();
        while let Some(task) = self.0.recv().await {
            running.spawn_local(task.run());
        }
        while running.join_next().await.is_some() {}
    }
}

/// One refresh, from the token endpoint to the cache.
#[derive(Debug)]
struct Task {
    datahub: Arc<DataHub>,
    token: RefreshToken,
    key: CacheKey,
    outcome: watch::Sender<Option<CacheEntry>>,
    cache: Arc<RefreshCache>,
}

impl Task {
    async fn run(self) {
        let started = Instant::now();
        let refreshed = self.datahub.provider.refresh(&self.token).await;
        let now = Instant::now();
        self.log(&refreshed, now.duration_since(started));
        let outcome = match &refreshed {
            Ok(tokens) => CacheEntry::Superseded(tokens.clone()),
            Err(RefreshError::InvalidGrant) => CacheEntry::InvalidGrant { since: now },
            Err(_) => CacheEntry::Failed,
        };
        let kept = self.cache.finish(&self.key, outcome, now);
        let was_invalidated = kept.is_none();
        // After a logout the jar may hold another session: those who wait look there, as losers do.
        let outcome = kept.unwrap_or(CacheEntry::InvalidGrant { since: now });
        // Nobody may be waiting any more.
        let _ = self.outcome.send(Some(outcome));
        if was_invalidated && let Ok(TokenSet { refresh: Some(orphan), .. }) = refreshed {
            self.revoke(&orphan).await;
        }
    }

    fn log(&self, refreshed: &Result<TokenSet, RefreshError>, elapsed: Duration) {
        let (datahub, refresh_token_hash) = (self.datahub.id.as_str(), self.token.fingerprint());
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        match refreshed {
            Ok(_) => {
                metrics::refresh("refreshed");
                log::info!(datahub, refresh_token_hash, elapsed_ms, result = "refreshed"; "refresh");
            }
            Err(error) => {
                metrics::refresh("failed");
                let reason = chain(error);
                log::warn!(datahub, refresh_token_hash, elapsed_ms, result = "failed", reason; "refresh");
            }
        }
    }

    /// A logout did not wait for this refresh: what it should have revoked is revoked here.
    async fn revoke(&self, orphan: &RefreshToken) {
        if let Err(error) = self.datahub.provider.revoke(orphan).await {
            let (datahub, reason) = (self.datahub.id.as_str(), chain(&error));
            log::warn!(datahub, reason; "the tokens of a session that ended could not be revoked");
            access_log::event(Event::RevokeFailed, datahub, None);
        }
    }
}

/// Counts and logs how a call met a refresh.
fn record(result: &'static str, datahub: &DataHub, token: &RefreshToken) {
    metrics::refresh(result);
    log::info!(datahub = datahub.id.as_str(), refresh_token_hash = token.fingerprint(), result; "refresh");
}

/// Why a call cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefreshFailure {
    /// The tokens are spent or revoked, and nobody has newer ones.
    #[error("the tokens are spent")]
    Expired,
    /// The DataHUB did not answer in time, or not as it should.
    #[error("no refresh at the moment")]
    Unavailable,
}

impl From<RefreshFailure> for ApiError {
    fn from(failure: RefreshFailure) -> Self {
        match failure {
            RefreshFailure::Expired => Self::because(Code::SessionExpired, failure),
            RefreshFailure::Unavailable => Self::because(Code::RefreshUnavailable, failure).retry_after(RETRY_AFTER),
        }
    }
}

/// How long a caller waits for a refresh.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// When to come back after a refresh that failed.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);
