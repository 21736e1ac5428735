//! Which calls may go up to one DataHUB, so that a slow or a dead one cannot occupy the whole process.
//!
//! A concurrency limit: only so many calls may be under way, and only so many may wait, for a short time. A circuit breaker:
//! after a few calls in a row without an answer, whoever made them, the next ones are refused at once, but for one a second
//! that finds out whether the DataHUB is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::datahub::DataHubId;
use crate::datahub::health::{CallKind, Health, Outcome};
use crate::error::{ApiError, Code};

/// How many calls may be under way at one DataHUB, over all workers.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    permits: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// Permission for one call under way, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit<'a>(#[expect(dead_code, reason = "held for its drop")] SemaphorePermit<'a>);

impl ConcurrencyLimit {
    /// `in_flight` calls at once, and `max_waiting` that wait.
    pub(super) fn new(in_flight: usize, max_waiting: usize) -> Self {
        let permits = Semaphore::new(in_flight.min(Semaphore::MAX_PERMITS));
        Self { permits, waiting: AtomicUsize::new(0), max_waiting }
    }

    /// A permit, at once or after waiting for `limit` at most.
    ///
    /// # Errors
    /// [`Rejected::Full`]; nothing is sent then.
    pub(super) async fn acquire(&self, limit: Duration) -> Result<Permit<'_>, Rejected> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(Permit(permit));
        }
        let waiting = Waiting(&self.waiting);
        if waiting.0.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
            return Err(Rejected::Full);
        }
        let permit = timeout(limit, self.permits.acquire()).await.map_err(|_| Rejected::Full)?;
        Ok(Permit(permit.expect("the semaphore is never closed")))
    }
}

/// Counts a call that waits, until it has a permit, gives up, or is dropped because its client has left.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a DataHUB answers, as far as the calls of all workers have found.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    datahub: DataHubId,
    health: Arc<Health>,
    /// How many calls in a row got no answer.
    failures: AtomicU32,
    created_at: Instant,
    /// While the DataHUB does not answer: when the next call may try it, in milliseconds since `created_at`.
    next_retry: AtomicU64,
}

impl CircuitBreaker {
    /// A breaker that lets calls to `datahub` pass, and reports to its `health`.
    pub(super) fn new(datahub: DataHubId, health: Arc<Health>) -> Self {
        let (failures, next_retry) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { datahub, health, failures, created_at: Instant::now(), next_retry }
    }

    /// Whether a call may try.
    ///
    /// # Errors
    /// [`Rejected::Unanswered`]; nothing is sent then.
    pub(super) fn check(&self) -> Result<(), Rejected> {
        if self.failures.load(Ordering::Relaxed) < FAILURE_THRESHOLD {
            return Ok(());
        }
        let (now, next) = (self.now(), self.next_retry.load(Ordering::Relaxed));
        let is_turn = now >= next
            && self
                .next_retry
                .compare_exchange(next, now + RETRY_INTERVAL, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_turn { Ok(()) } else { Err(Rejected::Unanswered) }
    }

    /// The DataHUB has answered, whatever it said.
    pub(super) fn record_success(&self) {
        self.health.report(CallKind::Api, Outcome::Good);
        // Nearly always the count is 0 already. Then it is not written, since all workers share it.
        if self.failures.load(Ordering::Relaxed) > 0 && self.failures.swap(0, Ordering::Relaxed) >= FAILURE_THRESHOLD {
            log::info!(datahub = self.datahub.as_str(); "a DataHUB answers again");
        }
    }

    /// A call got no answer.
    pub(super) fn record_failure(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= FAILURE_THRESHOLD {
            self.health.report(CallKind::Api, Outcome::Unreachable);
        }
        if failures == FAILURE_THRESHOLD {
            self.next_retry.store(self.now() + RETRY_INTERVAL, Ordering::Relaxed);
            log::warn!(datahub = self.datahub.as_str(); "a DataHUB does not answer; one call a second tries it");
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.created_at.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Why a call does not go up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejected {
    /// Too many calls are waiting for this DataHUB, or one has waited too long.
    #[error("too many calls are under way at this DataHUB")]
    Full,
    /// It has not answered for a while.
    #[error("the DataHUB has not answered the last calls")]
    Unanswered,
}

impl From<Rejected> for ApiError {
    fn from(error: Rejected) -> Self {
        let code = match error {
            Rejected::Full => Code::Overloaded,
            Rejected::Unanswered => Code::DatahubUnreachable,
        };
        Self::because(code, error).retry_after(Duration::from_millis(RETRY_INTERVAL))
    }
}

/// After how many calls in a row without an answer the next ones are refused.
const FAILURE_THRESHOLD: u32 = 5;
/// How long until the next call tries it, in milliseconds.
const RETRY_INTERVAL: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_makes_room_for_who_waits_and_no_more_wait_than_may() {
        actix_web::rt::System::new().block_on(one_place_and_one_that_may_wait());
    }

    async fn one_place_and_one_that_may_wait() {
        let limit = Arc::new(ConcurrencyLimit::new(1, 1));
        let first = limit.acquire(LONG).await.expect("the place is free");
        let waiter = actix_web::rt::spawn({
            let limit = Arc::clone(&limit);
            async move { limit.acquire(LONG).await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(limit.acquire(LONG).await.unwrap_err(), Rejected::Full);
        drop(first);
        waiter.await.expect("it did not panic").expect("the place is free again");
        assert_eq!(limit.waiting.load(Ordering::Relaxed), 0);
        let second = limit.acquire(LONG).await.expect("the place is free once more");
        assert_eq!(limit.acquire(Duration::from_millis(1)).await.unwrap_err(), Rejected::Full);
        assert_eq!(limit.waiting.load(Ordering::Relaxed), 0);
        drop(second);
        assert!(limit.acquire(LONG).await.is_ok());
    }

    #[test]
    fn after_a_few_calls_without_an_answer_one_a_second_tries() {
        let datahub: DataHubId = "a".parse().expect("an id");
        let breaker = CircuitBreaker::new(datahub.clone(), Arc::new(Health::new(datahub)));
        for _ in 1..FAILURE_THRESHOLD {
            breaker.record_failure();
        }
        assert!(breaker.check().is_ok(), "not yet");
        breaker.record_success();
        for _ in 0..FAILURE_THRESHOLD {
            assert!(breaker.check().is_ok(), "one that was answered begins the count again");
            breaker.record_failure();
        }
        assert_eq!(breaker.check(), Err(Rejected::Unanswered));
        breaker.next_retry.store(breaker.now(), Ordering::Relaxed);
        assert!(breaker.check().is_ok(), "one tries");
        assert_eq!(breaker.check(), Err(Rejected::Unanswered), "and no second one");
        breaker.record_success();
        assert!(breaker.check().is_ok());
    }

    const LONG: Duration = Duration::from_mins(1);
}
