//! Newer tokens, without shared state: the browser's cookie jar is what all processes share.
//!
//! GitLab kills the old pair of tokens the moment it gives out the new one, with no grace; of several refreshes of one
//! token one wins, and the others are refused, which harms nobody. Each rule here is there because of an order of events
//! that did happen. A call that ends in any of them has not been made: the browser is told by a 307 to send it again
//! ([`crate::session::replay`]), with what its jar holds then.
//!
//! 1. *When.* A call whose token is stale is not forwarded before a refresh, and stale is sooner for a long body: GitLab
//!    looks at the token again when the body is there. A young token is not refreshed, whoever asks, unless GitLab has
//!    refused it. ([`Session::is_stale_at`], [`Session::is_young_at`])
//! 2. *One at a time.* There is one refresh for each refresh token in a process, over all workers, in a task of its own
//!    that no client's leaving cancels: once begun, its answer must reach somebody. Callers wait for it, at most
//!    [`PATIENCE`]; the task goes on after that, and the process awaits it before it ends.
//! 3. *Who waited* gets the new cookie with the 307, all of them: any one of them may be the one whose answer arrives.
//! 4. *Latecomers.* What followed a token is remembered for a while, in memory only. A call with a superseded cookie is
//!    sent round **without** a cookie first: its jar may hold something newer than we know by now, and an older cookie on
//!    top of that would be fatal. Only if it comes back with a superseded cookie is it given the newest that we know, at
//!    the end of the chain.
//! 5. *Losers.* A refused refresh means that another process has won, and the jar has the new cookie or will have it: no
//!    cookie is written or removed, the call is sent round after a pause that grows, over a new connection, so that a
//!    balancer may choose the process that knows. If that leads nowhere, the token is dead: 401, at once from then on,
//!    and an event, since somebody else may have used a copy.
//! 6. *GitLab's word.* A token that GitLab refuses is refreshed once, however young. A token that has come out of a
//!    refresh on account of the same call is not.
//! 7. *Never* does a refresh that fails take a session away. Whatever is not a clear refusal is 503, and nothing changes.
//! 8. *Logout* waits for a refresh under way, revokes the newest pair, and leaves the whole chain dead.
//! 9. *What is left.* If the process dies between GitLab's commit and the moment the browser has the cookie, or GitLab's
//!    answer is lost, or the browser never gets any 307 with the cookie and no later call meets a process that knows it in
//!    time, the session is lost, and people log in again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::session::decision::Reason;
use crate::session::{Limits, Session};

/// Renews token sets, for all workers of the process.
#[derive(Debug, Clone)]
pub struct Refresher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Mutex<Memory>,
    tasks: mpsc::UnboundedSender<Task>,
    remember: Duration,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It may go on with the tokens it has.
    UseCurrent,
    /// These follow; the browser must have them first.
    Renewed(TokenSet),
    /// Somebody else may have newer ones: the browser should look into its jar, and come on a new connection if so told.
    Retry {
        /// Whether this connection should end.
        closes: bool,
    },
}

impl Refresher {
    /// A refresher that remembers what it knows for `remember`, and the room where its tasks run.
    pub fn new(remember: Duration) -> (Self, Tasks) {
        let (tasks, queue) = mpsc::unbounded_channel();
        (Self(Arc::new(Shared { memory: Mutex::default(), tasks, remember })), Tasks(queue))
    }

    /// Whether a call with these tokens must ask [`Refresher::fresh`], whatever its own need.
    pub fn knows(&self, datahub: &DataHub, tokens: &TokenSet) -> bool {
        let Some(token) = &tokens.refresh else { return false };
        let memory = self.0.lock();
        !memory.entries.is_empty() && memory.get(&key(datahub, token)).is_some_and(|entry| entry.is_about(tokens))
    }

    /// STUB
    pub fn has_entry_for(&self, datahub: &DataHub, session: impl FnOnce() -> Session) -> bool {
        !self.0.lock().entries.is_empty() && self.knows(datahub, &session().tokens)
    }

    /// Whether nobody can do anything with these tokens any more.
    pub fn is_dead(&self, datahub: &DataHub, tokens: &TokenSet) -> bool {
        let Some(token) = &tokens.refresh else { return false };
        matches!(self.0.lock().get(&key(datahub, token)), Some(Entry::Dead))
    }

