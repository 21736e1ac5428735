//! A circuit breaker for one DataHUB, so that a dead one costs nobody any time.
//!
//! After a few calls in a row without an answer, whoever made them, the next ones are refused at once, but for one a second
//! that finds out whether the DataHUB is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::datahub::DataHubId;
use crate::datahub::health::{CallKind, Health, Outcome};
use crate::error::{ApiError, Code};

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
    /// [`CircuitOpen`]; nothing is sent then.
    pub(super) fn check(&self) -> Result<(), CircuitOpen> {
        if self.failures.load(Ordering::Relaxed) < FAILURE_THRESHOLD {
            return Ok(());
        }
        let (now, next) = (self.now(), self.next_retry.load(Ordering::Relaxed));
        let is_turn = now >= next
            && self
                .next_retry
                .compare_exchange(next, now + RETRY_INTERVAL, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_turn { Ok(()) } else { Err(CircuitOpen) }
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

/// The DataHUB has not answered for a while; the call does not go up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the DataHUB has not answered the last calls")]
pub(super) struct CircuitOpen;

impl From<CircuitOpen> for ApiError {
    fn from(error: CircuitOpen) -> Self {
        Self::because(Code::DatahubUnreachable, error).retry_after(Duration::from_millis(RETRY_INTERVAL))
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
        assert_eq!(breaker.check(), Err(CircuitOpen));
        breaker.next_retry.store(breaker.now(), Ordering::Relaxed);
        assert!(breaker.check().is_ok(), "one tries");
        assert_eq!(breaker.check(), Err(CircuitOpen), "and no second one");
        breaker.record_success();
        assert!(breaker.check().is_ok());
    }
}
