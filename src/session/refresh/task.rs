//! One refresh, from the token endpoint to the cache.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::access_log::chain;
use crate::datahub::DataHub;
use crate::datahub::oidc::error::RefreshError;
use crate::datahub::revocation::{Obtained, Revoker};
use crate::datahub::token::{RefreshToken, SessionToken, TokenSet};
use crate::datahub::token_endpoint::TokenEndpointError;
use crate::metrics;
use crate::session::decision::CacheEntry;
use crate::session::refresh::Shared;
use crate::session::refresh::backoff::{self, RefreshOutcome};
use crate::session::refresh::cache::CacheKey;

/// A refresh that has been asked for. Nobody's leaving stops it.
pub(super) struct Refresh {
    pub(super) datahub: Arc<DataHub>,
    pub(super) token: RefreshToken,
    /// Whose it is: their [`user_key`](crate::session::open_session::OpenSession::user_key).
    pub(super) person: u64,
    pub(super) key: CacheKey,
    /// How many have failed before it.
    pub(super) failures: u32,
    pub(super) sender: watch::Sender<Option<CacheEntry>>,
    pub(super) shared: Arc<Shared>,
    pub(super) revoker: Revoker,
    /// When it was sent, once it was.
    pub(super) begun: Cell<Option<Instant>>,
}

impl Refresh {
    pub(super) async fn run(self) {
        let mut held = None;
        let is_wanted = || {
            if self.shared.cache.withdraw(&self.key, &self.sender) {
                return false;
            }
            let (mut endpoint, now) = (self.shared.endpoint(&self.datahub), Instant::now());
            held = endpoint.backoff.admit(self.key, now).err();
            if held.is_none() {
                endpoint.pace.begin(now);
                self.begun.set(Some(now));
            }
            held.is_none()
        };
        let refreshed = self.datahub.provider.refresh(&self.token, self.person, is_wanted).await;
        let now = Instant::now();
        let (outcome, obtained) = match (refreshed, held) {
            (Some(refreshed), _) => {
                self.shared.endpoint(&self.datahub).backoff.record(self.key, outcome_of(&refreshed), now);
                self.log(&refreshed, self.begun.get().map_or(Duration::ZERO, |begun| now.duration_since(begun)));
                self.settle(refreshed, now)
            }
            (None, Some(until)) => (CacheEntry::Failed { until, failures: self.failures }, None),
            (None, None) => return,
        };
        let kept = self.shared.cache.finish(&self.key, outcome, now);
        if let (Some(_), Some(obtained)) = (&kept, obtained) {
            obtained.keep();
        }
        // After a logout the jar may hold another session: those who wait look there, as losers do.
        let outcome = kept.unwrap_or(CacheEntry::InvalidGrant { since: now });
        // Nobody may be waiting any more.
        let _ = self.sender.send(Some(outcome));
    }

    /// What is known of the token from now on, and the tokens that follow it, which the cache has yet to take.
    fn settle(&self, refreshed: Result<TokenSet, RefreshError>, now: Instant) -> (CacheEntry, Option<Obtained>) {
        let obtained = |tokens| Obtained::new(&self.datahub, tokens, None, self.revoker.clone());
        let wait = match refreshed {
            Ok(tokens) => return (CacheEntry::Superseded(tokens.clone()), Some(obtained(tokens))),
            Err(RefreshError::InvalidGrant) => return (CacheEntry::InvalidGrant { since: now }, None),
            Err(RefreshError::Endpoint(TokenEndpointError::SignIn)) => {
                return (CacheEntry::Blocked { until: now + BLOCKED_FOR }, None);
            }
            Err(RefreshError::Endpoint(TokenEndpointError::NotNow { retry_after, .. })) => retry_after,
            Err(RefreshError::Unusable(token)) => {
                drop(self.revoker.revoke(&self.datahub, token));
                None
            }
            Err(_) => None,
        };
        let failures = self.failures + 1;
        let until = now + backoff::pause(failures, wait);
        // Whoever comes back then is not to be sent away once more.
        let held = self.shared.endpoint(&self.datahub).backoff.held_until(self.key, now);
        (CacheEntry::Failed { until: held.map_or(until, |held| held.max(until)), failures }, None)
    }

    fn log(&self, refreshed: &Result<TokenSet, RefreshError>, elapsed: Duration) {
        let datahub = self.datahub.id.as_str();
        let refresh_token_hash = SessionToken::Refresh(self.token.clone()).fingerprint();
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
        if let Err(error @ RefreshError::Client(_)) = refreshed {
            self.datahub.report_refused_client(error);
        }
    }
}

impl Drop for Refresh {
    /// However it ended, also in the middle: it is not under way any more, and holds nobody back as a trial.
    fn drop(&mut self) {
        let (mut endpoint, now) = (self.shared.endpoint(&self.datahub), Instant::now());
        endpoint.backoff.record(self.key, RefreshOutcome::Unanswered, now);
        if let Some(begun) = self.begun.get() {
            endpoint.pace.end(begun, now);
        }
    }
}

/// What the end of a refresh says about the token endpoint.
fn outcome_of(refreshed: &Result<TokenSet, RefreshError>) -> RefreshOutcome {
    match refreshed {
        Err(RefreshError::Endpoint(TokenEndpointError::NotNow { status: 429, retry_after })) => {
            RefreshOutcome::Throttled(*retry_after)
        }
        Err(RefreshError::Endpoint(TokenEndpointError::NotNow { retry_after, .. })) => {
            RefreshOutcome::Failing(*retry_after)
        }
        Err(RefreshError::Endpoint(TokenEndpointError::SignIn)) => RefreshOutcome::Answered,
        Err(RefreshError::Endpoint(_) | RefreshError::Metadata(_) | RefreshError::Invalid) => {
            RefreshOutcome::Unanswered
        }
        _ => RefreshOutcome::Answered,
    }
}

/// How long a person whom the DataHUB has blocked is taken to stay so.
const BLOCKED_FOR: Duration = Duration::from_mins(1);