    /// What becomes of a call with `tokens` that the browser has sent `replays` times before. Waits where there is
    /// something to wait for.
    ///
    /// # Errors
    /// [`RefreshFailure`]; the session's cookie stays as it is.
    pub async fn resolve(
        &self,
        datahub: &Arc<DataHub>,
        session: &Session,
        need: Reason,
        replays: u8,
        limits: &Limits,
        context: &RequestContext,
    ) -> Result<Resolution, RefreshFailure> {
        let tokens = &session.tokens;
        let Some(token) = &tokens.refresh else {
            return if need == Reason::None { Ok(Resolution::UseCurrent) } else { Err(RefreshFailure::Dead) };
        };
        let is_just_renewed = replays > 0 && session.is_young_at(SystemTime::now(), limits);
        let mut answer = match self.look(datahub, token, tokens, need, replays) {
            Look::Decided(fresh) => return fresh,
            Look::Refused(since) => return self.lost(datahub, token, since, replays, context).await,
            Look::Unknown if need == Reason::Rejected && is_just_renewed => return Err(RefreshFailure::Dead),
            Look::Unknown => self.begin(datahub, token),
            Look::Waiting(answer) => {
                told("joined", datahub, token);
                answer
            }
        };
        let answered = tokio::time::timeout(PATIENCE, answer.wait_for(Option::is_some)).await;
        let outcome = match answered {
            Ok(Ok(outcome)) => outcome.clone(),
            // Too slow, or the task ended without a word.
            Ok(Err(_)) | Err(_) => None,
        };
        match outcome {
            Some(Outcome::Renewed(tokens)) => Ok(Resolution::Renewed(tokens)),
            Some(Outcome::Refused) => self.lost(datahub, token, Instant::now(), replays, context).await,
            Some(Outcome::Failed) | None => Err(RefreshFailure::Unavailable),
        }
    }

    /// The newest token that follows `token`, once a refresh of it that is under way is done, for `patience` at most. The
    /// whole chain is dead from then on; what a refresh brings after that is revoked.
    pub async fn end(&self, datahub: &DataHub, token: &RefreshToken, patience: Duration) -> RefreshToken {
        let under_way = match self.0.lock().get(&key(datahub, token)) {
            Some(Entry::InFlight(answer)) => Some(answer.clone()),
            _ => None,
        };
        if let Some(mut answer) = under_way {
            // Whatever came of it, memory knows.
            let _ = tokio::time::timeout(patience, answer.wait_for(Option::is_some)).await;
        }
        let until = self.until();
        let mut memory = self.0.lock();
        let mut newest = token.clone();
        loop {
            let at = key(datahub, &newest);
            let next = match memory.get(&at) {
                Some(Entry::Superseded(tokens)) => tokens.refresh.clone().filter(|next| *next != newest),
                _ => None,
            };
            memory.insert(at, Entry::Dead, until);
            match next {
                Some(next) => newest = next,
                None => return newest,
            }
        }
    }

    fn look(&self, datahub: &DataHub, token: &RefreshToken, tokens: &TokenSet, need: Reason, replays: u8) -> Look {
        let memory = self.0.lock();
        match memory.get(&key(datahub, token)).filter(|entry| entry.is_about(tokens)) {
            Some(Entry::Dead) => Look::Decided(Err(RefreshFailure::Dead)),
            Some(Entry::Superseded(_)) if replays == 0 => Look::Decided(Ok(Resolution::Retry { closes: false })),
            Some(Entry::Superseded(next)) => {
                let newest = memory.newest(datahub, next).clone();
                drop(memory);
                told("remembered", datahub, token);
                Look::Decided(Ok(Resolution::Renewed(newest)))
            }
            Some(Entry::InFlight(answer)) => Look::Waiting(answer.clone()),
            Some(Entry::Refused(since)) => Look::Refused(*since),
            None if need == Reason::None => Look::Decided(Ok(Resolution::UseCurrent)),
            None => Look::Unknown,
        }
    }

    /// Begins a refresh, or joins one that has begun since it was looked for.
    fn begin(&self, datahub: &Arc<DataHub>, token: &RefreshToken) -> watch::Receiver<Option<Outcome>> {
        let key = key(datahub, token);
        let mut memory = self.0.lock();
        if let Some(Entry::InFlight(answer)) = memory.get(&key) {
            return answer.clone();
        }
        let (sender, answer) = watch::channel(None);
        memory.entries.insert(key, (Entry::InFlight(answer.clone()), None));
        let task =
            Task { datahub: Arc::clone(datahub), token: token.clone(), key, answer: sender, refresher: self.clone() };
        // Once the process ends nobody takes it; then `answer` is closed, which callers see.
        let _ = self.0.tasks.send(task);
        answer
    }

