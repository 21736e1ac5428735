//! One refresh in flight, its answer remembered.
//!
//! GitLab kills the old pair of tokens the moment it gives out a new one, so a refresh that is begun must be finished and
//! its answer must reach the browser. Therefore:
//!
//! * A refresh is a task of its own, which no client's leaving cancels; the process awaits it before it ends.
//! * There is one at a time for each refresh token, over all workers. Whoever comes meanwhile waits for the same answer,
//!   at most [`PATIENCE`]; the task goes on after that.
//! * The answer is remembered for a while, in memory only and as a short cut only: a call with the old cookie that comes
//!   a moment too late gets it too.
//! * A refresh that fails takes nothing away: the session stays as it is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use actix_web::http::header::HeaderValue;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::datahub::DataHub;
use crate::datahub::oidc::RefreshError;
use crate::datahub::token::{RefreshToken, TokenSet};
use crate::error::{ApiError, Code};
use crate::session::{Session, Sessions, Sid};

/// Renews token sets, for all workers of the process.
#[derive(Debug, Clone)]
pub struct Refresher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    refreshes: Mutex<Refreshes>,
    tasks: mpsc::UnboundedSender<Task>,
    remember: Duration,
}

impl Refresher {
    /// A refresher that remembers answers for `remember`, or half the token's life if that is shorter, and the room
    /// where its tasks run.
    pub fn new(remember: Duration) -> (Self, Tasks) {
        let (tasks, queue) = mpsc::unbounded_channel();
        (Self(Arc::new(Shared { refreshes: Mutex::default(), tasks, remember })), Tasks(queue))
    }

    /// The token set that follows `token`, from the DataHUB or from memory.
    ///
    /// # Errors
    /// [`RefreshFailure`]; the session stays.
    pub async fn renew(&self, datahub: &Arc<DataHub>, token: &RefreshToken) -> Result<TokenSet, RefreshFailure> {
        let mut answer = match self.join(datahub, token) {
            Joined::Known(tokens) => return Ok(tokens),
            Joined::Waiting(answer) => answer,
        };
        let answered = tokio::time::timeout(PATIENCE, answer.wait_for(Option::is_some)).await;
        let outcome = match answered {
            Ok(Ok(outcome)) => outcome.clone(),
            // Too slow, or the task ended without a word.
            Ok(Err(_)) | Err(_) => None,
        };
        outcome.unwrap_or(Err(RefreshFailure::Unavailable))
    }

    /// The token set that followed `token`, if this process knows it.
    pub fn remembered(&self, datahub: &DataHub, token: &RefreshToken) -> Option<TokenSet> {
        match self.0.lock().entries.get(&key(datahub, token)) {
            Some(Entry::Done(tokens, until)) if Instant::now() < *until => Some(tokens.clone()),
            _ => None,
        }
    }

    /// Waits for a refresh of `token` that is under way, if there is one, and returns the newest set this process knows.
    pub async fn settled(&self, datahub: &Arc<DataHub>, token: &RefreshToken) -> Option<TokenSet> {
        let under_way = matches!(self.0.lock().entries.get(&key(datahub, token)), Some(Entry::InFlight(_)));
        if under_way {
            // Whatever came of it, memory knows.
            let _ = self.renew(datahub, token).await;
        }
        self.remembered(datahub, token)
    }

    /// Forgets what followed `token`.
    pub fn forget(&self, datahub: &DataHub, token: &RefreshToken) {
        self.0.lock().entries.remove(&key(datahub, token));
    }

    fn join(&self, datahub: &Arc<DataHub>, token: &RefreshToken) -> Joined {
        let key = key(datahub, token);
        let mut refreshes = self.0.lock();
        match refreshes.entries.get(&key) {
            Some(Entry::Done(tokens, until)) if Instant::now() < *until => return Joined::Known(tokens.clone()),
            Some(Entry::InFlight(answer)) if answer.has_changed().is_ok() => return Joined::Waiting(answer.clone()),
            _ => {}
        }
        let (sender, answer) = watch::channel(None);
        refreshes.entries.insert(key, Entry::InFlight(answer.clone()));
        let task =
            Task { datahub: Arc::clone(datahub), token: token.clone(), key, answer: sender, refresher: self.clone() };
        // Once the process ends nobody takes it; then `answer` is closed, which callers see.
        let _ = self.0.tasks.send(task);
        Joined::Waiting(answer)
    }
}

