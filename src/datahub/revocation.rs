//! Revoking what nobody holds any more: sessions that end, and tokens that were obtained and are not kept.
//!
//! A revocation is a task of its own: it outlives the request that asked for it, tries for a minute, and the process awaits
//! it before it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::access_log::{self, Event, chain};
use crate::datahub::DataHub;
use crate::datahub::tasks::Tasks;
use crate::datahub::token::{SessionToken, TokenSet};
use crate::metrics;

/// Revokes tokens, for all workers of the process.
#[derive(Debug, Clone)]
pub struct Revoker(Tasks);

impl Revoker {
    /// Its revocations are among `tasks`.
    pub fn new(tasks: Tasks) -> Self {
        Self(tasks)
    }

    /// Revokes `token`, and with it all that the DataHUB gave out together. Whoever wants to may wait for the end.
    pub fn revoke(&self, datahub: &Arc<DataHub>, token: SessionToken) -> oneshot::Receiver<()> {
        let revocation =
            Revocation { datahub: Arc::clone(datahub), token, is_done: false, reason: PROCESS_ENDED.into() };
        self.0.run(move || revocation.run())
    }
}

/// One token that is to be revoked. However this ends, it is counted and, if it was in vain, logged.
struct Revocation {
    datahub: Arc<DataHub>,
    token: SessionToken,
    is_done: bool,
    reason: String,
}

impl Revocation {
    async fn run(mut self) {
        let begun = Instant::now();
        let mut pause = Duration::from_secs(1);
        loop {
            let Err(error) = self.datahub.provider.revoke(&self.token).await else {
                self.is_done = true;
                return;
            };
            self.reason = chain(&error);
            if !error.may_pass() || begun.elapsed() + pause > MAX_TIME {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

impl Drop for Revocation {
    fn drop(&mut self) {
        metrics::revocation(if self.is_done { "ok" } else { "failed" });
        if !self.is_done {
            let (datahub, reason) = (self.datahub.id.as_str(), &self.reason);
            log::warn!(datahub, refresh_token_hash = self.token.fingerprint(), reason;
                "tokens that nobody holds any more could not be revoked: they live until they expire, or until the person revokes the application at the DataHUB");
            access_log::event(Event::RevokeFailed, datahub, None);
        }
    }
}

/// Tokens that a DataHUB has given out and that are in no cookie yet. They are revoked when this is dropped.
#[derive(Debug)]
pub struct Obtained {
    /// Where they are from, as long as they are not kept.
    datahub: Option<Arc<DataHub>>,
    /// They live.
    pub tokens: TokenSet,
    /// What the person's browser holds already: a DataHUB may give out the same tokens again (Doorkeeper's
    /// `reuse_access_token`).
    held: Option<SessionToken>,
    revoker: Revoker,
}

impl Obtained {
    /// Tokens of `datahub`, while the browser still holds `held`.
    pub fn new(datahub: &Arc<DataHub>, tokens: TokenSet, held: Option<SessionToken>, revoker: Revoker) -> Self {
        Self { datahub: Some(Arc::clone(datahub)), tokens, held, revoker }
    }

    /// They are in a cookie now.
    pub fn keep(mut self) {
        self.datahub = None;
    }
}

impl Drop for Obtained {
    fn drop(&mut self) {
        let token = self.tokens.session_token();
        if let Some(datahub) = self.datahub.take()
            && self.held.as_ref() != Some(&token)
        {
            drop(self.revoker.revoke(&datahub, token));
        }
    }
}

/// How long a revocation is tried.
const MAX_TIME: Duration = Duration::from_mins(1);
/// The longest pause between two tries; the first one is a second, and each is twice the one before.
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// Why a revocation was dropped before its end.
const PROCESS_ENDED: &str = "the process ended before";