    /// What becomes of a call whose token the DataHUB no longer renews, known since `since`.
    async fn lost(
        &self,
        datahub: &DataHub,
        token: &RefreshToken,
        since: Instant,
        replays: u8,
        context: &RequestContext,
    ) -> Result<Resolution, RefreshFailure> {
        told("lost", datahub, token);
        if replays >= MOST_REPLAYS || (replays > 0 && since.elapsed() > LONGEST_SEARCH) {
            let until = self.until();
            self.0.lock().insert(key(datahub, token), Entry::Dead, until);
            log::warn!(datahub = datahub.id.as_str(), refresh_token_hash = token.fingerprint(), replays;
                "a session is lost: nobody knows what followed its refresh token");
            context.event(Event::RefreshReuse, datahub.id.as_str());
            return Err(RefreshFailure::Dead);
        }
        tokio::time::sleep(PAUSES[usize::from(replays).min(PAUSES.len() - 1)]).await;
        Ok(Resolution::Retry { closes: replays > 0 })
    }

    /// When what is learnt now is forgotten.
    fn until(&self) -> Instant {
        Instant::now() + self.0.remember
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a look into memory says.
enum Look {
    Decided(Result<Resolution, RefreshFailure>),
    Waiting(watch::Receiver<Option<Outcome>>),
    Refused(Instant),
    Unknown,
}

#[derive(Debug, Clone)]
enum Outcome {
    Renewed(TokenSet),
    /// Spent or revoked: the DataHUB said so clearly.
    Refused,
    /// Anything else.
    Failed,
}

type Key = [u8; 32];

/// By what an answer is found: everything that changes it.
fn key(datahub: &DataHub, token: &RefreshToken) -> Key {
    token.digest_at(datahub.id.as_str())
}

/// What this process knows of refresh tokens: a short cut, nothing more. Another process serves as well without it.
#[derive(Debug, Default)]
struct Memory {
    /// With the time at which each is forgotten; a refresh in flight is not.
    entries: HashMap<Key, (Entry, Option<Instant>)>,
    /// The oldest first.
    order: VecDeque<(Key, Instant)>,
}

#[derive(Debug)]
enum Entry {
    InFlight(watch::Receiver<Option<Outcome>>),
    Superseded(TokenSet),
    Refused(Instant),
    Dead,
}

impl Entry {
    /// Whether this concerns a session with `tokens`, which are not themselves what followed: a DataHUB may let a refresh
    /// token stay as it is.
    fn is_about(&self, tokens: &TokenSet) -> bool {
        !matches!(self, Self::Superseded(next) if next.access == tokens.access)
    }
}

impl Memory {
    fn get(&self, key: &Key) -> Option<&Entry> {
        let (entry, until) = self.entries.get(key)?;
        let is_current = match (entry, until) {
            // A task that ended without a word: as if it had never been.
            (Entry::InFlight(answer), _) => answer.has_changed().is_ok(),
            (_, until) => until.is_none_or(|until| Instant::now() < until),
        };
        is_current.then_some(entry)
    }

    fn insert(&mut self, key: Key, entry: Entry, until: Instant) {
        let now = Instant::now();
        while self.order.front().is_some_and(|(_, until)| *until <= now) || self.order.len() >= MOST_REMEMBERED {
            let (oldest, until) = self.order.pop_front().expect("it has a front");
            if self.entries.get(&oldest).is_some_and(|(_, current)| *current == Some(until)) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, (entry, Some(until)));
        self.order.push_back((key, until));
    }

    /// The end of the chain that goes on with `next`.
    fn newest<'a>(&'a self, datahub: &DataHub, mut next: &'a TokenSet) -> &'a TokenSet {
        // Longer than any chain that lives; a DataHUB that gave out one token twice could make a circle.
        for _ in 0..LONGEST_CHAIN {
            let following = next.refresh.as_ref().and_then(|token| self.get(&key(datahub, token)));
            match following {
                Some(Entry::Superseded(tokens)) => next = tokens,
                _ => break,
            }
        }
        next
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
        let refreshed = self.datahub.provider.refresh(&self.token).await;
        let (datahub, refresh_token_hash) = (self.datahub.id.as_str(), self.token.fingerprint());
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &refreshed {
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
        let outcome = self.remember(&refreshed);
        // Nobody may be waiting any more.
        let _ = self.answer.send(Some(outcome));
        // A logout did not wait for us: what it should have revoked is ours to revoke.
        if self.is_over()
            && let Ok(TokenSet { refresh: Some(orphan), .. }) = refreshed
            && let Err(error) = self.datahub.provider.revoke(&orphan).await
        {
            log::warn!(datahub, reason = chain(&error); "the tokens of a session that ended could not be revoked");
            access_log::event(Event::RevokeFailed, datahub, None);
        }
    }

    fn remember(&self, refreshed: &Result<TokenSet, RefreshError>) -> Outcome {
        let until = self.refresher.until();
        let mut memory = self.refresher.0.lock();
        if matches!(memory.get(&self.key), Some(Entry::Dead)) {
            return Outcome::Refused;
        }
        match refreshed {
            Ok(tokens) => {
                memory.insert(self.key, Entry::Superseded(tokens.clone()), until);
                Outcome::Renewed(tokens.clone())
            }
            Err(RefreshError::Denied) => {
                memory.insert(self.key, Entry::Refused(Instant::now()), until);
                Outcome::Refused
            }
            Err(_) => {
                memory.entries.remove(&self.key);
                Outcome::Failed
            }
        }
    }

    /// Whether the session has ended meanwhile.
    fn is_over(&self) -> bool {
        matches!(self.refresher.0.lock().get(&self.key), Some(Entry::Dead))
    }
}

fn told(result: &'static str, datahub: &DataHub, token: &RefreshToken) {
    metrics::refresh(result);
    log::info!(datahub = datahub.id.as_str(), refresh_token_hash = token.fingerprint(), result; "refresh");
}

/// Why a call cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefreshFailure {
    /// The tokens are spent or revoked, and nobody has newer ones.
    #[error("the tokens are spent")]
    Dead,
    /// The DataHUB did not answer in time, or not as it should.
    #[error("no refresh at the moment")]
    Unavailable,
}

impl From<RefreshFailure> for ApiError {
    fn from(failure: RefreshFailure) -> Self {
        match failure {
            RefreshFailure::Dead => Self::because(Code::SessionExpired, failure),
            RefreshFailure::Unavailable => Self::because(Code::RefreshUnavailable, failure).retry_after(RETRY_AFTER),
        }
    }
}

/// How long a caller waits for a refresh.
const PATIENCE: Duration = Duration::from_secs(10);
/// When to come back after a refresh that failed.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long a loser waits before it is sent round, the first time, the second time and so on.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];
/// How long losers search for somebody who knows what followed their token.
const LONGEST_SEARCH: Duration = Duration::from_secs(10);
/// How often a call is sent again at most; Fetch follows 20 redirects.
pub(super) const MOST_REPLAYS: u8 = 16;
/// How many refresh tokens a process knows something of.
const MOST_REMEMBERED: usize = 10_000;
const LONGEST_CHAIN: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// A million refreshes, each of a token that nobody has seen before.
    #[test]
    fn memory_stays_bounded() {
        let mut memory = Memory::default();
        let until = Instant::now() + Duration::from_mins(10);
        for number in 0..1_000_000_u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            memory.insert(key, Entry::Dead, until);
        }
        assert_eq!((memory.entries.len(), memory.order.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
        let (mut oldest, mut newest) = ([0; 32], [0; 32]);
        oldest[..8].copy_from_slice(&990_000_u64.to_le_bytes());
        newest[..8].copy_from_slice(&999_999_u64.to_le_bytes());
        assert!(memory.get(&oldest).is_some() && memory.get(&newest).is_some());
        assert!(memory.get(&[0; 32]).is_none());
    }

    #[test]
    fn what_is_learnt_anew_is_kept_longer_and_what_is_over_is_forgotten() {
        let mut memory = Memory::default();
        let now = Instant::now();
        memory.insert([1; 32], Entry::Refused(now), now + Duration::from_millis(20));
        memory.insert([2; 32], Entry::Dead, now + Duration::from_millis(20));
        memory.insert([1; 32], Entry::Dead, now + Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(30));
        assert!(memory.get(&[2; 32]).is_none(), "its time is over");
        memory.insert([3; 32], Entry::Dead, now + Duration::from_mins(1));
        assert!(matches!(memory.get(&[1; 32]), Some(Entry::Dead)));
        assert_eq!(memory.entries.len(), 2, "the other one is gone");
    }
}