impl Sessions {
    /// The session with newer tokens, and its cookie.
    ///
    /// # Errors
    /// `session_expired` if its tokens cannot be renewed, `refresh_unavailable` if they cannot be renewed now.
    pub async fn renew(
        &self,
        refresher: &Refresher,
        datahub: &Arc<DataHub>,
        sid: &Sid,
        session: &Session,
        now: SystemTime,
    ) -> Result<(Session, HeaderValue), ApiError> {
        let token = session.tokens.refresh.as_ref().ok_or(Code::SessionExpired)?;
        let renewed = session.renewed(refresher.renew(datahub, token).await?, self.limits());
        let cookie = self.renewed(datahub, sid, &renewed, now)?;
        Ok((renewed, cookie))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Refreshes> {
        self.refreshes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Joined {
    Known(TokenSet),
    Waiting(watch::Receiver<Option<Outcome>>),
}

type Outcome = Result<TokenSet, RefreshFailure>;
type Key = [u8; 32];

/// By what an answer is found: everything that changes it.
fn key(datahub: &DataHub, token: &RefreshToken) -> Key {
    Sha256::new().chain_update(datahub.id.as_str()).chain_update([0]).chain_update(token.digest()).finalize().into()
}

/// All refreshes this process knows of, the oldest answers first in `order`.
#[derive(Debug, Default)]
struct Refreshes {
    entries: HashMap<Key, Entry>,
    order: VecDeque<(Key, Instant)>,
}

#[derive(Debug)]
enum Entry {
    InFlight(watch::Receiver<Option<Outcome>>),
    Done(TokenSet, Instant),
}

impl Refreshes {
    fn remember(&mut self, key: Key, tokens: TokenSet, until: Instant) {
        let now = Instant::now();
        while self.order.front().is_some_and(|(_, until)| *until <= now) || self.order.len() >= MOST_REMEMBERED {
            let (oldest, _) = self.order.pop_front().expect("it has a front");
            if matches!(self.entries.get(&oldest), Some(Entry::Done(..))) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, Entry::Done(tokens, until));
        self.order.push_back((key, until));
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

#[derive(Debug)]
struct Task {
    datahub: Arc<DataHub>,
    token: RefreshToken,
    key: Key,
    answer: watch::Sender<Option<Outcome>>,
    refresher: Refresher,
}

impl Task {
    async fn run(self) {
        let started = Instant::now();
        let outcome = self.datahub.provider.refresh(&self.token).await;
        let (datahub, refresh_token_hash) = (self.datahub.id.as_str(), self.token.fingerprint());
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let shared = &self.refresher.0;
        let outcome = match outcome {
            Ok(tokens) => {
                log::info!(datahub, refresh_token_hash, elapsed_ms; "refreshed");
                let remembered = shared.remember.min(tokens.lifetime / 2);
                shared.lock().remember(self.key, tokens.clone(), Instant::now() + remembered);
                Ok(tokens)
            }
            Err(error) => {
                log::warn!(datahub, refresh_token_hash, elapsed_ms, error:err; "refresh failed");
                shared.lock().entries.remove(&self.key);
                Err(match error {
                    RefreshError::Denied => RefreshFailure::Denied,
                    _ => RefreshFailure::Unavailable,
                })
            }
        };
        // Nobody may be waiting any more.
        let _ = self.answer.send(Some(outcome));
    }
}

/// Why there are no newer tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefreshFailure {
    /// The DataHUB no longer accepts the refresh token.
    #[error("the refresh token is spent")]
    Denied,
    /// It did not answer in time, or not as it should.
    #[error("no refresh at the moment")]
    Unavailable,
}

impl From<RefreshFailure> for ApiError {
    fn from(failure: RefreshFailure) -> Self {
        match failure {
            RefreshFailure::Denied => Self::because(Code::SessionExpired, failure),
            RefreshFailure::Unavailable => Self::because(Code::RefreshUnavailable, failure).retry_after(RETRY_AFTER),
        }
    }
}

/// How long a caller waits for a refresh.
const PATIENCE: Duration = Duration::from_secs(10);
/// When to come back after a refresh that failed.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How many answers a process remembers.
const MOST_REMEMBERED: usize = 10_000;
